"""Preference losses and their gradients equal to trl's on the same batch, where trl is installed (1.16)."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import stemma
from oracle import reference as built
from oracle import saved
from preferences import Rows, runs
from stemma.declare.alignment import DPO, KTO
from stemma.objectives.continuations import Answer
from stemma.objectives.preference import pair_losses

trl = pytest.importorskip("trl")

pytestmark = pytest.mark.slow

EOS = 82
# our value, and trl's settings for the same
PAIRS: dict[str, tuple[DPO, dict[str, Any]]] = {
    "sigmoid": (DPO(), {}),
    "hinge": (DPO(loss="hinge", beta=0.4), {"loss_type": ["hinge"], "beta": 0.4}),
    "ipo": (DPO(loss="ipo"), {"loss_type": ["ipo"]}),
    "robust": (DPO(loss="robust", smoothing=0.2), {"loss_type": ["robust"], "label_smoothing": 0.2}),
    "dpo_norm": (DPO(beta=5.0, average=True), {"loss_type": ["sigmoid_norm"], "beta": 5.0}),
    "rpo": (DPO(sft=0.7), {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.7]}),
    "apo_zero": (DPO(loss="apo_zero"), {"loss_type": ["apo_zero"]}),
    "apo_down": (DPO(loss="apo_down"), {"loss_type": ["apo_down"]}),
}


def rows(answers: int) -> list[list[list[int]]]:
    """Of each row the prompt and its answers, as ids."""
    rng = np.random.default_rng(4)
    return [[rng.integers(5, 80, int(rng.integers(2, 9))).tolist() for _ in range(1 + answers)] for _ in range(6)]


def ours(given: list[list[list[int]]], said: list[dict[str, Any]]) -> Rows:
    made = [
        [Answer(np.asarray(prompt, np.int64), np.asarray([*a, EOS], np.int64)) for a in answers]
        for prompt, *answers in given
    ]
    return Rows(made, said)


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{i}": i for i in range(80)} | {"<unk>": 80, "<pad>": 81, "</s>": EOS}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **names)


def words(ids: list[int]) -> str:
    return "".join(f" w{i}" for i in ids)


def trainer(kind: str, data: list[dict[str, Any]], folder: Path, settings: dict[str, Any]) -> Any:
    import datasets

    args = getattr(trl, f"{kind}Config")(
        output_dir=str(folder), use_cpu=True, bf16=False, report_to=[], activation_checkpointing=False,
        per_device_train_batch_size=6, **settings,
    )  # fmt: skip
    return getattr(trl, f"{kind}Trainer")(
        model=built("llama", 1), ref_model=built("llama", 2), args=args, processing_class=tokenizer(),
        train_dataset=datasets.Dataset.from_list(data),
    )  # fmt: skip


def check(spec: Any, given: Rows, number: int, theirs: Any, folder: Path) -> dict[str, float]:
    """Our loss and its gradients are theirs on the same rows. Returns our metrics, as means."""
    for seed in (1, 2):
        saved("llama", folder / str(seed), seed)
    model, frozen = (stemma.load(folder / str(seed)) for seed in (1, 2))
    goal = runs(spec)
    found = goal.loss(model.train(), goal.example_batch(given, number), {"reference": frozen.requires_grad_(False)})
    found.total().backward()
    want = theirs._compute_loss(theirs.model, next(iter(theirs.get_train_dataloader())), False)
    want.backward()
    torch.testing.assert_close(found.total(), want.float(), atol=1e-5, rtol=1e-5)
    for mine, its in {
        "decoder.blocks.1.mlp.down.weight": "model.layers.1.mlp.down_proj.weight",
        "decoder.norm.weight": "model.norm.weight",
        "embed.tokens.weight": "model.embed_tokens.weight",
    }.items():
        one, other = model.get_parameter(mine).grad, theirs.model.get_parameter(its).grad
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    return {k: v / len(given) for k, v in found.metrics.items()}


@pytest.mark.parametrize("name", PAIRS)
def test_pairs(name: str, tmp_path: Path) -> None:
    spec, settings = PAIRS[name]
    given = rows(2)
    data = [dict(prompt=words(p), chosen=words(c), rejected=words(r)) for p, c, r in given]
    said = {"prompt": "q", "chosen": "a", "rejected": "b"}
    theirs = trainer("DPO", data, tmp_path, settings)
    found = check(spec, ours(given, [said] * 6), 6, theirs, tmp_path)
    told = {k: v[-1] for k, v in theirs._metrics["eval"].items()}
    if not spec.averaged:
        for mine, its in {"reward_chosen": "rewards/chosen", "margin": "rewards/margins"}.items():
            assert found[mine] == pytest.approx(told[its], abs=1e-5)
        assert found["accuracy"] == pytest.approx(told["rewards/accuracies"])
    assert found["logp_rejected"] == pytest.approx(told["logps/rejected"], rel=1e-5)


def test_thumbs(tmp_path: Path) -> None:
    given = rows(1)
    labels = [i % 3 > 0 for i in range(6)]
    data = [dict(prompt=words(p), completion=words(a), label=x) for (p, a), x in zip(given, labels, strict=True)]
    spec = KTO(group=6, beta=0.3, desirable=1.2, undesirable=0.9)
    settings = {"beta": 0.3, "desirable_weight": 1.2, "undesirable_weight": 0.9}
    theirs = trainer("KTO", data, tmp_path, settings)
    order = runs(spec).order(ours(given, []))
    shuffled = [order[i][0] for i in range(6)]
    at = [shuffled.index(i) for i in range(6)]  # so that our shuffle gives their order, which pairs answers
    mine = ours([given[i] for i in at], [{"prompt": "q", "completion": "a", "label": labels[i]} for i in at])
    found = check(spec, mine, 1, theirs, tmp_path)
    assert 0 < found["kl"] == pytest.approx(theirs._metrics["eval"]["kl"][-1], abs=1e-5)


def test_losses_without_a_reference() -> None:
    """SimPO and CPO, and ORPO's odds, as functions of log-probabilities."""
    from trl.experimental.cpo.cpo_trainer import CPOTrainer
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    torch.manual_seed(0)
    c, r = -torch.rand(2, 9) * 3 - 0.01
    this = SimpleNamespace(
        beta=2.0, loss_type="simpo", simpo_gamma=1.4, alpha=0.0, label_smoothing=0.1,
        accelerator=SimpleNamespace(device="cpu"),
    )  # fmt: skip
    want = CPOTrainer.cpo_loss(this, c, r)[0]
    spec = DPO(beta=2.0, margin=1.4, average=True, smoothing=0.1, reference="none")
    torch.testing.assert_close(pair_losses(spec, c, r), want, atol=1e-5, rtol=1e-5)
    this.beta, this.loss_type = 0.1, "sigmoid"
    want = CPOTrainer.cpo_loss(this, c, r)[0]
    torch.testing.assert_close(pair_losses(DPO(smoothing=0.1, reference="none"), c, r), want, atol=1e-5, rtol=1e-5)
    want = -ORPOTrainer.odds_ratio_loss(this, c, r)[0]
    torch.testing.assert_close(pair_losses(DPO(loss="odds", reference="none"), c, r), want, atol=1e-5, rtol=1e-5)
