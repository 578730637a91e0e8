"""Who may ask the server, how much it takes on, and how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai")

import httpx
import openai

import serving
import stemma
from stemma.errors import UsageError
from stemma.serve.settings import Settings

CHAT = "/v1/chat/completions"
TALK = [{"role": "user", "content": "a leaf"}]
LONG = {"model": "tiny", "messages": TALK, "max_tokens": 4000, "ignore_eos": True, "stream": True}


def long() -> Any:
    """A model with room for texts that take a while."""
    return serving.decoder(context=4096)


def wait(what: Any, seconds: float = 10) -> None:
    """Until something holds."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it never came to hold"
        time.sleep(0.01)


def test_keys() -> None:
    with serving.client(serving.server(keys=("one", "two"))) as client:
        for headers in (
            {},
            {"Authorization": "Bearer three"},
            {"Authorization": "Basic one"},
            {"Authorization": "Bearer"},
        ):
            got = client.get("/v1/models", headers=headers)
            assert got.status_code == 401 and got.json()["error"]["type"] == "authentication_error"
            assert got.json()["error"]["code"] == "invalid_api_key" and got.headers["WWW-Authenticate"] == "Bearer"
        for key in ("one", "two"):
            assert client.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200
        assert client.post(CHAT, content=b"{").status_code == 401 == client.get("/metrics").status_code
        for path in ("/", "/health", "/ready", "/openapi.json"):
            assert client.get(path).status_code == 200
        paths = client.get("/openapi.json").json()["paths"]
        assert "401" in paths[CHAT]["post"]["responses"] and "401" not in paths["/health"]["get"]["responses"]


def test_pages_of_other_sites_and_names_of_others_get_nothing() -> None:
    made = serving.server(hosts=("models.example",), origins=("https://good.example",))
    with serving.client(made) as client:
        host = client.base_url.netloc.decode()

        def status(**headers: str) -> int:
            return client.get("/v1/models", headers={k.replace("_", "-"): v for k, v in headers.items()}).status_code

        assert status(Host="evil.example") == 403 == status(Host="evil.example:8000") == status(Host="")
        assert (
            status(Host="models.example")
            == 200
            == status(Host="LOCALHOST:1")
            == status(Host="[::1]:80")
            == status(Host="10.0.0.7")
        )
        assert (
            status(Origin="https://evil.example")
            == 403
            == status(Origin="null")
            == status(Origin=f"http://{host}.evil.example")
        )
        assert status(Origin=f"http://{host}") == 200 == status(Origin=f"https://{host}")
        assert status(Sec_Fetch_Site="cross-site") == 403 == status(Sec_Fetch_Site="same-site")
        assert status(Sec_Fetch_Site="same-origin") == 200 == status(Sec_Fetch_Site="none")
        visit = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
        assert (
            client.get("/", headers=visit).status_code == 200
            and client.get("/health", headers=visit).status_code == 403
        )
        simple = {"Origin": "https://evil.example", "Content-Type": "text/plain"}
        assert client.post(CHAT, content=json.dumps(LONG), headers=simple).status_code == 403
        assert (
            "access-control-allow-origin" not in client.get("/v1/models", headers={"Origin": f"http://{host}"}).headers
        )

        good = client.get("/v1/models", headers={"Origin": "https://good.example", "Sec-Fetch-Site": "cross-site"})
        assert good.status_code == 200 and good.headers["Access-Control-Allow-Origin"] == "https://good.example"
        asked = {"Origin": "https://good.example", "Access-Control-Request-Method": "POST"}
        before = client.options(CHAT, headers=asked)
        assert before.status_code == 204 and "authorization" in before.headers["Access-Control-Allow-Headers"]
        assert client.options(CHAT, headers=asked | {"Origin": "https://evil.example"}).status_code == 403


def test_the_page_and_nothing_beside_it() -> None:
    with serving.client(serving.server()) as client:
        page = client.get("/")
        assert page.status_code == 200 and page.headers["Content-Type"].startswith("text/html")
        assert (
            "default-src 'none'" in page.headers["Content-Security-Policy"]
            and "unsafe" not in page.headers["Content-Security-Policy"]
        )
        assert client.get("/", headers={"If-None-Match": page.headers["ETag"]}).status_code == 304
        assert page.headers["X-Content-Type-Options"] == "nosniff" and page.headers["X-Frame-Options"] == "DENY"
        url = str(client.base_url)
    with serving.port(serving.server()) as url:
        host, _, number = url.removeprefix("http://").partition(":")
        for path in (
            "/page/../__init__.py", "/page/%2e%2e/app.py", "/page/..%2fapp.py", "/page//etc/passwd", "/../../etc/passwd",
            "/page/..\\app.py", "/page/%00", "//etc/passwd", "/page/", "/page/.%2e/.%2e/.%2e/pyproject.toml",
        ):  # fmt: skip
            assert (
                raw(host, int(number), f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").split()[
                    1
                ]
                == b"404"
            ), path


