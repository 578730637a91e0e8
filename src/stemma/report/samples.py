"""The section of a report with samples of the models."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from stemma.report.facts import k, named, number
from stemma.report.read import RunFiles


def samples(runs: Sequence[RunFiles]) -> str:
    panels = []
    for i, run, name in named(runs):
        parts = [
            *(fill_sample(s) for s in listed(run, "fill")),
            *(continue_sample(s) for s in listed(run, "continue")),
            *(repair_sample(s) for s in listed(run, "repair")),
        ]
        if parts:
            what = {"fill": "fills in masked words", "continue": "continues", "repair": "repairs removed spans"}
            does = next(text for key, text in what.items() if listed(run, key))
            panels.append(f'<article class="panel {k(i)}"><h3>{escape(name)} {does}</h3>{"".join(parts)}</article>')
    return f'<div class="two">{"".join(panels)}</div>' if panels else ""


def listed(run: RunFiles, key: str) -> list[dict[str, Any]]:
    found = run.samples.get(key)
    return [s for s in found if isinstance(s, dict)] if isinstance(found, list) else []


def fill_sample(sample: dict[str, Any]) -> str:
    """A text with gaps, and the guesses for each gap with their probabilities."""
    truth = [str(t) for t in sample.get("truth") or []]
    guesses = sample.get("guesses") or []
    best = [escape(str(rows[0]["text"]).strip()) if rows else "?" for rows in guesses]
    out = f"<p>{with_gaps(sample, best, '?')}</p>"
    for n, rows in enumerate(guesses):
        right = truth[n].strip().lower() if n < len(truth) else None
        items = ""
        for guess in rows:
            guessed, p = str(guess.get("text", "")).strip(), number(guess.get("p")) or 0.0
            hit = ' class="hit"' if right is not None and guessed.lower() == right else ""
            items += (
                f'<li{hit}><span>{escape(guessed) or "&nbsp;"}</span><span class="meter" aria-hidden="true">'
                f'<i style="--w:{min(p, 1):.4f}"></i></span><span class="n">{p:.1%}</span></li>'
            )
        out += f'<ol class="guesses">{items}</ol>'
    if truth:
        out += f'<p class="truth">The text has: {escape(", ".join(truth))}</p>'
    return f'<div class="sample">{out}</div>'


def with_gaps(sample: dict[str, Any], filled: Sequence[str], missing: str) -> str:
    """The pieces of a text with the markup `filled` in the gaps between them."""
    rest = iter(filled)
    text = ""
    for piece in sample.get("parts") or []:
        text += escape(str(piece)) if piece is not None else f'<span class="gap">{next(rest, missing)}</span>'
    return text


def continue_sample(sample: dict[str, Any]) -> str:
    prompt, text = str(sample.get("prompt", "")), str(sample.get("text", ""))
    return f'<div class="sample"><p>{escape(prompt)}<span class="said">{escape(text)}</span></p></div>'


def repair_sample(sample: dict[str, Any]) -> str:
    spans = [str(s) for s in sample.get("spans") or []]
    text = with_gaps(sample, [escape(s.strip()) or "&hellip;" for s in spans], "&hellip;")
    truth = [str(t) for t in sample.get("truth") or []]
    end = f'<p class="truth">The text has: {escape(" / ".join(truth))}</p>' if truth else ""
    return f'<div class="sample"><p>{text}</p>{end}</div>'
