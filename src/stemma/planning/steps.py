"""Whole training steps on a tape of sizes: `stemma.nn.Model` and the losses of `stemma.objectives`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from stemma.declare import objectives as declared
from stemma.nn import parts
from stemma.planning.network import (
    Block,
    How,
    Left,
    Linear,
    Norm,
    Places,
    Rows,
    Seen,
    Stack,
    Weights,
    activate,
    capped,
)
from stemma.planning.tape import BOOL, FULL, LONG, Leaf, Sized, Tape

LOGITS = 2**25  # stemma.objectives.vocabulary: logits held at once


class Head:
    """The language-model head, on hidden states ... D."""

    def __init__(self, w: Weights, arch: parts.Arch, dims: parts.Dims, tokens: Sized) -> None:
        spec = arch.heads.lm
        assert spec is not None
        self.tape, self.spec, self.half = w.tape, spec, w.how.half
        first = len(w.all)
        if isinstance(spec, parts.LMHead):
            own = None if spec.tied else w(dims.vocab, dims.d_model)
            self.bias = w(dims.vocab) if spec.bias else None
        else:
            self.dense, self.norm = Linear(w, dims.d_model, dims.embed_width), Norm(w, arch.norm, dims.embed_width)
            own = None if spec.tied else w(dims.vocab, dims.embed_width)
            self.bias = w(dims.vocab)
        self.weight = tokens if own is None else own
        self.weights = [self.weight, *(x for x in w.all[first:] if x is not own)]
        self.positions = w(dims.context, dims.d_model) if isinstance(spec, parts.EMDHead) else None

    def __call__(self, x: Sized) -> Sized:
        tape, spec = self.tape, self.spec
        if isinstance(spec, parts.LMHead):
            y = tape.linear(tape.unary(x) if spec.scaled else x, self.weight, self.bias, self.half)
            y = tape.unary(y) if spec.factor != 1.0 else y
            return y if spec.softcap is None else capped(tape, y)
        y = self.norm(activate(tape, spec.act, self.dense(x), False))
        return tape.linear(y, self.weight, self.bias, self.half)

    def loss(self, states: Sized, z: bool, smoothing: bool, number: int | None = None) -> Sized:
        """The summed cross-entropy of hidden states (N D), in chunks where logits would be too many."""
        tape = self.tape
        n, width = states.shape
        rows = max(1, LOGITS // self.weight.shape[0])
        if n <= rows:
            return self.summed(states, z, smoothing)
        if not tape.grad or states.node is None:
            self.summed(Sized((rows, width), states.item, states.store), z, smoothing)
            return tape.new((1,), FULL)
        found, used = self.chunks(states, rows, z, smoothing)
        shapes = [states.shape, *(w.shape for w in used)]

        def back(g: Sized, saved: tuple[Sized, ...]) -> list[Sized | None]:
            return [tape.new(shape, FULL) for shape in shapes]

        return tape.op([states, *used], tape.new((1,), FULL), found, back)

    def chunks(self, states: Sized, rows: int, z: bool, smoothing: bool) -> tuple[tuple[Sized, ...], list[Sized]]:
        """The gradients of hidden states and of the weights that the head uses, chunk by chunk."""
        tape, nodes, shards = self.tape, [w.node for w in self.weights], self.tape.shards
        inputs = tape.like(states)
        sums: list[Sized | None] = [None] * len(self.weights)
        tape.shards = 1  # these are not yet the gradients that are kept
        left = states.shape[0]
        for part in ([rows] * 3)[: left // rows] + ([left % rows] if left < 3 * rows and left % rows else []):
            leaves = [Leaf() for _ in self.weights]
            for w, leaf in zip(self.weights, leaves, strict=True):
                w.node = leaf
            start = Leaf()
            tape.backward(self.summed(Sized((part, states.shape[1]), states.item, states.store, start), z, smoothing))
            for i, (w, leaf) in enumerate(zip(self.weights, leaves, strict=True)):
                if leaf.grad is not None and sums[i] is None:
                    sums[i] = Sized(w.shape, FULL, leaf.grad)
            del leaves, leaf, start  # a chunk's gradients go before the next one's come
        tape.shards = shards
        for w, node in zip(self.weights, nodes, strict=True):
            w.node = node
        used = [w for w, g in zip(self.weights, sums, strict=True) if g is not None]
        return (inputs, *(g for g in sums if g is not None)), used

    def summed(self, states: Sized, z: bool, smoothing: bool) -> Sized:
        tape = self.tape
        logits = tape.cast(self(states), FULL)
        loss = tape.cross_entropy(logits, smoothing)
        if z:
            loss = tape.add(loss, tape.log_sum(logits))
        return loss


class TwoStreams(Stack):
    """Content and queries (`stemma.nn.two_stream`)."""

    told: tuple[Sized | None, ...] = ()  # of positions, by the last call

    def streams(self, x: Sized, rows: Rows, past: list[Sized] | None, kept: list[Sized]) -> Sized:
        """The query stream where `rows.asked`, else content."""
        tape, dims, length = self.tape, self.dims, x.shape[1]
        batch, keys = rows.rows, length + (0 if past is None else rows.memory)
        h = self.enter(x, rows)
        hidden = asked_hidden = None
        if rows.asked or rows.padded:
            hidden = tape.new((batch, length, keys), BOOL)
            asked_hidden = tape.new((batch, rows.asked, keys), BOOL) if rows.asked else None
        different = tape.new((batch, length, keys), FULL) if rows.segments else None
        asked_different = tape.new((batch, rows.asked, keys), FULL) if rows.segments and rows.asked else None
        wave = tape.dropout(
            tape.new((batch if rows.backward else 1, length + keys, dims.d_model), FULL), self.arch.dropout.embed
        )
        first = tape.new((batch, rows.asked, 1), LONG)
        g: Sized | None = None
        if rows.asked:
            assert self.query is not None
            g = tape.dropout(tape.spread(self.query, batch, rows.asked, dims.d_model), self.arch.dropout.embed)
        weight = tape.new((batch, rows.asked, 1), FULL) if rows.asked else None
        for at, number in enumerate(self.order):
            block = self.blocks[number]
            attention = block.attention
            kept.append(h.detach())
            assert attention.relative is not None and attention.relative.r is not None
            r = attention.relative.r(wave)
            r = r.view(r.shape[0], dims.heads, r.shape[1], dims.width)
            before = None if past is None else attention.keys(past[at])
            noted: list[tuple[Sized, Sized]] = []
            if g is not None and at == len(self.order) - 1:
                k, v = attention.keys(h)
                if before is not None:
                    k, v = (
                        tape.cat([old, new], (*new.shape[:2], keys, new.shape[3]))
                        for old, new in zip(before, (k, v), strict=True)
                    )
                noted.append((k, v))
                del k, v
            else:
                told = Places(relative=(r, None, different, hidden))
                h = block(h, Seen(), told, None, None, before, noted.append)
            if g is not None:
                g = _ask(block, g, noted[0], Places(relative=(r, first, asked_different, asked_hidden)), weight)
        kept.append(h)  # what the stack leaves is held until the loss is known
        self.told = (different, hidden, r)
        return tape.dropout(h if g is None else g, self.arch.dropout.final)


def _ask(block: Block, g: Sized, keys: tuple[Sized, Sized], told: Places, weight: Sized | None) -> Sized:
    def attend(y: Sized) -> Sized:
        y = block.attention(y, Seen(), told, keys)
        return y if weight is None else block.tape.mul(y, weight)

    return block.join(block.join(g, "attention", attend), "mlp", block.mlp)


class Network:
    """`stemma.nn.Model`: embeddings, an encoder, a decoder or both, heads. `shared`: a network whose embeddings these
    are too."""

    def __init__(self, tape: Tape, how: How, arch: parts.Arch, dims: parts.Dims, name: str = "") -> None:
        self.tape, self.arch, self.dims, self.how = tape, arch, dims, how
        self.beside = False  # whether token embeddings are added to those of another network
        w = self.w = Weights(tape, how)
        both = arch.structure == "encoder-decoder"
        self.tokens = w(dims.vocab, dims.embed_width)
        self.segments = w(dims.segments, dims.embed_width) if dims.segments else None
        self.languages = w(dims.languages, dims.embed_width) if dims.languages else None
        around = parts.Full() if both else arch.mask
        kind = Stack if arch.streams is None else TwoStreams
        self.encoder = (
            kind(w, arch, dims, dims.layers, around, False, f"{name}encoder") if arch.structure != "decoder" else None
        )
        depth = dims.depth if both else dims.layers
        self.decoder = (
            Stack(w, arch, dims, depth, arch.mask, both, f"{name}decoder") if arch.structure != "encoder" else None
        )
        heads = arch.heads
        self.lm = Head(w, arch, dims, self.tokens) if heads.lm is not None else None
        dense = heads.pooler is not None and heads.pooler.act is not None
        self.pooler = Linear(w, dims.d_model, dims.d_model) if dense else None
        self.pair = Linear(w, dims.d_model, 2) if heads.pair else None
        self.detect: tuple[Linear, Linear] | None = None
        self.detect_norm: Norm | None = None
        if heads.detect is not None:
            self.detect = Linear(w, dims.d_model, dims.d_model), Linear(w, dims.d_model, 1)
            context = isinstance(heads.detect, parts.ContextDetector)
            self.detect_norm = Norm(w, arch.norm, dims.d_model) if context else None
        if heads.task is not None:
            self.task(heads.task)

    def task(self, spec: parts.Task) -> None:
        """The weights of a head that a network is tuned for; a pretraining step does not run it."""
        w, width = self.w, self.dims.d_model
        own = spec.summary if isinstance(spec, parts.Classify | parts.Choose) else None
        if own is not None and own.act is not None:
            Linear(w, width, width)
        match spec:
            case parts.Classify(labels=labels, bias=bias) | parts.Tag(labels=labels, bias=bias):
                Linear(w, width, labels, bias)
            case parts.Answer():
                Linear(w, width, 2)
            case parts.Choose(through=None):
                Linear(w, width, 1)
            case parts.Choose(through=int(inner)):
                Linear(w, width, inner), Linear(w, inner, 1)

    @property
    def stacks(self) -> list[Stack]:
        return [s for s in (self.encoder, self.decoder) if s is not None]

    @property
    def numel(self) -> int:
        """Parameters, tied ones once."""
        return self.w.numel + sum(s.more * s.block for s in self.stacks)

    @property
    def shapes(self) -> list[tuple[tuple[int, ...], int, bool]]:
        """The shape of each weight, how many there are of it, and whether it is one of a block."""
        inside = {id(x) for s in self.stacks for x in s.inside}
        found = [(x.shape, 1, id(x) in inside) for x in self.w.all]
        return found + [(x.shape, s.more, True) for s in self.stacks if s.more for x in s.one]

    # ------------------------------------------------------------ a forward pass

    def embed(self, rows: Rows, length: int, segments: bool) -> Sized:
        tape = self.tape
        x = tape.embedding(self.tokens, None, rows.rows, length)
        if self.beside:
            x = tape.add(x, tape.like(x))
        x = tape.unary(x) if self.arch.embed_scale and self.dims.d_model != 1 else x
        if self.languages is not None and rows.langs:
            x = tape.add(x, tape.embedding(self.languages, None, rows.rows, length))
        if self.segments is None:
            return x
        if segments:
            return tape.add(x, tape.embedding(self.segments, None, rows.rows, length))
        return tape.add(x, tape.part(self.segments, (self.dims.embed_width,)))

    def encode(self, rows: Rows) -> Left:
        assert self.encoder is not None
        told = rows.segments and self.dims.segments > 1
        return self.encoder(self.embed(rows, rows.length, told), rows)

    def read(self, left: Left) -> Sized:
        """What the language-model head is given."""
        if self.lm is None or self.lm.positions is None or self.encoder is None:
            return left.hidden
        tape = self.tape
        _, length, _ = left.before.shape
        x = tape.add(left.before, tape.embedding(self.lm.positions, None, left.before.shape[0], length))
        for _ in range(2):
            x = self.encoder.blocks[-1].reread(x, left.before, left.seen, left.places)
        return x

    def decode(self, rows: Rows, length: int, memory: Sized | None = None) -> Sized:
        assert self.decoder is not None
        there = None
        if memory is not None and (rows.packed or rows.padded):
            shape = (rows.rows, 1, length if rows.packed else 1, rows.length)
            there = Seen(self.tape.new(shape, BOOL))
        return self.decoder(self.embed(rows, length, False), rows, memory, there).hidden

    def token_loss(self, hidden: Sized, rows: Rows, z: bool = False, smoothing: bool = False) -> Sized:
        assert self.lm is not None
        flat = hidden.view(hidden.shape[0] * hidden.shape[1], hidden.shape[2])
        if rows.some:
            flat = self.tape.gather(flat, (rows.targets, hidden.shape[2]))
        return self.lm.loss(flat, z, smoothing)

    def found(self, hidden: Sized) -> Sized:
        """The detector's logits."""
        assert self.detect is not None and self.arch.heads.detect is not None
        tape = self.tape
        if self.detect_norm is not None:
            hidden = self.detect_norm(tape.add(tape.gather(hidden, hidden.shape), hidden))
        y = self.detect[1](activate(tape, self.arch.heads.detect.act, self.detect[0](hidden), False))
        return tape.cast(y, FULL)


