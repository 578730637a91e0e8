"""Tokenizers: training, specials, files, agreement with sentencepiece and transformers."""

from __future__ import annotations

import errno
import importlib.util
import io
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stemma.errors import CheckpointError, DataError, ResourceError, StemmaError, UsageError
from stemma.text import Specials, Tokenizer, corpus, spm

WORDS = (  # noqa: SIM905
    "the quick brown fox jumps over a lazy dog while seven wizards brew tea near old stone bridges and nobody "
    "notices how quietly rain begins to fall upon their hats because every window is closed against wind"
).split()
TEXTS = [
    " ".join(WORDS[(i * k + k * k) % len(WORDS)] for k in range(3, 19)).capitalize()
    + f". Line {i}, cost {i * 7}?\n\tx = f({i})"
    for i in range(300)
]
BERT = Specials(pad="[PAD]", unk="[UNK]", cls="[CLS]", sep="[SEP]", mask="[MASK]")
ROBERTA = Specials(bos="<s>", eos="</s>", pad="<pad>", unk="<unk>", mask="<mask>", cls="<s>", sep="</s>")
GPT2 = Specials(bos="<|endoftext|>", eos="<|endoftext|>")
T5 = Specials(eos="</s>", pad="<pad>", unk="<unk>", extra=20)
LLAMA = Specials(bos="<s>", eos="</s>", unk="<unk>")
CASES = {
    "bert": ("wordpiece", BERT, 300, {"lowercase": True}),
    "gpt1": ("gpt-bpe", Specials(unk="<unk>"), 300, {}),
    "gpt2": ("bpe", GPT2, 400, {}),
    "roberta": ("bpe", ROBERTA, 400, {}),
    "t5": ("unigram", T5, 400, {}),
    "llama": ("spm-bpe", LLAMA, 420, {}),
}
MADE: dict[str, Tokenizer] = {}
TRICKY = [
    "",
    " ",
    "a",
    "  two  spaces ",
    "Hello, world! 2023",
    "\n\n\tx = f(1)\r\n",
    "日本語 🙂 naïve e\u0301",
    "<s> </s> <unk> <pad>",
    "[MASK] [CLS] x [SEP]",
    "a<mask>b",
    "<|endoftext|>",
    "x <extra_id_0> y<extra_id_19>",
    "<0x0A> x<0xE2>",
    "▁a b▁",
    "\u00a0\u3000\u200b",
    "x" * 200,
]


def made(case: str) -> Tokenizer:
    if case not in MADE:
        kind, specials, size, options = CASES[case]
        MADE[case] = Tokenizer.train(kind, TEXTS, size, specials, **options)
    return MADE[case]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# ---------------------------------------------------------------- training


