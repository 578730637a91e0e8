"""ALBERT, ELECTRA, XLM, XLM-R and the distilled ones: cases of the reference, and exact counts."""

from __future__ import annotations

import torch
import transformers as hf

from oracle_types import Case

QUIET = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
BERT = dict(vocab_size=99, hidden_size=36, num_hidden_layers=3, num_attention_heads=3, intermediate_size=50,
            max_position_embeddings=40) | QUIET  # fmt: skip
ALBERT = BERT | dict(embedding_size=20, classifier_dropout_prob=0.0)
GROUPS = ALBERT | dict(num_hidden_layers=5, num_hidden_groups=2, inner_group_num=3)
ELECTRA = BERT | dict(embedding_size=20, summary_last_dropout=0.0)
FAIRSEQ = BERT | dict(type_vocab_size=1, layer_norm_eps=1e-5)
XLM = dict(vocab_size=99, emb_dim=36, n_layers=3, n_heads=3, max_position_embeddings=40, dropout=0.0,
           attention_dropout=0.0, n_langs=4, lang2id={"en": 0, "fr": 1, "de": 2, "ro": 3})  # fmt: skip
DISTIL = dict(vocab_size=99, dim=36, n_layers=3, n_heads=3, hidden_dim=50, max_position_embeddings=40, dropout=0.0,
              attention_dropout=0.0, qa_dropout=0.0, seq_classif_dropout=0.0)  # fmt: skip


def _tasks(prefix: str, name: str, config: type, fields: dict, simple: str = "") -> dict[str, Case]:
    """A case for each task head."""
    return {
        f"{name}-classify": (f"{prefix}ForSequenceClassification", config, fields | dict(num_labels=3)),
        f"{name}-regress": (f"{prefix}ForSequenceClassification", config, fields | dict(num_labels=1)),
        f"{name}-tag": (f"{prefix}ForTokenClassification", config, fields | dict(num_labels=5)),
        f"{name}-answer": (f"{prefix}ForQuestionAnswering{simple}", config, fields),
        f"{name}-choose": (f"{prefix}ForMultipleChoice", config, fields),
    }


