"""What a run of alignment needs, said before it: beside what it takes."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

import stemma
from stemma.alignment import recipes
from stemma.alignment.plans import resolve
from stemma.declare.alignment import Online
from stemma.errors import UsageError
from stemma.parallel import Mesh
from stemma.planning import HARDWARE
from stemma.planning.aligned import best, meshes, needs, outlook
from stemma.planning.stages import Asked, Drawing, stages
from stemma.train.assemble import fit_to_tokenizer, loop_of, with_steps
from stemma.train.loop import Loop
from stemma.train.prepare import prepare, split
from stemma.train.start import inspect
from test_cli import call  # noqa: F401
from test_ppo import REWARD, SMALL

WORDS = ["the", "cat", "sees", "a", "happy", "dog", "near", "old", "river", "and", "keeps", "it", "warm"]
PLAIN = {"train.threads": 1, "train.precision": "fp32", "train.micro": 4}
SAMPLED = {
    "objective.prompts": 4, "objective.samples": 2, "objective.minibatch": 4, "objective.inner": 2,
    "objective.max_new_tokens": 8, "objective.gates.finished": None,
}  # fmt: skip
MANY = SAMPLED | {"objective.prompts": 8, "objective.samples": 8, "objective.inner": 1, "objective.max_new_tokens": 16}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of more layers than are traced, rows of every kind, and a reward."""
    folder = tmp_path_factory.mktemp("plans")
    draw = random.Random(1)

    def said(most: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(2, most)))

    rows = {
        "text": [{"text": " ".join(draw.choices(WORDS, k=30))} for _ in range(40)],
        "prompts": [{"prompt": f"{said(3)} {i}"} for i in range(40)],
        "pairs": [{"prompt": f"{said(3)} {i}", "chosen": said(9), "rejected": said(9)} for i in range(40)],
        "thumbs": [{"prompt": f"{said(3)} {i}", "completion": said(9), "label": i % 2 == 0} for i in range(40)],
    }
    for name, some in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    (folder / "reward.py").write_text(REWARD)
    own = SMALL | {"dims.layers": 5}
    data = str(folder / "text.jsonl")
    stemma.pretrain("llama", data=data, out=folder / "base", budget="1 steps", overrides=own, quiet=True)
    return folder


def planned(home: Path, what: str, data: str, more: dict[str, Any], own: dict[str, Any]) -> Any:
    rewards = [f"{home / 'reward.py'}:vowels"] if what in ("ppo", "grpo") else []
    own = {key: value.format(home=home) if isinstance(value, str) else value for key, value in own.items()}
    return resolve(
        what, str(home / "base"), str(home / f"{data}.jsonl"), "2 steps", template="plain", rewards=rewards,
        overrides=PLAIN | own, **more,
    )  # fmt: skip


def looped(plan: Any, folder: Path) -> Loop:
    """The run's loop."""
    tokenizer, _ = inspect(plan)
    store, tokenizer = prepare(plan, folder, tokenizer, True, share=False)
    plan = with_steps(fit_to_tokenizer(plan, tokenizer), 20, True)
    return loop_of(plan, tokenizer, split(plan, store)[0], folder=folder)