@dataclass(frozen=True)
class Other:
    """A network beside the model, by role."""

    role: str
    arch: parts.Arch
    dims: parts.Dims
    learns: bool


class Step:
    """A training step of a network and those beside it: what it has at once (`peak`), of which the gradients of a
    process are one of `shards` parts."""

    def __init__(
        self,
        arch: parts.Arch,
        dims: parts.Dims,
        goal: declared.Objective,
        how: How,
        others: tuple[Other, ...] = (),
        shards: int = 1,
        watched: bool = False,
    ) -> None:
        self.tape = Tape(shards, watched)
        self.goal, self.how = goal, how
        self.model = Network(self.tape, how, arch, dims)
        self.others = {o.role: Network(self.tape, how, o.arch, o.dims, o.role) for o in others}
        self.numel = self.model.numel
        for other in others:
            net = self.others[other.role]
            if other.learns and isinstance(goal, declared.RTD):
                self.model.beside = goal.sharing == "disentangled"
                if goal.sharing == "tied":
                    self.share(net)
            if other.learns:
                self.numel += net.numel

    def share(self, other: Network) -> None:
        """Embeddings, absolute positions and their norm are the same for both."""
        assert other.lm is not None and other.encoder is not None and self.model.encoder is not None
        ours, theirs = self.model, other
        both: list[tuple[Sized, Sized]] = [(ours.tokens, theirs.tokens)]
        for a, b in ((ours.segments, theirs.segments), (ours.languages, theirs.languages)):
            if a is not None and b is not None:
                both.append((a, b))
        if isinstance(ours.arch.position, parts.Learned) and isinstance(theirs.arch.position, parts.Learned):
            both.append((self.model.encoder.tables[0], other.encoder.tables[0]))
        one, two = self.model.encoder.embed_norm, other.encoder.embed_norm
        if one is not None and two is not None:
            both += [
                (a, b) for a, b in ((one.weight, two.weight), (one.bias, two.bias)) if a is not None and b is not None
            ]
        for a, b in both:
            b.node = a.node
            other.w.all = [x for x in other.w.all if x is not b]

    def peak(self, rows: Rows, micros: int, z: bool = False) -> int:
        """Bytes at once beyond weights and optimiser, of `micros` micro-batches like `rows`."""
        tape = self.tape
        for _ in range(micros):
            tape.backward(self.loss(rows, z))
        tape.flush()
        stacks = {s.name: s for net in (self.model, *self.others.values()) for s in net.stacks}
        return max(
            peak
            + sum(
                stacks[name].more * (acts * stacks[name].acts + grads * stacks[name].block * FULL // tape.shards)
                for name, acts, grads in key
            )
            for key, peak in tape.peaks.items()
        )

    def loss(self, rows: Rows, z: bool) -> Sized:
        tape, model = self.tape, self.model
        match self.goal:
            case declared.RTD():
                return self.replaced(rows, z)
            case declared.PLM():
                return self.permuted(rows, z)
            case declared.Distillation():
                return self.distilled(rows, z)
            case declared.AttentionDistillation():
                return self.related(rows)
            case declared.Contrastive():
                return tape.add_up(
                    tape.unary(
                        tape.mul(
                            tape.cast(model.encode(rows).hidden, FULL), tape.new((rows.rows, rows.length, 1), LONG)
                        ),
                        "in",
                    ),
                    (1,),
                )
        smoothing = isinstance(self.goal, declared.Translation) and self.goal.smoothing > 0
        if model.arch.structure == "decoder":
            return model.token_loss(model.decode(rows, rows.length), rows, z)
        left = model.encode(rows)
        if model.arch.structure == "encoder-decoder":
            hidden = model.decode(rows, rows.goal, left.hidden)
            del left
            return model.token_loss(hidden, rows, z, smoothing)
        loss = model.token_loss(model.read(left), rows, z)
        if rows.pairs and model.pooler is not None and model.pair is not None:
            first = tape.part(left.hidden, (rows.rows, model.dims.d_model))
            scores = model.pair(tape.unary(model.pooler(first), "out"))
            loss = tape.add(loss, tape.cross_entropy(tape.cast(scores, FULL)))
        return loss

    def without(self, run: Callable[[], Sized]) -> Sized:
        """A forward pass that nothing is learned from."""
        self.tape.grad = False
        found = run()
        self.tape.grad = True
        return found

    def replaced(self, rows: Rows, z: bool) -> Sized:
        tape, generator = self.tape, self.others["generator"]
        assert generator.lm is not None
        hidden = generator.read(generator.encode(rows))
        tokens = generator.token_loss(hidden, rows, z)

        def sampled() -> Sized:
            assert generator.lm is not None
            n = min(rows.targets, max(1, LOGITS // generator.dims.vocab))
            states = tape.new((rows.targets, hidden.shape[2]), hidden.item)
            few = generator.lm(Sized((n, hidden.shape[2]), states.item, states.store))
            wide = tape.unary(tape.cast(few, FULL))
            double = tape.new(wide.shape, 8)
            chances = tape.unary(double)
            return tape.unary(chances)

        self.without(sampled)
        ids = tape.new((rows.rows, rows.length), LONG)
        found = self.model.found(self.model.encode(rows).hidden)
        each = tape.unary(found, "in")
        del ids
        return tape.add(tokens, tape.add_up(each, (1,)))

    def permuted(self, rows: Rows, z: bool) -> Sized:
        tape, model = self.tape, self.model
        encoder = model.encoder
        assert isinstance(encoder, TwoStreams)
        past: list[Sized] | None = None
        mapping = tape.new((rows.rows, rows.asked, rows.length), FULL)
        hidden = tape.new((rows.rows, rows.length, rows.length), LONG)
        if rows.memory:
            before = Rows(rows.rows, rows.memory, 0, padded=True, segments=True, backward=rows.backward)
            kept: list[Sized] = []
            self.without(lambda: encoder.streams(model.embed(before, rows.memory, False), before, None, kept))
            past = kept
        left: list[Sized] = []
        out = encoder.streams(model.embed(rows, rows.length, False), rows, past, left)
        loss = model.token_loss(out, rows, z)
        encoder.told = ()
        del mapping, hidden, left
        return loss

    def distilled(self, rows: Rows, z: bool) -> Sized:
        tape, model, teacher = self.tape, self.model, self.others["teacher"]
        assert isinstance(self.goal, declared.Distillation) and model.lm is not None and teacher.lm is not None

        def states(net: Network) -> tuple[Sized, Sized]:
            if net.decoder is not None:
                hidden = net.decode(rows, rows.length)
                return hidden, hidden
            left = net.encode(rows)
            return net.read(left), left.hidden

        places = rows.rows * rows.length  # of masked tokens' tasks all are compared, not the masked alone
        n = places if isinstance(self.goal.task, declared.MLM) else rows.targets

        def some(x: Sized) -> Sized:
            flat = x.view(places, x.shape[2])
            return flat if n == places and model.decoder is not None else tape.gather(flat, (n, x.shape[2]))

        tape.grad = False
        known, last = (some(x) for x in states(teacher))
        tape.grad = True
        hidden, own = states(model)
        loss = model.token_loss(hidden, rows, z)
        if self.goal.soft:
            ours, size = some(hidden), max(1, LOGITS // model.dims.vocab // 2)
            sizes = [min(size, n - start) for start in range(0, n, size)]
            parts = [ours] if len(sizes) == 1 else tape.split(ours, [(part, ours.shape[1]) for part in sizes])
            for few in parts:
                theirs = Sized((few.shape[0], known.shape[1]), known.item, known.store)
                if len(sizes) == 1:
                    soft = self.soft(few, theirs)
                else:
                    soft = tape.forgetting(lambda few=few, theirs=theirs: self.soft(few, theirs))  # type: ignore[misc]
                loss = tape.add(loss, soft)
        if self.goal.cosine:
            compared = tape.cast(some(own), FULL)
            loss = tape.add(loss, tape.add_up(tape.mul(compared, last), (1,)))
        return loss

    def soft(self, ours: Sized, theirs: Sized) -> Sized:
        """The divergence of the model's predictions from the teacher's."""
        tape, model, teacher = self.tape, self.model, self.others["teacher"]

        def chances(net: Network, x: Sized) -> Sized:
            assert net.lm is not None
            return tape.unary(tape.unary(tape.cast(net.lm(x), FULL)), "out")

        grad, tape.grad = tape.grad, False
        goal = chances(teacher, theirs)
        tape.grad = grad
        found = chances(model, ours)
        return tape.add_up(tape.mul(tape.add(goal, found), tape.unary(goal)), (1,))

    def related(self, rows: Rows) -> Sized:
        tape = self.tape

        def relations(net: Network) -> tuple[Sized, Sized]:
            assert net.encoder is not None
            left, attention = net.encode(rows), net.encoder.blocks[-1].attention
            q, (k, v) = attention.split(attention.q(left.before)), attention.keys(left.before)
            if self.how.half:
                q, k, v = tape.half(q), tape.half(k), tape.half(v)
            found = self.chances(tape.matmul(tape.unary(q), k, self.square(q), (True, True)), left.seen)
            return found, self.chances(tape.matmul(v, v, self.square(v), (True, True)), left.seen)

        tape.grad = False
        goal = relations(self.others["teacher"])
        tape.grad = True
        found = relations(self.model)
        loss = None
        for own, theirs in zip(found, goal, strict=True):
            apart = tape.masked(tape.add(theirs, own), tape.new(theirs.shape, BOOL))
            each = tape.add_up(tape.mul(tape.unary(theirs), apart), (1,))
            loss = each if loss is None else tape.add(loss, each)
        assert loss is not None
        return loss

    @staticmethod
    def square(x: Sized) -> tuple[int, int, int, int]:
        return (*x.shape[:3], x.shape[2])  # type: ignore[return-value]

    def chances(self, scores: Sized, seen: Seen) -> Sized:
        """The logarithms of a softmax of scores, in fp32."""
        tape = self.tape
        found = tape.unary(tape.cast(scores, FULL))
        if seen.mask is not None:
            found = tape.masked(found, tape.new(seen.mask.shape, BOOL))
        return tape.unary(found, "out")
