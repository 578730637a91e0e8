"""`bench`: how fast a model reads and writes here; `lm-eval`: its scores on tasks of EleutherAI's harness."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Any

import click

from stemma.cli import command, console, emit
from stemma.cli.models import PATH, Loading, load, loading
from stemma.errors import UsageError, require


def _numbers(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    """Whole numbers of at least one, between commas."""
    words = [word.strip() for word in value.split(",")]
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise UsageError(f"--rows {value!r}: give whole numbers of at least 1 with commas between them, as 1,8")
    return tuple(int(word) for word in words)


@command()
@PATH
@click.option("--prompt", type=int, default=512, show_default=True, help="Tokens of each prompt.")
@click.option("-n", "--new", type=int, default=64, show_default=True, help="Tokens written after each.")
@click.option("--rows", default="1", show_default=True, callback=_numbers, help="Texts at once: one number or several.")
@click.option("--repeats", type=int, default=3, show_default=True, help="Runs, of which the medians are told.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@loading
def bench(path: str, prompt: int, new: int, rows: tuple[int, ...], repeats: int, as_json: bool, how: Loading) -> None:
    """Measure how fast the model at PATH reads prompts and writes tokens here.

    Prompts are random tokens. `memory` is what a step of decoding reads (all weights once, and the keys and values of
    each text) as a share of what plain reading of memory reached beside it: decoding of few texts can be no faster
    than 100 %.
    """
    from rich.progress import Progress
    from rich.table import Table

    from stemma.evaluate.speed import measure

    model = load(path, how)
    with Progress(console=console(stderr=True), transient=True) as progress:
        bar = progress.add_task("measuring", total=len(rows) * repeats)
        found = measure(model, rows, prompt, new, repeats, lambda done, of: progress.update(bar, completed=done))
    if as_json:
        emit([{**asdict(speed), "share": speed.share} for speed in found])
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for title in ("rows", "prompt tok/s", "first token", "decode tok/s", "GB a step", "memory"):
        table.add_column(title, justify="right", no_wrap=True)
    for speed in found:
        table.add_row(*_cells(speed))
    console().print(table)


def _cells(speed: Any) -> tuple[str, ...]:
    first = f"{speed.first * 1000:,.0f} ms"
    share = f"{speed.share:.0%} of {speed.bandwidth / 1e9:.0f} GB/s"
    return str(speed.rows), f"{speed.prefill:,.0f}", first, f"{speed.decode:,.1f}", f"{speed.read / 1e9:.3f}", share


@command(name="lm-eval", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[run|ls|validate] [OPTIONS]")
def lm_eval(words: tuple[str, ...]) -> None:
    """Run EleutherAI's harness (the package lm-eval) with the models of Stemma, which it knows as `stemma`.

    `stemma lm-eval run --model stemma --model_args path=MODEL --tasks NAMES`: all else is the harness's own, and
    `stemma lm-eval run --help` is its help. Of `--model_args`: path (a folder, a run, a GGUF file or a hub id),
    dtype, adapter (folders, between semicolons), quantize, max_length, template.
    """
    require("lm_eval", "stemma lm-eval", "lm-eval")
    from lm_eval._cli import HarnessCLI
    from lm_eval.utils import setup_logging

    import stemma.evaluate.harness  # noqa: F401  # registers `stemma`

    setup_logging()
    parser = HarnessCLI()
    before, sys.argv = sys.argv, ["stemma lm-eval", *words]
    try:
        parser.execute(parser.parse_args())
    finally:
        sys.argv = before
