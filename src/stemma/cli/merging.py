"""`merge`: adapters added to the weights of a model, for good."""

from __future__ import annotations

from pathlib import Path

import click

from stemma.cli import command, echo
from stemma.cli.complete import complete_paths
from stemma.errors import UsageError


@command()
@click.argument("path", metavar="MODEL", shell_complete=complete_paths)
@click.option("--adapter", multiple=True, metavar="DIR", required=True, help="An adapter. Repeatable.")
@click.option("--weight", multiple=True, type=float, help="The share of each adapter, in their order; -1 unmerges.")
@click.option("--out", required=True, type=click.Path(), metavar="DIR", help="The folder to write.")
@click.option("--dtype", default="auto", show_default=True, help="float32, bfloat16, float16; auto keeps MODEL's.")
@click.option("--quantize", type=click.Choice(["nf4", "int8"]), help="Merge into the numbers of MODEL in 4 or 8 bits.")
@click.option(
    "--into", type=click.Choice(["nf4", "int8"]), help="Round what is merged to numbers of 4 or 8 bits again."
)
@click.option("--force", is_flag=True, help="Write into a folder that is not empty.")
def merge(
    path: str,
    adapter: tuple[str, ...],
    weight: tuple[float, ...],
    out: str,
    dtype: str,
    quantize: str | None,
    into: str | None,
    force: bool,
) -> None:
    """Add adapters to the weights of MODEL and write a plain checkpoint to --out.

    With --quantize the weights are those that an adapter was tuned beside (QLoRA): the numbers of the codes, written in
    full, with the adapter added. What rounding to --dtype loses of the adapter is measured and printed.

    Numbers of 4 bits lie further apart than most adapters move them: --into makes such numbers of the sum, and says how
    much of the adapter is left.
    """
    target = Path(out)
    if weight and len(weight) != len(adapter):
        raise UsageError(f"{len(adapter)} --adapter and {len(weight)} --weight: give one for each, or none")
    if not force and target.is_dir() and any(target.iterdir()):
        raise UsageError(f"{out} is not empty; choose another --out, or add --force")
    from torch import nn

    import stemma
    from stemma.formats import QUANTIZED
    from stemma.rewrites import adapters, engine

    model = stemma.load(path, "cpu", dtype, adapter=adapter, quantize=quantize)
    names = adapters.names(model)
    adapters.use(model, dict(zip(names, weight, strict=True)) if weight else names)
    changed = tuple(p for p, layer in adapters.adapted(model) if issubclass(layer.plain, nn.Linear))
    kept = QUANTIZED[into](changed) if into and changed else None
    lost = adapters.rounded(model, kept)
    engine.merge(model)
    if kept is not None:
        engine.apply(model, (kept,))
    model.save(str(target))
    shares = "" if not weight else f" ({', '.join(f'{n} x {w:g}' for n, w in zip(names, weight, strict=True))})"
    kind = str(model.dtype).removeprefix("torch.") + (f", numbers of {into}" if kept else "")
    echo(f"{out}: {model.name} with {len(names)} {'adapter' if len(names) == 1 else 'adapters'}{shares}, {kind}")
    most = "; leave out --into to keep them" if kept is not None and lost > 0.1 else ""
    echo(f"rounding to {into if kept else kind} changes what the adapters add by {lost:.2%}{most}")
