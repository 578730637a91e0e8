"""What a request can end in, in the shape of OpenAI's errors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import CancelledError
from http import HTTPStatus
from typing import Any

from starlette.responses import JSONResponse

from stemma.engine import Busy, Closed
from stemma.errors import CheckpointError, DataError, ResourceError, StemmaError, UsageError, no_memory, one_line

TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class Problem(Exception):
    """An answer that is an error. `param`: the field that is wrong; `code`: a word for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, one_line(message), param, code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """As JSON."""
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def response(self) -> JSONResponse:
        """As an answer."""
        return JSONResponse(self.body, self.status, self.headers)


def bad(message: str, param: str | None = None, code: str | None = None) -> Problem:
    """A request that cannot be followed."""
    return Problem(400, message, param, code)


def plain(status: int) -> Problem:
    """A problem that the status alone says."""
    return Problem(status, HTTPStatus(status).phrase, code=HTTPStatus(status).name.lower())


def of(error: BaseException) -> Problem:
    """What an error of the rooms below means to a client."""
    match error:
        case Problem():
            return error
        case Busy():
            wait = str(max(1, math.ceil(error.retry_after)))
            return Problem(429, str(error), code="busy", headers={"Retry-After": wait})
        case Closed():
            return Problem(503, "this model takes no more requests", code="shutting_down")
        case UsageError() | DataError():
            return bad(str(error))
        case CancelledError():
            return Problem(503, "the server ends, and this request with it", code="shutting_down")
        case ResourceError():
            return Problem(503, str(error), code="resources")
        case CheckpointError():
            return Problem(500, str(error), code="checkpoint")
        case StemmaError():
            return Problem(500, str(error))
    if no_memory(error):
        return Problem(503, "out of memory: ask for less at once", code="memory")
    return Problem(500, f"unexpected {type(error).__name__}; the server's log has more", code="internal_error")
