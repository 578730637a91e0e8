"""The vocabulary in which an architecture is declared: roles (which norm, which position, which mask) and sizes.

Everything here is a frozen value and imports no torch; the modules beside this file build what these values say.
`Arch` names roles and holds no widths; `Dims` holds the widths. A component is built from both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from stemma.spec import Spec, require

Structure = Literal["encoder", "decoder", "encoder-decoder"]
# gelu_tanh_fused: the tanh form by a kernel that rounds otherwise (Gemma)
Activation = Literal["gelu", "gelu_tanh", "gelu_tanh_fused", "relu", "silu"]


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
class HeadNorm(Spec):
    """Layer normalisation of queries or keys, with gains of its own for every head and no bias (Command R+)."""

    eps: float = 1e-5

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
class NTKScaling(Spec):
    """The base times `factor**(D / (D - 2))`: the longest wave slowed by `factor`, the shortest kept (bloc97 2023)."""

    factor: float = 2.0

    def __post_init__(self) -> None:
        require(self.factor > 0, f"rotary scaling factor must be positive, not {self.factor}")


@dataclass(frozen=True)
class DynamicScaling(Spec):
    """NTK scaling by the length n of the text, where that exceeds `dims.context` = c: by `factor n / c - factor + 1`.

    Every position turns by the n of the whole text, so a token more moves all that was read: nothing of it can be kept.
    """

    factor: float = 2.0

    def __post_init__(self) -> None:
        require(self.factor > 0, f"rotary scaling factor must be positive, not {self.factor}")


@dataclass(frozen=True)
class YarnScaling(Spec):
    """YaRN (Peng et al. 2023, arXiv:2309.00071): waves of more than `fast` turns within the original `context` are
    kept, those of fewer than `slow` divided by `factor`, a ramp over the pairs between, whose ends are whole pairs if
    `truncate`. Queries and keys are multiplied by `attention`; left out, it is 0.1 ln(factor) + 1, or, with `mscale`
    and `mscale_all` (DeepSeek), the quotient of two such terms."""

    factor: float = 8.0
    context: int = 4096
    fast: float = 32.0
    slow: float = 1.0
    attention: float | None = None
    mscale: float | None = None
    mscale_all: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        require(self.factor > 0, f"rotary scaling factor must be positive, not {self.factor}")
        require(self.context >= 1, f"the original context of YaRN must be at least 1, not {self.context}")
        require(self.fast > self.slow > 0, f"YaRN needs fast > slow > 0, not {self.fast} and {self.slow}")


@dataclass(frozen=True)
class TruncatedScaling(Spec):
    """Giraffe's truncated basis (Pal et al. 2023, arXiv:2308.10882, section 3): frequencies from 2 pi / `context` up
    are kept, those down to an eighth of that become 2 pi / (16 `context`), the rest 0."""

    context: int = 2048

    def __post_init__(self) -> None:
        require(self.context >= 1, f"the context of a truncated basis must be at least 1, not {self.context}")


@dataclass(frozen=True)
class PowerScaling(Spec):
    """Giraffe's power basis (Pal et al. 2023, section 3): frequency i of n times `(1 - i / n) ** power`."""

    power: float = 0.5

    def __post_init__(self) -> None:
        require(self.power > 0, f"the power of a rotary basis must be positive, not {self.power}")


Scaling = LinearScaling | NTKScaling | DynamicScaling | YarnScaling | Llama3Scaling | TruncatedScaling | PowerScaling


