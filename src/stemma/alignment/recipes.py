"""The recipes of published chat models, from their declared stages (`declare.tuning`) to a chain of runs.

Numbers are the published ones where `full`; else they are scaled, as `stemma tune FAMILY` scales them: fewer examples a
step, fewer rounds, and rates that a narrower network may have. What is unpublished is chosen here (`CHOSEN`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from stemma import families
from stemma.alignment.chains import Judged, Step
from stemma.declare.tuning import RL, SFT, Preferences, RejectionSampling, RewardModel, Stage
from stemma.tuning import systems
from stemma.tuning.plans import ROW, started

# recipes, and whose numbers stand in where a family's own are unpublished
NAMES = {"instructgpt": "", "chatgpt": "instructgpt", "llama2-chat": "", "tulu2": ""}
HELPFUL, SAFE = "builtin:preferences", "builtin:harmless"
RANKED, PAIRS = f"builtin:rankings,{SAFE}", f"{HELPFUL},{SAFE}"  # of one model that is asked for both
PROMPTS, HELD, TEXT = "builtin:questions", "builtin:questions_held", "builtin:docs"
GOLD, TALKS = "builtin:careful", "builtin:dialogues"
FASTER = 10.0  # times the published rate at most, in a scaled run
EPOCHS = 4.0  # times a reward model's epochs in a scaled run: of hundreds of pairs, not a million; the best is kept
CHOSEN = {"samples": 8, "temperature": (1.0, 1.2), "epochs": 3.0}  # where nothing is published
SCALED = {"rounds": 2, "tokens": 40, "prompts": 32, "minibatch": 16, "steps": 40, "init": 60}
HELD_TO = 0.1  # least weight of the divergence in a scaled run: small reward models err soon (bench/recipes.py)
# peak rates of a scaled run times the width of the model: what moves models of a width of 96 to 128 (bench/methods.py)
JUDGING, REINFORCED, PREFERRED = 4e-4 * 128, 2e-4 * 128, 1e-4 * 128


@dataclass
class Making:
    """A chain that is being made: its steps so far, and the numbers of the steps that made the policy, what it begins
    from, and the reward models. `wider`: how many times the published width is the model's; `context`: the tokens of a
    row of its reward models; `changes`: by the words of steps."""

    name: str
    wider: float
    width: int
    context: int
    full: bool
    template: str | None
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    policy: int = 0
    judges: list[int] = field(default_factory=list)
    models: dict[str, str] = field(default_factory=dict)

    def add(self, step: Step) -> int:
        """Add a step with what its user changed, so that later ones build on that; returns its number."""
        self.steps.append(changed(step, dict(self.changes.get(step.word, {}))))
        return len(self.steps)

    def rate(self, published: float | None) -> dict[str, Any]:
        """The change that sets a peak rate; none where none is published."""
        if published is None:
            return {}
        return {"recipe.lr": published if self.full else published * min(FASTER, max(1.0, self.wider))}

    def scaled(self, published: float | None, times_width: float) -> dict[str, Any]:
        """The change that sets a peak rate: the published one, or in a scaled run one that falls with the width."""
        return self.rate(published) if self.full else {"recipe.lr": times_width / self.width}

    @property
    def settings(self) -> dict[str, Any]:
        """Of conversations: the template, where one is named."""
        return {"template": self.template} if self.template else {}

    @property
    def reward(self) -> str:
        """The reward of the models so far: one, or LLaMA-2-Chat's combination of two."""
        made = [f"@{number}" for number in self.judges]
        return made[0] if len(made) == 1 else f"safety-first:{','.join(made)}"


def stages(name: str) -> list[Stage]:
    """The stages of a recipe. Of a family whose numbers are unpublished they are those of the one that its method is
    said to be, with its own data for the first."""
    own = families.family(name).tuning
    assert own is not None
    if not NAMES[name]:
        return list(own.stages)
    like = families.family(NAMES[name]).tuning
    assert like is not None
    return [mine if isinstance(mine, SFT) else theirs for mine, theirs in zip(own.stages, like.stages, strict=True)]


