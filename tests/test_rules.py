"""Rules of generation (forced tokens, least lengths, n-grams, how beams are scored) against the reference's, as options
and as a checkpoint's generation_config.json."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import stemma
from oracle import reference, saved
from stemma.decoding.sampling import Sampler
from stemma.errors import CheckpointError, UsageError
from stemma.text import Specials, Tokenizer
from test_generate import FEW, LENGTHS, prompts, strip

ENDING = list(range(5, 45))  # half of the vocabulary ends a text, so that lengths matter


def both(case: str, folder: Path, ends: list[int] | None = None, **config: Any) -> tuple[Any, Any]:
    """The reference's model and ours, with `config` in generation_config.json."""
    theirs = reference(case)
    if ends is not None:
        theirs.config.eos_token_id = theirs.generation_config.eos_token_id = ends
    for name, value in config.items():
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


def grid() -> list[Any]:
    """Every rule with BART, short and long, alone and in beams; the other two families with two rules of many parts,
    their other rules as slow tests."""
    found = []
    for case, beams, rule, ends in itertools.product(("bart", "mbart", "mt5"), (1, 4), RULES, (None, ENDING)):
        marks = () if case == "bart" or (rule in (RULES[2], RULES[6]) and ends) else pytest.mark.slow
        said = f"{case}-{beams}-{'-'.join(rule)}-{'short' if ends else 'long'}"
        found.append(pytest.param(case, beams, rule, ends, marks=marks, id=said))
    return found


@pytest.mark.parametrize(("case", "num_beams", "options", "ends"), grid())
def test_options_equal_the_reference(
    case: str, num_beams: int, options: dict[str, Any], ends: list[int] | None, tmp_path: Path
) -> None:
    theirs, ours = both(case, tmp_path, ends)
    rows = prompts(case, FEW)
    got = stemma.generate(ours, rows, max_new_tokens=10, num_beams=num_beams, **options)
    for row, mine in zip(rows, got, strict=True):
        assert mine.ids == wanted(theirs, ours, row, max_new_tokens=10, num_beams=num_beams, **options)


CONFIG: dict[str, Any] = dict(forced_bos_token_id=60, forced_eos_token_id=2, min_length=7, max_length=13,
                              no_repeat_ngram_size=2, length_penalty=2.0, early_stopping=True, num_beams=5)  # fmt: skip


@pytest.mark.parametrize("num_beams", [1, 4])
def test_a_checkpoints_options_hold_where_a_call_says_nothing(num_beams: int, tmp_path: Path) -> None:
    theirs, ours = both("bart", tmp_path, [2, *ENDING], **CONFIG)
    rows = prompts("bart", LENGTHS)
    got = stemma.generate(ours, rows, num_beams=num_beams)
    for row, mine in zip(rows, got, strict=True):
        assert mine.ids == wanted(theirs, ours, row, num_beams=num_beams)
        assert mine.ids[0] == 60 and 6 <= len(mine.ids) <= 12
    free = dict(no_repeat_ngram_size=0, min_new_tokens=0, forced_bos_token_id=61, length_penalty=0.0)
    said = stemma.generate(ours, rows, max_new_tokens=5, num_beams=num_beams, **free)
    assert all(r.ids[0] == 61 and len(r.ids) <= 5 for r in said)
    assert any(len(r.ids) < 6 for r in said)


def test_options_of_an_old_checkpoint_are_in_its_config(tmp_path: Path) -> None:
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


def test_options_that_are_damaged_are_named(tmp_path: Path) -> None:
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


# ---------------------------------------------------------------- all that a checkpoint may say

WHOLE: list[dict[str, Any]] = [
    dict(num_beams=3, repetition_penalty=1.4),
    dict(num_beams=4, length_penalty=0.3, early_stopping=True, no_repeat_ngram_size=2),
    dict(suppress_tokens=[7, 8, 9, 20, 30, 31, 32, 40, 41, 50]),
    dict(suppress_tokens=list(range(6, 40)), num_beams=2),
    dict(begin_suppress_tokens=list(range(4, 60))),
    dict(begin_suppress_tokens=list(range(4, 60)), num_beams=2, min_new_tokens=3),
    dict(repetition_penalty=1.7, min_length=8),
]


LONG = dict(max_new_tokens=9, min_new_tokens=8)


def words_of(theirs: Any, ours: Any, rows: list[list[int]]) -> list[list[int]]:
    """Words to forbid that would come: two tokens alone, and the run after the first new one."""
    own = [wanted(theirs, ours, row, **LONG) for row in rows]
    return [own[0][:1], own[1][1:3], own[2][2:5], own[3][-1:], own[0][4:6]]


