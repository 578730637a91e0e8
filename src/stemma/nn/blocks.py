"""Attention over long rows by document and in blocks of queries: no tensor of T x S, for masks, scores or dropout.

A mask is read as a rule (`MaskRule`). `tiles` turns it into rectangles of queries and keys that see each other, one or
two a document. Where there is no dropout, torch's fused kernel takes each; else matrix products do, and the backward
pass computes a block's probabilities again, with the same draws. Both are one operator of torch, so that a compiled
graph holds it whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stemma.nn import parts
from stemma.nn.cpu import SHORT
from stemma.nn.masks import MaskInputs, MaskRule

QUERIES = 256  # of a block that needs a mask
SCORES = 2**21  # numbers of a block of scores, about
KINDS: dict[str, type[parts.LayerMask]] = {
    "full": parts.Full,
    "causal": parts.Causal,
    "sliding": parts.Sliding,
    "prefix": parts.Prefix,
    "reverse": parts.Reverse,
}


def long(x: Tensor, queries: int, keys: int) -> bool:
    """Whether rows are so long that a CPU takes them in blocks. `x`: any tensor on the device."""
    return x.device.type in ("cpu", "meta") and queries * keys > SHORT**2


# ---------------------------------------------------------------- which queries meet which keys


class Tile(NamedTuple):
    """Queries and keys of some rows that meet: of `queries` by `keys` scores, query i sees key j (both counted in the
    tile) where `lower <= j - i <= upper`, as far as these are given; with `masked`, where the rule says so."""

    rows: slice
    queries: slice
    keys: slice
    upper: int | None = None
    lower: int | None = None
    masked: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """Queries and keys."""
        return self.queries.stop - self.queries.start, self.keys.stop - self.keys.start

    def split(self, size: int) -> Iterator[Tile]:
        """The tile in blocks of `size` queries, without the keys that none of them sees."""
        length, width = self.shape
        for a in range(0, length, size):
            b = min(a + size, length)
            first = 0 if self.lower is None else min(max(0, a + self.lower), width)
            end = width if self.upper is None else max(min(width, b + self.upper), first)
            yield Tile(
                self.rows,
                slice(self.queries.start + a, self.queries.start + b),
                slice(self.keys.start + first, self.keys.start + end),
                None if self.upper is None else self.upper + a - first,
                None if self.lower is None else self.lower + a - first,
                self.masked,
            )


class Run(NamedTuple):
    """A document in a row: its queries and its keys."""

    queries: slice
    keys: slice


def tiles(rule: MaskRule, rows: int, length: int, width: int) -> Iterator[Tile]:
    """Tiles that hold every query of `rows` rows once (T = `length`, S = `width`)."""
    inputs = rule.inputs
    differ = (inputs.qdoc, inputs.not_padding, inputs.prefix, inputs.given)
    if all(x is None for x in differ) and len(inputs.qpos) == 1:
        yield from _of_rows(rule, slice(0, rows), length, width)
        return
    for row in range(rows):
        yield from _of_rows(rule, slice(row, row + 1), length, width)


def _of_rows(rule: MaskRule, rows: slice, length: int, width: int) -> Iterator[Tile]:
    """Tiles of rows that are alike."""
    one = rule.of_row(rows.start)
    runs = _runs(one.inputs, length, width)
    whole = Tile(rows, slice(0, length), slice(0, width), masked=True)
    if runs is None or one.inputs.given is not None or one.inputs.roots is not None or not _counted(one, runs):
        yield whole
    elif one.inputs.not_padding is not None:
        yield from _before_padding(one, whole, one.inputs.not_padding[0])
    else:
        for run in runs:
            yield from _of_run(one, rows, run)


def _before_padding(rule: MaskRule, whole: Tile, real: Tensor) -> Iterator[Tile]:
    """Tiles of a row with padding, which is best at its end."""
    number = int(real.sum())
    plain = isinstance(rule.spec, parts.Full | parts.Causal) and rule.inputs.qdoc is None
    if not plain or number == 0 or not bool(real[:number].all()):
        yield whole
    elif isinstance(rule.spec, parts.Full):
        yield whole._replace(keys=slice(0, number), masked=False)
    else:
        yield Tile(whole.rows, slice(0, number), slice(0, number), upper=0)
        yield Tile(whole.rows, slice(number, whole.queries.stop), slice(0, number))


def _of_run(rule: MaskRule, rows: slice, run: Run) -> Iterator[Tile]:
    queries, keys = run
    size = queries.stop - queries.start
    tile = Tile(rows, queries, keys)
    match rule.spec:
        case parts.Full():
            yield tile
        case parts.Reverse():
            yield tile._replace(lower=0)
        case parts.Sliding(window) if window < size:
            yield tile._replace(upper=0, lower=1 - window)
        case parts.Prefix() if rule.inputs.prefix is not None:
            prefix = rule.inputs.prefix[0]
            first = int(prefix[0 if len(prefix) == 1 else queries.start] - rule.inputs.kpos[0, keys.start])
            first = min(max(first, 0), size)
            middle = queries.start + first
            if first:
                yield Tile(rows, slice(queries.start, middle), slice(keys.start, middle))
            if first < size:
                yield Tile(rows, slice(middle, queries.stop), keys, upper=first)
        case _:
            yield tile._replace(upper=0)


def _runs(inputs: MaskInputs, length: int, width: int) -> list[Run] | None:
    """The documents of a row; None where the number of one comes back after another."""
    if inputs.qdoc is None or inputs.kdoc is None:
        return [Run(slice(0, length), slice(0, width))]
    found: dict[int, slice] = {}
    for number, keys in _stretches(inputs.kdoc[0]):
        if number in found:
            return None
        found[number] = keys
    return [Run(queries, found.get(number, slice(0, 0))) for number, queries in _stretches(inputs.qdoc[0])]


def _stretches(numbers: Tensor) -> list[tuple[int, slice]]:
    """Equal numbers (T) side by side: each number and where it stands."""
    starts = [0, *((numbers[1:] != numbers[:-1]).nonzero().squeeze(1) + 1).tolist()]
    ends = [*starts[1:], len(numbers)]
    return [(n, slice(a, b)) for n, a, b in zip(numbers[starts].tolist(), starts, ends, strict=True)]


def _counted(rule: MaskRule, runs: list[Run]) -> bool:
    """Whether places go up one by one in every document, and its prefix is one number, so that an order of tokens is
    one of their indices."""
    inputs = rule.inputs
    if isinstance(rule.spec, parts.Full):
        return True
    starts = torch.tensor([run.queries.start for run in runs[1:]], dtype=torch.int64)

    def even(x: Tensor, step: int) -> bool:
        right = x[1:] - x[:-1] == step
        right[starts - 1] = True
        return bool(right.all())

    prefix = inputs.prefix
    return (inputs.is_arange or even(inputs.qpos[0], 1)) and (
        prefix is None or len(prefix[0]) == 1 or even(prefix[0], 0)
    )


# ---------------------------------------------------------------- a tile


class Score(NamedTuple):
    """How scores and weights are made: the factor of `q k`, a soft cap, the rate of dropout, and the seed of its
    draws."""

    scale: float
    cap: float | None = None
    rate: float = 0.0
    seed: int = 0

    @property
    def fused(self) -> bool:
        """Whether torch's kernel has all of it."""
        return not self.rate and self.cap is None


