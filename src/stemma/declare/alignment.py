"""Alignment as values: rows in which answers were compared, and what a model learns of them, with and without sampling.

No torch here; `stemma.objectives` and `stemma.alignment` run them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from stemma.declare.tasks import RowObjective, RowTask
from stemma.spec import Spec, at_least, interval, not_negative, positive, quiet, require

# ---------------------------------------------------------------- rows


# how clear a preference is (Touvron et al. 2023, LLaMA 2, section 3.2.1), the clearest first
GRADES = ("significantly better", "better", "slightly better", "negligibly better")


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
            len(self.margins) in (0, len(GRADES)),
            f"margins={self.margins} must be {len(GRADES)} numbers, one for each grade from {GRADES[0]} to unsure",
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
    """Learn from compared answers without a reward model. `beta`: how much a reward weighs, which is `beta` times the
    log-probability under the policy less that under the reference. `reference`: a folder or hub id of the frozen
    reference ("": the policy with its adapters off, where it has some, else the weights that the run begins from;
    "none": no reference, for losses that need none). `precompute`: what the reference says is computed once, before the
    first step, and kept in the folder of the run, so that the reference is not there while the policy learns."""

    task: RowTask = PreferTask()
    beta: float = positive(0.1)
    reference: str = ""
    precompute: bool = quiet(False)

    @property
    def networks(self) -> dict[str, tuple[str, bool]]:
        return {"reference": (self.reference, False)} if self.reference not in ("", "none") else {}

    def check(self) -> None:
        require(
            not self.precompute or self.reference != "none",
            "objective.precompute=true keeps what a reference says, and objective.reference=none has none: leave one "
            "of them out",
        )


@dataclass(frozen=True)
class DPO(Preference):
    """Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290, eq. 7) and what was published after it.
    With d, the reward of the chosen answer less that of the rejected one, less `margin`, a pair costs by `loss`:

    "sigmoid": -log sigmoid(d); with `smoothing` s, the share of pairs that are taken for labelled the wrong way,
    -(1-s) log sigmoid(d) - s log sigmoid(-d) (conservative DPO: Mitchell 2023, "A note on DPO with noisy preferences")
    "robust": (-(1-s) log sigmoid(d) + s log sigmoid(-d)) / (1-2s) (Chowdhury et al. 2024, arXiv:2403.00409)
    "hinge": max(0, 1 - d) (SLiC: Zhao et al. 2023, arXiv:2305.10425; Liu et al. 2023, arXiv:2309.06657)
    "ipo": (d / beta - 1 / (2 beta))^2 (Azar et al. 2023, arXiv:2310.12036, eq. 17)
    "odds": -beta log sigmoid(log odds ratio), without a reference (ORPO: Hong et al. 2024, arXiv:2403.07691)
    "apo_zero", "apo_down": D'Oosterlinck et al. 2024, arXiv:2408.06266, eqs. 7 and 8

    `average`: rewards are means over the tokens of an answer and not sums (SimPO: Meng et al. 2024, arXiv:2405.14734;
    `dpo_norm` of Tulu 3: Lambert et al. 2024, arXiv:2411.15124); None: for "ipo" (as its authors say that they did) and
    "odds". `sft`: weight of the cross-entropy of the best answer, a mean over its tokens (RPO: Pang et al. 2024,
    arXiv:2404.19733; CPO, ORPO). `positive`: DPO-positive's penalty on a best answer that falls below the reference, d
    less beta times `positive` times the fall (Pal et al. 2024, arXiv:2402.13228). `margin`: SimPO's gamma.

    Of more than two answers all pairs of different rank count, as a mean over the pairs of a row."""

    label = "DPO"
    loss: Literal["sigmoid", "robust", "hinge", "ipo", "odds", "apo_zero", "apo_down"] = "sigmoid"
    smoothing: float = interval("[0, 0.5)", 0.0)
    average: bool | None = None
    margin: float = not_negative(0.0)
    sft: float = not_negative(0.0)
    positive: float = not_negative(0.0)

    @property
    def averaged(self) -> bool:
        """Whether rewards are means over tokens."""
        return self.loss in ("ipo", "odds") if self.average is None else self.average

    def check(self) -> None:
        super().check()
        plain = not isinstance(self.task, PreferTask) or (not self.task.margins and self.task.ties == "drop")
        require(plain, "objective.task.margins and objective.task.ties are for reward models: DPO passes over ties")
        require(
            not self.smoothing or self.loss in ("sigmoid", "robust"),
            f"objective.smoothing is for the losses sigmoid and robust, not {self.loss}",
        )
        require(
            self.loss != "odds" or (self.reference == "none" and self.averaged),
            "objective.loss=odds compares the policy's own mean log-probabilities: set objective.reference=none, and "
            "leave objective.average out",
        )
        require(
            not self.positive or self.reference != "none",
            "objective.positive measures a fall below the reference; leave objective.reference=none out",
        )
        for name, value in (("positive", self.positive), ("margin", self.margin)):
            require(
                not value or self.loss in ("sigmoid", "robust", "hinge"),
                f"objective.{name} is for the losses sigmoid, robust and hinge, not {self.loss}",
            )
        require(
            self.reference != "none" or not self.loss.startswith("apo"),
            f"objective.loss={self.loss} compares with a reference; leave objective.reference=none out",
        )


@dataclass(frozen=True)
class KTO(Preference):
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv:2402.01306, section 4.1): a liked answer costs
    `desirable` (1 - sigmoid(r - beta z)), another one `undesirable` (1 - sigmoid(beta z - r)), with its reward r. z is
    an estimate of the divergence of the policy from its reference, at least 0 and without gradient: the mean over a
    `group` of rows, each prompt with the answer of the row before it. The rows of a group stay together, so that the
    gradient does not depend on how a step is split."""

    label = "KTO"
    task: RowTask = ThumbTask()
    desirable: float = positive(1.0)
    undesirable: float = positive(1.0)
    group: int = at_least(2, 8, "row")

    def check(self) -> None:
        super().check()
        require(
            self.reference != "none", "KTO measures its rewards from a reference; leave objective.reference=none out"
        )


