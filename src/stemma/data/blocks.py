"""Blocks: where a long document may be divided, as a function of its text alone.

Blocks are what is held out of long documents, and what their pieces in training are made of (`heldout`, `store`). A
document is only marked: it is tokenised whole, and consecutive blocks are consecutive tokens of it.
"""

from __future__ import annotations

import itertools

from stemma.data.encoding import sentences

LEAST, MOST = 1000, 2000  # characters of a block, but for the last one of a document, which has at most LONG
LONG = LEAST + MOST  # characters of a document that is not divided, at most


def cuts(text: str) -> list[int]:
    """Where the second and further blocks of a text begin: after the last blank line, else line end, else sentence,
    else space among the `LEAST` to `MOST` characters of a block; without any of these, after `MOST`."""
    found: list[int] = []
    at = 0
    while len(text) - at > LONG:
        at += LEAST + _last(text[at + LEAST : at + MOST])
        found.append(at)
    return found


def _last(text: str) -> int:
    """The best place to divide `text`, as near to its end as there is one."""
    for mark in ("\n\n", "\n"):
        if (at := text.rfind(mark)) >= 0:
            return at + len(mark)
    if at := sentences(text)[-1]:
        return at
    return text.rfind(" ") + 1 or len(text)


def divided(text: str) -> list[str]:
    """The blocks of a text; the text itself if it is not long."""
    return [text[a:b] for a, b in itertools.pairwise([0, *cuts(text), len(text)])]
