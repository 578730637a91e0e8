"""The vocabulary in which an architecture is declared: roles (which norm, which position, which mask) and sizes.

Everything here is a frozen value and imports no torch; the modules beside this file build what these values say.
`Arch` names roles and holds no widths; `Dims` holds the widths. A component is built from both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from stemma.spec import Spec, require

Structure = Literal["encoder", "decoder", "encoder-decoder"]
Activation = Literal["gelu", "gelu_tanh", "relu", "silu"]


# ---------------------------------------------------------------- norms and residuals


@dataclass(frozen=True)
class LayerNorm(Spec):
    """Layer normalisation (Ba et al. 2016, arXiv:1607.06450); without `bias` a gain alone is left (PaLM)."""

    eps: float = 1e-5
    bias: bool = True

    def __post_init__(self) -> None:
        require(self.eps > 0, f"norm eps must be positive, not {self.eps}")


@dataclass(frozen=True)
class RMSNorm(Spec):
    """Root-mean-square normalisation: a gain and neither mean nor bias (Zhang & Sennrich 2019, arXiv:1910.07467).

    `offset`: the gain is stored as its difference from 1, and all of it computed in fp32 (Gemma).
    """

    eps: float = 1e-6
    offset: bool = False

    def __post_init__(self) -> None:
        require(self.eps > 0, f"norm eps must be positive, not {self.eps}")


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


# ---------------------------------------------------------------- positions


@dataclass(frozen=True)
class Sinusoidal(Spec):
    """Fixed sines and cosines added to the embeddings (Vaswani et al. 2017, section 3.5)."""


@dataclass(frozen=True)
class Learned(Spec):
    """A learned table of `context` rows added to the embeddings.

    With `padding=p`, tokens equal to p stand outside the count: they get row p, and the others p+1, p+2, ...
    in order (the fairseq convention of RoBERTa); the table then has `context + p + 1` rows.
    With `offset=o` the first `o` rows are not in use (the two of BART).
    """

    padding: int | None = None
    offset: int = 0

    def __post_init__(self) -> None:
        require(self.offset >= 0, f"position.offset must not be negative, not {self.offset}")
        require(not self.offset or self.padding is None, "position.offset and position.padding exclude each other")
        require(self.padding is None or self.padding >= 0, f"position.padding must not be negative, not {self.padding}")


@dataclass(frozen=True)
class LinearScaling(Spec):
    """Rotary angles divided by `factor` (position interpolation, Chen et al. 2023, arXiv:2306.15595)."""

    factor: float = 1.0

    def __post_init__(self) -> None:
        require(self.factor > 0, f"rotary scaling factor must be positive, not {self.factor}")


@dataclass(frozen=True)
class Llama3Scaling(Spec):
    """Llama 3.1's rotary scaling: long waves divided by `factor`, short ones kept, a ramp between."""

    factor: float = 8.0
    low: float = 1.0
    high: float = 4.0
    context: int = 8192

    def __post_init__(self) -> None:
        require(self.factor > 0, f"rotary scaling factor must be positive, not {self.factor}")
        require(self.high > self.low, f"rotary scaling needs high > low, not {self.high} and {self.low}")


@dataclass(frozen=True)
class Rotary(Spec):
    """Rotation of queries and keys by position (Su et al. 2021, arXiv:2104.09864).

    Pairs are the halves (i, i + D/2), or neighbours (2i, 2i + 1) if `interleaved`. `share`: the part of a head's width,
    from its beginning, that turns.
    """

    base: float = 10000.0
    scaling: LinearScaling | Llama3Scaling | None = None
    share: float = 1.0
    interleaved: bool = False

    def __post_init__(self) -> None:
        require(self.base > 0, f"rotary base must be positive, not {self.base}")
        require(0 < self.share <= 1, f"rotary share must lie in (0, 1], not {self.share}")


