"""Explanations of a teacher: messages by sub-collection, the draw of queries, resuming, and both kinds of teachers."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import stemma
from commands import starter
from stemma.cli import root
from stemma.conversations import Turn
from stemma.errors import DataError, UsageError
from stemma.instruct import explain
from stemma.instruct.bootstrap import Bootstrap
from stemma.instruct.explain import Explanations, Plan
from stemma.instruct.messages import CHOICES, FOR, MESSAGES, PUBLISHED, fitting
from stemma.instruct.queries import Query, chosen, queries, query, shared
from stemma.instruct.writers import AddressWriter, Continuation, LocalWriter, Sampling


def said(talk: Sequence[Turn], seed: int) -> str:
    """What a scripted teacher says."""
    return f"{talk[-1].content}: because {seed % 7} ({len(talk)} turns)\u2028Done."


class Scripted:
    """Says that; every fifth answer is empty, every seventh is cut. Fails after so many calls."""

    name = "scripted"

    def __init__(self, calls: int = 10**6) -> None:
        self.calls = calls

    def answer(self, talks: Sequence[Sequence[Turn]], how: Sampling, seeds: Sequence[int]) -> list[Continuation]:
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        return [
            Continuation("" if seed % 5 == 0 else said(talk, seed), seed % 7 != 0)
            for talk, seed in zip(talks, seeds, strict=True)
        ]


class Brief(Scripted):
    """Reads a few words alone."""

    def answer(self, talks: Sequence[Sequence[Turn]], how: Sampling, seeds: Sequence[int]) -> list[Continuation]:
        short = [len(talk[-1].content) < 100 for talk in talks]
        return [Continuation("so", True) if fits else Continuation("", False, fits=False) for fits in short]


def rows(amounts: dict[str, int], tasks: int = 4) -> list[Query]:
    return [
        Query(f"{name} {i}?", name, f"task {i % tasks if i < 900 else 0}", choices=i % 2 == 0)
        for name, n in amounts.items()
        for i in range(n)
    ]


def test_there_are_sixteen_messages_with_the_published_table() -> None:
    """Arxiv 2306.02707, table 2 (their number, one is empty), figure 6 and table 3."""
    assert list(MESSAGES) == list(range(1, 17)) and MESSAGES[1] == "" and len({*MESSAGES.values()}) == 16
    assert FOR == {
        "cot": (6, 11, 16),
        "niv2": (1, 2, 5, 7, 9, 12, 13, 14, 15),
        "flan2021": (3, 4, 7, 8, 10),
        "t0": (1, 2, 3, 5, 7),
    }
    assert {n for numbers in FOR.values() for n in numbers} == {*MESSAGES} and CHOICES == (8, 10)
    assert fitting("flan2021", True) == (3, 4, 7, 8, 10) and fitting("flan2021", False) == (3, 4, 7)
    assert PUBLISHED == {"cot": 150_000, "niv2": 440_000, "flan2021": 2_500_000, "t0": 2_000_000}
    assert sum(PUBLISHED.values()) == 5_090_000
    with pytest.raises(UsageError, match="no sub-collection is called 'flan'; there are cot"):
        fitting("flan", True)


def test_queries_are_drawn_by_the_published_shares() -> None:
    found = rows({"cot": 2000, "niv2": 2000, "flan2021": 2000, "t0": 2000})
    picked = chosen(found, 1000, seed=3)
    amounts = Counter(one.collection for one in picked)
    exact = {name: 1000 * share / 5_090_000 for name, share in PUBLISHED.items()}
    assert sum(amounts.values()) == 1000 and all(abs(amounts[name] - exact[name]) < 1 for name in exact)
    assert len({one.text for one in picked}) == 1000 and chosen(found, 1000, seed=3) == picked
    assert chosen(found, 1000, seed=4) != picked
    for one in picked:
        assert one.number in FOR[one.collection] and one.system == MESSAGES[one.number]
        assert one.choices or one.number not in CHOICES
    drawn = Counter((one.collection, one.number) for one in picked)
    assert all(drawn[name, n] for name, numbers in FOR.items() for n in numbers)
    # of one task there are 1,325 queries and of the others 225 each: the rest draws tasks alike, chains queries
    by_task = Counter((one.collection, one.task) for one in picked)
    t0 = [by_task["t0", f"task {k}"] for k in range(4)]
    assert max(t0) - min(t0) < 60 and by_task["cot", "task 0"] > 2 * by_task["cot", "task 1"]
    every = Counter((one.collection, one.task) for one in chosen(found, None, seed=1))
    assert every["niv2", "task 0"] == 300 and every["t0", "task 0"] == 1325 and sum(every.values()) == 6975


def test_a_sub_collection_that_ends_leaves_its_share_to_the_others() -> None:
    assert shared(10, {"cot": 9, "t0": 9}) == {"cot": 1, "t0": 9}
    assert shared(18, {"cot": 9, "t0": 9}) == {"cot": 9, "t0": 9}
    assert shared(3, {"flan2021": 9, "t0": 9}) == {"flan2021": 2, "t0": 1}
    with pytest.raises(UsageError, match="18 queries may be asked, fewer than 19"):
        shared(19, {"cot": 9, "t0": 9})
    again = [Query("a", system="s"), Query("b", system="")]
    with pytest.raises(UsageError, match="there are 2 queries, fewer than 3"):
        chosen(again, 3, 1)
    assert sorted(chosen(again, None, 1), key=lambda one: one.text) == again


def test_rows_become_queries() -> None:
    """Columns by their usual names, options in the text or in a column, what was drawn before."""
    assert query({"inputs": "Why? ", "targets": "So", "collection": "t0", "task": "x"}) == Query(
        "Why?", "t0", "x", right="So"
    )
    assert query({"instruction": "Add", "input": "1 2", "output": "3"}, collection="cot").text == "Add\n\n1 2"
    for text in ("Which?\nOptions:\n- a\n- b", "Which? (A) one (B) two", "Which?\nA. one\nB. two"):
        assert query({"question": text}, collection="flan2021").choices, text
    for text in ("What are options?", "A. Smith asked B for help", "See (a) and go"):
        assert not query({"question": text}, collection="flan2021").choices, text
    assert query({"question": "Which?", "choices": ["a", "b"]}, collection="t0").choices
    made = {"system": "s", "question": "q", "answer": "long", "right": "", "collection": "t0", "message": 3}
    assert query(made) == Query("q", "t0", system="s", number=3)
    for row, why in (
        ({"body": "x"}, r"no text in any of question, .* \(its fields: 'body'\)"),
        ({"question": "x"}, "names no sub-collection"),
    ):
        with pytest.raises(DataError, match=why):
            query(row)


@pytest.mark.parametrize("round", [3, 8])
def test_what_was_stopped_goes_on_to_the_same_rows(tmp_path: Path, round: int) -> None:
    found = rows({"cot": 20, "t0": 60})
    plan = Plan("scripted", explain.digest(found), 50, round=round)
    one = Explanations(plan, Scripted(), found, tmp_path / "one")
    one.run()
    while True:
        two = Explanations(plan, Scripted(2), found, tmp_path / "two")
        try:
            two.run()
            break
        except KeyboardInterrupt:
            with open(two.rows, "ab") as file:
                file.write(b'{"system": "half a li')
    assert two.rows.read_bytes() == one.rows.read_bytes() and two.progress == one.progress
    made = [json.loads(line) for line in one.rows.read_bytes().split(b"\n")[:-1]]
    counts = one.progress.counts
    assert len(made) == one.progress.kept == 50 - counts["empty"] - counts["cut"] and counts["empty"] and counts["cut"]
    assert made == one.made == two.made and {row["question"] for row in made} < {one.text for one in found}
    assert all(row["system"] == MESSAGES[row["message"]] for row in made)
    for other, why in (
        (Plan("scripted", explain.digest(found), 50, seed=2, round=round), "was begun with seed=1, not 2"),
        (Plan("scripted", explain.digest(found[1:]), 50, round=round), "was begun with queries="),
    ):
        with pytest.raises(UsageError, match=why):
            Explanations(other, Scripted(), found, tmp_path / "one")
    # a stronger teacher answers some of them again, with the messages that they have
    second = chosen(queries(str(one.rows)), 10, seed=1)
    asked = {(row["question"], row["system"], row["message"]) for row in made}
    assert len(second) == 10 and {(q.text, q.system, q.number) for q in second} < asked


def test_a_line_end_in_a_task_ends_no_row(tmp_path: Path) -> None:
    """Self-instruct's rows are read again line by line, and a text may hold other ends of lines."""
    from test_instruct import Scripted as Writer
    from test_instruct import plan

    one = Bootstrap(plan(count=4), Writer(), tmp_path)
    one.run()
    one.ledger.commit(
        [{"instruction": "a\u2028b c d", "input": "", "output": "\x85"}],
        {"round": 2, "kept": 5, "counts": {}},
        asdict(one.plan),
    )
    assert Bootstrap(plan(count=4), Writer(), tmp_path).made[-1].instruction == "a\u2028b c d"


