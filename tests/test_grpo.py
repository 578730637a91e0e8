"""GRPO and its kin: the loss of a batch, runs that sample, exact resume, and what goes wrong."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import stemma
from stemma.alignment import plans
from stemma.alignment.rewards import ModelScorer, RewardInput
from stemma.declare.alignment import GRPO, Reward
from stemma.declare.family import Text
from stemma.errors import DataError, RewardError, UsageError
from stemma.nn.model import Model
from stemma.objectives import base, objective, policy
from stemma.objectives.setting import Setting
from stemma.runs.metrics import read_metrics
from stemma.samples import arithmetic
from stemma.text import Specials, Tokenizer
from stemma.train import resume, verify_resume
from tiny import build, tiny

SMALL: dict[str, Any] = {
    "objective.prompts": 4, "objective.samples": 4, "objective.max_new_tokens": 6, "objective.judged": 8,
    "objective.gates.finished": None, "objective.gates.spread": None, "recipe.lr": 1e-3, "train.threads": 1,
}  # fmt: skip
LENGTH = "def length(prompt, answer, record):\n    return -len(answer) / 10 + record['level']\n"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that knows the form of an answer, and prompts."""
    home = tmp_path_factory.mktemp("grpo")
    rows = [json.dumps(row) for row in arithmetic.drawn((1,), 120)]
    (home / "rows.jsonl").write_text("\n".join(rows) + "\n")
    tokenizer = Tokenizer.train("bpe", [*rows, "User: Assistant:"], 290, Specials(bos="<s>", eos="</s>", pad="<pad>"))
    model = stemma.build("llama", layers=1, d_model=32, heads=4, d_ff=48, vocab=tokenizer.vocab_size, context=48)
    model.tokenizer = tokenizer
    model.save(str(home / "base"))
    more: dict[str, Any] = {"settings": {"template": "plain"}, "overrides": {"recipe.lr": 1e-2, "train.threads": 1}}
    stemma.tune("chat", start=str(home / "base"), data=str(home / "rows.jsonl"), out=home / "sft", budget="25 steps", quiet=True, **more)  # fmt: skip
    (home / "reward.py").write_text(LENGTH)
    return home


def align(home: Path, out: Path, budget: str = "3 steps", what: str = "grpo", **changes: Any) -> Any:
    rewards = changes.pop("rewards", [f"{home / 'reward.py'}:length"])
    return stemma.align(
        what, start=str(home / "sft"), data=str(home / "rows.jsonl"), out=out, budget=budget, rewards=rewards,
        lora=changes.pop("lora", None), resume=changes.pop("resume", False), reference=changes.pop("reference", None),
        quiet=True, overrides=SMALL | changes,
    )  # fmt: skip


# ---------------------------------------------------------------- the loss


def goal(**more: Any) -> Any:
    tokenizer = Tokenizer.train("bpe", ["a b c"], 261, Specials(bos="<s>", eos="</s>", pad="<pad>"))
    spec = GRPO(rewards=(Reward("builtin:json"),), max_new_tokens=9, **more)
    return objective(spec, Setting(tokenizer, Text("bpe", pad_id=0), 40, 1, structure="decoder"))


def batch_of(made: Any, answers: list[Any]) -> base.Batch:
    batch = policy.collate_answers([(prompt, ids) for prompt, ids, _ in answers], 0)
    for name in ("advantages", "old", "reference", "keep"):
        batch[name] = torch.cat([facts[name] for *_, facts in answers])
    return batch | {"first": torch.tensor(False)}


