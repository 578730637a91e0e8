"""Rows of data as conversations, told apart by their fields."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from stemma.conversations import apis
from stemma.errors import DataError, brief, did_you_mean

ROLES = ("system", "user", "assistant")
# what data sets call the roles
SPELLINGS = {
    "human": "user", "prompter": "user", "instruction": "user", "customer": "user",
    "gpt": "assistant", "bot": "assistant", "model": "assistant", "chatgpt": "assistant", "bard": "assistant",
    "bing": "assistant", "response": "assistant", "ai": "assistant",
    **{role: role for role in ROLES},
}  # fmt: skip
# a question and its answer in one row: (the fields of the one, the fields of the other)
PAIRS = (
    (("prompt",), ("completion", "response", "answer", "output")),
    (("question",), ("answer", "response")),
    (("inputs",), ("targets",)),
    (("query",), ("response",)),
    (("source",), ("target",)),
)
LISTS = ("messages", "conversations", "conversation", "turns", "dialog")
TRANSCRIPT = re.compile(r"\s*\n\n(Human|Assistant): ?")  # HH-RLHF: one text with both sides
EMPTY_INPUTS = ("", "<noinput>", "n/a", "none")  # what instruction data write for no input


@dataclass(frozen=True)
class Turn:
    """What one side says. `role`: system, user or assistant. `more`: further fields of the message, which a chat
    template may read: `tool_calls`, `tool_call_id`."""

    role: str
    content: str
    more: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def silent(self) -> bool:
        """Whether it has no words, only other fields."""
        return bool(self.more) and not self.content


@dataclass(frozen=True)
class Conversation:
    """Turns in order: perhaps a system message, then user and assistant in turn. `instruction` and `input` are kept
    apart for templates that write them apart (Alpaca). `liked`: whether the last answer was preferred to another; None
    where none was compared."""

    turns: tuple[Turn, ...]
    instruction: str = ""
    input: str = ""
    liked: bool | None = None

    @property
    def messages(self) -> list[dict[str, Any]]:
        """As chat templates read it."""
        return [{"role": turn.role, "content": turn.content, **turn.more} for turn in self.turns]

    @property
    def answers(self) -> list[str]:
        """What the assistant says."""
        return [turn.content for turn in self.turns if turn.role == "assistant"]


def shape_of(row: Mapping[str, Any]) -> str:
    """The shape of a row: `messages`, `sharegpt`, `instruction`, `pair`, `tree`, `transcript`, `texts`, `api` or
    `decision`. Raises DataError for one that has none, naming its fields."""
    if isinstance(row.get("prompt"), Mapping) and "replies" in row["prompt"]:
        return "tree"
    for name in LISTS:
        if isinstance(row.get(name), Sequence) and not isinstance(row[name], str):
            first = next(iter(row[name]), None)
            if isinstance(first, Mapping):
                return "sharegpt" if "from" in first else "messages"
            if "question_id" in row:  # MT-bench: both are the user's
                raise DataError(f"its {name!r} are questions without answers")
            return "texts"
    if isinstance(row.get("instruction"), str) and ("output" in row or "response" in row or _instances(row)):
        return "instruction"
    if isinstance(row.get("chosen"), str) and TRANSCRIPT.match(row["chosen"]):
        return "transcript"
    if _pair(row) is not None:
        return "pair"
    if apis.is_row(row):
        return "api"
    if isinstance(row.get("QUESTION"), str) and "final_decision" in row:
        return "decision"
    raise DataError(_shapeless(row))


def _shapeless(row: Mapping[str, Any]) -> str:
    """Why a row has no shape: a field that is missing or misspelt, or all of them."""
    for name in LISTS:
        if name in row:
            return f"its {name!r} holds {brief(row[name])}, and a list of messages was expected"
    for ask, tells in (("instruction", ("output", "response")), *((a, t) for asks, t in PAIRS for a in asks)):
        if ask in row and isinstance(row[ask], str):
            return f"it has {ask!r} and no {' or '.join(map(repr, tells))}"
        if ask in row:
            return f"its {ask!r} holds {brief(row[ask])}, which is no text"
        for tell in tells:
            if tell in row:
                return f"it has {tell!r} and no {ask!r}"
    fields = ", ".join(map(brief, row)) or "none"
    hints = (did_you_mean(str(name), LISTS) for name in row if len(str(name)) < 40)
    return (
        f"its fields ({fields}) make no conversation; known are messages (role, content), conversations (from, value), "
        f"instruction with output, and pairs such as prompt and completion{next(filter(None, hints), '')}"
    )


def _instances(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The first instance of a task of Self-Instruct, which holds its input and output."""
    held = row.get("instances")
    first = held[0] if isinstance(held, Sequence) and not isinstance(held, str) and held else None
    return first if isinstance(first, Mapping) and "output" in first else None


def _pair(row: Mapping[str, Any]) -> tuple[str, str] | None:
    for asks, tells in PAIRS:
        for ask in asks:
            tell = next((t for t in tells if t in row), None)
            if ask in row and tell is not None:
                return ask, tell
    return None


