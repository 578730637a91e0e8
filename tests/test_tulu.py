"""The mixtures of Tulu 1 and 2: sources, caps, forms and the filter as open-instruct has them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from stemma.cli import root
from stemma.conversations import Conversation, Turn
from stemma.errors import DataError, UsageError
from stemma.families import family
from stemma.mixtures import tulu
from stemma.mixtures.tulu import MIXTURES, Rows, barred, divided, paths

Row = Mapping[str, Any]


def test_the_published_sources() -> None:
    """scripts/data/sft_v1_v2/reformat_datasets.py: (form, cap, repeated, divided at, filtered) of each source."""

    def table(name: str) -> dict[str, tuple[Any, ...]]:
        return {s.name: (s.form, s.cap, s.repeat, s.split, s.filtered) for s in MIXTURES[name].sources}

    def one(form: str = "conversation", cap: int | None = None, split: int | None = None) -> tuple[Any, ...]:
        return form, cap, 1, split, True

    assert table("tulu") == {
        "flan_v2": one("prompt", 100_000),
        "cot_zero_shot": one("prompt", 50_000),
        "cot_few_shot": one("prompt", 50_000),
        "oasst1": one("tree"),
        "dolly": one("instruction"),
        "gpt4_alpaca": one("instruction"),
        "code_alpaca": one("instruction"),
        "sharegpt": one(split=2048),
    }
    assert table("tulu2") == {
        "flan_v2": one("prompt", 50_000),
        "cot_zero_shot": one("prompt", 25_000),
        "cot_few_shot": one("prompt", 25_000),
        "oasst1": one("best of tree"),
        "lima": one(),
        "gpt4_alpaca": one("instruction", 20_000),
        "code_alpaca": one("instruction"),
        "sharegpt": one(split=4096),
        "wizardlm": one(cap=30_000),
        "open_orca": one(cap=30_000),
        "science": one(),
        "hard_coded": ("conversation", None, 10, None, False),
    }
    assert MIXTURES["tulu"].words == () and len(MIXTURES["tulu2"].words) == 22


def test_families_say_the_same() -> None:
    """What the tree says of the mixtures: the examples of FLAN, of chains of thought, and the capped sets."""
    for name, caps in (("tulu", (100_000, 100_000)), ("tulu2", (50_000, 50_000))):
        tuning = family(name).tuning
        assert tuning is not None
        told = {source.name: source.examples for source in tuning.stages[0].mixture}
        sources = {source.name: source.cap for source in MIXTURES[name].sources}
        assert (told["FLAN v2"], told["CoT"]) == caps
        assert sources["flan_v2"] == caps[0] and (sources["cot_zero_shot"] or 0) * 2 == caps[1]


# ---------------------------------------------------------------- trees


def node(text: str, *replies: dict[str, Any], quality: float | None = None, **more: Any) -> dict[str, Any]:
    role = "prompter" if text[0] == "u" else "assistant"
    labels = {} if quality is None else {"quality": {"value": quality, "count": 3}}
    return {"text": text, "role": role, "replies": list(replies), "labels": labels, **more}


TREE = node(
    "u1",
    node("a1", node("u2", node("a2", quality=0.2), node("a3", quality=0.9)), node("u3"), quality=0.4),
    node("a4", node("u4", node("a5", quality=0.1), quality=0.8), quality=0.7),
    node("a6", quality=0.99, deleted=True),
    node("a7"),
)


def walked(tree: Mapping[str, Any], best: bool) -> Iterator[list[str]]:
    """As the published script walks: from each message into its replies, those that nobody answered are the ends."""
    stack: list[tuple[Mapping[str, Any], list[str]]] = [(tree, [])]
    while stack:
        here, before = stack.pop()
        if here.get("deleted"):
            continue
        texts = [*before, here["text"]]
        if here["role"] == "assistant" and not here["replies"]:
            yield texts
            continue
        there = [reply for reply in here["replies"] if not reply.get("deleted")]
        there.sort(key=lambda reply: -reply["labels"].get("quality", {"value": 0.0})["value"])
        stack += [(reply, texts) for reply in (there[:1] if best else there)]


def test_trees() -> None:
    every = [[turn.content for turn in turns] for turns in paths(TREE, best=False)]
    assert sorted(every) == sorted(walked(TREE, False))
    assert every == [["u1", "a1", "u2", "a2"], ["u1", "a1", "u2", "a3"], ["u1", "a4", "u4", "a5"], ["u1", "a7"]]
    (best,) = paths(TREE, best=True)
    assert [[turn.content for turn in best]] == list(walked(TREE, True)) == [["u1", "a4", "u4", "a5"]]
    assert [turn.role for turn in best] == ["user", "assistant", "user", "assistant"]
    with pytest.raises(DataError, match="no role"):
        list(paths({"text": "x"}, False))


# ---------------------------------------------------------------- rows


def made(name: str, seed: int = 1, **read: list[Row]) -> tuple[list[dict[str, Any]], Rows]:
    source = Rows(MIXTURES[name], {key: (lambda rows=rows: iter(rows)) for key, rows in read.items()}, seed)
    return list(source.rows()), source


def asked(row: dict[str, Any]) -> str:
    return str(row["messages"][0]["content"])


def test_prompts_of_flan_end_with_a_line() -> None:
    """But for those that end with one, or with a colon."""
    rows = [{"inputs": text, "targets": "x"} for text in ("What?", "Say:", "Say: ", "Lines\n")]
    found, _ = made("tulu", flan_v2=rows)
    assert [asked(row) for row in found] == ["What?\n", "Say:", "Say: ", "Lines\n"]
    assert all(row["messages"][1] == {"role": "assistant", "content": "x"} for row in found)


def test_caps_are_draws_of_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"instruction": f"do {i}", "input": "", "output": "x"} for i in range(50)]
    small = tulu.Mixture("m", "", (tulu.Source("gpt4_alpaca", "instruction", 20), tulu.Source("dolly", "instruction")))
    monkeypatch.setitem(MIXTURES, "m", small)
    found, source = made("m", gpt4_alpaca=rows, dolly=rows)
    assert Counter(row["task"] for row in found) == {"gpt4_alpaca": 20, "dolly": 50}
    assert found == made("m", gpt4_alpaca=rows, dolly=rows)[0] != made("m", 2, gpt4_alpaca=rows, dolly=rows)[0]
    assert source.counts == {("gpt4_alpaca", "rows"): 20, ("dolly", "rows"): 50}


def test_instructions_are_written_in_several_ways() -> None:
    rows: list[Row] = [{"instruction": "Add.", "input": f"{i} and 1", "output": f"{i + 1}"} for i in range(60)]
    rows += [{"instruction": f"Name {i}.", "context": "", "response": "x"} for i in range(60)]
    found, _ = made("tulu", dolly=rows)
    given = {asked(row).replace(f"{i} and 1", "N") for i, row in enumerate(found[:60])}
    assert given == {form.replace("{instruction}", "Add.").replace("{input}", "N") for form in tulu.WITH_INPUT}
    bare = {asked(row).replace(f"Name {i}.", "N") for i, row in enumerate(found[60:])}
    assert bare == {form.replace("{instruction}", "N") for form in tulu.WITHOUT_INPUT}
    assert [row["messages"][1]["content"] for row in found[:3]] == ["1", "2", "3"]


def test_the_filter_spares_what_is_hard_coded() -> None:
    def talk(text: str) -> Row:
        return {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": text}]}

    rows = [talk("I am chatGPT."), talk("As made by openai"), talk("In my palm"), talk("Nothing."), talk("GPT-2")]
    found, source = made("tulu2", lima=rows, hard_coded=[{"Prompt": "Who?", "Output": "Not ChatGPT."}])
    assert [row["messages"][1]["content"] for row in found if row["task"] == "lima"] == ["Nothing.", "GPT-2"]
    assert source.counts["lima", "rows left out by the filter of words"] == 3
    assert [row["messages"][1]["content"] for row in found if row["task"] == "hard_coded"] == ["Not ChatGPT."] * 10
    kept, _ = made("tulu", sharegpt=rows)
    assert len(kept) == 5
    assert barred(Conversation((Turn("user", "laion-5b"), Turn("assistant", "x"))), tulu.WORDS)


def test_other_rows_as_they_are_published() -> None:
    orca = {"id": "1", "system_prompt": "Be kind.", "question": "Why?", "response": "So."}
    found, _ = made("tulu2", open_orca=[orca], science=[{"dataset": "s", "input": "Find", "output": "it"}])
    assert [message["role"] for message in found[0]["messages"]] == ["system", "user", "assistant"]
    assert found[0]["messages"][0]["content"] == "Be kind." and asked(found[1]) == "Find"


def test_long_conversations_are_divided() -> None:
    """Whole rounds of at most so many tokens, six of them around each message; a longer round is left out."""
    words = [("a", "b"), ("c" * 30, "d"), ("e", "f" * 200), ("g", "h"), ("i", "j")]
    turns = tuple(Turn(("user", "assistant")[k], text) for pair in words for k, text in enumerate(pair))
    for longest in (20, 60, 100, 1000):
        found = divided(Conversation(turns), longest, len)
        sizes = [sum(len(turn.content) + 6 for turn in piece.turns) for piece in found]
        kept = [pair for pair in words if len(pair[0]) + len(pair[1]) + 12 <= longest]
        assert all(size <= longest for size in sizes)
        assert [(p.turns[i].content, p.turns[i + 1].content) for p in found for i in range(0, len(p.turns), 2)] == kept
    assert len(divided(Conversation(turns), 1000, len)) == 1


def test_sources_that_are_none() -> None:
    with pytest.raises(UsageError, match="tulu has no source 'lima'"):
        made("tulu", lima=[])
    with pytest.raises(DataError, match="source dolly of tulu has no row that can be read \\(row 1: "):
        made("tulu", dolly=[{"x": 1}])
    found, source = made("tulu", oasst1=[{"prompt": TREE}, {"x": 1}])
    assert len(found) == 4 and source.wrong == {"oasst1": "row 2: it has no tree of messages under 'prompt'"}


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "trees.jsonl").write_text(json.dumps({"message_tree_id": "1", "prompt": TREE}) + "\n", "utf-8")
    out = tmp_path / "rows.jsonl"
    words = ["data", "mixture", "tulu2", "--from", f"oasst1={tmp_path / 'trees.jsonl'}", "--out", str(out), "--json"]
    done = CliRunner().invoke(root, words)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["counts"] == {"oasst1": {"rows": 1}}
    (row,) = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert [m["content"] for m in row["messages"]] == ["u1", "a4", "u4", "a5"] and row["task"] == "oasst1"
    done = CliRunner().invoke(root, ["data", "mixture", "tulu2", "--out", str(out)])
    assert done.exit_code == 0 and "builtin:captain" in done.stderr
    counts = Counter(json.loads(line)["task"] for line in out.read_text("utf-8").splitlines())
    assert counts["hard_coded"] == 10 * 50 and counts["sharegpt"] == 572
