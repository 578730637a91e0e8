"""Translation language modelling (Lample & Conneau 2019, arXiv:1901.07291, sections 3.3 and 3.5).

Batches are in turn of masked tokens in rows of one language, and of pairs: a sentence and its translation side by side,
`</s> x </s> </s> y </s>`, the second one numbered from 0 again, every token with its language. A masked word can be
found in either half.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from stemma.data import random as draw
from stemma.data.mixture import tempered
from stemma.declare import objectives as declared
from stemma.errors import DataError
from stemma.nn.model import IGNORED
from stemma.objectives import base
from stemma.objectives.languages import Batches, Streams, numbers
from stemma.objectives.mlm import Masked, replace
from stemma.objectives.units import Choice

TRANSLATION = 104  # purpose of draws


class Pairs:
    """The pairs of translations in a view, packed into rows of `context` tokens.

    `components`: for each two languages the rows, each a list of (document, document). A sentence keeps at most
    `half` tokens."""

    def __init__(self, view: Any, context: int) -> None:
        self.half = (context - 4) // 2
        found: dict[tuple[int, int], list[tuple[int, int]]] = {}
        members: dict[int, list[int]] = {}
        for i, group in enumerate(np.asarray(getattr(view, "groups", ())).tolist()):
            if group >= 0 and len(view[i]):
                members.setdefault(group, []).append(i)
        languages = np.asarray(getattr(view, "language_ids", ()))
        for group in members.values():
            for a, b in itertools.combinations(group, 2):
                if languages[a] != languages[b]:
                    key = (int(languages[a]), int(languages[b]))
                    found.setdefault((min(key), max(key)), []).append((a, b))
        if not found:
            raise DataError(
                "the text holds no translations (documents of one group in two languages), which this objective needs; "
                "train on builtin:parallel or files such as talks.en|talks.de, or set objective=MLM"
            )
        self.counts = [len(pairs) for pairs in found.values()]
        self.components = [self._packed(view, pairs, context) for pairs in found.values()]

    def _packed(self, view: Any, pairs: list[tuple[int, int]], context: int) -> list[list[tuple[int, int]]]:
        rows: list[list[tuple[int, int]]] = []
        room = 0
        for a, b in pairs:
            size = min(len(view[a]), self.half) + min(len(view[b]), self.half) + 4
            if size > room:
                rows.append([])
                room = context
            rows[-1].append((a, b))
            room -= size
        return rows


class Translated(Masked, of=declared.TLM):
    """Batches of masked text in one language and of masked pairs of translations, by turns.

    Pairs of languages are sampled like languages (the paper: "a similar approach"), in random direction. A row holds as
    many pairs as fit; they do not see each other. Evaluation uses the text in one language.
    """

    def __init__(self, spec: declared.TLM, setting: base.Setting) -> None:
        super().__init__(declared.MLM(spec.rate, spec.masked, spec.random), setting)

    def lazy_examples(self, view: base.View, cursor: base.Cursor = base.START, once: bool = False) -> base.LazyExamples:
        if once:
            yield from super().lazy_examples(view, cursor, once)
            return
        pairs = Pairs(view, self.context)
        langs = numbers(view, self.setting.text.languages)
        packer = base.Packer(self.order(view, once), lambda d: len(view[d]) + 2, self.piece(view), once, langs)
        streams = Streams(self.setting, view, packer.length, self.context, self.context)
        rows = self.setting.rows
        shares = tempered(pairs.counts, self.setting.sampling.alpha)
        sizes = [len(c) for c in pairs.components]
        batches = Batches(self.seed + TRANSLATION, sizes, shares, [None] * len(sizes), rows)
        for row in itertools.count(cursor.slot):
            batch, place = divmod(row, rows)
            turn = batch // 2 * rows + place
            if batch % 2 == 0:
                yield partial(self.example, packer, streams.chunk(turn)), base.Cursor(row + 1)
            else:
                component, item, epoch = batches[turn]
                chosen = pairs.components[component][item]
                yield partial(self.pairs, view, langs, chosen, epoch, pairs.half), base.Cursor(row + 1)

    def pairs(
        self, view: base.View, langs: base.Ints | None, chosen: list[tuple[int, int]], epoch: int, half: int
    ) -> base.Example:
        """A row of pairs of translations with their masking."""
        inputs = np.full(self.context, self.padding, dtype=np.int64)
        labels = np.full(self.context, IGNORED, dtype=np.int64)
        documents = np.full(self.context, base.PAD_DOCUMENT, dtype=np.int64)
        positions, languages = np.zeros(self.context, dtype=np.int64), np.zeros(self.context, dtype=np.int64)
        fill = 0
        for number, (first, second) in enumerate(chosen):
            rng = draw.generator(self.seed, TRANSLATION, first, second, epoch)
            for document in (second, first) if rng.random() < 0.5 else (first, second):
                text = np.asarray(view[document], dtype=np.int64)[:half]
                here = slice(fill, fill + len(text) + 2)
                inputs[here] = [self.cls, *text, self.sep]
                documents[here], positions[here] = number, np.arange(len(text) + 2)
                if langs is not None:
                    languages[here] = langs[document]
                fill += len(text) + 2
            both = np.flatnonzero((documents == number) & ~np.isin(inputs, self.special))
            n = min(len(both), max(1, int(self.spec.rate * len(both) + rng.random())))
            replace(self, inputs, labels, Choice(rng.permutation(both)[:n]), rng, self.plain)
        row = {
            "input_ids": inputs,
            "labels": labels,
            "documents": documents,
            "position_ids": positions,
            "attention_mask": (documents >= 0).astype(np.int64),
        }
        return row if langs is None else row | {"langs": languages}

    def collate(self, examples: Sequence[base.Example]) -> base.Batch:
        if not any(restarts(e["documents"], e["position_ids"]) for e in examples):
            return super().collate(examples)
        batch = base.stack(examples, *examples[0])
        batch |= base.targets(batch.pop("labels"))
        del batch["attention_mask"]  # padding is a document of its own
        return batch


def restarts(documents: base.Ints, positions: base.Ints) -> bool:
    """Whether the places of a document are numbered from 0 twice: it is a pair of translations."""
    inside = (documents[1:] == documents[:-1]) & (documents[1:] >= 0)
    return bool((inside & (positions[1:] < positions[:-1])).any())
