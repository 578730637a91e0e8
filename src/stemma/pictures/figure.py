"""Stacks of boxes as SVG. Two designs are laid out together, so that corresponding boxes have the same height."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from html import escape

from stemma.pictures.boxes import AFTER, BEFORE, BLOCK, BoxStack, Fork, Item, Sum
from stemma.pictures.marks import width, wrap
from stemma.pictures.sketches import ICONS, LINE, SKETCHES, TEXT, arrow, head

BOX_W = 236.0
BRANCH_W = 140.0  # a box of a fork
MARGIN = 14.0
LANE = 17.0  # between the boxes and the residual line beside them
GAP = 18.0
TITLE = 14.0
PAD = 9.0
SUM = 20.0
CROSS = 24.0  # from the upper edge of the cross-attention's box to where the encoder's output enters
SPLIT = 14.0  # from the middle to either of two streams

Mark = Callable[[Item], tuple[str, str]]  # ("" | "changed" | "only", the changes in words)


@dataclass(frozen=True)
class Grid:
    """Horizontal positions in a stack; `lanes`: (x of a stream, x of its residual line)."""

    wide: float
    mid: float
    lanes: tuple[tuple[float, float], ...]
    frame: tuple[float, float]  # left and right edge

    @property
    def box(self) -> float:
        """The left edge of the boxes."""
        return self.mid - BOX_W / 2


def grid(stack: BoxStack) -> Grid:
    """The grid of a stack: wider with a fork, with residual lines on both sides for two streams."""
    fork = stack.fork
    inner = BOX_W if fork is None else max(BOX_W, len(fork.items) * (BRANCH_W + 10) - 10)
    half = inner / 2 + LANE
    if stack.streams == 2:
        mid = half + 21
        lanes = ((mid - SPLIT, mid - half), (mid + SPLIT, mid + half))
        return Grid(2 * mid, mid, lanes, (mid - half - 15, mid + half + 15))
    mid = MARGIN + inner / 2
    return Grid(inner + 54, mid, ((mid, mid + half),), (MARGIN - 10, mid + half + 15))


@dataclass(frozen=True)
class Extent:
    """The upper edge and the height of something drawn."""

    y: float
    h: float

    @property
    def end(self) -> float:
        return self.y + self.h


@dataclass(frozen=True)
class Drawing:
    """The vertical places shared by stacks that are drawn side by side. `fork`: the place of a fork, beside the boxes
    that the other side has one above the other."""

    places: dict[str, Extent]
    frame: Extent
    height: float
    fork: Extent | None = None

    def __getitem__(self, key: str) -> Extent:
        return self.fork if key == "fork" and self.fork is not None else self.places[key]


def arrange(stacks: Iterable[BoxStack]) -> Drawing:
    """Places with room for every box of each of `stacks`."""
    stacks = list(stacks)
    needed: dict[str, float] = {}
    branches: dict[str, float] = {}
    for stack in stacks:
        for item in (*stack.before, *stack.block, *stack.after):
            if isinstance(item, Fork):
                tall = max(box_height(box, BRANCH_W) for box in item.items)
                branches |= {box.key: max(tall, *branches.values(), 0.0) for box in item.items}
            else:
                h = SUM if isinstance(item, Sum) else box_height(item)
                needed[item.key] = max(needed.get(item.key, 0.0), h)
    top_row = max(place.end for stack in stacks for _, _, _, place in frame_chips(stack, 0.0))
    lowest = next((key for key in BLOCK if key in branches), None)
    if lowest is not None:
        stacked = [key for key in BLOCK if key in branches and key in needed]
        if stacked:  # the fork takes the room from the highest of these boxes to the lowest
            upper = next(i for i, key in enumerate(BLOCK) if key == stacked[-1])
            between = [h + GAP for key, h in needed.items() if key in BLOCK[BLOCK.index(lowest) : upper + 1]]
            short = branches[lowest] - (sum(between) - GAP)
        else:
            short, needed[lowest] = 0.0, branches[lowest]
        needed[lowest] = needed.get(lowest, 0.0) + max(0.0, short)
    y = 6.0
    places: dict[str, Extent] = {}

    def put(keys: Iterable[str]) -> None:
        nonlocal y
        for key in keys:
            if key in needed:
                places[key] = Extent(y, needed[key])
                y += needed[key] + GAP

    put(reversed(AFTER))
    top = y
    y += top_row + GAP
    put(reversed(BLOCK))
    frame = Extent(top, y + 4 - top)
    y = frame.end + GAP
    put(reversed(BEFORE))
    fork = None
    if lowest is not None:
        fork = Extent(places[lowest].end - branches[lowest], branches[lowest])
    return Drawing(places, frame, y - GAP + 6, fork)


def draw(
    stack: BoxStack, drawing: Drawing, mark: Mark, *, label: str, lift: float = 0.0, outlet: float | None = None
) -> str:
    """A stack as an SVG. `lift`: room above it; `outlet`: for the encoder of an encoder-decoder, the height above the
    bottom at which its output leaves to the right, towards the decoder's cross-attention."""
    at, height = grid(stack), drawing.height + lift
    out = [
        f'<svg class="stack" width="{at.wide:.0f}" height="{height:.0f}" viewBox="0 {-lift:.0f} {at.wide:.0f} '
        f'{height:.0f}" role="img" aria-label="{escape(label)}">',
        f'<rect class="frame" x="{at.frame[0]:.1f}" y="{drawing.frame.y}" width="{at.frame[1] - at.frame[0]:.1f}" '
        f'height="{drawing.frame.h:.1f}" rx="14"/>',
    ]
    order = [*stack.before, *stack.block, *stack.after]
    where = {item.key: own_place(item, drawing[item.key]) for item in order}
    for lower, upper in itertools.pairwise(order):
        if not isinstance(lower, Fork) and not isinstance(upper, Fork):
            loose = not stack.wired and lower in stack.block and upper in stack.block
            twice = stack.streams == 2 and lower.key != "text" and upper.key != "target"
            for x, _ in at.lanes if twice else ((at.mid, 0.0),):
                out.append(arrow(x, where[lower.key].y, where[upper.key].end, loose))
    if stack.streams == 2:
        y = drawing.frame.end + GAP / 2 + 4
        for (x, _), name, anchor in zip(at.lanes, "gh", ("end", "start"), strict=True):
            aside = -7 if anchor == "end" else 7
            out.append(f'<text class="small" x="{x + aside}" y="{y:.1f}" text-anchor="{anchor}">{name}</text>')
    if stack.role == "encoder" and outlet is not None:
        start, y = where[order[-1].key].y, drawing.height - outlet
        top, edge = min(start, drawing.frame.y) - 12, at.wide - 4
        bend = 6 if y > top else -6
        out.append(
            f'<path class="wire memory" d="M{at.mid} {start:.1f}V{top:.1f}H{edge - 6}'
            f"Q{edge} {top:.1f} {edge} {top + bend:.1f}"
            f'V{y - bend:.1f}Q{edge} {y:.1f} {at.wide} {y:.1f}"/>'
            f'<text class="small" x="{at.mid - 8}" y="{top - 5:.1f}" text-anchor="end">to the decoder</text>'
        )
    for chip, x, w, place in frame_chips(stack, drawing.frame.y):
        out.append(draw_chip(chip, x, place.y, w, place.h, mark))
    for item in order:
        place = where[item.key]
        if isinstance(item, Sum):
            out.append(draw_sum(item, at, place, where[item.below], mark))
        elif isinstance(item, Fork):
            below, above = order[order.index(item) - 1], order[order.index(item) + 1]
            out.append(draw_fork(item, at, place, where[below.key].y, where[above.key], mark))
        else:
            out.append(draw_box(item, at.box, BOX_W, place, mark))
        if item.key == "cross.in":
            middle = drawing.height - outlet_height(drawing)
            out.append(f'<path class="wire memory" d="M0 {middle:.1f}H{at.box - 6}"/>{head(at.box, middle, "right")}')
    return "".join([*out, "</svg>"])


