"""What models are trained to predict, as declared values: `stemma.objectives` makes them run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from stemma.spec import Spec, at_least, interval, not_negative, positive, require

SCALED_GROUP = 16  # pairs of texts that a contrastive objective compares in a scaled run


@dataclass(frozen=True)
class Objective(Spec, open=True):
    """What a model is trained to predict. A subclass is known by being declared: settings and files can name it.

    It says what is known without a tokenizer and without torch. `stemma.objectives.base.Objective` is what runs one;
    a class there names the declaration that it runs.
    """

    PLACE: ClassVar[str] = "objective"
    ELSEWHERE: ClassVar[str] = "; if a file of yours declares it, name that by --families FILE"

    label: ClassVar[str] = ""  # what reports call it; left out, its class name
    fills: ClassVar[bool] = False  # whether what it trains fills gaps in a text
    reads_vocabulary: ClassVar[bool] = True  # whether its loss takes logits over the vocabulary
    module: ClassVar[str] = ""  # which runs it, where that is none of `stemma.objectives`; ".x" is stemma.x
    ramp_conflict: ClassVar[str] = ""  # why the batch of a run with it cannot grow

    @property
    def pairing(self) -> str | None:
        """How the two segments of a row are related and labelled; None where rows hold no such pairs."""
        return None

    @property
    def networks(self) -> dict[str, tuple[str, bool]]:
        """The networks it needs beside the model: by role the size, and whether that network learns too."""
        return {}

    @property
    def default_data(self) -> str:
        """The built-in text to train on where none is named; empty where any will do."""
        return ""

    @property
    def consecutive(self) -> int:
        """The consecutive rows that it gives a text, where it reads more than one of a text together."""
        return 1

    def scaled(self, share: float) -> Objective:
        """The same for rows that are shorter by the factor `share`: counts of tokens in proportion."""
        return self


def label(kind: str) -> str:
    """What reports call the objective of that class name."""
    found = Objective.KINDS.get(kind, Objective)
    assert issubclass(found, Objective)
    return found.label or kind


@dataclass(frozen=True)
class CLM(Objective):
    """Predict the next token."""

    label = "next token"


@dataclass(frozen=True)
class Chunks(Objective):
    """Predict the next token in chunks of long documents, each of which repeats the last `overlap` of the one before
    (Pal et al. 2023, arXiv:2308.10882, released code). A row is one document's; short documents are padded."""

    label = "next token in overlapping chunks"

    overlap: float = interval("[0, 1)", 0.5)


@dataclass(frozen=True)
class CrossBatch(Objective):
    """Predict the next token, where memory layers of a row see whole rows before it in the batch as memory (Tworkowski
    et al. 2023, arXiv:2307.03170, section 3.2). A text takes `rows` consecutive rows, and `texts` of them are a pack,
    within which rows see each other. Row i of a text sees `i * step` rows before it, its own text's and then those of
    others, at most `contexts`, with the step that reaches `contexts` at the last row (the released code). `mixture`: in
    place of that, for each row of a text how many rows before it of the text itself and of the texts before (the
    paper, appendix A). In evaluation a row sees no other."""

    label = "next token across rows"

    contexts: int = not_negative(6)
    rows: int = at_least(1, 4)
    texts: int = at_least(1, 2)
    mixture: tuple[tuple[int, int], ...] = ()

    def check(self) -> None:
        if not self.mixture:
            return
        require(
            len(self.mixture) == self.rows,
            f"objective.mixture has {len(self.mixture)} pairs; one for each of objective.rows={self.rows} was expected",
        )
        for i, (own, other) in enumerate(self.mixture):
            require(
                0 <= own <= i and other >= 0,
                f"objective.mixture: row {i} of a text has {i} rows before it, so {own, other} is no choice of these",
            )

    @property
    def consecutive(self) -> int:
        return self.rows

    def scaled(self, share: float) -> CrossBatch:
        return replace(self, texts=min(self.texts, 2))


