"""Conversations as text: by a chat template in Jinja, or by a declared one; and which of the text is the assistant's.

A target is an assistant's words and the end token behind them, found by its place in the text: never by counting the
tokens of a prompt, which a template's generation prompt need not begin the whole text with.
"""

from __future__ import annotations

import re
import secrets
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stemma.conversations.shapes import Conversation, Turn
from stemma.declare.tuning import Instructions, Turns
from stemma.errors import DataError, UsageError, did_you_mean
from stemma.families import templates as published

NAMES: dict[str, Turns | Instructions] = {
    "alpaca": published.ALPACA,
    "vicuna": published.VICUNA,
    "vicuna-v0": published.VICUNA_V0,
    "guanaco": published.GUANACO,
    "koala": published.KOALA,
    "gorilla": published.GORILLA,
    "vigogne": published.VIGOGNE,
    "vigogne-chat-v2": published.VIGOGNE_CHAT_2,
    "vigogne-chat-v3": published.VIGOGNE_CHAT_3,
    "tulu": published.TULU,
    "llama-2-chat": published.LLAMA2,
    "llama-3": published.LLAMA3,
    "chatml": published.CHATML,
    "stable-beluga": published.BELUGA,
    "stable-beluga-code": published.BELUGA_CODE,
    "plain": published.PLAIN,
}


UNKNOWN = ", so it cannot be told which tokens to learn; use another template"


@dataclass(frozen=True)
class Text:
    """A conversation as text. `spans`: (begin, end) of each assistant's words with the end behind them; `words`: those
    of everybody's words, in which the names of special tokens are ordinary text. `asked`: where the prompt of each
    answer ends. `open_ended`: no end token stands in
    the text, so the tokenizer's own is put behind the last answer."""

    text: str
    spans: tuple[tuple[int, int], ...]
    words: tuple[tuple[int, int], ...]
    asked: tuple[int, ...] = ()
    open_ended: bool = False

    def shown(self) -> str:
        """The text with its targets between « and »."""
        out, at = "", 0
        for begin, end in self.spans:
            out += f"{self.text[at:begin]}«{self.text[begin:end]}»"
            at = end
        return out + self.text[at:]


class Writer(ABC):
    """Writes conversations."""

    @abstractmethod
    def write(self, talk: Conversation) -> Text:
        """A whole conversation, with its targets. Raises DataError if the template refuses it."""

    @abstractmethod
    def prompt(self, turns: Sequence[Turn]) -> Text:
        """The text that the assistant's next answer follows; the spans are those of its earlier answers."""

    def ending(self) -> str:
        """What stands behind an answer: the text at which a model should stop. Empty where nothing does."""
        made = self.write(Conversation((Turn("user", "ask"), Turn("assistant", "tell"))))
        begin, end = made.spans[-1]
        return made.text[begin + len("tell") : end].strip()


class _Builder:
    """Text put together piece by piece, with the places of words and targets."""

    def __init__(self) -> None:
        self.text = ""
        self.spans: list[tuple[int, int]] = []
        self.words: list[tuple[int, int]] = []
        self.asked: list[int] = []

    def add(self, text: str) -> None:
        self.text += text

    def say(self, form: str, words: str) -> None:
        """`form` with `words` in the place of `{}`."""
        before, _, after = form.partition("{}")
        begin = len(self.text) + len(before)
        self.text += before + words + after
        self.words.append((begin, begin + len(words)))

    def answer(self, form: str, words: str, asks: str = "") -> None:
        """As `say`; the words and what follows them, but for blanks at the end, are a target. `asks`: what a prompt
        puts in the place of the answer's form."""
        self.asked.append(len(self.text) + (len(asks) if form.startswith(asks) else form.index("{}")))
        self.say(form, words)
        begin, end = self.words[-1]
        after = self.text[end:]
        kept = after.rstrip() if after.strip() else ""
        self.spans.append((begin, end + len(kept)))


class TurnsWriter(Writer):
    """By a declared template."""

    def __init__(self, template: Turns | Instructions) -> None:
        self.template = template

    def write(self, talk: Conversation) -> Text:
        made = _Builder()
        if isinstance(self.template, Instructions):
            self._instruct(self.template, talk, made)
        else:
            self._talk(self.template, talk.turns, made)
        last = made.spans[-1] if made.spans else (0, 0)
        ended = made.words and any(last[0] == begin and last[1] > end for begin, end in made.words)
        return Text(made.text, tuple(made.spans), tuple(made.words), tuple(made.asked), not ended)

    def _talk(self, template: Turns, turns: Sequence[Turn], made: _Builder) -> None:
        system = turns[0].content if turns[:1] and turns[0].role == "system" else template.default
        rest = turns[1:] if turns[:1] and turns[0].role == "system" else turns
        if not template.inside and (system or "{}" not in template.system):
            made.say(template.system, system) if "{}" in template.system else made.add(template.system)
        for i, turn in enumerate(rest):
            if turn.role == "assistant":
                made.answer(template.assistant, turn.content, template.generation)
                continue
            made.add(template.between if i else "")
            before, _, after = template.user.partition("{}")
            made.add(before)
            if i == 0 and template.inside and system:
                made.say(template.system, system)
            made.say("{}", turn.content)
            made.add(after)

    def _instruct(self, template: Instructions, talk: Conversation, made: _Builder) -> None:
        if len([t for t in talk.turns if t.role != "system"]) > 2:
            raise DataError("this template writes one instruction and its answer, and the conversation has more turns")
        asked = talk.instruction or next(t.content for t in talk.turns if t.role == "user")
        form = template.text if talk.input or not template.bare else template.bare
        if template.trim and talk.input:
            asked = asked.rstrip(template.trim)
        for piece in re.split(r"(\{instruction\}|\{input\})", form):
            if piece in ("{instruction}", "{input}"):
                made.say("{}", asked if piece == "{instruction}" else talk.input)
            else:
                made.add(piece)
        for turn in talk.turns:
            if turn.role == "assistant":
                made.answer(template.answer, turn.content)

    def prompt(self, turns: Sequence[Turn]) -> Text:
        made = _Builder()
        if isinstance(self.template, Instructions):
            self._instruct(self.template, Conversation(tuple(turns)), made)
        else:
            self._talk(self.template, turns, made)
            made.add(self.template.generation)
        return Text(made.text, tuple(made.spans), tuple(made.words), tuple(made.asked))


