"""What a request may ask of each token and text: penalties, biases, likeliest tokens, several choices."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

import stemma
import stemma.decoding.batch as batch_module
from oracle import shared
from stemma.decoding import Event, SamplingParams, choice_seed, row_seed, stream
from stemma.decoding.batch import Batch
from stemma.decoding.requests import requests
from stemma.decoding.rules import Rules
from stemma.errors import UsageError
from stemma.text import Specials, Tokenizer
from test_generate import last_logits, prompts
from tiny import build, tiny

FREE: dict[str, Any] = dict(max_new_tokens=8, ignore_eos=True)


def own(case: str) -> Any:
    return shared(case)[0]


# ---------------------------------------------------------------- penalties and biases


def test_penalties_count_what_is_new() -> None:
    """OpenAI's formula: logit - count * frequency - (count > 0) * presence, over generated tokens alone."""
    ids, new = [5, 5, 6, 7, 7, 8], 3
    scores = torch.arange(12.0)
    Rules(presence_penalty=0.5, frequency_penalty=0.25).apply(scores, ids, new)
    counts = Counter(ids[-new:])
    assert scores.tolist() == [i - 0.25 * counts[i] - 0.5 * (counts[i] > 0) for i in range(12)]
    scores = torch.arange(12.0)
    Rules(presence_penalty=0.5).apply(scores, ids, 0)
    assert scores.tolist() == list(range(12))


@pytest.mark.parametrize("options", [dict(presence_penalty=30.0), dict(frequency_penalty=30.0)], ids=str)
def test_a_great_penalty_says_nothing_twice(options: dict[str, float]) -> None:
    model, (row,) = own("llama"), prompts("llama", [6])
    plain = stemma.generate(model, [row], max_new_tokens=30, ignore_eos=True)[0].ids
    assert len(set(plain)) < 30
    assert len(set(stemma.generate(model, [row], max_new_tokens=30, ignore_eos=True, **options)[0].ids)) == 30


def test_a_negative_penalty_repeats() -> None:
    model, (row,) = own("llama"), prompts("llama", [6])
    assert len(set(stemma.generate(model, [row], **FREE, presence_penalty=-50.0)[0].ids)) == 1


def test_a_bias_is_added_to_the_logit() -> None:
    model, (row,) = own("llama"), prompts("llama", [6])
    logits = last_logits(model, row, [])
    best, second = logits.topk(2).indices.tolist()
    gap = float(logits[best] - logits[second])
    for bias, want in ((gap - 1e-3, best), (gap + 1e-3, second)):
        assert stemma.generate(model, [row], max_new_tokens=1, logit_bias={second: bias})[0].ids == [want]
    given = stemma.generate(model, [row], **FREE, logit_bias=[(9, 100.0)])[0]
    assert set(given.ids) == {9}
    full = last_logits(model, row, []).log_softmax(-1)[9]
    assert given.logprobs[0] == pytest.approx(float(full), abs=1e-4)  # the model's own, without the bias


@pytest.mark.parametrize("num_beams", [1, 3])
def test_rules_of_a_request_hold_in_beams(num_beams: int) -> None:
    model, (row,) = own("bart"), prompts("bart", [6])
    options = dict(presence_penalty=40.0, logit_bias={7: -100.0}, num_beams=num_beams)
    ids = stemma.generate(model, [row], max_new_tokens=20, ignore_eos=True, **options)[0].ids
    assert len(set(ids)) == 20 and 7 not in ids


# ---------------------------------------------------------------- the likeliest tokens


@pytest.mark.parametrize("case", ["llama", "t5", "xlnet"])
def test_the_likeliest_tokens_are_the_models(case: str) -> None:
    """Before rules and temperature, for every row as many as it asks for."""
    model, rows = own(case), prompts(case, [4, 9, 6])
    wanted = [5, None, 0]
    params = [SamplingParams(**FREE, temperature=2.0, top_k=30, repetition_penalty=1.5, logprobs=k) for k in wanted]
    found = stemma.generate(model, rows, params)
    assert found[1].top == [] and found[2].top == [()] * 8
    for n, top in enumerate(found[0].top):
        best = last_logits(model, rows[0], found[0].ids[:n]).log_softmax(-1).topk(5)
        assert [i for i, _ in top] == best.indices.tolist()
        assert [p for _, p in top] == pytest.approx(best.values.tolist(), abs=1e-4)
    events = [e for e in stream(model, rows, params) if e.row == 0]
    assert [e.top for e in events] == found[0].top


