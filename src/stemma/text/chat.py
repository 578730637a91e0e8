"""Chat templates: where they are kept, and rendering."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from stemma.errors import CheckpointError, DataError, UsageError, require

FILE = "chat_template.jinja"


def find(config: Mapping[str, Any]) -> str | None:
    """The template in a tokenizer_config.json: a string, or the one named `default` (else the first) of a list."""
    held = config.get("chat_template")
    if held is None or isinstance(held, str):
        return held
    if isinstance(held, Mapping):
        held = [{"name": name, "template": template} for name, template in held.items()]
    if isinstance(held, list) and all(
        isinstance(item, Mapping) and isinstance(item.get("template"), str) for item in held
    ):
        if not held:
            return None
        chosen = next((item for item in held if item.get("name") == "default"), held[0])
        return str(chosen["template"])
    raise CheckpointError("chat_template in tokenizer_config.json is neither text nor a list of named templates")


def _json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **more: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **more)


def render(template: str, messages: Sequence[Mapping[str, Any]], prompt: bool, names: Mapping[str, str | None]) -> str:
    """`messages` (each with `role` and `content`) as the template's text, sandboxed; `prompt` opens the answer.
    Raises UsageError if a message lacks a field, DataError if the template refuses, ResourceError without jinja2."""
    require("jinja2", "a chat template", "'stemma-lm[serve]'")
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    for i, message in enumerate(messages):
        if "role" not in message:
            raise UsageError(f"message {i} has no 'role' (it has: {', '.join(map(str, message)) or 'nothing'})")

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    world = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    world.globals["raise_exception"] = refuse
    world.globals["strftime_now"] = time.strftime
    world.filters["tojson"] = _json
    given = {name: token for name, token in names.items() if token is not None}
    try:
        text = world.from_string(template).render(
            messages=list(messages), add_generation_prompt=prompt, tools=None, documents=None, **given
        )
    except jinja2.TemplateSyntaxError as error:
        raise CheckpointError(
            f"the chat template is not valid Jinja: {error.message} at line {error.lineno}"
        ) from error
    except (jinja2.TemplateError, TypeError, KeyError) as error:
        raise DataError(f"the chat template refused these messages: {error}") from error
    return text
