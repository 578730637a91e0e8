"""Samples of a run's model, in the form of `samples.json`: what the report shows of it in its own words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stemma import disk
from stemma.errors import StemmaError

PROMPT, WRITTEN = 16, 48  # words of a prompt of held-out text, and tokens that a model writes after it
Gapped = tuple[list[str | None], list[str]]  # a text with gaps (None), and the text of the gaps


def continued(model: Any, prompts: Sequence[str], seed: int) -> dict[str, Any]:
    """What a model writes after each of the prompts."""
    import stemma

    drawn = stemma.generate(
        model, list(prompts), max_new_tokens=WRITTEN, temperature=0.7, top_p=0.9, seed=seed, ignore_eos=True
    )
    return {"continue": [{"prompt": p, "text": r.text} for p, r in zip(prompts, drawn, strict=True)]}


def filled(model: Any, cases: Sequence[Gapped]) -> dict[str, Any]:
    """What a model puts into the gaps of texts: guesses of an encoder, spans of another."""
    found = []
    for parts, truth in cases:
        import stemma

        out = stemma.fill(model, "".join("[MASK]" if p is None else p for p in parts))
        guesses = [[{"text": g.text, "p": g.probability} for g in row] for row in out.guesses]
        found.append({"parts": parts, "truth": truth, "guesses": guesses, "spans": out.spans})
    return {"fill" if model.arch.structure == "encoder" else "repair": found}


def of_held_out(run: Path, number: int) -> dict[str, Any] | None:
    """Samples of a finished run on `number` texts that it held out; None if its model neither writes nor fills in, if
    it learnt rows of a task and no texts, or if its text is gone."""
    import stemma
    from stemma.declare.tasks import RowObjective
    from stemma.train.prepare import reopen

    if not (run / "model").is_dir():
        return None
    try:
        plan, _, store = reopen(run, verify=False)
        if isinstance(plan.objective, RowObjective):
            return None
        model = stemma.load(run)
        if model.lm is None:
            return None
        _, held = store.split(plan.train.val_fraction, plan.seed)
        texts = [words for i in range(len(held)) if len(words := held.text(i).split()) > 6][:number]
        if not texts:
            return None
        if model.arch.structure == "decoder":
            return continued(model, [" ".join(words[:PROMPT]) for words in texts], plan.seed)
        return filled(model, [gapped(words[:PROMPT]) for words in texts])
    except StemmaError:
        return None


def gapped(words: Sequence[str]) -> Gapped:
    """A text without its middle word."""
    at = len(words) // 2
    return [" ".join(words[:at]) + " ", None, " " + " ".join(words[at + 1 :])], [words[at]]


def add(run: Path, number: int) -> bool:
    """Give a run `samples.json` if it has none and can have one; whether it was written."""
    if number == 0 or (run / "samples.json").exists():
        return False
    found = of_held_out(run, number)
    if found is not None:
        disk.write_json(run / "samples.json", found)
    return found is not None
