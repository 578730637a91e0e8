"""Rules of generation (forced tokens, least lengths, n-grams, how beams are scored) against the reference's, as options
and as a checkpoint's own habits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import stemma
from oracle import reference, saved
from stemma.errors import CheckpointError, UsageError
from test_generate import LENGTHS, prompts, strip

ENDING = list(range(5, 45))  # half of the vocabulary ends a text, so that lengths matter


def both(case: str, folder: Path, ends: list[int] | None = None, **habits: Any) -> tuple[Any, Any]:
    """The reference's model and ours, with habits in generation_config.json."""
    theirs = reference(case)
    if ends is not None:
        theirs.config.eos_token_id = theirs.generation_config.eos_token_id = ends
    for name, value in habits.items():
        setattr(theirs.generation_config, name, value)
    theirs.save_pretrained(folder)
    return theirs, stemma.load(folder)


def wanted(theirs: Any, ours: Any, row: list[int], **options: Any) -> list[int]:
    ids = torch.tensor([row])
    answers = theirs.config.is_encoder_decoder
    out = theirs.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, use_cache=not answers, **options
    )[0].tolist()  # fmt: skip
    return strip(out[1:] if answers else out[len(row) :], ours)


RULES: list[dict[str, Any]] = [
    dict(forced_bos_token_id=7),
    dict(forced_eos_token_id=11),
    dict(forced_bos_token_id=9, forced_eos_token_id=5, min_new_tokens=4),
    dict(min_new_tokens=6),
    dict(no_repeat_ngram_size=1),
    dict(no_repeat_ngram_size=2, repetition_penalty=1.3),
    dict(no_repeat_ngram_size=3, min_new_tokens=5, forced_bos_token_id=6),
]


@pytest.mark.parametrize("case", ["bart", "mbart", "mt5"])
@pytest.mark.parametrize("num_beams", [1, 4])
@pytest.mark.parametrize("options", RULES, ids=lambda o: "-".join(o))
@pytest.mark.parametrize("ends", [None, ENDING], ids=["long", "short"])
def test_options_equal_the_reference(
    case: str, num_beams: int, options: dict[str, Any], ends: list[int] | None, tmp_path: Path
) -> None:
    theirs, ours = both(case, tmp_path, ends)
    rows = prompts(case, LENGTHS)
    got = stemma.generate(ours, rows, max_new_tokens=10, num_beams=num_beams, **options)
    for row, mine in zip(rows, got, strict=True):
        assert mine.ids == wanted(theirs, ours, row, max_new_tokens=10, num_beams=num_beams, **options)


HABITS: dict[str, Any] = dict(forced_bos_token_id=60, forced_eos_token_id=2, min_length=7, max_length=13,
                              no_repeat_ngram_size=2, length_penalty=2.0, early_stopping=True, num_beams=5)  # fmt: skip


@pytest.mark.parametrize("num_beams", [1, 4])
def test_a_checkpoints_habits_hold_where_a_call_says_nothing(num_beams: int, tmp_path: Path) -> None:
    theirs, ours = both("bart", tmp_path, [2, *ENDING], **HABITS)
    rows = prompts("bart", LENGTHS)
    got = stemma.generate(ours, rows, num_beams=num_beams)  # how many beams is not taken over
    for row, mine in zip(rows, got, strict=True):
        assert mine.ids == wanted(theirs, ours, row, num_beams=num_beams)
        assert mine.ids[0] == 60 and 6 <= len(mine.ids) <= 12
    free = dict(no_repeat_ngram_size=0, min_new_tokens=0, forced_bos_token_id=61, length_penalty=0.0)
    said = stemma.generate(ours, rows, max_new_tokens=5, num_beams=num_beams, **free)
    assert all(r.ids[0] == 61 and len(r.ids) <= 5 for r in said)
    assert any(len(r.ids) < 6 for r in said)


def test_habits_of_an_old_checkpoint_are_in_its_config(tmp_path: Path) -> None:
    theirs = saved("bart", tmp_path)
    (tmp_path / "generation_config.json").unlink()
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace("{", '{"forced_bos_token_id": 8, "max_length": 6,', 1))
    got = stemma.generate(stemma.load(tmp_path), [[5, 6, 7]])[0].ids
    assert got[0] == 8 and len(got) == 5 and theirs is not None


