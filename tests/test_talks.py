"""`stemma data show FILE --for MODEL`: conversations as a model would see them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import stemma
from stemma.cli import root
from stemma.conversations import read, shape_of
from stemma.errors import DataError, UsageError
from stemma.text import Specials, Tokenizer

ROWS: list[Any] = [
    {"messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "who is it?\nand where?"}, {"role": "assistant", "content": "a king"}, {"role": "user", "content": "since when"}, {"role": "assistant", "content": "long ago"}]},
    {"instruction": "Name a tree.", "instances": [{"input": "", "output": "An oak."}, {"input": "x", "output": "y"}]},
    {"conversations": [{"from": "human", "value": "x"}, {"from": "asistant", "value": "y"}]},
    {"text": "no conversation"},
    {"prompt": "a", "completion": " "},
    {"chosen": "\n\nHuman: what is it?\n\nAssistant: A pen.\n\nHuman: thanks\n\nAssistant: Sure.", "rejected": "no"},
    {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]},
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "assistant", "content": "c"}]},
    {"prompt": "word " * 400, "completion": "yes"},
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "w " * 300}, {"role": "assistant", "content": "c"}]},
    {"question_id": 81, "turns": ["Write a poem.", "Now another."]},
    [1, 2],
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("talks") / "model"
    tokenizer = Tokenizer.train("bpe", ["who is the king of the castle " * 30], 290, Specials(bos="<s>", eos="</s>"))
    tokenizer = tokenizer.grown(0, ("<|im_start|>", "<|im_end|>"))
    tokenizer.chat_template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    made = stemma.build("llama", layers=1, d_model=32, heads=4, d_ff=48, vocab=tokenizer.vocab_size, context=200)
    made.tokenizer = tokenizer
    made.save(str(path))
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "talks.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS) + "{broken\n", "utf-8")
    return path


def shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: str, width: int = 80) -> str:
    monkeypatch.setenv("COLUMNS", str(width))
    root.main(args=["data", "show", *args], prog_name="stemma", standalone_mode=False)
    return capsys.readouterr().out


def test_turn_by_turn(
    model: Path, file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shown(monkeypatch, capsys, str(file), "--for", str(model), "--rows", "2")
    assert "words that are read, the template, and «what is learnt»" in out
    assert (
        "talks.jsonl:1: 90 tokens, 12 learnt\n"
        "  reads   <|im_start|>system↵\n          be brief<|im_end|>↵\n          <|im_start|>user↵\n"
        "          who is it?↵\n          and where?<|im_end|>↵\n          <|im_start|>assistant↵\n"
        "  learns  «a king<|im_end|>»\n"
        "  reads   ↵\n          <|im_start|>user↵\n          since when<|im_end|>↵\n          <|im_start|>assistant↵\n"
        "  learns  «long ago<|im_end|>»\n"
    ) in out
    assert "  learns  «An oak.<|im_end|>»\n" in out and "A pen." not in out


def test_what_is_passed_over_is_counted_by_reason_with_its_place(
    model: Path, file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = shown(monkeypatch, capsys, str(file), "--for", str(model), "--rows", "1").splitlines()
    told = lines[next(i for i, line in enumerate(lines) if "can be learnt from" in line) :]
    assert told[0] == "4 conversations of 11 rows can be learnt from"
    assert told[1] == "1 of them lose rounds at their end, which do not fit"
    for line in (
        "1 passed over: turn 2 is the user's, and the assistant's is due; user and assistant take turns, beginning with the user (talks.jsonl:7)",
        "1 passed over: role 'asistant' is not known; roles are system, user, assistant; did you mean 'assistant'? (talks.jsonl:3)",
        "1 passed over: its fields ('text') make no conversation; known are messages (role, content), conversations (from, value), instruction with output, and pairs such as prompt and completion (talks.jsonl:4)",
        "1 passed over: turn 2 (assistant) is empty (talks.jsonl:5)",
        "1 passed over: its 'turns' are questions without answers (talks.jsonl:11)",
        "2 lines that are no rows with text were passed over: talks.jsonl:12, talks.jsonl:13; #strict=yes makes them an error",
    ):
        assert line in told, told
    assert any("its first round has" in line and "more than the 201 of a row (talks.jsonl:9)" in line for line in told)


def test_other_templates_and_losses(
    model: Path, file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shown(monkeypatch, capsys, str(file), "--for", str(model), "--rows", "1", "--template", "vicuna-v0")
    assert "\n  reads   be brief↵\n          ### Human: who is it?↵\n" in out and "  learns  «" in out
    last = shown(monkeypatch, capsys, str(file), "--for", str(model), "--rows", "1", "--loss-on", "last answer")
    assert last.count("learns") == 1 and "a king<|im_end|>" in last and "«long ago<|im_end|>»" in last
    out = shown(monkeypatch, capsys, str(file), "--for", str(model), "--rows", "1", "--template", "llama-3")
    assert "note: <|start_header_id|>, <|end_header_id|>, <|eot_id|> are no token of its tokenizer" in out
    open_ended = shown(monkeypatch, capsys, str(file), "--for", str(model), "--rows", "1", "--template", "guanaco")
    assert "«long ago</s>»" in open_ended or "« long ago</s>»" in open_ended
    narrow = shown(monkeypatch, capsys, str(file), "--for", str(model), "--rows", "1", width=40)
    assert max(len(line) for line in narrow.split("can be learnt from")[0].splitlines()) <= 60
    (row,) = json.loads(shown(monkeypatch, capsys, str(file), "--for", str(model), "--rows", "1", "--json"))
    assert row["place"] == "talks.jsonl:1" and row["learnt"] == ["a king<|im_end|>", "long ago<|im_end|>"]
    assert len(row["tokens"]) == len(row["targets"]) and sum(row["targets"]) == 12


def test_what_cannot_be_shown_is_said(
    model: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match=r"are for conversations.* where roberta is a family"):
        shown(monkeypatch, capsys, str(file), "--for", "roberta", "--template", "vicuna")
    with pytest.raises(UsageError, match="--set and --seed change the plan of a family"):
        shown(monkeypatch, capsys, str(file), "--for", str(model), "--seed", "3")
    (bad := tmp_path / "bad.jsonl").write_text('{"a": 1}\n{"a": 2}\n')
    with pytest.raises(DataError, match=r"no row can be learnt from; the first is .*bad.jsonl:1: its fields \('a'\)"):
        shown(monkeypatch, capsys, str(bad), "--for", str(model))


def test_rows_of_self_instruct_and_hh_rlhf() -> None:
    assert shape_of(ROWS[1]) == "instruction" and read(ROWS[1]).turns[1].content == "An oak."
    assert shape_of(ROWS[5]) == "transcript"
    assert [(t.role, t.content) for t in read(ROWS[5]).turns] == [
        ("user", "what is it?"), ("assistant", "A pen."), ("user", "thanks"), ("assistant", "Sure."),
    ]  # fmt: skip
