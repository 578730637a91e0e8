"""Heads for a task on a pretrained body."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import stemma
from oracle import saved
from stemma.errors import UsageError
from stemma.nn.parts import Classify

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


@pytest.mark.parametrize(
    ("task", "shape", "options"),
    [("classify", (2, 3), {"labels": 3}), ("tag", (2, 4, 3), {"labels": 3}), ("answer", (2, 4, 2), {})],
)
def test_a_pretrained_body_takes_a_new_head(task: str, shape: tuple[int, ...], options: dict, tmp_path: Path) -> None:
    saved("bert-pretraining", tmp_path / "a")
    body = stemma.load(tmp_path / "a")
    model = stemma.load(tmp_path / "a", task=task, **options)
    out = model(IDS)
    assert out.scores.shape == shape and out.logits is None
    assert torch.equal(out.hidden, body(IDS).hidden)
    assert set(model.ledger.new) == {"task.out.weight", "task.out.bias"}
    assert "cls.predictions.transform.dense.weight" in model.ledger.ignored
    model.save(tmp_path / "b")
    again = stemma.load(tmp_path / "b")  # its own class now says which head it has
    assert torch.equal(again(IDS).scores, out.scores) and again.arch.heads == model.arch.heads
    assert torch.equal(stemma.load(tmp_path / "b", task=task, **options)(IDS).scores, out.scores)


def test_a_task_model_of_fresh_weights() -> None:
    model = stemma.build("roberta-base", task="classify", labels=2, problem="multi", d_model=24, heads=4, layers=1)
    assert isinstance(model.arch.heads.task, Classify) and model.arch.heads.task.problem == "multi"
    assert model(IDS, labels=torch.zeros(2, 2)).loss > 0


def test_candidates_are_scored_against_each_other() -> None:
    model = stemma.build("bert-tiny", task="choose", layers=1)
    ids = torch.stack([IDS, IDS.flip(1), IDS.flip(0)], 1)
    out = model(ids, labels=torch.tensor([0, 2]))
    assert out.scores.shape == (2, 3) and out.loss > 0


def test_tasks_that_do_not_exist_are_refused() -> None:
    with pytest.raises(UsageError, match="did you mean 'classify'"):
        stemma.build("bert-tiny", task="clasify")
    with pytest.raises(UsageError, match="has no task head 'tag'"):
        stemma.build("transformer-base", task="tag")
    with pytest.raises(UsageError, match="labels=3"):
        stemma.build("bert-tiny", task="answer", labels=3)
