"""`show`: what a family or a size is, or what a checkpoint holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stemma.cli import command, console, emit
from stemma.cli.complete import complete_names_or_paths
from stemma.cli.lookup import COLOUR, hanging, node
from stemma.disk import nearest_path
from stemma.errors import UsageError
from stemma.words import PARTS, TITLES, command_of, has_weights, origin, same, stage_rows, value_text

if TYPE_CHECKING:
    from rich.console import Console

    from stemma.declare.family import Design, Family


def nearest_relative(family: Family) -> tuple[str, int] | None:
    """The family whose architecture differs in the fewest places, with their number."""
    from stemma import families
    from stemma.spec import diff

    others = [f for f in families.tree().values() if f.name != family.name and f.edge in ("root", "evolve")]
    if not others:
        return None
    ranked = sorted((len(diff(f.arch, family.arch)), family.parent is not f, f.name) for f in others)
    return ranked[0][2], ranked[0][0]


@command()
@click.argument("name", metavar="NAME|PATH", shell_complete=complete_names_or_paths)
@click.option("--json", "as_json", is_flag=True, help="Print plain data as JSON.")
def show(name: str, as_json: bool) -> None:
    """Print all that a family or a size is: every value, and the ancestor it came from.

    What its authors did not publish is printed as unpublished. Of a run, a folder, a file (such as a GGUF file) or a
    hub id it prints what the checkpoint holds: family, changes, size, types, tokenizer, chat template and licence.
    """
    from rich.text import Text

    from stemma import families

    if is_path(name):
        from stemma.cli.checkpoint import show_checkpoint

        show_checkpoint(name, as_json)
        return
    family, name = families.family(name), families.known_as(name)
    design = None if name in families.tree() else families.design(name)
    if as_json:
        emit(_plain(family, design))
        return
    out = console()
    _heading(out, family, design)
    _tuning(out, family)
    if family.edge == "unpublished":
        return
    _values(out, family, design or family)
    out.print()
    if design is not None:
        _size(out, family, design)
    else:
        out.print(_sizes_table(family) if family.sizes else Text("no sizes: the design was never published"))


def is_path(name: str) -> bool:
    """Whether `name` is a checkpoint's rather than one of the tree, which a folder of the same name does not hide."""
    from stemma import families

    try:
        families.family(name)
    except UsageError as error:
        if "/" in name or name.endswith((".gguf", ".bin", ".pt")) or (name and Path(name).exists()):
            return True
        return bool(name) and "did you mean" not in str(error) and bool(nearest_path(name))
    return False


def _plain(family: Family, design: Design | None) -> dict[str, Any]:
    """A family, or one size of it, as `stemma show --json` prints it."""
    from stemma.spec import leaves, to_dict

    data = node(family)
    if family.edge == "unpublished":
        return data
    source = design or family
    data |= {part: to_dict(getattr(source, part)) for part in PARTS}
    paths = [f"{part}.{path}" for part in PARTS for path, _ in leaves(getattr(source, part))]
    data["origins"] = {path: _origin(family, source, path) for path in paths}
    if design is not None:
        size = family.sizes[design.name]
        data |= {"size": design.name, "dims": to_dict(design.dims), "published": size.published or None}
        data |= {"hub": size.hub, "size_note": size.note, "aliases": list(size.aliases)}
    return data


def _heading(out: Console, family: Family, design: Design | None) -> None:
    """Where a family comes from, what it descends from, and how it was trained on."""
    from rich.text import Text

    about = family.about
    head = Text(family.name if design is None else design.name, style="bold")
    head.append(f"  {family.arch.structure}, {about.year}", style=COLOUR[family.arch.structure])
    out.print(head)
    rows = [("family", family.name)] if design is not None else []
    rows += [("paper", about.title), ("source", about.source), *_relatives(family)]
    if family.tuning is not None:
        rows += [("training", " -> ".join(family.tuning.labels)), ("on", family.tuning.data)]
        rows += [("template", family.tuning.template)] if family.tuning.template else []
        rows += [("result", family.tuning.result)] if family.tuning.result else []
        rows += [("stand-ins", family.tuning.stand_ins)] if family.tuning.stand_ins else []
        rows += [("runs by", command_of(family))] if command_of(family) else []
    rows.append(("weights", "public" if has_weights(family) else about.weights))
    rows += [("note", about.note)] if about.note else []
    for label, text in rows:
        out.print(hanging(out, Text(f"{label:<13}", style="dim"), text))


