"""A run on disk: prepare, train, stop, resume, prove.

RUN/run.json        the resolved plan, versions, the data's fingerprint, the parameter count
RUN/tokenizer/      RUN/data/        what the text became
RUN/metrics.jsonl   one line a step
RUN/checkpoints/    the last few
RUN/model/          the trained model in its publisher's layout, at the end
RUN/summary.json    what came out
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import itertools
import math
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import stemma
from stemma import disk, families, formats, spec
from stemma.data import Store, cleaning, read, shared
from stemma.data.mixture import Mixed, UsedUp
from stemma.data.progress import Meter
from stemma.declare import ramps
from stemma.declare.family import Design, Family, Text
from stemma.declare.recipes import Recipe, Schedule
from stemma.errors import CheckpointError, DataError, LostError, MalformedError, ResourceError, UsageError, VerifyError
from stemma.nn.model import Model, count
from stemma.nn.parts import Learned
from stemma.objectives import Cursor, Objective, Setting, objective, tokens
from stemma.objectives.languages import UNKNOWN, apart
from stemma.parallel import World, init_world
from stemma.parallel.processes import gone
from stemma.train import checkpoint, meter, start
from stemma.train.config import Budget, Net, Plan, budget
from stemma.train.evaluation import evaluate, sample
from stemma.train.loop import Diverged, Loop, Record, pick_device, pick_precision, records
from stemma.train.pages import keep_pages
from stemma.train.plans import missing_parent, resolve
from stemma.train.scale import warmup

OnStep = Callable[[Record], None]
OURS = {"tokenizer", "data"}  # what a run that was killed while preparing leaves behind
ROLES = ("bos", "eos", "pad", "unk", "mask", "cls", "sep")
WALKED = 50_000  # rows of a mixture with limits that are counted before a run
MEASURED = 4  # steps that are timed to turn seconds into a number of steps


@dataclass
class Run:
    """A run: where it is, what it does, and, once finished, its `summary`. `finished`: no signal stopped it."""

    directory: Path
    plan: Plan
    model: Model
    tokenizer: Any
    summary: dict[str, Any]
    finished: bool

    @property
    def step(self) -> int:
        """Steps taken."""
        return int(self.summary.get("steps", 0))


# ---------------------------------------------------------------- the plan


def pin_teachers(plan: Plan, tokenizer: Any) -> tuple[Plan, Any]:
    """`plan` with the fingerprints of the nets that do not learn, and the tokenizer that they read with.

    Raises UsageError where there are no weights, or where the tokenizer that was given is another one."""
    nets = list(plan.nets)
    for i, net in enumerate(nets):
        if net.learns:
            continue
        path = f"objective.{net.role}"
        if not net.weights:
            size = families.family(net.name).sizes.get(net.name)
            hub = f" or a hub id such as {size.hub}" if size is not None and size.hub else ""
            raise UsageError(
                f"{plan.name} learns from a {net.role} ({net.name}), whose weights are needed: set {path} to a folder "
                f"(RUN/model of a finished run){hub}"
            )
        model = formats.load(net.weights)
        if model.tokenizer is None:
            raise UsageError(f"{path}={net.weights} has no tokenizer, and student and {net.role} must read alike")
        if tokenizer is not None and tokenizer.fingerprint != model.tokenizer.fingerprint:
            raise UsageError(
                f"student and {net.role} must read with the tokenizer of {path}={net.weights}, and another one was "
                "given; leave it out"
            )
        tokenizer = model.tokenizer
        nets[i] = replace(net, fingerprint=fingerprint(model))
    return replace(plan, nets=tuple(nets)), tokenizer


def fingerprint(model: Model) -> str:
    """What tells a network's weights from all others."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def design_of(plan: Plan) -> Design:
    """The design that a plan trains."""
    return Design(plan.name, plan.arch, plan.dims, plan.objective, plan.text, plan.recipe)