def read(row: Mapping[str, Any]) -> Conversation:
    """The conversation of a row. Raises DataError for a row of no known shape, an unknown role, turns out of order, an
    empty question or answer, and a conversation in which the assistant says nothing."""
    match shape_of(row):
        case "messages":
            found = Conversation(tuple(_turn(m, "role", "content") for m in _listed(row)))
        case "sharegpt":
            found = Conversation(tuple(_turn(m, "from", "value") for m in _listed(row)))
        case "texts":
            texts = [_text(text, "a turn") for text in _listed(row)]
            found = Conversation(tuple(Turn(ROLES[1 + i % 2], text) for i, text in enumerate(texts)))
        case "instruction":
            found = _instruction({**row, **(_instances(row) or {})})
        case "transcript":
            parts = TRANSCRIPT.split(row["chosen"])[1:]
            found = Conversation(
                tuple(Turn(SPELLINGS[who.lower()], said) for who, said in zip(parts[::2], parts[1::2], strict=True))
            )
        case "api":
            api = apis.read(row)
            asked = apis.asked(api.question, row.get("document"))
            found = Conversation((Turn("user", asked), Turn("assistant", api.answer)))
        case "decision":  # PubMedQA: an abstract, a question, and yes, no or maybe
            parts = row.get("CONTEXTS") or []
            asked = "\n".join([*(_text(part, "'CONTEXTS'") for part in parts), f"Question: {row['QUESTION']}"])
            found = Conversation((Turn("user", asked), Turn("assistant", _text(row["final_decision"], "the decision"))))
        case "tree":
            found = next(_paths([row["prompt"]]), Conversation(()))
        case _:
            found = _of_pair(row)
    if (system := row.get("system")) and found.turns[:1] and found.turns[0].role != "system":
        found = Conversation((Turn("system", _text(system, "'system'")), *found.turns), found.instruction, found.input)
    return checked(found)


def is_text(row: Mapping[str, Any]) -> bool:
    """Whether a row holds a text and makes no conversation. A message of a tree has a text, too."""
    if not isinstance(row.get("text"), str) or "role" in row or "message_id" in row:
        return False
    try:
        return not shape_of(row)
    except DataError:
        return True


def question(row: Mapping[str, Any]) -> Conversation:
    """The turns of a row that its last answer follows. The answer may be missing, at the end of a list of messages or
    as a field beside the question. Raises DataError as `read` does."""
    whole = read(_answered(row))
    last = max(i for i, turn in enumerate(whole.turns) if turn.role == "assistant")
    return replace(whole, turns=whole.turns[:last])


