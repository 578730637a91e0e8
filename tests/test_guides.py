"""Texts of a given form: JSON schemas, regular expressions, grammars, with tokenizers of every kind."""

from __future__ import annotations

import functools
import json
import random
import re
import warnings
from pathlib import Path
from typing import Any

import pytest

import stemma
from stemma.cli import main
from stemma.decoding import SamplingParams, stream
from stemma.decoding.guides import grammar, json_schema, matcher, regex
from stemma.errors import ResourceError, UsageError
from stemma.text import Specials, Tokenizer

pytest.importorskip("llguidance")

LINES = [
    'the quick brown fox {"a": 1, "b": [2, 3.5e10, -7], "c": {}} true false null "d\\n"',
    "naïve café, 漢字 🙂 Grüße; 0 1 2 3 4 5 6 7 8 9 10 20 42 100 x y z",
] * 20
KINDS = {"bpe": 330, "spm-bpe": 400, "unigram": 340, "wordpiece": 150, "gpt-bpe": 150}


@functools.cache
def writer(kind: str = "bpe") -> Any:
    """A random model with a tokenizer of a kind, and more embeddings than tokens."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokenizer = Tokenizer.train(kind, LINES, KINDS[kind], Specials(bos="<s>", eos="</s>", unk="<unk>"))
        vocab = tokenizer.vocab_size + 5
        model = stemma.build("llama-7b", d_model=32, layers=1, heads=4, d_ff=48, vocab=vocab, context=4096)
    model.tokenizer = tokenizer
    model.text = stemma.spec.edit(model.text, {"eos_id": tokenizer.eos_id})
    return model.eval()


def written(model: Any, guides: list[Any], most: int = 600, seed: int = 0, **options: Any) -> list[Any]:
    params = [SamplingParams(max_new_tokens=most, guide=g, temperature=1.0, **options) for g in guides]
    return list(stemma.generate(model, [[5, 6]] * len(guides), params, seed=seed))


# ---------------------------------------------------------------- tokens as bytes


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_known_by_their_bytes(kind: str) -> None:
    """Joined they are the text; behind a word, with the space that `decode` takes off in front of one."""
    tokenizer = writer(kind).tokenizer
    for line in LINES[:2]:
        ids = tokenizer.encode(line.replace("{", "").replace("}", ""), add_special=False)
        known = [i for i in ids if i not in tokenizer.special_ids]
        text = b"".join(tokenizer.token_bytes[i] for i in known).decode()
        assert text.strip() == tokenizer.decode(known).strip() and len(text) > 20
    assert all(tokenizer.token_bytes[i] is None for i in tokenizer.special_ids)
    if kind in ("bpe", "spm-bpe", "unigram"):
        assert {bytes([b]) for b in range(256)} <= set(tokenizer.token_bytes)


# ---------------------------------------------------------------- regular expressions and grammars

PATTERNS = [
    r"(é|漢|🙂){3,6}x?",  # characters of two to four bytes, over token borders
    r"-?[1-9][0-9]{2,5}(\.[0-9]{1,3})?",
    r"(yes|no|café)",
    r"[^a-z \n]{4,9}",
]


@pytest.mark.parametrize("kind", ["bpe", "spm-bpe", "unigram"])
def test_texts_match_their_expressions(kind: str) -> None:
    for result in (found := written(writer(kind), [regex(p) for p in PATTERNS * 3])):
        assert result.reason in ("stop", "eos") and "\ufffd" not in result.text
    for pattern, result in zip(PATTERNS * 3, found, strict=True):
        assert re.fullmatch(pattern, result.text), (pattern, result.text)


def test_word_pieces_follow_expressions() -> None:
    """Their words have spaces between them."""
    for result in written(writer("wordpiece"), [regex(r"( [xyz]){3}")] * 4):
        assert re.fullmatch(r" [xyz] [xyz] [xyz]", result.text) and result.reason == "stop"


def test_a_text_follows_a_grammar() -> None:
    rules = 'start: term (("+" | "-") term)*\nterm: NUMBER | "(" start ")"\nNUMBER: /[0-9]{1,3}/\n'
    for result in written(writer(), [grammar(rules)] * 6, most=2000):
        assert isinstance(eval(re.sub(r"\b0+(?=[0-9])", "", result.text)), int)


def test_a_text_that_may_end_ends_with_its_end() -> None:
    """Where more could follow, the model's end token ends it; where nothing may follow, nothing more is read."""
    model = writer()
    eos = model.tokenizer.eos_id
    open_end, whole = written(model, [regex("a+"), regex("ab")], most=5, logit_bias={eos: 100.0})
    assert open_end.reason == "eos" and open_end.text == "a" and open_end.ids[-1] == eos
    assert whole.reason == "stop" and whole.text == "ab" and eos not in whole.ids
    endless = written(model, [regex("a+")], most=5, ignore_eos=True)[0]
    assert endless.reason == "length" and set(endless.text) == {"a"}  # cut: perhaps unfinished
    cut = written(model, [json_schema({"type": "array", "minItems": 9})], most=3)[0]
    assert cut.reason == "length"


