"""A judge's preferences as pairs: both orders, agreement, what is left out, and resuming."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from stemma.cli import root
from stemma.conversations import Turn
from stemma.conversations.comparisons import ranked
from stemma.errors import UsageError
from stemma.instruct.writers import Answered, Ask, Continuation
from stemma.judging.pairs import Pairs, Plan, told
from stemma.judging.prompts import Prompts
from test_explain import address  # noqa: F401
from test_rounds import talker  # noqa: F401
from test_tune import decoder, tokenizer, written  # noqa: F401


class Writer:
    """Answers with a number of its seed; of some prompts always the same, nothing, or half a sentence."""

    def __init__(self, calls: int = 10**6) -> None:
        self.calls = calls

    def answers(self, asked: Sequence[Ask]) -> Answered:
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        for i, one in enumerate(asked):
            number = int(one.turns[-1].content)
            texts = {0: "the same", 1: ""}
            yield [(i, Continuation(texts.get(number % 8, f"answer {one.seed % 1000}"), number % 8 != 2, number != 11))]


class Judge:
    """Prefers the larger number; of some prompts what stands first, nothing, or nobody."""

    def answers(self, asked: Sequence[Ask]) -> Answered:
        for i, one in enumerate(asked):
            text = one.turns[-1].content
            a, b = (int(n) for n in re.findall(r"answer (\d+)", text))
            number = int(re.findall(r"(?:^|\n|: )(\d+)(?:$|\n)", text)[0])
            said = {3: "[[A]]", 4: "I cannot tell.", 5: "[[C]]"}.get(number % 8, "[[A]]" if a > b else "[[B]]")
            yield [(i, Continuation(said, True))]


def test_pairs_are_kept_where_both_orders_agree(tmp_path: Path) -> None:
    asked = [(Turn("user", str(i)),) for i in range(64)]
    asked[6] = (Turn("system", "Be brief."), Turn("user", "hello"), Turn("assistant", "hi"), Turn("user", "6"))
    plan = Plan("w", "j", "p", round=5)
    made = Pairs(plan, Writer(), Judge(), asked, Prompts(), tmp_path / "out")
    found = made.run()
    assert dict(found.counts) == {
        "equal answers": 8, "an empty answer": 8, "an answer that was cut": 8, "a prompt that is too long": 1,
        "verdicts that differ by the order": 7, "a verdict that cannot be read": 8, "a tie": 8,
    }  # fmt: skip
    assert found.kept == len(made.made) == 16 and (found.valid, found.same, found.first) == (31, 24, 7)
    assert told(found).startswith("both orders: the same verdict in 24 of 31 (0.77); in 7 the answer that stood first")
    for row in made.made:
        better, worse = (int(row[side][0]["content"].split()[1]) for side in ("chosen", "rejected"))
        assert better > worse and int(row["prompt"][-1]["content"]) % 8 in (6, 7)
        assert ranked(row).talks[0].turns[-1].content == f"answer {better}"
    assert [turn["role"] for turn in made.made[0]["prompt"]] == ["system", "user", "assistant", "user"]
    while True:
        try:
            Pairs(plan, Writer(3), Judge(), asked, Prompts(), tmp_path / "two").run()
            break
        except KeyboardInterrupt:
            continue
    assert (tmp_path / "two" / "rows.jsonl").read_bytes() == made.rows.read_bytes()
    with pytest.raises(UsageError, match="was begun with judge=j, not other"):
        Pairs(Plan("w", "other", "p", round=5), Writer(), Judge(), asked, Prompts(), tmp_path / "two")


def test_a_judge_at_an_address_is_asked_twice_for_each_pair(
    tmp_path: Path, talker: Path, address: tuple[str, list[dict[str, Any]]]  # noqa: F811
) -> None:  # fmt: skip
    url, seen = address
    data = written(tmp_path / "asked.jsonl", [{"prompt": f"who wrote it {i}"} for i in range(4)])
    words = ["data", "ai-feedback", data, "--model", str(talker), "--template", "plain", "--tokens", "24"]
    result = CliRunner().invoke(root, [*words, "--judge", f"{url}#m", "--out", str(tmp_path / "out")])
    assert result.exit_code == 0 and "4 of 4 asked, 0 kept" in result.output
    state = json.loads((tmp_path / "out" / "state.json").read_text())
    assert len(seen) == 2 * state["counts"]["a verdict that cannot be read"] > 0
    one, two = (body["messages"][-1]["content"] for body in seen[:2])
    assert one != two and sorted(one) == sorted(two)
