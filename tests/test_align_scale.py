"""Alignment on several processes: the steps are those of one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import stemma
from scale_worker import gradients
from stemma.train import assemble, prepare
from test_align_preference import compared
from test_scale import WORKER, close, start
from test_tune import decoder, tokenizer, written  # noqa: F401

STEPS = 2
SMALL: dict[str, Any] = {"recipe.lr": 1e-3, "recipe.batch": 7 * 64, "train.micro": 2, "train.save_every": 1}
SMALL |= {"train.val_fraction": 0.2, "train.threads": 1, "train.precision": "fp32"}
ONLINE = {
    "objective.prompts": 5, "objective.max_new_tokens": 8, "objective.minibatch": 5, "objective.inner": 2,
    "objective.judged": 4,
}  # fmt: skip
REWARD = """
def reward(prompt, answer, record):
    return len(answer) % 7 / 7
"""
METHODS: dict[str, dict[str, Any]] = {
    "dpo": {}, "reward": {}, "grpo": ONLINE | {"objective.samples": 3}, "ppo": ONLINE,
}  # fmt: skip


def runs_of(folder: Path, decoder: Path, methods: Sequence[str]) -> dict[str, Path]:  # noqa: F811
    """A run of one process of each method."""
    data, judge = written(folder / "rows.jsonl", compared(30)), folder / "reward.py"
    judge.write_text(REWARD, "utf-8")
    for what in methods:
        own = METHODS[what]
        rewards = [f"{judge}:reward"] if own else []
        stemma.align(
            what, start=str(decoder), data=data, out=folder / what, budget=f"{STEPS} steps", template="plain",
            rewards=rewards, overrides=SMALL | own, quiet=True,
        )  # fmt: skip
    return {what: folder / what for what in methods}


@pytest.mark.parametrize(
    ("axes", "methods"),
    [("dp=2", ["grpo"]), *(pytest.param(axes, [*METHODS], marks=pytest.mark.slow) for axes in ("dp=2", "fsdp=2"))],
)
def test_a_mesh_aligns_as_one_process_does(
    decoder: Path,  # noqa: F811
    tmp_path: Path,
    axes: str,
    methods: list[str],
) -> None:
    runs = runs_of(tmp_path, decoder, methods)
    cases = [(str(run), axes, str(tmp_path / f"{what}-mesh"), None) for what, run in runs.items()]
    job = tmp_path / "job.json"
    job.write_text(json.dumps({"cases": cases}), "utf-8")
    start([*WORKER, str(job)], 2)
    for what, run in runs.items():
        plan, names, store = prepare.reopen(run)
        one = gradients(assemble.loop_of(plan, names, prepare.split(plan, store)[0]))
        there = torch.load(tmp_path / f"{what}-mesh" / "gradient.pt")
        assert one.keys() == there.keys()
        scale = max(float(g.abs().max()) for g in one.values())
        for name, gradient in one.items():
            torch.testing.assert_close(there[name], gradient, rtol=1e-5, atol=1e-6 * scale, msg=f"{what}: {name}")
        ours = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
        ours = [record for record in ours if "loss" in record and "grad_norm" in record]
        for rank in (0, 1):
            found = json.loads((tmp_path / f"{what}-mesh" / f"found-{rank}.json").read_text("utf-8"))
            close(found["records"], ours, 1e-5)
            for name in {"reward", "kl", "accuracy", "margin", "length", "entropy"} & ours[0].keys():
                told = [record[name] for record in found["records"]]
                assert told == pytest.approx([record[name] for record in ours], rel=1e-4, abs=1e-5), (what, name)
            assert found["again"] == found["records"][len(found["records"]) - len(found["again"]) :]
