"""The small tasks of `stemma.samples.flan` as tasks of a mixture."""

from __future__ import annotations

from functools import partial

from stemma.mixtures.published import COT, FLAN
from stemma.mixtures.shapes import CHAINS, SHAPES
from stemma.mixtures.tasks import Task, Template
from stemma.samples import flan

NAME = "builtin:flan"


def tasks(tests: bool = False) -> list[Task]:
    """The tasks, each with ten templates; those with a rationale once more, as chains of thought. `tests`: with the
    examples that are for tests."""
    found: list[Task] = []
    for name, sample in flan.TASKS.items():
        rows = partial(flan.examples, name, tests=tests)
        options = "options" if "options" in flan.examples(name, 1)[0] else ()
        plain = tuple(Template(*pair) for pair in sample.templates())
        templates = (*plain, Template(*sample.turned, turned=True))
        found.append(Task(name, sample.cluster, FLAN, templates, rows, options=options))
        if "rationale" in flan.examples(name, 1)[0]:
            chains = tuple(Template(f"{t.prompt}\nThink it through.", CHAINS[i % 2]) for i, t in enumerate(plain))
            asked = tuple(
                Template(pair.prompt, pair.completion.replace("{question}", sample.asks[0]), turned=True)
                for pair in SHAPES["reasoning"].inverted
                if "{question}" not in pair.prompt
            )
            found.append(Task(f"{name}_cot", sample.cluster, COT, chains, rows, asked))
    return found
