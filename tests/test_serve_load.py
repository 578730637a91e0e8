"""Many streams at once, with clients that leave: nothing stays behind, and who stays gets the text that is due."""

from __future__ import annotations

import asyncio
import gc
import json
import random
import resource
import time
from typing import Any

import pytest

httpx = pytest.importorskip("httpx")

import serving
import stemma
from stemma.conversations import Turn, prompt_ids, writer

CHAT = "/v1/chat/completions"


def due(model: Any, words: str, seed: int, tokens: int) -> str:
    """What a conversation is answered alone."""
    ids = prompt_ids(model.tokenizer, writer(model.tokenizer).prompt([Turn("user", words)]))
    asked: dict[str, Any] = {"max_new_tokens": tokens, "temperature": 1.0, "seed": seed, "stop": ["<|im_end|>"]}
    return stemma.generate(model, [ids], **asked)[0].text or ""


async def one(
    client: Any, draw: random.Random, kinds: list[tuple[str, int, int]], counts: dict[str, int], rights: dict[int, str]
) -> None:
    """One client: reads its stream to the end, or leaves somewhere."""
    number = draw.randrange(len(kinds))
    words, seed, tokens = kinds[number]
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": words}],
        "max_tokens": tokens,
        "seed": seed,
        "stream": True,
    }
    leaves = draw.randrange(1, 12) if draw.random() < 0.5 else None
    text, seen, ended = "", 0, False
    async with client.stream("POST", CHAT, json=body) as got:
        assert got.status_code in (200, 429), got.status_code
        if got.status_code == 429:
            counts["refused"] += 1
            return
        lines = got.aiter_lines()
        async for line in lines:
            if not line.startswith("data: "):
                continue
            if line == "data: [DONE]":
                ended = True
                break
            text += json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
            seen += 1
            if seen == leaves:
                counts["left"] += 1
                return
    assert ended and text == rights[number], (number, text, rights[number])
    counts["whole"] += 1


async def load(
    url: str, clients: int, seconds: float, kinds: list[tuple[str, int, int]], rights: dict[int, str]
) -> dict[str, int]:
    """So many clients for a while."""
    counts, end = {"whole": 0, "left": 0, "refused": 0}, time.monotonic() + seconds
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:

        async def works(number: int) -> None:
            draw = random.Random(number)
            while time.monotonic() < end:
                await one(client, draw, kinds, counts, rights)

        await asyncio.gather(*(works(i) for i in range(clients)))
    return counts


def memory() -> float:
    """MB of this process now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e6


def tried(clients: int, seconds: float) -> tuple[dict[str, int], float]:
    """What came of it, and how many MB were added after a first while."""
    model, draw = serving.decoder(context=256), random.Random(0)
    kinds = [("leaf " * draw.randrange(1, 30), i, draw.randrange(2, 60)) for i in range(24)]
    rights = {i: due(model, *kind) for i, kind in enumerate(kinds)}
    made = serving.server({"tiny": model}, rows=16, queue=512)
    with serving.port(made) as url:
        asyncio.run(load(url, clients, seconds / 3, kinds, rights))
        gc.collect()
        before = memory()
        counts = asyncio.run(load(url, clients, seconds, kinds, rights))
        engine = made.models.find("tiny")[0].engine
        assert engine is not None
        end = time.monotonic() + 10
        while engine.stats().running or engine.stats().waiting:
            assert time.monotonic() < end, "requests are stuck"
            time.sleep(0.05)
        gc.collect()
        return counts, memory() - before


def test_some_streams_with_clients_that_leave() -> None:
    counts, _ = tried(12, 0.7)
    assert counts["whole"] > 3 and counts["left"] > 3 and not counts["refused"]


@pytest.mark.slow
def test_two_hundred_streams_for_a_minute() -> None:
    counts, grown = tried(200, 60)
    assert counts["whole"] > 200 and counts["left"] > 200 and not counts["refused"], counts
    assert grown < 40, f"{grown:.0f} MB more after the load than after its first third"
