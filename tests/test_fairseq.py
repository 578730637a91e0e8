"""fairseq's layout: files are made here of the reference's models, by renames of their own, in the forms of old and new
versions, and read, written and read again."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

import stemma
from oracle import CASES, inputs, jitter, reference, saved
from stemma.errors import CheckpointError, UsageError
from test_parity import gap

WIDE: dict[str, Any] = dict(encoder_embed_dim=36, encoder_ffn_embed_dim=50, encoder_attention_heads=3,
                            activation_fn="gelu", dropout=0.1, attention_dropout=0.1, activation_dropout=0.0)  # fmt: skip
BOTH = WIDE | dict(encoder_layers=2, decoder_layers=3, decoder_embed_dim=36, decoder_attention_heads=3,
                   decoder_ffn_embed_dim=50, layernorm_embedding=True, share_all_embeddings=True)  # fmt: skip


def options(case: str, **other: Any) -> argparse.Namespace:
    known = {
        "roberta": WIDE | dict(encoder_layers=3, max_positions=40, arch="roberta_base"),
        "bart": BOTH | dict(no_scale_embedding=True, encoder_normalize_before=False, arch="bart_base"),
        "mbart": BOTH | dict(no_scale_embedding=False, encoder_normalize_before=True, arch="mbart_base"),
    }[case.split("-")[0]]
    return argparse.Namespace(**known | other, lr=[1e-4], task="anything", data="/data")


def roberta_state(model: Any, prefix: str = "decoder.", packed: bool = False, norm: str = "emb_layer_norm") -> Any:
    """A RoBERTa of the reference's, as fairseq names it."""
    old = model.state_dict()
    body = f"{prefix}sentence_encoder."
    new = {
        f"{body}embed_tokens.weight": old["roberta.embeddings.word_embeddings.weight"],
        f"{body}embed_positions.weight": old["roberta.embeddings.position_embeddings.weight"],
    }
    for kind in ("weight", "bias"):
        new[f"{body}{norm}.{kind}"] = old[f"roberta.embeddings.LayerNorm.{kind}"]
        for i in range(model.config.num_hidden_layers):
            theirs, mine = f"roberta.encoder.layer.{i}.", f"{body}layers.{i}."
            each = [old[f"{theirs}attention.self.{x}.{kind}"] for x in ("query", "key", "value")]
            if packed:
                new[f"{mine}self_attn.in_proj_{kind}"] = torch.cat(each)
            else:
                new |= {f"{mine}self_attn.{x}_proj.{kind}": t for x, t in zip("qkv", each, strict=True)}
            for a, b in (
                ("attention.output.dense", "self_attn.out_proj"),
                ("attention.output.LayerNorm", "self_attn_layer_norm"),
                ("intermediate.dense", "fc1"),
                ("output.dense", "fc2"),
                ("output.LayerNorm", "final_layer_norm"),
            ):
                new[f"{mine}{b}.{kind}"] = old[f"{theirs}{a}.{kind}"]
        for name in ("dense", "layer_norm"):
            if f"lm_head.{name}.{kind}" in old:
                new[f"{prefix}lm_head.{name}.{kind}"] = old[f"lm_head.{name}.{kind}"]
        for a, b in (("dense", "dense"), ("out_proj", "out_proj")):
            if f"classifier.{a}.{kind}" in old:
                new[f"classification_heads.mnli.{b}.{kind}"] = old[f"classifier.{a}.{kind}"]
    if "lm_head.bias" in old:
        new[f"{prefix}lm_head.bias"] = old["lm_head.bias"]
        new[f"{prefix}lm_head.weight"] = old["roberta.embeddings.word_embeddings.weight"]
    return new


def bart_state(model: Any) -> Any:
    new = {}
    for name, tensor in model.state_dict().items():
        name = name.removeprefix("model.").replace("classification_head.", "classification_heads.mnli.")
        if name not in ("shared.weight", "final_logits_bias", "lm_head.weight"):
            new[name] = tensor
    return new | {"encoder.version": torch.tensor([3.0]), "decoder.version": torch.tensor([3.0])}


