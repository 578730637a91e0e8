"""The `.bin` files of llama2.c (karpathy/llama2.c, export.py): a LLaMA in one file of fp32 numbers, without names.

Version 0 begins with seven int32 (`HEADER`), the vocabulary negative where the output matrix is not the embeddings; the
tensors follow kind by kind, tables of rotary cosines and sines behind the last norm. Version 1 begins with "ak42" (as
a little-endian number), the version, the same seven numbers and a byte that says whether the output matrix is the
embeddings, in 256 bytes. Rows of q and k are in Meta's order. The norm's eps (1e-5) and the rotary base (10,000) are
in the program, not in the file. Version 2 (int8) is refused: two releases of its program order the scales differently,
and nothing in a file tells them apart.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from stemma import disk, spec
from stemma.declare.family import Design
from stemma.errors import CheckpointError, UsageError
from stemma.formats import meta, tensors
from stemma.formats.config import lost, refuse_loss
from stemma.formats.layouts import LAYOUTS
from stemma.formats.names import Ledger, Row
from stemma.formats.rotary import to_halves, to_pairs
from stemma.formats.weights import attach, check_weights, design_of, device_of, dtype_of, meta_model
from stemma.nn.model import Model
from stemma.nn.parts import Heads, LMHead, Rotary
from stemma.rewrites.engine import apply, complete
from stemma.rewrites.kinds import Rewrite
from stemma.rewrites.modules import load_tensor
from stemma.rewrites.paths import PlainTensors

HEADER = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "max_seq_len")
MAGIC, START = 0x616B3432, 256
EPS, BASE = 1e-5, 10_000.0
TABLES = ("freq_cis_real", "freq_cis_imag")
LARGEST = 1 << 24  # no number of a header is above it in a file that means what it says
_FIRST = ("layers.{i}.attention_norm", "layers.{i}.ffn_norm")
_MATRICES = (
    *(f"layers.{{i}}.attention.{x}" for x in ("wq", "wk", "wv", "wo")),
    *(f"layers.{{i}}.feed_forward.{x}" for x in ("w1", "w2", "w3")),
)
ORDER = {
    0: (
        "tok_embeddings", _FIRST[0], *_MATRICES[:4], _FIRST[1], *_MATRICES[4:], "norm", *TABLES, "output",
    ),
    1: (*_FIRST, "norm", "tok_embeddings", *_MATRICES, "output"),
}  # fmt: skip


@dataclass(frozen=True)
class Head:
    """The header of a file."""

    version: int
    sizes: dict[str, int]
    tied: bool
    start: int


def _head(path: Path, raw: bytes) -> Head:
    if raw[:2] == b"PK":
        raise CheckpointError(f"{path} is a file of torch.save, not of llama2.c; give the folder that it is in")
    if len(raw) < 28:
        raise CheckpointError(f"{path} is no llama2.c file: it has {len(raw)} bytes, and its header alone needs 28")
    if struct.unpack_from("<I", raw)[0] == MAGIC:
        version = struct.unpack_from("<i", raw, 4)[0]
        if version == 2:
            raise CheckpointError(
                f"{path} is an int8 file (version 2), whose scales are in one of two orders that nothing in it tells "
                "apart; export version 0 or 1 of the model"
            )
        if version != 1 or len(raw) < START:
            raise CheckpointError(f"{path} says llama2.c version {version}; versions 0 and 1 can be read, if whole")
        sizes = dict(zip(HEADER, struct.unpack_from("<7i", raw, 8), strict=True))
        shared = raw[36]
        if shared > 1:
            raise CheckpointError(f"{path}: byte 36 should be 1 (output matrix shared) or 0, not {shared}")
        return _checked(path, Head(1, sizes, bool(shared), START))
    sizes = dict(zip(HEADER, struct.unpack_from("<7i", raw), strict=True))
    shared = sizes["vocab_size"] > 0
    sizes["vocab_size"] = abs(sizes["vocab_size"])
    return _checked(path, Head(0, sizes, shared, 28))


def _checked(path: Path, head: Head) -> Head:
    for name, size in head.sizes.items():
        if not 1 <= size <= LARGEST:
            raise CheckpointError(f"{path} is no llama2.c file, or is damaged: its header says {name}={size}")
    return head


def _plan(design: Design, version: int) -> Iterator[tuple[str, tuple[int, ...], Row | None]]:
    """Every tensor of a file in order: name, shape and row (None: a rotary table)."""
    table = {r.theirs: r for r in meta.rows(design)}
    shapes = {name: tuple(p.shape) for name, p in meta_model(design).named_parameters()}
    for name in ORDER[version]:
        if name in TABLES:
            yield name, (design.dims.context, design.dims.width // 2), None
            continue
        for i in range(design.dims.layers) if "{i}" in name else (0,):
            r = table.get(name.replace("{i}", str(i)) + ".weight")
            if r is not None:  # the output matrix may be the embeddings
                yield r.theirs, shapes[r.ours[0]], r


def _tables(design: Design) -> dict[str, Tensor]:
    """The rotary tables, cosines and sines: context x D/2 each."""
    width = design.dims.width
    i = torch.arange(0, width, 2)[: width // 2].float()
    angle = torch.outer(torch.arange(design.dims.context), 1.0 / (BASE ** (i / width))).float()
    return dict(zip(TABLES, (angle.cos(), angle.sin()), strict=True))


def _design(path: Path, head: Head) -> Design:
    s = head.sizes
    changes = {
        "dims.d_model": s["dim"],
        "dims.layers": s["n_layers"],
        "dims.heads": s["n_heads"],
        "dims.kv_heads": s["n_kv_heads"],
        "dims.head_dim": None,
        "dims.d_ff": s["hidden_dim"],
        "dims.vocab": s["vocab_size"],
        "dims.context": s["max_seq_len"],
        "arch.norm.eps": EPS,
        "arch.position": Rotary(BASE),
        "arch.heads": Heads(LMHead(tied=head.tied)),
        "text.bos_id": 1,
        "text.eos_id": 2,
        "text.pad_id": None,
    }
    try:
        return spec.edit(LAYOUTS["llama"].base(), changes)
    except UsageError as error:
        raise CheckpointError(f"{path}: the header does not describe a model: {error}") from None


def load(
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "float32",
    *,
    tokenizer: bool = True,
    rewrites: Sequence[Rewrite] = (),
) -> Model:
    """The model in a llama2.c file of version 0 or 1, in eval mode; a `tokenizer.model` or `tokenizer.json` beside it
    is its tokenizer. `device="meta"` reads shapes only. Raises CheckpointError saying what is wrong."""
    path = Path(path)
    size = path.stat().st_size
    with open(path, "rb") as handle:
        head = _head(path, handle.read(START))
    design = _design(path, head)
    need, plan = head.start, []
    s = head.sizes  # before a model is made of what may be no header at all: the embeddings and one matrix a layer
    if size < 4 * (s["vocab_size"] * s["dim"] + s["n_layers"] * s["dim"] * s["hidden_dim"]):
        raise CheckpointError(f"{path} is no llama2.c file, or is cut short: {size} bytes are too few for its header")
    for name, shape, r in _plan(design, head.version):
        plan.append((name, shape, r, need))
        need += 4 * int(np.prod(shape))
    if size != need:
        raise CheckpointError(
            f"{path} should have {need} bytes, as its header (version {head.version}) says, not {size}: it is damaged, "
            "cut short or no llama2.c file"
        )
    design, owner = meta.identify(design)
    model = meta_model(design)
    target, kind = device_of(device), torch.float32 if dtype == "auto" else dtype_of(dtype)
    model.ledger = Ledger()
    apply(model, rewrites)
    raw = np.memmap(path, np.uint8, "r")
    for name, shape, r, at in plan:
        part = raw[at : at + 4 * int(np.prod(shape))]
        if r is None:
            model.ledger.ignored[name] = "computed from the design"
            if target.type != "meta":
                _check_table(path, name, part, design)
            continue
        value = torch.empty(shape, device="meta")
        if target.type != "meta":
            value = torch.from_numpy(part.view("<f4").astype(np.float32)).view(shape)  # a copy
            value = to_halves(value, design.dims.width) if meta.INTERLEAVED.search(name) else value
        load_tensor(model, r.ours[0], value, target, kind)
        model.ledger.loaded[r.ours[0]] = name
    model.ledger.new += complete(model, target, kind)
    attach(model, design, owner)
    if tokenizer and any((path.parent / n).is_file() for n in ("tokenizer.json", meta.TOKENIZER)):
        model.tokenizer = meta.read_tokenizer(path.parent, design.dims.vocab)
    return model.eval()


def _check_table(path: Path, name: str, raw: np.ndarray[Any, np.dtype[np.uint8]], design: Design) -> None:
    """Raises CheckpointError if a table is for another rotary base than the program's, which would be another model."""
    want = _tables(design)[name]
    held = torch.from_numpy(raw.view("<f4").astype(np.float32)).view(want.shape)
    if not torch.allclose(held, want, rtol=0, atol=1e-3):
        raise CheckpointError(
            f"{path}: {name} is not the table of a rotary base of {BASE:.0f}, the only one known here"
        )


