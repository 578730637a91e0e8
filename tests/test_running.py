"""Decoding by request: rows with their own options and seeds, rows that join and leave a batch, tokens as they come."""

from __future__ import annotations

import gc
import re
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

import stemma
from oracle import saved
from running import check_rows
from stemma.decoding import Detokenizer, Event, SamplingParams, begin, generation, row_seed, stream
from stemma.decoding.uncached import UncachedSession
from stemma.errors import UsageError
from stemma.nn.memory import MemoryCache
from stemma.text import Specials, Tokenizer
from test_generate import GENERATING, last_logits, prompts
from tiny import tiny

JOIN, ROWS = [4, 11, 1, 7, 2], [4, 11, 1, 7, 11, 2, 9]


def loaded(case: str, folder: Path) -> Any:
    saved(case, folder)
    return stemma.load(folder)


def talker() -> Any:
    """A model that writes bytes."""
    model = stemma.build("gpt2", layers=1, vocab=260, d_model=16, heads=2, d_ff=16, context=64)
    model.tokenizer = Tokenizer.train("bpe", ["abc"], 260, Specials(eos="</s>"))
    return model


# ---------------------------------------------------------------- rows that join and leave


@pytest.mark.parametrize("case", GENERATING)
@pytest.mark.filterwarnings("ignore:.* tokens are more than")
def test_rows_that_join_and_leave_read_as_alone(case: str, tmp_path: Path) -> None:
    """Logits of every row at every step, in double precision, are those of a full pass over the row alone."""
    model = loaded(case, tmp_path).double()
    whole = model.decoder is not None and model.decoder.position.length_dependent
    texts = prompts(case, [16] * len(JOIN), seed=9)
    check_rows(model, prompts(case, JOIN), texts, lambda p, new: last_logits(model, p, new), 16 if whole else 0)


@pytest.mark.parametrize("length", [10, 7])
def test_rows_of_one_length_stay_even(length: int, tmp_path: Path) -> None:
    """Past the end of a ring, which both rows have turned: slots stay slices where lengths are equal."""
    model = loaded("mistral", tmp_path).double()
    a, b, *new = prompts("mistral", [4, length, 12, 12])
    with torch.inference_mode():
        session = begin(model, [a])
        for token in new[0][:6]:
            session.step(torch.tensor([token]))
        session.admit([b])
        assert session.cache.even == (length == 10)
        for step in range(6):
            session.step(torch.tensor([new[0][6 + step], new[1][step]]))
            want = [last_logits(model, a, new[0][: 7 + step]), last_logits(model, b, new[1][: 1 + step])]
            assert (session.logits - torch.stack(want).float()).abs().max() < 1e-5


@pytest.mark.filterwarnings("ignore:.* tokens are more than")
def test_buffers_shrink_when_a_long_row_has_left(tmp_path: Path) -> None:
    model = loaded("mistral", tmp_path)
    with torch.inference_mode():
        session = begin(model, [[5] * 900, [6, 7]])
        assert session.cache.capacity >= 900
        session.keep([1])
        session.admit([[8, 9]])
        assert session.cache.capacity < 200


