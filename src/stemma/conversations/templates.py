"""Conversations written by a declared template, and the writers by name."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from stemma.conversations.jinja import JinjaWriter
from stemma.conversations.shapes import Conversation, Turn
from stemma.conversations.texts import Builder, Text, Writer
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
    "gorilla-cli": published.GORILLA_CLI,
    "vigogne": published.VIGOGNE,
    "vigogne-chat-v2": published.VIGOGNE_CHAT_2,
    "vigogne-chat-v3": published.VIGOGNE_CHAT_3,
    "tulu": published.TULU,
    "llama-2-chat": published.LLAMA2,
    "llama-3": published.LLAMA3,
    "codellama-70b": published.CODELLAMA_70B,
    "chatml": published.CHATML,
    "stable-beluga": published.BELUGA,
    "stable-beluga-code": published.BELUGA_CODE,
    "flan": published.FLAN,
    "plain": published.PLAIN,
}


BEGIN, END = "<s>", "</s>"


def _forms(template: Turns | Instructions) -> dict[str, str]:
    """The texts of a template by the names of its fields."""
    return {f.name: v for f in fields(template) if isinstance(v := getattr(template, f.name), str) and f.name != "trim"}


def adapted(template: Turns | Instructions, tokenizer: Any) -> Turns | Instructions:
    """`template` with the tokens that begin and end a text of `tokenizer`, where it lacks LLaMA's."""
    forms: dict[str, Any] = _forms(template)
    for name, own in ((BEGIN, tokenizer.specials.bos or ""), (END, tokenizer.specials.eos)):
        if tokenizer.id(name) is None and own is not None:
            forms = {key: text.replace(name, own) for key, text in forms.items()}
    return replace(template, **forms)


def conditioned(template: Turns | Instructions, marker: str) -> Turns:
    """`template` with a marker of feedback, such as "a helpful answer", and a blank before every answer and where one
    is asked for. Raises UsageError for a template of instructions."""
    if not isinstance(template, Turns):
        raise UsageError("markers of feedback stand in templates of turns, and this one writes instructions")
    return replace(template, assistant=f"{marker} {template.assistant}", generation=f"{marker} {template.generation}")


class TurnsWriter(Writer):
    """By a declared template. `<s>` and `</s>` of LLaMA's tokenizer are the tokens that begin and end a text of
    `tokenizer`, where that has others. `feedback`: the marker that stands before answers, and the one that stands
    before the last answer of a conversation in place of it, where another answer was preferred."""

    def __init__(self, template: Turns | Instructions, tokenizer: Any = None, feedback: tuple[str, ...] = ()) -> None:
        own = template if tokenizer is None else adapted(template, tokenizer)
        self.template, self.disliked = own, own
        if feedback:
            self.template, self.disliked = (conditioned(own, marker) for marker in feedback)

    def tokens(self) -> tuple[str, ...]:
        forms = "".join(_forms(self.template).values())
        ends = tuple(name for name in (BEGIN, END) if name in forms)
        return (*ends, *(self.template.tokens if isinstance(self.template, Turns) else ()))

    def write(self, talk: Conversation) -> Text:
        made = Builder()
        if isinstance(self.template, Instructions):
            self._instruct(self.template, talk, made)
        else:
            end = self.disliked if talk.liked is False and isinstance(self.disliked, Turns) else self.template
            self._talk(self.template, talk.turns, made, end)
        last = made.spans[-1] if made.spans else (0, 0)
        ended = made.words and any(last[0] == begin and last[1] > end for begin, end in made.words)
        return made.made(not ended)

    def _talk(self, template: Turns, turns: Sequence[Turn], made: Builder, end: Turns | None = None) -> None:
        system = turns[0].content if turns[:1] and turns[0].role == "system" else template.default
        rest = turns[1:] if turns[:1] and turns[0].role == "system" else turns
        if not template.inside and (system or template.always or "{}" not in template.system):
            made.say(template.system, system) if "{}" in template.system else made.add(template.system)
        for i, turn in enumerate(rest):
            inside = i == 0 and template.inside and bool(system)
            words = turn.content.strip() if template.strip else turn.content
            if turn.role == "assistant":
                own = end if end is not None and i == len(rest) - 1 else template
                made.answer(own.assistant, words, own.generation)
                continue
            made.add(template.between if i else "")
            before, _, after = template.user.partition("{}")
            made.add(before)
            if inside:
                made.say(template.system, system)
            made.say("{}", turn.content.rstrip() if template.strip and inside else words)
            made.add(after)

    def _instruct(self, template: Instructions, talk: Conversation, made: Builder) -> None:
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
        made = Builder()
        if isinstance(self.template, Instructions):
            self._instruct(self.template, Conversation(tuple(turns)), made)
        else:
            self._talk(self.template, turns, made)
            made.add(self.template.generation)
        return made.made()


