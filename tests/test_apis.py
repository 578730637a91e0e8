"""Rows of APIBench: three dialects read as one, prompts with documentation, retrievers, and the calls that stand in."""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import stemma
from stemma.cli import root
from stemma.conversations import apis, read
from stemma.conversations.templates import NAMES, TurnsWriter
from stemma.errors import DataError, UsageError
from stemma.instruct import documents
from stemma.samples import calls
from stemma.tuning import tune

CALL = "torch.hub.load('a/b', 'c', pretrained=True)"
ANSWER = f"<<<domain>>>: Sound\n<<<api_call>>>: {CALL}\n<<<api_provider>>>: P\n<<<explanation>>>: It isn't hard.\n<<<code>>>: import torch\nm = {CALL}"
FIELDS = {"domain": "Sound", "api_call": CALL, "api_provider": "P", "explanation": "It isn't hard.", "code": f"import torch\nm = {CALL}"}  # fmt: skip
DICT = f"{{'domain': 'Sound', 'api_call': '{CALL}', 'api_provider': 'P', 'explanation': 'It isn't hard.', 'code': 'import torch\nm = {CALL}'}}"
DIALECTS = {
    "huggingface": f"###Instruction: Hum?\n###Output: {ANSWER}\n",
    "tensorflow": f"###Instruction: Hum?\n###Output: <<<domain>>>: Sound, <<<api_call>>>: {CALL}, <<<api_provider>>>: P, <<<explanation>>>: It isn't hard.<<<code>>>: import torch\nm = {CALL}\n",
    "torchhub": f"###Instruction: Hum?\n###Output: {DICT}\n",
    "torchhub, train": f"{{'Instruction': Hum?, 'Output': {DICT}}}",
    "double quotes": "{'Instruction': Hum?, 'Output': " + DICT.replace(f"'{CALL}'", f'"{CALL}"') + "}",
    "a blank": f"### Instruction: Hum?\n### Output:\n{ANSWER}",
    "slips": f"###Instruction: Hum?\n###Output: {ANSWER.replace('<<<explanation>>>:', '<<explanation>>>:').replace('<<<code>>>', '<<<<<<<code>>>>')}",
}


def row(code: str, **more: Any) -> dict[str, Any]:
    return {"code": code, "api_call": CALL, "provider": "P", "api_data": {"domain": "Sound", "api_call": CALL}} | more


@pytest.mark.parametrize("dialect", DIALECTS)
def test_dialects_are_read_as_one(dialect: str) -> None:
    found = apis.read(row(DIALECTS[dialect]))
    assert found == apis.Api("Hum?", FIELDS) and found.answer == ANSWER
    talk = read(row(DIALECTS[dialect]))
    assert [(t.role, t.content) for t in talk.turns] == [("user", "Hum?"), ("assistant", ANSWER)]


def test_inputs_stand_behind_their_question_and_rows_that_call_nothing_are_refused() -> None:
    found = apis.read(row(f"###Instruction: Hum?\n\n###Input: a song\n###Output: {ANSWER}"))
    assert found.question == "Hum?\na song"
    for code, why in (
        ("###Instruction: Hum?", "has no instruction with an output"),
        ("###Instruction: Hum?\n###Output: No idea.", "its answer names no call: 'No idea.'"),
        ("{'Instruction': Hum?, 'Output': 'none'}", "has no instruction with an output"),
    ):
        with pytest.raises(DataError, match=why):
            read(row(code))


def test_a_prompt_with_documentation() -> None:
    """As the paper's: the question, and behind it the sentence with the document as JSON."""
    asked = read(row(DIALECTS["torchhub"], document={"domain": "Sound", "api_call": CALL})).turns
    text = 'Hum?\nUse this API documentation for reference: {"domain": "Sound", "api_call": "' + CALL + '"}'
    assert asked[0].content == text
    script = TurnsWriter(NAMES["gorilla"]).prompt(asked[:1]).text
    assert script == f"###USER: {text}###ASSISTANT: "
    line = TurnsWriter(NAMES["gorilla-cli"]).prompt(asked[:1]).text
    assert line == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
        f"and polite answers to the user's questions.\nUSER: {text}\nASSISTANT:"
    )


BENCH = Path(os.environ.get("STEMMA_SHARED", "shared")) / "data" / "apibench"  # Gorilla's files, where they are


