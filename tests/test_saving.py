"""Any family with any component that it accepts is saved, in whatever layout can express it, and reads back equal."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import stemma
from stemma import families, spec
from stemma.errors import UsageError
from stemma.formats import attach
from stemma.nn import parts
from tiny import FAMILIES, batch, build, run, tiny

COMPONENTS: dict[str, list[Any]] = {
    "arch.position": [
        parts.Learned(),
        parts.Sinusoidal(),
        parts.Rotary(),
        parts.Rotary(share=0.5),
        parts.Rotary(interleaved=True),
        parts.Rotary(scaling=parts.LinearScaling(2.0)),
        parts.Rotary(scaling=parts.NTKScaling(2.0)),
        parts.Rotary(scaling=parts.PowerScaling(0.1)),
        parts.Buckets(),
        parts.LayerBuckets(),
        parts.BlankLearned(),
        parts.BlankRotary(),
    ],
    "arch.norm": [parts.LayerNorm(), parts.LayerNorm(bias=False), parts.RMSNorm(), parts.RMSNorm(offset=True)],
    "arch.residual": [parts.PreNorm(), parts.PostNorm(), parts.Parallel(), parts.Sandwich(), parts.DeepNorm()],
    "arch.mask": [
        parts.Causal(),
        parts.Full(),
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
    "arch.attention.qk_norm": [parts.RMSNorm(), parts.HeadNorm()],
    "arch.attention.scaled": [False],
    "arch.heads.lm": [parts.LMHead(), parts.LMHead(tied=False), parts.LMHead(bias=True), parts.MLMHead()],
    "arch.embed_norm": [True],
    "arch.embed_scale": [True],
}
SOME = ("llama", "bert", "palm", "chatglm2", "glm-4", "t5")  # of each engine's corner one


def saved_and_read(name: str, folder: Path, every: int) -> int:
    """Save a family with each `every`-th component in turn; the number of designs that it accepts."""
    accepted = 0
    changes = [(path, value) for path, values in COMPONENTS.items() for value in values]
    for number, (path, value) in enumerate(changes):
        if number % every:
            continue
        experts = {"dims.experts": 4, "dims.active": 2} if isinstance(value, parts.Experts) else {}
        try:
            design = spec.edit(tiny(name), {path: value, **experts})
            model = build(design)
        except UsageError:
            continue
        accepted += 1
        attach(model, design, families.family(name))
        place, what = folder / str(number), f"{name} with {path}={value}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a layout is our own
            model.save(str(place))
        again = stemma.load(place)
        ours, theirs = model.state_dict(), again.state_dict()
        assert ours.keys() == theirs.keys(), what
        assert all(torch.equal(ours[k], theirs[k]) for k in ours), what
        if number % 7 == 0:
            inputs = batch(design)
            assert torch.equal(run(model, inputs).hidden, run(again, inputs).hidden), what
    return accepted


@pytest.mark.parametrize("name", SOME)
def test_any_component_is_saved(name: str, tmp_path: Path) -> None:
    assert saved_and_read(name, tmp_path, 2) > 8


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_component_is_saved(name: str, tmp_path: Path) -> None:
    assert saved_and_read(name, tmp_path, 1) > 10
