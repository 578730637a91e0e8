"""Batches that grow: the published ones, runs over them, and the steps that a budget buys."""

from __future__ import annotations

import itertools
import json
import random
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stemma import families, spec
from stemma.declare import ramps
from stemma.declare.ramps import Ramp
from stemma.declare.recipes import Recipe, Sampling
from stemma.errors import UsageError
from stemma.parallel import Mesh
from stemma.planning import HARDWARE, Outlook, estimate
from stemma.planning.estimate import duration, steps_within, unfit
from stemma.planning.search import rounded
from stemma.runs import checkpoint
from stemma.runs.spikes import Spikes
from stemma.train import Loop, Plan, assemble, budgets, prepare, pretrain, read_metrics, resolve, resume, verify_resume
from stemma.train.sharded import Sharded
from stemma.train.source import DummyBatch, TextSource
from test_cli import call  # noqa: F401
from test_train import SMALL, loop_of, text, train  # noqa: F401

GROWING = Ramp(((0.0, 0.125), (0.6, 1.0)), "power")
ROWS = [1, 2, 2, 4, 6, 8, 8, 8]  # 8 ** (step / 4.8), rounded: of a run of eight steps, whose full batch has eight
CHANGES = {"recipe.batch": 256, "recipe.ramp": GROWING, "train.save_every": 1, "train.keep": 20}


# ---------------------------------------------------------------- what was published


def read(name: str, until: float) -> float:
    """Tokens of a published run up to the share `until` of its steps, step by step."""
    design = families.design(name)
    recipe, context = design.recipe, design.dims.context
    assert recipe.batch is not None and recipe.steps is not None and recipe.ramp is not None
    full = round(recipe.batch / context)
    steps = range(round(until * recipe.steps))
    return context * sum(recipe.ramp.examples(full, step, recipe.steps) for step in steps)


def test_the_ramp_of_palm() -> None:
    """Chowdhery et al. 2022, section 5: 512 rows up to step 50,000, 1024 up to 115,000, 2048 up to 255,000."""
    recipe = families.design("palm-540b").recipe
    assert recipe.steps is not None
    assert ramps.stretches(recipe.ramp, 2048, recipe.steps) == ((512, 50_000), (1024, 65_000), (2048, 140_000))
    tokens = [2048 * size * count for size, count in ramps.stretches(recipe.ramp, 2048, recipe.steps)]
    assert tokens == pytest.approx([52.4e9, 136.3e9, 587.2e9], rel=1e-3)
    assert all(families.design(size).recipe.ramp is None for size in ("palm-8b", "palm-62b"))


@pytest.mark.parametrize("name", list(families.family("gpt3").sizes))
def test_the_ramps_of_gpt3(name: str) -> None:
    """Brown et al. 2020, appendix B: from 32k tokens over 4 to 12 billion, 375 million of warm-up, a cosine over 260 of
    300 billion. A row has 2048 tokens, so a batch of half a million is met to 0.1 %."""
    recipe = families.design(name).recipe
    assert recipe.ramp is not None and recipe.batch is not None and recipe.steps is not None
    over = {500_000: 4e9, 1_000_000: 5.48e9, 2_000_000: 8.44e9, 3_200_000: 12e9}[recipe.batch]
    assert recipe.ramp.points[0][1] * recipe.batch == pytest.approx(32_000)
    assert read(name, recipe.ramp.points[1][0]) == pytest.approx(over, rel=3e-3)
    assert read(name, recipe.schedule.warmup / recipe.steps) == pytest.approx(375e6, rel=1e-2)
    assert read(name, recipe.schedule.until) == pytest.approx(260e9, rel=1e-3)
    assert read(name, 1.0) == pytest.approx(300e9, rel=1e-3)


def test_a_power_of_the_steps_is_a_line_of_the_tokens() -> None:
    recipe = families.design("gpt3-175b").recipe
    assert recipe.ramp is not None and recipe.steps is not None
    full = 1562
    sizes = [recipe.ramp.examples(full, step, recipe.steps) for step in range(recipe.steps)]
    tokens = list(itertools.accumulate(2048 * size for size in sizes))
    for share in (0.1, 0.25, 0.5, 0.75):
        step = next(i for i, n in enumerate(tokens) if n >= share * 12e9)
        assert 2048 * sizes[step] == pytest.approx(32e3 + share * (3.2e6 - 32e3), rel=5e-3)


