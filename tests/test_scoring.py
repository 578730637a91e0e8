"""Log-probabilities of given continuations, and pieces of text that no later token changes."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

import stemma
import stemma.decoding.scoring as scoring_module
from oracle import shared
from stemma.decoding import Detokenizer, score
from stemma.errors import UsageError
from test_generate import last_logits
from test_guides import writer
from tiny import build, slow, tiny

PROMPTS = [[5, 6, 7, 8], [9, 10], [11, 12, 13]]
TEXTS = [[[4, 5, 6], [7], [], [8, 9, 10, 11, 12, 13, 14]], [[3, 3]], [[6] * 9, [5, 4]]]


def model_of(case: str) -> Any:
    return build(tiny(case.removeprefix("tiny-"))) if case.startswith("tiny-") else shared(case)[0]


# ---------------------------------------------------------------- scores


@pytest.mark.parametrize("case", ["mistral", "t5", "xlnet", "tiny-longllama", *slow("llama", "tiny-unilm", "tiny-glm")])
@pytest.mark.filterwarnings("ignore:.* tokens are more than")
def test_scores_are_those_of_full_passes(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one pass or in pieces, alone or together; models that read token by token too."""
    model = model_of(case)
    found = score(model, PROMPTS, TEXTS)
    assert [[len(s.ids) for s in own] for own in found] == [[len(t) for t in own] for own in TEXTS]
    for prompt, own in zip(PROMPTS, found, strict=True):
        for one in own:
            best = True
            for n, token in enumerate(one.ids):
                share = (session_logits if case.startswith("tiny-") else last_logits)(model, prompt, list(one.ids[:n]))
                assert one.logprobs[n] == pytest.approx(float(share.log_softmax(-1)[token]), abs=2e-4)
                best &= int(share.argmax()) == token
            assert one.greedy == best and one.logprob == pytest.approx(sum(one.logprobs))
    monkeypatch.setattr(scoring_module, "LOGITS", 1)
    for batch in (1, 3):
        again = score(model, PROMPTS, TEXTS, batch=batch)
        for own, first in zip(again, found, strict=True):
            for a, b in zip(own, first, strict=True):
                assert a.ids == b.ids and a.greedy == b.greedy and a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


def session_logits(model: Any, prompt: list[int], new: list[int]) -> torch.Tensor:
    from stemma.decoding import begin

    with torch.inference_mode():
        session = begin(model, [prompt])
        for token in new:
            session.step(torch.tensor([token]))
    return session.logits[0]


def test_what_a_model_writes_is_greedy() -> None:
    model = model_of("llama")
    written = stemma.generate(model, PROMPTS, max_new_tokens=6, ignore_eos=True)
    for result, (own, other) in zip(
        written, score(model, PROMPTS, [[r.ids, [*r.ids[:-1], 9]] for r in written]), strict=True
    ):
        assert own.greedy and own.logprobs == pytest.approx(result.logprobs, abs=1e-4)
        assert not other.greedy and other.logprob < own.logprob


def test_texts_go_on_from_their_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt is read once for all of its continuations, and they are encoded as what goes on."""
    monkeypatch.setenv("STEMMA_EXECUTOR", "off")  # so that every pass is seen
    model = writer("spm-bpe")
    read: list[tuple[int, ...]] = []
    whole = type(model).decode
    monkeypatch.setattr(type(model), "decode", lambda m, x: read.append(tuple(x.input_ids.shape)) or whole(m, x))
    ((a, _),) = score(model, ["the quick"], [[" brown", "x"]])
    tokenizer = model.tokenizer
    assert tokenizer.decode([*tokenizer.encode("the quick"), *a.ids]) == "the quick brown"
    assert read[0][0] == 1 and all(width < 8 for _, width in read[1:])


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ([[[5]]], {}, "a list of continuations for each of the 3 prompts"),
        (["a", "b", "c"], {}, "a list of continuations for each of the 3 prompts"),
        ([[[5]], [[500]], []], {}, "a continuation holds the token id 500"),
        ([[], [], []], {"batch": 0}, "batch must be at least 1, not 0"),
    ],
)
def test_what_cannot_be_scored_is_refused(texts: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        score(model_of("llama"), PROMPTS, texts, **options)


# ---------------------------------------------------------------- pieces of text


def pieces(detokenizer: Detokenizer, ids: list[int]) -> tuple[list[str], bool]:
    out = []
    for n in range(1, len(ids) + 1):
        piece, stopped = detokenizer.add(ids[:n], n == len(ids))
        out.append(piece)
        if stopped:
            return out, True
    return out, False


@pytest.mark.parametrize("kind", ["bpe", "spm-bpe", "unigram"])
def test_pieces_are_the_text_whatever_the_tokens(kind: str) -> None:
    """Random tokens, with bytes that make characters, cut ones and none; stop strings of one to four characters that
    overlap each other and themselves: what was handed out is the text before the first of them, to the letter."""
    model, draw = writer(kind), random.Random(1)
    byte = {raw[0]: i for i, raw in enumerate(model.tokenizer.token_bytes) if raw is not None and len(raw) == 1}
    some = [i for i, raw in enumerate(model.tokenizer.token_bytes) if raw and len(raw) > 1]
    stopped = 0
    for _ in range(300):
        ids: list[int] = []
        while len(ids) < 14:
            match draw.randrange(4):
                case 0:
                    ids += [byte[b] for b in draw.choice("é漢🙂aab").encode()]
                case 1:
                    ids.append(byte[draw.choice((0xC3, 0xA9, 0xF0, 0x9F, 0x61, 0xFF))])
                case 2:
                    ids.append(draw.choice(some))
                case _:
                    ids += [byte[b] for b in draw.choice(["aab", "abab", "🙂é"]).encode()]
        prompt = draw.choice([[], [some[0]], [byte[0x61], some[1]]])
        stops = tuple(draw.sample(["aab", "abab", "é漢", "🙂é", "b", "aé", "ab🙂"], draw.randrange(4)))
        found, ended = pieces(Detokenizer(model, prompt, stops), ids)
        detokenizer = Detokenizer(model, prompt)
        whole = detokenizer.decode(ids)
        if ended:
            stopped += 1
            whole = detokenizer.decode(ids[: len(found)])
            whole = whole[: min(at for s in stops if (at := whole.find(s)) >= 0)]
            assert not any(s in detokenizer.decode(ids[: len(found) - 1]) for s in stops)  # as soon as one is there
        else:
            assert not any(s in whole for s in stops)
        assert "".join(found) == whole, (ids, stops)
    assert 50 < stopped < 290


@pytest.mark.parametrize("kind", ["bpe", "spm-bpe", "unigram"])
def test_no_half_character_is_handed_out(kind: str) -> None:
    model = writer(kind)
    byte = {raw[0]: i for i, raw in enumerate(model.tokenizer.token_bytes) if raw is not None and len(raw) == 1}
    text = "aé漢🙂b🙂🙂"
    found, _ = pieces(Detokenizer(model, []), [byte[b] for b in text.encode()])
    assert "".join(found) == text and "\ufffd" not in "".join(found)
