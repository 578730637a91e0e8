"""The pages under docs/families and docs/support.md, made from the declarations. Sentences between `<!-- written -->`
and `<!-- /written -->` are people's and stay."""

from __future__ import annotations

import dataclasses
import functools
import re
from pathlib import Path

from counts import parameters

from stemma import families
from stemma.declare import objectives as declared
from stemma.declare.family import Family
from stemma.formats import LAYOUTS
from stemma.objectives import incompatible_reason
from stemma.spec import diff, kinds, leaves
from stemma.support import TASKS, Support, matrix, support
from stemma.tuning.systems import runnable
from stemma.words import children, command_of, stage_rows, value_text

DOCS = Path(__file__).resolve().parent.parent / "docs"
WRITTEN = re.compile(r"<!-- written -->\n(.*?)<!-- /written -->", re.S)
PARTS = {"arch": "Architecture", "objective": "Objective", "text": "Text", "recipe": "Recipe"}
NOTICE = (
    "<!-- Made by scripts/docs.py from the declarations; only what stands between the `written` marks is by hand. -->"
)
STRUCTURES = {"encoder": "an encoder", "decoder": "a decoder", "encoder-decoder": "an encoder-decoder"}


def link(name: str) -> str:
    return f"[{name}]({name}.md)"


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(map(cell, row)) + " |" for row in rows])


def changes(family: Family) -> str:
    """What changed from the parent, part by part."""
    assert family.parent is not None
    out = []
    for part, title in PARTS.items():
        found = diff(getattr(family.parent, part), getattr(family, part), part + ".")
        if found:
            rows = [[f"`{c.path}`", shown(c.old, c.path), shown(c.new, c.path)] for c in found]
            out.append(f"**{title}**\n\n{table(['path', family.parent.name, family.name], rows)}")
    return "\n\n".join(out) or "Nothing of the design: only the weights."


def shown(value: object, path: str) -> str:
    text = value_text(value, path)
    return f"`{text}`" if "<" in text or "[" in text else text


def whole(family: Family) -> str:
    """All of a design that has no parent."""
    rows = [[f"`{part}.{p}`", shown(v, f"{part}.{p}")] for part in PARTS for p, v in leaves(getattr(family, part))]
    return table(["path", "value"], rows)


def sizes(family: Family) -> str:
    rows = []
    for name, size in family.sizes.items():
        d, design = size.dims, family[name]
        heads = f"{d.heads}/{d.kv}" if d.kv != d.heads else str(d.heads)
        layers = f"{d.layers}+{d.depth}" if family.arch.structure == "encoder-decoder" else str(d.layers)
        hub = f"[{size.hub}](https://huggingface.co/{size.hub})" if size.hub else "none"
        numbers = [str(d.d_model), layers, heads, str(d.d_ff), str(d.vocab), str(d.context)]
        named = f"`{name}`" + (f" ({', '.join(size.aliases)})" if size.aliases else "")
        exact = f"{parameters(design.arch, design.dims):,}"
        rows.append([named, *numbers, exact, size.published or "-", hub + (f"; {size.note}" if size.note else "")])
    head = ["size", "width", "layers", "heads", "ffn", "vocab", "context", "parameters", "published", "weights"]
    return table(head, rows)


def trains_on(family: Family) -> bool:
    """Whether it is more pretraining of its parent's weights, by an objective that runs here."""
    stages = family.tuning.labels if family.tuning is not None else ()
    own = stages == ("pretraining",) or (
        not stages and family.parent is not None and family.objective != family.parent.objective
    )
    return own and incompatible_reason(family.objective, family.arch) is None


def more(family: Family) -> str:
    """How the training goes on that made it of its parent."""
    if command_of(family):
        return "A model of a fitting structure is tuned as it was by one command ([how](../systems.md))."
    if not trains_on(family):
        return "Its recipe of training is declared and not yet a command."
    return "Its training goes on from a run of its parent's, with that one's tokenizer, or from published weights."


