"""The end of a server: open requests are answered first, then cut off with an error that says so."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
import time
from typing import Any

import pytest

pytest.importorskip("uvicorn")

import httpx
import uvicorn

import serving
from stemma.serve.app import app
from stemma.serve.running import Process

LONG = {"model": "tiny", "prompt": "a", "max_tokens": 30_000, "ignore_eos": True}


def ended(drain: float, signals: int) -> tuple[list[httpx.Response], str, float]:
    """The answers of a whole and of a streamed request that would take minutes, the last event, and how long the end of
    the server took."""
    made = serving.server({"tiny": serving.decoder(context=2**15)}, drain=drain)
    config = uvicorn.Config(app(made), port=0, log_level="error", timeout_graceful_shutdown=10)
    process = Process(config, made)
    thread = threading.Thread(target=lambda: asyncio.run(process.serve()), daemon=True)
    thread.start()
    while not (process.started and process.servers):
        time.sleep(0.005)
    url = f"http://127.0.0.1:{process.servers[0].sockets[0].getsockname()[1]}/v1/completions"
    got: dict[bool, httpx.Response] = {}

    def ask(stream: bool) -> None:
        got[stream] = httpx.post(url, json=LONG | {"stream": stream}, timeout=60)

    asking = [threading.Thread(target=ask, args=(stream,)) for stream in (False, True)]
    for one in asking:
        one.start()
    engine: Any = made.models.find("tiny")[0].engine
    while engine.stats().running < 2:
        time.sleep(0.005)
    began = time.monotonic()
    for _ in range(signals):
        process.handle_exit(signal.SIGINT, None)
    for one in (*asking, thread):
        one.join(30)
        assert not one.is_alive()
    return [got[False], got[True]], serving.events(got[True].text)[-1], time.monotonic() - began


def test_a_model_that_ends_takes_no_more_requests() -> None:
    """That is no fault of the request."""
    made = serving.server()
    with serving.client(made) as client:
        made.models.find("tiny")[0].close(drain=True, timeout=5)
        got = client.post("/v1/completions", json={"model": "tiny", "prompt": "a"})
        assert got.status_code == 503 and got.json()["error"]["code"] == "shutting_down"


@pytest.mark.parametrize(("drain", "signals"), [(0.2, 1), (60.0, 2)], ids=["no time left", "a second signal"])
def test_requests_that_are_cut_off_say_so(drain: float, signals: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    (whole, stream), last, seconds = ended(drain, signals)
    assert seconds < 15
    assert whole.status_code == 503 and whole.json()["error"]["code"] == "shutting_down"
    assert stream.status_code == 200 and '"shutting_down"' in last and len(serving.events(stream.text)) > 1
    assert "Traceback" not in caplog.text and ("again: open requests are cut off" in caplog.text) == (signals > 1)
