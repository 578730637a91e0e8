"""`data apis`: questions and calls with documentation beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stemma import disk
from stemma.cli import command, echo
from stemma.cli.complete import complete_data

RETRIEVERS = ("none", "oracle", "bm25", "tfidf", "embedding")


@command(name="apis")
@click.argument("source", metavar="ROWS", shell_complete=complete_data)
@click.option("--out", required=True, type=click.Path(), metavar="FILE", help="Rows of prompt and completion.")
@click.option("--apis", "documents", metavar="DOCS", help="Documentation of calls.  [default: that of ROWS]")
@click.option("--retriever", type=click.Choice(RETRIEVERS), default="oracle", show_default=True, help="What finds it.")
@click.option("--model", metavar="MODEL", help="Whose vectors the retriever `embedding` compares.")
@click.option(
    "--share", type=click.FloatRange(0, 1), default=1.0, show_default=True, help="Of the rows with documentation."
)
@click.option("--seed", type=int, default=1, show_default=True, help="Decides which rows these are.")
def apis(
    source: str, out: str, documents: str | None, retriever: str, model: str | None, share: float, seed: int
) -> None:
    """Put documentation beside the questions of APIBench's ROWS, for Gorilla's retriever-aware training and tests.

    ROWS are of any of its three dialects (or builtin:calls); answers come out in one. A retriever finds one document a
    question: `oracle` that of the right call (as the paper trains), `bm25` (as the paper tests) or `tfidf` the one that
    shares most words, `embedding` the one whose vector by --model is nearest, `none` nothing. Rows whose text calls
    nothing are counted and passed over. FILE is what `stemma tune gorilla` reads.
    """
    from stemma.instruct.documents import made

    loaded: Any = None
    if model is not None:
        import stemma

        loaded = stemma.load(model)
    found = made(source, documents, retriever, share, seed, loaded)
    with disk.write_jsonl(Path(out)) as add:
        for row in found.rows:
            add(row)
    for note in found.notes:
        disk.tell(note)
    share_right = f" ({found.right / found.beside:.1%})" if found.beside else ""
    beside = f"{found.beside:,} with documentation, {found.right:,} of it that of the right call{share_right}"
    disk.tell(f"{len(found.rows):,} rows, {beside}")
    echo(out)
