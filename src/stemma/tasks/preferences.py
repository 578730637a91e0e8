"""Rows in which answers were compared or liked, and prompts that wait for answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from stemma.conversations import Conversation, Turn, Writer, encode, prompt_ids, writer
from stemma.conversations.comparisons import Compared, Pair, asked, ranked, thumbs
from stemma.conversations.targets import check
from stemma.declare.alignment import PreferTask, PromptTask, ThumbTask
from stemma.errors import DataError
from stemma.tasks.base import Marked, Reader
from stemma.text.inputs import joined

SIDES = {"user": "Human", "assistant": "Assistant", "system": "System"}  # where no template says how to write turns


class TalkReader(Reader):
    """What the readers of conversations here share. A decoder reads what the chat template writes. An encoder reads the
    prompt and the answer as two texts; the prompt is written by the template, where there is one, or else is the user's
    words, with `Human: ` and `Assistant: ` before the turns where it has several."""

    @cached_property
    def writer(self) -> Writer | None:
        """What writes them; None for an encoder without a template."""
        plain = self.structure != "decoder" and not getattr(self.tokenizer, "chat_template", None)
        return None if plain and not self.task.template else writer(self.tokenizer, self.task.template or None)

    def text(self, talk: Conversation) -> tuple[list[int], int]:
        """The ids of a conversation, and where its last answer begins. Raises DataError for one that a row does not
        hold: nothing is cut, since what is judged is the whole answer."""
        if self.structure == "decoder":
            assert self.writer is not None
            example = encode(self.tokenizer, self.writer.write(talk), "last answer")
            ids, begin = example.ids, example.targets.index(True)
        else:
            made = joined(self.tokenizer, self.question(talk.turns[:-1]), talk.turns[-1].content)
            ids, begin = made.ids, made.begins[1]
        if begin >= self.context:
            raise DataError(f"its prompt has {begin} tokens, and a row of {self.context} must hold an answer too")
        if len(ids) > self.context:
            raise DataError(f"it has {len(ids)} tokens with its answer, more than the {self.context} of a row")
        return ids, begin

    def question(self, turns: Sequence[Turn]) -> str:
        """The words that an answer follows, as an encoder reads them."""
        if self.writer is not None:
            return self.writer.prompt(turns).text
        if len(turns) == 1:
            return turns[0].content
        return "\n\n".join(f"{SIDES[turn.role]}: {turn.content}" for turn in turns)

    def texts(self, talks: Sequence[Conversation]) -> Marked:
        """The ids of whole conversations one behind another. Marks: for each where its last answer begins, and where
        the next conversation does."""
        ids: list[int] = []
        marks = [0]
        for talk in talks:
            own, begin = self.text(talk)
            marks += [len(ids), len(ids) + begin] if ids else [begin]
            ids += own
        return Marked(ids, marks)

    def fits(self, talks: Sequence[Conversation]) -> None:
        """Raises DataError for conversations that cannot be read. One that surely fits is not encoded: a token has at
        least a byte."""
        for talk in talks:
            if self.structure == "decoder" and self.writer is not None:
                made = self.writer.write(talk)
                check(self.tokenizer, made, "last answer")
                if len(made.text.encode("utf-8", "replace")) < self.context - 2:
                    continue
            self.text(talk)


class PreferReader(TalkReader, of=PreferTask):
    """Answers that were compared."""

    def read(self, row: Mapping[str, Any]) -> Compared:
        found = ranked(row)
        if not self.pairs(found):
            raise DataError(
                "its answers are tied, and ties are passed over (a reward model learns them with "
                "objective.task.ties=half)"
            )
        if self.task.margins and not any(p.tied or p.grade is not None or p.margin is not None for p in found.pairs()):
            raise DataError("it has no 'grade', by which objective.task.margins are chosen")
        return found

    def marked(self, found: Compared) -> Marked:
        return self.texts(found.talks)

    def pairs(self, found: Compared) -> list[Pair]:
        """The pairs that are learnt, each with its margin."""
        pairs = [pair for pair in found.pairs() if not pair.tied or self.task.ties == "half"]
        return [pair._replace(margin=self.margin(pair)) for pair in pairs]

    def margin(self, pair: Pair) -> float:
        """By how much the scores of a pair should differ at least: what the row says, or the margin of its grade."""
        if pair.tied:
            return 0.0
        if pair.margin is not None:
            return pair.margin
        return float(self.task.margins[pair.grade]) if self.task.margins and pair.grade is not None else 0.0

    def check(self, row: Mapping[str, Any]) -> None:
        self.fits(self.read(row).talks)


class ThumbReader(TalkReader, of=ThumbTask):
    """Answers that were liked or not; each of a row is an example."""

    def pieces(self, row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        found = thumbs(row)
        return [row] if len(found) == 1 else [{"messages": t.messages, "label": t.liked} for t in found]

    def read(self, row: Mapping[str, Any]) -> Conversation:
        return thumbs(row)[0]

    def marked(self, found: Conversation) -> Marked:
        return self.texts([found])

    def check(self, row: Mapping[str, Any]) -> None:
        self.fits(thumbs(row))


class PromptReader(TalkReader, of=PromptTask):
    """A conversation up to where its last answer begins."""

    def read(self, row: Mapping[str, Any]) -> Conversation:
        return asked(row)

    def marked(self, found: Conversation) -> Marked:
        assert self.writer is not None
        ids = prompt_ids(self.tokenizer, self.writer.prompt(found.turns))
        if len(ids) >= self.context:
            raise DataError(f"its prompt has {len(ids)} tokens, and a row of {self.context} must hold an answer too")
        return Marked(ids, [0])
