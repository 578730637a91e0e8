"""Calls of tools in what a model writes, in the forms that published models write them, as they come."""

from __future__ import annotations

import ast
import json
import re
import secrets
import string
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from stemma.conversations import TurnsWriter, Writer, apis
from stemma.conversations.jinja import JinjaWriter
from stemma.conversations.templates import adapted
from stemma.families import templates

ARGUMENTS = ("arguments", "parameters")
BETWEEN = " \t\r\n[],;"  # what stands between two calls


@dataclass(frozen=True)
class Form:
    """How a model writes calls. `mark`: the text, or the token, before them; `closing`: what ends one; `bare`: how a
    text begins that is calls without a mark; `key`: of the arguments; `opening`: what is put before a call that has to
    come; `between`, `ending`: what stands between two calls and behind the last, where one answer may have several;
    `length`: of an identifier."""

    mark: str
    closing: str = ""
    bare: str = ""
    key: str = "arguments"
    opening: str = ""
    between: str = ""
    ending: str = ""
    length: int = 24


HERMES = Form(  # Nous Research's Hermes 2 Pro; Qwen 2.5 and 3
    "<tool_call>", "</tool_call>", opening="<tool_call>\n", between="\n</tool_call>\n<tool_call>\n",
    ending="\n</tool_call>",
)  # fmt: skip
LLAMA = Form("<|python_tag|>", bare="{", key="parameters")  # Llama 3.1 and later
# identifiers of 9 letters, by its own templates
MISTRAL = Form("[TOOL_CALLS]", bare="[{", opening="[TOOL_CALLS] [", between=", ", ending="]", length=9)
GORILLA = Form("")  # Patil et al. 2023: `<<<api_call>>>: f(x=1)` in a text, known when it is whole


def form_of(write: Writer, tokenizer: Any) -> Form | None:
    """The form of the calls of a model by its chat template; None where the template has no place for tools."""
    if isinstance(write, TurnsWriter):
        return GORILLA if write.template == adapted(templates.GORILLA, tokenizer) else None
    text = tokenizer.chat_template if isinstance(write, JinjaWriter) else ""
    if not re.search(r"\btools\b", text):
        return None
    if HERMES.mark in text:
        return HERMES
    if MISTRAL.mark in text:
        return MISTRAL
    return LLAMA if LLAMA.mark in text or '"parameters"' in text else None


@dataclass(frozen=True)
class Words:
    """Words of a model that are no call."""

    text: str


@dataclass(frozen=True)
class Call:
    """A call begins, or (without a name) its arguments go on."""

    index: int
    arguments: str
    id: str | None = None
    name: str | None = None


Part = Words | Call


