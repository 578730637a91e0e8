"""Attention in blocks is attention: the numbers of the whole mask, without a tensor of T x S."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from stemma.declare.family import Design
from stemma.nn import blocks, parts
from stemma.nn.masks import MaskInputs, MaskRule
from tiny import NETWORKS, batch, build, tiny

LENGTH = 70


def documents(rows: int, length: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Numbers of documents of any lengths, the last of them padding in one row, and places from 0 in each."""
    generator = torch.Generator().manual_seed(seed)
    numbers, places = torch.zeros(rows, length, dtype=torch.int64), torch.zeros(rows, length, dtype=torch.int64)
    for row in range(rows):
        cuts = [0, *sorted(torch.randperm(length - 1, generator=generator)[:5].add(1).tolist()), length]
        for n, (a, b) in enumerate(itertools.pairwise(cuts)):
            numbers[row, a:b], places[row, a:b] = n, torch.arange(b - a)
    numbers[0, numbers[0] == numbers[0].max()] = -1
    return numbers, places


def rules() -> dict[str, MaskRule]:
    """One of every kind of mask, and of every kind of input that a mask follows from."""
    line = torch.arange(LENGTH)[None]
    numbers, places = documents(2, LENGTH)
    prefix = torch.zeros_like(numbers)
    for row in range(2):
        for n in numbers[row].unique():
            at = (numbers[row] == n).nonzero().squeeze(1)
            prefix[row, at] = at[0] + len(at) // 3
    right, left = torch.ones(2, LENGTH, dtype=torch.bool), torch.ones(2, LENGTH, dtype=torch.bool)
    right[1, 60:], left[0, :9] = False, False
    again = numbers.clone()
    again[:, -3:] = again[:, :1]
    specs: list[parts.LayerMask] = [parts.Full(), parts.Causal(), parts.Sliding(7), parts.Sliding(40), parts.Reverse()]
    rule: dict[str, MaskRule] = {}
    for spec in specs:
        found = {
            f"{spec}": MaskInputs(line, line, True),
            f"{spec} apart": MaskInputs(line, line, True, qdoc=numbers, kdoc=numbers),
            f"{spec} apart, counted anew": MaskInputs(places, places, False, qdoc=numbers, kdoc=numbers),
            f"{spec} padded right": MaskInputs(line, line, True, right),
            f"{spec} padded left": MaskInputs(line, line, True, left),
            f"{spec} padded, apart": MaskInputs(line, line, True, right, numbers, numbers),
            f"{spec} that come back": MaskInputs(line, line, True, qdoc=again, kdoc=again),
            f"{spec} out of order": MaskInputs(places * 2, places * 2, False, qdoc=numbers, kdoc=numbers),
        }
        rule |= {name: MaskRule(spec, inputs) for name, inputs in found.items()}
    one = torch.tensor([[30], [1]])
    rule |= {
        "prefix": MaskRule(parts.Prefix(), MaskInputs(line, line, True, prefix=one)),
        "prefix apart": MaskRule(parts.Prefix(), MaskInputs(line, line, True, None, numbers, numbers, prefix)),
        "prefix of no documents": MaskRule(parts.Prefix(), MaskInputs(line, line, True, prefix=prefix)),
        "given": MaskRule(parts.Full(), MaskInputs(line, line, True, given=right[:, None])),
        "given, whole": MaskRule(
            parts.Full(), MaskInputs(line, line, True, given=numbers[:, :, None] == numbers[:, None])
        ),
    }
    return rule


def qkv(width: int = LENGTH) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    sizes = (LENGTH, width, width)
    return [torch.randn(2, n, 2, 8, generator=generator).transpose(1, 2).requires_grad_() for n in sizes]


def plainly(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, scale: float, cap: float | None = None) -> Tensor:
    """Attention as it is written; a query that sees nothing gets 0."""
    scores = q @ k.transpose(-1, -2) * scale
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    if seen is None:
        return scores.softmax(-1) @ v
    some = seen.any(-1)[:, None, :, None]
    return scores.masked_fill(~seen[:, None] & some, float("-inf")).softmax(-1) @ v * some


def same(found: Tensor, wanted: Tensor, inputs: list[Tensor], note: str, atol: float = 2e-6) -> None:
    weights = torch.linspace(-1, 1, found.numel()).view_as(found)
    pairs = [(found, wanted)]
    pairs += zip(
        torch.autograd.grad((found * weights).sum(), inputs),
        torch.autograd.grad((wanted * weights).sum(), inputs),
        strict=True,
    )
    for a, b in pairs:
        assert torch.allclose(a, b, rtol=1e-5, atol=atol), (note, float((a - b).abs().max()))


