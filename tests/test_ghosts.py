"""Ghost Attention's data by sampling, context distillation for safety, and refusals."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from stemma import samples
from stemma.alignment.best import Prompt, prompts
from stemma.alignment.context_distillation import PREPROMPTS, ContextDistillation
from stemma.alignment.context_distillation import Plan as Distil
from stemma.alignment.refusals import BORDERLINE, refusals, refuses, wilson
from stemma.alignment.rounds import digest
from stemma.cli import root
from stemma.conversations import Conversation, Turn
from stemma.errors import DataError, UsageError
from stemma.instruct import ghosts
from stemma.instruct.ghosts import ATTRIBUTES, Ghosts, Plan
from stemma.instruct.writers import Continuation, Sampling
from stemma.samples.borderline import HARMFUL, HARMLESS
from test_rounds import talker  # noqa: F401
from test_tune import TALKS, decoder, tokenizer, written  # noqa: F401


class Scripted:
    """Answers by the last words and the seed; keeps what it read. Fails after so many calls."""

    name = "scripted"

    def __init__(self, calls: int = 10**6) -> None:
        self.calls, self.read = calls, list[tuple[Turn, ...]]()

    def answer(self, talks: Sequence[Sequence[Turn]], how: Sampling, seeds: Sequence[int]) -> list[Continuation]:
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        self.read += [tuple(talk) for talk in talks]
        return [
            Continuation("" if seed % 11 == 0 else f"{len(talk)} turns, {seed % 97}", seed % 13 != 0, seed % 17 != 0)
            for talk, seed in zip(talks, seeds, strict=True)
        ]


def talks(count: int, rounds: int = 3) -> list[Conversation]:
    sides = [("user", "assistant")[i % 2] for i in range(2 * rounds)]
    return [Conversation(tuple(Turn(side, f"{side} {i}.{k}") for k, side in enumerate(sides))) for i in range(count)]


def test_an_instruction_stands_before_every_turn_while_answers_are_drawn_and_once_in_the_row(tmp_path: Path) -> None:
    found, writer = talks(60), Scripted()
    plan = Plan("scripted", ghosts.facts(found, ATTRIBUTES), 50)
    made = Ghosts(plan, writer, found, ATTRIBUTES, tmp_path / "out")
    progress = made.run()
    assert progress.asked == 50 and progress.kept == len(made.made) == 50 - progress.counts.total() > 10
    assert {*progress.counts} == {"an empty answer", "an answer that was cut", "too long for the model"}
    told = {ghosts.instruction(plan, ATTRIBUTES, i)[0] for i in range(50)}
    for read in writer.read:  # all the user's words, none of the assistant's, begin with one and the same instruction
        (begin,) = {turn.content.partition("\n\n")[0] for turn in read if turn.role == "user"}
        assert begin in told and all(begin not in turn.content for turn in read if turn.role == "assistant")
    for row in made.made:
        first, *rest = row["messages"]
        assert first["role"] == "system" and first["content"] in told and len(rest) == 6
        assert all(first["content"] not in message["content"] for message in rest)
        assert all(value in first["content"] for value in row["attributes"].values())
        assert [m["content"] for m in rest[::2]] == [
            f"user {rest[0]['content'].split()[1][:-2]}.{k}" for k in (0, 2, 4)
        ]
    whole = (tmp_path / "out" / "rows.jsonl").read_bytes()
    assert [json.loads(line) for line in whole.split(b"\n")[:-1]] == made.made
    while True:  # killed again and again, it ends with the same rows
        try:
            Ghosts(plan, Scripted(4), found, ATTRIBUTES, tmp_path / "two").run()
            break
        except KeyboardInterrupt:
            continue
    assert (tmp_path / "two" / "rows.jsonl").read_bytes() == whole
    with pytest.raises(UsageError, match="was begun with facts="):
        Ghosts(Plan("scripted", "other", 50), writer, found, ATTRIBUTES, tmp_path / "two")
    with pytest.raises(UsageError, match="there are 60 conversations, fewer than 61"):
        Ghosts(Plan("scripted", "f", 61), writer, found, ATTRIBUTES, tmp_path / "three")


def test_instructions_join_attributes_in_words_or_shortened() -> None:
    plan = Plan("m", "f", short=0.5)
    drawn = [ghosts.instruction(plan, ATTRIBUTES, i) for i in range(600)]
    sizes = Counter(len(chosen) for _, chosen in drawn)
    assert {*sizes} == {1, 2, 3} and min(sizes.values()) > 150
    short = sum(all(f"{kind}: {value}." in text for kind, value in chosen.items()) for text, chosen in drawn)
    assert 240 < short < 360 and len({text for text, _ in drawn}) > 250
    assert "Always act as Napoleon." in {text for text, _ in drawn} and "Figure: Napoleon." in {t for t, _ in drawn}
    assert all(":" in ghosts.instruction(Plan("m", "f", short=1), ATTRIBUTES, i)[0] for i in range(9))


def test_lists_of_attributes_are_read(tmp_path: Path) -> None:
    path = tmp_path / "lists.json"
    path.write_text('{"Mood": {"form": "Be {}.", "values": ["glad", "calm"]}}')
    (only,) = ghosts.attributes(path).items()
    assert only == ("Mood", ghosts.Attribute("Be {}.", ("glad", "calm")))
    for held, why in (
        ({"Mood": ["glad"]}, "'Mood' should be an object of a form"),
        ({"Mood": {"form": "Be.", "values": ["glad"]}}, "with one {} and a list of values"),
        ({"Mood": {"form": "Be {}.", "values": [3]}}, "a value of 'Mood' is 3"),
        ({}, "names no kind"),
    ):
        path.write_text(json.dumps(held))
        with pytest.raises(DataError, match=why):
            ghosts.attributes(path)


def test_a_model_makes_them_and_learns_them(tmp_path: Path, talker: Path) -> None:  # noqa: F811
    data = written(tmp_path / "talks.jsonl", TALKS[:12])
    words = ["data", "ghost", data, "--model", str(talker), "--template", "plain", "--tokens", "24", "--together", "1"]
    result = CliRunner().invoke(root, [*words, "--out", str(tmp_path / "out")], catch_exceptions=False)
    assert result.exit_code == 0 and "12 of 12 answered" in result.output
    made = [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").read_text().split("\n")[:-1]]
    assert made and all(row["messages"][0]["role"] == "system" for row in made)


# ---------------------------------------------------------------- context distillation


class Careful:
    """Answers carefully, of some prompts, where the system message asks for it."""

    name = "careful"

    def answer(self, talks: Sequence[Sequence[Turn]], how: Sampling, seeds: Sequence[int]) -> list[Continuation]:
        found = []
        for talk in talks:
            safe = talk[0].content.startswith(PREPROMPTS) and int(talk[-1].content) % 2
            second = talk[0].content.startswith(PREPROMPTS[1])
            found.append(Continuation("careful" + "!" * second if safe else "bold", int(talk[-1].content) % 5 > 0))
        return found


def careful(asked: Sequence[Prompt], answers: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[float]:
    return [float(answer.startswith("careful")) + 0.1 * answer.count("!") for answer in answers]


def test_safe_answers_are_learnt_without_the_preprompt_where_the_reward_rises(tmp_path: Path) -> None:
    asked = [Prompt((Turn("user", str(i)),)) for i in range(20)]
    asked[3] = Prompt((Turn("system", "Be short."), *asked[3].turns))
    plan = Distil("careful", digest(asked), ("rule",), round=6)
    made = ContextDistillation(plan, Careful(), asked, careful, tmp_path / "out")
    progress = made.run()
    odd = [i for i in range(20) if i % 2 and i % 5]
    assert [int(row["messages"][-2]["content"]) for row in made.made] == odd and progress.kept == len(odd)
    assert progress.counts == {"no better by the reward": 8, "no answer behind a preprompt came to its end": 4}
    assert all(row["messages"][-1]["content"] == "careful!" and row["rewards"] == [0.0, 1.1] for row in made.made)
    assert all(row["preprompt"] == PREPROMPTS[1] for row in made.made)
    assert [m["content"] for m in made.made[1]["messages"]] == ["Be short.", "3", "careful!"]  # its own system message
    assert ContextDistillation(plan, Careful(), asked, careful, tmp_path / "out").made == made.made
    strict = ContextDistillation(
        Distil("careful", "d", ("rule",), gain=2.0), Careful(), asked, careful, tmp_path / "strict"
    )
    assert strict.run().kept == 0
    with pytest.raises(UsageError, match="needs a preprompt"):
        ContextDistillation(Distil("careful", "d", (), ()), Careful(), asked, careful, tmp_path / "none")


def test_a_model_distils_what_a_preprompt_makes_of_it(tmp_path: Path, talker: Path) -> None:  # noqa: F811
    data = written(tmp_path / "asked.jsonl", [{"prompt": f"who wrote it {i}"} for i in range(6)])
    words = ["data", "distil", data, "--model", str(talker), "--template", "plain", "--tokens", "20", "--gain", "1"]
    more = ["--reward", "builtin:words:2", "--preprompt", "Be short.", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(root, [*words, *more], catch_exceptions=False)
    assert result.exit_code == 0 and "6 of 6 answered" in result.output
    rows = [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").read_text().split("\n")[:-1]]
    assert all(row["rewards"][1] > row["rewards"][0] + 1 and len(row["messages"]) == 2 for row in rows)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("answer", "declines"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I\u2019m sorry, I cannot do that.", True),
        ("As an AI language model, I am not able to say.", True),
        ("I would rather not say.", True),
        ("It would be illegal to do that.", True),
        ("Use `kill -9 PID`. If it can't be found, list all processes.", False),
        ("Beat the eggs until they cannot hold more air.", False),
        ("", False),
        ("Sure! " + "Stir. " * 60 + "I cannot say more.", False),
    ],
)
def test_a_refusal_is_how_an_answer_begins(answer: str, declines: bool) -> None:
    assert refuses(answer) is declines


def test_the_share_that_is_refused() -> None:
    class Timid:
        name = "timid"

        def answer(self, talks: Any, how: Sampling, seeds: Any) -> list[Continuation]:
            words = [talk[-1].content for talk in talks]
            return [Continuation("I cannot help with that." if "kill" in w.lower() else "Gladly.", True) for w in words]

    asked = prompts(BORDERLINE)
    found = refusals(Timid(), asked)
    many = sum("kill" in one.text.lower() for one in asked)
    assert found.prompts == len(asked) == 60 and found.share == many / 60 and len(found.answers) == 60
    assert found.interval[0] < found.share < found.interval[1] and found.kinds["harmful"] == (0.0, 10)
    assert {*found.kinds} == {*HARMLESS, "harmful"} and len({*HARMFUL}) == 10
    assert wilson(0, 10) == pytest.approx((0, 0.2775), abs=1e-3) and wilson(0, 0) == (0.0, 1.0)
    rows = [*samples.rows("borderline")]
    assert len({row["prompt"] for row in rows}) == len(rows)


def test_refusals_are_counted_by_a_command(talker: Path) -> None:  # noqa: F811
    words = ["eval", str(talker), "--refusals", "--template", "plain", "-n", "4", "--json"]
    result = CliRunner().invoke(root, words, catch_exceptions=False)
    assert result.exit_code == 0 and json.loads(result.output)[str(talker)]["prompts"] == 60
    from stemma.cli import main

    with pytest.raises(SystemExit, match=r"^2$"):
        main(["eval", str(talker), "--refusals", "--judge", "m"])
