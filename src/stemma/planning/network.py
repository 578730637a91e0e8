"""The networks of `stemma.nn` on a tape of sizes: each component's weights, and what a step through it keeps.

A class here stands beside the module of the same name there and takes the same way, without torch. Of many equal blocks
only a few are run, and what the others keep is added (`Stack.more`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from stemma.nn import parts
from stemma.planning.tape import BOOL, FULL, LONG, Sized, Tape

SHORT = 1024  # stemma.nn.cpu: rows up to this long take plain products on a CPU
BLOCK = 128


@dataclass(frozen=True)
class How:
    """How a step is taken: on a CPU or not, in bf16 or fp32, and whether blocks compute their activations again."""

    cpu: bool = False
    half: bool = True
    recompute: bool = False


class Weights:
    """Weights as they are made, by owner."""

    def __init__(self, tape: Tape, how: How) -> None:
        self.tape, self.how = tape, how
        self.all: list[Sized] = []

    def __call__(self, *shape: int) -> Sized:
        made = self.tape.weight(*shape)
        self.all.append(made)
        return made

    @property
    def numel(self) -> int:
        return sum(w.numel for w in self.all)


class Linear:
    def __init__(self, w: Weights, inputs: int, outputs: int, bias: bool = True) -> None:
        self.tape, self.half = w.tape, w.how.half
        self.weight, self.bias = w(outputs, inputs), w(outputs) if bias else None

    def __call__(self, x: Sized) -> Sized:
        return self.tape.linear(x, self.weight, self.bias, self.half)


class Norm:
    """LayerNorm, RMSNorm, Gemma's and that of heads."""

    def __init__(self, w: Weights, spec: parts.Norm | parts.HeadNorm, width: int, heads: int = 1) -> None:
        self.tape, self.spec = w.tape, spec
        own = isinstance(spec, parts.HeadNorm)
        self.weight = w(heads, width) if own else w(width)
        self.bias = w(width) if isinstance(spec, parts.LayerNorm) and spec.bias else None

    def __call__(self, x: Sized) -> Sized:
        tape, item = self.tape, x.item
        match self.spec:
            case parts.LayerNorm():
                return tape.layer_norm(x, self.weight, self.bias)
            case parts.RMSNorm(offset=True):
                return tape.cast(tape.rms_norm(tape.cast(x, FULL), self.weight), item)
            case parts.RMSNorm():
                return self.rms(x)
        return tape.cast(tape.mul(tape.layer_norm(tape.cast(x, FULL), None, None), self.weight), item)

    def rms(self, x: Sized) -> Sized:
        if x.item == FULL:
            return self.tape.rms_norm(x, self.weight)
        tape, wide = self.tape, self.tape.cast(x, FULL)
        rate = tape.unary(tape.mean_square(wide), "out")
        return tape.mul(self.weight, tape.cast(tape.mul(wide, rate), x.item))


def activate(tape: Tape, name: parts.Activation, x: Sized, fused: bool) -> Sized:
    """An activation; GPT's tanh form is written out where it is not `fused`."""
    if name != "gelu_tanh" or fused:
        return tape.unary(x, "out" if name == "relu" else "in")
    power = tape.unary(tape.unary(x, "in"))
    inner = tape.unary(tape.unary(tape.add(x, power)), "out")
    return tape.mul(tape.unary(x), tape.unary(inner))


def capped(tape: Tape, x: Sized) -> Sized:
    return tape.unary(tape.unary(tape.unary(x), "out"))


class MLP:
    def __init__(self, w: Weights, spec: parts.MLP | parts.GatedMLP, dims: parts.Dims, dropout: float) -> None:
        self.tape, self.act, self.dropout = w.tape, spec.act, dropout
        gated = isinstance(spec, parts.GatedMLP)
        self.gate = Linear(w, dims.d_model, dims.d_ff, spec.bias) if gated else None
        self.up, self.down = (
            Linear(w, dims.d_model, dims.d_ff, spec.bias),
            Linear(w, dims.d_ff, dims.d_model, spec.bias),
        )

    def __call__(self, x: Sized) -> Sized:
        if self.gate is None:
            y = activate(self.tape, self.act, self.up(x), True)
        else:
            y = self.tape.mul(activate(self.tape, self.act, self.gate(x), True), self.up(x))
        return self.down(self.tape.dropout(y, self.dropout))


