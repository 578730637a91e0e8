"""Blocks, and the stack of them that is an encoder or a decoder."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stemma.errors import UsageError
from stemma.nn import blocks, parts
from stemma.nn.attention import Attention, CacheWrite, PositionInputs, Relative
from stemma.nn.front import before
from stemma.nn.functional import dropout
from stemma.nn.inputs import StackInputs
from stemma.nn.masks import EVERY, AttnMask, MaskInputs, build_mask, layer_mask
from stemma.nn.mixed import Linear, linear
from stemma.nn.mlp import activation, feed_forward
from stemma.nn.norms import norm
from stemma.nn.positions import Position
from stemma.nn.schemes import position

Branch = Callable[[Tensor], Tensor]


class Block(nn.Module):
    """Self-attention, cross-attention in a decoder that has an encoder, MLP: branches of the residual stream.

    Subclasses define `join`, which adds a branch to the stream."""

    def __init__(self, arch: parts.Arch, dims: parts.Dims, cross: bool, relative: Relative | None) -> None:
        super().__init__()
        self.rate = arch.dropout.residual
        self.attention_norm = norm(arch.norm, dims.d_model)
        self.attention = Attention(arch.attention, dims, arch.dropout.attention, relative)
        self.cross_norm = norm(arch.norm, dims.d_model) if cross else None
        self.cross = Attention(arch.attention, dims, arch.dropout.attention) if cross else None
        self.mlp_norm: nn.Module | None = norm(arch.norm, dims.d_model)
        self.mlp = feed_forward(arch.mlp, dims, arch.dropout.inner)

    def drop(self, branch: Tensor) -> Tensor:
        return dropout(branch, self.rate, self.training)

    def join(self, x: Tensor, name: str, branch: Branch) -> Tensor:
        """The stream with a branch added; the branch's norm is `{name}_norm`. B T D -> B T D."""
        raise NotImplementedError

    def forward(
        self,
        x: Tensor,
        attn_mask: AttnMask,
        position: PositionInputs,
        cache_write: CacheWrite | None = None,
        encoder_kv: tuple[Tensor, Tensor] | None = None,
        encoder_mask: AttnMask = AttnMask(),
    ) -> Tensor:
        """B T D -> B T D. `encoder_kv`: this block's keys and values (B H S D) of the encoder's output."""
        x = self.join(x, "attention", lambda y: self.attention(y, attn_mask, position, cache_write))
        if (cross := self.cross) is not None:
            x = self.join(x, "cross", lambda y: cross(y, encoder_mask, kv=encoder_kv))
        return self.join(x, "mlp", self.mlp)

    def reread(self, x: Tensor, state: State) -> Tensor:
        """The block with queries from `x` (B T D), keys and values from its last input."""
        kv, write = self.attention.keys(state.last_input), None if state.past is None else partial(before, state.past)
        x = self.join(x, "attention", lambda y: self.attention(y, state.attn_mask, state.position, write, kv))
        return self.join(x, "mlp", self.mlp)


class PostBlock(Block):
    """`norm(x + f(x))` (Vaswani et al. 2017)."""

    def join(self, x: Tensor, name: str, branch: Branch) -> Tensor:
        return getattr(self, f"{name}_norm")(x + self.drop(branch(x)))


class PreBlock(Block):
    """`x + f(norm(x))` (GPT-2)."""

    def join(self, x: Tensor, name: str, branch: Branch) -> Tensor:
        return x + self.drop(branch(getattr(self, f"{name}_norm")(x)))


class SandwichBlock(Block):
    """`x + norm_out(f(norm(x)))` (Gemma 2)."""

    def __init__(self, arch: parts.Arch, dims: parts.Dims, cross: bool, relative: Relative | None) -> None:
        super().__init__(arch, dims, cross, relative)
        self.attention_out_norm = norm(arch.norm, dims.d_model)
        self.cross_out_norm = norm(arch.norm, dims.d_model) if cross else None
        self.mlp_out_norm = norm(arch.norm, dims.d_model)

    def join(self, x: Tensor, name: str, branch: Branch) -> Tensor:
        y = branch(getattr(self, f"{name}_norm")(x))
        return x + self.drop(getattr(self, f"{name}_out_norm")(y))


