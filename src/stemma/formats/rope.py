"""Rotary positions in a config.json: `rope_parameters` as written now, `rope_theta` and `rope_scaling` as before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stemma.declare.family import Design
from stemma.errors import CheckpointError, UsageError
from stemma.formats.keys import meant
from stemma.nn.parts import DynamicScaling, LinearScaling, Llama3Scaling, Rotary, Scaling, YarnScaling


@dataclass(frozen=True)
class Kind:
    """A `rope_type`: our spec, its keys -> our fields, and the optional ones."""

    spec: type[Scaling] | None
    names: Mapping[str, str]
    optional: tuple[str, ...] = ()


CONTEXT = "original_max_position_embeddings"
KINDS = {
    "default": Kind(None, {}),
    "linear": Kind(LinearScaling, {"factor": "factor"}),
    "dynamic": Kind(DynamicScaling, {"factor": "factor"}),
    "yarn": Kind(
        YarnScaling,
        {
            "factor": "factor",
            CONTEXT: "context",
            "beta_fast": "fast",
            "beta_slow": "slow",
            "attention_factor": "attention",
            "mscale": "mscale",
            "mscale_all_dim": "mscale_all",
            "truncate": "truncate",
        },
        ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate"),
    ),
    "llama3": Kind(
        Llama3Scaling,
        {"factor": "factor", "low_freq_factor": "low", "high_freq_factor": "high", CONTEXT: "context"},
    ),
}
KNOWN = [
    "rope_type",
    "type",
    "rope_theta",
    "partial_rotary_factor",
    *dict.fromkeys(n for k in KINDS.values() for n in k.names),
]
SHARE = "partial_rotary_factor"


def read_rope(value: Any, config: Mapping[str, Any], base: float = 10_000.0) -> dict[str, Any]:
    """The plain data of a config's `Rotary`. `base`: the default."""
    given = [config[name] for name in ("rope_parameters", "rope_scaling") if config.get(name) is not None]
    if len(given) == 2 and given[0] != given[1]:
        raise CheckpointError("rope_parameters and rope_scaling differ; keep the one that is right")
    if given and not isinstance(given[0], Mapping):
        raise CheckpointError(f"{given[0]!r} should be an object with a rope_type")
    bases = [config["rope_theta"]] if config.get("rope_theta") is not None else []
    shares = [config[SHARE]] if config.get(SHARE) is not None else []
    return parameters(given[0] if given else {}, bases, shares, base)


def parameters(given: Mapping[str, Any], bases: list[Any], shares: list[Any], base: float) -> dict[str, Any]:
    """The plain data of a `Rotary` from an object of rotary parameters. `bases`, `shares`: values that the config gives
    beside it; `base`: the default."""
    data = dict(given)
    if unknown := [name for name in data if name not in KNOWN]:
        raise CheckpointError(f"no rotary parameter {unknown[0]!r} is known{meant(unknown[0], KNOWN)}")
    kinds = {str(k) for name in ("rope_type", "type") if (k := data.pop(name, None)) is not None}
    bases = [b for b in (data.pop("rope_theta", None), *bases) if b is not None]
    shares = [s for s in (data.pop(SHARE, None), *shares) if s is not None]
    if len(kinds) > 1 or any(b != bases[0] for b in bases[1:]):
        raise CheckpointError("rope_theta or the rope_type is given twice, with different values; keep the right one")
    if any(s != shares[0] for s in shares[1:]):
        raise CheckpointError(f"{SHARE} is given twice, with different values; keep the right one")
    word = kinds.pop() if kinds else "default"
    if word not in KINDS:
        hint = meant(word, KINDS)
        raise CheckpointError(f"rotary scaling {word!r} is not supported; known: {', '.join(KINDS)}{hint}")
    kind = KINDS[word]
    if surplus := [name for name in data if name not in kind.names]:
        raise CheckpointError(f"a rotary scaling of type {word!r} has no {surplus[0]!r}")
    if absent := [n for n in kind.names if n not in data and n not in kind.optional]:
        raise CheckpointError(f"rotary scaling {word!r} needs {', '.join(absent)}")
    scaling = None
    if kind.spec is not None:  # what is left out, or null, means its usual value
        own = {kind.names[n]: v for n, v in data.items() if v is not None or n not in kind.optional}
        scaling = {"kind": kind.spec.__name__} | own
    out = {"kind": "Rotary", "base": bases[0] if bases else base, "scaling": scaling}
    return out | {"share": shares[0]} if shares else out


def write_rope(value: Rotary, design: Design) -> dict[str, Any]:
    """`rope_parameters` as transformers 5 writes it. Raises UsageError for a scaling that it does not know."""
    out: dict[str, Any] = {"rope_theta": value.base}
    if value.share != 1.0:
        out[SHARE] = value.share
    for word, kind in KINDS.items():
        if type(value.scaling) is (kind.spec or type(None)):
            plain = None if kind.spec is None else kind.spec()
            fields = {theirs: getattr(value.scaling, ours) for theirs, ours in kind.names.items()}
            usual = {n for n in kind.optional if fields[n] == getattr(plain, kind.names[n])}
            return out | {"rope_type": word} | {n: v for n, v in fields.items() if n not in usual}
    raise UsageError(f"this layout has no word for {value.scaling}")
