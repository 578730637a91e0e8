"""Questions and answers in the form of MT-bench's files.

question.jsonl    {"question_id": 81, "category": "writing", "turns": ["...", "..."], "reference": ["...", "..."]}
answers           {"question_id": 81, "model_id": "m", "choices": [{"index": 0, "turns": ["...", "..."]}]}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

from stemma import disk
from stemma.errors import DataError, brief

OWN = Path(__file__).with_name("questions.jsonl")
# of what is drawn (MT-bench); categories that are not named take OTHER
TEMPERATURES = {
    "writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1,
    "extraction": 0.0, "math": 0.0, "coding": 0.0, "reasoning": 0.0,
}  # fmt: skip
OTHER = 0.7
REFERRED = ("math", "reasoning", "coding")  # categories that are judged beside a reference answer
Id = int | str


@dataclass(frozen=True)
class Question:
    """What is asked in one turn or two, and reference answers, if there are any."""

    id: Id
    category: str
    turns: tuple[str, ...]
    reference: tuple[str, ...] = ()

    @property
    def temperature(self) -> float:
        """At which it is answered."""
        return TEMPERATURES.get(self.category, OTHER)

    @property
    def referred(self) -> bool:
        """Whether it is judged beside its reference answers."""
        return self.category in REFERRED and len(self.reference) == len(self.turns)


def rows(path: str | Path) -> list[tuple[str, dict[str, Any]]]:
    """(place, row) of a file of JSON lines. Raises DataError for a file that is not there, is empty, or holds what is
    no row."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"there is no file {path}{disk.nearest_path(path)}")
    found = []
    for number, row in disk.read_jsonl(path):
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number} is not a JSON object, and each line was expected to be one")
        found.append((f"{path}:{number}", row))
    if not found:
        raise DataError(f"{path} is empty; a JSON object a line was expected")
    return found


def _texts(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)


def questions(path: str | Path = OWN) -> list[Question]:
    """The questions of a file. Raises DataError for a row that is none, and for an id that stands twice."""
    found: dict[str, Question] = {}
    for place, row in rows(path):
        name, turns, reference = row.get("question_id"), row.get("turns"), row.get("reference") or []
        if not isinstance(name, int | str) or isinstance(name, bool) or not _texts(turns):
            raise DataError(f"{place} is no question: 'question_id' and 'turns' (a list of texts) were expected")
        if not 1 <= len(turns) <= 2 or not all(turn.strip() for turn in turns):
            raise DataError(f"{place} has {len(turns)} turns; one or two were expected, none of them empty")
        if str(name) in found:
            raise DataError(f"{place} has question_id {brief(name)}, as an earlier row")
        category = str(row.get("category") or "general")
        answers = tuple(reference) if _texts(reference) and len(reference) == len(turns) else ()
        found[str(name)] = Question(name, category, tuple(turns), answers)
    return list(found.values())


def answers(path: str | Path, asked: Sequence[Question], every: bool = True) -> tuple[str, dict[str, tuple[str, ...]]]:
    """(model, answers by question) of a file of MT-bench's form; the first choice of each row. Raises DataError for a
    row of another form and, with `every`, where a question has no answer."""
    turns = {str(question.id): len(question.turns) for question in asked}
    found: dict[str, tuple[str, ...]] = {}
    names = set()
    for place, row in rows(path):
        choices = row.get("choices")
        first = choices[0] if isinstance(choices, list) and choices else None
        said = first.get("turns") if isinstance(first, dict) else None
        if "question_id" not in row or not isinstance(said, list) or not all(isinstance(one, str) for one in said):
            raise DataError(f"{place} is no answer: 'question_id' and 'choices' with 'turns' (texts) were expected")
        key = str(row["question_id"])
        if key in found:
            raise DataError(f"{place} answers question {key}, as an earlier row")
        if key in turns and len(said) < turns[key]:
            raise DataError(f"{place} has {len(said)} answers, and question {key} has {turns[key]} turns")
        if key in turns:
            found[key] = tuple(said[: turns[key]])
        names.add(str(row.get("model_id") or Path(path).stem))
    if len(names) > 1:
        raise DataError(f"{path} holds answers of {len(names)} models ({brief(sorted(names))}); keep those of one")
    if every and (missing := [name for name in turns if name not in found]):
        more = ", ..." if len(missing) > 5 else ""
        raise DataError(
            f"{path} answers {len(found)} of {len(turns)} questions; it lacks {', '.join(missing[:5])}{more} "
            "(--questions names those that are judged)"
        )
    return names.pop(), found


def referred(asked: Sequence[Question], path: str | Path | None) -> list[Question]:
    """`asked` with the reference answers of a file of MT-bench's form, which stand in place of their own."""
    if path is None:
        return list(asked)
    _, found = answers(path, asked, every=False)
    if not found:
        raise DataError(f"{path} answers none of the questions")
    return [replace(one, reference=found.get(str(one.id), one.reference)) for one in asked]


def answer_row(question: Question, model: str, said: Sequence[str]) -> dict[str, Any]:
    """Answers in MT-bench's form."""
    return {"question_id": question.id, "model_id": model, "choices": [{"index": 0, "turns": list(said)}]}
