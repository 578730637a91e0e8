"""Rows in which answers to the same words were compared, as conversations that differ in their last answer.

prompt, chosen, rejected    texts, or lists of messages (which may hold the prompt's messages, too)
chosen, rejected            whole conversations: lists of messages, or transcripts (Anthropic's HH: \\n\\nHuman: ... );
                            or two texts, whose common beginning is the prompt (trl's implicit prompt)
prompt, responses, ranks    K answers (`responses`, `answers`, `completions`) with `ranks` (the least is the best) or
                            `scores` (the most is), or each with its own (UltraFeedback, Nectar), or the best first
question, answer_0, ...     the rows of WebGPT, HelpSteer, Chatbot Arena and of summaries (Stiennon et al. 2020)
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from stemma.conversations.shapes import TRANSCRIPT, Conversation, Turn, question, read
from stemma.declare.alignment import GRADES
from stemma.errors import DataError, brief

NAMES = ("chosen", "rejected")
FEEDBACK = "_preferred"  # of a piece of a row: whether its last answer was
LISTS = ("responses", "answers", "completions")  # of several answers
TEXTS = ("response", "answer", "completion", "text", "content")  # of an answer among them
ASKS = ("prompt", "instruction", "question", "query", "context")  # what they answer
RANKS, SCORES = ("ranks", "rank", "ranking"), ("scores", "score", "ratings", "rating")
OWN_SCORES = ("overall_score", "score", "rating", "fine-grained_score")  # of an answer among them
PAIR_SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
)
UNSURE = ("unsure", "negligibly better / unsure", "negligibly better or unsure", "negligibly better/unsure")
STRENGTHS = ("preference_strength", "overall_preference")  # -3 (the first is significantly better) to 3
ARENA = {"model_a": (0, 1), "model_b": (1, 0), "tie": (0, 0), "tie (bothbad)": (0, 0), "bothbad": (0, 0)}
Row = Mapping[str, Any]


class Pair(NamedTuple):
    """Two of several answers by their numbers, the better first. `tied`: neither is; `grade`: its place in `GRADES`,
    where it is known; `margin`: what the row says that their scores should differ by; `gap`: by how much the numbers
    differ that they were judged by."""

    better: int
    worse: int
    tied: bool = False
    grade: int | None = None
    margin: float | None = None
    gap: float | None = None


@dataclass(frozen=True)
class Compared:
    """Answers to one prompt, the best first. `ranks`: of each, ascending from 0; equal ones are ties. `scores`: what
    they were judged by, where that was a number. `grade`, `margin`: of a pair, see `Pair`."""

    talks: tuple[Conversation, ...]
    ranks: tuple[int, ...]
    scores: tuple[float, ...] | None = None
    grade: int | None = None
    margin: float | None = None

    @property
    def prompt(self) -> tuple[Turn, ...]:
        """What all of them answer."""
        return self.talks[0].turns[:-1]

    @property
    def answers(self) -> list[str]:
        """The answers that were compared."""
        return [talk.turns[-1].content for talk in self.talks]

    def pairs(self) -> list[Pair]:
        """All pairs of them, K (K - 1) / 2."""
        found = []
        for i in range(len(self.talks)):
            for j in range(i + 1, len(self.talks)):
                gap = None if self.scores is None else self.scores[i] - self.scores[j]
                found.append(Pair(i, j, self.ranks[i] == self.ranks[j], self.grade, self.margin, gap))
        return found


def is_row(row: Row) -> bool:
    """Whether a row compares two answers by the names `chosen` and `rejected`."""
    return all(name in row for name in NAMES)


def compares(row: Row) -> bool:
    """Whether a row compares answers in any of the known shapes."""
    return is_row(row) or _several(row) is not None or any(all(n in row for n in names) for names, _ in OTHERS)


def compared(row: Row) -> tuple[Conversation, Conversation]:
    """The conversation with the preferred answer, and that with the other. Raises DataError for a row of another form,
    for one whose conversations do not end with an answer, and for two that are the same."""
    one, two = (replace(_side(row, name), liked=name == NAMES[0]) for name in NAMES)
    if one.turns == two.turns:
        raise DataError("its chosen and its rejected answer are the same")
    return one, two


def ranked(row: Row) -> Compared:
    """The answers that a row compares. Raises DataError for a row that compares none, for answers that are empty, the
    same or follow different words, and for ranks and scores that do not fit them."""
    if is_row(row):
        found = _chosen(row)
    elif (name := _several(row)) is not None:
        found = _of_list(row, name)
    else:
        make = next((make for names, make in OTHERS if all(n in row for n in names)), None)
        if make is None:
            fields = ", ".join(map(brief, row)) or "none"
            raise DataError(
                f"its fields ({fields}) compare no answers; known are chosen and rejected, and a prompt with responses "
                "and their ranks or scores"
            )
        found = make(row)
    for talk in found.talks[1:]:
        if talk.turns[:-1] != found.prompt:
            turn = next(
                (i for i, (a, b) in enumerate(zip(talk.turns, found.prompt, strict=False), 1) if a != b),
                min(len(talk.turns), len(found.prompt)) + 1,
            )
            raise DataError(f"its answers follow different words, which differ from turn {turn} on")
    return found


def candidates(row: Row) -> list[Conversation]:
    """The answers of a row in its own order, each with what it follows, whether or not one was preferred. Raises
    DataError for a row without an answer."""
    if is_row(row) and not all(isinstance(row[n], str) and not TRANSCRIPT.match(row[n]) for n in NAMES):
        return [_side(row, name) for name in NAMES]
    if is_row(row):
        whole = row if row.get("prompt") else {**row, **_implicit(row)}
        return [_side(whole, name) for name in NAMES]
    if (name := _several(row)) is not None:
        ask = next(row[n] for n in ASKS if row.get(n))
        return [_talk(ask, text, f"answer {i}", row.get("system")) for i, text in enumerate(_texts(row[name]), 1)]
    if compares(row):
        return list(ranked(row).talks)
    answer = next((row[n] for n in ("completion", "response", "answer") if n in row), None)
    if answer is not None and row.get("prompt") is not None:
        return [_talk(row["prompt"], answer, "completion", row.get("system"))]
    return [_ended(read(row), "messages")]


# ---------------------------------------------------------------- chosen and rejected


def _chosen(row: Row) -> Compared:
    if not row.get("prompt") and all(isinstance(row[n], str) and not TRANSCRIPT.match(row[n]) for n in NAMES):
        row = {**row, **_implicit(row)}
    talks = compared(row)
    scores = next((tuple(_number(row[n], n) for n in names) for names in PAIR_SCORES if _has(row, names)), None)
    if scores is not None and scores[0] < scores[1]:
        raise DataError(f"its rejected answer has the higher score, {scores[1]:g} and {scores[0]:g}")
    tied = row.get("tie") is True or (scores is not None and scores[0] == scores[1])
    margin = _number(row["margin"], "margin") if row.get("margin") is not None else None
    return Compared(talks, (0, 0 if tied else 1), scores, grade_of(row.get("grade")), margin)


def grade_of(value: Any) -> int | None:
    """The place of a grade in `GRADES`, by its name; None where there is none. Raises DataError for an unknown one."""
    if value is None:
        return None
    words = " ".join(value.lower().split()) if isinstance(value, str) else None
    if words in UNSURE:
        return len(GRADES) - 1
    if words not in GRADES:
        raise DataError(f"its grade is {brief(value)}; grades are {', '.join(GRADES)} and unsure")
    return GRADES.index(words)


def _implicit(row: Row) -> dict[str, str]:
    """Two texts as a prompt, their common beginning to the last blank, and two answers."""
    one, two = (row[name] for name in NAMES)
    same = next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
    ends = [m.end() for m in re.finditer(r"\S(?=\s)", one[:same] + " ")]
    ends = [e for e in ends if all(text[e : e + 1].isspace() and text[e:].strip() for text in (one, two))]
    if one == two:
        raise DataError("its chosen and its rejected answer are the same")
    if not ends:
        raise DataError("its chosen and its rejected text have no 'prompt', and no common beginning that could be one")
    return {"prompt": one[: ends[-1]], "chosen": one[ends[-1] :], "rejected": two[ends[-1] :]}


def _side(row: Row, name: str) -> Conversation:
    answer = row[name]
    if isinstance(answer, str) and TRANSCRIPT.match(answer) and not row.get("prompt"):
        return _ended(read({"chosen": answer}), name)
    if isinstance(answer, str) and (not isinstance(row.get("prompt"), str | Sequence) or not row["prompt"]):
        raise DataError(f"it has a text in {name!r} and no 'prompt' that it answers")
    return _talk(row.get("prompt"), answer, name, row.get("system"))


def _talk(prompt: Any, answer: Any, name: str, system: Any = None) -> Conversation:
    """The conversation of a prompt and an answer, each a text or a list of messages. Raises DataError."""
    more = {"system": system} if system else {}
    asked = messages_of(prompt)
    if isinstance(answer, str):
        found = read({"prompt": asked, "completion": answer} | more)
    elif isinstance(answer, Sequence) and answer:
        alone = all(isinstance(m, Mapping) and m.get("role") == "assistant" for m in answer)
        found = read({"messages": [*(asked if alone else []), *answer]} | more)
    else:
        raise DataError(f"its {name!r} holds {brief(answer)}, and a text or a list of messages was expected")
    return _ended(found, name)


def _ended(talk: Conversation, name: str) -> Conversation:
    if talk.turns[-1].role != "assistant":
        raise DataError(f"the last turn of its {name!r} is the {talk.turns[-1].role}'s, and an answer was expected")
    return talk


def messages_of(prompt: Any) -> list[Any]:
    """A prompt as messages: a text is the user's, but for a transcript, which is taken apart."""
    if isinstance(prompt, str) and TRANSCRIPT.match(prompt):
        parts = TRANSCRIPT.split(prompt)[1:]
        sides = [
            ({"Human": "user"}.get(who, "assistant"), said) for who, said in zip(parts[::2], parts[1::2], strict=True)
        ]
        if len(sides) > 1 and not sides[-1][1].strip():
            sides = sides[:-1]  # Assistant: where the answer follows
        return [{"role": role, "content": said} for role, said in sides]
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [*prompt] if isinstance(prompt, Sequence) else []


