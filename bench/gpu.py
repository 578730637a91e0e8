"""A LLaMA of about a billion weights on one GPU, trained and decoded, beside transformers' network.

    python bench/gpu.py [train] [decode] [--rows 8] [--context 2048] [--steps 20] [--turns 2] [--json FILE]
    python bench/gpu.py --small                 the same on any machine, with a network of a few million

`train`: tokens a second, MFU and memory. bf16 (autocast over fp32 weights), compiled, AdamW (fused) with clipping, random
tokens, no dropout. Each side runs in a process of its own, so that its peak of memory is its own, and the sides take turns.
`MFU` is by the formula of Chowdhery et al. 2022 (arXiv:2204.02311, appendix B), 6 N + 12 L H Q T operations a token with all
weights counted and attention not halved for being causal, over the dense bf16 peak that the maker names
(`stemma.planning.hardware`); for a device that is not in that table, over its own measured matrix product, which the output
says.

`decode`: tokens a second of one text and of 16, and of reading a prompt of 512 tokens, in fp32, bf16, int8 (a scale a
row) and Q4_0: steps by PyTorch, compiled steps (STEMMA_COMPILE), and transformers' generate in fp32 and bf16.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from shared import gpu_decode
from training import CLIP, DECAY, LR
from training.rows import Rows, Shape

from stemma.nn.model import Model
from stemma.nn.parts import Dims
from stemma.train import Loop, meter, resolve
from stemma.train.assemble import with_steps
from stemma.train.source import TextSource

BILLION = Dims(2048, 20, 32, 5632, 32_000, 2048)
SMALL = Dims(256, 4, 8, 688, 8192, 128)
SIDES = ("Stemma", "transformers")
WARM = 3


def stemma_step(dims: Dims, shape: Shape) -> tuple[Callable[[], float], int]:
    """A function that takes one step of Stemma's loop and returns the loss; how many weights the network has."""
    plan = resolve(
        "llama", scale="full",
        overrides={
            "dims": dims, "recipe.lr": LR, "recipe.clip": CLIP, "recipe.batch": shape.tokens,
            "recipe.optimizer.weight_decay": DECAY, "train.precision": "bf16", "train.compile": True,
            "train.micro": shape.rows,
        },
    )  # fmt: skip
    plan = with_steps(plan, 100_000, False)
    model = Model(plan.arch, plan.dims).initialise(1)
    rows = Rows("decoder", shape, 1, plan.dims.vocab)
    loop = Loop(plan, model, rows, TextSource(plan, rows, []))  # type: ignore[arg-type]
    return lambda: float(loop.advance()["loss"]), sum(p.numel() for p in model.parameters())


def transformers_step(dims: Dims, shape: Shape) -> tuple[Callable[[], float], int]:
    """The same of an ordinary loop around transformers' network, whose loss it takes."""
    import transformers

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=dims.vocab, hidden_size=dims.d_model, num_hidden_layers=dims.layers,
        num_attention_heads=dims.heads, num_key_value_heads=dims.kv, intermediate_size=dims.d_ff,
        max_position_embeddings=dims.context, use_cache=False,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).to(device).train()
    model.compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=DECAY, fused=True)
    rows = Rows("decoder", shape, 1, dims.vocab)
    batches = [
        torch.as_tensor([r["input_ids"].tolist() for r in rows.held[i : i + shape.rows]]) for i in (0, shape.rows)
    ]
    taken = 0

    def step() -> float:
        nonlocal taken
        ids = batches[taken % 2].to(device)
        taken += 1
        with torch.autocast(device.type, torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss)

    return step, sum(p.numel() for p in model.parameters())


def one_side(side: str, dims: Dims, shape: Shape, steps: int) -> dict[str, Any]:
    """Time `steps` steps after some to warm up; memory at its peak, of tensors (GPU only)."""
    step, count = (stemma_step if side == "Stemma" else transformers_step)(dims, shape)
    for _ in range(WARM):
        step()
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(steps):
        begin = time.perf_counter()
        loss = step()  # its value is read, so the device has finished
        times.append(time.perf_counter() - begin)
    return {
        "side": side,
        "parameters": count,
        "tokens_per_second": shape.tokens / statistics.median(times),
        "memory": torch.cuda.max_memory_allocated() if cuda else None,
        "loss": loss,
    }


