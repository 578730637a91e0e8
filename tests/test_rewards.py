"""Rewards by source: verifiers, functions in a process of their own, several with weights; and bad ones."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stemma.alignment import rewards
from stemma.alignment.rewards import FunctionScorer, RewardInput, Rewards, VerifierScorer
from stemma.alignment.verify import boxed, final, verifier
from stemma.errors import RewardError, UsageError
from stemma.samples import arithmetic

FILE = """
import math
import os
import sys
import time
from neighbour import BONUS

def short(prompt, answer, record):
    print("a function may print")
    return BONUS + 1 / (1 + len(answer))

def batch(prompts, answers, records):
    return [float(len(a)) for a in answers]

def relative(prompts, answers, records):
    return [len(a) / max(map(len, answers)) for a in answers]

def places(prompts, answers, records):
    return [float(i) for i in range(len(answers))]

def flat(prompts, answers, records):
    return 3.0

def forks(prompt, answer, record):
    os.fork()
    return len(answer)

def huge(prompt, answer, record):
    return 1e300

def drawn(prompt, answer, record, seen=[]):
    seen.append(answer)
    return len(seen)

def raises(prompt, answer, record):
    if answer == "bad":
        raise ValueError("two\\nlines")
    return True

def hangs(prompt, answer, record):
    while answer == "bad":
        time.sleep(0.01)
    return 0

def leaves(prompt, answer, record):
    if answer == "bad":
        os._exit(7)
    return 1

def exits(prompt, answer, record):
    sys.exit("no more")

def text(prompt, answer, record):
    return "1.0"

def nothing(prompt, answer, record):
    pass

def nan(prompt, answer, record):
    return math.nan

def fewer(prompts, answers, records):
    return [1.0]

def two(answer, record):
    return 0.0
"""


@pytest.fixture
def file(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "neighbour.py").write_text("BONUS = 1.0\n")
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    yield str(path)


def asked(*answers: str) -> list[RewardInput]:
    return [RewardInput("Say something.", answer, {"id": i}) for i, answer in enumerate(answers)]


def failure(source: str, *answers: str, seconds: float = 20.0) -> str:
    scorer = FunctionScorer(source, seconds)
    try:
        with pytest.raises(RewardError) as caught:
            scorer.scores(asked(*answers))
    finally:
        scorer.close()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_functions_judge_one_answer_or_all(file: str) -> None:
    one, all_ = FunctionScorer(f"{file}:short"), FunctionScorer(f"{file}:batch")
    both = Rewards([one, all_, VerifierScorer("builtin:words:1")], [1.0, -0.5, 2.0])
    try:
        found = both.scores(asked("", "abc", "a b"))
        assert found.parts == {"short": [2.0, 1.25, 1.25], "batch": [0.0, 3.0, 3.0], "words": [1.0, 1.0, 0.5]}
        assert found.totals == [4.0, 1.75, 0.75]
        process = one._process
        assert both.scores(asked("abc")).totals == [1.75] and one._process is process  # started once
    finally:
        both.close()
    assert process is not None and process.poll() is not None


def test_bad_functions_end_in_one_line_with_the_record_and_the_answer(file: str) -> None:
    said = failure(f"{file}:raises", "good", "bad")
    assert "raises: it raised ValueError: two lines (line 37 of mine.py)" in said
    assert "the answer was 'bad'" in said and "{'id': 1}" in said
    assert "its process ended with the exit code 7" in failure(f"{file}:leaves", "good", "bad")
    assert "it raised SystemExit: no more" in failure(f"{file}:exits", "x")
    assert "it returned '1.0', which is no number" in failure(f"{file}:text", "x")
    assert "it returned None, which is no number" in failure(f"{file}:nothing", "x")
    assert "it returned nan, and a finite number was expected" in failure(f"{file}:nan", "x")
    assert "it returned 1 numbers for 2 answers" in failure(f"{file}:fewer", "x", "y")
    assert "it returned 3.0, and a list of 2 numbers was expected" in failure(f"{file}:flat", "x", "y")


def test_a_process_that_a_function_leaves_behind_has_no_say(file: str) -> None:
    scorer = FunctionScorer(f"{file}:forks")
    assert scorer.scores(asked("a", "", "abc")) == [1.0, 0.0, 3.0]
    scorer.close()


def test_an_interrupt_is_for_the_run_and_not_for_what_judges(file: str) -> None:
    """From the keyboard it goes to all processes of a group; a run then ends its step, for which it needs rewards."""
    code = f"""
