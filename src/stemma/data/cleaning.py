"""Steps that clean a text before it is tokenised: duplicates removed, documents that are no prose left out.

A step is a value with its published figures, a cleaning is a list of them in order: `exact,near,gopher,c4`, or with
other figures `near(threshold=0.7),gopher(min_words=20)`. Names are those of the classes below, in small letters.

    exact        Exact              the same text again, but for case, punctuation and spaces
    near         Near               nearly the same text again (MinHash; needs the package datasketch)
    gopher       Gopher             quality rules of Rae et al. 2021, appendix A.1.1
    repetition   Repetition         repeated lines, paragraphs and n-grams, the same, table A1
    c4           C4                 line and page rules of Raffel et al. 2020, section 2.2
    script       Script             documents mostly in another script

`dedup` stands for `exact,near`. Everything is streamed: what is held in memory is a hash and a name a document for
`exact`, a signature of 128 numbers and its places in the bands for `near`, and nothing for the others. The first of
several duplicates stays. The same text and the same list give the same result.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING, Any

from stemma.data.sources import Document, Source
from stemma.errors import DataError, ResourceError, UsageError, did_you_mean
from stemma.spec import Spec, from_dict, require

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_SCHEME = "affine32"  # datasketch's kind of permutations: 32-bit numbers
_WORD = re.compile(r"\w+")
EXAMPLES = 3  # of what a step removed, in its report


# ---------------------------------------------------------------- the steps


@dataclass(frozen=True)
class Exact(Spec):
    """Leaves out a document whose text came before. With `normal`, texts are the same if their words are, whatever the
    case, the punctuation and the spaces (NFKC, case-folded)."""

    normal: bool = True


@dataclass(frozen=True)
class Near(Spec):
    """Leaves out a document of which one before it shares a share of `threshold` of all their shingles of `words` words
    (Jaccard; Broder 1997), as estimated from MinHash signatures of `permutations` numbers, among those that agree in a
    band (datasketch's LSH). The defaults are those of GPT-3's and later corpora: 5 words, 0.8, 128."""

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
    """The quality rules of MassiveText (Rae et al. 2021, appendix A.1.1): words a document and their mean length;
    `#` and ellipses a word; lines that begin with a bullet or end with an ellipsis; words with a letter; and at least
    `min_stop_words` of the, be, to, of, and, that, have, with (English)."""

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
    """The repetition rules of MassiveText (Rae et al. 2021, table A1): at most these shares of lines and paragraphs
    that came before in the document, and of characters in them; of characters in the most frequent 2-, 3-, 4-gram of
    words (`top`), and in all 5- to 10-grams that occur more than once (`repeated`), each character counted once."""

    lines: float = 0.30
    paragraphs: float = 0.30
    line_characters: float = 0.20
    paragraph_characters: float = 0.20
    top: tuple[float, ...] = (0.20, 0.18, 0.16)
    repeated: tuple[float, ...] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.10)


@dataclass(frozen=True)
class C4(Spec):
    """The rules of C4 (Raffel et al. 2020, section 2.2) that need no list of words and no second pass: of a document
    stay the lines of at least `min_words` words that end in a terminal mark and do not speak of JavaScript, cookies or
    policies, without citation marks; a document with fewer than `min_sentences` sentences left goes, and so does one
    with a curly bracket or "lorem ipsum"."""

    min_words: int = 5
    min_sentences: int = 3
    brackets: bool = True


@dataclass(frozen=True)
class Script(Spec):
    """Leaves out documents of whose letters less than `share` are of one script, named as Unicode names letters (LATIN,
    CYRILLIC, ARABIC, CJK, ...)."""

    name: str = "LATIN"
    share: float = 0.5


Step = Exact | Near | Gopher | Repetition | C4 | Script
STEPS: dict[str, type[Step]] = {kind.__name__.lower(): kind for kind in (Exact, Near, Gopher, Repetition, C4, Script)}
ALIASES = {"dedup": ("exact", "near")}


def parse(text: str) -> tuple[Step, ...]:
    """The steps that a list such as `exact,near(threshold=0.7),gopher` names. Raises UsageError."""
    try:
        tree = ast.parse(f"[{text}]", mode="eval").body
        assert isinstance(tree, ast.List)
    except (SyntaxError, AssertionError):
        raise UsageError(
            f"the steps {text!r} cannot be read; write names with commas, such as exact,near(threshold=0.7),gopher"
        ) from None
    found: list[Step] = []
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


def label(step: Step) -> str:
    """A step's name, with the figures that are not the published ones."""
    return (type(step).__name__.lower() + str(step)[len(type(step).__name__) :]).removesuffix("()")


# ---------------------------------------------------------------- duplicates


def normal(text: str) -> str:
    """The words of a text, folded: what makes texts the same but for case, punctuation and spaces."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(_WORD.findall(folded)) or " ".join(folded.split())


def key(step: Exact | Near) -> Callable[[str], bytes]:
    """What a step on duplicates needs to know of each text by itself: a hash, or a signature."""
    if isinstance(step, Exact):
        return lambda text: hashlib.blake2b(
            (normal(text) if step.normal else text).encode("utf-8", "surrogatepass"), digest_size=16
        ).digest()
    import numpy as np

    minhash = _datasketch().MinHash
    blank = minhash(num_perm=step.permutations, seed=step.seed, scheme=_SCHEME)

    def signature(text: str) -> bytes:
        words = normal(text).split()
        n = min(step.words, len(words))
        shingles = list({" ".join(words[i : i + n]) for i in range(len(words) - n + 1)})
        own = blank.copy()
        for begin in range(0, len(shingles), 4096):  # the library makes a matrix of shingles by permutations
            own.update_batch([s.encode("utf-8", "surrogatepass") for s in shingles[begin : begin + 4096]])
        return np.asarray(own.hashvalues, dtype="<u4").tobytes()

    return signature


def judge(step: Exact | Near) -> Callable[[int, bytes], int | None]:
    """Tells of each key in turn the number of the earlier document that it repeats, or None; then it is remembered."""
    if isinstance(step, Exact):
        first: dict[bytes, int] = {}

        def same(number: int, hashed: bytes) -> int | None:
            held = first.setdefault(hashed, number)
            return None if held == number else held

        return same
    import numpy as np

    sketch = _datasketch()
    index = sketch.MinHashLSH(threshold=step.threshold, num_perm=step.permutations)
    held: dict[int, npt.NDArray[np.uint32]] = {}

    def alike(number: int, signature: bytes) -> int | None:
        values = np.frombuffer(signature, dtype="<u4")
        own = sketch.LeanMinHash(seed=step.seed, hashvalues=values, scheme=_SCHEME)
        for other in sorted(index.query(own)):
            if (held[other] == values).mean() >= step.threshold:
                return int(other)
        index.insert(number, own)
        held[number] = values
        return None

    return alike


def _datasketch() -> Any:
    try:
        import datasketch
    except ImportError as error:
        raise ResourceError("the step `near` needs the package datasketch: pip install 'stemma-lm[data]'") from error
    return datasketch


# ---------------------------------------------------------------- rules

Verdict = tuple[str | None, str]  # (the text that stays, or None; why not)

_STOP = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
_BULLETS = ("•", "‣", "▪", "●", "◦", "-", "*", "–")
_TERMINAL = (".", "!", "?", '"', "”")
_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
_POLICY = (
    "terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies",
)  # fmt: skip


def _gopher(step: Gopher, text: str) -> str:
    words = text.split()
    count = len(words)
    if count < step.min_words:
        return f"{count} words, fewer than {step.min_words}"
    if count > step.max_words:
        return f"{count:,} words, more than {step.max_words:,}"
    mean = sum(map(len, words)) / count
    if not step.min_mean <= mean <= step.max_mean:
        return f"words of {mean:.1f} characters, not {step.min_mean:g} to {step.max_mean:g}"
    for what, number in (("hash signs", text.count("#")), ("ellipses", text.count("...") + text.count("…"))):
        if number / count > step.max_symbols:
            return f"{number / count:.0%} {what} a word, more than {step.max_symbols:.0%}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    bullets = sum(line.startswith(_BULLETS) for line in lines) / len(lines)
    if bullets > step.max_bullets:
        return f"{bullets:.0%} of lines begin with a bullet, more than {step.max_bullets:.0%}"
    open_ = sum(line.endswith(("...", "…")) for line in lines) / len(lines)
    if open_ > step.max_ellipses:
        return f"{open_:.0%} of lines end with an ellipsis, more than {step.max_ellipses:.0%}"
    letters = sum(any(c.isalpha() for c in word) for word in words) / count
    if letters < step.min_alphabetic:
        return f"{letters:.0%} of words have a letter, fewer than {step.min_alphabetic:.0%}"
    stop = len(_STOP.intersection(word.lower().strip(".,;:!?\"'()") for word in words))
    if stop < step.min_stop_words:
        return f"{stop} of the usual English words, fewer than {step.min_stop_words}"
    return ""


def _repeats(rows: Sequence[str]) -> tuple[float, int]:
    """(the share of rows that came before, characters in them)."""
    seen: set[str] = set()
    again = characters = 0
    for row in rows:
        if row in seen:
            again += 1
            characters += len(row)
        seen.add(row)
    return (again / len(rows) if rows else 0.0), characters


def _repetition(step: Repetition, text: str) -> str:
    size = len(text)
    for what, cut, rows_most, characters_most in (
        ("lines", r"\n+", step.lines, step.line_characters),
        ("paragraphs", r"\n{2,}", step.paragraphs, step.paragraph_characters),
    ):
        rows = [row for row in re.split(cut, text.strip()) if row.strip()]
        share, characters = _repeats(rows)
        if share > rows_most:
            return f"{share:.0%} of {what} are repeated, more than {rows_most:.0%}"
        if size and characters / size > characters_most:
            return f"{characters / size:.0%} of characters are in repeated {what}, more than {characters_most:.0%}"
    words = text.split()
    length = [len(word) for word in words]
    total = max(1, sum(length))
    for n, most in enumerate(step.top, 2):
        grams = Counter(zip(*(words[i:] for i in range(n)), strict=False))
        if not grams:
            break
        highest = max(grams.values())
        if highest > 1:
            share = max(highest * sum(map(len, gram)) for gram, k in grams.items() if k == highest) / total
            if share > most:
                return f"{share:.0%} of characters are in one {n}-gram, more than {most:.0%}"
    for n, most in enumerate(step.repeated, 5):
        seen: set[tuple[str, ...]] = set()
        inside = bytearray(len(words))
        for i, gram in enumerate(zip(*(words[i:] for i in range(n)), strict=False)):
            if gram in seen:
                inside[i : i + n] = b"\1" * n
            seen.add(gram)
        share = sum(n_ for n_, on in zip(length, inside, strict=True) if on) / total
        if share > most:
            return f"{share:.0%} of characters are in repeated {n}-grams, more than {most:.0%}"
    return ""


def _c4(step: C4, text: str) -> Verdict:
    low = text.lower()
    if "lorem ipsum" in low:
        return None, "lorem ipsum"
    if step.brackets and "{" in text:
        return None, "a curly bracket"
    kept = []
    for raw in text.splitlines():
        line = _CITATION.sub("", raw).strip()
        small = line.lower()
        if not line.endswith(_TERMINAL) or line.endswith("...") or len(line.split()) < step.min_words:
            continue
        if "javascript" in small or any(words in small for words in _POLICY):
            continue
        kept.append(line)
    left = "\n".join(kept)
    sentences = len(re.findall(r"[.!?]+[\"”')\]]*(?=\s|$)", left))
    if sentences < step.min_sentences:
        return None, f"{sentences} sentences left, fewer than {step.min_sentences}"
    return left, ""


def _script(step: Script, text: str) -> str:
    letters = Counter(c for c in text if c.isalpha())
    own = sum(n for c, n in letters.items() if unicodedata.name(c, "").startswith(step.name.upper()))
    share = own / max(1, letters.total())
    return f"{share:.0%} of letters are {step.name.upper()}, fewer than {step.share:.0%}" if share < step.share else ""


def rule(step: Step) -> Callable[[str], Verdict]:
    """A step that looks at one text by itself."""

    def whole(check: Callable[[Any, str], str]) -> Callable[[str], Verdict]:
        def judged(text: str) -> Verdict:
            why = check(step, text)
            return (None, why) if why else (text, "")

        return judged

    match step:
        case Gopher():
            return whole(_gopher)
        case Repetition():
            return whole(_repetition)
        case Script():
            return whole(_script)
        case C4():
            return lambda text: _c4(step, text)
    raise TypeError(step)


# ---------------------------------------------------------------- a cleaning


@dataclass
class Tally:
    """What a step did: documents and bytes that came `seen` to it, `removed` by it, `changed` in part, and examples.
    `places` are where these stand in the order of the text, for tallies of several processes that are put together."""

    step: str
    seen: int = 0
    seen_bytes: int = 0
    removed: int = 0
    removed_bytes: int = 0
    changed: int = 0
    examples: list[dict[str, str]] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)

    def see(self, document: Document) -> None:
        """Count a document that comes to the step."""
        self.seen += 1
        self.seen_bytes += len(document.text.encode("utf-8", "surrogatepass"))

    def remove(self, document: Document, why: str, place: tuple[int, int] = (0, 0)) -> None:
        """Count it as removed; the first few are kept as examples."""
        self.removed += 1
        self.removed_bytes += len(document.text.encode("utf-8", "surrogatepass"))
        if len(self.examples) < EXAMPLES:
            start = " ".join(document.text[:400].split())
            self.examples.append({"name": document.name, "why": why, "text": start[:100]})
            self.places.append(place)

    def pass_on(self, document: Document, verdict: Verdict, place: tuple[int, int] = (0, 0)) -> Document | None:
        """Count what a step said of a document; what is left of it."""
        self.see(document)
        text, why = verdict
        if text is None:
            self.remove(document, why, place)
            return None
        if text != document.text:
            self.changed += 1
            return document._replace(text=text)
        return document

    def plus(self, other: Tally) -> Tally:
        """Both together; of the examples, those that come first in the text."""
        both = sorted(zip(self.places + other.places, self.examples + other.examples, strict=True), key=lambda p: p[0])
        sums = {
            name: getattr(self, name) + getattr(other, name)
            for name in ("seen", "seen_bytes", "removed", "removed_bytes", "changed")
        }
        first = both[:EXAMPLES]
        return Tally(self.step, **sums, examples=[e for _, e in first], places=[p for p, _ in first])

    def plain(self) -> dict[str, Any]:
        """As plain data."""
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Tally:
        """The inverse of `plain`."""
        return cls(**{**plain, "places": [(int(i), int(j)) for i, j in plain["places"]]})

    def sentence(self) -> str:
        """What the step did, for people."""
        also = f", shortened {self.changed:,}" if self.changed else ""
        share = self.removed_bytes / self.seen_bytes if self.seen_bytes else 0.0
        return f"{self.step} removed {self.removed:,} of {self.seen:,} documents ({share:.1%} of the text){also}"


def clean(
    documents: Iterable[Document], steps: Sequence[Step], report: list[Tally] | None = None
) -> Iterator[Document]:
    """The documents that pass all steps, in order. `report` is filled with a tally a step."""
    tallies = [Tally(label(step)) for step in steps]
    if report is not None:
        report[:] = tallies
    names: dict[int, str] = {}

    def one(step: Step) -> Callable[[int, Document], Verdict]:
        if not isinstance(step, Exact | Near):
            judged = rule(step)
            return lambda number, document: judged(document.text)
        of, repeats = key(step), judge(step)

        def first(number: int, document: Document) -> Verdict:
            earlier = repeats(number, of(document.text))
            if earlier is None:
                names[number] = document.name
                return document.text, ""
            return None, f"like {names.get(earlier, f'document {earlier + 1}')}"

        return first

    run = [one(step) for step in steps]
    for number, document in enumerate(documents):
        kept: Document | None = document
        for tally, judged in zip(tallies, run, strict=True):
            assert kept is not None
            kept = tally.pass_on(kept, judged(number, kept))
            if kept is None:
                break
        if kept is not None:
            yield kept


def cleaned(source: Source, steps: Sequence[Step], report: list[Tally] | None = None) -> Source:
    """`source` after `steps`. A walk leaves a sentence a step in its notes, and tallies in `report`."""
    if not steps:
        return source
    tallies: list[Tally] = report if report is not None else []

    def walk(notes: list[str]) -> Iterator[Document]:
        empty = True
        for document in clean(source.documents(), steps, tallies):
            empty = False
            yield document
        notes.extend(source.notes)
        notes.extend(tally.sentence() for tally in tallies)
        if empty:
            worst = max(tallies, key=lambda tally: tally.removed)
            why = worst.examples[0]["why"] if worst.examples else ""
            raise DataError(f"cleaning left nothing of {source.name}: {worst.sentence()}, the first for {why}")

    library = metadata.version("datasketch") if any(isinstance(step, Near) for step in steps) and _datasketch() else ""
    facts = repr([source.facts, [str(step) for step in steps], library])
    return dataclasses.replace(source, walk=walk, notes=[], facts=facts)
