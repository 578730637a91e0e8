"""Conversations written by the chat template of a tokenizer, with the place of everybody's words."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from stemma.conversations.shapes import Conversation, Turn
from stemma.conversations.texts import Text, Writer
from stemma.errors import DataError
from stemma.text import chat

UNKNOWN = ", so it cannot be told which tokens to learn; use another template"
# an answer that begins with its reasoning, which templates may write in a form of their own, or leave out
REASONED = re.compile(r"(\s*<think>\s*)(\S.*?)(\s*</think>\s*)(\S.*)", re.DOTALL)
OPENED = re.compile(r"<think>\s*\Z")
# what special tokens look like: <|im_end|>, <｜User｜>, </s>, <end_of_turn>, [/INST]
MARKER = re.compile(r"<[^<>\s]{1,40}>|\[/?[A-Z_]{2,40}\]")
PROBE = (Turn("user", "ask"), Turn("assistant", "tell"), Turn("user", "more"), Turn("assistant", "rest"))


@dataclass(frozen=True)
class Piece:
    """Words that a template writes as they are; `turn`: the number of the turn, `last` the last piece of it."""

    turn: int
    role: str
    words: str
    mark: str
    last: bool


def pieces(turns: Sequence[Turn]) -> tuple[list[Piece], list[Turn]]:
    """The pieces of each turn, and the turns with marks in their places."""
    found: list[Piece] = []
    marked: list[Turn] = []
    for i, turn in enumerate(turns):
        if turn.silent:
            marked.append(turn)
            continue
        marks = [f"{secrets.token_hex(6)}x{i}", f"{secrets.token_hex(6)}y{i}"]
        parts = REASONED.fullmatch(turn.content) if turn.role == "assistant" else None
        if parts is None:
            found.append(Piece(i, turn.role, turn.content, marks[0], True))
            marked.append(replace(turn, content=marks[0]))
            continue
        before, thought, between, said = parts.groups()
        found += [Piece(i, turn.role, thought, marks[0], False), Piece(i, turn.role, said, marks[1], True)]
        marked.append(replace(turn, content=f"{before}{marks[0]}{between}{marks[1]}"))
    return found, marked


def forms(words: str) -> list[str]:
    """What templates make of words: as they are, without blanks or line ends around them, or as JSON."""
    cut = [words]
    for around in (None, "\n"):
        cut += [words.strip(around), words.rstrip(around), words.lstrip(around)]
    return list(dict.fromkeys([*cut, json.dumps(words, ensure_ascii=False)[1:-1]]))


def _asked(prompt: str, text: str, said: int, begin: int) -> int:
    """Where the prompt of the answer at `begin` ends in `text`: at its own end, or where what it writes behind the
    user's words (at `said`) does. `begin` where the prompt ends otherwise."""
    if len(prompt) <= begin and text.startswith(prompt):
        return len(prompt)
    ends = (end for end in range(begin, said, -1) if prompt.endswith(text[said:end]))
    return next(ends, begin)


