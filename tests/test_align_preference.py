"""`stemma align dpo` and `kto`: whole runs, their reference, resuming, and what is refused."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import stemma
from commands import Process, starter
from scale_worker import gradients
from stemma.errors import DataError, UsageError
from stemma.runs import checkpoint
from stemma.text import Specials, Tokenizer
from stemma.train import assemble, prepare, verify_resume
from test_cli import call  # noqa: F401
from test_kills import EVERY, STEPS, Life, hunt, sets
from test_scale import WORKER, close
from test_scale import start as launch
from test_tune import decoder, tokenizer, written  # noqa: F401

ASKED = ["who wrote it", "name a red fruit", "what is the sea"]
GOOD, BAD = "an apple is red", "homer wrote it long ago"
PLAIN: dict[str, Any] = {"template": "plain", "quiet": True}


def compared(n: int = 40) -> list[dict[str, Any]]:
    """Pairs whose better answer is always the same."""
    return [{"prompt": f"{ASKED[i % 3]} {i}", "chosen": GOOD, "rejected": BAD} for i in range(n)]


def judged(n: int = 40) -> list[dict[str, Any]]:
    """Answers that were liked or not."""
    asked = [f"{ASKED[i % 3]} {i}" for i in range(n)]
    return [{"prompt": p, "completion": (BAD, GOOD)[i % 2], "label": bool(i % 2)} for i, p in enumerate(asked)]


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]


def dpo(start: Path, out: Path, steps: int = 8, what: str = "dpo", rows: Any = None, **more: Any) -> Any:
    data = written(out.parent / f"{what}.jsonl", rows or (compared() if what == "dpo" else judged()))
    data += more.pop("ending", "")
    changes = {"recipe.lr": 3e-3, "recipe.batch": 8 * 64, "train.val_fraction": 0.2} | more.pop("overrides", {})
    given = PLAIN | more
    return stemma.align(what, start=str(start), data=data, out=out, budget=f"{steps} steps", overrides=changes, **given)


@pytest.mark.parametrize(
    ("what", "how"),
    [("dpo", {}), ("dpo", {"lora": 4, "quantize": "nf4"}), ("kto", {"lora": 4})],
    ids=["dpo", "dpo by qlora", "kto by lora"],
)
def test_a_run_learns_what_was_preferred(decoder: Path, tmp_path: Path, what: str, how: Any) -> None:  # noqa: F811
    more = {"overrides": {"recipe.lr": 2e-2}} if how else {}
    run = dpo(decoder, tmp_path / "run", what=what, **how, **more)
    told = [m for m in metrics(run.directory) if "margin" in m or "kl" in m]
    first, last = told[0], told[-1]
    assert first["loss"] == pytest.approx(math.log(2) if what == "dpo" else 0.5, abs=1e-3)
    assert abs(first["reward_chosen"]) < 1e-2
    assert last["reward_chosen"] > last["reward_rejected"] and last["accuracy"] == 1.0
    assert last["loss"] < first["loss"]
    final = run.summary["val"]
    assert final["accuracy"] == 1.0 and final["accuracy_low"] < 1.0


def weights(run: Path) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in stemma.load(run / "model").state_dict().items()}


@pytest.mark.parametrize("how", [{}, pytest.param({"lora": 4}, marks=pytest.mark.slow)], ids=["all", "lora"])
def test_a_stopped_run_goes_on_bit_for_bit(decoder: Path, tmp_path: Path, how: Any) -> None:  # noqa: F811
    class Stop(Exception):
        pass

    def stop(record: Any) -> None:
        if record["step"] == 5:
            raise Stop

    more: dict[str, Any] = {"overrides": {"train.save_every": 2, "objective.sft": 0.2}, **how}
    whole = dpo(decoder, tmp_path / "whole", **more)
    with pytest.raises(Stop):
        dpo(decoder, tmp_path / "cut", on_step=stop, **more)
    again = dpo(decoder, tmp_path / "cut", resume=True, **more)
    for name, tensor in weights(whole.directory).items():
        assert torch.equal(tensor, weights(again.directory)[name]), name
    told = [[{k: v for k, v in m.items() if k != "seconds"} for m in metrics(r.directory)] for r in (whole, again)]
    assert told[0] == told[1]
    assert verify_resume(again.directory, 3)["identical"]


def test_the_reference_is_what_the_run_began_from_and_must_stay_so(decoder: Path, tmp_path: Path) -> None:  # noqa: F811
    run = dpo(decoder, tmp_path / "run", steps=2)
    (net,) = run.plan.nets
    assert net.role == "reference" and not net.learns and net.weights == str(decoder) and net.fingerprint
    assert dpo(decoder, tmp_path / "lora", steps=1, lora=2).plan.nets == ()
    free = {"objective.average": True, "objective.margin": 0.5}
    simpo = dpo(decoder, tmp_path / "simpo", steps=1, reference="none", overrides=free).plan
    assert simpo.nets == () and simpo.objective.reference == "none"


def test_a_reference_with_another_tokenizer_is_refused(decoder: Path, tmp_path: Path) -> None:  # noqa: F811
    other = tmp_path / "other"
    shutil.copytree(decoder, other)
    words = ["quite another language", "with words of its own"] * 3
    Tokenizer.train("bpe", words, 300, Specials(bos="<s>", eos="</s>", pad="<pad>", unk="<unk>")).save(other)
    with pytest.raises(UsageError, match=r"the reference must read with the tokenizer of .*decoder"):
        dpo(decoder, tmp_path / "run", reference=str(other))
    assert not (tmp_path / "run").exists()


def test_a_reference_that_is_no_parent_is_refused(decoder: Path, tmp_path: Path) -> None:  # noqa: F811
    """A network of another shape, or of another family of that shape, that reads with the same tokenizer."""
    held = stemma.load(decoder)
    dims = {name: getattr(held.dims, name) for name in ("d_model", "heads", "vocab", "context")}
    wider = stemma.build("llama", **dims, layers=held.dims.layers, d_ff=held.dims.d_ff + 16)
    other = stemma.build("gpt2", **dims, layers=held.dims.layers, d_ff=held.dims.d_ff)
    for name, model, why in (
        (
            "wider",
            wider,
            rf"d_ff={held.dims.d_ff + 16}, and the policy d_ff={held.dims.d_ff}: it must be what the policy",
        ),
        ("other", other, r"weights .*, which the policy has not: it must be what the policy was tuned from"),
    ):
        model.tokenizer = held.tokenizer
        stemma.save(model, tmp_path / name)
        with pytest.raises(UsageError, match=why):
            dpo(decoder, tmp_path / "run", reference=str(tmp_path / name))


def test_a_prompt_longer_than_a_row_is_one_clear_line(decoder: Path, tmp_path: Path) -> None:  # noqa: F811
    rows = [*compared(8), {"prompt": "who wrote it " * 40, "chosen": GOOD, "rejected": BAD}]
    with pytest.raises(DataError, match=r"its prompt has .* tokens, and a row of 64 must hold an answer too"):
        dpo(decoder, tmp_path / "run", rows=rows, ending="#strict=yes")
    run = dpo(decoder, tmp_path / "passed", rows=rows, steps=1)
    (note,) = json.loads((run.directory / "run.json").read_text("utf-8"))["data"]["notes"]
    assert note.startswith("1 row was passed over: its prompt has")


@dataclass
class Aligned(Life):
    """A run of `stemma align dpo`, whose text is (rows, the model that it begins from)."""

    keep = 50

    def start(self) -> Process:
        self.begun = checkpoint.latest(self.out)
        env = {"STEMMA_CACHE": str(self.home / "cache")}
        if (self.out / "run.json").exists():
            return self.starter.start("resume", self.out, "--quiet", env=env, shard=2000)
        changes = {"recipe.batch": 8 * 64, "train.save_every": EVERY, "train.keep": 50, "train.threads": 1}
        told = ["--data", self.text / "p.jsonl", "--budget", f"{STEPS} steps", "--out", self.out, "--template", "plain"]
        more = ["--lora", "2"] if self.name == "lora" else []
        return self.starter.start(
            "align", "dpo", "--from", self.text / "base", *told, *more, *sets(changes), "--quiet", env=env
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["all", "lora"])
def test_killed_at_any_moment_it_goes_on_bit_for_bit(decoder: Path, tmp_path: Path, name: str) -> None:  # noqa: F811
    shutil.copytree(decoder, tmp_path / "base")
    written(tmp_path / "p.jsonl", compared(60))
    aims = ["save", "step"] * 4 + ["any"] * 2
    hits = hunt(starter(), name, tmp_path, tmp_path / "lives", 5, aims, Aligned)
    assert hits["save"] >= 4 and hits["step"] >= 4, hits


def test_dropout_is_off_unless_it_is_asked_for(decoder: Path, tmp_path: Path) -> None:  # noqa: F811
    """With it the first margins would be noise, and not 0."""
    shaky = tmp_path / "shaky"
    shutil.copytree(decoder, shaky)
    config = json.loads((shaky / "config.json").read_text("utf-8"))
    (shaky / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.5}), "utf-8")
    assert stemma.load(str(shaky)).arch.dropout.attention == 0.5
    first = metrics(dpo(shaky, tmp_path / "still", 1).directory)[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    asked = {"arch.dropout": "Dropout(attention=0.5)"}
    assert abs(metrics(dpo(shaky, tmp_path / "asked", 1, overrides=asked).directory)[0]["margin"]) > 1e-6


def test_progress_tells_what_is_aimed_at(decoder: Path, tmp_path: Path, capfd: Any) -> None:  # noqa: F811
    dpo(decoder, tmp_path / "run", 1, quiet=False)
    assert re.search(r"step 1/1  loss 0\.693  accuracy [\d.]+  [\d,]+ tokens/s  0s left", capfd.readouterr().err)
    dpo(decoder, tmp_path / "few", 1, rows=compared(2), quiet=False)
    assert "not 20%: it has 2 rows that can be learnt from; give more" in capfd.readouterr().err
    with pytest.raises(DataError, match="has only one document"):
        dpo(decoder, tmp_path / "one", 1, rows=compared(1))


@pytest.mark.slow
@pytest.mark.parametrize(("what", "how"), [("dpo", {}), ("dpo", {"lora": 4}), ("kto", {})], ids=["dpo", "lora", "kto"])
def test_ranks_learn_what_one_process_does(decoder: Path, tmp_path: Path, what: str, how: Any) -> None:  # noqa: F811
    changes = {"train.micro": 4, "train.save_every": 4, "train.keep": 50, "recipe.batch": 24 * 64, "recipe.lr": 1e-4}
    if what == "kto":
        changes |= {"objective.group": 4}
    run = dpo(decoder, tmp_path / "run", what=what, overrides=changes, **how).directory
    job = [(str(run), axes, str(tmp_path / axes), None) for axes in ("dp=2", "fsdp=2")]
    (tmp_path / "job.json").write_text(json.dumps({"cases": job}), "utf-8")
    launch([*WORKER, str(tmp_path / "job.json")], 2)
    plan, named, store = prepare.reopen(run)
    want = gradients(assemble.loop_of(plan, named, prepare.split(plan, store)[0]))
    alone = metrics(run)
    for _, axes, out, _ in job:
        found = json.loads(Path(out, "found-0.json").read_text("utf-8"))
        close(found["records"], alone)
        close(found["again"], alone[4:])
        for key in ("accuracy", "reward_chosen", "reward_rejected"):
            assert [r[key] for r in found["records"]] == pytest.approx([r[key] for r in alone], abs=1e-5)
        got = torch.load(Path(out, "gradient.pt"))
        assert got.keys() == want.keys(), axes
        assert all(torch.allclose(got[name], want[name], atol=1e-6) for name in want), axes


def test_a_report_asks_what_was_before_and_after(decoder: Path, tmp_path: Path, call: Any) -> None:  # noqa: F811
    """Rewards, wins with their interval and answers, of any run that began from weights."""
    run = dpo(decoder, tmp_path / "run", steps=2).directory
    asked = written(tmp_path / "asked.jsonl", [{"prompt": words} for words in ASKED])
    words = ["report", str(run), "--samples", "0", "--out", str(tmp_path / "r.html"), "--prompts", str(asked)]
    code, _, err = call(*words)
    assert code == 2 and "give both" in err
    code, _, err = call(*words, "--judge", "builtin:words:1")
    assert code == 0, err
    found = json.loads((run / "outcome.json").read_text())
    assert list(found["models"]) == ["before", "after"] and found["models"]["before"]["kl"] == 0
    assert len(found["samples"]) == 3 and 0 <= found["models"]["after"]["win"] <= 1
    text = (tmp_path / "r.html").read_text()
    assert "wins against before" in text and "3 held-out prompts, asked of each model" in text
