"""`build`: the compiled parts, made before they are needed."""

from __future__ import annotations

import time

import click

from stemma.cli import command, echo, emit


@command()
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def build(as_json: bool) -> None:
    """Compile what speeds up decoding on this machine's CPU, and say what was found.

    The step executor is C, compiled by cc (or $CC) when a model first writes on the CPU and kept in
    $XDG_CACHE_HOME/stemma (~/.cache/stemma). This command does it ahead. Without a compiler PyTorch runs instead.
    """
    import torch

    from stemma.executor import native

    start = time.perf_counter()
    kept = set(native.folder().glob("*.so"))
    found = native.library()
    seconds = time.perf_counter() - start
    facts = {
        "processor": native.processor_name(),
        "instructions": " ".join(native.instructions()),
        "threads": torch.get_num_threads(),
        "compiler": None if found is None else found.compiler,
        "library": None if found is None else str(found.path),
        "compiled": found is not None and found.path not in kept,
        "seconds": round(seconds, 2),
    }
    if as_json:
        emit(facts)
        return
    echo(f"processor    {facts['processor']}, {facts['threads']} threads")
    echo(f"instructions {facts['instructions'] or 'no vector instructions that are known here'}")
    if found is None:
        echo("decoding     by PyTorch: no C compiler (cc, or $CC) was of use")
        return
    how = f"compiled by {found.compiler} in {seconds:.1f} s" if facts["compiled"] else "kept from an earlier time"
    echo(f"library      {found.path}, {how}")
    echo("decoding     by the step executor")
