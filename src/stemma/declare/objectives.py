"""What models are trained to predict, as declared values: `stemma.objectives` makes them run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stemma.spec import Spec, require


def _check_masking(rate: float, masked: float, random: float) -> None:
    """Raise UsageError unless `rate` of the tokens can be chosen, and `masked` and `random` are shares of those."""
    require(0 < rate < 1, f"objective.rate must lie between 0 and 1, not {rate}")
    require(masked >= 0 and random >= 0, "objective.masked and objective.random must not be negative")
    require(masked + random <= 1, "objective.masked + objective.random must not exceed 1")


def beside(goal: Objective) -> dict[str, tuple[str, bool]]:
    """The networks that an objective needs beside the model: by role, the size, and whether it learns too."""
    match goal:
        case RTD(generator=name):
            return {"generator": (name, True)}
        case Distillation(teacher=name) | AttentionDistillation(teacher=name):
            return {"teacher": (name, False)}
    return {}


@dataclass(frozen=True)
class CLM(Spec):
    """Predict the next token."""


@dataclass(frozen=True)
class Tokens(Spec):
    """Masked are single tokens, each drawn for itself."""


@dataclass(frozen=True)
class Words(Spec):
    """Masked are whole words: all pieces of one or none (the later BERT models of its authors)."""


@dataclass(frozen=True)
class NGrams(Spec):
    """Masked are runs of 1 to `longest` whole words, n of them with a probability proportional to 1/n (Lan et al. 2019,
    arXiv:1909.11942, section 4.1). `drawn`: they begin "anywhere", or one lies in each of the "windows" of n/rate
    words that follow each other (DeBERTa's released code)."""

    longest: int = 3
    drawn: Literal["anywhere", "windows"] = "anywhere"

    def __post_init__(self) -> None:
        require(self.longest >= 1, f"objective.unit.longest must be at least 1 word, not {self.longest}")


@dataclass(frozen=True)
class Runs(Spec):
    """Masked are runs of whole words whose lengths are geometric with parameter `p`, cut off at `longest`; all tokens
    of a run are replaced in the same way (SpanBERT: Joshi et al. 2019, arXiv:1907.10529, section 3.1)."""

    p: float = 0.2
    longest: int = 10

    def __post_init__(self) -> None:
        require(0 < self.p < 1, f"objective.unit.p must lie between 0 and 1, not {self.p}")
        require(self.longest >= 1, f"objective.unit.longest must be at least 1 word, not {self.longest}")


@dataclass(frozen=True)
class MLM(Spec):
    """Predict masked tokens (Devlin et al. 2018, section 3.1): `rate` of them are chosen, by `unit`; of those `masked`
    become the mask token, `random` a random one, the rest stay. `copies`: how many maskings a text has before they
    repeat (BERT made 10 of its data); 0: new ones each epoch.

    `pairs`: a row is two segments, and the model says of them beside it whether the second followed the first ("next":
    else it is a random one) or in which "order" they stand (ALBERT: two that follow each other, swapped or not); of
    "halves" of a text (ELECTRA) it says nothing. `most`: so many targets of such a row at most; left out, `rate` of a
    full one."""

    rate: float = 0.15
    masked: float = 0.8
    random: float = 0.1
    unit: Tokens | Words | NGrams | Runs = Tokens()
    pairs: Literal["next", "order", "halves"] | None = None
    copies: int = 0
    most: int | None = None

    def __post_init__(self) -> None:
        _check_masking(self.rate, self.masked, self.random)
        require(self.copies >= 0, f"objective.copies must not be negative, not {self.copies}")
        require(self.most is None or self.most >= 1, f"objective.most must be at least 1, not {self.most}")
        require(self.most is None or self.pairs is not None, "objective.most is for rows of objective.pairs")


@dataclass(frozen=True)
class Spans(Spec):
    """Span corruption (Raffel et al. 2020, section 3.1.4): `rate` of the tokens fall out in spans of `mean` tokens on
    average, a sentinel in the place of each; the target is the spans, each after its sentinel."""

    rate: float = 0.15
    mean: float = 3.0

    def __post_init__(self) -> None:
        require(0 < self.rate < 1, f"objective.rate must lie between 0 and 1, not {self.rate}")
        require(self.mean >= 1, f"objective.mean must be at least 1 token, not {self.mean}")


@dataclass(frozen=True)
class RTD(Spec):
    """Replaced token detection (Clark et al. 2020, arXiv:2003.10555, section 2): a `generator` (a size of the tree),
    which learns masked tokens at the same time, fills `rate` of the places (of which `masked` carry the mask token) by
    samples at `temperature`; the model tells for every token whether it was replaced. Its loss counts `weight` times.
    `pairs` as in `MLM`. `sharing`: the two have the same embeddings ("tied"), each its own ("none"), or the model those
    of the generator, without a gradient into them, plus a table of its own that begins as zero ("disentangled"): the
    three ways of He et al. 2021, arXiv:2111.09543, section 3.2."""

    generator: str
    rate: float = 0.15
    masked: float = 0.85
    temperature: float = 1.0
    weight: float = 50.0
    pairs: Literal["halves"] | None = None
    sharing: Literal["tied", "none", "disentangled"] = "tied"

    def __post_init__(self) -> None:
        require(0 < self.rate < 1, f"objective.rate must lie between 0 and 1, not {self.rate}")
        require(0 < self.masked <= 1, f"objective.masked must lie in (0, 1], not {self.masked}")
        require(self.temperature > 0, f"objective.temperature must be positive, not {self.temperature}")
        require(self.weight > 0, f"objective.weight must be positive, not {self.weight}")


@dataclass(frozen=True)
class TLM(Spec):
    """Masked tokens of one language, and in turn those of a sentence and its translation side by side, the second one
    numbered from 0 again (Lample & Conneau 2019, arXiv:1901.07291, section 3.3). Fields as in `MLM`."""

    rate: float = 0.15
    masked: float = 0.8
    random: float = 0.1

    def __post_init__(self) -> None:
        _check_masking(self.rate, self.masked, self.random)


@dataclass(frozen=True)
class Distillation(Spec):
    """Tokens as a `teacher` predicts them (Sanh et al. 2019, arXiv:1910.01108, section 3): the weighted sum of the
    divergence from its distribution at `temperature` (`soft`), the loss on the true tokens (`hard`) and one minus the
    cosine between the last hidden states (`cosine`). `teacher`: a size of the tree, a folder of weights or a hub id.
    `task`: what both predict, masked tokens or, of decoders, the next one. `start`: the model begins as evenly spaced
    `layers` of the teacher, or `fresh`."""

    teacher: str
    task: MLM | CLM = MLM()
    start: Literal["layers", "fresh"] = "layers"
    temperature: float = 2.0
    soft: float = 5.0
    hard: float = 2.0
    cosine: float = 1.0

    def __post_init__(self) -> None:
        require(self.temperature > 0, f"objective.temperature must be positive, not {self.temperature}")
        for name in ("soft", "hard", "cosine"):
            require(getattr(self, name) >= 0, f"objective.{name} must not be negative, not {getattr(self, name)}")
        require(self.soft + self.hard + self.cosine > 0, "objective.soft, hard and cosine must not all be 0")
        pairs = isinstance(self.task, MLM) and self.task.pairs
        require(not pairs, "objective.task must be MLM without pairs, or CLM: a teacher says nothing of pairs")


@dataclass(frozen=True)
class AttentionDistillation(Spec):
    """The attention of the last layer, and the products of its values with each other, as a `teacher` (a size of the
    tree, a folder of weights or a hub id) has them (Wang et al. 2020, arXiv:2002.10957, section 3)."""

    teacher: str


@dataclass(frozen=True)
class Contrastive(Spec):
    """Which of the texts of a batch belongs with which: cross-entropy of the cosines of sentence vectors times `scale`
    (Reimers & Gurevych 2019, arXiv:1908.10084, and its later models), both ways. `group`: pairs that are told apart
    from each other (the released ones had a whole batch)."""

    scale: float = 20.0
    group: int = 1024

    def __post_init__(self) -> None:
        require(self.group >= 2, f"objective.group must be at least 2 pairs, not {self.group}")
        require(self.scale > 0, f"objective.scale must be positive, not {self.scale}")


@dataclass(frozen=True)
class Infill(Spec):
    """Predict the next token; of `rate` of the texts, cut at two places drawn uniformly, the middle is moved to the
    end: after prefix and suffix, or, for `swapped` of them, after suffix and prefix (Bavarian et al. 2022,
    arXiv:2207.14255; Roziere et al. 2023, section 2.3). The places lie between `characters`, so that a token may be cut
    in two, or between `tokens`."""

    rate: float = 0.9
    swapped: float = 0.5
    cut: Literal["characters", "tokens"] = "characters"

    def __post_init__(self) -> None:
        require(0 < self.rate <= 1, f"objective.rate must lie in (0, 1], not {self.rate}")
        require(0 <= self.swapped <= 1, f"objective.swapped must lie in [0, 1], not {self.swapped}")


@dataclass(frozen=True)
class Blanks(Spec):
    """Autoregressive blank infilling (Du et al. 2021, arXiv:2103.10360, section 2.1): pieces of a text fall out, a mask
    in the place of each, and follow it in random order (`shuffled`), each predicted from left to right. A text loses
    short `spans` (their lengths by a Poisson law of `mean`, until `rate` of it is gone), whole `sentences` (until
    `rate`), or its end (`suffix`: at least the share `least` of it); the three are shares of texts. For the share
    `inside` of the last kind the long piece lies anywhere in the text."""

    rate: float = 0.15
    mean: float = 3.0
    spans: float = 1.0
    sentences: float = 0.0
    suffix: float = 0.0
    least: float = 0.5
    inside: float = 0.0
    shuffled: bool = True

    def __post_init__(self) -> None:
        require(0 < self.rate < 1, f"objective.rate must lie between 0 and 1, not {self.rate}")
        require(self.mean >= 1, f"objective.mean must be at least 1 token, not {self.mean}")
        for name in ("spans", "sentences", "suffix"):
            share = getattr(self, name)
            require(0 <= share <= 1, f"objective.{name} must lie in [0, 1], not {share}")
        total = self.spans + self.sentences + self.suffix
        require(abs(total - 1) < 1e-6, f"objective.spans, sentences and suffix must add up to 1, not {total}")
        require(0 < self.least <= 1, f"objective.least must lie in (0, 1], not {self.least}")
        require(0 <= self.inside <= 1, f"objective.inside must lie in [0, 1], not {self.inside}")


@dataclass(frozen=True)
class Translation(Spec):
    """Predict the sentence of a pair in the language `target` from the one in `source` (Vaswani et al. 2017); left out,
    they are the first and the second language of the text. `smoothing`: the share of each target's probability that
    goes to all entries of the vocabulary alike in training (section 5.4)."""

    source: str = ""
    target: str = ""
    smoothing: float = 0.1

    def __post_init__(self) -> None:
        require(0 <= self.smoothing < 1, f"objective.smoothing must lie in [0, 1), not {self.smoothing}")
        require(
            not self.source or self.source != self.target,
            f"objective.source and objective.target are both {self.source!r}",
        )


@dataclass(frozen=True)
class PLM(Spec):
    """Predict tokens in a drawn order (Yang et al. 2019, sections 2.2 and 2.3): one in `share` of them, `targets` a row
    at most, in spans of 1 to `span` tokens (n of them with a weight of 1/n). Orders are drawn within windows of
    `window` tokens. The first `reuse` tokens of a row go on from the row before and become memory, which holds
    `memory` tokens. `pairs`: a row ends with two segments; `both`: half of the rows run backwards."""

    share: int = 6
    targets: int = 85
    span: int = 5
    window: int = 256
    reuse: int = 256
    memory: int = 384
    pairs: bool = True
    both: bool = True

    def __post_init__(self) -> None:
        for name in ("share", "targets", "span", "window"):
            require(getattr(self, name) >= 1, f"objective.{name} must be at least 1, not {getattr(self, name)}")
        for name in ("reuse", "memory"):
            require(getattr(self, name) >= 0, f"objective.{name} must not be negative, not {getattr(self, name)}")


@dataclass(frozen=True)
class MixedMLM(Spec):
    """Predict masked tokens under several masks of attention (Dong et al. 2019, section 2.3), each for a share of the
    batches: `full` (with next-sentence prediction beside it), `prefix` (two segments, the second written after the
    first), `causal` and `reverse`. `rate`, `masked` and `random` as in `MLM`; of the masked places `single` are one
    token, the rest runs of 2 to `span`."""

    full: float = 1 / 3
    prefix: float = 1 / 3
    causal: float = 1 / 6
    reverse: float = 1 / 6
    rate: float = 0.15
    masked: float = 0.8
    random: float = 0.1
    single: float = 0.8
    span: int = 3

    def __post_init__(self) -> None:
        shares = (self.full, self.prefix, self.causal, self.reverse)
        require(
            min(shares) >= 0 and abs(sum(shares) - 1) < 1e-6, f"the shares of masks must sum to 1, not {sum(shares)}"
        )
        _check_masking(self.rate, self.masked, self.random)
        require(0 <= self.single <= 1, f"objective.single must lie in [0, 1], not {self.single}")
        require(self.span >= 1, f"objective.span must be at least 1, not {self.span}")


@dataclass(frozen=True)
class PrefixLM(Spec):
    """Predict the rest of a text from its beginning, cut at a random place (Raffel et al. 2020, section 3.2.1)."""


@dataclass(frozen=True)
class Corruption(Spec):
    """Tokens that fall out one by one, each with probability `rate` (Raffel et al. 2020, section 3.3). `style`: what
    becomes of them. "mask": a mask token stands for each, or for `random` of them a random one, and the whole text is
    the target (the paper's BERT-style; its MASS-style with `random` 0); "replace": one sentinel stands for a run of
    them, and the runs are the target; "drop": nothing stands for them, and they are the target."""

    rate: float = 0.15
    style: Literal["mask", "replace", "drop"] = "replace"
    random: float = 0.1

    def __post_init__(self) -> None:
        require(0 < self.rate < 1, f"objective.rate must lie between 0 and 1, not {self.rate}")
        require(0 <= self.random <= 1, f"objective.random must lie in [0, 1], not {self.random}")


@dataclass(frozen=True)
class Deshuffle(Spec):
    """Predict a text from its tokens in random order (Raffel et al. 2020, section 3.3.1; Liu et al. 2019)."""


@dataclass(frozen=True)
class Denoiser(Spec):
    """Span corruption of one kind (Tay et al. 2022, table 1): `rate` of the tokens in spans of `mean` tokens on
    average; with `mean` None a single span, the end of the text; with `rate` None too, the end from a place drawn
    uniformly, and no sentinel for it. `mode`: the token in front of the input that names the kind; `share`: how often
    it comes, beside the shares of the others."""

    mode: str = ""
    rate: float | None = 0.15
    mean: float | None = 3.0
    share: float = 1.0

    def __post_init__(self) -> None:
        require(self.rate is None or 0 < self.rate < 1, f"a denoiser's rate must lie between 0 and 1, not {self.rate}")
        require(self.mean is None or self.mean >= 1, f"a denoiser's mean must be at least 1 token, not {self.mean}")
        require(self.rate is not None or self.mean is None, "a denoiser without a rate has no mean length of spans")
        require(self.share > 0, f"a denoiser's share must be positive, not {self.share}")


UL2 = (
    Denoiser("[NLU]", 0.15, 3.0),
    Denoiser("[NLU]", 0.15, 8.0),
    Denoiser("[S2S]", 0.25, None),
    Denoiser("[NLG]", 0.5, 3.0),
    Denoiser("[NLG]", 0.5, 8.0),
    Denoiser("[NLG]", 0.15, 64.0),
    Denoiser("[NLG]", 0.5, 64.0),
)


@dataclass(frozen=True)
class Denoisers(Spec):
    """A mixture of denoisers, each as often as its share says (UL2, Tay et al. 2022, arXiv:2205.05131, section 3.1:
    seven, equally often)."""

    kinds: tuple[Denoiser, ...] = UL2

    def __post_init__(self) -> None:
        require(bool(self.kinds), "objective.kinds must hold at least one denoiser")


@dataclass(frozen=True)
class Denoise(Spec):
    """Restore a text from noise (Lewis et al. 2019, section 2.2). `mask`: share of tokens that become the mask token;
    `delete`: share that fall out; `infill`: share that fall out in spans whose lengths are Poisson with mean `mean`,
    one mask token in the place of each; `permute`: share of sentences that are shuffled; `rotate`: probability that the
    text begins at a random token; `random`: share of the mask tokens that become a random token instead."""

    mask: float = 0.0
    delete: float = 0.0
    infill: float = 0.3
    mean: float = 3.0
    permute: float = 1.0
    rotate: float = 0.0
    random: float = 0.0

    def __post_init__(self) -> None:
        for name in ("mask", "delete", "infill", "permute", "rotate", "random"):
            share = getattr(self, name)
            require(0 <= share <= 1, f"objective.{name} must lie in [0, 1], not {share}")
        require(self.mean > 0, f"objective.mean must be positive, not {self.mean}")


@dataclass(frozen=True)
class Fragment(Spec):
    """Predict a run of `rate` of a text's tokens from the others (Song et al. 2019, section 3). The encoder sees them
    as `masked` mask tokens, `random` random ones and the rest as they are; the decoder reads only the run itself, each
    token where it stands in the text. `start`, `end`: the share of runs that begin or end the text; the others lie
    anywhere. `block`: tokens that are masked together where a long text is cut into blocks."""

    rate: float = 0.5
    masked: float = 0.8
    random: float = 0.1
    start: float = 0.2
    end: float = 0.2
    block: int | None = None

    def __post_init__(self) -> None:
        require(0 < self.rate < 1, f"objective.rate must lie between 0 and 1, not {self.rate}")
        for first, second in (("masked", "random"), ("start", "end")):
            a, b = getattr(self, first), getattr(self, second)
            require(a >= 0 and b >= 0, f"objective.{first} and objective.{second} must not be negative")
            require(a + b <= 1, f"objective.{first} + objective.{second} must not exceed 1")
        require(self.block is None or self.block >= 2, f"objective.block must be at least 2 tokens, not {self.block}")


Objective = (
    CLM
    | MLM
    | Spans
    | Infill
    | Blanks
    | Translation
    | RTD
    | TLM
    | Distillation
    | AttentionDistillation
    | Contrastive
    | PLM
    | MixedMLM
    | PrefixLM
    | Corruption
    | Deshuffle
    | Denoisers
    | Denoise
    | Fragment
)
