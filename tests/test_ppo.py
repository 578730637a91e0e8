"""PPO: its losses against scalar references, whole runs, exact resume, and the mistakes that public code is full of."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

import stemma
from stemma.alignment.experience import Experience
from stemma.alignment.online import OnlineSource
from stemma.alignment.plans import resolve
from stemma.data import Store
from stemma.objectives import policy
from stemma.objectives.vocabulary import token_logprobs
from stemma.tasks.encoder import TaskEncoder, rows
from stemma.train import read_metrics
from stemma.train.assemble import fit_to_tokenizer, loop_of, with_steps
from stemma.train.loop import Loop
from stemma.train.run import resume_run, verify_resume

SMALL = {
    "dims.d_model": 32, "dims.layers": 2, "dims.heads": 4, "dims.kv_heads": 4, "dims.d_ff": 48, "dims.vocab": 300,
    "dims.context": 48, "recipe.batch": 192, "train.threads": 1,
}  # fmt: skip
ONLINE = {
    "objective.prompts": 4, "objective.samples": 2, "objective.minibatch": 4, "objective.inner": 2,
    "objective.max_new_tokens": 8, "objective.gates.finished": None, "recipe.lr": 1e-3, "train.threads": 1,
    "train.precision": "fp32",
}  # fmt: skip
REWARD = """
def vowels(prompt, answer, record):
    return sum(c in "aeiou" for c in answer) / (1 + len(answer))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that has seen a text once, the text, prompts and a reward."""
    folder = tmp_path_factory.mktemp("ppo")
    draw = random.Random(1)
    words = ["the", "cat", "sees", "a", "happy", "dog", "near", "old", "river", "and", "keeps", "it", "warm"]
    texts = [" ".join(draw.choices(words, k=30)) for _ in range(40)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    prompts = [{"prompt": f"{draw.choice(words)} {i}", "number": i} for i in range(40)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(p) + "\n" for p in prompts))
    (folder / "reward.py").write_text(REWARD)
    stemma.pretrain(
        "llama", data=str(folder / "text.jsonl"), out=folder / "base", budget="2 steps", overrides=SMALL, quiet=True
    )
    return folder


def asked(home: Path, **changes: Any) -> dict[str, Any]:
    own = {"start": str(home / "base"), "data": str(home / "prompts.jsonl"), "template": "plain", "budget": "3 steps"}
    return own | {"rewards": [f"{home / 'reward.py'}:vowels"], "overrides": ONLINE | changes}


def loop_at(home: Path, tmp_path: Path, plan: Any = None, **changes: Any) -> Loop:
    """A loop before its first step, without a run around it."""
    import stemma.formats as formats

    plan = plan or resolve("ppo", **asked(home, **changes))
    tokenizer = formats.load(plan.train.start, device="meta").tokenizer
    plan = with_steps(fit_to_tokenizer(plan, tokenizer), 10, True)
    encoder = TaskEncoder(plan.objective.task, tokenizer, plan.context, "decoder")
    store = Store.build(rows(plan.data, encoder), encoder, tmp_path / "store")
    return loop_of(plan, tokenizer, store.split(0.1, 1)[0])


def turn_of(loop: Loop) -> Experience:
    assert isinstance(loop.source, OnlineSource)
    return loop.source.collect(loop.cursor, 0)


def test_the_first_ratio_is_one(home: Path, tmp_path: Path) -> None:
    """Old log-probabilities are the trainer's own, in the mode and the micro-batches of the first pass."""
    for micro in (1, 3, 8):
        loop = loop_at(home, tmp_path / str(micro), **{"train.micro": micro, "objective.temperature": 0.8})
        first = loop.source.updates(turn_of(loop))[0]  # type: ignore[attr-defined]
        for batch in first:
            new = token_logprobs(loop.model, policy.states(loop.model, batch), batch["targets"], 0.8)
            assert ((new - batch["old"]).exp() - 1).abs().max() < 1e-6
            assert new.requires_grad and loop.model.training
        loop.close()


