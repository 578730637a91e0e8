"""The bytes that each token writes, for those who follow a text while it is made of tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

from stemma.text import reading

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def token_bytes(
    core: Any, size: int, special: Collection[int], letters: Mapping[str, int] | None, silent: bool
) -> list[bytes | None]:
    """For each of `size` ids the bytes that it adds to a text which goes on; None for those that stand for no text, the
    `special` ones. `letters`: of a byte-level vocabulary, the byte that each character stands for. Joined, bytes
    are the text of ids, with three exceptions: `decode` drops the space in front of a text's first word, the space of a
    word's end (`</w>`) at the end of a text, and, where a WordPiece decoder cleans up, spaces that several tokens make.
    """
    texts = {i: core.id_to_token(i) or "" for i in range(size) if i not in special}
    found: list[bytes | None] = [None] * size
    if letters is not None:  # byte-level: a character stands for a byte
        for i, name in texts.items():
            found[i] = bytes(letters[c] for c in name) if all(c in letters for c in name) else name.encode()
        return found
    state = json.loads(core.to_str())
    suffix = state["model"].get("end_of_word_suffix")
    if suffix:
        for i, name in texts.items():
            found[i] = (name.removesuffix(suffix) + " " if name.endswith(suffix) else name).encode()
        return found
    fallback = '"ByteFallback"' in json.dumps(state.get("decoder"))
    others = []
    for i, name in texts.items():
        byte = _BYTE.fullmatch(name) if fallback else None
        if byte is not None:
            found[i] = bytes([int(byte[1], 16)])
        elif name:
            others.append(i)
    with reading.panics(silent):
        _behind_a_word(core, others, found)
    return found


def _behind_a_word(core: Any, ids: list[int], found: list[bytes | None]) -> None:
    """What the decoder writes for each id behind a word."""
    words = ((i, core.decode([i])) for i in ids)
    first, head = next(((i, text) for i, text in words if text.isascii() and text.isalpha()), (None, ""))
    if first is None:
        return
    for i, text in zip(ids, core.decode_batch([[first, i] for i in ids]), strict=True):
        if text.startswith(head):
            found[i] = text[len(head) :].encode()
