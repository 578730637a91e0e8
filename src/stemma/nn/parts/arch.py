"""The network without its widths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stemma.nn.parts.attention import Attention
from stemma.nn.parts.custom import CustomMLP
from stemma.nn.parts.heads import EMDHead, Heads
from stemma.nn.parts.init import FanIn, Glorot, LeCun, Normal
from stemma.nn.parts.masks import Cycle, Full, Mask, Open
from stemma.nn.parts.mlp import MLP, Convolution, Experts, GatedMLP
from stemma.nn.parts.norms import Norm
from stemma.nn.parts.positions import (
    BlankLearned,
    BlankRotary,
    Disentangled,
    Learned,
    Position,
    RelativeSinusoidal,
    Rotary,
)
from stemma.nn.parts.residuals import PostNorm, Residual
from stemma.spec import Spec, at_least, interval, require

Structure = Literal["encoder", "decoder", "encoder-decoder"]


@dataclass(frozen=True)
class Dropout(Spec):
    """Dropout rates: `embed` after the embeddings, `residual` on each branch, `attention` on the attention weights,
    `inner` inside the MLP, `final` after the last norm, `pair` before the pair head (ALBERT)."""

    embed: float = interval("[0, 1)", 0.0)
    residual: float = interval("[0, 1)", 0.0)
    attention: float = interval("[0, 1)", 0.0)
    inner: float = interval("[0, 1)", 0.0)
    final: float = interval("[0, 1)", 0.0)
    pair: float = interval("[0, 1)", 0.0)


@dataclass(frozen=True)
class Streams(Spec):
    """Two streams of hidden states with one set of weights (Yang et al. 2019, section 2.3): content, where a token sees
    itself, and queries, where it does not; both see a memory of earlier segments (Dai et al. 2019, 3.2). `memory`: the
    most tokens it holds (None: all); `reuse`: tokens of each segment, from its beginning, that enter it (None: all)."""

    memory: int | None = at_least(1, None, "token")
    reuse: int | None = at_least(1, None, "token")


@dataclass(frozen=True)
class Arch(Spec):
    """What a network is, without its widths. `mask`: the decoder's (an encoder's is full, or open to each batch's
    choice); `embed_norm`: a norm after the sum of embeddings; `embed_scale`: token embeddings times sqrt(d_model);
    `local`: positions of layers with a sliding window, where they differ from the others' (Gemma 3); `convolution`:
    beside an encoder's first block; `streams`: a second stream of queries and a memory of segments (XLNet)."""

    structure: Structure
    position: Position
    norm: Norm
    residual: Residual
    attention: Attention
    mask: Mask
    mlp: MLP | GatedMLP | Experts | CustomMLP
    heads: Heads
    init: Normal | FanIn | Glorot | LeCun
    dropout: Dropout = Dropout()
    embed_norm: bool = False
    embed_scale: bool = False
    local: Rotary | None = None
    convolution: Convolution | None = None
    streams: Streams | None = None

    def check(self) -> None:
        for name, part in (("position", self.position), ("heads.lm", self.heads.lm), ("convolution", self.convolution)):
            sees_both = not isinstance(part, Disentangled | EMDHead | Convolution) or self.structure == "encoder"
            require(
                sees_both,
                f"arch.{name}={part} sees to both sides: it is for an encoder, not for structure {self.structure!r}",
            )
        require(
            not isinstance(self.heads.lm, EMDHead) or isinstance(self.residual, PostNorm),
            f"an EMDHead runs the last block over its input, which needs arch.residual=PostNorm(), not {self.residual}",
        )
        counts_from_0 = not isinstance(self.position, BlankLearned | BlankRotary) and (
            getattr(self.position, "padding", None) is None
        )
        require(
            not isinstance(self.heads.lm, EMDHead) or counts_from_0,
            f"an EMDHead counts tokens from 0, and so must arch.position, unlike {self.position}",
        )
        two = self.streams is not None
        require(
            two == isinstance(self.position, RelativeSinusoidal),
            f"arch.streams and RelativeSinusoidal() positions go together, not {self.streams} and {self.position}",
        )
        require(
            not two or (isinstance(self.mask, Full) and isinstance(self.residual, PostNorm)),
            "arch.streams are for an encoder with mask Full() and residual PostNorm()",
        )
        require(
            self.local is None or (isinstance(self.position, Rotary) and isinstance(self.mask, Cycle)),
            "arch.local is for rotary positions and masks that change from layer to layer",
        )
        full = isinstance(self.mask, Full | Open)
        require(
            full == (self.structure == "encoder"),
            f"an arch of structure {self.structure!r} cannot have mask {self.mask}; "
            "encoders are Full() or Open(), decoders Causal(), Sliding(...), Prefix(), Cycle(...) or Memory(...)",
        )
        drawn = isinstance(self.init, Normal) and self.init.positions is not None
        require(
            not drawn or isinstance(self.position, Learned),
            f"init.positions is for a learned table, and this arch has {self.position}; set init.positions=none",
        )
