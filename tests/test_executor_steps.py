"""What a step of the executor gives beside logits, what it keeps from step to step, and who uses it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import stemma
from stemma.decoding import SamplingParams, batch, stream
from stemma.decoding.session import Session
from stemma.errors import CheckpointError
from stemma.executor import native
from stemma.nn.model import Model
from tiny import build, tiny


@pytest.fixture(autouse=True)
def needs_a_compiler() -> Iterator[None]:
    if native.library() is None:
        pytest.skip("no C compiler")
    yield


def wide(vocab: int) -> Model:
    """A tiny LLaMA with many tokens."""
    torch.manual_seed(1)
    return stemma.build("llama-7b", d_model=32, layers=1, heads=2, d_ff=48, vocab=vocab, context=64).eval()


@torch.inference_mode()
def test_the_likeliest_tokens_are_pytorchs() -> None:
    """In vocabularies of one block and of several, by one thread and by two; of equal ones the first."""
    threads = torch.get_num_threads()
    try:
        for vocab in (90, 2048, 5000):
            model, found = wide(vocab), []
            assert model.lm is not None and isinstance(model.lm.weight, torch.Tensor)
            model.lm.weight.data[-3:] = model.lm.weight.data[7]  # as likely as token 7
            for count in (1, 2):
                torch.set_num_threads(1)
                session = Session(model, [[3, 4], [5], [6, 7, 8]], 4)
                torch.set_num_threads(count)
                for step in range(3):
                    logits = session.step([step + 9, step + 40, step + 60])
                    given = session.likeliest(logits)
                    assert given is not None and given.tokens == logits.argmax(-1).tolist()
                    want = logits.log_softmax(-1).amax(-1)
                    torch.testing.assert_close(torch.tensor(given.logprobs), want, rtol=0, atol=1e-5)
                    found.append((given.tokens, given.logprobs))
                assert session.likeliest(logits.clone()) is None  # those of other logits
            assert found[:3] == found[3:]
    finally:
        torch.set_num_threads(threads)


@torch.inference_mode()
def test_the_first_of_equal_tokens_is_taken() -> None:
    model = wide(5000)
    assert model.lm is not None and isinstance(model.lm.weight, torch.Tensor)
    model.lm.weight.data[:] = model.lm.weight.data[0]
    session = Session(model, [[3, 4]], 4)
    logits = session.step([9])
    found = session.likeliest(logits)
    assert found is not None and found.tokens == [0]
    assert found.logprobs == pytest.approx([-(torch.tensor(5000.0).log().item())], abs=1e-4)


@pytest.mark.filterwarnings("ignore:.*more than the")
@torch.inference_mode()
def test_tables_by_position_grow() -> None:
    """Past the 256 positions that a table begins with, and after rows have become shorter."""
    for name in ("llama", "t5"):
        model = build(tiny(name))
        prompt = torch.randint(5, 80, (250,), generator=torch.Generator().manual_seed(0)).tolist()
        ours, theirs = Session(model, [prompt, prompt[:9]], 12), Session(model, [prompt, prompt[:9]], 12)
        theirs.executor = None
        for step in range(12):
            torch.testing.assert_close(ours.step([7, step]), theirs.step([7, step]), rtol=0, atol=1e-5)
        assert ours.lengths.tolist() == ours.counts == theirs.counts
        assert {m: h.tolist() for m, h in ours.cache.held.items()} == {
            m: h.tolist() for m, h in theirs.cache.held.items()
        }


def test_greedy_texts_take_what_the_executor_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same tokens and log-probabilities as by PyTorch, and no pass over the logits; rules have theirs."""
    model = wide(300)
    prompts = [[5, 6, 7], [8, 9]]
    with monkeypatch.context() as patch:
        patch.setenv("STEMMA_EXECUTOR", "off")
        plain = stemma.generate(wide(300), prompts, max_new_tokens=8)  # which lays its weights out for PyTorch
    passes = []
    real = batch.constrained
    monkeypatch.setattr(batch, "constrained", lambda *given: (passes.append(1), real(*given))[1])
    ours = stemma.generate(model, prompts, max_new_tokens=8)
    assert len(passes) == 1  # the first tokens, which follow from the prompt
    for a, b in zip(ours, plain, strict=True):
        assert a.ids == b.ids and a.logprobs == pytest.approx(b.logprobs, abs=1e-5)
    biased = stemma.generate(model, prompts, max_new_tokens=8, logit_bias={11: 100.0})
    assert [r.ids for r in biased] == [[11] * 8] * 2 and len(passes) == 9


def test_a_stream_computes_in_eval_mode_whatever_happens_between_its_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEMMA_EXECUTOR", "off")  # which has no dropout
    model = build(tiny("gpt2", **{"arch.dropout.residual": 0.9}))
    want = [event.token for event in stream(model, [[5, 6, 7]], max_new_tokens=6)]
    found = []
    for event in stream(model, [[5, 6, 7]], max_new_tokens=6):
        found.append(event.token)
        model.train(len(found) % 2 == 1)
        assert model.training == (len(found) % 2 == 1)
    assert found == want


@pytest.mark.filterwarnings("ignore:.*more than the")
@pytest.mark.parametrize("name", ["llama", "mistral", "glm"])
def test_several_steps_in_one_go_are_single_steps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same events, whatever end a text comes to, and past windows."""
    model, runs = build(tiny(name)), []
    prompts = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14], [15]]
    real = Session.steps
    monkeypatch.setattr(
        Session, "steps", lambda self, tokens, count: (runs.append(count), real(self, tokens, count))[1]
    )
    for wait in (0.0, 1e9):
        monkeypatch.setattr(batch, "WAIT", wait)
        ids = stemma.generate(model, prompts, max_new_tokens=21, ignore_eos=True)
        params = [
            SamplingParams(max_new_tokens=n, eos_token_id=ids[i].ids[at])
            for i, (n, at) in enumerate(((21, 5), (9, 3), (20, 19)))
        ]
        texts = stemma.generate(model, prompts, params)
        found = [(e.row, e.token, e.logprob, e.reason) for e in stream(model, prompts, params)]
        if not wait:
            single = ids, texts, sorted(found)
            assert not runs
    assert (ids, texts, sorted(found)) == single
    assert (max(runs, default=0) == 8) == (name != "glm")  # whose positions do not count on


@torch.inference_mode()
def test_steps_end_before_logits_that_are_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    model = wide(300)
    written = stemma.generate(model, [[5, 6]], max_new_tokens=6, ignore_eos=True)[0].ids
    at = next(i for i in range(1, 6) if written[i] not in (5, 6, *written[:i]))
    model.embed.tokens.weight[written[at]] = torch.inf
    session, plain = Session(model, [[5, 6]], 9), Session(model, [[5, 6]], 9)
    found = session.steps(written[:1], 8)
    assert [step.tokens[0] for step in found] == written[1 : at + 1]
    for token in written[:at]:
        plain.step([token])
    assert session.counts == plain.counts and session.left == plain.left
    assert [h.tolist() for h in session.cache.held.values()] == [h.tolist() for h in plain.cache.held.values()]
    for wait in (0.0, 1e9):
        monkeypatch.setattr(batch, "WAIT", wait)
        with pytest.raises(CheckpointError, match="not finite"):
            stemma.generate(model, [[5, 6]], max_new_tokens=8, ignore_eos=True)
