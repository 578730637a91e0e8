"""Rewrites as values: which modules of a model are replaced, and by what. Importing this loads no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from stemma.spec import Spec, require

if TYPE_CHECKING:
    from torch import nn

    from stemma.nn.model import Model


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


@dataclass(frozen=True)
class WeightOnly(Rewrite):
    """Matrices and embeddings stored in `dtype` and multiplied in the dtype of the model (weight-only quantisation).

    `int8`: one scale a row, `w = scale * code` with `scale = max |w| / 127`; `file`: as the file has them, a GGUF
    file's quantised blocks too, which are dequantised on the CPU. The stored weights do not learn."""

    dtype: Literal["int8", "bfloat16", "float16", "file"] = "int8"

    def accepts(self) -> tuple[type[nn.Module], ...]:
        from torch import nn

        return (nn.Linear, nn.Embedding)

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
