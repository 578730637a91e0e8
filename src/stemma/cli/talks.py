"""`data show` of conversations: each as a model would see it, and what of a file cannot be learnt from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stemma.cli import console, echo, emit
from stemma.errors import DataError, UsageError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text as Rich

MOST = 10_000  # rows of a file that are looked at
PLACES = 3  # that are named for a reason
LEARNT, SAID, FRAME = "bold green", "cyan", "dim"  # what is learnt, other words, what the template puts around them


@dataclass
class Found:
    """Conversations of a file. `wrong`: of each kind of row that cannot be learnt from, the first
    reason and the places."""

    seen: int = 0
    good: list[tuple[str, Any, Any]] = field(default_factory=list)  # (place, text, example)
    kept: int = 0
    shortened: int = 0
    wrong: dict[str, tuple[str, list[str]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    whole: bool = True


def show(
    source: str, name: str, rows: int, template: str | None, loss_on: str, hard: tuple[str, ...], as_json: bool
) -> None:
    """Print the first `rows` conversations of `source` as the model `name` would see them. `hard`: prompts in words, as
    they are typed; none: those that the model was tuned with."""
    from stemma import formats
    from stemma.conversations import unknown_tokens, writer
    from stemma.train.plans import start_folder
    from stemma.tuning.plans import ROW

    model = formats.load(start_folder(name), device="meta")
    if model.tokenizer is None:
        raise UsageError(f"{name} has no tokenizer, and conversations are shown as tokens")
    if model.arch.structure != "decoder":
        raise UsageError(f"{name} is an {model.arch.structure}; conversations are learnt by decoders")
    write = writer(model.tokenizer, template)
    context = min(model.dims.context, ROW)
    found = looked_at(source, write, model.tokenizer, context, loss_on, rows, prompts_of(name, hard))
    if as_json:
        emit([_plain(place, text, example, model.tokenizer, loss_on) for place, text, example in found.good])
        return
    out = console()
    kind = f"template {template}" if template else "the model's own template"
    out.print(f"{name}: {kind}, loss on {loss_on}, at most {context:,} tokens a row", style="bold", highlight=False)
    out.print(legend())
    if unknown := unknown_tokens(model.tokenizer, write):
        several = f"{', '.join(unknown)} {'is' if len(unknown) == 1 else 'are'} no token of its tokenizer"
        echo(f"note: {several}, and learnt as text unless the model gets rows for it (stemma.conversations.add_tokens)")
    for place, text, example in found.good:
        out.print()
        learnt = sum(example.targets)
        out.print(f"{place}: {len(example.ids):,} tokens, {learnt:,} learnt", style="dim", highlight=False)
        for part in turns(out, text, model.tokenizer, loss_on):
            out.print(part, soft_wrap=True)
    echo()
    for line in counted(found):
        echo(line)


def prompts_of(name: str, hard: tuple[str, ...] = ()) -> tuple[Any, ...]:
    """The prompts in words that are given, or that the model `name` was tuned with."""
    from stemma.declare.tasks import ChatTask
    from stemma.formats import kept
    from stemma.formats.where import model_path
    from stemma.tasks import hard as prompts

    if hard:
        return tuple(map(prompts.read, hard))
    there = model_path(name)
    task = kept.load(there) if there is not None and there.is_dir() else None
    return task.prompts if isinstance(task, ChatTask) else ()


def looked_at(
    source: str, write: Any, tokenizer: Any, context: int, loss_on: Any, rows: int, prompts: tuple[Any, ...] = ()
) -> Found:
    """The conversations of a source; the first `rows` with their texts. Raises DataError where nothing can be learnt
    from."""
    from stemma.conversations.targets import fitting
    from stemma.data import read as read_source
    from stemma.data.files import ROWS
    from stemma.tasks.hard import prompted

    inner, found = read_source(source, field=ROWS, strict=False), Found()
    first: DataError | None = None
    for document in inner.documents():
        if found.seen == MOST:
            found.whole = False
            break
        found.seen += 1
        place = document.name.rpartition("/")[2]
        try:
            row = json.loads(document.text)
            talk = prompted(talk_of(row), prompts, row.get("task"))
            if len(found.good) >= rows and _fits(talk, write, tokenizer, context, loss_on):
                found.kept += 1
                continue
            text, example, rounds = fitting(talk, context + 1, write, tokenizer, loss_on)
        except DataError as error:
            first = first or DataError(f"{document.name}: {error}")
            found.wrong.setdefault(re.sub(r"\d+", "#", str(error)), (str(error), []))[1].append(place)
            continue
        found.kept += 1
        found.shortened += rounds > 0
        if len(found.good) < rows:
            found.good.append((place, text, example))
    if first is not None and not found.kept:
        raise DataError(f"no row can be learnt from; the first is {first}")
    found.notes = list(inner.notes)
    return found


def talk_of(row: Any) -> Any:
    """The conversation of a row. Raises DataError."""
    from stemma.conversations import read

    if not isinstance(row, Mapping):
        raise DataError(f"it is a {type(row).__name__}, and a row is an object with fields")
    return read(row)


def _fits(talk: Any, write: Any, tokenizer: Any, context: int, loss_on: Any) -> bool:
    """Whether a conversation surely fits: a token has at least a byte. Raises DataError if it cannot be learnt from."""
    from stemma.conversations.targets import check

    text = write.write(talk)
    check(tokenizer, text, loss_on)
    return len(text.text.encode("utf-8", "replace")) < context


# ---------------------------------------------------------------- in the terminal


def legend() -> Rich:
    """What the colours say; without them the marks do."""
    from rich.text import Text as Rich

    said = Rich("words", style=SAID) + Rich(" that are read, ") + Rich("the template", style=FRAME)
    return said + Rich(", and ") + Rich("«what is learnt»", style=LEARNT)


def turns(out: Console, text: Any, tokenizer: Any, loss_on: Any) -> Iterator[Rich]:
    """A conversation, what is read and what is learnt in turn."""
    from rich.text import Text as Rich

    from stemma.conversations.targets import learnt_places

    at = 0
    runs = learnt_places(tokenizer, text, loss_on)
    for i, (begin, end) in enumerate(runs):
        if text.text[at:begin].strip():
            yield _hanging(out, "reads", _styled(text, at, begin))
        last = text.open_ended and i == len(runs) - 1
        said = f"«{text.text[begin:end]}{tokenizer.token(tokenizer.eos_id) if last else ''}»"
        yield _hanging(out, "learns", Rich(said, style=LEARNT))
        at = end
    if text.text[at:].strip():
        yield _hanging(out, "reads", _styled(text, at, len(text.text)))


def _styled(text: Any, begin: int, end: int) -> Rich:
    """A part of the text, words apart from the template's."""
    from rich.text import Text as Rich

    out, at = Rich(), begin
    for b, e in sorted(text.words):
        if at <= b < end and e > b:
            out.append(text.text[at:b], style=FRAME)
            out.append(text.text[b : min(e, end)], style=SAID)
            at = min(e, end)
    return out.append(text.text[at:end], style=FRAME)


