"""fairseq's own layout of RoBERTa, BART, mBART and MASS: a file (`model.pt`) of the model's tensors by name under
"model" and its options under "args" (or, in later versions, "cfg"), or of the tensors alone.

Read as plain tensors and values; of classes only `argparse.Namespace`, in which old files keep their options, is let
through, and no code of a file is ever run. What a file does not hold:

- the vocabulary and the positions: the tables tell;
- widths, where there are no options: the tensors tell all but the number of heads, which are of 64 in every published
  model.

fairseq's positions begin after the padding token (`Learned(padding)`); BART and mBART count as their later publisher
does: from 2 on, padding or not, which is the same for texts without padding in front.

Source: facebookresearch/fairseq, models/roberta, models/bart, models/transformer; microsoft/MASS, s2s_model.py.
"""

from __future__ import annotations

import argparse
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stemma import families, spec
from stemma.declare.family import Design
from stemma.errors import CheckpointError, UsageError, brief, did_you_mean
from stemma.formats import tensors
from stemma.formats.hf import read_tokenizer
from stemma.formats.hf_bart import stack_rows
from stemma.formats.keys import words
from stemma.formats.names import Ledger, Row, expand, linear, row
from stemma.formats.weights import (
    WeightLoader,
    attach,
    check_weights,
    design_of,
    device_of,
    dtype_of,
    meta_model,
)
from stemma.nn.model import Model
from stemma.nn.parts import Classify, Dropout, Heads, LMHead, PostNorm, PreNorm
from stemma.rewrites.kinds import Rewrite
from stemma.rewrites.modules import load_tensor
from stemma.rewrites.paths import PlainTensors

FILE = "model.pt"
HEAD = 64  # width of a head in every published model
ACTS = {
    **{"gelu": "gelu", "gelu_accurate": "gelu_tanh", "gelu_fast": "gelu_tanh", "relu": "relu", "swish": "silu"},
    **{"tanh": "tanh", "relu_squared": "relu2"},
}
WORDS = words(ACTS)
RENAMES = {
    "decoder.sentence_encoder.": "encoder.sentence_encoder.",
    "decoder.lm_head.": "encoder.lm_head.",
    ".emb_layer_norm.": ".layernorm_embedding.",
}
UNUSED_TENSORS = {
    r"(^|\.)version$": "a mark of fairseq's",
    r"\._float_tensor$": "a buffer without values",
    r"^encoder\.lm_head\.": "of a head that the task leaves behind",
}
TASK = re.compile(r"classification_heads\.([^.]+)\.out_proj\.weight")


@dataclass(frozen=True)
class Kind:
    """One of fairseq's models. `arch`: the names of its architectures, smallest first; `tokens`: its embeddings;
    `unused`: rows of the position table that no token uses; `scales`: options say whether embeddings are scaled;
    `bare`: a tensor that only a file with a head has; `embed_norm`: the name of the embeddings' norm."""

    family: str
    rows: Callable[[Design, str | None], Iterator[Row]]
    arch: tuple[str, ...]
    tokens: str = "encoder.embed_tokens.weight"
    unused: int = 2
    scales: bool = False
    bare: str | None = None
    embed_norm: str = "layernorm_embedding"


def _task_rows(design: Design, name: str | None) -> Iterator[Row]:
    if isinstance(design.arch.heads.task, Classify):
        yield from linear(f"classification_heads.{name}.dense", "task.summary.dense")
        yield from linear(f"classification_heads.{name}.out_proj", "task.out")


def _roberta_rows(design: Design, name: str | None) -> Iterator[Row]:
    body = "encoder.sentence_encoder."
    yield row(f"{body}embed_tokens.weight", "embed.tokens.weight", aliases=["encoder.lm_head.weight"])
    for r in stack_rows("encoder"):
        yield replace(r, theirs=r.theirs.replace("encoder.", body, 1))
    yield from linear("encoder.lm_head.dense", "lm.dense")
    yield from linear("encoder.lm_head.layer_norm", "lm.norm")
    yield row("encoder.lm_head.bias", "lm.bias")
    yield from _task_rows(design, name)


def _seq2seq_rows(design: Design, name: str | None) -> Iterator[Row]:
    alias = ["decoder.embed_tokens.weight", "decoder.output_projection.weight"]
    yield row("encoder.embed_tokens.weight", "embed.tokens.weight", aliases=alias)
    for stack in ("encoder", "decoder"):
        yield from stack_rows(stack)
    yield from _task_rows(design, name)


