"""Rows of a table of tokens that learn alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor, nn

from stemma.errors import UsageError
from stemma.nn.heads import LMHead, MLMHead, Product
from stemma.nn.mixed import Matrix, times
from stemma.rewrites.modules import Rewritten, Wrapped, with_weight


class Settings(Protocol):
    """What the rows need of `stemma.rewrites.TrainableTokens`."""

    @property
    def ids(self) -> tuple[int, ...]: ...
    @property
    def name(self) -> str: ...


class Rows(Wrapped):
    """A table whose rows at `ids` are `own` (N D, fp32). `strength`: 1, or 0 for the base's rows."""

    def __init__(self, spec: Settings, base: nn.Module) -> None:
        super().__init__(base)
        self.spec, self.strength = spec, 1.0
        size, width = self.shapes["weight"]
        if (most := max(spec.ids)) >= size:
            raise UsageError(f"TrainableTokens.ids holds {most}, and this model's tokens go from 0 to {size - 1}")
        self.own = nn.Parameter(torch.empty(len(spec.ids), width, device="meta"))

    @property
    def base_weight(self) -> Tensor:
        weight = self.base.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def weight(self) -> Tensor:
        """The whole table: V D."""
        return self.put(self.base_weight)

    @property
    def dtype(self) -> torch.dtype:
        found = getattr(self.base, "dtype", None)
        return found if isinstance(found, torch.dtype) else self.base_weight.dtype

    @property
    def device(self) -> torch.device:
        return self.own.device

    def put(self, table: Tensor) -> Tensor:
        """A table with the rows in their places."""
        if not self.strength:
            return table
        ids = torch.tensor(self.spec.ids, device=table.device)
        return table.index_copy(0, ids, self.own.to(table.dtype))

    def reset_parameters(self, generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> None:
        ids = torch.tensor(self.spec.ids, device=self.base_weight.device)
        self.own = nn.Parameter(self.base_weight.detach()[ids].float())

    def trainable(self) -> Iterable[nn.Parameter]:
        return [self.own, *(self.base.trainable() if isinstance(self.base, Rewritten) else ())]

    def merge(self) -> nn.Module:
        plain = self.merged_base()
        return with_weight(plain, self.put(plain.get_parameter("weight").detach()).detach())


class RowsEmbedding(Rows):
    """Looks tokens up."""

    def __init__(self, spec: Settings, base: nn.Module) -> None:
        super().__init__(spec, base)
        self.num_embeddings, self.embedding_dim = self.shapes["weight"]

    def forward(self, ids: Tensor) -> Tensor:
        y: Tensor = self.base(ids)
        if not self.strength:
            return y
        mine, order = torch.tensor(self.spec.ids, device=ids.device).sort()
        at = torch.searchsorted(mine, ids).clamp(max=len(mine) - 1)
        return torch.where((mine[at] == ids)[..., None], self.own[order[at]].to(y.dtype), y)


class RowsHead(Rows):
    """Multiplies with them."""

    def __init__(self, spec: Settings, base: nn.Module) -> None:
        if "weight" not in (base.shapes if isinstance(base, Rewritten) else dict(base.named_parameters())):
            raise UsageError("TrainableTokens: this head is tied to the embeddings and follows them; leave it out")
        super().__init__(spec, base)
        self.shape: tuple[int, int] = base.shape  # type: ignore[assignment]

    def forward(self, x: Tensor, tokens: Tensor | Matrix, product: Product = times) -> Tensor:
        def own(x: Tensor, weight: Tensor | Matrix, bias: Tensor | None) -> Tensor:
            return product(x, self.put(weight if isinstance(weight, Tensor) else weight.weight), bias)

        y: Tensor = self.base(x, tokens, own)
        return y


def rows(spec: Settings, module: nn.Module) -> Rows:
    """The module with rows of its own that takes the place of a table."""
    plain = module.plain if isinstance(module, Rewritten) else type(module)
    return (RowsHead if issubclass(plain, LMHead | MLMHead) else RowsEmbedding)(spec, module)
