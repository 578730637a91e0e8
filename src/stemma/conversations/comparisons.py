"""Rows in which two answers to the same words were compared, as two conversations.

prompt, chosen, rejected     texts, or lists of messages (which may hold the prompt's messages, too)
chosen, rejected             whole conversations: lists of messages, or transcripts (Anthropic's HH: \\n\\nHuman: ... )
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from stemma.conversations.shapes import TRANSCRIPT, Conversation, read
from stemma.errors import DataError, brief

NAMES = ("chosen", "rejected")
FEEDBACK = "_preferred"  # of a piece of a row: whether its last answer was
Row = Mapping[str, Any]


def is_row(row: Row) -> bool:
    """Whether a row compares two answers."""
    return all(name in row for name in NAMES)


def compared(row: Row) -> tuple[Conversation, Conversation]:
    """The conversation with the preferred answer, and that with the other. Raises DataError for a row of another form,
    for one whose conversations do not end with an answer, and for two that are the same."""
    one, two = (replace(_side(row, name), liked=name == NAMES[0]) for name in NAMES)
    if one.turns == two.turns:
        raise DataError("its chosen and its rejected answer are the same")
    return one, two


def _side(row: Row, name: str) -> Conversation:
    prompt, answer = row.get("prompt"), row[name]
    more = {"system": row["system"]} if row.get("system") else {}
    if isinstance(answer, str) and TRANSCRIPT.match(answer) and not prompt:
        found = read({"chosen": answer})
    elif isinstance(answer, str):
        if not isinstance(prompt, str | Sequence) or not prompt:
            raise DataError(f"it has a text in {name!r} and no 'prompt' that it answers")
        found = read({"prompt": prompt, "completion": answer} | more)
    elif isinstance(answer, Sequence) and answer:
        asked = [*prompt] if isinstance(prompt, Sequence) and not isinstance(prompt, str) else []
        alone = all(isinstance(m, Mapping) and m.get("role") == "assistant" for m in answer)
        if alone and isinstance(prompt, str):
            asked = [{"role": "user", "content": prompt}]
        found = read({"messages": [*(asked if alone else []), *answer]} | more)
    else:
        raise DataError(f"its {name!r} holds {brief(answer)}, and a text or a list of messages was expected")
    if found.turns[-1].role != "assistant":
        raise DataError(f"the last turn of its {name!r} is the {found.turns[-1].role}'s, and an answer was expected")
    return found


def pieces(row: Row) -> list[Row]:
    """A row that compares as one row for each side, any other row as it is."""
    if not is_row(row):
        return [row]
    return [{"messages": talk.messages, FEEDBACK: talk.liked} for talk in compared(row)]
