"""Meta's own layout of LLaMA, LLaMA-2, Code LLaMA and Llama 3: `params.json`, `consolidated.00.pth` ... one file for
each of several machines that share a model (model-parallel shards), and `tokenizer.model`.

What params.json does not hold:

- the vocabulary, where `vocab_size` is -1: the embeddings tell;
- whether the output matrix is the embeddings: it is absent, or equal to them (Llama 3.2 1B and 3B hold both);
- the inner width: `gated_width` of `multiple_of` and `ffn_dim_multiplier`;
- the context: `max_seq_len` where a file has it; else, with a vocabulary of more than 100,000 (Llama 3), 131,072 with
  scaled rotary positions and 8,192 without; else 16,384 with a `rope_theta` above 10,000 (Code LLaMA), 2,048 for
  LLaMA 1 (a `norm_eps` below 1e-5, or the widths of its 65B) and 4,096 for LLaMA-2;
- the factor of `use_scaled_rope`: 32 where the output matrix is the embeddings, as Llama 3.2's config.json has it, else
  the 8 of Meta's code.

Sources: facebookresearch/llama (both branches), meta-llama/llama-models, transformers' conversion script.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stemma import disk, spec
from stemma.declare.family import Design, Family
from stemma.errors import CheckpointError, UsageError, brief
from stemma.formats import tensors
from stemma.formats.config import lost, refuse_loss
from stemma.formats.hf import check_target
from stemma.formats.keys import meant
from stemma.formats.layouts import LAYOUTS, nearest_family, text_of
from stemma.formats.names import Ledger, Row, expand, missing, row
from stemma.formats.rotary import to_pairs
from stemma.formats.weights import WeightLoader, attach, design_of, device_of, dtype_of, meta_model
from stemma.nn.model import Model
from stemma.nn.parts import Heads, Llama3Scaling, LMHead, Rotary, gated_width
from stemma.rewrites.kinds import Rewrite
from stemma.rewrites.paths import PlainTensors
from stemma.text import Tokenizer, ranks, spm

PARAMS, TOKENIZER = "params.json", "tokenizer.model"
SHARD = re.compile(r"consolidated\.(\d{2})\.pth")
EMBEDDINGS, OUTPUT = "tok_embeddings.weight", "output.weight"
MOST = 10**9  # for a number of params.json
BIG = 100_000  # a vocabulary above it is Llama 3's
REQUIRED = ("dim", "n_layers", "n_heads")
DEFAULTS: dict[str, Any] = {
    "n_kv_heads": None,
    "vocab_size": -1,
    "multiple_of": 256,
    "ffn_dim_multiplier": None,
    "norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "use_scaled_rope": False,
    "max_seq_len": None,
}
UNUSED = {"max_batch_size": "the size of a buffer"}
# of a block: their name, ours, and the axis along which shards divide it (None: each has all of it)
BLOCK = (
    ("attention_norm", "attention_norm", None),
    ("attention.wq", "attention.q", 0),
    ("attention.wk", "attention.k", 0),
    ("attention.wv", "attention.v", 0),
    ("attention.wo", "attention.o", 1),
    ("ffn_norm", "mlp_norm", None),
    ("feed_forward.w1", "mlp.gate", 0),
    ("feed_forward.w2", "mlp.down", 1),
    ("feed_forward.w3", "mlp.up", 0),
)
INTERLEAVED = re.compile(r"attention\.w[qk]\.weight$")
UNUSED_TENSORS = {r"^rope\.freqs$": "computed from params.json"}


def rows(design: Design) -> list[Row]:
    """The names table; llama2.c's files hold the same tensors."""
    out = [row(EMBEDDINGS, "embed.tokens.weight")]
    out += [row(f"layers.{{i}}.{t}.weight", f"decoder.blocks.{{i}}.{o}.weight") for t, o, _ in BLOCK]
    out.append(row("norm.weight", "decoder.norm.weight"))
    if not design.arch.heads.tied:
        out.append(row(OUTPUT, "lm.weight"))
    return expand(out, design)


def identify(design: Design) -> tuple[Design, Family]:
    """A design with the name, text settings, objective and recipe of its family, and that family."""
    owner, name = nearest_family(design, LAYOUTS["llama"], {})
    text = text_of(design, owner)
    return replace(design, name=name, text=text, objective=owner.objective, recipe=owner.recipe), owner


