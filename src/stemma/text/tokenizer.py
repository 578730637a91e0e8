"""One tokenizer for every kind: ids and back, special tokens by role, the files of the Hugging Face layout."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import secrets
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stemma import disk
from stemma.errors import CheckpointError, UsageError
from stemma.text import added, chat, growing, legacy, pieces, ranks, reading, trainer
from stemma.text.padding import pad
from stemma.text.specials import ROLES, Specials, sentinel
from stemma.text.words import Spans, Words, spans, table

if TYPE_CHECKING:
    import tokenizers
    from torch import Tensor

MAIN, CONFIG, MAP = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
_AHEAD = "☺"
_SHOWN = {" ": "▁", "\n": "↵", "\t": "⇥", "\r": "␍"}


class Tokenizer:
    """Text to token ids and back.

    `kind` is one of `stemma.text.kinds.KINDS` ("other" for a published layout that is none of them); `specials` are the
    names of the special tokens by role; `chat_template` is Jinja text or None. `shortfall` is how many entries a
    training text was too small for. Make one with `train` or `load`.
    """

    def __init__(
        self,
        core: tokenizers.Tokenizer,
        kind: str,
        specials: Specials,
        *,
        kept: Mapping[str, str] | None = None,
        chat_template: str | None = None,
        lowercase: bool = False,
        shortfall: int = 0,
    ) -> None:
        core.no_padding()
        core.no_truncation()
        self._core = core
        self._kept = dict(kept or {})  # the files as read, to be written back unchanged
        self.kind = kind
        self.specials = specials
        self.chat_template = chat_template
        self.lowercase = lowercase
        self.shortfall = shortfall

    # ------------------------------------------------------------ making

    @classmethod
    def train(
        cls,
        kind: str,
        texts: Iterable[str],
        vocab_size: int,
        specials: Specials,
        *,
        lowercase: bool = False,
        alphabet: int | None = None,
    ) -> Tokenizer:
        """Learn a tokenizer of `kind` (see `stemma.text.kinds`) from `texts`; deterministic.

        `vocab_size` counts everything: specials, bytes, sentinels. It is met exactly unless the text is too small; then
        a UserWarning says so and `shortfall` says by how much. `lowercase` is for `wordpiece`; `gpt-bpe` always lowers.
        `alphabet`: characters that these two keep at most, by default 1,000; others become unknown, and a UserWarning
        says so where these are 1% of the text. Raises UsageError (unknown kind, vocabulary too small for the alphabet),
        DataError (no text)."""
        if lowercase and kind not in ("wordpiece", "gpt-bpe"):
            raise UsageError(f"lowercase is an option of wordpiece tokenizers, not of {kind}")
        if kind in ("unigram", "spm-bpe", "wordpiece") and specials.unk is None:
            specials = dataclasses.replace(specials, unk="[UNK]" if kind == "wordpiece" else "<unk>")
        core, known = trainer.train(kind, texts, vocab_size, specials, lowercase, alphabet)
        made = cls(
            core, kind, specials, lowercase=lowercase or kind == "gpt-bpe", shortfall=vocab_size - core.get_vocab_size()
        )
        if known is not None and known.lost >= 0.01:
            warnings.warn(
                f"the {kind} vocabulary of {made.vocab_size} entries keeps the {known.kept:,} most frequent of "
                f"{known.seen:,} characters, and {known.lost:.0%} of the text is unknown to it; raise "
                "train.alphabet, and with it dims.vocab",
                stacklevel=2,
            )
        elif made.shortfall > 0:
            warnings.warn(
                f"the text gives a {kind} vocabulary of {made.vocab_size} entries, not {vocab_size}; use more text or "
                "a smaller vocabulary",
                stacklevel=2,
            )
        return made

    @classmethod
    def load(cls, directory: str | Path) -> Tokenizer:
        """Read the tokenizer in `directory` (or the tokenizer.json given): tokenizer.json with the special tokens named
        in tokenizer_config.json, special_tokens_map.json or config.json; else vocab.txt, vocab.json + merges.txt,
        or a SentencePiece model, with the tokens of added_tokens.json.
        Raises CheckpointError naming the file and what is wrong with it."""
        directory = Path(directory)
        if directory.name == MAIN and directory.is_file():
            directory = directory.parent
        if not directory.is_dir():
            raise CheckpointError(f"no such folder: {directory}")
        kept = {
            name: disk.read_text(path)
            for name in (MAIN, CONFIG, MAP, chat.FILE)
            if (path := directory / name).is_file()
        }
        config = disk.parse_object(directory / CONFIG, kept[CONFIG]) if CONFIG in kept else {}
        named = reading.special_names(config)
        if MAP in kept:
            named = reading.special_names(disk.parse_object(directory / MAP, kept[MAP])) | named
        model = directory / "config.json"
        model_config = disk.read_object(model) if model.is_file() else {}
        template = kept[chat.FILE] if chat.FILE in kept else chat.find(config)

        with reading.guarded(directory):
            return cls._read(directory, kept, named, config, model_config, template)

    @classmethod
    def _read(
        cls,
        directory: Path,
        kept: dict[str, str],
        named: dict[str, str],
        config: dict[str, Any],
        model_config: dict[str, Any],
        template: str | None,
    ) -> Tokenizer:
        """`load`, from the contents of the small files."""
        if MAIN in kept:
            core = added.follow(reading.parse(kept[MAIN], directory / MAIN), config)
            specials = reading.resolve_specials(core, named, model_config)
        else:
            core, specials = legacy.load(directory, named, config, model_config)
            kept = {name: text for name, text in kept.items() if name == chat.FILE}
            specials = dataclasses.replace(specials, extra=reading.count_sentinels(core))
        reading.check(core, directory)
        state = json.loads(core.to_str())
        lower = '"lowercase":true' in json.dumps(state.get("normalizer"), separators=(",", ":"))
        return cls(core, reading.kind_of(state), specials, kept=kept, chat_template=template, lowercase=lower)

    def grown(self, sentinels: int, names: Iterable[str], runs: int = 0, pad: str | None = None) -> Tokenizer:
        """This tokenizer, and what it lacks, with new ids at its end: a token for every run of 2 to `runs` spaces, the
        special tokens of `names` (of which `pad` pads rows, where nothing does), and `sentinels`. Raises UsageError for
        runs in another kind than byte-level BPE."""
        core = growing.runs(self._core, runs) if runs > 1 else self._core
        new = [name for name in names if self.id(name) is None]
        if self.sentinels < sentinels:
            new += [sentinel(k) for k in reversed(range(self.sentinels, sentinels))]
        if not new and core is self._core:
            return self
        core = growing.special(core, new)
        pad = self.specials.pad or (pad if pad in new else None)
        specials = dataclasses.replace(self.specials, extra=max(self.sentinels, sentinels), pad=pad)
        return Tokenizer(core, self.kind, specials, chat_template=self.chat_template, lowercase=self.lowercase)

    # ------------------------------------------------------------ what it is

    @cached_property
    def vocab_size(self) -> int:
        """The number of ids, added tokens included: one more than the highest id."""
        return max(self._core.get_vocab_size(), 1 + max(self._core.get_vocab().values(), default=-1))

    def __len__(self) -> int:
        return self.vocab_size

    def __repr__(self) -> str:
        return f"Tokenizer({self.kind!r}, vocab_size={self.vocab_size})"

    def _role(self, role: str) -> int | None:
        name = getattr(self.specials, role)
        return None if name is None else self._core.token_to_id(name)

    @cached_property
    def bos_id(self) -> int | None:
        """The id that begins a text, or None; likewise the other roles."""
        return self._role("bos")

    @cached_property
    def eos_id(self) -> int | None:
        return self._role("eos")

    @cached_property
    def pad_id(self) -> int | None:
        return self._role("pad")

    @cached_property
    def unk_id(self) -> int | None:
        return self._role("unk")

    @cached_property
    def mask_id(self) -> int | None:
        return self._role("mask")

    @cached_property
    def cls_id(self) -> int | None:
        return self._role("cls")

    @cached_property
    def sep_id(self) -> int | None:
        return self._role("sep")

    @property
    def sentinels(self) -> int:
        """How many sentinels `<extra_id_k>` there are."""
        return self.specials.extra

    def sentinel(self, k: int) -> int:
        """The id of `<extra_id_k>`. Raises UsageError if there is no such sentinel."""
        if not 0 <= k < self.sentinels:
            raise UsageError(f"there is no sentinel {k}: this tokenizer has {self.sentinels}")
        name = reading.sentinel_name(self._core, k)
        assert name is not None
        index = self._core.token_to_id(name)
        assert index is not None
        return index

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids that stand for no text: the roles, the sentinels, and all tokens marked special in the file."""
        marked = {i for i, token in self._core.get_added_tokens_decoder().items() if token.special}
        roles = {i for role in ROLES if (i := self._role(role)) is not None}
        return frozenset(marked | roles | {self.sentinel(k) for k in range(self.sentinels)})

    @cached_property
    def fingerprint(self) -> str:
        """A hash of everything that decides which ids a text gets."""
        return hashlib.sha256(self._core.to_str().encode()).hexdigest()

    def id(self, token: str) -> int | None:
        """The id of a token by its exact name, or None."""
        return self._core.token_to_id(token)

    def token(self, index: int) -> str | None:
        """The exact name of an id, or None."""
        return self._core.id_to_token(index)

    def check(self, vocab: int, *, training: bool = False) -> None:
        """Raises CheckpointError if an id that a text gets does not fit a model with `vocab` embeddings. Other added
        tokens may be past them (Gemma 3 1B's images, padding added without a row): the model refuses such an id where
        it is used. `training` pads and masks too."""
        if self.vocab_size <= vocab:
            return
        used = set(self._core.get_vocab(with_added_tokens=False).values())
        used |= {i for role in ("bos", "eos", "unk", "cls", "sep") if (i := self._role(role)) is not None}
        if training:
            used |= {i for role in ("pad", "mask") if (i := self._role(role)) is not None}
            used |= {i for i, token in self._core.get_added_tokens_decoder().items() if not token.special}
        if max(used, default=-1) >= vocab:
            raise CheckpointError(
                f"the tokenizer has {self.vocab_size} ids but the model only {vocab} embeddings: use the tokenizer "
                f"that the model was trained with, or build the model with a vocabulary of at least {self.vocab_size}"
            )

    # ------------------------------------------------------------ text to ids

    @cached_property
    def _foreign(self) -> bool:
        """Whether it holds patterns at which the library may panic."""
        return reading.foreign(json.loads(self._core.to_str()))

    @cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        """A copy that cannot produce a special id from text: the specials are no longer looked for, and their entries
        in the model's vocabulary have names that no text contains. Ids are the same. A single character stays what it
        is: some published configs name "!" as padding, and a text must be able to say it."""
        from tokenizers import Tokenizer as Core

        state = json.loads(self._core.to_str())
        banned = self.special_ids
        names = {name for i in banned if (name := self._core.id_to_token(i)) is not None and len(name) > 1}
        model, secret = state["model"], secrets.token_hex(8)

        def hide(name: str) -> str:
            return f"\U0010fffe{secret}{name}" if name in names else name

        added = state.get("added_tokens") or []
        kept = [t for t in added if not t["special"] and t["id"] not in banned]
        own = set(self._core.get_vocab(with_added_tokens=False).values())
        last = max((t["id"] for t in kept), default=-1)  # the library counts on: those before it keep their places
        hidden = [t | {"content": hide(t["content"])} for t in added if t["id"] < last and t["id"] not in own]
        state["added_tokens"] = sorted({t["id"]: t for t in [*hidden, *kept]}.values(), key=lambda t: t["id"])

        vocab = model.get("vocab")
        if isinstance(vocab, dict):
            model["vocab"] = {hide(name): i for name, i in vocab.items()}
            if model.get("merges"):  # none leads to a special token in any published file; drop it if one does
                pairs = [p if isinstance(p, list) else p.split(" ") for p in model["merges"]]
                model["merges"] = [p for p in pairs if not {p[0], p[1], "".join(p)} & names]
        elif isinstance(vocab, list):
            model["vocab"] = [[hide(name), score] for name, score in vocab]
        if isinstance(model.get("unk_token"), str):
            model["unk_token"] = hide(model["unk_token"])
        return Core.from_str(json.dumps(state, ensure_ascii=False))

    @cached_property
    def _words(self) -> Words | None:
        return table(self._plain, self.kind)

    def _ids(self, text: str, encoding: tokenizers.Encoding) -> list[int]:
        """The ids of an encoding of `text` by `_plain`. SentencePiece never reads "<0x0A>" in a text as the byte that
        the piece of this name stands for; the library does, where the vocabulary lacks one of the characters."""
        ids: list[int] = encoding.ids
        if not (self.kind == "unigram" and "<0x" in text):
            return ids
        out = []
        for i, token, (start, end) in zip(ids, encoding.tokens, encoding.offsets, strict=True):
            if end - start == 6 and token.startswith("<0x") and text[start:end] == token:
                out += [t.id for part in token for t in self._plain.model.tokenize(part)]
            else:
                out.append(i)
        return out

    def encode(self, text: str, *, add_special: bool = True, allow_special: bool = False) -> list[int]:
        """The ids of `text`. `add_special` puts the kind's special tokens around it. A special token's name inside the
        text is ordinary text unless `allow_special`. Raises DataError for a lone surrogate, which is not text."""
        with reading.of(self._foreign, text):
            if allow_special:
                return list(self._core.encode(text, add_special_tokens=add_special).ids)
            return self._ids(text, self._plain.encode(text, add_special_tokens=add_special))

    def encode_pair(self, a: str, b: str) -> tuple[list[int], list[int]]:
        """The ids of two texts as one input with their special tokens, and for each id the text it belongs to (0 or 1).
        Special tokens' names in the texts are ordinary text."""
        with reading.of(self._foreign, a, b):
            encoding = self._plain.encode(a, b, add_special_tokens=True)
        return list(encoding.ids), list(encoding.type_ids)

    def encode_batch(
        self, texts: Sequence[str], *, add_special: bool = True, allow_special: bool = False
    ) -> list[list[int]]:
        """The ids of many texts, each as `encode` gives them, fast. Training reads texts with `add_special=False`: an
        objective puts special tokens where it wants them."""
        texts = list(texts)
        slow = not allow_special and self.kind == "unigram" and any("<0x" in text for text in texts)
        core = self._core if allow_special else self._plain
        with reading.of(self._foreign, *texts):
            encodings = (core.encode_batch if slow else core.encode_batch_fast)(texts, add_special_tokens=add_special)
        return [self._ids(text, e) if slow else e.ids for text, e in zip(texts, encodings, strict=True)]

    def batch(
        self, texts: Sequence[str | Sequence[int]], *, side: str = "right", length: int | None = None, **options: Any
    ) -> dict[str, Tensor]:
        """The inputs of a model's call, `model(**tokenizer.batch(texts))`: `input_ids` and `attention_mask`, B T int64.

        Texts are encoded by `encode_batch` with its `options`; ids are taken as they are. Rows are padded to the
        longest one or to `length`, on the "right" or the "left". Raises UsageError for no texts, an unknown side, and a
        text of more than `length` tokens."""
        encoded = iter(self.encode_batch([text for text in texts if isinstance(text, str)], **options))
        rows = [next(encoded) if isinstance(text, str) else list(text) for text in texts]
        return pad(rows, next((i for i in (self.pad_id, self.eos_id) if i is not None), 0), side, length)

    def encode_spans(self, texts: Sequence[str]) -> list[tuple[list[int], list[int]]]:
        """For each text its ids, without special tokens, and for each id the character where its piece ends."""
        texts = list(texts)
        out = []
        with reading.of(self._foreign, *texts):
            encodings = self._plain.encode_batch(texts, add_special_tokens=False)
        for text, e in zip(texts, encodings, strict=True):
            ids = self._ids(text, e)
            ends = [end for _, end in e.offsets]
            # where a byte's name was spelled out, the characters after it cannot be placed exactly
            out.append((ids, ends + [len(text)] * (len(ids) - len(ends))))
        return out

    def encode_flat(self, texts: Sequence[str]) -> Spans:
        """`encode_spans` of many texts as arrays, fast."""
        with reading.of(self._foreign, *texts):
            found = self._words.encode(texts) if self._words is not None else None
        return found or spans(self.encode_spans(texts))

    def encode_continuation(self, text: str) -> list[int]:
        """The ids, without special tokens, of a text that goes on from another: without the space that some kinds put
        in front of a text. It is read behind a character that is then taken off (as in Code LLaMA's released code)."""
        if not text:
            return []
        ids, ends = self.encode_spans([_AHEAD + text])[0]
        first = next((i for i, end in enumerate(ends) if end > 1), len(ends))
        if first and ends[first - 1] == 1:
            return ids[first:]
        return self.encode(text, add_special=False)

    # ------------------------------------------------------------ ids to text

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of `ids`. Bytes that are not UTF-8 become U+FFFD. An id past the vocabulary stands for nothing: a
        model may have more embeddings than its tokenizer has ids (T5: 32,128 and 32,100), and draw one. Raises
        UsageError for a negative id."""
        ids = [int(i) for i in ids]
        if any(i < 0 for i in ids):
            raise UsageError(f"token ids are not negative, as {min(ids)} is")
        ids = [i for i in ids if i < self.vocab_size]
        with reading.panics(self._foreign):
            return str(self._core.decode(ids, skip_special_tokens=skip_special))

    def decode_continuation(self, ids: Iterable[int]) -> str:
        """The text of ids that go on from others, with the space in front that `decode` may take off."""
        ids = list(ids)
        whole = self.decode([*self.encode(_AHEAD, add_special=False), *ids])
        return whole.partition(_AHEAD)[2] if _AHEAD in whole else self.decode(ids)

    @cached_property
    def _letters(self) -> dict[str, int] | None:
        """For byte-level vocabularies, the byte that each character stands for."""
        decoder = json.dumps(json.loads(self._core.to_str()).get("decoder"))
        return {c: byte for byte, c in ranks.letters().items()} if '"ByteLevel"' in decoder else None

    @cached_property
    def token_bytes(self) -> list[bytes | None]:
        """For each id the bytes that it adds to a text (see `stemma.text.pieces`)."""
        return pieces.token_bytes(self._core, self.vocab_size, self.special_ids, self._letters, self._foreign)

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """A printable piece for each id: spaces as `▁`, line ends as `↵`, a lone byte as `<0xE2>`, specials by name."""
        out = []
        for i in ids:
            name = self._core.id_to_token(int(i))
            if name is None:
                out.append(f"<{int(i)}?>")
            elif int(i) in self.special_ids or self._letters is None:
                out.append(_printable(name))
            else:
                raw = bytes(self._letters[c] for c in name) if all(c in self._letters for c in name) else name.encode()
                try:
                    out.append(_printable(raw.decode("utf-8")))
                except UnicodeDecodeError:
                    out.append("".join(f"<0x{byte:02X}>" for byte in raw))
        return out

    def apply_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> str:
        """The conversation as the chat template writes it; the template reads `tools` (JSON schemas), `documents` and
        further `options` (enable_thinking) by their names. Encode the result with `allow_special=True` and
        `add_special=False`. Raises UsageError without a template, DataError if it refuses, ResourceError if jinja2 is
        missing."""
        if self.chat_template is None:
            raise UsageError("this tokenizer has no chat template; give the prompt as plain text")
        names = {f"{role}_token": getattr(self.specials, role) for role in ROLES}
        more = {"tools": tools, "documents": documents, **options}
        return chat.render(self.chat_template, messages, add_generation_prompt, names, more)

    # ------------------------------------------------------------ files

    def save(self, directory: str | Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json (and the chat template, where it was
        found). Files that were read are written back byte for byte. Raises ResourceError."""
        directory = Path(directory)
        kept = self._kept
        disk.write(directory / MAIN, kept.get(MAIN) or self._core.to_str(pretty=True) + "\n")
        if CONFIG in kept:
            disk.write(directory / CONFIG, kept[CONFIG])
        else:
            disk.write_json(directory / CONFIG, self._config())
        if MAP in kept:
            disk.write(directory / MAP, kept[MAP])
        elif CONFIG not in kept:
            disk.write_json(directory / MAP, self._names())
        held = chat.find(disk.parse_object(directory / CONFIG, kept[CONFIG])) if CONFIG in kept else None
        if self.chat_template is not None and (chat.FILE in kept or self.chat_template != held):
            disk.write(directory / chat.FILE, self.chat_template)

    def _names(self) -> dict[str, Any]:
        out: dict[str, Any] = {f"{r}_token": name for r in ROLES if (name := getattr(self.specials, r)) is not None}
        if extra := [*self.specials.more, *(sentinel(k) for k in range(self.sentinels))]:
            out["additional_special_tokens"] = extra
        return out

    def _config(self) -> dict[str, Any]:
        names = self._names()
        extra = names.pop("additional_special_tokens", None)
        out = {"tokenizer_class": "PreTrainedTokenizerFast", **names, "clean_up_tokenization_spaces": False}
        if extra:
            out["extra_special_tokens"] = extra
        if self.kind == "wordpiece":
            out["do_lower_case"] = self.lowercase
        inputs = ["input_ids", "token_type_ids", "attention_mask"]
        out["model_input_names"] = inputs if self.kind == "wordpiece" else [inputs[0], inputs[2]]
        return out


def _printable(text: str) -> str:
    return "".join(_SHOWN.get(c) or (c if c.isprintable() else f"\\u{{{ord(c):x}}}") for c in text)
