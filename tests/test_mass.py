"""MASS, loaded from files as fairseq writes them, against a reference of its own."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch

import stemma
from reference.mass import PAD, State, mass, random_state
from running import check_rows

HEADS, VOCAB, START = 3, 89, 7
LENGTHS = [4, 11, 1, 7, 11, 2, 9]
OPTIONS = dict(encoder_embed_dim=36, encoder_ffn_embed_dim=50, encoder_layers=2, encoder_attention_heads=HEADS,
               decoder_embed_dim=36, decoder_ffn_embed_dim=50, decoder_layers=3, decoder_attention_heads=HEADS,
               activation_fn="gelu", dropout=0.1, max_source_positions=40, arch="transformer_mass_base")  # fmt: skip


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Any, State]:
    """The same weights twice: our model and the reference's tensors."""
    state = random_state(VOCAB, 36, 50, (2, 3), 40)
    torch.save({"args": argparse.Namespace(**OPTIONS), "model": state}, tmp_path / "model.pt")
    model = stemma.load(tmp_path)
    model.text = stemma.design("mass-base").text.__class__(
        tokenizer="wordpiece", eos_id=(11, 12), pad_id=PAD, start_id=START
    )
    return model, state


def texts(lengths: list[int], seed: int = 5) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(20, VOCAB, (n,), generator=generator).tolist() for n in lengths]


def padded(rows: list[list[int]]) -> torch.Tensor:
    return torch.tensor([row + [PAD] * (max(map(len, rows)) - len(row)) for row in rows])


def test_it_is_the_family_and_says_what_it_was_published_with(pair: tuple[Any, State]) -> None:
    model, _ = pair
    assert model.family.name == "mass" and model.dims.context == 40
    objective = stemma.family("mass").objective
    assert (objective.rate, objective.masked, objective.random) == (0.5, 0.8, 0.1)


def test_logits_equal_the_reference(pair: tuple[Any, State]) -> None:
    model, state = pair
    source, target = padded(texts(LENGTHS)), padded(texts([n + 3 for n in LENGTHS], 6))
    want = mass(state, HEADS, source, target)
    with torch.no_grad():
        got = model(
            source, (source != PAD).long(), decoder_input_ids=target, decoder_attention_mask=(target != PAD).long()
        )
        plain = model(source[1:2], decoder_input_ids=target[1:2])
    real = target != PAD
    assert (got.logits[real] - want[real]).abs().max() <= 1e-5
    assert (plain.logits - want[1:2]).abs().max() <= 1e-5


def test_a_run_is_decoded_where_it_stands(pair: tuple[Any, State]) -> None:
    """Pretraining: the encoder sees the text with a run masked, the decoder the run alone, at its own places."""
    model, state = pair
    text = torch.tensor(texts([16, 16]))
    run = torch.arange(5, 13)
    source = text.clone()
    source[:, run] = 3
    before, at = text[:, run - 1], (run + PAD).expand(2, -1)
    with torch.no_grad():
        got = model(source, decoder_input_ids=before, decoder_position_ids=at).logits
        elsewhere = model(source, decoder_input_ids=before).logits
    assert (got - mass(state, HEADS, source, before, at)).abs().max() <= 1e-5
    assert (got - elsewhere).abs().max() > 1e-2


def full_pass(state: State, prompt: list[int], new: int) -> list[int]:
    out = [START]
    for _ in range(new):
        out.append(int(mass(state, HEADS, torch.tensor([prompt]), torch.tensor([out]))[0, -1].argmax()))
    return out[1:]


@pytest.mark.parametrize("lengths", [[6], LENGTHS], ids=["one", "seven ragged"])
def test_cached_decoding_equals_the_full_pass(lengths: list[int], pair: tuple[Any, State]) -> None:
    model, state = pair
    rows = texts(lengths)
    got = stemma.generate(model, rows, max_new_tokens=14, ignore_eos=True)
    want = [full_pass(state, row, 14) for row in rows]
    assert PAD not in {t for ids in want for t in ids}  # which the full pass would not count
    assert [r.ids for r in got] == want


def test_rows_that_join_and_leave_read_as_alone(pair: tuple[Any, State]) -> None:
    model, state = pair

    def alone(prompt: list[int], new: list[int]) -> torch.Tensor:
        return mass(state, HEADS, torch.tensor([prompt]), torch.tensor([[START, *new]]))[0, -1]

    check_rows(model, texts([4, 11, 1, 7, 2]), texts([16] * 5), alone, tolerance=1e-4)


def best(state: State, prompt: list[int], width: int, new: int, ends: tuple[int, ...]) -> float:
    """The score of the best hypothesis of a beam search without cache, written the long way."""
    running, ended = [(0.0, [START])], []
    for _ in range(new):
        grown = []
        for score, ids in running:
            share = mass(state, HEADS, torch.tensor([prompt]), torch.tensor([ids]))[0, -1].log_softmax(-1)
            grown += [(score + share[t].item(), [*ids, t]) for t in range(VOCAB)]
        grown.sort(key=lambda pair: -pair[0])
        top = grown[: 3 * width]
        ended += [(s / (len(i) - 1), i) for s, i in top[:width] if i[-1] in ends or len(i) == new + 1]
        running = [(s, i) for s, i in top if i[-1] not in ends][:width]
        ended = sorted(ended, key=lambda pair: -pair[0])[:width]
        if len(ended) == width and running[0][0] / (len(running[0][1]) - 1) <= ended[-1][0]:
            break
    return ended[0][0]


@pytest.mark.parametrize("lengths", [[6], LENGTHS], ids=["one", "seven ragged"])
def test_beams_equal_the_full_pass(lengths: list[int], pair: tuple[Any, State]) -> None:
    model, state = pair
    rows = texts(lengths)
    got = stemma.generate(model, rows, max_new_tokens=7, num_beams=3)
    for row, mine in zip(rows, got, strict=True):
        assert sum(mine.logprobs) / len(mine.ids) == pytest.approx(best(state, row, 3, 7, (11, 12)), abs=1e-5)


def test_files_of_tensors_alone_are_read(tmp_path: Path) -> None:
    """As the pretrained models are published: heads of 64, which nothing in the file says."""
    state = random_state(50, 128, 96, (1, 2), 30)
    torch.save(state, tmp_path / "mass.pt")
    model = stemma.load(tmp_path / "mass.pt")
    source, target = torch.tensor(texts([9])) % 40 + 5, torch.tensor(texts([6], 6)) % 40 + 5
    with torch.no_grad():
        got = model(source, decoder_input_ids=target).logits
    assert (got - mass(state, 2, source, target)).abs().max() <= 1e-5
    assert "heads of 64" in model.ledger.config["encoder_attention_heads"]
    model.save(tmp_path / "again.pt")
    written = torch.load(tmp_path / "again.pt", weights_only=False)["model"]
    assert state.keys() <= written.keys() and all(torch.equal(written[n], t) for n, t in state.items())
