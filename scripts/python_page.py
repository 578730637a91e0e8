"""docs/python.md: the Python interface, from signatures and docstrings."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "python.md"
# what is shown of each part: functions and classes by name, methods as Class.method
PARTS: dict[str, tuple[str, list[str]]] = {
    "Models": ("stemma", ["load", "build", "save", "generate", "fill", "embed"]),
    "A model": ("stemma.nn.model", ["Model", "Model.forward", "Model.initialise", "Model.save"]),
    "What a model takes and gives": ("stemma.nn", ["inputs.Inputs", "outputs.Output"]),
    "Options of generation": ("stemma.decoding", ["SamplingParams", "stream"]),
    "Log-probabilities": ("stemma.objectives.vocabulary", ["token_logprobs", "sequence_logprobs"]),
    "Rewrites": ("stemma.rewrites", ["WeightOnly", "Trainable", "apply", "merge", "undo"]),
    "Training": ("stemma.train", ["pretrain", "resume", "verify_resume", "Run", "resolve", "read_metrics"]),
    "The tree": ("stemma", ["family", "design", "tree"]),
    "Families": (
        "stemma.families.declare",
        ["Family", "Family.evolve", "Family.trained", "Family.diff", "Size", "About", "Design"],
    ),
    "Text": ("stemma.text", ["Tokenizer"]),
    "Data": ("stemma.data", ["read", "Store"]),
    "Errors": (
        "stemma.errors",
        ["StemmaError", "UsageError", "DataError", "CheckpointError", "ResourceError", "VerifyError", "LostError"],
    ),
}
HEAD = """# The Python interface

<!-- Made by scripts/docs.py from signatures and docstrings. -->

`import stemma` costs nothing: names load on first use. Shapes are written `B T D`: batch, tokens, width.
"""


def worded(p: inspect.Parameter) -> str:
    """A parameter as it stands in the source."""
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}.get(p.kind, "")
    kind = "" if p.annotation is p.empty else f": {p.annotation}"
    default = "" if p.default is p.empty else f"{' = ' if kind else '='}{shown(p.default)}"
    return f"{stars}{p.name}{kind}{default}"


def shown(value: object) -> str:
    """A default as one would write it."""
    if inspect.isclass(value) or inspect.isroutine(value):
        return getattr(value, "__name__", "...")
    return re.sub(r"<.*>", "...", repr(value))


def signature(thing: Any, name: str) -> str:
    """`name(parameters) -> result`, wrapped where it is long."""
    try:
        found = inspect.signature(thing)
    except (TypeError, ValueError):
        return name
    words = [worded(p) for n, p in found.parameters.items() if n != "self"]
    kinds = [p.kind for n, p in found.parameters.items() if n != "self"]
    first = next((i for i, k in enumerate(kinds) if k is inspect.Parameter.KEYWORD_ONLY), None)
    if first is not None and inspect.Parameter.VAR_POSITIONAL not in kinds:
        words.insert(first, "*")
    back = found.return_annotation
    end = "" if back is inspect.Signature.empty or inspect.isclass(thing) else f" -> {back}"
    line = f"{name}({', '.join(words)}){end}"
    return line if len(line) <= 100 else f"{name}(\n    " + ",\n    ".join(words) + f",\n){end}"


def entry(module: str, name: str) -> str:
    """The section of a function, class or method."""
    owner: Any = importlib.import_module(module)
    thing = owner
    for word in name.split("."):
        thing = getattr(thing, word)
    text = inspect.getdoc(thing) or ""
    title = name.rpartition(".")[2] if name[0].islower() else name
    code = inspect.isclass(thing) and issubclass(thing, Exception)
    block = "" if code else f"```python\n{signature(thing, title)}\n```\n\n"
    return f"### `{title}`\n\n{block}{text}\n"


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for title, (module, names) in PARTS.items():
        for name in (n for n in names if "." in n and n[0].islower()):  # a module of the package
            importlib.import_module(f"{module}.{name.rpartition('.')[0]}")
        own = [f"`from {module} import {', '.join(n for n in names if '.' not in n)}`"]
        own += [
            f"`from {module}.{n.rpartition('.')[0]} import {n.rpartition('.')[2]}`"
            for n in names
            if n[0].islower() and "." in n
        ]
        parts.append(f"## {title}\n\n" + "\n".join(line for line in own if not line.endswith("import `")) + "\n")
        parts += [entry(module, name) for name in names]
    return "\n".join(parts).rstrip() + "\n"
