"""The family tree as a page: years across, a row a family; a panel shows all that a family declares."""

from __future__ import annotations

import dataclasses
from html import escape
from typing import Any

import stemma
from stemma import families, spec
from stemma.declare.family import Family, Size
from stemma.markup import THEME, asset, change_row, document, theme_script
from stemma.nn.parts import Dims
from stemma.pictures.layout import BOX, ROW, TreeLayout, TreeNode, layout
from stemma.pictures.marks import STRUCTURES, family_mark, linked, mark
from stemma.words import PARTS, TITLES, children, has_weights, origin, ranked, value_text

PANEL = 344  # width of the panel beside the picture
MARGIN = 24


def render(root: str | None = None) -> str:
    """The whole page, of the tree or of the part below `root`. Raises UsageError for an unknown name."""
    top = families.family(root) if root is not None else None
    plan = layout([top] if top else children(None))
    known = [node.family for node in plan.nodes]
    title = f"What descends from {top.name}" if top else "The family tree of language models"
    body = f"""<a class="skip" href="#tree">To the tree</a>
<header>
<p class="kicker">Stemma</p>
<h1>{escape(title)}</h1>
<p class="lede">{lede(known)}</p>
</header>
<main>
<div class="tools" role="search">
<label class="unseen" for="search">Search by name, structure, component or source</label>
<input type="search" id="search" placeholder="Search: rotary, encoder, 1706…" autocomplete="off" spellcheck="false">
<output id="found" for="search" aria-live="polite"></output>
{THEME}
</div>
{legend(known)}
<div class="sides">
<div class="chart" id="tree" style="--h:{plan.height:.0f}px">
{axis(plan)}
<div class="canvas">
{edges(plan)}
{rows(plan)}
</div>
</div>
<aside id="panel" aria-label="The family chosen">
<button type="button" id="close" hidden>Close</button>
{guide()}
{"".join(about(f) for f in known)}
</aside>
</div>
</main>
<footer>Drawn by Stemma {escape(stemma.__version__)}. This file is complete: it loads nothing.</footer>
<script>{theme_script()}{asset(__file__, "tree.js")}</script>"""
    return document(f"{title} - Stemma", body, style(plan))


def style(plan: TreeLayout) -> str:
    """The page's CSS. Its breakpoints follow from the width of the picture."""
    narrow = plan.width + 2 * MARGIN
    wide = narrow + PANEL + MARGIN
    text = asset(__file__, "common.css") + asset(__file__, "tree.css")
    sizes = {"@WIDTH": f"{plan.width:.0f}px", "@PANEL": f"{PANEL}px", "@MARGIN": f"{MARGIN}px", "@ROW": f"{ROW:.0f}px"}
    sizes |= {"@NARROW": f"{narrow - 1:.0f}px", "@WIDE": f"{wide:.0f}px", "@PAGE": f"{wide - 2 * MARGIN:.0f}px"}
    for name, value in sizes.items():
        text = text.replace(name, value)
    return text


# ---------------------------------------------------------------- words above and beside


def lede(known: list[Family]) -> str:
    sizes = sum(len(f.sizes) for f in known)
    public = sum(has_weights(f) for f in known)
    years = sorted(f.about.year for f in known)
    span = f"from {years[0]} to {years[-1]}" if years[0] != years[-1] else f"of {years[0]}"
    return (
        f"{count(len(known), 'family', 'families')} {span}, each drawn as what it changed of its parent; "
        f"{count(sizes, 'published size')}; {public} of the families have public weights."
    )


def count(n: int, one: str, many: str | None = None) -> str:
    return f"{n} {one if n == 1 else many or one + 's'}"


def legend(known: list[Family]) -> str:
    items = "".join(
        f'<button type="button" class="key {s}" data-structure="{s}" aria-pressed="false">{mark(s)} {s} '
        f"<small>{sum(f.arch.structure == s for f in known)}</small></button>"
        for s in STRUCTURES
    )
    lines = (
        '<span class="key"><svg viewBox="0 0 30 16" aria-hidden="true"><path class="edge" d="M1 8H29"/></svg> '
        "new weights</span>"
        '<span class="key"><svg viewBox="0 0 30 16" aria-hidden="true"><path class="edge trained" d="M1 8H29"/></svg> '
        "more training</span>"
        '<span class="key"><svg viewBox="0 0 30 16" aria-hidden="true"><path class="edge unpublished" d="M1 8H29"/>'
        "</svg> "
        "design unpublished</span>"
        f'<span class="key plain">{mark("encoder", False)} hollow: no public weights</span>'
    )
    return f'<div class="legend" role="group" aria-label="Legend">{items}{lines}</div>'


