"""What a tuned model says of texts and rows, and how good that is by the metrics of its task."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from stemma import conversations, formats, spec
from stemma.conversations import comparisons
from stemma.conversations.shapes import TRANSCRIPT
from stemma.declare.alignment import PreferTask
from stemma.declare.tasks import (
    AnswerTask,
    ChatTask,
    ChooseTask,
    ClassifyTask,
    HeadTask,
    Labels,
    RegressTask,
    RowTask,
    TagTask,
    WriteTask,
)
from stemma.errors import CheckpointError, DataError, UsageError, brief
from stemma.formats import kept
from stemma.formats.where import model_path
from stemma.nn import parts
from stemma.nn.model import Model
from stemma.objectives import calibration
from stemma.objectives.labels import RunLabels
from stemma.objectives.setting import Setting
from stemma.tasks import columns
from stemma.tasks.base import text_of
from stemma.tasks.encoder import first, good_rows
from stemma.tasks.head_columns import columns_of
from stemma.tasks.heads import rounded
from stemma.tasks.metrics import bootstrap, labels, texts
from stemma.tuning import decoding, ranking
from stemma.tuning.answering import Answering
from stemma.tuning.decoding import Decoding
from stemma.tuning.scoring import RewardModel
from stemma.tuning.writing import Written

ROW = 1024  # tokens of a row, where the model reads more
TOKENS = 8192  # of a batch
FIRST = 200  # rows by which columns are found
TARGETS = ("label", "tags", "answers", "target")  # columns that hold what is predicted
LIKELIEST = Decoding()
Row = Mapping[str, Any]
Answer = dict[str, Any]

_kinds: dict[type[RowTask], type[Predictor]] = {}


class Predictor(ABC):
    """Predicts the rows of a task. A subclass names the declaration whose rows it predicts (`of=HeadTask`)."""

    def __init_subclass__(cls, *, of: type[RowTask] | None = None, **more: Any) -> None:
        super().__init_subclass__(**more)
        if of is not None:
            _kinds[of] = cls

    def __init__(self, model: Model, task: Any, how: Decoding) -> None:
        self.model, self.task, self.how = model, task, how

    @abstractmethod
    def check(self, row: Row, scored: bool) -> None:
        """Raises DataError for a row that cannot be predicted, or, if it is to be `scored`, has no target."""

    @abstractmethod
    def predict(self, rows: Sequence[Row]) -> list[Answer]:
        """The prediction of each row."""

    @abstractmethod
    def measure(self, rows: Sequence[Row], answers: Sequence[Answer]) -> dict[str, float]:
        """The metrics of predictions."""


class HeadPredictor(Predictor, of=HeadTask):
    """Predicts by the head of a model."""

    def __init__(self, model: Model, task: HeadTask, how: Decoding) -> None:
        super().__init__(model, task, how)
        if not how.plain:
            raise UsageError(f"{task.word} is answered by a head, which draws no samples and writes no text")
        room = min(model.dims.context, ROW)
        self.goal = RunLabels(
            Labels(task=task), Setting(model.tokenizer, model.text, room, 0, structure=model.arch.structure)
        )

    def check(self, row: Row, scored: bool) -> None:
        self.goal.reader.asked(row)
        if scored:
            self.goal.reader.check(row)

    @torch.inference_mode()
    def predict(self, rows: Sequence[Row]) -> list[Answer]:
        goal, reader, model = self.goal, self.goal.reader, self.model.eval()
        pieces = [(i, piece) for i, row in enumerate(rows) for piece in reader.pieces(row)]
        read = [reader.marked(reader.asked(piece)) for _, piece in pieces]
        found: list[Any] = [None] * len(pieces)
        for some in batches([len(ids) for ids, _ in read]):
            batch = goal.collate([goal.made(np.asarray(read[k].ids), read[k].marks, None, k) for k in some])
            batch = {name: t.to(model.device) for name, t in batch.items()}
            for k, scores in goal.answers(goal.scores(model, goal.run(model, batch)), batch):
                found[k] = reader.answer(pieces[k][1], read[k].ids, read[k].marks, scores)
        whole: list[list[Answer]] = [[] for _ in rows]
        for (i, _), answer in zip(pieces, found, strict=True):
            whole[i].append(answer)
        return [reader.whole(row, answers) for row, answers in zip(rows, whole, strict=True)]

    def measure(self, rows: Sequence[Row], answers: Sequence[Answer]) -> dict[str, float]:
        return self.goal.reader.measure(rows, answers)


class TextPredictor(Predictor):
    """Predicts by writing. A subclass has `written`, which writes, and `wanted`."""

    written: Written | Answering

    @abstractmethod
    def wanted(self, row: Row) -> str:
        """The text that is right. Raises DataError for a row without one."""

    def check(self, row: Row, scored: bool) -> None:
        self.written.prompt(row)
        if scored:
            text = self.wanted(row)
            if self.how.rule is not None:
                decoding.right_of(text, self.how.rule)

    def predict(self, rows: Sequence[Row]) -> list[Answer]:
        return self.written.answers(rows)

    def measure(self, rows: Sequence[Row], answers: Sequence[Answer]) -> dict[str, float]:
        wanted = [self.wanted(row) for row in rows]
        if self.how.rule is not None:
            return decoding.measured(wanted, answers, self.how)
        return texts.measured(wanted, [answer["text"] for answer in answers])


class WritePredictor(TextPredictor, of=WriteTask):
    """Writes a text for a text."""

    def __init__(self, model: Model, task: WriteTask, how: Decoding) -> None:
        super().__init__(model, task, how)
        self.written = Written(model, task, how)

    def wanted(self, row: Row) -> str:
        return text_of(row, self.task.target, "target")


class AnswerPredictor(TextPredictor):
    """Answers the last question of a conversation."""

    def __init__(self, model: Model, task: ChatTask, how: Decoding) -> None:
        super().__init__(model, task, how)
        self.written = Answering(model, task, how)

    def wanted(self, row: Row) -> str:
        return conversations.read(row).answers[-1]


class RankPredictor(Predictor):
    """Predicts which of a row's `options` is the last answer (`stemma.tuning.ranking`)."""

    def __init__(self, model: Model, task: ChatTask, how: Decoding) -> None:
        super().__init__(model, task, how)
        self.ranker = ranking.Ranker(model, task, min(model.dims.context, ROW))

    def check(self, row: Row, scored: bool) -> None:
        self.ranker.marked(row)
        if scored:
            ranking.truth(row)

    def predict(self, rows: Sequence[Row]) -> list[Answer]:
        self.model.eval()
        read = [one for row in rows for one in self.ranker.marked(row)]
        scores = [0.0] * len(read)
        for some in batches([len(one.ids) for one in read]):
            for k, score in zip(some, self.ranker.scores([read[k] for k in some]), strict=True):
                scores[k] = score
        each = iter(scores)
        found = [dict(zip(options, each, strict=False)) for options in map(ranking.options, rows)]
        return [{"label": max(own, key=own.__getitem__), "scores": own} for own in found]

    def measure(self, rows: Sequence[Row], answers: Sequence[Answer]) -> dict[str, float]:
        options, truth = [ranking.options(row) for row in rows], [ranking.truth(row) for row in rows]
        found = [own.index(answer["label"]) for own, answer in zip(options, answers, strict=True)]
        nats = [-answer["scores"][own[i]] for own, answer, i in zip(options, answers, truth, strict=True)]
        chance = sum(1 / len(own) for own in options) / len(rows)
        return {**labels.right(truth, found), "chance": chance, "nats": sum(nats) / len(rows)}


