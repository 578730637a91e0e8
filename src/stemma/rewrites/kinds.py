"""Rewrites as values: which modules of a model are replaced, and by what. Importing this loads no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from stemma.spec import Spec, at_least, interval, positive, require

if TYPE_CHECKING:
    from torch import nn

    from stemma.nn.model import Model
    from stemma.rewrites.modules import Rewritten


@dataclass(frozen=True)
class Rewrite(Spec, open=True):
    """Replaces every module of type `accepts()` whose path matches a pattern of `where` (`*.attention.[qv]`, as in
    `fnmatch`). Paths are those of the plain model.

    A kind of rewrite is a subclass with fields of its own. Files name it by its class name, so the module that defines
    it must be imported before such a run is opened. Where several rewrites match a module, they are applied in order:
    an adapter after a quantisation wraps the quantised module.
    """

    freezes = False  # True: only what `trainable` and the replaced modules name learns

    where: tuple[str, ...]

    def check(self) -> None:
        require(bool(self.where), f"{type(self).__name__}.where must hold a pattern of module paths such as '*.mlp.*'")

    def accepts(self) -> tuple[type[nn.Module], ...]:
        """The types of modules that can be replaced."""
        from torch import nn

        return (nn.Linear,)

    def replace(self, module: nn.Module) -> nn.Module:
        """The module (a `stemma.rewrites.Rewritten`) that takes the place of `module`, which may be on the meta device,
        or be a replacement already. It reads no weights here: they come by `load` later."""
        raise NotImplementedError

    def trainable(self, model: Model) -> Iterable[nn.Parameter]:
        """Parameters of plain modules that learn although a rewrite freezes the model."""
        return ()

    def connect(self, modules: Mapping[str, Rewritten]) -> None:
        """Share parameters between the modules that this rewrite made (path -> module), after all are in place."""


@dataclass(frozen=True)
class WeightOnly(Rewrite):
    """Matrices, embeddings and the own matrix of a language-model head stored in `dtype` and multiplied in the dtype of
    the model (weight-only quantisation).

    `int8`: one scale a row, `w = scale * code` with `scale = max |w| / 127`; `file`: as the file has them, a GGUF
    file's quantised blocks too, which are dequantised on the CPU. The stored weights do not learn."""

    dtype: Literal["int8", "bfloat16", "float16", "file"] = "int8"

    def accepts(self) -> tuple[type[nn.Module], ...]:
        from torch import nn

        from stemma.nn.heads import LMHead

        return (nn.Linear, nn.Embedding, LMHead)

    def replace(self, module: nn.Module) -> nn.Module:
        from stemma.rewrites.weight_only import weight_only

        return weight_only(self.dtype, module)


@dataclass(frozen=True)
class Trainable(Rewrite):
    """Only parameters whose name matches `where` learn (`*.bias`: BitFit, Ben Zaken et al. 2022); no module is
    replaced. Names are those of the plain model."""

    freezes = True

    def accepts(self) -> tuple[type[nn.Module], ...]:
        return ()

    def trainable(self, model: Model) -> Iterable[nn.Parameter]:
        from stemma.rewrites.paths import matching_parameters

        return matching_parameters(model, self.where)


@dataclass(frozen=True)
class NF4(Rewrite):
    """Matrices stored in 4-bit NormalFloat, `block` weights to a scale, the scales quantised too (`double`), and
    multiplied in the dtype of the model (QLoRA, Dettmers et al. 2023, section 3). The stored weights do not learn."""

    block: int = at_least(32, 64)
    double: bool = True

    def replace(self, module: nn.Module) -> nn.Module:
        from stemma.rewrites.nf4 import NF4Linear

        return NF4Linear(self.block, self.double, module)


@dataclass(frozen=True)
class LoRA(Rewrite):
    """Low-rank matrices beside frozen ones: `y = W x + scale * B A x` (Hu et al. 2021, arXiv:2106.09685), with
    `scale = alpha / rank`, or `alpha / sqrt(rank)` (`rslora`: Kalajdzievski 2023, arXiv:2312.03732). A starts at
    random, B at zero; both are fp32 whatever the model's dtype.

    `dora`: the rows of `W + scale * B A` are scaled to learnt lengths (Liu et al. 2024, arXiv:2402.09353). `share`:
    names of sibling modules that have one A (`("q", "k", "v")`: as beside one packed matrix). `name`: of the adapter,
    where a model has several."""

    freezes = True

    rank: int = at_least(1, 8)
    alpha: float = positive(16.0)
    dropout: float = interval("[0, 1)", 0.0)
    rslora: bool = False
    dora: bool = False
    share: tuple[str, ...] = ()
    name: str = "default"

    @property
    def scale(self) -> float:
        """What `B A x` is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def replace(self, module: nn.Module) -> nn.Module:
        from stemma.rewrites.lora import LoRALinear

        return LoRALinear(self, module)

    def connect(self, modules: Mapping[str, Rewritten]) -> None:
        from stemma.rewrites.lora import share_inputs

        share_inputs(self, modules)
