"""The rows of a mixture of tasks: which task, example, template and form each has, as a function of the seed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from stemma.data import mixture as drawing
from stemma.data import random as draw
from stemma.errors import UsageError
from stemma.mixtures import forms
from stemma.mixtures.forms import Delimiters, Form
from stemma.mixtures.published import left_out
from stemma.mixtures.rates import Mixture, rates
from stemma.mixtures.tasks import Held, Task, Template, held

TEMPLATE, EXEMPLARS, EVALUATED = 202, 203, 204  # keys of draws
SHOTS = 5  # examples in front of a question at most; the published numbers differ by task and are not published
CHARACTERS = 4  # of a token, where no tokenizer counts
EACH = 100  # rows of a task that is evaluated

Row = dict[str, Any]


def estimated(text: str) -> int:
    """The tokens of a text, where no tokenizer counts them: one for four characters."""
    return -(-len(text) // CHARACTERS)


@dataclass(frozen=True)
class How:
    """`count`: counts tokens; `limit`: tokens of a few-shot prompt at most (None: as published); `shots`: examples in
    front of a question at most."""

    seed: int = 1
    shots: int = SHOTS
    limit: int | None = None
    count: Callable[[str], int] = estimated
    delimiters: Delimiters = field(default_factory=Delimiters)


class Rows:
    """The rows of a mixture of `tasks`. `hold_out`: clusters of which nothing is learnt, with those that are like them
    (`dropped`); `without`: tasks that a part leaves out by name. Raises UsageError for clusters that are not there, for
    collections that the mixture has not, and if nothing is left; DataError for tasks without rows."""

    def __init__(
        self, mixture: Mixture, tasks: Sequence[Task], hold_out: Sequence[str] = (), how: How | None = None
    ) -> None:
        self.mixture, self.how = mixture, how or How()
        self.open: list[str] = []
        self.dropped = left_out(hold_out, (task.cluster for task in tasks)) if hold_out else ()
        self.apart = [task for task in tasks if task.cluster in hold_out]
        barred = [t for t in tasks if any(word in t.name.lower() for word in mixture.part(t.collection).without)]
        self.without = [task.name for task in barred]
        some = sorted((t for t in tasks if t not in barred and t.cluster not in self.dropped), key=lambda t: t.name)
        if not some:
            raise UsageError(f"no task of {mixture.name} is left" + (" beside what is held out" if hold_out else ""))
        self.held = [held(task, mixture.part(task.collection).cap, self.how.seed) for task in some]
        sizes: dict[str, dict[str, int]] = defaultdict(dict)
        for one in self.held:
            sizes[one.task.collection][one.task.name] = one.rows
        self.rates = rates(mixture, sizes)
        self.epoch = sum(len(one.examples) for one in self.held)
        self.counts: Counter[tuple[str, str]] = Counter()  # by what ("task", "form", ...) and name
        self._parts = [
            (number, form, self.rates[one.task.name] * share)
            for number, one in enumerate(self.held)
            for form, share in mixture.part(one.task.collection).shares(bool(one.task.inverted)).items()
        ]

    def rows(self, count: int) -> Iterator[Row]:
        """`count` rows; few-shot rows for whose examples the limit leaves no room are left out and counted."""
        self.counts = Counter()
        stream = drawing.Mixture(self.how.seed, [share for _, _, share in self._parts])
        slot = made = 0
        while made < count:
            part, number = stream[slot]
            slot += 1
            row = self._row(part, number)
            if row is None:
                self.counts["left out", "few-shot rows without room for an example"] += 1
                if slot > 100 and made == 0:
                    raise UsageError(
                        "the limit leaves room for no example in front of a question; raise it, or take another mixture"
                    )
                continue
            made += 1
            for what in ("collection", "cluster", "task", "form"):
                self.counts[what, row[what]] += 1
            yield row

    def _row(self, part: int, number: int) -> Row | None:
        place, form, _ = self._parts[part]
        one = self.held[place]
        seed = self.how.seed
        chosen, epoch = drawing.member(seed, part, number, len(one.examples))
        example = one.examples[chosen]
        templates = one.task.inverted if form.inverted else one.task.templates
        template = templates[int(draw.integers((seed, TEMPLATE, part, epoch, chosen), 1, len(templates))[0])]
        prompt, completion = forms.written(example, template, form.options)
        if form.few:
            shown = self._exemplars(one, chosen, template, form, (part, number))
            limit = self.how.limit or self.mixture.tokens
            prompt, there = forms.few_shot(shown, prompt, limit, self.how.count, self.how.delimiters)
            if not there:
                return None
        return row_of(one.task, prompt, completion, form.name(bool(example.options) and not template.turned))

    def _exemplars(
        self, one: Held, query: int, template: Template, form: Form, keys: tuple[int, int]
    ) -> list[tuple[str, str]]:
        """Examples in front of a question, in its own words: none is the question's own, or the same text."""
        several = draw.integers((self.how.seed, EXEMPLARS, *keys), 4 * self.how.shots, len(one.examples)).tolist()
        chosen: list[tuple[str, str]] = []
        asked = {forms.written(one.examples[query], template, form.options)[0]}
        for number in dict.fromkeys(several):
            pair = forms.written(one.examples[number], template, form.options)
            if number != query and pair[0] not in asked:
                asked.add(pair[0])
                chosen.append(pair)
        return chosen[: self.how.shots]

    def evaluated(self, each: int = EACH) -> list[Row]:
        """Rows of the tasks that are held out: zero-shot, with their options, by templates that are not turned around.
        `options` lists what there is to choose from; where some have it, those without are left out (`open`), since
        answers that are ranked and answers that are written are judged apart."""
        found: list[Row] = []
        for task in self.apart:
            plain = [template for template in task.templates if not template.turned]
            for number, example in enumerate(held(task, each, self.how.seed).examples):
                keys = (self.how.seed, EVALUATED, number)
                template = plain[int(draw.integers(keys, 1, len(plain))[0])]
                prompt, completion = forms.written(example, template, True)
                row = row_of(task, prompt, completion, forms.ZERO.name(bool(example.options)))
                found.append({**row, "options": list(example.options)} if example.options else row)
        chosen = [row for row in found if "options" in row] or found
        self.open = sorted({row["task"] for row in found} - {row["task"] for row in chosen})
        return chosen


def row_of(task: Task, prompt: str, completion: str, form: str) -> Row:
    """A row as `stemma tune` reads it."""
    return {
        "prompt": prompt,
        "completion": completion,
        "task": task.name,
        "cluster": task.cluster,
        "collection": task.collection,
        "form": form,
    }
