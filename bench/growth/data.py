"""Stores of large texts and tokenizers trained on them, beside `datasets.map`, `tokenizers` and `sentencepiece`.

The text is made from a seed: words of syllables, drawn by Zipf's law, in sentences and documents of 2 kB in the mean.
It stands in one file of JSON lines of 100 MB, one of 500 MB, and 20,000 files of 5 kB. Stores and maps use the same
tokenizer (byte-level BPE of 16,000) and two processes; their GB are of the process that waits for these two.
"""

from __future__ import annotations

import itertools
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from growth import Try, Work

SIDES = ("stemma", "libraries")
FASTER = (("s", 0.67),)
TRAINED = (("s", 1.1), ("GB", 1.25))
WORKS = (
    Work("store of one file of 100 MB", FASTER),
    Work("store of one file of 500 MB", FASTER),
    Work("store of 20,000 files", FASTER),
    Work("open that of 100 MB again", (("s", 1.0),)),
    Work("WordPiece of 100 MB", TRAINED),
    Work("WordPiece of 500 MB", TRAINED),
    Work("byte-level BPE of 100 MB", TRAINED),
    Work("unigram of 500 MB", TRAINED),
    Work("statistics of 500 MB", (), ("stemma",)),
)
WORDS, SIZE, PROCESSES = 60_000, 16_000, 2
SYLLABLES = (
    [
        "b",
        "d",
        "f",
        "g",
        "h",
        "j",
        "k",
        "l",
        "m",
        "n",
        "p",
        "r",
        "s",
        "t",
        "v",
        "w",
        "br",
        "ch",
        "cl",
        "dr",
        "fr",
        "gr",
        "pl",
        "pr",
        "sh",
        "st",
        "th",
        "tr",
    ],
    ["a", "e", "i", "o", "u", "ai", "ea", "ee", "ou"],
)
CLOSED = ["", "", "n", "r", "s", "t", "l", "m", "ck", "nd", "ng", "st"]


def words(seed: int) -> list[str]:
    """Different words; the first two hundred have one syllable."""
    draw = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < WORDS:
        many = 1 if len(found) < 200 else draw.choice((1, 2, 2, 3, 3, 4))
        found["".join(draw.choice(part) for _ in range(many) for part in (*SYLLABLES, CLOSED))] = None
    return list(found)


def documents(size: int, seed: int = 0) -> Iterator[str]:
    """Documents of about `size` characters in all."""
    known, draw = words(seed), np.random.default_rng(seed)
    weights = np.cumsum(1 / (np.arange(1, WORDS + 1) + 2.7) ** 1.05)
    while size > 0:
        block = np.searchsorted(weights, draw.random(200_000) * weights[-1])
        rest = [known[min(i, WORDS - 1)] for i in block.tolist()]
        while rest and size > 0:
            text = []
            for length in draw.integers(4, 22, size=1 + int(draw.lognormal(2.9, 0.9))).tolist():
                text.append(" ".join(rest[-length:]).capitalize() + (".", "?", ", 1987.", ".\n\n")[length % 13 % 4])
                del rest[-length:]
            joined = " ".join(text)
            size -= len(joined)
            yield joined


def make(one: Try) -> str:
    from stemma.text import Specials, Tokenizer

    size = round(100_000_000 * one.scale)
    for name, factor in (("tiny", 0), ("100", 1), ("500", 5)):
        with open(one.folder / f"{name}.jsonl", "w", encoding="utf-8") as out:
            for text in documents(max(20_000, factor * size)):
                out.write(json.dumps({"text": text}) + "\n")
    (one.folder / "many").mkdir()
    (one.folder / "few").mkdir()
    texts = documents(size, seed=1)
    for number in range(files := max(20, round(20_000 * one.scale))):
        text = "\n".join(itertools.islice(texts, 2)) or "the end"
        (one.folder / "many" / f"{number:05d}.txt").write_text(text, "utf-8")
    (one.folder / "few" / "a.txt").write_text("a few words", "utf-8")
    first = itertools.islice(_texts(one.folder / "100.jsonl"), max(20, round(4000 * one.scale)))
    Tokenizer.train("bpe", first, min(SIZE, 2000 + round(SIZE * one.scale)), Specials(eos="</s>")).save(
        one.folder / "tok"
    )
    os.sync()
    return f"{size / 1e6:.0f} MB and {size / 2e5:.0f} MB in one file, {files:,} files"


