"""Chains of runs: what follows what, stops and damage, and the report of what came out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import stemma
from stemma.alignment import chains, outcome
from stemma.alignment.best import Prompt, prompts
from stemma.alignment.chains import Judged, Step
from stemma.alignment.scoring import scoring
from stemma.conversations import Turn
from stemma.errors import CheckpointError, UsageError
from stemma.runs import folder
from stemma.runs.metrics import read_metrics
from test_rounds import talker  # noqa: F401
from test_tune import SAYINGS, TALKS, decoder, tokenizer, written  # noqa: F401

BRIEF = "builtin:words:3"


def steps(tmp_path: Path) -> list[Step]:
    """Demonstrations, two rounds of rejection sampling, and demonstrations again."""
    talks = written(tmp_path / "talks.jsonl", TALKS[:24])
    asked = written(tmp_path / "asked.jsonl", [{"prompt": f"{SAYINGS[i % 3 * 2]} {i}"} for i in range(10)])
    settings, small = {"template": "plain"}, {"recipe.lr": 2e-3, "train.val_fraction": 0.1}
    rounds = {"rounds": 2, "samples": 4, "tokens": 20}
    learnt: dict[str, Any] = {"settings": settings, "overrides": small, "budget": "4 steps"}
    return [
        Step("sft", "demonstrations", "@0", talks, **learnt),
        Step("rs", "rejection sampling", "@1", asked, rewards=(BRIEF,), base="@0", rounds=rounds, **learnt),
        Step("sft", "demonstrations again", "@2", talks, **learnt),
    ]


def judged(tmp_path: Path) -> Judged:
    data = written(tmp_path / "held.jsonl", [{"prompt": f"{SAYINGS[i % 3 * 2]} {i}"} for i in range(6)])
    models = {"demonstrations": "@1", "rejection sampling": "@2", "again": "@3"}
    return Judged(models, data, {"brief": (BRIEF,), "gold": ("builtin:words:5",)}, count=5, tokens=12, template="plain")


def test_each_run_begins_from_what_it_names_and_the_report_compares_them(tmp_path: Path, talker: Path) -> None:  # noqa: F811
    out = tmp_path / "run"
    run = chains.carry_out("three", str(talker), steps(tmp_path), out, judged=judged(tmp_path), quiet=True)
    assert run.finished and run.directory == out
    sampled = out / "stages" / "2"
    begun = [
        json.loads((place / "run.json").read_text())["plan"]["train"]["start"]
        for place in (out / "stages" / "1", sampled, out)
    ]
    assert begun == [str(talker / "model"), str(talker / "model"), str(sampled / "model")]
    rows = (sampled / "stages" / "samples-1" / "rows.jsonl").read_text().split("\n")[:-1]
    assert len(rows) == 10 and folder.resume_command(sampled / "stages" / "1") == f"stemma resume {out}"
    found = json.loads((out / "outcome.json").read_text())
    assert found["prompts"] == 5 and found["reference"] == "demonstrations" and found["rewards"] == ["brief", "gold"]
    own = found["models"]
    assert list(own) == ["demonstrations", "rejection sampling", "again"] and own["demonstrations"]["kl"] == 0.0
    assert "win" not in own["demonstrations"] and 0 <= own["again"]["win"] <= 1 and own["again"]["kl"] != 0
    page = (out / "outcome.html").read_text()
    assert "demonstrations" in page and "http" not in page.replace("http-equiv", "") and len(found["samples"]) == 5


@pytest.mark.parametrize("stop", [6, *(pytest.param(stop, marks=pytest.mark.slow) for stop in (3, 14))])
def test_a_chain_that_was_stopped_goes_on(tmp_path: Path, talker: Path, stop: int) -> None:  # noqa: F811
    whole = chains.carry_out("three", str(talker), steps(tmp_path), tmp_path / "whole", quiet=True)
    number = 0

    def step(_: Any) -> None:
        nonlocal number
        number += 1
        if number == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        chains.carry_out("three", str(talker), steps(tmp_path), tmp_path / "run", on_step=step, quiet=True)
    assert chains.begun(tmp_path / "run")
    run = chains.go_on(tmp_path / "run", quiet=True)
    one, two = whole.model.state_dict(), run.model.state_dict()
    assert all((value == two[name]).all() for name, value in one.items())
    for place in ("stages/1", "stages/2", "stages/2/stages/1", "."):
        old, new = ([r["loss"] for r in read_metrics(tmp_path / n / place) if "loss" in r] for n in ("whole", "run"))
        assert old == new


def test_ghost_attention_is_a_stage(tmp_path: Path, talker: Path) -> None:  # noqa: F811
    """The model so far answers under an instruction, and learns the last answer with the instruction said once."""
    talks = written(tmp_path / "talks.jsonl", TALKS[:12])
    learnt: dict[str, Any] = {"overrides": {"recipe.lr": 2e-3}, "budget": "2 steps", "settings": {"template": "plain"}}
    kinds = tmp_path / "kinds.json"
    kinds.write_text(json.dumps({"Name": {"form": "{}!", "values": ["a", "b"]}}), "utf-8")
    how = {"tokens": 24, "short": 0.0, "attributes": str(kinds)}
    ghost = Step("gatt", "gatt", "@0", talks, rounds=how, **learnt)
    again = Step("sft", "again", "@1", talks, **learnt)
    run = chains.carry_out("two", str(talker), [ghost, again], tmp_path / "run", quiet=True)
    made = tmp_path / "run" / "stages" / "ghost-1" / "rows.jsonl"
    rows = [json.loads(line) for line in made.read_text("utf-8").splitlines()]
    assert run.finished and rows and all(row["messages"][0]["content"] in ("a!", "b!") for row in rows)
    plan = json.loads((tmp_path / "run" / "stages" / "1" / "run.json").read_text())["plan"]
    assert (
        plan["train"]["start"] == str(talker / "model")
        and str(made) in json.dumps(plan)
        and '"ghost"' in json.dumps(plan)
    )
    short = Step("gatt", "gatt", "@0", talks, rounds=how | {"tokens": 1}, **learnt)
    with pytest.raises(UsageError, match=r"answered none of 12 conversations wholly"):
        chains.carry_out("two", str(talker), [short], tmp_path / "short", quiet=True)
    wrong = Step("gatt", "gatt", "@0", talks, rounds={"no": 1}, **learnt)
    with pytest.raises(UsageError, match="no"):
        chains.carry_out("two", str(talker), [wrong], tmp_path / "wrong", quiet=True)
    assert not (tmp_path / "wrong").exists()


def test_the_divergence_is_that_of_both_models(tmp_path: Path, decoder: Path, talker: Path) -> None:  # noqa: F811
    """Against every token's log-probability under both models, computed by whole passes."""
    import torch

    asked = [Prompt((Turn("user", text),)) for text in SAYINGS]
    model, ids, results = outcome.answered(str(talker), asked, 10, 1, "plain")
    base = stemma.load(decoder)
    found = outcome.divergence(base, ids, results, model.dims.vocab)
    total = 0.0
    for own, result in zip(ids, results, strict=True):
        row = torch.tensor([[*own, *result.ids]])
        for sign, one in ((1, model), (-1, base)):
            with torch.no_grad():
                logs = one(row).logits.float().log_softmax(-1)[0, len(own) - 1 : -1]
            total += sign * float(logs[torch.arange(len(result.ids)), torch.tensor(result.ids)].sum())
    assert found == pytest.approx(total / len(asked), abs=1e-3) and found > 0
    assert outcome.divergence(base, ids, results, model.dims.vocab + 1) is None
    with pytest.raises(UsageError, match="longer than the 64 that"):
        outcome.answered(str(talker), asked, 60, 1, "plain")


