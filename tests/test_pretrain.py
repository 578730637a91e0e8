"""`stemma pretrain NAME` for the pretrained families of the survey, at tiny scale on text that Python comes with."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import stemma
from stemma import data
from stemma.train import Run, pretrain, resolve, verify_resume

NAMES = [
    "bert",
    "roberta",
    "albert",
    "deberta",
    "electra",
    "xlm",
    "xlm-r",
    "xlnet",
    "unilm",
    "gpt1",
    "gpt2",
    "gpt3",
    "llama",
    "mistral",
    "palm",
    "u-palm",
    "glm",
    "t5",
    "mt5",
    "mass",
    "bart",
    "ul2",
]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 150 kB of `builtin:docs`, a document a paragraph."""
    path = tmp_path_factory.mktemp("text") / "docs.txt"
    held: list[str] = []
    for document in data.read("builtin:docs").documents():
        held.append(" ".join(document.text.split()))
        if sum(map(len, held)) > 150_000:
            break
    path.write_text("\n\n".join(held), "utf-8")
    return path


@pytest.fixture(scope="module")
def languages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first verses of `builtin:parallel` in its languages."""
    path = tmp_path_factory.mktemp("text") / "verses.jsonl"
    held: dict[str, list[str]] = {}
    for document in data.read("builtin:parallel").documents():
        lines = held.setdefault(document.language, [])
        if len(lines) < 150:
            row = {"text": document.text, "lang": document.language, "group": document.group}
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    path.write_text("".join(line for lines in held.values() for line in lines), "utf-8")
    return path


ELSEWHERE = {"bert", "roberta", "albert", "electra", "deberta"}  # test_train_encoders trains them just as small
SMALL = {"dims.d_model": 48, "dims.d_ff": 96, "dims.context": 64, "recipe.batch": 256}
slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "widths"),
    [
        *(pytest.param(n, "small", marks=slow if n in ELSEWHERE else ()) for n in NAMES),
        *(pytest.param(n, "tiny", marks=slow) for n in NAMES),
    ],
)
def test_a_family_is_pretrained_with_its_own_objective(
    name: str, widths: str, text: Path, languages: Path, tmp_path: Path
) -> None:
    """A run to its end, its own objective and optimiser untouched; it resumes exactly, and what it leaves is loaded.
    In the default suite with yet smaller widths than those of the scale `tiny`."""
    settings: dict[str, Any] = {"dims.vocab": 700, "train.eval_tokens": 1000, "train.threads": 1}
    if widths == "small":
        settings |= SMALL | ({"dims.context": 128} if name == "xlnet" else {})  # half of a row is what it reuses
    source = {"builtin:docs": f"{text}#split=paragraph", "builtin:parallel": str(languages)}[resolve(name).data]
    run: Run = pretrain(name, data=source, out=tmp_path / "run", budget="4 steps", overrides=settings, quiet=True)
    published = stemma.design(name)
    assert type(run.plan.objective) is type(published.objective)
    assert type(run.plan.recipe.optimizer) is type(published.recipe.optimizer)
    assert run.finished and run.summary["steps"] == 4 and math.isfinite(run.summary["val"]["loss"])
    assert verify_resume(run.directory, 2)["identical"]
    again = stemma.load(run.directory / "model")
    ours, theirs = run.model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