@dataclass(frozen=True)
class Tokens(Spec):
    """Choose single tokens, independently."""


@dataclass(frozen=True)
class Words(Spec):
    """Choose whole words: all pieces of a word or none (the later BERT models of its authors)."""


@dataclass(frozen=True)
class NGrams(Spec):
    """Choose runs of 1 to `longest` whole words, a run of n with a probability proportional to 1/n (Lan et al. 2019,
    arXiv:1909.11942, section 4.1). `drawn`: runs begin "anywhere", or there is one in each of the consecutive "windows"
    of n/rate words (DeBERTa's released code)."""

    longest: int = at_least(1, 3, "word")
    drawn: Literal["anywhere", "windows"] = "anywhere"


@dataclass(frozen=True)
class Runs(Spec):
    """Choose runs of whole words. Their lengths are geometric with parameter `p`, at most `longest`; all tokens of a
    run are replaced in the same way (SpanBERT: Joshi et al. 2019, arXiv:1907.10529, section 3.1)."""

    p: float = interval("(0, 1)", 0.2)
    longest: int = at_least(1, 10, "word")


@dataclass(frozen=True)
class MLM(Objective):
    """Predict masked tokens (Devlin et al. 2018, section 3.1). `rate` of the tokens are chosen, by `unit`; `masked` of
    these become the mask token, `random` a random token, the rest stay. `copies`: the number of maskings of a text
    before they repeat (BERT made 10 copies of its data); 0: a new one each epoch.

    `pairs`: a row is two segments, and the model also predicts how they are related. "next": the second follows the
    first, or is a random one; "order": two consecutive segments, swapped or not (ALBERT); "halves": the halves of a
    text, with nothing to predict (ELECTRA). `most`: the most targets of such a row; left out, `rate` of a full row.
    """

    label = "masked tokens"
    fills = True

    rate: float = interval("(0, 1)", 0.15)
    masked: float = not_negative(0.8)
    random: float = not_negative(0.1)
    unit: Tokens | Words | NGrams | Runs = Tokens()
    pairs: Literal["next", "order", "halves"] | None = None
    copies: int = not_negative(0)
    most: int | None = at_least(1, None)

    def check(self) -> None:
        require(self.masked + self.random <= 1, "objective.masked + objective.random must not exceed 1")
        require(self.most is None or self.pairs is not None, "objective.most is for rows of objective.pairs")

    @property
    def pairing(self) -> str | None:
        return self.pairs


@dataclass(frozen=True)
class Spans(Objective):
    """Span corruption (Raffel et al. 2020, section 3.1.4). `rate` of the tokens are removed, in spans of `mean` tokens
    on average; a sentinel replaces each span. The target is the spans, each after its sentinel."""

    label = "span corruption"
    fills = True

    rate: float = interval("(0, 1)", 0.15)
    mean: float = at_least(1, 3.0, "token")


@dataclass(frozen=True)
class Infill(Objective):
    """Predict the next token, after moving the middle of some texts to their end. `rate` of the texts are cut at two
    uniform places; the middle goes after prefix and suffix, or, for `swapped` of them, after suffix and prefix
    (Bavarian et al. 2022, arXiv:2207.14255; Roziere et al. 2023, section 2.3). `cut`: between `characters`, which may
    split a token, or between `tokens`."""

    rate: float = interval("(0, 1]", 0.9)
    swapped: float = interval("[0, 1]", 0.5)
    cut: Literal["characters", "tokens"] = "characters"

    @property
    def default_data(self) -> str:
        return "builtin:code"


