"""The default tests notice planted faults: `pytest tests/test_mutants.py -m slow -n 0` (about a quarter of an hour)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mutants import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("src", "tests", "scripts", "docs", "pyproject.toml", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "bench")


def sources() -> dict[Path, str]:
    """The text of every module, by its path in the checkout."""
    return {path.relative_to(ROOT): path.read_text("utf-8") for path in sorted((ROOT / "src").rglob("*.py"))}


def place(mutant: Mutant) -> Path:
    """The module that holds a fault's text."""
    found = [path for path, text in sources().items() for _ in range(text.count(mutant.old))]
    assert len(found) == 1, f"{mutant.name}: {mutant.old!r} occurs {len(found)} times in the source"
    return found[0]


def test_every_fault_can_be_planted() -> None:
    """What a fault changes is there once: else the slow test below would plant nothing."""
    texts = list(sources().values())
    wrong = [m.name for m in MUTANTS if sum(text.count(m.old) for text in texts) != 1]
    assert not wrong, "their text must occur once in the source: " + ", ".join(wrong)
    missing = [m.name for m in MUTANTS for t in m.tests.split() if not (ROOT / f"tests/test_{t}.py").is_file()]
    assert not missing, "tests that do not exist: " + ", ".join(missing)
    assert len({m.name for m in MUTANTS}) == len(MUTANTS) >= 40


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_a_fault_is_noticed(mutant: Mutant, tmp_path: Path) -> None:
    target = place(mutant)
    for name in COPIED:
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "src").unlink()
    subprocess.run(["cp", "-r", str(ROOT / "src"), str(tmp_path / "src")], check=True)
    (tmp_path / "tests").unlink()  # the tests find the source beside them
    subprocess.run(["cp", "-r", str(ROOT / "tests"), str(tmp_path / "tests")], check=True)
    text = (tmp_path / target).read_text("utf-8")
    (tmp_path / target).write_text(text.replace(mutant.old, mutant.new), "utf-8")
    files = [f"tests/test_{name}.py" for name in mutant.tests.split()]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider", *files],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 1, f"{mutant.name}: unnoticed\n{done.stdout[-2000:]}{done.stderr[-500:]}"
