"""What a run needs, said before it: beside what it takes."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stemma import families
from stemma.errors import ResourceError, UsageError
from stemma.nn.model import count
from stemma.parallel import Mesh
from stemma.planning import HARDWARE, Outlook, estimate, fleet, suggest
from stemma.planning.estimate import unfit
from stemma.planning.probe import probe
from stemma.train import resolve
from test_cli import call  # noqa: F401

_spec = importlib.util.spec_from_file_location("bench_plan", Path(__file__).parents[1] / "bench" / "plan.py")
assert _spec is not None and _spec.loader is not None
bench: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(bench)

SMALL = {"dims.d_model": 64, "dims.heads": 4, "dims.kv_heads": None, "dims.d_ff": 128, "dims.vocab": 600}


@pytest.mark.parametrize(
    ("name", "changes", "recompute"), bench.CASES, ids=[f"{n}-{'again' if r else 'kept'}" for n, _, r in bench.CASES]
)
def test_memory_is_as_predicted(name: str, changes: dict[str, Any], recompute: bool) -> None:
    """Within a tenth of what torch's allocator holds at once in a real step."""
    plan = bench.planned(name, changes | SMALL)
    assert bench.predicted(plan, recompute) == pytest.approx(bench.measured(plan, recompute), rel=0.1)


def test_activations_count() -> None:
    """The figure is not the weights alone: twice the rows need about twice the activations."""
    plan = bench.planned("gpt2", {"recipe.batch": 4096} | SMALL)
    view = Outlook(plan)
    one, two = (estimate(view, Mesh(), HARDWARE["cpu"], n) for n in (4, 8))
    assert two.activations == pytest.approx(2 * one.activations, rel=0.15)
    assert Outlook(plan, recompute=True).kept is not None
    again = estimate(Outlook(plan, recompute=True), Mesh(), HARDWARE["cpu"], 8)
    assert again.activations < 0.8 * two.activations


def test_shards_and_slices_divide() -> None:
    plan = resolve("llama-7b", scale="full", budget="1T tokens", overrides={"recipe.batch": 2**22})
    view = Outlook(plan)
    h100 = HARDWARE["h100"]
    assert view.parameters == count(plan.arch, plan.dims) == 6_738_415_616
    assert view.steps == round(1e12 / 2**22)
    alone, shards, slices = (estimate(view, m, h100, 1) for m in (Mesh(), Mesh(fsdp=8), Mesh(tp=8)))
    assert alone.weights == 4 * view.parameters and alone.optimizer == 2 * alone.weights
    assert shards.weights == slices.weights == alone.weights / 8
    assert slices.activations < 0.6 * alone.activations == 0.6 * shards.activations
    assert alone.sent == 0 < shards.sent
    assert view.work == pytest.approx(6 * view.parameters, rel=0.1)


def test_a_mesh_is_suggested() -> None:
    plan = resolve("llama-7b", scale="full", budget="1T tokens", overrides={"recipe.batch": 2**22})
    view = Outlook(plan)
    found = suggest(view, 64, HARDWARE["h100"])
    assert found.memory < 80e9 < estimate(view, Mesh(dp=64), HARDWARE["h100"], 1).memory
    with pytest.raises(ResourceError, match="does not fit on 1 RTX4090"):
        suggest(view, 1, HARDWARE["rtx4090"])
    odd = replace(plan, recipe=replace(plan.recipe, batch=2048 * 1953))
    assert "set recipe.batch=" in (unfit(odd, Mesh(fsdp=64)) or "")
    with pytest.raises(UsageError, match="runs on no mesh"):
        suggest(Outlook(odd), 64, HARDWARE["h100"])


TRAINED = ["gpt2", "bert", "roberta", "t5", "llama", "mistral", "albert", "deberta", "gemma2", "mixtral", "glm-10b"]


@pytest.mark.parametrize("name", [n for n in TRAINED if n in families.tree() or n in families.size_names()])
def test_any_trainable_family_has_a_plan(name: str) -> None:
    try:
        plan = resolve(name, budget="10 steps")
    except UsageError:
        pytest.skip("not trained yet")
    found = suggest(Outlook(plan), 1, HARDWARE["a100-80"])
    assert 0 < found.activations < found.memory


def test_devices_are_read() -> None:
    assert fleet("64xH100") == (64, HARDWARE["h100"])
    assert fleet("a100-80")[0] == 1
    for wrong in ("64xH1000", "", "0xH100"):
        with pytest.raises(UsageError, match=r"such as 64xH100"):
            fleet(wrong)


def test_probe_takes_five_steps() -> None:
    plan = resolve("gpt2", budget="10 steps", overrides=SMALL | {"train.precision": "fp32", "dims.context": 32})
    assert 0 < probe(plan) < 5


def test_the_command_says_it(call: Any) -> None:  # noqa: F811
    code, out, err = call("plan", "llama-7b", "--scale", "full", "--gpus", "64xH100", "--budget", "1T tokens",
                          "--set", "recipe.batch=4194304", "--price", "2.5", "--json")  # fmt: skip
    assert code == 0, err
    data = json.loads(out)
    assert data["fits"] and data["parameters"] == 6_738_415_616
    assert data["cost"] == pytest.approx(2.5 * data["device_hours"])
    assert data["estimate"]["memory"] < 80e9
    code, out, _ = call("plan", "bert", "--budget", "10 steps", "--set", "dims.layers=1")
    assert code == 0 and "together" in out and "fits" in out
    code, _, err = call("plan", "bert", "--gpus", "4xH100", "--mesh", "dp=2")
    assert code == 2 and "2 processes" in err
    code, _, err = call("plan", "bert", "--gpus", "4xH100", "--probe")
    assert code == 2 and "--probe" in err
