"""Shared by both pictures: marks of the three structures, widths of text, links."""

from __future__ import annotations

import re
from html import escape

from stemma.declare.family import Family
from stemma.words import has_weights

# A structure has its own shape as well as its own colour (`.encoder`, `.decoder`, `.encoder-decoder` in common.css).
SHAPES = {
    "encoder": '<circle cx="8" cy="8" r="5.2"/>',
    "decoder": '<path d="M3.4 2.6 13.6 8 3.4 13.4Z"/>',
    "encoder-decoder": '<path d="M8 1.6 14.4 8 8 14.4 1.6 8Z"/>',
}
STRUCTURES = tuple(SHAPES)


def mark(structure: str, public: bool = True) -> str:
    """The mark of a structure; hollow if no weights are public."""
    shape = SHAPES.get(structure, '<rect x="3" y="3" width="10" height="10"/>')
    return f'<svg class="mark{"" if public else " hollow"}" viewBox="0 0 16 16" aria-hidden="true">{shape}</svg>'


def family_mark(family: Family) -> str:
    return mark(family.arch.structure, has_weights(family))


def width(text: str, size: float = 13.0, bold: bool = False) -> float:
    """An upper estimate of the width of `text` in pixels, in a wide sans-serif face."""
    total = 0.0
    for char in text:
        if char in "ijlI|!.,:;'` ()[]":
            total += 0.4
        elif char in 'ftr-/"':
            total += 0.44
        elif char in "mwMW@%→×":
            total += 0.96
        else:
            total += 0.7 if char.isupper() or ord(char) > 0x2000 else 0.64
    return total * size * (1.09 if bold else 1.0)


def wrap(text: str, room: float, size: float) -> list[str]:
    """`text` in lines of at most `room` pixels; a word that is too long is cut."""
    lines: list[str] = []
    line = ""
    for word in text.split():
        while width(word, size) > room and len(word) > 1:
            fits = next(n for n in range(len(word) - 1, 0, -1) if n == 1 or width(word[:n], size) <= room)
            fits = word.rfind("-", 1, fits) + 1 or fits
            head, word = word[:fits], word[fits:]
            if line:
                lines.append(line)
            lines.append(head)
            line = ""
        longer = f"{line} {word}" if line else word
        if line and width(longer, size) > room:
            lines.append(line)
            line = word
        else:
            line = longer
    return [*lines, line] if line else lines


def linked(source: str) -> str:
    """A source as markup: arXiv numbers and GitHub paths become links."""

    def link(found: re.Match[str]) -> str:
        text = found[0]
        url = f"https://arxiv.org/abs/{found[1]}" if found[1] else f"https://{text}"
        return f'<a href="{url}" rel="noreferrer">{text}</a>'

    return re.sub(r"arXiv:(\d{4}\.\d{4,5})|github\.com/[\w.-]+/[\w.-]+\b", link, escape(source))
