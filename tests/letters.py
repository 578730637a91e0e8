"""A tokenizer of characters that any process can make again: what builds with several processes are tested with."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path


class Letters:
    """Ids are characters, cut at 999; spaces are no tokens. Every text is written to `log`, if there is one; `slow`
    seconds are slept a text."""

    vocab_size = 1000

    def __init__(self, log: str = "", slow: float = 0.0) -> None:
        self.log, self.slow, self.fingerprint = log, slow, "letters"

    def encode_spans(self, texts: Sequence[str]) -> list[tuple[list[int], list[int]]]:
        out = []
        for text in texts:
            time.sleep(self.slow)
            at = [i for i, c in enumerate(text) if not c.isspace() and c != "-"]
            out.append(([min(ord(text[i]), 999) for i in at], [i + 1 for i in at]))
        if self.log:
            with open(self.log, "a") as file:
                file.write(f"{os.getpid()} {len(texts)}\n")
        return out


class Broken(Letters):
    """Gives an id that its vocabulary lacks for the word `alien`."""

    def encode_spans(self, texts: Sequence[str]) -> list[tuple[list[int], list[int]]]:
        rows = super().encode_spans(texts)
        return [
            ([1000, *ids[1:]], ends) if "alien" in text else (ids, ends)
            for text, (ids, ends) in zip(texts, rows, strict=True)
        ]


class Mortal(Letters):
    """Takes its process with it at the word `alien`, unless that is the process in the file `spared`."""

    def encode_spans(self, texts: Sequence[str]) -> list[tuple[list[int], list[int]]]:
        if any("alien" in text for text in texts):
            os.kill(os.getpid(), 9)
        return super().encode_spans(texts)


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of a store's arrays by name."""
    return {path.name: path.read_bytes() for path in folder.glob("[0-9a-f]*/*.bin")}
