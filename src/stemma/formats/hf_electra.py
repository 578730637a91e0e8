"""The layout of public ELECTRA checkpoints, discriminators and generators (Hugging Face)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from stemma.declare.family import Design
from stemma.families.electra import electra as family
from stemma.formats.hf_bert import ABSOLUTE, GAMMA, blocks, task_classes, task_rows, with_act
from stemma.formats.keys import Layout, ids, key, number, reasons, with_defaults
from stemma.formats.names import Row, linear, row
from stemma.nn.parts import Choose, Detector, Heads, MLMHead


def _rows(design: Design) -> Iterator[Row]:
    tied = design.arch.heads.tied
    for r in blocks():
        if r.theirs == "embeddings.word_embeddings.weight":
            yield row(f"electra.{r.theirs}", *r.ours, aliases=["generator_lm_head.weight"] if tied else [])
        elif not r.theirs.startswith("pooler."):
            yield Row(f"electra.{r.theirs}", r.ours)
    yield from linear("electra.embeddings_project", "encoder.project")
    yield from linear("discriminator_predictions.dense", "detect.dense")
    yield from linear("discriminator_predictions.dense_prediction", "detect.out")
    yield from linear("generator_predictions.dense", "lm.dense")
    yield from linear("generator_predictions.LayerNorm", "lm.norm")
    yield row("generator_lm_head.bias", "lm.bias")
    if not tied:
        yield row("generator_lm_head.weight", "lm.weight")
    if isinstance(design.arch.heads.task, Choose):
        yield from linear("sequence_summary.summary", "task.summary.dense")
    yield from task_rows(design)


def _embed(value: Any, config: Mapping[str, Any]) -> Any:
    return None if number(value, config) == config.get("hidden_size", 256) else value


SUMMARY = {
    "summary_type": "first",
    "summary_use_proj": True,
    "summary_activation": "gelu",
    "summary_proj_to_labels": False,
}

electra = Layout(
    model_type="electra",
    families=("electra", "electra-generator"),
    classes={
        "ElectraForPreTraining": Heads(detect=Detector()),
        "ElectraForMaskedLM": Heads(MLMHead()),
        "ElectraModel": Heads(),
        **task_classes("Electra", family),
    },
    keys=(
        *with_defaults(
            with_act("arch.mlp.act", "arch.heads.detect.act"),
            hidden_size=256,
            num_attention_heads=4,
            intermediate_size=1024,
        ),
        key("embedding_size", "dims.embed", default=128, read=_embed, write=lambda value, d: d.dims.embed_width),
        key("max_position_embeddings", "dims.context", default=512),
        *ids(pad=0, bos=None, eos=None),
    ),
    rows=_rows,
    prefix="electra.",
    fixed=ABSOLUTE,
    fixed_in={"ForMultipleChoice": SUMMARY},
    unused=reasons("dropout of a task head, which its spec says", "summary_last_dropout summary_first_dropout"),
    renames=GAMMA,
    unused_tensors={r"(^|\.)embeddings\.(position|token_type)_ids$": "a buffer"},
)
