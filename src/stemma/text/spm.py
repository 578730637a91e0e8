"""SentencePiece models: read the file, express it as a `tokenizers` object, train new ones.

The model file is a protocol buffer; the few fields that matter are read here, so that no protobuf package is needed.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stemma.errors import CheckpointError, DataError, UsageError
from stemma.text.specials import Specials

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE = "▁"
LIMIT = {"unigram": 8_000_000, "spm-bpe": 64_000_000}  # characters trained on: what takes about half a minute
FLOOR = -1e4  # score of a byte piece: never chosen for the text "<0x0A>" itself while single characters can spell it


@dataclass
class Model:
    """What a model file says. `pieces[id]` is (text, score, type); ids of roles are -1 where unset."""

    pieces: list[tuple[str, float, int]] = field(default_factory=list)
    bpe: bool = False
    fallback: bool = False
    suffix: bool = False
    unk: int = 0
    bos: int = 1
    eos: int = 2
    pad: int = -1
    charsmap: bytes = b""
    prefix: bool = True
    squeeze: bool = True


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def _fields(raw: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of each field of a message: an int, 4 or 8 raw bytes, or the bytes of a string or message."""
    at = 0
    while at < len(raw):
        key, at = _varint(raw, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(raw, at)
            yield key >> 3, value
            continue
        if wire == 2:
            size, at = _varint(raw, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at + size > len(raw):
            raise ValueError("cut short")
        yield key >> 3, raw[at : at + size]
        at += size


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def parse(raw: bytes, name: str) -> Model:
    """The model in `raw`, the bytes of the file `name`. Raises CheckpointError if it is damaged or of a kind
    (word, character) that no family uses."""
    model = Model()
    try:
        for number, value in _fields(raw):
            if number == 1:
                text, score, kind = "", 0.0, NORMAL
                for inner, item in _fields(value):
                    if inner == 1:
                        text = item.decode("utf-8")
                    elif inner == 2:
                        score = struct.unpack("<f", item)[0]
                    elif inner == 3:
                        kind = item
                model.pieces.append((text, score, kind))
            elif number == 2:
                trainer = dict(_fields(value))
                style = trainer.get(3, 1)
                if style not in (1, 2):
                    raise CheckpointError(
                        f"{name} is a SentencePiece word or character model; Stemma reads unigram and BPE"
                    )
                model.bpe, model.fallback, model.suffix = style == 2, bool(trainer.get(35, 0)), bool(trainer.get(24, 0))
                model.unk, model.bos = _signed(trainer.get(40, 0)), _signed(trainer.get(41, 1))
                model.eos, model.pad = _signed(trainer.get(42, 2)), _signed(trainer.get(43, (1 << 64) - 1))
            elif number == 3:
                rules = dict(_fields(value))
                model.charsmap = rules.get(2, b"")
                model.prefix, model.squeeze = bool(rules.get(3, 1)), bool(rules.get(4, 1))
    except (ValueError, IndexError, AttributeError, TypeError, struct.error) as error:
        raise CheckpointError(f"{name} is not a SentencePiece model, or it is damaged ({error})") from error
    if not model.pieces:
        raise CheckpointError(f"{name} is not a SentencePiece model: it holds no pieces")
    if model.suffix:
        raise CheckpointError(f"{name} marks spaces at the end of words, which Stemma does not read")
    return model


def _merges(pieces: list[tuple[str, float, int]]) -> list[tuple[str, str]]:
    """Every way in which two pieces join to a third, best score first: what SentencePiece's BPE looks up by string."""
    known = {text for text, _, kind in pieces if kind == NORMAL}
    ranked = sorted((-score, i) for i, (_, score, kind) in enumerate(pieces) if kind == NORMAL)
    out = []
    for _, i in ranked:
        text = pieces[i][0]
        out += [(text[:k], text[k:]) for k in range(1, len(text)) if text[:k] in known and text[k:] in known]
    return out


def convert(model: Model) -> Tokenizer:
    """The `tokenizers` object that gives the same ids as `model`, without a post-processor.

    Known to differ: after a user-defined piece inside a text, a `▁` is put where SentencePiece puts none, if the model
    puts one before a text (no published model of the families here has both); and two ways of cutting whose scores are
    equal up to rounding may be decided differently by a unigram model."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    byte_level = any(kind == BYTE for _, _, kind in model.pieces)
    core: Any
    if model.bpe:
        vocab = {text: i for i, (text, _, _) in enumerate(model.pieces)}
        unknown = model.pieces[model.unk][0]
        core = models.BPE(vocab, _merges(model.pieces), unk_token=unknown, fuse_unk=True, byte_fallback=byte_level)
    else:
        # nine digits tell all 32-bit numbers apart, and JSON gives them back exactly
        scored = [(text, FLOOR if kind == BYTE else float(f"{score:.9g}")) for text, score, kind in model.pieces]
        core = models.Unigram(scored, unk_id=model.unk, byte_fallback=byte_level)
    out = Tokenizer(core)

    steps: list[Any] = [normalizers.Precompiled(model.charsmap)] if model.charsmap else []
    if model.squeeze:
        steps += [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Replace(Regex("^ +| +$"), "")]
    if model.prefix:
        steps.append(normalizers.Prepend(SPACE))
    steps.append(normalizers.Replace(" ", SPACE))
    out.normalizer = normalizers.Sequence(steps)
    if not any(SPACE in text.lstrip(SPACE) for text, _, kind in model.pieces if kind in (NORMAL, USER)):
        # No piece reaches over a space, so words can be cut apart first: same ids, and repeated words are cached.
        words = Regex(f"{SPACE}*[^{SPACE}]+|{SPACE}+")
        out.pre_tokenizer = pre_tokenizers.Split(words, "isolated")
    undo: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if model.prefix:
        undo.append(decoders.Strip(" ", 1, 0))
    out.decoder = decoders.Sequence(undo)

    out.add_special_tokens(
        [
            AddedToken(text, special=True, normalized=False)
            for text, _, kind in model.pieces
            if kind in (UNKNOWN, CONTROL)
        ]
    )
    out.add_tokens([AddedToken(text, normalized=False) for text, _, kind in model.pieces if kind == USER])
    return out


def roles(model: Model) -> Specials:
    """The special tokens that the model file itself names."""

    def at(index: int) -> str | None:
        return model.pieces[index][0] if 0 <= index < len(model.pieces) else None

    return Specials(bos=at(model.bos), eos=at(model.eos), pad=at(model.pad), unk=at(model.unk))


def _lines(texts: Iterable[str], longest: int = 1000) -> Iterator[str]:
    """Lines of at most `longest` characters: the trainer drops what is longer than 4192 bytes."""
    for text in texts:
        for line in text.split("\n"):
            line = line.replace("\x00", "")
            for at in range(0, len(line), longest):
                if part := line[at : at + longest]:
                    yield part


def _thin(lines: list[str], limit: int) -> list[str]:
    """The lines, or every k-th of them so that about `limit` characters are left."""
    step = -(-sum(map(len, lines)) // limit)
    return lines[::step] if step > 1 else lines


def train(kind: str, texts: Iterable[str], size: int, names: list[str], specials: Specials) -> Model:
    """Train `unigram` (T5: NFKC, spaces squeezed) or `spm-bpe` (LLaMA: identity, single digits) with `size` pieces,
    `names` (all specials by rising id) among them. One thread, because the sums depend on how the work is divided.
    Raises UsageError if `size` is too small, DataError if there is no text."""
    import sentencepiece

    at = {name: i for i, name in enumerate(names)}
    unk = specials.unk or "<unk>"
    options: dict[str, Any] = {}
    taken = {unk}
    for role in ("bos", "eos", "pad"):
        name = getattr(specials, role)
        options[f"{role}_id"] = -1
        if name is not None and name not in taken:
            options |= {f"{role}_id": at[name], f"{role}_piece": name}
            taken.add(name)
    options["control_symbols"] = [name for name in names if name not in taken]
    if kind == "unigram":
        options |= {"model_type": "unigram", "normalization_rule_name": "nmt_nfkc"}
    else:
        options |= {
            "model_type": "bpe",
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "allow_whitespace_only_pieces": True,
            "split_digits": True,
        }
    lines = _thin(list(_lines(texts)), LIMIT[kind])
    if not any(map(str.strip, lines)):
        raise DataError("there is no text to train a tokenizer on")
    raw = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=raw,
            vocab_size=size,
            unk_id=at[unk],
            unk_piece=unk,
            byte_fallback=True,
            hard_vocab_limit=False,
            num_threads=1,
            minloglevel=3,
            **options,
        )
    except (RuntimeError, OSError) as error:
        few = re.search(r"required_chars\. \d+ vs (\d+)", str(error))
        why = f"its characters and bytes alone need {few[1]}" if few else str(error).strip().splitlines()[-1]
        raise UsageError(f"a {kind} tokenizer of {size} pieces cannot be made from this text: {why}") from error
    return parse(raw.getvalue(), "the trained model")
