"""Tokenizers as their publishers store them, compared with the reference."""

from __future__ import annotations

import functools
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

import stemma
from stemma.errors import CheckpointError, UsageError
from stemma.text import Tokenizer, legacy

BERT = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\nfox\nFox\n"
TEXTS = ["the quick brown fox", "hello  to a dog", "the [MASK] fox"]


def folder(path: Path, **files: Any) -> Path:
    """A folder with files: text, bytes, or values as JSON; `__` in a name is a dot."""
    path.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        raw = value if isinstance(value, bytes) else (value if isinstance(value, str) else json.dumps(value)).encode()
        (path / name.replace("__", ".")).write_bytes(raw)
    return path


@functools.cache
def sentencepiece_model(**options: Any) -> bytes:
    import sentencepiece

    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the quick brown fox says hello to a dog"] * 9), model_writer=out, minloglevel=3,
        vocab_size=60, hard_vocab_limit=False, model_type="unigram", num_threads=1, **options,
    )  # fmt: skip
    return out.getvalue()


def pieces(raw: bytes) -> Any:
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_proto=raw)


# ---------------------------------------------------------------- added tokens


@pytest.mark.parametrize("where", ["added_tokens.json", "added_tokens_decoder"])
@pytest.mark.parametrize("special", [True, False])
def test_added_tokens_beside_vocab_txt(where: str, special: bool, tmp_path: Path) -> None:
    import transformers as hf

    config: dict[str, Any] = {"tokenizer_class": "BertTokenizer", "do_lower_case": False}
    if where == "added_tokens_decoder":
        config["added_tokens_decoder"] = {
            "8": {"content": "[ENT]", "special": special, "normalized": False}, "9": {"content": "zz", "special": False},
        }  # fmt: skip
    else:
        (tmp_path / where).write_text('{"[ENT]": 8, "zz": 9}')
        config["additional_special_tokens"] = ["[ENT]"] if special else []
    folder(tmp_path, vocab__txt=BERT, tokenizer_config__json=config, config__json={"model_type": "bert"})
    ours = Tokenizer.load(tmp_path)
    assert ours.encode("the [ENT] zz fox", allow_special=True) == [2, 5, 8, 9, 6, 3]
    assert (8 in ours.special_ids) == special and (8 in ours.encode("the [ENT] fox")) == (not special)
    assert hf.AutoTokenizer.from_pretrained(tmp_path)("the [ENT] zz fox").input_ids == [2, 5, 8, 9, 6, 3]
    ours.save(tmp_path / "again")
    assert Tokenizer.load(tmp_path / "again").encode("zz", add_special=False) == [9]


def test_added_tokens_beside_other_vocabularies(tmp_path: Path) -> None:
    bpe = folder(
        tmp_path / "bpe", vocab__json={"a": 0, "<|endoftext|>": 1}, merges__txt="", added_tokens__json={"<e>": 2}
    )
    assert Tokenizer.load(bpe).encode("a<e>a") == [0, 2, 0]
    raw = sentencepiece_model()
    size = pieces(raw).vocab_size()
    spm = folder(tmp_path / "spm", tokenizer__model=raw, added_tokens__json={"<e>": size, "<f>": size + 1})
    assert Tokenizer.load(spm).encode("the<f>the").count(size + 1) == 1


def test_added_tokens_that_cannot_be(tmp_path: Path) -> None:
    for tokens, reason in (
        ({"[ENT]": 9}, "id 8 is no token"),
        ({"[ENT]": 6}, r"which is 'fox'"),
        ({"fox": 8}, "ids 8 and 6"),
        ({"[ENT]": "8"}, "an id for every token"),
    ):
        folder(tmp_path, vocab__txt=BERT, added_tokens__json=tokens)
        with pytest.raises(CheckpointError, match=reason):
            Tokenizer.load(tmp_path)
    folder(tmp_path, vocab__txt=BERT, tokenizer_config__json={"added_tokens_decoder": ["[ENT]"]})
    with pytest.raises(CheckpointError, match="added_tokens_decoder"):
        Tokenizer.load(tmp_path)


# ---------------------------------------------------------------- layouts


