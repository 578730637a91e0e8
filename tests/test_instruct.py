"""Self-instruct: prompts, parsing, the filter against another implementation, resuming, and both kinds of writers."""

from __future__ import annotations

import hashlib
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import stemma
from addresses import completion, serving
from stemma.cli import root
from stemma.data import random as draw
from stemma.errors import DataError, ResourceError, UsageError
from stemma.instruct import tasks
from stemma.instruct.bootstrap import Bootstrap, Plan
from stemma.instruct.novel import Novel
from stemma.instruct.tasks import Task
from stemma.instruct.writers import AddressWriter, Continuation, LocalWriter, Sampling

SEEDS = str(Path(stemma.__file__).parent / "instruct" / "seeds.jsonl")
WORDS = [
    "sort",
    "name",
    "tell",
    "explain",
    "write",
    "rivers",
    "words",
    "numbers",
    "colours",
    "birds",
    "towns",
    "trees",
    "letters",
    "kindly",
    "slowly",
    "twice",
    "again",
]


def invented(prompt: str, seed: int) -> str:
    """What a scripted model says: it depends on the prompt and the seed alone."""
    key = int.from_bytes(hashlib.sha256(f"{seed} {prompt}".encode()).digest()[:7], "big")
    picks = [WORDS[i] for i in draw.integers((key,), 60, len(WORDS)).tolist()]
    if "Is its answer one of a few labels?" in prompt:
        return " Yes" if picks[0] in WORDS[:6] else " No"
    if prompt.startswith("Give an example"):
        return f" {picks[0]}\nInput: {picks[1]}" if prompt.endswith("Label:") else f" {picks[0]}\nOutput: {picks[1]}"
    if prompt.startswith("Come up"):
        return f" Do {' '.join(picks[:5])}\n10. Make {' '.join(picks[5:10])}\n11. Try {' '.join(picks[10:15])}"
    made = "".join(
        f"{i}. Instruction: Do {' '.join(picks[5 * i : 5 * i + 5])}\n{i}. Input:\n<noinput>\n{i}. Output:\n{picks[i]}\n###\n"
        for i in range(4, 9)
    )
    return made.removeprefix("4. Instruction:")


class Scripted:
    """Says what `invented` says, and fails after so many calls."""

    name = "scripted"

    def __init__(self, calls: int = 10**6) -> None:
        self.calls = calls

    def write(self, prompts: Sequence[str], how: Sampling, seeds: Sequence[int]) -> list[Continuation]:
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        return [Continuation(invented(p, s), True) for p, s in zip(prompts, seeds, strict=True)]


def plan(**changes: Any) -> Plan:
    return Plan(**{"writer": "scripted", "seeds": SEEDS, "count": 40, "prompts": 2} | changes)


@pytest.mark.parametrize("at_once", [True, False])
def test_what_was_stopped_goes_on_to_the_same_tasks(tmp_path: Path, at_once: bool) -> None:
    one = Bootstrap(plan(at_once=at_once), Scripted(), tmp_path / "one")
    one.run()
    calls = 3
    while True:
        two = Bootstrap(plan(at_once=at_once), Scripted(calls), tmp_path / "two")
        try:
            two.run()
            break
        except KeyboardInterrupt:
            with open(two.rows, "ab") as file:
                file.write(b'{"instruction": "half a li')
    assert two.rows.read_bytes() == one.rows.read_bytes()
    assert two.progress == one.progress and one.progress.kept == 40
    rows = [json.loads(line) for line in one.rows.read_text().splitlines()]
    assert all(row.keys() == {"instruction", "input", "output"} and row["output"] for row in rows)
    with pytest.raises(UsageError, match="was begun with seed=1, not 2"):
        Bootstrap(plan(at_once=at_once, seed=2), Scripted(), tmp_path / "one")


def longest(a: list[str], b: list[str]) -> int:
    """The longest common subsequence, by its definition."""
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


