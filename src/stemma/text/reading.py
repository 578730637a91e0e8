"""From a tokenizer.json and the files beside it: the library's object, its kind, its special tokens by role."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stemma import disk
from stemma.errors import CheckpointError, ResourceError
from stemma.text.specials import ROLES, Specials, sentinel, spaced_sentinel

if TYPE_CHECKING:
    import tokenizers


def special_names(table: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens by role that a config or a map names, as text or as an object with `content`."""
    out = {}
    for role in ROLES:
        held = table.get(f"{role}_token")
        name = held.get("content") if isinstance(held, Mapping) else held
        if isinstance(name, str) and name:
            out[role] = name
    return out


def parse(text: str, path: Path) -> tokenizers.Tokenizer:
    """The library's tokenizer of a tokenizer.json. Raises CheckpointError naming the file."""
    try:
        from tokenizers import Tokenizer as Core
    except ImportError as error:
        raise ResourceError("tokenizers cannot be imported: pip install tokenizers") from error
    disk.parse_object(path, text)
    try:
        return Core.from_str(text)
    except Exception as error:  # the library raises bare exceptions
        raise CheckpointError(f"{path} is not a tokenizer that the tokenizers library can read: {error}") from error


def resolve_specials(core: tokenizers.Tokenizer, named: Mapping[str, str], model: Mapping[str, Any]) -> Specials:
    """The special tokens: by name where named, then by id from the model's config, then by the usual names."""
    chosen: dict[str, Any] = {role: name for role, name in named.items() if core.token_to_id(name) is not None}
    for role in ROLES:
        held = model.get(f"{role}_token_id")
        first = held[0] if isinstance(held, list) and held else held
        if role not in chosen and isinstance(first, int) and not isinstance(first, bool) and first >= 0:
            name = core.id_to_token(first)
            if name is not None:
                chosen[role] = name
    if not chosen:
        special = {t.content for t in core.get_added_tokens_decoder().values() if t.special}
        usual = {
            "bos": ("<s>", "<|begin_of_text|>", "<|endoftext|>"),
            "eos": ("</s>", "<|end_of_text|>", "<|endoftext|>"),
            "pad": ("[PAD]", "<pad>"),
            "unk": ("[UNK]", "<unk>"),
            "mask": ("[MASK]", "<mask>"),
            "cls": ("[CLS]",),
            "sep": ("[SEP]",),
        }
        for role, names in usual.items():
            if (name := next((n for n in names if n in special), None)) is not None:
                chosen[role] = name
    roles: dict[str, Any] = dict(chosen)
    return Specials(**roles, extra=count_sentinels(core))


def count_sentinels(core: tokenizers.Tokenizer) -> int:
    """How many sentinels there are."""
    count = 0
    while sentinel_name(core, count) is not None:
        count += 1
    return count


def sentinel_name(core: tokenizers.Tokenizer, k: int) -> str | None:
    """The token that is the `k`-th sentinel, in T5's spelling or mT5's; None if there is none."""
    return next((n for n in (sentinel(k), spaced_sentinel(k)) if core.token_to_id(n) is not None), None)


def kind_of(state: Mapping[str, Any]) -> str:
    """The kind (`stemma.text.kinds`) of a tokenizer.json; "other" for none of them."""
    model, around = state["model"], json.dumps([state.get("pre_tokenizer"), state.get("decoder")])
    name = model.get("type")
    if name == "WordPiece":
        return "wordpiece"
    if name == "Unigram":
        return "unigram"
    if name == "BPE":
        if model.get("end_of_word_suffix"):
            return "gpt-bpe"
        return "bpe" if '"ByteLevel"' in around else "spm-bpe"
    return "other"
