"""Ids of a text with the characters that each stands for."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stemma.text.tokenizer import Tokenizer

Place = tuple[int, int]  # (begin, end) in characters


def encode_places(
    tokenizer: Tokenizer, text: str, words: Sequence[Place] = (), cuts: Sequence[int] = ()
) -> tuple[list[int], list[Place]]:
    """The ids of `text`, nothing put around it, and the place of each. Special tokens' names are these tokens, but
    inside of `words`, where they are ordinary text. `cuts`: places that no token crosses."""
    core = tokenizer._core.encode(text, add_special_tokens=False)
    ids, places = list(core.ids), [(int(b), int(e)) for b, e in core.offsets]
    special = tokenizer.special_ids
    named = [i for i, token in enumerate(ids) if token in special and places[i][1] > places[i][0]]
    inside = [i for i in named if any(b <= places[i][0] < e for b, e in words)]
    if not inside and not cuts:
        return ids, places
    hidden = set(inside)
    kept = [i for i in named if i not in hidden]
    edges = sorted({0, len(text), *cuts, *(edge for i in kept for edge in places[i])})
    own = {places[i]: ids[i] for i in kept}
    ids, places = [], []
    for begin, end in itertools.pairwise(edges):
        if (begin, end) in own:
            ids.append(own[begin, end])
            places.append((begin, end))
        elif begin < end:
            found, where = _plainly(tokenizer, text[begin:end], goes_on=begin > 0)
            ids += found
            places += [(begin + b, begin + e) for b, e in where]
    return ids, places


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
