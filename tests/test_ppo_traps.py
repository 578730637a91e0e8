"""Mistakes that public code of reinforcement from sampled answers is full of, each tried; and runs that lost their way."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import stemma
from stemma import formats
from stemma.alignment import health
from stemma.alignment.experience import Experience, OnlineCursor
from stemma.alignment.plans import resolve
from stemma.alignment.rollouts import EncodedPrompt, Rollout
from stemma.data import Store
from stemma.declare.alignment import Gates
from stemma.errors import DataError, UsageError, VerifyError
from stemma.objectives import policy
from stemma.objectives.vocabulary import token_logprobs
from stemma.rewrites import LoRA
from stemma.rewrites.adapters import layers
from stemma.runs import checkpoint
from stemma.text import Specials, Tokenizer
from stemma.train import read_metrics
from stemma.train.loop import Loop
from test_ppo import SMALL, asked, home, loop_at, turn_of

__all__ = ["home"]


def source(loop: Loop) -> Any:
    return loop.source


def weights(net: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def sharpen(loop: Loop) -> None:
    """A policy far from its reference: its logits are larger."""
    with torch.no_grad():
        loop.model.decoder.norm.weight.mul_(4)  # type: ignore[union-attr,operator]


# ---------------------------------------------------------------- the divergence


@pytest.mark.parametrize("how", [{"temperature": 0.5}, {"temperature": 2.0}, {"top_k": 3}, {"top_p": 0.4}])
def test_equal_models_do_not_diverge(home: Path, tmp_path: Path, how: dict[str, Any]) -> None:
    """However answers are drawn, policy and reference are compared in the same way. That truncation is no part of what
    is learnt shows in `sampled_gap`."""
    experience = turn_of(loop_at(home, tmp_path, **{f"objective.{name}": value for name, value in how.items()}))
    assert abs(experience.metrics["kl"]) < 1e-5
    assert experience.metrics["engine_gap"] < 1e-5
    assert (experience.metrics["sampled_gap"] > 0.05) == ("temperature" not in how)
    assert abs(experience.metrics["sampled_gap"]) < 1e-5 or "temperature" not in how


def test_sampling_that_log_probabilities_do_not_know_is_found(home: Path, tmp_path: Path) -> None:
    """Answers drawn hotter than they are compared: the estimate is negative beyond noise, and the run stops."""
    loop = loop_at(home, tmp_path, **{"objective.prompts": 16, "objective.max_new_tokens": 16})
    sharpen(loop)
    assert turn_of(loop).metrics["kl"] > 0
    source(loop).how = replace(source(loop).how, temperature=8.0)
    with pytest.raises(health.Unhealthy, match=r"standard errors below 0: answers are drawn from another distribution"):
        turn_of(loop)
    off = loop_at(home, tmp_path / "off", **{"objective.gates.negative": None})
    sharpen(off)
    source(off).how = replace(source(off).how, temperature=8.0)
    assert turn_of(off).metrics["kl"] < 0


def test_a_token_without_alternative_is_not_learnt(home: Path, tmp_path: Path) -> None:
    loop = loop_at(home, tmp_path, **{"objective.top_p": 0.02, "objective.gates.gap": None})
    experience = turn_of(loop)
    assert {1.0, 0.0} >= set(torch.cat([own["keep"] for own in experience.facts]).tolist())
    made = Rollout(EncodedPrompt((5, 6)), 0, (7, 8, 9), (-1.0, -2.0, -3.0), (-0.5, 0.0, -0.1), True, "", 0)
    experience = Experience(0, [made], torch.ones(1), OnlineCursor(), [{}])
    source(loop).measure(experience)
    source(loop).objective.set_advantages(experience)
    assert experience.facts[0]["keep"].tolist() == [1, 0, 1]
    assert experience.facts[0]["advantages"][1] == 0 and experience.metrics["kl"] == pytest.approx(0.0, abs=1e-6)
    batch = source(loop).updates(experience)[0][0]
    assert loop.objective.counts(batch)["policy"] == 2
    found = loop.objective.loss(loop.model, batch, loop.nets)
    moved = dict(batch, advantages=batch["advantages"].clone(), values=batch["values"].clone())
    moved["advantages"][1], moved["values"][1] = 9.0, 9.0
    assert loop.objective.loss(loop.model, moved, loop.nets).total() == found.total()


def test_padding_has_no_influence(home: Path, tmp_path: Path) -> None:
    """Neither on what is known of tokens, nor on a loss: other ids in its place change nothing."""
    turns = [turn_of(loop_at(home, tmp_path / str(n), **{"train.micro": n, "recipe.lr": 0.1})) for n in (1, 8)]
    for one, two in zip(*(experience.facts for experience in turns), strict=True):
        for name in one:
            torch.testing.assert_close(one[name], two[name], atol=2e-5, rtol=0)
    loop = loop_at(home, tmp_path / "loss")
    (batch,) = source(loop).updates(turn_of(loop))[0]
    ids = batch["input_ids"]
    real = torch.zeros_like(ids, dtype=torch.bool)
    for row in range(len(ids)):
        real[row, : int(batch["where"][batch["rows"] == row].max()) % ids.shape[1] + 1] = True
    assert not real.all()
    other = dict(batch, input_ids=torch.where(real, ids, 7))
    pair = [loop.objective.loss(loop.model, b, loop.nets).total() for b in (batch, other)]
    assert torch.equal(*pair)


# ---------------------------------------------------------------- the reference and the old policy


def test_the_reference_stays(home: Path, tmp_path: Path) -> None:
    loop = loop_at(home, tmp_path)
    before, own = weights(loop.nets["reference"]), weights(loop.model)
    for _ in range(2):
        loop.advance()
    for name, tensor in loop.nets["reference"].state_dict().items():
        assert torch.equal(tensor, before[name])
        assert tensor.data_ptr() != loop.model.state_dict()[name].data_ptr()
    assert any(not torch.equal(tensor, own[name]) for name, tensor in loop.model.state_dict().items())
    assert not any(p.requires_grad for p in loop.nets["reference"].parameters())


def test_with_adapters_the_reference_is_the_model_without_them(home: Path, tmp_path: Path) -> None:
    plan = resolve("ppo", **asked(home, **{"recipe.lr": 0.05}), lora=2)
    assert [net.role for net in plan.nets] == ["value"]
    loop = loop_at(home, tmp_path, plan)
    experience = turn_of(loop)
    assert experience.metrics["kl"] == pytest.approx(0.0, abs=1e-5)
    loop.advance()
    experience = turn_of(loop)
    plain = formats.load(home / "base" / "model")
    for one, own in zip(experience.rollouts, experience.facts, strict=True):
        batch = policy.collate_answers([(one.prompt.ids, one.ids)], 0)
        with torch.no_grad():
            expected = token_logprobs(plain, policy.states(plain, batch), batch["targets"])
        assert own["reference"].tolist() == pytest.approx(expected.tolist(), abs=2e-5)
    assert max(float((own["old"] - own["reference"]).abs().max()) for own in experience.facts) > 1e-3
    assert loop.model.training and all(layer.strength == 1.0 for layer in layers(loop.model))


def test_old_log_probabilities_of_another_type_are_found(home: Path, tmp_path: Path) -> None:
    loop = loop_at(home, tmp_path)
    batch = source(loop).updates(turn_of(loop))[0][0]
    batch["old"] = batch["old"].bfloat16().float()
    with pytest.raises(VerifyError, match="old log-probabilities are not those of the policy that learns"):
        loop.objective.loss(loop.model, batch, loop.nets)
    batch["first"] = torch.tensor(False)  # later the policy is another one
    loop.objective.loss(loop.model, batch, loop.nets)


def test_a_policy_has_no_dropout(home: Path, tmp_path: Path) -> None:
    """GPT-2 has it when it is pretrained; sampling has none, so learning has none either."""
    stemma.pretrain(
        "gpt2", data=str(home / "text.jsonl"), out=tmp_path / "base", budget="1 steps", quiet=True,
        overrides={k: v for k, v in SMALL.items() if k != "dims.kv_heads"},
    )  # fmt: skip
    there = formats.load(tmp_path / "base" / "model", device="meta")
    assert there.arch.dropout.residual > 0
    plan = resolve("ppo", **asked(home) | {"start": str(tmp_path / "base")})
    loop = loop_at(home, tmp_path, plan)
    batch = source(loop).updates(turn_of(loop))[0][0]
    new = token_logprobs(loop.model, policy.states(loop.model, batch), batch["targets"])
    assert loop.model.training and ((new - batch["old"]).exp() - 1).abs().max() < 1e-6
    adapter = (LoRA(("*.q",), rank=2, dropout=0.1),)
    with pytest.raises(UsageError, match="adapters with dropout are not the policy that samples"):
        loop_at(home, tmp_path / "lora", resolve("ppo", **asked(home), rewrites=adapter))


def test_a_reference_with_another_tokenizer_is_refused(home: Path, tmp_path: Path) -> None:
    stemma.pretrain(
        "llama", data=str(home / "prompts.jsonl") + "#field=prompt", out=tmp_path / "other", budget="1 steps", quiet=True,
        overrides=SMALL,
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"the reference must read with the tokenizer of .*, and has another one"):
        stemma.align("ppo", **asked(home), reference=str(tmp_path / "other"), out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "run.json").exists()


def test_the_value_model_begins_as_the_reward_model(home: Path, tmp_path: Path) -> None:
    """At the last token of an answer it says what the reward model says of the whole."""
    rows = [{"prompt": f"a {i}", "chosen": "happy dog", "rejected": "old river"} for i in range(12)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stemma.align(
        "reward", start=str(home / "base"), data=str(tmp_path / "pairs.jsonl"), template="plain", budget="1 steps",
        out=tmp_path / "judge", quiet=True,
    )  # fmt: skip
    plan = resolve("ppo", **asked(home) | {"rewards": [str(tmp_path / "judge")]})
    assert plan.objective.value == str(tmp_path / "judge/model")
    loop = loop_at(home, tmp_path, plan)
    judge = formats.load(tmp_path / "judge" / "model").eval()
    for name, tensor in judge.state_dict().items():
        assert torch.equal(loop.nets["value"].state_dict()[name], tensor), name
    pairs = [((5, 6, 7), (8, 9, 10, 11)), ((5,), (12, 13))]
    with torch.no_grad():
        found = policy.values(judge, policy.collate_answers(pairs, 0)).split([4, 2])
        for (prompt, answer), own in zip(pairs, found, strict=True):
            for t in range(len(answer)):
                whole = judge(torch.tensor([[*prompt, *answer[:t]]])).logits
                assert whole is not None and float(own[t]) == pytest.approx(float(whole), abs=1e-5)


@pytest.mark.filterwarnings("ignore:the head 'task'")
def test_a_value_model_reads_the_ids_of_the_policy(home: Path, tmp_path: Path) -> None:
    """A reward model with another tokenizer judges words; as a value model it would be given ids that it does not
    know."""
    words = json.dumps(list("abcdefghij")) + " vowels and consonants"
    other = Tokenizer.train("bpe", [words], 270, Specials(bos="<s>", eos="</s>", pad="<pad>"))
    model = formats.load(home / "base" / "model")
    model.tokenizer = other
    model.save(str(tmp_path / "other"))
    rows = [{"prompt": f"a {i}", "chosen": "happy dog", "rejected": "old river"} for i in range(12)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    judge = tmp_path / "judge"
    stemma.align(
        "reward", start=str(tmp_path / "other"), data=str(tmp_path / "pairs.jsonl"), template="plain", budget="1 steps",
        out=judge, quiet=True,
    )  # fmt: skip
    plan = resolve("ppo", **asked(home) | {"rewards": [str(judge)]})
    assert plan.objective.value == str(home / "base/model")  # with a new head
    own = asked(home, **{"objective.value": str(judge)}) | {"out": tmp_path / "run", "quiet": True}
    with pytest.raises(UsageError, match=r"objective.value=.*judge/model does not read with the tokenizer of .*base"):
        stemma.align("ppo", **own)


# ---------------------------------------------------------------- answers and rewards


def test_an_answer_that_was_cut_has_a_reward_of_its_own(home: Path, tmp_path: Path) -> None:
    loop = loop_at(home, tmp_path, **{"objective.unfinished": -7.0, "objective.prompts": 16})
    ends = {*range(2, 300, 12)}
    loop.model.extras = {"generation_config": {"eos_token_id": [*ends]}}
    experience = turn_of(loop)
    ended = torch.tensor([one.finished for one in experience.rollouts])
    assert bool(ended.any()) and not bool(ended.all())
    assert (experience.scores[~ended] == -7).all() and (experience.scores[ended] >= 0).all()
    for one, own in zip(experience.rollouts, experience.facts, strict=True):
        assert len(own["old"]) == len(one.ids)  # the end token is learnt
        assert one.finished == (one.ids[-1] in ends)


def test_whitening_over_a_step_or_an_update(home: Path, tmp_path: Path) -> None:
    for whiten, together in (("step", 4), ("update", 1), ("none", 0)):
        loop = loop_at(home, tmp_path / whiten, **{"objective.whiten": whiten, "objective.inner": 1})
        updates = source(loop).updates(turn_of(loop))
        each = [torch.cat([batch["advantages"] for batch in update]) for update in updates]
        if together == 4:
            each = [torch.cat(each)]
        for values in each:
            white = abs(float(values.mean())) < 1e-4 and abs(float(values.std(correction=0)) - 1) < 1e-3
            assert white == (together > 0)


def test_prompts_that_leave_no_room(home: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"leaves room for objective.max_new_tokens=47 in 48 tokens: the shortest has"):
        loop_at(home, tmp_path, **{"objective.max_new_tokens": 47})
    (tmp_path / "some.jsonl").write_text(
        "".join(json.dumps({"prompt": "the cat " * (9 if i % 2 else 1) + str(i)}) + "\n" for i in range(40))
    )
    plan = resolve("ppo", **asked(home, **{"objective.max_new_tokens": 38}) | {"data": str(tmp_path / "some.jsonl")})
    loop = loop_at(home, tmp_path / "some", plan)
    assert 0 < source(loop).prompts.left_out < 36
    store = Store.open(tmp_path / "some" / "store")
    view = store.split(0.1, 1)[0]
    (note,) = loop.objective.remarks(view, None)
    assert note.startswith(
        f"{source(loop).prompts.left_out} of {len(view)} prompts are passed over: with objective.max_"
    )


def test_a_reward_of_one_value_stops_a_run(home: Path, tmp_path: Path) -> None:
    """After three steps, with a sentence; what was learnt is in a checkpoint."""
    (tmp_path / "flat.py").write_text("def flat(prompt, answer, record):\n    return 2.5\n")
    given = asked(home) | {"rewards": [f"{tmp_path / 'flat.py'}:flat"], "budget": "9 steps"}
    with pytest.raises(
        health.Unhealthy, match=r"step 3: all 8 answers have the reward 2.5, so there is nothing"
    ) as told:
        stemma.align("ppo", **given, out=tmp_path / "run", quiet=True)
    assert "\n" not in str(told.value)
    newest = checkpoint.latest(tmp_path / "run")
    assert newest is not None and checkpoint.step_of(newest) == 2
    assert [record["step"] for record in read_metrics(tmp_path / "run")] == [1, 2]
    off = given | {"overrides": given["overrides"] | {"objective.gates.spread": None}, "budget": "4 steps"}
    assert stemma.align("ppo", **off, out=tmp_path / "off", quiet=True).finished


def experience(many: int = 10, **metrics: float) -> Experience:
    one = Rollout(EncodedPrompt((5,)), 0, (7,), (-1.0,), (-1.0,), True, "", 0)
    found = {"reward": 1.0, "reward_std": 1.0, "length": 3.0, "finished": 1.0, "distinct": 1.0} | metrics
    return Experience(4, [one] * many, torch.zeros(many), OnlineCursor(), [], found)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("finished", 0.01, "1.0% of the answers end by themselves, and objective.gates.finished=0.02 were expected"),
        ("reward_std", 0.0, "all 50 answers have the reward 1"),
        ("distinct", 0.02, "of 50 answers 1 are different: the policy has collapsed"),
    ],
)
def test_weak_signs_stop_a_run_when_they_last(name: str, value: float, says: str) -> None:
    gates, cursor = Gates(), OnlineCursor()
    for number, metric in enumerate([value, 1.0, value, value, value]):
        now = experience(50, **{name: metric})
        now.cursor = cursor
        if number < 4:
            health.check(gates, now)
            cursor = now.cursor
            continue
        with pytest.raises(health.Unhealthy, match=f"step 5: {says}"):
            health.check(gates, now)
    for off in ("finished", "spread", "distinct"):
        gates = replace(gates, **{off: None})
    last = experience(50, **{name: value})
    last.cursor = replace(cursor, weak=9)
    health.check(gates, last)
    assert last.cursor.weak == 0


def test_a_divergence_that_cannot_be_stops_a_run() -> None:
    gates = Gates(kl=50.0)
    noise = torch.tensor([-2.0, 1.9] * 20)
    for fine in (noise, torch.full((8,), -0.04), torch.full((8,), 50.0)):
        health.check_divergence(gates, experience(), fine)
    for each, says in (
        (noise - 3.0, "is -3.05 nats an answer, 9.9 standard errors below 0"),
        (torch.full((8,), 51.0), "is 51 nats an answer, more than objective.gates.kl=50: raise objective.kl"),
        (torch.full((8,), float("nan")), "is nan nats an answer"),
    ):
        with pytest.raises(health.Unhealthy, match=f"step 5: the divergence from the reference {says}"):
            health.check_divergence(gates, experience(), each)
    health.check_divergence(Gates(kl=None), experience(), torch.tensor([-3.0]))  # one answer: no standard error
    health.check_divergence(Gates(kl=None, negative=None), experience(), noise - 1000)
