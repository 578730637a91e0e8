"""Speculative decoding: guesses change how fast a text is written, and nothing else."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

import stemma
from oracle import shared
from stemma.decoding import Draft, Lookup, SamplingParams, stream
from stemma.decoding.batch import Batch
from stemma.decoding.guides import regex
from stemma.decoding.requests import requests
from stemma.decoding.sampling import Sampler
from stemma.decoding.speculative import Found, Guess, accepted
from stemma.errors import UsageError
from test_generate import last_logits
from test_guides import writer
from tiny import build, slow, tiny

LOOK = Lookup(tokens=4, ngram=2, shortest=1)
CASES = ["llama", "mistral", "t5", "tiny-glm", *slow("gpt2", "bart", "tiny-gemma2")]
PROMPTS = [[5, 6, 7, 5, 6], [9, 8, 9, 8, 9, 8, 9], [11], [5, 6, 7, 5, 6]]


def model_of(case: str, seed: int = 0) -> Any:
    if case.startswith("tiny-"):
        return build(tiny(case.removeprefix("tiny-")), seed)
    return shared(case)[0] if not seed else stemma_twin(case)


def stemma_twin(case: str) -> Any:
    """The same architecture with weights somewhat off: a draft that is right now and then."""
    import copy

    model = copy.deepcopy(shared(case)[0])
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.02)
    return model


def calls(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens a row of every pass of this model."""
    read: list[int] = []
    whole = type(model).decode

    def decode(self: Any, inputs: Any) -> Any:
        if self is model:
            read.append(inputs.input_ids.shape[1])
        return whole(self, inputs)

    monkeypatch.setattr(type(model), "decode", decode)
    return read


