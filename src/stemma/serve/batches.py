"""Files of requests in OpenAI's batch format, answered without a server: a line of answers for each line of requests.

A request is `{"custom_id", "method": "POST", "url": "/v1/chat/completions", "body"}`, an answer `{"id", "custom_id",
"response": {"status_code", "request_id", "body"}, "error": null}`. Answers come in the order in which they are done.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stemma import disk
from stemma.errors import DataError, UsageError, brief
from stemma.serve import bodies, problems
from stemma.serve.models import Served
from stemma.serve.operations import OPERATIONS, Operation
from stemma.serve.problems import bad
from stemma.serve.server import Server
from stemma.serve.settings import Settings

ROUTES: dict[str, Operation] = {one.path: one for one in OPERATIONS if one.method == "POST" and not one.admin}


class Line(NamedTuple):
    """A request and its number in the file."""

    number: int
    custom_id: str
    url: str
    body: dict[str, Any]


def lines(path: Path) -> list[Line]:
    """The requests of a file. Raises DataError for a line that is none, and for a custom_id that comes twice."""
    found: dict[str, Line] = {}
    for number, value in disk.read_jsonl(path):
        line = _line(f"{path}:{number}", number, value)
        if line.custom_id in found:
            raise DataError(f"{path}:{number}: line {found[line.custom_id].number} has the same custom_id, "
                            f"{brief(line.custom_id, 60)}")  # fmt: skip
        found[line.custom_id] = line
    if not found:
        raise DataError(f"{path} holds no requests")
    return list(found.values())


def _line(place: str, number: int, value: Any) -> Line:
    if not isinstance(value, dict):
        what = "no JSON" if value is disk.BROKEN else f"{brief(value, 60)}, no JSON object"
        raise DataError(f"{place} is {what}; a line is a request with custom_id, method, url and body")
    for name, kind in (("custom_id", str), ("url", str), ("body", dict)):
        if not isinstance(value.get(name), kind):
            raise DataError(f"{place}: {name} must be {'an object' if kind is dict else 'a text'}, not "
                            f"{brief(value.get(name), 60)}")  # fmt: skip
    if value.get("method", "POST") != "POST":
        raise DataError(f"{place}: method must be POST, not {brief(value['method'], 60)}")
    if value["url"] not in ROUTES:
        raise DataError(f"{place}: there is no {brief(value['url'], 60)}; there are {', '.join(ROUTES)}")
    return Line(number, value["custom_id"], value["url"], value["body"])


def answered(path: Path, asked: Sequence[Line]) -> set[str]:
    """The requests that a file of answers has, whose last line may be half. Raises UsageError for a file of others."""
    if not path.exists():
        return set()
    known = {line.custom_id for line in asked}
    _whole(path)
    done = set()
    for number, value in disk.read_jsonl(path):
        name = value.get("custom_id") if isinstance(value, dict) else None
        if name not in known:
            raise UsageError(
                f"{path}:{number} is no answer to one of these requests; name a new file, or the requests that it "
                "was begun with"
            )
        done.add(name)
    return done


def _whole(path: Path) -> None:
    """Cut off what a process that was killed left of a line."""
    with disk.writing(path), open(path, "rb+") as file:
        end = at = file.seek(0, os.SEEK_END)
        while at and end:
            at = max(0, at - 2**16)
            file.seek(at)
            newline = file.read(min(2**16, end - at)).rfind(b"\n")
            if newline >= 0:
                end = at + newline + 1
                break
            end = at
        file.truncate(end)


def run(served: Served, asked: Sequence[Line], out: Path, told: Callable[[], None] = lambda: None) -> dict[int, int]:
    """Answer requests and add each answer to the file `out` as it is done. `told()` is called after each. All names of
    models mean the one that is served; a request without a seed draws by its custom_id. Returns how often each status
    came."""
    counts: dict[int, int] = {}
    server = Server(Settings(rows=served.rows, queue=max(served.queue, 4 * served.rows)))
    server.models.add(served)
    server.models.ready = True
    appender = disk.Appender(out)

    async def work(waiting: Iterator[Line]) -> None:
        for line in waiting:
            status, body = await _answer(server, served, line)
            counts[status] = counts.get(status, 0) + 1
            response = {"status_code": status, "request_id": f"req_{secrets.token_hex(12)}", "body": body}
            made = {"id": f"batch_req_{secrets.token_hex(12)}", "custom_id": line.custom_id, "response": response}
            appender.add({**made, "error": None})
            told()

    async def everybody() -> None:
        waiting = iter(asked)
        async with asyncio.TaskGroup() as group:
            for _ in range(min(len(asked), 2 * served.rows)):
                group.create_task(work(waiting))

    try:
        asyncio.run(everybody())
    finally:
        appender.close()
    return counts


async def _answer(server: Server, served: Served, line: Line) -> tuple[int, dict[str, Any]]:
    """What the route of a request answers: its status and its body."""
    one = ROUTES[line.url]
    try:
        if line.body.get("stream"):
            raise bad("a batch is not streamed: leave stream out", "stream")
        assert one.body is not None
        seed = int.from_bytes(hashlib.blake2b(line.custom_id.encode(), digest_size=7).digest(), "big")
        drawn = {"seed": seed} if "seed" in one.body.model_fields else {}
        given = {**drawn, **line.body, "model": served.name}
        found = await one.run(server, bodies.checked(one.body, given))
    except Exception as error:
        problem = problems.of(error)
        return problem.status, problem.body
    return 200, found if isinstance(found, dict) else found.model_dump()