KINDS = (
    Kind(
        "roberta",
        _roberta_rows,
        ("roberta_base", "roberta_large"),
        "encoder.sentence_encoder.embed_tokens.weight",
        bare="encoder.lm_head.bias",
    ),
    Kind("bart", _seq2seq_rows, ("bart_base", "bart_large"), scales=True),
    Kind("mbart", _seq2seq_rows, ("mbart_base", "mbart_large"), scales=True),
    Kind(
        "mass",
        _seq2seq_rows,
        ("transformer_mass_base", "transformer_mass_middle"),
        unused=1,
        embed_norm="emb_layer_norm",
    ),
)


def found(path: Path) -> Path | None:
    """The file of this layout that a path leads to: itself, or `model.pt` in a folder without config.json."""
    if path.suffix == ".pt" and path.is_file():
        return path
    inner = path / FILE
    return inner if inner.is_file() and not (path / "config.json").is_file() else None


# ---------------------------------------------------------------- reading


class Tensors:
    """The tensors of a file by name (as `tensors.Tensors`), and the options beside them, None where there are none."""

    def __init__(self, file: Path) -> None:
        self.file = file
        data = tensors.unpickled(file, "tensors and options", argparse.Namespace)
        state = data.get("model", data)
        if not isinstance(state, dict) or not any(isinstance(t, Tensor) for t in state.values()):
            raise CheckpointError(f"{file} should hold tensors by name, under 'model' or alone")
        self.state = {str(k): v.detach() for k, v in state.items() if isinstance(v, Tensor)}
        self.options = None if state is data else _options(file, data)

    def __iter__(self) -> Iterator[str]:
        return iter(self.state)

    def __contains__(self, name: object) -> bool:
        return name in self.state

    def meta_tensor(self, name: str) -> Tensor:
        tensor = self.state[name]
        if tensor.dtype not in tensors.TYPES.values():
            raise CheckpointError(f"tensor {name!r} in {self.file} is of type {tensor.dtype}, which is none of weights")
        return torch.empty_like(tensor, device="meta")

    def blocks(self, name: str) -> None:
        """No tensor of these files is quantised."""

    def get(self, name: str) -> Tensor:
        return self.state[name]


def _options(file: Path, data: Mapping[str, Any]) -> dict[str, Any]:
    """The model's options: of `args`, or of the model's part of `cfg`."""
    options: Any = data.get("args")
    if options is None:
        cfg = data.get("cfg")
        options = cfg.get("model") if isinstance(cfg, dict) else cfg
    if isinstance(options, argparse.Namespace):
        options = vars(options)
    if not isinstance(options, dict):
        raise CheckpointError(f"{file} should hold the model's options under 'args', or under 'model' of 'cfg'")
    return options


def load(
    path: Path,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "float32",
    *,
    tokenizer: bool = True,
    rewrites: Sequence[Rewrite] = (),
) -> Model:
    """The model of a file or of a folder that holds `model.pt`, in eval mode. A tokenizer is read where the folder has
    one in a layout that `stemma.load` knows. Raises CheckpointError naming the option or tensor."""
    file = found(path)
    if file is None:
        raise CheckpointError(f"{path} is neither a file of fairseq's (.pt) nor a folder with {FILE}")
    source = Tensors(file)
    where, place = str(file), device_of(device)
    files = {functools.reduce(lambda n, r: n.replace(*r), RENAMES.items(), name): name for name in source}
    if len(files) < len(source.state):
        raise CheckpointError(f"{where} holds a tensor under both an old and a new name")
    kind = _kind(files, source.state, where)
    ledger = Ledger()
    design, name = _design(kind, source, files, ledger, where)
    model = meta_model(design)
    loader = WeightLoader(model, source, where, ledger, files)
    rows = _rows(kind, design, name, loader.shapes, packed=any(n.endswith("in_proj_weight") for n in files))
    held = [(r, loader.find(r)) for r in rows]
    loader.account(UNUSED_TENSORS)
    wanted = None if dtype == "auto" else dtype_of(dtype)
    loader.rewrite(rewrites)
    for r, tensor in held:
        assert tensor is not None  # all are in the file
        loader.read(r, tensor, place, wanted)
    if model.embed.segments is not None:  # a row that is always added, and that fairseq does not have
        blank = torch.zeros(loader.shapes["embed.segments.weight"], dtype=model.dtype, device=place)
        load_tensor(model, "embed.segments.weight", blank, place, model.dtype)
        ledger.new.append("embed.segments.weight")
    loader.finish(place, wanted)
    attach(model, design, families.family(kind.family))
    if tokenizer:
        model.tokenizer = read_tokenizer(file.parent, model)
    return model.eval()


