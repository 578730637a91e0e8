"""GGUF out: our files as the `gguf` package and our own reader see them. What llama.cpp makes of them is in
test_llama_cpp.py."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers as hf

import oracle
import stemma
from stemma.errors import ResourceError, UsageError
from stemma.formats.gguf import ARCHITECTURES, File
from stemma.formats.gguf.write import TYPES
from stemma.nn.parts import LinearScaling, Llama3Scaling, Sliding
from stemma.text import Specials, Tokenizer
from test_gguf import CUTS, TEXTS, TRICKY, byte_level
from test_meta import trained
from tiny import batch, build, run, tiny

SCALED = dict(rope_type="llama3", rope_theta=500.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=32)  # fmt: skip
CASES = ["llama", "llama-mha-tied", "llama-biased", "llama-mqa", "llama-linear", "llama-llama3", "mistral",
         "mistral-full", "gpt2", "t5", "bert-model"]  # fmt: skip
FIXED: dict[str, dict[str, Any]] = {"t5": {"relative_attention_max_distance": 128}}


def reference(case: str, **fields: Any) -> Any:
    name, config, own = oracle.CASES[case]
    torch.manual_seed(0)
    model = getattr(hf, name)(config(**{**own, **FIXED.get(case, {}), **fields}))
    oracle.jitter(model, 1)
    return model.eval()


def ours(case: str, folder: Path, **fields: Any) -> tuple[Any, Any]:
    """A tiny model of transformers', and ours read from its files."""
    model = reference(case, **fields)
    model.save_pretrained(folder / "hf")
    return model, stemma.load(folder / "hf")


def outputs(model: Any, case: str) -> torch.Tensor:
    """Logits, or hidden states of a model without a head, where there is no padding."""
    inputs = oracle.inputs(case)
    with torch.no_grad():
        out = model(**inputs)
    for name in ("logits", "last_hidden_state", "hidden"):
        if getattr(out, name, None) is not None:
            real = inputs.get("decoder_attention_mask", inputs["attention_mask"]).bool()
            return getattr(out, name)[real]
    raise AssertionError(out)


def parameters(model: Any, but: tuple[str, ...] = ()) -> dict[str, torch.Tensor]:
    return {n: p.detach() for n, p in model.named_parameters() if not n.startswith(but)}


# ---------------------------------------------------------------- weights and keys


