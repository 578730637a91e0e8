"""The memory of a paged cache: for each kind of layer a pool of pages, who holds which, and what they hold.

A page has `slots` tokens. Place p of a row is in page `table[p // slots]` of the row, slot `p % slots`; every layer of
a pool has a buffer of keys and one of values, `page head slot dim`. Full pages get a name, a hash of their tokens and
of everything before; a row that begins with the same tokens reads them instead of computing them. They stay after
their rows have left, until their place is needed: least recently used first.

Layers with a sliding window have a pool of their own, whose rows give back what lies behind the window.
"""

from __future__ import annotations

import hashlib
import mmap
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from stemma.errors import StemmaError, UsageError
from stemma.nn import parts
from stemma.nn.masks import layer_mask

SLOTS = 32  # tokens of a page
ZERO, BIN, FIRST = 0, 1, 2  # a page of zeros, read where a row has none; one for padding, never read; the first of rows


class PageRow:
    """The pages of one row. Of each pool: its `tables` (`ZERO`: given back), how many pages it may still take that
    nobody else gets (`left`), and how many of them are for each text that begins with its prompt (`each`). `names`: of
    the full pages of its prompt; `salt`: what else its keys depend on."""

    def __init__(self, pools: int, names: list[bytes], salt: bytes) -> None:
        self.length = 0
        self.tables: list[list[int]] = [[] for _ in range(pools)]
        self.left, self.each = [0] * pools, [0] * pools
        self.names, self.salt = names, salt


