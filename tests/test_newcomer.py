"""What a new user tries: a command alone, completion, a device that is not in the list, ids that do not exist."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.shell_completion import ShellComplete

import stemma
from stemma.cli import root
from stemma.data.cleaning import clean
from stemma.data.documents import Document
from stemma.data.steps import parse
from stemma.errors import UsageError
from stemma.formats.keys import meant
from stemma.planning import HARDWARE, fleet
from test_cli import Call, call  # noqa: F401
from test_text import CASES, made


@pytest.mark.parametrize(
    ("name", "commands"),
    [
        ("verify", "resume"),
        (
            "data",
            "ai-feedback, apis, cache, clean, distil, explain, functions, ghost, list, mixture, self-instruct, show, stats",
        ),
    ],
)
def test_a_group_alone_names_its_commands(name: str, commands: str, call: Call) -> None:  # noqa: F811
    code, _, err = call(name)
    assert code == 2 and err == f"error: stemma {name} needs a command: {commands}; see `stemma {name} --help`\n"


# ---------------------------------------------------------------- completion


def completed(*words: str) -> list[str]:
    *args, incomplete = words
    found = ShellComplete(root, {}, "stemma", "_STEMMA_COMPLETE").get_completions(list(args), incomplete)
    return [f"<{item.type}>" if item.type != "plain" else item.value for item in found]


def test_completion_of_settings_scales_and_paths() -> None:
    assert completed("pretrain", "bert", "--scale", "") == ["tiny", "mini", "small", "full"]
    assert completed("plan", "bert", "--scale", "s") == ["small"]
    assert completed("pretrain", "electra", "--set", "objective.w") == ["objective.weight="]
    top = completed("plan", "llama", "--set", "")
    assert {"arch.", "dims.", "recipe.", "train.", "objective="} <= set(top)
    assert completed("plan", "llama", "--set", "arch.position.b") == ["arch.position.base="]
    assert completed("pretrain", "nobody", "--set", "arch.") == []
    for words in (["generate", ""], ["convert", "ru"], ["report", ""], ["show", "no-such"], ["data", "stats", "x"]):
        assert completed(*words) == ["<file>"], words
    assert completed("data", "stats", "builtin:do") == ["builtin:docs", "builtin:docstrings"]
    assert completed("show", "roberta-l") == ["roberta-large"]


# ---------------------------------------------------------------- plans


def test_a_device_of_ones_own(call: Call) -> None:  # noqa: F811
    ask = ("plan", "gpt2", "--gpus", "2xMine", "--memory", 48, "--peak", 200)
    code, _, err = call(*ask)
    assert code == 2 and "or describe it by --bandwidth" in err
    code, out, err = call(*ask, "--bandwidth", 900)
    assert code == 0 and "of 2 Mine" in out and "of 48.0 GB a device" in out, err
    assert fleet("H100", {"memory": 1e9})[1].memory == 1e9 and HARDWARE["h100"].memory == 80e9
    with pytest.raises(UsageError, match="describe it by --memory, --peak, --bandwidth"):
        fleet("8xFoo")


def test_a_plan_prints_no_row_of_nothing(call: Call) -> None:  # noqa: F811
    code, out, err = call("plan", "llama")
    assert code == 0 and "weights" in out and "gathered" not in out and "0.0 kB" not in out, err


# ---------------------------------------------------------------- cleaning


def test_a_cleaning_says_which_setting_removed_what(tmp_path: Path, call: Call) -> None:  # noqa: F811
    prose = "The people of the land have that which they want to be with them, and it is of use. " * 4
    bullets = "\n".join(f"- the kingdom and the people that have row {i}" for i in range(20))
    texts = ["short one", "a short text", bullets, prose, prose + "{x}. It is so. It was so."]
    rows = [Document(text, str(i)) for i, text in enumerate(texts)]
    report: list[object] = []
    kept = list(clean(rows, parse("gopher,c4(min_sentences=1)"), report))  # type: ignore[arg-type]
    assert len(kept) == 1
    gopher, c4 = report
    assert gopher.settings == {"min_words=50": [2, 21], "max_bullets=0.9": [1, len(bullets)]}  # type: ignore[attr-defined]
    bulleted, short = gopher.advice()  # type: ignore[attr-defined]
    assert bulleted.startswith("max_bullets=0.9 removed 1 (") and bulleted.endswith("raise it: gopher(max_bullets=...)")
    assert short.endswith("to keep them lower it: gopher(min_words=...)")
    assert c4.advice()[0].endswith("to keep them set it: c4(brackets=False)")  # type: ignore[attr-defined]
    assert type(gopher).of(gopher.plain()).plus(gopher).settings["min_words=50"] == [4, 42]  # type: ignore[attr-defined]
    (tmp_path / "a.txt").write_text(bullets)
    code, _, err = call("data", "clean", tmp_path / "a.txt", "--out", tmp_path / "out", "--steps", "gopher")
    assert code == 3 and "max_bullets=0.9 removed 1 (100.0%); to keep them raise it: gopher(max_bullets=...)" in err


# ---------------------------------------------------------------- names


def test_a_key_that_is_merely_alike_is_not_offered() -> None:
    known = ["use_cache", "hidden_size", "rope_theta"]
    assert meant("use_mrope", known) == "" and meant("rope_type", known) == ""
    assert "use_cache" in meant("use_cahe", known) and "hidden_size" in meant("hiden_sizes", known)


# ---------------------------------------------------------------- texts and ids


def test_one_text_and_many_get_the_same_ids() -> None:
    texts = ["the fox", "a king [MASK] said", "<s>light</s>"]
    for case in CASES:
        tokenizer = made(case)
        for options in ({}, {"add_special": False}, {"allow_special": True}):
            assert tokenizer.encode_batch(texts, **options) == [tokenizer.encode(t, **options) for t in texts], case


@pytest.mark.parametrize("side", ["right", "left"])
def test_texts_become_the_inputs_of_a_call(side: str) -> None:
    tokenizer = made("llama")
    model = stemma.build("llama", layers=2, d_model=32, heads=4, d_ff=40, vocab=tokenizer.vocab_size)
    texts = ["the fox", "the quick brown fox runs to the king"]
    inputs = tokenizer.batch(texts, side=side)
    rows = tokenizer.encode_batch(texts)
    assert [ids[real.bool()].tolist() for ids, real in zip(*inputs.values(), strict=True)] == rows
    assert inputs["attention_mask"][0, 0 if side == "left" else -1] == 0
    with torch.no_grad():
        both = model(**inputs).logits[0][inputs["attention_mask"][0].bool()]
        alone = model(torch.tensor(rows[:1])).logits[0]
    assert torch.allclose(both, alone, atol=1e-5)
    assert tokenizer.batch([[1, 2], "fox"], length=30, add_special=False)["input_ids"].shape == (2, 30)
    for wrong in ({"side": "up"}, {"length": 3}):
        with pytest.raises(UsageError):
            tokenizer.batch(texts, **wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no texts to pad"):
        tokenizer.batch([])


def test_what_no_table_holds_is_named() -> None:
    small = {"layers": 1, "d_model": 8, "heads": 2, "d_ff": 8, "vocab": 20, "context": 8}
    bert, gpt = stemma.build("bert", **small), stemma.build("gpt2", **small)
    ids = torch.tensor([[1, 2, 19]])
    for model, inputs, sentence in (
        (gpt, {"input_ids": ids + 1}, "input_ids hold 20, and this model's go from 0 to 19"),
        (gpt, {"input_ids": ids - 2}, "input_ids hold -1, and this model's go from 0 to 19"),
        (bert, {"input_ids": ids, "token_type_ids": ids}, "token_type_ids hold 19, and this model's go from 0 to 1"),
        (gpt, {"input_ids": ids, "position_ids": ids}, "position_ids hold 19, and this model's go from 0 to 7"),
        (gpt, {"input_ids": ids, "labels": ids + 1}, "labels hold 20, and this model's go from 0 to 19"),
    ):
        with pytest.raises(UsageError) as caught:
            model(**inputs)
        assert str(caught.value) == sentence
