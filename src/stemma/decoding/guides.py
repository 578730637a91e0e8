"""Texts of a given form: a JSON schema, a regular expression or a grammar says which tokens may come next (the library
llguidance, whose pages say what of each it reads).

The form is one of bytes, and tokens are known by their bytes, so it holds over their borders whatever the tokenizer.
A text may end where the form is whole, and ends by itself where nothing may follow."""

from __future__ import annotations

import functools
import json
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from stemma.errors import UsageError, brief
from stemma.errors import require as needs
from stemma.nn.model import Model

SPACE = r"[ \t\n\r]{1,32}"  # between the parts of JSON: without an end a model may write nothing else
SPECIAL = b"\xff"  # begins the name of a token that stands for no text


@dataclass(frozen=True)
class Guide:
    """The form of a text. `json_schema`, `regex` and `grammar` make one."""

    kind: Literal["json", "regex", "lark"]
    text: str


def json_schema(schema: Mapping[str, Any] | str | bool) -> Guide:
    """JSON that validates against a schema (a mapping, or its text); `{}` is any JSON, `{"type": "object"}` any object.
    Raises UsageError for what is no JSON."""
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"a guide's JSON schema is no JSON: {error}") from None
    if schema is True:
        schema = {}
    if not isinstance(schema, Mapping):
        raise UsageError(f"a guide's JSON schema must be an object, not {brief(schema, 80)}")
    if not isinstance(schema.get("x-guidance", {}), Mapping):
        raise UsageError(
            f"x-guidance of a guide's JSON schema must be an object, not {brief(schema['x-guidance'], 80)}"
        )
    try:
        return Guide("json", json.dumps(schema))  # in its own order, in which properties are written
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"a guide's JSON schema is no JSON: {error}") from None


def several(schema: Mapping[str, Any], between: str, ending: str) -> Guide:
    """JSON that validates against a schema, once or more; `between` them and behind the last (`ending`) stand parts of
    a grammar."""
    whole = {**schema, "x-guidance": {"whitespace_pattern": SPACE}}
    return Guide("lark", f"start: one ({between} one)* {ending}\none: %json {json.dumps(whole)}")


def regex(pattern: str) -> Guide:
    """A text that matches a regular expression as a whole (Rust's syntax, without looking around)."""
    return Guide("regex", pattern)


def grammar(lark: str) -> Guide:
    """A text of a context-free grammar in llguidance's form of Lark; it begins with the rule `start`."""
    return Guide("lark", lark)


class Matcher:
    """A text that is being written, and its guide. Make one with `matcher`."""

    def __init__(self, inner: Any, vocab: int) -> None:
        self.inner, self.vocab = inner, vocab

    def copy(self) -> Matcher:
        return Matcher(self.inner.deep_copy(), self.vocab)

    def allowed(self, ends: tuple[int, ...]) -> Tensor:
        """Which tokens (V) may come next; `ends` are those that end the text."""
        bits = np.frombuffer(self.inner.compute_bitmask(), np.uint8)
        found = torch.from_numpy(np.unpackbits(bits, count=self.vocab, bitorder="little")).bool()
        if ends:
            found[list(ends)] = bool(self.inner.is_accepting())
        return found

    def take(self, token: int) -> bool:
        """Go on by a token that is allowed and no end. Returns whether the text is whole and nothing may follow."""
        self.inner.consume_token(token)
        return bool(self.inner.is_stopped()) and not self.inner.is_error()

    def dead_end(self, written: str | None) -> UsageError:
        """Of a text that cannot go on."""
        error = self.inner.get_error()
        why = f": {error}" if error and not error.startswith("panic") else ""  # such as a limit of the library
        after = f" after {written[-40:]!r}" if written else ""
        return UsageError(
            f"the guide allows no token{after}: this model's tokenizer cannot write what must follow, or other rules "
            f"of the request forbid it{why}"
        )