class TalkPredictor(Predictor, of=ChatTask):
    """Answers conversations: rows that list `options` by the likeliest of them, unless texts are to be drawn, and
    others by writing."""

    @cached_property
    def ranks(self) -> RankPredictor:
        return RankPredictor(self.model, self.task, self.how)

    @cached_property
    def writes(self) -> AnswerPredictor:
        return AnswerPredictor(self.model, self.task, self.how)

    def by(self, row: Row) -> RankPredictor | AnswerPredictor:
        """What predicts a row."""
        return self.ranks if ranking.OPTIONS in row and self.how.plain else self.writes

    def check(self, row: Row, scored: bool) -> None:
        self.by(row).check(row, scored)

    def predict(self, rows: Sequence[Row]) -> list[Answer]:
        found: list[Answer] = [{}] * len(rows)
        for kind in dict.fromkeys(map(self.by, rows)):
            own = [i for i, row in enumerate(rows) if self.by(row) is kind]
            for i, answer in zip(own, kind.predict([rows[i] for i in own]), strict=True):
                found[i] = answer
        return found

    def measure(self, rows: Sequence[Row], answers: Sequence[Answer]) -> dict[str, float]:
        kinds = list(dict.fromkeys(map(self.by, rows)))
        if len(kinds) > 1:
            raise DataError(f"some rows list {ranking.OPTIONS!r} and others do not; judge them apart")
        return (kinds[0] if kinds else self.writes).measure(rows, answers)


