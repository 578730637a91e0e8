"""The stages of what `stemma align` does, each planned before any of them has run: a model that an earlier stage makes
is as large as the one that it begins from."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stemma import disk, spec
from stemma.alignment import chains, pipelines, plans, recipes
from stemma.alignment.best import Sampler, prompts
from stemma.alignment.chains import MADE, Step
from stemma.alignment.rounds import GROUP, Rounds
from stemma.conversations import prompt_ids
from stemma.errors import UsageError
from stemma.instruct.writers import prompt_of
from stemma.nn.model import Model, count
from stemma.parallel import Mesh
from stemma.planning import aligned
from stemma.planning.aligned import SAMPLE, Needs
from stemma.planning.hardware import Device
from stemma.train import meter
from stemma.train.config import Plan
from stemma.tuning import plans as tuning
from stemma.tuning.plans import started

MADE_HERE = "builtin:helpful"  # in the place of a reward model that an earlier stage makes


@dataclass(frozen=True)
class Asked:
    """What is asked for, as of `stemma align`."""

    what: str
    start: str
    data: str | None = None
    budget: str | None = None
    rewards: tuple[str, ...] = ()
    reference: str | None = None
    base: str | None = None
    template: str | None = None
    lora: int | None = None
    quantize: str | None = None
    full: bool = False
    overrides: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Drawing:
    """Answers that are drawn and judged, and not learnt while they are: a round of rejection sampling."""

    start: str
    data: str
    rounds: Rounds
    judges: tuple[Model, ...]
    template: str | None

    def needs(self, device: Device) -> Needs:
        """On one device."""
        model, asked, own = started(self.start), prompts(self.data), self.rounds
        writer = Sampler(model, self.start, self.template).writer
        ids = [prompt_ids(model.tokenizer, prompt_of(writer, list(one.turns))) for one in asked]
        longest, half = max(map(len, ids)), False
        rows = aligned.at_once(own.samples, GROUP, 32)
        cache = aligned.cached(model.dims, rows, longest + own.tokens + 1, half)
        held = {"policy": aligned.size_in_bytes(model), "reward models": sum(map(aligned.size_in_bytes, self.judges))}
        many = min(len(ids), own.prompts or len(ids))
        tokens = float(many * own.samples * (sum(map(len, ids)) / len(ids) + own.tokens))
        speed = device.peak * device.share * (1.0 if device.name == "CPU" else 0.5)
        work = sum(meter.flops(one, longest + own.tokens) / 3 for one in (model, *self.judges))
        turns = -(-many * own.samples // rows)
        reads = turns * own.tokens * held["policy"] / device.bandwidth
        return Needs(
            name=model.name, mesh=str(Mesh()), device=device.name, parameters=count(model.arch, model.dims), learned=0,
            optimizer="", held={k: v for k, v in held.items() if v},
            moments={SAMPLE: aligned.sampling(model.dims, rows, cache)}, gradients=0.0, cache=cache, micro=rows,
            updates=0, batches=0, largest=(rows, longest + own.tokens), rows=len(ids), held_out=0, examples=many,
            answers=many * own.samples, new_tokens=own.tokens, prompt=longest, tokens=tokens, steps=1, seen=1,
            seconds={SAMPLE: max(tokens * work / speed, reads)},
        )  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """A run, or a round's answers, that is done so many `times`. `judges`: reward models that earlier stages make."""

    word: str
    plan: Plan | Drawing
    times: int = 1
    judges: tuple[Model, ...] = ()

    def needs(self, device: Device, meshes: Sequence[Mesh], **how: Any) -> Needs:
        """What it needs on the first of the meshes on which it fits; answers of a round are drawn on one device."""
        if isinstance(self.plan, Drawing):
            return self.plan.needs(device)
        return aligned.best(self.plan, device, meshes, judges=self.judges, **how)


