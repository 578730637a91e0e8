"""Best-of-n and rejection sampling: what is chosen, what is learnt, and how rounds go on."""

from __future__ import annotations

import json
import math
import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import stemma
from stemma import spec
from stemma.alignment import best, rounds
from stemma.alignment.best import Pick, Prompt, Sampler, best_of, kl_bound, picks
from stemma.alignment.rounds import Rounds, Work
from stemma.conversations import Turn
from stemma.errors import CheckpointError, DataError, UsageError
from stemma.instruct.writers import Continuation, Sampling
from stemma.text import Tokenizer
from test_tune import SAYINGS, TALKS, decoder, tokenizer, written  # noqa: F401


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory, decoder: Path) -> Path:  # noqa: F811
    """A model that has learnt to end its answers."""
    out = tmp_path_factory.mktemp("talker") / "run"
    data = written(out.parent / "talks.jsonl", TALKS)
    changes = {"recipe.lr": 3e-3, "train.val_fraction": 0.1}
    more: dict[str, Any] = {"settings": {"template": "plain"}, "overrides": changes, "quiet": True}
    stemma.tune("chat", start=str(decoder), data=data, out=out, budget="60 steps", **more)
    return out


def short(asked: Sequence[Prompt], answers: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """Short answers are good ones."""
    assert len(asked) == len(answers) == len(rows)
    return [-float(len(answer)) for answer in answers]


class Scripted:
    """Answers from a list, two of which are no choice: one empty, one cut."""

    name = "scripted"
    texts = (("", True), ("a", False), ("abc", True), ("ab", True), ("cd", True))

    def draw(self, asked: Sequence[Sequence[Turn]], n: int, how: Sampling, seeds: Sequence[int]) -> Any:
        return [[Continuation(*self.texts[j % 5]) for j in range(n)] for _ in asked]


def asked(count: int) -> list[Prompt]:
    return [Prompt((Turn("user", f"{SAYINGS[i % 3 * 2]} {i}"),), {"i": i}) for i in range(count)]


def test_the_best_is_the_first_of_the_highest_that_came_to_an_end() -> None:
    (pick,) = picks(Scripted(), asked(1), short, 5, Sampling(8), [1])  # type: ignore[arg-type]
    assert pick.rewards == (0.0, -1.0, -3.0, -2.0, -2.0) and pick.best == 3 and pick.text == "ab"
    (none,) = picks(Scripted(), asked(1), short, 2, Sampling(8), [1])  # type: ignore[arg-type]
    assert none.best is None and none.text is None
    for wrong, why in (
        (lambda *_: [math.nan] * 5, "the reward of '' is nan, and a finite number was expected"),
        (lambda *_: [1.0], "gave 1 numbers for 5 answers"),
    ):
        with pytest.raises(DataError, match=why):
            picks(Scripted(), asked(1), wrong, 5, Sampling(8), [1])  # type: ignore[arg-type]


class Narrow(Scripted):
    """Only the first prompt leaves room for answers; `cut`: none of which ends."""

    def __init__(self, cut: bool = False) -> None:
        self.cut = cut

    def draw(self, asked: Sequence[Sequence[Turn]], n: int, how: Sampling, seeds: Sequence[int]) -> Any:
        whole = [Continuation(f"yes {j}", not self.cut) for j in range(n)]
        return [whole if turns[-1].content.endswith((" 0", " 1")) else [Continuation("", False, False)] * n
                for turns in asked]  # fmt: skip


def test_prompts_without_room_are_not_judged(
    tmp_path: Path, talker: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A reward that cannot read such a prompt stops no round, and none counts an answer that was never written."""

    def reward(asked: Sequence[Prompt], answers: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[float]:
        assert all(answers)
        return [1.0] * len(answers)

    found = picks(Narrow(), asked(3)[1:], reward, 2, Sampling(8), [1, 2])  # type: ignore[arg-type]
    assert [pick.rewards for pick in found] == [(1.0, 1.0), ()] and found[1].best is None
    (alone,) = picks(Narrow(), asked(3)[2:], reward, 2, Sampling(8), [1])  # type: ignore[arg-type]
    assert alone.rewards == () and alone.text is None
    monkeypatch.setattr(rounds, "sampler_of", lambda asked, out, how, number: lambda: Narrow(cut=number == 2))
    more = options(tmp_path, talker) | {"budget": "1 steps"}
    rounds.carry_out(Work(asked(4), reward), tmp_path / "run", **more)  # in round 2 no answer ends
    facts = [json.loads((tmp_path / f"run/stages/samples-{n}/facts.json").read_text()) for n in (1, 2)]
    assert [one["reward"] for one in facts] == [1, 1] and [one["answers"] for one in facts] == [16, 16]
    assert [one["none"] for one in facts] == [2, 4] and facts[1]["earlier"] == 2
    said = capsys.readouterr().err
    assert "1.000 of the best of 8; 2 answers are learnt; 2 prompts leave no room for 24 tokens" in said
    assert "none ended; 2 answers are learnt" in said
    with pytest.raises(DataError, match="round 1: none of 2 prompts leaves room for 24 tokens of an answer; shorten"):
        rounds.carry_out(Work(asked(4)[2:], reward, quiet=True), tmp_path / "none", **more)


def test_the_bound_of_the_divergence_is_that_of_enumerated_answers() -> None:
    """With distinct rewards of many answers, all as likely, the best of n diverges by nearly the bound."""
    many = 4000
    for n in (1, 4, 16):
        share = [((i + 1) / many) ** n - (i / many) ** n for i in range(many)]  # that answer i is the best
        exact = sum(p * math.log(p * many) for p in share if p)
        assert exact <= kl_bound(n) + 1e-9 and math.isclose(exact, kl_bound(n), abs_tol=2e-3)
    assert kl_bound(1) == 0
    with pytest.raises(UsageError, match="n of at least 1, not 0"):
        kl_bound(0)


def test_more_answers_have_a_better_best_and_prompts_do_not_touch_each_other(decoder: Path) -> None:  # noqa: F811
    model = stemma.load(decoder)
    how: dict[str, Any] = {"tokens": 12, "seed": 3, "template": "plain"}
    few, more = (best_of(model, asked(6), short, n, **how) for n in (1, 8))
    value = [statistics.mean(max(p.rewards) for p in found) for found in (few, more)]
    assert value[1] > value[0] and all(len(p.answers) == 8 for p in more)
    again = best_of(model, asked(3), short, 8, **how)
    assert [[a.text for a in p.answers] for p in again] == [[a.text for a in p.answers] for p in more[:3]]
    assert len({a.text for p in more for a in p.answers}) > 20
    with pytest.raises(UsageError, match="8 answers at temperature 0 are one and the same"):
        best_of(model, asked(1), short, 8, temperature=0)
    unfit = Sampler(model, "m", "plain").draw([(Turn("user", "who wrote it " * 60),)], 2, Sampling(9), [1])
    assert [[a.fits for a in answers] for answers in unfit] == [[False, False]]


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        ({"prompt": "a"}, ["a"]),
        ({"prompt": "a", "completion": "b"}, ["a"]),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, ["a"]),
        ({"prompt": [{"role": "user", "content": "a"}]}, ["a"]),
        ({"prompt": "a", "system": "s"}, ["s", "a"]),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, ["a"]),
        (
            {"messages": [{"role": x, "content": x} for x in ("user", "assistant", "user")]},
            ["user", "assistant", "user"],
        ),
        ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}, ["a"]),
    ],
)
def test_prompts_are_what_comes_before_the_last_answer(row: dict[str, Any], turns: list[str]) -> None:
    assert [turn.content for turn in best.prompt(row).turns] == turns


def test_a_row_that_asks_nothing_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a"}\n{"x": 1}\n')
    with pytest.raises(DataError, match=r"rows\.jsonl:2: its fields \('x'\) make no conversation|:2: .*x"):
        best.prompts(str(path))


def test_one_temperature_may_stand_without_a_comma() -> None:
    for text, found in (("1.2", (1.2,)), ("1", (1.0,)), ("1.0,1.2", (1.0, 1.2))):
        assert spec.edit(Rounds(), {"temperature": text}).temperature == found
    with pytest.raises(UsageError, match="expected tuple"):
        spec.edit(Rounds(), {"temperature": "nan"})


def test_temperatures_grow_and_prompts_go_round() -> None:
    grown = Rounds(rounds=4, temperature=(0.8, 1.0, 1.2), prompts=4)
    assert [grown.at(n) for n in (1, 2, 3, 4)] == [0.8, 1.0, 1.2, 1.2]
    first, second, third = (grown.chosen(1, n, 6) for n in (1, 2, 3))
    assert {*first, *second} == {*range(6)} and len({*first}) == 4 and grown.chosen(1, 1, 6) == first
    assert {*second[2:], *third} == {*range(6)} and Rounds().chosen(1, 1, 3) == [0, 1, 2]
    with pytest.raises(UsageError, match="draws one and the same answer"):
        Rounds(temperature=(0.0,))


def options(tmp_path: Path, start: Path) -> dict[str, Any]:
    return {
        "rounds": Rounds(rounds=2, samples=8, temperature=(1.0, 1.3), tokens=24, prompts=12), "start": str(start),
        "data": "prompts.jsonl", "rewards": ["short"], "budget": "4 steps", "settings": {"template": "plain"},
        "overrides": {"recipe.lr": 1e-3, "train.val_fraction": 0.1},
    }  # fmt: skip


def test_rounds_learn_the_best_so_far_and_go_on_after_a_stop(tmp_path: Path, talker: Path) -> None:
    """Stopped while answers are drawn, and while a round is learnt, they end with the same weights."""
    more = options(tmp_path, talker)
    whole = rounds.carry_out(Work(asked(16), short, quiet=True), tmp_path / "whole", **more)
    assert whole.finished and whole.directory == tmp_path / "whole" and whole.plan.train.start == str(talker / "model")
    calls = 0

    def stopping(*given: Any) -> list[float]:
        nonlocal calls
        calls += 1
        if calls in (2, 4):
            raise KeyboardInterrupt
        return short(*given)

    def step(_: Any) -> None:
        nonlocal calls
        calls += 10
        if calls == 23:
            raise KeyboardInterrupt

    for _ in range(9):
        try:
            run = rounds.carry_out(Work(asked(16), stopping, step, True), tmp_path / "run", **more, resume=True)
            break
        except KeyboardInterrupt:
            continue
    one, two = whole.model.state_dict(), run.model.state_dict()
    assert all((value == two[name]).all() for name, value in one.items())
    for place in ("stages/samples-1/rows.jsonl", "stages/samples-2/rows.jsonl", "stages/samples-2/best.jsonl"):
        assert (tmp_path / "run" / place).read_bytes() == (tmp_path / "whole" / place).read_bytes()
    _kept(tmp_path / "whole")


def _kept(out: Path) -> None:
    """Of each prompt that both rounds had the better answer is learnt, of others the one there is."""
    held = [[json.loads(line) for line in _lines(out / f"stages/samples-{n}/rows.jsonl")] for n in (1, 2)]
    value: dict[str, float] = {}
    for row in (*held[0], *held[1]):
        said = row["prompt"][-1]["content"]
        if row["best"] is not None:
            value[said] = max(value.get(said, -1e9), row["rewards"][row["best"]])
    learnt = {
        row["messages"][0]["content"]: row["reward"]
        for row in map(json.loads, _lines(out / "stages/samples-2/best.jsonl"))
    }
    facts = json.loads((out / "stages/samples-2/facts.json").read_text())
    assert learnt == value and facts["learnt"] == len(value) > 12 and facts["earlier"] and facts["temperature"] == 1.3
    assert facts["best"] > facts["reward"] and facts["kl"] == kl_bound(8) and facts["answers"] == 96


def _lines(path: Path) -> list[str]:
    return path.read_text("utf-8").split("\n")[:-1]


def test_what_does_not_fit_is_refused(tmp_path: Path, decoder: Path) -> None:  # noqa: F811
    more = options(tmp_path, decoder)
    work = Work(asked(4), short, quiet=True)
    with pytest.raises(UsageError, match="none"):
        rounds.carry_out(work, tmp_path / "run", **{**more, "start": str(tmp_path / "none")})
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "rounds.json").write_text('{"format": 1, "start": 7}')
    with pytest.raises(UsageError, match="holds a run already"):
        rounds.carry_out(work, tmp_path / "run", **more)
    with pytest.raises(CheckpointError, match=r"rounds\.json is damaged"):
        rounds.go_on(work, tmp_path / "run")
    cut, few = Work(asked(2), short, quiet=True), {**more, "rounds": Rounds(samples=1, tokens=1)}
    with pytest.raises(
        DataError, match="0 prompts have an answer that came to its end, of 2 answers; more tokens are needed"
    ):
        rounds.carry_out(cut, tmp_path / "cut", **few)
    with pytest.raises(UsageError, match="was begun with start="):
        rounds.carry_out(cut, tmp_path / "cut", **{**more, "start": "other"}, resume=True)
    with pytest.raises(UsageError, match="are not those that"):
        rounds.go_on(Work(asked(3), short, quiet=True), tmp_path / "cut")
    changed = [Prompt(one.turns, {"i": 7}) for one in asked(2)]  # a reward may read it
    for go in (rounds.go_on, lambda work, out: rounds.carry_out(work, out, **few, resume=True)):
        with pytest.raises(UsageError, match="or their rows, are not those that"):
            go(Work(changed, short, quiet=True), tmp_path / "cut")
    held = json.loads((tmp_path / "cut" / "rounds.json").read_text())
    held["prompts"] = rounds.digest(asked(2))  # as earlier versions wrote it
    (tmp_path / "cut" / "rounds.json").write_text(json.dumps(held))
    shutil.rmtree(tmp_path / "cut" / "stages")
    with pytest.raises(DataError, match="0 prompts have an answer"):
        rounds.carry_out(cut, tmp_path / "cut", **few, resume=True)


def test_the_tokenizer_is_asked_for(tokenizer: Tokenizer, decoder: Path) -> None:  # noqa: F811
    model = stemma.load(decoder)
    model.tokenizer = None
    with pytest.raises(UsageError, match="m has no tokenizer"):
        Sampler(model, "m")
    assert isinstance(Pick((), (), None), Pick)


def test_rounds_and_best_of_n_from_the_command_line(tmp_path: Path, talker: Path) -> None:
    from click.testing import CliRunner

    from stemma.cli import root

    def run(*words: str) -> str:
        result = CliRunner().invoke(root, list(words), catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    data = written(tmp_path / "asked.jsonl", [{"prompt": f"{SAYINGS[0]} {i}"} for i in range(8)])
    out = tmp_path / "run"
    more = ["--reward", "builtin:words:3", "--template", "plain", "--budget", "3 steps", "--quiet"]
    for setting in ("rounds.rounds=2", "rounds.samples=6", "rounds.tokens=20", "rounds.temperature=1.0,1.2"):
        more += ["--set", setting]
    run("align", "rs", "--from", str(talker), "--data", data, "--out", str(out), *more)
    asked = json.loads((out / "rounds.json").read_text())
    assert asked["rounds"]["temperature"] == [1.0, 1.2] and asked["rewards"] == ["builtin:words:3"]
    run("resume", str(out), "--quiet")
    rule = tmp_path / "rule.py"
    rule.write_text("def brief(prompt, answer, record):\n    return -len(answer)\n")
    words = ["align", "rs", "--from", str(talker), "--data", data, "--out", str(tmp_path / "own"), *more[2:]]
    run(*words, "--reward", f"{rule}:brief")
    rule.write_text("def brief(prompt, answer, record):\n    return len(answer)\n")
    with pytest.raises(UsageError, match=r"is not as it was when the rounds began; put it back"):
        run("resume", str(tmp_path / "own"), "--quiet")
    said = ["generate", str(talker), "who wrote it", "--temperature", "1", "-n", "12", "--json", "--seed", "4"]
    every = json.loads(run(*said, "--choices", "6"))
    best = json.loads(run(*said, "--best-of", "6", "--reward", "builtin:words:2", "--choices", "2"))
    lengths = sorted(max(0, len(one["text"].split()) - 2) for one in every)
    assert [max(0, len(one["text"].split()) - 2) for one in best] == lengths[:2] and len(every) == 6
    assert {one["text"] for one in best} <= {one["text"] for one in every}
    with pytest.raises(UsageError, match="chooses among several texts: give --best-of N"):
        run(*said, "--reward", "builtin:words:2")
    with pytest.raises(UsageError, match="samples answers to prompts: give --data FILE"):
        stemma.align("rs", start=str(talker), out=tmp_path / "none", rewards=("builtin:words:3",))
    with pytest.raises(UsageError, match="a base is of rejection sampling"):
        stemma.align("dpo", start=str(talker), data=data, out=tmp_path / "none", base="x")
    with pytest.raises(UsageError, match=r"rounds has no field 'sample'|no.*sample.*samples"):
        stemma.align("rs", start=str(talker), data=data, out=tmp_path / "none", rewards=("builtin:words:3",),
                     overrides={"rounds.sample": 3})  # fmt: skip


@pytest.mark.slow
def test_the_reward_rises_from_round_to_round(tmp_path: Path, talker: Path) -> None:
    """On at least nine of ten seeds the model of a round gets more of a rule's reward than the one before."""

    def red(asked: Sequence[Prompt], answers: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[float]:
        return [answer.count("red") - 0.02 * len(answer) for answer in answers]

    more = options(tmp_path, talker) | {"rounds": Rounds(rounds=3, samples=8, tokens=16), "budget": "30 steps"}
    rose = 0
    for seed in range(10):
        out = tmp_path / str(seed)
        rounds.carry_out(Work(asked(16), red, quiet=True), out, **more, seed=seed)
        found = [json.loads((out / f"stages/samples-{n}/facts.json").read_text())["reward"] for n in (1, 2, 3)]
        rose += found[1] > found[0] and found[2] > found[0]
        print(seed, found)
    assert rose >= 9
