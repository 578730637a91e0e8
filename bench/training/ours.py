"""The side of Stemma: its own loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from stemma.declare import objectives as declared
from stemma.declare.recipes import AdamW
from stemma.nn.model import Model
from stemma.nn.parts import Dropout
from stemma.train import Loop, Plan, resolve
from stemma.train.assemble import with_steps
from stemma.train.source import TextSource
from training import CLIP, DECAY, HEADS, LAYERS, LR, PLAIN, VOCAB, WIDTH, llama_ffn
from training.rows import GOALS, Own, Rows, shape_of


def plan_of(name: str, precision: str = "auto", compiled: bool = False) -> Plan:
    """The plan of a design's small relative: the network's sizes and the optimiser of all sides, no dropout."""
    design, shape = name.removesuffix("-114"), shape_of(name)
    plan = resolve(design, overrides={"objective": GOALS[name], "arch.dropout": Dropout()} if name in PLAIN else None)
    heads = replace(plan.arch.heads, pooler=None, pair=False)
    arch = replace(plan.arch, dropout=Dropout(), heads=heads)
    ffn = llama_ffn() if name == "llama" else 4 * WIDTH
    sizes: dict[str, Any] = {"layers": LAYERS, "vocab": VOCAB, "context": shape.context, "embed": None}
    dims = replace(plan.dims, d_model=WIDTH, heads=HEADS, d_ff=ffn, **sizes)
    recipe = replace(plan.recipe, optimizer=AdamW(weight_decay=DECAY), lr=LR, clip=CLIP, batch=shape.tokens)
    train = replace(plan.train, precision=precision, compile=compiled, micro=shape.rows)  # type: ignore[arg-type]
    quarter = {"d_model": WIDTH // 4, "heads": HEADS // 4, "d_ff": WIDTH}
    nets = tuple(
        replace(
            n, arch=replace(n.arch, dropout=Dropout()), dims=replace(n.dims, **(sizes | quarter | {"embed": WIDTH}))
        )
        for n in plan.nets
    )
    return with_steps(replace(plan, arch=arch, dims=dims, recipe=recipe, train=train, nets=nets), 100_000, False)


def rows_of(name: str) -> Rows | Own:
    """The rows that all sides of a design read."""
    plan = plan_of(name)
    if name in PLAIN:
        assert isinstance(plan.objective, declared.RTD | declared.PLM)
        return Own(name, shape_of(name), plan.text, 1)
    return Rows(plan.arch.structure, shape_of(name), 1)


def loop_of(name: str, rows: Rows | Own, precision: str, compiled: bool) -> Loop:
    """Stemma's loop over the rows."""
    plan = plan_of(name, precision, compiled)
    nets = {net.role: Model(net.arch, net.dims).initialise(2) for net in plan.nets}
    return Loop(plan, Model(plan.arch, plan.dims).initialise(1), rows, TextSource(plan, rows, []), nets)  # type: ignore[arg-type]


def ours(name: str, rows: Rows | Own, precision: str, compiled: bool) -> tuple[Callable[[], float], Loop]:
    """A function that takes one step of Stemma's loop and returns the loss; the loop."""
    loop = loop_of(name, rows, precision, compiled)
    return lambda: float(loop.advance()["loss"]), loop
