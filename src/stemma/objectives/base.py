"""What all objectives share: examples in a reproducible order, batches, and the loss at a vocabulary."""

from __future__ import annotations

import importlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stemma.data.mixture import Mixed
from stemma.declare import objectives as declared
from stemma.declare.family import Text
from stemma.errors import UsageError
from stemma.nn.model import IGNORED, Model
from stemma.nn.parts import (
    ALiBi,
    Arch,
    BlankLearned,
    BlankRotary,
    Buckets,
    Dims,
    Disentangled,
    EMDHead,
    Learned,
    Memory,
    Rotary,
)
from stemma.objectives.languages import Streams, apart, mixed
from stemma.objectives.packing import PAD_DOCUMENT, START, Chunk, Cursor, Ints, Order, PackedRow, Packer, Slice, View
from stemma.objectives.setting import Setting
from stemma.objectives.vocabulary import token_loss

__all__ = [
    "IGNORED",
    "NO_NETS",
    "PAD_DOCUMENT",
    "START",
    "Batch",
    "Chunk",
    "Cursor",
    "Example",
    "Ints",
    "LazyExamples",
    "Loss",
    "MakeExample",
    "Nets",
    "Objective",
    "Order",
    "PackedRow",
    "Packer",
    "Setting",
    "Slice",
    "View",
    "alone",
    "means",
    "position_ids",
    "runnable",
    "several",
    "stack",
    "targets",
]

Example = dict[str, Any]  # arrays and numbers of one row
Batch = dict[str, Tensor]  # int64 tensors of one micro-batch
Nets = Mapping[str, Model]  # what stands beside the model in a step, by role: a generator, a teacher
NO_NETS: Nets = {}


@dataclass
class Loss:
    """The named parts of a loss: `sums` over targets in nats, fp32, and the `counts` of targets. `metrics` are sums
    over the same targets, for reports. What is minimised: the sum over k of `weights[k] * sums[k] / counts[k]`; a
    weight left out is 1. `over`: what a metric is a mean over, where not the main targets. `answers`: of
    each example its number in the text and what the model said of it, for `Objective.measured`."""

    sums: dict[str, Tensor]
    counts: dict[str, int]
    metrics: dict[str, float] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    answers: list[tuple[int, Any]] = field(default_factory=list)
    over: dict[str, float] = field(default_factory=dict)

    def total(self, counts: Mapping[str, int] | None = None) -> Tensor:
        """The loss. `counts`: divide by these (the counts of a whole step, so that gradients of its micro-batches add
        up exactly); left out, by its own."""
        counts = self.counts if counts is None else counts
        return torch.stack([self.weights.get(k, 1.0) * self.sums[k] / max(counts[k], 1) for k in self.sums]).sum()

    @property
    def recorded(self) -> dict[str, float]:
        """The metrics, and as `/NAME` what each of `over` is a mean over: numbers that add up over batches and ranks,
        for `means`."""
        return self.metrics | {f"/{k}": n for k, n in self.over.items()}


def means(recorded: Mapping[str, float], targets: float) -> dict[str, float]:
    """The metrics of `Loss.recorded`, added up over batches with so many main targets, as means; those of nothing are
    left out."""
    sizes = {k: recorded.get(f"/{k}", targets) for k in recorded if not k.startswith("/")}
    return {k: recorded[k] / n for k, n in sizes.items() if n}


MakeExample = Callable[[], Example]
LazyExamples = Iterator[tuple[MakeExample, Cursor]]  # each with the cursor that follows it
When = Callable[[Any], bool]


def always(spec: declared.Objective) -> bool:
    """Whether a class that runs all values of a declaration runs this one."""
    return True


_runnable: dict[type[declared.Objective], list[tuple[When, type[Objective]]]] = {}


