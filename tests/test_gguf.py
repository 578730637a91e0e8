"""GGUF files: the reader against the `gguf` package, models against transformers, damage against plain sentences."""

from __future__ import annotations

import io
import json
import random
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import sentencepiece
import tokenizers
import torch
import transformers as hf
from tokenizers import decoders, pre_tokenizers

import oracle
import stemma
from stemma.errors import CheckpointError, StemmaError
from stemma.formats.gguf import File, load, quants, vocab
from stemma.nn.parts import Causal, LinearScaling, Llama3Scaling, Sliding
from stemma.text import spm

Q = gguf.GGMLQuantizationType
TEXTS = [
    "The cat sat on the mat, and the dog sat by the door; nobody knew why they were waiting there all day.",
    "In 1984 there were 365 days and 12 months: 5.5 x 10^3 things happened, about 42% of them on Sundays.",
    "def f(x):\n    return x + 1  # add one\n\n\tprint('it isn't so')\nCafé naïve Straße 東京 это 🙂 end.",
]
TRICKY = [
    *TEXTS, "", " ", "   leading and trailing   ", "\n\n\t 7\n\n8  9", "it's they'LL I'm", "x" * 40,
    "a\u0301 ﬁ ½ ² 12345678", "\r\n\r\n", "<|end|> <s> </s> <0x0A>", "🙂🙃 👩‍👩‍👧", "\x00\x7f", "。、！？",
]  # fmt: skip


def write(path: Path, arch: str, keys: dict[str, Any], tensors: dict[str, Any], **types: Any) -> Path:
    """A GGUF file with `keys` and `tensors` (float arrays; `types`: the quantised type of the matrices named)."""
    out = gguf.GGUFWriter(path, arch)
    for key, value in keys.items():
        put(out, key, value)
    for name, data in tensors.items():
        data = np.ascontiguousarray(data)
        kind = types.get("matrices", Q.F32) if data.ndim == 2 else Q.F32
        if data.dtype == np.uint8:  # quantised already
            out.add_tensor(name, data, raw_dtype=types["raw"])
        else:
            out.add_tensor(name, gguf.quantize(data, kind), raw_dtype=kind)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


def put(out: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, tuple):  # a value with its type
        out.add_key_value(key, *value)
    elif isinstance(value, list):
        out.add_array(key, value)
    elif isinstance(value, bool):
        out.add_bool(key, value)
    elif isinstance(value, int):
        out.add_uint32(key, value)
    elif isinstance(value, float):
        out.add_float32(key, value)
    else:
        out.add_string(key, value)


# ---------------------------------------------------------------- quantised types


@pytest.mark.parametrize("kind", list(quants.QUANTISED), ids=lambda k: quants.NAMES[k])
def test_dequantised_bit_for_bit(kind: int) -> None:
    assert tuple(gguf.GGML_QUANT_SIZES[Q(kind)]) == quants.SIZES[kind]
    assert Q(kind).name == quants.NAMES[kind]
    raw = np.random.default_rng(kind).integers(0, 256, (40, 7 * quants.SIZES[kind][1]), dtype=np.uint8)
    with np.errstate(all="ignore"):
        expected = gguf.dequantize(raw, Q(kind))
    got = quants.dequantise(raw.reshape(-1), kind)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got.view(np.int32), expected.reshape(-1).view(np.int32))


