"""Who may ask: names by which the server is called, pages of other sites, keys. Every request passes here first."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stemma.serve.problems import Problem
from stemma.serve.settings import Settings
from stemma.serve.store import KEY

SAFE = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
METHODS = "GET, POST, DELETE"


class Guard:
    """Answers requests that may not be answered, and passes others on. `free`: paths that need no key; `own`: those
    that no page of another site may ask, whatever the settings allow."""

    def __init__(self, app: ASGIApp, settings: Settings, free: Iterable[str], own: Iterable[str] = ()) -> None:
        self.app, self.settings, self.free, self.own = app, settings, frozenset(free), frozenset(own)
        self.names = {"localhost", settings.host.lower(), *(name.lower() for name in settings.hosts)}
        self.keys = [hashlib.sha256(key.encode()).digest() for key in settings.keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Guard one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        allowed = origin is not None and origin in self.settings.origins and scope["path"] not in self.own

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                out = MutableHeaders(scope=message)
                for name, value in SAFE.items():
                    out.setdefault(name, value)
                if allowed:
                    assert origin is not None
                    out["Access-Control-Allow-Origin"] = origin
                    out["Cross-Origin-Resource-Policy"] = "cross-origin"
                    out.add_vary_header("Origin")
            await send(message)

        try:
            self.check_host(headers)
            if not allowed:
                self.check_site(scope, headers)
            if allowed and scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
                await _preflight()(scope, receive, sent)
                return
            KEY.set(b"" if self.is_free(scope["path"]) else self.check_key(headers))
        except Problem as problem:
            await problem.response(scope, receive, sent)
            return
        await self.app(scope, receive, sent)

    def is_free(self, path: str) -> bool:
        """Whether a path needs no key: the page, and whether the server is there."""
        return path in self.free or path.startswith("/page/")

    def check_host(self, headers: Headers) -> None:
        """Addresses and known names only: a name that was bound to this address by somebody else is not ours."""
        name = _host(headers.get("host", ""))
        try:
            ipaddress.ip_address(name)
        except ValueError:
            if name not in self.names:
                raise Problem(
                    403, f"this server is not called {name[:80]!r}; --allow-host makes it answer to a name",
                    code="host_not_allowed",
                ) from None  # fmt: skip

    def check_site(self, scope: Scope, headers: Headers) -> None:
        """Nothing for pages of other sites: by a request's origin, or where a browser says it is from."""
        refused = Problem(403, "pages of other sites may not ask this server; --cors names one that may",
                          code="origin_not_allowed")  # fmt: skip
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        if origin is not None:
            scheme = scope.get("scheme", "http")
            if origin.lower() not in {f"{kind}://{headers.get('host', '').lower()}" for kind in (scheme, "https")}:
                raise refused
        elif site not in ("same-origin", "none"):
            visit = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
            if not (visit and scope["method"] in ("GET", "HEAD") and scope["path"] == "/"):
                raise refused

    def check_key(self, headers: Headers) -> bytes:
        """One of the keys, compared in constant time; its digest, or nothing where none is needed."""
        if not self.keys:
            return b""
        kind, _, key = headers.get("authorization", "").partition(" ")
        given = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        right = [hmac.compare_digest(given, own) for own in self.keys]
        if kind.lower() != "bearer" or not any(right):
            what = "the API key is wrong" if key else "an API key is needed: Authorization: Bearer KEY"
            raise Problem(401, what, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        return given


def _host(text: str) -> str:
    """The name of a Host header, without its port."""
    name = text.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.rpartition(":")[0] if name.rpartition(":")[2].isdecimal() and ":" in name else name


def _preflight() -> Response:
    allowed = {"Access-Control-Allow-Methods": METHODS, "Access-Control-Allow-Headers": "authorization, content-type",
               "Access-Control-Max-Age": "600"}  # fmt: skip
    return Response(status_code=204, headers=allowed)
