"""Published recipes as chains: their stages and numbers, and every one of them carried out small."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

import stemma
from stemma import samples
from stemma.alignment import chains, recipes
from stemma.errors import StemmaError, UsageError
from stemma.text import Specials, Tokenizer
from test_tune import SMALL


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny decoder that reads 128 tokens, and knows the words of the stand-ins."""
    folder = tmp_path_factory.mktemp("base")
    texts = [json.dumps(row) for name in ("questions", "dialogues", "harmless") for row in [*samples.rows(name)][:80]]
    tokenizer = Tokenizer.train("bpe", texts, 900, Specials(bos="<s>", eos="</s>", pad="<pad>", unk="<unk>"))
    torch.manual_seed(0)
    size = {**SMALL, "vocab_size": tokenizer.vocab_size, "max_position_embeddings": 160}
    hf.LlamaForCausalLM(hf.LlamaConfig(**size)).save_pretrained(folder)
    tokenizer.save(folder)
    return folder


def made(name: str, base: Path, full: bool, **changes: Any) -> dict[str, Any]:
    steps, _ = recipes.steps(name, str(base), full=full, changes=changes)
    ghost = full or "data" in changes.get("gatt", {})
    assert [step.word for step in steps] == [word for word in recipes.words(name) if ghost or word != "gatt"]
    return {step.word: step for step in steps}


def test_full_recipes_have_the_published_numbers(base: Path) -> None:
    steps = made("instructgpt", base, True)
    reward, first, ppo = steps["reward"], steps["ppo-init"], steps["ppo"]
    assert reward.overrides["recipe.lr"] == 9e-6 and reward.overrides["objective.centred"] and reward.start == "@1"
    assert first.data == "builtin:instructions@0.9,builtin:docs@0.1" and first.budget == "2 epochs"
    assert first.overrides["recipe.lr"] == 5e-6 and first.start == "@0"
    assert ppo.start == "@3" and ppo.rewards == ("@2",) and ppo.budget == "500 steps"
    want = {"kl": 0.02, "clip": 0.2, "gamma": 1.0, "prompts": 512, "minibatch": 64, "inner": 1, "temperature": 1.0}
    want |= {"ptx_weight": 27.8, "ptx_rows": 8.0}
    assert {key: ppo.overrides[f"objective.{key}"] for key in want} == want and ppo.overrides["train.average"] == 0.992
    assert "recipe.lr" not in ppo.overrides  # that of the released models is unpublished
    steps = made("llama2-chat", base, True)
    margins = steps["reward-safety"].overrides["objective.task.margins"]
    assert margins == (1, 2 / 3, 1 / 3, 0) and steps["reward-safety"].overrides["recipe.lr"] == 1e-5
    assert steps["rs"].rounds["rounds"] == 4 and steps["rs"].rounds["from_base"] and steps["rs"].base == "@0"
    ghost = steps["gatt"]  # Ghost Attention, after the rounds
    assert (ghost.what, ghost.start, ghost.settings, ghost.overrides["recipe.lr"]) == (
        "gatt", "@4", {"template": "llama-2-chat"}, 2e-5,
    )  # fmt: skip
    assert steps["ppo"].start == "@5" and steps["ppo"].rewards == ("safety-first:@2,@3",)
    assert steps["ppo"].overrides["recipe.lr"] == 1e-6 and steps["ppo"].overrides["recipe.schedule.shape"] == "constant"
    dpo = made("tulu2", base, True)["dpo"]
    assert dpo.overrides["objective.beta"] == 0.1 and dpo.overrides["recipe.lr"] == 5e-7 and dpo.budget == "3 epochs"
    chat = made("chatgpt", base, True)
    assert chat["sft"].stage is None and chat["ppo"].overrides == made("instructgpt", base, True)["ppo"].overrides


