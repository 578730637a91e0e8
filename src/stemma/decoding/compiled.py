"""Steps of decoding compiled by torch, for models on an accelerator; on CUDA each is recorded as a CUDA graph.

A step is compiled for a few shapes (`Shape`): rows and tokens are rounded up to powers of 2, missing rows are computed
for nothing. Its tensors lie at fixed addresses (`Recording`). A cache with buffers of its own gets them there
(`adopt`): from then on its keys and values are views of them. The pools of a paged cache are read where they lie."""

from __future__ import annotations

import logging
import os
import threading
import types
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from stemma import executor
from stemma.decoding.inputs import language_ids
from stemma.errors import NotFinite, UsageError
from stemma.nn.cache import EMPTY, Cache
from stemma.nn.inputs import Inputs
from stemma.nn.model import Model
from stemma.nn.pages import PagedCache
from stemma.nn.parts import Memory
from stemma.nn.pool import BIN, ZERO, Pages
from stemma.nn.static import Buffers, StaticCache

LOG = logging.getLogger("stemma")
VARIABLE = "STEMMA_COMPILE"
BACKEND = "inductor"
LATER = 256  # steps that PyTorch computes first, so that a short text does not wait for a compiler
ROWS, TOKENS = 8, 4  # a recording serves down to this share of its rows and tokens before a smaller one is made
LEAST = 256  # tokens of the smallest buffers
FREE = 2  # recordings that are kept while no cache uses them


