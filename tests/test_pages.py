"""A cache with pages: rows read as alone, equal beginnings are shared, room is promised before a row joins."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch

import stemma
from oracle import shared
from running import check_rows
from stemma.decoding import compiled
from stemma.decoding.chunked import ChunkedSession, in_pieces, paged
from stemma.engine import Engine
from stemma.errors import StemmaError, UsageError
from stemma.nn.pages import PagedCache
from stemma.nn.pool import FIRST, PageRow, Pages
from test_generate import GENERATING, last_logits, prompts
from test_jobs_apart import PLAIN, alone, failing, ids

KINDS = ["llama", "mistral", "gpt2", "gemma2"]


def pages_of(model: Any, tokens: int = 400, slots: int = 4, rows: int = 8, chunk: int = 16) -> Pages:
    return Pages(model.arch, model.dims.layers, tokens, rows=rows, chunk=chunk, slots=slots)


def session_of(own: Pages) -> type[ChunkedSession]:
    class Paged(ChunkedSession):
        pages = own

    return Paged


def check_pages(own: Pages, rows: list[PageRow]) -> None:
    """Every page is held as often as rows name it, or is free, or is kept under its name; promises are those of rows."""
    for number, pool in enumerate(own.pools):
        held = [page for row in rows for page in row.tables[number] if page]
        assert [held.count(p) for p in range(FIRST, len(pool.refs))] == pool.refs[FIRST:]
        assert sorted([*set(held), *pool.free, *pool.idle]) == list(range(FIRST, len(pool.refs)))
        assert pool.promised == sum(row.left[number] for row in rows)
        assert pool.available >= 0
        assert {pool.page_of[name]: name for name in pool.page_of} == pool.name_of


@pytest.mark.parametrize("case", [c if c in KINDS else pytest.param(c, marks=pytest.mark.slow) for c in GENERATING])
@pytest.mark.filterwarnings("ignore:.* tokens are more than")
def test_rows_with_pages_read_as_alone(case: str) -> None:
    """Rows that join, leave, and are copied, past windows; logits as of a full pass over the row alone."""
    model = copy.deepcopy(shared(case)[0]).double()
    if not in_pieces(model) or model.decoder.position.length_dependent:
        assert paged(model, 2, 8) is None or model.decoder.position.length_dependent
        return
    rows, texts = prompts(case, [4, 11, 1, 7, 9]), prompts(case, [16] * 5, seed=9)
    check_rows(model, rows, texts, lambda p, new: last_logits(model, p, new), 16, kind=session_of(pages_of(model)))


@pytest.mark.parametrize("case", ["llama", "mistral"])
@pytest.mark.parametrize(("kv", "far"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_keys_and_values_in_16_bits(case: str, kv: torch.dtype, far: float) -> None:
    """Read in pieces or whole, by the executor, by PyTorch and by compiled steps: near the logits of a cache in fp32."""
    model = shared(case)[0]
    rows, texts = prompts(case, [20, 7, 11]), torch.tensor(prompts(case, [16] * 3, seed=9))

    def logits(dtype: torch.dtype | None, how: str, pieces: int = 100) -> torch.Tensor:
        own = Pages(model.arch, model.dims.layers, 400, rows=3, chunk=16, slots=4, dtype=dtype)
        session = ChunkedSession.opened(model, rows, 16, pages=own)
        while not session.go_on(pieces):
            pass
        session.find_executor()
        if how == "PyTorch":
            session.executor = None
        elif how == "compiled":
            session.executor = compiled.CompiledSteps(model, (), 0)
        found = [session.step(texts[:, n]) for n in range(16)]
        assert all(k.dtype == (dtype or torch.float32) for pool in own.pools for k in pool.keys.values())
        session.close()
        return torch.stack(found)

    with torch.inference_mode(), pytest.MonkeyPatch.context() as plain:
        plain.setattr(torch, "compile", lambda step, **_: step)
        exact = logits(None, "PyTorch")
        for how in ("executor", "PyTorch", "compiled"):
            difference = (logits(kv, how) - exact).abs().max()
            assert 1e-6 < difference < far, how
        assert (logits(kv, "executor", 9) - exact).abs().max() < far


def test_an_engine_keeps_keys_and_values_in_16_bits() -> None:
    model = shared("llama")[0]
    with Engine(model, kv="f16") as engine:
        assert engine.submit(ids(30, 1), **PLAIN).result(30).ids == alone(model, ids(30, 1))
        assert engine.pages is not None and engine.pages.pools[0].keys[0].dtype == torch.float16
    with pytest.raises(UsageError, match="kv='f8' is none of f32, bf16, f16"):
        Engine(model, kv="f8")
    with pytest.raises(UsageError, match="kv=f16 is for keys and values in pages, and the cache of t5 has none"):
        Engine(shared("t5")[0], kv="f16")


@pytest.mark.parametrize("case", KINDS)
def test_a_prompt_goes_on_behind_what_is_known_of_it(case: str) -> None:
    model = shared(case)[0]
    prompt = ids(30, 1)
    with Engine(model, chunk=8) as engine:
        engine.pages = own = pages_of(model)
        want = [alone(model, p) for p in (prompt, [*prompt[:20], 7, 7], [9, *prompt[1:]])]
        assert engine.submit(prompt, **PLAIN).result(30).ids == want[0]
        assert engine.stats().found == 0 and engine.stats().pages_used == 0 and engine.stats().pages_kept > 0
        jobs = [engine.submit(p, **PLAIN) for p in (prompt, [*prompt[:20], 7, 7], [9, *prompt[1:]])]
        assert [job.result(30).ids for job in jobs] == want
        assert own.found == 28 + 20
    check_pages(own, [])


def test_jobs_with_one_beginning_that_come_at_once_share_it() -> None:
    model = shared("llama")[0]
    begin = ids(24, 3)
    with Engine(model, chunk=64) as engine:
        engine.pages = own = pages_of(model)
        jobs = [engine.submit([*begin, i], **PLAIN) for i in range(5, 9)]
        assert [job.result(30).ids for job in jobs] == [alone(model, [*begin, i]) for i in range(5, 9)]
        assert own.found == 3 * 24
        answer = jobs[0].result().ids  # and what was written is known as well
        assert engine.submit([*begin, 5, *answer, 6], **PLAIN).result(30).ids == alone(model, [*begin, 5, *answer, 6])
        assert own.found == 3 * 24 + 28


def test_a_job_waits_for_room_and_none_is_stuck() -> None:
    """The cache holds three of the eight; pages that are kept make way, those used longest ago first."""
    model = shared("llama")[0]
    asked = [ids(10, n) for n in range(8)]
    with Engine(model) as engine:
        engine.pages = own = pages_of(model, tokens=3 * 16)
        most: list[int] = []
        hook = model.decoder.register_forward_pre_hook(lambda *_: most.append(own.used + own.pools[0].promised))
        jobs = [engine.submit(p, **PLAIN) for p in asked]
        assert [job.result(30).ids for job in jobs] == [alone(model, p) for p in asked]
        hook.remove()
        assert 8 < max(most) <= 12 == own.size
        names = [own.names(p, b"")[0] in own.pools[0].page_of for p in asked]
        assert names[-1] and not names[0]
        with pytest.raises(UsageError, match="need 13 pages of the cache, and it has 12, of 4 tokens each"):
            engine.submit(ids(40, 1), max_new_tokens=10)


@pytest.mark.parametrize("case", KINDS)
def test_several_texts_of_a_prompt_share_its_pages(case: str) -> None:
    """The last page is copied when they part; the room of all of them is promised before."""
    model = shared(case)[0]
    options: dict[str, Any] = dict(max_new_tokens=9, ignore_eos=True, temperature=1.0, n=3, seed=4)
    want = stemma.generate(model, [ids(10, 1)], **options)[0]
    with Engine(model) as engine:
        need = [pages_of(model).need(pool, 10, 9, 3) for pool in pages_of(model).pools]
        engine.pages = own = pages_of(model, tokens=4 * max(need))
        jobs = [engine.submit(ids(10, 1), **options) for _ in range(3)]
        for job in jobs:
            assert [r.ids for r in job.result(30).choices] == [r.ids for r in want.choices]
    check_pages(own, [])


def test_a_window_gives_back_what_lies_behind_it() -> None:
    model = shared("mistral")[0]
    window = model.arch.mask.window
    own = pages_of(model, tokens=4000, rows=1, chunk=4)
    with torch.inference_mode():
        session = ChunkedSession.opened(model, [ids(30, 1)], 30, pages=own)
        while not session.go_on(4):
            assert own.used <= (window + 4) // 4 + 2
        for _ in range(30):
            session.step(session.logits.argmax(-1))
            assert own.used <= window // 4 + 2
        assert own.size < 4000 // 4
        session.close()
    check_pages(own, [])


def test_nothing_is_moved_when_rows_join_and_leave() -> None:
    model = shared("llama")[0]
    own = pages_of(model)
    kind = session_of(own)
    with torch.inference_mode():
        session = kind(model, [ids(9, 1)], 9)
        where = [own.pools[0].keys[i].data_ptr() for i in range(model.dims.layers)]
        before = [row.tables[0][:2] for row in session.cache.of_rows]  # type: ignore[attr-defined]
        session.admit([ids(5, 2), ids(7, 3)], 9)
        session.keep([2, 0])
        session.step(session.logits.argmax(-1))
        assert isinstance(session.cache, PagedCache)
        assert session.cache.of_rows[1].tables[0][:2] == before[0]
        layout = session.cache.layout(0, torch.zeros(0))
        assert [layout.keys.data_ptr(), layout.page_slots] == [where[0], 4]
        assert layout.pages[1, :2].tolist() == before[0]


def test_pages_of_a_row_that_is_not_finite_harm_nobody() -> None:
    """Their numbers are gone before another row has them, and nobody finds them."""
    model = copy.deepcopy(shared("llama")[0])
    with torch.no_grad():
        model.embed.tokens.weight[9] = float("nan")
    good = shared("llama")[0]
    with Engine(model) as engine:
        engine.pages = own = pages_of(model, tokens=64)
        for _ in range(2):
            bad = [engine.submit([*ids(13, n), 9, *ids(6, n)], **PLAIN) for n in range(3)]
            for job in bad:
                with pytest.raises(StemmaError, match="not finite"):
                    job.result(30)
            jobs = [engine.submit(ids(n, n), **PLAIN) for n in (10, 3, 12)]
            assert [job.result(30).ids for job in jobs] == [alone(good, ids(n, n)) for n in (10, 3, 12)]
        assert all(bool(b.isfinite().all()) for pool in own.pools for b in (*pool.keys.values(), *pool.values.values()))


def test_a_step_that_fails_ends_the_newest_job_and_is_tried_again() -> None:
    model = shared("llama")[0]
    hook = failing(model, lambda inputs: inputs.x.shape[0] > 2)
    try:
        with Engine(model) as engine:
            engine.pages = own = pages_of(model)
            jobs = [engine.submit(ids(n, n), max_new_tokens=20, ignore_eos=True) for n in (21, 22, 23)]
            with pytest.raises(MemoryError):
                jobs[2].result(30)
            for n, job in zip((21, 22), jobs, strict=False):
                assert job.result(30).ids == alone(model, ids(n, n), max_new_tokens=20)
    finally:
        hook.remove()
    check_pages(own, [])


@pytest.mark.parametrize("case", ["llama", "mistral", "gemma2"])
def test_books_of_the_pages_are_right_whatever_happens(case: str) -> None:
    """Rows of few different beginnings are opened, read, copied, kept and closed at random."""
    model, draw = shared(case)[0], random.Random(5)
    own = pages_of(model, tokens=120, rows=4, chunk=8)
    live: list[tuple[PagedCache, list[int], int]] = []
    for _ in range(400):
        move = draw.random()
        if move < 0.3 and len(live) < 4:
            text, room, width = (
                [draw.randrange(2)] * draw.randrange(1, 24),
                draw.randrange(1, 12),
                draw.choice([1, 1, 2]),
            )
            if (row := own.open(text, room, width)) is not None:
                own.match(row)
                cache = PagedCache(own, [row])
                cache.place([len(text) - row.length])
                if draw.random() < 0.8:
                    own.keep(row, text)
                cache.keep(torch.zeros(width, dtype=torch.int64))
                live.append((cache, text, len(text) + room))
        elif live:
            cache, text, end = draw.choice(live)
            if move < 0.8 and cache.length < end:
                cache.place([1] * cache.rows)
            else:
                live.remove(next(x for x in live if x[0] is cache))
                if draw.random() < 0.2:
                    cache.clear(0)
                elif draw.random() < 0.5:
                    own.keep(cache.of_rows[0], text + [draw.randrange(2)] * 40)
                cache.keep(torch.zeros(0, dtype=torch.int64))
        check_pages(own, [row for cache, *_ in live for row in cache.of_rows])
    assert own.pools[0].page_of


def test_what_has_no_pages_has_none() -> None:
    assert paged(shared("t5")[0], 2, 8) is None and paged(shared("xlnet")[0], 2, 8) is None
    assert paged(shared("llama")[0], 2, 8) is not None
    with pytest.raises(UsageError, match="tokens=0"):
        paged(shared("llama")[0], 2, 8, tokens=0)


@pytest.mark.parametrize("chunk", [1, 4])
def test_reports_on_long_prompts_keep_to_the_pages_of_a_window(chunk: int) -> None:
    """No more of a prompt is read at once than its row was promised pages for, and several texts go on from it."""
    model = shared("mistral")[0]
    options: dict[str, Any] = {"temperature": 1.0, "n": 3, "seed": 1, "prompt_logprobs": 1, **PLAIN}
    want = stemma.generate(model, [ids(30, 1)], **options)[0]
    with Engine(model, rows=3, chunk=chunk) as engine:
        engine.pages = pages_of(model, slots=2, rows=3, chunk=chunk)
        got = engine.submit(ids(30, 1), **options).result(30)
        assert [choice.ids for choice in got.choices] == [choice.ids for choice in want.choices]
        assert got.prompt_logprobs[1:] == pytest.approx(want.prompt_logprobs[1:], abs=1e-4)
        assert engine.stats().pages_used == 0
