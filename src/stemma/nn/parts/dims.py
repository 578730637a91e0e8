"""Widths and counts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar

from stemma.spec import Bound, Spec, at_least, not_negative, quiet, require

# The most of each that is believed: far above every published model, and far below what takes hours only to be counted.
MOST = {
    **{"d_model": 10**6, "embed": 10**6, "d_ff": 10**7, "head_dim": 10**6, "vocab": 10**8, "context": 2**31},
    **{"layers": 10**4, "decoder_layers": 10**4, "groups": 10**4, "inner": 10**4},
    **{"decoder_heads": 10**5, "decoder_d_ff": 10**7},
    **{"heads": 10**5, "kv_heads": 10**5, "segments": 10**6, "languages": 10**6, "experts": 10**5, "active": 10**5},
}
COUNT = {"bound": Bound(1, said="be at least 1")}


@dataclass(frozen=True)
class Dims(Spec):
    """Widths and counts. Left out, `kv_heads` is `heads`, `head_dim` is `d_model / heads`; `decoder_layers`,
    `decoder_heads` and `decoder_d_ff` (of an encoder-decoder) are `layers`, `heads` and `d_ff`. `context`: the longest
    text in training, and the rows of a position table; `segments`, `languages`: rows of these tables, 0 for none;
    `embed`: width of the embeddings, which a matrix maps to d_model (left out: d_model, and no matrix); `groups`: sets
    of weights that the layers share, each of `inner` consecutive blocks (left out: every layer has its own); `experts`:
    MLPs of a layer, of which a token uses `active`; `d_ff` is the width of one."""

    PLACE: ClassVar[str] = "dims"

    d_model: int = field(metadata=COUNT)
    layers: int = field(metadata=COUNT)
    heads: int = field(metadata=COUNT)
    d_ff: int = field(metadata=COUNT)
    vocab: int = field(metadata=COUNT)
    context: int = field(metadata=COUNT)
    kv_heads: int | None = at_least(1, None)
    head_dim: int | None = at_least(1, None)
    decoder_layers: int | None = at_least(1, None)
    segments: int = not_negative(0)
    embed: int | None = at_least(1, None)
    groups: int | None = at_least(1, None)
    inner: int = at_least(1, 1)
    languages: int = not_negative(0)
    experts: int | None = at_least(1, None)
    active: int | None = at_least(1, None)
    decoder_heads: int | None = quiet(None, COUNT["bound"])
    decoder_d_ff: int | None = quiet(None, COUNT["bound"])

    RULES: ClassVar = {"kv_heads": "kv", "head_dim": "width", "decoder_layers": "depth"}  # what stands in if left out

    def check(self) -> None:
        for name, most in MOST.items():
            value = getattr(self, name)
            require((value or 0) <= most, f"dims.{name}={value} is more than the {most:,} that is supported")
        require(
            self.head_dim is not None or self.d_model % self.heads == 0,
            f"dims.d_model={self.d_model} is not a multiple of dims.heads={self.heads}; change one, "
            "or set dims.head_dim",
        )
        require(
            self.groups is None or self.groups <= self.layers,
            f"dims.groups={self.groups} is more than dims.layers={self.layers}",
        )
        require(
            (self.experts or 0) >= (self.active or 0) and (self.experts is None) == (self.active is None),
            f"dims.active={self.active} of dims.experts={self.experts} experts cannot be taken; give both, at most all",
        )
        require(self.inner == 1 or self.groups is not None, f"dims.inner={self.inner} needs dims.groups")
        require(
            self.heads % self.kv == 0, f"dims.heads={self.heads} is not a multiple of dims.kv_heads={self.kv_heads}"
        )
        require(
            self.decoder_heads is None or self.head_dim is not None or self.d_model % self.decoder_heads == 0,
            f"dims.d_model={self.d_model} is not a multiple of dims.decoder_heads={self.decoder_heads}; change one, or "
            "set dims.head_dim",
        )
        require(
            (self.decoder_heads or self.heads) % (self.kv_heads or 1) == 0,
            f"dims.decoder_heads={self.decoder_heads} is not a multiple of dims.kv_heads={self.kv_heads}",
        )
        # what a rule gives anyway is left out, so that equal widths are equal values
        for name, rule in (
            ("kv_heads", self.heads),
            ("head_dim", self.d_model // self.heads),
            ("decoder_layers", self.layers),
            ("decoder_heads", self.heads),
            ("decoder_d_ff", self.d_ff),
        ):
            if getattr(self, name) == rule and (name != "head_dim" or self.d_model % self.heads == 0):
                object.__setattr__(self, name, None)

    @property
    def kv(self) -> int:
        """Key and value heads."""
        return self.kv_heads if self.kv_heads is not None else self.heads

    @property
    def width(self) -> int:
        """Width of one head."""
        return self.head_dim if self.head_dim is not None else self.d_model // self.heads

    @property
    def embed_width(self) -> int:
        """Width of the embeddings."""
        return self.embed if self.embed is not None else self.d_model

    @property
    def depth(self) -> int:
        """Layers of the decoder of an encoder-decoder."""
        return self.decoder_layers if self.decoder_layers is not None else self.layers

    def uneven(self, n: int) -> str | None:
        """Why a network of these widths cannot be cut into `n` equal slices of whole heads; None if it can."""
        counts = {"heads": self.heads, "kv_heads": self.kv, "d_ff": self.d_ff}
        counts |= {"decoder_heads": self.decoder.heads, "decoder_d_ff": self.decoder.d_ff}
        if (name := next((name for name, count in counts.items() if count % n), None)) is not None:
            return f"tp={n} does not divide dims.{name}={counts[name]}"
        if self.decoder.width != self.width:
            return f"tp does not split a decoder whose heads have another width than the encoder's {self.width}"
        return None

    @property
    def decoder(self) -> Dims:
        """The widths of the decoder of an encoder-decoder, as those of a stack."""
        if self.decoder_heads is None and self.decoder_d_ff is None:
            return self
        heads, d_ff = self.decoder_heads or self.heads, self.decoder_d_ff or self.d_ff
        return replace(self, heads=heads, d_ff=d_ff, decoder_heads=None, decoder_d_ff=None)


def gated_width(d_model: int, multiple: int = 256, factor: float = 1.0) -> int:
    """LLaMA's rule for the inner width of a gated MLP: int(8d/3), times `factor`, rounded up to `multiple`."""
    return multiple * math.ceil(int(factor * int(8 * d_model / 3)) / multiple)
