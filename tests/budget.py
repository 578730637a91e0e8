"""How long the tests of a file may take: processor seconds, of child processes too, told at the end of a run.

Seconds of another machine count by how long a fixed piece of work takes there, so that a slow one is no fault of a test.
`STEMMA_BUDGET=strict` makes a file that takes more than twice its budget an error; otherwise it is only named.
`STEMMA_BUDGET=all` names every file.
"""

from __future__ import annotations

import os
import resource
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

DEFAULT = 5.0  # for every file that is not named here
BUDGETS = {
    "test_harness.py": 60,
    "test_generate.py": 30,
    "test_executor.py": 8,
    "test_parity.py": 25,
    "test_planning.py": 25,
    "test_scale.py": 60,
    "test_recipes.py": 8,
    "test_pretrain.py": 15,
    "test_gguf_write.py": 20,
    "test_kills.py": 30,
    "test_checkpoints.py": 15,
    "test_cli.py": 25,
    "test_hub.py": 15,
    "test_building.py": 15,
    "test_accidents.py": 15,
    "test_rules.py": 12,
    "test_running.py": 12,
    "test_objective_seq2seq.py": 12,
    "test_objective_languages.py": 12,
    "test_support.py": 10,
    "test_objective_orders.py": 10,
    "test_train.py": 10,
    "test_engine_pairs.py": 10,
    "test_blocks.py": 8,
    "test_data_page.py": 8,
    "test_config.py": 8,
    "test_hostile_input.py": 12,
    "test_rewrites.py": 10,
    "test_fuzz.py": 10,
    "test_rewrites_train.py": 12,
    "test_saving.py": 10,
    "test_stages.py": 12,
    "test_coding.py": 8,
    "test_grpo.py": 8,
    "test_align_scale.py": 12,
    "test_compiled_steps.py": 8,
}
REFERENCE = 0.05  # seconds that `work` takes on the machine of the budgets

_spent: Counter[str] = Counter()
_last = 0.0


def used() -> float:
    """Processor seconds of this process and of the children that ended."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def work() -> float:
    """Processor seconds of a fixed piece of work, the best of three."""
    best = 9.0
    for _ in range(3):
        start, total = time.process_time(), 0
        for i in range(1_000_000):
            total += i & 7
        best = min(best, time.process_time() - start)
    return best


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Iterator[Any]:
    """Each report carries what was used since the last one: set-up, call and tear-down of a test make one each."""
    global _last
    report = yield
    now = used()
    report.cpu = now - _last if _last else 0.0
    _last = now
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _spent[report.nodeid.split("::")[0].rsplit("/", 1)[-1]] += getattr(report, "cpu", 0.0)


def over(spent: dict[str, float], speed: float) -> list[tuple[str, float, float]]:
    """(file, seconds by the clock of the budgets, its budget) of every file beyond its budget, the worst first."""
    found = [(name, seconds / speed, float(BUDGETS.get(name, DEFAULT))) for name, seconds in spent.items()]
    return sorted((row for row in found if row[1] > row[2]), key=lambda row: row[2] - row[1])


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if not _spent or "slow" not in (config.option.markexpr or ""):
        return
    speed = max(1.0, work() / REFERENCE)
    told = (
        f"{sum(_spent.values()):.0f} processor seconds of tests; this machine takes {speed:.1f} for 1 of the budgets'"
    )
    terminalreporter.write_line(told)
    if os.environ.get("STEMMA_BUDGET") == "all":
        for name, seconds in _spent.most_common():
            terminalreporter.write_line(f"{seconds:8.1f} s {name}")
    for name, seconds, budget in over(_spent, speed):
        terminalreporter.write_line(f"over its budget: {name} took {seconds:.1f} s of {budget:.0f} (tests/budget.py)")


def pytest_sessionfinish(session: pytest.Session) -> None:
    if os.environ.get("STEMMA_BUDGET") == "strict" and not hasattr(session.config, "workerinput"):
        speed = max(1.0, work() / REFERENCE)
        if any(seconds > 2 * budget for _, seconds, budget in over(_spent, speed)):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
