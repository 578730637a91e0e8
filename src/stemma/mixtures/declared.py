"""Tasks by name: files that declare a user's own sets, the chains of thought as the Flan repository publishes them, and
the stand-in.

A declaration is TOML or JSON, with a table for each task:

    [rte]
    file = "rte/train.jsonl"                                 # beside the declaration; rows as `--data` reads them
    shape = "entailment"                                     # ten ready templates; or give `templates`
    columns = { premise = "sentence1", hypothesis = "sentence2", answer = "label" }
    answers = { 0 = "yes", 1 = "no" }                        # what the values of the answer's column are called
    options = ["yes", "no"]                                  # or the name of a column with a list
    cluster = "natural language inference"                   # known for the 62 sets of FLAN 2021
    collection = "flan"                                      # or t0, niv2, cot, dialog

    [mine]
    file = "mine.csv"
    cluster = "letters"
    templates = [["Is {a} before {b}?"], ["{a} and {b}\n{options}Is the first one earlier?", "{answer}"]]
    turned = [["Give two letters for the answer {answer}.", "{a} {b}"]]
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from stemma import disk
from stemma.data import compression, read
from stemma.data.files import ROWS
from stemma.errors import DataError, MalformedError, UsageError, brief, did_you_mean
from stemma.mixtures import stand_in
from stemma.mixtures.published import COLLECTIONS, COT, FLAN, cluster_of
from stemma.mixtures.shapes import SHAPES
from stemma.mixtures.tasks import Task, Template

KEYS = {
    "file": str,
    "shape": str,
    "cluster": str,
    "collection": str,
    "columns": {str: str},
    "constants": {str: str},
    "answers": {str: str},
    "options": Any,
    "templates": [[str]],
    "turned": [[str]],
    "inverted": [[str]],
}


def tasks(sources: Sequence[str]) -> list[Task]:
    """The tasks that `sources` name: declarations (.toml, .json), files of chains of thought (.tsv), folders of these,
    `builtin:flan`. Raises UsageError for what is no such source, and for two tasks of one name."""
    found: list[Task] = []
    for source in sources:
        path = Path(source).expanduser()
        if source == stand_in.NAME:
            found += stand_in.tasks()
        elif path.is_dir():
            files = sorted(path.glob("*.tsv"))
            if not files:
                raise UsageError(f"{source} holds no .tsv file of chains of thought; name a declaration (.toml, .json)")
            found += [chains(file) for file in files]
        elif not path.is_file():
            raise UsageError(f"there is no file or folder {source}{disk.nearest_path(source)}")
        elif path.suffix == ".tsv":
            found.append(chains(path))
        elif path.suffix in (".toml", ".json"):
            found += declared(path)
        else:
            raise UsageError(f"{source} is neither a declaration of tasks (.toml, .json) nor chains of thought (.tsv)")
    names = [task.name for task in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"two tasks are called {twice}; give one another name")
    return found


def rows_of(data: str, folder: Path) -> Iterator[Mapping[str, Any]]:
    """The rows that a declaration's `file` names; a path is one beside the declaration."""
    inner = data if "://" in data or data.startswith("builtin:") else str(folder / data)
    for document in read(inner, field=ROWS).documents():
        yield json.loads(document.text)


def declared(path: Path) -> list[Task]:
    """The tasks of a declaration. Raises UsageError for keys and values that it may not have."""
    if path.suffix == ".json":
        held = disk.read_object(path)
    else:
        try:
            held = tomllib.loads(disk.read_text(path))
        except tomllib.TOMLDecodeError as error:
            raise UsageError(f"{path} is not TOML: {error}") from None
    if not held:
        raise UsageError(f"{path} declares no task")
    return [_task(path, name, table) for name, table in held.items()]