class DeepBlock(Block):
    """`norm(alpha x + f(x))`, alpha = sqrt(2 layers) (DeepNorm as in GLM-130B)."""

    def __init__(self, arch: parts.Arch, dims: parts.Dims, cross: bool, relative: Relative | None) -> None:
        super().__init__(arch, dims, cross, relative)
        self.alpha = (2 * dims.layers) ** 0.5

    def join(self, x: Tensor, name: str, branch: Branch) -> Tensor:
        return getattr(self, f"{name}_norm")(self.alpha * x + self.drop(branch(x)))


class ParallelBlock(Block):
    """`x + f(norm(x)) + g(norm(x))` with one norm for all branches (PaLM)."""

    def __init__(self, arch: parts.Arch, dims: parts.Dims, cross: bool, relative: Relative | None) -> None:
        super().__init__(arch, dims, cross, relative)
        self.cross_norm, self.mlp_norm = None, None

    def forward(
        self,
        x: Tensor,
        attn_mask: AttnMask,
        position: PositionInputs,
        cache_write: CacheWrite | None = None,
        encoder_kv: tuple[Tensor, Tensor] | None = None,
        encoder_mask: AttnMask = AttnMask(),
    ) -> Tensor:
        y = self.attention_norm(x)
        x = x + self.drop(self.attention(y, attn_mask, position, cache_write))
        if self.cross is not None:
            x = x + self.drop(self.cross(y, encoder_mask, kv=encoder_kv))
        return x + self.drop(self.mlp(y))


BLOCKS: dict[type[parts.Residual], type[Block]] = {
    parts.PostNorm: PostBlock,
    parts.PreNorm: PreBlock,
    parts.Sandwich: SandwichBlock,
    parts.DeepNorm: DeepBlock,
    parts.Parallel: ParallelBlock,
}


