"""Context distillation for safety (Touvron et al. 2023, LLaMA 2, section 4.2.3; Askell et al. 2021, arXiv:2112.00861):
prompts are answered behind a preprompt that asks for safety, and the answers are learnt without it, where a reward says
that they are better than the model's own.

OUT/rows.jsonl     messages without the preprompt, the rewards without and with it, and which preprompt it was
OUT/state.json     the plan, how far it is, and what was left out, by reason
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stemma.alignment.best import Prompt, Score, rated
from stemma.conversations import Turn
from stemma.data import random as draw
from stemma.errors import UsageError
from stemma.instruct.ledger import RowMaker
from stemma.instruct.writers import Answerer, Sampling

PURPOSE = 0xD157  # of the draws
# the published ones are known by an example alone; these are this project's own
PREPROMPTS = (
    "You are a careful and responsible assistant. Help where it harms nobody, and say plainly what you will not do.",
    "Answer safely: explain the risk, refuse what would hurt somebody, and offer help that is safe.",
)


@dataclass(frozen=True)
class Plan:
    """What is made: answers by `writer` to `prompts` (a hash of them) behind each of `preprompts`; the best by reward
    is kept where it has at least `gain` more than the model's own answer."""

    writer: str
    prompts: str
    rewards: tuple[str, ...]
    preprompts: tuple[str, ...] = PREPROMPTS
    gain: float = 0.0
    seed: int = 1
    tokens: int = 256
    temperature: float = 1.0
    round: int = 8


def behind(one: Prompt, preprompt: str) -> list[Turn]:
    """The turns of a prompt with a preprompt as the system message, before one that is there."""
    turns = list(one.turns)
    if turns[0].role == "system":
        return [Turn("system", f"{preprompt}\n\n{turns[0].content}"), *turns[1:]]
    return [Turn("system", preprompt), *turns]


class ContextDistillation(RowMaker):
    """Safe answers in the folder `out`. Raises UsageError if it holds those of another plan, or without preprompts."""

    def __init__(self, plan: Plan, writer: Answerer, asked: Sequence[Prompt], score: Score, out: str | Path) -> None:
        if not plan.preprompts or not all(text.strip() for text in plan.preprompts):
            raise UsageError("context distillation needs a preprompt, and none may be empty")
        self.plan, self.writer, self.score = plan, writer, score
        held = {**asdict(plan), "preprompts": list(plan.preprompts), "rewards": list(plan.rewards)}
        super().__init__(out, held, asked, plan.round)

    def round(self, first: int, items: Sequence[Prompt]) -> list[dict[str, Any]]:
        plan, counts, many = self.plan, self.progress.counts, len(self.plan.preprompts) + 1
        given = [turns for one in items for turns in (one.turns, *(behind(one, text) for text in plan.preprompts))]
        seeds = draw.integers((plan.seed, PURPOSE), len(given), 2**31, start=first * many).tolist()
        answers = self.writer.answer(given, Sampling(plan.tokens, plan.temperature), seeds)
        texts = [answer.text.strip() for answer in answers]
        rewards = rated(self.score, [one for one in items for _ in range(many)], texts)
        new = []
        for i, one in enumerate(items):
            own, safe = i * many, range(i * many + 1, (i + 1) * many)
            whole = [k for k in safe if answers[k].whole and texts[k]]
            best = max(whole, key=rewards.__getitem__, default=None)
            if best is None:
                counts["no answer behind a preprompt came to its end"] += 1
            elif rewards[best] - rewards[own] <= plan.gain:
                counts["no better by the reward"] += 1
            else:
                messages = [*one.messages, {"role": "assistant", "content": texts[best]}]
                row = {"messages": messages, "rewards": [rewards[own], rewards[best]]}
                new.append(row | {"preprompt": plan.preprompts[best - own - 1]})
        return new
