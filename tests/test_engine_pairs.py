"""The engine's parts in pairs: mixtures with limits and what is measured, spikes and stops, averages and resumes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stemma.errors import DataError
from stemma.train import read_metrics
from test_train import train, words


def rows(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), "utf-8")
    return path


# ---------------------------------------------------------------- mixtures


@pytest.mark.parametrize("name", ["gpt2", "bert", "t5", "xlnet", "electra"])
def test_a_mixture_is_read_to_its_limit_and_no_further(name: str, tmp_path: Path) -> None:
    """A run that takes all that a mixture may give is finished; one that takes more is refused before it begins."""
    one, two = rows(tmp_path / "a.jsonl", words(40)), rows(tmp_path / "b.jsonl", words(60)[45:])
    data: Any = f"{one}#epochs=1,{two}#epochs=2"
    own = {"objective.reuse": 8} if name == "xlnet" else {}
    with pytest.raises(DataError, match=r"has text for \d+ steps, as often as each part may be read, and the run") as e:
        train(name, tmp_path / "long", data, 500, own)
    assert not (tmp_path / "long" / "run.json").exists()
    steps = int(str(e.value).partition("has text for ")[2].partition(" steps")[0])
    assert steps > 2
    with pytest.raises(DataError, match=f"has text for {steps} steps"):
        train(name, tmp_path / "more", data, steps + 1, own)
    run = train(name, tmp_path / "all", data, steps, own | {"train.save_every": steps - 1})
    assert run.finished and len(read_metrics(tmp_path / "all")) == steps


def test_a_source_none_of_whose_documents_is_held_out_is_measured_without_it(tmp_path: Path) -> None:
    many, few = rows(tmp_path / "a.jsonl", words(120)), rows(tmp_path / "b.jsonl", words(125)[122:])
    mixed: Any = f"{many}@0.5,{few}@0.5"
    run = train("gpt2", tmp_path / "run", mixed, 4)
    assert run.finished and run.summary["val"]["bits_per_byte"] > 0


def test_a_source_all_of_whose_documents_are_held_out_leaves_no_run(tmp_path: Path) -> None:
    many, few = rows(tmp_path / "a.jsonl", words(120)), rows(tmp_path / "b.jsonl", words(125)[124:])
    mixed: Any = f"{many}@0.5,{few}@0.5"
    found = []
    for seed in range(40):
        try:
            train("gpt2", tmp_path / str(seed), mixed, 2, seed=seed)
        except DataError as error:
            found.append(str(error))
            assert not (tmp_path / str(seed) / "run.json").exists()
            break
    assert found == [f"{few} has no document left to train on: all of them are held out"]
