"""Sampled answers: what their log-probabilities are of, their seeds, and that they come from the weights as they are."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import stemma
from stemma.alignment.rollouts import EncodedPrompt, Rollout, Sampling, sample, seed_of
from stemma.decoding.sampling import Sampler
from stemma.errors import UsageError
from stemma.nn.model import Model
from stemma.rewrites import LoRA
from stemma.rewrites.engine import apply
from tiny import build, tiny

PROMPTS = [EncodedPrompt((5, 9, 11), "a", {"a": 1}, 4), EncodedPrompt((7,), "b", {}, 9)]
SEEDS = [3, 8]


def logits(model: Model, one: Rollout) -> Tensor:
    """Of each token of an answer, from one pass over the whole text: T V."""
    ids = torch.tensor([[*one.prompt.ids, *one.ids]])
    with torch.no_grad():
        found = model(ids).logits
    assert found is not None
    return found[0, len(one.prompt.ids) - 1 : -1].float()


def given(scores: Tensor, one: Rollout) -> Tensor:
    return scores.log_softmax(-1).gather(1, torch.tensor(one.ids)[:, None])[:, 0]


HOWS = [
    Sampling(2, 9, temperature=0.7),
    Sampling(2, 9, temperature=1.3, top_k=5),
    Sampling(1, 9, temperature=1.0, top_p=0.6),
]


@pytest.mark.parametrize("how", HOWS, ids=["temperature", "top_k", "top_p"])
def test_both_log_probabilities_are_what_they_claim(how: Sampling) -> None:
    """`logprobs` of the model's own distribution; `sampled` of the one that was drawn from."""
    model = build(tiny("llama"))
    found = sample(model, PROMPTS, how, SEEDS)
    assert [(r.prompt.place, r.sample) for r in found] == [(p.place, i) for p in PROMPTS for i in range(how.samples)]
    for one in found:
        own = logits(model, one)
        drawn = Sampler(how.temperature, how.top_k, how.top_p).scores(own)
        assert one.logprobs == pytest.approx(given(own, one).tolist(), abs=1e-4)
        assert one.sampled == pytest.approx(given(drawn, one).tolist(), abs=1e-4)
        assert all(one.chosen)


def test_truncation_is_seen_in_the_difference() -> None:
    """With top-k a token is likelier where it was drawn than in the model: a loss that took one for the other would
    find a divergence between equal models."""
    model = build(tiny("llama"))
    for one in sample(model, PROMPTS, Sampling(2, 9, top_k=3), SEEDS):
        assert all(drawn > own + 1e-3 for drawn, own in zip(one.sampled, one.logprobs, strict=True))
    for one in sample(model, PROMPTS, Sampling(2, 9), SEEDS):
        assert one.sampled == pytest.approx(one.logprobs, abs=1e-5)


def test_rules_of_the_checkpoint_are_off() -> None:
    """A penalty on repetition, forced tokens and a least length of generation_config.json change no answer."""
    model = build(tiny("llama"))
    plain = sample(model, PROMPTS, Sampling(2, 9), SEEDS)
    model.extras = {"generation_config": {
        "repetition_penalty": 1.8, "top_k": 2, "temperature": 0.1, "do_sample": True, "min_new_tokens": 5,
        "forced_eos_token_id": 6, "no_repeat_ngram_size": 1, "num_beams": 3,
    }}  # fmt: skip
    assert sample(model, PROMPTS, Sampling(2, 9), SEEDS) == plain


def test_a_forced_token_was_not_chosen() -> None:
    made = Rollout(PROMPTS[0], 0, (1, 2, 3), (-2.0, -3.0, -1e-6), (-0.5, 0.0, 0.0), True, "", 0)
    assert made.chosen == (True, False, True)  # the last one had all the mass anyway


def test_an_answer_depends_on_its_prompt_and_seed_alone() -> None:
    model, how = build(tiny("llama")), Sampling(2, 9)
    both = sample(model, PROMPTS, how, SEEDS)
    alone = [one for p, seed in zip(PROMPTS, SEEDS, strict=True) for one in sample(model, [p], how, [seed])]
    assert [r.ids for r in alone] == [r.ids for r in both]
    assert len({r.ids for r in both}) == 4 and len({r.seed for r in both}) == 4
    assert len({seed_of(1, slot) for slot in range(100)} | {seed_of(2, slot) for slot in range(100)}) == 200


def test_an_end_token_belongs_to_its_answer() -> None:
    model = build(tiny("llama"))
    ends = {*range(7, 83, 7)}
    model.extras = {"generation_config": {"eos_token_id": [*ends]}}
    found = sample(model, PROMPTS, Sampling(4, 9), SEEDS)
    assert {r.finished for r in found} == {True, False}
    for one in found:
        assert not ends.intersection(one.ids[:-1]) and one.finished == (one.ids[-1] in ends)
        assert one.finished or len(one.ids) == 9
        assert len(one.ids) == len(one.logprobs) == len(one.sampled)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "mixtral"])
@pytest.mark.parametrize("adapted", [False, True])
def test_answers_come_from_the_weights_as_they_are(name: str, adapted: bool) -> None:
    """After an update in place, decoding sees the new weights, whatever it made of the old ones."""
    model = build(tiny(name))
    if adapted:
        apply(model, (LoRA(("*.q", "*.v"), rank=2, alpha=4.0),), 1)
    model.train()
    how = Sampling(2, 6)
    before = sample(model, PROMPTS, how, SEEDS)
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=0.1, fused=True)
    for p in learning:
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(2))
    optimizer.step()
    after = sample(model, PROMPTS, how, SEEDS)
    assert model.training and [r.ids for r in after] != [r.ids for r in before]
    model.eval()
    for one in after:
        assert one.logprobs == pytest.approx(given(logits(model, one), one).tolist(), abs=2e-3)


def test_sampling_that_draws_nothing_is_refused() -> None:
    for how in ({"temperature": 0.0}, {"top_k": 1}):
        with pytest.raises(UsageError, match="every answer would be the likeliest one"):
            Sampling(**how)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="a search draws none"):
        stemma.generate(build(tiny("llama")), [[5]], num_beams=2, sampled_logprobs=True)


def test_a_greedy_token_is_certain() -> None:
    found = stemma.generate(build(tiny("llama")), [[5, 6]], sampled_logprobs=True, max_new_tokens=3)[0]
    assert found.sampled_logprobs == [0.0] * 3 and math.isfinite(sum(found.logprobs))
