"""Our models against the reference's: logits, saved files, reloaded files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from oracle import CASES, inputs, saved
from safetensors.torch import load_file

import stemma

TOLERANCE = 1e-5


def outputs(model: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        out = model(**batch)
    if isinstance(model, torch.nn.Module) and hasattr(model, "arch"):
        found = {"logits": out.logits, "hidden": out.hidden, "pair": out.seq_relationship_logits, "pooled": out.pooled}
    else:
        logits = out.get("logits", out.get("prediction_logits"))
        hidden = out.get("last_hidden_state")
        found = {"logits": logits, "hidden": hidden, "pair": out.get("seq_relationship_logits"), "pooled": out.get("pooler_output")}
    return {k: v for k, v in found.items() if v is not None}


def gap(ours: Any, theirs: Any, batch: dict[str, torch.Tensor]) -> float:
    """Largest difference over real tokens, of all outputs that the reference gives."""
    a, b = outputs(ours, batch), outputs(theirs, batch)
    assert b and set(b) <= set(a)
    real = batch.get("decoder_attention_mask", batch["attention_mask"]).bool()
    worst = 0.0
    for name in b:
        x, y = (a[name], b[name]) if name in ("pair", "pooled") else (a[name][real], b[name][real])
        worst = max(worst, (x - y).abs().max().item())
    return worst


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_the_reference(case: str, tmp_path: Path) -> None:
    theirs = saved(case, tmp_path)
    ours = stemma.load(tmp_path)
    batch = inputs(case)
    assert gap(ours, theirs, batch) <= TOLERANCE
    plain = {k: v for k, v in batch.items() if "mask" not in k}  # no masks at all takes other paths
    real = {"attention_mask": torch.ones_like(batch["input_ids"])}
    if "decoder_input_ids" in batch:
        real["decoder_attention_mask"] = torch.ones_like(batch["decoder_input_ids"])
    a, b = outputs(ours, plain), outputs(theirs, plain | real)
    for name in b:
        assert (a[name] - b[name]).abs().max() <= TOLERANCE


@pytest.mark.parametrize("case", CASES)
def test_saved_files_reload_in_the_reference(case: str, tmp_path: Path) -> None:
    saved(case, tmp_path / "a")
    ours = stemma.load(tmp_path / "a")
    ours.save(tmp_path / "b")
    name, _, _ = CASES[case]
    again = getattr(hf, name).from_pretrained(tmp_path / "b").eval()
    batch = inputs(case)
    assert gap(ours, again, batch) <= TOLERANCE
    first, second = load_file(tmp_path / "a/model.safetensors"), load_file(tmp_path / "b/model.safetensors")
    assert set(first) - set(ours.ledger.ignored) == set(second)
    for key, value in second.items():
        assert torch.equal(value, first[key]), key