def raw(host: str, port: int, request: str) -> bytes:
    """What a server answers to bytes."""
    import socket

    with socket.create_connection((host, port), timeout=10) as line:
        line.sendall(request.encode())
        found = b""
        while part := line.recv(65536):
            found += part
    return found


def test_bodies_that_are_too_large_or_lie_about_it() -> None:
    with serving.port(serving.server(max_body=1000)) as url:
        small = {"model": "tiny", "messages": TALK, "max_tokens": 1}
        assert httpx.post(url + CHAT, json=small).status_code == 200

        def parts() -> Any:  # no Content-Length
            for _ in range(100):
                yield b" " * 100

        got = httpx.post(url + CHAT, content=parts(), headers={"Content-Type": "application/json"})
        assert got.status_code == 413 and got.json()["error"]["code"] == "request_too_large"


def test_a_full_queue_is_a_429_that_says_when() -> None:
    made = serving.server({"tiny": long()}, rows=1, queue=1)
    with serving.port(made) as url:
        engine = made.models.find("tiny")[0].engine
        with httpx.stream("POST", url + CHAT, json=LONG, timeout=30) as first:
            lines = first.iter_lines()  # held: the stream ends with it
            next(lines)
            wait(lambda: engine.stats().running == 1)
            with httpx.stream("POST", url + CHAT, json=LONG, timeout=30) as second:
                wait(lambda: engine.stats().waiting == 1)
                got = httpx.post(url + CHAT, json=LONG)
                assert got.status_code == 429 and int(got.headers["Retry-After"]) >= 1
                assert got.json()["error"]["type"] == "rate_limit_error"
                many = {"model": "tiny", "prompt": ["a", "b"]}  # all of them, or none
                assert httpx.post(f"{url}/v1/completions", json=many).status_code == 429
                never = httpx.post(f"{url}/v1/completions", json=many | {"prompt": ["a"] * 3})
                assert never.status_code == 400 and "more than the 2" in never.json()["error"]["message"]
                assert engine.stats().waiting == 1
                assert second.status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_row(stream: bool) -> None:
    made = serving.server({"tiny": long()}, rows=1)
    with serving.port(made) as url:
        engine = made.models.find("tiny")[0].engine
        if stream:
            with httpx.stream("POST", url + CHAT, json=LONG, timeout=30) as got:
                lines = got.iter_lines()
                next(lines)
                wait(lambda: engine.stats().running == 1)
        else:
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(url + CHAT, json=LONG | {"stream": False}, timeout=0.3)
        wait(lambda: engine.stats().running == 0)
        own = httpx.post(url + CHAT, json=LONG | {"stream": False, "max_tokens": 5, "temperature": 0}, timeout=30)
        assert own.json()["usage"]["completion_tokens"] == 5


def test_a_stream_says_that_it_is_there() -> None:
    made = serving.server({"tiny": long()}, rows=1, keep_alive=0.05)
    with serving.port(made) as url, httpx.stream("POST", url + CHAT, json=LONG, timeout=30) as first:
        lines = first.iter_lines()  # held: the stream ends with it
        next(lines)
        with httpx.stream("POST", url + CHAT, json=LONG, timeout=30) as second:
            got = []
            for line in second.iter_lines():
                got.append(line)
                if line.startswith(":"):
                    break
            assert (
                got[-1] == ": keep-alive"
                and json.loads(got[0].removeprefix("data: "))["choices"][0]["delta"]["role"] == "assistant"
            )


