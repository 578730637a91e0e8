"""Alignment as values: rows in which answers were compared, and what a model learns of them, with and without sampling.

No torch here; `stemma.objectives` and `stemma.alignment` run them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from stemma.declare.tasks import RowObjective, RowTask
from stemma.spec import Spec, at_least, interval, not_negative, positive, quiet, require

# ---------------------------------------------------------------- rows


GRADES = 4  # of a preference: significantly better, better, slightly better, negligibly better or unsure
# by which the scores of a pair should differ, by grade (Touvron et al. 2023, LLaMA 2, table 27)
SMALL, LARGE = (1.0, 2 / 3, 1 / 3, 0.0), (3.0, 2.0, 1.0, 0.0)


@dataclass(frozen=True)
class PreferTask(RowTask):
    """Answers to one prompt that were compared (`conversations.comparisons`), written by a chat `template` (""; the
    tokenizer's own). `margins`: by which the scores of a pair should differ, by the grade of the preference, the
    clearest first (Touvron et al. 2023, LLaMA 2, section 3.2.2: 3, 2, 1, 0 or 1, 2/3, 1/3, 0); none: 0, or what a row
    says. `ties`: answers of one rank are passed over (Ouyang et al. 2022) or count half (Nakano et al. 2021). `shift`:
    what a reward model adds to each score, so that preferred answers have 0 on average."""

    template: str = ""
    margins: tuple[float, ...] = ()
    ties: Literal["drop", "half"] = "drop"
    shift: float = quiet(0.0)

    def check(self) -> None:
        require(
            len(self.margins) in (0, GRADES),
            f"margins={self.margins} must be {GRADES} numbers, one for each grade from significantly better to unsure",
        )


@dataclass(frozen=True)
class ThumbTask(RowTask):
    """One answer to a prompt, and whether it was liked."""

    template: str = ""


@dataclass(frozen=True)
class PromptTask(RowTask):
    """Conversations that wait for an answer; the answers that rows may have are left out."""

    template: str = ""


# ---------------------------------------------------------------- learnt from rows


@dataclass(frozen=True)
class Ranking(RowObjective):
    """A reward model: the score of the better answer above that of the other, `-log sigmoid(r_w - r_l - margin)`. The
    loss of a prompt is the mean over all pairs of its answers, that of a step the mean over prompts, so that prompts
    with four and with nine answers weigh alike (Ouyang et al. 2022, section 3.5). `centring`: weight of `(r_w +
    r_l)^2` beside it (Eisenstein et al. 2023, arXiv:2312.09244). `centred`: the scores of the finished model are
    shifted so that preferred answers have 0 on average (Ouyang et al. 2022, section 3.5)."""

    label = "ranking"
    reads_vocabulary = False
    task: RowTask = PreferTask()
    centring: float = not_negative(0.0)
    centred: bool = True


@dataclass(frozen=True)
class Preference(RowObjective):
    """Learn from compared answers without a reward model. `reference`: a folder or hub id of the frozen reference ("":
    the policy with its adapters off, where it has some, else the weights that the run begins from)."""

    task: RowTask = PreferTask()
    beta: float = positive(0.1)
    reference: str = ""

    @property
    def networks(self) -> dict[str, tuple[str, bool]]:
        return {"reference": (self.reference, False)} if self.reference else {}


@dataclass(frozen=True)
class DPO(Preference):
    """Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290)."""

    label = "DPO"


@dataclass(frozen=True)
class KTO(Preference):
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv:2402.01306)."""

    label = "KTO"
    task: RowTask = ThumbTask()


# ---------------------------------------------------------------- learnt from what the model writes


@dataclass(frozen=True)
class Reward(Spec):
    """What judges an answer: `FILE.py:name` (a function of prompt, answer and record to a number), a folder of a reward
    model, or `builtin:NAME`; times `weight`. `fingerprint`: of the file or the weights when the run began."""

    source: str
    weight: float = 1.0
    fingerprint: str = ""


@dataclass(frozen=True)
class Online(RowObjective):
    """Learn from answers that the model samples itself: `samples` to each of `prompts` prompts a step, at most
    `max_new_tokens` long. `rewards` are added up; an answer without an end token gets `unfinished` in their place, if
    that is set. `inner`: passes over the answers of a step; `minibatch`: answers of an optimiser update (None: all)."""

    module: ClassVar[str] = ""
    task: RowTask = PromptTask()
    rewards: tuple[Reward, ...] = ()
    reference: str = ""
    prompts: int = at_least(1, 16)
    samples: int = at_least(1, 1)
    max_new_tokens: int = at_least(1, 64)
    temperature: float = positive(1.0)
    top_p: float = interval("(0, 1]", 1.0)
    top_k: int = not_negative(0)
    unfinished: float | None = None
    inner: int = at_least(1, 1)
    minibatch: int | None = at_least(1, None)
    kl: float = not_negative(0.02)

    @property
    def networks(self) -> dict[str, tuple[str, bool]]:
        return {"reference": (self.reference, False)} if self.reference else {}

    def check(self) -> None:
        answers = self.prompts * self.samples
        require(
            self.minibatch is None or self.minibatch <= answers,
            f"minibatch={self.minibatch} is more than the {answers} answers of a step (prompts * samples)",
        )


@dataclass(frozen=True)
class PPO(Online):
    """Proximal policy optimisation against a reward less a divergence from a reference (Schulman et al. 2017,
    arXiv:1707.06347; Ziegler et al. 2019, arXiv:1909.08593; Ouyang et al. 2022, appendix C.4)."""

    label = "PPO"
    module = "stemma.alignment.ppo"


@dataclass(frozen=True)
class GRPO(Online):
    """Group relative policy optimisation (Shao et al. 2024, arXiv:2402.03300)."""

    label = "GRPO"
    module = "stemma.alignment.grpo"
    samples: int = at_least(1, 8)


@dataclass(frozen=True)
class GKD(Online):
    """On-policy distillation from a teacher (Agarwal et al. 2024, arXiv:2306.13649)."""

    label = "on-policy distillation"
    module = "stemma.alignment.gkd"
    teacher: str = ""
