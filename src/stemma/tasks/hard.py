"""Prompts in words: where a row's question stands in one, and how one is read and made."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from stemma import disk
from stemma.conversations import Conversation, Turn
from stemma.declare.tasks import HardPrompt
from stemma.errors import DataError, UsageError, brief

PLACE = "{question}"


def chosen(prompts: Sequence[HardPrompt], task: Any) -> HardPrompt:
    """The prompt of a row whose column `task` holds that. Raises DataError where there is none for it."""
    name = "" if task is None else str(task)
    for one in (*(p for p in prompts if p.task == name), *(p for p in prompts if not p.task)):
        return one
    known = ", ".join(brief(p.task) for p in prompts)
    raise DataError(f"its task is {brief(name) if name else 'not named'}, and there are prompts for {known}")


def asked(prompt: HardPrompt, question: str) -> str:
    """The prompt with a question in its place."""
    return prompt.text.replace(PLACE, question) if PLACE in prompt.text else prompt.text + question


def prompted(talk: Conversation, prompts: Sequence[HardPrompt], task: Any) -> Conversation:
    """`talk` with the first user's words in the place that the prompt of its task has for them."""
    if not prompts:
        return talk
    prompt, turns = chosen(prompts, task), list(talk.turns)
    at = next(i for i, turn in enumerate(turns) if turn.role == "user")
    turns[at] = Turn("user", asked(prompt, turns[at].content))
    return replace(talk, turns=tuple(turns), instruction="", input="")


def written(instructions: str, exemplars: Sequence[Mapping[str, str]] = (), reasoning: bool = True) -> str:
    """The text of a prompt: instructions, then examples of `question`, `answer` and perhaps `reasoning` (left out
    unless `reasoning`), then the place of the question. Raises DataError for an example that lacks one."""
    parts, explained = [instructions.strip()] if instructions.strip() else [], False
    for number, one in enumerate(exemplars, 1):
        if not all(isinstance(one.get(name), str) and one[name].strip() for name in ("question", "answer")):
            raise DataError(f"example {number} has no question or no answer: {brief(one)}")
        why = f"\nExplanation: {one['reasoning']}" if reasoning and one.get("reasoning") else ""
        explained |= bool(why)
        parts.append(f"Question: {one['question']}{why}\nAnswer: {one['answer']}")
    return "\n\n".join([*parts, f"Question: {PLACE}\n{'Explanation' if explained else 'Answer'}:"])


def read(given: str) -> HardPrompt:
    r"""A prompt as it is typed: `TASK=FILE`, `FILE` or a text (`\n` is a line end). A file in .json holds instructions
    and examples (`written`), any other the prompt itself. Raises UsageError for a file that holds none."""
    task, mark, rest = given.partition("=")
    named = bool(mark) and task.replace("_", "").replace("-", "").isalnum()
    task, what = (task, rest) if named and (os.path.isfile(rest) or not os.path.isfile(given)) else ("", given)
    if not os.path.isfile(what):
        return HardPrompt(what.replace("\\n", "\n"), task)
    path = Path(what)
    if path.suffix != ".json":
        return HardPrompt(disk.read_text(path).rstrip("\n"), task)
    held = disk.read_object(path)
    known = {"instructions": str, "exemplars": list, "reasoning": bool}
    if wrong := [key for key, value in held.items() if not isinstance(value, known.get(key, ()))]:
        raise UsageError(
            f"{path}: {wrong[0]!r} is not what a prompt holds: instructions (a text), exemplars (a list of question, "
            "answer and perhaps reasoning), reasoning (whether it is shown)"
        )
    try:
        text = written(held.get("instructions", ""), held.get("exemplars", ()), held.get("reasoning", True))
    except (DataError, AttributeError) as error:
        raise UsageError(f"{path}: {error}") from None
    return HardPrompt(text, task)
