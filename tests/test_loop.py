"""What people said of answers, learnt: reading the file, the runs of the loop, and the new model beside the old one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import chromium
import stemma
from stemma.alignment import loop
from stemma.cli import root
from stemma.errors import DataError, ResourceError, UsageError
from test_page import browser, say, tool  # noqa: F401
from test_rounds import talker  # noqa: F401
from test_tune import SAYINGS, decoder, tokenizer, written  # noqa: F401

ASKED = [{"role": "user", "content": SAYINGS[0]}]


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def pair(i: int, name: str = "") -> dict[str, Any]:
    sides = {"chosen": said(f"{SAYINGS[1]} {i}"), "rejected": said(f"wine {i}")}
    return {"kind": "pair", "id": name or f"p{i}", "prompt": ASKED, **sides}


def thumb(i: int, label: bool) -> dict[str, Any]:
    return {"kind": "thumb", "id": f"t{i}", "prompt": ASKED, "completion": said(f"{SAYINGS[1]} {i}"), "label": label}


def edit(i: int) -> dict[str, Any]:
    return {"kind": "edit", "id": f"e{i}", "messages": [*ASKED, *said(f"homer {i}")], "original": f"dark {i}"}


def feedback(path: Path, pairs: int = 6, thumbs: int = 8, edits: int = 4) -> Path:
    rows = [*map(pair, range(pairs)), *(thumb(i, i % 2 > 0) for i in range(thumbs)), *map(edit, range(edits))]
    written(path, rows)
    return path


def test_the_last_word_counts_and_what_is_no_row_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "feedback.jsonl"
    rows = [pair(1, "a"), pair(2, "a"), thumb(3, True), thumb(3, False), thumb(4, True), edit(4), {"kind": "other"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"kind": "thu')
    found = loop.read(path)
    assert found.unread == 2 and [row["label"] for row in found.thumbs] == [False, True]
    assert str(found) == "1 edited answers, 2 pairs, 2 thumbs, 2 lines that are none of these"
    assert [row["chosen"][0]["content"] for row in found.pairs] == [f"{SAYINGS[1]} 2", "homer 4"]
    assert found.pairs[1]["rejected"] == said("dark 4") and found.pairs[1]["prompt"] == ASKED
    steps = loop.steps(found, tmp_path, None, {"dpo": {"objective.beta": 0.3}})
    assert [(step.what, step.start) for step in steps] == [("dpo", "@0"), ("kto", "@1")]  # one edit is too little
    assert steps[0].overrides["objective.beta"] == 0.3 and "objective.beta" not in steps[1].overrides
    for held in ("", json.dumps(edit(1)), "\n".join(json.dumps(thumb(1, True) | {"id": str(i)}) for i in range(3))):
        path.write_text(held)
        with pytest.raises(DataError, match=r"holds too little to learn from .*: at least two different rows"):
            loop.read(path)
    with pytest.raises(DataError, match="there is no file"):
        loop.read(tmp_path / "none.jsonl")


def test_edits_pairs_and_thumbs_are_learnt_in_runs_of_one_chain(tmp_path: Path, talker: Path) -> None:  # noqa: F811
    held, out = feedback(tmp_path / "feedback.jsonl"), tmp_path / "run"
    words = ["align", "loop", "--from", str(talker), "--feedback", str(held), "--out", str(out), "--template", "plain"]
    more = ["--budget", "3 steps", "--quiet", "--set", "dpo.objective.beta=0.3", "--set", "kto.objective.group=2"]
    result = CliRunner().invoke(root, [*words, *more], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    plans = [json.loads((out / place / "run.json").read_text())["plan"] for place in ("stages/1", "stages/2", ".")]
    assert plans[1]["objective"]["beta"] == 0.3 and "dpo" not in plans[2]["objective"]
    starts = [str(talker), str(out / "stages" / "1"), str(out / "stages" / "2")]
    assert [plan["train"]["start"].removesuffix("/model") for plan in plans] == starts
    assert stemma.load(out).tokenizer is not None
    held.write_text("")  # what was learnt is kept beside the runs
    assert CliRunner().invoke(root, ["resume", str(out), "--quiet"]).exit_code == 0
    for change, why in (
        (
            {"overrides": {"objective.beta": 1.0}},
            r"objective.beta is a setting of no stage; .* write kto.objective.beta",
        ),
        ({"lora": 2}, "is learnt in 3 runs"),
        ({"rewards": ("builtin:words:2",)}, "takes no reward"),
        ({"data": None}, "give --feedback FILE"),
    ):
        again = feedback(tmp_path / "again.jsonl")
        with pytest.raises(UsageError, match=why):
            stemma.align("loop", **{"start": str(talker), "data": str(again), "out": tmp_path / "no", **change})  # type: ignore[arg-type]
        assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    "few", [(2, 0, 1), *(pytest.param(few, marks=pytest.mark.slow) for few in ((0, 2, 0), (0, 0, 2)))]
)
def test_a_little_feedback_is_enough(tmp_path: Path, talker: Path, few: tuple[int, int, int]) -> None:  # noqa: F811
    held = feedback(tmp_path / "feedback.jsonl", *few)
    run = stemma.align("loop", start=str(talker), data=str(held), out=tmp_path / "run", template="plain",
                       budget="2 steps", quiet=True)  # fmt: skip
    assert run.finished


def test_a_server_that_takes_no_models_is_told(tmp_path: Path) -> None:
    serving = pytest.importorskip("serving")
    with serving.port(serving.server()) as url, pytest.raises(UsageError, match=r"404 .*start it with --admin"):
        loop.offer(url, tmp_path, "new", None)
    with pytest.raises(ResourceError, match=r"does not answer: .*; the model is kept"):
        loop.offer("http://127.0.0.1:9", tmp_path, "new", None)


# ---------------------------------------------------------------- in a browser


@pytest.fixture
def page(
    tmp_path: Path, browser: chromium.Chromium, talker: Path  # noqa: F811
) -> Iterator[tuple[chromium.Tab, str, Path]]:  # fmt: skip
    """The page of a server with a key that keeps feedback and takes models, its address, and the file."""
    serving = pytest.importorskip("serving")
    path, model = tmp_path / "feedback.jsonl", stemma.load(talker)
    made = serving.server({"old": model}, feedback=str(path), admin=True, keys=("secret",))
    with serving.port(made) as url:
        tab = browser.tab(f"{url}/", ready=False)
        tab.ask("Page.navigate", url=f"{url}/page/icon.svg")
        usual = json.dumps({"system": "", "params": {"max_tokens": 16, "temperature": 1}})
        tab.eval(f"sessionStorage.setItem('stemma.key', 'secret'); localStorage.setItem('stemma.usual', {usual!r})")
        tab.go(f"{url}/")
        yield tab, url, path
        tab.close()


@pytest.mark.browser
def test_rate_train_and_see_the_new_model(
    tmp_path: Path, page: tuple[chromium.Tab, str, Path], talker: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    tab, url, path = page
    for number in (1, 2):
        say(tab, f"{SAYINGS[0]} {number}")
        tool(tab, "Edit this answer")
        tab.wait("document.querySelector('.editor textarea')")
        tab.eval(f"document.querySelector('.editor textarea').value = '{SAYINGS[1]} {number}'")
        tab.eval("document.querySelector('.editor .main').click()")
        tab.wait(f"[...document.querySelectorAll('.part .body')].at(-1).innerText === '{SAYINGS[1]} {number}'")
        tool(tab, "A good answer" if number == 1 else "A bad answer")
        tab.wait(f"document.querySelectorAll('.rate[aria-pressed=true]').length === {number}")
    assert [json.loads(line)["kind"] for line in path.read_text().splitlines()] == ["edit", "thumb"] * 2
    monkeypatch.setenv("STEMMA_API_KEY", "secret")
    words = ["align", "loop", "--from", str(talker), "--feedback", str(path), "--out", str(tmp_path / "new")]
    more = ["--set", "kto.objective.group=2", "--budget", "3 steps", "--quiet", "--serve", url]
    result = CliRunner().invoke(root, [*words, *more], catch_exceptions=False)
    assert result.exit_code == 0 and f"{url} serves new" in result.output
    tab.wait("[...document.querySelectorAll('.toast')].some(e => e.innerText.includes('new is served now'))", 30)
    tab.eval("[...document.querySelectorAll('.toast button')].find(e => e.innerText === 'Side by side').click()")
    tab.wait("document.querySelectorAll('#bar .chip').length === 2")
    say(tab, SAYINGS[2])
    names = tab.eval("[...document.querySelectorAll('.round.many .part .name')].map(e => e.innerText)")
    assert names == ["old", "new"]
