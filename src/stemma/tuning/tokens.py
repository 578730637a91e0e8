"""Tokens that a chat template or an objective brings to a model that lacks them: their rows have to learn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from stemma import disk
from stemma.conversations import unknown_tokens, writer
from stemma.declare.tasks import ChatTask, RowObjective
from stemma.errors import UsageError
from stemma.nn.model import Model
from stemma.objectives import tokens
from stemma.train.config import Plan


def needed(plan: Plan, there: Model, quiet: bool = True) -> tuple[Plan, Any]:
    """(the plan with the tokens of its named template that the tokenizer of `there` lacks as `text.extras`, the
    tokenizer with them, or with those of an objective on text). Raises UsageError where adapters learn: their files
    hold no rows of new tokens."""
    if not isinstance(plan.objective, RowObjective):
        return plan, _of_objective(plan, there, quiet)
    task = plan.objective.task
    if not isinstance(task, ChatTask) or not task.template:
        return plan, there.tokenizer
    names = unknown_tokens(there.tokenizer, writer(there.tokenizer, task.template))
    if not names:
        return plan, there.tokenizer
    shown = ", ".join(names)
    if any(rewrite.freezes for rewrite in plan.rewrites):
        raise UsageError(
            f"template {task.template} has tokens that {plan.train.start} lacks ({shown}), and an adapter cannot learn "
            "rows for them: name another template, tune all weights, or add them to the model first "
            "(stemma.conversations.add_tokens) and learn them with TrainableTokens"
        )
    if not quiet:
        disk.tell(f"note: the model gets tokens for {shown}; their rows begin as the mean of the others")
    return replace(plan, text=replace(plan.text, extras=(*plan.text.extras, *names))), there.tokenizer.grown(0, names)


def _of_objective(plan: Plan, there: Model, quiet: bool) -> Any:
    """The tokenizer of `there` with runs of spaces, sentinels and the tokens that the plan's objective needs."""
    text, known = plan.text, there.tokenizer
    names = dict.fromkeys((*text.extras, *tokens(plan.objective, text)))
    named = [name for name in names if known.id(name) is None]
    grown = known.grown(text.sentinels, named, text.runs)
    more, sentinels = grown.vocab_size - known.vocab_size, max(0, text.sentinels - known.sentinels)
    if not more:
        return known
    runs = more - len(named) - sentinels
    what = [f"{runs} runs of spaces"] * (runs > 0) + [f"{sentinels} sentinels"] * (sentinels > 0) + named
    shown = ", ".join(what)
    if any(rewrite.freezes for rewrite in plan.rewrites):
        raise UsageError(
            f"{plan.system} needs tokens that {plan.train.start} lacks ({shown}), and an adapter cannot learn rows for "
            "them: tune all weights"
        )
    if not quiet:
        disk.tell(f"note: the model gets {more} tokens ({shown}); their rows learn")
    return grown
