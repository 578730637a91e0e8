"""Shared by all tests: one torch thread a worker, no network, no colours, no directory of the user's."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SRC = str(ROOT / "src")
sys.path.append(str(ROOT / "scripts"))  # what makes the pages, which tests ask too
# processes that tests start find this checkout
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [SRC, os.environ.get("PYTHONPATH")]))
# the workers share the cores, and two threads that wait for a busy core spin; set before torch reads it
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# shared stores go to a directory that ends with the tests; scans of the built-in texts are taken from the user's
CACHE = tempfile.mkdtemp(prefix="stemma-tests-")
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)
_own = Path(
    os.environ.get("STEMMA_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "stemma")
)
for _scan in _own.glob("*.jsonl"):
    os.symlink(_scan, Path(CACHE, _scan.name))
os.environ["STEMMA_CACHE"] = CACHE

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

from budget import (  # noqa: E402, F401
    pytest_runtest_logreport,
    pytest_runtest_makereport,
    pytest_sessionfinish,
    pytest_terminal_summary,
)

# the same examples in every run, so that a failure is a change's; STEMMA_EXAMPLES=new looks for further ones
settings.register_profile("same", derandomize=True)
settings.register_profile("new", derandomize=False)
settings.load_profile(os.environ.get("STEMMA_EXAMPLES", "same"))


def pytest_collection_finish() -> None:
    """What was imported and collected stays: the garbage collector need not walk it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _threads_of_its_own() -> Iterator[None]:
    """A run in this process may take all cores; the tests after it do not."""
    yield
    torch = sys.modules["torch"]
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
