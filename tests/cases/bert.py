"""BERT and RoBERTa: cases of the reference, and exact counts."""

from __future__ import annotations

import torch
import transformers as hf

from oracle_types import Case

BERT = dict(vocab_size=99, hidden_size=36, num_hidden_layers=3, num_attention_heads=3, intermediate_size=50,
            max_position_embeddings=40, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)  # fmt: skip

CASES: dict[str, Case] = {
    "bert-pretraining": ("BertForPreTraining", hf.BertConfig, BERT),
    "bert-mlm": ("BertForMaskedLM", hf.BertConfig, BERT | dict(hidden_act="gelu_new", layer_norm_eps=1e-3)),
    "bert-model": ("BertModel", hf.BertConfig, BERT | dict(type_vocab_size=5)),
    "bert-untied": ("BertForMaskedLM", hf.BertConfig, BERT | dict(tie_word_embeddings=False)),
    "roberta-mlm": ("RobertaForMaskedLM", hf.RobertaConfig, BERT | dict(type_vocab_size=1, layer_norm_eps=1e-5)),
    "roberta-relu": ("RobertaForMaskedLM", hf.RobertaConfig, BERT | dict(hidden_act="relu", type_vocab_size=1)),
    "bert-relu-model": ("BertModel", hf.BertConfig, BERT | dict(hidden_act="relu")),
    "roberta-model": ("RobertaModel", hf.RobertaConfig, BERT | dict(pad_token_id=4, type_vocab_size=2)),
    "bert-classify": ("BertForSequenceClassification", hf.BertConfig, BERT | dict(num_labels=3)),
    "bert-regress": ("BertForSequenceClassification", hf.BertConfig, BERT | dict(num_labels=1)),
    "bert-multi": ("BertForSequenceClassification", hf.BertConfig, BERT | dict(num_labels=4, problem_type="multi_label_classification")),
    "bert-tag": ("BertForTokenClassification", hf.BertConfig, BERT | dict(num_labels=5)),
    "bert-answer": ("BertForQuestionAnswering", hf.BertConfig, BERT),
    "bert-choose": ("BertForMultipleChoice", hf.BertConfig, BERT),
    "bert-pair": ("BertForNextSentencePrediction", hf.BertConfig, BERT),
    "roberta-classify": ("RobertaForSequenceClassification", hf.RobertaConfig, BERT | dict(num_labels=3)),
    "roberta-tag": ("RobertaForTokenClassification", hf.RobertaConfig, BERT),
    "roberta-answer": ("RobertaForQuestionAnswering", hf.RobertaConfig, BERT),
    "roberta-choose": ("RobertaForMultipleChoice", hf.RobertaConfig, BERT),
}  # fmt: skip

COUNTS = {
    "bert-base": 110_106_428,
    "bert-base-cased": 108_932_934,
    "bert-large": 336_226_108,
    "bert-large-cased": 334_661_958,
    "bert-base-multilingual-cased": 178_566_653,
    "bert-base-multilingual-uncased": 168_055_961,
    "bert-base-chinese": 102_882_442,
    "roberta-base": 124_697_433,
    "roberta-large": 355_412_057,
}
# without the heads of pretraining, with the pooler: what a bare encoder file holds
BODIES = {
    "bert-base": 109_482_240,
    "bert-base-cased": 108_310_272,
    "bert-large": 335_141_888,
    "bert-large-cased": 333_579_264,
    "bert-base-multilingual-cased": 177_853_440,
    "bert-base-multilingual-uncased": 167_356_416,
    "bert-base-chinese": 102_267_648,
    "bert-tiny": 4_385_920,
    "bert-mini": 11_170_560,
    "bert-small": 28_763_648,
    "bert-medium": 41_373_184,
    "roberta-base": 124_645_632,
    "roberta-large": 355_359_744,
}


def extra(case: str, batch: dict[str, torch.Tensor], generator: torch.Generator) -> dict[str, torch.Tensor]:
    kinds = CASES[case][2].get("type_vocab_size", 2)
    if case.startswith("bert"):
        batch["token_type_ids"] = torch.randint(0, kinds, batch["input_ids"].shape, generator=generator)
    return batch
