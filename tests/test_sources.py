"""Runs that are not pretraining from text: records in memory, and rollouts that the model itself makes. Both go through
the one loop and a run's life on disk, are stopped, and come to the same end."""

from __future__ import annotations

import itertools
import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from stemma.data import random as draws
from stemma.errors import UsageError
from stemma.nn.model import Model
from stemma.objectives import Batch, Cursor
from stemma.objectives.base import Loss
from stemma.runs import checkpoint, folder
from stemma.runs.life import Outcome, carry_on, measured
from stemma.runs.metrics import read_metrics
from stemma.runs.prove import prove
from stemma.train import Loop, Plan, resolve
from stemma.train.assemble import with_steps
from stemma.train.source import Draw, DummyBatch, Source

STEPS = 7
TINY = {
    "dims.d_model": 16, "dims.layers": 1, "dims.heads": 2, "dims.d_ff": 32, "dims.vocab": 24, "dims.context": 16,
    "recipe.batch": 64, "recipe.lr": 5e-3, "train.save_every": 3, "train.threads": 1, "train.ahead": 2,
    "arch.dropout": "Dropout(residual=0.1)",
}  # fmt: skip


def plan_of(**changes: Any) -> Plan:
    overrides = TINY | {k.replace("_", ".", 1): v for k, v in changes.items()}
    return with_steps(resolve("gpt2", data="none", overrides=overrides), STEPS, True)


def logprobs(model: Model, batch: Batch) -> Tensor:
    """The log-probability of each token but the first, given those before it (B T-1)."""
    logits = model(batch["input_ids"]).logits[:, :-1].float()
    return logits.log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None]).squeeze(-1)


class Goal:
    """What the two objectives here have in common."""

    main, rows = "token", 1
    counts_after_forward = False
    records = False

    def tie(self, model: Model, nets: Any) -> None:
        """Nothing is shared."""

    def untie(self, model: Model, nets: Any) -> None:
        """Nothing was shared."""


# ---------------------------------------------------------------- records


class Answers(Goal):
    """Next tokens, where `answer` marks the token as one that the model must give."""

    def counts(self, batch: Batch) -> dict[str, int]:
        return {"token": int(batch["answer"][:, 1:].sum())}

    def loss(self, model: Model, batch: Batch, nets: Any = None) -> Loss:
        return Loss({"token": -(logprobs(model, batch) * batch["answer"][:, 1:]).sum()}, self.counts(batch))


class Records(Source):
    """Rows in memory, in a new order each epoch; `cursor.slot` counts the rows that were read."""

    def __init__(self, rows: list[dict[str, Tensor]], full: int, micro: int) -> None:
        super().__init__(full, micro)
        self.rows = rows

    def row(self, slot: int) -> dict[str, Tensor]:
        epoch, place = divmod(slot, len(self.rows))
        return self.rows[draws.shuffled((1, epoch), len(self.rows), place)]

    def draws(self, cursor: Cursor, step: int) -> Iterator[Draw]:
        for first in itertools.count(cursor.slot, self.full):
            makes = [lambda slot=slot: self.row(slot) for slot in range(first, first + self.full)]
            batches = self.split(makes, lambda rows: {k: torch.stack([r[k] for r in rows]) for k in rows[0]})
            yield Draw([batches], Cursor(first + self.full), self.full * 16)


def records(n: int = 10) -> list[dict[str, Tensor]]:
    g = torch.Generator().manual_seed(3)
    ids = [torch.randint(0, 24, (16,), generator=g) for _ in range(n)]
    return [{"input_ids": row, "answer": (torch.arange(16) >= 10).long()} for row in ids]


def fine_tuning(**changes: Any) -> Loop:
    plan = plan_of(**changes)
    model = Model(plan.arch, plan.dims).initialise(1)
    return Loop(plan, model, Answers(), Records(records(), full=4, micro=2))  # type: ignore[arg-type]


# ---------------------------------------------------------------- rollouts


@dataclass(frozen=True)
class Place:
    rollouts: int = 0


