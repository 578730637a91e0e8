"""Pretraining text beside sampled answers: a second source, with a place of its own."""

from __future__ import annotations

import itertools
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from stemma.alignment.experience import OnlineCursor
from stemma.data import Store, read, shared
from stemma.declare.objectives import CLM
from stemma.nn.model import Model
from stemma.objectives import base, objective
from stemma.train.config import Plan
from stemma.train.device import pick_device
from stemma.train.evaluation import evaluate
from stemma.train.prepare import judged_by
from stemma.train.source import MICRO

FOLDER = "pretraining"  # of a run, with the tokens of its pretraining text


class PretrainingText:
    """Rows of text, learnt as in pretraining: the next token, documents packed into rows. A share of it is held out, as
    of any text.

    The tokens are kept in the folder of the run, so that it goes on with the same text; without a folder they live as
    long as this does."""

    def __init__(self, plan: Plan, setting: base.Setting, data: str, folder: Path | None) -> None:
        self.objective = objective(CLM(), setting)
        if folder is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="stemma-")
            folder = Path(self._temporary.name)
        place = folder / FOLDER
        known = (place / "meta.json").exists()
        store = Store.open(place) if known else shared.build(read(data), setting.tokenizer, place)
        train, held = store.split(plan.train.val_fraction, plan.seed, "block")
        self.view = train.cut(4 * plan.context)
        self.held = judged_by(plan, self.view, held)
        self.micro = plan.train.micro or max(1, MICRO[pick_device(plan).type] // plan.context)

    def batches(self, cursor: OnlineCursor, rows: int) -> tuple[list[base.Batch], OnlineCursor]:
        """The next rows, as micro-batches, and the cursor behind them."""
        place = base.Cursor(cursor.text_slot, cursor.text_offset)
        taken = list(itertools.islice(self.objective.examples(self.view, place), rows))
        found = [example for example, _ in taken]
        batches = [self.objective.collate(found[i : i + self.micro]) for i in range(0, rows, self.micro)]
        last = taken[-1][1]
        return batches, replace(cursor, text_slot=last.slot, text_offset=last.offset)

    def loss(self, model: Model, batch: base.Batch) -> Tensor:
        """Cross-entropy in nats, summed over the targets of a batch."""
        return self.objective.loss(model, batch).sums[self.objective.main]

    def evaluate(self, model: Model, autocast: Any) -> float:
        """The loss on the text that is held out: nats a token."""
        return evaluate(model, self.objective, self.held, autocast=autocast)["loss"]
