"""Tokenizers as they were published before `tokenizer.json`: vocab.txt, vocab.json + merges.txt, *.model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from stemma import disk
from stemma.errors import CheckpointError, brief
from stemma.text import ranks, reading, spm
from stemma.text.specials import ROLES, Specials, sentinel

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MODELS = ("spiece.model", "tokenizer.model", "sentencepiece.bpe.model")
NAMES = ("vocab.txt", "vocab.json", *MODELS)
# of model types whose files alone do not tell their kind
EXTRA = 10_000  # the most sentinels that a SentencePiece model gets
KINDS = {
    "openai-gpt": "gpt-bpe",
    **dict.fromkeys(("t5", "mt5", "umt5"), "unigram"),
    **dict.fromkeys(("xlm-roberta", "xlm-roberta-xl"), "fairseq"),  # other ids for the first pieces
    "xlm": "words",  # of a language, cut by rules that are not in the file
    "xlnet": "rules",  # not in the file either
    "albert": "lower",  # lower case, and a comma after a number stands alone
}


def load(directory: Path, named: dict[str, str], config: dict[str, Any], model_type: str) -> tuple[Tokenizer, Specials]:
    """The tokenizer in `directory`, with its post-processor, and its special tokens. `named` holds the special tokens
    that the tokenizer's config names by role, `config` the rest of that config, `model_type` that of config.json
    (or ""). Raises CheckpointError."""
    if (directory / "vocab.txt").exists():
        return _wordpiece(directory / "vocab.txt", named, config)
    if (directory / "vocab.json").exists():
        return _bpe(directory, named, config, model_type)
    for name in MODELS:
        if (path := directory / name).exists():
            return _sentencepiece(path, named, config, model_type)
    raise CheckpointError(f"{directory} holds no tokenizer: expected tokenizer.json or one of {', '.join(NAMES)}")


def _pick(named: dict[str, str], defaults: dict[str, str], vocab: dict[str, int]) -> Specials:
    """The named tokens; for other roles the usual ones that are in the vocabulary."""
    chosen: dict[str, Any] = {}
    for role in ROLES:
        name = named.get(role) or defaults.get(role)
        if name and (role in named or name in vocab):
            chosen[role] = name
    return Specials(**chosen)


def _wordpiece(path: Path, named: dict[str, str], config: dict[str, Any]) -> tuple[Tokenizer, Specials]:
    from tokenizers import Tokenizer, models

    lines = disk.read_text(path).split("\n")
    if lines and not lines[-1]:
        lines.pop()
    vocab = {line.rstrip("\r"): i for i, line in enumerate(lines)}
    usual = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    specials = _pick(named, usual, vocab)
    if specials.unk is None or specials.unk not in vocab:
        raise CheckpointError(f"{path} has no {named.get('unk', '[UNK]')} entry, so it is not a WordPiece vocabulary")
    lower = config.get("do_lower_case")
    if lower is None:  # cased vocabularies have pieces with capitals besides the specials; uncased ones have none
        lower = not any(token != token.lower() for token in vocab if not token.startswith("["))
    out = Tokenizer(models.WordPiece(vocab, unk_token=specials.unk, max_input_chars_per_word=100))
    wordpiece(
        out,
        lower=bool(lower),
        accents=config.get("strip_accents"),
        chinese=bool(config.get("tokenize_chinese_chars", True)),
    )
    return finish(out, "wordpiece", specials), specials


def _bpe(directory: Path, named: dict[str, str], config: dict[str, Any], model_type: str) -> tuple[Tokenizer, Specials]:
    from tokenizers import Tokenizer, models

    path, rules = directory / "vocab.json", directory / "merges.txt"
    if KINDS.get(model_type) == "words":
        raise CheckpointError(
            f"{path}: XLM cuts words by the rules of each language (Moses) before it looks for pieces, which is not "
            "built here; put its tokenizer.json beside it, or load the model with tokenizer=False"
        )
    vocab = disk.read_object(path)
    if not rules.exists():
        raise CheckpointError(f"{path} needs its merges.txt beside it, and there is none")
    merges = []
    for number, line in enumerate(disk.read_text(rules).split("\n"), 1):
        line = line.rstrip("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        parts = line.split(" ")
        if len(parts) != 2:
            raise CheckpointError(f"{rules}:{number} is not a merge: two pieces with one space between were expected")
        merges.append((parts[0], parts[1]))
    reading.check_merges(rules, len(merges))
    words = KINDS.get(model_type) == "gpt-bpe" or (
        bool(vocab) and "Ġ" not in vocab and any(t.endswith("</w>") for t in vocab)
    )
    try:
        if words:
            specials = _pick(named, {"unk": "<unk>"}, vocab)
            out = Tokenizer(models.BPE(vocab, merges, unk_token=specials.unk, end_of_word_suffix="</w>"))
            gpt(out)
            return finish(out, "gpt-bpe", specials), specials
        roberta = {
            "bos": "<s>",
            "eos": "</s>",
            "pad": "<pad>",
            "unk": "<unk>",
            "mask": "<mask>",
            "cls": "<s>",
            "sep": "</s>",
        }
        gpt2 = {"bos": "<|endoftext|>", "eos": "<|endoftext|>"}
        specials = _pick(named, roberta if "<mask>" in vocab else gpt2, vocab)
        out = Tokenizer(models.BPE(vocab, merges))
    except Exception as error:  # the library raises bare exceptions
        raise CheckpointError(f"{rules} does not fit {path}: {error}") from error
    byte_level(out, prefix=bool(config.get("add_prefix_space", False)))
    return finish(out, "bpe", specials), specials


def _sentencepiece(
    path: Path, named: dict[str, str], config: dict[str, Any], model_type: str
) -> tuple[Tokenizer, Specials]:
    if (
        KINDS.get(model_type) == "rules"
    ):  # accents, quotes and the specials behind a text are rules of the code around the model
        raise CheckpointError(f"{path} does not say all that this tokenizer does: tokenizer.json must stand beside it")
    raw = disk.read_bytes(path)
    if ranks.looks(raw):
        core, known = ranks.convert(ranks.parse(raw, str(path)))
        return core, _pick(named, {role: name for role in ROLES if (name := getattr(known, role))}, core.get_vocab())
    model = spm.parse(raw, str(path))
    if KINDS.get(model_type) == "fairseq":
        return _fairseq(model, path, named)
    if KINDS.get(model_type) == "lower":
        return _albert(model, named, config)
    out = spm.convert(model)
    own = spm.roles(model)
    own_names = {role: name for role in ROLES if (name := getattr(own, role)) is not None}
    t5 = path.name == "spiece.model" and own.bos is None and own.eos is not None
    if t5 or KINDS.get(model_type) == "unigram":
        extra = config.get("extra_ids", 100)
        if not isinstance(extra, int) or not 0 <= extra <= EXTRA:
            raise CheckpointError(f"{path}: extra_ids={brief(extra)} should be a whole number of at most {EXTRA:,}")
        pieces = {text for text, _, _ in model.pieces}
        count = 0 if sentinel(0) in pieces else extra
        specials = Specials(**{**own_names, **named}, extra=extra)
        return finish(out, "unigram", specials, count), specials
    usual = {"cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    specials = _pick({**own_names, **named}, usual, out.get_vocab())
    before, after = bool(config.get("add_bos_token", True)), bool(config.get("add_eos_token", False))
    return finish(out, "spm-bpe", specials, bos=before, eos=after), specials


def _fairseq(model: spm.Model, path: Path, named: dict[str, str]) -> tuple[Tokenizer, Specials]:
    """XLM-R's: four special tokens replace the model's first three pieces, and a mask comes last."""
    from tokenizers import processors

    if (model.unk, model.bos, model.eos) != (0, 1, 2):
        raise CheckpointError(f"{path} should begin with its unknown, first and last pieces, as XLM-R's does")
    names = ("<s>", "<pad>", "</s>", "<unk>")
    control = [(name, 0.0, spm.UNKNOWN if name == "<unk>" else spm.CONTROL) for name in names]
    model.pieces = [*control, *model.pieces[3:], ("<mask>", 0.0, spm.CONTROL)]
    model.bos, model.pad, model.eos, model.unk = range(4)
    out = spm.convert(model)
    usual = {"bos": "<s>", "eos": "</s>", "pad": "<pad>", "unk": "<unk>", "mask": "<mask>", "cls": "<s>", "sep": "</s>"}
    specials = _pick(named, usual, out.get_vocab())
    finish(out, "unigram", specials)
    _with_space(out, specials)
    ends = [(name, out.token_to_id(name)) for name in ("<s>", "</s>")]
    out.post_processor = processors.TemplateProcessing("<s> $A </s>", "<s> $A </s> </s> $B </s>", ends)
    return out, specials


def _albert(model: spm.Model, named: dict[str, str], config: dict[str, Any]) -> tuple[Tokenizer, Specials]:
    """ALBERT's: plain quotes, no accents, lower case; a number and the comma after it are two pieces."""
    from tokenizers import normalizers

    model.pieces = [
        (text, score - 100 if text.endswith(",") and text[-2:-1].isdigit() else score, kind)
        for text, score, kind in model.pieces
    ]
    out = spm.convert(model)
    steps: list[Any] = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    if not config.get("keep_accents", False):
        steps += [normalizers.NFKD(), normalizers.StripAccents()]
    if config.get("do_lower_case", True):
        steps.append(normalizers.Lowercase())
    out.normalizer = normalizers.Sequence([*steps, out.normalizer])
    usual = {"pad": "<pad>", "unk": "<unk>", "bos": "[CLS]", "eos": "[SEP]", "cls": "[CLS]", "sep": "[SEP]",
             "mask": "[MASK]"}  # fmt: skip
    specials = _pick(named, usual, out.get_vocab())
    finish(out, "unigram", specials)
    _with_space(out, specials)
    return out, specials


