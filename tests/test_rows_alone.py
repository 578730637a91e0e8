"""A request alone, and inside a batch that others join and leave: the same text in fp32, whatever it asks for."""

from __future__ import annotations

from typing import Any

import pytest

import stemma
from oracle import shared
from stemma.decoding import Lookup, SamplingParams
from stemma.engine import Engine
from tiny import build, slow, tiny

PROMPTS = [[5, 6, 7, 5], [9, 8, 9], [11], [5, 6, 7, 5], [12, 13, 14, 15, 16], [17, 18], [9, 8, 9]]
CASES = ["llama", "mistral", "t5", "xlnet", "tiny-glm", *slow("gpt2", "bart", "tiny-unilm", "tiny-longllama")]


def asked(speculates: bool) -> list[SamplingParams]:
    look = Lookup(tokens=3, ngram=2, shortest=1) if speculates else None
    return [
        SamplingParams(max_new_tokens=9, presence_penalty=1.5, frequency_penalty=0.5, logprobs=3),
        SamplingParams(max_new_tokens=4, temperature=1.0, typical_p=0.7, n=2, seed=5),
        SamplingParams(
            max_new_tokens=12, temperature=0.9, top_k=20, top_p=0.9, min_p=0.02, logit_bias={5: 2.0, 7: -9.0}
        ),
        SamplingParams(max_new_tokens=7, temperature=0.6, repetition_penalty=1.4, best_of=3, seed=6, speculate=look),
        SamplingParams(max_new_tokens=3),
        SamplingParams(max_new_tokens=11, temperature=0.5, n=2, seed=7, speculate=look, logprobs=1),
        SamplingParams(max_new_tokens=8, min_new_tokens=6, no_repeat_ngram_size=1, eos_token_id=range(20, 60)),
    ]


def said(result: Any) -> Any:
    return [(c.ids, c.reason) for c in result.choices]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore:.* tokens are more than")
def test_requests_write_what_they_write_alone(case: str) -> None:
    model = build(tiny(case.removeprefix("tiny-"))) if case.startswith("tiny-") else shared(case)[0]
    params = asked(case not in ("xlnet", "tiny-unilm", "tiny-longllama"))
    alone = [
        stemma.generate(model, [r], p, ignore_eos=p.eos_token_id is None)[0]
        for r, p in zip(PROMPTS, params, strict=True)
    ]
    given = [p if p.eos_token_id is not None else p.changed({"ignore_eos": True}) for p in params]
    given = [p.changed({"seed": r.seed}) if p.seed is None else p for p, r in zip(given, alone, strict=True)]
    for batch in (None, 3):
        got = stemma.generate(model, PROMPTS, given, batch=batch)
        assert [said(r) for r in got] == [said(r) for r in alone]
        for a, b in zip(got, alone, strict=True):
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4) and len(a.top) == len(b.top)
    with Engine(model, rows=4) as engine:
        jobs = [engine.submit(r, p) for r, p in zip(PROMPTS, given, strict=True)]
        assert [said(job.result(60)) for job in jobs] == [said(r) for r in alone]