def _kind(files: Mapping[str, str], state: Mapping[str, Tensor], where: str) -> Kind:
    """Which of fairseq's models has such tensors."""
    if KINDS[0].tokens in files:
        return KINDS[0]
    if "decoder.layers.0.fc1.weight" not in files or KINDS[1].tokens not in files:
        raise CheckpointError(
            f"{where} holds none of RoBERTa, BART, mBART and MASS (its first tensor is {next(iter(state))!r})"
        )
    for name in ("encoder.embed_positions.weight", "encoder.layernorm_embedding.weight"):
        if name not in files:
            raise CheckpointError(f"{where} holds an encoder-decoder without {name!r}, which BART, mBART and MASS have")
    if "emb_layer_norm" in files["encoder.layernorm_embedding.weight"]:
        return KINDS[3]
    return KINDS[2] if "encoder.layer_norm.weight" in files else KINDS[1]


@dataclass(frozen=True)
class Content:
    """The content of a file: options by name, and shapes by the table's names of tensors."""

    where: str
    options: Mapping[str, Any] | None
    shapes: Mapping[str, torch.Size]

    def option(self, name: str, inferred: Any) -> Any:
        """An option; if it is left out `inferred`, the value that the tensors give. Raises CheckpointError if both give
        a width and they differ."""
        value = (self.options or {}).get(name)
        if value is not None and inferred is not None and value != inferred and name in WIDTHS:
            raise CheckpointError(f"{self.where}: its options say {name}={value!r}, its tensors {inferred}")
        return inferred if value is None else value

    def matrix(self, name: str) -> tuple[int, int]:
        """The sizes of a matrix. Raises CheckpointError if it is missing or none."""
        shape = self.shapes.get(name)
        if shape is None or len(shape) != 2:
            found = "is missing" if shape is None else f"has the shape {tuple(shape)}"
            raise CheckpointError(f"{self.where}: the matrix {name!r} {found}")
        return shape[0], shape[1]

    def layers(self, prefix: str) -> int:
        """The number of layers of a stack."""
        pattern = re.compile(re.escape(prefix) + r"layers\.(\d+)\.")
        return max((int(m[1]) for n in self.shapes if (m := pattern.match(n))), default=-1) + 1

    def heads(self, width: int, ledger: Ledger) -> int:
        """Heads of a layer. Without options they are as wide as in every published model, which the ledger says."""
        heads = self.option("encoder_attention_heads", None)
        if heads is None:
            if self.options is not None or width % HEAD:
                raise CheckpointError(
                    f"{self.where}: its options name no encoder_attention_heads, which no tensor tells"
                )
            heads = width // HEAD
            ledger.config["encoder_attention_heads"] = f"not in the file: heads of {HEAD}, as in every published model"
        if type(heads) is not int:
            raise CheckpointError(f"{self.where}: encoder_attention_heads={brief(heads)} should be a whole number")
        return heads

    def act(self) -> str:
        """Our word for the activation."""
        act = self.option("activation_fn", "gelu" if self.options is None else "relu")
        if act not in ACTS:
            raise CheckpointError(
                f"{self.where}: activation_fn={act!r} is not known; known: {', '.join(ACTS)}"
                f"{did_you_mean(str(act), ACTS)}"
            )
        return ACTS[act]

    def task(self) -> str | None:
        """The name of the classification head, if there is one."""
        names = sorted({m[1] for n in self.shapes if (m := TASK.fullmatch(n))})
        if len(names) > 1:
            raise CheckpointError(
                f"{self.where} holds several classification heads ({', '.join(names)}); one is supported"
            )
        return names[0] if names else None


DECODER = "decoder.layers.0"
WIDTHS = ("encoder_embed_dim", "encoder_layers", "decoder_layers", "encoder_ffn_embed_dim")


