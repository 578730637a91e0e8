"""One or two texts as the input of a model: cut to a length, with the special tokens of the tokenizer around them."""

from __future__ import annotations

from typing import Any, NamedTuple

from stemma.errors import DataError
from stemma.text import reading

Span = tuple[int, int]


class Joined(NamedTuple):
    """The `ids` of one or two texts. `begins`: where the tokens of each text begin; `spans`: of each text the
    characters of its tokens that are left; `kinds`: the segment of each token, as the tokenizer counts them."""

    ids: list[int]
    begins: list[int]
    spans: list[list[Span]]
    kinds: list[int]


def joined(
    tokenizer: Any, first: str, second: str | None = None, limit: int | None = None, window: Span | None = None
) -> Joined:
    """The input of a text, or of two. Of more than `limit` tokens the longer text loses its end, token by token, until
    it fits; with a `window`, the second text is these of its tokens, and the first alone is cut. Special tokens' names
    in the texts are ordinary text. Raises DataError where no token is left of a text."""
    core, texts = tokenizer._plain, [first] if second is None else [first, second]
    with reading.of(tokenizer._foreign, *texts):
        parts = [core.encode(text, add_special_tokens=False) for text in texts]
    if window is not None:
        parts[1] = cut(core, texts[1], parts[1], window)
    around = core.num_special_tokens_to_add(second is not None)
    if limit is not None and (over := sum(map(len, parts)) + around - limit) > 0:
        for part, kept in zip(parts, left(list(map(len, parts)), over, window is not None), strict=True):
            if kept < 1:
                raise DataError(f"it has {sum(map(len, parts)) + around} tokens, and a row has {limit}")
            if kept < len(part):
                part.truncate(kept)
    spans = [list(part.offsets) for part in parts]
    made = core.post_process(*parts, add_special_tokens=True)
    begins = [next((i for i, special in enumerate(made.special_tokens_mask) if not special), 0)]
    if second is not None:
        begins.append(next((i for i, text in enumerate(made.sequence_ids) if text == 1), len(made.ids)))
    return Joined(list(made.ids), begins, spans, list(made.type_ids))


def left(sizes: list[int], over: int, first_only: bool = False) -> list[int]:
    """What is left of the sizes after `over` are taken, each from what is then the longest."""
    if first_only or len(sizes) == 1:
        return [sizes[0] - over, *sizes[1:]]
    a, b = sizes
    if a >= b:
        own = min(over, a - b)
        a, over = a - own, over - own
    else:
        own = min(over, b - a)
        b, over = b - own, over - own
    return [a - over // 2, b - (over - over // 2)]


def cut(core: Any, text: str, encoding: Any, window: Span) -> Any:
    """The tokens from `window[0]` to `window[1]` of an encoding alone."""
    begin, end = window
    if begin:
        encoding.truncate(len(encoding) - begin, direction="left")
    if len(encoding) > end - begin:
        encoding.truncate(end - begin)
    return encoding


def pieces(tokenizer: Any, text: str) -> list[Span]:
    """The characters of each token of a text, which stands second of two."""
    with reading.of(tokenizer._foreign, text):
        return list(tokenizer._plain.encode(text, add_special_tokens=False).offsets)


def around(tokenizer: Any, pair: bool) -> int:
    """How many special tokens stand around one text, or two."""
    return int(tokenizer._plain.num_special_tokens_to_add(pair))