CASES: dict[str, Case] = {
    "albert-pretraining": ("AlbertForPreTraining", hf.AlbertConfig, ALBERT),
    "albert-mlm": ("AlbertForMaskedLM", hf.AlbertConfig, ALBERT | dict(hidden_act="gelu", layer_norm_eps=1e-3)),
    "albert-model": ("AlbertModel", hf.AlbertConfig, ALBERT | dict(type_vocab_size=3)),
    "albert-groups": ("AlbertForPreTraining", hf.AlbertConfig, GROUPS),
    "albert-inner-model": ("AlbertModel", hf.AlbertConfig, ALBERT | dict(inner_group_num=2, hidden_act="relu")),
    "albert-wide": ("AlbertForMaskedLM", hf.AlbertConfig, ALBERT | dict(embedding_size=36)),
    "albert-untied": ("AlbertForMaskedLM", hf.AlbertConfig, ALBERT | dict(tie_word_embeddings=False)),
    **_tasks("Albert", "albert", hf.AlbertConfig, ALBERT),
    "electra-detect": ("ElectraForPreTraining", hf.ElectraConfig, ELECTRA),
    "electra-detect-relu": ("ElectraForPreTraining", hf.ElectraConfig, ELECTRA | dict(embedding_size=36, hidden_act="relu")),
    "electra-model": ("ElectraModel", hf.ElectraConfig, ELECTRA | dict(type_vocab_size=3)),
    "electra-equal-model": ("ElectraModel", hf.ElectraConfig, ELECTRA | dict(embedding_size=36)),
    "electra-generator": ("ElectraForMaskedLM", hf.ElectraConfig, ELECTRA | dict(embedding_size=44)),
    "electra-generator-relu": ("ElectraForMaskedLM", hf.ElectraConfig, ELECTRA | dict(hidden_act="relu", layer_norm_eps=1e-3)),
    "electra-generator-untied": ("ElectraForMaskedLM", hf.ElectraConfig, ELECTRA | dict(tie_word_embeddings=False)),
    **_tasks("Electra", "electra", hf.ElectraConfig, ELECTRA),
    "xlm-mlm": ("XLMWithLMHeadModel", hf.XLMConfig, XLM),
    "xlm-mlm-one": ("XLMWithLMHeadModel", hf.XLMConfig, XLM | dict(n_langs=1, lang2id={}, gelu_activation=False, pad_token_id=4)),
    "xlm-mlm-off": ("XLMWithLMHeadModel", hf.XLMConfig, XLM | dict(use_lang_emb=False, layer_norm_eps=1e-3)),
    "xlm-mlm-sines": ("XLMWithLMHeadModel", hf.XLMConfig, XLM | dict(sinusoidal_embeddings=True)),
    "xlm-mlm-untied": ("XLMWithLMHeadModel", hf.XLMConfig, XLM | dict(tie_word_embeddings=False)),
    "xlm-model": ("XLMModel", hf.XLMConfig, XLM),
    "xlm-clm": ("XLMWithLMHeadModel", hf.XLMConfig, XLM | dict(causal=True)),
    "xlm-clm-one": ("XLMWithLMHeadModel", hf.XLMConfig, XLM | dict(causal=True, n_langs=1, lang2id={}, emb_dim=40, n_heads=5)),
    "xlm-clm-model": ("XLMModel", hf.XLMConfig, XLM | dict(causal=True)),
    **_tasks("XLM", "xlm", hf.XLMConfig, XLM | dict(summary_first_dropout=0.0), "Simple"),
    "xlm-choose-wide": ("XLMForMultipleChoice", hf.XLMConfig, XLM | dict(num_labels=5)),
    "xlm-clm-classify": ("XLMForSequenceClassification", hf.XLMConfig, XLM | dict(causal=True, num_labels=3)),
    "xlm-roberta-mlm": ("XLMRobertaForMaskedLM", hf.XLMRobertaConfig, FAIRSEQ),
    "xlm-roberta-untied": ("XLMRobertaForMaskedLM", hf.XLMRobertaConfig, FAIRSEQ | dict(tie_word_embeddings=False, hidden_act="relu")),
    "xlm-roberta-model": ("XLMRobertaModel", hf.XLMRobertaConfig, FAIRSEQ | dict(pad_token_id=3, type_vocab_size=2)),
    **_tasks("XLMRoberta", "xlm-roberta", hf.XLMRobertaConfig, FAIRSEQ),
    "xlm-roberta-xl-mlm": ("XLMRobertaXLForMaskedLM", hf.XLMRobertaXLConfig, FAIRSEQ),
    "xlm-roberta-xl-untied": ("XLMRobertaXLForMaskedLM", hf.XLMRobertaXLConfig, FAIRSEQ | dict(tie_word_embeddings=False, hidden_act="relu")),
    "xlm-roberta-xl-model": ("XLMRobertaXLModel", hf.XLMRobertaXLConfig, FAIRSEQ | dict(pad_token_id=3, layer_norm_eps=1e-3)),
    **_tasks("XLMRobertaXL", "xlm-roberta-xl", hf.XLMRobertaXLConfig, FAIRSEQ),
    "distilbert-mlm": ("DistilBertForMaskedLM", hf.DistilBertConfig, DISTIL),
    "distilbert-relu": ("DistilBertForMaskedLM", hf.DistilBertConfig, DISTIL | dict(activation="relu", dim=40, n_heads=5)),
    "distilbert-sines": ("DistilBertForMaskedLM", hf.DistilBertConfig, DISTIL | dict(sinusoidal_pos_embds=True)),
    "distilbert-untied": ("DistilBertForMaskedLM", hf.DistilBertConfig, DISTIL | dict(tie_word_embeddings=False)),
    "distilbert-model": ("DistilBertModel", hf.DistilBertConfig, DISTIL),
    **_tasks("DistilBert", "distilbert", hf.DistilBertConfig, DISTIL),
}  # fmt: skip

MINIS = {  # layers, width -> with the heads of pretraining, and with the pooler alone
    (2, 128): (4_433_468, 4_385_920), (2, 256): (9_688_380, 9_591_040), (2, 512): (22_754_108, 22_458_880),
    (2, 768): (39_227_708, 38_603_520), (4, 128): (4_830_012, 4_782_464), (4, 256): (11_267_900, 11_170_560),
    (4, 512): (29_058_876, 28_763_648), (4, 768): (53_403_452, 52_779_264), (6, 128): (5_226_556, 5_179_008),
    (6, 256): (12_847_420, 12_750_080), (6, 512): (35_363_644, 35_068_416), (6, 768): (67_579_196, 66_955_008),
    (8, 128): (5_623_100, 5_575_552), (8, 256): (14_426_940, 14_329_600), (8, 512): (41_668_412, 41_373_184),
    (8, 768): (81_754_940, 81_130_752), (10, 128): (6_019_644, 5_972_096), (10, 256): (16_006_460, 15_909_120),
    (10, 512): (47_973_180, 47_677_952), (10, 768): (95_930_684, 95_306_496), (12, 128): (6_416_188, 6_368_640),
    (12, 256): (17_585_980, 17_488_640), (12, 512): (54_277_948, 53_982_720), (12, 768): (110_106_428, 109_482_240),
}  # fmt: skip

