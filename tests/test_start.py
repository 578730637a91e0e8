"""Runs that begin from weights: these are read once, and heads that they lack are new."""

# ruff: noqa: F811

from __future__ import annotations

import collections
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stemma.errors import UsageError
from stemma.families.gpt import gpt2
from stemma.formats import tensors
from stemma.nn.model import Model
from stemma.nn.parts import Classify, Heads
from stemma.text import Tokenizer
from stemma.train import Plan, Run, assemble, resume, start, verify_resume
from test_train import text, train  # noqa: F401


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, text: Path) -> dict[str, Run]:
    home = tmp_path_factory.mktemp("first")
    return {name: train(name, home / name, text, 2, {"recipe.lr": 1e-2}) for name in ("gpt2", "bert")}


@contextmanager
def counted(folder: Path) -> Iterator[tuple[collections.Counter[str], list[Path]]]:
    """How often each tensor in a folder is read within this, and the tokenizers that are."""
    weights: collections.Counter[str] = collections.Counter()
    words: list[Path] = []
    get, load = tensors.Tensors.get, Tokenizer.load

    def counting(self: Any, name: str) -> Any:
        if Path(self.directory) == folder:
            weights[name] += 1
        return get(self, name)

    def loading(path: Any, *args: Any, **more: Any) -> Any:
        words.extend([Path(path)] if Path(path) == folder else [])
        return load(path, *args, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensors.Tensors, "get", counting)
        patch.setattr(Tokenizer, "load", loading)
        yield weights, words


@pytest.mark.parametrize("budget", ["2 steps", "1e7 flops", "1s"])
def test_weights_are_read_once(first: dict[str, Run], text: Path, tmp_path: Path, budget: str) -> None:
    """Also where steps are timed first; and not at all where a checkpoint has them."""
    folder = (first["gpt2"].directory / "model").resolve()
    changes = {"train.start": str(first["gpt2"].directory), "train.budget": budget, "train.save_every": 1}
    with counted(folder) as (weights, words):
        run = train("gpt2", tmp_path / "run", text, 2, changes)
    assert len(words) == 1 and len(weights) > 10 and set(weights.values()) == {1}, (words, weights)
    (run.directory / "summary.json").unlink()
    with counted(folder) as (weights, words):
        resume(run.directory, quiet=True)
    assert not weights and not words


def plan_with(run: Run, **heads: Any) -> Plan:
    """The plan of a run that begins from another one, with these heads in place of its own."""
    begin = replace(run.plan.train, start=str(run.directory / "model"))
    return replace(run.plan, arch=replace(run.plan.arch, heads=Heads(**heads)), train=begin, seed=7)


def test_a_reward_head_stands_on_a_language_model(first: dict[str, Run]) -> None:
    """Its weights are those of the plan's seed, the rest those of the start; the LM head is left behind."""
    run, usual = first["gpt2"], gpt2.tasks["classify"].task
    assert isinstance(usual, Classify)
    plan = plan_with(run, task=replace(usual, labels=1))
    tokenizer, rows = start.inspect(plan)
    assert rows == run.plan.dims.vocab and tokenizer.fingerprint == run.tokenizer.fingerprint
    with pytest.warns(UserWarning, match=r"the head 'task' is not among the weights in .* and begins with new ones"):
        model = assemble.model_of(plan, tokenizer)
    drawn, kept = Model(plan.arch, plan.dims).initialise(7).state_dict(), run.model.state_dict()
    found = model.state_dict()
    assert found.keys() - kept.keys() == {name for name in found if name.startswith("task.")}
    for name, tensor in found.items():
        assert torch.equal(tensor, drawn[name] if name.startswith("task.") else kept[name]), name
    assert model(torch.tensor([[5, 6, 7]])).logits.shape == (1, 1)


def test_heads_are_left_behind_without_a_word(first: dict[str, Run], recwarn: pytest.WarningsRecorder) -> None:
    plan = plan_with(first["bert"])
    model = assemble.model_of(plan, start.inspect(plan)[0])
    kept = first["bert"].model.state_dict()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in model.state_dict().items())
    assert {name.partition(".")[0] for name in kept.keys() - model.state_dict().keys()} == {"lm", "pooler", "pair"}
    assert not [w for w in recwarn if "not among the weights" in str(w.message)]


def test_a_head_of_another_design_is_refused(first: dict[str, Run]) -> None:
    plan = plan_with(first["gpt2"], lm=replace(first["gpt2"].plan.arch.heads.lm, tied=False))
    with pytest.raises(UsageError, match=r"has arch.heads.lm.tied=True and gpt2 at scale tiny False; begin from"):
        start.inspect(plan)
    other = replace(plan_with(first["gpt2"]), dims=replace(plan.dims, d_ff=96))
    with pytest.raises(UsageError, match=r"of another network: .* has shape \(32, 64\) there and \(32, 96\) here"):
        start.fill(Model(other.arch, other.dims), other.train.start)


def test_a_run_begins_with_new_heads(text: Path, tmp_path: Path) -> None:
    """BERT's next-sentence prediction on the weights of masked language modelling alone."""
    alone = {"arch.heads.pair": False, "arch.heads.pooler": None, "objective.pairs": None}
    body = train("bert", tmp_path / "body", text, 2, alone)
    changes = {"train.start": str(body.directory), "recipe.lr": 1e-9}
    with pytest.warns(
        UserWarning, match=r"the heads 'pair', 'pooler' are not among the weights in .* and begin with new ones"
    ):
        run = train("bert", tmp_path / "pairs", text, 2, changes)
    before, after = body.model.state_dict(), run.model.state_dict()
    assert {name.partition(".")[0] for name in after.keys() - before.keys()} == {"pair", "pooler"}
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, atol=1e-6, rtol=1e-5)
    assert verify_resume(run.directory, 2)["identical"]
