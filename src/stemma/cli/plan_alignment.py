"""`plan` of an alignment: its stages, each with its memory and time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from stemma.cli import console, emit
from stemma.cli.complete import complete_data
from stemma.errors import ResourceError, UsageError

if TYPE_CHECKING:
    from stemma.parallel import Mesh
    from stemma.planning import Device
    from stemma.planning.aligned import Needs

ALIGNED = ("data", "rewards", "reference", "base", "template", "lora", "quantize", "full")
MOMENTS = {"update": "an update", "sample": "sampling"}


def aligned_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of `stemma align` that a plan takes."""
    for decorate in (
        click.option("--full", is_flag=True, help="With --from: a recipe's published numbers, not scaled."),
        click.option("--quantize", type=click.Choice(["nf4", "int8"]), help="With --from: as in `stemma align`."),
        click.option("--lora", type=click.IntRange(min=1), metavar="RANK", help="With --from: as in `stemma align`."),
        click.option("--template", help="With --from: as in `stemma align`."),
        click.option("--base", metavar="MODEL", help="With --from: as in `stemma align`."),
        click.option("--reference", metavar="MODEL", help="With --from: as in `stemma align`."),
        click.option("--reward", "rewards", multiple=True, metavar="R", help="With --from: as in `stemma align`."),
        click.option("--data", shell_complete=complete_data, help="With --from: rows, as in `stemma align`."),
        click.option("--from", "start", metavar="MODEL", help="Plan an alignment of MODEL; NAME is what it learns by."),
    ):
        function = decorate(function)
    return function


def aligning(
    asked: Mapping[str, Any], fleet: tuple[int, Device, str | None], how: Mapping[str, Any], probed: bool,
    price: float | None, as_json: bool,
) -> None:  # fmt: skip
    """Plan what is asked for, and print it. Raises ResourceError where it does not fit."""
    from stemma.planning.search import FILL
    from stemma.planning.stages import Asked, stages

    count, device, mesh = fleet
    grids = _meshes(count, mesh)
    found: list[tuple[str, int, Needs, int]] = []
    for stage in stages(Asked(**asked)):
        seconds, timed = _probed(stage.plan) if probed else (None, 0)
        found.append((stage.word, stage.times, stage.needs(device, grids, seconds=seconds, **how), timed))
    data = [_data(word, times, one, timed, count, price) for word, times, one, timed in found]
    peak = max(one.memory for _, _, one, _ in found)
    hours = [one["hours"] for one in data]
    total = None if None in hours else sum(hours)
    fits = peak <= FILL * device.memory
    if as_json:
        emit({"name": asked["what"], "stages": data, "memory": peak, "fits": fits, "hours": total})
    else:
        for word, times, one, timed in found:
            _tell(word, times, one, device, count, timed)
        _sum(data, peak, device, total, count, price)
    if not fits:
        worst = max(found, key=lambda one: one[2].memory)
        raise ResourceError(
            f"{worst[0]} does not fit on {count} {device.name} of {size_text(device.memory)}: it needs "
            f"{size_text(worst[2].memory)} a device; try --micro 1, --recompute, --lora 16, or more devices"
        )


def _meshes(count: int, mesh: str | None) -> list[Mesh]:
    from stemma import parallel
    from stemma.planning.aligned import meshes

    if mesh is None:
        return meshes(count)
    grid = parallel.mesh(mesh)
    if grid.size != count:
        raise UsageError(f"mesh {grid} has {grid.size} processes, and --gpus names {count} devices")
    return [grid]


def _probed(plan: Any) -> tuple[float | None, int]:
    """The seconds of a step of a plan here, and how many were timed; none of answers that are not learnt from."""
    from stemma.planning.trials import timed_run
    from stemma.train.config import Plan

    return timed_run(plan) if isinstance(plan, Plan) else (None, 0)


