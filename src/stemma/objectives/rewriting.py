"""What objectives share that make of a text two: inputs, which are given, and a goal, which is to be written.

An encoder-decoder reads the inputs in its encoder and writes the goal in its decoder. A decoder reads both one after
the other in one row and is asked for the goal alone; under a prefix mask the inputs see each other whole (Raffel et al.
2020, section 3.2.1).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from stemma.errors import UsageError
from stemma.nn.inputs import Inputs
from stemma.nn.model import IGNORED, Model
from stemma.objectives import base
from stemma.objectives.languages import apart

Key = tuple[int, ...]  # (document, epoch, offset) of a text's first token: what its draws depend on
SCRAP = 8  # tokens of a longer text that are worth the rest of a row


class Shape(NamedTuple):
    """Tokens of the inputs and of the goal."""

    inputs: int
    goal: int


class Pair(NamedTuple):
    """A rewritten text. `read`: what the decoder reads, where this is not the start token and the goal up to its last
    token; `places`: where it stands, where this is not 0, 1, ..."""

    inputs: base.Ints
    goal: base.Ints
    read: base.Ints | None = None
    places: base.Ints | None = None


class Rewriting(base.Objective):
    """Rows of rewritten texts that do not see each other.

    A text is a chunk of one document, or, with `mixed`, of documents run together, as long as the rest of the row
    allows. How it is rewritten is a function of (seed, document, epoch, offset). A subclass defines the lengths of its
    parts (`shape`, which must not decrease with the length), the parts (`rewrite`), the longest text (`raw`) and the
    targets in a row of an encoder-decoder (`room`). In an encoder-decoder, inputs end with eos (`close`); in a decoder,
    they begin with bos where the tokenizer has one (`front`).
    """

    structures: tuple[str, ...] = ("encoder-decoder", "decoder")
    roles: tuple[tuple[str, ...], ...] = (("eos", "sep"),)
    even: bool = False  # whether a text's length alone decides its shape: then all of a stream are of one length
    raw: int
    room: int

    def __init__(self, spec: Any, setting: base.Setting) -> None:
        super().__init__(spec, setting)
        text = setting.text
        self.single = setting.structure == "decoder"
        self.eos = self.special_id("eos", "sep")
        self.start = self.padding if text.start_id is None or text.start_id == text.pad_id else text.start_id
        bos = self.tokenizer.bos_id if self.single else None
        self.front: list[int] = [] if bos is None else [int(bos)]
        self.close: list[int] = [] if self.single else [self.eos]
        self.streamed = self.even and self.mixed and not self.single

    @abstractmethod
    def shape(self, length: int, key: Key) -> Shape:
        """Tokens (at most) that a text of `length` becomes."""

    @abstractmethod
    def rewrite(self, text: base.Ints, key: Key) -> Pair:
        """Inputs and goal of a text (K N, as `piece` writes it)."""

    def piece(self, view: base.View, document: int) -> base.Ints:
        """A document as aligned rows, its tokens first: K x tokens."""
        return np.asarray(view[document], dtype=np.int64)[None]

    def longest(self, key: Key = (), room: int | None = None) -> int:
        """The longest text whose inputs and goal fit into `context` tokens: each of an encoder-decoder (the goal into
        `room`, if given), both together of a decoder."""
        left = Shape(self.context, self.context if room is None else room)
        low, high = 0, 2
        while self.fits(self.shape(high, key), left):
            low, high = high, 2 * high
        return self.most(low, high, left, key)

    def fits(self, shape: Shape, left: Shape) -> bool:
        """Whether a text of `shape` goes into what is `left` of a row."""
        if self.single:  # the last token of the goal is read by nobody
            return shape.inputs + shape.goal - 1 <= left.inputs
        return shape.inputs <= left.inputs and shape.goal <= left.goal

    def most(self, low: int, high: int, left: Shape, key: Key) -> int:
        """The longest length from `low` to `high` that fits, `low` being known to."""
        while low < high:
            middle = (low + high + 1) // 2
            if self.fits(self.shape(middle, key), left):
                low = middle
            else:
                high = middle - 1
        return low

    # ------------------------------------------------------------ rows

    def lazy_examples(self, view: base.View, cursor: base.Cursor = base.START, once: bool = False) -> base.LazyExamples:
        packer = base.Packer(self.order(view, once), lambda d: len(view[d]), lambda d, _: self.piece(view, d), once)
        if self.streamed and not once and apart(view, self.setting.sampling):
            for chunk, follow in self.chunks(packer, view, cursor, self.raw, self.raw):  # rows of one language each
                yield partial(self.example, packer, [chunk]), follow
            return
        here = packer.seek(cursor)
        while here is not None:
            texts, here = self.fill(packer, here)
            yield partial(self.example, packer, texts), here or base.Cursor(packer.order.documents)

    def fill(self, packer: base.Packer, here: base.Cursor) -> tuple[list[base.Chunk], base.Cursor | None]:
        """The texts of a row that begins `here`, as many as it holds, and where the next one begins."""
        texts: list[base.Chunk] = []
        left = Shape(self.context, 0 if self.single else self.room)
        at: base.Cursor | None = here
        while at is not None:
            document, epoch = packer.order[at.slot]
            key = (document, epoch, at.offset)
            rest = self.raw if self.mixed else packer.length(document) - at.offset
            take = self.most(0, min(rest, self.raw), left, key)
            if take == 0 or (take < rest and texts and take < SCRAP):
                break  # no scrap of a long text at the end of a row
            chunk, follow = next(packer.chunks(at, take, take))
            texts.append(chunk)
            used = self.shape(chunk.size, key)
            if self.single:
                left = Shape(left.inputs - used.inputs - used.goal + 1, 0)
            else:
                left = Shape(left.inputs - used.inputs, left.goal - used.goal)
            at = packer.seek(follow)
        if not texts:
            raise UsageError(f"a row of {self.context} tokens is too short for {type(self).__name__}")
        return texts, at

    def example(self, packer: base.Packer, texts: list[base.Chunk]) -> base.Example:
        """A row of rewritten texts."""
        pairs = []
        for chunk in texts:
            rows = len(packer.read(*chunk.key[:2]))
            pairs.append(self.rewrite(packer.row(chunk, chunk.size, [self.padding] * rows).values, chunk.key))
        return self.one_row(pairs) if self.single else self.two_rows(pairs)

    def two_rows(self, pairs: list[Pair]) -> base.Example:
        """Of an encoder-decoder: padded to `context` inputs and `room` targets."""
        read = [np.concatenate([[self.start], p.goal[:-1]]) if p.read is None else p.read for p in pairs]
        places = [np.arange(len(p.goal)) if p.places is None else p.places for p in pairs]
        return {
            "input_ids": padded([p.inputs for p in pairs], self.context, self.padding),
            "documents": padded(numbers([p.inputs for p in pairs]), self.context, base.PAD_DOCUMENT),
            "position_ids": padded([np.arange(len(p.inputs)) for p in pairs], self.context, 0),
            "labels": padded([p.goal for p in pairs], self.room, IGNORED),
            "decoder_input_ids": padded(read, self.room, self.padding),
            # padding follows the last text, so that it has something to look at; nothing looks at it
            "decoder_documents": padded(numbers([p.goal for p in pairs]), self.room, len(pairs) - 1),
            "decoder_position_ids": padded(places, self.room, 0),
        }

    def one_row(self, pairs: list[Pair]) -> base.Example:
        """Of a decoder: each text's inputs and goal one after the other. `prefix`: for each token, the place in the row
        up to which its text is input."""
        ids, labels, prefix = [], [], []
        fill = 0
        for inputs, goal, *_ in pairs:
            whole, n = np.concatenate([inputs, goal]), max(len(inputs), 1)
            ids.append(whole[:-1])
            labels.append(np.concatenate([np.full(n - 1, IGNORED), whole[n:]]))
            prefix.append(np.full(len(whole) - 1, fill + len(inputs)))
            fill += len(whole) - 1
        return {
            "input_ids": padded(ids, self.context, self.padding),
            "labels": padded(labels, self.context, IGNORED),
            "documents": padded(numbers(ids), self.context, base.PAD_DOCUMENT),
            "position_ids": padded([np.arange(len(t)) for t in ids], self.context, 0),
            "prefix": padded(prefix, self.context, 0),
        }

    # ------------------------------------------------------------ batches

    def collate(self, examples: Sequence[base.Example]) -> base.Batch:
        batch = base.stack(examples, *examples[0])
        labels = batch.pop("labels")
        batch |= base.targets(labels)
        if self.single:
            if not base.several(examples):  # padding at the end needs no mask: nothing looks back at it
                del batch["documents"], batch["position_ids"]
            return batch
        # where places are what masks go by, padding stands after every token
        batch["decoder_position_ids"] = torch.where(labels == IGNORED, self.context - 1, batch["decoder_position_ids"])
        outside = batch["documents"] == base.PAD_DOCUMENT
        if not base.several(examples):
            for name in ("documents", "position_ids", "decoder_documents"):
                del batch[name]
            if self.counted:
                del batch["decoder_position_ids"]
            if bool(outside.any()):
                batch["attention_mask"] = (~outside).to(torch.int64)
        return batch

    @property
    def counted(self) -> bool:
        """Whether what the decoder reads of a text stands at 0, 1, ..."""
        return True

    def loss(self, model: Model, batch: base.Batch, nets: base.Nets = base.NO_NETS) -> base.Loss:
        mask, documents = batch.get("attention_mask"), batch.get("documents")
        if self.single:
            inputs = Inputs(
                batch["input_ids"],
                position_ids=base.position_ids(model, batch),
                documents=documents,
                prefix=batch["prefix"],
            )
            hidden = model.decode(inputs)
            return base.Loss({self.main: self.token_loss(model, hidden, batch)}, self.counts(batch))
        source = Inputs(batch["input_ids"], mask, position_ids=base.position_ids(model, batch), documents=documents)
        target = Inputs(
            batch["decoder_input_ids"],
            position_ids=base.position_ids(model, batch, "decoder_position_ids"),
            documents=batch.get("decoder_documents"),
            encoder_hidden=model.encode(source),
            encoder_mask=mask,
            encoder_documents=documents,
        )
        hidden = model.decode(target)
        return base.Loss({self.main: self.token_loss(model, hidden, batch)}, self.counts(batch))


def padded(parts: Sequence[base.Ints], size: int, value: int) -> base.Ints:
    """The parts one after another, and `value` up to `size`."""
    row = np.full(size, value, dtype=np.int64)
    joined = np.concatenate(parts)
    row[: len(joined)] = joined
    return row


def numbers(parts: Sequence[base.Ints]) -> list[base.Ints]:
    """For each token of the parts, the number of its part."""
    return [np.full(len(part), i) for i, part in enumerate(parts)]
