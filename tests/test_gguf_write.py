"""GGUF out: our files as the `gguf` package and our own reader see them. What llama.cpp makes of them is in
test_llama_cpp.py."""

from __future__ import annotations

import sys
import warnings
from dataclasses import replace
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
from stemma.formats.gguf.parts import differences
from stemma.formats.gguf.read import read_design
from stemma.formats.gguf.types import TYPES
from stemma.formats.gguf.write import plan_file
from stemma.nn.parts import (
    Arch,
    Causal,
    Cycle,
    Dropout,
    HeadNorm,
    Heads,
    LinearScaling,
    Llama3Scaling,
    Normal,
    PowerScaling,
    RandomScaling,
    Sliding,
    TruncatedScaling,
    XPosScaling,
    YarnScaling,
)
from stemma.text import Specials, Tokenizer
from test_gguf import CUTS, TEXTS, TRICKY, byte_level, write
from test_meta import trained
from tiny import batch, build, run, tiny

SCALED = dict(rope_type="llama3", rope_theta=500.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=32)  # fmt: skip
CASES = ["llama", "llama-mha-tied", "llama-biased", "llama-mqa", "llama-linear", "llama-llama3",
         "mistral", "mistral-full", "mixtral", "qwen2", "qwen3", "qwen3-yarn", "qwen3-moe", "gemma", "gemma2",
         "gemma2-one", "gemma3", "gemma3-scaled", "gemma3-pattern", "gemma3-local", "gemma3-capped", "glm4", "glm4-0414",
         "glm4-0414-unbiased", "cohere", "gpt2", "t5", "bert-model"]  # fmt: skip
FIXED: dict[str, dict[str, Any]] = {
    "t5": {"relative_attention_max_distance": 128},
    "glm4": {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 12},
    **{case: {"query_pre_attn_scalar": 10} for case in oracle.CASES if case.startswith(("gemma2", "gemma3"))},
}


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


