"""The OpenAPI document, made from the table of routes and the schemas that check requests."""

from __future__ import annotations

import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from pydantic.json_schema import models_json_schema

from stemma import __version__
from stemma.serve.operations import Operation
from stemma.serve.schemas.base import ErrorAnswer

JSON, EVENTS, TEXT = "application/json", "text/event-stream", "text/plain"
EVENT = {  # each event of a stream
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string", "description": "JSON, or [DONE]"}},
    "required": ["data"],
}


def document(operations: Iterable[Operation], keys: bool) -> dict[str, Any]:
    """The document of these routes. `keys`: whether requests need one."""
    operations = list(operations)
    used = [(o.body, "validation") for o in operations if o.body]
    used += [(o.answer, "serialization") for o in operations if o.answer]
    _, held = models_json_schema(
        [*used, (ErrorAnswer, "serialization")],  # type: ignore[list-item]
        ref_template="#/components/schemas/{model}",
    )
    paths: dict[str, dict[str, Any]] = {}
    for one in operations:
        paths.setdefault(one.path, {})[one.method.lower()] = _operation(one, keys)
    parts: dict[str, Any] = {"schemas": held["$defs"]}
    if keys:
        parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    about = {"title": "Stemma", "version": __version__, "description": "Language models of the family tree, served."}
    return {"openapi": "3.1.0", "info": about, "paths": paths, "components": parts}


def _operation(one: Operation, keys: bool) -> dict[str, Any]:
    statuses = [403, *one.statuses, *([401] if keys and not one.free else [])]
    failed = {"content": {JSON: {"schema": _ref(ErrorAnswer)}}}
    answers = {str(s): {"description": HTTPStatus(s).phrase} | failed for s in sorted(statuses)}
    content: dict[str, Any] = {JSON: {"schema": _ref(one.answer)}} if one.answer else {TEXT: {}}
    if one.streams:
        content[EVENTS] = {"schema": EVENT}
    found: dict[str, Any] = {
        "operationId": f"{one.method.lower()}{re.sub('[^a-z0-9]+', '_', one.path)}".strip("_"),
        "summary": one.words,
        "responses": {"200": {"description": "OK", "content": content}} | answers,
    }
    if one.body:
        found["requestBody"] = {"required": True, "content": {JSON: {"schema": _ref(one.body)}}}
    if name := re.search(r"{(\w+)}", one.path):
        found["parameters"] = [{"name": name[1], "in": "path", "required": True, "schema": {"type": "string"}}]
    if one.query:
        for word, schema in one.query.model_json_schema()["properties"].items():
            found["parameters"].append({"name": word, "in": "query", "required": False, "schema": schema})
    if keys and not one.free:
        found["security"] = [{"key": []}]
    return found


def _ref(schema: Any) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{schema.__name__}"}
