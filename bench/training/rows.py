"""Token rows that all sides are fed: full, random, held in memory before the clock starts."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from stemma.declare import objectives as declared
from stemma.nn.inputs import Inputs
from stemma.nn.model import IGNORED, Model
from stemma.objectives import NO_NETS, Cursor, Loss, Objective, Setting, objective
from stemma.objectives.base import stack, targets
from training import CONTEXT, VOCAB

HELD = 512  # rows


@dataclass(frozen=True)
class Shape:
    """Rows of a step, tokens read of each and, for an encoder-decoder, tokens written."""

    rows: int = 16
    context: int = CONTEXT
    goal: int = 0

    @property
    def tokens(self) -> int:
        """Tokens a step, of what is read."""
        return self.rows * self.context


def shape_of(name: str) -> Shape:
    """The batch of a row of the table. T5's own rows are 512 tokens read and 114 written (Raffel et al. 2020, section
    3.1.4: 15 % of them in spans of 3); `t5` is a quarter of that, `t5-114` the whole."""
    match name:
        case "t5":
            return Shape(goal=32)
        case "t5-114":
            return Shape(4, 512, 114)
    return Shape()


class Held(Objective):
    """Rows that are made once and come again and again."""

    held: list[Any]
    shape: Shape

    def size(self, view: Any) -> int:
        return self.shape.context

    def lazy_examples(self, view: Any, cursor: Cursor = Cursor(), once: bool = False) -> Iterator[Any]:
        for at in itertools.count(cursor.offset):
            yield functools.partial(self.held.__getitem__, at % len(self.held)), Cursor(0, at + 1)


class Rows(Held):
    """Rows that hold nothing but text, with the targets of their structure."""

    def __init__(self, kind: str, shape: Shape, seed: int, vocab: int = VOCAB) -> None:
        self.setting = Setting(None, None, shape.context, seed)  # type: ignore[arg-type]
        self.kind, self.shape, self.vocab, self.rng = kind, shape, vocab, np.random.default_rng(seed)
        self.held = [self.row() for _ in range(HELD)]

    def row(self) -> dict[str, Any]:
        def ids(n: int) -> Any:
            return self.rng.integers(10, self.vocab, size=n)

        context = self.shape.context
        row = {"input_ids": ids(context)}
        if self.kind == "decoder":
            row["labels"] = row["input_ids"]
        elif self.kind == "encoder":
            chosen = self.rng.permutation(context)[: round(0.15 * context)]
            row["labels"] = np.full(context, IGNORED)
            row["labels"][chosen] = row["input_ids"][chosen]
            row["input_ids"][chosen] = 3
        else:
            row["labels"] = ids(self.shape.goal)
        return row

    def collate(self, examples: Any) -> Any:
        batch = stack(examples, "input_ids", "labels")
        labels = batch.pop("labels")
        if self.kind == "decoder":
            labels = torch.cat([labels[:, 1:], labels.new_full((len(labels), 1), IGNORED)], 1)
        elif self.kind == "encoder-decoder":
            batch["decoder_input_ids"] = torch.cat([labels.new_zeros(len(labels), 1), labels[:, :-1]], 1)
        return batch | targets(labels)

    def loss(self, model: Model, batch: Any, nets: Any = NO_NETS) -> Loss:
        if self.kind == "decoder":
            hidden = model.decode(batch["input_ids"])
        else:
            hidden = model.encode(batch["input_ids"])
        if self.kind == "encoder-decoder":
            hidden = model.decode(Inputs(batch["decoder_input_ids"], encoder_hidden=hidden))
        return Loss({"token": self.token_loss(model, hidden, batch)}, self.counts(batch))


class Tokens:
    """What an objective asks of a tokenizer, of one whose tokens are numbers."""

    vocab_size = VOCAB
    special_ids = tuple(range(10))
    pad_id, cls_id, sep_id, mask_id, bos_id, eos_id = 0, 1, 2, 3, 4, 5

    def tokens(self, ids: Any) -> list[str]:
        return [f"\u2581{i}" for i in ids]


class View:
    """Documents of one length, of random tokens."""

    def __init__(self, documents: int, size: int, seed: int) -> None:
        self.ids = np.random.default_rng(seed).integers(10, VOCAB, size=(documents, size))
        self.tokens_total = self.ids.size

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> Any:
        return self.ids[i]

    def closed(self, i: int) -> bool:
        return True

    def sentences(self, i: int) -> Any:
        return np.zeros(1, dtype=np.int64)

    def text(self, i: int) -> str:
        return ""


GOALS: dict[str, Any] = {
    "electra": declared.RTD("electra-small-generator-paper"),
    # a quarter of the released 512, 85 targets and 256 tokens to go on from; no memory, which the two would make apart
    "xlnet": declared.PLM(targets=21, window=64, reuse=64, memory=0, pairs=False, both=False),
}


class Own(Held):
    """The rows of one of Stemma's own objectives, all of them full, and its loss."""

    def __init__(self, name: str, shape: Shape, text: Any, seed: int) -> None:
        self.setting = Setting(Tokens(), text, shape.context, seed, structure="encoder")
        self.kind, self.shape = "encoder", shape
        self.own = objective(GOALS[name], self.setting)
        self.main = self.own.main
        rows = self.own.lazy_examples(View(4 * HELD, shape.context - 2, seed))
        made = (make() for make, _ in rows)
        self.held = list(itertools.islice((row for row in made if row["attention_mask"].all()), HELD))

    def tie(self, model: Model, nets: Any) -> None:
        self.own.tie(model, nets)

    def collate(self, examples: Any) -> Any:
        return self.own.collate(examples)

    def counts(self, batch: Any) -> dict[str, int]:
        return self.own.counts(batch)

    def loss(self, model: Model, batch: Any, nets: Any = NO_NETS) -> Loss:
        return self.own.loss(model, batch, nets)

    def batches(self) -> list[Any]:
        """The batches of a pass over the rows."""
        size = self.shape.rows
        return [self.own.collate(self.held[i : i + size]) for i in range(0, len(self.held), size)]
