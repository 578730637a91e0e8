"""Autoregressive blank infilling (Du et al. 2021, arXiv:2103.10360, section 2.1; the released blocklm_utils.py)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from stemma.data import random as draw
from stemma.declare import objectives as declared
from stemma.declare.family import BLANK_NAMES as NAMES
from stemma.declare.family import Text
from stemma.errors import UsageError
from stemma.nn.inputs import Inputs
from stemma.nn.model import IGNORED, Model
from stemma.nn.parts import Prefix
from stemma.objectives import base, purposes

SCRAP = 8  # tokens of a long text that are worth a place at the end of a row


class Holed(NamedTuple):
    """A text of `parts` without its `lost` runs (K 2: start and end, by rising start). `blank`: the token that replaces
    each; `order`: in which order they follow."""

    parts: list[base.Slice]
    lost: base.Ints
    blank: int
    order: base.Ints

    @property
    def tokens(self) -> int:
        """Of the text as it was."""
        return sum(part.tokens for part in self.parts)


class BlankInfilling(base.Objective, of=declared.Blanks):
    """Rows of texts, each written `cls A B`. A is the text with a blank in place of every lost run; B is the runs in
    random order, each between bos and eos. All tokens of B but bos are predicted.

    A text is (a part of) a document; with `mixed`, documents run together, one text a row. Under a prefix mask the
    tokens of A see all of A, and B is causal; other masks apply as they are. Two-column positions: A has (0, 0), (1,
    0), ...; a run whose blank stands at m has (m, 1), (m, 2), ... from bos on. One column and a prefix mask (GLM-130B):
    a run has position m throughout, except the run of the end of the text, which counts on; under other masks all count
    on. `decoding.blanks` does the same. What a text loses is a function of (seed, document, epoch, offset) and its
    length.
    """

    structures = ("decoder",)
    roles = ("bos",), ("eos",)

    def __init__(self, spec: declared.Blanks, setting: base.Setting) -> None:
        super().__init__(spec, setting)
        self.start, self.end = self.special_id("bos"), self.special_id("eos")
        named = setting.tokenizer.cls_id if setting.text.cls is not None else None
        self.before: base.Ints = np.asarray([] if named is None else [named], dtype=np.int64)
        self.blanks = [self._blank(name) for name in setting.text.blanks or NAMES]

    @classmethod
    def tokens(cls, spec: declared.Blanks, text: Text) -> tuple[str, ...]:
        return text.blanks or NAMES

    def _blank(self, name: str) -> int:
        found = self.tokenizer.id(name)
        if found is None:
            raise UsageError(f"this objective needs the token {name}, which stands for a blank; the tokenizer has none")
        return int(found)

    # ------------------------------------------------------------ what falls out

    def hole(self, view: base.View, parts: list[base.Slice]) -> Holed:
        """What a text loses, from its length and the places of its sentences alone."""
        spec, size = self.spec, sum(part.tokens for part in parts)
        rng = draw.generator(self.seed, purposes.BLANK, *parts[0][:3])
        kind = rng.random()
        if kind < spec.suffix:
            lost, blank = self._long(size, rng), self.blanks[-1]
        else:
            edges = self._edges(view, parts) if kind < spec.suffix + spec.sentences else []
            if len(edges) > 2:  # more than one sentence: else nothing would be left
                lost, blank = self._sentences(edges, rng), self.blanks[len(self.blanks) // 2]
            else:
                lost, blank = self._short(size, rng), self.blanks[0]
        runs = np.asarray(lost, dtype=np.int64)
        order = rng.permutation(len(runs)) if spec.shuffled else np.arange(len(runs))
        return Holed(parts, runs, blank, order)

    def _short(self, size: int, rng: np.random.Generator) -> list[tuple[int, int]]:
        """Runs of Poisson lengths, 0 left out, until `rate` of the text is gone, with a token at least between two;
        their places are drawn and sorted."""
        lengths: list[int] = []
        wanted, gone = max(1, int(self.spec.rate * size)), 0
        while gone < wanted:
            room = size - gone - len(lengths) - (1 if size > 1 else 0)  # a token before each, and one that is kept
            if room < 1 and lengths:
                break
            length = 0
            while length == 0:
                length = int(rng.poisson(self.spec.mean))
            lengths.append(max(1, min(length, room)))
            gone += lengths[-1]
        free = size - gone - (len(lengths) - 1)
        places = np.sort(rng.integers(0, free + 1, size=len(lengths)))
        lengths = [lengths[i] for i in rng.permutation(len(lengths))]
        starts = places + np.arange(len(lengths)) + np.cumsum([0, *lengths[:-1]])
        return [(int(a), int(a) + n) for a, n in zip(starts, lengths, strict=True)]

    def _sentences(self, edges: list[int], rng: np.random.Generator) -> list[tuple[int, int]]:
        """Whole sentences until `rate` of the text is gone; one stays."""
        wanted, gone = max(1, int(self.spec.rate * edges[-1])), 0
        runs = list(itertools.pairwise(edges))
        chosen = []
        for i in rng.permutation(len(runs))[:-1]:
            if gone >= wanted:
                break
            chosen.append(runs[i])
            gone += runs[i][1] - runs[i][0]
        return sorted(chosen)

    def _long(self, size: int, rng: np.random.Generator) -> list[tuple[int, int]]:
        """One run of at least the share `least`, at the end or, at times, anywhere."""
        low = max(1, min(int(self.spec.least * size), size - 2))
        length = int(rng.integers(low, max(low, size - 2) + 1))
        start = size - length
        if rng.random() < self.spec.inside:
            start = int(rng.integers(0, start + 1))
        return [(start, start + length)]

    def _edges(self, view: base.View, parts: list[base.Slice]) -> list[int]:
        """Where the sentences of a text begin, and its end."""
        edges: set[int] = set()
        done = 0
        for part in parts:
            starts = np.asarray(view.sentences(part.document), dtype=np.int64) - part.start
            edges |= {done, done + part.tokens, *(done + int(s) for s in starts if 0 < s < part.tokens)}
            done += part.tokens
        return sorted(edges)

    # ------------------------------------------------------------ rows

    def lazy_examples(self, view: base.View, cursor: base.Cursor = base.START, once: bool = False) -> base.LazyExamples:
        def piece(document: int, _: int) -> base.Ints:
            return np.asarray(view[document], dtype=np.int64)[None]

        packer = base.Packer(self.order(view, once), lambda d: len(view[d]), piece, once)
        here = packer.seek(cursor)
        while here is not None:
            texts: list[Holed] = []
            room = self.context
            at: base.Cursor | None = here
            while at is not None and not (self.mixed and texts):
                text = self._fit(view, packer, at, room)
                if text is None:
                    break
                last = text.parts[-1]
                rest = packer.length(last.document) - last.start - last.tokens
                if rest and texts and text.tokens < SCRAP:
                    break
                texts.append(text)
                room -= self._size(text)
                at = self._after(packer, at, text.tokens)
            yield partial(self.row, packer, texts), at or base.Cursor(packer.order.documents)
            here = at

    def _size(self, text: Holed) -> int:
        """Tokens of a text in its row: a blank and a bos for every run beside its own."""
        return len(self.before) + text.tokens + 2 * len(text.lost)

    def _fit(self, view: base.View, packer: base.Packer, at: base.Cursor, room: int) -> Holed | None:
        """The longest text from `at` on that fits, as far as taking off what is too much finds it."""
        wanted = room - len(self.before) - 2
        while wanted >= 1:
            parts = self._parts(packer, at, wanted)
            text = self.hole(view, parts)
            over = self._size(text) - room
            if over <= 0:
                return text
            wanted = text.tokens - over
        return None

    def _parts(self, packer: base.Packer, at: base.Cursor, size: int) -> list[base.Slice]:
        """`size` tokens from `at` on, if there are so many: of the document, or, `mixed`, of those after it too."""
        parts: list[base.Slice] = []
        here: base.Cursor | None = at
        while here is not None and size > 0 and not (parts and not self.mixed):
            document, epoch = packer.order[here.slot]
            take = min(size, packer.length(document) - here.offset)
            parts.append(base.Slice(document, epoch, here.offset, take))
            size -= take
            here = packer.seek(base.Cursor(here.slot, here.offset + take))
        return parts

    def _after(self, packer: base.Packer, at: base.Cursor, tokens: int) -> base.Cursor | None:
        """The place `tokens` further on."""
        here: base.Cursor | None = at
        while here is not None and tokens > 0:
            take = min(tokens, packer.length(packer.order[here.slot][0]) - here.offset)
            tokens -= take
            here = packer.seek(base.Cursor(here.slot, here.offset + take))
        return here

    def row(self, packer: base.Packer, texts: Sequence[Holed]) -> base.Example:
        """One example of texts, padded to `context`."""
        columns: dict[str, list[base.Ints]] = {}
        at = 0
        for number, text in enumerate(texts):
            tokens = np.concatenate(
                [packer.read(p.document, p.epoch)[0, p.start : p.start + p.tokens] for p in text.parts]
            )
            written = self.write(tokens, text)
            size = len(written["input_ids"])
            written["prefix"] = np.full(size, at, dtype=np.int64) + written["prefix"]
            written["documents"] = np.full(size, number, dtype=np.int64)
            for name, values in written.items():
                columns.setdefault(name, []).append(values)
            at += size
        gaps = {"input_ids": self.padding, "labels": IGNORED, "documents": base.PAD_DOCUMENT}
        return {
            name: np.pad(np.concatenate(values), (0, self.context - at), constant_values=gaps.get(name, 0))
            for name, values in columns.items()
        }

    def write(self, tokens: base.Ints, text: Holed) -> dict[str, base.Ints]:
        """`cls A B` with labels; of each token its place in the text, in its run (0 in A), and where single positions
        have it under a prefix mask; and the length of `cls A`."""
        kept: list[Any] = [self.before]
        holes: list[int] = []
        done, size = 0, len(self.before)
        for start, end in text.lost:
            kept += [tokens[done:start], [text.blank]]
            holes.append(size + int(start) - done)
            size = holes[-1] + 1
            done = int(end)
        context: base.Ints = np.concatenate([*kept, tokens[done:]]).astype(np.int64)
        n = len(context)
        ids, labels = [context], [np.full(n, IGNORED, dtype=np.int64)]
        places, blocks, lines = [np.arange(n)], [np.zeros(n, dtype=np.int64)], [np.arange(n)]
        written = n
        on = len(self.blanks) > 1 and text.blank == self.blanks[-1]
        for k in text.order:
            run = tokens[text.lost[k, 0] : text.lost[k, 1]]
            more = len(run) + 1
            ids.append(np.concatenate([[self.start], run]))
            labels.append(np.concatenate([run, [self.end]]))
            places.append(np.full(more, holes[k]))
            blocks.append(np.arange(1, more + 1))
            lines.append(np.arange(written, written + more) if on else np.full(more, holes[k]))
            written += more
        found = {"input_ids": ids, "labels": labels, "places": places, "blocks": blocks, "lines": lines}
        whole = {name: np.concatenate(values).astype(np.int64) for name, values in found.items()}
        return whole | {"position_ids": np.arange(written), "prefix": np.full(written, n, dtype=np.int64)}

    # ------------------------------------------------------------ batches

    def collate(self, examples: Sequence[base.Example]) -> base.Batch:
        batch = base.stack(examples, *examples[0])
        batch |= base.targets(batch.pop("labels"))
        if not base.several(examples):  # padding at the end needs no mask: nothing looks back at it
            del batch["documents"], batch["position_ids"]
        return batch

    def loss(self, model: Model, batch: base.Batch, nets: base.Nets = base.NO_NETS) -> base.Loss:
        inputs = Inputs(
            batch["input_ids"],
            position_ids=self.positions(model, batch),
            documents=batch.get("documents"),
            prefix=batch["prefix"] if isinstance(model.arch.mask, Prefix) else None,
            contexts=base.alone(model, batch),
        )
        hidden = model.decode(inputs)
        return base.Loss({self.main: self.token_loss(model, hidden, batch)}, self.counts(batch))

    @staticmethod
    def positions(model: Model, batch: base.Batch) -> Tensor | None:
        """As the model counts: in pairs, or singly in the manner of its mask."""
        assert model.decoder is not None
        if model.decoder.position.columns > 1:
            return torch.stack([batch["places"], batch["blocks"]], -1)
        if isinstance(model.arch.mask, Prefix):
            return batch["lines"]
        return base.position_ids(model, batch)
