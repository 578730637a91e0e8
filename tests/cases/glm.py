"""GLM to GLM-4 and PaLM to Command R: cases of the reference (`glm`, `glm4`, `cohere`), and exact counts."""

from __future__ import annotations

import transformers as hf

from oracle_types import Case

GLM = dict(vocab_size=97, hidden_size=36, intermediate_size=52, num_hidden_layers=3, num_attention_heads=6,
           num_key_value_heads=2, head_dim=8, max_position_embeddings=64, pad_token_id=3, eos_token_id=[2, 7])  # fmt: skip
ROPE = dict(rope_type="default", rope_theta=300.0)
COHERE = dict(vocab_size=97, hidden_size=36, intermediate_size=52, num_hidden_layers=3, num_attention_heads=6,
              num_key_value_heads=2, max_position_embeddings=64, pad_token_id=3, bos_token_id=1, eos_token_id=2)  # fmt: skip
# as PaLM: one key head, wider heads than d_model / heads, an inner width of 4 d, logits times d ** -0.5
PALM = COHERE | dict(num_key_value_heads=1, head_dim=10, intermediate_size=144, logit_scale=36**-0.5,
                     layer_norm_eps=1e-6, rope_parameters=dict(rope_type="default", rope_theta=10_000.0))  # fmt: skip

CASES: dict[str, Case] = {
    "glm4": ("GlmForCausalLM", hf.GlmConfig, GLM),
    "glm4-third": ("GlmForCausalLM", hf.GlmConfig, GLM | dict(head_dim=12, num_key_value_heads=6, rope_parameters=ROPE | dict(partial_rotary_factor=0.34))),
    "glm4-whole": ("GlmForCausalLM", hf.GlmConfig, GLM | dict(num_key_value_heads=1, attention_bias=False, tie_word_embeddings=True, rms_norm_eps=1e-2, rope_parameters=ROPE | dict(partial_rotary_factor=1.0))),
    "glm4-linear": ("GlmForCausalLM", hf.GlmConfig, GLM | dict(hidden_act="gelu_new", rope_parameters=dict(rope_type="linear", factor=2.5, rope_theta=2000.0, partial_rotary_factor=0.5))),
    "glm4-model": ("GlmModel", hf.GlmConfig, GLM),
    "glm4-classify": ("GlmForSequenceClassification", hf.GlmConfig, GLM | dict(num_labels=3)),
    "glm4-regress": ("GlmForSequenceClassification", hf.GlmConfig, GLM | dict(num_labels=1)),
    "glm4-tag": ("GlmForTokenClassification", hf.GlmConfig, GLM | dict(num_labels=4)),
    "glm4-0414": ("Glm4ForCausalLM", hf.Glm4Config, GLM | dict(rms_norm_eps=1e-5)),
    "glm4-0414-unbiased": ("Glm4ForCausalLM", hf.Glm4Config, GLM | dict(attention_bias=False, head_dim=12, num_key_value_heads=3)),
    "glm4-0414-model": ("Glm4Model", hf.Glm4Config, GLM),
    "glm4-0414-classify": ("Glm4ForSequenceClassification", hf.Glm4Config, GLM | dict(num_labels=3)),
    "glm4-0414-tag": ("Glm4ForTokenClassification", hf.Glm4Config, GLM),
    "cohere": ("CohereForCausalLM", hf.CohereConfig, COHERE),
    "cohere-mha": ("CohereForCausalLM", hf.CohereConfig, COHERE | dict(num_key_value_heads=None, attention_bias=True, logit_scale=0.8333, layer_norm_eps=1e-2)),
    "cohere-untied": ("CohereForCausalLM", hf.CohereConfig, COHERE | dict(tie_word_embeddings=False, hidden_act="gelu", rope_parameters=dict(rope_type="linear", factor=2.5, rope_theta=2000.0))),
    "cohere-norms": ("CohereForCausalLM", hf.CohereConfig, COHERE | dict(use_qk_norm=True, layer_norm_eps=1e-2)),
    "cohere-model": ("CohereModel", hf.CohereConfig, COHERE),
    "palm": ("CohereForCausalLM", hf.CohereConfig, PALM),
    "palm-wide": ("CohereForCausalLM", hf.CohereConfig, PALM | dict(hidden_size=64, num_attention_heads=4, head_dim=32, intermediate_size=256, logit_scale=64**-0.5)),
}  # fmt: skip

COUNTS = {
    "glm-base": 109_338_624,
    "glm-large": 334_688_256,
    "glm-410m": 410_265_600,
    "glm-515m": 514_632_960,
    "glm-2b": 1_920_122_880,
    "glm-10b": 9_880_682_496,
    "glm-large-chinese": 355_659_776,
    "glm-10b-chinese": 9_879_633_920,
    "glm-130b": 128_697_794_560,
    "chatglm-6b": 6_173_286_400,
    "chatglm-6b-v0": 6_255_206_400,
    "chatglm2-6b": 6_243_584_000,
    "chatglm3-6b": 6_243_584_000,
    "glm-4-9b": 9_399_951_360,
    "glm-4-9b-chat": 9_399_951_360,
    "glm-4-9b-chat-1m": 9_483_857_920,
    "glm-4-9b-0414": 9_400_279_040,
    "glm-4-32b-0414": 32_566_081_536,
    "palm-8b": 8_632_012_800,
    "palm-62b": 62_495_662_080,
    "palm-540b": 540_356_474_880,
    "command-r-v01": 34_980_831_232,
    "command-r-08-2024": 32_296_476_672,
    "command-r-plus": 103_810_674_688,
    "aya-23-8b": 8_028_033_024,
}