class JinjaWriter(Writer):
    """By the chat template of a tokenizer. The words are found by writing the conversation with other words in their
    places; where the template marks what the model wrote (`{% generation %}`), that is the target, to the end token.

    What a template itself puts between its generation prompt and an answer (`<think>\\n\\n</think>`) is learnt with the
    answer: a model that reads the prompt alone has to write it."""

    def __init__(self, tokenizer: Any, **options: Any) -> None:
        self.tokenizer, self.options = tokenizer, options

    def prompt(self, turns: Sequence[Turn]) -> Text:
        """As the base class says. A template without a generation prompt gives what it writes before an answer."""
        return self._written(turns, asks=True)

    def write(self, talk: Conversation) -> Text:
        return self._written(talk.turns)

    def tokens(self) -> tuple[str, ...]:
        """The end of an answer, where the tokenizer knows it as a token; else all that look like special tokens."""
        head = (Turn("system", "be"),)
        try:
            made = self._written((*head, *PROBE))
        except DataError:  # some templates take no system message
            made = self._written(PROBE)
        begin, end = made.spans[-1]
        last = made.text[begin:end].partition(PROBE[-1].content)[2].strip()
        if last and self._specials and re.fullmatch(self._specials, last):
            return (last,)
        fixed = made.text + self._prompt(PROBE[:1])
        return tuple(dict.fromkeys(MARKER.findall(fixed)))

    def _written(self, turns: Sequence[Turn], asks: bool = False) -> Text:
        text = self._prompt(turns) if asks else self._rendered(turns)
        places = self._places(text, turns, asks)
        marked = self._generated(text, turns, asks)
        starts = [*sorted(place[0] for group in places for place in group), len(text)]
        spans: list[tuple[int, int]] = []
        asked: list[int] = []
        shortened: list[int] = []
        ended = True
        for i, (group, turn) in enumerate(zip(places, turns, strict=True)):
            if turn.role != "assistant" or turn.silent:
                continue
            begin, end = group[0][0], group[-1][1]
            if len(group) == 1 and REASONED.fullmatch(turn.content):
                shortened.append(len(spans))
            following = next((s for s in starts if s >= end and s > begin), len(text))
            prompt = self._prompt(turns[:i])
            ask = _asked(prompt, text, places[i - 1][-1][1] if i else 0, begin)
            if len(group) > 1 and (opened := OPENED.search(text, ask, begin)):
                begin = opened.start()
            if text[ask:begin].strip():
                begin = ask
            after = self._ending(text[end:following])
            for b, e in marked:
                if b <= group[0][0] < e:
                    begin = max(b, ask) if text[max(b, ask) : begin].strip() else begin
                    after = max(after, len(text[end:e].rstrip()))
            spans.append((begin, end + after))
            asked.append(ask)
            ended = after > 0
        words = tuple(place for group in places for place in group)
        return Text(text, tuple(spans), words, tuple(asked), not ended, tuple(shortened))

    def _rendered(self, turns: Sequence[Turn], asks: bool = False, signs: Mapping[str, str] = {}) -> str:
        messages = Conversation(tuple(turns)).messages
        return str(self.tokenizer.apply_chat(messages, add_generation_prompt=asks, **self.options, **signs))

    def _prompt(self, turns: Sequence[Turn]) -> str:
        prompt, text = self._rendered(turns, asks=True), self._rendered(turns)
        if prompt != text:
            return prompt
        mark, sign = secrets.token_hex(8), secrets.token_hex(8)
        form = self._rendered([*turns, Turn("assistant", mark)], signs={chat.MARKS[0]: sign})
        written, found, _ = form.partition(mark)
        head = written.replace(sign, "")
        begun = len(head) - len(written.rpartition(sign)[2]) if sign in written else 0
        head = head[:begun] if begun >= len(text) else head  # what a model writes is not of its prompt
        return head.rstrip() if found and head.startswith(text) and head[len(text) :].strip() else text

    def _generated(self, text: str, turns: Sequence[Turn], asks: bool) -> list[tuple[int, int]]:
        """What `{% generation %}` marks. Nothing where the marks change the text."""
        if not re.search(r"{%-?\s*generation", self.tokenizer.chat_template):
            return []
        signs = [secrets.token_hex(8) for _ in chat.MARKS]
        form = self._rendered(turns, asks, dict(zip(chat.MARKS, signs, strict=True)))
        plain, spans, opened = "", [], 0
        for part in re.split(f"({'|'.join(signs)})", form):
            if part == signs[0]:
                opened = len(plain)
            elif part == signs[1]:
                spans.append((opened, len(plain)))
            else:
                plain += part
        return spans if plain == text else []

    def _places(self, text: str, turns: Sequence[Turn], asks: bool = False) -> list[list[tuple[int, int]]]:
        """Where the words of each turn stand in `text`: one place a turn, two of an answer behind its reasoning. Raises
        DataError where the template changes words or leaves them out, so that this cannot be told."""
        wanted, marked = pieces(turns)
        form = self._prompt(marked) if asks else self._rendered(marked)
        there = sorted((form.find(p.mark), p) for p in wanted if p.mark in form)
        for piece in wanted:
            if piece.mark not in form and piece.role != "system" and piece.last:
                raise DataError(f"the chat template changes or leaves out what the {piece.role} says{UNKNOWN}")
        around = re.split("|".join(re.escape(p.mark) for _, p in there), form) if there else [form]
        if len(around) != len(there) + 1:
            raise DataError(f"the chat template writes some words twice{UNKNOWN}")
        places: list[list[tuple[int, int]]] = [[] for _ in turns]
        if not text.startswith(around[0]):
            raise DataError("the chat template writes what stands before these words in another way; use another one")
        at = len(around[0])
        for (_, piece), after in zip(there, around[1:], strict=True):
            said = next((w for w in forms(piece.words) if text.startswith(w + after, at)), None)
            if said is None:
                known = any(text.startswith(w, at) for w in forms(piece.words))
                why = "writes the turns around these words in another way; use another template"
                why = why if known else f"changes or leaves out what the {piece.role} says{UNKNOWN}"
                raise DataError(f"the chat template {why}")
            places[piece.turn].append((at, at + len(said)))
            at += len(said) + len(after)
        if at != len(text):
            raise DataError("the chat template writes the end of these words in another way; use another template")
        return [group or [(0, 0)] for group in places]

    def _ending(self, after: str) -> int:
        """How much of the text behind an answer is its end: to the first special token, or what looks like one, with
        blanks before it."""
        for pattern in filter(None, (self._specials, MARKER.pattern)):
            if found := re.match(rf"\s*(?:{pattern})", after):
                return found.end()
        return 0

    @cached_property
    def _specials(self) -> str:
        """A pattern of the tokenizer's special tokens."""
        tokens = [self.tokenizer.token(i) for i in self.tokenizer.special_ids]
        return "|".join(re.escape(t) for t in sorted((t for t in tokens if t), key=len, reverse=True))