def _data(word: str, times: int, one: Needs, timed: int, count: int, price: float | None) -> dict[str, Any]:
    hours = None if one.steps is None else times * one.steps * one.step_seconds / 3600
    cost = None if price is None or hours is None else price * hours * count
    return {"stage": word, "times": times, **one.table(), "timed": timed, "hours": hours, "cost": cost}


def _tell(word: str, times: int, one: Needs, device: Device, count: int, timed: int) -> None:
    out = console()

    def say(text: str, style: str | None = None) -> None:
        out.print(text, style=style, soft_wrap=True)

    again = f", {times} times" if times > 1 else ""
    learn = f", of which {one.learned:,} learn" if one.learned else ""
    say(f"{word} from {one.name}: {one.parameters:,} parameters{learn}{again}", "bold")
    kept = f", {one.held_out:,} held out" if one.held_out else ""
    if one.answers:
        drawn = f"{one.examples:,} prompts a step, " if one.updates else ""
        say(
            f"rows     {one.rows:,} prompts{kept}; {drawn}{one.answers:,} answers of at most {one.new_tokens} tokens "
            f"behind at most {one.prompt}"
        )
    else:
        say(f"rows     {one.rows:,}{kept}; {one.examples:,} a step")
    if one.updates:
        many = f"{one.updates} updates a step, each " if one.updates > 1 else ""
        rows, width = one.largest
        say(
            f"batch    {many}{one.batches} times {one.micro:,} at once on a device; the largest of {one.seen:,} steps "
            f"has {rows} rows of {width} tokens"
        )
    say(f"mesh     {one.mesh} of {count} {one.device}")
    for what, size in one.held.items():
        words = f"optimiser ({one.optimizer})" if what == "optimiser" else what
        out.print(f"  {words:<30}{size_text(size):>12}")
    for what, size in one.moments.items():
        more = (
            f"gradients {size_text(one.gradients)}" if what == "update" else f"keys and values {size_text(one.cache)}"
        )
        out.print(f"  {'in ' + MOMENTS[what]:<30}{size_text(size):>12}  of which {more}", soft_wrap=True)
    out.print(f"  {'together':<30}{size_text(one.memory):>12}  of {size_text(device.memory)} a device")
    parts = ", ".join(f"{what} {seconds:.3g}" for what, seconds in one.seconds.items()) if not timed else ""
    how = f"{timed} steps timed here" if timed else f"{parts}; {device.share:.0%} of the peak assumed"
    steps = "steps of a budget of time" if one.steps is None else f"{times * one.steps:,} steps"
    whole = "" if one.steps is None else f", {time_text(times * one.steps * one.step_seconds / 3600)}"
    say(f"time     {one.step_seconds:.3g} s a step, {steps}{whole} ({how})")


def _sum(
    data: list[dict[str, Any]], peak: float, device: Device, hours: float | None, count: int, price: float | None
) -> None:
    from stemma.planning.search import FILL

    out = console()
    verdict = "fits" if peak <= FILL * device.memory else "DOES NOT FIT"
    where = "" if len(data) == 1 else f" in {max(data, key=lambda one: one['memory'])['stage']}"
    out.print(f"peak     {size_text(peak)} a device{where}: {verdict}", style="bold", soft_wrap=True)
    if hours is not None and (len(data) > 1 or price is not None):
        cost = (
            "" if price is None else f", {count_text(price * hours * count, 2)} for {hours * count:,.1f} device-hours"
        )
        out.print(f"whole    {time_text(hours)}{cost}", soft_wrap=True)


def count_text(n: float, digits: int = 0) -> str:
    """A number."""
    return f"{n:,.{digits}f}" if n < 1e15 else f"{n:.3g}"


def size_text(n: float) -> str:
    """Bytes."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if n >= size:
            return f"{n / size:,.1f} {unit}"
    return f"{n / 1e3:,.1f} kB" if n >= 1e3 else f"{n:.0f} B"


def time_text(hours: float) -> str:
    """A time."""
    if hours >= 48:
        return f"{count_text(hours / 24, 1)} days"
    if hours >= 1:
        return f"{hours:.1f} hours"
    return f"{hours * 60:.1f} minutes"
