"""`pretrain`, `resume`, `verify`, `report`: runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stemma import disk
from stemma.cli import Group, command, console, echo, existing_runs, overrides
from stemma.cli.complete import complete_data, complete_names, scale_option, set_option
from stemma.cli.texts import GRAMMAR
from stemma.errors import UsageError

if TYPE_CHECKING:
    pass


def settings(name: str | None, config: str | None, sets: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """The family to train, and the changes of the `--config` file and of `--set`, which wins."""
    from stemma.train import overrides as read_file

    changes: dict[str, Any] = read_file(config) if config else {}
    changes |= overrides(sets)
    name = name or changes.pop("name", None)
    if not name:
        raise UsageError("stemma pretrain needs NAME (or `name:` in the --config file); `stemma tree` lists families")
    changes.pop("name", None)
    return str(name), changes


def given(*names: str) -> set[str]:
    """Those of these options that were typed; an option's default gives way to the --config file."""
    ctx = click.get_current_context()
    typed = click.core.ParameterSource.COMMANDLINE
    return {name for name in names if ctx.get_parameter_source(name) is typed}


def report_outcome(run: Any) -> int:
    """Print what a run came to; returns the exit code."""
    out = console(stderr=True)
    if not run.finished:
        return 130
    val, base = run.summary.get("val", {}), run.summary.get("baselines", {})
    if "best" in run.summary:
        out.print(f"weights: those of step {run.summary['best']['step']:,}, the best that were evaluated")
    for key, was in run.summary.get("before", {}).items():
        if key in val and key != "targets":
            out.print(f"held-out {key}: {was:.4g} before, {val[key]:.4g} now")
    for key, words in (("bits_per_byte", "bits per byte"), ("bits_per_target_byte", "bits per byte of hidden text")):
        if key in val:
            unigram, xz = (base.get(f"{n}_bits_per_byte") for n in ("unigram", "xz"))
            beside = f" (unigram {unigram:.3f}, xz {xz:.3f})" if key == "bits_per_byte" and unigram and xz else ""
            out.print(f"held-out text: {val[key]:.3f} {words}{beside}")
    if val.keys() >= {"replaced_right", "replaced_share", "bits_per_target"}:
        out.print(
            f"held-out text: {val['replaced_right']:.1%} of tokens classified right, "
            f"{val['replaced_share']:.1%} replaced, {val['bits_per_target']:.3f} bits a token"
        )
    out.print(f"model: {run.directory / 'model'}", soft_wrap=True)
    return 0


def changes_of(
    name: str | None, config: str | None, sets: tuple[str, ...], start: str | None
) -> tuple[str, dict[str, Any]]:
    """The family to train, and the changes to its plan: typed options win over `--config`. Raises UsageError for two
    options that set the same thing."""
    name, changes = settings(name, config, sets)
    for option, path in (("data", "data"), ("seed", "seed"), ("scale", "scale"), ("budget", "train.budget")):
        if given(option):
            if any(change.partition("=")[0].strip() == path for change in sets):
                raise UsageError(f"--{option} and --set {path} say the same; leave one of them out")
            changes.pop(path, None)  # what is typed wins over the file
    typed = overrides(sets)
    if "recipe.steps" in typed:
        if given("budget") or "train.budget" in typed:
            also = "--budget" if given("budget") else "--set train.budget"
            raise UsageError(f"{also} and --set recipe.steps both say how long the run is; leave one of them out")
        changes.pop("train.budget", None)
    elif given("budget"):
        changes.pop("recipe.steps", None)
    if start is not None:
        changes["train.start"] = start
    return name, changes


@command(epilog=GRAMMAR)
@click.argument("name", required=False, shell_complete=complete_names)
@click.option(
    "--data",
    shell_complete=complete_data,
    help="A text: file, folder, glob, rows, hf://..., builtin:NAME (see below).  [default: what suits NAME]",
)
@click.option(
    "--budget", default="5m", show_default=True, help="A time (45s, 1h30m), 20M tokens, 1e15 flops, 50 steps, 3 epochs."
)
@click.option("--out", type=click.Path(), help="Directory of the run.  [default: runs/NAME-SCALE-SEED]")
@click.option("--seed", type=int, default=1, show_default=True, help="Decides weights, order and masks.")
@scale_option(default="tiny", show_default=True, help="tiny, mini, small, or full (the published size).")
@set_option("Change the plan, e.g. recipe.lr=1e-3.")
@click.option("--config", type=click.Path(), metavar="FILE", help="YAML, TOML or JSON with such paths.")
@click.option("--resume", type=click.Path(), metavar="RUN", help="Go on with this run; takes no other setting.")
@click.option("--tokenizer", type=click.Path(), metavar="DIR", help="Use this tokenizer and train none.")
@click.option("--from", "start", metavar="RUN", help="Begin with the weights of a run, a folder or a hub id.")
@click.option("--mesh", metavar="AXES", help="What the processes of torchrun do, e.g. fsdp=4,tp=2.")
@click.option("--quiet", is_flag=True, help="Print no progress.")
def pretrain(
    name: str | None,
    data: str | None,
    budget: str,
    out: str | None,
    seed: int,
    scale: str,
    sets: tuple[str, ...],
    config: str | None,
    resume: str | None,
    tokenizer: str | None,
    start: str | None,
    mesh: str | None,
    quiet: bool,
) -> int:
    """Train a family on text, from nothing or from weights, and leave a complete run in a directory.

    The run holds the resolved plan, the tokenizer, metrics of every step, checkpoints, a summary and, in `model`, the
    model in its publisher's layout. Ctrl-C finishes the step at hand and writes a checkpoint.
    """
    if resume is not None:
        clash = given("data", "budget", "out", "seed", "scale", "sets", "config", "tokenizer", "start")
        if name or clash:
            raise UsageError(f"--resume goes on with {resume} as it was planned; leave out everything else")
        return resume_run(resume, quiet, mesh, ())
    name, changes = changes_of(name, config, sets, start)
    out = out or f"runs/{name}-{changes.get('scale', scale)}-{changes.get('seed', seed)}"
    from stemma.train import pretrain as train

    options: dict[str, Any] = {"budget": budget, "seed": seed, "scale": scale, "tokenizer": _tokenizer(tokenizer)}
    run = train(name, data=data, out=out, overrides=changes, quiet=quiet, mesh=mesh, **options)
    return finish(run)


