"""What objectives share: the order of documents, windows cut from it, and the loss of targets at a vocabulary."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from stemma.data import random as draw
from stemma.errors import DataError, UsageError
from stemma.nn.model import IGNORED, Model
from stemma.nn.parts import BlankLearned, BlankRotary, Buckets, Disentangled, EMDHead, Learned, Rotary

Ints = NDArray[np.int64]
Example = dict[str, Any]  # arrays and numbers of one row
Batch = dict[str, Tensor]  # int64 tensors of one micro-batch

LOGITS = 2**25  # logits held at once (128 MB in fp32); more targets go through the head in chunks
OUTSIDE = -1  # document number of padding


class View(Protocol):
    """Documents as token ids, without special tokens."""

    def __len__(self) -> int: ...
    def __getitem__(self, i: int) -> Any: ...
    def sentences(self, i: int) -> Any: ...


@dataclass(frozen=True, order=True)
class Cursor:
    """Where a stream of examples stands: `epoch`, `document` (index into the epoch's order) and `offset` in it (the
    next token, or the next sentence for sentence pairs)."""

    epoch: int = 0
    document: int = 0
    offset: int = 0


@dataclass
class Loss:
    """Of each named part of an objective: `sums` over its targets in nats, fp32, and `counts` of targets. `metrics`
    are sums over the same targets, for information. What is minimised is the sum of `sums[k] / counts[k]`."""

    sums: dict[str, Tensor]
    counts: dict[str, int]
    metrics: dict[str, float] = field(default_factory=dict)

    def total(self, counts: Mapping[str, int] | None = None) -> Tensor:
        """The loss, each part divided by `counts` (by its own count if not given): pass the counts of a whole step
        to add up gradients over micro-batches exactly."""
        counts = self.counts if counts is None else counts
        return torch.stack([self.sums[k] / counts[k] for k in self.sums]).sum()


class Objective(ABC):
    """Examples of a view in a reproducible order, batches of them, and the loss of a model on a batch."""

    main: str = "token"  # the part whose nats are reported as the model's quality
    whole: bool = False  # whether its targets are the whole text, so that bits a byte of text mean something

    def __init__(self, tokenizer: Any, context: int, seed: int, mixed: bool) -> None:
        if context < 8:
            raise UsageError(f"a row must hold at least 8 tokens to train on, not {context}")
        self.tokenizer, self.context, self.seed, self.mixed = tokenizer, context, seed, mixed
        self.special: Ints = np.unique(np.asarray(list(tokenizer.special_ids), dtype=np.int64))
        self.plain: Ints = np.setdiff1d(np.arange(tokenizer.vocab_size, dtype=np.int64), self.special)

    @abstractmethod
    def examples(self, view: View, cursor: Cursor = Cursor(), once: bool = False) -> Iterator[tuple[Example, Cursor]]:
        """Examples from `cursor` on, each with the cursor that follows it. Without end, epoch after epoch; with
        `once`, to the end of the epoch, the last row padded. Raises DataError for a view without documents."""

    @abstractmethod
    def collate(self, examples: Sequence[Example]) -> Batch:
        """A batch of rows of `context` tokens. Raises DataError if none of them holds a target."""

    @abstractmethod
    def loss(self, model: Model, batch: Batch) -> Loss:
        """The loss of `model` on `batch`; only the hidden states of targets reach the vocabulary matrix."""

    def counts(self, batch: Batch) -> dict[str, int]:
        """Targets of each part in `batch`, known before the model runs."""
        return {self.main: len(batch["targets"])}

    def unpredicted(self, view: View) -> int:
        """Of an objective whose targets are the whole text: how many of its tokens no target stands for."""
        return 0

    def order(self, view: View, epoch: int) -> Ints:
        """The documents of `view` in the order of `epoch`."""
        if len(view) == 0:
            raise DataError("there is no document to train on")
        return np.asarray(draw.permutation((self.seed, ORDER, epoch), len(view)), dtype=np.int64)

    def need(self, *roles: str) -> int:
        """The id of the first of the `roles` ("mask", "eos") that the tokenizer has. Raises UsageError without."""
        for role in roles:
            found = getattr(self.tokenizer, f"{role}_id")
            if found is not None:
                return int(found)
        raise UsageError(f"this objective needs a {roles[0]} token, and the tokenizer has none")

    @property
    def padding(self) -> int:
        """An id for places that hold no token (never seen, never a target)."""
        return int(self.tokenizer.pad_id) if self.tokenizer.pad_id is not None else 0


# purposes, so that no two draws share a key
ORDER, MASK, FORCE, PAIR, SPAN = range(1, 6)


# ---------------------------------------------------------------- windows


class Window(NamedTuple):
    """`values` (K N): aligned rows of a stretch of the stream; `documents` (N): 0, 1, ... by document, -1 for padding;
    `positions` (N): from 0 in each document; `size`: tokens that are no padding; `at`: cursor of the first token;
    `indices`: the documents by index in the view, in order."""

    values: Ints
    documents: Ints
    positions: Ints
    size: int
    at: Cursor
    indices: list[int]


class Reader:
    """The documents of a view, epoch after epoch, as `piece(document, epoch)` writes them (K x tokens)."""

    def __init__(self, objective: Objective, view: View, piece: Callable[[int, int], Ints], once: bool) -> None:
        self.objective, self.view, self.piece, self.once = objective, view, piece, once
        self._order: tuple[int, Ints] | None = None
        self._pieces: dict[tuple[int, int], Ints] = {}

    def index(self, at: Cursor) -> int:
        """The document at a cursor, as index into the view."""
        if self._order is None or self._order[0] != at.epoch:
            self._order = (at.epoch, self.objective.order(self.view, at.epoch))
        return int(self._order[1][at.document])

    def settle(self, at: Cursor) -> Cursor | None:
        """`at`, or the first token after it if it stands at an end; None at the end of the epoch if `once`."""
        empty = 0
        while True:
            if at.document >= len(self.view):
                if self.once:
                    return None
                at = Cursor(at.epoch + 1)
            if at.offset < self.read(at).shape[1]:
                return at
            at = Cursor(at.epoch, at.document + 1)
            empty += 1
            if empty > len(self.view) + 1:
                raise DataError("there is no token to train on: every document is empty")

    def read(self, at: Cursor) -> Ints:
        """The whole piece of the document at `at`."""
        key = (at.epoch, at.document)
        if key not in self._pieces:
            if len(self._pieces) > 1:  # the last two: a window may look one token ahead
                self._pieces.pop(next(iter(self._pieces)))
            self._pieces[key] = self.piece(self.index(at), at.epoch)
        return self._pieces[key]

    def windows(
        self, cursor: Cursor, size: int, stride: int, padding: Sequence[int]
    ) -> Iterator[tuple[Window, Cursor]]:
        """Stretches of `size` tokens, one every `stride` (size or size - 1), each with the cursor of the next."""
        here = self.settle(cursor)
        while here is not None:
            values = np.repeat(np.asarray(padding, dtype=np.int64)[:, None], size, 1)
            documents = np.full(size, OUTSIDE, dtype=np.int64)
            positions = np.zeros(size, dtype=np.int64)
            indices: list[int] = []
            fill, start = 0, here
            at: Cursor | None = here
            follow: Cursor | None = None
            while at is not None and fill < size:
                rows = self.read(at)
                take = min(size - fill, rows.shape[1] - at.offset)
                values[:, fill : fill + take] = rows[:, at.offset : at.offset + take]
                documents[fill : fill + take] = len(indices)
                positions[fill : fill + take] = np.arange(take)
                if fill <= stride < fill + take:
                    follow = Cursor(at.epoch, at.document, at.offset + stride - fill)
                indices.append(self.index(at))
                fill += take
                at = self.settle(Cursor(at.epoch, at.document, at.offset + take))
            last = at if at is not None else Cursor(start.epoch, len(self.view))
            yield Window(values, documents, positions, fill, start, indices), follow or last
            here = self.settle(follow or last)


# ---------------------------------------------------------------- batches


def stack(examples: Sequence[Example], *names: str) -> Batch:
    """The named arrays of all examples, as B T tensors."""
    return {name: torch.from_numpy(np.stack([e[name] for e in examples])) for name in names}


def targets(labels: Tensor) -> Batch:
    """`targets` (N) and `where` (N), their places in the flattened batch; without `where` if every place is one.

    `labels` (B T) holds IGNORED where there is no target. Raises DataError if there is none at all.
    """
    flat = labels.flatten()
    where = (flat != IGNORED).nonzero().squeeze(1)
    if len(where) == 0:
        raise DataError("a batch without a single target cannot be trained on")
    return {"targets": flat} if len(where) == len(flat) else {"targets": flat[where], "where": where}


def several(examples: Sequence[Example], name: str = "documents") -> bool:
    """Whether any row holds more than one document."""
    return any(int(e[name].max()) > 0 for e in examples)


def layout(model: Model, batch: Batch, positions: str = "position_ids") -> Tensor | None:
    """The positions to give to `model`: None where it knows only distances, which documents do not change."""
    scheme = model.arch.position
    given = batch.get(positions)
    if given is None or isinstance(scheme, (Rotary, Buckets)):
        return None
    if isinstance(scheme, Disentangled) and not isinstance(model.arch.heads.lm, EMDHead):
        return None
    if isinstance(scheme, Learned) and scheme.padding is not None:
        return given + scheme.padding + 1
    if isinstance(scheme, (BlankLearned, BlankRotary)):  # no token fills a blank
        return torch.stack([given, torch.zeros_like(given)], -1)
    return given


# ---------------------------------------------------------------- loss


def token_loss(model: Model, hidden: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy in nats summed over the targets of `batch`, fp32; `hidden` is B T D."""
    flat = hidden.flatten(0, 1)
    where = batch.get("where")
    picked = flat if where is None else flat.index_select(0, where)
    goal = batch["targets"]
    rows = max(1, LOGITS // model.dims.vocab)
    if len(goal) <= rows:
        return _summed(model, picked, goal)
    parts = [
        checkpoint(_summed, model, h, g, use_reentrant=False)
        for h, g in zip(picked.split(rows), goal.split(rows), strict=True)
    ]
    return torch.stack(parts).sum()


def _summed(model: Model, hidden: Tensor, goal: Tensor) -> Tensor:
    return F.cross_entropy(model.logits(hidden).float(), goal, reduction="sum")