@pytest.mark.parametrize("early", [True, False, "never"])
@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
def test_when_beams_stop_equals_the_reference(early: bool | str, penalty: float, tmp_path: Path) -> None:
    theirs, ours = both("bart", tmp_path, ENDING)
    options = dict(max_new_tokens=12, num_beams=3, length_penalty=penalty, early_stopping=early)
    rows = prompts("bart", LENGTHS)
    got = stemma.generate(ours, rows, **options)
    assert [r.ids for r in got] == [wanted(theirs, ours, row, **options) for row in rows]


def test_decoders_have_rules_too(tmp_path: Path) -> None:
    theirs, ours = both("gpt2", tmp_path, ENDING, min_length=9)
    for row, mine in zip(rows := prompts("gpt2", [3, 6]), stemma.generate(ours, rows, max_new_tokens=10), strict=True):
        assert mine.ids == wanted(theirs, ours, row, max_new_tokens=10)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_log_probabilities_are_the_models_not_the_rules(num_beams: int, tmp_path: Path) -> None:
    ours = both("bart", tmp_path)[1]
    prompt = [5, 6, 7]
    options = dict(num_beams=num_beams, forced_bos_token_id=7, forced_eos_token_id=2, no_repeat_ngram_size=1)
    result = stemma.generate(ours, [prompt], max_new_tokens=5, **options)[0]
    start = torch.tensor([[2, *result.ids[:-1]]])
    with torch.no_grad():
        share = ours(torch.tensor([prompt]), decoder_input_ids=start).logits[0].log_softmax(-1)
    want = share.gather(1, torch.tensor(result.ids)[:, None])[:, 0]
    assert torch.allclose(torch.tensor(result.logprobs), want, atol=1e-5)


def test_a_language_is_where_decoding_starts(tmp_path: Path) -> None:
    """mBART's first checkpoints name no start token: the call does."""
    theirs = reference("mbart")
    theirs.config.decoder_start_token_id = theirs.generation_config.decoder_start_token_id = None
    theirs.save_pretrained(tmp_path)
    ours = stemma.load(tmp_path)
    with pytest.raises(UsageError, match="decoder_start_token_id"):
        stemma.generate(ours, [[5, 6]], max_new_tokens=3)
    for code in (90, 91):
        for beams in (1, 2):
            options = dict(max_new_tokens=6, decoder_start_token_id=code, num_beams=beams)
            assert stemma.generate(ours, [[5, 6]], **options)[0].ids == wanted(theirs, ours, [5, 6], **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(forced_bos_token_id=89), "ids are 0 to 88"),
        (dict(min_new_tokens=-1), "min_new_tokens"),
        (dict(no_repeat_ngram_size=1.5), "whole number"),
        (dict(early_stopping="soon", num_beams=2), "early_stopping"),
    ],
)
def test_rules_that_cannot_be_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    saved("bart", tmp_path)
    with pytest.raises(UsageError, match=message):
        stemma.generate(stemma.load(tmp_path), [[5, 6]], max_new_tokens=4, **options)


def test_habits_that_are_damaged_are_named(tmp_path: Path) -> None:
    saved("bart", tmp_path)
    (tmp_path / "generation_config.json").write_text('{"min_length": "long"}')
    with pytest.raises(CheckpointError, match="min_length='long'"):
        stemma.generate(stemma.load(tmp_path), [[5, 6]])


def test_when_no_token_may_follow_it_is_said(tmp_path: Path) -> None:
    ours = both("bart", tmp_path, list(range(89)))[1]
    with pytest.raises(UsageError, match="no token is left"):
        stemma.generate(ours, [[5]], max_new_tokens=4, min_new_tokens=1)


@pytest.mark.parametrize("num_beams", [1, 2])
def test_an_end_token_past_the_vocabulary_ends_nothing(num_beams: int) -> None:
    model = stemma.build("llama-7b", d_model=32, layers=1, heads=4, d_ff=48, vocab=50)
    model.text = replace(model.text, eos_id=255_001)
    found = stemma.generate(model, [[5, 6]], max_new_tokens=4, min_new_tokens=4, num_beams=num_beams)
    assert len(found[0].ids) == 4
