"""Stacks of boxes as SVG. Two designs are laid out together, so that what corresponds stands at the same height."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from html import escape

from stemma.pictures.block import AFTER, BEFORE, BLOCK, Item, Stack, Sum
from stemma.pictures.marks import width, wrap

WIDE = 290.0  # a stack
BOX_X, BOX_W = 14.0, 236.0
MID = BOX_X + BOX_W / 2
LOOP = 267.0  # where a residual line runs
FRAME_X, FRAME_W = 4.0, 278.0
GAP = 18.0
TITLE, TEXT, LINE = 14.0, 12.5, 16.0
PAD = 9.0
SUM = 20.0

Mark = Callable[[Item], tuple[str, str]]  # "" | "changed" | "only", and the words that say what changed


@dataclass(frozen=True)
class Place:
    """Where something stands: its upper edge and its height."""

    y: float
    h: float

    @property
    def end(self) -> float:
        return self.y + self.h


@dataclass(frozen=True)
class Plan:
    """The heights of all places in a group of stacks that are drawn side by side."""

    places: dict[str, Place]
    frame: Place
    height: float


def plan(stacks: Iterable[Stack]) -> Plan:
    """Heights at which every box of each of `stacks` has room."""
    stacks = list(stacks)
    needed: dict[str, float] = {}
    for stack in stacks:
        for item in (*stack.before, *stack.block, *stack.after):
            h = SUM if isinstance(item, Sum) else box_height(item)
            needed[item.key] = max(needed.get(item.key, 0.0), h)
    head = max(place.end for stack in stacks for _, _, _, place in frame_chips(stack, 0.0))
    y = 6.0
    places: dict[str, Place] = {}

    def put(keys: Iterable[str]) -> None:
        nonlocal y
        for key in keys:
            if key in needed:
                places[key] = Place(y, needed[key])
                y += needed[key] + GAP

    put(reversed(AFTER))
    top = y
    y += head + GAP
    put(reversed(BLOCK))
    frame = Place(top, y + 4 - top)
    y = frame.end + GAP
    put(reversed(BEFORE))
    return Plan(places, frame, y - GAP + 6)


def draw(stack: Stack, plan: Plan, mark: Mark, *, label: str, lift: float = 0.0, memory: float | None = None) -> str:
    """A stack as an SVG of the width `WIDE`.

    `lift`: room left above it; `memory`: for the encoder of an encoder-decoder, the height above the bottom at which
    its output leaves to the right, for the decoder's cross-attention.
    """
    height = plan.height + lift
    out = [
        f'<svg class="stack" width="{WIDE:.0f}" height="{height:.0f}" viewBox="0 {-lift:.0f} {WIDE:.0f} {height:.0f}" '
        f'role="img" aria-label="{escape(label)}">',
        f'<rect class="frame" x="{FRAME_X}" y="{plan.frame.y}" width="{FRAME_W}" height="{plan.frame.h:.1f}" rx="14"/>',
    ]
    order = [*stack.before, *stack.block, *stack.after]
    for lower, upper in itertools.pairwise(order):
        loose = not stack.wired and lower in stack.block and upper in stack.block
        out.append(arrow(MID, plan.places[lower.key].y, plan.places[upper.key].end, loose))
    if stack.role == "encoder" and memory is not None:
        start, y = plan.places[order[-1].key].y, plan.height - memory
        top, edge = min(start, plan.frame.y) - 12, WIDE - 4
        bend = 6 if y > top else -6
        out.append(
            f'<path class="wire memory" d="M{MID} {start:.1f}V{top:.1f}H{edge - 6}'
            f"Q{edge} {top:.1f} {edge} {top + bend:.1f}"
            f'V{y - bend:.1f}Q{edge} {y:.1f} {WIDE} {y:.1f}"/>'
            f'<text class="small" x="{MID - 8}" y="{top - 5:.1f}" text-anchor="end">to the decoder</text>'
        )
    for chip, x, w, place in frame_chips(stack, plan.frame.y):
        out.append(draw_chip(chip, x, place.y, w, place.h, mark))
    for item in order:
        place = plan.places[item.key]
        if isinstance(item, Sum):
            out.append(draw_sum(place, plan.places[item.below]))
        else:
            out.append(draw_box(item, place, mark))
        if item.key == "cross.in":
            middle = place.y + place.h / 2
            out.append(f'<path class="wire memory" d="M0 {middle:.1f}H{BOX_X - 6}"/>{head(BOX_X, middle, "right")}')
    return "".join([*out, "</svg>"])


def frame_chips(stack: Stack, top: float) -> list[tuple[Item, float, float, Place]]:
    """What is said of the block as a whole, with left edges and widths: short words on both sides of the line, what
    needs more room in a row of its own."""
    x, end, y = FRAME_X + PAD, FRAME_X + FRAME_W - PAD, top + PAD
    found: list[tuple[Item, float, float, Place]] = []
    sides = [(x, MID - 9 - x), (MID + 9, end - MID - 9)]
    for chip in stack.frame:
        short = not chip.text and sides and width(chip.title, TEXT, bold=True) < sides[0][1] - 2 * PAD - 18
        left, w = sides.pop(0) if short else (x, end - x)
        h = chip_height(chip, w)
        if not short:
            y = max([y, *(p.end + 5 for _, _, _, p in found)])
        found.append((chip, left, w, Place(y, h)))
    return found


def memory_height(plan: Plan) -> float:
    """How far above the bottom the cross-attention of a decoder takes in the encoder's output."""
    place = plan.places["cross.in"]
    return plan.height - place.y - place.h / 2


