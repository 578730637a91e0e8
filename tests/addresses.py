"""Addresses that speak OpenAI's protocol, for tests: what they answer is a function of what is asked."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]


@contextlib.contextmanager
def serving(answer: Callable[[str, Body], Any], refused: int = 0) -> Iterator[tuple[str, list[Body]]]:
    """(address, what was asked and answered so far). `answer` gets the path and the body; of three requests that are new
    number `refused` (1 is the second) is refused for now, and answered when it comes again; 0: none. Refusing by the
    order of arrival alone may refuse the same one for ever."""
    seen: list[Body] = []
    new: set[str] = set()
    one_by_one = threading.Lock()

    def is_refused(body: Body) -> bool:
        with one_by_one:
            before = len(new)
            new.add(json.dumps(body))
            return len(new) > before and before % 3 == refused

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if refused and is_refused(body):
                self.send_response(503)
                self.end_headers()
                return
            raw = json.dumps(answer(self.path, body)).encode()
            seen.append(body)
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):  # who asked was killed
                self.wfile.write(raw)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", seen
    finally:
        server.shutdown()
        server.server_close()


def message(text: str, reason: str = "stop") -> Body:
    """The answer of `/chat/completions`."""
    return {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": reason}]}


def completion(text: str, reason: str = "stop") -> Body:
    """The answer of `/completions`."""
    return {"choices": [{"text": text, "finish_reason": reason}]}