def test_mbart_50_equals_the_reference(tmp_path: Path) -> None:
    import transformers as hf

    raw = sentencepiece_model()
    config = {"tokenizer_class": "MBart50Tokenizer", "src_lang": "ro_RO"}
    folder(tmp_path, sentencepiece__bpe__model=raw, config__json={"model_type": "mbart"}, tokenizer_config__json=config)
    ours, theirs = Tokenizer.load(tmp_path), hf.MBart50Tokenizer.from_pretrained(tmp_path)
    assert ours.vocab_size == len(theirs) == pieces(raw).vocab_size() + 1 + 52 + 1
    for text in TEXTS[:2]:
        assert ours.encode(text) == theirs(text).input_ids
    for name in ("fr_XX", "sl_SI", "<mask>", "</s>"):
        assert ours.id(name) == theirs.convert_tokens_to_ids(name)
    assert ours.id("fr_XX") in ours.special_ids


def test_mbart_cc25(tmp_path: Path) -> None:
    """`A </s> en_XX`; pieces one place further than in the file (Liu et al. 2020, arXiv:2001.08210)."""
    raw = sentencepiece_model()
    folder(tmp_path, sentencepiece__bpe__model=raw, config__json={"model_type": "mbart"})
    ours, theirs = Tokenizer.load(tmp_path), pieces(raw)
    size = theirs.vocab_size()
    for text in TEXTS[:2]:
        assert ours.encode(text) == [i + 1 for i in theirs.encode(text)] + [2, size + 4]
    assert ours.id("zh_CN") == size + 25 and ours.mask_id == size + 26 == ours.vocab_size - 1
    assert len(set(legacy.CC25 + legacy.CC50)) == 52
    folder(tmp_path, tokenizer_config__json={"src_lang": "xx_XX"})
    with pytest.raises(CheckpointError, match="src_lang='xx_XX' is none of"):
        Tokenizer.load(tmp_path)


def test_a_file_whose_ids_depend_on_the_model_is_not_guessed_at(tmp_path: Path) -> None:
    folder(tmp_path, sentencepiece__bpe__model=sentencepiece_model(), config__json={"model_type": "m2m_100"})
    with pytest.raises(CheckpointError, match="model_type='m2m_100' does not tell"):
        Tokenizer.load(tmp_path)
    folder(tmp_path, config__json={}, tokenizer_config__json={"tokenizer_class": "XLMRobertaTokenizerFast"})
    assert Tokenizer.load(tmp_path).encode("")[0] == 0


def test_deberta(tmp_path: Path) -> None:
    import transformers as hf

    vocab = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3, "a": 4, "b": 5, "ab": 6, "Ġ": 7, "[MASK]": 8}
    merges = "#version: 0.2\na b\n"
    folder(tmp_path, vocab__json=vocab, merges__txt=merges, config__json={"model_type": "deberta"})
    ours, theirs = Tokenizer.load(tmp_path), hf.DebertaTokenizer.from_pretrained(tmp_path)
    for text in ("ab a", "a [MASK]", "b[SEP]"):
        assert ours.encode(text, allow_special=True) == theirs(text).input_ids, text
    assert ours.encode_pair("a", "b") == ([1, 4, 2, 5, 2], [0, 0, 0, 1, 1])
    assert (ours.pad_id, ours.unk_id, ours.mask_id, ours.cls_id) == (0, 3, 8, 1)


def test_deberta_v2(tmp_path: Path) -> None:
    raw = sentencepiece_model(
        pad_id=0, bos_id=1, eos_id=2, unk_id=3, pad_piece="[PAD]", bos_piece="[CLS]", eos_piece="[SEP]",
        unk_piece="[UNK]",
    )  # fmt: skip
    size = pieces(raw).vocab_size()
    folder(tmp_path, spm__model=raw, config__json={"model_type": "deberta-v2"}, added_tokens__json={"[MASK]": size})
    ours = Tokenizer.load(tmp_path)
    for text in TEXTS[:2]:
        assert ours.encode(text) == [1, *pieces(raw).encode(text), 2]
    assert (ours.mask_id, ours.vocab_size) == (size, size + 1)
    assert ours.encode_pair("the", "fox")[1] == [0] * len(ours.encode("the")) + [1] * (len(ours.encode("fox")) - 1)
    folder(tmp_path, tokenizer_config__json={"do_lower_case": True})
    assert Tokenizer.load(tmp_path).encode("The FOX") == ours.encode("the fox")
    model = stemma.build("deberta-v3-small", layers=1, d_model=16, heads=2, d_ff=16, vocab=size + 1)
    model.save(tmp_path / "model")
    (tmp_path / "model" / "spm.model").write_bytes(raw)
    assert stemma.load(tmp_path / "model").tokenizer.vocab_size == size + 1


