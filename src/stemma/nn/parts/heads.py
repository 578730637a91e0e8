"""What reads the last hidden state: language model heads, poolers, heads for tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from stemma.nn.parts.mlp import Activation
from stemma.spec import Spec, at_least, interval, positive, require


@dataclass(frozen=True)
class LMHead(Spec):
    """Logits from a matrix: the token embeddings if `tied`. `scaled`: the hidden state times d_model**-0.5 (T5, PaLM);
    `bias`: one a token; `factor`: of the logits (Cohere); `softcap=c`: logits become c tanh(logit / c) (Gemma 2)."""

    tied: bool = True
    scaled: bool = False
    bias: bool = False
    factor: float = 1.0
    softcap: float | None = positive(None)

    def check(self) -> None:
        require(self.factor != 0, "heads.lm.factor must not be 0")


@dataclass(frozen=True)
class MLMHead(Spec):
    """BERT's: dense, activation, norm, then the token embeddings (if `tied`) with a bias of their own."""

    act: Activation = "gelu"
    tied: bool = True


@dataclass(frozen=True)
class EMDHead(Spec):
    """The enhanced mask decoder (He et al. 2020, arXiv:2006.03654, section 3.2): the last block is run twice more over
    its own input, with queries that know absolute positions; then dense, activation, norm and the token embeddings."""

    tied: ClassVar[bool] = True
    act: Activation = "gelu"


@dataclass(frozen=True)
class Summary(Spec):
    """One vector of a text: the hidden state of its `first` token, of its `last` token that is not padding, of its last
    `end` token, or of the `final` place of the row, padding or not (texts are then padded on the left). Unless `act` is
    None, a dense layer and that activation follow. `dropout`: before that layer; left out, the rate of the task head (a
    pooler has none)."""

    token: Literal["first", "last", "end", "final"] = "first"
    act: Literal["tanh", "gelu", "relu"] | None = "tanh"
    dropout: float | None = interval("[0, 1)", None)


@dataclass(frozen=True)
class Detector(Spec):
    """A logit a token that says whether it was replaced: dense, activation, linear (Clark et al. 2020, section 2)."""

    act: Activation = "gelu"


@dataclass(frozen=True)
class ContextDetector(Spec):
    """The same, of each token's state together with the first one's, their sum normalised before the dense layer (He et
    al. 2021, arXiv:2111.09543)."""

    act: Activation = "gelu"


@dataclass(frozen=True)
class Task(Spec, open=True):
    """What a model is tuned for: a head on its body. A subclass is known by being declared; `stemma.nn.tasks.TaskHead`
    is what runs one, and a class there names the declaration that it runs."""

    ELSEWHERE: ClassVar[str] = "; if a file of yours declares it, name that by --families FILE"

    by_token: ClassVar[bool] = False  # it scores each token, not a vector of the text
    candidates: ClassVar[bool] = False  # it scores several texts of a row against each other

    @property
    def reads_pooler(self) -> bool:
        """Whether it reads the vector of the body's pooler: it has no summary of its own."""
        return not self.by_token and getattr(self, "summary", None) is None


@dataclass(frozen=True)
class Classify(Task):
    """Scores of `labels` classes (or, for a regression, numbers) for each text. They are read from the body's pooler,
    or from a `summary` of the head's own. `problem` chooses the loss; `dropout` is before each layer of the head."""

    labels: int = at_least(1, 2)
    summary: Summary | None = None
    bias: bool = True
    problem: Literal["single", "multi", "regression"] = "single"
    dropout: float = 0.0


@dataclass(frozen=True)
class Tag(Task):
    """Scores of `labels` classes for each token."""

    by_token = True

    labels: int = at_least(1, 2)
    bias: bool = True
    dropout: float = 0.0


@dataclass(frozen=True)
class Answer(Task):
    """For each token a score that an answer starts there, and one that it ends there (Devlin et al. 2018, 4.2)."""

    by_token = True


@dataclass(frozen=True)
class Choose(Task):
    """One score for each of several candidate texts, of which one is right (Devlin et al. 2018, 4.4). `through`: width
    of a linear layer between the vector of a text and its score (XLM)."""

    candidates = True
    summary: Summary | None = None
    dropout: float = 0.0
    through: int | None = at_least(1, None)


@dataclass(frozen=True)
class Heads(Spec):
    """What reads the last hidden state. `pooler`: a vector of the text; `pair`: 2 classes of it; `detect`: which tokens
    were replaced; `task`: the head of a tuned model."""

    lm: LMHead | MLMHead | EMDHead | None = None
    pooler: Summary | None = None
    pair: bool = False
    detect: Detector | ContextDetector | None = None
    task: Task | None = None

    def check(self) -> None:
        require(self.pooler is not None or not self.pair, "a pair head reads the pooler: heads.pair needs heads.pooler")
        pooled = self.task is not None and self.task.reads_pooler
        require(self.pooler is not None or not pooled, "this task reads the pooler: it needs heads.pooler or a summary")

    @property
    def tied(self) -> bool:
        """Whether the logits, if there are any, come from the token embeddings and not from a matrix beside them."""
        return self.lm is None or self.lm.tied
