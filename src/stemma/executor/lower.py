"""From a built model to a tape: by the types of its modules. What has no instruction raises `NotLowered`, in words."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from stemma.executor.assemble import NONE, NotLowered, Tape, number, part, struct
from stemma.executor.matrices import adapters_of, dtype_of, matrix_of, width_of
from stemma.executor.tables import Table, buckets, turns, waves
from stemma.nn import parts
from stemma.nn.attention import Attention, BucketTable
from stemma.nn.embeddings import Embed
from stemma.nn.heads import LMHead
from stemma.nn.mixed import LayerNorm
from stemma.nn.mlp import MLP, Experts
from stemma.nn.model import Model
from stemma.nn.norms import HeadNorm, OffsetRMSNorm, RMSNorm
from stemma.nn.positions import (
    ALiBi,
    BlankLearned,
    BlankRotary,
    Buckets,
    LayerBuckets,
    Learned,
    Position,
    Rotary,
    Sinusoidal,
    slopes,
)
from stemma.nn.stack import Block, DeepBlock, ParallelBlock, PostBlock, PreBlock, SandwichBlock, Stack
from stemma.rewrites.lora import LoRALinear
from stemma.rewrites.weight_only import StoredEmbedding, StoredHead

ACTS = {
    "silu": "SILU",
    "gelu": "GELU",
    "gelu_tanh": "GELU_TANH",
    "gelu_tanh_fused": "GELU_TANH",
    "quick_gelu": "QUICK_GELU",
    "relu": "RELU",
    "relu2": "RELU2",
    "tanh": "TANH",
}
ROTARY = (Rotary, BlankRotary)
POSITIONS = (Position, Learned, Sinusoidal, ALiBi, Buckets, LayerBuckets, BlankLearned, *ROTARY)
PRE, POST = (PreBlock, SandwichBlock, ParallelBlock), (PostBlock, DeepBlock)


def expect(thing: Any, *kinds: type) -> None:
    """Raise NotLowered unless the module is of exactly one of these types."""
    if type(thing) not in kinds:
        raise NotLowered(f"the tape has no instruction for {type(thing).__name__}")


class Lowering:
    """The tape of one model. `tables` grow with the positions; `columns`: positions a token."""

    def __init__(self, model: Model) -> None:
        self.tape, self.model, self.tables = Tape(), model, list[Table]()
        stack = model.decoder
        if stack is None:
            raise NotLowered("it has no decoder")
        expect(stack, Stack)
        expect(model.lm, LMHead, StoredHead)
        self.stack: Stack = stack
        self.dims = model.dims.decoder if model.encoder is not None else model.dims
        self.columns = stack.position.columns
        self.turned: dict[Position, Any] = {}
        self.bucketed: dict[Position, Tensor] = {}
        self.kept: list[tuple[int, int]] = []  # of each layer, the heads and the width of keys and values
        self.causal = not stack.position.length_dependent  # whether the tokens of a prompt see what steps would see
        kinds = {type(block) for block in stack.blocks}
        if len(kinds) != 1:
            raise NotLowered("its blocks are of several kinds")
        self.kind = kinds.pop()
        expect(stack.blocks[0], *PRE, *POST)
        if stack.convolution is not None:
            raise NotLowered("the tape has no instruction for a convolution")
        # the residual stream: products add to it, or where norms make it every thread may
        private = self.kind in (PostBlock, DeepBlock, SandwichBlock)
        self.x = self.tape.buffer("x", self.dims.d_model, private)
        self.n = self.tape.buffer("n", self.dims.d_model, private=True)
        self.t = self.tape.buffer("t", self.dims.d_model)
        self.embed()
        for at, (index, layer) in enumerate(stack.order):
            self.block(stack.blocks[index], at, stack.masks[layer])  # type: ignore[arg-type]
        self.logits = self.head()

    # ------------------------------------------------------------ the beginning and the end

    def embed(self) -> None:
        model, stack, tape = self.model, self.stack, self.tape
        embed, position, width = model.embed, stack.position, model.dims.embed_width
        expect(embed, Embed)
        expect(position, *POSITIONS)
        tables = [self.lookup_of(embed.tokens, "TOKEN", factor=self.factor(embed))]
        if embed.languages is not None:
            tables.append(self.lookup_of(embed.languages, "LANGUAGE"))
        if embed.segments is not None:
            tables.append(self.lookup_of(embed.segments, "FIRST"))
        if isinstance(position, Learned):
            tables.append(self.lookup_of(position.table, "POSITION", position.offset))
        if isinstance(position, BlankLearned):
            tables.append(self.lookup_of(position.table, "POSITION"))
            tables.append(self.lookup_of(position.blanks, "POSITION", column=1))
        if isinstance(position, Sinusoidal):
            source = number("POSITION")
            tables.append(struct("lookup", source=source, stride=4 * width, factor=1.0))
        to = self.x if stack.project is None else tape.buffer("e", width)
        address = tape.array("lookup", tables)
        if isinstance(position, Sinusoidal):
            last = tape.kept[-1][len(tables) - 1]

            def put(data: int, rows: int) -> None:
                last.table.data, last.rows = data, rows

            self.tables.append(Table(waves(position, width), put))
        tape.add("EMBED", struct("embed_step", to=to, count=len(tables), tables=address), tape.fill(to))
        if stack.embed_norm is not None:
            self.norm(stack.embed_norm, to, to)
        if stack.project is not None:
            into = self.t if tape.widths[self.x][1] else self.x
            self.product(to, [self.times(stack.project, into)])
            if into != self.x:
                self.norm(None, into, self.x)

    def factor(self, embed: Embed) -> float:
        return embed.rounded.get(dtype_of(embed.tokens), embed.factor) if embed.factor != 1.0 else 1.0

    def lookup_of(self, table: nn.Module, source: str, offset: int = 0, column: int = 0, factor: float = 1.0) -> Any:
        if isinstance(table, StoredEmbedding):
            return self.tape.lookup_whole(matrix_of(self.tape, table)[0], number(source), factor)
        expect(table, nn.Embedding)
        weight = table.weight
        assert isinstance(weight, Tensor)
        return self.tape.lookup(weight, number(source) + column, offset, factor)

    def head(self) -> Any:
        tape, source, held = self.tape, self.x, self.model.lm
        tail = len(tape.steps)
        own = held if isinstance(held, StoredHead) else None
        lm = held if own is None else own.head
        assert isinstance(lm, LMHead)
        if self.stack.norm is not None:
            self.norm(self.stack.norm, self.x, self.n)
            source = self.n
        logits = tape.buffer("logits", lm.shape[0])
        tokens = self.model.embed.tokens
        w, _ = matrix_of(tape, own if own is not None else lm.weight if lm.weight is not None else tokens)
        bias = tape.vector(lm.bias if own is None else own.bias)
        made = part(
            w, logits, bias=bias, scale=lm.scale, factor=lm.factor, cap=lm.softcap or 0.0, check=True
        )  # fmt: skip
        self.product(source, [made])
        return tape.finish(logits, tail, self.x)

    def times(self, module: Any, to: int, **more: Any) -> Any:
        """The product with a module's matrix, its bias, and the low-rank adapters beside it."""
        plain, adapters = adapters_of(module)
        w, bias = matrix_of(self.tape, plain)
        made = part(w, to, bias=bias, **more)
        made.adapters = adapters
        return made

    def product(self, source: int, parts: list[Any]) -> None:
        """Products of one buffer; what adapters add to them is made before."""
        tape = self.tape
        downs: list[tuple[Any, LoRALinear, int]] = []
        for p in parts:
            for adapter in getattr(p, "adapters", ()):
                down = tape.buffer(f"down {len(downs)}", adapter.down.weight.shape[0])
                downs.append((p, adapter, down))
        if downs:
            tape.product(source, [part(tape.matrix(a.down.weight), down) for _, a, down in downs])
        for n, (p, adapter, down) in enumerate(downs):
            raw, scale = tape.buffer("up", p.w.out), adapter.spec.scale * adapter.strength
            fields = {"to": p.beside, "raw": raw, "residual": p.beside} if p.beside != NONE else {}
            if not fields:
                p.beside = tape.buffer(f"beside {n}", p.w.out)
            tape.product(down, [part(tape.matrix(adapter.up), **{"to": p.beside, **fields}, scale=scale)])
        tape.product(source, parts)

    # ------------------------------------------------------------ norms

    def norm_of(self, module: nn.Module | None) -> Any:
        """The `norm` of tape.h; without a module the identity."""
        tape = self.tape
        if module is None:
            return struct("norm", type=number("NO_NORM"))
        expect(module, LayerNorm, RMSNorm, OffsetRMSNorm, HeadNorm)
        gain = module.weight
        assert isinstance(gain, Tensor | None)
        bias = module.bias if isinstance(module, LayerNorm) else None
        return struct(
            "norm",
            type=number("RMS" if isinstance(module, RMSNorm | OffsetRMSNorm) else "LAYER"),
            stride=gain.shape[-1] if isinstance(module, HeadNorm) and gain is not None else 0,
            eps=module.eps,
            offset=1.0 if isinstance(module, OffsetRMSNorm) else 0.0,
            gain=tape.vector(gain),
            bias=tape.vector(bias),
        )

    def norm(self, module: nn.Module | None, source: int, to: int, residual: int = NONE) -> None:
        by = self.norm_of(module)
        step = struct("norm_step", **{"from": source}, to=to, residual=residual, by=by)
        self.tape.add("NORM", step, self.tape.fill(to))

    # ------------------------------------------------------------ blocks

    def block(self, block: Block, at: int, mask: parts.LayerMask) -> None:
        if isinstance(block, ParallelBlock):
            self.norm(block.attention_norm, self.x, self.n)
            self.attention(block.attention, self.n, at, mask, self.mlp_parts(block.mlp))
            if block.cross is not None:
                self.cross(block.cross, self.n, at)
            self.mlp(block.mlp, self.n, begun=True)
            return
        branches = [("attention", lambda n: self.attention(block.attention, n, at, mask))]
        if (cross := block.cross) is not None:
            branches.append(("cross", lambda n: self.cross(cross, n, at)))
        branches.append(("mlp", lambda n: self.mlp(block.mlp, n)))
        for name, branch in branches:
            own = getattr(block, f"{name}_norm")
            if isinstance(block, PRE):
                self.norm(own, self.x, self.n)
                branch(self.n)
            else:
                branch(self.x)
                self.norm(own, self.t, self.x)
            if isinstance(block, SandwichBlock):
                self.norm(getattr(block, f"{name}_out_norm"), self.t, self.x, residual=self.x)

    def out(self) -> dict[str, Any]:
        """Where a branch's last product goes, and what is added to it."""
        if self.kind is SandwichBlock:
            return {"to": self.t}
        if self.kind in (PreBlock, ParallelBlock):
            return {"to": self.x, "raw": self.t, "residual": self.x}
        first = self.stack.blocks[0]
        alpha = first.alpha if isinstance(first, DeepBlock) else 1.0
        return {"to": self.t, "residual": self.x, "residual_factor": alpha}

    # ------------------------------------------------------------ attention

    def attention(
        self, module: Attention, n: int, at: int, mask: parts.LayerMask, more: list[Any] | None = None
    ) -> None:
        """Self-attention of the buffer `n`. `more`: products of the same buffer."""
        expect(module, Attention)
        if not isinstance(mask, parts.Causal | parts.Sliding | parts.Prefix):
            raise NotLowered(f"the tape has no instruction for the mask {mask}")
        stack, tape = self.stack, self.tape
        self.causal = self.causal and not isinstance(mask, parts.Prefix)
        scheme = stack.local if stack.local is not None and isinstance(mask, parts.Sliding) else stack.position
        expect(scheme, *POSITIONS)
        q, k, v, a, heads, kv = self.heads(module)
        self.kept.append((kv, module.width))
        own = [self.times(m, to) for m, to in ((module.q, q), (module.k, k), (module.v, v))]
        self.product(n, own + (more or []))
        step = struct(
            "attend_step",
            q=q, k=k, v=v, to=a, layer=at, heads=heads, kv=kv, width=module.width,
            window=mask.window if isinstance(mask, parts.Sliding) else 0,
            scale=module.scale,
            cap=module.softcap or 0.0,
            q_norm=self.norm_of(module.q_norm),
            k_norm=self.norm_of(module.k_norm),
        )  # fmt: skip
        self.place(step, scheme, module, heads)
        tape.add("ATTEND", step)
        self.product(a, [self.times(module.o, **self.out())])

    def heads(self, module: Attention) -> tuple[int, int, int, int, int, int]:
        """Buffers of queries, keys, values and the sum, and how many heads there are."""
        q, k = (self.rows_of(m) for m in (module.q, module.k))
        tape, heads = self.tape, q // module.width
        return (
            tape.buffer("q", q), tape.buffer("k", k), tape.buffer("v", k), tape.buffer("a", q), heads,
            heads // module.shared,
        )  # fmt: skip

    def rows_of(self, module: Any) -> int:
        return width_of(module)

    def place(self, step: Any, scheme: Position, module: Attention, heads: int) -> None:
        """What positions bring to the attention of one layer."""
        tape = self.tape
        if module.relative is not None:
            expect(module.relative, BucketTable)
        if isinstance(scheme, ROTARY):
            self.turn(step, scheme)
        elif isinstance(scheme, ALiBi):
            if scheme.own != slice(None):
                raise NotLowered("its heads are shared out")
            falls = slopes(scheme.heads, scheme.max_bias)
            tape.kept.append(falls)
            step.bias, step.slopes = number("ALIBI"), falls.data_ptr()
        elif isinstance(scheme, Buckets):
            if scheme not in self.bucketed:
                self.bucketed[scheme] = buckets(scheme)
                tape.kept.append(self.bucketed[scheme])
            of = self.bucketed[scheme]
            table: Any = module.relative.table if module.relative is not None else scheme.table
            expect(table, nn.Embedding)
            step.bias, step.buckets, step.distances = number("BUCKETS"), of.data_ptr(), len(of)
            step.table = tape.vector(table.weight)

    def turn(self, step: Any, scheme: Position) -> None:
        """Have the layer's heads turn by the table of a rotary scheme, which all its layers share."""
        if scheme not in self.turned:
            fields, rows, keys = turns(scheme)
            layers: list[Any] = []
            self.turned[scheme] = fields, layers
            names = {"table": rows} if keys is None else {"table": rows, "keys": keys}
            for name, make in names.items():

                def put(data: int, _: int, name: str = name) -> None:
                    for own in layers:
                        setattr(own.turn, name, data)

                self.tables.append(Table(make, put))
        fields, layers = self.turned[scheme]
        step.turn = struct("rotary", **fields)
        layers.append(step)

    def cross(self, module: Attention, n: int, at: int) -> None:
        expect(module, Attention)
        tape = self.tape
        q, _, _, a, heads, kv = self.heads(module)
        self.product(n, [self.times(module.q, q)])
        step = struct(
            "cross_step",
            q=q, to=a, layer=at, heads=heads, kv=kv, width=module.width, scale=module.scale,
            cap=module.softcap or 0.0,
            q_norm=self.norm_of(module.q_norm),
        )  # fmt: skip
        tape.add("CROSS", step)
        self.product(a, [self.times(module.o, **self.out())])

    # ------------------------------------------------------------ feed-forward

    def act(self) -> str:
        spec = self.model.arch.mlp
        assert isinstance(spec, parts.MLP | parts.GatedMLP | parts.Experts)
        return ACTS[spec.act]

    def mlp_parts(self, module: nn.Module) -> list[Any]:
        """The products of an MLP's input; a mixture of experts has its own instruction."""
        if isinstance(module, Experts):
            return []
        expect(module, MLP)
        tape = self.tape
        width = self.rows_of(module.up)
        h, act = tape.buffer("h", width), self.act()
        if module.gate is None:
            return [self.times(module.up, h, act=act)]
        u = tape.buffer("u", width)
        return [self.times(module.up, u), self.times(module.gate, h, act=act, times=u)]

    def mlp(self, module: nn.Module, n: int, begun: bool = False) -> None:
        """The feed-forward part of the buffer `n`. `begun`: its first products have been made."""
        if isinstance(module, Experts):
            self.experts(module, n)
            return
        tape = self.tape
        if not begun:
            self.product(n, self.mlp_parts(module))
        assert isinstance(module, MLP)
        h = tape.buffer("h", self.rows_of(module.up))
        self.product(h, [self.times(module.down, **self.out())])

    def experts(self, module: Experts, n: int) -> None:
        expect(module, Experts)
        tape, active, out = self.tape, module.active, self.out()
        if self.kind in POST and out["residual_factor"] != 1.0:
            raise NotLowered("the tape has no instruction for experts in a DeepNorm block")
        scores, chosen = tape.buffer("r", module.count), tape.buffer("chosen", 2 * active, private=True)
        self.product(n, [self.times(module.router, scores)])
        fields = {"from": scores, "to": chosen, "count": module.count, "active": active}
        tape.add("ROUTE", struct("route_step", **fields, normalised=int(module.normalised)), 2)
        gate, up, down = (tape.matrix(w[0]) for w in (module.gate, module.up, module.down))
        if not all(w.is_contiguous() for w in (module.gate, module.up, module.down)):
            raise NotLowered("the matrices of its experts are not contiguous")
        step = struct(
            "experts_step",
            **{"from": n},
            route=chosen,
            hidden=tape.buffer("hidden", active * gate.out),
            other=tape.buffer("other", active * gate.out),
            raw=tape.buffer("raw", down.out),
            to=out["to"],
            residual=out.get("residual", NONE),
            active=active,
            act=number(self.act()),
            gate_bytes=gate.out * gate.stride,
            down_bytes=down.out * down.stride,
            gate=gate,
            up=up,
            down=down,
        )
        tape.add("EXPERTS", step)
