"""What large checkpoints cost: loading, saving and converting beside transformers.

    python bench/growth.py [--size GB] [--repeats N] [--folder PLACE] [--json FILE]

A LLaMA of made-up fp32 weights in a temporary folder (three times its size is needed on the disk). Every try is a process
of its own, the two sides in turns, and the best of each is printed: the time with imports, processor seconds without
them, and the private memory (`smaps_rollup`) that the work adds at its peak, asked 200 times a second. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))
SIDES = ("stemma", "transformers")
WORK = ("load one file", "load shards", "load as bf16", "save one file", "save shards", "save again", "GGUF to hf")
SHARDS = 5  # a checkpoint in shards has about so many
TYPICAL = {"d_model": 1024, "heads": 16, "kv_heads": 16, "d_ff": 2816, "vocab": 16_000, "context": 2048}


def private() -> int:
    """Bytes of memory that only this process has: pages of mapped files too, while they are in memory."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private")) * 1024


class Peak:
    """The most private memory during a block, beyond what there was before it."""

    def __enter__(self) -> Peak:
        self.before, self.most, self.over = private(), 0, threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.over.wait(0.005):
            self.most = max(self.most, private())

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()
        self.most = max(self.most, private()) - self.before


# ---------------------------------------------------------------- the work of one process


def steps(side: str, work: str, folder: Path) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    """(what is done before, what is measured, given what the first gave)."""
    source = folder / ("shards" if work == "load shards" else "one")
    out, kind = folder / f"out-{side}", "bfloat16" if "bf16" in work else "float32"
    limit = sum(f.stat().st_size for f in (folder / "one").glob("*.safetensors")) // SHARDS
    limit = limit if work == "save shards" else 10**12
    if side == "stemma":
        import stemma
        from stemma import formats

        def load(path: Path) -> Any:
            return stemma.load(path, dtype=kind)

        def save(model: Any) -> None:
            model.save(out, shard_bytes=limit)

        def convert(_: Any) -> None:
            save(formats.stream(folder / "m.gguf"))
    else:
        import torch
        from transformers import LlamaForCausalLM
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()

        def load(path: Path) -> Any:
            return LlamaForCausalLM.from_pretrained(path, dtype=getattr(torch, kind))

        def save(model: Any) -> None:
            model.save_pretrained(out, max_shard_size=limit)

        def convert(_: Any) -> None:
            save(LlamaForCausalLM.from_pretrained(folder, gguf_file="m.gguf", dtype=torch.float32))

    if work.startswith("load"):
        return lambda: None, lambda _: load(source)
    if work == "GGUF to hf":
        return lambda: None, convert

    def ready() -> Any:
        model = load(source)
        if work == "save again":
            save(model)
            os.sync()
        return model

    return ready, save


def measure(side: str, work: str, folder: Path) -> dict[str, float]:
    """Numbers of one try, in this process."""
    began = time.perf_counter()
    before, what = steps(side, work, folder)
    imported = time.perf_counter() - began
    held = before()
    with Peak() as peak:
        began, spent = time.perf_counter(), time.process_time()
        kept = what(held)
        wall, spent = time.perf_counter() - began, time.process_time() - spent
    del kept
    return {
        "seconds": wall + (imported if work.startswith("load") else 0),
        "work": wall,
        "cpu": spent,
        "memory": peak.most,
    }


# ---------------------------------------------------------------- files, turns, table


def make(folder: Path, size: float, whole: bool) -> None:
    """The checkpoint of about `size` GB: as one file, and the other layouts where `whole`."""
    import stemma

    block = 4 * (4 * TYPICAL["d_model"] ** 2 + 3 * TYPICAL["d_model"] * TYPICAL["d_ff"])
    layers = max(1, round((size * 1e9 - 8 * TYPICAL["d_model"] * TYPICAL["vocab"]) / block))
    model = stemma.build("llama-7b", layers=layers, **TYPICAL)
    model.save(folder / "one", shard_bytes=10**12)
    total = (folder / "one" / "model.safetensors").stat().st_size
    print(f"{sum(p.numel() for p in model.parameters()):,} weights, {total / 1e9:.2f} GB, {layers} layers", flush=True)
    if whole:
        model.save(folder / "shards", shard_bytes=total // SHARDS)


def one_try(side: str, work: str, folder: Path) -> dict[str, float]:
    """Numbers of one try, in a process of its own. What it wrote is removed."""
    call = [sys.executable, __file__, "--try", side, work, "--folder", str(folder)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    subprocess.run(["rm", "-rf", str(folder / f"out-{side}")], check=True)
    os.sync()  # so that the next one does not wait for this one's pages
    if done.returncode:
        sys.exit(f"{side}, {work}:\n{done.stderr[-2000:]}")
    numbers: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return numbers


def table(size: float, repeats: int, works: list[str], place: str | None) -> dict[str, Any]:
    """Make the files, take turns, print a row for each kind of work."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=place) as name:
        folder = Path(name)
        make(folder, size, "load shards" in works)
        print("| work | s | reference | ratio | CPU s | reference | ratio | GB private | reference |")
        print("|---|---|---|---|---|---|---|---|---|", flush=True)
        for work in works:
            if work == "GGUF to hf":
                import stemma

                stemma.load(folder / "one").save(folder / "m.gguf", dtype="float16")
            tries = {side: [] for side in SIDES}  # type: dict[str, list[dict[str, float]]]
            for _ in range(repeats):
                for side in SIDES:
                    tries[side].append(one_try(side, work, folder))
            best = {s: {key: min(t[key] for t in tries[s]) for key in tries[s][0]} for s in SIDES}
            found[work] = best
            a, b = (best[s] for s in SIDES)
            cells = [f"{a[k]:.2f} | {b[k]:.2f} | **{a[k] / b[k]:.2f}**" for k in ("seconds", "cpu")]
            print(f"| {work} | {' | '.join(cells)} | {a['memory'] / 1e9:.2f} | {b['memory'] / 1e9:.2f} |", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--size", type=float, default=0.4, help="GB of the checkpoint, in fp32 (0.4)")
    parser.add_argument("--repeats", type=int, default=3, help="tries of each side (3)")
    parser.add_argument("--only", choices=WORK, action="append", help="this kind of work alone")
    parser.add_argument("--folder", help="where the temporary folder is made")
    parser.add_argument("--json", help="write the numbers to this file")
    parser.add_argument("--try", nargs=2, dest="one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(*options.one, Path(options.folder))))
        return
    found = table(options.size, options.repeats, options.only or list(WORK), options.folder)
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
