"""Rewrites by path: what matches, what learns, loading straight into replaced modules, merging, undoing, saving."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import stemma
from adapters import LowRank, LowRankLinear
from stemma import spec
from stemma.errors import CheckpointError, UsageError
from stemma.formats import gguf
from stemma.nn.mlp import MLP
from stemma.nn.model import Model
from stemma.nn.parts import LMHead
from stemma.rewrites import Rewrite, Rewritten, Trainable, WeightOnly, Wrapped, apply, merge, undo
from stemma.rewrites.paths import PlainTensors
from tiny import FAMILIES as EVERY_FAMILY
from tiny import batch, run, tiny

# a family with a plain nn.Linear, with packed q, k, v in its files, with grouped heads, with both stacks
FAMILIES = ["bert", "gpt2", "llama3", "t5"]
QV = ("*.attention.[qv]",)


def made(name: str, rewrites: Sequence[Rewrite] = (), seed: int = 0) -> Model:
    """A tiny model of a family, every parameter off its initial value."""
    model = stemma.build(tiny(name), seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    apply(model, rewrites)
    return model


def moved(model: Model) -> Model:
    """Its adapters off zero, so that they do something."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, LowRankLinear):
                module.up.add_(torch.randn(module.up.shape, generator=generator) * 0.1)
    return model


def logits(model: Model) -> Tensor:
    out = run(model, batch(model.design))
    return out.logits if out.logits is not None else out.hidden


def same(a: Model, b: Model) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


# ---------------------------------------------------------------- what matches


def test_what_matches_is_listed_and_replaced() -> None:
    model = made("bert")
    found = apply(model, (LowRank(QV), WeightOnly(("*.mlp.*",))))
    assert found[0] == [f"encoder.blocks.{i}.attention.{x}" for i in range(3) for x in "qv"]
    assert found[1] == [f"encoder.blocks.{i}.mlp.{x}" for i in range(3) for x in ("up", "down")]
    replaced = {path for path, module in model.named_modules() if isinstance(module, Rewritten)}
    assert replaced == {*found[0], *found[1]}
    assert model.rewrites == (LowRank(QV), WeightOnly(("*.mlp.*",)))


@pytest.mark.parametrize(
    ("name", "rewrite", "sentence"),
    [
        (
            "bert",
            LowRank(("*.atention.q",)),
            "LowRank: '*.atention.q' matches no module; the nearest path is 'encoder.blocks.0.attention.q'",
        ),
        (
            "bert",
            LowRank((*QV, "encoder.blocks.9.attention.q")),
            "LowRank: 'encoder.blocks.9.attention.q' matches no module; the nearest path is "
            "'encoder.blocks.2.attention.q'",
        ),
        (
            "bert",
            LowRank(("embed.tokens",)),
            "LowRank replaces Linear, and 'embed.tokens' matches embed.tokens, of type Embedding",
        ),
        (
            "llama",
            WeightOnly(("*",)),
            "WeightOnly replaces Linear and Embedding, and lm.weight is a matrix inside of a LMHead; narrow the patterns "
            "of WeightOnly to other modules, such as '*.attention.*'",
        ),
        (
            "mixtral",
            WeightOnly(("*.mlp.*",)),
            "WeightOnly replaces Linear and Embedding, and decoder.blocks.0.mlp.gate is a matrix inside of a Experts; "
            "narrow the patterns of WeightOnly to other modules, such as '*.attention.*'",
        ),
        (
            "bert",
            Trainable(("*.biass",)),
            "Trainable: '*.biass' matches no parameter; the nearest path is 'encoder.embed_norm.bias'",
        ),
    ],
)
def test_what_does_not_match_is_refused_before_anything_changes(name: str, rewrite: Rewrite, sentence: str) -> None:
    model = made(name)
    before = list(model.named_modules())
    with pytest.raises(UsageError) as caught:
        apply(model, (WeightOnly(("*.attention.o",)), rewrite))
    assert str(caught.value) == sentence
    assert list(model.named_modules()) == before and model.rewrites == ()


