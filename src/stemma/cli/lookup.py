"""`tree`, `show`, `diff`, `params`: what the declarations say. Drawn for people, `--json` for programs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from stemma.cli import command, console, echo, emit, overrides
from stemma.cli.complete import complete_names, set_option
from stemma.errors import UsageError
from stemma.words import (
    PARTS,
    TITLES,
    brief,
    children,
    common_path,
    compare,
    has_weights,
    path_text,
    value_text,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from stemma.declare.family import Design, Family

COLOUR = {"encoder": "cyan", "decoder": "magenta", "encoder-decoder": "yellow"}
HTML = click.option(
    "--html",
    is_flag=False,
    flag_value="",
    metavar="[FILE]",
    help="Write the picture as one HTML page that needs nothing else; FILE ends in .html.",
)
SHORT = {"encoder": "enc", "decoder": "dec", "encoder-decoder": "enc-dec"}


def unicode_ok(out: Console) -> bool:
    return out.encoding.lower().replace("-", "").startswith("utf")


def one_of(as_json: bool, html: str | None) -> None:
    if as_json and html is not None:
        raise UsageError("--json and --html are two outputs; choose one")


def hanging(out: Console, head: Text, text: str, style: str = "") -> Text:
    """`head`, then `text` wrapped in the columns to its right."""
    import textwrap

    room = max(out.width - len(head), 20)
    head.append(textwrap.fill(text, room, break_on_hyphens=False).replace("\n", "\n" + " " * len(head)), style=style)
    return head


# ---------------------------------------------------------------- tree


def node(family: Family) -> dict[str, Any]:
    """A family as `stemma tree --json` prints it."""
    from stemma.spec import get, to_dict

    changes, tuning = {}, family.tuning
    if family.parent is not None:
        changes = {p: [to_dict(get(family.parent, p)), to_dict(get(family, p))] for p in family.changes}
    return {
        "name": family.name,
        "year": family.about.year,
        "title": family.about.title,
        "source": family.about.source,
        "parent": family.parent.name if family.parent else None,
        "parents": [*([family.parent.name] if family.parent else []), *family.others],
        "edge": family.edge,
        "structure": family.arch.structure,
        "changes": changes,
        "sizes": list(family.sizes),
        "published": family.edge != "unpublished",
        "has_weights": has_weights(family),
        "weights": "public" if has_weights(family) else family.about.weights,
        "tuning": tuning and {**to_dict(tuning), "stages": list(tuning.labels)},
        "stages": [to_dict(stage) for stage in tuning.stages] if tuning else [],
        "note": family.about.note,
    }


def tree_lines(root: Family, width: int, fancy: bool) -> list[Text]:
    """The tree under `root`, one line a family, at most `width` columns."""
    from rich.text import Text

    tee, last, bar = ("├─ ", "└─ ", "│  ") if fancy else ("|- ", "`- ", "|  ")
    rows: list[tuple[str, Family]] = []

    def walk(family: Family, lead: str, branch: str) -> None:
        rows.append((lead + branch, family))
        below = children(family.name)
        inner = lead + ("" if not branch else bar if branch == tee else "   ")
        for i, child in enumerate(below):
            walk(child, inner, last if i == len(below) - 1 else tee)

    walk(root, "", "")
    first = max(len(lead) + len(f.name) for lead, f in rows) + 2
    lines = [Text(f"{'family':<{first}}year  kind     sizes  what it changed", style="dim")]
    for lead, family in rows:
        line = Text(lead, style="dim")
        line.append(family.name, style=f"bold {COLOUR[family.arch.structure]}")
        line.pad_right(first - len(line))
        line.append(f"{family.about.year}  ")
        line.append(f"{SHORT[family.arch.structure]:<8}", style=COLOUR[family.arch.structure])
        line.append(f"{len(family.sizes):>4}{' ' if has_weights(family) else '*'}  ")
        room = max(width - len(line), 12)
        if family.parent is None:
            line.append("the root", style="dim")
        elif family.edge == "unpublished":
            line.append("design unpublished", style="italic")
        elif family.edge == "trained":
            line.append(training_text(family, room))
        else:
            line.append(brief(family.changes, room))
        line.truncate(width, overflow="ellipsis" if fancy else "crop")
        lines.append(line)
    if any(not has_weights(f) for _, f in rows):
        lines.append(Text("* no public weights", style="dim"))
    return lines


@command()
@click.argument("name", required=False, shell_complete=complete_names)
@click.option("--json", "as_json", is_flag=True, help="Print a list of families as JSON.")
@HTML
def tree(name: str | None, as_json: bool, html: str | None) -> None:
    """Draw the family tree, or the part of it below NAME.

    One line a family: its year, its kind (encoder, decoder or both), how many published sizes it has, and the
    weightiest of its changes; `+12` counts those that did not fit. `stemma diff PARENT NAME` prints all.

    With --html the tree stands over the years, and everything declared of a family is a touch away. Without FILE it
    is written to tree.html, a part to tree-NAME.html.
    """
    from stemma import families

    one_of(as_json, html)

    known = families.tree()
    if name is not None and name not in known:
        name = families.family(name).name
    if html is not None:
        from stemma.pictures import write_tree

        echo(str(write_tree(html or f"tree{'-' + name if name else ''}.html", root=name)))
        return
    roots = [known[name]] if name else children(None)
    if as_json:
        below = {f.name for f in known.values() if any(a in roots for a in f.lineage)}
        emit([node(f) for f in known.values() if f.name in below])
        return
    out = console()
    width = min(out.width, 140)
    for i, root in enumerate(roots):
        for line in tree_lines(root, width, unicode_ok(out)):
            if i and line.plain.startswith("family "):
                line = line.__class__("")
            out.print(line, no_wrap=True, overflow="ignore", crop=False)


def training_text(family: Family, room: int) -> str:
    """What a family's training added to its parent's, in at most `room` columns."""
    if family.tuning is None:
        return brief(family.changes, room - 15) + " (more training)"
    stages = " -> ".join(family.tuning.labels)
    return stages if len(stages) <= room else stages[: room - 3] + "..."


# ---------------------------------------------------------------- diff


@command()
@click.argument("a", shell_complete=complete_names)
@click.argument("b", shell_complete=complete_names)
@click.option("--json", "as_json", is_flag=True, help="Print plain data as JSON.")
@HTML
def diff(a: str, b: str, as_json: bool, html: str | None) -> None:
    """Print what changes going from A to B, part by part.

    Two families are compared by design; as soon as a size is named, sizes are compared too (a family's name then
    means its first size).

    With --html both networks are drawn side by side with their differences marked. Without FILE they are written to
    diff-A-B.html.
    """
    from rich.text import Text

    from stemma import families
    from stemma.spec import to_dict

    one_of(as_json, html)
    old, new, changes = compare(a, b)
    if html is not None:
        from stemma.pictures import write_diff

        echo(str(write_diff(a, b, html or f"diff-{a}-{b}.html")))
        return
    one, two = families.family(a), families.family(b)
    if as_json:
        left, meet, right = common_path(one, two)
        data = {"from": old, "to": new, "common": meet, "path": [*left, *([meet] if meet else []), *right]}
        emit(data | {"changes": {c.path: [to_dict(c.old), to_dict(c.new)] for c in changes}})
        return
    out = console()
    out.print(Text(f"{old} -> {new}", style="bold") + Text(f"  {len(changes)} changes"))
    if one.name != two.name:
        out.print(Text(f"by way of {path_text(one, two)}", style="dim"))
    if not changes:
        out.print("nothing differs")
    arrow = "→" if unicode_ok(out) else "->"
    wide = max((len(c.path.partition(".")[2] or c.path) for c in changes), default=0)
    for part in (*PARTS, "dims"):
        rows = [c for c in changes if c.path.split(".")[0] == part]
        if rows:
            out.print()
            out.print(Text(TITLES[part], style="bold"))
        for c in rows:
            row = Text(f"  {(c.path.partition('.')[2] or c.path):<{wide}}  ", style="dim")
            old_text, new_text = value_text(c.old, c.path), value_text(c.new, c.path)
            if len(row) + len(old_text) + len(new_text) + 4 <= out.width:
                out.print(row + Text(old_text, style="red") + Text(f" {arrow} ") + Text(new_text, style="green"))
            else:
                out.print(hanging(out, row, old_text, "red"))
                out.print(hanging(out, Text(" " * (wide + 1) + f"{arrow:>2} "), new_text, "green"))


# ---------------------------------------------------------------- params


def by_part(design: Design) -> dict[str, int]:
    """Parameters in the embeddings, the encoder, the decoder and the heads; tied ones once, where they come first."""
    import torch

    from stemma.nn.model import Model

    with torch.device("meta"):
        model = Model(design.arch, design.dims)
    parts = {"embeddings": 0, "encoder": 0, "decoder": 0, "heads": 0}
    for name, parameter in model.named_parameters():
        words = name.split(".")
        if words[0] == "embed" or (len(words) > 1 and words[1] in ("position", "embed_norm")):
            parts["embeddings"] += parameter.numel()
        elif words[0] in parts:
            parts[words[0]] += parameter.numel()
        else:
            parts["heads"] += parameter.numel()
    return {name: n for name, n in parts.items() if n}


def counts(name: str, changes: dict[str, str]) -> dict[str, Any]:
    """A design's parameters, as `stemma params --json` prints them."""
    from stemma import families, spec
    from stemma.nn.model import count
    from stemma.nn.parts import Heads, Summary

    family, design = families.family(name), families.design(name)
    design = spec.edit(design, changes)
    parts = by_part(design)
    variants = {}
    if design.arch.structure == "encoder":
        bare = {"with_pooler": Heads(lm=None, pooler=Summary(), pair=False)}
        if design.arch.heads.lm is not None:
            bare["masked_lm"] = Heads(lm=design.arch.heads.lm, pooler=None, pair=False)
        variants = {k: count(spec.edit(design.arch, {"heads": heads}), design.dims) for k, heads in bare.items()}
        variants["pretraining"] = sum(parts.values())
    return {
        "size": design.name,
        "family": family.name,
        "parameters": sum(parts.values()),
        "by_part": parts,
        "variants": variants,
        "published": family.sizes[design.name].published or None,
    } | ({"changed": changes} if changes else {})


