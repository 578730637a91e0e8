"""Low-rank adapters of what is no linear layer: embeddings and language-model heads."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stemma.errors import UsageError
from stemma.nn.heads import EMDHead, LMHead, MLMHead, Product
from stemma.nn.mixed import Matrix, times
from stemma.nn.mlp import Experts
from stemma.nn.model import Model
from stemma.rewrites.lora import LoRALinear, Settings
from stemma.rewrites.lora_experts import LoRAExperts
from stemma.rewrites.modules import Rewritten

TIED = "the head is tied to the embeddings, and the adapter is of {} alone"


class LoRAEmbedding(LoRALinear):
    """`base(ids) + strength * scale * (B A)[ids]`: B has a row for each token and starts at zero (PEFT calls it A,
    transposed). A head that is tied to the table reads it without the adapter, as in PEFT."""

    tied = False

    def __init__(self, spec: Settings, base: nn.Module) -> None:
        if spec.dora:
            raise UsageError("LoRA.dora scales outputs of matrices that are multiplied, and an embedding is looked up")
        super().__init__(spec, base)
        self.num_embeddings, self.embedding_dim = self.matrix()

    @property
    def base_weight(self) -> Tensor:
        if isinstance(self.base, LoRAEmbedding):
            return self.base.whole()
        return super().base_weight

    @property
    def weight(self) -> Tensor:
        """The table as a tied head reads it, without the adapter."""
        weight = self.base.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def dtype(self) -> torch.dtype:
        found = getattr(self.base, "dtype", None)
        return found if isinstance(found, torch.dtype) else self.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.up.device

    def reset_parameters(self, generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> None:
        super().reset_parameters(generator, device, dtype)
        drawn = torch.empty(self.down.weight.shape).normal_(generator=generator)
        self.down.weight = nn.Parameter(drawn.to(device))

    def added(self, x: Tensor, y: Tensor) -> Tensor:
        if self.strength == 0:
            return y
        return (y + F.embedding(x, self.up) @ self.down.weight * (self.spec.scale * self.strength)).to(y.dtype)

    def unmergeable(self) -> str | None:
        return TIED.format("the embeddings") if self.tied else super().unmergeable()


class LoRAHead(LoRALinear):
    """A head whose product has an adapter beside it."""

    def __init__(self, spec: Settings, base: nn.Module) -> None:
        if spec.dora and not _has_matrix(base):
            raise UsageError("LoRA.dora needs a matrix of its own, and this head's is that of the embeddings")
        self.shape: tuple[int, int] = base.shape  # type: ignore[assignment]
        super().__init__(spec, base)

    def matrix(self) -> tuple[int, int]:
        return self.shape

    @property
    def weight(self) -> Tensor | None:  # type: ignore[override]
        return super().weight if _has_matrix(self) else None

    def forward(self, x: Tensor, tokens: Tensor | Matrix, product: Product = times) -> Tensor:  # type: ignore[override]
        def own(x: Tensor, weight: Tensor | Matrix, bias: Tensor | None) -> Tensor:
            return self.beside(x, product(x, weight, bias))

        y: Tensor = self.base(x, tokens, own)
        return y

    def unmergeable(self) -> str | None:
        return super().unmergeable() if _has_matrix(self) else TIED.format("the head")


def _has_matrix(head: nn.Module) -> bool:
    """Whether a head has a matrix of its own."""
    return "weight" in head.shapes if isinstance(head, Rewritten) else head._parameters.get("weight") is not None


def lora(spec: Settings, module: nn.Module) -> LoRALinear | LoRAExperts:
    """The adapter that takes the place of a module."""
    plain = module.plain if isinstance(module, Rewritten) else type(module)
    if issubclass(plain, Experts):
        return LoRAExperts(spec, module)
    if issubclass(plain, EMDHead):
        raise UsageError("LoRA: an enhanced mask decoder (DeBERTa) has no place for an adapter; leave the head out")
    if issubclass(plain, LMHead | MLMHead):
        return LoRAHead(spec, module)
    return (LoRAEmbedding if issubclass(plain, nn.Embedding) else LoRALinear)(spec, module)


def tie(model: Model, modules: Iterable[Rewritten]) -> None:
    """Tell adapters of embeddings whether a head reads them."""
    tokens: nn.Module = model.embed.tokens
    for module in modules:
        if isinstance(module, LoRAEmbedding):
            module.tied = module is tokens and model.lm is not None and not _has_matrix(model.lm)
