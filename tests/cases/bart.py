"""BART and mBART: cases of the reference, and exact counts."""

from __future__ import annotations

import torch
import transformers as hf

from oracle_types import Case

BART = dict(vocab_size=89, d_model=36, encoder_layers=2, decoder_layers=3, encoder_attention_heads=3,
            decoder_attention_heads=3, encoder_ffn_dim=50, decoder_ffn_dim=50, max_position_embeddings=40,
            dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, forced_eos_token_id=None)  # fmt: skip
MBART = BART | dict(vocab_size=95, scale_embedding=True, decoder_start_token_id=2)

CASES: dict[str, Case] = {
    "bart": ("BartForConditionalGeneration", hf.BartConfig, BART),
    "bart-odd": ("BartForConditionalGeneration", hf.BartConfig, BART | dict(activation_function="relu", scale_embedding=True, encoder_layers=3, decoder_layers=1, d_model=44, encoder_attention_heads=4, decoder_attention_heads=4)),
    "bart-apart": ("BartForConditionalGeneration", hf.BartConfig, BART | dict(decoder_attention_heads=6, decoder_ffn_dim=30, encoder_layerdrop=0.1)),
    "bart-model": ("BartModel", hf.BartConfig, BART | dict(pad_token_id=3)),
    "bart-classify": ("BartForSequenceClassification", hf.BartConfig, BART | dict(num_labels=3)),
    "bart-regress": ("BartForSequenceClassification", hf.BartConfig, BART | dict(num_labels=1)),
    "bart-multi": ("BartForSequenceClassification", hf.BartConfig, BART | dict(num_labels=4, problem_type="multi_label_classification")),
    "bart-answer": ("BartForQuestionAnswering", hf.BartConfig, BART | dict(num_labels=2)),
    "mbart": ("MBartForConditionalGeneration", hf.MBartConfig, MBART),
    "mbart-relu": ("MBartForConditionalGeneration", hf.MBartConfig, MBART | dict(activation_function="relu", decoder_layers=2, scale_embedding=False)),
    "mbart-model": ("MBartModel", hf.MBartConfig, MBART),
    "mbart-classify": ("MBartForSequenceClassification", hf.MBartConfig, MBART | dict(num_labels=5)),
    "mbart-answer": ("MBartForQuestionAnswering", hf.MBartConfig, MBART),
}  # fmt: skip

COUNTS = {
    "bart-base": 139_420_416,
    "bart-large": 406_291_456,
    "bart-large-cnn": 406_290_432,
    "bart-large-xsum": 406_290_432,
    "bart-large-mnli": 407_344_131,
    "mbart-large-cc25": 610_851_840,
    "mbart-large-en-ro": 610_851_840,
    "mbart-large-50": 610_879_488,
    "mbart-large-50-many-to-many-mmt": 610_879_488,
    "mbart-large-50-one-to-many-mmt": 610_879_488,
    "mbart-large-50-many-to-one-mmt": 610_879_488,
}


def extra(case: str, batch: dict[str, torch.Tensor], generator: torch.Generator) -> dict[str, torch.Tensor]:
    rows, length = batch["input_ids"].shape
    if case.endswith("classify") or case.endswith(("regress", "multi")):  # its head reads the last </s> of a text
        real = batch["attention_mask"].bool()
        last = (torch.arange(length) * real).argmax(1)
        batch["input_ids"][torch.arange(rows), last] = 2
        batch["input_ids"][torch.arange(rows), last - 3] = 2
    elif not case.endswith("answer"):
        batch["decoder_input_ids"] = torch.randint(
            4, CASES[case][2]["vocab_size"], (rows, length + 5), generator=generator
        )
        batch["decoder_attention_mask"] = torch.ones(rows, length + 5, dtype=torch.int64)
        batch["decoder_attention_mask"][1, length - 2 :] = 0
    return batch
