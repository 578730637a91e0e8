"""What a family is: five declared parts, every published size, and the edge that joins it to its parent.

`Family.evolve` declares a child with new weights and a changed design; `Family.trained` a child that is more training
of the parent's weights. Both name only what differs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from stemma import spec
from stemma.errors import UsageError, did_you_mean
from stemma.nn.parts import Arch, Dims, Heads
from stemma.spec import Change, Spec, require

# ---------------------------------------------------------------- objectives


def _check_masking(rate: float, masked: float, random: float) -> None:
    """Raise UsageError unless `rate` of the tokens can be chosen, and `masked` and `random` are shares of those."""
    require(0 < rate < 1, f"objective.rate must lie between 0 and 1, not {rate}")
    require(masked >= 0 and random >= 0, "objective.masked and objective.random must not be negative")
    require(masked + random <= 1, "objective.masked + objective.random must not exceed 1")


@dataclass(frozen=True)
class CLM(Spec):
    """Predict the next token."""


@dataclass(frozen=True)
class MLM(Spec):
    """Predict masked tokens (Devlin et al. 2018, section 3.1): `rate` of them are chosen; of those `masked` become the
    mask token, `random` a random one, the rest stay. `pairs`: two segments, with next-sentence prediction beside it.
    `copies`: how many maskings a text has before they repeat (BERT made 10 of its data); 0: new ones each epoch."""

    rate: float = 0.15
    masked: float = 0.8
    random: float = 0.1
    pairs: bool = False
    copies: int = 0

    def __post_init__(self) -> None:
        _check_masking(self.rate, self.masked, self.random)
        require(self.copies >= 0, f"objective.copies must not be negative, not {self.copies}")


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
    `sharing`: the two have the same embeddings ("tied"), or the model those of the generator, without a gradient into
    them, plus a table of its own that begins as zero ("disentangled": He et al. 2021, arXiv:2111.09543, 3.2)."""

    generator: str
    rate: float = 0.15
    masked: float = 0.85
    temperature: float = 1.0
    weight: float = 50.0
    sharing: Literal["tied", "disentangled"] = "tied"

    def __post_init__(self) -> None:
        require(0 < self.rate < 1, f"objective.rate must lie between 0 and 1, not {self.rate}")
        require(0 < self.masked <= 1, f"objective.masked must lie in (0, 1], not {self.masked}")
        require(self.temperature > 0, f"objective.temperature must be positive, not {self.temperature}")
        require(self.weight > 0, f"objective.weight must be positive, not {self.weight}")


@dataclass(frozen=True)
class NGrams(Spec):
    """Masked n-grams (ALBERT: Lan et al. 2019, arXiv:1909.11942, sections 3.1 and 4.1) of 1 to `longest` whole words,
    drawn with probability proportional to 1/n, until `rate` of the tokens are chosen; they are replaced as in `MLM`.
    Beside it the order of two consecutive segments, which are swapped half of the time. `copies` as in `MLM`."""

    rate: float = 0.15
    masked: float = 0.8
    random: float = 0.1
    longest: int = 3
    copies: int = 40

    def __post_init__(self) -> None:
        _check_masking(self.rate, self.masked, self.random)
        require(self.longest >= 1, f"objective.longest must be at least 1 word, not {self.longest}")
        require(self.copies >= 0, f"objective.copies must not be negative, not {self.copies}")


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
    """Masked tokens as a `teacher` (a size of the tree) predicts them (Sanh et al. 2019, arXiv:1910.01108, section 3):
    the weighted sum of the divergence from its distribution at `temperature` (`soft`), the loss on the true tokens
    (`hard`) and one minus the cosine between the last hidden states (`cosine`)."""

    teacher: str
    temperature: float = 2.0
    soft: float = 5.0
    hard: float = 2.0
    cosine: float = 1.0

    def __post_init__(self) -> None:
        require(self.temperature > 0, f"objective.temperature must be positive, not {self.temperature}")
        for name in ("soft", "hard", "cosine"):
            require(getattr(self, name) >= 0, f"objective.{name} must not be negative, not {getattr(self, name)}")


