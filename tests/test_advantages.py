"""The arithmetic of policy gradients against plain loops over numbers, and the published fixtures."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import Tensor

from stemma.errors import UsageError
from stemma.objectives import advantages as adv

Rows = list[list[float]]


def tensors(*rows: Rows) -> list[Tensor]:
    return [torch.tensor(r, dtype=torch.float64) for r in rows]


def drawn(seed: int, rows: int = 5, length: int = 7) -> tuple[Rows, Rows, list[list[int]]]:
    """Rewards, values, and a mask with answers of different lengths."""
    draw = random.Random(seed)
    counts = [draw.randint(1, length) for _ in range(rows)]
    numbers = [[[draw.gauss(0, 1) for _ in range(length)] for _ in range(rows)] for _ in range(2)]
    return numbers[0], numbers[1], [[int(t < n) for t in range(length)] for n in counts]


def plain_gae(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """Each advantage as a sum of discounted errors (eq. 16), not by the recursion."""
    n = len(rewards)
    errors = [rewards[t] + gamma * (values[t + 1] if t + 1 < n else 0.0) - values[t] for t in range(n)]
    return [sum((gamma * lam) ** (k - t) * errors[k] for k in range(t, n)) for t in range(n)]


def test_the_published_example_and_padding() -> None:
    """V = .5, r = (0, 0, 1, padding, padding): padding changes nothing, whatever stands there."""
    expected = [0.45125, 0.475, 0.5]
    mask = torch.tensor([[1, 1, 1, 0, 0]])
    for rest in (0.0, 7.0, -1e6):
        rewards, values = tensors([[0, 0, 1, rest, rest]], [[0.5, 0.5, 0.5, rest, rest]])
        assert adv.gae(rewards, values, mask)[0].tolist() == pytest.approx([*expected, 0, 0], abs=1e-12)
    short = adv.gae(*tensors([[0, 0, 1]], [[0.5] * 3]), torch.ones(1, 3))
    assert short[0].tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 1.0), (0.99, 0.0)])
def test_advantages_are_sums_of_errors(gamma: float, lam: float) -> None:
    rewards, values, mask = drawn(1)
    found = adv.gae(*tensors(rewards, values), torch.tensor(mask), gamma, lam)
    for i, keep in enumerate(mask):
        n = sum(keep)
        assert found[i, :n].tolist() == pytest.approx(plain_gae(rewards[i][:n], values[i][:n], gamma, lam), abs=1e-12)
        assert not found[i, n:].any()


def test_tokens_that_were_not_chosen_are_skipped() -> None:
    """A hole in a mask: the tokens around it are neighbours."""
    rewards, values, _ = drawn(2, rows=1, length=5)
    mask = torch.tensor([[1, 1, 0, 1, 1]])
    found = adv.gae(*tensors(rewards, values), mask)[0]
    kept = [0, 1, 3, 4]
    expected = plain_gae([rewards[0][t] for t in kept], [values[0][t] for t in kept], 1.0, 0.95)
    assert found[kept].tolist() == pytest.approx(expected, abs=1e-12)
    assert found[2] == 0


@pytest.mark.parametrize("shift", [True, False])
def test_whitening_is_by_the_biased_variance_of_what_counts(shift: bool) -> None:
    x, _, mask = drawn(3)
    kept = [v for row, keep in zip(x, mask, strict=True) for v, k in zip(row, keep, strict=True) if k]
    mean = sum(kept) / len(kept)
    scale = 1 / math.sqrt(sum((v - mean) ** 2 for v in kept) / len(kept) + 1e-8)
    found = adv.whiten(tensors(x)[0], torch.tensor(mask), shift)
    for i, keep in enumerate(mask):
        for t, k in enumerate(keep):
            expected = ((x[i][t] - mean) * scale + (0 if shift else mean)) if k else 0.0
            assert float(found[i, t]) == pytest.approx(expected, abs=1e-12)
    elsewhere = tensors(x)[0].masked_fill(torch.tensor(mask) == 0, 1e9)
    assert torch.equal(adv.whiten(elsewhere, torch.tensor(mask), shift), found)


def test_equal_numbers_are_whitened_to_nothing() -> None:
    assert adv.whiten(torch.full((2, 3), 4.0), torch.ones(2, 3)).abs().max() == 0


def test_estimates_of_the_divergence() -> None:
    """All are 0 for equal models. k1 and k3 have the divergence as their mean, k3 is never negative, k1 can be."""
    p, q = (torch.tensor(x, dtype=torch.float64) for x in ([0.7, 0.2, 0.1], [0.3, 0.3, 0.4]))
    exact = sum(float(a) * math.log(a / b) for a, b in zip(p, q, strict=True))
    found = {kind: adv.kl_estimate(p.log(), q.log(), kind) for kind in ("k1", "k2", "k3")}
    for kind in ("k1", "k3"):
        assert float((p * found[kind]).sum()) == pytest.approx(exact, abs=1e-12)
    for i, (a, b) in enumerate(zip(p.tolist(), q.tolist(), strict=True)):
        d = math.log(a) - math.log(b)
        assert float(found["k1"][i]) == pytest.approx(d)
        assert float(found["k2"][i]) == pytest.approx(d * d / 2)
        assert float(found["k3"][i]) == pytest.approx(b / a - 1 - math.log(b / a))
    assert found["k1"].min() < 0 <= found["k3"].min()
    for kind in ("k1", "k2", "k3"):
        assert not adv.kl_estimate(p.log(), p.log(), kind).any()


def test_a_likelier_token_is_penalised() -> None:
    """The sign: a policy that gives a sampled token more than the reference loses reward at it."""
    logprobs, reference = torch.tensor([[-0.5, -1.0]]), torch.tensor([[-1.5, -1.0]])
    rewards = adv.token_rewards(torch.zeros(1), adv.kl_estimate(logprobs, reference), torch.ones(1, 2), 0.1)
    assert rewards[0].tolist() == pytest.approx([-0.1, 0.0])


def test_a_score_stands_at_the_last_token_that_counts() -> None:
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1], [0, 1, 0, 0]])
    rewards = adv.token_rewards(torch.tensor([2.0, 3.0, 4.0]), torch.full((3, 4), 9.0), mask, 0.0)
    assert rewards.tolist() == [[0, 2, 0, 0], [0, 0, 0, 3], [0, 4, 0, 0]]
    with pytest.raises(UsageError, match="answer 1 is empty"):
        adv.last_places(torch.tensor([[1, 0], [0, 0]]))


def test_losses_are_those_of_the_paper() -> None:
    draw = random.Random(4)
    for _ in range(200):
        ratio, a, v, old, r = (draw.gauss(1, 0.5), *(draw.gauss(0, 1) for _ in range(4)))
        low, high = draw.uniform(0.1, 0.3), draw.uniform(0.1, 0.4)
        clipped = min(max(ratio, 1 - low), 1 + high)
        found = adv.policy_losses(*tensors([[ratio]], [[a]]), low, high)
        assert found.item() == pytest.approx(-min(a * ratio, a * clipped), abs=1e-12)
        near = min(max(v, old - low), old + low)
        clipped_error = adv.value_losses(*tensors([[v]], [[old]], [[r]]), low).item()
        assert clipped_error == pytest.approx(0.5 * max((v - r) ** 2, (near - r) ** 2), abs=1e-12)
        assert adv.value_losses(*tensors([[v]], [[old]], [[r]]), None).item() == pytest.approx(0.5 * (v - r) ** 2)


def test_a_clipped_ratio_has_no_gradient_where_it_is_too_good() -> None:
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5], requires_grad=True)
    adv.policy_losses(ratio, torch.tensor([1.0, -1.0, 1.0, -1.0]), 0.2).sum().backward()
    assert ratio.grad is not None and ratio.grad.tolist() == [0.0, 1.0, -1.0, 0.0]


def test_the_adaptive_coefficient() -> None:
    """Within a fifth of the target it moves in proportion, beyond that by a fifth."""
    assert adv.adapted(0.1, 6.0, 6.0, 512) == 0.1
    assert adv.adapted(0.1, 6.6, 6.0, 500) == pytest.approx(0.1 * (1 + 0.1 * 0.05))
    assert adv.adapted(0.1, 600.0, 6.0, 500) == pytest.approx(0.1 * (1 + 0.2 * 0.05))
    assert adv.adapted(0.1, -3.0, 6.0, 500) == pytest.approx(0.1 * (1 - 0.2 * 0.05))


def test_entropies() -> None:
    found = adv.entropies(torch.tensor([[0.0, 0.0, 0.0, 0.0], [50.0, 0.0, 0.0, 0.0]]))
    assert found.tolist() == pytest.approx([math.log(4), 0.0], abs=1e-6)


def test_a_mean_over_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="over no tokens"):
        adv.masked_mean(torch.ones(1, 2), torch.zeros(1, 2))