def measured(plan: Any, folder: Path) -> float:
    """Bytes that the run's steps hold at once: its steps are taken twice, and looked at the second time, when the
    optimiser has its state."""
    loop = looped(plan, folder)
    for _ in range(2):
        loop.advance()
    loop.move(loop.source.cursor_type())
    held = [*loop.model.parameters(), *loop.model.buffers()]
    held += [t for state in loop.optimizer.state.values() for t in state.values()]
    held += [t for net in loop.nets.values() for t in (*net.parameters(), *net.buffers())]
    before = sum(t.numel() * t.element_size() for t in {id(t): t for t in held}.values())
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as prof:
        for _ in range(2):
            loop.advance()
    live = peak = 0
    events = [e for e in prof.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return float(before + peak)


CASES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "dpo": ("dpo", "pairs", {}, {}),
    "dpo by lora": ("dpo", "pairs", {"lora": 4}, {}),
    "reward": ("reward", "pairs", {}, {}),
    "ppo": ("ppo", "prompts", {}, SAMPLED),
    "grpo": ("grpo", "prompts", {}, SAMPLED),
    "sampling": ("grpo", "prompts", {"lora": 4}, MANY | {"train.micro": 1}),  # it outweighs updates
    "dpo by qlora": ("dpo", "pairs", {"lora": 4, "quantize": "nf4"}, {}),
    "dpo at once": ("dpo", "pairs", {}, {"train.micro": 16}),
    "dpo without its reference": ("dpo", "pairs", {}, {"objective.precompute": True}),
    "simpo": ("dpo", "pairs", {"reference": "none"}, {"objective.average": True}),
    "kto": ("kto", "thumbs", {}, {}),
    "grpo by lora": ("grpo", "prompts", {"lora": 4}, SAMPLED),
    "ppo with ptx": ("ppo", "prompts", {}, SAMPLED | {"objective.ptx": "{home}/text.jsonl"}),
    "gkd": ("gkd", "prompts", {}, SAMPLED | {"objective.teacher": "{home}/base", "objective.on_policy": 1.0}),
}
OFTEN = ("dpo", "ppo")


@pytest.mark.parametrize("case", [c if c in OFTEN else pytest.param(c, marks=pytest.mark.slow) for c in CASES])
def test_memory_is_as_predicted(home: Path, tmp_path: Path, case: str) -> None:
    """What torch's allocator holds at once in real steps."""
    plan = planned(home, *CASES[case])
    cpu = HARDWARE["cpu"]
    found = needs(outlook(plan, cpu), Mesh(), cpu)
    assert found.memory == pytest.approx(measured(plan, tmp_path / "run"), rel=0.05)
    assert found.steps == 2 and found.step_seconds > 0
    assert max(found.moments, key=found.moments.__getitem__) == ("sample" if case == "sampling" else "update")


def test_what_is_held_has_its_name(home: Path) -> None:
    """Policy, value model, reference, reward model, mean and optimiser; adapters need no reference beside them."""
    cpu = HARDWARE["cpu"]
    full = best(planned(home, "ppo", "prompts", {}, SAMPLED | {"train.average": 0.99}), cpu, [Mesh()])
    size = full.held["policy"]
    assert full.held["reference"] == size > full.held["value model"]
    assert full.held["mean of the weights"] == 4 * full.learned == full.held["policy"] + full.held["value model"]
    assert full.held["optimiser"] == pytest.approx(8 * full.learned, rel=1e-3)
    lora = best(planned(home, "dpo", "pairs", {"lora": 4}, {}), cpu, [Mesh()])
    assert set(lora.held) == {"policy", "optimiser"} and lora.learned < lora.parameters / 2
    assert lora.held["optimiser"] < 0.5 * size


def test_a_mesh_divides(home: Path) -> None:
    """Weights by shards, rows by readers; sampling needs whole networks."""
    h100 = HARDWARE["h100"]
    plan = planned(home, "ppo", "prompts", {}, SAMPLED)
    one, two = (best(plan, h100, [mesh]) for mesh in (Mesh(), Mesh(fsdp=2)))
    for name in ("policy", "value model", "reference", "optimiser"):
        assert two.held[name] == one.held[name] / 2
    assert two.held["whole networks to sample from"] == sum(one.held[n] for n in ("policy", "value model", "reference"))
    assert two.tokens == pytest.approx(one.tokens, rel=0.2)
    assert [str(mesh) for mesh in meshes(4)] == ["dp=4", "dp=2,fsdp=2", "fsdp=4"]
    with pytest.raises(UsageError, match="alignment slices no matrices"):
        best(plan, h100, [Mesh(tp=2)])
    with pytest.raises(UsageError, match="mesh dp=64 has 64 readers, and a step of this run has 4 examples"):
        best(plan, h100, [Mesh(dp=64)])