@pytest.mark.parametrize(
    ("case", "options"),
    [("llama", dict()), ("llama", dict(num_beams=2))]
    + [(case, dict(temperature=0.9, seed=7)) for case in ("llama", "mistral", "t5", "llama-dynamic", "xlnet")],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:.* tokens are more than")
def test_a_small_batch_writes_what_a_large_one_does(case: str, options: dict[str, Any], tmp_path: Path) -> None:
    """Rows leave at different steps, and others take their places."""
    model, rows = loaded(case, tmp_path), prompts(case, ROWS)
    params = [SamplingParams(max_new_tokens=n, ignore_eos=True) for n in (3, 9, 1, 8, 5, 12, 4)]
    want = [r.ids for r in stemma.generate(model, rows, params, **options)]
    assert [len(ids) for ids in want] == [3, 9, 1, 8, 5, 12, 4]
    for batch in (1, 3):
        assert [r.ids for r in stemma.generate(model, rows, params, batch=batch, **options)] == want


def test_a_row_past_the_table_is_refused_when_it_comes_there(tmp_path: Path) -> None:
    model = loaded("gpt2", tmp_path)
    with torch.inference_mode():
        session = begin(model, [[5] * 38])
        session.step(torch.tensor([5])), session.step(torch.tensor([5]))
        assert len(session.admit([])) == 1
        with pytest.raises(UsageError, match="40 positions"):
            session.step(torch.tensor([5]))
        with pytest.raises(UsageError, match="do not fit in this model's 40 positions"):
            session.admit([[5] * 35], room=6)
        with pytest.raises(UsageError, match="at least one prompt"):
            begin(model, [])


def test_a_row_that_changes_all_keys_does_not_join_a_cache(tmp_path: Path) -> None:
    model = loaded("llama-dynamic", tmp_path)
    with torch.inference_mode():
        session = begin(model, [[5, 6]], 3)
        with pytest.raises(UsageError, match="a session that begins with it"):
            session.admit([[5] * 9], 6)
        whole = begin(model, [[5] * 9], 6)
        assert isinstance(whole, UncachedSession) and len(whole.admit([[5, 6]], 3)) == 2


def test_a_window_with_memory_joins_no_other() -> None:
    d = tiny("longllama", **{"dims.context": 8})
    a, b = (MemoryCache(d.arch, d.dims, 1) for _ in range(2))
    with pytest.raises(UsageError, match="windows end at different tokens"):
        a.admit(b)


def test_languages_go_together(tmp_path: Path) -> None:
    model = loaded("xlm-clm", tmp_path)
    rows = prompts("xlm-clm", [3, 5])
    params = [SamplingParams(max_new_tokens=n, language=name, ignore_eos=True) for n, name in ((2, "de"), (6, "fr"))]
    want = [stemma.generate(model, [r], p)[0].ids for r, p in zip(rows, params, strict=True)]
    for batch in (None, 1):
        assert [r.ids for r in stemma.generate(model, rows, params, batch=batch)] == want
    assert want[1] != stemma.generate(model, [rows[1]], params[1], language="de")[0].ids
    with pytest.raises(UsageError, match="all have a language, or none"):
        stemma.generate(model, rows, [params[0], SamplingParams(max_new_tokens=5)])


# ---------------------------------------------------------------- options of a row

OWN = [
    SamplingParams(max_new_tokens=9),
    SamplingParams(max_new_tokens=4, temperature=1.0, seed=11),
    SamplingParams(max_new_tokens=12, temperature=0.7, top_k=9, top_p=0.8, seed=12),
    SamplingParams(max_new_tokens=9, temperature=1.3, min_p=0.1, repetition_penalty=1.4),
    SamplingParams(max_new_tokens=9, no_repeat_ngram_size=1, min_new_tokens=7, eos_token_id=range(5, 45)),
    SamplingParams(max_new_tokens=9, forced_bos_token_id=7, forced_eos_token_id=9, ignore_eos=True),
    SamplingParams(max_new_tokens=6, num_beams=3, length_penalty=0.5),
]


@pytest.mark.parametrize("case", ["llama", "mistral", "bart"])
def test_each_row_has_its_own_options(case: str, tmp_path: Path) -> None:
    """Together, alone, and in another order: the same texts."""
    model = loaded(case, tmp_path)
    rows = prompts(case, ROWS)
    together = stemma.generate(model, rows, OWN)
    for row, params, result in zip(rows, OWN, together, strict=True):
        alone = stemma.generate(model, [row], params, seed=result.seed)[0]
        assert (alone.ids, alone.reason) == (result.ids, result.reason)
    assert len({len(r.ids) for r in together}) > 2
    assert together[5].ids[0] == 7 and together[5].ids[-1] == 9 and len(together[5].ids) == 9
    given = [p if p.seed is not None else SamplingParams(**{**vars(p), "seed": r.seed}) for p, r in zip(OWN, together, strict=True)]  # fmt: skip
    turned = stemma.generate(model, rows[::-1], given[::-1], batch=4)
    assert [r.ids for r in turned[::-1]] == [r.ids for r in together]


def test_equal_prompts_get_different_texts(tmp_path: Path) -> None:
    model = loaded("llama", tmp_path)
    options: dict[str, Any] = dict(max_new_tokens=8, temperature=1.0, ignore_eos=True)
    found = stemma.generate(model, [[5, 6, 7]] * 4, **options)
    assert len({tuple(r.ids) for r in found}) == 4
    assert [r.seed for r in found] == [row_seed(0, i) for i in range(4)] and found[0].seed == 0
    again = stemma.generate(model, [[5, 6, 7]], seed=found[2].seed, **options)[0]
    assert again.ids == found[2].ids
    assert found[1].ids != stemma.generate(model, [[5, 6, 7]] * 4, seed=1, **options)[0].ids
    own = [SamplingParams(**options, seed=3)] * 2  # seeds of one's own stay as they are
    a, b = stemma.generate(model, [[5, 6, 7]] * 2, own)
    assert a.ids == b.ids == stemma.generate(model, [[5, 6, 7]], seed=3, **options)[0].ids
    c, d = stemma.generate(model, [[5, 6, 7]] * 2, own, seed=3)  # a seed of the call is spread
    assert c.ids == a.ids != d.ids


def test_seeds_of_rows_stay() -> None:
    """Texts that were drawn can be drawn again by later versions."""
    assert [row_seed(0, i) for i in range(3)] == [0, 4414527679803055650, 3618122668196878631]


def test_stops_are_of_a_row() -> None:
    model = talker()
    options: dict[str, Any] = dict(max_new_tokens=30, temperature=1.0, ignore_eos=True)
    free = stemma.generate(model, ["a", "a"], **options)
    first = next(c for c in free[0].text or "" if c.isprintable() and c != "\ufffd")
    params = [SamplingParams(**options, stop=first, seed=free[0].seed), SamplingParams(**options, seed=free[1].seed)]
    stopped, other = stemma.generate(model, ["a", "a"], params)
    assert stopped.reason == "stop" and stopped.text == (free[0].text or "").split(first)[0]
    assert len(stopped.ids) < 30 and other.ids == free[1].ids


@pytest.mark.parametrize(
    ("params", "options", "message"),
    [
        (None, dict(temprature=1.0), "'temprature' is no option of generation; did you mean 'temperature'"),
        ([SamplingParams()], dict(), "1 sampling params were given for 2 prompts"),
        (None, dict(seed=2**64), "seed must fit in 64 bits"),
        (None, dict(seed="x"), "seed must be a whole number"),
        (None, dict(eos_token_id=400), "eos_token_id=400 is no token"),
        (None, dict(stop=["x", ""]), "a stop string must not be empty"),
        (None, dict(batch=0), "batch must be at least 1"),
    ],
    ids=str,
)
def test_options_that_are_none_are_refused(params: Any, options: dict[str, Any], message: str) -> None:
    for call in (stemma.generate, stream):
        with pytest.raises(UsageError, match=message):
            call(talker(), ["a", "b"], params, **options)


# ---------------------------------------------------------------- tokens as they come


def test_events_are_what_generate_returns() -> None:
    model = talker()
    options: dict[str, Any] = dict(max_new_tokens=20, temperature=1.0, seed=4)
    want = stemma.generate(model, ["ab", "c", "é"], **options)
    events = list(stream(model, ["ab", "c", "é"], batch=2, **options))
    for i, result in enumerate(want):
        own = [e for e in events if e.row == i]
        assert [e.token for e in own] == result.ids and [e.logprob for e in own] == pytest.approx(result.logprobs)
        assert "".join(e.text for e in own) == result.text
        assert [e.reason for e in own] == [None] * (len(own) - 1) + [result.reason]
        assert own[-1].result is not None and own[-1].result.ids == result.ids and own[0].result is None
    assert [e.row for e in events[:4]] == [0, 1, 0, 1]  # as they are made, not text after text
    assert [e.row for e in events].index(2) > [e.reason is not None for e in events].index(True)  # two at a time
    called: list[tuple[int, str]] = []
    assert stemma.generate(model, ["ab", "c", "é"], stream=lambda *a: called.append(a), **options) == want
    assert ["".join(t for i, t in called if i == n) for n in range(3)] == [r.text for r in want]


def test_pieces_are_whole_characters() -> None:
    """Characters of two to four bytes, each byte a token."""
    model, text = talker(), "aé漢🙂b"
    ids = model.tokenizer.encode(text)
    detokenizer, pieces = Detokenizer(model, []), []
    for n in range(1, len(ids) + 1):
        pieces.append(detokenizer.add(ids[:n], n == len(ids))[0])
    assert "".join(pieces) == text and set(filter(None, pieces)) == set(text) and len(pieces) > len(text)


def test_a_stream_without_a_tokenizer_has_tokens(tmp_path: Path) -> None:
    model = loaded("gpt2", tmp_path)
    events = list(stream(model, [[5, 6]], max_new_tokens=3, ignore_eos=True))
    assert [type(e.token) for e in events] == [int] * 3 and {e.text for e in events} == {""}
    with pytest.raises(UsageError, match="neither temperature, stop strings nor streaming"):
        stream(model, [[5, 6]], num_beams=2)


def test_a_stream_that_is_left_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between events the model is in its own mode and gradients are on; afterwards the cache is gone."""
    model, made = talker().train(), []
    model.decoder.blocks[0].attention.eval()  # a part that its owner froze
    kept = generation.Batch.add

    def add(self: Any, *args: Any) -> None:
        kept(self, *args)
        made.append(weakref.ref(self.session.cache))

    monkeypatch.setattr(generation.Batch, "add", add)
    options: dict[str, Any] = dict(max_new_tokens=20, ignore_eos=True, temperature=1.0)
    want = stemma.generate(model, ["ab", "c"], **options)
    made.clear()
    events = stream(model, ["ab", "c"], **options)
    for n, event in enumerate(events):
        assert event.logprob == pytest.approx(want[event.row].logprobs[n // 2], abs=1e-5)  # no dropout
        assert isinstance(event, Event) and torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        assert model.training and model.decoder.training and not model.decoder.blocks[0].attention.training
        if n == 5:
            break
    assert made[0]() is not None
    del events
    gc.collect()
    assert made[0]() is None
    ids = torch.tensor([[5, 6, 7]])
    model(ids, labels=ids).loss.backward()  # no weight became an inference tensor


# ---------------------------------------------------------------- docs/generation.md


def test_the_pages_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    pytest.importorskip("llguidance")
    monkeypatch.chdir(tmp_path)
    talker().save("model")
    page = (Path(__file__).parent.parent / "docs/generation.md").read_text("utf-8")
    blocks = re.findall(r"<!-- (\w+) -->\n```python\n(.*?)```\n<!-- /\1 -->", page, re.S)
    assert [name for name, _ in blocks] == [
        "options",
        "choices",
        "guides",
        "guesses",
        "scores",
        "seeds",
        "stream",
        "session",
    ]
    names: dict[str, Any] = {}
    for _, code in blocks:
        exec(code, names)
    assert capsys.readouterr().out.count("[") >= 2 and names["session"].rows == 2
