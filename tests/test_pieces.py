"""Long documents in pieces: where they may be divided, what is held out, in which order they are read."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import signal
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stemma.data import Document, Store, View, blocks, sources
from stemma.data.documents import MixtureSource
from stemma.data.heldout import training_texts
from stemma.declare.family import Text
from stemma.declare.objectives import CLM, Infill
from stemma.declare.recipes import Sampling
from stemma.errors import CheckpointError, UsageError
from stemma.objectives import Setting, objective
from stemma.objectives.base import IGNORED, Order
from stemma.objectives.languages import mixed
from stemma.planning.outlook import Outlook
from stemma.runs import checkpoint
from stemma.train import Run, budget, budgets, prepare, pretrain, read_metrics, resolve, verify_resume
from test_data import Words
from test_objectives import TOKENIZERS, Documents


def prose(paragraphs: int, of: str = "The {0}th of them. It says {1}, {2} and more") -> str:
    """Paragraphs of about 300 characters."""
    lines = (" ".join(of.format(i, i * k % 89, k) for k in range(8)) for i in range(paragraphs))
    return "\n\n".join(lines)


BOOK = prose(200)  # about 60 kB
NOTES = [f"note {i} of {i * i % 97}. And then {i % 7}!" for i in range(100)]


def stored(tmp_path: Path, texts: list[str] | list[Document], name: str = "store") -> Store:
    return Store.build(sources.of(texts), Words(), tmp_path / name)


def ranges(view: View) -> list[tuple[int, int]]:
    """Where each document of a view stands in its store's tokens."""
    return [view._span(i) for i in range(len(view))]


def held_bytes(train: View, held: View) -> float:
    return held.bytes_total / (held.bytes_total + train.bytes_total)


# ---------------------------------------------------------------- blocks


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        (BOOK, "\n\n"),
        (BOOK.replace("\n\n", "\n"), "\n"),
        (BOOK.replace("\n", " "), ". "),
        ("word " * 4000, " "),
        ("一句话很长。" * 2000, "。"),
        ("x" * 9000, "x"),
    ],
)
def test_a_long_text_is_divided_where_it_pauses(text: str, ends: str) -> None:
    parts = blocks.divided(text)
    assert "".join(parts) == text and len(parts) > 3
    assert all(part.endswith(ends) for part in parts[:-1])
    assert all(blocks.LEAST <= len(part) <= blocks.MOST for part in parts[:-1])
    assert blocks.LEAST <= len(parts[-1]) <= blocks.LONG


def test_a_short_text_is_one_block() -> None:
    assert blocks.cuts("a" * blocks.LONG) == [] and blocks.divided("") == [""]


def test_blocks_are_tokens_of_the_whole_text(tmp_path: Path) -> None:
    """A store has the tokens that it had without blocks, and each block's tokens are those of its text."""
    store = stored(tmp_path, [NOTES[0], BOOK, NOTES[1], BOOK[:9000]])
    assert store.meta["documents"] == len(store) == 4 and store.meta["blocks"] > 40
    whole = [view for view in store.cut(1)]
    assert np.concatenate(whole).tolist() == np.concatenate(list(store)).tolist()
    pieces = store.cut(1)
    assert len(pieces) == store.meta["blocks"] and pieces.texts == 4 and pieces.ends == 4
    for i in range(len(pieces)):
        assert len(pieces[i]) == len(pieces.text(i).split()) == pieces.lengths[i]
        assert pieces.bytes(i) == len(pieces.text(i).encode())
        starts = pieces.sentences(i)
        assert starts[0] == 0 and (np.diff(starts) > 0).all() and starts[-1] < len(pieces[i])
    assert "".join(pieces.text(i) for i in range(len(pieces)) if pieces.name(i) == store.name(1)) == BOOK
    short = stored(tmp_path, NOTES, "short")
    assert short.cut(1) is short and "blocks" not in short.meta["files"]


def test_pieces_are_of_bounded_length(tmp_path: Path) -> None:
    store = stored(tmp_path, [BOOK, *NOTES])
    longest = int(store.cut(1).lengths.max())  # a block
    for limit in (500, 1000, 5000):
        pieces = store.cut(limit)
        long = pieces.lengths[pieces.indices == 0]
        assert long.max() <= limit + longest and long.min() >= limit / 2 - longest
        assert [pieces.closed(i) for i in range(len(long))] == [False] * (len(long) - 1) + [True]
        assert pieces.ends == len(store) and pieces.tokens_total == store.tokens_total
    assert store.cut(10**6).lengths.tolist() == store.lengths.tolist()