@dataclass(frozen=True)
class Buckets(Spec):
    """T5's relative bias: one scalar a head and bucket of distance, one table a stack (Raffel et al. 2020, 2.1).

    Half of the buckets are exact, the rest logarithmic up to `distance`; where both directions can be seen they
    are split between the two signs.
    """

    buckets: int = 32
    distance: int = 128

    def __post_init__(self) -> None:
        require(self.buckets >= 4 and self.buckets % 4 == 0, f"buckets must be a multiple of 4, not {self.buckets}")
        require(
            self.distance > self.buckets // 2,
            f"distance must exceed half the buckets, not {self.distance} for {self.buckets} buckets",
        )


@dataclass(frozen=True)
class LayerBuckets(Buckets):
    """T5's relative bias with a table of its own in every layer (umT5, Chung et al. 2023, arXiv:2304.09151)."""


Position = Sinusoidal | Learned | Rotary | Buckets | LayerBuckets
Norm = LayerNorm | RMSNorm
Residual = PostNorm | PreNorm | Parallel | Sandwich | DeepNorm


# ---------------------------------------------------------------- masks


@dataclass(frozen=True)
class Full(Spec):
    """Every token sees every token."""


@dataclass(frozen=True)
class Causal(Spec):
    """A token sees itself and what stands before it."""


@dataclass(frozen=True)
class Sliding(Spec):
    """A token sees the last `window` tokens, itself included (Mistral 7B, section 2)."""

    window: int = 4096

    def __post_init__(self) -> None:
        require(self.window >= 1, f"an attention window holds at least 1 token, not {self.window}")


@dataclass(frozen=True)
class Prefix(Spec):
    """Causal, but a prefix (its length is data of the batch) sees itself whole (Raffel et al. 2020, 3.2; GLM)."""


@dataclass(frozen=True)
class Cycle(Spec):
    """Layer i takes the mask i, the next turn begins where they end (GPT-3: dense and locally banded in turn)."""

    masks: tuple[Causal | Sliding, ...] = (Causal(), Sliding(256))

    def __post_init__(self) -> None:
        require(len(set(self.masks)) > 1, f"a cycle of masks needs two different ones, not {len(set(self.masks))}")


Mask = Full | Causal | Sliding | Prefix | Cycle
LayerMask = Full | Causal | Sliding | Prefix


# ---------------------------------------------------------------- blocks


@dataclass(frozen=True)
class Attention(Spec):
    """Multi-head attention. `bias`: of q, k and v; `out_bias`: of o; `scaled`: scores divided by sqrt(head width), or
    by sqrt(`scale_width`) where that is another; `qk_norm`: of each head's queries and keys, before they turn (Qwen 3);
    `softcap=c`: scores become c tanh(score / c) (Gemma 2)."""

    bias: bool = True
    out_bias: bool = True
    scaled: bool = True
    scale_width: float | None = None
    qk_norm: LayerNorm | RMSNorm | None = None
    softcap: float | None = None

    def __post_init__(self) -> None:
        for name in ("scale_width", "softcap"):
            value = getattr(self, name)
            require(value is None or value > 0, f"attention.{name} must be positive, not {value}")
        require(self.scaled or self.scale_width is None, "attention.scale_width needs attention.scaled=true")


@dataclass(frozen=True)
class MLP(Spec):
    """`down(act(up(x)))`."""

    act: Activation = "gelu"
    bias: bool = True


@dataclass(frozen=True)
class GatedMLP(Spec):
    """`down(act(gate(x)) * up(x))` (Shazeer 2020, arXiv:2002.05202)."""

    act: Activation = "silu"
    bias: bool = False


# ---------------------------------------------------------------- heads


@dataclass(frozen=True)
class LMHead(Spec):
    """Logits from a matrix: the token embeddings if `tied`. `scaled`: the hidden state times d_model**-0.5 (T5, PaLM);
    `bias`: one a token; `factor`: of the logits (Cohere); `softcap=c`: logits become c tanh(logit / c) (Gemma 2)."""

    tied: bool = True
    scaled: bool = False
    bias: bool = False
    factor: float = 1.0
    softcap: float | None = None

    def __post_init__(self) -> None:
        require(self.factor != 0, "heads.lm.factor must not be 0")
        require(self.softcap is None or self.softcap > 0, f"heads.lm.softcap must be positive, not {self.softcap}")


