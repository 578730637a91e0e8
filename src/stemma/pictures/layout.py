"""The places of families in the picture of the tree: a row a family, children below their parents, years across.

Rows follow the tree in depth-first order. So all rows between a parent and its last child are descendants, which begin
to the right of the parent, and no line crosses a name.
"""

from __future__ import annotations

from dataclasses import dataclass

from stemma.declare.family import Family
from stemma.pictures.marks import width
from stemma.words import brief, children

ROW = 28.0  # height of a row
BOX = 22.0  # height of the box around a name
STEP = 22.0  # from a parent to a child of the same year
LEFT = 10.0
YEAR = 54.0  # least width of a year with families
IDLE = 50.0  # width of a year without
TEXT = 12.5  # size of the text beside a name
ROOM = 160.0  # least room for it
WIDE = 830.0  # least width of the picture


@dataclass(frozen=True)
class TreeNode:
    """A family's box (`x`, `y`: its upper left corner) and, beside it, the label of the edge that leads to it."""

    family: Family
    depth: int
    row: int
    x: float
    y: float
    w: float
    label: str
    label_x: float

    @property
    def middle(self) -> float:
        return self.y + BOX / 2

    @property
    def stem(self) -> float:
        """x of the line to the children."""
        return self.x + 12.5


@dataclass(frozen=True)
class Year:
    year: int
    x: float
    w: float


@dataclass(frozen=True)
class TreeLayout:
    nodes: tuple[TreeNode, ...]
    years: tuple[Year, ...]
    width: float
    height: float

    def __getitem__(self, name: str) -> TreeNode:
        return next(n for n in self.nodes if n.family.name == name)


def layout(roots: list[Family]) -> TreeLayout:
    """The places of these families and of all their descendants."""
    order: list[tuple[Family, int]] = []

    def walk(family: Family, depth: int) -> None:
        order.append((family, depth))
        for child in children(family.name):
            walk(child, depth + 1)

    for root in roots:
        walk(root, 0)
    places: dict[str, tuple[int, int]] = {}  # (the year whose column a family is in, steps to the right in it)
    for family, _ in order:
        above = places.get(family.parent.name) if family.parent else None
        year = family.about.year
        if above is None or year > above[0]:
            places[family.name] = (year, 0)
        else:  # not younger than its parent
            places[family.name] = (above[0], above[1] + 1)
    years = columns(list(places.values()))
    start = {y.year: y.x for y in years}
    xs = {name: start[year] + LEFT + steps * STEP for name, (year, steps) in places.items()}
    widths = {f.name: 32 + width(f.name, 13, bold=True) for f, _ in order}
    wide = max(WIDE, *(xs[name] + widths[name] + ROOM for name in xs))
    nodes = []
    for row, (family, depth) in enumerate(order):
        x, w = xs[family.name], widths[family.name]
        label_x = x + w + 9
        y = row * ROW + (ROW - BOX) / 2
        label = edge_label(family, int((wide - label_x) / (TEXT * 0.63)), places[family.name][0])
        nodes.append(TreeNode(family, depth, row, x, y, w, label, label_x))
    return TreeLayout(tuple(nodes), years, wide, len(order) * ROW)


def columns(places: list[tuple[int, int]]) -> tuple[Year, ...]:
    """A column a year, wide enough for the longest line of descent in it. Years without families are narrow."""
    deepest: dict[int, int] = {}
    for year, steps in places:
        deepest[year] = max(deepest.get(year, 0), steps)
    first, last = min(deepest), max(deepest)
    shown = range(first, last + 1) if last - first < 30 else sorted(deepest)
    found, x = [], 0.0
    for year in shown:
        w = max(YEAR, LEFT + deepest[year] * STEP + STEP) if year in deepest else IDLE
        found.append(Year(year, x, w))
        x += w
    return tuple(found)


def edge_label(family: Family, chars: int, column: int) -> str:
    """The child's changes, as many as fit into `chars` characters."""
    if family.parent is None:
        return "the root"
    lead = "" if family.about.year == column else f"({family.about.year}) "
    if family.edge == "unpublished":
        return lead + "design unpublished"
    if family.edge == "trained":
        if family.tuning is not None:
            stages = " -> ".join(family.tuning.labels)
            return lead + (stages if len(lead + stages) <= chars else stages[: chars - len(lead) - 3] + "...")
        lead += "more training: " if family.changes else "more training"
    return lead + brief(family.changes, chars - len(lead))
