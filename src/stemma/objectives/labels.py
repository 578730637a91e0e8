"""Learn what rows of a task say of texts, by a head on the body: labels, numbers, tags, spans, choices."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stemma.declare import tasks as declared
from stemma.declare.family import Text
from stemma.errors import UsageError
from stemma.nn.model import IGNORED, Model, Output
from stemma.objectives import base
from stemma.objectives.answers import singles, trimmed
from stemma.tasks.base import reader
from stemma.tasks.heads import WHOLE, HeadReader


class RunLabels(base.Objective, of=declared.Labels):
    """A row of the data an example, batches padded to the longest. Segments begin at the marks; of several candidates
    each begins at an even mark."""

    main = "label"
    of_rows = True
    in_bits = False

    def __init__(self, spec: declared.Labels, setting: base.Setting) -> None:
        super().__init__(spec, setting)
        made = reader(spec.task, self.tokenizer, self.context, setting.structure)
        if not isinstance(made, HeadReader):
            raise UsageError(f"a head learns no {spec.task.word}; other objectives do")
        self.reader: HeadReader = made

    @classmethod
    def tokens(cls, spec: Any, text: Text) -> tuple[str, ...]:
        return tuple(getattr(spec.task, "delimiters", ()))

    @cached_property
    def weights(self) -> Tensor | None:
        """Of the classes."""
        return torch.tensor(self.spec.weights) if self.spec.weights else None

    # ------------------------------------------------------------ examples and batches

    def lazy_examples(self, view: base.View, cursor: base.Cursor = base.START, once: bool = False) -> base.LazyExamples:
        return singles(self, view, cursor, once)

    def size(self, view: Any) -> int:
        return max(1, round(view.tokens_total / max(1, len(view))))

    def example(self, view: base.View, document: int) -> base.Example:
        """A row of the data: its ids, where texts in it begin, its labels."""
        return self.made(
            np.asarray(view[document]), view.sentences(document), json.loads(view.text(document)), document
        )

    def made(self, ids: base.Ints, marks: Any, row: Mapping[str, Any] | None, place: int = 0) -> base.Example:
        """An example of a row; without one, of a text whose labels are not known. `place`: its number in the data."""
        marks = np.asarray(marks, dtype=np.int64)
        found: base.Example = {"input_ids": ids, "marks": marks, "place": place}
        if row is not None:
            found["labels"] = self.reader.labels(row, ids.tolist(), marks.tolist())
        return found

    @property
    def candidates(self) -> bool:
        """Whether a row holds several texts that are scored against each other."""
        return isinstance(self.spec.task, declared.ChooseTask)

    def collate(self, examples: Sequence[base.Example]) -> base.Batch:
        texts = [text for e in examples for text in self.texts(e)]
        batch = {
            "input_ids": trimmed([ids for ids, _ in texts], self.padding),
            "attention_mask": trimmed([np.ones(len(ids), np.int64) for ids, _ in texts], 0),
            "token_type_ids": trimmed([kinds for _, kinds in texts], 0),
            "places": torch.tensor([e["place"] for e in examples]),
        }
        if self.candidates:
            batch["counts"] = torch.tensor([len(self.texts(e)) for e in examples])
        if "labels" in examples[0]:
            labels = [e["labels"] for e in examples]
            by_token = self.spec.task.head == "tag"
            batch["labels"] = trimmed(labels, IGNORED) if by_token else torch.from_numpy(np.stack(labels))
        return batch

    def texts(self, example: base.Example) -> list[tuple[base.Ints, base.Ints]]:
        """(ids, segments) of each text of an example."""
        ids, marks = example["input_ids"], example["marks"]
        if self.spec.task.head == "tag":  # marks are words
            return [(ids, np.zeros(len(ids), np.int64))]
        places = np.arange(len(ids))
        if not self.candidates:
            return [(ids, np.searchsorted(marks[1:], places, side="right"))]
        ends = [*marks[2::2], len(ids)]
        return [
            (ids[a:c], (places[a:c] >= b).astype(np.int64))
            for a, b, c in zip(marks[0::2], marks[1::2], ends, strict=True)
        ]

    def counts(self, batch: base.Batch) -> dict[str, int]:
        labels = batch["labels"]
        found = {self.main: int((labels != IGNORED).sum()) if self.spec.task.head == "tag" else len(labels)}
        if self.spec.lm:
            found["token"] = int(batch["attention_mask"][:, 1:].sum())
        return found

    # ------------------------------------------------------------ loss and scores

    def run(self, model: Model, batch: base.Batch) -> Output:
        """What the model answers to a batch."""
        read = arranged(model, *(batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")))
        if not self.candidates:
            return model(*read)
        grid = candidates(batch["counts"])
        return model(*(None if x is None else laid_out(x, grid) for x in read))

    def scores(self, model: Model, out: Output) -> Tensor:
        """The scores of the task's head: B L, B C of candidates, B T L, or B T 2."""
        if out.start_logits is not None and out.end_logits is not None:
            return torch.stack([out.start_logits, out.end_logits], -1)
        found = out.mc_logits if out.mc_logits is not None else out.task_logits
        found = out.logits if found is None else found
        assert found is not None
        return found

    def loss(self, model: Model, batch: base.Batch, nets: base.Nets = base.NO_NETS) -> base.Loss:
        out, counts, labels = self.run(model, batch), self.counts(batch), batch["labels"]
        scores = self.scores(model, out)
        if self.candidates:
            scores = scores.masked_fill(candidates(batch["counts"]) < 0, -torch.inf)
        sums = {self.main: self.summed(model, scores, labels, counts[self.main])}
        if self.spec.lm:
            sums["token"] = next_tokens(out, batch)
        found = base.Loss(sums, counts, weights={"token": self.spec.lm})
        if not model.training:
            found.answers = self.answers(scores, batch)
        return found

    def summed(self, model: Model, scores: Tensor, labels: Tensor, count: int) -> Tensor:
        """The loss of the head, added up over its targets."""
        assert model.task is not None
        if self.weights is None:
            return model.task.loss(scores, labels) * count
        weight = self.weights.to(scores.device)
        return F.cross_entropy(scores.float().flatten(0, -2), labels.flatten(), weight, reduction="sum")

    def answers(self, scores: Tensor, batch: base.Batch) -> list[tuple[int, Any]]:
        """The number of each example in the data, and its scores."""
        lengths = batch["attention_mask"].sum(1).tolist()
        if self.candidates:
            lengths = batch["counts"].tolist()
        found = scores.detach().float().cpu().numpy()
        by_token = self.candidates or self.spec.task.head in ("tag", "answer")
        return [
            (place, found[i, : lengths[i]] if by_token else found[i])
            for i, place in enumerate(batch["places"].tolist())
        ]

    # ------------------------------------------------------------ quality

    def predictions(self, view: Any, answers: Sequence[tuple[int, Any]]) -> tuple[list[Any], list[dict[str, Any]]]:
        """(rows, predictions) of what was evaluated."""
        groups: dict[Any, list[tuple[Any, dict[str, Any]]]] = {}
        for place, scores in answers:
            row = json.loads(view.text(place))
            one = self.reader.answer(row, view[place].tolist(), view.sentences(place).tolist(), scores)
            groups.setdefault(row.get(WHOLE, place), []).append((row, one))
        rows = [some[0][0] for some in groups.values()]
        return rows, [self.reader.whole(some[0][0], [one for _, one in some]) for some in groups.values()]

    def measured(self, view: Any, answers: Sequence[Any]) -> dict[str, float]:
        return self.reader.measure(*self.predictions(view, answers))

    def report(self, view: Any, answers: Sequence[Any]) -> dict[str, Any]:
        return self.reader.report(*self.predictions(view, answers))

    def remarks(self, view: Any, held: Any) -> list[str]:
        """Labels that are on one side of the split alone."""
        sides = [
            Counter(name for i in range(len(side)) for name in self.reader.expected(json.loads(side.text(i))))
            for side in (view, held)
        ]
        found = []
        for (own, other), where, but in (
            (sides, "learnt from", "judged by"),
            (sides[::-1], "held out", "learnt from"),
        ):
            if only := sorted(own.keys() - other.keys()):
                what = f"the label {only[0]!r} is" if len(only) == 1 else f"{len(only)} labels are"
                names = "" if len(only) == 1 else f" ({', '.join(only[:5])}{', ...' if len(only) > 5 else ''})"
                found.append(f"{what} in rows that are {where} alone{names}: it is never {but}")
        return found


