"""What only some decoders have: memory, sparse layers, rotary scalings, experts, choices beside a language model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

import stemma
from cases.decoders import ACTIVE, GPT
from oracle import jitter, saved
from reference import gpt3, longllama
from running import check_rows
from stemma import spec
from stemma.decoding.sessions import begin
from stemma.decoding.uncached import UncachedSession
from stemma.decoding.windows import MemorySession
from stemma.errors import CheckpointError, UsageError
from stemma.families import design, family
from stemma.formats import attach, read_design
from stemma.formats.rope import read_rope, write_rope
from stemma.nn.memory import DTYPES
from stemma.nn.model import Model, count
from stemma.nn.parts import (
    Causal,
    Cycle,
    Dims,
    DynamicScaling,
    Experts,
    LinearScaling,
    Llama3Scaling,
    Memory,
    NTKScaling,
    PowerScaling,
    RandomScaling,
    Rotary,
    Sliding,
    TruncatedScaling,
    XPosScaling,
    YarnScaling,
)
from stemma.nn.positions import Rotary as Turning
from stemma.nn.positions import random_positions, yarn_attention
from tiny import build, tiny

# ---------------------------------------------------------------- rotary scalings

PAIRS = [0, 1, 16, 24, 32, 40, 48, 63]
# frequencies of heads of 128 (transformers' functions; YaRN's and Giraffe's formulas)
FREQUENCIES = [
    (Rotary(1e4), [1.0, 0.8659644, 0.1, 0.03162278, 0.01, 0.003162278, 0.001, 0.0001154782]),
    (Rotary(1e4, LinearScaling(4.0)), [0.25, 0.2164911, 0.025, 0.007905695, 0.0025, 0.0007905695, 0.00025, 2.886955e-05]),
    (Rotary(1e4, RandomScaling(4.0)), [0.25, 0.2164911, 0.025, 0.007905695, 0.0025, 0.0007905695, 0.00025, 2.886955e-05]),
    (Rotary(1e4, NTKScaling(4.0)), [1.0, 0.8471172, 0.07032275, 0.0186485, 0.00494529, 0.001311414, 0.0003477664, 2.886955e-05]),
    (Rotary(1e4, YarnScaling(16.0, 4096)), [1.0, 0.8659644, 0.1, 0.0270618, 0.005673077, 0.000881789, 6.25e-05, 7.217387e-06]),
    (Rotary(5e5, Llama3Scaling()), [1.0, 0.8146172, 0.03760603, 0.007292665, 0.000524846, 3.428102e-05, 6.64787e-06, 3.068926e-07]),
    (Rotary(1e4, TruncatedScaling(2048)), [1.0, 0.8659644, 0.1, 0.03162278, 0.01, 0.003162278, 0.0001917476, 0.0]),
    (Rotary(1e4, PowerScaling(0.5)), [1.0, 0.8591723, 0.08660254, 0.025, 0.007071068, 0.001936492, 0.0005, 1.443477e-05]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("rotary", "want"), FREQUENCIES, ids=lambda x: type(x.scaling).__name__ if isinstance(x, Rotary) else ""
)
def test_frequencies_are_the_published_ones(rotary: Rotary, want: list[float]) -> None:
    got = Turning(128, 2048, rotary).frequencies(torch.device("cpu"))[PAIRS]
    assert torch.allclose(got, torch.tensor(want), rtol=2e-6, atol=0)


def test_dynamic_frequencies_go_by_the_length() -> None:
    turning = Turning(128, 2048, Rotary(1e4, DynamicScaling(2.0)))
    want = [1.0, 0.8396258, 0.06100591, 0.01506808, 0.003721721, 0.0009192419, 0.000227047, 1.649689e-05]
    rows = turning.frequencies(torch.device("cpu"), torch.tensor([[8192], [2048]]))
    assert torch.allclose(rows[0, 0, PAIRS], torch.tensor(want), rtol=2e-6, atol=0)
    assert torch.allclose(rows[1, 0, PAIRS], torch.tensor(FREQUENCIES[0][1]), rtol=2e-6, atol=0)


def test_truncation_keeps_fixes_and_drops() -> None:
    got = Turning(128, 2048, Rotary(1e4, TruncatedScaling(2048))).frequencies(torch.device("cpu"))
    assert [(got > 2e-4).sum().item(), (got == got[48]).sum().item(), (got == 0).sum().item()] == [41, 14, 9]


def test_yarn_grows_queries_and_keys() -> None:
    assert yarn_attention(YarnScaling(16.0)) == pytest.approx(1.277259, abs=1e-6)
    assert yarn_attention(YarnScaling(16.0, attention=0.5)) == 0.5
    assert yarn_attention(YarnScaling(40.0, mscale=1.0, mscale_all=1.0)) == 1.0


@pytest.mark.parametrize(
    "rotary",
    [
        Rotary(1e6), Rotary(1e4, LinearScaling(4.0)), Rotary(1e4, DynamicScaling(3.0)), Rotary(5e5, Llama3Scaling(32.0)),
        Rotary(1e4, YarnScaling(4.0, 512, 24.0, 2.0, 0.9, 0.7, 0.8, False)), Rotary(1e4, YarnScaling(), share=0.5),
    ],
)  # fmt: skip
def test_rotary_parameters_survive_a_file(rotary: Rotary) -> None:
    data = write_rope(rotary, design("llama-7b"))
    again = spec.edit(design("llama-7b"), {"arch.position": read_rope(None, {"rope_parameters": data})})
    assert again.arch.position == rotary


def test_older_spellings_of_rotary_parameters() -> None:
    config = {
        "rope_theta": 1e6,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768},
    }
    read = read_rope(None, config | {"partial_rotary_factor": 0.5})
    assert spec.edit(design("llama-7b"), {"arch.position": read}).arch.position == Rotary(
        1e6, YarnScaling(4.0, 32_768), 0.5
    )
    with pytest.raises(CheckpointError, match="did you mean 'yarn'"):
        read_rope(None, {"rope_scaling": {"type": "yran", "factor": 4.0}})
    with pytest.raises(CheckpointError, match="original_max_position_embeddings"):
        read_rope(None, {"rope_scaling": {"type": "yarn", "factor": 4.0}})


@pytest.mark.parametrize("scaling", [NTKScaling(3.0), TruncatedScaling(16), PowerScaling(0.5), XPosScaling()])
def test_scalings_that_no_publisher_can_say_stay_whole(scaling: Any, tmp_path: Path) -> None:
    d = tiny("giraffe", **{"arch.position.scaling": scaling})
    model = attach(build(d), d, family("giraffe"))
    with pytest.warns(UserWarning, match="Stemma's own layout"):
        model.save(tmp_path)
    again = stemma.load(tmp_path)
    ids = torch.arange(5, 30)[None]
    assert again.arch.position == d.arch.position and torch.equal(again(ids).logits, model(ids).logits)


def test_random_positions_are_sums_of_steps_in_training_alone() -> None:
    turning, places = Turning(8, 64, Rotary(1e4, RandomScaling())), torch.arange(40)[None]
    torch.manual_seed(3)
    steps = torch.rand(500, 40)  # of a generator of its own: the same seed draws the same
    want = 2 * steps.double().cumsum(1)
    want *= 40 / want[:, -1:].clamp(min=40)
    torch.manual_seed(3)
    found = random_positions(places.expand(500, -1))
    assert (found - want).abs().max() < 1e-4 and found.max() <= 40.0001 and (found[:, 1:] >= found[:, :-1]).all()
    assert 30 < found[:, -1].mean() < 39 and (found[:, -1] < 39).any()  # only what exceeds the length is shrunk
    x = torch.randn(3, 2, 40, 8)
    plain = Turning(8, 64, Rotary(1e4)).rotation(places, torch.float32)(x)
    turn, keys = turning.train().rotations(places, torch.float32, 3)
    assert keys is None and turn is not None and not torch.allclose(turn(x)[0], plain[0])
    assert not torch.allclose(turn(x[:1].expand(3, -1, -1, -1))[0], turn(x[:1].expand(3, -1, -1, -1))[1])
    turn, _ = turning.eval().rotations(places, torch.float32, 3)
    assert turn is not None and torch.equal(turn(x), plain)


@pytest.mark.parametrize("neighbours", [False, True])
def test_xpos_scores_fall_with_the_distance(neighbours: bool) -> None:
    """Against complex numbers: the product of pair i turns by the distance and shrinks by a power of z_i."""
    width, context, base = 8, 30, 16.0
    turning = Turning(width, context, Rotary(100.0, XPosScaling(base, neighbours=neighbours))).eval()
    turn, turn_keys = turning.rotations(torch.arange(context)[None], torch.float32, 1)
    assert turn is not None and turn_keys is not None
    q, k = torch.randn(2, 1, 1, context, width, generator=torch.Generator().manual_seed(1))
    scores = (turn(q) @ turn_keys(k).transpose(-1, -2))[0, 0].double()

    def pairs(x: torch.Tensor) -> torch.Tensor:
        x = x[0, 0].double()
        halves = (x[:, ::2], x[:, 1::2]) if neighbours else x.chunk(2, -1)
        return torch.complex(*halves)

    a, b, i = pairs(q), pairs(k), torch.arange(width // 2).double()
    z, speed = (2 * i + 0.4 * width) / (1.4 * width), 100.0 ** (-2 * i / width)
    for m in range(0, context, 7):
        for n in range(0, m + 1, 3):
            far = m - n
            want = (a[m] * b[n].conj() * torch.exp(1j * far * speed) * z ** (far / base)).real.sum()
            assert abs(scores[m, n] - want) < 1e-4 * max(1.0, abs(want))


def test_xpos_base_falls_step_by_step() -> None:
    spec = XPosScaling()
    assert [spec.at(n, 2000) for n in (0, 1, 100, 1008, 1500)] == [8192, 8184, 7392, 128, 128]
    assert [spec.at(n, 8) for n in (0, 4, 8)] == [8192, 4160, 128]  # a run too short for steps of 8
    turning, places = Turning(8, 64, Rotary(1e4, spec)), torch.tensor([[0, 63]])
    turning.train().at_step(100, 2000)
    z = torch.tensor([(2 * i + 3.2) / 11.2 for i in range(4)])
    assert torch.allclose(turning.growth(spec, places)[0, 0, 1], z ** (31 / 7392))
    assert torch.allclose(turning.eval().growth(spec, places)[0, 0, 0], z ** (-32 / 128))  # in use, the last
    with pytest.raises(UsageError, match="not upwards"):
        XPosScaling(base=9000.0)


def test_wrong_pairs_are_right_for_weights_of_another_order() -> None:
    """Giraffe's released xPos pairs neighbours, in weights whose pairs are halves: another function altogether."""
    d = tiny("giraffe", **{"arch.position.scaling": XPosScaling()})
    right = build(d)
    wrong = Model(spec.edit(d.arch, {"position.scaling.neighbours": True}), d.dims).eval()
    wrong.load_state_dict(right.state_dict())
    ids = torch.randint(3, 83, (2, 30), generator=torch.Generator().manual_seed(0))
    before, after = right(ids).logits, wrong(ids).logits
    assert (before - after).abs().max() > 0.1 * before.abs().max()
    half = d.dims.width // 2
    order = torch.arange(d.dims.width).view(2, half).T.flatten()  # halves -> neighbours
    for block in wrong.decoder.blocks:
        for matrix in (block.attention.q, block.attention.k):
            rows = matrix.weight.data.view(-1, d.dims.width, d.dims.d_model)
            matrix.weight.data = rows[:, order].reshape(matrix.weight.shape).clone()
    assert (wrong(ids).logits - before).abs().max() < 1e-4