class Convolution(nn.Module):
    """`norm(y + act(conv(x)))` with `x` the input and `y` the output of the first block (see `parts.Convolution`)."""

    def __init__(self, arch: parts.Arch, spec: parts.Convolution, dims: parts.Dims) -> None:
        super().__init__()
        self.rate, self.act = arch.dropout.residual, activation(spec.act)
        self.conv = nn.Conv1d(dims.d_model, dims.d_model, spec.kernel, padding=spec.kernel // 2)
        self.norm = norm(arch.norm, dims.d_model)

    def forward(self, x: Tensor, y: Tensor, not_padding: Tensor | None, documents: Tensor | None) -> Tensor:
        """B T D, B T D -> B T D. The convolution reads zeros at padding and in other documents."""
        if not_padding is not None:
            x = x * not_padding[..., None]
        reach = self.conv.kernel_size[0] // 2
        near = F.pad(x, (0, 0, reach, reach)).unfold(1, 2 * reach + 1, 1)  # B T D K
        if documents is not None:
            other = F.pad(documents, (reach, reach)).unfold(1, 2 * reach + 1, 1) != documents[..., None]
            near = near.masked_fill(other[:, :, None], 0.0)
        z = linear(near.flatten(2), self.conv.weight.flatten(1), self.conv.bias)
        z = dropout(z, self.rate, self.training)
        if not_padding is None:
            return self.norm(y + self.act(z))
        return self.norm(y + self.act(z * not_padding[..., None])) * not_padding[..., None]


class Span(NamedTuple):
    """Positions of queries (1|B T) and keys (1|B S). Spans of one `number` are equal. The tensors themselves are never
    compared: a compiled graph would be bound to their values."""

    number: int
    queries: Tensor
    keys: Tensor


class State(NamedTuple):
    """What a stack leaves.

    `whole`: B N+T D, after the last norm; the first N are of a soft prompt (`front`)
    `last_input`: B N+T D, the input of the last block
    `positions`: 1|B N+T; `is_arange`: they are known to be 0..N+T-1
    `attn_mask`, `position`, `past`: what the last block's attention was given"""

    whole: Tensor
    last_input: Tensor
    positions: Tensor
    is_arange: bool
    attn_mask: AttnMask
    position: PositionInputs
    front: int = 0
    past: tuple[Tensor, Tensor] | None = None

    @property
    def hidden(self) -> Tensor:
        """B T D, of the text."""
        return self.of_text(self.whole)

    def of_text(self, x: Tensor) -> Tensor:
        """B N+T D -> B T D."""
        return x[:, self.front :] if self.front else x


class Stack(nn.Module):
    """Positions, norm and dropout of the embeddings, the blocks, and the norm after them."""

    def __init__(self, arch: parts.Arch, dims: parts.Dims, layers: int, *, mask: parts.Mask, cross: bool) -> None:
        super().__init__()
        self.masks = [layer_mask(mask, i) for i in range(layers)]
        self.rates = arch.dropout
        self.position = position(arch.position, arch, dims, both=isinstance(mask, parts.Full))
        self.local = position(arch.local, arch, dims, both=False) if arch.local is not None else None
        self.embed_norm = norm(arch.norm, dims.embed_width) if arch.embed_norm else None
        self.project = Linear(dims.embed, dims.d_model) if dims.embed is not None else None
        groups = dims.groups if dims.groups is not None else layers
        block = BLOCKS[type(arch.residual)]
        blocks = [block(arch, dims, cross, self.position.layer()) for _ in range(groups * dims.inner)]
        self.blocks = nn.ModuleList(blocks)
        if arch.attention.by_layer:
            if dims.groups is not None:
                raise UsageError(
                    "arch.attention.by_layer needs layers with weights of their own; leave dims.groups out"
                )
            for i, own in enumerate(blocks):
                own.attention.scale /= i + 1
        # (index of the block, layer whose mask it has) in the order of execution
        self.order = [(i * groups // layers * dims.inner + j, i) for i in range(layers) for j in range(dims.inner)]
        self.convolution = Convolution(arch, arch.convolution, dims) if arch.convolution is not None else None
        last = isinstance(arch.residual, parts.PreNorm | parts.Sandwich | parts.Parallel)
        self.norm = norm(arch.norm, dims.d_model) if last else None

    def forward(self, inputs: StackInputs) -> State:
        x, cache, past = self.enter(inputs.x, inputs.positions, inputs.not_padding), inputs.cache, inputs.past
        masks, spans = self.build_masks(inputs)
        position = self.position_inputs(spans, inputs, x.dtype)
        first_input = last_input = x
        for at, (number, layer) in enumerate(self.order):
            block, mask = self.blocks[number], self.masks[layer]
            write = None if cache is None else partial(cache.write, at)
            if past is not None and cache is None:
                write = partial(before, past[at])
            encoder_kv = None
            if inputs.encoder_hidden is not None:
                encoder_kv = block.cross.keys(inputs.encoder_hidden)  # type: ignore[union-attr,operator]
                if cache is not None:
                    cache.cross[at] = encoder_kv
            elif cache is not None:
                encoder_kv = cache.cross[at]
            last_input = x
            x = block(x, masks[mask], position[mask], write, encoder_kv, inputs.encoder_mask)
            if at == 0 and self.convolution is not None:
                x = self.convolution(first_input, x, inputs.not_padding, inputs.documents)
        if self.norm is not None:
            x = self.norm(x)
        x = dropout(x, self.rates.final, self.training)
        last = None if past is None else past[-1]
        return State(x, last_input, inputs.positions, inputs.is_arange, masks[mask], position[mask], past=last)

    def enter(self, x: Tensor, positions: Tensor, not_padding: Tensor | None = None) -> Tensor:
        """The input of the first block: B T E -> B T D."""
        x = self.position.embed(x, positions)
        if self.embed_norm is not None:
            x = self.embed_norm(x)
        if not_padding is not None and self.position.zero_padding:
            x = x * not_padding[..., None]
        x = dropout(x, self.rates.embed, self.training)
        return x if self.project is None else self.project(x)

    def build_masks(self, inputs: StackInputs) -> tuple[dict[parts.LayerMask, AttnMask], dict[parts.LayerMask, Span]]:
        """The attention mask, and the positions of queries and keys, for each kind of layer. A cache plans its step."""
        kinds, order = list(dict.fromkeys(self.masks)), inputs.order
        if (cache := inputs.cache) is None:
            if inputs.past is not None:
                return self._masks_behind(inputs, inputs.past[0][0].shape[1])
            documents, length = inputs.documents, inputs.x.shape[1]
            often = self.training or documents is not None  # of other long rows, torch's kernel reads the mask
            given = MaskInputs(
                order,
                order,
                inputs.is_arange,
                inputs.not_padding,
                documents,
                documents,
                inputs.prefix,
                self.position.zero_padding,
                inputs.mask,
                often
                and not self.position.adds_scores
                and not (inputs.prompted and documents is not None)
                and blocks.long(inputs.x, length, length),
                front=inputs.prompted,
                roots=inputs.roots,
            )
            spans = {mask: Span(0, inputs.positions, inputs.positions) for mask in kinds}
            masks = {mask: build_mask(mask, given) for mask in kinds}
            if inputs.contexts is not None and any(inputs.contexts):
                recall = parts.Recall()
                masks[recall] = masks[recall]._replace(contexts=inputs.contexts)
            return masks, spans
        cache.chosen = inputs.mask
        cache.begin(order, inputs.not_padding)
        plans = cache.plans
        distinct = list({id(plan): plan for plan in plans.values()}.values())
        spans = {mask: Span(distinct.index(plans[mask]), plans[mask].qpos, plans[mask].kpos) for mask in kinds}
        return {mask: plans[mask].attn_mask for mask in kinds}, spans

    def _masks_behind(
        self, inputs: StackInputs, n: int
    ) -> tuple[dict[parts.LayerMask, AttnMask], dict[parts.LayerMask, Span]]:
        """The same behind `n` keys that stand in front of the row, and that every document sees."""
        documents, real, places = inputs.documents, inputs.not_padding, torch.arange(n, device=inputs.x.device)[None]

        def keys(x: Tensor) -> Tensor:
            return torch.cat([places.expand(len(x), -1), x], 1)

        given = MaskInputs(
            inputs.order,
            keys(inputs.order),
            False,
            None if real is None else F.pad(real, (n, 0), value=True),
            documents,
            None if documents is None else F.pad(documents, (n, 0), value=EVERY),
            inputs.prefix,
            chosen=inputs.mask,
            front=True,
            roots=inputs.roots,
        )
        kinds, positions = dict.fromkeys(self.masks), inputs.positions
        span = Span(0, positions, keys(positions) if positions.ndim == 2 else positions)
        return {mask: build_mask(mask, given) for mask in kinds}, dict.fromkeys(kinds, span)

    def position_inputs(
        self, spans: dict[parts.LayerMask, Span], inputs: StackInputs, dtype: torch.dtype
    ) -> dict[parts.LayerMask, PositionInputs]:
        """What the position scheme gives to the attention of each kind of layer."""
        schemes: dict[parts.LayerMask, Position] = {
            mask: self.local if self.local is not None and isinstance(mask, parts.Sliding) else self.position
            for mask in spans
        }
        rotations = {s: s.rotations(inputs.positions, dtype, len(inputs.x)) for s in dict.fromkeys(schemes.values())}
        shared: dict[tuple[Position, int], tuple[Tensor | None, object]] = {}  # layers of one span share a bias
        out = {}
        for mask, scheme in schemes.items():
            number, queries, keys = spans[mask]
            key = (scheme, number)
            if key not in shared:
                bias, relative = scheme.bias(queries, keys), scheme.relative(queries, keys, inputs.is_arange)
                shared[key] = None if bias is None else bias.to(dtype), relative
            turn, turn_keys = rotations[scheme]
            out[mask] = PositionInputs(turn, *shared[key], turn_keys, scheme.exact)
        return out
