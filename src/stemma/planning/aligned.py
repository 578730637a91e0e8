"""What a run of alignment needs: policy, value model, reference and reward models, and the worst moments of a step, by
traces of the batches that it will read."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from stemma import formats
from stemma.alignment.rewards import BUILTIN, folders, is_function
from stemma.alignment.rollouts import ROWS
from stemma.declare.alignment import Online, Preference
from stemma.errors import UsageError
from stemma.nn.model import Model
from stemma.nn.parts import Dims
from stemma.parallel import Mesh
from stemma.planning.hardware import Device
from stemma.planning.outlook import Outlook
from stemma.planning.reading import Reading, read, size_of
from stemma.planning.search import FILL
from stemma.planning.trace import How, Step
from stemma.train import meter
from stemma.train.config import Plan

LOGITS = 4  # tensors of a step's logits that are there at once while a token is drawn
UPDATE, SAMPLE = "update", "sample"


@dataclass(frozen=True)
class Needs:
    """Of one run on a mesh. Bytes are of one device: `held` all the time, by what it is; `moments` of a step beyond
    that, of which the worst counts: `update`, of which `gradients`, and of a run that samples `sample`, of which
    `cache` for keys and values. `seconds`: of a step, by what takes them; `steps`: None where a budget of time decides.
    `largest`: rows and their width of the dearest micro-batch."""

    name: str
    mesh: str
    device: str
    parameters: int
    learned: int
    optimizer: str
    held: Mapping[str, float]
    moments: Mapping[str, float]
    gradients: float
    cache: float
    micro: int
    updates: int
    batches: int
    largest: tuple[int, int]
    rows: int
    held_out: int
    examples: int
    answers: int
    new_tokens: int
    prompt: int
    tokens: float
    steps: int | None
    seen: int
    seconds: Mapping[str, float]

    @property
    def memory(self) -> float:
        """Bytes at once on a device."""
        return sum(self.held.values()) + max(self.moments.values())

    @property
    def step_seconds(self) -> float:
        """Seconds of a step."""
        return sum(self.seconds.values())

    def table(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self) | {"memory": self.memory, "step_seconds": self.step_seconds}


class Aligned(Outlook):
    """A plan of alignment and what its run reads, seen from outside."""

    def __init__(self, found: Reading, *, recompute: bool = False, judges: Sequence[Model] = ()) -> None:
        super().__init__(found.plan, recompute=recompute, example=found)
        self.reading = found
        self.judges = [*judges, *judges_of(reward.source for reward in getattr(found.plan.objective, "rewards", ()))]

    @property
    def samples(self) -> bool:
        """Whether it samples answers."""
        return isinstance(self.plan.objective, Online)

    @property
    def switched(self) -> bool:
        """Whether the reference is the policy with its adapters off."""
        goal = self.plan.objective
        if getattr(goal, "precompute", False):
            return False
        held = goal.reference != "none" if isinstance(goal, Preference) else isinstance(goal, Online) and goal.kl > 0
        return bool(held) and not any(net.role == "reference" for net in self.plan.nets)

    def numbers(self, role: str) -> int:
        """Weights of a network of the step."""
        at = [net.role for net in self.nets].index(role)
        return sum(times * sum(p.numel() for p in made.all[at].parameters()) for made, times in self.parts)

    def cost(self, role: str) -> float:
        """Operations of a forward pass, a token, of a network of the step."""
        at = [net.role for net in self.nets].index(role)
        length = self.reading.largest[0][0]["input_ids"].shape[1]
        return sum(times * meter.flops(made.all[at], length) / 3 for made, times in self.parts)

    def update(self, shards: int, cpu: bool, half: bool) -> float:
        """Bytes of the worst micro-batch beyond weights and optimiser, gradients among them."""
        step = Step(self.nets, self.reading.objective, How(cpu, half, self.recompute))
        most = 0.0
        for batch, later in self.reading.largest:
            found = step.trace(self.reading.batch(batch))
            there = 4.0 * step.numel / shards
            most = max(most, float(found.held.max()) + there if later else float(found.total(shards, False).max()))
        return most + (self.reading.bytes if cpu else 0)


def needs(view: Aligned, mesh: Mesh, device: Device, seconds: float | None = None) -> Needs:
    """What a step needs on a mesh of devices; `seconds` of a step, if measured."""
    half, cpu, own = view.halves(device), device.name == "CPU", view.reading
    plan, goal, shards = view.plan, view.plan.objective, mesh.fsdp
    update = view.update(shards, cpu, half)
    moments = {UPDATE: update + gathered(view, mesh)}
    cache = 0.0
    if isinstance(goal, Online):
        rows = at_once(goal.samples, -(-own.examples // mesh.readers), ROWS)
        cache = cached(plan.dims, rows, own.prompt + goal.max_new_tokens + 1, half)
        moments[UPDATE] += cache if cpu else 0.0  # the executor keeps the last one until the next
        moments[SAMPLE] = sampling(plan.dims, rows, cache)
    taken = timed(view, mesh, device) if seconds is None else {"a step": seconds}
    first = max(own.largest, key=lambda one: size_of(*one).read)[0]["input_ids"].shape
    return Needs(
        name=plan.name, mesh=str(mesh), device=device.name,
        parameters=view.parameters, learned=view.learned, optimizer=type(plan.recipe.optimizer).__name__,
        held=held(view, mesh), moments=moments, gradients=4.0 * view.learned / shards, cache=cache,
        micro=own.micro, updates=own.updates, batches=own.batches, largest=(int(first[0]), int(first[1])),
        rows=own.rows, held_out=own.held, examples=own.examples,
        answers=own.examples * goal.samples if isinstance(goal, Online) else 0,
        new_tokens=goal.max_new_tokens if isinstance(goal, Online) else 0, prompt=own.prompt,
        tokens=own.tokens, steps=own.steps, seen=own.seen, seconds=taken,
    )  # fmt: skip


def held(view: Aligned, mesh: Mesh) -> dict[str, float]:
    """Bytes that are there all the time on a device, by what they are. Networks of a run that samples are there whole,
    too, where a mesh splits them."""
    plan, shards = view.plan, mesh.fsdp
    value = view.numbers("value") if any(net.role == "value" for net in plan.nets) else 0
    found = {"policy": (4.0 * (view.learned - value) + view.frozen) / shards, "value model": 4.0 * value / shards}
    whole = 4.0 * view.learned + view.frozen
    for net in plan.nets:
        if not net.learns:
            size = size_in_bytes(formats.load(net.weights, device="meta"))
            found[net.role] = size / shards
            whole += size
    found["reward models"] = sum(map(size_in_bytes, view.judges))
    found["optimiser"] = 4.0 * view.slots * view.learned / shards
    found["mean of the weights"] = 4.0 * view.learned / shards if plan.train.average else 0.0
    found["whole networks to sample from"] = whole if view.samples and shards > 1 else 0.0
    return {name: size for name, size in found.items() if size}


def judges_of(sources: Iterable[str]) -> list[Model]:
    """The reward models among these rewards, without weights."""
    models = [one for one in sources if not one.startswith(BUILTIN) and not is_function(one)]
    return [formats.load(folder, device="meta") for one in models for folder in folders(one)]


def at_once(samples: int, prompts: int, rows: int) -> int:
    """Answers that are written at once, of `samples` to each prompt."""
    return min(max(rows, samples), prompts * samples)


def cached(dims: Dims, rows: int, slots: int, half: bool) -> float:
    """Bytes of keys and values of so many answers with their prompts."""
    return (2.0 if half else 4.0) * 2 * dims.layers * dims.decoder.kv * dims.decoder.width * slots * rows


def sampling(dims: Dims, rows: int, cache: float) -> float:
    """Bytes of drawing: when an answer ends, the keys and values of the others are copied."""
    logits = 4.0 * rows * dims.vocab
    return cache + max(cache + 2 * logits, LOGITS * logits)


def gathered(view: Outlook, mesh: Mesh) -> float:
    """Bytes of others' parts that are there at a time."""
    return 4.0 * (2 * view.outside + 3 * view.block) if mesh.fsdp > 1 else 0.0


