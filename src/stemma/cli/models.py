"""`generate`, `fill`, `convert`: what to do with a checkpoint."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import click

from stemma.cli import command, console, emit
from stemma.errors import UsageError

PATH = click.argument("path", metavar="PATH")
DEVICE = click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
DTYPE = click.option("--dtype", default="float32", show_default=True, help="float32, bfloat16, float16 or auto.")


def load(path: str, device: str, dtype: str) -> Any:
    """The model at `path`: a checkpoint's folder, a run (its `model`), a GGUF file or a hub id."""
    import torch

    import stemma

    folder = Path(path)
    if (folder / "run.json").is_file():
        folder = folder / "model"
        if not folder.is_dir():
            raise UsageError(f"{path} is a run without a model yet: `stemma resume {path}` finishes it")
        path = str(folder)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"--device {device}: this torch sees no CUDA device; use --device cpu")
    try:
        torch.device(device)
    except RuntimeError:
        raise UsageError(f"--device {device!r} is no device; use auto, cpu or cuda") from None
    return stemma.load(path, device=device, dtype=dtype)


def piped(texts: tuple[str, ...], what: str) -> list[str]:
    """The texts given, or else standard input as one text."""
    if texts:
        return list(texts)
    if not sys.stdin.isatty() and (text := sys.stdin.read().strip("\n")):
        return [text]
    raise UsageError(f"give {what} after PATH, or pipe one in")


@command()
@PATH
@click.argument("prompts", nargs=-1, metavar="PROMPT...")
@click.option("-n", "--max-new-tokens", type=int, default=64, show_default=True)
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 takes the likeliest token.")
@click.option("--top-k", type=int, default=0, show_default=True, help="Draw from the K likeliest tokens; 0 is all.")
@click.option("--top-p", type=float, default=1.0, show_default=True, help="... from the likeliest with this share.")
@click.option("--min-p", type=float, default=0.0, show_default=True, help="... from those this likely beside the best.")
@click.option("--repetition-penalty", type=float, default=1.0, show_default=True, help="1 is none.")
@click.option("--num-beams", type=int, default=1, show_default=True, help="Search with so many beams, draw nothing.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End before this text. Repeatable.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--stream/--no-stream", default=None, help="Print text as it comes.  [default: on a terminal]")
@click.option("--json", "as_json", is_flag=True, help="Print texts, ids and log-probabilities as JSON.")
@DEVICE
@DTYPE
def generate(
    path: str,
    prompts: tuple[str, ...],
    stream: bool | None,
    as_json: bool,
    device: str,
    dtype: str,
    **options: Any,
) -> None:
    """Continue each PROMPT with the model at PATH (a folder, a run, a GGUF file or a hub id).

    Without a PROMPT, standard input is one.
    """
    import stemma
    from stemma.decoding.session import answers

    texts = piped(prompts, "a PROMPT")
    single = len(texts) == 1 and options["num_beams"] == 1 and not as_json
    if stream and not single:
        raise UsageError("--stream goes with one PROMPT, without --num-beams and --json")
    live = single and (sys.stdout.isatty() if stream is None else stream)
    model = load(path, device, dtype)
    lead = not answers(model)  # else it goes on from the prompt
    if live:
        click.echo(texts[0] if lead else "", nl=False)
        stemma.generate(model, texts, stream=lambda row, piece: click.echo(piece, nl=False), **options)
        click.echo()
        return
    results = stemma.generate(model, texts, **options)
    if as_json:
        emit(
            [
                {
                    "prompt": t,
                    "text": r.text or "",
                    "ids": r.ids,
                    "logprobs": r.logprobs,
                    "reason": r.reason,
                }
                for t, r in zip(texts, results, strict=True)
            ]
        )
        return
    said = [r.text or "" for r in results]
    click.echo("\n\n".join((t if lead else "") + s for t, s in zip(texts, said, strict=True)))


@command()
@PATH
@click.argument("text", required=False)
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, help="Guesses for each mask.")
@click.option("--json", "as_json", is_flag=True, help="Print guesses as JSON.")
@DEVICE
@DTYPE
def fill(path: str, text: str | None, top: int, as_json: bool, device: str, dtype: str) -> None:
    """Fill every [MASK] of TEXT with the model at PATH.

    An encoder guesses one token a mask; an encoder-decoder trained on spans writes as many as it likes.
    """
    from rich.text import Text

    import stemma

    texts = piped((text,) if text is not None else (), "a TEXT")
    found = stemma.fill(load(path, device, dtype), texts[0], top=top)
    if as_json:
        guesses = [[{"text": g.text, "id": g.id, "p": g.probability} for g in row] for row in found.guesses]
        emit({"text": found.text, "guesses": guesses, "spans": found.spans})
        return
    out = console()
    out.print(Text(found.text, style="bold"))
    for row in found.guesses:
        out.print()
        wide = max(len(g.text) for g in row)
        for g in row:
            bar = "#" * round(g.probability * 40)
            out.print(Text(f"  {g.text:<{wide}}  {g.probability:6.1%}  ") + Text(bar, style="cyan"))
    for n, span in enumerate(found.spans):
        out.print(Text(f"  mask {n + 1}: ", style="dim") + Text(span.strip() or "(nothing)"))


def byte_size(text: str) -> int:
    """`5GB`, `500 MB`, `2GiB` in bytes. Raises UsageError for anything else."""
    powers = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]?i?)b?", text.strip().lower())
    if found is None or found[2] not in powers or float(found[1]) <= 0:
        raise UsageError(f"--shard-size {text!r} is no size; write 5GB, 500MB or 2GiB")
    return max(1, int(float(found[1]) * powers[found[2]]))


@command()
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST", type=click.Path())
@click.option("--dtype", default="auto", show_default=True, help="float32, bfloat16, float16; auto keeps the file's.")
@click.option("--to", "layout", type=click.Choice(["hf"]), default="hf", show_default=True, help="Layout of DST.")
@click.option("--shard-size", default="5GB", show_default=True, help="Largest file.")
@click.option("--force", is_flag=True, help="Write into a folder that is not empty.")
def convert(source: str, target: str, dtype: str, layout: str, shard_size: str, force: bool) -> None:
    """Read the checkpoint SRC (a folder, a run, a GGUF file or a hub id) and write it to the folder DST.

    `hf` is the publisher's own layout: config.json, safetensors and tokenizer, as transformers reads it.
    """
    limit, folder = byte_size(shard_size), Path(target)
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise UsageError(f"{folder} is not empty; choose another DST, or add --force")
    model = load(source, "cpu", dtype)
    model.save(str(folder), shard_bytes=limit)
    weights = sum(p.numel() for p in model.parameters())
    click.echo(f"{folder}: {model.name}, {weights:,} parameters, {str(model.dtype).removeprefix('torch.')}")