def drawn(model: Model) -> list[Any]:
    """Answers of several lengths, two to each prompt, with made-up facts; one token was forced."""
    torch.manual_seed(3)
    found = []
    for i, size in enumerate((9, 2, 1, 5, 4, 7)):
        prompt, ids = torch.randint(1, 80, (3 + i // 2,)).tolist(), torch.randint(1, 80, (size,)).tolist()
        with torch.no_grad():
            whole = model(torch.tensor([prompt + ids])).logits
        assert whole is not None
        scores = whole[0].log_softmax(-1)[len(prompt) - 1 : -1]
        own = scores.gather(1, torch.tensor(ids)[:, None])[:, 0]
        keep = torch.ones(size)
        keep[size // 2] = float(i != 4)
        facts = {
            "old": own + 0.2 * torch.randn(size), "reference": own + 0.3 * torch.randn(size),
            "advantages": torch.full((size,), float(torch.randn(()))), "keep": keep,
        }  # fmt: skip
        found.append((prompt, ids, facts))
    return found


KINDS: dict[str, dict[str, Any]] = {"grpo": {}} | {name: dict(own) for name, (_, own) in plans.VARIANTS.items()}
KINDS["gspo"] |= {"clip": 0.1, "clip_high": 0.15, "kl": 0.1}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_the_loss_of_a_batch_and_of_any_split(kind: dict[str, Any]) -> None:
    """By loops over answers and tokens; gradients do not depend on how answers are split into batches."""
    made, model = goal(**kind), build(tiny("llama")).train()
    spec: GRPO = made.spec
    answers = drawn(model)
    wanted, many = [], 0.0
    for prompt, ids, facts in answers:
        with torch.no_grad():
            out = model(torch.tensor([prompt + ids])).logits
        assert out is not None
        new = out[0].log_softmax(-1)[len(prompt) - 1 : -1].gather(1, torch.tensor(ids)[:, None])[:, 0]
        at = [t for t in range(len(ids)) if facts["keep"][t]]
        logs = [float(new[t] - facts["old"][t]) for t in at]
        total = 0.0
        for t, own in zip(at, logs, strict=True):
            log = {"token": own, "sequence": sum(logs), "mean": sum(logs) / len(logs)}[spec.ratio]
            advantage, ratio = float(facts["advantages"][t]), math.exp(log)
            high = spec.clip if spec.clip_high is None else spec.clip_high
            total -= min(ratio * advantage, min(max(ratio, 1 - spec.clip), 1 + high) * advantage)
            if spec.kl and spec.penalty == "loss":
                gap = float(facts["reference"][t] - new[t])
                total += spec.kl * (math.exp(gap) - gap - 1)
        share = {"sequences": len(at), "tokens": 1, "constant": spec.max_new_tokens}[spec.reduction]
        wanted.append(total / share)
        many += len(at) if spec.reduction == "tokens" else 1
    whole = made.loss(model, batch_of(made, answers))
    assert whole.total().item() == pytest.approx(sum(wanted) / many, abs=2e-6)
    whole.total().backward()
    first = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for part in ([4, 0], [2], [1, 5, 3]):
        made.loss(model, batch_of(made, [answers[i] for i in part])).total(whole.counts).backward()
    for name, p in model.named_parameters():
        if name in first:
            torch.testing.assert_close(p.grad, first[name], atol=1e-6, rtol=1e-5)


# ---------------------------------------------------------------- runs


def test_a_run_is_recorded_and_resumed_bit_for_bit(home: Path, tmp_path: Path) -> None:
    """Metrics have the field's names; a run that stops and goes on ends with the same weights."""
    changes: dict[str, Any] = {"train.save_every": 2, "objective.inner": 2, "objective.minibatch": 8}
    run = align(home, tmp_path / "run", "4 steps", **changes)
    last = read_metrics(run.directory)[-1]
    names = {
        "loss",
        "reward",
        "reward_std",
        "kl",
        "length",
        "entropy",
        "clipfrac",
        "approx_kl",
        "ratio",
        "zero_variance",
    }
    assert names <= last.keys() and last["targets"] == 2 * 16
    assert abs(read_metrics(run.directory)[0]["kl"]) < 1e-5 < last["kl"]
    assert {"reward", "kl", "length"} <= run.summary["val"].keys() <= run.summary["before"].keys() | {"kl"}
    weights = run.model.state_dict()
    (run.directory / "summary.json").unlink()
    shutil.rmtree(max((run.directory / "checkpoints").iterdir()))
    again = resume(run.directory, quiet=True)
    assert all(torch.equal(weights[k], v) for k, v in again.model.state_dict().items())
    assert verify_resume(run.directory, 2)["identical"]


def test_a_failing_reward_stops_the_run_which_goes_on_when_it_is_mended(home: Path, tmp_path: Path) -> None:
    whole = align(home, tmp_path / "whole", "4 steps")
    file = tmp_path / "mine.py"
    file.write_text(
        "from pathlib import Path\n" + LENGTH.replace("return", "if Path('LATER').exists(): raise ValueError('no')\n    return")
        .replace("LATER", str(tmp_path / "later"))
    )  # fmt: skip
    seen = []

    def on_step(record: Any) -> None:
        seen.append(record["step"])
        if record["step"] == 2:
            (tmp_path / "later").touch()

    out = tmp_path / "run"
    with pytest.raises(RewardError, match=r"raised ValueError: no .* the answer was"):
        stemma.align(
            "grpo", start=str(home / "sft"), data=str(home / "rows.jsonl"), out=out, budget="4 steps",
            rewards=[f"{file}:length"], quiet=True, overrides=SMALL | {"train.save_every": 100}, on_step=on_step,
        )  # fmt: skip
    assert seen == [1, 2]
    file.write_text(LENGTH)
    found = resume(out, quiet=True)
    assert all(torch.equal(v, whole.model.state_dict()[k]) for k, v in found.model.state_dict().items())
    assert [r["step"] for r in read_metrics(out)] == [1, 2, 3, 4]


def test_an_adapter_is_held_to_the_policy_without_it(home: Path, tmp_path: Path) -> None:
    run = align(home, tmp_path / "run", "3 steps", lora=2, **{"recipe.lr": 1e-2})
    found = read_metrics(run.directory)
    assert not run.plan.nets and abs(found[0]["kl"]) < 1e-5 < abs(found[-1]["kl"])


def test_groups_of_equal_rewards_are_drawn_again_or_dropped(home: Path, tmp_path: Path) -> None:
    """Half of the prompts have one reward for all answers."""
    file = tmp_path / "half.py"
    file.write_text("def f(prompt, answer, record):\n    return len(answer) if int(record['answer']) % 2 else 0\n")
    more: dict[str, Any] = {"rewards": [f"{file}:f"], "objective.prompts": 6, "objective.kl": 0.0}
    again = align(home, tmp_path / "again", "2 steps", **more, **{"objective.equal": "again", "objective.tries": 9})
    assert [r["zero_variance"] for r in read_metrics(again.directory)] == [0.0, 0.0]
    assert not again.plan.nets  # without kl there is no reference
    with pytest.raises(UsageError, match=r"set objective\.kl=0 in place of none"):
        align(home, tmp_path / "none", "2 steps", rewards=["builtin:number"], reference="none")
    dropped = read_metrics(align(home, tmp_path / "drop", "2 steps", **more, **{"objective.equal": "drop"}).directory)
    for record in dropped:
        assert record["targets"] == round(24 * (1 - record["zero_variance"])) and 0 < record["zero_variance"] < 1


def test_answers_of_the_data_are_learnt_without_sampling(home: Path, tmp_path: Path) -> None:
    """Two answers with scores to each prompt: the better one becomes likelier beside the other."""
    rows = [
        {"prompt": row["question"], "responses": [row["answer"], "4 4"], "scores": [0.9, 0.2]}
        for row in arithmetic.drawn((1,), 60)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    more: dict[str, Any] = {"start": str(home / "sft"), "data": str(tmp_path / "rows.jsonl"), "quiet": True}
    changes = SMALL | {"objective.samples": 2, "objective.offline": True, "objective.prompts": 16}
    run = stemma.align(
        "grpo", out=tmp_path / "run", budget="8 steps", rewards=["builtin:scores"], overrides=changes, **more
    )
    found = read_metrics(run.directory)
    assert found[0]["reward"] == pytest.approx(0.55) and found[0]["distinct"] > 0.2 and "kl" not in found[0]
    assert "reward" not in run.summary["val"] and run.summary["val"]["kl"] > 0

    def gap(path: str) -> float:
        model, total = stemma.load(path).eval(), 0.0
        tokenizer = model.tokenizer
        assert tokenizer is not None
        for row in rows[:10]:
            prompt = tokenizer.encode(f"User: {row['prompt']}\nAssistant:", add_special=False)
            for text, sign in zip(row["responses"], (1, -1), strict=True):
                ids = torch.tensor([prompt + tokenizer.encode(f" {text}", add_special=False)])
                with torch.no_grad():
                    logprobs = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
                total += sign * float(logprobs.gather(1, ids[0, len(prompt) :, None]).sum())
        return total

    assert gap(str(run.directory)) > gap(str(home / "sft")) + 1
    with pytest.raises(DataError, match=r"row .* has no answers that could be learnt .it has 2 answers, and 4 were"):
        stemma.align(
            "grpo", out=tmp_path / "more", budget="1 steps", rewards=["builtin:scores"],
            overrides=changes | {"objective.samples": 4}, **more,
        )  # fmt: skip


def test_what_does_not_fit_is_refused(home: Path, tmp_path: Path) -> None:
    for changes, said in [
        ({"objective.samples": 1}, "objective.samples=1 makes groups of one answer"),
        ({"objective.overlong": 7}, "objective.overlong=7 is more than the 6 tokens"),
        ({"objective.offline": True, "objective.penalty": "reward"}, "objective.offline=true samples no answers"),
        ({"rewards": []}, "grpo learns from rewards: give --reward"),
        ({"rewards": ["safety-first:a"]}, "must name two reward models: safety-first:HELPFULNESS,SAFETY"),
        ({"rewards": ["builtin:json@x"]}, "the weight of the reward 'builtin:json@x' is 'x'"),
        ({"rewards": [str(home / "sft")]}, "is no reward model: it has no head of one number"),
        ({"what": "lamma2-chat"}, "no method of alignment is called 'lamma2-chat'; known: reward, dpo"),
        ({"what": "lamma2-chat"}, "did you mean 'llama2-chat'?"),
    ]:
        with pytest.raises(UsageError) as caught:
            align(home, tmp_path / "run", **changes)
        assert said in str(caught.value)
    assert not (tmp_path / "run" / "run.json").exists()


def test_weights_and_fingerprints_of_rewards_are_kept_in_the_plan(home: Path) -> None:
    rewards = ["builtin:number@2", f"{home / 'reward.py'}:length@-0.5"]
    plan = plans.resolve("grpo", str(home / "sft"), str(home / "rows.jsonl"), rewards=rewards)
    assert isinstance(plan.objective, GRPO)
    one, two = plan.objective.rewards
    assert (one.source, one.weight, one.fingerprint) == ("builtin:number", 2.0, "")
    assert two.source == f"{home / 'reward.py'}:length" and two.weight == -0.5 and len(two.fingerprint) == 64


@pytest.mark.filterwarnings("ignore:the head 'task'")
def test_a_reward_model_judges_with_its_own_tokenizer_and_alone_as_in_a_batch(home: Path, tmp_path: Path) -> None:
    """Its scores are those of the ranking that it learnt; a run learns from them."""
    pairs = [
        {"prompt": row["question"], "chosen": row["answer"], "rejected": "no " * 4}
        for row in arithmetic.drawn((1,), 60)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    model = stemma.align(
        "reward", start=str(home / "sft"), data=str(tmp_path / "pairs.jsonl"), out=tmp_path / "judge", template="plain",
        budget="30 steps", overrides={"recipe.lr": 1e-2, "train.threads": 1}, quiet=True,
    )  # fmt: skip
    judge = ModelScorer(str(model.directory / "model"))
    some = [RewardInput(p["prompt"], p[k], {"prompt": p["prompt"]}) for p in pairs[:6] for k in ("chosen", "rejected")]
    found = judge.scores(some)
    assert [judge.scores([one])[0] for one in some] == pytest.approx(found, abs=1e-5)
    assert sum(a > b for a, b in zip(found[::2], found[1::2], strict=True)) >= 5
    both = ModelScorer(f"safety-first:{model.directory / 'model'},{model.directory / 'model'}")
    assert both.scores(some) == pytest.approx(found, abs=1e-5) and both.name == "safety_first"
    run = align(home, tmp_path / "run", "1 steps", rewards=[str(model.directory)])
    assert run.plan.objective.rewards[0].fingerprint and "reward" in run.summary["val"]
    with pytest.raises(RewardError, match=r"cannot judge the answer .*more than the 48 of a row"):
        judge.scores([RewardInput("?", "1 2 3 " * 40, {"prompt": "?"})])


# ---------------------------------------------------------------- distillation


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_student_comes_nearer_to_its_teacher(home: Path, tmp_path: Path, share: float) -> None:
    """From answers of the data, and from its own; the divergence of a model from itself is 0."""
    more: dict[str, Any] = {"start": str(home / "base"), "data": str(home / "rows.jsonl"), "template": "plain"}
    more |= {"reference": str(home / "sft"), "quiet": True}
    changes = SMALL | {"objective.on_policy": share, "recipe.lr": 1e-2, "objective.prompts": 16}
    run = stemma.align("gkd", out=tmp_path / "run", budget="20 steps", overrides=changes, **more)
    before, after = run.summary["before"], run.summary["val"]
    assert after["divergence"] < 0.7 * before["divergence"] and "reward" not in after
    same = stemma.align(
        "gkd", out=tmp_path / "same", budget="1 steps", overrides=changes, **more | {"start": str(home / "sft")}
    )
    assert abs(same.summary["before"]["divergence"]) < 1e-6
    assert verify_resume(run.directory, 2)["identical"]


def test_distillation_needs_a_teacher_and_answers(home: Path, tmp_path: Path) -> None:
    more: dict[str, Any] = {"start": str(home / "sft"), "data": str(home / "rows.jsonl"), "quiet": True}
    with pytest.raises(UsageError, match="gkd learns from a teacher: give --reference MODEL"):
        stemma.align("gkd", out=tmp_path / "run", **more)
    asked = tmp_path / "asked.jsonl"
    asked.write_text("".join(json.dumps({"prompt": f"What is {i} + 1?"}) + "\n" for i in range(20)))
    more |= {"data": str(asked), "reference": str(home / "sft"), "budget": "1 steps"}
    with pytest.raises(DataError, match="has no answers that could be learnt"):
        stemma.align("gkd", out=tmp_path / "run", overrides=SMALL | {"objective.on_policy": 0.0}, **more)
