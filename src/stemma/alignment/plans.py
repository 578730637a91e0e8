"""From a model, a method and rows to the plan of a run."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from stemma import formats, spec
from stemma.alignment import rewards as judges
from stemma.declare.alignment import DPO, GKD, GRPO, KTO, PPO, Online, Preference, Ranking
from stemma.declare.recipes import AdamW, Recipe, Schedule
from stemma.declare.tasks import RegressTask, RowObjective
from stemma.errors import UsageError, did_you_mean
from stemma.nn.model import Model
from stemma.nn.parts import Arch, Dropout
from stemma.objectives import incompatible_reason
from stemma.rewrites.kinds import Rewrite
from stemma.train.config import Net, Plan, Train
from stemma.train.plans import start_folder
from stemma.tuning import heads
from stemma.tuning.plans import ROW, SCALE, beside, fitting, started

METHODS: dict[str, type[RowObjective]] = {
    "reward": Ranking, "dpo": DPO, "kto": KTO, "ppo": PPO, "grpo": GRPO, "gkd": GKD,
}  # fmt: skip
# methods that are values of another one
VARIANTS: dict[str, tuple[type[RowObjective], dict[str, Any]]] = {
    # Dr. GRPO: Liu et al. 2025, arXiv:2503.20783, section 3.1
    "dr_grpo": (GRPO, {"scale": "none", "reduction": "constant", "kl": 0.0}),
    # DAPO: Yu et al. 2025, arXiv:2503.14476, section 3 (its overlong penalty is objective.overlong)
    "dapo": (GRPO, {"clip_high": 0.28, "reduction": "tokens", "equal": "again", "kl": 0.0}),
    # GSPO: Zheng et al. 2025, arXiv:2507.18071, section 5.1
    "gspo": (GRPO, {"ratio": "mean", "clip": 3e-4, "clip_high": 4e-4, "kl": 0.0}),
    # RLOO: Ahmadian et al. 2024, arXiv:2402.14740, section 2
    "rloo": (GRPO, {"baseline": "others", "scale": "none", "ratio": "sequence", "penalty": "reward"}),
    # REINFORCE++ with a baseline of the group: Hu 2025, arXiv:2501.03262
    "reinforce++": (GRPO, {"scale": "whiten", "reduction": "tokens", "penalty": "reward"}),
}
EXAMPLES = 16  # of a step
HELD = 0.1  # share of the rows by which a run is judged

# peak rates of all weights and of adapters
RATES = {"reward": (2e-5, 2e-4), "dpo": (5e-6, 5e-5), "kto": (5e-6, 5e-5)}
ONLINE = (5e-6, 5e-5)
BEST = {"reward": "loss"}


def method(what: str, others: Collection[str] = ()) -> type[RowObjective]:
    """What `stemma align WHAT` learns. Raises UsageError for an unknown name; `others` are known, too, elsewhere."""
    if what not in METHODS and what not in VARIANTS:
        known = (*METHODS, *VARIANTS, *others)
        raise UsageError(
            f"no method of alignment is called {what!r}; known: {', '.join(known)}{did_you_mean(what, known)}"
        )
    return VARIANTS[what][0] if what in VARIANTS else METHODS[what]


def resolve(
    what: str,
    start: str,
    data: str,
    budget: str | None = None,
    seed: int = 1,
    *,
    rewards: Sequence[str] = (),
    reference: str | None = None,
    template: str | None = None,
    lora: int | None = None,
    quantize: str | None = None,
    rewrites: tuple[Rewrite, ...] = (),
    overrides: Mapping[str, Any] | None = None,
) -> Plan:
    """The plan of aligning the model `start` by the method `what` on the rows of `data`; the arguments are those of
    `align`. Raises UsageError for what does not fit."""
    kind, changes, there = method(what), dict(overrides or {}), started(start)
    own = {path.partition(".")[2]: value for path, value in changes.items() if path.startswith("objective.")}
    changes = {path: value for path, value in changes.items() if not path.startswith("objective.")}
    if template:
        own.setdefault("task.template", template)
    objective = spec.edit(kind(), VARIANTS.get(what, (kind, {}))[1] | own)
    assert isinstance(objective, RowObjective)
    if rewards:
        if not isinstance(objective, Online):
            raise UsageError(f"{what} learns from rows that were compared, so it takes no reward")
        objective = replace(objective, rewards=(*objective.rewards, *map(judges.declared, rewards)))
    if isinstance(objective, GRPO | PPO) and not objective.rewards:
        raise UsageError(f"{what} learns from rewards: give --reward FILE.py:NAME, a reward model, or builtin:NAME")
    if isinstance(objective, GKD):
        teacher = reference or objective.teacher
        if not teacher:
            raise UsageError("gkd learns from a teacher: give --reference MODEL, which has the same tokenizer")
        objective, reference = replace(objective, teacher=start_folder(teacher)), None
    rewrites = (*beside(there, lora, quantize), *rewrites)
    adapted = any(rewrite.freezes for rewrite in rewrites)
    objective = with_reference(objective, start, reference, adapted)
    if reference is not None and objective.reference not in ("", "none"):
        check_parent(there, objective.reference)
    objective = with_value(objective, start)
    arch = without_dropout(there.arch) if isinstance(objective, Online | Preference) else there.arch
    if isinstance(objective, Ranking):
        fresh = "task" in str(changes.get("train.new", ""))
        arch = heads.arch_for(RegressTask(), there, False, fresh)
        rewrites = (*rewrites, *heads.learning(there, arch)) if adapted else rewrites
    if (why := incompatible_reason(objective, arch)) is not None:
        raise UsageError(f"{there.name} cannot be aligned by {what}: {why}")
    context = min(there.dims.context, ROW)
    budget = budget or ("200 steps" if isinstance(objective, Online) else "1 epochs")
    train = Train(budget, context=context, start=start, unit="document", piece=None, val_fraction=HELD)
    train = replace(train, best=BEST.get(what, ""), products="onednn")
    recipe = recipe_of(what, context, adapted)
    plan = Plan(
        there.name, SCALE, arch, there.dims, objective, there.design.text, recipe, train, data, seed,
        rewrites=rewrites,
    )  # fmt: skip
    plan = fitting(spec.edit(plan, changes))
    return replace(plan, nets=nets_of(plan))


def with_reference(objective: Any, start: str, named: str | None, adapted: bool) -> Any:
    """`objective` with the frozen reference that it is held to: the one that is named, or the weights that the run
    begins from, where all of them learn (else the policy with its adapters off)."""
    if not isinstance(objective, Preference | Online):
        if named is not None:
            raise UsageError("only what is held to a reference takes one")
        return objective
    if named is not None:
        free = named == "none" and isinstance(objective, Preference)
        if named == "none" and not free:
            raise UsageError("without a reference there is no divergence from it: set objective.kl=0 in place of none")
        return replace(objective, reference=named if free else start_folder(named))
    if objective.reference or adapted or (isinstance(objective, Online) and not objective.kl):
        return objective
    return replace(objective, reference=start_folder(start))


SHAPE = ("d_model", "layers", "heads", "d_ff")  # dims that tuning leaves alone


def check_parent(policy: Model, reference: str) -> None:
    """Raise UsageError where the network of a reference is not the policy's, so that it cannot be what the policy was
    tuned from."""
    net = formats.load(reference, device="meta", tokenizer=False)
    why = [
        f"{name}={getattr(net.dims, name)}, and the policy {name}={getattr(policy.dims, name)}"
        for name in SHAPE
        if getattr(net.dims, name) != getattr(policy.dims, name)
    ]
    names = {name for name, _ in policy.named_parameters()}
    why += [f"weights {name}, which the policy has not" for name, _ in net.named_parameters() if name not in names]
    if why:
        raise UsageError(
            f"the reference {reference} has {why[0]}: it must be what the policy was tuned from, a network of its shape"
        )


def with_value(objective: Any, start: str) -> Any:
    """`objective` with the weights that its value model begins from: the reward model's, where one judges that reads
    with the policy's tokenizer, else those of the policy, which get a new head."""
    if not isinstance(objective, PPO):
        return objective
    if objective.value:
        return replace(objective, value=start_folder(objective.value))
    judges = (start_folder(one.source) for one in objective.rewards if Path(one.source).is_dir())
    own = tokenizer_of(start)
    return replace(objective, value=next((one for one in judges if tokenizer_of(one) == own), start_folder(start)))


