"""Responses that are kept in memory for later requests, until their room is needed: the oldest go first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stemma.serve.problems import Problem
from stemma.serve.schemas.responses import ITEM, Item

EACH = 8 * 2**10  # bytes that a response takes beside its texts, about


@dataclass(frozen=True)
class Kept:
    """A response: its `answer`, and the `items` of the whole conversation with it."""

    answer: dict[str, Any]
    items: tuple[Item, ...]
    size: int


class Store:
    """Responses by their ids, in at most `size` bytes."""

    def __init__(self, size: int) -> None:
        self.size, self.used = size, 0
        self._kept: OrderedDict[str, Kept] = OrderedDict()

    def add(self, answer: dict[str, Any], asked: Sequence[Item]) -> None:
        """Keep the answer to a conversation; one that is larger than the whole store is not kept."""
        items = (*asked, *(ITEM.validate_python(one) for one in answer["output"]))
        size = EACH + sum(len(item.model_dump_json()) for item in items) + len(answer["instructions"] or "")
        if size > self.size:
            return
        self._kept[answer["id"]] = Kept(answer, items, size)
        self.used += size
        while self.used > self.size:
            self.used -= self._kept.popitem(last=False)[1].size

    def find(self, name: str) -> Kept:
        """The response of an id. Raises Problem."""
        found = self._kept.get(name)
        if found is None:
            raise Problem(404, f"no response has the id {name[:80]!r}: it was never kept, was deleted, or its room was "
                          "needed", "response_id", "response_not_found")  # fmt: skip
        return found

    def drop(self, name: str) -> None:
        """Forget a response. Raises Problem where there is none."""
        self.used -= self.find(name).size
        del self._kept[name]
