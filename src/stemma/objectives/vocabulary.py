"""Losses and log-probabilities at the vocabulary, without the logits of all tokens in memory at once.

`token_loss` is what training minimises, a sum. `token_logprobs` and `sequence_logprobs` give one value a token, for
evaluation, scoring and objectives on probabilities (DPO, PPO).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from stemma.errors import UsageError
from stemma.nn.inputs import Inputs
from stemma.nn.model import IGNORED, Model

LOGITS = 2**25  # logits held at once (128 MB in fp32); more targets go through the head in chunks


def picked(hidden: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """N D: the hidden states (B T D) of the batch's targets."""
    flat = hidden.flatten(0, 1)
    where = batch.get("where")
    return flat if where is None else flat.index_select(0, where)


def token_logprobs(model: Model, hidden: Tensor, targets: Tensor) -> Tensor:
    """`log softmax(logits)[target]` of each target, fp32, in the shape of `targets`; 0 where a target is -100.

    `hidden`: ... D, what the LM head reads, with a target each (no shift). Differentiable in `hidden` and the head. At
    most `LOGITS` logits exist at once: targets go through the head in chunks, whose logits the backward pass computes
    again."""
    if hidden.shape[:-1] != targets.shape:
        raise UsageError(f"targets {list(targets.shape)} do not fit hidden states {list(hidden.shape)}: one each")
    goal = targets.flatten()
    index = (goal != IGNORED).nonzero().squeeze(1)
    states, goal = hidden.flatten(0, -2).index_select(0, index), goal.index_select(0, index)
    rows = max(1, LOGITS // model.dims.vocab)
    again = torch.is_grad_enabled() and len(goal) > rows
    found = [
        checkpoint(_logprobs, model, h, g, use_reentrant=False, preserve_rng_state=False)
        if again
        else _logprobs(model, h, g)
        for h, g in zip(states.split(rows), goal.split(rows), strict=True)
    ]
    out = torch.zeros(targets.numel(), dtype=torch.float32, device=hidden.device)
    return out.index_copy(0, index, torch.cat(found)).view(targets.shape)


def _logprobs(model: Model, hidden: Tensor, goal: Tensor) -> Tensor:
    """N D, N -> N."""
    return -F.cross_entropy(model.logits(hidden).float(), goal, reduction="none")


def sequence_logprobs(
    model: Model, inputs: Inputs | Tensor, labels: Tensor | None = None, target: Inputs | None = None
) -> Tensor:
    """Log-probabilities of `labels` (B T, -100: none) under a model, fp32, B T; 0 where there is no label.

    Decoder: `labels` are the text's own ids, or those of a part of it; left out, all ids but padding. Value t is
    `log p(labels[:, t] | tokens before t)`; nothing predicts token 0, whose value is 0.
    Encoder: value t is that of the label in place of input token t (masked tokens, or the K of a target mapping).
    Encoder-decoder: `labels` are the decoder's targets, value t that of target t; `target` replaces the decoder's
    inputs, which else are the labels shifted by one.

    A sequence's log-probability is the sum over T. DPO (Rafailov et al. 2023, eq. 7):

        margin = sequence_logprobs(policy, ids, labels).sum(1) - sequence_logprobs(reference, ids, labels).sum(1)"""
    inputs, structure = Inputs.of(inputs), model.arch.structure
    if labels is None:
        if structure != "decoder" or inputs.input_ids is None:
            raise UsageError(f"labels must be given: they do not follow from the inputs of this {structure}")
        labels = inputs.input_ids
        if inputs.attention_mask is not None:
            labels = labels.masked_fill(inputs.attention_mask == 0, IGNORED)
    if structure == "encoder-decoder" and target is None:
        target = Inputs(model.shift_right(labels))
    hidden = model.hidden(inputs, target or Inputs()).lm
    if structure != "decoder":
        return token_logprobs(model, hidden, labels)
    return F.pad(token_logprobs(model, hidden[:, :-1], labels[:, 1:]), (1, 0))


def token_loss(
    model: Model, hidden: Tensor, batch: Mapping[str, Tensor], z: float = 0.0, smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy in nats summed over the targets of `batch`, fp32; `hidden` is B T D. `z` times the square of the
    logarithm of the softmax's denominator is added for each (de Brebisson & Vincent 2016; Chowdhery et al. 2022,
    section 5). `smoothing`: the share of a target's probability that all entries get alike (Szegedy et al. 2015,
    section 7)."""
    more = (smoothing,) if smoothing else ()
    states, goal = picked(hidden, batch), batch["targets"]
    rows = max(1, LOGITS // model.dims.vocab)
    if len(goal) <= rows:
        return _summed(model, states, goal, z, *more)
    if not torch.is_grad_enabled():
        parts = zip(states.split(rows), goal.split(rows), strict=True)
        return torch.stack([_summed(model, h, g, z, *more) for h, g in parts]).sum()
    # what the head reads is not known from outside, so every parameter is offered to it
    weights = [p for p in model.parameters() if p.requires_grad]
    loss: Tensor = _Chunked.apply(model, goal, rows, (z, *more), states, *weights)
    return loss


def _summed(model: Model, hidden: Tensor, goal: Tensor, z: float, smoothing: float = 0.0) -> Tensor:
    if model.compiled:
        loss: Tensor = CompiledNats.apply(model.logits(hidden), goal, z, smoothing)
        return loss
    return nats(model.logits(hidden), goal, z, smoothing)  # under no name here: in bf16 nothing holds them beside fp32


def nats(logits: Tensor, goal: Tensor, z: float = 0.0, smoothing: float = 0.0) -> Tensor:
    """The loss that `token_loss` describes, of logits (N V) and targets (N)."""
    logits = logits.float()
    loss = F.cross_entropy(logits, goal, reduction="sum", label_smoothing=smoothing)
    return loss + z * logits.logsumexp(-1).square().sum() if z else loss


class CompiledNats(torch.autograd.Function):
    """`nats` in two compiled passes over the logits, forward and backward, as they are: no fp32 copy of them and no
    log-softmax is written to memory. The target's own gradient is put in its place afterwards, for a vector that asks
    of every entry whether it is the target takes longer than all else."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, goal: Tensor, z: float, smoothing: float) -> Tensor:
        total, own, mean = _compiled(_read)(logits, goal, smoothing > 0)
        ctx.save_for_backward(logits, goal, total)
        ctx.how = z, smoothing
        loss: Tensor = (total - (1.0 - smoothing) * own).sum()
        if mean is not None:
            loss = loss - smoothing * mean.sum()
        return loss + z * total.square().sum() if z else loss

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> Any:
        return _compiled(_slope)(*ctx.saved_tensors, outer[0], *ctx.how), None, None, None


