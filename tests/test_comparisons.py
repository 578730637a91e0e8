"""Rows in which answers were compared, liked or are awaited: every published shape as the same record, and what is wrong
with others in one sentence."""

from __future__ import annotations

import gzip
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from stemma.conversations.comparisons import asked, compares, ranked, thumbs
from stemma.errors import DataError

HH = Path(os.environ.get("STEMMA_SHARED", "shared")) / "data" / "hh_rlhf" / "test.jsonl.gz"
USER, GOOD, BAD = (
    {"role": r, "content": c} for r, c in (("user", "Hi?"), ("assistant", "Hello!"), ("assistant", "What?"))
)
PAIR = {"prompt": "Hi?", "chosen": "Hello!", "rejected": "What?"}

# two answers, "Hello!" better than "What?", in every shape
SHAPES: dict[str, dict[str, Any]] = {
    "trl, explicit": PAIR,
    "trl, conversational": {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
    "trl, implicit and conversational": {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
    "HH": {"chosen": "\n\nHuman: Hi?\n\nAssistant: Hello!", "rejected": "\n\nHuman: Hi?\n\nAssistant: What?"},
    "HH, prompt apart": {"prompt": "\n\nHuman: Hi?\n\nAssistant:", "chosen": "Hello!", "rejected": "What?"},
    "UltraFeedback": {
        "instruction": "Hi?", "completions": [{"response": "What?", "overall_score": "3"}, {"response": "Hello!", "overall_score": 8.5}],
    },
    "UltraFeedback, binarised": {
        "prompt": "Hi?", "messages": [USER, GOOD], "chosen": [USER, GOOD], "rejected": [USER, BAD], "score_chosen": 8, "score_rejected": 3,
    },
    "ranks": {"prompt": "Hi?", "responses": ["What?", "Hello!"], "ranks": [1, 0]},
    "scores": {"prompt": [USER], "answers": ["What?", "Hello!"], "scores": [0.1, 0.2]},
    "best first": {"prompt": "Hi?", "responses": ["Hello!", "What?"]},
    "Nectar": {"prompt": "\n\nHuman: Hi?\n\nAssistant:", "answers": [{"answer": "What?", "rank": 7.0}, {"answer": "Hello!", "rank": 1.0}]},
    "WebGPT": {"question": {"full_text": "Hi?"}, "answer_0": "What?", "answer_1": "Hello!", "score_0": -1.0, "score_1": 1.0},
    "HelpSteer": {"prompt": "Hi?", "response_1": "What?", "response_2": "Hello!", "preference_strength": 3},
    "Chatbot Arena": {"conversation_a": [USER, BAD], "conversation_b": [USER, GOOD], "winner": "model_b"},
    "summaries": {"info": {"post": "Hi?"}, "summaries": [{"text": "What?"}, {"text": "Hello!"}], "choice": 1},
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_is_two_answers_to_a_prompt(name: str) -> None:
    row = SHAPES[name]
    found = ranked(row)
    assert compares(row)
    assert ([(t.role, t.content) for t in found.prompt], found.answers) == ([("user", "Hi?")], ["Hello!", "What?"])
    assert found.ranks == (0, 1) and [p[:3] for p in found.pairs()] == [(0, 1, False)]
    assert [(t.answers[-1], t.liked) for t in thumbs(row)] == [("Hello!", True), ("What?", False)]
    assert [t.content for t in asked(row).turns] == ["Hi?"]


def test_texts_without_a_prompt_begin_with_it() -> None:
    found = ranked({"chosen": "The sky is blue.", "rejected": "The sky is black."})
    assert ([t.content for t in found.prompt], found.answers) == (["The sky is"], [" blue.", " black."])


def test_four_answers_are_six_pairs_with_ties_and_gaps() -> None:
    found = ranked({"prompt": "q", "responses": ["a", "b", "c", "d"], "scores": [1, 3, 1, 2]})
    assert found.answers == ["b", "d", "a", "c"] and found.ranks == (0, 1, 2, 2)
    assert [(p.better, p.worse, p.tied, p.gap) for p in found.pairs()] == [
        (0, 1, False, 1.0), (0, 2, False, 2.0), (0, 3, False, 2.0), (1, 2, False, 1.0), (1, 3, False, 1.0), (2, 3, True, 0.0),
    ]  # fmt: skip
    assert ranked({"prompt": "q", "responses": ["a", "b", "a"], "ranks": [0, 1, 0]}).answers == ["a", "b"]


def test_grades_margins_and_ties_of_pairs() -> None:
    for grade, place in (("Significantly better", 0), ("better", 1), ("slightly  better", 2), ("unsure", 3), ("negligibly better / unsure", 3)):  # fmt: skip
        assert ranked(PAIR | {"grade": grade}).pairs()[0].grade == place
    assert ranked(PAIR | {"margin": 0.5}).pairs()[0].margin == 0.5
    assert ranked(PAIR | {"tie": True}).ranks == (0, 0) == ranked(PAIR | {"score_chosen": 5, "score_rejected": 5}).ranks
    assert (
        ranked({"prompt": "q", "response_1": "a", "response_2": "b", "preference_strength": -1}).pairs()[0].grade == 2
    )


def test_rows_that_compare_nothing_say_why() -> None:
    for row, why in (
        (PAIR | {"rejected": "Hello!"}, "are the same"),
        (PAIR | {"rejected": " "}, "turn 2 .assistant. is empty"),
        (PAIR | {"score_chosen": 1, "score_rejected": 2}, "rejected answer has the higher score, 2 and 1"),
        (PAIR | {"grade": "best"}, "grade is 'best'; grades are significantly better"),
        (PAIR | {"margin": "wide"}, "'margin' holds 'wide'"),
        ({"chosen": "a", "rejected": "b"}, "no common beginning"),
        ({"chosen": [USER, GOOD], "rejected": [USER | {"content": "Who?"}, BAD]}, "differ from turn 1 on"),
        ({"chosen": [USER, GOOD], "rejected": [USER, GOOD, USER, BAD]}, "differ from turn 2 on"),
        ({"prompt": "q", "responses": ["a", "b"], "ranks": [0]}, "ranks are .0., and a number for each of the 2"),
        (
            {"prompt": "q", "responses": ["a", "a"], "ranks": [0, 1]},
            "answers 1 and 2 are the same, and one is preferred",
        ),
        ({"prompt": "q", "responses": ["a", "a"], "ranks": [0, 0]}, "so none was preferred"),
        ({"prompt": "q", "answers": [{"text": "a", "score": 1}, {"text": "b"}]}, "answer 2 has no 'score', by which"),
        ({"prompt": "q", "answers": ["a", {"text": "b", "rank": 0}]}, "answer 1 has no 'rank', by which"),
        ({"prompt": "q", "response_1": "a", "response_2": "b"}, "no preference_strength"),
        ({"text": "a"}, "compare no answers"),
    ):
        with pytest.raises(DataError, match=why):
            ranked(row)


def test_answers_that_all_have_a_score_are_ordered_by_it_though_another_is_missing() -> None:
    answers = [{"text": "a", "overall_score": None, "score": 1}, {"text": "b", "overall_score": 9, "score": 2}]
    assert ranked({"prompt": "q", "answers": answers}).answers == ["b", "a"]
    assert ranked({"prompt": "q", "answers": [{"text": "a"}, {"text": "b"}]}).answers == ["a", "b"]


def test_thumbs_are_of_each_rated_answer() -> None:
    talk = [USER, BAD | {"rating": -1}, USER | {"content": "Again?"}, GOOD | {"rating": "up"}]
    assert [(t.answers, t.liked) for t in thumbs({"messages": talk})] == [
        (["What?"], False),
        (["What?", "Hello!"], True),
    ]
    assert thumbs({"prompt": "q", "completion": "a", "label": False})[0].liked is False
    for row, why in (
        ({"prompt": "q", "completion": "a"}, "no 'label'"),
        ({"prompt": "q", "completion": "a", "rating": 4}, "rating is 4"),
        (PAIR | {"tie": True}, "none of its answers was preferred"),
    ):
        with pytest.raises(DataError, match=why):
            thumbs(row)


def test_prompts_are_what_an_answer_is_to_follow() -> None:
    for row, turns in (
        ({"prompt": "Hi?"}, ["Hi?"]),
        ({"prompt": [USER]}, ["Hi?"]),
        ({"prompt": "\n\nHuman: Hi?\n\nAssistant: Hello!\n\nHuman: So?\n\nAssistant:"}, ["Hi?", "Hello!", "So?"]),
        ({"messages": [USER, GOOD]}, ["Hi?"]),
        ({"prompt": "Hi?", "system": "Be short."}, ["Be short.", "Hi?"]),
        ({"prompt": [USER], "system": "Be short."}, ["Be short.", "Hi?"]),
    ):
        assert [t.content for t in asked(row).turns] == turns


@pytest.mark.skipif(not HH.is_file(), reason="the real pairs are not here")
def test_real_pairs() -> None:
    """Of the 2,312 pairs of the public test split 13 are damaged: empty answers, two turns of one side."""
    found: Counter[str] = Counter()
    with gzip.open(HH, "rt", encoding="utf-8") as lines:
        for line in lines:
            try:
                found["good"] += len(ranked(json.loads(line)).answers) == 2
            except DataError as error:
                found["empty" if "is empty" in str(error) else "out of order"] += 1
    assert found == {"good": 2299, "empty": 4, "out of order": 9}
