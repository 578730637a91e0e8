"""DPO, its variants and KTO against scalar references, and their reference model."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from preferences import Rows, pairs, runs, thumbs
from stemma.declare.alignment import DPO, KTO
from stemma.errors import UsageError
from stemma.nn.model import Model
from stemma.objectives import continuations, reference
from stemma.objectives.preference import interval, log1mexp, pair_losses, thumb_losses
from stemma.rewrites import adapters
from stemma.rewrites.engine import apply
from stemma.rewrites.kinds import LoRA, Trainable
from stemma.train.recompute import recompute
from tiny import build, tiny

NONE = {"reference": "none"}
VARIANTS: dict[str, DPO] = {
    "dpo": DPO(),
    "cdpo": DPO(smoothing=0.1),
    "robust": DPO(loss="robust", smoothing=0.2),
    "hinge": DPO(loss="hinge", beta=0.4),
    "ipo": DPO(loss="ipo"),
    "ipo of sums": DPO(loss="ipo", average=False),
    "simpo": DPO(beta=2.0, average=True, margin=1.0, **NONE),
    "orpo": DPO(loss="odds", sft=1.0, **NONE),
    "cpo": DPO(sft=1.0, **NONE),
    "dpo_norm": DPO(beta=5.0, average=True),
    "rpo": DPO(sft=0.5),
    "dpop": DPO(positive=5.0),
    "apo_zero": DPO(loss="apo_zero"),
    "apo_down": DPO(loss="apo_down"),
}


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def scalar(spec: DPO, policy: tuple[list[float], ...], base: tuple[list[float], ...]) -> float:
    """The loss of one pair, written down from the papers: log-probabilities of the tokens of both answers."""
    if spec.reference == "none":
        base = tuple([0.0] * len(answer) for answer in policy)
    sums = [sum(p) - sum(q) for p, q in zip(policy, base, strict=True)]
    c, r = (s / len(p) if spec.averaged else s for s, p in zip(sums, policy, strict=True))
    beta, s = spec.beta, spec.smoothing
    match spec.loss:
        case "sigmoid" | "robust" | "hinge":
            x = beta * (c - r) - spec.margin - beta * spec.positive * max(0.0, -c)
            if spec.loss == "hinge":
                found = max(0.0, 1 - x)
            elif spec.loss == "robust":
                found = (-(1 - s) * math.log(sigmoid(x)) + s * math.log(sigmoid(-x))) / (1 - 2 * s)
            else:
                found = -(1 - s) * math.log(sigmoid(x)) - s * math.log(sigmoid(-x))
        case "ipo":
            found = (c - r - 1 / (2 * beta)) ** 2
        case "odds":
            odds = [math.exp(x) / (1 - math.exp(x)) for x in (c, r)]
            found = -beta * math.log(sigmoid(math.log(odds[0] / odds[1])))
        case "apo_zero":
            found = 1 - sigmoid(beta * c) + sigmoid(beta * r)
        case "apo_down":
            found = sigmoid(beta * c) + 1 - sigmoid(beta * (c - r))
    return found - spec.sft * sum(policy[0]) / len(policy[0])


def logps(model: Model, texts: Any) -> list[list[float]]:
    flat = continuations.logprobs(model, continuations.collate(texts, 0))
    return [part.tolist() for part in flat.split([len(t.ids) for t in texts])]


def nets(seed: int = 9) -> tuple[Model, dict[str, Model]]:
    return build(tiny("llama"), seed=3).train(), {"reference": build(tiny("llama"), seed).requires_grad_(False)}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_equal_a_scalar_reference(name: str) -> None:
    spec, (model, beside), rows = VARIANTS[name], nets(), pairs()
    goal = runs(spec)
    loss = goal.loss(model, goal.example_batch(rows, 6), beside)
    losses, tokens, best = [], 0, 0.0
    for i in range(6):
        own, theirs = (tuple(logps(net, rows.rows[i])) for net in (model, beside["reference"]))
        losses.append(scalar(replace(spec, sft=0.0), own, theirs))
        best, tokens = best - sum(own[0]), tokens + len(own[0])
    want = sum(losses) / 6 + spec.sft * best / tokens
    assert loss.total().item() == pytest.approx(want, rel=1e-5, abs=1e-6)
    assert loss.counts["pair"] == 6 and loss.counts.get("sft", tokens) == tokens


def test_published_numbers() -> None:
    """Tulu 3's two forms of one pair, and the thumbs of KTO."""
    chosen, rejected = torch.tensor([-1 - 2 - 0.5 + 1.2 + 2.1 + 0.6]), torch.tensor([-1.5 - 1 + 1.4 + 0.9])
    assert float(pair_losses(DPO(), chosen, rejected)) == pytest.approx(0.663597, abs=1e-6)
    norm = VARIANTS["dpo_norm"]
    assert float(pair_losses(norm, chosen / 3, rejected / 2)) == pytest.approx(0.271098, abs=1e-6)
    ratios, good, z = torch.tensor([1.0, 1.0]), torch.tensor([True, False]), torch.tensor([0.5, 0.5])
    found = thumb_losses(KTO(beta=0.2, desirable=1.5), ratios, good, z).tolist()
    assert found == pytest.approx([1.5 * (1 - sigmoid(0.1)), 1 - sigmoid(-0.1)])


