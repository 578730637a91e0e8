"""Calls of tools in what models write, in each published form, letter by letter, and in conversations."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

openai = pytest.importorskip("openai")

import serving
from stemma.serve.calls import GORILLA, HERMES, LLAMA, MISTRAL, Call, Form, Reader, Words, form_of

TEMPLATES = Path(__file__).parent / "data" / "templates"
NAMES = ("find", "sum.up")
A = '{"name": "find", "%s": {"x": "a, {b} \\"c\\"", "deep": [{"y": [1, 2]}]}}'
B = '{"%s": {}, "name": "sum.up"}'
FIRST, SECOND = {"x": 'a, {b} "c"', "deep": [{"y": [1, 2]}]}, {}
Said = tuple[str, list[tuple[str, Any]]]


def read(form: Form, text: str, size: int, **more: Any) -> Said:
    """The words, and the calls with their arguments, of a text that comes in pieces."""
    reader, words, calls = Reader(form, NAMES, **more), "", list[list[Any]]()
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    for i, piece in enumerate([*pieces, ""]):
        for part in reader.take(piece, i == len(pieces)):
            if isinstance(part, Words):
                words += part.text
            elif part.name is not None:
                assert part.index == len(calls) and part.id and not part.arguments
                calls.append([part.name, ""])
            else:
                calls[part.index][1] += part.arguments
    return words, [(name, json.loads(arguments)) for name, arguments in calls]


TEXTS: list[tuple[str, Form, str, Said]] = [
    ("words alone", HERMES, "No call: a < b, <tool>.", ("No call: a < b, <tool>.", [])),
    ("one", HERMES, f"<tool_call>\n{A % 'arguments'}\n</tool_call>", ("", [("find", FIRST)])),
    ("two, behind words", HERMES, f"Well.\n<tool_call>\n{A % 'arguments'}\n</tool_call>\n<tool_call>\n{B % 'arguments'}\n</tool_call>",
     ("Well.", [("find", FIRST), ("sum.up", SECOND)])),
    ("no arguments", HERMES, '<tool_call>\n{"name": "find"}\n</tool_call>', ("", [("find", {})])),
    ("arguments as a text", HERMES, '<tool_call>{"name": "find", "arguments": "{\\"x\\": 1}"}</tool_call>', ("", [("find", {"x": 1})])),
    ("another tool", HERMES, '<tool_call>\n{"name": "steal", "arguments": {}}</tool_call>', ('<tool_call>\n{"name": "steal"', [])),
    ("no JSON", HERMES, "<tool_call>\nhello</tool_call>", ("<tool_call>\nhello</tool_call>", [])),
    ("cut", HERMES, '<tool_call>\n{"na', ('<tool_call>\n{"na', [])),
    ("half a mark", HERMES, "a <tool_", ("a <tool_", [])),
    ("one", LLAMA, A % "parameters", ("", [("find", FIRST)])),
    ("behind the mark", LLAMA, f"<|python_tag|>{A % 'parameters'}; {B % 'parameters'}", ("", [("find", FIRST), ("sum.up", SECOND)])),
    ("JSON that is no call", LLAMA, '{"city": "Ulm"}', ('{"city": "Ulm"}', [])),
    ("braces in words", LLAMA, 'Write {"name": "find"}.', ('Write {"name": "find"}.', [])),
    ("a list", MISTRAL, f"[TOOL_CALLS] [{A % 'arguments'}, {B % 'arguments'}]", ("", [("find", FIRST), ("sum.up", SECOND)])),
    ("a mark without text", MISTRAL, f"[{A % 'arguments'}]", ("", [("find", FIRST)])),
    ("a list of words", MISTRAL, "[1, 2]", ("[1, 2]", [])),
    ("an answer with a call", GORILLA, "<<<domain>>>: X\n<<<api_call>>>: find('a', x=[1, 2])\n<<<api_provider>>>: Y", ("", [("find", {"x": [1, 2], "args": ["a"]})])),
    ("a call alone", GORILLA, "<<function>>sum.up()", ("", [("sum.up", {})])),
    ("code", GORILLA, "find(__import__('os'))", ("find(__import__('os'))", [])),
    ("words", GORILLA, "I cannot.", ("I cannot.", [])),
]  # fmt: skip


@pytest.mark.parametrize(("form", "text", "said"), [t[1:] for t in TEXTS], ids=[f"{t[1].mark}{t[0]}" for t in TEXTS])
def test_calls_are_found_however_they_come(form: Form, text: str, said: Said) -> None:
    for size in (1, 2, 3, 7, 1000):
        words, calls = read(form, text, size)
        assert calls == said[1], size
        assert words == said[0] or (words.startswith(said[0]) and "steal" in text), size


def test_arguments_come_as_they_are_written() -> None:
    reader, parts = Reader(HERMES, NAMES), []
    for letter in f"<tool_call>{A % 'arguments'}</tool_call>":
        parts += reader.take(letter)
    assert isinstance(parts[0], Call) and parts[0].name == "find" and len(parts) > 20


def test_one_call_is_enough_where_one_is_wanted() -> None:
    text = f"<tool_call>{A % 'arguments'}</tool_call><tool_call>{B % 'arguments'}</tool_call>"
    assert read(HERMES, text, 3, most=1) == ("", [("find", FIRST)])
    assert read(HERMES, A % "arguments", 3, begun=True, most=1) == ("", [("find", FIRST)])


def test_forced_calls_leave_no_words_wherever_they_are_cut() -> None:
    text = f"{A % 'arguments'}\n</tool_call>\n<tool_call>\n{B % 'arguments'}\n</tool_call>"
    for cut in range(len(text) + 1):
        words, calls = "", []
        reader = Reader(HERMES, NAMES, begun=True)
        for part in reader.take(text[:cut], last=True):
            words += part.text if isinstance(part, Words) else ""
            calls += [part.name] if isinstance(part, Call) and part.name is not None else []
        assert words == "" and len(calls) <= 2, cut
    assert len(calls) == 2


def test_forms_are_known_by_the_template() -> None:
    from stemma.conversations import writer

    for name, form in (("qwen2-5", HERMES), ("qwen3", HERMES), ("mistral-v3", MISTRAL), ("smollm2", None)):
        own = serving.tokenizer((TEMPLATES / f"{name}.jinja").read_text("utf-8"))
        assert form_of(writer(own), own) == form, name
    own = serving.tokenizer(None)
    assert form_of(writer(own, "gorilla"), own) == GORILLA and form_of(writer(own, "vicuna"), own) is None


# ---------------------------------------------------------------- by the server

QWEN = (TEMPLATES / "qwen2-5.jinja").read_text("utf-8")
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "find", "description": "Find a leaf.", "parameters": {
        "type": "object", "properties": {"tree": {"enum": ["oak", "elm"]}, "n": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["tree", "n"], "additionalProperties": False}}},
    {"type": "function", "function": {"name": "stop", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}}},
]  # fmt: skip
TALK: list[Any] = [{"role": "user", "content": "find a leaf"}]


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with (
        serving.port(serving.server({"qwen": serving.decoder(QWEN, context=2048), "none": serving.decoder()})) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as made,
    ):
        yield made


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "find"}}])
def test_a_call_that_has_to_come(client: Any, choice: Any) -> None:
    pytest.importorskip("llguidance")
    asked: dict[str, Any] = {"model": "qwen", "messages": TALK, "tools": TOOLS, "tool_choice": choice, "seed": 4}
    asked["parallel_tool_calls"] = False
    got = client.chat.completions.create(**asked).choices[0]
    (call,) = got.message.tool_calls
    assert got.finish_reason == "tool_calls" and got.message.content is None and call.id.startswith("call_")
    arguments = json.loads(call.function.arguments)
    assert (
        arguments["tree"] in ("oak", "elm") and 0 <= arguments["n"] <= 9
        if call.function.name == "find"
        else arguments == {}
    )
    joined: dict[str, Any] = {"name": "", "arguments": "", "ids": []}
    ends = []
    for chunk in client.chat.completions.create(**asked, stream=True):
        ends.append(chunk.choices[0].finish_reason)
        assert not chunk.choices[0].delta.content
        for part in chunk.choices[0].delta.tool_calls or ():
            assert part.index == 0
            joined["ids"] += [part.id] if part.id else []
            joined["name"] += part.function.name or ""
            joined["arguments"] += part.function.arguments or ""
    assert (joined["name"], joined["arguments"]) == (call.function.name, call.function.arguments) and len(
        joined["ids"]
    ) == 1
    assert ends[-1] == "tool_calls" and not any(ends[:-1])


MISTRAL_3 = (TEMPLATES / "mistral-v3.jinja").read_text("utf-8")
MARKS = ("[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]")


@pytest.mark.parametrize(
    ("template", "tokens"),
    [(QWEN, ()), (QWEN, ("<tool_call>", "</tool_call>")), (MISTRAL_3, MARKS)],
    ids=["text", "special tokens", "a list"],
)
def test_several_calls_that_have_to_come(template: str, tokens: tuple[str, ...]) -> None:
    """Each is one of the tools', whole, and with an index of its own in a stream."""
    pytest.importorskip("llguidance")
    model = serving.decoder(template, tokens=tokens, context=2048)
    with (
        serving.port(serving.server({"m": model})) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as asker,
    ):
        asked: dict[str, Any] = {"model": "m", "messages": TALK, "tools": TOOLS, "tool_choice": "required"}
        numbers, bias = set(), {str(model.tokenizer.eos_id): -2.0}
        for seed in range(6):
            asked |= {"seed": seed, "max_tokens": 300, "logit_bias": bias}
            got = asker.chat.completions.create(**asked).choices[0]
            if got.finish_reason == "length":  # a model without sense may go on and on
                continue
            assert got.finish_reason == "tool_calls" and got.message.content is None
            calls = [(call.function.name, json.loads(call.function.arguments)) for call in got.message.tool_calls]
            assert all(given == {} if name == "stop" else {*given} == {"tree", "n"} for name, given in calls)
            numbers.add(len(calls))
            joined: dict[int, list[str]] = {}
            for chunk in asker.chat.completions.create(**asked, stream=True):
                for part in chunk.choices[0].delta.tool_calls or ():
                    own = joined.setdefault(part.index, ["", ""])
                    own[0] += part.function.name or ""
                    own[1] += part.function.arguments or ""
            assert [(name, json.loads(text)) for _, (name, text) in sorted(joined.items())] == calls
        assert max(numbers) > 1, numbers
        alone = asker.chat.completions.create(**asked, parallel_tool_calls=False).choices[0].message
        assert len(alone.tool_calls) == 1


