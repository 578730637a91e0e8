"""Tokens that a chat template or an objective brings to a model that lacks them: their rows have to learn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from stemma import disk
from stemma.conversations import unknown_tokens, writer
from stemma.declare.tasks import ChatTask, HeadTask, RowObjective
from stemma.errors import UsageError
from stemma.nn import parts
from stemma.nn.model import Model
from stemma.objectives import tokens
from stemma.rewrites.kinds import LoRA, TrainableTokens
from stemma.train.config import Plan


def needed(plan: Plan, there: Model, quiet: bool = True) -> tuple[Plan, Any]:
    """(the plan with the tokens of its named template that the tokenizer of `there` lacks as `text.extras`, the
    tokenizer with them, or with those of its objective). Beside a LoRA adapter their rows learn alone
    (`TrainableTokens`). Raises UsageError beside other adapters, whose files hold no rows of tokens."""
    if not isinstance(plan.objective, RowObjective):
        return _of_objective(plan, there, quiet)
    task = plan.objective.task
    if isinstance(task, HeadTask):
        return _of_head(plan, there)
    if not isinstance(task, ChatTask) or not task.template:
        return plan, there.tokenizer
    names = unknown_tokens(there.tokenizer, writer(there.tokenizer, task.template))
    if not names:
        return plan, there.tokenizer
    shown, grown = ", ".join(names), there.tokenizer.grown(0, names)
    cure = "name another template, or tune all weights"
    plan = _with_rows(plan, there, [grown.id(name) for name in names], f"template {task.template}", shown, cure)
    if not quiet:
        disk.tell(f"note: the model gets tokens for {shown}; their rows begin as the mean of the others")
    return replace(plan, text=replace(plan.text, extras=(*plan.text.extras, *names))), grown


def _with_rows(plan: Plan, there: Model, ids: Sequence[int], what: str, shown: str, cure: str) -> Plan:
    """`plan` with the rows of new tokens among what learns, where adapters do in place of the weights. Raises
    UsageError for adapters whose files hold no such rows, and for a head that has a number a token besides."""
    if not any(rewrite.freezes for rewrite in plan.rewrites):
        return plan
    lora = next((rewrite for rewrite in plan.rewrites if isinstance(rewrite, LoRA)), None)
    head = None if isinstance(plan.objective, RowObjective) and plan.arch.heads.task else plan.arch.heads.lm
    biased = isinstance(head, parts.MLMHead) or (isinstance(head, parts.LMHead) and head.bias)
    if lora is None or biased:
        why = "holds rows of tokens beside LoRA alone" if lora is None else "has no place for the bias of its head"
        raise UsageError(
            f"{what} has tokens that {plan.train.start} lacks ({shown}), whose rows have to learn, and the file of "
            f"this adapter {why}: {cure}"
        )
    where = ("embed.tokens",) if head is None or head.tied else ("embed.tokens", "lm")
    own = [r for r in plan.rewrites if isinstance(r, TrainableTokens) and r.name == lora.name]
    rows = TrainableTokens(tuple(dict.fromkeys([*(i for r in own for i in r.ids), *ids])), where=where, name=lora.name)
    return replace(plan, rewrites=(*(r for r in plan.rewrites if r not in own), rows))


def _of_objective(plan: Plan, there: Model, quiet: bool) -> tuple[Plan, Any]:
    """(the plan, the tokenizer of `there` with runs of spaces, sentinels and the tokens that the plan's objective
    needs). Raises UsageError as `needed` does."""
    text, known = plan.text, there.tokenizer
    names = dict.fromkeys((*text.extras, *tokens(plan.objective, text)))
    named = [name for name in names if known.id(name) is None]
    grown = known.grown(text.sentinels, named, text.runs)
    more, sentinels = grown.vocab_size - known.vocab_size, max(0, text.sentinels - known.sentinels)
    if not more:
        return plan, known
    runs = more - len(named) - sentinels
    what = [f"{runs} runs of spaces"] * (runs > 0) + [f"{sentinels} sentinels"] * (sentinels > 0) + named
    shown, whose = ", ".join(what), plan.system or "the objective"
    plan = _with_rows(plan, there, range(known.vocab_size, grown.vocab_size), whose, shown, "tune all weights")
    if not quiet:
        disk.tell(f"note: the model gets {more} tokens ({shown}); their rows learn")
    return plan, grown


def _of_head(plan: Plan, there: Model) -> tuple[Plan, Any]:
    """(the plan, the tokenizer of `there` with the delimiters of a task). Raises UsageError as `needed` does."""
    known = there.tokenizer
    names = [name for name in tokens(plan.objective, plan.text) if known.id(name) is None]
    if not names:
        return plan, known
    grown = known.grown(0, names)
    ids = [grown.id(name) for name in names]
    return _with_rows(plan, there, ids, "the task", ", ".join(names), "leave them out, or tune all weights"), grown
