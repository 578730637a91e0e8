"""The engine: memory, averages, spikes, batches made ahead, and what it says when something goes wrong."""

from __future__ import annotations

import json
import math
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import stemma.objectives.vocabulary as vocabulary
from stemma import data
from stemma.errors import ResourceError, UsageError
from stemma.nn.model import Model
from stemma.runs.spikes import Spikes, spiked
from stemma.train import Diverged, Loop, assemble, prepare, resolve, resume
from stemma.train.prefetch import Prefetch
from stemma.train.recompute import recompute
from test_train import SMALL, losses, train
from tiny import tiny


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    rng = np.random.default_rng(3)
    words = ["tree", "leaf", "root", "branch", "copies", "the", "a", "scribe", "old", "text", "line", "page"]
    lines = [" ".join(rng.choice(words, size=rng.integers(5, 30))) + "." for _ in range(300)]
    path.write_text("\n\n".join(lines))
    return path


# ---------------------------------------------------------------- the loss at the vocabulary


@pytest.mark.parametrize("compiled", [False, True])
def test_the_z_loss_is_the_square_of_the_log_of_the_sum(compiled: bool) -> None:
    """PaLM (Chowdhery et al. 2022, section 5): `z log^2 Z` beside the cross-entropy."""
    design = tiny("llama")
    model = Model(design.arch, design.dims).initialise(1).train()
    model.compiled = compiled
    hidden = torch.randn(2, 9, design.dims.d_model, generator=torch.Generator().manual_seed(2))
    goal = torch.arange(18) % design.dims.vocab
    logits = model.logits(hidden).flatten(0, 1).double()
    plain = -logits.log_softmax(-1)[torch.arange(18), goal].sum()
    expected = plain + 0.5 * (logits.exp().sum(-1).log() ** 2).sum()
    assert vocabulary.token_loss(model, hidden, {"targets": goal}, 0.5).item() == pytest.approx(
        expected.item(), rel=1e-6
    )