def _tokenizer(folder: str | None) -> Any:
    from stemma.text import Tokenizer

    return None if folder is None else Tokenizer.load(Path(folder))


def resume_run(run: str, quiet: bool, mesh: str | None, sets: tuple[str, ...]) -> int:
    """Resume a run and report; returns the exit code."""
    from stemma.train import resume as train_on
    from stemma.tuning import stages

    if not sets and stages.begun(run):
        return finish(stages.go_on(run, quiet=quiet, mesh=mesh))
    if not sets and chained(run):
        from stemma.alignment import pipelines

        return finish(pipelines.go_on(run, quiet=quiet, mesh=mesh))
    return finish(train_on(existing_runs((run,))[0], quiet=quiet, mesh=mesh, overrides=overrides(sets)))


def chained(run: str) -> bool:
    """Whether a directory holds rounds of rejection sampling, or a chain of alignment."""
    from stemma.runs import folder

    return any((Path(run) / name).is_file() for name in (folder.ROUNDS, folder.CHAIN))


def finish(run: Any) -> int:
    """Leave the other ranks, and on the main rank print what the run came to; returns the exit code."""
    from stemma.parallel import World

    World.shutdown()
    return report_outcome(run) if int(os.environ.get("RANK", "0")) == 0 else 0


@command()
@click.argument("run", type=click.Path())
@click.option("--mesh", metavar="AXES", help="What the processes of torchrun do; any mesh reads any checkpoint.")
@set_option("Carry it out otherwise, e.g. train.micro=2.")
@click.option("--quiet", is_flag=True, help="Print no progress.")
def resume(run: str, mesh: str | None, sets: tuple[str, ...], quiet: bool) -> int:
    """Go on with a run that was stopped, to the same end as if it had not been.

    --set changes what the end does not depend on: train.micro and train.recompute (memory), train.save_every,
    train.keep and train.ahead. With dropout another train.micro draws other masks.
    """
    return resume_run(run, quiet, mesh, sets)


# ---------------------------------------------------------------- verify


@click.group(cls=Group)
def verify() -> None:
    """Check a claim on your own machine and data."""


@verify.command(name="resume")
@click.argument("run", type=click.Path())
@click.option("--steps", type=click.IntRange(min=2), default=6, show_default=True, help="Steps to train, twice.")
def verify_resume(run: str, steps: int) -> None:
    """Check on RUN's own plan and data that stopping and resuming changes nothing, bit by bit.

    The run itself is only read. Leaves with exit code 6 if a loss, a gradient norm or a weight differs.
    """
    from stemma.train import verify_resume as check

    found = check(existing_runs((run,))[0], steps)
    echo(
        f"{found['steps']} steps in one go and with a stop after {found['stopped_after']}: "
        "losses, gradient norms and weights are identical"
    )


# ---------------------------------------------------------------- report


@command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(), metavar="RUN...")
@click.option("--out", type=click.Path(dir_okay=False), default="report.html", show_default=True, help="File to write.")
@click.option("--title", help="Heading of the report.")
@click.option(
    "--samples",
    "number",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    help="Held-out texts that each model continues or fills in (0: none).",
)
@click.option("--prompts", "data", metavar="DATA", help="Prompts that are answered before and after each run.")
@click.option("--judge", "judges", multiple=True, metavar="R", help="What judges these answers, as --reward of align.")
def report(
    runs: tuple[str, ...], out: str, title: str | None, number: int, data: str | None, judges: tuple[str, ...]
) -> None:
    """Write one HTML file about one or several runs; it needs no other file and no network.

    A finished run without samples gets some first: decoders continue the beginning of held-out texts, the others fill
    in a word of them. They are kept in RUN/samples.json.

    With --prompts and --judge the weights that a run began from and its model answer the first 64 prompts: rewards,
    divergence, length, how often the new answer is the better one, and answers side by side. They are kept in
    RUN/outcome.json.
    """
    from stemma.cli import samples
    from stemma.errors import ResourceError
    from stemma.report import read, write

    found = existing_runs(runs)
    for run in found:
        read(run)  # damage is told before anything is made
    if (data is None) != (not judges):
        raise UsageError("--prompts names what is answered and --judge what judges the answers: give both")
    if data is not None:
        from stemma.alignment import outcome

        for run in found:
            outcome.of_run(Path(run), data, judges)
    try:
        for run in found:
            samples.add(Path(run), number)
    except ResourceError as error:
        disk.tell(f"note: the report has no samples of {run}: {error}")
    path = write(found, out, title=title)
    echo(str(path))
