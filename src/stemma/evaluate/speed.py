"""How fast a model reads and writes on this machine, beside what the machine's memory gives."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import nn

from stemma.decoding import begin, evaluating
from stemma.decoding.inputs import generates
from stemma.decoding.requests import requests
from stemma.errors import UsageError
from stemma.nn.masks import layer_mask
from stemma.nn.model import Model
from stemma.nn.parts import Sliding

BUFFER = 2**28  # bytes that are read to measure the memory: more than any cache holds


@dataclass(frozen=True)
class Speed:
    """Medians of some runs with `rows` texts at once. Rates are tokens a second, of all rows together."""

    rows: int
    prompt: int  # tokens of each prompt
    new: int  # tokens written after each
    prefill: float
    decode: float
    first: float  # seconds to the first token
    read: float  # bytes of weights, keys and values that one step of decoding reads
    bandwidth: float  # bytes a second, of plain reading

    @property
    def share(self) -> float:
        """How much of the memory's bandwidth the steps of decoding use."""
        return self.decode / self.rows * self.read / self.bandwidth


def measure(
    model: Model,
    rows: Sequence[int] = (1,),
    prompt: int = 512,
    new: int = 64,
    repeats: int = 3,
    told: Callable[[int, int], None] = lambda done, of: None,
) -> list[Speed]:
    """The speed of a model that writes, for each number of texts at once. Prompts are random tokens. `told(done,
    of)` is called after each run. Raises UsageError for what cannot be."""
    if not generates(model):
        raise UsageError("this model writes no texts, so there is no decoding to measure")
    for name, value in (("rows", min(rows)), ("prompt", prompt), ("new", new), ("repeats", repeats)):
        if value < 1:
            raise UsageError(f"{name} must be at least 1, not {value}")
    found = []
    with torch.inference_mode(), evaluating(model):
        for at, many in enumerate(rows):
            _run(model, many, min(prompt, 8), 2)  # kernels are built, weights are read from the disk
            runs = []
            for number in range(repeats):
                runs.append((*_run(model, many, prompt, new), bandwidth(model.device)))
                told(at * repeats + number + 1, len(rows) * repeats)
            first, step, most = (median(run[i] for run in runs) for i in range(3))
            read = bytes_read(model, many, prompt + new // 2)
            found.append(Speed(many, prompt, new, many * prompt / first, many / step, first, read, most))
    return found


def _run(model: Model, rows: int, prompt: int, new: int) -> tuple[float, float]:
    """Seconds to the first token, and those of a further one."""
    generator = torch.Generator().manual_seed(rows)
    ids = torch.randint(model.dims.vocab, (rows, prompt), generator=generator).tolist()
    asked = requests(model, ids, None, {"max_new_tokens": new, "ignore_eos": True})
    starts = [r.start for r in asked if r.start is not None] or None
    began = _now(model.device)
    session = begin(model, [r.prompt for r in asked], new, starts=starts)
    tokens = session.logits.argmax(-1)
    first = _now(model.device) - began
    began = _now(model.device)
    for _ in range(new):
        tokens = session.step(tokens).argmax(-1)
    return first, (_now(model.device) - began) / new


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def bandwidth(device: torch.device) -> float:
    """Bytes a second of reading a buffer that no cache holds, with torch's threads: the best of some runs."""
    buffer = torch.ones(BUFFER // 4, device=device)

    def seconds() -> float:
        began = _now(device)
        buffer.sum()
        return _now(device) - began

    return BUFFER / min(seconds() for _ in range(5))


def bytes_read(model: Model, rows: int, length: int) -> float:
    """Bytes that a step of decoding reads at least: all weights of the stack that writes and of the head, once, and the
    keys and values of `length` tokens of each row. Of experts, all count."""
    stack = model.decoder if model.decoder is not None else model.encoder
    assert stack is not None
    parts: list[nn.Module] = [stack] if model.lm is None else [stack, model.lm]
    parts += [model.embed.tokens] if model.arch.heads.tied else []
    weights = sum({id(t): t.numel() * t.element_size() for part in parts for t in _tensors(part)}.values())
    dims = model.dims.decoder if model.arch.structure == "encoder-decoder" else model.dims
    masks = (layer_mask(model.arch.mask, layer) for layer in range(len(stack.order)))
    kept = sum(min(length, mask.window) if isinstance(mask, Sliding) else length for mask in masks)
    return weights + rows * 2 * dims.kv * dims.width * kept * model.dtype.itemsize


def _tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    yield from module.parameters()
    yield from module.buffers()
