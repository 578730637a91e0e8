"""The bytes that each token writes, for those who follow a text while it is made of tokens."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from stemma.text import reading

if TYPE_CHECKING:
    from stemma.text.tokenizer import Tokenizer

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def token_bytes(tokenizer: Tokenizer) -> list[bytes | None]:
    """For each id the bytes that it adds to a text which goes on; None for tokens that stand for no text. Joined, they
    are the text of ids, with three exceptions: `decode` drops the space in front of a text's first word, the space of a
    word's end (`</w>`) at the end of a text, and, where a WordPiece decoder cleans up, spaces that several tokens make.
    """
    core, letters = tokenizer._core, tokenizer._letters
    texts = {i: core.id_to_token(i) or "" for i in range(tokenizer.vocab_size) if i not in tokenizer.special_ids}
    found: list[bytes | None] = [None] * tokenizer.vocab_size
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
    with reading.panics(tokenizer._foreign):
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