# ---------------------------------------------------------------- learnt from what the model writes


@dataclass(frozen=True)
class Reward(Spec):
    """What judges an answer: `FILE.py:name` (a function of prompt, answer and record to a number), a folder of a reward
    model, or `builtin:NAME`; times `weight`. `fingerprint`: of the file or the weights when the run began."""

    source: str
    weight: float = 1.0
    fingerprint: str = ""


@dataclass(frozen=True)
class Gates(Spec):
    """What stops a run that samples, with a sentence (`alignment.health`); None: nothing does. `ratio`: how far the
    policy's ratio to itself may be off 1 before the first update of a step. `kl`: the most nats an answer that the
    policy may be away from its reference; `negative`: by how many standard errors that estimate may lie below 0.
    For `patience` steps in a row: fewer than a share of answers `finished` by themselves; rewards whose standard
    deviation is not above `spread`; fewer than a share of `distinct` answers. `gap`: the mean distance in nats between
    what the model that wrote a token and the one that learns say of it."""

    ratio: float | None = positive(1e-4)
    kl: float | None = positive(100.0)
    negative: float | None = positive(6.0)
    finished: float | None = interval("[0, 1]", 0.02)
    spread: float | None = not_negative(1e-6)
    distinct: float | None = interval("[0, 1]", 0.05)
    gap: float | None = positive(0.5)
    patience: int = at_least(1, 3)


@dataclass(frozen=True)
class Online(RowObjective):
    """Learn from answers that the model samples itself: `samples` to each of `prompts` prompts a step, at most
    `max_new_tokens` long. `rewards` are added up; an answer without an end token gets `unfinished` in their place, if
    that is set. `inner`: passes over the answers of a step; `minibatch`: answers of an optimiser update (None: all).
    `kl`: weight of the divergence from the reference; 0: none is needed. `seconds`: that a reward function may take for
    an answer. `judged`: held-out prompts that are answered where the run is evaluated. `gates`: what stops a run that
    has lost its way. `server`: URL#MODEL of a server that samples in this process's place; before it does, the weights
    are written to the folder `served` (left out: RUN/served), which it must be able to read."""

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
    seconds: float = positive(10.0)
    judged: int = at_least(1, 64)
    gates: Gates = Gates()
    server: str = ""
    served: str = ""

    @property
    def networks(self) -> dict[str, tuple[str, bool]]:
        return {"reference": (self.reference, False)} if self.reference else {}

    def check(self) -> None:
        answers = self.prompts * self.samples
        require(
            self.minibatch is None or self.minibatch <= answers,
            f"minibatch={self.minibatch} is more than the {answers} answers of a step (prompts * samples)",
        )
        require(
            not self.server or (self.temperature == 1 and self.top_p == 1 and self.top_k == 0),
            "a server tells the log-probabilities of the whole distribution at temperature 1, so with objective.server "
            "temperature and top_p are 1 and top_k is 0",
        )


