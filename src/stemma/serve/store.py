"""Responses that are kept in memory for later requests of the same key, until their room is needed: the oldest go
first."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from stemma.serve.problems import Problem
from stemma.serve.schemas.responses import ITEM, InputCall, InputMessage, Item

EACH = 8 * 2**10  # bytes that a response takes beside its texts, about
KEY: ContextVar[bytes] = ContextVar("KEY", default=b"")  # the digest of the key of the request that is being answered


@dataclass(frozen=True)
class Kept:
    """A response: its `answer`, the `items` of the whole conversation with it, and the digest of its `key`."""

    answer: dict[str, Any]
    items: tuple[Item, ...]
    size: int
    key: bytes

    @property
    def given(self) -> list[dict[str, Any]]:
        """The items that were answered, as they are shown."""
        return [_shown(item) for item in self.items[: len(self.items) - len(self.answer["output"])]]


class Store:
    """Responses by their ids, in at most `size` bytes."""

    def __init__(self, size: int) -> None:
        self.size, self.used = size, 0
        self._kept: OrderedDict[str, Kept] = OrderedDict()

    def add(self, answer: dict[str, Any], asked: Sequence[Item]) -> None:
        """Keep the answer to a conversation for its key; one that is larger than the whole store is not kept."""
        items = (*_named(asked), *(ITEM.validate_python(one) for one in answer["output"]))
        size = EACH + sum(len(item.model_dump_json()) for item in items) + len(answer["instructions"] or "")
        if size > self.size:
            return
        self._kept[answer["id"]] = Kept(answer, items, size, KEY.get())
        self.used += size
        while self.used > self.size:
            self.used -= self._kept.popitem(last=False)[1].size

    def find(self, name: str) -> Kept:
        """The response of an id; those of other keys are not there. Raises Problem."""
        found = self._kept.get(name)
        if found is None or found.key != KEY.get():
            raise Problem(404, f"no response has the id {name[:80]!r}: it was never kept, was deleted, or its room was "
                          "needed", "response_id", "response_not_found")  # fmt: skip
        return found

    def drop(self, name: str) -> None:
        """Forget a response. Raises Problem where there is none."""
        self.used -= self.find(name).size
        del self._kept[name]


def _named(items: Sequence[Item]) -> list[Item]:
    """Items with an id each: one that has none, or that of an item before it, gets a new one."""
    found: dict[str, Item] = {}
    for item in items:
        if item.id is None or item.id in found:
            kind = "msg" if isinstance(item, InputMessage) else "fc" if isinstance(item, InputCall) else "fco"
            item = item.model_copy(update={"id": f"{kind}_{secrets.token_hex(12)}"})
        assert item.id is not None
        found[item.id] = item
    return list(found.values())


def _shown(item: Item) -> dict[str, Any]:
    """An item as OpenAI's interface lists it: the content of a message as parts."""
    found = item.model_dump(exclude_none=True) | {"status": item.status or "completed"}
    if isinstance(item, InputMessage):
        kind = "output_text" if item.role == "assistant" else "input_text"
        parts: list[Any] = [item.content] if isinstance(item.content, str) else [part.text for part in item.content]
        more: dict[str, Any] = {"annotations": [], "logprobs": []} if kind == "output_text" else {}
        found["content"] = [{"type": kind, "text": text} | more for text in parts]
    return found