def test_xpos_scores_are_fp32() -> None:
    d = tiny("giraffe", **{"arch.position.scaling": XPosScaling(4.0), "dims.context": 40})
    model, seen = build(d), []
    ids = torch.randint(3, 83, (2, 30), generator=torch.Generator().manual_seed(0))
    attention = model.decoder.blocks[1].attention
    inner = attention.attend
    attention.attend = lambda q, k, v, *more: seen.append((q.dtype, k.dtype, v.dtype)) or inner(q, k, v, *more)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.isfinite(model(ids).logits).all()
    assert seen == [(torch.float32,) * 3]


def test_dynamic_scaling_reads_again_only_past_its_length(tmp_path: Path) -> None:
    saved("llama-dynamic", tmp_path)
    model = stemma.load(tmp_path)
    assert isinstance(begin(model, [[5] * 6], 6), UncachedSession) and not isinstance(
        begin(model, [[5] * 6], 5), UncachedSession
    )


# ---------------------------------------------------------------- GPT-3


def test_sparse_layers_equal_an_independent_reference() -> None:
    d = tiny("gpt3", **{"dims.layers": 4})
    model = build(d).double()
    ids = torch.randint(3, 83, (2, 17), generator=torch.Generator().manual_seed(0))
    got = model(ids).logits
    bands = [None, 5, None, 5]
    for row, logits in zip(ids.tolist(), got, strict=True):
        want = gpt3.forward(dict(model.named_parameters()), row, 4, d.dims.heads, bands, d.arch.norm.eps)
        assert (logits - want).abs().max() < 1e-10
    plain = gpt3.forward(dict(model.named_parameters()), ids[0].tolist(), 4, d.dims.heads, [None] * 4, d.arch.norm.eps)
    assert (got[0] - plain).abs().max() > 1e-3