@dataclass(frozen=True)
class WholeMLP(Rewrite):
    """Of modules that hold others."""

    def accepts(self) -> tuple[type[nn.Module], ...]:
        return (MLP,)

    def replace(self, module: nn.Module) -> nn.Module:
        return Wrapped(module)


def test_what_is_inside_of_a_replaced_module_is_not_replaced() -> None:
    whole, inner, path = WholeMLP(("*.mlp",)), LowRank(("*.1.mlp.up",)), "encoder.blocks.1.mlp"
    sentence = f"LowRank replaces {path}.up, which is inside of {path} that WholeMLP replaces"
    for rewrites in ((whole, inner), (inner, whole)):
        with pytest.raises(UsageError, match=sentence):
            made("bert", rewrites)
    with pytest.raises(UsageError, match=f"an earlier rewrite replaces {path}.up, which is inside of {path}"):
        apply(made("bert", (inner,)), (whole,))
    apply(made("bert", (whole,)), (LowRank(QV),))


def test_a_rewrite_needs_a_pattern() -> None:
    with pytest.raises(UsageError, match=r"WeightOnly.where must hold a pattern of module paths"):
        WeightOnly(())


def test_a_router_may_be_rewritten_beside_its_experts() -> None:
    model = made("mixtral")
    assert apply(model, (WeightOnly(("*.mlp.router",)),))[0] == [f"decoder.blocks.{i}.mlp.router" for i in range(3)]


def test_a_module_that_stands_at_two_paths_is_replaced_at_both() -> None:
    model = made("bert")
    assert model.encoder is not None
    blocks = model.encoder.blocks
    blocks[1].attention.q = blocks[0].attention.q
    assert apply(model, (LowRank(("*.attention.q",)),))[0] == [f"encoder.blocks.{i}.attention.q" for i in (0, 2)]
    assert blocks[0].attention.q is blocks[1].attention.q and isinstance(blocks[0].attention.q, LowRankLinear)


def test_rewrites_are_values() -> None:
    """They are written into files and read again, whoever defined them."""
    for rewrite in (WeightOnly(QV, "bfloat16"), Trainable(("*.bias",)), LowRank(QV, 2)):
        assert spec.coerce(tuple[Rewrite, ...], [spec.to_dict(rewrite)], "") == (rewrite,)
    with pytest.raises(UsageError, match=r"no kind 'LowRanc'; known: .*; did you mean 'LowRank'\?"):
        spec.coerce(tuple[Rewrite, ...], [{"kind": "LowRanc", "where": ["*"]}], "")


# ---------------------------------------------------------------- what learns


def test_only_what_a_rewrite_names_learns() -> None:
    model = made("bert", (LowRank(QV),))
    learns = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learns == {f"encoder.blocks.{i}.attention.{x}.{m}" for i in range(3) for x in "qv" for m in ("down", "up")}
    model = made("bert", (LowRank(("*.0.attention.q",)), Trainable(("*.0.attention.q.bias", "*.2.mlp_norm.*"))))
    learns = {name for name, p in model.named_parameters() if p.requires_grad}
    q, norm = "encoder.blocks.0.attention.q", "encoder.blocks.2.mlp_norm"
    assert learns == {f"{q}.down", f"{q}.up", f"{q}.base.bias", f"{norm}.weight", f"{norm}.bias"}
    assert all(p.requires_grad for p in undo(model).parameters())


def test_weights_that_are_stored_in_fewer_bits_leave_the_rest_to_learn() -> None:
    model = made("bert", (WeightOnly(("*.mlp.*",)),))
    assert all(p.requires_grad for p in model.parameters())
    assert not any(name.endswith("mlp.up.weight") for name, _ in model.named_parameters())


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_reach_the_adapters_and_nothing_else(name: str) -> None:
    model = moved(made(name, (WeightOnly(("*.mlp.*",)), LowRank(("*.attention.[qv]", "*.mlp.down")))))
    model.train()
    model(**batch(model.design)).hidden.square().sum().backward()
    for path, p in model.named_parameters():
        assert (p.grad is not None and bool(p.grad.any())) == (path.endswith((".down", ".up")) and p.requires_grad), (
            path
        )