def test_the_ramp_of_glm_130b() -> None:
    """Zeng et al. 2022: from 192 to 4224 rows over the first 2.5 % of the samples."""
    recipe = families.design("glm-130b").recipe
    assert recipe.ramp is not None and recipe.batch == 4224 * 2048
    steps = 50_000
    sizes = [recipe.ramp.examples(4224, step, steps) for step in range(steps)]
    assert sizes[0] == 192 and sizes[-1] == 4224
    assert sum(n for n in sizes if n < 4224) / sum(sizes) == pytest.approx(0.025, rel=1e-2)


def test_descendants_say_so_themselves() -> None:
    kept = {"gpt3", "palm", "glm-130b"}
    found = {f.name for f in families.tree().values() if any(f[size].recipe.ramp for size in f)}
    assert found == kept


# ---------------------------------------------------------------- counting


def some() -> list[Ramp]:
    draw, found = random.Random(1), []
    for between in ("steps", "line", "power"):
        for _ in range(4):
            count = draw.randint(1, 3)
            times = sorted(draw.uniform(0.01, 0.99) for _ in range(count))
            shares = sorted(draw.uniform(0.01, 0.99) for _ in range(count))
            points = tuple(zip([0.0, *times], [*shares, 1.0], strict=True))
            found.append(Ramp(points, between, draw.choice((1, 2, 3))))  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("ramp", some(), ids=str)
@pytest.mark.parametrize("full", [1, 50])
def test_stretches_and_budgets_are_those_of_single_steps(ramp: Ramp, full: int) -> None:
    totals = [0.0]
    for steps in range(1, 80):
        sizes = [ramp.examples(full, step, steps) for step in range(steps)]
        assert sizes == sorted(sizes) and sizes[0] >= 1 and sizes[-1] <= full
        assert all(size % ramp.multiple == 0 for size in sizes if size < full)
        runs_of = [(size, len(list(equal))) for size, equal in itertools.groupby(sizes)]
        assert list(ramps.stretches(ramp, full, steps)) == runs_of
        assert sum(sizes) > totals[-1]
        totals.append(float(sum(sizes)))
    for limit in (1, 7, totals[30], totals[30] + 0.5, totals[60] - 0.5):
        most = max(n for n, whole in enumerate(totals) if whole <= limit or n == 1)
        assert ramps.longest(ramp, full, limit) == most
        close = ramps.nearest(ramp, full, limit / full)
        assert abs(totals[close] - limit) == min(abs(whole - limit) for whole in totals[1:])
    assert ramps.longest(ramp, full, 100.0, lambda n: 0.3 + n) == max(
        n for n, whole in enumerate(totals) if whole + 0.3 * n <= 100 or n == 1
    )


def test_after_its_end_a_batch_is_full() -> None:
    assert [GROWING.examples(8, step, 8) for step in range(11)] == [*ROWS, 8, 8, 8]
    assert ramps.stretches(None, 8, 5) == ((8, 5),) and ramps.nearest(None, 8, 5.4) == 5


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("Ramp(points=((0, 1),))", "at least two"),
        ("Ramp(points=((0.1, 0.5), (0.2, 1)))", "begin with the share 0 of the steps"),
        ("Ramp(points=((0, 0.5), (1, 1)))", "end before the last step"),
        ("Ramp(points=((0, 0), (0.5, 1)))", "above 0"),
        ("Ramp(points=((0, 0.5), (0.5, 0.9)))", "end with the share 1 of the batch, not 0.9"),
        ("Ramp(points=((0, 0.5), (0.5, 0.4), (0.6, 1)))", r"must rise, not go from \(0.0, 0.5\) to \(0.5, 0.4\)"),
        ("Ramp(points=((0, 0.5), (0.5, 0.7), (0.5, 1)))", "must rise"),
        ("Ramp(points=((0, 0.5), (0.5, 1)), multiple=0)", "multiple must be at least 1, not 0"),
        ("Ramp(points=((0, 0.5), (0.5, 1)), between=curve)", "between='curve' does not fit"),
        ("Ramp(points=(0, 0.5))", "does not fit"),
    ],
)
def test_what_is_no_ramp_is_refused(written: str, why: str) -> None:
    with pytest.raises(UsageError, match=why) as caught:
        resolve("gpt2", overrides={"recipe.ramp": written})
    assert "\n" not in str(caught.value)


