"""Checkpoints that mix types: what is kept, what is computed, and what is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import stemma
import tiny
from stemma.nn.mixed import LayerNorm, linear
from stemma.nn.norms import RMSNorm
from stemma.rewrites import WeightOnly

WIDTHS: dict[str, Any] = {"layers": 2, "d_model": 32, "heads": 2, "d_ff": 64, "vocab": 60, "context": 32}
LOW = torch.bfloat16
IDS = torch.arange(20).reshape(2, 10)

Chosen = Callable[[str, nn.Parameter], bool]
MIXES: dict[str, Chosen] = {  # what is in fp32
    "vectors": lambda name, p: p.ndim < 2,
    "all but linear layers and tokens": lambda name, p: p.ndim < 2 or not name.endswith((".weight", ".gate", ".up", ".down")),
    "tokens": lambda name, p: "tokens" in name,
    "linear layers": lambda name, p: p.ndim > 1 and "tokens" not in name,
}  # fmt: skip


def mix(model: Any, chosen: Chosen) -> Any:
    """The model with the chosen parameters in fp32, of the values that they had."""
    for name, p in model.named_parameters():
        if chosen(name, p):
            p.data = p.data.float()
    return model


def answers(model: Any, batch: dict[str, Tensor]) -> Tensor:
    out = model(**batch)
    found: Tensor = out.hidden if out.logits is None else out.logits
    return found


def test_every_family_computes_whatever_the_mix() -> None:
    """As near to fp32 as when everything is in bf16."""
    wrong = []
    for name in tiny.FAMILIES:
        design = tiny.tiny(name)
        batch = tiny.batch(design)
        with torch.no_grad():
            low = tiny.build(design).to(LOW)
            wide = tiny.build(design)
            wide.load_state_dict(low.state_dict())
            right, plain = answers(wide, batch), answers(low, batch).float()
            most = 1.5 * (plain - right).norm() + 1e-3 * right.norm()
            for title, chosen in MIXES.items():
                model = mix(tiny.build(design).to(LOW), chosen)
                found = answers(model, batch)
                if (found.float() - right).norm() > most or found.dtype != model.dtype:
                    wrong.append((name, title, found.dtype, float((found.float() - right).norm() / right.norm())))
    assert not wrong


def test_gains_are_not_rounded() -> None:
    x = torch.randn(5, 16).to(LOW)
    norm, layer = RMSNorm(16, 1e-6), LayerNorm(16, bias=False)
    for module, plain in ((norm, norm(x.float()).to(LOW).float() / norm.weight), (layer, None)):
        with torch.no_grad():
            module.weight.fill_(1.001)
        found = module(x)
        assert found.dtype == LOW
        if plain is not None:
            assert torch.equal(found, (plain * 1.001).to(LOW))
        else:
            right = nn.functional.layer_norm(x.float(), (16,), module.weight)
            assert torch.equal(found, right.to(LOW))


def test_a_bias_of_another_type_is_added_in_the_matrix_type() -> None:
    x, weight, bias = torch.randn(3, 8).to(LOW), torch.randn(4, 8).to(LOW), torch.randn(4)
    assert torch.equal(linear(x, weight, bias), nn.functional.linear(x, weight, bias.to(LOW)))
    found = linear(x, weight.float(), bias)
    assert torch.equal(found, nn.functional.linear(x.float(), weight.float(), bias).to(LOW))
    x.requires_grad_()
    weight.requires_grad_()
    bias.requires_grad_()
    linear(x, weight, bias).sum().backward()
    assert bias.grad is not None and bias.grad.dtype == torch.float32 and x.grad is not None and x.grad.dtype == LOW


def types(folder: Path) -> dict[str, torch.dtype]:
    return {name: t.dtype for name, t in load_file(folder / "model.safetensors").items()}


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A LLaMA of bf16 matrices and fp32 norms, the gains no bf16 numbers."""
    folder = tmp_path / "mixed"
    stemma.build("llama-7b", **WIDTHS, dtype="bfloat16").save(folder)
    held = load_file(folder / "model.safetensors")
    held |= {n: torch.full(t.shape, 1.001) for n, t in held.items() if "norm" in n}
    (folder / "model.safetensors").unlink()
    save_file(held, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_types_are_kept_or_unified_as_asked(mixed: Path, tmp_path: Path) -> None:
    before = types(mixed)
    assert set(before.values()) == {torch.float32, LOW}
    model = stemma.load(mixed, dtype="auto")
    assert model.dtype == LOW and model(IDS).logits.dtype == LOW
    model.save(tmp_path / "kept")
    assert types(tmp_path / "kept") == before
    assert json.loads((tmp_path / "kept" / "config.json").read_text())["dtype"] == "bfloat16"
    again = stemma.load(tmp_path / "kept", dtype="auto")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    for kind in ("bfloat16", "float32"):
        assert set(p.dtype for p in stemma.load(mixed, dtype=kind).parameters()) == {getattr(torch, kind)}
        model.save(tmp_path / kind, dtype=kind)
        assert set(types(tmp_path / kind).values()) == {getattr(torch, kind)}
    stemma.formats.stream(mixed).save(tmp_path / "streamed")
    assert types(tmp_path / "streamed") == before
    quantised = stemma.load(mixed, dtype="auto", rewrites=[WeightOnly(where=("*.attention.q",))])
    assert quantised(IDS).logits.dtype == LOW
    quantised.save(tmp_path / "merged")
    assert types(tmp_path / "merged") == before
    model.save(tmp_path / "meta", layout="meta")
    there = torch.load(tmp_path / "meta" / "consolidated.00.pth")
    assert there["norm.weight"].dtype == torch.float32 and there["output.weight"].dtype == LOW
    assert torch.equal(stemma.load(tmp_path / "meta", dtype="auto")(IDS).logits, model(IDS).logits)
    assert stemma.generate(model, [[3, 4]], max_new_tokens=4, temperature=0)[0].ids


def test_gguf_keeps_types(mixed: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    model = stemma.load(mixed, dtype="auto")
    for kind in ("float16", "bfloat16", None):
        file, again = tmp_path / f"{kind}.gguf", tmp_path / f"{kind}-again.gguf"
        model.save(file, dtype=kind)
        loaded = stemma.load(file, dtype="auto")
        assert loaded.decoder.norm.weight.dtype == torch.float32 and loaded.decoder.norm.weight[0] == torch.tensor(
            1.001
        )
        assert loaded.dtype == (LOW if kind is None else getattr(torch, kind))
        assert loaded(IDS).logits.dtype == loaded.dtype
        loaded.save(again)
        assert again.read_bytes() == file.read_bytes()
    mix(model, lambda name, p: "q.weight" in name).save(tmp_path / "wide.gguf")
    there = stemma.load(tmp_path / "wide.gguf", dtype="auto")
    assert [p.dtype for p in there.parameters()] == [p.dtype for p in model.parameters()]


def test_transformers_answers_alike(mixed: Path, tmp_path: Path) -> None:
    """It makes one type of a mixed file; where its norms are put into fp32, LayerNorm's and Gemma's still work."""
    with torch.no_grad():
        theirs = hf.LlamaForCausalLM.from_pretrained(mixed, dtype=LOW, attn_implementation="sdpa")
        assert torch.equal(stemma.load(mixed, dtype="bfloat16")(IDS).logits, theirs(IDS).logits)
        for name, kind in (("gpt2", hf.GPT2LMHeadModel), ("gemma-2b", hf.GemmaForCausalLM)):
            folder = tmp_path / name
            more = {} if name == "gpt2" else {"kv_heads": 1, "head_dim": 16}
            model = tiny.jittered(stemma.build(name, **WIDTHS, **more), stemma.design(name)).to(LOW)
            model.save(folder)
            other = kind.from_pretrained(folder, dtype=LOW, attn_implementation="sdpa")
            for module in other.modules():
                if "Norm" in type(module).__name__:
                    module.float()
            mix(model, lambda name, p: "norm" in name)
            right = other(IDS).logits
            assert right.dtype == LOW and torch.allclose(model(IDS).logits.float(), right.float(), atol=0.04, rtol=0.02)
