"""The server under load beside llama.cpp's: clients on this machine that ask for texts of mixed length.

    python bench/serve.py --peers PYTHON

PYTHON has `llama-cpp-python[server]`. Both serve the same random weights of LLaMA's shape (134 million, float32 in our
folder, F32 in GGUF). Rounds alternate; each has as many requests of the same lengths. Printed: medians over the rounds
of tokens a second and of the 99th percentile of the time to the first token, and the medians of the rounds' ratios.
llama.cpp's server answers one request at a time, so its clients wait in line.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parent.parent
SIZES = {"d_model": 768, "layers": 12, "heads": 12, "d_ff": 2048, "vocab": 32_000, "context": 1024}
SMALL = {"d_model": 256, "layers": 4, "heads": 4, "d_ff": 704, "vocab": 4_000, "context": 1024}


def words(count: int) -> list[str]:
    """Words of random letters."""
    draw = random.Random(0)
    return ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randrange(3, 10))) for _ in range(count)]


def checkpoint(folder: Path, sizes: dict[str, int]) -> None:
    """Random weights with a tokenizer, as a folder and as a GGUF file."""
    import stemma
    from stemma.text import Specials, Tokenizer

    texts = [f"{one} {one}" for one in words(sizes["vocab"])]
    specials = Specials(bos="<s>", eos="</s>", unk="<unk>")
    tokenizer = Tokenizer.train("spm-bpe", texts, sizes["vocab"], specials)
    model = stemma.build("llama", **sizes)
    model.tokenizer = tokenizer
    model.save(str(folder / "model"))
    model.save(str(folder / "model.gguf"), dtype="float32")


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


@contextlib.contextmanager
def running(command: list[str], port: int, threads: int) -> Iterator[str]:
    """A server at an address, once it answers."""
    env = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": str(threads)}
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            with contextlib.suppress(httpx.HTTPError):
                found = httpx.get(f"{url}/v1/models").json()
                if found.get("data"):
                    break
            if process.poll() is not None:
                sys.exit(f"{command[0]} ended with {process.returncode}")
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait()


async def asked(client: httpx.AsyncClient, body: dict[str, Any]) -> tuple[float, int]:
    """(seconds to the first token, tokens) of one request."""
    began, first, count = time.perf_counter(), 0.0, 0
    async with client.stream("POST", "/v1/completions", json=body) as got:
        got.raise_for_status()
        async for line in got.aiter_lines():
            if line.startswith("data: {"):
                first = first or time.perf_counter() - began
                count += len(json.loads(line[6:])["choices"])
    return first, body["max_tokens"]


async def load(url: str, bodies: list[dict[str, Any]], clients: int) -> tuple[float, float]:
    """(tokens a second, 99th percentile of the time to the first token) of so many clients."""
    waiting, found = list(bodies), list[tuple[float, int]]()
    began = time.perf_counter()
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=httpx.Limits(max_connections=clients)) as client:

        async def works() -> None:
            while waiting:
                found.append(await asked(client, waiting.pop()))

        await asyncio.gather(*(works() for _ in range(clients)))
    took = time.perf_counter() - began
    firsts = sorted(first for first, _ in found)
    return sum(n for _, n in found) / took, firsts[min(len(firsts) - 1, int(len(firsts) * 0.99))]


def requests(count: int, seed: int) -> list[dict[str, Any]]:
    """Prompts of 4 to 128 words, and 8 to 64 new tokens."""
    draw, known, found = random.Random(seed), words(1000), []
    for i in range(count):
        text = " ".join(draw.choices(known, k=draw.choice((4, 16, 48, 128))))
        body = {"model": "model", "prompt": text, "max_tokens": draw.choice((8, 24, 64)), "temperature": 0, "seed": i}
        found.append(body | {"stream": True, "logit_bias": {"2": -100}})  # no text ends early
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", help="a Python that has llama-cpp-python[server]")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=64, help="of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--small", action="store_true", help="a model of 6 million weights")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as held, contextlib.ExitStack() as stack:
        folder = Path(held)
        checkpoint(folder, SMALL if options.small else SIZES)
        port = free_port()
        ours = [sys.executable, "-m", "stemma", "serve", f"model={folder / 'model'}", "--port", str(port)]
        urls = {"stemma": stack.enter_context(running(ours, port, options.threads))}
        if options.peers:
            port = free_port()
            theirs = [options.peers, "-m", "llama_cpp.server", "--model", str(folder / "model.gguf"), "--n_ctx", "1024",
                      "--port", str(port), "--model_alias", "model", "--n_threads", str(options.threads),
                      "--n_threads_batch", str(options.threads), "--interrupt_requests", "false"]  # fmt: skip
            urls["llama.cpp"] = stack.enter_context(running(theirs, port, options.threads))
        rows: dict[str, list[tuple[float, float]]] = {name: [] for name in urls}
        for number in range(options.rounds + 1):
            bodies = requests(options.requests if number else 4, number)
            for name, url in list(urls.items())[:: 1 if number % 2 else -1]:
                figures = asyncio.run(load(url, bodies, options.clients))
                if number:  # the first round warms up
                    rows[name].append(figures)
    for name, figures in rows.items():
        rate, first = (statistics.median(column) for column in zip(*figures, strict=True))
        print(f"{name:10} {rate:8.1f} tokens/s   {first:7.3f} s to the first token (99th percentile)")
    if len(rows) == 2:
        pairs = list(zip(*rows.values(), strict=True))
        print(f"ratio      {statistics.median(a[0] / b[0] for a, b in pairs):8.2f}            "
              f"{statistics.median(a[1] / b[1] for a, b in pairs):7.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
