"""Adapters by request: rows of different adapters in one batch, each with the text that it gets alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from oracle import shared
from stemma.engine import Engine
from stemma.errors import UsageError
from stemma.rewrites import LoRA, Prefix, Rewrite, TrainableTokens, apply
from stemma.rewrites.adapters import ByRow, names, parts, use
from test_jobs_apart import PLAIN, Gate, alone, ids
from test_pages import pages_of

MATRICES = (
    LoRA(("*.attention.q", "*.mlp.*"), 2, dora=True, name="scaled"),
    LoRA(("*.attention.*",), 3, name="plain"),
    LoRA(("embed.tokens", "lm"), 2, name="ends"),
)


def adapted(case: str, *rewrites: Rewrite) -> Any:
    """A model with adapters that change what it writes."""
    model = copy.deepcopy(shared(case)[0])
    apply(model, rewrites)
    draw = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for part in parts(model):
            for p in part.parameters(recurse=False):
                p.add_(torch.randn(p.shape, generator=draw) * 0.5)
    return model.eval()


def texts(model: Any, prompt: list[int], chosen: list[str | None]) -> dict[str | None, list[int]]:
    """What a prompt gets alone with each of its adapters."""
    before = {part: part.strength for part in parts(model)}
    out = {}
    for name in dict.fromkeys(chosen):
        if name is not None:
            use(model, [name] if name else [])
        out[name] = alone(model, prompt)
        for part, strength in before.items():
            part.strength = strength
    return out


def test_rows_of_several_adapters_are_decoded_together() -> None:
    model = adapted("llama", *MATRICES)
    use(model, {"plain": 1.0, "ends": 0.25})
    chosen: list[str | None] = [None, "", *names(model)]
    want = texts(model, ids(12, 1), chosen)
    assert len({tuple(text) for text in want.values()}) == len(chosen)
    with Engine(model, chunk=5) as engine, Gate(model) as gate:
        engine.pages = own = pages_of(model)
        jobs = [(name, engine.submit(ids(12, 1), adapter=name, **PLAIN)) for name in (*chosen, *chosen[::-1])]
        gate.release()
        for name, job in jobs:
            assert job.result(30).ids == want[name], name
        assert max(rows for rows, length in gate.calls if length == 1) >= 4
        before = own.found
        assert engine.submit(ids(12, 1), adapter="plain", **PLAIN).result(30).ids == want["plain"]
        assert own.found == before + 8
    assert [part.strength for part in parts(model)] == [
        p.strength for p in parts(use(model, {"plain": 1.0, "ends": 0.25}))
    ]
    assert all(getattr(part, "shares", None) is None for part in parts(model))


@pytest.mark.parametrize(
    ("case", "rewrites"),
    [
        ("t5", (LoRA(("*.attention.*",), 3, name="a"), LoRA(("*.mlp.*",), 3, name="b"))),
        ("mixtral", (LoRA(("*.mlp*",), 2, name="a"), LoRA(("*.attention.q",), 2, name="b"))),
        ("llama", (LoRA(("*.attention.q",), 3, name="a"), LoRA(("*.attention.q",), 3, dora=True, name="b"))),
        ("gpt2", (TrainableTokens(ids=(5, 6, 7, 8), name="a"), LoRA(("*.attention.q",), 3, name="b"))),
    ],
    ids=["encoder and decoder", "experts", "lengths", "tokens"],
)
def test_other_adapters_and_kinds_of_models(case: str, rewrites: tuple[Rewrite, ...]) -> None:
    model = adapted(case, *rewrites)
    chosen: list[str | None] = ["a", "", "b", "a"]
    want = texts(model, ids(6, 2), chosen)
    assert ByRow(model).mixes == (case == "t5")
    with Engine(model) as engine:
        jobs = [(name, engine.submit(ids(6, 2), adapter=name, **PLAIN)) for name in chosen]
        for name, job in jobs:
            assert job.result(30).ids == want[name], name


def test_an_adapter_that_is_not_there_is_refused() -> None:
    with (
        Engine(adapted("llama", MATRICES[0])) as engine,
        pytest.raises(UsageError, match="no adapter 'other'; it has scaled"),
    ):
        engine.submit([5], adapter="other")
    with Engine(adapted("llama", Prefix(2))) as engine:
        with pytest.raises(UsageError, match="cannot be chosen by request"):
            engine.submit([5], adapter="")
        assert len(engine.submit([5], **PLAIN).result(30).ids) == 6
