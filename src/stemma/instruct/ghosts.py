"""Conversations for Ghost Attention (Touvron et al. 2023, LLaMA 2, section 3.3): a model answers the user's turns of
given conversations with an instruction before each of them, and rows hold the instruction once, as the system message.

OUT/rows.jsonl     messages, and the attributes of the instruction; `stemma tune chat` learns them with the setting
                   `objective.task.ghost=Ghost()`
OUT/state.json     the plan, how far it is, and what was left out, by reason
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from stemma import disk
from stemma.conversations import Conversation, Turn, ghost, shapes
from stemma.data import random as draw
from stemma.data import read
from stemma.data.files import ROWS
from stemma.errors import DataError, UsageError, brief
from stemma.instruct.ledger import RowMaker
from stemma.instruct.writers import Answerer, Continuation, Sampling

PURPOSE = 0x6A77  # of the draws


@dataclass(frozen=True)
class Attribute:
    """A kind of instruction: `form` with a value in the place of `{}`, and the values."""

    form: str
    values: tuple[str, ...]


# the kinds of the paper; the lists are this project's own (the paper's were written by the model)
ATTRIBUTES: dict[str, Attribute] = {
    "Hobby": Attribute(
        "You enjoy {} and bring it up.",
        ("sailing", "chess", "gardening", "photography", "baking bread", "astronomy", "pottery", "birdwatching"),
    ),
    "Language": Attribute(
        "Always answer in {}.", ("English", "French", "German", "Spanish", "Italian", "Portuguese", "Dutch", "Polish")
    ),
    "Figure": Attribute(
        "Always act as {}.",
        ("Napoleon", "Marie Curie", "Socrates", "Ada Lovelace", "Mozart", "Cleopatra", "Galileo", "Shakespeare"),
    ),
}


def attributes(path: str | Path) -> dict[str, Attribute]:
    """The kinds of a JSON file: `{"Figure": {"form": "Always act as {}.", "values": ["Napoleon", ...]}, ...}`. Raises
    DataError for another one."""
    found = {}
    for name, held in disk.read_object(Path(path)).items():
        form, values = (held.get("form"), held.get("values")) if isinstance(held, Mapping) else (None, None)
        if not isinstance(form, str) or form.count("{}") != 1 or not isinstance(values, list) or not values:
            raise DataError(f"{path}: {name!r} should be an object of a form with one {{}} and a list of values")
        if odd := [value for value in values if not isinstance(value, str) or not value.strip()]:
            raise DataError(f"{path}: a value of {name!r} is {brief(odd[0])}, and a text was expected")
        found[str(name)] = Attribute(form, tuple(values))
    if not found:
        raise DataError(f"{path} names no kind of instruction")
    return found


@dataclass(frozen=True)
class Plan:
    """What is made: answers by `writer` to `count` conversations (None: all) under instructions that join one to
    `together` attributes. `short`: the share of instructions in a few words (`Figure: Napoleon.`); `facts`: a hash of
    conversations and attributes."""

    writer: str
    facts: str
    count: int | None = None
    seed: int = 1
    together: int = 3
    short: float = 0.5
    tokens: int = 256
    temperature: float = 1.0
    round: int = 8


def conversations(source: str) -> list[Conversation]:
    """The conversations of rows, without their system messages. Raises DataError for a row that is none, naming it."""
    found = []
    for document in read(source, field=ROWS).documents():
        try:
            talk = shapes.read(json.loads(document.text))
        except DataError as error:
            raise DataError(f"{document.name}: {error}") from None
        found.append(replace(talk, turns=tuple(turn for turn in talk.turns if turn.role != "system")))
    if not found:
        raise DataError(f"{source} has no rows")
    return found


def facts(talks: Sequence[Conversation], kinds: Mapping[str, Attribute]) -> str:
    """What tells these conversations and attributes from others."""
    held = [[turn.content for turn in talk.turns if turn.role == "user"] for talk in talks]
    text = json.dumps([held, {name: asdict(kind) for name, kind in kinds.items()}], ensure_ascii=False)
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).hexdigest()


def instruction(plan: Plan, kinds: Mapping[str, Attribute], number: int) -> tuple[str, dict[str, str]]:
    """(the instruction of conversation `number`, its attributes): some kinds, drawn without repeats, a value of each,
    in words or, for a share, shortened."""
    names, key = list(kinds), (plan.seed, PURPOSE, number)
    count = 1 + int(draw.integers((*key, 0), 1, min(plan.together, len(names)))[0])
    order = draw.permutation((*key, 1), len(names)).tolist()[:count]
    chosen = {
        names[i]: kinds[names[i]].values[int(draw.integers((*key, 2, i), 1, len(kinds[names[i]].values))[0])]
        for i in sorted(order)
    }
    short = float(draw.uniform((*key, 3), 1)[0]) < plan.short
    parts = [f"{name}: {value}." if short else kinds[name].form.format(value) for name, value in chosen.items()]
    return " ".join(parts), chosen


class Ghosts(RowMaker):
    """Conversations under instructions in the folder `out`. One with an answer that is empty, was cut, or had no room
    is left out and counted. Raises UsageError if the folder holds those of another plan, and for a share or a number
    that cannot be."""

    def __init__(
        self,
        plan: Plan,
        writer: Answerer,
        talks: Sequence[Conversation],
        kinds: Mapping[str, Attribute],
        out: str | Path,
    ) -> None:
        if not 0 <= plan.short <= 1:
            raise UsageError(f"the share of short instructions must lie in [0, 1], not {plan.short}")
        if plan.count is not None and plan.count > len(talks):
            raise UsageError(f"there are {len(talks)} conversations, fewer than {plan.count}")
        self.plan, self.writer, self.kinds = plan, writer, kinds
        super().__init__(out, asdict(plan), list(talks)[: plan.count], plan.round)

    def round(self, first: int, items: Sequence[Conversation]) -> list[dict[str, Any]]:
        plan = self.plan
        told = [instruction(plan, self.kinds, first + i) for i in range(len(items))]
        users = [[turn for turn in talk.turns if turn.role == "user"] for talk in items]
        turns: list[list[Turn]] = [[] for _ in items]
        failed: dict[int, str] = {}
        for turn in range(max(map(len, users))):
            asked = [i for i in range(len(items)) if i not in failed and turn < len(users[i])]
            for i in asked:
                turns[i].append(users[i][turn])
            given = [ghost.everywhere(Conversation(tuple(turns[i])), told[i][0]).turns for i in asked]
            seeds = [int(draw.integers((plan.seed, PURPOSE, first + i, 4, turn), 1, 2**31)[0]) for i in asked]
            answers = self.writer.answer(given, Sampling(plan.tokens, plan.temperature), seeds) if asked else []
            for i, answer in zip(asked, answers, strict=True):
                if (why := _why_not(answer)) is not None:
                    failed[i] = why
                turns[i].append(Turn("assistant", answer.text.strip()))
        self.progress.counts.update(failed.values())
        return [
            {"messages": Conversation((Turn("system", told[i][0]), *turns[i])).messages, "attributes": told[i][1]}
            for i in range(len(items))
            if i not in failed
        ]


def _why_not(answer: Continuation) -> str | None:
    """Why a conversation with this answer is left out; None if it is not."""
    if not answer.fits:
        return "too long for the model"
    if not answer.text.strip():
        return "an empty answer"
    return None if answer.whole else "an answer that was cut"
