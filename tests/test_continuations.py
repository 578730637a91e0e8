"""Several answers to one prompt: read with the prompt once, each as if it were alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from stemma.nn import blocks
from stemma.nn.model import Model
from stemma.objectives import continuations
from stemma.objectives.continuations import Answer
from stemma.objectives.vocabulary import sequence_logprobs
from tiny import FAMILIES, build, slow, tiny

DECODERS = [name for name in FAMILIES if tiny(name).arch.structure == "decoder"]
CASES = ["gpt2", "llama", "mistral", "t5", *slow(*sorted({*DECODERS, "bart"} - {"gpt2", "llama", "mistral"}))]


def texts(seed: int = 0, vocab: int = 83) -> list[Answer]:
    """Five answers to two prompts, one of them a single token, and one to a third."""
    rng = np.random.default_rng(seed)

    def ids(n: int) -> Any:
        return rng.integers(5, vocab, n).astype(np.int64)

    first, second, third = ids(7), ids(3), ids(5)
    made = [(first, 4), (first, 9), (second, 1), (first, 2), (second, 6), (third, 3)]
    return [Answer(prompt, ids(n)) for prompt, n in made]


def alone(model: Any, text: Answer) -> torch.Tensor:
    if model.arch.structure == "encoder-decoder":
        return sequence_logprobs(model, torch.from_numpy(text.prompt)[None], torch.from_numpy(text.ids)[None])[0]
    ids = torch.from_numpy(np.concatenate([text.prompt, text.ids]))[None]
    return sequence_logprobs(model, ids)[0, len(text.prompt) :]


def collated(model: Any, given: list[Answer]) -> Any:
    if model.arch.structure == "encoder-decoder":
        return continuations.collate_replies(given, 0, model.text.start_id)
    return continuations.collate(given, 0)


@pytest.mark.parametrize("name", CASES)
def test_answers_are_read_as_if_alone(name: str) -> None:
    model, given = build(tiny(name)), texts()
    batch = collated(model, given)
    flat = continuations.logprobs(model, batch)
    found = flat.split(batch["lengths"].tolist())
    for text, got in zip(given, found, strict=True):
        torch.testing.assert_close(got, alone(model, text), atol=2e-6, rtol=1e-5)
    sums = continuations.summed(flat, batch["lengths"])
    torch.testing.assert_close(sums, torch.stack([x.sum() for x in found]))


def gradient(model: Model, loss: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_gradients_are_those_of_the_texts_alone(name: str) -> None:
    model, given = build(tiny(name)).train(), texts(1)
    batch = collated(model, given)
    weight = torch.arange(1.0, len(given) + 1)
    got = gradient(model, (continuations.summed(continuations.logprobs(model, batch), batch["lengths"]) * weight).sum())
    want = gradient(
        model, sum((alone(model, t).sum() * w for t, w in zip(given, weight, strict=True)), torch.zeros(()))
    )
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_long_rows_go_in_blocks_and_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, given = build(tiny("mistral")).train(), texts(2)
    batch = collated(model, given)
    plain = gradient(model, continuations.logprobs(model, batch).sum())
    taken: list[int] = []
    monkeypatch.setattr(blocks, "long", lambda x, queries, keys: not taken.append(queries))
    blocked = gradient(model, continuations.logprobs(model, batch).sum())
    assert taken
    for a, b in zip(plain, blocked, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_a_prompt_is_read_once_and_rows_have_little_padding() -> None:
    given = texts()
    batch = continuations.collate(given, 0)
    assert continuations.read_tokens(given) == (7 + 3 + 8 + 1) + (3 + 0 + 5) + (5 + 2)
    real = int((batch["documents"] >= 0).sum())
    assert real == continuations.read_tokens(given) and batch["input_ids"].shape == (2, 24)
    assert batch["lengths"].tolist() == [4, 9, 1, 2, 6, 3] and len(batch["where"]) == 25


def test_a_row_of_marks_is_cut_into_its_texts() -> None:
    ids = np.arange(12, dtype=np.int64)
    first, second = continuations.answers(ids, [0, 3, 6, 8])
    assert [list(part) for part in (*first, *second)] == [[0, 1, 2], [3, 4, 5], [6, 7], [8, 9, 10, 11]]
