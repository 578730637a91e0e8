"""Components of one's own: values that say themselves what builds them.

A subclass is a kind like those of this package: it is named by its class after `--set`, in files and in run.json. The
module that declares it must be imported before that (`--families FILE` imports one). A module that it builds may have
a method `init_weights(generator)`, which initialises its own parameters in place of `arch.init`, and a dict
`parameter_uses`, which says of its parameters with several dimensions that they are no matrices to weight decay and
Muon: `{"gain": "vector", "rows": "table"}`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stemma.spec import Spec

if TYPE_CHECKING:
    from torch import nn

    from stemma.nn.parts.dims import Dims


@dataclass(frozen=True)
class CustomNorm(Spec, open=True):
    """A norm of one's own, for `arch.norm`."""

    def build(self, width: int) -> nn.Module:
        """The module that normalises vectors: `... width -> ... width`."""
        raise NotImplementedError


@dataclass(frozen=True)
class CustomPosition(Spec, open=True):
    """A position scheme of one's own, for `arch.position`."""

    def build(self, arch: Any, dims: Dims, both: bool) -> Any:
        """The scheme (`stemma.nn.positions.Position`) of one stack of `arch`; `both`: its tokens see both sides."""
        raise NotImplementedError


@dataclass(frozen=True)
class CustomMLP(Spec, open=True):
    """A feed-forward part of one's own, for `arch.mlp`."""

    def build(self, dims: Dims, dropout: float) -> nn.Module:
        """The module of one layer: `B T D -> B T D`."""
        raise NotImplementedError
