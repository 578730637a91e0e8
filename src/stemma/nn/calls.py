"""Checks of what a call gives a model, and the inputs that follow from others."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from stemma.errors import UsageError
from stemma.nn import blocks, crossbatch, parts
from stemma.nn.inputs import Inputs, StreamInputs, not_padding
from stemma.nn.masks import CHOICES, AttnMask, MaskInputs, MaskRule
from stemma.nn.outputs import Output
from stemma.nn.positions import Position


def check(arch: parts.Arch, source: Inputs, target: Inputs) -> None:
    """Raise UsageError for inputs that an arch has no use for. `target`: the decoder's of an encoder-decoder."""
    if arch.structure != "encoder-decoder":
        for name, given in (
            ("decoder_input_ids", target.input_ids),
            ("decoder_inputs_embeds", target.inputs_embeds),
        ):
            if given is not None:
                raise UsageError(f"{name} are for an encoder-decoder; this model's structure is {arch.structure}")
    if source.attention is not None and not isinstance(arch.mask, parts.Open):
        raise UsageError(
            f"attention={source.attention!r} is for a model with an open mask, and this one has {arch.mask}"
        )
    if arch.structure == "decoder" and source.token_type_ids is not None:
        raise UsageError("token_type_ids were given, and this model has no segments")


def fill_target(
    source: Inputs, target: Inputs, shift_right: Callable[[Tensor], Tensor], labels: Tensor | None, of_text: bool
) -> None:
    """Make a decoder's input ids where none are given: `of_text` (for a task head) from input_ids, else from labels."""
    if target.input_ids is not None or target.inputs_embeds is not None:
        return
    if of_text:
        if source.input_ids is None:
            raise UsageError(
                "decoder_input_ids must be given with inputs_embeds: a task head makes them from input_ids"
            )
        target.input_ids = shift_right(source.input_ids)
    elif labels is None:
        raise UsageError("an encoder-decoder needs decoder_input_ids or labels")
    else:
        target.input_ids = shift_right(labels)


def stream_inputs(
    arch: parts.Arch, perm_mask: Tensor | None, target_mapping: Tensor | None, mems: Sequence[Tensor] | None
) -> StreamInputs | None:
    """The inputs of two-stream attention; None for a model with one stream."""
    if arch.streams is not None:
        return StreamInputs(perm_mask=perm_mask, target_mapping=target_mapping, mems=mems)
    for name, given in (("perm_mask", perm_mask), ("target_mapping", target_mapping), ("mems", mems)):
        if given is not None:
            raise UsageError(f"{name} was given, and this model has one stream and no memory")
    return None


def chosen_mask(inputs: Inputs) -> parts.LayerMask:
    """The mask that a call chooses for an open one."""
    choice = inputs.attention or "full"
    if choice not in CHOICES:
        raise UsageError(f"attention must be one of {', '.join(CHOICES)}, not {choice!r}")
    if (choice == "prefix") != (inputs.prefix is not None):
        raise UsageError('attention="prefix" and prefix=, the length of the prefix of each text, go together')
    return CHOICES[choice]


def chosen_segments(mask: parts.Open, inputs: Inputs) -> Tensor:
    """The segments (B T) of a choice of an open mask, where a call gives none."""

    def all_of(segment: int) -> Tensor:
        return torch.full(inputs.size, segment, device=inputs.device)

    match inputs.attention:
        case "causal":
            return all_of(mask.causal)
        case "reverse":
            return all_of(mask.reverse)
        case "prefix":
            assert inputs.prefix is not None
            inside = torch.arange(inputs.size[1], device=inputs.device) < inputs.prefix[:, None]
            return torch.where(inside, mask.source, mask.target)
    return all_of(0)


