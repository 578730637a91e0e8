"""Servers of tiny random models for tests: in process, or on a port of this machine."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import Any

import pytest

for name in ("starlette", "uvicorn", "pydantic", "prometheus_client", "httpx"):
    pytest.importorskip(name)

import httpx
import uvicorn

import stemma
from stemma.serve.app import app
from stemma.serve.models import Models, Served
from stemma.serve.server import Server
from stemma.serve.settings import Settings
from stemma.text import Specials, Tokenizer

TEXTS = [
    'a leaf on a branch of a tree, über die Bäume 木の葉 {"name": "find", "arguments": {"x": 1}} 0123456789\n' * 20
]
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@functools.cache
def tokenizer(template: str | None = CHAT, kind: str = "bpe", tokens: tuple[str, ...] = ()) -> Tokenizer:
    own = Specials(bos="<s>", eos="</s>", unk="<unk>", pad="<pad>")
    made = Tokenizer.train(kind, TEXTS, 320, own).grown(0, ("<|im_start|>", "<|im_end|>", *tokens))
    made.chat_template = template
    return made


@functools.cache
def decoder(template: str | None = CHAT, kind: str = "bpe", tokens: tuple[str, ...] = (), context: int = 256) -> Any:
    own = tokenizer(template, kind, tokens)
    model = stemma.build("llama", layers=2, d_model=32, heads=4, d_ff=48, vocab=own.vocab_size, context=context)
    model.tokenizer = own
    return model


def server(models: dict[str, Any] | None = None, begun: Server | None = None, **settings: Any) -> Server:
    """A server of models that are there."""
    own = Settings(**settings)
    made = Server(own, Models(own))
    for name, model in (models or {"tiny": decoder()}).items():
        task = None
        if isinstance(model, tuple):
            model, task = model
        made.models.add(Served(name, model, task, own))
    made.models.ready = True
    return made


@contextlib.contextmanager
def client(made: Server, **headers: str) -> Iterator[httpx.Client]:
    """A plain client of a server, in process."""
    with port(made) as url, httpx.Client(base_url=url, headers=headers, timeout=60) as opened:
        yield opened


@contextlib.contextmanager
def port(made: Server) -> Iterator[str]:
    """A server at an address of this machine."""
    config = uvicorn.Config(app(made), port=0, log_level="error", lifespan="on", timeout_graceful_shutdown=10)
    process = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(process.serve()), daemon=True)
    thread.start()
    while not (process.started and process.servers):
        threading.Event().wait(0.005)
    try:
        yield f"http://127.0.0.1:{process.servers[0].sockets[0].getsockname()[1]}"
    finally:
        process.should_exit = True
        thread.join(30)


def events(text: str) -> list[str]:
    """The data of a stream's events."""
    return [part.removeprefix("data: ") for part in text.split("\n\n") if part.startswith("data: ")]
