"""What rows of data hold and what a model learns of them: the tasks that a model is tuned for, as values.

A column that is left out ("") is found by its name when a run is planned; the plan names it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from stemma.declare.objectives import Objective
from stemma.spec import Spec, at_least, not_negative, quiet, require


@dataclass(frozen=True)
class RowTask(Spec, open=True):
    """How a row becomes an example. A subclass is known by being declared; a class of `stemma.tasks.base.Reader` names
    the declaration that it reads rows for."""

    PLACE: ClassVar[str] = "objective.task"
    word: ClassVar[str] = ""  # WHAT of `stemma tune WHAT`


@dataclass(frozen=True)
class Ghost(Spec):
    """Ghost Attention (Touvron et al. 2023, LLaMA 2, section 3.3): an instruction that holds for a whole conversation
    stands before the first user's words alone, or is the `system` message, and only the last answer is learnt.
    `instructions`: from which one to `together` are drawn for a conversation; none: its own system message is it."""

    instructions: tuple[str, ...] = ()
    together: int = at_least(1, 1)
    system: bool = False

    def check(self) -> None:
        require(all(i.strip() for i in self.instructions), "Ghost.instructions must hold no empty text")
        most = max(1, len(self.instructions))
        require(self.together <= most, f"Ghost.together={self.together} is more than the {most} instructions")


@dataclass(frozen=True)
class ChatTask(RowTask):
    """Conversations (`stemma.conversations`), written by a `template` (a name; "": the tokenizer's own). `loss_on`:
    the assistant's words with the end token behind them, all of them or the last, or the whole text. `ghost`: data of
    Ghost Attention are made of them; then the last answer is what is learnt."""

    word = "chat"
    template: str = ""
    loss_on: Literal["answers", "last answer", "everything"] = "answers"
    ghost: Ghost | None = quiet(None)

    def check(self) -> None:
        require(
            self.ghost is None or self.loss_on != "everything",
            "Ghost Attention learns the last answer; leave out loss_on=everything",
        )

    @property
    def learns(self) -> Literal["answers", "last answer", "everything"]:
        """What is learnt, Ghost Attention considered."""
        return "last answer" if self.ghost is not None else self.loss_on


@dataclass(frozen=True)
class WriteTask(RowTask):
    """The text of the column `target` for that of `text`, behind a `prefix` that names the task (Raffel et al. 2019,
    section 2.4). Decoders read `between` in front of what they write."""

    word = "write"
    text: str = ""
    target: str = ""
    prefix: str = ""
    between: str = "\n"


@dataclass(frozen=True)
class ClassifyTask(RowTask):
    """Which of `labels` a text (or a `text` and its `pair`) has; with `several`, any number of them. `label` is the
    column."""

    word = "classify"
    text: str = ""
    pair: str = ""
    label: str = ""
    labels: tuple[str, ...] = ()
    several: bool = False


@dataclass(frozen=True)
class RegressTask(RowTask):
    """The number in the column `label` of a text, or of a text and its pair."""

    word = "regress"
    text: str = ""
    pair: str = ""
    label: str = ""


@dataclass(frozen=True)
class TagTask(RowTask):
    """A label of `labels` for each of the words in the column `words`, in the column `tags`."""

    word = "tag"
    words: str = ""
    tags: str = ""
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class AnswerTask(RowTask):
    """The span of `context` that answers `question`; `answers` holds texts and where they start, as in SQuAD (Rajpurkar
    et al. 2016). A context that is too long is read in windows that overlap by `stride` tokens."""

    word = "answer"
    question: str = ""
    context: str = ""
    answers: str = ""
    stride: int = not_negative(128)


@dataclass(frozen=True)
class ChooseTask(RowTask):
    """Which of the texts in `choices` follows `text`; `label` is its index, counted from 0, or one of the texts."""

    word = "choose"
    text: str = ""
    choices: str = ""
    label: str = ""


# ---------------------------------------------------------------- what is learnt of them


@dataclass(frozen=True)
class RowObjective(Objective):
    """What a model learns of the rows of a task."""

    task: RowTask = ChatTask()


@dataclass(frozen=True)
class Answers(RowObjective):
    """A decoder learns the next token where a row says so: the answers. `packed`: a row of the batch holds several
    examples, each whole, which do not see each other."""

    label = "answers"
    packed: bool = True


@dataclass(frozen=True)
class Replies(RowObjective):
    """An encoder-decoder reads a text and learns to write another."""

    label = "replies"


@dataclass(frozen=True)
class Labels(RowObjective):
    """A task head learns the labels of texts. `lm`: weight of the next token's loss beside it, for decoders (Radford et
    al. 2018, section 3.2: 0.5); `weights`: of the classes, in the order of the task's labels."""

    label = "labels"
    reads_vocabulary = False
    lm: float = not_negative(0.0)
    weights: tuple[float, ...] = ()