def _with_space(out: Tokenizer, specials: Specials) -> None:
    """Let the mask include the space before it."""
    from tokenizers import AddedToken

    if specials.mask is not None:
        out.add_special_tokens([AddedToken(specials.mask, special=True, normalized=False, lstrip=True)])


# ---------------------------------------------------------------- the parts around a model, shared with training


def wordpiece(out: Tokenizer, *, lower: bool, accents: bool | None = None, chinese: bool = True) -> None:
    """BERT's normalizer, pre-tokenizer and decoder."""
    from tokenizers import decoders, normalizers, pre_tokenizers

    out.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=chinese, strip_accents=accents, lowercase=lower
    )
    out.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    out.decoder = decoders.WordPiece(prefix="##")


def gpt(out: Tokenizer) -> None:
    """GPT-1's lower-cased words."""
    from tokenizers import decoders, normalizers, pre_tokenizers

    out.normalizer = normalizers.BertNormalizer(lowercase=True)
    out.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    out.decoder = decoders.BPEDecoder(suffix="</w>")


def byte_level(out: Tokenizer, *, prefix: bool = False) -> None:
    """GPT-2's pattern over bytes."""
    from tokenizers import decoders, pre_tokenizers

    out.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    out.decoder = decoders.ByteLevel()


def finish(
    out: Tokenizer, kind: str, specials: Specials, sentinels: int | None = None, *, bos: bool = True, eos: bool = False
) -> Tokenizer:
    """Add the special tokens, `sentinels` (default: `specials.extra`) of T5's among them, and the post-processor."""
    from tokenizers import AddedToken, processors

    names = specials.names(("pad", "eos", "unk", "bos", "cls", "sep", "mask"))
    out.add_special_tokens(
        [
            AddedToken(name, special=True, normalized=False, lstrip=kind == "bpe" and name == specials.mask)
            for name in names
        ]
    )
    count = specials.extra if sentinels is None else sentinels
    out.add_special_tokens([AddedToken(sentinel(k), special=True, normalized=False) for k in reversed(range(count))])

    def at(token: str) -> tuple[str, int]:
        index = out.token_to_id(token)
        assert index is not None
        return token, index

    def used(*tokens: str) -> list[tuple[str, int]]:
        return [at(token) for token in dict.fromkeys(tokens)]

    a, b = specials.cls, specials.sep
    template: Any = None
    if a is not None and b is not None:
        if kind == "bpe":
            template = processors.RobertaProcessing(at(b), at(a), trim_offsets=True, add_prefix_space=False)
        else:
            template = processors.TemplateProcessing(f"{a} $A {b}", f"{a} $A {b} $B:1 {b}:1", used(a, b))
    elif kind == "unigram":
        if (e := specials.eos) is not None:
            template = processors.TemplateProcessing(f"$A {e}", f"$A {e} $B {e}", used(e))
    elif kind == "bpe":
        template = processors.ByteLevel(trim_offsets=False)
    elif kind == "spm-bpe":
        start = [specials.bos] if bos and specials.bos is not None else []
        stop = [specials.eos] if eos and specials.eos is not None else []
        if start or stop:
            one = " ".join([*start, "$A", *stop])
            two = " ".join([*(f"{s}:1" for s in start), "$B:1", *(f"{s}:1" for s in stop)])
            template = processors.TemplateProcessing(one, f"{one} {two}", used(*start, *stop))
    if template is not None:
        out.post_processor = template
    return out