@pytest.mark.parametrize("case", ["bart", "mt5", "gpt2", "llama", "qwen3"])
@pytest.mark.parametrize("said", WHOLE, ids=lambda o: "-".join(o))
def test_what_a_checkpoint_says_is_done(case: str, said: dict[str, Any], tmp_path: Path) -> None:
    theirs, ours = both(case, tmp_path, ENDING, max_new_tokens=10, **said)
    rows = prompts(case, FEW)
    got = stemma.generate(ours, rows)
    assert [r.ids for r in got] == [wanted(theirs, ours, row) for row in rows]
    plain = {"num_beams": 1, "repetition_penalty": 1.0}  # which a call takes back
    again = stemma.generate(ours, rows, **plain)
    assert [r.ids for r in again] == [wanted(theirs, ours, row, **plain) for row in rows]


@pytest.mark.parametrize("case", ["bart", "gpt2", "llama"])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_forbidden_words_do_not_come(case: str, num_beams: int, tmp_path: Path) -> None:
    rows = prompts(case, LENGTHS)
    words = [w for w in words_of(*both(case, tmp_path / "a"), rows) if w]
    theirs, ours = both(case, tmp_path / "b", bad_words_ids=words, num_beams=num_beams)
    got = [r.ids for r in stemma.generate(ours, rows, **LONG)]
    assert got == [wanted(theirs, ours, row, **LONG) for row in rows]
    free = [r.ids for r in stemma.generate(stemma.load(tmp_path / "a"), rows, **LONG, num_beams=num_beams)]
    assert got != free


def test_an_end_alone_is_no_forbidden_word(tmp_path: Path) -> None:
    theirs, ours = both("gpt2", tmp_path, ENDING, bad_words_ids=[[i] for i in ENDING])
    rows = prompts("gpt2", LENGTHS)
    got = [r.ids for r in stemma.generate(ours, rows, max_new_tokens=9)]
    assert got == [wanted(theirs, ours, row, max_new_tokens=9) for row in rows]
    assert any(len(found) < 9 for found in got)


def test_the_ends_are_those_of_generation(tmp_path: Path) -> None:
    """Chat models have more of them in generation_config.json than in config.json."""
    theirs = reference("llama")
    theirs.config.eos_token_id = 2
    theirs.generation_config.eos_token_id = ENDING
    theirs.save_pretrained(tmp_path)
    ours = stemma.load(tmp_path)
    assert ours.text.eos_ids == (2,)
    for row, mine in zip(
        rows := prompts("llama", LENGTHS), stemma.generate(ours, rows, max_new_tokens=12), strict=True
    ):
        out = theirs.generate(torch.tensor([row]), max_new_tokens=12, do_sample=False)[0].tolist()[len(row) :]
        at = next((i for i, token in enumerate(out) if token in ENDING), len(out))
        assert mine.ids == out[: at + 1]
        assert (mine.reason == "eos") == (at < len(out))


DRAWN: list[dict[str, Any]] = [
    dict(),
    dict(temperature=0.6, top_p=0.9),
    dict(top_k=5, temperature=1.5),
    dict(top_k=0, min_p=0.4, repetition_penalty=1.3),
    dict(top_k=20, top_p=0.95, typical_p=0.5, temperature=1.2),
    dict(top_k=0, typical_p=0.3, min_p=0.01),
    dict(top_p=0.7, suppress_tokens=[7, 9, 60], no_repeat_ngram_size=1),
]