@pytest.mark.parametrize("name", ["gpt2", "bert", "gemma2", "t5", "albert", "llama"])
@pytest.mark.parametrize("z", [0.0, 1e-2])
def test_chunks_give_the_gradient_of_the_whole(name: str, z: float, monkeypatch: pytest.MonkeyPatch) -> None:
    design = tiny(name)
    model = Model(design.arch, design.dims).initialise(1).train()
    goal = torch.randint(0, design.dims.vocab, (150,))
    found = []
    for rows in (10**9, 7):
        monkeypatch.setattr(vocabulary, "LOGITS", rows * design.dims.vocab)
        hidden = torch.randn(3, 50, design.dims.d_model, generator=torch.Generator().manual_seed(2), requires_grad=True)
        model.zero_grad()
        loss = vocabulary.token_loss(model, hidden, {"targets": goal}, z) / 150
        loss.backward()
        found.append([loss.detach(), hidden.grad, *(p.grad for p in model.parameters())])
    for a, b in zip(*found, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert (a - b).abs().max() <= 2e-6 * max(a.abs().max(), 1e-3)


def test_no_more_logits_than_a_chunk_are_alive() -> None:
    design = tiny("llama", **{"dims.vocab": 4000})
    model = Model(design.arch, design.dims).initialise(1).train()
    alive: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.ndim == 2 and out.shape[1] == 4000:
                alive.append(out.shape[0])
            return out

    hidden = torch.randn(1, 640, design.dims.d_model, requires_grad=True)
    with pytest.MonkeyPatch.context() as patch, Watch():
        patch.setattr(vocabulary, "LOGITS", 64 * 4000)
        vocabulary.token_loss(model, hidden, {"targets": torch.arange(640)}).backward()
    assert alive and max(alive) == 64


# ---------------------------------------------------------------- activations


@pytest.mark.parametrize("name", ["bert", "llama", "t5", "xlnet", "albert"])
def test_recomputed_activations_give_the_same_gradient(name: str) -> None:
    design = tiny(name)
    found = []
    for patterns in ((), ("*.blocks.*",)):
        model = Model(design.arch, design.dims).initialise(1).train()
        wrapped = recompute(model, patterns)
        assert all(".blocks." in path and path.count(".") == 2 for path in wrapped) and bool(wrapped) == bool(patterns)
        torch.manual_seed(5)
        ids = torch.randint(3, 50, (2, 12), generator=torch.Generator().manual_seed(1))
        more = {"decoder_input_ids": ids} if design.arch.structure == "encoder-decoder" else {}
        model(ids, **more).hidden.square().sum().backward()
        found.append([p.grad for p in model.parameters()])
    for a, b in zip(*found, strict=True):
        assert (a is None) == (b is None) and (a is None or torch.equal(a, b))  # type: ignore[arg-type]


def test_a_pattern_without_a_module_is_refused() -> None:
    design = tiny("llama")
    with pytest.raises(UsageError, match=r"train.recompute='\*.layers.\*' matches no module; the model has decoder"):
        recompute(Model(design.arch, design.dims), ("*.layers.*",))


# ---------------------------------------------------------------- runs


@pytest.mark.parametrize("changes", [{"train.ahead": 2}, {"train.recompute": ("*.blocks.*",)}])
def test_how_a_step_is_made_does_not_change_it(changes: dict[str, Any], text: Path, tmp_path: Path) -> None:
    before = set(threading.enumerate())  # another test may have left a loop open
    train("bert", tmp_path / "a", text)
    run = train("bert", tmp_path / "b", text, changes=changes)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert not any("forward" in vars(module) for module in run.model.modules())  # the run's, not the model's
    assert not any(thread.name == "stemma-batches" for thread in set(threading.enumerate()) - before)


def test_batches_made_ahead_are_resumed_where_they_were_taken(text: Path, tmp_path: Path) -> None:
    train("gpt2", tmp_path / "a", text, 8)
    plan = resolve("gpt2", data=str(text), budget="8 steps", overrides={**SMALL, "train.ahead": 3})
    store, tokenizer = prepare.prepare(plan, tmp_path / "b", None, True)
    plan = assemble.with_steps(assemble.fit_to_tokenizer(plan, tokenizer), 8, False)
    view, _ = prepare.split(plan, store)
    loop = assemble.loop_of(plan, tokenizer, view)
    found = [loop.advance()["loss"] for _ in range(3)]
    place = loop.save(tmp_path / "b")
    again = assemble.loop_of(plan, tokenizer, view)
    again.restore(place)
    found += [again.advance()["loss"] for _ in range(5)]
    assert found == losses(tmp_path / "a")


def test_an_error_in_the_thread_comes_out_where_it_is_taken() -> None:
    def make() -> int:
        raise ValueError("here")

    ahead = Prefetch(make, 2)
    with pytest.raises(ValueError, match="here"):
        ahead.take()
    ahead.close()


def test_the_average_is_what_is_saved_and_survives_a_stop(text: Path, tmp_path: Path) -> None:
    changes = {"train.average": 0.5, "train.save_every": 3}
    run = train("gpt2", tmp_path / "a", text, 8, changes)
    plain = train("gpt2", tmp_path / "b", text, 8)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")  # training itself does not change
    assert any(not torch.equal(p, q) for p, q in zip(run.model.parameters(), plain.model.parameters(), strict=True))

    mean: dict[str, torch.Tensor] = {}
    plan, tokenizer, store = prepare.reopen(tmp_path / "a")
    view, _ = prepare.split(plan, store)
    loop = assemble.loop_of(replace(plan, train=replace(plan.train, average=None)), tokenizer, view)
    mean = {n: p.detach().clone() for n, p in loop.model.named_parameters()}
    for step in range(1, 9):
        loop.advance()
        decay = min(0.5, (1 + step) / (10 + step))
        mean = {n: decay * mean[n] + (1 - decay) * p.detach() for n, p in loop.model.named_parameters()}
    for name, p in run.model.named_parameters():
        assert (p - mean[name]).abs().max() < 1e-6

    for path in sorted((tmp_path / "a" / "checkpoints").iterdir())[1:]:  # as if killed after step 6
        if path.name.endswith("8"):
            import shutil

            shutil.rmtree(path)
    (tmp_path / "a" / "summary.json").unlink()
    again = resume(tmp_path / "a", quiet=True)
    for p, q in zip(run.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_what_is_not_finite_is_named(text: Path, tmp_path: Path) -> None:
    plan, tokenizer, store = prepare.reopen(train("gpt2", tmp_path / "a", text, 4).directory)
    view, _ = prepare.split(plan, store)
    loop = assemble.loop_of(plan, tokenizer, view)
    parameter = dict(loop.model.named_parameters())["decoder.blocks.0.mlp.up.weight"]
    parameter.register_hook(lambda grad: grad * math.nan)
    with pytest.raises(
        Diverged, match=r"at step 1: .*the gradient of decoder\.blocks\.0\.mlp\.up\.weight is not finite"
    ):
        loop.advance()
    loop = assemble.loop_of(plan, tokenizer, view)
    with torch.no_grad():
        dict(loop.model.named_parameters())["decoder.blocks.0.attention.q.bias"][0] = math.inf
    with pytest.raises(Diverged, match=r"the weight decoder\.blocks\.0\.attention\.q\.bias is not finite"):
        loop.advance()


def test_a_step_out_of_memory_says_what_to_do(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, tokenizer, store = prepare.reopen(train("gpt2", tmp_path / "a", text, 4).directory)
    loop = assemble.loop_of(plan, tokenizer, store)

    def full(*_: Any, **__: Any) -> Any:
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried"
        )

    monkeypatch.setattr(Model, "decode", full)
    with pytest.raises(
        ResourceError, match=r"step 1 does not fit into memory with 4 rows of 32 tokens at once; .*micro=2"
    ):
        loop.advance()


# ---------------------------------------------------------------- spikes


def test_a_spike_is_a_leap_that_lasts() -> None:
    spec = Spikes(window=20, patience=2, above=6.0)
    usual = [3.0 + 0.01 * math.sin(7 * i) for i in range(30)]
    assert not spiked(spec, usual)
    assert not spiked(spec, [*usual, 4.0])  # one bad batch is none
    assert spiked(spec, [*usual, 4.0, 4.1])
    assert not spiked(spec, [*usual[:10], 4.0, 4.1])  # too little is known yet
    assert spiked(spec, [math.nan])


def leap(monkeypatch: pytest.MonkeyPatch, at: set[int]) -> None:
    """Make the loss of the stretch of text from a slot on look ten times as high, the gradient untouched."""
    good = Loop.advance

    def advance(self: Loop) -> Any:
        begin = self.cursor.slot
        record = good(self)
        return record | {"loss": record["loss"] * 10} if begin in at else record

    monkeypatch.setattr(Loop, "advance", advance)


def test_a_run_goes_back_behind_a_spike_and_on_with_other_text(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spikes = Spikes(window=8, patience=2, back=4, skip=3, above=8.0)
    changes = {"train.spikes": spikes, "train.save_every": 3, "recipe.lr": 1e-4}
    seen: list[int] = []
    good = Loop.batches

    def batches(self: Loop) -> Any:
        seen.append(self.cursor.slot)
        return good(self)

    monkeypatch.setattr(Loop, "batches", batches)
    calm = train("gpt2", tmp_path / "calm", text, 20, changes)
    assert not (tmp_path / "calm" / "rewinds.jsonl").exists() and calm.summary["steps"] == 20
    slots = list(seen)
    seen.clear()
    bad = {slots[12], slots[13]}
    leap(monkeypatch, bad)
    run = train("gpt2", tmp_path / "spiky", text, 20, changes)
    told = [json.loads(line) for line in (tmp_path / "spiky" / "rewinds.jsonl").read_text().splitlines()]
    assert [(t["at"], t["to"], t["skipped"]) for t in told] == [(14, 9, 3)]
    assert [r["step"] for r in told[0]["lost"]] == [10, 11, 12, 13]
    assert run.summary["steps"] == 20
    steps = [json.loads(line)["step"] for line in (tmp_path / "spiky" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 21))
    again = seen[14:]  # what was read after going back: nothing of the spike, nor the three steps behind it
    assert again[0] == slots[17] and len(again) == 11
    monkeypatch.undo()
    whole = losses(tmp_path / "spiky")
    assert whole[:9] == losses(tmp_path / "calm")[:9]


def test_a_run_that_only_spikes_ends(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = Loop.gradient

    def broken(self: Loop, batches: Any) -> Any:
        total, sums, counts = good(self, batches)
        return total * (math.nan if self.step >= 3 else 1.0), sums, counts

    monkeypatch.setattr(Loop, "gradient", broken)
    with pytest.raises(Diverged, match="after 2 times of going back"):
        train("gpt2", tmp_path / "a", text, 8, {"train.spikes": Spikes(back=2, most=2, skip=1)})


def test_the_documents_of_a_store_are_walked_alike_by_all(text: Path, tmp_path: Path) -> None:
    """Whoever makes only some rows of the plan gets the rows that everyone else gets there."""
    run = train("bert", tmp_path / "a", text, 4)
    plan, tokenizer, store = prepare.reopen(run.directory)
    goal = assemble.objective_of(plan, tokenizer)
    whole = [example for (example, _), _ in zip(goal.examples(store), range(12), strict=False)]
    for rank in range(3):
        own = [make() for i, (make, _) in zip(range(12), goal.lazy_examples(store), strict=False) if i % 3 == rank]
        for a, b in zip(whole[rank::3], own, strict=True):
            assert all(np.array_equal(a[k], b[k]) for k in a)
    assert isinstance(store, data.Store)
