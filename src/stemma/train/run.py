"""Pretraining from text, as a kind of run: begin, resume, evaluate, sum up, verify."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from stemma import disk, formats, spec
from stemma.declare import ramps
from stemma.errors import UsageError
from stemma.formats import kept as tasks
from stemma.nn.model import Model, count
from stemma.parallel import World, init_world
from stemma.rewrites import frozen
from stemma.rewrites.adapters import names as adapters
from stemma.runs import best, checkpoint, folder
from stemma.runs.drive import OnStep
from stemma.runs.life import carry_on, measured
from stemma.runs.metrics import check_tensorboard
from stemma.runs.prove import prove
from stemma.train import references, start
from stemma.train.assemble import fit_to_tokenizer, loop_of, pin_teachers, with_steps
from stemma.train.budgets import epochs_of, sets_warmup, with_budget
from stemma.train.config import Plan
from stemma.train.device import pick_device, pick_precision
from stemma.train.evaluation import evaluate
from stemma.train.loop import Loop
from stemma.train.pages import keep_pages
from stemma.train.plans import missing_parent, resolve
from stemma.train.prepare import (
    LEFTOVERS,
    check_enough,
    check_tokenizer,
    facts,
    judged_by,
    prepare,
    prepared,
    read_plan,
    reopen,
    report_text,
    report_uneven,
    split,
)


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


class Pretraining:
    """What pretraining from text adds to a run's life: held-out text, and baselines for it (`runs.life.Kind`)."""

    def __init__(self, run: Path, loop: Loop, store: Any) -> None:
        plan = loop.plan
        self.run, self.loop, self.plan = run, loop, plan
        self.notes = store.meta.get("notes", [])
        self.view, held = split(plan, store)
        self.held = judged_by(plan, self.view, held)
        self.answers: list[tuple[int, Any]] = []  # of the last evaluation, where the objective gives some
        loop.closing = int(self.held.tokens_total)

    def evaluate(self) -> dict[str, float]:
        """Bits of the held-out text, or the metrics of a task."""
        loop = self.loop
        how: dict[str, Any] = {"autocast": loop.autocast, "nets": loop.nets, "answers": self.answers}
        with loop.averaged():
            return evaluate(loop.model, loop.objective, self.held, **how)

    def summarize(self, quality: dict[str, float]) -> dict[str, Any]:
        """Amounts, speed, and the held-out bits beside a unigram model's and xz's."""
        loop = self.loop
        notes = {"notes": self.notes} if self.notes else {}
        return {
            "name": self.plan.name,
            "scale": self.plan.scale,
            "steps": loop.steps,
            "tokens": loop.tokens,
            "epochs": round(loop.objective.epochs(self.view, loop.cursor), 3),
            **measured(self.run, loop, sum(p.numel() for p in loop.model.parameters())),
            "val": quality,
            **({"before": before} if (before := self.before()) else {}),
            **({} if loop.objective.of_rows else {"baselines": self.baselines()}),
            **({"answers": loop.objective.report(self.held, self.answers)} if self.answers else {}),
            **notes,
        }

    def before(self) -> dict[str, float]:
        """What `evaluate` gave before the first step, of runs that begin from weights."""
        return folder.read(self.run, lambda about: dict(about.get("before", {})))

    def baselines(self) -> dict[str, float]:
        """How well the held-out text is predicted by the frequencies of tokens, and packed by xz."""
        from stemma.data import stats

        ends = self.loop.objective.predicts_all
        unigram = stats.unigram_bits_per_byte(self.view, self.held, ends=ends)
        return {"unigram_bits_per_byte": unigram, "xz_bits_per_byte": stats.xz_bits_per_byte(self.held)}

    def save(self, run: Path, models: Mapping[str, Model]) -> None:
        """In the publisher's layout; an adapter in PEFT's, which names the weights that the run began from."""
        for role, net in models.items():
            _release(net)
            adapted = role == "model" and self.plan.train.start and adapters(net)
            net.origin = self.plan.train.start if adapted else ""
            net.save(str(run / role), layout="peft" if adapted else None)
            if role == "model":
                tasks.save(self.loop.objective.kept(net, self.view), run / role)
            for file in (run / role).iterdir():
                disk.sync(file)  # before the summary says that the run is finished


