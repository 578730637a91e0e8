"""The layout of public XLNet checkpoints (Hugging Face).

Matrices of attention are stored as [in, heads, width], the output's as well: its inputs are heads and width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from stemma.declare.family import Design
from stemma.families.xlnet import xlnet as family
from stemma.formats.keys import ACTS, Layout, ids, key, reasons
from stemma.formats.names import InHeads, Row, Shaped, linear, row
from stemma.nn.parts import Answer, Heads, LMHead, Tag


def _rows(design: Design) -> Iterator[Row]:
    dims, tied = design.dims, design.arch.heads.tied
    theirs, ours = "transformer.layer.{i}", "encoder.blocks.{i}"
    yield row("transformer.word_embedding.weight", "embed.tokens.weight", aliases=["lm_loss.weight"] if tied else [])
    yield row("transformer.mask_emb", "encoder.query", op=Shaped((1, 1, dims.d_model)))
    attention = f"{ours}.attention"
    for name, mine in (("q", "q"), ("k", "k"), ("v", "v"), ("r", "relative.r")):
        yield row(f"{theirs}.rel_attn.{name}", f"{attention}.{mine}.weight", op=InHeads(dims.heads))
    out = Shaped((dims.d_model, dims.heads, dims.width))
    yield row(f"{theirs}.rel_attn.o", f"{attention}.o.weight", op=out)
    for name, mine in (("w", "content"), ("r", "distance"), ("s", "segment")):
        yield row(f"{theirs}.rel_attn.r_{name}_bias", f"{attention}.relative.{mine}")
    yield row(f"{theirs}.rel_attn.seg_embed", f"{attention}.relative.segments")
    yield from linear(f"{theirs}.rel_attn.layer_norm", f"{ours}.attention_norm")
    yield from linear(f"{theirs}.ff.layer_1", f"{ours}.mlp.up")
    yield from linear(f"{theirs}.ff.layer_2", f"{ours}.mlp.down")
    yield from linear(f"{theirs}.ff.layer_norm", f"{ours}.mlp_norm")
    yield row("lm_loss.bias", "lm.bias")
    if not tied:
        yield row("lm_loss.weight", "lm.weight")
    yield from linear("sequence_summary.summary", "pooler.dense")
    match design.arch.heads.task:
        case Answer():
            yield from linear("qa_outputs", "task.out")
        case Tag():
            yield from linear("classifier", "task.out")
        case _:
            yield from linear("logits_proj", "task.out")


def _length(value: Any, config: Mapping[str, Any]) -> Any:
    return None if value == 0 else value  # both mean that nothing is cut


SUMMARY = {"summary_type": "last", "summary_use_proj": True, "summary_activation": "tanh"}

xlnet = Layout(
    model_type="xlnet",
    families=("xlnet",),
    classes={
        "XLNetLMHeadModel": Heads(LMHead(bias=True)),
        "XLNetModel": Heads(),
        "XLNetForSequenceClassification": family.tasks["classify"],
        "XLNetForTokenClassification": family.tasks["tag"],
        "XLNetForQuestionAnsweringSimple": family.tasks["answer"],
        "XLNetForMultipleChoice": family.tasks["choose"],
    },
    keys=(
        key("vocab_size", "dims.vocab", default=32_000, older=("n_token",)),
        key("d_model", "dims.d_model", default=1024),
        key("n_layer", "dims.layers", default=24),
        key("n_head", "dims.heads", default=16),
        key("d_inner", "dims.d_ff", default=4096),
        key("d_head", "dims.head_dim", default=None),
        key("ff_activation", "arch.mlp.act", default="gelu", **ACTS),
        key("initializer_range", "arch.init.std", default=0.02),
        key("layer_norm_eps", "arch.norm.eps", default=1e-12),
        key(
            "dropout", "arch.dropout.residual", "arch.dropout.embed", "arch.dropout.attention", "arch.dropout.inner",
            "arch.dropout.final", default=0.1,
        ),
        key("mem_len", "arch.streams.memory", default=512, read=_length),
        key("reuse_len", "arch.streams.reuse", default=None, read=_length),
        key("n_positions", "dims.context", default=512),  # of models made here: the publisher's files have no such key
        key("tie_word_embeddings", "arch.heads.lm.tied", default=True),
        *ids(pad=5, bos=1, eos=2),
    ),
    rows=_rows,
    prefix="transformer.",
    fixed={
        "attn_type": "bi",
        "bi_data": False,
        "clamp_len": -1,
        "same_length": False,
        "untie_r": True,
    },
    fixed_in={"ForSequenceClassification": SUMMARY, "ForMultipleChoice": SUMMARY},
    unused=reasons("a call always returns its memory, and takes one where it is given", "use_mems_eval use_mems_train")
    | reasons("dropout of a task head, which its spec says", "summary_last_dropout")
    | reasons("of a head that searches answers, which is not supported", "start_n_top end_n_top"),
)  # fmt: skip