# ---------------------------------------------------------------- the same text


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore:.* tokens are more than")
def test_guesses_from_the_text_change_nothing(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy and drawn texts, past windows, alone and together, beside rows without guesses."""
    model = model_of(case)
    params = [
        SamplingParams(max_new_tokens=24, ignore_eos=True, speculate=LOOK),
        SamplingParams(max_new_tokens=20, ignore_eos=True, temperature=0.4, seed=3, speculate=LOOK, n=2),
        SamplingParams(max_new_tokens=15, ignore_eos=True),
        SamplingParams(
            max_new_tokens=18, temperature=0.7, seed=4, speculate=LOOK, logit_bias={5: 3.0, 6: 3.0}, logprobs=2
        ),
    ]
    want = [stemma.generate(model, [r], p, speculate=None)[0] for r, p in zip(PROMPTS, params, strict=True)]
    read = calls(model, monkeypatch)
    for batch in (None, 2):
        got = stemma.generate(model, PROMPTS, params, batch=batch)
        assert [[c.ids for c in r.choices] for r in got] == [[c.ids for c in r.choices] for r in want]
        assert got[3].logprobs == pytest.approx(want[3].logprobs, abs=1e-4) and got[3].reason == want[3].reason
        assert [[i for i, _ in top] for top in got[3].top] == [[i for i, _ in top] for top in want[3].top]
    assert max(read[1:]) > 1


@pytest.mark.parametrize("case", ["mistral", "bart", *slow("llama")])
@pytest.mark.filterwarnings("ignore:.* tokens are more than")
def test_greedy_texts_with_a_draft_are_the_models(case: str) -> None:
    model, draft = model_of(case), model_of(case, 1)
    params = [SamplingParams(max_new_tokens=n, ignore_eos=True) for n in (20, 3, 12, 20)]
    want = [r.ids for r in stemma.generate(model, PROMPTS, params)]
    for how in (draft, Draft(draft, 2), Draft(model, 7)):
        assert [r.ids for r in stemma.generate(model, PROMPTS, params, speculate=how)] == want


@pytest.mark.filterwarnings("ignore:.* tokens are more than")
def test_a_good_draft_saves_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A draft that is the model itself is always right: five tokens a pass, drawn too."""
    monkeypatch.setenv("STEMMA_EXECUTOR", "off")  # so that every pass is seen
    model, draft = model_of("mistral"), model_of("mistral")
    draft = __import__("copy").deepcopy(draft)
    read = calls(model, monkeypatch)
    for temperature in (0.0, 1.0):
        read.clear()
        options = dict(max_new_tokens=21, ignore_eos=True, temperature=temperature)
        stemma.generate(model, [[5, 6, 7]], speculate=Draft(draft, 4), **options)
        assert read == [3, 5, 5, 5, 5]


def test_guesses_follow_rules_guides_and_stops() -> None:
    model = writer()
    base: dict[str, Any] = dict(max_new_tokens=60, temperature=0.8, seed=2)
    for options in (
        dict(guide=regex("(ab|cd){2,9}x")),
        dict(frequency_penalty=0.7, repetition_penalty=1.3, no_repeat_ngram_size=3),
        dict(stop=["a", "é"]),
        dict(min_new_tokens=50, min_p=0.05),
    ):
        params = SamplingParams(**base, **options)
        want = stemma.generate(model, [[5, 6, 5, 6]], params)[0]
        events = list(stream(model, [[5, 6, 5, 6]], params, speculate=LOOK))
        assert [e.token for e in events] == want.ids and events[-1].reason == want.reason
        assert "".join(e.text for e in events) == want.text


def test_a_seed_gives_the_same_text_with_a_draft_alone_and_together() -> None:
    model, draft = model_of("llama"), model_of("llama", 1)
    params = [SamplingParams(max_new_tokens=n, ignore_eos=True, temperature=1.0, seed=n, speculate=draft, n=1 + n % 2)
              for n in (20, 3, 12, 17)]  # fmt: skip
    alone = [stemma.generate(model, [r], p)[0] for r, p in zip(PROMPTS, params, strict=True)]
    for batch in (None, 3):
        got = stemma.generate(model, PROMPTS, params, batch=batch)
        assert [[c.ids for c in r.choices] for r in got] == [[c.ids for c in r.choices] for r in alone]


def test_a_row_that_ends_at_once_beside_guesses_is_never_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever steps a batch knows its rows before they are read: a step in which one leaves first reads nothing."""
    model = model_of("llama")
    params = [SamplingParams(max_new_tokens=n, ignore_eos=True, speculate=LOOK) for n in (9, 1)]
    long, short = requests(model, PROMPTS[:2], params)
    read = calls(model, monkeypatch)
    batch = Batch(model, False)
    with torch.inference_mode():
        batch.add([(0, long)])
        batch.step()
        batch.add([(1, short)])
        read.clear()
        events = batch.step()
        assert [(e.row, e.reason) for e in events] == [(1, "length")] and not read and len(batch) == 1
        while len(batch):
            events += batch.step()
    want = stemma.generate(model, PROMPTS[:1], params[0])[0].ids
    assert [e.token for e in events if e.row == 0] == want[1:]


# ---------------------------------------------------------------- the same distribution


def chi_square(counts: torch.Tensor, share: torch.Tensor) -> float:
    """Pearson's statistic in units of its standard deviation, above its mean: about normal for many cells."""
    want = share * counts.sum()
    cells = want > 1e-9
    assert not counts[~cells].any()
    value = float(((counts - want)[cells] ** 2 / want[cells]).sum())
    freedom = int(cells.sum()) - 1
    return (value - freedom) / (2 * freedom) ** 0.5


@pytest.mark.parametrize("sampler", [Sampler(1.0), Sampler(0.7, top_k=5), Sampler(1.3, top_p=0.8)], ids=str)
def test_a_guess_is_taken_or_replaced_by_the_published_rule(sampler: Sampler) -> None:
    generator, guesses = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    p, q = torch.randn(2, 8, generator=generator)
    share = sampler.scores(q[None])[0].softmax(-1)
    counts = torch.zeros(8)
    kept, drawn = 0, 6000
    for token in torch.multinomial(share, drawn, replacement=True, generator=guesses).tolist():
        found = accepted(p, Guess(token, share), sampler, generator)
        counts[found] += 1
        kept += found == token
    want = sampler.scores(p[None])[0].softmax(-1)
    assert abs(chi_square(counts, want)) < 4
    assert kept / drawn == pytest.approx(float(torch.minimum(want, share).sum()), abs=0.03)  # their Corollary 3.6


def exact(model: Any, prompt: list[int], length: int, vocab: int) -> torch.Tensor:
    """The probability of every continuation of `length` tokens."""
    if length == 0:
        return torch.ones(1)
    share = last_logits(model, prompt, []).softmax(-1)
    return torch.cat([share[t] * exact(model, [*prompt, t], length - 1, vocab) for t in range(vocab)])


def texts_of_a_small_world(texts: int) -> tuple[float, float]:
    """How far texts with a draft are from the model's distribution, and how far from the draft's."""
    vocab = 5
    models = [stemma.build("llama-7b", seed=s, d_model=16, layers=1, heads=2, d_ff=24, vocab=vocab) for s in (1, 2)]
    with torch.no_grad():
        for model in models:
            model.lm.weight.mul_(20)
    found = stemma.generate(models[0], [[1, 2]], max_new_tokens=3, temperature=1.0, top_k=0, ignore_eos=True,
                            n=texts, speculate=Draft(models[1], 2))[0]  # fmt: skip
    counts = torch.zeros(vocab**3)
    for choice in found.choices:
        counts[sum(t * vocab ** (2 - k) for k, t in enumerate(choice.ids))] += 1
    own, other = (chi_square(counts, exact(model, [1, 2], 3, vocab)) for model in models)
    return own, other


def test_texts_with_a_draft_have_the_models_distribution() -> None:
    own, other = texts_of_a_small_world(250)
    assert own < 4 < other


@pytest.mark.slow
def test_many_texts_with_a_draft_have_the_models_distribution() -> None:
    own, other = texts_of_a_small_world(8000)
    assert own < 4 < 40 < other


# ---------------------------------------------------------------- guesses from the text


def test_the_longest_and_latest_run_is_found() -> None:
    draw = random.Random(4)
    for _ in range(60):
        text = [draw.randrange(3) for _ in range(draw.randrange(1, 30))]
        found = Found(Lookup(tokens=5, ngram=3, shortest=1), text[:4])
        for end in range(1, len(text) - 4):  # as the text grows
            seen = text[4 : 4 + end]
            whole = text[: 4 + end]
            want: list[int] = []
            for n in (3, 2, 1):
                ends = [e for e in range(n, len(whole)) if whole[e - n : e] == whole[len(whole) - n :]]
                if ends:
                    want = whole[ends[-1] : ends[-1] + 5]
                    break
            assert [g.token for g in found(seen, 5, Sampler())] == want


# ---------------------------------------------------------------- what cannot be


def test_what_cannot_be_guessed_is_refused() -> None:
    model = model_of("llama")
    small = stemma.build("llama-7b", d_model=32, layers=1, heads=4, d_ff=48, vocab=50)
    for how, message in (
        (3, "speculate must be Lookup"),
        (small, "the draft has 50 tokens, and the model"),
        (model_of("t5"), "the draft of this decoder must be one too"),
    ):
        with pytest.raises(UsageError, match=message):
            stemma.generate(model, [[5, 6]], speculate=how, max_new_tokens=3)
    with pytest.raises(UsageError, match="the draft has another tokenizer"):
        stemma.generate(writer(), [[5, 6]], speculate=writer("spm-bpe"), max_new_tokens=3)
    with pytest.raises(UsageError, match="beams goes without speculate"):
        stemma.generate(model, [[5, 6]], speculate=LOOK, num_beams=2)
    for case in ("tiny-xlnet", "tiny-unilm", "tiny-longllama"):
        with pytest.raises(UsageError, match="reads a new text token by token"):
            stemma.generate(model_of(case), [[5, 6]], speculate=LOOK, max_new_tokens=3)
    for make, message in (
        (lambda: Lookup(tokens=0), "tokens must be at least 1"),
        (lambda: Lookup(ngram=1, shortest=2), "shortest <= ngram"),
        (lambda: Draft(model, 0), "tokens must be at least 1"),
        (lambda: Draft("x"), "a model is wanted, not 'x'"),  # type: ignore[arg-type]
    ):
        with pytest.raises(UsageError, match=message):
            make()


def test_a_draft_with_a_shorter_table_guesses_as_far_as_it_reaches() -> None:
    model = shared("gpt2")[0]
    draft = stemma.build("gpt2", d_model=16, layers=1, heads=2, d_ff=16, vocab=model.dims.vocab, context=9)
    want = stemma.generate(model, [[5, 6, 7]], max_new_tokens=20, ignore_eos=True)[0].ids
    assert stemma.generate(model, [[5, 6, 7]], max_new_tokens=20, ignore_eos=True, speculate=draft)[0].ids == want
    long = stemma.generate(model, [[5] * 12], max_new_tokens=5, ignore_eos=True)[0].ids
    assert stemma.generate(model, [[5] * 12], max_new_tokens=5, ignore_eos=True, speculate=draft)[0].ids == long
