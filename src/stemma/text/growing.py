"""Tokens that a trained vocabulary gets at its end: special tokens by name, and runs of spaces."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from stemma.errors import UsageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPACE = "Ġ"  # as byte-level vocabularies write it
_RUN = re.compile(" {2,}")


def special(core: Tokenizer, names: Iterable[str]) -> Tokenizer:
    """A copy of `core` with the special tokens `names`, which take the next ids in this order."""
    from tokenizers import AddedToken

    copy = type(core).from_str(core.to_str())
    copy.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return copy


def runs(core: Tokenizer, longest: int) -> Tokenizer:
    """A copy of `core`, a byte-level BPE, in which every run of 2 to `longest` spaces is one token: those that it lacks
    take the next ids, the shortest first (Codex: 24 of them up to 25; Chen et al. 2021, arXiv:2107.03374, section 3.2).

    They come of merges behind all others, so that a word keeps the space in front of it, and all text without runs of
    spaces its ids: `\\n`, seven spaces, ` return`. Raises UsageError for another kind of tokenizer."""
    state = json.loads(core.to_str())
    model, vocab = state["model"], state["model"].get("vocab")
    if model.get("type") != "BPE" or '"ByteLevel"' not in json.dumps(state["decoder"]) or SPACE not in vocab:
        raise UsageError("runs of spaces can be tokens of a byte-level BPE (GPT-2's kind), and this tokenizer is none")
    if all(SPACE * n in vocab for n in range(2, longest + 1)):
        return core
    # tokens beside the model's vocabulary are counted behind it when a file is read: to keep their ids, they go into it
    vocab |= {token["content"]: token["id"] for token in state["added_tokens"]}
    for n in range(2, longest + 1):
        vocab.setdefault(SPACE * n, max(vocab.values()) + 1)
    listed: list[Any] = model["merges"]
    held = {tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in listed}
    pairs = [(SPACE * k, SPACE * (n - k)) for n in range(2, longest + 1) for k in range(1, n)]
    texts = bool(listed) and isinstance(listed[0], str)
    listed += [" ".join(pair) if texts else list(pair) for pair in pairs if pair not in held]
    return type(core).from_str(json.dumps(state, ensure_ascii=False))


def without_runs(texts: Iterable[str]) -> Iterable[str]:
    """The texts with one space in place of every run of them: a vocabulary that is trained on them learns no runs, so
    that all of those that it gets are new."""
    return (_RUN.sub(" ", text) for text in texts)
