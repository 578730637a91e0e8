"""Routes of the administrator: models loaded and dropped while the server runs."""

from __future__ import annotations

import asyncio
from typing import Any

from stemma.serve.models import Wanted
from stemma.serve.schemas.models import LoadRequest
from stemma.serve.server import Server


async def load(server: Server, body: LoadRequest) -> dict[str, Any]:
    """Load a model and serve it."""
    wanted = Wanted(
        body.model, body.name or "", server.device, body.dtype or "float32", body.quantize, body.adapters or {}
    )
    served, before = await asyncio.to_thread(server.models.load, wanted, bool(body.replace))
    if before is not None:
        await asyncio.to_thread(before.close, True, server.settings.drain)
    return served.entry()


async def drop(server: Server, name: str) -> dict[str, Any]:
    """Serve a model no more. Requests that it has are answered first."""
    served = server.models.drop(name)
    await asyncio.to_thread(served.close, True, server.settings.drain)
    return {"id": name, "object": "model", "deleted": True}
