"""What people think of answers, kept in a local file as rows of the common formats: two answers compared (prompt,
chosen, rejected), one that was liked or not (prompt, completion, label), and one that was edited (messages)."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from stemma import disk
from stemma.conversations.shapes import Conversation, Turn, checked
from stemma.errors import UsageError
from stemma.serve.problems import Problem, bad
from stemma.serve.schemas.feedback import FeedbackRequest
from stemma.serve.server import Server

MOST = 256 * 2**20  # bytes of a file


class Feedback:
    """A file that rows are added to, one whole line at a time. Raises UsageError for one that cannot be written."""

    def __init__(self, path: str | Path, most: int = MOST) -> None:
        self.path, self.most = Path(path), most
        self.lock = threading.Lock()
        if self.path.exists() and not self.path.is_file():
            raise UsageError(f"{self.path} is no file, so no feedback can be kept in it")
        with disk.writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab+") as file:  # a line that a killed process left is ended
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) != b"\n":
                        file.write(b"\n")
        with open(self.path, "rb") as file:
            self.lines = sum(1 for _ in file)

    def add(self, row: dict[str, Any]) -> int:
        """Keep a row; returns how many there are. Raises Problem where the file has no room for it."""
        raw = (json.dumps(row, ensure_ascii=False) + "\n").encode()
        with self.lock, disk.writing(self.path), open(self.path, "ab") as file:
            if file.tell() + len(raw) > self.most:
                raise Problem(507, f"the file of feedback has {self.most:,} bytes, and takes no more", code="full")
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
            self.lines += 1
            return self.lines


def row_of(body: FeedbackRequest, now: float) -> dict[str, Any]:
    """The row that a request is kept as. Raises Problem for one that says nothing: equal answers, a half of a pair, a
    thumb without a side, and DataError for turns out of order."""
    asked = [{"role": message.role, "content": message.content} for message in body.messages]
    if body.messages[-1].role != "user":
        raise bad("the last of messages must be the user's: the answer follows it", "messages", "invalid_value")
    turns = [Turn(message["role"], message["content"]) for message in asked]
    checked(Conversation((*turns, Turn("assistant", body.answer))))
    head: dict[str, Any] = {"kind": body.kind, "id": body.id, "time": round(now)}
    answer = [{"role": "assistant", "content": body.answer}]
    if body.kind == "thumb":
        if body.liked is None or body.other is not None:
            raise bad("a thumb has 'liked', and no 'other' answer", "liked", "invalid_value")
        return head | {"prompt": asked, "completion": answer, "label": body.liked, "model": body.model}
    if body.other is None or body.liked is not None:
        raise bad(f"a {body.kind} has an 'other' answer, and no 'liked'", "other", "invalid_value")
    if body.other.strip() == body.answer.strip():
        raise bad("both answers are the same, so there is nothing to prefer", "other", "invalid_value")
    if body.kind == "edit":
        return head | {"messages": [*asked, *answer], "original": body.other, "model": body.model}
    rejected = [{"role": "assistant", "content": body.other}]
    models = [body.model, body.other_model]
    return head | {"prompt": asked, "chosen": answer, "rejected": rejected, "models": models}


async def keep(server: Server, body: FeedbackRequest) -> dict[str, Any]:
    """Keep what somebody thinks of an answer."""
    row = row_of(body, time.time())
    assert server.feedback is not None
    return {"kept": await asyncio.to_thread(server.feedback.add, row)}
