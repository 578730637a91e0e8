"""Configs of the reference's classes as users make them: the defaults, and every switch and word turned. A checkpoint with
one is read with equal logits, or refused by the key's name."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

import stemma
from oracle import jitter
from stemma import formats
from stemma.errors import CheckpointError
from stemma.formats.config import read_config
from stemma.formats.keys import ACTIVATIONS, Layout

SMALL = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "emb_dim", "dim", "embedding_size"), 36),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "num_key_value_heads"), 3),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 3),
    **dict.fromkeys(("intermediate_size", "d_ff", "d_inner", "hidden_dim", "encoder_ffn_dim", "decoder_ffn_dim"), 50),
    **dict.fromkeys(("d_kv", "d_head", "head_dim", "query_pre_attn_scalar"), 12),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 40),
    **dict(vocab_size=61, sliding_window=8, pad_token_id=0, bos_token_id=1, eos_token_id=2),
}
EXPERTS = dict(hidden_size=32, num_attention_heads=4, num_key_value_heads=4, head_dim=8, intermediate_size=48,
               moe_intermediate_size=16, num_experts=4, num_local_experts=4, num_experts_per_tok=2)  # fmt: skip

# names of fields that say nothing of a network, or that are tried elsewhere
OTHER = {
    *("return_dict", "output_hidden_states", "output_attentions", "use_cache", "torchscript", "use_bfloat16"),
    *("tf_legacy_loss", "chunk_size_feed_forward", "is_encoder_decoder", "is_decoder", "add_cross_attention"),
}
MORE: dict[str, list[Any]] = {
    "pos_att_type": ["c2p|p2c", ["c2p"], ["p2c"], []],
    "feed_forward_proj": ["relu", "gated-gelu", "gated-silu", "gelu", "gated-relu", "tanh", "gated-quick_gelu"],
    "type_vocab_size": [1, 2, 3],
    "relative_attention_num_buckets": [6, 7, 9],
    "relative_attention_max_distance": [20],
    "mem_len": [None, 5],
    "reuse_len": [3],
    "n_inner": [30],
    "num_key_value_heads": [1],
    "embedding_size": [20],
    "inner_group_num": [2],
    "num_hidden_groups": [2],
    "n_langs": [3],
    "num_decoder_layers": [1],
    "decoder_layers": [1],
    "decoder_attention_heads": [2, 6],
    "encoder_attention_heads": [2],
    "decoder_ffn_dim": [30],
    "sliding_window": [4],
    "attn_logit_softcapping": [None, 30.0],
    "final_logit_softcapping": [None, 20.0],
    "partial_rotary_factor": [0.5, 1.0],
    "max_window_layers": [0, 1],
    "logit_scale": [1.0, 0.25],
    "pretraining_tp": [2],
    "encoder_layerdrop": [0.1],
    "decoder_layerdrop": [0.1],
    "router_jitter_noise": [0.1],
    "layer_norm_eps": [0.05],
    "summary_type": ["first", "last", "mean"],
    "pooler_hidden_act": ["tanh"],
}
ACTS = ("hidden_act", "hidden_activation", "activation", "activation_function", "ff_activation")
# (model_type, key) -> values that are another network than the family's, or whose class has a head of another kind
REFUSED: dict[tuple[str, str], set[Any]] = {
    **{(kind, "tie_word_embeddings"): {False} for kind in ("bart", "mbart")},
    **{(kind, "use_bidirectional_attention"): {True} for kind in ("gemma", "gemma2", "gemma3_text")},
    **{(kind, key): {True} for kind, key in (("xlm", "asm"), ("xlnet", "bi_data"), ("xlnet", "same_length"))},
    **{(kind, "position_biased_input"): {False} for kind in ("deberta", "deberta-v2")},  # the only positions
}
# what was refused or read otherwise once
FOUND: list[tuple[str, dict[str, Any]]] = [
    ("deberta", {"position_biased_input": True, "relative_attention": True, "pos_att_type": "c2p|p2c"}),
    ("deberta-v2", {"position_biased_input": True, "relative_attention": True, "pos_att_type": "p2c"}),
    ("deberta-v2", {"relative_attention": True, "pos_att_type": []}),
    ("deberta-v2", {"relative_attention": False, "pos_att_type": "c2p", "norm_rel_ebd": "layer_norm"}),
    ("deberta-v2", {"conv_kernel_size": 3}),
    ("bart", {"decoder_attention_heads": 6}),
    ("mbart", {"decoder_ffn_dim": 30, "decoder_layers": 1, "decoder_layerdrop": 0.1}),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True}),
    ("gpt2", {"activation_function": "tanh"}),
    ("bert", {"hidden_act": "gelu_fast"}),
    ("roberta", {"hidden_act": "gelu_python"}),
    ("llama", {"hidden_act": "relu2", "pretraining_tp": 2}),
    ("t5", {"feed_forward_proj": "gated-quick_gelu"}),
    ("gemma", {"hidden_act": "gelu"}),
    ("gemma2", {"hidden_activation": "gelu"}),
    ("gemma3_text", {"hidden_activation": "gelu", "attn_logit_softcapping": 3.0}),
    ("mixtral", {"router_jitter_noise": 0.1}),
    ("qwen3_moe", {"norm_topk_prob": False}),
]
KNOWN = {
    layout.model_type: layout
    for layout in formats.LAYOUTS.values()
    if layout.model_type in hf.CONFIG_MAPPING and layout.mark in ("", "num_hidden_layers")
}


def small(kind: Any) -> dict[str, Any]:
    names = {f.name for f in dataclasses.fields(kind)} | set(getattr(kind, "attribute_map", {}))
    sizes = SMALL | (EXPERTS if "num_experts_per_tok" in names else {})
    return {name: size for name, size in sizes.items() if name in names}


def a_class(layout: Layout, kind: Any) -> Any:
    """The first class of a layout with a language model's head."""
    named = ("ElectraForMaskedLM",) if "ElectraForMaskedLM" in layout.classes else layout.classes
    found = (getattr(hf, name, None) for name in named if not name.endswith("Model") or "LM" in name)
    return next(c for c in found if c is not None and c.config_class is kind)


