"""Documents of a store, or pieces of them, as training reads them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from stemma.data.documents import MixtureSource


class View:
    """Some documents of a store, or pieces of documents. Token ids are without special tokens."""

    def __init__(self, store: Any, indices: npt.NDArray[np.int64], blocks: npt.NDArray[np.int64] | None = None) -> None:
        self._store = store
        self.indices = indices  # int64[documents]: indices in the store
        self._blocks = blocks  # int64[2, documents]: first block of each piece and one past the last; None: whole

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def store(self) -> Any:
        """The store that the documents are of."""
        return self._store

    def _at(self, i: int) -> int:
        if not -len(self) <= i < len(self):
            raise IndexError(f"document {i} of {len(self)}")
        return int(self.indices[i])

    def _span(self, i: int, offsets: str = "documents", inner: str = "blocks") -> tuple[int, int]:
        """Where document i begins and ends, in tokens.bin or by other offsets."""
        at = self._at(i)
        if self._blocks is None:
            a, b = self._store._arrays[offsets][at : at + 2]
        else:
            a, b = self._store._arrays[inner][self._blocks[:, i]]
        return int(a), int(b)

    def __getitem__(self, i: int) -> npt.NDArray[np.int64]:
        """int64[tokens]: the ids of document i."""
        a, b = self._span(i)
        return np.asarray(self._store._arrays["tokens"][a:b], dtype=np.int64)

    def __iter__(self) -> Iterator[npt.NDArray[np.int64]]:
        return (self[i] for i in range(len(self)))

    def pick(self, documents: npt.NDArray[np.int64]) -> View:
        """The given documents of this view, in that order."""
        return View(self._store, self.indices[documents], None if self._blocks is None else self._blocks[:, documents])

    def sentences(self, i: int) -> npt.NDArray[np.int64]:
        """int64: the positions of tokens of document i that begin a sentence; the first is 0."""
        starts = self._store._starts(self._at(i))
        if self._blocks is None:
            return starts
        a, b = (x - int(self._store._arrays["documents"][self._at(i)]) for x in self._span(i))
        return np.concatenate([[0], starts[(starts > a) & (starts < b)] - a])

    def closed(self, i: int) -> bool:
        """Whether document i ends where the text does that it is a piece of."""
        return bool(self._closed[i])

    @cached_property
    def _closed(self) -> npt.NDArray[np.bool_]:
        if self._blocks is None:
            return np.ones(len(self), dtype=bool)
        return np.asarray(self._store._arrays["divided"])[self.indices + 1] == self._blocks[1]

    @property
    def ends(self) -> int:
        """How many documents end in this view; a piece in the middle of one does not."""
        return int(self._closed.sum())

    @property
    def texts(self) -> int:
        """How many documents of the store this view has anything of."""
        return len(self) if self._blocks is None else len(np.unique(self.indices))

    def cut(self, tokens: int) -> View:
        """This view with long documents in pieces of about `tokens` tokens at most: as many blocks as come nearest to
        equal parts of it."""
        if self._blocks is None and "divided" not in self._store._arrays:
            return self
        first, last = self._blocks if self._blocks is not None else self._store._whole(self.indices)
        edges = self._store._arrays["blocks"]
        begins = np.asarray(edges[first])
        sizes = np.asarray(edges[last]) - begins
        parts = np.minimum(last - first, np.maximum(1, -(-sizes // tokens)))
        owner = np.repeat(np.arange(len(self)), last - first)
        inner = np.arange(len(owner)) - np.repeat(np.cumsum(last - first) - (last - first), last - first)
        block = first[owner] + inner
        middle = (np.asarray(edges[block]) + np.asarray(edges[block + 1])) / 2 - begins[owner]
        part = (middle * parts[owner] / np.maximum(sizes[owner], 1)).astype(np.int64)
        part = np.where(parts[owner] == (last - first)[owner], inner, part)
        return self._store._pieces(self.indices[owner], block, part)

    def bytes(self, i: int) -> int:
        """UTF-8 bytes of document i's text."""
        return int(self.sizes[i])

    def name(self, i: int) -> str:
        """The name of document i, such as `file:line`."""
        return self._store._name(self._at(i))

    def text(self, i: int) -> str:
        """The text of document i."""
        a, b = self._span(i, "bytes", "block_bytes")
        return bytes(self._store._arrays["text"][a:b]).decode("utf-8", "replace")

    def language(self, i: int) -> str:
        """The language of document i; "" if unknown."""
        return self._store.languages[self.language_ids[i]]

    def translations(self, i: int) -> list[int]:
        """The other documents of this view in the group of document i, in order."""
        group = int(self.groups[i])
        return [j for j in self._members.get(group, []) if j != i]

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages of the whole store, by number."""
        return self._store.languages

    @cached_property
    def language_ids(self) -> npt.NDArray[np.int64]:
        """int64[documents]: the number of each one's language."""
        return self._labels("languages", 0)

    @cached_property
    def groups(self) -> npt.NDArray[np.int64]:
        """int64[documents]: the number of each one's group, -1 for none."""
        return self._labels("groups", -1)

    @cached_property
    def part_ids(self) -> npt.NDArray[np.int64]:
        """int64[documents]: the component of the mixture that each is from."""
        return self._labels("parts", 0)

    @property
    def parts(self) -> tuple[MixtureSource, ...]:
        """The components of a mixture with weights or limits."""
        return self._store.declared

    def _labels(self, name: str, missing: int) -> npt.NDArray[np.int64]:
        held = self._store._arrays.get(name)
        if held is None:
            return np.full(len(self), missing, dtype=np.int64)
        return np.asarray(held, dtype=np.int64)[self.indices]

    @cached_property
    def _members(self) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for j, group in enumerate(self.groups.tolist()):
            if group >= 0:
                found.setdefault(group, []).append(j)
        return found

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """int64[documents]: the number of tokens of each."""
        return self._lengths("documents", "blocks")

    @cached_property
    def sizes(self) -> npt.NDArray[np.int64]:
        """int64[documents]: the number of UTF-8 bytes of each text."""
        return self._lengths("bytes", "block_bytes")

    def _lengths(self, offsets: str, inner: str) -> npt.NDArray[np.int64]:
        if self._blocks is None:
            return np.diff(self._store._arrays[offsets])[self.indices]
        first, last = self._blocks
        return np.asarray(self._store._arrays[inner][last] - self._store._arrays[inner][first])

    @property
    def tokens_total(self) -> int:
        """The number of tokens of all documents."""
        return int(self.lengths.sum())

    @property
    def bytes_total(self) -> int:
        """The number of UTF-8 bytes of all texts."""
        return int(self.sizes.sum())

    @property
    def vocab(self) -> int:
        """The size of the tokenizer's vocabulary."""
        return int(self._store.meta["vocab"])

    @property
    def has_groups(self) -> bool:
        """Whether documents of the store are bound into groups, as translations of each other."""
        return "groups" in self._store._arrays

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the tokenizer and of these documents."""
        chosen = hashlib.sha256(self._store.meta["fingerprint"].encode())
        chosen.update(np.ascontiguousarray(self.indices, dtype="<i8").tobytes())
        if self._blocks is not None:
            chosen.update(np.ascontiguousarray(self._blocks, dtype="<i8").tobytes())
        return chosen.hexdigest()
