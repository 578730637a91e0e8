"""What a judge is asked: templates of the form of FastChat's judge_prompts.jsonl, by what they show. Those of the
package are this project's own words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stemma.conversations import Turn
from stemma.errors import DataError, brief
from stemma.judging.questions import Question, rows

OWN = Path(__file__).with_name("prompts.jsonl")
FIELD = re.compile(r"\{(\w+)\}")
MODES = {"pairwise": "[[A]]", "single": "[[rating]]"}  # and what a verdict of each looks like


@dataclass(frozen=True)
class Prompt:
    """A template. Fields in braces: question, answer (of two turns question_1, question_2, answer_1, ...), answer_a and
    answer_b (answer_a_1, ...), ref_answer_1 and ref_answer_2."""

    name: str
    system: str
    text: str

    def turns(self, values: Mapping[str, str]) -> tuple[Turn, ...]:
        """The conversation that the judge answers."""
        said = FIELD.sub(lambda found: values[found[1]], self.text)
        return (*([Turn("system", self.system)] if self.system else []), Turn("user", said))


class Prompts:
    """The templates of a file, by (mode, whether two turns are shown, whether with a reference answer)."""

    def __init__(self, path: str | Path = OWN) -> None:
        self.path = path
        self.held: dict[tuple[str, bool, bool], Prompt] = {}
        for place, row in rows(path):
            mode, text, name = row.get("type"), row.get("prompt_template"), row.get("name")
            system = row.get("system_prompt", "")
            if mode not in MODES or not all(isinstance(one, str) for one in (text, name, system)):
                raise DataError(
                    f"{place} is no prompt of a judge: 'name', 'type' (pairwise or single) and texts were expected"
                )
            if (form := row.get("output_format", MODES[mode])) != MODES[mode]:
                raise DataError(f"{place} wants verdicts like {brief(form)}; {mode} ones are read like {MODES[mode]}")
            assert isinstance(text, str) and isinstance(name, str)
            fields = {*FIELD.findall(text)}
            key = (mode, "question_2" in fields, "ref_answer_1" in fields)
            if wrong := sorted(fields - _fields(*key)):
                raise DataError(
                    f"{place} has a field {{{wrong[0]}}}, which is not known; known: {', '.join(sorted(_fields(*key)))}"
                )
            self.held.setdefault(key, Prompt(name, system, text))

    def of(self, mode: str, question: Question, turn: int) -> Prompt:
        """The template for turn `turn` (0 or 1) of a question. Raises DataError where the file has none."""
        key = (mode, turn > 0, question.referred)
        if key not in self.held:
            shown = f"{'two turns' if turn else 'one turn'}{' and a reference answer' if question.referred else ''}"
            raise DataError(f"{self.path} has no {mode} prompt that shows {shown}")
        return self.held[key]


def _fields(mode: str, two: bool, reference: bool) -> set[str]:
    answers = ("answer_a", "answer_b") if mode == "pairwise" else ("answer",)
    names = ("question", *answers, "ref_answer")
    found = {f"{name}_{i}" for name in names for i in (1, 2)} if two else {*names[:-1], "ref_answer_1"}
    return found if reference else {name for name in found if not name.startswith("ref_")}


def values(question: Question, turn: int, answers: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """What stands in the fields at a turn; `answers` by the name of their field."""
    shown = {"question": question.turns, **answers, "ref_answer": question.reference}
    found = {f"{name}_{i}": text for name, texts in shown.items() for i, text in enumerate(texts[: turn + 1], 1)}
    return found | {name: texts[turn] for name, texts in shown.items() if texts}
