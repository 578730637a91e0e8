"""llama2.c files: made here as its export script documents them, read, compared with transformers, written back."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import stemma
from stemma.errors import CheckpointError, UsageError
from stemma.nn.parts import LinearScaling
from test_meta import TEXTS, logits, named, reference, trained

CONTEXT = 40


def fp32(*items: torch.Tensor) -> bytes:
    return b"".join(t.detach().float().contiguous().numpy().tobytes() for t in items)


def each(w: dict[str, torch.Tensor], layers: int, *names: str) -> bytes:
    return b"".join(fp32(w[f"layers.{i}.{name}.weight"]) for name in names for i in range(layers))


QKVO = [f"attention.w{x}" for x in "qkvo"]
MLP = [f"feed_forward.w{k}" for k in (1, 2, 3)]


def written(path: Path, model: Any, version: int, base: float = 10_000.0) -> Path:
    c, w = model.config, named(model)
    tied = c.tie_word_embeddings
    sizes = [c.hidden_size, c.intermediate_size, c.num_hidden_layers, c.num_attention_heads, c.num_key_value_heads]
    n, out = c.num_hidden_layers, b""
    if version == 0:
        out += struct.pack("<7i", *sizes, c.vocab_size if tied else -c.vocab_size, CONTEXT)
        out += fp32(w["tok_embeddings.weight"]) + each(w, n, "attention_norm", *QKVO, "ffn_norm", *MLP)
        out += fp32(w["norm.weight"])
        freqs = 1.0 / (base ** (torch.arange(0, c.head_dim, 2).float() / c.head_dim))
        angle = torch.outer(torch.arange(CONTEXT).float(), freqs)
        out += fp32(torch.cos(angle), torch.sin(angle))
    else:
        out += b"24ka" + struct.pack("<i", version) + struct.pack("<7i", *sizes, c.vocab_size, CONTEXT)
        out += struct.pack("<B", tied)
        out += b"\0" * (256 - len(out))
        out += each(w, n, "attention_norm") + each(w, n, "ffn_norm") + fp32(w["norm.weight"])
        out += fp32(w["tok_embeddings.weight"]) + each(w, n, *QKVO, *MLP)
    path.write_bytes(out + (b"" if tied else fp32(w["output.weight"])))
    return path


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kv", [4, 2])
def test_both_ways(tmp_path: Path, version: int, tied: bool, kv: int) -> None:
    model = reference(tie_word_embeddings=tied, num_key_value_heads=kv)
    path = written(tmp_path / "a.bin", model, version)
    ours = stemma.load(path)
    torch.testing.assert_close(logits(ours), logits(model), rtol=1e-5, atol=1e-5)
    assert ours.dims.context == CONTEXT and ours.arch.heads.lm.tied == tied and ours.dims.kv == kv
    assert set(ours.ledger.ignored) == ({"freq_cis_real", "freq_cis_imag"} if version == 0 else set())
    ours.save(tmp_path / "b.bin", layout="llama2c" if version == 0 else "llama2c-v1")
    assert (tmp_path / "b.bin").read_bytes() == path.read_bytes()
    half = stemma.load(path, dtype="bfloat16")
    half.save(tmp_path / "c.bin")  # the name says the layout; numbers are fp32 in any case
    again = stemma.load(tmp_path / "c.bin")
    for (name, a), b in zip(again.named_parameters(), half.parameters(), strict=True):
        assert torch.equal(a, b.float()), name


def test_other_layouts_of_the_same_model(tmp_path: Path) -> None:
    model = reference(num_key_value_heads=2)
    ours = stemma.load(written(tmp_path / "a.bin", model, 0))
    ours.save(tmp_path / "hf")
    stemma.load(tmp_path / "hf").save(tmp_path / "b.bin")
    assert (tmp_path / "b.bin").read_bytes() == (tmp_path / "a.bin").read_bytes()
    with pytest.warns(UserWarning, match="for what context"):
        ours.save(tmp_path / "meta", layout="meta", shards=2)
    torch.testing.assert_close(logits(stemma.load(tmp_path / "meta")), logits(model), rtol=1e-5, atol=1e-5)
    blank = stemma.load(tmp_path / "a.bin", device="meta")
    assert blank.device.type == "meta" and {n: p.shape for n, p in blank.named_parameters()} == {
        n: p.shape for n, p in ours.named_parameters()
    }


def test_tokenizer_beside_it(tmp_path: Path) -> None:
    raw = trained()
    model = reference(vocab_size=420)
    path = written(tmp_path / "a.bin", model, 0)
    assert stemma.load(path).tokenizer is None
    (tmp_path / "tokenizer.model").write_bytes(raw)
    ours = stemma.load(path)
    assert ours.tokenizer.decode(ours.tokenizer.encode(TEXTS[0])) == TEXTS[0]
    assert stemma.formats.load(path, tokenizer=False).tokenizer is None


def test_refusals(tmp_path: Path) -> None:
    path = written(tmp_path / "a.bin", reference(), 0)
    whole = path.read_bytes()

    def fails(raw: bytes, words: str) -> None:
        path.write_bytes(raw)
        with pytest.raises(CheckpointError, match=words) as error:
            stemma.load(path)
        assert "\n" not in str(error.value)

    fails(whole[:-4], f"should have {len(whole)} bytes, as its header .* not {len(whole) - 4}")
    fails(whole + b"\0", "should have")
    fails(whole[:20], "its header alone needs 28")
    fails(whole[:28], "28 bytes are too few for its header")
    fails(b"\xff" * 500, "header says dim=-1")
    fails(b"PK\x03\x04" + whole, "is a file of torch.save")
    fails(struct.pack("<7i", 48, 128, 3, 5, 5, 96, 40) + whole[28:], "the header does not describe a model")
    fails(struct.pack("<Ii", 0x616B3432, 2) + whole, r"int8 file \(version 2\)")
    fails(struct.pack("<Ii", 0x616B3432, 7) + whole, "says llama2.c version 7")
    one = bytearray(written(path, reference(), 1).read_bytes())
    one[36] = 3
    fails(bytes(one), "byte 36 should be 1")
    written(path, reference(), 0, base=500_000.0)
    fails(path.read_bytes(), "freq_cis_real is not the table of a rotary base of 10000")


def test_what_cannot_be_written(tmp_path: Path) -> None:
    small = dict(d_model=48, layers=1, heads=4, d_ff=128, vocab=96, context=CONTEXT)
    for changes, words in (
        ({"arch.norm.eps": 1e-6}, "cannot express arch.norm.eps=1e-06 .it would read 1e-05"),
        ({"arch.position.base": 5e5}, "cannot express arch.position.base"),
        ({"arch.position.scaling": LinearScaling(2.0)}, "cannot express arch.position.scaling"),
        ({"dims.head_dim": 20}, "cannot express dims.head_dim=20"),
        ({"arch.heads.lm": None}, "cannot express arch.heads.lm"),
    ):
        model = stemma.build("llama-7b", {"arch.norm.eps": 1e-5} | changes, **small)
        with pytest.raises(UsageError, match=words):
            model.save(tmp_path / "x.bin")
    with pytest.raises(UsageError, match=r"cannot express arch.mask"):
        stemma.build("mistral-7b", {"dims.kv_heads": None}, **small).save(tmp_path / "x.bin")
    model = stemma.build("llama-7b", {"arch.norm.eps": 1e-5}, **small)
    with pytest.raises(UsageError, match=r"llama2.c files hold float32, not 'float16'"):
        model.save(tmp_path / "x.bin", dtype="float16")
    with pytest.raises(UsageError, match="is a folder"):
        model.save(tmp_path, layout="llama2c")
    assert not list(tmp_path.iterdir())
    model.save(tmp_path / "x.bin")
    assert [f.name for f in tmp_path.iterdir()] == ["x.bin"]
    assert np.fromfile(tmp_path / "x.bin", "<i4", 7).tolist() == [48, 128, 1, 4, 4, -96, CONTEXT]
