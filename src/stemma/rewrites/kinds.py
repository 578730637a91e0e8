"""Rewrites as values: which modules of a model are replaced, and by what. Importing this loads no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from stemma.spec import Spec, at_least, interval, not_negative, positive, require

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

    def named(self) -> tuple[type[nn.Module], ...]:
        """Further types of modules, which are replaced where a pattern is their whole path."""
        return ()

    def replace(self, module: nn.Module) -> nn.Module:
        """The module (a `stemma.rewrites.Rewritten`) that takes the place of `module`, which may be on the meta device,
        or be a replacement already. It reads no weights here: they come by `load` later."""
        raise NotImplementedError

    def check_model(self, model: Model) -> None:
        """Raises UsageError for a model that this kind cannot rewrite."""

    def trainable(self, model: Model) -> Iterable[nn.Parameter]:
        """Parameters of plain modules that learn although a rewrite freezes the model."""
        return ()

    def connect(self, model: Model, modules: Mapping[str, Rewritten]) -> None:
        """Tie the modules that this rewrite made (path -> module) to each other or to the model, after all are in
        place."""


@dataclass(frozen=True)
class WeightOnly(Rewrite):
    """Matrices and embeddings stored in `dtype` and multiplied in the dtype of the model (weight-only quantisation). A
    language-model head with a matrix of its own is stored so where `where` holds its whole path, `lm`.

    `int8`: one scale a row, `w = scale * code` with `scale = max |w| / 127`; `q8_0`, `q4_0`, `q4_1`: 32 weights to a
    scale (of q4_1 a minimum too) in half precision, 8.5, 4.5 and 5 bits a weight, the numbers of a GGUF file of that
    type; `file`: as the file has them, a GGUF file's quantised blocks too, which are dequantised on the CPU. The stored
    weights do not learn."""

    dtype: Literal["int8", "q8_0", "q4_0", "q4_1", "bfloat16", "float16", "file"] = "int8"

    def accepts(self) -> tuple[type[nn.Module], ...]:
        from torch import nn

        return (nn.Linear, nn.Embedding)

    def named(self) -> tuple[type[nn.Module], ...]:
        from stemma.nn.heads import LMHead

        return (LMHead,)

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

    Embeddings and language-model heads get one where `where` holds their whole path: `embed.tokens`, `lm`. Experts get
    an A and a B each, where patterns match all of their matrices.

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

    def accepts(self) -> tuple[type[nn.Module], ...]:
        from torch import nn

        from stemma.nn.mlp import Experts

        return (nn.Linear, Experts)

    def named(self) -> tuple[type[nn.Module], ...]:
        from torch import nn

        from stemma.nn.heads import LMHead, MLMHead

        return (nn.Embedding, LMHead, MLMHead)

    def replace(self, module: nn.Module) -> nn.Module:
        from stemma.rewrites.lora_tables import lora

        return lora(self, module)

    def connect(self, model: Model, modules: Mapping[str, Rewritten]) -> None:
        from stemma.rewrites.lora import share_inputs
        from stemma.rewrites.lora_tables import tie

        share_inputs(self, modules)
        tie(model, modules.values())


@dataclass(frozen=True)
class TrainableTokens(Rewrite):
    """The rows of the embeddings at `ids` learn alone (of special tokens that a template brings); fp32. A head that is
    tied to the embeddings follows them; one with a matrix of its own is rewritten where `where` names it (`lm`)."""

    freezes = True

    ids: tuple[int, ...] = not_negative(())
    where: tuple[str, ...] = field(default=("embed.tokens",), kw_only=True)
    name: str = "default"

    def check(self) -> None:
        super().check()
        require(bool(self.ids), "TrainableTokens.ids must hold the id of a token")
        require(len(set(self.ids)) == len(self.ids), f"TrainableTokens.ids holds an id twice: {self.ids}")

    def accepts(self) -> tuple[type[nn.Module], ...]:
        from torch import nn

        from stemma.nn.heads import LMHead, MLMHead

        return (nn.Embedding, LMHead, MLMHead)

    def replace(self, module: nn.Module) -> nn.Module:
        from stemma.rewrites.rows import rows

        return rows(self, module)


@dataclass(frozen=True)
class SoftPrompt(Rewrite):
    """`length` learnt vectors in front of every text, which the network reads as if they were embedded tokens (Lester
    et al. 2021, arXiv:2104.08691). In an encoder-decoder the encoder reads them. fp32, whatever the model's dtype.

    `init`: "vocabulary" (embeddings of tokens drawn from all), "uniform" (within 0.5 of 0: Lester et al., section 3.1;
    Med-PaLM), "normal" (of variance 1, as PEFT)."""

    freezes = True

    where: tuple[str, ...] = field(default=("prompt",), kw_only=True)
    length: int = at_least(1, 20)
    init: Literal["vocabulary", "uniform", "normal"] = "vocabulary"
    name: str = "default"

    def accepts(self) -> tuple[type[nn.Module], ...]:
        from stemma.nn.front import Prompt

        return (Prompt,)

    def check_model(self, model: Model) -> None:
        from stemma.rewrites.prompts import check_place

        check_place(model, type(self).__name__)

    def replace(self, module: nn.Module) -> nn.Module:
        from stemma.rewrites.prompts import SoftPrompt as Made

        return Made(self, module)


@dataclass(frozen=True)
class Prefix(Rewrite):
    """`length` learnt keys and values in front of those of every text, in each layer (Li & Liang 2021,
    arXiv:2101.00190); of an encoder-decoder, in the decoder's self-attention, as PEFT has it. fp32.

    `projection`: the width of an MLP that makes them of narrower vectors while they learn; 0: they learn themselves."""

    freezes = True

    where: tuple[str, ...] = field(default=("prefix",), kw_only=True)
    length: int = at_least(1, 20)
    projection: int = at_least(0, 0)
    name: str = "default"

    def accepts(self) -> tuple[type[nn.Module], ...]:
        from stemma.nn.front import Past

        return (Past,)

    def check_model(self, model: Model) -> None:
        from stemma.rewrites.prompts import check_place

        check_place(model, type(self).__name__)

    def replace(self, module: nn.Module) -> nn.Module:
        from stemma.rewrites.prompts import Prefix as Made

        return Made(self, module)


Adapter = LoRA | TrainableTokens | SoftPrompt | Prefix  # what has a name and a directory in PEFT's format