def fit_to_tokenizer(plan: Plan, tokenizer: Any, languages: tuple[str, ...] = ("",)) -> Plan:
    """`plan` with the vocabulary and the ids of the tokenizer, and the languages of the text, in place of the published
    ones."""
    text = replace(
        plan.text,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
        start_id=_start(plan.text, tokenizer),
        blank_ids=tuple(i for name in plan.text.blanks if (i := tokenizer.id(name)) is not None),
    )
    arch = plan.arch
    if isinstance(arch.position, Learned) and arch.position.padding is not None and tokenizer.pad_id is not None:
        arch = replace(arch, position=Learned(int(tokenizer.pad_id)))
    vocab = next((net.dims.vocab for net in plan.nets if net.weights), int(tokenizer.vocab_size))
    dims = replace(plan.dims, vocab=vocab)
    if dims.languages:
        names = tuple(name or UNKNOWN for name in languages)
        text, dims = replace(text, languages=names), replace(dims, languages=len(names))
    return replace(plan, arch=arch, text=text, dims=dims)


def _start(text: Text, tokenizer: Any) -> int | None:
    """What a decoder starts from: the token that has the published one's role in the tokenizer."""
    for role in ("pad", "eos", "bos"):
        if text.start_id is not None and text.start_id == getattr(text, f"{role}_id"):
            return getattr(tokenizer, f"{role}_id")
    return text.start_id


def with_steps(plan: Plan, steps: int, fixed_warmup: bool) -> Plan:
    """`plan` with its number of steps, on which the learning rate depends. The warm-up of a scaled plan is a share of
    them, unless it was given."""
    recipe: Recipe = replace(plan.recipe, steps=max(1, steps))
    if plan.scale != "full" and not fixed_warmup:
        recipe = replace(recipe, schedule=replace(recipe.schedule, warmup=warmup(plan.recipe, max(1, steps))))
    return replace(plan, recipe=recipe)


def _says_warmup(changes: Mapping[str, Any]) -> bool:
    """Whether changes give a warm-up: by its own path, or within a schedule or a recipe that is given as a whole."""
    for path, value in changes.items():
        if path == "recipe.schedule.warmup":
            return True
        if path in ("recipe", "recipe.schedule"):
            schedule = value.schedule if isinstance(value, Recipe) else value
            if schedule.warmup > 0 if isinstance(schedule, Schedule) else "warmup" in str(schedule):
                return True
    return False


def model_of(plan: Plan, tokenizer: Any) -> Model:
    """A fresh model of the plan, drawn from its seed; or, where the plan begins from weights, with these."""
    from stemma.formats import attach

    model = Model(plan.arch, plan.dims).initialise(plan.seed)
    if plan.train.start:
        start.fill(model, plan.train.start)
    return attach(model, design_of(plan), _owner(plan.name), tokenizer)


def objective_of(plan: Plan, tokenizer: Any) -> Objective:
    """The objective of the plan."""
    recipe = plan.recipe
    more = (recipe.mixed, recipe.z_loss, recipe.sampling, plan.rows, plan.arch.structure)
    setting = Setting(tokenizer, plan.text, plan.context, plan.seed, *more)
    return objective(plan.objective, setting)


def nets_of(plan: Plan, tokenizer: Any) -> dict[str, Model]:
    """The networks beside the model, by role: drawn from the plan's seed, or loaded."""
    found: dict[str, Model] = {}
    for i, net in enumerate(plan.nets, 1):
        if not net.learns:
            found[net.role] = _frozen(net)
            continue
        dims = replace(net.dims, vocab=plan.dims.vocab)
        design = replace(families.design(net.name), arch=net.arch, dims=dims, text=plan.text)
        model = Model(net.arch, dims).initialise(plan.seed + i)
        found[net.role] = formats.attach(model, design, families.family(net.name), tokenizer)
    return found


def _frozen(net: Net) -> Model:
    """A net that does not learn, as it was when the run began."""
    if Path(net.weights).is_absolute() and not Path(net.weights).exists():
        raise CheckpointError(f"the {net.role} of this run is gone: there is no {net.weights}")
    model = formats.load(net.weights).eval().requires_grad_(False)
    if net.fingerprint and fingerprint(model) != net.fingerprint:
        raise CheckpointError(
            f"{net.weights} is not the {net.role} that this run was started with: its weights changed"
        )
    return model


