"""The engine under load: prompts in pieces, jobs that end before their time, and errors that are one job's alone."""

from __future__ import annotations

import copy
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

import stemma
from oracle import shared
from stemma.decoding import evaluating
from stemma.decoding.chunked import ChunkedSession
from stemma.decoding.layout import lay_out
from stemma.engine import Busy, Engine, Expired
from stemma.errors import NotFinite, UsageError
from test_generate import GENERATING
from tiny import build, tiny

KINDS = ["llama", "mistral", "gpt2", "gemma2"]  # a plain cache, a window, a table of positions, two kinds of layers
PLAIN: dict[str, Any] = {"max_new_tokens": 6, "ignore_eos": True}


def ids(n: int, seed: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(3, 40) for _ in range(n)]


def alone(model: Any, prompt: Sequence[int], **options: Any) -> list[int]:
    return stemma.generate(model, [list(prompt)], **PLAIN | options)[0].ids


class Gate:
    """Holds an engine before its next call of the decoder, so that a test knows what it is doing."""

    def __init__(self, model: Any) -> None:
        self.calls: list[tuple[int, ...]] = []  # the shape of each call's ids
        self.reached, self.open = threading.Semaphore(0), threading.Semaphore(0)
        self.free = False
        self.hook = model.decoder.register_forward_pre_hook(self.hold)

    def hold(self, module: Any, given: Any) -> None:
        self.calls.append(tuple(given[0].x.shape[:2]))
        if not self.free:
            self.reached.release()
            assert self.open.acquire(timeout=30)

    def wait(self) -> None:
        """Until the next call is held."""
        assert self.reached.acquire(timeout=30)

    def pass_one(self) -> None:
        """Let the held call go, and wait for the next one."""
        self.open.release()
        self.wait()

    def release(self) -> None:
        """Hold no further call."""
        self.free = True
        self.open.release()

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        self.hook.remove()


@pytest.mark.parametrize("case", KINDS)
def test_a_prompt_in_pieces_is_the_prompt_read_whole(case: str) -> None:
    model = shared(case)[0]
    prompts = [ids(n, n) for n in (1, 23, 7, 16)]
    with torch.inference_mode():
        whole = ChunkedSession(model, prompts, 4)
        pieces = ChunkedSession.opened(model, prompts, 4)
        assert [pieces.unread, pieces.go_on(16), pieces.unread] == [47, False, 34]
        while not pieces.go_on(12):
            pass
        for _ in range(4):
            assert torch.allclose(pieces.logits, whole.logits, atol=1e-5)
            tokens = whole.logits.argmax(-1)
            assert torch.equal(pieces.step(tokens).argmax(-1), whole.step(tokens).argmax(-1))


@pytest.mark.parametrize("case", KINDS)
def test_others_go_on_while_a_long_prompt_is_read(case: str) -> None:
    model = shared(case)[0]
    prompt, expected = ids(30, 1), alone(model, ids(30, 1))
    with Engine(model, chunk=4) as engine, Gate(model) as gate:
        first = engine.submit([5, 6], max_new_tokens=30, ignore_eos=True)
        gate.wait()
        gate.pass_one()  # it is read, and its first token is about to be
        long = engine.submit(prompt, **PLAIN)
        before = len(first.events)
        while (1, 4) not in gate.calls[-1:]:
            gate.pass_one()
        for _ in range(6):
            gate.pass_one()
        assert len(first.events) >= before + 3 and not long.events
        gate.release()
        assert long.result(30).ids == expected
        assert len(first.result(30).ids) == 30
        assert max(length for _, length in gate.calls) == 4
        assert engine.stats().read == 32 and engine.stats().written == 36


def test_short_prompts_that_wait_are_read_together() -> None:
    model = shared("llama")[0]
    prompts = [ids(n, n) for n in (3, 5, 2, 40)]
    expected = [alone(model, p) for p in prompts]
    with Engine(model, chunk=32) as engine, Gate(model) as gate:
        first = engine.submit([5], **PLAIN)
        gate.wait()
        jobs = [engine.submit(p, **PLAIN) for p in prompts]
        gate.release()
        assert [job.result(30).ids for job in jobs] == expected
        first.result(30)
        assert (3, 5) in gate.calls


def test_a_job_is_cancelled_while_its_prompt_is_read() -> None:
    model = shared("llama")[0]
    with Engine(model, chunk=2) as engine, Gate(model) as gate:
        job = engine.submit(ids(40, 2), **PLAIN)
        gate.wait()
        gate.pass_one()
        assert engine.stats().reading == 1
        job.cancel()
        with pytest.raises(BaseException, match="cancelled"):
            job.result(0)  # at once
        gate.release()
        assert engine.submit([7], **PLAIN).result(30).ids == alone(model, [7])
        stats = engine.stats()
        assert (stats.read, stats.cancelled, stats.running, stats.reading) == (5, 1, 0, 0)