def _tuning(out: Console, family: Family) -> None:
    """The stages of a tuned family's training, each with its published numbers."""
    from rich.text import Text

    for number, (label, rows) in enumerate(stage_rows(family), 1):
        out.print()
        out.print(Text(f"stage {number}", style="bold") + Text(f"  {label}", style="dim"))
        for what, value in rows:
            out.print(hanging(out, Text(f"  {what:<22} ", style="dim"), value))


def _relatives(family: Family) -> list[tuple[str, str]]:
    rows = []
    if family.parent is not None:
        how = {
            "trained": f"more training of it: {len(family.changes)} changes",
            "unpublished": "in its line; its own design was never published",
        }.get(family.edge, f"a changed design of it: {len(family.changes)} changes")
        rows.append(("parent", f"{family.parent.name} ({how})"))
        if family.others:
            rows.append(("also from", ", ".join(family.others)))
        close = nearest_relative(family)
        if close is not None and close[0] != family.parent.name:
            rows.append(("nearest", f"{close[0]}: {close[1]} places of the architecture differ"))
    return [*rows, ("line", " <- ".join(f.name for f in family.lineage))]


def _values(out: Console, family: Family, source: Family | Design) -> None:
    """Every value of the four parts, with the family that it came from."""
    from rich.text import Text

    from stemma.spec import leaves

    wide = max(len("this size"), *(len(f.name) for f in family.lineage))
    for part in PARTS:
        value = getattr(source, part)
        out.print()
        out.print(Text(TITLES[part], style="bold") + Text(f"  {type(value).__name__}", style="dim"))
        for path, leaf in leaves(value):
            came = _origin(family, source, f"{part}.{path}")
            row = Text(f"  {path:<22} ", style="dim")
            row.append(f"{came:<{wide}} ", style="bold" if came in (family.name, "this size") else "dim")
            out.print(hanging(out, row, value_text(leaf, f"{part}.{path}")))


def _size(out: Console, family: Family, design: Design) -> None:
    """The widths of a size, its published count and where its weights are."""
    from rich.text import Text

    from stemma.spec import leaves

    out.print(Text("sizes", style="bold"))
    for path, leaf in leaves(design.dims):
        shown = leaf if leaf is not None else {"kv_heads": design.dims.kv, "head_dim": design.dims.width}.get(path)
        if path == "decoder_layers" and family.arch.structure != "encoder-decoder":
            continue
        out.print(Text(f"  {path:<22} ", style="dim") + Text(value_text(shown if shown else leaf)))
    size = family.sizes[design.name]
    facts = ("published", size.published or "no count published"), ("weights", size.hub or family.about.weights)
    for label, text in (*facts, *([("note", size.note)] if size.note else [])):
        out.print(hanging(out, Text(f"  {label:<11}", style="dim"), text))


def _origin(family: Family, source: Any, path: str) -> str:
    if source is not family and not same(source, family, path):
        return "this size"
    return origin(family, path)


def _sizes_table(family: Family) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for title in ("size", "width", "layers", "heads", "ffn", "vocab", "context"):
        table.add_column(title, justify="left" if title == "size" else "right", no_wrap=True)
    table.add_column("published")
    for name, size in family.sizes.items():
        d = size.dims
        heads = f"{d.heads}/{d.kv}" if d.kv != d.heads else str(d.heads)
        numbers = (d.d_model, d.layers, heads, d.d_ff, d.vocab, d.context)
        table.add_row(name, *(str(n) for n in numbers), size.published or "-")
    return table
