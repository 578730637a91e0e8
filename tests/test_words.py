"""Encoding word by word: the same ids and ends as the library gives, for every tokenizer that is taken for separate."""

from __future__ import annotations

import base64
import functools
import json
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Core

from stemma.data import shards
from stemma.data.encoding import sentences
from stemma.text import Specials, Tokenizer, words
from stemma.text.ranks import LLAMA3

TEXTS = [
    f"The quick brown fox, line {i}; jumps over {i * 37} lazy dogs! Don't они 東京 नमस्ते café ﬁ\n\n\tx = f({i})"
    for i in range(60)
]
BERT = Specials(pad="[PAD]", unk="[UNK]", cls="[CLS]", sep="[SEP]", mask="[MASK]")
LLAMA = Specials(bos="<s>", eos="</s>", unk="<unk>")
PARTS = [
    *("the", "quick", "Brown", "fox,", "don't", "(12", "3.14)", '"yes"', "x=1;", "они", "東京", "日本", "नमस्ते", "café"),
    *(" ", " ", " ", " ", "  ", "\n", "\n\n", "\t", "\r\n", "\u00a0", "\u3000", "\u200b", "\u00ad", "\x01", "▁", "\f"),
    *(
        "\u0301",
        "e\u0301",
        "ﬁ",
        "½",
        "…",
        "\u200d",
        "🙂",
        "👩‍👧",
        "\u0600",
        "\u0e33",
        "ｶﾞ",
        "한",
        "\u1100\u1161",
        "!",
        "'s",
        "?!",
    ),
    *("<s>", "</s>", "<unk>", "[MASK]", "[CLS]", "<0x0A>", "<extra_id_1>", "##s", "İ", "Σ", "ς", "ß", "0", "x" * 120),
]


def trained(kind: str, specials: Specials, size: int, **options: Any) -> Tokenizer:
    return Tokenizer.train(kind, TEXTS, size, specials, **options)


def changed(made: Tokenizer, kind: str, **parts: Any) -> Tokenizer:
    """`made` with another normalizer or pre-tokenizer."""
    core = Core.from_str(made._core.to_str())
    for name, part in parts.items():
        setattr(core, name, part)
    return Tokenizer(core, kind, made.specials)


@functools.cache
def tokenizers() -> dict[str, Tokenizer]:
    """Each kind as it is trained here, and as publishers write it."""
    bytewise, pieces = trained("bpe", Specials(bos="<s>", eos="</s>"), 420), trained("unigram", LLAMA, 420)
    merged = trained("spm-bpe", LLAMA, 420)
    flat = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    precompiled = json.loads(pieces._core.to_str())["normalizer"]["normalizers"][0]["precompiled_charsmap"]
    folded = normalizers.Precompiled(base64.b64decode(precompiled))
    spaces = normalizers.Replace(Regex(" {2,}"), " ")
    whole, metaspace = pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()

    def split(pattern: str) -> Any:
        return pre_tokenizers.Split(Regex(pattern), "isolated")

    llama = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return {
        "wordpiece": trained("wordpiece", BERT, 300, lowercase=True),
        "cased": trained("wordpiece", BERT, 300),
        "gpt-bpe": trained("gpt-bpe", Specials(unk="<unk>"), 300),
        "bpe": bytewise,
        "roberta": changed(bytewise, "bpe", pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)),
        "llama3": changed(bytewise, "bpe", pre_tokenizer=pre_tokenizers.Sequence([split(LLAMA3), flat])),
        "qwen2": changed(
            bytewise,
            "bpe",
            normalizer=normalizers.NFC(),
            pre_tokenizer=pre_tokenizers.Sequence([split(words._QWEN2), flat]),
        ),
        "starcoder": changed(
            bytewise,
            "bpe",
            pre_tokenizer=pre_tokenizers.Sequence(
                [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            ),
        ),
        "unigram": pieces,
        "t5": changed(pieces, "unigram", normalizer=folded, pre_tokenizer=pre_tokenizers.Sequence([whole, metaspace])),
        "xlm-r": changed(pieces, "unigram", normalizer=normalizers.Sequence([folded, spaces]), pre_tokenizer=metaspace),
        "spm-bpe": merged,
        "llama": changed(merged, "spm-bpe", normalizer=llama, pre_tokenizer=None),
    }


def same(name: str, texts: list[str]) -> None:
    tokenizer = tokenizers()[name]
    assert tokenizer._words is not None, f"{name} is not read word by word"
    expected = words.spans(tokenizer.encode_spans(texts))
    for found in (tokenizer._words.encode(texts), tokenizer._words.encode(texts)):  # words new, words known
        if found is None:
            assert name in ("unigram", "t5", "xlm-r"), name
            continue
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.dtype == theirs.dtype and ours.tolist() == theirs.tolist(), (name, texts)


class Slow:
    """A tokenizer that is asked for one text after another."""

    def __init__(self, made: Tokenizer) -> None:
        self.vocab_size, self.fingerprint, self.encode_spans = made.vocab_size, made.fingerprint, made.encode_spans


