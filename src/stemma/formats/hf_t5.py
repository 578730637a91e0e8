"""The layouts of public T5 checkpoints, versions 1.0 and 1.1, and of mT5 (Hugging Face)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from stemma.declare.family import Design
from stemma.errors import CheckpointError
from stemma.families.t5 import t5 as t5_family
from stemma.formats.hf_bert import task_classes
from stemma.formats.keys import ACTIVATIONS, ACTS, Layout, ids, key, meant, with_defaults
from stemma.formats.names import Row, linear, row
from stemma.nn.parts import MLP, Answer, Classify, Full, GatedMLP, Heads, LayerBuckets, LMHead, Tag


def _read_mlp(value: Any, config: Mapping[str, Any]) -> MLP | GatedMLP:
    # "gated-gelu" has always meant the tanh form, and "gelu" alone the exact one
    word = str(value).removeprefix("gated-")
    if word not in ACTIVATIONS:
        hint = meant(str(value), [*ACTIVATIONS, *("gated-" + a for a in ACTIVATIONS)])
        known = f"{', '.join(ACTIVATIONS)}, each also after gated-"
        raise CheckpointError(f"feed_forward_proj={value!r} is not supported; known: {known}{hint}")
    if str(value).startswith("gated-"):
        return GatedMLP("gelu_tanh" if word == "gelu" else ACTIVATIONS[word], bias=False)  # type: ignore[arg-type]
    return MLP(ACTIVATIONS[word], bias=False)  # type: ignore[arg-type]


def _write_mlp(value: MLP | GatedMLP, design: Design) -> str:
    word = ACTS["write"](value.act, design)
    if isinstance(value, MLP):
        return word
    return "gated-gelu" if value.act == "gelu_tanh" else f"gated-{word}"


def _read_scaled(value: Any, config: Mapping[str, Any]) -> Any:
    return config.get("tie_word_embeddings", True) if value is None else value


def task_rows(design: Design) -> Iterator[Row]:
    """The rows of task heads on an encoder-decoder or its encoder."""
    match design.arch.heads.task:
        case Answer():
            yield from linear("qa_outputs", "task.out")
        case Tag():
            yield from linear("classifier", "task.out")
        case Classify():
            yield from linear("classification_head.dense", "task.summary.dense")
            yield from linear("classification_head.out_proj", "task.out")


def _rows(design: Design) -> Iterator[Row]:
    named = isinstance(design.arch.heads.task, Classify | Tag)  # these classes hold the body under a name of its own
    for r in _body(design):
        yield _either(r) if named else r
    if not design.arch.heads.tied:
        yield row("lm_head.weight", "lm.weight")
    yield from task_rows(design)


def _either(r: Row) -> Row:
    aliases = (*(f"transformer.{a}" for a in r.aliases), r.theirs, *r.aliases)
    return replace(r, theirs=f"transformer.{r.theirs}", aliases=aliases)


def _body(design: Design) -> Iterator[Row]:
    head = design.arch.heads.lm
    tied = head is not None and head.tied
    alias = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight", *(["lm_head.weight"] if tied else [])]
    yield row("shared.weight", "embed.tokens.weight", aliases=alias)
    for stack in ("encoder", "decoder"):
        theirs, ours = f"{stack}.block.{{i}}.layer", f"{stack}.blocks.{{i}}"
        for x in "qkvo":
            yield row(f"{theirs}.0.SelfAttention.{x}.weight", f"{ours}.attention.{x}.weight")
        yield row(f"{theirs}.0.layer_norm.weight", f"{ours}.attention_norm.weight")
        last = 1
        if stack == "decoder":
            last = 2
            for x in "qkvo":
                yield row(f"{theirs}.1.EncDecAttention.{x}.weight", f"{ours}.cross.{x}.weight")
            yield row(f"{theirs}.1.layer_norm.weight", f"{ours}.cross_norm.weight")
        gated = isinstance(design.arch.mlp, GatedMLP)
        for theirs_name, ours_name in (("wi_0", "gate"), ("wi_1", "up")) if gated else (("wi", "up"),):
            yield row(f"{theirs}.{last}.DenseReluDense.{theirs_name}.weight", f"{ours}.mlp.{ours_name}.weight")
        yield row(f"{theirs}.{last}.DenseReluDense.wo.weight", f"{ours}.mlp.down.weight")
        yield row(f"{theirs}.{last}.layer_norm.weight", f"{ours}.mlp_norm.weight")
        bias = "layer.0.SelfAttention.relative_attention_bias.weight"
        yield row(f"{stack}.block.0.{bias}", f"{stack}.position.table.weight")
        if isinstance(design.arch.position, LayerBuckets):
            yield row(f"{stack}.block.{{i}}.{bias}", f"{ours}.attention.relative.table.weight")
        yield row(f"{stack}.final_layer_norm.weight", f"{stack}.norm.weight")


SCALED = "arch.heads.lm.scaled"
ENCODER = {"arch.structure": "encoder", "arch.mask": Full()}

t5 = Layout(
    model_type="t5",
    families=("t5", "t5-v1.1", "ul2"),
    classes={
        "T5ForConditionalGeneration": Heads(LMHead()),
        "T5Model": Heads(),
        "T5WithLMHeadModel": Heads(LMHead()),  # its first name
        "T5EncoderModel": Heads(),
        **task_classes("T5", t5_family),
    },
    keys=(
        key("vocab_size", "dims.vocab", default=32_128),
        key("d_model", "dims.d_model", default=512),
        key("d_kv", "dims.head_dim", default=64),
        key("d_ff", "dims.d_ff", default=2048),
        key("num_layers", "dims.layers", default=6),
        key("num_decoder_layers", "dims.decoder_layers", default=None),
        key("num_heads", "dims.heads", default=8),
        key("relative_attention_num_buckets", "arch.position.buckets", default=32),
        key("relative_attention_max_distance", "arch.position.distance", default=128),
        key(
            "dropout_rate", "arch.dropout.residual", "arch.dropout.embed", "arch.dropout.attention",
            "arch.dropout.inner", "arch.dropout.final", default=0.1,
        ),
        key("layer_norm_epsilon", "arch.norm.eps", default=1e-6),
        key("initializer_factor", "arch.init.factor", default=1.0),
        key("feed_forward_proj", "arch.mlp", default="relu", read=_read_mlp, write=_write_mlp),
        key("tie_word_embeddings", "arch.heads.lm.tied", default=True),
        key("scale_decoder_outputs", "arch.heads.lm.scaled", default=None, read=_read_scaled),
        *ids(pad=0, bos=None, eos=1),
        key(
            "decoder_start_token_id", "text.start_id", default=None,
            read=lambda v, c: c.get("pad_token_id", 0) if v is None else v,
        ),
        key("n_positions", "dims.context", default=512),
    ),
    rows=_rows,
    fixed={"is_encoder_decoder": True, "is_decoder": False},
    unused={"dense_act_fn": "derived from feed_forward_proj", "is_gated_act": "derived from feed_forward_proj"},
    unused_tensors={
        r"^decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight$": "a table that old files "
        "hold for cross-attention, which has no positions",
        r"^lm_head\.weight$": "of a head that is not in use",
    },
    tied_by_file=True,
    variants={"T5EncoderModel": ENCODER, "T5ForTokenClassification": ENCODER},
)  # fmt: skip


mt5 = replace(
    t5,
    model_type="mt5",
    families=("mt5",),
    classes={f"M{name}": heads for name, heads in t5.classes.items()},
    # no class of mT5 scales the hidden state before its head, whatever a config says
    keys=with_defaults(
        (k for k in t5.keys if k.name != "scale_decoder_outputs"),
        vocab_size=250_112,
        d_ff=1024,
        num_layers=8,
        num_heads=6,
        feed_forward_proj="gated-gelu",
        n_positions=1024,
    ),
    unused={**t5.unused, "scale_decoder_outputs": "no class of mT5 reads it"},
    variants={f"M{name}": changes for name, changes in t5.variants.items()},
)

umt5 = replace(
    mt5,
    model_type="umt5",
    families=("umt5",),
    classes={f"UM{name}": heads for name, heads in t5.classes.items()},
    # here a head that the config ties is a scaled one, as in the first T5
    keys=tuple(replace(k, paths=(*k.paths, SCALED)) if k.name == "tie_word_embeddings" else k for k in mt5.keys),
    variants={f"UM{name}": changes for name, changes in t5.variants.items()},
)