def test_the_logarithm_of_what_is_left_is_exact_near_0_and_far_from_it() -> None:
    x = torch.tensor([-1e-6, -1e-3, -0.5, -0.8, -30.0], requires_grad=True)
    want = torch.log1p(-x.double().exp()).float()
    torch.testing.assert_close(log1mexp(x), want, rtol=1e-4, atol=1e-12)
    log1mexp(x).sum().backward()
    assert x.grad is not None and bool(x.grad.isfinite().all())


def gradient(goal: Any, model: Model, beside: Any, batches: list[Any]) -> list[torch.Tensor]:
    counts: dict[str, int] = {}
    for batch in batches:
        for k, n in goal.counts(batch).items():
            counts[k] = counts.get(k, 0) + n
    model.zero_grad()
    for batch in batches:
        goal.loss(model, batch, beside).total(counts).backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("spec", [DPO(sft=0.3), VARIANTS["orpo"], KTO(group=2, beta=0.5)], ids=["rpo", "orpo", "kto"])
@pytest.mark.parametrize("structure", ["decoder", "encoder-decoder"])
def test_gradients_do_not_depend_on_the_split(spec: Any, structure: str) -> None:
    name = "llama" if structure == "decoder" else "t5"
    model, beside = build(tiny(name), 3).train(), {"reference": build(tiny(name), 9).requires_grad_(False)}
    goal, rows = runs(spec, structure), thumbs() if isinstance(spec, KTO) else pairs(8, answers=3)
    examples = [example for example, _ in goal.examples(rows, once=True)]
    assert len(examples) == (4 if isinstance(spec, KTO) else 8)
    whole = gradient(goal, model, beside, [goal.collate(examples)])
    for cut in (1, 3):
        parts = gradient(goal, model, beside, [goal.collate(examples[:cut]), goal.collate(examples[cut:])])
        for a, b in zip(whole, parts, strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_several_answers_give_all_pairs_and_a_row_weighs_as_much_as_another() -> None:
    (model, beside), rows = nets(), pairs(2, answers=3)
    rows.said = [{"prompt": "q", "responses": ["a", "b", "c"], "ranks": r} for r in ([0, 1, 1], [0, 1, 2])]
    goal = runs(DPO())
    batch = goal.example_batch(rows, 2)
    assert batch["pairs"].tolist() == [[0, 0, 3, 3, 4], [1, 2, 4, 5, 5]] and batch["pairs_of"].tolist() == [2, 3]

    def mean(row: int, pairs_of_row: list[tuple[int, int]]) -> float:
        own, theirs = logps(model, rows.rows[row]), logps(beside["reference"], rows.rows[row])
        return sum(scalar(DPO(), (own[a], own[b]), (theirs[a], theirs[b])) for a, b in pairs_of_row) / len(pairs_of_row)

    want = (mean(0, [(0, 1), (0, 2)]) + mean(1, [(0, 1), (0, 2), (1, 2)])) / 2
    assert goal.loss(model, batch, beside).total().item() == pytest.approx(want, rel=1e-5)


def test_rows_without_a_difference_count_nothing() -> None:
    (model, beside), rows = nets(), pairs(2)
    rows.said = [{"prompt": "q", "responses": ["a", "b"], "ranks": r} for r in ([0, 0], [0, 1])]
    goal = runs(DPO())
    batch = goal.example_batch(rows, 2)
    assert goal.counts(batch) == {"pair": 1}
    alone = goal.collate([goal.example(rows, 1)])  # type: ignore[attr-defined]
    found, want = (goal.loss(model, b, beside) for b in (batch, alone))
    assert found.total().item() == pytest.approx(want.total().item(), rel=1e-5)
    assert found.metrics == pytest.approx(want.metrics, rel=1e-4, abs=1e-6)


# ---------------------------------------------------------------- KTO


@pytest.mark.parametrize("swapped", [False, True])
def test_kto_equals_a_scalar_reference(swapped: bool) -> None:
    (model, beside), rows = nets(), thumbs(4)
    if swapped:  # then the policy finds the mismatched answers less likely than its reference does
        model, beside = beside["reference"], {"reference": model.requires_grad_(False)}
    spec = KTO(group=4, beta=0.7, undesirable=1.5)
    goal = runs(spec)
    batch = goal.example_batch(rows, 1)
    order = batch["numbers"].tolist()
    texts = [rows.rows[i][0] for i in order]
    others = [continuations.Answer(t.prompt, o.ids) for t, o in zip(texts, [texts[-1], *texts[:-1]], strict=True)]

    def ratios(given: Any) -> list[float]:
        own, theirs = logps(model, given), logps(beside["reference"], given)
        return [sum(a) - sum(b) for a, b in zip(own, theirs, strict=True)]

    mean = sum(ratios(others)) / 4
    z = max(0.0, mean)
    want = 0.0
    for ratio, i in zip(ratios(texts), order, strict=True):
        above = 0.7 * (ratio - z)
        want += (1 - sigmoid(above) if rows.said[i]["label"] else 1.5 * (1 - sigmoid(-above))) / 4
    assert (mean < 0) == swapped
    found = goal.loss(model, batch, beside)
    assert found.total().item() == pytest.approx(want, rel=1e-5)
    assert found.metrics["kl"] / 4 == pytest.approx(z, rel=1e-4, abs=1e-6)


def test_no_row_of_kto_is_left_alone() -> None:
    goal = runs(KTO(group=4))
    sizes = [len(e["liked"]) for e, _ in goal.examples(thumbs(9), once=True)]
    assert sizes == [4, 5] and sum(len(e["liked"]) for e, _ in goal.examples(thumbs(10), once=True)) == 10


def test_a_mismatched_answer_is_cut_to_the_context() -> None:
    rows = thumbs(2)
    long = rows.rows[0][0]
    rows.rows[0][0] = long._replace(prompt=long.prompt.repeat(40)[:38])
    rows.rows[1][0] = rows.rows[1][0]._replace(ids=long.prompt.repeat(9)[:9])
    batch = runs(KTO(group=2)).example_batch(rows, 1)
    assert int(batch["other_position_ids"].max()) < 40


def test_kto_says_when_its_weights_do_not_balance() -> None:
    (said,) = runs(KTO()).remarks(thumbs(9), None)
    assert "6 of 9 answers were liked" in said and "objective.desirable=0.5" in said
    assert runs(KTO(desirable=0.5)).remarks(thumbs(9), None) == []


# ---------------------------------------------------------------- the reference


def adapted(dropout: float = 0.0) -> Model:
    model = build(tiny("llama", **{"arch.dropout.attention": 0.2, "arch.dropout.residual": 0.2}), 3)
    apply(model, (LoRA(("*.attention.q", "*.attention.v"), rank=2, dropout=dropout),), 1)
    return model.train()


def moved(model: Model) -> Model:
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.3)
    return model


