"""`data functions`: rows made of the functions of Python files."""

from __future__ import annotations

from pathlib import Path

import click

from stemma import disk
from stemma.cli import command, echo
from stemma.cli.complete import complete_data
from stemma.cli.texts import GRAMMAR
from stemma.errors import DataError

ANSWERS = ("body", "docstring", "code")


@command(name="functions", epilog=GRAMMAR)
@click.argument("source", metavar="SPEC", shell_complete=complete_data)
@click.option("--answer", type=click.Choice(ANSWERS), default="body", show_default=True, help="What a row asks for.")
@click.option("--out", required=True, type=click.Path(dir_okay=False), help="The file of JSON lines.")
def functions(source: str, answer: str, out: str) -> None:
    """Make rows of the functions of Python files, for `stemma tune`.

    \b
    body       signature and docstring, answered by the body (codex-s)
    docstring  the function, answered by its docstring (codex-d)
    code       a request for the function, answered by it (codellama-instruct)

    Taken are functions of a module, not of a class, that have a docstring and stand by themselves: they need no name of
    their module but its imports, which are put in front of them. Nothing is run, so nothing says that they are right:
    filter by tests of your own.
    """
    from stemma.data import read
    from stemma.samples import coding, docstrings
    from stemma.samples import functions as found

    make = {"body": found.written, "docstring": docstrings.described, "code": coding.asked}[answer]
    files = made = 0
    seen: set[str] = set()
    with disk.write_jsonl(Path(out)) as add:
        for document in read(source).documents():
            files += 1
            for function in found.of(document.text):
                if function.code not in seen:
                    seen.add(function.code)
                    made += 1
                    add(make(function))
        if not made:
            raise DataError(f"{source} has no Python function with a docstring that stands by itself in {files} texts")
    echo(f"{made:,} functions of {files:,} texts: {out}")
