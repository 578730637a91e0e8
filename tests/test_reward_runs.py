"""Reward models as runs: any number of ranks, killed at any moment, adapters, encoders, the command line."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

import stemma
from scale_worker import gradients
from stemma.cli import main
from stemma.runs import checkpoint
from stemma.text import Specials, Tokenizer
from stemma.train import assemble, prepare, read_metrics
from stemma.tuning.predicting import predict
from test_reward_models import CHAT, PAIRS, written
from test_scale import WORKER, close
from test_scale import start as launch

TIMED = ("seconds", "tokens_per_second", "peak_share")
EDITS: dict[str, Any] = {
    "recipe.lr": 3e-3, "recipe.batch": 8 * 64, "train.val_fraction": 0.25, "train.context": 64, "train.save_every": 4,
    "train.keep": 50, "train.threads": 1, "train.precision": "fp32",
}  # fmt: skip


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    texts = [json.dumps(row) for row in PAIRS] + ["<user> <assistant> <system>"]
    tokenizer = Tokenizer.train("bpe", texts, 320, Specials(bos="<s>", eos="</s>", pad="<pad>", unk="<unk>"))
    tokenizer.chat_template = CHAT
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128, bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id,
    )  # fmt: skip
    hf.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    names = Specials(pad="[PAD]", unk="[UNK]", cls="[CLS]", sep="[SEP]", mask="[MASK]")
    tokenizer = Tokenizer.train("wordpiece", [json.dumps(row) for row in PAIRS], 200, names)
    torch.manual_seed(0)
    config = hf.BertConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=96,
    )  # fmt: skip
    hf.BertModel(config).save_pretrained(folder)
    tokenizer.save(folder)
    return folder


def learnt(start: Path, out: Path, data: str, **more: Any) -> Any:
    given = {"budget": "30 steps", "quiet": True} | more
    return stemma.align(
        "reward", start=str(start), data=data, out=out, overrides=EDITS | given.pop("edits", {}), **given
    )


def test_an_encoder_and_an_adapter_learn_too(tmp_path: Path, start: Path, encoder: Path) -> None:
    """An encoder reads prompt and answer as two texts, without a template; an adapter learns beside its head."""
    data = written(tmp_path / "pairs.jsonl", PAIRS)
    run = learnt(encoder, tmp_path / "encoder", data)
    assert run.summary["val"]["accuracy"] > 0.9
    assert json.loads((tmp_path / "encoder/model/config.json").read_text())["architectures"] == [
        "BertForSequenceClassification"
    ]
    run = learnt(start, tmp_path / "adapted", data, lora=4, edits={"recipe.lr": 2e-2})
    assert run.summary["val"]["accuracy"] > 0.9
    assert json.loads((tmp_path / "adapted/model/adapter_config.json").read_text())["task_type"] == "SEQ_CLS"
    scores = predict(tmp_path / "adapted", [PAIRS[0]])[0]["scores"]
    assert scores[0] > scores[1]


def test_the_command_line(tmp_path: Path, start: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*words: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(list(words))
        found = capsys.readouterr()
        assert ended.value.code == 0, found.err
        return found.out

    data = written(tmp_path / "pairs.jsonl", PAIRS)
    sets = [word for path, value in EDITS.items() for word in ("--set", f"{path}={value}")]
    said(
        "align",
        "reward",
        "--from",
        str(start),
        "--data",
        data,
        "--out",
        str(tmp_path / "run"),
        "--budget",
        "20 steps",
        "--quiet",
        *sets,
    )
    out = said("predict", str(tmp_path / "run"), "--data", data).splitlines()
    assert len(out) == len(PAIRS) and " | " in out[0] and "thanks" in out[0]
    answer = json.dumps({"prompt": "say it", "completion": "thanks"})
    assert json.loads(said("predict", str(tmp_path / "run"), answer, "--json")).keys() == {"score"}
    found = json.loads(said("eval", str(tmp_path / "run"), "--data", data, "--json"))
    assert found["rows"] == len(PAIRS) and found["metrics"]["accuracy"] > 0.9
    low, high = found["intervals"]["accuracy"]
    assert low <= found["metrics"]["accuracy"] <= high


@pytest.mark.slow
def test_ranks_learn_what_one_process_does(tmp_path: Path, start: Path) -> None:
    """Four answers in some rows and two in others, so that ranks hold different numbers of pairs."""
    four = {"prompt": "say it", "responses": ["thanks", "thanks a lot", "never", "never ever"], "scores": [4, 3, 2, 1]}
    run = tmp_path / "run"
    rows = [row if i % 3 else {**four, "prompt": f"say it {i}"} for i, row in enumerate(PAIRS)]
    learnt(
        start,
        run,
        written(tmp_path / "rows.jsonl", rows),
        budget="8 steps",
        edits={"train.micro": 2, "recipe.lr": 1e-4},
    )
    job = [(str(run), axes, str(tmp_path / axes), None) for axes in ("dp=2", "fsdp=2")]
    (tmp_path / "job.json").write_text(json.dumps({"cases": job}), "utf-8")
    launch([*WORKER, str(tmp_path / "job.json")], 2)
    plan, tokenizer, store = prepare.reopen(run)
    wanted = gradients(assemble.loop_of(plan, tokenizer, prepare.split(plan, store)[0]))
    for _, axes, out, _ in job:
        found = json.loads(Path(out, "found-0.json").read_text("utf-8"))
        close(found["records"], read_metrics(run))
        close(found["again"], read_metrics(run)[4:])
        got = torch.load(Path(out, "gradient.pt"))
        assert got.keys() == wanted.keys(), axes
        assert all(torch.allclose(got[name], wanted[name], atol=1e-6) for name in wanted), axes
        for ours, theirs in zip(found["records"], read_metrics(run), strict=True):
            assert [ours[k] for k in ("accuracy", "margin", "reward")] == pytest.approx(
                [theirs[k] for k in ("accuracy", "margin", "reward")], abs=1e-5
            )


@pytest.mark.slow
def test_killed_at_any_moment_a_run_comes_to_the_same_end(tmp_path: Path, start: Path) -> None:
    data, draw = written(tmp_path / "pairs.jsonl", PAIRS), random.Random(0)
    whole, out = tmp_path / "whole", tmp_path / "run"
    learnt(start, whole, data, budget="60 steps")
    sets = [word for path, value in EDITS.items() for word in ("--set", f"{path}={value}")]
    told = [
        "align",
        "reward",
        "--from",
        str(start),
        "--data",
        data,
        "--out",
        str(out),
        "--budget",
        "60 steps",
        "--resume",
        "--quiet",
    ]
    kills, metrics = 0, out / "metrics.jsonl"
    while not (out / "summary.json").exists():
        process = subprocess.Popen([sys.executable, "-m", "stemma", *told, *sets])
        there = metrics.stat().st_size if metrics.exists() else 0
        aim = there + draw.randint(1, 3000)
        while process.poll() is None:
            if kills < 6 and metrics.exists() and metrics.stat().st_size >= aim:
                time.sleep(draw.uniform(0, 0.05))
                process.send_signal(signal.SIGKILL)
            time.sleep(0.005)
        kills += process.returncode == -signal.SIGKILL
        assert process.returncode in (0, -signal.SIGKILL)
    assert kills >= 3 and checkpoint.latest(out) is not None
    for name in ("model.safetensors", "task.json", "config.json"):
        assert (out / "model" / name).read_bytes() == (whole / "model" / name).read_bytes(), name
    for a, b in zip(read_metrics(out), read_metrics(whole), strict=True):
        assert {k: v for k, v in a.items() if k not in TIMED} == {k: v for k, v in b.items() if k not in TIMED}
