"""Chat templates: where they are kept, and rendering."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from stemma.errors import CheckpointError, DataError, UsageError, require

FILE = "chat_template.jinja"
MARKS = ("generation_begins", "generation_ends")  # what is given by these names stands around `{% generation %}`


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


def environment() -> Any:
    """Jinja as templates are written for: sandboxed, with loop controls and `{% generation %}`, which marks what the
    model wrote and changes no text, unless `MARKS` are given. Raises ResourceError without jinja2."""
    require("jinja2", "a chat template", "'stemma-lm[serve]'")
    import jinja2
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            begins, ends = (jinja2.nodes.Output([jinja2.nodes.Name(name, "load")], lineno=line) for name in MARKS)
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope([begins, *body, ends], lineno=line)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    extensions: list[Any] = ["jinja2.ext.loopcontrols", Generation]
    world = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    world.globals["raise_exception"] = refuse
    world.globals["strftime_now"] = time.strftime
    world.filters["tojson"] = _json
    return world


@functools.lru_cache(maxsize=16)
def _compiled(template: str) -> Any:
    """Raises CheckpointError for a template that Python cannot compile: what Jinja makes of it is nested too deeply."""
    try:
        return environment().from_string(template)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise CheckpointError(f"the chat template is no valid Jinja: {error or 'it is nested too deeply'}") from error


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    prompt: bool,
    names: Mapping[str, str | None],
    options: Mapping[str, Any],
) -> str:
    """`messages` (each with `role` and `content`) as the template's text; `prompt` opens the answer. The template reads
    `options` (tools, documents, enable_thinking) by their names. Raises UsageError if a message lacks a field,
    DataError if the template refuses, ResourceError without jinja2."""
    require("jinja2", "a chat template", "'stemma-lm[serve]'")
    import jinja2

    for i, message in enumerate(messages):
        if "role" not in message:
            raise UsageError(f"message {i} has no 'role' (it has: {', '.join(map(str, message)) or 'nothing'})")
    given: dict[str, Any] = {name: token for name, token in names.items() if token is not None}
    given |= {"messages": list(messages), "add_generation_prompt": prompt, "tools": None, "documents": None}
    try:
        text: str = _compiled(template).render(given | dict(options))
    except jinja2.TemplateSyntaxError as error:
        raise CheckpointError(
            f"the chat template is not valid Jinja: {error.message} at line {error.lineno}"
        ) from error
    except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"the chat template refused these messages: {error}") from error
    return text
