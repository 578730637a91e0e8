"""Data that stand in for what the tuned families learnt from, where that was not published or cannot be had: made here,
small, with answers that can be checked. `builtin:NAME` reads each of them ([more](systems.md))

A module of this room is a set. It has `LICENCE` and `rows()`, which gives the same rows each time.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES: dict[str, str] = {  # of a module: what its rows are
    "instructions": "instructions with an input or without, and answers (Alpaca)",
    "dialogues": "conversations whose later answers need what was said before (Vicuna, QLoRA)",
    "flan": "36 small tasks in eleven clusters, zero-shot with options (FLAN 2021)",
    "flan2022": "the same tasks with examples or without, options or none, and chains of thought (Flan 2022)",
    "hard_coded": "what a model says of itself (Tulu 2)",
    "tulu": "rows of flan2022, dialogues, and the hard-coded rows ten times (Tulu 1 and 2)",
    "sources": "long modules of the standard library (Giraffe, LongLLaMA)",
    "lookups": "long documents in which what was said early is asked for later (Giraffe, LongLLaMA)",
    "french": "questions and tasks in French, with answers in French (Vigogne)",
    "functions": "signatures and docstrings of Python functions, answered by the body (Codex-S)",
    "docstrings": "Python functions, answered by their docstring (Codex-D)",
    "coding": "requests for a Python function, answered by its code (Code LLaMA - Instruct)",
    "explained": "questions whose answers are explained step by step (Orca, Stable Beluga 2)",
    "explained_stronger": "some of them again, explained by a stronger teacher (Orca, Stable Beluga 2)",
    "medicine": "short medical questions of three tasks, for trying a method, no advice (Med-PaLM)",
    "calls": "questions and the calls that answer them, half of them beside the call's documentation (Gorilla)",
    "arithmetic": "sums in six levels, each with one right answer (rewards that can be checked)",
    "feedback": "questions with a helpful and an unhelpful answer, and some with a helpful one alone (Koala)",
    "preferences": "questions with a more and a less helpful answer, and how clear that is (LLaMA-2-Chat, Tulu 2)",
    "rankings": "questions with four to six answers by rank (InstructGPT)",
    "harmless": "harmful requests, declined and not (LLaMA-2-Chat)",
    "questions": "prompts with what the rules of helpfulness and safety read (InstructGPT, LLaMA-2-Chat)",
    "questions_held": "prompts in other words, by which models are judged that learnt from `questions`",
    "borderline": "prompts that sound dangerous and are harmless, and ten that are not (LLaMA-2-Chat)",
}


def rows(name: str) -> Iterator[dict[str, Any]]:
    """The rows of the set `name`, in their order."""
    return iter(importlib.import_module(f"{__name__}.{name}").rows())


def prompts(name: str) -> dict[str, str]:
    """The written prompt of each task of the set `name`; empty where it has none."""
    return dict(getattr(importlib.import_module(f"{__name__}.{name}"), "PROMPTS", {}))


def licence(name: str) -> str:
    """The licence of the set `name`."""
    return str(importlib.import_module(f"{__name__}.{name}").LICENCE)


def stamp(name: str) -> str:
    """A text that changes where what makes the set `name` changes."""
    own = getattr(importlib.import_module(f"{__name__}.{name}"), "stamp", None)
    if own is not None:  # of rows that are made of something else than this room
        return str(own())
    here = Path(__file__).parent
    found = sorted({*here.glob(f"{name}*"), here / "facts.py"})
    return hashlib.sha256(b"".join(path.read_bytes() for path in found if path.is_file())).hexdigest()
