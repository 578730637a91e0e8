"""LLaMA and Mistral: cases of the reference, and exact counts."""

from __future__ import annotations

import transformers as hf

from oracle_types import Case

LLAMA = dict(vocab_size=97, hidden_size=36, intermediate_size=52, num_hidden_layers=3, num_attention_heads=6,
             num_key_value_heads=2, max_position_embeddings=64, pad_token_id=None)  # fmt: skip
LLAMA3 = dict(rope_type="llama3", rope_theta=500.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=32)  # fmt: skip

CASES: dict[str, Case] = {
    "llama": ("LlamaForCausalLM", hf.LlamaConfig, LLAMA),
    "llama-mha-tied": ("LlamaForCausalLM", hf.LlamaConfig, LLAMA | dict(num_key_value_heads=6, tie_word_embeddings=True)),
    "llama-biased": ("LlamaForCausalLM", hf.LlamaConfig, LLAMA | dict(attention_bias=True, mlp_bias=True, head_dim=10)),
    "llama-mqa": ("LlamaForCausalLM", hf.LlamaConfig, LLAMA | dict(num_key_value_heads=1, rms_norm_eps=1e-2)),
    "llama-linear": ("LlamaForCausalLM", hf.LlamaConfig, LLAMA | dict(rope_parameters=dict(rope_type="linear", factor=2.5, rope_theta=2000.0))),
    "llama-llama3": ("LlamaForCausalLM", hf.LlamaConfig, LLAMA | dict(rope_parameters=LLAMA3)),
    "llama-model": ("LlamaModel", hf.LlamaConfig, LLAMA),
    "mistral": ("MistralForCausalLM", hf.MistralConfig, LLAMA | dict(sliding_window=5)),
    "mistral-full": ("MistralForCausalLM", hf.MistralConfig, LLAMA | dict(sliding_window=None, num_key_value_heads=3)),
}  # fmt: skip

COUNTS = {
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-33b": 32_528_943_616,
    "llama-65b": 65_285_660_672,
    "mistral-7b": 7_241_732_096,
    "mistral-7b-v0.2": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
}
