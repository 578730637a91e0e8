"""Final answers in texts, the vote of several samples against an independent count, and conversations as rows to answer."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import stemma
from stemma.cli import root
from stemma.conversations import shapes
from stemma.data import random as draw
from stemma.declare.tasks import AnswerTask, ChatTask, HardPrompt
from stemma.decoding.sampling import row_seed
from stemma.errors import DataError, UsageError
from stemma.tasks.finals import Letter, Number, Pattern, final, vote
from stemma.tuning import predict, tune
from stemma.tuning.decoding import Decoding
from stemma.tuning.predicting import HeadPredictor, Tuned, measured, scored_rows, tuned
from test_tune import decoder, tokenizer, written  # noqa: F401

FOUND = [
    ("number", "She makes 9 * 2 = $18 every day.\n#### 18", "18"),
    ("number", "It costs 1,250.50 dollars.", "1250.5"),
    ("number", "From 5-3 it is 2", "2"),
    ("number", "It is -7.", "-7"),
    ("number", "007 and 3.00", "3"),
    ("number", "Either 1,2 or 12,34", "34"),
    ("number", "It is 0.50 of H2O", "0.5"),
    ("number", "-0.0", "0"),
    ("number", "None.", None),
    ("letter", "Not (A), so the answer is (c).", "C"),
    ("letter", "The answer is B because A is wrong", "B"),
    ("letter", "Answer: D", "D"),
    ("letter", "b) a knee", "B"),
    ("letter", "C", "C"),
    ("letter", "A knee is no organ", None),
    ("text", "  heart \n", "heart"),
    ("text", "  ", None),
    (r"#### (\S+)", "#### 3\n#### 4", "4"),
    (r"yes|no", "no, or yes", "yes"),
    (r"a(b)?", "a", None),
]


@pytest.mark.parametrize(("rule", "text", "answer"), FOUND)
def test_a_final_answer_is_found(rule: str, text: str, answer: str | None) -> None:
    assert final(rule).find(text) == answer


def test_rules_are_values() -> None:
    assert final("number") == Number() and final(Letter("AB")) == Letter("AB") and final("x+") == Pattern("x+")
    assert Letter("AB").find("(C) or (B)") == "B"
    for wrong, why in (
        (lambda: final("("), "'\\(' is no regular expression"),
        (lambda: Letter("A1"), "must be letters"),
    ):
        with pytest.raises(UsageError, match=why):
            wrong()  # type: ignore[no-untyped-call]


def plurality(answers: list[str | None]) -> str | None:
    """The most frequent answer, the first of them, by its definition."""
    best, most = None, 0
    for i, answer in enumerate(answers):
        times = sum(other == answer for other in answers)
        if answer is not None and answer not in answers[:i] and times > most:
            best, most = answer, times
    return best


def test_the_plurality_wins_and_the_first_of_equals() -> None:
    for i in range(300):
        numbers = draw.integers((11, i), 1 + i % 12, 4).tolist()
        texts = ["nothing" if n == 3 else f"It is {n}." for n in numbers]
        found, own = vote(texts, Number()), [None if n == 3 else str(n) for n in numbers]
        assert found.answer == plurality(own) and found.votes == own.count(found.answer) * (found.answer is not None)
        assert found.counts == Counter(one for one in own if one is not None)
        assert found.text == (texts[0] if found.answer is None else texts[own.index(found.answer)])
    assert vote(["It is 2", "It is 1", "It is 1", "It is 2"], Number()).answer == "2"
    assert vote([], Number()).answer is None


def test_what_cannot_be_voted_on_is_refused() -> None:
    for more, why in (
        ({"samples": 3}, "put to the vote by their final answers: say how one is found"),
        ({"samples": 3, "final": "number", "temperature": 0.0}, "3 samples at temperature 0.0 are one and the same"),
        ({"samples": 0}, "samples must be at least 1"),
    ):
        with pytest.raises(UsageError, match=why):
            Decoding(**more)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="answered by a head, which draws no samples"):
        HeadPredictor(None, AnswerTask(), Decoding(temperature=0.5))  # type: ignore[arg-type]
    assert Decoding(seed=5).plain and not Decoding(tokens=5).plain
    assert Decoding(samples=11, final="number").heat == 0.7 and Decoding().heat == 0.0


# ---------------------------------------------------------------- rows that are answered


def test_the_question_of_a_row() -> None:
    """With its answer or without, in every shape."""
    asks: list[tuple[dict[str, Any], list[str]]] = [
        ({"question": "a", "answer": "b"}, ["a"]),
        ({"question": "a"}, ["a"]),
        ({"system": "s", "prompt": "a"}, ["s", "a"]),
        ({"instruction": "a", "input": "i"}, ["a\n\ni"]),
        ({"instruction": "a", "output": "b"}, ["a"]),
        ({"messages": [{"role": "user", "content": "a"}]}, ["a"]),
        (
            {"messages": [{"role": r, "content": c} for r, c in zip(["user", "assistant"] * 2, "abcd", strict=True)]},
            list("abc"),
        ),
        ({"conversations": [{"from": "human", "value": "a"}]}, ["a"]),
    ]
    for row, turns in asks:
        assert [turn.content for turn in shapes.question(row).turns] == turns, row
    for row, why in (({"body": "a"}, "make no conversation"), ({"messages": []}, "make no conversation|says nothing")):
        with pytest.raises(DataError, match=why):
            shapes.question(row)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, decoder: Path) -> Path:  # noqa: F811
    """A model that was tuned to conversations, in the prompt of their task."""
    home = tmp_path_factory.mktemp("run")
    rows = [{"question": f"who {i % 4}", "answer": f"it is {i % 4}", "task": ("a", "b")[i % 2]} for i in range(32)]
    prompts = (HardPrompt("red {question} :", "a"), HardPrompt("sea ", "b"))
    more: dict[str, Any] = {"settings": {"template": "plain", "prompts": prompts}, "budget": "40 steps", "quiet": True}
    changes = {"recipe.lr": 5e-3, "recipe.batch": 200}
    tune(
        "chat", start=str(decoder), data=written(home / "rows.jsonl", rows), out=home / "run", overrides=changes, **more
    )
    return home / "run"


def test_samples_are_those_of_their_seeds(run: Path) -> None:
    """Each as `generate` draws it alone; the vote is that of an independent count; more samples change none."""
    one = tuned(run)
    assert isinstance(one.task, ChatTask) and [p.task for p in one.task.prompts] == ["a", "b"]
    rows = [
        {"question": "who 1", "task": "a"},
        {"question": "who 2", "task": "b"},
        {"question": "long ago", "task": "b"},
    ]
    how = Decoding(samples=5, temperature=3.0, final=r"\w+", seed=4, tokens=6)
    found = predict(one, rows, how=how)
    for i, (row, text) in enumerate(zip(rows, ("red who 1 :", "sea who 2", "sea long ago"), strict=True)):
        ids = one.model.tokenizer.encode(text)
        seeds = [row_seed(row_seed(4, i), j) for j in range(5)]
        drawn = [
            stemma.generate(one.model, [ids], max_new_tokens=6, temperature=3.0, seed=seed)[0].text or ""
            for seed in seeds
        ]
        finals = [words[-1] if (words := re.findall(r"\w+", text)) else None for text in drawn]
        assert found[i]["answer"] == plurality(finals), row
        assert found[i]["votes"] == Counter(one for one in finals if one is not None)
    assert len({json.dumps(one) for one in found}) == 3
    more = predict(one, rows[:1], how=Decoding(samples=9, temperature=3.0, final=r"\w+", seed=4, tokens=6))
    assert not Counter(found[0]["votes"]) - Counter(more[0]["votes"]) and sum(more[0]["votes"].values()) > 5
    assert predict(one, rows[:1]) == [{"text": found_text(one, "red who 1 :")}]


def test_options_are_ranked_in_the_prompt_of_their_task(run: Path) -> None:
    one = tuned(run)
    assert isinstance(one.task, ChatTask)
    bare = one._replace(task=replace(one.task, prompts=()))
    row = {"question": "who 1", "options": ["it is 1", "it is 2"], "task": "a"}
    (found,), (same,) = predict(one, [row]), predict(bare, [row | {"question": "red who 1 :"}])
    (other,) = predict(bare, [row])
    assert found == same and found["scores"] != other["scores"]
    (drawn,) = predict(one, [row], how=Decoding(final="number"))
    assert drawn.keys() == {"text", "answer"}


def found_text(one: Tuned, text: str) -> str:
    ids = one.model.tokenizer.encode(text)
    return (stemma.generate(one.model, [ids], max_new_tokens=32, temperature=0.0)[0].text or "").strip()


def test_predict_eval_show_and_generate_on_the_command_line(run: Path, tmp_path: Path) -> None:
    """The prompts are those of the task that was kept beside the model."""
    call = CliRunner().invoke
    rows = [{"question": f"who {i}", "answer": f"it is {i}", "task": "a"} for i in range(4)]
    data = written(tmp_path / "rows.jsonl", [*rows, {"question": "who 1", "answer": "it is 1", "task": "c"}])
    done = call(root, ["predict", str(run), "--data", data, "--json", "--final", "number"], catch_exceptions=False)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one.get("answer") for one in found[:4]] == [Number().find(one["text"]) for one in found[:4]]
    assert found[4]["error"].startswith("its task is 'c', and there are prompts for 'a', 'b'")
    done = call(root, ["eval", str(run), "--data", data, "--json", "--final", "number"], catch_exceptions=False)
    right = sum(one["answer"] == str(i) for i, one in enumerate(found[:4]))
    assert json.loads(done.stdout)["metrics"]["accuracy"] == right / 4 and json.loads(done.stdout)["rows"] == 4
    words = ["predict", str(run), json.dumps(rows[1]), "--samples", "3", "--final", "number", "--seed", "2"]
    said = call(root, words, catch_exceptions=False).stdout
    assert re.match(r"(\d+|None) \(\d of \d votes\)\t", said)
    shown = call(root, ["data", "show", data, "--for", str(run)], catch_exceptions=False).stdout
    assert "red who 0 :" in shown and "«it is 0</s>»" in shown and "4 conversations of 5 rows" in shown
    other = call(root, ["data", "show", data, "--for", str(run), "--hard-prompt", r"Say:\n"], catch_exceptions=False)
    assert "Say:" in other.stdout and "5 conversations of 5 rows" in other.stdout
    made = call(root, ["generate", str(run), "who 1", "--task", "a", "-n", "8", "--no-echo"], catch_exceptions=False)
    bare = call(root, ["generate", str(run), "red who 1 :", "--bare", "-n", "8", "--no-echo"], catch_exceptions=False)
    assert made.stdout == bare.stdout and "--bare leaves it out" in made.stderr and not bare.stderr
    for extra, why in (([], "its task is not named, and there are prompts for 'a', 'b'; choose one by --task"),):
        assert why in str(call(root, ["generate", str(run), "x", *extra]).exception)


def test_metrics_of_votes(run: Path, tmp_path: Path) -> None:
    rows = [{"question": f"who {i % 4}", "answer": f"it is {i % 4}", "task": "b"} for i in range(6)]
    one, how = tuned(run), Decoding(samples=3, final="number", tokens=8)
    found = measured(one, rows, draws=5, how=how)
    answers = predict(one, rows, how=how)
    assert found.metrics["accuracy"] == sum(a["answer"] == str(i % 4) for i, a in enumerate(answers)) / 6
    assert found.metrics["answered"] == sum(a["answer"] is not None for a in answers) / 6
    most = [max(a["votes"].values(), default=0) / 3 for a in answers]
    assert found.metrics["agreement"] == pytest.approx(sum(most) / 6)
    data = written(tmp_path / "rows.jsonl", [*rows, {"question": "who", "answer": "homer", "task": "b"}])
    kept, notes = scored_rows(one, data, {}, how)
    assert len(kept) == 6 and "no final answer is found in its target 'homer'" in notes[0]
    assert torch.is_inference_mode_enabled() is False
