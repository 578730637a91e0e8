"""`plan`: what a run will need, before it is begun."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from stemma.cli import command, console, emit
from stemma.cli.complete import complete_names, scale_option, set_option
from stemma.cli.plan_alignment import ALIGNED, aligned_options, aligning, count_text, size_text, time_text
from stemma.cli.tuning import changed
from stemma.errors import ResourceError, UsageError

if TYPE_CHECKING:
    from stemma.parallel import Mesh
    from stemma.planning import Device, Estimate, Outlook
    from stemma.train.config import Plan

BATCH = 2**20  # tokens a step where nobody says
POSITIVE = click.FloatRange(min=0, min_open=True)
NETWORK = "Each device's part of what leaves its node of eight.  [default: that of the maker's own nodes]"
TOKENS = 20  # a parameter, where nobody says (Hoffmann et al. 2022, arXiv:2203.15556)


FIGURES = (  # of a device
    ("--memory", "GB", "Of one device, in place of the maker's figure."),
    ("--peak", "TFLOPS", "Its dense bf16 operations."),
    ("--bandwidth", "GB/s", "Of its memory."),
    ("--link", "GB/s", "To another device of its node, one way."),
    ("--network", "GB/s", NETWORK),
)
UNITS = {"peak": 1e12}  # of each figure; else 1e9


def device_figures(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that describe a device."""
    for name, unit, help in reversed(FIGURES):
        function = click.option(name, type=POSITIVE, metavar=unit, help=help)(function)
    return function


@command()
@click.argument("name", required=False, shell_complete=complete_names)
@click.option("--gpus", default="1xCPU", show_default=True, metavar="NxDEVICE", help="Such as 64xH100, or 8xA100-80.")
@click.option("--mesh", metavar="AXES", help="Such as fsdp=8,tp=2.  [default: the best that fits]")
@click.option("--micro", type=click.IntRange(min=1), help="Rows at once on a device.  [default: the most that fit]")
@click.option("--recompute", is_flag=True, help="Blocks keep no activations and compute them again.")
@device_figures
@click.option("--price", type=click.FloatRange(min=0), help="Of a device-hour, in your currency.")
@click.option("--probe", "probed", is_flag=True, help="Time five steps on this machine instead of assuming a speed.")
@click.option("--budget", help="As in pretrain.  [default: the published steps, or 20 tokens a parameter; on a CPU 5m]")
@scale_option(help="tiny, mini, small, or full (the published size).  [default: full with --gpus, else tiny]")
@set_option("Change the plan, e.g. recipe.batch=65536.")
@click.option("--config", type=click.Path(), metavar="FILE", help="YAML, TOML or JSON with such paths.")
@aligned_options
@click.option("--json", "as_json", is_flag=True, help="Print plain data as JSON.")
def plan(name: str | None, start: str | None, **options: Any) -> None:
    """Say what training NAME needs on some devices: memory, time and, at your price, money.

    Nothing is downloaded or read, and no weights are made: a step is traced on torch's meta device, by a few layers.
    Takes the settings of `stemma pretrain`.

    With --from, NAME is a method or recipe of alignment (dpo, ppo, instructgpt ...), and `plan` stands where `align`
    would: stemma plan dpo --from MODEL --data FILE. The rows are read, and the batches that the run will read are
    traced; sampled answers are taken to be as long as they may be.

    A device that is not known is described: --gpus 2xMine --memory 48 --peak 200 --bandwidth 900. The same options
    replace figures of one that is.

    Of adapters that were tuned beside 4-bit weights (qlora-65b), NAME alone gives the published memory line by line.
    """
    asked = {key: options.pop(key) for key in ALIGNED}
    if start is None:
        if odd := next((key for key, value in asked.items() if value), None):
            raise UsageError(f"--{odd.rstrip('s')} is of alignment: name the model that it begins from (--from)")
        _training(name, **options)
    elif name is None or options["scale"] is not None:
        lacking = "a method or recipe such as dpo is to be named" if name is None else "leave --scale out"
        raise UsageError(f"--from plans an alignment from weights that exist: {lacking}")
    else:
        _alignment({"what": name, "start": start, **asked}, options)