def own_place(item: Item | Sum | Fork, place: Extent) -> Extent:
    """The part of its place that a box needs, from the upper edge down, so that titles are side by side."""
    return Extent(place.y, box_height(item)) if isinstance(item, Item) else place


def frame_chips(stack: BoxStack, top: float) -> list[tuple[Item, float, float, Extent]]:
    """(chip, left edge, width, place) of the chips that describe the whole block: short ones on both sides of the line,
    long ones in a row of their own."""
    at = grid(stack)
    clear = 9 if stack.streams == 1 else SPLIT + 9
    x, end, y = at.frame[0] + PAD, at.frame[1] - PAD, top + PAD
    found: list[tuple[Item, float, float, Extent]] = []
    sides = [(x, at.mid - clear - x), (at.mid + clear, end - at.mid - clear)]
    for chip in stack.frame:
        short = not chip.text and sides and width(chip.title, TEXT, bold=True) < sides[0][1] - 2 * PAD - 18
        left, w = sides.pop(0) if short else (x, end - x)
        h = chip_height(chip, w)
        if not short:
            y = max([y, *(p.end + 5 for _, _, _, p in found)])
        found.append((chip, left, w, Extent(y, h)))
    return found


def outlet_height(drawing: Drawing) -> float:
    """The height above the bottom at which a decoder's cross-attention reads the encoder's output."""
    place = drawing["cross.in"] if "cross.in" in drawing.places else drawing["fork"]
    return drawing.height - place.y - CROSS