@pytest.mark.filterwarnings("ignore:.* is written without pooler")
@pytest.mark.parametrize("case", CASES)
def test_the_same_model_comes_back(tmp_path: Path, case: str) -> None:
    theirs, model = ours(case, tmp_path)
    model.save(tmp_path / "x.gguf")
    again = stemma.load(tmp_path / "x.gguf")
    if not case.startswith("bert"):
        assert again.arch.heads == model.arch.heads
    assert again.name == ("llama" if case == "mistral-full" else model.name)  # a Mistral without its window is one
    assert again.arch.position == model.arch.position and again.arch.mask == model.arch.mask
    assert again.dims == model.dims
    want = parameters(model, ("pooler",))
    got = parameters(again)
    assert want.keys() == got.keys()
    for name, p in want.items():
        assert torch.equal(got[name], p), name
    torch.testing.assert_close(outputs(again, case), outputs(theirs, case), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("word", ["float16", "bfloat16"])
@pytest.mark.parametrize("case", ["llama", "gpt2", "t5", "bert-model"])
@pytest.mark.filterwarnings("ignore:.* is written without pooler")
def test_half_precision_is_kept_bit_for_bit(tmp_path: Path, word: str, case: str) -> None:
    kind = getattr(torch, word)
    _, model = ours(case, tmp_path)
    half = stemma.load(tmp_path / "hf", dtype=word)
    half.save(tmp_path / "x.gguf")
    again = stemma.load(tmp_path / "x.gguf", dtype="auto")
    for name, p in parameters(again).items():
        assert p.dtype == kind and torch.equal(p, parameters(half)[name]), name
    # of fp32 weights only the matrices are rounded
    model.save(tmp_path / "y.gguf", dtype=word)
    file = File(tmp_path / "y.gguf")
    for name, entry in file.entries.items():
        small = (
            len(entry.shape) == 1 or "norm" in name or "rel_b" in name or name.startswith(("position", "token_types"))
        )
        assert file.get(name).dtype == (torch.float32 if small else kind), name
    assert file.metadata["general.file_type"] == {"float16": 1, "bfloat16": 32}[word]


def test_q8_0(tmp_path: Path) -> None:
    _, model = ours("llama", tmp_path, hidden_size=64, num_attention_heads=4, intermediate_size=100)
    model.save(tmp_path / "x.gguf", dtype="q8_0")
    file, table = File(tmp_path / "x.gguf"), {t.name: t for t in gguf.GGUFReader(tmp_path / "x.gguf").tensors}
    assert file.entries["blk.0.ffn_up.weight"].kind == "Q8_0"
    assert file.entries["blk.0.ffn_down.weight"].kind == "F16"  # rows of 100
    assert file.entries["blk.0.ffn_norm.weight"].kind == "F32"
    up = parameters(model)["decoder.blocks.0.mlp.up.weight"].numpy()
    want = gguf.quants.quantize(up, gguf.GGMLQuantizationType.Q8_0)
    np.testing.assert_array_equal(table["blk.0.ffn_up.weight"].data, want)
    again = parameters(stemma.load(tmp_path / "x.gguf"))
    for name, p in parameters(model).items():
        if p.ndim == 2:  # half a step of the coarsest block
            assert (again[name] - p).abs().max() <= p.abs().max() / 127 / 2 * 1.01 + 1e-3, name


def test_rows_and_keys_as_llama_cpp_reads_them(tmp_path: Path) -> None:
    theirs, model = ours("llama-llama3", tmp_path)
    model.save(tmp_path / "x.gguf")
    reader = gguf.GGUFReader(tmp_path / "x.gguf")
    table = {t.name: t.data for t in reader.tensors}
    w, c = theirs.state_dict(), theirs.config
    half = c.head_dim // 2
    for x, n in (("q", c.num_attention_heads), ("k", c.num_key_value_heads)):
        order = [h * 2 * half + i + part * half for h in range(n) for i in range(half) for part in (0, 1)]
        held = w[f"model.layers.1.self_attn.{x}_proj.weight"].numpy()
        np.testing.assert_array_equal(table[f"blk.1.attn_{x}.weight"], held[order])
    np.testing.assert_array_equal(table["blk.1.attn_v.weight"], w["model.layers.1.self_attn.v_proj.weight"].numpy())
    np.testing.assert_array_equal(table["output.weight"], w["lm_head.weight"].numpy())
    free = 1.0 / c.rope_parameters["rope_theta"] ** (np.arange(0, c.head_dim, 2) / c.head_dim)
    factors = free / theirs.model.rotary_emb.inv_freq.numpy()
    np.testing.assert_allclose(table["rope_freqs.weight"], factors, rtol=1e-5)

    def value(key: str) -> Any:
        field = reader.fields[key]
        return field.parts[-1].tobytes().decode() if field.types[0] == 8 else field.parts[-1][0]

    assert value("general.architecture") == "llama" and value("llama.vocab_size") == c.vocab_size
    assert value("llama.attention.head_count_kv") == 2 and value("llama.rope.dimension_count") == c.head_dim
    assert value("llama.rope.freq_base") == 500 and value("llama.rope.scaling.original_context_length") == 32
    kinds = {k: f.types[0].name for k, f in reader.fields.items()}
    assert kinds["llama.block_count"] == "UINT32" and kinds["llama.attention.layer_norm_rms_epsilon"] == "FLOAT32"


def test_bert_without_its_heads(tmp_path: Path) -> None:
    _, model = ours("bert-pretraining", tmp_path)
    with pytest.warns(UserWarning, match="is written without lm and pair and pooler: GGUF has no names"):
        model.save(tmp_path / "x.gguf")
    again = stemma.load(tmp_path / "x.gguf")
    assert again.lm is None and again.family.name == "bert" and again.dims.segments == 2
    batch = oracle.inputs("bert-pretraining")
    with torch.no_grad():
        torch.testing.assert_close(again(**batch).hidden, model(**batch).hidden, rtol=0, atol=0)


@pytest.mark.parametrize("arch", list(ARCHITECTURES))
def test_every_family_of_a_row(tmp_path: Path, arch: str) -> None:
    """Each family of the table at a tiny size of its own."""
    for name in ARCHITECTURES[arch].families:
        fixed = {"arch.position.distance": 128, "arch.position.buckets": 32} if arch == "t5" else {}
        design = tiny(name, **fixed)
        model = build(design)
        model.design, model.family = design, stemma.families.tree()[name]
        if arch == "bert":
            with pytest.warns(UserWarning, match="GGUF has no names"):
                model.save(tmp_path / "x.gguf")
        else:
            model.save(tmp_path / "x.gguf")
        again = stemma.load(tmp_path / "x.gguf")
        assert again.family.name == name
        inputs = batch(design)
        assert torch.equal(run(again, inputs).hidden, run(model, inputs).hidden)


# ---------------------------------------------------------------- refusals


def test_what_gguf_has_no_name_for(tmp_path: Path) -> None:
    small = dict(d_model=48, layers=2, heads=4, d_ff=128, vocab=96, context=64)
    some = "it has one for llama, mistral, gpt2, t5, t5-v1.1, bert"
    for size, changes, words in (
        ("gpt1", {}, f"no architecture for 'gpt1'; {some}"),
        ("roberta-base", {}, "'bert' architecture cannot say arch.position.padding=1"),
        ("gpt3-small", {}, "'gpt2' architecture cannot say arch.mask"),
        ("llama-7b", {"arch.mlp.act": "relu"}, "'llama' architecture cannot say arch.mlp.act=relu"),
        ("llama-7b", {"arch.attention.scaled": False}, "cannot say arch.attention.scaled=False"),
        ("llama-7b", {"arch.heads.lm": None}, "cannot say arch.heads.lm"),
        ("gpt2", {"arch.mlp.act": "relu"}, "'gpt2' architecture cannot say arch.mlp.act=relu"),
        ("t5-small", {"arch.mlp.act": "silu"}, "'t5' architecture cannot say arch.mlp.act=silu"),
        ("t5-small", {"arch.position.distance": 64}, "cannot say arch.position.distance=64"),
        ("t5-small", {"arch.heads.lm.scaled": False}, "cannot say arch.heads.lm.scaled=False"),
    ):
        wide = {"head_dim": None} if size.startswith("t5") else {}
        model = stemma.build(size, changes, **small, **wide)
        with pytest.raises(UsageError, match=words) as error:
            model.save(tmp_path / "x.gguf")
        assert "\n" not in str(error.value)
    model = stemma.build("llama-7b", **small)
    with pytest.raises(UsageError, match=f"dtype 'q4_0' is no type of a GGUF file here; use {', '.join(TYPES)}"):
        model.save(tmp_path / "x.gguf", dtype="q4_0")
    with pytest.raises(UsageError, match="is a folder; a GGUF checkpoint is one file"):
        model.save(tmp_path, layout="gguf")
    with pytest.raises(UsageError, match="nothing to save"):
        model.to("meta").save(tmp_path / "x.gguf")
    assert not list(tmp_path.iterdir())


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *rest: Any) -> Any:
        if name == "gguf":
            raise ImportError(name)
        return real(name, *rest)

    model = stemma.build("llama-7b", d_model=48, layers=1, heads=4, d_ff=128, vocab=96)
    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ResourceError, match=r"pip install 'stemma-lm\[gguf\]'"):
        model.save(tmp_path / "x.gguf")


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = stemma.build("llama-7b", d_model=48, layers=1, heads=4, d_ff=128, vocab=96)
    model.save(tmp_path / "x.gguf")
    old = (tmp_path / "x.gguf").read_bytes()

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", full)
    with pytest.raises(ResourceError, match="the disk is full; nothing there was changed"):
        model.save(tmp_path / "x.gguf", dtype="float16")
    assert [f.name for f in tmp_path.iterdir()] == ["x.gguf"] and (tmp_path / "x.gguf").read_bytes() == old


