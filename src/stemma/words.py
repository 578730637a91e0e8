"""Families and their changes in words, for the command line, reports and pictures."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from stemma import families, spec
from stemma.declare.family import Family
from stemma.errors import UsageError
from stemma.spec import Change

# The paths that say most about a change, first; `tree` shows as many changes as fit.
WEIGHT = (
    "arch.structure",
    "objective",
    "arch.position",
    "arch.norm",
    "arch.mlp",
    "arch.residual",
    "arch.mask",
    "arch.attention",
    "arch.heads.lm",
    "objective.pairs",
    "text.tokenizer",
    "arch.embed_norm",
    "arch.mlp.act",
    "arch.heads",
    "arch.heads.pair",
    "arch.heads.pooler",
    "text.lower",
    "recipe.optimizer",
    "recipe.batch",
    "recipe.steps",
    "recipe.lr",
    "arch.norm.eps",
)


TITLES = {
    "arch": "architecture",
    "dims": "sizes",
    "objective": "objective",
    "text": "text",
    "recipe": "recipe",
}
PARTS = ("arch", "objective", "text", "recipe")


def children(name: str | None) -> list[Family]:
    """The families whose parent is `name`, the oldest first."""
    found = [f for f in families.tree().values() if (f.parent.name if f.parent else None) == name]
    return sorted(found, key=lambda f: (f.about.year, f.name))


def has_weights(family: Family) -> bool:
    return any(size.hub for size in family.sizes.values())


def value_text(value: Any, path: str = "") -> str:
    """A leaf for people: numbers with separators, `unpublished` for a value that a recipe leaves open."""
    if value is None:
        return ("none" if path.endswith(("clip", "ramp")) else "unpublished") if path.startswith("recipe.") else "none"
    if value == "" and path.startswith("recipe."):
        return "unpublished"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (tuple, list)):
        return ", ".join(f"({value_text(v)})" if isinstance(v, tuple) else value_text(v) for v in value) or "none"
    if dataclasses.is_dataclass(value):
        return counted(str(value).removesuffix("()"))
    return str(value)


def counted(text: str) -> str:
    """Equal components in a row are written once, with their number: `5 x Sliding(window=512)`."""
    return re.sub(r"(\w+\([^()]*\))((?:, \1)+)", lambda m: f"{1 + m[2].count(m[1])} x {m[1]}", text)


def phrase(path: str, new: Any) -> str:
    """One change in a word or two, for the tree."""
    words = path.split(".")
    name = ".".join(words[-2:]) if words[1:2] in (["init"], ["dropout"], ["norm"]) else words[-1]
    if path == "text.lower":
        return "lower case" if new else "cased"
    if path.startswith("arch.heads.") and isinstance(new, bool):
        return f"{name} head" if new else f"no {name} head"
    if isinstance(new, bool):
        return name if new else f"no {name}"
    if dataclasses.is_dataclass(new):
        inner = [getattr(new, f.name) for f in dataclasses.fields(new)]
        whole = len(inner) == 1 and isinstance(inner[0], int) and not isinstance(inner[0], bool)
        return type(new).__name__ + (f"({inner[0]})" if whole else "")
    if path in ("arch.structure", "text.tokenizer", "arch.mlp.act"):
        return str(new)
    if new is None:
        return f"{name} unpublished" if path.startswith("recipe.") and name not in ("clip", "ramp") else f"no {name}"
    if isinstance(new, int) and new >= 10_000:
        for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
            if new >= size:
                return f"{name} {new / size:.3g}{letter}"
    if path == "recipe.data":
        return "data"
    return f"{name} {value_text(new, path)}"


def ranked(changes: Mapping[str, Any]) -> list[str]:
    """The paths of changes, the most important first."""

    def weight(path: str) -> tuple[int, int]:
        known = path in WEIGHT and not (changes[path] is None and path[:7] == "recipe.")
        return (WEIGHT.index(path) if known else len(WEIGHT), 0 if path.startswith("arch") else 1)

    return sorted(changes, key=weight)


def brief(changes: Mapping[str, Any], width: int) -> str:
    """As many changes as fit into `width` columns, and the number of the others."""
    words, shown = [phrase(path, changes[path]) for path in ranked(changes)], ""
    for i, word in enumerate(words):
        longer = f"{shown}, {word}" if shown else word
        rest = f" +{len(words) - i - 1}" if i + 1 < len(words) else ""
        if shown and len(longer) + len(rest) > width:
            return f"{shown} +{len(words) - i}"
        shown = longer
    return shown


# ---------------------------------------------------------------- where a value came from, and the way between two


def origin(family: Family, path: str) -> str:
    """The name of the ancestor that set this value: the furthest one that has it unchanged down to `family`."""
    here = family
    while here.parent is not None and same(family, here.parent, path):
        here = here.parent
    return here.name


def same(one: Any, two: Any, path: str) -> bool:
    """Whether both have the same leaf at `path`. Components with fields are compared by type only."""
    try:
        a, b = spec.get(one, path), spec.get(two, path)
    except UsageError:  # the other's component has no such field
        return False
    return type(a) is type(b) if dataclasses.is_dataclass(a) else bool(a == b)


def common_path(a: Family, b: Family) -> tuple[list[str], str | None, list[str]]:
    """(names from `a` up, the nearest common ancestor, names down to `b`), without the ancestor in the lists."""
    up, down = [f.name for f in a.lineage], [f.name for f in b.lineage]
    meet = next((name for name in up if name in down), None)
    left = up[: up.index(meet)] if meet else up
    right = down[: down.index(meet)] if meet else down
    return left, meet, right[::-1]


def path_text(a: Family, b: Family) -> str:
    left, meet, right = common_path(a, b)
    if meet is None:
        return f"{a.name} and {b.name} have no common ancestor"
    return "".join(f"{n} -> " for n in left) + meet + "".join(f" <- {n}" for n in right)


def compare(a: str, b: str) -> tuple[str, str, list[Change]]:
    """(name of `a`, name of `b`, changes from `a` to `b`). Two families are compared as families; otherwise sizes."""
    known = families.tree()
    a, b = families.known_as(a), families.known_as(b)
    if a in known and b in known:
        return a, b, known[b].diff(known[a])
    old, new = families.design(a), families.design(b)
    changes = [c for part in (*PARTS, "dims") for c in spec.diff(getattr(old, part), getattr(new, part), part + ".")]
    return old.name, new.name, changes


# ---------------------------------------------------------------- tuning


def stage_rows(family: Family) -> list[tuple[str, list[tuple[str, str]]]]:
    """The stages of a tuned family's training in words: (name, [(what, value)]); values that nobody knows are left out,
    values from memory are marked."""
    return [] if family.tuning is None else [row for stage in family.tuning.stages for row in _stage_rows(stage)]


def command_of(family: Family) -> str:
    """The command that tunes a model as the family was tuned; empty where none does."""
    if family.tuning is None or family.edge == "unpublished":
        return ""
    return f"stemma tune {family.name} --from MODEL" if any(s.runs for s in family.tuning.stages) else ""


def _stage_rows(stage: Any) -> list[tuple[str, list[tuple[str, str]]]]:
    rows: list[tuple[str, str]] = []
    for entry in dataclasses.fields(stage):
        value = getattr(stage, entry.name)
        if entry.name in ("template", "remembered", "then", "start") or value == entry.default or value is None:
            continue
        if entry.name == "mixture":
            rows += [("mixture" if n == 0 else "", _part(part)) for n, part in enumerate(value)]
        elif entry.name == "changes":
            rows += [("sets", f"{path}={value_text(new, path)}") for path, new in value]
        else:
            known = "" if entry.name not in stage.remembered else " (recalled)"
            rows.append((STAGE_WORDS.get(entry.name, entry.name), _values_text(value) + known))
    inner = [("then", getattr(stage, "then", None)), ("start", getattr(stage, "start", None))]
    more = [row for _, other in inner if other is not None for row in _stage_rows(other)]
    return [(stage.label, rows), *more]


STAGE_WORDS = {
    "examples": "examples a step",
    "lr": "peak rate",
    "lr_share": "rate, of pretraining's",
    "warmup": "warm-up",
    "loss_on": "loss on",
    "stand_in": "stands in",
    "average": "running mean",
}


def _part(source: Any) -> str:
    share = f"{source.share:.1%}" if source.share is not None else ""
    examples = f"{source.examples:,} examples" if source.examples is not None else ""
    cap = f"at most {source.cap:,} of one set" if source.cap is not None else ""
    return ": ".join(text for text in (source.name, ", ".join(t for t in (share, examples, cap) if t)) if text)


def _values_text(value: Any) -> str:
    return ", ".join(value_text(item) for item in value) if isinstance(value, tuple) else value_text(value)
