"""Losses and log-probabilities at the vocabulary, without the logits of all tokens in memory at once.

`token_loss` is what training minimises, a sum. `token_logprobs` and `sequence_logprobs` give one value a token, for
evaluation, scoring and objectives on probabilities (DPO, PPO).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from stemma.errors import UsageError
from stemma.nn.cpu import CompiledCrossEntropy
from stemma.nn.inputs import Inputs
from stemma.nn.model import IGNORED, Model

LOGITS = 2**25  # logits held at once (128 MB in fp32); more targets go through the head in chunks


def picked(hidden: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """N D: the hidden states (B T D) of the batch's targets."""
    flat = hidden.flatten(0, 1)
    where = batch.get("where")
    return flat if where is None else flat.index_select(0, where)


def token_logprobs(model: Model, hidden: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """`log softmax(logits / temperature)[target]` of each target, fp32, in the shape of `targets`; 0 where a target is
    -100.

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
        checkpoint(_logprobs, model, h, g, temperature, use_reentrant=False, preserve_rng_state=False)
        if again
        else _logprobs(model, h, g, temperature)
        for h, g in zip(states.split(rows), goal.split(rows), strict=True)
    ]
    out = torch.zeros(targets.numel(), dtype=torch.float32, device=hidden.device)
    return out.index_copy(0, index, torch.cat(found)).view(targets.shape)


def _logprobs(model: Model, hidden: Tensor, goal: Tensor, temperature: float) -> Tensor:
    """N D, N -> N."""
    return -F.cross_entropy(scaled(model.logits(hidden).float(), temperature), goal, reduction="none")


def scaled(logits: Tensor, temperature: float) -> Tensor:
    """Logits at a temperature."""
    return logits if temperature == 1.0 else logits / temperature


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
    hidden = model.hidden(inputs, replace(target) if target is not None else Inputs()).lm
    if structure != "decoder":
        return token_logprobs(model, hidden, labels)
    return F.pad(token_logprobs(model, hidden[:, :-1], labels[:, 1:]), (1, 0))


def token_loss(
    model: Model, hidden: Tensor, batch: Mapping[str, Tensor], z: float = 0.0, smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy in nats, summed over the targets of `batch`, fp32. `hidden`: B T D.

    `z`: weight of `logsumexp(logits)^2` (de Brebisson & Vincent 2016; Chowdhery et al. 2022, section 5)
    `smoothing`: label smoothing (Szegedy et al. 2015, section 7)"""
    more = (smoothing,) if smoothing else ()
    states, targets = picked(hidden, batch), batch["targets"]
    rows = max(1, LOGITS // model.dims.vocab)
    if len(targets) <= rows:
        return _summed(model, states, targets, z, *more)
    if not torch.is_grad_enabled():
        parts = zip(states.split(rows), targets.split(rows), strict=True)
        return torch.stack([_summed(model, h, g, z, *more) for h, g in parts]).sum()
    # which weights the head reads is not known here, so every parameter is offered to it
    weights = [p for p in model.parameters() if p.requires_grad]
    loss: Tensor = _Chunked.apply(model, targets, rows, (z, *more), states, *weights)
    return loss


def _summed(model: Model, hidden: Tensor, targets: Tensor, z: float, smoothing: float = 0.0) -> Tensor:
    """The loss of all targets at once: N D, N -> scalar."""
    if model.compiled:
        loss: Tensor = CompiledCrossEntropy.apply(model.logits(hidden), targets, z, smoothing)
        return loss
    return nats(model.logits(hidden), targets, z, smoothing)  # unnamed, so that bf16 logits are freed after the cast


def nats(logits: Tensor, targets: Tensor, z: float = 0.0, smoothing: float = 0.0) -> Tensor:
    """The loss of `token_loss`, of logits (N V) and targets (N)."""
    logits = logits.float()
    loss = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
    return loss + z * logits.logsumexp(-1).square().sum() if z else loss


class _Chunked(torch.autograd.Function):
    """The summed loss of many targets, `rows` of them at a time. Each chunk's gradient is taken right after its loss,
    so no logits outlive their chunk, and none are computed twice."""

    @staticmethod
    def forward(
        ctx: Any, model: Model, targets: Tensor, rows: int, how: tuple[float, ...], states: Tensor, *weights: Tensor
    ) -> Tensor:
        total = states.new_zeros((), dtype=torch.float32)
        inputs = torch.empty_like(states)
        grads: list[Tensor | None] = [None] * len(weights)
        used: list[int] | None = None
        for i in range(0, len(targets), rows):
            with torch.enable_grad():
                chunk = states[i : i + rows].detach().requires_grad_()
                loss = _summed(model, chunk, targets[i : i + rows], *how)
            offered = range(len(weights)) if used is None else used
            found = torch.autograd.grad(loss, [chunk, *(weights[j] for j in offered)], allow_unused=True)
            used = [j for j, g in zip(offered, found[1:], strict=True) if g is not None]
            assert found[0] is not None
            inputs[i : i + rows] = found[0]
            g = None  # of the last weight; there is none where all are frozen
            for j, g in zip(offered, found[1:], strict=True):
                held = grads[j]
                if g is not None:
                    grads[j] = g if held is None else held.add_(g)
            total += loss.detach()
            del found, g, loss  # else the head's gradient of this chunk lives beside the next one's
        ctx.found = [inputs, *grads]
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> Any:
        grads = [None if g is None else g * outer[0].to(g.dtype) for g in ctx.found]
        ctx.found = None
        return None, None, None, None, *grads