# ---------------------------------------------------------------- the same function


@pytest.mark.parametrize("name", FAMILIES)
def test_an_adapter_adds_what_it_says_and_merges(name: str) -> None:
    plain = made(name)
    expected = logits(plain)
    model = made(name, (LowRank(QV),))
    assert torch.equal(logits(model), expected), "a fresh adapter changes nothing"
    changed = logits(moved(model))
    assert (changed - expected).abs().max() > 1e-3
    weights = {path: PlainTensors(model)[path] for path in PlainTensors(model)}
    merged = merge(model)
    assert merged is model and merged.rewrites == () and not any(isinstance(m, Rewritten) for m in model.modules())
    assert (logits(merged) - changed).abs().max() < 1e-5
    assert merged.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(p, weights[path]) for path, p in merged.named_parameters())
    assert all(p.requires_grad for p in merged.parameters())


@pytest.mark.parametrize("name", FAMILIES)
def test_undoing_gives_the_model_back(name: str) -> None:
    model = undo(moved(made(name, (LowRank(QV), LowRank(("*.mlp.down", "*.attention.q"), rank=2)))))
    assert model.rewrites == () and same(model, made(name))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8"])
@pytest.mark.parametrize("name", FAMILIES)
def test_stored_weights_compute_with_what_they_store(name: str, dtype: str) -> None:
    """The embeddings too, and the head that is tied to them."""
    rewrite = WeightOnly(("*.blocks.*", "embed.tokens"), dtype)  # type: ignore[arg-type]
    model, plain = made(name, (rewrite,)), made(name)
    held = PlainTensors(model)
    with torch.no_grad():
        for path, p in plain.named_parameters():
            step = p.abs().amax(-1, keepdim=True) / 127 if dtype == "int8" else p.abs() * 2**-7
            assert ((held[path] - p).abs() <= 0.5001 * step + 1e-7).all(), path
            p.copy_(held[path])
    assert (logits(model) - logits(plain)).abs().max() < 1e-6
    assert same(merge(model), plain)


def test_weights_of_zero_are_stored_as_zero() -> None:
    model = stemma.build(tiny("bert"))
    with torch.no_grad():
        model.embed.tokens.weight[3] = 0
    apply(model, (WeightOnly(("embed.tokens",)),))
    assert not model.embed.tokens(torch.tensor([3])).any()


# shared layers, disentangled attention, two streams, experts, two ways of counting places, memory, both stacks
SPECIAL = ["albert", "deberta-v3", "xlnet", "mixtral", "glm", "longllama", "bart"]
EVERY = [pytest.param(f, marks=() if f in SPECIAL else pytest.mark.slow) for f in EVERY_FAMILY]


@pytest.mark.parametrize("name", EVERY)
def test_every_family_takes_rewrites(name: str) -> None:
    """Quantised embeddings and attention, with adapters beside them, are the function of what they merge into."""
    model = moved(made(name, (WeightOnly(("*.attention.*", "embed.tokens")), LowRank(("*.attention.*",), rank=2))))
    assert sum(isinstance(m, LowRankLinear) for m in model.modules()) >= 4
    changed = logits(model)
    assert (logits(undo(model)) - changed).abs().max() > 1e-4
    merged = merge(
        moved(made(name, (WeightOnly(("*.attention.*", "embed.tokens")), LowRank(("*.attention.*",), rank=2))))
    )
    assert (logits(merged) - changed).abs().max() < 1e-5 * max(1.0, float(changed.abs().max()))


