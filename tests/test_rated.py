"""What people think of answers: the server's route and its file, and the page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

import chromium
import serving
from stemma.errors import ResourceError, UsageError
from stemma.serve.feedback import Feedback
from stemma.serve.problems import Problem
from test_page import browser, choose, say, tool  # noqa: F401

ASKED = [{"role": "user", "content": "Which tree?"}]
PAIR = {"kind": "pair", "id": "c/1/0-1", "messages": ASKED, "answer": "An oak.", "other": "A tree.", "model": "tiny"}
THUMB = {"kind": "thumb", "id": "c/1/0", "messages": ASKED, "answer": "An oak.", "liked": False}
EDIT = {"kind": "edit", "id": "c/1/0", "messages": ASKED, "answer": "An elm.", "other": "An oak."}


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_feedback_is_kept_as_rows_of_the_common_formats(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "feedback.jsonl"
    made = serving.server(feedback=str(path))
    with serving.client(made) as client:
        assert client.get("/v1/models").json()["stemma"] == {"feedback": True}
        for i, body in enumerate((PAIR, THUMB, EDIT), 1):
            assert client.post("/feedback", json=body).json() == {"kept": i}
        assert "/feedback" in client.get("/openapi.json").json()["paths"]
    pair, thumb, edit = rows(path)
    oak, tree = ([{"role": "assistant", "content": text}] for text in ("An oak.", "A tree."))
    assert pair["prompt"] == ASKED and pair["chosen"] == oak and pair["rejected"] == tree
    assert thumb["prompt"] == ASKED and thumb["completion"] == oak and thumb["label"] is False
    assert edit["messages"] == [*ASKED, {"role": "assistant", "content": "An elm."}] and edit["original"] == "An oak."
    assert all(row["time"] > 1.7e9 and row["id"].startswith("c/1/0") for row in (pair, thumb, edit))


def test_what_says_nothing_is_refused_and_leaves_no_row(tmp_path: Path) -> None:
    path = tmp_path / "feedback.jsonl"
    made = serving.server(feedback=str(path), origins=("https://friend.example",))
    wrong: list[tuple[dict[str, Any], str]] = [
        ({**PAIR, "other": " An oak. "}, "both answers are the same"),
        ({**PAIR, "other": None}, "a pair has an 'other' answer"),
        ({**PAIR, "liked": True}, "a pair has an 'other' answer, and no 'liked'"),
        ({**THUMB, "liked": None}, "a thumb has 'liked'"),
        ({**EDIT, "answer": ""}, "answer"),
        ({**EDIT, "answer": "x" * 200_001}, "answer"),
        ({**EDIT, "messages": [*ASKED, {"role": "assistant", "content": "a"}]}, "must be the user's"),
        ({**EDIT, "messages": ASKED * 2}, "user and assistant take turns"),
        ({**EDIT, "messages": ASKED * 401}, "messages"),
        ({**PAIR, "path": "/etc/passwd"}, "path is no field"),
        ({**PAIR, "kind": "vote"}, "kind"),
    ]
    with serving.client(made) as client:
        for body, why in wrong:
            answer = client.post("/feedback", json=body)
            assert answer.status_code == 400 and why in answer.json()["error"]["message"], body
        for head in ({"Origin": "https://friend.example"}, {"Sec-Fetch-Site": "cross-site"}):
            assert client.post("/feedback", json=PAIR, headers=head).status_code == 403
        friend = client.get("/v1/models", headers={"Origin": "https://friend.example"})
        assert friend.status_code == 200  # who may ask other routes may not write this file
    assert path.read_bytes() == b""


def test_without_a_file_there_is_no_such_route() -> None:
    with serving.client(serving.server()) as client:
        assert client.post("/feedback", json=PAIR).status_code == 404
        assert "stemma" not in client.get("/v1/models").json() and "/feedback" not in client.get("/openapi.json").text


def test_the_file_is_bounded_and_half_a_line_is_ended(tmp_path: Path) -> None:
    path = tmp_path / "feedback.jsonl"
    path.write_bytes(b'{"kind": "thu')
    kept = Feedback(path, most=120)
    assert kept.add({"a": "b" * 60}) == 2
    with pytest.raises(Problem, match="has 120 bytes, and takes no more"):
        kept.add({"a": "b" * 60})
    assert [json.loads(line) for line in path.read_bytes().split(b"\n")[1:-1]] == [{"a": "b" * 60}]
    with pytest.raises(UsageError, match="is no file"):
        Feedback(tmp_path)
    with pytest.raises(ResourceError):
        Feedback(path / "inside.jsonl")


# ---------------------------------------------------------------- the page


@pytest.fixture
def rated(tmp_path: Path, browser: chromium.Chromium) -> Iterator[tuple[chromium.Tab, Path]]:  # noqa: F811
    """The page of a server that keeps feedback, and the file."""
    path = tmp_path / "feedback.jsonl"
    with serving.port(serving.server({"tiny": serving.decoder()}, feedback=str(path))) as address:
        tab = browser.tab(f"{address}/")
        usual = json.dumps({"system": "short", "params": {"max_tokens": 12, "temperature": 1}})
        tab.eval(f"localStorage.setItem('stemma.usual', {json.dumps(usual)})")
        tab.ask("Page.reload")
        tab.wait("document.documentElement?.dataset.ready === 'yes' && document.querySelector('.lineage')")
        yield tab, path
        assert tab.trouble() == []
        tab.close()


def pressed(tab: chromium.Tab) -> list[str]:
    return list(tab.eval("[...document.querySelectorAll('.rate[aria-pressed=true]')].map(e => e.ariaLabel)"))


@pytest.mark.browser
def test_people_say_on_the_page_what_they_think(rated: tuple[chromium.Tab, Path]) -> None:
    tab, path = rated
    say(tab, "a leaf")
    tool(tab, "A bad answer")
    tab.wait("document.querySelector('.rate[aria-pressed=true]')")
    assert pressed(tab) == ["A bad answer"]
    tool(tab, "A good answer")
    tab.wait("document.querySelector('.rate[aria-pressed=true]').ariaLabel === 'A good answer'")
    tool(tab, "Edit this answer")
    tab.wait("document.querySelector('.editor textarea')")
    tab.eval("document.querySelector('.editor textarea').value = 'A leaf is green.'")
    tab.eval("document.querySelector('.editor .main').click()")
    tab.wait("document.querySelector('.part .body').innerText.includes('green')")
    tab.click(".beside")  # the same model, twice
    choose(tab, "tiny")
    say(tab, "a branch")
    tab.wait("document.querySelectorAll('.part').length === 3")
    tool(tab, "Better than the others", which=0)
    tab.wait("[...document.querySelectorAll('.rate[aria-pressed=true]')].some(e => e.ariaLabel.startsWith('Better'))")
    texts = tab.eval("[...document.querySelectorAll('.round.many .part')].map(e => e.querySelector('.body').innerText)")
    down, up, edit, pair = rows(path)
    assert (down["label"], up["label"]) == (False, True) and down["id"] == up["id"] and down["prompt"] == up["prompt"]
    assert [m["role"] for m in edit["messages"]] == ["system", "user", "assistant"]
    assert edit["messages"][-1]["content"] == "A leaf is green." and edit["original"] == up["completion"][0]["content"]
    assert [m["content"] for m in pair["prompt"]][-2:] == ["A leaf is green.", "a branch"]
    assert len(texts) == 2 and pair["chosen"] != pair["rejected"] and pair["models"] == ["tiny", "tiny"]
    tab.ask("Page.reload")  # marks are kept with the conversation
    tab.wait("document.querySelector('.rate[aria-pressed=true]')")
    assert pressed(tab) == ["Better than the others"]