def stages(asked: Asked) -> Iterator[Stage]:
    """The stages in order, each to be looked at before the next one is taken. Raises UsageError for what does not
    fit."""
    if asked.what == "loop":
        raise UsageError("loop learns what people said by chat, dpo and kto: plan dpo or kto on its pairs or thumbs")
    changes = dict(asked.overrides or {})
    with tempfile.TemporaryDirectory() as folder:
        if asked.what in recipes.NAMES:
            own = pipelines.by_step(changes, recipes.words(asked.what))
            template = asked.template
            for step in recipes.steps(asked.what, asked.start, asked.template, asked.full, own)[0]:
                for stage in _of_step(asked, step, template, Path(folder)):
                    yield stage
                    template = template or _template(stage.plan)
            return
        if asked.data is None:
            raise UsageError(f"{asked.what} learns from rows: give --data FILE")
        if asked.what != "rs":
            yield Stage(
                asked.what,
                plans.resolve(
                    asked.what, asked.start, asked.data, asked.budget, rewards=asked.rewards,
                    reference=asked.reference, template=asked.template, lora=asked.lora, quantize=asked.quantize,
                    overrides=changes,
                ),
            )  # fmt: skip
            return
        rounds = {path.partition(".")[2]: changes.pop(path) for path in [*changes] if path.startswith("rounds.")}
        step = Step(
            "rs", "rs", asked.start, asked.data, asked.budget, rewards=asked.rewards, base=asked.base, rounds=rounds,
            settings={"template": asked.template} if asked.template else {}, overrides=changes, lora=asked.lora,
            quantize=asked.quantize,
        )  # fmt: skip
        yield from _rounds(step, aligned.judges_of(asked.rewards), Path(folder))


def _of_step(asked: Asked, step: Step, template: str | None, folder: Path) -> Iterator[Stage]:
    """The stages of a step of a chain, with the model that the chain begins from in the place of those that it makes.
    `template`: of the demonstrations, which the models that were tuned on them have."""
    sources = ",".join(step.rewards)
    judges = [started(asked.start) for number in MADE.findall(sources) if int(number)]
    rewards = [MADE_HERE if any(int(n) for n in MADE.findall(one)) else one for one in step.rewards]
    own = _begun(spec.to_dict(asdict(step)) | {"rewards": rewards}, asked.start)
    if template and step.stage is None:
        own["settings"] = {"template": template} | own["settings"]
    if step.what == "rs":
        yield from _rounds(Step(**own), judges, folder)
        return
    if step.what == "gatt":
        own |= {"what": "sft", "rounds": {}}  # what it learns is about as long as the conversations that it answers
    held = {"name": asked.what, "start": asked.start, "seed": 1, "full": asked.full, "steps": [own]}
    yield Stage(step.word, chains.planned(held, folder, 1, True), judges=tuple(judges))


def _template(plan: Plan | Drawing) -> str | None:
    """The chat template that a stage's model keeps, if it learns conversations by a named one."""
    task = None if isinstance(plan, Drawing) else getattr(plan.objective, "task", None)
    return getattr(task, "template", None) or None


def _begun(value: Any, start: str) -> Any:
    """`value` with `start` in the place of every model of the chain."""
    if isinstance(value, str):
        return MADE.sub(lambda _: start, value)
    if isinstance(value, Mapping):
        return {key: _begun(one, start) for key, one in value.items()}
    return [_begun(one, start) for one in value] if isinstance(value, list | tuple) else value


def _rounds(step: Step, judges: Sequence[Model], folder: Path) -> Iterator[Stage]:
    """Rounds of rejection sampling: the longest answers stand for the best ones."""
    how, template = spec.edit(Rounds(), dict(step.rounds)), step.settings.get("template")
    judges = tuple([*judges, *aligned.judges_of(step.rewards)])
    yield Stage(f"{step.word}, answers", Drawing(step.start, step.data, how, judges, template), how.rounds)
    best = folder / "best.jsonl"
    with disk.write_jsonl(best) as add:
        for one in prompts(step.data)[: how.prompts]:
            answer = {"role": "assistant", "content": _filler(started(step.start).tokenizer, how.tokens)}
            add({"messages": [*one.messages, answer]})
    plan = tuning.resolve(
        "chat", step.base or step.start, f"{best},{how.beside}" if how.beside else str(best), step.budget or "3 epochs",
        settings=step.settings, lora=step.lora, quantize=step.quantize, overrides=step.overrides,
    )  # fmt: skip
    yield Stage(f"{step.word}, learning", plan, how.rounds)


def _filler(tokenizer: Any, tokens: int) -> str:
    """A text of about so many tokens."""
    each = len(tokenizer.encode("a word " * 8)) / 8
    return ("a word " * max(1, int(tokens / each))).strip()