@dataclass(frozen=True)
class MLMHead(Spec):
    """BERT's: dense, activation, norm, then the token embeddings (if `tied`) with a bias of their own."""

    act: Activation = "gelu"
    tied: bool = True


@dataclass(frozen=True)
class Summary(Spec):
    """One vector of a text: the hidden state of its `first` token, of its `last` one that is not padding, or of the
    last that is its `end` token; then, unless `act` is None, a dense layer of its own and that activation."""

    token: Literal["first", "last", "end"] = "first"
    act: Literal["tanh", "gelu", "relu"] | None = "tanh"


@dataclass(frozen=True)
class Detector(Spec):
    """A logit a token that says whether it was replaced: dense, activation, linear (Clark et al. 2020, section 2)."""

    act: Activation = "gelu"


@dataclass(frozen=True)
class Classify(Spec):
    """Scores of `labels` classes (or, for a regression, numbers) for each text. They are read from the body's pooler,
    or from a `summary` of the head's own. `problem` chooses the loss; `dropout` is before each layer of the head."""

    labels: int = 2
    summary: Summary | None = None
    bias: bool = True
    problem: Literal["single", "multi", "regression"] = "single"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        require(self.labels >= 1, f"heads.task.labels must be at least 1, not {self.labels}")


@dataclass(frozen=True)
class Tag(Spec):
    """Scores of `labels` classes for each token."""

    labels: int = 2
    bias: bool = True
    dropout: float = 0.0

    def __post_init__(self) -> None:
        require(self.labels >= 1, f"heads.task.labels must be at least 1, not {self.labels}")


@dataclass(frozen=True)
class Answer(Spec):
    """For each token a score that an answer starts there, and one that it ends there (Devlin et al. 2018, 4.2)."""


@dataclass(frozen=True)
class Choose(Spec):
    """One score for each of several candidate texts, of which one is right (Devlin et al. 2018, 4.4)."""

    summary: Summary | None = None
    dropout: float = 0.0


Task = Classify | Tag | Answer | Choose


@dataclass(frozen=True)
class Heads(Spec):
    """What stands on the last hidden state. `pooler`: a vector of the text; `pair`: 2 classes of it; `detect`: which
    tokens were replaced; `task`: what it is tuned for."""

    lm: LMHead | MLMHead | None = None
    pooler: Summary | None = None
    pair: bool = False
    detect: Detector | None = None
    task: Classify | Tag | Answer | Choose | None = None

    def __post_init__(self) -> None:
        pooled = isinstance(self.task, Classify | Choose) and self.task.summary is None
        require(self.pooler is not None or not self.pair, "a pair head reads the pooler: heads.pair needs heads.pooler")
        require(self.pooler is not None or not pooled, "this task reads the pooler: it needs heads.pooler or a summary")


# ---------------------------------------------------------------- numbers that matter in training only


@dataclass(frozen=True)
class Normal(Spec):
    """Weights from N(0, std), biases 0, norms 1. `truncated`: at two deviations. `residual`: the matrices that write
    into the residual stream divided by sqrt(number of residual layers) (GPT-2). `positions`: of the position table."""

    std: float = 0.02
    truncated: bool = False
    residual: bool = False
    positions: float | None = None

    def __post_init__(self) -> None:
        require(self.std > 0, f"init std must be positive, not {self.std}")


@dataclass(frozen=True)
class FanIn(Spec):
    """T5's: embeddings N(0, 1), each matrix by its fan-in, q also by its width (Mesh TensorFlow), times `factor`."""

    factor: float = 1.0

    def __post_init__(self) -> None:
        require(self.factor > 0, f"init factor must be positive, not {self.factor}")


@dataclass(frozen=True)
class Dropout(Spec):
    """Rates in training: `embed` after the embeddings, `residual` on each branch, `attention` on the weights,
    `inner` inside the MLP, `final` after the last norm."""

    embed: float = 0.0
    residual: float = 0.0
    attention: float = 0.0
    inner: float = 0.0
    final: float = 0.0

    def __post_init__(self) -> None:
        for name in ("embed", "residual", "attention", "inner", "final"):
            rate = getattr(self, name)
            require(0 <= rate < 1, f"dropout.{name} must be in [0, 1), not {rate}")