def test_chunks_join(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = np.random.default_rng(0).integers(0, 256, 18 * 100, dtype=np.uint8) & 0x3F
    whole = quants.dequantise(raw, Q.Q4_0)
    monkeypatch.setattr(quants, "CHUNK", 96)
    np.testing.assert_array_equal(quants.dequantise(raw, Q.Q4_0), whole)


@pytest.mark.parametrize("kind", [Q.F32, Q.F16, Q.BF16, Q.Q8_0, Q.Q4_1, Q.Q6_K, Q.Q4_K])
def test_tensors_in_a_file(tmp_path: Path, kind: Q) -> None:
    rng = np.random.default_rng(1)
    if kind in (Q.Q6_K, Q.Q4_K):  # the package cannot make these: any bytes will do
        held = rng.integers(0, 60, (3, 2 * quants.SIZES[kind][1]), dtype=np.uint8)
        path = write(tmp_path / "x.gguf", "llama", {}, {"a": held, "b": held[:1]}, raw=kind)
    else:
        values = rng.standard_normal((6, 64)).astype(np.float32)
        path = write(tmp_path / "x.gguf", "llama", {}, {"a": values, "b": values[:2]}, matrices=kind)
    file, reader = File(path), gguf.GGUFReader(path)
    assert list(file) == ["a", "b"]
    for t in reader.tensors:
        want = t.data if kind in (Q.F32, Q.F16) else gguf.dequantize(t.data, kind)
        got = file.get(t.name)
        assert list(got.shape) == [int(n) for n in reversed(t.shape)]
        np.testing.assert_array_equal(got.float().numpy(), np.asarray(want, np.float32))
    assert file.get("a").dtype == {Q.F16: torch.float16, Q.BF16: torch.bfloat16}.get(kind, torch.float32)


# ---------------------------------------------------------------- metadata


def test_every_kind_of_value(tmp_path: Path) -> None:
    T = gguf.GGUFValueType
    keys: dict[str, Any] = {
        "u8": (200, T.UINT8), "i8": (-100, T.INT8), "u16": (60_000, T.UINT16), "i16": (-30_000, T.INT16),
        "u32": (4_000_000_000, T.UINT32), "i32": (-2_000_000_000, T.INT32), "u64": (1 << 63, T.UINT64),
        "i64": (-(1 << 62), T.INT64), "f32": (0.5, T.FLOAT32), "f64": (0.1, T.FLOAT64), "yes": (True, T.BOOL),
        "text": "Grüße 東京", "numbers": [1, -2, 3], "reals": [0.5, 0.25], "words": ["a", "", "ü"],
        "flags": [True, False],
    }  # fmt: skip
    file = File(write(tmp_path / "x.gguf", "llama", keys, {}))
    assert file.version == 3
    for key, value in keys.items():
        want = value[0] if isinstance(value, tuple) else value
        assert file.metadata[key] == want and type(file.metadata[key]) is type(want)


def raw_file(body: bytes, version: int = 3, tensors: int = 0, keys: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + body


def text(s: str | bytes) -> bytes:
    data = s.encode() if isinstance(s, str) else s
    return struct.pack("<Q", len(data)) + data


def test_version_2_and_arrays_in_arrays(tmp_path: Path) -> None:
    inner = struct.pack("<IQ", 4, 2) + struct.pack("<II", 7, 8)
    body = text("grid") + struct.pack("<IIQ", 9, 9, 2) + inner + inner
    path = tmp_path / "x.gguf"
    path.write_bytes(raw_file(body, version=2, keys=1))
    file = File(path)
    assert file.version == 2 and file.metadata == {"grid": [[7, 8], [7, 8]]}


def test_another_alignment(tmp_path: Path) -> None:
    info = text("a") + struct.pack("<IQIQ", 1, 3, 0, 0)
    head = raw_file(text("general.alignment") + struct.pack("<II", 4, 256) + info, tensors=1, keys=1)
    path = tmp_path / "x.gguf"
    path.write_bytes(head.ljust(256, b"\0") + np.arange(3, dtype="<f4").tobytes())
    assert File(path).get("a").tolist() == [0, 1, 2]


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "begin with b'GGUF'"),
        (b"PK\x03\x04 something else", "not a GGUF file"),
        (raw_file(b"", version=1), "version 1; versions 2 and 3"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (b"GGUF\x03\x00", "the version should take 4 bytes"),
        (b"GGUF" + struct.pack("<IQ", 3, 1), "numbers of tensors and keys"),
        (raw_file(struct.pack("<Q", 1 << 60), keys=1), "the name of key 0 of 1 should take"),
        (raw_file(text(b"\xff"), keys=1), "not UTF-8"),
        (raw_file(text("k") + struct.pack("<I", 77), keys=1), "a type from 0 to 12, not type 77"),
        (raw_file(text("k") + struct.pack("<IIQ", 9, 4, 1 << 61), keys=1), "key 'k' should take"),
        (raw_file(text("k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 9, keys=1), "4 arrays in each other"),
        (raw_file((text("k") + struct.pack("<IB", 0, 1)) * 2, keys=2), "the key 'k' twice"),
        (raw_file(text("general.alignment") + struct.pack("<II", 4, 12), keys=1), "power of two"),
        (raw_file(text("general.alignment") + struct.pack("<I", 8) + text("x"), keys=1), "should be int, not 'x'"),
        (raw_file(text("t") + struct.pack("<I", 9), tensors=1), "at most 4 axes, not 9"),
        (raw_file(text("t") + struct.pack("<IQIQ", 1, 0, 0, 0), tensors=1), "axis of length 0"),
        (raw_file(text("t") + struct.pack("<IQIQ", 1, 1 << 60, 0, 0), tensors=1), "tensor 't' should end at byte"),
        (raw_file(text("t") + struct.pack("<IQIQ", 1, 4, 0, 5), tensors=1), "multiple of 32 bytes"),
        (raw_file(text("t") + struct.pack("<IQIQ", 1, 33, 8, 0), tensors=1), "a multiple of 32 long"),
        (raw_file((text("t") + struct.pack("<IQIQ", 1, 1, 99, 0)) * 2, tensors=2), "the tensor 't' twice"),
    ],
)  # fmt: skip
def test_damage_has_a_sentence(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as error:
        File(path)
    assert words in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


def test_cut_anywhere(tmp_path: Path, tiny_llama: Path) -> None:
    file = File(tiny_llama)  # without the padding after the last tensor
    whole = tiny_llama.read_bytes()[: max(e.start + len(file.raw(e.name)) for e in file.entries.values())]
    path = tmp_path / "x.gguf"
    for n in [*range(0, 3000, 37), *range(3000, len(whole) - 1, 9973), len(whole) - 1]:
        path.write_bytes(whole[:n])
        with pytest.raises(CheckpointError):
            load(path)


def test_flipped_bits_give_sentences(tmp_path: Path, tiny_llama: Path) -> None:
    """Damage in the first bytes either changes nothing that matters or is refused as one of ours."""
    whole, rng = tiny_llama.read_bytes(), random.Random(0)
    path = tmp_path / "x.gguf"
    for _ in range(150):
        data = bytearray(whole)
        data[rng.randrange(4, 2500)] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        try:
            load(path)
        except StemmaError as error:
            assert "\n" not in str(error)


# ---------------------------------------------------------------- llama


def turned(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows in halves, as Hugging Face has them, to the neighbours of a GGUF file."""
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "model.layers.": "blk.",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def llama_file(path: Path, model: Any, keys: dict[str, Any] | None = None, extra: Any = None, **types: Any) -> Path:
    """A model of the reference as llama.cpp's converter writes it."""
    c = model.config
    rope = c.rope_parameters
    held: dict[str, Any] = {
        "llama.vocab_size": c.vocab_size,
        "llama.context_length": c.max_position_embeddings,
        "llama.embedding_length": c.hidden_size,
        "llama.block_count": c.num_hidden_layers,
        "llama.feed_forward_length": c.intermediate_size,
        "llama.attention.head_count": c.num_attention_heads,
        "llama.attention.head_count_kv": c.num_key_value_heads,
        "llama.attention.layer_norm_rms_epsilon": c.rms_norm_eps,
        "llama.rope.freq_base": rope["rope_theta"],
        "llama.rope.dimension_count": c.head_dim,
    }
    if c.head_dim != c.hidden_size // c.num_attention_heads:
        held |= {"llama.attention.key_length": c.head_dim, "llama.attention.value_length": c.head_dim}
    tensors = {}
    for name, p in model.state_dict().items():
        if name == "lm_head.weight" and c.tie_word_embeddings:
            continue
        data = p.numpy()
        if ".q_proj." in name or ".k_proj." in name:
            data = turned(data, c.num_attention_heads if ".q_proj." in name else c.num_key_value_heads)
        for theirs, short in NAMES.items():
            name = name.replace(theirs, short)
        tensors[name] = data
    return write(path, "llama", held | (keys or {}), tensors | (extra or {}), **types)


def reference(case: str, **fields: Any) -> Any:
    name, config, basic = oracle.CASES[case]
    torch.manual_seed(0)
    model = getattr(hf, name)(config(**(basic | fields)))
    oracle.jitter(model, 1)
    return model.eval()


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(ids).logits


IDS = torch.randint(0, 90, (2, 40), generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama_file(tmp_path_factory.mktemp("gguf") / "tiny.gguf", reference("llama"))


@pytest.mark.parametrize("case", ["llama", "llama-mha-tied", "llama-mqa", "llama-biased", "llama-linear", "mistral"])
def test_llama_equals_the_reference_and_goes_on_as_its_files(tmp_path: Path, case: str) -> None:
    model = reference(case)
    keys: dict[str, Any] = {}
    if case == "llama-linear":
        keys = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.5}
    if case == "mistral":
        keys = {"llama.attention.sliding_window": 5}
    ours = stemma.load(llama_file(tmp_path / "x.gguf", model, keys))
    want = logits(model, IDS)
    torch.testing.assert_close(logits(ours, IDS), want, rtol=1e-5, atol=1e-5)
    assert ours.family.name == ("mistral" if case == "mistral" else "llama")
    assert ours.arch.mask == (Sliding(5) if case == "mistral" else Causal())
    assert ours.arch.position.scaling == (LinearScaling(2.5) if case == "llama-linear" else None)
    assert ours.arch.heads.lm.tied == (case == "llama-mha-tied")
    assert sorted(ours.ledger.loaded) == sorted(n for n, _ in ours.named_parameters())
    assert ours.tokenizer is None and ours.extras["gguf"]["general.architecture"] == "llama"
    ours.save(tmp_path / "saved")
    again = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    assert type(again) is type(model)
    torch.testing.assert_close(logits(again, IDS), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [Q.F16, Q.BF16, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1, Q.Q8_0], ids=lambda k: k.name)
def test_quantised_llama_equals_transformers_on_the_same_file(tmp_path: Path, kind: Q) -> None:
    sizes = dict(hidden_size=64, intermediate_size=96, num_attention_heads=4, tie_word_embeddings=True, bos_token_id=1)
    path = llama_file(tmp_path / "x.gguf", reference("llama", **sizes), matrices=kind)
    theirs = hf.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32).eval()
    ours = load(path)
    torch.testing.assert_close(logits(ours, IDS), logits(theirs, IDS), rtol=1e-5, atol=1e-5)
    wanted = {Q.F16: torch.float16, Q.BF16: torch.bfloat16}.get(kind, torch.float32)
    assert load(path, dtype="auto").dtype == wanted
    assert load(path, dtype="bfloat16").dtype == torch.bfloat16


def test_llama3_scaling_from_its_factors(tmp_path: Path) -> None:
    rope = dict(rope_type="llama3", rope_theta=500_000.0, factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0,
                original_max_position_embeddings=8192)  # fmt: skip
    model = reference("llama", rope_parameters=rope, head_dim=64)
    frequencies = model.model.rotary_emb.inv_freq.double()
    plain = 500_000.0 ** (-torch.arange(0, 64, 2).double() / 64)
    factors = {"rope_freqs.weight": (plain / frequencies).float().numpy()}
    ours = load(llama_file(tmp_path / "x.gguf", model, extra=factors))
    assert ours.arch.position.scaling == Llama3Scaling(32.0, 1.0, 4.0, 8192)
    assert list(ours.ledger.ignored) == ["rope_freqs.weight"]
    torch.testing.assert_close(logits(ours, IDS), logits(model, IDS), rtol=1e-5, atol=1e-5)
    factors["rope_freqs.weight"][20] *= 1.1
    with pytest.raises(CheckpointError, match=r"rope_freqs\.weight scales the rotary frequencies in a way"):
        load(llama_file(tmp_path / "x.gguf", model, extra=factors))
    factors["rope_freqs.weight"][:] = 1
    assert load(llama_file(tmp_path / "x.gguf", model, extra=factors)).arch.position.scaling is None


def test_shapes_alone(tiny_llama: Path) -> None:
    model = load(tiny_llama, "meta", "bfloat16")
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.bfloat16)}
    assert {n: p.shape for n, p in model.named_parameters()} == {
        n: p.shape for n, p in load(tiny_llama).named_parameters()
    }


def test_a_published_size_is_recognised() -> None:
    from stemma import families
    from stemma.formats.gguf import ARCHITECTURES
    from stemma.formats.gguf.read import _nearest

    for name in ("llama-13b", "mistral-7b-v0.2", "mistral-7b-v0.1"):
        owner, size = _nearest(ARCHITECTURES["llama"], families.design(name))
        assert size == name and size in owner.sizes


@pytest.mark.parametrize(
    ("keys", "extra", "words"),
    [
        ({"llama.expert_count": 8}, {}, "do not describe a model: dims.active must be at least 1, not 0"),
        ({"llama.expert_gating_func": 2}, {}, "llama.expert_gating_func=2 is not supported; only 1 is"),
        ({"llama.atention.scale": 0.5}, {}, "no key llama.atention.scale is known"),
        ({"llama.rope.dimension_count": 4}, {}, "llama.rope.dimension_count is 4, but a head is 6 wide"),
        ({"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 2.0}, {}, "type='longrope' is not supported"),
        ({"llama.rope.scaling.yarn_beta_fast": 16.0}, {}, "yarn_beta_fast=16.0 is not supported; only 32.0 is"),
        ({"llama.block_count": "three"}, {}, "llama.block_count should be one whole number"),
        ({"llama.attention.head_count_kv": [2, 2, 1]}, {}, "should be one whole number for all layers"),
        ({"llama.attention.head_count": 5}, {}, "the metadata do not describe a model"),
        ({"llama.block_count": 4}, {}, "tensor 'blk.3.attn_norm.weight' is missing from"),
        ({"llama.feed_forward_length": 53}, {}, r"'blk.0.ffn_gate.weight' has shape \[52, 36\], but this config needs"),
        ({}, {"blk.0.strange.weight": np.zeros(3, np.float32)}, "a tensor 'blk.0.strange.weight' for which"),
        ({"split.count": 3}, {}, "x.gguf is part 1 of 3 .* should be called NAME-00001-of-00003.gguf and lie beside"),
        ({"general.type": "adapter"}, {}, "general.type is 'adapter', not 'model'"),
        ({"tokenizer.ggml.model": "rwkv"}, {}, "tokenizer is of kind 'rwkv'"),
        ({"tokenizer.ggml.model": "gpt2"}, {}, "has no tokenizer.ggml.tokens"),
    ],
)  # fmt: skip
def test_refusals_of_llama_files(tmp_path: Path, keys: dict[str, Any], extra: Any, words: str) -> None:
    path = llama_file(tmp_path / "x.gguf", reference("llama"), keys, extra)
    with pytest.raises(CheckpointError, match=words) as error:
        stemma.load(path)
    assert "\n" not in str(error.value)


def test_other_architectures_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"x.gguf: architecture 'lama' .* did you mean 'llama'"):
        load(write(tmp_path / "x.gguf", "lama", {}, {}))
    with pytest.raises(CheckpointError, match=r"no key 'llama\.embedding_length'"):
        load(write(tmp_path / "x.gguf", "llama", {}, {}))
    with pytest.raises(StemmaError, match="does not exist"):
        stemma.load(tmp_path / "none.gguf")


# ---------------------------------------------------------------- gpt2


@pytest.mark.parametrize("output", ["absent", "repeated", "another"])
def test_gpt2(tmp_path: Path, output: str) -> None:
    model = reference("gpt2-unscaled", scale_attn_weights=True) if output == "another" else reference("gpt2")
    c = model.config
    keys = {
        "gpt2.context_length": c.n_positions, "gpt2.embedding_length": c.n_embd, "gpt2.block_count": c.n_layer,
        "gpt2.feed_forward_length": 4 * c.n_embd, "gpt2.attention.head_count": c.n_head,
        "gpt2.attention.layer_norm_epsilon": c.layer_norm_epsilon,
    }  # fmt: skip
    short = {
        "transformer.wte": "token_embd", "transformer.wpe": "position_embd", "transformer.ln_f": "output_norm",
        "transformer.h.": "blk.", "lm_head": "output", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output",
        "ln_1": "attn_norm", "ln_2": "ffn_norm", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
    }  # fmt: skip
    tensors = {}
    for name, p in model.state_dict().items():
        data = p.t().numpy() if ".c_" in name and p.ndim == 2 else p.numpy()
        for theirs, ours in short.items():
            name = name.replace(theirs, ours)
        if name != "output.weight" or output != "absent":
            tensors[name] = data
    mine = stemma.load(write(tmp_path / "x.gguf", "gpt2", keys, tensors))
    torch.testing.assert_close(logits(mine, IDS), logits(model, IDS), rtol=1e-5, atol=1e-5)
    assert mine.arch.heads.lm.tied == (output != "another")
    assert mine.ledger.tied == ({"output.weight": "token_embd.weight"} if output == "repeated" else {})
    mine.save(tmp_path / "saved")
    again = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    torch.testing.assert_close(logits(again, IDS), logits(model, IDS), rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- tokenizers


def byte_level(cut: Any) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """A byte-level tokenizer trained on the texts, and what a file would say of it."""
    core = tokenizers.Tokenizer(tokenizers.models.BPE())
    core.pre_tokenizer, core.decoder = cut, decoders.ByteLevel()
    special = ["<|end|>", "<|user|>"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(TEXTS * 3, trainer)
    model = json.loads(core.to_str())["model"]
    names = sorted(model["vocab"], key=model["vocab"].get)
    keys = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": names,
        "tokenizer.ggml.token_type": [3 if n in special else 1 for n in names],
        "tokenizer.ggml.merges": [" ".join(m) for m in model["merges"]],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.eot_token_id": 1,
    }
    return core, keys


LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split(rule: str) -> Any:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(tokenizers.Regex(rule), "isolated"), byte_level])


CUTS = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "default": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]),
    "llama-bpe": split(LLAMA3),
    "qwen2": split(LLAMA3.replace("{1,3}", "")),
}
OTHERS = {"chatglm-bpe": "llama-bpe", "glm4": "llama-bpe"}  # names that are read only, and the cuts that they mean