def pieces(row: Row) -> list[Row]:
    """A row that compares as one row for each side, any other row as it is."""
    if not is_row(row):
        return [row]
    return [{"messages": talk.messages, FEEDBACK: talk.liked} for talk in compared(row)]


# ---------------------------------------------------------------- several answers


def _several(row: Row) -> str | None:
    """The name of the field that holds several answers to a prompt."""
    if not any(row.get(ask) for ask in ASKS):
        return None
    for name in LISTS:
        held = row.get(name)
        if not isinstance(held, Sequence) or isinstance(held, str) or len(held) < 2:
            continue
        if all(isinstance(one, str) or (isinstance(one, Mapping) and _text_in(one)) for one in held):
            return name
    return None


def _text_in(answer: Row) -> str | None:
    if "role" in answer:  # a message
        return None
    return next((name for name in TEXTS if isinstance(answer.get(name), str)), None)


def _texts(held: Sequence[Any]) -> list[str]:
    return [one if isinstance(one, str) else one[_text_in(one)] for one in held]


def _of_list(row: Row, name: str) -> Compared:
    held = row[name]
    ask = next(row[n] for n in ASKS if row.get(n))
    texts = _texts(held)
    system = row.get("system")
    ranks = next((row[n] for n in RANKS if row.get(n) is not None), None)
    scores = next((row[n] for n in SCORES if row.get(n) is not None), None)
    if ranks is None and scores is None:
        own = _judged_by(held)
        values = [one[own] for one in held] if own is not None else None
        ranks, scores = (values, None) if own == "rank" else (None, values)
    numbers = _numbers(ranks, "ranks", len(texts)) if ranks is not None else None
    points = _numbers(scores, "scores", len(texts)) if scores is not None else None
    return _ordered(ask, texts, numbers, points, system)


