"""`stemma bench`: what it counts, and what it prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from oracle import saved, shared
from stemma.cli import root
from stemma.errors import UsageError
from stemma.evaluate import speed


@pytest.mark.parametrize("case", ["gpt2", "llama", "t5", "bart"])
def test_a_speed_has_all_its_numbers(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "BUFFER", 2**16)
    model, _ = shared(case)
    found = speed.measure(model, (1, 3), prompt=5, new=3, repeats=1)
    assert [s.rows for s in found] == [1, 3]
    assert all(s.prefill > 0 and s.decode > 0 and s.first > 0 and s.share > 0 for s in found)
    assert model.training == shared(case)[0].training


def test_what_a_step_reads_by_hand() -> None:
    """All weights but the table of embeddings, which is read as the head where both are one, and the keys and values."""
    model, _ = shared("llama")
    dims, once = model.dims, sum(p.numel() for p in model.parameters())
    table = 0 if model.arch.heads.tied else dims.vocab * dims.d_model
    buffers = sum(b.numel() for b in model.decoder.buffers())
    cache = 2 * dims.layers * dims.kv * dims.width * 7
    assert speed.bytes_read(model, 2, 7) == 4 * (once - table + buffers + 2 * cache)


def test_a_window_bounds_what_is_read() -> None:
    model, _ = shared("mistral")
    window = model.arch.mask.window
    assert speed.bytes_read(model, 1, window) == speed.bytes_read(model, 1, 10 * window)


def test_refusals() -> None:
    with pytest.raises(UsageError, match="writes no texts"):
        speed.measure(shared("bert-mlm")[0])
    with pytest.raises(UsageError, match="prompt must be at least 1, not 0"):
        speed.measure(shared("gpt2")[0], prompt=0)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "BUFFER", 2**16)
    saved("gpt2", tmp_path)
    args = ["bench", str(tmp_path), "--rows", "1,2", "--prompt", "4", "-n", "2", "--repeats", "1"]
    (one, two) = json.loads(CliRunner().invoke(root, [*args, "--json"]).stdout)
    assert (one["rows"], two["rows"], one["prompt"], one["new"]) == (1, 2, 4, 2)
    lines = CliRunner().invoke(root, args).stdout.splitlines()
    assert lines[0].split()[:3] == ["rows", "prompt", "tok/s"]
    assert [line.split()[0] for line in lines[1:3]] == ["1", "2"]
    wrong = CliRunner().invoke(root, ["bench", str(tmp_path), "--rows", "x"])
    assert "--rows 'x': give whole numbers" in str(wrong.exception)
