"""LLaMA's relatives (scalings, task heads), Mixtral, Qwen, Gemma, and task heads of the GPTs: cases and exact counts."""

from __future__ import annotations

import transformers as hf

from oracle_types import Case

from .gpt import GPT
from .llama import LLAMA

PAD = LLAMA | dict(pad_token_id=1)
DYNAMIC = dict(rope_type="dynamic", factor=2.0, rope_theta=1000.0)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=12, rope_theta=1000.0)
QWEN = LLAMA | dict(rope_parameters=dict(rope_type="default", rope_theta=1e6), bos_token_id=0, eos_token_id=0)
WINDOWS = dict(use_sliding_window=True, sliding_window=5, max_window_layers=1)
MIXTRAL = LLAMA | dict(num_local_experts=4, num_experts_per_tok=2)
MOE = QWEN | dict(num_experts=5, num_experts_per_tok=3, moe_intermediate_size=24, norm_topk_prob=True, head_dim=10)
GEMMA = LLAMA | dict(head_dim=10, pad_token_id=0, bos_token_id=2, eos_token_id=1)
GEMMA2 = GEMMA | dict(
    sliding_window=5, query_pre_attn_scalar=20, attn_logit_softcapping=3.0, final_logit_softcapping=2.0
)
GEMMA3 = GEMMA | dict(
    sliding_window=5, query_pre_attn_scalar=20, layer_types=["sliding_attention", "full_attention", "sliding_attention"]
)
LOCAL = dict(sliding_attention=dict(rope_type="default", rope_theta=500.0),
             full_attention=dict(rope_type="linear", factor=8.0, rope_theta=5000.0))  # fmt: skip


def tasks(name: str, prefix: str, config: type, fields: dict, answers: bool = True) -> dict[str, Case]:
    """The cases of a model's heads for a task."""
    heads = {
        "classify": ("SequenceClassification", dict(num_labels=3)),
        "regress": ("SequenceClassification", dict(num_labels=1)),
        "tag": ("TokenClassification", dict(num_labels=5)),
        "answer": ("QuestionAnswering", {}),
    }
    kinds = heads if answers else {k: v for k, v in heads.items() if k != "answer"}
    return {f"{name}-{task}": (f"{prefix}For{kind}", config, fields | extra) for task, (kind, extra) in kinds.items()}