def test_what_a_turn_knows(home: Path, tmp_path: Path) -> None:
    """Log-probabilities, values, rewards, advantages and returns of one answer, by plain loops over one full pass."""
    loop = loop_at(home, tmp_path, **{"objective.whiten": "none", "objective.kl": 0.3, "recipe.lr": 0.5})
    loop.advance()  # so that policy and reference differ
    experience = turn_of(loop)
    reference, value = loop.nets["reference"], loop.nets["value"]
    assert loop.model.tokenizer is not None and value.task is not None
    nats = []
    for i, (one, own) in enumerate(zip(experience.rollouts, experience.facts, strict=True)):
        ids = torch.tensor([[*one.prompt.ids, *one.ids]])
        begin, n = len(one.prompt.ids), len(one.ids)
        with torch.no_grad():
            rows = [net.logits(net.decode(ids))[0].log_softmax(-1) for net in (loop.model, reference)]
            states = value.task.out(value.decode(ids)[0])
        logprobs, others = ([float(row[begin + t - 1, one.ids[t]]) for t in range(n)] for row in rows)
        values = [float(states[begin + t - 1]) for t in range(n)]
        assert own["old"].tolist() == pytest.approx(logprobs, abs=2e-5)
        assert own["reference"].tolist() == pytest.approx(others, abs=2e-5)
        assert own["values"].tolist() == pytest.approx(values, abs=2e-5)
        rewards = [-0.3 * (a - b) for a, b in zip(logprobs, others, strict=True)]
        nats.append(sum(a - b for a, b in zip(logprobs, others, strict=True)))
        text = one.text
        score = sum(c in "aeiou" for c in text) / (1 + len(text))
        assert float(experience.scores[i]) == pytest.approx(score, abs=1e-6)
        rewards[-1] += score
        ahead, expected = 0.0, [0.0] * n
        for t in reversed(range(n)):
            ahead = rewards[t] + (values[t + 1] if t + 1 < n else 0.0) - values[t] + 0.95 * ahead
            expected[t] = ahead
        assert own["advantages"].tolist() == pytest.approx(expected, abs=1e-4)
        assert own["returns"].tolist() == pytest.approx(
            [a + v for a, v in zip(expected, values, strict=True)], abs=1e-4
        )
    assert experience.metrics["kl"] == pytest.approx(
        sum(nats) / len(nats), abs=1e-4
    )  # what is penalised is what is told


def test_gradients_do_not_depend_on_micro_batches(home: Path, tmp_path: Path) -> None:
    found = []
    for micro in (1, 3, 8):
        changes = {"train.micro": micro, "objective.ptx": str(home / "text.jsonl"), "objective.minibatch": None}
        loop = loop_at(home, tmp_path / str(micro), **changes)
        loop.gradient(loop.batches()[0])
        found.append({name: p.grad.clone() for name, p in loop.learners.named() if p.grad is not None})
        loop.close()
    for other in found[1:]:
        for name, grad in found[0].items():
            assert (grad - other[name]).abs().max() <= 1e-6 * max(1.0, float(grad.abs().max())), name
    assert any(name.startswith("value:") for name in found[0])


def test_pretraining_gradients_are_added_to_the_same_update(home: Path, tmp_path: Path) -> None:
    """The gradient of an update is that of PPO plus the weight times that of the text, and there is one step."""
    grads = []
    for weight in (0.0, 2.0):
        loop = loop_at(
            home, tmp_path / str(weight), **{"objective.ptx": str(home / "text.jsonl"), "objective.ptx_weight": weight}
        )
        update = loop.batches()[0]
        loop.gradient(update)
        grads.append({n: p.grad.clone() for n, p in loop.learners.named() if p.grad is not None})
    text = [batch for batch in update if "keep" not in batch]
    assert text and len(loop.batches()) == 4
    loop.optimizer.zero_grad()
    total = sum(len(batch["targets"]) for batch in text)
    for batch in text:
        (2.0 * loop.objective.text.loss(loop.model, batch) / total).backward()  # type: ignore[attr-defined]
    for name, p in loop.model.named_parameters():
        assert p.grad is not None
        assert torch.allclose(grads[1][name], grads[0][name] + p.grad, atol=1e-6), name


