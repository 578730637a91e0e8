"""Weights in and out: the habits of old files, damaged ones, saving that cannot go half, memory."""

from __future__ import annotations

import errno
import gc
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

import stemma
from oracle import inputs, saved
from stemma import formats
from stemma.errors import CheckpointError, ResourceError, UsageError
from stemma.formats import tensors as stored
from stemma.text import Specials, Tokenizer

State = dict[str, torch.Tensor]


def write(folder: Path, config: dict[str, Any], state: State) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({k: v.contiguous().clone() for k, v in state.items()}, folder / "model.safetensors", {"format": "pt"})
    return folder


def read(folder: Path) -> tuple[dict[str, Any], State]:
    return json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")


def same(a: Any, b: Any) -> bool:
    """Whether two models of ours hold the same parameters, bit for bit."""
    x, y = dict(a.named_parameters()), dict(b.named_parameters())
    return set(x) == set(y) and all(torch.equal(x[k], y[k]) and x[k].dtype == y[k].dtype for k in x)


def equal_files(a: Path, b: Path) -> bool:
    names = sorted(f.name for f in a.iterdir())
    return names == sorted(f.name for f in b.iterdir()) and all(
        (a / n).read_bytes() == (b / n).read_bytes() for n in names
    )


def refusal(folder: Path, **options: Any) -> str:
    """The one sentence by which a folder is refused; no parameter may have been read into a model by then."""
    with pytest.raises(CheckpointError) as caught:
        stemma.load(folder, **options)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 600, text
    return text


def accounted(model: Any, state: State) -> bool:
    """Whether every tensor of a file and of a model is in the ledger, once."""
    ledger = model.ledger
    theirs = [*set(ledger.loaded.values()), *ledger.tied, *ledger.ignored]
    ours = [*ledger.loaded, *ledger.new]
    return sorted(theirs) == sorted(state) and sorted(ours) == sorted(k for k, _ in model.named_parameters())


# ---------------------------------------------------------------- the habits of old files


def bert_gamma(state: State) -> State:
    return {
        k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
        for k, v in state.items()
    }


def without(prefix: str) -> Callable[[State], State]:
    return lambda state: {k.removeprefix(prefix): v for k, v in state.items()}


def positions(prefix: str) -> Callable[[State], State]:
    return lambda state: state | {f"{prefix}embeddings.position_ids": torch.arange(40)[None]}


def duplicates(*pairs: tuple[str, str]) -> Callable[[State], State]:
    return lambda state: state | {new: state[old] for new, old in pairs}


