"""Sessions read several tokens a row at once, and take them back: as if they had read what is left token by token."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from oracle import CASES, shared
from stemma.decoding import begin
from stemma.errors import UsageError
from test_generate import last_logits, prompts
from tiny import build, slow, tiny

# a ring that turns, layers of two kinds, learned places, two columns of places, a cross cache, relative buckets
EXTENDING = ["mistral", "gpt2", "t5", "tiny-gemma2", "tiny-glm", *slow("llama", "bart", "tiny-palm")]


def model_of(case: str) -> Any:
    found = build(tiny(case.removeprefix("tiny-"))) if case.startswith("tiny-") else shared(case)[0]
    return found.double()


def alone(model: Any, prompt: list[int], new: list[int]) -> torch.Tensor:
    session = begin(model, [prompt])
    for token in new:
        session.step(torch.tensor([token]))
    return session.logits[0]


@pytest.mark.parametrize("case", EXTENDING)
@pytest.mark.filterwarnings("ignore:.* tokens are more than")
def test_tokens_read_at_once_and_taken_back(case: str) -> None:
    """Ragged rows, several rounds past the end of a ring; what was taken back leaves no trace. Double precision."""
    model = model_of(case)
    vocab, generator = model.dims.vocab, torch.Generator().manual_seed(7)

    def drawn(n: int) -> list[int]:
        return torch.randint(3, vocab, (n,), generator=generator).tolist()

    rows: list[list[int]] = [drawn(4), drawn(7), drawn(3)]
    starts = [model.text.start_id] if model.encoder is not None else []
    written: list[list[int]] = [[], [], []]
    with torch.inference_mode():
        session = begin(model, rows, 20)
        for kept in ([2, 1, 3], [1, 4, 1], [4, 1, 2], [1, 1, 1]):
            new = [drawn(n + more) for n, more in zip(kept, (1, 0, 1), strict=True)]
            session.mark()
            logits = session.extend(new)
            after = logits[torch.arange(3), torch.tensor(kept) - 1]
            written = [w + t[:n] for w, t, n in zip(written, new, kept, strict=True)]
            session.cut([len(starts or row) + len(w) for row, w in zip(rows, written, strict=True)], after)
            for row, w, got, every, extra in zip(rows, written, session.logits, logits, new, strict=True):
                assert (got - alone(model, row, w)).abs().max() < 1e-5
                begun = w[: len(w) - kept[rows.index(row)]]
                for n in range(len(extra)):  # each token's own logits
                    assert (every[n] - alone(model, row, begun + extra[: n + 1])).abs().max() < 1e-5
        for _ in range(3):  # and single steps go on from there
            tokens = drawn(3)
            session.step(torch.tensor(tokens))
            written = [[*w, t] for w, t in zip(written, tokens, strict=True)]
            for row, w, got in zip(rows, written, session.logits, strict=True):
                assert (got - alone(model, row, w)).abs().max() < 1e-5


@pytest.mark.parametrize("length", [3, 9])
def test_single_steps_past_a_mark_are_taken_back(length: int) -> None:
    """A draft's session: one row, which stays even, before and after its ring has turned."""
    model = model_of("mistral")
    (row,) = prompts("mistral", [length])
    with torch.inference_mode():
        session = begin(model, [row])
        for _ in range(3):
            session.mark()
            for token in (5, 6, 7, 8):
                session.step(torch.tensor([token]))
            session.cut([len(row) + 1], session.logits)
            row = [*row, 5]
            assert session.cache.even
            session.step(torch.tensor([9]))
            row = [*row, 9]
            assert (session.logits[0] - last_logits(model, row, []).float()).abs().max() < 1e-5


@pytest.mark.parametrize("case", ["tiny-xlnet", "tiny-unilm", "tiny-longllama"])
def test_models_that_read_token_by_token_say_so(case: str) -> None:
    model = model_of(case)
    with torch.inference_mode(), pytest.raises(UsageError, match="token by token"):
        begin(model, [[5, 6, 7]]).extend([[5, 6]])


def test_more_than_a_window_cannot_be_taken_back() -> None:
    model = shared("mistral")[0]
    window = model.arch.mask.window
    with torch.inference_mode():
        session = begin(model, [[5, 6, 7]])
        session.extend([[5] * (window + 1)])
        session.mark()
        with pytest.raises(UsageError, match=f"{window + 1} tokens at once cannot be taken back"):
            session.extend([[5] * (window + 1)])


def test_a_row_does_not_extend_past_the_table() -> None:
    model = shared("gpt2")[0]
    limit = CASES["gpt2"][2]["n_positions"]
    with torch.inference_mode():
        session = begin(model, [[5] * (limit - 2), [5] * 4])
        session.extend([[5, 6], [5, 6, 7, 8, 9]])  # the shorter row's padding has no place
        with pytest.raises(UsageError, match=f"{limit} positions"):
            session.extend([[5], [5]])