def tokenizer_of(weights: str) -> str:
    """What tells the tokenizer of a model from others; "" for a model without one."""
    found = formats.load(weights, device="meta").tokenizer
    return "" if found is None else found.fingerprint


def without_dropout(arch: Arch) -> Arch:
    """A network without dropout: a policy that samples without it would not be the one that learns with it, and its
    ratio to itself, or to a reference that has none, would not be 1."""
    task = arch.heads.task
    if hasattr(task, "dropout"):
        arch = replace(arch, heads=replace(arch.heads, task=spec.edit(task, {"dropout": 0.0})))
    return replace(arch, dropout=Dropout())


def nets_of(plan: Plan) -> tuple[Net, ...]:
    """The networks beside the model, each with the weights that it begins from. One that learns gives a number a place:
    it has the head of a reward model, or gets one."""
    found = []
    for role, (weights, learns) in plan.objective.networks.items():
        known = formats.load(weights, device="meta", tokenizer=False)
        arch = without_dropout(heads.arch_for(RegressTask(), known, False)) if learns else known.arch
        found.append(Net(role, known.name, arch, known.dims, learns, weights))
    return tuple(found)


def recipe_of(what: str, context: int, adapted: bool) -> Recipe:
    """The recipe of a method."""
    rate = RATES.get(what, ONLINE)[adapted]
    return Recipe(
        optimizer=AdamW(weight_decay=0.0),
        lr=rate,
        schedule=Schedule("linear", warmup=5),
        steps=100,  # of which the warm-up is a share
        batch=EXAMPLES * context,
        clip=1.0,
        mixed=False,
    )