def encoder_mask(inputs: Inputs) -> AttnMask:
    """What cross-attention sees: no padding, and of packed rows the same document only. A cache keeps the padding."""
    cache, given, source = inputs.cache, inputs.encoder_mask, inputs.encoder_hidden
    if given is not None and source is not None and source.shape[1] > given.shape[1]:  # behind a soft prompt
        given = F.pad(given, (source.shape[1] - given.shape[1], 0), value=1)
    if cache is not None:
        if inputs.encoder_hidden is not None:
            cache.encoder_mask = given
        given = cache.encoder_mask
    real = not_padding(given)
    own, theirs = inputs.documents, inputs.encoder_documents
    if own is not None and theirs is not None and blocks.long(own, own.shape[1], theirs.shape[1]):
        here, there = (torch.arange(x.shape[1], device=x.device)[None] for x in (own, theirs))
        return AttnMask(rule=MaskRule(parts.Full(), MaskInputs(here, there, False, real, own, theirs)))
    seen = None if real is None else real[:, None, None, :]
    if own is not None and theirs is not None:
        same = (own[:, :, None] == theirs[:, None, :])[:, None]
        seen = same if seen is None else seen & same
    return AttnMask(mask=seen)


def ids_of_windows(inputs: Inputs, last: int) -> Tensor:
    """The ids of a text that is read in windows. Raises UsageError for inputs that do not go with windows."""
    if inputs.documents is not None or inputs.position_ids is not None:
        raise UsageError(
            f"texts of more than {last} tokens are read in windows, whose positions count from 0: give "
            "neither documents nor position_ids"
        )
    if inputs.input_ids is None or inputs.inputs_embeds is not None:
        raise UsageError(f"texts of more than {last} tokens are read in windows of ids: give no inputs_embeds")
    return inputs.input_ids


def check_contexts(mask: parts.Mask, inputs: Inputs, behind: bool) -> None:
    """Raise UsageError for `contexts` that do not go with the mask or with other inputs. `behind`: the rows stand
    behind a soft prompt or a prefix."""
    assert inputs.contexts is not None
    if not isinstance(mask, parts.Memory):
        raise UsageError(f"contexts are for a mask with memory layers, and this model has {mask}")
    if not any(inputs.contexts):
        return
    crossbatch.check(inputs.contexts, inputs.size[0])
    for name, given in (
        ("documents", inputs.documents is not None),
        ("attention_mask", inputs.attention_mask is not None),
        ("position_ids", inputs.position_ids is not None),
        ("cache", inputs.cache is not None),
        ("a soft prompt or a prefix", behind),
    ):
        if given:
            raise UsageError(f"rows that see other rows as memory are whole and begin at position 0: give no {name}")


def check_positions(position: Position, inputs: Inputs, start: int) -> None:
    """Raise UsageError for a text longer than a position table, and for positions of another shape."""
    given, end = inputs.position_ids, start + inputs.size[1]
    if given is None:
        if position.limit is not None and end > position.limit:
            raise UsageError(
                f"a text of {end} tokens does not fit: this model's position table has {position.limit} rows"
            )
    elif given.ndim != (3 if position.columns > 1 else 2):
        form = "B T 2" if position.columns > 1 else "B T"
        raise UsageError(f"position_ids have the shape {list(given.shape)}, and this model needs {form}")


def choose(
    model: Callable[..., Output], loss: Callable[[Tensor, Tensor], Tensor], source: Inputs, labels: Tensor | None
) -> Output:
    """Multiple choice: the candidates of each text (B C T) scored against each other. `labels`: B."""
    rows, candidates = source.shape[:2]

    def flat(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.flatten(0, 1)

    out = model(
        flat(source.input_ids),
        flat(source.attention_mask),
        flat(source.token_type_ids),
        langs=flat(source.langs),
        inputs_embeds=flat(source.inputs_embeds) if source.embeds_at is None else source.inputs_embeds,
        embeds_at=flat(source.embeds_at),
    )
    assert out.logits is not None
    if out.mc_logits is None:
        out.logits = scores = out.logits.view(rows, candidates)
    else:
        out.logits = out.logits.unflatten(0, (rows, candidates))
        out.mc_logits = scores = out.mc_logits.view(rows, candidates)
    if labels is not None:
        out.loss = loss(scores, labels)
    return out
