"""How a model was pretrained: optimisers, schedules, and the published numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from stemma.declare.ramps import Ramp
from stemma.spec import Bound, Spec, at_least, interval, not_negative, positive, quiet, require


@dataclass(frozen=True)
class AdamW(Spec):
    """Adam with decoupled weight decay, which spares biases and norms (Loshchilov & Hutter 2019, arXiv:1711.05101).
    `corrected`: its averages are divided by what they lack of one at first, which BERT's released code leaves out."""

    beta1: float = interval("[0, 1)", 0.9)
    beta2: float = interval("[0, 1)", 0.999)
    eps: float = positive(1e-8)
    weight_decay: float = not_negative(0.01)
    corrected: bool = True


@dataclass(frozen=True)
class Adafactor(Spec):
    """Factored second moments and steps relative to the size of a matrix (Shazeer & Stern 2018, arXiv:1804.04235).
    `smallest`: the size of both dimensions from which a matrix is factored (None: never); `momentum`: of the steps; a
    step takes `weight_decay * rate**power` of a weight."""

    decay: float = positive(0.8)
    clip: float = positive(1.0)
    weight_decay: float = not_negative(0.0)
    smallest: int | None = at_least(1, 128)
    momentum: float = interval("[0, 1)", 0.0)
    power: float = positive(1.0)


@dataclass(frozen=True)
class LAMB(Spec):
    """Adam whose step for each matrix is scaled to the size of its weights (You et al. 2019, arXiv:1904.00962).
    `corrected` as in `AdamW`; ALBERT's released code leaves it out."""

    beta1: float = interval("[0, 1)", 0.9)
    beta2: float = interval("[0, 1)", 0.999)
    eps: float = positive(1e-6)
    weight_decay: float = not_negative(0.01)
    corrected: bool = True


@dataclass(frozen=True)
class Muon(Spec):
    """Hidden matrices by the orthogonal part of their momentum, in `iterations` of Newton and Schulz (Jordan et al.
    2024, kellerjordan.github.io/posts/muon), scaled so that AdamW's rate suits them (Liu et al. 2025,
    arXiv:2502.16982); embeddings, heads and vectors by AdamW with the other fields."""

    momentum: float = interval("[0, 1)", 0.95)
    iterations: int = at_least(1, 5)
    beta1: float = interval("[0, 1)", 0.9)
    beta2: float = interval("[0, 1)", 0.95)
    eps: float = positive(1e-8)
    weight_decay: float = not_negative(0.1)


Optimizer = AdamW | Adafactor | LAMB | Muon


@dataclass(frozen=True)
class Schedule(Spec):
    """The learning rate over time: `warmup` steps up, then `shape` down to `floor` times the peak.

    `linear` and `cosine` reach the floor at the share `until` of the steps and stay there. `inverse` falls by
    1/sqrt(step) (Vaswani et al. 2017, section 5.3). `rsqrt` is T5's: constant for `warmup` steps, then by 1/sqrt(step),
    with no rise at the start. `trapezoid` stays at the peak up to the share `hold` of the steps, then falls in a line
    (Hu et al. 2024, arXiv:2404.06395, section 4).
    """

    shape: Literal["linear", "cosine", "inverse", "rsqrt", "constant", "trapezoid"] = "linear"
    warmup: int = not_negative(0)
    floor: float = interval("[0, 1]", 0.0)
    until: float = interval("(0, 1]", 1.0)
    hold: float = interval("[0, 1)", 0.9)


@dataclass(frozen=True)
class Sampling(Spec):
    """How a text of several languages is drawn from: a language with n documents in proportion to n to the power of
    `alpha` (1: as they are; 0: each as often as the others; T5's temperature is 1 / alpha), until its text has been
    read `epochs` times (0: no limit). `unit`: what is of one language throughout, a document, a row of the batch, or
    all rows of it. `weights`: what those of a mixture of texts (`a@0.7,b@0.3`) are shares of, documents or
    tokens; rows of one language count themselves, and are all about as long."""

    alpha: float = interval("[0, 1]", 1.0)
    epochs: float = not_negative(0.0)
    unit: Literal["document", "row", "batch"] = "document"
    weights: Literal["documents", "tokens"] = quiet("documents")


@dataclass(frozen=True)
class Rate(Spec):
    """Parameters whose name matches a pattern of `where` learn at `times` the rate (`*.up` of adapters at 16 times:
    LoRA+, Hayou et al. 2024, arXiv:2402.12354)."""

    where: tuple[str, ...]
    times: float = positive(1.0)

    def check(self) -> None:
        require(bool(self.where), "Rate.where must hold a pattern of parameter names such as '*.bias'")


@dataclass(frozen=True)
class LayerDecay(Spec):
    """Lower layers learn more slowly: block i of L at `decay ** (L + 1 - i)` of the rate, counted from 0, embeddings at
    `decay ** (L + 2)`, all else at the whole (Howard & Ruder 2018, arXiv:1801.06146, section 3.2; counted as in the
    released code of ELECTRA)."""

    decay: float = interval("(0, 1]", 0.9)


@dataclass(frozen=True)
class Recipe(Spec):
    """How it was pretrained, as published; None is unpublished. `lr`: peak; `batch`: tokens a step; `context`: tokens a
    row; `mixed`: rows may hold several documents that see each other (the published habit of most); `z_loss`: what the
    square of the logarithm of the softmax's denominator weighs in the loss (Chowdhery et al. 2022, section 5);
    `sampling`: how often each language of a text is drawn; `ramp`: how the batch grew to `batch` (None: it did not);
    `rates`: what learns faster or more slowly than `lr`, each value times those before it; `neftune`: noise on the
    embeddings in training, uniform within `neftune / sqrt(tokens of a row * width)` (Jain et al. 2023,
    arXiv:2310.05914)."""

    PLACE: ClassVar[str] = "recipe"

    optimizer: Optimizer = AdamW()
    lr: float | None = positive(None)
    schedule: Schedule = Schedule()
    batch: int | None = positive(None)
    steps: int | None = positive(None)
    clip: float | None = positive(None)
    mixed: bool = True
    data: str = ""
    z_loss: float = not_negative(0.0)
    sampling: Sampling = Sampling()
    ramp: Ramp | None = None
    rates: tuple[Rate | LayerDecay, ...] = quiet(())
    neftune: float = quiet(0.0, Bound(0.0, said="not be negative"))

    def check(self) -> None:
        require(
            self.ramp is None or self.sampling.unit != "batch",
            "recipe.ramp makes batches of several sizes, and recipe.sampling.unit=batch counts on one; set it to row",
        )
