"""How a model was pretrained: optimisers, schedules, and the published numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stemma.declare.ramps import Ramp
from stemma.spec import Spec, require


def _check_adam(spec: AdamW | LAMB | Muon) -> None:
    """Raise UsageError for averages, eps or a weight decay that cannot be."""
    for name in ("beta1", "beta2"):
        require(0 <= getattr(spec, name) < 1, f"optimizer.{name} must lie in [0, 1), not {getattr(spec, name)}")
    require(spec.eps > 0, f"optimizer.eps must be positive, not {spec.eps}")
    require(spec.weight_decay >= 0, f"optimizer.weight_decay must not be negative, not {spec.weight_decay}")


@dataclass(frozen=True)
class AdamW(Spec):
    """Adam with decoupled weight decay, which spares biases and norms (Loshchilov & Hutter 2019, arXiv:1711.05101).
    `corrected`: its averages are divided by what they lack of one at first, which BERT's released code leaves out."""

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    corrected: bool = True

    def __post_init__(self) -> None:
        _check_adam(self)


@dataclass(frozen=True)
class Adafactor(Spec):
    """Factored second moments and steps relative to the size of a matrix (Shazeer & Stern 2018, arXiv:1804.04235).
    `smallest`: the size of both dimensions from which a matrix is factored (None: never); `momentum`: of the steps; a
    step takes `weight_decay * rate**power` of a weight."""

    decay: float = 0.8
    clip: float = 1.0
    weight_decay: float = 0.0
    smallest: int | None = 128
    momentum: float = 0.0
    power: float = 1.0

    def __post_init__(self) -> None:
        require(self.decay > 0, f"optimizer.decay must be positive, not {self.decay}")
        require(self.clip > 0, f"optimizer.clip must be positive, not {self.clip}")
        require(self.weight_decay >= 0, f"optimizer.weight_decay must not be negative, not {self.weight_decay}")
        require(
            self.smallest is None or self.smallest >= 1, f"optimizer.smallest must be at least 1, not {self.smallest}"
        )
        require(0 <= self.momentum < 1, f"optimizer.momentum must lie in [0, 1), not {self.momentum}")
        require(self.power > 0, f"optimizer.power must be positive, not {self.power}")


@dataclass(frozen=True)
class LAMB(Spec):
    """Adam whose step for each matrix is scaled to the size of its weights (You et al. 2019, arXiv:1904.00962).
    `corrected` as in `AdamW`; ALBERT's released code leaves it out."""

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-6
    weight_decay: float = 0.01
    corrected: bool = True

    def __post_init__(self) -> None:
        _check_adam(self)


@dataclass(frozen=True)
class Muon(Spec):
    """Hidden matrices by the orthogonal part of their momentum, in `iterations` of Newton and Schulz (Jordan et al.
    2024, kellerjordan.github.io/posts/muon), scaled so that AdamW's rate suits them (Liu et al. 2025,
    arXiv:2502.16982); embeddings, heads and vectors by AdamW with the other fields."""

    momentum: float = 0.95
    iterations: int = 5
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1

    def __post_init__(self) -> None:
        _check_adam(self)
        require(0 <= self.momentum < 1, f"optimizer.momentum must lie in [0, 1), not {self.momentum}")
        require(self.iterations >= 1, f"optimizer.iterations must be at least 1, not {self.iterations}")


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
    warmup: int = 0
    floor: float = 0.0
    until: float = 1.0
    hold: float = 0.9

    def __post_init__(self) -> None:
        require(self.warmup >= 0, f"schedule.warmup must not be negative, not {self.warmup}")
        require(0 <= self.floor <= 1, f"schedule.floor must lie in [0, 1], not {self.floor}")
        require(0 < self.until <= 1, f"schedule.until must lie in (0, 1], not {self.until}")
        require(0 <= self.hold < 1, f"schedule.hold must lie in [0, 1), not {self.hold}")


@dataclass(frozen=True)
class Sampling(Spec):
    """How a text of several languages is drawn from: a language with n documents in proportion to n to the power of
    `alpha` (1: as they are; 0: each as often as the others; T5's temperature is 1 / alpha), until its text has been
    read `epochs` times (0: no limit). `unit`: what is of one language throughout, a document, a row of the batch, or
    all rows of it."""

    alpha: float = 1.0
    epochs: float = 0.0
    unit: Literal["document", "row", "batch"] = "document"

    def __post_init__(self) -> None:
        require(0 <= self.alpha <= 1, f"sampling.alpha must lie in [0, 1], not {self.alpha}")
        require(self.epochs >= 0, f"sampling.epochs must not be negative, not {self.epochs}")


@dataclass(frozen=True)
class Recipe(Spec):
    """How it was pretrained, as published; None is unpublished. `lr`: peak; `batch`: tokens a step; `context`: tokens a
    row; `mixed`: rows may hold several documents that see each other (the published habit of most); `z_loss`: what the
    square of the logarithm of the softmax's denominator weighs in the loss (Chowdhery et al. 2022, section 5);
    `sampling`: how often each language of a text is drawn; `ramp`: how the batch grew to `batch` (None: it did not)."""

    optimizer: Optimizer = AdamW()
    lr: float | None = None
    schedule: Schedule = Schedule()
    batch: int | None = None
    steps: int | None = None
    clip: float | None = None
    mixed: bool = True
    data: str = ""
    z_loss: float = 0.0
    sampling: Sampling = Sampling()
    ramp: Ramp | None = None

    def __post_init__(self) -> None:
        require(self.lr is None or self.lr > 0, f"the learning rate must be positive, not {self.lr}")
        require(self.batch is None or self.batch > 0, f"recipe.batch must be positive, not {self.batch}")
        require(self.steps is None or self.steps > 0, f"recipe.steps must be positive, not {self.steps}")
        require(self.z_loss >= 0, f"recipe.z_loss must not be negative, not {self.z_loss}")
        require(self.clip is None or self.clip > 0, f"recipe.clip must be positive, not {self.clip}")
        require(
            self.ramp is None or self.sampling.unit != "batch",
            "recipe.ramp makes batches of several sizes, and recipe.sampling.unit=batch counts on one; set it to row",
        )