_TOKENIZERS: weakref.WeakKeyDictionary[Any, dict[int, tuple[Any, bool]]] = weakref.WeakKeyDictionary()


def matcher(model: Model, guide: Guide) -> Matcher:
    """A guide for texts of a model. Raises UsageError for a guide that cannot be followed, ResourceError without the
    library."""
    needs("llguidance", "a guide", "'stemma-lm[guide]'")
    if model.tokenizer is None:
        raise UsageError("a guide needs a tokenizer, and this model came without one")
    import llguidance

    known, vocab = _TOKENIZERS.setdefault(model.tokenizer, {}), model.dims.vocab
    if vocab not in known:
        found = _Known(model.tokenizer, vocab)
        known[vocab] = llguidance.LLTokenizer(llguidance.TokenizerWrapper(found)), found.writes_all
    tokenizer, writes_all = known[vocab]
    limits = llguidance.LLParserLimits(verbose_errors=False)
    inner = llguidance.LLMatcher(tokenizer, _compiled(guide, writes_all), log_level=0, limits=limits)
    if inner.is_error():
        names = {"json": "JSON schema", "regex": "regular expression", "lark": "grammar"}
        raise UsageError(f"the guide's {names[guide.kind]} cannot be followed: {inner.get_error()}")
    return Matcher(inner, vocab)


@functools.lru_cache(maxsize=64)
def _compiled(guide: Guide, forces: bool) -> str:
    """The library's form of a guide. `forces`: bytes that must follow come as the tokens that the tokenizer makes of
    them; else as any tokens."""
    from llguidance import LLMatcher

    if guide.kind == "json":
        schema = json.loads(guide.text)
        schema["x-guidance"] = {"whitespace_pattern": SPACE, **schema.get("x-guidance", {})}
        if forces:
            return LLMatcher.grammar_from_json_schema(json.dumps(schema))
        lark = f"start: %json {json.dumps(schema)}"
    elif guide.kind == "regex":
        lark = json.loads(LLMatcher.grammar_from_regex(guide.text))["grammars"][0]["lark_grammar"]
    else:
        lark = guide.text
    return LLMatcher.grammar_from_lark(lark if forces else '%llguidance {"no_forcing": true}\n' + lark)


class _Known:
    """A tokenizer as llguidance asks for one. Its end is a token of its own, behind all others: which tokens end a text
    is a matter of the request."""

    def __init__(self, tokenizer: Any, vocab: int) -> None:
        texts = tokenizer.token_bytes[:vocab]
        names = [SPECIAL + (tokenizer.token(i) or str(i)).encode() for i in range(len(texts))]
        self.tokens = [name if text is None else text for text, name in zip(texts, names, strict=True)]
        self.tokens += [SPECIAL + f"<{i}>".encode() for i in range(len(texts), vocab)]
        self.special_token_ids = [i for i, text in enumerate(texts) if text is None]
        self.special_token_ids += range(len(texts), vocab + 1)
        self.tokens.append(SPECIAL + b"<end>")
        self.eos_token_id, self.bos_token_id = vocab, None
        self.encode = tokenizer.encode_continuation
        self.ids = {text: i for i, text in enumerate(texts) if text}
        self.longest = max(map(len, self.ids), default=0)
        self.writes_all = all(bytes([byte]) in self.ids for byte in range(256))

    def __call__(self, text: str) -> list[int]:
        """The ids of a part of a text: the tokenizer's, or, where these write something else (a space more), the
        longest token at each place."""
        raw, at = text.encode(), 0
        ids: list[int] = self.encode(text)
        if b"".join(self.tokens[i] for i in ids if i < self.eos_token_id) == raw:
            return ids
        ids = []
        while at < len(raw):
            n = next(n for n in range(self.longest, 0, -1) if raw[at : at + n] in self.ids)
            ids.append(self.ids[raw[at : at + n]])
            at += n
        return ids