def test_a_weight_that_others_read_is_the_one_that_is_computed_with() -> None:
    """XLNet's scores read the projection of distances without calling it where segments are remembered."""
    model = moved(made("xlnet", (LowRank(("*.relative.r", "*.attention.q")),)))
    plain = merge(moved(made("xlnet", (LowRank(("*.relative.r", "*.attention.q")),))))
    ids = torch.randint(3, 83, (2, 12), generator=torch.Generator().manual_seed(2))
    positions = torch.arange(12).flip(0).expand(2, -1)
    for more in ({}, {"position_ids": positions}):
        a, b = (m(ids, **more).logits for m in (model, plain))
        assert (a - b).abs().max() < 1e-5


def test_one_graph() -> None:
    model = moved(made("llama3", (WeightOnly(("*.blocks.*",)), LowRank(QV))))
    ids = torch.randint(3, 83, (2, 12))
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert (compiled(ids).logits - model(ids).logits).abs().max() < 1e-5


def test_generating_with_replaced_modules() -> None:
    model = moved(made("llama3", (LowRank(QV), WeightOnly(("embed.tokens",)))))
    merged = merge(moved(made("llama3", (LowRank(QV), WeightOnly(("embed.tokens",))))))
    a, b = (stemma.generate(m, [[5, 6, 7, 8], [9, 5]], max_new_tokens=8, temperature=0) for m in (model, merged))
    assert [r.ids for r in a] == [r.ids for r in b] and len(a[0].ids) == 8


# ---------------------------------------------------------------- loading and saving


@pytest.mark.parametrize("name", FAMILIES)
def test_a_checkpoint_is_loaded_into_adapters(name: str, tmp_path: Path) -> None:
    plain = made(name)
    plain.save(str(tmp_path / "plain"))
    model = stemma.load(tmp_path / "plain", rewrites=(LowRank(QV),))
    assert same(undo(stemma.load(tmp_path / "plain", rewrites=(LowRank(QV),))), plain)
    assert torch.equal(logits(model), logits(plain))
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(model.ledger.new)
    again = stemma.load(tmp_path / "plain", rewrites=(LowRank(QV),))
    assert same(model, again), "adapters are drawn alike"


@pytest.mark.parametrize("name", FAMILIES)
def test_a_rewritten_model_is_saved_as_a_plain_one(name: str, tmp_path: Path) -> None:
    plain, model = made(name), moved(made(name, (WeightOnly(("*.mlp.*",)), LowRank((*QV, "*.mlp.down")))))
    before = model.state_dict()
    model.save(str(tmp_path / "out"))
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items()) and len(model.rewrites) == 2
    plain.save(str(tmp_path / "plain"))
    assert (tmp_path / "out" / "config.json").read_text() == (tmp_path / "plain" / "config.json").read_text()
    again = stemma.load(tmp_path / "out")
    assert again.state_dict().keys() == plain.state_dict().keys()
    assert (logits(again) - logits(model)).abs().max() < 1e-5
    assert same(again, merge(model)) and torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_checkpoint_is_stored_as_it_is_read(name: str, dtype: str, tmp_path: Path) -> None:
    """A file of bfloat16 stays as it is, and is computed with in fp32 as if it had been loaded so."""
    made(name).save(str(tmp_path), dtype="bfloat16")
    rewrite = WeightOnly(("*.blocks.*", "embed.tokens"), dtype)  # type: ignore[arg-type]
    model, wide = stemma.load(tmp_path, rewrites=(rewrite,)), stemma.load(tmp_path)
    stored = {name: b for name, b in model.named_buffers() if name.endswith(".codes")}
    assert len(stored) > 10 and {b.dtype for b in stored.values()} == {getattr(torch, dtype)}
    apply(wide, (rewrite,))
    assert same(model, wide), "as if rewritten after loading"
    assert {p.dtype for p in model.parameters()} == {torch.float32} and logits(model).dtype == torch.float32
    if dtype == "bfloat16":
        assert torch.equal(logits(model), logits(stemma.load(tmp_path)))