class ScorePredictor(Predictor, of=PreferTask):
    """Scores answers by a reward model: the answer of a row, or all that it has, the best first."""

    def __init__(self, model: Model, task: PreferTask, how: Decoding) -> None:
        super().__init__(model, task, how)
        if not how.plain:
            raise UsageError("a reward model gives scores, draws no samples and writes no text")
        self.judge = RewardModel(model, task)
        self._pairs: dict[int, tuple[Answer, list[calibration.Judged]]] = {}  # samples of rows are measured many times

    def check(self, row: Row, scored: bool) -> None:
        for talk in comparisons.candidates(row):
            self.judge.read(talk)
        if scored:
            self.judge.goal.reader.check(row)

    def predict(self, rows: Sequence[Row]) -> list[Answer]:
        talks = [comparisons.candidates(row) for row in rows]
        scores = iter(self.judge.scores([talk for own in talks for talk in own]))
        found: list[Answer] = []
        for own in talks:
            each = [rounded(next(scores)) for _ in own]
            order = sorted(range(len(own)), key=lambda k: -each[k])
            ranked = [{"text": own[k].turns[-1].content, "score": each[k]} for k in order]
            found.append({"score": each[0]} if len(own) == 1 else {"scores": each, "answers": ranked})
        return found

    def measure(self, rows: Sequence[Row], answers: Sequence[Answer]) -> dict[str, float]:
        found: list[calibration.Judged] = []
        for row, answer in zip(rows, answers, strict=True):
            known = self._pairs.get(id(answer))
            if known is None or known[0] is not answer:
                known = self._pairs[id(answer)] = answer, judged(row, answer["answers"])
            found += known[1]
        return calibration.measured(found)


def judged(row: Row, answers: Sequence[Answer]) -> list[calibration.Judged]:
    """The pairs of a row that are no ties, with the gaps of their scores."""
    found, scores = comparisons.ranked(row), {answer["text"]: answer["score"] for answer in answers}
    own = [scores[text] for text in found.answers]
    pairs = [pair for pair in found.pairs() if not pair.tied]
    return [calibration.Judged(pair, own[pair.better] - own[pair.worse]) for pair in pairs]


def batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Numbers of rows that go through the model together, like lengths side by side."""
    some: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if some and lengths[i] * (len(some) + 1) > TOKENS:
            yield some
            some = []
        some.append(i)
    if some:
        yield some


# ---------------------------------------------------------------- the model and its task


class Tuned(NamedTuple):
    """A model and the task that it was tuned for."""

    model: Model
    task: RowTask


def tuned(path: str | Path, **how: Any) -> Tuned:
    """The model at `path` (a run, a folder, a hub id; `how` as in `stemma.load`), and its task: the one that is kept
    beside its adapter or itself, or else the one of its head. Raises UsageError for a model that was tuned for no
    task."""
    given = how.get("adapter") or ()
    places = [model_path(one) for one in (*([given] if isinstance(given, str | Path) else given), path)]
    task = next((found for place in places if place is not None and (found := kept.load(place)) is not None), None)
    model = formats.load(path, **how)
    if task is None:
        task = task_of(model)
    if model.tokenizer is None:
        raise UsageError(f"{path} has no tokenizer, and predictions are made of text")
    if task is None:
        raise UsageError(
            f"{path} was tuned for no task: it has neither a head for one nor a {kept.FILE} beside its weights; "
            "`stemma tune` makes such models, `stemma generate` and `stemma fill` use others"
        )
    _check_head(model, task, str(path))
    return Tuned(model, task)


def _check_head(model: Model, task: RowTask, where: str) -> None:
    """Raises CheckpointError for a kept task that the model's head does not answer, or with other labels."""
    if not isinstance(task, HeadTask):
        return
    own = task_of(model)
    if own is None and model.arch.heads.task is not None:  # a head of a user's file
        return
    if own is None or own.head != task.head:
        raise CheckpointError(f"{where}: its {kept.FILE} is of a model tuned to {task.word}, and its head is another")
    names, known = getattr(task, "labels", ()), getattr(own, "labels", ())
    if len(names) != len(known):
        raise CheckpointError(f"{where}: its {kept.FILE} names {len(names)} labels, and its head has {len(known)}")


def task_of(model: Model) -> HeadTask | None:
    """The task of a model's head; None without one."""
    head = model.arch.heads.task
    names = model.labels or tuple(f"LABEL_{i}" for i in range(getattr(head, "labels", 0)))
    match head:
        case parts.Classify(problem="regression"):
            return RegressTask()
        case parts.Classify(problem=problem):
            return ClassifyTask(labels=names, several=problem == "multi")
        case parts.Tag():
            return TagTask(labels=names)
        case parts.Answer():
            return AnswerTask()
        case parts.Choose():
            return ChooseTask()
    return None


def predictor(one: Tuned, how: Decoding) -> Predictor:
    """What predicts the rows of a task, as `how` says. Raises UsageError where nothing does."""
    for kind in type(one.task).__mro__:
        if kind in _kinds:
            return _kinds[kind](one.model, one.task, how)
    raise UsageError(f"a model tuned to {one.task.word} predicts no rows; `stemma chat` or `stemma generate` asks it")


def fitted(task: RowTask, rows: Sequence[Row], given: Mapping[str, Any], scored: bool) -> RowTask:
    """`task` with the columns of these rows: `given` ones, its own where the rows have them, or those of usual names.
    `scored`: with the column of what is predicted. A head of one number that nobody says more of, such as trl's, scores
    answers where rows have such."""
    if type(task) is RegressTask and not task.text and not given and rows and all(map(has_answers, rows)):
        return PreferTask()
    names = [f.name for f in fields(task)]
    if odd := [name for name in given if name not in names]:
        raise UsageError(f"{task.word} has no column {odd[0]!r}; it has {', '.join(names)}")
    there = {name for row in rows for name in row}
    gone = {n for n in names for column in columns_of(task, n) if column not in there}
    hidden = set() if scored else {*TARGETS} & {*names}
    free = {field: type(spec.get(task, field))() for field in gone | hidden}
    return columns.named(spec.edit(replace(task, **free), dict(given)), rows, hidden)


def has_answers(row: Row) -> bool:
    """Whether a row holds answers, to be scored by a reward model."""
    return comparisons.compares(row) or "messages" in row or {"prompt", "completion"} <= row.keys()