def roberta(case: str) -> Any:
    """A RoBERTa of the reference's with what fairseq fixes: eps, and no segments (the reference adds a row, which is
    zero in converted files)."""
    name, config, fields = CASES[case]
    torch.manual_seed(0)
    model = getattr(hf, name)(config(**fields | dict(layer_norm_eps=1e-5, type_vocab_size=1))).eval()
    jitter(model, 1)
    with torch.no_grad():
        model.roberta.embeddings.token_type_embeddings.weight.zero_()
    return model


def parity(case: str, ours: Any, theirs: Any) -> float:
    return gap(ours, theirs, inputs(case))


ROBERTA = [
    dict(prefix="decoder.", packed=True, norm="emb_layer_norm"),
    dict(prefix="decoder.", packed=False, norm="emb_layer_norm"),
    dict(prefix="encoder.", packed=False, norm="layernorm_embedding"),
]


@pytest.mark.parametrize("form", ROBERTA, ids=["oldest", "old", "new"])
@pytest.mark.parametrize("whole", ["args", "cfg", "namespace in cfg", "folder"])
def test_roberta(form: dict[str, Any], whole: str, tmp_path: Path) -> None:
    theirs = roberta("roberta-mlm")
    said: dict[str, Any] = {"args": options("roberta"), "cfg": None}
    if "cfg" in whole:
        said = {
            "args": None,
            "cfg": {"model": options("roberta") if "namespace" in whole else vars(options("roberta"))},
        }
    path = tmp_path / ("model.pt" if whole == "folder" else "any.pt")
    torch.save({**said, "model": roberta_state(theirs, **form), "last_optimizer_state": {"step": 3}}, path)
    ours = stemma.load(tmp_path if whole == "folder" else path)
    assert parity("roberta-mlm", ours, theirs) <= 1e-5
    assert ours.family.name == "roberta" and ours.dims.context == 38 and ours.arch.dropout.attention == 0.1
    ours.save(tmp_path / "b")
    again = hf.RobertaForMaskedLM.from_pretrained(tmp_path / "b").eval()
    assert parity("roberta-mlm", ours, again) <= 1e-5


@pytest.mark.parametrize("case", ["bart", "bart-apart", "mbart", "bart-classify", "mbart-classify"])
def test_bart(case: str, tmp_path: Path) -> None:
    theirs = reference(case)
    own = dict(decoder_attention_heads=6, decoder_ffn_embed_dim=30) if case == "bart-apart" else {}
    torch.save({"args": options(case, **own), "model": bart_state(theirs)}, tmp_path / "model.pt")
    ours = stemma.load(tmp_path)
    assert parity(case, ours, theirs) <= 1e-5
    assert ours.family.name == case.split("-")[0]
    assert all("version" in name for name in ours.ledger.ignored)
    ours.save(tmp_path / "b")
    again = getattr(hf, CASES[case][0]).from_pretrained(tmp_path / "b").eval()
    assert parity(case, ours, again) <= 1e-5


@pytest.mark.parametrize(
    "case", ["roberta-mlm", "roberta-classify", "bart", "bart-apart", "bart-odd", "mbart", "bart-classify"]
)
def test_written_files_are_read_again_bit_for_bit(case: str, tmp_path: Path) -> None:
    theirs = roberta(case) if case.startswith("roberta") else reference(case)
    theirs.save_pretrained(tmp_path / "a")
    ours = stemma.load(tmp_path / "a")
    ours.save(tmp_path / "b", layout="fairseq")
    again = stemma.load(tmp_path / "b")
    assert parity(case, again, theirs) <= 1e-5
    state = dict(again.named_parameters())
    assert set(state) == {n for n, _ in ours.named_parameters()}
    assert all(torch.equal(p, state[n]) for n, p in ours.named_parameters())
    again.save(tmp_path / "c.pt")
    first, second = (torch.load(f, weights_only=False) for f in (tmp_path / "b/model.pt", tmp_path / "c.pt"))
    assert vars(first["args"]) == vars(second["args"]) and set(first["model"]) == set(second["model"])
    # under names that are those of a file made independently
    want = (
        roberta_state(theirs, "encoder.", norm="layernorm_embedding")
        if case.startswith("roberta")
        else bart_state(theirs)
    )
    names = {re.sub("sentence_classification_head", "mnli", n) for n in first["model"]}
    assert {n for n in want if "version" not in n} - names <= {"decoder.embed_tokens.weight"}


