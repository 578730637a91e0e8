"""The section of a report about runs that were tuned to a task: metrics, confusion matrix, worst predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from stemma.report.facts import k, named, number
from stemma.report.read import RunFiles
from stemma.report.rewards import rewards

# metrics of tasks, those that a card shows first
METRICS = {
    "accuracy": "accuracy", "f1": "F1", "f1_micro": "F1 of all labels", "spearman": "Spearman's correlation",
    "exact": "exact match", "f1_macro": "F1, mean of the labels", "f1_weighted": "F1, weighted", "mcc": "MCC",
    "precision": "precision", "recall": "recall", "pearson": "Pearson's correlation", "rmse": "RMSE",
    "margin": "margin", "ece": "calibration error",
    "chrf": "chrF", "bleu": "BLEU", "rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L",
}  # fmt: skip
EVALUATIONS = 20  # rows of the table of evaluations, at most
LARGEST = 40  # labels of a confusion matrix that is drawn


def metrics(values: Any) -> dict[str, float]:
    """The metrics of a task among numbers that were evaluated."""
    held = values if isinstance(values, Mapping) else {}
    return {name: v for name in METRICS if (v := number(held.get(name))) is not None}


def headline(run: RunFiles) -> str | None:
    """The metric of a run that its card shows; None if it was tuned to no task with metrics."""
    found = metrics(run.summary.get("val"))
    return next((f"{value:.3f} <small>{METRICS[name]} on held-out rows</small>" for name, value in found.items()), None)


def predictions(runs: Sequence[RunFiles]) -> str:
    """The section; empty without such runs."""
    panels = []
    for i, run, name in named(runs):
        answers = run.summary.get("answers")
        if metrics(run.summary.get("val")) and isinstance(answers, dict):
            parts = [over_time(run), confusion(answers), rewards(answers), worst(answers)]
            panels.append(f'<article class="panel {k(i)}"><h3>{escape(name)}</h3>{"".join(parts)}</article>')
    return "".join(panels)


def over_time(run: RunFiles) -> str:
    """The metrics after each evaluation, and at the end."""
    rows = [(str(row.get("step", "")), _own(row)) for row in run.steps]
    rows = [(step, found) for step, found in rows if found]
    rows = rows[:: -(-len(rows) // EVALUATIONS)] if rows else []
    rows.append(("kept", metrics(run.summary.get("val"))))
    names = [name for name in METRICS if any(name in found for _, found in rows)]
    head = "".join(f'<th class="n" scope="col">{escape(METRICS[name])}</th>' for name in names)
    body = ""
    for step, found in rows:
        cells = "".join(
            f'<td class="n" data-label="{escape(METRICS[name])}">{_shown(found.get(name))}</td>' for name in names
        )
        body += f'<tr><th scope="row">{escape(step)}</th>{cells}</tr>'
    return (
        '<p class="note">Metrics of the held-out rows after each evaluation; the last line is of the weights that were '
        f'kept.</p><div class="scroll" tabindex="0"><table class="stack"><thead><tr><th scope="col">step</th>{head}'
        f"</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _own(row: Mapping[str, Any]) -> dict[str, float]:
    return metrics({key.removeprefix("val_"): value for key, value in row.items() if key.startswith("val_")})


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def confusion(answers: Mapping[str, Any]) -> str:
    """How often each label (rows) was taken for each (columns); empty where it was not counted, or is too large."""
    labels, counts = answers.get("labels"), answers.get("confusion")
    if not isinstance(labels, list) or not isinstance(counts, list) or not 0 < len(labels) <= LARGEST:
        return ""
    rows = [row for row in counts if isinstance(row, list) and len(row) == len(labels)]
    if len(rows) != len(labels):
        return ""
    head = "".join(f'<th class="n" scope="col">{escape(str(name))}</th>' for name in labels)
    body = ""
    for name, row in zip(labels, rows, strict=True):
        total = sum(number(n) or 0.0 for n in row)
        cells = ""
        for other, n in zip(labels, row, strict=True):
            share = (number(n) or 0.0) / total if total else 0.0
            cells += (
                f'<td class="n" data-label="{escape(str(other))}">{number(n) or 0:.0f} <small>{share:.0%}</small></td>'
            )
        body += f'<tr><th scope="row">{escape(str(name))}</th>{cells}</tr>'
    return (
        '<h4>Confusion</h4><p class="note">Rows: what is right; columns: what was predicted.</p><div class="scroll" '
        f'tabindex="0"><table><thead><tr><th scope="col"></th>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def worst(answers: Mapping[str, Any]) -> str:
    """The predictions that were furthest from right."""
    found = answers.get("worst")
    rows = [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
    if not rows:
        return ""
    body = ""
    for one in rows:
        cells = "".join(
            f'<td class="any" data-label="{title}">{escape(str(one.get(key, "")))}</td>'
            for key, title in (("truth", "right"), ("found", "predicted"), ("score", "score"))
        )
        body += f'<tr><td class="any">{escape(str(one.get("text", "")))}</td>{cells}</tr>'
    head = "".join(f'<th scope="col">{title}</th>' for title in ("row", "right", "predicted", "score"))
    return (
        f'<h4>Worst predictions</h4><div class="scroll" tabindex="0"><table class="stack"><thead><tr>{head}</tr>'
        f"</thead><tbody>{body}</tbody></table></div>"
    )