def _hanging(out: Console, label: str, words: Rich) -> Rich:
    """`label`, then the words to its right; a line end in them is shown and begins a line."""
    from rich.text import Text as Rich

    head = Rich(f"  {label:<8}", style="dim")
    room = max(out.width - len(head) - 1, 20)
    lines = list(words.split("\n", allow_blank=True))
    for i, line in enumerate(lines):
        if i == len(lines) - 1 and not line.plain:
            break  # the text ended with a line end, which is shown already
        for k, part in enumerate(line.wrap(out, room) or [line]):
            head.append("\n" + " " * 10 if i or k else "")
            head.append_text(part)
        head.append("" if i == len(lines) - 1 else "↵", style=FRAME)
    return head


def counted(found: Found) -> Iterator[str]:
    """What of the file is learnt from, and what is passed over, with why and where."""
    more = "" if found.whole else f" (the first {found.seen:,} rows; there are more)"
    some = "1 conversation" if found.kept == 1 else f"{found.kept:,} conversations"
    yield f"{some} of {found.seen:,} rows can be learnt from{more}"
    if found.shortened:
        yield f"{found.shortened:,} of them lose rounds at their end, which do not fit"
    for why, places in sorted(found.wrong.values(), key=lambda item: -len(item[1])):
        rest = f", and {len(places) - PLACES:,} more" if len(places) > PLACES else ""
        yield f"{len(places):,} passed over: {why} ({', '.join(places[:PLACES])}{rest})"
    yield from found.notes


def _plain(place: str, text: Any, example: Any, tokenizer: Any, loss_on: Any) -> dict[str, Any]:
    from stemma.conversations.targets import learnt_places

    runs = learnt_places(tokenizer, text, loss_on)
    return {
        "place": place,
        "text": text.text,
        "learnt": [text.text[b:e] for b, e in runs],
        "tokens": tokenizer.tokens(example.ids),
        "targets": example.targets,
    }
