"""One process of several, started by test_scale.py: trains on meshes what one process trained, and writes down what
came out. `python scale_worker.py JOB`, with the variables that a launcher sets."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from stemma.parallel import World, mesh
from stemma.train import checkpoint
from stemma.train import run as runs


def gradients(loop: Any) -> dict[str, torch.Tensor]:
    """The gradient of the next step in full, by name; the loop is as before."""
    cursor = loop.cursor
    loop.gradient(loop.batches())
    found = {}
    for name, p in loop.learners.named():
        if p.grad is not None:
            layout = getattr(loop.learners, "layouts", {}).get(name)
            found[name] = p.grad.clone() if layout is None else layout.whole(p.grad).full_tensor()
    loop.optimizer.zero_grad(set_to_none=True)
    loop._stream, loop.cursor = None, cursor
    return found


def case(run: Path, text: str, out: Path) -> dict[str, Any]:
    """What a mesh makes of a run: the first gradient, losses, and the same from the run's own middle."""
    plan, tokenizer, store = runs.reopen(run)
    train, _ = store.split(plan.train.val_fraction, plan.seed)
    world = World(mesh(text), "cpu")
    loop = runs.loop_of(plan, tokenizer, train, world)
    first = gradients(loop)
    records = [loop.advance() for _ in range(plan.recipe.steps // 2)]
    loop.save(out)
    held = sum(p.numel() for p in loop.learners.parameters())
    records += [loop.advance() for _ in range(loop.steps - loop.step)]
    second = runs.loop_of(plan, tokenizer, train, world)
    second.restore(checkpoint.steps(run)[0])
    resumed = [second.advance() for _ in range(second.steps - second.step)]
    third = runs.loop_of(plan, tokenizer, train, world)
    third.restore(checkpoint.latest(out))
    again = [third.advance() for _ in range(third.steps - third.step)]
    if world.leads:
        torch.save(first, out / "gradient.pt")
    return {"records": records, "resumed": resumed, "again": again, "held": held}


def main(job: str) -> None:
    torch.set_num_threads(1)
    about = json.loads(Path(job).read_text("utf-8"))
    for run, text, out in about["cases"]:
        Path(out).mkdir(parents=True, exist_ok=True)
        found = case(Path(run), text, Path(out))
        Path(out, f"found-{torch.distributed.get_rank()}.json").write_text(json.dumps(found), "utf-8")
    World.leave()


if __name__ == "__main__":
    main(sys.argv[1])