# ---------------------------------------------------------------- wires


def arrow(x: float, start: float, end: float, loose: bool = False) -> str:
    """From `start` up to `end`; `loose`: dotted and without a head, where how things are joined is not known."""
    if loose:
        return f'<path class="wire loose" d="M{x} {start:.1f}V{end:.1f}"/>'
    return f'<path class="wire" d="M{x} {start:.1f}V{end + 5:.1f}"/>{head(x, end, "up")}'


def head(x: float, y: float, way: str) -> str:
    shape = {"up": "l-4.5 7h9Z", "right": "l-7-4.5v9Z", "left": "l7-4.5v9Z"}[way]
    return f'<path class="head" d="M{x:.1f} {y:.1f}{shape}"/>'


def draw_sum(place: Place, below: Place) -> str:
    """The sum of a branch and of the stream beside it, which leaves the line below the branch."""
    y, tap, r = place.y + SUM / 2, below.end + GAP / 2 + 2, 9.0
    return (
        f'<path class="wire" d="M{MID} {tap:.1f}H{LOOP - 8}Q{LOOP} {tap:.1f} {LOOP} {tap - 8:.1f}'
        f'V{y + 8:.1f}Q{LOOP} {y:.1f} {LOOP - 8} {y:.1f}H{MID + r + 5}"/>{head(MID + r, y, "left")}'
        f'<circle class="dot" cx="{MID}" cy="{tap:.1f}" r="2.6"/>'
        f'<circle class="sum" cx="{MID}" cy="{y:.1f}" r="{r}"/>'
        f'<path class="plus" d="M{MID - 4.5} {y:.1f}h9M{MID} {y - 4.5:.1f}v9"/>'
    )


# ---------------------------------------------------------------- boxes


def lines(item: Item, room: float) -> list[str]:
    return [line for text in item.text for line in wrap(text, room, TEXT)]


def titles(item: Item, room: float, size: float) -> list[str]:
    return wrap(item.title, (room - 18) / 1.09, size)  # they are bold, and end before the badge


def box_height(item: Item) -> float:
    room = BOX_W - 2 * PAD
    h = PAD + LINE * (len(titles(item, room, TITLE)) + len(lines(item, room))) + PAD - 2
    if item.sketch:
        h += SKETCHES[item.sketch[0]][0]
    return h + sum(chip_height(chip, BOX_W - 2 * PAD) + 5 for chip in item.chips)


