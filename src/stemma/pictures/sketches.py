"""Small drawings inside boxes and chips: heads, masks, scores, MLPs, experts, tables, a memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from html import escape

from stemma.pictures.boxes import Factor, Term
from stemma.pictures.marks import width

TEXT, LINE = 12.5, 16.0
SMALL = 12.0
CELL, CELLS = 4.4, 6  # of a grid that shows a mask
GRID = CELL * CELLS + 1.4


# ---------------------------------------------------------------- what they share


def arrow(x: float, start: float, end: float, loose: bool = False) -> str:
    """An arrow from `start` up to `end`; `loose`: a dotted line, if the wiring is unknown."""
    if loose:
        return f'<path class="wire loose" d="M{x} {start:.1f}V{end:.1f}"/>'
    return f'<path class="wire" d="M{x} {start:.1f}V{end + 5:.1f}"/>{head(x, end, "up")}'


def head(x: float, y: float, way: str) -> str:
    shape = {"up": "l-4.5 7h9Z", "right": "l-7-4.5v9Z", "left": "l7-4.5v9Z"}[way]
    return f'<path class="head" d="M{x:.1f} {y:.1f}{shape}"/>'


def small(mid: float, y: float, w: float, text: str) -> str:
    """A labelled matrix."""
    return (
        f'<rect class="matrix" x="{mid - w / 2:.1f}" y="{y:.1f}" width="{w}" height="20" rx="3"/>'
        f'<text x="{mid:.1f}" y="{y + 14.4:.1f}" text-anchor="middle">{escape(text)}</text>'
    )


def pill(mid: float, y: float, text: str) -> str:
    """A labelled activation."""
    w = width(text, TEXT) + 16
    return (
        f'<rect class="act" x="{mid - w / 2:.1f}" y="{y:.1f}" width="{w:.1f}" height="20" rx="10"/>'
        f'<text x="{mid:.1f}" y="{y + 14.4:.1f}" text-anchor="middle">{escape(text)}</text>'
    )


# ---------------------------------------------------------------- attention


def heads(x: float, y: float, room: float, queries: int, kv: int) -> tuple[float, str]:
    """Query heads in a row above the heads of keys and values that they share."""
    room -= 24
    out = []
    for row, (n, label) in enumerate(((queries, "q"), (kv, "k v"))):
        w = room / n
        gap = min(2.0, w * 0.25)
        top = y + row * 14
        bars = "".join(f"M{x + 24 + i * w:.2f} {top:.1f}h{w - gap:.2f}v9h-{w - gap:.2f}Z" for i in range(n))
        out.append(f'<text class="small" x="{x}" y="{top + 9:.1f}">{label}</text><path class="fill" d="{bars}"/>')
    return 34.0, "".join(out)


STREAM = {"content": "h", "query": "g"}
ORDER = (3, 0, 4, 1, 5, 2)  # ranks of six tokens in a permutation


def sees(kind: str, row: int, col: int) -> bool:
    """Whether token `row` may attend to token `col`."""
    match kind:
        case "full":
            return True
        case "causal":
            return col <= row
        case "reverse":
            return col >= row
        case "sliding":
            return row - 3 < col <= row
        case "prefix":
            return col <= row or col < 3
        case "memory":  # the first two columns are the memory
            return col <= 1 or col - 2 <= row * 4 / 6
        case "content":
            return ORDER[col] <= ORDER[row]
        case "query":
            return ORDER[col] < ORDER[row]
    raise ValueError(kind)


def mask(x: float, y: float, kind: str) -> str:
    """A mask of six queries (rows) and six keys (columns)."""
    cells = {True: "", False: ""}
    for row in range(CELLS):
        for col in range(CELLS):
            if sees(kind, row, col):
                stored = kind == "memory" and col <= 1
                cells[stored] += f"M{x + col * CELL:.1f} {y + row * CELL:.1f}h3.8v3.8h-3.8Z"
    return (
        f'<rect class="grid" x="{x - 1:.1f}" y="{y - 1:.1f}" width="{GRID:.1f}" height="{GRID:.1f}"/>'
        f'<path class="fill" d="{cells[False]}"/>' + (f'<path class="place" d="{cells[True]}"/>' if cells[True] else "")
    )


def masks(x: float, y: float, room: float, *kinds: str) -> tuple[float, str]:
    """Several masks, in as many rows as they need."""
    step, tall = GRID + (28 if any(kind in STREAM for kind in kinds) else 5), GRID + 5
    a_row = max(1, int((room + 5) // step))
    out = []
    for i, kind in enumerate(kinds):
        left, top = x + 1 + i % a_row * step, y + 1 + i // a_row * tall
        out.append(mask(left, top, kind))
        if kind in STREAM:
            out.append(f'<text class="small" x="{left + GRID + 4:.1f}" y="{top + 18:.1f}">{STREAM[kind]}</text>')
    return math.ceil(len(kinds) / a_row) * tall - 5, "".join(out)


BOX, ARC = 20.0, 13.0


DOT, PLUS = 8.0, 11.0  # room for these signs


def scores(x: float, y: float, room: float, *terms: Term) -> tuple[float, str]:
    """A score as a sum of products of vectors, of tokens and (tinted) of positions. An arrow is above each part of a
    vector that is rotated."""
    turns = any(f.turn for term in terms for f in term.factors)
    labelled = any(term.label for term in terms)
    tall = (ARC if turns else 0.0) + BOX + (15.0 if labelled else 0.0)
    out, left, top = [], x, y
    for i, term in enumerate(terms):
        sizes = [max(width(f.name, TEXT) + 6, 44.0 if f.turn else 20.0) for f in term.factors]
        w = max(sum(sizes) + DOT * (len(sizes) - 1), width(term.label, SMALL))
        if i and left + PLUS + w > x + room:
            left, top = x, top + tall + 5
        if i:
            out.append(f'<text x="{left + PLUS / 2:.1f}" y="{top + tall - (15 if labelled else 0) - 5.6:.1f}" '
                       'text-anchor="middle">+</text>')  # fmt: skip
            left += PLUS
        at = left + (w - sum(sizes) - DOT * (len(sizes) - 1)) / 2
        row = top + (ARC if turns else 0.0)
        for j, (factor, size) in enumerate(zip(term.factors, sizes, strict=True)):
            if j:
                out.append(f'<circle class="dot" cx="{at - DOT / 2:.1f}" cy="{row + BOX / 2:.1f}" r="1.6"/>')
            out.append(vector(factor, at, row, size))
            at += size + DOT
        if term.label:
            out.append(f'<text class="small" x="{left + w / 2:.1f}" y="{row + BOX + 12.5:.1f}" '
                       f'text-anchor="middle">{escape(term.label)}</text>')  # fmt: skip
        left += w
    return top - y + tall, "".join(out)


def vector(factor: Factor, x: float, y: float, w: float) -> str:
    css = "matrix place" if factor.place else "matrix"
    out = [f'<rect class="{css}" x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{BOX}" rx="3"/>']
    at = x
    for i, share in enumerate(factor.turn):
        part = w * share
        if len(factor.turn) > 1 or share < 1:
            out.append(f'<rect class="turned" x="{at + 1:.1f}" y="{y + 1:.1f}" width="{part - 2:.1f}" '
                       f'height="{BOX - 2}" rx="2"/>')  # fmt: skip
        out.append(turn(at + part / 2, y - 3, min(8.0, part * 0.36)))
        at += part
        if i < len(factor.turn) - 1:
            out.append(f'<path class="wire" d="M{at:.1f} {y:.1f}v{BOX}"/>')
    n = max(1, len(factor.turn))  # each part has its own name
    for i in range(n):
        middle = x + w * (i + 0.5) / n
        out.append(f'<text x="{middle:.1f}" y="{y + 14.4:.1f}" text-anchor="middle">{escape(factor.name)}</text>')
    return "".join(out)


def turn(x: float, y: float, r: float) -> str:
    """A round arrow on the line `y`."""
    return (
        f'<path class="turn" d="M{x - r:.1f} {y:.1f}A{r:.1f} {r:.1f} 0 0 1 {x + r:.1f} {y - 1:.1f}"/>'
        f'<path class="tip" d="M{x + r:.1f} {y + 2.4:.1f}l-3.6 -5.4h7.2Z"/>'
    )


# ---------------------------------------------------------------- MLPs


def plain(x: float, y: float, room: float, act: str) -> tuple[float, str]:
    """up, activation, down, from the bottom."""
    mid = x + room / 2
    drawn = (
        small(mid, y, 70, "down")
        + arrow(mid, y + 34, y + 20)
        + pill(mid, y + 34, act)
        + arrow(mid, y + 68, y + 54)
        + small(mid, y + 68, 70, "up")
    )
    return 96.0, drawn


def gated(x: float, y: float, room: float, act: str) -> tuple[float, str]:
    """activation(gate) * up, then down, from the bottom."""
    mid, aside = x + room / 2, min(52.0, room / 2 - 32)
    left, right, w = mid - aside, mid + aside, min(70.0, 2 * aside - 8)
    row = y + 44  # of the product
    drawn = (
        small(mid, y, 70, "down")
        + arrow(mid, row - 9, y + 20)
        + f'<circle class="sum" cx="{mid}" cy="{row:.1f}" r="9"/>'
        + f'<path class="plus" d="M{mid - 3.4} {row - 3.4:.1f}l6.8 6.8m0 -6.8l-6.8 6.8"/>'
        + f'<path class="wire" d="M{left} {row + 14:.1f}V{row + 8:.1f}'
        + f'Q{left} {row:.1f} {left + 8} {row:.1f}H{mid - 14}"/>'
        + head(mid - 9, row, "right")
        + pill(left, row + 14, act)
        + arrow(left, row + 48, row + 34)
        + small(left, row + 48, w, "gate")
        + f'<path class="wire" d="M{right} {row + 48:.1f}V{row + 8:.1f}'
        + f'Q{right} {row:.1f} {right - 8} {row:.1f}H{mid + 14}"/>'
        + head(mid + 9, row, "left")
        + small(right, row + 48, w, "up")
    )
    return 120.0, drawn


def experts(x: float, y: float, room: float, n: int, active: int) -> tuple[float, str]:
    """A router, `n` experts of which `active` are chosen, and their weighted sum, from the bottom."""
    mid, r = x + room / 2, 9.0
    chosen = {int((i + 0.5) * n / active) for i in range(active)}
    step = min(room / n, 30.0)
    w = step - min(5.0, step * 0.3)
    left, top, foot = mid - step * n / 2 + (step - w) / 2, y + 46, y + 70
    bars = {True: "", False: ""}
    fan = ""
    for i in range(n):
        at = left + i * step
        wide = max(w, 3.0) if i in chosen else w
        bars[i in chosen] += f"M{at + (w - wide) / 2:.2f} {top:.1f}h{wide:.2f}v{foot - top:.1f}h-{wide:.2f}Z"
        if i in chosen:
            centre = at + w / 2
            fan += f"M{mid} {y + 96:.1f}L{centre:.1f} {foot + 2:.1f}M{centre:.1f} {top - 2:.1f}L{mid} {y + 10 + r:.1f}"
    idle = "idle" if n <= 32 else "idle many"
    drawn = (
        f'<path class="wire" d="{fan}"/><path class="{idle}" d="{bars[False]}"/><path class="fill" d="{bars[True]}"/>'
        f'<circle class="sum" cx="{mid}" cy="{y + 10:.1f}" r="{r}"/>'
        f'<path class="plus" d="M{mid - 4.5} {y + 10:.1f}h9M{mid} {y + 5.5:.1f}v9"/>'
        f'<text class="small" x="{mid + 15:.1f}" y="{y + 14:.1f}">by weight</text>' + small(mid, y + 96, 70, "router")
    )
    return 124.0, drawn


# ---------------------------------------------------------------- signs beside words


def table(x: float, y: float, n: int) -> str:
    """`n` learned tables."""
    w = 26 if n == 1 else 11
    out = ""
    for i in range(n):
        at = x + i * 15
        rows = "".join(f"M{at:.1f} {y + 5.2 * j:.1f}h{w}" for j in range(1, 5))
        out += (
            f'<rect class="grid" x="{at:.1f}" y="{y:.1f}" width="{w}" height="26"/>'
            f'<rect class="place" x="{at:.1f}" y="{y + (10.4 if i == 0 else 5.2):.1f}" width="{w}" height="5.2"/>'
            f'<path class="rule" d="{rows}"/>'
        )
    return out


def waves(x: float, y: float) -> str:
    """Sines of two wavelengths."""

    def wave(middle: float, turns: float) -> str:
        points = [
            (x + i, middle - 5 * math.sin(i / 26 * math.tau * turns)) for i in range(0, 27, 2 if turns < 2 else 1)
        ]
        return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in points)

    return f'<path class="turn" d="{wave(y + 6, 1)}{wave(y + 20, 2.5)}"/>'


def store(x: float, y: float) -> str:
    """A drum: stored states."""
    return (
        f'<path class="drum" d="M{x:.1f} {y + 5:.1f}v16a13 5 0 0 0 26 0v-16"/>'
        f'<ellipse class="drum" cx="{x + 13:.1f}" cy="{y + 5:.1f}" rx="13" ry="5"/>'
        f'<path class="rule" d="M{x:.1f} {y + 13:.1f}a13 5 0 0 0 26 0"/>'
    )


def near(x: float, y: float, kernel: int) -> str:
    """A convolution over `kernel` tokens."""
    n = min(kernel, 7)
    at = [x + 13 + (i - (n - 1) / 2) * 22 / max(1, n - 1) for i in range(n)]
    lines = "".join(f"M{a:.1f} {y + 21:.1f}L{x + 13:.1f} {y + 5:.1f}" for a in at)
    dots = "".join(f'<circle class="fill" cx="{a:.1f}" cy="{y + 22:.1f}" r="3"/>' for a in at)
    return f'<path class="wire" d="{lines}"/>{dots}<circle class="fill" cx="{x + 13:.1f}" cy="{y + 4:.1f}" r="3.6"/>'


def again(x: float, y: float, times: int) -> str:
    """A loop and its number of runs."""
    return (
        f'<path class="turn" d="M{x + 17:.1f} {y + 2.5:.1f}A11 11 0 1 1 {x + 7:.1f} {y + 3.5:.1f}"/>'
        f'<path class="tip" d="M{x + 3.5:.1f} {y + 5.5:.1f}l3 -6.6l4 5.4Z"/>'
        f'<text x="{x + 13:.1f}" y="{y + 17.4:.1f}" text-anchor="middle">{times}×</text>'
    )


# Sketches below the text of a box or chip: f(x, y, room, ...) gives (height, markup).
SKETCHES: dict[str, Callable[..., tuple[float, str]]] = {
    "heads": heads, "masks": masks, "scores": scores, "plain": plain, "gated": gated, "experts": experts,
}  # fmt: skip
# Icons beside the text of a chip, 26 x 26 pixels.
ICONS: dict[str, Callable[..., str]] = {
    "mask": mask, "table": table, "waves": waves, "store": store, "near": near, "again": again,
}  # fmt: skip
