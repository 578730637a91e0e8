"""`predict`, `eval`: what tuned models say of rows, and how good that is."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import click

from stemma import disk
from stemma.cli import command, echo, json_text, judging
from stemma.cli.columns import columns
from stemma.cli.complete import complete_data, complete_paths
from stemma.cli.models import Loading, loading
from stemma.cli.prompts import lines_of
from stemma.errors import DataError, UsageError

MODEL = click.argument("path", metavar="MODEL", shell_complete=complete_paths)
WIDTH = 60  # of a text in a line for people


def opened(path: str, how: Loading) -> Any:
    """The model and its task."""
    import torch

    from stemma.tuning.predicting import tuned

    device = how.device if how.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    return tuned(path, device=device, dtype=how.dtype, adapter=how.adapter, quantize=how.quantize)


DECODING = (  # the options of `tuning.decoding.Decoding`
    click.option("--samples", type=click.IntRange(min=1), default=1, show_default=True, help="Texts put to the vote."),
    click.option("--temperature", type=click.FloatRange(min=0), help="[default: 0, of several samples 0.7]"),
    click.option("--final", metavar="RULE", help="Final answers: number, letter, text, or a regular expression."),
    click.option("--seed", type=int, default=1, show_default=True, help="Decides what is drawn."),
    click.option("-n", "--max-new-tokens", "tokens", type=click.IntRange(min=1), help="Of a text at most."),
)


def decoding(called: Callable[..., None]) -> Callable[..., None]:
    """A command with the options of `DECODING`, which it gets as one `drawn`."""

    @functools.wraps(called)
    def gathered(*args: Any, **options: Any) -> None:
        from stemma.tuning.decoding import Decoding

        names = ("samples", "temperature", "final", "seed", "tokens")
        called(*args, drawn=Decoding(**{name: options.pop(name) for name in names}), **options)

    made: Callable[..., None] = gathered
    for option in reversed(DECODING):
        made = option(made)
    return made


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were typed."""
    return {name: value for name, value in options.items() if value}


@command()
@MODEL
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@click.option("--data", shell_complete=complete_data, help="Rows with fields: JSONL, CSV, Parquet, ...")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@decoding
@columns
@loading
def predict(
    path: str, texts: tuple[str, ...], data: str | None, as_json: bool, how: Loading, drawn: Any, **options: Any
) -> None:
    """What the tuned MODEL (a run, a folder, a hub id) says of each TEXT, or of the rows of a file.

    A TEXT may be a row, too: a JSON object. Without either, the lines of standard input are read. The order of the
    predictions is that of the texts. A model that writes answers in its task's own prompt and template; with --samples
    it draws several texts, and the final answer (--final) with the most votes is taken, of equals the first.
    """
    from stemma.cli.models import piped
    from stemma.tuning.predicting import predict as predicted

    if data and texts:
        raise UsageError("give TEXT or --data, not both")
    one = opened(path, how)
    if data:
        from stemma.tasks.encoder import raw_rows

        rows: list[Any] = list(raw_rows(data))
        if not rows:
            raise DataError(f"{data} has no rows")
    else:
        rows = list(texts) or lines_of(piped((), "a TEXT")[0])
    wrong = 0
    for row, found in zip(rows, predicted(one, rows, how=drawn, **given(options)), strict=True):
        wrong += "error" in found
        echo(json_text(found) if as_json else f"{said(found)}\t{shown(row)}")
    if wrong:
        disk.tell(f"note: {wrong:,} of {len(rows):,} rows could not be read")


def said(found: Mapping[str, Any]) -> str:
    """A prediction for people."""
    match found:
        case {"error": why}:
            return f"(not read: {why})"
        case {"label": label, "scores": scores}:
            return f"{label} {scores[str(label)]:.3f}"
        case {"labels": labels}:
            return ", ".join(labels) or "none"
        case {"score": score, **rest} if not rest:
            return f"{score:.4g}"
        case {"answers": answers}:
            return " | ".join(f"{answer['score']:.4g} {shown(answer['text'])}" for answer in answers)
        case {"value": value}:
            return f"{value:.4g}"
        case {"answer": answer, "votes": votes}:
            return f"{answer} ({max(votes.values(), default=0)} of {sum(votes.values())} votes)"
        case {"answer": answer, "text": _}:
            return str(answer)
        case {"spans": spans}:
            return ", ".join(f"{span['label']}: {span['text']}" for span in spans) or "none"
    return str(found.get("text", ""))


