"""Ids of a text with the characters that each stands for."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

from stemma.text import reading

if TYPE_CHECKING:
    from stemma.text.tokenizer import Tokenizer

Place = tuple[int, int]  # (begin, end) in characters


def encode_places(
    tokenizer: Tokenizer, text: str, words: Sequence[Place] = (), cuts: Sequence[int] = ()
) -> tuple[list[int], list[Place]]:
    """The ids of `text`, nothing put around it, and the place of each. Special tokens' names are these tokens, but
    inside of `words`, where they are ordinary text. `cuts`: places that no token crosses."""
    with reading.of(tokenizer._foreign, text):
        core = tokenizer._core.encode(text, add_special_tokens=False)
    ids, places = list(core.ids), [(int(b), int(e)) for b, e in core.offsets]
    special = tokenizer.special_ids
    named = [i for i, token in enumerate(ids) if token in special and places[i][1] > places[i][0]]
    inside = {i for i in named if any(b <= places[i][0] < e for b, e in words)}
    kept = [i for i in named if i not in inside]
    behind = {places[i][1] for i in kept}
    how = _behind(tokenizer, ids[kept[0]]) if kept else ALIKE
    spaced = how == PREFIXED and any(text.startswith(" ", place) for place in behind)
    if not inside and not cuts and not spaced:
        return ids, places
    edges = sorted({0, len(text), *cuts, *(edge for i in kept for edge in places[i])})
    own = {places[i]: ids[i] for i in kept}
    ids, places = [], []
    for begin, end in itertools.pairwise(edges):
        if (begin, end) in own:
            ids.append(own[begin, end])
            places.append((begin, end))
        elif begin < end:
            bare = how == BARE or (how == PREFIXED and text[begin] == " ") if begin in behind else begin > 0
            found, where = _plainly(tokenizer, text[begin:end], goes_on=bare)
            ids += found
            places += [(begin + b, begin + e) for b, e in where]
    return ids, places


# How text behind a special token begins, of the kinds that put a space in front of a text: without that space; with it,
# unless the text has one already (llama, generation.py, and mistral-common encode piece by piece so); or as its
# tokenizer.json does it.
BARE, PREFIXED, ALIKE = "bare", "prefixed", "alike"
_known: weakref.WeakKeyDictionary[Tokenizer, str] = weakref.WeakKeyDictionary()


def _behind(tokenizer: Tokenizer, token: int) -> str:
    """Which of these holds for `tokenizer`, as its special `token` shows."""
    if tokenizer not in _known:
        found = tokenizer._core.encode(f"{tokenizer.token(token)}a", add_special_tokens=False).ids[1:]
        alone, on = (_plainly(tokenizer, "a", goes_on)[0] for goes_on in (False, True))
        how = ALIKE if alone == on else BARE if found == on else PREFIXED
        _known[tokenizer] = ALIKE if how == PREFIXED and "tokenizer.json" in tokenizer._kept else how
    return _known[tokenizer]


def _plainly(tokenizer: Tokenizer, text: str, goes_on: bool) -> tuple[list[int], list[Place]]:
    """Ordinary text; `goes_on`: without the space that some kinds put in front of a text, for which it is read behind a
    line end that is then taken off."""
    ahead = "\n" if goes_on else ""
    encoding = tokenizer._plain.encode(ahead + text, add_special_tokens=False)
    both = list(zip(encoding.ids, ((int(b), int(e)) for b, e in encoding.offsets), strict=True))
    if ahead and not any(e == 1 for _, (_, e) in both):  # the line end joined what follows it, or is no token
        encoding = tokenizer._plain.encode(text, add_special_tokens=False)
        both, ahead = list(zip(encoding.ids, ((int(b), int(e)) for b, e in encoding.offsets), strict=True)), ""
    cut = len(ahead)
    rest = [(i, (b - cut, e - cut)) for i, (b, e) in both if e > cut or not cut]
    return [i for i, _ in rest], [place for _, place in rest]