@dataclass(frozen=True)
class Rotary(Spec):
    """Rotation of queries and keys by position (Su et al. 2021, arXiv:2104.09864).

    Pairs are the halves (i, i + D/2), or neighbours (2i, 2i + 1) if `interleaved`. `share`: the part of a head's width,
    from its beginning, that turns.
    """

    base: float = 10000.0
    scaling: Scaling | None = None
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
class Disentangled(Spec):
    """A table of distances that meets the contents in the scores (He et al. 2020, arXiv:2006.03654, section 3.1):
    content to position (`c2p`: q times the key of a distance), position to content (`p2c`: k times its query).

    Distances up to `distance` to either side have a row of their own; with `buckets` there are so many rows a side, the
    nearer half of them exact, the rest logarithmic up to `distance` (DeBERTa v2). `shared`: the content's own maps make
    the keys and queries of distances, instead of maps apart; `norm`: the table is normalised first.
    """

    distance: int = 512
    buckets: int | None = None
    c2p: bool = True
    p2c: bool = True
    shared: bool = False
    norm: bool = False

    def __post_init__(self) -> None:
        require(self.distance >= 1, f"position.distance must be at least 1, not {self.distance}")
        require(self.c2p or self.p2c, "position.c2p and position.p2c are both false: no position would be in use")
        require(
            self.buckets is None or 4 <= self.buckets < 2 * self.distance - 2,
            f"position.buckets={self.buckets} must be at least 4 and less than {2 * self.distance - 2}, which follows "
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

    base: float = 10000.0

    def __post_init__(self) -> None:
        require(self.base > 0, f"rotary base must be positive, not {self.base}")


@dataclass(frozen=True)
class LayerBuckets(Buckets):
    """T5's relative bias with a table of its own in every layer (umT5, Chung et al. 2023, arXiv:2304.09151)."""


Position = (
    Sinusoidal
    | Learned
    | Rotary
    | Buckets
    | LayerBuckets
    | Disentangled
    | RelativeSinusoidal
    | BlankLearned
    | BlankRotary
)
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


@dataclass(frozen=True)
class Reverse(Spec):
    """A token sees itself and what stands after it."""


@dataclass(frozen=True)
class Open(Spec):
    """Each batch chooses: `full`, `causal`, `reverse` or `prefix` (Dong et al. 2019, section 2.3). The fields are the
    segments of texts under the last three: `source` is the prefix, `target` what follows it."""

    causal: int = 2
    reverse: int = 3
    source: int = 4
    target: int = 5

    @property
    def segments(self) -> int:
        """Rows of a segment table that holds all of them (two are of the pairs that are read whole)."""
        return max(1, self.causal, self.reverse, self.source, self.target) + 1

    def __post_init__(self) -> None:
        for name in ("causal", "reverse", "source", "target"):
            require(getattr(self, name) >= 0, f"mask.{name} must not be negative, not {getattr(self, name)}")


@dataclass(frozen=True)
class Recall(Spec):
    """Causal, and the whole memory of earlier windows is seen beside it (see `Memory`)."""


@dataclass(frozen=True)
class Memory(Spec):
    """A text of more than `last` tokens is read in windows of `dims.context`, each causal in itself, then its `last`
    ones (Tworkowski et al. 2023, arXiv:2307.03170, and its published inference code). The memory `layers` keep keys and
    values of every window, stored as `dtype`, and see all that they have kept, as if it stood at position 0."""

    layers: tuple[int, ...] = (6, 12, 18)
    last: int = 1024
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"

    def __post_init__(self) -> None:
        require(bool(self.layers), "a mask with memory needs at least one layer that has it")
        require(all(n >= 0 for n in self.layers), f"memory layers are numbers from 0, not {self.layers}")
        require(self.last >= 1, f"at least 1 token is read after the memory, not {self.last}")


Mask = Full | Causal | Sliding | Prefix | Cycle | Memory | Open
LayerMask = Full | Causal | Sliding | Prefix | Recall | Reverse | Open


# ---------------------------------------------------------------- blocks


@dataclass(frozen=True)
class Attention(Spec):
    """Multi-head attention. `bias`: of q, k and v, of which k may go without (`key_bias`: DeBERTa); `out_bias`: of o;
    `scaled`: scores divided by sqrt(head width), or by sqrt(`scale_width`) where that is another; `qk_norm`: of each
    head's queries and keys, before they turn (Qwen 3); `softcap=c`: scores become c tanh(score / c) (Gemma 2)."""

    bias: bool = True
    out_bias: bool = True
    key_bias: bool = True
    scaled: bool = True
    scale_width: float | None = None
    qk_norm: LayerNorm | RMSNorm | HeadNorm | None = None
    softcap: float | None = None

    def __post_init__(self) -> None:
        for name in ("scale_width", "softcap"):
            value = getattr(self, name)
            require(value is None or value > 0, f"attention.{name} must be positive, not {value}")
        require(self.bias or self.key_bias, "attention.key_bias=false needs attention.bias=true: k has none anyway")
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


@dataclass(frozen=True)
class Convolution(Spec):
    """Beside the first block, over its input: `norm(block(x) + act(conv(x)))`, each token with its neighbours, `kernel`
    in all (DeBERTa v2)."""

    kernel: int = 3
    act: Activation = "gelu"

    def __post_init__(self) -> None:
        odd = self.kernel >= 1 and self.kernel % 2 == 1
        require(odd, f"convolution.kernel must be odd, so that it has a middle, not {self.kernel}")


@dataclass(frozen=True)
class Experts(Spec):
    """`dims.experts` gated MLPs without biases, of which each token takes the `dims.active` that a linear router scores
    highest, weighted by the softmax of their scores (Jiang et al. 2024, arXiv:2401.04088, section 2.1)."""

    act: Activation = "silu"


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
class EMDHead(Spec):
    """The enhanced mask decoder (He et al. 2020, arXiv:2006.03654, section 3.2): the last block is run twice more over
    its own input, with queries that know absolute positions; then dense, activation, norm and the token embeddings."""

    tied: ClassVar[bool] = True
    act: Activation = "gelu"


@dataclass(frozen=True)
class Summary(Spec):
    """One vector of a text: the hidden state of its `first` token, of its `last` one that is not padding, of the last
    that is its `end` token, or of the `final` place of the row, padding or not (so texts must be padded on the left);
    then, unless `act` is None, a dense layer of its own and that activation. `dropout`: before that layer; left out,
    the rate of the task head that it stands in (a pooler has none)."""

    token: Literal["first", "last", "end", "final"] = "first"
    act: Literal["tanh", "gelu", "relu"] | None = "tanh"
    dropout: float | None = None

    def __post_init__(self) -> None:
        require(self.dropout is None or 0 <= self.dropout < 1, f"summary.dropout must be in [0, 1), not {self.dropout}")


@dataclass(frozen=True)
class Detector(Spec):
    """A logit a token that says whether it was replaced: dense, activation, linear (Clark et al. 2020, section 2)."""

    act: Activation = "gelu"


@dataclass(frozen=True)
class ContextDetector(Spec):
    """The same, of each token's state together with the first one's, their sum normalised before the dense layer (He et
    al. 2021, arXiv:2111.09543)."""

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
    """One score for each of several candidate texts, of which one is right (Devlin et al. 2018, 4.4). `through`: width
    of a linear layer between the vector of a text and its score (XLM)."""

    summary: Summary | None = None
    dropout: float = 0.0
    through: int | None = None

    def __post_init__(self) -> None:
        require(self.through is None or self.through >= 1, f"heads.task.through must be at least 1, not {self.through}")


Task = Classify | Tag | Answer | Choose


@dataclass(frozen=True)
class Heads(Spec):
    """What stands on the last hidden state. `pooler`: a vector of the text; `pair`: 2 classes of it; `detect`: which
    tokens were replaced; `task`: what it is tuned for."""

    lm: LMHead | MLMHead | EMDHead | None = None
    pooler: Summary | None = None
    pair: bool = False
    detect: Detector | ContextDetector | None = None
    task: Classify | Tag | Answer | Choose | None = None

    def __post_init__(self) -> None:
        pooled = isinstance(self.task, Classify | Choose) and self.task.summary is None
        require(self.pooler is not None or not self.pair, "a pair head reads the pooler: heads.pair needs heads.pooler")
        require(self.pooler is not None or not pooled, "this task reads the pooler: it needs heads.pooler or a summary")

    @property
    def tied(self) -> bool:
        """Whether the logits, if there are any, come from the token embeddings and not from a matrix beside them."""
        return self.lm is None or self.lm.tied


# ---------------------------------------------------------------- numbers that matter in training only


@dataclass(frozen=True)
class Normal(Spec):
    """Weights from N(0, std), biases 0, norms 1. `truncated`: at two deviations. `residual`: the matrices that write
    into the residual stream divided by sqrt(number of residual layers) (GPT-2). `positions`: of the position table,
    which may also begin as "sines" and cosines, side by side (XLM)."""

    std: float = 0.02
    truncated: bool = False
    residual: bool = False
    positions: float | Literal["sines"] | None = None

    def __post_init__(self) -> None:
        require(self.std > 0, f"init std must be positive, not {self.std}")


@dataclass(frozen=True)
class FanIn(Spec):
    """T5's: embeddings N(0, 1), each matrix by its fan-in, q also by its width (Mesh TensorFlow), times `factor`."""

    factor: float = 1.0

    def __post_init__(self) -> None:
        require(self.factor > 0, f"init factor must be positive, not {self.factor}")


@dataclass(frozen=True)
class Glorot(Spec):
    """Matrices uniform with the variance 2 / (inputs + outputs) (Glorot & Bengio 2010), embeddings from
    N(0, 1/sqrt(width)) (Vaswani et al. 2017 as released, tensor2tensor)."""


@dataclass(frozen=True)
class LeCun(Spec):
    """Matrices from N(0, 1/sqrt(their inputs)), embeddings from N(0, 1) (LeCun et al. 1998; PaLM, section 5)."""


@dataclass(frozen=True)
class Dropout(Spec):
    """Rates in training: `embed` after the embeddings, `residual` on each branch, `attention` on the weights,
    `inner` inside the MLP, `final` after the last norm, `pair` before the pair head (ALBERT)."""

    embed: float = 0.0
    residual: float = 0.0
    attention: float = 0.0
    inner: float = 0.0
    final: float = 0.0
    pair: float = 0.0

    def __post_init__(self) -> None:
        for name in ("embed", "residual", "attention", "inner", "final", "pair"):
            rate = getattr(self, name)
            require(0 <= rate < 1, f"dropout.{name} must be in [0, 1), not {rate}")


# ---------------------------------------------------------------- the whole


@dataclass(frozen=True)
class Streams(Spec):
    """Two streams of hidden states with one set of weights (Yang et al. 2019, section 2.3): content, which sees its own
    token, and queries, which see the others only; both see a memory of the segments read before (Dai et al. 2019, 3.2).
    `memory`: how many tokens it holds (None: all); `reuse`: of each segment only so many, from its beginning, go into
    it (None: all)."""

    memory: int | None = None
    reuse: int | None = None

    def __post_init__(self) -> None:
        for name in ("memory", "reuse"):
            n = getattr(self, name)
            require(n is None or n >= 1, f"arch.streams.{name} must be at least 1 token, not {n}")


@dataclass(frozen=True)
class Arch(Spec):
    """What a network is, without its widths. `mask` is the decoder's (an encoder is full, or open to the batch's
    choice); `embed_norm`: a norm after the summed embeddings; `embed_scale`: token embeddings times sqrt(d_model);
    `local`: positions of the layers with a sliding window, where they differ from the others' (Gemma 3);
    `convolution`: what stands beside an encoder's first block; `streams`: a second stream of queries and a memory of
    segments (XLNet)."""

    structure: Structure
    position: Position
    norm: Norm
    residual: Residual
    attention: Attention
    mask: Mask
    mlp: MLP | GatedMLP | Experts
    heads: Heads
    init: Normal | FanIn | Glorot | LeCun
    dropout: Dropout = Dropout()
    embed_norm: bool = False
    embed_scale: bool = False
    local: Rotary | None = None
    convolution: Convolution | None = None
    streams: Streams | None = None

    def __post_init__(self) -> None:
        for name, part in (("position", self.position), ("heads.lm", self.heads.lm), ("convolution", self.convolution)):
            sees_both = not isinstance(part, Disentangled | EMDHead | Convolution) or self.structure == "encoder"
            require(sees_both, f"arch.{name}={part} sees to both sides: it is for an encoder, not a {self.structure}")
        require(
            not isinstance(self.heads.lm, EMDHead) or isinstance(self.residual, PostNorm),
            f"an EMDHead runs the last block over its input, which needs arch.residual=PostNorm(), not {self.residual}",
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


@dataclass(frozen=True)
class Dims(Spec):
    """Widths and counts. `kv_heads` and `head_dim` left out mean `heads` and `d_model / heads`; `decoder_layers` left
    out means `layers`. `segments`: rows of the segment (token type) table, 0 for none. `context`: the longest text
    it is trained on, and the rows of a position table where there is one. `embed`: width of the embeddings, which a
    matrix then maps to d_model (left out: they have d_model, and there is no such matrix). `groups`: how many different
    sets of weights the layers share out among them, each of `inner` blocks in a row (left out: every layer its own).
    `languages`: rows of the language table, 0 for none. `experts` and `active`: MLPs of a layer with a mixture of them,
    and how many a token takes; `d_ff` is of one."""

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
    languages: int = 0
    experts: int | None = None
    active: int | None = None

    RULES: ClassVar = {"kv_heads": "kv", "head_dim": "width", "decoder_layers": "depth"}  # what stands in if left out

    def __post_init__(self) -> None:
        for name in (
            "d_model", "layers", "heads", "d_ff", "vocab", "context", "kv_heads", "head_dim", "embed", "groups",
            "inner", "experts", "active",
        ):  # fmt: skip
            n = getattr(self, name)
            require(n is None or n >= 1, f"dims.{name} must be at least 1, not {n}")
        for name in ("segments", "languages"):
            require(getattr(self, name) >= 0, f"dims.{name} must not be negative, not {getattr(self, name)}")
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
        require(
            (self.experts or 0) >= (self.active or 0) and (self.experts is None) == (self.active is None),
            f"dims.active={self.active} of dims.experts={self.experts} experts cannot be taken; give both, at most all",
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
