"""Tokenizers as they were published before `tokenizer.json`: vocab.txt, vocab.json + merges.txt, *.model,
tekken.json."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stemma import disk
from stemma.errors import CheckpointError, brief
from stemma.text import added, ranks, reading, spm
from stemma.text.specials import ROLES, Specials, sentinel, spaced_sentinel

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

    Added = Mapping[int, AddedToken]

MODELS = ("spiece.model", "tokenizer.model", "sentencepiece.bpe.model", "spm.model")
TEKKEN = "tekken.json"
NAMES = ("vocab.txt", "vocab.json", *MODELS, TEKKEN)
# of model types whose files alone do not tell their kind
EXTRA = 10_000  # the most sentinels that a SentencePiece model gets
KINDS = {
    "openai-gpt": "gpt-bpe",
    **dict.fromkeys(("t5", "mt5", "umt5"), "unigram"),
    **dict.fromkeys(("xlm-roberta", "xlm-roberta-xl"), "fairseq"),  # other ids for the first pieces
    "mbart": "languages",  # the same, and language codes
    **dict.fromkeys(("deberta-v2", "deberta"), "brackets"),  # BERT's specials
    "xlm": "words",  # of a language, cut by rules that are not in the file
    "xlnet": "rules",  # not in the file either
    "albert": "lower",  # lower case, and a comma after a number stands alone
}
# Where config.json names no model type, the class in tokenizer_config.json may tell it.
CLASSES = {
    "XLMRobertaTokenizer": "xlm-roberta",
    **dict.fromkeys(("MBartTokenizer", "MBart50Tokenizer"), "mbart"),
    **dict.fromkeys(("T5Tokenizer", "MT5Tokenizer"), "t5"),
    "AlbertTokenizer": "albert",
    "DebertaTokenizer": "deberta",
    "DebertaV2Tokenizer": "deberta-v2",
    "XLNetTokenizer": "xlnet",
    "XLMTokenizer": "xlm",
    "OpenAIGPTTokenizer": "openai-gpt",
}
# mBART's, in the order of their ids; mBART-50 has the second list behind the first (arXiv:2008.00401, table 1)
CC25 = [
    "ar_AR", "cs_CZ", "de_DE", "en_XX", "es_XX", "et_EE", "fi_FI", "fr_XX", "gu_IN", "hi_IN", "it_IT", "ja_XX",
    "kk_KZ", "ko_KR", "lt_LT", "lv_LV", "my_MM", "ne_NP", "nl_XX", "ro_RO", "ru_RU", "si_LK", "tr_TR", "vi_VN",
    "zh_CN",
]  # fmt: skip
CC50 = [
    "af_ZA", "az_AZ", "bn_IN", "fa_IR", "he_IL", "hr_HR", "id_ID", "ka_GE", "km_KH", "mk_MK", "ml_IN", "mn_MN",
    "mr_IN", "pl_PL", "ps_AF", "pt_XX", "sv_SE", "sw_KE", "ta_IN", "te_IN", "th_TH", "tl_XX", "uk_UA", "ur_PK",
    "xh_ZA", "gl_ES", "sl_SI",
]  # fmt: skip
ROBERTA = {
    "bos": "<s>", "eos": "</s>", "pad": "<pad>", "unk": "<unk>", "mask": "<mask>", "cls": "<s>", "sep": "</s>"
}  # fmt: skip
BERT = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}


def load(
    directory: Path, named: dict[str, str], config: dict[str, Any], model: Mapping[str, Any]
) -> tuple[Tokenizer, Specials]:
    """The tokenizer in `directory`, with its post-processor, and its special tokens. `named` holds the special tokens
    that the tokenizer's config names by role, `config` the rest of that config, `model` config.json (or nothing).
    Raises CheckpointError."""
    cls = str(config.get("tokenizer_class") or model.get("tokenizer_class") or "").removesuffix("Fast")
    model_type = str(model.get("model_type") or CLASSES.get(cls, ""))
    extra = added.read(directory, config, {*named.values(), *added.listed(config)})
    if (directory / "vocab.txt").exists():
        return _wordpiece(directory / "vocab.txt", named, config, extra)
    if (directory / "vocab.json").exists():
        return _bpe(directory, named, config, model_type, extra)
    for name in MODELS:
        if (path := directory / name).exists():
            if KINDS.get(model_type) == "languages":
                fifty = cls == "MBart50Tokenizer" or model.get("vocab_size") == 250_054
                config = {**config, "languages": [*CC25, *CC50] if fifty else CC25}
            return _sentencepiece(path, named, config, model_type, extra)
    if (path := directory / TEKKEN).exists():
        return ranks.tekken(disk.read_object(path), str(path))
    raise CheckpointError(f"{directory} holds no tokenizer: expected tokenizer.json or one of {', '.join(NAMES)}")


def _pick(named: dict[str, str], defaults: dict[str, str], vocab: Collection[str]) -> Specials:
    """The named tokens; for other roles the usual ones that are in the vocabulary."""
    chosen: dict[str, Any] = {}
    for role in ROLES:
        name = named.get(role) or defaults.get(role)
        if name and (role in named or name in vocab):
            chosen[role] = name
    return Specials(**chosen)


def _names(vocab: Collection[str], extra: Added) -> set[str]:
    return {*vocab, *(token.content for token in extra.values())}


def _wordpiece(path: Path, named: dict[str, str], config: dict[str, Any], extra: Added) -> tuple[Tokenizer, Specials]:
    from tokenizers import Tokenizer, models

    lines = disk.read_text(path).split("\n")
    if lines and not lines[-1]:
        lines.pop()
    vocab = {line.rstrip("\r"): i for i, line in enumerate(lines)}
    specials = _pick(named, BERT, _names(vocab, extra))
    if specials.unk is None or specials.unk not in vocab:
        raise CheckpointError(f"{path} has no {named.get('unk', '[UNK]')} entry, so it is not a WordPiece vocabulary")
    lower = config.get("do_lower_case")
    if lower is None:  # cased vocabularies have pieces with capitals besides the specials; uncased ones have none
        lower = not any(token != token.lower() for token in vocab if not token.startswith("["))
    out = Tokenizer(models.WordPiece(vocab, unk_token=specials.unk, max_input_chars_per_word=100))
    added.add(out, extra, path)
    wordpiece(
        out,
        lower=bool(lower),
        accents=config.get("strip_accents"),
        chinese=bool(config.get("tokenize_chinese_chars", True)),
    )
    return finish(out, "wordpiece", specials), specials


def _merges(rules: Path, path: Path) -> list[tuple[str, str]]:
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
    return merges


def _bpe(
    directory: Path, named: dict[str, str], config: dict[str, Any], model_type: str, extra: Added
) -> tuple[Tokenizer, Specials]:
    from tokenizers import Tokenizer, models

    path, rules = directory / "vocab.json", directory / "merges.txt"
    if KINDS.get(model_type) == "words":
        raise CheckpointError(
            f"{path}: XLM cuts words by the rules of each language (Moses) before it looks for pieces, which is not "
            "built here; put its tokenizer.json beside it, or load the model with tokenizer=False"
        )
    vocab = disk.read_object(path)
    reading.check_vocabulary(path, vocab)
    merges = _merges(rules, path)
    words = KINDS.get(model_type) == "gpt-bpe" or (
        bool(vocab) and "Ġ" not in vocab and any(t.endswith("</w>") for t in vocab)
    )
    try:
        if words:
            specials = _pick(named, {"unk": "<unk>"}, vocab)
            out = Tokenizer(models.BPE(vocab, merges, unk_token=specials.unk, end_of_word_suffix="</w>"))
        else:
            specials = _pick(named, _byte_level_roles(vocab, model_type), _names(vocab, extra))
            out = Tokenizer(models.BPE(vocab, merges))
    except Exception as error:  # the library raises bare exceptions
        raise CheckpointError(f"{rules} does not fit {path}: {error}") from error
    added.add(out, extra, path)
    if words:
        gpt(out)
        return finish(out, "gpt-bpe", specials), specials
    byte_level(out, prefix=bool(config.get("add_prefix_space", False)))
    finish(out, "bpe", specials)
    if KINDS.get(model_type) == "brackets" and specials.cls and specials.sep:
        out.post_processor = _pairs(out, specials.cls, specials.sep)
        with_space(out, specials, False)
    return out, specials


def _byte_level_roles(vocab: dict[str, int], model_type: str) -> dict[str, str]:
    """The usual special tokens of a byte-level vocabulary: DeBERTa's, RoBERTa's or GPT-2's."""
    if KINDS.get(model_type) == "brackets":
        return {"bos": "[CLS]", "eos": "[SEP]", **BERT}
    if "<mask>" in vocab:
        return ROBERTA
    return {"bos": "<|endoftext|>", "eos": "<|endoftext|>"}