CASES: dict[str, Case] = {
    "llama-dynamic": ("LlamaForCausalLM", hf.LlamaConfig, LLAMA | dict(max_position_embeddings=11, rope_parameters=DYNAMIC)),
    "llama-dynamic-short": ("LlamaForCausalLM", hf.LlamaConfig, LLAMA | dict(max_position_embeddings=40, rope_parameters=DYNAMIC)),
    "llama-yarn": ("LlamaForCausalLM", hf.LlamaConfig, LLAMA | dict(rope_parameters=YARN)),
    "llama-yarn-whole": ("LlamaForCausalLM", hf.LlamaConfig, LLAMA | dict(head_dim=16, rope_parameters=YARN | dict(beta_fast=4.0, beta_slow=0.5, truncate=False))),
    "llama-yarn-given": ("LlamaForCausalLM", hf.LlamaConfig, LLAMA | dict(head_dim=16, rope_parameters=YARN | dict(attention_factor=0.7))),
    "llama-yarn-mscale": ("LlamaForCausalLM", hf.LlamaConfig, LLAMA | dict(head_dim=16, rope_parameters=YARN | dict(mscale=0.7, mscale_all_dim=1.3))),
    **tasks("llama", "Llama", hf.LlamaConfig, PAD),
    "llama-multi": ("LlamaForSequenceClassification", hf.LlamaConfig, PAD | dict(num_labels=4, problem_type="multi_label_classification")),
    "mistral-nemo": ("MistralForCausalLM", hf.MistralConfig, LLAMA | dict(sliding_window=None, head_dim=10)),
    **tasks("mistral", "Mistral", hf.MistralConfig, PAD | dict(sliding_window=12)),
    "mixtral": ("MixtralForCausalLM", hf.MixtralConfig, MIXTRAL),
    "mixtral-window": ("MixtralForCausalLM", hf.MixtralConfig, MIXTRAL | dict(sliding_window=5, num_local_experts=3, num_experts_per_tok=1, hidden_act="gelu")),
    "mixtral-all": ("MixtralForCausalLM", hf.MixtralConfig, MIXTRAL | dict(num_experts_per_tok=4, tie_word_embeddings=True, rms_norm_eps=1e-2)),
    "mixtral-model": ("MixtralModel", hf.MixtralConfig, MIXTRAL),
    **tasks("mixtral", "Mixtral", hf.MixtralConfig, MIXTRAL | dict(pad_token_id=1)),
    "qwen2": ("Qwen2ForCausalLM", hf.Qwen2Config, QWEN),
    "qwen2-windows": ("Qwen2ForCausalLM", hf.Qwen2Config, QWEN | WINDOWS | dict(tie_word_embeddings=True)),
    "qwen2-window": ("Qwen2ForCausalLM", hf.Qwen2Config, QWEN | WINDOWS | dict(max_window_layers=0, rms_norm_eps=1e-3)),
    "qwen2-model": ("Qwen2Model", hf.Qwen2Config, QWEN),
    **tasks("qwen2", "Qwen2", hf.Qwen2Config, QWEN | dict(pad_token_id=1)),
    "qwen3": ("Qwen3ForCausalLM", hf.Qwen3Config, QWEN | dict(head_dim=10)),
    "qwen3-biased": ("Qwen3ForCausalLM", hf.Qwen3Config, QWEN | dict(head_dim=6, attention_bias=True, rms_norm_eps=1e-2, num_key_value_heads=6)),
    "qwen3-windows": ("Qwen3ForCausalLM", hf.Qwen3Config, QWEN | WINDOWS | dict(head_dim=8, layer_types=["full_attention", "sliding_attention", "full_attention"], tie_word_embeddings=True)),
    "qwen3-yarn": ("Qwen3ForCausalLM", hf.Qwen3Config, QWEN | dict(head_dim=16, rope_parameters=YARN)),
    "qwen3-model": ("Qwen3Model", hf.Qwen3Config, QWEN | dict(head_dim=10)),
    **tasks("qwen3", "Qwen3", hf.Qwen3Config, QWEN | dict(pad_token_id=1, head_dim=10)),
    "qwen3-moe": ("Qwen3MoeForCausalLM", hf.Qwen3MoeConfig, MOE),
    "qwen3-moe-window": ("Qwen3MoeForCausalLM", hf.Qwen3MoeConfig, MOE | dict(use_sliding_window=True, sliding_window=5, tie_word_embeddings=True)),
    "qwen3-moe-answer": ("Qwen3MoeForQuestionAnswering", hf.Qwen3MoeConfig, MOE),
    "gemma": ("GemmaForCausalLM", hf.GemmaConfig, GEMMA),
    "gemma-wide": ("GemmaForCausalLM", hf.GemmaConfig, GEMMA | dict(num_key_value_heads=6, attention_bias=True, rms_norm_eps=1e-2, tie_word_embeddings=False)),
    "gemma-model": ("GemmaModel", hf.GemmaConfig, GEMMA | dict(num_key_value_heads=1)),
    **tasks("gemma", "Gemma", hf.GemmaConfig, GEMMA, answers=False),
    "gemma2": ("Gemma2ForCausalLM", hf.Gemma2Config, GEMMA2),
    "gemma2-open": ("Gemma2ForCausalLM", hf.Gemma2Config, GEMMA2 | dict(attn_logit_softcapping=None, final_logit_softcapping=None, num_hidden_layers=2)),
    "gemma2-one": ("Gemma2ForCausalLM", hf.Gemma2Config, GEMMA2 | dict(num_hidden_layers=1, num_key_value_heads=6)),
    "gemma2-model": ("Gemma2Model", hf.Gemma2Config, GEMMA2),
    **tasks("gemma2", "Gemma2", hf.Gemma2Config, GEMMA2, answers=False),
    "gemma3": ("Gemma3ForCausalLM", hf.Gemma3TextConfig, GEMMA3),
    "gemma3-scaled": ("Gemma3ForCausalLM", hf.Gemma3TextConfig, GEMMA3 | dict(rope_parameters=LOCAL, num_key_value_heads=1)),
    "gemma3-pattern": ("Gemma3ForCausalLM", hf.Gemma3TextConfig, GEMMA3 | dict(layer_types=None, sliding_window_pattern=2, num_hidden_layers=5)),
    "gemma3-local": ("Gemma3ForCausalLM", hf.Gemma3TextConfig, GEMMA3 | dict(layer_types=None, num_hidden_layers=2, rms_norm_eps=1e-3)),
    "gemma3-all": ("Gemma3ForCausalLM", hf.Gemma3TextConfig, GEMMA3 | dict(layer_types=["full_attention"] * 3, attention_bias=True)),
    "gemma3-capped": ("Gemma3ForCausalLM", hf.Gemma3TextConfig, GEMMA3 | dict(final_logit_softcapping=2.0)),
    "gemma3-model": ("Gemma3TextModel", hf.Gemma3TextConfig, GEMMA3),
    "gemma3-classify": ("Gemma3TextForSequenceClassification", hf.Gemma3TextConfig, GEMMA3 | dict(num_labels=3)),
    "gpt1-classify": ("OpenAIGPTForSequenceClassification", hf.OpenAIGPTConfig, GPT | dict(pad_token_id=1, num_labels=3)),
    **tasks("gpt2", "GPT2", hf.GPT2Config, GPT | dict(pad_token_id=1)),
}  # fmt: skip