def runnable(spec: declared.Objective) -> type[Objective]:
    """The class that runs a declared objective. Raises UsageError if there is none."""
    if type(spec) not in _runnable and spec.module:
        importlib.import_module(spec.module, "stemma")
    for when, cls in _runnable.get(type(spec), []):
        if when(spec):
            return cls
    name = type(spec).__name__
    raise UsageError(
        f"no class runs the objective {name}; the file that declares it should hold one: "
        f"class Run{name}(stemma.objectives.base.Objective, of={name})"
    )


class Objective(ABC):
    """Runs a declared objective: makes examples of a text in a reproducible order, batches them, computes the loss."""

    main: str = "token"  # the part of the loss that reports show as quality
    predicts_all: bool = False  # whether every token is a target; then bits per byte are reported
    rows: int = 1  # rows of tokens in an example
    counts_after_forward: bool = False  # whether only the forward pass tells how many targets a batch has
    reads_attention: bool = False  # whether its loss reads the attention of the last layer
    of_rows: bool = False  # whether it learns the rows of a task (`stemma.tasks`), not text
    in_bits: bool = True  # whether bits say how good it is
    streamed: bool = False  # whether its rows can be cut from one stream a language (`chunks`)
    records: bool = False  # whether the metrics of its loss are recorded in training: means over the main targets
    structures: tuple[str, ...] = ("encoder", "decoder", "encoder-decoder")  # of networks that it can train
    roles: tuple[tuple[str, ...], ...] = ()  # of special tokens that it needs, each with its substitutes

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
        """Names of special tokens that `spec` needs and that are no role of `text`."""
        return ()

    @classmethod
    def required_roles(cls, spec: Any, text: Text) -> tuple[tuple[str, ...], ...]:
        """The `roles` that a tokenizer needs for `spec`, and ("sentinels",) where it needs those."""
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
    def lazy_examples(self, view: View, cursor: Cursor = START, once: bool = False) -> LazyExamples:
        """Functions that make the examples from `cursor` on, each with the next cursor; a rank calls only those of its
        own rows. Endless; with `once`, to the end of the epoch, the last row padded. Raises DataError for a view
        without documents."""

    @abstractmethod
    def collate(self, examples: Sequence[Example]) -> Batch:
        """A batch of rows of `context` tokens."""

    @abstractmethod
    def loss(self, model: Model, batch: Batch, nets: Nets = NO_NETS) -> Loss:
        """The loss of `model` and its nets on `batch`."""

    def examples(self, view: View, cursor: Cursor = START, once: bool = False) -> Iterator[tuple[Example, Cursor]]:
        """As `lazy_examples`, with every example made."""
        for make, follow in self.lazy_examples(view, cursor, once):
            yield make(), follow

    def example_batch(self, view: View, rows: int) -> Batch:
        """A batch of the first `rows` examples of a view."""
        return self.collate([example for example, _ in itertools.islice(self.examples(view), rows)])

    def counts(self, batch: Batch) -> dict[str, int]:
        """Targets of each part in `batch`, known before the model runs."""
        return {self.main: len(batch["targets"])}

    def examples_of_step(self, plan: Any) -> int:
        """Examples of a full step."""
        return max(1, round(plan.rows / self.rows))

    def source(self, plan: Any, view: Any, folder: Path | None) -> Any:
        """The batches of a run (a `train.source.Source`) where they are not rows of its text; None where they are.
        `folder`: of the run, where there is one."""
        return None

    def kind(self) -> Any:
        """What a run adds to its life (a subclass of `train.run.Pretraining`); None for what pretraining adds."""
        return None

    def measured(self, view: Any, answers: Sequence[tuple[int, Any]]) -> dict[str, float]:
        """How good the `answers` of an evaluation on `view` are (see `Loss`), by the metrics of a task."""
        return {}

    def report(self, view: Any, answers: Sequence[tuple[int, Any]]) -> dict[str, Any]:
        """What a report shows of these answers beside the metrics, as JSON."""
        return {}

    def kept(self, model: Model, view: Any) -> declared.Objective:
        """The declaration as it is kept beside the finished `model`, which learnt from `view`: with what was measured
        of it."""
        found: declared.Objective = self.spec
        return found

    def remarks(self, view: Any, held: Any) -> list[str]:
        """Sentences on what is odd about the texts that are learnt from, and those held out."""
        return []

    def tokens_without_target(self, view: View) -> int:
        """With `predicts_all`: the number of tokens of the text that are never a target."""
        return 0

    def order(self, view: View, once: bool = False) -> Order | Mixed:
        """The order of documents: by epochs, or the mixture that the text or the recipe declares; with `once`, each
        document once, without a mixture."""
        if once:
            return Order(self.seed, len(view))
        return mixed(view, self.seed, self.setting.sampling) or Order(self.seed, len(view))

    def chunks(
        self, packer: Packer, view: View, cursor: Cursor, size: int, stride: int
    ) -> Iterator[tuple[Chunk, Cursor]]:
        """As `Packer.chunks`; where the recipe wants rows of one language, chunks of one language each."""
        if packer.once or not apart(view, self.setting.sampling):
            return packer.chunks(cursor, size, stride)
        return Streams(self.setting, view, packer.length, size, stride).chunks(cursor)

    def size(self, view: Any) -> int:
        """The tokens of an example."""
        return self.rows * self.context

    def epochs(self, view: Any, cursor: Cursor) -> float:
        """How many times the text has been read, on average."""
        if self.streamed and apart(view, self.setting.sampling):
            return float(cursor.slot * self.context / max(1, view.tokens_total))
        return cursor.slot / len(view)

    def special_id(self, *roles: str) -> int:
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
        """The id of padding (never seen, never a target)."""
        return int(self.tokenizer.pad_id) if self.tokenizer.pad_id is not None else 0

    def token_loss(self, model: Model, hidden: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy in nats, summed over the targets of `batch`, fp32; in training plus the recipe's z-loss.
        `hidden`: B T D."""
        return token_loss(model, hidden, batch, self.setting.z_loss if model.training else 0.0)


# ---------------------------------------------------------------- batches


def stack(examples: Sequence[Example], *names: str) -> Batch:
    """The named arrays of all examples, as B T tensors."""
    return {name: torch.from_numpy(np.stack([e[name] for e in examples])) for name in names}


def targets(labels: Tensor) -> Batch:
    """`targets` (N) and their indices `where` (N) in the flattened batch; no `where` if every token is a target.

    `labels`: B T, IGNORED where there is no target.
    """
    flat = labels.flatten()
    where = (flat != IGNORED).nonzero().squeeze(1)
    return {"targets": flat} if len(where) == len(flat) else {"targets": flat[where], "where": where}


def several(examples: Sequence[Example], name: str = "documents") -> bool:
    """Whether any row holds more than one document."""
    return any(int(e[name].max()) > 0 for e in examples)


def alone(model: Model, batch: Batch) -> tuple[tuple[int, ...], ...] | None:
    """`contexts` by which a mask with memory reads each row at once and by itself; None for other masks."""
    return ((),) * len(batch["input_ids"]) if isinstance(model.arch.mask, Memory) else None


def position_ids(model: Model, batch: Batch, positions: str = "position_ids", *, always: bool = False) -> Tensor | None:
    """`position_ids` for `model`; None where it uses only distances, which do not change from document to document;
    not so with `always`, for documents that go on from another."""
    scheme = model.arch.position
    given = batch.get(positions)
    if given is None or (isinstance(scheme, (Rotary, Buckets, ALiBi)) and not always):
        return None
    if isinstance(scheme, Disentangled) and not scheme.absolute and not isinstance(model.arch.heads.lm, EMDHead):
        return None
    if isinstance(scheme, Learned) and scheme.padding is not None:
        return given + scheme.padding + 1
    if isinstance(scheme, (BlankLearned, BlankRotary)):  # no token fills a blank
        return torch.stack([given, torch.zeros_like(given)], -1)
    return given
