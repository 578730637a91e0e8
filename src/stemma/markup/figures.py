"""Pictures and tables that pages about runs share: small curves, numbers of models side by side, and their answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from stemma.markup import asset

WIDE, HIGH, EDGE, FOOT = 320, 150, 54, 34
SHOWN = 12  # prompts whose answers are shown


def style() -> str:
    """The CSS of what is here."""
    return asset(__file__, "figures.css")


class Series(NamedTuple):
    """Points of one line, the class of its colour, and names that stand beside its points, if they have some."""

    points: Sequence[tuple[float, float]]
    colour: str = "k0"
    names: Sequence[str] = ()


def plane(title: str, across: str, lines: Sequence[Series], note: str = "") -> str:
    """A picture of points by two numbers; empty without two points of a line. `across`: what the first number is."""
    lines = [one for one in lines if len(one.points) > 1]
    if not lines:
        return ""
    xs, ys = zip(*(point for one in lines for point in one.points), strict=True)
    left, right = _room(min(xs), max(xs), 0.02 if not lines[0].names else 0.12)
    left = max(left, 0.0) if min(xs) >= 0 else left
    low, high = _room(min(ys), max(ys), 0.05 if not lines[0].names else 0.15)

    def at(point: tuple[float, float]) -> tuple[float, float]:
        x, y = (point[0] - left) / (right - left), (high - point[1]) / (high - low)
        return EDGE + x * (WIDE - EDGE - 8), 8 + y * (HIGH - 8 - FOOT)

    drawn = "".join(_line(one, at) for one in lines)
    axis = "".join(
        f'<line class="grid" x1="{EDGE}" x2="{WIDE - 8}" y1="{y}" y2="{y}"/><text x="{EDGE - 5}" y="{y + 4}" '
        f'text-anchor="end">{value:.3g}</text>'
        for y, value in ((8, high), (HIGH - FOOT, low))
    )
    feet = "".join(
        f'<text x="{x}" y="{HIGH - FOOT + 14}" text-anchor="{side}">{value:.3g}</text>'
        for x, value, side in ((EDGE, left, "start"), (WIDE - 8, right, "end"))
    )
    feet += f'<text x="{(EDGE + WIDE - 8) / 2:.0f}" y="{HIGH - 4}" text-anchor="middle">{escape(across)}</text>'
    said = f"<br>{note}" if note else ""
    return (
        f'<figure class="panel"><figcaption><b>{escape(title)}</b>{said}</figcaption><svg class="mini" '
        f'viewBox="0 0 {WIDE} {HIGH}" role="img" aria-label="{escape(title)} by {escape(across)}">'
        f"{axis}{drawn}{feet}</svg></figure>"
    )


def _room(low: float, high: float, share: float) -> tuple[float, float]:
    """A range that leaves a share of itself on both sides."""
    room = (high - low) or abs(high) or 1.0
    return low - share * room, high + share * room


def _line(one: Series, at: Any) -> str:
    places = [at(point) for point in one.points]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    marks = ""
    for number, (name, (x, y)) in enumerate(zip(one.names, places, strict=False)):
        side = "start" if x < EDGE + 60 else "end" if x > WIDE - 70 else "middle"
        under = 16 if number % 2 else -9
        marks += f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>'
        marks += f'<text class="label" x="{x:.1f}" y="{y + under:.1f}" text-anchor="{side}">{escape(name)}</text>'
    faint = ' class="raw"' if one.names else ""
    return f'<g class="{one.colour}"><path{faint} d="{path}"/>{marks}</g>'


# ---------------------------------------------------------------- models side by side


def models(found: Mapping[str, Any]) -> str:
    """The numbers of models that answered the same prompts, and their rewards by the divergence."""
    own, rewards = found["models"], list(found["rewards"])
    names = list(own)
    columns = [*rewards, "length", "ended", "kl", "win"]
    titles = {
        "kl": f"KL from {found['reference']}, nats",
        "win": f"wins against {names[0]}",
        "ended": "share that ends",
    }
    head = "".join(f'<th class="n" scope="col">{escape(titles.get(one, one))}</th>' for one in columns)
    best = {
        one: max((v for n in names if (v := _number(own[n].get(one))) is not None), default=None) for one in rewards
    }
    rows = ""
    for name in names:
        cells = "".join(
            f'<td class="n{" best" if one in best and own[name].get(one) == best[one] else ""}" '
            f'data-label="{escape(titles.get(one, one))}">{_cell(own[name], one)}</td>'
            for one in columns
        )
        rows += f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>'
    table = (
        '<div class="scroll" tabindex="0"><table class="stack"><thead><tr><th scope="col">model</th>'
        f"{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )
    return table + by_divergence(found)


def by_divergence(found: Mapping[str, Any]) -> str:
    """Each reward of the models by the root of their divergence: past some divergence a gold reward falls while the
    learnt one rises (Gao et al. 2022, arXiv:2210.10760)."""
    pictures = ""
    for reward in found["rewards"]:
        points = [
            (math.sqrt(max(kl, 0.0)), value, name)
            for name, one in found["models"].items()
            if (kl := _number(one.get("kl"))) is not None and (value := _number(one.get(reward))) is not None
        ]
        pairs, names = [(x, y) for x, y, _ in points], [name for *_, name in points]
        pictures += plane(reward, f"root of the KL from {found['reference']}, nats", [Series(pairs, "k0", names)])
    return f'<div class="two">{pictures}</div>' if pictures else ""


def answers(found: Mapping[str, Any]) -> str:
    """Answers of models to the same prompts, side by side, each with its last reward."""
    names, last = list(found["models"]), list(found["rewards"])[-1]
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in ("prompt", *names))
    rows = ""
    for one in found["samples"][:SHOWN]:
        held = one.get(last)
        scores = {name: _number(held.get(name)) if isinstance(held, Mapping) else None for name in names}
        best = max((v for v in scores.values() if v is not None), default=None)
        cells = "".join(
            f'<td class="any" data-label="{escape(name)}"><span>{escape(str(one["answers"].get(name, "")))} '
            f"<small{' class=best' if scores[name] is not None and scores[name] == best else ''}>"
            f"{_text(scores[name])}</small></span></td>"
            for name in names
        )
        rows += f'<tr><th scope="row" class="any">{escape(str(one["prompt"]))}</th>{cells}</tr>'
    return (
        f'<div class="scroll" tabindex="0"><table class="stack wide"><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _cell(one: Mapping[str, Any], key: str) -> str:
    text = _text(_number(one.get(key)))
    interval = one.get(f"{key}_interval")
    if text != "-" and isinstance(interval, list) and len(interval) == 2:
        low, high = (_text(_number(end)) for end in interval)
        text += f" <small>({low} to {high})</small>"
    return text


def _number(value: Any) -> float | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if abs(value) >= 100 else f"{value:.2f}"