def test_the_filter_counts_as_another_implementation_does() -> None:
    kept, novel = list[str](), Novel()
    for i in range(400):
        text = " ".join(WORDS[k] for k in draw.integers((7, i), 4 + i % 6, 9).tolist()).capitalize() + "."
        words = [re.findall(r"[a-z0-9]+", one.lower()) for one in (text, *kept)]
        scores = [2 * longest(words[0], other) / (len(words[0]) + len(other)) for other in words[1:]]
        assert (novel.alike(text)[0] > 0.7) == (max(scores, default=0) > 0.7)
        if max(scores, default=0) <= 0.7:
            kept.append(text)
            novel.add(text)
        else:
            assert novel.alike(text)[0] == pytest.approx(max(scores))
    assert novel.texts == kept and 50 < len(kept) < 350


ODD = (  # what a list may hold besides new tasks, by the reason why it is left out
    "Sort",
    "word " * 151,
    "Draw the picture of a bird",
    "Write a program that sorts",
    "Élaborez un plan pour demain",
    "- Name a bird today",
)


def messy(prompt: str, seed: int) -> str:
    """A list of tasks, some of them odd, like another, without an output, or without their fields."""
    key = int.from_bytes(hashlib.sha256(f"messy {seed} {prompt}".encode()).digest()[:7], "big")
    picks = draw.integers((key,), 400, 97).tolist()
    if picks[0] < 8:
        return " I cannot do that."
    made = ""
    for i in range(4, 14):
        some = picks[20 * i : 20 * i + 20]
        ask = ODD[some[0] % len(ODD)] if some[1] < 25 else "Do " + " ".join(WORDS[k % 9] for k in some[2:8])
        output = "" if some[8] < 10 else WORDS[some[9] % len(WORDS)]
        field = "Outcome" if some[10] < 8 else "Output"
        made += f"{i}. Instruction: {ask}\n{i}. Input:\n<noinput>\n{i}. {field}:\n{output}\n###\n"
    return made.removeprefix("4. Instruction:")


