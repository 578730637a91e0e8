"""Sessions whose prompts are read in pieces, so that other rows' tokens can go on meanwhile."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stemma import executor
from stemma.decoding.inputs import language_ids, pad
from stemma.decoding.session import Room, Session
from stemma.errors import UsageError
from stemma.nn import parts
from stemma.nn.cache import Cache
from stemma.nn.inputs import Inputs
from stemma.nn.masks import layer_mask
from stemma.nn.model import Model
from stemma.nn.pages import PagedCache
from stemma.nn.pool import PageRow, Pages


def in_pieces(model: Model) -> bool:
    """Whether reading a prompt in pieces equals reading it whole: tokens see only tokens before them, and there is no
    encoder."""
    masks = [layer_mask(model.arch.mask, i) for i in range(model.dims.layers)]
    return model.arch.structure == "decoder" and all(isinstance(m, parts.Causal | parts.Sliding) for m in masks)


def paged(
    model: Model, rows: int, chunk: int, tokens: int | None = None, dtype: torch.dtype | None = None
) -> Pages | None:
    """Pages for up to `rows` rows of a model at once, `chunk` tokens of a prompt being read together; None where its
    cache cannot have pages. `tokens`: of all rows; left out, the model's context for each row, in at most 4 GiB, or
    half of the free memory of an accelerator. `dtype`: of keys and values, where it is not the model's."""
    if not in_pieces(model) or model.ahead:
        return None
    dims = model.dims
    if tokens is None:
        room = 2**32 if model.device.type == "cpu" else torch.cuda.mem_get_info(model.device)[0] // 2
        token = 2 * dims.layers * dims.kv * dims.width * (dtype or model.dtype).itemsize
        tokens = max(dims.context, min(rows * dims.context, room // token))
    return Pages(model.arch, dims.layers, tokens, rows=rows, chunk=chunk, dtype=dtype)


class ChunkedSession(Session):
    """Rows of a decoder (see `in_pieces`). `opened` reads nothing yet; then `go_on` until it returns True, and
    `find_executor` where an executor is to compute the steps. With `pages`
    its cache has pages of them, and goes on behind what they know of the prompts."""

    pages: Pages | None = None
    of_rows: Sequence[PageRow] | None = None  # made before: where not, they are made here
    at: list[int]  # tokens of each text that were read
    last: list[Tensor]  # of each row, the hidden state (D) of the last token read, or by an executor its logits (V)
    reader: executor.Executor | None  # reads the prompts, where the model has one that does

    @classmethod
    def opened(
        cls,
        model: Model,
        prompts: Sequence[Sequence[int]],
        room: Room = 0,
        languages: Sequence[int | None] | None = None,
        pages: Pages | None = None,
        of_rows: Sequence[PageRow] | None = None,
    ) -> ChunkedSession:
        """A session whose prompts are still to be read; `of_rows`: what `pages` opened for them. Raises UsageError as a
        session does."""
        new = cls.__new__(cls)
        new.pages, new.of_rows = pages, of_rows
        new.prepare(model, prompts, room, languages, None)
        new.executor = None
        new.open()
        return new

    def read(self, prompts: Sequence[Sequence[int]]) -> None:
        self.open()
        while not self.go_on(len(self.texts) * max(len(t) for t in self.texts)):
            pass

    def open(self) -> None:
        """Make the cache, and see what of the texts it holds already."""
        rows = len(self.texts)
        self.last = [torch.empty(0)] * rows
        found = executor.of(self.model)
        reads = isinstance(found, executor.Executor) and found.reads and executor.usable()
        self.reader = found if isinstance(found, executor.Executor) and reads else None
        if self.pages is None:
            even = len({len(t) for t in self.texts}) == 1
            self.cache = Cache(self.model.arch, self.model.dims.layers, rows, self._capacity(), even)
            self.at = [0] * rows
            return
        opened: Sequence[PageRow | None] = self.of_rows or [
            self.pages.open(t, n) for t, n in zip(self.texts, self.room, strict=True)
        ]
        mine = [row for row in opened if row is not None]
        if len(mine) < rows:
            raise UsageError(f"the cache has no room for {rows} rows now")
        for row in mine:
            self.pages.match(row)
        self.cache = PagedCache(self.pages, mine)
        self.at = [row.length for row in mine]
        self.pages.found += sum(self.at)

    @property
    def unread(self) -> int:
        """Tokens that are still to be read, of all rows."""
        return sum(len(t) - at for t, at in zip(self.texts, self.at, strict=True))

    def go_on(self, tokens: int) -> bool:
        """Read about `tokens` more, of all texts together. Returns whether all are read; then `logits` are there."""
        width = max(1, tokens // len(self.texts))
        pieces = [t[at : at + width] for t, at in zip(self.texts, self.at, strict=True)]
        if self.reader is not None:
            ends = [
                i for i, (t, at, p) in enumerate(zip(self.texts, self.at, pieces, strict=True)) if len(t) == at + len(p)
            ]
            ends = [i for i in ends if pieces[i]]
            found = self.reader.read(pieces, self._range, self.cache, ends, self._language_numbers())
            for i, logits in zip(ends, found, strict=True):
                self.last[i] = logits
            self._note(pieces)
            if self.unread:
                return False
            self.logits, self.last = self._finite(torch.stack(self.last)), []
            return True
        ids, real = pad(pieces, self.device)
        order = torch.tensor(self.at, device=self.device)[:, None] + torch.arange(ids.shape[1], device=self.device)
        inputs = Inputs(
            ids,
            None if len({len(p) for p in pieces}) == 1 else real,
            position_ids=order.minimum(self.lengths[:, None] - 1) + self._position.first,  # padding has a place too
            langs=language_ids(ids, self.languages),
            order=order,
            cache=self.cache,
        )
        with executor.fast_linear():
            hidden = self.model.decode(inputs)
        for row, piece in enumerate(pieces):
            if piece:
                self.last[row] = hidden[row, len(piece) - 1]
        self._note(pieces)
        if self.unread:
            return False
        with executor.fast_linear():
            self.logits = self._head(torch.stack(self.last))
        self.last = []
        return True

    def _note(self, pieces: Sequence[Sequence[int]]) -> None:
        """These were read."""
        for row, piece in enumerate(pieces):
            if piece:
                self.at[row] += len(piece)
                if isinstance(self.cache, PagedCache):
                    self.cache.pages.keep(self.cache.of_rows[row], self.texts[row])

    def keep(self, rows: Sequence[int]) -> None:
        if not self.last:
            return super().keep(rows)
        self.cache.keep(torch.tensor(list(rows), dtype=torch.int64, device=self.device))
        self.texts, self.at = [self.texts[i] for i in rows], [self.at[i] for i in rows]
        self.last = [self.last[i] for i in rows]
        self.lengths = self.lengths[list(rows)]
        self.languages = None if self.languages is None else self.languages[list(rows)]

    def leave(self, row: int, tokens: Sequence[int], whole: bool = True) -> None:
        """Pages of a text that was written stay to be found; those of an error are cleared."""
        if isinstance(self.cache, PagedCache):
            if whole:
                self.cache.pages.keep(self.cache.of_rows[row], tokens)
            else:
                self.cache.clear(row)

    def close(self, whole: bool = True) -> None:
        if isinstance(self.cache, PagedCache):
            for row in range(self.cache.rows if not whole else 0):
                self.cache.clear(row)
            self.cache.keep(torch.zeros(0, dtype=torch.int64))

    def undo(self) -> bool:
        if not isinstance(self.cache, PagedCache):
            return False
        for row, length in zip(self.cache.of_rows, self.lengths.tolist(), strict=True):
            row.length = length
        return True