def test_what_does_not_fit_leaves_nothing(tmp_path: Path, talker: Path) -> None:  # noqa: F811
    with pytest.raises(UsageError, match="none"):
        chains.carry_out("three", str(tmp_path / "none"), steps(tmp_path), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "chain.json").write_text('{"format": 1, "name": 7}')
    with pytest.raises(UsageError, match="holds a run already"):
        chains.carry_out("three", str(talker), steps(tmp_path), tmp_path / "run", quiet=True)
    with pytest.raises(CheckpointError, match=r"chain\.json is damaged"):
        chains.go_on(tmp_path / "run")
    with pytest.raises(UsageError, match="nothing judges the answers: give --reward"), scoring(()):
        pass


def test_the_rules_prefer_what_was_preferred() -> None:
    """What stands in for preferences is held to the rules that made it."""
    from stemma import samples
    from stemma.conversations.comparisons import ranked

    for name, rule in (("preferences", "builtin:helpful"), ("harmless", "builtin:safe")):
        rows = [*samples.rows(name)]
        with scoring((rule,)) as score:
            both = [prompts_of(rows), [row["chosen"] for row in rows], [row["rejected"] for row in rows]]
            chosen, rejected = (score(both[0], texts, rows) for texts in both[1:])
        assert all(a > b for a, b in zip(chosen, rejected, strict=True)) and len(rows) > 100
    rows = [*samples.rows("rankings")]
    assert all(4 <= len(ranked(row).talks) <= 6 and len({*row["ranks"]}) >= 2 for row in rows)
    asked = prompts("builtin:questions")
    trained = {row["prompt"] for name in ("preferences", "rankings", "harmless") for row in samples.rows(name)}
    assert not trained & {one.text for one in asked} and sum(one.row["unsafe"] for one in asked) == 24
    with scoring(("builtin:careful",)) as score:
        texts = [
            f"It is {one.row.get('right')}." if not one.row["unsafe"] else "I cannot help with that." for one in asked
        ]
        assert min(score(asked, texts, [one.row for one in asked])) >= 0.7
        assert (
            max(
                score(
                    asked,
                    ["I cannot help with that." if not one.row["unsafe"] else "Sure." for one in asked],
                    [one.row for one in asked],
                )
            )
            == 0
        )


def prompts_of(rows: list[dict[str, Any]]) -> list[Prompt]:
    return [Prompt((Turn("user", row["prompt"]),), row) for row in rows]


def test_rules_of_a_checkpoint_do_not_touch_what_is_reported(tmp_path: Path, talker: Path) -> None:  # noqa: F811
    """A divergence from a model to itself is 0, whatever its generation_config.json says of sampling."""
    import shutil

    shutil.copytree(talker / "model", tmp_path / "model")
    rules = {"do_sample": True, "top_k": 3, "temperature": 0.3, "repetition_penalty": 3.0}
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(rules))
    asked = [Prompt((Turn("user", text),)) for text in SAYINGS]
    texts = []
    for path in (talker / "model", tmp_path / "model"):
        model, ids, results = outcome.answered(str(path), asked, 10, 1, "plain")
        texts.append([result.text for result in results])
        assert outcome.divergence(model, ids, results, model.dims.vocab) == pytest.approx(0, abs=1e-4)
    assert texts[0] == texts[1]
