"""What stands in front of a row, and around it: vectors and the room behind them, prompts in words, padding."""

from __future__ import annotations

from dataclasses import replace

from stemma import samples
from stemma.data.sources import options
from stemma.declare.family import Text
from stemma.declare.tasks import HardPrompt
from stemma.errors import UsageError
from stemma.nn.model import Model

VECTORS = 100  # of a soft prompt, where their number is unpublished


def behind(there: Model, vectors: int) -> int:
    """The tokens that a model reads behind so many vectors. Raises UsageError where that is none."""
    limit = there.decoder.position.limit if there.decoder is not None else None  # of a table of positions
    if limit is not None and limit <= vectors:
        raise UsageError(f"{there.name} has {limit} positions, and {vectors} vectors in front of a text take them all")
    return there.dims.context if limit is None else limit - vectors


def prompts_of(data: str) -> tuple[HardPrompt, ...]:
    """The prompts in words that come with data of this project's own, one for each task."""
    name = options(data)[0].removeprefix("builtin:")
    if not data.startswith("builtin:") or name not in samples.NAMES:
        return ()
    return tuple(HardPrompt(text, task) for task, text in samples.prompts(name).items())


def padded(text: Text, pad: str | None, there: Model) -> Text:
    """`text` with the token of its own that a system pads with, for a model whose tokenizer has none for it."""
    if pad is None or there.tokenizer.pad_id is not None:
        return text
    return replace(text, pad=pad, extras=(*text.extras, pad))