def use(family: Family, row: Support | None) -> str:
    """How to build, load, train and tune it here."""
    name = next(iter(family.sizes))
    hub = next((size.hub for size in family.sizes.values() if size.hub), None)
    lines = ["import stemma", "", f'model = stemma.build("{name}", layers=2)  # fresh weights, a change of your own']
    if hub and row is not None and row.layouts:
        lines.append(f'model = stemma.load("{hub}")  # published weights')
    if row is not None and row.writes:
        start = ""
        if family.arch.structure == "encoder-decoder" and family.text.start_id is None:
            lines.append("# id 2 for the language that it writes")
            start = ", decoder_start_token_id=2"
        lines.append(f"print(stemma.generate(model, [[5, 6, 7]], max_new_tokens=5{start})[0].ids)")
    if row is not None and row.tasks:
        task = row.tasks[0]
        labels = ", labels=3" if task in ("classify", "tag") else ""
        where = hub or "FOLDER"
        lines.append("# its body with a new head")
        lines.append(f'model = stemma.load("{where}", task="{task}"{labels})')
    out = "```python\n" + "\n".join(lines) + "\n```\n\n```sh\n" + f"stemma show {family.name}\n"
    if row is not None and row.trains:
        out += f"stemma pretrain {family.name} --scale tiny\n"
    elif family.edge == "trained" and trains_on(family):
        assert family.parent is not None
        out += f"stemma pretrain {family.name} --from runs/{family.parent.name}-tiny-1\n"
    if command := command_of(family):
        out += command + "\n"
    return out + "```"


def abilities(row: Support) -> str:
    return table(
        ["objective", "trained here", "public layouts", "task heads", "generates", "fills masks"],
        [
            [
                row.objective,
                yes(row.trains),
                ", ".join(row.layouts) or "Stemma's own",
                ", ".join(row.tasks) or "none",
                yes(row.writes),
                yes(row.fills),
            ]
        ],
    )


def yes(value: bool) -> str:
    return "yes" if value else "no"


def page(family: Family, old: str) -> str:
    about = family.about
    kept = WRITTEN.search(old)
    written = kept[1] if kept else "\n"
    is_a = f"{about.year}; {STRUCTURES[family.arch.structure]}."
    parts = [f"# {family.name}", NOTICE, f"{about.title} ({about.source}), {is_a}"]
    if family.parent is not None:
        how = {
            "evolve": "a change of",
            "trained": "more training of the weights of",
            "unpublished": "in the line of",
        }[family.edge]
        others = f"; also from {', '.join(map(link, family.others))}" if family.others else ""
        parts.append(f"It is {how} {link(family.parent.name)}{others}.")
    below = children(family.name)
    if below:
        parts.append("Children: " + ", ".join(link(c.name) for c in below) + ".")
    public = [s for s in family.sizes.values() if s.hub]
    parts.append(
        f"Weights: {'public' if public else about.weights}."
        + (f" {about.note[0].upper()}{about.note[1:]}." if about.note else "")
    )
    parts.append(f"<!-- written -->\n{written}<!-- /written -->")
    if family.tuning is not None:
        t = family.tuning
        rows = [["stages", " -> ".join(t.labels)], ["data", t.data], ["template", t.template or "-"]]
        rows += [["result", t.result]] if t.result else []
        rows += [["stand-ins", t.stand_ins]] if t.stand_ins else []
        for label, values in stage_rows(family):
            rows.append([f"**{label}**", "; ".join(f"{what} {value}".strip() for what, value in values) or "-"])
        parts.append("## Training\n\n" + table(["", ""], rows))
    if family.edge == "unpublished":
        parts.append("Its design was never published, so there is nothing to build, and nothing is invented here.")
        return "\n\n".join(parts) + "\n"
    if family.parent is None:
        parts.append("## What it is\n\n" + whole(family))
    else:
        parts.append(f"## What it changed of {family.parent.name}\n\n" + changes(family))
    parts.append("## Sizes\n\n" + sizes(family))
    row = supported().get(family.name) or support(family)
    if family.edge != "trained":
        parts.append("## Here\n\n" + abilities(row) + "\n\n" + use(family, row))
    else:
        parts.append(
            "## Here\n\nThe network is its parent's, so all that loads, counts, decodes and saves there does here. "
            + more(family)
            + "\n\n"
            + use(family, None)
        )
    return "\n\n".join(parts) + "\n"


def index() -> str:
    lines = [f"# Families\n\n{NOTICE}\n\nOne page a family, made from its declaration. `stemma tree` draws them.\n"]

    def walk(family: Family, depth: int) -> None:
        edge = {"trained": " (more training)", "unpublished": " (design unpublished)"}.get(family.edge, "")
        lines.append(f"{'  ' * depth}- {link(family.name)}, {family.about.year}{edge}")
        for child in children(family.name):
            walk(child, depth + 1)

    for root in children(None):
        walk(root, 0)
    return "\n".join(lines) + "\n"


@functools.cache
def supported() -> dict[str, Support]:
    """The rows of the matrix by family, in its order."""
    return {row.family: row for row in matrix()}


