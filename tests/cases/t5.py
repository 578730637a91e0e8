"""T5, mT5 and what came of them: cases of the reference, and exact counts."""

from __future__ import annotations

import torch
import transformers as hf

from oracle_types import Case

T5 = dict(vocab_size=93, d_model=36, d_kv=10, d_ff=50, num_layers=2, num_decoder_layers=3, num_heads=4,
          relative_attention_num_buckets=8, relative_attention_max_distance=20, dropout_rate=0.0,
          decoder_start_token_id=0)  # fmt: skip

CASES: dict[str, Case] = {
    "t5": ("T5ForConditionalGeneration", hf.T5Config, T5),
    "t5-gated": ("T5ForConditionalGeneration", hf.T5Config, T5 | dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False)),
    "t5-silu": ("T5ForConditionalGeneration", hf.T5Config, T5 | dict(feed_forward_proj="gated-silu", layer_norm_epsilon=1e-3)),
    "t5-model": ("T5Model", hf.T5Config, T5),
    "t5-encoder-model": ("T5EncoderModel", hf.T5Config, T5 | dict(relative_attention_num_buckets=12)),
    "t5-classify": ("T5ForSequenceClassification", hf.T5Config, T5 | dict(num_labels=3)),
    "t5-multi": ("T5ForSequenceClassification", hf.T5Config, T5 | dict(num_labels=4, problem_type="multi_label_classification", feed_forward_proj="gated-gelu")),
    "t5-tag": ("T5ForTokenClassification", hf.T5Config, T5 | dict(num_labels=5)),
    "t5-answer": ("T5ForQuestionAnswering", hf.T5Config, T5 | dict(num_labels=2)),
    "mt5": ("MT5ForConditionalGeneration", hf.MT5Config, T5),
    "mt5-relu": ("MT5ForConditionalGeneration", hf.MT5Config, T5 | dict(feed_forward_proj="relu", d_kv=7)),
    "mt5-model": ("MT5Model", hf.MT5Config, T5),
    "mt5-encoder-model": ("MT5EncoderModel", hf.MT5Config, T5),
    "mt5-classify": ("MT5ForSequenceClassification", hf.MT5Config, T5 | dict(num_labels=2)),
    "mt5-tag": ("MT5ForTokenClassification", hf.MT5Config, T5 | dict(num_labels=3)),
    "umt5": ("UMT5ForConditionalGeneration", hf.UMT5Config, T5),
    "umt5-model": ("UMT5Model", hf.UMT5Config, T5 | dict(feed_forward_proj="gated-silu", num_layers=3)),
    "umt5-encoder-model": ("UMT5EncoderModel", hf.UMT5Config, T5 | dict(relative_attention_num_buckets=12)),
    "umt5-tag": ("UMT5ForTokenClassification", hf.UMT5Config, T5 | dict(num_labels=3)),
    "umt5-classify": ("UMT5ForSequenceClassification", hf.UMT5Config, T5 | dict(num_labels=3)),
    "umt5-answer": ("UMT5ForQuestionAnswering", hf.UMT5Config, T5 | dict(num_labels=2)),
    "mt5-answer": ("MT5ForQuestionAnswering", hf.MT5Config, T5 | dict(num_labels=2)),
}  # fmt: skip

COUNTS = {
    "t5-small": 60_506_624,
    "t5-base": 222_903_552,
    "t5-large": 737_668_096,
    "t5-3b": 2_851_598_336,
    "t5-11b": 11_307_321_344,
    "t5-v1.1-small": 76_961_152,
    "t5-v1.1-base": 247_577_856,
    "t5-v1.1-large": 783_150_080,
    "t5-v1.1-xl": 2_849_757_184,
    "t5-v1.1-xxl": 11_135_332_352,
    "t5-lm-small": 76_961_152,
    "t5-lm-base": 247_577_856,
    "t5-lm-large": 783_150_080,
    "t5-lm-xl": 2_849_757_184,
    "t5-lm-xxl": 11_135_332_352,
    "flan-t5-small": 76_961_152,
    "flan-t5-base": 247_577_856,
    "flan-t5-large": 783_150_080,
    "flan-t5-xl": 2_849_757_184,
    "flan-t5-xxl": 11_135_332_352,
    "mt5-small": 300_176_768,
    "mt5-base": 582_401_280,
    "mt5-large": 1_229_581_312,
    "mt5-xl": 3_742_619_648,
    "mt5-xxl": 12_921_057_280,
    "ul2-20b": 19_591_209_984,
}


def extra(case: str, batch: dict[str, torch.Tensor], generator: torch.Generator) -> dict[str, torch.Tensor]:
    rows, length = batch["input_ids"].shape
    if case.endswith(("encoder-model", "tag", "answer")):
        return batch
    if case.endswith(("classify", "multi")):  # its head reads the last </s> of a text
        last = (torch.arange(length) * batch["attention_mask"]).argmax(1)
        batch["input_ids"][torch.arange(rows), last] = 1
        return batch
    batch["decoder_input_ids"] = torch.randint(1, CASES[case][2]["vocab_size"], (rows, length + 5), generator=generator)
    batch["decoder_attention_mask"] = torch.ones(rows, length + 5, dtype=torch.int64)
    batch["decoder_attention_mask"][1, length - 2 :] = 0
    return batch