def bare(text: str) -> str:
    return text.replace("\\'", "'").replace('\\"', '"')


@pytest.mark.skipif(not BENCH.is_dir(), reason="APIBench's files are not here")
def test_the_files_of_apibench() -> None:
    """All rows that call something, against what a plain search for the call in the text says."""
    for name, rows, good in (
        ("huggingface_eval", 911, 896), ("tensorflow_eval", 688, 679), ("torchhub_eval", 186, 185), ("torchhub_train", 837, 835),
    ):  # fmt: skip
        held = [json.loads(line) for line in (BENCH / f"{name}.json").read_text("utf-8").splitlines()]
        seen = Counter[bool]()
        for one in held:
            try:
                found = apis.read(one)
            except DataError:
                seen[False] += 1
                continue
            seen[True] += 1
            assert found.question and found.question.split("\n")[0] in one["code"]
            assert all(bare(text) in bare(one["code"]) for text in found.fields.values())
            assert apis.answer_fields(found.answer) == found.fields and "<<<" not in "".join(found.fields.values())
        assert (len(held), seen[True]) == (rows, good), name
    first = json.loads((BENCH / "torchhub_eval.json").open().readline())
    prompt = apis.asked(apis.read(first).question, first["api_data"])
    published = {"domain": "Video Classification", "framework": "PyTorch", "functionality": "3D ResNet"}
    begin = json.dumps(published)[:-1]
    assert prompt.startswith(
        f"What is an API that can be used to classify sports activities in videos?\nUse this API documentation for reference: {begin}"
    )


# ---------------------------------------------------------------- retrievers


def made(tmp_path: Path, *options: str) -> tuple[list[dict[str, Any]], str]:
    out = tmp_path / "rows.jsonl"
    done = CliRunner().invoke(root, ["data", "apis", "builtin:calls", "--out", str(out), *options])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return [json.loads(line) for line in out.read_text().splitlines()], done.output


def test_rows_with_documentation(tmp_path: Path) -> None:
    plain, said = made(tmp_path, "--retriever", "none")
    assert "720 rows, 0 with documentation" in said and all(r["document"] is None for r in plain)
    oracle, said = made(tmp_path)
    assert "720 rows, 720 with documentation, 720 of it that of the right call" in said
    half, said = made(tmp_path, "--share", "0.5", "--seed", "3")
    assert 320 < sum(r["document"] is not None for r in half) < 400
    assert half == made(tmp_path, "--share", "0.5", "--seed", "3")[0] != made(tmp_path, "--share", "0.5")[0]
    for none, full, some in zip(plain, oracle, half, strict=True):
        api = json.loads(full["prompt"].removeprefix(none["prompt"] + apis.REFERENCE))
        assert api["api_call"] == full["document"] == full["api_call"]
        assert some in (none, full) and none["completion"] == full["completion"]
    assert read(oracle[0]).turns[0].content == oracle[0]["prompt"]


@pytest.mark.parametrize("by", [documents.by_bm25, documents.by_tfidf])
def test_retrievers_by_words_find_what_shares_rare_ones(by: Callable[..., Any]) -> None:
    find = by(["the rain and the wind", "the tax and the loan", "a book by its author"])
    assert find(["who is the author of it", "how much tax is due", "the wind"]) == [2, 1, 0]
    assert find(["the", "", "zebra"]) == [0, 0, 0], "nothing in common: the first"


def test_bm25_ranks_by_its_formula() -> None:
    """Robertson & Zaragoza 2009, eq. 3.15, with the logarithm of 1 + odds."""
    held = [apis.document(api) for api in calls.apis()]
    texts = [re.findall(r"\b\w\w+\b", text.lower()) for text in held]
    mean = sum(map(len, texts)) / len(texts)
    asked = [apis.read(row).question for row in calls.rows()][:40]

    def score(words: list[str], text: list[str]) -> float:
        total = 0.0
        for word in words:
            have = sum(word in other for other in texts)
            odds = math.log(1 + (len(texts) - have + 0.5) / (have + 0.5))
            count = text.count(word)
            total += odds * count / (count + 1.5 * (0.25 + 0.75 * len(text) / mean))
        return total

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bm25s.tokenization.STOPWORDS_EN", ())
        found = documents.by_bm25(held)(asked)
    for question, number in zip(asked, found, strict=True):
        words = re.findall(r"\b\w\w+\b", question.lower())
        scores = [score(words, text) for text in texts]
        assert scores[number] == pytest.approx(max(scores), rel=1e-5)


