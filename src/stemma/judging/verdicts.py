"""What a judge's text says: a verdict between two answers, or a score. Nothing is guessed: a text with none, or with
several different ones, is invalid."""

from __future__ import annotations

import re

PAIR = re.compile(r"\[\[([ABC])\]\]")
SCORE = re.compile(r"\[\[(\d+(?:\.\d+)?)\]\]")
SINGLE = re.compile(r"\[(\d+(?:\.\d+)?)\]")  # where none stands in two brackets
LOW, HIGH = 1.0, 10.0
INVALID = "error"  # what MT-bench's files call a verdict that cannot be read


def _said(text: str) -> str:
    """The text behind the reasoning."""
    return text.rpartition("</think>")[2]


def winner(text: str, first: str, second: str) -> str:
    """`first`, `second` or `tie` by `[[A]]`, `[[B]]` or `[[C]]`; else INVALID."""
    found = {*PAIR.findall(_said(text))}
    return {"A": first, "B": second, "C": "tie"}[found.pop()] if len(found) == 1 else INVALID


def score(text: str) -> float | None:
    """The score from 1 to 10 by `[[7]]`, or, without any such, by `[7]`; None for no valid one."""
    said = _said(text)
    found = {float(one) for one in SCORE.findall(said) or SINGLE.findall(said)}
    value = found.pop() if len(found) == 1 else None
    return value if value is not None and LOW <= value <= HIGH else None


def joined(one: str, other: str) -> str:
    """The verdict of both orders: what both say, a tie where they differ, INVALID where one cannot be read."""
    if INVALID in (one, other):
        return INVALID
    return one if one == other else "tie"
