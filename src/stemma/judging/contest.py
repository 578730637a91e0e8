"""Models answer questions, and a judge says how well.

OUT/plan.json          what was asked for
OUT/journal.jsonl      every text that a model or the judge wrote, as it came
OUT/answers/A.jsonl    the answers of each model, in MT-bench's form
OUT/judgments.jsonl    a row a question and turn: both orders of a pair, or the score of an answer
OUT/results.json       the counts
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from stemma import disk
from stemma.conversations import Turn
from stemma.errors import UsageError
from stemma.instruct.writers import Ask, ChatWriter, Sampling
from stemma.judging import verdicts
from stemma.judging.journal import Journal
from stemma.judging.prompts import Prompts, values
from stemma.judging.questions import Question, answer_row

TOKENS, JUDGED = 1024, 2048  # of an answer and of a judgment
Mode = Literal["pairwise", "single"]
Row = dict[str, Any]


@dataclass(frozen=True)
class Player:
    """A model that is judged: what writes its answers, or `given` ones by question."""

    name: str
    writer: Callable[[], ChatWriter] | None = None
    given: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What is judged: `players` by the model `judge`. `template`: of models that have none; `facts`: a hash of
    questions, prompts and given answers."""

    players: tuple[str, ...]
    judge: str
    mode: Mode
    seed: int = 1
    template: str = ""
    tokens: int = TOKENS
    judge_tokens: int = JUDGED
    facts: str = ""


def facts(questions: Sequence[Question], prompts: Prompts, players: Sequence[Player]) -> str:
    """A hash of what is asked, and of answers that are given."""
    held: list[Any] = [asdict(question) for question in questions]
    held += [[*key, *asdict(prompt).values()] for key, prompt in sorted(prompts.held.items())]
    held += [{key: list(said) for key, said in player.given.items()} for player in players]
    return hashlib.sha256(json.dumps(held).encode()).hexdigest()[:16]


def _seed(*keys: object) -> int:
    return int.from_bytes(hashlib.blake2b(json.dumps(keys).encode(), digest_size=4).digest(), "big") >> 1


def _tell(said: Callable[[str], None], line: str, done: int, of: int) -> None:
    said(f"{line}: {done} of {of}")


