"""The forms that a request may ask of a text: JSON, a pattern, a grammar, a choice, or the call of a tool."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from stemma.decoding.guides import Guide, grammar, json_schema, regex, several
from stemma.serve.calls import Form
from stemma.serve.problems import bad
from stemma.serve.schemas.base import Sampling
from stemma.serve.schemas.chat import ObjectFormat, ResponseFormat, SchemaFormat, Tool
from stemma.text.tokenizer import Tokenizer

GUIDED = ("guided_json", "guided_regex", "guided_grammar", "guided_choice")


def guide(body: Sampling, asked: ResponseFormat | None = None) -> Guide | None:
    """What the text follows; None where it is free. Raises Problem where two forms are asked for."""
    names = [name for name in GUIDED if getattr(body, name) is not None]
    free = asked is None or not isinstance(asked, ObjectFormat | SchemaFormat)
    if len(names) + (not free) > 1:
        both = [*([] if free else ["response_format"]), *names]
        raise bad(f"{both[0]} and {both[1]} both ask for a form: give one of them", both[1])
    if isinstance(asked, ObjectFormat):
        return json_schema({"type": "object"})
    if isinstance(asked, SchemaFormat):
        return json_schema(asked.json_schema.schema_)
    if body.guided_json is not None:
        return json_schema(body.guided_json)
    if body.guided_regex is not None:
        return regex(body.guided_regex)
    if body.guided_grammar is not None:
        return grammar(body.guided_grammar)
    if body.guided_choice is not None:
        every = dict.fromkeys(json.dumps(one, ensure_ascii=False) for one in body.guided_choice)
        return grammar(f"start: ONE\nONE: {' | '.join(every)}")  # one lexeme: a rule of thousands is too large
    return None


def call(form: Form, tools: Sequence[Tool], many: bool, tokenizer: Tokenizer) -> Guide:
    """The call of one of these tools as a JSON object; `many`: or several calls, behind each other."""
    every = [_call(form, tool) for tool in tools]
    schema = every[0] if len(every) == 1 else {"anyOf": every}
    if not many:
        return json_schema(schema)
    return several(schema, _terms(form.between, form, tokenizer), _terms(form.ending, form, tokenizer))


def _terms(text: str, form: Form, tokenizer: Tokenizer) -> str:
    """A text as a part of a grammar, which has the names of special tokens without quotes."""
    marks = [mark for mark in (form.mark, form.closing) if mark and tokenizer.id(mark) in tokenizer.special_ids]
    parts = re.split(f"({'|'.join(map(re.escape, marks))})", text) if marks else [text]
    return " ".join(part if part in marks else json.dumps(part) for part in parts if part)


def _call(form: Form, tool: Tool) -> dict[str, Any]:
    arguments = tool.function.parameters or {"type": "object"}
    return {
        "type": "object", "additionalProperties": False, "required": ["name", form.key],
        "properties": {"name": {"const": tool.function.name}, form.key: arguments},
    }  # fmt: skip
