"""Training speed: Stemma's loop beside transformers' Trainer, on the same weights' shape, data and batch.

    python bench/train.py [--threads 2] [--seconds 240] [--json FILE] [NAME ...]
    python bench/train.py --alike bf16 [--compile]

For each design all sides train the same small network on the same token rows: full rows, no padding, no dropout, AdamW
with clipping. Steps are taken in turns in one process (two of Stemma's, two of each Trainer's, and so on), so that
whatever else the machine does hits all; the table shows the median of the ratios of neighbours, with the extremes.
Masked models predict 15 % of the tokens, chosen beforehand, the same on all sides.

The first command: Stemma as its recipes train on this machine (bf16, compiled), beside the Trainer with its defaults
(fp32, not compiled) and at its best (bf16, compiled). `MFU` is the share of the machine's own matrix product, measured
in the same precision (1024 x 1024), that the model's operations make up. The second: both sides in one precision.
Under `LD_PRELOAD=libtcmalloc.so` everything runs on that allocator; the first line says so.

What differs on purpose: Stemma reads the vocabulary matrix only for targets, multiplies causal rows in blocks, keeps
freed memory (which helps the Trainer in the same process too), and its optimiser is fused.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from stemma import families
from stemma.families.recipes import AdamW
from stemma.nn.model import IGNORED, Model
from stemma.nn.parts import Dropout
from stemma.objectives import ALONE, Cursor, Loss, Objective, Setting
from stemma.objectives.base import stack, targets
from stemma.train import Loop, meter, resolve
from stemma.train.pages import keep_pages
from stemma.train.run import settled

VOCAB, WIDTH, LAYERS, HEADS = 8192, 256, 4, 8
ROWS, CONTEXT, GOAL = 16, 128, 32  # GOAL: target tokens of a row of the encoder-decoder
NAMES = ("gpt2", "llama", "bert", "t5")


class Rows(Objective):
    """Fixed rows that hold nothing but text: what both sides are fed."""

    def __init__(self, kind: str, seed: int) -> None:
        self.setting = Setting(None, None, CONTEXT, seed)  # type: ignore[arg-type]
        self.kind, self.rng = kind, np.random.default_rng(seed)
        self.held = [self.row() for _ in range(512)]

    def row(self) -> dict[str, Any]:
        def ids(n: int) -> Any:
            return self.rng.integers(10, VOCAB, size=n)

        row = {"input_ids": ids(CONTEXT)}
        if self.kind == "decoder":
            row["labels"] = row["input_ids"]
        elif self.kind == "encoder":
            chosen = self.rng.permutation(CONTEXT)[: round(0.15 * CONTEXT)]
            row["labels"] = np.full(CONTEXT, IGNORED)
            row["labels"][chosen] = row["input_ids"][chosen]
            row["input_ids"][chosen] = 3
        else:
            row["labels"] = ids(GOAL)
        return row

    def plan(self, view: Any, cursor: Cursor = Cursor(), once: bool = False) -> Iterator[Any]:
        for at in itertools.count(cursor.offset):
            yield functools.partial(self.held.__getitem__, at % len(self.held)), Cursor(0, at + 1)

    def collate(self, examples: Any) -> Any:
        batch = stack(examples, "input_ids", "labels")
        labels = batch.pop("labels")
        if self.kind == "decoder":
            labels = torch.cat([labels[:, 1:], labels.new_full((len(labels), 1), IGNORED)], 1)
        elif self.kind == "encoder-decoder":
            batch["decoder_input_ids"] = torch.cat([labels.new_zeros(len(labels), 1), labels[:, :-1]], 1)
        return batch | targets(labels)

    def loss(self, model: Model, batch: Any, nets: Any = ALONE) -> Loss:
        if self.kind == "decoder":
            hidden = model.decode(batch["input_ids"])
        else:
            hidden = model.encode(batch["input_ids"])
        if self.kind == "encoder-decoder":
            hidden = model.decode(batch["decoder_input_ids"], memory=hidden)
        return Loss({"token": self.token_loss(model, hidden, batch)}, self.counts(batch))


def ours(name: str, precision: str, compiled: bool) -> tuple[Callable[[], float], Model, Rows]:
    """A function that takes one step of Stemma's loop and returns the loss."""
    plan = resolve(name)
    heads = replace(plan.arch.heads, pooler=None, pair=False)
    arch = replace(plan.arch, dropout=Dropout(), heads=heads)
    ffn = 682 if name == "llama" else 4 * WIDTH
    dims = replace(plan.dims, d_model=WIDTH, layers=LAYERS, heads=HEADS, d_ff=ffn, vocab=VOCAB, context=CONTEXT)
    recipe = replace(plan.recipe, optimizer=AdamW(), lr=1e-4, clip=1.0, batch=ROWS * CONTEXT)
    train = replace(plan.train, precision=precision, compile=compiled, micro=ROWS)  # type: ignore[arg-type]
    plan = settled(replace(plan, arch=arch, dims=dims, recipe=recipe, train=train), 100_000, False)
    model = Model(arch, dims).initialise(1)
    rows = Rows(arch.structure, 1)
    loop = Loop(plan, model, rows, [])  # type: ignore[arg-type]
    return lambda: float(loop.advance()["loss"]), model, rows


