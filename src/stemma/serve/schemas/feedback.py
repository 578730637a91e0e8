"""`/feedback`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stemma.serve.schemas.base import Answer, Name, Strict

Words = Annotated[str, Field(min_length=1, max_length=200_000)]


class FeedbackMessage(Strict):
    role: Literal["system", "user", "assistant"]
    content: Words


class FeedbackRequest(Strict):
    """`messages` up to the user's last words. `pair`: `answer` was preferred to `other`; `thumb`: `answer` was `liked`
    or not; `edit`: `answer` is what somebody made of `other`. `id`: of the answer; a later row with it stands in the
    place of an earlier one. `model`, `other_model`: who wrote the answers."""

    kind: Literal["pair", "thumb", "edit"]
    id: Annotated[str, Field(min_length=1, max_length=200)]
    messages: Annotated[list[FeedbackMessage], Field(min_length=1, max_length=400)]
    answer: Words
    other: Words | None = None
    liked: bool | None = None
    model: Name | None = None
    other_model: Name | None = None


class Kept(Answer):
    """`kept`: rows of the file."""

    kept: int
