"""Each cell of the support matrix is tried on a tiny relative."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch

import stemma
from stemma import spec
from stemma.errors import UsageError
from stemma.families import tree
from stemma.formats import attach, with_task
from stemma.objectives import incompatible_reason
from stemma.support import TASKS, Support, matrix
from tiny import FAMILIES, answers, batch, build, run, tiny


@functools.cache
def rows() -> dict[str, Support]:
    return {row.family: row for row in matrix()}


def test_every_family_with_a_design_has_a_row() -> None:
    assert list(rows()) == FAMILIES


@pytest.mark.slow
def test_two_layers_are_as_able_as_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stemma.support.shallow", lambda design: design)
    assert {row.family: row for row in matrix()} == rows()


@pytest.mark.parametrize("name", FAMILIES)
def test_tasks(name: str, tmp_path: Path) -> None:
    """The heads that a row names are built, run, saved in the public layout and read again; others are refused."""
    row, family, design = rows()[name], tree()[name], tiny(name)
    for task in TASKS:
        if task not in family.tasks:
            assert task not in row.tasks
            with pytest.raises(UsageError, match="no task head"):
                with_task(design, family, task)
            continue
        goal = with_task(design, family, task)
        model = attach(build(goal), goal, family)
        inputs = batch(goal)
        if model.arch.structure == "encoder-decoder":
            inputs.pop("decoder_input_ids")
        if goal.text.eos_ids and goal.text.eos_ids[0] < goal.dims.vocab:
            inputs["input_ids"][:, 9] = goal.text.eos_ids[0]
        scores = answers(run(model, inputs))
        assert scores.isfinite().all()
        if task in row.tasks:
            with_labels = spec.edit(goal, {"text": design.text})
            assert with_labels.arch.heads.task is not None
            model.save(tmp_path / task)
            again = stemma.load(tmp_path / task, tokenizer=False)
            assert torch.equal(answers(run(again, inputs)), scores)


@pytest.mark.parametrize("name", FAMILIES)
def test_writing_and_training(name: str) -> None:
    row, design = rows()[name], tiny(name)
    model = build(design)
    assert row.trains == (incompatible_reason(design.objective, design.arch) is None)
    if row.writes:
        assert len(stemma.generate(model, [[5, 6, 7]], max_new_tokens=3, ignore_eos=True)[0].ids) == 3
    else:
        with pytest.raises(UsageError):
            stemma.generate(model, [[5, 6, 7]], max_new_tokens=3)