def test_importing_costs_nothing() -> None:
    code = (
        "import sys, stemma.text\n"
        "print([m for m in ('torch', 'tokenizers', 'sentencepiece', 'jinja2') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_size_is_exact(case: str) -> None:
    tokenizer = made(case)
    assert tokenizer.vocab_size == CASES[case][2] == len(tokenizer)
    assert tokenizer.shortfall == 0
    assert all(tokenizer.token(i) is not None for i in range(tokenizer.vocab_size))


def test_training_is_deterministic(case: str) -> None:
    kind, specials, size, options = CASES[case]
    again = Tokenizer.train(kind, iter(TEXTS), size, specials, **options)
    assert again.fingerprint == made(case).fingerprint


def test_training_is_the_same_in_another_process_with_threads() -> None:
    """Hash tables are seeded anew in each process, so a second run in this one would not show what they decide."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\nimport test_text as t\n"
        "print(*[t.made(case).fingerprint for case in t.CASES])"
    )
    env = os.environ | {"TOKENIZERS_PARALLELISM": "true", "PYTHONHASHSEED": "7", "RAYON_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent)], capture_output=True, text=True, env=env, check=True
    )
    assert done.stdout.split() == [made(case).fingerprint for case in CASES]


def test_too_little_text_gives_what_there_is() -> None:
    for kind in ("wordpiece", "gpt-bpe", "bpe", "unigram", "spm-bpe"):
        with pytest.warns(UserWarning, match="use more text or a smaller vocabulary"):
            tokenizer = Tokenizer.train(kind, ["so few words here"] * 2, 3000, Specials(unk="<unk>"))
        assert tokenizer.shortfall == 3000 - tokenizer.vocab_size > 0
        assert tokenizer.decode(tokenizer.encode("few words")).strip() == "few words"


def test_layouts_follow_the_published_ones() -> None:
    assert [made("bert").token(i) for i in range(5)] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert made("gpt2").eos_id == made("gpt2").bos_id == 399
    roberta = made("roberta")
    assert (roberta.bos_id, roberta.pad_id, roberta.eos_id, roberta.unk_id, roberta.mask_id) == (0, 1, 2, 3, 399)
    t5, llama = made("t5"), made("llama")
    assert (t5.pad_id, t5.eos_id, t5.unk_id) == (0, 1, 2)
    assert [t5.sentinel(k) for k in (0, 1, 19)] == [399, 398, 380]
    assert t5.sentinels == 20 and {t5.sentinel(k) for k in range(20)} < t5.special_ids
    assert (llama.unk_id, llama.bos_id, llama.eos_id, llama.pad_id) == (0, 1, 2, None)
    assert [llama.token(i) for i in (3, 258)] == ["<0x00>", "<0xFF>"]


def test_specials_around_a_text() -> None:
    def shown(case: str, *texts: str) -> str:
        t = made(case)
        return " ".join(t.tokens(t.encode(*texts) if len(texts) == 1 else t.encode_pair(*texts)[0]))

    assert shown("bert", "the fox") == "[CLS] the fox [SEP]"
    assert shown("bert", "the", "fox") == "[CLS] the [SEP] fox [SEP]"
    assert made("bert").encode_pair("the", "fox")[1] == [0, 0, 0, 1, 1]
    assert shown("roberta", " the", " fox") == "<s> ▁the </s> </s> ▁fox </s>"
    assert shown("gpt2", " the fox") == "▁the ▁fox"
    assert shown("gpt1", "The fox") == "the</w> fox</w>"
    assert shown("t5", "the fox").endswith("</s>") and not shown("t5", "the fox").startswith("<s>")
    assert shown("llama", "the the") == "<s> ▁the ▁the"


# ---------------------------------------------------------------- text and back


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=st.text(max_size=60) | st.lists(st.sampled_from([*TRICKY, *WORDS, " "])).map("".join))
def test_round_trip_and_no_obeyed_specials(text: str) -> None:
    for case in CASES:
        tokenizer = made(case)
        ids = tokenizer.encode(text, add_special=False)
        assert not set(ids) & (tokenizer.special_ids - {tokenizer.unk_id}), case
        assert max(ids, default=0) < tokenizer.vocab_size
        assert tokenizer.encode_batch([text], add_special=False)[0] == ids
        spans = tokenizer.encode_spans([text])[0]
        assert spans[0] == ids and len(spans[1]) == len(ids)
        if case in ("gpt2", "roberta"):
            assert tokenizer.decode(ids) == text
        if case == "llama" and "▁" not in text:  # SentencePiece's own sign for a space does not come back as itself
            assert tokenizer.decode(ids) == text
        assert len(tokenizer.tokens(ids)) == len(ids)


def test_specials_are_obeyed_only_when_allowed() -> None:
    for case, name in (
        ("gpt2", "<|endoftext|>"),
        ("bert", "[MASK]"),
        ("t5", "<extra_id_0>"),
        ("llama", "</s>"),
        ("roberta", "<mask>"),
    ):
        tokenizer = made(case)
        index = tokenizer.id(name)
        text = f"the {name} fox"
        assert index in tokenizer.encode(text, add_special=False, allow_special=True)
        assert index not in tokenizer.encode(text, add_special=False)
        assert index not in tokenizer.encode_pair(text, name)[0][1:-1] or index in (tokenizer.sep_id, tokenizer.eos_id)
        assert index not in tokenizer.encode_batch([text], add_special=False)[0]
        assert name not in tokenizer.decode([index]) and tokenizer.decode([index], skip_special=False) == name
        if case in ("gpt2", "llama"):
            assert tokenizer.decode(tokenizer.encode(text)) == text


def test_specials_in_the_vocabulary_of_the_model_are_not_obeyed(tmp_path: Path) -> None:
    """A Unigram model that lists its specials as pieces (as T5's published file does) would match them in any text."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Core

    pieces = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("▁", -2.0),
        ("▁x", -3.0),
        *((c, -4.0) for c in "</>_abdeirtxs0"),
    ]
    core = Core(models.Unigram([*pieces, ("<extra_id_0>", 0.0)], unk_id=2))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    core.add_special_tokens([AddedToken(name, special=True) for name in ("<pad>", "</s>", "<unk>", "<extra_id_0>")])
    core.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.sentinels == 1
    for text in ("x <extra_id_0>", "</s>", "x</s>x"):
        ids = tokenizer.encode(text)
        assert not set(ids) & {0, 1, tokenizer.sentinel(0)}
        assert tokenizer.decode(ids) == text
    assert tokenizer.sentinel(0) in tokenizer.encode("x <extra_id_0>", allow_special=True)


def test_a_single_character_can_be_padding_and_text(tmp_path: Path) -> None:
    made("gpt2").save(tmp_path)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / name).write_text(json.dumps({"pad_token": "!", "eos_token": "<|endoftext|>"}))
    loaded = Tokenizer.load(tmp_path)
    assert loaded.pad_id == loaded.id("!") in loaded.special_ids
    assert loaded.decode(loaded.encode("oh! <|endoftext|>")) == "oh! <|endoftext|>"


