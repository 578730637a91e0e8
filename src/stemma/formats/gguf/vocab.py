"""The tokenizer in a GGUF file's `tokenizer.ggml.*` keys.

Four models: `gpt2` is byte-level BPE with merges, cut into words by the rule that `pre` names; `llama` is SentencePiece
BPE, whose merges follow from the scores; `t5` is a SentencePiece unigram model; `bert` is WordPiece, with `▁` before
what begins a word instead of `##` before what goes on. What a file leaves out is as llama.cpp has it: `llama` begins a
text with bos, `gpt2` does so for the kinds in `BEGIN`, `t5` ends one with eos. `vocab_write` makes these keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from stemma.errors import CheckpointError, did_you_mean
from stemma.text import Specials, Tokenizer, legacy, ranks, spm
from stemma.text.specials import sentinel

if TYPE_CHECKING:
    import tokenizers

PREFIX = "tokenizer.ggml."
# our role: the file's word (the spelling of "seperator" is the format's)
ROLES = {
    "bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown", "mask": "mask", "cls": "cls", "sep": "seperator",
}  # fmt: skip
# the format's word for a kind of tokenizer: ours
KINDS = {"llama": "spm-bpe", "t5": "unigram", "bert": "wordpiece", "gpt2": "bpe"}
# ids where a file does not say
USUAL: dict[str, dict[str, int]] = {
    "spm-bpe": {"bos": 1, "eos": 2, "unk": 0},
    "unigram": {"eos": 1, "unk": 2, "pad": 0},
    "wordpiece": {"cls": 101, "sep": 102, "unk": 100, "pad": 0, "mask": 103},
    "bpe": {},
}
PADDING = "[PAD{}]"  # an unused id at the end, up to the number of embeddings

# Llama 3's pattern; Qwen's takes digits one by one; Tekken's is Mistral NeMo's.
LLAMA3, QWEN = ranks.LLAMA3, ranks.LLAMA3.replace("{1,3}", "")
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT2, DIGITS = "gpt2", "digits"  # GPT-2's own pattern, and the same after each digit stands alone
PRE = {
    # "default" and no word at all: files from before the key existed, most of them of GPT-2's line
    **dict.fromkeys(("default", "gpt-2", "gpt2", "phi-2", "roberta-bpe", "mpt", "olmo", "jais"), GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell"), DIGITS),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "lfm2", "smaug-bpe"), LLAMA3),
    **dict.fromkeys(("chatglm-bpe", "glm4"), LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2"), QWEN),
    "tekken": TEKKEN,
}
BEGIN = ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "tekken")  # bos first
WHOLE = (*BEGIN, "glm4")  # whole words before merges


@dataclass(frozen=True)
class _Keys:
    """The keys, checked."""

    data: Mapping[str, Any]

    def get(self, name: str, default: Any = None) -> Any:
        return self.data.get(PREFIX + name, default)

    def array(self, name: str, kind: type, length: int | None = None) -> list[Any] | None:
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or (value and not isinstance(value[0], kind)):
            raise CheckpointError(f"{PREFIX}{name} should be an array of {kind.__name__} values")
        if length is not None and len(value) != length:
            raise CheckpointError(f"{PREFIX}{name} should have {length} values, one a token, not {len(value)}")
        return value

    def id(self, name: str, size: int, default: int | None = None) -> int | None:
        value = self.get(f"{name}_token_id", default)
        if value is not None and not (isinstance(value, int) and 0 <= value < size):
            raise CheckpointError(f"{PREFIX}{name}_token_id is {value!r}, but there are {size} tokens")
        return value


@dataclass(frozen=True)
class Ids:
    """The bos, eos and pad ids of a file."""

    bos: int | None = None
    eos: int | tuple[int, ...] | None = None
    pad: int | None = None


def ids(metadata: Mapping[str, Any]) -> Ids:
    """The ids of a file. End of turn (`eot`) and end of message (`eom`) count as `eos`."""
    keys = _Keys(metadata)
    size = len(keys.array("tokens", str) or ()) or 1 << 31
    kind = KINDS.get(str(keys.get("model")), "")
    usual = USUAL.get(kind, {})
    ends = [keys.id("eos", size, usual.get("eos")), keys.id("eot", size), keys.id("eom", size)]
    eos = tuple(dict.fromkeys(i for i in ends if i is not None))
    return Ids(
        bos=None if kind == "wordpiece" else keys.id("bos", size, usual.get("bos")),
        eos=None if not eos else eos[0] if len(eos) == 1 else eos,
        pad=keys.id("padding", size, usual.get("pad")),
    )


def read(metadata: Mapping[str, Any]) -> Tokenizer | None:
    """The tokenizer, or None if the file has none. Raises CheckpointError for a kind that is not known."""
    keys = _Keys(metadata)
    model = keys.get("model")
    if model in (None, "none", "no_vocab"):
        return None
    if model not in KINDS:
        raise CheckpointError(
            f"the file's tokenizer is of kind {model!r}; known: gpt2 (byte-level BPE), llama (SentencePiece BPE), t5 "
            "(SentencePiece unigram), bert (WordPiece)"
        )
    tokens = keys.array("tokens", str)
    if not tokens:
        raise CheckpointError(f"the file names a tokenizer of kind {model!r} but has no {PREFIX}tokens")
    kinds = keys.array("token_type", int, len(tokens)) or [spm.NORMAL] * len(tokens)
    kind = KINDS[model]
    usual = {role: i for role, i in USUAL[kind].items() if i < len(tokens)}
    at = {role: keys.id(word, len(tokens), usual.get(role)) for role, word in ROLES.items()}
    if kind == "wordpiece":  # what begins a text is [CLS], by either name
        begins = keys.id("bos", len(tokens))
        at["cls"], at["bos"] = at["cls"] if begins is None else begins, None
    while kinds[-1] == spm.UNUSED and tokens[-1] == PADDING.format(len(tokens) - 1):
        tokens, kinds = tokens[:-1], kinds[:-1]
    specials = Specials(**{role: tokens[i] for role, i in at.items() if i is not None and i < len(tokens)})
    begin = kind == "spm-bpe" or keys.get("pre") in BEGIN
    bos, eos = bool(keys.get("add_bos_token", begin)), bool(keys.get("add_eos_token", kind == "unigram"))
    lower = False
    match kind:
        case "wordpiece":
            core = _wordpiece(tokens, kinds, specials)
            lower = bool(keys.get("normalizer.lowercase", True))
            accents = keys.get("normalizer.strip_accents")
            legacy.wordpiece(core, lower=lower, accents=None if accents is None else bool(accents))
            legacy.finish(core, "wordpiece", specials)
        case "unigram":
            core = _sentencepiece(keys, tokens, kinds, at["unk"] or 0, bpe=False)
            legacy.finish(core, "unigram" if eos and not bos else "spm-bpe", specials, 0, bos=bos, eos=eos)
            count = 0
            while core.token_to_id(sentinel(count)) is not None:
                count += 1
            specials = replace(specials, extra=count)
        case "spm-bpe":
            core = _sentencepiece(keys, tokens, kinds, at["unk"] or 0, bpe=True)
            legacy.finish(core, "spm-bpe", specials, bos=bos, eos=eos)
        case _:
            core = _byte_level(keys, tokens, kinds)
            legacy.finish(core, "spm-bpe", specials, bos=bos, eos=eos)
    template = metadata.get("tokenizer.chat_template")
    chat = template if isinstance(template, str) else None
    return Tokenizer(core, kind, specials, chat_template=chat, lowercase=lower)


def _wordpiece(tokens: list[str], kinds: list[int], specials: Specials) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer, models

    if specials.unk is None:
        raise CheckpointError(f"the file has a WordPiece tokenizer but no {PREFIX}unknown_token_id")

    def piece(token: str, kind: int) -> str:
        if kind != spm.NORMAL or (token.startswith("[") and token.endswith("]")):
            return token
        return token[1:] if token.startswith(spm.SPACE) else "##" + token

    vocab = {piece(t, k): i for i, (t, k) in enumerate(zip(tokens, kinds, strict=True))}
    return Tokenizer(models.WordPiece(vocab, unk_token=specials.unk, max_input_chars_per_word=100))


def _sentencepiece(keys: _Keys, tokens: list[str], kinds: list[int], unk: int, *, bpe: bool) -> tokenizers.Tokenizer:
    scores = keys.array("scores", float)
    if scores is None:
        raise CheckpointError(f"the file has a SentencePiece tokenizer but no {PREFIX}scores")
    if len(scores) < len(tokens):
        raise CheckpointError(f"{PREFIX}scores should have {len(tokens)} values, one a token, not {len(scores)}")
    charsmap = keys.array("precompiled_charsmap", int) or []
    model = spm.Model(
        pieces=list(zip(tokens, scores, kinds, strict=False)),
        bpe=bpe,
        unk=unk,
        charsmap=bytes(byte & 255 for byte in charsmap),
        prefix=bool(keys.get("add_space_prefix", True)),
        squeeze=bool(keys.get("remove_extra_whitespaces", False)),
    )
    return spm.convert(model)


def _byte_level(keys: _Keys, tokens: list[str], kinds: list[int]) -> tokenizers.Tokenizer:
    from tokenizers import AddedToken, Tokenizer, decoders, models

    lines = keys.array("merges", str)
    if lines is None:
        raise CheckpointError(f"the file has a byte-level tokenizer but no {PREFIX}merges")
    pre = str(keys.get("pre", "default"))
    if pre not in PRE:
        raise CheckpointError(
            f"{PREFIX}pre is {pre!r}, which is not known; known: {', '.join(PRE)}{did_you_mean(pre, PRE)}"
        )
    vocab = {token: i for i, token in enumerate(tokens)}
    try:
        out = Tokenizer(models.BPE(vocab, [_pair(line) for line in lines], ignore_merges=pre in WHOLE))
    except Exception as error:  # the library raises bare exceptions
        raise CheckpointError(f"{PREFIX}merges do not fit {PREFIX}tokens: {error}") from error
    out.pre_tokenizer = _words(PRE[pre])
    out.decoder = decoders.ByteLevel()
    for kind, special in ((spm.CONTROL, True), (spm.UNKNOWN, True), (spm.USER, False)):
        named = [
            AddedToken(t, special=special, normalized=False) for t, k in zip(tokens, kinds, strict=True) if k == kind
        ]
        (out.add_special_tokens if special else out.add_tokens)(named)
    return out


def _pair(line: str) -> tuple[str, str]:
    cut = line.find(" ", 1)
    if cut < 0:
        raise ValueError(f"{line!r} is not two pieces with a space between")
    return line[:cut], line[cut + 1 :]


def _words(rule: str) -> Any:
    """The pre-tokenizer."""
    from tokenizers import Regex, pre_tokenizers

    if rule == GPT2:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if rule == DIGITS:
        single = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([single, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    split = pre_tokenizers.Split(Regex(rule), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
