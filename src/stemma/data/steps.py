"""The steps of a cleaning, declared as values with their published figures.

A list of steps is written `exact,near,gopher,c4`, or with other figures `near(threshold=0.7),gopher(min_words=20)`.

    exact        Exact              the same text again, ignoring case, punctuation and spaces
    near         Near               nearly the same text again (MinHash; needs the package datasketch)
    gopher       Gopher             quality rules of Rae et al. 2021, appendix A.1.1
    repetition   Repetition         repeated lines, paragraphs and n-grams, the same, table A1
    c4           C4                 line and page rules of Raffel et al. 2020, section 2.2
    script       Script             documents mostly in another script

`dedup` stands for `exact,near`. `duplicates` and `rules` carry the steps out, `cleaning` applies a list of them.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Any

from stemma.errors import UsageError, did_you_mean
from stemma.spec import Spec, from_dict, require


@dataclass(frozen=True)
class Exact(Spec):
    """Removes a document whose text came before. With `normal`, only words are compared (NFKC, case-folded), without
    case, punctuation and spaces."""

    normal: bool = True


@dataclass(frozen=True)
class Near(Spec):
    """Removes a document that is nearly the same as an earlier one: the Jaccard similarity of their sets of shingles
    (runs of `words` words; Broder 1997) is at least `threshold`. It is estimated from MinHash signatures of
    `permutations` numbers, for pairs that agree in a band (datasketch's LSH). The defaults (5 words, 0.8, 128) are
    those of GPT-3's and later corpora."""

    threshold: float = 0.8
    permutations: int = 128
    words: int = 5
    seed: int = 1

    def __post_init__(self) -> None:
        require(0 < self.threshold <= 1, f"near.threshold is {self.threshold}; above 0 and at most 1 was expected")
        require(16 <= self.permutations <= 1024, f"near.permutations is {self.permutations}; 16 to 1024 was expected")
        require(self.words >= 1, f"near.words is {self.words}; at least 1 was expected")


@dataclass(frozen=True)
class Gopher(Spec):
    """The quality rules of MassiveText (Rae et al. 2021, appendix A.1.1): the number of words and their mean
    length; `#` and ellipses per word; lines that begin with a bullet or end with an ellipsis; words with a letter; and
    at least `min_stop_words` of the, be, to, of, and, that, have, with (English)."""

    min_words: int = 50
    max_words: int = 100_000
    min_mean: float = 3.0
    max_mean: float = 10.0
    max_symbols: float = 0.1
    max_bullets: float = 0.9
    max_ellipses: float = 0.3
    min_alphabetic: float = 0.8
    min_stop_words: int = 2


@dataclass(frozen=True)
class Repetition(Spec):
    """The repetition rules of MassiveText (Rae et al. 2021, table A1). Each figure is the largest share allowed:
    of lines and paragraphs that came before in the document, and of characters in them; of characters in the most
    frequent 2-, 3- and 4-gram of words (`top`); of characters in the 5- to 10-grams that occur more than once
    (`repeated`), each character counted once."""

    lines: float = 0.30
    paragraphs: float = 0.30
    line_characters: float = 0.20
    paragraph_characters: float = 0.20
    top: tuple[float, ...] = (0.20, 0.18, 0.16)
    repeated: tuple[float, ...] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.10)


@dataclass(frozen=True)
class C4(Spec):
    """The rules of C4 (Raffel et al. 2020, section 2.2) that need no list of words and no second pass. Lines are
    kept that have at least `min_words` words, end in a terminal mark and mention no JavaScript, cookies or policies;
    citation marks are dropped. A document is removed if fewer than `min_sentences` sentences are left, or if it has
    a curly bracket (with `brackets`) or "lorem ipsum"."""

    min_words: int = 5
    min_sentences: int = 3
    brackets: bool = True


@dataclass(frozen=True)
class Script(Spec):
    """Removes a document if less than `share` of its letters are of the script `name`, as Unicode names it: LATIN,
    CYRILLIC, ARABIC, CJK, ..."""

    name: str = "LATIN"
    share: float = 0.5


CleaningStep = Exact | Near | Gopher | Repetition | C4 | Script
STEPS: dict[str, type[CleaningStep]] = {
    kind.__name__.lower(): kind for kind in (Exact, Near, Gopher, Repetition, C4, Script)
}
ALIASES = {"dedup": ("exact", "near")}


def parse(text: str) -> tuple[CleaningStep, ...]:
    """The steps of a list such as `exact,near(threshold=0.7),gopher`. Raises UsageError."""
    try:
        tree = ast.parse(f"[{text}]", mode="eval").body
        assert isinstance(tree, ast.List)
    except (SyntaxError, AssertionError):
        raise UsageError(
            f"the steps {text!r} cannot be read; write names with commas, such as exact,near(threshold=0.7),gopher"
        ) from None
    found: list[CleaningStep] = []
    for node in tree.elts:
        call = node.func if isinstance(node, ast.Call) else node
        name = call.id.lower() if isinstance(call, ast.Name) else ast.unparse(node)
        plain = isinstance(node, ast.Name)
        if plain and name in ALIASES:
            found += [STEPS[inner]() for inner in ALIASES[name]]
            continue
        if name not in STEPS:
            known = [*STEPS, *ALIASES]
            raise UsageError(f"there is no step {name!r}{did_you_mean(name, known)} (known: {', '.join(known)})")
        fields: dict[str, Any] = {}
        if isinstance(node, ast.Call):
            try:
                require(not node.args and all(k.arg for k in node.keywords), f"{name} takes named figures only")
                fields = {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
            except ValueError:
                raise UsageError(f"the figures of {ast.unparse(node)} cannot be read") from None
        found.append(from_dict(STEPS[name], fields))
    if not found:
        raise UsageError(f"no step is named; known are {', '.join([*STEPS, *ALIASES])}")
    return tuple(found)


def label(step: CleaningStep) -> str:
    """A step's name, with the figures that differ from the published ones."""
    return (type(step).__name__.lower() + str(step)[len(type(step).__name__) :]).removesuffix("()")
