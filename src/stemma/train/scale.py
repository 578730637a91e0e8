"""Scales that make a published design small enough to train at home: `tiny`, `mini`, `small`; `full` is as
published."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from stemma import families
from stemma.declare.family import Design
from stemma.declare.recipes import LAMB, Adafactor, AdamW, Recipe
from stemma.errors import UsageError, brief, did_you_mean
from stemma.nn.parts import (
    Arch,
    Causal,
    Cycle,
    Dims,
    Disentangled,
    Llama3Scaling,
    Mask,
    Memory,
    Normal,
    Position,
    PostNorm,
    Rotary,
    Sliding,
    TruncatedScaling,
    YarnScaling,
)


@dataclass(frozen=True)
class ScaleStep:
    """A scale. `head`: width of a head; `batch`: tokens a step; `lr`: AdamW's peak rate for pre-norm networks."""

    d_model: int
    layers: int
    head: int
    context: int
    batch: int
    lr: float


SCALES = {
    "tiny": ScaleStep(192, 2, 32, 128, 1024, 2e-3),
    "mini": ScaleStep(256, 6, 32, 256, 8192, 1.5e-3),
    "small": ScaleStep(512, 8, 64, 512, 32_768, 1e-3),
}
RELATIVE = 2.5  # LAMB's rate over AdamW's: it is relative to each weight's norm
EXPERTS = 8  # MLPs of a layer at most, where there are several
VOCAB = 4096  # of a tokenizer trained for the run
REFERENCE = 768  # width that a published standard deviation of weights suits at least; BERT's and GPT's, with 0.02
WARMUP = 0.05  # share of the steps, where the published share is smaller


def scaled(design: Design, scale: str) -> Design:
    """`design` at a scale: its shape in small, and a recipe that suits it. `full` returns it unchanged.

    Kept are the family's choices: d_ff / d_model, query heads a key head, window / context, dropout, optimiser, shape
    of the schedule, ramp of the batch. Changed is what depends on size: widths, layers, vocabulary, context, batch,
    peak rate, and the standard deviation of new weights. Adam corrects its bias even if the released code does not: a
    long warm-up makes up for that, a run of some hundred steps cannot. Post-norm networks get a third of the rate (they
    diverge first). LAMB's rate, relative to each matrix's norm, grows for short runs; Adafactor's, also relative,
    stays. A student is as much smaller than the scale's networks as it is than its teacher in full size. An
    encoder-decoder has the scale's layers in each half: a token passes one half only, so its cost is about the same.
    Raises UsageError for an unknown scale."""
    if scale == "full":
        return design
    if not isinstance(scale, str) or scale not in SCALES:
        known = [*SCALES, "full"]
        raise UsageError(f"no scale {brief(scale)}; there are {', '.join(known)}{did_you_mean(str(scale), known)}")
    step, old = SCALES[scale], design.dims
    dims = _student(design, step) or _dims(old, step)
    share = dims.context / old.context
    arch = _arch(design.arch, old, dims, share)
    return replace(design, arch=arch, dims=dims, objective=design.objective.scaled(share), recipe=_recipe(design, step))


def scaled_net(design: Design, other: Design, dims: Dims) -> Design:
    """`other`, a network that is trained beside `design` (a generator), for a model of `dims`: smaller than it by the
    published ratios of width, heads and layers, with the same embeddings and context."""
    big, small = design.dims, other.dims
    if dims == big:
        return other
    heads = max(1, round(dims.heads * small.d_model / big.d_model))
    width = heads * dims.width
    fit = replace(
        dims,
        d_model=width,
        heads=heads,
        kv_heads=None,
        layers=max(1, round(dims.layers * small.layers / big.layers)),
        d_ff=round(width * small.d_ff / small.d_model),
        embed=dims.embed_width if dims.embed_width != width else None,
    )
    return replace(other, arch=_arch(other.arch, small, fit, fit.context / small.context), dims=fit)


def _student(design: Design, step: ScaleStep) -> Dims | None:
    """The dims of a student: the scale's, times the published ratio of student to teacher. None without a teacher."""
    name, _ = design.objective.networks.get("teacher", ("", False))
    if not name:
        return None
    big, small = families.design(name).dims, design.dims
    heads = step.d_model // step.head
    width = max(1, round(heads * small.d_model / big.d_model)) * step.head
    layers = max(1, round(step.layers * small.layers / big.layers))
    dims = _dims(small, replace(step, d_model=width, layers=layers))
    wanted = max(1, round(heads * small.heads / big.heads))  # attention is compared head by head
    return replace(dims, heads=wanted) if width % wanted == 0 and dims.kv == dims.heads else dims