@command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_names)
@click.option("--all", "every", is_flag=True, help="Every size of the named families.")
@set_option("Change the design first, e.g. dims.layers=4.")
@click.option("--json", "as_json", is_flag=True, help="Print a list as JSON.")
def params(names: tuple[str, ...], every: bool, sets: tuple[str, ...], as_json: bool) -> None:
    """Count parameters exactly, tied ones once, without making any weights.

    A family's name means its first size, or all with --all. In JSON `name` is as asked and `size` its main name;
    `parameters` is the model as pretrained, with all of its
    heads; for an encoder the usual parts of it are counted too: the base model with its pooler, and the masked
    language model alone.
    """
    from rich.table import Table

    from stemma import families

    wanted: list[str] = []
    for name in names:
        known = families.family(name)
        wanted += list(known.sizes) if every else [families.known_as(name)]
    changes = overrides(sets)
    rows = [{"name": name, **counts(name, changes)} for name in dict.fromkeys(wanted)]
    if as_json:
        emit(rows)
        return
    out = console()
    heads: Sequence[str] = [p for p in ("embeddings", "encoder", "decoder", "heads") if _any(rows, p)]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    shown = [
        [row["size"], f"{row['parameters']:,}", *(rounded(row["by_part"].get(p, 0)) for p in heads)] for row in rows
    ]
    columns = list(zip(("size", "parameters", *heads), *shown, strict=True))
    while len(columns) > 2 and sum(max(map(len, c)) + 2 for c in columns) > out.width:
        columns.pop()  # the exact count is never shortened; parts that do not fit are in --json
    for title in (c[0] for c in columns):
        table.add_column(title, justify="left" if title == "size" else "right", no_wrap=True)
    for cells in shown:
        table.add_row(*cells[: len(columns)])
    out.print(table)
    from rich.text import Text

    for row in rows:
        said = f"{row['size']}: published as {row['published'] or 'no count'}" + (", before --set" if changes else "")
        if row["variants"]:
            v = row["variants"]
            said += f"; base model with pooler {v['with_pooler']:,}"
            said += f"; masked language model {v['masked_lm']:,}" if "masked_lm" in v else ""
        out.print(hanging(out, Text(""), said, "dim"))


def rounded(n: int) -> str:
    """`n` to four figures: 109.5M."""
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if n >= size:
            return f"{n / size:.4g}{letter}"
    return str(n) if n else "-"


def _any(rows: Iterable[dict[str, Any]], part: str) -> bool:
    return any(part in row["by_part"] for row in rows)