class Shape(NamedTuple):
    """What a step is compiled for. `tokens`: of a row; `source`: of the encoder's output; `columns`: positions a token;
    `prefix`, `languages`: whether rows have one."""

    rows: int
    tokens: int
    source: int
    columns: int
    prefix: bool
    languages: bool

    def rounded(self) -> Shape:
        """The shape that is compiled for it."""
        source = _power(max(self.source, LEAST // 4)) if self.source else 0
        return self._replace(rows=_power(self.rows), tokens=_power(max(self.tokens, LEAST)), source=source)

    def serves(self, need: Shape) -> bool:
        """Whether a recording of this shape is fit for another one."""
        own, asked = self[:3], need.rounded()[:3]
        near = all(n <= have <= n * most for have, n, most in zip(own, asked, (ROWS, TOKENS, TOKENS), strict=True))
        return near and self[3:] == need[3:]


def _power(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def _step(model: Model, now: Buffers, given: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """One more token a row. `given`: of each row its token, its place, the positions of all columns and, where rows
    have one, the language (N R, int64). Returns the logits (R V, fp32), and of each row the likeliest token, its
    log-probability, and whether the logits are finite (3 R, fp64, which holds all three)."""
    tokens, order = given[:2, :, None]
    positions = given[2 : 2 + columns].T
    cache = StaticCache(model.arch, now, len(tokens))
    languages = language_ids(tokens, given[-1] if len(given) > 2 + columns else None)
    positions = positions[:, None] if columns > 1 else positions
    inputs = Inputs(tokens, position_ids=positions, langs=languages, order=order, cache=cache)
    logits = model.logits(model.decode(inputs)[:, 0]).float()
    logprob, best = logits.log_softmax(-1).max(-1)
    finite = logits.isfinite().all(-1)
    return logits, torch.stack([best.double(), logprob.double(), finite.double()])


class Recording:
    """One shape of a step with its tensors. `run` computes `logits` and `found` of `given` (see `_step`)."""

    def __init__(
        self, shape: Shape, buffers: Buffers, vocab: int, step: Callable[[Buffers, Tensor, int], tuple[Tensor, Tensor]]
    ) -> None:
        device = buffers.keys[0].device
        self.shape, self.buffers = shape, buffers
        self.tables: list[Tensor] = []  # what the tables hold, on the CPU
        self.given = torch.zeros(2 + shape.columns + shape.languages, shape.rows, dtype=torch.int64, device=device)
        self.sent = torch.zeros(self.given.shape, dtype=torch.int64, pin_memory=device.type == "cuda")
        self.logits = torch.zeros(shape.rows, vocab, device=device)
        self.found = torch.zeros(3, shape.rows, dtype=torch.float64, device=device)

        def run() -> None:
            logits, found = step(self.buffers, self.given, shape.columns)
            self.logits.copy_(logits)
            self.found.copy_(found)

        self.run: Callable[[], None] = run
        run()  # compiles; what it writes is overwritten, or goes into the page that nobody reads
        if device.type == "cuda":
            self.run = recorded(run, device)

    def fill_tables(self, cache: PagedCache) -> None:
        """Note where the pages of a cache lie."""
        made = []
        for own, now in zip(self.buffers.tables, cache.tables(), strict=True):
            table = torch.full(own.shape, ZERO, dtype=torch.int64)
            table[len(now) :] = BIN
            width = min(now.shape[1], own.shape[1])
            table[: len(now), :width] = now[:, :width]
            made.append(table)
            if len(self.tables) < len(made) or not torch.equal(table, self.tables[len(made) - 1]):
                own.copy_(table)
        self.tables = made

    def compute(self, given: Sequence[Sequence[int]], languages: Tensor | None) -> executor.Step:
        """What the step gives, `given` the numbers of the rows that are there. Raises NotFinite where some logits are
        not finite."""
        rows = len(given[0])
        self.sent[: len(given), :rows] = torch.tensor(given)
        self.sent[:, rows:] = 0
        self.given.copy_(self.sent, non_blocking=True)
        if languages is not None:
            self.given[-1, :rows] = languages
        self.run()
        logits = self.logits[:rows].clone()
        tokens, logprobs, finite = self.found[:, :rows].tolist()  # the device is waited for once
        if not all(finite):
            raise NotFinite([i for i, fine in enumerate(finite) if not fine], logits)
        return executor.Step(logits, [int(token) for token in tokens], logprobs)


def recorded(run: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """The kernels of `run`, which has no input but fixed tensors, as one CUDA graph."""
    with torch.cuda.device(device):
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(2):
                run()
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            run()
    return graph.replay


class Lease:
    """A cache's hold on a recording, whose buffers have the cache's tensors `views`. When the cache is gone, the
    recording is free again."""

    def __init__(self, of: Recording, free: Callable[[Recording], None]) -> None:
        self.of = of
        self.views: list[Tensor | None] = []
        weakref.finalize(self, free, of).atexit = False

    def hold(self, cache: Cache) -> None:
        """See that what the cache keeps lies in the buffers."""
        now = tensors(cache)
        if len(now) != len(self.views) or any(a is not b for a, b in zip(now, self.views, strict=True)):
            adopt(self.of, cache)
            self.views = tensors(cache)
        cache.lease = self  # what it had before may be free from here on


class CompiledSteps:
    """The compiled steps of one model. One step runs at a time."""

    def __init__(self, model: Model, mark: tuple[Any, ...], later: int) -> None:
        self.model, self.mark, self.later = model, mark, later
        self.failed = False
        self.lock = threading.RLock()
        self.free: list[Recording] = []
        self.of_pages: WeakKeyDictionary[Pages, list[Recording]] = WeakKeyDictionary()
        self.compiled: dict[Shape, Callable[..., tuple[Tensor, Tensor]]] = {}

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()  # a copy of the model has none

    # ------------------------------------------------------------ steps

    def ready(self, cache: Cache, languages: Tensor | None = None) -> bool:
        """Whether the next step of this cache can run here. The first step of a shape is compiled now."""
        kind = self.model.device.type
        if self.failed or torch.is_grad_enabled() or torch.is_autocast_enabled(kind) or torch.compiler.is_compiling():
            return False
        if type(cache) not in (Cache, PagedCache) or any(k is None for k in cache.keys):
            return False
        if self.later:
            self.later -= 1
            return False
        try:
            with self.lock, torch.inference_mode():
                self._recording(cache, languages is not None)
        except Exception as error:
            self.failed = True
            words = str(error).strip().splitlines() or [type(error).__name__]
            LOG.warning("PyTorch computes the steps of %s: they do not compile: %s", self._name, words[0])
            LOG.debug("the whole error", exc_info=error)
        return not self.failed

    @property
    def _name(self) -> str:
        return self.model.name or "this model"

    def step(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        order: Sequence[int],
        cache: Any,
        languages: Tensor | None = None,
    ) -> executor.Step:
        """As `Executor.step`."""
        with self.lock, torch.inference_mode():
            recording = self._recording(cache, languages is not None)
            if isinstance(cache, PagedCache):
                cache.advance(order)
                recording.fill_tables(cache)
            else:
                cache.length += 1
            columns = recording.shape.columns
            return recording.compute([tokens, order, *(positions[i::columns] for i in range(columns))], languages)

    # ------------------------------------------------------------ recordings

    def _recording(self, cache: Cache, languages: bool) -> Recording:
        source = 0 if cache.cross[0] is None else cache.cross[0][0].shape[2]
        assert self.model.decoder is not None
        columns = self.model.decoder.position.columns
        need = Shape(cache.rows, 0, source, columns, cache.prefix is not None, languages)
        if isinstance(cache, PagedCache):
            longest = max(row.length for row in cache.of_rows) + 1
            return self._of_pages(cache, need._replace(tokens=longest))
        if cache.length + 1 > cache.capacity:
            cache.make_room(1)
        need = need._replace(tokens=cache.capacity)
        lease = cache.lease
        if not isinstance(lease, Lease) or not lease.of.shape.serves(need):
            lease = Lease(self._free(need, cache), self._give_back)
        lease.hold(cache)
        return lease.of

    def _free(self, need: Shape, cache: Cache) -> Recording:
        found = next((r for r in self.free if r.shape.serves(need)), None)
        if found is None:
            return self._made(need.rounded(), buffers_of(cache, need.rounded()))
        self.free = [r for r in self.free if r is not found]
        return found

    def _of_pages(self, cache: PagedCache, need: Shape) -> Recording:
        known = self.of_pages.setdefault(cache.pages, [])
        found = next((r for r in known if r.shape.serves(need)), None)
        if found is None:
            found = self._made(need.rounded(), buffers_of_pages(cache, need.rounded()))
            known.append(found)
        return found

    def _made(self, shape: Shape, buffers: Buffers) -> Recording:
        if shape not in self.compiled:
            LOG.info("compiling a step of %s: %d rows of up to %d tokens", self._name, shape.rows, shape.tokens)
            # a code object of its own: torch counts the graphs of each, and gives up at eight
            own = types.FunctionType(_step.__code__.replace(), _step.__globals__)
            options: dict[str, Any] = {}
            if self.model.device.type == "cuda":  # one row: products become sums that make weights of few bits inside
                options["coordinate_descent_tuning"] = True
            self.compiled[shape] = torch.compile(
                own, fullgraph=True, dynamic=False, backend=BACKEND, options=options or None
            )
        compiled, model = self.compiled[shape], self.model
        return Recording(shape, buffers, model.dims.vocab, lambda *given: compiled(model, *given))

    def _give_back(self, recording: Recording) -> None:
        with self.lock:
            self.free = [*self.free[-FREE + 1 :], recording]


# ---------------------------------------------------------------- tensors at fixed addresses


@torch.inference_mode(False)
@torch.no_grad()
def buffers_of(cache: Cache, shape: Shape) -> Buffers:
    """Buffers for a cache of this shape, empty: ordinary tensors, which may be written in any mode."""
    rows = shape.rows
    cache.resize(shape.tokens)

    def like(x: Tensor, dim: int, size: int) -> Tensor:
        sizes = list(x.shape)
        sizes[0], sizes[dim] = rows, size
        return x.new_zeros(sizes)

    keys, values = ([like(x, 0, rows) for x in given if x is not None] for given in (cache.keys, cache.values))
    held = [like(cache.held[mask], 0, rows).fill_(EMPTY) for mask in dict.fromkeys(cache.masks)]
    cross = [(like(k, 2, shape.source), like(v, 2, shape.source)) for k, v in (c for c in cache.cross if c is not None)]
    mask = None
    if shape.source:
        mask = torch.zeros(rows, shape.source, dtype=torch.bool, device=keys[0].device)
        mask[:, 0] = True
    prefix = None if cache.prefix is None else like(cache.prefix, 0, rows)
    return Buffers(keys, values, held, [], cross, mask, prefix)


def tensors(cache: Cache) -> list[Tensor | None]:
    """All that a cache keeps of its rows."""
    cross = [x for pair in cache.cross if pair is not None for x in pair]
    held = [cache.held[mask] for mask in dict.fromkeys(cache.masks)]
    return [*cache.keys, *cache.values, *held, *cross, cache.prefix, cache.encoder_mask]


def adopt(recording: Recording, cache: Cache) -> None:
    """Move what a cache holds into the buffers, if it is not there: it becomes a view of them."""
    if cache.capacity != recording.shape.tokens:
        cache.resize(recording.shape.tokens)
    own = recording.buffers
    for layer, (k, v) in enumerate(zip(own.keys, own.values, strict=True)):
        cache.keys[layer], cache.values[layer] = _moved(cache.keys[layer], k), _moved(cache.values[layer], v)
    for mask, held in zip(dict.fromkeys(cache.masks), own.held, strict=True):
        cache.held[mask] = _moved(cache.held[mask], held)
    if own.prefix is not None:
        cache.prefix = _moved(cache.prefix, own.prefix)
    if own.encoder_mask is None:
        return
    size = 0
    for layer, (k, v) in enumerate(own.cross):
        pair = cache.cross[layer]
        assert pair is not None
        size = pair[0].shape[2]
        cache.cross[layer] = _moved(pair[0], k[:, :, :size]), _moved(pair[1], v[:, :, :size])
        k[: cache.rows, :, size:], v[: cache.rows, :, size:] = 0, 0
    real = own.encoder_mask[: cache.rows]
    real[:, :size] = True if cache.encoder_mask is None else cache.encoder_mask
    real[:, size:] = False


def _moved(x: Tensor | None, into: Tensor) -> Tensor:
    """The first rows of `into`, holding what `x` does."""
    assert x is not None
    view = into[: len(x)]
    if x.data_ptr() == view.data_ptr() and x.shape == view.shape and x.stride() == view.stride():
        return x
    view.copy_(x)
    return view


def buffers_of_pages(cache: PagedCache, shape: Shape) -> Buffers:
    """The pools of a cache, and tables of pages."""
    pages, device = cache.pages, next(k for k in cache.keys if k is not None).device
    layers = [(layer, pages.pools[number]) for layer, number in enumerate(pages.pool_of)]
    width = -(-shape.tokens // pages.slots)
    tables = [torch.full((shape.rows, width), BIN, dtype=torch.int64, device=device) for _ in pages.pools]
    keys, values = [pool.keys[layer] for layer, pool in layers], [pool.values[layer] for layer, pool in layers]
    return Buffers(keys, values, [], tables, [], None, None)


# ---------------------------------------------------------------- the steps of a model


def of(model: Model) -> CompiledSteps | None:
    """The compiled steps of a model as it is now; None where nothing is compiled. `STEMMA_COMPILE` in the environment:
    `on` (at once, on any device), `off`; left out, on CUDA, after some steps."""
    asked = os.environ.get(VARIABLE, "")
    if asked not in ("", "on", "off"):
        raise UsageError(f"{VARIABLE}={asked} is neither on nor off")
    if asked == "off" or model.training or (not asked and model.device.type != "cuda"):
        return None
    if model.decoder is None or isinstance(model.arch.mask, Memory):  # they read other tokens, or caches, at a step
        return None
    if any(m._forward_hooks or m._forward_pre_hooks for m in model.modules()):
        return None
    if any(type(p) is not nn.Parameter for p in model.parameters()):  # of several ranks
        return None
    now = executor.mark(model)
    if model.steps is None or model.steps.mark != now:
        model.steps = CompiledSteps(model, now, 0 if asked else LATER)
    found: CompiledSteps = model.steps
    return found