def next_tokens(out: Output, batch: base.Batch) -> Tensor:
    """The loss of a language model over the tokens of a batch that are no padding, in nats."""
    ids, mask, logits = batch["input_ids"], batch["attention_mask"], out.logits
    if logits is None or logits.shape[:2] != ids.shape:
        raise UsageError("objective.lm needs a model with a language-model head")
    wanted = ids[:, 1:].masked_fill(mask[:, 1:] == 0, IGNORED)
    return F.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="sum"
    )


def arranged(model: Model, ids: Tensor, mask: Tensor, kinds: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Ids, attention mask and segments (B T each) as the head of a model reads them: padded in front where it reads the
    last place of a row, and without segments where the model has none."""
    heads = model.arch.heads
    read = getattr(heads.task, "summary", None)
    if heads.task is not None and heads.task.reads_pooler:
        read = heads.pooler
    if read is not None and read.token == "final":
        ids, mask, kinds = (padded_in_front(x, mask) for x in (ids, mask, kinds))
    return ids, mask, kinds if model.arch.structure == "encoder" and model.dims.segments > 1 else None


def padded_in_front(x: Tensor, mask: Tensor) -> Tensor:
    """Rows (B T) with their padding in front of them."""
    count, length = mask.sum(1, keepdim=True), x.shape[1]
    return x.gather(1, (torch.arange(length, device=x.device) + count) % length)


def candidates(counts: Tensor) -> Tensor:
    """The text of each candidate of each row, B C; -1 where a row has fewer."""
    most = int(counts.max())
    before = counts.cumsum(0) - counts
    place = torch.arange(most, device=counts.device)
    return torch.where(place < counts[:, None], before[:, None] + place, -1)


def laid_out(x: Tensor, grid: Tensor) -> Tensor:
    """Texts (N T) as candidates of rows (B C T). Where a row has fewer, its first stands again."""
    return x[torch.where(grid < 0, grid[:, :1], grid)]