class Experts:
    def __init__(self, w: Weights, spec: parts.Experts, dims: parts.Dims, dropout: float) -> None:
        assert dims.experts is not None and dims.active is not None
        self.tape, self.how, self.act, self.dropout = w.tape, w.how, spec.act, dropout
        self.count, self.active, self.width = dims.experts, dims.active, dims.d_model
        self.router = Linear(w, dims.d_model, dims.experts, False)
        self.gate, self.up = w(dims.experts, dims.d_ff, dims.d_model), w(dims.experts, dims.d_ff, dims.d_model)
        self.down = w(dims.experts, dims.d_model, dims.d_ff)

    def __call__(self, x: Sized) -> Sized:
        tape = self.tape
        n = x.numel // self.width
        taken = n * self.active
        scores = tape.unary(tape.cast(self.router(x.view(n, self.width)), FULL), "out")
        weights, chosen = tape.gather(scores, (n, self.active)), tape.new((n, self.active), LONG)
        weights = tape.mul(weights, tape.unary(tape.spread(weights, n, self.active), "in"))
        order = tape.new((taken,), LONG)
        rows = tape.gather(x.view(n, self.width), (taken, self.width), tape.new((taken,), LONG))
        y = activate(tape, self.act, self.times(rows, self.gate), True)
        y = tape.mul(y, self.times(rows, self.up))
        y = self.times(tape.dropout(y, self.dropout), self.down)
        y = tape.mul(y, tape.cast(tape.gather(weights.view(taken, 1), (taken, 1), order), y.item))
        back = tape.new((taken,), LONG)
        y = tape.gather(y, (taken, self.width), back)
        del chosen
        few = tape.add_up(y, (n, self.width))
        return few.view(*x.shape)

    def times(self, rows: Sized, weight: Sized) -> Sized:
        tape = self.tape
        n = rows.shape[0]
        if self.how.half:
            rows, weight = tape.half(rows), tape.half(weight)
        return tape.matmul(rows, weight, (n, weight.shape[1]))


# ---------------------------------------------------------------- positions


@dataclass(frozen=True)
class Rows:
    """What a batch is to a network: `rows` of `length` tokens (and `goal` of a decoder beside an encoder), with
    `targets` in all; `some`: not every place is one. `packed`: a token sees its own document only; `numbered`:
    positions start anew in each; `lines`: they are the objective's own; `padded`: some tokens are none; `segments`,
    `langs`: are told; `prefix`: a part sees itself whole; `asked`: places a row that a second stream predicts, and
    `memory` tokens before it; `backward`: some rows run from their end; `pairs`: what a row is is predicted too."""

    rows: int
    length: int
    targets: int
    goal: int = 0
    some: bool = True
    packed: bool = False
    numbered: bool = False
    lines: bool = False
    padded: bool = False
    segments: bool = False
    langs: bool = False
    prefix: bool = False
    asked: int = 0
    memory: int = 0
    backward: bool = False
    pairs: bool = False


@dataclass
class Seen:
    """Who sees whom: a mask (1|B 1 T S), the causal flag, or neither."""

    mask: Sized | None = None
    causal: bool = False


@dataclass
class Places:
    """What attention is told of positions: how queries and keys turn, a bias, and what the layer's own part needs."""

    turn: Callable[[Sized], Sized] | None = None
    bias: Sized | None = None
    relative: tuple[Sized | None, ...] | None = None


