"""Bodies of requests: read in bounded size, parsed as strict JSON, checked against a schema."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from stemma.errors import brief
from stemma.serve.problems import Problem, bad

DEPTH = 64  # of arrays and objects in each other
SECONDS = 60  # in which a body must have come
B = TypeVar("B", bound=BaseModel)


async def read(request: Request, most: int) -> Any:
    """The JSON of a request's body. Raises Problem for one that is too large, too slow, not UTF-8 or not JSON."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Problem(415, f"the body is {kind or 'of no type'}; send Content-Type: application/json")
    if (packed := request.headers.get("content-encoding", "identity").strip().lower()) != "identity":
        raise Problem(415, f"the body is packed ({packed[:40]}); send it as it is, without Content-Encoding")
    too_large = Problem(413, f"the body has more than {most:,} bytes", code="request_too_large")
    if (said := request.headers.get("content-length", "")).isdecimal() and int(said) > most:
        raise too_large
    parts, size = [], 0
    try:
        async with asyncio.timeout(SECONDS):
            async for part in request.stream():
                size += len(part)
                if size > most:
                    raise too_large
                parts.append(part)
    except TimeoutError:
        raise Problem(408, f"the body did not come in {SECONDS} seconds") from None
    except ClientDisconnect:
        raise Problem(400, "the client left") from None
    return parsed(b"".join(parts))


def parsed(raw: bytes) -> Any:
    """Strict JSON: UTF-8, no NaN or Infinity, no halves of characters, not nested deeply."""
    try:
        found = json.loads(raw.decode("utf-8"), parse_constant=_refuse, parse_float=_finite)
    except UnicodeDecodeError as error:
        raise bad(f"the body is not UTF-8: byte {error.start}", code="invalid_json") from None
    except RecursionError:
        raise bad(f"the body is nested in more than {DEPTH} levels", code="invalid_json") from None
    except ValueError as error:
        raise bad(f"the body is not JSON: {error}", code="invalid_json") from None
    _check(found)
    return found


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{brief(text, 40)} is too large a number")
    return number


def _check(whole: Any) -> None:
    """Raises Problem for values nested deeply and for halves of characters."""
    level, depth = [whole], 0
    while level:
        if (depth := depth + 1) > DEPTH:
            raise bad(f"the body is nested in more than {DEPTH} levels", code="invalid_json")
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                inner += [*value, *value.values()]
            elif isinstance(value, list):
                inner += value
            elif isinstance(value, str) and not value.isascii():
                try:
                    value.encode()
                except UnicodeEncodeError:
                    raise bad("the body holds half a character (a lone surrogate)", code="invalid_json") from None
        level = inner


def checked(schema: type[B], data: Any) -> B:
    """`data` as a value of `schema`. Raises Problem that names the field."""
    if not isinstance(data, dict):
        raise bad(f"the body must be a JSON object, not {brief(data, 60)}")
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        raise _problem(max(error.errors(include_url=False), key=_telling), data) from None


def _telling(error: Any) -> tuple[bool, bool, bool, int]:
    """How much an error says: of several alternatives those of the wrong type say least."""
    kind = error["type"]
    lacks, other = kind == "missing", kind.endswith("_type")
    return kind == "extra_forbidden", not (lacks or other), lacks, len(error["loc"])


def _problem(error: Any, data: Any) -> Problem:
    where = _place(error["loc"], data, error["type"] == "missing")
    match error["type"]:
        case "extra_forbidden":
            return bad(f"{where} is no field that is supported here", where, "unsupported_parameter")
        case "missing":
            return bad(f"{where} is missing", where, "missing_required_parameter")
    text = str(error["msg"]).removeprefix("Value error, ").replace(" after validation", "")
    if error["type"] in ("too_long", "too_short"):  # says itself how many there are
        return bad(f"{where}: {text[:1].lower()}{text[1:]}", where, "invalid_value")
    return bad(f"{where}: {text[:1].lower()}{text[1:]}, not {brief(error['input'], 80)}", where, "invalid_value")


def _place(path: Sequence[str | int], data: Any, missing: bool) -> str:
    """The place of an error as `messages[0].content`: without the names of alternatives that pydantic puts between."""
    text, here = "", data
    for i, key in enumerate(path):
        if isinstance(here, dict) and (key in here or (missing and i == len(path) - 1)):
            text, here = f"{text}.{key}" if text else str(key), here.get(key)
        elif isinstance(here, list) and isinstance(key, int) and key < len(here):
            text, here = f"{text}[{key}]", here[key]
    return text
