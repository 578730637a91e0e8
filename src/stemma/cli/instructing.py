"""`data self-instruct`: instructions that a model makes from seeds."""

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
    writer = _writer(where, name)
    plan = bootstrap.Plan(writer.name, seeds, count, not step_by_step, seed, prompts)

    def said(progress: Any) -> None:
        left = ", ".join(f"{n} {why}" for why, n in progress.counts.most_common(3))
        disk.tell(f"round {progress.round}: {progress.kept} of {count} tasks" + (f"; left out: {left}" if left else ""))

    work = bootstrap.Bootstrap(plan, writer, out)
    work.run((lambda _: None) if quiet else said)
    echo(str(work.rows))


def _writer(where: str, name: str | None) -> Any:
    from stemma.instruct.writers import AddressWriter, LocalWriter

    if where.startswith(("http://", "https://")):
        if name is None:
            raise UsageError(f"{where} may have several models; say which with --name")
        return AddressWriter(where, name)
    import stemma

    return LocalWriter(stemma.load(where), where)