def chip_text(item: Item, room: float) -> tuple[float, list[str], list[str]]:
    """The left edge of a chip's text inside it, and the lines of its title and of its text."""
    left = PAD + (34.0 if item.sketch else 0.0)
    return left, titles(item, room - left - PAD, TEXT), lines(item, room - left - PAD - 16)


def chip_height(item: Item, room: float) -> float:
    _, title, said = chip_text(item, room)
    return max(LINE * (len(title) + len(said)) + 8, 40.0 if item.sketch else 0.0)


def draw_box(item: Item, place: Place, mark: Mark) -> str:
    found, why = mark(item)
    out = [open_group("box", item, found, why)]
    out.append(f'<rect x="{BOX_X}" y="{place.y:.1f}" width="{BOX_W}" height="{place.h:.1f}" rx="9"/>')
    y = place.y + PAD + TITLE - 2 - LINE
    for line in titles(item, BOX_W - 2 * PAD, TITLE):
        y += LINE
        out.append(f'<text class="title" x="{BOX_X + PAD}" y="{y:.1f}">{escape(line)}</text>')
    for line in lines(item, BOX_W - 2 * PAD):
        y += LINE
        out.append(f'<text x="{BOX_X + PAD}" y="{y:.1f}">{escape(line)}</text>')
    y += 7
    if item.sketch:
        h, sketch = SKETCHES[item.sketch[0]]
        out.append(sketch(BOX_X + PAD, y, *item.sketch[1:]))
        y += h
    out.append(badge(found, BOX_X + BOX_W - 15, place.y + 15))
    out.append("</g>")
    for chip in item.chips:
        h = chip_height(chip, BOX_W - 2 * PAD)
        out.append(draw_chip(chip, BOX_X + PAD, y, BOX_W - 2 * PAD, h, mark))
        y += h + 5
    return "".join(out)


def draw_chip(item: Item, x: float, y: float, w: float, h: float, mark: Mark) -> str:
    found, why = mark(item)
    left, title, said = chip_text(item, w)
    out = [open_group("chip", item, found, why)]
    out.append(f'<rect x="{x}" y="{y:.1f}" width="{w}" height="{h:.1f}" rx="6"/>')
    if item.sketch:
        out.append(SKETCHES[item.sketch[0]][1](x + 7, y + 7, *item.sketch[1:]))
    line = y
    for text in title:
        line += LINE
        out.append(f'<text class="label" x="{x + left:.1f}" y="{line:.1f}">{escape(text)}</text>')
    for text in said:
        line += LINE
        out.append(f'<text x="{x + left:.1f}" y="{line:.1f}">{escape(text)}</text>')
    out.append(badge(found, x + w - 14, y + 13))
    return "".join([*out, "</g>"])


def open_group(kind: str, item: Item, found: str, why: str) -> str:
    css = " ".join(x for x in (kind, found, "" if item.known else "unknown") if x)
    title = f"<title>{escape(why)}</title>" if why else ""
    return f'<g class="{css}" data-key="{escape(item.key)}" data-paths="{escape(" ".join(item.paths))}">{title}'


def badge(found: str, x: float, y: float) -> str:
    """The sign of a difference, so that it is not told by colour alone."""
    sign = {"changed": "≠", "only": "+"}.get(found)
    if sign is None:
        return ""
    return (
        f'<circle class="badge" cx="{x:.1f}" cy="{y:.1f}" r="9"/>'
        f'<text class="sign" x="{x:.1f}" y="{y + 4.6:.1f}" text-anchor="middle">{sign}</text>'
    )


# ---------------------------------------------------------------- small drawings


def heads_sketch(x: float, y: float, heads: int, kv: int) -> str:
    """Query heads in a row, and below them the heads of keys and values that they share."""
    room = BOX_W - 2 * PAD - 24
    out = []
    for row, (n, label) in enumerate(((heads, "q"), (kv, "k v"))):
        w = room / n
        gap = min(2.0, w * 0.25)
        top = y + row * 14
        bars = "".join(f"M{x + 24 + i * w:.2f} {top:.1f}h{w - gap:.2f}v9h-{w - gap:.2f}Z" for i in range(n))
        out.append(f'<text class="small" x="{x}" y="{top + 9:.1f}">{label}</text><path class="fill" d="{bars}"/>')
    return "".join(out)