def test_arrays_of_blocks_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    store = stored(tmp_path, [BOOK, *NOTES])
    store.verify()
    store._arrays["blocks"] = np.asarray(store._arrays["blocks"]).copy()
    store._arrays["blocks"][-2] += 1  # of no document's end
    with pytest.raises(CheckpointError, match="blocks"):
        store.verify()
    path = tmp_path / "store" / "meta.json"
    meta = json.loads(path.read_text())
    del meta["files"]["block_hashes"]
    path.write_text(json.dumps(meta))
    with pytest.raises(CheckpointError, match="some arrays of blocks"):
        Store.open(tmp_path / "store")


# ---------------------------------------------------------------- what is held out


def test_the_held_out_share_is_of_bytes(tmp_path: Path) -> None:
    """One long file and many notes: documents alone cannot give the share, blocks can, for any seed."""
    store = stored(tmp_path, [BOOK, prose(60, "Other words {1} {0}. So it is {2}"), *NOTES])
    for seed, fraction in itertools.product(range(6), (0.05, 0.2)):
        train, held = store.split(fraction, seed, "block")
        assert held_bytes(train, held) == pytest.approx(fraction, rel=0.35)
        spans = sorted(ranges(train) + ranges(held))
        assert spans[0][0] == 0 and spans[-1][1] == store.tokens_total
        assert all(a[1] == b[0] for a, b in itertools.pairwise(spans))  # all of it, and nothing twice
    by_documents = [held_bytes(*store.split(0.05, seed)) for seed in range(6)]
    assert max(by_documents) > 0.2 or min(by_documents) < 0.01