def _alignment(asked: dict[str, Any], options: dict[str, Any]) -> None:
    """Plan an alignment. `options`: those of the command that trainings have too."""
    figures = {flag.removeprefix("--"): options[flag.removeprefix("--")] for flag, _, _ in FIGURES}
    probed = options["probed"]
    count, device = _fleet(options["gpus"], _figures(figures), probed)
    asked |= {"budget": options["budget"], "overrides": changed(options["config"], options["sets"], None, False)}
    how = {"micro": options["micro"], "recompute": options["recompute"]}
    aligning(asked, (count, device, options["mesh"]), how, probed, options["price"], options["as_json"])


def _training(
    name: str | None,
    gpus: str,
    mesh: str | None,
    micro: int | None,
    recompute: bool,
    price: float | None,
    probed: bool,
    budget: str | None,
    scale: str | None,
    sets: tuple[str, ...],
    config: str | None,
    as_json: bool,
    **figures: float | None,
) -> None:
    """Plan a training from scratch."""
    from stemma import parallel
    from stemma.cli.training import given

    names = ("gpus", "mesh", "micro", "recompute", "price", "probed", "budget", "scale", "config", *figures)
    if name and not sets and not given(*names) and _published(name, as_json):
        return
    count, device = _fleet(gpus, _figures(figures), probed)
    notes: list[str] = []
    view = _draft(name, config, sets, scale, budget, device, recompute, notes)
    grid = parallel.mesh(mesh) if mesh is not None else None
    if grid is not None and grid.size != count:
        raise UsageError(f"mesh {grid} has {grid.size} processes, and --gpus {gpus} names {count} devices")
    view, found, steps, failed = _found(_shared(view, grid, count, notes), grid, micro, count, device, probed)
    data = _data(view, found, count, price, device, probed) | {"notes": notes, "timed": steps}
    if as_json:
        emit(data)
    else:
        _tell(view.plan, found, device, data, probed)
    if failed is not None:
        raise failed


def _published(name: str, as_json: bool) -> bool:
    """Print the memory of a published tuning of adapters beside 4-bit weights. False for any other size."""
    from stemma import families
    from stemma.planning.published import GPU, example

    design = families.design(name)
    found = example(families.family(name), design)
    if found is None:
        return False
    fits = found.memory <= GPU
    if as_json:
        data = found._asdict() | {"name": design.name, "memory": found.memory, "device": GPU, "fits": fits}
        emit(data | {"lines": [line._asdict() for line in found.lines]})
        return True
    out = console()
    bits = 8 * sum(line.bytes for line in found.lines[:2]) / found.quantised
    out.print(
        f"{design.name} as published: {found.parameters:,} parameters, of which {found.quantised:,} have {bits:.3f} "
        f"bits each; {found.learned:,} more learn; one row of {found.context} tokens at a time",
        style="bold",
        soft_wrap=True,
    )
    for line in found.lines:
        out.print(f"  {line.what:<18}{size_text(line.bytes):>10}  {line.how}", soft_wrap=True)
    verdict = "fits" if fits else "DOES NOT FIT"
    out.print(
        f"  {'together':<18}{size_text(found.memory):>10}  of {size_text(GPU)} of one GPU: {verdict}", soft_wrap=True
    )
    out.print(
        f"  tuning all weights would take {size_text(found.full)}: 12 bytes each, and activations", soft_wrap=True
    )
    out.print("a run of your own is planned with --gpus and rewrites (docs/adapters.md)", soft_wrap=True)
    return True


def _figures(given: dict[str, float | None]) -> dict[str, float]:
    """The figures of a device that are given, in its units."""
    return {name: value * UNITS.get(name, 1e9) for name, value in given.items() if value is not None}


def _fleet(gpus: str, figures: dict[str, float], probed: bool) -> tuple[int, Device]:
    """How many devices, and which. `figures`: those of a device that are given."""
    from stemma.planning import HARDWARE, fleet

    count, device = fleet(gpus, figures)
    if probed and (count > 1 or device.name != HARDWARE["cpu"].name):
        raise UsageError("--probe times steps on this machine; leave out --gpus")
    return count, device


