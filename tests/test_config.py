"""config.json: those of public checkpoints, older spellings, and every way to get one wrong."""

from __future__ import annotations

import itertools
import json
import string
from pathlib import Path
from typing import Any

import pytest
import transformers as hf
from safetensors.torch import save_file

import stemma
from oracle import CASES
from stemma import families, formats
from stemma.errors import CheckpointError, StemmaError, UsageError
from stemma.formats.config import GENERAL, GENERAL_FIXED, read_config

SUMMARY = {
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
}
GENERATE = {"text-generation": {"do_sample": True, "max_length": 50}}

# what the hub's repositories hold, with the leftovers of the releases that wrote them
HUB: dict[str, dict[str, Any]] = {
    "bert-base-uncased": {
        "architectures": ["BertForMaskedLM"],
        "attention_probs_dropout_prob": 0.1,
        "gradient_checkpointing": False,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": 768,
        "initializer_range": 0.02,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512,
        "model_type": "bert",
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "pad_token_id": 0,
        "position_embedding_type": "absolute",
        "transformers_version": "4.6.0.dev0",
        "type_vocab_size": 2,
        "use_cache": True,
        "vocab_size": 30522,
    },
    "bert-base-multilingual-cased": {
        "architectures": ["BertForMaskedLM"],
        "attention_probs_dropout_prob": 0.1,
        "directionality": "bidi",
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": 768,
        "initializer_range": 0.02,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512,
        "model_type": "bert",
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "pad_token_id": 0,
        "pooler_fc_size": 768,
        "pooler_num_attention_heads": 12,
        "pooler_num_fc_layers": 3,
        "pooler_size_per_head": 128,
        "pooler_type": "first_token_transform",
        "type_vocab_size": 2,
        "vocab_size": 119547,
    },
    "bert-tiny": {
        "hidden_size": 128,
        "hidden_act": "gelu",
        "initializer_range": 0.02,
        "vocab_size": 30522,
        "hidden_dropout_prob": 0.1,
        "num_attention_heads": 2,
        "type_vocab_size": 2,
        "max_position_embeddings": 512,
        "num_hidden_layers": 2,
        "intermediate_size": 512,
        "attention_probs_dropout_prob": 0.1,
        "model_type": "bert",
    },
    "roberta-base": {
        "architectures": ["RobertaForMaskedLM"],
        "attention_probs_dropout_prob": 0.1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": 768,
        "initializer_range": 0.02,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 514,
        "model_type": "roberta",
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "pad_token_id": 1,
        "type_vocab_size": 1,
        "vocab_size": 50265,
    },
    "gpt1": {
        "afn": "gelu",
        "architectures": ["OpenAIGPTLMHeadModel"],
        "attn_pdrop": 0.1,
        "embd_pdrop": 0.1,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05,
        "model_type": "openai-gpt",
        "n_ctx": 512,
        "n_embd": 768,
        "n_head": 12,
        "n_layer": 12,
        "n_positions": 512,
        "n_special": 0,
        "predict_special_tokens": True,
        "resid_pdrop": 0.1,
        **SUMMARY,
        "task_specific_params": GENERATE,
        "vocab_size": 40478,
    },
    "gpt2": {
        "activation_function": "gelu_new",
        "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": 0.1,
        "bos_token_id": 50256,
        "embd_pdrop": 0.1,
        "eos_token_id": 50256,
        "finetuning_task": None,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05,
        "model_type": "gpt2",
        "n_ctx": 1024,
        "n_embd": 768,
        "n_head": 12,
        "n_layer": 12,
        "n_positions": 1024,
        "output_past": True,
        "resid_pdrop": 0.1,
        **SUMMARY,
        "task_specific_params": GENERATE,
        "vocab_size": 50257,
    },
    "t5-small": {
        "architectures": ["T5ForConditionalGeneration"],
        "d_ff": 2048,
        "d_kv": 64,
        "d_model": 512,
        "decoder_start_token_id": 0,
        "dropout_rate": 0.1,
        "eos_token_id": 1,
        "initializer_factor": 1.0,
        "is_encoder_decoder": True,
        "layer_norm_epsilon": 1e-06,
        "model_type": "t5",
        "n_positions": 512,
        "num_heads": 8,
        "num_layers": 6,
        "output_past": True,
        "pad_token_id": 0,
        "relative_attention_num_buckets": 32,
        "task_specific_params": {"summarization": {"early_stopping": True, "prefix": "summarize: "}},
        "vocab_size": 32128,
    },
    "t5-3b": {
        "architectures": ["T5WithLMHeadModel"],
        "d_ff": 16384,
        "d_kv": 128,
        "d_model": 1024,
        "decoder_start_token_id": 0,
        "dropout_rate": 0.1,
        "eos_token_id": 1,
        "initializer_factor": 1.0,
        "is_encoder_decoder": True,
        "layer_norm_epsilon": 1e-06,
        "model_type": "t5",
        "n_positions": 512,
        "num_heads": 32,
        "num_layers": 24,
        "output_past": True,
        "pad_token_id": 0,
        "relative_attention_num_buckets": 32,
        "vocab_size": 32128,
    },
    "t5-v1.1-small": {
        "architectures": ["T5ForConditionalGeneration"],
        "d_ff": 1024,
        "d_kv": 64,
        "d_model": 512,
        "decoder_start_token_id": 0,
        "dropout_rate": 0.1,
        "eos_token_id": 1,
        "feed_forward_proj": "gated-gelu",
        "initializer_factor": 1.0,
        "is_encoder_decoder": True,
        "layer_norm_epsilon": 1e-06,
        "model_type": "t5",
        "num_decoder_layers": 8,
        "num_heads": 6,
        "num_layers": 8,
        "output_past": True,
        "pad_token_id": 0,
        "relative_attention_num_buckets": 32,
        "tie_word_embeddings": False,
        "vocab_size": 32128,
    },
    "llama-7b": {
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 11008,
        "max_position_embeddings": 2048,
        "max_sequence_length": 2048,
        "model_type": "llama",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-06,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "transformers_version": "4.28.0.dev0",
        "use_cache": True,
        "vocab_size": 32000,
    },
    "mistral-7b-v0.1": {
        "architectures": ["MistralForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "model_type": "mistral",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.34.0.dev0",
        "use_cache": True,
        "vocab_size": 32000,
    },
}
LLAMA32 = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0.dev0",
    "use_cache": True,
    "vocab_size": 128256,
}
TINY = {
    name: {"model_type": layout.model_type} | ({layout.mark: 4} if layout.mark else {})
    for name, layout in formats.LAYOUTS.items()
}
TINY["llama"]["intermediate_size"] = TINY["mistral"]["intermediate_size"] = 64
for name in ("deberta", "deberta-v2"):  # with distances, as every published model
    TINY[name] |= {"relative_attention": True, "position_biased_input": False, "pos_att_type": "c2p|p2c"}
