"""The judge: its prompts and verdicts, counts against another implementation, a judge whose bias is known, resuming."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import stemma
from addresses import Body, message, serving
from stemma.cli import root
from stemma.conversations import Turn
from stemma.errors import CheckpointError, DataError, ResourceError, UsageError
from stemma.instruct.writers import AddressWriter, Answered, Ask, Continuation, LocalWriter, Sampling, address
from stemma.judging import counts, verdicts
from stemma.judging.contest import Contest, Plan, Player, facts
from stemma.judging.prompts import Prompts
from stemma.judging.questions import OWN, REFERRED, TEMPERATURES, Question, answers, questions, referred

SHOWN = re.compile(r"=== (?:the conversation with )?assistant A ===\n(.*?)\n=== end", re.DOTALL)
OTHER = re.compile(r"=== (?:the conversation with )?assistant B ===\n(.*?)\n=== end", re.DOTALL)


def share(*keys: object) -> float:
    """A number in [0, 1) that depends on its keys alone."""
    return int.from_bytes(hashlib.sha256(json.dumps(keys).encode()).digest()[:4], "big") / 2**32


def worth(shown: str) -> float:
    """How good the judge finds what it is shown of one assistant: the strength in its last answer."""
    return float(re.findall(r"strength (\d\.\d+)", shown)[-1])


def judged(prompt: str) -> str:
    """A judge with a known bias: what stands first gets 0.2 more, it ties within 0.05, and one in eleven says nothing."""
    first, second = SHOWN.search(prompt), OTHER.search(prompt)
    assert first is not None and second is not None
    if share(prompt) < 1 / 11:
        return "Both have their merits."
    gap = worth(first[1]) + 0.2 - worth(second[1])
    return f"Compared. [[{'C' if abs(gap) < 0.05 else 'A' if gap > 0 else 'B'}]]"


class Judge:
    """Judges by `judged`, and stops after so many answers."""

    name = "judge"

    def __init__(self, most: int = 10**6) -> None:
        self.most, self.asked = most, Counter[str]()

    def answers(self, asked: Sequence[Ask]) -> Answered:
        for i, one in enumerate(asked):
            if not self.most:
                raise KeyboardInterrupt
            self.most -= 1
            self.asked[one.turns[-1].content] += 1
            yield [(i, Continuation(judged(one.turns[-1].content), True))]


def given(name: str, asked: Sequence[Question]) -> Player:
    """Answers whose strengths are known."""
    said = {
        str(q.id): tuple(f"{name} says, strength {share(name, q.id, t):.6f}" for t in range(len(q.turns)))
        for q in asked
    }
    return Player(name, given=said)


def contest(out: Path, judge: Any, mode: Any = "pairwise", names: Sequence[str] = ("one", "two")) -> Contest:
    asked, prompts = questions(), Prompts()
    players = [given(name, asked) for name in names]
    plan = Plan(tuple(names), "judge", mode, facts=facts(asked, prompts, players))
    return Contest(plan, asked, prompts, players, lambda: judge, out)


def test_verdicts_are_read_and_never_guessed() -> None:
    for text, found in (
        ("... [[A]]", "m"), ("[[B]] it is", "n"), ("[[C]]", "tie"), ("[[A]] or [[B]]?", "error"), ("A is better", "error"),
        ("[A]", "error"), ("", "error"), ("[[A]] ... so: [[A]]", "m"), ("<think>[[B]]?</think> [[A]]", "m"), ("[[D]]", "error"),
    ):  # fmt: skip
        assert verdicts.winner(text, "m", "n") == found, text
    for said, number in (
        ("Rating: [[7]]", 7.0), ("[[9.5]]", 9.5), ("I give [6].", 6.0), ("[[7]] beside [3]", 7.0), ("[[11]]", None),
        ("[[0]]", None), ("7", None), ("[[3]] or [[4]]", None), ("", None), ("[[10]]", 10.0), ("[[-2]]", None),
    ):  # fmt: skip
        assert verdicts.score(said) == number, said
    assert [verdicts.joined(*p) for p in (("a", "a"), ("a", "b"), ("a", "tie"), ("tie", "tie"), ("a", "error"))] == [
        "a", "tie", "tie", "tie", "error",
    ]  # fmt: skip


def test_counts_are_those_of_another_implementation(tmp_path: Path) -> None:
    """The judge's strengths and bias are known, so every verdict can be told without a prompt."""
    rows = contest(tmp_path / "out", Judge()).run()
    found = counts.pairs(rows)
    asked = questions()
    expected: dict[str, Counter[str]] = {}
    kinds: Counter[str] = Counter()
    at = iter(rows)
    for q in asked:
        for turn in range(len(q.turns)):
            row = next(at)
            a, b = share("one", q.id, turn), share("two", q.id, turn)
            said = []
            for n, gap in ((1, a + 0.2 - b), (2, b + 0.2 - a)):
                silent = share(row[f"g{n}_user_prompt"]) < 1 / 11
                said.append("none" if silent else "tie" if abs(gap) < 0.05 else "first" if gap > 0 else "second")
            one = {"first": "one", "second": "two"}.get(said[0], said[0])
            two = {"first": "two", "second": "one"}.get(said[1], said[1])
            end = "invalid" if "none" in said else one if one == two else "tie"
            for group in ("all", f"turn {turn + 1}", q.category):
                expected.setdefault(group, Counter())[end] += 1
            if "none" not in said:
                kinds["same" if one == two else said[0] if said[0] == said[1] else "other"] += 1
            assert (row["question_id"], row["turn"], row["category"]) == (q.id, turn + 1, q.category)
    assert {
        name: Counter(one=w.wins, tie=w.ties, two=w.losses, invalid=w.invalid) for name, w in found.wins.items()
    } == {name: Counter({**dict.fromkeys(("one", "tie", "two", "invalid"), 0), **c}) for name, c in expected.items()}
    place = found.positions
    assert place is not None
    assert Counter(same=place.same, first=place.first, second=place.second, other=place.other) == kinds
    assert place.first > 5 > place.second == 0, "the bias of the judge shows as what stands first"
    every = expected["all"]
    valid = every["one"] + every["tie"] + every["two"]
    rate = found.wins["all"].rate
    assert rate is not None and rate[0] == pytest.approx((every["one"] + every["tie"] / 2) / valid)
    assert rate[1] < rate[0] < rate[2] and every["invalid"] > 2
    assert place.agreement is not None and place.agreement[0] == kinds["same"] / sum(kinds.values())