def _answered(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """`row` with some answer where it has none."""
    for name in LISTS:
        held = row.get(name)
        if isinstance(held, Sequence) and not isinstance(held, str) and held and isinstance(held[-1], Mapping):
            role, content = ("from", "value") if "from" in held[-1] else ("role", "content")
            said = held[-1].get(role)
            if isinstance(said, str) and SPELLINGS.get(said.lower()) == "user":
                return {**row, name: [*held, {role: "assistant", content: "?"}]}
            return row
    try:
        shape_of(row)
        return row
    except DataError:
        asks = (("instruction", "output"), *((ask, tells[0]) for some, tells in PAIRS for ask in some))
        tell = next((tell for ask, tell in asks if isinstance(row.get(ask), str)), None)
        return row if tell is None else {**row, tell: "?"}


def checked(talk: Conversation) -> Conversation:
    """`talk`, if its turns are in order and none is empty. Raises DataError."""
    turns = talk.turns[1:] if talk.turns[:1] and talk.turns[0].role == "system" else talk.turns
    for i, turn in enumerate(turns):
        due = ROLES[1 + i % 2]
        if turn.role != due:
            said = f"turn {i + 1} is the {turn.role}'s, and the {due}'s is due"
            raise DataError(f"{said}; user and assistant take turns, beginning with the user")
        if not turn.content.strip():
            raise DataError(f"turn {i + 1} ({turn.role}) is empty")
    if not any(turn.role == "assistant" for turn in turns):
        raise DataError("the assistant says nothing in it")
    return talk


def _listed(row: Mapping[str, Any]) -> Sequence[Any]:
    found: Sequence[Any] = next(row[name] for name in LISTS if isinstance(row.get(name), Sequence))
    return found


def _turn(message: Any, role: str, content: str) -> Turn:
    if not isinstance(message, Mapping) or role not in message or content not in message:
        fields = ", ".join(map(brief, message)) if isinstance(message, Mapping) else type(message).__name__
        raise DataError(f"a message lacks {role!r} or {content!r} (it has: {fields})")
    name = message[role]
    if not isinstance(name, str) or name.lower() not in SPELLINGS:
        hint = did_you_mean(str(name), (*ROLES, "human", "gpt")) if isinstance(name, str) else ""
        raise DataError(f"role {brief(name)} is not known; roles are {', '.join(ROLES)}{hint}")
    if message.get("tool_calls"):
        raise DataError(f"a message of the {SPELLINGS[name.lower()]} calls tools, which cannot be learnt here")
    if SPELLINGS[name.lower()] == "assistant" and message.get("weight") == 0:
        raise DataError("an answer has weight 0, which says not to learn it; each answer is learnt, so leave it out")
    return Turn(SPELLINGS[name.lower()], _text(message[content], f"a message of the {SPELLINGS[name.lower()]}"))


def _text(value: Any, what: str) -> str:
    """Text, or a list of parts that are all text."""
    if isinstance(value, str):
        return value
    if (
        isinstance(value, Sequence)
        and value
        and all(isinstance(p, Mapping) and isinstance(p.get("text"), str) for p in value)
    ):
        return "".join(p["text"] for p in value)
    raise DataError(f"{what} holds {brief(value)}, which is no text")


def _instruction(row: Mapping[str, Any]) -> Conversation:
    ask = _text(row["instruction"], "'instruction'")
    more = row.get("input") or ""
    more = "" if isinstance(more, str) and more.strip().lower() in EMPTY_INPUTS else _text(more, "'input'")
    answer = _text(row["output"] if "output" in row else row["response"], "'output'")
    turns = (Turn("user", f"{ask}\n\n{more}" if more else ask), Turn("assistant", answer))
    return Conversation(turns, ask, more)


def _of_pair(row: Mapping[str, Any]) -> Conversation:
    pair = _pair(row)
    assert pair is not None
    before, after = row[pair[0]], row[pair[1]]
    if isinstance(before, str) and isinstance(after, str):
        return Conversation((Turn("user", before), Turn("assistant", after)))
    if isinstance(before, Sequence) and isinstance(after, Sequence) and not isinstance(before, str):
        both = [*before, *([{"role": "assistant", "content": after}] if isinstance(after, str) else after)]
        return Conversation(tuple(_turn(m, "role", "content") for m in both))
    wrong = next((n for n in pair if not isinstance(row[n], str)), pair[0])
    raise DataError(f"its {wrong!r} holds {brief(row[wrong])}, which is neither a text nor a list of messages")


# ---------------------------------------------------------------- trees


def trees(
    rows: Iterable[Mapping[str, Any]], every: bool = False, bad: Callable[[DataError], None] | None = None
) -> Iterator[Conversation]:
    """The conversations of OASST's flat rows (message_id, parent_id, text, role, rank): of each tree the path of the
    best ranked replies, or with `every` each path to a leaf. Raises DataError for a row without an id, an id that two
    rows have, replies to nothing, and a path that is no conversation; `bad` gets the error instead, where it is
    given."""
    complain = bad or _raise
    nodes: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(rows, 1):
        if "message_id" not in row:
            fields = ", ".join(map(brief, row)) or "none"
            complain(
                DataError(f"row {number} has no 'message_id' (its fields: {fields}); rows of a tree have one each")
            )
        elif str(row["message_id"]) in nodes:
            complain(DataError(f"row {number} has message_id {brief(row['message_id'])}, as an earlier one"))
        else:
            nodes[str(row["message_id"])] = {**row, "replies": []}
    roots = []
    for name, node in nodes.items():
        parent = node.get("parent_id")
        if parent is None:
            roots.append(node)
        elif str(parent) in nodes:
            nodes[str(parent)]["replies"].append(node)
        else:
            complain(DataError(f"message {brief(name)} replies to {brief(parent)}, which is not among the rows"))
    for root in roots:
        try:
            for found in _paths([root], every):
                yield checked(found)
        except DataError as error:
            complain(DataError(f"the tree of message {brief(root['message_id'])}: {error}"))


def _raise(error: DataError) -> None:
    raise error


def _paths(path: list[Any], every: bool = False) -> Iterator[Conversation]:
    """The conversations that begin with the nodes of `path`; each ends with an answer."""
    replies = _replies(path[-1])
    if not replies:
        turns = tuple(_turn(node, "role", "text") for node in path)
        while turns and turns[-1].role != "assistant":
            turns = turns[:-1]
        if turns:
            yield Conversation(turns)
        return
    ranked = sorted(replies, key=lambda node: math.inf if node.get("rank") is None else node["rank"])
    for node in ranked if every else ranked[:1]:
        yield from _paths([*path, node], every)


def _replies(node: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The replies to a node that were not deleted. Raises DataError for what is no list of nodes, and for a rank that
    is no number."""
    held = node.get("replies") or []
    if not isinstance(held, Sequence) or not all(isinstance(reply, Mapping) for reply in held):
        raise DataError(f"'replies' holds {brief(held)}, and a list of messages was expected")
    for reply in held:
        if not isinstance(reply.get("rank"), int | float | None):
            raise DataError(f"the rank of a reply is {brief(reply['rank'])}, and a number was expected")
    return [reply for reply in held if not reply.get("deleted")]