def _design(
    kind: Kind, source: Tensors, files: Mapping[str, str], ledger: Ledger, where: str
) -> tuple[Design, str | None]:
    """The design from options and tensors, and the name of the classification head, if there is one."""
    owner = families.family(kind.family)
    base = owner.first
    file = Content(where, source.options, {name: source.state[held].shape for name, held in files.items()})
    changes = _changes(kind, base, file, ledger)
    task = file.task()
    if task is not None:
        labels = file.matrix(f"classification_heads.{task}.out_proj.weight")[0]
        changes["arch.heads"] = Heads(task=spec.edit(owner.tasks["classify"].task, {"labels": labels}))
    elif kind.bare is not None and kind.bare not in files:
        changes["arch.heads"] = Heads()
    try:
        design = spec.edit(base, changes)
    except UsageError as error:
        raise CheckpointError(f"{where}: {error}") from None
    residual = PreNorm() if "encoder.layer_norm.weight" in files else PostNorm()
    before = file.option("encoder_normalize_before", False)
    if design.arch.residual != residual or before != isinstance(residual, PreNorm):
        raise CheckpointError(
            f"{where}: where its norms stand (encoder_normalize_before) is not as {kind.family} has it"
        )
    size = next((s for s in owner if owner[s].dims == design.dims), owner.name)
    return replace(design, name=size), task


def _changes(kind: Kind, base: Design, file: Content, ledger: Ledger) -> dict[str, Any]:
    """How a file differs from the family's first size."""
    body, option = kind.tokens.removesuffix("embed_tokens.weight"), file.option
    vocab, width = file.matrix(kind.tokens)
    heads, act = file.heads(width, ledger), file.act()
    both = base.arch.structure == "encoder-decoder"
    changes: dict[str, Any] = {
        "dims.d_model": option("encoder_embed_dim", width),
        "dims.layers": option("encoder_layers", file.layers(body)),
        "dims.decoder_layers": option("decoder_layers", file.layers("decoder.")) if both else None,
        "dims.heads": heads,
        "dims.head_dim": None,
        "dims.d_ff": option("encoder_ffn_embed_dim", file.matrix(f"{body}layers.0.fc1.weight")[0]),
        "dims.decoder_heads": option("decoder_attention_heads", heads) if both else None,
        "dims.decoder_d_ff": option("decoder_ffn_embed_dim", file.matrix(f"{DECODER}.fc1.weight")[0]) if both else None,
        "dims.vocab": vocab,
        "dims.context": file.matrix(f"{body}embed_positions.weight")[0] - kind.unused,
        "arch.mlp.act": act,
        "arch.dropout": Dropout(
            embed=option("dropout", 0.1),
            residual=option("dropout", 0.1),
            attention=option("attention_dropout", 0.0),
            inner=option("activation_dropout", 0.0),
        ),
    }
    if kind.scales:
        changes["arch.embed_scale"] = not option("no_scale_embedding", not base.arch.embed_scale)
    return changes


def _rows(kind: Kind, design: Design, name: str | None, shapes: Mapping[str, Any], packed: bool) -> list[Row]:
    """The names table for a model; `packed`: q, k and v are one tensor."""
    rows = [r for r in expand(kind.rows(design, name), design) if all(o in shapes for o in r.ours)]
    unnamed = set(shapes) - {o for r in rows for o in r.ours} - {"embed.segments.weight"}
    if unnamed:
        raise UsageError(f"fairseq's layout has no name for the parameter {min(unnamed)!r}")
    return _packed(rows) if packed else rows


def _packed(rows: list[Row]) -> list[Row]:
    out = []
    for r in rows:
        if m := re.fullmatch(r"(.*)\.q_proj\.(weight|bias)", r.theirs):
            ours = tuple(re.sub(r"\.q\.(\w+)$", rf".{x}.\1", r.ours[0]) for x in "qkv")
            out.append(Row(f"{m[1]}.in_proj_{m[2]}", ours))
        elif not re.search(r"\.[kv]_proj\.\w+$", r.theirs):
            out.append(r)
    return out


# ---------------------------------------------------------------- writing


