"""Questions with documentation beside them, as Gorilla's retriever-aware training and tests have them (Patil et al.
2023, arXiv:2305.15334).

A retriever finds the documentation of one call for each question; not all that it finds need be right.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stemma.conversations import apis
from stemma.data import random as draw
from stemma.data import read
from stemma.data.files import ROWS
from stemma.errors import DataError, UsageError, require
from stemma.tasks.encoder import good_rows

PURPOSE = 0x60A1  # of the draws
RETRIEVERS = ("none", "oracle", "bm25", "tfidf", "embedding")
Row = Mapping[str, Any]
Finder = Callable[[Sequence[str]], list[int]]  # of questions: the number of the document for each


@dataclass(frozen=True)
class Made:
    """Rows of prompt and completion, sentences on rows that were passed over, and counts: of `beside`, which have a
    document, `right` ones have that of their own call."""

    rows: list[dict[str, Any]]
    notes: list[str]
    beside: int
    right: int


def by_bm25(documents: Sequence[str]) -> Finder:
    """By Okapi BM25 (k1 1.5, b 0.75), as one of the paper's retrievers; English stop words are left out. A question
    that shares no word with any document gets the first. Raises ResourceError without bm25s."""
    require("bm25s", "finding documents by BM25", "'stemma-lm[tune]'")
    import bm25s

    def words(texts: Sequence[str]) -> list[list[str]]:
        found: list[list[str]] = bm25s.tokenize([*texts], stopwords="english", return_ids=False, show_progress=False)
        return found

    index = bm25s.BM25(k1=1.5, b=0.75)
    index.index(words(documents), show_progress=False)

    def find(questions: Sequence[str]) -> list[int]:
        return [int(index.get_scores(asked).argmax()) if asked else 0 for asked in words(questions)]

    return find


def by_tfidf(documents: Sequence[str]) -> Finder:
    """By the cosine of TF-IDF vectors, English stop words left out. Raises ResourceError without scikit-learn."""
    require("sklearn", "finding documents by TF-IDF", "'stemma-lm[tune]'")
    from sklearn.feature_extraction.text import TfidfVectorizer

    counter = TfidfVectorizer(stop_words="english", sublinear_tf=True)
    held = counter.fit_transform(documents)

    def find(questions: Sequence[str]) -> list[int]:
        alike = counter.transform(questions) @ held.T
        return [int(row.argmax()) for row in alike.toarray()]

    return find


def by_embedding(documents: Sequence[str], model: Any) -> Finder:
    """By the vectors of a model (`stemma embed`)."""
    from stemma.decoding.pooling import embed

    held = embed(model, documents, normalize=True)
    return lambda questions: (embed(model, questions, normalize=True) @ held.T).argmax(1).tolist()


def corpus(source: str) -> list[Row]:
    """The documentation of calls: rows with an `api_call`, or rows of APIBench that hold it as `api_data`; each call
    once. Raises DataError for others."""
    found: dict[str, Row] = {}
    for document in read(source, field=ROWS, strict=False).documents():
        row = json.loads(document.text)
        api = row.get("api_data", row) if isinstance(row, Mapping) else None
        if not isinstance(api, Mapping) or not isinstance(api.get("api_call"), str):
            raise DataError(f"{document.name} is no documentation of a call: a row with 'api_call' was expected")
        found.setdefault(api["api_call"], api)
    if not found:
        raise DataError(f"{source} holds no documentation of a call")
    return list(found.values())


def made(
    source: str, documents: str | None, retriever: str, share: float = 1.0, seed: int = 1, model: Any = None
) -> Made:
    """Rows of APIBench as prompts and completions, about `share` of them beside what a retriever finds among
    `documents` (None: the calls of the rows themselves). Raises UsageError for what does not fit."""
    if (retriever == "embedding") != (model is not None):
        raise UsageError("the retriever 'embedding' needs a model that gives vectors, and no other retriever takes one")

    def check(row: Row) -> None:
        if not apis.is_row(row):
            raise DataError("it is no row of APIBench, which has 'code', 'api_call' and 'api_data'")
        apis.read(row)

    rows, notes = good_rows(source, check)
    asked = [apis.read(row) for row in rows]
    held = corpus(documents or source) if retriever != "none" else []
    own = {api["api_call"]: i for i, api in enumerate(held)}
    if retriever == "oracle":
        lost = [row["api_call"] for row in rows if row["api_call"] not in own]
        if lost:
            raise DataError(f"{documents} has no documentation of {lost[0]!r} ({len(lost):,} rows ask for such calls)")
        found: list[int | None] = [own[row["api_call"]] for row in rows]
    elif retriever == "none":
        found = [None] * len(rows)
    else:
        texts = [apis.document(api) for api in held]
        by = {"bm25": by_bm25, "tfidf": by_tfidf}.get(retriever)
        finder = by_embedding(texts, model) if by is None else by(texts)
        found = [*finder([one.question for one in asked])]
    keep = draw.uniform((seed, PURPOSE), len(rows)) < share
    out = []
    for row, one, number, kept in zip(rows, asked, found, keep.tolist(), strict=True):
        api = held[number] if kept and number is not None else None
        given = {"prompt": apis.asked(one.question, api), "completion": one.answer}
        more = {"domain": one.fields.get("domain", ""), "api_call": row["api_call"]}
        out.append(given | more | {"document": None if api is None else api["api_call"]})
    beside = [row for row in out if row["document"] is not None]
    return Made(out, notes, len(beside), sum(row["document"] == row["api_call"] for row in beside))
