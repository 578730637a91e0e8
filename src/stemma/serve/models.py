"""The models that are served: each with its engine, its chat template and its adapters, by name."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from stemma import executor
from stemma.conversations import Writer, writer
from stemma.decoding import infill
from stemma.decoding.inputs import generates
from stemma.decoding.requests import requests
from stemma.engine import Busy, Engine
from stemma.errors import StemmaError, UsageError, did_you_mean
from stemma.nn.model import Model, count
from stemma.rewrites.adapters import use
from stemma.serve.problems import Problem, bad
from stemma.serve.settings import Settings
from stemma.text.tokenizer import Tokenizer

LOG = logging.getLogger("stemma.serve")
T = TypeVar("T")


@dataclass(frozen=True)
class Wanted:
    """A model to be served: where it is, by what name, and how it is loaded."""

    path: str
    name: str = ""
    device: str = "cpu"
    dtype: str = "float32"
    quantize: str | None = None
    adapters: Mapping[str, str] = field(default_factory=dict)

    @property
    def called(self) -> str:
        """Its name: the given one, else the last part of its path."""
        return self.name or Path(self.path).name.removesuffix(".gguf") or self.path


class Served:
    """One model. Texts go through its engine; other questions are answered one at a time by `direct`."""

    def __init__(self, name: str, model: Model, task: Any, settings: Settings, adapters: Iterable[str] = ()) -> None:
        self.name, self.model, self.task = name, model, task
        self.adapters, self.created = tuple(adapters), int(time.time())
        self.queue, self.rows, self.asked = settings.queue, settings.rows, 0
        self.engine: Engine | None = None
        if generates(model):
            self.engine = Engine(model, rows=settings.rows, queue=settings.queue, kv=settings.kv)
        self.pool = ThreadPoolExecutor(1, thread_name_prefix=f"stemma-{name}")

    @property
    def structure(self) -> str:
        """Decoder, encoder or encoder-decoder."""
        return self.model.arch.structure

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises Problem for a model without one."""
        if self.model.tokenizer is None:
            raise bad(f"the model {self.name} has no tokenizer, and this route reads text", "model")
        found: Tokenizer = self.model.tokenizer
        return found

    @cached_property
    def parameters(self) -> int:
        """How many its design has: packed matrices count as what they stand for, adapters not at all."""
        return count(self.model.arch, self.model.dims)

    @cached_property
    def writer(self) -> Writer | None:
        """By the chat template of the tokenizer; None without one."""
        try:
            return writer(self.tokenizer)
        except (StemmaError, Problem):
            return None

    @cached_property
    def stops(self) -> tuple[str, ...]:
        """The texts that end an answer by the chat template."""
        return self.writer.stops() if self.writer is not None else ()

    @property
    def infills(self) -> bool:
        """Whether it fills in the middle of a text."""
        return self.engine is not None and infill.infill_tokens(self.model) is not None

    @property
    def tasks(self) -> list[str]:
        """The routes beside OpenAI's that it answers."""
        found = ["embed"] if self.model.tokenizer is not None else []
        model, known = self.model, self.model.tokenizer
        if (
            model.lm is not None
            and known is not None
            and (known.mask_id is not None or known.sentinels or self.infills)
        ):
            found.append("fill")
        head = getattr(self.task, "head", None)
        found += [head] if head in ("classify", "tag", "answer") else []
        return [*found, "write"] if self.structure == "encoder-decoder" and self.engine is not None else found

    def writing(self) -> Engine:
        """Its engine. Raises Problem for a model that writes no text."""
        if self.engine is None:
            raise bad(f"the model {self.name} is an {self.structure} that writes no text; see /v1/models", "model")
        return self.engine

    def prompt(self, text: str | list[int]) -> list[int]:
        """The ids that a text is continued from."""
        self.writing()
        return requests(self.model, [text], None, {"max_new_tokens": 1})[0].prompt

    async def direct(self, work: Callable[..., T], *args: Any, adapter: str | None = None) -> T:
        """What `work(*args)` returns, in the model's own thread; where there are adapters, with this one of them and
        between two steps of the engine. Raises Busy where too many wait."""
        if self.asked >= self.queue:
            raise Busy(f"{self.queue} requests are waiting already: ask again later", 1.0)
        self.asked += 1
        try:
            if self.adapters and self.engine is not None:
                return await asyncio.wrap_future(self.engine.call(lambda: work(*args), adapter))
            return await asyncio.get_running_loop().run_in_executor(self.pool, self._with, adapter, work, *args)
        finally:
            self.asked -= 1

    def _with(self, adapter: str | None, work: Callable[..., T], *args: Any) -> T:
        if self.adapters:
            use(self.model, [] if adapter is None else [adapter])
        return work(*args)

    def close(self, drain: bool, timeout: float) -> None:
        """Wait for what was begun, at most `timeout` seconds."""
        if self.engine is not None:
            self.engine.close(drain, timeout)
        self.pool.shutdown(wait=drain, cancel_futures=not drain)

    def entry(self, adapter: str | None = None) -> dict[str, Any]:
        """Itself, or one of its adapters, in the list of models."""
        family = self.model.family
        facts = {
            "family": family.name if family is not None else None,
            "lineage": [f.name for f in reversed(family.lineage)] if family is not None else [],
            "structure": self.structure,
            "writes": self.engine is not None,
            "chats": self.engine is not None and self.writer is not None,
            "tasks": self.tasks,
            "context": self.model.dims.context,
            "parameters": self.parameters,
            "adapter": adapter,
        }
        name = self.name if adapter is None else f"{self.name}:{adapter}"
        parent = None if adapter is None else self.name
        own = {"id": name, "object": "model", "created": self.created, "owned_by": "stemma", "parent": parent}
        return own | {"stemma": facts}