class Recorded(Scripted):
    """Says what `messy` says, and keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[list[str]] = []

    def write(self, prompts: Sequence[str], how: Sampling, seeds: Sequence[int]) -> list[Continuation]:
        self.said.append([messy(p, s) for p, s in zip(prompts, seeds, strict=True)])
        return [Continuation(text, True) for text in self.said[-1]]


def left_out(ask: str) -> str | None:
    """Why an instruction is left out, by the rules as they are told in the papers."""
    barred = (
        "image images graph graphs picture pictures file files map maps draw plot video audio music flowchart diagram"
    )
    words = re.findall(r"\w+", ask.lower())
    if len(ask.split()) < 4 or len(ask.split()) > 150:
        return "too short" if len(ask.split()) < 4 else "too long"
    if {*barred.split()} & {*words} or "go to" in ask.lower():
        return "a word of what text cannot do"
    if ask.split()[:3] == ["Write", "a", "program"]:
        return "begins as so many do"
    if ord(ask[0]) > 127:
        return "begins with a character that is not ASCII"
    return None if re.match("[A-Za-z0-9]", ask) else "begins with a punctuation mark"


def test_a_whole_run_counts_as_another_implementation_does(tmp_path: Path) -> None:
    """What the model wrote is read, filtered and counted a second time, without any of the code that did it first."""
    writer = Recorded()
    work = Bootstrap(plan(count=60, prompts=3), writer, tmp_path / "out")
    work.run()
    seeds = [json.loads(line)["instruction"] for line in Path(SEEDS).read_text("utf-8").splitlines()]
    known = [re.findall(r"[a-z0-9]+", one.lower()) for one in seeds]
    counts: dict[str, int] = {}
    kept: list[str] = []

    def count(why: str, times: int = 1) -> None:
        counts[why] = counts.get(why, 0) + times

    for texts in writer.said:
        found: list[str] = []
        for text in texts:
            pattern = r"(?:^|\n)(\d+)\. Instruction: ?(.*?)\n\1\. Input:\n(.*?)\n\1\. Output:\n(.*?)(?=\n?###|\Z)"
            whole = [m.groups() for m in re.finditer(pattern, f"4. Instruction:{text}", re.DOTALL)]
            whole = [(number, ask, given, out) for number, ask, given, out in whole if "Outcome" not in ask + out]
            count("answers without a task", not whole)
            for _, ask, _, out in whole:
                ask = ask.strip()
                if not out.strip():
                    count("no output")
                elif (why := left_out(ask)) is not None:
                    count(why)
                else:
                    words = re.findall(r"[a-z0-9]+", ask.lower())
                    scores = (2 * longest(words, other) / (len(words) + len(other)) for other in known)
                    if max(scores) > 0.7:
                        count("like another")
                    else:
                        known.append(words)
                        found.append(ask)
        kept += found
    assert {why: n for why, n in counts.items() if n} == {why: n for why, n in work.progress.counts.items() if n}
    assert len({why for why, n in counts.items() if n}) == 9, counts
    rows = [json.loads(line)["instruction"] for line in work.rows.read_text().splitlines()]
    assert rows == kept[:60] and work.progress.kept == 60


def test_answers_are_read_by_their_numbered_fields() -> None:
    text = (
        " Name a bird.\n4. Input:\n<noinput>\n4. Output:\nA wren.\n###\n5. Instruction: Add the numbers\n5. Input:\n2, 3\n"
        "5. Output:\n5\n###\n6. Instruction: No output\n6. Input:\nx\n###\n7. Instruction: Cut off\n7. Input:\n1\n7. Output:\nand"
    )
    found = [Task("Name a bird.", "", "A wren."), Task("Add the numbers", "2, 3", "5")]
    assert tasks.listed(text, 4, whole=False) == found
    assert tasks.listed(text, 4, whole=True) == [*found, Task("Cut off", "1", "and")]
    prompt = tasks.list_prompt(found)
    assert (
        prompt.endswith("###\n3. Instruction:")
        and "###\n1. Instruction: Name a bird.\n1. Input:\n<noinput>\n" in prompt
    )
    assert tasks.listed(prompt.partition("###\n1. Instruction:")[2], 1, whole=False) == found
    assert tasks.instructions(" Sing.\n10. Dance\n twice\n11. Ju", 9, whole=False) == ["Sing.", "Dance twice"]
    assert tasks.example("Is it warm?", " yes\nInput: 30 degrees", True, True) == Task(
        "Is it warm?", "30 degrees", "yes", True
    )
    assert tasks.example("Add", " 1 2\nOutput: 3", False, True) == Task("Add", "1 2", "3", False)
    assert tasks.example("Add", " 1 2", False, True) is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("Name a bird", "too short"),
        ("word " * 151, "too long"),
        ("Describe the picture to me", "a word of what text cannot do"),
        ("Write a program that sorts", "begins as so many do"),
        ("Élaborez un plan pour demain", "begins with a character that is not ASCII"),
        ("- Name a bird today", "begins with a punctuation mark"),
        ("Name a bird that can swim", None),
        ("Explain photography to a friend", None),
    ],
)
def test_what_is_left_out(text: str, why: str | None) -> None:
    assert tasks.why_not(text) == why


@pytest.fixture
def address() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server of OpenAI's protocol which refuses every third request for now."""

    def answer(path: str, body: dict[str, Any]) -> Any:
        assert path == "/v1/completions"
        return (
            completion(invented(body["prompt"], body["seed"])) if body["model"] == "m" else {"error": "no such model"}
        )

    with serving(answer, refused=1) as found:
        yield found


