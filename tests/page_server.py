"""A server for the page's tests: the routes of `stemma serve` that the page asks, with answers that a test can foresee.

`chats`, `texts` and the like are written by rules on the last message, a token every few milliseconds; what a test sets in
`Script` changes how (delays, errors, a key). `python tests/page_server.py PORT` serves it by hand.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import sys
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

PAGE = Path(__file__).parents[1] / "src" / "stemma" / "serve" / "page"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)

GPT = ["transformer", "gpt1", "gpt2"]
MODELS = {
    "SmolLM2-135M-Instruct": ([*GPT, "gpt3", "llama"], "decoder", True, ["embed"], 8192, 134_515_008),
    "mistral-tiny": ([*GPT, "gpt3", "llama", "mistral"], "decoder", True, ["embed"], 4096, 7_241_732_096),
    "qwen2.5-0.5b-instruct": ([*GPT, "gpt3", "llama", "qwen"], "decoder", True, ["embed"], 32_768, 494_032_768),
    "gpt2": (GPT, "decoder", False, ["embed"], 1024, 124_439_808),
    "bert-base-uncased": (["transformer", "bert"], "encoder", False, ["embed", "fill"], 512, 109_514_298),
    "roberta-base": (["transformer", "bert", "roberta"], "encoder", False, ["embed", "fill"], 512, 124_697_433),
    "t5-small": (["transformer", "t5"], "encoder-decoder", False, ["embed", "fill", "write"], 512, 60_506_624),
}

HOSTILE = """<script>window.hacked = 1</script>
<img src=x onerror="window.hacked = 2">

