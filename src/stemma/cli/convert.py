"""`stemma convert`: a checkpoint in another layout or precision."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import click

from stemma import disk
from stemma.cli import command, echo
from stemma.cli.complete import complete_paths
from stemma.cli.models import Loading, load
from stemma.errors import UsageError, require

SHORT = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


def byte_size(text: str, option: str) -> int:
    """`5GB`, `500 MB`, `2GiB` in bytes. Raises UsageError for anything else."""
    powers = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]?i?)b?", text.strip().lower())
    if found is None or found[2] not in powers or float(found[1]) <= 0:
        raise UsageError(f"{option} {text!r} is no size; write 5GB, 500MB or 2GiB")
    return max(1, int(float(found[1]) * powers[found[2]]))


@command()
@click.argument("source", metavar="SRC", shell_complete=complete_paths)
@click.argument("target", metavar="DST", type=click.Path())
@click.option(
    "--dtype",
    "--type",
    "dtype",
    default="auto",
    show_default=True,
    help="float32, bfloat16 or float16; in GGUF q8_0, q6_k, q5_k, q4_k, q4_0 and others too. auto keeps the file's, "
    "and makes float16 of quantised ones.",
)
@click.option(
    "--to",
    "layout",
    type=click.Choice(["hf", "meta", "gguf", "llama2c", "llama2c-v1", "fairseq", "onnx"]),
    help="Layout of DST.  [default: as its name ends, else hf]",
)
@click.option("--shard-size", default="5GB", show_default=True, help="Largest file, of hf.")
@click.option("--split-max-size", metavar="SIZE", help="Most bytes of tensors in a file, of gguf: writes several.")
@click.option("--shards", type=click.IntRange(1, 99), help="Number of files, of meta.")
@click.option("--force", is_flag=True, help="Write into a folder that is not empty, or over a file.")
def convert(
    source: str,
    target: str,
    dtype: str,
    layout: str | None,
    shard_size: str,
    split_max_size: str | None,
    shards: int | None,
    force: bool,
) -> None:
    """Read the checkpoint SRC (a folder, a run, a GGUF or llama2.c file, or a hub id) and write it to DST.

    Of a run that is not finished SRC may be a checkpoint (RUN/checkpoints/step-000100), whatever mesh wrote it.

    hf is the publisher's own layout, as transformers reads it: a folder of config.json, safetensors and tokenizer. meta
    is Meta's layout of LLaMA: params.json, consolidated.NN.pth, tokenizer.model. gguf (a name in .gguf) is llama.cpp's
    file, or several of them (x-00001-of-00003.gguf), of which SRC may be any; llama2c (a name in .bin) llama2.c's of
    version 0, llama2c-v1 of version 1, fairseq (a name in .pt) fairseq's, onnx (a name in .onnx) a graph in float32.
    """
    from stemma.formats import layout_named

    limit, out = byte_size(shard_size, "--shard-size"), Path(target)
    layout = layout_named(layout, out)
    dtype = "float32" if (layout, dtype) == ("onnx", "auto") else SHORT.get(dtype.lower(), dtype)
    split, small = split_size(split_max_size, layout), gguf_type(dtype, layout)
    check_free(out, force, split is not None)
    packed = packed_type(source) if small or dtype == "auto" else None
    if packed:
        disk.tell(size_note(source, packed, layout, small))
    if layout in ("gguf", "onnx"):  # told before the weights are read
        require(layout, f"writing {layout.upper()} files", f"'stemma-lm[{layout}]'")
    how = Loading("cpu", "auto" if small else "float16" if packed else dtype)
    model = load(source, how, stream=layout in ("hf", "gguf"))
    model.save(str(out), layout=layout, dtype=small, shard_bytes=limit, shards=shards, split_bytes=split)
    kind = small or ("float32" if layout.startswith("llama2c") else str(model.dtype).removeprefix("torch."))
    note = f" (of {packed}; --dtype float32 keeps every bit)" if packed and not small else ""
    echo(f"{out}: {model.name}, {sum(p.numel() for p in model.parameters()):,} parameters, {kind}{note}")


def split_size(text: str | None, layout: str) -> int | None:
    """The bytes of `--split-max-size`. Raises UsageError in another layout than GGUF."""
    if text is not None and layout != "gguf":
        raise UsageError("--split-max-size is for GGUF files (--to gguf); --shard-size divides hf")
    return None if text is None else byte_size(text, "--split-max-size")


def check_free(out: Path, force: bool, split: bool) -> None:
    """Raises UsageError where files would be replaced without `force`."""
    if force:
        return
    if out.is_dir() and any(out.iterdir()):
        raise UsageError(f"{out} is not empty; choose another DST, or add --force")
    from stemma.formats.gguf.split import parts_of

    beside = sorted(out.parent.iterdir()) if split and out.parent.is_dir() else ()
    there = out if out.is_file() else next((p for p in beside if parts_of(p.name) == out.stem), None)
    if there is not None:
        raise UsageError(f"{there} is there already; choose another DST, or add --force")


def gguf_type(dtype: str, layout: str) -> str | None:
    """The quantised type of a GGUF file that `--dtype` names; None for a plain one."""
    from stemma.formats.gguf.types import OTHER_NAMES, PLAIN, TYPES

    known = OTHER_NAMES.get(dtype.lower(), dtype.lower())
    if known in PLAIN or known not in TYPES:
        return None
    if layout != "gguf":
        raise UsageError(f"--dtype {dtype} is for GGUF files (--to gguf)")
    return known


def size_note(source: str, packed: str, layout: str, small: str | None) -> str:
    """What will become of a quantised file, and what would be smaller."""
    from stemma.formats.gguf import open_file

    file = open_file(source)
    held = f"note: {source} ({file.size / 1e6:,.0f} MB of {packed})"
    if small is not None:
        return f"{held} is quantised already: its weights are rounded a second time, to {small}"
    weights = sum(entry.elements for entry in file.entries.values())
    less = f"; a GGUF file with --dtype q8_0 has {weights * 34 / 32 / 1e6:,.0f} MB" if layout in ("hf", "gguf") else ""
    return f"{held} is written as float16, {weights * 2 / 1e6:,.0f} MB; generate, fill and embed read it as it is{less}"


def packed_type(source: str) -> str | None:
    """The type of most weights of a GGUF file whose embeddings are quantised; None for any other checkpoint."""
    if not source.endswith(".gguf") or not Path(source).is_file():
        return None
    from stemma.formats.gguf import open_file
    from stemma.formats.gguf.quants import PLAIN

    entries = open_file(source).entries
    table = entries.get("token_embd.weight")
    if table is None or table.type in PLAIN:
        return None
    return Counter(entry.kind for entry in entries.values()).most_common(1)[0][0]
