"""Tuning as FLAN, Flan-T5, Flan-PaLM and Tulu were tuned: what a row is, what is set, and how options are ranked."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import stemma
from stemma import families, spec
from stemma.cli import root
from stemma.declare.tasks import Answers, ChatTask, Replies
from stemma.declare.tuning import SFT
from stemma.errors import DataError, UsageError
from stemma.nn.inputs import Inputs
from stemma.nn.model import IGNORED
from stemma.nn.parts import Dropout
from stemma.runs import checkpoint
from stemma.samples import flan
from stemma.tasks.base import reader
from stemma.text import Tokenizer
from stemma.train import verify_resume
from stemma.tuning import predict, tune
from stemma.tuning.predicting import measured, scored_rows, tuned
from stemma.tuning.systems import resolve
from test_tune import both, decoder, runner, stored, tokenizer, written  # noqa: F401

ROW = {"prompt": "what is the sea", "completion": "wine dark"}
ROWS = [
    {"prompt": f"name a fruit {i} ", "completion": ("an apple", "the sea")[i % 2], "options": ["an apple", "the sea"]}
    for i in range(40)
]


# ---------------------------------------------------------------- rows


def test_an_end_token_stands_between_input_and_target(tokenizer: Tokenizer) -> None:  # noqa: F811
    end = tokenizer.eos_id
    for structure in ("decoder", "encoder-decoder"):
        ids, marks = reader(ChatTask(template="flan"), tokenizer, 90, structure).marked(
            reader(ChatTask(template="flan"), tokenizer, 90, structure).read(ROW)
        )
        asked, said = (tokenizer.encode(ROW[key], add_special=False) for key in ("prompt", "completion"))
        assert ids == [*asked, end, *said, end]  # this tokenizer puts nothing before a text
        assert marks == [0, len(asked) + 1]


def test_rows_are_packed_and_do_not_see_each_other(tmp_path: Path, tokenizer: Tokenizer) -> None:  # noqa: F811
    store = stored(tmp_path, tokenizer, ChatTask(template="flan"), ROWS)
    goal = runner(Answers(task=ChatTask(template="flan")), tokenizer)
    example = next(iter(goal.examples(store)))[0]
    documents, labels, ids = (np.asarray(example[key]) for key in ("documents", "labels", "input_ids"))
    assert documents.max() >= 2 and (np.diff(documents) >= 0).all()
    for number in range(documents.max() + 1):
        own = ids[documents == number].tolist()
        learnt = [label for label in labels[documents == number] if label != IGNORED]
        between = own.index(tokenizer.eos_id)  # the input's end; the target's is the last label
        assert learnt == [*own[between + 1 :], tokenizer.eos_id]


@pytest.mark.parametrize("structure", ["decoder", "encoder-decoder"])
@pytest.mark.parametrize("limits", [(12, 6), (None, 5), (9, None), (60, 60)])
def test_inputs_and_targets_lose_their_ends(
    tokenizer: Tokenizer,  # noqa: F811
    structure: str,
    limits: tuple[int | None, int | None],
) -> None:
    """Against the ids cut by themselves: the words, their end token, and no more than the limit of them."""
    task = ChatTask(template="flan", inputs=limits[0], targets=limits[1])
    context = 40
    words = {"prompt": "who wrote it name a red fruit " * 3, "completion": "wine dark an apple is red " * 2}
    read = reader(task, tokenizer, context, structure)
    ids, marks = read.marked(read.read(words))
    asked, said = (tokenizer.encode(text, add_special=False) for text in words.values())
    room = context if structure == "encoder-decoder" else context + 1
    most = min(limits[1] or 999, context)
    said = said[: most - 1] if len(said) + 1 > most else said
    left = min(limits[0] or 999, context if structure == "encoder-decoder" else room - len(said) - 1)
    asked = asked[: left - 1] if len(asked) + 1 > left else asked
    assert ids == [*asked, tokenizer.eos_id, *said, tokenizer.eos_id]
    assert marks == [0, len(asked) + 1]


def test_limits_that_cannot_be(tokenizer: Tokenizer) -> None:  # noqa: F811
    with pytest.raises(UsageError, match="must be at least 2 tokens"):
        ChatTask(inputs=1)
    with pytest.raises(UsageError, match="limits where answers are learnt"):
        ChatTask(targets=9, loss_on="everything")
    read = reader(ChatTask(template="flan", inputs=90), tokenizer, 12, "decoder")
    with pytest.raises(DataError, match="leaves no room for its question in the 12 tokens"):
        read.marked(read.read({"prompt": "name", "completion": "wine dark an apple is red " * 3}))
    talk = {"messages": [{"role": r, "content": f"{r} {i}"} for i in range(9) for r in ("user", "assistant")]}
    read = reader(ChatTask(template="flan", inputs=90), tokenizer, 60, "decoder")
    assert 30 < len(read.marked(read.read(talk)).ids) <= 61  # several rounds: whole ones are left out, as ever


# ---------------------------------------------------------------- plans


def plan(name: str, start: Path, **more: Any) -> Any:
    return resolve(name, str(start), **more)


def test_published_numbers() -> None:
    def stage(name: str) -> SFT:
        tuning = families.family(name).tuning
        assert tuning is not None and isinstance(tuning.stages[0], SFT)
        return tuning.stages[0]

    flan, t5, palm = (stage(name) for name in ("flan", "flan-t5", "flan-palm"))
    assert (flan.inputs, flan.targets, flan.steps, flan.packed) == (1024, 256, 30_000, True)
    assert (t5.examples, {rate for _, rate in t5.changes}, t5.steps) == (
        64,
        {0.05},
        (98_000, 84_000, 64_000, 38_000, 14_000),
    )
    assert (palm.examples, {*dict(palm.changes).values()}, palm.steps) == (
        32,
        {(0.05, 0.05, 0.1)},
        (40_000, 40_000, 21_000),
    )
    assert [(s.share, s.cap) for s in t5.mixture] == [(s.share, s.cap) for s in palm.mixture]
    for name, steps in zip(families.family("flan-t5").sizes, t5.steps or (), strict=True):  # type: ignore[arg-type]
        recipe = stemma.design(name).recipe
        assert (recipe.steps, recipe.lr, recipe.schedule.shape) == (steps, 5e-4, "constant")
    for name, numbers in (
        ("flan-palm-62b", (3e-3, 40_000)),
        ("flan-palm-540b", (1e-3, 21_000)),
        ("flan", (3e-5, 30_000)),
    ):
        recipe = stemma.design(name).recipe
        assert (recipe.lr, recipe.steps, recipe.schedule.shape) == (*numbers, "constant")
    assert stemma.design("flan").recipe.batch == 8192


def test_plans(decoder: Path, both: Path) -> None:  # noqa: F811
    flan = plan("flan", decoder)
    assert flan.objective == Answers(task=ChatTask("flan", inputs=1024, targets=256)) and flan.data == "builtin:flan"
    assert flan.recipe.schedule.shape == "constant" and flan.arch.dropout.residual == 0
    t5 = plan("flan-t5", both)
    assert t5.objective == Replies(task=ChatTask("flan", inputs=2048, targets=512)) and t5.data == "builtin:flan2022"
    palm = plan("flan-palm", decoder)
    for one in (t5, palm):
        dropout = one.arch.dropout
        assert {dropout.embed, dropout.residual, dropout.attention, dropout.inner, dropout.final} == {0.05}
    assert plan("flan-palm", decoder, overrides={"arch.dropout.embed": 0.0}).arch.dropout.embed == 0
    assert {rate for path, rate in spec.leaves(plan("flan-palm-540b", decoder).arch.dropout) if path != "pair"} == {0.1}
    gpt = plan("instructgpt", decoder).arch.dropout
    assert gpt == Dropout(residual=0.2) and plan("instructgpt-175b", decoder).arch.dropout == gpt
    for name in ("tulu", "tulu2"):
        found = plan(name, decoder, stage=1)
        assert found.data == "builtin:tulu,builtin:captain" and found.objective.task.template == "tulu"


def test_full_plans_have_the_published_batch_and_steps(decoder: Path, both: Path) -> None:  # noqa: F811
    found = plan("flan", decoder, full=True)
    assert found.train.budget == "30000 steps" and found.recipe.batch == 8192 and found.recipe.lr == 3e-5
    xl = plan("flan-t5-xl", both, full=True)
    assert xl.train.budget == "38000 steps" and xl.rows == 64 and xl.recipe.lr == 5e-4
    assert plan("flan-palm-540b", decoder, full=True).train.budget == "21000 steps"


def test_dropout_of_instructgpt_is_learnt_with(decoder: Path, tmp_path: Path) -> None:  # noqa: F811
    """Its network drops while it learns, and does not when it is judged or used."""
    rows = written(tmp_path / "rows.jsonl", ROWS)
    run = tune("instructgpt", start=str(decoder), data=rows, out=tmp_path / "run", budget="1 steps", quiet=True)
    ids = torch.tensor([[3, 5, 7, 9]])
    run.model.train()
    assert not torch.equal(run.model(ids).logits, run.model(ids).logits)
    kept = stemma.load(tmp_path / "run")
    assert torch.equal(kept(ids).logits, run.model.eval()(ids).logits)


# ---------------------------------------------------------------- rank classification


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, decoder: Path, both: Path) -> dict[str, Path]:  # noqa: F811
    place = tmp_path_factory.mktemp("runs")
    data = written(place / "rows.jsonl", ROWS)
    more: dict[str, Any] = {"data": data, "budget": "6 steps", "quiet": True}
    tune("flan", start=str(decoder), out=place / "flan", **more)
    tune("flan-t5", start=str(both), out=place / "t5", **more)
    return {"flan": place / "flan", "t5": place / "t5", "rows": Path(data)}


@pytest.mark.parametrize("name", ["flan", "t5"])
def test_options_are_ranked_by_their_likelihood(runs: dict[str, Path], name: str) -> None:
    """Against the sum over an option's tokens and its end, one call of the model each."""
    one = tuned(runs[name])
    assert isinstance(one.task, ChatTask)
    tok, model = one.model.tokenizer, one.model.eval()
    rows = ROWS[:5]
    for row, answer in zip(rows, predict(one, rows), strict=True):
        for option in row["options"]:
            asked = [*tok.encode(row["prompt"], add_special=False), tok.eos_id]
            said = [*tok.encode(option, add_special=False), tok.eos_id]
            with torch.no_grad():
                if name == "t5":
                    start = model.text.start_id  # type: ignore[union-attr]
                    shifted = torch.tensor([[start, *said[:-1]]])
                    logits = model(torch.tensor([asked]), decoder_input_ids=shifted).logits[0]
                else:
                    logits = model(torch.tensor([[*asked, *said[:-1]]])).logits[0, len(asked) - 1 :]
            wanted = logits.log_softmax(-1)[torch.arange(len(said)), torch.tensor(said)].sum()
            assert answer["scores"][option] == pytest.approx(float(wanted), abs=1e-4)
        assert answer["label"] == max(answer["scores"], key=answer["scores"].get)


