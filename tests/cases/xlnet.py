"""XLNet: cases of the reference, and exact counts."""

from __future__ import annotations

import torch
import transformers as hf

from oracle_types import Case

XLNET = dict(vocab_size=95, d_model=36, n_layer=3, n_head=3, d_inner=50, dropout=0.0, summary_last_dropout=0.0,
             mem_len=None)  # fmt: skip

CASES: dict[str, Case] = {
    "xlnet": ("XLNetLMHeadModel", hf.XLNetConfig, XLNET),
    "xlnet-memory": ("XLNetLMHeadModel", hf.XLNetConfig, XLNET | dict(mem_len=7, reuse_len=9)),
    "xlnet-relu": ("XLNetLMHeadModel", hf.XLNetConfig, XLNET | dict(ff_activation="relu", layer_norm_eps=1e-3, d_model=40, n_head=5)),
    "xlnet-untied": ("XLNetLMHeadModel", hf.XLNetConfig, XLNET | dict(tie_word_embeddings=False, ff_activation="gelu_new")),
    "xlnet-model": ("XLNetModel", hf.XLNetConfig, XLNET | dict(pad_token_id=0)),
    "xlnet-classify": ("XLNetForSequenceClassification", hf.XLNetConfig, XLNET | dict(num_labels=3)),
    "xlnet-regress": ("XLNetForSequenceClassification", hf.XLNetConfig, XLNET | dict(num_labels=1)),
    "xlnet-tag": ("XLNetForTokenClassification", hf.XLNetConfig, XLNET | dict(num_labels=4)),
    "xlnet-answer": ("XLNetForQuestionAnsweringSimple", hf.XLNetConfig, XLNET),
    "xlnet-choose": ("XLNetForMultipleChoice", hf.XLNetConfig, XLNET),
}  # fmt: skip

COUNTS = {"xlnet-base": 116_750_336, "xlnet-large": 360_300_800}


def extra(case: str, batch: dict[str, torch.Tensor], generator: torch.Generator) -> dict[str, torch.Tensor]:
    batch["token_type_ids"] = torch.randint(0, 4, batch["input_ids"].shape, generator=generator)
    return batch
