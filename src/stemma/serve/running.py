"""The server as a process: uvicorn, its log, and its end."""

from __future__ import annotations

import logging
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


def serve(wanted: Sequence[Wanted], settings: Settings, device: str = "cpu") -> None:
    """Serve models until the process is told to end (SIGTERM, Ctrl-C): then open requests are answered first. Raises
    StemmaError where the port is taken or a model cannot be loaded."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    server = Server(settings, Models(settings))
    server.device = device
    held = bound(settings)
    failed: list[StemmaError] = []
    process = Process(uvicorn.Config(
        app(server, lambda: _load(server, wanted, process, failed)), log_level="warning", access_log=False,
        timeout_graceful_shutdown=max(1, round(settings.drain)), timeout_keep_alive=75, server_header=False,
        h11_max_incomplete_event_size=64 * 1024, lifespan="on",
    ))  # fmt: skip
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


class Process(uvicorn.Server):
    """A server that ends of itself where it was told to: nothing is raised again behind it."""

    def handle_exit(self, sig: int, frame: Any) -> None:
        """The first signal lets open requests end, the second one does not."""
        if self.should_exit:
            self.force_exit = True
        else:
            LOG.info("%s: open requests are answered first", signal.Signals(sig).name)
        self.should_exit = True