def test_models_are_loaded_and_dropped(tmp_path: Path) -> None:
    serving.decoder().save(str(tmp_path / "small"))
    made = serving.server(admin=True, keys=("k",))
    key = {"Authorization": "Bearer k"}
    with (
        serving.client(made) as client,
        openai.OpenAI(base_url=f"{client.base_url}/v1".replace("//v1", "/v1"), api_key="k") as own,
    ):
        assert client.post("/admin/models", json={"model": str(tmp_path / "small")}).status_code == 401
        got = client.post("/admin/models", json={"model": str(tmp_path / "small"), "name": "other"}, headers=key)
        assert got.status_code == 200 and got.json()["id"] == "other" and got.json()["stemma"]["family"] == "llama"
        assert [m.id for m in own.models.list()] == ["tiny", "other"]
        asked: Any = {"messages": TALK, "max_tokens": 6, "temperature": 0}
        said = [
            own.chat.completions.create(model=name, **asked).choices[0].message.content for name in ("tiny", "other")
        ]
        assert said[0] == said[1]
        for body, status, words in (
            ({"model": str(tmp_path / "small"), "name": "other"}, 409, "already"), ({"model": str(tmp_path / "no")}, 400, "no"),
            ({"model": "a", "name": "b:c"}, 400, "name"),
        ):  # fmt: skip
            wrong = client.post("/admin/models", json=body, headers=key)
            assert wrong.status_code == status and words in wrong.json()["error"]["message"], wrong.text
        assert client.delete("/admin/models/other", headers=key).json()["deleted"]
        assert client.delete("/admin/models/other", headers=key).status_code == 404
        assert [m.id for m in own.models.list()] == ["tiny"]
    with pytest.raises(UsageError, match="need a key"):
        Settings(admin=True)


def test_not_ready_while_models_are_loaded() -> None:
    from stemma.serve.app import app

    gate, made = threading.Event(), serving.server()
    made.models.drop("tiny")
    made.models.ready = False

    async def ask() -> None:
        whole = app(made, gate.wait)  # type: ignore[arg-type]
        async with asyncio.timeout(10):
            queue: asyncio.Queue[Any] = asyncio.Queue()
            queue.put_nowait({"type": "lifespan.startup"})
            sent: list[Any] = []

            async def send(message: Any) -> None:
                sent.append(message)

            life = asyncio.ensure_future(whole({"type": "lifespan", "state": {}}, queue.get, send))
            while not sent:
                await asyncio.sleep(0.01)
            async with httpx.AsyncClient(transport=httpx.ASGITransport(whole), base_url="http://localhost") as client:
                assert (await client.get("/health")).status_code == 200
                early = await client.get("/ready")
                assert early.status_code == 503 and early.headers["Retry-After"] == "2"
                asked = await client.post(CHAT, json={"model": "tiny", "messages": TALK})
                assert asked.status_code == 503 and asked.json()["error"]["code"] == "loading"
                gate.set()
                while (await client.get("/ready")).status_code != 200:
                    await asyncio.sleep(0.01)
                assert (await client.post(CHAT, json={"model": "tiny", "messages": TALK})).status_code == 404
            queue.put_nowait({"type": "lifespan.shutdown"})
            await life

    asyncio.run(ask())


def test_the_command_ends_when_open_requests_are_answered(tmp_path: Path) -> None:
    """SIGTERM while a stream is open: it goes on to its end, new connections are refused, and the exit code is 0."""
    serving.decoder(context=4096).save(str(tmp_path / "small"))
    command = [sys.executable, "-m", "stemma", "serve", f"tiny={tmp_path / 'small'}", "--port", "0"]
    source = str(Path(stemma.__file__).parent.parent)
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
    )
    assert process.stderr is not None
    try:
        url = process.stderr.readline().split()[0]
        wait(lambda: httpx.get(f"{url}/ready").status_code == 200, 60)
        asked = LONG | {"max_tokens": 600, "stream_options": {"include_usage": True}}
        with httpx.stream("POST", url + CHAT, json=asked, timeout=60) as got:
            lines = got.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            told = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        assert told[-1] == "[DONE]" and json.loads(told[-2])["usage"]["completion_tokens"] == 600
        assert process.wait(30) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health")
    finally:
        process.kill()
        process.wait()


def test_the_command_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from stemma.cli import root

    monkeypatch.setenv("OMP_WAIT_POLICY", "")  # put back behind the test
    monkeypatch.delenv("OMP_WAIT_POLICY")
    for arguments, words in (
        (["a", "b=a/a", "a/b"], "two models are called b"),
        (["a", "--adapter", "x"], "is not NAME=DIR"),
        (["a", "b", "--adapter", "x=y"], "there are several models"),
        (["a", "--adapter", "c:x=y"], "no model is called c"),
        (["a", "--admin"], "need a key"),
        (["a", "--max-body", "many"], "--max-body"),
    ):
        got = CliRunner().invoke(root, ["serve", *arguments])
        assert isinstance(got.exception, UsageError) and words in str(got.exception), (
            arguments,
            got.exception,
            got.output,
        )
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"  # a busy machine does not stall the server