def size_in_bytes(model: Model) -> float:
    """Bytes of a network's weights."""
    tensors: dict[int, Tensor] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return float(sum(t.numel() * t.element_size() for t in tensors.values()))


def timed(view: Aligned, mesh: Mesh, device: Device) -> dict[str, float]:
    """Seconds of a step, by what takes them: operations at the device's assumed speed. A token that is drawn reads all
    weights, so that sampling is bound by the memory's bandwidth."""
    fast = view.halves(device) or device.name == "CPU"
    speed = device.peak * device.share * (1.0 if fast else 0.5) * mesh.size
    own, goal = view.reading, view.plan.objective
    policy, again = view.cost(""), 4 / 3 if view.recompute else 1.0
    beside = {net.role: view.cost(net.role) for net in view.plan.nets}
    trained = policy + sum(beside[net.role] for net in view.plan.nets if net.learns)
    theirs = beside.get("reference", policy if view.switched else 0.0)
    read_ = own.tokens - own.mismatched
    if not isinstance(goal, Online):
        work = read_ * (3 * trained * again + theirs) + own.mismatched * (policy + theirs)
        return {UPDATE: work / speed}
    work = read_ * (3 * trained * again + beside.get("teacher", 0.0))
    remembers = getattr(own.objective, "remembers", False)
    known = policy * remembers + theirs * (goal.kl > 0) + beside.get("value", 0.0)
    judged = sum(meter.flops(model, own.prompt + goal.max_new_tokens) / 3 for model in view.judges)
    found = {UPDATE: work / speed, "measure": own.written * known / speed, "judge": own.written * judged / speed}
    if not getattr(goal, "offline", False):
        turns = -(-own.examples * goal.samples // mesh.readers // max(ROWS, goal.samples)) or 1
        reads = turns * goal.max_new_tokens * 4.0 * view.parameters / device.bandwidth
        found[SAMPLE] = max(own.written * policy / speed, reads)
    return {name: size for name, size in found.items() if size}


# ---------------------------------------------------------------- a plan


def outlook(
    plan: Plan, device: Device, *, readers: int = 1, micro: int | None = None, recompute: bool = False,
    judges: Sequence[Model] = (),
) -> Aligned:  # fmt: skip
    """The outlook on a plan of `alignment.plans`, whose rows are read. `judges`: reward models beside those that its
    objective names."""
    kind = "cpu" if device.name == "CPU" else "cuda"
    with tempfile.TemporaryDirectory() as folder:
        found = read(plan, Path(folder) / "run", kind, readers, micro)
        found = replace(found, plan=replace(found.plan, objective=_rewarded(found.plan, plan)))
        return Aligned(found, recompute=recompute, judges=judges)


def _rewarded(read_plan: Plan, plan: Plan) -> Any:
    """The objective as it was read, with the plan's own rewards."""
    goal = plan.objective
    if not isinstance(goal, Online) or not isinstance(read_plan.objective, Online):
        return read_plan.objective
    return replace(read_plan.objective, rewards=goal.rewards)


def meshes(count: int) -> list[Mesh]:
    """Meshes of so many devices, the fewest parts of weights first. Alignment slices no matrices."""
    return [Mesh(dp=count // n, fsdp=n) for n in range(1, count + 1) if count % n == 0]


def best(plan: Plan, device: Device, meshes: Sequence[Mesh], seconds: float | None = None, **how: Any) -> Needs:
    """What is needed on the first of some meshes on which a run fits; on the last one where it fits on none. Raises
    UsageError for a mesh with slices, and for one with more readers than a step has examples."""
    view: Aligned | None = None
    for mesh in meshes:
        if mesh.tp > 1:
            raise UsageError(f"mesh {mesh}: alignment slices no matrices (tp); use dp and fsdp")
        if view is None or view.reading.readers != mesh.readers:
            view = outlook(plan, device, readers=mesh.readers, **how)
        if view.reading.examples < mesh.readers:
            raise UsageError(
                f"mesh {mesh} has {mesh.readers} readers, and a step of this run has {view.reading.examples} examples; "
                "take fewer devices, or more examples a step (objective.prompts, recipe.batch)"
            )
        found = needs(view, mesh, device, seconds)
        if found.memory <= FILL * device.memory:
            break
    return found
