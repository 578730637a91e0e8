"""A small mixture in the manner of Tulu 1 and 2: rows of the Flan forms and conversations, those of `hard_coded` ten
times. It is read beside builtin:captain."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stemma.samples import dialogues, flan2022, hard_coded

LICENCE = "Apache-2.0"
REPEATED = 10
EACH = 30  # rows of a task of FLAN


def stamp() -> str:
    """Changes where one of the modules does that the rows come from."""
    names = ("tulu", "dialogues", "facts", "flan", "flan2022", "hard_coded")
    return hashlib.sha256(b"".join(Path(__file__).with_name(f"{n}.py").read_bytes() for n in names)).hexdigest()


def rows() -> Iterator[dict[str, Any]]:
    """The rows, source by source."""
    for row in flan2022.rows(each=EACH):
        roles = (("user", row["prompt"]), ("assistant", row["completion"]))
        yield {"messages": [{"role": role, "content": text} for role, text in roles], "task": "flan_v2"}
    yield from dialogues.rows()
    yield from itertools.chain.from_iterable(hard_coded.rows() for _ in range(REPEATED))