def guide() -> str:
    """The panel while no family is selected."""
    return (
        '<article class="about guide" id="about"><h2>How to read it</h2>'
        "<p>A family is in the year of its paper, below and to the right of its parent. Beside its name are its "
        "changes to that parent, the most important first; <b>+12</b> is the number of changes that did not fit.</p>"
        "<p>Point at a family, tap it or move to it with the Tab or arrow keys: this panel shows everything that it "
        "declares, with the ancestor that set each value. A click keeps it. <kbd>/</kbd> searches.</p>"
        "<p>A solid line leads to a design with its own weights, a dashed one to more training of the parent's "
        "weights. Values that the authors did not publish are called unpublished.</p></article>"
    )


# ---------------------------------------------------------------- the picture


def axis(plan: TreeLayout) -> str:
    marks = "".join(f'<span style="left:{y.x:.0f}px;width:{y.w:.0f}px">{y.year}</span>' for y in plan.years)
    return f'<div class="axis" aria-hidden="true">{marks}<b>what it changed of its parent</b></div>'


def edges(plan: TreeLayout) -> str:
    """Bands of years and lines of descent, below the list of boxes."""
    out = [
        f'<svg class="lines" width="{plan.width:.0f}" height="{plan.height:.0f}" '
        f'viewBox="0 0 {plan.width:.0f} {plan.height:.0f}" aria-hidden="true">'
    ]
    for i, year in enumerate(plan.years):
        css = "band" if i % 2 == 0 else "band odd"
        out.append(f'<rect class="{css}" x="{year.x:.0f}" y="0" width="{year.w:.0f}" height="{plan.height:.0f}"/>')
    places = {node.family.name: node for node in plan.nodes}
    for node in plan.nodes:
        parent = places.get(node.family.parent.name) if node.family.parent else None
        if parent is None:
            continue
        x, y, bend = parent.stem, node.middle, 8.0
        trained = f" {node.family.edge}" if node.family.edge in ("trained", "unpublished") else ""
        out.append(
            f'<path class="edge {node.family.arch.structure}{trained}" data-from="{escape(parent.family.name)}" '
            f'data-to="{escape(node.family.name)}" '
            f'd="M{x:.1f} {parent.y + BOX:.1f}V{y - bend:.1f}Q{x:.1f} {y:.1f} {x + bend:.1f} {y:.1f}H{node.x:.1f}"/>'
        )
    return "".join([*out, "</svg>"])


def rows(plan: TreeLayout) -> str:
    """The families as nested lists of links, also for screen readers and small screens."""
    by_parent: dict[str | None, list[TreeNode]] = {}
    shown = {node.family.name for node in plan.nodes}
    for node in plan.nodes:
        parent = node.family.parent.name if node.family.parent else None
        by_parent.setdefault(parent if parent in shown else None, []).append(node)

    def items(parent: str | None) -> str:
        found = "".join(
            f"<li>{row(node)}{f'<ul>{inner}</ul>' if (inner := items(node.family.name)) else ''}</li>"
            for node in by_parent.get(parent, [])
        )
        return found

    return f'<ul class="tree" aria-label="The family tree">{items(None)}</ul>'


def row(node: TreeNode) -> str:
    family = node.family
    name = escape(family.name)
    parent = family.parent.name if family.parent else ""
    how = f" {family.edge}" if family.edge in ("trained", "unpublished") else ""
    public = "public weights" if has_weights(family) else "no public weights"
    text = f", {family.arch.structure}, {public}. "
    return (
        f'<a class="row {family.arch.structure}{how}" href="#family={name}" data-name="{name}" '
        f'data-parent="{escape(parent)}" data-find="{escape(findable(family))}" '
        f'style="--x:{node.x:.0f}px;--y:{node.row * ROW:.0f}px;--d:{node.depth}">'
        f'<span class="box">{family_mark(family)}<b>{name}</b></span>'
        f'<small class="year">{family.about.year}</small><span class="unseen">{text}</span>'
        f'<span class="delta">{escape(node.label)}</span></a>'
    )


def findable(family: Family) -> str:
    """The searched text: the structure, then names, source, components and strings of the spec."""
    words = [family.arch.structure, family.name, *family.names, family.about.title, family.about.source]
    words += [str(family.about.year), *(size.hub for size in family.sizes.values() if size.hub)]
    for part in PARTS:
        value = getattr(family, part)
        words.append(type(value).__name__)
        words += kinds(value)
        words += [leaf for path, leaf in spec.leaves(value) if isinstance(leaf, str) and path != "structure"]
    return " ".join(dict.fromkeys(word for word in words if word)).lower()


def kinds(value: Any) -> list[str]:
    """The class names of the specs inside `value`."""
    found: list[str] = []
    for f in dataclasses.fields(value):
        inner = getattr(value, f.name)
        if isinstance(inner, spec.Spec):
            found += [type(inner).__name__, *kinds(inner)]
    return found