def jinja(template: Turns | Instructions, tokenizer: Any) -> str:
    """A declared template as Jinja, so that a tokenizer can carry it to other tools. It writes the beginning token of
    the tokenizer, where that begins every text with it, and else what `TurnsWriter` writes."""
    own = adapted(template, tokenizer)
    opens = tokenizer.bos_id is not None and tokenizer.encode("a", add_special=True)[:1] == [tokenizer.bos_id]
    bos = tokenizer.specials.bos or ""
    if isinstance(own, Instructions):
        first, body = own.bare or own.text, _instructions(own)
    else:
        first, body = (own.user if own.inside or "{}" in own.system else own.system), _rounds(own)
    return (_put(bos) if opens and not first.startswith(bos) else "") + body


def _quoted(text: str) -> str:
    """A text as Jinja writes it."""
    return "'" + json.dumps(text, ensure_ascii=False)[1:-1].replace('\\"', '"').replace("'", "\\'") + "'"


def _put(*parts: str) -> str:
    """Texts, and expressions (with a `$` in front), written one behind the other."""
    pieces = [part[1:] if part.startswith("$") else _quoted(part) for part in parts if part]
    return "{{- " + " + ".join(pieces) + " }}" if pieces else ""


def _rounds(own: Turns) -> str:
    """The Jinja of turns."""
    strip = ".strip()" if own.strip else ""
    words = f"$m['content']{strip}"
    (u, v), (a, b), (s, t) = (part.partition("{}")[::2] for part in (own.user, own.assistant, own.system))
    system = _put(s, "$system", t) if "{}" in own.system else _put(own.system)
    headed = "messages and messages[0]['role'] == 'system'"
    before = f"{{%- if system %}}{system}{{%- endif %}}" if "{}" in own.system and not own.always else system
    user = _put(words)
    if own.inside:
        inner = "$m['content'].rstrip()" if own.strip else words
        user = f"{{%- if loop.first and system %}}{system}{_put(inner)}{{%- else %}}{user}{{%- endif %}}"
    between = f"{{%- if not loop.first %}}{_put(own.between)}{{%- endif %}}" if own.between else ""
    return (
        f"{{%- set system = messages[0]['content'] if {headed} else {_quoted(own.default)} %}}"
        f"{{%- set rest = messages[1:] if {headed} else messages %}}"
        + ("" if own.inside else before)
        + "{%- for m in rest %}{%- if m['role'] == 'assistant' %}"
        + _put(a, words, b)
        + f"{{%- else %}}{between}{_put(u)}{user}{_put(v)}{{%- endif %}}{{%- endfor %}}"
        + f"{{%- if add_generation_prompt %}}{_put(own.generation)}{{%- endif %}}"
    )


def _instructions(own: Instructions) -> str:
    """The Jinja of one instruction and its answer."""
    before, _, after = (own.bare or own.text).partition("{instruction}")
    answer = own.answer.partition("{}")
    return (
        "{%- set rest = messages | rejectattr('role', 'equalto', 'system') | list %}{%- if rest | length > 2 %}"
        "{{- raise_exception('this template writes one instruction and its answer') }}{%- endif %}"
        "{%- for m in rest %}{%- if m['role'] == 'user' %}"
        + _put(before, "$m['content']", after.replace("{input}", ""))
        + "{%- else %}"
        + _put(answer[0], "$m['content']", answer[2])
        + "{%- endif %}{%- endfor %}"
    )


def writer(
    tokenizer: Any,
    template: str | Turns | Instructions | None = None,
    feedback: tuple[str, ...] = (),
    **options: Any,
) -> Writer:
    """The writer of a template: a name of `NAMES`, a declared value, or (None) the tokenizer's own. `feedback`: as in
    `TurnsWriter`. Raises UsageError for an unknown name, where the tokenizer has none, and for markers of feedback
    without a name."""
    if isinstance(template, Turns | Instructions):
        return TurnsWriter(template, tokenizer, feedback)
    if template is not None:
        if template not in NAMES:
            raise UsageError(
                f"no chat template is called {template!r}; known: {', '.join(NAMES)}{did_you_mean(template, NAMES)}"
            )
        return TurnsWriter(NAMES[template], tokenizer, feedback)
    if feedback:
        raise UsageError(f"markers of feedback need a template by name; name one of {', '.join(NAMES)}")
    own = getattr(tokenizer, "chat_template", None)
    if own is None:
        raise UsageError(f"this tokenizer has no chat template; name one of {', '.join(NAMES)}")
    if not options and (name := next((n for n, t in NAMES.items() if jinja(t, tokenizer) == own), None)):
        return TurnsWriter(NAMES[name], tokenizer)
    return JinjaWriter(tokenizer, **options)
