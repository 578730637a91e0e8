"""Embeddings, tokens, and the routes of models that write no text, or another's: fill, classify, tag, answer, rerank,
write."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

import stemma
from stemma.decoding import SamplingParams, row_seed
from stemma.decoding.generation_config import num_beams
from stemma.serve import drawing
from stemma.serve.choices import FINISHED
from stemma.serve.models import Served
from stemma.serve.problems import bad
from stemma.serve.schemas import tasks as schemas
from stemma.serve.server import Server
from stemma.serve.streams import merged
from stemma.tuning.predicting import Tuned, predict


async def embed(server: Server, body: schemas.EmbeddingRequest) -> dict[str, Any]:
    """Vectors of texts."""
    served, adapter = server.models.find(body.model)
    width = served.model.dims.d_model
    if body.dimensions is not None and body.dimensions != width:
        raise bad(f"this model's vectors have {width} dimensions and cannot be made shorter", "dimensions")
    held: Any = body.input
    texts = [held] if isinstance(held, str) or isinstance(held[0], int) else list(held)
    vectors, read = await served.direct(_vectors, served, texts, body.prompt_name, adapter=adapter)
    data = [
        {"object": "embedding", "index": i, "embedding": _coded(vector, body.encoding_format)}
        for i, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": read, "total_tokens": read}
    return {"object": "list", "model": body.model, "data": data, "usage": usage}


def _vectors(served: Served, texts: list[Any], prompt: str | None) -> tuple[torch.Tensor, int]:
    read = _read(served, texts, "input")
    return stemma.embed(served.model, texts, prompt_name=prompt).float().cpu(), read


def _read(served: Served, texts: Sequence[str | list[int]], param: str) -> int:
    """How many tokens texts have. Raises Problem for one that is longer than the model reads."""
    context, total = served.model.dims.context, 0
    for i, text in enumerate(texts):
        length = len(served.tokenizer.encode(text) if isinstance(text, str) else text)
        if length > context:
            raise bad(f"this model's context length is {context} tokens, and text {i} has {length}", param,
                      "context_length_exceeded")  # fmt: skip
        total += length
    return total


def _coded(vector: torch.Tensor, form: str | None) -> list[float] | str:
    if form == "base64":
        return base64.b64encode(vector.numpy().astype("<f4").tobytes()).decode()
    return [float(x) for x in vector.tolist()]


# ---------------------------------------------------------------- tokens


async def tokenize(server: Server, body: schemas.TokenizeRequest) -> dict[str, Any]:
    """The token ids of a text."""
    served, _ = server.models.find(body.model)
    special = {"add_special": bool(body.add_special), "allow_special": bool(body.parse_special)}
    ids = await asyncio.to_thread(lambda: served.tokenizer.encode(body.content, **special))
    if not body.with_pieces:
        return {"tokens": ids}
    return {"tokens": [{"id": i, "piece": _piece(served, i)} for i in ids]}


def _piece(served: Served, token: int) -> str | list[int]:
    """A token's text, or its bytes where they are none."""
    raw = served.tokenizer.token_bytes[token]
    if raw is None:
        return served.tokenizer.token(token) or ""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return list(raw)


async def detokenize(server: Server, body: schemas.DetokenizeRequest) -> dict[str, Any]:
    """The text of token ids."""
    served, _ = server.models.find(body.model)
    vocab = max(served.model.dims.vocab, served.tokenizer.vocab_size)
    if wrong := [i for i in body.tokens if i >= vocab]:
        raise bad(f"token {wrong[0]} is none of this model's, which are 0 to {vocab - 1}", "tokens")
    return {"content": await asyncio.to_thread(lambda: served.tokenizer.decode(body.tokens))}


# ---------------------------------------------------------------- gaps and tasks


def _able(server: Server, name: str | None, task: str) -> tuple[Served, str | None]:
    """The model that does a task, and the adapter that its name asks for: the named one, else the first that does.
    Raises Problem."""
    if name is None:
        found = next((one for one in server.models.all() if task in one.tasks), None)
        if found is None and server.models.ready:
            raise bad(f"no model that is served does this ({task}); see /v1/models", "model")
        if found is not None:
            return found, None
    served, adapter = server.models.find(name)
    if task not in served.tasks:
        does = ", ".join(served.tasks) or "nothing of the kind"
        raise bad(f"the model {served.name} does not do this ({task}); it does {does}", "model")
    return served, adapter