def test_a_head_of_classes_leaves_the_other_one_behind(tmp_path: Path) -> None:
    """As in the released RoBERTa of MNLI, which holds both."""
    theirs = roberta("roberta-classify")
    body = roberta("roberta-mlm")
    state = {
        n: t for n, t in roberta_state(body).items() if "lm_head" in n and n != "decoder.lm_head.weight"
    } | roberta_state(theirs)
    torch.save({"args": options("roberta"), "model": state}, tmp_path / "model.pt")
    ours = stemma.load(tmp_path)
    assert parity("roberta-classify", ours, theirs) <= 1e-5
    assert set(ours.ledger.ignored.values()) == {"of a head that the task leaves behind"}


def test_the_vocabulary_is_what_the_embeddings_say(tmp_path: Path) -> None:
    theirs = reference("bart")
    theirs.resize_token_embeddings(100)
    torch.save({"args": options("bart"), "model": bart_state(theirs)}, tmp_path / "model.pt")
    assert stemma.load(tmp_path).dims.vocab == 100


class Odd:
    """Of a class that no reader knows."""


WRONG: list[tuple[Any, str]] = [
    (lambda s, a: {"args": a, "model": s | {"encoder.strange.weight": torch.zeros(3)}}, "encoder.strange.weight"),
    (lambda s, a: {"args": a, "model": {n: t for n, t in s.items() if "layers.1.fc2.weight" not in n}}, "fc2.weight"),
    (lambda s, a: {"args": argparse.Namespace(encoder_layers=2), "model": s}, "encoder_attention_heads"),
    (lambda s, a: {"args": argparse.Namespace(**vars(a) | {"encoder_layers": 7}), "model": s}, "encoder_layers=7"),
    (
        lambda s, a: {"args": argparse.Namespace(**vars(a) | {"activation_fn": "gelo"}), "model": s},
        "did you mean 'gelu'",
    ),
    (
        lambda s, a: {"args": argparse.Namespace(**vars(a) | {"encoder_normalize_before": True}), "model": s},
        "normalize",
    ),
    (
        lambda s, a: {"args": argparse.Namespace(**vars(a) | {"decoder_attention_heads": 5}), "model": s},
        "decoder_heads=5",
    ),
    (lambda s, a: {"args": a, "cfg": Odd(), "model": s}, "Odd"),
    (lambda s, a: {"model": s}, "'args'"),
    (lambda s, a: {"args": a, "model": {"w": torch.zeros(3)}}, "none of RoBERTa"),
    (lambda s, a: [s], "not a list"),
    (lambda s, a: s, "encoder_attention_heads"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[m for _, m in WRONG])
def test_files_that_are_wrong_are_refused_in_a_sentence(change: Any, message: str, tmp_path: Path) -> None:
    torch.save(change(bart_state(reference("bart")), options("bart")), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=re.escape(message)) as caught:
        stemma.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_no_code_is_run(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"args": Code(), "model": {"w": torch.zeros(2)}}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"only argparse.Namespace"):
        stemma.load(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("gpt2", "layout='fairseq' is for"),
        ("bert-mlm", "is for"),
        ("roberta-mlm", "segments"),
        ("roberta-untied", "head"),
    ],
)
def test_what_the_layout_cannot_say_is_refused(case: str, message: str, tmp_path: Path) -> None:
    if case == "roberta-untied":
        model = stemma.build("roberta-base", {"arch.heads.lm.tied": False}, layers=1, d_model=24, heads=4, vocab=50)
    else:
        saved(case, tmp_path / "a")
        model = stemma.load(tmp_path / "a")
    with pytest.raises(UsageError, match=message):
        model.save(tmp_path / "b", layout="fairseq")
    assert not (tmp_path / "b").exists()
    with pytest.raises(UsageError, match="did you mean 'fairseq'"):
        model.save(tmp_path / "b", layout="fairsek")
