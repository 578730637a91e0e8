"""`data show` of answers that were compared or liked, side by side, and of prompts; what of a file cannot be learnt."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from stemma.cli import console, echo, emit
from stemma.errors import DataError, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

Kind = Literal["comparisons", "thumbs", "prompts"]
MOST = 10_000  # rows of a file that are looked at
FIRST = 20  # rows that say what a file holds
GOOD, OTHER, FRAME = "bold green", "red", "dim"


@dataclass
class Shown:
    """A row: its `place`, the prompt's turns, and of each answer its words, its tokens, and what is said of it."""

    place: str
    prompt: list[dict[str, Any]]
    answers: list[tuple[str, int, str]]
    tokens: int  # of the prompt
    tied: bool = False


@dataclass
class Counted:
    """What rows hold together."""

    rows: int = 0
    good: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    whole: bool = True


def kind_of(source: str) -> Kind | None:
    """What most of the first rows of a source hold; None for conversations and what is no row."""
    from stemma.conversations.comparisons import compares, is_rated
    from stemma.tasks.encoder import first

    found: Counter[Kind | None] = Counter()
    for row in first(source, FIRST)[0]:
        if compares(row):
            found["comparisons"] += 1
        elif is_rated(row):
            found["thumbs"] += 1
        else:
            found["prompts" if _waits(row) else None] += 1
    return found.most_common(1)[0][0]


def _waits(row: Mapping[str, Any]) -> bool:
    """Whether a row has a prompt and no answer."""
    from stemma.conversations import read
    from stemma.conversations.comparisons import asked

    try:
        asked(row)
    except DataError:
        return False
    try:
        return not read(row)
    except DataError:
        return True


def show(source: str, name: str, rows: int, template: str | None, kind: Kind, as_json: bool) -> None:
    """Print the first `rows` rows of `source` as the model `name` would see them, and count all."""
    from stemma import formats
    from stemma.declare.alignment import PreferTask, PromptTask, ThumbTask
    from stemma.tasks.base import reader
    from stemma.train.plans import start_folder
    from stemma.tuning.plans import ROW

    model = formats.load(start_folder(name), device="meta")
    if model.tokenizer is None:
        raise UsageError(f"{name} has no tokenizer, and rows are counted in tokens")
    if kind == "prompts" and model.arch.structure != "decoder":
        raise UsageError(f"{name} is an {model.arch.structure}; prompts are answered by decoders")
    context = min(model.dims.context, ROW)
    task = {"comparisons": PreferTask, "thumbs": ThumbTask, "prompts": PromptTask}[kind](template or "")
    read = reader(task, model.tokenizer, context, model.arch.structure)
    found, counted = looked_at(source, read, kind, rows)
    if as_json:
        emit([_plain(one) for one in found])
        return
    out = console()
    own = f"template {template}" if template else "the model's own template"
    out.print(f"{name}: {kind}, {own}, at most {context:,} tokens a row", style="bold")
    for one in found:
        out.print()
        for part in parts(one, out.width):
            out.print(part, soft_wrap=isinstance(part, str))
    echo()
    for line in told(counted, kind):
        echo(line)


def looked_at(source: str, read: Any, kind: Kind, rows: int) -> tuple[list[Shown], Counted]:
    """The first `rows` rows that can be learnt from, and what all of them hold. Raises DataError where none can."""
    from stemma.data import read as read_source
    from stemma.data.documents import Notes
    from stemma.data.files import ROWS
    from stemma.tasks.encoder import checked

    inner, notes, found = read_source(source, field=ROWS, strict=False), Notes(), list[Shown]()
    counted = Counted()

    def documents() -> Iterator[Any]:
        for document in itertools.islice(inner.documents(), MOST + 1):
            if counted.rows == MOST:
                counted.whole = False
                return
            counted.rows += 1
            yield document

    for document in checked(documents(), read.check, notes):
        counted.good += 1
        row = json.loads(document.text)
        count(counted, row, kind)
        if len(found) < rows:
            found.append(shown(document.name.rpartition("/")[2], row, read, kind))
    notes.include(inner.notes)
    counted.notes = list(notes)
    return found, counted


def count(counted: Counted, row: Mapping[str, Any], kind: Kind) -> None:
    """Add what a row holds: pairs, ties, grades, whether the longer answer was preferred; thumbs up and down."""
    from stemma.conversations.comparisons import ranked, thumbs
    from stemma.declare.alignment import GRADES

    if kind == "thumbs":
        counted.counts.update("liked" if talk.liked else "not liked" for talk in thumbs(row))
    if kind != "comparisons":
        return
    found = ranked(row)
    lengths = [len(text) for text in found.answers]
    for pair in found.pairs():
        counted.counts["ties" if pair.tied else "pairs"] += 1
        if not pair.tied:
            counted.counts["longer"] += lengths[pair.better] > lengths[pair.worse]
        if pair.grade is not None and not pair.tied:
            counted.counts[GRADES[pair.grade]] += 1


