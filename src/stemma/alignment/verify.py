"""Rewards that need no model: whether an answer is right or has a form. `builtin:NAME`, or `builtin:NAME:OPTION`.

| reward | 1 where the answer |
|---|---|
| `builtin:number` | ends with the right number: in \\boxed{}, behind ####, or the last one in it |
| `builtin:boxed` | has what is right in its last \\boxed{} |
| `builtin:gsm8k` | has the right number behind ####, as GSM8K writes it |
| `builtin:text` | is the right text, but for blanks around it |
| `builtin:pattern:REGEX` | is what a regular expression describes, from its beginning to its end |
| `builtin:tags:think,answer` | is these tags in order, each opened and closed once, and nothing beside them |
| `builtin:json`, `builtin:json:name,age` | is JSON, or an object of JSON with these keys |
| `builtin:scores` | has the score that the record gives it, among answers that were compared |
| `builtin:words:50` | has at most 50 words; a longer one gets 50 over its words |
| `builtin:helpful` | is as helpful as it can be (0 to 1; the rule of `builtin:preferences`) |
| `builtin:safe` | declines a harmful request, or does not decline another one (`builtin:harmless`) |
| `builtin:careful` | `helpful` where a request is safe, `safe` where it is not (of `builtin:questions`) |

Else the reward is 0. What is right stands in the record's field `answer`, `solution`, `target` or `label`, the first
that it has, and is read by the same rule.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from stemma.errors import DataError, UsageError, brief, did_you_mean
from stemma.samples.harmless import safety
from stemma.samples.preferences import helpfulness
from stemma.tasks.finals import Number

Record = Mapping[str, Any]
Reward = Callable[[str, str, Record], float]
FIELDS = ("answer", "solution", "target", "label")  # of a record: what is right
number_in = Number().find  # the last number of a text in one spelling


def verifier(name: str) -> Reward:
    """The reward that `builtin:NAME` or `builtin:NAME:OPTION` names, without `builtin:`. Raises UsageError."""
    word, mark, option = name.partition(":")
    if word not in _MAKERS:
        known = ", ".join(f"builtin:{one}" for one in _MAKERS)
        raise UsageError(f"no reward builtin:{word}{did_you_mean(word, _MAKERS)} (known: {known})")
    make, needs = _MAKERS[word]
    if (needs is True and not option) or (needs is False and mark):
        example = EXAMPLES.get(word, f"builtin:{word}")
        raise UsageError(f"the reward builtin:{name} was expected as {example}")
    return make(option)


def right(record: Record) -> str:
    """What is right, from a record. Raises DataError where it does not say so."""
    for name in FIELDS:
        if isinstance(found := record.get(name), str | int | float) and not isinstance(found, bool):
            return str(found)
    fields = ", ".join(map(repr, record)) or "none"
    raise DataError(f"a record has no field {' or '.join(map(repr, FIELDS))} with what is right (its fields: {fields})")


def boxed(text: str) -> str | None:
    """What stands in the last \\boxed{} of a text, braces within it in pairs. None where there is none."""
    begin = text.rfind("\\boxed{")
    if begin < 0:
        return None
    depth, start = 0, begin + len("\\boxed{")
    for i in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth < 0:
            return text[start:i]
    return None


def final(text: str) -> str | None:
    """The final number of a text: in its last \\boxed{}, else behind its last ####, else its last one."""
    for part in (boxed(text), text.rpartition("####")[2] if "####" in text else None):
        if part is not None:
            return number_in(part)
    return number_in(text)


def _goal(record: Record) -> str:
    """The final number of what is right."""
    if (found := final(right(record))) is None:
        raise DataError(f"what is right holds no number: {brief(right(record))}")
    return found


def _number(option: str) -> Reward:
    return lambda prompt, answer, record: float(final(answer) == _goal(record))


def _gsm8k(option: str) -> Reward:
    def reward(prompt: str, answer: str, record: Record) -> float:
        _, mark, behind = answer.rpartition("####")
        return float(bool(mark) and number_in(behind.strip().split("\n")[0]) == _goal(record))

    return reward


def _plain(text: str) -> str:
    """A formula without blanks, a number in its one spelling."""
    text = "".join(text.split())
    return (number_in(text) or text) if re.fullmatch(r"-?[\d,]+(\.\d+)?", text) else text