@pytest.mark.parametrize("cap", [None, 3.0], ids=["fused", "by products"])
def test_every_mask_has_the_numbers_of_the_whole_one(cap: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "QUERIES", 16)
    for name, rule in rules().items():
        inputs = qkv()
        seen = rule.seen()
        seen = None if seen is None else seen.expand(-1, LENGTH, -1)
        found = blocks.attend(*inputs, rule, 0.3, cap)
        same(found, plainly(*inputs, seen, 0.3, cap), inputs, name)


def test_queries_of_one_row_read_keys_of_another() -> None:
    """Cross-attention by document: other lengths, an order of their own, and a document without keys."""
    own = torch.tensor([[0] * 20 + [1] * 30 + [2] * 20, [0] * 69 + [5]])
    theirs = torch.tensor([[0] * 9 + [1] * 20 + [-1] * 4, [2] * 5 + [0] * 20 + [-1] * 8])
    line = torch.arange(LENGTH)[None]
    rule = MaskRule(parts.Full(), MaskInputs(line, line[:, :33], False, qdoc=own, kdoc=theirs))
    for cap in (None, 3.0):
        inputs = qkv(33)
        same(blocks.attend(*inputs, rule, 0.3, cap), plainly(*inputs, rule.seen(), 0.3, cap), inputs, str(cap))


def tensors_of(f: Callable[[], object]) -> int:
    """The most numbers of a tensor that `f` makes, in the backward pass too."""

    class Largest(TorchDispatchMode):
        most = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for x in pytree.tree_leaves(out):
                if isinstance(x, Tensor):
                    Largest.most = max(Largest.most, x.untyped_storage().nbytes() // x.element_size())
            return out

    Largest.most = 0
    with Largest():
        f()
    return Largest.most


def test_no_tensor_has_the_size_of_all_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of 1,600 tokens: nothing of T x T is made, for any mask, with dropout and without."""
    monkeypatch.setattr(blocks, "SCORES", 2**15)
    length = 1600
    line = torch.arange(length)[None]
    numbers, _ = documents(1, length)
    x = torch.randn(1, 1, length, 8, requires_grad=True)
    for spec in (parts.Full(), parts.Causal(), parts.Sliding(300), parts.Reverse()):
        for rate in (0.0, 0.1):
            for doc in (None, numbers):
                rule = MaskRule(spec, MaskInputs(line, line, True, qdoc=doc, kdoc=doc))
                most = tensors_of(
                    lambda rule=rule, rate=rate: blocks.attend(x, x, x, rule, 0.3, None, rate).sum().backward()
                )
                assert most <= blocks.QUERIES * length, (spec, rate, doc is None, most)


# ---------------------------------------------------------------- dropout


def test_dropout_in_blocks_is_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its mean over draws is attention without it, each call draws anew, a seed draws the same, and the gradient is
    that of the very weights that were kept."""
    monkeypatch.setattr(blocks, "SCORES", 2**10)
    rule = rules()[f"{parts.Causal()} apart"]
    q, k, v = qkv()
    with torch.no_grad():
        torch.manual_seed(1)
        first, second = (blocks.attend(q, k, v, rule, 0.3, None, 0.3) for _ in range(2))
        torch.manual_seed(1)
        assert torch.equal(first, blocks.attend(q, k, v, rule, 0.3, None, 0.3)) and not torch.equal(first, second)
        mean = torch.stack([blocks.attend(q, k, v, rule, 0.3, None, 0.3) for _ in range(400)]).mean(0)
        wanted = blocks.attend(q, k, v, rule, 0.3)
    assert (mean - wanted).abs().mean() < 0.03 < (first - wanted).abs().mean()
    # the weights that were kept, read off the identity as values
    eye = torch.eye(LENGTH).expand(2, 2, -1, -1)

    def seeded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        torch.manual_seed(3)
        return blocks.attend(q, k, v, rule, 0.3, None, 0.3)

    kept = seeded(q, k, eye).detach()
    weights = plainly(q, k, eye, rule.seen(), 0.3)
    factor = torch.where(weights > 0, kept / weights, 0.0).detach()
    shown = factor[weights > 1e-6]
    assert torch.minimum(shown, (shown - 1 / 0.7).abs()).max() < 1e-3 and 0.6 < (shown > 0.5).float().mean() < 0.8
    same(seeded(q, k, v), (weights * (factor > 0.5) / 0.7) @ v, [q, k, v], "dropout")
    heads = factor.flatten(0, 1) > 0.5
    assert not torch.equal(heads[0] & heads[1], heads[0])  # each head draws its own


def test_blocks_draw_each_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "SCORES", 2**10)
    line = torch.arange(64)[None]
    rule = MaskRule(parts.Full(), MaskInputs(line, line, True))
    q = torch.zeros(2, 2, 64, 8)
    kept = blocks.attend(q, q, torch.eye(64).expand(2, 2, -1, -1), rule, 1.0, None, 0.5) > 0
    each = [kept[:, :, i : i + 16].flatten() for i in range(0, 64, 16)]
    assert all(not torch.equal(each[0], other) for other in each[1:]) and not torch.equal(kept[0], kept[1])


