"""Steps of a built decoder on the CPU: a token a row in, logits out, keys and values in the buffers of its cache."""

from __future__ import annotations

import ctypes
import itertools
import logging
import math
import operator
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from stemma.errors import NotFinite, UsageError
from stemma.executor.assemble import KINDS, NotLowered, number, struct
from stemma.executor.lower import Lowering
from stemma.executor.matrices import marks
from stemma.executor.native import Library, library, wanted
from stemma.executor.structs import structures
from stemma.nn.cache import Layout
from stemma.nn.model import Model

LOG = logging.getLogger("stemma")
TOGETHER = 512  # tokens of prompts that are read in one run: what lies between grows with them
DONE, NO_SUCH_ROW, SHORT_TABLES, SMALL_WORKSPACE = map(
    number, ("DONE", "NO_SUCH_ROW", "SHORT_TABLES", "SMALL_WORKSPACE")
)


class Reason(NamedTuple):
    """Why PyTorch computes the steps of a model, in words."""

    words: str


class Cache(Protocol):
    """What an executor asks of a cache: to note what is read, and where keys and values lie."""

    rows: int
    length: int
    front: int
    keys: list[Tensor | None]
    values: list[Tensor | None]
    cross: list[tuple[Tensor, Tensor] | None]
    encoder_mask: Tensor | None

    def advance(self, order: Sequence[int]) -> None: ...

    def retract(self) -> None: ...

    def take_in(self, counts: Sequence[int]) -> list[int]: ...

    def make(self, layer: int, like: Tensor) -> None: ...

    def layout(self, layer: int, pages: Tensor) -> Layout: ...

    def tables(self) -> list[Tensor]: ...


class Step(NamedTuple):
    """What a step gives: the logits of the next tokens (B V, fp32), the likeliest one of each row (of equal ones the
    first), and its log-probability."""

    logits: Tensor
    tokens: list[int]
    logprobs: list[float]


class Piece(NamedTuple):
    """Tokens of a row that are read together, from place `start` on; `last`: no more of them follow."""

    row: int
    tokens: Sequence[int]
    start: int
    last: bool


def usable() -> bool:
    """Whether an executor may compute here: without gradients, in no other precision, and not in a graph."""
    return not (torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling())


def numbers(values: Sequence[int]) -> Any:
    """Whole numbers as C reads them."""
    return (ctypes.c_int64 * len(values))(*values)


def _runs(texts: Sequence[Sequence[int]], starts: Sequence[int]) -> Iterator[list[Piece]]:
    """The tokens of all rows in pieces, of which at most TOGETHER tokens are read in one run."""
    some: list[Piece] = []
    room = TOGETHER
    for row, text in enumerate(texts):
        at = 0
        while at < len(text):
            piece = text[at : at + room]
            some.append(Piece(row, piece, starts[row] + at, at + len(piece) == len(text)))
            at, room = at + len(piece), room - len(piece)
            if not room:
                yield some
                some, room = [], TOGETHER
    if some:
        yield some


