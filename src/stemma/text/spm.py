"""SentencePiece models: read the file, express it as a `tokenizers` object, train new ones.

The model file is a protocol buffer; the few fields that matter are read here, so that no protobuf package is needed.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
import math
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stemma.errors import CheckpointError, DataError, UsageError
from stemma.text.reading import check_charsmap, panics
from stemma.text.specials import Specials

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE = "▁"
LIMIT = {"unigram": 8_000_000, "spm-bpe": 64_000_000}  # characters trained on: what takes about half a minute
FLOOR = -1e4  # score of a byte piece: never chosen for the text "<0x0A>" itself while single characters can spell it


@dataclass
class Model:
    """The content of a model file. `pieces[id]` is (text, score, type); the id of a role is -1 if unset."""

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
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


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
    if not 0 <= model.unk < len(model.pieces):
        raise CheckpointError(f"{name}: the unknown piece is {model.unk} of {len(model.pieces)}")
    if odd := next((text for text, score, _ in model.pieces if not math.isfinite(score)), None):
        raise CheckpointError(f"{name}: the piece {odd!r} has no finite score")
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

    if model.charsmap:
        check_charsmap("a SentencePiece model", model.charsmap)
    try:
        steps: list[Any] = [normalizers.Precompiled(model.charsmap)] if model.charsmap else []
    except Exception as error:  # the library raises bare exceptions
        raise CheckpointError(f"the map of characters of a SentencePiece model is damaged: {error}") from None
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


def _step(texts: Iterable[str], limit: int) -> int:
    """k, such that every k-th line has about `limit` characters in all."""
    return max(1, -(-sum(map(len, _lines(texts))) // limit))


def train(kind: str, texts: Iterable[str], size: int, names: list[str], specials: Specials) -> Model:
    """Train `unigram` (T5: NFKC, spaces squeezed) or `spm-bpe` (LLaMA: identity, single digits) with `size` pieces,
    `names` (all specials by rising id) among them. One thread, because the sums depend on how the work is divided. The
    texts are walked three times. Raises UsageError if `size` is too small, DataError if there is no text."""
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
    step = _step(texts, LIMIT[kind])

    def lines() -> Iterator[str]:
        return itertools.islice(_lines(texts), 0, None, step)

    if not any(map(str.strip, lines())):
        raise DataError("there is no text to train a tokenizer on")
    raw = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines(),
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


# ---------------------------------------------------------------- back to a model


PROBES = (
    "The quick brown fox, isn't it?  Two  spaces", " leading and trailing ", "", "x=1;\n\tprint('a b')\n", "12345 3.14",
    "Grüße 東京 это 🙂", "▁▁ <s> </s> <0x0A>", "aaaaaaaaaaaaaaaaaaaaaaaa", "don't WON'T they'LL", "a\u0301 ﬁ ½",
)  # fmt: skip


def probes(core: Tokenizer) -> list[str]:
    """Texts on which a tokenizer and its converted form must agree. They may differ before a leading space:
    transformers' form of a SentencePiece model (Metaspace) puts no `▁` there, and the model does."""
    spaced = '"Metaspace"' in core.to_str()
    return [text for text in PROBES if not (spaced and text.startswith((" ", SPACE)))]


