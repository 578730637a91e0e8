"""A tokenizer as a GGUF file's `tokenizer.*` keys: the way back of `vocab`, whose words and rules it uses.

llama.cpp applies no normalisation (NFC) before a byte-level vocabulary; everything else is checked: the keys are read
again, and what comes out must give the same ids on a set of texts.
"""

from __future__ import annotations

import json
import unicodedata
import warnings
from typing import Any

from stemma.errors import CheckpointError, UsageError
from stemma.formats.gguf import vocab
from stemma.formats.gguf.vocab import DIGITS, GPT2, LLAMA3, PADDING, PRE, PREFIX, QWEN, ROLES, TEKKEN, WHOLE
from stemma.text import Tokenizer, spm

# the word to write for each rule of cutting
PREFERRED = {GPT2: "gpt-2", DIGITS: "smollm", LLAMA3: "llama-bpe", QWEN: "qwen2", TEKKEN: "tekken"}


def write(tokenizer: Tokenizer, size: int) -> dict[str, Any]:
    """The keys of a tokenizer for a model of `size` embeddings; unused ids get placeholders. Raises UsageError if
    llama.cpp has no tokenizer that gives the same ids."""
    match tokenizer.kind:
        case "spm-bpe" | "unigram":
            keys = _sentencepiece(tokenizer)
        case "bpe":
            keys = _byte_level(tokenizer)
        case "wordpiece":
            keys = _wordpiece(tokenizer)
        case kind:
            raise UsageError(f"GGUF has no tokenizer of kind {kind!r}{WITHOUT}")
    for name in {"tokens", "token_type", "scores"} & set(keys):  # an added token without a row cannot be read there
        keys[name] = keys[name][:size]
    count = len(keys["tokens"])
    rest = range(count, size)
    keys["tokens"] = keys["tokens"] + [PADDING.format(i) for i in rest]
    keys["token_type"] = keys["token_type"] + [spm.UNUSED for _ in rest]
    if "scores" in keys:
        keys["scores"] = keys["scores"] + [-10_000.0 for _ in rest]
    out = {PREFIX + name: value for name, value in keys.items()}
    for role, word in ROLES.items():
        if (i := getattr(tokenizer, f"{role}_id")) is not None and i < size:
            out[f"{PREFIX}{word}_token_id"] = i
    if tokenizer.chat_template is not None:
        out["tokenizer.chat_template"] = tokenizer.chat_template
    _check(tokenizer, out)
    return out


WITHOUT = "; set model.tokenizer = None to save the weights alone"


def _check(tokenizer: Tokenizer, keys: dict[str, Any]) -> None:
    try:
        again = vocab.read({k: list(v) if isinstance(v, bytes) else v for k, v in keys.items()})
    except CheckpointError as error:
        raise UsageError(f"this tokenizer cannot be expressed in GGUF: {error}{WITHOUT}") from None
    assert again is not None
    for probe in spm.probes(tokenizer._core):
        text = unicodedata.normalize("NFC", probe)
        if again.encode(text) != tokenizer.encode(text):
            raise UsageError(f"no tokenizer of GGUF gives the same ids as this one (tried with {text!r}){WITHOUT}")


def _around(tokenizer: Tokenizer) -> dict[str, bool]:
    """Whether bos and eos are put around a text. Raises UsageError if anything else is."""
    found, b, e = tokenizer.encode(""), tokenizer.bos_id, tokenizer.eos_id
    for bos, eos in ((False, False), (True, False), (False, True), (True, True)):
        want = ([b] if bos else []) + ([e] if eos else [])
        if found == want and None not in want:
            return {"add_bos_token": bos, "add_eos_token": eos}
    raise UsageError(f"GGUF cannot express what this tokenizer puts around a text ({tokenizer.tokens(found)}){WITHOUT}")


