"""Decoding: the cache against the full pass, and greedy and beam continuations against the reference's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import stemma
from oracle import CASES, reference, saved, shared
from stemma.decoding import Detokenizer, begin, row_seed
from stemma.errors import CheckpointError, UsageError
from stemma.text import Specials, Tokenizer

WRITERS = ("LMHeadModel", "CausalLM", "ConditionalGeneration")
GENERATING = [c for c in CASES if CASES[c][0].endswith(WRITERS) and not c.startswith("xlm-mlm")]
LENGTHS = [4, 11, 1, 7, 11, 2, 9]
FEW = [4, 11, 1, 11]  # ragged too, for what is tried with every case


def prompts(case: str, lengths: list[int], seed: int = 5) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    vocab = CASES[case][2]["vocab_size"]
    return [torch.randint(3, vocab, (n,), generator=generator).tolist() for n in lengths]


def in_order(prompt: int, length: int) -> dict[str, torch.Tensor]:
    """What two streams are asked for the token after `length` of them: the prompt sees itself, the others what is
    before them, nothing the place that is asked for."""
    hidden = torch.ones(1, length + 1, length + 1).triu(1)
    hidden[:, :prompt, :prompt] = 0
    hidden[:, length, length] = 1
    return {
        "perm_mask": hidden,
        "target_mapping": torch.nn.functional.one_hot(torch.tensor([[length]]), length + 1).float(),
    }


def last_logits(model: Any, prompt: list[int], done: list[int]) -> torch.Tensor:
    """Logits of the next token (V) from one pass over everything."""
    with torch.no_grad():
        if model.arch.streams is not None:
            asked = in_order(len(prompt), len(prompt) + len(done))
            return model(torch.tensor([[*prompt, *done, 0]]), **asked).logits[0, -1]
        if model.arch.structure == "encoder":
            ids = torch.tensor([[*prompt, *done, model.text.mask_id]])
            return model(ids, attention="prefix", prefix=torch.tensor([len(prompt)])).logits[0, -1]
        if model.encoder is None:
            return model(torch.tensor([prompt + done])).logits[0, -1]
        start = torch.tensor([[model.text.start_id, *done]])
        return model(torch.tensor([prompt]), decoder_input_ids=start).logits[0, -1]


def full_pass(model: Any, prompt: list[int], new: int) -> list[int]:
    """Greedy continuation with no cache at all: the whole text again for every token."""
    out: list[int] = []
    for _ in range(new):
        out.append(int(last_logits(model, prompt, out).argmax()))
    return out


@pytest.mark.parametrize("case", GENERATING)
@pytest.mark.parametrize(
    "lengths",
    [pytest.param([6], marks=pytest.mark.slow), [5, 5], pytest.param(LENGTHS, marks=pytest.mark.slow)],
    ids=["one", "even", "ragged"],
)
def test_cache_equals_full_pass(case: str, lengths: list[int]) -> None:
    """Rows of one length; ragged ones are held to the full pass below and to the reference further down."""
    model, _ = shared(case)
    rows = prompts(case, lengths)
    got = stemma.generate(model, rows, max_new_tokens=14, ignore_eos=True)
    assert [r.ids for r in got] == [full_pass(model, p, 14) for p in rows]


@pytest.mark.parametrize("case", GENERATING)
def test_cached_logits_equal_full_logits(case: str, tmp_path: Path) -> None:
    """Token by token, logits of every step (in double precision, so that nothing hides in rounding)."""
    saved(case, tmp_path)
    model = stemma.load(tmp_path).double()
    rows = prompts(case, FEW)
    texts = prompts(case, [12] * len(rows), seed=9)
    with torch.inference_mode():
        session = begin(model, rows, 12)
        for step in range(12):
            for i, row in enumerate(rows):
                full = last_logits(model, row, texts[i][:step])
                assert (session.logits[i] - full.float()).abs().max() < 1e-5
            session.step(torch.tensor([t[step] for t in texts]))


def reference_ids(model: Any, prompt: list[int], **options: Any) -> list[int]:
    ids = torch.tensor([prompt])
    if model.config.model_type == "xlnet":  # the reference's search over its own full pass, in our order

        def prepare(input_ids: torch.Tensor, attention_mask: Any = None, **_: Any) -> dict[str, Any]:
            asked = {k: v.expand(len(input_ids), -1, -1) for k, v in in_order(len(prompt), input_ids.shape[1]).items()}
            return {"input_ids": torch.nn.functional.pad(input_ids, (0, 1)), "use_mems": False, **asked}

        model.prepare_inputs_for_generation = prepare
    cached = not model.config.is_encoder_decoder  # the reference's cache fails where the decoder is the deeper stack
    if model.config.model_type == "xlm":  # it would put a mask token after every text; here it goes on from the text
        model.prepare_inputs_for_generation = lambda ids, attention_mask, **_: {"input_ids": ids}
    if getattr(model.config, "rope_parameters", None) and model.config.rope_parameters.get("rope_type") == "dynamic":
        model(ids[:, :1])  # it keeps the base of the longest text since the last short one
        cached = False  # and keys that turned by the base of their moment, where a full pass turns all by one
    out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, use_cache=cached, **options)[
        0
    ].tolist()
    return out[1:] if model.config.is_encoder_decoder else out[len(prompt) :]


def strip(ids: list[int], model: Any) -> list[int]:
    """Without what stands after the first end token (the reference pads there)."""
    ends = model.text.eos_ids
    at = next((i for i, t in enumerate(ids) if t in ends), None)
    return ids if at is None else ids[: at + 1]


@pytest.mark.parametrize("case", GENERATING)
@pytest.mark.parametrize("num_beams", [1, pytest.param(2, marks=pytest.mark.slow), 4])
def test_continuations_equal_the_reference(case: str, num_beams: int) -> None:
    theirs, (ours, _) = reference(case), shared(case)
    rows = prompts(case, FEW if num_beams == 1 else FEW[:2])
    got = stemma.generate(ours, rows, max_new_tokens=12, num_beams=num_beams)
    for row, mine in zip(rows, got, strict=True):
        want = strip(reference_ids(theirs, row, max_new_tokens=12, num_beams=num_beams), ours)
        assert mine.ids == want


@pytest.mark.parametrize("penalty", [0.0, 0.6, 2.0])
def test_beams_that_end_early_equal_the_reference(penalty: float, tmp_path: Path) -> None:
    """Half of the tokens end a text: hypotheses of different lengths compete."""
    theirs = reference("t5")
    theirs.config.eos_token_id = theirs.generation_config.eos_token_id = list(range(1, 45))
    theirs.save_pretrained(tmp_path)
    ours = stemma.load(tmp_path)
    lengths = set()
    for row in prompts("t5", [3, 5, 8, 13, 4, 6]):
        want = strip(reference_ids(theirs, row, max_new_tokens=10, num_beams=3, length_penalty=penalty), ours)
        got = stemma.generate(ours, [row], max_new_tokens=10, num_beams=3, length_penalty=penalty)[0].ids
        assert got == want
        lengths.add(len(want))
    assert penalty > 1 or len(lengths) > 1  # a strong penalty makes all of them long


def test_logprobs_are_the_models(tmp_path: Path) -> None:
    saved("gpt2", tmp_path)
    model = stemma.load(tmp_path)
    prompt = prompts("gpt2", [6])[0]
    result = stemma.generate(model, [prompt], max_new_tokens=5, temperature=0.7, ignore_eos=True)[0]
    with torch.no_grad():
        logits = model(torch.tensor([prompt + result.ids])).logits[0]
    want = logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(1, torch.tensor(result.ids)[:, None])[:, 0]
    assert torch.allclose(torch.tensor(result.logprobs), want, atol=1e-5)


def test_a_row_does_not_depend_on_its_neighbours(tmp_path: Path) -> None:
    saved("llama", tmp_path)
    model = stemma.load(tmp_path)
    rows = prompts("llama", LENGTHS)
    options: dict[str, Any] = dict(max_new_tokens=9, temperature=0.8, top_k=20, top_p=0.9, min_p=0.01, seed=4)
    together = stemma.generate(model, rows, **options)
    for i, row in enumerate(rows):
        alone = stemma.generate(model, [row], **{**options, "seed": row_seed(4, i)})[0]
        assert alone.ids == together[i].ids and together[i].seed == row_seed(4, i)
    assert [r.ids for r in together] != [r.ids for r in stemma.generate(model, rows, **{**options, "seed": 5})]


@pytest.mark.parametrize(
    "options",
    [dict(temperature=-1.0), dict(top_p=0.0), dict(max_new_tokens=0), dict(max_new_tokens=2.5), dict(num_beams=2, temperature=1.0), dict(stop=["x"])],
)  # fmt: skip
def test_options_out_of_range_are_refused(options: dict[str, Any], tmp_path: Path) -> None:
    saved("llama", tmp_path)
    with pytest.raises(UsageError):
        stemma.generate(stemma.load(tmp_path), [[5, 6]], **options)


def test_a_prompt_too_long_for_the_position_table_is_refused(tmp_path: Path) -> None:
    saved("gpt2", tmp_path)
    model = stemma.load(tmp_path)
    with pytest.raises(UsageError, match="40 positions"):
        stemma.generate(model, [[5] * 35], max_new_tokens=6)
    assert len(stemma.generate(model, [[5] * 35], max_new_tokens=5, ignore_eos=True)[0].ids) == 5


def test_encoders_do_not_generate(tmp_path: Path) -> None:
    saved("bert-mlm", tmp_path)
    with pytest.raises(UsageError, match="fill"):
        stemma.generate(stemma.load(tmp_path), [[5]])


def test_decoding_moves_no_value(tmp_path: Path) -> None:
    """Weights are laid out for few rows or for many; what they are, what is saved and what comes out stays."""
    saved("llama", tmp_path / "a")
    model = stemma.load(tmp_path / "a")
    model.save(tmp_path / "before")
    before = {k: v.clone() for k, v in model.named_parameters()}
    rows = prompts("llama", LENGTHS)
    one = stemma.generate(model, rows[:1], max_new_tokens=4)
    many = stemma.generate(model, rows, max_new_tokens=4)
    assert one[0].ids == many[0].ids == stemma.generate(model, rows[:1], max_new_tokens=4)[0].ids
    assert all(torch.equal(v, before[k]) for k, v in model.named_parameters())
    model.save(tmp_path / "b")
    assert (tmp_path / "before/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


def test_a_model_that_has_decoded_trains_on(tmp_path: Path) -> None:
    """Weights that decoding laid out anew are ordinary ones: training gives what it gives without it."""
    saved("llama", tmp_path)
    fresh, used = stemma.load(tmp_path), stemma.load(tmp_path).train()
    stemma.generate(used, [[5, 6]], max_new_tokens=3)
    assert used.training
    ids = torch.tensor([prompts("llama", [12])[0]])
    losses = []
    for model in (fresh.train(), used):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        losses.append([])
        for _ in range(3):
            loss = model(ids, labels=ids).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    saved("llama", tmp_path)
    model = stemma.load(tmp_path)
    with torch.no_grad():
        model.decoder.norm.weight[0] = float("nan")
    with pytest.raises(CheckpointError, match="not finite"):
        stemma.generate(model, [[5, 6]], max_new_tokens=2)


def test_ids_past_the_tokenizer_stand_for_nothing() -> None:
    """A model may have more embeddings than its tokenizer has ids, and draw one."""
    words = ["the king and the queen went to the house"] * 50
    tokenizer = Tokenizer.train("unigram", words, 300, Specials(pad="<pad>", eos="</s>", unk="<unk>", extra=4))
    model = stemma.build("t5-small", layers=1, vocab=tokenizer.vocab_size + 28, d_model=32, heads=4, d_ff=64)
    model.tokenizer = tokenizer
    with torch.no_grad():
        model.embed.tokens.weight[-28:] *= 3
    drawn = stemma.generate(model, ["the king", "the"], max_new_tokens=30, temperature=1.0)
    assert any(i >= tokenizer.vocab_size for r in drawn for i in r.ids) and all(isinstance(r.text, str) for r in drawn)
    assert stemma.fill(model, "the [MASK] king").spans


def test_what_is_streamed_is_what_is_returned() -> None:
    """Also where a stop string begins with a letter and goes on with a character of several bytes."""
    tokenizer = Tokenizer.train("bpe", ["abc"], 260, Specials(eos="</s>"))
    model = stemma.build("gpt2", layers=1, vocab=300, d_model=8, heads=2, d_ff=8)
    model.tokenizer = tokenizer
    for text, stop, want in [("abcé!", "cé", "ab"), ("aéb", "b", "aé"), ("né", "éx", "né")]:
        writer, streamed, ids = Detokenizer(model, [], [stop]), "", tokenizer.encode(text)
        for n in range(1, len(ids) + 1):
            piece, stopped = writer.add(ids[:n], n == len(ids))
            streamed += piece
            if stopped:
                break
        assert streamed == writer.text == want


@pytest.mark.parametrize("wrong", [[5, 6, 7], [[1.5]], [None]])
def test_prompts_that_are_none_are_refused(wrong: Any, tmp_path: Path) -> None:
    saved("llama", tmp_path)
    with pytest.raises(UsageError, match="token ids"):
        stemma.generate(stemma.load(tmp_path), wrong)


def test_what_cannot_generate_is_told_why(tmp_path: Path) -> None:
    saved("gpt2", tmp_path)
    with pytest.raises(UsageError, match=r"40 positions; use a shorter prompt$"):
        stemma.generate(stemma.load(tmp_path), [[5] * 40], max_new_tokens=1)
    for call in (stemma.generate, stemma.fill, stemma.embed):
        with pytest.raises(UsageError, match=r"stemma.load\('runs/x'\)"):
            call("runs/x", "a text")
    body = stemma.build("bert-tiny", task="classify", layers=1)
    for call in (stemma.generate, stemma.fill):
        with pytest.raises(UsageError, match="no language-model head"):
            call(body, "a [MASK]")
