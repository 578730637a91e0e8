"""What `stemma show` says of a checkpoint."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from stemma.cli import console, emit
from stemma.words import value_text

LICENCES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "COPYING")


def show_checkpoint(name: str, as_json: bool) -> None:
    """Print what the checkpoint called `name` holds; weights stay in their files where the layout allows."""
    from rich.text import Text

    from stemma.cli.lookup import COLOUR, hanging
    from stemma.cli.models import Loading, load

    model = load(name, Loading("meta", "auto"))
    found = facts(name, model)
    if as_json:
        emit(found)
        return
    out = console()
    structure = str(found["structure"])
    out.print(Text(name, style="bold") + Text(f"  {structure}", style=COLOUR[structure]))
    for label, text in rows(found):
        out.print(hanging(out, Text(f"{label:<13}", style="dim"), text))


def facts(name: str, model: Any) -> dict[str, Any]:
    """What a checkpoint holds, as `stemma show --json` prints it."""
    from stemma import spec

    family, design = model.family, model.design
    base = family.sizes.get(model.name) if family is not None else None
    changes = spec.diff(family.arch, design.arch, "arch.") if family is not None else []
    tokenizer = model.tokenizer
    return {
        "path": name,
        "run": run_facts(name),
        "family": family.name if family is not None else None,
        "size": model.name if base is not None else None,
        "structure": design.arch.structure,
        "changes": {c.path: [spec.to_dict(c.old), spec.to_dict(c.new)] for c in changes},
        "dims": spec.to_dict(design.dims),
        "parameters": sum(p.numel() for p in model.parameters()),
        "types": types(model, name),
        "tokenizer": None
        if tokenizer is None
        else {"kind": tokenizer.kind, "vocab": tokenizer.vocab_size, "special": special_names(tokenizer)},
        "template": None if tokenizer is None else tokenizer.chat_template,
        "licence": licence(name, model),
    }


def run_facts(name: str) -> dict[str, Any] | None:
    """Steps, tokens and text of a finished run; None for other checkpoints."""
    from stemma.formats.where import is_run
    from stemma.report import read

    if not is_run(Path(name)):
        return None
    run = read(name)
    return {"data": run.plan.get("data")} | {key: run.summary.get(key) for key in ("steps", "tokens", "val")}


def types(model: Any, name: str) -> dict[str, int]:
    """How many tensors have each type; of a GGUF file, as they lie in it."""
    if Path(name).suffix == ".gguf":
        from stemma.formats.gguf import open_file

        return dict(Counter(entry.kind for entry in open_file(name).entries.values()).most_common())
    return dict(Counter(str(p.dtype).removeprefix("torch.") for p in model.parameters()).most_common())


def special_names(tokenizer: Any) -> dict[str, str]:
    """The name of each role's token."""
    roles = ("bos", "eos", "pad", "unk", "mask", "cls", "sep")
    return {role: named for role in roles if (named := getattr(tokenizer.specials, role)) is not None}


def licence(name: str, model: Any) -> str | None:
    """What the files say: GGUF's `general.license`, `license:` of a README.md, or a licence's first line."""
    found = model.extras.get("gguf", {}).get("general.license")
    if found:
        return str(found)
    for folder in (Path(name), Path(name) / "model"):
        card = folder / "README.md"
        if card.is_file() and (named := re.search(r"^license:\s*(\S.*)$", card.read_text("utf-8", "replace"), re.M)):
            return named[1].strip()
        for file in (folder / one for one in LICENCES):
            if file.is_file():
                lines = file.read_text("utf-8", "replace").split("\n")
                return next((line.strip() for line in lines if line.strip()), None)
    return None


def rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """The facts as labels and texts."""
    run, tokenizer, dims = found["run"], found["tokenizer"], found["dims"]
    out = [("family", found["family"] or "none of the tree"), ("size", found["size"] or "its own")]
    if run is not None:
        taken = f"{run['steps']:,} steps, {run['tokens']:,} tokens" if run["steps"] and run["tokens"] else "a run"
        out.insert(0, ("run", f"{taken} of {run['data']}"))
    for n, (path, (old, new)) in enumerate(found["changes"].items()):
        out.append(("" if n else "changes", f"{path}: {plain(old)} -> {plain(new)}"))
    widths = ("d_model", "layers", "heads", "d_ff", "vocab", "context")
    out.append(("dims", ", ".join(f"{key} {value_text(dims[key])}" for key in widths)))
    out.append(("parameters", f"{found['parameters']:,}"))
    out.append(("types", ", ".join(f"{kind} ({n})" for kind, n in found["types"].items())))
    if tokenizer is None:
        out.append(("tokenizer", "none"))
    else:
        named = ", ".join(f"{role} {name}" for role, name in tokenizer["special"].items())
        out.append(("tokenizer", f"{tokenizer['kind']}, {tokenizer['vocab']:,} ids; {named}"))
    template = found["template"]
    out.append(("template", "none" if template is None else f"a chat template of {len(template):,} characters"))
    return [*out, ("licence", found["licence"] or "not said by its files")]


def plain(value: Any) -> str:
    """A component as plain data, for people: `Rotary(base=10000.0)`."""
    if not isinstance(value, dict):
        return value_text(value)
    given = ", ".join(f"{key}={plain(inner)}" for key, inner in value.items() if key != "kind")
    return f"{value.get('kind', '')}({given})"