def test_batches_of_one_language_need_one_size() -> None:
    with pytest.raises(UsageError, match=r"sampling.unit=batch counts on one"):
        Recipe(ramp=GROWING, sampling=Sampling(unit="batch"))
    with pytest.raises(UsageError, match=r"take turns batch by batch.*recipe.ramp=none"):
        resolve("xlm", overrides={"recipe.ramp": GROWING, "recipe.sampling.unit": "row", "objective": "TLM"})


def test_a_scale_keeps_the_ramp_and_a_plan_writes_it() -> None:
    plan = resolve("gpt3-175b")
    assert plan.recipe.ramp == families.design("gpt3-175b").recipe.ramp is not None
    assert spec.from_dict(Plan, json.loads(json.dumps(spec.to_dict(plan)))) == plan
    written = "Ramp(points=((0, 0.125), (0.6, 1)), between=power)"
    assert resolve("gpt2", overrides={"recipe.ramp": written}).recipe.ramp == GROWING
    assert resolve("gpt3-175b", overrides={"recipe.ramp": "none"}).recipe.ramp is None


# ---------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Any:  # noqa: F811
    """A run of eight steps with dropout, and the records of its steps without the clock."""
    changes = CHANGES | {"arch.dropout": "Dropout(residual=0.1)", "train.micro": 3}
    run = train("gpt2", tmp_path_factory.mktemp("grown") / "run", text, 8, changes)
    return run, [{k: v for k, v in r.items() if k != "seconds"} for r in read_metrics(run.directory)]


