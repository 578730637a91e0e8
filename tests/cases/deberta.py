"""DeBERTa in its three versions: cases of the reference, and exact counts."""

from __future__ import annotations

import torch
import transformers as hf

from oracle_types import Case

SMALL = dict(vocab_size=99, hidden_size=36, num_hidden_layers=3, num_attention_heads=3, intermediate_size=50,
             max_position_embeddings=40, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
             relative_attention=True, position_biased_input=False)  # fmt: skip
BOTH = SMALL | dict(pos_att_type="c2p|p2c")  # windows wider than the texts of the tests
NEAR = BOTH | dict(max_relative_positions=6)  # and narrower
V2 = BOTH | dict(position_buckets=8, share_att_key=True, norm_rel_ebd="layer_norm", max_relative_positions=-1)
CONV = V2 | dict(conv_kernel_size=3, conv_act="gelu")
DEFAULT = SMALL | dict(relative_attention=False, position_biased_input=True)
WIDE = V2 | dict(position_buckets=32)  # all texts of the tests are within the buckets, and within the exact ones

CASES: dict[str, Case] = {
    "deberta-mlm": ("DebertaForMaskedLM", hf.DebertaConfig, BOTH),
    "deberta-near": ("DebertaForMaskedLM", hf.DebertaConfig, NEAR | dict(hidden_act="gelu_new", layer_norm_eps=1e-3)),
    "deberta-c2p": ("DebertaForMaskedLM", hf.DebertaConfig, NEAR | dict(pos_att_type=["c2p"], type_vocab_size=3)),
    "deberta-p2c-model": ("DebertaModel", hf.DebertaConfig, BOTH | dict(pos_att_type=["p2c"], num_attention_heads=6)),
    "deberta-untied": ("DebertaForMaskedLM", hf.DebertaConfig, BOTH | dict(tie_word_embeddings=False, pad_token_id=3)),
    "deberta-model": ("DebertaModel", hf.DebertaConfig, NEAR | dict(hidden_size=40, num_attention_heads=5)),
    "deberta-classify": ("DebertaForSequenceClassification", hf.DebertaConfig, BOTH | dict(num_labels=3, problem_type="single_label_classification")),
    "deberta-regress": ("DebertaForSequenceClassification", hf.DebertaConfig, NEAR | dict(num_labels=1)),
    "deberta-tag": ("DebertaForTokenClassification", hf.DebertaConfig, BOTH | dict(num_labels=5)),
    "deberta-answer": ("DebertaForQuestionAnswering", hf.DebertaConfig, NEAR),
    "deberta-default": ("DebertaForMaskedLM", hf.DebertaConfig, DEFAULT),
    "deberta-absolute": ("DebertaForMaskedLM", hf.DebertaConfig, NEAR | dict(position_biased_input=True, type_vocab_size=2)),
    "deberta-v2-default": ("DebertaV2ForMaskedLM", hf.DebertaV2Config, DEFAULT | dict(pos_att_type="c2p|p2c", conv_kernel_size=3)),
    "deberta-v2-absolute": ("DebertaV2ForMaskedLM", hf.DebertaV2Config, CONV | dict(position_biased_input=True, position_buckets=2, conv_act="tanh")),
    "deberta-v2-mlm": ("DebertaV2ForMaskedLM", hf.DebertaV2Config, CONV),
    "deberta-v2-wide": ("DebertaV2ForMaskedLM", hf.DebertaV2Config, CONV | dict(position_buckets=32, conv_act="relu")),
    "deberta-v2-apart": ("DebertaV2ForMaskedLM", hf.DebertaV2Config, V2 | dict(share_att_key=False, norm_rel_ebd="none")),
    "deberta-v2-plain": ("DebertaV2ForMaskedLM", hf.DebertaV2Config, V2 | dict(position_buckets=-1, conv_kernel_size=5, conv_act="gelu")),
    "deberta-v2-odd": ("DebertaV2ForMaskedLM", hf.DebertaV2Config, V2 | dict(position_buckets=7, pos_att_type="p2c", hidden_act="relu")),
    "deberta-v2-untied": ("DebertaV2ForMaskedLM", hf.DebertaV2Config, CONV | dict(tie_word_embeddings=False)),
    "deberta-v2-model": ("DebertaV2Model", hf.DebertaV2Config, CONV | dict(layer_norm_eps=1e-3, hidden_size=40, num_attention_heads=5)),
    "deberta-v2-segments-model": ("DebertaV2Model", hf.DebertaV2Config, WIDE | dict(type_vocab_size=2, pos_att_type=["c2p"])),
    "deberta-v3-mlm": ("DebertaV2ForMaskedLM", hf.DebertaV2Config, WIDE),
    "deberta-v3-model": ("DebertaV2Model", hf.DebertaV2Config, V2),
    "deberta-v2-classify": ("DebertaV2ForSequenceClassification", hf.DebertaV2Config, CONV | dict(num_labels=3, problem_type="single_label_classification")),
    "deberta-v3-multi": ("DebertaV2ForSequenceClassification", hf.DebertaV2Config, V2 | dict(num_labels=4, problem_type="multi_label_classification")),
    "deberta-v3-tag": ("DebertaV2ForTokenClassification", hf.DebertaV2Config, WIDE | dict(num_labels=5)),
    "deberta-v2-answer": ("DebertaV2ForQuestionAnswering", hf.DebertaV2Config, CONV),
    "deberta-v2-choose": ("DebertaV2ForMultipleChoice", hf.DebertaV2Config, CONV),
}  # fmt: skip