@dataclass(frozen=True)
class Blanks(Objective):
    """Autoregressive blank infilling (Du et al. 2021, arXiv:2103.10360, section 2.1). Pieces of a text are replaced by
    a mask token each and follow the text in random order (`shuffled`), each predicted from left to right. Shares of
    texts: `spans` lose short spans (lengths Poisson with mean `mean`, `rate` of the text in all), `sentences` lose
    whole sentences (`rate` of the text), `suffix` lose their end (at least the share `least`); of the last kind,
    `inside` lose a piece anywhere in place of the end."""

    rate: float = interval("(0, 1)", 0.15)
    mean: float = at_least(1, 3.0, "token")
    spans: float = interval("[0, 1]", 1.0)
    sentences: float = interval("[0, 1]", 0.0)
    suffix: float = interval("[0, 1]", 0.0)
    least: float = interval("(0, 1]", 0.5)
    inside: float = interval("[0, 1]", 0.0)
    shuffled: bool = True

    def check(self) -> None:
        total = self.spans + self.sentences + self.suffix
        require(abs(total - 1) < 1e-6, f"objective.spans, sentences and suffix must add up to 1, not {total}")


@dataclass(frozen=True)
class Translation(Objective):
    """Predict the sentence in the language `target` from its translation in `source` (Vaswani et al. 2017). Left out,
    they are the first and the second language of the text. `smoothing`: label smoothing in training (section 5.4)."""

    label = "translation"

    source: str = ""
    target: str = ""
    smoothing: float = interval("[0, 1)", 0.1)

    def check(self) -> None:
        same = self.source and self.source == self.target
        require(not same, f"objective.source and objective.target are both {self.source!r}")

    @property
    def default_data(self) -> str:
        return f"builtin:parallel:{self.source or 'en'}-{self.target or 'de'}"


@dataclass(frozen=True)
class RTD(Objective):
    """Replaced token detection (Clark et al. 2020, arXiv:2003.10555, section 2). A `generator` (a size of the tree),
    trained on masked tokens at the same time, fills `rate` of the tokens (`masked` of them carry the mask token) with
    samples at `temperature`; the model predicts for every token whether it was replaced. `weight`: of the model's loss.
    `pairs`: as in `MLM`. `sharing` of embeddings (He et al. 2021, arXiv:2111.09543, section 3.2): one table ("tied"),
    two ("none"), or the generator's without gradient plus a table of differences that begins as zero
    ("disentangled")."""

    label = "replaced tokens"

    generator: str
    rate: float = interval("(0, 1)", 0.15)
    masked: float = interval("(0, 1]", 0.85)
    temperature: float = positive(1.0)
    weight: float = positive(50.0)
    pairs: Literal["halves"] | None = None
    sharing: Literal["tied", "none", "disentangled"] = "tied"

    @property
    def pairing(self) -> str | None:
        return self.pairs

    @property
    def networks(self) -> dict[str, tuple[str, bool]]:
        return {"generator": (self.generator, True)}


@dataclass(frozen=True)
class TLM(Objective):
    """Masked tokens, by turns in text of one language and in pairs of a sentence and its translation, whose positions
    begin at 0 again (Lample & Conneau 2019, arXiv:1901.07291, section 3.3). Fields as in `MLM`."""

    ramp_conflict = "translations and text of one language take turns batch by batch, all of one size"

    rate: float = interval("(0, 1)", 0.15)
    masked: float = not_negative(0.8)
    random: float = not_negative(0.1)

    def check(self) -> None:
        require(self.masked + self.random <= 1, "objective.masked + objective.random must not exceed 1")

    @property
    def default_data(self) -> str:
        return "builtin:parallel"