# ---------------------------------------------------------------- mT5


def mt5(path: Path) -> tuple[Any, int]:
    """A model whose sentinels are pieces with the space, as mT5's, and the id of the first sentinel."""
    from sentencepiece import sentencepiece_model_pb2 as pb

    proto = pb.ModelProto.FromString(sentencepiece_model(pad_id=0, eos_id=1, unk_id=2, bos_id=-1))
    for k in (1, 0):
        proto.pieces.add(piece=f"▁<extra_id_{k}>", score=0, type=4)
    size = len(proto.pieces)
    stemma.build(
        "mt5-small", d_model=16, layers=1, decoder_layers=1, heads=2, d_ff=16, head_dim=8, vocab=size
    ).save(path)  # fmt: skip
    folder(path, spiece__model=proto.SerializeToString(), tokenizer_config__json={"extra_ids": 0})
    return stemma.load(path), size - 1


def test_sentinels_of_mt5(tmp_path: Path) -> None:
    model, first = mt5(tmp_path)
    tokenizer = model.tokenizer
    assert tokenizer.sentinels == 2 and [tokenizer.sentinel(k) for k in (0, 1)] == [first, first - 1]
    assert first not in tokenizer.encode("the ▁<extra_id_0> fox")
    wanted = [*tokenizer.encode("the", add_special=False), first, *tokenizer.encode("fox")]
    assert tokenizer.encode("the ▁<extra_id_0> fox", allow_special=True) == wanted
    filled = [stemma.fill(model, text) for text in ("the [MASK] fox", "the <extra_id_0> fox", "the ▁<extra_id_0> fox")]
    assert len(filled[0].spans) == 1 and filled[0] == filled[1] == filled[2]
    tokenizer.save(tmp_path / "again")
    assert Tokenizer.load(tmp_path / "again").sentinels == 2


# ---------------------------------------------------------------- options beside tokenizer.json


@pytest.mark.parametrize(
    ("option", "text"),
    [({"do_lower_case": True}, "Fox"), ({"strip_accents": True}, "fóx"), ({"tokenize_chinese_chars": False}, "fox東")],
)
def test_options_of_bert_beside_tokenizer_json(option: dict[str, bool], text: str, tmp_path: Path) -> None:
    import transformers as hf

    config: dict[str, Any] = {"tokenizer_class": "BertTokenizer", "do_lower_case": False}
    folder(tmp_path, vocab__txt=BERT, config__json={"model_type": "bert"}, tokenizer_config__json=config)
    hf.AutoTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    before = Tokenizer.load(tmp_path).encode(text)
    folder(tmp_path, tokenizer_config__json=config | option)
    ours = Tokenizer.load(tmp_path)
    assert ours.encode(text) == hf.AutoTokenizer.from_pretrained(tmp_path)(text).input_ids != before
    ours.save(tmp_path / "again")
    assert Tokenizer.load(tmp_path / "again").encode(text) == ours.encode(text)
    folder(tmp_path, tokenizer_config__json=config | option | {"tokenizer_class": "PreTrainedTokenizerFast"})
    assert Tokenizer.load(tmp_path).encode(text) == before  # this class takes tokenizer.json as it is
    folder(tmp_path, tokenizer_config__json=config | {"tokenizer_class": "BertTokenizer", "do_lower_case": "no"})
    with pytest.raises(CheckpointError, match="does not fit"):
        Tokenizer.load(tmp_path)


def test_other_options_beside_tokenizer_json(tmp_path: Path) -> None:
    import transformers as hf

    vocab = {"a": 0, "Ġ": 1, "Ġa": 2, "<|endoftext|>": 3}
    gpt2 = folder(
        tmp_path / "gpt2", vocab__json=vocab, merges__txt="#version: 0.2\nĠ a\n", config__json={"model_type": "gpt2"}
    )
    hf.GPT2Tokenizer.from_pretrained(gpt2).save_pretrained(gpt2)
    config = json.loads((gpt2 / "tokenizer_config.json").read_text())
    assert Tokenizer.load(gpt2).encode("a") == [0]
    folder(gpt2, tokenizer_config__json=config | {"add_prefix_space": True})
    assert Tokenizer.load(gpt2).encode("a") == hf.GPT2Tokenizer.from_pretrained(gpt2)("a").input_ids == [2]

    raw = sentencepiece_model(pad_id=0, unk_id=1, bos_id=-1, eos_id=-1, control_symbols="[CLS],[SEP],[MASK]")
    albert = folder(tmp_path / "albert", spiece__model=raw, config__json={"model_type": "albert"})
    Tokenizer.load(albert).save(albert)
    config = {"tokenizer_class": "AlbertTokenizer"}
    for option, same, other in (
        ({"do_lower_case": False}, "Fox", "fox"), ({"keep_accents": True}, "thé", "the"), ({}, "", "")
    ):  # fmt: skip
        folder(albert, tokenizer_config__json=config | option)
        loaded = Tokenizer.load(albert)
        assert (loaded.encode(same) == loaded.encode(other)) == (not option)
    (albert / "tokenizer.json").unlink()
    folder(albert, tokenizer_config__json={"do_lower_case": False, "keep_accents": True})
    Tokenizer.load(albert).save(albert)
    folder(albert, tokenizer_config__json=config | {"do_lower_case": True, "keep_accents": False})
    assert Tokenizer.load(albert).encode("Thé Fox") == Tokenizer.load(albert).encode("the fox")


