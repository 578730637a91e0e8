"""The section of a report about runs that were aligned: reward, divergence and the like over the run, what held-out
prompts were answered before and after."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from stemma.declare import alignment as declared
from stemma.declare.objectives import Objective
from stemma.markup import figures
from stemma.report.facts import k, labels, number, smoothed
from stemma.report.read import RunFiles

# numbers of a step by name, and what they are called; in this order
CURVES = {
    "reward": "reward", "kl": "KL from the reference, nats an answer", "accuracy": "accuracy", "margin": "margin",
    "reward_chosen": "reward of chosen answers", "reward_rejected": "reward of rejected answers",
    "drift": "drift from the reference, nats a token", "length": "length of answers, tokens",
    "finished": "share of answers that end", "entropy": "entropy, nats a token",
    "loss_value": "loss of the value model", "loss_ptx": "loss on pretraining text",
    "clipfrac": "share of clipped tokens", "zero_variance": "share of groups with one reward",
}  # fmt: skip
WIDE, HIGH, EDGE, POINTS = 320, 130, 54, 160
SAMPLES = 8  # prompts whose answers are shown


@functools.cache
def _methods() -> frozenset[str]:
    bases = (declared.Ranking, declared.Preference, declared.Online)
    return frozenset(kind.__name__ for kind in Objective.KINDS.values() if issubclass(kind, bases))


def aligned(run: RunFiles) -> bool:
    """Whether a run learnt from preferences or rewards."""
    objective = run.plan.get("objective")
    return isinstance(objective, dict) and objective.get("kind") in _methods()


def headline(run: RunFiles) -> str | None:
    """The held-out reward of sampled answers; None for other runs."""
    after = number(_held(run, "val").get("reward"))
    if not aligned(run) or after is None or "length" not in _held(run, "val"):
        return None
    before = number(_held(run, "before").get("reward"))
    was = f", {before:.3f} before" if before is not None else ""
    return f"{after:.3f} <small>reward on held-out prompts{was}{won(run)}</small>"


def won(run: RunFiles) -> str:
    """How often an answer has a higher reward than the one before the run."""
    held = _held(run, "win")
    share, low, high = (number(held.get(key)) for key in ("share", "low", "high"))
    if share is None or low is None or high is None:
        return ""
    return f"; better than before on {share:.0%} of {held.get('prompts')} ({low:.0%} to {high:.0%})"


def _held(run: RunFiles, key: str) -> Mapping[str, Any]:
    found = run.summary.get(key)
    return found if isinstance(found, dict) else {}


def alignment(runs: Sequence[RunFiles]) -> str:
    """The section; empty without such runs."""
    every = zip(enumerate(runs), labels(runs), strict=True)
    chosen = [(i, run, name) for (i, run), name in every if aligned(run) or run.outcome]
    if not chosen:
        return ""
    plots = "".join(plot(chosen, key, title) for key, title in CURVES.items())
    panels = "".join(
        f'<article class="panel {k(i)}"><h3>{escape(name)}</h3>{parts}</article>'
        for i, run, name in chosen
        if (parts := held_out(run) + answers(run) + compared(run))
    )
    plots += optimised(chosen)
    note = '<p class="note">Of the steps of training: a running mean, and faint each step.</p>' if plots else ""
    return f'{note}<div class="two">{plots}</div>{panels}'


def optimised(runs: Sequence[tuple[int, RunFiles, str]]) -> str:
    """Rewards by the root of the divergence, of runs that also judge by a reward which is not learnt (of weight 0): the
    one goes on rising where the other one falls (Gao et al. 2022, arXiv:2210.10760)."""
    drawn = ""
    golds = {i: gold(run) for i, run, _ in runs}
    for key in dict.fromkeys(key for i, *_ in runs if (own := golds[i]) for key in ("reward", *own)):
        lines = [
            figures.Series(
                [(math.sqrt(max(x, 0.0)), y) for x, y in zip(_mean(run, "kl"), _mean(run, key), strict=True)], k(i)
            )
            for i, run, _ in runs
            if golds[i] and len(_steps(run, "kl")) == len(_steps(run, key)) > 1
        ]
        what = "learnt" if key == "reward" else "not learnt"
        name = "reward" if key == "reward" else key.removeprefix("reward_")
        drawn += figures.plane(f"{name} ({what}) by divergence", "root of the KL from the reference, nats", lines)
    return drawn


def gold(run: RunFiles) -> list[str]:
    """Of the numbers of a step those of rewards that are not learnt: their weight is 0."""
    objective = run.plan.get("objective")
    held = objective.get("rewards") if isinstance(objective, dict) else None
    free = [str(one.get("source")) for one in held or [] if isinstance(one, dict) and one.get("weight") == 0]
    known = dict.fromkeys(key for row in run.steps for key in row if key.startswith("reward_") and key != "reward_std")
    return [key for key in known if any(key.removeprefix("reward_") in source for source in free)]


def _mean(run: RunFiles, key: str) -> list[float]:
    return smoothed([value for _, value in _steps(run, key)])


def compared(run: RunFiles) -> str:
    """Models that answered the same held-out prompts: the stages of a chain, or before and after (`outcome.json`)."""
    if not run.outcome:
        return ""
    last = run.outcome["rewards"][-1]
    return (
        f"<h4>{run.outcome['prompts']} held-out prompts, asked of each model</h4>{figures.models(run.outcome)}"
        f"<h4>Their answers, each with its {escape(last)}</h4>{figures.answers(run.outcome)}"
    )


def plot(runs: Sequence[tuple[int, RunFiles, str]], key: str, title: str) -> str:
    """A small picture of one number over the steps of all runs that have it; empty where none has."""
    lines = [(i, name, found) for i, run, name in runs if len(found := _steps(run, key)) > 1]
    if not lines:
        return ""
    every = [value for *_, found in lines for _, value in found]
    low, high = min(every), max(every)
    room = (high - low) or abs(high) or 1.0
    low, high = low - 0.05 * room, high + 0.05 * room
    last = max(found[-1][0] for *_, found in lines)

    def path(points: Sequence[tuple[float, float]]) -> str:
        xs = (EDGE + step / last * (WIDE - EDGE - 8) for step, _ in points)
        ys = (8 + (high - value) / (high - low) * (HIGH - 30) for _, value in points)
        return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in zip(xs, ys, strict=True))

    drawn, ends = "", []
    for i, name, found in lines:
        steps, mean = [step for step, _ in found], smoothed([value for _, value in found])
        bold = list(zip(steps, mean, strict=True))
        drawn += f'<g class="{k(i)}"><path class="raw" d="{path(found)}"/><path d="{path(bold)}"/></g>'
        who = f'<span class="name {k(i)}">{escape(name)}</span> ' if len(runs) > 1 else ""
        ends.append(f"{who}{mean[0]:.3g} to {mean[-1]:.3g}")
    axis = "".join(
        f'<line class="grid" x1="{EDGE}" x2="{WIDE - 8}" y1="{y}" y2="{y}"/><text x="{EDGE - 5}" y="{y + 4}" '
        f'text-anchor="end">{value:.3g}</text>'
        for y, value in ((8, high), (HIGH - 22, low))
    )
    extent = f'<text x="{WIDE - 8}" y="{HIGH - 5}" text-anchor="end">{last:,.0f} steps</text>'
    return (
        f'<figure class="panel"><figcaption><b>{escape(title)}</b><br>{"; ".join(ends)}</figcaption><svg class="mini" '
        f'viewBox="0 0 {WIDE} {HIGH}" role="img" aria-label="{escape(title)} over the steps">'
        f"{axis}{drawn}{extent}</svg></figure>"
    )


def _steps(run: RunFiles, key: str) -> list[tuple[float, float]]:
    """(step, value) of at most POINTS points, each a mean of neighbours."""
    found = [(float(number(row.get("step")) or i), v) for i, row in enumerate(run.steps, 1)
             if (v := number(row.get(key))) is not None]  # fmt: skip
    size = -(-len(found) // POINTS) if found else 1
    groups = [found[i : i + size] for i in range(0, len(found), size)]
    return [(g[-1][0], sum(value for _, value in g) / len(g)) for g in groups]


def held_out(run: RunFiles) -> str:
    """What was measured on held-out rows, before and after."""
    before, after = _held(run, "before"), _held(run, "val")
    body = ""
    for key, value in after.items():
        now, was = number(value), number(before.get(key))
        if now is None or key == "targets":
            continue
        title = CURVES.get(key, key.replace("_", " "))
        body += (
            f'<tr><th scope="row">{escape(title)}</th><td class="n" data-label="before">'
            f'{"-" if was is None else f"{was:.4g}"}</td><td class="n" data-label="after">{now:.4g}</td></tr>'
        )
    if not body:
        return ""
    return (
        '<div class="scroll" tabindex="0"><table class="stack"><thead><tr><th scope="col">held out</th>'
        f'<th class="n" scope="col">before</th><th class="n" scope="col">after</th></tr></thead><tbody>{body}</tbody>'
        "</table></div>"
    )


def answers(run: RunFiles) -> str:
    """Answers to held-out prompts before and after, side by side."""
    found = _held(run, "answers")
    both = [found.get(name) for name in ("before", "after")]
    first, second = ([row for row in part if isinstance(row, dict)] if isinstance(part, list) else [] for part in both)
    by_number = {row.get("number"): row for row in first}
    shown = [(by_number[row.get("number")], row) for row in second if row.get("number") in by_number][:SAMPLES]
    body = ""
    for was, now in shown:
        cells = "".join(
            f'<td class="any" data-label="{title}">{escape(str(row.get("answer", "")))} '
            f"<small>{_score(row.get('reward'))}</small></td>"
            for title, row in (("before", was), ("after", now))
        )
        body += f'<tr><th scope="row" class="any">{escape(str(now.get("prompt", "")))}</th>{cells}</tr>'
    if not body:
        return ""
    return (
        '<h4>Answers to held-out prompts</h4><div class="scroll" tabindex="0"><table class="stack wide"><thead><tr>'
        '<th scope="col">prompt</th><th scope="col">before</th><th scope="col">after</th></tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _score(value: Any) -> str:
    found = number(value)
    return "" if found is None else f"reward {found:.3g}"
