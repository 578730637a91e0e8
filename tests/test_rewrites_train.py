"""Runs of rewritten models: only adapters learn, checkpoints resume bit for bit, what is saved is the merged model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import stemma
from adapters import LowRank, LowRankLinear
from stemma import spec
from stemma.errors import UsageError
from stemma.nn.model import Model
from stemma.parallel.tables import unsliceable
from stemma.rewrites import Rewrite, Trainable, WeightOnly, apply, merge, undo
from stemma.runs import checkpoint
from stemma.train import Plan, Run, meter, overrides, pretrain, resolve, resume, start, verify_resume
from stemma.train.assemble import model_of
from stemma.train.midway import load_checkpoint
from stemma.train.sharded import _empty
from test_rewrites import Prompted, made
from test_train import SMALL, text  # noqa: F401
from tiny import tiny

QV = ("*.attention.[qv]",)
ADAPTED = {"rewrites": (WeightOnly(("*.mlp.up",)), LowRank((*QV, "*.mlp.up"), rank=2)), "recipe.lr": 1e-2}


def train(name: str, out: Path, data: Path, steps: int = 4, changes: dict[str, Any] | None = None, **more: Any) -> Run:
    overrides = {**SMALL, **ADAPTED, "train.save_every": 2, **(changes or {})}
    return pretrain(name, data=str(data), out=out, budget=f"{steps} steps", overrides=overrides, quiet=True, **more)


def logits(model: Model) -> torch.Tensor:
    ids = torch.randint(5, 60, (2, 12), generator=torch.Generator().manual_seed(1))
    more = {"decoder_input_ids": ids} if model.arch.structure == "encoder-decoder" else {}
    with torch.no_grad():
        found = model.eval()(ids, **more).logits
    assert found is not None
    return found


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama3", "t5"])
def test_only_adapters_learn_and_the_merged_model_is_saved(name: str, tmp_path: Path, text: Path) -> None:  # noqa: F811
    run = train(name, tmp_path / "run", text)
    fresh = model_of(run.plan, run.tokenizer)
    before, after = fresh.state_dict(), run.model.state_dict()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved == {key for key in before if key.endswith((".down", ".up"))} and len(moved) >= 6
    assert verify_resume(tmp_path / "run", steps=4)["identical"]
    saved = stemma.load(tmp_path / "run" / "model")
    assert not saved.rewrites and (logits(saved) - logits(run.model)).abs().max() < 1e-5
    assert torch.equal(logits(saved), logits(merge(run.model)))


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path, text: Path) -> None:  # noqa: F811
    whole = train("gpt2", tmp_path / "whole", text)

    def stop(record: dict[str, Any]) -> None:
        if record["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train("gpt2", tmp_path / "run", text, on_step=stop)
    assert [p.name for p in checkpoint.steps(tmp_path / "run")] == ["step-000002"]
    written = load_file(tmp_path / "run" / "checkpoints" / "step-000002" / "model.safetensors")
    assert written and all(name.endswith((".down", ".up")) for name in written), "only what learns"
    half = load_checkpoint(tmp_path / "run" / "checkpoints" / "step-000002")
    assert len(half.rewrites) == 2 and sum(isinstance(m, LowRankLinear) for m in half.modules()) == 3
    again = resume(tmp_path / "run")
    a, b = (stemma.load(tmp_path / run / "model").state_dict() for run in ("whole", "run"))
    assert all(torch.equal(a[k], b[k]) for k in a) and whole.summary["val"] == again.summary["val"]
    last = load_checkpoint(tmp_path / "run" / "checkpoints" / "step-000004")
    assert torch.equal(logits(last), logits(again.model)) and not torch.equal(logits(half), logits(last))


def test_a_run_begins_from_weights_beside_which_it_puts_adapters(tmp_path: Path, text: Path) -> None:  # noqa: F811
    base = train("gpt2", tmp_path / "base", text, changes={"rewrites": ()})
    run = train(
        "gpt2",
        tmp_path / "run",
        text,
        changes={"train.start": str(tmp_path / "base" / "model"), "rewrites": (LowRank(QV),)},
    )
    held, plain = undo(run.model).state_dict(), base.model.state_dict()
    assert held.keys() == plain.keys() and all(torch.equal(held[k], plain[k]) for k in held)
    saved = stemma.load(tmp_path / "run" / "model").state_dict()
    assert {k for k in plain if not torch.equal(saved[k], plain[k])} == {
        f"decoder.blocks.0.attention.{x}.weight" for x in "qv"
    }


@pytest.mark.parametrize("name", ["gpt2", "llama3"])
def test_weights_go_straight_into_replaced_modules(
    name: str,
    tmp_path: Path,
    text: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As if they had been read first and rewritten then; what the start lacks is still drawn."""
    train(name, tmp_path / "base", text, steps=1, changes={"rewrites": ()})
    there = {
        "train.start": str(tmp_path / "base" / "model"),
        "rewrites": (WeightOnly(("*.mlp.*", "embed.tokens")), LowRank(QV)),
    }
    run = train(name, tmp_path / "run", text, steps=1, changes=there)
    plan = run.plan
    model = start.load(plan)
    assert model is not None
    slow = Model(plan.arch, plan.dims).initialise(plan.seed)
    start.fill(slow, plan.train.start)
    apply(slow, plan.rewrites, plan.seed)
    a, b = model.state_dict(), slow.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in slow.parameters()]
    with monkeypatch.context() as patch:
        patch.setattr(start, "fill", None)
        assert torch.equal(logits(model_of(plan, run.tokenizer)), logits(slow))
    grown = replace(plan, dims=replace(plan.dims, vocab=plan.dims.vocab + 3))
    assert start.load(grown) is None and model_of(grown, run.tokenizer).dims.vocab == plan.dims.vocab + 3


