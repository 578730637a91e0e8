"""How rotary positions are stretched past the context that a model was trained on."""

from __future__ import annotations

from dataclasses import dataclass

from stemma.spec import Spec, at_least, not_negative, positive, require


@dataclass(frozen=True)
class LinearScaling(Spec):
    """Rotary angles divided by `factor` (position interpolation, Chen et al. 2023, arXiv:2306.15595)."""

    factor: float = positive(1.0)


@dataclass(frozen=True)
class Llama3Scaling(Spec):
    """Llama 3.1's rotary scaling: long waves divided by `factor`, short ones kept, a ramp between."""

    factor: float = positive(8.0)
    low: float = 1.0
    high: float = 4.0
    context: int = 8192

    def check(self) -> None:
        require(self.high > self.low, f"rotary scaling needs high > low, not {self.high} and {self.low}")


@dataclass(frozen=True)
class NTKScaling(Spec):
    """The base times `factor**(D / (D - 2))`: the longest wave slowed by `factor`, the shortest kept (bloc97 2023)."""

    factor: float = positive(2.0)


@dataclass(frozen=True)
class DynamicScaling(Spec):
    """NTK scaling by the length n of the text, where n exceeds `dims.context` = c: by `factor n / c - factor + 1`.

    The scale of every position depends on n, so keys cannot be cached past the window.
    """

    factor: float = positive(2.0)


@dataclass(frozen=True)
class YarnScaling(Spec):
    """YaRN (Peng et al. 2023, arXiv:2309.00071): waves of more than `fast` turns within the original `context` are
    kept, those of fewer than `slow` divided by `factor`, a ramp over the pairs between, whose ends are whole pairs if
    `truncate`. Queries and keys are multiplied by `attention`; left out, it is 0.1 ln(factor) + 1, or, with `mscale`
    and `mscale_all` (DeepSeek), the quotient of two such terms."""

    factor: float = positive(8.0)
    context: int = at_least(1, 4096)
    fast: float = 32.0
    slow: float = 1.0
    attention: float | None = None
    mscale: float | None = None
    mscale_all: float | None = None
    truncate: bool = True

    def check(self) -> None:
        require(self.fast > self.slow > 0, f"YaRN needs fast > slow > 0, not {self.fast} and {self.slow}")


@dataclass(frozen=True)
class TruncatedScaling(Spec):
    """Giraffe's truncated basis (Pal et al. 2023, arXiv:2308.10882, section 3): frequencies from 2 pi / `context` up
    are kept, those down to an eighth of that become 2 pi / (16 `context`), the rest 0."""

    context: int = at_least(1, 2048)


@dataclass(frozen=True)
class PowerScaling(Spec):
    """Giraffe's power basis (Pal et al. 2023, section 3): frequency i of n times `(1 - i / n) ** power`."""

    power: float = positive(0.5)


@dataclass(frozen=True)
class RandomScaling(Spec):
    """Giraffe's randomised positions (Pal et al. 2023, section 3): in training a row's positions are running sums of
    steps from U(0, 2), shrunk where they exceed its length; in use they are 0, 1, ... Angles are divided by
    `factor`."""

    factor: float = positive(1.0)


@dataclass(frozen=True)
class XPosScaling(Spec):
    """xPos (Sun et al. 2022, arXiv:2212.10554) as Giraffe took it: pair i of a query at m is multiplied by
    `z_i ** (m / base)`, of a key at n by `z_i ** (-n / base)`, with `z_i = (2 i + 0.4 D) / (1.4 D)`. Positions count
    from the middle of `dims.context`, and scores are fp32. In training the base falls from `first` by `fall` a step.
    `neighbours`: neighbours of a head are paired whatever the order of the weights, as the released code did to weights
    whose pairs are halves, a fault that its runs had."""

    base: float = positive(128.0)
    first: float = positive(8192.0)
    fall: float = not_negative(8.0)
    neighbours: bool = False

    def check(self) -> None:
        require(self.first >= self.base, f"xPos's base falls from first={self.first} to base={self.base}, not upwards")

    def at(self, step: float, steps: float) -> float:
        """The base after `step` of `steps` of training; a run too short for `fall` has a steeper one."""
        fall = max(self.fall, (self.first - self.base) / max(steps, 1))
        return max(self.base, self.first - fall * step)


Scaling = (
    LinearScaling
    | NTKScaling
    | DynamicScaling
    | YarnScaling
    | Llama3Scaling
    | TruncatedScaling
    | PowerScaling
    | RandomScaling
    | XPosScaling
)
