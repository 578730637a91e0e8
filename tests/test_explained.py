"""Orca and Stable Beluga 2: their stages as published, the questions that stand in, solved again from their words, and
the row for padding."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import stemma
from stemma import samples
from stemma.conversations import read, writer
from stemma.declare.recipes import AdamW
from stemma.declare.tasks import Answers, ChatTask, HardPrompt
from stemma.samples import explained
from stemma.tuning import systems, tune
from test_tune import decoder, tokenizer, written  # noqa: F401

BELUGA = {
    "stable-beluga": "### System:\nBe kind.\n\n### User:\nWhy?\n\n### Assistant:\n«So.»",
    "stable-beluga-code": "### System:\nBe kind.\n\n### User: Why?\n\n### Assistant:\n«So.»",
}


# ---------------------------------------------------------------- the questions


def solved(row: dict[str, Any]) -> str:
    """The answer to a question, from its words alone."""
    text = row["question"]
    match row["task"]:
        case "chain":
            at = int(re.findall(r"Start with (\d+)", text)[0])
            for step in text.split(".")[0].split(", ")[1:]:
                by = int((re.findall(r"\d+", step) or [0])[0])
                at = at * 2 if step == "double it" else at + by if step.startswith("add") else at - by
            return str(at)
        case "days":
            days = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
            first, amount = re.findall(r"Today is (\w+)\. Which day is it in (\d+) days?\?", text)[0]
            return days[(days.index(first) + int(amount)) % 7]
        case "letters":
            letter, words = re.findall(r"the letter (\w) in ([a-z ]+)\n", text)[0]
            return str(words.count(letter))
        case "most":
            counts = {name: int(n) for name, n in re.findall(r"(\w+) has (\d+)", text)}
            options = {name: letter for letter, name in re.findall(r"\((\w)\) (\w+)", text)}
            return f"({options[max(counts, key=lambda name: counts[name])]})"
        case "units":
            whole, unit, rest = re.findall(r"are (\d+) (\w+) and (\d+)", text)[0]
            return str(int(whole) * {"minutes": 60, "hours": 60, "weeks": 7, "years": 12}[unit] + int(rest))
    raise AssertionError(row["task"])


def test_answers_follow_from_the_questions() -> None:
    """Of both stages, and of what is held out; no question of a stage is held out, and longer ones are longer."""
    first, second = list(samples.rows("explained")), list(samples.rows("explained_stronger"))
    held, longer = list(explained.held_out()), list(explained.held_out(longer=True))
    for row in (*first, *second, *held, *longer):
        assert solved(row) == row["right"] == explained.final(row["answer"]), row
        assert explained.is_right(row["answer"], row) and not explained.is_right("The answer is 9999.", row)
    questions = [{row["question"] for row in rows} for rows in (first, second, held, longer)]
    assert [len(q) for q in questions] == [3000, len(second), 200, 200] and 500 < len(second) < 700
    assert questions[1] < questions[0] and not questions[0] & (questions[2] | questions[3])
    assert {row["task"] for row in first} == {*explained.MAKERS} == {row["task"] for row in longer}
    assert {row["collection"] for row in first} == {"cot", "niv2", "flan2021", "t0"}
    by_question = {row["question"]: row for row in first}
    for row in second:  # the same query and message, another teacher
        other = by_question[row["question"]]
        assert row["system"] == other["system"] and row["answer"] != other["answer"]
    steps = [sum(len(one.sums) for one in explained.problems(100, True, steps)) for steps in ((1, 3), (4, 6))]
    assert steps[1] > 1.8 * steps[0]
    assert first == list(samples.rows("explained"))
    assert all(row["answer"] == f"The answer is {row['right']}." for row in explained.rows("bare"))


def test_the_teachers_say_the_steps() -> None:
    """One of each kind, in full."""
    one = {p.task: p for p in explained.problems(40, held=False, steps=(2, 2))}
    letters = one["letters"]
    letter, words = re.findall(r"the letter (\w) in ([a-z ]+)\n", letters.question)[0]
    marks = re.findall(rf"{letter}(\d+)", explained.terse(letters))
    assert [int(n) for n in marks] == list(range(1, words.count(letter) + 1))
    sums = re.findall(r"(\d+) ([-+*]) (\d+) = (\d+)", explained.terse(one["chain"]) + explained.terse(one["units"]))
    assert len(sums) == 5
    for a, sign, b, c in sums:
        assert {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign] == int(c)
    assert len(explained.wordy(one["chain"])) > len(explained.terse(one["chain"]))


def test_sets_read_as_rows_and_changes_are_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from stemma.data import read as source

    found = [json.loads(d.text) for d in source("builtin:explained_stronger", field="*").documents()]
    assert found == list(samples.rows("explained_stronger")) and samples.licence("explained_stronger") == "Apache-2.0"
    before = samples.stamp("explained_stronger"), samples.stamp("explained")
    other = tmp_path / "explained.py"
    other.write_text(Path(explained.__file__).read_text() + "# changed\n")
    monkeypatch.setattr(explained, "__file__", str(other))
    assert samples.stamp("explained_stronger") != before[0] and before[0] != before[1]


# ---------------------------------------------------------------- the stages


def test_orcas_stages(decoder: Path) -> None:  # noqa: F811
    """Arxiv 2306.02707: four epochs of FLAN-5M, then four of FLAN-1M, rows of 2,048 packed, loss on the teacher."""
    first, second = systems.stages_of("orca")
    for stage, name, examples in ((first, "FLAN-5M", 5_000_000), (second, "FLAN-1M", 1_000_000)):
        assert (stage.epochs, stage.context, stage.loss_on, stage.packed) == (4, 2048, "answers", True)  # type: ignore[union-attr]
        assert [(s.name, s.examples) for s in stage.mixture] == [(name, examples)]
    for number, data in ((1, "builtin:explained"), (2, "builtin:explained_stronger")):
        plan = systems.resolve("orca", str(decoder), stage=number)
        assert isinstance(plan.objective, Answers) and isinstance(plan.objective.task, ChatTask)
        assert plan.data == data and plan.train.budget == "4 epochs" and plan.objective.packed
        assert plan.objective.task.loss_on == "answers" and not plan.objective.task.prompts
    assert systems.resolve("orca", str(decoder), "mine.jsonl", stage=2).data == "mine.jsonl"


def test_stable_belugas_stages(decoder: Path) -> None:  # noqa: F811
    """The card: AdamW (.9, .95), decay 1e-6, cosine from 3e-5 to 3e-6 after 100 steps; packed, then not."""
    plans = [systems.resolve("stable-beluga2", str(decoder), stage=n, full=True) for n in (1, 2)]
    for plan, packed, examples in zip(plans, (True, False), (256, 512), strict=True):
        recipe = plan.recipe
        assert recipe.optimizer == AdamW(0.9, 0.95, weight_decay=1e-6) and recipe.lr == 3e-5
        assert recipe.schedule.shape == "cosine" and recipe.schedule.floor == 0.1
        assert recipe.batch == examples * plan.context
        assert isinstance(plan.objective, Answers) and plan.objective.packed is packed
        assert plan.objective.task == ChatTask(template="stable-beluga")
    assert [plan.data for plan in plans] == ["builtin:explained", "builtin:explained_stronger"]
    row = {"system": "Be kind.", "question": "Why?", "answer": "So."}
    for name, text in BELUGA.items():
        plan = systems.resolve("stable-beluga2", str(decoder), settings={"template": name})
        assert plan.objective.task.template == name  # type: ignore[attr-defined]
        assert writer(None, name).write(read(row)).shown() == text


def test_orca_gets_a_row_for_padding(tmp_path: Path, decoder: Path) -> None:  # noqa: F811
    """A tokenizer without a token that pads gets [PAD], at its end, as LLaMA's got id 32,000; it pads rows, is learnt
    nowhere and is kept. A model that has one keeps it, and adapters learn no row."""
    from stemma.text import Specials, Tokenizer

    base = stemma.load(decoder)
    old = Tokenizer.train("bpe", ["who wrote it", "red fruit"] * 3, 270, Specials(bos="<s>", eos="</s>", unk="<unk>"))
    bare = tmp_path / "bare"
    small: dict[str, Any] = {"d_model": 32, "layers": 1, "heads": 2, "d_ff": 48, "context": 64}
    made = stemma.build("llama", vocab=old.vocab_size, **small)
    made.tokenizer = old
    made.save(str(bare))
    data = written(
        tmp_path / "rows.jsonl", [{"question": "who wrote it", "answer": "red fruit " * (1 + i % 3)} for i in range(30)]
    )
    more: dict[str, Any] = {"settings": {"template": "plain"}, "budget": "2 steps", "quiet": True}
    run = tune("orca", start=str(bare), data=data, out=tmp_path / "run", **more)
    there = stemma.load(tmp_path / "run")
    assert there.tokenizer.pad_id == old.vocab_size == there.dims.vocab - 1 and run.finished
    assert there.tokenizer.token(there.tokenizer.pad_id) == "[PAD]" and old.pad_id is None
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["pad_token_id"] == old.vocab_size and config["vocab_size"] == old.vocab_size + 1
    assert (tmp_path / "run" / "stages" / "1" / "run.json").is_file()
    with_own = systems.resolve("orca", str(decoder), data, settings={"template": "plain"})
    assert base.tokenizer.pad_id is not None and not with_own.text.extras
    adapted = systems.resolve("orca", str(bare), data, settings={"template": "plain"}, lora=2)
    assert not adapted.text.extras


def test_the_second_stage_goes_on_from_the_first(tmp_path: Path, decoder: Path) -> None:  # noqa: F811
    """One command, its own data for each stage; only the teacher's words are learnt."""
    rows = [{"system": "Be kind.", "question": f"who wrote it {i}", "answer": "homer wrote it"} for i in range(24)]
    one, two = (written(tmp_path / f"{n}.jsonl", rows[n::2]) for n in range(2))
    more: dict[str, Any] = {"settings": {"template": "plain"}, "budget": "2 steps", "quiet": True}
    run = tune("orca", start=str(decoder), data=[one, two], out=tmp_path / "run", **more)
    assert run.finished and run.plan.data == two and run.plan.train.start.endswith("stages/1/model")
    first, start = stemma.load(tmp_path / "run" / "stages" / "1"), stemma.load(decoder)
    asked = {"settings": {"template": "plain", "prompts": (HardPrompt("red "),)}}
    other = tune(
        "orca", start=str(decoder), data=one, out=tmp_path / "other", **{**more, **asked}
    )  # through stages.json
    assert other.plan.objective.task.prompts == (HardPrompt("red "),)  # type: ignore[attr-defined]
    changed = [name for name, t in first.state_dict().items() if not torch.equal(t, run.model.state_dict()[name])]
    assert changed and any(not torch.equal(t, start.state_dict()[name]) for name, t in first.state_dict().items())
    assert Counter(json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