def test_a_mean_of_the_weights_is_that_of_the_adapters(tmp_path: Path, text: Path) -> None:  # noqa: F811
    run = train("gpt2", tmp_path / "run", text, changes={"train.average": 0.5})
    assert torch.equal(logits(load_checkpoint(checkpoint.steps(tmp_path / "run")[-1])), logits(run.model))
    assert verify_resume(tmp_path / "run", steps=4)["identical"]


def test_biases_alone_learn(tmp_path: Path, text: Path) -> None:  # noqa: F811
    run = train("bert", tmp_path / "run", text, changes={"rewrites": (Trainable(("*.attention.*.bias",)),)})
    fresh = model_of(run.plan, run.tokenizer).state_dict()
    moved = {key for key, tensor in run.model.state_dict().items() if not torch.equal(fresh[key], tensor)}
    assert moved and all(".attention." in key and key.endswith(".bias") for key in moved)


@pytest.mark.parametrize(
    ("rewrites", "sentence"),
    [
        (
            (LowRank(("*.atention.q",)),),
            "'*.atention.q' matches no module; the nearest path is 'decoder.blocks.0.attention.q'",
        ),
        ((Prompted(("embed.tokens",)),), "embed.tokens cannot be merged: a soft prompt is no part of the vocabulary"),
    ],
)
def test_a_run_that_could_not_be_carried_out_or_saved_is_not_begun(
    rewrites: tuple[Rewrite, ...],
    sentence: str,
    tmp_path: Path,
    text: Path,  # noqa: F811
) -> None:
    with pytest.raises(UsageError) as caught:
        train("gpt2", tmp_path / "run", text, changes={"rewrites": rewrites})
    assert sentence in str(caught.value) and not (tmp_path / "run" / "run.json").exists()


def test_a_plan_is_written_with_its_rewrites_and_read_without_them(tmp_path: Path, text: Path) -> None:  # noqa: F811
    plan = train("gpt2", tmp_path / "run", text, steps=1).plan
    data = spec.to_dict(plan)
    assert data["rewrites"][0] == {"kind": "WeightOnly", "where": ["*.mlp.up"], "dtype": "int8"}
    assert spec.from_dict(Plan, data) == plan
    del data["rewrites"]  # as plans were before there were any
    assert spec.from_dict(Plan, data).rewrites == ()