def _judged_by(held: Sequence[Any]) -> str | None:
    """The field by which answers were judged that are objects: their rank, or a score; None where none has one. Raises
    DataError where some have one and others do not."""
    found = {
        name: [i for i, one in enumerate(held, 1) if not isinstance(one, Mapping) or one.get(name) is None]
        for name in ("rank", *OWN_SCORES)
    }
    if (whole := next((name for name, lacking in found.items() if not lacking), None)) is not None:
        return whole
    name, lacking = min(found.items(), key=lambda item: len(item[1]))
    if len(lacking) < len(held):
        raise DataError(f"its answer {lacking[0]} has no {name!r}, by which others were judged")
    return None


def _ordered(
    ask: Any, texts: Sequence[Any], ranks: Sequence[float] | None, scores: Sequence[float] | None, system: Any = None
) -> Compared:
    """Answers in the order of their ranks, the least first, or of their scores, the most first, or as they stand. Of
    answers that are the same and of one rank one is kept. Raises DataError for the same ones of different ranks."""
    keys: list[float] = list(range(len(texts)))
    if ranks is not None or scores is not None:
        keys = list(ranks) if ranks is not None else [-s for s in scores or ()]
    by_text: dict[str, int] = {}
    order: list[int] = []
    for i in sorted(range(len(texts)), key=keys.__getitem__):
        first = by_text.setdefault(str(texts[i]), i)
        if keys[first] != keys[i]:
            raise DataError(f"its answers {first + 1} and {i + 1} are the same, and one is preferred to the other")
        order += [i] if first == i else []
    if len(order) < 2:
        raise DataError(f"its {len(texts)} answers are the same, so none was preferred")
    values = sorted({keys[i] for i in order})
    talks = tuple(_talk(ask, texts[i], f"answer {i + 1}", system) for i in order)
    return Compared(
        talks,
        tuple(values.index(keys[i]) for i in order),
        None if scores is None else tuple(float(scores[i]) for i in order),
    )


