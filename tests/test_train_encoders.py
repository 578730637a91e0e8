"""Runs of the encoders with objectives of their own: end to end, resumed, reloaded, shown; and that they learn."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import stemma
from stemma import families, spec
from stemma.declare.recipes import AdamW
from stemma.nn.model import Model
from stemma.objectives.rtd import Beside
from stemma.train import pretrain, read_metrics, resolve, resume, scaled, verify_resume
from stemma.train.scale import scaled_net
from test_train import SMALL, text  # noqa: F401

ADAM = {"recipe.optimizer": AdamW(eps=1e-6)}
CASES: dict[str, dict[str, Any]] = {
    "albert": ADAM,
    "electra": {},
    "electra-base-generator": {},
    "deberta": {},
    "deberta-v2": {},
    "deberta-v3": {},
    "bert": {"objective.unit": "Words", "objective.pairs": "order"},
    "roberta": {"objective.unit": "Runs"},
}


def train(name: str, out: Path, text: Path, steps: int = 4, **more: Any) -> Any:  # noqa: F811
    changes = SMALL | CASES[name] | more.pop("changes", {})
    return pretrain(name, data=str(text), out=out, budget=f"{steps} steps", overrides=changes, quiet=True, **more)


@pytest.mark.parametrize("name", CASES)
def test_a_run_from_end_to_end(name: str, tmp_path: Path, text: Path) -> None:  # noqa: F811
    run = train(name, tmp_path / "run", text)
    assert run.finished and all(math.isfinite(v) for v in run.summary["val"].values())
    model = stemma.load(run.directory / "model")
    assert model.family.name == families.design(name).name or name in model.family.sizes or name == model.family.name
    ours, theirs = run.model.state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert verify_resume(run.directory, 2)["identical"]
    again = resume(run.directory, quiet=True)
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), run.model.parameters(), strict=True))


class Stop(Exception):
    pass


@pytest.mark.parametrize("name", ["electra", "deberta-v3"])
def test_two_nets_go_on_bit_for_bit(name: str, tmp_path: Path, text: Path) -> None:  # noqa: F811
    def stop(record: dict[str, Any]) -> None:
        if record["step"] == 3:
            raise Stop

    whole = train(name, tmp_path / "a", text)
    often = {"train.save_every": 2}
    with pytest.raises(Stop):
        train(name, tmp_path / "b", text, on_step=stop, changes=often)
    done = train(name, tmp_path / "b", text, resume=True, changes=often)
    assert [r["loss"] for r in read_metrics(done.directory)] == [r["loss"] for r in read_metrics(whole.directory)]
    for part in ("model", "generator"):
        a, b = (stemma.load(run.directory / part).state_dict() for run in (whole, done))
        assert all(torch.equal(a[k], b[k]) for k in a)
    records = read_metrics(done.directory)
    assert all({"loss_replaced", "loss_token"} <= set(r) for r in records)
    assert records[0]["loss"] == pytest.approx(records[0]["loss_token"] + 50 * records[0]["loss_replaced"], rel=1e-5)


def test_what_a_run_saves_of_shared_embeddings(tmp_path: Path, text: Path) -> None:  # noqa: F811
    """The discriminator of DeBERTaV3 stands alone with the sum of both tables; ELECTRA's two files hold one table."""
    run = train("deberta-v3", tmp_path / "a", text)
    last = sorted((run.directory / "checkpoints").iterdir())[-1]
    from safetensors.torch import load_file

    held = load_file(last / "model.safetensors")
    both = held["embed.tokens.weight"] + held["generator:embed.tokens.weight"]
    assert held["embed.tokens.weight"].abs().max() > 0
    assert torch.equal(stemma.load(run.directory / "model").embed.tokens.weight, both)
    assert not any(isinstance(m, Beside) for m in run.model.modules())
    run = train("electra", tmp_path / "b", text)
    model, generator = (stemma.load(run.directory / part) for part in ("model", "generator"))
    assert torch.equal(model.embed.tokens.weight, generator.embed.tokens.weight)
    assert stemma.load(run.directory / "generator").family.name == "electra-generator"
    held = load_file(sorted((run.directory / "checkpoints").iterdir())[-1] / "model.safetensors")
    assert "embed.tokens.weight" in held and "generator:embed.tokens.weight" not in held