def test_a_run_learns_resumes_and_is_verified(home: Path, tmp_path: Path) -> None:
    changes = {
        "objective.ptx": str(home / "text.jsonl"), "objective.kl_target": 2.0, "objective.kl_horizon": 20,
        "train.average": 0.9, "train.save_every": 1,
    }  # fmt: skip
    whole = stemma.align("ppo", **asked(home, **changes), out=tmp_path / "whole", quiet=True)
    records = list(read_metrics(tmp_path / "whole"))
    for name in [
        "reward",
        "kl",
        "entropy",
        "length",
        "finished",
        "ratio",
        "clipfrac",
        "approx_kl",
        "loss_policy",
        "loss_value",
        "loss_ptx",
    ]:
        assert all(math.isfinite(record[name]) for record in records), name
    assert len({record["kl_coefficient"] for record in records}) == 3
    assert {"reward", "kl", "length", "pretraining_loss"} < whole.summary["val"].keys()
    samples = [json.loads(line) for line in (tmp_path / "whole" / "samples.jsonl").open()]
    assert {row["step"] for row in samples} == {0, 3} and whole.summary["answers"]["before"][0]["step"] == 0
    assert (tmp_path / "whole" / "value").is_dir()

    class Stop(Exception):
        pass

    def stop(record: Any) -> None:
        if record["step"] == 2:
            raise Stop

    with pytest.raises(Stop):
        stemma.align("ppo", **asked(home, **changes), out=tmp_path / "cut", quiet=True, on_step=stop)
    again = resume_run(tmp_path / "cut", quiet=True)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name
    assert again.summary["val"] == whole.summary["val"]
    timeless = [
        [{k: v for k, v in r.items() if k != "seconds"} for r in read_metrics(tmp_path / x)] for x in ("whole", "cut")
    ]
    assert timeless[0] == timeless[1]
    for file in ("samples.jsonl", "judged.jsonl"):
        assert (tmp_path / "cut" / file).read_text() == (tmp_path / "whole" / file).read_text()
    judged = [json.loads(line)["rewards"] for line in (tmp_path / "whole" / "judged.jsonl").open()]
    pairs = list(zip(judged[0], judged[-1], strict=True))
    win, share = whole.summary["win"], sum((new > old) + 0.5 * (new == old) for old, new in pairs) / len(pairs)
    assert win["share"] == pytest.approx(share) and win["low"] <= share <= win["high"] and win["prompts"] == len(pairs)
    verify_resume(tmp_path / "whole", 2)


def test_a_mean_of_the_weights_counts_every_update(home: Path, tmp_path: Path) -> None:
    """Not only the last one of a step, and a run that goes on has the same mean."""
    loop = loop_at(home, tmp_path / "loop", **{"train.average": 0.3})
    assert loop.average is not None
    name, weight = next(iter(loop.average.own.items()))
    mean, updates, step = weight.clone(), 0, loop.optimizer.step

    def taken(*_: Any) -> None:
        nonlocal mean, updates
        step()
        updates += 1
        decay = min(0.3, (1 + updates) / (10 + updates))
        mean = decay * mean + (1 - decay) * weight

    loop.optimizer.step = taken  # type: ignore[method-assign,assignment]
    loop.advance()
    loop.advance()
    assert updates == 8 and torch.allclose(loop.average.mean[name], mean, atol=1e-7)
    stemma.align("ppo", **asked(home, **{"train.average": 0.3}), out=tmp_path / "run", quiet=True)
    assert verify_resume(tmp_path / "run", 2)["identical"]
