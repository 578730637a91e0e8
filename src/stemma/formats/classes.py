"""Model classes (`BertForMaskedLM`): the heads and label names that a config gives, and the class of a design."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stemma import spec
from stemma.declare.family import Design
from stemma.errors import CheckpointError, UsageError, did_you_mean
from stemma.formats.keys import Layout
from stemma.nn.parts import Choose, Classify, Heads, Tag

PROBLEMS = {
    "single": "single_label_classification",
    "multi": "multi_label_classification",
    "regression": "regression",
}


def class_names(config: Mapping[str, Any]) -> list[str]:
    """`architectures` of a config. Raises CheckpointError if it is no list of names."""
    listed = config.get("architectures") or []
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise CheckpointError(f"config.json: architectures={listed!r} should be a list of class names")
    return listed


def class_in(layout: Layout, config: Mapping[str, Any]) -> str | None:
    """The first class of a config that the layout knows."""
    return next((name for name in class_names(config) if name in layout.classes), None)


def heads_wanted(layout: Layout, config: Mapping[str, Any]) -> Heads:
    """The heads of a config's class, with its number of labels. Raises CheckpointError for an unknown class."""
    names = class_names(config)
    if not names:
        return Heads()  # an old file names no class; its heads are what it holds
    named_class = class_in(layout, config)
    if named_class is None:
        raise CheckpointError(
            f"config.json: class {names[0]!r} is not supported; known: {', '.join(layout.classes)}"
            f"{did_you_mean(names[0], layout.classes)}"
        )
    heads = layout.classes[named_class]
    if (field := _counted(heads)) is not None:
        named, number = config.get("id2label"), config.get("num_labels")
        if named is not None and not isinstance(named, Mapping):
            raise CheckpointError(f"config.json: id2label={named!r} should be an object of numbers and names")
        heads = spec.edit(heads, {f"task.{field}": len(named) if named else number or layout.labels})
    if isinstance(heads.task, Classify) and (problem := config.get("problem_type")) is not None:
        words = {theirs: ours for ours, theirs in PROBLEMS.items()}
        if problem not in words:
            hint = did_you_mean(str(problem), words)
            raise CheckpointError(
                f"config.json: problem_type={problem!r} is not known; known: {', '.join(words)}{hint}"
            )
        heads = spec.edit(heads, {"task.problem": words[problem]})
    elif isinstance(heads.task, Classify) and heads.task.labels == 1:
        heads = spec.edit(heads, {"task.problem": "regression"})  # the convention where no problem is named
    return heads


def _counted(heads: Heads) -> str | None:
    """The field of a task head that holds the number of labels."""
    match heads.task:
        case Classify() | Tag():
            return "labels"
        case Choose(through=int()):
            return "through"
    return None


def label_names(config: Mapping[str, Any], heads: Heads) -> tuple[str, ...]:
    """The names of a task head's labels, in order; empty if a config does not name each."""
    field, named = _counted(heads), config.get("id2label")
    if field is None or not isinstance(named, Mapping):
        return ()
    count = getattr(heads.task, field)
    if {str(i) for i in named} != {str(i) for i in range(count)}:
        return ()
    by_number = {str(i): name for i, name in named.items()}
    return tuple(str(by_number[str(i)]) for i in range(count))


def write_labels(heads: Heads, names: tuple[str, ...] = ()) -> dict[str, Any]:
    """The keys for a task head's labels, with `names` if there are as many."""
    out: dict[str, Any] = {}
    if (field := _counted(heads)) is not None:
        count = getattr(heads.task, field)
        names = names if len(names) == count else tuple(f"LABEL_{i}" for i in range(count))
        out["id2label"] = {str(i): name for i, name in enumerate(names)}
        out["label2id"] = {name: i for i, name in enumerate(names)}
    if isinstance(heads.task, Classify):
        out["problem_type"] = PROBLEMS[heads.task.problem]
    return out


def class_name(layout: Layout, design: Design) -> str:
    """The class for a design: the one with its heads, else with most of them. Raises UsageError if there is none for
    its task head or structure."""
    heads = design.arch.heads
    known = {n: h for n, h in layout.classes.items() if _form(h) == _form(heads)}
    if not known:
        raise UsageError(f"the {layout.model_type!r} layout has no class for the task head {heads.task}")
    known = {n: h for n, h in known.items() if _fits(design, layout.variants.get(n, {}), layout)}
    if not known:
        raise UsageError(f"the {layout.model_type!r} layout has no class for this head on an {design.arch.structure}")

    def shared(has: Heads) -> tuple[bool, int, bool]:
        pairs = list(zip(present(has), present(heads), strict=True))
        fits = all(ours for theirs, ours in pairs if theirs)
        return fits, sum(theirs and ours for theirs, ours in pairs), type(has.lm) is type(heads.lm)

    return max(known, key=lambda name: shared(known[name]))


def _fits(design: Design, variant: Mapping[str, Any], layout: Layout) -> bool:
    """Whether a design has what a class changes, and not what only other classes change."""
    if any(spec.get(design, path) != value for path, value in variant.items()):
        return False
    others = [v for v in layout.variants.values() if v != variant]
    return not any(v and all(spec.get(design, path) == value for path, value in v.items()) for v in others)


def _form(heads: Heads) -> Any:
    """A task head without what may differ within a class: labels and rates."""
    if heads.task is None:
        return None
    free = {"labels": 2, "through": 2, "problem": "single", "dropout": 0.0}
    return spec.edit(heads.task, {k: v for k, v in free.items() if getattr(heads.task, k, None) is not None})


def present(heads: Heads) -> tuple[bool, ...]:
    """Which pretraining heads are there: lm, pooler, pair, detect."""
    return heads.lm is not None, heads.pooler is not None, heads.pair, heads.detect is not None