# ---------------------------------------------------------------- wires


def draw_sum(item: Sum, at: Grid, place: Extent, below: Extent, mark: Mark) -> str:
    """A sum of branches and the residual stream, which leaves the main line below the lowest box; one for each
    stream."""
    y, tap, r = place.y + SUM / 2, below.end + GAP / 2 + 2, 9.0
    out = []
    for x, lane in at.lanes:
        side = 1 if lane > x else -1
        turn, way = lane - 8 * side, "left" if side == 1 else "right"
        out.append(
            f'<path class="wire skip" d="M{x} {tap:.1f}H{turn}Q{lane} {tap:.1f} {lane} {tap - 8:.1f}'
            f'V{y + 8:.1f}Q{lane} {y:.1f} {turn} {y:.1f}H{x + (r + 5) * side}"/>{head(x + r * side, y, way)}'
            f'<circle class="dot" cx="{x}" cy="{tap:.1f}" r="2.6"/>'
            f'<circle class="sum" cx="{x}" cy="{y:.1f}" r="{r}"/>'
            f'<path class="plus" d="M{x - 4.5} {y:.1f}h9M{x} {y - 4.5:.1f}v9"/>'
        )
        if item.scale is not None:
            out.append(draw_scale(item.scale, (x + lane) / 2 + 4, y, mark))
    return "".join(out)


def draw_scale(item: Item, mid: float, y: float, mark: Mark) -> str:
    """The factor of a residual stream, drawn on its line."""
    found, why = mark(item)
    w = width(item.title, TEXT, bold=True) + 2 * PAD + (20 if found else 0)
    left = mid - w / 2
    return (
        f'{open_group("chip scale", item, found, why)}<rect x="{left:.1f}" y="{y - 11:.1f}" width="{w:.1f}" '
        f'height="22" rx="11"/><text class="label" x="{left + PAD:.1f}" y="{y + 4.4:.1f}">{escape(item.title)}</text>'
        f"{badge(found, left + w - 12, y)}</g>"
    )


def draw_fork(item: Fork, at: Grid, place: Extent, start: float, total: Extent, mark: Mark) -> str:
    """Boxes side by side: one line divides below them; their outputs enter the sum from the left and from below, the
    residual stream from the right."""
    n = len(item.items)
    left = at.mid - (n * (BRANCH_W + 10) - 10) / 2
    split, end, r = place.end + GAP / 2 + 1, total.y + SUM / 2, 9.0
    out = [f'<path class="wire" d="M{at.mid} {start:.1f}V{split:.1f}"/>']
    for i, box in enumerate(item.items):
        x, own = left + i * (BRANCH_W + 10), box_height(box, BRANCH_W)
        own_y = place.end - own
        mid = x + BRANCH_W / 2
        turn = 8 if mid < at.mid else -8 if mid > at.mid else 0
        out.append(
            f'<path class="wire" d="M{at.mid} {split:.1f}H{mid + turn}Q{mid} {split:.1f} {mid} {split - 6:.1f}'
            f'V{place.end + 5:.1f}"/>{head(mid, place.end, "up")}'
        )
        if i == 0:
            out.append(
                f'<path class="wire" d="M{mid} {own_y:.1f}V{end + 8:.1f}Q{mid} {end:.1f} {mid + 8} {end:.1f}'
                f'H{at.mid - r - 5}"/>{head(at.mid - r, end, "right")}'
            )
        else:
            meet = end + r + 14
            out.append(
                f'<path class="wire" d="M{mid} {own_y:.1f}V{meet + 8:.1f}Q{mid} {meet:.1f} {mid + turn} {meet:.1f}'
                f'H{at.mid}V{end + r + 5:.1f}"/>{head(at.mid, end + r, "up")}'
            )
        out.append(draw_box(box, x, BRANCH_W, Extent(own_y, own), mark))
        if box.key == "cross.in":
            middle = place.y + CROSS
            out.append(f'<path class="wire memory" d="M0 {middle:.1f}H{x - 6}"/>{head(x, middle, "right")}')
    return "".join(out)


# ---------------------------------------------------------------- boxes


