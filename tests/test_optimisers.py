"""Optimisers and schedules against ten lines of numpy each, and against those of torch and transformers."""

from __future__ import annotations

import bisect
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import optimization as theirs

from stemma import families
from stemma.declare.recipes import LAMB, Adafactor, AdamW, LayerDecay, Muon, Optimizer, Rate, Schedule
from stemma.errors import UsageError
from stemma.nn.model import Model
from stemma.nn.parts import HeadNorm
from stemma.runs import checkpoint
from stemma.train import optim, optimisers, pretrain, read_metrics, resolve, verify_resume
from stemma.train.prepare import read_plan
from tiny import tiny

Floats = NDArray[np.float64]
Rule = Callable[[Floats, Floats, dict[str, Any], int, float], Floats]  # weight, gradient, state, step, rate -> weight


class Net(nn.Module):
    """A matrix, a wider one, a vector, and parameters whose names say that they are hidden."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.table = nn.Parameter(torch.randn(9, 5, generator=draw))
        self.blocks = nn.ModuleList(nn.Linear(6, 4) for _ in range(2))
        with torch.no_grad():
            for p in self.blocks.parameters():
                p.copy_(torch.randn(p.shape, generator=draw))


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.decoder = Net()

    def named(self) -> Any:
        return self.named_parameters()


def gradients(step: int) -> list[Tensor]:
    draw = torch.Generator().manual_seed(100 + step)
    return [torch.randn(p.shape, generator=draw) * (1 + step % 3) for p in Whole().parameters()]


def trained(spec: Optimizer, steps: int = 6, lr: float = 0.03) -> dict[str, Tensor]:
    model = Whole()
    opt = optim.optimizer(spec, model.named_parameters(), lr)
    for step in range(1, steps + 1):
        for p, g in zip(model.parameters(), gradients(step), strict=True):
            p.grad = g
        opt.step()
    return {name: p.detach() for name, p in model.named_parameters()}


def by_hand(rule: Rule, steps: int = 6, lr: float = 0.03) -> dict[str, Floats]:
    named = {name: p.detach().double().numpy() for name, p in Whole().named_parameters()}
    state: dict[str, dict[str, Any]] = {name: {} for name in named}
    for step in range(1, steps + 1):
        for (name, w), g in zip(named.items(), gradients(step), strict=True):
            named[name] = rule(w, g.double().numpy(), state[name], step, lr)
    return named


def agree(spec: Optimizer, rule: Rule, atol: float = 2e-6) -> None:
    found, expected = trained(spec), by_hand(rule)
    for name, p in found.items():
        np.testing.assert_allclose(p.double().numpy(), expected[name], atol=atol, rtol=1e-5, err_msg=name)


# ---------------------------------------------------------------- Adam and what is made of it


def averages(g: Floats, s: dict[str, Any], beta1: float, beta2: float) -> tuple[Floats, Floats]:
    s["m"] = beta1 * s.get("m", 0 * g) + (1 - beta1) * g
    s["v"] = beta2 * s.get("v", 0 * g) + (1 - beta2) * g * g
    return s["m"], s["v"]


@pytest.mark.parametrize("corrected", [True, False])
def test_adam(corrected: bool) -> None:
    def rule(w: Floats, g: Floats, s: dict[str, Any], t: int, lr: float) -> Floats:
        m, v = averages(g, s, 0.9, 0.98)
        if corrected:
            m, v = m / (1 - 0.9**t), v / (1 - 0.98**t)
        return w - lr * (m / (np.sqrt(v) + 1e-6) + (0.1 if w.ndim > 1 else 0) * w)

    agree(AdamW(beta2=0.98, eps=1e-6, weight_decay=0.1, corrected=corrected), rule)


@pytest.mark.parametrize("corrected", [True, False])
def test_lamb(corrected: bool) -> None:
    def rule(w: Floats, g: Floats, s: dict[str, Any], t: int, lr: float) -> Floats:
        m, v = averages(g, s, 0.9, 0.999)
        if corrected:
            m, v = m / (1 - 0.9**t), v / (1 - 0.999**t)
        u = m / (np.sqrt(v) + 1e-6)
        if w.ndim == 1:
            return w - lr * u
        u = u + 0.01 * w
        return w - lr * np.linalg.norm(w) / np.linalg.norm(u) * u

    agree(LAMB(corrected=corrected), rule, 1e-5)


def test_a_step_of_lamb_is_as_long_as_its_matrix() -> None:
    before = dict(Whole().named_parameters())
    after = trained(LAMB(), steps=1, lr=0.1)
    for name, p in after.items():
        if p.ndim > 1:
            step = (p - before[name]).norm() / before[name].norm()
            assert step.item() == pytest.approx(0.1, rel=1e-5)


def test_lamb_moves_a_matrix_of_zeros() -> None:
    w = nn.Parameter(torch.zeros(3, 4))
    opt = optimisers.LAMB([{"params": [w]}], 0.1, (0.9, 0.999), 1e-6)
    w.grad = torch.ones(3, 4)
    opt.step()
    torch.testing.assert_close(w.detach(), torch.full((3, 4), -0.1))


# ---------------------------------------------------------------- Adafactor


def factors(smallest: int | None, momentum: float = 0.0, decay: float = 0.0, power: float = 1.0) -> Rule:
    def rule(w: Floats, g: Floats, s: dict[str, Any], t: int, lr: float) -> Floats:
        beta = 1 - t**-0.8
        square = g * g + 1e-30
        if w.ndim == 2 and smallest is not None and min(w.shape) >= smallest:
            s["r"] = beta * s.get("r", 0) + (1 - beta) * square.sum(1)
            s["c"] = beta * s.get("c", 0) + (1 - beta) * square.sum(0)
            v = np.outer(s["r"], s["c"]) / s["r"].sum()
        else:
            v = s["v"] = beta * s.get("v", 0) + (1 - beta) * square
        u = g / np.sqrt(v)
        u /= max(1.0, np.sqrt((u * u).mean()))
        u *= lr * max(1e-3, np.sqrt((w * w).mean()))
        if momentum:
            u = s["m"] = momentum * s.get("m", 0) + (1 - momentum) * u
        return w * (1 - (decay * lr**power if w.ndim > 1 else 0)) - u

    return rule


@pytest.mark.parametrize("smallest", [1, 5, None])
def test_adafactor(smallest: int | None) -> None:
    agree(Adafactor(smallest=smallest), factors(smallest))


def test_adafactor_of_palm() -> None:
    design = families.design("palm-540b")
    assert design.recipe.optimizer == Adafactor(weight_decay=1.0, smallest=None, momentum=0.9, power=2.0)
    agree(design.recipe.optimizer, factors(None, 0.9, 1.0, 2.0))


@pytest.mark.parametrize("beta1", [None, 0.9])
def test_adafactor_is_that_of_transformers(beta1: float | None) -> None:
    model = Whole()
    opt = theirs.Adafactor(model.parameters(), lr=0.03, beta1=beta1, relative_step=False, scale_parameter=True)
    for step in range(1, 7):
        for p, g in zip(model.parameters(), gradients(step), strict=True):
            p.grad = g
        opt.step()
    found = trained(Adafactor(smallest=1, momentum=beta1 or 0.0))
    for name, p in model.named_parameters():
        torch.testing.assert_close(found[name], p.detach(), atol=2e-6, rtol=1e-5)


def test_adafactor_is_that_of_torch_where_its_bound_does_not_bind() -> None:
    model = Whole()
    opt = torch.optim.Adafactor(model.parameters(), lr=0.03, eps=(1e-15, 1e-3), d=1.0, weight_decay=0.0)
    for step in range(1, 7):
        for p, g in zip(model.parameters(), gradients(step), strict=True):
            p.grad = g
        opt.step()
    found = trained(Adafactor(smallest=1))
    for name, p in model.named_parameters():
        torch.testing.assert_close(found[name], p.detach(), atol=2e-6, rtol=1e-5)


def test_no_bound_on_the_rate() -> None:
    """Where the schedule asks for more than 1/sqrt(step), it gets it."""
    w = nn.Parameter(torch.ones(4))
    opt = optimisers.Adafactor([{"params": [w]}], 0.25)
    for _ in range(100):
        with torch.no_grad():
            w.fill_(1.0)
        w.grad = torch.ones(4)
        opt.step()
    torch.testing.assert_close(w.detach(), torch.full((4,), 0.75))  # torch's: 0.9


def test_factored_state_is_small_and_rows_may_have_no_gradient() -> None:
    plan = resolve("t5", overrides={"dims.layers": 1})
    model = Model(plan.arch, plan.dims).initialise(1)
    opt = optim.optimizer(Adafactor(), model.named_parameters(), 1e-2)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    table = model.embed.tokens.weight
    table.grad[5] = 1.0  # type: ignore[index]
    opt.step()
    assert all(p.isfinite().all() for p in model.parameters())
    assert {k: tuple(v.shape) for k, v in opt.state[table].items()} == {
        "step": (),
        "row": (table.shape[0],),
        "column": (table.shape[1],),
    }


@pytest.mark.parametrize("kind", [AdamW(weight_decay=0.1), Muon()])
@pytest.mark.parametrize("name", ["command-r", "xlnet", "mixtral", "deberta-v2"])
def test_a_matrix_is_what_multiplies_vectors(name: str, kind: Optimizer) -> None:
    """Gains and biases with a row for each head are neither decayed nor turned, whatever their shape; tables of a block
    are decayed and not turned."""
    design = tiny(name, **({"arch.attention.qk_norm": HeadNorm()} if name == "command-r" else {}))
    with torch.device("meta"):
        model = Model(design.arch, design.dims)
    names = {id(p): n for n, p in model.named_parameters()}
    uses = optim.uses_of([("", model)])
    groups = optim.optimizer(kind, model.named_parameters(), 1e-3, uses=uses).param_groups
    found = {
        names[id(p)]: (group["weight_decay"], group.get("matrices", False)) for group in groups for p in group["params"]
    }
    assert found.keys() == set(names.values())
    turned, wide = isinstance(kind, Muon), dict(model.named_parameters())
    for path, (decay, matrix) in found.items():
        last = path.split(".")[-1]
        if "norm" in path or last in ("bias", "content", "distance", "segment"):
            assert (decay, matrix) == (0.0, False), path
        elif last == "segments" or ".table." in path:
            assert decay > 0 and not matrix, path
        elif ".blocks." in path:
            assert decay > 0 and matrix == turned, path
    odd = {"command-r": "attention.q_norm.weight", "xlnet": "relative.content"}.get(name, "mlp.up")
    assert any(odd in path and p.ndim >= 2 for path, p in wide.items())


def test_a_run_that_began_before_goes_by_shapes_still(tmp_path: Path) -> None:
    text = tmp_path / "rows.jsonl"
    rows = [{"text": " ".join(f"The fox {i * j} ran and the dog sat." for j in range(9))} for i in range(60)]
    text.write_text("".join(json.dumps(row) + "\n" for row in rows))
    small = {"dims.vocab": 300, "dims.layers": 1, "train.budget": "2 steps", "recipe.optimizer.weight_decay": 0.5}
    losses, values = {}, {}
    for way in ("use", "shape"):
        changes = {**small, "train.matrices": way}
        pretrain("xlnet", data=str(text), out=tmp_path / way, overrides=changes, quiet=True)
        losses[way] = [record["loss"] for record in read_metrics(tmp_path / way)]
        values[way], _, _ = checkpoint.load(checkpoint.steps(tmp_path / way)[-1])
    name = "encoder.blocks.0.attention.relative.segments"
    assert losses["use"][0] == losses["shape"][0] and torch.equal(values["use"][name], values["shape"][name])
    about = json.loads((tmp_path / "shape" / "run.json").read_text("utf-8"))
    assert about["plan"]["train"].pop("matrices") == "shape"
    (tmp_path / "shape" / "run.json").write_text(json.dumps(about))
    assert read_plan(tmp_path / "shape")[0].train.matrices == "shape"
    assert read_plan(tmp_path / "use")[0].train.matrices == "use"
    assert verify_resume(tmp_path / "shape", 2)["identical"]


# ---------------------------------------------------------------- Muon


def newton_schulz(x: Floats) -> Floats:
    y = x / np.linalg.norm(x)
    for _ in range(5):
        gram = y @ y.T
        y = 3.4445 * y + (-4.7750 * gram + 2.0315 * gram @ gram) @ y
    return y


def test_muon() -> None:
    def rule(w: Floats, g: Floats, s: dict[str, Any], t: int, lr: float) -> Floats:
        if w.shape != (4, 6):  # not hidden: AdamW
            m, v = averages(g, s, 0.9, 0.95)
            m, v = m / (1 - 0.9**t), v / (1 - 0.95**t)
            return w - lr * (m / (np.sqrt(v) + 1e-8) + (0.1 if w.ndim > 1 else 0) * w)
        s["b"] = 0.95 * s.get("b", 0) + 0.05 * g
        return w * (1 - lr * 0.1) - lr * 0.2 * math.sqrt(6) * newton_schulz(0.05 * g + 0.95 * s["b"])

    agree(Muon(), rule, 1e-5)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_muon_is_that_of_torch() -> None:
    """Which iterates in bf16: 8 bits of a step."""
    model = Whole()
    hidden = [p for n, p in model.named_parameters() if "blocks" in n and p.ndim == 2]
    opt = torch.optim.Muon(hidden, lr=0.03, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    before = [p.detach().clone() for p in hidden]
    for p, g in zip(model.parameters(), gradients(1), strict=True):
        p.grad = g
    opt.step()
    found = trained(Muon(), steps=1)
    for name, p in model.named_parameters():
        if any(p is h for h in hidden):
            old = next(b for b, h in zip(before, hidden, strict=True) if h is p)
            assert ((found[name] - p).norm() / (p - old).norm()).item() < 0.02


@pytest.mark.parametrize("shape", [(8, 8), (5, 12), (12, 5), (3, 6, 4)])
def test_singular_values_come_near_one(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    y = optimisers.orthogonal(x)
    values = torch.linalg.svdvals(y)
    assert y.shape == x.shape and values.min() > 0.3 and values.max() < 1.25
    each = x if x.ndim == 3 else x[None]
    torch.testing.assert_close(torch.stack([optimisers.orthogonal(m) for m in each]).reshape(shape), y)


def test_muon_leaves_tables_and_heads_to_adam() -> None:
    plan = resolve("llama", overrides={"dims.layers": 1})
    model = Model(plan.arch, plan.dims)
    opt = optim.optimizer(Muon(), model.named_parameters(), 1e-3)
    kinds = {id(p): g.get("matrices", False) for g in opt.param_groups for p in g["params"]}
    for name, p in model.named_parameters():
        assert kinds[id(p)] == (".blocks." in name and p.ndim == 2), name


# ---------------------------------------------------------------- what all share

SPECS: list[Optimizer] = [
    AdamW(),
    AdamW(corrected=False),
    LAMB(),
    LAMB(corrected=False),
    Adafactor(smallest=4),
    Adafactor(weight_decay=1.0, smallest=None, momentum=0.9, power=2.0),
    Muon(),
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_state_goes_through_a_checkpoint_bit_for_bit(spec: Optimizer) -> None:
    def steps(model: Whole, opt: torch.optim.Optimizer, first: int, last: int) -> None:
        for step in range(first, last):
            for p, g in zip(model.parameters(), gradients(step), strict=True):
                p.grad = g
            opt.step()

    model = Whole()
    opt = optim.optimizer(spec, model.named_parameters(), 0.01)
    steps(model, opt, 1, 4)
    kept = optim.state(model, opt)
    assert all(key.count(":") == 1 and isinstance(value, Tensor) for key, value in kept.items())
    assert {key.split(":")[0] for key in kept} == {name for name, _ in model.named_parameters()}
    other = Whole()
    other.load_state_dict(model.state_dict())
    again = optim.optimizer(spec, other.named_parameters(), 0.01)
    optim.restore(other, again, {key: value.clone() for key, value in kept.items()})
    steps(model, opt, 4, 8)
    steps(other, again, 4, 8)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    after = optim.state(other, again)
    assert all(torch.equal(value, after[key]) for key, value in optim.state(model, opt).items())


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_parameter_without_a_gradient_stays(spec: Optimizer) -> None:
    model = Whole()
    opt = optim.optimizer(spec, model.named_parameters(), 0.01)
    for p, g in zip(model.parameters(), gradients(1), strict=True):
        p.grad = g
    model.decoder.table.grad = None
    before = model.decoder.table.detach().clone()
    opt.step()
    assert torch.equal(model.decoder.table, before) and model.decoder.table not in opt.state


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_weight_decay_spares_norms_and_biases(spec: Optimizer) -> None:
    plan = resolve("gpt2", overrides={"dims.layers": 1})
    model = Model(plan.arch, plan.dims)
    opt = optim.optimizer(spec, model.named_parameters(), 1e-3)
    kinds = {id(p): g["weight_decay"] for g in opt.param_groups for p in g["params"]}
    assert len(kinds) == len(list(model.parameters()))
    for name, p in model.named_parameters():
        assert kinds[id(p)] == (0 if name.endswith("bias") or "norm" in name else spec.weight_decay)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_parabola_is_descended(spec: Optimizer) -> None:
    model = Whole()
    goal = [torch.ones_like(p) for p in model.parameters()]
    opt = optim.optimizer(spec, model.named_parameters(), 0.03)

    def height() -> Tensor:
        return torch.stack([(p - g).square().mean() for p, g in zip(model.parameters(), goal, strict=True)]).sum()

    begin = height().item()
    for _ in range(60):
        opt.zero_grad()
        height().backward()
        opt.step()
    assert height().item() < 0.6 * begin


def test_wrong_numbers_are_refused() -> None:
    wrong: list[tuple[type, dict[str, Any]]] = [
        (AdamW, {"beta1": 1.0}),
        (LAMB, {"eps": 0.0}),
        (Muon, {"momentum": 1.0}),
        (Muon, {"iterations": 0}),
        (Adafactor, {"smallest": 0}),
        (Adafactor, {"momentum": -0.1}),
        (Adafactor, {"decay": 0.0}),
        (Schedule, {"until": 0.0}),
        (Schedule, {"hold": 1.0}),
    ]
    for kind, fields in wrong:
        with pytest.raises(UsageError, match=next(iter(fields))):
            kind(**fields)


# ---------------------------------------------------------------- schedules


def rates(schedule: Schedule, steps: int = 200) -> list[float]:
    return [optim.learning_rate(schedule, 1.0, step, steps) for step in range(1, steps + 1)]


def transformers(make: Callable[..., Any], steps: int = 200, **more: Any) -> list[float]:
    """Their rates, counted from 1: theirs is 0 in the first step, which they number 0."""
    opt = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    found = make(opt, **more).lr_lambdas[0]
    return [found(step) for step in range(1, steps + 1)]


@pytest.mark.parametrize("warmup", [0, 20])
def test_schedules_are_those_of_transformers(warmup: int) -> None:
    whole = {"num_warmup_steps": warmup, "num_training_steps": 200}
    for schedule, expected in (
        (Schedule("linear", warmup), transformers(theirs.get_linear_schedule_with_warmup, **whole)),
        (Schedule("cosine", warmup), transformers(theirs.get_cosine_schedule_with_warmup, **whole)),
        (
            Schedule("cosine", warmup, 0.1),
            transformers(theirs.get_cosine_with_min_lr_schedule_with_warmup, min_lr_rate=0.1, **whole),
        ),
        (
            Schedule("linear", warmup),
            transformers(theirs.get_polynomial_decay_schedule_with_warmup, lr_end=0.0, **whole),
        ),
        (
            Schedule("constant", warmup),
            transformers(theirs.get_constant_schedule_with_warmup, num_warmup_steps=warmup),
        ),
        (
            Schedule("trapezoid", warmup, hold=0.75),
            transformers(
                theirs.get_wsd_schedule,
                num_warmup_steps=warmup,
                num_decay_steps=50,
                num_stable_steps=150 - warmup,
                decay_type="linear",
            ),
        ),
    ):
        assert rates(schedule) == pytest.approx(expected, abs=1e-9), schedule
    if warmup:
        expected = transformers(theirs.get_inverse_sqrt_schedule, num_warmup_steps=warmup)
        assert rates(Schedule("inverse", warmup)) == pytest.approx(expected, abs=1e-9)


def test_the_schedule_of_the_transformer() -> None:
    """d**-0.5 * min(step**-0.5, step * warmup**-1.5) (Vaswani et al. 2017, equation 3): a peak of 7e-4 for base."""
    recipe = families.design("transformer-base").recipe
    assert recipe.lr == pytest.approx(512**-0.5 * 4000**-0.5, rel=2e-3)
    for step in (1, 100, 4000, 4001, 90_000):
        expected = min(step**-0.5, step * 4000**-1.5) / 4000**-0.5
        assert optim.learning_rate(recipe.schedule, 1.0, step, 100_000) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["t5", "palm-540b"])
def test_constant_for_ten_thousand_steps_then_by_the_root(name: str) -> None:
    recipe = families.design(name).recipe
    assert recipe.lr is not None
    for step in (1, 9_999, 10_000, 10_001, 250_000):
        found = optim.learning_rate(recipe.schedule, recipe.lr, step, 255_000)
        assert found == pytest.approx(1 / math.sqrt(max(step, 10_000)))


def test_the_schedule_of_gpt3() -> None:
    """It rises over 375M tokens, falls to a tenth over 260B, and stays there to 300B; small batches count as small."""
    for size in families.family("gpt3").sizes:
        recipe = families.design(size).recipe
        assert recipe.lr and recipe.batch and recipe.steps and recipe.ramp
        rows, row = recipe.batch // 2048, recipe.batch / (recipe.batch // 2048)
        read = list(
            itertools.accumulate(recipe.ramp.examples(rows, s, recipe.steps) * row for s in range(recipe.steps))
        )
        assert read[recipe.schedule.warmup - 1] == pytest.approx(375e6, rel=1e-2)
        assert read[-1] == pytest.approx(300e9, rel=5e-3)
        end = bisect.bisect(read, 260e9)
        low = optim.learning_rate(recipe.schedule, recipe.lr, end - recipe.steps // 50, recipe.steps)
        assert low > 0.1 * recipe.lr
        for step in (end + recipe.steps // 1000, recipe.steps):
            assert optim.learning_rate(recipe.schedule, recipe.lr, step, recipe.steps) == pytest.approx(0.1 * recipe.lr)


# ---------------------------------------------------------------- rates of their own


def test_lower_layers_learn_more_slowly() -> None:
    """As ELECTRA's released code counts: of twelve layers, embeddings at decay ** 14, the first block at decay ** 13."""
    design = tiny("bert", **{"dims.layers": 12})
    with torch.device("meta"):
        names = [name for name, _ in Model(design.arch, design.dims).named_parameters()]
    times = optim.times_of(names, (LayerDecay(0.8),))
    assert times["embed.tokens.weight"] == pytest.approx(0.8**14)
    assert times["encoder.blocks.0.attention.q.weight"] == pytest.approx(0.8**13)
    assert times["encoder.blocks.11.mlp.up.bias"] == pytest.approx(0.8**2)
    assert times["pooler.dense.weight" if "pooler.dense.weight" in times else "lm.bias"] == 1.0
    both = [n for n, _ in Model(*(tiny("t5").arch, tiny("t5").dims)).named_parameters()]
    found = optim.times_of(both, (LayerDecay(0.5), Rate(("decoder.*",), 3.0)))
    assert found["encoder.blocks.2.attention.q.weight"] == 0.25 and found["decoder.blocks.2.attention.q.weight"] == 0.75


