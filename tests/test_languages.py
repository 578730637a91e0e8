"""Texts of several languages: where documents get their language and their translations from, and what is kept of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stemma.data import Store, parallel, read, sources
from stemma.data.documents import Document, MixtureSource
from stemma.data.heldout import bound, training_texts
from stemma.declare.recipes import Sampling
from stemma.errors import DataError, UsageError
from stemma.objectives.languages import mixed
from test_data import Words

LINES = {"en": "in the beginning was word", "de": "im Anfang war das Wort", "ru": "в начале было слово"}


def verses(n: int) -> list[Document]:
    """`n` groups of a sentence in three languages."""
    return [
        Document(f"{text} {i}", f"{language} {i}", language, f"verse {i}")
        for i in range(n)
        for language, text in LINES.items()
    ]


def found(spec: str) -> list[tuple[str, str, str]]:
    return [(d.text, d.language, d.group) for d in read(spec).documents()]


# ---------------------------------------------------------------- the built-in text


def test_the_built_in_verses() -> None:
    rows = list(read("builtin:parallel").documents())
    languages = {d.language for d in rows}
    assert languages == set(parallel.LANGUAGES) and len(rows) == 32_913
    sizes = {name: sum(len(d.text.encode()) for d in rows if d.language == name) for name in languages}
    assert min(sizes.values()) > 500_000 and sum(sizes.values()) > 4_000_000
    assert parallel.FILE.stat().st_size < 2_000_000
    verse = {d.language: d.text for d in rows if d.group == "John 11:35"}
    assert verse == {
        "en": "Jesus wept.",
        "de": "Jesus vergoß Tränen.",
        "fr": "Jésus pleura.",
        "es": "Y lloró Jesús.",
        "it": "E Gesù lagrimò.",
        "ru": "Иисус прослезился.",
        "ar": "بكى يسوع.",
    }
    assert any("Ѐ" <= c <= "ӿ" for c in "".join(d.text for d in rows if d.language == "ru"))
    assert all(d.text == " ".join(d.text.split()) for d in rows)


def test_some_of_its_languages() -> None:
    rows = list(read("builtin:parallel:ru-en").documents())
    assert [d.language for d in rows[:4]] == ["ru", "en"] * 2 and rows[0].group == rows[1].group == "Genesis 1:1"
    with pytest.raises(UsageError, match="there are en, de"):
        read("builtin:parallel:en-xx")
    with pytest.raises(UsageError, match="twice"):
        read("builtin:parallel:en-en")


# ---------------------------------------------------------------- one's own


def test_aligned_files(tmp_path: Path) -> None:
    (tmp_path / "talks.en").write_text("One.\nTwo.\n\nFour.\n", "utf-8")
    (tmp_path / "talks.de").write_text("Eins.\nZwei.\nDrei.\nVier.", "utf-8")
    spec = f"{tmp_path}/talks.en|{tmp_path}/talks.de"
    rows = found(spec)
    assert [(t, lang) for t, lang, _ in rows] == [
        ("One.", "en"), ("Eins.", "de"), ("Two.", "en"), ("Zwei.", "de"), ("Drei.", "de"), ("Four.", "en"), ("Vier.", "de"),
    ]  # fmt: skip
    groups = [g for _, _, g in rows]
    assert groups[0] == groups[1] and groups[2] == groups[3] and len(set(groups)) == 4
    (tmp_path / "talks.de").write_text("Eins.\n", "utf-8")
    with pytest.raises(DataError, match=r"talks.de ends before line 2"):
        found(spec)
    with pytest.raises(DataError, match=r"talks\.fr"):
        read(f"{tmp_path}/talks.en|{tmp_path}/talks.fr")
    with pytest.raises(UsageError, match="different languages"):
        read(f"{tmp_path}/talks.en|{tmp_path}/talks.en")


def test_folders_by_language(tmp_path: Path) -> None:
    for name, text in {"en/a.txt": "A", "en/b.txt": "B", "de/a.txt": "Ä", "fr/x/c.txt": "C"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, "utf-8")
    assert found(f"{tmp_path}/{{lang}}/*.txt") == [("Ä", "de", ""), ("A", "en", ""), ("B", "en", "")]
    assert [row[1] for row in found(f"{tmp_path}/{{lang}}/**/*.txt")] == ["de", "en", "en", "fr"]
    grouped = found(f"{tmp_path}/{{lang}}/{{group}}.txt")
    assert [(t, g.split(":")[0]) for t, _, g in grouped] == [("Ä", "a"), ("A", "a"), ("B", "b")]
    with pytest.raises(DataError, match="no file matches"):
        read(f"{tmp_path}/{{lang}}/*.md")
    assert found(f"{tmp_path}/en/a.txt#lang=sco") == [("A", "sco", "")]


def test_rows_of_json(tmp_path: Path) -> None:
    rows = [
        {"text": "a", "lang": "en", "group": 7},
        {"text": "b", "lang": "de", "group": "7"},
        {"text": "c", "lang": None},
    ]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert found(f"{tmp_path}/r.jsonl") == [("a", "en", "7"), ("b", "de", "7"), ("c", "", "")]


def test_weights_and_limits(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    a, b = tmp_path / "a.txt", tmp_path / "b.txt"
    source = read(f"{a}@0.7#epochs=4,{b}@0.3")
    assert source.parts == (MixtureSource(str(a), 0.7, 4.0), MixtureSource(str(b), 0.3, None))
    assert [d.part for d in source.documents()] == [0, 1]
    assert read(f"{a},{b}").parts == () and read(f"{a},{b}#epochs=2").parts[1] == MixtureSource(str(b), None, 2.0)
    with pytest.raises(UsageError, match="some of its sources only"):
        read(f"{a}@0.7,{b}")
    with pytest.raises(UsageError, match="positive number"):
        read(f"{a}@0,{b}@1")
    with pytest.raises(UsageError, match=r"epochs.*positive number"):
        read(f"{a}#epochs=no")
    with pytest.raises(UsageError, match="did you mean 'epochs'"):
        read(f"{a}#epoch=3")
    odd = tmp_path / "c@2"
    odd.write_text("a file of that name is a file")
    assert [d.text for d in read(str(odd)).documents()] == ["a file of that name is a file"]


# ---------------------------------------------------------------- the store


def test_a_store_keeps_languages_and_groups(tmp_path: Path) -> None:
    source = sources.of(verses(40))
    store = Store.build(source, Words(), tmp_path / "store")
    again = Store.open(tmp_path / "store")
    assert again.languages == ("en", "de", "ru") and again.fingerprint == store.fingerprint
    again.verify()
    for view in again.split(0.2, 3):
        for i in range(len(view)):
            others = view.translations(i)
            assert len(others) == 2 and i not in others
            name = view.name(i).split(" ")[1]
            assert {view.name(j).split(" ")[1] for j in others} == {name}
            assert {view.language(i), *(view.language(j) for j in others)} == {"en", "de", "ru"}
    train = again.split(0.2, 3)[0]
    assert list(training_texts(source, 0.2, 3)) == [train.text(i) for i in range(len(train))]
    assert train.pick(np.array([3, 0])).language(1) == train.language(0)


def test_what_a_store_keeps_is_part_of_its_fingerprint(tmp_path: Path) -> None:
    plain = [Document("a b", "1"), Document("c d", "2")]
    prints = [
        Store.build(sources.of(rows), Words(), tmp_path / str(i)).fingerprint
        for i, rows in enumerate(
            [plain, [d._replace(language="en") for d in plain], [d._replace(group="x") for d in plain]]
        )
    ]
    assert len(set(prints)) == 3


def test_a_store_of_before_still_opens(tmp_path: Path) -> None:
    """A text without languages is stored as it always was."""
    store = Store.build(sources.of([Document(f"text {i}", f"{i}") for i in range(9)]), Words(), tmp_path)
    assert not {"languages", "groups", "parts"} & (store._arrays.keys() | store.meta.keys())
    assert store.languages == ("",) and store.language(3) == "" and store.translations(3) == [] and store.parts == ()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(-1, 6)), min_size=1, max_size=30))
def test_no_text_and_no_group_is_divided(rows: list[tuple[int, int]]) -> None:
    hashes = np.array([t for t, _ in rows], dtype=np.uint64)
    keys = bound(hashes, [g for _, g in rows])
    for (t, g), key in zip(rows, keys, strict=True):
        for (other, h), theirs in zip(rows, keys, strict=True):
            if t == other or (g == h != -1):
                assert key == theirs
        if all(g2 == -1 or t2 != t for t2, g2 in rows):
            assert key == t  # what is bound to nothing keeps its own


def test_the_order_of_a_text_with_weights(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("\n".join(f"{name}{i}" for i in range(40)))
    spec = f"{tmp_path}/a.txt@0.75#split=line&epochs=2,{tmp_path}/b.txt@0.25#split=line"
    train = Store.build(spec, Words(), tmp_path / "store").split(0.2, 1)[0]
    order = mixed(train, 5, Sampling())
    assert order is not None
    drawn = [train.text(order[slot][0])[0] for slot in range(800)]
    own = sum(train.text(i)[0] == "a" for i in range(len(train)))
    assert drawn.count("a") == 2 * own  # then its epochs are over
    with pytest.raises(DataError, match=r"a.txt.*no document left"):
        mixed(train.pick(np.flatnonzero(train.part_ids == 1)), 5, Sampling())


def test_the_order_of_languages(tmp_path: Path) -> None:
    """Languages of 60, 30 and 10 documents, drawn by their sizes to the power of 0.3."""
    sizes = {"en": 60, "de": 30, "ru": 10}
    rows = [Document(f"{lang} {i}", f"{lang} {i}", lang) for lang, n in sizes.items() for i in range(n)]
    store = Store.build(sources.of(rows), Words(), tmp_path)
    order = mixed(store, 5, Sampling(0.3))
    assert order is not None
    drawn = [store.language(order[slot][0]) for slot in range(2560)]
    total = sum(n**0.3 for n in sizes.values())
    for lang, n in sizes.items():
        assert drawn.count(lang) / len(drawn) == pytest.approx(n**0.3 / total, abs=0.002)
    assert mixed(store, 5, Sampling()) is None
