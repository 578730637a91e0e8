"""Ghost Attention as a stage of a chain (Touvron et al. 2023, LLaMA 2, section 3.3): the model so far answers
conversations under an instruction that stands before every user's words, and learns the last answers with the
instruction before the first words alone.

FOLDER/rows.jsonl    the conversations, as `instruct.ghosts` writes them; resumed by whole rounds
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import stemma
from stemma import disk
from stemma.declare.tasks import Ghost
from stemma.errors import UsageError
from stemma.instruct import ghosts
from stemma.instruct.writers import LocalWriter
from stemma.spec import Spec, at_least, interval, not_negative

LEARNT: dict[str, Any] = {"ghost": Ghost()}  # the settings of what learns the rows


@dataclass(frozen=True)
class Drawing(Spec):
    """How answers are drawn: to `count` conversations (None: all), under instructions that join one to `together`
    attributes, a share of them `short`; `attributes`: a file of them ("": those of `instruct.ghosts`). An answer has at
    most `tokens`."""

    count: int | None = at_least(1, 200)
    together: int = at_least(1, 3)
    short: float = interval("[0, 1]", 0.5)
    tokens: int = at_least(1, 256)
    temperature: float = not_negative(1.0)
    attributes: str = ""


def drawn(model: str, data: str, how: Drawing, folder: Path, seed: int, template: str | None, quiet: bool) -> Path:
    """The file of the rows that `model` makes of the conversations of `data`, whose rest is made if it was begun.
    Raises UsageError where no conversation has only whole answers."""
    kinds = ghosts.attributes(how.attributes) if how.attributes else ghosts.ATTRIBUTES
    talks = ghosts.conversations(data)
    own = {key: value for key, value in asdict(how).items() if key not in ("attributes", "count")}
    count = None if how.count is None else min(how.count, len(talks))
    plan = ghosts.Plan(model, ghosts.facts(talks, kinds), count=count, seed=seed, **own)
    writer = LocalWriter(stemma.load(model), model, template=template)
    made = ghosts.Ghosts(plan, writer, talks, kinds, folder)
    done = made.run()
    left = ", ".join(f"{many} {why}" for why, many in done.counts.most_common())
    if not quiet:
        disk.tell(f"{done.kept} of {done.asked} conversations answered" + (f"; left out: {left}" if left else ""))
    if not done.kept:
        raise UsageError(
            f"{model} answered none of {done.asked} conversations wholly ({left}): begin in another directory with "
            f"gatt.ghost.tokens above {how.tokens} or a longer sft.budget, or leave Ghost Attention out: gatt.data=none"
        )
    return made.rows