def test_a_run_reads_what_its_ramp_says(grown: Any) -> None:
    run, records = grown
    assert [r["tokens"] for r in records] == [32 * n for n in itertools.accumulate(ROWS)]
    assert run.summary["tokens"] == 32 * sum(ROWS)
    loop, constant = loop_of(run), loop_of(run, **{"recipe.ramp": None, "recipe.batch": 32})
    own, other = [], []
    for size in ROWS:
        (batches,) = loop.batches()
        assert sum(len(b["input_ids"]) for b in batches) == size and len(batches) == -(-size // 3)
        own += [row for b in batches for row in b["input_ids"].tolist()]
        loop.step += 1
    for _ in range(sum(ROWS)):
        other += [row for b in constant.batches()[0] for row in b["input_ids"].tolist()]
    assert own == other and loop.cursor == constant.cursor  # every row once, in the order of any run


@pytest.mark.parametrize("ahead", [0, 2])
def test_a_run_goes_on_as_if_it_had_not_stopped(grown: Any, tmp_path: Path, ahead: int) -> None:
    run, records = grown
    found: list[Any] = []
    while len(found) < 8:  # stopped and resumed at every third step
        loop = loop_of(run, **{"train.ahead": ahead})
        if found:
            loop.restore(checkpoint.latest(tmp_path))  # type: ignore[arg-type]
        found += [loop.advance() for _ in range(min(3, 8 - len(found)))]
        loop.save(tmp_path)
        loop.move(loop.cursor)
    assert found == records
    assert loop.average is None and all(
        torch.equal(p, q) for p, q in zip(loop.model.parameters(), run.model.parameters(), strict=True)
    )
    assert verify_resume(run.directory)["identical"]


def test_micro_batches_do_not_show(grown: Any) -> None:
    found = []
    for micro in (8, 2):
        loop = loop_of(grown[0], **{"train.micro": micro, "arch.dropout": "Dropout()"})
        found.append([loop.advance()["loss"] for _ in range(8)])
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_a_plan_without_the_field_still_loads(text: Path, tmp_path: Path) -> None:  # noqa: F811
    run = train("gpt2", tmp_path / "run", text, 4, {"train.save_every": 2})
    path = run.directory / "run.json"
    about = json.loads(path.read_text("utf-8"))
    assert about["plan"]["recipe"].pop("ramp", 0) is None
    path.write_text(json.dumps(about), "utf-8")
    assert prepare.reopen(run.directory)[0] == run.plan
    (run.directory / "summary.json").unlink()
    assert resume(run.directory, quiet=True).summary["val"] == run.summary["val"]


def test_a_spike_skips_what_its_steps_would_have_read(
    text: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ramp = Ramp(((0.0, 0.25), (0.95, 1.0)), "line")
    spikes = Spikes(window=8, patience=2, back=4, skip=3, above=8.0)
    good, high, seen = Loop.advance, [True], []

    def advance(self: Loop) -> Any:
        begin = self.cursor
        record = good(self)
        seen.append((self.step, begin, self.cursor))
        leapt = high[0] and self.step >= 13
        high[0] = high[0] and self.step < 14
        return record | {"loss": record["loss"] * 10} if leapt else record

    monkeypatch.setattr(Loop, "advance", advance)
    changes = CHANGES | {"recipe.ramp": ramp, "train.spikes": spikes, "train.save_every": 3, "recipe.lr": 1e-4}
    run = train("gpt2", tmp_path / "run", text, 20, changes)
    told = json.loads((tmp_path / "run" / "rewinds.jsonl").read_text("utf-8"))
    assert (told["at"], told["to"], told["skipped"]) == (14, 9, 3)
    sizes = [ramp.examples(8, step, 20) for step in range(20)]
    assert sizes[14:17] == [6, 7, 7] and sizes[9] == 5 and sizes[0] == 2
    loop = loop_of(run)
    assert isinstance(loop.source, TextSource)
    view = loop.source.view
    taken = loop.objective.lazy_examples(view, seen[13][2])
    skipped = list(itertools.islice(taken, sum(sizes[14:17])))
    assert seen[14][:2] == (10, skipped[-1][1])  # on behind what three steps would have read
    assert [r["tokens"] for r in read_metrics(run.directory)] == [32 * n for n in itertools.accumulate(sizes)]
    after = list(itertools.islice(loop.objective.lazy_examples(view, skipped[-1][1]), sizes[9]))
    assert seen[14][2] == after[-1][1]  # the step after the one gone back to is as large as before


# ---------------------------------------------------------------- budgets and plans


def test_budgets_in_tokens_steps_and_flops(grown: Any, text: Path, tmp_path: Path) -> None:  # noqa: F811
    """A run reads what its budget says, and its plan says the same."""
    for budget in ("3000 tokens", "12 steps"):
        changes = SMALL | CHANGES
        run = pretrain("gpt2", data=str(text), out=tmp_path / budget, budget=budget, overrides=changes, quiet=True)
        view = Outlook(run.plan)
        assert view.steps == run.step and view.tokens(run.step) == run.summary["tokens"]
        if "tokens" in budget:
            assert abs(run.summary["tokens"] - 3000) <= 32 * 8 / 2
    run, _ = grown
    plan, tokenizer, store = prepare.reopen(run.directory)
    train_view, _ = prepare.split(plan, store)
    cost = loop_of(run).cost()
    bought = budgets.steps_of(
        replace(plan, train=replace(plan.train, budget=f"{cost * 3000} flops")), tokenizer, train_view
    )
    assert abs(ramps.total(plan.recipe.ramp, 8, bought) * 32 - 3000) <= 32 * 8 / 2
    assert bought > 3000 / (32 * 8)  # more than full batches would take


def test_a_budget_of_time_counts_short_steps(grown: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock on which a step takes 0.1 s and 0.02 s a row."""
    plan, tokenizer, store = prepare.reopen(grown[0].directory)
    view, _ = prepare.split(plan, store)
    now = [0.0]

    def advance(self: Loop) -> Any:
        assert self.source.readers == 1 and self.source.micro <= self.source.full
        now[0] += 0.1 + 0.02 * sum(len(b["input_ids"]) for b in self.batches()[0])

    monkeypatch.setattr(Loop, "advance", advance)
    monkeypatch.setattr(budgets, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    bought = budgets.steps_of(replace(plan, train=replace(plan.train, budget="60s")), tokenizer, view)
    left = 0.9 * (60 - 5 * (0.1 + 0.16) - 5 * (0.1 + 0.02))

    def seconds(steps: int) -> float:
        return sum(0.1 + 0.02 * GROWING.examples(8, step, steps) for step in range(steps))

    assert seconds(bought) <= left < seconds(bought + 1)


def test_a_plan_tells_time_and_tokens_of_a_ramp() -> None:
    plan = resolve("palm-540b", scale="full", budget="255000 steps")
    view, device = Outlook(plan), HARDWARE["h100"]
    constant = Outlook(replace(plan, recipe=replace(plan.recipe, ramp=None)))
    found = estimate(view, Mesh(fsdp=512), device, 1)
    assert view.tokens(255_000) == pytest.approx(775.9e9, rel=1e-4)
    assert found == estimate(constant, Mesh(fsdp=512), device, 1)  # memory and time of a full step
    seconds = duration(view, found, device, 255_000)
    assert found.accumulate == 4 and found.sending > 0
    parts = (n / 2048 for n in (512, 1024, 2048))  # of a full step: so many of its micro-batches, each sent for
    each = [max(found.computing * part, found.sending * part) for part in parts]
    assert seconds == pytest.approx(sum(n * s for n, s in zip((50e3, 65e3, 140e3), each, strict=True)))
    assert seconds < duration(constant, found, device, 255_000) == pytest.approx(255_000 * found.seconds)
    assert steps_within(view, found, device, seconds * (1 + 1e-9)) == 255_000
    copies = estimate(view, Mesh(dp=512), device, 4)  # gradients are sent once a step, however many rows it has
    least = max(copies.computing / 4, copies.sending)
    assert duration(view, copies, device, 1) == pytest.approx(least)
    for budget, steps in (("775.9B tokens", 255_000), (f"{view.work * 775.9e9} flops", 255_000)):
        bought = Outlook(resolve("palm-540b", scale="full", budget=budget)).steps
        assert bought == pytest.approx(steps, rel=1e-4)


def test_the_command_says_what_it_rounds(call: Any) -> None:  # noqa: F811
    code, out, err = call("plan", "gpt3-175b", "--gpus", "64xH100", "--json")
    assert code == 0, err
    data = json.loads(out)
    assert any("1,562 rows is no multiple of the 64 processes that read" in note for note in data["notes"])
    full, ramp = 1536, families.design("gpt3-175b").recipe.ramp
    assert ramp is not None
    sizes = [ramp.examples(full, step, data["steps"]) for step in range(data["steps"])]
    assert data["tokens"] == 2048 * sum(sizes) < data["steps"] * data["tokens_per_step"]
    assert data["flops"] == pytest.approx(data["flops_per_token"] * data["tokens"])
    assert data["hours"] * 3600 < data["steps"] * data["estimate"]["seconds"]
    code, out, _ = call("show", "gpt3-175b")
    assert code == 0 and "(0, 0.01), (0.16235, 1)" in out


def test_a_mesh_shares_any_ramp(grown: Any) -> None:
    """Each row of a step has one reader, in order, and all readers go through the network equally often: those with
    fewer batches go along with a row of another, which then counts nothing. Of fewer rows than readers, too."""
    plan = resolve("palm-540b", scale="full")
    assert unfit(plan, Mesh(fsdp=1024)) is None and rounded(plan, 1024) is plan
    assert rounded(resolve("gpt3-175b", scale="full"), 64).rows == 1536
    view, device = Outlook(plan), HARDWARE["h100"]  # 512 rows among 1024: half of them wait
    found = estimate(view, Mesh(fsdp=1024), device, 1)
    assert duration(view, found, device, 1) == pytest.approx(max(found.computing, found.sending) / 2)

    plan, tokenizer, store = prepare.reopen(grown[0].directory)
    documents, _ = prepare.split(plan, store)

    class Alone(Sharded):
        def distribute(self, learners: Any) -> Any:
            return learners

    def steps(mesh: Mesh, reader: int) -> list[list[Any]]:
        world = types.SimpleNamespace(shape=mesh, reader=reader)
        objective = assemble.objective_of(plan, tokenizer)
        source = TextSource(plan, objective, documents)
        loop = Alone(plan, assemble.model_of(plan, tokenizer), objective, source, {}, world)  # type: ignore[arg-type]
        found = []
        for _ in range(plan.recipe.steps or 0):
            found.append(loop.batches()[0])
            loop.step += 1
        return found

    plan = replace(plan, train=replace(plan.train, micro=2))
    one, idle = steps(Mesh(), 0), 0
    assert [sum(len(b["input_ids"]) for b in batches) for batches in one] == ROWS
    for readers in (2, 3, 5):
        shared = [steps(Mesh(dp=readers), reader) for reader in range(readers)]
        for whole, *parts in zip(one, *shared, strict=True):
            assert len({len(batches) for batches in parts}) == 1
            rows = [b["input_ids"] for batches in parts for b in batches if not isinstance(b, DummyBatch)]
            assert torch.equal(torch.cat(rows), torch.cat([b["input_ids"] for b in whole]))
            idle += sum(isinstance(b, DummyBatch) for batches in parts for b in batches)
    assert idle > 10
    with pytest.raises(UsageError, match=r"has 9 readers of rows, and a step of this run has 8 .* at most 8"):
        steps(Mesh(dp=9), 0)