class JinjaWriter(Writer):
    """By the chat template of a tokenizer. Where the template marks what the model wrote (`{% generation %}`), that is
    the target; else the words are found by writing the conversation with other words in their places."""

    def __init__(self, tokenizer: Any, **options: Any) -> None:
        self.tokenizer, self.options = tokenizer, options

    def prompt(self, turns: Sequence[Turn]) -> Text:
        return self._written(turns, asks=True)

    def write(self, talk: Conversation) -> Text:
        return self._written(talk.turns)

    def _written(self, turns: Sequence[Turn], asks: bool = False) -> Text:
        text = self._rendered(turns, asks)
        words = self._places(text, turns, asks)
        starts = [*sorted(begin for begin, _ in words), len(text)]
        spans, asked, ended = [], [], True
        for i, ((begin, end), turn) in enumerate(zip(words, turns, strict=True)):
            if turn.role != "assistant":
                continue
            following = next((s for s in starts if s >= end and s > begin), len(text))
            after = self._ending(text[end:following])
            spans.append((begin, end + after))
            ended &= after > 0
            prompt = self._rendered(turns[:i], asks=True)
            asked.append(len(prompt) if len(prompt) <= begin and text.startswith(prompt) else begin)
        return Text(text, tuple(spans), tuple(words), tuple(asked), not ended)

    def _rendered(self, turns: Sequence[Turn], asks: bool = False) -> str:
        messages = Conversation(tuple(turns)).messages
        return str(self.tokenizer.apply_chat(messages, add_generation_prompt=asks, **self.options))

    def _places(self, text: str, turns: Sequence[Turn], asks: bool = False) -> list[tuple[int, int]]:
        """Where the words of each turn stand in `text`. Raises DataError where the template changes an answer or leaves
        one out, so that this cannot be told."""
        marks = [f"{secrets.token_hex(6)}x{i}" for i in range(len(turns))]
        form = self._rendered([Turn(t.role, m) for t, m in zip(turns, marks, strict=True)], asks)
        places: list[tuple[int, int]] = []
        at = done = 0
        for mark, turn in zip(marks, turns, strict=True):
            here = form.find(mark, done)
            if here < 0 and turn.role != "system":
                raise DataError(f"the chat template changes or leaves out what the {turn.role} says{UNKNOWN}")
            if here < 0:
                places.append((at, at))
                continue
            between = form[done:here]
            if not text.startswith(between, at):
                raise DataError(
                    "the chat template writes the turns around these words in another way; use another template"
                )
            at += len(between)
            forms = dict.fromkeys((turn.content, turn.content.strip(), turn.content.rstrip(), turn.content.lstrip()))
            said = next((words for words in forms if text.startswith(words, at)), None)
            if said is None:
                raise DataError(f"the chat template changes or leaves out what the {turn.role} says{UNKNOWN}")
            places.append((at, at + len(said)))
            at, done = at + len(said), here + len(mark)
        if text[at:] != form[done:]:
            raise DataError("the chat template writes the end of these words in another way; use another template")
        return places

    def _ending(self, after: str) -> int:
        """How much of the text behind an answer is its end: to the first special token, with blanks before it."""
        found = re.match(rf"\s*(?:{self._specials()})", after) if self._specials() else None
        return found.end() if found else 0

    def _specials(self) -> str:
        tokens = [self.tokenizer.token(i) for i in self.tokenizer.special_ids]
        return "|".join(re.escape(t) for t in sorted((t for t in tokens if t), key=len, reverse=True))


def writer(tokenizer: Any, template: str | Turns | Instructions | None = None, **options: Any) -> Writer:
    """The writer of a template: a name of `NAMES`, a declared value, or (None) the tokenizer's own. Raises UsageError
    for an unknown name, and where the tokenizer has none."""
    if isinstance(template, Turns | Instructions):
        return TurnsWriter(template)
    if template is not None:
        if template not in NAMES:
            raise UsageError(
                f"no chat template is called {template!r}; known: {', '.join(NAMES)}{did_you_mean(template, NAMES)}"
            )
        return TurnsWriter(NAMES[template])
    if getattr(tokenizer, "chat_template", None) is None:
        raise UsageError(f"this tokenizer has no chat template; name one of {', '.join(NAMES)}")
    return JinjaWriter(tokenizer, **options)
