"""How a block writes into the residual stream. `f` is attention or the MLP, `x` the stream."""

from __future__ import annotations

from dataclasses import dataclass

from stemma.spec import Spec


@dataclass(frozen=True)
class PostNorm(Spec):
    """`x = norm(x + f(x))`, no norm after the last block (Vaswani et al. 2017)."""


@dataclass(frozen=True)
class PreNorm(Spec):
    """`x = x + f(norm(x))` and one more norm after the last block (GPT-2, section 2.3)."""


@dataclass(frozen=True)
class Parallel(Spec):
    """`x = x + attention(norm(x)) + mlp(norm(x))`, one norm for both, one more after the last block (PaLM, section
    2)."""


@dataclass(frozen=True)
class Sandwich(Spec):
    """`x = x + norm(f(norm(x)))` and one more norm after the last block (Gemma 2, section 2)."""


@dataclass(frozen=True)
class DeepNorm(Spec):
    """`x = norm(a x + f(x))` with a = sqrt(2 layers) (Wang et al. 2022, arXiv:2203.00555, as GLM-130B takes it)."""


Residual = PostNorm | PreNorm | Parallel | Sandwich | DeepNorm
