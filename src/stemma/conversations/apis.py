"""Rows of APIBench (Patil et al. 2023, Gorilla): a question and the call that answers it, in the three dialects of its
files.

huggingface  ###Instruction: Q\\n###Output: <<<domain>>>: ...\\n<<<api_call>>>: ...\\n<<<api_provider>>>: ...
tensorflow   the same with ", " between the fields
torchhub     {'Instruction': Q, 'Output': {'domain': '...', 'api_call': ...}}, or such a dictionary behind ###Output

A dictionary is no Python: its quotes are not escaped, so the fields are found by their names in their order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stemma.errors import DataError, brief

FIELDS = ("domain", "api_call", "api_provider", "explanation", "code")
REFERENCE = "\nUse this API documentation for reference: "  # between a question and the documentation of a call
_PARTS = re.compile(
    r"\s*#+ ?Instruction: ?(?P<ask>.*?)(?:\n\s*#+ ?Input: ?(?P<input>.*?))?\n\s*#+ ?Output: ?(?P<output>.*)", re.DOTALL
)
_DICT = re.compile(
    r"\s*\{'Instruction': (?P<ask>.*?)(?:, 'Input': (?P<input>.*?))?,\s*'Output': ?(?P<output>\{.*\})\}\s*", re.DOTALL
)
_TAG = re.compile(rf"<{{3,}}(?P<tag>\w+)>{{3,}}:?|<<(?P<typo>{'|'.join(FIELDS)})>{{2,}}:?")


@dataclass(frozen=True)
class Api:
    """A question and the fields of its answer, of which there is at least `api_call`."""

    question: str
    fields: Mapping[str, str]

    @property
    def answer(self) -> str:
        """The answer in the first dialect, whatever it was read from."""
        return "\n".join(f"<<<{name}>>>: {self.fields[name]}" for name in FIELDS if name in self.fields)


def is_row(row: Mapping[str, Any]) -> bool:
    """Whether a row is one of APIBench."""
    return isinstance(row.get("code"), str) and "api_call" in row and ("api_data" in row or "provider" in row)


def read(row: Mapping[str, Any]) -> Api:
    """The question and the answer of a row. Raises DataError for one whose text has no question, or calls nothing."""
    text = row["code"]
    found = _PARTS.fullmatch(text) or _DICT.fullmatch(text)
    if found is None:
        raise DataError(f"its 'code' has no instruction with an output: {brief(text, 80)}")
    question, more = _unquoted(found["ask"]), (found["input"] or "").strip()
    fields = answer_fields(found["output"])
    if not fields.get("api_call"):
        raise DataError(f"its answer names no call: {brief(found['output'].strip(), 80)}")
    return Api(f"{question}\n{more}" if more else question, fields)


def answer_fields(output: str) -> dict[str, str]:
    """The fields of an answer in any dialect, also of one that a model wrote."""
    tags = [(found["tag"] or found["typo"], found.start(), found.end()) for found in _TAG.finditer(output)]
    if any(name in FIELDS for name, _, _ in tags):
        ends = [begin for _, begin, _ in tags[1:]] + [len(output)]
        found = {name: output[begin:end] for (name, _, begin), end in reversed(list(zip(tags, ends, strict=True)))}
        return {name: found[name].strip().removesuffix(",").strip() for name in FIELDS if name in found}
    fields, marks, at = {}, [], 0
    for name in FIELDS:
        mark = re.compile(rf"['\"]{name}['\"]\s*:\s*").search(output, at)
        if mark is not None:
            marks.append((name, mark.start(), mark.end()))
            at = mark.end()
    for i, (name, _, begin) in enumerate(marks):
        end = marks[i + 1][1] if i + 1 < len(marks) else len(output.rstrip().rstrip("}"))
        fields[name] = _unquoted(output[begin:end].strip().removesuffix(","))
    return fields


def _unquoted(text: str) -> str:
    text = text.strip()
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1].replace(f"\\{text[0]}", text[0]).strip() if quoted else text


def document(api: Any) -> str:
    """The documentation of a call as a prompt shows it: JSON in one line, or the text that it is."""
    return api if isinstance(api, str) else json.dumps(api, ensure_ascii=False)


def asked(question: str, api: Any = None) -> str:
    """What a model is asked: the question, with the documentation of a call behind it, if there is one."""
    return question if api is None else f"{question}{REFERENCE}{document(api)}"
