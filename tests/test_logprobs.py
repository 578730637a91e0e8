"""Log-probabilities of given tokens: against log_softmax and gather, with gradients and in chunks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import stemma.objectives.vocabulary as vocabulary
from stemma.errors import UsageError
from stemma.nn.inputs import Inputs
from stemma.nn.model import Model
from stemma.objectives.vocabulary import sequence_logprobs, token_logprobs
from tiny import batch, build, tiny

IGNORED = -100


def direct(logits: Tensor, labels: Tensor) -> Tensor:
    """The definition."""
    each = logits.float().log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1)
    return each.masked_fill(labels == IGNORED, 0.0)


def labels_of(ids: Tensor) -> Tensor:
    """The ids, of which some are no targets."""
    return ids.masked_fill(torch.rand(ids.shape, generator=torch.Generator().manual_seed(4)) < 0.3, IGNORED)


@pytest.mark.parametrize("name", ["llama", "gemma2", "bert", "albert", "t5"])
@pytest.mark.parametrize("rows", [10**9, 7])
def test_values_and_gradients_are_those_of_log_softmax(name: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    design = tiny(name)
    model = Model(design.arch, design.dims).initialise(1)
    monkeypatch.setattr(vocabulary, "LOGITS", rows * design.dims.vocab)
    labels = labels_of(torch.randint(0, design.dims.vocab, (3, 20), generator=torch.Generator().manual_seed(3)))
    weights = torch.linspace(-1, 2, 60).view(3, 20)  # not all alike, as in PPO
    found = []
    for f in (lambda h: direct(model.logits(h), labels), lambda h: token_logprobs(model, h, labels)):
        hidden = torch.randn(3, 20, design.dims.d_model, generator=torch.Generator().manual_seed(2)).requires_grad_()
        model.zero_grad()
        values = f(hidden)
        (values * weights).sum().backward()
        found.append([values.detach(), hidden.grad, *(p.grad for p in model.parameters())])
    assert found[1][0].dtype == torch.float32 and found[1][0].any()
    for a, b in zip(*found, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert (a - b).abs().max() <= 2e-6 * max(a.abs().max(), 1e-3)


def test_the_loss_is_their_sum() -> None:
    model = build(tiny("llama"))
    hidden, labels = torch.randn(2, 9, model.dims.d_model), labels_of(torch.randint(0, 83, (2, 9)))
    where = (labels.flatten() != IGNORED).nonzero().squeeze(1)
    loss = vocabulary.token_loss(model, hidden, {"targets": labels.flatten()[where], "where": where})
    torch.testing.assert_close(-token_logprobs(model, hidden, labels).sum(), loss)


def test_no_more_logits_than_a_chunk_are_alive_or_kept() -> None:
    """Neither on the way forward nor on the way back, and none is kept between the two."""
    design = tiny("llama", **{"dims.vocab": 4000})
    model = Model(design.arch, design.dims).initialise(1)
    alive: list[int] = []
    kept: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.ndim == 2 and out.shape[1] == 4000:
                alive.append(out.shape[0])
            return out

    def pack(x: Tensor) -> Tensor:
        if x.ndim == 2 and x.shape[1] == 4000:
            kept.append(x.shape[0])
        return x

    hidden = torch.randn(2, 320, design.dims.d_model, requires_grad=True)
    with pytest.MonkeyPatch.context() as patch, Watch():
        patch.setattr(vocabulary, "LOGITS", 64 * 4000)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            values = token_logprobs(model, hidden, torch.arange(640).view(2, 320))
        assert not kept and len(alive) and max(alive) == 64
        values.sum().backward()
    assert max(alive) == 64 and hidden.grad is not None


def test_nothing_to_predict_gives_zeros() -> None:
    model = build(tiny("llama"))
    hidden = torch.randn(2, 5, model.dims.d_model, requires_grad=True)
    values = token_logprobs(model, hidden, torch.full((2, 5), IGNORED))
    values.sum().backward()
    assert not values.any() and hidden.grad is not None and not hidden.grad.any()
    with pytest.raises(UsageError, match=r"targets \[2, 4\] do not fit hidden states \[2, 5, 36\]"):
        token_logprobs(model, hidden, torch.zeros(2, 4, dtype=torch.int64))


def test_a_temperature_divides_the_logits() -> None:
    model = build(tiny("llama"))
    hidden, goal = torch.randn(3, 4, model.dims.d_model), torch.randint(0, 40, (3, 4))
    with torch.no_grad():
        right = (model.logits(hidden) / 0.7).log_softmax(-1).gather(-1, goal[..., None])[..., 0]
        torch.testing.assert_close(token_logprobs(model, hidden, goal, 0.7), right)


@pytest.mark.parametrize("name", ["gpt2", "bert", "deberta", "xlnet", "t5", "bart"])
def test_sequences_of_every_structure(name: str) -> None:
    """As read off the logits of the public call; its loss is their mean."""
    design = tiny(name)
    model, given = build(design), batch(design)
    ids, mask = given["input_ids"], given["attention_mask"]
    labels = labels_of(given.get("decoder_input_ids", ids))
    with torch.no_grad():
        out = model(ids, mask, labels=labels)
        found = sequence_logprobs(model, Inputs(ids, mask), labels)
    want = direct(out.logits, labels)
    if design.arch.structure == "decoder":
        want = torch.nn.functional.pad(direct(out.logits[:, :-1], labels[:, 1:]), (1, 0))
    if design.arch.structure == "encoder-decoder":
        target = Inputs(model.shift_right(labels))
        with torch.no_grad():
            assert torch.equal(sequence_logprobs(model, Inputs(ids, mask), labels, target), found)
        assert target.encoder_hidden is None  # what is given is left as it is
    assert found.shape == labels.shape and (found - want).abs().max() <= 1e-5
    torch.testing.assert_close(-found.sum() / (want != 0).sum(), out.loss)


def test_a_decoder_needs_no_labels_for_its_own_text() -> None:
    model = build(tiny("llama"))
    ids, mask = torch.randint(3, 80, (2, 9)), torch.ones(2, 9, dtype=torch.int64)
    mask[1, 6:] = 0
    with torch.no_grad():
        found = sequence_logprobs(model, Inputs(ids, mask))
        assert torch.equal(found, sequence_logprobs(model, Inputs(ids, mask), ids.masked_fill(mask == 0, IGNORED)))
        assert not found[1, 6:].any() and not found[:, 0].any() and (found[0, 1:] < 0).all()
        assert torch.equal(sequence_logprobs(model, ids)[0], found[0])
    with pytest.raises(UsageError, match="labels must be given"):
        sequence_logprobs(build(tiny("bert")), ids)


def test_the_page_runs() -> None:
    """docs/models.md, block after block."""
    page = (Path(__file__).parent.parent / "docs/models.md").read_text("utf-8")
    space: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    assert len(blocks) >= 4
    for block in blocks:
        exec(compile(block, "docs/models.md", "exec"), space)
