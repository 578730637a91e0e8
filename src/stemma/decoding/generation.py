"""Texts that go on: `generate` returns them, `stream` yields them token by token."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from stemma.decoding import beams, contrastive
from stemma.decoding.batch import Batch
from stemma.decoding.detokenizer import Detokenizer
from stemma.decoding.inputs import evaluating
from stemma.decoding.requests import GenerationRequest, Prompts, requests
from stemma.decoding.results import Event, Result, gathered
from stemma.decoding.sampling import SamplingParams
from stemma.decoding.sessions import session_kind
from stemma.errors import UsageError
from stemma.nn.model import Model

Params = SamplingParams | Sequence[SamplingParams]


def generate(
    model: Model,
    prompts: Prompts,
    params: Params | None = None,
    *,
    stream: Callable[[int, str], None] | None = None,
    batch: int | None = None,
    **options: Any,
) -> list[Result]:
    """Continue every prompt; one result a prompt, in order.

    `prompts` are texts or lists of token ids, of any lengths. `params`: the `SamplingParams` of all prompts, or one for
    each; `options` replace fields of theirs, so `generate(model, prompts, temperature=0.7, seed=3)` needs no `params`.
    An option that is left out is the checkpoint's (generation_config.json), else: greedy, no rules, one beam, 32 new
    tokens. A warning names keys of that file that are not followed.

    A text depends on its prompt, its options and its seed, not on the other prompts, up to rounding. With one `seed`
    for all (default 0), prompt i draws with `row_seed(seed, i)`: equal prompts get different texts.

    With `n` above 1 the result of a prompt is its first choice (the best one, where `best_of` or beams rank them), and
    `Result.choices` are all of them.

    `stream(row, piece)` is called with new text as it comes. `batch`: prompts at a time (default all); when a text
    ends, the next prompt takes its place. Raises UsageError for what cannot be.
    """
    _check_batch(batch)
    asked = requests(model, prompts, params, options)
    drawn = [(i, r) for i, r in enumerate(asked) if r.beams.num_beams == 1 and not r.penalty_alpha]
    searched = [(i, r) for i, r in enumerate(asked) if r.beams.num_beams > 1]
    check_beams([r for _, r in searched], stream is not None, options.get("num_beams") is None)
    if stream is not None:
        _check_streams(asked)
    if stream is not None and model.tokenizer is None:
        raise UsageError("streaming needs a tokenizer, and this model came without one")
    if stream is not None and any(r.width > 1 for r in asked):
        raise UsageError("stream= takes one text a prompt; stemma.decoding.stream says which choice each piece is of")
    written: dict[int, dict[int, Result]] = {i: {} for i in range(len(asked))}
    with torch.inference_mode(), evaluating(model):
        for events in _steps(model, drawn, batch, stream is not None):
            for event in events:
                if stream is not None and event.text:
                    stream(event.row, event.text)
                if event.error is not None:
                    raise event.error
                if event.result is not None:
                    written[event.row][event.choice] = event.result
        for first in range(0, len(searched), batch or len(asked)):
            these = searched[first : first + (batch or len(asked))]
            found = beams.search(model, [r for _, r in these])
            for (i, request), best in zip(these, found, strict=True):
                written[i] = {k: beam_result(model, request, beam) for k, beam in enumerate(best)}
        for i, request in enumerate(asked):
            if request.penalty_alpha:
                written[i] = {0: beam_result(model, request, beams.Beam(*contrastive.search(model, request)))}
    return [gathered(written[i], r.n) for i, r in enumerate(asked)]


def stream(
    model: Model, prompts: Prompts, params: Params | None = None, *, batch: int | None = None, **options: Any
) -> Iterator[Event]:
    """The tokens of every prompt's continuation, each an `Event` as soon as it is drawn (of a fast model some at a
    time, which takes at most 8 ms); arguments as of `generate`.

    Options are checked at the call. The model computes while the next event is waited for, without gradients and in
    eval mode; between events it is in its own mode. Whoever stops early just leaves the loop: the cache goes with the
    iterator. Beams and `best_of` cannot be streamed.
    """
    _check_batch(batch)
    asked = requests(model, prompts, params, options)
    check_beams([r for r in asked if r.beams.num_beams > 1], True, options.get("num_beams") is None)
    _check_streams(asked)
    if any(r.width > r.n for r in asked):
        raise UsageError("best_of cannot be streamed: which texts are best is known at their end")
    return _guarded(model, _steps(model, list(enumerate(asked)), batch, True))


def _guarded(model: Model, steps: Iterator[list[Event]]) -> Iterator[Event]:
    """Events of `steps`, whose modes end before each event is handed out."""
    modules = list(model.modules())
    mixed = any(module.training for module in modules)
    while True:
        some = modules if mixed or model.training else ()  # to look at each takes as long as all else around a step
        with torch.inference_mode(), evaluating(model, some):
            events = next(steps, None)
        if events is None:
            return
        for event in events:
            if event.error is not None:
                raise event.error
            yield event


def _steps(
    model: Model, asked: Sequence[tuple[int, GenerationRequest]], batch: int | None, pieces: bool
) -> Iterator[list[Event]]:
    """The events of each step, until all requests have ended; at most `batch` rows at a time, or one prompt's."""
    every = [request for _, request in asked]
    kind = session_kind(model, [r.prompt for r in every], [r.rules.max_new_tokens for r in every])
    waiting, running = deque(asked), Batch(model, pieces, kind, several=True)
    while waiting or running:
        joining: list[tuple[int, GenerationRequest]] = []
        rows = len(running)
        while waiting and (batch is None or not rows or rows + waiting[0][1].width <= batch):
            rows += waiting[0][1].width
            joining.append(waiting.popleft())
        if joining:
            running.add(joining)
        yield running.step()


def _check_batch(batch: int | None) -> None:
    if batch is not None and batch < 1:
        raise UsageError(f"batch must be at least 1, not {batch}")


def _check_streams(asked: Sequence[GenerationRequest]) -> None:
    if any(r.penalty_alpha for r in asked):
        raise UsageError("contrastive search (penalty_alpha) cannot be streamed")


def check_beams(asked: Sequence[GenerationRequest], streams: bool, checkpoints: bool) -> None:
    """Raises UsageError for searches with options that go with no search. `streams`: their texts are to be streamed;
    `checkpoints`: their beams are the checkpoint's."""
    for request in asked:
        if request.sampler.temperature > 0 or streams or request.stop:
            width = request.beams.num_beams
            whose = f"; the checkpoint asks for {width} beams: num_beams=1 does without" if checkpoints else ""
            raise UsageError(
                f"beam search (num_beams > 1) goes with neither temperature, stop strings nor streaming{whose}"
            )


def beam_result(model: Model, request: GenerationRequest, beam: beams.Beam) -> Result:
    """What a search found."""
    text = None if model.tokenizer is None else Detokenizer(model, request.prompt).decode(beam.ids)
    reason = "eos" if beam.ids[-1] in request.rules.eos else "length"
    return Result(beam.ids, text, beam.logprobs, reason, request.seed)