@pytest.mark.parametrize("pre", [*CUTS, *OTHERS])
def test_byte_level_tokenizer(tmp_path: Path, pre: str) -> None:
    core, keys = byte_level(CUTS[OTHERS.get(pre, pre)])
    keys |= {"tokenizer.ggml.pre": pre, "tokenizer.chat_template": "{{ messages[0]['content'] }}!"}
    got = vocab.read(keys)
    assert got is not None and got.kind == "bpe" and got.vocab_size == core.get_vocab_size()
    for line in TRICKY:
        assert got.encode(line, add_special=False, allow_special=True) == core.encode(line).ids
        assert got.decode(got.encode(line, add_special=False)) == line
    assert got.encode("a")[0] == (0 if pre == "llama-bpe" else got.encode("a", add_special=False)[0])
    assert (got.bos_id, got.eos_id, got.pad_id) == (0, 0, None) and got.special_ids == {0, 1}
    assert vocab.ids(keys) == vocab.Ids(bos=0, eos=(0, 1), pad=None)
    got.save(tmp_path)
    again = stemma.text.Tokenizer.load(tmp_path)
    theirs = hf.AutoTokenizer.from_pretrained(tmp_path)
    assert again.chat_template == theirs.chat_template == keys["tokenizer.chat_template"]
    for line in TRICKY:
        assert again.encode(line, allow_special=True) == got.encode(line, allow_special=True) == theirs.encode(line)


