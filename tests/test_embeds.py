"""Vectors in place of ids, and among them: as the reference takes `inputs_embeds`, and as ids of the same vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import stemma
from oracle import inputs, saved
from stemma.errors import UsageError
from stemma.nn.inputs import Inputs
from stemma.nn.model import Model
from tiny import batch, build, tiny

PARITY = [
    "gpt2",
    "llama",
    "gemma2",
    "bert-mlm",
    "roberta-mlm",
    "albert-mlm",
    "deberta-v2-mlm",
    "xlnet",
    "t5",
    "bart",
    "mbart",
]


def vectors(model: Model, ids: Tensor, seed: int = 5) -> Tensor:
    """Random vectors of the size of a batch's embeddings."""
    shape = (*ids.shape, model.dims.embed_width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("case", PARITY)
def test_vectors_are_read_as_by_the_reference(case: str, tmp_path: Path) -> None:
    """Scaled and position-counting families too: vectors enter after the factor, and none of them is padding."""
    theirs = saved(case, tmp_path)
    ours = stemma.load(tmp_path)
    given: dict[str, Any] = dict(inputs(case))
    given["inputs_embeds"] = vectors(ours, given.pop("input_ids"))
    if "decoder_input_ids" in given:
        given["decoder_inputs_embeds"] = vectors(ours, given.pop("decoder_input_ids"), 6)
    with torch.no_grad():
        a, b = ours(**given), theirs(**given)
    real = given.get("decoder_attention_mask", given["attention_mask"]).bool()
    want = b.get("prediction_logits", b.get("logits"))
    assert want is not None and (a.logits - want)[real].abs().max() <= 1e-5


def own(model: Model, ids: Tensor) -> Tensor:
    """The vectors of ids as they enter the network."""
    return model.embed.vectors(Inputs(ids)).detach()


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "roberta", "deberta", "t5", "bart", "xlnet", "glm-130b", "unilm"])
def test_vectors_of_ids_are_those_ids(name: str) -> None:
    """All of them, or the marked ones of rows whose other tokens are ids."""
    design = tiny(name)
    model, given = build(design), batch(design)
    ids = given["input_ids"]
    real = given.get("decoder_attention_mask", given["attention_mask"]).bool()
    with torch.no_grad():
        want = model(**given).hidden[real]
        marked = torch.rand(ids.shape, generator=torch.Generator().manual_seed(1)) < 0.4
        wrong = torch.where(marked, torch.where(ids == 1, 2, 1), ids)  # RoBERTa's padding, which vectors are not
        embeds = own(model, ids)
        got = model(**given | {"input_ids": wrong, "inputs_embeds": embeds[marked], "embeds_at": marked}).hidden
        assert torch.equal(got[real], want)
        assert not torch.equal(model(**given | {"input_ids": wrong}).hidden[real], want)
        whole = {k: v for k, v in given.items() if k != "input_ids"}
        assert torch.equal(model(**whole, inputs_embeds=embeds).hidden[real], want)


def test_gradients_reach_the_vectors_and_no_ids() -> None:
    """A soft prompt: three learned vectors before a text."""
    design = tiny("llama")
    model = build(design)
    ids = torch.tensor([[1, 1, 1, 7, 8, 9], [1, 1, 1, 4, 5, 6]])
    at = torch.tensor([[True] * 3 + [False] * 3] * 2)
    prompt = torch.randn(3, design.dims.d_model, requires_grad=True)
    model.embed.tokens.weight.grad = None
    model(ids, inputs_embeds=prompt.repeat(2, 1), embeds_at=at).logits[:, -1].sum().backward()
    assert prompt.grad is not None and prompt.grad.abs().min() > 0
    gradient = model.embed.tokens.weight.grad
    assert gradient is not None and (model.lm.weight is None or not gradient[1].any())
    assert gradient[7].any()


def test_vectors_compile_in_one_graph() -> None:
    design = tiny("gemma2")
    model = build(design)
    ids = torch.randint(3, 80, (2, 9))
    at = torch.rand(2, 9) < 0.5
    given = {"input_ids": ids, "embeds_at": at, "inputs_embeds": torch.randn(int(at.sum()), design.dims.d_model)}
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert torch.allclose(compiled(**given).logits, model(**given).logits, atol=1e-6)


def test_candidates_may_be_vectors() -> None:
    model = stemma.build("bert-tiny", task="choose", layers=1, d_model=24, heads=4, d_ff=24, vocab=50).eval()
    ids = torch.randint(5, 50, (2, 3, 7))
    with torch.no_grad():
        embeds = own(model, ids.flatten(0, 1)).view(2, 3, 7, -1)
        assert torch.equal(model(inputs_embeds=embeds).logits, model(ids).logits)


def test_heads_that_look_for_a_token_take_the_last_vector() -> None:
    """Without ids and a mask nothing is padding, as in the reference; a head that needs an end token says so."""
    small = dict(layers=1, d_model=24, heads=4, vocab=50)
    model = stemma.build("gpt2", task="classify", **small).eval()
    ids = torch.randint(5, 50, (2, 7))
    with torch.no_grad():
        assert torch.equal(model(inputs_embeds=own(model, ids)).logits, model(ids, torch.ones_like(ids)).logits)
    seq2seq = stemma.build("bart-base", task="classify", decoder_layers=1, **small)
    with pytest.raises(UsageError, match="decoder_input_ids must be given with inputs_embeds"):
        seq2seq(inputs_embeds=own(seq2seq, ids))
    with pytest.raises(UsageError, match="last end token of a text: give input_ids"):
        seq2seq(inputs_embeds=own(seq2seq, ids), decoder_input_ids=ids)


def test_vectors_that_do_not_fit_are_refused() -> None:
    model = build(tiny("bert"))
    ids, at = torch.randint(5, 50, (2, 7)), torch.zeros(2, 7, dtype=torch.bool)
    at[0, 2] = True
    wide = torch.zeros(2, 7, 36)
    for given, words in [
        ({}, "input_ids or inputs_embeds must be given"),
        ({"input_ids": ids, "inputs_embeds": wide}, "mark them by embeds_at"),
        ({"inputs_embeds": wide[..., 1:]}, "inputs_embeds must be B T 36, not 2 7 35"),
        ({"inputs_embeds": wide, "embeds_at": at}, r"boolean mask \(B T\) over input_ids"),
        ({"input_ids": ids, "inputs_embeds": wide[0], "embeds_at": at[:, 1:]}, r"boolean mask \(2 7\)"),
        ({"input_ids": ids, "inputs_embeds": wide, "embeds_at": at}, "must be N 36, not 2 7 36"),
        ({"input_ids": ids, "inputs_embeds": wide[0], "embeds_at": at}, "marks 1 tokens, and inputs_embeds has 7"),
        ({"input_ids": ids, "embeds_at": at}, "give inputs_embeds too"),
    ]:
        with pytest.raises(UsageError, match=words):
            model(**given)
    with pytest.raises(UsageError, match="decoder_inputs_embeds are for an encoder-decoder"):
        model(ids, decoder_inputs_embeds=wide)
    recalling = tiny("longllama", **{"arch.mask.last": 6, "dims.context": 8})
    with pytest.raises(UsageError, match="windows of ids"):
        build(recalling)(inputs_embeds=torch.zeros(1, 20, recalling.dims.d_model))
