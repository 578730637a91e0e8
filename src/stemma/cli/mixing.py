"""`data mixture`: rows of the mixtures that FLAN, the Flan collection and Tulu were tuned on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from stemma import disk
from stemma.cli import command, echo, emit
from stemma.cli.complete import complete_paths
from stemma.errors import UsageError


@command(name="mixture")
@click.argument("name", metavar="NAME")
@click.option("--from", "sources", multiple=True, metavar="SOURCE", help="Tasks, or NAME=ROWS for tulu; see above.")
@click.option("--out", type=click.Path(), help="The file of rows, JSON lines.  [default: NAME.jsonl]")
@click.option("--count", type=click.IntRange(min=1), help="FLAN: rows.  [default: each example within the caps once]")
@click.option("--hold-out", multiple=True, metavar="CLUSTER", help="FLAN: learn nothing of a cluster and of its like.")
@click.option("--evaluate", type=click.Path(), metavar="FILE", help="FLAN: rows of the clusters held out, zero-shot.")
@click.option(
    "--shots", type=click.IntRange(min=1), default=5, show_default=True, help="FLAN: examples of few-shot rows."
)
@click.option("--limit", type=click.IntRange(min=8), help="FLAN: tokens of a few-shot prompt.  [default: 1920]")
@click.option(
    "--tokenizer",
    metavar="MODEL",
    shell_complete=complete_paths,
    help="Counts tokens.  [default: 4 characters are one]",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Decides what is drawn, and how it is written.")
@click.option("--json", "as_json", is_flag=True, help="Print the counts as JSON.")
def mixture(name: str, sources: tuple[str, ...], out: str | None, as_json: bool, **options: Any) -> None:
    """Make the rows of the mixture NAME: flan2021, flan2022-a, flan2022-b (the paper's two), flan2022 (the release),
    flan2022-tulu2, tulu or tulu2.

    FLAN's SOURCE is a file that declares your sets (.toml, .json; `stemma.mixtures.declared` shows one), a file or
    folder of chains of thought as the Flan repository has them (.tsv), or builtin:flan, the stand-in. Tulu's SOURCE is
    NAME=ROWS, such as oasst1=trees.jsonl. Without any, what stands in is taken. The same command makes the same rows.
    """
    from stemma.mixtures import published, tulu

    path = Path(out or f"{name}.jsonl")
    if name in tulu.MIXTURES:
        counts = _tulu(tulu.MIXTURES[name], sources, path, options)
    elif name in published.MIXTURES:
        counts = _flan(published.mixture(name), sources, path, options)
    else:
        known = [*published.MIXTURES, *tulu.MIXTURES]
        from stemma.errors import did_you_mean

        raise UsageError(f"no mixture is called {name!r}; known: {', '.join(known)}{did_you_mean(name, known)}")
    if as_json:
        emit({"out": str(path), "counts": counts})
        return
    for what, found in counts.items():
        echo(f"{what}: " + ", ".join(f"{key} {n:,}" for key, n in found.items()))
    echo(str(path))


def _counter(model: str | None) -> Callable[[str], int] | None:
    """Counts the tokens of a text by a model's tokenizer; None without one."""
    if model is None:
        return None
    from stemma import formats

    tokenizer = formats.load(model, device="meta").tokenizer
    if tokenizer is None:
        raise UsageError(f"{model} has no tokenizer")
    return lambda text: len(tokenizer.encode(text, add_special=False))


def _flan(which: Any, sources: tuple[str, ...], out: Path, options: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Write the rows of a mixture of tasks, and those for evaluation; returns what was counted."""
    from stemma.mixtures import declared, stand_in
    from stemma.mixtures.making import How, Rows, estimated

    if options["evaluate"] and not options["hold_out"]:
        raise UsageError("--evaluate writes rows of clusters that are held out; name one with --hold-out")
    count = _counter(options["tokenizer"])
    how = How(options["seed"], options["shots"], options["limit"], count or estimated)
    made = Rows(which, _known(declared.tasks(sources or (stand_in.NAME,)), which), options["hold_out"], how)
    if not sources:
        disk.tell(f"note: {stand_in.NAME} stands in for the published sets; --from SOURCE takes your own")
    if count is None and any(form.few for part in which.parts for form, _ in part.forms):
        disk.tell("note: four characters are counted as a token; --tokenizer MODEL counts those of a model")
    if made.dropped:
        disk.tell(f"note: nothing is learnt of {', '.join(made.dropped)}")
    for what in made.without:
        disk.tell(f"note: task {what} is left out: its questions are those of a benchmark")
    for one in made.held:
        if one.wrong:
            disk.tell(f"note: {one.wrong:,} rows of task {one.task.name} cannot be read ({one.first_wrong})")
    with disk.write_jsonl(out) as add:
        for row in made.rows(options["count"] or made.epoch):
            add(row)
    counts: dict[str, dict[str, int]] = {}
    for (what, key), n in sorted(made.counts.items(), key=lambda one: (one[0][0], -one[1], one[0][1])):
        counts.setdefault(what, {})[key] = n
    if options["evaluate"]:
        apart = made.evaluated()
        with disk.write_jsonl(Path(options["evaluate"])) as add:
            for row in apart:
                add(row)
        counts["evaluated"] = {"rows": len(apart)}
        if made.open:
            disk.tell(f"note: without options, and so not among the rows to judge by: {', '.join(made.open)}")
    return counts


def _known(tasks: list[Any], which: Any) -> list[Any]:
    """The tasks whose collections a mixture has; what is left out of others is told."""
    there = {part.collection for part in which.parts}
    for collection in sorted({task.collection for task in tasks} - there):
        names = ", ".join(task.name for task in tasks if task.collection == collection)
        disk.tell(f"note: {which.name} has no tasks of the collection {collection}; left out are {names}")
    found = [task for task in tasks if task.collection in there]
    if empty := there - {task.collection for task in found}:
        disk.tell(f"note: no task is of the collection {' or '.join(sorted(empty))}; the others have its share")
    return found


def _tulu(which: Any, sources: tuple[str, ...], out: Path, options: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Write the rows of a mixture of sources; returns what was counted."""
    from stemma.mixtures import tulu

    for option in ("count", "hold_out", "evaluate", "limit"):
        if options[option]:
            raise UsageError(
                f"--{option.replace('_', '-')} is for FLAN's mixtures; {which.name} takes its sources whole"
            )
    named = dict(_named(source) for source in sources)
    if not named:
        named = {s.name: tulu.STAND_INS[s.name] for s in which.sources if s.name in tulu.STAND_INS}
        disk.tell(f"note: {', '.join(named.values())} stand in; --from NAME=ROWS takes your own")
    if missing := [source.name for source in which.sources if source.name not in named]:
        disk.tell(f"note: {which.name} has these sources too: {', '.join(missing)}")
    count = _counter(options["tokenizer"])
    if count is None and any(source.split and source.name in named for source in which.sources):
        disk.tell("note: long conversations stay whole; with --tokenizer MODEL they are divided as published")
    read = {name: _reader(rows) for name, rows in named.items()}
    made = tulu.Rows(which, read, options["seed"], count)
    with disk.write_jsonl(out) as add:
        for row in made.rows():
            add(row)
    for name, why in made.wrong.items():
        disk.tell(f"note: rows of {name} cannot be read; the first is {why}")
    counts: dict[str, dict[str, int]] = {}
    for (name, what), n in made.counts.items():
        counts.setdefault(name, {})[what] = n
    return counts


def _named(source: str) -> tuple[str, str]:
    name, mark, rows = source.partition("=")
    if not mark or not name or not rows:
        raise UsageError(f"{source!r} is not NAME=ROWS, such as oasst1=trees.jsonl")
    return name, rows


def _reader(spec: str) -> Callable[[], Iterator[Mapping[str, Any]]]:
    """Reads the rows that a spec names."""
    from stemma.data import read
    from stemma.data.files import ROWS

    def rows() -> Iterator[Mapping[str, Any]]:
        for document in read(spec, field=ROWS, strict=False).documents():
            yield json.loads(document.text)

    return rows
