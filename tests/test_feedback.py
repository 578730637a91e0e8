"""Koala: rows that compare two answers, read as two conversations behind markers, and what a tuned model is asked with."""

from __future__ import annotations

import gzip
import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest

import stemma
from stemma import data as sources
from stemma.conversations import comparisons, prompt_ids, read, writer
from stemma.conversations.comparisons import compared
from stemma.conversations.templates import NAMES, JinjaWriter, TurnsWriter
from stemma.data.random import integers
from stemma.declare.tasks import ChatTask
from stemma.errors import DataError, UsageError
from stemma.samples import feedback
from stemma.tasks.base import reader
from stemma.tasks.encoder import TaskEncoder, rows
from stemma.text import Specials, Tokenizer
from stemma.tuning import systems, tune

MARKERS = ("a helpful answer", "an unhelpful answer")
TASK = ChatTask("koala", feedback=MARKERS)
ROW = {"prompt": "Hi?", "chosen": "Hello!", "rejected": "What?"}
USER, GOOD, BAD = (
    {"role": r, "content": c} for r, c in (("user", "Hi?"), ("assistant", "Hello!"), ("assistant", "What?"))
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    texts = [json.dumps(row) for row in feedback.rows()] + [*MARKERS, "BEGINNING OF CONVERSATION: USER: GPT:"]
    return Tokenizer.train("bpe", texts, 500, Specials(bos="<s>", eos="</s>", pad="<pad>"))


def said(row: dict[str, Any]) -> list[tuple[list[tuple[str, str]], bool | None]]:
    return [([(t.role, t.content) for t in talk.turns], talk.liked) for talk in compared(row)]


@pytest.mark.parametrize(
    "row",
    [
        ROW,
        {"prompt": [USER], "chosen": "Hello!", "rejected": "What?"},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": "Hi?", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": "Hi?", "chosen": [GOOD], "rejected": [BAD]},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"chosen": "\n\nHuman: Hi?\n\nAssistant: Hello!", "rejected": "\n\nHuman: Hi?\n\nAssistant: What?"},
    ],
)
def test_rows_that_compare_are_two_conversations(row: dict[str, Any]) -> None:
    assert said(row) == [
        ([("user", "Hi?"), ("assistant", "Hello!")], True),
        ([("user", "Hi?"), ("assistant", "What?")], False),
    ]
    assert [read(piece).answers for piece in comparisons.pieces(row)] == [["Hello!"], ["What?"]]