def mask_sketch(x: float, y: float, kind: str) -> str:
    """Which of six tokens (rows) see which (columns)."""
    n, cell = 6, 4.4
    window = {"full": n, "causal": n, "sliding": 3}

    def seen(row: int, col: int) -> bool:
        if kind == "full":
            return True
        reach = window.get(kind, n if row % 2 == 0 else 2)  # of two masks in turn the rows alternate
        return row - reach < col <= row

    on = "".join(
        f"M{x + c * cell:.1f} {y + r * cell:.1f}h3.8v3.8h-3.8Z" for r in range(n) for c in range(n) if seen(r, c)
    )
    edge = n * cell + 1.4
    return (
        f'<rect class="grid" x="{x - 1:.1f}" y="{y - 1:.1f}" width="{edge:.1f}" height="{edge:.1f}"/>'
        f'<path class="fill" d="{on}"/>'
    )


def plain_sketch(x: float, y: float, act: str) -> str:
    """up, the activation, down; read from below."""
    mid = x + (BOX_W - 2 * PAD) / 2
    return (
        small(mid, y, 70, "down")
        + arrow(mid, y + 34, y + 20)
        + pill(mid, y + 34, act)
        + arrow(mid, y + 68, y + 54)
        + small(mid, y + 68, 70, "up")
    )


def gated_sketch(x: float, y: float, act: str) -> str:
    """The activation of one product times another, then down; read from below."""
    mid = x + (BOX_W - 2 * PAD) / 2
    left, right = mid - 52, mid + 52
    times = (
        f'<circle class="sum" cx="{mid}" cy="{y + 44:.1f}" r="9"/>'
        f'<path class="plus" d="M{mid - 3.4} {y + 40.6:.1f}l6.8 6.8m0 -6.8l-6.8 6.8"/>'
    )
    return (
        small(mid, y, 70, "down")
        + arrow(mid, y + 35, y + 20)
        + times
        + pill(left, y + 34, act)
        + f'<path class="wire" d="M{left + pill_width(act) / 2:.1f} {y + 44:.1f}H{mid - 14}"/>'
        + head(mid - 9, y + 44, "right")
        + arrow(left, y + 68, y + 54)
        + small(left, y + 68, 70, "gate")
        + f'<path class="wire" d="M{right} {y + 68:.1f}V{y + 52:.1f}'
        + f'Q{right} {y + 44:.1f} {right - 8} {y + 44:.1f}H{mid + 14}"/>'
        + head(mid + 9, y + 44, "left")
        + small(right, y + 68, 70, "up")
    )


def small(mid: float, y: float, w: float, text: str) -> str:
    return (
        f'<rect class="matrix" x="{mid - w / 2:.1f}" y="{y:.1f}" width="{w}" height="20" rx="3"/>'
        f'<text x="{mid:.1f}" y="{y + 14.4:.1f}" text-anchor="middle">{escape(text)}</text>'
    )


def pill_width(text: str) -> float:
    return width(text, TEXT) + 16


def pill(mid: float, y: float, text: str) -> str:
    w = pill_width(text)
    return (
        f'<rect class="act" x="{mid - w / 2:.1f}" y="{y:.1f}" width="{w:.1f}" height="20" rx="10"/>'
        f'<text x="{mid:.1f}" y="{y + 14.4:.1f}" text-anchor="middle">{escape(text)}</text>'
    )


# name -> the height it takes in a box, and what draws it
SKETCHES: dict[str, tuple[float, Callable[..., str]]] = {
    "heads": (34.0, heads_sketch),
    "mask": (0.0, mask_sketch),
    "plain": (96.0, plain_sketch),
    "gated": (96.0, gated_sketch),
}
