"""How many steps a run takes, and where that changed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SHAPE = [{"step": int, "steps": int}]  # as a checkpoint's state has the changes


@dataclass
class Length:
    """The steps that were `planned`, and each change of them as (the step after which it was made, the new length). A
    checkpoint keeps the changes, so that a resumed run ends where it would have ended."""

    planned: int
    changes: list[tuple[int, int]] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Steps that the run takes, as is known now."""
        return self.changes[-1][1] if self.changes else self.planned

    def change(self, step: int, steps: int) -> None:
        """After `step` steps: the run takes `steps` in all."""
        self.changes.append((step, steps))

    def place(self, step: int) -> float:
        """Where `step` lies in the schedule of the planned steps. After a change it moves on evenly from where it was,
        at the pace at which the last step ends the schedule."""
        begin, place, pace = 0, 0.0, 1.0
        for at, steps in self.changes:
            if step <= at:
                break
            place += (at - begin) * pace
            begin, pace = at, (self.planned - place) / max(1, steps - at)
        return place + (step - begin) * pace

    def save(self) -> list[dict[str, int]]:
        """The changes as JSON."""
        return [{"step": step, "steps": steps} for step, steps in self.changes]

    def load(self, saved: Any) -> None:
        """The changes that `save` made JSON of; None: there were none."""
        self.changes = [(change["step"], change["steps"]) for change in saved or ()]
