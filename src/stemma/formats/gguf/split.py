"""A GGUF model in several files, as llama.cpp's gguf-split makes them: `x-00001-of-00003.gguf` and so on.

Every part has the keys `split.no` (from 0), `split.count` and `split.tensors.count`; the other keys are in the first.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from stemma.errors import CheckpointError
from stemma.formats.gguf.file import File
from stemma.rewrites.modules import Blocks

NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


def parts_of(name: str) -> str | None:
    """What a part's name has before its number; None for other names."""
    found = NAME.fullmatch(name)
    return None if found is None else found[1]


def open_file(path: str | Path) -> File:
    """A file, or all parts of the model that it is a part of. Raises CheckpointError as `File`, and naming the parts
    that are missing or do not belong together."""
    file = File(path)
    count = file.value("split.count", int, 1)
    return file if count <= 1 else Split(file, count)


class Split(File):
    """The parts of a model as one file: the keys of the first, the tensors of all."""

    def __init__(self, part: File, count: int) -> None:
        self.path = part.path
        parts = _parts(part, count)
        self.metadata, self.version = parts[0].metadata, parts[0].version
        self.size = sum(one.size for one in parts)
        self.entries = {}
        self._of: dict[str, File] = {}
        for one in parts:
            for name, entry in one.entries.items():
                if name in self._of:
                    raise CheckpointError(f"{self._of[name].path} and {one.path} both have the tensor {name!r}")
                self.entries[name], self._of[name] = entry, one
        wanted = self.value("split.tensors.count", int, len(self.entries))
        if wanted != len(self.entries):
            raise CheckpointError(
                f"{parts[0].path}: all parts together should have {wanted} tensors (split.tensors.count), not "
                f"{len(self.entries)}: one of them is of another model, or damaged"
            )

    def raw(self, name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
        return self._of[name].raw(name)

    def get(self, name: str) -> Tensor:
        return self._of[name].get(name)

    def mapped(self, name: str) -> Tensor | None:
        return self._of[name].mapped(name)

    def blocks(self, name: str) -> Blocks | None:
        return self._of[name].blocks(name)

    def meta_tensor(self, name: str) -> Tensor:
        return self._of[name].meta_tensor(name)


def _parts(part: File, count: int) -> list[File]:
    """All parts in order, `part` among them."""
    number = part.value("split.no", int, 0) + 1
    found = NAME.fullmatch(part.path.name)
    if found is None or (int(found[2]), int(found[3])) != (number, count):
        raise CheckpointError(
            f"{part.path} is part {number} of {count} (split.no, split.count): it should be called "
            f"NAME-{number:05}-of-{count:05}.gguf and lie beside the others"
        )
    paths = [part.path.with_name(f"{found[1]}-{i:05}-of-{count:05}.gguf") for i in range(1, count + 1)]
    if missing := [one.name for one in paths if not one.exists()]:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise CheckpointError(
            f"{part.path} is part {number} of {count}; missing beside it: {', '.join(missing[:3])}{more}"
        )
    out = []
    for i, path in enumerate(paths):
        one = part if i + 1 == number else File(path)
        held = one.value("split.no", int, 0), one.value("split.count", int, 1)
        if held != (i, count):
            raise CheckpointError(
                f"{path}: split.no={held[0]} and split.count={held[1]} should be {i} and {count}, as its name says"
            )
        out.append(one)
    return out