class Pool:
    """The pages of all layers with one mask. `dtype`: of keys and values; None: as they are computed."""

    def __init__(
        self, mask: parts.LayerMask, layers: Sequence[int], pages: int, slots: int, dtype: torch.dtype | None = None
    ) -> None:
        self.mask, self.layers, self.slots, self.dtype = mask, layers, slots, dtype
        self.window = mask.window if isinstance(mask, parts.Sliding) else None
        self.size = pages
        self.keys: dict[int, Tensor] = {}  # of each layer: page head slot dim
        self.values: dict[int, Tensor] = {}
        self.refs = [0] * (pages + FIRST)
        self.free = list(range(pages + FIRST - 1, FIRST - 1, -1))  # the last one is taken first
        self.page_of: dict[bytes, int] = {}
        self.name_of: dict[int, bytes] = {}
        self.idle: OrderedDict[int, None] = OrderedDict()  # pages with names that no row holds
        self.promised = 0  # pages that rows may still take

    @property
    def available(self) -> int:
        """Pages that nobody holds and nobody was promised."""
        return len(self.free) + len(self.idle) - self.promised

    def first(self, place: int) -> int:
        """The first page that a query at `place` reads."""
        return 0 if self.window is None else max(0, place - self.window + 1) // self.slots

    # ------------------------------------------------------------ pages

    def take(self) -> int:
        """A page for a row. Raises StemmaError where there is none, which rows with a promise never meet."""
        if self.free:
            page = self.free.pop()
        elif self.idle:
            page, _ = self.idle.popitem(last=False)
            self.unname(page)
        else:
            raise StemmaError(f"all {self.size} pages of the cache are held by rows")
        self.refs[page] = 1
        return page

    def hold(self, page: int) -> None:
        """One more row holds a page."""
        if not self.refs[page]:
            del self.idle[page]
        self.refs[page] += 1

    def release(self, page: int, clear: bool = False) -> None:
        """A row holds a page no more. `clear`: what it wrote is not fit to be read."""
        self.refs[page] -= 1
        if self.refs[page]:
            return
        if page in self.name_of:
            self.idle[page] = None
            return
        if clear:
            for buffer in (*self.keys.values(), *self.values.values()):
                buffer[page].zero_()
        self.free.append(page)

    def name(self, page: int, name: bytes) -> None:
        """Let a full page be found, if no other has this name."""
        if name not in self.page_of and page not in self.name_of:
            self.page_of[name], self.name_of[page] = page, name

    def unname(self, page: int) -> None:
        if page in self.name_of:
            del self.page_of[self.name_of.pop(page)]

    def copy(self, page: int, to: int) -> None:
        """What a page holds, into another."""
        for buffer in (*self.keys.values(), *self.values.values()):
            buffer[to] = buffer[page]

    # ------------------------------------------------------------ buffers

    def buffers(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values of a layer (page head slot dim), made for ones like `k` and `v` (B H T D)."""
        if layer not in self.keys:
            shapes = ((len(self.refs), x.shape[1], self.slots, x.shape[3]) for x in (k, v))
            dtype = self.dtype or k.dtype
            self.keys[layer], self.values[layer] = (_zeros(shape, dtype, k.device) for shape in shapes)
        return self.keys[layer], self.values[layer]


class Pages:
    """The pools of a decoder's `layers`, with place for `tokens` in all rows together. `rows` at most are held at once,
    and `chunk` tokens of a row are written at once: that limits the pool of a sliding window. `dtype`: of keys and
    values; None: as they are computed."""

    def __init__(
        self,
        arch: parts.Arch,
        layers: int,
        tokens: int,
        *,
        rows: int,
        chunk: int,
        slots: int = SLOTS,
        dtype: torch.dtype | None = None,
    ) -> None:
        if tokens < 1 or slots < 1:
            raise UsageError(f"a paged cache holds at least one token in a slot, not tokens={tokens}, slots={slots}")
        self.arch, self.slots, self.chunk = arch, slots, chunk
        masks = [layer_mask(arch.mask, i) for i in range(layers)]
        whole = -(-tokens // slots)
        self.pools: list[Pool] = []
        for mask in dict.fromkeys(masks):
            own = [i for i, m in enumerate(masks) if m == mask]
            most = 2 * rows * self._span(mask) if isinstance(mask, parts.Sliding) else whole  # as many again for names
            self.pools.append(Pool(mask, own, min(whole, most), slots, dtype))
        self.pool_of = [next(n for n, p in enumerate(self.pools) if i in p.layers) for i in range(layers)]
        self.found = 0  # tokens of prompts that were in shared pages

    def _span(self, mask: parts.Sliding) -> int:
        """Pages that a row of a sliding window holds at most."""
        return (mask.window + self.chunk) // self.slots + 2

    @property
    def used(self) -> int:
        """Pages that rows hold."""
        return sum(pool.size - len(pool.free) - len(pool.idle) for pool in self.pools)

    @property
    def kept(self) -> int:
        """Pages that no row holds, and that are kept for one that begins with the same tokens."""
        return sum(len(pool.idle) for pool in self.pools)

    @property
    def size(self) -> int:
        """All pages."""
        return sum(pool.size for pool in self.pools)

    # ------------------------------------------------------------ rows

    def need(self, pool: Pool, length: int, room: int, width: int = 1) -> int:
        """Pages that a prompt of `length` tokens takes for `width` texts of up to `room` new ones."""
        shared = 0 if pool.window is not None else length // self.slots
        return shared + width * self._each(pool, length, room)

    def _each(self, pool: Pool, length: int, room: int) -> int:
        """The pages that each text takes for itself."""
        total = -(-(length + room) // self.slots)
        return (
            min(total, self._span(pool.mask)) if isinstance(pool.mask, parts.Sliding) else total - length // self.slots
        )

    def check(self, length: int, room: int, width: int = 1) -> None:
        """Raises UsageError for a row that never fits."""
        for pool in self.pools:
            if (need := self.need(pool, length, room, width)) > pool.size:
                raise UsageError(
                    f"a prompt of {length} tokens and max_new_tokens={room} need {need} pages of the cache, and it has "
                    f"{pool.size}, of {self.slots} tokens each"
                )

    def open(
        self, ids: Sequence[int], room: int, width: int = 1, salt: bytes = b"", share: bool = True
    ) -> PageRow | None:
        """A row for a prompt, with a promise of all pages that it may need; None where there is no room for it now.
        `share`: it may begin with pages that are known."""
        row = PageRow(len(self.pools), self.names(ids, salt), salt)
        row.names = row.names[: (len(ids) - 1) // self.slots] if share else []  # the last token is always read
        if all(pool.window is None for pool in self.pools):
            self.match(row)
        needs = [self.need(p, len(ids), room, width) - len(t) for p, t in zip(self.pools, row.tables, strict=True)]
        if any(pool.available < need for pool, need in zip(self.pools, needs, strict=True)):
            self.close(row)
            return None
        row.left, row.each = needs, [self._each(p, len(ids), room) for p in self.pools]
        for pool, need in zip(self.pools, needs, strict=True):
            pool.promised += need
        return row

    def match(self, row: PageRow) -> None:
        """Let a row that has read nothing begin with the pages that are known by its names."""
        held = row.length // self.slots
        n = max((n for n in range(held, len(row.names) + 1) if self._known(row.names, held, n)), default=held)
        for number, (pool, table) in enumerate(zip(self.pools, row.tables, strict=True)):
            table += [ZERO] * (n - held)
            pages = {at: pool.page_of[row.names[at]] for at in range(max(held, pool.first(n * self.slots)), n)}
            taken = [at for at, page in pages.items() if pool.refs[page] and pool.window is not None]
            for at in pages.keys() - taken:
                pool.hold(pages[at])
                table[at] = pages[at]
                if row.left[number]:
                    row.left[number] -= 1
                    pool.promised -= 1
            for at in taken:  # a row has the pages of a window for itself, and gives them back one by one
                table[at] = self.take(row, number)
                pool.copy(pages[at], table[at])
        row.length = n * self.slots

    def _known(self, names: Sequence[bytes], held: int, n: int) -> bool:
        """Whether all pages are there that a row reads which goes on behind the first `n`."""
        return all(
            names[at] in pool.page_of for pool in self.pools for at in range(max(held, pool.first(n * self.slots)), n)
        )

    def take(self, row: PageRow, number: int) -> int:
        """A page of a pool for a row, which it was promised, or which is free."""
        pool = self.pools[number]
        if row.left[number]:
            row.left[number] -= 1
            pool.promised -= 1
        elif pool.available < 1:
            raise StemmaError(f"all {pool.size} pages of the cache are held by rows or promised to them")
        return pool.take()

    def behind(self, row: PageRow, number: int, place: int) -> None:
        """Give back the pages that lie behind the window of a row's token at `place`."""
        pool, table = self.pools[number], row.tables[number]
        for at in range(min(pool.first(place), len(table)) - 1, -1, -1):
            if table[at] == ZERO:
                break
            pool.release(table[at])
            table[at] = ZERO
            row.left[number] += 1
            pool.promised += 1

    def fork(self, row: PageRow) -> PageRow:
        """A second row that goes on from the same tokens. The page that is not full yet is copied when one of them
        writes into it; pages of a window are copied at once."""
        new = PageRow(len(self.pools), row.names, row.salt)
        new.length, new.each = row.length, list(row.each)
        for number, (pool, table) in enumerate(zip(self.pools, row.tables, strict=True)):
            new.left[number] = min(row.left[number], row.each[number])
            row.left[number] -= new.left[number]
            for page in table:
                if page == ZERO:
                    new.tables[number].append(ZERO)
                elif pool.window is None:
                    pool.hold(page)
                    new.tables[number].append(page)
                else:
                    own = self.take(new, number)
                    pool.copy(page, own)
                    new.tables[number].append(own)
        return new

    def close(self, row: PageRow, clear: bool = False) -> None:
        """A row leaves: its pages are released, the first ones last, so that they are kept longest."""
        for number, (pool, table) in enumerate(zip(self.pools, row.tables, strict=True)):
            for page in reversed(table):
                if page != ZERO:
                    pool.release(page, clear)
            pool.promised -= row.left[number]
            row.left[number] = 0
            table.clear()

    # ------------------------------------------------------------ names

    def names(self, ids: Sequence[int], salt: bytes) -> list[bytes]:
        """The names of the full pages of a text."""
        out, last = [], salt
        for at in range(0, len(ids) - self.slots + 1, self.slots):
            tokens = array("q", ids[at : at + self.slots]).tobytes()
            last = hashlib.blake2b(last + tokens, digest_size=16).digest()
            out.append(last)
        return out

    def keep(self, row: PageRow, ids: Sequence[int]) -> None:
        """Let the full pages of a row be found. `ids`: what it has read, and perhaps more."""
        full = row.length // self.slots
        names = row.names[:full] if len(row.names) >= full else self.names(ids[: row.length], row.salt)
        for pool, table in zip(self.pools, row.tables, strict=True):
            for page, name in zip(table, names, strict=False):
                if page != ZERO:
                    pool.name(page, name)


def _zeros(shape: Iterable[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on a CPU their memory is taken when it is first written."""
    shape = tuple(shape)
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    size = torch.Size(shape).numel()
    return torch.frombuffer(mmap.mmap(-1, max(size, 1) * dtype.itemsize), dtype=dtype, count=size).view(shape)