@dataclass(frozen=True)
class AttentionDistillation(Spec):
    """The attention of the last layer, and the products of its values with each other, as a `teacher` (a size of the
    tree) has them (Wang et al. 2020, arXiv:2002.10957, section 3)."""

    teacher: str


@dataclass(frozen=True)
class Contrastive(Spec):
    """Which of the texts of a batch belongs with which: cross-entropy of the cosines of sentence vectors times `scale`
    (Reimers & Gurevych 2019, arXiv:1908.10084, and its later models)."""

    scale: float = 20.0

    def __post_init__(self) -> None:
        require(self.scale > 0, f"objective.scale must be positive, not {self.scale}")


@dataclass(frozen=True)
class Infill(Spec):
    """Predict the next token; of `rate` of the texts, cut at two places drawn uniformly, the middle is moved to the
    end: after prefix and suffix, or, for `swapped` of them, after suffix and prefix (Bavarian et al. 2022,
    arXiv:2207.14255; Roziere et al. 2023, section 2.3)."""

    rate: float = 0.9
    swapped: float = 0.5

    def __post_init__(self) -> None:
        require(0 < self.rate <= 1, f"objective.rate must lie in (0, 1], not {self.rate}")
        require(0 <= self.swapped <= 1, f"objective.swapped must lie in [0, 1], not {self.swapped}")


@dataclass(frozen=True)
class Blanks(Spec):
    """Autoregressive blank infilling (Du et al. 2021, arXiv:2103.10360, section 2.1): pieces of a text fall out, a mask
    in the place of each, and follow it in random order, each predicted from left to right. A text loses short `spans`
    (of `mean` tokens on average by a Poisson law, until `rate` of it is gone), whole `sentences` (until `rate`), or its
    end (`suffix`: at least the share `least` of it); the three are shares of texts."""

    rate: float = 0.15
    mean: float = 3.0
    spans: float = 1.0
    sentences: float = 0.0
    suffix: float = 0.0
    least: float = 0.5

    def __post_init__(self) -> None:
        require(0 < self.rate < 1, f"objective.rate must lie between 0 and 1, not {self.rate}")
        require(self.mean >= 1, f"objective.mean must be at least 1 token, not {self.mean}")
        for name in ("spans", "sentences", "suffix"):
            share = getattr(self, name)
            require(0 <= share <= 1, f"objective.{name} must lie in [0, 1], not {share}")
        total = self.spans + self.sentences + self.suffix
        require(abs(total - 1) < 1e-6, f"objective.spans, sentences and suffix must add up to 1, not {total}")
        require(0 < self.least <= 1, f"objective.least must lie in (0, 1], not {self.least}")


@dataclass(frozen=True)
class Translation(Spec):
    """Predict the sentence of a pair from the other (Vaswani et al. 2017)."""


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
class Denoiser(Spec):
    """Span corruption of one kind (Tay et al. 2022, table 1): `rate` of the tokens in spans of `mean` tokens on
    average; with `mean` None a single span, the end of the text. `mode`: the token in front of the input that names the
    kind."""

    mode: str = ""
    rate: float = 0.15
    mean: float | None = 3.0

    def __post_init__(self) -> None:
        require(0 < self.rate < 1, f"objective.rate must lie between 0 and 1, not {self.rate}")
        require(self.mean is None or self.mean >= 1, f"objective.mean must be at least 1 token, not {self.mean}")


@dataclass(frozen=True)
class Denoisers(Spec):
    """A mixture of denoisers, each as often as the others (UL2, Tay et al. 2022, arXiv:2205.05131, section 3.1)."""

    kinds: tuple[Denoiser, ...] = ()


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
    | NGrams
    | RTD
    | TLM
    | Distillation
    | AttentionDistillation
    | Contrastive
    | PLM
    | MixedMLM
    | PrefixLM
    | Denoisers
    | Denoise
    | Fragment
)


