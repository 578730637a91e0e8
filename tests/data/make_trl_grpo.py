"""What trl's GRPOTrainer, RLOOTrainer and GKDTrainer compute of the same numbers: tests/data/trl_grpo.json.

python tests/data/make_trl_grpo.py     # with trl 1.16 installed
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from trl import GRPOTrainer, RLOOTrainer
from trl.experimental.gkd import GKDTrainer

ROWS, LENGTH, LONGEST = 6, 9, 12
# of each case: trl's loss type, its level of the ratio, the clip above and the weight of the KL term
CASES: dict[str, tuple[str, str, float, float]] = {
    "grpo": ("grpo", "token", 0.2, 0.04),
    "dr_grpo": ("dr_grpo", "token", 0.2, 0.0),
    "dapo": ("dapo", "token", 0.28, 0.0),
    "gspo": ("grpo", "sequence", 0.2, 0.1),
}


def batch() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(5)
    lengths = torch.tensor([9, 4, 1, 7, 9, 3])
    old = -torch.rand(ROWS, LENGTH, generator=draw) * 3
    new, reference = (old + 0.4 * torch.randn(ROWS, LENGTH, generator=draw) for _ in range(2))
    mask = (torch.arange(LENGTH) < lengths[:, None]).long()
    return {
        "old": old,
        "new": new,
        "reference": reference,
        "mask": mask,
        "advantages": torch.randn(ROWS, generator=draw),
    }


def trainer(logps: torch.Tensor, **more: Any) -> Any:
    accelerator = SimpleNamespace(
        gather=lambda x: x, reduce=lambda x, reduction: x, num_processes=1, sync_gradients=True
    )
    args = SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1)
    return SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *a, **k: (logps, torch.zeros_like(logps), None),
        aux_loss_enabled=False, top_entropy_quantile=1.0, off_policy_mask_threshold=None, use_vllm=False,
        _entropy_bonus_enabled=False, model=SimpleNamespace(training=True), accelerator=accelerator, args=args,
        current_gradient_accumulation_steps=1, max_completion_length=LONGEST,
        _metrics=defaultdict(lambda: defaultdict(list)), epsilon_low=0.2, **more,
    )  # fmt: skip


def measured(cls: Any, given: dict[str, torch.Tensor], **more: Any) -> dict[str, Any]:
    logps = given["new"].clone().requires_grad_()
    inputs = {
        "prompt_ids": torch.zeros(ROWS, 2, dtype=torch.long), "prompt_mask": torch.ones(ROWS, 2, dtype=torch.long),
        "completion_ids": torch.zeros(ROWS, LENGTH, dtype=torch.long), "completion_mask": given["mask"],
        "advantages": given["advantages"], "old_per_token_logps": given["old"],
        "old_logps": (given["old"] * given["mask"]).sum(1), "ref_per_token_logps": given["reference"],
        "num_items_in_batch": given["mask"].sum(),
    }  # fmt: skip
    loss = cls._compute_loss(trainer(logps, **more), None, inputs)
    loss.backward()
    assert logps.grad is not None
    return {"loss": loss.item(), "grad": logps.grad.tolist()}


def main() -> None:
    given = batch()
    found: dict[str, Any] = {name: value.tolist() for name, value in given.items()} | {"longest": LONGEST}
    for name, (kind, level, high, beta) in CASES.items():
        more = {"loss_type": kind, "importance_sampling_level": level, "epsilon_high": high, "beta": beta}
        found[name] = measured(GRPOTrainer, given, **more) | {"high": high, "kl": beta}
    found["rloo"] = measured(RLOOTrainer, given, epsilon_high=0.2)
    draw = torch.Generator().manual_seed(6)
    student, teacher = torch.randn(2, 5, 7, generator=draw), torch.randn(2, 5, 7, generator=draw)
    labels = torch.tensor([[-100, 1, 2, 3, -100], [0, 0, 0, -100, -100]])
    found["gkd"] = {"student": student.tolist(), "teacher": teacher.tolist(), "labels": labels.tolist()}
    for beta in (0.0, 0.1, 0.5, 1.0):
        loss = GKDTrainer.generalized_jsd_loss(student, teacher, labels, beta=beta, temperature=0.9)
        found["gkd"][f"beta {beta}"] = loss.item()
    Path(__file__).with_name("trl_grpo.json").write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