def test_at_the_first_step_margins_are_0_and_the_loss_is_log_2() -> None:
    for model, beside in ((adapted().eval(), {}), (build(tiny("llama"), 9), nets(9)[1])):
        goal = runs(DPO())
        found = goal.loss(model, goal.example_batch(pairs(), 6), beside)
        assert found.total().item() == pytest.approx(math.log(2), abs=1e-6)
        assert all(abs(found.metrics[k]) < 1e-4 for k in ("margin", "reward_chosen", "drift"))


@pytest.mark.parametrize("spec", [DPO(), KTO(group=2)], ids=["dpo", "kto"])
@pytest.mark.parametrize("training", [False, True])
def test_in_bf16_too_nothing_has_diverged_at_the_first_step(spec: Any, training: bool) -> None:
    """Attention computes with another kernel in training, and the reference with the one that the policy takes."""
    rows: Rows = thumbs() if isinstance(spec, KTO) else pairs()
    alone = build(tiny("llama"), 3)
    apply(alone, (LoRA(("*.attention.q",), rank=2),), 1)
    for model, beside in ((alone, {}), (build(tiny("llama"), 9), nets(9)[1])):
        goal = runs(spec)
        batch = goal.example_batch(rows, 2)
        with torch.autocast("cpu", torch.bfloat16):
            found = goal.loss(model.train(training), batch, beside)
        assert found.metrics["reward_chosen"] == 0 and found.metrics["reward_rejected"] == 0
        assert found.metrics.get("kl", found.metrics.get("drift")) == 0
        assert all(module.training == training for module in model.modules())