import os, signal
from stemma.alignment.rewards import FunctionScorer, RewardInput
signal.signal(signal.SIGINT, lambda *_: print("interrupted"))
scorer = FunctionScorer({file + ":short"!r})
asked = [RewardInput("", "abc", {{}})]
scorer.scores(asked)
os.killpg(0, signal.SIGINT)
print(scorer.scores(asked))
scorer.close()
"""
    env = {**os.environ, "PYTHONPATH": str(rewards.PACKAGES)}
    ended = subprocess.run(
        [sys.executable, "-c", code], env=env, start_new_session=True, capture_output=True, text=True, timeout=100
    )
    assert ended.returncode == 0 and ended.stdout.split("\n") == ["interrupted", "[1.25]", ""], ended


def test_rewards_that_no_step_can_compute_with_are_refused(file: str) -> None:
    """The mean and the spread of 1e300 are no numbers in fp32, and the loss would be none."""
    both = Rewards([FunctionScorer(f"{file}:huge"), VerifierScorer("builtin:words:1")], [-1.0, 2.0])
    with pytest.raises(RewardError, match=r"the answer 'a' is -1 \* 1e\+300 \(huge\) \+ 2 \* 1 \(words\); a finite"):
        both.scores(asked("a"))
    both.close()


def test_a_function_that_hangs_is_stopped(file: str) -> None:
    begin = time.monotonic()
    assert "has not returned within 0.5 seconds" in failure(f"{file}:hangs", "good", "bad", seconds=0.5)
    assert time.monotonic() - begin < 15


def test_a_reward_is_a_function_of_its_arguments_alone(file: str) -> None:
    said = failure(f"{file}:relative", "a", "abcd")
    assert "gives 0.25 to an answer, and 1.0 alone" in said
    assert "gives 2.0 to an answer, and 0.0 alone" in failure(f"{file}:places", "a", "b", "c")
    assert "gives 1.0 to an answer, and 3.0 a second time" in failure(f"{file}:drawn", "a", "b")


def test_after_an_error_a_mended_function_is_read_anew(file: str) -> None:
    scorer = FunctionScorer(f"{file}:raises")
    with pytest.raises(RewardError):
        scorer.scores(asked("bad", "good", "good"))
    with pytest.raises(RewardError, match="'bad'"):
        scorer.scores(asked("bad"))  # and not what the answers behind it got before
    scorer = FunctionScorer(f"{file}:leaves")
    with pytest.raises(RewardError):
        scorer.scores(asked("bad"))
    Path(file).write_text("def leaves(prompt, answer, record):\n    return 3\n")
    assert scorer.scores(asked("bad")) == [3.0]
    scorer.close()


def test_sources_that_cannot_be(file: str, tmp_path: Path) -> None:
    assert "has no function shor; did you mean 'short'?" in failure(f"{file}:shor", "x")
    assert "takes (answer, record); a reward is a function of (prompt, answer, record)" in failure(f"{file}:two", "x")
    (tmp_path / "broken.py").write_text("def f(:\n")
    said = failure(f"{tmp_path}/broken.py:f", "x")
    assert "it raised SyntaxError" in said and "(broken.py, line 1)" in said and "frozen" not in said
    for source, said in [
        (file, "names no function; write"),
        (f"{tmp_path}/min.py:short", "is of a file that is not there; did you mean 'mine.py'?"),
        ("builtin:nmber", "no reward builtin:nmber; did you mean 'number'?"),
        ("builtin:words", "was expected as builtin:words:50"),
        ("builtin:number:3", "was expected as builtin:number"),
        ("builtin:pattern:(", "holds no regular expression"),
        ("nowhere", "is no folder of a reward model; a function is FILE.py:NAME"),
    ]:
        with pytest.raises(UsageError) as caught:
            rewards.checked(source)
        assert said in str(caught.value)


def test_what_computes_a_reward_has_a_fingerprint(file: str) -> None:
    source = rewards.checked(os.path.relpath(file) + ":short")
    assert source == f"{Path(file).resolve()}:short"
    before = rewards.fingerprint(source)
    assert before == rewards.fingerprint(source)
    Path(file).write_text(FILE + "\n")
    assert rewards.fingerprint(source) != before


@pytest.mark.parametrize(
    "name, answer, right, score",
    [
        ("number", "So 3 + 4 = 7.", "7", 1.0),
        ("number", "7, or rather 8", "7", 0.0),
        ("number", "It is \\boxed{1,200.50}, not 3.", "... #### 1200.5", 1.0),
        ("number", "#### -4\nThat was 3 steps less.", "-4", 0.0),
        ("number", "nothing", "7", 0.0),
        ("gsm8k", "7", "x #### 7", 0.0),
        ("gsm8k", "so\n#### 7\nright?", "x #### 7", 1.0),
        ("boxed", "\\boxed{\\frac{1}{2}}", "the answer is \\boxed{\\frac{1} {2}}", 1.0),
        ("boxed", "\\boxed{07}", "7", 1.0),
        ("boxed", "7", "7", 0.0),
        ("text", " yes\n", "yes", 1.0),
        ("pattern:[0-9]+", " 12 ", "", 1.0),
        ("pattern:[0-9]+", "12 apples", "", 0.0),
        ("tags:think,answer", "<think>a</think>\n<answer>7</answer>\n", "", 1.0),
        ("tags:think,answer", "<answer>7</answer><think>a</think>", "", 0.0),
        ("tags:think,answer", "<think>a</think> so <answer>7</answer>", "", 0.0),
        ("json", '{"a": NaN}', "", 0.0),
        ("json", "[" * 10**6, "", 0.0),
        ("json:a,b", '{"a": 1, "b": 2}', "", 1.0),
        ("json:a,b", '{"a": 1}', "", 0.0),
        ("words:4", "one two three four five six seven eight", "", 0.5),
    ],
)
def test_verifiers(name: str, answer: str, right: str, score: float) -> None:
    assert verifier(name)("?", answer, {"answer": right}) == score


def test_a_record_must_say_what_is_right() -> None:
    for record, said in (({"question": "?"}, "has no field 'answer' or"), ({"answer": "none"}, "holds no number")):
        with pytest.raises(RewardError, match=said):
            VerifierScorer("builtin:number").scores([RewardInput("?", "7", record)])


def test_the_final_number_and_boxes() -> None:
    assert final("a 1 \\boxed{x} 3") is None and boxed("\\boxed{{a}{b}} \\boxed{c") is None
    assert boxed("\\boxed{{a}{b}} and no more") == "{a}{b}"


def test_arithmetic_has_right_answers_and_held_out_sums() -> None:
    number = verifier("number")
    rows, held = list(arithmetic.rows()), list(arithmetic.held_out())
    assert [row["level"] for row in rows] == sorted(row["level"] for row in rows)
    for row in [*rows, *held]:
        asked = row["question"].removeprefix("What is ").removeprefix("Compute ").rstrip("?.= ")
        assert eval(asked) == int(row["answer"]) and number("", f"= {row['answer']}", row) == 1.0
    sums = [
        {row["question"].removeprefix("What is ").removeprefix("Compute ").rstrip("?.= ") for row in some}
        for some in (rows, held)
    ]
    assert not sums[0] & sums[1]
    assert list(arithmetic.rows()) == rows
