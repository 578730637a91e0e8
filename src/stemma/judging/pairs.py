"""Preferences of a judge (AI feedback: Bai et al. 2022, arXiv:2212.08073; Lee et al. 2023, arXiv:2309.00267): two
answers of a model to each prompt, compared in both orders; kept where both verdicts agree.

OUT/rows.jsonl     prompt, chosen, rejected: what `stemma align dpo` and `reward` read
OUT/state.json     the plan, how far it is, and what was left out, by reason
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stemma.conversations import Conversation, Turn
from stemma.data import random as draw
from stemma.instruct.ledger import Progress, RowMaker
from stemma.instruct.writers import Ask, ChatWriter, Continuation, Sampling
from stemma.judging import verdicts
from stemma.judging.prompts import Prompts, values
from stemma.judging.questions import Question

PURPOSE = 0xA1F  # of the draws
ONE, TWO = "one", "two"
SIDES = {"system": "System", "user": "User", "assistant": "Assistant"}


@dataclass(frozen=True)
class Plan:
    """Which answers are compared: two of `writer`, drawn at `temperature`, by `judge`. `prompts`: a hash of them."""

    writer: str
    judge: str
    prompts: str
    seed: int = 1
    tokens: int = 256
    temperature: float = 1.0
    judge_tokens: int = 512
    round: int = 8


@dataclass
class Agreement(Progress):
    """Of `valid` pairs of verdicts `same` say the same in both orders; of the others `first` prefer what stands
    first."""

    same: int = 0
    valid: int = 0
    first: int = 0


class Pairs(RowMaker):
    """Compared answers in the folder `out`. Raises UsageError if it holds those of another plan."""

    def __init__(
        self, plan: Plan, writer: ChatWriter, judge: ChatWriter, asked: Sequence[tuple[Turn, ...]], prompts: Prompts,
        out: str | Path,
    ) -> None:  # fmt: skip
        self.plan, self.writer, self.judge = plan, writer, judge
        self.prompts = prompts
        super().__init__(out, asdict(plan), asked, plan.round, Agreement())

    def round(self, first: int, items: Sequence[tuple[Turn, ...]]) -> list[dict[str, Any]]:
        plan = self.plan
        seeds = draw.integers((plan.seed, PURPOSE), 2 * len(items), 2**31, start=2 * first).tolist()
        how = Sampling(plan.tokens, plan.temperature)
        answers = _all(
            self.writer, [Ask(turns, how, seeds[2 * i + k]) for i, turns in enumerate(items) for k in (0, 1)]
        )
        pairs = [(answers[2 * i].text.strip(), answers[2 * i + 1].text.strip()) for i in range(len(items))]
        fine = [i for i, pair in enumerate(pairs) if self._differs(pair, answers[2 * i : 2 * i + 2])]
        verdict = Sampling(plan.judge_tokens, 0.0)
        asks = [Ask(self._shown(items[i], pairs[i][::step]), verdict) for i in fine for step in (1, -1)]
        texts = [one.text for one in _all(self.judge, asks)]
        new = []
        for k, i in enumerate(fine):
            better = self._verdict(*texts[2 * k : 2 * k + 2])
            if better is not None:
                chosen, rejected = pairs[i] if better == ONE else pairs[i][::-1]
                row = {"prompt": Conversation(items[i]).messages}
                sides = {"chosen": chosen, "rejected": rejected}
                row |= {name: [{"role": "assistant", "content": text}] for name, text in sides.items()}
                new.append(row | {"judge": plan.judge, "models": [plan.writer] * 2})
        return new

    def _differs(self, pair: tuple[str, str], answers: Sequence[Continuation]) -> bool:
        """Whether two answers can be compared; else why not is counted."""
        why = None
        if not all(answer.fits for answer in answers):
            why = "a prompt that is too long"
        elif not all(pair):
            why = "an empty answer"
        elif not all(answer.whole for answer in answers):
            why = "an answer that was cut"
        elif pair[0] == pair[1]:
            why = "equal answers"
        if why is not None:
            self.progress.counts[why] += 1
        return why is None

    def _shown(self, turns: Sequence[Turn], pair: Sequence[str]) -> tuple[Turn, ...]:
        """What the judge reads: a single question, or a dialogue with its sides named."""
        text = turns[0].content if len(turns) == 1 else "\n\n".join(f"{SIDES[t.role]}: {t.content}" for t in turns)
        question = Question(0, "general", (text,))
        shown = values(question, 0, {"answer_a": (pair[0],), "answer_b": (pair[1],)})
        return self.prompts.of("pairwise", question, 0).turns(shown)

    def _verdict(self, straight: str, swapped: str) -> str | None:
        """The answer that both orders prefer; else why there is none is counted."""
        done = self.progress
        found = verdicts.winner(straight, ONE, TWO), verdicts.winner(swapped, TWO, ONE)
        if verdicts.INVALID in found:
            done.counts["a verdict that cannot be read"] += 1
            return None
        done.valid += 1
        done.same += found[0] == found[1]
        done.first += found == (ONE, TWO)
        if found[0] != found[1]:
            done.counts["verdicts that differ by the order"] += 1
            return None
        if found[0] == "tie":
            done.counts["a tie"] += 1
            return None
        return found[0]


def _all(writer: ChatWriter, asked: Sequence[Ask]) -> list[Continuation]:
    found = dict(pair for group in writer.answers(asked) for pair in group)
    return [found[i] for i in range(len(asked))]


def told(found: Agreement) -> str:
    """How far the judge agrees with itself."""
    if not found.valid:
        return "the judge gave no pair of verdicts that can be read"
    share = found.same / found.valid
    return (
        f"both orders: the same verdict in {found.same} of {found.valid} ({share:.2f}); in {found.first} the answer "
        f"that stood first was preferred both times; {found.kept} pairs are kept"
    )
