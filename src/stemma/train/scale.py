"""One dial that makes a published design small enough to train at home: `tiny`, `mini`, `small`, or `full` as it is."""

from __future__ import annotations

from dataclasses import dataclass, replace

from stemma.errors import UsageError, did_you_mean
from stemma.families.declare import Design
from stemma.families.recipes import Adafactor, Recipe
from stemma.nn.parts import Causal, Cycle, Dims, Mask, PostNorm, Sliding


@dataclass(frozen=True)
class Step:
    """A setting of the dial. `head`: width of a head; `batch`: tokens a step; `lr`: AdamW's peak for pre-norm."""

    d_model: int
    layers: int
    head: int
    context: int
    batch: int
    lr: float


SCALES = {
    "tiny": Step(192, 2, 32, 128, 1024, 2e-3),
    "mini": Step(256, 6, 32, 256, 8192, 1.5e-3),
    "small": Step(512, 8, 64, 512, 32_768, 1e-3),
}
VOCAB = 4096  # of a tokenizer trained for the run
WARMUP = 0.05  # share of the steps, where the published share is smaller


def scaled(design: Design, scale: str) -> Design:
    """`design` at a scale: its shape in small, and a recipe that suits it. `full` returns it unchanged.

    What the family chose stays: the inner width as a multiple of d_model, queries a key head, window as a share of the
    context, dropout, optimiser, shape of the schedule. What follows the size changes: widths, layers, vocabulary,
    context, batch, peak rate.
    Post-norm networks get a third of the rate (they diverge first); Adafactor's rate is relative and stays.
    An encoder-decoder has as many layers in each half: a token passes one half only, so its cost is about the same.
    Raises UsageError for an unknown scale.
    """
    if scale == "full":
        return design
    if scale not in SCALES:
        known = [*SCALES, "full"]
        raise UsageError(f"no scale {scale!r}; there are {', '.join(known)}{did_you_mean(scale, known)}")
    step, old = SCALES[scale], design.dims
    heads = step.d_model // step.head
    context = min(step.context, old.context)
    dims = Dims(
        d_model=step.d_model,
        layers=step.layers,
        heads=heads,
        d_ff=max(32, round(step.d_model * old.d_ff / old.d_model / 32) * 32),
        vocab=VOCAB,
        context=context,
        kv_heads=None if old.kv == old.heads else _divisor(heads, heads * old.kv // old.heads),
        segments=old.segments,
    )
    if old.d_ff > 8 * old.d_model:  # T5's 3B and 11B grow in the inner width alone
        dims = replace(dims, d_ff=4 * step.d_model)
    arch = replace(design.arch, mask=_mask(design.arch.mask, context / old.context))
    return replace(design, arch=arch, dims=dims, recipe=_recipe(design, step))


def warmup(recipe: Recipe, steps: int) -> int:
    """Steps of warm-up in a run of `steps`: the published share of the published run, but at least `WARMUP`."""
    share = recipe.schedule.warmup / recipe.steps if recipe.steps else 0.0
    return max(1, round(min(0.5, max(share, WARMUP)) * steps))


def _recipe(design: Design, step: Step) -> Recipe:
    old = design.recipe
    slow = isinstance(design.arch.residual, PostNorm)
    lr = old.lr if isinstance(old.optimizer, Adafactor) and old.lr is not None else step.lr / (3 if slow else 1)
    return replace(old, lr=lr, batch=step.batch, clip=old.clip if old.clip is not None else 1.0, mixed=False)


def _divisor(heads: int, wanted: int) -> int:
    return max(d for d in range(1, heads + 1) if heads % d == 0 and d <= max(wanted, 1))


def _mask(mask: Mask, share: float) -> Mask:
    def one(m: Causal | Sliding) -> Causal | Sliding:
        return Sliding(max(4, round(m.window * share))) if isinstance(m, Sliding) else m

    match mask:
        case Sliding():
            return one(mask)
        case Cycle(masks):
            return Cycle(tuple(one(m) for m in masks))
    return mask
