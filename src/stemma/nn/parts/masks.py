"""Which tokens a token sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stemma.spec import Spec, at_least, not_negative, require


@dataclass(frozen=True)
class Full(Spec):
    """Every token sees every token."""


@dataclass(frozen=True)
class Causal(Spec):
    """A token sees itself and what stands before it."""


@dataclass(frozen=True)
class Sliding(Spec):
    """A token sees the last `window` tokens, itself included (Mistral 7B, section 2)."""

    window: int = at_least(1, 4096, "token")


@dataclass(frozen=True)
class Prefix(Spec):
    """Causal, but a prefix (its length is data of the batch) sees itself whole (Raffel et al. 2020, 3.2; GLM)."""


@dataclass(frozen=True)
class Cycle(Spec):
    """Layer i has mask i modulo their number (GPT-3: dense and locally banded in turn)."""

    masks: tuple[Causal | Sliding, ...] = (Causal(), Sliding(256))

    def check(self) -> None:
        require(len(set(self.masks)) > 1, f"a cycle of masks needs two different ones, not {len(set(self.masks))}")


@dataclass(frozen=True)
class Reverse(Spec):
    """A token sees itself and what stands after it."""


@dataclass(frozen=True)
class Open(Spec):
    """Each batch chooses its mask: `full`, `causal`, `reverse` or `prefix` (Dong et al. 2019, section 2.3). The fields
    are the segment ids of texts under the last three; under `prefix`, `source` is the prefix and `target` what follows
    it."""

    causal: int = not_negative(2)
    reverse: int = not_negative(3)
    source: int = not_negative(4)
    target: int = not_negative(5)

    @property
    def segments(self) -> int:
        """Rows of a segment table that holds all of them (two are of the pairs that are read whole)."""
        return max(1, self.causal, self.reverse, self.source, self.target) + 1


@dataclass(frozen=True)
class Recall(Spec):
    """Causal, and the whole memory of earlier windows is seen beside it (see `Memory`)."""


@dataclass(frozen=True)
class Memory(Spec):
    """A text of more than `last` tokens is read in causal windows of `dims.context`, then its `last` tokens (Tworkowski
    et al. 2023, arXiv:2307.03170, and its published inference code). The memory `layers` keep keys and values of every
    window, stored as `dtype`, and attend to all of them as if at position 0."""

    layers: tuple[int, ...] = (6, 12, 18)
    last: int = at_least(1, 1024, "token")
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"

    def check(self) -> None:
        require(bool(self.layers), "a mask with memory needs at least one layer that has it")
        require(all(n >= 0 for n in self.layers), f"memory layers are numbers from 0, not {self.layers}")


Mask = Full | Causal | Sliding | Prefix | Cycle | Memory | Open
LayerMask = Full | Causal | Sliding | Prefix | Recall | Reverse | Open