def describe(core: Tokenizer, specials: Specials) -> Model:
    """The SentencePiece model that gives the same ids as `core`, a tokenizer of kind `spm-bpe` or `unigram`.

    BPE scores are made from the order of the merges, which is all that decides. Raises UsageError if no such model
    gives the same ids: the merges do not follow from the pieces, or spaces are treated otherwise."""
    state = json.loads(core.to_str())
    core_model, added = state["model"], {t["id"]: t for t in state["added_tokens"]}
    bpe = core_model["type"] == "BPE"
    scores: dict[str, float] = {}
    if bpe:
        names = {i: text for text, i in core_model["vocab"].items()}
        order = dict.fromkeys("".join(m if isinstance(m, list) else m.split(" ")) for m in core_model["merges"])
        scores = {text: -float(rank) for rank, text in enumerate(order)}
    else:
        names = {i: text for i, (text, _) in enumerate(core_model["vocab"])}
        scores = dict(map(tuple, core_model["vocab"]))
    names |= {i: t["content"] for i, t in added.items()}
    if sorted(names) != list(range(len(names))):
        raise UsageError("this tokenizer leaves ids out, which a SentencePiece model cannot")
    fallback = bool(core_model.get("byte_fallback"))
    unknown = core_model.get("unk_token") if bpe else names.get(core_model.get("unk_id"))
    unknown = unknown or specials.unk  # a vocabulary with all bytes needs none, and files may leave it out
    if unknown not in names.values():
        raise UsageError("this tokenizer has no token for unknown characters, which a SentencePiece model needs")

    def piece(i: int) -> tuple[str, float, int]:
        text = names[i]
        if text == unknown:
            return text, 0.0, UNKNOWN
        if fallback and re.fullmatch(r"<0x[0-9A-F]{2}>", text):
            return text, 0.0, BYTE
        if i in added:
            return text, 0.0, CONTROL if added[i]["special"] else USER
        return text, scores.get(text, -float(len(scores) + i)), NORMAL

    at = {text: i for i, text in names.items()}
    assert unknown is not None
    around = json.dumps([state["normalizer"], state["pre_tokenizer"]], ensure_ascii=False)
    maps = re.findall(r'"precompiled_charsmap": "([^"]*)"', around)
    model = Model(
        pieces=[piece(i) for i in range(len(names))],
        bpe=bpe,
        fallback=fallback,
        unk=at[unknown],
        **{role: at.get(getattr(specials, role), -1) for role in ("bos", "eos", "pad")},
        charsmap=base64.b64decode(maps[0]) if maps else b"",
        prefix='"prepend"' in around or bool(re.search(r'"prepend_scheme": "(always|first)"', around)),
        squeeze=" {2,}" in around or '"WhitespaceSplit"' in around,
    )
    if bpe and {tuple(m if isinstance(m, list) else m.split(" ")) for m in core_model["merges"]} != set(
        _merges(model.pieces)
    ):
        raise UsageError("the merges of this tokenizer do not follow from its pieces, as a SentencePiece model's do")
    again = convert(model)
    for text in probes(core):
        with panics(silent=True):
            ids = core.encode(text, add_special_tokens=False).ids
        if again.encode(text, add_special_tokens=False).ids != ids:
            raise UsageError(f"no SentencePiece model gives the same ids as this tokenizer (tried with {text!r})")
    return model


def _pack(number: int, value: int | float | bytes | str) -> bytes:
    """One field of a message."""
    if isinstance(value, float):
        return _length(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return _length(number << 3) + _length(value & ((1 << 64) - 1))
    raw = value.encode("utf-8") if isinstance(value, str) else value
    return _length(number << 3 | 2) + _length(len(raw)) + raw


def _length(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def dump(model: Model) -> bytes:
    """The model file: what `parse` reads, and the SentencePiece library."""
    out = [_pack(1, _pack(1, text) + _pack(2, float(score)) + _pack(3, kind)) for text, score, kind in model.pieces]
    trainer = [_pack(3, 2 if model.bpe else 1), _pack(4, len(model.pieces)), _pack(35, int(model.fallback))]
    for k, (role, usual) in enumerate((("unk", "<unk>"), ("bos", "<s>"), ("eos", "</s>"), ("pad", "<pad>"))):
        at = getattr(model, role)
        trainer += [_pack(40 + k, at), _pack(45 + k, model.pieces[at][0] if at >= 0 else usual)]
    rules = [
        _pack(1, "identity" if not model.charsmap else "nmt_nfkc"),
        _pack(2, model.charsmap),
        _pack(3, int(model.prefix)),
        _pack(4, int(model.squeeze)),
        _pack(5, 1),
    ]
    return b"".join([*out, _pack(2, b"".join(trainer)), _pack(3, b"".join(rules))])
