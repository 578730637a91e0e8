"""A conversation as text, and the interface of what writes one.

A target is an assistant's words and the end token behind them, found by its place in the text: never by counting the
tokens of a prompt, which a template's generation prompt need not begin the whole text with.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from stemma.conversations.shapes import Conversation, Turn


@dataclass(frozen=True)
class Text:
    """A conversation as text. `spans`: (begin, end) of each assistant's words with the end behind them; `words`: those
    of everybody's words, in which the names of special tokens are ordinary text. `asked`: where the prompt of each
    answer ends. `open_ended`: no end token stands behind the last answer, so the tokenizer's own is put there.
    `shortened`: numbers of the answers whose reasoning the template leaves out."""

    text: str
    spans: tuple[tuple[int, int], ...]
    words: tuple[tuple[int, int], ...]
    asked: tuple[int, ...] = ()
    open_ended: bool = False
    shortened: tuple[int, ...] = ()

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

    @abstractmethod
    def tokens(self) -> tuple[str, ...]:
        """The names that should be one token each to the tokenizer of a model that learns this template."""

    def ending(self) -> str:
        """What stands behind an answer: the text at which a model should stop. Empty where nothing does."""
        made = self.write(Conversation((Turn("user", "ask"), Turn("assistant", "tell"))))
        begin, end = made.spans[-1]
        return made.text[begin:end].partition("tell")[2].strip()

    def stops(self) -> tuple[str, ...]:
        """The texts at which a model should stop: the end of an answer or, where nothing ends one, what stands before
        the next user's words."""
        if end := self.ending():
            return (end,)
        words = ("ask", "tell", "more", "rest")
        turns = tuple(Turn(("user", "assistant")[i % 2], word) for i, word in enumerate(words))
        made = self.write(Conversation(turns))
        between = made.text[made.spans[0][1] : made.text.index("more", made.spans[0][1])].strip()
        return (between,) if between else ()


class Builder:
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

    def made(self, open_ended: bool = False) -> Text:
        """What was put together."""
        return Text(self.text, tuple(self.spans), tuple(self.words), tuple(self.asked), open_ended)
