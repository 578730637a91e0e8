"""What was asked and answered, in a file that only grows: nothing that stands in it is asked again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from stemma import disk
from stemma.errors import CheckpointError
from stemma.instruct.writers import Ask, ChatWriter, Continuation

SHAPE = {"text": str, "whole": bool, "fits": bool}


class Journal:
    """Answers by their keys. A line of the file holds those that were answered together."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.held: dict[str, Continuation] = {}
        if path.is_file():
            self._restore()

    def _restore(self) -> None:
        raw = disk.read_bytes(self.path)
        if not raw.endswith(b"\n") and raw:  # what a killed process wrote of a line
            with disk.writing(self.path), open(self.path, "rb+") as file:
                file.truncate(raw.rfind(b"\n") + 1)
        for number, line in disk.read_jsonl(self.path):
            if line is disk.BROKEN:
                raise CheckpointError(f"{self.path} is damaged: line {number} is not JSON; choose a new directory")
            for key, answer in disk.typed(self.path, line, {str: SHAPE}).items():
                self.held[key] = Continuation(answer["text"], answer["whole"], answer["fits"])

    def __getitem__(self, key: str) -> Continuation:
        return self.held[key]

    def ask(
        self,
        writer: Callable[[], ChatWriter],
        asked: Mapping[str, Ask],
        said: Callable[[int, int], None] = lambda done, of: None,
    ) -> None:
        """Ask what is not answered yet, and keep each answer as soon as it is there. `said` gets how many of these are
        answered. `writer` is called where there is something to ask."""
        left = [key for key in asked if key not in self.held]
        if not left:
            return
        out = disk.Appender(self.path)
        try:
            for group in writer().answers([asked[key] for key in left]):
                answers = {left[i]: answer for i, answer in group}
                out.add({k: {"text": a.text, "whole": a.whole, "fits": a.fits} for k, a in answers.items()})
                out.sync()
                self.held |= answers
                said(len([key for key in asked if key in self.held]), len(asked))
        finally:
            out.close()
