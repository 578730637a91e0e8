"""Text out of a model: `generate` continues prompts (decoders, query streams) or answers them (encoder-decoders,
encoders with an open mask), `fill` restores masked pieces (encoders) or missing spans (encoder-decoders, and decoders
that fill blanks)."""

from __future__ import annotations

from stemma.decoding.choose import Choice
from stemma.decoding.continuing import Result, Writer, evaluating, generate
from stemma.decoding.filling import Filled, Guess, fill
from stemma.decoding.session import Session

__all__ = ["Choice", "Filled", "Guess", "Result", "Session", "Writer", "evaluating", "fill", "generate"]
