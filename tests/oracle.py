"""Tiny models of the reference implementation (transformers) with every parameter jittered, norms and biases too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as hf

Case = tuple[str, Any, dict[str, Any]]  # model class, config class, config fields

BERT = dict(vocab_size=99, hidden_size=36, num_hidden_layers=3, num_attention_heads=3, intermediate_size=50,
            max_position_embeddings=40, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)  # fmt: skip
LLAMA = dict(vocab_size=97, hidden_size=36, intermediate_size=52, num_hidden_layers=3, num_attention_heads=6,
             num_key_value_heads=2, max_position_embeddings=64, pad_token_id=None)  # fmt: skip
GPT = dict(vocab_size=91, n_positions=40, n_embd=36, n_layer=3, n_head=3,
           resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0)  # fmt: skip
T5 = dict(vocab_size=93, d_model=36, d_kv=10, d_ff=50, num_layers=2, num_decoder_layers=3, num_heads=4,
          relative_attention_num_buckets=8, relative_attention_max_distance=20, dropout_rate=0.0,
          decoder_start_token_id=0)  # fmt: skip
LLAMA3 = dict(rope_type="llama3", rope_theta=500.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=32)  # fmt: skip

CASES: dict[str, Case] = {
    "bert-pretraining": ("BertForPreTraining", hf.BertConfig, BERT),
    "bert-mlm": ("BertForMaskedLM", hf.BertConfig, BERT | dict(hidden_act="gelu_new", layer_norm_eps=1e-3)),
    "bert-model": ("BertModel", hf.BertConfig, BERT | dict(type_vocab_size=5)),
    "bert-untied": ("BertForMaskedLM", hf.BertConfig, BERT | dict(tie_word_embeddings=False)),
    "roberta-mlm": ("RobertaForMaskedLM", hf.RobertaConfig, BERT | dict(type_vocab_size=1, layer_norm_eps=1e-5)),
    "roberta-relu": ("RobertaForMaskedLM", hf.RobertaConfig, BERT | dict(hidden_act="relu", type_vocab_size=1)),
    "bert-relu-model": ("BertModel", hf.BertConfig, BERT | dict(hidden_act="relu")),
    "roberta-model": ("RobertaModel", hf.RobertaConfig, BERT | dict(pad_token_id=4, type_vocab_size=2)),
    "gpt1": ("OpenAIGPTLMHeadModel", hf.OpenAIGPTConfig, GPT),
    "gpt1-model": ("OpenAIGPTModel", hf.OpenAIGPTConfig, GPT | dict(afn="relu", n_embd=40, n_head=5)),
    "gpt2": ("GPT2LMHeadModel", hf.GPT2Config, GPT),
    "gpt2-odd": ("GPT2LMHeadModel", hf.GPT2Config, GPT | dict(n_inner=31, activation_function="gelu", layer_norm_epsilon=1e-2)),
    "gpt2-unscaled": ("GPT2LMHeadModel", hf.GPT2Config, GPT | dict(scale_attn_weights=False, tie_word_embeddings=False)),
    "gpt2-model": ("GPT2Model", hf.GPT2Config, GPT),
    "t5": ("T5ForConditionalGeneration", hf.T5Config, T5),
    "t5-gated": ("T5ForConditionalGeneration", hf.T5Config, T5 | dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False)),
    "t5-silu": ("T5ForConditionalGeneration", hf.T5Config, T5 | dict(feed_forward_proj="gated-silu", layer_norm_epsilon=1e-3)),
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


def jitter(model: torch.nn.Module, seed: int) -> None:
    """Move every parameter off its initial value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)


def reference(case: str, seed: int = 0) -> Any:
    """The reference's tiny model of a case, in eval mode."""
    name, config, fields = CASES[case]
    torch.manual_seed(seed)
    model = getattr(hf, name)(config(**fields))
    jitter(model, seed + 1)
    return model.eval()


def saved(case: str, folder: Path, seed: int = 0) -> Any:
    """The reference's model, after writing it to `folder` in its own layout."""
    model = reference(case, seed)
    model.save_pretrained(folder)
    return model


def inputs(case: str, rows: int = 3, length: int = 17, seed: int = 3, left: bool = False) -> dict[str, torch.Tensor]:
    """A batch with padding on the right (or left), all that the structure reads."""
    _, _, fields = CASES[case]
    vocab = fields["vocab_size"]
    generator = torch.Generator().manual_seed(seed)
    pad = fields.get("pad_token_id", 1 if case.startswith("roberta") else 0)
    mask = torch.ones(rows, length, dtype=torch.int64)
    mask[1, length - 4 :] = 0
    mask[2, length - 9 :] = 0
    mask = mask.flip(1) if left else mask
    ids = torch.randint(5, vocab, (rows, length), generator=generator)
    if pad is not None:
        ids = ids.masked_fill(mask == 0, pad)
    batch = {"input_ids": ids, "attention_mask": mask}
    if case.startswith("bert"):
        batch["token_type_ids"] = torch.randint(
            0, fields.get("type_vocab_size", 2), (rows, length), generator=generator
        )
    if case.startswith("t5"):
        batch["decoder_input_ids"] = torch.randint(1, vocab, (rows, length + 5), generator=generator)
        batch["decoder_attention_mask"] = torch.ones(rows, length + 5, dtype=torch.int64)
        batch["decoder_attention_mask"][1, length - 2 :] = 0
    return batch