def test_a_run_is_told_and_reported(tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    from stemma.cli.training import report_outcome
    from stemma.report.page import results
    from stemma.report.read import read

    run = train("electra", tmp_path / "a", text, 2)
    assert report_outcome(run) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "of tokens classified right" in said and "bits a token" in said
    page = results([read(run.directory)])
    assert "called replaced or original" in page and "bits per byte" not in page


@pytest.mark.parametrize("sharing", ["none", "tied"])
def test_other_ways_of_sharing_train_too(sharing: str, tmp_path: Path, text: Path) -> None:  # noqa: F811
    run = train("deberta-v3", tmp_path / "a", text, 2, changes={"objective.sharing": sharing})
    model, generator = (stemma.load(run.directory / part) for part in ("model", "generator"))
    assert torch.equal(model.embed.tokens.weight, generator.embed.tokens.weight) == (sharing == "tied")


# ---------------------------------------------------------------- scales


def test_a_generator_is_as_much_smaller_at_every_scale() -> None:
    for name, share, layers in (("electra-base", 1 / 3, 1.0), ("electra-large", 1 / 4, 1.0), ("electra-small", 1, 1.0),
                                ("deberta-v3-base", 1, 0.5)):  # fmt: skip
        for scale in ("tiny", "mini", "small"):
            plan = resolve(name, scale=scale)
            net = plan.nets[0]
            heads = max(1, round(plan.dims.heads * share))
            assert net.dims.heads == heads and net.dims.width == plan.dims.width
            assert net.dims.layers == max(1, round(plan.dims.layers * layers))
            assert net.dims.embed_width == plan.dims.embed_width and net.dims.context == plan.dims.context
            assert Model(net.arch, net.dims).lm is not None
    big, small = families.design("electra-base"), families.design("electra-base-generator")
    assert scaled_net(big, small, big.dims) is small and scaled(big, "full").dims == big.dims


def test_a_generator_follows_what_is_changed_of_the_model() -> None:
    plan = resolve(
        "electra", overrides={"dims.d_model": 64, "dims.heads": 2, "dims.context": 16, "arch.norm.eps": 1e-3}
    )
    net = plan.nets[0]
    assert (net.dims.d_model, net.dims.context, net.dims.embed) == (64, 16, plan.dims.embed)
    assert spec.get(net.arch, "norm.eps") == 1e-3 and net.arch.heads.lm is not None


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("bert-base", (1e-4, 256 * 512, 1_000_000, 10_000, 1.0)),
        ("roberta-base", (6e-4, 8192 * 512, 500_000, 24_000, None)),
        ("roberta-large", (4e-4, 8192 * 512, 500_000, 30_000, None)),
        ("albert-base-v1", (1.76e-3, 4096 * 512, 125_000, 3125, 1.0)),
        ("albert-xxlarge-v1", (1.76e-3, 4096 * 512, 1_500_000, 3125, 1.0)),
        ("albert-base-v2", (1.76e-3, 4096 * 512, 10_000_000, 3125, 1.0)),
        ("electra-small", (5e-4, 128 * 128, 1_000_000, 10_000, 1.0)),
        ("electra-base", (2e-4, 256 * 512, 766_000, 10_000, 1.0)),
        ("electra-large", (2e-4, 2048 * 512, 1_750_000, 10_000, 1.0)),
        ("deberta-base", (2e-4, 2048 * 512, 1_000_000, 10_000, 1.0)),
        ("deberta-v3-base", (None, None, None, 10_000, 1.0)),
    ],
)
def test_recipes_are_those_published(name: str, recipe: tuple[Any, ...]) -> None:
    r = families.design(name).recipe
    assert (r.lr, r.batch, r.steps, r.schedule.warmup, r.clip) == recipe
    assert r.schedule.shape == "linear" and r.schedule.floor == 0.0
    beta2 = 0.98 if name.startswith("roberta") else 0.999
    o: Any = r.optimizer
    assert (o.beta1, o.beta2, o.eps, o.weight_decay) == (0.9, beta2, 1e-6, 0.01)


# ---------------------------------------------------------------- shown


@pytest.mark.parametrize(
    ("name", "words"),
    [("albert", ("order of the segments", "MASK")), ("electra", ("what the generator must say", "→")),
     ("deberta-v3", ("what the generator must say", "→"))],
)  # fmt: skip
def test_rows_are_shown(name: str, words: tuple[str, ...], text: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    from stemma.cli import main

    command = ["data", "show", str(text), "--for", name, "--rows", "2", "--set", "dims.vocab=500"]
    with pytest.raises(SystemExit) as left:
        main(command)
    out = capsys.readouterr().out
    assert left.value.code == 0 and all(w in out for w in words) and "[PAD]" not in out and "<pad>" not in out
    with pytest.raises(SystemExit):
        main([*command, "--json"])
    assert len(json.loads(capsys.readouterr().out)) == 2


# ---------------------------------------------------------------- learning


def test_counting_is_learned() -> None:
    """Texts that count upwards: the generator learns what is masked, with the detector's loss beside its own."""
    import numpy as np

    from stemma.objectives import Setting, objective
    from test_objective_masking import Pieces, Sentences
    from test_objective_rtd import nets

    view = Sentences([np.arange(10, 99) for _ in range(4)])
    design = families.design("electra")
    goal = objective(design.objective, Setting(Pieces(), design.text, 32, 1))
    model, others = nets("electra", scale=1.0)
    goal.tie(model, others)
    learners = {id(p): p for net in (model, *others.values()) for p in net.parameters()}
    opt = torch.optim.AdamW(list(learners.values()), lr=5e-3)
    stream = goal.examples(view)
    found = []
    for _ in range(120):
        loss = goal.loss(model, goal.collate([next(stream)[0] for _ in range(8)]), others)
        loss.total().backward()
        opt.step()
        opt.zero_grad()
        found.append({k: s.item() / loss.counts[k] for k, s in loss.sums.items()})
    token, replaced = (float(np.mean([f[k] for f in found[-20:]])) for k in ("token", "replaced"))
    assert token < 0.55 * math.log(89) and replaced < 0.7 * found[0]["replaced"], (token, replaced, found[0])


REAL = {
    "dims.vocab": 400, "dims.d_model": 128, "dims.heads": 4, "dims.d_ff": 512, "dims.context": 64,
    "recipe.batch": 2048, "recipe.lr": 2e-3, "arch.dropout": "Dropout()", "train.eval_tokens": 20_000,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ["electra", "deberta"])
def test_the_bible_is_learned(name: str, tmp_path: Path) -> None:
    """Masked tokens (ELECTRA's: its generator's) below the entropy of single tokens after 200 steps."""
    from stemma.train import prepare

    more = {"dims.embed": 128} if name == "electra" else {}
    run = pretrain(
        name, data="builtin:bible", out=tmp_path / "run", budget="200 steps", overrides=REAL | more, quiet=True
    )
    store = prepare.reopen(run.directory)[2]
    unigram = run.summary["baselines"]["unigram_bits_per_byte"] * store.bytes_total / store.tokens_total
    val = run.summary["val"]
    bits = val["loss_token" if name == "electra" else "loss"] / math.log(2)
    assert bits < 0.95 * unigram, (bits, unigram)
