"""What a frozen reference says of the texts of a run, computed once, so that it need not be there while the run learns.

RUN/reference/meta.json    which reference; once all is there, how many texts and a hash of both files
RUN/reference/keys.bin     of each text a hash of its ids, and how many targets it has
RUN/reference/values.bin   the log-probability of each target, fp32

A process that is killed meanwhile leaves whole texts behind, and another one goes on from there.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stemma import disk
from stemma.declare.alignment import KTO
from stemma.errors import CheckpointError, UsageError
from stemma.nn.model import Model
from stemma.objectives import continuations, reference
from stemma.objectives.continuations import Answer
from stemma.objectives.preference import Preference
from stemma.runs import folder as runs
from stemma.train.config import Plan, budget
from stemma.train.device import pick_device, pick_precision
from stemma.train.evaluation import judged_by
from stemma.train.learners import fingerprint
from stemma.train.source import MICRO

FOLDER = "reference"
KEYS = np.dtype([("key", f"V{reference.KEY}"), ("size", "<i8")])
SHAPE = {"format": int, "of": str, "texts?": int, "hash?": str}
Nets = Callable[[], tuple[Model, dict[str, Model]]]


def attach(plan: Plan, objective: Any, view: Any, home: Path | None, nets: Nets) -> None:
    """Give `objective` what its reference says of all texts that a run on `view` reads, from the folder `home` of the
    run, or computed by `nets` (the model, and the networks beside it) and kept there. Without a folder nothing is
    known: such a loop is only timed."""
    if not getattr(plan.objective, "precompute", False):
        return
    assert isinstance(objective, Preference)
    if home is None:
        objective.known = reference.Unknown()
        return
    place = home / FOLDER
    with disk.writing(home):
        place.mkdir(parents=True, exist_ok=True)
    with disk.lock(place):
        if not (runs.exists(home) and finished(place)):
            fill(plan, objective, view, place, *nets())
        objective.known = read(place)


def check(plan: Plan) -> None:
    """Raise UsageError for a run whose texts are not known before it: KTO pairs each prompt with the answer before it
    in an order without end."""
    if not getattr(plan.objective, "precompute", False) or not isinstance(plan.objective, KTO):
        return
    if budget(plan.train.budget).seconds is not None or plan.train.spikes is not None:
        raise UsageError(
            "objective.precompute=true of KTO computes what the steps of the run will read, and neither a budget of "
            "time nor train.spikes tells which: give steps or epochs, and leave spikes out"
        )


def finished(place: Path) -> bool:
    """Whether all is there."""
    path = place / "meta.json"
    return path.exists() and "hash" in disk.typed(path, disk.read_json(path), SHAPE)


def read(place: Path) -> reference.Known:
    """What is kept in a folder. Raises CheckpointError where it is not what was written."""
    meta = disk.typed(place / "meta.json", disk.read_json(place / "meta.json"), SHAPE)
    try:
        keys, values = _keys(place), np.fromfile(place / "values.bin", "<f4")
        whole = _hash(place) == meta["hash"]
    except (OSError, ValueError, KeyError):
        whole = False
    if not whole:
        raise CheckpointError(f"{place} is not as the run wrote it: delete the folder, and it is computed again")
    return reference.Known(_places(keys), values)


def _keys(place: Path) -> Any:
    return np.fromfile(place / "keys.bin", KEYS)


def _places(keys: Any) -> dict[bytes, tuple[int, int]]:
    ends = np.cumsum(keys["size"])
    return {
        key.tobytes(): (int(end - size), int(size))
        for key, size, end in zip(keys["key"], keys["size"], ends, strict=True)
    }


def _hash(place: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in ("keys.bin", "values.bin"):
        digest.update((place / name).read_bytes())
    return digest.hexdigest()


# ---------------------------------------------------------------- computing


def fill(plan: Plan, objective: Preference, view: Any, place: Path, model: Model, nets: dict[str, Model]) -> None:
    """Compute what is not there yet. What another reference said is removed."""
    reference.check(model, nets)
    device = pick_device(plan)
    net = nets.get(reference.ROLE, model).to(device)
    learnt = {name for name, p in net.named_parameters() if p.requires_grad}
    frozen = {name: tensor for name, tensor in net.state_dict().items() if name not in learnt}
    precision = pick_precision(plan, device)
    of = f"{fingerprint(frozen)} {precision} {plan.rewrites}"
    held = _begun(place, of)
    half = torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()
    with open(place / "keys.bin", "ab") as keys, open(place / "values.bin", "ab") as values:
        for texts in _batches(_texts(plan, objective, view), held, MICRO[device.type]):
            batch = {k: v.to(device) for k, v in objective.plain_batch(texts).items()}
            with reference.frozen(model, nets) as one, half:
                found = continuations.logprobs(one, batch).float().cpu().numpy()
            values.write(found.astype("<f4").tobytes())
            values.flush()
            os.fsync(values.fileno())
            table = [(np.void(reference.key_of(text)), len(text.ids)) for text in texts]
            keys.write(np.array(table, KEYS).tobytes())
            keys.flush()
            os.fsync(keys.fileno())
    disk.write_json(place / "meta.json", {"format": 1, "of": of, "texts": len(held), "hash": _hash(place)})


def _begun(place: Path, of: str) -> set[bytes]:
    """The keys that a folder holds already, with files that end behind a whole text."""
    path = place / "meta.json"
    same = path.exists() and disk.typed(path, disk.read_json(path), SHAPE)["of"] == of
    disk.write_json(path, {"format": 1, "of": of})
    files = [place / "keys.bin", place / "values.bin"]
    if not same or not all(file.exists() for file in files):
        for file in files:
            file.write_bytes(b"")
        return set()
    size = files[0].stat().st_size // KEYS.itemsize
    os.truncate(files[0], size * KEYS.itemsize)
    keys, there = _keys(place), files[1].stat().st_size // 4
    size = int(np.searchsorted(np.cumsum(keys["size"]), there, side="right"))
    os.truncate(files[0], size * KEYS.itemsize)
    os.truncate(files[1], 4 * int(keys["size"][:size].sum()))
    return {key.tobytes() for key in keys["key"][:size]}


def _texts(plan: Plan, objective: Preference, view: Any) -> Iterator[list[Answer]]:
    """The texts of each example that the run reads or is judged by."""
    train, held = view.store.split(plan.train.val_fraction, plan.seed, plan.train.unit)
    if not isinstance(plan.objective, KTO):
        made = itertools.chain(*(objective.lazy_examples(part, once=True) for part in (train, held)))
    else:
        steps = (plan.recipe.steps or 1) * objective.examples_of_step(plan)
        judged = judged_by(plan, view, held)
        made = itertools.chain(
            itertools.islice(objective.lazy_examples(view), steps), objective.lazy_examples(judged, once=True)
        )
    for make, _ in made:
        yield objective.texts(make())


def _batches(examples: Iterator[list[Answer]], held: set[bytes], most: int) -> Iterator[Sequence[Answer]]:
    """Texts that are not `held` yet, which then are, of about `most` tokens together; those of an example stay
    together."""
    some: list[Answer] = []
    for texts in examples:
        new: dict[bytes, Answer] = {}
        for text in texts:
            if (key := reference.key_of(text)) not in held:
                new[key] = text
        held |= new.keys()
        if some and continuations.read_tokens([*some, *new.values()]) > most:
            yield some
            some = []
        some += new.values()
    if some:
        yield some