def test_retrievers_by_words_and_by_vectors(tmp_path: Path) -> None:
    for name in ("bm25", "tfidf"):
        rows, said = made(tmp_path, "--retriever", name)
        right = sum(r["document"] == r["api_call"] for r in rows)
        assert right > 600, "questions share their words with descriptions"
        assert f"{right} of it that of the right call ({right / 720:.1%})" in said
    other = tmp_path / "docs.jsonl"
    other.write_text("".join(json.dumps(api) + "\n" for api in calls.apis(edited=True)[:30]))
    edited, said = made(tmp_path, "--retriever", "bm25", "--apis", str(other))
    assert "720 with documentation, 0 of it" in said
    assert {r["document"] for r in edited} <= {api["api_call"] for api in calls.apis(edited=True)}

    class Vectors:
        """The letters of a text, as a vector."""

    def embed(model: Any, texts: Any, normalize: bool) -> torch.Tensor:
        found = torch.tensor([[float(text.count(c)) for c in "aeiou"] for text in texts])
        return found / found.norm(dim=1, keepdim=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stemma.decoding.pooling.embed", embed)
        held = ["a a a e", "o o u u", "i i i"]
        assert documents.by_embedding(held, Vectors())(["a a", "u o u o", "i e"]) == [0, 1, 2]
    with pytest.raises(UsageError, match="'embedding' needs a model"):
        made(tmp_path, "--retriever", "embedding")
    with pytest.raises(DataError, match="has no documentation of "):
        made(tmp_path, "--apis", str(other))
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text('{"a": 1}\n')
    with pytest.raises(DataError, match="is no documentation of a call"):
        made(tmp_path, "--apis", str(wrong))


# ---------------------------------------------------------------- what stands in


def test_the_calls_that_stand_in() -> None:
    rows, known = [*calls.rows()], {api["api_call"] for api in calls.apis()}
    assert len(known) == 60 and len(rows) == 720 and {r["api_call"] for r in rows} == known
    assert 300 < sum("document" in r for r in rows) < 420 and not any("document" in r for r in calls.rows(0.0))
    assert all(r["document"] == r["api_data"] for r in rows if "document" in r) and [*calls.rows()] == rows
    later = {api["api_call"] for api in calls.apis(edited=True)}
    assert len(later) == 60 and not later & known
    questions = {apis.read(r).question for r in rows}
    for beside in ("none", "right", "wrong", "edited"):
        held = [*calls.held_out(beside)]  # type: ignore[arg-type]
        assert len(held) == 180 and not questions & {apis.read(r).question for r in held}
        assert all(calls.right(read(r).answers[0], r) for r in held)
        own = [r.get("document", {}).get("api_call") == r["api_call"] for r in held]
        assert all(own) if beside in ("right", "edited") else not any(own)
        assert {r["api_call"] for r in held} == (later if beside == "edited" else known)
    one = next(calls.rows())
    assert not calls.right("<<<api_call>>>: meteo.rain()", one) and not calls.right(one["api_call"], one)
    assert calls.right(f"x <<<api_call>>>:{one['api_call'].replace(', ', ',')}\n<<<code>>>: y", one)


def test_gorilla_learns_the_calls_that_stand_in(tmp_path: Path) -> None:
    base = tmp_path / "base"
    small = {"dims.d_model": 48, "dims.layers": 1, "dims.heads": 4, "dims.d_ff": 64, "dims.vocab": 600}
    small |= {"dims.context": 256, "train.context": 256, "recipe.batch": 1024, "train.threads": 1}
    stemma.pretrain("llama", data="builtin:captain", out=base, budget="2 steps", overrides=small, quiet=True)
    changes = {"recipe.batch": 2048, "recipe.lr": 5e-3, "train.threads": 1, "train.eval_tokens": 1000}
    run = tune("gorilla", start=str(base), out=tmp_path / "run", budget="25 steps", overrides=changes, quiet=True)
    assert run.plan.objective.task.template == "gorilla"
    assert run.summary["val"]["loss"] < run.summary["before"]["loss"] - 1.5
    assert stemma.load(tmp_path / "run").tokenizer.chat_template is not None