def kind_of(loop: Loop) -> type[Pretraining]:
    """What the run of a loop adds to its life: what its objective says, or what pretraining adds."""
    found: type[Pretraining] = loop.objective.kind() or Pretraining
    return found


def _release(model: Model) -> None:
    """Undo compiling and recomputing, which belong to the run and not to the model."""
    for stack in (model.encoder, model.decoder):
        if stack is not None:
            stack._compiled_call_impl = None
    for module in model.modules():
        module.__dict__.pop("forward", None)


# ---------------------------------------------------------------- begin


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
    """Train a family on text and leave a complete run in the directory `out`.

    `name`: a family or a size. `data`: a file, a folder, a glob or `builtin:...`; left out, the built-in text that
    suits the family. `budget`: "45s", "20M tokens", "1e15 flops", "50 steps", "3 epochs". `scale`: tiny, mini, small,
    full. `overrides`: dotted paths into the plan (`{"recipe.lr": 1e-3}`; `{"train.start": "runs/palm"}` begins with the
    weights and the tokenizer of a run). `tokenizer`: left out, one is trained on the training text. `resume`: resume an
    unfinished run in `out`, as it was planned. `on_step` gets the record of every step. `mesh`: the axes of a
    launcher's processes ("fsdp=4,tp=2", see `stemma.parallel`); every process makes this call.

    Raises UsageError for arguments that do not fit (also for an `out` that holds another run), DataError for text that
    cannot be used, ResourceError if the disk refuses.
    """
    plan = resolve(name, data=data, budget=budget, seed=seed, scale=scale, overrides=overrides)
    return begin(plan, out, overrides or {}, resume, on_step, tokenizer, quiet, mesh)


def begin(
    plan: Plan,
    out: str | Path,
    changes: Mapping[str, Any],
    resume: bool = False,
    on_step: OnStep | None = None,
    tokenizer: Any = None,
    quiet: bool = False,
    mesh: str | None = None,
) -> Run:
    """Carry out a plan from its beginning, as `pretrain` does. `changes`: what of the plan was asked for by path."""
    out = Path(out)
    if plan.train.tensorboard:
        check_tensorboard()
    world = init_world(mesh, pick_device(plan).type)
    is_main = world is None or world.is_main
    with folder.watch_ranks(world, out):
        if world is not None:
            world.check_same_config({"out": str(out), "resume": resume, **spec.to_dict(plan)})
        if is_main:
            folder.check_free(out, resume, LEFTOVERS)
        there = is_main and folder.exists(out)
        there = there if world is None else world.broadcast(there)
    if there:
        return _reopened(out, world, on_step, quiet)
    _set_threads(plan.train.threads)
    quiet = quiet or not is_main
    plan, tokenizer, least = _tokenized(plan, tokenizer, quiet, "dims.vocab" in changes)
    with folder.watch_ranks(world, out), contextlib.ExitStack() as held:
        if is_main:
            store, tokenizer = prepare(plan, out, tokenizer, quiet, taken=held)
        if world is not None:
            world.barrier()
        if not is_main:
            store, tokenizer = prepared(out)
        plan = fit_to_tokenizer(plan, tokenizer, store.languages)
        plan = replace(plan, dims=replace(plan.dims, vocab=max(plan.dims.vocab, least)))
        loop = _begun(plan, out, tokenizer, store, sets_warmup(changes), quiet, world)
        return _carry_on(out, loop, tokenizer, store, on_step, quiet)


def _check_learners(plan: Plan, tokenizer: Any) -> None:
    """Raise UsageError for a net that learns from given weights and reads with another tokenizer than the model."""
    for net in plan.nets:
        if not net.learns or not net.weights:
            continue
        theirs = formats.load(net.weights, device="meta").tokenizer
        if theirs is None or theirs.fingerprint != tokenizer.fingerprint:
            raise UsageError(
                f"objective.{net.role}={net.weights} does not read with the tokenizer of {plan.train.start}, whose ids "
                "it would be given: leave it out, or name weights that were trained from that model"
            )