class Reinforced(Goal):
    """The log-probability of sampled tokens times their advantage, over tokens that the model still doubts: how many
    these are is known after the forward pass."""

    counts_after_forward = True

    def counts(self, batch: Batch) -> dict[str, int]:
        raise AssertionError("only the forward pass tells")

    def loss(self, model: Model, batch: Batch, nets: Any = None) -> Loss:
        found = logprobs(model, batch)
        doubted = (found.detach() < -0.5).float() * batch["sampled"][:, 1:]
        total = -(found * batch["advantage"][:, None] * doubted).sum()
        return Loss({"token": total}, {"token": int(doubted.sum())})


class Rollouts(Source):
    """The model goes on from four tokens; even tokens are worth something. Two optimiser updates a rollout."""

    cursor_type = Place
    online = True

    def __init__(self, model: Model, full: int, micro: int) -> None:
        super().__init__(full, micro)
        self.model, self.seen = model, list[Tensor]()

    @torch.no_grad()
    def sampled(self, number: int) -> Tensor:
        g = torch.Generator().manual_seed(number)
        ids = torch.randint(0, 24, (self.full, 4), generator=g)
        training = self.model.training
        self.model.eval()
        for _ in range(6):
            ids = torch.cat([ids, torch.multinomial(self.model(ids).logits[:, -1].softmax(-1), 1, generator=g)], 1)
        self.model.train(training)
        return ids

    def draws(self, cursor: Place, step: int) -> Iterator[Draw]:
        for number in itertools.count(cursor.rollouts):
            ids = self.sampled(number)
            self.seen.append(ids)
            reward = (ids[:, 4:] % 2 == 0).float().mean(1)
            batch = {
                "input_ids": ids, "advantage": reward - reward.mean(),
                "sampled": (torch.arange(10) >= 4).long().expand(self.full, 10),
            }  # fmt: skip
            micro = [
                {k: v[i : i + self.micro] for k, v in batch.items()} for i in range(0, self.full, self.micro)
            ]  # fmt: skip
            yield Draw([micro, micro], Place(number + 1), ids.numel())


def reinforcing(ahead: int = 2, micro: int = 2, **changes: Any) -> Loop:
    plan = plan_of(train_ahead=ahead, **changes)
    model = Model(plan.arch, plan.dims).initialise(1)
    return Loop(plan, model, Reinforced(), Rollouts(model, full=6, micro=micro))  # type: ignore[arg-type]


# ---------------------------------------------------------------- a kind of run


class Kind:
    """What these runs add: one number as quality, and weights by name as the model."""

    def __init__(self, run: Path, loop: Loop) -> None:
        self.run, self.loop = run, loop

    def evaluate(self) -> dict[str, float]:
        return {"norm": float(sum(p.detach().square().sum() for p in self.loop.model.parameters()))}

    def summarize(self, quality: dict[str, float]) -> dict[str, Any]:
        return {
            "steps": self.loop.step,
            **measured(self.run, self.loop, sum(p.numel() for p in self.loop.model.parameters())),
            "val": quality,
        }

    def save(self, run: Path, models: Mapping[str, Model]) -> None:
        for role, model in models.items():
            (run / role).mkdir(exist_ok=True)
            tensors = {k: v.clone() for k, v in model.state_dict().items()}
            save_file(tensors, run / role / "model.safetensors")


KINDS: dict[str, Callable[[], Loop]] = {"records": fine_tuning, "rollouts": reinforcing}


def begun(run: Path, kind: str) -> Loop:
    folder.check_free(run)
    run.mkdir(parents=True)
    loop = KINDS[kind]()
    folder.begin(run, {"lr": loop.lr}, loop.device, {"kind": kind})
    return loop


def going_on(run: Path, loop: Loop, stop: int | None = None) -> Outcome:
    """The run to its end, or to a signal after the step `stop`."""

    def on_step(record: Any) -> None:
        if record["step"] == stop:
            os.kill(os.getpid(), signal.SIGINT)

    with folder.lock(run):
        return carry_on(run, loop, Kind(run, loop), on_step, quiet=True)


