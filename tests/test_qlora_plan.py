"""The published memory of adapters beside 4-bit weights, against the paper and arithmetic."""

# ruff: noqa: F811

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stemma import families
from stemma.declare import tuning
from stemma.planning import published
from test_cli import call  # noqa: F401


def test_the_example_of_qlora(call: Any) -> None:
    """Dettmers et al. 2023, abstract and section 3: 65B from more than 780 GB to less than 48 GB; 0.127 bits of scales."""
    code, out, _ = call("plan", "qlora-65b", "--json")
    data = json.loads(out)
    assert code == 0 and data["name"] == "guanaco-65b" and data["fits"] and data["device"] == 48e9
    size = {line["what"]: line["bytes"] for line in data["lines"]}
    d, f, layers, rank, vocab = 8192, 22016, 80, 64, 32000
    assert data["quantised"] == layers * (4 * d * d + 3 * d * f)
    assert data["learned"] == layers * rank * (4 * 2 * d + 3 * (d + f)) == 799_539_200
    assert data["parameters"] - data["quantised"] == 2 * vocab * d + (2 * layers + 1) * d
    assert size["base"] == data["quantised"] / 2
    assert 8 * (size["base"] + size["its scales"]) / data["quantised"] == pytest.approx(4.127, abs=5e-4)
    assert (
        size["adapters"] == size["their gradients"] == 2 * data["learned"] and size["optimiser"] == 8 * data["learned"]
    )
    assert size["input gradients"] >= 2 * 528 * layers * d and 44e9 < data["memory"] == sum(size.values()) < 48e9
    assert data["full"] == 12 * data["parameters"] > 780e9
    code, out, _ = call("plan", "guanaco-65b")
    page = (Path(__file__).parent.parent / "docs/adapters.md").read_text("utf-8")
    assert page.partition("<!-- qlora -->\n```text\n")[2].partition("```\n<!-- /")[0] in out


def test_scales_that_are_not_quantised_and_plans_of_ones_own(call: Any) -> None:
    single = [name for name, family in families.tree().items() if (found := adapter(family)) and not found.double]
    assert single
    code, out, _ = call("plan", next(iter(families.family(single[0]).sizes)))
    assert code == 0 and "0.500 bits a weight\n" in out
    code, out, _ = call("plan", "qlora-7b", "--scale", "tiny", "--json")  # a run
    assert code == 0 and "estimate" in json.loads(out)
    assert published.example(families.family("alpaca"), families.design("alpaca")) is None


def adapter(family: Any) -> Any:
    """What a family declares of an adapter beside weights in NF4."""
    stages = family.tuning.stages if family.tuning else ()
    found = [s.adapter for s in stages if isinstance(getattr(s, "adapter", None), tuning.LoRA)]
    return next((a for a in found if a.base == "nf4"), None)
