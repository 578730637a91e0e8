"""Decoding for bench/gpu.py: one side and dtype in a process of its own, random weights and tokens, greedy, no text ends
early."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from stemma.families import tree
from stemma.nn.model import Model
from stemma.nn.parts import Dims
from stemma.rewrites import WeightOnly, apply

DTYPES = ("fp32", "bf16", "int8", "q4_0")  # the last two beside bf16
SIDES = ("PyTorch", "compiled", "transformers")
Run = Callable[[list[list[int]], int], list[float]]  # prompts, new tokens -> the time of each step


class Sizes(NamedTuple):
    """What is measured: new tokens behind `prompt` ones, of one text and of `rows`; the reading of `prefill` tokens."""

    rows: int = 16
    prompt: int = 64
    new: int = 128
    prefill: int = 512


def stemma_run(dims: Dims, dtype: str, device: torch.device, compiled: bool) -> Run:
    from stemma.decoding import stream

    os.environ["STEMMA_COMPILE"] = "on" if compiled else "off"
    os.environ["STEMMA_EXECUTOR"] = "off"
    wide = torch.float32 if dtype == "fp32" else torch.bfloat16
    family = tree()["llama"]
    model = Model(family[next(iter(family.sizes))].arch, dims).initialise(1).to(device, wide).eval()
    if dtype not in ("fp32", "bf16"):
        apply(model, (WeightOnly(("*.attention.*", "*.mlp.*"), dtype),))  # type: ignore[arg-type]

    def run(prompts: list[list[int]], new: int) -> list[float]:
        times = []
        for event in stream(model, prompts, max_new_tokens=new, ignore_eos=True, temperature=0):
            if event.row == len(prompts) - 1:
                times.append(time.perf_counter())
        return times

    return run


def transformers_run(dims: Dims, dtype: str, device: torch.device) -> Run:
    import transformers as hf

    config = hf.LlamaConfig(
        vocab_size=dims.vocab, hidden_size=dims.d_model, num_hidden_layers=dims.layers, num_attention_heads=dims.heads,
        num_key_value_heads=dims.kv, intermediate_size=dims.d_ff, max_position_embeddings=dims.context,
    )  # fmt: skip
    model = hf.LlamaForCausalLM(config).to(device, torch.float32 if dtype == "fp32" else torch.bfloat16).eval()

    def run(prompts: list[list[int]], new: int) -> list[float]:
        times: list[float] = []

        def note(ids: Any, scores: Any, **_: Any) -> Any:
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter())
            return torch.zeros(len(ids), dtype=torch.bool, device=device)

        ids = torch.tensor(prompts, device=device)
        rules = hf.StoppingCriteriaList([note])
        fixed: dict[str, Any] = {"min_new_tokens": new, "do_sample": False, "pad_token_id": 0}
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, stopping_criteria=rules, **fixed)
        return times

    return run


def one_side(side: str, dtype: str, dims: Dims, sizes: Sizes, turns: int) -> dict[str, Any]:
    """Tokens a second, medians of some turns after one to warm up; memory at its peak, of tensors (GPU only)."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = (
        transformers_run(dims, dtype, device)
        if side == "transformers"
        else stemma_run(dims, dtype, device, side == "compiled")
    )
    drawn = torch.randint(
        5, dims.vocab, (sizes.rows, sizes.prefill), generator=torch.Generator().manual_seed(1)
    ).tolist()
    short = [row[: sizes.prompt] for row in drawn]
    found: dict[str, Any] = {"side": side, "dtype": dtype}
    for name, prompts in (("decode", short[:1]), (f"decode of {sizes.rows}", short)):
        run(prompts, sizes.new)
        spans = [(t := run(prompts, sizes.new))[-1] - t[0] for _ in range(turns)]
        found[name] = len(prompts) * (sizes.new - 1) / statistics.median(spans)
    run(drawn[:1], 1)
    spans = []
    for _ in range(turns):
        begin = time.perf_counter()
        spans.append(run(drawn[:1], 1)[0] - begin)
    found[f"prefill of {sizes.prefill}"] = sizes.prefill / statistics.median(spans)
    found["memory"] = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
    return found


def table(runs: list[dict[str, Any]]) -> None:
    """Rates, and their share of transformers' at the same precision (for few bits of bf16's, if that was measured)."""
    names = [name for name in runs[0] if name not in ("side", "dtype", "memory")]
    print(f"{'tokens a second':24}" + "".join(f"{name:>24}" for name in names) + f"{'memory':>10}")
    theirs = {run["dtype"]: run for run in runs if run["side"] == "transformers"}
    for run in runs:
        beside = next(theirs[d] for d in (run["dtype"], "bf16", "fp32") if d in theirs)
        cells = "".join(f"{run[n]:16,.0f} ({run[n] / beside[n]:4.2f}x)" for n in names)
        memory = f"{run['memory'] / 1e9:8.2f}GB" if run["memory"] else f"{'-':>10}"
        print(f"{run['dtype']:6}{run['side']:18}{cells}{memory}")
