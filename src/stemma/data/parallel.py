"""`builtin:parallel`: the same verses in seven languages and three scripts, shipped with the package.

Genesis, Ruth, Jonah, Luke, John and the Acts, 4,703 verses (4.4 MB; the file beside this module is xz, 1.2 MB). Verses
are numbered as in the King James Bible; verses with the same number are translations of each other and form a group.

| | translation | published |
|---|---|---|
| `en` | American Standard Version | 1901 |
| `de` | Elberfelder Bibel | 1905 |
| `fr` | Louis Segond | 1910 |
| `es` | Reina-Valera | 1909 |
| `it` | Giovanni Diodati | 1649 |
| `ru` | Synodal translation | 1876 |
| `ar` | Smith and Van Dyke | 1865 |

All are in the public domain. `docs/parallel-text.md` says where the text was taken from and what was changed.
"""

from __future__ import annotations

import lzma
from collections.abc import Iterator
from pathlib import Path

from stemma.errors import DataError, UsageError, did_you_mean

LANGUAGES = ("en", "de", "fr", "es", "it", "ru", "ar")
LICENCE = "public domain"
FILE = Path(__file__).with_name("parallel.tsv.xz")


def chosen(spec: str) -> tuple[str, ...]:
    """The languages named by `builtin:parallel` (all) or `builtin:parallel:de-en`, in that order. Raises UsageError."""
    named = spec.split(":")[2:]
    if not named:
        return LANGUAGES
    picked = tuple(":".join(named).split("-"))
    for language in picked:
        if language not in LANGUAGES:
            known = ", ".join(LANGUAGES)
            raise UsageError(
                f"{spec} names the language {language!r}; there are {known}{did_you_mean(language, LANGUAGES)}"
            )
    if len(set(picked)) < len(picked):
        raise UsageError(f"{spec} names a language twice")
    return picked


def rows(languages: tuple[str, ...] = LANGUAGES) -> Iterator[tuple[str, str, str]]:
    """(verse, language, text), verse by verse, without the verses that a translation omits."""
    try:
        lines = lzma.decompress(FILE.read_bytes()).decode("utf-8").splitlines()
    except (OSError, lzma.LZMAError, UnicodeDecodeError) as error:
        raise DataError(
            f"{FILE}, the text of builtin:parallel, cannot be read ({error}); install the package again"
        ) from error
    head = lines[0].split("\t")
    places = [(language, head.index(language)) for language in languages]
    for line in lines[1:]:
        cells = line.split("\t")
        for language, place in places:
            if cells[place]:
                yield cells[0], language, cells[place]