# ---------------------------------------------------------------- more ids than rows


def test_an_added_token_may_have_no_row(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Core
    from tokenizers import models

    stemma.build("gemma3-1b", layers=1, d_model=16, heads=1, kv_heads=1, head_dim=16, d_ff=16, vocab=8).save(tmp_path)
    core = Core(models.BPE({c: i for i, c in enumerate("abcdefgh")}, []))
    core.add_special_tokens(["<image_soft_token>"])
    core.save(str(tmp_path / "tokenizer.json"))
    model = stemma.load(tmp_path)
    assert stemma.generate(model, "abc", max_new_tokens=1)
    with pytest.raises(UsageError, match="the token id 8; this model's ids are 0 to 7"):
        stemma.generate(model, [model.tokenizer.encode("a<image_soft_token>", allow_special=True)])
    model.tokenizer.check(8, training=True)  # no text gets the id
    core.add_tokens(["<more>"])
    core.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="10 ids but the model only 8"):
        stemma.load(tmp_path).tokenizer.check(8, training=True)
    wrong = Core(models.BPE({c: i for i, c in enumerate("abcdefghi")}, []))
    wrong.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="9 ids but the model only 8"):
        stemma.load(tmp_path)


def test_a_mask_without_a_row_is_not_filled(tmp_path: Path) -> None:
    stemma.build("bert-base-uncased", layers=1, d_model=16, heads=2, d_ff=16, vocab=8).save(tmp_path)
    folder(tmp_path, vocab__txt=BERT.replace("[MASK]", "dog"), added_tokens__json={"[MASK]": 8})
    with pytest.raises(UsageError, match="the token id 8; this model's ids are 0 to 7"):
        stemma.fill(stemma.load(tmp_path), "the [MASK]")


# ---------------------------------------------------------------- chat templates


def test_what_transformers_adds_to_jinja(tmp_path: Path) -> None:
    import transformers as hf

    template = (
        "{% if tools %}{{ tools[0]['name'] }} {{ tools | tojson }}{% endif %}"
        "{% for m in messages %}{% generation %}{% set x = 1 %}{{ m.content }}{% endgeneration %}{{ x }}{% endfor %}"
        "{% if enable_thinking is defined and enable_thinking is false %}<no>{% endif %}"
    )
    folder(tmp_path, vocab__txt=BERT, chat_template__jinja=template, config__json={"model_type": "bert"})
    ours, theirs = Tokenizer.load(tmp_path), hf.BertTokenizer.from_pretrained(tmp_path)
    messages = [{"role": "user", "content": "the"}, {"role": "assistant", "content": "fox"}]
    options: dict[str, Any]
    for options in ({}, {"tools": [{"name": "f", "type": "function"}]}, {"enable_thinking": False}, {"bos_token": "x"}):
        assert ours.apply_chat(messages, **options) == theirs.apply_chat_template(messages, tokenize=False, **options)
    assert ours.apply_chat(messages, enable_thinking=False) == "thefox<no>"


# ---------------------------------------------------------------- ends


@functools.cache
def counting(path: Path) -> Any:
    """A network that writes id + 1, whose token 11 is special."""
    import torch
    from tokenizers import Tokenizer as Core
    from tokenizers import models

    size = 12
    model = stemma.build("llama-7b", layers=1, d_model=16, heads=1, d_ff=16, vocab=size)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.embed.tokens.weight[:, :size] = 9 * torch.eye(size)
        model.lm.weight[:, :size] = torch.eye(size).roll(1, 0)
        model.decoder.norm.weight.fill_(1)
    model.save(path)
    core = Core(models.BPE({c: i for i, c in enumerate("<>abcdefghi")}, []))
    core.add_special_tokens(["<|im_end|>"])
    core.save(str(path / "tokenizer.json"))
    return stemma.load(path)