def masks(state: State) -> State:
    prefix = "transformer." if any(k.startswith("transformer.") for k in state) else ""
    extra: State = {}
    for i in range(3):
        extra[f"{prefix}h.{i}.attn.bias"] = torch.ones(1, 1, 40, 40, dtype=torch.uint8).tril()
        extra[f"{prefix}h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    return state | extra


def stray_bias(state: State) -> State:
    name = "relative_attention_bias.weight"
    return state | {
        f"decoder.block.0.layer.1.EncDecAttention.{name}": state[f"decoder.block.0.layer.0.SelfAttention.{name}"]
    }


def inv_freq(state: State) -> State:
    return state | {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.rand(3) for i in range(3)}


BERT_TIES = [
    ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
    ("cls.predictions.decoder.bias", "cls.predictions.bias"),
]
ROBERTA_TIES = [
    ("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),
    ("lm_head.decoder.bias", "lm_head.bias"),
]
T5_TIES = [(f"{x}.embed_tokens.weight", "shared.weight") for x in ("encoder", "decoder")]
OLD: dict[str, tuple[str, Callable[[State], State], int, int]] = {  # case, edit, how many tied, how many ignored
    "gamma and beta": ("bert-pretraining", bert_gamma, 0, 0),
    "no prefix": ("bert-pretraining", without("bert."), 0, 0),
    "position ids": ("bert-mlm", positions("bert."), 0, 1),
    "position ids of a body": ("bert-model", positions(""), 0, 1),
    "tied twice": ("bert-pretraining", duplicates(*BERT_TIES), 2, 0),
    "all of it": ("bert-pretraining", lambda s: without("bert.")(bert_gamma(positions("bert.")(duplicates(*BERT_TIES)(s)))), 2, 1),
    "roberta tied twice": ("roberta-mlm", lambda s: positions("roberta.")(duplicates(*ROBERTA_TIES)(s)), 2, 1),
    "gpt2 of the hub": ("gpt2", lambda s: masks(without("transformer.")(s)), 0, 6),
    "gpt2 with prefix": ("gpt2", masks, 0, 6),
    "gpt2 body with prefix": ("gpt2-model", lambda s: masks({f"transformer.{k}": v for k, v in s.items()}), 0, 6),
    "gpt2 with its head": ("gpt2", duplicates(("lm_head.weight", "transformer.wte.weight")), 1, 0),
    "gpt1 without prefix": ("gpt1", without("transformer."), 0, 0),
    "t5 tables": ("t5", lambda s: stray_bias(duplicates(*T5_TIES)(s)), 2, 1),
    "t5 with its head": ("t5", duplicates(("lm_head.weight", "shared.weight"), *T5_TIES), 3, 0),
    "t5 v1.1 tables": ("t5-gated", lambda s: stray_bias(duplicates(*T5_TIES)(s)), 2, 1),
    "llama frequencies": ("llama", inv_freq, 0, 3),
    "llama tied with its head": ("llama-mha-tied", duplicates(("lm_head.weight", "model.embed_tokens.weight")), 1, 0),
    "llama body without prefix": ("llama", lambda s: {k.removeprefix("model."): v for k, v in s.items()}, 0, 0),
    "mistral frequencies": ("mistral", inv_freq, 0, 3),
}  # fmt: skip


@pytest.mark.parametrize("habit", OLD)
def test_old_habits_give_the_same_model(habit: str, tmp_path: Path) -> None:
    case, edit, tied, ignored = OLD[habit]
    saved(case, tmp_path / "a")
    config, state = read(tmp_path / "a")
    clean, edited = stemma.load(tmp_path / "a"), edit(state)
    old = stemma.load(write(tmp_path / "b", config, edited))
    assert same(clean, old)
    assert accounted(old, edited) and accounted(clean, state)
    assert len(old.ledger.tied) == tied and len(old.ledger.ignored) == ignored
    assert all(old.ledger.ignored.values())  # each with a reason
    assert str(old.ledger).startswith(f"{len(old.ledger.loaded)} loaded, {tied} tied, 0 new, {ignored} ignored")


def test_a_file_of_the_hub_may_hold_more_heads_than_its_class(tmp_path: Path) -> None:
    theirs = saved("bert-pretraining", tmp_path)  # as bert-base-uncased: the class has one head, the file three
    config, state = read(tmp_path)
    write(tmp_path, config | {"architectures": ["BertForMaskedLM"]}, state | {"cls.predictions.decoder.weight": state["bert.embeddings.word_embeddings.weight"]})  # fmt: skip
    ours = stemma.load(tmp_path)
    assert ours.arch.heads.pooler and ours.arch.heads.pair
    batch = inputs("bert-pretraining")
    with torch.no_grad():
        assert (ours(**batch).seq_relationship_logits - theirs(**batch).seq_relationship_logits).abs().max() < 1e-5
    ours.save(tmp_path / "again")
    assert json.loads((tmp_path / "again/config.json").read_text())["architectures"] == ["BertForPreTraining"]


def test_roberta_with_pooler_keeps_its_published_class(tmp_path: Path) -> None:
    saved("roberta-mlm", tmp_path)
    config, state = read(tmp_path)
    d = config["hidden_size"]
    state |= {"roberta.pooler.dense.weight": torch.randn(d, d), "roberta.pooler.dense.bias": torch.randn(d)}
    ours = stemma.load(write(tmp_path, config, duplicates(*ROBERTA_TIES)(state)))
    assert ours.arch.heads.pooler and accounted(ours, duplicates(*ROBERTA_TIES)(state))
    ours.save(tmp_path / "again")
    assert json.loads((tmp_path / "again/config.json").read_text())["architectures"] == ["RobertaForMaskedLM"]
    assert same(ours, stemma.load(tmp_path / "again"))


def test_a_file_that_names_no_class_has_the_heads_it_holds(tmp_path: Path) -> None:
    for case, head in [
        ("bert-pretraining", True),
        ("bert-model", False),
        ("gpt2", True),
        ("llama", True),
    ]:
        saved(case, tmp_path / case)
        config, state = read(tmp_path / case)
        del config["architectures"]
        ours = stemma.load(write(tmp_path / case, config, state))
        assert (ours.lm is not None) == head and accounted(ours, state)


def test_two_names_for_one_tensor_are_refused(tmp_path: Path) -> None:
    saved("bert-mlm", tmp_path)
    config, state = read(tmp_path)
    state["bert.embeddings.LayerNorm.gamma"] = torch.zeros(36)
    assert "LayerNorm.gamma" in refusal(write(tmp_path, config, state))


# ---------------------------------------------------------------- heads that are not there


@pytest.mark.parametrize(
    ("case", "architecture", "drop", "head"),
    [
        ("bert-pretraining", "BertForMaskedLM", "cls.", "lm"),
        ("bert-pretraining", "BertForPreTraining", "cls.seq_relationship", "pair"),
        ("bert-pretraining", "BertForPreTraining", "cls.predictions", "lm"),
        ("bert-pretraining", "BertModel", "bert.pooler", "pooler"),
        ("roberta-mlm", "RobertaForMaskedLM", "lm_head", "lm"),
        ("llama", "LlamaForCausalLM", "lm_head", "lm"),
        ("mistral", "MistralForCausalLM", "lm_head", "lm"),
        ("t5-gated", "T5ForConditionalGeneration", "lm_head", "lm"),
        ("gpt2-unscaled", "GPT2LMHeadModel", "lm_head", "lm"),
    ],
)
def test_a_missing_head_is_refused_unless_it_is_asked_for(
    case: str, architecture: str, drop: str, head: str, tmp_path: Path
) -> None:
    saved(case, tmp_path)
    config, state = read(tmp_path)
    if case == "t5-gated":  # the reference cannot make one whose head is its own
        state["lm_head.weight"] = torch.randn(93, 36)
    kept = {k: v for k, v in state.items() if not k.startswith(drop)}
    assert len(kept) < len(state)
    if case == "t5-gated":
        config |= {"tie_word_embeddings": False, "scale_decoder_outputs": False}
    write(tmp_path, config | {"architectures": [architecture]}, kept)
    text = refusal(tmp_path)
    assert repr(head) in text and drop in text and "new=" in text, text
    ours = stemma.load(tmp_path, new=[head])
    assert ours.ledger.new and all(n.startswith(head + ".") for n in ours.ledger.new)
    assert accounted(ours, kept)
    assert all(torch.isfinite(p).all() and not p.is_meta for p in ours.parameters())
    assert same(ours, stemma.load(tmp_path, new=[head]))  # drawn from a fixed seed
    weight = ours.get_parameter(next(n for n in ours.ledger.new if n.endswith("weight") and "norm" not in n))
    assert 0.5 * 0.02 < weight.std() < 3
    write(tmp_path, config | {"architectures": [architecture]}, {k: v.bfloat16() for k, v in kept.items()})
    for dtype, kind in (("bfloat16", torch.bfloat16), ("auto", torch.bfloat16), ("float32", torch.float32)):
        assert {p.dtype for p in stemma.load(tmp_path, new=[head], dtype=dtype).parameters()} == {kind}


def test_half_a_head_is_completed_only_where_it_is_missing(tmp_path: Path) -> None:
    saved("bert-pretraining", tmp_path)
    config, state = read(tmp_path)
    del state["bert.pooler.dense.bias"]
    write(tmp_path, config, state)
    assert "bert.pooler.dense.bias" in refusal(tmp_path)
    ours = stemma.load(tmp_path, new=["pooler"])
    assert ours.ledger.new == ["pooler.dense.bias"]
    assert torch.equal(ours.pooler.dense.weight, state["bert.pooler.dense.weight"])
    assert not ours.pooler.dense.bias.any()


def test_heads_that_do_not_exist(tmp_path: Path) -> None:
    saved("gpt2", tmp_path)
    with pytest.raises(UsageError, match="did you mean 'pooler'"):
        stemma.load(tmp_path, new=["poolr"])
    with pytest.raises(UsageError, match="pooler"):
        stemma.load(tmp_path, new=["pooler"])


# ---------------------------------------------------------------- the ties of T5 v1.1


@pytest.mark.parametrize(
    "flags", [{"tie_word_embeddings": False}, {"tie_word_embeddings": False, "scale_decoder_outputs": False}]
)
def test_t5_v1_1_keeps_its_own_head(flags: dict[str, bool], tmp_path: Path) -> None:
    saved("t5-gated", tmp_path)
    config, state = read(tmp_path)
    config.pop("scale_decoder_outputs", None)
    state = {k: v for k, v in state.items() if "embed_tokens" not in k}
    state["lm_head.weight"] = torch.randn(93, 36)
    ours = stemma.load(write(tmp_path, config | flags, state))
    assert torch.equal(ours.lm.weight, state["lm_head.weight"]) and ours.lm.factor == 1.0
    theirs = hf.T5ForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert torch.equal(theirs.lm_head.weight, state["lm_head.weight"])
    batch = inputs("t5-gated")
    with torch.no_grad():
        assert (ours(**batch).logits - theirs(**batch).logits).abs().max() < 1e-5
    # saved again by transformers, the config says that it is tied, and two different tensors say that it is not
    theirs.save_pretrained(tmp_path / "resaved")
    config, state = read(tmp_path / "resaved")
    assert config["tie_word_embeddings"] is True and config["scale_decoder_outputs"] is False
    assert not torch.equal(state["lm_head.weight"], state["shared.weight"])
    again = stemma.load(tmp_path / "resaved")
    assert same(ours, again) and not again.arch.heads.lm.tied and not again.arch.heads.lm.scaled
    again.save(tmp_path / "ours")
    third = hf.T5ForConditionalGeneration.from_pretrained(tmp_path / "ours").eval()
    with torch.no_grad():
        assert (third(**batch).logits - theirs(**batch).logits).abs().max() < 1e-5
    assert same(ours, stemma.load(tmp_path / "ours"))


def test_elsewhere_a_tie_that_does_not_hold_is_refused(tmp_path: Path) -> None:
    for case, name in [("gpt2", "lm_head.weight"), ("llama-mha-tied", "lm_head.weight"), ("bert-mlm", "cls.predictions.decoder.weight"), ("t5", "encoder.embed_tokens.weight")]:  # fmt: skip
        saved(case, tmp_path / case)
        config, state = read(tmp_path / case)
        state[name] = torch.randn_like(
            next(v for k, v in state.items() if v.ndim == 2 and v.shape[0] == config["vocab_size"])
        )
        assert name in refusal(write(tmp_path / case, config, state))


# ---------------------------------------------------------------- the older file format


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("case", ["gpt2", "bert-pretraining", "llama"])
def test_bin_files_give_the_same_tensors(case: str, zipped: bool, tmp_path: Path) -> None:
    saved(case, tmp_path / "a")
    config, state = read(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b/config.json").write_text(json.dumps(config))
    torch.save(state, tmp_path / "b/pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    a, b = stemma.load(tmp_path / "a"), stemma.load(tmp_path / "b")
    assert same(a, b) and accounted(b, state)
    assert not any(p.untyped_storage().nbytes() > p.nbytes for p in b.parameters())
    parts = [dict(list(state.items())[::2]), dict(list(state.items())[1::2])]
    (tmp_path / "b/pytorch_model.bin").unlink()
    index = {}
    for i, part in enumerate(parts, 1):
        name = f"pytorch_model-{i:05d}-of-00002.bin"
        torch.save({k: torch.nn.Parameter(v) for k, v in part.items()}, tmp_path / "b" / name)
        index |= dict.fromkeys(part, name)
    (tmp_path / "b/pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    assert same(a, stemma.load(tmp_path / "b"))


class Payload:
    """What a hostile file would hold: reading it as a pickle runs a command."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_bin_file_is_not_run(zipped: bool, tmp_path: Path) -> None:
    saved("gpt2", tmp_path)
    _, state = read(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    bad, mark = tmp_path / "pytorch_model.bin", tmp_path / "executed"
    torch.save(state | {"x": Payload(mark)}, bad, _use_new_zipfile_serialization=zipped)
    text = refusal(tmp_path)
    assert "pytorch_model.bin" in text and "not run" in text and "weights_only" not in text, text
    bad.write_bytes(pickle.dumps(Payload(mark)))
    assert "pytorch_model.bin" in refusal(tmp_path)
    assert not mark.exists()


@pytest.mark.parametrize("damage", ["half", "garbage", "empty", "list", "half before 1.6"])
def test_damaged_bin_files(damage: str, tmp_path: Path) -> None:
    saved("gpt2", tmp_path)
    _, state = read(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    file = tmp_path / "pytorch_model.bin"
    torch.save(
        state if damage != "list" else list(state.values()), file, _use_new_zipfile_serialization="1.6" not in damage
    )
    data = file.read_bytes()
    if damage != "list":
        file.write_bytes({"garbage": b"not a file of torch", "empty": b""}.get(damage, data[: len(data) // 2]))
    assert "pytorch_model.bin" in refusal(tmp_path)


# ---------------------------------------------------------------- damage


def shards(folder: Path) -> dict[str, str]:
    return json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]


def damage_truncate(f: Path) -> None:
    data = (f / "model.safetensors").read_bytes()
    (f / "model.safetensors").write_bytes(data[: len(data) - 100])


def damage_header(f: Path) -> None:
    data = bytearray((f / "model.safetensors").read_bytes())
    data[8:40] = b"\xff" * 32
    (f / "model.safetensors").write_bytes(bytes(data))


def damage_pointer(f: Path) -> None:
    (f / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")


def edit_state(change: Callable[[State], object]) -> Callable[[Path], None]:
    def damage(f: Path) -> None:
        config, state = read(f)
        change(state)
        write(f, config, state)

    return damage


def edit_config(**fields: Any) -> Callable[[Path], None]:
    def damage(f: Path) -> None:
        config, _ = read(f)
        (f / "config.json").write_text(json.dumps(config | fields))

    return damage


def rows_of_embedding(state: State) -> None:
    state["transformer.wte.weight"] = state["transformer.wte.weight"][:-1]


DAMAGE: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "cut short": (damage_truncate, ["model.safetensors", "cut short"]),
    "empty file": (lambda f: (f / "model.safetensors").write_bytes(b""), ["model.safetensors"]),
    "bad header": (damage_header, ["model.safetensors"]),
    "pointer": (damage_pointer, ["model.safetensors"]),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), ["no weights", "model.safetensors"]),
    "no config": (lambda f: (f / "config.json").unlink(), ["config.json", "does not exist"]),
    "broken json": (lambda f: (f / "config.json").write_text('{"model_type": "gpt2",\n oops}'), ["config.json", "line 2"]),
    "json list": (lambda f: (f / "config.json").write_text("[]"), ["config.json", "object"]),
    "latin-1": (lambda f: (f / "config.json").write_bytes(b'{"a": "\xe9"}'), ["config.json", "UTF-8"]),
    "vocabulary": (edit_config(vocab_size=100), ["wte.weight", "[91, 36]", "[100, 36]"]),
    "width": (edit_state(rows_of_embedding), ["wte.weight", "[90, 36]", "[91, 36]"]),
    "packed": (
        edit_state(lambda s: s.update({"transformer.h.1.attn.c_attn.weight": torch.zeros(108, 36)})),
        ["h.1.attn.c_attn.weight", "[108, 36]", "[36, 108]"],
    ),
    "a scalar": (edit_state(lambda s: s.update({"transformer.ln_f.bias": torch.tensor(1.0)})), ["ln_f.bias", "[]", "[36]"]),
    "missing": (edit_state(lambda s: s.pop("transformer.h.2.mlp.c_fc.bias")), ["transformer.h.2.mlp.c_fc.bias", "missing"]),
    "misspelt": (
        edit_state(lambda s: s.update({"transformer.h.2.mlp.c_fcc.bias": s.pop("transformer.h.2.mlp.c_fc.bias")})),
        ["'transformer.h.2.mlp.c_fc.bias' is missing", "c_fcc"],
    ),
    "extra": (edit_state(lambda s: s.update({"transformer.extra.weight": torch.ones(3)})), ["transformer.extra.weight"]),
    "a layer too many": (edit_config(n_layer=2), ["transformer.h.2."]),
    "a layer too few": (edit_config(n_layer=4), ["transformer.h.3.", "missing"]),
    "whole numbers": (
        edit_state(lambda s: s.update({"transformer.ln_f.bias": torch.ones(36, dtype=torch.int8)})),
        ["ln_f.bias", "I8"],
    ),
    "generation": (lambda f: (f / "generation_config.json").write_text("{"), ["generation_config.json", "JSON"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_gives_one_sentence(kind: str, tmp_path: Path) -> None:
    damage, words = DAMAGE[kind]
    saved("gpt2", tmp_path)
    damage(tmp_path)
    text = refusal(tmp_path)
    assert all(word in text for word in words), text


def test_not_a_folder(tmp_path: Path) -> None:
    assert str(tmp_path) in refusal(tmp_path)
    saved("gpt2", tmp_path)
    assert "is a file" in refusal(tmp_path / "model.safetensors")
    for wrong in (tmp_path / "absent", "a b/c", "one", "a/b/c", "./absent"):
        with pytest.raises(UsageError, match="neither a folder nor a hub id"):
            stemma.load(wrong)
    with pytest.raises(UsageError, match="did you mean 'bfloat16'"):
        stemma.load(tmp_path, dtype="bfloat61")


def test_a_file_that_is_missing_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model.pt").touch()
    for wrong, hint in (("m/modle.pt", "; did you mean 'm/model.pt'?"), ("org/x.safetensors", ""), ("x.bin", "")):
        with pytest.raises(UsageError) as error:
            stemma.load(wrong)
        assert str(error.value) == f"there is no file {wrong!r}{hint}"


def damage_shard(f: Path, edit: Callable[[State], object], which: int = 0) -> str:
    name = sorted(set(shards(f).values()))[which]
    state = load_file(f / name)
    edit(state)
    save_file(state, f / name)
    return name


def test_damaged_shards(tmp_path: Path) -> None:
    saved("llama", tmp_path / "a")
    model = stemma.load(tmp_path / "a")

    def fresh() -> Path:
        model.save(tmp_path / "b", shard_bytes=20_000)
        return tmp_path / "b"

    f = fresh()
    names = sorted(set(shards(f).values()))
    assert len(names) >= 3
    (f / names[1]).unlink()
    assert names[1] in refusal(f) and "missing" in refusal(f)
    f = fresh()
    lost: list[str] = []
    name = damage_shard(f, lambda s: lost.append(next(iter(s))) or s.pop(lost[0]))
    assert lost[0] in refusal(f) and name in refusal(f)
    f = fresh()
    other = load_file(f / names[1])
    damage_shard(f, lambda s: s.update({next(iter(other)): torch.zeros(3)}))
    assert "twice" in refusal(f)
    f = fresh()
    (f / names[2]).write_bytes((f / names[2]).read_bytes()[:-9])
    assert names[2] in refusal(f)
    index = f / "model.safetensors.index.json"
    for bad in (
        "{",
        "{}",
        '{"weight_map": {}}',
        '{"weight_map": ["a"]}',
        '{"weight_map": {"x": "../up.safetensors"}}',
        '{"weight_map": {"x": 3}}',
    ):
        index.write_text(bad)
        assert "index.json" in refusal(f)


def test_nothing_is_read_before_all_names_and_shapes_are_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved("gpt2", tmp_path)
    edit_state(lambda s: s.update({"zzz": torch.ones(3)}))(tmp_path)
    monkeypatch.setattr(stored.Tensors, "get", lambda self, name: pytest.fail("read"))
    assert "'zzz'" in refusal(tmp_path)
    edit_state(lambda s: s.pop("zzz") if "zzz" in s else s.pop("transformer.ln_f.bias"))(tmp_path)
    edit_config(vocab_size=92)(tmp_path)
    assert "wte" in refusal(tmp_path)


# ---------------------------------------------------------------- tokenizers


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    specials = Specials(bos="<s>", eos="</s>", pad="<pad>", unk="<unk>")
    made = Tokenizer.train("bpe", ["the tree of words grows in the wood"] * 20, 280, specials)
    made.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    return made


def small(vocab: int, **dims: Any) -> Any:
    return stemma.build("gpt2", layers=2, d_model=16, heads=2, d_ff=24, context=16, vocab=vocab, **dims)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_tokenizer_that_is_too_big_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    small(tokenizer.vocab_size - 1).save(tmp_path)
    tokenizer.save(tmp_path)
    text = refusal(tmp_path)
    assert str(tokenizer.vocab_size) in text and "tokenizer" in text
    assert stemma.load(tmp_path, tokenizer=False).tokenizer is None


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_checkpoint_is_replaced_as_a_whole(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = small(tokenizer.vocab_size)
    model.tokenizer = tokenizer
    model.save(tmp_path)
    assert stemma.load(tmp_path).tokenizer.chat_template == tokenizer.chat_template
    (tmp_path / "vocab.json").write_text("{}")  # of another tokenizer
    (tmp_path / "notes.md").write_text("mine")
    (tmp_path / "adapter.safetensors").write_text("mine too")
    plain = Tokenizer.train("bpe", ["other words"] * 20, 270, Specials(eos="</s>"))
    model.tokenizer = plain
    model.save(tmp_path)
    assert stemma.load(tmp_path).tokenizer.chat_template is None
    assert not (tmp_path / "vocab.json").exists()
    assert (tmp_path / "notes.md").read_text() == "mine" and (tmp_path / "adapter.safetensors").exists()
    with pytest.raises(UsageError, match="holds a tokenizer"):
        stemma.load(tmp_path, tokenizer=False).save(tmp_path)


# ---------------------------------------------------------------- saving


def test_generation_config_chat_template_and_unused_keys_survive(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = small(tokenizer.vocab_size)
    model.tokenizer = tokenizer
    model.save(tmp_path / "a")
    extra = {
        "id2label": {"0": "no", "1": "yes"},
        "label2id": {"no": 0, "yes": 1},
        "task_specific_params": {"text-generation": {"do_sample": True}},
        "n_ctx": 16,
        "torch_dtype": "float16",
        "transformers_version": "4.1.0",
    }
    edit_config(**extra)(tmp_path / "a")
    generation = {"do_sample": True, "temperature": 0.6, "eos_token_id": [2, 3], "transformers_version": "4.31.0"}
    (tmp_path / "a/generation_config.json").write_text(json.dumps(generation))
    stemma.load(tmp_path / "a").save(tmp_path / "b")
    config = json.loads((tmp_path / "b/config.json").read_text())
    assert all(config[k] == v for k, v in extra.items() if k != "torch_dtype")
    assert "torch_dtype" not in config and config["dtype"] == "float32"
    assert json.loads((tmp_path / "b/generation_config.json").read_text()) == generation
    assert stemma.load(tmp_path / "b").tokenizer.chat_template == tokenizer.chat_template
    assert same(stemma.load(tmp_path / "a"), stemma.load(tmp_path / "b"))


def test_old_rotary_spellings_do_not_survive_beside_the_new(tmp_path: Path) -> None:
    saved("llama-linear", tmp_path)
    config, state = read(tmp_path)
    rope = config.pop("rope_parameters")
    config |= {"rope_theta": rope["rope_theta"], "rope_scaling": {"type": "linear", "factor": rope["factor"]}}
    model = stemma.load(write(tmp_path, config, state))
    model.save(tmp_path / "b")
    config = json.loads((tmp_path / "b/config.json").read_text())
    assert config["rope_parameters"] == rope and "rope_theta" not in config and "rope_scaling" not in config
    assert stemma.load(tmp_path / "b").arch == model.arch


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("case", ["gpt2", "t5", "llama", "bert-pretraining"])
def test_shards_and_types_reload_bit_exact(case: str, dtype: str, tmp_path: Path) -> None:
    theirs = saved(case, tmp_path / "a")
    kind = getattr(torch, dtype)
    ours = stemma.load(tmp_path / "a")
    ours.save(tmp_path / "b", dtype=dtype, shard_bytes=15_000)
    assert len(set(shards(tmp_path / "b").values())) > 2 and not (tmp_path / "b/model.safetensors").exists()
    again = stemma.load(tmp_path / "b", dtype="auto")
    assert same(ours.to(kind), again) and again.dtype == kind
    other = type(theirs).from_pretrained(tmp_path / "b", dtype="auto")
    assert other.dtype == kind
    a, b = theirs.to(kind).state_dict(), other.state_dict()
    assert set(a) == set(b) and all(torch.equal(a[k], b[k]) for k in a)
    assert stemma.load(tmp_path / "b").dtype == torch.float32
    again.save(tmp_path / "c")
    assert json.loads((tmp_path / "c/config.json").read_text())["dtype"] == dtype


def test_files_are_as_readable_as_the_umask_says(tmp_path: Path) -> None:
    small(30).save(tmp_path / "a")
    modes = {f.stat().st_mode & 0o777 for f in (tmp_path / "a").iterdir()}
    (tmp_path / "probe").touch()
    assert modes == {(tmp_path / "probe").stat().st_mode & 0o777}


def copy(a: Path, b: Path) -> None:
    b.mkdir()
    for f in a.iterdir():
        (b / f.name).write_bytes(f.read_bytes())


def scratch_left(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.name.startswith(stored.SCRATCH)]


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("where", ["weights", "config", "fsync", *(f"move {i}" for i in range(9))])
@pytest.mark.parametrize("old_shards", [False, True])
def test_a_full_disk_leaves_the_old_checkpoint(
    where: str, old_shards: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, kept = tmp_path / "x", tmp_path / "kept"
    small(30, seed=1).save(folder, shard_bytes=6_000 if old_shards else 10**9)
    copy(folder, kept)
    new = stemma.build(
        "gpt2", {"arch.norm.eps": 1e-3}, seed=2, layers=2, d_model=16, heads=2, d_ff=24, context=16, vocab=30
    )
    if where == "weights":
        monkeypatch.setattr(stored, "write_shard", full_disk)
    elif where == "config":
        monkeypatch.setattr(stored, "write_json", full_disk)
    elif where == "fsync":
        monkeypatch.setattr(os, "fsync", full_disk)
    else:
        real, left = os.replace, [int(where.split()[1])]

        def replace(a: Any, b: Any) -> None:
            left[0] -= 1
            if left[0] == -1:
                full_disk()
            real(a, b)

        monkeypatch.setattr(os, "replace", replace)
    size = 10**9 if old_shards else 6_000
    try:
        new.save(folder, shard_bytes=size)
    except ResourceError as error:
        assert "disk is full" in str(error)
        assert equal_files(folder, kept)
    else:
        assert where.startswith("move") and left[0] >= 0  # fewer files were moved than that
    monkeypatch.undo()
    assert not scratch_left(tmp_path)
    new.save(folder, shard_bytes=size)
    loaded = stemma.load(folder)
    assert same(loaded, new) and loaded.arch.norm.eps == 1e-3


def test_a_full_disk_on_a_new_folder_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "write_shard", full_disk)
    with pytest.raises(ResourceError, match="full"):
        small(30).save(tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_unwritable_places(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        small(30).save(tmp_path / "file")
    with pytest.raises(ResourceError, match="cannot write"):
        small(30).save(tmp_path / "file/below")


def test_moves_that_cannot_be_undone_say_where_the_old_files_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(30).save(tmp_path / "x")
    real, calls = os.replace, [0]

    def replace(a: Any, b: Any) -> None:
        calls[0] += 1
        if calls[0] > 2:
            full_disk()
        real(a, b)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(ResourceError) as caught:
        small(30, seed=3).save(tmp_path / "x")
    old = Path(str(caught.value).split(" are in ")[1].split(",")[0])
    assert (old / "config.json").is_file()
    monkeypatch.undo()
    assert "cut short" in refusal(tmp_path / "x")


KILLED = """
import json, os, sys
import torch
import stemma
torch.set_num_threads(1)
dims = dict(layers=2, d_model=16, heads=2, d_ff=24, context=16, vocab=30)
m = stemma.build("gpt2", {"arch.norm.eps": 1e-3}, seed=2, **dims)
real = os.replace
for folder, moves, size in json.loads(sys.argv[1]):
    def replace(a, b):
        global moves
        if moves == 0:
            os.kill(os.getpid(), 9)
        moves -= 1
        real(a, b)
    os.replace = replace
    child = os.fork()
    if child == 0:
        m.save(folder, shard_bytes=size)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9
"""


def test_a_process_killed_while_saving_never_leaves_a_mixture(tmp_path: Path) -> None:
    old = small(30, seed=1)
    cases = [(0, 6_000), (1, 6_000), (2, 6_000), (4, 6_000), (0, 10**9), (1, 10**9), (4, 10**9)]
    folders = [tmp_path / f"{moves}-{size}" for moves, size in cases]
    for folder, (_, size) in zip(folders, cases, strict=True):
        old.save(folder, shard_bytes=10**9 if size == 6_000 else 6_000)
    plan = [(str(f), *c) for f, c in zip(folders, cases, strict=True)]
    subprocess.run([sys.executable, "-c", KILLED, json.dumps(plan)], check=True)
    for folder, (moves, _) in zip(folders, cases, strict=True):
        (left,) = scratch_left(folder)
        if moves == 0:
            assert same(stemma.load(folder), old)
        else:
            assert "cut short" in refusal(folder)
            with pytest.raises((OSError, ValueError)):
                hf.AutoModel.from_pretrained(folder)
            assert (left / "old/config.json").is_file()
        old.save(folder)
        assert same(stemma.load(folder), old) and not scratch_left(folder)


def test_a_real_full_disk(tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(mount)], capture_output=True).returncode:
        pytest.skip("no right to mount a small disk")
    try:
        small(30, seed=1).save(mount)  # the mount point itself is the folder
        copy(mount, tmp_path / "kept")
        for size in (10**9, 30_000):
            with pytest.raises(ResourceError, match="disk is full"):
                small(3000).save(mount, shard_bytes=size)
            assert equal_files(mount, tmp_path / "kept")
        assert same(stemma.load(mount), small(30, seed=1))
    finally:
        gc.collect()
        subprocess.run(["umount", "-l", str(mount)], check=True)


def test_a_checkpoint_may_be_saved_over_itself(tmp_path: Path) -> None:
    saved("gpt2", tmp_path)
    first = stemma.load(tmp_path)
    stemma.load(tmp_path).save(tmp_path, shard_bytes=9_000)
    assert not (tmp_path / "model.safetensors").exists()
    second = stemma.load(tmp_path)
    second.save(tmp_path)
    assert not list(tmp_path.glob("model-*")) and not list(tmp_path.glob("*.index.json"))
    assert same(first, second) and same(first, stemma.load(tmp_path))


def test_a_link_to_a_folder_stays_one(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    small(30).save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and same(stemma.load(tmp_path / "real"), small(30))


def test_a_bin_file_left_in_the_folder_is_not_read(tmp_path: Path) -> None:
    saved("gpt2", tmp_path)
    _, state = read(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({k: v + 1 for k, v in state.items()}, tmp_path / "pytorch_model.bin")
    model = stemma.load(tmp_path)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    for size in (10**9, 9_000):
        model.save(tmp_path, shard_bytes=size)
        assert same(stemma.load(tmp_path), model)
        theirs = hf.GPT2LMHeadModel.from_pretrained(tmp_path)
        assert not any(p.any() for p in theirs.parameters())


# ---------------------------------------------------------------- memory


def test_meta_device_gives_shapes_and_reads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for case in ("t5-gated", "gpt2", "bert-pretraining"):
        saved(case, tmp_path / case)
        real = stemma.load(tmp_path / case, dtype="bfloat16")
        with monkeypatch.context() as patch:
            patch.setattr(stored.Tensors, "get", lambda self, name: pytest.fail("read"))
            if case == "t5-gated":
                patch.undo()  # whether its head is tied is in the data
            model = stemma.load(tmp_path / case, device="meta", dtype="bfloat16")
        assert all(p.is_meta for p in model.parameters()) and model.dtype == torch.bfloat16
        assert {k: p.shape for k, p in model.named_parameters()} == {k: p.shape for k, p in real.named_parameters()}
        with pytest.raises(UsageError, match="no weights"):
            model.save(tmp_path / "never")


@pytest.mark.parametrize("case", ["gpt2", "llama", "bert-mlm", "t5"])
def test_parameters_own_their_memory(case: str, tmp_path: Path) -> None:
    saved(case, tmp_path)
    model = stemma.load(tmp_path)
    for name, p in model.named_parameters():
        assert p.is_contiguous() and p.untyped_storage().nbytes() == p.nbytes, name


MEASURE = """
import sys
import stemma
def status(name):
    lines = dict(l.split(":", 1) for l in open("/proc/self/status"))
    return int(lines[name].split()[0]) * 1024
tiny = stemma.load(sys.argv[1])  # all imports
open("/proc/self/clear_refs", "w").write("5")  # forget the peak so far
before = status("VmRSS")
model = stemma.load(sys.argv[2], dtype="auto")
print((status("VmHWM") - before) / sum(p.nbytes for p in model.parameters()))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_loading_never_holds_the_model_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dims = {"layers": 8, "d_model": 896, "heads": 14, "d_ff": 3584, "vocab": 8000}
    big = stemma.spec.edit(stemma.design("gpt2"), {f"dims.{k}": v for k, v in dims.items()})
    for name in ("kaiming_uniform_", "uniform_", "normal_"):  # values that would be drawn to be overwritten
        monkeypatch.setattr(torch.nn.init, name, lambda tensor, *_, **__: tensor)
    model = formats.Model(big.arch, big.dims)  # about 300 MB
    monkeypatch.undo()
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(0.5)
    formats.attach(model, big, stemma.family("gpt2"))
    model.save(tmp_path / "big")
    assert 2.8e8 < (tmp_path / "big/model.safetensors").stat().st_size < 4e8
    del model
    small(30).save(tmp_path / "tiny")
    code = [sys.executable, "-c", MEASURE, str(tmp_path / "tiny"), str(tmp_path / "big")]
    done = subprocess.run(code, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1.3, done.stdout
    (tmp_path / "big/model.safetensors").unlink()


def test_a_device_that_is_not_here_is_named(tmp_path: Path) -> None:
    saved("gpt2", tmp_path)
    with pytest.raises(UsageError, match="'gpu0'"):
        stemma.load(tmp_path, device="gpu0")
    with pytest.raises(ResourceError, match="cuda:77"):
        stemma.load(tmp_path, device="cuda:77")


def test_a_tokenizer_that_ends_texts_otherwise_is_noted(tmp_path: Path) -> None:
    saved("gpt2", tmp_path)  # its config says that id 0 ends a text
    core = Tokenizer.train("wordpiece", ["a b c d"], 12, Specials(pad="<pad>", eos="</s>", unk="<unk>"))
    assert core.eos_id != 0
    core.save(tmp_path)
    with pytest.warns(UserWarning, match="ends a text with id"):
        stemma.load(tmp_path)