def _numbers(held: Any, name: str, count: int) -> list[float]:
    if not isinstance(held, Sequence) or isinstance(held, str) or len(held) != count:
        raise DataError(f"its {name} are {brief(held)}, and a number for each of the {count} answers was expected")
    return [_number(one, name) for one in held]


def _number(value: Any, name: str) -> float:
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise DataError(f"its {name!r} holds {brief(value)}, and a number was expected")
    return found


def _has(row: Row, names: Sequence[str]) -> bool:
    return all(row.get(name) is not None for name in names)


# ---------------------------------------------------------------- published shapes


def _webgpt(row: Row) -> Compared:
    question = row["question"]
    ask = question.get("full_text") if isinstance(question, Mapping) else question
    scores = [_number(row[name], name) for name in ("score_0", "score_1")]
    return _ordered(ask, [row["answer_0"], row["answer_1"]], None, scores)


def _strength(row: Row) -> Compared:
    names = ("response_1", "response_2") if "response_1" in row else ("response1", "response2")
    found = next((n for n in STRENGTHS if row.get(n) is not None), None)
    if found is None:
        raise DataError(f"it has {' and '.join(names)}, and no {' or '.join(STRENGTHS)}")
    strength = _number(row[found], found)
    if strength not in range(-3, 4):
        raise DataError(f"its {found!r} is {brief(row[found])}; -3 (the first is much better) to 3 was expected")
    ask = next((row[n] for n in ASKS if row.get(n)), None)
    made = _ordered(ask, [row[n] for n in names], [0 if strength <= 0 else 1, 0 if strength >= 0 else 1], None)
    return replace(made, grade=len(GRADES) - 1 - abs(int(strength)))


def _arena(row: Row) -> Compared:
    winner = row["winner"]
    if not isinstance(winner, str) or winner not in ARENA:
        raise DataError(f"its winner is {brief(winner)}; known are {', '.join(ARENA)}")
    ends = [_talk(None, row[name], name) for name in ("conversation_a", "conversation_b")]
    order = (1, 0) if winner == "model_b" else (0, 1)
    if ends[0].turns == ends[1].turns:
        raise DataError("its two conversations are the same")
    return Compared(tuple(ends[i] for i in order), tuple(sorted(ARENA[winner])))