# ---------------------------------------------------------------- the whole


@dataclass(frozen=True)
class Arch(Spec):
    """What a network is, without its widths. `mask` is the decoder's (an encoder is always full);
    `embed_norm`: a norm after the summed embeddings; `embed_scale`: token embeddings times sqrt(d_model);
    `local`: positions of the layers with a sliding window, where they differ from the others' (Gemma 3)."""

    structure: Structure
    position: Position
    norm: Norm
    residual: Residual
    attention: Attention
    mask: Mask
    mlp: MLP | GatedMLP
    heads: Heads
    init: Normal | FanIn
    dropout: Dropout = Dropout()
    embed_norm: bool = False
    embed_scale: bool = False
    local: Rotary | None = None

    def __post_init__(self) -> None:
        require(
            self.local is None or (isinstance(self.position, Rotary) and isinstance(self.mask, Cycle)),
            "arch.local is for rotary positions and masks that change from layer to layer",
        )
        full = isinstance(self.mask, Full)
        require(
            full == (self.structure == "encoder"),
            f"an arch of structure {self.structure!r} cannot have mask {self.mask}; "
            "encoders are Full(), decoders Causal(), Sliding(...), Prefix() or Cycle(...)",
        )
        drawn = isinstance(self.init, Normal) and self.init.positions is not None
        require(
            not drawn or isinstance(self.position, Learned),
            f"init.positions is for a learned table, and this arch has {self.position}; set init.positions=none",
        )


@dataclass(frozen=True)
class Dims(Spec):
    """Widths and counts. `kv_heads` and `head_dim` left out mean `heads` and `d_model / heads`; `decoder_layers` left
    out means `layers`. `segments`: rows of the segment (token type) table, 0 for none. `context`: the longest text
    it is trained on, and the rows of a position table where there is one. `embed`: width of the embeddings, which a
    matrix then maps to d_model (left out: they have d_model, and there is no such matrix). `groups`: how many different
    sets of weights the layers share out among them, each of `inner` blocks in a row (left out: every layer its own)."""

    d_model: int
    layers: int
    heads: int
    d_ff: int
    vocab: int
    context: int
    kv_heads: int | None = None
    head_dim: int | None = None
    decoder_layers: int | None = None
    segments: int = 0
    embed: int | None = None
    groups: int | None = None
    inner: int = 1

    def __post_init__(self) -> None:
        for name in (
            "d_model",
            "layers",
            "heads",
            "d_ff",
            "vocab",
            "context",
            "kv_heads",
            "head_dim",
            "embed",
            "groups",
            "inner",
        ):
            n = getattr(self, name)
            require(n is None or n >= 1, f"dims.{name} must be at least 1, not {n}")
        require(self.segments >= 0, f"dims.segments must not be negative, not {self.segments}")
        require(self.decoder_layers is None or self.decoder_layers >= 1, "dims.decoder_layers must be at least 1")
        require(
            self.head_dim is not None or self.d_model % self.heads == 0,
            f"dims.d_model={self.d_model} is not a multiple of dims.heads={self.heads}; change one, "
            "or set dims.head_dim",
        )
        require(
            self.groups is None or self.groups <= self.layers,
            f"dims.groups={self.groups} is more than dims.layers={self.layers}",
        )
        require(self.inner == 1 or self.groups is not None, f"dims.inner={self.inner} needs dims.groups")
        require(
            self.heads % self.kv == 0, f"dims.heads={self.heads} is not a multiple of dims.kv_heads={self.kv_heads}"
        )
        # what a rule gives anyway is left out, so that equal widths are equal values
        for name, rule in (
            ("kv_heads", self.heads),
            ("head_dim", self.d_model // self.heads),
            ("decoder_layers", self.layers),
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


def gated_width(d_model: int, multiple: int = 256, factor: float = 1.0) -> int:
    """LLaMA's rule for the inner width of a gated MLP: int(8d/3), times `factor`, rounded up to `multiple`."""
    return multiple * math.ceil(int(factor * int(8 * d_model / 3)) / multiple)
