"""GPT-1, GPT-2 and GPT-3: cases of the reference, and exact counts."""

from __future__ import annotations

import transformers as hf

from oracle_types import Case

GPT = dict(vocab_size=91, n_positions=40, n_embd=36, n_layer=3, n_head=3,
           resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0)  # fmt: skip

CASES: dict[str, Case] = {
    "gpt1": ("OpenAIGPTLMHeadModel", hf.OpenAIGPTConfig, GPT),
    "gpt1-model": ("OpenAIGPTModel", hf.OpenAIGPTConfig, GPT | dict(afn="relu", n_embd=40, n_head=5)),
    "gpt2": ("GPT2LMHeadModel", hf.GPT2Config, GPT),
    "gpt2-odd": ("GPT2LMHeadModel", hf.GPT2Config, GPT | dict(n_inner=31, activation_function="gelu", layer_norm_epsilon=1e-2)),
    "gpt2-unscaled": ("GPT2LMHeadModel", hf.GPT2Config, GPT | dict(scale_attn_weights=False, tie_word_embeddings=False)),
    "gpt2-by-layer": ("GPT2LMHeadModel", hf.GPT2Config, GPT | dict(scale_attn_by_inverse_layer_idx=True, reorder_and_upcast_attn=True, activation_function="tanh")),
    "gpt2-model": ("GPT2Model", hf.GPT2Config, GPT),
}  # fmt: skip

COUNTS = {
    "gpt1": 116_534_784,
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "gpt3-small": 125_226_240,
    "gpt3-medium": 355_871_744,
    "gpt3-large": 760_300_032,
    "gpt3-xl": 1_315_723_264,
    "gpt3-2.7b": 2_651_553_280,
    "gpt3-6.7b": 6_658_404_352,
    "gpt3-13b": 12_853_386_240,
    "gpt3-175b": 174_604_259_328,
}
