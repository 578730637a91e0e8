"""Who continues prompts: a model on this machine, or an address that speaks OpenAI's protocol."""

from __future__ import annotations

import contextlib
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from typing import Any, Protocol

from stemma.conversations import Text, Turn, Writer, prompt_ids, templates
from stemma.errors import DataError, ResourceError, UsageError, brief

TRIES = 6  # of a request that an address refuses for now
RETRIED = (408, 409, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Sampling:
    """How continuations are drawn: at most `tokens` each, up to one of `stops`, which is cut off."""

    tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stops: tuple[str, ...] = ()


@dataclass(frozen=True)
class Continuation:
    """What follows a prompt. `whole`: it came to an end; else it was cut at the most tokens. `fits`: False where the
    prompt has more tokens than the model reads, so that nothing follows."""

    text: str
    whole: bool
    fits: bool = True


@dataclass(frozen=True)
class Ask:
    """A conversation whose next answer is asked for."""

    turns: tuple[Turn, ...]
    how: Sampling
    seed: int = 0


Answered = Iterator[list[tuple[int, Continuation]]]


class TextWriter(Protocol):
    """Continues prompts. The same prompts with the same seeds give the same texts, as far as the writer can."""

    @property
    def name(self) -> str: ...
    def write(self, prompts: Sequence[str], how: Sampling, seeds: Sequence[int]) -> list[Continuation]: ...


class Answerer(Protocol):
    """Answers conversations. `talks`: the turns so far of each, the user's last."""

    @property
    def name(self) -> str: ...
    def answer(self, talks: Sequence[Sequence[Turn]], how: Sampling, seeds: Sequence[int]) -> list[Continuation]: ...


class ChatWriter(Protocol):
    """Answers conversations as they come: groups of (number, answer) that were answered together."""

    @property
    def name(self) -> str: ...
    def answers(self, asked: Sequence[Ask]) -> Answered: ...


def prompt_of(write: Writer, turns: Sequence[Turn]) -> Text:
    """The prompt of a conversation. Where the template has no place for its system message, that stands before the
    first user's words."""
    if not turns or turns[0].role != "system":
        return write.prompt(turns)
    with contextlib.suppress(DataError):
        made = write.prompt(turns)
        if turns[0].content.strip() in made.text:
            return made
    first = Turn("user", f"{turns[0].content}\n\n{turns[1].content}")
    return write.prompt([first, *turns[2:]])


class LocalWriter:
    """A model that was loaded here. `batch`: prompts at a time. A prompt of text loses its beginning where the context
    has no room for it and the new tokens; such a conversation is not answered. `template`: of conversations, where it
    is not the model's own."""

    def __init__(self, model: Any, name: str, batch: int = 8, template: str | None = None) -> None:
        if model.tokenizer is None:
            raise UsageError(f"{name} has no tokenizer, and writing needs one")
        self.model, self.name, self.batch, self.template = model, name, batch, template

    def write(self, prompts: Sequence[str], how: Sampling, seeds: Sequence[int]) -> list[Continuation]:
        """One continuation a prompt."""
        return self._continued([self.model.tokenizer.encode(prompt) for prompt in prompts], how, seeds)

    def answer(self, talks: Sequence[Sequence[Turn]], how: Sampling, seeds: Sequence[int]) -> list[Continuation]:
        """The assistant's next words in each conversation; nothing (`fits`) for one that has no room beside its new
        tokens. Raises UsageError for a model without a chat template."""
        write, context = templates.writer(self.model.tokenizer, self.template), self.model.dims.context
        how = replace(how, stops=tuple(dict.fromkeys([*how.stops, *write.stops()])))
        ids = [prompt_ids(self.model.tokenizer, prompt_of(write, list(talk))) for talk in talks]
        fits = [i for i, one in enumerate(ids) if len(one) + min(how.tokens, context // 2) <= context]
        answers = dict.fromkeys(range(len(ids)), Continuation("", False, fits=False))
        if fits:
            made = self._continued([ids[i] for i in fits], how, [seeds[i] for i in fits])
            answers |= dict(zip(fits, made, strict=True))
        return list(answers.values())

    def answers(self, asked: Sequence[Ask]) -> Answered:
        """The next answer of each conversation. One that has no room beside its new tokens is not answered. Which
        conversations are read together depends on their order alone. Raises UsageError as `answer` does."""
        if (kind := self.model.arch.structure) != "decoder":
            raise UsageError(f"{self.name} is an {kind}, and conversations are answered by decoders")
        write, context = templates.writer(self.model.tokenizer, self.template), self.model.dims.context
        for first in range(0, len(asked), self.batch):
            some = asked[first : first + self.batch]
            ids = [prompt_ids(self.model.tokenizer, prompt_of(write, one.turns)) for one in some]
            tokens = [min(one.how.tokens, context // 2) for one in some]
            fits = [i for i in range(len(some)) if len(ids[i]) + tokens[i] <= context]
            answers = dict.fromkeys(range(len(some)), Continuation("", False, fits=False))
            if fits:
                made = self._drawn([ids[i] for i in fits], [some[i] for i in fits], write.stops())
                answers |= dict(zip(fits, made, strict=True))
            yield [(first + i, answer) for i, answer in answers.items()]

    def _drawn(self, ids: Sequence[list[int]], asked: Sequence[Ask], stops: Sequence[str]) -> list[Continuation]:
        from stemma.decoding import generate
        from stemma.decoding.sampling import SamplingParams

        most = self.model.dims.context // 2
        params = [
            SamplingParams(
                max_new_tokens=min(how.tokens, most), temperature=how.temperature, top_k=0, top_p=how.top_p,
                stop=tuple(dict.fromkeys([*how.stops, *stops])), num_beams=1, seed=seed,
            )
            for how, seed in ((one.how, one.seed) for one in asked)
        ]  # fmt: skip
        found = generate(self.model, ids, params)
        return [Continuation((one.text or "").strip(), one.reason != "length") for one in found]

    def _continued(self, ids: Sequence[list[int]], how: Sampling, seeds: Sequence[int]) -> list[Continuation]:
        from stemma.decoding import generate
        from stemma.decoding.sampling import SamplingParams

        context = self.model.dims.context
        tokens = min(how.tokens, context // 2)
        drawn = SamplingParams(
            max_new_tokens=tokens, temperature=how.temperature, top_k=0, top_p=how.top_p, stop=how.stops, num_beams=1
        )
        params = [replace(drawn, seed=seed) for seed in seeds]
        found = generate(self.model, [one[-(context - tokens) :] for one in ids], params, batch=self.batch)
        return [Continuation(result.text or "", result.reason != "length") for result in found]


class AddressWriter:
    """An address with OpenAI's `/completions` and `/chat/completions`, such as `http://localhost:8000/v1`; `model` is
    the name that it knows. `parallel`: requests at a time. The key, if one is needed, is in OPENAI_API_KEY. A request
    that is refused for now is made again after a while."""

    def __init__(self, url: str, model: str, parallel: int = 4, wait: float = 1.0) -> None:
        self.url, self.model, self.parallel, self.wait = url.rstrip("/"), model, parallel, wait
        self.name = f"{model} at {self.url}"

    def write(self, prompts: Sequence[str], how: Sampling, seeds: Sequence[int]) -> list[Continuation]:
        """One continuation a prompt. Raises ResourceError where the address does not answer as it should."""
        return self._all("completions", [{"prompt": prompt} for prompt in prompts], how, seeds)

    def answer(self, talks: Sequence[Sequence[Turn]], how: Sampling, seeds: Sequence[int]) -> list[Continuation]:
        """The assistant's next words in each conversation. Raises ResourceError as `write` does."""
        asked = [{"messages": [{"role": turn.role, "content": turn.content} for turn in talk]} for talk in talks]
        return self._all("chat/completions", asked, how, seeds)

    def _all(
        self, path: str, asked: Sequence[dict[str, Any]], how: Sampling, seeds: Sequence[int]
    ) -> list[Continuation]:
        with ThreadPoolExecutor(self.parallel) as pool:
            return list(pool.map(lambda pair: self._one(path, pair[0], how, pair[1]), zip(asked, seeds, strict=True)))

    def answers(self, asked: Sequence[Ask]) -> Answered:
        """The next answer of each conversation as soon as it is there. Raises ResourceError as `write` does, once the
        requests that were on their way have ended."""
        failed: BaseException | None = None
        with ThreadPoolExecutor(self.parallel) as pool:
            waiting: dict[Future[Continuation], int] = {
                pool.submit(self._answer, one): i for i, one in enumerate(asked)
            }
            try:
                for done in as_completed(waiting):
                    if done.cancelled():
                        continue
                    if (error := done.exception()) is None:
                        yield [(waiting[done], done.result())]
                    elif failed is None:
                        failed = error
                        for other in waiting:
                            other.cancel()
            finally:
                for other in waiting:
                    other.cancel()
        if failed is not None:
            raise failed

    def _answer(self, one: Ask) -> Continuation:
        messages = [{"role": turn.role, "content": turn.content} for turn in one.turns]
        found = self._one("chat/completions", {"messages": messages}, one.how, one.seed)
        return replace(found, text=found.text.strip())

    def _one(self, path: str, what: dict[str, Any], how: Sampling, seed: int) -> Continuation:
        asked = {
            "model": self.model, **what, "max_tokens": how.tokens, "temperature": how.temperature,
            "top_p": how.top_p, "stop": list(how.stops) or None, "seed": seed % 2**31,
        }  # fmt: skip
        answer = self.post(path, asked)
        try:
            choice = answer["choices"][0]
            text = choice["message"]["content"] if "messages" in what else choice["text"]
            return Continuation(str(text or ""), choice.get("finish_reason") != "length")
        except (KeyError, IndexError, TypeError, AttributeError):
            raise ResourceError(f"{self.url} answered without a completion: {brief(answer)}") from None

    def get(self, path: str) -> Any:
        """What stands at a path of the address. Raises ResourceError where it does not answer as it should."""
        return self._asked(path, None)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """What the address answers to a request. Raises ResourceError where it does not answer as it should."""
        return self._asked(path, json.dumps({k: v for k, v in body.items() if v is not None}).encode())

    def _asked(self, path: str, raw: bytes | None) -> Any:
        key = os.environ.get("OPENAI_API_KEY")
        head = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        why = ""
        for number in range(TRIES):
            if number:
                time.sleep(self.wait * 2 ** (number - 1))
            try:
                request = urllib.request.Request(f"{self.url}/{path}", raw, head)
                with urllib.request.urlopen(request, timeout=600) as answer:
                    return json.loads(answer.read() or b"null")
            except urllib.error.HTTPError as error:
                why = f"{error.code} {error.reason}: {brief(error.read(300).decode('utf-8', 'replace'))}"
                if error.code not in RETRIED:
                    break
            except (OSError, ValueError) as error:
                why = str(getattr(error, "reason", error))
        raise ResourceError(f"{self.url}/{path} does not answer: {why}; what was made so far is kept")


def address(where: str) -> AddressWriter | None:
    """The writer at `URL#MODEL`; None where `where` is no address. Raises UsageError for one without a model's name."""
    if not where.startswith(("http://", "https://")):
        return None
    url, _, model = where.partition("#")
    if not model:
        raise UsageError(f"{where} may have several models; name one behind a #, as in {url}#MODEL")
    return AddressWriter(url, model)
