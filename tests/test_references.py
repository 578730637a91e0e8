"""What a reference says, computed once before the run: the same losses, kept, resumed, and held to its hash."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import stemma
from stemma.errors import CheckpointError, UsageError
from stemma.objectives import continuations
from stemma.train import references, verify_resume
from test_align_preference import dpo, metrics
from test_tune import decoder, tokenizer  # noqa: F401

KEPT = {"objective.precompute": True}


def told(run: Any) -> list[dict[str, Any]]:
    return metrics(run.directory)


@pytest.mark.parametrize(
    ("what", "how"),
    [
        ("dpo", {}),
        ("kto", {"lora": 4}),
        pytest.param("dpo", {"lora": 4, "quantize": "nf4"}, marks=pytest.mark.slow),
        pytest.param("kto", {}, marks=pytest.mark.slow),
    ],
    ids=["dpo", "kto by lora", "dpo by qlora", "kto"],
)
def test_losses_are_those_of_a_reference_beside_the_policy(
    decoder: Path, tmp_path: Path, what: str, how: dict[str, Any]  # noqa: F811
) -> None:  # fmt: skip
    """To 1e-6: the reference reads the texts in other batches. It is not loaded again, and the run goes on without
    it."""
    there = tmp_path / "there"
    shutil.copytree(decoder, there)
    how = how or {"reference": str(there)}
    beside = dpo(decoder, tmp_path / "beside", steps=4, what=what, **how)
    before = dpo(decoder, tmp_path / "before", steps=4, what=what, overrides=KEPT, **how)
    for one, two in zip(told(beside), told(before), strict=True):
        for name in ("loss", "reward_chosen", "reward_rejected", "accuracy", "drift", "kl", "grad_norm"):
            assert one.get(name) == pytest.approx(two.get(name), abs=2e-6 if name == "grad_norm" else 1e-6), name
    for name, value in beside.summary["val"].items():
        assert before.summary["val"][name] == pytest.approx(value, abs=1e-6), name
    assert verify_resume(before.directory, 3)["identical"]
    if "reference" in how:
        shutil.rmtree(there)
        assert verify_resume(before.directory, 3)["identical"]


class Stopped(Exception):
    pass


def test_a_process_that_is_killed_meanwhile_leaves_whole_texts(
    decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    """The next one computes what is missing, also behind a text that was half written, and comes to the same files."""
    monkeypatch.setattr(references, "MICRO", {"cpu": 200})
    whole = dpo(decoder, tmp_path / "whole", steps=2, overrides=KEPT)
    calls, real = 0, continuations.logprobs

    def some(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise Stopped
        return real(*given)

    monkeypatch.setattr(references.continuations, "logprobs", some)
    with pytest.raises(Stopped):
        dpo(decoder, tmp_path / "cut", steps=2, overrides=KEPT)
    place = tmp_path / "cut" / "reference"
    assert not references.finished(place)
    for name in ("keys.bin", "values.bin"):
        with open(place / name, "ab") as file:
            file.write(b"half")
    monkeypatch.setattr(references.continuations, "logprobs", real)
    again = dpo(decoder, tmp_path / "cut", steps=2, overrides=KEPT)
    for name in ("keys.bin", "values.bin"):
        assert (place / name).read_bytes() == (tmp_path / "whole" / "reference" / name).read_bytes()
    plain = [[{k: v for k, v in row.items() if k != "seconds"} for row in told(run)] for run in (whole, again)]
    assert plain[0] == plain[1]


def test_what_is_kept_is_held_to_its_hash(decoder: Path, tmp_path: Path) -> None:  # noqa: F811
    """A changed byte is found; the folder is made again where it is gone."""
    run = dpo(decoder, tmp_path / "run", steps=2, overrides=KEPT)
    file = run.directory / "reference" / "values.bin"
    held = file.read_bytes()
    file.write_bytes(held[:-1] + bytes([held[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="is not as the run wrote it: delete the folder"):
        verify_resume(run.directory, 2)
    shutil.rmtree(file.parent)
    assert verify_resume(run.directory, 2)["identical"] and file.read_bytes() == held


def test_where_nothing_can_be_computed_it_is_refused(decoder: Path, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(UsageError, match=r"keeps what a reference says, and objective.reference=none has none"):
        dpo(decoder, tmp_path / "none", reference="none", overrides=KEPT | {"objective.average": True})
    timed: dict[str, Any] = {"start": str(decoder), "data": str(tmp_path / "kto.jsonl"), "out": tmp_path / "timed"}
    dpo(decoder, tmp_path / "rows", steps=1, what="kto")
    with pytest.raises(UsageError, match=r"nor train.spikes tells which: give steps or epochs"):
        stemma.align("kto", **timed, budget="5s", template="plain", quiet=True, overrides=KEPT)
    assert not (tmp_path / "timed" / "run.json").exists()
