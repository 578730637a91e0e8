"""A network as boxes: what stands in a stack from the text at the bottom to the target at the top.

Everything is read off `Arch` and `Dims` by a match on the type of each component. A component that no case knows is
drawn all the same, by its name, its fields and the first words of its description; a field that no case mentions is
named beside the others; what has no place in the drawing is listed below it. So a new component is never left out.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from stemma.families.declare import Design
from stemma.nn import parts
from stemma.nn.parts import Arch, Dims
from stemma.report.words import value_text
from stemma.spec import Spec


@dataclass(frozen=True)
class Item:
    """A box, or a chip inside one. `key`: what it is compared with on the other side; `paths`: the values it stands
    for; `sketch`: the name of a small drawing and its numbers; `known`: False where only its own words are shown."""

    key: str
    title: str
    text: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    chips: tuple[Item, ...] = ()
    sketch: tuple[Any, ...] = ()
    known: bool = True


@dataclass(frozen=True)
class Sum:
    """Where a branch is added to the residual stream; `key` names its place, `below` the lowest box of the branch."""

    key: str
    below: str


@dataclass(frozen=True)
class Stack:
    """An encoder or a decoder, from the bottom to the top: before the blocks, one block, after them."""

    role: str
    before: tuple[Item, ...]
    block: tuple[Item | Sum, ...]
    after: tuple[Item, ...]
    frame: tuple[Item, ...]  # what is said of the block as a whole: how often, how its norms stand

    @property
    def wired(self) -> bool:
        """Whether it is known how the branches of a block are joined."""
        return all(item.known for item in self.frame)

    @property
    def items(self) -> list[Item]:
        """Every box and chip."""
        boxes = [*self.before, *(b for b in self.block if isinstance(b, Item)), *self.after, *self.frame]
        return [item for box in boxes for item in (box, *box.chips)]


# Places from the bottom to the top; those in the middle stand in the block.
BEFORE = ("text", "embed", "embed_norm")
BRANCHES = ("attention", "cross", "mlp")
BLOCK = tuple(f"{branch}.{place}" for branch in BRANCHES for place in ("pre", "in", "sum", "post"))
AFTER = ("final", "heads", "target")
DRAWN = {"structure", "position", "norm", "residual", "attention", "mask", "mlp", "heads", "embed_norm", "embed_scale"}
WIDTHS = {
    *("d_model", "layers", "heads", "d_ff", "vocab", "context", "kv_heads", "head_dim", "decoder_layers", "segments"),
}


def stacks(design: Design) -> list[Stack]:
    """The stacks of a design: one, or the encoder and then the decoder."""
    roles = {"encoder-decoder": ["encoder", "decoder"]}.get(design.arch.structure, [design.arch.structure])
    return [stack(design, role) for role in roles]


def stack(design: Design, role: str) -> Stack:
    arch, dims = design.arch, design.dims
    both = arch.structure == "encoder-decoder"
    last = role != "encoder" or not both  # the encoder of an encoder-decoder ends in the decoder's attention
    deep = dims.depth if both and role == "decoder" else dims.layers
    layers = "dims.decoder_layers" if both and role == "decoder" and dims.decoder_layers else "dims.layers"
    place, where = position(arch.position, dims)
    before = [
        tokens(design),
        Item("embed", "Embeddings", (), (), (*embeddings(arch, dims), *([where] if place == "embed" else []))),
    ]
    if arch.embed_norm:
        before.append(norm(arch.norm, "embed_norm", "arch.embed_norm"))
    full = both and role == "encoder"
    seen = mask(parts.Full() if full else arch.mask, () if full else ("arch.mask",))
    inner = [(a, attention(arch, dims, "attention", "Self-attention", (seen, *([where] if place != "embed" else []))))
             for a in ("attention",)]  # fmt: skip
    if both and role == "decoder":
        over = Item("over", "encoder's output", ("every token of it is seen",))
        inner.append(("cross", attention(arch, dims, "cross", "Cross-attention", (over,))))
    inner.append(("mlp", mlp(arch.mlp, dims)))
    block, final, said = wiring(arch, inner)
    after = [norm(arch.norm, "final", "arch.residual")] if final else []
    if last:
        after += [*heads(arch, dims), target(design)]
    frame = (Item("depth", f"× {deep}", (), (layers,)), said)
    return Stack(role, tuple(before), tuple(block), tuple(after), frame)


def beside(design: Design) -> list[Item]:
    """What a design says that has no place in the drawing: numbers of training, and fields that it does not know."""
    found = []
    for part, value, drawn in (("arch", design.arch, DRAWN), ("dims", design.dims, WIDTHS)):
        for f in dataclasses.fields(value):
            inner, path = getattr(value, f.name), f"{part}.{f.name}"
            if f.name not in drawn and (part == "arch" or inner != f.default):
                found.append(Item(path, f.name.replace("_", " "), (value_text(inner, path),), (path,)))
    return found


# ---------------------------------------------------------------- below the blocks


def tokens(design: Design) -> Item:
    text = design.text
    case = "lower case" if text.lower else "case kept"
    said = (f"{text.tokenizer} tokens, {case}", f"up to {design.dims.context:,} at a time")
    return Item("text", "Text", said, ("text", "dims.context"))


def embeddings(arch: Arch, dims: Dims) -> list[Item]:
    scaled = (f"times √{dims.d_model:,}",) if arch.embed_scale else ()
    size = f"{dims.vocab:,} × {dims.d_model:,}"
    found = [Item("tokens", "tokens", (size, *scaled), ("dims.vocab", "dims.d_model", "arch.embed_scale"))]
    if dims.segments:
        rows = f"{dims.segments} {'rows' if dims.segments > 1 else 'row'}"
        found.append(Item("segments", "segments", (rows,), ("dims.segments",)))
    return found


def position(spec: Spec, dims: Dims) -> tuple[str, Item]:
    """Where positions enter ("embed": added to the embeddings; "attention") and what is said of them."""
    paths: tuple[str, ...] = ("arch.position",)
    match spec:
        case parts.Sinusoidal():
            place, said = "embed", ["sines and cosines, fixed", *rest(spec)]
        case parts.Learned():
            counted = [] if spec.padding is None else [f"padding is not counted (id {spec.padding})"]
            place, said = "embed", [f"a learned table, {dims.context:,} rows", *counted, *rest(spec, "padding")]
            paths += ("dims.context",)
        case parts.Rotary():
            scaling = [] if spec.scaling is None else [f"stretched by {value_text(spec.scaling)}"]
            place, said = "attention", [f"rotary: q and k are turned, base {spec.base:g}", *scaling]
            said += rest(spec, "base", "scaling")
        case parts.Buckets():
            said = [f"a bias by distance: {spec.buckets} buckets up to {spec.distance}"]
            place, said = "attention", [*said, *rest(spec, "buckets", "distance")]
        case _:
            return "attention", unknown(spec, "position", paths)
    return place, Item("position", "positions", tuple(said), paths)


# ---------------------------------------------------------------- the block


def norm(spec: Spec, key: str, why: str) -> Item:
    """A norm at a place; `why`: the path of the value that puts one there."""
    match spec:
        case parts.LayerNorm() | parts.RMSNorm():
            said = (f"eps {spec.eps:g}", *rest(spec, "eps"))
            return Item(key, type(spec).__name__, (", ".join(said),), ("arch.norm", why))
        case _:
            return unknown(spec, key, ("arch.norm", why))


def attention(arch: Arch, dims: Dims, key: str, title: str, chips: tuple[Item, ...]) -> Item:
    spec: Spec = arch.attention
    paths = ("arch.attention", "dims.heads", "dims.kv_heads", "dims.head_dim")
    if dims.kv == dims.heads:
        numbers = f"{dims.heads} heads of {dims.width}"
    else:
        numbers = f"{dims.heads} query heads on {dims.kv} of keys and values, of {dims.width}"
    match spec:
        case parts.Attention():
            biased = [name for name, has in (("q, k, v", spec.bias), ("o", spec.out_bias)) if has]
            said = [f"bias in {' and '.join(biased)}" if biased else "no bias"]
            said += [] if spec.scaled else ["scores not scaled"]
            said += rest(spec, "bias", "out_bias", "scaled")
            return Item(key, title, (numbers, *said), paths, chips, ("heads", dims.heads, dims.kv))
        case _:
            odd = unknown(spec, key, paths)
            return dataclasses.replace(odd, title=f"{title}: {odd.title}", text=(numbers, *odd.text), chips=chips)


def mask(spec: Spec, paths: tuple[str, ...]) -> Item:
    match spec:
        case parts.Full():
            said, sketch = ["sees every token"], ("mask", "full")
        case parts.Causal():
            said, sketch = ["sees itself and what stands before"], ("mask", "causal")
        case parts.Sliding():
            said, sketch = [f"sees the last {spec.window:,} tokens"], ("mask", "sliding")
        case parts.Prefix():
            said, sketch = ["sees itself and what stands before; a prefix sees itself whole"], ("mask", "causal")
        case parts.Cycle():
            said, sketch = ["in turn " + ", ".join(value_text(m) for m in spec.masks)], ("mask", "alternate")
        case _:
            return unknown(spec, "mask", paths)
    fields = [f.name for f in dataclasses.fields(spec) if f.name in ("window", "masks")]
    return Item("mask", type(spec).__name__, (*said, *rest(spec, *fields)), paths, (), sketch)


def mlp(spec: Spec, dims: Dims) -> Item:
    widths = f"{dims.d_model:,} → {dims.d_ff:,} → {dims.d_model:,}"
    paths = ("arch.mlp", "dims.d_ff")
    match spec:
        case parts.MLP() | parts.GatedMLP():
            gated = isinstance(spec, parts.GatedMLP)
            said = ("with bias" if spec.bias else "no bias", *rest(spec, "act", "bias"))
            title = "Gated MLP" if gated else "MLP"
            return Item("mlp", title, (widths, *said), paths, (), ("gated" if gated else "plain", spec.act))
        case _:
            odd = unknown(spec, "mlp", paths)
            return dataclasses.replace(odd, text=(widths, *odd.text))


def wiring(arch: Arch, inner: list[tuple[str, Item]]) -> tuple[list[Item | Sum], bool, Item]:
    """The block with its norms and sums, whether a norm follows the last block, and what is said of it."""
    residual: Spec = arch.residual
    block: list[Item | Sum] = []
    match residual:
        case parts.PostNorm() | parts.PreNorm():
            pre = isinstance(residual, parts.PreNorm)
            for branch, box in inner:
                here = norm(arch.norm, f"{branch}.{'pre' if pre else 'post'}", "arch.residual")
                box = dataclasses.replace(box, key=f"{branch}.in")
                total = Sum(f"{branch}.sum", here.key if pre else box.key)
                block += [here, box, total] if pre else [box, total, here]
            text = "pre-norm" if pre else "post-norm"
            return block, pre, Item("residual", text, tuple(rest(residual)), ("arch.residual",))
        case _:  # where its norms and sums stand is not known, so none are drawn
            block += [dataclasses.replace(box, key=f"{branch}.in") for branch, box in inner]
            odd = unknown(residual, "residual", ("arch.residual", "arch.norm"))
            return block, False, dataclasses.replace(odd, text=(*odd.text, f"norm {value_text(arch.norm)}"))


# ---------------------------------------------------------------- above the blocks


def heads(arch: Arch, dims: Dims) -> list[Item]:
    spec = arch.heads
    found = []
    match spec.lm:
        case None:
            pass
        case parts.LMHead():
            said = ["the token embeddings again" if spec.lm.tied else "a matrix of its own"]
            said += ["hidden state times d_model^-0.5"] if spec.lm.scaled else []
            found.append(Item("lm", "logits", (*said, *rest(spec.lm, "tied", "scaled")), ("arch.heads.lm",)))
        case parts.MLMHead():
            end = "the token embeddings and a bias" if spec.lm.tied else "a matrix and a bias"
            said = [f"dense, {spec.lm.act}, norm, then {end}"]
            found.append(Item("lm", "logits", (*said, *rest(spec.lm, "act", "tied")), ("arch.heads.lm",)))
        case other:
            found.append(unknown(other, "lm", ("arch.heads.lm",)))
    if spec.pooler:
        found.append(Item("pooler", "pooler", ("dense and tanh, first token",), ("arch.heads.pooler",)))
    if spec.pair:
        found.append(Item("pair", "pair", ("2 classes of the pooler",), ("arch.heads.pair",)))
    for f in dataclasses.fields(spec):
        value = getattr(spec, f.name)
        if f.name not in ("lm", "pooler", "pair") and value != f.default:
            path = (f"arch.heads.{f.name}",)
            found.append(
                unknown(value, f.name, path)
                if isinstance(value, Spec)
                else Item(f.name, f.name, (value_text(value),), path)
            )
    return [Item("heads", "Heads" if len(found) > 1 else "Head", (), (), tuple(found))] if found else []


def target(design: Design) -> Item:
    spec = design.objective
    return Item("target", f"Target: {type(spec).__name__}", tuple(x for x in (gist(spec),) if x), ("objective",))


# ---------------------------------------------------------------- words for what is not known


def unknown(spec: Any, key: str, paths: tuple[str, ...]) -> Item:
    """A component that no case draws: its class, every field, and the first words of its description."""
    fields = [f"{f.name} {value_text(getattr(spec, f.name))}" for f in dataclasses.fields(spec)]
    said = (gist(spec), ", ".join(fields))
    return Item(key, type(spec).__name__, tuple(x for x in said if x), paths, known=False)


def rest(spec: Spec, *said: str) -> list[str]:
    """The fields of a known component that its words do not mention, where they are not as by default."""
    return [
        f"{f.name.replace('_', ' ')} {value_text(getattr(spec, f.name))}"
        for f in dataclasses.fields(spec)
        if f.name not in said and getattr(spec, f.name) != f.default
    ]


def gist(spec: Any) -> str:
    """The first words of a class's description; of none, nothing."""
    doc = (type(spec).__doc__ or "").strip()
    if doc.startswith(f"{type(spec).__name__}("):  # what dataclasses write where there is none
        return ""
    return re.split(r" \(|[:;]|\.(?:\s|$)", " ".join(doc.split()), maxsplit=1)[0].replace("`", "")