def _tokenized(plan: Plan, tokenizer: Any, quiet: bool, sized: bool) -> tuple[Plan, Any, int]:
    """(the plan with its teachers pinned, the tokenizer of teachers or of a start, the least rows of the embeddings).
    No tokenizer: one will be trained. `sized`: the plan's vocabulary was asked for, and that of a given tokenizer is
    padded to it. Raises UsageError if it is less than the tokenizer has."""
    asked = plan.dims.vocab if sized and not plan.train.start else 0
    given = tokenizer
    plan, tokenizer = pin_teachers(plan, tokenizer)
    least = 0
    if plan.train.start:
        if given is not None:
            raise UsageError(f"the run begins from {plan.train.start} and takes its tokenizer: give no other")
        own, least = start.inspect(plan)
        if tokenizer is not None and tokenizer.fingerprint != own.fingerprint:
            roles = " and the ".join(net.role for net in plan.nets if not net.learns)
            raise UsageError(
                f"the {roles} must read with the tokenizer of {plan.train.start}, and has another one: name the model "
                "that the run begins from, or one that was trained from it"
            )
        _check_learners(plan, own)
        tokenizer = own
    elif not quiet and (parent := missing_parent(plan)):
        disk.tell(
            f"{plan.name} is more training of {parent}'s weights; without --from it begins from new ones",
        )
    if tokenizer is None:
        return plan, None, 0
    check_tokenizer(plan, tokenizer)
    fixed = next((net.dims.vocab for net in plan.nets if net.weights), 0)
    if asked and fixed not in (0, asked):
        if not quiet:
            disk.tell(f"note: dims.vocab={asked} is not used: the vocabulary is that of the teacher ({fixed:,})")
        asked = 0
    if asked and asked < (known := tokenizer.vocab_size):
        raise UsageError(
            f"dims.vocab={asked} is less than the {known} entries of the tokenizer; leave it out, or give more to pad "
            "the embeddings"
        )
    return plan, tokenizer, max(least, asked)


def _begun(
    plan: Plan, out: Path, tokenizer: Any, store: Any, fixed_warmup: bool, quiet: bool, world: World | None
) -> Loop:
    """Build the loop of a new run, then write its `run.json`: what cannot be built, or judged, leaves no run."""
    references.check(plan)
    train, rest = split(plan, store)
    if not quiet:
        report_uneven(plan, train, rest)
    plan = with_budget(plan, tokenizer, train, fixed_warmup, world)
    device = pick_device(plan)
    precision = pick_precision(plan, device)
    precision = precision if world is None else world.broadcast(precision)
    plan = replace(plan, train=replace(plan.train, precision=precision, threads=torch.get_num_threads()))
    loop = loop_of(plan, tokenizer, train, world, folder=out)
    check_enough(loop)
    if not quiet:
        examples = int(ramps.total(plan.recipe.ramp, loop.source.full, loop.steps))
        report_text(loop, rest, epochs_of(loop.objective, train, examples))
        for remark in loop.objective.remarks(train, rest):
            disk.tell(f"note: {remark}")
        if (kept := frozen.note(loop.model)) is not None:
            disk.tell(kept)
    shown = loop.objective.of_rows or bool(plan.train.start and (plan.train.best or plan.system))
    before = kind_of(loop)(out, loop, store).evaluate() if plan.train.best or shown else {}
    if plan.train.best:
        best.measured(plan.train.best, before)
    if shown and not quiet:
        disk.tell(f"before: {', '.join(f'held-out {k} {v:.4g}' for k, v in before.items() if k != 'targets')}")
    if not (plan.train.start and adapters(loop.model)):
        formats.check_weights(loop.model)  # what could not be saved at the end is not begun
    elif world is None:
        formats.peft.contents(loop.model)
    if loop.is_main:
        about = {"data": facts(store, train), "parameters": count(plan.arch, plan.dims)}
        about |= {"before": before} if shown else {}
        folder.begin(out, spec.to_dict(plan), device, about)
    loop.barrier()
    return loop