# ---------------------------------------------------------------- text


@dataclass(frozen=True)
class Text(Spec):
    """The tokenizer's kind, its special tokens by role, and their ids where they are published.

    `start_id`: the first token of a decoder's input; `mask_id`: of a model that writes where its mask token stands;
    `sentinels`: how many `<extra_id_N>` there are (T5); `languages`: those of the language table, in its order (XLM).
    `blanks`: tokens that stand for a blank, the one for the end of a text last; `bos` begins what fills one, `eos` ends
    it (GLM). `shift`: what a decoder's input begins with where it is made from targets: the start token, or the last
    token of the target itself (the language code of mBART).
    """

    tokenizer: Literal["wordpiece", "bpe", "gpt-bpe", "unigram", "spm-bpe"]
    lower: bool = False
    bos: str | None = None
    eos: str | None = None
    pad: str | None = None
    unk: str | None = None
    mask: str | None = None
    cls: str | None = None
    sep: str | None = None
    sentinels: int = 0
    blanks: tuple[str, ...] = ()
    bos_id: int | None = None
    eos_id: int | tuple[int, ...] | None = None
    pad_id: int | None = None
    start_id: int | None = None
    languages: tuple[str, ...] = ()
    mask_id: int | None = None
    blank_ids: tuple[int, ...] = ()
    shift: Literal["start", "last"] = "start"

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """The ids that end a text (none, one or several)."""
        if self.eos_id is None:
            return ()
        return self.eos_id if isinstance(self.eos_id, tuple) else (self.eos_id,)


# ---------------------------------------------------------------- recipe


