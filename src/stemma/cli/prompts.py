"""Prompts and stop texts of the command line, and continuations as they come."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from stemma import disk
from stemma.cli import echo
from stemma.errors import DataError, UsageError

ESCAPE = re.compile(r"\\(n|r|t|\\|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4})")
ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}
SHORTEST = 3  # characters of a special token's name that a prompt is not likely to hold by chance


def unescaped(text: str) -> str:
    r"""`text` with `\n`, `\r`, `\t`, `\\`, `\xNN` and `\uNNNN` as the characters that they stand for."""
    return ESCAPE.sub(lambda m: ESCAPES.get(m[1]) or chr(int(m[1][1:], 16)), text)


def lines_of(text: str) -> list[str]:
    """The lines of standard input that are not blank."""
    return [line.removesuffix("\r") for line in text.split("\n") if line.strip()]


def special_names(model: Any, texts: Iterable[str]) -> list[str]:
    """Names of special tokens in the texts. Blanks of models that fill blanks are read as such and are not named."""
    from stemma.nn.parts import Prefix

    if model.tokenizer is None or isinstance(model.arch.mask, Prefix):
        return []
    names = {model.tokenizer.token(i) for i in model.tokenizer.special_ids}
    known = sorted((n for n in names if n is not None and len(n) >= SHORTEST), key=len, reverse=True)
    return [name for name in known if any(name in text for text in texts)]


def encoded(model: Any, texts: Sequence[str], special: bool) -> Sequence[str] | list[list[int]]:
    """The prompts. `special`: as ids, names of special tokens read as these tokens; otherwise as they are, with a note
    where they hold such names. Raises UsageError for `special` with a model whose prompts it cannot be for."""
    found = special_names(model, texts)
    if not special:
        if found:
            warnings.warn(
                f"the prompt holds {found[0]!r}, a special token's name, and it is read as plain text; --special reads "
                "it as the token",
                stacklevel=2,
            )
        return texts
    from stemma.nn.parts import Prefix

    if model.tokenizer is None or isinstance(model.arch.mask, Prefix):
        raise UsageError("--special needs a tokenizer, and a model that does not read blanks by itself")
    tokenizer, rows = model.tokenizer, []
    for text in texts:
        ids = tokenizer.encode(text, add_special=model.arch.streams is None, allow_special=True)
        twice = len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_id  # the text brings its own
        rows.append(ids[1:] if twice else ids)
    return rows


def in_hard_prompts(path: str, texts: Sequence[str], task: str | None) -> Sequence[str]:
    """The prompts, each in the words that the model at `path` was tuned with for a task. Raises UsageError where it has
    none for `task`, or several and none is named."""
    from stemma.cli.talks import prompts_of
    from stemma.train import midway

    prompts = () if midway.is_checkpoint(Path(path)) else prompts_of(path)
    if not prompts:
        if task is not None:
            raise UsageError(f"{path} was tuned with no hard prompt, so --task names nothing")
        return texts
    from stemma.tasks.hard import asked, chosen

    try:
        one = chosen(prompts, task)
    except DataError as error:
        raise UsageError(f"{error}; choose one by --task, or none by --bare") from None
    disk.tell("note: each PROMPT stands in the hard prompt that the model was tuned with; --bare leaves it out")
    return [asked(one, text) for text in texts]


class Texts:
    """Continuations by row. With `live` they are printed in the order of rows: a row as it comes, once all before it
    have ended. `heads`: what stands before each."""

    def __init__(self, heads: Sequence[str], live: bool) -> None:
        self.texts, self.live = list(heads), live
        self.ended = [False] * len(self.texts)
        self.row = self.shown = 0

    def add(self, row: int, piece: str, ended: bool) -> None:
        """Take a new piece of a row."""
        self.texts[row] += piece
        self.ended[row] |= ended
        if self.live:
            self.show()

    def show(self) -> None:
        """Print what is new."""
        while self.row < len(self.texts):
            text = self.texts[self.row]
            echo(text[self.shown :], nl=False)
            self.shown = len(text)
            if not self.ended[self.row]:
                return
            self.row, self.shown = self.row + 1, 0
            echo("\n\n" if self.row < len(self.texts) else "\n", nl=False)

    def close(self) -> None:
        """Print the rest: of texts that were stopped, what there is of them."""
        self.ended = [True] * len(self.texts)
        self.show()
