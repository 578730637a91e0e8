"""Predict tokens in a drawn order (Yang et al. 2019, arXiv:1906.08237; the released data_utils.py)."""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stemma.data import random as draw
from stemma.data.mixture import Mixed
from stemma.declare import objectives as declared
from stemma.errors import UsageError
from stemma.nn.inputs import Inputs, StreamInputs
from stemma.nn.model import IGNORED, Model
from stemma.nn.parts import Arch
from stemma.objectives import base, purposes

SEGMENTS = 0, 1, 2, 3  # of what comes first with A, of B, of cls, of padding


class Place(NamedTuple):
    """Where a row begins: `offset` tokens into a document of the order, which is read from its end if `backward`."""

    slot: int
    offset: int
    backward: bool


class Line:
    """The documents of a view, in order, as one line of tokens that can be read from either end."""

    def __init__(self, view: base.View, order: base.Order | Mixed, end: list[int], apart: bool, once: bool) -> None:
        self.view, self.order, self.end, self.apart = view, order, end, apart
        self.last = order.documents if once else None

    def length(self, document: int) -> int:
        return len(self.view[document]) + len(self.end)

    def slots(self, slot: int, step: int) -> Iterator[int]:
        """`slot` and those after it in a direction, as far as one text goes on in the other."""
        yield slot
        while not self.apart:
            slot += step
            if slot < 0 or slot == self.last:
                return
            yield slot

    def rest(self, place: Place, enough: int) -> int:
        """Tokens from a place on, at most `enough`."""
        found = -place.offset
        for slot in self.slots(place.slot, -1 if place.backward else 1):
            found += self.length(self.order[slot][0])
            if found >= enough:
                return enough
        return found

    def read(self, slot: int, backward: bool) -> tuple[base.Ints, base.Ints]:
        """A document's tokens, and where its sentences begin (read from the end: where they end)."""
        document = self.order[slot][0]
        tokens = np.concatenate([np.asarray(self.view[document], dtype=np.int64), np.asarray(self.end, dtype=np.int64)])
        starts = np.unique([0, *self.view.sentences(document), len(tokens) - len(self.end)]).astype(np.int64)
        if backward:
            return tokens[::-1], np.unique([0, *(len(tokens) - starts[1:])]).astype(np.int64)
        return tokens, starts

    def around(self, place: Place, before: int, after: int) -> tuple[base.Ints, base.Ints, base.Ints]:
        """Up to `before` tokens before a place, up to `after` from it on, and where sentences begin among these."""
        step = -1 if place.backward else 1
        texts: list[base.Ints] = []
        cuts: list[base.Ints] = []
        size = -place.offset
        for slot in self.slots(place.slot, step):
            tokens, starts = self.read(slot, place.backward)
            texts.append(tokens)
            cuts.append(starts + size)
            size += len(tokens)
            if size >= after:
                break
        text = np.concatenate(texts)
        past = [text[: place.offset]]
        size = place.offset
        for slot in self.slots(place.slot, -step):
            if size >= before:
                break
            if slot != place.slot:
                past.insert(0, self.read(slot, place.backward)[0])
                size += len(past[0])
        known = np.concatenate(past)
        text, edges = text[place.offset : place.offset + after], np.concatenate(cuts)
        return known[max(0, len(known) - before) :], text, edges[(edges > 0) & (edges < len(text))]