def test_guides_of_rows_alone_and_together() -> None:
    """Each row its own, some none; streamed too; for each of several choices."""
    model = writer()
    params = [
        SamplingParams(max_new_tokens=40, temperature=1.0, seed=1, guide=regex("(ab|cd){2,9}x")),
        SamplingParams(max_new_tokens=9, temperature=1.0, seed=2, ignore_eos=True),
        SamplingParams(max_new_tokens=40, temperature=1.0, seed=3, n=3, guide=json_schema({"enum": ["é", 12, None]})),
        SamplingParams(max_new_tokens=20, guide=regex("[0-9]{3}"), repetition_penalty=1.2, logprobs=2),
    ]
    rows = [[5, 6], [7], [8, 9, 10], [5]]
    together = stemma.generate(model, rows, params)
    for row, p, result in zip(rows, params, together, strict=True):
        alone = stemma.generate(model, [row], [p])[0]
        assert [c.ids for c in alone.choices] == [c.ids for c in result.choices]
    assert {json.loads(c.text) for c in together[2].choices} <= {"é", 12, None}
    events = [e for e in stream(model, rows, params) if e.row == 0]
    assert "".join(e.text for e in events) == together[0].text and re.fullmatch("(ab|cd){2,9}x", together[0].text)


# ---------------------------------------------------------------- what cannot be


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        (regex("(a"), "the guide's regular expression cannot be followed: .*unclosed group"),
        (regex("(?=a)b"), "the guide's regular expression cannot be followed: .*look-ahead"),
        (grammar("begin: 'a'"), "the guide's grammar cannot be followed"),
        (json_schema({"type": "what"}), "the guide's JSON schema cannot be followed: .*what"),
        (json_schema({"type": "integer", "minimum": 3, "maximum": 2}), "the guide's JSON schema cannot be followed"),
        (json_schema({"$ref": "https://example.com/x"}), "the guide's JSON schema cannot be followed"),
    ],
    ids=lambda v: v if isinstance(v, str) else v.text,
)
def test_guides_that_cannot_be_followed_are_refused(guide: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message) as told:
        written(writer(), [guide])
    assert "\n" not in str(told.value)


def test_what_is_no_schema_is_refused() -> None:
    for wrong in ("{", "[1]", False, {"type": {1, 2}}):
        with pytest.raises(UsageError, match="a guide's JSON schema"):
            json_schema(wrong)  # type: ignore[arg-type]


def test_a_dead_end_is_said_in_a_sentence() -> None:
    model = writer("wordpiece")
    with pytest.raises(UsageError, match="the guide allows no token: this model's tokenizer cannot write"):
        written(model, [json_schema({"type": "object"})])
    with pytest.raises(UsageError, match="the guide allows no token after 'x'"):
        written(writer(), [regex("xx")], no_repeat_ngram_size=1)


def test_a_guide_needs_a_tokenizer_and_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = stemma.build("llama-7b", d_model=32, layers=1, heads=4, d_ff=48, vocab=50)
    with pytest.raises(UsageError, match="a guide needs a tokenizer"):
        written(bare, [regex("a")])
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    with pytest.raises(ResourceError, match=r"a guide needs llguidance: pip install 'stemma-lm\[guide\]'"):
        matcher(writer(), regex("a"))


# ---------------------------------------------------------------- random schemas

WORDS = ["a", "é", "漢字", "🙂🙂", "quick fox", 'say "x"', "back\\slash", "tab\t", "0", ""]


