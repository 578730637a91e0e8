"""`stemma chat`, from a pipe."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

import stemma
from stemma.cli import root
from stemma.cli.chat import Typed
from stemma.conversations import Dialogue, Turn, TurnsWriter, writer
from stemma.conversations.templates import NAMES, jinja
from stemma.decoding.batch import Event
from stemma.errors import DataError, UsageError
from stemma.text import Specials, Tokenizer
from stemma.tuning import tune


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chat") / "model"
    specials = Specials(bos="<s>", eos="</s>", unk="<unk>")
    tokenizer = Tokenizer.train("bpe", ["a leaf on a branch of a tree " * 30], 275, specials)
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    model = stemma.build("llama", layers=1, d_model=32, heads=4, d_ff=48, vocab=tokenizer.vocab_size, context=256)
    model.tokenizer = tokenizer
    model.save(str(path))
    return path


def talked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], lines: str, *args: str
) -> tuple[str, str]:
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    root.main(args=["chat", *args], prog_name="stemma", standalone_mode=False)
    said = capsys.readouterr()
    return said.out, said.err


def test_from_a_pipe(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "talk.jsonl")
    drawn = ("--temperature", "1", "-n", "6", str(model))
    lines = f"one\ntwo\n/save {file}\n/undo\n/retry\n\n/save {file}\n/exit\nnever\n"
    out, err = talked(monkeypatch, capsys, lines, "--system", "be brief", *drawn)
    assert "taken back: two" in err and err.count("saved to") == 2 and out
    first, second = (json.loads(line)["messages"] for line in Path(file).read_text("utf-8").splitlines())
    assert [m["role"] for m in first] == ["system", "user", "assistant", "user", "assistant"]
    assert [m["content"] for m in first[:2]] == ["be brief", "one"] and first[3]["content"] == "two"
    assert second[:2] == first[:2] and len(second) == 3 and second[2] != first[2]  # another answer, from another seed
    again, _ = talked(monkeypatch, capsys, lines, "--system", "be brief", *drawn)
    assert again == out  # a seed gives the same answers
    lines = f"x\n/system other\ny\n/save {file}2\n"
    talked(monkeypatch, capsys, lines, *drawn)
    assert [m["content"] for m in json.loads(Path(f"{file}2").read_text())["messages"]][:2] == ["other", "y"]


def test_it_talks_as_it_was_tuned(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tuned model carries the template that it learnt, an adapter beside it: prompts and stops are of it."""
    rows = [{"prompt": f"leaf {i}", "completion": "a tree"} for i in range(12)]
    seen: list[str] = []
    prompted = Dialogue.prompt

    def prompt(dialogue: Dialogue) -> list[int]:
        seen.append(dialogue.writer.prompt([*dialogue.head, *dialogue.turns]).text)
        return prompted(dialogue)

    monkeypatch.setattr(Dialogue, "prompt", prompt)
    (data := tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, template, more in (("all", "koala", {}), ("adapter", "vicuna-v0", {"lora": 2})):
        tune("chat", start=str(model), data=str(data), out=tmp_path / name, budget="1 step", settings={"template": template}, quiet=True, **more)  # type: ignore[arg-type]  # fmt: skip
        own = stemma.load(tmp_path / name).tokenizer
        assert own.chat_template == jinja(NAMES[template], own)
        write = writer(own)
        assert isinstance(write, TurnsWriter) and write.stops() == writer(own, template).stops()
        talked(monkeypatch, capsys, "one\n", str(tmp_path / name), "-n", "2", "--temperature", "0")
        assert seen.pop() == writer(own, template).prompt((Turn("user", "one"),)).text and not seen
    assert writer(own, "vicuna-v0").stops() == ("###",)
    assert stemma.load(model).tokenizer.chat_template != own.chat_template  # the base keeps its own


def test_an_answer_is_broken_between_words(capsys: pytest.CaptureFixture[str]) -> None:
    text = "  one two three four\n\n    five sixsixsixsixsixsix seven\n\n "
    for size in (1, 3, 100):
        for width in (12, 0):
            out = Typed(width)
            for i in range(0, len(text), size):
                out.add(text[i : i + size])
            out.end()
            wide, narrow = text.strip() + "\n", "one two\nthree four\n\n    five\nsixsixsixsixsixsix\nseven\n"
            assert capsys.readouterr().out == (narrow if width else wide) and out.said.strip() == text.strip()


def test_notes_on_answers(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    _, err = talked(monkeypatch, capsys, "one\n/retry\n", str(model), "-n", "3", "--temperature", "0")
    assert "(cut here; -n gives it more tokens)" in err
    assert "(the same answer again: --temperature 0.8 draws others)" in err
    monkeypatch.setattr("stemma.decoding.stream", lambda *args, **more: iter([Event(0, 1, 0.0, " ", "eos")]))
    _, err = talked(monkeypatch, capsys, "one\n", str(model))
    assert "(it answers nothing; taken back: one)" in err
    with pytest.raises(UsageError, match="nothing was said yet"):  # so nothing is saved that nobody said
        talked(monkeypatch, capsys, f"/save {tmp_path / 'x'}\n", str(model))
    assert not (tmp_path / "x").exists()


def test_what_cannot_be_is_said(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for lines, args, words, kind in (
        ("/sav x", (), "/sav is no command; did you mean '/save'", UsageError),
        ("/undo", (), "nothing was said yet", UsageError),
        ("/save", (), "/save needs the name of a file", UsageError),
        ("word " * 400, (), "fit in front of an answer", DataError),
        ("x", ("--template", "vicunna"), "no chat template is called 'vicunna'", UsageError),
    ):
        with pytest.raises(kind, match=words):
            talked(monkeypatch, capsys, lines, str(model), "-n", "4", *args)
    bert = stemma.build("bert", layers=1, d_model=32, heads=4, d_ff=48, vocab=300)
    bert.tokenizer = stemma.load(model).tokenizer
    bert.save(str(tmp_path / "bert"))
    with pytest.raises(UsageError, match="is an encoder, which writes no answers"):
        talked(monkeypatch, capsys, "x", str(tmp_path / "bert"))
