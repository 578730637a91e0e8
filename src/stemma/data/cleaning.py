"""Cleaning a text before it is tokenised: documents pass through a list of steps, which are tallied.

Everything is streamed. The same text and the same list give the same result.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from stemma.data import duplicates
from stemma.data.documents import Document, Notes, Source
from stemma.data.rules import Verdict, rule
from stemma.data.steps import CleaningStep, Exact, Near, label, parse
from stemma.errors import DataError

__all__ = ["Tally", "clean", "cleaned", "parse"]

EXAMPLES = 3  # removed documents that a tally shows


@dataclass
class Tally:
    """What a step did: documents and bytes that reached it (`seen`) and that it `removed`; documents it `changed`; and
    examples. `places`: where the examples are in the text, so that tallies of several processes can be merged."""

    step: str
    seen: int = 0
    seen_bytes: int = 0
    removed: int = 0
    removed_bytes: int = 0
    changed: int = 0
    examples: list[dict[str, str]] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)

    def see(self, document: Document) -> None:
        """Count a document that reaches the step."""
        self.seen += 1
        self.seen_bytes += len(document.text.encode("utf-8", "surrogatepass"))

    def remove(self, document: Document, why: str, place: tuple[int, int] = (0, 0)) -> None:
        """Count a document as removed; the first few become examples."""
        self.removed += 1
        self.removed_bytes += len(document.text.encode("utf-8", "surrogatepass"))
        if len(self.examples) < EXAMPLES:
            start = " ".join(document.text[:400].split())
            self.examples.append({"name": document.name, "why": why, "text": start[:100]})
            self.places.append(place)

    def pass_on(self, document: Document, verdict: Verdict, place: tuple[int, int] = (0, 0)) -> Document | None:
        """Count a verdict. Returns what is left of the document."""
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
        """The sum of both, with the examples that come first in the text."""
        both = sorted(zip(self.places + other.places, self.examples + other.examples, strict=True), key=lambda p: p[0])
        sums = {
            name: getattr(self, name) + getattr(other, name)
            for name in ("seen", "seen_bytes", "removed", "removed_bytes", "changed")
        }
        first = both[:EXAMPLES]
        return Tally(self.step, **sums, examples=[e for _, e in first], places=[p for p, _ in first])

    def plain(self) -> dict[str, Any]:
        """The tally as plain data."""
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Tally:
        """The inverse of `plain`."""
        return cls(**{**plain, "places": [(int(i), int(j)) for i, j in plain["places"]]})

    def sentence(self) -> str:
        """What the step did, as a sentence."""
        also = f", shortened {self.changed:,}" if self.changed else ""
        share = self.removed_bytes / self.seen_bytes if self.seen_bytes else 0.0
        return f"{self.step} removed {self.removed:,} of {self.seen:,} documents ({share:.1%} of the text){also}"


def clean(
    documents: Iterable[Document], steps: Sequence[CleaningStep], report: list[Tally] | None = None
) -> Iterator[Document]:
    """The documents that pass all steps, in order. `report` receives a tally for each step."""
    tallies = [Tally(label(step)) for step in steps]
    if report is not None:
        report[:] = tallies
    names: dict[int, str] = {}

    def one(step: CleaningStep) -> Callable[[int, Document], Verdict]:
        if not isinstance(step, Exact | Near):
            judged = rule(step)
            return lambda number, document: judged(document.text)
        of, repeats = duplicates.key(step), duplicates.judge(step)

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


def cleaned(source: Source, steps: Sequence[CleaningStep], report: list[Tally] | None = None) -> Source:
    """`source` after `steps`. A walk adds a sentence for each step to its notes, and tallies to `report`."""
    if not steps:
        return source
    tallies: list[Tally] = report if report is not None else []

    def walk(notes: Notes) -> Iterator[Document]:
        empty = True
        for document in clean(source.documents(), steps, tallies):
            empty = False
            yield document
        notes.include(source.notes)
        notes.extend(tally.sentence() for tally in tallies)
        if empty:
            worst = max(tallies, key=lambda tally: tally.removed)
            why = worst.examples[0]["why"] if worst.examples else ""
            raise DataError(f"cleaning left nothing of {source.name}: {worst.sentence()}, the first for {why}")

    library = (
        metadata.version("datasketch") if any(isinstance(step, Near) for step in steps) and duplicates.library() else ""
    )
    facts = repr([source.facts, [str(step) for step in steps], library])
    return dataclasses.replace(source, walk=walk, notes=Notes(), facts=facts)