[a](javascript:window.hacked=3) [b](data:text/html,<script>window.hacked=4</script>) ![c](https://elsewhere.example/pixel.png)
<a href="javascript:window.hacked=5">d</a> [e](https://example.org/" onmouseover="window.hacked=6)

`<b onclick=window.hacked=7>` **<svg onload=window.hacked=8>**

```html
</code></pre><script>window.hacked = 9</script>
```
| a | b |
|---|---|
| <iframe src="javascript:window.hacked=10"></iframe> | <style>body { display: none }</style> |
"""
MARKDOWN = """A family tree of manuscripts is a **stemma**: it shows which copy was made from which.

## How one is made

1. Collect the *witnesses*.
2. Compare their readings:
   - shared **errors** point to a common ancestor,
   - shared truths prove nothing.
3. Draw the tree.

| witness | century | parent |
|:--|--:|:-:|
| A | 9 | ω |
| B | 11 | A |

```python
def ancestors(tree, name):
    \"\"\"From a copy up to the root.\"\"\"
    while name is not None:
        yield name
        name = tree.get(name)  # the root has none
```

> Recentiores non deteriores.

See [the article](https://en.wikipedia.org/wiki/Textual_criticism) and `stemma tree`.
"""
POEM = """**Rivers**

A river keeps no copy of its name,
it hands the water on from stone to stone;
each bend remembers how the last one came,
and changes it, and calls the change its own.

What reached the sea was never once the same,
yet every drop could lead you to the spring."""
HALVES = "Grüße 👩‍🚀🎉 — 日本語, العربية, ✓"


@dataclass
class Script:
    """What the server does otherwise than usual, and what it was asked."""

    key: str = ""
    delay: float = 0.004  # between tokens
    first: float = 0.0  # before the first one
    fail: list[Response] = field(default_factory=list)  # answers to the next requests for text
    torn: bool = False  # streams end without their end
    asked: list[dict[str, Any]] = field(default_factory=list)
    thinking: list[float] = field(default_factory=list)  # seconds from a request to its first token
    left: int = 0  # clients that went away while they were written to


def answer(model: str, text: str) -> str:
    """What a model says to a text."""
    match text.strip().split(" ")[0].lower():
        case "hostile":
            return HOSTILE
        case "halves":
            return HALVES
        case "long":
            return " ".join(f"word{i}" for i in range(3000))
        case "echo":
            return text.strip()[5:]
        case "what":
            return MARKDOWN
        case "write" if "poem" in text:
            return (
                POEM
                if "mistral" not in model
                else POEM.split("\n\n")[1].replace("A river", "The river") + "\n\nSo runs the poem."
            )
    return f"{model} heard: {text.strip()}"


def tokens(text: str) -> list[bytes]:
    """Pieces of a text, some of which are parts of characters."""
    pieces = re.findall(r" ?\w+|[^\w\s]|\s+", text)
    found: list[bytes] = []
    for piece in pieces:
        data = piece.encode()
        if len(data) > len(piece) and len(data) <= 4:
            found += [data[:2], data[2:]] if len(data) > 2 else [data[:1], data[1:]]
        else:
            found.append(data)
    return [piece for piece in found if piece]


def shown(data: bytes) -> str:
    return data.decode(errors="replace")


def chances(i: int, data: bytes) -> list[tuple[bytes, float]]:
    """The likeliest tokens at a place, of which the written one is sometimes the second."""
    p = (0.97, 0.62, 0.88, 0.34, 0.99, 0.75, 0.18, 0.93)[i % 8]
    others = [b" the", b"<|im_end|>", b" a", b" other", b"\n"]
    rest = [
        (other, (1 - p) * share)
        for other, share in zip(others, (0.5, 0.2, 0.15, 0.1, 0.05), strict=True)
        if other != data
    ]
    return sorted([(data, p), *rest], key=lambda row: -row[1])[:5]


def logprob(p: float) -> float:
    return math.log(max(p, 1e-9))


class Server:
    """The application, and a thread that serves it on a free port of loopback."""

    def __init__(self, port: int = 0) -> None:
        self.script = Script()
        routes = [
            Route("/", self.index),
            Mount("/page", StaticFiles(directory=PAGE)),
            Route("/v1/models", self.models),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/completions", self.text, methods=["POST"]),
            Route("/v1/embeddings", self.embeddings, methods=["POST"]),
            Route("/fill", self.fill, methods=["POST"]),
            Route("/tokenize", self.tokenize, methods=["POST"]),
        ]
        self.app = Starlette(routes=routes)
        self.server = uvicorn.Server(
            uvicorn.Config(self.app, port=port, log_level="error", lifespan="off", timeout_graceful_shutdown=1)
        )

    def __enter__(self) -> Server:
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}/"
        return self

    def __exit__(self, *_: Any) -> None:
        self.server.should_exit = True
        self.thread.join(10)

    async def index(self, request: Request) -> Response:
        return FileResponse(PAGE / "index.html", headers={"Content-Security-Policy": POLICY})

    def refused(self, request: Request, writing: bool = True) -> Response | None:
        if self.script.key and request.headers.get("authorization") != f"Bearer {self.script.key}":
            return wrong(401, "the API key is missing or wrong")
        return self.script.fail.pop(0) if writing and self.script.fail else None

    async def models(self, request: Request) -> Response:
        names = ("lineage", "structure", "chats", "tasks", "context", "parameters")
        data = [
            {
                "id": name,
                "object": "model",
                "stemma": dict(zip(names, row, strict=True)) | {"family": row[0][-1], "writes": row[1] != "encoder"},
            }
            for name, row in MODELS.items()
        ]
        return self.refused(request, False) or JSONResponse({"object": "list", "data": data})

    async def chat(self, request: Request) -> Response:
        began, body = time.perf_counter(), await request.json()
        self.script.asked.append(body)
        if refused := self.refused(request):
            return refused
        said = [m["content"] for m in body["messages"] if m["role"] == "user"][-1]
        text = answer(body["model"], said)
        if body.get("continue_final_message"):
            text = onward(body["messages"][-1]["content"], text)

        def event(i: int, whole: str, piece: bytes | None, finish: str | None) -> dict[str, Any]:
            delta = {"content": whole} if piece is not None else {}
            choice: dict[str, Any] = {
                "index": 0,
                "delta": delta | ({"role": "assistant"} if i == 0 else {}),
                "finish_reason": finish,
            }
            if body.get("logprobs") and piece is not None:
                top = [{"token": shown(t), "logprob": logprob(p), "bytes": list(t)} for t, p in chances(i, piece)]
                own = next(row for row in top if row["bytes"] == list(piece))
                choice["logprobs"] = {"content": [own | {"top_logprobs": top}]}
            return {"object": "chat.completion.chunk", "choices": [choice]}

        return self.streamed(body, text, event, began)

    async def text(self, request: Request) -> Response:
        began, body = time.perf_counter(), await request.json()
        self.script.asked.append(body)
        if refused := self.refused(request):
            return refused
        source = MODELS[body["model"]][1] == "encoder-decoder"
        text = (
            f"Das Haus ist wunderbar. ({len(body['prompt'])})"
            if source
            else f" and then, after {len(body['prompt'])} letters, it went on."
        )

        if body["prompt"].endswith("halves"):
            text = HALVES
        held: list[tuple[int, bytes]] = []  # tokens whose text waits for the rest of a character

        def event(i: int, whole: str, piece: bytes | None, finish: str | None) -> dict[str, Any] | None:
            held.extend([(i, piece)] if piece is not None else [])
            if not whole and not finish:
                return None
            choice: dict[str, Any] = {"index": 0, "text": whole, "finish_reason": finish, "logprobs": None}
            if body.get("logprobs") and held:
                tops = [{shown(t): logprob(p) for t, p in chances(k, piece)} for k, piece in held]
                names = [shown(piece) for _, piece in held]
                choice["logprobs"] = {
                    "tokens": names,
                    "token_logprobs": [top[name] for name, top in zip(names, tops, strict=True)],
                    "top_logprobs": tops,
                    "text_offset": [0] * len(held),
                }
            held.clear()
            return {"object": "text_completion", "choices": [choice]}

        return self.streamed(body, text, event, began)

    def streamed(self, body: dict[str, Any], text: str, event: Any, began: float) -> Response:
        script = self.script
        pieces = tokens(text)[: body.get("max_tokens") or None]

        async def lines() -> AsyncIterator[bytes]:
            done, held = False, b""
            try:
                await asyncio.sleep(script.first)
                script.thinking.append(time.perf_counter() - began)
                for i, piece in enumerate(pieces):
                    held += piece
                    whole = shown(held) if "\ufffd" not in shown(held) else ""
                    held = b"" if whole else held
                    if (told := event(i, whole, piece, None)) is None:
                        continue
                    line = f"data: {json.dumps(told, ensure_ascii=False)}\n\n".encode()
                    middle = next((k for k, byte in enumerate(line) if byte >= 0xC0), len(line) // 2) + 1
                    yield line[:middle]  # packets end wherever they like, inside of characters too
                    if middle < len(line) and whole and not whole.isascii():
                        await asyncio.sleep(0.005)
                    yield line[middle:]
                    await asyncio.sleep(script.delay)
                if not script.torn:
                    finish = "length" if body.get("max_tokens") == len(pieces) else "stop"
                    yield f"data: {json.dumps(event(1, '', None, finish))}\n\n".encode()
                    usage = {"prompt_tokens": 9, "completion_tokens": len(pieces), "total_tokens": 9 + len(pieces)}
                    yield f"data: {json.dumps({'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n".encode()
                done = True
            finally:
                script.left += not done

        return StreamingResponse(lines(), media_type="text/event-stream")

    async def embeddings(self, request: Request) -> Response:
        body = await request.json()
        self.script.asked.append(body)
        rows = [[line.lower().count(chr(97 + i)) + 0.5 for i in range(26)] for line in body["input"]]
        data = [{"index": i, "embedding": row} for i, row in enumerate(rows)]
        return self.refused(request) or JSONResponse({"data": data, "model": body["model"]})

    async def tokenize(self, request: Request) -> Response:
        return JSONResponse({"tokens": list(range(len(tokens((await request.json())["content"]))))})

    async def fill(self, request: Request) -> Response:
        body = await request.json()
        self.script.asked.append(body)
        if refused := self.refused(request):
            return refused
        if "[MASK]" not in body["text"]:
            return wrong(400, "there is no [MASK] in the text")
        words = [("Paris", 0.71), ("Lyon", 0.12), ("Lille", 0.06), ("Toulouse", 0.04), ("Marseille", 0.02)]
        guesses = [{"text": text, "id": i, "probability": p} for i, (text, p) in enumerate(words)]
        gaps = body["text"].count("[MASK]")
        return JSONResponse({"text": body["text"].replace("[MASK]", "Paris"), "guesses": [guesses] * gaps, "spans": []})


def onward(begun: str, text: str) -> str:
    return text[len(begun) :] if text.startswith(begun) else f" [gone on from {len(begun)} letters]"


def wrong(status: int, message: str, **headers: str) -> Response:
    body = {"error": {"message": message, "type": "error", "param": None, "code": None}}
    return JSONResponse(body, status, {name.replace("_", "-"): value for name, value in headers.items()})


if __name__ == "__main__":
    with Server(int(sys.argv[1])) as by_hand:
        print(by_hand.address)
        threading.Event().wait()
