"""The server as a process: uvicorn, its log, and its end."""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import socket
from collections.abc import Sequence
from typing import Any

import uvicorn

from stemma.errors import ResourceError, StemmaError
from stemma.serve.app import app
from stemma.serve.models import Models, Wanted
from stemma.serve.server import Server
from stemma.serve.settings import Settings

LOG = logging.getLogger("stemma.serve")
CUT = 5  # seconds that requests which are cut off have to say so


def serve(wanted: Sequence[Wanted], settings: Settings, device: str = "cpu") -> None:
    """Serve models until the process is told to end (SIGTERM, Ctrl-C): then open requests are answered first. Raises
    StemmaError where the port is taken or a model cannot be loaded."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    server = Server(settings, Models(settings))
    server.device = device
    held = bound(settings)
    failed: list[StemmaError] = []
    config = uvicorn.Config(
        app(server, lambda: _load(server, wanted, process, failed)), log_level="warning", access_log=False,
        timeout_graceful_shutdown=math.ceil(settings.drain) + CUT, timeout_keep_alive=75, server_header=False,
        h11_max_incomplete_event_size=64 * 1024, lifespan="on",
    )  # fmt: skip
    process = Process(config, server)
    logging.getLogger("uvicorn.error").addFilter(lambda record: "CancelledError" not in _whole(record))
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    LOG.info("http://%s:%d  (the page; OpenAI's interface at /v1)", host, held.getsockname()[1])
    process.run(sockets=[held])
    if failed:
        raise failed[0]


def bound(settings: Settings) -> socket.socket:
    """The socket of the server. Raises ResourceError where it cannot be had."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    held = socket.socket(family, socket.SOCK_STREAM)
    try:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind((settings.host, settings.port))
        held.listen(2048)  # who asks early waits
    except OSError as error:
        held.close()
        raise ResourceError(f"{settings.host}:{settings.port} cannot be had: {error.strerror or error}") from None
    return held


def _load(server: Server, wanted: Sequence[Wanted], process: Any, failed: list[StemmaError]) -> None:
    for one in wanted:
        try:
            server.models.load(one)
        except StemmaError as error:
            failed.append(error)
            process.should_exit = True
            return


def _whole(record: logging.LogRecord) -> str:
    """A record's message and error: requests that are cut off at the end are no error."""
    error = record.exc_info[0] if record.exc_info else None
    return f"{record.getMessage()} {error.__name__ if error is not None else ''}"


class Process(uvicorn.Server):
    """A server that ends of itself where it was told to: nothing is raised again behind it."""

    def __init__(self, config: uvicorn.Config, server: Server) -> None:
        super().__init__(config)
        self.server, self.hurried = server, False

    def handle_exit(self, sig: int, frame: Any) -> None:
        """The first signal lets open requests end, the second one answers them with an error, the third waits for
        none."""
        name = signal.Signals(sig).name
        if self.should_exit:
            LOG.info("%s again: open requests are cut off", name)
            self.force_exit = self.hurried
            self.hurried = True
        else:
            LOG.info("%s: open requests are answered first", name)
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Wait for open requests as long as the settings say; then they end with an error."""
        cut = asyncio.ensure_future(self._cut())
        await super().shutdown(sockets)
        cut.cancel()

    async def _cut(self) -> None:
        clock = asyncio.get_running_loop().time
        end = clock() + self.server.settings.drain
        while not self.hurried and clock() < end:
            await asyncio.sleep(0.05)
        self.server.models.cancel()