COUNTS = {
    **{f"bert-l{layers}-h{width}": n for (layers, width), (n, _) in MINIS.items()},
    **{f"albert-base-{v}": 11_813_810 for v in ("v1", "v2")},
    **{f"albert-large-{v}": 17_847_474 for v in ("v1", "v2")},
    **{f"albert-xlarge-{v}": 59_021_490 for v in ("v1", "v2")},
    **{f"albert-xxlarge-{v}": 223_158_450 for v in ("v1", "v2")},
    "electra-small": 13_549_057,
    "electra-base": 109_483_009,
    "electra-large": 335_142_913,
    "electra-small-generator": 13_546_682,
    "electra-small-generator-paper": 4_620_026,
    "electra-base-generator": 33_740_602,
    "electra-large-generator": 51_295_290,
    "xlm-mlm-en-2048": 667_119_041,
    "xlm-mlm-ende-1024": 142_422_203,
    "xlm-mlm-enfr-1024": 141_848_203,
    "xlm-mlm-enro-1024": 142_312_528,
    "xlm-mlm-xnli15-1024": 249_071_384,
    "xlm-mlm-tlm-xnli15-1024": 249_071_384,
    "xlm-mlm-17-1280": 571_696_960,
    "xlm-mlm-100-1280": 571_696_960,
    "xlm-clm-enfr-1024": 141_848_203,
    "xlm-clm-ende-1024": 142_422_203,
    "xlm-roberta-base": 278_295_186,
    "xlm-roberta-large": 560_142_482,
    "xlm-roberta-xl": 3_482_741_760,
    "xlm-roberta-xxl": 10_712_994_816,
    "distilbert-base-uncased": 66_985_530,
    "distilbert-base-cased": 65_812_036,
    "distilbert-base-multilingual-cased": 135_445_755,
    "distilroberta-base": 82_170_201,
    "minilm-l6-h384-uncased": 22_893_116,
    "minilm-l12-h384-uncased": 33_539_900,
    "all-minilm-l6-v2": 22_893_116,
    "all-minilm-l12-v2": 33_539_900,
}
BODIES = {
    **{f"bert-l{layers}-h{width}": n for (layers, width), (_, n) in MINIS.items()},
    **{f"albert-base-{v}": 11_683_584 for v in ("v1", "v2")},
    **{f"albert-large-{v}": 17_683_968 for v in ("v1", "v2")},
    **{f"albert-xlarge-{v}": 58_724_864 for v in ("v1", "v2")},
    **{f"albert-xxlarge-{v}": 222_595_584 for v in ("v1", "v2")},
    "xlm-roberta-base": 278_043_648,
    "xlm-roberta-large": 559_890_432,
    "xlm-roberta-xl": 3_482_485_760,
    "xlm-roberta-xxl": 10_712_735_744,
    "distilroberta-base": 82_118_400,
    "minilm-l6-h384-uncased": 22_713_216,
    "minilm-l12-h384-uncased": 33_360_000,
    "all-minilm-l6-v2": 22_713_216,
    "all-minilm-l12-v2": 33_360_000,
}
# of those that have no pooler, with no head at all
BARE = {
    "electra-small": 13_483_008,
    "electra-base": 108_891_648,
    "electra-large": 334_092_288,
    "xlm-mlm-en-2048": 667_088_896,
    "xlm-mlm-ende-1024": 142_357_504,
    "xlm-mlm-enfr-1024": 141_784_064,
    "xlm-mlm-enro-1024": 142_247_936,
    "xlm-mlm-xnli15-1024": 248_976_384,
    "xlm-mlm-17-1280": 571_496_960,
    "xlm-clm-enfr-1024": 141_784_064,
    "distilbert-base-uncased": 66_362_880,
    "distilbert-base-cased": 65_190_912,
    "distilbert-base-multilingual-cased": 134_734_080,
}
# the masked-LM class, which has no pooler
MASKED = {
    "albert-base-v2": 11_221_680,
    "albert-large-v2": 16_795_824,
    "albert-xlarge-v2": 54_821_040,
    "albert-xxlarge-v2": 206_368_944,
}


def extra(case: str, batch: dict[str, torch.Tensor], generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Segments where they differ, languages where there is a table of them."""
    config, fields = CASES[case][1:]
    if config in (hf.AlbertConfig, hf.ElectraConfig):
        kinds = fields.get("type_vocab_size", 2)
        batch["token_type_ids"] = torch.randint(0, kinds, batch["input_ids"].shape, generator=generator)
    if config is hf.XLMConfig and fields["n_langs"] > 1 and fields.get("use_lang_emb", True):
        batch["langs"] = torch.randint(0, fields["n_langs"], batch["input_ids"].shape, generator=generator)
    return batch
