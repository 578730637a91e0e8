"""Routes that say how the server stands: models, health, readiness, counts."""

from __future__ import annotations

from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from stemma.serve.problems import Problem
from stemma.serve.server import Server


async def models(server: Server, _: None) -> dict[str, Any]:
    """All models with their adapters."""
    more = {"stemma": {"feedback": True}} if server.feedback is not None else {}
    return {"object": "list", "data": server.models.entries(), **more}


async def model(server: Server, name: str) -> dict[str, Any]:
    """One model."""
    served, adapter = server.models.find(name)
    return served.entry(adapter)


async def health(server: Server, _: None) -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


async def ready(server: Server, _: None) -> dict[str, str]:
    """Models are loaded and take requests."""
    if server.models.ending or not server.models.ready:
        state = "ending" if server.models.ending else "loading"
        raise Problem(503, f"the server is {state}", code=state, headers={"Retry-After": "2"})
    return {"status": "ready"}


async def metrics(server: Server, _: None) -> Response:
    """For Prometheus."""
    return Response(server.metrics.text, headers={"Content-Type": CONTENT_TYPE_LATEST})
