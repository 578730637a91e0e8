"""What objectives share: the order of documents, windows cut from it, and the loss of targets at a vocabulary."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stemma.data import random as draw
from stemma.data.mixture import Mixed
from stemma.declare import objectives as declared
from stemma.declare.family import Text
from stemma.declare.recipes import Sampling
from stemma.errors import DataError, UsageError
from stemma.nn.model import IGNORED, Model
from stemma.nn.parts import Arch, BlankLearned, BlankRotary, Buckets, Dims, Disentangled, EMDHead, Learned, Rotary
from stemma.objectives.vocabulary import token_loss

Ints = NDArray[np.int64]
Example = dict[str, Any]  # arrays and numbers of one row
Batch = dict[str, Tensor]  # int64 tensors of one micro-batch
Nets = Mapping[str, Model]  # what stands beside the model in a step, by role: a generator, a teacher
ALONE: Nets = {}

OUTSIDE = -1  # document number of padding


class View(Protocol):
    """Documents as token ids, without special tokens."""

    def __len__(self) -> int: ...
    def __getitem__(self, i: int) -> Any: ...
    def sentences(self, i: int) -> Any: ...
    def text(self, i: int) -> str: ...


@dataclass(frozen=True, order=True)
class Cursor:
    """Where a stream of examples stands: `slot`, a place in the endless order of documents (slot // documents is the
    epoch), and `offset` in that document (the next token, or the next sentence for sentence pairs)."""

    slot: int = 0
    offset: int = 0


class Order:
    """The endless order of a view's documents: a new one each epoch, found at any place without going there."""

    def __init__(self, seed: int, documents: int) -> None:
        if documents == 0:
            raise DataError("there is no document to train on")
        self.seed, self.documents = seed, documents

    def __getitem__(self, slot: int) -> tuple[int, int]:
        """(document, epoch) at a place of the order."""
        epoch, place = divmod(slot, self.documents)
        return draw.shuffled((self.seed, ORDER, epoch), self.documents, place), epoch


@dataclass(frozen=True)
class Setting:
    """What an objective is told of a run: the `tokenizer`, which names the special ids; `text`, the start token of
    decoders; `context`, the tokens of a row; `seed`; whether rows hold several documents that see each other (`mixed`);
    the weight of the z-loss; how languages are drawn (`sampling`), the `rows` of a step, and the
    `structure` of the network that the rows are for, where it can be one of several."""

    tokenizer: Any
    text: Text
    context: int
    seed: int
    mixed: bool = False
    z_loss: float = 0.0
    sampling: Sampling = field(default_factory=Sampling)
    rows: int = 1
    structure: str = "encoder-decoder"


@dataclass
class Loss:
    """Of each named part of an objective: `sums` over its targets in nats, fp32, and `counts` of targets. `metrics`
    are sums over the same targets, for information. What is minimised is the sum of `sums[k] / counts[k]`, each times
    its weight in `weights` (1 where left out)."""

    sums: dict[str, Tensor]
    counts: dict[str, int]
    metrics: dict[str, float] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)

    def total(self, counts: Mapping[str, int] | None = None) -> Tensor:
        """The loss, each part divided by `counts` (by its own count if not given): pass the counts of a whole step
        to add up gradients over micro-batches exactly."""
        counts = self.counts if counts is None else counts
        return torch.stack([self.weights.get(k, 1.0) * self.sums[k] / max(counts[k], 1) for k in self.sums]).sum()


Make = Callable[[], Example]
When = Callable[[Any], bool]


def always(spec: declared.Objective) -> bool:
    """Whether a class that runs all values of a declaration runs this one."""
    return True


_runnable: dict[type[declared.Objective], list[tuple[When, type[Objective]]]] = {}


def runnable(spec: declared.Objective) -> type[Objective]:
    """The class that runs a declared objective. Raises UsageError if there is none."""
    for when, cls in _runnable.get(type(spec), []):
        if when(spec):
            return cls
    name = type(spec).__name__
    raise UsageError(
        f"no class runs the objective {name}; the file that declares it should hold one: "
        f"class Run{name}(stemma.objectives.base.Objective, of={name})"
    )