def test_the_reference_is_the_policy_without_its_adapters_and_without_dropout() -> None:
    plain, model = build(tiny("llama"), 3), moved(adapted(dropout=0.5))
    batch = runs(DPO()).example_batch(pairs(), 6)
    with reference.frozen(model, {}) as net:
        first, second = continuations.logprobs(net, batch), continuations.logprobs(net, batch)
    assert torch.equal(first, second) and not first.requires_grad
    torch.testing.assert_close(first, continuations.logprobs(plain, batch).detach())
    assert not torch.allclose(first, continuations.logprobs(model.eval(), batch).detach(), atol=1e-2)


def test_adapters_and_modes_come_back_also_after_an_error() -> None:
    model = moved(adapted())
    model.decoder.blocks[0].eval()  # type: ignore[union-attr,operator]
    before = [(part.strength, part.training) for part in adapters.parts(model)]
    modes = [module.training for module in model.modules()]
    with pytest.raises(RuntimeError, match="broken"), reference.frozen(model, {}):
        raise RuntimeError("broken")
    assert [(part.strength, part.training) for part in adapters.parts(model)] == before
    assert [module.training for module in model.modules()] == modes and torch.is_grad_enabled()


@pytest.mark.parametrize("spec", [DPO(), KTO(group=2)], ids=["dpo", "kto"])
def test_the_reference_does_not_move_with_the_policy(spec: Any) -> None:
    rows: Rows = thumbs() if isinstance(spec, KTO) else pairs()
    for model, beside in ((adapted(), {}), nets()):
        goal = runs(spec)
        batch = goal.example_batch(rows, 2)
        with reference.frozen(model, beside) as net:
            before = continuations.logprobs(net, batch)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
        for _ in range(3):
            goal.loss(model, batch, beside).total().backward()
            optimizer.step()
            optimizer.zero_grad()
        with reference.frozen(model, beside) as net:
            assert torch.equal(continuations.logprobs(net, batch), before)