# ---------------------------------------------------------------- whole models


def packed(design: Design, length: int = LENGTH) -> dict[str, Tensor]:
    """Two rows of several documents, with the position ids that an objective would give."""
    inputs = {k: v for k, v in batch(design, 2, length).items() if k not in ("attention_mask", "position_ids")}
    numbers, places = documents(2, length)
    scheme = design.arch.position
    if isinstance(scheme, parts.BlankLearned | parts.BlankRotary):
        inputs["position_ids"] = torch.stack([places, torch.zeros_like(places)], -1)
    elif not isinstance(scheme, parts.Rotary | parts.Buckets):
        pad = scheme.padding if isinstance(scheme, parts.Learned) else None
        inputs["position_ids"] = places if pad is None else places + pad + 1
    inputs["documents"] = numbers
    if "decoder_input_ids" in inputs:
        inputs |= {"decoder_documents": numbers.abs()}
        if "position_ids" in inputs:
            inputs["decoder_position_ids"] = inputs["position_ids"]
    return inputs


def learned(design: Design, inputs: dict[str, Tensor]) -> list[Tensor]:
    """The hidden state of a model in training, and all gradients."""
    model = build(design).train()
    hidden = model(**inputs).hidden
    (hidden * torch.linspace(-1, 1, hidden.numel()).view_as(hidden)).mean().backward()
    return [hidden.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("name", NETWORKS)
def test_models_learn_the_same_in_blocks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed rows taken in blocks: hidden states and gradients of the whole masks."""
    design = tiny(name, **{"dims.context": LENGTH + 2, "dims.layers": 2})
    inputs = packed(design)
    wanted = learned(design, inputs)
    monkeypatch.setattr(blocks, "SHORT", 4)
    found = learned(design, inputs)
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6 * max(1.0, float(b.abs().max()))), float((a - b).abs().max())


def test_a_compiled_stack_takes_blocks_in_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other documents need no other graph; the numbers and gradients are those of the same code, not compiled."""
    monkeypatch.setattr(blocks, "SHORT", 4)
    torch._dynamo.reset()
    design = tiny("mistral", **{"dims.context": LENGTH + 2, "dims.layers": 2})
    compiled, plain = (build(design).train() for _ in range(2))
    assert compiled.decoder is not None
    compiled.decoder.compile(fullgraph=True, backend="aot_eager")
    first, second = packed(design), packed(design)
    second["documents"] = documents(2, LENGTH, seed=8)[0]
    compiled(**first).hidden.sum().backward()
    compiled.zero_grad()
    with torch._dynamo.config.patch(error_on_recompile=True):
        hidden = [model(**second).hidden for model in (compiled, plain)]
        for x in hidden:
            (x * torch.linspace(-1, 1, x.numel()).view_as(x)).sum().backward()
    assert torch.allclose(*hidden, atol=1e-6)
    grads = [[p.grad for p in model.parameters() if p.grad is not None] for model in (compiled, plain)]
    assert len(grads[1]) > 10
    for a, b in zip(*grads, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "gemma2", "t5"])
def test_long_rows_with_dropout_learn_in_blocks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows without documents too, where torch's kernel has no dropout or no cap; one seed draws the same masks where
    activations are computed again."""
    from stemma.train.recompute import recompute

    rate = {"arch.dropout.attention": 0.2}
    design = tiny(name, **{"dims.context": LENGTH + 2, "dims.layers": 2}, **({} if name == "gemma2" else rate))
    inputs = {k: v for k, v in batch(design, 2, LENGTH).items() if k != "attention_mask"}
    monkeypatch.setattr(blocks, "SHORT", 4)
    calls, attend = [], blocks.attend
    monkeypatch.setattr(blocks, "attend", lambda *given: calls.append(1) or attend(*given))
    found = []
    for patterns in ((), ("*.blocks.*",)):
        model = build(design).train()
        if patterns:
            recompute(model, patterns)
        torch.manual_seed(4)
        model(**inputs).hidden.square().sum().backward()
        found.append([p.grad for p in model.parameters() if p.grad is not None])
    assert calls and all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    model = build(design).train()
    again = [model(**inputs).hidden for _ in range(2)]
    assert torch.equal(*again) == (name == "gemma2")