def save(model: Model, path: str | Path, *, version: int = 0) -> Path:
    """Write a model as a llama2.c file of version 0 (for its `run`) or 1, in fp32, without a tokenizer; atomically.
    Raises UsageError for what the format cannot express."""
    path = Path(path)
    if path.is_dir():
        raise UsageError(f"{path} is a folder; a llama2.c checkpoint is one file, such as model.bin")
    check_weights(model)
    design = design_of(model)
    sizes = dict(
        zip(
            HEADER,
            (
                design.dims.d_model, design.dims.d_ff, design.dims.layers, design.dims.heads, design.dims.kv,
                design.dims.vocab, design.dims.context,
            ),
            strict=True,
        )
    )  # fmt: skip
    head = Head(version, sizes, design.arch.heads.tied, START if version else 28)
    refuse_loss("llama2.c's layout", lost(design, _design(path, head)))
    with disk.replacing(path, note=tensors.UNCHANGED) as scratch, open(scratch, "wb") as out:
        _write(out, model, design, head)
    return path


def _write(out: BinaryIO, model: Model, design: Design, head: Head) -> None:
    numbers = list(head.sizes.values())
    if head.version == 0:
        numbers[HEADER.index("vocab_size")] *= 1 if head.tied else -1
        out.write(struct.pack("<7i", *numbers))
    else:
        out.write(struct.pack("<Ii7iB", MAGIC, head.version, *numbers, head.tied).ljust(START, b"\0"))
    state, tables = PlainTensors(model), _tables(design)
    for name, _, r in _plan(design, head.version):
        tensor = tables[name] if r is None else state[r.ours[0]].to(device="cpu", dtype=torch.float32)
        if meta.INTERLEAVED.search(name):
            tensor = to_pairs(tensor, design.dims.width)
        out.write(tensor.contiguous().numpy().astype("<f4", copy=False).tobytes())


__all__ = ["load", "save"]