# ---------------------------------------------------------------- other layouts, the command line


def test_between_all_layouts(tmp_path: Path) -> None:
    theirs, model = ours("llama", tmp_path, rms_norm_eps=1e-5, hidden_size=48, intermediate_size=128)
    model.save(tmp_path / "x.gguf")
    stemma.load(tmp_path / "x.gguf").save(tmp_path / "x.bin")
    with pytest.warns(UserWarning, match="for what context"):
        stemma.load(tmp_path / "x.bin").save(tmp_path / "meta", layout="meta", shards=1)
    stemma.load(tmp_path / "meta").save(tmp_path / "y.gguf")
    got = parameters(stemma.load(tmp_path / "y.gguf"))
    for name, p in parameters(model).items():
        assert torch.equal(got[name], p), name
    torch.testing.assert_close(
        outputs(stemma.load(tmp_path / "y.gguf"), "llama"), outputs(theirs, "llama"), rtol=1e-5, atol=1e-5
    )


@pytest.mark.filterwarnings("ignore:.*for what context")
def test_convert(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from stemma.cli.models import convert

    ours(
        "llama",
        tmp_path,
        rms_norm_eps=1e-5,
        hidden_size=48,
        intermediate_size=128,
        num_attention_heads=4,
        vocab_size=98,
    )

    def call(*args: Any) -> Any:
        return CliRunner().invoke(convert, [str(a) for a in args], catch_exceptions=True)

    source = tmp_path / "hf"
    for target, options, kind in (
        ("a.gguf", [], "float32"), ("b.gguf", ["--dtype", "float16"], "float16"), ("c.gguf", ["--dtype", "q8_0"], "q8_0"),
        ("d.bin", [], "float32"), ("e.bin", ["--to", "llama2c-v1"], "float32"), ("meta", ["--to", "meta", "--shards", "2"], "float32"),
    ):  # fmt: skip
        result = call(source, tmp_path / target, *options)
        assert result.exit_code == 0 and result.output.rstrip().endswith(f"parameters, {kind}"), result
        assert stemma.load(tmp_path / target).dims.d_model == 48
    assert len(list((tmp_path / "meta").glob("*.pth"))) == 2
    result = call(source, tmp_path / "a.gguf")
    assert isinstance(result.exception, UsageError) and "add --force" in str(result.exception)
    assert call(source, tmp_path / "a.gguf", "--force").exit_code == 0
    result = call(source, tmp_path / "f", "--dtype", "q8_0")
    assert isinstance(result.exception, UsageError) and "--to gguf" in str(result.exception)


# ---------------------------------------------------------------- tokenizers


def with_tokenizer(family: str, tokenizer: Tokenizer, extra: int = 5) -> Any:
    """A tiny model of a family with more embeddings than its tokenizer has ids."""
    fixed = {"arch.position.distance": 128, "arch.position.buckets": 32} if family == "t5" else {}
    design = tiny(family, **{"dims.vocab": tokenizer.vocab_size + extra, "dims.d_model": 36}, **fixed)
    model = build(design)
    model.design, model.family, model.tokenizer = design, stemma.families.tree()[family], tokenizer
    return model


def comes_back(model: Any, path: Path) -> Tokenizer:
    old = model.tokenizer
    model.save(path)
    again = stemma.load(path)
    new = again.tokenizer
    assert new.vocab_size == old.vocab_size and new.kind == old.kind and again.dims.vocab == model.dims.vocab
    for text in [*TRICKY, *TEXTS]:
        assert new.encode(text) == old.encode(text), text
        assert new.encode(text, allow_special=True) == old.encode(text, allow_special=True), text
        assert new.decode(new.encode(text)) == old.decode(old.encode(text)), text
    assert new.special_ids == old.special_ids
    keys = File(path).metadata
    assert len(keys["tokenizer.ggml.tokens"]) == len(keys["tokenizer.ggml.token_type"]) == model.dims.vocab
    return new


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece(tmp_path: Path, prefix: bool) -> None:
    (tmp_path / "tokenizer.model").write_bytes(trained(prefix))
    tokenizer = Tokenizer.load(tmp_path)
    tokenizer.chat_template = "{{ messages }}"
    new = comes_back(with_tokenizer("llama", tokenizer), tmp_path / "x.gguf")
    assert (new.bos_id, new.eos_id, new.unk_id) == (1, 2, 0) and new.chat_template == "{{ messages }}"
    keys = File(tmp_path / "x.gguf").metadata
    assert keys["tokenizer.ggml.model"] == "llama" and keys["tokenizer.ggml.add_bos_token"] is True
    assert keys["tokenizer.ggml.add_space_prefix"] is prefix and keys["tokenizer.ggml.token_type"][3:259] == [6] * 256
    assert keys["tokenizer.ggml.token_type"][:3] == [2, 3, 3] and keys["tokenizer.ggml.token_type"][-5:] == [5] * 5


@pytest.mark.parametrize("pre", [c for c in CUTS if c != "default"])
def test_byte_level(tmp_path: Path, pre: str) -> None:
    core, _ = byte_level(CUTS[pre])
    if pre == "llama-bpe":
        import json

        state = json.loads(core.to_str())
        state["model"]["ignore_merges"] = True
        core = type(core).from_str(json.dumps(state))
    tokenizer = Tokenizer(core, "bpe", Specials(bos="<|end|>", eos="<|end|>"))
    comes_back(with_tokenizer("llama" if pre != "gpt-2" else "gpt2", tokenizer), tmp_path / "x.gguf")
    assert File(tmp_path / "x.gguf").metadata["tokenizer.ggml.pre"] == pre


@pytest.mark.filterwarnings("ignore:the text gives")
def test_unigram(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"spells unknown characters in bytes; llama.cpp reads each as unknown"):
        _unigram(tmp_path)


def _unigram(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train("unigram", TEXTS * 3, 380, Specials(pad="<pad>", eos="</s>", unk="<unk>", extra=7))
    new = comes_back(with_tokenizer("t5", tokenizer), tmp_path / "x.gguf")
    assert new.sentinels == 7 and (new.pad_id, new.eos_id) == (tokenizer.pad_id, tokenizer.eos_id)
    keys = File(tmp_path / "x.gguf").metadata
    assert keys["tokenizer.ggml.model"] == "t5" and len(keys["tokenizer.ggml.precompiled_charsmap"]) > 1000
    assert keys["tokenizer.ggml.add_eos_token"] is True and keys["tokenizer.ggml.add_bos_token"] is False
    reader = gguf.GGUFReader(tmp_path / "x.gguf")
    assert [t.name for t in reader.fields["tokenizer.ggml.precompiled_charsmap"].types] == ["ARRAY", "UINT8"]


@pytest.mark.filterwarnings("ignore:the text gives", "ignore:.* is written without")
@pytest.mark.parametrize("lower", [True, False])
def test_wordpiece(tmp_path: Path, lower: bool) -> None:
    names = Specials(pad="[PAD]", unk="[UNK]", cls="[CLS]", sep="[SEP]", mask="[MASK]")
    tokenizer = Tokenizer.train("wordpiece", TEXTS * 3, 250, names, lowercase=lower)
    new = comes_back(with_tokenizer("bert", tokenizer), tmp_path / "x.gguf")
    assert new.specials == tokenizer.specials and new.lowercase == lower
    assert new.encode_pair("a cat", "the dog") == tokenizer.encode_pair("a cat", "the dog")
    keys = File(tmp_path / "x.gguf").metadata
    tokens = keys["tokenizer.ggml.tokens"]
    for i, token in enumerate(tokens[: tokenizer.vocab_size]):
        name = tokenizer.token(i)
        special = i in tokenizer.special_ids
        assert token == (name if special else name[2:] if name.startswith("##") else "▁" + name)
    assert keys["tokenizer.ggml.normalizer.lowercase"] is lower and keys["tokenizer.ggml.token_type_count"] == 2
    assert keys["tokenizer.ggml.bos_token_id"] == keys["tokenizer.ggml.cls_token_id"] == tokenizer.cls_id


def test_tokenizers_that_gguf_does_not_have(tmp_path: Path) -> None:
    import tokenizers
    from tokenizers import pre_tokenizers

    core, _ = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True))
    odd = Tokenizer(core, "bpe", Specials())
    with pytest.raises(UsageError, match=r"no name for how this tokenizer cuts words.*set model.tokenizer = None"):
        with_tokenizer("gpt2", odd).save(tmp_path / "x.gguf")
    core, _ = byte_level(CUTS["gpt-2"])
    core.post_processor = tokenizers.processors.TemplateProcessing("<|user|> $A", special_tokens=[("<|user|>", 1)])
    with pytest.raises(UsageError, match="cannot say what this tokenizer puts around a text"):
        with_tokenizer("gpt2", Tokenizer(core, "bpe", Specials())).save(tmp_path / "x.gguf")
    words = Tokenizer.train("gpt-bpe", TEXTS, 200, Specials(unk="<unk>"))
    with pytest.raises(UsageError, match="GGUF has no tokenizer of kind 'gpt-bpe'"):
        with_tokenizer("gpt2", words).save(tmp_path / "x.gguf")
    assert not list(tmp_path.iterdir())