def network(arch: Arch) -> Arch:
    """What a file says of it: not what matters in training only, nor the heads, which BERT's has none of."""
    return replace(arch, heads=Heads(), init=Normal(), dropout=Dropout())


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
    assert again.dims == model.dims and network(again.arch) == network(model.arch)
    want = parameters(model, ("pooler",))
    got = parameters(again)
    assert want.keys() == got.keys()
    for name, p in want.items():
        if case.startswith("gemma") and "norm" in name:  # the file has what the network makes of it: their sum with 1
            assert torch.equal(1 + got[name], 1 + p) and (got[name] - p).abs().max() <= 2**-24, name
        else:
            assert torch.equal(got[name], p), name
    assert torch.equal(outputs(again, case), outputs(model, case))
    torch.testing.assert_close(outputs(again, case), outputs(theirs, case), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("case", "fields"),
    [
        ("llama", {}),
        ("qwen2", {}),
        ("qwen3", {"head_dim": 128}),
        ("gemma2", {"head_dim": 256, "query_pre_attn_scalar": 256, "attn_logit_softcapping": 50.0,
                    "final_logit_softcapping": 30.0}),
        ("gemma3", {"head_dim": 256, "query_pre_attn_scalar": 256, "num_hidden_layers": 7, "layer_types": None}),
    ],
)  # fmt: skip
def test_as_transformers_reads_it(tmp_path: Path, case: str, fields: dict[str, Any]) -> None:
    """Transformers' own reader of GGUF, whose words for other widths of heads and caps are lacking."""
    theirs, model = ours(case, tmp_path, **fields)
    model.save(tmp_path / "x.gguf")
    again = hf.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="x.gguf", dtype=torch.float32).eval()
    assert type(again) is type(theirs)
    torch.testing.assert_close(outputs(again, case), outputs(theirs, case), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("word", ["float16", "bfloat16"])
@pytest.mark.parametrize("case", ["llama", "mixtral", "gemma3", "gpt2", "t5", "bert-model"])
@pytest.mark.filterwarnings("ignore:.* is written without pooler")
def test_half_precision_is_kept_bit_for_bit(tmp_path: Path, word: str, case: str) -> None:
    kind = getattr(torch, word)
    _, model = ours(case, tmp_path)
    half = stemma.load(tmp_path / "hf", dtype=word)
    half.save(tmp_path / "x.gguf")
    again = stemma.load(tmp_path / "x.gguf", dtype="auto")
    assert again.dtype == kind
    for name, p in parameters(again).items():  # the small ones are fp32 in the file
        assert p.dtype in (kind, torch.float32) and torch.equal(p.to(kind), parameters(half)[name]), name
        assert p.dtype == kind or p.ndim == 1 or any(word in name for word in ("position", "segments", "router")), name
    # of fp32 weights only the matrices are rounded
    model.save(tmp_path / "y.gguf", dtype=word)
    file = File(tmp_path / "y.gguf")
    for name, entry in file.entries.items():
        small = (
            len(entry.shape) == 1
            or any(word in name for word in ("norm", "rel_b", "gate_inp"))
            or name.startswith(("position", "token_types"))
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


@pytest.mark.filterwarnings("ignore:.* is written without")
@pytest.mark.parametrize("case", ["roberta-mlm", "xlm-roberta-mlm"])
def test_roberta_without_the_rows_of_padding(tmp_path: Path, case: str) -> None:
    """llama.cpp has BERT's architecture for it: the table begins where the first token's row is, and everything is the
    same where there is text."""
    _, model = ours(case, tmp_path)
    model.save(tmp_path / "x.gguf")
    file = File(tmp_path / "x.gguf")
    assert (
        file.metadata["general.architecture"] == "bert" and file.metadata["bert.context_length"] == model.dims.context
    )
    table = model.encoder.position.table.weight.detach()
    first = model.arch.position.padding + 1
    assert first > 1 and torch.equal(file.get("position_embd.weight"), table[first:])
    again = stemma.load(tmp_path / "x.gguf")
    assert (
        again.family.name == "bert" and again.arch.position.padding is None and again.dims.context == model.dims.context
    )
    inputs = oracle.inputs(case)
    with torch.no_grad():
        want, got = (m(**inputs).hidden[inputs["attention_mask"].bool()] for m in (model, again))
    assert inputs["attention_mask"].min() == 0  # some are padded
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("arch", list(ARCHITECTURES))
def test_every_family_of_a_row(tmp_path: Path, arch: str) -> None:
    """Each family of the table at a tiny size of its own."""
    tree = stemma.families.tree()
    for name in ARCHITECTURES[arch].families:
        design = tiny(name)
        fixed: dict[str, Any] = {"arch.position.distance": 128, "arch.position.buckets": 32} if arch == "t5" else {}
        if design.arch.attention.scale_width is not None:
            fixed["arch.attention.scale_width"] = float(design.dims.width)
        if isinstance(getattr(design.arch.position, "scaling", None), Llama3Scaling):
            fixed["arch.position.scaling.context"] = 8192
        design = tiny(name, **fixed)
        model = build(design)
        model.design, model.family = design, stemma.families.tree()[name]
        if arch == "bert":
            with pytest.warns(UserWarning, match="GGUF has no names"):
                model.save(tmp_path / "x.gguf")
        else:
            model.save(tmp_path / "x.gguf")
        again = stemma.load(tmp_path / "x.gguf")
        assert File(tmp_path / "x.gguf").metadata["general.architecture"] == arch
        assert again.dims == model.dims and network(again.arch) == network(design.arch)
        first = next(f for f in ARCHITECTURES[arch].families if not differences(tree[f].arch, tree[name].arch))
        assert again.family.name == first  # of several with one design, the oldest
        inputs = batch(design)
        assert torch.equal(run(again, inputs).hidden, run(model, inputs).hidden)


OF_GIRAFFE = (TruncatedScaling, PowerScaling, RandomScaling, XPosScaling)  # GGUF has no word for them


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["ends", "every"])
@pytest.mark.parametrize("arch", list(ARCHITECTURES))
def test_published_sizes(arch: str, every: bool) -> None:
    """Every published size (by default: the first and the last) of every family of a row is said by its keys and names
    of tensors alone, but for what no architecture has."""
    for name in ARCHITECTURES[arch].families:
        sizes = [*(family := stemma.families.tree()[name]).sizes]
        for size in sizes if every else {sizes[0], sizes[-1]}:
            design = family[size]
            if isinstance(getattr(design.arch.position, "scaling", None), OF_GIRAFFE):
                continue
            plan = plan_file(design, family, "float16")
            again, _ = read_design(plan.arch, plan)
            assert plan.arch.name == arch and again.dims == design.dims
            assert not differences(network(again.arch), network(design.arch)), size
            assert not plan.arch.head or not differences(again.arch.heads, design.arch.heads), size


def test_q_k_and_v_apart_or_in_one(tmp_path: Path) -> None:
    """ChatGLM's own files have them in one, which is how they are written; those of transformers' have them apart."""
    design = tiny("glm-4")
    model = build(design)
    model.design, model.family = design, stemma.families.tree()["glm-4"]
    model.save(tmp_path / "x.gguf")
    file = File(tmp_path / "x.gguf")
    n, kv = design.dims.heads * design.dims.width, design.dims.kv * design.dims.width
    tensors = {}
    for name in file:
        data = file.get(name)
        if ".attn_qkv." in name:
            tensors |= {name.replace("qkv", x): t.numpy() for x, t in zip("qkv", data.split([n, kv, kv]), strict=True)}
        else:
            tensors[name] = data.numpy()
    keys = {k: v for k, v in file.metadata.items() if k != "general.architecture"}
    again = stemma.load(write(tmp_path / "y.gguf", "chatglm", keys, tensors))
    assert len(tensors) == len(list(file)) + 4 * design.dims.layers and again.arch.attention.bias
    for name, p in parameters(model).items():
        assert torch.equal(parameters(again)[name], p), name
    assert "blk.0.attn_q.weight" in str(again.ledger.loaded)


def test_a_window_that_llama_cpp_does_not_heed_is_told(tmp_path: Path) -> None:
    small: dict[str, Any] = dict(d_model=48, layers=1, heads=4, kv_heads=2, d_ff=128, vocab=96, head_dim=None)
    for context, told in ((64, 1), (8, 0)):
        model = stemma.build("mistral-7b-v0.1", {"arch.mask": Sliding(8)}, **small, context=context)
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            model.save(tmp_path / "x.gguf")
        lines = [str(w.message) for w in found if "sees 8 tokens, which llama.cpp does not heed" in str(w.message)]
        assert len(lines) == told


def test_layers_with_a_window(tmp_path: Path) -> None:
    near, all_ = Sliding(7), Causal()
    key = "attention.sliding_window_pattern"
    for name, mask, layers, window, pattern in (
        ("gemma2", Cycle((near, all_)), 3, 7, None),
        ("gemma2", Cycle((near, near, all_)), 4, 7, 3),
        ("gemma2", Cycle((all_, near)), 3, 7, [False, True, False]),
        ("gemma2", near, 3, 7, 0),
        ("gemma2", all_, 3, None, 1),
        ("gemma3", Cycle((near,) * 5 + (all_,)), 3, 7, None),
        ("gemma3", Cycle((near, all_, all_)), 4, 7, [True, False, False, True]),
        ("gemma3", near, 3, 7, 0),
        ("gemma3", all_, 3, None, 1),
    ):
        local = {"arch.local": None} if name == "gemma3" and not isinstance(mask, Cycle) else {}
        design = tiny(name, **{"arch.mask": mask, "dims.layers": layers, "arch.attention.scale_width": 10.0}, **local)
        model = build(design)
        model.design, model.family = design, stemma.families.tree()[name]
        model.save(tmp_path / "x.gguf")
        keys = File(tmp_path / "x.gguf").metadata
        assert keys.get(f"{name}.attention.sliding_window") == window and keys.get(f"{name}.{key}") == pattern
        again = stemma.load(tmp_path / "x.gguf")
        assert (again.arch.mask, again.arch.local, again.arch.position) == (mask, model.arch.local, model.arch.position)


# ---------------------------------------------------------------- refusals


def test_what_gguf_has_no_name_for(tmp_path: Path) -> None:
    small = dict(d_model=48, layers=2, heads=4, d_ff=128, vocab=96, context=64)
    some = "it has one for llama, llama2, .*, mixtral, qwen2, .*, gemma3, .*, command-r, gpt2, t5, t5-v1.1, bert"
    for size, changes, words in (
        ("gpt1", {}, f"no architecture for 'gpt1'; {some}"),
        (
            "roberta-base",
            {"arch.position.offset": 2, "arch.position.padding": None},
            "cannot express arch.position.offset=2",
        ),
        ("gpt3-small", {}, "'gpt2' architecture cannot express arch.mask"),
        ("llama-7b", {"arch.mlp.act": "relu"}, "'llama' architecture cannot express arch.mlp.act=relu"),
        ("llama-7b", {"arch.attention.scaled": False}, "cannot express arch.attention.scaled=False"),
        ("llama-7b", {"arch.heads.lm": None}, "cannot express arch.heads.lm"),
        ("longllama-3b", {"arch.mask.layers": (1,)}, "'llama' architecture cannot express arch.mask=Memory"),
        ("qwen2-7b", {"arch.mask": Cycle((Sliding(7), Causal()))}, "'qwen2' architecture cannot express arch.mask"),
        (
            "qwen3-8b",
            {"arch.attention.out_bias": True},
            "'qwen3' architecture cannot express arch.attention.out_bias=True",
        ),
        (
            "qwen3-8b",
            {"arch.position.scaling": Llama3Scaling()},
            "'qwen3' .* cannot express arch.position.scaling=Llama3",
        ),
        ("qwen3-8b", {"arch.position.scaling": YarnScaling(attention=1.0)}, "cannot express .*scaling.attention=1.0"),
        ("gemma-2b", {"arch.heads.lm.tied": False}, "'gemma' .* takes the embeddings for its output matrix"),
        (
            "gemma2-2b",
            {"arch.attention.softcap": None},
            "'gemma2' architecture cannot express arch.attention.softcap=None",
        ),
        (
            "gemma2-2b",
            {"arch.attention.scale_width": 5.0},
            r"cannot express arch.attention.scale_width=5.0 \(.* read 256.0",
        ),
        (
            "gemma3-1b",
            {"arch.attention.softcap": 5.0},
            "'gemma3' architecture cannot express arch.attention.softcap=5.0",
        ),
        ("glm-4-9b", {"dims.head_dim": 16}, "'chatglm' .*attention.key_length is 16, but a head is 12 wide"),
        (
            "command-r",
            {"arch.attention.qk_norm": HeadNorm()},
            "'command-r' architecture cannot express .*qk_norm=HeadNorm",
        ),
        ("gpt2", {"arch.mlp.act": "relu"}, "'gpt2' architecture cannot express arch.mlp.act=relu"),
        ("gpt2", {"arch.attention.by_layer": True}, "'gpt2' architecture cannot express arch.attention.by_layer=True"),
        ("t5-small", {"dims.decoder_heads": 2}, "'t5' architecture cannot express dims.decoder_heads=2"),
        ("t5-small", {"arch.mlp.act": "silu"}, "'t5' architecture cannot express arch.mlp.act=silu"),
        ("t5-small", {"arch.position.distance": 64}, "cannot express arch.position.distance=64"),
        ("t5-small", {"arch.heads.lm.scaled": False}, "cannot express arch.heads.lm.scaled=False"),
    ):
        wide = {"head_dim": None} if size.startswith("t5") else {}
        changes = {"dims.kv_heads": None, **changes}
        model = stemma.build(size, changes, **small, **wide)
        with pytest.raises(UsageError, match=words) as error:
            model.save(tmp_path / "x.gguf")
        assert "\n" not in str(error.value)
    model = stemma.build("llama-7b", **small)
    with pytest.raises(UsageError, match=f"dtype 'q3_k' is no type of a GGUF file here; use {', '.join(TYPES)}"):
        model.save(tmp_path / "x.gguf", dtype="q3_k")
    with pytest.raises(UsageError, match="is a folder; a GGUF checkpoint is one file"):
        model.save(tmp_path, layout="gguf")
    with pytest.raises(UsageError, match="nothing to save"):
        model.to("meta").save(tmp_path / "x.gguf")
    assert not list(tmp_path.iterdir())


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = stemma.build("llama-7b", d_model=48, layers=1, heads=4, d_ff=128, vocab=96)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ResourceError, match=r"pip install 'stemma-lm\[gguf\]'"):
        model.save(tmp_path / "x.gguf")


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = stemma.build("llama-7b", d_model=48, layers=1, heads=4, d_ff=128, vocab=96)
    model.save(tmp_path / "x.gguf")
    old = (tmp_path / "x.gguf").read_bytes()

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", full)
    with pytest.raises(ResourceError, match="the disk is full; nothing there was changed; free some space"):
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

    from stemma.cli.convert import convert

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
    with pytest.raises(UsageError, match="cannot express what this tokenizer puts around a text"):
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