def test_rounds_and_recipes_are_planned_by_their_stages(home: Path) -> None:
    """Models that stages make are as large as the first; a reward model that one makes is there when it judges."""
    cpu, base = HARDWARE["cpu"], str(home / "base")
    rewards = (f"{home / 'reward.py'}:vowels",)
    changes = {"rounds.rounds": 2, "rounds.samples": 4, "rounds.tokens": 8}
    asked = Asked("rs", base, str(home / "prompts.jsonl"), rewards=rewards, template="plain", overrides=changes)
    drawn, learnt = [(stage, stage.needs(cpu, [Mesh()])) for stage in stages(asked)]
    assert isinstance(drawn[0].plan, Drawing) and drawn[1].answers == 40 * 4 and drawn[0].times == learnt[0].times == 2
    assert drawn[1].held == {"policy": learnt[1].held["policy"]} and (learnt[1].steps or 0) > 1
    with pytest.raises(UsageError, match="plan dpo or kto"):
        next(stages(Asked("loop", base)))


@pytest.mark.slow
@pytest.mark.parametrize("name", recipes.NAMES)
def test_published_recipes_are_planned(home: Path, tmp_path: Path, name: str) -> None:
    wide = SMALL | {"dims.context": 512, "recipe.batch": 512}
    text = str(home / "text.jsonl")
    stemma.pretrain("llama", data=text, out=tmp_path / "wide", budget="1 steps", overrides=wide, quiet=True)
    found = [(stage, stage.needs(HARDWARE["cpu"], [Mesh()])) for stage in stages(Asked(name, str(tmp_path / "wide")))]
    words = [word for word in recipes.words(name) if word != "gatt"]
    assert list(dict.fromkeys(stage.word.partition(",")[0] for stage, _ in found)) == words
    for stage, one in found:
        if not isinstance(stage.plan, Drawing) and isinstance(stage.plan.objective, Online):
            many = 2 if name == "llama2-chat" else 1
            assert one.held["reward models"] == many * one.held["policy"]


def test_the_command_says_it(home: Path, call: Any) -> None:  # noqa: F811
    words = ["dpo", "--from", str(home / "base"), "--data", str(home / "pairs.jsonl"), "--template", "plain"]
    code, out, err = call("plan", *words, "--lora", "4", "--budget", "2 epochs", "--price", "3")
    assert code == 0, err
    for said in ("of which", "held out", "policy", "optimiser (AdamW)", "gradients", "together", "s a step", "fits"):
        assert said in out, said
    code, out, _ = call("plan", *words, "--json", "--memory", "0.0001")
    data = json.loads(out)
    assert code == 5 and not data["fits"] and data["memory"] == data["stages"][0]["memory"] > 1e5
    for wrong, why in (
        (["dpo", "--data", "x"], "name the model that it begins from"),
        (["dpo", "--from", str(home / "base")], "give --data FILE"),
        (["--from", str(home / "base")], "a method or recipe such as dpo"),
        ([*words, "--scale", "mini"], "leave --scale out"),
    ):
        code, _, err = call("plan", *wrong)
        assert code == 2 and why in err and err.count("\n") == 1, err


@pytest.mark.slow
def test_steps_are_timed_here(home: Path, call: Any) -> None:  # noqa: F811
    words = ["ppo", "--from", str(home / "base"), "--data", str(home / "prompts.jsonl"), "--template", "plain"]
    words += ["--reward", f"{home / 'reward.py'}:vowels", "--probe", "--json"]
    sets = [
        part for key, value in (PLAIN | SAMPLED).items() for part in ("--set", f"{key}={value}".replace("None", "null"))
    ]
    code, out, err = call("plan", *words, *sets)
    assert code == 0, err
    (stage,) = json.loads(out)["stages"]
    assert 0 < stage["seconds"]["a step"] < 10 and stage["timed"] >= 5