def theirs(name: str, rows: Rows, precision: str, compiled: bool, folder: str) -> tuple[Callable[[], float], Any]:
    """A function that takes one step of a Trainer and returns the loss; its network."""
    import transformers
    from transformers import PrinterCallback, Trainer, TrainingArguments

    transformers.logging.set_verbosity_error()
    common = {"vocab_size": VOCAB}
    match name:
        case "gpt2":
            config: Any = transformers.GPT2Config(
                **common, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, n_positions=CONTEXT,
                resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            )  # fmt: skip
            model: Any = transformers.GPT2LMHeadModel(config)
        case "llama":
            config = transformers.LlamaConfig(
                **common, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
                num_key_value_heads=HEADS, intermediate_size=682, max_position_embeddings=CONTEXT,
            )  # fmt: skip
            model = transformers.LlamaForCausalLM(config)
        case "bert":
            config = transformers.BertConfig(
                **common, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
                intermediate_size=4 * WIDTH, max_position_embeddings=CONTEXT,
                hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
            )  # fmt: skip
            model = transformers.BertForMaskedLM(config)
        case _:
            config = transformers.T5Config(
                **common, d_model=WIDTH, num_layers=LAYERS, num_decoder_layers=LAYERS, num_heads=HEADS,
                d_kv=WIDTH // HEADS, d_ff=4 * WIDTH, dropout_rate=0.0, decoder_start_token_id=0,
            )  # fmt: skip
            model = transformers.T5ForConditionalGeneration(config)
    model.config.use_cache = False
    data = [{k: torch.as_tensor(v) for k, v in row.items()} for row in rows.held]
    arguments = TrainingArguments(
        folder, per_device_train_batch_size=ROWS, max_steps=10**6, learning_rate=1e-4, max_grad_norm=1.0,
        weight_decay=0.01, report_to=[], save_strategy="no", logging_strategy="no", bf16=precision == "bf16",
        torch_compile=compiled, use_cpu=not torch.cuda.is_available(), disable_tqdm=True,
        dataloader_pin_memory=False, seed=1,
    )  # fmt: skip
    steps = _Steps()
    trainer = Trainer(model, arguments, train_dataset=data, callbacks=[steps.callback()])
    trainer.remove_callback(PrinterCallback)
    return steps.stepper(trainer), model


class _Steps:
    """Runs `Trainer.train` in a thread that halts after every step, so that steps can be asked for one by one."""

    def __init__(self) -> None:
        import threading

        self.go, self.done = threading.Semaphore(0), threading.Semaphore(0)
        self.stop = False
        self.failed: BaseException | None = None

    def callback(self) -> Any:
        from transformers import TrainerCallback

        outer = self

        class Halt(TrainerCallback):
            def on_step_begin(self, *_: Any, **__: Any) -> None:
                outer.go.acquire()

            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                control.should_training_stop = outer.stop
                outer.done.release()

        return Halt()

    def stepper(self, trainer: Any) -> Callable[[], float]:
        import threading

        threads = torch.get_num_threads()

        def work() -> None:
            torch.set_num_threads(threads)  # the setting is per thread
            try:
                trainer.train()
            except BaseException as error:
                self.failed = error
                self.done.release()

        self.thread = threading.Thread(target=work, daemon=True)
        self.thread.start()

        def step() -> float:
            self.go.release()
            self.done.acquire()
            if self.failed is not None:
                raise self.failed
            return 0.0

        step.finish = self.finish  # type: ignore[attr-defined]
        return step

    def finish(self) -> None:
        self.stop = True
        self.go.release()
        self.thread.join(30)


@dataclass(frozen=True)
class Side:
    """One of those that are timed in turns."""

    title: str
    ours: bool
    precision: str
    compiled: bool


