"""A network as boxes in stacks, from the text at the bottom to the target at the top.

Everything is read from `Arch` and `Dims` by a match on the type of each component. No new component is left out: one
that no case knows is drawn with its name, its fields and the first words of its docstring; a field that no case
mentions is added to the text; what has no place in the drawing is listed below it.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from typing import Any

from stemma.declare.family import Design
from stemma.nn import parts
from stemma.nn.parts import Arch, Dims
from stemma.pictures.boxes import BoxStack, Factor, Fork, Item, Sum, Term
from stemma.spec import Spec
from stemma.words import value_text

DRAWN = {
    *("structure", "position", "norm", "residual", "attention", "mask", "mlp", "heads", "embed_norm", "embed_scale"),
    *("local", "convolution", "streams"),
}
WIDTHS = {
    *("d_model", "layers", "heads", "d_ff", "vocab", "context", "kv_heads", "head_dim", "decoder_layers", "segments"),
    *("embed", "groups", "inner", "languages", "experts", "active"),
}


def stacks(design: Design) -> list[BoxStack]:
    """The stacks of a design: one, or the encoder and then the decoder."""
    roles = {"encoder-decoder": ["encoder", "decoder"]}.get(design.arch.structure, [design.arch.structure])
    return [stack(design, role) for role in roles]


def stack(design: Design, role: str) -> BoxStack:
    arch, dims = design.arch, design.dims
    both = arch.structure == "encoder-decoder"
    dims = dims.decoder if both and role == "decoder" else dims
    last = role != "encoder" or not both  # the output of an encoder-decoder's encoder goes to the decoder
    deep = dims.depth if both and role == "decoder" else dims.layers
    layers = "dims.decoder_layers" if both and role == "decoder" and dims.decoder_layers else "dims.layers"
    place, where = position(arch.position, arch, dims)
    before = [
        tokens(design),
        Item("embed", "Embeddings", (), (), (*embeddings(arch, dims), *([where] if place == "embed" else []))),
    ]
    if arch.embed_norm:
        before.append(norm(arch.norm, "embed_norm", "arch.embed_norm"))
    full = both and role == "encoder"
    chips = [mask(parts.Full(), ()) if full else mask(arch.mask, ("arch.mask",))]
    chips += streams(arch) + memory(arch, dims) + ([where] if place != "embed" else []) + local(arch, dims)
    inner = [("attention", attention(arch, dims, "attention", "Self-attention", tuple(chips)))]
    if both and role == "decoder":
        over = Item("over", "encoder's output", ("all of its tokens are visible",))
        inner.append(("cross", attention(arch, dims, "cross", "Cross-attention", (over,))))
    inner.append(("mlp", mlp(arch.mlp, dims)))
    block, final, notes = wiring(arch, dims, inner)
    after = [norm(arch.norm, "final", "arch.residual")] if final else []
    if last:
        after += [*heads(arch, dims), target(design)]
    frame = (Item("depth", f"× {deep}", (), (layers,)), notes, *shared(dims), *convolution(arch))
    return BoxStack(role, tuple(before), tuple(block), tuple(after), frame, 2 if arch.streams is not None else 1)


def undrawn(design: Design) -> list[Item]:
    """The values of a design that have no place in the drawing: those of training, and unknown fields."""
    found = []
    for part, value, drawn in (("arch", design.arch, DRAWN), ("dims", design.dims, WIDTHS)):
        for f in dataclasses.fields(value):
            inner, path = getattr(value, f.name), f"{part}.{f.name}"
            if f.name in drawn or (inner == f.default and (part == "dims" or inner is None)):
                continue
            notes = ", ".join([type(inner).__name__, *rest(inner)]) if isinstance(inner, Spec) else value_text(inner)
            if isinstance(inner, parts.Dropout):  # the field has the same name
                notes = ", ".join(rest(inner)) or "none"
            found.append(Item(path, f.name.replace("_", " "), (notes,), (path,)))
    return found


# ---------------------------------------------------------------- below the blocks


def tokens(design: Design) -> Item:
    text = design.text
    case = "lower case" if text.lower else "case kept"
    notes = (f"{text.tokenizer} tokens, {case}", f"up to {design.dims.context:,} at a time")
    return Item("text", "Text", notes, ("text", "dims.context"))


def embeddings(arch: Arch, dims: Dims) -> list[Item]:
    scaled = (f"times √{dims.d_model:,}",) if arch.embed_scale else ()
    width = "dims.embed" if dims.embed is not None else "dims.d_model"
    size = f"{dims.vocab:,} × {dims.embed_width:,}"
    found = [Item("tokens", "tokens", (size, *scaled), ("dims.vocab", width, "arch.embed_scale"))]
    for name, rows in (("segments", dims.segments), ("languages", dims.languages)):
        if rows:
            notes = f"{rows} {'rows' if rows > 1 else 'row'}"
            found.append(Item(name, name, (notes,), (f"dims.{name}",)))
    if arch.streams is not None:
        notes = "one learned vector for every predicted position"
        found.append(Item("query", "g, the query stream", (notes,), ("arch.streams",)))
    if dims.embed is not None:
        notes = f"{dims.embed:,} → {dims.d_model:,}, after the sum"
        found.append(Item("project", "projection to the width", (notes,), ("dims.embed", "dims.d_model")))
    return found


def position(spec: Spec, arch: Arch, dims: Dims) -> tuple[str, Item]:
    """(where positions enter, their chip): "embed" if they are added to the embeddings, else "attention"."""
    paths: tuple[str, ...] = ("arch.position",)
    sketch: tuple[Any, ...] = ()
    match spec:
        case parts.Sinusoidal():
            place, notes, sketch = "embed", ["sines and cosines, fixed", *rest(spec)], ("waves",)
        case parts.Learned():
            counted = [] if spec.padding is None else [f"padding is not counted (id {spec.padding})"]
            place, notes = "embed", [f"a learned table, {dims.context:,} rows", *counted]
            notes += [f"the first {spec.offset} rows unused"] if spec.offset else []
            notes += rest(spec, "padding", "offset")
            paths, sketch = (*paths, "dims.context"), ("table", 1)
        case parts.BlankLearned():
            rows = f"of {dims.context + 1:,} rows each"
            place, notes = "embed", [f"two learned tables {rows}: position in the text, position in the blank"]
            notes += rest(spec)
            paths, sketch = (*paths, "dims.context"), ("table", 2)
        case parts.Rotary():
            place, notes, sketch = "attention", rotary(spec), scores(turned((spec.share,)))
        case parts.BlankRotary():
            notes = ["rotary: half of q and k by the position in the text, half by that in the blank"]
            notes += [f"base {spec.base:,.10g}", *rest(spec, "base")]
            place, sketch = "attention", scores(turned((0.5, 0.5)))
        case parts.Buckets():
            each = ", a table in every layer" if isinstance(spec, parts.LayerBuckets) else ", one table a stack"
            notes = [f"a bias by distance: {spec.buckets} buckets up to {spec.distance}{each}"]
            notes += rest(spec, "buckets", "distance")
            place, sketch = "attention", scores(product(Factor("q"), "k"), product(Factor("bias", place=True)))
        case parts.ALiBi():
            notes = ["a bias by distance: a fixed slope for every head", *rest(spec)]
            place, sketch = "attention", scores(product(Factor("q"), "k"), product(Factor("bias", place=True)))
        case parts.Disentangled():
            place, (notes, sketch) = "attention", disentangled(spec, dims)
        case parts.RelativeSinusoidal():
            notes = ["sines and cosines r of the distance, s of the same or another segment"]
            notes += ["u, v, w: learned, for every head", *rest(spec)]
            place = "attention"
            sketch = scores(
                product(Factor("q+u"), "k", label="content"),
                product(Factor("q+v"), Factor("r", place=True), label="distance"),
                product(Factor("q+w"), Factor("s", place=True), label="segment"),
            )
        case _:
            return "attention", unknown(spec, "position", paths)
    return place, Item("position", "positions", tuple(notes), paths, (), sketch)


def rotary(spec: parts.Rotary) -> list[str]:
    notes = [f"rotary: q and k are rotated, base {spec.base:,.10g}"]
    notes += [] if spec.share == 1 else [f"only {spec.share:g} of a head's width is rotated"]
    notes += ["pairs are adjacent"] if spec.interleaved else []
    if spec.scaling is not None:
        notes.append(", ".join([f"scaled: {type(spec.scaling).__name__}", *fields(spec.scaling)]))
    return notes + rest(spec, "base", "share", "interleaved", "scaling")


def disentangled(spec: parts.Disentangled, dims: Dims) -> tuple[list[str], tuple[Any, ...]]:
    """(text, sketch). K and Q are the keys and queries of distances."""
    rows = f"{spec.buckets} buckets" if spec.buckets is not None else "rows"
    notes = [
        f"K, Q from a table of distances: {rows} up to {spec.distance} a side{', normalised' if spec.norm else ''}"
    ]
    notes += ["projected by the matrices of the content" if spec.shared else "projected by matrices of their own"]
    products = [product(Factor("q"), "k", label="c2c")]
    products += [product(Factor("q"), Factor("K", place=True), label="c2p")] if spec.c2p else []
    products += [product(Factor("k"), Factor("Q", place=True), label="p2c")] if spec.p2c else []
    notes += [f"their sum divided by √({len(products)}·{dims.width})"]
    notes += [f"a table of {dims.context:,} absolute positions, added to the embeddings"] if spec.absolute else []
    notes += rest(spec, "distance", "buckets", "c2p", "p2c", "shared", "norm", "absolute")
    return notes, scores(*products)


def scores(*terms: Term) -> tuple[Any, ...]:
    return ("scores", *terms)


def turned(share: tuple[float, ...]) -> Term:
    return Term((Factor("q", share), Factor("k", share)))


def product(*factors: Factor | str, label: str = "") -> Term:
    return Term(tuple(Factor(f) if isinstance(f, str) else f for f in factors), label)


# ---------------------------------------------------------------- the block


def norm(spec: Spec, key: str, why: str) -> Item:
    """A norm with the key `key`; `why`: the path of the value that puts it there."""
    match spec:
        case parts.LayerNorm() | parts.RMSNorm():
            notes = [f"eps {spec.eps:g}"]
            notes += ["no bias"] if isinstance(spec, parts.LayerNorm) and not spec.bias else []
            notes += ["gain 1 + g"] if isinstance(spec, parts.RMSNorm) and spec.offset else []
            notes += rest(spec, "eps", "bias", "offset")
            return Item(key, type(spec).__name__, (", ".join(notes),), ("arch.norm", why))
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
            inner = "q, k, v" if spec.key_bias else "q, v"
            biased = [name for name, has in ((inner, spec.bias), ("o", spec.out_bias)) if has]
            notes = [f"bias in {' and '.join(biased)}" if biased else "no bias"]
            notes += [] if spec.scaled else ["scores not scaled"]
            notes += [] if spec.scale_width is None else [f"scores divided by √{spec.scale_width:g}"]
            notes += [] if spec.qk_norm is None else [f"{type(spec.qk_norm).__name__} of q and k of each head"]
            notes += [] if spec.softcap is None else [f"scores s become {spec.softcap:g} tanh(s/{spec.softcap:g})"]
            notes += ["scores of layer i divided by i"] if spec.by_layer else []
            notes += rest(
                spec, "by_layer", "bias", "out_bias", "key_bias", "scaled", "scale_width", "qk_norm", "softcap"
            )
            return Item(key, title, (numbers, *notes), paths, chips, ("heads", dims.heads, dims.kv))
        case _:
            odd = unknown(spec, key, paths)
            return dataclasses.replace(odd, title=f"{title}: {odd.title}", text=(numbers, *odd.text), chips=chips)


def mask(spec: Spec, paths: tuple[str, ...]) -> Item:
    """The attention mask, with a grid for each mask of a cycle and each that a batch may choose."""
    kinds: tuple[str, ...]
    match spec:
        case parts.Full():
            notes, kinds = ["sees every token"], ("full",)
        case parts.Causal():
            notes, kinds = ["sees itself and earlier tokens"], ("causal",)
        case parts.Reverse():
            notes, kinds = ["sees itself and later tokens"], ("reverse",)
        case parts.Sliding():
            notes, kinds = [f"sees the last {spec.window:,} tokens"], ("sliding",)
        case parts.Prefix():
            notes, kinds = ["sees itself and earlier tokens; a prefix sees all of itself"], ("prefix",)
        case parts.Cycle():
            runs = [(text, len(list(run))) for text, run in itertools.groupby(named(m) for m in spec.masks)]
            notes = ["layers alternate: " + ", ".join(f"{n} × {text}" if n > 1 else text for text, n in runs)]
            kinds = tuple(type(m).__name__.lower() for m in spec.masks)
        case parts.Memory():
            notes, kinds = ["causal windows; all of the memory is visible"], ("memory",)
            notes += [f"the last window has {spec.last:,} tokens"]
        case parts.Open():
            kinds = ("full", "causal", "reverse", "prefix")
            numbers = f"{spec.causal}, {spec.reverse}, {spec.source} and {spec.target}"
            notes = [f"each batch chooses: {', '.join(kinds)}", f"segments of the last three: {numbers}"]
        case _:
            return unknown(spec, "mask", paths)
    mentioned = {"window", "masks", "layers", "last", "dtype", "causal", "reverse", "source", "target"}
    grids = ("mask", kinds[0]) if len(kinds) == 1 else ("masks", *kinds)
    return Item("mask", type(spec).__name__, (*notes, *rest(spec, *mentioned)), paths, (), grids)


def named(spec: parts.Causal | parts.Sliding) -> str:
    return f"Sliding({spec.window:,})" if isinstance(spec, parts.Sliding) else type(spec).__name__


def memory(arch: Arch, dims: Dims) -> list[Item]:
    """Memory of earlier text (XLNet's hidden states, LongLLaMA's keys and values)."""
    if arch.streams is not None:
        held, reuse = arch.streams.memory, arch.streams.reuse
        notes = ["hidden states of earlier segments, as additional keys and values"]
        notes += ["any number" if held is None else f"of the last {held:,} tokens"]
        notes += [] if reuse is None else [f"of each segment the first {reuse:,}"]
        return [Item("memory", "memory", tuple(notes), ("arch.streams",), (), ("store",))]
    if isinstance(arch.mask, parts.Memory):
        layers = ", ".join(map(str, arch.mask.layers))
        notes = [f"k and v of all earlier windows of {dims.context:,} tokens, k before rotation, {arch.mask.dtype}"]
        notes += [f"in layers {layers}"]
        return [Item("memory", "its store", tuple(notes), ("arch.mask", "dims.context"), (), ("store",))]
    return []


def streams(arch: Arch) -> list[Item]:
    if arch.streams is None:
        return []
    notes = ("in a random order, h sees itself and earlier tokens, g only earlier ones; keys are those of h",)
    paths = ("arch.streams",)
    return [Item("streams", "h content, g queries", notes, paths, (), ("masks", "content", "query"))]


def local(arch: Arch, dims: Dims) -> list[Item]:
    """Positions of the layers with a window, if they differ."""
    if arch.local is None:
        return []
    _, item = position(arch.local, arch, dims)
    title = "positions under a window"
    return [dataclasses.replace(item, key="local", title=title, paths=("arch.local",), sketch=())]


def mlp(spec: Spec, dims: Dims) -> Item:
    widths = f"{dims.d_model:,} → {dims.d_ff:,} → {dims.d_model:,}"
    paths: tuple[str, ...] = ("arch.mlp", "dims.d_ff")
    match spec:
        case parts.MLP() | parts.GatedMLP():
            gated = isinstance(spec, parts.GatedMLP)
            notes = [*acted(spec.act), "with bias" if spec.bias else "no bias", *rest(spec, "act", "bias")]
            title = "Gated MLP" if gated else "MLP"
            short = spec.act.partition("_")[0]
            return Item("mlp", title, (widths, *notes), paths, (), ("gated" if gated else "plain", short))
        case parts.Experts():
            n, k = dims.experts or 1, dims.active or 1
            notes = [f"{k} of {n} for each token, by a router", f"each a gated MLP, {spec.act}, no bias", widths]
            paths = (*paths, "dims.experts", "dims.active")
            return Item("mlp", "Experts", (*notes, *rest(spec, "act")), paths, (), ("experts", n, k))
        case _:
            odd = unknown(spec, "mlp", paths)
            return dataclasses.replace(odd, text=(widths, *odd.text))


def acted(act: str) -> list[str]:
    """What the name of an activation does not say."""
    return {"gelu_tanh": ["gelu by its tanh form"], "gelu_tanh_fused": ["gelu by its tanh form, fused"]}.get(act, [])


def shared(dims: Dims) -> list[Item]:
    """Layers that share their weights."""
    if dims.groups is None:
        return []
    sets = f"{dims.groups} {'sets' if dims.groups > 1 else 'set'} of weights for all {dims.layers} layers"
    notes = (sets, *([f"each of {dims.inner} blocks"] if dims.inner > 1 else []))
    return [Item("shared", "shared", notes, ("dims.groups", "dims.inner"))]


def convolution(arch: Arch) -> list[Item]:
    match arch.convolution:
        case None:
            return []
        case parts.Convolution(kernel, act):
            notes = [f"over the input of the first block: {kernel} tokens, {act}; added to its output, then a norm"]
            notes += rest(arch.convolution, "kernel", "act")
            return [Item("convolution", "convolution", tuple(notes), ("arch.convolution",), (), ("near", kernel))]


def wiring(arch: Arch, dims: Dims, inner: list[tuple[str, Item]]) -> tuple[list[Item | Sum | Fork], bool, Item]:
    """(block with its norms and sums, whether a norm follows the last block, chip that names the residual)."""
    residual: Spec = arch.residual
    block: list[Item | Sum | Fork] = []
    why = ("arch.residual",)
    boxes = [(branch, dataclasses.replace(box, key=f"{branch}.in")) for branch, box in inner]

    def at(branch: str, place: str) -> Item:
        return norm(arch.norm, f"{branch}.{place}", "arch.residual")

    match residual:
        case parts.PostNorm():
            for branch, box in boxes:
                block += [box, Sum(f"{branch}.sum", box.key), at(branch, "post")]
            return block, False, Item("residual", "post-norm", tuple(rest(residual)), why)
        case parts.DeepNorm():
            alpha = (2 * dims.layers) ** 0.5
            for branch, box in boxes:
                scale = Item(f"{branch}.scale", f"× {alpha:.3g}", (), (*why, "dims.layers"))
                block += [box, Sum(f"{branch}.sum", box.key, scale), at(branch, "post")]
            notes = (f"residual stream times √(2 · {dims.layers} layers)", *rest(residual))
            return block, False, Item("residual", "DeepNorm", notes, (*why, "dims.layers"))
        case parts.PreNorm():
            for branch, box in boxes:
                block += [at(branch, "pre"), box, Sum(f"{branch}.sum", f"{branch}.pre")]
            return block, True, Item("residual", "pre-norm", tuple(rest(residual)), why)
        case parts.Sandwich():
            for branch, box in boxes:
                block += [at(branch, "pre"), box, at(branch, "out"), Sum(f"{branch}.sum", f"{branch}.pre")]
            return block, True, Item("residual", "sandwich", tuple(rest(residual)), why)
        case parts.Parallel():
            block += [at("attention", "pre"), Fork(tuple(box for _, box in boxes)), Sum("mlp.sum", "attention.pre")]
            return block, True, Item("residual", "parallel", tuple(rest(residual)), why)
        case _:  # the places of its norms and sums are unknown, so none are drawn
            block += [box for _, box in boxes]
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
            notes = ["tied to the token embeddings" if spec.lm.tied else "own matrix"]
            notes += ["and a bias for each token"] if spec.lm.bias else []
            notes += ["hidden state divided by √d"] if spec.lm.scaled else []
            notes += [f"times {spec.lm.factor:g}"] if spec.lm.factor != 1 else []
            cap = spec.lm.softcap
            notes += [] if cap is None else [f"a logit x becomes {cap:g} tanh(x/{cap:g})"]
            notes += rest(spec.lm, "tied", "scaled", "bias", "factor", "softcap")
            found.append(Item("lm", "logits", tuple(notes), ("arch.heads.lm",)))
        case parts.MLMHead():
            end = "the token embeddings and a bias" if spec.lm.tied else "a matrix and a bias"
            notes = [f"dense, {spec.lm.act}, norm, then {end}"]
            found.append(Item("lm", "logits", (*notes, *rest(spec.lm, "act", "tied")), ("arch.heads.lm",)))
        case parts.EMDHead():
            notes = ["enhanced mask decoder: the last block runs twice more, with absolute positions in the queries"]
            notes += [f"then dense, {spec.lm.act}, norm, the token embeddings and a bias", *rest(spec.lm, "act")]
            found.append(Item("lm", "logits", tuple(notes), ("arch.heads.lm", "dims.context"), (), ("again", 2)))
        case other:
            found.append(unknown(other, "lm", ("arch.heads.lm",)))
    if spec.pooler:
        made = "dense and " + spec.pooler.act if spec.pooler.act else "unchanged"
        notes = [f"{spec.pooler.token} token, {made}", *rest(spec.pooler, "token", "act")]
        found.append(Item("pooler", "pooler", tuple(notes), ("arch.heads.pooler",)))
    if spec.pair:
        found.append(Item("pair", "pair", ("2 classes of the pooler",), ("arch.heads.pair",)))
    match spec.detect:
        case None:
            pass
        case parts.Detector() | parts.ContextDetector():
            first = "the first token's state added, norm, " if isinstance(spec.detect, parts.ContextDetector) else ""
            notes = [f"was a token replaced? {first}dense, {spec.detect.act}, 1 logit"]
            found.append(Item("detect", "detector", (*notes, *rest(spec.detect, "act")), ("arch.heads.detect",)))
        case _:
            found.append(unknown(spec.detect, "detect", ("arch.heads.detect",)))
    for f in dataclasses.fields(spec):
        value = getattr(spec, f.name)
        if f.name not in ("lm", "pooler", "pair", "detect") and value != f.default:
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
    """A component that no case knows: its class, every field, and the first words of its docstring."""
    notes = (gist(spec), ", ".join(fields(spec)))
    return Item(key, type(spec).__name__, tuple(x for x in notes if x), paths, known=False)


def fields(spec: Spec) -> list[str]:
    """Every field of a component in words."""
    return [f"{f.name} {value_text(getattr(spec, f.name))}" for f in dataclasses.fields(spec)]


def rest(spec: Spec, *shown: str) -> list[str]:
    """The fields of a known component that its text does not mention and that are not at their defaults."""
    return [
        f"{f.name.replace('_', ' ')} {value_text(getattr(spec, f.name))}"
        for f in dataclasses.fields(spec)
        if f.name not in shown and getattr(spec, f.name) != f.default
    ]


def gist(spec: Any) -> str:
    """The first words of a class's docstring; "" without one."""
    doc = (type(spec).__doc__ or "").strip()
    if doc.startswith(f"{type(spec).__name__}("):  # made by dataclass, not written
        return ""
    return re.split(r" \(|[:;]|\.(?:\s|$)", " ".join(doc.split()), maxsplit=1)[0].replace("`", "")