def test_a_gathered_copy_is_rewritten_too() -> None:
    model = made("llama3", (WeightOnly(("*.mlp.*",)), LowRank(QV)))
    copy = _empty(model)
    a, b = model.state_dict(), copy.state_dict()
    assert copy.rewrites == model.rewrites
    assert {k: (t.shape, t.dtype) for k, t in a.items()} == {k: (t.shape, t.dtype) for k, t in b.items()}


def test_a_gathered_copy_has_blocks_of_the_same_size(tmp_path: Path) -> None:
    wide = {"dims.d_model": 64, "dims.heads": 2, "dims.kv_heads": 1, "dims.d_ff": 96}
    stemma.save(stemma.build(tiny("llama", **wide)), tmp_path / "model.gguf", dtype="q8_0")
    model = stemma.load(tmp_path / "model.gguf", rewrites=(WeightOnly(("*.blocks.*",), "file"), LowRank(QV)))
    copy = _empty(model)
    with torch.no_grad():
        for name, tensor in copy.state_dict().items():
            tensor.copy_(model.state_dict()[name])
    assert torch.equal(logits(copy.eval()), logits(model))


@pytest.mark.parametrize("name", ["bert", "t5", "mixtral"])
def test_quantised_matrices_count_as_work(name: str) -> None:
    attention = ("*.attention.*", "*.cross.*") if name == "t5" else ("*.attention.*",)
    model, plain = made(name, (WeightOnly(attention), LowRank(("*.attention.q",)))), made(name)
    assert meter.flops(model, 40) == meter.flops(plain, 40)


def test_matrices_of_replaced_modules_are_not_sliced() -> None:
    model = made("llama3", (LowRank(("*.0.attention.q",)),))
    assert (
        unsliceable(model, 2) == "tp does not know how to split decoder.blocks.0.attention.q, which a rewrite replaced"
    )


def test_checkpoints_hold_adapters_alone(tmp_path: Path, text: Path) -> None:  # noqa: F811
    """Neither frozen weights nor the codes of quantised matrices."""
    run = train("gpt2", tmp_path / "run", text, changes={"train.average": 0.5})
    weights, slots, state = checkpoint.load(checkpoint.steps(tmp_path / "run")[-1])
    assert weights and all(key.endswith((".down", ".up")) for key in weights)
    assert {key.rpartition(":")[0] for key in slots} == weights.keys()
    assert set(state["frozen"]["names"]) == run.model.state_dict().keys() - weights.keys()
    assert any(name.endswith(".codes") for name in state["frozen"]["names"])


@pytest.mark.parametrize(
    "written",
    [
        "WeightOnly(where=['*.mlp.*'], dtype='bfloat16'), Trainable(where=('*.bias',))",
        "[{'kind': 'WeightOnly', 'where': ['*.mlp.*'], 'dtype': 'bfloat16'}, Trainable(where=['*.bias'])]",
        None,
    ],
)
def test_rewrites_are_set_by_text_and_in_files(written: str | None, tmp_path: Path) -> None:
    if written is None:
        lines = [
            "rewrites:",
            "  - {kind: WeightOnly, where: ['*.mlp.*'], dtype: bfloat16}",
            "  - {kind: Trainable, where: ['*.bias']}",
        ]
        (tmp_path / "run.yaml").write_text("\n".join(lines))
        changes = overrides(tmp_path / "run.yaml")
    else:
        changes = {"rewrites": written}
    plan = resolve("bert", data="builtin:tales", overrides=changes)
    assert plan.rewrites == (WeightOnly(("*.mlp.*",), "bfloat16"), Trainable(("*.bias",)))


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        ("WeightOnli(where=['*'])", "no kind 'WeightOnli'"),
        ("WeightOnly(where=['*'], dtype=int3)", "dtype='int3' does not fit; expected one of 'int8'"),
        ("WeightOnly(were=['*'])", "WeightOnly has no field 'were'; did you mean 'where'?"),
        ("WeightOnly(", "rewrites='WeightOnly(' does not fit"),
    ],
)
def test_what_is_no_rewrite(written: str, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve("bert", data="builtin:tales", overrides={"rewrites": written})
    assert sentence in str(caught.value)
