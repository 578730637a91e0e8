"""Answers of `/v1/responses` that are kept and gone on from, and what a prompt's beginning that was known saves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

openai = pytest.importorskip("openai")

import httpx

import serving
from stemma.serve.server import Server

TALK = [{"role": "user", "content": "a leaf"}]
LONG = [{"role": "system", "content": "a leaf on a branch " * 12}, *TALK]


@pytest.fixture(scope="module")
def server() -> Server:
    return serving.server({"tiny": serving.decoder(), "long": serving.decoder(context=2048)}, store=200_000)


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Any]:
    with (
        serving.port(server) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as made,
    ):
        yield made


def asked(**more: Any) -> dict[str, Any]:
    return {"model": "long", "input": "a leaf", "max_output_tokens": 6, "temperature": 0.0, **more}


def test_a_kept_answer_is_found_until_it_is_deleted(client: Any) -> None:
    first = client.responses.create(**asked(instructions="short"))
    assert first.store and client.responses.retrieve(first.id) == first
    last = list(client.responses.create(**asked(), stream=True))[-1].response
    assert client.responses.retrieve(last.id).output_text == last.output_text
    client.responses.delete(first.id)
    for way in (client.responses.retrieve, client.responses.delete):
        with pytest.raises(openai.NotFoundError, match="was deleted"):
            way(first.id)
    assert client.responses.retrieve(last.id).id == last.id
    gone = client.responses.create(**asked(store=False))
    assert not gone.store
    with pytest.raises(openai.NotFoundError, match="never kept"):
        client.responses.retrieve(gone.id)


def test_a_conversation_goes_on_from_a_kept_answer(client: Any) -> None:
    """As if all of it had been sent; instructions are those of each request."""
    first = client.responses.create(**asked(instructions="short"))
    second = client.responses.create(**asked(input="more", previous_response_id=first.id))
    assert second.previous_response_id == first.id
    third = client.responses.create(**asked(input="and more", previous_response_id=second.id, instructions="long"))
    said = [{"role": "user", "content": "a leaf"}, *first.output, {"role": "user", "content": "more"}, *second.output]
    said.append({"role": "user", "content": "and more"})
    for items in (said, [one if isinstance(one, dict) else one.model_dump() for one in said]):
        whole = client.responses.create(**asked(input=items, instructions="long"))
        assert whole.output_text == third.output_text and whole.usage.input_tokens == third.usage.input_tokens
    client.responses.delete(first.id)  # what goes on from it has all of it
    again = client.responses.create(**asked(input="and more", previous_response_id=second.id, instructions="long"))
    assert again.output_text == third.output_text
    with pytest.raises(openai.BadRequestError) as error:
        client.responses.create(**asked(previous_response_id=first.id))
    assert (error.value.param, error.value.code) == ("previous_response_id", "previous_response_not_found")


def test_the_input_of_a_kept_answer_is_listed() -> None:
    """All items that were answered, the latest first, in pages; each has an id, also where two were given the same."""
    qwen = (Path(__file__).parent / "data" / "templates" / "qwen2-5.jinja").read_text("utf-8")
    made = serving.server({"long": serving.decoder(qwen, context=2048)}, store=200_000)
    with serving.port(made) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        call = {"type": "function_call", "call_id": "c", "name": "find", "arguments": "{}", "id": "fc_1"}
        result = {"type": "function_call_output", "call_id": "c", "output": "3"}
        said = [{"role": "user", "content": [{"type": "input_text", "text": "how many?"}]}, call, result]
        first = client.responses.create(**asked(input=said))
        twice = [{"role": "user", "content": "a", "id": "msg_1"}, {"role": "user", "content": "b", "id": "msg_1"}]
        second = client.responses.create(**asked(input=twice, previous_response_id=first.id))
        items = client.responses.input_items
        shown = list(items.list(second.id, order="asc", limit=2))  # the client turns the pages
        assert [item.type for item in shown] == ["message", "function_call", "function_call_output", *["message"] * 3]
        assert (shown[0].role, shown[0].content[0].type, shown[0].content[0].text) == (
            "user",
            "input_text",
            "how many?",
        )
        assert (shown[1].id, shown[1].call_id, shown[2].output) == ("fc_1", "c", "3")
        assert (shown[3].role, shown[3].content[0].text) == ("assistant", first.output_text)
        assert shown[4].id == "msg_1" and len({item.id for item in shown}) == 6 and all(item.id for item in shown)
        assert [item.id for item in items.list(second.id)] == [item.id for item in shown[::-1]]
        assert [item.id for item in items.list(first.id, order="asc")] == [item.id for item in shown[:3]]
        for query, param in (({"limit": 0}, "limit"), ({"after": "x"}, "after"), ({"order": "up"}, "order")):
            with pytest.raises(openai.BadRequestError) as error:
                items.list(second.id, **query)
            assert error.value.param == param
        with pytest.raises(openai.BadRequestError, match="no field that is supported"):
            items.list(second.id, extra_query={"colour": "red"})
        with pytest.raises(openai.NotFoundError, match="no response has the id"):
            items.list("resp_other")


def test_an_answer_is_kept_for_its_key() -> None:
    """For another key it is not there: neither read, nor listed, nor gone on from, nor deleted."""
    made = serving.server({"long": serving.decoder(context=2048)}, keys=("one", "two"), store=200_000)
    with serving.port(made) as url:
        one, two = (openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) for key in ("one", "two"))
        with one, two:
            whole = one.responses.create(**asked()).id
            streamed = list(one.responses.create(**asked(), stream=True))[-1].response.id
            for name in (whole, streamed):
                for way in (two.responses.retrieve, two.responses.input_items.list, two.responses.delete):
                    with pytest.raises(openai.NotFoundError, match="no response has the id"):
                        way(name)
                with pytest.raises(openai.BadRequestError) as error:
                    two.responses.create(**asked(previous_response_id=name))
                assert error.value.code == "previous_response_not_found"
                assert one.responses.retrieve(name).id == name
                assert one.responses.create(**asked(previous_response_id=name)).previous_response_id == name
                one.responses.delete(name)


def test_the_oldest_answers_go_when_their_room_is_needed(client: Any, server: Server) -> None:
    ids = [client.responses.create(**asked(input=f"leaf {i}", max_output_tokens=1)).id for i in range(40)]
    assert server.store.used <= server.store.size
    assert client.responses.retrieve(ids[-1]).id == ids[-1]
    with pytest.raises(openai.NotFoundError, match="room was needed"):
        client.responses.retrieve(ids[0])
    for name in ids[30:]:
        client.responses.delete(name)
    for kept in list(server.store._kept):
        server.store.drop(kept)
    assert server.store.used == 0


def test_an_answer_without_a_word_is_an_empty_message() -> None:
    """So that the next request finds a turn of each side. Here the model ends every text at once."""
    model = serving.decoder(context=128)
    end = model.tokenizer.eos_id

    def ends(module: Any, given: Any, logits: Any) -> Any:
        logits[..., end] = 100.0
        return logits

    hook = model.lm.register_forward_hook(ends)
    try:
        with serving.port(serving.server({"tiny": model}, store=0)) as url:
            got = httpx.post(f"{url}/v1/responses", json=asked(model="tiny")).json()
    finally:
        hook.remove()
    assert got["store"] is False and got["status"] == "completed" and got["usage"]["output_tokens"] == 1
    assert [(item["type"], item["content"][0]["text"]) for item in got["output"]] == [("message", "")]


def test_known_beginnings_of_prompts_are_counted(client: Any) -> None:
    """Pages of 32 tokens; the last token of a prompt is always read."""

    def cached(usage: Any) -> int:
        return int(usage.prompt_tokens_details.cached_tokens)

    body: dict[str, Any] = {"model": "long", "messages": LONG, "max_tokens": 2}
    first = client.chat.completions.create(**body).usage
    assert cached(first) == 0 and first.prompt_tokens > 64
    right = (first.prompt_tokens - 1) // 32 * 32
    assert cached(client.chat.completions.create(**body).usage) == right
    options = {"include_usage": True}
    last = list(client.chat.completions.create(**body, stream=True, stream_options=options))[-1]
    assert cached(last.usage) == right
    text = {"model": "long", "prompt": ["a leaf on a tree " * 12] * 2, "max_tokens": 1}
    client.completions.create(**text)
    again = client.completions.create(**text).usage
    assert cached(again) == 2 * ((again.prompt_tokens // 2 - 1) // 32 * 32)
    items = [{"role": one["role"], "content": one["content"]} for one in LONG]
    answered = client.responses.create(**asked(input=items))
    assert answered.usage.input_tokens_details.cached_tokens == right
    assert cached(client.completions.create(**text, echo=True, logprobs=0).usage) == 0  # all of it is computed


def test_a_stream_has_the_prompts_log_probabilities_first(client: Any) -> None:
    body: dict[str, Any] = {"model": "long", "prompt": ["a leaf", "a branch of"], "max_tokens": 3, "temperature": 0.0}
    body |= {"echo": True, "logprobs": 2, "n": 2}
    for tokens in (3, 0):
        whole = client.completions.create(**body | {"max_tokens": tokens})
        joined: dict[int, dict[str, Any]] = {}
        for chunk in client.completions.create(**body | {"max_tokens": tokens}, stream=True):
            (choice,) = chunk.choices
            own = joined.setdefault(choice.index, {"text": "", "told": [], "tops": [], "offsets": [], "ends": []})
            own["text"] += choice.text
            own["ends"].append(choice.finish_reason)
            if choice.logprobs is not None:
                own["told"] += choice.logprobs.token_logprobs
                own["tops"] += choice.logprobs.top_logprobs
                own["offsets"] += choice.logprobs.text_offset
        assert len(joined) == 4
        for right in whole.choices:
            own = joined[right.index]
            assert own["text"] == right.text and own["ends"][-1] == right.finish_reason and not any(own["ends"][:-1])
            assert own["told"] == pytest.approx(right.logprobs.token_logprobs, abs=1e-5)
            assert own["offsets"] == right.logprobs.text_offset and len(own["tops"]) == len(right.logprobs.top_logprobs)


def test_best_of_as_many_as_are_shown_may_be_streamed(client: Any) -> None:
    body = {"model": "tiny", "prompt": "a", "max_tokens": 2, "seed": 1}
    for more in ({"best_of": 1}, {"n": 2, "best_of": 2}):
        assert list(client.completions.create(**body, **more, stream=True))


def test_bodies_that_are_packed_are_refused(client: Any) -> None:
    url = str(client.base_url).removesuffix("/v1/")
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    got = httpx.post(f"{url}/v1/completions", content=b"{}", headers=headers)
    assert got.status_code == 415 and "gzip" in got.json()["error"]["message"]


def test_parts_of_answers_come_back_with_nulls(client: Any) -> None:
    """As clients write them that know more fields; what is not null is refused as ever."""
    message = {"role": "assistant", "content": "a", "audio": None, "later_field": None}
    talk = [*TALK, message, *TALK]
    assert client.chat.completions.create(model="tiny", messages=talk, max_tokens=1).choices
    with pytest.raises(openai.BadRequestError, match="later_field"):
        client.chat.completions.create(model="tiny", messages=[*TALK, message | {"later_field": 1}, *TALK])


def test_batches_hold_requests_of_routes_without_a_seed(tmp_path: Any) -> None:
    from stemma.serve import batches
    from stemma.serve.models import Served
    from stemma.serve.settings import Settings

    rows = [
        {"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {"model": "x", "input": "a leaf"}},
        {"custom_id": "b", "method": "POST", "url": "/v1/responses", "body": asked(model="x", temperature=1.0)},
        {"custom_id": "c", "method": "POST", "url": "/tokenize", "body": {"content": "a leaf"}},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    served = Served("tiny", serving.decoder(), None, Settings(rows=3))
    texts = []
    try:
        for name in ("one", "two"):
            out = tmp_path / name
            assert batches.run(served, batches.lines(tmp_path / "in.jsonl"), out) == {200: 3}
            found = {row["custom_id"]: row["response"]["body"] for row in map(json.loads, out.read_text().splitlines())}
            texts.append(found["b"]["output"][0]["content"][0]["text"])
    finally:
        served.close(drain=False, timeout=5)
    assert texts[0] == texts[1]
