"""Small models that have learnt to look values up, and how they learn."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

import stemma
from recall.texts import VOCAB, Texts
from stemma import spec
from stemma.declare.recipes import Muon
from stemma.nn.inputs import Inputs
from stemma.nn.model import Model
from stemma.nn.positions import Rotary
from stemma.train import optim

CONTEXT, TOKENS = 64, 2048  # tokens of a base's row, and of a step
# rows of so many tokens with such a share of filler, for so many parts of the steps: short texts without filler first, in
# which looking up is learnt, until 95 % of the values are found
STAGES = ((16, 0.0, 10), (32, 0.2, 2), (64, 0.3, 3))
ENOUGH, TEXTS = 0.95, 12_000  # texts of a stage


def fresh(seed: int, changes: dict[str, Any], context: int = CONTEXT) -> Model:
    """LLaMA with two layers of 64, drawn anew."""
    built = stemma.build("llama", d_model=64, layers=2, heads=4, d_ff=128, vocab=VOCAB, context=context, seed=seed)
    arch = spec.edit(built.arch, {"init.std": 0.02 * math.sqrt(768 / 64), **changes})
    return Model(arch, built.dims).initialise(seed)


def learn(
    model: Model,
    steps: int,
    rate: float,
    loss: Callable[[int], Tensor],
    warmup: int = 50,
    enough: Callable[[int], bool] = lambda step: False,
) -> None:
    """`steps` of Muon down a cosine; `loss(step)` is that of the step, and `enough(step)` ends it early."""
    optimizer = optim.optimizer(Muon(weight_decay=0.01), list(model.named_parameters()), rate)
    schemes = [module for module in model.modules() if isinstance(module, Rotary)]
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            fall = 0.1 + 0.45 * (1 + math.cos(math.pi * step / steps))
            group["lr"] = rate * min(1.0, (step + 1) / warmup) * fall
        for scheme in schemes:
            scheme.at_step(step, steps)
        loss(step).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if enough(step):
            break
    model.eval()


def predicted(model: Model, ids: Tensor, contexts: Any = None) -> Tensor:
    """Logits of every token but the first: B T+1 -> B T V."""
    return model.logits(model.decode(Inputs(ids[:, :-1], contexts=contexts)))


def next_token(logits: Tensor, ids: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


@torch.no_grad()
def found(model: Model, texts: Texts, count: int) -> float:
    """The share of the values said before that the model finds in the first texts."""
    logits, ids = predicted(model, texts.ids[:count]), texts.ids[:count, 1:]
    return float((logits.argmax(-1) == ids)[texts.asked[:count, 1:]].float().mean())


def base(seed: int, steps: int, out: Path) -> Model:
    """A base, trained when it is first needed. Weights from which looking up is not learnt are drawn again."""
    model, path = fresh(seed, {}), out / f"base-{seed}-{steps}.safetensors"
    if path.exists():
        model.load_state_dict(safetensors.torch.load_file(path))
        return model.eval()
    for drawn in range(seed, seed + 400, 100):
        model = fresh(drawn, {})
        if taught(model, drawn, steps) > ENOUGH:
            break
    safetensors.torch.save_file(model.state_dict(), path)
    return model


def taught(model: Model, seed: int, steps: int) -> float:
    """Teach a model to look values up; returns how many it finds in short texts."""
    draw, parts, share = torch.Generator().manual_seed(seed), sum(part for *_, part in STAGES), 0.0
    for number, (length, plain, part) in enumerate(STAGES):
        texts, held = (Texts(seed + i, length, min(TEXTS, steps * 20), plain) for i in (0, 500))

        def loss(step: int, texts: Texts = texts, length: int = length) -> Tensor:
            ids = texts.batch(TOKENS // length, draw)
            return next_token(predicted(model, ids), ids)

        def enough(step: int, held: Texts = held, first: bool = number == 0) -> bool:
            return first and step % 50 == 49 and found(model, held, 200) > ENOUGH

        learn(model, max(1, steps * part // parts), 2e-2, loss, enough=enough)
        share = found(model, held, 200) if number == 0 else share
        if share < 0.5:  # longer texts teach no more
            break
    return share


def like(start: Model, changes: dict[str, Any], context: int = CONTEXT) -> Model:
    """The same weights in a network that differs in what has none."""
    model = fresh(0, changes, context)
    model.load_state_dict(start.state_dict())
    return model