def lines(item: Item, room: float) -> list[str]:
    return [line for text in item.text for line in wrap(text, room, TEXT)]


def titles(item: Item, room: float, size: float) -> list[str]:
    return wrap(item.title, (room - 18) / 1.09, size)  # bold text, with room for the badge


def sketch(item: Item, x: float, y: float, room: float) -> tuple[float, str]:
    """(height, markup) of the sketch below an item's words; (0, "") without one."""
    if not item.sketch or item.sketch[0] in ICONS:
        return 0.0, ""
    h, drawn = SKETCHES[item.sketch[0]](x, y, room, *item.sketch[1:])
    return h, f'<g class="sketch {item.sketch[0]}">{drawn}</g>'


def box_height(item: Item, w: float = BOX_W) -> float:
    room = w - 2 * PAD
    h = PAD + LINE * (len(titles(item, room, TITLE)) + len(lines(item, room))) + PAD - 2
    h += sketch(item, 0.0, 0.0, room)[0]
    return h + sum(chip_height(chip, room) + 5 for chip in item.chips)


def chip_text(item: Item, room: float) -> tuple[float, list[str], list[str]]:
    """(left edge of the text inside a chip, lines of its title, lines of its text)."""
    left = PAD + (34.0 if item.sketch and item.sketch[0] in ICONS else 0.0)
    return left, titles(item, room - left - PAD, TEXT), lines(item, room - left - PAD)


def chip_height(item: Item, room: float) -> float:
    _, title, words = chip_text(item, room)
    h = LINE * (len(title) + len(words)) + 8
    if item.sketch and item.sketch[0] in ICONS:
        return max(h, 40.0)
    drawn = sketch(item, 0.0, 0.0, room - 2 * PAD)[0]
    return h + (drawn + 8 if drawn else 0.0)


def draw_box(item: Item, x: float, w: float, place: Extent, mark: Mark) -> str:
    found, why = mark(item)
    room = w - 2 * PAD
    out = [open_group("box", item, found, why)]
    out.append(f'<rect x="{x}" y="{place.y:.1f}" width="{w}" height="{place.h:.1f}" rx="9"/>')
    y = place.y + PAD + TITLE - 2 - LINE
    for line in titles(item, room, TITLE):
        y += LINE
        out.append(f'<text class="title" x="{x + PAD}" y="{y:.1f}">{escape(line)}</text>')
    for line in lines(item, room):
        y += LINE
        out.append(f'<text x="{x + PAD}" y="{y:.1f}">{escape(line)}</text>')
    y += 7
    h, drawn = sketch(item, x + PAD, y, room)
    y += h
    out += [drawn, badge(found, x + w - 15, place.y + 15), "</g>"]
    for chip in item.chips:
        h = chip_height(chip, room)
        out.append(draw_chip(chip, x + PAD, y, room, h, mark))
        y += h + 5
    return "".join(out)


def draw_chip(item: Item, x: float, y: float, w: float, h: float, mark: Mark) -> str:
    found, why = mark(item)
    left, title, words = chip_text(item, w)
    out = [open_group("chip", item, found, why)]
    out.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" rx="6"/>')
    if item.sketch and item.sketch[0] in ICONS:
        name = item.sketch[0]
        out.append(f'<g class="sketch {name}">{ICONS[name](x + 7, y + 7, *item.sketch[1:])}</g>')
    line = y
    for text in title:
        line += LINE
        out.append(f'<text class="label" x="{x + left:.1f}" y="{line:.1f}">{escape(text)}</text>')
    for text in words:
        line += LINE
        out.append(f'<text x="{x + left:.1f}" y="{line:.1f}">{escape(text)}</text>')
    out += [sketch(item, x + PAD, line + 9, w - 2 * PAD)[1], badge(found, x + w - 14, y + 13)]
    return "".join([*out, "</g>"])


def open_group(kind: str, item: Item, found: str, why: str) -> str:
    css = " ".join(x for x in (kind, found, "" if item.known else "unknown") if x)
    title = f"<title>{escape(why)}</title>" if why else ""
    return f'<g class="{css}" data-key="{escape(item.key)}" data-paths="{escape(" ".join(item.paths))}">{title}'


def badge(found: str, x: float, y: float) -> str:
    """The sign of a difference, in addition to its colour."""
    sign = {"changed": "≠", "only": "+"}.get(found)
    if sign is None:
        return ""
    return (
        f'<circle class="badge" cx="{x:.1f}" cy="{y:.1f}" r="9"/>'
        f'<text class="sign" x="{x:.1f}" y="{y + 4.6:.1f}" text-anchor="middle">{sign}</text>'
    )
