"""The routes as a table: what answers each, and the schemas of what it reads and returns."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from stemma.serve import admin, chat, completions, feedback, responses, status, tasks
from stemma.serve.schemas import tasks as asked
from stemma.serve.schemas.chat import ChatAnswer, ChatRequest
from stemma.serve.schemas.completions import CompletionAnswer, CompletionRequest
from stemma.serve.schemas.feedback import FeedbackRequest, Kept
from stemma.serve.schemas.models import Dropped, LoadRequest, ModelEntry, ModelList, Status
from stemma.serve.schemas.responses import DeletedResponse, ItemList, ItemsQuery, ResponsesAnswer, ResponsesRequest
from stemma.serve.server import Server

READS = (400, 404, 408, 413, 415, 503)  # what a request with a body may end in
WRITES = (*READS, 429)


@dataclass(frozen=True)
class Operation:
    """A route. `run(server, body)` or, without a body, `run(server, parameter)` answers it, with a `query`
    `run(server, (parameter, query))`; `free`: without a key;
    `admin`, `feedback`: of servers that are set up so, the latter for pages of the same origin alone; `streams`:
    perhaps as events; `statuses`: what it may end in beside 200; `words`: for people."""

    method: str
    path: str
    run: Callable[[Server, Any], Coroutine[Any, Any, Any]]
    words: str
    body: type[BaseModel] | None = None
    answer: type[BaseModel] | None = None
    statuses: tuple[int, ...] = ()
    free: bool = False
    streams: bool = False
    admin: bool = False
    feedback: bool = False
    query: type[BaseModel] | None = None


OPERATIONS = (
    Operation("GET", "/v1/models", status.models, "The models that are served", None, ModelList),
    Operation("GET", "/v1/models/{model}", status.model, "One of them", None, ModelEntry, (404, 503)),
    Operation(
        "POST", "/v1/chat/completions", chat.answer, "Answer a conversation", ChatRequest, ChatAnswer, WRITES,
        streams=True,
    ),
    Operation(
        "POST", "/v1/completions", completions.answer, "Continue texts", CompletionRequest, CompletionAnswer, WRITES,
        streams=True,
    ),
    Operation(
        "POST", "/v1/responses", responses.answer, "Answer a conversation, in OpenAI's newer form",
        ResponsesRequest, ResponsesAnswer, WRITES, streams=True,
    ),
    Operation(  # before the next, whose id takes all that follows
        "GET", "/v1/responses/{response}/input_items", responses.input_items, "What a kept answer answers", None,
        ItemList, (400, 404), query=ItemsQuery,
    ),
    Operation("GET", "/v1/responses/{response}", responses.retrieve, "A kept answer", None, ResponsesAnswer, (404,)),
    Operation("DELETE", "/v1/responses/{response}", responses.delete, "Forget it", None, DeletedResponse, (404,)),
    Operation(
        "POST", "/v1/embeddings", tasks.embed, "Vectors of texts",
        asked.EmbeddingRequest, asked.EmbeddingAnswer, WRITES,
    ),
    Operation("POST", "/tokenize", tasks.tokenize, "Token ids of a text", asked.TokenizeRequest, asked.Tokens, READS),
    Operation(
        "POST", "/detokenize", tasks.detokenize, "The text of token ids",
        asked.DetokenizeRequest, asked.Detokenized, READS,
    ),
    Operation("POST", "/fill", tasks.fill, "Fill masks", asked.FillRequest, asked.FillAnswer, WRITES),
    *(
        Operation("POST", f"/{word}", tasks.task(word), words, asked.TaskRequest, asked.TaskAnswer, WRITES)
        for word, words in (
            ("classify", "Labels, or a value, of texts"),
            ("tag", "Labelled spans of texts"),
            ("answer", "Spans of contexts that answer questions"),
        )
    ),
    Operation("POST", "/rerank", tasks.rerank, "Rank documents", asked.RerankRequest, asked.RerankAnswer, WRITES),
    Operation("POST", "/write", tasks.write, "Translate, summarise", asked.WriteRequest, asked.WriteAnswer, WRITES),
    Operation("GET", "/health", status.health, "Whether the server is there", None, Status, free=True),
    Operation("GET", "/ready", status.ready, "Whether its models are", None, Status, (503,), free=True),
    Operation("GET", "/metrics", status.metrics, "Counts for Prometheus, as text"),
    Operation(
        "POST", "/admin/models", admin.load, "Load a model", LoadRequest, ModelEntry, (*READS, 409), admin=True
    ),
    Operation(
        "POST", "/feedback", feedback.keep, "Keep what somebody thinks of an answer", FeedbackRequest, Kept,
        (*READS, 507), feedback=True,
    ),
    Operation("DELETE", "/admin/models/{model}", admin.drop, "Drop a model", None, Dropped, (404, 503), admin=True),
)  # fmt: skip