def test_printable_tokens() -> None:
    t = made("gpt2")
    assert "".join(t.tokens(t.encode(" the\n\tfox"))) == "▁the↵⇥fox"
    assert t.tokens(t.encode("日"))[0] == "<0xE6>"
    assert t.tokens([10**6]) == ["<1000000?>"]


def test_errors_are_sentences() -> None:
    def said(kind: type[StemmaError], call: object, *args: object, **more: object) -> str:
        with pytest.raises(kind) as caught:
            call(*args, **more)  # type: ignore[operator]
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "did you mean 'wordpiece'" in said(UsageError, Tokenizer.train, "wordpeice", TEXTS, 300, BERT)
    assert "too small" in said(UsageError, Tokenizer.train, "bpe", TEXTS, 200, GPT2)
    assert "need" in said(UsageError, Tokenizer.train, "unigram", TEXTS, 265, Specials())
    for kind in ("bpe", "wordpiece", "unigram", "spm-bpe", "gpt-bpe"):
        assert "no text" in said(DataError, Tokenizer.train, kind, [" ", "\n"], 400, Specials(unk="<unk>"))
    assert "lowercase" in said(UsageError, Tokenizer.train, "bpe", TEXTS, 300, GPT2, lowercase=True)
    tokenizer = made("gpt2")
    tokenizer.check(400)
    assert "400 ids but the model only 399" in said(CheckpointError, tokenizer.check, 399)
    assert "-9" in said(UsageError, tokenizer.decode, [-9])
    assert tokenizer.decode([999]) == ""  # embeddings past the vocabulary stand for no text
    for call in (tokenizer.encode, tokenizer.encode_batch, tokenizer.encode_spans):
        assert "U+D801" in said(DataError, call, "a\ud801" if call == tokenizer.encode else ["fine", "a\ud801"])
    assert "no sentinel 0" in said(UsageError, tokenizer.sentinel, 0)
    assert "chat template" in said(UsageError, tokenizer.apply_chat, [])


# ---------------------------------------------------------------- files


