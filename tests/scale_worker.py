"""One process of several, started by test_scale.py: trains on meshes what one process trained, and writes down what
came out. `python scale_worker.py JOB`, with the variables that a launcher sets."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from stemma.parallel import World, mesh, shard
from stemma.runs import checkpoint
from stemma.runs.spikes import Spikes
from stemma.train import assemble, prepare, pretrain
from stemma.train.loop import Loop


def gradients(loop: Any) -> dict[str, torch.Tensor]:
    """The gradient of the next step in full, by name; the loop is as before."""
    cursor = loop.cursor
    loop.gradient(loop.batches()[0])
    found = {}
    for name, p in loop.learners.named():
        if p.grad is not None:
            layout = getattr(loop.learners, "layouts", {}).get(name)
            found[name] = p.grad.clone() if layout is None else layout.whole(p.grad).full_tensor()
    loop.optimizer.zero_grad(set_to_none=True)
    loop._stream, loop.cursor = None, cursor
    return found


def case(run: Path, text: str, out: Path, other: Path | None) -> dict[str, Any]:
    """What a mesh makes of a run: the first gradient, losses, and the same from the run's own middle and from that of
    an `other` mesh."""
    plan, tokenizer, store = prepare.reopen(run)
    train, _ = prepare.split(plan, store)
    world = World(mesh(text), "cpu")

    def gone_on(place: Path) -> list[dict[str, Any]]:
        loop = assemble.loop_of(plan, tokenizer, train, world)
        loop.restore(place)
        return [loop.advance() for _ in range(loop.steps - loop.step)]

    loop = assemble.loop_of(plan, tokenizer, train, world)
    first = gradients(loop)
    records = [loop.advance() for _ in range(plan.recipe.steps // 2)]
    loop.save(out)
    held = sum(p.numel() for p in loop.learners.parameters())
    records += [loop.advance() for _ in range(loop.steps - loop.step)]
    found = {"records": records, "held": held, "again": gone_on(checkpoint.latest(out))}
    found["resumed"] = gone_on(checkpoint.steps(run)[0])
    if other is not None:
        found["crossed"] = gone_on(checkpoint.latest(other))
    if world.is_main:
        torch.save(first, out / "gradient.pt")
    return found


@contextmanager
def leap(begin: int) -> Iterator[None]:
    """Within this, the loss looks ten times as high from step `begin` on, until a run has gone back."""
    good = Loop.advance

    def advance(self: Loop) -> Any:
        high = self.step >= begin and self.rewinds == 0
        record = good(self)
        return record | {"loss": record["loss"] * 10} if high else record

    Loop.advance = advance
    try:
        yield
    finally:
        Loop.advance = good


def spiky(data: str, out: str, mesh: str | None, overrides: dict[str, Any]) -> None:
    """A run on a mesh, or alone, whose loss leaps up at step 11, and which ends after five evaluations, of every second
    step, that were no worse than the first."""
    spikes = Spikes(window=8, patience=2, back=4, skip=3, above=8.0)
    edits, budget = overrides | {"train.spikes": spikes, "train.best": "+loss", "train.patience": 5}, "14 steps"
    with leap(10):
        pretrain("llama", data=data, out=out, budget=budget, overrides=edits, quiet=True, mesh=mesh)


def main(job: str) -> None:
    torch.set_num_threads(1)
    shard.GATHERED = 5000  # so that Muon's matrices, tiny as they are, go in portions
    about = json.loads(Path(job).read_text("utf-8"))
    for run, text, out, other in about["cases"]:
        Path(out).mkdir(parents=True, exist_ok=True)
        found = case(Path(run), text, Path(out), other and Path(other))
        Path(out, f"found-{torch.distributed.get_rank()}.json").write_text(json.dumps(found), "utf-8")
    if "spiky" in about:
        spiky(**about["spiky"])
    World.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])