def test_a_conversation_with_calls_and_their_results(client: Any) -> None:
    """The template writes them; names of special tokens in a result are ordinary text."""
    call = {"id": "call_1", "type": "function", "function": {"name": "find", "arguments": '{"tree": "oak", "n": 1}'}}
    talk = [*TALK, {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": "<|im_end|> a leaf"}]  # fmt: skip
    got = client.chat.completions.create(model="qwen", messages=talk, tools=TOOLS, max_tokens=4)
    own = serving.tokenizer(QWEN)
    messages = [*TALK, {"role": "assistant", "content": "", "tool_calls": [call | {"function": {"name": "find", "arguments": {"tree": "oak", "n": 1}}}]},
                {"role": "tool", "content": "@@"}]  # fmt: skip
    text = own.apply_chat(messages, tools=TOOLS)
    assert (
        "<tool_response>\n@@\n</tool_response>" in text
        and '<tool_call>\n{"name": "find", "arguments": {"tree": "oak"' in text
    )
    before, after = text.split("@@")
    ids = [
        *own.encode(before, add_special=False, allow_special=True), *own.encode_continuation("<|im_end|> a leaf"),
        *own.encode(after, add_special=False, allow_special=True),
    ]  # fmt: skip
    assert abs(got.usage.prompt_tokens - len(ids)) <= 2  # pieces beside each other may join


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("no place for tools", {"model": "none", "tools": TOOLS}, "no place for tools"),
    ("a call without tools", {"tool_choice": "required"}, "there are no tools"),
    ("an unknown tool", {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}}, "none of the tools"),
    ("twice", {"tools": [TOOLS[1], TOOLS[1]]}, "the same name"),
    ("a form and tools", {"tools": TOOLS, "response_format": {"type": "json_object"}}, "calls no tools"),
    ("bad arguments", {"messages": [*TALK, {"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": {"name": "find", "arguments": "["}}]}]}, "JSON object"),
]  # fmt: skip


@pytest.mark.parametrize(("more", "words"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_wrong_tools(client: Any, more: dict[str, Any], words: str) -> None:
    with pytest.raises(openai.BadRequestError, match=words):
        client.chat.completions.create(**({"model": "qwen", "messages": TALK, "max_tokens": 2} | more))
