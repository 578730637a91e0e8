"""How the weights of a parent were trained on, as values: stages in order, each with its data, template and numbers.

A stage says what was published; None is unpublished. `remembered` names the fields whose values are from memory and
not checked against a source. A value that differs by size is a tuple, in the order of the family's sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from stemma.declare.objectives import Objective
from stemma.declare.recipes import Schedule
from stemma.spec import Bound, Spec, at_least, interval, not_negative, positive, quiet, require

# What a row of the data holds. instructions: instruction, input, output; completions: prompt, completion;
# conversations: turns by role; comparisons: prompt, chosen, rejected; rankings: a prompt and answers, best first
Records = Literal["text", "instructions", "completions", "conversations", "comparisons", "rankings", "prompts"]


# ---------------------------------------------------------------- how records are written as text


@dataclass(frozen=True)
class Turns(Spec):
    """A conversation as text: each turn with its words in the place of `{}`. `system` stands before the first turn, or
    `inside` the first user's words; `default` is the system message of conversations that have none; `between` stands
    between an answer and the next user's turn. `generation` is what the model's answer follows. `tokens`: names in it
    that are one token each to the tokenizers of its models; other names are ordinary text. `strip`: words lose the
    blanks around them. `always`: the system message stands there where it is empty, too."""

    user: str
    assistant: str
    generation: str
    system: str = ""
    default: str = ""
    inside: bool = False
    between: str = ""
    tokens: tuple[str, ...] = quiet(())
    strip: bool = quiet(False)
    always: bool = quiet(False)

    def check(self) -> None:
        for name in ("user", "assistant"):
            require(getattr(self, name).count("{}") == 1, f"Turns.{name} must hold one {{}}, where the words stand")
        require(self.system.count("{}") <= 1, "Turns.system must hold at most one {}, where the words stand")


@dataclass(frozen=True)
class Instructions(Spec):
    """A row of instruction, input and output as text: `{instruction}` and `{input}` in their places, in `bare` without
    an input (left out: the same text for all rows); the output, written `answer`, follows. `trim`: characters that an
    instruction loses at its end where an input follows."""

    text: str
    bare: str = ""
    answer: str = "{}</s>"
    trim: str = ""

    def check(self) -> None:
        require("{instruction}" in self.text, "Instructions.text must hold {instruction}")


Template = Turns | Instructions


# ---------------------------------------------------------------- what learns


@dataclass(frozen=True)
class LoRA(Spec):
    """Low-rank matrices beside frozen ones (Hu et al. 2021, arXiv:2106.09685): `W + alpha / rank * B A` for the linear
    layers that `targets` names. `base`: how the frozen weights are stored (NF4: Dettmers et al. 2023, section 3;
    `double`: their scales are quantised too)."""

    rank: int | None = at_least(1, None)
    alpha: float | None = positive(None)
    dropout: float | tuple[float, ...] | None = interval("[0, 1)", None)
    targets: tuple[str, ...] = ()
    base: Literal["nf4", "int8"] | None = None
    double: bool = False


@dataclass(frozen=True)
class SoftPrompt(Spec):
    """`length` vectors before the embedded text of a frozen network (Lester et al. 2021, arXiv:2104.08691), drawn from
    U(-`spread`, `spread`); one for all tasks of a mixture."""

    length: int | None = at_least(1, None)
    spread: float | None = positive(None)


Adapter = LoRA | SoftPrompt


@dataclass(frozen=True)
class Source(Spec):
    """A part of the data: its `share` of what is drawn, its number of `examples`, the most of one set (`cap`), and how
    often it was read (`epochs`)."""

    name: str
    share: float | None = interval("[0, 1]", None)
    examples: int | None = at_least(1, None)
    cap: int | None = at_least(1, None)
    epochs: float | None = quiet(None, Bound(0, open_low=True, said="be positive"))


# ---------------------------------------------------------------- stages


@dataclass(frozen=True)
class Stage(Spec, open=True):
    """A stage of tuning. `examples`: of a step; `context`: the most tokens of a row; `average`: decay of a running mean
    of the weights. `lr`, `schedule`: where they are not those of the family's recipe, which is that of its main stage;
    `lr_share`: the rate as a share of the rate in pretraining; `warmup`: as a share of the stage's steps. `changes`:
    paths of the plan that the stage sets, each with its value, or a tuple of values by size
    (`("arch.position.base", 1e6)`); `longer`: so many times
    the model's context is read after it. `steps`, `tokens`: how long, where epochs are not what was published; `batch`:
    the tokens of a step, where its examples are not counted. `stand_in`: the data that it learns from here where none
    are named, such as "builtin:captain"."""

    word: ClassVar[str] = ""  # what `show` and `tree` print
    runs: ClassVar[bool] = False  # whether `stemma tune` carries it out

    records: Records | None = None
    template: Template | tuple[Template, ...] | None = None
    mixture: tuple[Source, ...] = ()
    epochs: float | tuple[float, ...] | None = positive(None)
    examples: int | tuple[int, ...] | None = positive(None)
    context: int | None = at_least(8, None)
    lr: float | tuple[float, ...] | None = positive(None)
    schedule: Schedule | None = None
    warmup: float | None = interval("[0, 1]", None)
    lr_share: float | tuple[float, ...] | None = positive(None)
    average: float | None = interval("(0, 1)", None)
    remembered: tuple[str, ...] = ()
    changes: tuple[tuple[str, tuple[float, ...] | Any], ...] = ()
    longer: float = positive(1.0)
    stand_in: str = ""
    steps: int | tuple[int | None, ...] | None = quiet(None)
    tokens: float | tuple[float | None, ...] | None = quiet(None)
    batch: int | tuple[int | None, ...] | None = quiet(None)

    @property
    def label(self) -> str:
        """What `show` and `tree` print of it."""
        return self.word


@dataclass(frozen=True)
class Pretraining(Stage):
    """More pretraining, on `objective` (None: the family's own). `files`: which files are read of a folder (`*.py`)."""

    word = "pretraining"
    runs = True
    objective: Objective | None = None
    files: str = quiet("")


@dataclass(frozen=True)
class SFT(Stage):
    """On demonstrations. `loss_on`: which tokens are targets (end tokens are part of an answer); `packed`: rows hold
    several examples; `adapter`: what learns in place of the weights; `pretraining_share`: of the examples that are
    pretraining text; `feedback`: markers before a preferred and before another answer, both of which are learnt;
    `then`: a second pass, on other data or in other rows. `inputs`, `targets`: the most tokens of what is asked and of
    the answer; what is longer loses its end."""

    word = "sft"
    runs = True
    loss_on: Literal["answers", "last answer", "everything"] | None = None
    packed: bool | None = None
    adapter: Adapter | None = None
    pretraining_share: float = interval("[0, 1)", 0.0)
    feedback: tuple[str, ...] = ()
    then: SFT | None = None
    inputs: int | None = quiet(None)
    targets: int | None = quiet(None)

    @property
    def label(self) -> str:
        return {LoRA: "adapter", SoftPrompt: "prompt"}.get(type(self.adapter), self.word)


@dataclass(frozen=True)
class RewardModel(Stage):
    """A scalar head, learnt from which answer people preferred: `-log sigmoid(r_chosen - r_rejected - margin)`.
    `models`: there is one for each; `size`: of the tree, where it is not the policy's; `margins`: sets that were tried,
    by grade of the preference; `grouped`: all pairs of a prompt are one element of a batch; `centred`: a bias makes the
    mean score of demonstrations 0."""

    word = "reward model"
    models: tuple[str, ...] = ()
    size: str = ""
    margins: tuple[tuple[float, ...], ...] = ()
    grouped: bool | None = None
    centred: bool | None = None


@dataclass(frozen=True)
class RejectionSampling(Stage):
    """The best of `samples` answers by the reward model: learnt as demonstrations in `rounds`, each from the base
    (`from_base`), or, with no round, only chosen when decoding. `ghost`: Ghost Attention is learnt beside it (LLaMA 2,
    section 3.3)."""

    word = "rejection sampling"
    samples: int | tuple[int, ...] | None = at_least(1, None)
    rounds: int = not_negative(0)
    from_base: bool | None = None
    ghost: bool | None = quiet(None)


@dataclass(frozen=True)
class RL(Stage):
    """Against a reward, less `kl` times the divergence a token from the policy at the start. PPO's numbers: `clip`,
    `discount` and `gae` (Schulman et al. 2017), `minibatch` of the examples, `inner` passes over them. `ptx`: weight of
    the gradient on pretraining text, `ptx_rows` rows of it an episode. `start`: the stage that makes the policy it
    starts from, where it is not the one before."""

    word = "rl"
    algorithm: Literal["ppo"] | None = None
    kl: float | tuple[float, ...] | None = not_negative(None)
    clip: float | None = positive(None)
    discount: float | None = interval("(0, 1]", None)
    gae: float | None = interval("[0, 1]", None)
    episodes: int | None = at_least(1, None)
    minibatch: int | None = at_least(1, None)
    inner: int | None = at_least(1, None)
    value_lr: float | tuple[float, ...] | None = positive(None)
    temperature: float | None = positive(None)
    ptx: float = not_negative(0.0)
    ptx_rows: int = not_negative(0)
    start: SFT | None = None


@dataclass(frozen=True)
class Preferences(Stage):
    """On pairs without a reward model: DPO (Rafailov et al. 2023, arXiv:2305.18290)."""

    word = "preferences"
    beta: float | None = positive(None)


# bare words, as files of one's own may have them
WORDS: dict[str, Stage] = {
    "pretraining": Pretraining(),
    "sft": SFT(),
    "reward model": RewardModel(),
    "rejection sampling": RejectionSampling(),
    "rl": RL(),
    "preferences": Preferences(),
    "adapter": SFT(adapter=LoRA()),
    "prompt": SFT(adapter=SoftPrompt()),
}


@dataclass(frozen=True)
class Tuning(Spec):
    """How the weights of a parent were trained on: the stages in order, and in words the data and the template. A stage
    whose numbers nobody knows may be a word (`"sft"`). `result`: what its authors report of it; `stand_ins`: what
    stands here in the place of what was not published or cannot be had."""

    stages: tuple[Stage, ...]
    data: str
    template: str = ""
    result: str = ""
    stand_ins: str = ""

    def check(self) -> None:
        for stage in self.stages:
            known = isinstance(stage, Stage) or stage in WORDS
            require(known, f"no stage {stage!r}; known: {', '.join(WORDS)}")
        object.__setattr__(self, "stages", tuple(WORDS[s] if isinstance(s, str) else s for s in self.stages))

    @property
    def labels(self) -> tuple[str, ...]:
        """What `show` and `tree` print of the stages."""
        return tuple(stage.label for stage in self.stages)