def _sentencepiece(
    path: Path, named: dict[str, str], config: dict[str, Any], model_type: str, extra: Added
) -> tuple[Tokenizer, Specials]:
    kind = KINDS.get(model_type) or ("brackets" if path.name == "spm.model" else "")
    if kind == "rules":  # accents, quotes and the specials behind a text are rules of the code around the model
        raise CheckpointError(f"{path} does not say all that this tokenizer does: tokenizer.json must stand beside it")
    if not kind and path.name == "sentencepiece.bpe.model":
        raise CheckpointError(
            f"{path}: its ids depend on the model (XLM-R's and mBART's begin with other tokens than the file), and "
            f"model_type={model_type or None!r} does not tell; known are "
            f"{', '.join(t for t, k in KINDS.items() if k in ('fairseq', 'languages'))}"
        )
    raw = disk.read_bytes(path)
    if ranks.looks(raw):
        core, known = ranks.llama3(ranks.parse(raw, str(path)))
        added.add(core, extra, path)
        return core, _pick(named, {role: name for role in ROLES if (name := getattr(known, role))}, core.get_vocab())
    model = spm.parse(raw, str(path))
    if kind in ("fairseq", "languages"):
        return _fairseq(model, path, named, config, extra)
    if kind == "lower":
        return _albert(model, path, named, config, extra)
    if kind == "brackets":
        return _deberta(model, path, named, config, extra)
    own = spm.roles(model)
    own_names = {role: name for role in ROLES if (name := getattr(own, role)) is not None}
    unigram = kind == "unigram" or (path.name == "spiece.model" and own.bos is None and own.eos is None)
    if unigram:
        mark_sentinels(model)
    out = spm.convert(model)
    added.add(out, extra, path)
    if unigram:
        pieces = {text for text, _, _ in model.pieces}
        whole = sentinel(0) in pieces or spaced_sentinel(0) in pieces
        asked = config.get("extra_ids", 100)
        if not isinstance(asked, int) or not 0 <= asked <= EXTRA:
            raise CheckpointError(f"{path}: extra_ids={brief(asked)} should be a whole number of at most {EXTRA:,}")
        specials = Specials(**{**own_names, **named}, extra=asked)
        return finish(out, "unigram", specials, 0 if whole else asked), specials
    usual = {"cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    specials = _pick({**own_names, **named}, usual, out.get_vocab())
    before, after = bool(config.get("add_bos_token", True)), bool(config.get("add_eos_token", False))
    return finish(out, "spm-bpe", specials, bos=before, eos=after), specials


def mark_sentinels(model: spm.Model) -> None:
    """Let mT5's sentinels, user-defined pieces in its file, be special tokens, as T5's are."""
    names = {spaced_sentinel(k) for k in range(len(model.pieces))}
    model.pieces = [(t, s, spm.CONTROL if k == spm.USER and t in names else k) for t, s, k in model.pieces]


def _fairseq(
    model: spm.Model, path: Path, named: dict[str, str], config: dict[str, Any], extra: Added
) -> tuple[Tokenizer, Specials]:
    """XLM-R's and mBART's: four special tokens replace the model's first three pieces; the languages of mBART and a
    mask come last. mBART writes `A </s> en_XX`, mBART-50 `en_XX A </s>`."""
    from tokenizers import processors

    if (model.unk, model.bos, model.eos) != (0, 1, 2):
        raise CheckpointError(f"{path} should begin with its unknown, first and last pieces, as XLM-R's does")
    codes = list(config.get("languages", ()))
    names = ("<s>", "<pad>", "</s>", "<unk>")
    control = [(name, 0.0, spm.UNKNOWN if name == "<unk>" else spm.CONTROL) for name in names]
    model.pieces = [*control, *model.pieces[3:], *((n, 0.0, spm.CONTROL) for n in [*codes, "<mask>"])]
    model.bos, model.pad, model.eos, model.unk = range(4)
    out = spm.convert(model)
    added.add(out, extra, path)
    specials = replace(_pick(named, ROBERTA, out.get_vocab()), more=tuple(codes))
    finish(out, "unigram", specials)
    with_space(out, specials)
    one, two = "<s> $A </s>", "<s> $A </s> </s> $B </s>"
    ends = ["<s>", "</s>"]
    if codes:
        code = str(config.get("src_lang") or "en_XX")
        if code not in codes:
            raise CheckpointError(f"{path.parent}: src_lang={code!r} is none of the languages {', '.join(codes)}")
        ends = ["</s>", code]
        one, two = f"$A </s> {code}", f"$A $B </s> {code}"
        if len(codes) > len(CC25):
            one, two = f"{code} $A </s>", f"{code} $A $B </s>"
    out.post_processor = processors.TemplateProcessing(one, two, [(n, out.token_to_id(n)) for n in ends])
    return out, specials


def _deberta(
    model: spm.Model, path: Path, named: dict[str, str], config: dict[str, Any], extra: Added
) -> tuple[Tokenizer, Specials]:
    """DeBERTa v2's and v3's: BERT's special tokens, of which the mask comes behind the model's pieces."""
    from tokenizers import normalizers, pre_tokenizers

    out = spm.convert(model)
    if config.get("do_lower_case", False):
        out.normalizer = normalizers.Sequence([normalizers.Lowercase(), out.normalizer])
    if config.get("split_by_punct", False):
        cut = pre_tokenizers.Punctuation(behavior="isolated")
        rest = [out.pre_tokenizer] if out.pre_tokenizer is not None else []
        out.pre_tokenizer = pre_tokenizers.Sequence([cut, *rest])
    added.add(out, extra, path)
    unk = model.pieces[model.unk][0]
    names: dict[str, Any] = {**BERT, "unk": unk, "bos": "[CLS]", "eos": "[SEP]", **named}
    specials = Specials(**names)
    finish(out, "unigram", specials)
    return out, specials


def _albert(
    model: spm.Model, path: Path, named: dict[str, str], config: dict[str, Any], extra: Added
) -> tuple[Tokenizer, Specials]:
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
    added.add(out, extra, path)
    usual = {"pad": "<pad>", "unk": "<unk>", "bos": "[CLS]", "eos": "[SEP]", "cls": "[CLS]", "sep": "[SEP]",
             "mask": "[MASK]"}  # fmt: skip
    specials = _pick(named, usual, out.get_vocab())
    finish(out, "unigram", specials)
    with_space(out, specials)
    return out, specials


def with_space(out: Tokenizer, specials: Specials, space: bool = True) -> None:
    """Let the mask include the space before it, or not."""
    from tokenizers import AddedToken

    if specials.mask is not None:
        out.add_special_tokens([AddedToken(specials.mask, special=True, normalized=False, lstrip=space)])


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


def _pairs(out: Tokenizer, cls: str, sep: str) -> Any:
    """BERT's: `[CLS] A [SEP]`, `[CLS] A [SEP] B [SEP]`."""
    from tokenizers import processors

    ends = [(name, out.token_to_id(name)) for name in dict.fromkeys((cls, sep))]
    return processors.TemplateProcessing(f"{cls} $A {sep}", f"{cls} $A {sep} $B:1 {sep}:1", ends)


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
            template = _pairs(out, a, b)
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
