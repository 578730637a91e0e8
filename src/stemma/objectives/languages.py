"""Text of several languages: how often each is drawn, rows of one language, and the language ids of a model.

The languages of a row follow from its number alone (`data.mixture`), as everything does: XLM draws a language for each
batch (Lample & Conneau 2019, arXiv:1901.07291, section 3.5), mT5 and XLM-R for each row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from stemma.data.mixture import Mixed, Mixture, member, tempered
from stemma.declare.recipes import Sampling
from stemma.errors import DataError
from stemma.objectives.packing import Chunk, Cursor, Ints, Slice
from stemma.objectives.setting import Setting

UNKNOWN = "und"  # the code of a language that nobody named (BCP 47)


class Component(NamedTuple):
    """Documents (positions in a view) that are drawn with a weight, and how often they may be read."""

    documents: Ints
    weight: float
    epochs: float | None


def numbered(view: Any) -> Ints:
    """int64[documents]: the number of each one's language in the text."""
    found = getattr(view, "language_ids", None)
    return np.zeros(len(view), dtype=np.int64) if found is None else np.asarray(found, dtype=np.int64)


def numbers(view: Any, languages: Sequence[str]) -> Ints | None:
    """int64[documents]: the number of each one's language among those of a model; None for a model without languages.
    Raises DataError for a language that the model does not have."""
    if not languages:
        return None
    names = [name or UNKNOWN for name in getattr(view, "languages", ("",))]
    table = {name: i for i, name in enumerate(languages)}
    if len(languages) == 1 and names == [UNKNOWN]:
        table[UNKNOWN] = 0  # a text that says nothing is in the model's only language
    ids = numbered(view)
    for i in np.unique(ids):
        if names[i] not in table:
            raise DataError(f"the text has the language {names[i]!r}, and the model has {', '.join(languages)}")
    return np.asarray([table.get(name, 0) for name in names], dtype=np.int64)[ids]


def by_part(view: Any, tokens: bool = False) -> list[Component]:
    """The sources of a mixture that the text was declared as; [] where it is none. Their weights are shares of
    documents; with `tokens`, the declared ones are of tokens, and divided by the mean length of a document. Raises
    DataError."""
    parts = getattr(view, "parts", ())
    found = []
    for i, part in enumerate(parts):
        own = np.flatnonzero(np.asarray(view.part_ids) == i)
        if not len(own):
            raise DataError(f"{part.name} has no document left to train on: all of them are held out")
        weight = part.weight if part.weight is not None else float(len(own))
        if tokens and part.weight is not None:
            weight /= max(float(np.mean(view.lengths[own])), 1.0)
        found.append(Component(own, weight, part.epochs))
    return found


def token_shares(view: Any, sampling: Sampling) -> list[float]:
    """The share of the tokens of training that each source of a mixture has, limits aside; [] where a text is none."""
    if apart(view, sampling):  # weights are of rows
        sizes = [part.weight for part in by_part(view)]
    else:
        parts = by_part(view, sampling.weights == "tokens")
        sizes = [part.weight * float(np.mean(view.lengths[part.documents])) for part in parts]
    return [size / sum(sizes) for size in sizes]


def by_language(view: Any, sampling: Sampling, within: Ints | None = None) -> list[Component]:
    """The languages of a view (of the documents `within`) as the recipe draws them."""
    ids = numbered(view)
    chosen = np.arange(len(view)) if within is None else within
    members = [chosen[ids[chosen] == i] for i in np.unique(ids[chosen])]
    shares = tempered([len(m) for m in members], sampling.alpha)
    return [Component(m, w, sampling.epochs or None) for m, w in zip(members, shares, strict=True)]


def mixed(view: Any, seed: int, sampling: Sampling) -> Mixed | None:
    """The order of documents that a mixture gives: what the text declares, else the recipe; None without either."""
    natural = sampling.alpha == 1 and not sampling.epochs
    several = len(np.unique(numbered(view))) > 1  # of one language there is nothing to choose
    found = by_part(view, sampling.weights == "tokens") or (
        by_language(view, sampling) if several and not natural else []
    )
    if len(found) < 2 and all(c.epochs is None for c in found):
        return None
    return Mixed(seed, [c.documents for c in found], [c.weight for c in found], [c.epochs for c in found])


def apart(view: Any, sampling: Sampling) -> bool:
    """Whether rows are to be of one language each."""
    return sampling.unit != "document" and len(np.unique(numbered(view))) > 1


class Batches:
    """Which component each row of each batch is of, and which of that component's items: O(1) at any row.

    `sizes`: items of each component; `rows`: so many consecutive rows are of one component."""

    def __init__(
        self, seed: int, sizes: Sequence[int], weights: Sequence[float], epochs: Sequence[float | None], rows: int
    ) -> None:
        self.seed, self.sizes, self.rows = seed, sizes, rows
        limits = [
            None if e is None else max(1, round(e * n / rows)) for e, n in zip(epochs, sizes, strict=True)
        ]  # in batches
        self.mixture = Mixture(seed, weights, limits)

    def __getitem__(self, row: int) -> tuple[int, int, int]:
        """(component, item, epoch) of a row."""
        batch, place = divmod(row, self.rows)
        component, number = self.mixture[batch]
        item, epoch = member(self.seed, component, number * self.rows + place, self.sizes[component])
        return component, item, epoch


class Streams:
    """The text of each language as one stream, cut into windows of `size` tokens that begin every `stride`; a row is a
    window, each window once an epoch of its language. (XLM's released code cuts and shuffles its streams like that.)"""

    def __init__(self, setting: Setting, view: Any, length: Callable[[int], int], size: int, stride: int) -> None:
        sampling = setting.sampling
        parts = by_part(view)
        self.components = [
            Component(inner.documents, part.weight * inner.weight, part.epochs)
            for part in parts
            for inner in by_language(view, Sampling(), part.documents)
        ] or by_language(view, sampling)
        self.size, self.stride = size, stride
        self.ends = [np.cumsum([length(int(d)) for d in c.documents]) for c in self.components]
        windows = [max(1, -(-(int(e[-1]) - (size - stride)) // stride)) for e in self.ends]
        rows = setting.rows if sampling.unit == "batch" else 1
        self.batches = Batches(
            setting.seed, windows, [c.weight for c in self.components], [c.epochs for c in self.components], rows
        )

    def chunk(self, row: int) -> Chunk:
        """The window that a row holds."""
        component, window, epoch = self.batches[row]
        documents, ends = self.components[component].documents, self.ends[component]
        at, stop = window * self.stride, min(window * self.stride + self.size, int(ends[-1]))
        if at >= stop:
            raise DataError("there is no token to train on: every document of a language is empty")
        parts: list[Slice] = []
        begin = at
        k = int(np.searchsorted(ends, at, side="right"))
        while at < stop:
            start = at - (int(ends[k - 1]) if k else 0)
            take = min(stop, int(ends[k])) - at
            if take:
                parts.append(Slice(int(documents[k]), epoch, start, take))
            at, k = at + take, k + 1
        return Chunk(parts, stop - begin, Cursor(row))

    def chunks(self, cursor: Cursor) -> Iterator[tuple[Chunk, Cursor]]:
        """The windows of the rows from `cursor` on, whose slot counts rows."""
        row = cursor.slot
        while True:
            yield self.chunk(row), Cursor(row + 1)
            row += 1
