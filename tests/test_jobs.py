"""The engine: requests of many threads in one running batch, each with the text that it gets alone."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest

import stemma
from oracle import shared
from stemma.engine import Busy, Engine
from stemma.errors import UsageError
from test_running import talker

CASE = "llama"


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine(shared(CASE)[0], rows=3) as opened:
        yield opened


def asked(n: int) -> list[list[int]]:
    return [[3 + (7 * i + j) % 40 for j in range(1 + i % 5)] for i in range(n)]


def test_each_text_equals_its_own(engine: Engine) -> None:
    """More requests than rows, of different lengths and temperatures, from several threads."""
    options = [{"max_new_tokens": 3 + i % 6, "temperature": 0.0 if i % 2 else 0.9, "seed": i} for i in range(9)]
    alone = [
        stemma.generate(engine.model, [p], ignore_eos=True, **o)[0].ids for p, o in zip(asked(9), options, strict=True)
    ]
    got: dict[int, list[int]] = {}

    def ask(i: int) -> None:
        got[i] = engine.submit(asked(9)[i], ignore_eos=True, **options[i]).result(30).ids

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[i] for i in range(9)] == alone
    assert engine.stats().running == engine.stats().waiting == 0


def test_events_come_one_by_one_and_async(engine: Engine) -> None:
    async def read() -> list[int]:
        return [event.token async for event in engine.submit([5, 6], max_new_tokens=6, ignore_eos=True)]

    job = engine.submit([5, 6], max_new_tokens=6, ignore_eos=True)
    plain = [event.token for event in job]
    assert plain == asyncio.run(read()) == job.result().ids
    assert [event.token for event in job] == plain  # a later reader gets all of them


def test_a_cancelled_job_leaves_and_others_go_on(engine: Engine) -> None:
    for _ in range(50):  # sixty tokens may have been written before the cancel comes
        long = engine.submit([5, 6], max_new_tokens=60, ignore_eos=True)
        next(iter(long))
        other = engine.submit([7], max_new_tokens=4, ignore_eos=True)
        long.cancel()
        assert len(other.result(30).ids) == 4
        try:
            long.result(30)
        except CancelledError:
            break
    with pytest.raises(CancelledError):
        long.result(30)
    assert len(long.events) < 60


def test_a_full_queue_is_said() -> None:
    with Engine(shared(CASE)[0], rows=1, queue=1) as engine:
        first = engine.submit([5], max_new_tokens=60, ignore_eos=True)
        next(iter(first))
        with pytest.raises(Busy, match="1 requests are waiting") as full:
            for _ in range(100):  # the first may end meanwhile
                engine.submit([5], max_new_tokens=60, ignore_eos=True)
        assert full.value.retry_after > 0


def test_an_error_is_its_own_jobs_alone(engine: Engine) -> None:
    good = engine.submit([5, 6], max_new_tokens=8, ignore_eos=True)
    with pytest.raises(UsageError, match="token id 999999"):
        engine.submit([999999]).result(30)
    assert len(good.result(30).ids) == 8


def test_closing_waits_for_what_is_there() -> None:
    engine = Engine(shared(CASE)[0], rows=1)
    jobs = [engine.submit([5], max_new_tokens=5, ignore_eos=True) for _ in range(3)]
    engine.close()
    assert [len(job.result().ids) for job in jobs] == [5, 5, 5]
    with pytest.raises(UsageError, match="closed"):
        engine.submit([5])


def test_choices_of_a_job_are_what_generate_returns(engine: Engine) -> None:
    options = dict(max_new_tokens=6, ignore_eos=True, temperature=1.0, n=2, best_of=4)
    jobs = [engine.submit([5, 6, 7], seed=seed, **options) for seed in (1, 2)]
    for seed, job in zip((1, 2), jobs, strict=True):
        want = stemma.generate(engine.model, [[5, 6, 7]], seed=seed, **options)[0]
        assert [c.ids for c in job.result(30).choices] == [c.ids for c in want.choices]
        assert {event.choice for event in job} == {0, 1, 2, 3}


def test_a_text_that_cannot_go_on_fails_alone(engine: Engine) -> None:
    vocab = engine.model.dims.vocab
    other = engine.submit([5, 6], max_new_tokens=6, ignore_eos=True)
    dead = engine.submit([5, 6], max_new_tokens=4, min_new_tokens=2, eos_token_id=range(vocab), n=2)
    with pytest.raises(UsageError, match="no token is left"):
        dead.result(30)
    assert len(other.result(30).ids) == 6


def test_an_engine_reports_on_prompts(engine: Engine) -> None:
    options = dict(max_new_tokens=4, ignore_eos=True)
    prompts = asked(4)
    jobs = [
        engine.submit(p, prompt_logprobs=2 if i % 2 else None, logprobs=1, **options) for i, p in enumerate(prompts)
    ]
    for i, (prompt, job) in enumerate(zip(prompts, jobs, strict=True)):
        want = stemma.generate(engine.model, [prompt], prompt_logprobs=2, logprobs=1, **options)[0]
        got = job.result(30)
        assert got.ids == want.ids and len(got.top) == 4
        if i % 2:
            assert got.prompt_logprobs[0] is None and len(got.prompt_top) == len(prompt)
            assert got.prompt_logprobs[1:] == pytest.approx(want.prompt_logprobs[1:], abs=1e-4)
        else:
            assert got.prompt_logprobs == got.prompt_top == []


def test_the_pages_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    talker().save("model")
    page = (Path(__file__).parent.parent / "docs/engine.md").read_text("utf-8")
    (code,) = re.findall(r"<!-- jobs -->\n```python\n(.*?)```\n<!-- /jobs -->", page, re.S)
    exec(code, {})
    assert "Stats(" in capsys.readouterr().out