class Objective(ABC):
    """Examples of a view in a reproducible order, batches of them, and the loss of a model on a batch."""

    main: str = "token"  # the part whose nats are reported as the model's quality
    whole: bool = False  # whether its targets are the whole text, so that bits a byte of text mean something
    rows: int = 1  # rows of tokens in an example
    counts_after_forward: bool = False  # whether only the forward pass tells how many targets a batch has
    reads_attention: bool = False  # whether its loss looks into the attention of the last layer
    streamed: bool = False  # whether its rows can be windows of the streams of `spans`, of one language each
    structures: tuple[str, ...] = ("encoder", "decoder", "encoder-decoder")  # of the networks it can train
    roles: tuple[tuple[str, ...], ...] = ()  # of the special tokens it needs, each with what may stand in its stead

    def __init_subclass__(cls, *, of: type[declared.Objective] | None = None, when: When = always, **more: Any) -> None:
        """`of`: the declaration that the class runs; `when`: for which of its values, where there are two classes."""
        super().__init_subclass__(**more)
        if of is not None:
            _runnable.setdefault(of, []).append((when, cls))

    def __init__(self, spec: Any, setting: Setting) -> None:
        if setting.context < 8:
            raise UsageError(f"a row must hold at least 8 tokens to train on, not {setting.context}")
        self.spec = spec
        self.setting, self.tokenizer, self.context = setting, setting.tokenizer, setting.context
        self.seed, self.mixed = setting.seed, setting.mixed
        tokenizer = setting.tokenizer
        self.special: Ints = np.unique(np.asarray(list(tokenizer.special_ids), dtype=np.int64))
        self.plain: Ints = np.setdiff1d(np.arange(tokenizer.vocab_size, dtype=np.int64), self.special)

    @classmethod
    def tokens(cls, spec: Any, text: Text) -> tuple[str, ...]:
        """Names of special tokens that a tokenizer needs for this, beside those of `text` by role and its blanks."""
        return ()

    @classmethod
    def needs(cls, spec: Any, text: Text) -> tuple[tuple[str, ...], ...]:
        """The `roles` that a tokenizer needs for this, and ("sentinels",) where it needs those."""
        return cls.roles

    @classmethod
    def incompatible_reason(cls, spec: Any, arch: Arch) -> str | None:
        """Why a network of this design cannot be trained on `spec`; None if it can."""
        if arch.structure in cls.structures:
            return None
        return (
            f"{type(spec).__name__} trains networks of structure {' or '.join(cls.structures)}, and this one is of "
            f"structure {arch.structure}"
        )

    @classmethod
    def teacher_mismatch(cls, spec: Any, student: tuple[Arch, Dims], teacher: tuple[Arch, Dims]) -> str | None:
        """Why a network of one design cannot learn `spec` from one of another; None if it can."""
        return None

    def tie(self, model: Model, nets: Nets) -> None:
        """Before training, share parameters of the model with its nets, where the objective does so."""
        return

    def untie(self, model: Model, nets: Nets) -> None:
        """After training, make the model independent of its nets again."""
        return

    @abstractmethod
    def plan(self, view: View, cursor: Cursor = Cursor(), once: bool = False) -> Iterator[tuple[Make, Cursor]]:
        """Examples from `cursor` on, each still to be made, with the cursor that follows it. Whoever wants only some of
        them (one process of several) makes only those. Without end, epoch after epoch; with `once`, to the end of the
        epoch, the last row padded. Raises DataError for a view without documents."""

    @abstractmethod
    def collate(self, examples: Sequence[Example]) -> Batch:
        """A batch of rows of `context` tokens."""

    @abstractmethod
    def loss(self, model: Model, batch: Batch, nets: Nets = ALONE) -> Loss:
        """The loss of `model` and its nets on `batch`; only hidden states of targets reach the vocabulary matrix."""

    def examples(self, view: View, cursor: Cursor = Cursor(), once: bool = False) -> Iterator[tuple[Example, Cursor]]:
        """The examples of `plan`, made."""
        for make, follow in self.plan(view, cursor, once):
            yield make(), follow

    def example_batch(self, view: View, rows: int) -> Batch:
        """A batch of the first `rows` examples of a view."""
        return self.collate([example for example, _ in itertools.islice(self.examples(view), rows)])

    def counts(self, batch: Batch) -> dict[str, int]:
        """Targets of each part in `batch`, known before the model runs."""
        return {self.main: len(batch["targets"])}

    def tokens_without_target(self, view: View) -> int:
        """Of an objective whose targets are the whole text: how many of its tokens no target stands for."""
        return 0

    def order(self, view: View, once: bool = False) -> Order | Mixed:
        """The documents of `view`, epoch after epoch, or as a mixture that the text or the recipe declares; with
        `once`, each of them once, however they are mixed."""
        from stemma.objectives.languages import mixed

        if once:
            return Order(self.seed, len(view))
        return mixed(view, self.seed, self.setting.sampling) or Order(self.seed, len(view))

    def spans(
        self, reader: Reader, view: View, cursor: Cursor, size: int, stride: int
    ) -> Iterator[tuple[Span, Cursor]]:
        """Stretches of the stream as in `Reader.spans`; where the recipe wants rows of one language, each of one."""
        from stemma.objectives.languages import Streams, apart

        if reader.once or not apart(view, self.setting.sampling):
            return reader.spans(cursor, size, stride)
        return Streams(self.setting, view, reader.length, size, stride).spans(cursor)

    def epochs(self, view: Any, cursor: Cursor) -> int:
        """How many times the text has been read, on average."""
        from stemma.objectives.languages import apart

        if self.streamed and apart(view, self.setting.sampling):
            return int(cursor.slot * self.context // max(1, view.tokens_total))
        return cursor.slot // len(view)

    def need(self, *roles: str) -> int:
        """The id of the first of the `roles` ("mask", "eos") that the tokenizer has. Raises UsageError without."""
        for role in roles:
            found = getattr(self.tokenizer, f"{role}_id")
            if found is not None:
                return int(found)
        raise UsageError(
            f"this objective needs a {roles[0]} token, and the tokenizer has none; one trained for the run has it"
        )

    @property
    def padding(self) -> int:
        """An id for places that hold no token (never seen, never a target)."""
        return int(self.tokenizer.pad_id) if self.tokenizer.pad_id is not None else 0

    def token_loss(self, model: Model, hidden: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy in nats summed over the targets of `batch`, fp32; `hidden` is B T D. In training with the
        z-loss, if the recipe has one."""
        return token_loss(model, hidden, batch, self.setting.z_loss if model.training else 0.0)


# purposes, so that no two draws share a key
ORDER, MASK, FORCE, PAIR, SPAN = range(1, 6)
PERMUTE, PACK, TWIN = range(31, 34)
BLANK, INFILL = range(60, 62)
SAMPLE = 20
CUT, KIND, NOISE, RUN, SHUFFLE = range(6, 11)


# ---------------------------------------------------------------- windows


class Part(NamedTuple):
    """`tokens` of a document from `start` on, as a row holds them."""

    document: int
    epoch: int
    start: int
    tokens: int


class Span(NamedTuple):
    """A stretch of the stream: its parts, how many tokens they are, and where it begins."""

    parts: list[Part]
    size: int
    at: Cursor

    @property
    def key(self) -> tuple[int, int, int]:
        """(document, epoch, offset) of the first token: what draws for the whole stretch depend on."""
        return self.parts[0][:3]


class Window(NamedTuple):
    """`values` (K N): aligned rows of a stretch of the stream; `documents` (N): 0, 1, ... by document, -1 for padding;
    `positions` (N): from 0 in each document; `langs` (N): the number of each one's language, 0 where none are told."""

    values: Ints
    documents: Ints
    positions: Ints
    langs: Ints


class Reader:
    """The documents of a view in order, as `piece(document, epoch)` writes them (K x tokens), of which `length`
    tells the number of tokens (or what else an offset counts) without writing them. `langs`: the number of each
    document's language, for a model that is told."""

    def __init__(
        self,
        order: Order | Mixed,
        length: Callable[[int], int],
        piece: Callable[[int, int], Ints],
        once: bool,
        langs: Ints | None = None,
    ) -> None:
        self.order, self.length, self.piece, self.once, self.langs = order, length, piece, once, langs
        self._pieces: dict[tuple[int, int], Ints] = {}

    def settle(self, at: Cursor) -> Cursor | None:
        """`at`, or the first token after it if it stands at an end; None at the end of the epoch if `once`."""
        empty = 0
        while True:
            if self.once and at.slot >= self.order.documents:
                return None
            if at.offset < self.length(self.order[at.slot][0]):
                return at
            at = Cursor(at.slot + 1)
            empty += 1
            if empty > self.order.documents + 1:
                raise DataError("there is no token to train on: every document is empty")

    def read(self, document: int, epoch: int) -> Ints:
        """The whole piece of a document."""
        key = (document, epoch)
        if key not in self._pieces:
            if len(self._pieces) >= 8:
                self._pieces.pop(next(iter(self._pieces)))
            self._pieces[key] = self.piece(document, epoch)
        return self._pieces[key]

    def spans(self, cursor: Cursor, size: int, stride: int) -> Iterator[tuple[Span, Cursor]]:
        """Stretches of `size` tokens, one every `stride` (size or size - 1), each with the cursor of the next."""
        here = self.settle(cursor)
        while here is not None:
            parts: list[Part] = []
            fill, start = 0, here
            at: Cursor | None = here
            follow: Cursor | None = None
            while at is not None and fill < size:
                document, epoch = self.order[at.slot]
                take = min(size - fill, self.length(document) - at.offset)
                parts.append(Part(document, epoch, at.offset, take))
                if fill <= stride < fill + take:
                    follow = Cursor(at.slot, at.offset + stride - fill)
                fill += take
                at = self.settle(Cursor(at.slot, at.offset + take))
            last = at if at is not None else Cursor(self.order.documents)
            yield Span(parts, fill, start), follow or last
            here = self.settle(follow or last)

    def window(self, span: Span, size: int, padding: Sequence[int]) -> Window:
        """The tokens of a stretch in a row of `size`."""
        values = np.repeat(np.asarray(padding, dtype=np.int64)[:, None], size, 1)
        documents = np.full(size, OUTSIDE, dtype=np.int64)
        positions, langs = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.int64)
        fill = 0
        for i, part in enumerate(span.parts):
            here = slice(fill, fill + part.tokens)
            values[:, here] = self.read(part.document, part.epoch)[:, part.start : part.start + part.tokens]
            documents[here] = i
            positions[here] = np.arange(part.tokens)
            if self.langs is not None:
                langs[here] = self.langs[part.document]
            fill += part.tokens
        return Window(values, documents, positions, langs)


# ---------------------------------------------------------------- batches


def stack(examples: Sequence[Example], *names: str) -> Batch:
    """The named arrays of all examples, as B T tensors."""
    return {name: torch.from_numpy(np.stack([e[name] for e in examples])) for name in names}


def targets(labels: Tensor) -> Batch:
    """`targets` (N) and `where` (N), their places in the flattened batch; without `where` if every place is one.

    `labels` (B T) holds IGNORED where there is no target.
    """
    flat = labels.flatten()
    where = (flat != IGNORED).nonzero().squeeze(1)
    return {"targets": flat} if len(where) == len(flat) else {"targets": flat[where], "where": where}


def several(examples: Sequence[Example], name: str = "documents") -> bool:
    """Whether any row holds more than one document."""
    return any(int(e[name].max()) > 0 for e in examples)


def layout(model: Model, batch: Batch, positions: str = "position_ids") -> Tensor | None:
    """The positions to give to `model`: None where it knows only distances, which documents do not change."""
    scheme = model.arch.position
    given = batch.get(positions)
    if given is None or isinstance(scheme, (Rotary, Buckets)):
        return None
    if isinstance(scheme, Disentangled) and not isinstance(model.arch.heads.lm, EMDHead):
        return None
    if isinstance(scheme, Learned) and scheme.padding is not None:
        return given + scheme.padding + 1
    if isinstance(scheme, (BlankLearned, BlankRotary)):  # no token fills a blank
        return torch.stack([given, torch.zeros_like(given)], -1)
    return given