def logits(out: Any) -> torch.Tensor:
    found: torch.Tensor = out.get("prediction_logits", out.get("logits"))
    return found


def outcome(layout: Layout, change: dict[str, Any], folder: Path) -> str:
    """ "equal", "refused" where the message names every key of the change, "unknown" where the reference itself cannot run
    it, else what is wrong."""
    kind = hf.CONFIG_MAPPING[layout.model_type]
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 57, (2, 2, 11), generator=generator)
    given: dict[str, torch.Tensor] = {"input_ids": ids[0]}
    try:
        config = kind(**copy.deepcopy(small(kind) | change))
        torch.manual_seed(0)
        theirs = a_class(layout, kind)(config).eval()
        jitter(theirs, 1)
        if config.is_encoder_decoder:
            given["decoder_input_ids"] = ids[1, :, :7]
        if getattr(config, "type_vocab_size", 0) > 1:
            given["token_type_ids"] = ids[1] % 2
        with torch.no_grad():
            out = theirs(**given, attention_mask=torch.ones_like(ids[0]))
    except Exception as error:
        return f"unknown: {type(error).__name__}"
    want = logits(out)
    theirs.save_pretrained(folder)
    try:
        ours = stemma.load(folder)
    except CheckpointError as error:
        return "refused" if all(key in str(error) for key in change) else f"refused otherwise: {error}"
    with torch.no_grad():
        gap = (ours(**given).logits - want).abs().max().item()
    return "equal" if gap <= 1e-5 else f"off by {gap:.1e}"


@pytest.mark.parametrize("model_type", KNOWN)
def test_the_defaults_of_a_config_are_read(model_type: str, tmp_path: Path) -> None:
    assert outcome(KNOWN[model_type], {}, tmp_path) == "equal"