TINY["longllama"]["mem_layers"] = [1]  # type: ignore[assignment]


def read(raw: dict[str, Any]) -> Any:
    return formats.read_design(raw)[0]


def refusal(raw: dict[str, Any]) -> str:
    """The one sentence by which a config is refused."""
    with pytest.raises(CheckpointError) as caught:
        read(raw)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 400, text
    return text


# ---------------------------------------------------------------- those of public checkpoints


@pytest.mark.parametrize("size", HUB)
def test_hub_configs_give_the_published_size(size: str) -> None:
    raw = json.loads(json.dumps(HUB[size]))
    design, owner, layout, unused = formats.read_design(raw)
    declared = families.design(size)
    assert owner is families.family(size) and design.name == declared.name and layout is not None
    assert design.dims == declared.dims
    assert design.arch.heads.lm == declared.arch.heads.lm
    for part in ("structure", "position", "norm", "residual", "attention", "mask", "mlp", "embed_norm", "embed_scale"):
        assert getattr(design.arch, part) == getattr(declared.arch, part), part
    assert design.text.eos_ids == declared.text.eos_ids
    assert all(reason for reason in unused.values())


def test_llama_3_config() -> None:
    design, owner, _, _ = formats.read_design(LLAMA32)
    dims, arch = design.dims, design.arch
    assert owner is not None and (owner.name, design.name) == ("llama3.2", "llama3.2-1b")
    assert (dims.d_model, dims.layers, dims.heads, dims.kv, dims.width, dims.d_ff) == (2048, 16, 32, 8, 64, 8192)
    assert dims.vocab == 128256 and dims.context == 131072
    assert (
        arch.position.base == 500_000 and arch.position.scaling.factor == 32 and arch.position.scaling.context == 8192
    )
    assert arch.heads.lm.tied and arch.norm.eps == 1e-5 and design.text.eos_ids == (128001, 128008, 128009)