class Reader:
    """Divides what a model writes into words and calls of the tools `names`. What names none of them stays words.
    `begun`: a call is forced: the text begins inside of one and holds no words; `most`: calls that are wanted, 0: any
    number."""

    def __init__(self, form: Form, names: Collection[str], begun: bool = False, most: int = 0) -> None:
        self.form, self.names, self.most = form, names, most
        self.begun, self.inside, self.count = begun, begun, 0
        self.held, self.lead, self.said = "", "", ""  # not yet known what; since the mark; words
        self.object: Object | None = None

    @property
    def full(self) -> bool:
        """Whether all calls that are wanted are there."""
        return bool(self.most) and self.count >= self.most and self.object is None

    def take(self, text: str, last: bool = False, marked: bool = False) -> list[Part]:
        """More of the text. `last`: no more comes; `marked`: the token of the mark, which has no text, comes first."""
        if self.form is GORILLA:
            self.held += text
            return self._gorilla() if last else []
        if marked and not self.inside:
            self.inside = True
        self.held += text
        found: list[Part] = []
        while self.held and not self.full:
            before = len(self.held), self.inside, self.object
            found += self._inside(last) if self.inside else self._outside(last)
            if before == (len(self.held), self.inside, self.object):
                break
        if last and self.object is not None:
            found += self._not_a_call() if self.object.index is None else []
            self.object = None
        return found

    def _outside(self, last: bool) -> list[Part]:
        """Words up to the mark, or up to what may be its beginning."""
        bare = self.form.bare
        start = self.held.lstrip()
        if bare and not self.said and start and (start.startswith(bare) or bare.startswith(start)) and not last:
            self.inside = start.startswith(bare)
            return []
        at = self.held.find(self.form.mark)
        if at >= 0:
            words, self.held = self.held[:at].rstrip(), self.held[at + len(self.form.mark) :]
            self.inside, self.lead = True, self.form.mark
            return self._words(words)
        kept = 0 if last else _overlap(self.held, self.form.mark)
        blank = len(self.held) - len(self.held[: len(self.held) - kept].rstrip()) - kept
        kept += 0 if last else blank  # before a mark blanks are no words
        words, self.held = self.held[: len(self.held) - kept], self.held[len(self.held) - kept :]
        return self._words(words)

    def _inside(self, last: bool) -> list[Part]:
        """The next call, or what stands between two."""
        if self.object is None:
            for skipped in (self.form.mark, self.form.closing):
                if skipped and self.held.startswith(skipped):
                    self.lead += skipped
                    self.held = self.held[len(skipped) :]
                    return []
                if skipped and skipped.startswith(self.held) and not last:
                    return []
            first, rest = self.held[0], self.held[1:]
            if first in BETWEEN:
                self.lead, self.held = self.lead + first, rest
                return []
            if first != "{":
                self.inside = False
                words, self.lead = ("" if self.count else self.lead), ""
                return self._words(words)
            self.object = Object()
        return self._object()

    def _object(self) -> list[Part]:
        own, found = self.object, list[Part]()
        assert own is not None
        for i, letter in enumerate(self.held):
            own.take(letter)
            if own.index is None and own.name is not None and own.name not in self.names:
                self.held = self.held[i + 1 :]
                return self._not_a_call()
            if own.done:
                self.held = self.held[i + 1 :]
                break
        else:
            self.held = ""
        if own.name is None:
            return self._not_a_call() if own.done else []
        if own.index is None:
            own.index, self.count = self.count, self.count + 1
            found.append(Call(own.index, "", identifier(self.form), own.name))
        if own.fresh:
            found.append(Call(own.index, own.fresh))
            own.fresh = ""
        if own.done:
            if not own.given:
                found.append(Call(own.index, "{}"))
            self.object, self.lead = None, ""
        return found

    def _not_a_call(self) -> list[Part]:
        assert self.object is not None
        words = self.lead + self.object.raw
        self.object, self.inside, self.lead = None, False, ""
        return self._words(words)

    def _words(self, words: str) -> list[Part]:
        if self.begun:  # what was cut before it was a call
            return []
        self.said += words
        return [Words(words)] if words else []

    def _gorilla(self) -> list[Part]:
        text = apis.answer_fields(self.held).get("api_call") or self.held.strip().removeprefix("<<function>>")
        called = written_call(text)
        if called is None or called[0] not in self.names:
            return self._words(self.held)
        self.count = 1
        arguments = json.dumps(called[1], ensure_ascii=False)
        return [Call(0, "", identifier(self.form), called[0]), Call(0, arguments)]


def _overlap(text: str, mark: str) -> int:
    """How many characters at the end of `text` may begin `mark`."""
    return next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:n])), 0)


def identifier(form: Form) -> str:
    """Of a call: letters and digits alone where a template wants few of them."""
    letters = "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(form.length))
    return letters if form.length < 24 else f"call_{letters}"


def written_call(text: str) -> tuple[str, dict[str, Any]] | None:
    """The name and the arguments of a call as Python writes it; None for what is none. Nothing is run."""
    try:
        held = ast.parse(text.strip(), mode="eval").body
        if not isinstance(held, ast.Call):
            return None
        plain = [ast.literal_eval(one) for one in held.args]
        named = {one.arg: ast.literal_eval(one.value) for one in held.keywords if one.arg}
        json.dumps([plain, named], allow_nan=False)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None
    return ast.unparse(held.func), named | ({"args": plain} if plain else {})


class Object:
    """A JSON object that calls a tool, letter by letter. `fresh`: letters of its arguments that are new."""

    def __init__(self) -> None:
        self.raw = self.fresh = ""
        self.name: str | None = None
        self.index: int | None = None
        self.done = self.given = False
        self._depth, self._text, self._escaped = 0, False, False
        self._key, self._value, self._part = "", False, ""

    def take(self, letter: str) -> None:
        """One more letter."""
        self.raw += letter
        arguments = self._value and self._key in ARGUMENTS
        outer = self._depth == 1
        if self._text:
            self._part += letter
            if self._escaped or letter == "\\":
                self._escaped = not self._escaped
            elif letter == '"':
                self._text = False
                if outer:
                    self._said(arguments)
            if arguments and not outer:
                self.fresh += letter
            return
        if letter == '"':
            self._text, self._part = True, letter
        elif letter in "{[":
            self._depth += 1
        elif letter in "}]":
            self._depth -= 1
            self.done = self._depth == 0
        elif outer and letter in ":,":
            self._value = letter == ":"
        ends = outer and (letter == "," or self.done)
        if arguments and not ends and not (outer and (letter.isspace() or letter == '"')):
            self.given, self.fresh = True, self.fresh + letter

    def _said(self, arguments: bool) -> None:
        """A string at the first level is whole."""
        try:
            said = str(json.loads(self._part))
        except ValueError:
            return
        if not self._value:
            self._key = said
        elif self._key == "name":
            self.name = said
        elif arguments:  # some models write them as a text
            self.given, self.fresh = True, self.fresh + said