def test_a_tokenizer_sees_no_held_out_text(tmp_path: Path) -> None:
    texts = [BOOK, *NOTES, BOOK]
    store = stored(tmp_path, texts)
    train, held = store.split(0.1, 3, "block")
    assert list(training_texts(sources.of(texts), 0.1, 3, "block")) == [train.text(i) for i in range(len(train))]
    seen = "".join(train.text(i) for i in range(len(train)))
    for i in range(len(held)):
        assert all(block not in seen for block in blocks.divided(held.text(i)) if block not in NOTES)
    groups = [Document(t, f"r:{i}", group=str(i // 2)) for i, t in enumerate([BOOK[:8000], BOOK[8000:16000], *NOTES])]
    bound = stored(tmp_path, groups, "groups")
    train, held = bound.split(0.1, 3, "block")
    assert list(training_texts(sources.of(groups), 0.1, 3, "block")) == [train.text(i) for i in range(len(train))]


def test_groups_stay_whole_and_together(tmp_path: Path) -> None:
    rows = [Document(BOOK[i * 5000 : (i + 1) * 5000], f"r:{i}", group=str(i // 2)) for i in range(10)]
    store = stored(tmp_path, [*rows, *(Document(t, "n") for t in NOTES)])
    for seed in range(5):
        train, held = (view.cut(100) for view in store.split(0.3, seed, "block"))
        sides = [set(view.groups[view.groups >= 0].tolist()) for view in (train, held)]
        assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 5
        for view in (train, held):
            assert (view.lengths[view.groups >= 0] == store.lengths[view.indices[view.groups >= 0]]).all()
            assert all(len(view.translations(i)) == 1 for i in np.flatnonzero(view.groups >= 0))


def test_a_text_that_grows_keeps_what_was_held_out(tmp_path: Path) -> None:
    def away(texts: list[str], name: str) -> set[str]:
        held = stored(tmp_path, texts, name).split(0.1, 1, "block")[1]
        return {block for i in range(len(held)) for block in blocks.divided(held.text(i))}

    before = away([BOOK, *NOTES], "a")
    after = away([prose(100, "New words {1} of {0}. And {2}"), *NOTES[::-1], BOOK], "b")
    kept = len(before & after) / len(before)
    assert kept > 0.7 and after - before


def test_a_large_text_is_held_out_in_longer_runs(tmp_path: Path) -> None:
    """Then what is held out has a context of its own."""
    runs = []
    for n in (100, 3000):
        _, held = stored(tmp_path, [prose(n), NOTES[0]], str(n)).split(0.3, 1, "block")
        runs.append(np.median(held.sizes))
    assert runs[1] > 3 * runs[0]


# ---------------------------------------------------------------- how they are read


class Open(Documents):
    """Documents of which all but the last one go on elsewhere."""

    def closed(self, i: int) -> bool:
        return i == len(self) - 1

    def text(self, i: int) -> str:
        return "a b"


@pytest.mark.parametrize("spec", [CLM(), Infill(rate=1e-9, cut="tokens")])
@pytest.mark.parametrize(("name", "mixed"), [(n, m) for n in ("gpt2", "llama", "t5") for m in (False, True)])
def test_no_end_is_learnt_where_a_document_goes_on(name: str, mixed: bool, spec: Any) -> None:
    """Each piece begins as a document does; only the last is closed, and nothing of another piece is predicted."""
    known = copy(TOKENIZERS[name])
    known.id = lambda mark: 90  # type: ignore[attr-defined]
    view = Open([[11, 12, 13], [21, 22, 23, 24, 25, 26], [31, 32]] * 4)
    goal = objective(spec, Setting(known, Text("bpe"), 8, 7, mixed))
    begin, end = known.bos_id, known.eos_id
    order = [goal.order(view, True)[i][0] for i in range(len(view))]
    written: list[int] = []
    expected: list[int] = []
    for i in order:
        tokens = (
            ([] if begin is None else [begin])
            + view[i].tolist()
            + ([end] if view.closed(i) and end not in (None, begin) else [])
        )
        expected += [*tokens[1:], begin if view.closed(i) and begin == end else IGNORED]
        written += tokens
    if mixed and begin != end:  # what stands after a closed document is predicted
        for k, token in enumerate(written[:-1]):
            if token == end:
                expected[k] = written[k + 1]
    rows = [e for e, _ in goal.examples(view, once=True)]
    assert np.concatenate([e["input_ids"] for e in rows])[: len(written)].tolist() == written
    assert np.concatenate([e["labels"] for e in rows])[: len(written)].tolist() == expected
    assert not mixed or begin is None or (np.concatenate([e["labels"] for e in rows]) == end).sum() == 1


def test_pieces_take_their_turns(tmp_path: Path) -> None:
    """Of a book beside notes: no two neighbouring pieces follow each other more often than chance has it, each once an
    epoch, and every epoch differs."""
    view = stored(tmp_path, [BOOK, *NOTES]).cut(200)
    order = Order(1, len(view))
    first, second = ([order[i][0] for i in range(e * len(view), (e + 1) * len(view))] for e in (0, 1))
    assert sorted(first) == sorted(second) == list(range(len(view))) and first != second
    assert sum(b == a + 1 for a, b in itertools.pairwise(first)) < 5
    whole = stored(tmp_path, [BOOK, *NOTES], "again")
    assert len(whole.cut(10**6)) == 101


def test_mixtures_and_languages_draw_pieces(tmp_path: Path) -> None:
    rows = [Document(BOOK, "book", "en", "", 0), *(Document(t, "n", "de", "", 1) for t in NOTES)]
    source = sources.of(rows)
    source.parts = (MixtureSource("a", 0.5), MixtureSource("b", 0.5))
    view = Store.build(source, Words(), tmp_path / "s").cut(300)
    drawn = mixed(view, 1, Sampling())
    assert drawn is not None
    seen = [drawn[i][0] for i in range(200)]
    assert 90 <= sum(i < len(view) - 100 for i in seen) <= 110 and len({i for i in seen if i < len(view) - 100}) > 15
    assert view.language(0) == "en" and view.language(len(view) - 1) == "de" and view.part_ids[-1] == 1


# ---------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("text")
    (home / "book.txt").write_text(prose(150), "utf-8")
    for i in range(5):
        (home / f"{i}.txt").write_text(NOTES[i] * 5, "utf-8")
    return home


SMALL = {"dims.vocab": 500, "train.threads": 1, "dims.context": 32, "dims.layers": 1}


def begun(name: str, out: Path, folder: Path, **changes: Any) -> Run:
    settings = {**SMALL, **changes}
    return pretrain(name, data=str(folder), out=out, budget="6 steps", overrides=settings, quiet=True)


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_a_run_reads_pieces_and_resumes_exactly(name: str, tmp_path: Path, folder: Path) -> None:
    run = begun(name, tmp_path / "run", folder)
    assert verify_resume(run.directory, 4)["identical"]
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert 3 < about["data"]["documents"] <= 6 and about["data"]["pieces"] > 20
    plan, _, store = prepare.reopen(tmp_path / "run")
    train, held = prepare.split(plan, store)
    assert train.lengths.max() < 4 * 32 + 2 * int(store.cut(1).lengths.max())
    assert held_bytes(train, held) == pytest.approx(0.05, abs=0.05)
    assert 0 < run.summary["epochs"] < 1


def test_a_run_that_was_begun_before_reads_whole_documents(tmp_path: Path, folder: Path) -> None:
    """Its plan says nothing of pieces."""
    run = begun("llama", tmp_path / "run", folder)
    path = tmp_path / "run" / "run.json"
    about = json.loads(path.read_text())
    for name in prepare.OLDER:
        del about["plan"]["train"][name]
    path.write_text(json.dumps(about))
    plan, _ = prepare.read_plan(run.directory)
    store = Store.open(run.directory / "data")
    ours, old = prepare.split(plan, store), store.split(plan.train.val_fraction, plan.seed)
    assert [ranges(view) for view in ours] == [ranges(view) for view in old]
    assert sum(map(len, ours)) == len(store) == 6


# ---------------------------------------------------------------- how long, by how much


@pytest.mark.parametrize(("name", "epochs"), [("llama", 1.0), ("bert", 0.5), ("t5", 0.25)])
def test_a_budget_in_epochs_is_counted(name: str, epochs: float, tmp_path: Path, folder: Path) -> None:
    settings = {**SMALL, "train.save_every": 1000}
    written = f"{epochs} epochs"
    run = pretrain(name, data=str(folder), out=tmp_path / "run", budget=written, overrides=settings, quiet=True)
    each = run.summary["epochs"] / run.step  # of a step
    assert run.summary["epochs"] == pytest.approx(epochs, abs=0.6 * each + 0.002) and run.step > 5


def test_a_budget_in_epochs_past_what_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    view = Documents([np.arange(10, 10 + n) for n in (5, 9, 30, 14) * 50])
    goal = objective(CLM(), Setting(TOKENIZERS["llama"], Text("bpe"), 8, 7))
    exact = budgets.examples_in(goal, view, 3)
    assert exact == -(-3 * sum(len(d) + 2 for d in view.documents) // 8)
    assert budgets.epochs_of(goal, view, int(exact)) == pytest.approx(3, rel=0.01)
    monkeypatch.setattr(budgets, "COUNTED", 300)
    assert budgets.examples_in(goal, view, 3) == pytest.approx(exact, rel=0.1)
    assert budget("3 epochs").epochs == 3 and budget("0.5 epoch").epochs == 0.5
    with pytest.raises(UsageError, match="give tokens or steps"):
        Outlook(resolve("llama", budget="3 epochs")).steps  # noqa: B018


def test_what_a_run_reads_is_told_first(tmp_path: Path, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "picture.png").write_bytes(b"\x89PNG\x00\x01")
    settings = {**SMALL, "recipe.schedule.warmup": 50, "recipe.batch": 1024}
    out = tmp_path / "run"
    pretrain("llama", data=str(folder), out=out, budget="40 steps", overrides=settings, on_step=None)
    told = capfd.readouterr().err
    about, summary = (json.loads((out / f"{name}.json").read_text()) for name in ("run", "summary"))
    data = about["data"]
    first = told[: told.index("step 2/40")]
    assert f"{data['documents']} documents in {data['pieces']} pieces, {data['tokens']:,} tokens" in first
    assert f"judged by {summary['val']['targets']:,.0f} held-out targets" in first
    assert f"read {summary['epochs']:.2g} times in 40 steps" in first and summary["epochs"] > 1
    assert "the warm-up of 50 steps is longer than the run of 40" in first
    assert ("too few to tell" in first) == (summary["val"]["targets"] < 1000)
    assert ("new text teaches more" in first) == (summary["epochs"] > 4)
    assert any("picture.png" in note for note in data["notes"])


def test_a_warning_signal_writes_a_checkpoint(tmp_path: Path, folder: Path) -> None:
    """And the run goes on, to the end that it has without."""

    def warn(record: dict[str, Any]) -> None:
        if record["step"] == 3:
            os.kill(os.getpid(), signal.SIGUSR1)

    settings = {**SMALL, "train.save_every": 1000, "train.keep": 9}
    ends = []
    for name, on_step in (("a", None), ("b", warn)):
        out = tmp_path / name
        run = pretrain(
            "llama", data=str(folder), out=out, budget="6 steps", overrides=settings, quiet=True, on_step=on_step
        )
        assert run.finished
        ends.append((run.summary["val"], [r["loss"] for r in read_metrics(out)]))
        assert [p.name for p in checkpoint.steps(out)] == ["step-000003"] * (on_step is warn) + ["step-000006"]
    assert ends[0] == ends[1]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_a_folder_of_uneven_files_learns_as_its_paragraphs_do(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2.1 MB, of which one file is 900 kB; whole documents are much worse."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parent.parent / "bench"))
    uneven = importlib.import_module("uneven")
    held = uneven.corpus(tmp_path)
    found = uneven.compare(family, tmp_path, 300, held, ("in pieces", "cut into paragraphs"))
    assert found["in pieces"]["common"] <= 1.03 * found["cut into paragraphs"]["common"]
    assert found["in pieces"]["targets"] > 2000