# ---------------------------------------------------------------- the shards


class Shards:
    """The tensors of a folder's model-parallel shards, joined. The files are memory-mapped: `get` reads. `width`: `dim`
    of params.json."""

    def __init__(self, folder: Path, width: int) -> None:
        self.folder, self.width = folder, width
        found = {int(m[1]): f for f in folder.iterdir() if (m := SHARD.fullmatch(f.name))}
        if not found:
            raise CheckpointError(f"no weights in {folder}: beside {PARAMS} should be consolidated.00.pth")
        if absent := [k for k in range(max(found)) if k not in found]:
            raise CheckpointError(f"consolidated.{absent[0]:02d}.pth is missing from {folder}")
        self.files = [found[k] for k in sorted(found)]
        self.parts = [tensors.plain(file) for file in self.files]
        for file, part in zip(self.files, self.parts, strict=True):
            if odd := [name for name, t in part.items() if t.dtype not in tensors.TYPES.values()]:
                raise CheckpointError(
                    f"{file}: {odd[0]!r} is of type {part[odd[0]].dtype}; only unquantised weights can be read"
                )
            if odd := sorted(part.keys() ^ self.parts[0].keys()):
                has = "holds" if odd[0] in part else "lacks"
                raise CheckpointError(f"{file} {has} {odd[0]!r}, unlike {self.files[0].name}")

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts[0])

    def __contains__(self, name: object) -> bool:
        return name in self.parts[0]

    def axis(self, name: str) -> int | None:
        """The axis that a tensor is sharded along; None: each shard has all of it. Embeddings are sharded by width in
        LLaMA 1 and 2 and by token in Llama 3, as their shape tells."""
        if name == EMBEDDINGS:
            shape = self.parts[0][name].shape
            return 0 if len(shape) != 2 or shape[1] == self.width else 1
        if name == OUTPUT:
            return 0
        return next((a for t, _, a in BLOCK if name.endswith(f".{t}.weight")), None)

    def shape(self, name: str) -> list[int]:
        axis = self.axis(name)
        shapes = [list(part[name].shape) for part in self.parts]
        whole = list(shapes[0])
        if axis is not None and len(whole) == 2:
            whole[axis] = sum(s[axis] for s in shapes)
        if any(s != shapes[0] for s in shapes):
            raise CheckpointError(f"{self.folder}: {name!r} should have one shape in all shards, not {shapes}")
        return whole

    def meta_tensor(self, name: str) -> Tensor:
        return torch.empty(self.shape(name), dtype=self.parts[0][name].dtype, device="meta")

    def blocks(self, name: str) -> None:
        """No tensor of these files is quantised."""

    def get(self, name: str) -> Tensor:
        axis = self.axis(name)
        parts = [part[name] for part in self.parts]
        return parts[0] if axis is None or len(parts) == 1 else torch.cat(parts, axis)

    def tied(self) -> bool:
        """Whether the output matrix is absent, or equal to the embeddings."""
        if OUTPUT not in self:
            return True
        if EMBEDDINGS not in self or self.shape(EMBEDDINGS) != self.shape(OUTPUT):
            return False
        first = self.parts[0][EMBEDDINGS][:1, :16]  # nearly always enough, and little to read
        if not torch.equal(first, self.parts[0][OUTPUT][:1, : first.shape[1]]):
            return False
        return torch.equal(self.get(EMBEDDINGS), self.get(OUTPUT))


# ---------------------------------------------------------------- params.json