class Contest:
    """A judgment in the folder `out`. Raises UsageError if that holds another one."""

    def __init__(
        self,
        plan: Plan,
        questions: Sequence[Question],
        prompts: Prompts,
        players: Sequence[Player],
        judge: Callable[[], ChatWriter],
        out: str | Path,
    ) -> None:
        self.plan, self.questions, self.prompts = plan, questions, prompts
        self.players, self.judge, self.out = players, judge, Path(out)
        for question in questions:  # a file without one of the prompts is refused before anything is asked
            for turn in range(len(question.turns)):
                prompts.of(plan.mode, question, turn)
        self._begin()

    def _begin(self) -> None:
        path, ours = self.out / "plan.json", json.loads(json.dumps(asdict(self.plan)))
        if path.is_file():
            held = disk.read_object(path)
            for key, value in ours.items():
                if (was := held.get(key)) != value:
                    what = "other questions, prompts or answers" if key == "facts" else f"{key}={was}, not {value}"
                    raise UsageError(f"{self.out} was begun with {what}; choose a new directory by --out")
            return
        if self.out.is_dir() and any(self.out.iterdir()):
            raise UsageError(f"{self.out} holds other files and no plan.json; choose a new directory by --out")
        with disk.writing(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
        disk.write_json(path, ours)

    def run(self, said: Callable[[str], None] = lambda _: None) -> list[Row]:
        """The rows of the judgment; what is not there yet is asked for. `said` gets sentences on how far it is."""
        with disk.lock(self.out, busy=f"another process is judging in {self.out}"):
            self.journal = Journal(self.out / "journal.jsonl")
            answers = [self._answers(player, said) for player in self.players]
            found = self._pairs(answers, said) if self.plan.mode == "pairwise" else self._scores(answers, said)
            with disk.write_jsonl(self.out / "judgments.jsonl") as add:
                for row in found:
                    add(row)
        return found

    # ------------------------------------------------------------ answers

    def _answers(self, player: Player, said: Callable[[str], None]) -> dict[str, tuple[str, ...]]:
        """The answers of a player by question: first turns, then second ones, which follow from them."""
        found: dict[str, tuple[str, ...]] = {str(question.id): () for question in self.questions}
        if player.writer is None:
            found = {key: player.given[key] for key in found}
        unfit = 0
        for turn in range(2 if player.writer is not None else 0):
            asked: dict[str, Ask] = {}
            for question in self.questions:
                if turn < len(question.turns):
                    key = self._answer_key(player, question, turn)
                    how = Sampling(self.plan.tokens, question.temperature)
                    asked[key] = Ask(self._talk(question, found[str(question.id)]), how, _seed(self.plan.seed, key))
            assert player.writer is not None
            line = f"answers of {player.name}, turn {turn + 1}"
            self.journal.ask(player.writer, asked, partial(_tell, said, line))
            for question in self.questions:
                if turn < len(question.turns):
                    answer = self.journal[self._answer_key(player, question, turn)]
                    unfit += not answer.fits
                    found[str(question.id)] += (answer.text,)
        if unfit:
            said(f"note: {unfit} turns are longer than {player.name} reads, and have an empty answer")
        name = f"{self.players.index(player) + 1}-{re.sub(r'[^A-Za-z0-9._-]+', '-', player.name).strip('-.')[:80]}"
        with disk.write_jsonl(self.out / "answers" / f"{name}.jsonl") as add:
            for question in self.questions:
                add(answer_row(question, player.name, found[str(question.id)]))
        return found

    def _answer_key(self, player: Player, question: Question, turn: int) -> str:
        return f"answer {self.players.index(player) + 1} {question.id} {turn + 1}"

    @staticmethod
    def _talk(question: Question, answered: Sequence[str]) -> tuple[Turn, ...]:
        """The conversation that the next answer follows."""
        turns: list[Turn] = []
        for asked, answer in zip(question.turns, answered, strict=False):
            turns += [Turn("user", asked), Turn("assistant", answer)]
        return (*turns, Turn("user", question.turns[len(answered)]))

    # ------------------------------------------------------------ judgments

    def _judged(self, asked: Mapping[str, Ask], said: Callable[[str], None]) -> None:
        self.journal.ask(self.judge, asked, partial(_tell, said, "judgments"))

    def _asks(self, question: Question, turn: int, answers: Mapping[str, tuple[str, ...]]) -> Ask:
        prompt = self.prompts.of(self.plan.mode, question, turn)
        return Ask(prompt.turns(values(question, turn, answers)), Sampling(self.plan.judge_tokens, 0.0))

    def _pairs(self, answers: Sequence[Mapping[str, tuple[str, ...]]], said: Callable[[str], None]) -> list[Row]:
        """Verdicts with the first player's answers as A, then with the second's."""
        asked: dict[str, Ask] = {}
        for question, turn in self._turns():
            one, two = (held[str(question.id)] for held in answers)
            for order, (a, b) in enumerate(((one, two), (two, one)), 1):
                asked[f"pair {question.id} {turn + 1} {order}"] = self._asks(
                    question, turn, {"answer_a": a, "answer_b": b}
                )
        self._judged(asked, said)
        rows = []
        for question, turn in self._turns():
            keys = [f"pair {question.id} {turn + 1} {order}" for order in (1, 2)]
            texts = [self.journal[key].text for key in keys]
            found = [
                verdicts.winner(text, *names)
                for text, names in zip(texts, (("model_1", "model_2"), ("model_2", "model_1")), strict=True)
            ]
            row: Row = self._row(question, turn) | dict(zip(("model_1", "model_2"), self.plan.players, strict=True))
            for n, (key, text, verdict) in enumerate(zip(keys, texts, found, strict=True), 1):
                row |= {
                    f"g{n}_winner": verdict,
                    f"g{n}_user_prompt": asked[key].turns[-1].content,
                    f"g{n}_judgment": text,
                }
                row |= {f"g{n}_fits": self.journal[key].fits}
            rows.append(row | {"winner": verdicts.joined(*found)})
        return rows

    def _scores(self, answers: Sequence[Mapping[str, tuple[str, ...]]], said: Callable[[str], None]) -> list[Row]:
        """A score for every answer of each player."""
        asked: dict[str, Ask] = {}
        for number, held in enumerate(answers, 1):
            for question, turn in self._turns():
                said_there = {"answer": held[str(question.id)]}
                asked[f"single {number} {question.id} {turn + 1}"] = self._asks(question, turn, said_there)
        self._judged(asked, said)
        rows = []
        for number, player in enumerate(self.plan.players, 1):
            for question, turn in self._turns():
                key = f"single {number} {question.id} {turn + 1}"
                answer = self.journal[key]
                row = self._row(question, turn) | {"model": player, "user_prompt": asked[key].turns[-1].content}
                row |= {"judgment": answer.text, "fits": answer.fits, "score": verdicts.score(answer.text)}
                rows.append(row)
        return rows

    def _turns(self) -> list[tuple[Question, int]]:
        return [(question, turn) for question in self.questions for turn in range(len(question.turns))]

    def _row(self, question: Question, turn: int) -> Row:
        prompt = self.prompts.of(self.plan.mode, question, turn)
        judge = [self.plan.judge, prompt.name]
        return {"question_id": question.id, "category": question.category, "turn": turn + 1, "judge": judge}