def _task(path: Path, name: str, table: Any) -> Task:
    where = f"{path}: task {name}"
    if not isinstance(table, dict):
        raise UsageError(f"{where} is {brief(table)}, and a table was expected")
    if odd := next((key for key in table if key not in KEYS), None):
        raise UsageError(f"{where} has no key {odd!r} (known: {', '.join(KEYS)}){did_you_mean(odd, KEYS)}")
    if "answers" in table and isinstance(table["answers"], dict):
        table = {**table, "answers": {str(key): value for key, value in table["answers"].items()}}
    try:
        disk.typed(path, table, {key: KEYS[key] for key in table}, name)
    except MalformedError as error:
        raise UsageError(str(error).replace(" is damaged: ", ": task ", 1)) from None
    if "file" not in table:
        raise UsageError(f"{where} names no file")
    templates, inverted = _templates(where, table)
    cluster = table.get("cluster", cluster_of(name))
    if not cluster:
        raise UsageError(f"{where} names no cluster, and {name} is no set of FLAN 2021 whose cluster is known")
    collection = table.get("collection", COT if table.get("shape") == "reasoning" else FLAN)
    if collection not in COLLECTIONS:
        raise UsageError(
            f"{where} has collection {collection!r}; known: {', '.join(COLLECTIONS)}"
            f"{did_you_mean(collection, COLLECTIONS)}"
        )
    options = table.get("options", ())
    if not isinstance(options, str) and not all(isinstance(one, str) for one in options):
        raise UsageError(f"{where} has options {brief(options)}; texts or the name of a column were expected")
    return Task(
        name,
        cluster,
        collection,
        templates,
        partial(rows_of, table["file"], path.parent),
        inverted,
        table.get("columns", {}),
        table.get("constants", {}),
        table.get("answers", {}),
        options if isinstance(options, str) else tuple(options),
    )


def _templates(where: str, table: Mapping[str, Any]) -> tuple[tuple[Template, ...], tuple[Template, ...]]:
    """The templates of a table, and those of its inverted rows."""
    if ("shape" in table) == ("templates" in table):
        raise UsageError(f"{where} needs a shape ({', '.join(SHAPES)}) or templates, one of the two")
    own, turned, inverted = (_written(where, key, table) for key in ("templates", "turned", "inverted"))
    if "shape" not in table:
        return (*own, *turned), inverted
    if table["shape"] not in SHAPES:
        raise UsageError(
            f"{where} has shape {table['shape']!r}; known: {', '.join(SHAPES)}{did_you_mean(table['shape'], SHAPES)}"
        )
    shape = SHAPES[table["shape"]]
    return (*shape.templates, *turned), (*shape.inverted, *inverted)


def _written(where: str, key: str, table: Mapping[str, Any]) -> tuple[Template, ...]:
    """The templates under a key: a prompt each, and perhaps a completion."""
    for pair in table.get(key, ()):
        if len(pair) not in (1, 2):
            raise UsageError(f"{where}: a template of {key} is a prompt and perhaps a completion, not {brief(pair)}")
    plain = Template("")
    return tuple(
        Template(pair[0], pair[1] if len(pair) > 1 else plain.completion, turned=key != "templates")
        for pair in table.get(key, ())
    )


# ---------------------------------------------------------------- chains of thought as published


def chains(path: Path) -> Task:
    """A file of chains of thought as the Flan repository publishes them (flan/v2/cot_data): question, answer and
    rationale between tabs, without a header, line ends written as \\n."""
    name = path.name.partition(".")[0].removesuffix("_train")
    shape = SHAPES["reasoning"]
    cluster = cluster_of(name) or "chains of thought"
    return Task(name, cluster, COT, shape.templates, partial(_chain_rows, path), shape.inverted)


def _chain_rows(path: Path) -> Iterable[Mapping[str, Any]]:
    for number, line in enumerate(compression.lines(path, ""), 1):
        parts = line.rstrip("\r\n").split("\t")
        if len(parts) != 3:
            raise DataError(
                f"{path}:{number} has {len(parts)} columns; chains of thought have three: question, answer, rationale"
            )
        question, answer, rationale = (part.replace("\\n", "\n").strip() for part in parts)
        yield {"question": question, "answer": answer, "rationale": rationale}