def _read(logits: Tensor, goal: Tensor, mean: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Of each row (N): the logarithm of the softmax's denominator, the target's logit, the mean of all, in fp32."""
    wide = logits.float()
    return wide.logsumexp(-1), wide.gather(1, goal[:, None]).squeeze(1), wide.mean(-1) if mean else None


def _slope(logits: Tensor, goal: Tensor, total: Tensor, outer: Tensor, z: float, smoothing: float) -> Tensor:
    """The gradient of the loss at the logits (N V), `outer` times."""
    slope = (logits.float() - total[:, None]).exp() * (outer * (1.0 + 2.0 * z * total))[:, None]
    slope = slope - outer * (smoothing / logits.shape[1])
    own = slope.gather(1, goal[:, None]) - outer * (1.0 - smoothing)
    return slope.to(logits.dtype).scatter(1, goal[:, None], own.to(logits.dtype))


@functools.cache
def _compiled(f: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(f)


class _Chunked(torch.autograd.Function):
    """The summed loss of many targets, some `rows` of them at a time: each chunk's gradient is taken as soon as its
    loss is known, so that no logits outlive their chunk and none are computed twice."""

    @staticmethod
    def forward(
        ctx: Any, model: Model, goal: Tensor, rows: int, how: tuple[float, ...], states: Tensor, *weights: Tensor
    ) -> Tensor:
        total = states.new_zeros((), dtype=torch.float32)
        inputs = torch.empty_like(states)
        grads: list[Tensor | None] = [None] * len(weights)
        used: list[int] | None = None
        for i in range(0, len(goal), rows):
            with torch.enable_grad():
                chunk = states[i : i + rows].detach().requires_grad_()
                loss = _summed(model, chunk, goal[i : i + rows], *how)
            asked = range(len(weights)) if used is None else used
            found = torch.autograd.grad(loss, [chunk, *(weights[j] for j in asked)], allow_unused=True)
            used = [j for j, g in zip(asked, found[1:], strict=True) if g is not None]
            assert found[0] is not None
            inputs[i : i + rows] = found[0]
            for j, g in zip(asked, found[1:], strict=True):
                held = grads[j]
                if g is not None:
                    grads[j] = g if held is None else held.add_(g)
            total += loss.detach()
            del found, g, loss  # else this chunk's gradient of the head stays beside the next one's
        ctx.found = [inputs, *grads]
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> Any:
        grads = [None if g is None else g * outer[0].to(g.dtype) for g in ctx.found]
        ctx.found = None
        return None, None, None, None, *grads