# as the reference counts its models, with and without BERT's head
MASKED = {
    "deberta-base": 139_244_121,
    "deberta-large": 406_264_921,
    "deberta-xlarge": 758_905_945,
    "deberta-v2-xlarge": 887_085_156,
    "deberta-v2-xxlarge": 1_567_041_636,
    "deberta-v3-xsmall-generator": 60_312_036,
    "deberta-v3-small-generator": 120_760_932,
    "deberta-v3-base-generator": 142_024_548,
    "deberta-v3-large-generator": 284_037_220,
    "mdeberta-v3-base-generator": 236_534_648,
}
PLAIN = {
    "deberta-base": 138_601_728,
    "deberta-large": 405_163_008,
    "deberta-xlarge": 757_804_032,
    "deberta-v2-xlarge": 884_593_152,
    "deberta-v2-xxlarge": 1_564_549_632,
    "deberta-v3-xsmall": 70_682_112,
    "deberta-v3-small": 141_304_320,
    "deberta-v3-base": 183_831_552,
    "deberta-v3-large": 434_012_160,
    "mdeberta-v3-base": 278_218_752,
}
WIDTH = {"deberta-large": 1024, "deberta-xlarge": 1024, "deberta-v2-xlarge": 1536, "deberta-v2-xxlarge": 1536,
         "deberta-v3-xsmall": 384, "deberta-v3-large": 1024, "deberta-v3-xsmall-generator": 384,
         "deberta-v3-large-generator": 1024}  # fmt: skip


def width(name: str) -> int:
    return WIDTH.get(name, 768)


COUNTS = {
    # the reference leaves the 512 positions of the enhanced mask decoder out
    **{name: n + 512 * width(name) for name, n in MASKED.items()},
    # and the detector: dense, norm, linear
    **{n: PLAIN[n] + width(n) ** 2 + 4 * width(n) + 1 for n in PLAIN if "v3" in n},
}
BODIES = {name: n + width(name) ** 2 + width(name) for name, n in PLAIN.items()}  # with a dense layer for the pooler


def extra(case: str, batch: dict[str, torch.Tensor], generator: torch.Generator) -> dict[str, torch.Tensor]:
    if kinds := CASES[case][2].get("type_vocab_size", 0):
        batch["token_type_ids"] = torch.randint(0, kinds, batch["input_ids"].shape, generator=generator)
    return batch