def _hidden(tile: Tile, rule: MaskRule, like: Tensor) -> Tensor | None:
    """What is added to the scores of a tile: minus infinity where a key is not seen, 0 elsewhere; 1 1 Q K."""
    if tile.masked:
        seen = rule.of_row(tile.rows.start).seen(tile.queries, tile.keys)
        return None if seen is None else torch.where(seen, 0.0, float("-inf")).to(like.dtype)[:, None]
    length, width = tile.shape
    found = None
    if tile.upper is not None and tile.upper < width - 1:
        found = like.new_full((length, width), float("-inf")).triu_(tile.upper + 1)
    if tile.lower is not None and tile.lower > 1 - length:
        before = like.new_full((length, width), float("-inf")).tril_(tile.lower - 1)
        found = before if found is None else found.add_(before)
    return None if found is None else found[None, None]


def _blocks(rule: MaskRule, q: Tensor, k: Tensor, score: Score) -> Iterator[tuple[Tile, Tensor | None, bool]]:
    """Blocks of all tiles, with what is added to their scores, and whether a block is causal as torch's kernel is."""
    for tile in tiles(rule, q.shape[0], q.shape[2], k.shape[2]):
        length, width = tile.shape
        if not length or not width:
            continue
        square = tile.upper == 0 and tile.lower is None and length == width and not tile.masked
        plain = tile.upper is None and tile.lower is None and not tile.masked
        if score.fused and (square or plain):
            yield tile, None, square
            continue
        size = QUERIES if score.fused else queries_of(q.shape[1], width)
        rows = [tile.rows] if score.fused else [slice(r, r + 1) for r in range(tile.rows.start, tile.rows.stop)]
        for row in rows:
            for block in tile._replace(rows=row).split(size):
                yield block, _hidden(block, rule, q), False


