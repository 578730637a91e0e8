"""From a tokenizer.json and the files beside it: the library's object, its kind, its special tokens by role."""

from __future__ import annotations

import base64
import contextlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stemma import disk
from stemma.errors import CheckpointError, DataError, ResourceError, StemmaError, brief
from stemma.text import ranks
from stemma.text.specials import ROLES, Specials, sentinel, spaced_sentinel

if TYPE_CHECKING:
    import tokenizers

MERGES = 2_000_000  # the most merges that are read; the largest published tokenizers have half a million
KNOWN = (" {2,}", "^ +| +$", "▁*[^▁]+|▁+", ranks.LLAMA3)  # patterns of ours, which end soon in every text
IDS = 10_000_000  # more than any vocabulary has
GROWTH = 1000  # times that a normalizer may make a text longer


def special_names(table: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens by role that a config or a map names, as text or as an object with `content`."""
    out = {}
    for role in ROLES:
        held = table.get(f"{role}_token")
        name = held.get("content") if isinstance(held, Mapping) else held
        if isinstance(name, str) and name:
            out[role] = name
    return out


@contextlib.contextmanager
def guarded(what: object) -> Iterator[None]:
    """Raise CheckpointError for what the tokenizers library raises of a tokenizer that it cannot build or run: bare
    exceptions, and panics, which are no Exception. `what` names the tokenizer."""
    try:
        yield
    except (StemmaError, MemoryError, OSError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        why = brief(" ".join(str(error).split()) or type(error).__name__)
        raise CheckpointError(f"{what} is not a tokenizer that works: {why}") from None


def foreign(state: Any) -> bool:
    """Whether a tokenizer.json has patterns beside those that are known to end, or a table of characters from a
    SentencePiece file, which may be damaged."""
    if isinstance(state, dict) and state.get("type") == "Precompiled":
        return True
    if isinstance(state, dict) and isinstance(pattern := state.get("Regex"), str):
        return pattern not in KNOWN
    inner = state.values() if isinstance(state, dict) else state if isinstance(state, list) else ()
    return any(foreign(item) for item in inner if isinstance(item, (dict, list)))


@contextlib.contextmanager
def panics(silent: bool) -> Iterator[None]:
    """Raise CheckpointError where the library panics, as for a pattern that backtracks without end, or raises a bare
    Exception, as where an unknown token is needed and missing. `silent`: drop what
    it prints then, by itself, past Python's streams."""
    try:
        with _stderr_dropped() if silent else contextlib.nullcontext():
            yield
    except BaseException as error:
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        why = " ".join(str(error).split())
        raise CheckpointError(f"the tokenizer cannot read this text: {why}; its files are damaged or unusual") from None


@contextlib.contextmanager
def of(silent: bool, *texts: str) -> Iterator[None]:
    """`panics`, and a DataError that names the character that is no text, where the library only says that there is
    one."""
    try:
        with panics(silent):
            yield
    except TypeError as error:
        for text in texts:
            if isinstance(text, str) and (bad := next((c for c in text if "\ud800" <= c <= "\udfff"), None)):
                raise DataError(f"the text has a character that is not text (U+{ord(bad):04X})") from error
        raise


@contextlib.contextmanager
def _stderr_dropped() -> Iterator[None]:
    try:
        kept = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


def check(core: tokenizers.Tokenizer, what: object) -> None:
    """Raises CheckpointError for a tokenizer without a vocabulary, and for a normalizer that multiplies text."""
    if not core.get_vocab_size():
        raise CheckpointError(f"{what} is a tokenizer without a vocabulary")
    if (growth := _growth(json.loads(core.to_str()).get("normalizer"))) > GROWTH:
        raise CheckpointError(
            f"the normalizer of {what} makes a text {growth:,} times longer; at most {GROWTH} is read"
        )


def _growth(normalizer: Any) -> int:
    """How many times longer a normalizer's replacements may make a text, at most."""
    if not isinstance(normalizer, dict):
        return 1
    if normalizer.get("type") == "Sequence":
        return math.prod(_growth(inner) for inner in normalizer.get("normalizers") or ())
    pattern, content = normalizer.get("pattern"), normalizer.get("content")
    if normalizer.get("type") != "Replace" or not isinstance(content, str):
        return 1
    length = len(pattern.get("String") or "x") if isinstance(pattern, dict) else 1
    return max(1, -(-len(content) // length))


def check_template(path: Path, processor: Any) -> None:
    """Raises CheckpointError for a template that names special tokens which it does not say: the library panics."""
    if not isinstance(processor, dict):
        return
    for inner in found if isinstance(found := processor.get("processors"), list) else ():
        check_template(path, inner)
    known = processor.get("special_tokens")
    for part in ("single", "pair"):
        for piece in pieces if isinstance(pieces := processor.get(part), list) else ():
            token = piece.get("SpecialToken") if isinstance(piece, dict) else None
            name = token.get("id") if isinstance(token, dict) else None
            if isinstance(name, str) and isinstance(known, dict) and name not in known:
                raise CheckpointError(f"{path}: the template of its post_processor has no ids for {brief(name)}")


def check_charsmap(what: object, table: bytes) -> None:
    """Raises CheckpointError for a SentencePiece map of characters whose trie is longer than the map: the library makes
    room for as much as its first four bytes say, and ends the process where there is not so much."""
    if len(table) < 4 or (told := int.from_bytes(table[:4], "little")) > len(table) - 4:
        told = 0 if len(table) < 4 else told
        raise CheckpointError(
            f"the map of characters of {what} is damaged: it has {len(table):,} bytes, and its trie {told:,}"
        )


def _check_charsmaps(path: Path, normalizer: Any) -> None:
    """`check_charsmap` of each in a tokenizer.json."""
    if not isinstance(normalizer, dict):
        return
    for inner in found if isinstance(found := normalizer.get("normalizers"), list) else ():
        _check_charsmaps(path, inner)
    if isinstance(table := normalizer.get("precompiled_charsmap"), str) and table:
        with contextlib.suppress(ValueError):  # what is no base64 the library refuses
            check_charsmap(path, base64.b64decode(table))


def parse(text: str, path: Path) -> tokenizers.Tokenizer:
    """The library's tokenizer of a tokenizer.json. Raises CheckpointError naming the file."""
    try:
        from tokenizers import Tokenizer as Core
    except ImportError as error:
        raise ResourceError("tokenizers cannot be imported: pip install tokenizers") from error
    state = disk.parse_object(path, text)
    if isinstance(model := state.get("model"), dict):
        check_merges(path, len(m) if isinstance(m := model.get("merges"), list) else 0)
        check_vocabulary(path, vocab if isinstance(vocab := model.get("vocab"), dict) else {})
    check_template(path, state.get("post_processor"))
    _check_charsmaps(path, state.get("normalizer"))
    if isinstance(listed := state.get("added_tokens"), list):
        check_ids(path, (token["id"] for token in listed if isinstance(token, dict) and "id" in token))
    try:
        with _stderr_dropped():  # a panic prints
            return Core.from_str(text)
    except BaseException as error:  # the library raises bare exceptions, and panics
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise CheckpointError(f"{path} is not a tokenizer that the tokenizers library can read: {error}") from error


def check_ids(path: Path, ids: Iterable[Any]) -> None:
    """Raises CheckpointError for an id that no vocabulary has: the library makes room for all ids below it."""
    for i in ids:
        if type(i) is not int or not 0 <= i < IDS:
            raise CheckpointError(f"{path} has the id {brief(i, 60)}; ids are whole numbers from 0 to {IDS:,}")


def check_vocabulary(path: Path, vocab: Mapping[str, Any]) -> None:
    """`check_ids`. Raises CheckpointError for two tokens of one id, too: the library keeps either."""
    check_ids(path, vocab.values())
    if len(set(vocab.values())) < len(vocab):
        seen: dict[int, str] = {}
        for token, i in vocab.items():
            if seen.setdefault(i, token) != token:
                raise CheckpointError(f"{path} gives the id {i} to {brief(seen[i])} and to {brief(token)}")


def check_merges(path: Path, count: int) -> None:
    """Raises CheckpointError for more merges than any tokenizer has."""
    if count > MERGES:
        raise CheckpointError(f"{path} has {count:,} merges; at most {MERGES:,} are read")


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