def read_params(params: Mapping[str, Any], vocab: int, tied: bool) -> tuple[Design, dict[str, str]]:
    """The design of a params.json, with the vocabulary and the tying that the weights tell, and its unused keys with
    reasons. Raises CheckpointError for an unknown or missing key and for a wrong value."""
    known = [*REQUIRED, *DEFAULTS, *UNUSED]
    for name in params:
        if name not in known:
            raise CheckpointError(f"{PARAMS}: no key {name!r} is known{meant(name, known)}")
    if absent := [name for name in REQUIRED if name not in params]:
        raise CheckpointError(f"{PARAMS} has no {absent[0]!r}, which every model needs")
    p = {**DEFAULTS, **params}
    whole = [*REQUIRED, "vocab_size", "multiple_of", *(n for n in ("n_kv_heads", "max_seq_len") if p[n] is not None)]
    real = ["norm_eps", "rope_theta", *(["ffn_dim_multiplier"] if p["ffn_dim_multiplier"] is not None else [])]
    for name in whole:
        if type(p[name]) is not int or (p[name] < 1 and name != "vocab_size") or p[name] > MOST:
            raise CheckpointError(f"{PARAMS}: {name}={brief(p[name])} should be a whole number from 1 to {MOST:,}")
    for name in real:
        if type(p[name]) not in (int, float) or not 0 < p[name] <= MOST:
            raise CheckpointError(f"{PARAMS}: {name}={brief(p[name])} should be a number above 0, at most {MOST:,}")
    if type(p["use_scaled_rope"]) is not bool:
        raise CheckpointError(f"{PARAMS}: use_scaled_rope={p['use_scaled_rope']!r} should be true or false")
    if p["vocab_size"] not in (-1, vocab):
        raise CheckpointError(f"{PARAMS}: vocab_size={p['vocab_size']}, but the embeddings have {vocab} rows")
    scaling = Llama3Scaling(factor=32.0 if tied else 8.0) if p["use_scaled_rope"] else None
    changes = {
        "dims.d_model": p["dim"],
        "dims.layers": p["n_layers"],
        "dims.heads": p["n_heads"],
        "dims.kv_heads": p["n_kv_heads"],
        "dims.head_dim": None,
        "dims.d_ff": gated_width(p["dim"], p["multiple_of"], p["ffn_dim_multiplier"] or 1.0),
        "dims.vocab": vocab,
        "dims.context": p["max_seq_len"] or _context(p, vocab),
        "arch.norm.eps": float(p["norm_eps"]),
        "arch.position": Rotary(float(p["rope_theta"]), scaling),
        "arch.heads": Heads(LMHead(tied=tied)),
        "text.bos_id": 128_000 if vocab > BIG else 1,
        "text.eos_id": 128_001 if vocab > BIG else 2,
        "text.pad_id": None,
    }
    try:
        design = spec.edit(LAYOUTS["llama"].base(), changes)
    except UsageError as error:
        raise CheckpointError(f"{PARAMS} does not describe a model: {error}") from None
    return design, {name: UNUSED[name] for name in params if name in UNUSED}


def _context(p: Mapping[str, Any], vocab: int) -> int:
    """The context that a model with these params was trained with (see the top of this module)."""
    if vocab > BIG:
        return 131_072 if p["use_scaled_rope"] else 8192
    if p["rope_theta"] > 10_000:
        return 16_384
    widest = (p["dim"], p["n_layers"], p["n_kv_heads"] or p["n_heads"]) == (8192, 80, 64)
    return 2048 if p["norm_eps"] < 1e-5 or widest else 4096


def write_params(design: Design) -> dict[str, Any]:
    """The params.json of a design. Raises UsageError if it cannot express it."""
    arch, dims = design.arch, design.dims
    if not isinstance(arch.position, Rotary):
        raise UsageError(f"Meta's layout is for rotary positions, and this design has {arch.position}")
    params: dict[str, Any] = {"dim": dims.d_model, "n_layers": dims.layers, "n_heads": dims.heads}
    if dims.kv_heads is not None:
        params["n_kv_heads"] = dims.kv_heads
    params |= {"vocab_size": dims.vocab if dims.vocab > BIG else -1} | _width_rule(dims.d_model, dims.d_ff)
    params["norm_eps"] = spec.get(arch, "norm.eps")
    if arch.position.base != DEFAULTS["rope_theta"]:
        params["rope_theta"] = arch.position.base
    if arch.position.scaling is not None:
        params["use_scaled_rope"] = True
    again = _read(params, design)
    again = replace(again, dims=replace(again.dims, context=design.dims.context))
    refuse_loss("Meta's layout", lost(design, again))
    return params


def _read(params: Mapping[str, Any], design: Design) -> Design:
    """The design that `params` give with the weights of `design`."""
    return read_params(params, design.dims.vocab, design.arch.heads.tied)[0]