class Rotary:
    """`stemma.nn.positions.rotate` of the part of a head that turns; `pos`: rows of positions."""

    def __init__(self, tape: Tape, width: int, share: float, pos: int, length: int, blanks: bool) -> None:
        self.tape, self.width, self.parts = tape, int(width * share), 2 if blanks else 1
        half = self.width // 2 // self.parts
        shape = (pos, 1, length, half)
        self.waves = [(tape.new(shape, FULL), tape.new(shape, FULL)) for _ in range(self.parts)]

    def __call__(self, x: Sized) -> Sized:
        tape, shape = self.tape, x.shape
        piece = (*shape[:-1], self.width // self.parts)
        turned = [self.pairs(x if piece == shape else tape.part(x, piece), cos, sin) for cos, sin in self.waves]
        rest = shape[-1] - self.width
        if rest:
            turned.append(tape.part(x, (*shape[:-1], rest)))
        return turned[0] if len(turned) == 1 else tape.cat(turned, shape)

    def pairs(self, x: Sized, cos: Sized, sin: Sized) -> Sized:
        tape = self.tape
        half = (*x.shape[:-1], x.shape[-1] // 2)
        a, b = tape.split(x, (half, half))
        first = tape.add(tape.mul(a, cos), tape.mul(b, sin))
        second = tape.add(tape.mul(b, cos), tape.mul(a, sin))
        return tape.cat([first, second], x.shape)


class Relative:
    """A layer's own part of a position scheme: parameters, and what they make of queries and keys."""

    def __init__(self, w: Weights, arch: parts.Arch, dims: parts.Dims) -> None:
        self.tape, self.half, self.dims, self.spec = w.tape, w.how.half, dims, arch.position
        self.rate, wide = arch.dropout.embed, dims.heads * dims.width
        self.k = self.q = self.r = self.table = None
        bias = arch.attention.bias
        match arch.position:
            case parts.LayerBuckets(buckets):
                self.table = w(buckets, dims.heads)
            case parts.Disentangled() as spec if not spec.shared:
                self.k = Linear(w, dims.d_model, wide, bias and arch.attention.key_bias) if spec.c2p else None
                self.q = Linear(w, dims.d_model, wide, bias) if spec.p2c else None
            case parts.RelativeSinusoidal():
                self.r = Linear(w, dims.d_model, wide, False)
                self.content, self.distance, self.segment = (w(dims.heads, dims.width) for _ in range(3))
                self.segments = w(2, dims.heads, dims.width)

    def __call__(self, attention: Attention, q: Sized, k: Sized, told: tuple[Sized | None, ...]) -> tuple[Sized, Sized]:
        match self.spec:
            case parts.LayerBuckets():
                assert self.table is not None and told[0] is not None
                batch, length, keys = told[0].shape
                return q, self.tape.embedding(self.table, told[0]).view(batch, self.dims.heads, length, keys)
            case parts.RelativeSinusoidal():
                return self.by_waves(q, k, told)
        return q, self.by_table(attention, q, k, told)

    def by_table(self, attention: Attention, q: Sized, k: Sized, told: tuple[Sized | None, ...]) -> Sized:
        assert isinstance(self.spec, parts.Disentangled)
        tape, (rows, which) = self.tape, told
        assert rows is not None
        rows = tape.dropout(rows, self.rate)
        bias = None
        if self.spec.c2p:
            bias = self.pick(q, tape.unary((self.k or attention.k)(rows)), which, q.shape[2])
        if self.spec.p2c:
            met = self.pick(k, tape.unary((self.q or attention.q)(rows)), which, k.shape[2])
            bias = met if bias is None else tape.add(bias, met)
        assert bias is not None
        return bias

    def pick(self, x: Sized, rows: Sized, which: Sized | None, length: int) -> Sized:
        batch, heads, _, width = x.shape
        number = rows.shape[0]
        rows = self.tape.half(rows) if self.half else rows
        y = self.tape.matmul(x.view(heads, batch * length, width), rows, (batch, heads, length, number))
        if which is not None:
            return self.tape.gather(y, (batch, heads, length, which.shape[-1]), which, True)
        return self.tape.part(y, (batch, heads, length, length))

    def by_waves(self, q: Sized, k: Sized, told: tuple[Sized | None, ...]) -> tuple[Sized, Sized]:
        tape, (r, first, different, hidden) = self.tape, told
        assert r is not None
        batch, heads, length, _ = q.shape
        keys = k.shape[2]
        asked = tape.unary(tape.add(q, self.distance.view(heads, 1, self.dims.width)))
        if self.half:
            asked, r = tape.half(asked), tape.half(r)
        products = tape.matmul(asked, r, (batch, heads, length, r.shape[2]), (True, True))
        shape = (batch, heads, length, keys)
        if first is not None:
            bias = tape.gather(products, shape, tape.new((batch, length, keys), LONG), True)
        else:
            bias = tape.part(products, shape) if length > 1 else products
        if different is not None:
            step = tape.unary(tape.unary(tape.part(self.segments, self.segment.shape)))
            jump = tape.mul(tape.add(q, self.segment.view(heads, 1, self.dims.width)), step.view(heads, 1, -1))
            few = tape.add_up(jump, (batch, heads, length, 1))
            del jump
            bias = tape.addcmul(bias, few, different)
        if hidden is not None:
            bias = tape.masked(bias, hidden)
        return tape.add(q, self.content.view(heads, 1, self.dims.width)), bias


# ---------------------------------------------------------------- attention


class Attention:
    def __init__(
        self, w: Weights, spec: parts.Attention, dims: parts.Dims, dropout: float, relative: Relative | None
    ) -> None:
        self.tape, self.how, self.dims, self.spec, self.dropout = w.tape, w.how, dims, spec, dropout
        self.shared, self.relative = dims.heads // dims.kv, relative
        norm = spec.qk_norm
        self.q_norm = Norm(w, norm, dims.width, dims.heads) if norm is not None else None
        self.k_norm = Norm(w, norm, dims.width, dims.kv) if norm is not None else None
        self.q = Linear(w, dims.d_model, dims.heads * dims.width, spec.bias)
        self.k = Linear(w, dims.d_model, dims.kv * dims.width, spec.bias and spec.key_bias)
        self.v = Linear(w, dims.d_model, dims.kv * dims.width, spec.bias)
        self.o = Linear(w, dims.heads * dims.width, dims.d_model, spec.out_bias)

    def split(self, x: Sized) -> Sized:  # B T H*D -> B H T D
        width = self.dims.width
        return x.view(x.shape[0], x.shape[2] // width, x.shape[1], width)

    def keys(self, source: Sized) -> tuple[Sized, Sized]:
        k = self.split(self.k(source))
        return k if self.k_norm is None else self.k_norm(k), self.split(self.v(source))

    def __call__(
        self,
        x: Sized,
        seen: Seen,
        places: Places,
        known: tuple[Sized, Sized] | None = None,
        past: tuple[Sized, Sized] | None = None,
        note: Callable[[tuple[Sized, Sized]], None] | None = None,
    ) -> Sized:
        q = self.split(self.q(x))
        if self.q_norm is not None:
            q = self.q_norm(q)
        k, v = known if known is not None else self.keys(x)
        if places.turn is not None:
            q = places.turn(q)
        if past is not None:
            k, v = (
                self.tape.cat([old, new], (*new.shape[:2], old.shape[2] + new.shape[2], new.shape[3]))
                for old, new in zip(past, (k, v), strict=True)
            )
        if note is not None:
            note((k, v))
        if places.turn is not None:
            k = places.turn(k)
        bias = places.bias
        if self.relative is not None and places.relative is not None:
            q, bias = self.relative(self, q, k, places.relative)
        y = self.attend(q, k, v, seen, bias)
        width = self.dims.heads * self.dims.width
        turned = places.turn is not None or self.how.cpu  # numbers that do not lie token by token
        y = self.tape.copy(y, False) if turned else y
        return self.o(y.view(x.shape[0], x.shape[1], width))

    def attend(self, q: Sized, k: Sized, v: Sized, seen: Seen, bias: Sized | None) -> Sized:
        tape, mask, causal = self.tape, seen.mask, seen.causal
        if bias is not None:
            if causal:
                mask, causal = tape.new((q.shape[2], k.shape[2]), BOOL), False
            mask = bias if mask is None else tape.masked(bias, tape.new(mask.shape, BOOL))
        if self.spec.softcap is not None or (self.how.cpu and q.shape[2] * k.shape[2] <= SHORT**2):
            return self.plainly(q, k, v, mask, causal)
        if self.how.half:
            q, k, v = tape.half(q), tape.half(k), tape.half(v)
        return tape.attention(q, k, v, mask if mask is not None and mask.item != BOOL else None)

    def plainly(self, q: Sized, k: Sized, v: Sized, mask: Sized | None, causal: bool) -> Sized:
        tape = self.tape
        if self.shared > 1:
            k, v = (tape.repeat(x, (x.shape[0], q.shape[1], *x.shape[2:])) for x in (k, v))
        q = tape.unary(q)
        if not causal:
            return self.weighted(q, k, v, mask)
        length = q.shape[2]
        before = tape.new((length, length), BOOL)
        blocks = []
        for i in range(0, length, BLOCK):
            end = min(i + BLOCK, length)
            few = q if length <= BLOCK else tape.part(q, (*q.shape[:2], end - i, q.shape[3]))
            keys, values = (y if end == length else tape.part(y, (*y.shape[:2], end, y.shape[3])) for y in (k, v))
            blocks.append(self.weighted(few, keys, values, Sized((1, 1, end - i, end), BOOL, before.store)))
        return blocks[0] if len(blocks) == 1 else tape.cat(blocks, (*q.shape[:3], v.shape[3]))

    def weighted(self, q: Sized, k: Sized, v: Sized, mask: Sized | None) -> Sized:
        tape, half = self.tape, self.how.half
        if half:
            q, k = tape.half(q), tape.half(k)
        apart = q.shape[0] > 1 and self.shared == 1  # rows of heads do not follow each other: a product copies them
        scores = tape.matmul(q, k, (*q.shape[:3], k.shape[2]), (apart, apart))
        if self.spec.softcap is not None:
            scores = capped(tape, scores)
        if mask is not None:
            bits = mask.item == BOOL
            scores = tape.masked(scores, tape.new(mask.shape, BOOL)) if bits else tape.add(scores, mask)
        weights = tape.dropout(tape.unary(scores, "out"), self.dropout)
        del scores
        if half:
            weights, v = tape.half(weights), tape.half(v)
        return tape.matmul(weights, v, (*q.shape[:3], v.shape[3]), (False, apart))


# ---------------------------------------------------------------- blocks


class Block:
    def __init__(self, w: Weights, arch: parts.Arch, dims: parts.Dims, cross: bool) -> None:
        self.tape, self.arch, self.w = w.tape, arch, w
        self.rate, self.kind = arch.dropout.residual, arch.residual
        own = isinstance(arch.position, parts.LayerBuckets | parts.Disentangled | parts.RelativeSinusoidal)
        self.norms: dict[str, Norm] = {}
        one = isinstance(arch.residual, parts.Parallel)
        names = ["attention"] if one else ["attention", *(["cross"] if cross else []), "mlp"]
        for name in names:
            self.norms[name] = Norm(w, arch.norm, dims.d_model)
            if isinstance(arch.residual, parts.Sandwich):
                self.norms[f"{name}_out"] = Norm(w, arch.norm, dims.d_model)
        self.attention = Attention(
            w, arch.attention, dims, arch.dropout.attention, Relative(w, arch, dims) if own else None
        )
        self.cross = Attention(w, arch.attention, dims, arch.dropout.attention, None) if cross else None
        kind = Experts if isinstance(arch.mlp, parts.Experts) else MLP
        self.mlp = kind(w, arch.mlp, dims, arch.dropout.inner)  # type: ignore[arg-type]

    def join(self, x: Sized, name: str, branch: Callable[[Sized], Sized]) -> Sized:
        tape = self.tape
        match self.kind:
            case parts.PostNorm():
                return self.norms[name](tape.add(x, tape.dropout(branch(x), self.rate)))
            case parts.PreNorm():
                return tape.add(x, tape.dropout(branch(self.norms[name](x)), self.rate))
            case parts.Sandwich():
                y = self.norms[f"{name}_out"](branch(self.norms[name](x)))
                return tape.add(x, tape.dropout(y, self.rate))
            case parts.DeepNorm():
                return self.norms[name](tape.add(tape.unary(x), tape.dropout(branch(x), self.rate)))
        raise AssertionError(self.kind)

    def __call__(
        self,
        x: Sized,
        seen: Seen,
        places: Places,
        memory: tuple[Sized, Sized] | None = None,
        memory_seen: Seen | None = None,
        past: tuple[Sized, Sized] | None = None,
        note: Callable[[tuple[Sized, Sized]], None] | None = None,
    ) -> Sized:
        tape, there, none = self.tape, memory_seen or Seen(), Places()
        cross = self.cross
        if isinstance(self.kind, parts.Parallel):
            y = self.norms["attention"](x)
            x = tape.add(x, tape.dropout(self.attention(y, seen, places), self.rate))
            if cross is not None:
                x = tape.add(x, tape.dropout(cross(y, there, none, memory), self.rate))
            return tape.add(x, tape.dropout(self.mlp(y), self.rate))
        x = self.join(x, "attention", lambda y: self.attention(y, seen, places, None, past, note))
        if cross is not None:
            x = self.join(x, "cross", lambda y: cross(y, there, none, memory))
        return self.join(x, "mlp", self.mlp)

    def reread(self, x: Sized, source: Sized, seen: Seen, places: Places) -> Sized:
        known = self.attention.keys(source)
        x = self.join(x, "attention", lambda y: self.attention(y, seen, places, known))
        return self.join(x, "mlp", self.mlp)


# ---------------------------------------------------------------- the stack


class Stack:
    """Blocks with what stands before and after them. `more`: equal blocks that are not run; each keeps `acts` bytes for
    its gradient and has gradients of `block` weights."""

    RUN = 4  # the first, which differs in what stands before it, two alike and the last

    def __init__(
        self, w: Weights, arch: parts.Arch, dims: parts.Dims, layers: int, mask: parts.Mask, cross: bool, name: str
    ) -> None:
        self.w, self.tape, self.arch, self.dims, self.name, self.mask = w, w.tape, arch, dims, name, mask
        first, width = len(w.all), dims.embed_width
        self.tables: list[Sized] = []
        self.table_norm: Norm | None = None
        match arch.position:
            case parts.Learned(padding, offset):
                self.tables = [w(dims.context + offset + (0 if padding is None else padding + 1), width)]
            case parts.BlankLearned():
                self.tables = [w(dims.context + 1, width), w(dims.context + 1, width)]
            case parts.Buckets(buckets) if not isinstance(arch.position, parts.LayerBuckets):
                self.tables = [w(buckets, dims.heads)]
            case parts.Disentangled() as spec:
                self.tables = [w(2 * (spec.distance if spec.buckets is None else spec.buckets), dims.d_model)]
                self.table_norm = Norm(w, arch.norm, dims.d_model) if spec.norm else None
        self.embed_norm = Norm(w, arch.norm, width) if arch.embed_norm else None
        self.project = Linear(w, dims.embed, dims.d_model) if dims.embed is not None else None
        whole = dims.groups is not None or arch.streams is not None
        run = layers if whole else min(layers, self.RUN)
        self.more = layers - run
        groups = dims.groups if dims.groups is not None else layers
        self.order = [i * groups // layers * dims.inner + j for i in range(layers) for j in range(dims.inner)][
            : run * dims.inner
        ]
        self.blocks: list[Block] = []
        start = first
        self.count = groups * dims.inner if whole else layers
        before = len(w.all)
        for _ in range(groups * dims.inner if whole else run):
            start = len(w.all)
            self.blocks.append(Block(w, arch, dims, cross))
        self.one, self.inside = w.all[start:], w.all[before:]
        self.conv: Sized | None = None
        if arch.convolution is not None:
            self.conv, self.conv_bias = w(dims.d_model, dims.d_model, arch.convolution.kernel), w(dims.d_model)
            self.conv_norm = Norm(w, arch.norm, dims.d_model)
        last = isinstance(arch.residual, parts.PreNorm | parts.Sandwich | parts.Parallel)
        self.norm = Norm(w, arch.norm, dims.d_model) if last else None
        self.query = w(dims.d_model) if arch.streams is not None else None
        tables = {id(t) for t in self.tables} | {
            id(b.attention.relative.table) for b in self.blocks if b.attention.relative is not None
        }

        def matrices(weights: list[Sized]) -> int:
            """Numbers that a token is multiplied with: of several experts, those that it takes."""
            flat = sum(x.numel for x in weights if len(x.shape) == 2 and id(x) not in tables)
            if dims.experts is None or dims.active is None:
                return flat
            return flat + sum(x.numel for x in weights if len(x.shape) == 3) * dims.active // dims.experts

        self.block = sum(x.numel for x in self.one)
        self.numel = sum(x.numel for x in w.all[first:]) + self.more * self.block
        self.matrices = matrices(w.all[first:]) + self.more * matrices(self.one)
        self.acts = 0

    # ------------------------------------------------------------ what attention is told

    def given(self, rows: Rows) -> bool:
        """Whether this stack is given positions (`stemma.objectives.base.layout`)."""
        position = self.arch.position
        if isinstance(position, parts.Rotary | parts.Buckets):
            return rows.lines
        if isinstance(position, parts.Disentangled) and not isinstance(self.arch.heads.lm, parts.EMDHead):
            return rows.lines
        return rows.numbered or rows.lines

    def visible(self, mask: parts.LayerMask, rows: Rows, length: int) -> Seen:
        tape = self.tape
        ordered = not isinstance(mask, parts.Full | parts.Open)
        window = mask.window if isinstance(mask, parts.Sliding) else None
        given = self.given(rows)
        prefix = rows.prefix and isinstance(mask, parts.Prefix)
        alone = not rows.padded and not rows.packed and not prefix
        if not given and alone and (window is None or length <= window):
            return Seen(causal=ordered)
        batch = rows.rows if given or rows.packed or rows.padded or prefix else 1
        far = tape.new((rows.rows if given else 1, length, length), LONG)
        seen = tape.new((batch, length, length), BOOL) if ordered or rows.packed or rows.padded else None
        del far
        return Seen(None if seen is None else seen.view(batch, 1, length, length))

    def places(self, masks: list[parts.LayerMask], rows: Rows, length: int) -> dict[parts.LayerMask, Places]:
        known: dict[bool, Places] = {}
        found = {}
        for mask in masks:
            local = self.arch.local is not None and isinstance(mask, parts.Sliding)
            if local not in known:
                known[local] = self.scheme(self.arch.local if local else self.arch.position, rows, length)  # type: ignore[arg-type]
            found[mask] = known[local]
        return found

    def scheme(self, spec: parts.Position, rows: Rows, length: int) -> Places:
        tape, given = self.tape, self.given(rows)
        batch = rows.rows if given else 1
        match spec:
            case parts.Rotary(share=share):
                return Places(Rotary(tape, self.dims.width, share, batch, length, False))
            case parts.BlankRotary():
                return Places(Rotary(tape, self.dims.width, 1.0, batch, length, True))
            case parts.LayerBuckets():
                return Places(relative=(tape.new((batch, length, length), LONG),))
            case parts.Buckets():
                biases = tape.embedding(self.tables[0], tape.new((batch, length, length), LONG))
                return Places(bias=tape.copy(biases.view(batch, self.dims.heads, length, length)))
            case parts.Disentangled():
                table = self.tables[0] if self.table_norm is None else self.table_norm(self.tables[0])
                if not given and length <= table.shape[0] // 2:
                    return Places(relative=(tape.gather(table, (2 * length, self.dims.d_model)), None))
                return Places(relative=(table, tape.new((batch, length, length), LONG)))
        return Places()

    def enter(self, x: Sized, rows: Rows) -> Sized:
        tape, (_, length, width) = self.tape, x.shape
        batch = rows.rows if self.given(rows) else 1
        match self.arch.position:
            case parts.Learned(padding, offset):
                batch = rows.rows if padding is not None else batch
                counted = offset or padding is not None
                index = tape.new((batch, length), LONG) if counted else None
                x = tape.add(x, tape.embedding(self.tables[0], index, batch, length))
            case parts.Sinusoidal():
                x = tape.add(x, tape.new((batch, length, width), FULL))
            case parts.BlankLearned():
                one, two = (tape.embedding(t, None, batch, length) for t in self.tables)
                x = tape.add(x, tape.add(one, two))
                del one, two
        if self.embed_norm is not None:
            x = self.embed_norm(x)
        if rows.padded and isinstance(self.arch.position, parts.Disentangled):
            x = tape.mul(x, tape.new((rows.rows, length, 1), BOOL))
        x = tape.dropout(x, self.arch.dropout.embed)
        return x if self.project is None else self.project(x)

    # ------------------------------------------------------------ the way through

    def __call__(self, x: Sized, rows: Rows, memory: Sized | None = None, memory_seen: Seen | None = None) -> Left:
        tape, length = self.tape, x.shape[1]
        x = self.enter(x, rows)
        kinds = list(dict.fromkeys(layer_mask(self.mask, i) for i in range(len(self.order))))
        seen = {mask: self.visible(mask, rows, length) for mask in kinds}
        places = self.places(kinds, rows, length)
        start = before = x
        lives = []
        for at, number in enumerate(self.order):
            block, mask = self.blocks[number], layer_mask(self.mask, at)
            lives.append(tape.live)
            if self.more and at == self.RUN - 1:
                x = self.pass_more(x, lives)
            known = None
            if memory is not None:
                assert block.cross is not None
                known = block.cross.keys(memory)
            before = x
            x = self.through(block, x, seen[mask], places[mask], known, memory_seen)
            if at == 0 and self.conv is not None:
                x = self.convolve(start, x, rows)
        if self.norm is not None:
            x = self.norm(x)
        return Left(tape.dropout(x, self.arch.dropout.final), before, seen[mask], places[mask])

    def pass_more(self, x: Sized, lives: list[int]) -> Sized:
        """Before the last block: from here on there are the activations of the blocks that are not run, until the
        backward pass comes back, which leaves their gradients."""
        tape, name = self.tape, self.name
        if tape.grad:
            self.acts = lives[-1] - lives[-2]
        grads = tape.state.get(name, (0, 0))[1]
        tape.enter(name, 1, grads)
        return tape.mark(x, lambda: tape.enter(name, 0, 1))

    def through(
        self, block: Block, x: Sized, seen: Seen, places: Places, known: tuple[Sized, Sized] | None, there: Seen | None
    ) -> Sized:
        if not self.w.how.recompute:
            return block(x, seen, places, known, there)
        return self.tape.forgetting(lambda: block(x, seen, places, known, there))

    def convolve(self, x: Sized, beside: Sized, rows: Rows) -> Sized:
        """Each token with its neighbours, as a product."""
        assert self.conv is not None and self.arch.convolution is not None
        tape, shape, kernel = self.tape, x.shape, self.arch.convolution.kernel
        real = tape.new((*shape[:2], 1), BOOL) if rows.padded else None
        if real is not None:
            x = tape.mul(x, real)
        near = tape.part(x, (*shape, kernel))
        near = tape.masked(near, tape.new((*shape[:2], 1, kernel), BOOL)) if rows.packed else tape.copy(near)
        y = tape.linear(
            near.view(*shape[:2], shape[2] * kernel),
            self.conv.view(shape[2], shape[2] * kernel),
            self.conv_bias,
            self.w.how.half,
        )
        y = tape.dropout(y, self.arch.dropout.residual)
        if real is None:
            return self.conv_norm(tape.add(beside, activate(tape, self.arch.convolution.act, y, False)))
        y = activate(tape, self.arch.convolution.act, tape.mul(y, real), False)
        return tape.mul(self.conv_norm(tape.add(beside, y)), real)


@dataclass
class Left:
    """What a stack leaves: its last hidden state, the input of its last block, what that saw and was told."""

    hidden: Sized
    before: Sized
    seen: Seen
    places: Places


def layer_mask(spec: parts.Mask, layer: int) -> parts.LayerMask:
    """The mask of one layer."""
    match spec:
        case parts.Cycle(masks):
            return masks[layer % len(masks)]
        case parts.Memory():
            return parts.Causal()
    return spec