@pytest.mark.parametrize("case", ["bart", "llama"])
@pytest.mark.parametrize("said", DRAWN, ids=lambda o: "-".join(o) or "plain")
def test_drawing_is_from_the_references_distribution(
    case: str, said: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, ours = both(case, tmp_path, max_new_tokens=8, do_sample=True, **said)
    row = prompts(case, [6])[0]
    torch.manual_seed(4)
    ids = torch.tensor([row])
    out = theirs.generate(
        ids, attention_mask=torch.ones_like(ids), output_scores=True, return_dict_in_generate=True,
        use_cache=not theirs.config.is_encoder_decoder,
    )  # fmt: skip
    tokens = out.sequences[0, 1 if theirs.config.is_encoder_decoder else len(row) :].tolist()
    given: list[torch.Tensor] = []

    def draw(sampler: Sampler, scores: torch.Tensor, generators: Any) -> torch.Tensor:
        assert sampler.temperature > 0
        given.append(scores.softmax(-1))
        return torch.tensor([tokens[len(given) - 1]])

    monkeypatch.setattr(Sampler, "draw", draw)
    stemma.generate(ours, [row])
    assert len(given) == len(tokens)
    for mine, want in zip(given, out.scores, strict=True):
        assert torch.allclose(mine, want.softmax(-1), atol=1e-5)


def test_a_call_has_the_last_word(tmp_path: Path) -> None:
    theirs, ours = both("llama", tmp_path, do_sample=True, temperature=0.9, max_new_tokens=7)
    rows = prompts("llama", LENGTHS)
    greedy = [r.ids for r in stemma.generate(ours, rows, temperature=0.0)]
    assert greedy == [wanted(theirs, ours, row) for row in rows]
    drawn = [r.ids for r in stemma.generate(ours, rows)]
    assert drawn != greedy
    assert drawn == [r.ids for r in stemma.generate(ours, rows, temperature=0.9, top_k=50)]
    assert [r.ids for r in stemma.generate(ours, rows, num_beams=2)] == [
        wanted(theirs, ours, row, num_beams=2) for row in rows
    ]
    assert all(len(r.ids) <= 3 for r in stemma.generate(ours, rows, max_new_tokens=3))


def test_a_call_that_draws_or_stops_does_without_the_checkpoints_beams(tmp_path: Path) -> None:
    ours = both("llama", tmp_path, num_beams=3, do_sample=True)[1]
    alone = dict(max_new_tokens=4, temperature=0.7, top_k=0)
    assert stemma.generate(ours, [[5, 6]], **alone) == stemma.generate(ours, [[5, 6]], num_beams=1, **alone)
    with pytest.warns(UserWarning, match="3 beams draw nothing"):
        stemma.generate(ours, [[5, 6]], max_new_tokens=4)
    with pytest.raises(UsageError, match="the checkpoint asks for 3 beams: num_beams=1"):
        stemma.generate(ours, [[5, 6]], max_new_tokens=4, temperature=0.0, stream=lambda row, piece: None)


def test_what_is_not_followed_is_said(tmp_path: Path) -> None:
    saved("llama", tmp_path)
    said = dict(epsilon_cutoff=0.1, encoder_no_repeat_ngram_size=0, guidance_scale=1.0, num_return_sequences=2)
    (tmp_path / "generation_config.json").write_text(json.dumps(said))
    ours = stemma.load(tmp_path)
    with pytest.warns(UserWarning) as told:
        stemma.generate(ours, [[5, 6]], max_new_tokens=2)
    assert [str(w.message) for w in told] == [
        "the checkpoint's epsilon_cutoff=0.1 is not followed: tokens are drawn by top_k, top_p, min_p and typical_p"
    ]


def test_options_of_an_old_checkpoint_survive_saving(tmp_path: Path) -> None:
    saved("bart", tmp_path / "a")
    (tmp_path / "a/generation_config.json").unlink()
    text = (tmp_path / "a/config.json").read_text()
    (tmp_path / "a/config.json").write_text(text.replace("{", '{"num_beams": 3, "min_length": 5, "max_length": 9,', 1))
    old = stemma.load(tmp_path / "a")
    old.save(tmp_path / "b")
    new = stemma.load(tmp_path / "b")
    assert new.extras["generation_config"]["num_beams"] == 3
    rows = prompts("bart", LENGTHS)
    assert [r.ids for r in stemma.generate(new, rows)] == [r.ids for r in stemma.generate(old, rows)]


@pytest.mark.parametrize(
    "wrong",
    [
        dict(do_sample="yes"), dict(temperature="hot", do_sample=True), dict(num_beams=-1), dict(bad_words_ids=[3]),
        dict(suppress_tokens=["a"]), dict(eos_token_id=[1.5]), dict(top_k=True),
    ],
    ids=str,
)  # fmt: skip
def test_every_damaged_option_is_named(wrong: dict[str, Any], tmp_path: Path) -> None:
    saved("llama", tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps(wrong))
    with pytest.raises(CheckpointError, match=f"generation_config.json: {next(iter(wrong))}="):
        stemma.generate(stemma.load(tmp_path), [[5, 6]], max_new_tokens=2)


def test_tokens_have_names() -> None:
    ours = stemma.build("mbart-large-50", d_model=32, layers=1, decoder_layers=1, heads=4, d_ff=32, vocab=262)
    with pytest.raises(UsageError, match="'</s>' is no token: this model came without a tokenizer"):
        stemma.generate(ours, [[5, 6]], max_new_tokens=4, forced_bos_token_id="</s>")
    ours.tokenizer = Tokenizer.train("bpe", ["a b c"], 260, Specials(eos="</s>", mask="<mask>"))
    end, mask = ours.tokenizer.eos_id, ours.tokenizer.mask_id
    options = dict(max_new_tokens=4, min_new_tokens=4)
    for name in ("forced_bos_token_id", "forced_eos_token_id", "decoder_start_token_id"):
        named = stemma.generate(ours, [[5, 6]], **options, **{name: "<mask>"})
        assert named == stemma.generate(ours, [[5, 6]], **options, **{name: mask})
        assert end != mask
    with pytest.raises(UsageError, match="'en_XX' is no token: this model has no token of that name"):
        stemma.generate(ours, [[5, 6]], max_new_tokens=4, forced_bos_token_id="en_XX")