@dataclass(frozen=True)
class Distillation(Objective):
    """Learn the predictions of a `teacher` (Sanh et al. 2019, arXiv:1910.01108, section 3). The loss is a weighted sum:
    `soft`, the divergence from the teacher's distribution at `temperature`; `hard`, the loss on the true tokens;
    `cosine`, one minus the cosine of the last hidden states. `teacher`: a size of the tree, a folder of weights or a
    hub id. `task`: what both predict. `start`: the student begins as evenly spaced `layers` of the teacher, or
    `fresh`."""

    teacher: str
    task: MLM | CLM = MLM()
    start: Literal["layers", "fresh"] = "layers"
    temperature: float = positive(2.0)
    soft: float = not_negative(5.0)
    hard: float = not_negative(2.0)
    cosine: float = not_negative(1.0)

    def check(self) -> None:
        require(self.soft + self.hard + self.cosine > 0, "objective.soft, hard and cosine must not all be 0")
        pairs = isinstance(self.task, MLM) and self.task.pairs
        require(not pairs, "objective.task must be MLM without pairs, or CLM: a teacher says nothing of pairs")

    @property
    def networks(self) -> dict[str, tuple[str, bool]]:
        return {"teacher": (self.teacher, False)}


@dataclass(frozen=True)
class AttentionDistillation(Objective):
    """Learn the attention of a `teacher`'s last layer and the relations of its values, softmax(V V' / sqrt(width))
    (Wang et al. 2020, arXiv:2002.10957, section 3). `teacher`: a size of the tree, a folder of weights or a hub id."""

    reads_vocabulary = False

    teacher: str

    @property
    def networks(self) -> dict[str, tuple[str, bool]]:
        return {"teacher": (self.teacher, False)}


@dataclass(frozen=True)
class Contrastive(Objective):
    """Match the two texts of each pair among the pairs of a group: cross-entropy over the cosines of sentence vectors
    times `scale`, in both directions (Reimers & Gurevych 2019, arXiv:1908.10084, and later models). `group`: pairs in a
    group (the released models used a whole batch)."""

    reads_vocabulary = False

    scale: float = positive(20.0)
    group: int = at_least(2, 1024, "pairs")

    def scaled(self, share: float) -> Contrastive:
        return replace(self, group=min(self.group, SCALED_GROUP))


@dataclass(frozen=True)
class PLM(Objective):
    """Predict tokens in a random order (Yang et al. 2019, sections 2.2 and 2.3). One token in `share` is a target, at
    most `targets` a row, in spans of 1 to `span` tokens (a span of n with weight 1/n). Orders are drawn within windows
    of `window` tokens. The first `reuse` tokens of a row continue the row before and become memory, of
    `memory` tokens. `pairs`: a row ends with two segments; `both`: half of the rows run backwards."""

    share: int = at_least(1, 6)
    targets: int = at_least(1, 85)
    span: int = at_least(1, 5)
    window: int = at_least(1, 256)
    reuse: int = not_negative(256)
    memory: int = not_negative(384)
    pairs: bool = True
    both: bool = True

    def scaled(self, share: float) -> PLM:
        sizes = {name: max(1, round(getattr(self, name) * share)) for name in ("targets", "window")}
        kept = {name: round(getattr(self, name) * share) for name in ("reuse", "memory")}
        return replace(self, **sizes, **kept)


@dataclass(frozen=True)
class MixedMLM(Objective):
    """Predict masked tokens under several attention masks (Dong et al. 2019, section 2.3). Shares of the batches:
    `full` (with next-sentence prediction), `prefix` (two segments, the second generated from the first), `causal` and
    `reverse`. `rate`, `masked` and `random` as in `MLM`; `single` of the masked places are one token, the rest runs of
    2 to `span`."""

    full: float = not_negative(1 / 3)
    prefix: float = not_negative(1 / 3)
    causal: float = not_negative(1 / 6)
    reverse: float = not_negative(1 / 6)
    rate: float = interval("(0, 1)", 0.15)
    masked: float = not_negative(0.8)
    random: float = not_negative(0.1)
    single: float = interval("[0, 1]", 0.8)
    span: int = at_least(1, 3)

    def check(self) -> None:
        shares = self.full + self.prefix + self.causal + self.reverse
        require(abs(shares - 1) < 1e-6, f"the shares of masks must sum to 1, not {shares}")
        require(self.masked + self.random <= 1, "objective.masked + objective.random must not exceed 1")


