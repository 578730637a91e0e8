"""`stemma generate --batch`: files of requests in OpenAI's format, answered once each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from serving import decoder  # skips where the server's packages are missing
from stemma.errors import DataError, UsageError
from stemma.serve import batches
from stemma.serve.models import Served
from stemma.serve.settings import Settings


def request(name: str, body: dict[str, Any], url: str = "/v1/chat/completions") -> dict[str, Any]:
    return {"custom_id": name, "method": "POST", "url": url, "body": body}


def asked(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "any", "messages": [{"role": "user", "content": text}], "max_tokens": 6, **more}


def written(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answers(path: Path) -> dict[str, Any]:
    return {row["custom_id"]: row for row in map(json.loads, path.read_text().splitlines())}


@pytest.fixture
def served() -> Any:
    made = Served("tiny", decoder(), None, Settings(rows=3))
    yield made
    made.close(drain=False, timeout=5)


def test_each_request_is_answered_once_and_a_stop_goes_on(served: Served, tmp_path: Path) -> None:
    rows = [request(f"r{i}", asked(f"leaf {i}", temperature=i % 2)) for i in range(6)]
    rows += [request("text", {"model": "m", "prompt": "a tree", "max_tokens": 3}, "/v1/completions")]
    rows += [request("wrong", asked("x", temperature=-1))]
    lines = batches.lines(written(tmp_path / "in.jsonl", rows))
    whole = tmp_path / "whole.jsonl"
    assert batches.run(served, lines, whole) == {200: 7, 400: 1}
    got = answers(whole)
    assert got["wrong"]["response"]["body"]["error"]["param"] == "temperature"
    assert got["text"]["response"]["body"]["object"] == "text_completion"
    assert all(row["error"] is None and row["response"]["request_id"] for row in got.values())

    half = tmp_path / "half.jsonl"
    batches.run(served, lines[:4], half)
    with open(half, "a") as file:
        file.write('{"custom_id": "r5", "resp')  # a process was killed here
    done = batches.answered(half, lines)
    assert done == {"r0", "r1", "r2", "r3"}
    batches.run(served, [line for line in lines if line.custom_id not in done], half)
    again = answers(half)
    assert len(half.read_text().splitlines()) == 8

    def text(row: Any) -> Any:
        choice = row["response"]["body"].get("choices")
        return choice and (choice[0].get("text") or choice[0]["message"])

    assert {name: text(row) for name, row in again.items()} == {name: text(row) for name, row in got.items()}
    assert batches.answered(half, lines) == set(got)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "holds no requests"),
        ([[1]], "in.jsonl:1 is \\[1\\], no JSON object"),
        ([request("a", {}), request("a", {})], "in.jsonl:2: line 1 has the same custom_id, 'a'"),
        ([request("a", {}, "/v2/x")], "in.jsonl:1: there is no '/v2/x'; there are /v1/chat/completions"),
        ([{"custom_id": 3, "url": "/v1/completions", "body": {}}], "custom_id must be a text, not 3"),
        ([{**request("a", {}), "method": "GET"}], "method must be POST, not 'GET'"),
    ],
)
def test_files_that_hold_no_requests(rows: list[Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        batches.lines(written(tmp_path / "in.jsonl", rows))


def test_answers_to_other_requests_are_not_mixed_in(tmp_path: Path) -> None:
    lines = batches.lines(written(tmp_path / "in.jsonl", [request("a", {})]))
    other = written(tmp_path / "out.jsonl", [{"custom_id": "b"}])
    with pytest.raises(UsageError, match=r"out.jsonl:1 is no answer to one of these requests"):
        batches.answered(other, lines)