def test_ids_without_a_tokenizer(tmp_path: Path) -> None:
    _, model = ours("llama", tmp_path, eos_token_id=[2, 7], pad_token_id=5)
    model.save(tmp_path / "x.gguf")
    keys = File(tmp_path / "x.gguf").metadata
    assert keys["tokenizer.ggml.model"] == "no_vocab" and keys["tokenizer.ggml.eot_token_id"] == 7
    again = stemma.load(tmp_path / "x.gguf")
    assert (again.text.bos_id, again.text.eos_ids, again.text.pad_id) == (1, (2, 7), 5)


def test_scalings_and_windows(tmp_path: Path) -> None:
    small = dict(d_model=64, layers=1, heads=2, d_ff=128, vocab=96, context=64)
    for changes in (
        {"arch.position.scaling": LinearScaling(2.5)},
        {"arch.position.base": 5e5, "arch.position.scaling": Llama3Scaling(factor=32.0)},
        {"arch.mask": Sliding(7)},
        {"dims.head_dim": 48, "dims.kv_heads": 1},
    ):
        model = stemma.build("llama-7b", changes, **small)
        model.save(tmp_path / "x.gguf")
        again = stemma.load(tmp_path / "x.gguf")
        assert (again.arch.position, again.arch.mask, again.dims) == (model.arch.position, model.arch.mask, model.dims)
    model = stemma.build("llama-7b", {"arch.position.scaling": Llama3Scaling(low=2.0)}, **small)
    with pytest.raises(UsageError, match=r"rope_freqs.weight scales the rotary frequencies in a way that is not known"):
        model.save(tmp_path / "y.gguf")
