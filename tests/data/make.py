"""Makes `runs.tar.xz`: folders of tiny runs as the code before the great refactoring (commit d75d13f) wrote them.

    PYTHONPATH=OLD/src python tests/data/make.py OLD_RUNS.tar.xz

`tests/test_old_runs.py` holds today's code to what they say. Do not make them anew with newer code: their worth is
their age.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import torch

import stemma
from stemma.parallel import checkpoint as shards
from stemma.train import checkpoint, pretrain, read_metrics, resume

SMALL = {
    "dims.d_model": 4, "dims.layers": 1, "dims.heads": 2, "dims.kv_heads": None, "dims.d_ff": 12, "dims.vocab": 290,
    "dims.context": 32, "recipe.batch": 128, "train.eval_tokens": 200, "train.threads": 1, "train.precision": "fp32",
    "train.save_every": 2,
}  # fmt: skip
STEPS = 6


class Stop(Exception):
    pass


def texts(n: int = 40) -> list[str]:
    rng = random.Random(5)
    nouns, verbs = ["cat", "dog", "bird", "king", "river", "stone"], ["sees", "finds", "keeps", "hears"]
    one = lambda: f"The {rng.choice(nouns)} {rng.choice(verbs)} the {rng.choice(nouns)}."  # noqa: E731
    return [" ".join(one() for _ in range(rng.randint(2, 9))) for _ in range(n)]


def train(name: str, out: Path, text: Path, edits: dict[str, Any], **more: Any) -> Any:
    overrides = SMALL | edits
    return pretrain(name, data=str(text), out=out, budget=f"{STEPS} steps", overrides=overrides, quiet=True, **more)


def unfinished(name: str, out: Path, text: Path, edits: dict[str, Any]) -> None:
    """A run that ended in its fifth step; its checkpoint is that of the fourth."""

    def stop(record: dict[str, Any]) -> None:
        if record["step"] == 5:
            raise Stop

    try:
        train(name, out, text, edits, on_step=stop)
    except Stop:
        checkpoint.remove(checkpoint.steps(out)[0])


def in_shards(run: Path) -> None:
    """Rewrite the run's newest checkpoint as several processes write theirs."""
    place = checkpoint.steps(run)[-1]
    model, optimizer, state = checkpoint.load(place)
    for each in checkpoint.steps(run):
        checkpoint.remove(each)
    shards.write(run / "checkpoints" / ".shards", {"model": model, "optimizer": optimizer}, {})
    state = {k: v for k, v in state.items() if k not in (checkpoint.SUMS, checkpoint.OWN)}
    checkpoint.save(run, (0, 4), {}, {}, state, 2, shards=run / "checkpoints" / ".shards")


def wanted(run: Path, copy: Path) -> dict[str, Any]:
    """What the old code makes of a run: every loss to its end, and logits of what it leaves."""
    shutil.copytree(run, copy)
    resume(copy, quiet=True)
    model = stemma.load(copy / "model").eval()
    ids = torch.arange(10, 30)[None]
    with torch.no_grad():
        more = {"decoder_input_ids": ids + 20} if model.arch.structure == "encoder-decoder" else {}
        found = model(ids, **more).hidden
    return {
        "losses": [r["loss"] for r in read_metrics(copy)],
        "val": json.loads((copy / "summary.json").read_text("utf-8"))["val"]["loss"],
        "output": found[0].double().tolist(),
    }


def main(target: str) -> None:
    target, sys.argv = os.path.abspath(target), ["make.py"]
    home = Path(tempfile.gettempdir(), "old-runs")
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    os.environ["STEMMA_CACHE"] = str(home / "cache")
    os.chdir(home)
    text = Path("rows.jsonl")
    text.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts()), "utf-8")
    runs = home / "runs"
    train("gpt2", runs / "finished", text, {})
    unfinished("llama", runs / "unfinished", text, {})
    unfinished("bert", runs / "shards", text, {})
    in_shards(runs / "shards")
    unfinished("electra", runs / "beside", text, {"dims.embed": None})
    unfinished("t5", runs / "seq2seq", text, {"dims.vocab": 420})
    found = {run.name: wanted(run, home / "copies" / run.name) for run in sorted(runs.iterdir())}
    (runs / "wanted.json").write_text(json.dumps(found, indent=1), "utf-8")

    def plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uid = info.gid = info.mtime = 0
        info.uname = info.gname = ""
        return info

    with tarfile.open(target, "w:xz", preset=9) as archive:
        archive.add(runs, "runs", filter=plain)
    print(os.path.getsize(target), "bytes")


if __name__ == "__main__":
    main(sys.argv[1])
