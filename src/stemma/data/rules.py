"""The steps that judge one text by itself: rules of MassiveText, C4 and Codex, and the share of a script."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from stemma.data.steps import C4, CleaningStep, Code, Gopher, Repetition, Script

Verdict = tuple[str | None, str]  # (the text that is kept, or None; the reason for None)


class Reason(str):
    """Why a text is removed, and the `setting` of the step that said so, such as `min_words=50`."""

    setting: str

    def __new__(cls, text: str, setting: str = "") -> Reason:
        found = super().__new__(cls, text)
        found.setting = setting
        return found


def because(step: Any, field: str, text: str) -> Reason:
    """The reason `text`, which the value of a step's field decided."""
    value = getattr(step, field)
    return Reason(text, f"{field}={str(value).lower() if isinstance(value, bool) else value}")


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
        return because(step, "min_words", f"{count} words, fewer than {step.min_words}")
    if count > step.max_words:
        return because(step, "max_words", f"{count:,} words, more than {step.max_words:,}")
    mean = sum(map(len, words)) / count
    if not step.min_mean <= mean <= step.max_mean:
        end = "min_mean" if mean < step.min_mean else "max_mean"
        return because(step, end, f"words of {mean:.1f} characters, not {step.min_mean:g} to {step.max_mean:g}")
    for what, number in (("hash signs", text.count("#")), ("ellipses", text.count("...") + text.count("…"))):
        if number / count > step.max_symbols:
            return because(step, "max_symbols", f"{number / count:.0%} {what} a word, more than {step.max_symbols:.0%}")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    bullets = sum(line.startswith(_BULLETS) for line in lines) / len(lines)
    if bullets > step.max_bullets:
        why = f"{bullets:.0%} of lines begin with a bullet, more than {step.max_bullets:.0%}"
        return because(step, "max_bullets", why)
    open_ = sum(line.endswith(("...", "…")) for line in lines) / len(lines)
    if open_ > step.max_ellipses:
        why = f"{open_:.0%} of lines end with an ellipsis, more than {step.max_ellipses:.0%}"
        return because(step, "max_ellipses", why)
    letters = sum(any(c.isalpha() for c in word) for word in words) / count
    if letters < step.min_alphabetic:
        why = f"{letters:.0%} of words have a letter, fewer than {step.min_alphabetic:.0%}"
        return because(step, "min_alphabetic", why)
    stop = len(_STOP.intersection(word.lower().strip(".,;:!?\"'()") for word in words))
    if stop < step.min_stop_words:
        why = f"{stop} of the usual English words, fewer than {step.min_stop_words}"
        return because(step, "min_stop_words", why)
    return ""


def _repeats(rows: Sequence[str]) -> tuple[float, int]:
    """(share of rows that came before, number of characters in them)."""
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
    for what, cut in (("lines", r"\n+"), ("paragraphs", r"\n{2,}")):
        inside = f"{what[:-1]}_characters"
        rows_most, characters_most = getattr(step, what), getattr(step, inside)
        rows = [row for row in re.split(cut, text.strip()) if row.strip()]
        share, characters = _repeats(rows)
        if share > rows_most:
            return because(step, what, f"{share:.0%} of {what} are repeated, more than {rows_most:.0%}")
        if size and characters / size > characters_most:
            why = f"{characters / size:.0%} of characters are in repeated {what}, more than {characters_most:.0%}"
            return because(step, inside, why)
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
                return because(step, "top", f"{share:.0%} of characters are in one {n}-gram, more than {most:.0%}")
    for n, most in enumerate(step.repeated, 5):
        seen: set[tuple[str, ...]] = set()
        again = bytearray(len(words))
        for i, gram in enumerate(zip(*(words[i:] for i in range(n)), strict=False)):
            if gram in seen:
                again[i : i + n] = b"\1" * n
            seen.add(gram)
        share = sum(n_ for n_, on in zip(length, again, strict=True) if on) / total
        if share > most:
            why = f"{share:.0%} of characters are in repeated {n}-grams, more than {most:.0%}"
            return because(step, "repeated", why)
    return ""


def _c4(step: C4, text: str) -> Verdict:
    low = text.lower()
    if "lorem ipsum" in low:
        return None, "lorem ipsum"
    if step.brackets and "{" in text:
        return None, because(step, "brackets", "a curly bracket")
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
        why = f"{sentences} sentences left, fewer than {step.min_sentences}"
        return None, because(step, "min_sentences", why)
    return left, ""


def _script(step: Script, text: str) -> str:
    letters = Counter(c for c in text if c.isalpha())
    own = sum(n for c, n in letters.items() if unicodedata.name(c, "").startswith(step.name.upper()))
    share = own / max(1, letters.total())
    if share >= step.share:
        return ""
    return because(step, "share", f"{share:.0%} of letters are {step.name.upper()}, fewer than {step.share:.0%}")


_HEAD = 10  # lines of a file in which a program says that it wrote it
_GENERATED = re.compile(
    r"auto(?:matically)?[- ]?generated|(?:file|code) (?:is|was|has been) generated|do not (?:edit|modify)",
    re.IGNORECASE,
)


def _code(step: Code, text: str) -> str:
    size = len(text.encode("utf-8", "surrogatepass"))
    if size >= step.max_bytes:
        return because(step, "max_bytes", f"{size:,} bytes, not less than {step.max_bytes:,}")
    head = "\n".join(text.split("\n", _HEAD)[:_HEAD])
    if step.generated and (said := _GENERATED.search(head)) is not None:
        return because(step, "generated", f"{said[0]!r} at its head")
    sizes = [len(line) for line in text.splitlines()]
    mean, longest = sum(sizes) / max(1, len(sizes)), max(sizes, default=0)
    if mean > step.max_mean:
        return because(step, "max_mean", f"lines of {mean:.0f} characters on average, more than {step.max_mean:g}")
    if longest > step.max_line:
        return because(step, "max_line", f"a line of {longest:,} characters, more than {step.max_line:,}")
    share = sum(c.isalnum() for c in text) / max(1, len(text))
    if share < step.min_alphanumeric:
        why = f"{share:.0%} of characters are letters and digits, fewer than {step.min_alphanumeric:.0%}"
        return because(step, "min_alphanumeric", why)
    return ""


def rule(step: CleaningStep) -> Callable[[str], Verdict]:
    """The function that carries out a step on one text. Raises TypeError for a step on duplicates."""

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
        case Code():
            return whole(_code)
        case C4():
            return lambda text: _c4(step, text)
    raise TypeError(step)
