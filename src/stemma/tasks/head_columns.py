"""Which columns of rows a task with a head reads: by their names, where nobody names them."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from stemma import spec
from stemma.declare.tasks import RowTask
from stemma.errors import UsageError, did_you_mean

Names = tuple[str, ...]

# names of pairs of texts, the first that are there; then of one text, and of what is learnt of it
PAIRS: tuple[tuple[str, str], ...] = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("text", "text_pair"),
    ("text", "pair"),
    ("query", "passage"),
)
TEXT: Names = ("text", "sentence", "review", "content", "document", "body", "comment", "tweet", "title", "input")
LABEL: Names = ("label", "labels", "category", "categories", "class", "target", "sentiment", "topic", "intent", "y")
SCORE: Names = ("label", "score", "similarity", "rating", "value", "target", "stars", "y")
FIELDS: dict[str, dict[str, Names]] = {  # of a task by its word: names that its columns may have
    "classify": {"label": LABEL},
    "regress": {"label": SCORE},
    "tag": {"words": ("tokens", "words"), "tags": ("ner_tags", "tags", "labels", "pos_tags", "chunk_tags")},
    "answer": {"question": ("question", "query"), "context": ("context", "passage"), "answers": ("answers", "answer")},
    "choose": {
        "text": ("text", "question", "context", "startphrase", "ctx", "sent1", "premise", "prompt"),
        "choices": ("choices", "endings", "options", "candidates"),
        "label": ("label", "answer", "answerKey", "gold"),
    },
}
SEVERAL = ("ending{}", "choice{}", "option{}", "sol{}")  # columns of one choice each


def named(task: RowTask, rows: Sequence[Mapping[str, Any]], without: Collection[str] = ()) -> RowTask:
    """`task` with the columns that these rows have. `without`: fields that need none. Raises UsageError for a column
    that no row has, and for a field that no column's name fits."""
    there = list(dict.fromkeys(name for row in rows for name in row))
    fields = [f.name for f in dataclasses.fields(task)]
    for name in fields:
        for column in columns_of(task, name):
            if column not in there:
                hint = did_you_mean(column, there)
                raise UsageError(f"no row has a column {column!r} for the {name}; there are {listed(there)}{hint}")
    found: dict[str, Any] = {}
    for name, known in FIELDS.get(task.word, {}).items():
        if not getattr(task, name):
            found[name] = _column(known, there, [v for v in found.values() if isinstance(v, str)])
    if "choices" in found:
        found["choices"] = (found["choices"],) if found["choices"] else _several(there)
    if "pair" in fields and not spec.get(task, "text"):
        found |= _texts(there, {spec.get(task, "label"), found.get("label"), spec.get(task, "pair")}, rows)
    if getattr(task, "pair", ""):
        found.pop("pair", None)
    needed = [name for name in dict.fromkeys(("text", *FIELDS.get(task.word, {}))) if name in fields]
    for name in needed:
        if name not in without and not getattr(task, name) and not found.get(name):
            raise UsageError(
                f"which column holds the {name}? Name it by --{name}: the rows have {listed(there)}, and none of these "
                "is a usual name for it"
            )
    return spec.edit(task, {name: value for name, value in found.items() if value})


def columns_of(task: RowTask, name: str) -> Names:
    """The columns that a field of a task names."""
    if name not in ("text", "pair", "label", "target", "words", "tags", "question", "context", "answers", "choices"):
        return ()
    value = getattr(task, name)
    return tuple(value) if isinstance(value, tuple) else (value,) if value else ()


def listed(names: Sequence[str]) -> str:
    """Names for a message."""
    return ", ".join(map(repr, names)) or "no columns"


def _column(known: Names, there: Sequence[str], taken: Sequence[str]) -> str:
    """The first known name that is there, whatever its case; "" if none is."""
    by_name = {name.lower(): name for name in there if name not in taken}
    return next((by_name[name.lower()] for name in known if name.lower() in by_name), "")


def _texts(there: Sequence[str], taken: set[str | None], rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The columns of a text and of its pair, if it has one."""
    free = [name for name in there if name not in taken]
    for first, second in PAIRS:
        a, b = _column((first,), free, ()), _column((second,), free, ())
        if a and b:
            return {"text": a, "pair": b}
    if one := _column(TEXT, free, ()):
        return {"text": one}
    texts = [name for name in free if all(isinstance(row.get(name), str) for row in rows)]
    return {"text": texts[0]} if len(texts) == 1 else {}


def _several(there: Sequence[str]) -> Names:
    """Columns that hold one choice each: ending0, ending1, ..."""
    for pattern in SEVERAL:
        for begin in (0, 1):
            count = 0
            while pattern.format(begin + count) in there:
                count += 1
            if count > 1:
                return tuple(pattern.format(begin + i) for i in range(count))
    return ()
