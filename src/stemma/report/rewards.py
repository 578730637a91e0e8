"""What a report shows of a reward model: how sure it is beside how often it is right, its accuracy by kind of pair."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from stemma.report.facts import number

SIDE, EDGE = 260, 40  # of the picture, in pixels
LARGEST = 11  # radius of the circle with most pairs


def rewards(answers: Mapping[str, Any]) -> str:
    """Calibration and tables; empty for other models."""
    tables = "".join(
        table(answers.get(key), head)
        for key, head in (("grades", "grade"), ("gaps", "difference of what they were judged by"))
    )
    return calibration(answers) + tables


def calibration(answers: Mapping[str, Any]) -> str:
    """A picture: a circle for each group of pairs, to the right by the probability that the model gives to its choice,
    upwards by the share where it is right; its area by the number of pairs."""
    bins = _rows(answers.get("calibration"), ("pairs", "sure", "right"))
    most = max((one["pairs"] for one in bins), default=0.0)
    if most <= 0:
        return ""
    low = min(0.5, *(one["right"] for one in bins))

    def x(value: float) -> float:
        return EDGE + (min(max(value, 0.5), 1.0) - 0.5) * 2 * SIDE

    def y(value: float) -> float:
        return EDGE / 4 + (1 - value) / (1 - low) * SIDE

    out = [
        f'<svg class="diagram" viewBox="0 0 {SIDE + 2 * EDGE} {SIDE + 2 * EDGE}" role="img" style="max-width:380px" '
        'aria-label="Share of pairs where the model is right, by the probability that it gives to its choice">'
    ]
    line = 'stroke="currentColor" stroke-opacity=".35"'
    out.append(f'<path d="M{x(0.5)} {y(low)}V{y(1)}M{x(0.5)} {y(low)}H{x(1)}" fill="none" {line}/>')
    out.append(f'<path d="M{x(0.5)} {y(0.5)}L{x(1)} {y(1)}" stroke-dasharray="4 4" fill="none" {line}/>')
    text = 'fill="currentColor" style="font-size:12px"'
    for value in (0.5, 0.75, 1.0):
        out.append(f'<text x="{x(value)}" y="{y(low) + 18}" text-anchor="middle" {text}>{value:g}</text>')
        out.append(f'<text x="{x(0.5) - 6}" y="{y(value) + 4}" text-anchor="end" {text}>{value:g}</text>')
    out.append(f'<text x="{x(0.75)}" y="{y(low) + 36}" text-anchor="middle" {text}>probability of its choice</text>')
    for one in bins:
        size = max(2.5, LARGEST * (one["pairs"] / most) ** 0.5)
        title = f"{one['pairs']:.0f} pairs: probability {one['sure']:.2f}, right {one['right']:.2f}"
        out.append(
            f'<circle cx="{x(one["sure"]):.1f}" cy="{y(one["right"]):.1f}" r="{size:.1f}" style="fill:var(--c)" '
            f'fill-opacity=".75"><title>{title}</title></circle>'
        )
    return (
        '<h4>Calibration</h4><p class="note">The share of pairs that the model puts in order, by the probability that '
        "it gives to its choice; on the dashed line both are the same. The area of a circle is the number of pairs.</p>"
        f"{''.join(out)}</svg>"
    )


def table(held: Any, head: str) -> str:
    """The accuracy by name of a kind of pair; empty without rows."""
    rows = _rows(held, ("pairs", "accuracy"))
    names = [str(one.get("name", "")) for one in held if isinstance(one, dict)] if isinstance(held, list) else []
    if not rows or len(names) != len(rows):
        return ""
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td class="n" data-label="pairs">{one["pairs"]:,.0f}</td>'
        f'<td class="n" data-label="accuracy">{one["accuracy"]:.3f}</td></tr>'
        for name, one in zip(names, rows, strict=True)
    )
    return (
        f'<h4>Accuracy by {escape(head)}</h4><div class="scroll" tabindex="0"><table class="stack"><thead><tr>'
        f'<th scope="col">{escape(head)}</th><th class="n" scope="col">pairs</th><th class="n" scope="col">'
        f"accuracy</th></tr></thead><tbody>{body}</tbody></table></div>"
    )


def _rows(held: Any, names: tuple[str, ...]) -> list[dict[str, float]]:
    """The rows of a list that hold a number for each of `names`."""
    found = []
    for one in held if isinstance(held, list) else []:
        values = {name: number(one.get(name)) for name in names} if isinstance(one, dict) else {}
        own = {name: value for name, value in values.items() if value is not None}
        if len(own) == len(names):
            found.append(own)
    return found
