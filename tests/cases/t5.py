"""T5 and its second version: cases of the reference, and exact counts."""

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
}


def extra(case: str, batch: dict[str, torch.Tensor], generator: torch.Generator) -> dict[str, torch.Tensor]:
    rows, length = batch["input_ids"].shape
    batch["decoder_input_ids"] = torch.randint(1, CASES[case][2]["vocab_size"], (rows, length + 5), generator=generator)
    batch["decoder_attention_mask"] = torch.ones(rows, length + 5, dtype=torch.int64)
    batch["decoder_attention_mask"][1, length - 2 :] = 0
    return batch