def _width_rule(d_model: int, d_ff: int) -> dict[str, Any]:
    """`multiple_of` and `ffn_dim_multiplier` that give `d_ff`; a published pair if there is one."""
    for multiple, factor in [(m, k) for k in (None, 1.3, 1.2, 1.5, 1.0) for m in (256, 1024, 4096)]:
        if gated_width(d_model, multiple, factor or 1.0) == d_ff:
            return {"multiple_of": multiple} | ({} if factor is None else {"ffn_dim_multiplier": factor})
    free = int(8 * d_model / 3)
    return {"multiple_of": d_ff} | ({} if free <= d_ff else {"ffn_dim_multiplier": d_ff / free})


# ---------------------------------------------------------------- loading


@dataclass(frozen=True)
class Origin:
    """How a checkpoint was written, to write it the same way again. `axis`: the one that embeddings are sharded
    along."""

    params: str
    shards: int
    axis: int
    output: bool
    tokenizer: bytes | None
    fingerprint: str | None


def load(
    folder: Path,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "float32",
    *,
    tokenizer: bool = True,
    rewrites: Sequence[Rewrite] = (),
) -> Model:
    """The model in a folder of Meta's layout, in eval mode, its shards joined. `dtype="auto"` keeps the file's type;
    `device="meta"` reads shapes only. `model.extras["meta"]` keeps how it was written. Raises
    CheckpointError naming the file, the key or the tensor."""
    folder = Path(folder)
    where = str(folder)
    params = disk.read_object(folder / PARAMS)
    target = device_of(device)
    given = params.get("dim")
    shards = Shards(folder, given if isinstance(given, int) else 0)  # anything else is refused below
    if EMBEDDINGS not in shards:
        raise missing(EMBEDDINGS, shards, where)
    design, unused = read_params(params, shards.shape(EMBEDDINGS)[0], shards.tied())
    design, owner = identify(design)
    model = meta_model(design)
    loader = WeightLoader(model, shards, where, Ledger(config=unused))
    table = rows(design)
    for r in table:
        if r.theirs in shards and (has := shards.shape(r.theirs)) != (want := list(loader.shapes[r.ours[0]])):
            count = len(shards.files)
            raise CheckpointError(
                f"{where}: tensor {r.theirs!r} has shape {has} over {count} shard{'s' * (count > 1)}, but {PARAMS} "
                f"needs {want}; is every shard of this model there?"
            )
        loader.find(r)
    if OUTPUT in shards and design.arch.heads.tied:
        loader.ledger.tied[OUTPUT] = EMBEDDINGS
    loader.account(UNUSED_TENSORS)
    kind = None if dtype == "auto" else dtype_of(dtype)
    loader.rewrite(rewrites)
    for r in table:
        loader.read(r, r.theirs, target, kind, interleaved=INTERLEAVED.search(r.theirs) is not None)
    loader.finish(target, kind)
    attach(model, design, owner)
    if tokenizer and (folder / TOKENIZER).is_file():
        model.tokenizer = read_tokenizer(folder, design.dims.vocab)
        ids = {"text.bos_id": model.tokenizer.bos_id, "text.eos_id": model.tokenizer.eos_id}
        model.design = spec.edit(design, {**ids, "text.tokenizer": model.tokenizer.kind})
        model.text = model.design.text
    model.extras = {
        "meta": Origin(
            params=(folder / PARAMS).read_text(encoding="utf-8"),
            shards=len(shards.files),
            axis=shards.axis(EMBEDDINGS) or 0,
            output=OUTPUT in shards,
            tokenizer=None if model.tokenizer is None else (folder / TOKENIZER).read_bytes(),
            fingerprint=None if model.tokenizer is None else model.tokenizer.fingerprint,
        )
    }
    return model.eval()


def read_tokenizer(folder: Path, vocab: int) -> Tokenizer:
    """The tokenizer of a folder. Raises CheckpointError if it has more ids than the model."""
    tokenizer = Tokenizer.load(folder)
    tokenizer.check(vocab)
    return tokenizer


# ---------------------------------------------------------------- saving


