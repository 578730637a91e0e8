"""That a tiny network of every family learns its own objective on real text, well below the frequencies of tokens: the
figures of `bench/learning.py`, which stand in docs/benchmarks.md. Slow: some minutes a family."""

import importlib.util
from pathlib import Path

import pytest

FILE = Path(__file__).parent.parent / "bench" / "learning.py"
spec = importlib.util.spec_from_file_location("learning", FILE)
assert spec is not None and spec.loader is not None
learning = importlib.util.module_from_spec(spec)
spec.loader.exec_module(learning)


@pytest.mark.slow
@pytest.mark.parametrize("name", learning.WRITTEN)
def test_what_is_written_is_learned(name: str) -> None:
    row = learning.learn(name, 300)
    assert row["bits"] < 0.9 * row["unigram"], row


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=pytest.mark.xfail(strict=True, reason="one bit a token: the detector needs more steps")
        )
        if name == "electra"
        else name
        for name in learning.MASKED
    ],
)
def test_what_is_masked_is_learned(name: str) -> None:
    row = learning.learn(name, 300 * learning.SPARSE)
    assert row["bits"] < 0.95 * row["unigram"], row
