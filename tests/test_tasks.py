"""Heads for a task on a pretrained body."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import stemma
from oracle import saved
from stemma.errors import CheckpointError, UsageError
from stemma.nn.parts import Answer, Classify, MLMHead, Tag
from tiny import answers

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
    got = answers(out)
    assert got.shape == shape and (out.logits is None) == (task == "answer")
    assert out.task_logits is out.mc_logits is out.detector_logits is None and out.last_hidden_state is out.hidden
    assert torch.equal(out.hidden, body(IDS).hidden)
    assert set(model.ledger.new) == {"task.out.weight", "task.out.bias"}
    assert "cls.predictions.transform.dense.weight" in model.ledger.ignored
    model.save(tmp_path / "b")
    again = stemma.load(tmp_path / "b")  # its own class now says which head it has
    assert torch.equal(answers(again(IDS)), got) and again.arch.heads == model.arch.heads
    assert torch.equal(answers(stemma.load(tmp_path / "b", task=task, **options)(IDS)), got)


def test_a_task_model_of_fresh_weights() -> None:
    model = stemma.build("roberta-base", task="classify", labels=2, problem="multi", d_model=24, heads=4, layers=1)
    assert isinstance(model.arch.heads.task, Classify) and model.arch.heads.task.problem == "multi"
    assert model(IDS, labels=torch.zeros(2, 2)).loss > 0


def test_candidates_are_scored_against_each_other() -> None:
    model = stemma.build("bert-tiny", task="choose", layers=1)
    ids = torch.stack([IDS, IDS.flip(1), IDS.flip(0)], 1)
    out = model(ids, labels=torch.tensor([0, 2]))
    assert out.logits.shape == (2, 3) and out.loss > 0


def test_tasks_that_do_not_exist_are_refused() -> None:
    with pytest.raises(UsageError, match="did you mean 'classify'"):
        stemma.build("bert-tiny", task="clasify")
    with pytest.raises(UsageError, match="has no task head 'tag'"):
        stemma.build("transformer-base", task="tag")
    with pytest.raises(UsageError, match="labels=3"):
        stemma.build("bert-tiny", task="answer", labels=3)


def named(folder: Path, *names: str) -> None:
    """Names for the labels of a saved head."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config |= {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    path.write_text(json.dumps(config))


def test_names_of_labels_come_through(tmp_path: Path) -> None:
    stemma.build("bert-tiny", task="classify", labels=3, layers=1).save(tmp_path / "a")
    assert stemma.load(tmp_path / "a").labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    named(tmp_path / "a", "bad", "fair", "good")
    model = stemma.load(tmp_path / "a")
    assert model.labels == ("bad", "fair", "good")
    model.save(tmp_path / "b")
    again = json.loads((tmp_path / "b/config.json").read_text())
    assert again["id2label"] == {"0": "bad", "1": "fair", "2": "good"}
    assert again["label2id"] == {"bad": 0, "fair": 1, "good": 2}
    assert stemma.load(tmp_path / "b", task="classify").labels == model.labels
    assert stemma.load(tmp_path / "b", task="tag", labels=3, new=["task"]).labels == ()


def test_a_head_of_other_labels_is_drawn_where_that_is_said(tmp_path: Path) -> None:
    saved("bert-pretraining", tmp_path / "a")
    stemma.load(tmp_path / "a", task="classify", labels=3, problem="multi").save(tmp_path / "b")
    held = stemma.load(tmp_path / "b", task="classify")  # what is left open is as in the file
    assert (held.arch.heads.task.labels, held.arch.heads.task.problem) == (3, "multi")
    with pytest.raises(CheckpointError, match=r"needs \[2, 36\]; leave labels out .* new=\['task'\]"):
        stemma.load(tmp_path / "b", task="classify", labels=2)
    new = stemma.load(tmp_path / "b", task="classify", labels=2, new=["task"])
    assert new(IDS).logits.shape == (2, 2)
    assert set(new.ledger.new) == {"task.out.weight", "task.out.bias"}
    assert torch.equal(new(IDS).hidden, held(IDS).hidden)


def test_labels_without_a_task_are_refused(tmp_path: Path) -> None:
    saved("bert-pretraining", tmp_path)
    with pytest.raises(UsageError, match="labels=3 is for the head of a task"):
        stemma.load(tmp_path, labels=3)


def test_heads_beside_a_language_model_answer_under_names_of_their_own() -> None:
    """`logits` stays the LM head's; a lone detector takes it, and the loss is the task's or the detector's."""
    small = dict(d_model=24, layers=1, heads=4, d_ff=32, vocab=50)
    lm = {"arch.heads.lm": MLMHead()}
    ids, tags = torch.randint(5, 50, (2, 7)), torch.randint(3, (2, 7))
    for task in (Tag(3), Classify(3), Answer()):
        model = stemma.build("bert-tiny", {**lm, "arch.heads.task": task}, **small)
        out = model(ids)
        assert out.logits.shape == (2, 7, 50) and out.mc_logits is None
        assert (out.task_logits is None) == isinstance(task, Answer)
        assert (out.start_logits is None) != isinstance(task, Answer)
    model = stemma.build("bert-tiny", {**lm, "arch.heads.task": Tag(3)}, **small)
    out = model(ids, labels=tags)
    want = torch.nn.functional.cross_entropy(out.task_logits.flatten(0, 1), tags.flatten())
    assert torch.equal(out.loss, want)
    detector = stemma.build("electra-small", **small, embed=16)
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    out = detector(ids, mask, labels=tags.clamp(max=1))
    assert out.logits.shape == (2, 7) and out.detector_logits is None
    each = torch.nn.functional.binary_cross_entropy_with_logits(out.logits, tags.clamp(max=1).float(), reduction="none")
    assert torch.equal(out.loss, each[mask.bool()].mean())