async def fill(server: Server, body: schemas.FillRequest) -> dict[str, Any]:
    """Masks filled."""
    served, adapter = _able(server, body.model, "fill")
    await asyncio.to_thread(_fits, served, body.text, "text")

    def work() -> Any:
        return stemma.fill(
            served.model, body.text, top=body.top or 5, max_new_tokens=body.max_tokens or 64, language=body.language
        )

    found = await served.direct(work, adapter=adapter)
    guesses = [[{"text": g.text, "id": g.id, "probability": g.probability} for g in row] for row in found.guesses]
    return {"model": served.name, "text": found.text, "guesses": guesses, "spans": found.spans}


def _fits(served: Served, text: str, param: str) -> None:
    """Raises Problem for a text that is longer than the model reads."""
    _read(served, [served.tokenizer.encode(text, allow_special=True)], param)


def task(word: str) -> Callable[[Server, schemas.TaskRequest], Any]:
    """What answers the route of a task: by the head of a model."""

    async def answer(server: Server, body: schemas.TaskRequest) -> dict[str, Any]:
        served, adapter = _able(server, body.model, word)
        rows = body.input if isinstance(body.input, list) else [body.input]
        found = await served.direct(predict, Tuned(served.model, served.task), rows, adapter=adapter)
        return {"model": served.name, "data": found}

    return answer


async def rerank(server: Server, body: schemas.RerankRequest) -> dict[str, Any]:
    """Documents, the best first."""
    served, adapter = server.models.find(body.model)
    scores = await served.direct(_scores, served, body.query, body.documents, adapter=adapter)
    order = sorted(range(len(scores)), key=lambda i: -scores[i])[: body.top_n]
    more = [{"document": {"text": body.documents[i]}} if body.return_documents else {} for i in order]
    found = [{"index": i, "relevance_score": scores[i]} | extra for i, extra in zip(order, more, strict=True)]
    return {"model": served.name, "results": found}


def _scores(served: Served, query: str, documents: Sequence[str]) -> list[float]:
    """By a head of one value that reads both texts, else by the cosine of vectors."""
    pair, text = getattr(served.task, "pair", None), getattr(served.task, "text", None)
    if getattr(served.task, "word", "") == "regress" and pair is not None:
        rows: list[Mapping[str, Any]] = [{text or "text": query, pair or "pair": one} for one in documents]
        return [float(row["value"]) for row in predict(Tuned(served.model, served.task), rows)]
    _read(served, [query, *documents], "documents")
    known = served.model.pooling.prompts if served.model.pooling is not None else {}
    sides = [next((n for n in names if n in known), None) for names in (("query",), ("passage", "document"))]
    asked = stemma.embed(served.model, [query], normalize=True, prompt_name=sides[0])
    told = stemma.embed(served.model, list(documents), normalize=True, prompt_name=sides[1])
    scores: list[float] = (told @ asked[0]).tolist()
    return scores


async def write(server: Server, body: schemas.WriteRequest) -> dict[str, Any]:
    """Texts that answer texts."""
    served, adapter = _able(server, body.model, "write")
    texts = [body.input] if isinstance(body.input, str) else list(body.input)
    prompts, params = await asyncio.to_thread(_asked, server, served, body, texts)
    if num_beams(served.model, params) > 1:
        found = await served.direct(lambda: stemma.generate(served.model, prompts, params), adapter=adapter)
    else:
        seeds = [row_seed(params.seed or 0, i) for i in range(len(prompts))]
        jobs = server.submit_all(served, prompts, [replace(params, seed=seed) for seed in seeds], adapter)
        async for _ in merged(jobs):
            pass
        found = [job.result() for job in jobs]
    server.used(served, sum(map(len, prompts)), sum(len(one.ids) for one in found))
    data = [{"index": i, "text": r.text or "", "finish_reason": FINISHED[r.reason]} for i, r in enumerate(found)]
    return {"model": served.name, "data": data}


def _asked(
    server: Server, served: Served, body: schemas.WriteRequest, texts: list[str]
) -> tuple[list[list[int]], SamplingParams]:
    prompts = [served.prompt(text) for text in texts]
    tokens = min(drawing.room(served, one, body.max_tokens, server.settings.max_tokens, "input") for one in prompts)
    asked = drawing.params(
        served, body, tokens, stop=drawing.stops(body.stop), forced_bos_token_id=body.target, language=body.language,
        num_beams=body.num_beams, length_penalty=body.length_penalty, temperature=body.temperature,
    )  # fmt: skip
    return prompts, asked