@dataclass(frozen=True)
class PPO(Online):
    """Proximal policy optimisation against a reward less a divergence from a reference (Schulman et al. 2017,
    arXiv:1707.06347; Ziegler et al. 2019, arXiv:1909.08593; Ouyang et al. 2022, appendix C.4).

    Each token's reward is `-kl` times its log-probability over that of the reference, the last one's the answer's too.
    `gamma`, `lam`: of the advantages; `whiten`: over all answers of a step, those of an update, or not; with
    `whiten_rewards` the rewards of tokens are scaled first. `clip`: of the policy's ratio; `value_clip`: of the values
    (None: not); `value_weight`: of their loss. `value`: the weights that the value model begins from ("": the reward
    model, where one judges that has the policy's tokenizer, else the policy's with a new head). `kl_target`: nats an
    answer to which `kl` adapts, over about `kl_horizon` answers. `ptx`: pretraining text, whose gradient times
    `ptx_weight` is added to each update (both losses are means over their tokens), `ptx_rows` rows of it for an answer;
    with the weight 0 it is only judged."""

    label = "PPO"
    module = ".alignment.ppo"
    value: str = ""
    gamma: float = interval("[0, 1]", 1.0)
    lam: float = interval("[0, 1]", 0.95)
    whiten: Literal["step", "update", "none"] = "step"
    whiten_rewards: bool = False
    clip: float = interval("(0, 1)", 0.2)
    value_clip: float | None = positive(0.2)
    value_weight: float = positive(0.1)
    kl_target: float | None = positive(None)
    kl_horizon: float = positive(10_000.0)
    ptx: str = ""
    ptx_weight: float = not_negative(27.8)
    ptx_rows: float = positive(1.0)

    @property
    def networks(self) -> dict[str, tuple[str, bool]]:
        return super().networks | ({"value": (self.value, True)} if self.value else {})

    def check(self) -> None:
        super().check()
        require(
            self.kl_target is None or self.kl > 0,
            "objective.kl_target adapts objective.kl, which is 0: give one above 0 to begin with",
        )


@dataclass(frozen=True)
class GRPO(Online):
    """Group relative policy optimisation (Shao et al. 2024, arXiv:2402.03300) and what was published after it. Each
    prompt gets `samples` answers, a group; an answer's advantage is its reward less a `baseline`, on a `scale`; all of
    its tokens have it. The formulas are in `objectives.policy_gradient`.

    `baseline`: the mean of the "group", of the "others" in it, of the "batch", or "none". `scale`: by the standard
    deviation of the "group" or the "batch", "whiten" over the batch, or "none". `clip`, `clip_high`: how far the
    probability ratio may go below and above 1 (None: as far). `ratio`: of each "token", of the "sequence", or its
    geometric "mean". `reduction`: "sequences" count alike, or "tokens" do, or each token counts a "constant", one over
    `max_new_tokens`. `penalty`: `kl` times the divergence from the reference is part of the "loss" (the k3 estimate),
    or is taken from the "reward" (k1, over the whole answer). `equal`: groups whose rewards are all equal are kept,
    dropped, or drawn "again" for other prompts, up to `tries` prompts for each. `overlong`: an answer loses up to 1
    over the last so many tokens before `max_new_tokens` (DAPO). `cut`: answers that were cut there are kept or dropped.
    `offline`: the first `samples` answers of each row are learnt in place of sampled ones (`builtin:scores`: their
    scores in the rows). The values of published methods are in `alignment.plans.VARIANTS`."""

    label = "GRPO"
    module = ".alignment.grpo"
    samples: int = at_least(1, 8)
    kl: float = not_negative(0.04)
    baseline: Literal["group", "others", "batch", "none"] = "group"
    scale: Literal["group", "batch", "whiten", "none"] = "group"
    clip: float = interval("(0, 1)", 0.2)
    clip_high: float | None = positive(None)
    ratio: Literal["token", "sequence", "mean"] = "token"
    reduction: Literal["sequences", "tokens", "constant"] = "sequences"
    penalty: Literal["loss", "reward"] = "loss"
    equal: Literal["keep", "drop", "again"] = "keep"
    tries: int = at_least(1, 4)
    overlong: int = not_negative(0)
    cut: Literal["keep", "drop"] = "keep"
    offline: bool = False

    def check(self) -> None:
        super().check()
        require(
            not self.offline or (self.penalty == "loss" and self.equal != "again"),
            "objective.offline=true samples no answers: objective.penalty=loss and equal=keep or drop go with it",
        )
        grouped = self.baseline in ("group", "others") or self.scale == "group"
        require(
            self.samples > 1 or not grouped,
            f"objective.samples=1 makes groups of one answer, which objective.baseline={self.baseline} and scale="
            f"{self.scale} compare with nothing: take more samples, or baseline=batch and scale=none",
        )
        require(
            self.overlong <= self.max_new_tokens,
            f"objective.overlong={self.overlong} is more than the {self.max_new_tokens} tokens of an answer",
        )


@dataclass(frozen=True)
class GKD(Online):
    """On-policy distillation from a `teacher` with the same tokenizer (Agarwal et al. 2024, arXiv:2306.13649): at each
    token of an answer the student learns the teacher's distribution, by the generalised Jensen-Shannon divergence.
    `beta`: 0 is KL(teacher, student), 1 is KL(student, teacher). `on_policy`: the share of the steps whose answers the
    student samples; the others learn the answers of the data."""

    label = "on-policy distillation"
    module = ".alignment.gkd"
    kl: float = not_negative(0.0)
    teacher: str = ""
    beta: float = interval("[0, 1]", 0.5)
    on_policy: float = interval("[0, 1]", 0.5)

    @property
    def networks(self) -> dict[str, tuple[str, bool]]:
        return super().networks | ({"teacher": (self.teacher, False)} if self.teacher else {})