def test_an_address_gives_what_a_writer_here_gives(tmp_path: Path, address: tuple[str, list[dict[str, Any]]]) -> None:
    url, seen = address
    far = Bootstrap(plan(count=15), AddressWriter(url, "m", wait=0.01), tmp_path / "far")
    far.run()
    near = Bootstrap(plan(count=15), Scripted(), tmp_path / "near")
    near.run()
    assert far.rows.read_bytes() == near.rows.read_bytes()
    assert seen[0]["max_tokens"] == 3072 and seen[0]["stop"] == ["\n20", "20."] and seen[0]["temperature"] == 1.0
    with pytest.raises(ResourceError, match=r"answered without a completion: .*no such model"):
        Bootstrap(plan(count=15), AddressWriter(url, "n", wait=0.01), tmp_path / "none").run()
    with pytest.raises(ResourceError, match="does not answer"):
        AddressWriter("http://127.0.0.1:9/v1", "m", wait=0.001).write(["a"], Sampling(3), [1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", [[], ["--step-by-step"]], ids=["lists", "steps"])
def test_the_command_is_killed_beside_a_server_and_comes_to_the_same_tasks(tmp_path: Path, kind: list[str]) -> None:
    def slow(path: str, body: dict[str, Any]) -> Any:
        time.sleep(0.05)
        return completion(invented(body["prompt"], body["seed"]))

    with serving(slow) as (url, seen):
        far = tmp_path / "far"
        line = [
            sys.executable,
            "-m",
            "stemma",
            "data",
            "self-instruct",
            "--model",
            url,
            "--name",
            "m",
            "--out",
            str(far),
        ]
        line += ["--count", "60", "--prompts", "2", "--quiet", *kind]
        kills = 0
        while kills < 40:
            process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            begun = len(seen)
            while process.poll() is None and len(seen) < begun + (40 if kind else 4):  # more than a round has
                time.sleep(0.01)
            if process.poll() is not None:
                break
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
        assert process.returncode == 0 and 2 <= kills < 40, process.stderr.read() if process.stderr else ""
    near = Bootstrap(plan(count=60, at_once=not kind), Scripted(), tmp_path / "near")
    near.run()
    assert (far / "tasks.jsonl").read_bytes() == near.rows.read_bytes()
    states = [json.loads((tmp_path / which / "state.json").read_text()) for which in ("far", "near")]
    assert states[0]["counts"] == states[1]["counts"] and states[0]["round"] == states[1]["round"]


def test_a_model_here_writes_and_a_poor_one_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers as hf

    from stemma.instruct import bootstrap
    from stemma.text import Specials, Tokenizer

    texts = [json.loads(line)["instruction"] for line in Path(SEEDS).read_text().splitlines()]
    tokenizer = Tokenizer.train("bpe", texts, 300, Specials(eos="</s>", pad="<pad>"))
    torch.manual_seed(0)
    sizes: dict[str, Any] = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    hf.LlamaForCausalLM(hf.LlamaConfig(**sizes, vocab_size=300, max_position_embeddings=64)).save_pretrained(
        tmp_path / "m"
    )
    tokenizer.save(tmp_path / "m")
    writer = LocalWriter(stemma.load(tmp_path / "m"), "m")
    how = Sampling(8, stops=("###",))
    first = writer.write(["Name a", "Sort the"], how, [3, 4])
    assert writer.write(["Sort the"], how, [4]) == first[1:] and first[0] != first[1]
    monkeypatch.setattr(bootstrap, "IDLE", 2)
    out = str(tmp_path / "out")
    result = CliRunner().invoke(
        root, ["data", "self-instruct", "--model", str(tmp_path / "m"), "--out", out, "--prompts", "1"]
    )
    assert isinstance(result.exception, DataError)
    assert "2 rounds in a row gave no new task (2 answers without a task)" in str(result.exception)


def test_seeds_are_of_this_project_and_pass_its_own_rules() -> None:
    rows = [json.loads(line) for line in Path(SEEDS).read_text("utf-8").splitlines()]
    assert len(rows) == 24 and len({row["instruction"] for row in rows}) == 24
    assert 4 <= sum(row["is_classification"] for row in rows) <= 8
    with pytest.raises(DataError, match="a seed has an instruction"):
        tasks.seed({"instruction": "x"}, "a:1")
    assert tasks.seed({"instruction": "x", "instances": [{"input": "", "output": "y"}]}, "a:1") == Task("x", "", "y")