def support_page() -> str:
    rows = []
    for row in supported().values():
        tasks = ["yes" if t in row.tasks else "-" for t in TASKS]
        name = f"[{row.family}](families/{row.family}.md)"
        layouts = ", ".join(row.layouts) or "own only"
        rows.append([name, row.objective, yes(row.trains), layouts, *tasks, yes(row.writes), yes(row.fills), "not yet"])
    head = ["family", "objective", "trained here", "public layouts", *TASKS, "generates", "fills", "served"]
    known = ", ".join(f"`{name}`" for name in sorted(LAYOUTS))
    return (
        f"# What works with what\n\n{NOTICE}\n\n"
        "Each cell is tried on a tiny relative by `tests/test_support.py` (heads, "
        "layouts, training, generation) and `tests/test_parity.py` (equality with the reference). Every family can be "
        "saved and loaded in Stemma's own layout; tuned children have the abilities of the family whose network they "
        f"are.\n\nLayouts by model type: {known}.\n\n" + table(head, rows) + "\n\n## Tuned systems\n\n"
        "`tests/test_systems.py` runs each command at its smallest, kills and resumes it ([more](systems.md)).\n\n"
        + systems()
        + "\n"
    )


def systems() -> str:
    """The tuned systems: of which network, in which stages, from what where no data are named, and the command."""
    rows = []
    for family in families.tree().values():
        if not command_of(family):
            continue
        assert family.tuning is not None and family.parent is not None
        held = {s.stand_in: None for s in runnable(family.tuning.stages) if s.stand_in}
        stages = " -> ".join(family.tuning.labels)
        links = [f"[{f.name}](families/{f.name}.md)" for f in (family, family.parent)]
        rows.append([*links, stages, ", ".join(f"`{source}`" for source in held) or "yours", f"`{command_of(family)}`"])
    return table(["system", "of", "stages", "learns here from", "command"], rows)


def objectives() -> str:
    """Each declared objective: what it says of itself, its fields, whose own it is."""
    own: dict[type, list[str]] = {}
    for family in families.tree().values():
        if family.edge != "unpublished" and (family.parent is None or family.objective != family.parent.objective):
            own.setdefault(type(family.objective), []).append(family.name)
    rows = []
    for spec in kinds(declared.Objective):
        said = " ".join((spec.__doc__ or "").split())
        said = re.sub(r"`(\w+)`", r"*\1*", said)
        fields = [
            f.name if f.default is dataclasses.MISSING else f"{f.name}={shown_default(f.default)}"
            for f in dataclasses.fields(spec)
        ]
        names = ", ".join(f"[{name}](families/{name}.md)" for name in own.get(spec, [])) or "-"
        rows.append([f"`{spec.__name__}`", said, f"`{', '.join(fields)}`" if fields else "-", names])
    return table(["objective", "what it does, and its source", "fields", "own of"], rows)


def shown_default(value: object) -> str:
    if isinstance(value, tuple):
        return "..."
    if isinstance(value, float):
        return f"{value:.3g}"
    return value_text(value, "") or "''"


def recipes() -> str:
    """What each family that is trained here was pretrained with, as declared; a dash is what is not known."""
    rows = []
    for row in supported().values():
        family = families.family(row.family)
        recipe = family.recipe
        how = recipe.schedule
        schedule = how.shape + (f", {how.warmup:,} steps up" if how.warmup else "")
        schedule += f", to {how.floor:g} of the peak" if how.floor else ""
        lr = "-" if recipe.lr is None else f"{recipe.lr:.3g}"
        batch, steps = ("-" if n is None else f"{n:,}" for n in (recipe.batch, recipe.steps))
        name = f"[{row.family}](families/{row.family}.md)"
        rows.append([name, shown(recipe.optimizer, "recipe.optimizer"), lr, schedule, batch, steps])
    return table(["family", "optimiser", "peak rate", "schedule", "tokens a step", "steps"], rows)


TABLES = {"objectives": objectives, "recipes": recipes, "systems": systems}


def tabled(text: str) -> str:
    """`text` with the table of each `<!-- table NAME -->` up to the `<!-- / -->` after it."""
    between = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- / -->)", re.S)
    return between.sub(lambda m: f"{m[1]}{TABLES[m[2]]()}\n{m[3]}", text)


def pages() -> dict[Path, str]:
    """Every generated page and what should stand in it."""
    folder = DOCS / "families"
    out = {folder / "README.md": index(), DOCS / "support.md": support_page()}
    for path in (DOCS / "pretraining.md", DOCS / "systems.md"):
        out[path] = tabled(path.read_text(encoding="utf-8"))
    for family in families.tree().values():
        path = folder / f"{family.name}.md"
        out[path] = page(family, path.read_text(encoding="utf-8") if path.is_file() else "")
    return out