def loop_of(plan: Plan, tokenizer: Any, view: Any, world: World | None = None) -> Loop:
    """A fresh loop over the documents of `view`; with a `world`, of one process among several."""
    if (need := 8 * plan.rows * plan.context) > (there := os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")):
        raise ResourceError(
            f"recipe.batch={plan.recipe.batch} makes a step of {plan.rows:,} rows, whose ids alone are "
            f"{need / 1e9:,.0f} GB, and this machine has {there / 1e9:,.0f} GB; lower recipe.batch"
        )
    parts = (plan, model_of(plan, tokenizer), objective_of(plan, tokenizer), view, nets_of(plan, tokenizer))
    if world is None:
        return Loop(*parts)
    from stemma.train.sharded import Sharded

    return Sharded(*parts, world)


def _owner(name: str) -> Family:
    return families.family(name)


# ---------------------------------------------------------------- running


def pretrain(
    name: str,
    *,
    data: str | None = None,
    out: str | Path,
    budget: str = "5m",
    seed: int = 1,
    scale: str = "tiny",
    overrides: Mapping[str, Any] | None = None,
    resume: bool = False,
    on_step: OnStep | None = None,
    tokenizer: Any = None,
    quiet: bool = False,
    mesh: str | None = None,
) -> Run:
    """Train a family from scratch on text and leave a complete run in the directory `out`.

    `name`: a family or a size; `data`: a file, a folder, a glob or `builtin:...` (left out, the built-in text that
    suits it); `budget`: "45s", "20M tokens", "1e15 flops", "50 steps"; `scale`: tiny, mini, small, full; `overrides`:
    dotted paths into the plan (`{"recipe.lr": 1e-3}`, `{"train.start": "runs/palm"}` to begin from its weights and with
    its tokenizer); `tokenizer`: one that exists, else one is trained on the
    training text. With `resume`, an unfinished run in `out` is gone on with, as it was planned. `on_step` sees the
    record of every step. Raises UsageError for what cannot be meant (also for an `out` that holds another run),
    DataError for text that cannot be used, ResourceError if the disk refuses. `mesh`: what the processes of a launcher
    do ("fsdp=4,tp=2", see `stemma.parallel`); every one of them makes this call.
    """
    out = Path(out)
    plan = resolve(name, data=data, budget=budget, seed=seed, scale=scale, overrides=overrides)
    world = init_world(mesh, pick_device(plan).type)
    is_main = world is None or world.is_main
    with _all_there(world, out):
        if world is not None:
            world.check_same_config({"out": str(out), "resume": resume, **spec.to_dict(plan)})
        if is_main:
            _free(out, resume)
        there = is_main and (out / "run.json").exists()
        there = there if world is None else world.broadcast(there)
    if there:
        return _reopened(out, world, on_step, quiet)
    _threads(plan.train.threads)
    plan, tokenizer = pin_teachers(plan, tokenizer)
    least = 0
    if plan.train.start:
        if tokenizer is not None:
            raise UsageError(f"the run begins from {plan.train.start} and takes its tokenizer: give no other")
        least, tokenizer = start.rows(plan), start.tokenizer(plan)
    elif is_main and not quiet and (parent := missing_parent(plan)):
        print(f"{name} is more training of {parent}'s weights; without --from it begins from new ones", file=sys.stderr)
    if tokenizer is not None:
        _fits(plan, tokenizer)
    with _all_there(world, out), contextlib.ExitStack() as held:
        if is_main:
            store, tokenizer = prepare(plan, out, tokenizer, quiet, taken=held)
        if world is not None:
            world.barrier()
        if not is_main:
            store, tokenizer = _prepared(out)
        plan = fit_to_tokenizer(plan, tokenizer, store.languages)
        plan = replace(plan, dims=replace(plan.dims, vocab=max(plan.dims.vocab, least)))
        train, rest = store.split(plan.train.val_fraction, plan.seed)
        if is_main and not quiet:
            _tell_uneven(plan, train, rest)
        fixed = _says_warmup(overrides or {})
        steps = _steps(plan, tokenizer, train, world)
        plan = with_steps(plan, steps if world is None else world.broadcast(steps), fixed)
        device = pick_device(plan)
        precision = pick_precision(plan, device)
        precision = precision if world is None else world.broadcast(precision)
        settings = replace(plan.train, precision=precision, threads=torch.get_num_threads())
        plan = replace(plan, train=settings)
        loop = loop_of(plan, tokenizer, train, world)  # what cannot be made leaves no run
        _enough(loop)
        if is_main:
            _note_down(out, plan, store, train, device)
        if world is not None:
            world.barrier()
        return _carry_on(out, loop, tokenizer, store, on_step, quiet, world)


def _enough(loop: Loop) -> None:
    """Refuse a run that is longer than a mixture with limits lasts. Raises DataError with the steps that it lasts, and
    for a source of a mixture without a document to train on."""
    order = loop.objective.order(loop.view)
    slots = order.mixture.slots if isinstance(order, Mixed) else None
    if slots is None:
        return
    ramp, rows, cursor = loop.plan.recipe.ramp, 0, Cursor()
    needed = int(ramps.total(ramp, loop.full, loop.steps))
    try:
        for _, follow in itertools.islice(loop.objective.plan(loop.view), min(needed, WALKED)):
            rows, cursor = rows + 1, follow
        if needed <= WALKED or apart(loop.view, loop.plan.recipe.sampling):
            return
        rows = int(1.02 * rows * slots / max(1, cursor.slot))  # what is left, in proportion
    except UsedUp:
        pass
    if rows < needed:
        steps = ramps.longest(ramp, loop.full, rows) if rows >= loop.examples(0) else 0
        raise DataError(
            f"{loop.plan.data} has text for {steps:,} steps, as often as each part may be read, and the run takes "
            f"{loop.steps:,}; train for fewer, or raise the limits (#epochs=N in the data, recipe.sampling.epochs)"
        )


def _tell_uneven(plan: Plan, train: Any, rest: Any) -> None:
    """Say so where much more is held out than was asked for, since documents are few and none is divided."""
    wanted, share = plan.train.val_fraction, rest.tokens_total / max(1, train.tokens_total + rest.tokens_total)
    if share > 0.1 + 2 * wanted:
        print(
            f"{share:.0%} of the text is held out and not {wanted:.0%}: it has {len(train) + len(rest)} documents, of "
            "which none is divided; FILE#split=paragraph or FILE#split=line makes more of them",
            file=sys.stderr,
        )


def _fits(plan: Plan, tokenizer: Any) -> None:
    """Refuse a tokenizer that was given and lacks what the objective needs, before any text is read with it."""
    if plan.dims.languages:  # those of the text decide, too
        return
    try:
        objective_of(fit_to_tokenizer(plan, tokenizer), tokenizer)
    except UsageError as error:
        raise UsageError(
            f"the tokenizer that was given does not fit {plan.name}: {error}; give one that does, or none, to have one "
            "trained"
        ) from None


@contextlib.contextmanager
def _all_there(world: World | None, run: Path) -> Iterator[None]:
    """Say plainly that another process of the mesh is gone, where torch says that a connection is."""
    try:
        yield
    except RuntimeError as error:
        if world is None or not gone(error):
            raise
        begun = (run / "run.json").exists()
        then = f"go on from the last checkpoint, on any mesh or alone, with: {_go_on(run)}" if begun else "begin again"
        raise LostError(
            f"process {world.rank} of mesh {world.shape} lost another one, which ended or cannot be reached (it may "
            f"have said why); {then}"
        ) from None


def _free(out: Path, resume: bool) -> None:
    """Refuse a directory that no run can begin in (or, with `resume`, go on in). Raises ResourceError for one that
    cannot be made or written."""
    try:
        _empty(out, resume)
        place = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
        if not place.is_dir():
            raise UsageError(f"the run cannot be written to {out}: {place} is a file; choose another directory")
        if not os.access(place, os.W_OK | os.X_OK):
            raise ResourceError(
                f"the run cannot be written to {out}: no permission to write in {place}; choose another directory"
            )
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise ResourceError(f"the run cannot be written to {out}: {why}; choose another directory") from None


def _empty(out: Path, resume: bool) -> None:
    if (out / "run.json").exists():
        if not resume:
            raise UsageError(f"{out} holds a run already; resume it, or choose another directory")
        return
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; a run needs a directory")
    if out.exists() and (others := sorted({p.name for p in out.iterdir() if not p.name.startswith(".")} - OURS)):
        raise UsageError(f"{out} is not empty (it holds {others[0]}); choose a new directory for the run")


def _note_down(out: Path, plan: Plan, store: Any, train: Any, device: torch.device) -> None:
    disk.write_json(
        out / "run.json",
        {
            "format": 1,
            "plan": spec.to_dict(plan),
            "command": sys.argv,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "versions": {"stemma": stemma.__version__, "torch": torch.__version__, "python": sys.version.split()[0]},
            "device": str(device),
            "data": {"fingerprint": store.fingerprint, **_amounts(train)},
            "parameters": count(plan.arch, plan.dims),
        },
    )


def resume_run(
    run: str | Path,
    *,
    on_step: OnStep | None = None,
    quiet: bool = False,
    mesh: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Run:
    """Go on with the run in a directory from its last checkpoint, to the same end as if it had never stopped.

    A finished run is returned as it is. `mesh`: as in `pretrain`, and none that the run was begun on. `overrides`: of
    how it is carried out (`{"train.micro": 2}`), what is learned does not depend on. Raises CheckpointError if the
    directory holds no run, or if its data or weights are not what the run wrote.
    """
    plan, _ = planned(Path(run))
    return _reopened(Path(run), init_world(mesh, pick_device(plan).type), on_step, quiet, overrides or {})


def _reopened(
    run: Path, world: World | None, on_step: OnStep | None, quiet: bool, overrides: Mapping[str, Any] | None = None
) -> Run:
    with _all_there(world, run), contextlib.ExitStack() as held:
        if world is None or world.is_main:
            held.enter_context(_alone(run))
            plan, tokenizer, store = reopen(run)
        if world is not None:
            world.barrier()
            if not world.is_main:
                plan, tokenizer, store = reopen(run, look=False)
        plan = spec.edit(plan, check_resume_overrides(overrides or {}, plan))
        if world is not None:
            world.check_same_config({"out": str(run), **spec.to_dict(plan)})
        _threads(plan.train.threads)
        loop = loop_of(plan, tokenizer, store.split(plan.train.val_fraction, plan.seed)[0], world)
        return _carry_on(run, loop, tokenizer, store, on_step, quiet, world)


FREE = ("micro", "recompute", "save_every", "keep", "ahead")  # of `train`: nothing that is learned depends on it


def check_resume_overrides(changes: Mapping[str, Any], plan: Plan) -> Mapping[str, Any]:
    """`changes`, if a run may be gone on with so. Raises UsageError for what decides what is learned: with
    `train.spikes` also which checkpoints there are, since the run may go back to them."""
    held = ("save_every", "keep") if plan.train.spikes is not None else ()
    allowed = [f"train.{name}" for name in FREE if name not in held]
    if wrong := [path for path in changes if path not in allowed]:
        raise UsageError(
            f"a run goes on as it was planned, so {wrong[0]} cannot change"
            + (
                ", since with train.spikes it goes back to its checkpoints"
                if wrong[0].partition(".")[2] in held
                else ""
            )
            + f"; what can is {', '.join(allowed)}"
        )
    return changes


def reopen(run: Path, look: bool = True) -> tuple[Plan, Any, Any]:
    """Plan, tokenizer and store of a run; the store is made again from the same text if its folder is gone. `look`:
    compare the store with its checksums, which reads all of it. Raises CheckpointError if something is damaged or not
    the run's."""
    plan, fingerprint = planned(run)
    tokenizer = tokenizer_of(run)
    data = run / "data"
    if not (data / "meta.json").exists() and look:
        _made_again(plan, run, tokenizer, fingerprint)
    try:
        store = Store.open(data)
        if look:
            store.verify()
    except CheckpointError as error:
        if "cannot" in str(error):
            raise
        why = str(error).removesuffix("; delete the folder")
        raise CheckpointError(f"{why}; delete {data} to make it again from {plan.data} with: {_go_on(run)}") from None
    if store.fingerprint != fingerprint:
        raise CheckpointError(
            f"{data} is not the text that this run was started on; delete it to make it again from {plan.data} with: "
            f"{_go_on(run)}"
        )
    if store.meta.get("tokenizer") != tokenizer.fingerprint:
        raise CheckpointError(
            f"{run / 'tokenizer'} is not the tokenizer that this run was started with; put that back, or begin anew"
        )
    return plan, tokenizer, store


def _alone(run: Path) -> contextlib.AbstractContextManager[bool]:
    """Hold the run's folder. Raises UsageError if another process trains in it."""
    busy = f"another process is training in {run}; wait until it ends, or choose another directory"
    return disk.lock(run, busy=busy)


def _go_on(run: Path) -> str:
    return f"stemma resume {run}"


def planned(run: Path) -> tuple[Plan, str]:
    """The plan of a run, and the fingerprint of its text."""
    path = run / "run.json"
    if not path.exists():
        raise CheckpointError(f"{run} holds no run to resume (there is no run.json)")
    try:
        about = disk.read_json(path)
        return spec.from_dict(Plan, about["plan"]), about["data"]["fingerprint"]
    except MalformedError as error:
        why = str(error)
    except KeyError as error:
        why = f"it has no {error.args[0]!r}"
    except (TypeError, AttributeError):
        why = "it is no table of settings"
    except UsageError as error:
        why = str(error)
    raise CheckpointError(
        f"{path} is not a run that this version can read: {why}; put back the file as it was, or begin anew elsewhere"
    )


def tokenizer_of(run: Path) -> Any:
    """The tokenizer of a run. Raises CheckpointError if it is damaged or gone."""
    from stemma.text import Tokenizer

    try:
        return Tokenizer.load(run / "tokenizer")
    except CheckpointError as error:
        raise CheckpointError(
            f"the tokenizer of the run {run} cannot be read: {error}; put it back as it was, or begin anew elsewhere"
        ) from None


def _made_again(plan: Plan, run: Path, tokenizer: Any, fingerprint: str) -> None:
    """Make the store of a run again, of the text it was made of."""
    try:
        source = cleaning.cleaned(read(plan.data), plan.clean)
        warnings.warn(f"the tokens of the run are gone from {run / 'data'}; made again from {plan.data}", stacklevel=2)
        store = shared.build(source, tokenizer, run / "data")
    except DataError as error:
        raise DataError(
            f"the tokens of the run are gone from {run / 'data'}, and so is their text: {error}; put back one of them"
        ) from None
    if store.fingerprint != fingerprint:
        shutil.rmtree(run / "data", ignore_errors=True)
        raise CheckpointError(
            f"the tokens of the run are gone from {run / 'data'}, and {plan.data} is no more the text that they were "
            f"made of; put back one of them as it was, or begin anew elsewhere"
        )


def _prepared(run: Path) -> tuple[Any, Any]:
    """The store and the tokenizer in a run's directory."""
    return Store.open(run / "data"), tokenizer_of(run)


def _carry_on(
    run: Path,
    loop: Loop,
    tokenizer: Any,
    store: Any,
    on_step: OnStep | None,
    quiet: bool,
    world: World | None = None,
) -> Run:
    plan = loop.plan
    train, held = store.split(plan.train.val_fraction, plan.seed)
    held = sample(held, plan.train.eval_tokens)
    for left in run.glob(".*.json*.tmp") if loop.is_main else ():  # of a process that was killed while writing
        left.unlink(missing_ok=True)
    newest, done = checkpoint.latest(run), run / "summary.json"
    there = _finished(run)
    if newest is not None:
        loop.restore(newest)
    elif not there and loop.is_main and (run / "metrics.jsonl").exists():
        warnings.warn(f"{run} has no checkpoint; it begins again with its first step", stacklevel=2)
    if there and loop.step == loop.steps:
        loop.finish()
        return Run(run, plan, loop.model.eval(), tokenizer, there, True)
    if there:  # its last checkpoint was deleted
        return Run(run, plan, formats.load(run / "model").eval(), tokenizer, there, True)

    def measure() -> dict[str, float]:
        with loop.averaged():
            return evaluate(loop.model, loop.objective, held, autocast=loop.autocast, nets=loop.nets)

    finished = loop.train(run, on_step=on_step, evaluate=measure, quiet=quiet)
    if not finished:
        if not quiet and loop.is_main:
            with contextlib.suppress(OSError):  # a terminal that is gone
                print(f"stopped after step {loop.step} of {loop.steps}; go on with: {_go_on(run)}", file=sys.stderr)
        return Run(run, plan, loop.model.eval(), tokenizer, {"steps": loop.step}, False)
    quality = measure()
    if wrong := [k for k, v in quality.items() if not math.isfinite(v)]:
        raise Diverged(
            f"training diverged in its last step: the held-out {wrong[0]} is {quality[wrong[0]]}; lower recipe.lr"
        )
    loop.finish()
    kept = loop.whole()
    summary: dict[str, Any] = {"steps": loop.step}
    if loop.is_main:
        summary = _summary(run, plan, loop, quality, train, held)
        try:
            for role, net in kept.items():
                _release(net)
                net.save(str(run / role))
            disk.write_json(done, summary)
        except ResourceError as error:
            raise disk.instead(error, f"go on with: {_go_on(run)}") from None
    if world is not None:
        world.barrier()
    return Run(run, plan, loop.model.eval(), tokenizer, summary, True)


def _finished(run: Path) -> dict[str, Any]:
    """The summary of a run, if it came to its end and its model is there. Raises CheckpointError for a damaged one."""
    path = run / "summary.json"
    if not path.exists() or not any((run / "model").glob("*.safetensors")):
        return {}
    try:
        return dict(disk.read_json(path))
    except (MalformedError, TypeError, ValueError):
        raise CheckpointError(f"{path} is damaged; delete it to have it written again with: {_go_on(run)}") from None


def _summary(run: Path, plan: Plan, loop: Loop, quality: dict[str, float], train: Any, held: Any) -> dict[str, Any]:
    from stemma.data import stats

    speed = loop.tokens / max(loop.seconds, 1e-9)
    losses = [r["loss"] for r in read_metrics(run)][-max(1, loop.steps // 20) :]
    return {
        "name": plan.name,
        "scale": plan.scale,
        "steps": loop.steps,
        "tokens": loop.tokens,
        "epochs": loop.objective.epochs(train, loop.cursor),
        "seconds": round(loop.seconds, 3),
        "tokens_per_second": round(speed, 1),
        "peak_share": round(speed * loop.cost() / meter.peak(loop.device.type, loop.precision == "bf16"), 4),
        "parameters": sum(p.numel() for p in loop.model.parameters()),
        "train_loss": sum(losses) / len(losses) if losses else None,  # whose lines somebody deleted
        "val": quality,
        "baselines": {
            "unigram_bits_per_byte": stats.unigram_bits_per_byte(train, held, ends=loop.objective.whole),
            "xz_bits_per_byte": stats.xz_bits_per_byte(held),
        },
    }


def read_metrics(run: str | Path) -> list[Record]:
    """The records of a run's steps, so far as they are written. Raises CheckpointError if there are none."""
    path = Path(run) / "metrics.jsonl"
    if not path.exists():
        raise CheckpointError(f"{run} holds no metrics.jsonl")
    return records(path)


# ---------------------------------------------------------------- preparing


def prepare(
    plan: Plan,
    out: Path,
    tokenizer: Any,
    quiet: bool,
    share: bool = True,
    taken: contextlib.ExitStack | None = None,
) -> tuple[Any, Any]:
    """Read the text, train a tokenizer on the training part of it if none is given, and store the tokens in `out`; with
    `share`, by way of the cache, for other runs to use. Until `taken` closes, no other process can begin a run in
    `out`. Raises UsageError if one has."""
    from stemma.data.heldout import training_texts
    from stemma.text import Specials, Tokenizer

    source = cleaning.cleaned(read(plan.data), plan.clean)
    if tokenizer is None:
        text, train = plan.text, plan.train
        more = tuple(dict.fromkeys([*text.blanks, *text.extras, *tokens(plan.objective, text)]))
        specials = Specials(**{role: getattr(text, role) for role in ROLES}, extra=text.sentinels, more=more)
        tokenizer = Tokenizer.train(
            text.tokenizer,
            training_texts(source, train.val_fraction, plan.seed),
            plan.dims.vocab,
            specials,
            lowercase=text.lower and text.tokenizer == "wordpiece",
        )
    if not quiet:
        print(f"reading {plan.data} with {tokenizer.vocab_size:,} tokens of {plan.text.tokenizer}", file=sys.stderr)
    with disk.writing(out):
        out.mkdir(parents=True, exist_ok=True)
    if taken is not None:
        taken.enter_context(_alone(out))
        _free(out, False)  # another one may have begun here while the tokenizer was trained
    shutil.rmtree(out / "tokenizer", ignore_errors=True)
    tokenizer.save(out / "tokenizer")
    bar = None if quiet else Meter("tokenising")
    build = shared.build if share else Store.build
    store = build(source, tokenizer, out / "data", progress=bar)
    if not quiet:
        for note in source.notes:
            print(note, file=sys.stderr)
    return store, tokenizer


def _steps(plan: Plan, tokenizer: Any, train: Any, world: World | None = None) -> int:
    """How many steps the budget buys. Seconds are turned into steps once, by timing a few on a model that is thrown
    away: the learning rate, and with it a resumed run, then depends on no clock."""
    limit: Budget = budget(plan.train.budget)
    rows, ramp = objective_of(plan, tokenizer).rows, plan.recipe.ramp
    full = max(1, round(plan.rows / rows))
    step_tokens = full * rows * plan.context
    if limit.steps is not None:
        return limit.steps
    if limit.tokens is not None:
        return ramps.nearest(ramp, full, limit.tokens / step_tokens)
    constant = replace(plan, recipe=replace(plan.recipe, ramp=None))
    trial = loop_of(with_steps(constant, MEASURED, False), tokenizer, train, world)
    if limit.flops is not None:
        return ramps.nearest(ramp, full, limit.flops / (trial.cost() * step_tokens))
    assert limit.seconds is not None
    begin = time.perf_counter()
    each, cost = _timed(trial), None
    if ramp is not None:  # a step costs a constant and so much an example: two sizes tell both
        least = -(-ramps.examples(ramp, full, 0, 1) // trial.readers) * trial.readers
        trial.full, trial.micro = least, min(trial.micro, least // trial.readers)
        small = min(each, _timed(trial))
        slope = (each - small) / (full - least) if full > least else 0.0

        def cost(size: int) -> float:
            return small + slope * max(0, size - least)

    # of what is left, a tenth is kept for checkpoints and the evaluation at the end
    left = 0.9 * (limit.seconds - (time.perf_counter() - begin))
    if cost is None:
        return max(1, int(left / each))
    return ramps.longest(ramp, full, left, cost)


def _timed(trial: Loop) -> float:
    """Seconds of a step, the median of a few."""
    trial.advance()  # the first step is slower: pages, kernels, compilation
    times = []
    for _ in range(MEASURED):
        start = time.perf_counter()
        trial.advance()
        times.append(time.perf_counter() - start)
    trial.move(trial.cursor)  # nor does its thread go on
    return sorted(times)[len(times) // 2]


def _threads(n: int | None) -> None:
    keep_pages()
    if n is not None:
        torch.set_num_threads(n)


def _amounts(view: Any) -> dict[str, int]:
    return {"documents": len(view), "tokens": int(view.tokens_total), "bytes": int(view.bytes_total)}


def _release(model: Model) -> None:
    """Undo the compiling and the recomputing of a model's parts, which belong to the run and not to the model."""
    for stack in (model.encoder, model.decoder):
        if stack is not None:
            stack._compiled_call_impl = None
    for module in model.modules():
        module.__dict__.pop("forward", None)


# ---------------------------------------------------------------- proving


def verify_resume(run: str | Path, steps: int = 6, *, quiet: bool = True) -> dict[str, Any]:
    """Prove on a run's own plan and data that stopping and resuming changes nothing.

    Trains `steps` steps in one go, and in another place half of them, a checkpoint, everything anew, and the rest;
    losses, gradient norms and final weights must agree bit for bit. The run itself is only read. Returns the
    losses. Raises VerifyError naming the first step that differs.
    """
    plan, tokenizer, store = reopen(Path(run))
    _threads(plan.train.threads)
    if steps < 2:
        raise UsageError(f"verifying a resume needs at least 2 steps, not {steps}")
    plan = with_steps(plan, steps, True)
    plan = replace(plan, train=replace(plan.train, save_every=steps, eval_every=None, tensorboard=False))
    train, _ = store.split(plan.train.val_fraction, plan.seed)

    def fresh() -> Loop:
        return loop_of(plan, tokenizer, train)

    with tempfile.TemporaryDirectory(prefix="stemma-verify-") as name:
        whole = fresh()
        expected = [whole.advance() for _ in range(steps)]
        first = fresh()
        found = [first.advance() for _ in range(steps // 2)]
        place = first.save(Path(name))
        second = fresh()
        second.restore(place)
        found += [second.advance() for _ in range(steps - steps // 2)]
    for a, b in zip(expected, found, strict=True):
        if a != b:
            raise VerifyError(
                f"step {a['step']} differs after resuming: loss {b['loss']!r} instead of {a['loss']!r} (stopped after "
                f"step {steps // 2})"
            )
    kinds = ("the weights of {}", "the optimiser's or the mean's {}")
    for what, ours, theirs in zip(kinds, whole.held(), second.held(), strict=True):
        if wrong := [k for k in ours if k not in theirs or not torch.equal(ours[k], theirs[k])]:
            raise VerifyError(f"{what.format(wrong[0])} differ after resuming, though all losses agree")
    return {"steps": steps, "stopped_after": steps // 2, "losses": [r["loss"] for r in expected], "identical": True}