@pytest.mark.parametrize(("model_type", "change"), FOUND)
def test_settings_that_users_met(model_type: str, change: dict[str, Any], tmp_path: Path) -> None:
    assert outcome(KNOWN[model_type], change, tmp_path / "a") == "equal"
    kind = hf.CONFIG_MAPPING[model_type]
    stemma.load(tmp_path / "a").save(tmp_path / "b")
    again, first = (a_class(KNOWN[model_type], kind).from_pretrained(tmp_path / x).eval() for x in "ba")
    given = {"input_ids": torch.randint(5, 57, (2, 9), generator=torch.Generator().manual_seed(4))}
    if again.config.is_encoder_decoder:
        given["decoder_input_ids"] = given["input_ids"][:, :4]
    with torch.no_grad():
        assert (logits(again(**given)) - logits(first(**given))).abs().max() <= 1e-5


HEADS = [
    ("xlm", "XLMForSequenceClassification", "summary_type", "last"),
    ("xlnet", "XLNetForMultipleChoice", "summary_activation", None),
    ("electra", "ElectraForMultipleChoice", "summary_use_proj", False),
    ("gpt2", "GPT2DoubleHeadsModel", "summary_type", "mean"),
    ("openai-gpt", "OpenAIGPTDoubleHeadsModel", "summary_activation", "tanh"),
    ("deberta", "DebertaForSequenceClassification", "pooler_hidden_act", "tanh"),
]


@pytest.mark.parametrize(("model_type", "name", "key", "value"), HEADS)
def test_a_key_of_a_head_counts_where_the_class_has_that_head(model_type: str, name: str, key: str, value: Any) -> None:
    layout, raw = KNOWN[model_type], {"model_type": model_type, key: value}
    with pytest.raises(CheckpointError, match=f"{key}={value!r} is not supported"):
        read_config(layout, {**raw, "architectures": [name]})
    with pytest.raises(CheckpointError, match=f"{key}={value!r} is not supported"):
        read_config(layout, raw)  # whatever it holds
    lm = next(c for c in layout.classes if "LM" in c)
    assert read_config(layout, {**raw, "architectures": [lm]})[1][key] == "of a head that its class does not have"


def test_a_new_head_does_not_take_over_what_the_config_said_of_another(tmp_path: Path) -> None:
    assert outcome(KNOWN["xlm"], {"summary_type": "last"}, tmp_path / "a") == "equal"
    ours = stemma.load(tmp_path / "a", task="classify", labels=3)
    ours.save(tmp_path / "b")
    theirs = hf.XLMForSequenceClassification.from_pretrained(tmp_path / "b").eval()
    ids = torch.randint(5, 57, (2, 9), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        assert (ours(ids).logits - theirs(ids).logits).abs().max() <= 1e-5
    assert stemma.load(tmp_path / "b").arch == ours.arch


def variants(kind: Any) -> list[dict[str, Any]]:
    """A config's fields with other values, one at a time."""
    found: list[dict[str, Any]] = []
    for f in dataclasses.fields(kind):
        if f.name in OTHER:
            continue
        values = MORE.get(f.name, [])
        values = [*ACTIVATIONS, "mish", "sigmoid", "linear"] if f.name in ACTS else values
        values = [not f.default] if isinstance(f.default, bool) else values
        values = [True] if f.default is None and "bool" in str(f.type) else values
        found += [{f.name: value} for value in values if value != f.default]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("model_type", KNOWN)
def test_every_setting_is_read_or_refused_by_its_name(model_type: str, tmp_path: Path) -> None:
    wrong = []
    for i, change in enumerate(variants(hf.CONFIG_MAPPING[model_type])):
        ((key, value),) = change.items()
        found = outcome(KNOWN[model_type], change, tmp_path / str(i))
        odd = key in ACTS and value not in ACTIVATIONS
        want = "refused" if odd or value in REFUSED.get((model_type, key), ()) else "equal"
        if found != want and not found.startswith("unknown"):
            wrong.append(f"{key}={value!r}: {found}, not {want}")
    assert not wrong
