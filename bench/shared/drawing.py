"""Lines over two axes as an SVG file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

WIDE, HIGH, LEFT, LOW, TOP, RIGHT = 720, 420, 64, 52, 24, 190
COLOURS = ("#3366aa", "#cc5522", "#338855", "#884499")
Line = Sequence[tuple[float, float]]


def draw(path: Path, lines: Mapping[str, Sequence[Line]], x: str, y: str) -> None:
    """Write lines by name, each of several runs, and the names of both axes."""
    points = [p for runs in lines.values() for line in runs for p in line]
    low, high = ([pick(p[i] for p in points) for i in (0, 1)] for pick in (min, max))
    span = [(high[i] - low[i]) or 1.0 for i in (0, 1)]

    def place(p: tuple[float, float]) -> tuple[float, float]:
        across = LEFT + (p[0] - low[0]) / span[0] * (WIDE - LEFT - RIGHT)
        return across, HIGH - LOW - (p[1] - low[1]) / span[1] * (HIGH - LOW - TOP)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE} {HIGH}" font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDE}" height="{HIGH}" fill="white"/>',
    ]
    for k in range(5):
        value = [low[i] + span[i] * k / 4 for i in (0, 1)]
        (across, _), (_, up) = place((value[0], low[1])), place((low[0], value[1]))
        parts += [
            f'<line x1="{LEFT}" x2="{WIDE - RIGHT}" y1="{up:.1f}" y2="{up:.1f}" stroke="#ddd"/>',
            f'<text x="{LEFT - 8}" y="{up + 4:.1f}" text-anchor="end">{value[1]:.2g}</text>',
            f'<text x="{across:.1f}" y="{HIGH - LOW + 18}" text-anchor="middle">{value[0]:.2g}</text>',
        ]
    for n, (name, runs) in enumerate(lines.items()):
        colour = COLOURS[n % len(COLOURS)]
        for line in runs:
            drawn = " ".join(f"{a:.1f},{b:.1f}" for a, b in map(place, line))
            parts.append(f'<polyline points="{drawn}" fill="none" stroke="{colour}" stroke-width="2" opacity="0.75"/>')
        parts.append(f'<text x="{WIDE - RIGHT + 12}" y="{TOP + 18 * (n + 1)}" fill="{colour}">{escape(name)}</text>')
    middle = (WIDE - RIGHT + LEFT) / 2
    parts += [
        f'<text x="{middle}" y="{HIGH - 12}" text-anchor="middle">{escape(x)}</text>',
        f'<text transform="translate(16 {HIGH / 2}) rotate(-90)" text-anchor="middle">{escape(y)}</text></svg>',
    ]
    path.write_text("\n".join(parts) + "\n", "utf-8")
