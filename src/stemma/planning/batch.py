"""An example batch of a plan: its objective makes one of random texts, and other sizes follow from its shapes."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch

from stemma.declare.family import Text
from stemma.objectives import Batch
from stemma.planning.live import with_values
from stemma.train.config import Plan
from stemma.train.plans import suitable
from stemma.train.run import objective_of

ROLES = ("bos", "eos", "pad", "unk", "mask", "cls", "sep")
EXAMPLES = 16  # of which shapes are read


class Words:
    """A tokenizer that has the special tokens of a family, and ids for words instead of words."""

    def __init__(self, text: Text, vocab: int) -> None:
        self.kind, self.vocab_size, self.sentinels = text.tokenizer, vocab, text.sentinels
        names = list(dict.fromkeys(n for role in ROLES if (n := getattr(text, role)) is not None))
        names += [name for name in (*text.blanks, *text.extras, *text.infill) if name not in names]
        self.ids = {name: i for i, name in enumerate(names)}
        for role in ROLES:
            setattr(self, f"{role}_id", self.ids.get(getattr(text, role)))
        self.special_ids = [*range(len(names)), *range(vocab - text.sentinels, vocab)]

    def id(self, name: str) -> int | None:
        return self.ids.get(name)

    def tokens(self, ids: Any) -> list[str]:
        """Names of special tokens; every other id is a whole word."""
        names = {i: name for name, i in self.ids.items()}
        return [names.get(int(i), f"▁w{int(i)}") for i in ids]

    def sentinel(self, k: int) -> int:
        return self.vocab_size - 1 - k


class Texts:
    """Random documents of three quarters of a row, so that rows hold parts of several, as they mostly do. With several
    `languages`, documents are translations of each other in turn."""

    def __init__(self, tokenizer: Words, context: int, documents: int = 64, languages: tuple[str, ...] = ("",)) -> None:
        self.size, self.count = max(8, 3 * context // 4), documents
        self.low, self.high = len(tokenizer.ids), tokenizer.vocab_size - tokenizer.sentinels
        self.languages = languages
        self.language_ids = np.arange(documents) % len(languages)
        self.groups = np.arange(documents) // len(languages) if len(languages) > 1 else np.full(documents, -1)
        self.tokens_total = documents * self.size

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Any:
        return np.random.default_rng(i).integers(self.low, self.high, self.size)

    def text(self, i: int) -> str:
        return ""

    def sentences(self, i: int) -> Any:
        return np.arange(0, self.size, max(1, self.size // 6))


def texts(plan: Plan, tokenizer: Words) -> Texts:
    """Random texts for a plan: of the languages that its model knows, or of two where it learns from parallel text."""
    kind, *pair = suitable(plan).removeprefix("builtin:").split(":")
    languages = tuple(pair[0].split("-")) if pair else ("en", "de") if kind == "parallel" else ("",)
    return Texts(tokenizer, plan.context, languages=plan.text.languages or languages)


class Example:
    """Batches of a plan's objective, of any number of rows, as tensors on the meta device.

    `collate` is called for two numbers of examples: an axis that grows counts rows or targets, any other is a length.
    Vectors with one number for each example keep their values, since losses may branch on them."""

    def __init__(self, plan: Plan) -> None:
        words = Words(plan.text, plan.dims.vocab)
        self.objective = objective_of(plan, words)
        stream = self.objective.examples(texts(plan, words))
        made = [example for example, _ in itertools.islice(stream, EXAMPLES)]
        self.few, self.many = self.objective.collate(made[: len(made) // 2]), self.objective.collate(made)
        self.made, self.rows = len(made), len(made) * self.objective.rows

    def batch(self, rows: int) -> Batch:
        """A batch of so many rows."""
        return {name: self._sized(name, tensor, rows) for name, tensor in self.many.items()}

    def _sized(self, name: str, tensor: torch.Tensor, rows: int) -> torch.Tensor:
        small, shape = self.few.get(name), []
        for axis, size in enumerate(tensor.shape):
            before = small.shape[axis] if small is not None and small.ndim == tensor.ndim else size
            grows = 2 * size >= 3 * before
            shape.append(max(1, round(size * rows / self.rows)) if grows else max(size, before))
        if tuple(tensor.shape) == (self.made,):
            return with_values(tensor[torch.arange(shape[0]) % self.made])
        return torch.empty(shape, dtype=tensor.dtype, device="meta")

    @property
    def targets(self) -> float:
        """Targets of the language-model head, a row."""
        return self.objective.counts(self.many).get("token", 0) / self.rows

    @property
    def length(self) -> int:
        return int(self.many["input_ids"].shape[1])

    @property
    def decoder(self) -> float:
        """Tokens of the decoder for each of the encoder's; 0 without a decoder of its own."""
        own = self.many.get("decoder_input_ids")
        return 0.0 if own is None else float(own.numel() / self.many["input_ids"].numel())
