"""Vocabularies of byte strings with ranks (tiktoken): the `tokenizer.model` of Llama 3, Mistral's tekken.json.

One line a token: its bytes in base64, a space, its rank, which is its id. Two neighbours join if the bytes of both
together have a rank, the lowest rank first. The special tokens are not in the file; they take the ids after it
(meta-llama/llama-models, models/llama3/tokenizer.py: 256 of them).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stemma.errors import CheckpointError
from stemma.text.specials import Specials

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_NAMED = (
    *("begin_of_text", "end_of_text", "reserved_special_token_0", "reserved_special_token_1"),
    *("finetune_right_pad_id", "step_id", "start_header_id", "end_header_id", "eom_id", "eot_id", "python_tag"),
)
SPECIALS = [f"<|{n}|>" for n in _NAMED] + [f"<|reserved_special_token_{k}|>" for k in range(2, 2 + 256 - len(_NAMED))]

# of files that do not list theirs (mistral-common, tokenizers/tekken.py)
TEKKEN = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]",
    "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]",
)  # fmt: skip


def letters() -> dict[int, str]:
    """GPT-2's alphabet: the character for each byte. Printable Latin-1 bytes stand for themselves, the others for the
    characters from U+0100 on."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in set(shown)]
    return {byte: chr(byte) for byte in shown} | {byte: chr(256 + k) for k, byte in enumerate(rest)}


def looks(raw: bytes) -> bool:
    """Whether a file begins like a list of ranks."""
    return re.match(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n", raw[:256]) is not None


def parse(raw: bytes, name: str) -> dict[bytes, int]:
    """The tokens and ranks in `raw`, the bytes of the file `name`. Raises CheckpointError naming the line."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(raw.splitlines(), 1):
        if not line:
            continue
        token, _, rank = line.partition(b" ")
        try:
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise CheckpointError(f"{name}:{number} should be a token in base64, a space and its rank") from None
    if sorted(ranks.values()) != list(range(len(ranks))) or len(ranks) < 256:
        raise CheckpointError(f"{name} should give the ranks 0 to {len(ranks) - 1} once each, and every byte one")
    return ranks


def tekken(held: Mapping[str, Any], name: str) -> tuple[Tokenizer, Specials]:
    """The tokenizer of a tekken.json, of which `held` is the content and `name` the path: special tokens first, then
    the ranks. Raises CheckpointError (mistral-common, tokenizers/tekken.py)."""
    config, vocab, listed = held.get("config"), held.get("vocab"), held.get("special_tokens")
    sizes = ("default_vocab_size", "default_num_special_tokens")
    try:
        assert isinstance(config, dict) and isinstance(vocab, list)
        size, count = (int(config[key]) for key in sizes)
        pattern = str(config["pattern"])
        tokens = [base64.b64decode(row["token_bytes"], validate=True) for row in vocab[: size - count]]
        named = [str(row["token_str"]) for row in listed] if listed is not None else list(TEKKEN)
    except (AssertionError, KeyError, TypeError, ValueError):
        raise CheckpointError(
            f"{name} should hold config (pattern, {', '.join(sizes)}) and vocab (token_bytes)"
        ) from None
    ranks = {token: rank for rank, token in enumerate(tokens)}
    if not 3 <= len(named) <= count < size or len(ranks) != size - count or len(ranks) < 256:
        raise CheckpointError(
            f"{name} should give {size - count:,} different tokens and at most {count:,} special ones"
        )
    specials = named + [f"<SPECIAL_{i}>" for i in range(len(named), count)]
    unk, bos, eos = specials[:3]
    pad = "<pad>" if "<pad>" in specials else None
    return convert(ranks, pattern, specials, True), Specials(bos=bos, eos=eos, unk=unk, pad=pad)


def llama3(ranks: dict[bytes, int]) -> tuple[Tokenizer, Specials]:
    """The tokenizer of Llama 3's file."""
    return convert(ranks, LLAMA3, SPECIALS, False), Specials(bos=SPECIALS[0], eos=SPECIALS[1])


def convert(ranks: dict[bytes, int], pattern: str, specials: Sequence[str], first: bool) -> Tokenizer:
    """The `tokenizers` object that gives the same ids. `specials` come before the ranks (`first`) or behind them; of
    those first the second begins a text, of the others the first."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

    shown = letters()

    def spell(token: bytes) -> str:
        return "".join(shown[byte] for byte in token)

    # every pair of tokens that merges into a third, by the rank of the third
    pairs = [
        (spell(token[:k]), spell(token[k:]))
        for token in sorted(ranks, key=ranks.__getitem__)
        for k in range(1, len(token))
        if token[:k] in ranks and token[k:] in ranks
    ]
    ahead = len(specials) if first else 0
    vocab = {name: i for i, name in enumerate(specials[:ahead])}
    vocab |= {spell(token): ahead + rank for token, rank in ranks.items()}
    out = Tokenizer(models.BPE(vocab, pairs, ignore_merges=True))
    cut = pre_tokenizers.Split(Regex(pattern), "isolated")
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    out.pre_tokenizer = pre_tokenizers.Sequence([cut, bytewise])
    out.decoder = decoders.ByteLevel()
    out.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in specials])
    start = specials[1 if first else 0]
    out.post_processor = processors.TemplateProcessing(
        f"{start} $A", f"{start} $A {start}:1 $B:1", [(start, out.token_to_id(start))]
    )
    return out


def dump(vocab: dict[str, int]) -> bytes:
    """The file of a byte-level vocabulary without its special tokens."""
    known = {letter: byte for byte, letter in letters().items()}
    lines = []
    for name, rank in sorted(vocab.items(), key=lambda item: item[1]):
        lines.append(base64.b64encode(bytes(known[c] for c in name)) + f" {rank}\n".encode())
    return b"".join(lines)
