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
class HardPrompt(Spec):
    """A prompt in words: instructions, perhaps worked examples, and `{question}` where a row's question stands (else it
    stands behind them). `task`: of the rows whose column `task` says so; "": of all that no other prompt is for."""

    text: str
    task: str = ""

    def check(self) -> None:
        require(bool(self.text.strip()), "HardPrompt.text must not be empty")
        require(self.text.count("{question}") <= 1, "HardPrompt.text must hold {question} once at most")


@dataclass(frozen=True)
class ChatTask(RowTask):
    """Conversations (`stemma.conversations`), written by a `template` (a name; "": the tokenizer's own). `loss_on`:
    the assistant's words with the end token behind them, all of them or the last, or the whole text. `ghost`: data of
    Ghost Attention are made of them; then the last answer is what is learnt. `feedback`: two markers; of rows with a
    chosen and a rejected answer both are learnt, behind the first and the second, and the first stands before all other
    answers (Koala). Without them only the chosen one of a transcript is. `inputs`, `targets`: the most
    tokens of what an answer follows and of the answer, in conversations of one round: either loses its end (None: such
    a row is passed over where it is too long). `prompts`: in which the first user's words stand, one for each task
    (instruction prompt tuning: Singhal et al. 2022, arXiv:2212.13138). `texts`: rows with a `text` alone are learnt as
    they are, as far as they fit into a row: what is read again lest it be forgotten (Code LLaMA: Roziere et al. 2023,
    section 2.5)."""

    word = "chat"
    template: str = ""
    loss_on: Literal["answers", "last answer", "everything"] = "answers"
    ghost: Ghost | None = quiet(None)
    feedback: tuple[str, ...] = quiet(())
    inputs: int | None = quiet(None)
    targets: int | None = quiet(None)
    prompts: tuple[HardPrompt, ...] = quiet(())
    texts: bool = quiet(False)

    def check(self) -> None:
        tasks = [prompt.task for prompt in self.prompts]
        require(len({*tasks}) == len(tasks), f"ChatTask.prompts holds two prompts for one task: {', '.join(tasks)}")
        require(
            not self.feedback
            or (len({*self.feedback}) == 2 == len(self.feedback) and all(map(str.strip, self.feedback))),
            f"feedback={self.feedback} must be two different markers, or none",
        )
        require(
            self.ghost is None or self.loss_on != "everything",
            "Ghost Attention learns the last answer; leave out loss_on=everything",
        )
        limits = [n for n in (self.inputs, self.targets) if n is not None]
        require(
            all(n >= 2 for n in limits), f"inputs={self.inputs} and targets={self.targets} must be at least 2 tokens"
        )
        require(not limits or self.loss_on != "everything", "inputs and targets are limits where answers are learnt")

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
class HeadTask(RowTask):
    """A task that a head on the body of a model answers."""

    head: ClassVar[str] = ""  # what `formats.load(task=)` calls it

    @property
    def problem(self) -> str | None:
        """Which loss a head that classifies has; None for other heads."""
        return None


@dataclass(frozen=True)
class ClassifyTask(HeadTask):
    """Which of `labels` a text (or a `text` and its `pair`) has; with `several`, any number of them. `label` is the
    column. `delimiters`: three tokens of their own before a text, between two, and behind, where a decoder reads them
    off (Radford et al. 2018, section 3.3); none: what the tokenizer puts there."""

    word = "classify"
    head = "classify"
    text: str = ""
    pair: str = ""
    label: str = ""
    labels: tuple[str, ...] = ()
    several: bool = False
    delimiters: tuple[str, ...] = ()

    @property
    def problem(self) -> str | None:
        return "multi" if self.several else "single"

    def check(self) -> None:
        require(
            len(self.delimiters) in (0, 3) and len(set(self.delimiters)) == len(self.delimiters),
            f"delimiters={self.delimiters} must be three different tokens, such as <start>,<between>,<end>, or none",
        )


@dataclass(frozen=True)
class RegressTask(HeadTask):
    """The number in the column `label` of a text, or of a text and its pair."""

    word = "regress"
    head = "classify"
    text: str = ""
    pair: str = ""
    label: str = ""

    @property
    def problem(self) -> str | None:
        return "regression"


@dataclass(frozen=True)
class TagTask(HeadTask):
    """A label of `labels` for each of the words in the column `words`, in the column `tags`."""

    word = "tag"
    head = "tag"
    words: str = ""
    tags: str = ""
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class AnswerTask(HeadTask):
    """The span of `context` that answers `question`; `answers` holds texts and where they start, as in SQuAD (Rajpurkar
    et al. 2016). A context that is too long is read in windows that overlap by `stride` tokens."""

    word = "answer"
    head = "answer"
    question: str = ""
    context: str = ""
    answers: str = ""
    stride: int = not_negative(128)


@dataclass(frozen=True)
class ChooseTask(HeadTask):
    """Which of several texts follows `text`. `choices`: one column that holds a list of them, or a column each; `label`
    is an index, counted from 0, or one of the texts."""

    word = "choose"
    head = "choose"
    text: str = ""
    choices: tuple[str, ...] = ()
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
