"""What an objective's batches are to a network, by arithmetic: how long its rows are, how many targets they hold.

`stemma.objectives` makes them, and the tests hold these figures to what it makes. Where rows differ, a full one is
meant."""

from __future__ import annotations

import math

from stemma.declare import objectives as declared
from stemma.declare.family import Text
from stemma.declare.recipes import Recipe
from stemma.nn import parts
from stemma.planning.network import Rows

# where nothing fixed follows from the objective: shares of a row that objectives made of random texts
WRITTEN = 0.7  # of a row after a prefix cut anywhere
DOCUMENT = 0.75  # of a row: the length of a text, so that rows hold parts of several


def rows(
    goal: declared.Objective,
    arch: parts.Arch,
    dims: parts.Dims,
    text: Text,
    recipe: Recipe,
    context: int,
    number: int,
) -> Rows:
    """`number` rows of `context` tokens."""
    packed = not recipe.mixed
    base = Rows(number, context, 0, packed=packed, numbered=packed, langs=dims.languages > 0)

    def some(share: float, **more: object) -> Rows:
        return _with(base, targets=max(number, round(number * share)), **more)

    both = arch.structure == "encoder-decoder"
    match goal:
        case declared.Distillation(task=task):
            return rows(task, arch, dims, text, recipe, context, number)
        case declared.CLM() | declared.Infill():
            shared = text.bos is not None and text.bos == text.eos  # closes one text and begins the next
            if recipe.mixed or shared:
                return some(context, some=False)
            return some(context - 1 / DOCUMENT)
        case declared.MLM(pairs=None, rate=rate) | declared.RTD(pairs=None, rate=rate) | declared.TLM(rate=rate):
            return some(rate * context)
        case declared.MLM(rate=rate) | declared.RTD(rate=rate):
            most = goal.most if isinstance(goal, declared.MLM) and goal.most is not None else context
            told = goal.pairs != "halves"
            return some(min(most, rate * context), packed=False, numbered=False, padded=True, segments=True, pairs=told)
        case declared.MixedMLM(rate=rate):
            kinds = {"packed": False, "numbered": False, "padded": True, "segments": True, "pairs": goal.full > 0}
            return some(rate * context, **kinds)
        case declared.PLM():
            asked = min(goal.targets, context // goal.share)
            kinds = {"packed": False, "numbered": False, "padded": True, "segments": True, "backward": goal.both}
            memory = goal.memory if goal.reuse else 0
            return some(asked, asked=goal.targets, memory=memory, **kinds)
        case declared.AttentionDistillation():
            return some(context, some=False)
        case declared.Contrastive():
            return _with(base, packed=False, numbered=False, padded=True)
        case declared.Blanks():
            kinds = {"lines": True, "prefix": isinstance(arch.mask, parts.Prefix), "numbered": True}
            return some(blanks(goal) * context, **kinds)
        case declared.Spans() if both:
            whole = Sizes(goal.rate, goal.mean, raw_length(goal.rate, goal.mean, context))
            goal_length = whole.targets if recipe.mixed else 8 * math.ceil(whole.targets * 1.25 / 8)
            return some(whole.targets, goal=goal_length, some=not recipe.mixed)
        case declared.Fragment():
            return some(context / 2, goal=context // 2)
        case declared.Denoise():
            return some(context * 0.98, goal=context, padded=recipe.mixed)
        case declared.Translation():
            return some(context * 0.9, goal=context, packed=True, numbered=True)
        case declared.PrefixLM() if both:
            return some(context * WRITTEN, goal=context, packed=True, numbered=True)
        case declared.Spans(rate=rate, mean=mean):
            share = rate * (1 + 1 / mean)
            return some(context * share / (1 + 1 / mean * rate), prefix=True)
    return some(context * WRITTEN, goal=context if both else 0, prefix=not both)


def _with(base: Rows, **more: object) -> Rows:
    from dataclasses import replace

    return replace(base, **more)  # type: ignore[arg-type]


def blanks(goal: declared.Blanks) -> float:
    """The share of a row that fills blanks."""
    lost = goal.rate * (1 + 1 / goal.mean)
    long = (goal.least + 1) / 2
    return goal.spans * lost / (1 + lost) + goal.sentences * goal.rate / (1 + goal.rate) + goal.suffix * long


class Sizes:
    """What span corruption leaves of a text of `length` tokens, and what it asks for (Raffel et al. 2020)."""

    def __init__(self, rate: float, mean: float, length: int) -> None:
        noise = min(max(round(length * rate), 1), max(length - 1, 1))
        spans = min(max(round(noise / mean), 1), max(length - noise, 1))
        self.inputs, self.targets = length - noise + spans + 1, noise + spans + 1


def raw_length(rate: float, mean: float, context: int) -> int:
    """The longest text whose corrupted form has at most `context` tokens: 568 for 512 at T5's numbers."""
    length = 2
    while Sizes(rate, mean, length + 1).inputs <= context:
        length += 1
    return length