def _texts(path: Path) -> Iterator[str]:
    with open(path, encoding="utf-8") as rows:
        for row in rows:
            yield json.loads(row)["text"]


def _store(one: Try, tokenizer: Any, name: str) -> Any:
    """A store, or what `datasets` keeps of the same ids."""
    path = one.folder / name
    if one.ours:
        from stemma.data import Store

        return Store.build(
            str(path), tokenizer, one.out / name, workers=PROCESSES if name not in ("tiny.jsonl", "few") else 1
        )
    import datasets

    kind, found = ("text", sorted(map(str, path.iterdir()))) if path.is_dir() else ("json", [str(path)])
    more = {"sample_by": "document"} if path.is_dir() else {}
    rows = datasets.load_dataset(kind, data_files=found, split="train", cache_dir=str(one.out), **more)
    return rows.map(
        _ids,
        batched=True,
        num_proc=PROCESSES,
        remove_columns=rows.column_names,
        fn_kwargs={"tokenizer": tokenizer},
    )


def _ids(batch: Any, tokenizer: Any) -> Any:
    return tokenizer(batch["text"], add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False)


def _train(one: Try, kind: str, name: str) -> Any:
    texts = _texts(one.folder / f"{name}.jsonl")
    size = min(SIZE, 1000 + round(SIZE * one.scale))
    if one.ours:
        from stemma.text import Specials, Tokenizer

        kinds = {"WordPiece": "wordpiece", "byte-level BPE": "bpe", "unigram": "unigram"}
        return Tokenizer.train(kinds[kind], texts, size, Specials(unk="[UNK]" if kind == "WordPiece" else "<unk>"))
    if kind == "unigram":
        return _sentencepiece(texts, size)
    from tokenizers import BertWordPieceTokenizer, ByteLevelBPETokenizer

    made = ByteLevelBPETokenizer() if kind == "byte-level BPE" else BertWordPieceTokenizer(lowercase=False)
    made.train_from_iterator(texts, vocab_size=size, min_frequency=1, show_progress=False)
    return made


def _sentencepiece(texts: Iterator[str], size: int) -> None:
    """As many lines as Stemma reads at most: eight million characters."""
    import io

    import sentencepiece

    lines = (line for text in texts for line in text.split("\n") if line)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines,
        model_writer=io.BytesIO(),
        vocab_size=size,
        input_sentence_size=8_000_000 // 500,
        byte_fallback=True,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=3,
    )


def _tokenizer(one: Try) -> Any:
    if one.ours:
        from stemma.text import Tokenizer

        return Tokenizer.load(one.folder / "tok")
    import datasets
    from transformers import PreTrainedTokenizerFast

    datasets.disable_progress_bars()
    return PreTrainedTokenizerFast.from_pretrained(one.folder / "tok")


def warm(one: Try) -> None:
    if "store" in one.work or "open" in one.work:
        _store(one, _tokenizer(one), "few" if "files" in one.work else "tiny.jsonl")
    elif one.work.startswith("statistics"):
        _survey(one, "tiny")
    else:
        _train(one, one.work.partition(" of ")[0], "tiny")


def _survey(one: Try, name: str) -> None:
    from stemma.data.survey import survey

    survey(str(one.folder / f"{name}.jsonl"))


def before(one: Try) -> Any:
    if not ("store" in one.work or "open" in one.work):
        return None
    tokenizer = _tokenizer(one)
    if one.work.startswith("open"):
        _store(one, tokenizer, "100.jsonl")
    return tokenizer


def work(one: Try, held: Any) -> None:
    size = "500" if "500" in one.work else "100"
    if "store" in one.work or "open" in one.work:
        _store(one, held, "many" if "files" in one.work else f"{size}.jsonl")
    elif one.work.startswith("statistics"):
        _survey(one, size)
    else:
        _train(one, one.work.partition(" of ")[0], size)
