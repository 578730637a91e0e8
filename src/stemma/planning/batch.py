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
from stemma.train.plans import default_data
from stemma.train.source import objective_of

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

    def encode(self, text: str, add_special: bool = True) -> list[int]:
        """One word for each character."""
        return [len(self.ids)] * len(text)

    encode_continuation = encode

    def id(self, name: str) -> int | None:
        return self.ids.get(name)

    def tokens(self, ids: Any) -> list[str]:
        """Names of special tokens; every other id is a whole word."""
        names = {i: name for name, i in self.ids.items()}
        return [names.get(int(i), f"▁w{int(i)}") for i in ids]

    def sentinel(self, k: int) -> int:
        return self.vocab_size - 1 - k


class Texts:
    """Random documents of several rows, so that most rows are full, and of sentences of an eighth of a row, but for one
    of more than a row; or single `sentences`. With several `languages` they are translations of each other."""

    def __init__(
        self,
        tokenizer: Words,
        context: int,
        documents: int = 64,
        languages: tuple[str, ...] = ("",),
        sentences: bool = False,
    ) -> None:
        self.count, self.sentence = documents, max(1, context // 8)
        self.size = max(8, context // 16 if sentences else 33 * context // 4)
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
        return "w" * self.size

    def closed(self, i: int) -> bool:
        return True

    def sentences(self, i: int) -> Any:
        starts = np.arange(0, self.size, self.sentence)
        return np.delete(starts, slice(8, 20))


def texts(plan: Plan, tokenizer: Words) -> Texts:
    """Random texts for a plan: of the languages that its model knows, or of two where it learns from parallel text;
    sentences where its objective asks for translations."""
    kind, *pair = default_data(plan).removeprefix("builtin:").split(":")
    languages = tuple(pair[0].split("-")) if pair else ("en", "de") if kind == "parallel" else ("",)
    translations = plan.objective.default_data.startswith("builtin:parallel")
    return Texts(tokenizer, plan.context, languages=plan.text.languages or languages, sentences=translations)


class Example:
    """Batches of a plan's objective as tensors on the meta device: of a few examples as `collate` makes them; of more
    in proportion.

    Vectors with one number for each example keep their values, since losses branch on them."""

    def __init__(self, plan: Plan) -> None:
        words = Words(plan.text, plan.dims.vocab)
        self.objective = objective_of(plan, words)
        stream = self.objective.examples(texts(plan, words))
        made = [example for example, _ in itertools.islice(stream, EXAMPLES)]
        self.made = self._sorted(made)
        self.many, self.twice = self.objective.collate(self.made), self.objective.collate(self.made * 2)
        self.rows = len(made) * self.objective.rows

    def _sorted(self, made: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rows of a kind together, so that few rows are of one kind; the fullest rows, and their kind, first."""
        kinds = [tuple(int(value) for value in one.values() if np.ndim(value) == 0) for one in made]
        sizes = [sum(tensor.numel() for tensor in self.objective.collate([one]).values()) for one in made]
        most = {kind: max(n for n, k in zip(sizes, kinds, strict=True) if k == kind) for kind in kinds}
        order = sorted(range(len(made)), key=lambda i: (-most[kinds[i]], kinds[i], -sizes[i]))
        return [made[i] for i in order]

    def batch(self, rows: int) -> Batch:
        """A batch of so many rows: any number up to `rows`, or a multiple of it."""
        if rows <= self.rows:
            made = self.made[: max(1, rows // self.objective.rows)]
            return {name: _meta(tensor, len(made)) for name, tensor in self.objective.collate(made).items()}
        return {name: self._more(name, tensor, rows) for name, tensor in self.many.items()}

    def _more(self, name: str, tensor: torch.Tensor, rows: int) -> torch.Tensor:
        """A tensor for more rows than were collated: axes that double with the examples count rows or targets."""
        sizes = zip(tensor.shape, self.twice[name].shape, strict=True)
        shape = [n if n == double else round(n * rows / self.rows) for n, double in sizes]
        if tuple(tensor.shape) == (len(self.made),):
            return with_values(tensor[torch.arange(shape[0]) % len(self.made)])
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


def _meta(tensor: torch.Tensor, examples: int) -> torch.Tensor:
    return with_values(tensor) if tuple(tensor.shape) == (examples,) else tensor.to("meta")
