"""The layouts of public GPT-1 (`openai-gpt`) and GPT-2 checkpoints (Hugging Face).

Their linear layers are stored as [in, out] and q, k, v in one piece, side by side.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from stemma.declare.family import Design
from stemma.families.gpt import gpt1 as gpt1_family
from stemma.families.gpt import gpt2 as gpt2_family
from stemma.formats.keys import ACTS, Layout, ids, key, reasons, words
from stemma.formats.names import Row, linear, row
from stemma.nn.parts import Answer, Choose, Classify, Heads, LMHead, Tag

SUMMARY = {
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "summary_activation": None,
    "summary_proj_to_labels": True,
}
UNUSED = reasons("dropout of a task head, which its spec says", "summary_first_dropout") | reasons(
    "an earlier spelling or a count that no code reads any more", "n_ctx n_special predict_special_tokens"
)


def _rows(design: Design, tokens: str, positions: str, last_norm: bool) -> Iterator[Row]:
    theirs, ours = "transformer.h.{i}", "decoder.blocks.{i}"
    tied = design.arch.heads.tied
    head = ["lm_head.weight"] if tied else []
    yield row(f"transformer.{tokens}.weight", "embed.tokens.weight", aliases=head)
    yield row(f"transformer.{positions}.weight", "decoder.position.table.weight")
    q, k, v, o = (f"{ours}.attention.{x}" for x in "qkvo")
    yield from linear(f"{theirs}.attn.c_attn", q, k, v, transposed=True)
    yield from linear(f"{theirs}.attn.c_proj", o, transposed=True)
    yield from linear(f"{theirs}.ln_1", f"{ours}.attention_norm")
    yield from linear(f"{theirs}.mlp.c_fc", f"{ours}.mlp.up", transposed=True)
    yield from linear(f"{theirs}.mlp.c_proj", f"{ours}.mlp.down", transposed=True)
    yield from linear(f"{theirs}.ln_2", f"{ours}.mlp_norm")
    if last_norm:
        yield from linear("transformer.ln_f", "decoder.norm")
    if not tied:
        yield row("lm_head.weight", "lm.weight")
    match design.arch.heads.task:
        case Classify():
            yield from linear("score", "task.out", bias=False)
        case Tag():
            yield from linear("classifier", "task.out")
        case Answer():
            yield from linear("qa_outputs", "task.out")
        case Choose():
            yield from linear("multiple_choice_head.summary", "task.out")


def four_times(width: Any, config: Mapping[str, Any]) -> Any:
    """The default d_ff of a width; a width of a wrong type is refused elsewhere."""
    return 4 * width if isinstance(width, int) else width


def _inner(value: Any, config: Mapping[str, Any]) -> Any:
    return four_times(config.get("n_embd", 768), config) if value is None else value


gpt1 = Layout(
    model_type="openai-gpt",
    families=("gpt1",),
    classes={
        "OpenAIGPTLMHeadModel": Heads(LMHead()),
        "OpenAIGPTModel": Heads(),
        "OpenAIGPTForSequenceClassification": gpt1_family.tasks["classify"],
        "OpenAIGPTDoubleHeadsModel": gpt1_family.tasks["choose"],
    },
    keys=(
        key("vocab_size", "dims.vocab", default=40_478),
        key("n_positions", "dims.context", default=512),
        key("n_embd", "dims.d_model", default=768),
        key("n_embd", "dims.d_ff", default=768, read=four_times, write=lambda v, d: d.dims.d_model),
        key("n_layer", "dims.layers", default=12),
        key("n_head", "dims.heads", default=12),
        key(
            "afn", "arch.mlp.act", default="gelu",
            **words({"gelu": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu"}),
        ),
        key("resid_pdrop", "arch.dropout.residual", default=0.1),
        key("embd_pdrop", "arch.dropout.embed", default=0.1),
        key("attn_pdrop", "arch.dropout.attention", default=0.1),
        key("layer_norm_epsilon", "arch.norm.eps", default=1e-5),
        key("initializer_range", "arch.init.std", default=0.02),
        key("tie_word_embeddings", "arch.heads.lm.tied", default=True),
        *ids(pad=None, bos=None, eos=None),
    ),
    rows=partial(_rows, tokens="tokens_embed", positions="positions_embed", last_norm=False),
    prefix="transformer.",
    fixed_in={"DoubleHeadsModel": SUMMARY},
    unused=UNUSED,
    unused_tensors={r"\.attn\.bias$": "a causal mask", r"position_ids$": "a buffer of 0, 1, 2, ..."},
)  # fmt: skip

gpt2 = Layout(
    model_type="gpt2",
    families=("gpt2",),
    classes={
        "GPT2LMHeadModel": Heads(LMHead()),
        "GPT2Model": Heads(),
        "GPT2ForSequenceClassification": gpt2_family.tasks["classify"],
        "GPT2ForTokenClassification": gpt2_family.tasks["tag"],
        "GPT2ForQuestionAnswering": gpt2_family.tasks["answer"],
        "GPT2DoubleHeadsModel": gpt2_family.tasks["choose"],
    },
    keys=(
        key("vocab_size", "dims.vocab", default=50_257),
        key("n_positions", "dims.context", default=1024),
        key("n_embd", "dims.d_model", default=768),
        key("n_layer", "dims.layers", default=12),
        key("n_head", "dims.heads", default=12),
        key("n_inner", "dims.d_ff", default=None, read=_inner),
        key("activation_function", "arch.mlp.act", default="gelu_new", **ACTS),
        key("resid_pdrop", "arch.dropout.residual", default=0.1),
        key("embd_pdrop", "arch.dropout.embed", default=0.1),
        key("attn_pdrop", "arch.dropout.attention", default=0.1),
        key("layer_norm_epsilon", "arch.norm.eps", default=1e-5),
        key("initializer_range", "arch.init.std", default=0.02),
        key("tie_word_embeddings", "arch.heads.lm.tied", default=True),
        key("scale_attn_weights", "arch.attention.scaled", default=True),
        key("scale_attn_by_inverse_layer_idx", "arch.attention.by_layer", default=False, rare=True),
        *ids(pad=None, bos=50_256, eos=50_256),
    ),
    rows=partial(_rows, tokens="wte", positions="wpe", last_norm=True),
    prefix="transformer.",
    fixed_in={"DoubleHeadsModel": SUMMARY},
    unused=UNUSED | reasons("how scores are rounded in float16", "reorder_and_upcast_attn"),
    unused_tensors={r"\.attn\.(masked_)?bias$": "a causal mask"},
)
