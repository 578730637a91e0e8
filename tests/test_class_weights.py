"""Weights of the labels of a task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

import stemma
from stemma.cli import main
from stemma.errors import UsageError
from stemma.runs.folder import read
from stemma.tuning import tune
from stemma.tuning.plans import resolve
from test_brought import MANY, NUMBERS, base
from test_tune import written

FILMS = [
    {"text": f"the film {i} is good", "label": "neg" if i % 5 == 0 else ["odd", "pos"][i % 8 > 0]} for i in range(60)
]
TAGS = [{"words": ["a", "film"], "tags": ["O", "B-X" if i % 3 else "O"]} for i in range(30)]


def weights(start: Path, data: str, what: str = "classify", value: Any = "balanced") -> tuple[float, ...]:
    found: tuple[float, ...] = resolve(what, str(start), data, overrides={"objective.weights": value}).objective.weights  # type: ignore[attr-defined]
    return found


def test_balanced_is_what_scikit_learn_computes(tmp_path: Path) -> None:
    start, names = base("bert", tmp_path), ["neg", "odd", "pos"]
    given = [row["label"] for row in FILMS]
    want = compute_class_weight("balanced", classes=np.array(names), y=given)
    data = written(tmp_path / "films.jsonl", FILMS)
    assert weights(start, data) == pytest.approx(want) and want.max() > 2 * want.min()
    broken = written(tmp_path / "broken.jsonl", [*FILMS, {"text": "a"}, {"text": "b", "label": None}])
    assert weights(start, broken) == pytest.approx(want), "rows that are passed over do not count"
    given = [tag for row in TAGS for tag in row["tags"]]
    want = compute_class_weight("balanced", classes=np.array(["B-X", "O"]), y=given)
    assert weights(start, written(tmp_path / "tags.jsonl", TAGS), "tag") == pytest.approx(want)


def test_a_run_learns_with_them_and_keeps_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start, data = base("bert", tmp_path), written(tmp_path / "films.jsonl", FILMS)
    with pytest.raises(SystemExit) as stopped:
        main(["tune", "classify", "--from", str(start), "--data", data, "--class-weights", "balanced",
              "--budget", "1 steps", "--out", str(tmp_path / "run")])  # fmt: skip
    assert stopped.value.code == 0 and "weights: 1.67," in capsys.readouterr().err
    kept = read(tmp_path / "run", lambda about: about["plan"]["objective"]["weights"])
    assert kept == pytest.approx(weights(start, data))
    more: Any = {"start": str(tmp_path / "run"), "data": written(tmp_path / "few.jsonl", FILMS[:3]), "quiet": True}
    less = tune("classify", out=tmp_path / "less", budget="1 steps", overrides={"objective.weights": "balanced", "train.val_fraction": 0.4}, **more)  # fmt: skip
    seen = {row["label"] for row in FILMS[:3]}
    want = compute_class_weight("balanced", classes=np.array(sorted(seen)), y=[row["label"] for row in FILMS[:3]])
    by_name = dict(zip(sorted(seen), want, strict=True))
    assert less.plan.objective.weights == pytest.approx([by_name.get(n, 1.0) for n in ("neg", "odd", "pos")])
    assert torch.isfinite(stemma.load(tmp_path / "less").task.out.weight).all()


def test_weights_that_fit_no_labels_are_refused(tmp_path: Path) -> None:
    start = base("bert", tmp_path)
    many = written(tmp_path / "many.jsonl", MANY)
    for value in ("balanced", "1,2"):
        with pytest.raises(UsageError, match=r"of which a row has one, and the rows of .*many\.jsonl have lists"):
            weights(start, many, value=value)
    with pytest.raises(UsageError, match="regress has no labels that weights could balance"):
        weights(start, written(tmp_path / "numbers.jsonl", NUMBERS), "regress")