def test_flags_decide_what_stands_around_a_text() -> None:
    _, keys = byte_level(CUTS["gpt-2"])
    keys |= {
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": True,
        "tokenizer.ggml.bos_token_id": 1,
    }
    got = vocab.read(keys)
    assert got is not None
    ids = got.encode("cat")
    assert (ids[0], ids[-1]) == (1, 0) and got.encode("cat", add_special=False) == ids[1:-1]


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_tokenizer(prefix: bool) -> None:
    raw = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 3), model_writer=raw, vocab_size=420, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
        split_digits=True, add_dummy_prefix=prefix, hard_vocab_limit=False, num_threads=1, minloglevel=3,
        user_defined_symbols=["<|user|>"],
    )  # fmt: skip
    theirs = sentencepiece.SentencePieceProcessor(model_proto=raw.getvalue())
    pieces = spm.parse(raw.getvalue(), "trained").pieces
    keys = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [p for p, _, _ in pieces],
        "tokenizer.ggml.scores": [s for _, s, _ in pieces],
        "tokenizer.ggml.token_type": [k for _, _, k in pieces],
        "tokenizer.ggml.add_space_prefix": prefix,
    }
    got = vocab.read(keys)
    assert got is not None and got.kind == "spm-bpe"
    assert (got.bos_id, got.eos_id, got.unk_id) == (1, 2, 0) and vocab.ids(keys) == vocab.Ids(1, 2, None)
    for line in TRICKY:
        if "\x00" not in line:
            assert got.encode(line) == [1, *theirs.encode(line)]
            assert got.decode(got.encode(line)) == line
    assert keys["tokenizer.ggml.tokens"].index("<|user|>") in got.encode("a<|user|>b")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pre": "smolm"}, "pre is 'smolm', which is not known.*did you mean 'smollm'"),
        ({"merges": None}, "no tokenizer.ggml.merges"),
        ({"merges": ["ab"]}, "merges do not fit.*'ab' is not two pieces"),
        ({"merges": ["zz yy"]}, "merges do not fit"),
        ({"token_type": [1]}, "token_type should have .* values, one a token, not 1"),
        ({"tokens": 5}, "tokens should be an array of str"),
        ({"bos_token_id": 10_000}, "bos_token_id is 10000, but there are"),
        ({"model": "llama"}, "no tokenizer.ggml.scores"),
    ],
)
def test_refusals_of_tokenizers(changes: dict[str, Any], words: str) -> None:
    _, keys = byte_level(CUTS["gpt-2"])
    keys |= {f"tokenizer.ggml.{k}": v for k, v in changes.items()}
    with pytest.raises(CheckpointError, match=words):
        vocab.read(keys)


def test_a_whole_model_with_its_tokenizer(tmp_path: Path) -> None:
    core, keys = byte_level(CUTS["smollm"])
    keys |= {"tokenizer.ggml.pre": "smollm", "tokenizer.ggml.padding_token_id": 1}
    model = reference("llama", vocab_size=core.get_vocab_size())
    path = llama_file(tmp_path / "x.gguf", model, keys)
    ours = stemma.load(path)
    assert ours.tokenizer.encode("cat 12") == core.encode("cat 12").ids
    assert (ours.text.tokenizer, ours.text.bos, ours.text.pad) == ("bpe", "<|end|>", "<|user|>")
    assert (ours.text.bos_id, ours.text.eos_ids, ours.text.pad_id) == (0, (0, 1), 1)
    assert load(path, tokenizer=False).tokenizer is None
    ours.save(tmp_path / "saved")
    again = stemma.load(tmp_path / "saved")
    assert again.tokenizer.encode("it's  12\n\n7") == ours.tokenizer.encode("it's  12\n\n7")
    assert again.text.eos_ids == (0, 1)
    small = reference("llama", vocab_size=100)
    with pytest.raises(CheckpointError, match="but the model only 100 embeddings"):
        load(llama_file(tmp_path / "x.gguf", small, keys))