def schema(draw: random.Random, depth: int = 0) -> dict[str, Any]:
    """A schema whose texts have a bounded length."""
    leaf = ["string", "pattern", "integer", "number", "enum", "const", "boolean", "null"]
    match draw.choice(leaf if depth > 2 else [*leaf, "object", "object", "array", "array", "anyOf"]):
        case "string":
            least = draw.randrange(4)
            return {"type": "string", "minLength": least, "maxLength": least + draw.randrange(9)}
        case "pattern":
            return {"type": "string", "pattern": draw.choice(["^[a-f]{2,4}$", "^(é|漢)+[0-9]$", "^[0-9]{4}-[0-9]{2}$"])}
        case "integer":
            low = draw.randrange(-500, 500)
            return {"type": "integer", "minimum": low, "maximum": low + draw.randrange(1, 2000)}
        case "number":
            low = draw.randrange(-50, 50)
            return {"type": "number", "minimum": low, "maximum": low + draw.randrange(1, 200)}
        case "enum":
            return {"enum": draw.sample([*WORDS, 1, -2.5, True, None, [1, "é"], {"k": "漢"}], 3)}
        case "const":
            return {"const": draw.choice([*WORDS, 10**12, False])}
        case "array":
            least = draw.randrange(3)
            items = schema(draw, depth + 1)
            return {"type": "array", "items": items, "minItems": least, "maxItems": least + draw.randrange(3)}
        case "anyOf":
            return {"anyOf": [schema(draw, depth + 1) for _ in range(draw.randrange(1, 4))]}
        case "object":
            names = draw.sample(WORDS, draw.randrange(1, 4))
            required = [name for name in names if draw.random() < 0.7]
            own = {name: schema(draw, depth + 1) for name in names}
            return {"type": "object", "properties": own, "required": required, "additionalProperties": False}
        case kind:
            return {"type": kind}


def check_schemas(kind: str, seeds: range) -> None:
    rs = pytest.importorskip("jsonschema_rs")
    schemas = [schema(random.Random(seed)) for seed in seeds]
    found = written(writer(kind), [json_schema(s) for s in schemas], most=3000, seed=seeds.start)
    for one, result in zip(schemas, found, strict=True):
        assert result.reason in ("stop", "eos"), (one, result.text[-200:])
        assert rs.is_valid(one, json.loads(result.text)), (one, result.text)


@pytest.mark.parametrize(
    ("kind", "seeds"), [("bpe", range(16)), ("spm-bpe", range(16, 24)), ("unigram", range(24, 30))]
)
def test_random_schemas_validate(kind: str, seeds: range) -> None:
    check_schemas(kind, seeds)


@pytest.mark.slow
@pytest.mark.parametrize("start", range(0, 1000, 50))
def test_a_thousand_random_schemas_validate(start: int) -> None:
    check_schemas(("bpe", "spm-bpe", "unigram")[start // 50 % 3], range(start, start + 50))


# ---------------------------------------------------------------- the command


def test_the_command_guides_texts_and_writes_choices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer().save(tmp_path / "model")
    (tmp_path / "schema.json").write_text(
        '{"type": "array", "items": {"enum": ["é", 1]}, "minItems": 2, "maxItems": 2}'
    )
    (tmp_path / "form.lark").write_text('start: "x" ("+" "x")~1..3')

    def rows(*args: object) -> Any:
        with pytest.raises(SystemExit) as left:
            main(["generate", str(tmp_path / "model"), "the quick", "--temperature", "1", "--json", *map(str, args)])
        out, err = capsys.readouterr()
        return json.loads(out) if left.value.code == 0 else err

    found = rows("--json-schema", tmp_path / "schema.json", "--choices", 3, "-n", 200)
    assert len(found) == 3 and all(len(json.loads(row["text"])) == 2 for row in found)
    assert re.fullmatch(r"x(\+x){1,3}", rows("--grammar", tmp_path / "form.lark")[0]["text"])
    assert re.fullmatch(r"[ab]{2,3}", rows("--regex", "[ab]{2,3}", "--lookup", 4, "--best-of", 3)[0]["text"])
    assert rows("-n", 9, "--ignore-eos")[0]["ids"] == rows("-n", 9, "--ignore-eos", "--lookup", 4)[0]["ids"]
    biased = rows("-n", 4, "--logit-bias", "7=200", "--frequency-penalty", 0.5, "--presence-penalty", 0.1)
    assert biased[0]["ids"] == [7, 7, 7, 7]
    assert "--logit-bias 'x' should be TOKEN=NUMBER" in rows("--logit-bias", "x")
    assert "a text has one form" in rows("--regex", "a", "--grammar", tmp_path / "form.lark")
    assert "the guide's regular expression cannot be followed" in rows("--regex", "(")
