"""Runs: plans, exact accumulation, schedules, checkpoints, and that a killed run goes on as if nothing had happened."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import stemma
from stemma import disk, families, spec
from stemma.data import Store, sources
from stemma.declare.recipes import AdamW, Schedule
from stemma.errors import CheckpointError, DataError, ResourceError, UsageError, VerifyError
from stemma.nn.model import Model
from stemma.nn.parts import Causal, Dropout, Normal, Sliding
from stemma.runs import checkpoint
from stemma.runs.metrics import Metrics
from stemma.text import Tokenizer
from stemma.train import (
    SCALES,
    Diverged,
    Loop,
    Plan,
    Run,
    assemble,
    budget,
    meter,
    optim,
    overrides,
    prepare,
    pretrain,
    read_metrics,
    resolve,
    resume,
    scaled,
    verify_resume,
)
from stemma.train.evaluation import evaluate, sample
from stemma.train.source import TextSource

TRAINED = ["gpt1", "gpt2", "gpt3", "llama", "mistral", "bert", "roberta", "electra", "t5", "t5-v1.1"]
SMALL = {
    "dims.d_model": 32,
    "dims.layers": 1,
    "dims.heads": 2,
    "dims.kv_heads": None,
    "dims.d_ff": 64,
    "dims.vocab": 500,
    "dims.context": 32,
    "recipe.batch": 128,
    "train.eval_tokens": 400,
    "train.threads": 1,
    "train.precision": "fp32",
}


def words(n: int = 120) -> list[str]:
    rng = random.Random(5)
    nouns, verbs = (
        ["cat", "dog", "bird", "king", "river", "stone", "tree", "house", "star", "road"],
        ["sees", "finds", "keeps", "hears", "loves"],
    )

    def sentence() -> str:
        return f"The {rng.choice(nouns)} {rng.choice(verbs)} the {rng.choice(nouns)} and the {rng.choice(nouns)}."

    return [" ".join(sentence() for _ in range(rng.randint(2, 9))) for _ in range(n)]


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small texts."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in words()), "utf-8")
    return folder / "rows.jsonl"


def train(name: str, out: Path, text: Path, steps: int = 6, changes: dict[str, Any] | None = None, **more: Any) -> Run:
    return pretrain(
        name,
        data=str(text),
        out=out,
        budget=f"{steps} steps",
        overrides={**SMALL, **(changes or {})},
        quiet=True,
        **more,
    )


def losses(run: Path) -> list[float]:
    return [r["loss"] for r in read_metrics(run)]


@pytest.fixture(scope="session")
def ready(tmp_path_factory: pytest.TempPathFactory, text: Path) -> dict[str, Run]:
    """A finished run of each kind of objective."""
    home = tmp_path_factory.mktemp("runs")
    return {name: train(name, home / name, text) for name in ("gpt2", "bert", "t5")}


def loop_of(run: Run, **changes: Any) -> Loop:
    plan = spec.edit(run.plan, changes)
    _, tokenizer, store = prepare.reopen(run.directory)
    train, _ = prepare.split(plan, store)
    objective = assemble.objective_of(plan, tokenizer)
    source, nets = TextSource(plan, objective, train), assemble.nets_of(plan, tokenizer)
    return Loop(plan, assemble.model_of(plan, tokenizer), objective, source, nets)


# ---------------------------------------------------------------- plans


@pytest.mark.parametrize(
    ("written", "field", "amount"),
    [
        ("30m", "seconds", 1800),
        ("2h", "seconds", 7200),
        ("45s", "seconds", 45),
        ("1h30m", "seconds", 5400),
        ("1.5 h", "seconds", 5400),
        ("20M tokens", "tokens", 20e6),
        ("900k tokens", "tokens", 9e5),
        ("1e15 flops", "flops", 1e15),
        ("50 steps", "steps", 50),
        ("1 step", "steps", 1),
    ],
)
def test_budgets(written: str, field: str, amount: float) -> None:
    assert getattr(budget(written), field) == amount
    assert sum(v is not None for v in vars(budget(written)).values()) == 1


@pytest.mark.parametrize(
    "wrong", ["", "30", "tokens", "-5m", "0 steps", "5 parsecs", "1.5 steps", "0s", "1..5h", "20M"]
)
def test_wrong_budgets(wrong: str) -> None:
    with pytest.raises(UsageError, match="budget"):
        budget(wrong)


@pytest.mark.parametrize("name", ["llama", "bert", "t5"])
def test_any_misspelt_key_is_refused_with_the_right_one(name: str) -> None:
    plan = resolve(name)
    paths = {path for path, _ in spec.leaves(plan)}
    paths |= {".".join(p.split(".")[:i]) for p in paths for i in range(1, p.count(".") + 1)}
    for path in sorted(paths):
        parent, _, key = path.rpartition(".")
        middle = len(key) // 2
        typo = key[:middle] + "z" + key[middle + 1 :]
        wrong = f"{parent}.{typo}" if parent else typo
        with pytest.raises(UsageError, match=f"did you mean '{key}'"):
            resolve(name, overrides={wrong: "1"})


def test_values_are_checked_as_they_are_set() -> None:
    with pytest.raises(UsageError, match=r"recipe\.lr must be positive") as caught:
        resolve("llama", overrides={"recipe.lr": "-1"})
    assert "\n" not in str(caught.value)
    plan = resolve("llama", overrides={"arch.norm.eps": "1e-5", "train.save_every": "10", "recipe.lr": "1e-3"})
    assert (spec.get(plan, "arch.norm.eps"), plan.train.save_every, plan.recipe.lr) == (1e-5, 10, 1e-3)
    assert resolve("llama", overrides={"recipe.steps": 7}).train.budget == "7 steps"
    with pytest.raises(UsageError, match="unpublished"):
        resolve("gpt2", scale="full")
    with pytest.raises(UsageError, match="exceeds"):
        resolve("gpt2", overrides={"train.context": 4096})
    with pytest.raises(UsageError, match="did you mean 'tiny'"):
        resolve("gpt2", scale="tinny")
    for path, bad in (
        ("train.val_fraction", "2"),
        ("train.keep", "0"),
        ("train.precision", "fp8"),
        ("train.micro", "0"),
    ):
        with pytest.raises(UsageError):
            resolve("gpt2", overrides={path: bad})


def test_settings_files(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "train: {save_every: 10, budget: 2h}\narch.norm.eps: 1.0e-5\narch: {position: {kind: Rotary, base: 5.0e5}}\n"
    )
    (tmp_path / "a.toml").write_text(
        'arch.norm.eps = 1e-5\n[train]\nsave_every = 10\nbudget = "2h"\n[arch.position]\nkind = "Rotary"\nbase = 5e5\n'
    )
    found = [overrides(tmp_path / f"a.{kind}") for kind in ("yaml", "toml")]
    assert resolve("llama", overrides=found[0]) == resolve("llama", overrides=found[1])
    plan = resolve("llama", overrides=found[0])
    assert plan.train.budget == "2h" and spec.get(plan, "arch.position.base") == 5e5
    (tmp_path / "b.yaml").write_text("- 1\n")
    (tmp_path / "c.yaml").write_text("a: [\n")
    for name in ("b.yaml", "c.yaml", "missing.yaml"):
        with pytest.raises(UsageError):
            overrides(tmp_path / name)


@pytest.mark.parametrize("name", TRAINED)
def test_a_plan_is_plain_data(name: str) -> None:
    plan = resolve(name)
    assert spec.from_dict(Plan, json.loads(json.dumps(spec.to_dict(plan)))) == plan


# ---------------------------------------------------------------- scales


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("scale", list(SCALES))
def test_a_scale_keeps_what_the_family_chose(name: str, scale: str) -> None:
    old, new = families.design(name), scaled(families.design(name), scale)
    assert new.dims.d_ff / new.dims.d_model == pytest.approx(old.dims.d_ff / old.dims.d_model, rel=0.06)
    assert new.dims.heads % new.dims.kv == 0 and (new.dims.kv < new.dims.heads) == (old.dims.kv < old.dims.heads)
    assert type(new.arch.mask) is type(old.arch.mask) and new.dims.context <= old.dims.context
    assert {c.path.split(".")[0] for c in spec.diff(old.arch, new.arch)} <= {"mask", "init"}
    assert {c.path for c in spec.diff(old.arch.init, new.arch.init)} <= {"std", "positions"}
    if isinstance(new.arch.init, Normal):  # a sum of d_model products is as wide as at the published width, or at 768
        suited = max(new.dims.d_model, min(768, old.dims.d_model))
        assert new.arch.init.std**2 * new.dims.d_model == pytest.approx(0.02**2 * suited)
    corrected = {"corrected": True} if isinstance(old.recipe.optimizer, AdamW) else {}
    assert new.recipe.optimizer == replace(old.recipe.optimizer, **corrected)
    assert new.recipe.schedule.shape == old.recipe.schedule.shape
    assert scaled(old, "full") == old
    if isinstance(new.arch.mask, Sliding):
        assert new.arch.mask.window < new.dims.context


@pytest.mark.parametrize("name", TRAINED)
def test_tiny_is_tiny(name: str) -> None:
    plan = resolve(name)
    model = Model(plan.arch, plan.dims)
    body = sum(p.numel() for n, p in model.named_parameters() if p.ndim == 2 and p.shape[0] != plan.dims.vocab)
    assert 0.8e6 < body < 2.2e6 and plan.context == 128


# ---------------------------------------------------------------- optimisers and schedules


def test_schedules() -> None:
    def rates(shape: Any, warmup: int = 10, floor: float = 0.0) -> list[float]:
        return [optim.learning_rate(Schedule(shape, warmup, floor), 1.0, s, 100) for s in range(1, 101)]

    for shape in ("linear", "cosine"):
        r = rates(shape, floor=0.1)
        assert all(a < b for a, b in itertools.pairwise(r[:10])) and max(r) <= 1.0
        assert all(a > b for a, b in itertools.pairwise(r[10:])) and r[-1] == pytest.approx(0.1)
        assert rates(shape, 0)[-1] == 0.0
    assert rates("cosine", 0)[49] == pytest.approx(0.5)
    assert rates("linear", 0)[24] == pytest.approx(0.75)
    assert rates("constant")[10:] == [1.0] * 90
    r = rates("rsqrt")
    assert r[:10] == [1.0] * 10 and r[39] == pytest.approx(0.5)  # T5: 1/sqrt(max(n, warmup)), up to a factor


# ---------------------------------------------------------------- the loop


@pytest.mark.parametrize("name", ["gpt2", "bert", "t5"])
def test_any_split_into_micro_batches_gives_the_same_gradient(ready: dict[str, Run], name: str) -> None:
    found = []
    for micro in (8, 3, 1):
        loop = loop_of(ready[name], **{"train.micro": micro, "recipe.batch": 256, "arch.dropout": Dropout()})
        total, _, _ = loop.gradient(loop.batches()[0])
        found.append((total, torch.cat([p.grad.flatten() for p in loop.parameters if p.grad is not None])))
    for total, grad in found[1:]:
        assert total.item() == pytest.approx(found[0][0].item(), abs=1e-6)
        assert (grad - found[0][1]).abs().max() < 1e-6


def test_dropout_draws_anew_in_each_step_and_micro_batch(ready: dict[str, Run]) -> None:
    loop = loop_of(ready["gpt2"], **{"arch.dropout": Dropout(residual=0.3)})
    batch = loop.batches()[0][0]

    def loss(step: int, number: int) -> float:
        loop.step = step
        return next(iter(loop._loss(batch, number).sums.values())).item()

    found = {(step, number): loss(step, number) for step in range(3) for number in range(2)}
    assert len(set(found.values())) == len(found)
    assert all(loss(*at) == value for at, value in found.items())  # and alike whenever the step is made again


@pytest.mark.parametrize("name", ["gpt2", "bert", "t5"])
def test_two_runs_of_a_seed_are_one(ready: dict[str, Run], text: Path, tmp_path: Path, name: str) -> None:
    assert losses(train(name, tmp_path / "b", text).directory) == losses(ready[name].directory)
    if name == "gpt2":
        assert losses(train(name, tmp_path / "c", text, seed=2).directory) != losses(ready[name].directory)


def test_a_run_that_diverges_says_where(ready: dict[str, Run]) -> None:
    loop = loop_of(ready["gpt2"])
    loop.advance()
    before = {k: v.clone() for k, v in loop.model.state_dict().items()}
    with torch.no_grad():
        loop.model.decoder.blocks[0].mlp.up.bias[0] = math.nan  # type: ignore[union-attr,index]
    with pytest.raises(Diverged, match="step 2"):
        loop.advance()
    assert torch.equal(loop.model.embed.tokens.weight, before["embed.tokens.weight"])


def test_the_loss_falls_below_the_unigram_model(text: Path, tmp_path: Path) -> None:
    run = train("llama", tmp_path / "run", text, 60, {"recipe.lr": 1e-2})
    assert run.summary["val"]["bits_per_byte"] < 0.8 * run.summary["baselines"]["unigram_bits_per_byte"]
    assert losses(run.directory)[-1] < 0.7 * losses(run.directory)[0]


def test_clipping_limits_the_step(ready: dict[str, Run]) -> None:
    loop = loop_of(ready["gpt2"], **{"recipe.clip": 1e-3})
    loop.gradient(loop.batches()[0])
    norm = torch.nn.utils.clip_grad_norm_(loop.parameters, 1e-3)
    assert norm > 1e-3
    assert torch.nn.utils.get_total_norm([p.grad for p in loop.parameters if p.grad is not None]) < 1.01e-3


def test_bf16_stays_near_fp32(ready: dict[str, Run]) -> None:
    a, b = loop_of(ready["gpt2"]), loop_of(ready["gpt2"], **{"train.precision": "bf16"})
    for _ in range(3):
        x, y = a.advance(), b.advance()
    assert x["loss"] == pytest.approx(y["loss"], rel=0.02) and x["loss"] != y["loss"]


# ---------------------------------------------------------------- what a run leaves


def test_a_run_is_complete(ready: dict[str, Run]) -> None:
    for name, run in ready.items():
        home = run.directory
        about = json.loads((home / "run.json").read_text())
        assert spec.from_dict(Plan, about["plan"]) == run.plan
        assert about["parameters"] == sum(p.numel() for p in run.model.parameters())
        assert {"stemma", "torch", "python"} <= set(about["versions"]) and about["data"]["fingerprint"]
        records = read_metrics(home)
        assert [r["step"] for r in records] == list(range(1, 7))
        assert all({"loss", "tokens", "seconds", "lr", "grad_norm"} <= set(r) for r in records)
        assert ("loss_pair" in records[0]) == (name == "bert")
        assert len(checkpoint.steps(home)) == 2 and checkpoint.latest(home).name == "step-000006"  # type: ignore[union-attr]
        summary = json.loads((home / "summary.json").read_text())
        assert summary == json.loads(json.dumps(run.summary))
        key = "bits_per_byte" if name == "gpt2" else "bits_per_target_byte"
        assert math.isfinite(summary["val"][key]) and summary["baselines"]["xz_bits_per_byte"] > 0
        assert not list(home.rglob("*.tmp")) and not list(home.rglob("*.pt"))


def test_a_summary_says_what_was_passed_over(text: Path, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "rows.jsonl").write_text(text.read_text("utf-8"), "utf-8")
    (tmp_path / "texts" / "none.txt").write_text("")
    run = train("gpt2", tmp_path / "run", tmp_path / "texts", 1)
    about = json.loads((tmp_path / "run" / "run.json").read_text("utf-8"))
    assert run.summary["notes"] == about["data"]["notes"] and "none.txt" in run.summary["notes"][0]


def test_the_model_of_a_run_loads(ready: dict[str, Run]) -> None:
    import stemma

    for name, run in ready.items():
        model = stemma.load(run.directory / "model")
        assert model.family.name == name
        ours, theirs = run.model.state_dict(), model.state_dict()
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
        assert model.tokenizer.vocab_size == run.plan.dims.vocab


def test_bits_per_byte_are_exact(ready: dict[str, Run]) -> None:
    """Against one plain pass over each document."""
    run = ready["gpt2"]
    _, tokenizer, store = prepare.reopen(run.directory)
    _, held = prepare.split(run.plan, store)
    held = sample(held, 400)
    # a context longer than any document, so that windows cut none
    longest = max(len(held[i]) for i in range(len(held)))
    plan = spec.edit(run.plan, {"dims.context": longest + 2})
    model = Model(plan.arch, plan.dims).initialise(3).eval()
    found = evaluate(model, assemble.objective_of(plan, tokenizer), held)
    # a document cut by a row boundary loses its context there; so compare with rows of one document each
    nats = 0.0
    eos = tokenizer.eos_id
    for i in range(len(held)):
        ids = torch.tensor([[eos, *held[i].tolist()]])
        goal = torch.tensor([*held[i].tolist(), eos])
        with torch.no_grad():
            nats += torch.nn.functional.cross_entropy(model(ids).logits[0], goal, reduction="sum").item()
    exact = nats / math.log(2) / held.bytes_total
    assert found["bits_per_byte"] == pytest.approx(exact, rel=0.02)
    assert found["targets"] == held.tokens_total + len(held)


def test_a_foreign_directory_is_left_alone(ready: dict[str, Run], text: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds a run already"):
        train("gpt2", ready["gpt2"].directory, text)
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(UsageError, match="not empty"):
        train("gpt2", tmp_path, text)
    with pytest.raises(UsageError, match="is a file"):
        train("gpt2", tmp_path / "mine.txt", text)
    with pytest.raises(UsageError):
        train("gpt2", tmp_path / "new", text, changes={"recipe.lr": -1})
    assert not (tmp_path / "new").exists()
    with pytest.raises(CheckpointError, match="no run"):
        resume(tmp_path)
    again = resume(ready["gpt2"].directory, quiet=True)
    assert again.finished and again.summary == ready["gpt2"].summary


def test_a_tokenizer_can_be_given(ready: dict[str, Run], text: Path, tmp_path: Path) -> None:
    words = Tokenizer.load(ready["gpt2"].directory / "tokenizer")
    own = {"dims.vocab": words.vocab_size}
    run = train("gpt2", tmp_path / "run", text, changes=own, tokenizer=words)
    assert losses(run.directory) == losses(ready["gpt2"].directory)


def test_a_given_tokenizer_can_be_padded(ready: dict[str, Run], text: Path, tmp_path: Path) -> None:
    words = Tokenizer.load(ready["gpt2"].directory / "tokenizer")
    run = train("gpt2", tmp_path / "run", text, 2, {"dims.vocab": 1024}, tokenizer=words)
    assert run.plan.dims.vocab == 1024
    model = stemma.load(run.directory / "model")
    assert model.dims.vocab == 1024 and model.tokenizer.fingerprint == words.fingerprint
    small = words.vocab_size - 1
    with pytest.raises(UsageError, match=f"dims.vocab={small} is less than the {small + 1} entries of the tokenizer"):
        train("gpt2", tmp_path / "small", text, changes={"dims.vocab": small}, tokenizer=words)
    assert not (tmp_path / "small").exists()


def test_time_and_compute_budgets(text: Path, tmp_path: Path) -> None:
    def run(name: str, limit: str) -> Run:
        return pretrain("gpt2", data=str(text), out=tmp_path / name, budget=limit, overrides=SMALL, quiet=True)

    begin = time.monotonic()
    timed = run("time", "2s")
    assert time.monotonic() - begin < 20 and len(read_metrics(timed.directory)) == timed.summary["steps"] > 2
    plan = json.loads((tmp_path / "time" / "run.json").read_text())["plan"]
    assert plan["recipe"]["steps"] == timed.plan.recipe.steps > 2 and 0 < plan["train"]["seconds"] < 2
    assert run("tokens", "1k tokens").summary["tokens"] == 1024
    flops = meter.flops(timed.model, 32)
    assert run("flops", f"{flops * 128 * 5:.0f} flops").summary["steps"] == 5


def test_evaluation_on_the_way_changes_nothing(ready: dict[str, Run], text: Path, tmp_path: Path) -> None:
    run = train("gpt2", tmp_path / "run", text, changes={"train.eval_every": 2})
    records = read_metrics(run.directory)
    assert [r["loss"] for r in records] == losses(ready["gpt2"].directory)
    assert ["val_bits_per_byte" in r for r in records] == [False, True, False, True, False, False]


def test_tensorboard_on_request(text: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    train("gpt2", tmp_path / "run", text, 2, {"train.tensorboard": True})
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_curves_in_tensorboard_have_one_point_a_step_after_going_back(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Metrics(tmp_path / "metrics.jsonl", 0, True) as metrics:
        for step in range(1, 6):
            metrics.write({"step": step, "loss": float(step)})
        metrics.reopen(2)
        for step in range(3, 5):
            metrics.write({"step": step, "loss": step + 0.5})
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [(point.step, point.value) for point in board.Scalars("loss")] == [(1, 1), (2, 2), (3, 3.5), (4, 4.5)]


# ---------------------------------------------------------------- stopping and going on


class Stop(Exception):
    pass


@pytest.mark.parametrize("name", ["gpt2", "bert", "t5"])
@pytest.mark.parametrize("at", [1, 4])
def test_an_interrupted_run_goes_on_bit_for_bit(
    ready: dict[str, Run], text: Path, tmp_path: Path, name: str, at: int
) -> None:
    def stop(record: dict[str, Any]) -> None:
        if record["step"] == at:
            raise Stop

    with pytest.raises(Stop):
        train(name, tmp_path / "run", text, changes={"train.save_every": 2}, on_step=stop)
    done = train(name, tmp_path / "run", text, changes={"train.save_every": 2}, resume=True)
    assert done.finished and losses(done.directory) == losses(ready[name].directory)
    ours, theirs = done.model.state_dict(), ready[name].model.state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert [r["tokens"] for r in read_metrics(done.directory)] == [128 * s for s in range(1, 7)]


def test_a_signal_stops_after_the_step_with_a_checkpoint(ready: dict[str, Run], text: Path, tmp_path: Path) -> None:
    def ask(record: dict[str, Any]) -> None:
        if record["step"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    run = train("gpt2", tmp_path / "run", text, changes={"train.save_every": 100}, on_step=ask)
    assert signal.getsignal(signal.SIGTERM) is before
    assert not run.finished and run.step == 3 and not (tmp_path / "run" / "summary.json").exists()
    assert checkpoint.latest(run.directory).name == "step-000003"  # type: ignore[union-attr]
    assert losses(resume(run.directory, quiet=True).directory) == losses(ready["gpt2"].directory)


def test_a_step_without_a_target_is_refused(ready: dict[str, Run]) -> None:
    plan, tokenizer, store = prepare.reopen(ready["bert"].directory)
    loop = assemble.loop_of(plan, tokenizer, store)
    (batches,) = loop.batches()
    for batch in batches:
        batch["targets"], batch["where"] = batch["targets"][:0], batch["targets"][:0]
    with pytest.raises(DataError, match="step 1 has nothing to predict"):
        loop.gradient(batches)


def test_verify_resume(ready: dict[str, Run], monkeypatch: pytest.MonkeyPatch) -> None:
    for run in ready.values():
        assert verify_resume(run.directory, 4)["identical"]
    good = Loop.restore

    def forgetful(self: Loop, path: Path) -> None:
        good(self, path)
        self.cursor = replace(self.cursor, slot=0, offset=0)

    monkeypatch.setattr(Loop, "restore", forgetful)
    with pytest.raises(VerifyError, match="step 3"):
        verify_resume(ready["gpt2"].directory, 4)


def test_metrics_lose_what_no_checkpoint_holds(ready: dict[str, Run], tmp_path: Path) -> None:
    from stemma.runs.metrics import Metrics

    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": s}) + "\n" for s in range(1, 6)) + '{"step": 6, "lo')
    with Metrics(path, 4, False) as metrics:
        metrics.write({"step": 5, "loss": 1.0})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4, 5]


def test_damage_is_named(ready: dict[str, Run], tmp_path: Path) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(ready["gpt2"].directory, run)
    shutil.rmtree(run / "model")
    last = checkpoint.latest(run)
    assert last is not None
    (last / "model.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(CheckpointError, match="damaged"):
        resume(run, quiet=True)
    about = json.loads((run / "run.json").read_text())
    about["data"]["fingerprint"] = "other"
    (run / "run.json").write_text(json.dumps(about))
    with pytest.raises(CheckpointError, match="not the text"):
        resume(run, quiet=True)
    (run / "run.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"run[.]json"):
        resume(run, quiet=True)


def test_a_full_disk_leaves_no_half_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    checkpoint.save(tmp_path, (0, 1), {"a": torch.ones(2)}, {}, {"step": 1}, 2)
    monkeypatch.setattr(checkpoint.os, "replace", full)
    with pytest.raises(ResourceError, match="the disk is full; free some space and go on with: stemma resume"):
        checkpoint.save(tmp_path, (0, 2), {"a": torch.ones(2)}, {}, {"step": 2}, 2)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]
    with pytest.raises(ResourceError, match="the disk is full; free some space and run the command again"):
        disk.write(tmp_path / "x.json", "{}")
    assert not (tmp_path / "x.json").exists()


@pytest.mark.slow
def test_a_compiled_run_learns_the_same(ready: dict[str, Run]) -> None:
    """Without dropout: compiled code draws other random numbers."""
    still = {"arch.dropout": "Dropout()"}
    a, b = loop_of(ready["gpt2"], **still), loop_of(ready["gpt2"], **still, **{"train.compile": True})
    for _ in range(3):
        assert a.advance()["loss"] == pytest.approx(b.advance()["loss"], abs=1e-4)


# ---------------------------------------------------------------- counting


def test_flops_agree_with_a_count_by_hand() -> None:
    plan = resolve("llama")
    model, d = Model(plan.arch, plan.dims), plan.dims
    block = 4 * d.d_model**2 + 3 * d.d_model * d.d_ff
    by_hand = 6 * (d.layers * block + d.vocab * d.d_model) + 12 * d.layers * d.d_model * 128 / 2
    assert meter.flops(model, 128) == pytest.approx(by_hand)
    assert isinstance(plan.arch.mask, Causal)


def test_flops_of_an_encoder_decoder_agree_with_a_count_by_hand() -> None:
    plan = resolve("t5")
    model, d = Model(plan.arch, plan.dims), plan.dims
    width, square, mlp = d.heads * d.width, 4 * d.d_model * d.heads * d.width, 2 * d.d_model * d.d_ff
    read = d.layers * (square + mlp) + d.depth * square / 2  # its keys and values are for what was read
    written = d.depth * (1.5 * square + mlp)
    seen = 12 * width * (d.layers * 128 + 0.25 * d.depth * (32 / 2 + 128))
    by_hand = 6 * (read + 0.25 * (written + d.vocab * d.d_model)) + seen
    assert meter.flops(model, 128, 0.25, 0.25) == pytest.approx(by_hand)


def test_texts_of_training_and_evaluation_are_apart(tmp_path: Path, ready: dict[str, Run]) -> None:
    _, tokenizer, _ = prepare.reopen(ready["gpt2"].directory)
    store = Store.build(sources.of(words()), tokenizer, tmp_path / "store")
    train, held = store.split(0.1, 3)
    assert not {train.text(i) for i in range(len(train))} & {held.text(i) for i in range(len(held))}
    small = sample(held, 100)
    assert 0 < len(small) < len(held) and small.tokens_total >= 100