def _summaries(row: Row) -> Compared:
    info, held, choice = row["info"], row["summaries"], row["choice"]
    ask = next((info[n] for n in ("post", "article") if info.get(n)), None) if isinstance(info, Mapping) else None
    if not isinstance(held, Sequence) or len(held) != 2 or not all(isinstance(one, Mapping) for one in held):
        raise DataError(f"its 'summaries' hold {brief(held)}, and two with a text each were expected")
    if isinstance(choice, bool) or choice not in (0, 1):
        raise DataError(f"its choice is {brief(choice)}; 0 or 1 was expected")
    return _ordered(ask, [one.get("text") for one in held], [abs(i - int(choice)) for i in (0, 1)], None)


OTHERS: tuple[tuple[tuple[str, ...], Any], ...] = (
    (("question", "answer_0", "answer_1", "score_0", "score_1"), _webgpt),
    (("response_1", "response_2"), _strength),
    (("response1", "response2"), _strength),
    (("conversation_a", "conversation_b", "winner"), _arena),
    (("info", "summaries", "choice"), _summaries),
)


# ---------------------------------------------------------------- thumbs and prompts

LIKED = {
    True: ("up", "thumbs up", "thumbs_up", "like", "liked", "good"),
    False: ("down", "thumbs down", "thumbs_down", "dislike", "disliked", "bad"),
}


def liked(value: Any) -> bool:
    """Whether a thumb is up: true, 1, "up" and false, 0, -1, "down". Raises DataError for what is no thumb."""
    if isinstance(value, bool):
        return value
    if value in (1, 0, -1) and not isinstance(value, str):
        return bool(value == 1)
    word = value.strip().lower() if isinstance(value, str) else None
    for found, words in LIKED.items():
        if word in words:
            return found
    raise DataError(f"its rating is {brief(value)}; true or false, 1 or -1, or up or down was expected")


def is_rated(row: Row) -> bool:
    """Whether a row says of an answer whether it was liked."""
    if isinstance(row.get("label"), bool) or row.get("rating") is not None:
        return True
    return any(isinstance(m, Mapping) and m.get("rating") is not None for m in _messages(row))


def _messages(row: Row) -> Sequence[Any]:
    held = row.get("messages")
    return held if isinstance(held, Sequence) and not isinstance(held, str) else ()


def thumbs(row: Row) -> list[Conversation]:
    """The conversations up to each answer of a row that was liked or not: a prompt and a completion with a `label`,
    messages with a `rating`, or compared answers, of which the best is liked and the others are not. Raises
    DataError."""
    if not is_rated(row) and compares(row):
        found = ranked(row)
        best, rest = found.ranks[0], found.ranks[-1]
        if best == rest:
            raise DataError("none of its answers was preferred")
        return [replace(talk, liked=rank == best) for talk, rank in zip(found.talks, found.ranks, strict=True)]
    rated = [i for i, m in enumerate(_messages(row)) if isinstance(m, Mapping) and m.get("rating") is not None]
    if rated:
        ends = [(read({**row, "messages": row["messages"][: i + 1]}), row["messages"][i]["rating"]) for i in rated]
    else:
        value = row.get("label") if row.get("label") is not None else row.get("rating")
        if value is None:
            raise DataError("it has no 'label' that is true or false and no 'rating', for whether its answer was liked")
        answer = next((row[n] for n in ("completion", "response", "answer") if n in row), None)
        talk = read(row) if answer is None else _talk(row.get("prompt"), answer, "completion", row.get("system"))
        ends = [(talk, value)]
    return [replace(_ended(talk, "messages"), liked=liked(value)) for talk, value in ends]


def asked(row: Row) -> Conversation:
    """The turns of a row that an answer is to follow; answers that it may have are left out. Raises DataError."""
    prompt = row.get("prompt")
    if compares(row):
        return Conversation(ranked(row).prompt)
    if isinstance(prompt, Sequence) and prompt and (not isinstance(prompt, str) or TRANSCRIPT.match(prompt)):
        return question({"messages": messages_of(prompt)} | ({"system": row["system"]} if row.get("system") else {}))
    return question(row)