@pytest.mark.parametrize("spec", [AdamW(weight_decay=0.1), LAMB(), Adafactor(), Muon()], ids=lambda s: type(s).__name__)
def test_a_rate_is_a_share_of_the_learning_rate(spec: Optimizer) -> None:
    """A step at twice the rate is the step of a run at twice the learning rate."""
    design = tiny("llama", **{"dims.layers": 1})

    def stepped(lr: float, rates: tuple[Rate, ...]) -> dict[str, torch.Tensor]:
        model = Model(design.arch, design.dims).initialise(1)
        opt = optim.optimizer(spec, model.named_parameters(), lr, rates=rates)
        for i, p in enumerate(model.parameters()):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
        for group in opt.param_groups:
            group["lr"] = lr * group.get("times", 1.0)
        opt.step()
        return {name: p.detach() for name, p in model.named_parameters()}

    one, two = stepped(1e-2, ()), stepped(2e-2, ())
    mixed = stepped(1e-2, (Rate(("*.mlp.*",), 2.0),))
    for name, p in mixed.items():
        assert torch.equal(p, (two if ".mlp." in name else one)[name]), name


def test_rates_that_name_nothing_are_refused() -> None:
    design = tiny("llama", **{"dims.layers": 1})
    model = Model(design.arch, design.dims)
    with pytest.raises(
        UsageError, match=r"recipe.rates: '\*.attention.w.weight' matches no parameter that learns; the nearest"
    ):
        optim.optimizer(AdamW(), model.named_parameters(), 1e-3, rates=(Rate(("*.attention.w.weight",), 2.0),))
    with pytest.raises(UsageError, match=r"Rate\.times must be positive"):
        Rate(("*",), 0.0)
