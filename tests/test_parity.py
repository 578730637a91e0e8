"""Our models against the reference's: logits, saved files, reloaded files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file

import stemma
from oracle import CASES, TASKS, inputs, labels, saved, shared, task

TOLERANCE = 1e-5


def outputs(model: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        out = model(**batch)
    if isinstance(model, torch.nn.Module) and hasattr(model, "arch"):
        found = {
            "logits": out.logits,
            "hidden": out.hidden,
            "pair": out.seq_relationship_logits,
            "pooled": out.pooled,
            "start_logits": out.start_logits,
            "end_logits": out.end_logits,
        }
    else:
        logits = out.get("prediction_logits", out.get("logits"))
        name = type(model).__name__
        if any(t in name for t in TASKS):
            return {k: v for k, v in out.items() if k in ("logits", "start_logits", "end_logits")}
        if name.endswith("ForNextSentencePrediction"):
            return {"pair": logits}
        hidden = out.get("last_hidden_state")
        found = {
            "logits": logits,
            "hidden": hidden,
            "pair": out.get("seq_relationship_logits", out.get("sop_logits")),
            "pooled": out.get("pooler_output"),
        }
    return {k: v for k, v in found.items() if v is not None}


def gap(ours: Any, theirs: Any, batch: dict[str, torch.Tensor]) -> float:
    """Largest difference over real tokens, of all outputs that the reference gives."""
    a, b = outputs(ours, batch), outputs(theirs, batch)
    assert b and set(b) <= set(a)
    real = batch.get("decoder_attention_mask", batch["attention_mask"]).bool()
    worst = 0.0
    for name in b:
        assert a[name].shape == b[name].shape
        each = b[name].ndim >= 2 and b[name].shape[:2] == real.shape  # one a token: padding has none
        x, y = (a[name][real], b[name][real]) if each else (a[name], b[name])
        worst = max(worst, (x - y).abs().max().item())
    return worst


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_the_reference(case: str) -> None:
    ours, theirs = shared(case)
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
    ours, _ = shared(case)
    ours.save(tmp_path / "b")
    name, _, _ = CASES[case]
    again = getattr(hf, name).from_pretrained(tmp_path / "b").eval()
    batch = inputs(case)
    assert gap(ours, again, batch) <= TOLERANCE
    first, second = load_file(tmp_path / "a/model.safetensors"), load_file(tmp_path / "b/model.safetensors")
    assert set(first) - set(ours.ledger.ignored) == set(second)
    for key, value in second.items():
        assert torch.equal(value, first[key]), key


# The reference sets what XLM makes of padding to zero (which a head that reads the first token would read), and its
# causal mask leaves padding on the left to be seen.
XLM = [c for c in CASES if CASES[c][1] is hf.XLMConfig]
RIGHT_ONLY = [c for c in XLM if c.startswith("xlm-clm") or task(c) in ("SequenceClassification", "MultipleChoice")]


@pytest.mark.parametrize("case", [c for c in CASES if c not in RIGHT_ONLY])
def test_padding_on_the_left_equals_the_reference(case: str) -> None:
    assert gap(*shared(case), inputs(case, left=True)) <= TOLERANCE


@pytest.mark.parametrize("case", [c for c in CASES if task(c)])
def test_losses_of_tasks_equal_the_reference(case: str) -> None:
    ours, theirs = shared(case)
    batch = inputs(case)
    if case in XLM and task(case) == "QuestionAnswering":  # an answer's end is chosen among padding too
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    targets = labels(case, batch)
    with torch.no_grad():
        want = theirs(**batch, **targets).loss
        mine = torch.stack(list(targets.values()), 1) if len(targets) == 2 else targets["labels"]
        got = ours(**batch, labels=mine).loss
    assert abs(want - got) <= TOLERANCE


@pytest.mark.parametrize("case", [c for c in CASES if not c.endswith(("model", "pair")) and not task(c)])
def test_losses_equal_the_reference(case: str) -> None:
    ours, theirs = shared(case)
    batch = inputs(case)
    targets = batch.pop("decoder_input_ids", batch["input_ids"]).clone()
    batch.pop("decoder_attention_mask", None)
    targets[0, :5] = -100
    if ours.detect is not None:  # whether a token was replaced
        targets = (targets % 3 == 0).long()
    zero = case in XLM or (case.startswith("deberta") and case.endswith("-default"))
    if "sliding_window" in CASES[case][2] or zero:  # padding that sees nothing (mistral), or is set to zero
        targets[batch["attention_mask"] == 0] = -100
    label = "sentence_order_label" if case.startswith("albert") else "next_sentence_label"
    pair = torch.tensor([0, 1, 1]) if ours.pair is not None else None
    wanted = targets
    if case.startswith("xlm-clm"):  # whose labels the reference does not move on by a place
        wanted = torch.cat([targets[:, 1:], targets.new_full((len(targets), 1), -100)], 1)
    with torch.no_grad():
        want = theirs(**batch, labels=wanted, **({label: pair} if pair is not None else {})).loss
        got = ours(**batch, labels=targets, next_sentence_label=pair).loss
    assert abs(want - got) <= TOLERANCE


@pytest.mark.parametrize("case", ["bert-mlm", "gpt2", "llama", "t5"])
def test_half_precision_loads_as_the_reference_does(case: str, tmp_path: Path) -> None:
    saved(case, tmp_path)
    name, _, _ = CASES[case]
    theirs = getattr(hf, name).from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    ours = stemma.load(tmp_path, dtype="bfloat16")
    assert ours.dtype == torch.bfloat16
    batch = inputs(case)
    scale = outputs(theirs, batch)["logits"].abs().max().item()
    assert gap(ours, theirs, batch) <= 0.02 * scale