COUNTS = {
    "codex-85m": 125_226_240 + 24 * 768 + 2048 * 768,
    "codex-300m": 355_871_744 + 24 * 1024 + 2048 * 1024,
    "codex-679m": 760_300_032 + 24 * 1536 + 2048 * 1536,
    "codex-2.5b": 2_651_553_280 + 24 * 2560 + 2048 * 2560,
    "codex-12b": 12_853_386_240 + 24 * 5120 + 2048 * 5120,
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-34b": 33_743_970_304,
    "llama2-70b": 68_976_648_192,
    "codellama-7b": 6_738_546_688,
    "codellama-13b": 13_016_028_160,
    "codellama-34b": 33_743_970_304,
    "codellama-70b": 68_976_910_336,
    "codellama-7b-python": 6_738_415_616,
    "codellama-13b-python": 13_015_864_320,
    "codellama-34b-python": 33_743_970_304,
    "codellama-70b-python": 68_976_910_336,
    "codellama-7b-instruct": 6_738_546_688,
    "codellama-13b-instruct": 13_016_028_160,
    "codellama-34b-instruct": 33_743_970_304,
    "codellama-70b-instruct": 68_976_910_336,
    "openllama-3b": 3_426_473_600,
    "openllama-3b-v2": 3_426_473_600,
    "openllama-7b": 6_738_415_616,
    "openllama-7b-v2": 6_738_415_616,
    "openllama-13b": 13_015_864_320,
    "longllama-3b": 3_426_473_600,
    "longllama-3b-v1.1": 3_426_473_600,
    "longllama-code-7b": 6_738_546_688,
    "giraffe-13b": 13_015_864_320,
    "giraffe-v1-13b-scaled-16": 13_015_864_320,
    "giraffe-v1-13b-truncated": 13_015_864_320,
    "giraffe-v1-13b-power": 13_015_864_320,
    "giraffe-v1-13b-random": 13_015_864_320,
    "giraffe-v1-13b-xpos": 13_015_864_320,
    "giraffe-v2-13b-32k": 13_015_864_320,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "llama3.1-8b": 8_030_261_248,
    "llama3.1-70b": 70_553_706_496,
    "llama3.1-405b": 405_853_388_800,
    "llama3.2-1b": 1_235_814_400,
    "llama3.2-3b": 3_212_749_824,
    "tinyllama-1.1b": 1_100_048_384,
    "mistral-nemo-12b": 12_247_782_400,
    "mixtral-8x7b": 46_702_792_704,
    "mixtral-8x22b": 140_620_634_112,
    "mixtral-8x22b-v0.3": 140_630_071_296,
    "qwen2-0.5b": 494_032_768,
    "qwen2-1.5b": 1_543_714_304,
    "qwen2-7b": 7_615_616_512,
    "qwen2-72b": 72_706_203_648,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "gemma-2b": 2_506_172_416,
    "gemma-7b": 8_537_680_896,
    "gemma2-2b": 2_614_341_888,
    "gemma2-9b": 9_241_705_984,
    "gemma2-27b": 27_227_128_320,
    "gemma3-270m": 268_098_176,
    "gemma3-1b": 999_885_952,
    "gemma3-4b": 3_880_263_168,
    "gemma3-12b": 11_766_034_176,
    "gemma3-27b": 27_009_346_304,
}
# parameters that a token uses, of a mixture of experts
ACTIVE = {
    "mixtral-8x7b": 12_879_925_248,
    "mixtral-8x22b": 39_152_031_744,
    "qwen3-30b-a3b": 3_353_032_704,
    "qwen3-235b-a22b": 22_190_763_520,
}
