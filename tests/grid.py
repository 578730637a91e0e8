"""The grid of families and components: each component that an architecture may take, and the whole life of a design."""

from __future__ import annotations

import json
import shutil
import types
import typing
from pathlib import Path
from typing import Any

import torch

import stemma
from stemma.declare.objectives import MLM
from stemma.errors import StemmaError
from stemma.nn import parts
from stemma.train import pretrain, resolve
from tiny import batch, run

COMPONENTS: dict[str, list[Any]] = {
    "arch.position": [
        parts.Learned(),
        parts.Learned(padding=0),
        parts.Sinusoidal(),
        parts.Rotary(),
        parts.Rotary(share=0.5),
        parts.Rotary(interleaved=True),
        parts.Rotary(scaling=parts.LinearScaling(2.0)),
        parts.Rotary(scaling=parts.NTKScaling(2.0)),
        parts.Rotary(scaling=parts.PowerScaling(0.1)),
        parts.Rotary(scaling=parts.DynamicScaling()),
        parts.Rotary(scaling=parts.YarnScaling(context=16)),
        parts.Rotary(scaling=parts.Llama3Scaling(context=16)),
        parts.Rotary(scaling=parts.TruncatedScaling(16)),
        parts.Rotary(scaling=parts.RandomScaling(2.0)),
        parts.Rotary(scaling=parts.XPosScaling()),
        parts.Buckets(8, 16),
        parts.LayerBuckets(8, 16),
        parts.ALiBi(),
        parts.Disentangled(8),
        parts.RelativeSinusoidal(),
        parts.BlankLearned(),
        parts.BlankRotary(),
    ],
    "arch.norm": [parts.LayerNorm(), parts.LayerNorm(bias=False), parts.RMSNorm(), parts.RMSNorm(offset=True)],
    "arch.residual": [parts.PreNorm(), parts.PostNorm(), parts.Parallel(), parts.Sandwich(), parts.DeepNorm()],
    "arch.mask": [
        parts.Causal(),
        parts.Full(),
        parts.Open(),
        parts.Sliding(8),
        parts.Prefix(),
        parts.Cycle((parts.Causal(), parts.Sliding(8))),
        parts.Memory((1,)),
    ],
    "arch.mlp": [
        parts.MLP("relu"),
        parts.MLP("gelu", bias=False),
        parts.GatedMLP("silu"),
        parts.GatedMLP("gelu", bias=True),
        parts.Experts(),
    ],
    "arch.attention.bias": [True, False],
    "arch.attention.out_bias": [True, False],
    "arch.attention.key_bias": [True, False],
    "arch.attention.qk_norm": [parts.RMSNorm(), parts.HeadNorm(), parts.LayerNorm()],
    "arch.attention.scaled": [False],
    "arch.attention.softcap": [20.0],
    "arch.heads.lm": [
        parts.LMHead(),
        parts.LMHead(tied=False),
        parts.LMHead(bias=True),
        parts.LMHead(scaled=True),
        parts.LMHead(softcap=20.0),
        parts.MLMHead(),
        parts.MLMHead(tied=False),
        parts.EMDHead(),
    ],
    "arch.init": [parts.Normal(residual=True), parts.FanIn(), parts.Glorot(), parts.LeCun()],
    "arch.convolution": [parts.Convolution()],
    "arch.local": [parts.Rotary(base=1000.0)],
    "arch.embed_norm": [True],
    "arch.embed_scale": [True],
}
CHANGES = [(path, value) for path, values in COMPONENTS.items() for value in values]
NEEDS: list[tuple[str, Any, dict[str, Any]]] = [  # what else a component takes with it
    ("arch.mlp", parts.Experts(), {"dims.experts": 4, "dims.active": 2}),
    ("arch.mask", parts.Open(), {"dims.segments": 6}),
    ("arch.position", parts.RelativeSinusoidal(), {"arch.streams": parts.Streams(), "arch.residual": parts.PostNorm()}),
    ("arch.local", parts.Rotary(base=1000.0), {"arch.mask": parts.Cycle((parts.Causal(), parts.Sliding(8)))}),
]
OWN: dict[str, dict[str, Any]] = {  # what a family needs to be that small
    "xlnet": {"dims.context": 128},
    "distilbert": {"objective": MLM()},  # without a teacher
}
SMALL = {
    **{"dims.layers": 2, "dims.d_model": 24, "dims.heads": 2, "dims.d_ff": 32, "dims.context": 32, "dims.vocab": 400},
    **{"dims.kv_heads": None, "recipe.batch": 64, "train.val_fraction": 0.1, "train.threads": 1},
}


def declared(hint: Any) -> set[type]:
    """The component types of a field's type, but for those of one's own."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return set().union(*map(declared, typing.get_args(hint)))
    own = isinstance(hint, type) and hint.__name__.startswith("Custom")
    return {hint} if isinstance(hint, type) and hint.__module__.startswith("stemma.nn.parts") and not own else set()


def text(folder: Path) -> Path:
    """A hundred short texts, half of them in pairs of two languages."""
    path = folder / "text.jsonl"
    rows = []
    for i in range(50):
        for lang, line in (
            ("en", f"The {i} foxes run over {i % 5} lazy dogs. They sleep."),
            ("de", f"Die {i} Füchse."),
        ):
            rows.append({"text": line * 3, "lang": lang, "group": str(i)})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def life(name: str, path: str, value: Any, data: Path, out: Path) -> bool:
    """Train a family with one component changed for a step, save it and load it again. False: it was refused, by one
    sentence and before the first step."""
    more = next((changes for at, part, changes in NEEDS if (at, part) == (path, value)), {})
    plan = resolve(name)
    if path == "arch.position" and getattr(plan.arch.init, "positions", None) is not None:
        more = more | {"arch.init.positions": None}
    if plan.arch.local is not None and path in ("arch.position", "arch.mask") and not isinstance(value, parts.Cycle):
        more = more | {"arch.local": None}  # which is for rotary positions and masks that change
    languages = plan.data.startswith("builtin:parallel")
    what, steps = f"{name} with {path}={value}", []
    try:
        done = pretrain(
            name,
            data=str(data) + ("" if languages else "#lang=none#group=none"),
            out=out,
            budget="1 steps",
            overrides=SMALL | OWN.get(name, {}) | more | {path: value},
            on_step=steps.append,
            quiet=True,
        )
    except StemmaError as error:
        assert not steps, f"{what} was refused after its first step: {error}"
        assert str(error).strip() and "\n" not in str(error), f"{what}: {error}"
        return False
    again = stemma.load(out)
    ours, theirs = done.model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys(), what
    assert all(torch.equal(ours[k], theirs[k]) for k in ours), what
    inputs = batch(again.design, length=12)
    first, second = vars(run(done.model, inputs)), vars(run(again, inputs))
    for key, tensor in first.items():
        assert not isinstance(tensor, torch.Tensor) or torch.equal(tensor, second[key]), f"{what}: {key}"
    shutil.rmtree(out)
    return True