def steps(
    name: str, start: str, template: str | None = None, full: bool = False,
    changes: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[list[Step], Judged]:  # fmt: skip
    """(the steps of the recipe `name` from the model `start`, how they are judged). `changes`: of each step by its
    word; `data` and `budget` among them are the step's own."""
    there = started(start)
    design = next(iter(families.family(NAMES[name] or name).sizes))
    wider = families.design(design).dims.d_model / there.dims.d_model
    if template is None and NAMES[name] and there.tokenizer.chat_template is None:
        template = systems.DEFAULT  # where none is published, and the model has none
    made = Making(name, wider, there.dims.d_model, min(there.dims.context, ROW), full, template, changes or {})
    tuned = 0
    for stage in stages(name):
        match stage:
            case SFT():
                tuned += 1
                demonstrations(made, stage, tuned)
            case RewardModel():
                reward_models(made, stage)
            case RejectionSampling():
                sampling(made, stage)
                talks = (changes or {}).get("gatt", {}).get("data", TALKS if full else "none")
                if stage.ghost and talks != "none":
                    ghost_attention(made)
            case RL():
                reinforcement(made, stage)
            case Preferences():
                preferences(made, stage)
    rewards = {"reward": (made.reward,)} if made.judges else {}
    models = made.models
    first = next(iter(models))
    return made.steps, Judged(
        models, HELD, {**rewards, "gold": (GOLD,)}, first, tokens=SCALED["tokens"], template=template
    )


def words(name: str) -> list[str]:
    """The words of a recipe's steps, which its settings begin with ("gatt" is left out of scaled runs by itself)."""
    found: list[str] = []
    for stage in stages(name):
        match stage:
            case SFT():
                found.append("sft")
            case RewardModel():
                found += [f"reward-{one}" for one in stage.models] or ["reward"]
            case RejectionSampling() if stage.rounds:
                found += ["rs", "gatt"] if stage.ghost else ["rs"]
            case RL():
                found += ["ppo-init", "ppo"] if stage.start else ["ppo"]
            case Preferences():
                found.append("dpo")
    return found


def changed(step: Step, own: dict[str, Any]) -> Step:
    """A step with what its user changed."""
    step = replace(step, data=own.pop("data", step.data), budget=own.pop("budget", step.budget))
    drawn = [path for path in own if path.startswith("ghost." if step.what == "gatt" else "rounds.")]
    rounds = {path.partition(".")[2]: own.pop(path) for path in drawn}
    return replace(step, overrides={**step.overrides, **own}, rounds={**step.rounds, **rounds})


# ---------------------------------------------------------------- stages


def demonstrations(made: Making, stage: SFT, number: int) -> None:
    """Supervised tuning: the family's own stage, or plain conversations where its numbers are unpublished."""
    known = not NAMES[made.name]
    data = stage.stand_in or "builtin:dialogues"
    more: dict[str, Any] = {"settings": made.settings}
    made.policy = made.add(Step("sft", "sft", "@0", data, stage=number if known else None, **more))
    made.models["SFT"] = f"@{made.policy}"


def reward_models(made: Making, stage: RewardModel) -> None:
    """A reward model for each of the stage's `models`, from the tuned policy."""
    for name in stage.models or ("",):
        data = RANKED if stage.grouped else SAFE if name == "safety" else HELPFUL
        changes: dict[str, Any] = {"objective.centred": bool(stage.centred)}
        changes |= made.scaled(_of(stage.lr), JUDGING)
        if stage.margins:
            changes["objective.task.margins"] = tuple(stage.margins[-1])  # the smaller ones, which split no scores
        changes |= schedule(stage)
        if made.full and stage.examples:
            changes["recipe.batch"] = int(_of(stage.examples)) * made.context
        word = f"reward-{name}" if name else "reward"
        epochs = (_of(stage.epochs) or 1) * (1 if made.full else EPOCHS)
        budget = f"{epochs:g} epochs"
        step = Step("reward", word, f"@{made.policy}", data, budget, settings=made.settings, overrides=changes)
        made.judges.append(made.add(step))


def sampling(made: Making, stage: RejectionSampling) -> None:
    """Rounds of rejection sampling; without a round answers are only chosen when decoding."""
    if not stage.rounds:
        return
    rounds = {
        "rounds": stage.rounds if made.full else SCALED["rounds"], "samples": _of(stage.samples) or CHOSEN["samples"],
        "temperature": CHOSEN["temperature"], "tokens": SCALED["tokens"], "from_base": bool(stage.from_base),
        "beside": made.steps[0].data,
    }  # fmt: skip
    base = "@0" if stage.from_base else None
    made.policy = made.add(
        Step(
            "rs", "rs", f"@{made.policy}", PROMPTS, f"{CHOSEN['epochs']:g} epochs", rewards=(made.reward,), base=base,
            rounds=rounds, **supervised(made),
        )
    )  # fmt: skip
    made.models["rejection sampling"] = f"@{made.policy}"


def supervised(made: Making) -> dict[str, Any]:
    """The template and the rate of what learns conversations as the recipe's demonstrations are learnt."""
    template = made.template or systems.template_of(stages_template(made.name))
    rate = families.design(next(iter(families.family(made.name).sizes))).recipe.lr
    return {"settings": {"template": template} if template else {}, "overrides": made.rate(rate)}


def ghost_attention(made: Making) -> None:
    """Ghost Attention, which LLaMA 2 has after the third of its versions: here after the last round of sampling, since
    each round begins from the base again and would forget it. A scaled run has it where `gatt.data` names
    conversations: models of its size follow no such instruction by themselves. What is learnt is chosen here."""
    drawn = {"tokens": SCALED["tokens"]}
    step = Step("gatt", "gatt", f"@{made.policy}", TALKS, "1 epochs", rounds=drawn, **supervised(made))
    made.policy = made.add(step)
    made.models["Ghost Attention"] = f"@{made.policy}"


def reinforcement(made: Making, stage: RL) -> None:
    """PPO against the reward models, from the policy so far or, where the stage says so, from another one."""
    start = made.policy
    if stage.start is not None:
        start = made.add(beginning(made, stage.start))
    changes: dict[str, Any] = {
        "objective.kl": _of(stage.kl), "objective.clip": stage.clip, "objective.gamma": stage.discount,
        "objective.lam": stage.gae, "objective.inner": stage.inner, "objective.temperature": stage.temperature,
        "train.average": stage.average,
    }  # fmt: skip
    changes = {path: value for path, value in changes.items() if value is not None}
    if not made.full and "objective.kl" in changes:
        changes["objective.kl"] = max(changes["objective.kl"], HELD_TO)
    changes |= made.scaled(_of(stage.lr), REINFORCED) | schedule(stage)
    changes["objective.prompts"] = _of(stage.examples) if made.full and stage.examples else SCALED["prompts"]
    changes["objective.minibatch"] = stage.minibatch if made.full and stage.minibatch else SCALED["minibatch"]
    changes["objective.max_new_tokens"] = SCALED["tokens"]
    if stage.ptx:
        weight = stage.ptx if made.full else 1.0
        changes |= {"objective.ptx": TEXT, "objective.ptx_weight": weight}
        changes["objective.ptx_rows"] = float(stage.ptx_rows) if made.full else 1.0
    steps = stage.episodes // int(_of(stage.examples) or 1) if made.full and stage.episodes else SCALED["steps"]
    more: dict[str, Any] = {"rewards": (made.reward,), "settings": made.settings, "overrides": changes}
    made.policy = made.add(Step("ppo", "ppo", f"@{start}", PROMPTS, f"{steps} steps", **more))
    made.models["PPO"] = f"@{made.policy}"


def beginning(made: Making, stage: SFT) -> Step:
    """The tuning of what PPO begins from: demonstrations with some pretraining text."""
    first = made.steps[0]
    changes = made.rate(_of(stage.lr))
    data = first.data
    share = stage.pretraining_share
    if share:
        data = f"{data}@{1 - share:g},{TEXT}@{share:g}"
        changes["objective.task.texts"] = True
    # epochs of the mixture are those of the text, which is far longer than some hundred demonstrations
    budget = f"{stage.epochs or 2:g} epochs" if made.full or not share else f"{SCALED['init']} steps"
    return replace(first, word="ppo-init", data=data, budget=budget, overrides=changes)


def preferences(made: Making, stage: Preferences) -> None:
    """DPO on pairs, held to the policy so far."""
    changes: dict[str, Any] = made.scaled(_of(stage.lr), PREFERRED) | schedule(stage)
    if stage.beta is not None:
        changes["objective.beta"] = stage.beta
    budget = f"{stage.epochs or 1:g} epochs"
    step = Step("dpo", "dpo", f"@{made.policy}", PAIRS, budget, settings=made.settings, overrides=changes)
    made.policy = made.add(step)
    made.models["DPO"] = f"@{made.policy}"


def stages_template(name: str) -> Any:
    """The declared template of a recipe's demonstrations; None where it has none."""
    found = next((stage for stage in stages(name) if isinstance(stage, SFT)), None)
    return _of(found.template) if found is not None else None


def schedule(stage: Stage) -> dict[str, Any]:
    """The change that sets a stage's schedule."""
    own = stage.schedule
    return {} if own is None else {"recipe.schedule.shape": own.shape, "recipe.schedule.floor": own.floor}


def _of(value: Any) -> Any:
    """Of values by size, the first."""
    return value[0] if isinstance(value, tuple) and value else value


def listed(found: Sequence[Step]) -> str:
    """The steps of a recipe in a line."""
    return ", ".join(step.word for step in found)