# ---------------------------------------------------------------- all that is declared of a family


def about(family: Family) -> str:
    """The article that the panel shows, hidden in the page."""
    name, facts = escape(family.name), family.about
    line = " &larr; ".join(
        f"<b>{escape(f.name)}</b>" if f is family else f'<a href="#family={escape(f.name)}">{escape(f.name)}</a>'
        for f in family.lineage
    )
    below = ", ".join(f'<a href="#family={escape(f.name)}">{escape(f.name)}</a>' for f in children(family.name))
    rows = [
        ("line", line),
        ("children", below),
        ("source", linked(facts.source)),
        ("also from", ", ".join(family.others)),
        ("training", escape(" -> ".join(family.tuning.labels)) if family.tuning else ""),
        ("on", escape(family.tuning.data) if family.tuning else ""),
        ("template", escape(family.tuning.template) if family.tuning else ""),
        ("weights", "public" if has_weights(family) else escape(facts.weights)),
        ("note", escape(facts.note)),
    ]
    table = "".join(f"<dt>{a}</dt><dd>{b}</dd>" for a, b in rows if b)
    return (
        f'<article class="about {family.arch.structure}" id="about-{name}" data-of="{name}" hidden>'
        f"<h2>{family_mark(family)} {name} <small>{family.arch.structure}, {facts.year}</small></h2>"
        f'<p class="paper">{escape(facts.title)}</p><dl class="facts">{table}</dl>'
        + (
            "<p>The design was never published, so it cannot be drawn or built.</p></article>"
            if family.edge == "unpublished"
            else f"{changed(family)}{sizes(family)}{resolved(family)}</article>"
        )
    )


def changed(family: Family) -> str:
    parent = family.parent
    if parent is None:
        return "<h3>The root</h3><p>Everything descends from it.</p>"
    how = "More training of" if family.edge == "trained" else "What it changed of"
    items = "".join(change_row(p, spec.get(parent, p), spec.get(family, p)) for p in ranked(family.changes))
    listed = f'<ul class="changes">{items}</ul>' if items else "<p>No value of the design differs.</p>"
    return f"<h3>{how} {escape(parent.name)} <small>{len(family.changes)}</small></h3>{listed}"


def sizes(family: Family) -> str:
    items = "".join(f"<li>{size_text(name, size)}</li>" for name, size in family.sizes.items())
    return f'<h3>Sizes <small>{len(family.sizes)}</small></h3><ul class="sizes">{items}</ul>'


def size_text(name: str, size: Size) -> str:
    more = [f"{path} {value_text(value, path)}" for path, value in size.changes.items()]
    lines = [dims_text(size.dims), "; ".join(more), size.note]
    small = "".join(f"<small>{escape(line)}</small>" for line in lines if line)
    hub = f'<small class="mono">{escape(size.hub)}</small>' if size.hub else ""
    return f"<b>{escape(name)}</b> <span>{escape(size.published or 'no count published')}</span>{small}{hub}"


def dims_text(dims: Dims) -> str:
    """A size's numbers in one line, without derived ones."""
    words = {"d_model": "wide", "layers": "layers", "heads": "heads", "d_ff": "ffn", "vocab": "tokens"}
    shown = []
    for f in dataclasses.fields(dims):
        value = getattr(dims, f.name)
        if f.name in words:
            shown.append(f"{value_text(value)} {words[f.name]}")
        elif value is not None and value != f.default:
            shown.append(f"{f.name.replace('_', ' ')} {value_text(value)}")
    return " · ".join(shown)


def breakable(path: str) -> str:
    """A dotted path with optional line breaks between its words."""
    return escape(path).replace(".", ".<wbr>").replace("_", "_<wbr>")


def resolved(family: Family) -> str:
    """Every value of the four parts with the ancestor that set it; the family's own are marked."""
    out = []
    for part in PARTS:
        value = getattr(family, part)
        lines = ""
        for path, leaf in spec.leaves(value):
            full = f"{part}.{path}"
            came = origin(family, full)
            own = ' class="own"' if came == family.name else ""
            lines += (
                f'<tr{own}><th scope="row">{breakable(path)}</th><td>{escape(value_text(leaf, full))}</td>'
                f"<td>{escape(came)}</td></tr>"
            )
        out.append(
            f"<h3>{TITLES[part].capitalize()} <small>{type(value).__name__}</small></h3>"
            f'<table class="spec"><thead class="unseen"><tr><th scope="col">path</th><th scope="col">value</th>'
            f'<th scope="col">from</th></tr></thead><tbody>{lines}</tbody></table>'
        )
    return "".join(out)
