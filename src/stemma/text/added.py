"""Files beside a vocabulary: its added tokens, and the options of tokenizer_config.json that change ids."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stemma import disk
from stemma.errors import CheckpointError

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

FILE = "added_tokens.json"
FLAGS = ("special", "lstrip", "rstrip", "single_word", "normalized")
# classes that take tokenizer.json as it is, whatever options stand beside it
PLAIN = ("PreTrainedTokenizer", "TokenizersBackend")
UNIGRAM = ("AlbertTokenizer", "DebertaV2Tokenizer", "XLNetTokenizer")  # with a class that folds case itself
BERT = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}


def listed(config: Mapping[str, Any]) -> set[str]:
    """The special tokens without a role that a tokenizer's config lists."""
    held = [config.get("additional_special_tokens"), config.get("extra_special_tokens")]
    names = [t for tokens in held if isinstance(tokens, list) for t in tokens]
    return {str(t.get("content")) if isinstance(t, Mapping) else str(t) for t in names}


def read(directory: Path, config: Mapping[str, Any], special: Collection[str]) -> dict[int, AddedToken]:
    """The added tokens by id: `added_tokens_decoder` of tokenizer_config.json, else added_tokens.json, whose tokens are
    special if they are in `special`. Raises CheckpointError for a damaged file."""
    from tokenizers import AddedToken

    if "added_tokens_decoder" in config:
        where, held = "added_tokens_decoder in tokenizer_config.json", config["added_tokens_decoder"]
        if not isinstance(held, Mapping) or not all(
            i.isdecimal() and isinstance(t, Mapping) and isinstance(t.get("content"), str) for i, t in held.items()
        ):
            raise CheckpointError(f"{directory}: {where} should give an object with 'content' for every id")
        return {int(i): AddedToken(t["content"], **{f: bool(t[f]) for f in FLAGS if f in t}) for i, t in held.items()}
    if not (directory / FILE).is_file():
        return {}
    held = disk.read_object(directory / FILE)
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in held.values()):
        raise CheckpointError(f"{directory / FILE} should give an id for every token")
    return {i: AddedToken(t, special=t in special, normalized=t not in special) for t, i in held.items()}


def check(tokens: Mapping[int, AddedToken], vocab: Mapping[str, int], where: Path) -> None:
    """Raises CheckpointError if an added token's id is another token's, or the token has another id."""
    names = {i: name for name, i in vocab.items()}
    for i, token in tokens.items():
        if names.get(i, token.content) != token.content:
            raise CheckpointError(f"{where}: the added token {token.content!r} has the id {i}, which is {names[i]!r}'s")
        if (other := vocab.get(token.content, i)) != i:
            raise CheckpointError(f"{where}: the added token {token.content!r} has the ids {i} and {other}")


def add(core: Tokenizer, tokens: Mapping[int, AddedToken], where: Path) -> None:
    """Add `tokens` by rising id. Tokens that are added already stay as they are. Raises CheckpointError where an id
    between the vocabulary and an added token belongs to none."""
    from tokenizers import AddedToken

    check(tokens, core.get_vocab(), where)
    known = core.get_added_tokens_decoder()
    spaced = '"Prepend"' in core.to_str()  # would put a space before the token's own name too
    for i, token in sorted(tokens.items()):
        if i in known:
            continue
        if spaced and token.normalized:
            flags = {flag: getattr(token, flag) for flag in FLAGS if flag != "normalized"}
            token = AddedToken(token.content, **flags, normalized=False)
        (core.add_special_tokens if token.special else core.add_tokens)([token])
        if (got := core.token_to_id(token.content)) != i:
            raise CheckpointError(
                f"{where}: the added token {token.content!r} has the id {i}, but id {got} is no token"
            )


def follow(core: Tokenizer, config: Mapping[str, Any]) -> Tokenizer:
    """`core`, the tokenizer of a tokenizer.json, with the options of tokenizer_config.json that its class applies to
    it: case and accents, and the space before a byte-level text. Raises CheckpointError for a value of a wrong type."""
    cls = str(config.get("tokenizer_class") or "").removesuffix("Fast")
    if cls in PLAIN:
        return core
    state = json.loads(core.to_str())
    before = json.dumps(state)
    rules = state.get("normalizer") or {}
    if rules.get("type") == "BertNormalizer":
        rules |= {ours: config[key] for key, ours in BERT.items() if key in config}
    elif rules.get("type") == "Sequence" and cls in UNIGRAM:
        _fold(rules["normalizers"], config)
    if isinstance(space := config.get("add_prefix_space"), bool) and cls != "LlamaTokenizer":
        for part in _parts(state.get("pre_tokenizer")):
            if part.get("type") == "ByteLevel":
                part["add_prefix_space"] = space
    if json.dumps(state) == before:
        return core
    try:
        return type(core).from_str(json.dumps(state, ensure_ascii=False))
    except Exception as error:  # the library raises bare exceptions
        raise CheckpointError(f"tokenizer_config.json does not fit tokenizer.json: {error}") from error


def _fold(steps: list[dict[str, Any]], config: Mapping[str, Any]) -> None:
    """Apply `keep_accents` and `do_lower_case` to a unigram tokenizer's normalizers, in place."""
    asked = [
        (config.get("do_lower_case"), [{"type": "Lowercase"}]),
        (
            None if (keep := config.get("keep_accents")) is None else not keep,
            [{"type": "NFKD"}, {"type": "StripAccents"}],
        ),
    ]
    for wanted, own in asked:
        held = [step for step in steps if step in own]
        if wanted is None or bool(wanted) == bool(held):
            continue
        steps[:] = [step for step in steps if step not in own]
        if wanted:  # before the model's own rules; accents go first
            at = next((i for i, s in enumerate(steps) if s["type"] in ("Lowercase", "Precompiled")), 0)
            steps[at:at] = own


def _parts(rule: Any) -> list[dict[str, Any]]:
    if not isinstance(rule, dict):
        return []
    return [part for inner in rule["pretokenizers"] for part in _parts(inner)] if "pretokenizers" in rule else [rule]
