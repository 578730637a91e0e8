"""How a model knows the order of tokens."""

from __future__ import annotations

from dataclasses import dataclass

from stemma.nn.parts.custom import CustomPosition
from stemma.nn.parts.scalings import Scaling
from stemma.spec import Spec, at_least, interval, not_negative, positive, quiet, require


@dataclass(frozen=True)
class Sinusoidal(Spec):
    """Fixed sines and cosines added to the embeddings (Vaswani et al. 2017, section 3.5)."""


@dataclass(frozen=True)
class Learned(Spec):
    """A learned table of `context` rows, added to the embeddings.

    With `padding=p`, padding tokens (of id p) have row p and do not count; the others have rows p+1, p+2, ... in order
    (fairseq, RoBERTa), and the table has `context + p + 1` rows. With `offset=o` the first `o` rows are unused (2 in
    BART).
    """

    padding: int | None = not_negative(None)
    offset: int = not_negative(0)

    def check(self) -> None:
        require(not self.offset or self.padding is None, "position.offset and position.padding exclude each other")


@dataclass(frozen=True)
class Rotary(Spec):
    """Rotation of queries and keys by position (Su et al. 2021, arXiv:2104.09864).

    Pairs are the halves (i, i + D/2), or neighbours (2i, 2i + 1) if `interleaved`. `share`: the part of a head's width,
    from its beginning, that turns.
    """

    base: float = positive(10000.0)
    scaling: Scaling | None = None
    share: float = interval("(0, 1]", 1.0)
    interleaved: bool = False


@dataclass(frozen=True)
class Buckets(Spec):
    """T5's relative bias: one scalar a head and bucket of distance, one table a stack (Raffel et al. 2020, 2.1).

    Half of the buckets are exact, the rest logarithmic up to `distance`; where both directions can be seen they
    are split between the two signs.
    """

    buckets: int = 32
    distance: int = 128

    def check(self) -> None:
        require(self.buckets >= 4, f"buckets must be at least 4, not {self.buckets}")
        require(
            self.distance > self.buckets // 2,
            f"distance must exceed half the buckets, not {self.distance} for {self.buckets} buckets",
        )


@dataclass(frozen=True)
class ALiBi(Spec):
    """Each head's scores less its slope times the distance, nothing learned (Press et al. 2021, arXiv:2108.12409).

    Head h of H has the slope `2 ** (-max_bias * h / H)`, h from 1; where H is no power of two, that of the heads of the
    next lower one, then every other of the next higher one, as the authors, BLOOM and MPT take them."""

    max_bias: float = positive(8.0)


@dataclass(frozen=True)
class Disentangled(Spec):
    """A table of distances that takes part in the scores (He et al. 2020, arXiv:2006.03654, section 3.1): content to
    position (`c2p`: q times the key of a distance), position to content (`p2c`: k times its query).

    Distances up to `distance` on either side have rows of their own; with `buckets` there are `buckets` rows a side,
    the nearer half exact, the rest logarithmic up to `distance` (DeBERTa v2). `shared`: keys and queries of distances
    come from the content's projections, not from their own; `norm`: the table is normalised first; `absolute`: a
    learned table of `dims.context` rows is added to the embeddings as well (`position_biased_input`).
    """

    distance: int = at_least(1, 512)
    buckets: int | None = None
    c2p: bool = True
    p2c: bool = True
    shared: bool = False
    norm: bool = False
    absolute: bool = quiet(False)

    def check(self) -> None:
        require(self.c2p or self.p2c, "position.c2p and position.p2c are both false: no position would be in use")
        require(
            self.buckets is None or 2 <= self.buckets < 2 * self.distance - 2,
            f"position.buckets={self.buckets} must be at least 2 and less than {2 * self.distance - 2}, which follows "
            f"from position.distance={self.distance}",
        )


@dataclass(frozen=True)
class RelativeSinusoidal(Spec):
    """Sines and cosines of the distance between two tokens, as keys of each layer's own (Dai et al. 2019, section 3.3);
    beside them two vectors a head that say whether both stand in one segment (Yang et al. 2019, section 2.5)."""


@dataclass(frozen=True)
class BlankLearned(Spec):
    """Two learned tables added to the embeddings, each of `context + 1` rows: of a token's place in the text, and of
    its place in the blank that it fills (Du et al. 2021, arXiv:2103.10360, section 2.2.1)."""


@dataclass(frozen=True)
class BlankRotary(Spec):
    """Rotation of one half of each head by the place in the text and of the other by the place in the blank; pairs are
    the halves of these halves (ChatGLM-6B)."""

    base: float = positive(10000.0)


@dataclass(frozen=True)
class LayerBuckets(Buckets):
    """T5's relative bias with a table of its own in every layer (umT5, Chung et al. 2023, arXiv:2304.09151)."""


Position = (
    Sinusoidal
    | Learned
    | Rotary
    | Buckets
    | LayerBuckets
    | ALiBi
    | Disentangled
    | RelativeSinusoidal
    | BlankLearned
    | BlankRotary
    | CustomPosition
)
