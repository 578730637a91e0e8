"""Contrastive search, held to the formula of the paper over full passes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import stemma
from oracle import shared
from stemma.decoding import stream
from stemma.engine import Engine
from stemma.errors import UsageError
from stemma.nn.inputs import Inputs
from tiny import slow


def by_the_book(model: Any, prompt: list[int], new: int, alpha: float, k: int) -> list[int]:
    """Su et al. 2022, equation 5, without a cache: (1 - alpha) p(v|x) - alpha max_j cos(h_v, h_j)."""
    seen = list(prompt)
    for _ in range(new):
        with torch.no_grad():
            hidden = model.decode(Inputs(torch.tensor([seen])))[0]
            share = model.logits(hidden[-1]).softmax(-1)
            scores = {}
            for token in share.topk(k).indices.tolist():
                state = model.decode(Inputs(torch.tensor([[*seen, token]])))[0, -1]
                scores[token] = (1 - alpha) * share[token] - alpha * F.cosine_similarity(hidden, state[None]).max()
        seen.append(max(scores, key=lambda token: float(scores[token])))
    return seen[len(prompt) :]


@pytest.mark.parametrize("case", ["mistral", *slow("llama", "gpt2")])
@pytest.mark.filterwarnings("ignore:.* tokens are more than")
def test_contrastive_search_is_the_papers(case: str) -> None:
    model = shared(case)[0]
    for alpha, k in ((0.6, 4), (1.0, 2)):
        for prompt in ([5, 6, 7], [9] * 12):
            found = stemma.generate(model, [prompt], penalty_alpha=alpha, top_k=k, max_new_tokens=12, ignore_eos=True)[
                0
            ]
            assert found.ids == by_the_book(model, prompt, 12, alpha, k) and found.reason == "length"
            with torch.no_grad():
                share = model(torch.tensor([[*prompt, *found.ids]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            assert found.logprobs == pytest.approx(
                share.gather(1, torch.tensor(found.ids)[:, None])[:, 0].tolist(), abs=1e-4
            )


def test_it_obeys_rules_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    model = shared("llama")[0]
    options: dict[str, Any] = dict(penalty_alpha=0.6, top_k=4, max_new_tokens=12)
    free = stemma.generate(model, [[5, 6]], ignore_eos=True, **options)[0].ids
    at = next(i for i in range(3, 12) if free[i] not in free[:i])
    ended = stemma.generate(model, [[5, 6], [7]], eos_token_id=free[at], **options)[0]
    assert ended.ids == free[: at + 1] and ended.reason == "eos"
    assert (
        free[0] not in stemma.generate(model, [[5, 6]], ignore_eos=True, logit_bias={free[0]: -1e4}, **options)[0].ids
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(penalty_alpha=1.5, top_k=4), r"penalty_alpha must lie in \[0, 1\], not 1.5"),
        (dict(penalty_alpha=0.6), "give top_k of at least 2"),
        (dict(penalty_alpha=0.6, top_k=4, temperature=0.7), "goes without temperature"),
        (dict(penalty_alpha=0.6, top_k=4, num_beams=3), "goes without num_beams"),
        (dict(penalty_alpha=0.6, top_k=4, logprobs=2), "goes without logprobs"),
        (dict(penalty_alpha=0.6, top_k=4, n=2), "it has one text"),
    ],
    ids=str,
)
def test_what_does_not_go_with_it_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        stemma.generate(shared("llama")[0], [[5, 6]], max_new_tokens=3, **options)


def test_it_is_for_generate_and_for_decoders() -> None:
    options: dict[str, Any] = dict(penalty_alpha=0.6, top_k=4, max_new_tokens=3)
    with pytest.raises(UsageError, match="for decoders that read from left to right"):
        stemma.generate(shared("t5")[0], [[5, 6]], **options)
    with pytest.raises(UsageError, match="cannot be streamed"):
        stream(shared("llama")[0], [[5, 6]], **options)
    with Engine(shared("llama")[0], rows=1) as engine, pytest.raises(UsageError, match="no contrastive search"):
        engine.submit([5, 6], **options)