def row_of(task: RowTask, text: str | Row) -> Row:
    """A text, or a JSON object, as a row of a task. Raises UsageError for a text where rows have several."""
    if isinstance(text, Mapping):
        return text
    if text.lstrip().startswith("{"):
        try:
            held = json.loads(text)
        except ValueError:
            held = None
        if isinstance(held, dict):
            return held
    if isinstance(task, ChatTask):
        return {"question": text}
    if isinstance(task, PreferTask):
        if TRANSCRIPT.match(text):
            return {"chosen": text}
        raise UsageError(
            f"a score is of an answer to a prompt, and {brief(text)} is one text; give rows (--data), JSON objects "
            'such as {"prompt": "...", "completion": "..."}, or a transcript (Human: ... Assistant: ...)'
        )
    name = "words" if task.word == "tag" else "text"
    several = getattr(task, "pair", "") or task.word == "choose"
    if several or name not in {f.name for f in fields(task)}:
        raise UsageError(
            f"a row of {task.word} has several fields, and {brief(text)} is one text; give rows (--data) or JSON "
            "objects"
        )
    return {spec.get(task, name) or name: text}


# ---------------------------------------------------------------- what users call


def predict(
    model: str | Path | Tuned, texts: Sequence[str | Row], *, how: Decoding = LIKELIEST, **given: Any
) -> list[Answer]:
    """What a tuned model says of texts, or of rows with fields, in their order.

    `model`: a run, a folder or a hub id, or what `tuned` gave. `how`: of models that write, such as
    `Decoding(samples=11, final="number")`, whose prediction is {"text", "answer", "votes"}. `given`: the columns of
    rows, where they have other names than those of the data that it was tuned on (`text="review"`). A prediction is
    {"label", "scores"}, {"labels", "scores"}, {"value"}, {"spans"} or {"text"}; {"error"} says what is wrong with a row
    that cannot be read."""
    one = model if isinstance(model, Tuned) else tuned(model)
    rows = [row_of(one.task, text) for text in texts]
    if not rows:
        return []
    made = predictor(one._replace(task=fitted(one.task, rows, given, scored=False)), how)
    wrong: dict[int, str] = {}
    for i, row in enumerate(rows):
        try:
            made.check(row, scored=False)
        except DataError as error:
            wrong[i] = str(error)
    found = iter(made.predict([row for i, row in enumerate(rows) if i not in wrong]))
    return [{"error": wrong[i]} if i in wrong else next(found) for i in range(len(rows))]


class Measured(NamedTuple):
    """The metrics of a model on rows, each with the ends of its 95 % interval; `rows`: how many."""

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    rows: int


def scored_rows(
    one: Tuned, data: str, given: Mapping[str, Any], how: Decoding = LIKELIEST
) -> tuple[list[Row], list[str]]:
    """The rows of `data` by which a model can be judged, and sentences on those that are passed over."""
    made = predictor(one._replace(task=fitted(one.task, first(data, FIRST)[0], given, scored=True)), how)
    return good_rows(data, lambda row: made.check(row, scored=True))


def measured(
    one: Tuned, rows: Sequence[Row], draws: int = bootstrap.DRAWS, how: Decoding = LIKELIEST, **given: Any
) -> Measured:
    """How good a tuned model is on rows with targets, by the metrics of its task, with bootstrap intervals. `how`: its
    texts are drawn; with a rule for final answers, by the share of those that are right."""
    made = predictor(one._replace(task=fitted(one.task, rows, given, scored=True)), how)
    for row in rows:
        made.check(row, scored=True)
    answers = made.predict(rows)
    metrics = made.measure(rows, answers)

    def of(some: list[int]) -> dict[str, float]:
        return made.measure([rows[i] for i in some], [answers[i] for i in some])

    return Measured(metrics, bootstrap.intervals(of, len(rows), draws), len(rows))
