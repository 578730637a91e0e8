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
from stemma.data.rules import Reason, Verdict, rule
from stemma.data.steps import CleaningStep, Exact, Near, label, parse
from stemma.errors import DataError

__all__ = ["Tally", "clean", "cleaned", "parse"]

EXAMPLES = 3  # removed documents that a tally shows


@dataclass
class Tally:
    """What a step did: documents and bytes that reached it (`seen`) and that it `removed`; documents it `changed`; and
    examples. `places`: where the examples are in the text, so that tallies of several processes can be merged.
    `settings`: of the documents removed, their number and bytes by the setting that a document was removed for."""

    step: str
    seen: int = 0
    seen_bytes: int = 0
    removed: int = 0
    removed_bytes: int = 0
    changed: int = 0
    examples: list[dict[str, str]] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)
    settings: dict[str, list[int]] = field(default_factory=dict)

    def see(self, document: Document) -> None:
        """Count a document that reaches the step."""
        self.seen += 1
        self.seen_bytes += len(document.text.encode("utf-8", "surrogatepass"))

    def remove(self, document: Document, why: str, place: tuple[int, int] = (0, 0)) -> None:
        """Count a document as removed; the first few become examples."""
        self.removed += 1
        size = len(document.text.encode("utf-8", "surrogatepass"))
        self.removed_bytes += size
        if isinstance(why, Reason):
            documents, held = self.settings.get(why.setting, [0, 0])
            self.settings[why.setting] = [documents + 1, held + size]
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
        settings = {
            key: [sum(n) for n in zip(self.settings.get(key, [0, 0]), other.settings.get(key, [0, 0]), strict=True)]
            for key in [*self.settings, *(k for k in other.settings if k not in self.settings)]
        }
        return Tally(self.step, **sums, examples=[e for _, e in first], places=[p for p, _ in first], settings=settings)

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

    def reasons(self) -> str:
        """How many documents each setting removed, most first, in brackets; nothing where none did."""
        found = sorted(self.settings.items(), key=lambda row: -row[1][0])
        return f" ({', '.join(f'{setting} {count:,}' for setting, (count, _) in found)})" if found else ""

    def advice(self) -> list[str]:
        """For each setting that removed documents, most text first: how much, and what would keep them."""
        name, found = self.step.partition("(")[0], []
        for setting, (documents, size) in sorted(self.settings.items(), key=lambda row: -row[1][1]):
            field_, _, value = setting.partition("=")
            do = "set" if value == "true" else "lower" if field_.startswith("min") or field_ == "share" else "raise"
            other = f"{field_}={'False' if value == 'true' else '...'}"
            found.append(
                f"{setting} removed {documents:,} ({size / max(self.seen_bytes, 1):.1%}); to keep them {do} it: "
                f"{name}({other})"
            )
        return found


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


def nothing_left(source: str, report: Sequence[Tally]) -> DataError:
    """The error for a cleaning that removed everything, with what removed most and would keep it."""
    worst = max(report, key=lambda tally: tally.removed)
    why = worst.examples[0]["why"] if worst.examples else "an empty source"
    cure = "".join(f"; {line}" for line in worst.advice()[:1])
    return DataError(f"cleaning left nothing of {source}: {worst.sentence()}, the first for {why}{cure}")


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
        notes.extend(tally.sentence() + tally.reasons() for tally in tallies)
        if empty:
            raise nothing_left(source.name, tallies)

    library = (
        metadata.version("datasketch") if any(isinstance(step, Near) for step in steps) and duplicates.library() else ""
    )
    facts = repr([source.facts, [str(step) for step in steps], library])
    return dataclasses.replace(source, walk=walk, notes=Notes(), facts=facts)
