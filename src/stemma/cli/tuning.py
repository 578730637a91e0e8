"""`tune`: from a model and rows of data to a model that does a task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stemma.cli import command, overrides
from stemma.cli.columns import COLUMNS, columns
from stemma.cli.complete import complete_data, set_option
from stemma.cli.training import finish


def name_of(start: str) -> str:
    """What a model is called in the name of a run: its file or folder, or of a run's `model` the run."""
    path = Path(start)
    path = path.parent if path.name == "model" and path.parent.name else path
    return path.name.removesuffix(".gguf").partition(".Q")[0] or "model"


def changed(config: str | None, sets: tuple[str, ...], weights: str | None, new_head: bool) -> dict[str, Any]:
    """The changes of the plan that the options of `tune` name."""
    from stemma.train import overrides as read_file

    changes: dict[str, Any] = (read_file(config) if config else {}) | overrides(sets)
    if weights is not None:
        changes["objective.weights"] = weights
    if new_head:
        changes["train.new"] = ("task",)
    return changes


@command()
@click.argument("what")
@click.option("--from", "start", required=True, metavar="MODEL", help="A run, a folder, a GGUF file or a hub id.")
@click.option("--data", multiple=True, shell_complete=complete_data, help="Rows with fields: JSONL, CSV, Parquet, ...")
@click.option("--budget", help="As in `stemma pretrain`.  [default: 3 epochs, or as published]")
@click.option("--out", type=click.Path(), help="Directory of the run.  [default: runs/WHAT-MODEL-SEED]")
@click.option("--seed", type=int, default=1, show_default=True, help="Decides order, adapters and dropout.")
@click.option("--lora", type=click.IntRange(min=1), metavar="RANK", help="Learn low-rank adapters, not the weights.")
@click.option("--quantize", type=click.Choice(["nf4", "int8"]), help="Keep the frozen weights in 4 or 8 bits.")
@click.option("--stage", type=click.IntRange(min=1), help="Only this one of a tuned family's, counted from 1.")
@click.option("--full", is_flag=True, help="A tuned family's published numbers, not scaled.")
@click.option("--template", help="The chat template, where not the tokenizer's own.")
@columns
@click.option("--prefix", help="What stands before every text, e.g. 'summarize: '.")
@click.option("--hard-prompt", "hard", multiple=True, metavar="[TASK=]FILE|TEXT", help="Words around every question.")
@click.option(
    "--class-weights", "weights", metavar="W,W,...", help="Of the labels, or `balanced`: rare ones count more."
)
@click.option("--new-head", is_flag=True, help="Draw a new head though MODEL has one for the task.")
@set_option("Change the plan, e.g. recipe.lr=1e-4.")
@click.option("--config", type=click.Path(), metavar="FILE", help="YAML, TOML or JSON with such paths.")
@click.option("--resume", "going_on", is_flag=True, help="Go on with the run in --out, if it was begun.")
@click.option("--quiet", is_flag=True, help="Print no progress.")
def tune(
    what: str,
    start: str,
    out: str | None,
    seed: int,
    hard: tuple[str, ...],
    weights: str | None,
    new_head: bool,
    sets: tuple[str, ...],
    config: str | None,
    going_on: bool,
    **options: Any,
) -> int:
    """Tune MODEL to WHAT on rows of data, and leave a complete run in a directory.

    WHAT: classify (a label of a text, or several), regress (a number of a text), tag (a label of each word), answer
    (the span of a text that answers a question), choose (which of several texts is right), chat (conversations of any
    known shape), write (a text for a text), complete (texts), or a tuned family of the tree (alpaca, vicuna, qlora,
    ...), whose template and recipe are used then. Columns that are not named are found by their usual names. Rows that
    cannot be learnt from are counted and passed over; `--data FILE#strict=yes` makes them an error.

    Without --data a tuned family learns from what stands in for its own. One of several stages goes through all of
    them, with one --data for all or one for each; the last is the run in --out, those before it are in --out/stages.
    """
    from stemma.tuning import tune as carry_out

    out = out or f"runs/{what}-{name_of(start)}-{seed}"
    settings = {name: options.pop(name) for name in (*COLUMNS, "template", "prefix")}
    if hard:
        from stemma.tasks.hard import read

        settings["prompts"] = tuple(map(read, hard))
    changes = changed(config, sets, weights, new_head)
    more: dict[str, Any] = {"settings": settings, "overrides": changes, "resume": going_on}
    return finish(carry_out(what, start=start, out=out, seed=seed, **more, **options))