def _dims(old: Dims, step: ScaleStep) -> Dims:
    heads = step.d_model // step.head
    inner = old.d_ff / old.d_model
    if old.experts is not None:
        inner = min(inner, 2.0)
    elif inner > 8:  # T5's 3B and 11B grow in the inner width alone
        inner = 4.0
    embed = None
    if old.embed is not None:
        embed = max(32, round(step.d_model * old.embed / old.d_model / 32) * 32)
    return Dims(
        d_model=step.d_model,
        layers=step.layers,
        heads=heads,
        d_ff=max(32, round(step.d_model * inner / 32) * 32),
        vocab=VOCAB,
        context=min(step.context, old.context),
        kv_heads=None if old.kv == old.heads else _divisor(heads, heads * old.kv // old.heads),
        segments=old.segments,
        embed=embed,
        groups=None if old.groups is None else min(old.groups, step.layers),
        inner=old.inner,
        languages=old.languages,
        experts=None if old.experts is None else min(old.experts, EXPERTS),
        active=None if old.active is None else min(old.active, 2),
    )


def _arch(arch: Arch, old: Dims, dims: Dims, share: float) -> Arch:
    """`arch` with all counts of tokens and widths in proportion. The standard deviation of new weights grows by
    sqrt(REFERENCE / d_model), so that a row times a matrix begins at the same size."""
    init = arch.init
    if isinstance(init, Normal):
        wider = math.sqrt(max(1.0, min(old.d_model, REFERENCE) / dims.d_model))
        positions = init.positions * wider if isinstance(init.positions, float) else init.positions
        init = replace(init, std=init.std * wider, positions=positions)
    position: Position = arch.position
    if isinstance(position, Disentangled):
        buckets = position.buckets and max(4, round(position.buckets * share / 2) * 2)
        position = replace(position, distance=max(8, round(position.distance * share)), buckets=buckets)
    elif isinstance(position, Rotary) and isinstance(position.scaling, Llama3Scaling | YarnScaling | TruncatedScaling):
        known = max(8, round(position.scaling.context * share))
        position = replace(position, scaling=replace(position.scaling, context=known))
    attention = arch.attention
    if attention.scale_width is not None:
        attention = replace(attention, scale_width=float(dims.width))
    return replace(arch, init=init, position=position, attention=attention, mask=_mask(arch.mask, dims, share))


def warmup(recipe: Recipe, steps: int) -> int:
    """Steps of warm-up in a run of `steps`: the published share of the published run, but at least `WARMUP`."""
    share = recipe.schedule.warmup / recipe.steps if recipe.steps else 0.0
    return max(1, round(min(0.5, max(share, WARMUP)) * steps))


def _recipe(design: Design, step: ScaleStep) -> Recipe:
    old = design.recipe
    slow = isinstance(design.arch.residual, PostNorm)
    match old.optimizer:
        case Adafactor() if old.lr is not None:
            lr = old.lr
        case LAMB():
            lr = step.lr * RELATIVE
        case _:
            lr = step.lr / (3 if slow else 1)
    optimizer = old.optimizer
    if isinstance(optimizer, AdamW | LAMB):  # bias matters in a short run
        optimizer = replace(optimizer, corrected=True)
    return replace(
        old, optimizer=optimizer, lr=lr, batch=step.batch, clip=old.clip if old.clip is not None else 1.0, mixed=False
    )


def _divisor(heads: int, wanted: int) -> int:
    return max(d for d in range(1, heads + 1) if heads % d == 0 and d <= max(wanted, 1))


def _mask(mask: Mask, dims: Dims, share: float) -> Mask:
    def one(m: Causal | Sliding) -> Causal | Sliding:
        return Sliding(max(4, round(m.window * share))) if isinstance(m, Sliding) else m

    match mask:
        case Sliding():
            return one(mask)
        case Cycle(masks):
            return Cycle(tuple(one(m) for m in masks))
        case Memory(last=last):
            return replace(mask, layers=(dims.layers // 2,), last=max(8, round(last * share)))
    return mask