def test_a_deadline_ends_a_job_that_runs_and_one_that_waits() -> None:
    model = shared("llama")[0]
    with Engine(model, rows=1) as engine, Gate(model) as gate:
        jobs = [engine.submit([5], deadline=0.05, **PLAIN) for _ in range(2)]
        last = engine.submit([6], deadline=60, **PLAIN)
        gate.wait()
        time.sleep(0.06)
        gate.release()
        for job in jobs:
            with pytest.raises(Expired, match=r"did not end in 0\.05 seconds"):
                job.result(30)
        assert last.result(30).ids == alone(model, [6])


def spoilt() -> Any:
    """A model in which texts with token 9 get logits that are not finite."""
    model = copy.deepcopy(shared("llama")[0])
    with torch.no_grad():
        model.embed.tokens.weight[9] = float("nan")
    return model


@pytest.mark.parametrize("chunk", [2, 64])
def test_a_row_that_is_not_finite_fails_alone(chunk: int) -> None:
    """As a prompt that is read with others, and later at a token that it is made to write."""
    model = spoilt()
    with Engine(model, chunk=chunk) as engine, Gate(model) as gate:
        first = engine.submit([5], max_new_tokens=12, ignore_eos=True)
        gate.wait()
        good = engine.submit([7, 8], **PLAIN)
        bad = engine.submit([7, 9], **PLAIN)
        turned = engine.submit([6, 8], forced_bos_token_id=9, **PLAIN)
        last = engine.submit([4, 3], **PLAIN)
        gate.release()
        for job in (bad, turned):
            with pytest.raises(NotFinite, match="not finite"):
                job.result(30)
        assert len(turned.events) == 1
        plain = shared("llama")[0]
        assert [good.result(30).ids, last.result(30).ids] == [alone(plain, [7, 8]), alone(plain, [4, 3])]
        assert first.result(30).ids == alone(plain, [5], max_new_tokens=12)
        assert engine.stats().failed == 2


def failing(model: Any, when: Callable[[Any], bool]) -> Any:
    def fail(module: Any, given: Any) -> None:
        if when(given[0]):
            raise MemoryError("out of memory")

    return model.decoder.register_forward_pre_hook(fail)


def test_a_prompt_that_cannot_be_read_fails_alone() -> None:
    model = shared("llama")[0]
    hook = failing(model, lambda inputs: inputs.x.shape[1] > 20)
    try:
        with Engine(model) as engine:
            first = engine.submit([5], max_new_tokens=20, ignore_eos=True)
            bad = engine.submit(ids(21, 3), **PLAIN)
            with pytest.raises(MemoryError):
                bad.result(30)
            assert first.result(30).ids == alone(model, [5], max_new_tokens=20)
    finally:
        hook.remove()


def test_the_engine_goes_on_after_a_step_that_failed(caplog: pytest.LogCaptureFixture) -> None:
    model = shared("llama")[0]
    failures = iter([False, False, True])
    hook = failing(model, lambda inputs: next(failures, False))
    try:
        with Engine(model) as engine:
            with pytest.raises(MemoryError):
                engine.submit([5], **PLAIN).result(30)
            assert engine.submit([5], **PLAIN).result(30).ids == alone(model, [5])
            assert "1 jobs failed: out of memory" in caplog.text
    finally:
        hook.remove()


def test_a_full_queue_names_a_time_from_the_measured_rate() -> None:
    model = shared("llama")[0]
    with Engine(model, rows=1, queue=1) as engine:
        for _ in range(3):
            engine.submit([5], **PLAIN).result(30)
        with Gate(model) as gate:
            engine.submit([5], **PLAIN)
            gate.wait()
            engine.submit([5], **PLAIN)
            with pytest.raises(Busy) as full:
                engine.submit([5])
            assert 0.1 <= full.value.retry_after < 60
        stats = engine.stats()
        assert stats.steps > 0 and stats.step_seconds > 0 and stats.pieces > 0 and stats.step > 0


# ---------------------------------------------------------------- ways of writing


@pytest.mark.parametrize("case", ["t5", "bart", "llama"])
def test_searches_with_beams_go_on_beside_other_jobs(case: str) -> None:
    """In turns, a step at a time; with the texts of `generate`."""
    model = shared(case)[0]
    want = stemma.generate(model, [ids(7, 1)], num_beams=3, n=2, max_new_tokens=8)[0]
    with Engine(model) as engine, Gate(model) as gate:
        first = engine.submit([5, 6], max_new_tokens=12, ignore_eos=True)
        gate.wait()
        search = engine.submit(ids(7, 1), num_beams=3, n=2, max_new_tokens=8)
        gone = engine.submit(ids(7, 2), num_beams=3, max_new_tokens=30)
        before = len(gate.calls)
        for _ in range(4):
            gate.pass_one()
        gone.cancel()
        gate.release()
        assert [choice.ids for choice in search.result(30).choices] == [choice.ids for choice in want.choices]
        assert first.result(30).ids == alone(model, [5, 6], max_new_tokens=12)
        rows = [call[0] for call in gate.calls[before:]]
        assert len(set(rows[: 2 * 3])) > 1  # calls of the search and of the other job take turns
        with pytest.raises(UsageError, match="beam search"):
            engine.submit([5], num_beams=2, temperature=1.0)