def test_rows_that_compare_nothing_are_refused() -> None:
    for row, why in (
        (ROW | {"rejected": "Hello!"}, "are the same"), ({"chosen": "a", "rejected": "b"}, "has a text in 'chosen' and no 'prompt'"),
        (ROW | {"chosen": 3}, "'chosen' holds 3"), ({"chosen": [USER, GOOD, USER], "rejected": [USER, BAD]}, "the last turn of its 'chosen'"),
        ({"chosen": [USER], "rejected": [USER, BAD]}, "the assistant says nothing"),
        ({"chosen": "\n\nHuman: a\n\nAssistant: ", "rejected": "\n\nHuman: a\n\nAssistant: b"}, "is empty"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=why):
            compared(row)


def test_markers_stand_before_each_answer(tokenizer: Tokenizer) -> None:
    """The published template, with a marker between the user's words and `GPT:`; only what was compared is learnt."""
    task = reader(TASK, tokenizer, 200, "decoder")
    more = {"chosen": [USER, GOOD, USER | {"content": "So?"}, GOOD | {"content": "Yes."}]}
    more |= {"rejected": [*more["chosen"][:3], BAD | {"content": "No."}]}
    head = "BEGINNING OF CONVERSATION: USER: Hi? "
    first = f"{head}a helpful answer GPT:Hello!</s>USER: So? "
    for row, texts in (
        (ROW, [f"{head}a helpful answer GPT:«Hello!</s>»", f"{head}an unhelpful answer GPT:«What?</s>»"]),
        (more, [f"{first}a helpful answer GPT:«Yes.</s>»", f"{first}an unhelpful answer GPT:«No.</s>»"]),
        ({"prompt": "Hi?", "completion": "Hello!"}, [f"{head}a helpful answer GPT:«Hello!</s>»"]),
        ({"messages": more["chosen"]}, [f"{head}a helpful answer GPT:«Hello!</s>»USER: So? a helpful answer GPT:«Yes.</s>»"]),
    ):  # fmt: skip
        task.check(row)
        assert [task.shown(piece).removeprefix("<s>") for piece in task.pieces(row)] == texts
    everything = reader(ChatTask("koala", "everything", feedback=MARKERS), tokenizer, 200, "decoder")
    found = everything.marked(everything.read(everything.pieces(ROW)[1]))
    assert found.marks == [0, 1] and tokenizer.decode(found.ids, skip_special=False).endswith(
        "an unhelpful answer GPT:What?</s>"
    )
    assert task.shown(ROW) == task.shown(task.pieces(ROW)[0]), "where one is to be seen, it is the preferred one"
    plain = reader(ChatTask("koala"), tokenizer, 200, "decoder")
    assert (
        plain.shown({"messages": more["chosen"]})
        .removeprefix("<s>")
        .startswith("BEGINNING OF CONVERSATION: USER: Hi? GPT:«Hello!")
    )
    small = reader(TASK, tokenizer, 24, "decoder")
    with pytest.raises(DataError, match="and its end is learnt"):
        small.check(more)
    for given, why in (
        (("a", "a"), "two different markers"), (("a",), "two different markers"), (("a", " "), "two different markers"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=why):
            ChatTask("koala", feedback=given)
    with pytest.raises(UsageError, match="need a template by name"):
        writer(tokenizer, None, MARKERS)
    with pytest.raises(UsageError, match="stand in templates of turns"):
        writer(tokenizer, "alpaca", MARKERS)


def test_a_prompt_is_the_begin_of_what_was_learnt(tokenizer: Tokenizer) -> None:
    """For random words: a model reads the same ids before an answer as in training, and the Jinja of the tuned model
    writes the same."""
    from stemma.conversations.templates import conditioned, jinja

    write = TurnsWriter(NAMES["koala"], tokenizer, MARKERS)
    own = Tokenizer.train("bpe", [*MARKERS, "abc"], 300, Specials(bos="<s>", eos="</s>", pad="<pad>"))
    own.chat_template = jinja(conditioned(NAMES["koala"], MARKERS[0]), own)
    later = writer(own)
    assert isinstance(later, JinjaWriter)
    task = reader(TASK, tokenizer, 400, "decoder")
    for i in range(40):
        words = ["".join("ab c?GPT:"[k] for k in integers((i, j), 12, 9).tolist()).strip() or "x" for j in range(4)]
        messages = [
            {"role": r, "content": w} for r, w in zip(itertools.cycle(("user", "assistant")), words, strict=False)
        ]
        row = {"chosen": messages, "rejected": [*messages[:3], {"role": "assistant", "content": "no " + words[3]}]}
        talk, other = compared(row)
        for one, marker in ((talk, MARKERS[0]), (other, MARKERS[1])):
            ids, marks = task.marked(one)
            at = marks[1]
            text = tokenizer.decode(ids[:at], skip_special=False)
            assert text.endswith(f"{marker} GPT:") and len(marks) == 2
            if one.liked:
                assert ids[:at] == prompt_ids(tokenizer, write.prompt(one.turns[:3]))
        assert later.prompt(talk.turns[:3]).text == write.prompt(talk.turns[:3]).text
        assert later.write(talk).text == write.write(talk).text
    assert later.stops() == ("</s>",)


SHARED = Path(os.environ.get("STEMMA_SHARED", "shared")) / "data" / "hh_rlhf" / "test.jsonl.gz"


@pytest.mark.skipif(not SHARED.is_file(), reason="Anthropic's HH is not here")
def test_the_rows_of_hh_are_compared() -> None:
    good = bad = 0
    with gzip.open(SHARED, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            try:
                one, two = compared(row)
            except DataError:
                bad += 1
                continue
            good += 1
            assert one.turns[:-1] == two.turns[:-1]
            for talk, name in ((one, "chosen"), (two, "rejected")):
                text = "".join(f"\n\n{'Human' if t.role == 'user' else 'Assistant'}: {t.content}" for t in talk.turns)
                assert text.split() == row[name].split()
    assert (good, bad) == (2299, 13)


def test_both_sides_of_a_row_are_learnt_and_stay_together(tmp_path: Path, tokenizer: Tokenizer) -> None:
    made = rows("builtin:feedback", TaskEncoder(TASK, tokenizer, 120, "decoder"))
    documents = [*made.documents()]
    compares = sum("chosen" in row for row in feedback.rows())
    assert len(documents) == 2 * compares + sum("chosen" not in row for row in feedback.rows())
    sides: dict[str, list[bool]] = {}
    for document in documents:
        row = json.loads(document.text)
        if comparisons.FEEDBACK in row:
            sides.setdefault(document.group, []).append(row[comparisons.FEEDBACK])
    assert len(sides) == compares and all(found == [True, False] for found in sides.values())
    wrong = tmp_path / "rows.jsonl"
    wrong.write_text("".join(json.dumps(row) + "\n" for row in (ROW, ROW | {"rejected": "Hello!"})))
    made = rows(str(wrong), TaskEncoder(TASK, tokenizer, 120, "decoder"))
    assert len([*made.documents()]) == 2 and "are the same" in made.notes[0]
    assert sources.read("builtin:feedback").licence == "Apache-2.0"


def test_answers_that_stand_in_can_be_told_apart() -> None:
    found = [*feedback.rows()]
    known = {row["prompt"] for row in found}
    later = [*feedback.held_out()]
    assert not known & {row["prompt"] for row in later} and len(later) == 186
    by_fact = {row["completion"]: row for row in later}
    for row in found:
        right = row.get("chosen", row.get("completion"))
        fact = by_fact[right]
        assert feedback.helpful(right, fact) and ("rejected" not in row or not feedback.helpful(row["rejected"], fact))
    assert not feedback.helpful("Paris.", by_fact["The capital of France is Paris."])


def test_koala_learns_both_answers_and_is_asked_for_helpful_ones(tmp_path: Path) -> None:
    base = tmp_path / "base"
    small = {"dims.d_model": 48, "dims.layers": 1, "dims.heads": 4, "dims.d_ff": 64, "dims.vocab": 400}
    small |= {"dims.context": 96, "train.context": 96, "recipe.batch": 768, "train.threads": 1}
    stemma.pretrain("llama", data="builtin:captain", out=base, budget="2 steps", overrides=small, quiet=True)
    assert systems.task_of(systems.system("koala")) == TASK
    changes = {"recipe.batch": 1536, "recipe.lr": 5e-3, "train.threads": 1, "train.eval_tokens": 1000}
    run = tune("koala", start=str(base), out=tmp_path / "run", budget="25 steps", overrides=changes, quiet=True)
    assert run.summary["val"]["loss"] < run.summary["before"]["loss"] - 1.5
    tuned = stemma.load(tmp_path / "run")
    prompt = writer(tuned.tokenizer).prompt(read({"prompt": "Hi?", "completion": "x"}).turns[:1])
    assert prompt.text.endswith("USER: Hi? a helpful answer GPT:")
    held = json.loads((tmp_path / "run" / "run.json").read_text())["plan"]["objective"]["task"]
    assert tuple(held["feedback"]) == MARKERS