def shown(row: Any) -> str:
    """A row in a line."""
    text = row if isinstance(row, str) else json_text(row)
    text = " ".join(text.split())
    return text if len(text) <= WIDTH else text[: WIDTH - 3] + "..."


@command(name="eval")
@click.argument("paths", metavar="MODEL [MODEL]", nargs=-1, required=True, shell_complete=complete_paths)
@click.option("--data", shell_complete=complete_data, help="Rows with fields, what is right among them.")
@click.option("--refusals", is_flag=True, help="How many prompts of --data MODEL refuses.  [data: builtin:borderline]")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@decoding
@judging.options
@columns
@loading
def eval_(
    paths: tuple[str, ...], data: str | None, refusals: bool, as_json: bool, how: Loading, drawn: Any, **options: Any
) -> None:
    """How good the tuned MODEL (a run, a folder, a hub id) is on the rows of a file, by the metrics of its task; or
    what a judge says of the answers of one model or two.

    With --data, beside each metric stands the interval that holds 95 % of its values over samples of the rows
    (bootstrap). Rows without a target are counted and passed over; `--data FILE#strict=yes` makes them an error.

    With --judge, each MODEL (also an address, URL#NAME, or a file of answers in MT-bench's form) answers questions of
    two turns, and the judge compares the answers in both orders, or with --mode single scores them. Stopped or killed,
    the same command goes on where it was.

    With --refusals, MODEL answers prompts, and counted is how many it declines by the usual words.
    """
    judged = {name: options.pop(name) for name in judging.NAMES if name != "seed"} | {"seed": drawn.seed}
    if refusals:
        refused(paths, data, as_json, how, drawn, judged)
        return
    if judged["judge"] is not None:
        if data or given(options) or not drawn.plain:
            raise UsageError("--judge asks questions, and --data has rows with what is right; give one of them")
        judging.judge(paths, how, as_json, judged)
        return
    set_ones = [name for name in judging.NAMES if name not in ("judge", "seed", "quiet") and judged[name] is not None]
    if len(paths) > 1 or set_ones:
        what = f"--{set_ones[0]} is" if set_ones else "several models are"
        raise UsageError(f"{what} for a judge; give --judge MODEL, or one model with --data")
    if data is None:
        raise UsageError("give --data FILE (rows with what is right), or --judge MODEL")
    _measured(paths[0], data, as_json, how, drawn, options)


def refused(
    paths: tuple[str, ...], data: str | None, as_json: bool, how: Loading, drawn: Any, judged: Mapping[str, Any]
) -> None:
    """Print the share of prompts that each model refuses to answer."""
    from stemma.alignment import refusals
    from stemma.alignment.best import prompts

    if odd := [name for name, value in judged.items() if value and name not in ("seed", "template", "quiet")]:
        raise UsageError(f"--refusals counts answers that decline, and goes without --{odd[0]}")
    asked = prompts(data or refusals.BORDERLINE)
    found = {}
    for path in paths:
        writer = judging.writer_of(path, how, judged["template"])()
        found[path] = refusals.refusals(writer, asked, drawn.tokens or 128, drawn.temperature or 0.0, drawn.seed)
    if as_json:
        echo(json_text({path: refusals.figures(one) for path, one in found.items()}))
        return
    for path, one in found.items():
        low, high = one.interval
        echo(f"{path}: {one.share:.3f} of {one.prompts} prompts are refused ({low:.3f} to {high:.3f})")
        for kind, (share, count) in one.kinds.items():
            echo(f"  {kind:20} {share:.3f} of {count}")


def _measured(path: str, data: str, as_json: bool, how: Loading, drawn: Any, options: Mapping[str, Any]) -> None:
    from stemma.tuning.predicting import measured, scored_rows

    one = opened(path, how)
    rows, notes = scored_rows(one, data, given(options), drawn)
    for note in notes:
        disk.tell(note)
    found = measured(one, rows, how=drawn, **given(options))
    if as_json:
        ends = {name: list(pair) for name, pair in found.intervals.items()}
        echo(json_text({"rows": found.rows, "metrics": found.metrics, "intervals": ends}))
        return
    for name, value in found.metrics.items():
        low, high = found.intervals[name]
        echo(f"{name:12} {value:.4f}  ({low:.4f} to {high:.4f})")
    echo(f"{found.rows:,} rows; in brackets: 95 % of bootstrap samples of them")
