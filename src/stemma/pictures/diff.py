"""Two families or sizes side by side as a page: their blocks with the differences marked, and all changes listed."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import stemma
from stemma import families, spec
from stemma.declare.family import Design, Family
from stemma.markup import THEME, asset, document, theme_script
from stemma.pictures.block import stacks, undrawn
from stemma.pictures.boxes import BoxStack, Item
from stemma.pictures.figure import Drawing, Mark, arrange, draw, outlet_height
from stemma.pictures.marks import family_mark
from stemma.spec import Change
from stemma.words import PARTS, TITLES, common_path, compare, path_text, value_text


def render(a: str, b: str) -> str:
    """The whole page. Raises UsageError for an unknown name."""
    old, new, changes = compare(a, b)
    pair = (families.family(a), families.family(b))
    designs = (families.design(a), families.design(b))
    drawn = design_changes(*designs)
    more = [c for c in drawn if c not in changes]
    title = f"{old} → {new}"
    body = f"""<header>
<div class="top"><p class="kicker">Stemma</p>{THEME}</div>
<h1>{family_mark(pair[0]).replace("mark", f"mark {pair[0].arch.structure}", 1)} {escape(old)} <span>→</span> \
{family_mark(pair[1]).replace("mark", f"mark {pair[1].arch.structure}", 1)} {escape(new)}</h1>
<p class="lede">{lede(changes)}</p>
{way(*pair)}
</header>
<main>
<section aria-labelledby="h-drawn"><h2 id="h-drawn">The networks</h2>
{key(designs)}
{pictures(designs, (old, new), drawn)}
</section>
<section aria-labelledby="h-changes"><h2 id="h-changes">All changes</h2>
{listed(changes, old, new) if changes else '<p class="note">Nothing differs.</p>'}
{sizes_listed(more, designs)}
</section>
</main>
<footer>Drawn by Stemma {escape(stemma.__version__)}. This file is complete: it loads nothing.</footer>
<script>{theme_script()}{asset(__file__, "diff.js")}</script>"""
    return document(f"{title} - Stemma", body, asset(__file__, "common.css") + asset(__file__, "diff.css"))


def design_changes(old: Design, new: Design) -> list[Change]:
    parts = (*PARTS, "dims")
    return [c for part in parts for c in spec.diff(getattr(old, part), getattr(new, part), part + ".")]


# ---------------------------------------------------------------- words


def lede(changes: list[Change]) -> str:
    if not changes:
        return "Nothing differs."
    counts = {part: sum(c.path.split(".")[0] == part for c in changes) for part in (*PARTS, "dims")}
    each = ", ".join(f"{n} in the {TITLES[part]}" for part, n in counts.items() if n)
    return f"{len(changes)} {'change' if len(changes) == 1 else 'changes'}: {each}."


def way(a: Family, b: Family) -> str:
    """The path through the common ancestor."""
    if a.name == b.name:
        return f'<p class="way">Both are sizes of <b>{escape(a.name)}</b>.</p>' if a.sizes else ""
    left, meet, right = common_path(a, b)
    if meet is None:
        return f'<p class="way">{escape(path_text(a, b))}</p>'
    steps = [*((n, "→") for n in left), (meet, "←" if right else ""), *((n, "←") for n in right)]
    shown = ""
    for i, (name, arrow) in enumerate(steps):
        family = families.family(name)
        common = ' class="common"' if name == meet else ""
        last = i == len(steps) - 1
        shown += (
            f'<li><span class="{family.arch.structure}">{family_mark(family)}</span><b{common}>{escape(name)}</b> '
            f"<small>{family.about.year}</small>{'' if last else f' <i>{arrow}</i>'}</li>"
        )
    child, parent = (escape(n) for n in ((b.name, a.name) if meet == a.name else (a.name, b.name)))
    met = f"{child} descends from {parent}" if meet in (a.name, b.name) else f"They meet in {escape(meet)}"
    return (
        f'<ol class="way" aria-label="By way of {escape(path_text(a, b))}">{shown}</ol>'
        f'<p class="note">{met}; an arrow points from child to parent.</p>'
    )


def key(designs: tuple[Design, Design]) -> str:
    """The legend: the signs in use, and the sizes that are drawn."""
    signs = (
        ("changed", "≠", "another value"),
        ("only", "+", "only on this side"),
    )
    items = "".join(
        f'<li class="{css}"><svg viewBox="0 0 20 20" aria-hidden="true"><circle class="badge" cx="10" cy="10" r="9"/>'
        f'<text class="sign" x="10" y="14.6" text-anchor="middle">{sign}</text></svg> {text}</li>'
        for css, sign, text in signs
    )
    if any(not item.known for design in designs for stack in stacks(design) for item in stack.items):
        items += '<li class="dashed">dashed: a component without a drawing, in its own words</li>'
    names = " and ".join(escape(d.name) for d in designs)
    note = f"Read from the bottom to the top. Numbers are those of {names}."
    return f'<p class="note">{note}</p><ul class="keys">{items}</ul>'


# ---------------------------------------------------------------- pictures


def pictures(designs: tuple[Design, Design], names: tuple[str, str], changes: list[Change]) -> str:
    """Both designs, each with its stacks side by side; below them what the drawing has no place for."""
    sides = [stacks(design) for design in designs]
    groups = grouped(*sides)
    places = {role: arrange(group) for role, group in groups.items()}
    out = []
    for i, (design, own) in enumerate(zip(designs, sides, strict=True)):
        other = sides[1 - i]
        drawings = []
        for stack in own:
            counterpart = opposite(stack, own, other)
            mark = marker(counterpart, changes)
            label = f"{names[i]}: {described(stack)}"
            lone = counterpart is None
            inner = draw_stack(stack, own, places, mark, label)
            only = ' <span class="only">only on this side</span>' if lone else ""
            caption = f"<figcaption>{stack.role}{only}</figcaption>" if max(map(len, sides)) > 1 else ""
            drawings.append(f'<figure class="{"lone" if lone else ""}">{caption}{inner}</figure>')
        changed = any(c.path == "arch.structure" for c in changes)
        structure = (
            f'<span class="{"changed" if changed else ""}">{design.arch.structure}{" ≠" if changed else ""}</span>'
        )
        out.append(
            f'<article class="side" aria-label="{escape(names[i])}"><h3>{escape(names[i])} <small>{structure}'
            f"{'' if design.name == names[i] else f', drawn at the size {escape(design.name)}'}</small></h3>"
            f'<div class="stacks">{"".join(drawings)}</div>{rest(design, designs[1 - i], changes)}</article>'
        )
    return f'<div class="pair">{"".join(out)}</div>'


def grouped(a: Sequence[BoxStack], b: Sequence[BoxStack]) -> dict[str, list[BoxStack]]:
    """Stacks that are laid out together, by role: one group if each side has one stack."""
    if len(a) == len(b) == 1:
        return {role: [*a, *b] for role in (a[0].role, b[0].role)}
    return {role: [s for s in (*a, *b) if s.role == role] for role in ("encoder", "decoder")}


def opposite(stack: BoxStack, own: Sequence[BoxStack], other: Sequence[BoxStack]) -> BoxStack | None:
    """The stack of the other side that this one is compared with: the only one, or that of its role."""
    if len(own) == len(other) == 1:
        return other[0]
    return next((s for s in other if s.role == stack.role), None)


def draw_stack(stack: BoxStack, own: Sequence[BoxStack], places: dict[str, Drawing], mark: Mark, label: str) -> str:
    here = places[stack.role]
    if stack.role == "encoder" and len(own) == 2:
        outlet = outlet_height(places["decoder"])
        return draw(stack, here, mark, label=label, lift=max(32.0, outlet - here.height + 32), outlet=outlet)
    return draw(stack, here, mark, label=label)


def marker(other: BoxStack | None, changes: list[Change]) -> Mark:
    """The marks on a stack compared with `other`: none if there is no counterpart."""
    keys = {item.key for item in other.items} if other is not None else set()

    def mark(item: Item) -> tuple[str, str]:
        if other is None:
            return "", ""
        found = [c for c in changes if any(touches(c.path, path) for path in item.paths)]
        why = "\n".join(f"{c.path}: {value_text(c.old, c.path)} → {value_text(c.new, c.path)}" for c in found)
        if item.key not in keys:
            return "only", why
        return ("changed", why) if found else ("", "")

    return mark


def touches(change: str, path: str) -> bool:
    """Whether a change at one path changes the value at the other: one path is a prefix of the other."""
    return change == path or change.startswith(path + ".") or path.startswith(change + ".")


def described(stack: BoxStack) -> str:
    """A stack in words, for screen readers."""
    boxes = [
        ", ".join([b.title, *b.text, *(f"{c.title} {' '.join(c.text)}".strip() for c in b.chips)]) for b in stack.boxes
    ]
    frame = ", ".join(" ".join([i.title, *i.text]) for i in stack.frame)
    return f"{stack.role}, {frame}; from the bottom: " + "; ".join(boxes)


def rest(design: Design, other: Design, changes: list[Change]) -> str:
    has = {item.key for item in undrawn(other)}
    items = ""
    for item in undrawn(design):
        found = any(touches(c.path, path) for c in changes for path in item.paths)
        css, sign = ("only", "+ ") if item.key not in has else ("changed", "≠ ") if found else ("", "")
        items += (
            f'<dt class="{css}" data-paths="{escape(" ".join(item.paths))}">{sign}{escape(item.title)}</dt>'
            f"<dd>{escape(item.text[0])}</dd>"
        )
    return f'<h4>Not in the drawing</h4><dl class="rest">{items}</dl>' if items else ""


# ---------------------------------------------------------------- the list


def listed(changes: list[Change], old: str, new: str) -> str:
    """Every change by part, as `stemma diff` prints them."""
    out = []
    for part in (*PARTS, "dims"):
        rows = [c for c in changes if c.path.split(".")[0] == part]
        if rows:
            out.append(f"<h3>{TITLES[part].capitalize()} <small>{len(rows)}</small></h3>{table(rows, old, new)}")
    return "".join(out)


def table(rows: list[Change], old: str, new: str) -> str:
    lines = "".join(
        f'<tr data-path="{escape(c.path)}"><th scope="row">{escape(c.path.partition(".")[2] or c.path)}</th>'
        f'<td class="old">{escape(value_text(c.old, c.path))}</td><td class="to" aria-hidden="true">→</td>'
        f'<td class="new">{escape(value_text(c.new, c.path))}</td></tr>'
        for c in rows
    )
    head = f'<th scope="col">value</th><th scope="col">{escape(old)}</th><td></td><th scope="col">{escape(new)}</th>'
    return f'<table class="list"><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>'


def sizes_listed(more: list[Change], designs: tuple[Design, Design]) -> str:
    """The changes between the drawn sizes that are not changes between the families."""
    if not more:
        return ""
    old, new = (d.name for d in designs)
    return (
        f"<h3>Beside the design: the sizes drawn <small>{len(more)}</small></h3>"
        f'<p class="note">Families are compared by design. These differences are of {escape(old)} and {escape(new)}, '
        f"in whose numbers the networks are drawn.</p>{table(more, old, new)}"
    )
