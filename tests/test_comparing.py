"""`stemma data show FILE --for MODEL`: compared answers side by side, thumbs and prompts, and what of a file is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers as hf

from stemma.cli import main
from stemma.text import Specials, Tokenizer

CHAT = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
PAIR = {"prompt": "Where is the pen?", "chosen": "On the table.", "rejected": "No idea, ask somebody."}
GRADED = {**PAIR, "grade": "slightly better"}
THUMB = {"prompt": "Where is the pen?", "completion": "No idea.", "label": False}
FOUR = {
    "instruction": "Where?",
    "completions": [{"response": r, "overall_score": s} for r, s in (("here", 2), ("there", 9), ("up", 2))],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer.train("bpe", [json.dumps(PAIR)] * 4, 290, Specials(bos="<s>", eos="</s>", pad="<pad>"))
    tokenizer.chat_template = CHAT
    config = hf.LlamaConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=96, eos_token_id=tokenizer.eos_id, bos_token_id=tokenizer.bos_id,
    )  # fmt: skip
    hf.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save(folder)
    return folder


def shown(
    rows: list[dict[str, Any]], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], *more: str
) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["data", "show", str(path), "--for", str(model), *more])
    found = capsys.readouterr()
    assert ended.value.code == 0, found.err
    return found.out


def test_answers_stand_side_by_side_and_rows_are_counted(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    rows = [
        PAIR, GRADED, {**PAIR, "tie": True}, {**PAIR, "rejected": PAIR["chosen"]}, {**PAIR, "rejected": ""},
        {**PAIR, "rejected": "no " * 99}, {**PAIR, "prompt": "where " * 99}, {"chosen": "yes", "rejected": "no"}, FOUR,
    ]  # fmt: skip
    out = shown(rows, model, tmp_path, capsys)
    assert any("On the table." in line and "No idea, ask somebody." in line for line in out.splitlines())
    assert "preferred (slightly better)" in out and "  user      Where is the pen?" in out
    assert "rank 1, score 9: there" in out and "tied, score 2: here" in out
    assert (
        "3 of 9 rows can be learnt from" in out
        and "pairs: 5, 1 of them tied; the longer answer is preferred in 50%" in out
    )
    assert "grades: slightly better 1" in out
    for why, line in (
        ("its answers are tied", 3), ("its chosen and its rejected answer are the same", 4), ("turn 2 (assistant) is empty", 5),
        ("tokens with its answer, more than the 96 of a row", 6), ("and a row of 96 must hold an answer too", 7), ("no common beginning", 8),
    ):  # fmt: skip
        assert any(why in told and f"rows.jsonl:{line}" in told for told in out.splitlines()), (why, out)


def test_thumbs_and_prompts(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = shown([THUMB, {**THUMB, "label": True}, {**THUMB, "label": "perhaps"}], model, tmp_path, capsys)
    assert "  not liked: No idea." in out and "  liked: No idea." in out
    assert "answers: 1 liked, 1 not" in out and "its rating is 'perhaps'" in out
    out = shown([{"prompt": "Where?"}, {"prompt": "why " * 99}], model, tmp_path, capsys)
    assert "rows.jsonl:1: prompt of" in out and "1 of 2 rows can be answered" in out
    assert "must hold an answer too (rows.jsonl:2)" in out


def test_rows_as_data_and_as_conversations(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = json.loads(shown([PAIR], model, tmp_path, capsys, "--json"))
    assert row["place"] == "rows.jsonl:1" and row["prompt"] == [{"role": "user", "content": PAIR["prompt"]}]
    assert [(a["text"], a["said"]) for a in row["answers"]] == [
        (PAIR["chosen"], "preferred"),
        (PAIR["rejected"], "the other"),
    ]
    assert all(a["tokens"] > 1 for a in row["answers"])
    hh = {"chosen": "\n\nHuman: Hi?\n\nAssistant: Ho.", "rejected": "\n\nHuman: Hi?\n\nAssistant: Hm."}
    assert "«Ho.</s>»" in shown([hh], model, tmp_path, capsys, "--loss-on", "answers")