def _boxed(option: str) -> Reward:
    def reward(prompt: str, answer: str, record: Record) -> float:
        goal = right(record)
        inside = boxed(goal)
        wanted = inside if inside is not None else goal.rpartition("####")[2]
        found = boxed(answer)
        return float(found is not None and _plain(found) == _plain(wanted))

    return reward


def _text(option: str) -> Reward:
    return lambda prompt, answer, record: float(answer.strip() == right(record).strip())


def _scores(option: str) -> Reward:
    def reward(prompt: str, answer: str, record: Record) -> float:
        from stemma.conversations.comparisons import ranked

        found = ranked(record)
        values = found.scores or [-float(rank) for rank in found.ranks]
        for text, value in zip(found.answers, values, strict=True):
            if text.strip() == answer.strip():
                return float(value)
        raise DataError(f"a record gives no score to the answer {brief(answer)}; builtin:scores is for its own answers")

    return reward


def _pattern(option: str) -> Reward:
    try:
        rule = re.compile(option, re.DOTALL)
    except re.error as error:
        raise UsageError(f"builtin:pattern:{option} holds no regular expression: {error}") from None
    return lambda prompt, answer, record: float(rule.fullmatch(answer.strip()) is not None)


def _tags(option: str) -> Reward:
    names = [name.strip() for name in option.split(",")]
    if not all(re.fullmatch(r"[\w-]+", name) for name in names):
        raise UsageError(f"builtin:tags:{option} must name tags, as in {EXAMPLES['tags']}")
    marks = [mark for name in names for mark in (f"<{name}>", f"</{name}>")]

    def reward(prompt: str, answer: str, record: Record) -> float:
        rest = answer
        if any(answer.count(mark) != 1 for mark in marks):
            return 0.0
        for opened, closed in zip(marks[::2], marks[1::2], strict=True):
            before, _, rest = rest.partition(opened)
            _, found, rest = rest.partition(closed)
            if before.strip() or not found:
                return 0.0
        return float(not rest.strip())

    return reward


def _json(option: str) -> Reward:
    keys = {key.strip() for key in option.split(",")} if option else set()

    def reward(prompt: str, answer: str, record: Record) -> float:
        try:
            found = json.loads(answer, parse_constant=_refused)
        except (ValueError, RecursionError):
            return 0.0
        return float(not keys or (isinstance(found, dict) and keys <= found.keys()))

    return reward


def _refused(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


def _words(option: str) -> Reward:
    if not option.isdecimal() or int(option) < 1:
        raise UsageError(f"builtin:words:{option} must give a number of words, as in {EXAMPLES['words']}")
    most = int(option)
    return lambda prompt, answer, record: min(1.0, most / max(1, len(answer.split())))


EXAMPLES = {"pattern": "builtin:pattern:REGEX", "tags": "builtin:tags:think,answer", "words": "builtin:words:50"}


# of each: what makes it, and whether it has an option (None: it may)
def _helpful(option: str) -> Reward:
    def reward(prompt: str, answer: str, record: Record) -> float:
        if "about" not in record or "right" not in record:
            fields = ", ".join(map(repr, record)) or "none"
            raise DataError(f"a record has no fields 'about' and 'right' (its fields: {fields})")
        return helpfulness(answer, record)

    return reward


def _safe(option: str) -> Reward:
    return lambda prompt, answer, record: safety(answer, record)


def _careful(option: str) -> Reward:
    helpful = _helpful("")

    def reward(prompt: str, answer: str, record: Record) -> float:
        if not record.get("unsafe"):
            return helpful(prompt, answer, record)
        return safety(answer, record)

    return reward


_MAKERS: dict[str, tuple[Callable[[str], Reward], bool | None]] = {
    "number": (_number, False),
    "boxed": (_boxed, False),
    "gsm8k": (_gsm8k, False),
    "text": (_text, False),
    "scores": (_scores, False),
    "pattern": (_pattern, True),
    "tags": (_tags, True),
    "json": (_json, None),
    "words": (_words, True),
    "helpful": (_helpful, False),
    "safe": (_safe, False),
    "careful": (_careful, False),
}
