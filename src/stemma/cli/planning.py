"""`plan`: what a run will need, before it is begun."""

from __future__ import annotations

from typing import Any

import click

from stemma.cli import command, complete_names, console, emit
from stemma.errors import UsageError


@command()
@click.argument("name", required=False, shell_complete=complete_names)
@click.option("--gpus", default="1xCPU", show_default=True, metavar="NxDEVICE", help="Such as 64xH100, or 8xA100-80.")
@click.option("--mesh", metavar="AXES", help="Such as fsdp=8,tp=2.  [default: the best that fits]")
@click.option("--micro", type=click.IntRange(min=1), help="Rows at once on a device.  [default: the most that fit]")
@click.option("--recompute", is_flag=True, help="Blocks keep no activations and compute them again.")
@click.option("--price", type=click.FloatRange(min=0), help="Of a device-hour, in your currency.")
@click.option("--probe", "probed", is_flag=True, help="Time five steps on this machine instead of assuming a speed.")
@click.option("--budget", default="5m", show_default=True, help="As in pretrain; a time needs --probe.")
@click.option("--scale", default="tiny", show_default=True, help="tiny, mini, small, or full (the published size).")
@click.option("--set", "sets", multiple=True, metavar="PATH=VALUE", help="Change the plan, e.g. recipe.batch=65536.")
@click.option("--config", type=click.Path(), metavar="FILE", help="YAML, TOML or JSON with such paths.")
@click.option("--json", "as_json", is_flag=True, help="Print plain data as JSON.")
def plan(
    name: str | None,
    gpus: str,
    mesh: str | None,
    micro: int | None,
    recompute: bool,
    price: float | None,
    probed: bool,
    budget: str,
    scale: str,
    sets: tuple[str, ...],
    config: str | None,
    as_json: bool,
) -> None:
    """Say what training NAME needs on some devices: memory, time and, at your price, money.

    Nothing is downloaded, read or built: a step is traced without numbers. Takes the settings of `stemma pretrain`.
    """
    from stemma import parallel
    from stemma.cli.training import settings
    from stemma.planning import HARDWARE, Outlook, estimate, fleet, suggest
    from stemma.planning import probe as measure
    from stemma.planning.estimate import FILL, largest, table
    from stemma.train import resolve

    count, device = fleet(gpus)
    name, changes = settings(name, config, sets)
    if "recipe.steps" in changes and "train.budget" not in changes:
        budget = f"{changes['recipe.steps']} steps"
    full = resolve(name, budget=str(changes.pop("train.budget", budget)), scale=scale, overrides=changes)
    view = Outlook(full, recompute=recompute)
    grid = parallel.mesh(mesh) if mesh is not None else None
    if grid is not None and grid.size != count:
        raise UsageError(f"mesh {grid} has {grid.size} processes, and --gpus {gpus} names {count} devices")
    if probed and (count > 1 or device is not HARDWARE["cpu"]):
        raise UsageError("--probe times steps on this machine; leave out --gpus")
    seconds = measure(full) if probed else None
    if grid is not None or micro is not None or probed:
        grid = grid or parallel.Mesh(fsdp=count)
        chosen = None if micro or probed else largest(view, grid, device)
        rows = micro or full.train.micro or max(1, 4096 // full.context)
        found = chosen or estimate(view, grid, device, rows, seconds)
    else:
        found = suggest(view, count, device)
    data = _data(view, found, count, price) | {"fits": found.memory <= FILL * device.memory, "estimate": table(found)}
    if as_json:
        emit(data)
    else:
        _tell(full, found, device, data, probed)


def _data(view: Any, found: Any, count: int, price: float | None) -> dict[str, Any]:
    full, limit = view.plan, _seconds(view.plan.train.budget)
    steps = view.steps if view.steps is not None else max(1, int(0.9 * limit / found.seconds))
    hours = steps * found.seconds / 3600
    tokens = full.rows * full.context
    return {
        "name": full.name,
        "scale": full.scale,
        "devices": count,
        "parameters": view.parameters,
        "tokens_per_step": tokens,
        "steps": steps,
        "flops_per_token": view.work,
        "flops": view.work * tokens * steps,
        "tokens_per_second": tokens / found.seconds,
        "hours": hours,
        "device_hours": hours * count,
        "cost": None if price is None else price * hours * count,
    }


def _seconds(text: str) -> float:
    from stemma.train import budget

    return budget(text).seconds or 0.0


def _tell(full: Any, found: Any, device: Any, data: dict[str, Any], probed: bool) -> None:
    out = console()
    out.print(
        f"{full.name} ({full.scale}): {data['parameters']:,} parameters, {data['tokens_per_step']:,} tokens a step, "
        f"rows of {full.context}",
        style="bold",
    )
    launch = "" if data["devices"] == 1 else f"  (stemma pretrain ... --mesh {found.mesh})"
    out.print(f"mesh     {found.mesh} of {data['devices']} {found.device}{launch}", soft_wrap=True)
    out.print(f"batch    {found.micro} rows at once, {found.accumulate} times a step")
    for words, key in (
        ("weights", "weights"),
        ("gradients", "gradients"),
        ("optimiser", "optimizer"),
        ("gathered", "gathered"),
        ("activations", "activations"),
    ):
        out.print(f"  {words:<12}{_size(getattr(found, key)):>10}")
    verdict = "fits" if data["fits"] else "DOES NOT FIT"
    out.print(f"  {'together':<12}{_size(found.memory):>10}  of {_size(device.memory)} a device: {verdict}")
    out.print(f"  logits of a micro-batch {_size(found.logits)}; cache of one row in inference {_size(found.cache)}")
    out.print(f"work     {data['flops_per_token']:.3g} FLOPs a token, {data['flops']:.3g} in {data['steps']:,} steps")
    how = "five steps timed here" if probed else f"{device.share:.0%} of the peak assumed"
    speed = f"{found.seconds:.3g} s a step, {data['tokens_per_second']:,.0f} tokens/s, {_time(data['hours'])}"
    out.print(f"time     {speed} ({how})", soft_wrap=True)
    if data["cost"] is not None:
        out.print(f"cost     {data['cost']:,.2f} for {data['device_hours']:,.1f} device-hours")


def _size(n: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if n >= size:
            return f"{n / size:,.1f} {unit}"
    return f"{n / 1e3:,.1f} kB"


def _time(hours: float) -> str:
    if hours >= 48:
        return f"{hours / 24:,.1f} days"
    return f"{hours:.1f} hours" if hours >= 1 else f"{hours * 60:.1f} minutes"