def test_a_special_token_stops(tmp_path: Path) -> None:
    model = counting(tmp_path)

    def written(**options: Any) -> list[int]:
        return stemma.generate(model, [[8]], max_new_tokens=6, **options)[0].ids

    assert written() == [9, 10, 11, 0, 1, 2]
    assert written(stop="<|im_end|>") == written(eos_token_id=11) == written(eos_token_id="<|im_end|>") == [9, 10, 11]
    assert written(stop=["<|im_end|>", "h"], ignore_eos=True) == [9]
    assert written(stop="<|im_end|>", ignore_eos=True, num_beams=2) == [9, 10, 11]
    from stemma.cli.models import generate, params

    context = generate.make_context("generate", [str(tmp_path), "g", "--eos", "<|im_end|>", "--eos", "3"])
    options = {
        k: v
        for k, v in context.params.items()
        if k
        not in {"path", "prompts", "stream", "as_json", "device", "dtype", "adapter", "quantize"}
        | {"repeat", "whole", "special", "task", "bare", "batch", "out", "rewards"}
    }
    assert params(model, options).eos_token_id == ("<|im_end|>", 3)


@pytest.mark.parametrize("tokenizer", [True, False])
def test_ends_of_generation_config_survive_gguf(tokenizer: bool, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from stemma.decoding import generation_config

    stemma.build("llama-7b", layers=1, d_model=32, heads=1, d_ff=32, vocab=12).save(tmp_path)
    folder(tmp_path, generation_config__json={"eos_token_id": [1, 11, 5]})
    model = stemma.load(tmp_path)
    model.save(tmp_path / "x.gguf")
    assert generation_config.eos_ids(stemma.load(tmp_path / "x.gguf")) == (1, 11, 5)
    folder(tmp_path, generation_config__json={"eos_token_id": [1, 11, 5, 7]})
    with pytest.warns(UserWarning, match=r"\[7\] are left out"):
        stemma.load(tmp_path).save(tmp_path / "y.gguf")


# ---------------------------------------------------------------- prompts of sentence-transformers


def test_prompts_of_sentence_transformers(tmp_path: Path) -> None:
    import torch

    vocab = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nquery\nfox\n:\n"
    kinds = "sentence_transformers.models."
    config = {"prompts": {"query": "query: ", "none": ""}, "default_prompt_name": "query"}
    stemma.build("bert-base-uncased", layers=1, d_model=16, heads=1, d_ff=16, vocab=8).save(tmp_path)
    folder(
        tmp_path, vocab__txt=vocab, config_sentence_transformers__json=config,
        modules__json=[{"idx": 0, "name": "0", "path": "", "type": f"{kinds}Transformer"},
                       {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{kinds}Pooling"}],
    )  # fmt: skip
    folder(tmp_path / "1_Pooling", config__json={"pooling_mode": "mean"})
    model = stemma.load(tmp_path)
    plain = stemma.embed(model, ["query: fox"], prompt="")
    assert torch.equal(stemma.embed(model, ["fox"]), plain)
    assert torch.equal(stemma.embed(model, ["fox"], prompt="query: "), plain)
    assert torch.equal(stemma.embed(model, ["fox"], prompt_name="none"), stemma.embed(model, ["fox"], prompt=""))
    assert not torch.allclose(stemma.embed(model, ["fox"], prompt=""), plain)
    ids = model.tokenizer.encode("fox")
    assert torch.equal(stemma.embed(model, [ids]), stemma.embed(model, ["fox"], prompt=""))  # ids are taken as they are
    with pytest.raises(UsageError, match="this model's prompts are query, none; did you mean 'query'"):
        stemma.embed(model, ["fox"], prompt_name="qery")
    with pytest.raises(UsageError, match="give one of them"):
        stemma.embed(model, ["fox"], prompt_name="query", prompt="a")
    model.save(tmp_path / "again")
    assert torch.equal(stemma.embed(stemma.load(tmp_path / "again"), ["fox"]), plain)

    folder(tmp_path / "1_Pooling", config__json={"pooling_mode": "mean", "include_prompt": False})
    model = stemma.load(tmp_path)
    whole = model.tokenizer.encode("query: fox")
    state = model.encode(torch.tensor([whole]))[0, len(whole) - 2 :].mean(0)  # [CLS] and the prompt are not pooled
    apart = stemma.embed(model, ["fox", ids], normalize=False)
    assert torch.allclose(apart[0], state, atol=1e-6)
    assert torch.allclose(apart[1], stemma.embed(model, [ids], normalize=False)[0], atol=1e-6)
    model.save(tmp_path / "again")
    assert torch.equal(stemma.embed(stemma.load(tmp_path / "again"), ["fox"], normalize=False)[0], apart[0])
    folder(tmp_path, config_sentence_transformers__json={"default_prompt_name": "x"})
    with pytest.raises(CheckpointError, match="default_prompt_name='x' is none of"):
        stemma.load(tmp_path)


# ---------------------------------------------------------------- sizes that a reference takes


@pytest.mark.parametrize("buckets", [4, 5, 6, 7, 10, 33])
@pytest.mark.parametrize("both", [True, False])
def test_any_number_of_buckets(buckets: int, both: bool) -> None:
    import torch
    from transformers.models.t5.modeling_t5 import T5Attention

    from stemma.nn import parts, positions

    far = torch.arange(-300, 301)
    ours = positions.Buckets(2, both, parts.Buckets(buckets, 128)).bucket(far)
    assert torch.equal(ours, T5Attention._relative_position_bucket(far, both, buckets, 128))


@pytest.mark.parametrize("heads", [1, 2, 3, 6, 8, 12, 20, 32])
def test_alibi_slopes(heads: int) -> None:
    import torch
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor
    from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

    from stemma.nn import positions

    bloom = build_alibi_tensor(torch.ones(1, 2, dtype=torch.int64), heads, torch.float32)[:, 0, 1]
    assert torch.allclose(positions.slopes(heads, 8.0), bloom, rtol=1e-6)
    mpt = build_mpt_alibi_tensor(heads, 2, alibi_bias_max=4)
    assert torch.allclose(positions.slopes(heads, 4.0), -mpt[:, 0, 0], rtol=1e-6)


@pytest.mark.parametrize("heads", [4, 6])
def test_alibi_equals_bloom(heads: int) -> None:
    """A GPT-2 with ALiBi and a norm after its embeddings is a BLOOM: its weights give the same logits, padded too."""
    import torch
    from transformers import BloomConfig, BloomForCausalLM

    from stemma.nn.parts import ALiBi

    torch.manual_seed(0)
    theirs = BloomForCausalLM(BloomConfig(vocab_size=50, hidden_size=8 * heads, n_layer=2, n_head=heads)).eval()
    changes = {"arch.position": ALiBi(), "arch.embed_norm": True, "arch.init.positions": None}
    widths = {"vocab": 50, "d_model": 8 * heads, "layers": 2, "heads": heads, "d_ff": 32 * heads}
    ours = stemma.build("gpt2", changes, **widths)
    state = {}
    for name, value in theirs.transformer.state_dict().items():
        name = name.replace("word_embeddings.", "embed.tokens.").replace(
            "word_embeddings_layernorm", "decoder.embed_norm"
        )
        name = re.sub(r"^h\.", "decoder.blocks.", name).replace("ln_f", "decoder.norm")
        name = name.replace("input_layernorm", "attention_norm").replace("post_attention_layernorm", "mlp_norm")
        name = name.replace("self_attention.dense", "attention.o").replace("mlp.dense_h_to_4h", "mlp.up")
        name = name.replace("mlp.dense_4h_to_h", "mlp.down")
        if "query_key_value" in name:
            for part, rows in zip("qkv", value.unflatten(0, (heads, 3, 8)).unbind(1), strict=True):
                state[name.replace("self_attention.query_key_value", f"attention.{part}")] = rows.flatten(0, 1)
        else:
            state[name] = value
    ours.load_state_dict(state)
    ids, mask = torch.randint(0, 50, (2, 17)), torch.ones(2, 17, dtype=torch.int64)
    mask[1, :5] = 0
    with torch.no_grad():
        gap = ours(ids, mask).logits - theirs(ids, attention_mask=mask).logits
        half = ours.to(torch.bfloat16)(ids, mask).logits
    assert gap[mask.bool()].abs().max() < 1e-5
    assert half.dtype == torch.bfloat16 and torch.isfinite(half[mask.bool()]).all()
