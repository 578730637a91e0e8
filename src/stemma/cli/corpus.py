"""`data clean`, `data stats`, `data cache`: prepare and inspect text."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

import click

from stemma.cli import command, console, echo, emit
from stemma.cli.complete import complete_data
from stemma.cli.texts import GRAMMAR
from stemma.errors import UsageError


@command(name="clean", epilog=GRAMMAR)
@click.argument("source", metavar="SPEC", shell_complete=complete_data)
@click.option("--out", required=True, type=click.Path(), help="Directory for the text and the report.")
@click.option("--steps", "listed", default="exact,near,gopher", show_default=True, help="The steps, in this order.")
@click.option("--executor", type=click.Choice(["local", "slurm", "ray"]), help="Run the steps as tasks of datatrove.")
@click.option("--tasks", type=click.IntRange(min=1), help="Number of tasks.  [default with --executor: 8]")
@click.option("--option", "options", multiple=True, metavar="KEY=VALUE", help="A setting of the executor.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def clean(
    source: str,
    out: str,
    listed: str,
    executor: Literal["local", "slurm", "ray"] | None,
    tasks: int | None,
    options: tuple[str, ...],
    as_json: bool,
) -> None:
    """Remove duplicates and poor documents from a text.

    SPEC is a text (see below). OUT gets `text`, a folder of JSON lines to train on, and
    `report.json`: what each step removed, with examples.

    \b
    exact       the same words as an earlier document
    near        nearly the same (MinHash)
    dedup       exact,near
    gopher      quality rules of Gopher
    repetition  repeated lines, paragraphs and n-grams, after Gopher
    c4          line and page rules of C4
    script      mostly in another script than Latin
    code        filters of source files, after Codex

    Thresholds are the published ones unless given: --steps "near(threshold=0.7),gopher(min_words=20)".

    With --executor the same steps run as tasks of datatrove: on this machine, under Slurm (--option time=2:00:00
    --option partition=cpu) or with Ray. Run the same command again to finish missing tasks.
    """
    from stemma.data import cleaned, cleaning

    steps = cleaning.parse(listed)
    if executor is None:
        if tasks is not None or options:
            raise UsageError("--tasks and --option are for an --executor: local, slurm or ray")
        found: dict[str, Any] | None = cleaned.write(source, Path(out), steps)
    else:
        from stemma.data import cluster

        found = cluster.distribute(source, Path(out), steps, executor, tasks or 8, settings(options))
    if found is None:
        echo(f"the jobs are submitted; the last one writes {Path(out) / 'report.json'}")
        return
    if as_json:
        emit(found)
        return
    show(found, Path(out) / "text")


def show(found: dict[str, Any], text: Path) -> None:
    """Print what each step removed, with examples."""
    from stemma.data.cleaning import Tally

    screen = console()
    for plain in found["report"]:
        tally = Tally(**plain)
        screen.print(tally.sentence())
        for line in tally.advice():
            screen.print(f"  {line}", soft_wrap=True)
        for example in tally.examples:
            line = f"    {example['name']}: {example['why']}: {example['text']}"
            screen.print(line, style="dim", no_wrap=True, overflow="ellipsis")
    screen.print(f"{found['documents']:,} documents: {text}", soft_wrap=True)


def settings(options: tuple[str, ...]) -> dict[str, Any]:
    """`--option KEY=VALUE` as a mapping, with integers and booleans parsed."""
    found: dict[str, Any] = {}
    for item in options:
        name, equals, value = item.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"--option {item!r} is not KEY=VALUE, such as --option partition=cpu")
        words = {"true": True, "false": False}
        found[name] = int(value) if value.isdigit() else words.get(value.lower(), value)
    return found


@command(name="stats", epilog=GRAMMAR)
@click.argument("source", metavar="SPEC", shell_complete=complete_data)
@click.option("--tokenizer", type=click.Path(), metavar="DIR", help="Count tokens too, with this tokenizer.")
@click.option("--passed-over", is_flag=True, help="List all files, links and lines that are not read, and why.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def stats(source: str, tokenizer: str | None, passed_over: bool, as_json: bool) -> None:
    """Count the documents, bytes, tokens and duplicates of a text, and show how long documents are.

    A duplicate is a document with the same words as an earlier one, ignoring case, punctuation and spaces.
    """
    from stemma.data import survey

    words = None
    if tokenizer is not None:
        from stemma.text import Tokenizer

        words = Tokenizer.load(Path(tokenizer))
    found = survey.survey(source, words)
    if as_json:
        emit(found)
        return
    echo(f"documents    {found['documents']:>15,}")
    echo(f"bytes        {found['bytes']:>15,}")
    echo(f"characters   {found['characters']:>15,}")
    if found["tokens"] is not None:
        rate = found["bytes"] / max(found["tokens"], 1)
        echo(f"tokens       {found['tokens']:>15,}  {rate:.2f} bytes a token")
    share = found["duplicate_bytes"] / max(found["bytes"], 1)
    echo(f"duplicates   {found['duplicates']:>15,}  {share:.1%} of the text")
    if found["licence"]:
        echo(f"licence      {found['licence']}")
    for language, number in (found["languages"] or {}).items():
        echo(f"  {language:<11}{number:>15,}  documents")
    held = found["lengths"]
    echo(
        f"\n{held['unit']} a document: median {held['median']:,}, half of them {held['q1']:,} to {held['q3']:,}, "
        f"all {held['least']:,} to {held['most']:,}"
    )
    encoding = (getattr(sys.stdout, "encoding", None) or "ascii").lower()
    for line in survey.histogram(held["bins"], min(console().width, 100), encoding.startswith("utf")):
        echo(line)
    for note in found["notes"]:
        echo(f"note: {note}", err=True)
    if passed_over:
        for why, where in found["passed_over"]:
            echo(f"{where}: {why}")


@command(name="cache")
@click.option("--clear", is_flag=True, help="Delete the shared stores; those of runs stay.")
@click.option("--json", "as_json", is_flag=True, help="Print plain data as JSON.")
def cache(clear: bool, as_json: bool) -> None:
    """List the token stores that runs share, or delete them."""
    from stemma.data import shared

    if clear:
        echo(f"{shared.clear() / 1e6:,.1f} MB were deleted from {shared.root()}")
        return
    found = shared.stores()
    if as_json:
        emit([{"path": str(path), "bytes": size, "source": name or None} for path, size, name in found])
        return
    for _, size, name in found:
        echo(f"{size / 1e6:>9,.1f} MB  {name or 'not finished'}")
    echo(f"{sum(size for _, size, _ in found) / 1e6:>9,.1f} MB in {shared.root()}")