def queries_of(heads: int, width: int) -> int:
    """Queries of a block whose scores are matrices of their own."""
    return min(QUERIES, max(16, SCORES // (heads * width)))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _weights(
    q: Tensor, k: Tensor, hidden: Tensor | None, score: Score, total: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Softmax of the scores of a block, in fp32 at least, and the logsumexp of each query: `total`, computed where it
    is not known; where it is, which is in the backward pass, also the slope of the soft cap."""
    scores = (q @ k.transpose(-1, -2)).to(_wide(q.dtype)).mul_(score.scale)
    slope = None
    if score.cap is not None:
        scores.div_(score.cap).tanh_()
        slope = None if total is None else scores.square().neg_().add_(1.0)
        scores.mul_(score.cap)
    if hidden is not None:
        scores += hidden
    if total is None:
        total = scores.logsumexp(-1)
        total = total.masked_fill_(total == float("-inf"), 0.0)  # a query that sees nothing weighs nothing
    return scores.sub_(total[..., None]).exp_(), total, slope


def _kept(weights: Tensor, score: Score, tile: Tile) -> Tensor:
    """0 where dropout takes a weight, else `1 / (1 - rate)`: a function of the seed and of the place of the block."""
    place = score.seed, tile.rows.start, tile.queries.start, tile.keys.start
    # torch's generator reads 32 bits of a seed, so all that tells blocks apart has to be in these
    seed = hashlib.blake2b(repr(place).encode(), digest_size=4).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(seed, "little"))
    return torch.empty_like(weights).bernoulli_(1.0 - score.rate, generator=generator).div_(1.0 - score.rate)


# ---------------------------------------------------------------- the operator

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def _rule(kind: str, window: int, is_arange: bool, given: list[Tensor | None]) -> MaskRule:
    qpos, kpos, not_padding, qdoc, kdoc, prefix, mask, roots = given
    assert qpos is not None and kpos is not None
    spec = parts.Sliding(window) if kind == "sliding" else KINDS[kind]()
    return MaskRule(spec, MaskInputs(qpos, kpos, is_arange, not_padding, qdoc, kdoc, prefix, given=mask, roots=roots))


def _like_heads(x: Tensor, width: int | None = None) -> Tensor:
    """An empty B H T D (D = `width`) whose heads stand side by side in memory."""
    batch, heads, length, own = x.shape
    return x.new_empty(batch, length, heads, width or own).transpose(1, 2)


@torch.library.custom_op("stemma::attend", mutates_args=())
def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    given: list[Tensor | None],
    kind: str,
    window: int,
    is_arange: bool,
    scale: float,
    cap: float | None,
    rate: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    score = Score(scale, cap, rate, 0 if seed is None else int(seed))
    rule = _rule(kind, window, is_arange, given)
    out, totals = _like_heads(q, v.shape[3]).zero_(), q.new_zeros(q.shape[:3], dtype=_wide(q.dtype))
    for tile, hidden, causal in _blocks(rule, q, k, score):
        rows, queries, keys = tile[:3]
        here = q[rows, :, queries], k[rows, :, keys], v[rows, :, keys]
        if score.fused:
            y, total = _flash(*here, 0.0, causal, attn_mask=hidden, scale=scale)
        else:
            y, total = _mean(here, hidden, score, tile)
        out[rows, :, queries], totals[rows, :, queries] = y, total
    return out, totals


def _mean(
    here: tuple[Tensor, Tensor, Tensor], hidden: Tensor | None, score: Score, tile: Tile
) -> tuple[Tensor, Tensor]:
    """The output of a block, and the logsumexp of each query."""
    weights, total, _ = _weights(here[0], here[1], hidden, score, None)
    if score.rate:
        weights *= _kept(weights, score, tile)
    return weights.to(here[2].dtype) @ here[2], total


@_attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _like_heads(q, v.shape[3]), q.new_empty(q.shape[:3], dtype=_wide(q.dtype))


@torch.library.custom_op("stemma::attend_backward", mutates_args=())
def _attend_backward(
    outer: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    totals: Tensor,
    given: list[Tensor | None],
    kind: str,
    window: int,
    is_arange: bool,
    scale: float,
    cap: float | None,
    rate: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    score = Score(scale, cap, rate, 0 if seed is None else int(seed))
    rule = _rule(kind, window, is_arange, given)
    own = _like_heads(q).zero_(), _like_heads(k).zero_(), _like_heads(v).zero_()
    for tile, hidden, causal in _blocks(rule, q, k, score):
        rows, queries, keys = tile[:3]
        here = q[rows, :, queries], k[rows, :, keys], v[rows, :, keys]
        after = outer[rows, :, queries], out[rows, :, queries], totals[rows, :, queries]
        if score.fused:
            found = _flash_backward(after[0], *here, after[1], after[2], 0.0, causal, attn_mask=hidden, scale=scale)
        else:
            found = _slopes(here, after, hidden, score, tile)
        own[0][rows, :, queries] = found[0]
        own[1][rows, :, keys] += found[1]
        own[2][rows, :, keys] += found[2]
    return own


@_attend_backward.register_fake
def _(outer: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _like_heads(q), _like_heads(k), _like_heads(v)


def _slopes(
    here: tuple[Tensor, Tensor, Tensor],
    after: tuple[Tensor, Tensor, Tensor],
    hidden: Tensor | None,
    score: Score,
    tile: Tile,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients at queries, keys and values of a block. `after`: the gradient of its output, the output, and the
    logsumexp of each query."""
    (q, k, v), (outer, out, total) = here, after
    weights, _, slope = _weights(q, k, hidden, score, total)
    step = (outer @ v.transpose(-1, -2)).to(weights.dtype)
    kept = weights
    if score.rate:
        keep = _kept(weights, score, tile)
        kept, step = weights * keep, step.mul_(keep)
    # what a softmax takes off: the sum over keys of weight times slope, which is the output times its gradient
    step.sub_((outer.to(step.dtype) * out.to(step.dtype)).sum(-1, keepdim=True)).mul_(weights)
    if slope is not None:
        step *= slope
    step = step.mul_(score.scale).to(q.dtype)
    return step @ k, step.transpose(-1, -2) @ q, kept.to(v.dtype).transpose(-1, -2) @ outer


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, given, *how, seed = inputs
    ctx.there = [x is not None for x in given]
    ctx.save_for_backward(q, k, v, *output, seed, *(x for x in given if x is not None))
    ctx.how = how


def _backward(ctx: Any, outer: Tensor, _: Tensor) -> tuple[Any, ...]:
    q, k, v, out, totals, seed, *given = ctx.saved_tensors
    rest = iter(given)
    found = [next(rest) if there else None for there in ctx.there]
    own = _attend_backward(outer, q, k, v, out, totals, found, *ctx.how, seed)
    return *own, *(None,) * 8


_attend.register_autograd(_backward, setup_context=_keep)


def attend(
    q: Tensor, k: Tensor, v: Tensor, rule: MaskRule, scale: float, cap: float | None = None, rate: float = 0.0
) -> Tensor:
    """`softmax(cap(scale q k)) v` over the keys that the rule shows: B H T D, B H S D -> B H T D."""
    if (shared := q.shape[1] // k.shape[1]) > 1:
        k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
    if torch.is_autocast_enabled(q.device.type):
        dtype = torch.get_autocast_dtype(q.device.type)
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    spec, inputs = rule
    kind = next((name for name, cls in KINDS.items() if isinstance(spec, cls)), "causal")
    window = spec.window if isinstance(spec, parts.Sliding) else 0
    given = [getattr(inputs, n) for n in ("qpos", "kpos", "not_padding", "qdoc", "kdoc", "prefix", "given", "roots")]
    seed = torch.randint(2**62, ()) if rate else None
    out, _ = _attend(q, k, v, given, kind, window, inputs.is_arange, scale, cap, rate, seed)
    return out