@pytest.mark.parametrize("case", CASES)
def test_configs_of_the_reference_are_read_whole(case: str) -> None:
    name, kind, fields = CASES[case]
    raw = kind(**fields, architectures=[name]).to_diff_dict() | {"model_type": kind.model_type}
    everything = json.loads(kind(**fields, architectures=[name]).to_json_string(use_diff=False))
    assert read(raw) == read(everything)


def test_first_llama_files_have_no_padding_token() -> None:
    raw = HUB["llama-7b"] | {"pad_token_id": -1, "architectures": ["LLaMAForCausalLM"]}
    assert read(raw).text.pad_id is None


# ---------------------------------------------------------------- spellings


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"rope_theta": 5e5}, {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
        ({"rope_scaling": None}, {}),
        (
            {"rope_theta": 2e4, "rope_scaling": {"type": "linear", "factor": 4.0}},
            {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 2e4}},
        ),
        (
            {"rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 4.0}},
            {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
        ),
        (
            {"rope_theta": 5e5, "rope_scaling": LLAMA32["rope_scaling"]},
            {"rope_parameters": LLAMA32["rope_scaling"] | {"rope_theta": 5e5}},
        ),
    ],
)
def test_old_and_new_rotary_spellings_agree(old: dict[str, Any], new: dict[str, Any]) -> None:
    assert read(TINY["llama"] | old) == read(TINY["llama"] | new)
    config = hf.LlamaConfig(**new)
    again = hf.LlamaConfig(**old)
    ours = read(TINY["llama"] | old).arch.position
    for theirs in (config.rope_parameters, again.rope_parameters):
        assert ours.base == theirs["rope_theta"]
        assert getattr(ours.scaling, "factor", None) == theirs.get("factor")


def test_dtype_spellings_change_nothing() -> None:
    assert read(TINY["gpt2"] | {"torch_dtype": "float16"}) == read(TINY["gpt2"] | {"dtype": "float16"})


def test_rotary_given_twice_is_refused() -> None:
    both = {"rope_parameters": {"rope_theta": 1e4}, "rope_scaling": {"type": "linear", "factor": 2.0}}
    assert "differ" in refusal(TINY["llama"] | both)
    assert "twice" in refusal(TINY["llama"] | {"rope_theta": 5e5, "rope_parameters": {"rope_theta": 1e4}})
    assert "twice" in refusal(
        TINY["llama"] | {"rope_scaling": {"type": "linear", "rope_type": "llama3", "factor": 2.0}}
    )


# ---------------------------------------------------------------- typing errors


def typos(word: str) -> set[str]:
    """All words one deletion, swap, and (a sample of) insertions and replacements away."""
    out = {word[:i] + word[i + 1 :] for i in range(len(word))}
    out |= {word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in range(len(word) - 1)}
    for i in range(len(word) + 1):
        c = string.ascii_lowercase[(7 * i + len(word)) % 26]
        out |= {word[:i] + c + word[i:], word[:i] + c + word[i + 1 :], word[:i] + word[i - 1] + word[i:]}
    return out - {word}


def typos_all(word: str) -> set[str]:
    letters = string.ascii_letters + string.digits + "_"
    out = {word[:i] + word[i + 1 :] for i in range(len(word))}
    out |= {word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in range(len(word) - 1)}
    out |= {word[:i] + c + word[i:] for i in range(len(word) + 1) for c in letters}
    return out | {word[:i] + c + word[i + 1 :] for i in range(len(word)) for c in letters}