def shown(place: str, row: Mapping[str, Any], read: Any, kind: Kind) -> Shown:
    """A row with its tokens."""
    from stemma.conversations.comparisons import ranked, thumbs
    from stemma.declare.alignment import GRADES

    if kind == "prompts":
        talk = read.read(row)
        return Shown(place, talk.messages, [], len(read.marked(talk).ids))
    if kind == "thumbs":
        talks, found = thumbs(row), None
        said = ["liked" if talk.liked else "not liked" for talk in talks]
    else:
        found = ranked(row)
        talks = list(found.talks)
        scores = [""] * len(talks) if found.scores is None else [f", score {s:g}" for s in found.scores]
        grade = "" if found.grade is None else f" ({GRADES[found.grade]})"
        said = [_rank(found.ranks, i) + scores[i] + (grade if i == 0 else "") for i in range(len(talks))]
    sizes = [read.text(talk) for talk in talks]
    answers = [(t.turns[-1].content, len(ids) - b, s) for t, (ids, b), s in zip(talks, sizes, said, strict=True)]
    tied = found is not None and found.ranks[0] == found.ranks[-1]
    return Shown(place, talks[0].messages[:-1], answers, sizes[0][1], tied)


def _rank(ranks: Sequence[int], i: int) -> str:
    """What is said of an answer among others."""
    if ranks.count(ranks[i]) > 1:
        return "tied"
    if len(ranks) == 2:
        return ("preferred", "the other")[i]
    return f"rank {ranks[i] + 1}"


# ---------------------------------------------------------------- in the terminal


def parts(one: Shown, width: int) -> Iterator[RenderableType]:
    """A row: its prompt, then its answers, two of them side by side."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    sizes = " and ".join(f"{n:,}" for _, n, _ in one.answers)
    answers = f", answers of {sizes}" if len(one.answers) > 1 else f", answer of {sizes}" if one.answers else ""
    yield Text(f"{one.place}: prompt of {one.tokens:,} tokens{answers}", style=FRAME)
    for message in one.prompt:
        yield Text(f"  {message['role']:<10}", style=FRAME) + Text(message["content"])
    styles = [
        GOOD if i == 0 and not one.tied and said != "not liked" else OTHER for i, (*_, said) in enumerate(one.answers)
    ]
    if len(one.answers) == 2 and width >= 60:
        table = Table(box=box.SIMPLE, expand=True, show_edge=False, pad_edge=False, padding=(0, 1))
        for (*_, said), style in zip(one.answers, styles, strict=True):
            table.add_column(said, header_style=style, ratio=1, overflow="fold")
        table.add_row(*(Text(text) for text, *_ in one.answers))
        yield table
        return
    for (text, _, said), style in zip(one.answers, styles, strict=True):
        yield Text(f"  {said}: ", style=style) + Text(text)


def told(counted: Counted, kind: Kind) -> Iterator[str]:
    """What a file holds, and what of it is passed over, with why and where."""
    more = "" if counted.whole else f" (the first {counted.rows:,}; there are more)"
    what = {"comparisons": "be learnt from", "thumbs": "be learnt from", "prompts": "be answered"}[kind]
    yield f"{counted.good:,} of {counted.rows:,} rows can {what}{more}"
    counts = counted.counts
    if kind == "comparisons":
        ties = f", {counts['ties']:,} of them tied" if counts["ties"] else ""
        longer = (
            f"; the longer answer is preferred in {counts['longer'] / counts['pairs']:.0%}" if counts["pairs"] else ""
        )
        yield f"pairs: {counts['pairs'] + counts['ties']:,}{ties}{longer}"
        from stemma.declare.alignment import GRADES

        if graded := [f"{g} {counts[g]:,}" for g in GRADES if counts[g]]:
            yield f"grades: {', '.join(graded)}"
    if kind == "thumbs":
        yield f"answers: {counts['liked']:,} liked, {counts['not liked']:,} not"
    yield from counted.notes


def _plain(one: Shown) -> dict[str, Any]:
    answers = [{"text": text, "tokens": n, "said": said} for text, n, said in one.answers]
    return {"place": one.place, "prompt": one.prompt, "prompt_tokens": one.tokens, "answers": answers}