def test_save_and_load(case: str, tmp_path: Path) -> None:
    tokenizer = made(case)
    tokenizer.save(tmp_path / "a")
    loaded = Tokenizer.load(tmp_path / "a")
    assert (loaded.kind, loaded.specials, loaded.vocab_size) == (
        tokenizer.kind,
        tokenizer.specials,
        tokenizer.vocab_size,
    )
    assert (loaded.special_ids, loaded.fingerprint) == (tokenizer.special_ids, tokenizer.fingerprint)
    assert loaded.lowercase == tokenizer.lowercase
    for text in TRICKY:
        assert loaded.encode(text) == tokenizer.encode(text)
        assert loaded.encode(text, allow_special=True) == tokenizer.encode(text, allow_special=True)
    loaded.save(tmp_path / "b")
    for path in (tmp_path / "a").iterdir():
        assert (tmp_path / "b" / path.name).read_bytes() == path.read_bytes(), path.name
    assert {p.name for p in (tmp_path / "a").iterdir()} == {p.name for p in (tmp_path / "b").iterdir()}


@pytest.mark.parametrize("config", [False, True])
def test_transformers_reads_what_we_write(case: str, config: bool, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = made(case)
    tokenizer.save(tmp_path)
    if config:  # a family's config beside it must not make transformers build that family's tokenizer anew
        family = {"gpt1": "openai-gpt", "llama": "mistral"}.get(case, case)
        (tmp_path / "config.json").write_text(json.dumps({"model_type": family, "vocab_size": 60000}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in TRICKY:
        assert theirs(text)["input_ids"] == tokenizer.encode(text, allow_special=True), text
    assert theirs("a b", "c")["input_ids"] == tokenizer.encode_pair("a b", "c")[0]
    assert len(theirs) == tokenizer.vocab_size
    for role in ("bos", "eos", "pad", "unk", "mask", "cls", "sep"):
        assert getattr(theirs, f"{role}_token_id") == getattr(tokenizer, f"{role}_id"), role


def test_we_read_what_transformers_writes(case: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    made(case).save(tmp_path / "a")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "a")
    theirs.chat_template = "{{ messages[0]['content'] }}"
    theirs.save_pretrained(tmp_path / "b")
    ours = Tokenizer.load(tmp_path / "b")
    assert ours.specials == made(case).specials
    assert ours.chat_template == theirs.chat_template
    for text in TRICKY:
        assert ours.encode(text) == made(case).encode(text)
    ours.save(tmp_path / "c")
    for path in (tmp_path / "b").iterdir():
        assert (tmp_path / "c" / path.name).read_bytes() == path.read_bytes(), path.name


def test_special_names_in_every_published_form(tmp_path: Path) -> None:
    made("gpt2").save(tmp_path)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / name).unlink()
    described = {"content": "<|endoftext|>", "lstrip": False, "__type": "AddedToken"}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": described, "pad_token": None}))
    assert Tokenizer.load(tmp_path).specials == Specials(eos="<|endoftext|>")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<|endoftext|>", "pad_token": "<absent>"}))
    assert Tokenizer.load(tmp_path).specials == GPT2
    (tmp_path / "config.json").write_text(
        json.dumps({"pad_token_id": 3, "eos_token_id": [399, 2], "bos_token_id": None})
    )
    loaded = Tokenizer.load(tmp_path)
    assert (loaded.pad_id, loaded.eos_id) == (3, 399)
    for name in ("tokenizer_config.json", "special_tokens_map.json", "config.json"):
        (tmp_path / name).unlink()
    assert Tokenizer.load(tmp_path).specials == GPT2
    assert Tokenizer.load(tmp_path / "tokenizer.json").specials == GPT2


def test_padding_and_truncation_in_a_file_do_not_change_ids(tmp_path: Path) -> None:
    made("bert").save(tmp_path)
    state = json.loads((tmp_path / "tokenizer.json").read_text())
    state["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    state["padding"] = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None}
    state["padding"] |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"}
    raw = json.dumps(state)
    (tmp_path / "tokenizer.json").write_text(raw)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.encode(TEXTS[0]) == made("bert").encode(TEXTS[0])
    assert loaded.encode("the", allow_special=True) == made("bert").encode("the")
    loaded.save(tmp_path)
    assert (tmp_path / "tokenizer.json").read_text() == raw


def test_legacy_wordpiece(tmp_path: Path) -> None:
    vocab = sorted((i, made("bert").token(i)) for i in range(300))
    (tmp_path / "vocab.txt").write_text("".join(f"{token}\n" for _, token in vocab))
    loaded = Tokenizer.load(tmp_path)
    assert loaded.lowercase and loaded.specials == BERT
    assert all(loaded.encode(text) == made("bert").encode(text) for text in TRICKY + TEXTS[:20])
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert not Tokenizer.load(tmp_path).lowercase
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(CheckpointError, match=r"vocab\.txt has no \[UNK\] entry"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("name", ["gpt1", "gpt2", "roberta"])
def test_legacy_bpe(name: str, tmp_path: Path) -> None:
    tokenizer = made(name)
    tokenizer.save(tmp_path / "new")
    state = json.loads((tmp_path / "new" / "tokenizer.json").read_text())["model"]
    vocab = {tokenizer.token(i): i for i in range(tokenizer.vocab_size)}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    merges = [m if isinstance(m, str) else " ".join(m) for m in state["merges"]]
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    loaded = Tokenizer.load(tmp_path)
    assert (loaded.specials, loaded.kind) == (tokenizer.specials, tokenizer.kind)
    for text in TRICKY:
        assert loaded.encode(text) == tokenizer.encode(text), text
    loaded.save(tmp_path / "again")
    assert Tokenizer.load(tmp_path / "again").encode(TEXTS[3]) == tokenizer.encode(TEXTS[3])
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b c\n")
    with pytest.raises(CheckpointError, match=r"merges\.txt:2 is not a merge"):
        Tokenizer.load(tmp_path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(CheckpointError, match=r"needs its merges\.txt"):
        Tokenizer.load(tmp_path)


def test_errors_of_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        Tokenizer.load(tmp_path / "absent")
    with pytest.raises(CheckpointError, match=r"expected tokenizer\.json or one of"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(CheckpointError, match=r"is not JSON: .* line 1 column"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": {}}')
    with pytest.raises(CheckpointError, match="tokenizers library can read"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match=r"is not UTF-8 text: byte 0 is 0xff"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    for raw in (b"", b"\x00" * 9, b"not a model at all", b"\x0a\x05\x0a\xff"):
        (tmp_path / "tokenizer.model").write_bytes(raw)
        with pytest.raises(CheckpointError, match=r"tokenizer\.model is not a SentencePiece model"):
            Tokenizer.load(tmp_path)


# ---------------------------------------------------------------- chat


def test_chat(tmp_path: Path) -> None:
    template = (
        "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    messages = [{"role": "user", "content": "hi"}]
    made("llama").save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    other = {"name": "tool", "template": "no"}
    for held in (template, [other, {"name": "default", "template": template}], {"default": template}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": held}))
        tokenizer = Tokenizer.load(tmp_path)
        assert tokenizer.chat_template == template
        tokenizer.save(tmp_path)
        assert not (tmp_path / "chat_template.jinja").exists()
    pytest.importorskip("jinja2")
    assert tokenizer.apply_chat(messages) == "<s>[user] hi\n[assistant]"
    assert tokenizer.apply_chat(messages, add_generation_prompt=False) == "<s>[user] hi\n"
    if importlib.util.find_spec("transformers"):
        import transformers

        held = "{% if tools is not none %}T{% endif %}{{ messages | tojson }}\n"
        held += "  {%- for m in messages %}\n x\n  {% endfor %}"
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
        theirs.chat_template = tokenizer.chat_template = held
        said = [{"role": "user", "content": "é <b>\n"}]
        assert tokenizer.apply_chat(said) == theirs.apply_chat_template(
            said, tokenize=False, add_generation_prompt=True
        )
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    tokenizer = Tokenizer.load(tmp_path)
    with pytest.raises(DataError, match="roles must alternate"):
        tokenizer.apply_chat(messages)
    with pytest.raises(UsageError, match="message 0 has no 'role'"):
        tokenizer.apply_chat([{"content": "hi"}])
    tokenizer.chat_template = "{{ ''.__class__.__mro__ }}{% set x = messages.append(1) %}"
    with pytest.raises(DataError):
        tokenizer.apply_chat(messages)
    tokenizer.chat_template = "{% if %}"
    with pytest.raises(CheckpointError, match="not valid Jinja"):
        tokenizer.apply_chat(messages)
    tokenizer.chat_template = template
    tokenizer.save(tmp_path / "b")
    assert Tokenizer.load(tmp_path / "b").chat_template == template


# ---------------------------------------------------------------- sentencepiece


MIXES = [
    *TRICKY,
    "  ▁ ▁▁ a",
    "ﬁ ligature ①",
    "١٢٣ 12 3",
    "\x00a\x01",
    "def f(x):\n    return x  # ok",
    *(
        "".join(
            (" ", "a", "<", "0x0A>", "▁", "\n", "é", "🙂", "the ", ".", "1")[(i * 7 + j * j * 3 + i // 5) % 11]
            for j in range(i % 17)
        )
        for i in range(200)
    ),
]


@pytest.mark.parametrize("style", ["unigram", "bpe"])
@pytest.mark.parametrize("fallback", [True, False])
@pytest.mark.parametrize("squeeze", [True, False])
def test_equal_to_sentencepiece(style: str, fallback: bool, squeeze: bool, tmp_path: Path) -> None:
    import sentencepiece

    raw = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in TEXTS for line in text.split("\n")]),
        model_writer=raw,
        model_type=style,
        vocab_size=400,
        byte_fallback=fallback,
        remove_extra_whitespaces=squeeze,
        normalization_rule_name="nmt_nfkc" if squeeze else "identity",
        user_defined_symbols=["<user>", "🙃"],
        control_symbols=["<ctl>"],
        allow_whitespace_only_pieces=True,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=3,
    )
    (tmp_path / "tokenizer.model").write_bytes(raw.getvalue())
    theirs = sentencepiece.SentencePieceProcessor(model_proto=raw.getvalue())
    ours = Tokenizer.load(tmp_path)
    assert (ours.vocab_size, ours.bos_id, ours.eos_id, ours.unk_id) == (theirs.vocab_size(), 1, 2, 0)
    for text in [*MIXES, "the<user>", "the🙃", "<ctl>", *TEXTS[:40]]:
        ids = theirs.encode(text)
        assert ours.encode(text, add_special=False) == ids, text
        if 0 not in ids:
            assert ours.decode(ids) == theirs.decode(ids), text
    assert ours.encode("a")[0] == 1


def _published() -> list[Path]:
    found = importlib.util.find_spec("mistral_common")
    roots = list(found.submodule_search_locations or []) if found else []
    return sorted(p for root in roots for p in (Path(root) / "data").glob("*.model.v*"))


@pytest.mark.skipif(not _published(), reason="mistral-common is not installed")
def test_equal_to_sentencepiece_on_published_models(tmp_path: Path) -> None:
    import sentencepiece

    for path in _published()[-1:]:
        (tmp_path / "tokenizer.model").write_bytes(path.read_bytes())
        theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
        ours = Tokenizer.load(tmp_path)
        for text in [*MIXES, *TEXTS[:50], "[INST] hi [/INST]"]:
            assert ours.encode(text, add_special=False) == theirs.encode(text), text
            assert ours.decode(theirs.encode(text)) == theirs.decode(theirs.encode(text)), text


def test_damaged_models_are_refused_not_misread() -> None:
    raw = b"\x0a\x0e\x0a\x05<unk>\x15\x00\x00\x00\x00\x18\x02\x12\x02\x18\x01"
    assert spm.parse(raw, "m").pieces == [("<unk>", 0.0, spm.UNKNOWN)]
    for cut in range(1, len(raw) - 4):
        with pytest.raises(CheckpointError):
            spm.parse(raw[:cut], "m")
    with pytest.raises(CheckpointError, match="word or character"):
        spm.parse(raw[:-1] + b"\x03", "m")


@pytest.mark.parametrize("kind", ["wordpiece", "gpt-bpe"])
def test_an_alphabet_of_thousands_is_kept_if_asked_for(kind: str) -> None:
    chars = [chr(0x4E00 + i) for i in range(1500)]
    texts = [" ".join("".join(chars[i : i + 5]) for i in range(0, 1500, 5))]
    specials = Specials(unk="[UNK]", pad="[PAD]")
    with pytest.warns(UserWarning, match="keeps the 1,000 most frequent of 1,500 characters, and 33% of the text is"):
        Tokenizer.train(kind, texts, 8000, specials)
    wide = Tokenizer.train(kind, texts, 8000, specials, alphabet=3000)
    assert "[UNK]" not in wide.tokens(wide.encode(texts[0]))
    with pytest.raises(UsageError, match="a bpe vocabulary has no limited alphabet"):
        Tokenizer.train("bpe", texts, 8000, specials, alphabet=3000)


# ---------------------------------------------------------------- large texts


@pytest.mark.parametrize("kind", ["wordpiece", "gpt-bpe", "bpe", "unigram", "spm-bpe"])
def test_texts_that_come_one_by_one_train_the_same_tokenizer(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spm, "LIMIT", {"unigram": 6000, "spm-bpe": 6000})
    specials = Specials(unk="<unk>", bos="<s>", eos="</s>")
    held, streamed = (Tokenizer.train(kind, texts, 330, specials) for texts in (TEXTS, iter(TEXTS)))
    assert held.fingerprint == streamed.fingerprint
    for blank in ([], iter([]), [" ", "\n"], iter([" ", "\n"])):
        with pytest.raises(DataError, match="no text to train a tokenizer on"):
            Tokenizer.train(kind, blank, 330, specials)


def test_a_text_for_the_trainer_is_cut_into_lines_and_thinned() -> None:
    lines = list(spm._lines(["one\ntwo\x00\n\n" + "x" * 1500, "three"]))
    assert list(map(len, lines)) == [3, 3, 1000, 500, 5]
    assert spm._step(["abcde\nabcde"] * 10, 30) == 4 and spm._step(["abcde"], 5) == 1 and spm._step([], 5) == 1


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(max_size=30), max_size=4), st.booleans())
def test_characters_are_counted_as_the_normalizer_writes_them(texts: list[str], lower: bool) -> None:
    from tokenizers import normalizers

    normal = normalizers.BertNormalizer(lowercase=lower).normalize_str
    assert corpus.characters(texts, normal) == Counter("".join(map(normal, texts)))


class Counted(str):
    """A text that counts how many of its kind there are."""

    alive = most = 0

    def __init__(self, _: object) -> None:
        Counted.alive += 1
        Counted.most = max(Counted.most, Counted.alive)

    def __del__(self) -> None:
        Counted.alive -= 1


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "spm-bpe"])
def test_training_holds_few_texts_at_a_time(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spm, "LIMIT", {"spm-bpe": 20_000})
    monkeypatch.setattr(Counted, "most", 0)
    line = " ".join(WORDS) + "\n"
    Tokenizer.train(kind, (Counted(f"{i} " + line * 10) for i in range(2000)), 330, Specials(unk="<unk>"))
    assert Counted.most < 700


def test_a_full_disk_for_the_texts_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> object:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(ResourceError, match="the disk is full"):
        Tokenizer.train("wordpiece", iter(TEXTS), 330, Specials(unk="<unk>"))