@dataclass(frozen=True)
class PrefixLM(Objective):
    """Predict the rest of a text from its beginning, cut at a random place (Raffel et al. 2020, section 3.2.1)."""


@dataclass(frozen=True)
class Corruption(Objective):
    """Corrupt single tokens, each with probability `rate` (Raffel et al. 2020, section 3.3). `style` "mask": each
    becomes a mask token, or a random token for `random` of them, and the target is the whole text (the paper's
    BERT-style; with `random` 0 its MASS-style); "replace": a sentinel replaces each run of them, and the target is the
    runs; "drop": they are deleted, and they are the target."""

    rate: float = interval("(0, 1)", 0.15)
    style: Literal["mask", "replace", "drop"] = "replace"
    random: float = interval("[0, 1]", 0.1)


@dataclass(frozen=True)
class Deshuffle(Objective):
    """Predict a text from its tokens in random order (Raffel et al. 2020, section 3.3.1; Liu et al. 2019)."""


@dataclass(frozen=True)
class Denoiser(Spec):
    """One kind of span corruption (Tay et al. 2022, table 1): `rate` of the tokens, in spans of `mean` tokens on
    average. `mean` None: a single span, the end of the text; `rate` None too: the end from a uniform place, without a
    sentinel. `mode`: the token before the input that names the kind; `share`: how often it is drawn, relative to the
    others."""

    mode: str = ""
    rate: float | None = interval("(0, 1)", 0.15)
    mean: float | None = at_least(1, 3.0, "token")
    share: float = positive(1.0)

    def check(self) -> None:
        require(self.rate is not None or self.mean is None, "a denoiser without a rate has no mean length of spans")


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
class Denoisers(Objective):
    """A mixture of denoisers, drawn by their shares (UL2, Tay et al. 2022, arXiv:2205.05131, section 3.1: seven,
    equally often)."""

    kinds: tuple[Denoiser, ...] = UL2

    def check(self) -> None:
        require(bool(self.kinds), "objective.kinds must hold at least one denoiser")


@dataclass(frozen=True)
class Denoise(Objective):
    """Restore a text from noise (Lewis et al. 2019, section 2.2). `mask`: share of tokens that become the mask token;
    `delete`: share that is deleted; `infill`: share that is removed in spans of Poisson length with mean `mean`, one
    mask token for each span; `permute`: share of sentences that are shuffled; `rotate`: probability that the text is
    rotated to begin at a random token; `random`: share of the mask tokens that become a random token instead."""

    mask: float = interval("[0, 1]", 0.0)
    delete: float = interval("[0, 1]", 0.0)
    infill: float = interval("[0, 1]", 0.3)
    mean: float = positive(3.0)
    permute: float = interval("[0, 1]", 1.0)
    rotate: float = interval("[0, 1]", 0.0)
    random: float = interval("[0, 1]", 0.0)


@dataclass(frozen=True)
class Fragment(Objective):
    """Predict a run of `rate` of a text's tokens from the others (Song et al. 2019, section 3). In the encoder's input,
    `masked` of the run become mask tokens, `random` random tokens, the rest stay; the decoder reads only the run, at
    its positions in the text. `start`, `end`: shares of runs that begin or end the text; the others lie anywhere.
    `block`: tokens that are masked together where a long text is cut into blocks."""

    rate: float = interval("(0, 1)", 0.5)
    masked: float = not_negative(0.8)
    random: float = not_negative(0.1)
    start: float = not_negative(0.2)
    end: float = not_negative(0.2)
    block: int | None = at_least(2, None, "tokens")

    def check(self) -> None:
        for first, second in (("masked", "random"), ("start", "end")):
            both = getattr(self, first) + getattr(self, second)
            require(both <= 1, f"objective.{first} + objective.{second} must not exceed 1")

    def scaled(self, share: float) -> Fragment:
        return self if self.block is None else replace(self, block=max(8, round(self.block * share)))
