"""The tasks of `stemma.samples.flan` in the forms of the Flan collection of 2022: with examples or without, options or
none, and chains of thought where a task has them."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from stemma.samples import flan
from stemma.samples.flan import CLUSTERS, TASKS, Row

LICENCE = flan.LICENCE
EACH = 120
SHOTS = 2


def stamp() -> str:
    """Changes where this module or that of the tasks does."""
    return hashlib.sha256(Path(__file__).read_bytes() + Path(flan.__file__).read_bytes()).hexdigest()


def _pair(sample: flan.Sample, ask: str, row: Row, options: bool, chain: bool) -> tuple[str, str]:
    """(prompt, completion) of a row."""
    row = row if options else {key: value for key, value in row.items() if key != "options"}
    if chain and "rationale" in row:
        return f"{flan.asked(ask, row)}\nThink it through.", f"{row['rationale']} So the answer is {row['answer']}."
    return flan.asked(ask, row), str(row["answer"])


def rows(clusters: Sequence[str] = CLUSTERS, chains: bool = True, each: int = EACH) -> Iterator[Row]:
    """Rows of all tasks in turn. A quarter each has options or none and examples or none; where a task has a rationale,
    half of the rows write it out, unless `chains` is off."""
    draw = random.Random("rows 2022")
    made = {n: flan.examples(n, each) for n, sample in TASKS.items() if sample.cluster in clusters}
    for number in range(each):
        for name, some in made.items():
            if number >= len(some):
                continue
            sample, few, options = TASKS[name], draw.random() < 0.5, draw.random() < 0.5
            chain = chains and draw.random() < 0.5 and "rationale" in some[number]
            ask = draw.choice(sample.templates())[0]
            prompt, completion = _pair(sample, ask, some[number], options, chain)
            if few:
                others = [row for row in draw.sample(some, 2 * SHOTS) if row != some[number]][:SHOTS]
                pairs = [_pair(sample, ask, row, options, chain) for row in others]
                shown = [f"Q: {p}\n\nA: {c}\n\n\n" for p, c in pairs if p != prompt]
                prompt = f"{''.join(shown)}Q: {prompt}\n\nA:"
            form = ("few-shot" if few else "zero-shot") + (", options" if options and "options" in some[number] else "")
            about = {"task": name, "cluster": sample.cluster, "form": f"{form}, chain" if chain else form}
            yield {"prompt": prompt, "completion": completion, **about}