class Permuted(base.Objective, of=declared.PLM):
    """Rows of `reuse` tokens and, after them, `A sep B sep cls`, where B follows A half of the time and else is of
    another document (a distinction that nothing predicts). The next row begins `reuse` tokens later. With `both` every
    row comes twice: once forward, once with the documents read from their ends and distances counted the other way, so
    that half of the rows run backwards. Unless `mixed`, all but B is of one document; else documents run on, each
    closed by an end token.

    Targets: a span of n tokens starts at a word's beginning, at a place drawn from n * `share` tokens; single tokens
    fill up where the spans are too few. Orders are drawn within windows. A target is seen by what comes later in the
    order, sep and cls likewise; all other tokens are seen by all and see no target (released: `_local_perm`).

    Memory: the `memory` tokens that stand before a row, run through the content stream without gradient and with the
    present weights. The released pipeline keeps the states of earlier steps, which older weights made, and whose rows
    had seen some of what a later row must predict; here a row needs nothing but its text, at the price of that pass.
    All draws are functions of (seed, document, epoch, offset).
    """

    structures = ("encoder",)
    roles = ("sep",), ("cls",), ("eos",)

    def __init__(self, spec: declared.PLM, setting: base.Setting) -> None:
        super().__init__(spec, setting)
        self.sep, self.cls = self.special_id("sep"), self.special_id("cls")
        self.end = [self.special_id("eos")] if self.mixed else []
        self.tail = 3 if spec.pairs else 2
        self.room = self.context - spec.reuse - self.tail  # for A and B
        if self.room < 2:
            raise UsageError(
                f"a row of {self.context} tokens has no room for text beside objective.reuse={spec.reuse} and "
                f"{self.tail} special tokens; lower objective.reuse or lengthen the context"
            )
        self.starts = words(self.tokenizer)
        weights = 1.0 / np.arange(1, spec.span + 1)
        self.weights = weights / weights.sum()

    @classmethod
    def incompatible_reason(cls, spec: declared.PLM, arch: Arch) -> str | None:
        if arch.streams is None:
            return (
                "PLM asks a second stream for its predictions, and this network has one (arch.streams is none); begin "
                "from xlnet, or set arch.streams=Streams() and arch.position=RelativeSinusoidal()"
            )
        if arch.streams.reuse is not None:
            return (
                f"PLM makes its own memory; arch.streams.reuse={arch.streams.reuse} would cut it, and must be none "
                "(objective.reuse says how rows overlap)"
            )
        return super().incompatible_reason(spec, arch)

    # ------------------------------------------------------------ rows

    def lazy_examples(self, view: base.View, cursor: base.Cursor = base.START, once: bool = False) -> base.LazyExamples:
        order = self.order(view, once)
        line = Line(view, order, self.end, not self.mixed, once)
        ways = 2 if self.spec.both else 1  # an offset counts a place forward, then the same backward
        packer = base.Packer(order, lambda d: ways * line.length(d), lambda d, _: np.asarray(view[d])[None], once)
        line.order = order = packer.order
        here = packer.seek(cursor)
        while here is not None:
            offset, way = divmod(here.offset, ways)
            place = Place(here.slot, offset, way == 1)
            if way + 1 < ways:
                follow: base.Cursor | None = base.Cursor(here.slot, here.offset + 1)
            else:
                follow = self.after(packer, line, place, ways)
            yield partial(self.example, view, line, place), follow or base.Cursor(order.documents)
            here = follow

    def after(self, packer: base.Packer, line: Line, place: Place, ways: int) -> base.Cursor | None:
        """The place of the next row."""
        whole = self.spec.reuse + self.room
        full = self.mixed or line.rest(Place(place.slot, place.offset, False), whole) == whole
        slot, offset = place.slot, place.offset + ((self.spec.reuse or self.room) if full else whole)
        if self.mixed:
            while (size := line.length(line.order[slot][0])) <= offset:
                slot, offset = slot + 1, offset - size
                if slot == line.last:
                    return None
        return packer.seek(base.Cursor(slot, ways * offset))

    def example(self, view: base.View, line: Line, place: Place) -> base.Example:
        """The row that begins at a place."""
        spec = self.spec
        document, epoch = line.order[place.slot]
        rng = draw.generator(self.seed, purposes.PERMUTE, document, epoch, place.offset, int(place.backward))
        memory, text, edges = line.around(place, spec.memory, spec.reuse + 2 * self.room)
        first = spec.reuse
        if len(text) < spec.reuse + self.room:  # what is left of a text is shared out
            first = len(text) * spec.reuse // (spec.reuse + self.room)
        ends = len(text) < spec.reuse + self.room
        a, b = self.segments(view, document, text[first:], edges[edges > first] - first, ends, place.backward, rng)
        sep, cls = [self.sep], [self.cls]
        last = np.concatenate([a, sep, b, sep, cls] if spec.pairs else [a, sep, cls]).astype(np.int64)
        tokens = np.concatenate([text[:first], last])
        sizes = [first + len(a) + 1, len(b) + 1, 1] if spec.pairs else [first + len(a) + 1, 0, 1]
        chosen = self.chosen(text[:first], last, place.backward, rng)
        functional = (tokens == self.sep) | (tokens == self.cls)
        order = np.where(chosen | functional, self.ranks(len(tokens), rng), -1)
        gap = self.context - len(tokens)
        missing = spec.memory - len(memory)

        def pad(x: base.Ints, value: int, by: int = gap) -> base.Ints:
            return np.pad(x.astype(np.int64), (by, 0), constant_values=value)

        return {
            "input_ids": pad(tokens, self.padding),
            "labels": pad(np.where(chosen, tokens, IGNORED), IGNORED),
            "order": pad(order, -1),
            "token_type_ids": pad(np.repeat(SEGMENTS[:3], sizes), SEGMENTS[3]),
            "attention_mask": pad(np.ones_like(tokens), 0),
            "memory_ids": pad(memory, self.padding, missing),
            "memory_mask": pad(np.ones_like(memory), 0, missing),
            "backward": np.asarray(place.backward, dtype=np.int64),
        }

    def segments(
        self,
        view: base.View,
        document: int,
        text: base.Ints,
        edges: base.Ints,
        ends: bool,
        backward: bool,
        rng: np.random.Generator,
    ) -> tuple[base.Ints, base.Ints]:
        """A and B: whole sentences of `text`, cut at one of its `edges`, or up to there and text of another document;
        from the longer one tokens fall off at the end until both have room. Where the text `ends` here, all of it is
        in A or in both."""
        enough = edges[edges >= self.room]
        text = text[: int(enough[0])] if len(enough) else text
        if not self.spec.pairs:
            return text[: self.room], text[:0]
        cuts = edges[edges < min(self.room, len(text))]
        end = int(rng.choice(cuts)) if len(cuts) else len(text)
        a, b = text[:end], text[end:]
        if not len(cuts) or rng.random() < 0.5:
            if ends:
                a, b = text, text[:0]
                if len(text) >= self.room:
                    return a, b
            b = self.strange(view, document, max(1, self.room - len(a)), rng)
            b = (b[: self.room - len(a)] if ends else b)[:: -1 if backward else 1]
        keep_a, keep_b = len(a), len(b)
        over = keep_a + keep_b - self.room
        if over > 0:  # the longer gives way until both are equal, then both in turn, B first
            cut = min(over, abs(keep_a - keep_b))
            keep_a, keep_b = (keep_a - cut, keep_b) if keep_a > keep_b else (keep_a, keep_b - cut)
            keep_a, keep_b = keep_a - (over - cut) // 2, keep_b - (over - cut + 1) // 2
        return a[:keep_a], b[:keep_b]

    def strange(self, view: base.View, document: int, wanted: int, rng: np.random.Generator) -> base.Ints:
        """About `wanted` tokens of another document, from the beginning of a sentence on; where documents run on, of
        those after it too."""
        other = document
        for _ in range(10):
            other = int(rng.integers(len(view)))
            if other != document and len(view[other]):
                break
        other = other if len(view[other]) else document
        tokens = np.asarray(view[other], dtype=np.int64)
        starts = np.asarray(view.sentences(other), dtype=np.int64)
        early = starts[starts <= max(0, len(tokens) - wanted)]
        found = [tokens[int(rng.choice(early)) if len(early) else 0 :]]
        while self.mixed and sum(map(len, found)) < wanted:
            other = (other + 1) % len(view)
            found += [np.asarray(self.end, dtype=np.int64), np.asarray(view[other], dtype=np.int64)]
        return np.concatenate(found)[: self.room]

    # ------------------------------------------------------------ targets and orders

    def chosen(self, first: base.Ints, last: base.Ints, backward: bool, rng: np.random.Generator) -> np.ndarray:
        """Which tokens are targets: so many of what comes first, so many of the rest."""
        half = self.spec.targets // 2
        parts = []
        for part, most in ((first, self.spec.targets - half), (last, half)):
            part = part[::-1] if backward else part  # words begin where the text has them begin
            free = ~np.isin(part, self.special)
            goal = min(most, round(len(part) / self.spec.share), int(free.sum()))
            mask = self.runs(part, free, goal, rng)
            parts.append(mask[::-1] if backward else mask)
        found = np.concatenate(parts)
        if not found.any():
            plain = np.flatnonzero(~np.isin(np.concatenate([first, last]), self.special))
            found[rng.choice(plain, size=min(1, len(plain)), replace=False)] = True
        return found

    def runs(self, tokens: base.Ints, free: np.ndarray, goal: int, rng: np.random.Generator) -> np.ndarray:
        """`goal` of the `free` tokens, in spans as far as these go."""
        mask = np.zeros(len(tokens), dtype=bool)
        at, left = 0, goal
        while at < len(tokens) and left > 0:
            n = min(int(rng.choice(self.spec.span, p=self.weights)) + 1, left)
            around = n * self.spec.share
            before = int(rng.integers(around))
            begin = at + before
            while begin < len(tokens) and not self.starts[tokens[begin]]:
                begin += 1
            end = begin + n  # n pieces and not n words: so the released code counts
            if end >= len(tokens):
                break
            mask[begin:end] = free[begin:end]
            left -= int(free[begin:end].sum())
            at = end + around - before
        rest = np.flatnonzero(free & ~mask)
        mask[rng.choice(rest, size=min(max(left, 0), len(rest)), replace=False)] = True
        return mask

    def ranks(self, length: int, rng: np.random.Generator) -> base.Ints:
        """A place in the order for each token: later windows come later."""
        window = self.spec.window
        parts = [rng.permutation(min(window, length - i)) + i for i in range(0, length, window)]
        return np.concatenate(parts).astype(np.int64)

    # ------------------------------------------------------------ batches

    def collate(self, examples: Sequence[base.Example]) -> base.Batch:
        names = ("input_ids", "token_type_ids", "attention_mask", "order", "backward", "memory_ids", "memory_mask")
        batch = base.stack(examples, *names)
        labels = torch.full((len(examples), self.spec.targets), IGNORED, dtype=torch.int64)
        places = torch.full_like(labels, -1)
        for i, example in enumerate(examples):
            (at,) = np.nonzero(example["labels"] != IGNORED)
            places[i, : len(at)] = torch.from_numpy(at)
            labels[i, : len(at)] = torch.from_numpy(example["labels"][at])
        batch |= base.targets(labels) | {"places": places}
        if bool(batch["attention_mask"].all()):
            del batch["attention_mask"]
        if not bool(batch["memory_mask"].any()):
            del batch["memory_ids"], batch["memory_mask"]
        return batch

    def loss(self, model: Model, batch: base.Batch, nets: base.Nets = base.NO_NETS) -> base.Loss:
        ids, places = batch["input_ids"], batch["places"]
        asked = places >= 0
        mapping = torch.zeros(*places.shape, ids.shape[1], device=ids.device)
        mapping.scatter_(2, places.clamp_min(0)[..., None], asked[..., None].to(mapping.dtype))
        streams = StreamInputs(
            perm_mask=hidden_from(batch["order"], mapping.sum(1) > 0),
            target_mapping=mapping,
            mems=self.memory(model, batch),
            absent=1 - batch["memory_mask"] if "memory_mask" in batch else None,
            backward=batch["backward"] if self.spec.both else None,
        )
        state = model.state(Inputs(ids, batch.get("attention_mask"), batch["token_type_ids"], streams=streams))
        return base.Loss({self.main: self.token_loss(model, state.hidden, batch)}, self.counts(batch))

    def memory(self, model: Model, batch: base.Batch) -> list[Tensor] | None:
        """The content stream's states of the tokens before each row, B M D of each layer."""
        if "memory_ids" not in batch:
            return None
        streams = StreamInputs(backward=batch["backward"] if self.spec.both else None)
        ids = batch["memory_ids"]
        with torch.no_grad():
            model.state(Inputs(ids, batch["memory_mask"], torch.zeros_like(ids), streams=streams))
        return streams.new_mems


def hidden_from(order: Tensor, target: Tensor) -> Tensor:
    """B T T, 1 where token i does not see token j, of each token's rank in the `order` (B T; -1: seen by all) and of
    which tokens are a `target` (B T). A target does not see itself; sep and cls do."""
    reach = torch.where(target, order, order + 1)
    return ((reach[:, :, None] <= order[:, None, :]) & (order >= 0)[:, None, :]).to(torch.int64)


def words(tokenizer: object) -> np.ndarray:
    """For each id whether its piece begins a word: with the sign for a space, or as punctuation or a special token."""
    pieces = tokenizer.tokens(range(tokenizer.vocab_size))  # type: ignore[attr-defined]
    return np.asarray(
        [p.startswith(("\u2581", "<")) or (len(p) == 1 and p in string.punctuation) for p in pieces], dtype=bool
    )