def test_no_full_precision_copy_is_kept(tmp_path: Path) -> None:
    made("llama3").save(str(tmp_path))
    model = stemma.load(tmp_path, rewrites=(WeightOnly(("*.blocks.*", "embed.tokens")),))
    sizes = {name: t.untyped_storage().nbytes() for name, t in model.state_dict().items()}
    matrices = {name: n for name, n in sizes.items() if name.endswith(".codes")}
    assert all(n == model.state_dict()[name].numel() for name, n in matrices.items())
    assert sum(sizes.values()) < 0.4 * sum(p.numel() * 4 for p in stemma.load(tmp_path).parameters())


@pytest.mark.parametrize(
    ("name", "layout"), [("llama", "meta"), ("llama", "llama2c"), ("llama", "gguf"), ("bart", "fairseq")]
)
def test_every_layout_takes_and_writes_rewrites(name: str, layout: str, tmp_path: Path) -> None:
    suffix = {"llama2c": "model.bin", "gguf": "model.gguf"}.get(layout, "model")
    model = stemma.build(tiny(name, **({"dims.d_ff": 96, "arch.norm.eps": 1e-5} if name == "llama" else {})))
    stemma.save(model, tmp_path / suffix, layout=layout)
    rewrites = (WeightOnly(("*.mlp.*",)), LowRank(QV))
    loaded = moved(stemma.load(tmp_path / suffix, rewrites=rewrites))
    assert sum(isinstance(m, LowRankLinear) for m in loaded.modules()) >= 6
    stemma.save(loaded, tmp_path / "again" / suffix, layout=layout)
    again = stemma.load(tmp_path / "again" / suffix)
    merge(loaded)
    assert all(torch.equal(p, q) for p, q in zip(again.parameters(), loaded.parameters(), strict=True))