def best(cuda: bool) -> tuple[float, str]:
    """Operations a second that count as all, and where the figure is from."""
    if cuda:
        from stemma.planning.hardware import HARDWARE

        name = torch.cuda.get_device_name()
        fits = [d for d in HARDWARE.values() if d.name.split("-")[0] in name.replace(" ", "")]
        if fits:
            return fits[0].peak, f"{fits[0].peak / 1e12:,.0f} TFLOPS of {name}, as its maker says"
    found = meter.peak("cuda" if cuda else "cpu", True)
    return found, f"{found / 1e12:,.2f} TFLOPS, as measured"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("parts", nargs="*", metavar="train decode", help="what is measured [both]")
    parser.add_argument("--rows", type=int, default=8, help="rows of a step of training")
    parser.add_argument("--context", type=int, help="tokens a row (2048, or 128 with --small)")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--json", help="write the numbers to this file")
    parser.add_argument("--side", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    parts = options.parts or ["train", "decode"]
    if wrong := [part for part in parts if part not in ("train", "decode")]:
        parser.error(f"{wrong[0]!r} is neither train nor decode")
    dims = SMALL if options.small else BILLION
    shape = Shape(options.rows, options.context or dims.context)
    if options.side:
        print(json.dumps(one_process(options, dims, shape)))
        return
    if not options.small and not torch.cuda.is_available():
        print("not run: there is no GPU here (--small runs on any machine)")
        return
    found: dict[str, Any] = {}
    if "train" in parts:
        found["train"] = training(options, dims, shape)
    if "decode" in parts:
        dtypes = ("fp32", "q4_0") if options.small else gpu_decode.DTYPES
        asked = [(s, d) for d in dtypes for s in gpu_decode.SIDES if s != "transformers" or d in ("fp32", "bf16")]
        found["decode"] = [measured([side, dtype]) for side, dtype in asked]
        gpu_decode.table(found["decode"])
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=2) + "\n", "utf-8")


def one_process(options: argparse.Namespace, dims: Dims, shape: Shape) -> dict[str, Any]:
    """What a process of its own measures: a side of training, or a side and dtype of decoding."""
    if len(options.side) == 1:
        return one_side(options.side[0], dims, shape, options.steps)
    sizes = gpu_decode.Sizes(2, 8, 4, 64) if options.small else gpu_decode.Sizes()
    dims = replace(dims, d_ff=dims.d_ff // 32 * 32)  # blocks of 32 weights
    return gpu_decode.one_side(*options.side, dims, sizes, options.turns)


def measured(side: list[str]) -> dict[str, Any]:
    """The same, in that process."""
    command = [sys.executable, __file__, *sys.argv[1:], "--side", *side]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def training(options: argparse.Namespace, dims: Dims, shape: Shape) -> dict[str, Any]:
    """Measure and print the steps of training."""
    runs = [measured([side]) for _ in range(options.turns) for side in SIDES]
    peak, said = best(torch.cuda.is_available())
    print(f"{shape.rows} x {shape.context} tokens, bf16, compiled, torch {torch.__version__}; peak {said}")
    print(f"{'':14}{'parameters':>14}{'tokens/s':>11}{'MFU':>7}{'memory':>10}")
    for side in SIDES:
        own = [r for r in runs if r["side"] == side]
        speed = statistics.median(r["tokens_per_second"] for r in own)
        cost = 6 * own[0]["parameters"] + 12 * dims.layers * dims.heads * dims.width * shape.context
        memory = f"{own[0]['memory'] / 1e9:8.2f}GB" if own[0]["memory"] else "         -"
        print(f"{side:14}{own[0]['parameters']:14,}{speed:11,.0f}{speed * cost / peak:7.1%}{memory}")
    return {"peak": peak, "runs": runs}


if __name__ == "__main__":
    main()