@pytest.mark.parametrize("name", ["wordpiece", "bpe", "unigram", "spm-bpe"])
def test_a_shard_is_the_same_however_its_tokens_are_found(name: str) -> None:
    made = tokenizers()[name]
    texts = [*TEXTS * 2, "a", " . ", "", "\x01", 'He said "no." Then\n\n he  left. "', "東京。 x", *TEXTS]
    found, expected = shards.encode(texts, made), shards.encode(texts, Slow(made))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype and ours.tolist() == theirs.tolist()
    edges = np.concatenate([[0], np.cumsum(found.counts)]), np.concatenate([[0], np.cumsum(found.marks)])
    for i, text in enumerate(texts):  # one by one, as written down in `store`
        ids, ends = made.encode_spans([text])[0]
        assert found.tokens[edges[0][i] : edges[0][i + 1]].tolist() == ids
        inside = [sum(end <= at for end in np.maximum.accumulate(ends)) for at in sentences(text)[1:]] if ids else []
        expected_starts = sorted({0, *(at for at in inside if 0 < at < len(ids))}) if ids else []
        assert found.starts[edges[1][i] : edges[1][i + 1]].tolist() == expected_starts


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.sampled_from(PARTS), max_size=24).map("".join), min_size=1, max_size=4))
def test_word_by_word_is_what_the_library_gives(texts: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(words, "NEW", float("inf"))
        patch.setattr(words, "TOGETHER", 3)
        for name in tokenizers():
            same(name, texts)


@pytest.mark.slow
@settings(max_examples=4000, deadline=None)
@given(st.lists(st.lists(st.sampled_from(PARTS) | st.characters(codec="utf-8"), max_size=24).map("".join), min_size=1))
def test_word_by_word_is_what_the_library_gives_for_any_text(texts: list[str]) -> None:
    test_word_by_word_is_what_the_library_gives.hypothesis.inner_test(texts)  # type: ignore[attr-defined]


def test_a_table_that_is_full_begins_again_and_another_process_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "NEW", float("inf"))
    monkeypatch.setattr(words, "MOST", 20)
    made = tokenizers()["bpe"]
    for text in TEXTS[:8]:
        found = made.encode_flat([text])
        assert found.ids.tolist() == made.encode(text, add_special=False)
        assert made._words is not None and len(made._words.known) < 40
    again = pickle.loads(pickle.dumps(made))
    assert not again._words.known and again.encode_flat(TEXTS).ids.tolist() == made.encode_flat(TEXTS).ids.tolist()


def test_a_text_of_new_words_is_left_to_the_library() -> None:
    made = changed(tokenizers()["bpe"], "bpe")
    assert made._words is not None
    assert made._words.encode(["every word here is new"]) is None and not made._words.known
    assert made._words.encode(["again and again and again and " * 9]) is not None
    assert made.encode_flat(["every word here is new"]).counts.tolist() == [len(made.encode("every word here is new"))]
    assert np.concatenate([made.encode_flat([]).ids, made.encode_flat([""]).ids]).tolist() == []


def test_texts_that_only_the_library_reads_rightly() -> None:
    made = tokenizers()["unigram"]
    assert made._words is not None
    for text in ("<0x0A> " * 40, "\x01the the the the the the"):
        assert made._words.encode([text]) is None
    assert made._words.encode(["the the the the the the"]) is not None


def test_tokenizers_that_look_across_spaces_are_left_to_the_library() -> None:
    bytewise, pieces, merged = (tokenizers()[name] for name in ("bpe", "unigram", "spm-bpe"))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    crossing = json.loads(tokenizers()["llama"]._core.to_str())
    crossing["model"]["vocab"] |= {"s▁": len(crossing["model"]["vocab"])}
    dropping = json.loads(bytewise._core.to_str())
    dropping["model"]["dropout"] = 0.1
    more = Core.from_str(bytewise._core.to_str())
    more.add_tokens([AddedToken("new word", normalized=False)])
    sentence = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    left = {
        "no cut at all": changed(bytewise, "bpe", pre_tokenizer=level),
        "an unknown pattern": changed(
            bytewise,
            "bpe",
            pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\w+ \w+"), "isolated"), level]),
        ),
        "a piece over a space": Tokenizer(Core.from_str(json.dumps(crossing)), "spm-bpe", merged.specials),
        "sums over the whole text": changed(pieces, "unigram", normalizer=sentence, pre_tokenizer=None),
        "chance": Tokenizer(Core.from_str(json.dumps(dropping)), "bpe", bytewise.specials),
        "an added token": Tokenizer(more, "bpe", bytewise.specials),
        "ideographs apart": changed(bytewise, "bpe", normalizer=normalizers.BertNormalizer()),
        "letters made spaces": changed(bytewise, "bpe", normalizer=normalizers.Replace("x", " ")),
    }
    for why, made in left.items():
        assert made._words is None, why
        assert made.encode_flat(["the fox", ""]).counts.tolist()[1] == 0, why