def _carry_on(run: Path, loop: Loop, tokenizer: Any, store: Any, on_step: OnStep | None, quiet: bool) -> Run:
    outcome = carry_on(run, loop, kind_of(loop)(run, loop, store), on_step, quiet)
    model = loop.model if outcome.restored else formats.load(run / "model")
    return Run(run, loop.plan, model.eval(), tokenizer, outcome.summary, outcome.finished)


def _set_threads(n: int | None) -> None:
    keep_pages()
    if n is not None:
        torch.set_num_threads(n)


# ---------------------------------------------------------------- resume


def resume_run(
    run: str | Path,
    *,
    on_step: OnStep | None = None,
    quiet: bool = False,
    mesh: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Run:
    """Resume the run in a directory from its last checkpoint, to the same end as if it had never stopped. A finished
    run is returned as it is.

    `mesh`: as in `pretrain`; it need not be the one that the run began on. `overrides`: settings on which what is
    learned does not depend (`{"train.micro": 2}`). Raises CheckpointError if the directory holds no run, or if its data
    or weights are not what the run wrote."""
    plan, _ = read_plan(Path(run))
    if plan.train.tensorboard:
        check_tensorboard()
    return _reopened(Path(run), init_world(mesh, pick_device(plan).type), on_step, quiet, overrides or {})


def _reopened(
    run: Path, world: World | None, on_step: OnStep | None, quiet: bool, overrides: Mapping[str, Any] | None = None
) -> Run:
    with folder.watch_ranks(world, run), contextlib.ExitStack() as held:
        if world is None or world.is_main:
            held.enter_context(folder.lock(run))
            plan, tokenizer, store = reopen(run)
        if world is not None:
            world.barrier()
            if not world.is_main:
                plan, tokenizer, store = reopen(run, verify=False)
        plan = spec.edit(plan, check_resume_overrides(overrides or {}, plan))
        if world is not None:
            world.check_same_config({"out": str(run), **spec.to_dict(plan)})
        _set_threads(plan.train.threads)
        train = split(plan, store)[0]
        whole = _is_whole(run)
        loop = loop_of(plan, tokenizer, train, world, started=not whole, folder=run)
        if whole and loop.frozen:  # an old checkpoint has them, but they come from where the run began
            loop = loop_of(plan, tokenizer, train, world, folder=run)
        return _carry_on(run, loop, tokenizer, store, on_step, quiet)


def _is_whole(run: Path) -> bool:
    """Whether the newest checkpoint holds all weights, so that those that the run began from need not be read."""
    newest = checkpoint.latest(run)
    return newest is not None and "frozen" not in checkpoint.peek(newest)


FREE = ("micro", "recompute", "save_every", "keep", "ahead")  # of `train`: nothing that is learned depends on it


def check_resume_overrides(changes: Mapping[str, Any], plan: Plan) -> Mapping[str, Any]:
    """`changes`, if a run may be resumed with them. Raises UsageError for what decides what is learned: with
    `train.spikes` also which checkpoints there are, since the run may go back to them."""
    held = ("save_every", "keep") if plan.train.spikes is not None else ()
    allowed = [f"train.{name}" for name in FREE if name not in held]
    if wrong := [path for path in changes if path not in allowed]:
        because = ", since with train.spikes it goes back to its checkpoints"
        raise UsageError(
            f"a run goes on as it was planned, so {wrong[0]} cannot change"
            f"{because if wrong[0].partition('.')[2] in held else ''}; what can is {', '.join(allowed)}"
        )
    return changes


# ---------------------------------------------------------------- verify


def verify_resume(run: str | Path, steps: int = 6, *, quiet: bool = True) -> dict[str, Any]:
    """Prove on a run's own plan and data that stopping and resuming changes nothing (`runs.prove`). The run itself is
    only read. Returns the losses. Raises VerifyError naming the first step that differs."""
    plan, tokenizer, store = reopen(Path(run))
    _set_threads(plan.train.threads)
    if steps < 2:
        raise UsageError(f"verifying a resume needs at least 2 steps, not {steps}")
    plan = with_steps(plan, steps, True)
    plan = replace(plan, train=replace(plan.train, save_every=steps, eval_every=None, tensorboard=False))
    train, _ = split(plan, store)
    return prove(lambda: loop_of(plan, tokenizer, train, folder=Path(run)), steps)