def save(model: Model, directory: str | Path, *, dtype: str | None = None, shards: int | None = None) -> Path:
    """Write a model in Meta's layout, in `shards` files (default: as many as it was read from, else one).

    A checkpoint that was read from this layout is written back with the same tensors, shards and params.json. As Meta's
    code reads them, embeddings are sharded by token for a byte-level vocabulary (Llama 3), else by width. `rope.freqs`
    is not written. Raises UsageError for what the layout cannot express."""
    directory = Path(directory)
    check_target(model, directory)
    if (directory / "config.json").exists():
        raise UsageError(f"{directory} holds a config.json, which says another layout; choose another folder")
    design = design_of(model)
    params = write_params(design)
    source: Origin | None = model.extras.get("meta")
    text = json.dumps(params) + "\n"
    if source is not None and not lost(design, _read(json.loads(source.params), design)):
        text = source.params
    else:
        again = _read(params, design)
        if again.dims.context != design.dims.context:
            warnings.warn(
                f"Meta's layout does not say for what context a model is made: this one's is {design.dims.context}, "
                f"and will be taken for {again.dims.context}",
                stacklevel=2,
            )
    count = shards if shards is not None else source.shards if source is not None else 1
    vocabulary = design.text.tokenizer if model.tokenizer is None else model.tokenizer.kind
    by_token = source.axis == 0 if source is not None else vocabulary == "bpe"
    _divides(design, count, by_token)
    raw = _tokenizer(model, source)
    state = PlainTensors(model)
    kind = None if dtype is None else dtype_of(dtype)
    table = rows(design)
    if design.arch.heads.tied and (source is None or source.output):
        table.append(row(OUTPUT, "embed.tokens.weight"))
    axes = {f"{t}.weight": a for t, _, a in BLOCK} | {EMBEDDINGS: 0 if by_token else 1, OUTPUT: 0}

    def part(r: Row, k: int) -> Tensor:
        tensor = state[r.ours[0]]
        if INTERLEAVED.search(r.theirs):
            tensor = to_pairs(tensor, design.dims.width)
        axis = axes.get(re.sub(r"^layers\.\d+\.", "", r.theirs))
        if axis is not None:
            tensor = tensor.chunk(count, axis)[k]
        return torch.empty(tensor.shape, dtype=kind or tensor.dtype).copy_(tensor)  # its own bytes, not a view of all

    with tensors.whole(directory, lambda name: name in (PARAMS, TOKENIZER) or SHARD.fullmatch(name) is not None) as out:
        for k in range(count):
            torch.save({r.theirs: part(r, k) for r in table}, out / f"consolidated.{k:02d}.pth")
        (out / PARAMS).write_text(text, encoding="utf-8")
        if raw is not None:
            (out / TOKENIZER).write_bytes(raw)
    return directory


def _divides(design: Design, count: int, by_token: bool) -> None:
    d = design.dims
    parts = {"heads": d.heads, "key heads": d.kv, "inner width": d.d_ff, "vocabulary": d.vocab}
    if not by_token:
        parts["width"] = d.d_model
    if not 1 <= count <= 99:
        raise UsageError(f"shards={count} should be a number from 1 to 99")
    if bad := next((n for n, size in parts.items() if size % count), None):
        raise UsageError(f"shards={count} does not divide this model's {bad} of {parts[bad]}")


def _tokenizer(model: Model, source: Origin | None) -> bytes | None:
    """The bytes of tokenizer.model, as read or made from the tokenizer."""
    tokenizer: Tokenizer | None = model.tokenizer
    if tokenizer is None:
        return None
    if source is not None and source.fingerprint == tokenizer.fingerprint:
        return source.tokenizer
    state = json.loads(tokenizer._core.to_str())
    if tokenizer.kind == "spm-bpe":
        return spm.dump(spm.describe(tokenizer._core, tokenizer.specials))
    vocab = state["model"].get("vocab")
    added = {t["content"]: t["id"] for t in state["added_tokens"]}
    if tokenizer.kind == "bpe" and isinstance(vocab, dict):
        plain = {name: i for name, i in vocab.items() if name not in added}
        if len(plain) >= 256 and sorted(plain.values()) == list(range(len(plain))):
            raw = ranks.dump(plain)
            core, _ = ranks.llama3(ranks.parse(raw, TOKENIZER))
            same = all(
                core.encode(t, add_special_tokens=False).ids == tokenizer.encode(t, add_special=False)
                for t in spm.PROBES
            )
            named = {n: i for n, i in core.get_vocab().items() if n not in plain}
            if same and all(named.get(n) == i for n, i in added.items()):
                return raw
    raise UsageError(
        f"Meta's layout holds SentencePiece BPE and Llama 3's byte-level vocabulary, not this tokenizer (kind "
        f"{tokenizer.kind!r}); set model.tokenizer = None to save the weights alone"
    )


__all__ = ["PARAMS", "load", "rows", "save"]
