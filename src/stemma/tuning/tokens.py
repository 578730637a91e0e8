"""Tokens that a chat template brings to a model that lacks them: their rows have to learn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from stemma import disk
from stemma.conversations import unknown_tokens, writer
from stemma.declare.tasks import ChatTask, RowObjective
from stemma.errors import UsageError
from stemma.nn.model import Model
from stemma.train.config import Plan


def needed(plan: Plan, there: Model, quiet: bool = True) -> tuple[Plan, Any]:
    """(the plan with the tokens of its named template that the tokenizer of `there` lacks as `text.extras`, the
    tokenizer with them). Raises UsageError where adapters learn: their files hold no rows of new tokens."""
    task = plan.objective.task if isinstance(plan.objective, RowObjective) else None
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