@pytest.mark.parametrize("every", [24, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("model_type", formats.LAYOUTS)
def test_a_mistyped_key_is_refused_with_the_right_one(model_type: str, every: int) -> None:
    """Each key with each slip of the hand, by default one slip in `every`."""
    layout = formats.LAYOUTS[model_type]
    keys = {n for k in layout.keys for n in (k.name, *k.older)} | set(layout.fixed) | set(layout.unused)
    keys |= set(layout.of_class(None))
    general = {*GENERAL, *GENERAL_FIXED}
    tried = keys | general if model_type == "bert" else keys  # the general ones are the same everywhere
    keys |= general
    for key in sorted(tried - {"model_type"}):
        words: dict[str, set[str]] = {}
        for typo in sorted(typos(key) - keys)[::every]:
            with pytest.raises(CheckpointError) as caught:
                read_config(layout, TINY[model_type] | {typo: 1})
            text = str(caught.value)
            assert f"no key {typo!r}" in text and "did you mean" in text, text
            meant = text.split("did you mean ")[1].split("'")[1]
            # two keys may be one letter from it; either is a good answer
            assert meant == key or typo in words.setdefault(meant, typos_all(meant)), f"{key}: {text}"


@pytest.mark.parametrize("outer", ["rope_parameters", "rope_scaling"])
def test_a_mistyped_rotary_parameter_is_refused_with_the_right_one(outer: str) -> None:
    good = LLAMA32["rope_scaling"] | {"rope_theta": 5e5}
    for key in good:
        for typo in typos(key) - {"type"}:
            bad = {k: v for k, v in good.items() if k != key} | {typo: good[key]}
            text = refusal(TINY["llama"] | {outer: bad})
            assert repr(typo) in text and f"did you mean {key!r}" in text, text


def test_a_mistyped_model_type() -> None:
    assert "did you mean 'roberta'" in refusal({"model_type": "robertta"})
    assert "'model_typ'" in refusal({"model_typ": "bert", "hidden_size": 8})
    assert "no 'model_type'" in refusal({})
    for bad in (None, 3, ["bert"], {"bert": 1}):
        assert "model_type" in refusal({"model_type": bad})


def test_a_mistyped_class() -> None:
    raw = TINY["bert"] | {"architectures": ["BertForMaskedLN"]}
    design = formats.read_design(raw)[0]  # the class says which heads, which a load looks at
    assert design.name == "bert-base-uncased"


@pytest.mark.parametrize("value", [3, True, 0.5, "BertModel", {"BertModel": 1}, [1, 2]])
@pytest.mark.parametrize("model_type", ["bert", "deberta", "t5"])
def test_classes_that_are_no_list_of_names_are_refused(model_type: str, value: Any) -> None:
    text = refusal(TINY[model_type] | {"architectures": value})
    assert f"architectures={value!r} should be a list of class names" in text


@pytest.mark.parametrize(
    ("model_type", "key", "value", "expected"),
    [
        ("bert", "hidden_act", "gelo", "'gelu'"),
        ("roberta", "hidden_act", "gelu_now", "'gelu_new'"),
        ("gpt2", "activation_function", "gelu_nwe", "'gelu_new'"),
        ("openai-gpt", "afn", "geul", "'gelu'"),
        ("llama", "hidden_act", "sliu", "'silu'"),
        ("t5", "feed_forward_proj", "gated-gelo", "'gated-gelu'"),
        ("t5", "feed_forward_proj", "rleu", "'relu'"),
        ("llama", "rope_scaling", {"type": "liner", "factor": 2.0}, "'linear'"),
        ("bert", "position_embedding_type", "relative_key", "'absolute'"),
        ("bert", "is_decoder", True, "False"),
        ("t5", "is_encoder_decoder", False, "True"),
        ("gpt2", "quantization_config", {"bits": 4}, "None"),
    ],
)
def test_a_value_without_meaning_is_refused(model_type: str, key: str, value: Any, expected: str) -> None:
    text = refusal(TINY[model_type] | {key: value})
    assert key in text and expected in text, text


# ---------------------------------------------------------------- types and ranges


STRANGE: list[Any] = ["abc", [], [1, 2, 3], {}, {"a": 1}, -7, -0.5, 0.3, True, float("nan"), 0, None, 10**30]


@pytest.mark.parametrize("model_type", formats.LAYOUTS)
def test_any_value_anywhere_is_read_or_refused_in_one_sentence(model_type: str) -> None:
    for k in formats.LAYOUTS[model_type].keys:
        for name, value in itertools.product((k.name, *k.older), STRANGE):
            try:
                read(TINY[model_type] | {name: value})
            except CheckpointError as error:
                assert name in str(error), f"{name}={value!r}: {error}"
                assert "\n" not in str(error) and "dims." not in str(error).replace("set dims.head_dim", ""), error


@pytest.mark.parametrize("model_type", formats.LAYOUTS)
@pytest.mark.parametrize("value", ["abc", -36, 0, 1.5, None, [4]])
def test_widths_must_be_whole_positive_numbers(model_type: str, value: Any) -> None:
    optional = {
        "n_inner",
        "head_dim",
        "d_head",
        "d_kv",
        "num_key_value_heads",
        "num_decoder_layers",
        "attention_head_size",
        "kv_channels",
    }
    for k in formats.LAYOUTS[model_type].keys:
        if k.paths[0].startswith("dims.") and k.name != "type_vocab_size":
            if value is None and k.name in optional:
                continue
            assert k.name in refusal(TINY[model_type] | {k.name: value})


@pytest.mark.parametrize(
    ("model_type", "fields", "names"),
    [
        ("bert", {"hidden_size": 100, "num_attention_heads": 3}, ["hidden_size=100", "num_attention_heads=3"]),
        ("gpt2", {"n_embd": 100, "n_head": 3}, ["n_embd=100", "n_head=3"]),
        ("llama", {"num_attention_heads": 32, "num_key_value_heads": 5}, ["num_attention_heads=32", "num_key_value_heads=5"]),
        ("roberta", {"pad_token_id": None}, ["pad_token_id"]),
        ("roberta", {"max_position_embeddings": 2}, ["max_position_embeddings"]),
        ("t5", {"relative_attention_num_buckets": 2}, ["relative_attention_num_buckets"]),
        ("mistral", {"sliding_window": 0}, ["sliding_window"]),
        ("mistral", {"sliding_window": "wide"}, ["sliding_window"]),
        ("llama", {"rope_theta": -1.0}, ["rope_theta"]),
        ("llama", {"rope_scaling": {"type": "linear", "factor": "two"}}, ["rope_scaling", "factor", "two"]),
        ("llama", {"rope_scaling": {"type": "linear"}}, ["factor"]),
        ("llama", {"rope_scaling": "linear"}, ["linear"]),
        ("bert", {"hidden_dropout_prob": 1.5}, ["hidden_dropout_prob"]),
        ("bert", {"layer_norm_eps": -1e-5}, ["layer_norm_eps"]),
        ("llama", {"tie_word_embeddings": "maybe"}, ["tie_word_embeddings"]),
        ("llama", {"eos_token_id": "</s>"}, ["eos_token_id"]),
    ],
)  # fmt: skip
def test_values_out_of_range_name_their_key(model_type: str, fields: dict[str, Any], names: list[str]) -> None:
    text = refusal(TINY[model_type] | fields)
    assert all(name in text for name in names), text


def test_a_needed_key_must_be_there() -> None:
    assert "'intermediate_size'" in refusal({"model_type": "llama"})


def test_a_config_that_is_wrong_loads_nothing(tmp_path: Path) -> None:
    import torch

    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    for raw, word in [
        (TINY["bert"] | {"hidden_sise": 8}, "'hidden_size'"),
        (TINY["bert"] | {"architectures": ["BertForMaskedLN"]}, "'BertForMaskedLM'"),
        (TINY["bert"] | {"architectures": "BertForMaskedLM"}, "list"),
        (TINY["bert"] | {"architectures": [3]}, "list"),
    ]:
        (tmp_path / "config.json").write_text(json.dumps(raw))
        with pytest.raises(CheckpointError, match=word):
            stemma.load(tmp_path)


# ---------------------------------------------------------------- our own layout


def test_own_layout_is_as_strict() -> None:
    model = stemma.build("gpt3-small", layers=2, d_model=16, heads=2, d_ff=16, vocab=30, context=16)
    layout, raw, _ = formats.layout_of(model.design, model.family)
    assert layout is None and raw["model_type"] == "stemma"
    assert read(raw) == model.design
    assert "did you mean 'design'" in refusal({"model_type": "stemma", "desing": raw["design"]})
    for edit, word in [
        ({"dims": raw["design"]["dims"] | {"layer": 3}}, "layers"),
        ({"dims": raw["design"]["dims"] | {"layers": "three"}}, "layers"),
        ({"arch": raw["design"]["arch"] | {"norm": {"kind": "LayerNrom"}}}, "LayerNorm"),
        ({"arch": None}, "arch"),
    ]:
        assert word in refusal(raw | {"design": raw["design"] | edit})
    for bad in (None, [], "x", 3):
        assert "design" in refusal(raw | {"design": bad})


def test_errors_are_of_ours() -> None:
    assert issubclass(CheckpointError, StemmaError) and issubclass(UsageError, StemmaError)