def curve(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k != "seconds"} for record in read_metrics(run)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stop", [2, 3])
def test_a_run_that_is_stopped_comes_to_the_same_end(tmp_path: Path, kind: str, stop: int) -> None:
    """Stopped between two checkpoints, or at one."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert going_on(whole, begun(whole, kind)).finished
    assert len({record["loss"] for record in curve(whole)}) == STEPS
    outcome = going_on(broken, begun(broken, kind), stop)
    assert not outcome.finished and outcome.summary == {"steps": stop}
    assert checkpoint.step_of(checkpoint.latest(broken)) == stop  # type: ignore[arg-type]
    outcome = going_on(broken, KINDS[kind]())
    assert outcome.finished and curve(broken) == curve(whole)
    weights = [(run / "model" / "model.safetensors").read_bytes() for run in (whole, broken)]
    assert weights[0] == weights[1]
    again = KINDS[kind]()
    done = going_on(broken, again)  # nothing is left to do
    assert done.finished and done.restored and done.summary == outcome.summary and again.step == STEPS
    names = {"run.json", "metrics.jsonl", "checkpoints", "model", "summary.json"}
    assert {p.name for p in broken.iterdir()} == names  # no tokenizer, no store
    assert folder.read(broken, lambda about: about["kind"]) == kind
    with pytest.raises(UsageError, match="holds a run already"):
        begun(broken, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_resume_is_proved(kind: str) -> None:
    found = prove(KINDS[kind], 5)
    assert found["identical"] and len(found["losses"]) == 5


def test_records_are_read_once_an_epoch_in_new_orders() -> None:
    source = Records(records(), full=5, micro=2)
    drawn = [d.updates[0] for d in itertools.islice(source.draws(Cursor(), 0), 4)]
    epochs = [[tuple(r.tolist()) for b in drawn[i] + drawn[i + 1] for r in b["input_ids"]] for i in (0, 2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(tuple(r["input_ids"].tolist()) for r in records())
    assert epochs[0] != epochs[1] and source.skip(Cursor(), 0, 3) == Cursor(15)
    shares = [Records(records(), full=5, micro=2) for _ in range(2)]
    for reader, share in enumerate(shares):
        share.share(reader, 2)
    parts = [next(iter(share.draws(Cursor(), 0))).updates[0] for share in shares]
    assert len(parts[0]) == len(parts[1]) == 2
    rows = [b["input_ids"] for part in parts for b in part if not isinstance(b, DummyBatch)]
    assert torch.equal(torch.cat(rows), torch.cat([b["input_ids"] for b in drawn[0]]))


def test_rollouts_are_of_the_weights_at_hand_and_trained_on_twice() -> None:
    """Batches are never made ahead of the weights that make them, whatever `train.ahead` says; the optimiser steps
    twice a rollout, with other dropout each time; counts come out of the forward pass."""
    eager, lazy = reinforcing(ahead=4), reinforcing(ahead=0)
    for _ in range(3):
        assert eager.advance() == lazy.advance()
    seen = eager.source.seen  # type: ignore[attr-defined]
    assert len(seen) == 3 and torch.equal(seen[2], lazy.source.seen[2])  # type: ignore[attr-defined]
    fresh = Rollouts(Model(eager.plan.arch, eager.plan.dims).initialise(1), 6, 2)
    assert torch.equal(fresh.sampled(0), seen[0]) and not torch.equal(fresh.sampled(2), seen[2])
    steps = {int(state["step"]) for state in eager.optimizer.state.values()}
    assert steps == {6} and eager.cursor == Place(3) and eager.tokens == 3 * 60


def test_counts_after_the_forward_pass_divide_as_counts_before_it() -> None:
    """The gradient is that of one batch, however it is split, and its targets are those that the pass counted."""
    found = []
    for micro in (6, 4):
        loop = reinforcing(micro=micro, arch_dropout="Dropout()")
        batches = loop.batches()[0]
        total, sums, counts = loop.gradient(batches)
        own = [Reinforced().loss(loop.model, b).counts["token"] for b in batches]
        assert counts["token"] == sum(own) and float(total.detach()) == pytest.approx(float(sums["token"]) / sum(own))
        found.append(torch.cat([p.grad.flatten() for p in loop.parameters if p.grad is not None]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-7)


def test_a_summary_of_any_kind_has_what_was_measured(tmp_path: Path) -> None:
    run = tmp_path / "run"
    going_on(run, begun(run, "rollouts"))
    summary = json.loads((run / "summary.json").read_text("utf-8"))
    assert summary["steps"] == STEPS and summary["tokens_per_second"] > 0 and summary["peak_share"] >= 0
    assert summary["train_loss"] == curve(run)[-1]["loss"] and set(summary["val"]) == {"norm"}
