"""`data self-instruct`, `data explain`: instructions that a model makes from seeds, explanations of a teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stemma import disk
from stemma.cli import command, echo
from stemma.cli.complete import complete_data
from stemma.errors import UsageError


@command(name="self-instruct")
@click.option(
    "--model", "where", required=True, metavar="MODEL|URL", help="A model, or an address of OpenAI's protocol."
)
@click.option("--name", help="The model's name at that address.")
@click.option("--seeds", shell_complete=complete_data, help="Rows of seed tasks.  [default: 24 of this project's own]")
@click.option("--out", required=True, type=click.Path(), help="Directory of what is made; resumed if it was begun.")
@click.option("--count", type=click.IntRange(min=1), default=100, show_default=True, help="Tasks to make.")
@click.option("--step-by-step", is_flag=True, help="Instructions first, then labels or not, then examples.")
@click.option("--prompts", type=click.IntRange(min=1), default=5, show_default=True, help="Prompts a round.")
@click.option("--seed", type=int, default=1, show_default=True, help="Decides what is shown and drawn.")
@click.option("--quiet", is_flag=True, help="Print no progress.")
def self_instruct(
    where: str,
    name: str | None,
    seeds: str | None,
    out: str,
    count: int,
    step_by_step: bool,
    prompts: int,
    seed: int,
    quiet: bool,
) -> None:
    """Let a model make tasks (instruction, input, output) from a few seeds.

    It is shown seeds and asked for more, in lists of whole tasks (Alpaca), or with --step-by-step as in the first
    paper: instructions, then whether their answers are labels, then examples. Those that are too short, too long, about
    what text cannot do, or like another (ROUGE-L above 0.7) are left out and counted. OUT/tasks.jsonl is what
    `stemma tune alpaca` reads. Stopped or killed, the same command goes on where it was.
    """
    from stemma.instruct import bootstrap

    seeds = seeds or str(Path(bootstrap.__file__).with_name("seeds.jsonl"))
    writer = writer_of(where, name)
    plan = bootstrap.Plan(writer.name, seeds, count, not step_by_step, seed, prompts)

    def said(progress: Any) -> None:
        left = ", ".join(f"{n} {why}" for why, n in progress.counts.most_common(3))
        disk.tell(f"round {progress.round}: {progress.kept} of {count} tasks" + (f"; left out: {left}" if left else ""))

    work = bootstrap.Bootstrap(plan, writer, out)
    work.run((lambda _: None) if quiet else said)
    echo(str(work.rows))


@command(name="explain")
@click.argument("source", metavar="QUERIES", shell_complete=complete_data)
@click.option("--teacher", required=True, metavar="MODEL|URL", help="A model, or an address of OpenAI's protocol.")
@click.option("--name", help="The teacher's name at that address.")
@click.option("--template", metavar="NAME", help="The chat template of a model here.  [default: its own]")
@click.option("--out", required=True, type=click.Path(), help="Directory of what is made; resumed if it was begun.")
@click.option("--count", type=click.IntRange(min=1), help="Queries to ask.  [default: all that may be asked]")
@click.option("--question", metavar="COLUMN", help="The column with the query.  [default: found by its name]")
@click.option("--collection", default="", help="Of rows that name none: cot, niv2, flan2021 or t0.")
@click.option("--tokens", type=click.IntRange(min=1), default=512, show_default=True, help="Of an answer at most.")
@click.option("--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True, help="0: likeliest.")
@click.option(
    "--at-once", "together", type=click.IntRange(min=1), default=8, show_default=True, help="Queries a round."
)
@click.option("--seed", type=int, default=1, show_default=True, help="Decides which are asked, messages and draws.")
@click.option("--quiet", is_flag=True, help="Print no progress.")
def explain(
    source: str,
    teacher: str,
    name: str | None,
    template: str | None,
    out: str,
    question: str | None,
    collection: str,
    together: int,
    quiet: bool,
    **how: Any,
) -> None:
    """Let a teacher explain its answers to queries, as Orca's data were made.

    QUERIES are rows with a question and the sub-collection of FLAN that it is from (`collection`: cot, niv2, flan2021,
    t0; perhaps `task`, `choices`). --count queries are drawn from the sub-collections as published, and each gets one
    of 16 system messages, by its sub-collection. OUT/rows.jsonl is what `stemma tune orca` reads. Rows that were made
    before may be QUERIES too: then a stronger teacher answers --count of them again. Stopped or killed, the same
    command goes on where it was.
    """
    from stemma.instruct import explain as work
    from stemma.instruct.queries import queries

    found = queries(source, question or "", collection)
    answerer = writer_of(teacher, name, template)
    plan = work.Plan(answerer.name, work.digest(found), round=together, **how)
    made = work.Explanations(plan, answerer, found, out)

    carry_out(made, quiet)
    if not quiet:
        for line in work.counted(made.made):
            disk.tell(line)
    echo(str(made.rows))


def carry_out(made: Any, quiet: bool, word: str = "asked") -> None:
    """Let a `RowMaker` make its rows, and print after each round how many items were `word`, unless `quiet`."""

    def said(progress: Any) -> None:
        left = ", ".join(f"{n} {why}" for why, n in progress.counts.most_common())
        done = f"{progress.asked} of {len(made.items)} {word}, {progress.kept} kept"
        disk.tell(done + (f"; left out: {left}" if left else ""))

    made.run((lambda _: None) if quiet else said)


def writer_of(where: str, name: str | None, template: str | None = None) -> Any:
    """What writes at an address (its model called `name`), or with a model here. Raises UsageError for options that do
    not fit."""
    from stemma.instruct.writers import AddressWriter, LocalWriter

    if where.startswith(("http://", "https://")):
        if name is None:
            raise UsageError(f"{where} may have several models; say which with --name")
        if template is not None:
            raise UsageError(f"{where} writes conversations by its own template; --template is for models here")
        return AddressWriter(where, name)
    import stemma

    return LocalWriter(stemma.load(where), where, template=template)
