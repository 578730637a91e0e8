"""A cache whose rows have pages of a pool: rows join, leave and are copied without keys and values being moved.

The interface is that of `nn.cache.Cache`. Here each step gathers the pages that it reads; an executor reads them where
they lie (`advance`, `layout`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stemma.nn.attention import Rotate
from stemma.nn.cache import Cache, CachePlan, Layout
from stemma.nn.masks import AttnMask, MaskInputs, build_mask
from stemma.nn.pool import BIN, ZERO, PageRow, Pages, Pool


class PagedCache(Cache):
    """Rows with pages of their own (`Pages.open`), of a decoder whose layers see what is before them, or a window."""

    def __init__(self, pages: Pages, rows: Sequence[PageRow]) -> None:
        super().__init__(pages.arch, len(pages.pool_of), len(rows), 0, even=False)
        self.pages, self.of_rows = pages, list(rows)
        self.length = max(row.length for row in rows)
        self.marked: dict[int, int] = {}  # the length of each row at the last `mark`
        self._tables: list[Tensor | None] = [None] * len(pages.pools)
        for layer, number in enumerate(pages.pool_of):
            pool = pages.pools[number]
            self.keys[layer], self.values[layer] = pool.keys.get(layer), pool.values.get(layer)

    # ------------------------------------------------------------ reading

    def begin(self, pos: Tensor, real: Tensor | None) -> None:
        """Plan one step: the next tokens of each row, which stand at `pos` (1|B T); where `real` (B T) is False there
        is padding. The pages are taken here."""
        counts = [pos.shape[-1]] * self.rows if real is None else real.sum(1).tolist()
        starts = [row.length for row in self.of_rows]
        self.place(counts)
        pos = pos.expand(self.rows, -1)
        plans = {pool.mask: PagePlan(self, number, pos, real, starts) for number, pool in enumerate(self.pages.pools)}
        self.plans = {**plans}

    def place(self, counts: Sequence[int]) -> None:
        """Take the pages for so many more tokens of each row, which then count as read. Pages that lie behind a window
        are given back; one that other rows read as well is copied."""
        slots = self.pages.slots
        for at, (row, count) in enumerate(zip(self.of_rows, counts, strict=True)):
            if not count:
                continue
            first, last = row.length // slots, (row.length + count - 1) // slots
            for number, pool in enumerate(self.pages.pools):
                self.pages.behind(row, number, min(row.length, self.marked.get(id(row), row.length)))
                table = row.tables[number]
                for page in range(first, last + 1):
                    if page == len(table):
                        table.append(self.pages.take(row, number))
                        self._note(number, at, page, table[page])
                    elif pool.refs[table[page]] > 1:
                        old, table[page] = table[page], self.pages.take(row, number)
                        pool.copy(old, table[page])
                        pool.release(old)
                        self._note(number, at, page, table[page])
                    else:
                        pool.unname(table[page])
            row.length += count
        self.length = max(row.length for row in self.of_rows)

    def write(self, layer: int, k: Tensor, v: Tensor, rotate: Rotate | None) -> tuple[Tensor, Tensor]:
        """Keep new keys and values (B H T D) of `layer`. Returns the keys (rotated) and values at its plan's `kpos`."""
        if rotate is not None:
            k = rotate(k)
        plan = self.plan(layer)
        assert isinstance(plan, PagePlan)
        keys, values = plan.pool.buffers(layer, k, v)
        self.keys[layer], self.values[layer] = keys, values
        return plan.write(keys, k), plan.write(values, v)

    def mark(self) -> None:
        """From here on `forget` may cut every row back: pages of a window are kept until then."""
        self.marked = {id(row): row.length for row in self.of_rows}

    def forget(self, lengths: Tensor) -> None:
        """Cut every row back to its first `lengths` (B) tokens. The slots are written again. Of a window, what lay
        behind it before the last `mark` is gone."""
        self.marked = {}
        for row, length in zip(self.of_rows, lengths.tolist(), strict=True):
            row.length = length
        self.length = max(row.length for row in self.of_rows)

    def put(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        raise NotImplementedError("rows of pages begin with tokens")

    def advance(self, order: Sequence[int]) -> None:
        """Take the pages for one token more of each row, which somebody else writes (`layout`)."""
        self.place([1] * self.rows)

    def retract(self) -> None:
        for row in self.of_rows:
            row.length -= 1
        self.length -= 1

    def take_in(self, counts: Sequence[int]) -> list[int]:
        """Take the pages for `counts` more tokens of each row, which somebody else writes. Returns the places of the
        first ones."""
        starts = [row.length for row in self.of_rows]
        self.place(counts)
        return starts

    def make(self, layer: int, like: Tensor) -> None:
        pool = self.pages.pools[self.pages.pool_of[layer]]
        self.keys[layer], self.values[layer] = pool.buffers(layer, like, like)

    def layout(self, layer: int, pages: Tensor) -> Layout:
        """Where the keys and values of `layer` lie. Places do not wrap: of a window, what lies behind it is given
        back."""
        number = self.pages.pool_of[layer]
        pool, table = self.pages.pools[number], self.table(number)
        k, v = pool.keys[layer], pool.values[layer]
        return Layout(k, v, k.stride(0), k.stride(1), pool.slots, table.shape[1] * pool.slots, table)

    def tables(self) -> list[Tensor]:
        return [self.table(number) for number in range(len(self.pages.pools))]

    # ------------------------------------------------------------ rows that join and leave

    def keep(self, rows: Tensor) -> None:
        """Row i becomes what row `rows[i]` was. A row that is not named gives its pages back; one may be named
        twice."""
        wanted: list[int] = rows.tolist()
        own = self.of_rows
        for at in set(range(len(own))) - set(wanted):
            self.pages.close(own[at])
        many = {at: wanted.count(at) for at in set(wanted)}
        forks: dict[int, list[PageRow]] = {}
        for at, n in many.items():
            forks[at] = [*(self.pages.fork(own[at]) for _ in range(n - 1)), own[at]]
        self._set([forks[at].pop(0) for at in wanted])

    def admit(self, other: Cache) -> None:
        """Take the rows of `other`, with pages of the same pools, behind the own ones."""
        assert isinstance(other, PagedCache)
        self._set([*self.of_rows, *other.of_rows])

    def clear(self, row: int) -> None:
        """What a row wrote is not fit to be read: its pages lose their names, and are zeroed when they are released."""
        own = self.of_rows[row]
        for pool, table in zip(self.pages.pools, own.tables, strict=True):
            for page in table:
                if page != ZERO and pool.refs[page] == 1:
                    pool.unname(page)
        self.pages.close(own, clear=True)

    def _set(self, rows: list[PageRow]) -> None:
        self.of_rows, self.rows = rows, len(rows)
        self.length = max((row.length for row in rows), default=0)
        self._tables = [None] * len(self._tables)

    # ------------------------------------------------------------ tables

    def table(self, number: int) -> Tensor:
        """The pages of each row in a pool (B N, int64), on the CPU; shorter rows go on with the page of zeros."""
        known = self._tables[number]
        if known is None:
            tables = [row.tables[number] for row in self.of_rows]
            width = max(max(map(len, tables)) + 8, 16)
            known = torch.tensor([[*t, *[ZERO] * (width - len(t))] for t in tables], dtype=torch.int64)
            self._tables[number] = known
        return known

    def _note(self, number: int, row: int, at: int, page: int) -> None:
        """A row has another page."""
        known = self._tables[number]
        if known is None or at >= known.shape[1]:
            self._tables[number] = None
        else:
            known[row, at] = page


class PagePlan(CachePlan):
    """One step of the layers of one pool: where new keys go, which are read, what each query may see."""

    def __init__(self, cache: PagedCache, number: int, pos: Tensor, real: Tensor | None, starts: Sequence[int]) -> None:
        self.pool: Pool = cache.pages.pools[number]
        slots, device, length = self.pool.slots, pos.device, pos.shape[-1]
        ends = [row.length for row in cache.of_rows]
        table = cache.table(number).to(device)
        self.page = table.gather(1, (pos // slots).clamp(max=table.shape[1] - 1))
        self.slot = pos % slots
        if real is not None:
            self.page = torch.where(real, self.page, BIN)
        self.seen: slice | None = None
        self.gathered: dict[int, Tensor] = {}  # the parts to read, by the heads of a page
        if not any(starts):  # all that is seen is new
            self.pages = None
            self.qpos = self.kpos = torch.arange(length, device=device)[None]
            self.attn_mask = build_mask(self.pool.mask, MaskInputs(self.qpos, self.kpos, is_arange=True))
            return
        firsts = [self.pool.first(start) for start in starts]
        most = max(-(-end // slots) - first for end, first in zip(ends, firsts, strict=True))
        columns = torch.tensor(firsts, device=device)[:, None] + torch.arange(most, device=device)
        self.pages = table.gather(1, columns.clamp(max=table.shape[1] - 1))
        self.qpos = pos
        # slots that hold nothing yet stand behind every query
        self.kpos = (columns[:, :, None] * slots + torch.arange(slots, device=device)).flatten(1)
        if length == 1 and len({*zip(firsts, ends, strict=True)}) == 1:  # one token sees all that is kept
            begin = 0 if self.pool.window is None else max(0, ends[0] - self.pool.window)
            self.seen = slice(begin - firsts[0] * slots, ends[0] - firsts[0] * slots)
            self.kpos, self.attn_mask = self.kpos[:, self.seen], AttnMask()
            return
        facts = MaskInputs(pos, self.kpos, is_arange=False)
        mask = build_mask(self.pool.mask, facts).mask
        assert mask is not None
        if real is not None:  # padding sees the first slot, so that its row is defined
            mask[:, 0, :, 0] |= ~real
        self.attn_mask = AttnMask(mask=mask)

    def write(self, buffer: Tensor, new: Tensor) -> Tensor:
        """Put `new` (B H T D) into the buffer; returns the keys or values at `kpos`."""
        kept = new.to(buffer.dtype)
        buffer[self.page, :, self.slot] = kept.transpose(1, 2)
        if self.pages is None:
            return kept.to(new.dtype)
        _, heads, slots, width = buffer.shape
        if heads not in self.gathered:
            own = torch.arange(heads, device=buffer.device)
            self.gathered[heads] = (self.pages[:, None] * heads + own[:, None]).flatten()  # row, head, page
        rows, count = self.pages.shape
        found = buffer.view(-1, slots, width).index_select(0, self.gathered[heads])
        found = found.view(rows, heads, count * slots, width)
        return (found if self.seen is None else found[:, :, self.seen]).to(new.dtype)
