"""Learn a score of answers from which of them people preferred: reward models (Ouyang et al. 2022, section 3.5)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stemma.conversations.comparisons import Compared
from stemma.declare import alignment as declared
from stemma.declare.alignment import GRADES
from stemma.errors import UsageError
from stemma.nn import parts
from stemma.nn.inputs import Inputs
from stemma.nn.model import Model
from stemma.objectives import base, calibration, continuations
from stemma.objectives.answers import singles, trimmed
from stemma.objectives.labels import arranged
from stemma.objectives.packing import first_fit
from stemma.tasks.base import reader
from stemma.tasks.preferences import PreferReader

DEMONSTRATIONS = 1000  # preferred answers by which scores are shifted
LOOKED_AT = 5000  # rows whose prompts are compared before a run
MEASURED = 500  # rows of which the mean length is taken
END = 0  # an id that nobody reads
TOGETHER = 16  # texts that are scored at once where nothing is learnt


def pair_losses(better: Tensor, worse: Tensor, margins: Tensor | float = 0.0, soft: Tensor | float = 1.0) -> Tensor:
    """`-log sigmoid(better - worse - margin)` of each pair, P. `soft`: the probability that the first is the better
    one; 0.5 of a tie."""
    gap = better - worse - margins
    return -(soft * F.logsigmoid(gap) + (1 - soft) * F.logsigmoid(-gap))


class RunRanking(base.Objective, of=declared.Ranking):
    """A row of the data an example: all of its answers, each of which the model reads once. A decoder reads their
    prompt once, too. The texts of a batch are packed into rows as long as the longest of them, so that little of a
    batch is padding."""

    main = "prompt"
    of_rows = True
    in_bits = False
    records = True

    def __init__(self, spec: declared.Ranking, setting: base.Setting) -> None:
        super().__init__(spec, setting)
        made = reader(spec.task, self.tokenizer, self.context, setting.structure)
        if not isinstance(made, PreferReader):
            raise UsageError(f"a reward model is learnt from compared answers, and not from {type(spec.task).__name__}")
        self.reader: PreferReader = made

    # ------------------------------------------------------------ examples and batches

    def lazy_examples(self, view: base.View, cursor: base.Cursor = base.START, once: bool = False) -> base.LazyExamples:
        return singles(self, view, cursor, once)

    def size(self, view: Any) -> int:
        """Tokens that are read of a row: the mean of the first ones."""
        found = [self.made(np.asarray(view[i]), view.sentences(i)) for i in range(min(len(view), MEASURED))]
        if self.setting.structure == "decoder":
            total = sum(continuations.read_tokens(_answers(e)) for e in found)
        else:
            total = sum(len(text) for e in found for text in e["texts"])
        return max(1, round(total / max(1, len(found))))

    def example(self, view: base.View, document: int) -> base.Example:
        """A row of the data: its texts, where their answers begin, and its pairs."""
        found = self.reader.read(json.loads(view.text(document)))
        return self.made(np.asarray(view[document]), view.sentences(document), found, document)

    def made(self, ids: base.Ints, marks: Any, found: Compared | None = None, place: int = 0) -> base.Example:
        """An example of the ids of texts and their marks (`PreferReader`); without `found`, of texts to be scored."""
        begins, asked = np.asarray(marks)[0::2].tolist(), np.asarray(marks)[1::2].tolist()
        texts = [self.unpadded(ids[a:b]) for a, b in zip(begins, [*begins[1:], len(ids)], strict=True)]
        answers = [b - a for a, b in zip(begins, asked, strict=True)]
        pairs = [] if found is None else self.reader.pairs(found)
        return {"texts": texts, "answers": answers, "pairs": pairs, "place": place}

    def unpadded(self, ids: base.Ints) -> base.Ints:
        """A decoder's text without ids of padding at its end, which an end token is where it pads, too: the score is
        read at the last token that no reader takes for padding."""
        pad = self.setting.text.pad_id
        if self.setting.structure != "decoder" or pad is None:
            return ids
        kept = np.flatnonzero(np.asarray(ids) != pad)
        return ids[: int(kept[-1]) + 1] if len(kept) else ids

    def collate(self, examples: Sequence[base.Example]) -> base.Batch:
        texts = [text for e in examples for text in e["texts"]]
        if self.setting.structure == "decoder":
            batch = continuations.collate([one for e in examples for one in _answers(e)], self.padding)
            batch["ends"] = batch["where"][batch["lengths"].cumsum(0) - 1]
        else:
            begins = [begin for e in examples for begin in e["answers"]]
            batch = packed(texts, begins, self.padding, whole=self.setting.structure == "encoder-decoder")
        first = np.cumsum([0, *(len(e["texts"]) for e in examples)])[:-1].tolist()
        pairs = [(k, a, p) for k, (a, e) in enumerate(zip(first, examples, strict=True)) for p in e["pairs"]]
        batch["better"] = torch.tensor([a + p.better for _, a, p in pairs], dtype=torch.int64)
        batch["worse"] = torch.tensor([a + p.worse for _, a, p in pairs], dtype=torch.int64)
        batch["margins"] = torch.tensor([p.margin or 0.0 for *_, p in pairs], dtype=torch.float32)
        batch["soft"] = torch.tensor([0.5 if p.tied else 1.0 for *_, p in pairs], dtype=torch.float32)
        batch["shares"] = torch.tensor([1 / len(examples[k]["pairs"]) for k, *_ in pairs], dtype=torch.float32)
        batch["sizes"] = torch.tensor([len(e["texts"]) for e in examples])
        batch["places"] = torch.tensor([e["place"] for e in examples])
        return batch

    def counts(self, batch: base.Batch) -> dict[str, int]:
        return {self.main: len(batch["places"])}

    # ------------------------------------------------------------ loss and scores

    def loss(self, model: Model, batch: base.Batch, nets: base.Nets = base.NO_NETS) -> base.Loss:
        found = scores(model, batch)
        better, worse, shares = found[batch["better"]], found[batch["worse"]], batch["shares"]
        each = pair_losses(better, worse, batch["margins"], batch["soft"])
        if self.spec.centring and model.training:
            each = each + self.spec.centring * (better + worse).square()
        loss = base.Loss({self.main: (shares * each).sum()}, self.counts(batch))
        if not model.training:
            loss.answers = self.answers(found, batch)
            return loss
        gap, sizes = (better - worse).detach(), batch["sizes"]
        right = torch.where(batch["soft"] == 1, (gap > 0).float() + 0.5 * (gap == 0), 0.5)
        own = found.detach() / sizes.repeat_interleave(sizes)
        for name, total in (
            ("accuracy", (shares * right).sum()),
            ("margin", (shares * gap).sum()),
            ("reward", own.sum()),
        ):
            loss.metrics[name] = float(total)
        return loss

    def answers(self, found: Tensor, batch: base.Batch) -> list[tuple[int, Any]]:
        """The number of each example in the data, and the scores of its texts."""
        parts = found.detach().float().cpu().split(batch["sizes"].tolist())
        return [(place, part.numpy()) for place, part in zip(batch["places"].tolist(), parts, strict=True)]

    @torch.no_grad()
    def score(self, model: Model, examples: Sequence[base.Example]) -> list[list[float]]:
        """The scores of the texts of each example, without dropout and without the shift. The order in which texts are
        read has no part in them."""
        mode, found = model.training, dict[int, list[float]]()
        order = sorted(range(len(examples)), key=lambda i: max(map(len, examples[i]["texts"])))
        model.eval()
        try:
            for some in _chunks(order, examples):
                batch = self.collate([examples[i] for i in some])
                batch = {name: t.to(model.device) for name, t in batch.items()}
                for i, (_, one) in zip(some, self.answers(scores(model, batch), batch), strict=True):
                    found[i] = one.tolist()
        finally:
            model.train(mode)
        return [found[i] for i in range(len(examples))]

    def kept(self, model: Model, view: Any) -> declared.Ranking:
        """With the shift by which preferred answers of the rows that were learnt have 0 on average."""
        spec: declared.Ranking = self.spec
        if not spec.centred:
            return spec
        chosen = [self.example(view, i) for i in range(min(len(view), DEMONSTRATIONS))]
        best = [{**e, "texts": e["texts"][:1], "answers": e["answers"][:1], "pairs": []} for e in chosen]
        mean = float(np.mean([one[0] for one in self.score(model, best)]))
        return replace(spec, task=replace(self.reader.task, shift=-mean))

    # ------------------------------------------------------------ quality

    def remarks(self, view: Any, held: Any) -> list[str]:
        """Prompts that stand in several rows, which a model learns by heart, and those that are on both sides of the
        split."""
        own, other = (Counter(self.prompts(side)) for side in (view, held))
        found = []
        if several := sum(n for n in own.values() if n > 1):
            found.append(
                f"{several:,} of {own.total():,} rows share their prompt with another row; single pairs of one prompt "
                "are learnt by heart, and all of its answers in one row are not (Ouyang et al. 2022, section 3.5)"
            )
        if both := sum(n for prompt, n in other.items() if prompt in own):
            found.append(f"the prompts of {both:,} of {other.total():,} held-out rows are among those learnt from")
        return found

    def prompts(self, view: Any) -> Iterator[tuple[str, ...]]:
        """The prompts of the first rows."""
        for i in range(min(len(view), LOOKED_AT)):
            yield tuple(turn.content for turn in self.reader.read(json.loads(view.text(i))).prompt)

    def judged(
        self, view: Any, answers: Sequence[tuple[int, Any]]
    ) -> Iterator[tuple[Compared, list[calibration.Judged]]]:
        """Of each row its pairs that are no ties, with the gap of their scores."""
        for place, found in answers:
            row = self.reader.read(json.loads(view.text(place)))
            pairs = [pair for pair in row.pairs() if not pair.tied]
            yield row, [calibration.Judged(pair, float(found[pair.better] - found[pair.worse])) for pair in pairs]

    def measured(self, view: Any, answers: Sequence[Any]) -> dict[str, float]:
        pairs = [one for _, some in self.judged(view, answers) for one in some]
        every = np.concatenate([found for _, found in answers]) if answers else np.zeros(1)
        return {**calibration.measured(pairs), "reward": float(every.mean()), "reward_std": float(every.std())}

    def report(self, view: Any, answers: Sequence[Any]) -> dict[str, Any]:
        """Accuracy by grade and by the gap of what answers were judged by, calibration, and the pairs of which the
        model was most sure and wrong."""
        rows = list(self.judged(view, answers))
        pairs = [one for _, some in rows for one in some]
        wrong = sorted(((one.gap, row, one.pair) for row, some in rows for one in some), key=lambda item: item[0])
        worst = [
            {
                "text": "\n".join(turn.content for turn in row.prompt),
                "truth": row.answers[pair.better],
                "found": row.answers[pair.worse],
                "score": round(gap, 4),
            }
            for gap, row, pair in wrong[: calibration.WORST]
            if gap < 0
        ]
        return {**calibration.tables(pairs, GRADES), "worst": worst}


# ---------------------------------------------------------------- texts in rows, and their scores


def packed(texts: Sequence[base.Ints], begins: Sequence[int], padding: int, whole: bool = False) -> base.Batch:
    """Texts in rows as long as the longest of them: several in a row where they fit, the longest first, or one each
    (`whole`). `rows`, `starts`, `ends` (N): where each text is; `segments` (R T): 1 in answers."""
    sizes = [len(text) for text in texts]
    members = [[i] for i in range(len(texts))] if whole else first_fit(sizes)
    row_of = {i: row for row, own in enumerate(members) for i in own}
    starts = {i: sum(sizes[j] for j in own[:k]) for own in members for k, i in enumerate(own)}
    each = range(len(texts))

    def rows(make: Any, fill: int) -> Tensor:
        return trimmed([np.concatenate([make(k, i) for k, i in enumerate(own)]) for own in members], fill)

    return {
        "input_ids": rows(lambda k, i: np.asarray(texts[i]), padding),
        "documents": rows(lambda k, i: np.full(len(texts[i]), k), base.PAD_DOCUMENT),
        "position_ids": rows(lambda k, i: np.arange(len(texts[i])), 0),
        "segments": rows(lambda k, i: (np.arange(len(texts[i])) >= begins[i]).astype(np.int64), 0),
        "rows": torch.tensor([row_of[i] for i in each]),
        "starts": torch.tensor([starts[i] for i in each]),
        "ends": torch.tensor([starts[i] + len(texts[i]) for i in each]),
    }


def scores(model: Model, batch: base.Batch) -> Tensor:
    """The score of each text of a packed batch, N, fp32. Raises UsageError for a model without a head of one number."""
    head = model.arch.heads.task
    if model.task is None or not isinstance(head, parts.Classify) or head.labels != 1:
        raise UsageError("a reward model has a head of one number on its body, and this one has none")
    if model.arch.structure == "decoder":
        return _read(model, continuations.hidden(model, batch | {"where": batch["ends"]}), None)
    if model.arch.structure == "encoder-decoder" or model.arch.streams is not None or model.ahead:
        return _alone(model, batch)
    several = bool((batch["starts"] > 0).any())
    inputs = Inputs(batch["input_ids"])
    if several:
        inputs.documents, inputs.position_ids = batch["documents"], base.position_ids(model, batch)
    else:
        inputs.attention_mask = (batch["documents"] >= 0).to(torch.int64)
    inputs.token_type_ids = batch["segments"] if model.dims.segments > 1 else None
    hidden = model.state(inputs).hidden
    return _read(model, hidden[batch["rows"], batch["ends"] - 1], hidden[batch["rows"], batch["starts"]])


def _read(model: Model, last: Tensor, first: Tensor | None) -> Tensor:
    """The score of each text by the states of its last and its first token, N D each; a decoder has no use for the
    first."""
    heads = model.arch.heads
    states = {"last": last[:, None], "end": last[:, None]}
    states["first"] = last[:, None] if first is None else first[:, None]
    pooled = None
    if model.pooler is not None and heads.pooler is not None:
        pooled = model.pooler(states[heads.pooler.token], None)
    own = getattr(heads.task, "summary", None)
    assert model.task is not None
    return model.task(states["first" if own is None else own.token], pooled, None).float().squeeze(-1)


def _alone(model: Model, batch: base.Batch) -> Tensor:
    """The score of each text in a row of its own."""
    sizes = batch["ends"] - batch["starts"]
    places = torch.arange(int(sizes.max()), device=sizes.device)
    mask = places < sizes[:, None]
    at = (batch["starts"][:, None] + places).where(mask, batch["starts"][:, None])
    ids, kinds = (batch[name][batch["rows"][:, None], at] for name in ("input_ids", "segments"))
    pad = model.text.pad_id if model.text is not None and model.text.pad_id is not None else 0
    read = arranged(model, ids.where(mask, pad), mask.to(torch.int64), kinds.where(mask, 0))
    out = model(*read)
    found = out.task_logits if out.task_logits is not None else out.logits
    assert found is not None
    return found.float().squeeze(-1)


def _answers(example: base.Example) -> list[continuations.Answer]:
    """The texts of an example as answers to prompts. They end with one id more: the last one of an answer is not read
    where it is only predicted, and here it is read."""
    return [
        continuations.Answer(text[:begin], np.append(text[begin:], END))
        for text, begin in zip(example["texts"], example["answers"], strict=True)
    ]


def _chunks(order: Sequence[int], examples: Sequence[Mapping[str, Any]]) -> Iterator[list[int]]:
    some: list[int] = []
    for i in order:
        if some and sum(len(examples[k]["texts"]) for k in (*some, i)) > TOGETHER:
            yield some
            some = []
        some.append(i)
    if some:
        yield some