def _found(
    view: Outlook, grid: Mesh | None, micro: int | None, count: int, device: Device, probed: bool
) -> tuple[Outlook, Estimate, int, ResourceError | None]:
    """The estimate that is asked for, with its outlook, the number of timed steps, and why it does not fit."""
    from stemma.parallel import Mesh
    from stemma.planning import estimate
    from stemma.planning.search import lacking, largest, suggestion

    if probed:
        return view, *_probed(view, micro), None
    if grid is None and micro is None:
        view, found, failed = suggestion(view, count, device)
        return view, found, 0, failed
    grid = grid or Mesh(fsdp=count)
    found = (None if micro else largest(view, grid, device)) or estimate(view, grid, device, micro or 1)
    return view, found, 0, lacking(view, found, device)


def _draft(
    name: str | None,
    config: str | None,
    sets: tuple[str, ...],
    scale: str | None,
    budget: str | None,
    device: Device,
    recompute: bool,
    notes: list[str],
) -> Outlook:
    """The run to plan. What is unpublished and matters here is replaced by an assumption, which is noted."""
    from dataclasses import replace

    from stemma.cli.training import settings
    from stemma.planning import Outlook
    from stemma.train import drafted

    name, changes = settings(name, config, sets)
    scale = str(changes.pop("scale", None) or scale or ("full" if device.name != "CPU" else "tiny"))
    given = changes.pop("train.budget", None) or budget
    if given is None and "recipe.steps" in changes:
        given = f"{changes['recipe.steps']} steps"
    full = drafted(name, budget=str(given or "5m"), scale=scale, overrides=changes)
    if full.recipe.batch is None:
        full = replace(full, recipe=replace(full.recipe, batch=max(1, BATCH // full.context) * full.context))
        notes.append(f"recipe.batch of {full.name} is unpublished: {full.recipe.batch:,} tokens a step are assumed")
    view = Outlook(full, recompute=recompute)
    if given is not None or device.name == "CPU":
        return view
    steps = full.recipe.steps if scale == "full" else None
    words = f"{steps} steps" if steps else f"{TOKENS * view.parameters} tokens"
    if not steps:
        notes.append(f"no budget is given or published: {TOKENS} tokens a parameter are assumed")
    return view.of(replace(full, train=replace(full.train, budget=words)))


def _shared(view: Outlook, grid: Mesh | None, count: int, notes: list[str]) -> Outlook:
    """The plan with a batch that the processes can share, noted where it is another."""
    from stemma.planning.search import shared

    full = view.plan
    other, readers = shared(full, grid, count)
    if other.rows == full.rows:
        return view
    notes.append(
        f"a step of {full.rows:,} rows is no multiple of the {readers} processes that read: {other.rows:,} are "
        f"planned (recipe.batch={other.recipe.batch})"
    )
    return view.of(other)


def _probed(view: Outlook, micro: int | None) -> tuple[Estimate, int]:
    """The estimate for this machine, with steps that were timed, and how many were."""
    from dataclasses import replace

    from stemma.parallel import Mesh
    from stemma.planning import HARDWARE, estimate, timed

    full = view.plan
    rows = micro or full.train.micro or max(1, 4096 // full.context)
    found = timed(replace(full, train=replace(full.train, micro=rows)))
    return estimate(view, Mesh(), HARDWARE["cpu"], rows, found.seconds), found.steps


def _data(
    view: Outlook, found: Estimate, count: int, price: float | None, device: Device, probed: bool
) -> dict[str, Any]:
    from stemma.parallel import mesh
    from stemma.planning.estimate import duration, steps_within, table
    from stemma.planning.search import FILL, most

    full = view.plan
    seconds = _seconds(full.train.budget)
    steps = view.steps if view.steps is not None else steps_within(view, found, device, 0.9 * seconds)
    hours = duration(view, found, device, steps) / 3600
    tokens, whole = full.rows * full.context, view.tokens(steps)
    return {
        "name": full.name,
        "scale": full.scale,
        "devices": count,
        "parameters": view.parameters,
        "learned": view.learned,
        "recompute": view.recompute,
        "optimizer": type(full.recipe.optimizer).__name__,
        "tokens_per_step": tokens,
        "steps": steps,
        "tokens": whole,
        "flops_per_token": view.work,
        "flops_per_step": view.work * tokens,
        "flops": view.work * whole,
        "tokens_per_second": tokens / found.seconds,
        "utilization": None if probed else view.work * tokens / found.seconds / count / device.peak,
        "hours": hours,
        "device_hours": hours * count,
        "cost": None if price is None else price * hours * count,
        "largest": most(view, mesh(found.mesh), device, found.micro),
        "fits": found.memory <= FILL * device.memory,
        "estimate": table(found),
    }


def _seconds(text: str) -> float:
    from stemma.train import budget

    return budget(text).seconds or 0.0


def _tell(full: Plan, found: Estimate, device: Device, data: dict[str, Any], probed: bool) -> None:
    out = console()

    def say(text: str, style: str | None = None) -> None:
        if out.is_terminal:  # the words of a line stand below each other; a pipe gets it whole
            text = textwrap.fill(
                text, out.width, subsequent_indent=" " * 9, break_on_hyphens=False, break_long_words=False
            )
        out.print(text, style=style, soft_wrap=True)

    some = f", of which {data['learned']:,} learn" if data["learned"] < data["parameters"] else ""
    say(
        f"{full.name} ({full.scale}): {data['parameters']:,} parameters{some}, {data['tokens_per_step']:,} tokens a "
        f"step, rows of {full.context}",
        "bold",
    )
    for note in data["notes"]:
        say(f"note     {note}")
    say(f"mesh     {found.mesh} of {data['devices']} {found.device}")
    again = " --set \"train.recompute=['*.blocks.*']\"" if data["recompute"] else ""
    if data["devices"] > 1 or again:
        out.print(f"  stemma pretrain ... --mesh {found.mesh}{again}", soft_wrap=True)
    kept = ", activations computed again" if data["recompute"] else ""
    most = f"at most {data['largest']:,} would fit" if data["largest"] else "not even one fits"
    say(f"batch    {found.micro:,} rows at once on a device, {found.accumulate:,} times a step; {most}{kept}")
    optimizer = f"optimiser ({data['optimizer']})"
    for words, key in (
        ("weights", "weights"),
        ("frozen weights", "frozen"),
        ("gradients", "gradients"),
        (optimizer, "optimizer"),
        ("gathered", "gathered"),
        ("activations", "activations"),
    ):
        if (size := getattr(found, key)) > 0:
            out.print(f"  {words:<22}{size_text(size):>12}")
    verdict = "fits" if data["fits"] else "DOES NOT FIT"
    out.print(f"  {'together':<22}{size_text(found.memory):>12}  of {size_text(device.memory)} a device: {verdict}")
    out.print(
        f"  logits of a micro-batch {size_text(found.logits)}; cache of one row in inference {size_text(found.cache)}"
    )
    say(
        f"work     {data['flops_per_token']:.3g} FLOPs a token, {data['flops_per_step']:.3g} a step, "
        f"{data['flops']:.3g} in {count_text(data['steps'])} steps of {data['tokens']:.3g} tokens together"
    )
    how = f"{data['timed']} steps timed here" if probed else f"{device.share:.0%} of the peak assumed"
    if not probed and found.waiting > 0:
        how = f"{how}, {found.waiting:.3g} s for the sums of slices"
    if not probed and found.sending > found.computing + found.waiting:
        how = f"{how}, and messages take longer: {found.sending:.3g} s a step"
    speed = (
        f"{found.seconds:.3g} s a step, {count_text(data['tokens_per_second'])} tokens/s, {time_text(data['hours'])}"
    )
    say(f"time     {speed} ({how})")
    hours = f"{count_text(data['device_hours'], 1)} device-hours"
    if data["cost"] is not None:
        say(f"cost     {count_text(data['cost'], 2)} for {hours}")
    else:
        say(f"cost     {hours} (--price says what one costs)")