def test_scaled_recipes_are_small_and_changes_are_of_a_stage(base: Path) -> None:
    ppo = made("llama2-chat", base, False)["ppo"]
    assert ppo.overrides["recipe.lr"] == pytest.approx(2e-4 * 128 / 32) and ppo.overrides["objective.prompts"] == 32
    assert (
        ppo.overrides["objective.kl"] == 0.1
        and made("llama2-chat", base, True)["ppo"].overrides["objective.kl"] == 0.01
    )
    steps = made("llama2-chat", base, False, rs={"rounds.samples": 3, "data": "x.jsonl"}, ppo={"objective.kl": 0.3})
    assert steps["rs"].rounds["samples"] == 3 and steps["rs"].data == "x.jsonl" and "data" not in steps["rs"].overrides
    assert steps["ppo"].overrides["objective.kl"] == 0.3
    steps_, _ = recipes.steps("llama2-chat", str(base), full=True, changes={"gatt": {"data": "none"}})
    assert "gatt" not in [step.word for step in steps_] and steps_[-1].start == "@4"
    changed = {"data": "x.jsonl", "ghost.tokens": 7, "recipe.lr": 1e-3}
    ghost = made("llama2-chat", base, False, gatt=changed)["gatt"]
    assert ghost.data == "x.jsonl" and ghost.rounds["tokens"] == 7 and ghost.overrides["recipe.lr"] == 1e-3
    mine = {"sft": {"data": "mine.jsonl"}}  # later stages that learn demonstrations too learn those
    assert made("llama2-chat", base, False, **mine)["rs"].rounds["beside"] == "mine.jsonl"
    assert made("instructgpt", base, False, **mine)["ppo-init"].data == "mine.jsonl@0.9,builtin:docs@0.1"
    for change, why in (
        ({"overrides": {"objective.kl": 1}}, r"objective.kl is a setting of no stage; the stages are sft, reward-"),
        ({"data": "x.jsonl"}, r"give them as --set STAGE.data=FILE .*; the stages are sft, reward-helpfulness"),
        ({"lora": 4}, "an adapter of one is no model"),
        ({"rewards": ("builtin:words:2",)}, "are what it learns"),
        ({"reference": "x"}, "takes no reference"),
    ):
        with pytest.raises(UsageError, match=why):
            stemma.align("llama2-chat", start=str(base), out="none", **change)  # type: ignore[arg-type]
        assert not Path("none").exists()
    with pytest.raises(UsageError, match=r"published numbers .* are of the recipes instructgpt, chatgpt"):
        stemma.align("dpo", start=str(base), out="none", data="x", full=True)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("name", recipes.NAMES)
def test_every_stage_of_a_recipe_can_be_planned(tmp_path: Path, base: Path, name: str, full: bool) -> None:
    """A chain plans all of its stages before the first begins, and a setting that does not fit leaves nothing."""
    found, _ = recipes.steps(name, str(base), full=full)
    asked = {"name": name, "start": str(base), "seed": 1, "full": full, "steps": [asdict(step) for step in found]}
    chains.check(asked, tmp_path / "run")
    if full and name == "instructgpt":
        reward = next(step for step in found if step.what == "reward")
        assert reward.overrides["recipe.batch"] == 64 * 160
    if full:
        return
    wrong, _ = recipes.steps(name, str(base), changes={recipes.words(name)[-1]: {"recipe.no": 1}})
    with pytest.raises(StemmaError, match=r"recipe\.no"):
        chains.carry_out(name, str(base), wrong, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def brief(name: str) -> dict[str, Any]:
    """Changes by which every stage takes a moment."""
    words = recipes.words(name)
    changes: dict[str, Any] = {f"{word}.budget": "2 steps" for word in words}
    changes |= {f"{word}.data": "builtin:dialogues" for word in words if word == "sft"}
    if "rs" in words:
        changes |= {"rs.rounds.samples": 3, "rs.rounds.prompts": 8, "rs.rounds.tokens": 40}
    if "ppo" in words:
        sizes = {"prompts": 4, "minibatch": 4, "max_new_tokens": 8, "judged": 4}
        changes |= {f"ppo.objective.{key}": value for key, value in sizes.items()}
    return changes


@pytest.mark.parametrize(
    "name", ["tulu2", *(pytest.param(n, marks=pytest.mark.slow) for n in recipes.NAMES if n != "tulu2")]
)
def test_a_recipe_is_carried_out_and_goes_on_after_a_stop(tmp_path: Path, base: Path, name: str) -> None:
    out, steps = tmp_path / "run", 0

    def step(_: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == 3:  # in the second stage
            raise KeyboardInterrupt

    more: dict[str, Any] = {"start": str(base), "overrides": brief(name), "quiet": True}
    with pytest.raises(KeyboardInterrupt):
        stemma.align(name, out=out, on_step=step, **more)
    assert chains.begun(out) and (out / "stages" / "1" / "summary.json").is_file()
    run = stemma.align(name, out=out, resume=True, **more)
    assert run.finished and run.directory == out
    found = json.loads((out / "outcome.json").read_text())
    models = found["models"]
    assert (
        len(models) >= 2
        and models["SFT"]["kl"] == 0.0
        and found["stages"] == [w for w in recipes.words(name) if w != "gatt"]
    )
    assert all({"gold", "length", "ended", "kl"} <= {*one} for one in models.values())
    assert {"reward"} <= {*models["SFT"]} or name == "tulu2"
    trained = {row["prompt"] for row in samples.rows("questions")}
    assert not trained & {row["prompt"] for row in samples.rows("questions_held")}
