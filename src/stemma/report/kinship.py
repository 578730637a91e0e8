"""The section of a report with the place of its families in the tree and their changes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from stemma import families, spec
from stemma.declare.family import Family
from stemma.declare.objectives import Objective
from stemma.errors import UsageError
from stemma.markup import change_row
from stemma.nn.parts import Arch
from stemma.report.facts import k, owner
from stemma.report.read import RunFiles
from stemma.words import children, ranked


def family_tree(runs: Sequence[RunFiles]) -> str:
    trained: dict[str, int] = {}
    for i, run in enumerate(runs):
        family = owner(run)
        if family is not None:
            trained.setdefault(family.name, i)
    if not trained:
        return ""
    ancestors = {f.name for name in trained for f in families.family(name).lineage}
    panels = [changes_panel(families.family(name), i, runs[i]) for name, i in trained.items()]
    return (
        '<p class="note">Every family is a change of its parent. Those trained here are coloured, each at the year '
        "of its paper, with the families that they descend from.</p>"
        + diagram(trained, ancestors)
        + '<ul class="tree" aria-label="The family tree">'
        + "".join(branch(f, trained, ancestors) for f in children(None) if f.name in ancestors)
        + "</ul>"
        + "<h3>What each changes in its parent</h3>"
        + f'<div class="two">{"".join(panels)}</div>'
    )


def branch(family: Family, trained: dict[str, int], shown: set[str]) -> str:
    """A family and its descendants that are `shown` as nested list items."""
    i = trained.get(family.name)
    name = f'<span class="on {k(i)}">{escape(family.name)}</span>' if i is not None else escape(family.name)
    inner = "".join(branch(child, trained, shown) for child in children(family.name) if child.name in shown)
    return f"<li>{name} <small>{family.about.year}</small>{f'<ul>{inner}</ul>' if inner else ''}</li>"


def diagram(trained: dict[str, int], ancestors: set[str]) -> str:
    """The branches of the tree that lead to the trained families, over the years, as SVG: a row a family, children
    under their parents."""
    order: list[Family] = []

    def walk(family: Family) -> None:
        order.append(family)
        for child in children(family.name):
            if child.name in ancestors:
                walk(child)

    for root in children(None):
        if root.name in ancestors:
            walk(root)
    years = [f.about.year for f in order]
    start, end = min(years), max(years)
    width, row, left, right, top = 1100, 34, 20, 130, 24
    step = (width - left - right) / max(end - start, 1)
    xs: dict[str, float] = {}
    ys: dict[str, float] = {}
    for n, f in enumerate(order):
        x = left + (f.about.year - start) * step
        # A child of the same year is a little to the right of its parent.
        if f.parent is not None and f.parent.name in xs:
            x = max(x, xs[f.parent.name] + min(46, step * 0.5))
        xs[f.name], ys[f.name] = x, top + 10 + n * row
    width = max([width, *(math.ceil(xs[f.name] + 20 + 12 * len(f.name)) for f in order)])  # 12: a bold letter
    height = top + 10 + len(order) * row + 14
    out = [
        f'<svg class="diagram" viewBox="0 0 {width} {height}" role="img" aria-labelledby="tree-title">'
        f'<title id="tree-title">Family tree over the years: {escape(described(order, trained))}</title>'
    ]
    for year in sorted(set(years)):
        x = left + (year - start) * step
        out.append(f'<line class="grid" x1="{x:.0f}" x2="{x:.0f}" y1="{top}" y2="{height - 20}"/>')
        out.append(f'<text class="year" x="{x:.0f}" y="{height - 3}" text-anchor="middle">{year}</text>')
    for f in order:
        if f.parent is None:
            continue
        px, py, x, y = xs[f.parent.name], ys[f.parent.name], xs[f.name], ys[f.name]
        bend = min(14.0, (x - px) / 2)
        dash = ' stroke-dasharray="5 5"' if f.edge == "trained" else ""
        out.append(
            f'<path class="edge on"{dash} d="M{px:.1f} {py:.1f}V{y - bend:.1f}'
            f'Q{px:.1f} {y:.1f} {px + bend:.1f} {y:.1f}H{x:.1f}"/>'
        )
    for f in order:
        i = trained.get(f.name)
        css = f"on {k(i)}" if i is not None else "line"
        x, y = xs[f.name], ys[f.name]
        ring = f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="10"/>' if i is not None else ""
        out.append(
            f'<g class="{css}">{ring}<circle cx="{x:.1f}" cy="{y:.1f}" r="{7 if i is not None else 5}"/>'
            f'<text x="{x + 15:.1f}" y="{y + 5:.1f}">{escape(f.name)}</text></g>'
        )
    return "".join([*out, "</svg>"])


def described(order: Iterable[Family], trained: dict[str, int]) -> str:
    parts = [f"{f.name} ({f.about.year}) from {f.parent.name}" for f in order if f.parent is not None]
    return ", ".join(parts) + "; trained here: " + ", ".join(trained)


def run_changes(family: Family, run: RunFiles) -> list[spec.Change]:
    """The changes of the run's network and objective from its family's, except sizes and windows."""
    changes: list[spec.Change] = []
    for part, kind in (("arch", Arch), ("objective", Objective)):
        try:
            trained = spec.coerce(kind, run.plan.get(part), part)
        except UsageError:
            continue  # written by another version
        changes += spec.diff(getattr(family, part), trained, part + ".")
    return [c for c in changes if not c.path.startswith("arch.mask")]


def changes_panel(family: Family, i: int, run: RunFiles) -> str:
    line = " &larr; ".join(escape(f.name) for f in family.lineage)
    parent = family.parent
    if parent is None:
        body = "<p>It is the root.</p>"
    else:
        rows = [change_row(p, spec.get(parent, p), spec.get(family, p)) for p in ranked(family.changes)]
        head, rest = rows[:9], rows[9:]
        body = f'<ul class="changes">{"".join(head)}</ul>'
        if rest:
            body += f"<details><summary>{len(rest)} more</summary><ul class='changes'>{''.join(rest)}</ul></details>"
    if own := [change_row(c.path, c.old, c.new) for c in run_changes(family, run)]:
        body += f'<p class="note">In this run, besides the size:</p><ul class="changes">{"".join(own)}</ul>'
    return f'<article class="panel {k(i)}"><h3>{escape(family.name)}</h3><p class="note">{line}</p>{body}</article>'
