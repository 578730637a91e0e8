"""The layouts of public DeBERTa checkpoints: version 1 (`deberta`), versions 2 and 3 (`deberta-v2`).

The files of their authors name no class, and hold the enhanced mask decoder: its head (`lm_predictions`) and its table
of positions. Classes of transformers leave that decoder out: they put BERT's head, under BERT's names or those of the
authors (`legacy=false`), on the last hidden state. A file is read as what its class computes, one without a class as
what its authors' computes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from stemma.declare.family import Design
from stemma.errors import CheckpointError, UsageError
from stemma.families.deberta import deberta as deberta_family
from stemma.families.deberta import deberta_v2 as deberta_v2_family
from stemma.formats.classes import class_names
from stemma.formats.hf_bert import GAMMA, task_classes, task_rows, with_act
from stemma.formats.keys import ACTS, Key, Layout, ids, key, reasons, with_defaults
from stemma.formats.names import ByHead, Row, linear, row
from stemma.nn.parts import ContextDetector, Convolution, Disentangled, EMDHead, Heads, Learned, MLMHead, Summary

AUTHORS = ("MaskedLanguageModel", "ReplacedTokenDetectionModel")  # classes of the original code


# ---------------------------------------------------------------- names


def _around(design: Design) -> Iterator[Row]:
    """The rows that both layouts share: all but those inside attention."""
    theirs, ours = "deberta.encoder.layer.{i}", "encoder.blocks.{i}"
    lm = design.arch.heads.lm
    apart = isinstance(lm, MLMHead) and not lm.tied
    decoder = [] if apart else ["cls.predictions.decoder.weight"]
    yield row("deberta.embeddings.word_embeddings.weight", "embed.tokens.weight", aliases=decoder)
    yield row("deberta.embeddings.token_type_embeddings.weight", "embed.segments.weight")
    yield from linear("deberta.embeddings.LayerNorm", "encoder.embed_norm")
    absolute = "deberta.embeddings.position_embeddings.weight"
    if isinstance(design.arch.position, Disentangled):
        yield row("deberta.encoder.rel_embeddings.weight", "encoder.position.table.weight")
        yield row(absolute, "encoder.position.absolute.weight")
    else:
        yield row(absolute, "encoder.position.table.weight")
    yield from linear("deberta.encoder.LayerNorm", "encoder.position.norm")
    yield from linear("deberta.encoder.conv.conv", "encoder.convolution.conv")
    yield from linear("deberta.encoder.conv.LayerNorm", "encoder.convolution.norm")
    yield from linear(f"{theirs}.attention.output.dense", f"{ours}.attention.o")
    yield from linear(f"{theirs}.attention.output.LayerNorm", f"{ours}.attention_norm")
    yield from linear(f"{theirs}.intermediate.dense", f"{ours}.mlp.up")
    yield from linear(f"{theirs}.output.dense", f"{ours}.mlp.down")
    yield from linear(f"{theirs}.output.LayerNorm", f"{ours}.mlp_norm")
    yield from _head(lm, apart)
    yield from linear("pooler.dense", "pooler.dense")
    yield from task_rows(design)


def _head(lm: Any, apart: bool) -> Iterator[Row]:
    """The masked-LM head, written with transformers' names, or with its authors' above an enhanced mask decoder. Both
    are read."""
    old, new = "cls.predictions", "lm_predictions.lm_head"
    for name, part in (("transform.dense", "dense"), ("transform.LayerNorm", "norm")):
        for leaf in ("weight", "bias"):
            names = [f"{old}.{name}.{leaf}", f"{new}.{name.removeprefix('transform.')}.{leaf}"]
            yield _either(names, f"lm.{part}.{leaf}", lm)
    if apart:  # then the decoder's own bias is the one in use
        yield from linear(f"{old}.decoder", "lm")
    else:
        bias = _either([f"{old}.bias", f"{new}.bias"], "lm.bias", lm)
        yield replace(bias, aliases=(*bias.aliases, f"{old}.decoder.bias"))
    if isinstance(lm, EMDHead):
        yield row("deberta.embeddings.position_embeddings.weight", "lm.positions.weight")


def _either(names: list[str], ours: str, lm: Any) -> Row:
    first, second = reversed(names) if isinstance(lm, EMDHead) else names
    return row(first, ours, aliases=[second])


def _v1_rows(design: Design) -> Iterator[Row]:
    theirs, ours = "deberta.encoder.layer.{i}.attention.self", "encoder.blocks.{i}.attention"
    packed = [f"{ours}.{name}.weight" for name in "qkv"]
    yield from _around(design)
    yield row(f"{theirs}.in_proj.weight", *packed, op=ByHead(design.dims.heads))
    yield row(f"{theirs}.q_bias", f"{ours}.q.bias")
    yield row(f"{theirs}.v_bias", f"{ours}.v.bias")
    yield row(f"{theirs}.pos_proj.weight", f"{ours}.relative.k.weight")
    yield from linear(f"{theirs}.pos_q_proj", f"{ours}.relative.q")


def _v2_rows(design: Design) -> Iterator[Row]:
    theirs, ours = "deberta.encoder.layer.{i}.attention.self", "encoder.blocks.{i}.attention"
    yield from _around(design)
    yield from linear(f"{theirs}.query_proj", f"{ours}.q")
    yield from linear(f"{theirs}.key_proj", f"{ours}.k")
    yield from linear(f"{theirs}.value_proj", f"{ours}.v")
    yield from linear(f"{theirs}.pos_query_proj", f"{ours}.relative.q")
    yield from linear(f"{theirs}.pos_key_proj", f"{ours}.relative.k")
    yield from linear("mask_predictions.dense", "detect.dense")
    yield from linear("mask_predictions.LayerNorm", "detect.norm")
    yield from linear("mask_predictions.classifier", "detect.out")


# ---------------------------------------------------------------- config.json


def _terms(config: Mapping[str, Any]) -> list[str]:
    """The products of `pos_att_type`, in the order of the reference."""
    value = config.get("pos_att_type")
    terms = [t.strip() for t in value.lower().split("|")] if isinstance(value, str) else value or []
    if not isinstance(terms, list) or (other := [t for t in terms if t not in ("c2p", "p2c")]):
        wrong = repr(value) if not isinstance(terms, list) else repr(other[0])
        raise CheckpointError(f"{wrong} is not supported; known: c2p, p2c")
    return [name for name in ("p2c", "c2p") if name in terms]


def _distances(config: Mapping[str, Any]) -> bool:
    """Whether distances take part in the scores."""
    try:
        return bool(config.get("relative_attention", False)) and bool(_terms(config))
    except CheckpointError:
        return True  # the key of the terms says what is wrong with them


def _biased(config: Mapping[str, Any]) -> bool:
    """Whether absolute positions are added to the embeddings."""
    return bool(config.get("position_biased_input", True))


def _position(value: Any, config: Mapping[str, Any]) -> Disentangled | Learned:
    """Positions as distances, as a table beside the embeddings (BERT's, the default of the reference), or as both."""
    if not isinstance(value, bool):
        raise CheckpointError(f"{value!r} should be true or false")
    if _distances(config):
        return Disentangled(absolute=_biased(config))
    if not _biased(config):
        raise CheckpointError(
            f"relative_attention={config.get('relative_attention', False)!r} with "
            f"pos_att_type={config.get('pos_att_type')!r} and position_biased_input=False leave no position in use"
        )
    return Learned()


def _scale(width: int, heads: int) -> Any:
    """`read` of what divides the scores; `width`, `heads`: the defaults of a config. The reference counts the products
    of `pos_att_type` even where it adds none."""

    def read(value: Any, config: Mapping[str, Any]) -> float | None:
        terms, head = _terms(config), config.get("attention_head_size")
        if not terms or _distances(config):
            return None
        d_model, parts = config.get("hidden_size", width), config.get("num_attention_heads", heads)
        if head is None and isinstance(d_model, int) and isinstance(parts, int) and parts > 0:
            head = d_model // parts
        return float(head * (1 + len(terms))) if isinstance(head, int) and head > 0 else None

    return read


def _write_terms(value: Any, design: Design) -> list[str]:
    position, attention = design.arch.position, design.arch.attention
    if isinstance(position, Disentangled):
        return [name for name, used in (("p2c", position.p2c), ("c2p", position.c2p)) if used]
    products = (attention.scale_width or design.dims.width) / design.dims.width
    if products not in (1, 2, 3):
        raise UsageError(f"this layout has no word for {attention.scale_width!r}")
    return ["p2c", "c2p"][3 - int(products) :]


def _term(name: str) -> Any:
    return lambda value, config: name in _terms(config)


def _distance(value: Any, config: Mapping[str, Any]) -> Any:
    """-1 means as many as the context."""
    return config.get("max_position_embeddings", 512) if isinstance(value, int) and value < 1 else value


def _span(value: int | None, design: Design) -> int:
    return -1 if value is None else value


def _norm(value: bool, design: Design) -> str:
    return "layer_norm" if value else "none"


def _buckets(value: Any, config: Mapping[str, Any]) -> Any:
    return None if isinstance(value, int) and value < 1 else value


def _normed(value: Any, config: Mapping[str, Any]) -> bool:
    kinds = [k.strip() for k in str(value).lower().split("|")]
    if wrong := [k for k in kinds if k not in ("none", "layer_norm")]:
        raise CheckpointError(f"{wrong[0]!r} is not supported; known: none, layer_norm")
    return "layer_norm" in kinds


def _heads(value: Any, config: Mapping[str, Any]) -> Heads:
    """Every head that a file with this config may hold. The tensors tell which it does."""
    for name in ("tie_word_embeddings", "legacy"):
        if not isinstance(config.get(name, True), bool):
            raise CheckpointError(f"{name}={config[name]!r} should be true or false")
    act = ACTS["read"](config.get("hidden_act", "gelu"), config)
    names = class_names(config)
    authors = (not names or any(name in AUTHORS for name in names)) and not _biased(config)
    tied = config.get("tie_word_embeddings", True) or not config.get("legacy", True)
    lm = EMDHead(act) if authors else MLMHead(act, tied)
    return Heads(lm, Summary(act="gelu"), detect=ContextDetector(act))


def _legacy(value: Heads, design: Design) -> bool:
    return not isinstance(value.lm, EMDHead)


def _tied(value: Heads, design: Design) -> bool:
    return value.lm.tied if isinstance(value.lm, MLMHead) else True


def _convolution(value: Any, config: Mapping[str, Any]) -> Convolution | None:
    size = config.get("conv_kernel_size", 0)
    if not isinstance(size, int) or isinstance(size, bool):
        raise CheckpointError(f"conv_kernel_size={size!r} should be a whole number")
    try:
        act: Any = ACTS["read"](config.get("conv_act", "tanh"), config) if size > 0 else None
    except CheckpointError as error:
        raise CheckpointError(f"conv_act: {error}") from None
    return Convolution(size, act) if size > 0 else None


def _kernel(value: Convolution | None, design: Design) -> int:
    return 0 if value is None else value.kernel


def _conv_act(value: Convolution | None, design: Design) -> Any:
    return ACTS["write"]("gelu" if value is None else value.act, design)


def _keys(**sizes: int) -> tuple[Key, ...]:
    berts = [k for k in with_act("arch.mlp.act") if k.name != "tie_word_embeddings"]
    return (
        *with_defaults(berts, type_vocab_size=0, layer_norm_eps=1e-7, **sizes),
        key("max_position_embeddings", "dims.context", default=512),
        key(
            "relative_attention", "arch.position", default=False, read=_position,
            write=lambda value, design: isinstance(value, Disentangled),
        ),
        key(
            "position_biased_input", "arch.position", default=True, read=_position,
            write=lambda value, design: not isinstance(value, Disentangled) or value.absolute,
        ),
        key("max_relative_positions", "arch.position.distance", default=-1, read=_distance, when=_distances),
        key(
            "pos_att_type", "arch.attention.scale_width", default=None, write=_write_terms,
            read=_scale(sizes.get("hidden_size", 768), sizes.get("num_attention_heads", 12)),
        ),
        *(
            key("pos_att_type", f"arch.position.{name}", default=None, read=_term(name), write=_write_terms,
                when=_distances)
            for name in ("c2p", "p2c")
        ),
        key("tie_word_embeddings", "arch.heads", default=True, read=_heads, write=_tied),
        key("legacy", "arch.heads", default=True, read=_heads, write=_legacy),
        *ids(pad=0, bos=None, eos=None),
    )  # fmt: skip


V2_KEYS = (
    key("position_buckets", "arch.position.buckets", default=-1, read=_buckets, write=_span, when=_distances),
    key("share_att_key", "arch.position.shared", default=False, when=_distances),
    key("norm_rel_ebd", "arch.position.norm", default="none", read=_normed, write=_norm, when=_distances),
    key("conv_kernel_size", "arch.convolution", default=0, read=_convolution, write=_kernel),
    key("conv_act", "arch.convolution", default="tanh", read=_convolution, write=_conv_act),
    key("attention_head_size", "dims.head_dim", default=None),
)
FIXED: dict[str, Any] = {"talking_head": False}
POOLER = {"pooler_hidden_act": "gelu"}
UNUSED = {
    **reasons("dropout of a task head, which its spec says", "pooler_dropout"),
    **reasons("the tensors of the pooler say it", "pooler_hidden_size"),
    **reasons("the same as pad_token_id", "padding_idx"),
}
UNUSED_TENSORS = {
    r"(^|\.)embeddings\.position_ids$": "a buffer of 0, 1, 2, ...",
    r"embeddings\.position_embeddings\.weight$": "of the enhanced mask decoder, which the file's class does without",
    r"encoder\.(rel_embeddings\.weight|LayerNorm\.(weight|bias))$": "of distances, which no score reads here",
    r"embeddings\.(word|position)_embeddings\._weight$": "a part of the embeddings, which hold it already",
    r"^cls\.predictions\.bias$": "not in use where the head is not tied: its decoder has a bias of its own",
}

deberta = Layout(
    model_type="deberta",
    families=("deberta",),
    classes={
        "DebertaForMaskedLM": Heads(MLMHead()),
        "MaskedLanguageModel": Heads(EMDHead()),
        "DebertaModel": Heads(),
        **task_classes("Deberta", deberta_family),
    },
    keys=_keys(vocab_size=50_265),
    rows=_v1_rows,
    prefix="deberta.",
    fixed=FIXED,
    fixed_in={"ForSequenceClassification": POOLER, "ForMultipleChoice": POOLER},
    unused=UNUSED | reasons("every head has its share of hidden_size in this version", "attention_head_size"),
    renames=GAMMA,
    unused_tensors=UNUSED_TENSORS,
)

deberta_v2 = replace(
    deberta,
    model_type="deberta-v2",
    families=("deberta-v2", "deberta-v3"),
    classes={
        "DebertaV2ForMaskedLM": Heads(MLMHead()),
        "MaskedLanguageModel": Heads(EMDHead()),
        "ReplacedTokenDetectionModel": Heads(detect=ContextDetector()),
        "DebertaV2Model": Heads(),
        **task_classes("DebertaV2", deberta_v2_family),
    },
    keys=(
        *_keys(
            vocab_size=128_100,
            hidden_size=1536,
            num_hidden_layers=24,
            num_attention_heads=24,
            intermediate_size=6144,
        ),
        *V2_KEYS,
    ),
    rows=_v2_rows,
    fixed=FIXED | {"conv_groups": 1},
    unused=UNUSED,
)