def load(wanted: Wanted, settings: Settings) -> Served:
    """Read a model from its files. Raises StemmaError for what cannot be served."""
    from stemma.formats import kept, peft
    from stemma.formats import load as loaded
    from stemma.formats.where import model_path
    from stemma.tuning.predicting import task_of

    model = loaded(wanted.path, device=wanted.device, dtype=wanted.dtype, quantize=wanted.quantize)
    there = model_path(wanted.path)
    task = (kept.load(there) if there is not None and there.is_dir() else None) or task_of(model)
    for name, folder in wanted.adapters.items():
        peft.attach(model, folder, name)
    if wanted.adapters:
        use(model, [])  # a request names the one that takes part
    executor.of(model)  # its C is compiled now, and not when somebody waits
    return Served(wanted.called, model, task, settings, wanted.adapters)


class Models:
    """All that are served. Threads may load and drop them while others ask."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._served: dict[str, Served] = {}
        self._coming: set[str] = set()
        self._changed = threading.Lock()
        self.ready = self.ending = False

    def add(self, served: Served) -> None:
        """Serve a model that is there."""
        with self._changed:
            self._served[served.name] = served

    def load(self, wanted: Wanted, replace: bool = False) -> tuple[Served, Served | None]:
        """Load a model and serve it. Returns it, and the one that had its name and gave way (`replace`). Raises Problem
        for a name that is taken, StemmaError for what cannot be loaded."""
        name = wanted.called
        if ":" in name:
            raise UsageError(f"a colon divides a model from its adapter, so {name!r} is no name; give NAME=PATH")
        with self._changed:
            if (name in self._served and not replace) or name in self._coming:
                raise Problem(409, f"a model is called {name!r} already; give this one another name", "name")
            self._coming.add(name)
        try:
            began = time.monotonic()
            served = load(wanted, self.settings)
            with self._changed:
                before = self._served.get(name)
                self._served[name] = served
            LOG.info("%s: loaded in %.1f s", name, time.monotonic() - began)
            return served, before
        finally:
            with self._changed:
                self._coming.discard(name)

    def drop(self, name: str) -> Served:
        """Serve a model no more. What was begun with it goes on; `close` waits for that."""
        with self._changed:
            if name not in self._served:
                raise self._unknown(name)
            return self._served.pop(name)

    def all(self) -> list[Served]:
        """In the order in which they came."""
        with self._changed:
            return list(self._served.values())

    def entries(self) -> list[dict[str, Any]]:
        """The list of models with their adapters."""
        return [one.entry(adapter) for one in self.all() for adapter in (None, *one.adapters)]

    def find(self, name: str | None) -> tuple[Served, str | None]:
        """A model and the adapter that its name asks for; the first model without a name. Raises Problem."""
        with self._changed:
            if name is None and self._served:
                return next(iter(self._served.values())), None
            base, _, adapter = (name or "").partition(":")
            found = self._served.get(base)
            if found is None or (adapter and adapter not in found.adapters) or (name or "").endswith(":"):
                raise self._unknown(name)
            return found, adapter or None

    def _unknown(self, name: str | None) -> Problem:
        if not self.ready:
            return Problem(503, "models are still being loaded", code="loading", headers={"Retry-After": "2"})
        if name is None:
            return Problem(404, "no model is served", "model", "model_not_found")
        known = [
            entry for one in self._served.values() for entry in (one.name, *(f"{one.name}:{a}" for a in one.adapters))
        ]
        hint = did_you_mean(name, known) or f"; there are {', '.join(known[:20]) or 'none'}"
        return Problem(404, f"no model is called {name!r}{hint}", "model", "model_not_found")

    def cancel(self) -> None:
        """What was begun and has not ended ends without its text."""
        for one in self.all():
            if one.engine is not None:
                one.engine.cancel_all()

    def close(self) -> None:
        """Wait for what was begun, within the time that is left for it."""
        self.ending = True
        ends = [threading.Thread(target=one.close, args=(True, self.settings.drain)) for one in self.all()]
        for thread in ends:
            thread.start()
        for thread in ends:
            thread.join()