@pytest.mark.parametrize("name", ["llama", "qwen2", "glm-4-0414"])
def test_quantised_blocks_of_a_gguf_file_stay_as_they_are(name: str, tmp_path: Path) -> None:
    """Rows in Meta's order and packed gate and up too: the numbers are those of the dequantised model."""
    wide = {"dims.d_model": 64, "dims.heads": 2, "dims.kv_heads": 1, "dims.head_dim": None, "dims.d_ff": 96}
    made_of = stemma.build(tiny(name, **wide))
    stemma.save(made_of, tmp_path / "model.gguf", dtype="q8_0")
    rewrites = (WeightOnly(("*.blocks.*", "embed.tokens"), "file"), LowRank(QV))
    model, plain = stemma.load(tmp_path / "model.gguf", rewrites=rewrites), stemma.load(tmp_path / "model.gguf")
    codes = {name: b for name, b in model.named_buffers() if name.endswith(".codes")}
    assert len(codes) > 15 and all(b.dtype == torch.uint8 for b in codes.values())
    held = PlainTensors(model)
    assert all(torch.equal(held[name], p) for name, p in plain.named_parameters())
    matrices = [p for name, p in plain.named_parameters() if p.ndim == 2 and name != "lm.weight"]
    assert sum(b.nbytes for b in codes.values()) == sum(-(-len(p) // 16) * 16 * p.shape[1] * 34 // 32 for p in matrices)
    assert torch.equal(logits(model), logits(plain))
    assert same(merge(model), plain)


@pytest.mark.parametrize("kind", ["q8_0", "q4_1"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "glm-4-0414"])
def test_a_gguf_file_of_quantised_blocks_comes_back(name: str, kind: str, tmp_path: Path) -> None:
    """Byte for byte, with a head of its own, a tied one and packed matrices; what an adapter changes is written plain."""
    wide = {"dims.d_model": 64, "dims.heads": 2, "dims.kv_heads": 1, "dims.head_dim": None, "dims.d_ff": 96}
    stemma.save(stemma.build(tiny(name, **wide)), tmp_path / "a.gguf", dtype=kind)
    plain, model = stemma.load(tmp_path / "a.gguf"), stemma.load(tmp_path / "a.gguf", quantize="keep")
    ids = torch.arange(3, 30)[None]
    assert sum(p.numel() for n, p in model.named_parameters() if p.ndim > 1) == 0
    assert torch.equal(model(ids).logits, plain(ids).logits)
    with torch.no_grad():
        assert (model(ids[:, :5]).logits - plain(ids[:, :5]).logits).abs().max() < 1e-5
    model.save(str(tmp_path / "b.gguf"), layout="gguf")
    a, b = gguf.File(tmp_path / "a.gguf"), gguf.File(tmp_path / "b.gguf")
    assert [(e.name, e.shape, e.kind) for e in a.entries.values()] == [
        (e.name, e.shape, e.kind) for e in b.entries.values()
    ]
    assert {e.kind for e in a.entries.values()} == {"F32", "Q8_0", kind.upper()}  # the head has more bits
    assert all(np.array_equal(a.raw(n), b.raw(n)) for n in a)
    assert a.metadata["general.file_type"] == b.metadata["general.file_type"]
    adapted = moved(stemma.load(tmp_path / "a.gguf", quantize="keep", rewrites=(LowRank(("*.attention.q",)),)))
    adapted.save(str(tmp_path / "c.gguf"), layout="gguf")
    c = gguf.File(tmp_path / "c.gguf")
    changed = {n for n in a if not (a.entries[n].kind == c.entries[n].kind and np.array_equal(a.raw(n), c.raw(n)))}
    assert {n for n in a if ".attn_q.weight" in n} == changed
    assert same(stemma.load(tmp_path / "c.gguf"), merge(adapted))


def test_a_head_s_own_matrix_is_stored() -> None:
    head = LMHead(tied=False, bias=True, scaled=True, softcap=3.0)
    model, plain = (stemma.build(tiny("llama"), {"arch.heads.lm": head}) for _ in range(2))
    with torch.no_grad():
        for m in (model, plain):
            m.lm.bias.copy_(torch.linspace(-1, 1, len(m.lm.bias)))
    apply(model, (WeightOnly(("lm", "embed.tokens")), LowRank(QV)))
    with torch.no_grad():
        plain.lm.weight.copy_(model.lm.weight)
        plain.embed.tokens.weight.copy_(model.embed.tokens.weight)
    assert (logits(model) - logits(plain)).abs().max() < 1e-6
    assert same(merge(model), plain)
    with pytest.raises(UsageError, match="this head is tied to the embeddings and follows them; leave it out"):
        made("gpt2", (WeightOnly(("lm",)),))


def test_weights_of_a_file_stay_in_its_type(tmp_path: Path) -> None:
    made("gpt2").save(str(tmp_path), dtype="bfloat16")
    model = stemma.load(tmp_path, rewrites=(WeightOnly(("*.blocks.*",), "file"),))
    assert {b.dtype for name, b in model.named_buffers() if name.endswith(".codes")} == {torch.bfloat16}
    assert torch.equal(logits(model), logits(stemma.load(tmp_path)))


def test_a_head_that_is_drawn_can_be_rewritten(tmp_path: Path) -> None:
    made("bert").save(str(tmp_path))
    rewrites = (WeightOnly(("*.mlp.*", "task.out")),)
    model = stemma.load(tmp_path, task="classify", labels=3, new=["task"], rewrites=rewrites)
    plain = stemma.load(tmp_path, task="classify", labels=3, new=["task"])
    apply(plain, rewrites)
    assert same(model, plain) and model.task is not None and isinstance(model.task.out, Rewritten)


def test_shapes_without_data(tmp_path: Path) -> None:
    made("gpt2").save(str(tmp_path))
    model = stemma.load(tmp_path, device="meta", rewrites=(WeightOnly(("*.mlp.*",)), LowRank(QV)))
    assert all(t.is_meta for t in model.state_dict().values()) and len(model.rewrites) == 2


def test_a_file_is_refused_as_without_rewrites(tmp_path: Path) -> None:
    made("bert").save(str(tmp_path / "bert"))
    tensors = tmp_path / "bert" / "model.safetensors"
    from safetensors.torch import load_file, save_file

    state = load_file(tensors)
    state["bert.encoder.layer.0.attention.self.query.weight"] = torch.zeros(3, 3)
    save_file(state, tensors, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"query.weight' has shape \[3, 3\], but this config needs \[36, 36\]"):
        stemma.load(tmp_path / "bert", rewrites=(LowRank(QV),))


# ---------------------------------------------------------------- the embeddings


@dataclass(frozen=True)
class Prompted(Rewrite):
    """Rows of the embeddings that learn, for ids past the vocabulary: a soft prompt (Lester et al. 2021)."""

    freezes = True

    def accepts(self) -> tuple[type[nn.Module], ...]:
        return (nn.Embedding,)

    def replace(self, module: nn.Module) -> nn.Module:
        return PromptedEmbedding(module)


class PromptedEmbedding(Wrapped):
    ROWS = 3

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        self.prompt = nn.Parameter(torch.empty(self.ROWS, self.shapes["weight"][1], device="meta"))

    def reset_parameters(self, generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> None:
        self.prompt = nn.Parameter(torch.randn(self.prompt.shape, generator=generator).to(device, dtype))

    def trainable(self) -> list[nn.Parameter]:
        return [self.prompt]

    @property
    def weight(self) -> Tensor:
        """Of the vocabulary alone: no logit is given to the prompt."""
        held = self.base.weight
        assert isinstance(held, Tensor)
        return held

    def forward(self, ids: Tensor) -> Tensor:
        return nn.functional.embedding(ids, torch.cat([self.weight, self.prompt]))

    def unmergeable(self) -> str:
        return "a soft prompt is no part of the vocabulary"


@pytest.mark.parametrize("name", ["gpt2", "llama3"])
def test_a_soft_prompt_is_a_rewrite_of_the_embeddings(name: str, tmp_path: Path) -> None:
    plain, model = made(name), made(name, (Prompted(("embed.tokens",)),))
    ids = torch.randint(3, 83, (2, 12))
    assert torch.equal(model(ids).logits, plain(ids).logits)
    prompt = torch.arange(83, 83 + PromptedEmbedding.ROWS).expand(2, -1)
    model.train()
    out = model(torch.cat([prompt, ids], 1)).logits
    assert out.shape == (2, 15, 83)
    out[:, 3:].logsumexp(-1).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ["embed.tokens.prompt"]
    with pytest.raises(UsageError, match=r"embed.tokens cannot be merged: a soft prompt is no part of the vocabulary"):
        model.save(str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match=r"embed.tokens cannot be merged"):
        merge(model)
    assert same(undo(model), plain)


# ---------------------------------------------------------------- docs/rewrites.md


def _cut(name: str) -> str:
    page = (Path(__file__).parent.parent / "docs/rewrites.md").read_text("utf-8")
    return page.partition(f"<!-- {name} -->\n```python\n")[2].partition("```\n<!-- /")[0]


def test_the_pages_first_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made("gpt2").save("model")
    names: dict[str, Any] = {}
    exec(_cut("load"), names)
    assert torch.equal(logits(stemma.load("again")), logits(names["model"]))


def test_the_pages_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(Rewrite.KINDS, "Gain", raising=False)
    names: dict[str, Any] = {"__name__": "page"}
    monkeypatch.setitem(sys.modules, "page", ModuleType("page"))  # where dataclasses look up annotations
    exec(_cut("kind"), names)
    model = made("gpt2")
    expected = logits(model)
    apply(model, (WeightOnly(("*.attention.v",), "bfloat16"), names["Gain"](("*.attention.[kv]", "*.mlp.down"))))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, names["GainLinear"]):
                module.gain.copy_(torch.linspace(0.5, 1.5, len(module.gain)))
    assert {name.rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad} == {"gain"}
    changed = logits(model)
    assert (changed - expected).abs().max() > 1e-3
    assert (logits(merge(model)) - changed).abs().max() < 1e-5