# ---------------------------------------------------------------- teachers


@pytest.fixture
def address() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server of OpenAI's protocol that takes its time."""
    seen: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append({"path": self.path, **body})
            time.sleep(0.02)
            talk = [Turn(m["role"], m["content"]) for m in body["messages"]]
            message = {"role": "assistant", "content": said(talk, body["seed"])}
            raw = json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", seen
    server.shutdown()


def asked(tmp_path: Path, amount: int) -> Path:
    path = tmp_path / "queries.jsonl"
    held = ({"question": f"What is {i} + 1?", "collection": "cot", "answer": i + 1} for i in range(amount))
    path.write_text("".join(json.dumps(row) + "\n" for row in held))
    return path


def test_an_address_is_asked_in_turns(tmp_path: Path, address: tuple[str, list[dict[str, Any]]]) -> None:
    url, seen = address
    out = tmp_path / "out"
    words = [
        "data",
        "explain",
        str(asked(tmp_path, 9)),
        "--teacher",
        url,
        "--name",
        "m",
        "--out",
        str(out),
        "--count",
        "6",
    ]
    result = CliRunner().invoke(root, words, catch_exceptions=False)
    assert result.exit_code == 0 and "6 of 6 asked, 6 kept" in result.output
    assert "sub-collections: cot 6\nsystem messages: " in result.output
    made = [json.loads(line) for line in (out / "rows.jsonl").read_bytes().split(b"\n")[:-1]]
    assert all(row["right"] == str(int(row["question"].split()[2]) + 1) for row in made)
    for row in made:
        (body,) = [b for b in seen if b["messages"][-1]["content"] == row["question"]]
        assert body["path"] == "/v1/chat/completions" and body["model"] == "m" and body["max_tokens"] == 512
        assert body["messages"][:-1] == [{"role": "system", "content": row["system"]}]
        assert row["answer"] == said([Turn("system", ""), Turn("user", row["question"])], body["seed"])
    for more, why in ((["--template", "vicuna"], "--template is for models here"), ([], "say which with --name")):
        found = CliRunner().invoke(root, [*words[:5], *more, *(["--name", "m"] if more else []), "--out", "x"])
        assert isinstance(found.exception, UsageError) and why in str(found.exception)