# ---------------------------------------------------------------- LongLLaMA


def long_model(dtype: str, last: int = 6) -> tuple[Model, longllama.LongLlama]:
    d = tiny("longllama", **{"dims.context": 8, "arch.mask": Memory((0, 2), last, dtype), "dims.kv_heads": None})
    model = attach(build(d), d, family("longllama")).double()
    reference = longllama.LongLlama(
        {k: v.detach() for k, v in model.named_parameters()}, 3, 6, 10_000.0, 1e-6, 8, last, (0, 2), DTYPES[dtype]
    )
    return model, reference


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("length", [3, 6, 7, 14, 15, 31])
def test_windows_with_memory_equal_an_independent_reference(dtype: str, length: int) -> None:
    """Logits of a prompt, of every token after it, and past the end of the last window."""
    model, reference = long_model(dtype)
    ids = torch.randint(3, 83, (length + 12,), generator=torch.Generator().manual_seed(length)).tolist()
    with torch.no_grad():
        want = reference.prompt(ids[:length])
        got = model(torch.tensor([ids[:length]])).logits[0]
        tolerance = 1e-6 if dtype == "float32" else 1e-3  # angles are fp32 here, and stored values may round apart
        assert (got - want).abs().max() < tolerance
        session = begin(model, [ids[:length]], 12)
        assert isinstance(session, MemorySession)
        for token in ids[length:]:
            assert (session.logits[0].double() - want[-1]).abs().max() < max(tolerance, 1e-5)
            session.step(torch.tensor([token]))
            want = reference.step(token)[None]