def of_family(name: str, **changes: Any) -> Any:
    return build(tiny(name, **changes)).eval()


WAYS: dict[str, Callable[[], Any]] = {
    "t5": lambda: shared("t5")[0],
    "bart": lambda: shared("bart")[0],
    "xlnet": lambda: shared("xlnet")[0],
    "glm": lambda: of_family("glm"),
    "unilm": lambda: of_family("unilm", **{"text.mask_id": 4}),
    "longllama": lambda: of_family("longllama", **{"dims.context": 8}),
    "llama-dynamic": lambda: shared("llama-dynamic-short")[0],  # some rows outgrow its context, others do not
}
SLOW = [pytest.param(c, marks=pytest.mark.slow) for c in GENERATING if c not in WAYS]


@pytest.mark.parametrize("name", [*WAYS, *SLOW])
@pytest.mark.filterwarnings("ignore:.* tokens are more than")
def test_every_way_of_writing_goes_through_the_engine(name: str) -> None:
    """More jobs than rows; each text equals its solo run."""
    model = WAYS[name]() if name in WAYS else shared(name)[0]
    prompts = [ids(n, n) for n in (3, 9, 1, 6, 12)]
    expected = [alone(model, p) for p in prompts]
    with Engine(model, rows=3, chunk=5) as engine:
        jobs = [engine.submit(p, **PLAIN) for p in prompts]
        assert [job.result(60).ids for job in jobs] == expected


# ---------------------------------------------------------------- other threads


def test_a_call_runs_between_two_steps() -> None:
    model = shared("llama")[0]
    with Engine(model) as engine, Gate(model) as gate:
        first = engine.submit([5], max_new_tokens=12, ignore_eos=True)
        gate.wait()
        going = engine.call(lambda: len(gate.calls))
        failing_call = engine.call(lambda: 1 // 0)
        assert not going.done()  # a step is held
        gate.release()
        assert 1 <= going.result(30) < 13 and len(first.result(30).ids) == 12
        with pytest.raises(ZeroDivisionError):
            failing_call.result(30)
        with pytest.raises(UsageError, match="no adapter"):
            engine.call(lambda: 1, adapter="other")
        assert engine.submit([5], **PLAIN).result(30).ids == alone(model, [5])
    with pytest.raises(UsageError, match="closed"):
        engine.call(lambda: 1)


def test_a_thread_that_ends_leaves_the_model_as_others_need_it() -> None:
    """In eval mode, until the last one has left."""
    model = copy.deepcopy(shared("gpt2")[0]).train()
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with evaluating(model):
            entered.set()
            leave.wait(30)

    thread = threading.Thread(target=other)
    thread.start()
    assert entered.wait(30)
    with evaluating(model):
        leave.set()
        thread.join()
        assert not any(module.training for module in model.modules())
    assert all(module.training for module in model.modules())


def test_weights_stay_where_they_are_while_another_thread_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layout that is faster for a few rows is not made beside a running engine."""
    monkeypatch.setenv("STEMMA_EXECUTOR", "off")
    model = copy.deepcopy(shared("llama")[0])
    alone(model, [5])
    few = [p.stride() for p in model.parameters()]
    assert any(p.ndim == 2 and not p.is_contiguous() for p in model.parameters())
    with Engine(model, rows=32) as engine:
        want = engine.submit([5, 6], **PLAIN).result(30).ids
        many = [p.stride() for p in model.parameters()]
        assert many != few
        with Gate(model) as gate:
            job = engine.submit([5, 6], **PLAIN)
            gate.wait()
            lay_out(model, 1)  # as another call in another thread would
            assert [p.stride() for p in model.parameters()] == many
            gate.release()
            assert job.result(30).ids == want


# ---------------------------------------------------------------- errors between two steps


def test_an_error_while_rows_join_ends_the_jobs_of_then_and_not_the_engine(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = shared("llama")[0]
    joined, failures = ChunkedSession.join, iter([True])

    def join(own: ChunkedSession, new: ChunkedSession) -> None:
        if next(failures, False):
            raise MemoryError("out of memory")
        joined(own, new)

    monkeypatch.setattr(ChunkedSession, "join", join)
    with Engine(model) as engine, Gate(model) as gate:
        first = engine.submit([5], max_new_tokens=40, ignore_eos=True)
        gate.wait()
        gate.pass_one()
        second = engine.submit([6, 7], **PLAIN)
        gate.release()
        for job in (first, second):
            with pytest.raises(MemoryError):
                job.result(30)
        assert "2 jobs failed: out of memory" in caplog.text
        jobs = [engine.submit(ids(n, n), **PLAIN) for n in (40, 3, 5)]
        assert [job.result(30).ids for job in jobs] == [alone(model, ids(n, n)) for n in (40, 3, 5)]
        stats = engine.stats()
        assert (stats.running, stats.reading, stats.failed, stats.pages_used) == (0, 0, 2, 0)
