"""Losses and advantages of GRPO and its kin, and GKD's divergence: what trl computes, and scalar references."""

from __future__ import annotations

import json
import math
import random
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from stemma.objectives import policy_gradient as pg
from stemma.objectives.advantages import kl_estimate

TRL: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "trl_grpo.json").read_text())
REDUCTIONS = {"grpo": "sequences", "dr_grpo": "constant", "dapo": "tokens", "gspo": "sequences", "rloo": "sequences"}
RATIOS = {"gspo": "mean", "rloo": "sequence"}


def flat(name: str, mask: torch.Tensor) -> torch.Tensor:
    return torch.tensor(TRL[name])[mask]


def loss(name: str, logprobs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Our loss of trl's numbers, for the case `name`."""
    rows = torch.arange(len(mask))[:, None].expand(mask.shape)[mask]
    advantages = torch.tensor(TRL["advantages"])[rows]
    high, kl = TRL[name].get("high", 0.2), TRL[name].get("kl", 0.0)
    ratio: Any = RATIOS.get(name, "token")
    reduction: Any = REDUCTIONS[name]
    parts, _ = pg.surrogate(logprobs[mask], flat("old", mask), advantages, rows, (0.2, high), ratio)
    parts = parts + kl * kl_estimate(logprobs[mask], flat("reference", mask), "k3")
    count = len(rows) if reduction == "tokens" else len(mask)
    return (parts * pg.token_weights(rows, reduction, TRL["longest"])).sum() / count


@pytest.mark.parametrize("name", [*REDUCTIONS])
def test_losses_and_gradients_equal_trls(name: str) -> None:
    mask = torch.tensor(TRL["mask"]).bool()
    logprobs = torch.tensor(TRL["new"]).requires_grad_()
    found = loss(name, logprobs, mask)
    found.backward()
    assert found.item() == pytest.approx(TRL[name]["loss"], abs=1e-6)
    assert logprobs.grad is not None
    torch.testing.assert_close(logprobs.grad, torch.tensor(TRL[name]["grad"]), atol=1e-6, rtol=1e-5)


def test_the_surrogate_equals_a_scalar_reference() -> None:
    draw = random.Random(3)
    rows = [0, 0, 0, 1, 2, 2]
    new, old = ([-3 * draw.random() for _ in rows] for _ in range(2))
    advantages = [1.5, 1.5, 1.5, -0.5, 0.7, 0.7]
    for ratio in ("token", "sequence", "mean"):
        kind: Any = ratio
        given = (torch.tensor(v, dtype=torch.float64) for v in (new, old, advantages))
        found, ratios = pg.surrogate(*given, torch.tensor(rows), (0.1, 0.3), kind)
        for i, row in enumerate(rows):
            logs = [a - b for a, b, r in zip(new, old, rows, strict=True) if r == row]
            log = {"token": new[i] - old[i], "sequence": sum(logs), "mean": statistics.fmean(logs)}[ratio]
            clipped = min(max(math.exp(log), 0.9), 1.3)
            assert ratios[i].item() == pytest.approx(math.exp(log))
            assert found[i].item() == pytest.approx(-min(math.exp(log) * advantages[i], clipped * advantages[i]))


def test_advantages_equal_scalar_references() -> None:
    groups = [[1.0, 0.0, 0.0, 1.0], [0.5, 2.0, -1.0, 0.25], [3.0, 3.0, 3.0, 3.0]]
    rewards = torch.tensor(groups, dtype=torch.float64)
    every = [r for group in groups for r in group]
    grpo = pg.group_advantages(rewards, "group", "group")
    rloo = pg.group_advantages(rewards, "others", "none")
    reinforce = pg.group_advantages(rewards, "batch", "whiten")
    dr = pg.group_advantages(rewards, "group", "none")
    batch = pg.group_advantages(rewards, "group", "batch")
    for i, group in enumerate(groups):
        mean, deviation = statistics.fmean(group), statistics.stdev(group)
        for j, reward in enumerate(group):
            others = statistics.fmean(group[:j] + group[j + 1 :])
            assert grpo[i, j].item() == pytest.approx((reward - mean) / (deviation + 1e-4))
            assert rloo[i, j].item() == pytest.approx(reward - others)
            assert dr[i, j].item() == pytest.approx(reward - mean)
            assert batch[i, j].item() == pytest.approx((reward - mean) / (statistics.stdev(every) + 1e-4))
            whole = (reward - statistics.fmean(every)) / (statistics.stdev(every) + 1e-4)
            assert reinforce[i, j].item() == pytest.approx(whole)
    assert not grpo[2].any()  # equal rewards say nothing


def test_an_answer_alone_in_its_group_has_no_advantage() -> None:
    for baseline, scale in (("group", "group"), ("others", "none"), ("batch", "whiten")):
        kinds: Any = (baseline, scale)
        assert pg.group_advantages(torch.tensor([[2.0]]), *kinds).tolist() == [[0.0]]


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 1.0])
def test_gkds_divergence_equals_trls(beta: float) -> None:
    given = TRL["gkd"]
    mask = torch.tensor(given["labels"]) != -100
    student, teacher = ((torch.tensor(given[k]) / 0.9).log_softmax(-1)[mask] for k in ("student", "teacher"))
    found = pg.jensen_shannon(student, teacher, beta)
    assert found.mean().item() == pytest.approx(given[f"beta {beta}"], abs=1e-6)
    assert pg.jensen_shannon(student, student, beta).abs().max() < 1e-6


def test_overlong_answers_lose_in_proportion() -> None:
    lengths = torch.tensor([3, 12, 16, 18, 20])
    assert pg.overlong_penalty(lengths, 20, 8).tolist() == [0.0, 0.0, 0.5, 0.75, 1.0]
