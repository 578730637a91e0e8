"""What learns in front of every text: soft prompts and prefixes, in the places that a model has for them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor, nn

from stemma.errors import UsageError
from stemma.nn.front import Past, Prompt
from stemma.nn.inputs import Inputs
from stemma.nn.model import Model
from stemma.rewrites.modules import Rewritten, Wrapped


class Settings(Protocol):
    """What both need of their rewrite."""

    @property
    def length(self) -> int: ...
    @property
    def name(self) -> str: ...


class PromptSettings(Settings, Protocol):
    @property
    def init(self) -> str: ...


class PrefixSettings(Settings, Protocol):
    @property
    def projection(self) -> int: ...


class Ahead(Wrapped):
    """What stands in front of a text, behind what stands there already (`base`). `strength`: 1, or 0 for off."""

    def __init__(self, spec: Settings, base: nn.Module) -> None:
        super().__init__(base)
        self.spec, self.strength = spec, 1.0

    @property
    def length(self) -> int:
        own = self.spec.length if self.strength else 0
        below = self.base.length
        assert isinstance(below, int)
        return own + below

    def trainable(self) -> Iterable[nn.Parameter]:
        own = [p for name, p in self.named_parameters() if not name.startswith("base.")]
        return [*own, *(self.base.trainable() if isinstance(self.base, Rewritten) else ())]

    def unmergeable(self) -> str | None:
        return (
            f"a {type(self.spec).__name__} stands in front of the text and is no part of a weight; as a run's adapter "
            "it is kept in PEFT's format (train.start names its base), as layout='peft' keeps it"
        )


class SoftPrompt(Ahead):
    """`vectors`, as learnt: N E, fp32. They enter the network as embeddings of tokens do."""

    spec: PromptSettings

    def __init__(self, spec: PromptSettings, base: nn.Module) -> None:
        super().__init__(spec, base)
        assert isinstance(base, Prompt | SoftPrompt)
        self.width: int = base.width
        self.own = nn.Parameter(torch.empty(spec.length, self.width, device="meta"))

    def reset(self, model: Model, generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> None:
        shape = self.own.shape
        match self.spec.init:
            case "vocabulary":
                ids = torch.randint(model.dims.vocab, shape[:1], generator=generator)
                drawn = model.embed.vectors(Inputs(ids[None].to(device)))[0].detach()
            case "uniform":
                drawn = torch.empty(shape).uniform_(-0.5, 0.5, generator=generator)
            case _:
                drawn = torch.empty(shape).normal_(generator=generator)
        self.own = nn.Parameter(drawn.to(device, torch.float32))

    def vectors(self) -> Tensor:
        assert isinstance(self.base, Prompt | SoftPrompt)
        if not self.base.length:
            return self.own
        return torch.cat([self.base.vectors(), self.own]) if self.strength else self.base.vectors()


class Prefix(Ahead):
    """Keys and values of each layer. `own`: N, then for each layer a key and a value of `heads` heads (H D), fp32; with
    a projection they are `up(tanh(down(own)))` of N vectors of H D numbers (Li & Liang 2021, section 4.3).

    Of an encoder-decoder, layer l has the parts 4 l and 4 l + 1, counted round (as PEFT cuts them)."""

    layers: int
    heads: int
    width: int
    cross: bool

    def __init__(self, spec: PrefixSettings, base: nn.Module) -> None:
        super().__init__(spec, base)
        assert isinstance(base, Past | Prefix)
        self.layers, self.heads, self.width, self.cross = base.layers, base.heads, base.width, base.cross
        one, whole = self.heads * self.width, self.layers * 2 * self.heads * self.width
        self.down = nn.Linear(one, spec.projection, device="meta") if spec.projection else None
        self.up = nn.Linear(spec.projection, whole, device="meta") if spec.projection else None
        self.own = nn.Parameter(torch.empty(spec.length, one if spec.projection else whole, device="meta"))

    def reset_parameters(self, generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> None:
        with torch.no_grad():
            self.own = nn.Parameter(torch.empty(self.own.shape).normal_(generator=generator).to(device))
            for layer in (self.down, self.up):
                if layer is not None:
                    bound = 1 / math.sqrt(layer.in_features)
                    for name, old in list(layer.named_parameters()):
                        drawn = torch.empty(old.shape).uniform_(-bound, bound, generator=generator)
                        setattr(layer, name, nn.Parameter(drawn.to(device)))

    def flat(self) -> Tensor:
        """N, then all keys and values: N (L 2 H D)."""
        if self.down is None or self.up is None:
            return self.own
        found: Tensor = self.up(self.down(self.own).tanh())
        return found

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        assert isinstance(self.base, Past | Prefix)
        below = self.base.pairs() if self.base.length else None
        if not self.strength:
            assert below is not None
            return below
        parts = self.flat().view(len(self.own), 2 * self.layers, self.heads, self.width).permute(1, 2, 0, 3)
        step = 4 if self.cross else 2
        own = [(parts[i % len(parts)], parts[i % len(parts) + 1]) for i in range(0, step * self.layers, step)]
        if below is None:
            return own
        return [(torch.cat([a, k], 1), torch.cat([b, v], 1)) for (a, b), (k, v) in zip(below, own, strict=True)]


def check_place(model: Model, kind: str) -> None:
    """Raises UsageError for a model that has no place in front of its texts."""
    if model.arch.streams is not None:
        raise UsageError(f"{kind}: two streams of attention (XLNet) have no place for it")
    if (what := type(model.arch.mask).__name__) == "Memory":
        raise UsageError(f"{kind}: a model that reads in windows ({what}) has no place for it")


def check_room(model: Model, context: int) -> None:
    """Raises UsageError where rows of `context` tokens do not fit behind what stands in front of them."""
    for stack in (model.encoder, model.decoder):
        if stack is not None and stack.position.limit is not None:
            n = 0 if stack is model.decoder and model.encoder is not None else model.prompt.length
            n += 0 if stack is model.encoder and model.decoder is not None else model.prefix.length
            if n and context + n > (limit := stack.position.limit):
                raise UsageError(
                    f"rows of {context} tokens behind {n} others do not fit in this model's {limit} positions; set "
                    f"train.context={limit - n}"
                )