def test_memory_is_seen() -> None:
    model, _ = long_model("float32")
    ids = torch.randint(3, 83, (1, 30), generator=torch.Generator().manual_seed(1))
    other = ids.clone()
    other[0, 2] = (other[0, 2] + 1) % 83
    assert (model(ids).logits[0, -1] - model(other).logits[0, -1]).abs().max() > 1e-5
    forgetful = spec.edit(model.arch, {"mask": Causal()})
    plain = Model(forgetful, model.dims).double()
    plain.load_state_dict(model.state_dict())
    assert (plain(ids).logits[0, -1] - model(ids).logits[0, -1]).abs().max() > 1e-3
    assert (plain(ids[:, :6]).logits - model(ids[:, :6]).logits).abs().max() < 1e-12


def test_rows_with_memory_join_and_leave() -> None:
    """Each reads as a session of its own."""
    model, _ = long_model("float32")
    rows, texts = ([torch.randint(3, 83, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in lengths]
                   for lengths in ((20, 5, 11, 1, 8), (16, 17, 18, 19, 21)))  # fmt: skip

    def alone(prompt: list[int], new: list[int]) -> torch.Tensor:
        session = begin(model, [prompt])
        for token in new:
            session.step(torch.tensor([token]))
        return session.logits[0]

    check_rows(model, rows, texts, alone)


def test_rows_with_memory_go_alone() -> None:
    """In a padded batch, in beams and in a ragged decoding every row is read as if it were alone."""
    model, _ = long_model("float32")
    rows = [torch.randint(3, 83, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (20, 5, 11)]
    ids = torch.tensor([r + [0] * (20 - len(r)) for r in rows])
    mask = torch.tensor([[1] * len(r) + [0] * (20 - len(r)) for r in rows])
    for out, row in zip(model(ids, mask).logits, rows, strict=True):
        assert (out[: len(row)] - model(torch.tensor([row])).logits[0]).abs().max() < 1e-10
    for options in (dict(), dict(num_beams=3), dict(temperature=1.0, seed=3)):
        together = stemma.generate(model, rows, max_new_tokens=9, **options)
        assert [r.ids for r in together] == [
            stemma.generate(model, [row], max_new_tokens=9, **{**options, "seed": r.seed})[0].ids
            for r, row in zip(together, rows, strict=True)
        ]


def test_texts_in_windows_take_no_positions() -> None:
    model, _ = long_model("float32")
    with pytest.raises(UsageError, match="windows"):
        model(torch.ones(1, 9, dtype=torch.int64), position_ids=torch.arange(9)[None])


def test_a_published_longllama_config_is_read() -> None:
    config = dict(
        architectures=["LongLlamaForCausalLM"], model_type="longllama", vocab_size=32_000, hidden_size=3200,
        intermediate_size=8640, num_hidden_layers=26, num_attention_heads=32, hidden_act="silu", rms_norm_eps=1e-6,
        max_position_embeddings=2048, initializer_range=0.02, use_cache=True, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, tie_word_embeddings=False, last_context_length=1024, mem_layers=[6, 12, 18],
        mem_positionals=True, mem_dtype="bfloat16", mem_attention_grouping=[4, 2048], torch_dtype="float32",
    )  # fmt: skip
    found, owner, _, unused = read_design(config)
    assert (found.name, owner.name) == ("longllama-3b", "longllama") and "mem_attention_grouping" in unused
    with pytest.raises(CheckpointError, match="mem_positionals"):
        read_design(config | {"mem_positionals": False})
    with pytest.raises(CheckpointError, match="mem_layers"):
        read_design(config | {"mem_layers": []})


# ---------------------------------------------------------------- experts


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("width", [24, 21])
def test_experts_are_what_they_say(dtype: torch.dtype, width: int) -> None:
    """Each token's own experts one by one, weighted by the softmax of the best scores."""
    from stemma.nn.mlp import feed_forward

    torch.manual_seed(0)
    experts = feed_forward(Experts(), Dims(16, 1, 2, width, 9, 9, experts=5, active=2), 0.0).to(dtype)
    for p in experts.parameters():
        torch.nn.init.normal_(p, 0.0, 0.3)
    x = torch.randn(2, 7, 16, dtype=dtype)
    got = experts(x)
    for row, out in zip(x.flatten(0, 1), got.flatten(0, 1), strict=True):
        best = (experts.router.weight @ row).float().topk(2)
        want = sum(
            w * (experts.down[e] @ (torch.nn.functional.silu(experts.gate[e] @ row) * (experts.up[e] @ row)))
            for w, e in zip(best.values.softmax(0).to(dtype), best.indices, strict=True)
        )
        assert torch.allclose(out, want, atol=0.05 if dtype == torch.bfloat16 else 1e-5)


def test_experts_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bf16 each row meets the matrix of its own expert alone, and the gradients are those of fp32."""
    from stemma.nn.mlp import feed_forward

    torch.manual_seed(0)
    experts = feed_forward(Experts(), Dims(16, 1, 2, 24, 9, 9, experts=5, active=2), 0.0)
    for p in experts.parameters():
        torch.nn.init.normal_(p, 0.0, 0.3)
    x = torch.randn(2, 7, 16)
    experts(x).square().sum().backward()
    want = {n: p.grad for n, p in experts.named_parameters()}
    experts.zero_grad()
    groups = torch.nn.functional.grouped_mm
    seen = []

    def grouped(rows: torch.Tensor, weight: torch.Tensor, **how: Any) -> torch.Tensor:
        seen.append((rows.dtype, weight.dtype, rows.shape[0]))
        return groups(rows, weight, **how)

    monkeypatch.setattr(torch.nn.functional, "grouped_mm", grouped)
    with torch.autocast("cpu", torch.bfloat16):
        experts(x).float().square().sum().backward()
    assert seen == [(torch.bfloat16, torch.bfloat16, 28)] * 3
    for name, p in experts.named_parameters():
        one = want[name]
        assert p.grad is not None and one is not None and p.grad.dtype == torch.float32
        assert (p.grad - one).norm() < 0.03 * one.norm(), name


def test_widths_of_experts_need_experts() -> None:
    with pytest.raises(UsageError, match=r"arch\.mlp=Experts"):
        stemma.build("llama-7b", layers=1, d_model=16, heads=2, d_ff=16, vocab=9, experts=4, active=2)
    with pytest.raises(UsageError, match=r"dims\.active"):
        Dims(16, 1, 2, 16, 9, 9, experts=2, active=3)


@pytest.mark.parametrize("name", ACTIVE)
def test_parameters_that_a_token_uses(name: str) -> None:
    d = design(name)
    assert d.dims.experts and d.dims.active
    idle = (d.dims.experts - d.dims.active) * 3 * d.dims.d_model * d.dims.d_ff * d.dims.layers
    assert count(d.arch, d.dims) - idle == ACTIVE[name]


# ---------------------------------------------------------------- designs of public files

GEMMA3 = dict(
    architectures=["Gemma3ForCausalLM"], attention_bias=False, attention_dropout=0.0, attn_logit_softcapping=None,
    bos_token_id=2, cache_implementation="hybrid", eos_token_id=[1, 106], final_logit_softcapping=None, head_dim=256,
    hidden_activation="gelu_pytorch_tanh", hidden_size=1152, initializer_range=0.02, intermediate_size=6912,
    max_position_embeddings=32_768, model_type="gemma3_text", num_attention_heads=4, num_hidden_layers=26,
    num_key_value_heads=1, pad_token_id=0, query_pre_attn_scalar=256, rms_norm_eps=1e-6, rope_local_base_freq=10_000,
    rope_scaling=None, rope_theta=1_000_000, sliding_window=512, sliding_window_pattern=6, torch_dtype="bfloat16",
    transformers_version="4.50.0.dev0", use_cache=True, vocab_size=262_144,
)  # fmt: skip
QWEN = dict(
    architectures=["Qwen2ForCausalLM"], attention_dropout=0.0, bos_token_id=151_643, eos_token_id=151_643,
    hidden_act="silu", hidden_size=896, initializer_range=0.02, intermediate_size=4864, max_position_embeddings=131_072,
    max_window_layers=24, model_type="qwen2", num_attention_heads=14, num_hidden_layers=24, num_key_value_heads=2,
    rms_norm_eps=1e-6, rope_theta=1_000_000.0, sliding_window=131_072, tie_word_embeddings=True, use_cache=True,
    use_sliding_window=False, vocab_size=151_936,
)  # fmt: skip


def test_older_files_give_the_declared_designs() -> None:
    found, owner, *_ = read_design(GEMMA3)
    assert (found.name, owner.name) == ("gemma3-1b", "gemma3")
    assert found.arch.local == Rotary(1e4) and found.arch.position == Rotary(1e6)
    found, owner, *_ = read_design(QWEN)
    assert (found.name, owner.name) == ("qwen2-0.5b", "qwen2")
    llama = dict(
        model_type="llama", architectures=["LlamaForCausalLM"], vocab_size=32_016, hidden_size=4096,
        intermediate_size=11_008, num_hidden_layers=32, num_attention_heads=32, max_position_embeddings=16_384,
        rms_norm_eps=1e-5, rope_theta=1_000_000,
    )  # fmt: skip
    assert read_design(llama)[0].name == "codellama-7b"
    assert (
        read_design(llama | dict(vocab_size=32_000, rope_theta=10_000.0, max_position_embeddings=4096))[0].name
        == "llama2-7b"
    )


def test_windows_by_layer_take_the_shortest_cycle() -> None:
    windows = QWEN | dict(use_sliding_window=True, sliding_window=64, max_window_layers=20)
    mask = read_design(windows)[0].arch.mask
    assert mask == Cycle((Causal(),) * 20 + (Sliding(64),) * 4)
    types = ["sliding_attention", "full_attention"] * 12
    assert read_design(windows | dict(layer_types=types))[0].arch.mask == Cycle((Sliding(64), Causal()))
    with pytest.raises(CheckpointError, match="layer_types"):
        read_design(windows | dict(layer_types=["sliding"] * 24))


# ---------------------------------------------------------------- choices


@pytest.mark.parametrize(
    ("name", "config"), [("GPT2DoubleHeadsModel", hf.GPT2Config), ("OpenAIGPTDoubleHeadsModel", hf.OpenAIGPTConfig)]
)
def test_choices_beside_a_language_model_equal_the_reference(name: str, config: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = getattr(hf, name)(config(**GPT, pad_token_id=1)).eval()
    jitter(theirs, 1)
    theirs.save_pretrained(tmp_path / "a")
    ours = stemma.load(tmp_path / "a")
    ids = torch.randint(5, 91, (2, 3, 12), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[0, 1, 9:] = 0
    ids = ids.masked_fill(mask == 0, 1)
    labels = torch.tensor([2, 0])
    # a causal row does not see the padding after it; GPT-1 takes no mask of this shape
    given = {"attention_mask": mask} if name.startswith("GPT2") else {}
    with torch.no_grad():
        want = theirs(ids, **given, mc_token_ids=mask.sum(-1) - 1, mc_labels=labels)
        got = ours(ids, mask, labels=labels)
    assert (got.mc_logits - want.mc_logits).abs().max() < 1e-5 and abs(got.loss - want.mc_loss) < 1e-5
    assert (got.logits - want.logits)[mask.bool()].abs().max() < 1e-5
    ours.save(tmp_path / "b")
    again = getattr(hf, name).from_pretrained(tmp_path / "b").eval()
    assert torch.allclose(again(ids, **given).mc_logits, theirs(ids, **given).mc_logits, atol=1e-6)
    body = stemma.load(tmp_path / "a", task="classify", labels=4)
    assert body(ids[:, 0], mask[:, 0]).logits.shape == (2, 4) and set(body.ledger.new) == {"task.out.weight"}


def test_a_fresh_choice_keeps_the_language_model(tmp_path: Path) -> None:
    model = stemma.build("gpt2", task="choose", layers=1, d_model=16, heads=2, d_ff=16, vocab=50)
    ids = torch.randint(0, 50, (2, 3, 7))
    out = model(ids)
    assert out.logits.shape == (2, 3, 7, 50) and out.mc_logits.shape == (2, 3)
    model.save(tmp_path)
    assert torch.equal(stemma.load(tmp_path)(ids).mc_logits, out.mc_logits)


def test_last_tokens_are_found_without_a_mask(tmp_path: Path) -> None:
    saved("llama-classify", tmp_path)
    model = stemma.load(tmp_path)
    ids = torch.tensor([[5, 6, 7, 1, 1]])
    assert torch.allclose(model(ids).logits, model(ids[:, :3]).logits, atol=1e-6)
    assert math.isclose(
        model(ids, labels=torch.tensor([1])).loss, model(ids[:, :3], labels=torch.tensor([1])).loss, abs_tol=1e-6
    )