@pytest.mark.parametrize("case", ["llama", "mistral", "gpt2"])
def test_what_a_model_thinks_of_its_prompt(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In parts, past a window, beside rows that ask for nothing, and for each choice."""
    monkeypatch.setattr(batch_module, "CHUNK", 4)
    model, rows = own(case), prompts(case, [5, 11, 1])
    params = [SamplingParams(**FREE), *[SamplingParams(**FREE, temperature=1.0, prompt_logprobs=2, n=2)] * 2]
    found = stemma.generate(model, rows, params)
    bare = stemma.generate(model, rows, [replace(p, prompt_logprobs=None) for p in params])
    assert [[c.ids for c in r.choices] for r in found] == [[c.ids for c in r.choices] for r in bare]
    assert found[0].prompt_logprobs == [] and found[2].prompt_logprobs == [None]
    for choice in found[1].choices:
        assert choice.prompt_logprobs[0] is None and choice.prompt_top[0] == () and len(choice.prompt_top) == 11
        for n in range(1, 11):
            share = last_logits(model, rows[1][:n], []).log_softmax(-1)
            assert choice.prompt_logprobs[n] == pytest.approx(float(share[rows[1][n]]), abs=1e-4)
            assert [i for i, _ in choice.prompt_top[n]] == share.topk(2).indices.tolist()


# ---------------------------------------------------------------- several choices


@pytest.mark.parametrize("case", ["llama", "mistral", "t5", "xlnet", "llama-dynamic", "tiny-longllama", "tiny-glm"])
@pytest.mark.filterwarnings("ignore:.* tokens are more than")
def test_a_choice_is_what_it_is_alone(case: str) -> None:
    model = build(tiny(case.removeprefix("tiny-"))) if case.startswith("tiny-") else own(case)
    rows = [[5, 6, 7, 8], [9] * 9, [5, 6, 7, 8]]
    options: dict[str, Any] = dict(**FREE, temperature=1.0, frequency_penalty=0.5)
    found = stemma.generate(model, rows, [SamplingParams(**options, n=n) for n in (3, 1, 2)], batch=4)
    assert [len(r.choices) for r in found] == [3, 1, 2] and found[1].others == []
    for i, (row, result) in enumerate(zip(rows, found, strict=True)):
        for k, choice in enumerate(result.choices):
            assert choice.seed == choice_seed(row_seed(0, i), k)
            assert choice.ids == stemma.generate(model, [row], **options, seed=choice.seed)[0].ids
    texts = {tuple(c.ids) for r in found for c in r.choices}
    assert len(texts) == 6  # no two choices of equal prompts draw alike


def test_the_prompt_of_choices_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEMMA_EXECUTOR", "off")
    model, (row,) = own("llama"), prompts("llama", [9])
    read: list[Any] = []
    whole = type(model).decode
    monkeypatch.setattr(type(model), "decode", lambda m, x: read.append(tuple(x.input_ids.shape)) or whole(m, x))
    stemma.generate(model, [row], **FREE, n=5, temperature=1.0)
    assert read == [(1, 9)] + [(5, 1)] * 7


def test_the_best_of_many_come_first() -> None:
    model, (row,) = own("llama"), prompts("llama", [6])
    options: dict[str, Any] = dict(**FREE, temperature=1.5, seed=4)
    every = stemma.generate(model, [row], **options, n=6)[0].choices
    best = stemma.generate(model, [row], **options, n=2, best_of=6)[0].choices
    ranked = sorted(every, key=lambda r: -sum(r.logprobs) / len(r.logprobs))
    assert [r.ids for r in best] == [r.ids for r in ranked[:2]] and ranked != every


def test_events_name_their_choice() -> None:
    model, rows = own("llama"), prompts("llama", [4, 6])
    options: dict[str, Any] = dict(**FREE, temperature=1.0, n=2)
    found = stemma.generate(model, rows, **options)
    events = list(stream(model, rows, **options))
    for i, k in ((0, 0), (0, 1), (1, 0), (1, 1)):
        mine = [e for e in events if (e.row, e.choice) == (i, k)]
        assert [e.token for e in mine] == found[i].choices[k].ids and mine[-1].result is not None


def test_beams_give_their_best() -> None:
    model, rows = own("bart"), prompts("bart", [4, 6])
    one = stemma.generate(model, rows, max_new_tokens=7, num_beams=4)
    three = stemma.generate(model, rows, max_new_tokens=7, num_beams=4, n=3)
    assert [r.ids for r in three] == [r.ids for r in one] and {len(r.choices) for r in three} == {3}
    for result in three:
        means = [sum(c.logprobs) / len(c.ids) for c in result.choices]
        assert means == sorted(means, reverse=True) and len({tuple(c.ids) for c in result.choices}) == 3


# ---------------------------------------------------------------- what cannot be


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(typical_p=0.0), r"typical_p must lie in \(0, 1\], not 0.0"),
        (dict(presence_penalty=float("nan")), "presence_penalty must be a finite number, not nan"),
        (dict(frequency_penalty="x"), "frequency_penalty must be a finite number, not 'x'"),
        (dict(logit_bias={3: "much"}), "logit_bias of token 3 must be a finite number, not 'much'"),
        (dict(logit_bias={89: 1.0}), "logit_bias=89 is no token: this model's ids are 0 to 88"),
        (dict(logit_bias=7), "logit_bias must map tokens to numbers"),
        (dict(n=0), "n must be at least 1, not 0"),
        (dict(n=None), "n must be a whole number, not None"),
        (dict(n=3, best_of=2), "best_of must be at least n=3, not 2"),
        (dict(logprobs=-1), "logprobs must not be negative, not -1"),
        (dict(logprobs=90), "logprobs=90 is more than this model's 89 tokens"),
        (dict(num_beams=2, n=3), "a search of 2 beams has at most n=2 texts, not 3"),
        (dict(num_beams=2, best_of=2), "a search of 2 beams goes without best_of"),
        (dict(num_beams=2, logprobs=2), "a search of 2 beams goes without logprobs"),
        (dict(prompt_logprobs=90), "prompt_logprobs=90 is more than this model's 89 tokens"),
        (dict(prompt_logprobs=1), "a decoder that reads every prompt from left to right"),
        (dict(guide="x"), "guide must come from json_schema, regex or grammar"),
    ],
    ids=str,
)
def test_what_cannot_be_asked_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        stemma.generate(own("bart"), [[5, 6]], max_new_tokens=4, **options)


def test_only_one_text_goes_to_a_callback() -> None:
    model = stemma.build("gpt2", layers=1, vocab=260, d_model=16, heads=2, d_ff=16, context=64)
    model.tokenizer = Tokenizer.train("bpe", ["abc"], 259, Specials())
    with pytest.raises(UsageError, match="one text a prompt"):
        stemma.generate(model, ["a"], n=2, stream=lambda row, piece: None)
    with pytest.raises(UsageError, match="best_of cannot be streamed"):
        stream(model, ["a"], best_of=2)


def test_a_row_without_a_next_token_ends_alone() -> None:
    """An engine's other rows go on; `generate` and `stream` raise."""
    model, rows = own("llama"), prompts("llama", [4, 6])
    params = [SamplingParams(max_new_tokens=4, ignore_eos=True),
              SamplingParams(max_new_tokens=4, eos_token_id=range(model.dims.vocab), min_new_tokens=2)]  # fmt: skip
    for call in (lambda: stemma.generate(model, rows, params), lambda: list(stream(model, rows, params))):
        with pytest.raises(UsageError, match="no token is left"):
            call()
    batch, events = Batch(model, False), list[Event]()
    with torch.inference_mode():
        batch.add(list(enumerate(requests(model, rows, params))))
        while len(batch):
            events += batch.step()
    ended = {e.row: e for e in events if e.reason is not None}
    assert ended[1].reason == "error" and ended[1].token == -1 and "no token is left" in str(ended[1].error)
    assert ended[0].reason == "length" and ended[0].error is None
    assert ended[0].result is not None
    assert ended[0].result.ids == stemma.generate(model, [rows[0]], params[0])[0].ids
