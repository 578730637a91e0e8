"""The mesh of a fleet that suits a plan, the rows at once that fit it, and what to do where nothing fits."""

from __future__ import annotations

from dataclasses import replace

from stemma.errors import ResourceError, UsageError
from stemma.parallel import Mesh, mesh
from stemma.planning.estimate import Estimate, estimate, timing, unfit
from stemma.planning.hardware import Device
from stemma.planning.outlook import Outlook
from stemma.train.config import Plan

FILL = 0.92  # of a device's memory that is planned with: allocators need room
SLICES = (1, 2, 4, 8)  # within one node, whose links are fast
MOST = 2**17  # devices of a fleet that is looked for
ROUNDED = 0.05  # share by which a batch may change before a mesh with more slices, fewer readers, is preferred


def meshes(count: int) -> list[Mesh]:
    """Every mesh of so many processes that keeps slices within a node, the fewest slices first."""
    found = []
    for tp in SLICES:
        for dp in (n for n in range(1, count + 1) if count % (n * tp) == 0):
            found.append(Mesh(dp=dp, fsdp=count // (dp * tp), tp=tp))
    return found


def largest(view: Outlook, mesh: Mesh, device: Device) -> Estimate | None:
    """The estimate with the most rows at once that fit, a power of two or all; None if not even one does."""
    most = view.plan.rows // mesh.readers
    sizes = [*(2**i for i in range(most.bit_length()) if 2**i < most), most]

    def fitting(micro: int) -> Estimate | None:
        found = estimate(view, mesh, device, micro)
        return found if found.memory <= FILL * device.memory else None

    if view.held / (mesh.fsdp * mesh.tp) > FILL * device.memory or (best := fitting(1)) is None:
        return None
    if (whole := fitting(sizes[-1])) is not None:
        return whole
    low, high = 1, len(sizes) - 1
    while low < high:  # what fits is a beginning of the list
        middle = (low + high) // 2
        found = fitting(sizes[middle])
        if found is None:
            high = middle
        else:
            best, low = found, middle + 1
    return best


def most(view: Outlook, mesh: Mesh, device: Device, least: int = 1) -> int:
    """Rows at once that a device would hold at most, whatever the batch (to within 3 %); 0 if not even one."""

    def fits(micro: int) -> bool:
        batch = micro * mesh.readers * view.plan.context
        other = replace(view.plan, recipe=replace(view.plan.recipe, batch=batch, ramp=None))
        return estimate(view.of(other), mesh, device, micro).memory <= FILL * device.memory

    low = least if fits(least) else 0
    high = 2 * max(least, 1) if low else least
    while low and fits(high):
        low, high = high, 2 * high
    while high - low > max(1, low // 32):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def able(view: Outlook, count: int) -> list[Mesh]:
    """The meshes of so many devices that the plan can run on."""
    return [m for m in meshes(count) if unfit(view.plan, m) is None]


def suggest(view: Outlook, count: int, device: Device) -> Estimate:
    """The fastest mesh of `count` devices whose parts fit, by the estimate; of equal ones the first of `meshes`. Raises
    ResourceError if none fits, UsageError if none can run."""
    known = able(view, count)
    if not known:
        raise UsageError(
            f"{view.plan.name} runs on no mesh of {count} {device.name}: {unfit(view.plan, Mesh(fsdp=count))}"
        )
    # a mesh is fastest with all rows at once; a slice is traced only where that could be faster than what fits
    bounds = [timing(view, m, device, view.plan.rows // m.readers).seconds for m in known]
    best: tuple[float, int, Estimate] | None = None
    for at in sorted(range(len(known)), key=bounds.__getitem__):
        if best is not None and (bounds[at], at) > best[:2]:
            continue
        if (found := largest(view, known[at], device)) is not None and (best is None or (found.seconds, at) < best[:2]):
            best = found.seconds, at, found
    if best is not None:
        return best[2]
    need = nearest(view, count, device).memory
    raise ResourceError(
        f"{view.plan.name} does not fit on {count} {device.name} of {device.memory / 1e9:.0f} GB: the best mesh "
        f"needs {need / 1e9:.1f} GB a device with one row at a time; {_instead(view, count, device)}"
    )


def nearest(view: Outlook, count: int, device: Device) -> Estimate:
    """Of the meshes that can run the one that needs the least memory, with one row at a time."""
    return min((estimate(view, m, device, 1) for m in able(view, count)), key=lambda e: e.memory)


def _instead(view: Outlook, count: int, device: Device) -> str:
    """What to do about a network that does not fit."""
    more, readers = count, max(1, view.plan.rows)
    while more <= MOST:
        more *= 2
        if view.held / more > FILL * device.memory:
            continue
        for tp in SLICES:
            mesh = Mesh(fsdp=more // tp, tp=tp) if more % tp == 0 else Mesh(fsdp=more)
            plan = rounded(view.plan, mesh.readers)
            if mesh.readers > readers or unfit(plan, mesh) is not None:
                continue
            if estimate(view.of(plan), mesh, device, 1).memory <= FILL * device.memory:
                again = " --recompute" if view.recompute else ""
                return f"{more} would do (--gpus {more}x{device.name} --mesh {mesh}{again})"
    again = "" if view.recompute else "--recompute or "
    return f"use devices with more memory, {again}a shorter train.context"


def suggestion(view: Outlook, count: int, device: Device) -> tuple[Outlook, Estimate, ResourceError | None]:
    """The mesh that suits best, with activations computed again where that is faster than slices, or nothing else fits;
    where nothing fits at all, the one that comes nearest, with the reason."""
    found: list[tuple[Outlook, Estimate]] = []
    failed: ResourceError | None = None
    for way in [view] if view.recompute else [view, view.recomputing()]:
        if found and mesh(found[0][1].mesh).tp == 1:
            break
        try:
            found.append((way, suggest(way, count, device)))
        except ResourceError as error:
            failed = error
    if found:
        return *min(found, key=lambda pair: pair[1].seconds), None
    return way, nearest(way, count, device), failed


def lacking(view: Outlook, found: Estimate, device: Device) -> ResourceError | None:
    """Why a mesh, or a number of rows, that was asked for does not fit; None if it does."""
    if found.memory <= FILL * device.memory:
        return None
    again = "" if view.recompute else "--recompute, "
    rows = "" if found.micro == 1 else f"fewer rows than --micro {found.micro}, "
    return ResourceError(
        f"{view.plan.name} does not fit on {device.name} of {device.memory / 1e9:.0f} GB with mesh {found.mesh}: it "
        f"needs {found.memory / 1e9:.1f} GB a device with {'one row' if found.micro == 1 else f'{found.micro:,} rows'} "
        f"at a time; try {again}{rows}another mesh, or none to have one chosen"
    )


def rounded(plan: Plan, readers: int) -> Plan:
    """The plan with the nearest batch that so many processes can share evenly."""
    rows = max(1, round(plan.rows / readers)) * readers
    return plan if rows == plan.rows else replace(plan, recipe=replace(plan.recipe, batch=rows * plan.context))


def shared(plan: Plan, grid: Mesh | None, count: int) -> tuple[Plan, int]:
    """A plan whose batch the processes of a mesh can share, and how many of them read: its own batch where it is a
    multiple of them, else the nearest one, for as few slices as leave it about what it is."""

    def moved(other: Plan) -> float:
        return abs(other.rows - plan.rows) / plan.rows

    grids = [grid] if grid is not None else [Mesh(fsdp=count // tp, tp=tp) for tp in SLICES if count % tp == 0]
    plans = [(rounded(plan, m.readers), m.readers) for m in grids if unfit(rounded(plan, m.readers), m) is None]
    if not plans:
        return plan, count  # it cannot run for another reason, which `suggest` and `estimate` tell
    return next((p for p in plans if moved(p[0]) <= ROUNDED), min(plans, key=lambda p: moved(p[0])))
