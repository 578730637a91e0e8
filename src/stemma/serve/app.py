"""The application: routes, errors, the page, and the guard before all of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stemma.serve import bodies, document, page, problems
from stemma.serve.feedback import Feedback
from stemma.serve.guard import Guard
from stemma.serve.operations import OPERATIONS, Operation
from stemma.serve.problems import Problem
from stemma.serve.server import Server
from stemma.serve.streams import EventStream, unless_gone

LOG = logging.getLogger("stemma.serve")
FIRST = {False: 1, True: 2}  # which part of an answer counts as its first: that of a stream says no more than its role
Endpoint = Callable[[Request], Awaitable[Response]]


def app(server: Server, begin: Callable[[], None] | None = None) -> ASGIApp:
    """The ASGI application of a server. `begin` loads its models once it is up; without it they are there."""
    own = server.settings
    routes = [o for o in OPERATIONS if (own.admin or not o.admin) and (own.feedback or not o.feedback)]
    if own.feedback and server.feedback is None:
        server.feedback = Feedback(own.feedback)
    whole = document.document(routes, bool(own.keys))
    files = page.read()

    async def described(request: Request) -> Response:
        return JSONResponse(whole)

    async def paged(request: Request) -> Response:
        return page.answer(request, files) or problems.plain(404).response

    paths: dict[str, dict[str, Endpoint]] = {}
    for one in routes:
        paths.setdefault(one.path, {})[one.method] = endpoint(server, one)
    made = [
        Route(re.sub(r"{(\w+)}", r"{\1:path}", path), chosen(some), methods=[*some]) for path, some in paths.items()
    ]
    made += [Route("/openapi.json", described), Route("/", paged), Route("/page/{name:path}", paged)]
    free = {"/", "/openapi.json", *(one.path for one in routes if one.free)}
    handlers: Any = {HTTPException: _failed, Problem: _problem, Exception: _unexpected}
    inner = Starlette(routes=made, exception_handlers=handlers, lifespan=lifespan(server, begin))
    inner.router.redirect_slashes = False
    return Counted(Guard(inner, own, free, {o.path for o in routes if o.feedback}), server)


def lifespan(
    server: Server, begin: Callable[[], None] | None
) -> Callable[[Starlette], contextlib.AbstractAsyncContextManager[None]]:
    """Loads models in a thread while the server is up already, and at the end waits for what was begun."""

    async def loading() -> None:
        if begin is not None:
            await asyncio.to_thread(begin)
        server.models.ready = True

    @contextlib.asynccontextmanager
    async def run(_: Starlette) -> AsyncIterator[None]:
        task = asyncio.ensure_future(loading())
        task.add_done_callback(server.loaded)
        yield
        task.cancel()
        await asyncio.to_thread(server.models.close)

    return run


def chosen(endpoints: dict[str, Endpoint]) -> Endpoint:
    """The endpoint of a request's method."""

    async def run(request: Request) -> Response:
        return await endpoints["GET" if request.method == "HEAD" else request.method](request)

    return run


def endpoint(server: Server, one: Operation) -> Endpoint:
    """What answers a route."""

    async def run(request: Request) -> Response:
        request.scope["stemma.route"] = one.path
        try:
            given = await _given(server, one, request)
            found = await unless_gone(one.run(server, given), request.receive)
        except Exception as error:
            problem = problems.of(error)
            if problem.status == 500:
                LOG.exception("%s %s failed", one.method, one.path, exc_info=error)
            return problem.response
        if found is None:  # the client left, and nobody reads this
            return Response(status_code=499)
        request.scope["stemma.streams"] = isinstance(found, EventStream)
        return found if isinstance(found, Response) else JSONResponse(found)

    return run


async def _given(server: Server, one: Operation, request: Request) -> Any:
    if one.body is not None:
        return bodies.checked(one.body, await bodies.read(request, server.settings.max_body))
    parameter = next(iter(request.path_params.values()), None)
    if one.query is not None:
        return parameter, bodies.checked(one.query, dict(request.query_params))
    return parameter


# ---------------------------------------------------------------- what is no route's answer


async def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = error.status_code
    words = {404: f"there is no {request.method} {request.url.path[:200]}; /openapi.json lists the routes"}
    phrase = words.get(status) or HTTPStatus(status).phrase
    return Problem(status, phrase, code=HTTPStatus(status).name.lower(), headers=error.headers).response


async def _problem(request: Request, error: Exception) -> Response:
    return problems.of(error).response


async def _unexpected(request: Request, error: Exception) -> Response:
    return problems.of(error).response


class Counted:
    """Counts requests, and how long their answers take, by route."""

    def __init__(self, inner: ASGIApp, server: Server) -> None:
        self.inner, self.metrics = inner, server.metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count one request."""
        if scope["type"] != "http":
            await self.inner(scope, receive, send)
            return
        began, status, parts = time.perf_counter(), 499, 0

        async def sent(message: Message) -> None:
            nonlocal status, parts
            if message["type"] == "http.response.start":
                status = message["status"]
            elif (parts := parts + 1) == FIRST[scope.get("stemma.streams", False)]:
                self.metrics.first.labels(scope.get("stemma.route", "other")).observe(time.perf_counter() - began)
            await send(message)

        self.metrics.open.inc()
        try:
            await self.inner(scope, receive, sent)
        finally:
            route = scope.get("stemma.route", "other")
            self.metrics.open.dec()
            self.metrics.requests.labels(route, str(status)).inc()
            self.metrics.seconds.labels(route).observe(time.perf_counter() - began)