def test_activations_that_are_computed_again_have_the_adapters_again() -> None:
    """The backward pass comes after the reference, when the adapters are back."""
    goal = runs(DPO())
    batch = goal.example_batch(pairs(), 6)
    plain, again = moved(adapted()).eval(), moved(adapted()).eval()
    recompute(again, ("*.blocks.*",))
    for one, other in zip(gradient(goal, plain, {}, [batch]), gradient(goal, again, {}, [batch]), strict=True):
        assert torch.equal(one, other)


def test_what_cannot_be_a_reference_is_refused() -> None:
    plain, goal = build(tiny("llama"), 3), runs(DPO())
    with pytest.raises(UsageError, match="has no adapters that could be switched off"):
        goal.tie(plain, {})
    both = adapted()
    both.decoder.norm.weight.requires_grad_(True)  # type: ignore[union-attr]
    with pytest.raises(UsageError, match=r"decoder\.norm\.weight learns and is part of no adapter"):
        goal.tie(both, {})
    bias = build(tiny("gpt2"), 3)
    apply(bias, (Trainable(("*.bias",)),), 1)
    with pytest.raises(UsageError, match="no adapters"):
        goal.tie(bias, {})
    with pytest.raises(UsageError, match="must be frozen"):
        goal.tie(plain, {"reference": build(tiny("llama"), 9)})
    frozen = build(tiny("t5"), 9).requires_grad_(False)
    with pytest.raises(UsageError, match="structure encoder-decoder, and the policy of structure decoder"):
        goal.tie(plain, {"reference": frozen})
    small = build(tiny("llama", **{"dims.vocab": 70}), 9).requires_grad_(False)
    with pytest.raises(UsageError, match="knows 70 tokens and the policy 83"):
        goal.tie(plain, {"reference": small})
    goal.tie(adapted(), {})
    runs(DPO(**NONE)).tie(plain, {})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"smoothing": 0.1, "loss": "ipo"}, "objective.smoothing is for"),
        ({"loss": "odds"}, "set objective.reference=none"),
        ({"positive": 1.0, "reference": "none"}, "objective.positive measures"),
        ({"positive": 1.0, "loss": "ipo"}, "objective.positive is for the losses sigmoid, robust and hinge, not ipo"),
        ({"margin": 1.0, "loss": "ipo"}, "objective.margin is for"),
        ({"loss": "apo_zero", "reference": "none"}, "compares with a reference"),
        ({"smoothing": 0.5}, "smoothing"),
    ],
)
def test_settings_that_mean_nothing_are_refused(fields: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DPO(**fields)
    with pytest.raises(UsageError, match="KTO measures"):
        KTO(reference="none")


# ---------------------------------------------------------------- measures


def test_intervals() -> None:
    """Wilson 1927; the values of statsmodels' proportion_confint(method="wilson")."""
    assert interval(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert interval(1.0, 20) == pytest.approx((0.8389, 1.0), abs=1e-4)
    low, high = interval(0.6, 1000)
    assert 0.569 < low < 0.6 < high < 0.630


def test_metrics_are_means_over_rows() -> None:
    (model, beside), rows = nets(), pairs()
    goal = runs(DPO(beta=0.3))
    found = goal.loss(model.eval(), goal.example_batch(rows, 6), beside)
    means = {k: v / 6 for k, v in found.metrics.items()}
    rewards = []
    for texts in rows.rows:
        own, theirs = logps(model, texts), logps(beside["reference"], texts)
        rewards.append([0.3 * (sum(a) - sum(b)) for a, b in zip(own, theirs, strict=True)])
    margins = [a - b for a, b in rewards]
    assert means["reward_chosen"] == pytest.approx(sum(a for a, _ in rewards) / 6, rel=1e-4)
    assert means["margin"] == pytest.approx(sum(margins) / 6, rel=1e-4)
    right = [margin > 0 for margin in margins]
    assert means["accuracy"] == pytest.approx(sum(right) / 6)
    assert [a for _, a in sorted(found.answers)] == right or means["accuracy"] == sum(a for _, a in found.answers) / 6
    measured = goal.measured(rows, found.answers)
    assert measured["accuracy_low"] < measured["accuracy"] < measured["accuracy_high"]