BEST = (
    Side("Stemma", True, "bf16", True),
    Side("Trainer", False, "fp32", False),
    Side("Trainer, best", False, "bf16", True),
)


def measure(name: str, sides: tuple[Side, ...], seconds: float, cpu: bool) -> dict[str, Any]:
    """Blocks of steps in turns for `seconds`; tokens a second of each side, and the ratios of the first to the others
    in each turn."""
    clock = time.process_time if cpu else time.perf_counter
    with tempfile.TemporaryDirectory() as folder:
        steppers, counts, cost = [], [], 0.0
        rows: Rows | None = None
        for i, side in enumerate(sides):
            if side.ours:
                step, model, rows = ours(name, side.precision, side.compiled)
                share = {"encoder": 0.15}.get(model.arch.structure, 1.0)
                cost = meter.flops(model, CONTEXT, share, GOAL / CONTEXT if rows.kind == "encoder-decoder" else 0.0)
                other: Any = model
            else:
                assert rows is not None
                step, other = theirs(name, rows, side.precision, side.compiled, f"{folder}/{i}")
            steppers.append(step)
            counts.append(sum(p.numel() for p in other.parameters()))
        for step in steppers:
            for _ in range(3):
                step()
        tokens = ROWS * CONTEXT
        speeds: list[list[float]] = [[] for _ in sides]
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(speeds[0]) < 5:
            for step, found in zip(steppers, speeds, strict=True):
                begin = clock()
                step()
                step()
                found.append(2 * tokens / (clock() - begin))
        for step in steppers:
            if hasattr(step, "finish"):
                step.finish()
    results = []
    for side, count, found in zip(sides, counts, speeds, strict=True):
        ratios = [a / b for a, b in zip(speeds[0], found, strict=True)]
        speed = statistics.median(found)
        results.append(
            {
                "side": side.title,
                "parameters": count,
                "tokens_per_second": speed,
                "mfu": speed * cost / meter.peak("cpu", side.precision == "bf16"),
                "ratio": statistics.median(ratios),
                "ratio_low": min(ratios),
                "ratio_high": max(ratios),
            }
        )
    return {"name": name, "turns": len(speeds[0]), "sides": results}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=240.0, help="of measuring, over all designs")
    parser.add_argument("--alike", choices=("fp32", "bf16"), help="both sides in this precision")
    parser.add_argument("--compile", action="store_true", help="with --alike: both sides compiled")
    parser.add_argument(
        "--cpu-time", action="store_true", help="seconds of the processor, for a busy machine; 1 thread"
    )
    parser.add_argument("--json", help="write the numbers to this file")
    parser.add_argument("names", nargs="*", default=list(NAMES))
    options = parser.parse_args()
    if options.cpu_time and options.threads != 1:
        parser.error("--cpu-time counts waiting threads too; it needs --threads 1")
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)
    unknown = [n for n in options.names if n not in NAMES or n not in families.tree()]
    if unknown:
        parser.error(f"no design {unknown[0]!r}; choose from {', '.join(NAMES)}")
    sides = BEST
    if options.alike:
        sides = tuple(Side(title, title == "Stemma", options.alike, options.compile) for title in ("Stemma", "Trainer"))
    kept = keep_pages()
    allocator = "tcmalloc" if "tcmalloc" in os.environ.get("LD_PRELOAD", "") else f"glibc, pages kept: {kept}"
    print(f"batch {ROWS} x {CONTEXT}, {options.threads} threads, torch {torch.__version__}, {allocator}")
    print(f"{'':8}{'':16}{'tokens/s':>10}{'MFU':>6}{'Stemma is':>11}   lowest-highest of turns")
    results = []
    for name in options.names:
        row = measure(name, sides, options.seconds / len(options.names), options.cpu_time)
        results.append(row)
        for i, side in enumerate(row["sides"]):
            ratio = f"{side['ratio']:>10.2f}x   {side['ratio_low']:.2f}-{side['ratio_high']:.2f} of {row['turns']}"
            print(
                f"{name if i == 0 else '':8}{side['side']:16}{side['tokens_per_second']:>10,.0f}{side['mfu']:>6.0%}"
                f"{ratio if i else ''}",
                flush=True,
            )
    about = {
        "torch": torch.__version__,
        "threads": options.threads,
        "allocator": allocator,
        "clock": "cpu" if options.cpu_time else "wall",
    }
    if options.json:
        Path(options.json).write_text(json.dumps({**about, "results": results}, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
