"""`stemma align`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from stemma.cli import command, echo
from stemma.cli.complete import complete_data, set_option
from stemma.cli.training import finish
from stemma.cli.tuning import changed, name_of
from stemma.errors import UsageError


@command()
@click.argument("what")
@click.option("--from", "start", required=True, metavar="MODEL", help="A run, a folder, a GGUF file or a hub id.")
@click.option("--data", shell_complete=complete_data, help="Rows: compared answers, thumbs, prompts.")
@click.option("--reward", "rewards", multiple=True, metavar="R", help="FILE.py:name, a reward model, builtin:NAME.")
@click.option("--reference", metavar="MODEL", help="The frozen model to stay near.  [default: MODEL]")
@click.option("--base", metavar="MODEL", help="rs: what each round begins from.  [default: MODEL]")
@click.option("--full", is_flag=True, help="A recipe's published numbers, not scaled.")
@click.option("--feedback", metavar="FILE", help="loop: what people said, of `stemma serve --feedback FILE`.")
@click.option("--serve", metavar="URL", help="loop: a server that loads the new model beside the others.")
@click.option("--template", help="The chat template, where not the tokenizer's own.")
@click.option("--budget", help="As in `stemma pretrain`.  [default: 1 epochs; 200 steps of sampling]")
@click.option("--out", type=click.Path(), help="Directory of the run.  [default: runs/WHAT-MODEL-SEED]")
@click.option("--seed", type=int, default=1, show_default=True, help="Decides order, samples, adapters, dropout.")
@click.option("--lora", type=click.IntRange(min=1), metavar="RANK", help="Learn low-rank adapters, not the weights.")
@click.option("--quantize", type=click.Choice(["nf4", "int8"]), help="Keep the frozen weights in 4 or 8 bits.")
@set_option("Change the plan, e.g. objective.beta=0.2.")
@click.option("--config", type=click.Path(), metavar="FILE", help="YAML, TOML or JSON with such paths.")
@click.option("--mesh", metavar="AXES", help="What the processes of torchrun do, e.g. fsdp=4.")
@click.option("--resume", "going_on", is_flag=True, help="Go on with the run in --out, if it was begun.")
@click.option("--quiet", is_flag=True, help="Print no progress.")
def align(
    what: str,
    start: str,
    out: str | None,
    seed: int,
    sets: tuple[str, ...],
    config: str | None,
    going_on: bool,
    feedback: str | None,
    serve: str | None,
    **options: Any,
) -> int:
    """Align MODEL by WHAT on rows of data, and leave a complete run in a directory.

    WHAT: reward (a reward model from compared answers), dpo (compared answers), kto (answers that were liked or not),
    ppo and grpo (answers that the model samples, judged by rewards), gkd (its answers, corrected by a teacher), rs (the
    best of its answers as demonstrations, in rounds: --set rounds.rounds=4 --set rounds.samples=16
    --set rounds.temperature=1.0,1.2), loop (what people said on the page: edited answers as demonstrations, pairs by
    DPO, thumbs by KTO, each a run; settings are those of one, as --set dpo.objective.beta=0.2). Or a published recipe:
    instructgpt, chatgpt, llama2-chat or tulu2: all of its stages in order, each a run, scaled and on data that stand in
    for its own (--set ppo.objective.kl=0.05 changes a stage, --set reward.data=FILE gives it yours), and one report.
    """
    from stemma.alignment import align as carry_out

    if feedback is not None:
        if options["data"] is not None:
            raise UsageError("--feedback is the data of loop; leave --data out")
        options["data"] = feedback

    out = out or f"runs/{what}-{name_of(start)}-{seed}"
    changes = changed(config, sets, None, False)
    run = carry_out(what, start=start, out=out, seed=seed, overrides=changes, resume=going_on, **options)
    code = finish(run)
    if serve is not None and run.finished:
        from stemma.alignment.loop import offer

        key = os.environ.get("STEMMA_API_KEY")
        echo(f"{serve} serves {offer(serve, out, Path(out).name, key)}")
    return code