def _sentencepiece(tokenizer: Tokenizer) -> dict[str, Any]:
    model = spm.describe(tokenizer._core, tokenizer.specials)
    if not model.bpe and any(kind == spm.BYTE for _, _, kind in model.pieces):
        warnings.warn(
            "this unigram tokenizer spells unknown characters in bytes; llama.cpp reads each as unknown", stacklevel=2
        )
    out: dict[str, Any] = {
        "model": "llama" if model.bpe else "t5",
        "pre": "default",
        "tokens": [text for text, _, _ in model.pieces],
        "scores": [float(score) for _, score, _ in model.pieces],
        "token_type": [kind for _, _, kind in model.pieces],
        "add_space_prefix": model.prefix,
        "remove_extra_whitespaces": model.squeeze,
    }
    if model.charsmap:
        out["precompiled_charsmap"] = model.charsmap
    return out | _around(tokenizer)


def _names(state: dict[str, Any]) -> tuple[list[str], list[int]]:
    """Every token by id, and its type."""
    names = {i: name for name, i in state["model"]["vocab"].items()}
    special = {t["id"]: t for t in state["added_tokens"]}
    names |= {i: t["content"] for i, t in special.items()}
    tokens = [names.get(i, PADDING.format(i)) for i in range(max(names) + 1)]

    def kind(i: int) -> int:
        if i in special:
            return spm.CONTROL if special[i]["special"] else spm.USER
        return spm.NORMAL if i in names else spm.UNUSED

    return tokens, [kind(i) for i in range(len(tokens))]


def _byte_level(tokenizer: Tokenizer) -> dict[str, Any]:
    state = json.loads(tokenizer._core.to_str())
    tokens, kinds = _names(state)
    merges = [m if isinstance(m, str) else " ".join(m) for m in state["model"]["merges"]]
    if not merges:
        raise UsageError(f"this tokenizer has no merges, and GGUF has no byte-level tokenizer without them{WITHOUT}")
    whole = bool(state["model"].get("ignore_merges"))
    words = [PREFERRED[rule] for rule in PREFERRED if _cut(vocab._words(rule)) == _plain(state["pre_tokenizer"])]
    words += [w for w, rule in PRE.items() if words and rule == PRE[words[0]] and w != "default"]
    name = next((w for w in words if (w in WHOLE) == whole), None)
    if name is None or (state["normalizer"] or {}).get("type", "NFC") != "NFC":
        raise UsageError(
            "llama.cpp has no name for how this tokenizer cuts words; known are "
            f"{', '.join(PREFERRED.values())}{WITHOUT}"
        )
    out = {"model": "gpt2", "pre": name, "tokens": tokens, "token_type": kinds, "merges": merges}
    return out | _around(tokenizer)


def _cut(pre: Any) -> Any:
    from tokenizers import Tokenizer as Core
    from tokenizers import models

    core = Core(models.BPE())
    core.pre_tokenizer = pre
    return _plain(json.loads(core.to_str())["pre_tokenizer"])


def _plain(value: Any) -> Any:
    """A tokenizer.json value without what changes no ids."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if k != "trim_offsets"}
    return [_plain(v) for v in value] if isinstance(value, list) else value


def _wordpiece(tokenizer: Tokenizer) -> dict[str, Any]:
    state = json.loads(tokenizer._core.to_str())
    tokens, kinds = _names(state)
    rules = state["normalizer"] or {}
    if rules.get("type") != "BertNormalizer" or state["model"].get("continuing_subword_prefix", "##") != "##":
        raise UsageError(f"GGUF knows BERT's own WordPiece only, and this tokenizer differs from it{WITHOUT}")

    def shown(token: str, kind: int) -> str:
        if kind != spm.NORMAL:
            return token
        return token[2:] if token.startswith("##") and len(token) > 2 else spm.SPACE + token

    out = {
        "model": "bert",
        "pre": "default",
        "tokens": [shown(t, k) for t, k in zip(tokens, kinds, strict=True)],
        "token_type": kinds,
        "normalizer.lowercase": bool(rules.get("lowercase")),
        "bos_token_id": tokenizer.cls_id,
    }
    if rules.get("strip_accents") is not None:
        out["normalizer.strip_accents"] = rules["strip_accents"]
    return {k: v for k, v in out.items() if v is not None}
