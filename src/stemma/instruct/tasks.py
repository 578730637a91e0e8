"""Tasks as self-instruct asks for them: the prompts, and what is read out of the answers.

The prompts are this project's own words; their form (numbered fields between `###`, three seeds in front) is that of
the papers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stemma.conversations.shapes import EMPTY_INPUTS
from stemma.errors import DataError, brief

NO_INPUT = "<noinput>"
AT_ONCE = 20  # tasks of a list that is asked for at once
# words of what a model of text cannot do (Alpaca's list)
BARRED = (
    "image", "images", "graph", "graphs", "picture", "pictures", "file", "files", "map", "maps", "draw", "plot",
    "go to", "video", "audio", "music", "flowchart", "diagram",
)  # fmt: skip
SHORTEST, LONGEST = 4, 150  # words of an instruction


@dataclass(frozen=True)
class Task:
    """An instruction with its input (perhaps none) and output. `labels`: the output is one of a few classes; None where
    nobody said."""

    instruction: str
    input: str = ""
    output: str = ""
    labels: bool | None = None

    @property
    def row(self) -> dict[str, str]:
        """As Alpaca's data has it."""
        return {"instruction": self.instruction, "input": self.input, "output": self.output}


def seed(row: Mapping[str, Any], where: str) -> Task:
    """A seed task: a row of Alpaca's fields, or of self-instruct's (instruction, instances). Raises DataError."""
    held = row.get("instances")
    one = held[0] if isinstance(held, Sequence) and held and isinstance(held[0], Mapping) else row
    instruction, given, output = row.get("instruction"), one.get("input", ""), one.get("output")
    if not (
        isinstance(instruction, str) and isinstance(given, str) and isinstance(output, str) and instruction.strip()
    ):
        raise DataError(f"{where}: a seed has an instruction, an input and an output, all texts, and not {brief(row)}")
    labels = row.get("is_classification")
    return Task(instruction.strip(), given.strip(), output.strip(), labels if isinstance(labels, bool) else None)


def why_not(instruction: str) -> str | None:
    """Why an instruction is not kept, by Alpaca's rules; None if it is."""
    words = instruction.split()
    if len(words) < SHORTEST:
        return "too short"
    if len(words) > LONGEST:
        return "too long"
    if any(re.search(rf"\b{re.escape(word)}\b", instruction, re.IGNORECASE) for word in BARRED):
        return "a word of what text cannot do"
    if instruction.startswith("Write a program"):
        return "begins as so many do"
    if not instruction[0].isascii():
        return "begins with a character that is not ASCII"
    if not instruction[0].isalnum():
        return "begins with a punctuation mark"
    return None


# ---------------------------------------------------------------- all of a task at once (Alpaca)

LIST = f"""Think up {AT_ONCE} tasks that somebody could give to an assistant which reads and writes text. Keep to this:
1. No two tasks begin with the same verb, and they are about many different things.
2. Some are questions, some are orders; some are easy, some are hard. They are of many kinds: writing, editing, \
explaining, sorting, calculating, planning, choosing.
3. Each can be done with text alone: nothing is to be seen, heard, drawn or looked up.
4. The instruction is one or two sentences in English.
5. The input is something real to work on, of at most 100 words; where none is needed it says {NO_INPUT}.
6. The output does what was asked, in fewer than 100 words.

The {AT_ONCE} tasks:
"""


def list_prompt(tasks: Sequence[Task]) -> str:
    """The prompt that asks for a list which begins with `tasks`."""
    shown = "".join(
        f"###\n{i}. Instruction: {' '.join(task.instruction.split())}\n{i}. Input:\n{task.input or NO_INPUT}\n"
        f"{i}. Output:\n{task.output}\n"
        for i, task in enumerate(tasks, 1)
    )
    return f"{LIST}{shown}###\n{len(tasks) + 1}. Instruction:"


def list_stops() -> tuple[str, ...]:
    """Where a list ends."""
    return (f"\n{AT_ONCE}", f"{AT_ONCE}.")


def listed(text: str, first: int, whole: bool) -> list[Task]:
    """The tasks of an answer to `list_prompt`, whose first has that number. Those without all three fields are left
    out, and the last one where the answer was cut."""
    pieces = re.split("###", f"{first}. Instruction:{text}")
    found = []
    for i, piece in enumerate(pieces):
        if i == len(pieces) - 1 and not whole:
            continue
        fields = re.split(rf"{first + i}\.\s+(?:Instruction|Input|Output):", piece)
        if len(fields) != 4:
            continue
        instruction, given, output = (field.strip() for field in fields[1:])
        found.append(Task(instruction, "" if given.lower() in EMPTY_INPUTS else given, output))
    return found


# ---------------------------------------------------------------- step by step (self-instruct)


def instructions_prompt(tasks: Sequence[Task]) -> str:
    """The prompt that asks for more instructions like those of `tasks`."""
    shown = "".join(f"{i}. {' '.join(task.instruction.split())}\n" for i, task in enumerate(tasks, 1))
    return f"Come up with more tasks of many kinds:\n{shown}{len(tasks) + 1}."


def instructions(text: str, first: int, whole: bool) -> list[str]:
    """The instructions of an answer to `instructions_prompt`; the last one is left out where the answer was cut."""
    found = re.split(r"\n\s*\d+\s*\.\s*", f"\n{first}. {text}")[1:]
    kept = [" ".join(one.split()) for one in found]
    return [one for one in (kept if whole else kept[:-1]) if one]


def kind_prompt(tasks: Sequence[Task], instruction: str) -> str:
    """The prompt that asks whether the output of a task is one of a few labels."""
    shown = "".join(f"Task: {t.instruction}\nIs its answer one of a few labels? {_said(t.labels)}\n\n" for t in tasks)
    return (
        f"Say of each task whether its answer is one of a few labels.\n\n{shown}Task: {instruction}\n"
        "Is its answer one of a few labels?"
    )


def _said(labels: bool | None) -> str:
    return "Yes" if labels else "No"


def is_labels(text: str) -> bool:
    """What an answer to `kind_prompt` says."""
    return text.strip().lower().startswith("yes")


def example_prompt(tasks: Sequence[Task], instruction: str, labels: bool) -> str:
    """The prompt that asks for examples of a task: an input and then its output, or, where the output is one of a few
    `labels`, a label first and an input for it, so that not all examples have the same one."""
    what = "a label and an input that has it" if labels else "an input, if the task needs one, and the output"
    shown = ""
    for task in tasks:
        given = f"Input: {task.input or NO_INPUT}\n"
        shown += f"Task: {task.instruction}\n"
        shown += f"Label: {task.output}\n{given}\n" if labels else f"{given}Output: {task.output}\n\n"
    begin = "Label:" if labels else "Input:"
    return f"Give an example of each task: {what}.\n\n{shown}Task: {instruction}\n{begin}"


def example(instruction: str, text: str, labels: bool, whole: bool) -> Task | None:
    """The task of an answer to `example_prompt`; None where the answer has no output, or repeats its input."""
    inner = re.split(r"\n\s*(?:Input:|Output:)", text.split("\n\nTask:")[0])
    if len(inner) < 2 or (not whole and "\n\nTask:" not in text):
        return None
    first, second = inner[0].strip(), inner[1].strip()
    output, given = (first, second) if labels else (second, first)
    given = "" if given.lower() in EMPTY_INPUTS else given
    if not output or output == given:
        return None
    return Task(instruction, given, output, labels)