class Executor:
    """The tape of one model. One step runs at a time."""

    def __init__(self, model: Model, found: Library) -> None:
        lowered = Lowering(model)
        self.code, self.vocab, self.columns = found.code, model.dims.vocab, lowered.columns
        self.layers = len(lowered.stack.order)
        self.tape, self.tables, self.memory = lowered.logits, lowered.tables, lowered.tape  # not the model itself
        self.workspace = torch.empty(0, dtype=torch.uint8)
        self.lock = threading.Lock()
        self.run = struct("run", columns=self.columns, reach=0 if self.tables else 2**62)  # of the step
        self.numbers: list[Any] = []  # tokens, places and positions of a step
        self.best, self.total = (ctypes.c_int64 * 0)(), (ctypes.c_double * 0)()  # of each row (see `run` of tape.h)
        whole = lowered.causal and model.encoder is None and not model.ahead
        self.reads = whole and bool(self.code.tape_reads(ctypes.byref(self.tape)))  # prompts too
        self.kept_like = [torch.empty(1, heads, 0, width, dtype=model.dtype) for heads, width in lowered.kept]
        self.seen: list[Any] = []
        self.kept: tuple[Any, ...] = ()

    def ready(self, cache: Cache, languages: Tensor | None = None) -> bool:
        """Whether the next step of this cache can run here."""
        known = all(map(operator.is_, cache.keys, self.seen)) and self.seen
        return usable() and (bool(known) or all(k is not None and k.dtype in KINDS for k in cache.keys))

    def step(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        order: Sequence[int],
        cache: Cache,
        languages: Tensor | None = None,
    ) -> Step:
        """Read one token a row (B), behind what the cache holds. `positions`: B, or those of all columns (B C);
        `order`: the places in their rows (B). Raises NotFinite where some logits are not finite."""
        return self.steps(tokens, positions, order, cache, languages, 1)[0]

    def steps(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        order: Sequence[int],
        cache: Cache,
        languages: Tensor | None,
        count: int,
    ) -> list[Step]:
        """A step, and then `count` - 1 more, each with the likeliest tokens of the one before, at the next positions
        (in one column). Ends early before logits that are not finite."""
        if cache.front:
            order = [n + cache.front for n in order]
            positions = [n if i % self.columns else n + cache.front for i, n in enumerate(positions)]
        languages = None if languages is None else languages.to(torch.int64).contiguous()
        now, rows, made = self.run, len(tokens), list[Step]()
        with self.lock:
            self._make_room(rows)
            now.languages = None if languages is None else languages.data_ptr()
            now.threads = torch.get_num_threads()
            for _ in range(count):
                cache.advance(order)
                now.caches, now.crosses, now.mask = self._buffers(cache)
                self.numbers[0][:rows], self.numbers[1][:rows] = tokens, order
                self.numbers[2][: len(positions)] = positions
                logits = torch.empty(rows, self.vocab)
                now.logits, now.longest = logits.data_ptr(), cache.length
                code = self._run(positions, now)
                if code != DONE:
                    break
                tokens = self.best[:rows]
                made.append(Step(logits, tokens, [-math.log(x) for x in self.total[:rows]]))
                order, positions = [n + 1 for n in order], [n + 1 for n in positions]
            else:
                return made
            if made:
                cache.retract()
                return made
        if code == NO_SUCH_ROW:
            raise UsageError("a step holds a token, a language or a position that is in no table of this model")
        raise NotFinite((~logits.isfinite().all(1)).nonzero()[:, 0].tolist(), logits)

    def read(
        self,
        texts: Sequence[Sequence[int]],
        places: Callable[[int, int], Sequence[int]],
        cache: Cache,
        wanted: Sequence[int],
        languages: Sequence[int] | None = None,
    ) -> Tensor:
        """Read the next tokens of every row (none, of some), where the tape `reads`: the logits of what follows the
        last ones of the rows `wanted`, which may be not finite. `places(start, end)`: the positions of the tokens at
        these places of a row."""
        logits = torch.empty(len(wanted), self.vocab)
        starts = cache.take_in([len(text) for text in texts])
        for layer, like in enumerate(self.kept_like):
            cache.make(layer, like)
        done = 0
        for some in _runs(texts, starts):
            ends = [i for i, p in enumerate(some) if p.row in wanted and p.last]
            with self.lock:  # between two runs others compute
                now = struct("run", columns=self.columns, reach=self.run.reach, threads=torch.get_num_threads())
                now.caches, now.crosses, now.mask = self._buffers(cache)
                self._read(now, some, ends, places, languages, logits[done:])
            done += len(ends)
        return logits

    def _read(
        self,
        now: Any,
        some: Sequence[Piece],
        ends: Sequence[int],
        places: Callable[[int, int], Sequence[int]],
        languages: Sequence[int] | None,
        logits: Tensor,
    ) -> None:
        """Read pieces in one run. `ends`: those whose last tokens are followed by logits, in this order."""
        tokens = [t for p in some for t in p.tokens]
        positions = [n for p in some for n in places(p.start, p.start + len(p.tokens))]
        firsts = list(itertools.accumulate((len(p.tokens) for p in some), initial=0))
        kept = {
            "tokens": numbers(tokens),
            "positions": numbers(positions),
            "pieces": (structures()["piece"] * len(some))(
                *((p.row, first, len(p.tokens), p.start) for p, first in zip(some, firsts, strict=False))
            ),
            "wanted": numbers([firsts[i + 1] - 1 for i in ends]),
            "best": numbers([0] * len(ends)),
            "total": (ctypes.c_double * len(ends))(),
        }
        if languages is not None:
            kept["languages"] = numbers([languages[p.row] for p in some for _ in p.tokens])
        for name, array in kept.items():
            setattr(now, name, ctypes.addressof(array))
        now.rows, now.piece_count, now.wanted_count = len(tokens), len(some), len(ends)
        now.longest = max(p.start + len(p.tokens) for p in some)
        now.logits = logits.data_ptr()
        if self._run(positions, now) == NO_SUCH_ROW:
            raise UsageError("a prompt holds a token, a language or a position that is in no table of this model")

    def _run(self, positions: Sequence[int], now: Any) -> int:
        """Run the tape, once tables and workspace are large enough."""
        tape, at = ctypes.byref(self.tape), ctypes.byref(now)
        while True:
            code = int(self.code.tape_run(tape, at))
            if code == SHORT_TABLES:
                last = max(positions)
                now.reach = self.run.reach = min(table.reach(last) for table in self.tables)
            elif code == SMALL_WORKSPACE:
                size = self.code.tape_size(tape, at)
                if size > len(self.workspace):
                    self.workspace = torch.empty(size + size // 2, dtype=torch.uint8)
                for run in (now, self.run):  # the old one is gone
                    run.workspace, run.room = self.workspace.data_ptr(), len(self.workspace)
            else:
                return code

    def _make_room(self, rows: int) -> None:
        """Have a place for what goes in and comes out for each row."""
        self.run.rows = rows
        if rows > len(self.best):
            self.numbers = [(ctypes.c_int64 * (rows * n))() for n in (1, 1, self.columns)]
            self.best, self.total = (ctypes.c_int64 * rows)(), (ctypes.c_double * rows)()
            places = map(ctypes.addressof, (*self.numbers, self.best, self.total))
            for name, place in zip(("tokens", "order", "positions", "best", "total"), places, strict=True):
                setattr(self.run, name, place)

    def _buffers(self, cache: Cache) -> tuple[int, int | None, int | None]:
        """Where the cache's buffers lie, as C reads it; made anew when one of them is another one."""
        cross = [x for pair in cache.cross if pair is not None for x in pair]
        places = [*cache.keys, *cache.values, *cross, *cache.tables()]
        if not (len(places) == len(self.seen) and all(map(operator.is_, places, self.seen))):
            pages = torch.arange(cache.rows)[:, None]
            held = [cache.layout(i, pages) for i in range(self.layers)]
            caches = (structures()["layer_cache"] * self.layers)(*map(_layer, held))
            crosses = None
            if cross:
                made = [_cross(pair) for pair in cache.cross if pair is not None]
                crosses = (structures()["layer_cross"] * len(made))(*made)
            self.seen, self.kept = places, (caches, crosses, held)
        caches, crosses, _ = self.kept
        mask = None if cache.encoder_mask is None else cache.encoder_mask.contiguous()
        self.mask = mask
        return (
            ctypes.addressof(caches),
            None if crosses is None else ctypes.addressof(crosses),
            None if mask is None else mask.data_ptr(),
        )


def _layer(at: Layout) -> Any:
    return struct(
        "layer_cache",
        kind=number(KINDS[at.keys.dtype]),
        page_stride=at.page_stride,
        head_stride=at.head_stride,
        page_slots=at.page_slots,
        slots=at.slots,
        row_pages=at.pages.shape[1],
        keys=at.keys.data_ptr(),
        values=at.values.data_ptr(),
        pages=at.pages.data_ptr(),
    )


def _cross(pair: tuple[Tensor, Tensor]) -> Any:
    k, v = pair
    names = ("row", "head", "slot")
    strides = {f"{which}_{name}": x.stride(i) for which, x in (("k", k), ("v", v)) for i, name in enumerate(names)}
    fields = {"kind": number(KINDS[k.dtype]), "length": k.shape[2]}
    return struct("layer_cross", **fields, **strides, keys=k.data_ptr(), values=v.data_ptr())


# ---------------------------------------------------------------- the executor of a model

_FOUND: WeakKeyDictionary[Model, tuple[Any, Executor | Reason]] = WeakKeyDictionary()
_TOLD: set[str] = set()


def of(model: Model) -> Executor | Reason:
    """The executor of a model as it is now, or why there is none. Made once, and again when its weights have moved.
    `STEMMA_EXECUTOR=off` in the environment leaves all to PyTorch."""
    if not wanted():
        return Reason("STEMMA_EXECUTOR=off")
    if model.training:
        return Reason("it is in training mode")
    if model.device.type != "cpu":
        return Reason(f"it is on {model.device}")
    now = mark(model)
    known = _FOUND.get(model)
    if known is None or known[0] != now:
        known = now, _made(model)
        _FOUND[model] = known
        if isinstance(known[1], Reason) and known[1].words not in _TOLD:
            _TOLD.add(known[1].words)
            LOG.info("PyTorch computes the steps of %s: %s", model.name or "this model", known[1].words)
    return known[1]


def mark(model: Model) -> tuple[Any, ...]:
    """Changes when a module or a weight of the model is another one."""
    modules = [(id(m), bool(m._forward_hooks or m._forward_pre_hooks)) for m in model.modules()]
    return (*modules, *((p.data_ptr(), p.dtype, p.stride()) for p in model.parameters()), *marks(model))


def _made(model: Model) -> Executor | Reason:
    found = library()
    if found is None:
        return Reason("no C compiler (cc, or $CC) was of use")
    if any(m._forward_hooks or m._forward_pre_hooks for m in model.modules()):
        return Reason("its modules have hooks")
    try:
        return Executor(model, found)
    except NotLowered as why:
        return Reason(str(why))
