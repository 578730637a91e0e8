"""Text out of a model. `generate` continues prompts (decoders, query streams) or answers them (encoder-decoders,
encoders with an open mask), `stream` yields the same token by token, `fill` restores masked pieces (encoders) or
missing spans (encoder-decoders, and decoders that fill blanks)."""

from __future__ import annotations

from stemma.decoding.detokenizer import Detokenizer
from stemma.decoding.filling import Filled, Guess, fill
from stemma.decoding.generation import generate, stream
from stemma.decoding.inputs import evaluating
from stemma.decoding.results import Event, Result, gathered
from stemma.decoding.sampling import Draft, Lookup, SamplingParams, choice_seed, row_seed
from stemma.decoding.scoring import Score, score
from stemma.decoding.session import Session
from stemma.decoding.sessions import begin

__all__ = [
    "Detokenizer",
    "Draft",
    "Event",
    "Filled",
    "Guess",
    "Lookup",
    "Result",
    "SamplingParams",
    "Score",
    "Session",
    "begin",
    "choice_seed",
    "evaluating",
    "fill",
    "gathered",
    "generate",
    "row_seed",
    "score",
    "stream",
]