@pytest.mark.slow
def test_a_killed_teacher_goes_on_to_the_same_rows(tmp_path: Path, address: tuple[str, list[dict[str, Any]]]) -> None:
    """SIGKILL at three moments of the command; the rows equal those of one that nobody disturbed."""
    url, seen = address
    words = ["data", "explain", asked(tmp_path, 60), "--teacher", url, "--name", "m", "--at-once", "2", "--quiet"]
    start = starter()
    assert start.run(*words, "--out", tmp_path / "one").code == 0
    for amount in (6, 14, 22):
        before, process = len(seen), start.start(*words, "--out", tmp_path / "two")
        while len(seen) - before < amount and process.poll() is None:
            time.sleep(0.002)
        process.kill()
        assert process.wait().code == -9
    assert start.run(*words, "--out", tmp_path / "two").code == 0
    assert (tmp_path / "two" / "rows.jsonl").read_bytes() == (tmp_path / "one" / "rows.jsonl").read_bytes()
    assert len((tmp_path / "one" / "rows.jsonl").read_bytes().split(b"\n")) == 61


def test_a_model_here_answers_by_its_template(tmp_path: Path) -> None:
    import transformers as hf

    from stemma.text import Specials, Tokenizer

    tokenizer = Tokenizer.train("bpe", ["USER: ASSISTANT: why do you ask " * 9], 280, Specials(eos="</s>", pad="<pad>"))
    torch.manual_seed(0)
    sizes: dict[str, Any] = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    network = hf.LlamaForCausalLM(hf.LlamaConfig(**sizes, vocab_size=280, max_position_embeddings=96))
    network.save_pretrained(tmp_path / "m")
    tokenizer.save(tmp_path / "m")
    model, talk = stemma.load(tmp_path / "m"), [Turn("system", "be kind"), Turn("user", "why")]
    with pytest.raises(UsageError, match="has no chat template; name one of"):
        LocalWriter(model, "m").answer([talk], Sampling(8), [1])
    writer = LocalWriter(model, "m", template="koala")
    (found,) = writer.answer([talk], Sampling(8, 0.0, stops=("zzz",)), [1])
    text = "BEGINNING OF CONVERSATION: USER: why GPT:"
    (alone,) = stemma.generate(model, [model.tokenizer.encode(text, add_special=False)], max_new_tokens=8)
    assert found.text == alone.text and not found.whole
    long = [Turn("user", "why do you ask " * 40)]
    told = writer.answer([long, talk, long], Sampling(8, 0.0, stops=("zzz",)), [1, 1, 1])
    assert [one.fits for one in told] == [False, True, False] and told[1] == found and not told[0].text
    asked = [Query(text, "cot", "t") for text in ("why " * 200, "why")]
    made = Explanations(Plan("m", "q", tokens=8), Brief(), asked, tmp_path / "out")
    made.run()
    assert made.progress.counts == {"too long for the teacher": 1} and [row["question"] for row in made.made] == ["why"]
    assert AddressWriter("http://127.0.0.1:9/v1/", "m").name == "m at http://127.0.0.1:9/v1"
