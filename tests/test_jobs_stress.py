"""Jobs that join, leave and are cancelled at random for many steps: none is stuck, each text is that of its solo run."""

from __future__ import annotations

import random
import resource
import threading
from concurrent.futures import CancelledError
from typing import Any

import pytest

import stemma
from oracle import shared
from stemma.engine import Busy, Engine, Expired, Job
from stemma.errors import UsageError
from test_jobs_apart import ids
from test_pages import check_pages, pages_of

Asked = tuple[list[int], dict[str, Any]]


def requests(n: int, vocab: int, draw: random.Random) -> list[Asked]:
    """Prompts of a few beginnings, some too long, some with ids that are none; greedy and drawn, some with several
    texts."""
    out: list[Asked] = []
    for i in range(n):
        prompt = [*ids(draw.choice([0, 8, 20]), draw.randrange(3)), *ids(draw.randrange(1, 9), i)]
        options = {"max_new_tokens": draw.randrange(1, 12), "ignore_eos": True, "seed": i}
        options |= {"temperature": 0.8, "n": draw.choice([1, 1, 2])} if draw.random() < 0.5 else {}
        if draw.random() < 0.05:
            prompt = [*prompt, vocab]
        out.append((prompt, options))
    return out


def leave(job: Job, draw: random.Random) -> list[list[int]] | None:
    """Read a job to its end, or cancel it before."""
    last = draw.choice([0, 1, 3]) if draw.random() < 0.3 else None
    try:
        for at, _ in enumerate(job):
            if at == last:
                job.cancel()
        return [choice.ids for choice in job.result(60).choices]
    except (CancelledError, Expired):
        return None


def run(engine: Engine, asked: list[Asked], seed: int) -> dict[int, list[list[int]]]:
    """The texts of the jobs that ended with one; eight threads ask for them."""
    texts: dict[int, list[list[int]]] = {}
    todo, lock, failures = iter(range(len(asked))), threading.Lock(), list[BaseException]()

    def ask(number: int) -> None:
        draw = random.Random(100 * seed + number)
        while True:
            with lock:
                if (i := next(todo, None)) is None:
                    return
            prompt, options = asked[i]
            try:
                deadline = 0.001 if draw.random() < 0.05 else 60
                found = leave(engine.submit(prompt, deadline=deadline, **options), draw)
                if found is not None:
                    texts[i] = found
            except UsageError as error:
                if "token id" not in str(error):
                    failures.append(error)
            except Busy:
                pass
            except BaseException as error:
                failures.append(error)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    return texts


@pytest.mark.parametrize("case", ["llama", pytest.param("gemma2", marks=pytest.mark.slow)])
@pytest.mark.parametrize("n", [40, pytest.param(400, marks=pytest.mark.slow)])
def test_jobs_at_random_end_with_their_own_texts(case: str, n: int) -> None:
    model = shared(case)[0]
    asked = requests(n, model.dims.vocab, random.Random(n))
    sizes = []
    with Engine(model, rows=5, queue=7, chunk=6) as engine:
        engine.pages = own = pages_of(model, tokens=260, chunk=6)
        for again in range(3 if n > 100 else 1):
            texts = run(engine, asked, again)
            assert len(texts) > n // 3
            sizes.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
            for i, choices in texts.items():
                want = stemma.generate(model, [asked[i][0]], **asked[i][1])[0]
                assert choices == [choice.ids for choice in want.choices], i
    stats = engine.stats()
    assert (stats.running, stats.reading, stats.waiting, stats.pages_used) == (0, 0, 0, 0)
    check_pages(own, [])
    assert sizes[-1] - sizes[len(sizes) // 2] < 4_000  # KiB