def test_accuracy_beside_that_of_a_guess(runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    one = tuned(runs["flan"])
    rows, notes = scored_rows(one, str(runs["rows"]), {})
    found = measured(one, rows, draws=20)
    assert not notes and found.rows == 40 and found.metrics["chance"] == 0.5
    answers = predict(one, rows)
    right = sum(a["label"] == row["completion"] for a, row in zip(answers, rows, strict=True))
    assert found.metrics["accuracy"] == right / 40
    nats = [-a["scores"][row["completion"]] for a, row in zip(answers, rows, strict=True)]
    assert found.metrics["nats"] == pytest.approx(sum(nats) / 40)


def test_a_cluster_that_was_held_out(runs: dict[str, Path], tmp_path: Path) -> None:
    """From the command that makes rows to the one that judges by them."""
    out, apart = str(tmp_path / "rows.jsonl"), str(tmp_path / "apart.jsonl")
    words = ["data", "mixture", "flan2021", "--count", "50", "--hold-out", "opposites", "--out", out]
    made = CliRunner().invoke(root, [*words, "--evaluate", apart])
    assert made.exit_code == 0 and "not among the rows to judge by: without_not" in made.stderr
    done = CliRunner().invoke(root, ["eval", str(runs["flan"]), "--data", apart, "--json"])
    assert done.exit_code == 0, done.exception
    found = json.loads(done.stdout)
    assert found["rows"] == 200  # of 300; one task of the three has nothing to choose from
    assert 0 <= found["metrics"]["accuracy"] <= 1 and found["metrics"]["chance"] == pytest.approx(5 / 12)


def test_a_models_tokenizer_counts_the_limit(decoder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:  # noqa: F811
    out = tmp_path / "rows.jsonl"
    words = ["data", "mixture", "flan2022", "--count", "40", "--limit", "150", "--tokenizer", str(decoder)]
    done = CliRunner().invoke(root, [*words, "--out", str(out)])
    assert done.exit_code == 0 and "four characters" not in done.stderr
    rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    few = [row["prompt"] for row in rows if row["form"].startswith("few")]
    assert few and max(len(tokenizer.encode(prompt, add_special=False)) for prompt in few) <= 150


def test_rows_that_cannot_be_ranked(runs: dict[str, Path]) -> None:
    one = tuned(runs["flan"])
    for row, said in (
        ({"prompt": "x", "completion": "y", "options": "y"}, "and a list of texts was expected"),
        ({"prompt": "x", "completion": "y", "options": ["y", "y"]}, "at least two different ones"),
    ):
        assert said in predict(one, [row])[0]["error"]
    assert predict(one, [{"prompt": "x", "completion": "y"}])[0].keys() == {"text"}  # written, not chosen
    with pytest.raises(DataError, match="some rows list 'options' and others do not"):
        rows = [{"prompt": "x", "completion": "y", "options": ["y", "w"]}, {"prompt": "x", "completion": "y"}]
        measured(one, rows)
    with pytest.raises(DataError, match="none of its options"):
        measured(one, [{"prompt": "x", "completion": "z", "options": ["y", "w"]}])
    assert predict(one, [{"prompt": "x", "options": ["y", "w"]}])[0]["label"] in ("y", "w")


# ---------------------------------------------------------------- whole runs


def held_out(model: Any, task: ChatTask, rows: list[dict[str, Any]]) -> float:
    """Nats a token of the answers of rows."""
    read = reader(task, model.tokenizer, model.dims.context, model.arch.structure)
    total = tokens = 0.0
    for row in rows:
        ids, marks = read.marked(read.read(row))
        own = torch.tensor([ids])
        with torch.no_grad():
            if model.arch.structure == "encoder-decoder":
                said = own[:, marks[1] :]
                logits = model(own[:, : marks[1]], decoder_input_ids=model.shift_right(said)).logits
            else:
                logits, said = model(Inputs(own).input_ids).logits[:, marks[1] - 1 : -1], own[:, marks[1] :]
        total += float(torch.nn.functional.cross_entropy(logits[0], said[0], reduction="sum"))
        tokens += said.shape[1]
    return total / tokens


SMALL = {
    "dims.d_model": 64,
    "dims.layers": 2,
    "dims.heads": 4,
    "dims.d_ff": 128,
    "dims.context": 256,
    "dims.vocab": 700,
}


def pretrained(name: str, out: Path) -> Path:
    """A small model of a family that has read the facts that the stand-in's tasks are about."""
    facts = flan.text()
    text = written(out.parent / "text.jsonl", [{"text": next(facts)} for _ in range(400)])
    head = {"dims.head_dim": 16} if name.startswith("t5") else {}
    changes = {**SMALL, **head, "recipe.batch": 2048}
    stemma.pretrain(name, data=text, out=out, budget="60 steps", overrides=changes, quiet=True)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flan", "flan-t5", "flan-palm", "tulu", "tulu2"])
def test_systems_from_one_command(tmp_path: Path, name: str) -> None:
    """On what stands in: the loss on answers that were not learnt falls well below the base's; the run can be proved."""
    pretrained("t5-v1.1-small" if name == "flan-t5" else "llama-7b", tmp_path / "base")
    words = ["tune", name, "--from", str(tmp_path / "base"), "--out", str(tmp_path / "run"), "--budget", "80 steps"]
    done = CliRunner().invoke(root, [*words, "--quiet", "--set", "recipe.lr=3e-3", "--set", "train.save_every=40"])
    assert done.exit_code == 0, (done.output, done.exception)
    task = ChatTask("tulu" if name.startswith("tulu") else "flan", inputs=200, targets=60)
    tests = list(flan.rows(tests=True, each=3))
    losses = [held_out(stemma.load(tmp_path / part).eval(), task, tests) for part in ("base", "run")]
    assert losses[1] < 0.7 * losses[0], losses
    assert verify_resume(tmp_path / "run", 2)["identical"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flan", "flan-t5"])
def test_killed_runs_go_on_as_if_nothing_had_been(tmp_path: Path, name: str) -> None:
    base = pretrained("t5-v1.1-small" if name == "flan-t5" else "llama-7b", tmp_path / "base")

    def start(*words: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-m", "stemma", *words, "--quiet"], stdout=subprocess.DEVNULL)

    def begin(out: Path) -> subprocess.Popen[bytes]:
        saved = ["--budget", "24 steps", "--set", "train.save_every=3"]
        return start("tune", name, "--from", str(base), "--out", str(out), *saved)

    assert begin(tmp_path / "alone").wait() == 0
    process, out = begin(tmp_path / "killed"), tmp_path / "killed"
    for step in (3, 12):
        while (
            process.poll() is None
            and (checkpoint.step_of(checkpoint.latest(out)) if checkpoint.latest(out) else 0) < step
        ):
            time.sleep(0.005)
        process.kill()
        process.wait()
        process = start("resume", str(out))
    assert process.wait() == 0
    one, two = (stemma.load(tmp_path / part).state_dict() for part in ("alone", "killed"))
    assert all(torch.equal(tensor, two[key]) for key, tensor in one.items())