@dataclass(frozen=True)
class AdamW(Spec):
    """Adam with decoupled weight decay, which spares biases and norms (Loshchilov & Hutter 2019, arXiv:1711.05101)."""

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        for name in ("beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, f"optimizer.{name} must lie in [0, 1), not {getattr(self, name)}")
        require(self.eps > 0, f"optimizer.eps must be positive, not {self.eps}")
        require(self.weight_decay >= 0, f"optimizer.weight_decay must not be negative, not {self.weight_decay}")


@dataclass(frozen=True)
class Adafactor(Spec):
    """Factored second moments and steps relative to the size of a matrix (Shazeer & Stern 2018, arXiv:1804.04235)."""

    decay: float = 0.8
    clip: float = 1.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        require(self.weight_decay >= 0, f"optimizer.weight_decay must not be negative, not {self.weight_decay}")


@dataclass(frozen=True)
class LAMB(Spec):
    """Adam whose step for each matrix is scaled to the size of its weights (You et al. 2019, arXiv:1904.00962)."""

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-6
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        for name in ("beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, f"optimizer.{name} must lie in [0, 1), not {getattr(self, name)}")
        require(self.eps > 0, f"optimizer.eps must be positive, not {self.eps}")
        require(self.weight_decay >= 0, f"optimizer.weight_decay must not be negative, not {self.weight_decay}")


@dataclass(frozen=True)
class Schedule(Spec):
    """The learning rate over time: `warmup` steps up, then `shape` down to `floor` times the peak.

    `rsqrt` is T5's: constant for `warmup` steps, then by 1/sqrt(step), with no rise at the start.
    """

    shape: Literal["linear", "cosine", "rsqrt", "constant"] = "linear"
    warmup: int = 0
    floor: float = 0.0

    def __post_init__(self) -> None:
        require(self.warmup >= 0, f"schedule.warmup must not be negative, not {self.warmup}")
        require(0 <= self.floor <= 1, f"schedule.floor must lie in [0, 1], not {self.floor}")


@dataclass(frozen=True)
class Recipe(Spec):
    """How it was pretrained, as published; None is unpublished. `lr`: peak; `batch`: tokens a step; `context`: tokens a
    row; `mixed`: rows may hold several documents that see each other (the published habit of most)."""

    optimizer: AdamW | Adafactor | LAMB = AdamW()
    lr: float | None = None
    schedule: Schedule = Schedule()
    batch: int | None = None
    steps: int | None = None
    clip: float | None = None
    mixed: bool = True
    data: str = ""

    def __post_init__(self) -> None:
        require(self.lr is None or self.lr > 0, f"the learning rate must be positive, not {self.lr}")
        require(self.batch is None or self.batch > 0, f"recipe.batch must be positive, not {self.batch}")
        require(self.steps is None or self.steps > 0, f"recipe.steps must be positive, not {self.steps}")
        require(self.clip is None or self.clip > 0, f"recipe.clip must be positive, not {self.clip}")


# ---------------------------------------------------------------- families


@dataclass(frozen=True)
class About(Spec):
    """Where a family comes from. `weights`: where public ones are, or why there are none."""

    year: int
    title: str
    source: str
    weights: str = "public"
    note: str = ""


Stage = Literal["pretraining", "sft", "reward model", "rejection sampling", "rl", "preferences", "adapter", "prompt"]


@dataclass(frozen=True)
class Tuning(Spec):
    """How the weights of a parent were trained on: the stages in order, the data, and the template of its texts.

    `sft`: on demonstrations; `reward model`: on rankings; `rl`: against a reward; `preferences`: on pairs without a
    reward model; `adapter`: low-rank matrices beside frozen weights; `prompt`: vectors before a frozen network.
    """

    stages: tuple[Stage, ...]
    data: str
    template: str = ""


@dataclass(frozen=True)
class Size:
    """A published size: widths, what else this size changes (by path into the design), the published count in words,
    other names, and the hub id of public weights."""

    dims: Dims
    changes: Mapping[str, Any] = field(default_factory=dict)
    published: str = ""
    aliases: tuple[str, ...] = ()
    hub: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Design(Spec):
    """A family at one size, resolved: all that is needed to build, train and read text."""

    name: str
    arch: Arch
    dims: Dims
    objective: Objective
    text: Text
    recipe: Recipe


def like(
    parent: Family,
    size: str,
    *,
    changes: Mapping[str, Any] = {},
    published: str = "",
    hub: str | None = None,
    **rest: Any,
) -> Size:
    """The size of a child that is trained from `size` of its parent: the same network, its own recipe and weights.
    `vocab`: another number of tokens; `aliases`, `note`: as in `Size`."""
    old = parent.sizes[parent.names[size]]
    kept = {path: value for path, value in old.changes.items() if path.split(".")[0] != "recipe"}
    dims = replace(old.dims, vocab=rest.pop("vocab", old.dims.vocab))
    return Size(dims, kept | dict(changes), published or old.published, hub=hub, **rest)


Edge = Literal["root", "evolve", "trained", "unpublished"]


@dataclass(frozen=True)
class Family:
    """A node of the tree. Index it by size for a `Design`: `family["bert-base"]`."""

    name: str
    arch: Arch
    objective: Objective
    text: Text
    recipe: Recipe
    sizes: Mapping[str, Size]
    about: About
    parent: Family | None = None
    edge: Edge = "root"
    changes: Mapping[str, Any] = field(default_factory=dict)
    tasks: Mapping[str, Heads] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    tuning: Tuning | None = None

    def evolve(
        self,
        name: str,
        changes: Mapping[str, Any],
        *,
        sizes: Mapping[str, Size],
        about: About,
        tasks: Mapping[str, Heads] | None = None,
        others: tuple[str, ...] = (),
    ) -> Family:
        """A child with new weights that differs from this family in `changes` (paths into arch, objective, text and
        recipe). `tasks`: how it stands heads for a task on its body (`classify`, `tag`, `answer`, `choose`), where this
        differs from the parent's way; `others`: names of further parents. Raises UsageError for an unknown path and for
        a change that changes nothing."""
        child = self._child(name, changes, sizes, about, "evolve")
        return replace(child, tasks=dict(self.tasks if tasks is None else tasks), others=others)

    def trained(
        self,
        name: str,
        changes: Mapping[str, Any],
        *,
        sizes: Mapping[str, Size],
        about: About,
        tuning: Tuning | None = None,
        others: tuple[str, ...] = (),
    ) -> Family:
        """A child that is more training of this family's weights, as `tuning` says: the architecture must stay."""
        inherited = [change for size in self.sizes.values() for change in size.changes.items()]
        own = [change for size in sizes.values() for change in size.changes.items() if change not in inherited]
        wrong = [path for path in (*changes, *(path for path, _ in own)) if path.split(".")[0] == "arch"]
        if wrong:
            raise UsageError(f"{name} is declared as trained from {self.name} but changes {wrong[0]}; use evolve")
        return replace(self._child(name, changes, sizes, about, "trained"), others=others, tuning=tuning)

    def unpublished(
        self, name: str, *, about: About, tuning: Tuning | None = None, others: tuple[str, ...] = ()
    ) -> Family:
        """A descendant of whose design too little was published to build it. It stands in the tree with what is known,
        has no sizes, and nothing is invented for it: what it shares with this family is method."""
        child = self._child(name, {}, {}, about, "unpublished")
        return replace(child, others=others, tuning=tuning)

    def _child(
        self, name: str, changes: Mapping[str, Any], sizes: Mapping[str, Size], about: About, edge: Edge
    ) -> Family:
        require(edge != "evolve" or bool(changes), f"{name} changes nothing of {self.name}")
        if outside := [path for path in changes if path.split(".")[0] not in PARTS]:
            raise UsageError(f"{name}: {outside[0]!r} is no path into {', '.join(PARTS)}")
        try:
            real = spec.real_changes(self, changes)
        except UsageError as error:
            raise UsageError(f"{name}: {error}") from None
        child = spec.edit(self, real)
        return replace(
            child,
            name=name,
            sizes=dict(sizes),
            about=about,
            parent=self,
            edge=edge,
            changes=real,
            others=(),
            tuning=None,
        )

    # ------------------------------------------------------------ sizes

    @property
    def names(self) -> dict[str, str]:
        """Every name of a size, aliases included, to its main name."""
        return {alias: main for main, size in self.sizes.items() for alias in (main, *size.aliases)}

    def __getitem__(self, size: str) -> Design:
        """The design of a size (`"bert-base"`, or short `"base"`). Raises UsageError for one that does not exist."""
        names = self.names
        main = names.get(size) or names.get(f"{self.name}-{size}")
        if not names:
            raise UsageError(f"the design of {self.name} was never published ({self.about.source}), so it has no sizes")
        if main is None:
            raise UsageError(
                f"{self.name} has no size {size!r}; it has {', '.join(self.sizes)}{did_you_mean(size, names)}"
            )
        row = self.sizes[main]
        design = Design(main, self.arch, row.dims, self.objective, self.text, self.recipe)
        return spec.edit(design, row.changes)

    def __iter__(self) -> Iterator[str]:
        return iter(self.sizes)

    # ------------------------------------------------------------ relatives

    @property
    def lineage(self) -> list[Family]:
        """This family, its parent, and so on up to the root."""
        line, here = [self], self
        while here.parent is not None:
            here = here.parent
            line.append(here)
        return line

    def diff(self, other: Family | str) -> list[Change]:
        """The changes that lead from `other` to this family (sizes apart)."""
        if isinstance(other, str):
            from stemma.families import family

            other = family(other)
        old, new = ({p: getattr(f, p) for p in PARTS} for f in (other, self))
        return [change for part in PARTS for change in spec.diff(old[part], new[part], part + ".")]


PARTS = ("arch", "objective", "text", "recipe")
