"""Loading, saving and converting large checkpoints, beside transformers on the same files.

A LLaMA of random fp32 weights, in one file of 1.25 GB (`one`: as Stemma writes it; `foreign`: as transformers does, its
weights at no multiple of 64 bytes), in shards of 2.6 GB, and a GGUF file of float16 made of the latter. A model that is loaded is not yet used: what is mapped
has not been read.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from growth import Try, Work

SIDES = ("stemma", "transformers")
BOTH = (("s", 1.0), ("process s", 1.0), ("GB", 1.0))
SAVING = (("s", 1.1), ("GB", 1.1))
WORKS = (
    Work("load one file", BOTH),
    Work("load one file by transformers", (("process s", 1.0),)),
    Work("load shards", BOTH),
    Work("load one file as bf16", (("s", 1.0), ("GB", 0.6))),
    Work("save one file", SAVING),
    Work("save one file again", (("GB", 1.1),)),
    Work("save shards", SAVING),
    Work("read GGUF", (("s", 0.8), ("GB", 1.0))),
    Work("GGUF to safetensors", (("s", 1.0), ("GB", 0.5))),
)
READ = {
    "load one file": "one",
    "load one file by transformers": "foreign",
    "load shards": "shards",
    "load one file as bf16": "one",
    "read GGUF": "m.gguf",
    "GGUF to safetensors": "m.gguf",
}
GB, SHARDED, SHARDS = 1.25, 2.6, 5
WIDTHS = {"d_model": 1024, "heads": 16, "kv_heads": 16, "d_ff": 2816, "vocab": 32_000, "context": 2048}
TINY = {"d_model": 64, "heads": 2, "kv_heads": 2, "d_ff": 128, "vocab": 100, "context": 64, "layers": 1}


def _built(gigabytes: float) -> Any:
    """A model of about so many bytes in fp32."""
    import stemma

    share = min(1.0, gigabytes) ** 0.5  # small files have narrow layers
    dims = WIDTHS if share == 1 else {k: max(64, round(v * share) // 64 * 64) for k, v in WIDTHS.items()}
    dims |= {"heads": dims["d_model"] // 64, "kv_heads": dims["d_model"] // 64}
    layer = 4 * (4 * dims["d_model"] ** 2 + 3 * dims["d_model"] * dims["d_ff"])
    layers = max(1, round((gigabytes * 1e9 - 8 * dims["d_model"] * dims["vocab"]) / layer))
    return stemma.build("llama-7b", layers=layers, **dims)


def make(one: Try) -> str:
    import stemma

    model = _built(GB * one.scale)
    model.save(one.folder / "one", shard_bytes=10**12)
    large = sum(p.nbytes for p in model.parameters())
    _theirs(one.folder / "one").save_pretrained(one.folder / "foreign", max_shard_size="100GB")
    _unaligned(one.folder / "foreign" / "model.safetensors")
    model = _built(SHARDED * one.scale)
    total = sum(p.nbytes for p in model.parameters())
    model.save(one.folder / "shards", shard_bytes=total // SHARDS)
    model.save(one.folder / "m.gguf", dtype="float16")
    stemma.build("llama-7b", **TINY).save(one.folder / "tiny")
    stemma.load(one.folder / "tiny").save(one.folder / "tiny.gguf", dtype="float16")
    os.sync()
    return f"{large / 1e9:.2f} GB in one file, {total / 1e9:.2f} GB in shards"


def _unaligned(path: Path) -> None:
    """Write a file anew with 8 more spaces in its header, if its weights begin at a multiple of 64 bytes: one in eight
    does by chance."""
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    if (8 + size) % 64 == 0:
        path.write_bytes((size + 8).to_bytes(8, "little") + raw[8 : 8 + size] + b" " * 8 + raw[8 + size :])


def _theirs(path: Any, kind: str = "float32", gguf: str | None = None) -> Any:
    import torch
    from transformers import LlamaForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    more = {} if gguf is None else {"gguf_file": gguf}
    return LlamaForCausalLM.from_pretrained(path, dtype=getattr(torch, kind), **more)


def _load(one: Try, name: str, kind: str = "float32") -> Any:
    """The model in a folder or a GGUF file of the bench."""
    if one.ours:
        import stemma

        return stemma.load(one.folder / name, dtype=kind)
    if name.endswith(".gguf"):
        return _theirs(one.folder, kind, name)
    return _theirs(one.folder / name, kind)


def _save(one: Try, model: Any, shard: int = 10**12) -> None:
    if one.ours:
        model.save(one.out, shard_bytes=shard)
    else:
        model.save_pretrained(one.out, max_shard_size=shard)


def _convert(one: Try, name: str) -> None:
    """As `stemma convert` does it. transformers refuses to save what it read from GGUF, safetensors does not."""
    if one.ours:
        from stemma import formats

        formats.stream(one.folder / name, "float32").save(one.out, shard_bytes=10**12)
    else:
        from safetensors.torch import save_model

        model = _load(one, name)
        one.out.mkdir()
        model.config.save_pretrained(one.out)
        save_model(model, str(one.out / "model.safetensors"))


def warm(one: Try) -> None:
    if "GGUF" in one.work:
        _load(one, "tiny.gguf")
    else:
        _save(one, _load(one, "tiny")) if "save" in one.work else _load(one, "tiny")


def before(one: Try) -> Any:
    if not one.work.startswith("save"):  # none of the sides waits for the disk
        for file in [*one.folder.glob("*/*.safetensors"), *one.folder.glob("*.gguf")]:
            if file.parent.name == READ.get(one.work, "") or file.name == READ.get(one.work):
                with open(file, "rb", buffering=0) as handle:
                    while handle.read(2**24):
                        pass
        return None
    model = _load(one, "shards" if "shards" in one.work else "one")
    for p in model.parameters():
        p.data = p.data.clone()  # as after training: in memory, not in the file
    if "again" in one.work:
        _save(one, model)
        os.sync()
    return model


def work(one: Try, held: Any) -> Any:
    match one.work:
        case "GGUF to safetensors":
            return _convert(one, READ[one.work])
        case "load one file as bf16":
            return _load(one, READ[one.work], "bfloat16")
        case "save shards":
            return _save(one, held, sum(p.nbytes for p in held.parameters()) // SHARDS)
        case "save one file" | "save one file again":
            return _save(one, held)
    return _load(one, READ[one.work])
