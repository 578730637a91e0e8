"""What the shell completes: names, paths and settings. Loads no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import click
from click.shell_completion import CompletionItem


def set_option(help: str) -> Callable[[Any], Any]:
    """`--set PATH=VALUE`, for changes of a plan or a design."""
    return click.option(
        "--set", "sets", multiple=True, metavar="PATH=VALUE", shell_complete=complete_settings, help=help
    )


def scale_option(**how: Any) -> Callable[[Any], Any]:
    """`--scale`."""
    return click.option("--scale", shell_complete=complete_scales, **how)


def complete_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Families and sizes that begin with `incomplete`."""
    from stemma import families

    names = [*families.tree(), *families.size_names()]
    return sorted({name for name in names if name.startswith(incomplete)})


def complete_paths(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Files and folders, which the shell finds itself."""
    return [CompletionItem(incomplete, type="file")]


def complete_names_or_paths(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[str] | list[CompletionItem]:
    """Families and sizes, else files and folders."""
    return complete_names(ctx, param, incomplete) or complete_paths(ctx, param, incomplete)


def complete_data(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str] | list[CompletionItem]:
    """Built-in texts, else files and folders."""
    from stemma.data import builtin

    known = [f"builtin:{name}" for name in builtin.NAMES]
    return [name for name in known if incomplete and name.startswith(incomplete)] or complete_paths(
        ctx, param, incomplete
    )


def complete_scales(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """The scales."""
    from stemma.train.scale import SCALES

    return [name for name in (*SCALES, "full") if name.startswith(incomplete)]


def complete_settings(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """The paths of the plan of the family that is named, `recipe.lr=`, as far as the next dot."""
    from stemma.errors import StemmaError
    from stemma.train.plans import drafted

    names = ctx.params.get("name") or ctx.params.get("names") or ctx.args  # args: click stops at the unfinished --set
    try:
        plan = drafted((names if isinstance(names, str) else names[0]) if names else "llama")
    except StemmaError:
        return []
    whole = [f"{path}=" for path in paths(plan) if path.startswith(incomplete)]
    level = incomplete.count(".")
    steps = {".".join(path.split(".")[: level + 1]) + "." for path in whole if path.count(".") > level}
    return sorted({*(path for path in whole if path.count(".") == level), *steps})


def paths(plan: object) -> Iterator[str]:
    """Every dotted path of a plan that `--set` takes, those of components too."""
    from stemma import spec

    found: dict[str, None] = {}
    for path, _ in spec.leaves(plan):
        parts = path.split(".")
        found |= dict.fromkeys(".".join(parts[: n + 1]) for n in range(len(parts)))
    yield from found
