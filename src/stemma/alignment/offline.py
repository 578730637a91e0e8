"""Answers that rows of the data have, in the place of sampled ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stemma.alignment.rollouts import EncodedPrompt, Rollout
from stemma.conversations import comparisons
from stemma.errors import DataError
from stemma.tasks.preferences import TalkReader

if TYPE_CHECKING:
    from stemma.alignment.online import Prompts


def answers(prompts: Prompts, place: int, many: int, most: int, otherwise: str) -> list[Rollout]:
    """The first `many` answers of a row, each cut at `most` tokens. Their log-probabilities are not known: 0. Raises
    DataError for a row without so many; `otherwise` says what else could be done."""
    one, read = prompts[place], prompts.reader
    assert isinstance(read, TalkReader)
    found = []
    try:
        talks = comparisons.candidates(one.record)
        if len(talks) < many:
            raise DataError(f"it has {len(talks)} answers, and {many} were expected")
        for number, talk in enumerate(talks[:many]):
            ids, begin = read.text(talk)
            answer = tuple(ids[begin : begin + most])
            none = (0.0,) * len(answer)
            prompt = EncodedPrompt(tuple(ids[:begin]), one.words, one.record, place)
            whole = begin + len(answer) == len(ids)
            found.append(Rollout(prompt, number, answer, none, none, whole, talk.turns[-1].content, 0))
    except DataError as error:
        raise DataError(f"row {place} has no answers that could be learnt ({error}); {otherwise}") from None
    return found
