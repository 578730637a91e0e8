"""What is particular to the layouts of the encoder-decoders: biases in buffers, bodies under a prefix, encoders alone."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

import stemma
from oracle import inputs, reference, saved
from stemma import families, spec
from stemma.errors import CheckpointError, UsageError
from stemma.formats import attach
from stemma.nn.masks import AttnMask
from stemma.nn.model import count
from stemma.nn.parts import LMHead
from test_parity import gap
from tiny import batch, build, run, tiny

IDS = torch.tensor([[5, 6, 7, 2], [9, 10, 11, 2]])


@pytest.mark.parametrize("case", ["bart", "mbart"])
def test_a_bias_of_the_logits_is_kept(case: str, tmp_path: Path) -> None:
    theirs = reference(case)
    theirs.final_logits_bias += torch.randn(theirs.final_logits_bias.shape, generator=torch.Generator().manual_seed(1))
    theirs.save_pretrained(tmp_path / "a")
    ours = stemma.load(tmp_path / "a")
    assert isinstance(ours.arch.heads.lm, LMHead) and ours.arch.heads.lm.bias
    assert gap(ours, theirs, inputs(case)) <= 1e-5
    ours.save(tmp_path / "b")
    first, second = load_file(tmp_path / "a/model.safetensors"), load_file(tmp_path / "b/model.safetensors")
    assert first.keys() == second.keys() and all(torch.equal(t, second[n]) for n, t in first.items())
    again = type(theirs).from_pretrained(tmp_path / "b").eval()
    assert gap(ours, again, inputs(case)) <= 1e-5


def test_a_bias_of_zeros_is_no_parameter(tmp_path: Path) -> None:
    saved("bart", tmp_path)
    ours = stemma.load(tmp_path)
    assert ours.lm.bias is None and "all zeros" in ours.ledger.ignored["final_logits_bias"]


def test_a_body_takes_its_tied_head(tmp_path: Path) -> None:
    """The file of bart-large names the class of a bare model; its head is the embeddings."""
    theirs = reference("bart")
    theirs.model.save_pretrained(tmp_path)
    assert stemma.load(tmp_path).lm is None
    ours = stemma.load(tmp_path, new=["lm"])
    assert ours.ledger.new == [] and gap(ours, theirs, inputs("bart")) <= 1e-5


@pytest.mark.parametrize("name", ["BartForCausalLM", "BartDecoder"])
def test_classes_that_are_not_supported_are_refused_by_name(name: str, tmp_path: Path) -> None:
    saved("bart", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": [name]}))
    with pytest.raises(CheckpointError, match=name):
        stemma.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder_attention_heads": 7}, "decoder_attention_heads=7"),
        ({"decoder_ffn_dim": 60}, "50"),
        ({"decoder_ffn_dim": None}, "decoder_ffn_dim"),
        ({"normalize_before": True}, "normalize_before"),
        ({"add_final_layer_norm": True}, "add_final_layer_norm"),
        ({"static_position_embeddings": True}, "static_position_embeddings"),
        ({"activation_function": "gelo"}, "did you mean 'gelu'"),
        ({"scale_embeding": True}, "did you mean 'scale_embedding'"),
    ],
)
def test_what_a_config_says_that_is_not_supported_is_refused(change: Any, message: str, tmp_path: Path) -> None:
    saved("bart", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(CheckpointError, match=message):
        stemma.load(tmp_path)


def test_keys_of_the_published_configs_are_known(tmp_path: Path) -> None:
    saved("bart", tmp_path / "a")
    config = json.loads((tmp_path / "a/config.json").read_text())
    old = dict(
        _num_labels=3, add_bias_logits=False, add_final_layer_norm=False, classif_dropout=0.1, early_stopping=True,
        extra_pos_embeddings=2, force_bos_token_to_be_generated=True, forced_bos_token_id=0, gradient_checkpointing=False,
        length_penalty=2.0, max_length=142, min_length=56, no_repeat_ngram_size=3, normalize_before=False, num_beams=4,
        normalize_embedding=True, num_hidden_layers=2, output_past=True, prefix=" ", save_step=58,
        static_position_embeddings=False, task_specific_params={"summarization": {"num_beams": 4}},
    )  # fmt: skip
    (tmp_path / "a/config.json").write_text(json.dumps(config | old))
    model = stemma.load(tmp_path / "a")
    model.save(tmp_path / "b")
    kept = json.loads((tmp_path / "b/config.json").read_text())
    assert all(kept[name] == value for name, value in old.items())


@pytest.mark.parametrize("case", ["t5", "t5-gated", "mt5"])
def test_a_tagger_stands_on_the_encoder_alone(case: str, tmp_path: Path) -> None:
    theirs = saved(case, tmp_path / "a")
    ours = stemma.load(tmp_path / "a", task="tag", labels=5)
    assert ours.decoder is None and ours(IDS).logits.shape == (2, 4, 5)
    with torch.no_grad():
        assert (ours(IDS).hidden - theirs.encoder(IDS).last_hidden_state).abs().max() <= 1e-5
    assert all(not n.startswith("decoder.") or "leaves behind" in why for n, why in ours.ledger.ignored.items())
    ours.save(tmp_path / "b")
    name = f"{'M' if case == 'mt5' else ''}T5ForTokenClassification"
    again = getattr(hf, name).from_pretrained(tmp_path / "b").eval()
    with torch.no_grad():
        assert (ours(IDS).logits - again(IDS).logits).abs().max() <= 1e-5
    assert torch.equal(stemma.load(tmp_path / "b")(IDS).logits, ours(IDS).logits)


@pytest.mark.parametrize(
    ("case", "task", "name"),
    [
        ("t5-gated", "classify", "T5ForSequenceClassification"),
        ("mt5", "answer", "MT5ForQuestionAnswering"),
        ("bart", "classify", "BartForSequenceClassification"),
        ("mbart", "classify", "MBartForSequenceClassification"),
        ("bart", "answer", "BartForQuestionAnswering"),
    ],
)
def test_a_pretrained_body_takes_a_new_head(case: str, task: str, name: str, tmp_path: Path) -> None:
    saved(case, tmp_path / "a")
    ours = stemma.load(tmp_path / "a", task=task)
    assert ours.lm is None and {n.split(".")[0] for n in ours.ledger.new} == {"task"}
    ours.save(tmp_path / "b")
    again = getattr(hf, name).from_pretrained(tmp_path / "b").eval()
    ids = IDS.clone()
    ids[:, -1] = ours.text.eos_ids[0]
    with torch.no_grad():
        out, want = ours(ids), again(ids)
    for name in ("start_logits", "end_logits") if task == "answer" else ("logits",):
        assert (getattr(out, name) - want[name]).abs().max() <= 1e-5


def test_a_classifier_of_fresh_weights_needs_end_tokens() -> None:
    model = stemma.build(
        "bart-base", task="classify", labels=4, layers=1, decoder_layers=1, d_model=24, heads=4, vocab=50
    )
    assert model(IDS).logits.shape == (2, 4)
    with pytest.raises(UsageError, match="end token"):
        model(torch.tensor([[5, 6]]))
    assert stemma.build("flan-t5-small", task="tag", layers=1, d_model=24, heads=4, vocab=50).decoder is None


def test_mbart_begins_with_the_targets_last_token(tmp_path: Path) -> None:
    saved("mbart", tmp_path)
    model = stemma.load(tmp_path)
    labels = torch.tensor([[5, 6, 2, 90], [7, 2, 91, -100]])
    assert model.shift_right(labels).tolist() == [[90, 5, 6, 2], [91, 7, 2, 91]]
    first = stemma.load(tmp_path)
    assert first.family["mbart-large-cc25"].text.start_id is None


def test_flan_is_more_training_of_the_adapted_t5() -> None:
    line = [(f.name, f.edge) for f in stemma.family("flan-t5").lineage]
    assert line[:3] == [("flan-t5", "trained"), ("t5-lm", "trained"), ("t5-v1.1", "evolve")]
    assert stemma.design("flan-t5-xl").dims == stemma.design("t5-v1.1-xl").dims


def test_the_mixture_of_ul2_is_as_published() -> None:
    kinds = stemma.family("ul2").objective.kinds
    assert [k.mode for k in kinds] == ["[NLU]"] * 2 + ["[S2S]"] + ["[NLG]"] * 4
    assert {(k.rate, k.mean) for k in kinds if k.mode == "[NLG]"} == {(0.5, 3), (0.5, 8), (0.15, 64), (0.5, 64)}


def test_a_file_that_holds_the_encoder_only_is_one(tmp_path: Path) -> None:
    theirs = saved("t5-encoder-model", tmp_path)
    ours = stemma.load(tmp_path)
    assert ours.arch.structure == "encoder" and ours.decoder is None and theirs is not None
    state = load_file(tmp_path / "model.safetensors")
    save_file(state | {"decoder.final_layer_norm.weight": torch.ones(36)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="no place"):
        stemma.load(tmp_path)


# ---------------------------------------------------------------- a decoder of other widths

APART = {"dims.decoder_heads": 2, "dims.decoder_d_ff": 20, "dims.decoder_layers": 1}


@pytest.mark.parametrize("name", ["bart", "t5", "transformer"])
def test_a_decoder_may_have_other_heads_and_another_inner_width(name: str, tmp_path: Path) -> None:
    """Built, counted, initialised, decoded with a cache, saved (where the publisher has no word for it, in Stemma's own
    layout) and read again."""
    design = tiny(name, **APART)
    assert "dims.decoder_heads: 2" in spec.show(design) and "decoder_heads" not in spec.show(tiny(name))
    model = attach(build(design), design, families.family(name))
    assert model.encoder.blocks[0].mlp.up.out_features == 50 and model.decoder.blocks[0].mlp.up.out_features == 20
    assert model.decoder.blocks[0].cross.scores(torch.zeros(1, 3, 36), AttnMask())[0].shape[1] == 2
    assert count(design.arch, design.dims) == sum(p.numel() for p in model.parameters())
    given = batch(design, 1, 9)
    found = stemma.generate(model, given["input_ids"].tolist(), max_new_tokens=5, temperature=0, ignore_eos=True)[0].ids
    ids = [design.text.start_id]
    for _ in found:
        ids.append(int(run(model, given | {"decoder_input_ids": torch.tensor([ids])}).logits[0, -1].argmax()))
    assert list(found) == ids[1:]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model.save(tmp_path)
    assert any("own layout" in str(w.message) for w in told) == (name != "bart")
    again = stemma.load(tmp_path)
    assert again.dims == design.dims and torch.equal(run(again, given).logits, run(model, given).logits)


def test_widths_of_a_decoder_that_cannot_be() -> None:
    dims = tiny("bart").dims
    assert replace(dims, decoder_heads=dims.heads, decoder_d_ff=dims.d_ff) == dims
    for change, words in [
        ({"decoder_heads": 5}, "dims.d_model=36 is not a multiple of dims.decoder_heads=5"),
        ({"decoder_heads": 4, "kv_heads": 3}, "dims.decoder_heads=4 is not a multiple of dims.kv_heads=3"),
        ({"decoder_d_ff": 0}, "dims.decoder_d_ff must be at least 1"),
    ]:
        with pytest.raises(UsageError, match=words):
            replace(dims, **change)
    with pytest.raises(UsageError, match="are for an encoder-decoder, not for a decoder"):
        build(tiny("llama", **{"dims.decoder_d_ff": 20}))
    assert replace(dims, d_ff=48, decoder_heads=3).uneven(3) == (
        "tp does not split a decoder whose heads have another width than the encoder's 6"
    )
    assert replace(dims, head_dim=10, decoder_heads=3, d_ff=48).uneven(3) is None
    assert "dims.decoder_d_ff=20" in str(replace(dims, decoder_d_ff=20, d_ff=48).uneven(3))
