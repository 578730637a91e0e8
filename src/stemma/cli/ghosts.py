"""`data ghost`, `data distil`: conversations for Ghost Attention, safe answers for context distillation."""

from __future__ import annotations

from typing import Any

import click

from stemma.cli import command, echo
from stemma.cli.complete import complete_data
from stemma.cli.instructing import carry_out, writer_of


@command(name="ghost")
@click.argument("source", metavar="CONVERSATIONS", shell_complete=complete_data)
@click.option(
    "--model", "where", required=True, metavar="MODEL|URL", help="Who answers: a model, or an address of OpenAI's."
)
@click.option("--name", help="The model's name at that address.")
@click.option("--template", metavar="NAME", help="The chat template of a model here.  [default: its own]")
@click.option("--attributes", type=click.Path(), metavar="FILE", help="JSON lists of what instructions may ask for.")
@click.option("--together", type=click.IntRange(min=1), default=3, show_default=True, help="Attributes at most.")
@click.option("--short", type=float, default=0.5, show_default=True, help="Share of instructions in a few words.")
@click.option("--count", type=click.IntRange(min=1), help="Conversations to answer.  [default: all]")
@click.option("--tokens", type=click.IntRange(min=1), default=256, show_default=True, help="Of an answer at most.")
@click.option("--temperature", type=click.FloatRange(min=0), default=1.0, show_default=True, help="0: likeliest.")
@click.option("--at-once", "together_", type=click.IntRange(min=1), default=8, show_default=True, help="A round.")
@click.option("--out", required=True, type=click.Path(), help="Directory of what is made; resumed if it was begun.")
@click.option("--seed", type=int, default=1, show_default=True, help="Decides instructions and draws.")
@click.option("--quiet", is_flag=True, help="Print no progress.")
def ghost(
    source: str,
    where: str,
    name: str | None,
    template: str | None,
    attributes: str | None,
    together_: int,
    out: str,
    quiet: bool,
    **how: Any,
) -> None:
    """Let a model answer the user's turns of CONVERSATIONS under an instruction, as Ghost Attention's data are made.

    An instruction joins attributes (a hobby, a language, a public figure: one of the lists of this tool, or of
    --attributes, `{"Figure": {"form": "Always act as {}.", "values": [...]}}`). It stands before every user's words
    when answers are drawn, and once, as the system message, in OUT/rows.jsonl. `stemma tune chat --data OUT/rows.jsonl
    --set 'objective.task.ghost=Ghost()'` learns them. Stopped or killed, the same command goes on where it was.
    """
    from stemma.instruct import ghosts

    kinds = ghosts.attributes(attributes) if attributes else ghosts.ATTRIBUTES
    talks = ghosts.conversations(source)
    writer = writer_of(where, name, template)
    plan = ghosts.Plan(writer.name, ghosts.facts(talks, kinds), round=together_, **how)
    made = ghosts.Ghosts(plan, writer, talks, kinds, out)
    carry_out(made, quiet, "answered")
    echo(str(made.rows))


@command(name="distil")
@click.argument("source", metavar="PROMPTS", shell_complete=complete_data)
@click.option(
    "--model", "where", required=True, metavar="MODEL|URL", help="Who answers: a model, or an address of OpenAI's."
)
@click.option("--name", help="The model's name at that address.")
@click.option("--template", metavar="NAME", help="The chat template of a model here.  [default: its own]")
@click.option("--reward", "rewards", multiple=True, required=True, metavar="R", help="As in `stemma align`.")
@click.option("--preprompt", "preprompts", multiple=True, metavar="TEXT", help="Repeatable.  [default: two of our own]")
@click.option("--gain", type=float, default=0.0, show_default=True, help="Reward that an answer must gain.")
@click.option("--tokens", type=click.IntRange(min=1), default=256, show_default=True, help="Of an answer at most.")
@click.option("--temperature", type=click.FloatRange(min=0), default=1.0, show_default=True, help="0: likeliest.")
@click.option("--at-once", "together", type=click.IntRange(min=1), default=8, show_default=True, help="A round.")
@click.option("--out", required=True, type=click.Path(), help="Directory of what is made; resumed if it was begun.")
@click.option("--seed", type=int, default=1, show_default=True, help="Decides what is drawn.")
@click.option("--quiet", is_flag=True, help="Print no progress.")
def distil(
    source: str,
    where: str,
    name: str | None,
    template: str | None,
    rewards: tuple[str, ...],
    preprompts: tuple[str, ...],
    together: int,
    out: str,
    quiet: bool,
    **how: Any,
) -> None:
    """Let a model answer PROMPTS behind a preprompt that asks for safety, to be learnt without it (context
    distillation).

    The best of these answers by reward is kept where it has more than the model's own. `stemma tune chat --data
    OUT/rows.jsonl` learns them. Stopped or killed, the same command goes on where it was.
    """
    from stemma.alignment import context_distillation as work
    from stemma.alignment.best import prompts
    from stemma.alignment.rounds import digest
    from stemma.alignment.scoring import scoring

    asked, writer = prompts(source), writer_of(where, name, template)
    texts = preprompts or work.PREPROMPTS
    plan = work.Plan(writer.name, digest(asked), rewards, texts, round=together, **how)
    with scoring(rewards) as score:
        made = work.ContextDistillation(plan, writer, asked, score, out)
        carry_out(made, quiet, "answered")
    echo(str(made.rows))
