"""What learns beside low-rank adapters of matrices: rows of tokens, embeddings, heads, and whole modules; as peft."""

# ruff: noqa: F811

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file
from torch import nn

import stemma
from stemma import formats
from stemma.errors import CheckpointError, UsageError
from stemma.nn.model import Model
from stemma.rewrites import LoRA, Trainable, TrainableTokens, apply, merge, undo
from stemma.rewrites.adapters import names, use, without
from test_adapters import SMALL, VOCAB, batch, bert, gpt2, jittered, logits, moved, near, t5
from test_train import text, train  # noqa: F401

IDS = [7, 3, 80]


def llama(tied: bool) -> nn.Module:
    return hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL, num_key_value_heads=2, tie_word_embeddings=tied))


BODIES: dict[str, Callable[[], nn.Module]] = {
    "llama": lambda: llama(False),
    "tied": lambda: llama(True),
    "bert": bert,
    "gpt2": gpt2,
    "t5": t5,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "rows": ("llama", {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": IDS, "lm_head": IDS}}),
    "rows apart": ("llama", {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": IDS, "lm_head": [5]}}),
    "rows of a tied table": ("tied", {"target_modules": ["q_proj"], "trainable_token_indices": IDS}),
    "rows beside a packed matrix": ("gpt2", {"target_modules": ["c_attn"], "trainable_token_indices": IDS}),
    "rows of an encoder": ("bert", {"target_modules": ["query"], "trainable_token_indices": IDS}),
    "rows of two stacks": ("t5", {"target_modules": ["q", "v"], "trainable_token_indices": IDS}),
    "tables": ("llama", {"target_modules": ["v_proj", "embed_tokens", "lm_head"]}),
    "a head with lengths": ("llama", {"target_modules": ["v_proj", "lm_head"], "use_dora": True}),
    "tied tables": ("tied", {"target_modules": ["v_proj", "embed_tokens", "lm_head"]}),
    "tables beside a packed matrix": ("gpt2", {"target_modules": ["c_attn", "wte", "lm_head"], "fan_in_fan_out": True}),
    "tables of an encoder": ("bert", {"target_modules": ["query", "word_embeddings", "decoder"], "use_rslora": True}),
    "whole modules": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head", "norm"]}),
    "whole tied modules": ("tied", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
}  # fmt: skip


def theirs(name: str, config: dict[str, Any], folder: Path) -> Any:
    """A model of peft with random adapters, saved as `base` and `adapter` in the folder."""
    torch.manual_seed(0)
    whole: Any = jittered(BODIES[name]()).eval()
    if name == "bert" and "trainable_token_indices" in config:
        nn.init.zeros_(whole.cls.predictions.bias)  # which peft 0.21 leaves out beside rows of a tied table
    whole.save_pretrained(folder / "base")
    base = type(BODIES[name]()).from_pretrained(folder / "base")
    model = peft.get_peft_model(base, peft.LoraConfig(r=4, lora_alpha=7, **config)).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    model.save_pretrained(folder / "adapter")  # type: ignore[operator]
    return model


@pytest.mark.parametrize("case", CASES)
def test_it_is_the_function_that_peft_computes(case: str, tmp_path: Path) -> None:
    """Logits, loss and gradients of its directory here, and of ours there."""
    name, config = CASES[case]
    reference = theirs(name, config, tmp_path)
    model = stemma.load(tmp_path / "base", adapter=tmp_path / "adapter")
    expected, found = reference(**batch()), model(**batch())
    assert near(found.logits, expected.logits) and near(found.loss, expected.loss)
    assert not near(found.logits, stemma.load(tmp_path / "base")(**batch()).logits, 1e-2)
    model.save(str(tmp_path / "ours"), layout="peft")
    written, read = (load_file(tmp_path / d / "adapter_model.safetensors") for d in ("ours", "adapter"))
    read = {k: t for k, t in read.items() if not k.endswith("base_layer.weight")}  # frozen embeddings, which peft adds
    assert written.keys() == read.keys() and all(torch.equal(written[k], t) for k, t in read.items())
    base = type(BODIES[name]()).from_pretrained(tmp_path / "base")
    there = peft.PeftModel.from_pretrained(base, str(tmp_path / "ours")).eval()
    assert near(there(**batch()).logits, found.logits)
    again = stemma.load(tmp_path / "base", adapter=tmp_path / "ours")
    assert torch.equal(again(**batch()).logits, found.logits)

    expected.loss.backward()
    found.loss.backward()
    with torch.no_grad():  # the gradients in the weights' places, so that the table names them
        for p in model.parameters():
            if p.grad is not None:
                p.copy_(p.grad)
    model.save(str(tmp_path / "gradients"), layout="peft")
    gradients = load_file(tmp_path / "gradients" / "adapter_model.safetensors")
    for n, p in reference.named_parameters():
        if p.requires_grad:
            key = n.replace(".modules_to_save", "").replace(".default", "").replace("vector.weight", "vector")
            assert near(gradients.pop(key), p.grad), n
    assert not gradients or (case == "whole tied modules" and len(gradients) == 1)


def test_rows_alone_have_a_directory_of_their_own(tmp_path: Path) -> None:
    """TRAINABLE_TOKENS, where nothing else learns; of a tied table, and of a head beside it."""
    for name, where in (("tied", ("embed.tokens",)), ("llama", ("embed.tokens", "lm"))):
        folder = tmp_path / name
        jittered(BODIES[name]()).save_pretrained(folder / "base")  # type: ignore[operator]
        model = stemma.load(folder / "base", rewrites=(TrainableTokens(tuple(IDS), where=where),))
        before = logits(model)
        assert near(before, logits(stemma.load(folder / "base")), 1e-6)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(p.requires_grad * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
        model.save(str(folder / "ours"), layout="peft")
        config = json.loads((folder / "ours" / "adapter_config.json").read_text())
        assert config["peft_type"] == "TRAINABLE_TOKENS" and config["token_indices"] == IDS
        base = type(BODIES[name]()).from_pretrained(folder / "base")
        there = peft.PeftModel.from_pretrained(base, str(folder / "ours")).eval()
        assert near(there(**batch()).logits, logits(model))
        there.save_pretrained(folder / "theirs")
        for directory in ("ours", "theirs"):
            again = stemma.load(folder / "base", adapter=folder / directory)
            assert near(logits(again), logits(model)) and names(again) == ["default"]
            with without(again):
                assert near(logits(again), before, 1e-6)
            assert near(logits(use(again, "default")), logits(model))
            assert near(logits(merge(again)), logits(model))
        model.save(str(folder / "plain"))
        assert near(logits(stemma.load(folder / "plain")), logits(model))


def made(tied: bool, *rewrites: Any) -> Model:
    model = stemma.build(
        "llama3.2" if tied else "llama", layers=2, d_model=32, heads=4, kv_heads=4, d_ff=48, vocab=VOCAB
    )
    apply(jittered(model), rewrites)  # type: ignore[arg-type]
    return moved(model)


def test_adapters_of_tables_merge_where_they_are_alone(tmp_path: Path) -> None:
    both = (LoRA(("*.attention.q", "embed.tokens"), 2), LoRA(("lm", "embed.tokens"), 3, name="b"))
    model = made(False, *both)
    before = logits(model)
    model.save(str(tmp_path / "plain"))
    assert near(logits(stemma.load(tmp_path / "plain")), before) and near(logits(merge(model)), before)
    for rewrite, words in (
        (
            LoRA(("lm",), 2),
            "lm cannot be merged: the head is tied to the embeddings, and the adapter is of the head alone",
        ),
        (LoRA(("embed.tokens",), 2), "embed.tokens cannot be merged: the head is tied to the embeddings, and the"),
    ):
        model = made(True, rewrite)
        plain, found = logits(undo(made(True, rewrite))), logits(model)
        assert not near(found, plain, 1e-3)
        with pytest.raises(UsageError, match=words):
            merge(model)
        with without(model):
            assert near(logits(model), plain, 1e-6)
        assert len(stemma.generate(model, [[5, 6]], max_new_tokens=3)[0].ids) <= 3


def test_patterns_do_not_reach_tables_by_accident() -> None:
    """Embeddings and heads are adapted where they are named, so that a pattern of old means what it meant."""
    model = made(True, LoRA(("*",), 2))
    assert not any("embed" in n or n.startswith("lm") for n, p in model.named_parameters() if p.requires_grad)
    with pytest.raises(UsageError, match="is a matrix inside of a LMHead"):
        made(False, LoRA(("*",), 2))


@pytest.mark.parametrize(
    ("tied", "rewrite", "words"),
    [
        (True, TrainableTokens((3,), where=("lm",)), "this head is tied to the embeddings and follows them; leave it out"),
        (False, TrainableTokens((3, VOCAB)), "holds 83, and this model's tokens go from 0 to 82"),
        (True, LoRA(("lm",), 2, dora=True), "LoRA.dora needs a matrix of its own"),
        (False, LoRA(("*.attention.q", "embed.tokens"), 2, dora=True), "an embedding is looked up"),
    ],
)  # fmt: skip
def test_what_has_no_adapter_is_refused_and_nothing_is_replaced(tied: bool, rewrite: Any, words: str) -> None:
    model = made(tied)
    before = dict(model.named_modules())
    with pytest.raises(UsageError, match=words):
        apply(model, (rewrite,))
    assert dict(model.named_modules()) == before and model.rewrites == ()


def test_ids_of_rows_are_checked() -> None:
    with pytest.raises(UsageError, match="holds an id twice"):
        TrainableTokens((3, 4, 3))
    with pytest.raises(UsageError, match="must hold the id of a token"):
        TrainableTokens(())


def test_embeddings_that_learnt_apart_from_a_tied_head_are_refused(tmp_path: Path) -> None:
    theirs("tied", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}, tmp_path)
    with pytest.raises(CheckpointError, match=r"model.embed_tokens learnt apart from lm_head, and in this model"):
        stemma.load(tmp_path / "base", adapter=tmp_path / "adapter")


def test_whole_modules_beside_a_quantised_base(tmp_path: Path) -> None:
    """New tokens' rows, a head's matrix and a low-rank adapter over NF4; merged they are plain weights."""
    made(False).save(str(tmp_path / "base"))
    kinds = (TrainableTokens((3, 5)), LoRA(("*.attention.*",), 2), Trainable(("lm.weight", "decoder.norm.weight")))
    model = moved(stemma.load(tmp_path / "base", quantize="nf4", rewrites=kinds))
    model(**batch()).loss.backward()
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                assert p.grad is not None and p.grad.abs().max() > 0
                p.sub_(p.grad)
    model.save(str(tmp_path / "adapter"), layout="peft")
    held = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert sum("lora" not in key for key in held) == 3
    again = stemma.load(tmp_path / "base", quantize="nf4", adapter=tmp_path / "adapter")
    assert near(logits(again), logits(model), 1e-6) and near(logits(merge(model)), logits(again))


def test_rows_are_fp32_and_move_beside_halves() -> None:
    """A step of 1e-4 on rows near 1 would be rounded away in bf16."""
    model = made(True).to(torch.bfloat16)
    apply(model, (TrainableTokens((8, 9)),))
    own = [p for p in model.parameters() if p.requires_grad]
    assert [p.dtype for p in own] == [torch.float32] and model.dtype == torch.bfloat16
    before = own[0].detach().clone()
    out = model(input_ids=torch.tensor([[8, 9, 8]]), labels=torch.tensor([[8, 9, 8]]))
    out.loss.backward()
    torch.optim.SGD(own, lr=1e-5).step()
    assert out.logits.dtype == torch.bfloat16 and bool((own[0] != before).any(1).all())


def other_state(folder: Path, **changes: Any) -> None:
    config = folder / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))


def test_rows_that_do_not_fit_are_named(tmp_path: Path) -> None:
    model = made(False, TrainableTokens((3, 5)), LoRA(("*.attention.q",), 2))
    model.save(str(tmp_path / "a"), layout="peft")
    undo(model)
    for given in ([3], {"embed_tokens": [3, 4, 5]}, "many", [3, "five"]):
        other_state(tmp_path / "a", trainable_token_indices=given)
        with pytest.raises(
            CheckpointError, match=r"2 rows of model.embed_tokens and trainable_token_indices=.* do not agree"
        ):
            formats.peft.attach(model, tmp_path / "a")
    assert model.rewrites == ()


# ---------------------------------------------------------------- runs

LEARNS: dict[str, tuple[tuple[Any, ...], tuple[str, ...]]] = {  # what of the plain model may change
    "lora": ((LoRA(("*.attention.*", "lm", "embed.tokens"), 2),), ()),
    "dora": ((LoRA(("*.mlp.*",), 2, dora=True, dropout=0.1),), ()),
    "rows": ((TrainableTokens((3, 5, 7)), LoRA(("*.mlp.*",), 2)), ()),
    "rows alone": ((TrainableTokens((3, 5, 7), where=("embed.tokens", "lm")),), ()),
    "whole modules": ((LoRA(("*.attention.q",), 2), Trainable(("lm.weight", "decoder.norm.*"))), ("lm.", "decoder.norm.")),
}  # fmt: skip


@pytest.mark.parametrize("kind", LEARNS)
def test_a_run_changes_what_learns_alone(kind: str, text: Path, tmp_path: Path) -> None:
    """Bit for bit, after real steps; what it keeps is what its model computes."""
    rewrites, whole = LEARNS[kind]
    first = train("llama", tmp_path / "first", text, 1)
    edits = {"train.start": str(first.directory), "rewrites": rewrites, "recipe.lr": 0.02}
    run = train("llama", tmp_path / "run", text, 4, edits)
    before, after = stemma.load(first.directory).state_dict(), undo(copy.deepcopy(run.model)).state_dict()
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert all(name.startswith(whole or ("none",)) for name in moved) and bool(moved) == bool(whole)
    ids = torch.arange(3, 20)[None]
    loaded = stemma.load(run.directory)
    with torch.no_grad():
        assert near(loaded(ids).logits, run.model(ids).logits, 1e-6)
        assert not near(loaded(ids).logits, stemma.load(first.directory)(ids).logits, 1e-4)


def test_biases_alone_learn(text: Path, tmp_path: Path) -> None:
    """BitFit: of an encoder, bit for bit; the run keeps plain weights."""
    first = train("bert", tmp_path / "first", text, 1)
    edits = {"train.start": str(first.directory), "rewrites": (Trainable(("*.bias",)),), "recipe.lr": 0.02}
    run = train("bert", tmp_path / "run", text, 4, edits)
    before, after = (stemma.load(r.directory).state_dict() for r in (first, run))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    biases = {name for name in before if name.endswith(".bias")}
    assert moved <= biases and len(moved) > 0.9 * len(biases)


def test_a_run_that_could_not_keep_what_it_learns_is_not_begun(text: Path, tmp_path: Path) -> None:
    first = train("llama", tmp_path / "first", text, 1)
    for rewrites, words in (
        ((TrainableTokens((3,)), Trainable(("decoder.norm.*",))), "what else learns here has no place"),
        ((LoRA(("*.q",), 2), LoRA(("*.v",), 2, name="b")), "the model has the adapters default, b: name one of them"),
    ):
        with pytest.raises(UsageError, match=words):
            train("llama", tmp_path / "run", text, 2, {"train.start": str(first.directory), "rewrites": rewrites})
        assert not (tmp_path / "run" / "run.json").exists()


# ---------------------------------------------------------------- experts


def mixtral() -> Any:
    sizes = dict(SMALL, hidden_size=48, intermediate_size=32, num_local_experts=4, num_experts_per_tok=2)
    return hf.MixtralForCausalLM(hf.MixtralConfig(**sizes, num_key_value_heads=2))


def test_experts_have_adapters_as_in_peft(tmp_path: Path) -> None:
    """Of the stacked matrices of transformers: logits, loss and gradients, directories both ways, and merged."""
    torch.manual_seed(0)
    jittered(mixtral()).eval().save_pretrained(tmp_path / "base")  # type: ignore[operator]
    config = peft.LoraConfig(
        r=4,
        lora_alpha=7,
        target_modules=["q_proj"],
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    )
    reference: Any = peft.get_peft_model(hf.MixtralForCausalLM.from_pretrained(tmp_path / "base"), config).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in reference.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    reference.save_pretrained(tmp_path / "adapter")
    model = stemma.load(tmp_path / "base", adapter=tmp_path / "adapter")
    given = {"input_ids": batch()["input_ids"]}
    expected, found = reference(**given).logits, model(**given).logits
    assert near(found, expected) and not near(found, logits(stemma.load(tmp_path / "base")), 1e-2)
    model.save(str(tmp_path / "ours"), layout="peft")
    written, read = (load_file(tmp_path / d / "adapter_model.safetensors") for d in ("ours", "adapter"))
    assert written.keys() == read.keys() and all(torch.equal(written[k], t) for k, t in read.items())
    there = peft.PeftModel.from_pretrained(
        hf.MixtralForCausalLM.from_pretrained(tmp_path / "base"), str(tmp_path / "ours")
    ).eval()
    assert near(there(**given).logits, found)
    model.save(str(tmp_path / "plain"))
    assert near(logits(stemma.load(tmp_path / "plain")), found)
    with without(model):
        assert near(logits(model), logits(stemma.load(tmp_path / "base")), 1e-6)

    weight = torch.randn(found.shape, generator=generator)
    (expected * weight).sum().backward()
    (found * weight).sum().backward()
    with torch.no_grad():  # the gradients in the weights' places, so that the table names them
        for p in model.parameters():
            if p.grad is not None:
                p.copy_(p.grad)
    model.save(str(tmp_path / "gradients"), layout="peft")
    gradients = load_file(tmp_path / "gradients" / "adapter_model.safetensors")
    for n, p in reference.named_parameters():
        if p.requires_grad:
            theirs = p.grad
            assert (gradients.pop(n.replace(".default", "")) - theirs).abs().max() < 1e-5 * max(
                1, theirs.abs().max()
            ), n
    assert not gradients and near(logits(merge(stemma.load(tmp_path / "base", adapter=tmp_path / "ours"))), found)


def test_experts_are_adapted_whole_or_not_at_all() -> None:
    model = stemma.build(
        "mixtral", layers=1, d_model=32, heads=4, kv_heads=4, d_ff=48, vocab=VOCAB, experts=4, active=2
    )
    with pytest.raises(
        UsageError, match=r"match decoder.blocks.0.mlp.gate and not the others; match decoder.blocks.0.mlp"
    ):
        apply(model, (LoRA(("*.mlp.gate",), 2),))
    with pytest.raises(UsageError, match="are for single matrices, and experts are multiplied together"):
        apply(model, (LoRA(("*.mlp",), 2, dora=True),))
    apply(model, (LoRA(("*.blocks.*",), 2),))
    assert {n.rpartition(".mlp.")[2] for n, p in model.named_parameters() if p.requires_grad and ".mlp." in n} == {
        "enter.down", "enter.up", "leave.down", "leave.up"
    }  # fmt: skip
