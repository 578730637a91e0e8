"""`data ai-feedback`: pairs that a judge prefers."""

from __future__ import annotations

from typing import Any

import click

from stemma import disk
from stemma.cli import command, echo
from stemma.cli.complete import complete_data
from stemma.cli.instructing import carry_out


@command(name="ai-feedback")
@click.argument("source", metavar="PROMPTS", shell_complete=complete_data)
@click.option(
    "--model", "where", required=True, metavar="MODEL|URL#NAME", help="Who answers: a model, or an address of OpenAI's."
)
@click.option("--judge", required=True, metavar="MODEL|URL#NAME", help="Who says which answer is better.")
@click.option("--template", metavar="NAME", help="The chat template of models that have none.")
@click.option("--prompts", metavar="FILE", help="As FastChat's judge_prompts.jsonl.  [default: our own]")
@click.option("--tokens", type=click.IntRange(min=1), default=256, show_default=True, help="Of an answer at most.")
@click.option("--judge-tokens", type=click.IntRange(min=1), default=512, show_default=True, help="Of a judgment.")
@click.option("--temperature", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True,
              help="Of the answers.")  # fmt: skip
@click.option("--at-once", "together", type=click.IntRange(min=1), default=8, show_default=True, help="A round.")
@click.option("--out", required=True, type=click.Path(), help="Directory of what is made; resumed if it was begun.")
@click.option("--seed", type=int, default=1, show_default=True, help="Decides what is drawn.")
@click.option("--quiet", is_flag=True, help="Print no progress.")
def ai_feedback(
    source: str,
    where: str,
    judge: str,
    template: str | None,
    prompts: str | None,
    together: int,
    out: str,
    quiet: bool,
    **how: Any,
) -> None:
    """Let a judge prefer one of two answers of a model to each of PROMPTS (AI feedback).

    Each two answers are judged in both orders. A pair is kept where both verdicts agree; how often they do is printed.
    OUT/rows.jsonl is what `stemma align dpo` and `stemma align reward` read. Stopped or killed, the same command goes
    on where it was.
    """
    from stemma.alignment.best import prompts as read
    from stemma.alignment.rounds import digest
    from stemma.cli.judging import writer_of as either
    from stemma.cli.models import Loading
    from stemma.judging import pairs
    from stemma.judging.prompts import OWN, Prompts

    asked = read(source)
    loaded = Loading("auto")
    writer, other = (either(one, loaded, template) for one in (where, judge))
    plan = pairs.Plan(where, judge, digest(asked), round=together, **how)
    made = pairs.Pairs(plan, writer(), other(), [one.turns for one in asked], Prompts(prompts or OWN), out)
    carry_out(made, quiet)
    if not quiet:
        disk.tell(pairs.told(made.progress))
    echo(str(made.rows))