def save(model: Model, path: str | Path, *, dtype: str | None = None) -> Path:
    """Write a model as fairseq's file: `path` itself if it ends in .pt, else `model.pt` in that folder, the tokenizer
    beside it. The names are those of fairseq's last versions (q, k and v apart), the options an `argparse.Namespace`.

    Raises UsageError for what the layout cannot express."""
    target = Path(path)
    check_weights(model)
    known = {k.family: k for k in KINDS}
    kind = next((known[f.name] for f in (model.family.lineage if model.family else []) if f.name in known), None)
    if kind is None:
        raise UsageError(
            f"layout='fairseq' is for {', '.join(known)} and what came of them, not for {model.name or 'this'}"
        )
    design = design_of(model)
    _check(design, kind, model)
    state = PlainTensors(model)
    number = None if dtype is None else dtype_of(dtype)
    names: dict[str, Tensor] = {}
    for r in _rows(kind, design, "sentence_classification_head", state, packed=False):
        theirs = r.theirs.replace(".layernorm_embedding.", f".{kind.embed_norm}.")
        tensor = r.write(state).to(device="cpu", dtype=number).contiguous()
        names |= dict.fromkeys([theirs, *_repeated(r, design)], tensor)
    data = {"args": argparse.Namespace(**_written(kind, design)), "model": names}
    folder = target.parent if target.suffix == ".pt" else target
    with tensors.whole(folder, lambda name: False) as scratch:
        torch.save(data, scratch / (target.name if target.suffix == ".pt" else FILE))
        if model.tokenizer is not None and target.suffix != ".pt":
            model.tokenizer.save(scratch)
    return target


def _repeated(r: Row, design: Design) -> list[str]:
    """The other names under which fairseq stores the same tensor."""
    if design.arch.structure == "encoder-decoder":
        return [a for a in r.aliases if a == "decoder.embed_tokens.weight" or design.arch.heads.lm is not None]
    return list(r.aliases) if design.arch.heads.lm is not None else []


def _check(design: Design, kind: Kind, model: Model) -> None:
    """Raises UsageError if the layout cannot express a design."""
    head = design.arch.heads.lm
    if head is not None and (not head.tied or (isinstance(head, LMHead) and head.bias)):
        raise UsageError("fairseq's layout has no name for a head with a matrix or a bias of its own")
    if design.arch.heads.pooler is not None or not isinstance(design.arch.heads.task, Classify | None):
        raise UsageError("fairseq's layout knows classification heads with a dense layer of their own, and no others")
    if model.embed.segments is not None and bool(model.embed.segments.weight.any()):
        raise UsageError("fairseq's layout has no segments, and this model's embedding of them is not zero")
    base = families.family(kind.family).first
    free: dict[str, Any] = {
        "mlp.act": spec.get(design, "arch.mlp.act"),
        "heads": design.arch.heads,
        "dropout": design.arch.dropout,
        "init": design.arch.init,
    }
    if kind.scales:
        free["embed_scale"] = design.arch.embed_scale
    try:
        known = spec.edit(base.arch, free)
    except UsageError as error:
        raise UsageError(f"fairseq's layout cannot express this design: {error}") from None
    if other := spec.diff(known, design.arch):
        raise UsageError(f"fairseq's layout cannot express arch.{other[0].path}={other[0].new} of {kind.family}")
    dims = design.dims
    if dims.kv != dims.heads or dims.width * dims.heads != dims.d_model or dims.groups or dims.embed:
        raise UsageError("fairseq's layout cannot express kv_heads, head_dim, groups or embed")


def _written(kind: Kind, design: Design) -> dict[str, Any]:
    dims, rates = design.dims, design.arch.dropout
    wide = dims.d_model > 768
    options: dict[str, Any] = {
        "arch": kind.arch[wide],
        "encoder_embed_dim": dims.d_model,
        "encoder_ffn_embed_dim": dims.d_ff,
        "encoder_layers": dims.layers,
        "encoder_attention_heads": dims.heads,
        "activation_fn": WORDS["write"](spec.get(design, "arch.mlp.act"), design),
        "dropout": rates.residual,
        "attention_dropout": rates.attention,
        "activation_dropout": rates.inner,
        "encoder_normalize_before": isinstance(design.arch.residual, PreNorm),
    }
    if design.arch.structure == "encoder":
        return options | {"max_positions": dims.context, "pooler_activation_fn": "tanh", "untie_weights_roberta": False}
    return options | {
        "decoder_embed_dim": dims.d_model,
        "decoder_ffn_embed_dim": dims.decoder.d_ff,
        "decoder_layers": dims.depth,
        "decoder_attention_heads": dims.decoder.heads,
        "decoder_normalize_before": isinstance(design.arch.residual, PreNorm),
        "encoder_learned_pos": True,
        "decoder_learned_pos": True,
        "layernorm_embedding": True,
        "no_scale_embedding": not design.arch.embed_scale,
        "share_all_embeddings": True,
        "share_decoder_input_output_embed": True,
        "max_source_positions": dims.context,
        "max_target_positions": dims.context,
    }