def test_scores_are_means_of_the_valid_ones(tmp_path: Path) -> None:
    class Scorer(Judge):
        def answers(self, asked: Sequence[Ask]) -> Answered:
            for i, one in enumerate(asked):
                value = worth(one.turns[-1].content)
                yield [(i, Continuation(f"[[{1 + round(value * 9)}]]" if value > 0.1 else "no idea", True))]

    rows = contest(tmp_path / "out", Scorer(), "single").run()
    found = counts.scores(rows).scores
    assert list(found) == ["one", "two"]
    for name, groups in found.items():
        values = [(q, t, float(f"{share(name, q.id, t):.6f}")) for q in questions() for t in range(len(q.turns))]
        for group, (mean, invalid) in groups.items():
            mine = [v for q, t, v in values if group in ("all", f"turn {t + 1}", q.category)]
            good = [1 + round(v * 9) for v in mine if v > 0.1]
            assert mean is not None and mean[0] == pytest.approx(sum(good) / len(good)), group
            assert invalid == len(mine) - len(good)


def test_other_verdicts_are_compared_whichever_way_they_name_the_models(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"question_id": i, "turn": 1, "category": "x", "winner": w, "g1_winner": w, "g2_winner": w}
        for i, w in enumerate(("model_1", "model_2", "tie", "error", "model_1"))
    ]
    path = tmp_path / "human.jsonl"
    lines = [
        {"question_id": 0, "turn": 1, "model_a": "one", "model_b": "two", "winner": "model_a"},
        {"question_id": 0, "turn": 1, "model_a": "two", "model_b": "one", "winner": "model_a"},
        {"question_id": 1, "turn": 1, "model_a": "one", "model_b": "two", "winner": "tie (bothbad)"},
        {"question_id": 2, "turn": 1, "model_a": "one", "model_b": "two", "winner": "tie"},
        {"question_id": 3, "turn": 1, "winner": "model_b"},
        {"question_id": 4, "turn": 1, "winner": "model_a"},
        {"question_id": 4, "turn": 1, "model_a": "three", "model_b": "two", "winner": "model_b"},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = counts.others(path, ("one", "two"))
    assert counts.agreement(rows, given) == counts.Agreement(5, 3, 3, 2, 1)
    with pytest.raises(UsageError, match="has no verdict on 'four' and 'two'"):
        path.write_text(json.dumps(lines[0]) + "\n")
        counts.others(path, ("four", "two"))
    with pytest.raises(DataError, match="is no verdict"):
        path.write_text('{"question_id": 1, "winner": "both"}\n')
        counts.others(path, ("one", "two"))


def test_what_stands_in_the_journal_is_not_asked_again(tmp_path: Path) -> None:
    whole = Judge()
    contest(tmp_path / "whole", whole).run()
    asked: Counter[str] = Counter()
    while True:
        judge = Judge(17)
        try:
            contest(tmp_path / "parts", judge).run()
            break
        except KeyboardInterrupt:
            with open(tmp_path / "parts" / "journal.jsonl", "ab") as file:
                file.write(b'{"pair 1 1 1": {"te')
        finally:
            asked += judge.asked
    assert asked == whole.asked and set(asked.values()) == {1} and sum(asked.values()) == 96
    for name in ("judgments.jsonl", "plan.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    idle = Judge(0)
    assert contest(tmp_path / "whole", idle).run() and not idle.asked
    with pytest.raises(UsageError, match="was begun with mode=pairwise, not single"):
        contest(tmp_path / "whole", idle, "single")
    with pytest.raises(UsageError, match=r"was begun with players=\['one', 'two'\]"):
        contest(tmp_path / "whole", idle, names=("one", "three"))
    (tmp_path / "whole" / "journal.jsonl").write_text('{"pair 1 1 1": 3}\n')
    with pytest.raises(CheckpointError, match="is damaged"):
        contest(tmp_path / "whole", idle).run()


def test_the_second_turn_is_judged_with_the_whole_dialogue_and_references_where_they_belong(tmp_path: Path) -> None:
    judge = Judge()
    rows = contest(tmp_path / "out", judge).run()
    by_id = {q.id: q for q in questions()}
    for row in rows:
        q, prompt = by_id[row["question_id"]], row["g1_user_prompt"]
        one, two = (given(name, questions()).given[str(q.id)] for name in ("one", "two"))
        for turn in range(2):
            assert (q.turns[turn] in prompt) == (turn < row["turn"]), "a question that is still to come is not shown"
            assert (one[turn] in prompt and two[turn] in prompt) == (turn + 1 == row["turn"] or row["turn"] == 2)
        assert all(ref in prompt for ref in q.reference[: row["turn"]]) and bool(q.reference) == (
            q.category in REFERRED
        )
        assert row["judge"][1].endswith("-reference") == (q.category in REFERRED)
        assert prompt.index(one[row["turn"] - 1]) < prompt.index(two[row["turn"] - 1])
        assert row["g2_user_prompt"].index(two[0]) < row["g2_user_prompt"].index(one[0]) if row["turn"] == 1 else True


def test_the_questions_of_the_package() -> None:
    asked = questions(OWN)
    assert len(asked) == 24 and Counter(q.category for q in asked) == dict.fromkeys(TEMPERATURES, 3)
    assert all(len(q.turns) == 2 and q.referred == (q.category in REFERRED) for q in asked)
    assert {q.category: q.temperature for q in asked} == TEMPERATURES
    assert Question(1, "cooking", ("a",)).temperature == 0.7


BENCH = Path(os.environ.get("STEMMA_SHARED", "shared")) / "data" / "mt_bench"  # FastChat's files, where they are


@pytest.mark.skipif(not BENCH.is_dir(), reason="MT-bench's files are not here")
def test_the_files_of_mt_bench_are_read() -> None:
    asked = questions(BENCH / "question.jsonl")
    assert len(asked) == 80 and Counter(q.category for q in asked) == dict.fromkeys(TEMPERATURES, 10)
    assert sum(q.referred for q in asked) == 29 and asked[0].id == 81
    full = referred(asked, BENCH / "gpt-4.jsonl")
    assert sum(q.referred for q in full) == 30
    prompts = Prompts(BENCH / "judge_prompts.jsonl")
    assert len(prompts.held) == 8
    rows = {row["name"]: row for row in map(json.loads, (BENCH / "judge_prompts.jsonl").read_text().splitlines())}
    from stemma.judging.prompts import values

    q, (a, b) = full[20], (("a1 {question}", "a2"), ("b1", "b2"))
    assert q.id == 101 and q.category == "reasoning"
    shown = {"question": q.turns, "answer_a": a, "answer_b": b, "ref_answer": q.reference}
    every = {f"{name}_{i}": text for name, texts in shown.items() for i, text in enumerate(texts, 1)}
    for turn, name in ((0, "pair-math-v1"), (1, "pair-math-v1-multi-turn")):
        found = prompts.of("pairwise", q, turn)
        plain = {"question": q.turns[0], "answer_a": a[0], "answer_b": b[0], **every}
        assert found.name == name
        assert [t.content for t in found.turns(values(q, turn, {"answer_a": a, "answer_b": b}))] == [
            rows[name]["system_prompt"],
            rows[name]["prompt_template"].format(**plain),
        ]
    assert prompts.of("single", full[0], 1).name == "single-v1-multi-turn"
    name, said = answers(BENCH / "gpt-4.jsonl", [x for x in full if x.id in range(101, 131)])
    assert name == "gpt-4" and len(said) == 30


def test_files_that_are_none_are_named(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    for text, why in (
        ("", "is empty"), ("[1]\n", "is not a JSON object"), ('{"question_id": 1}\n', "is no question"),
        ('{"question_id": 1, "turns": ["a", "b", "c"]}\n', "has 3 turns"), ('{"question_id": 1, "turns": [" "]}\n', "empty"),
        ('{"question_id": 1, "turns": ["a"]}\n{"question_id": "1", "turns": ["b"]}\n', "as an earlier row"),
    ):  # fmt: skip
        path.write_text(text)
        with pytest.raises(DataError, match=why):
            questions(path)
    asked = [Question(1, "x", ("a", "b")), Question(2, "x", ("a",))]
    row = {"question_id": 1, "model_id": "m", "choices": [{"index": 0, "turns": ["u", "v"]}]}
    for rows, why in (
        ([{"question_id": 1}], "is no answer"), ([row], "answers 1 of 2 questions; it lacks 2"),
        ([row, row], "as an earlier row"), ([row | {"choices": [{"turns": ["u"]}]}], "has 1 answers, and question 1 has 2"),
        ([row, row | {"question_id": 2, "model_id": "n"}], "answers of 2 models"),
    ):  # fmt: skip
        path.write_text("".join(json.dumps(one) + "\n" for one in rows))
        with pytest.raises(DataError, match=why):
            answers(path, asked)
    for change, why in (
        ({"type": "triple"}, "is no prompt"), ({"prompt_template": "{answer.__class__}{odd}"}, "a field {odd}"),
        ({"output_format": "[rating]"}, "wants verdicts like"),
    ):  # fmt: skip
        prompt = {
            "name": "p",
            "type": "pairwise",
            "system_prompt": "",
            "prompt_template": "{question}",
            "output_format": "[[A]]",
        }
        path.write_text(json.dumps(prompt | change) + "\n")
        with pytest.raises(DataError, match=why):
            Prompts(path)
    path.write_text(
        json.dumps(prompt | {"prompt_template": "{question} {answer_a} {answer_b}", "output_format": "[[A]]"}) + "\n"
    )
    with pytest.raises(DataError, match="has no pairwise prompt that shows two turns"):
        Prompts(path).of("pairwise", asked[0], 1)


# ---------------------------------------------------------------- addresses, models here, and the command


def far(path: str, body: Body) -> Body:
    """Two models and a judge at one address."""
    assert path == "/v1/chat/completions"
    said = body["messages"][-1]["content"]
    if body["model"] == "judge":
        assert body["temperature"] == 0.0 and body["messages"][0]["role"] == "system"
        return message(judged(said))
    turn = len([m for m in body["messages"] if m["role"] == "user"])
    return message(f" {body['model']} says, strength {share(body['model'], said, turn):.6f}\n")


def test_an_address_answers_and_judges_with_the_same_code(tmp_path: Path) -> None:
    with serving(far, refused=1) as (url, seen):
        writers = {name: AddressWriter(url, name, wait=0.01) for name in ("a", "b", "judge")}
        asked, prompts = questions(), Prompts()
        players = [Player(name, lambda name=name: writers[name]) for name in ("a", "b")]  # type: ignore[misc]
        plan = Plan(("a", "b"), "judge", "pairwise", facts=facts(asked, prompts, players))
        rows = Contest(plan, asked, prompts, players, lambda: writers["judge"], tmp_path / "far").run()
    assert len(seen) == 2 * 48 + 96
    for body in seen:
        if body["model"] != "judge":
            q = next(q for q in asked if q.turns[0] == body["messages"][0]["content"])
            assert body["temperature"] == TEMPERATURES[q.category] and body["max_tokens"] == 1024
            assert len(body["messages"]) in (1, 3)
    files = sorted((tmp_path / "far" / "answers").iterdir())
    assert [f.name for f in files] == ["1-a.jsonl", "2-b.jsonl"]
    players = [Player(*(answers(f, asked)[0],), given=answers(f, asked)[1]) for f in files]
    plan = Plan(("a", "b"), "judge", "pairwise", facts=facts(asked, prompts, players))
    near = Contest(plan, asked, prompts, players, Judge, tmp_path / "near").run()
    assert rows == near


def test_an_address_of_tests_refuses_a_request_once() -> None:
    """Whatever else comes in between, so that no order of arrival uses up the tries of one."""
    import urllib.error
    import urllib.request

    with serving(lambda path, body: body, refused=1) as (url, seen):

        def code(name: str) -> int:
            try:
                with urllib.request.urlopen(url, json.dumps({"name": name}).encode()) as answer:
                    return int(answer.status)
            except urllib.error.HTTPError as error:
                return error.code

        assert [code(name) for name in "abcdbeb"] == [200, 503, 200, 200, 200, 503, 200]
        assert [body["name"] for body in seen] == [*"acdbb"]


def test_an_address_that_fails_keeps_what_it_answered(tmp_path: Path) -> None:
    def once(path: str, body: Body) -> Body:
        return message("[[A]]") if len(seen) < 20 else {"error": "quota"}

    with serving(once) as (url, seen):
        with pytest.raises(ResourceError, match=r"answered without a completion: .*quota"):
            contest(tmp_path / "out", AddressWriter(url, "judge", parallel=1)).run()
        kept = (tmp_path / "out" / "journal.jsonl").read_text().splitlines()
        assert len(kept) == 20
    with pytest.raises(UsageError, match="may have several models"):
        address("http://127.0.0.1:9/v1")


def tiny(folder: Path, template: str | None, context: int = 256) -> None:
    """A small model that answers nonsense."""
    import transformers as hf

    from stemma.conversations.templates import NAMES, jinja
    from stemma.text import Specials, Tokenizer

    tokenizer = Tokenizer.train("bpe", [q.turns[0] for q in questions()], 300, Specials(eos="</s>", pad="<pad>"))
    if template is not None:
        tokenizer.chat_template = jinja(NAMES[template], tokenizer)
    torch.manual_seed(0)
    sizes: dict[str, Any] = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    hf.LlamaForCausalLM(hf.LlamaConfig(**sizes, vocab_size=300, max_position_embeddings=context)).save_pretrained(
        folder
    )
    tokenizer.save(folder)


def test_a_model_here_answers_as_its_template_asks(tmp_path: Path) -> None:
    tiny(tmp_path / "m", "alpaca")
    tiny(tmp_path / "bare", None)
    writer = LocalWriter(stemma.load(tmp_path / "m"), "m", batch=2)
    how = Sampling(6, 1.0)
    asked = [Ask((Turn("user", text),), how, seed) for seed, text in enumerate(("Name a bird.", "Sort these.", "Add."))]
    groups = list(writer.answers(asked))
    assert [[i for i, _ in group] for group in groups] == [[0, 1], [2]]
    again = list(writer.answers(asked[2:]))
    assert again[0][0][1] == groups[1][0][1]
    long = Ask((Turn("system", "Judge."), Turn("user", "word " * 400)), how)
    assert next(writer.answers([long, asked[0]])) == [(0, Continuation("", False, fits=False)), (1, groups[0][0][1])]
    bare = stemma.load(tmp_path / "bare")
    with pytest.raises(UsageError, match="has no chat template; name one of"):
        next(LocalWriter(bare, "bare").answers(asked))
    assert next(LocalWriter(bare, "bare", template="vicuna").answers(asked[:1]))[0][0] == 0


def test_a_template_without_a_system_message_gets_it_before_the_first_words() -> None:
    from stemma.conversations.templates import NAMES, TurnsWriter
    from stemma.instruct.writers import prompt_of

    turns = (Turn("system", "Judge fairly."), Turn("user", "A or B?"))
    assert prompt_of(TurnsWriter(NAMES["koala"]), turns).text.endswith("USER: Judge fairly.\n\nA or B? GPT:")
    assert prompt_of(TurnsWriter(NAMES["vicuna"]), turns).text == "Judge fairly. USER: A or B? ASSISTANT:"


def command(*args: str) -> Any:
    return CliRunner().invoke(root, ["eval", *args], catch_exceptions=True)


def test_the_command_judges_files_models_and_addresses(tmp_path: Path) -> None:
    asked = tmp_path / "q.jsonl"
    asked.write_text("".join(OWN.read_text("utf-8").splitlines(keepends=True)[:4]))
    some = questions(asked)
    for name in ("one", "two"):
        rows = [
            {"question_id": q.id, "model_id": name, "choices": [{"turns": list(given(name, some).given[str(q.id)])}]}
            for q in some
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    human = tmp_path / "human.jsonl"
    human.write_text('{"question_id": 1, "turn": 1, "model_a": "one", "model_b": "two", "winner": "model_a"}\n')
    tiny(tmp_path / "m", "chatml", context=64)
    one, two, out = (str(tmp_path / name) for name in ("one.jsonl", "two.jsonl", "out"))
    with serving(far) as (url, seen):
        rest = ["--judge", f"{url}#judge", "--questions", str(asked), "--verdicts", str(human)]
        done = command(one, two, *rest, "--out", out)
        assert done.exit_code == 0, done.output
        assert "one against two, judged by" in done.output and "4 questions" in done.output
        assert "both orders: the same verdict" in done.output and "other verdicts: the same in" in done.output
        before = len(seen)
        again = command(one, two, *rest, "--out", out, "--json", "--quiet")
        assert len(seen) == before == 16
        found = json.loads(again.output)
        assert found == json.loads((tmp_path / "out" / "results.json").read_text())
        scored = command(f"{url}#one", "--judge", f"{url}#judge", "--questions", str(asked), "--out", out)
        assert isinstance(scored.exception, UsageError) and "was begun with players" in str(scored.exception)
    here = command(
        one, "--judge", str(tmp_path / "m"), "--questions", str(asked), "--out", str(tmp_path / "here"), "--quiet"
    )
    assert here.exit_code == 0, here.output
    assert "8 judgments were not asked for: the judge reads fewer tokens" in here.output
    assert "all          none  one  (8 without a valid score)" in here.output
    for arguments, why in (
        ([one], "give --data FILE"), ([one, two, "--mode", "single"], "--mode is for a judge"), ([one, two], "several models are for a judge"),
        ([one, one, "--judge", "m"], "both models are called one"), ([one, two, one, "--judge", "m"], "3 are given"),
        ([one, "--judge", "m", "--mode", "pairwise"], "1 are given"), ([one, "--judge", "m", "--data", "x"], "and --data has rows"),
        ([one, two, "--judge", "nobody"], "'nobody' is neither a folder nor a hub id"),
        ([one, two, "--judge", "http://x/v1"], "name one behind a #"),
    ):  # fmt: skip
        for_judge = "--judge" in arguments and "--data" not in arguments
        wrong = command(*arguments, *(["--questions", str(asked)] if for_judge else []))
        assert isinstance(wrong.exception, UsageError | DataError) and why in str(wrong.exception), (
            arguments,
            wrong.exception,
        )


@pytest.mark.slow
def test_killed_and_resumed_nothing_is_asked_twice(tmp_path: Path) -> None:
    def slow(path: str, body: Body) -> Body:
        time.sleep(0.02)
        return far(path, body)

    with serving(slow) as (url, seen):
        line = [
            sys.executable,
            "-m",
            "stemma",
            "eval",
            f"{url}#a",
            f"{url}#b",
            "--judge",
            f"{url}#judge",
            "--out",
            str(tmp_path),
        ]
        kills = 0
        while True:
            process = subprocess.Popen(
                line, env=os.environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            begun = len(seen)
            while process.poll() is None and len(seen) < begun + 40:
                time.sleep(0.01)
            if process.poll() is not None:
                break
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
        assert process.returncode == 0 and kills >= 3
        whole = {json.dumps(body["messages"]) + body["model"] for body in seen}
    # a request that was on its way when the process was killed was never answered to it, so it is made again
    assert len(whole) == 192 and len(seen) - len(whole) <= 5 * kills
    lines = (tmp_path / "journal.jsonl").read_text().splitlines()
    keys = [key for line in lines for key in json.loads(line)]
    assert len(keys) == len({*keys}) == 192
