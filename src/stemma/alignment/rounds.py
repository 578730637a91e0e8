"""Rejection sampling as training (Touvron et al. 2023, LLaMA 2, section 3.2.3): a model answers prompts, and the best
answers by reward are learnt as demonstrations, in rounds.

OUT/rounds.json                    what was asked for
OUT/stages/samples-N/rows.jsonl    round N's answers and rewards, a row a prompt; resumed by whole groups
OUT/stages/samples-N/best.jsonl    what round N learns: conversations with the best answers
OUT/stages/samples-N/facts.json    rewards, lengths, and how many answers came from earlier rounds
OUT/stages/N                       its run; that of the last round is OUT itself
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any, Literal

import stemma
from stemma import disk, spec
from stemma.alignment.best import PURPOSE, Prompt, Sampler, Score, kl_bound, picks
from stemma.data import random as draw
from stemma.errors import CheckpointError, DataError, MalformedError, UsageError
from stemma.instruct.ledger import Ledger
from stemma.instruct.writers import Continuation, Sampling
from stemma.runs import folder
from stemma.runs.drive import OnStep
from stemma.spec import Spec, at_least, require
from stemma.train.run import Run, begin, resume_run
from stemma.tuning import plans

GROUP = 8  # prompts that are answered, scored and kept together
STATE = {"done": int}
SHAPE = {
    "format": int, "start": str, "base": str, "data": str, "prompts": str, "rewards": [str],
    "fingerprints": [str], "rounds": {str: Any},
    "budget": str, "seed": int, "settings": {str: Any}, "lora?": int, "quantize?": str, "overrides": {str: Any},
}  # fmt: skip


@dataclass(frozen=True)
class Rounds(Spec):
    """`rounds` of `samples` answers a prompt, of `tokens` at most, drawn at the `temperature` of the round (of fewer
    numbers than rounds the last one goes on). `prompts`: of a round, the next ones in an order of the seed (None: all
    of them). `keep`: whether the best answers of `all` rounds so far are learnt, each prompt's best, or those of the
    `round` alone. `beside`: rows that are learnt together with them, such as the demonstrations. `from_base`: each
    round begins from the base again, else from the model of the round before."""

    rounds: int = at_least(1, 1)
    samples: int = at_least(1, 16)
    temperature: tuple[float, ...] = (1.0,)
    tokens: int = at_least(1, 256)
    prompts: int | None = at_least(1, None)
    keep: Literal["all", "round"] = "all"
    from_base: bool = True
    beside: str = ""

    def check(self) -> None:
        require(bool(self.temperature), "Rounds.temperature must hold at least one number")
        lowest = min(self.temperature, default=1.0)
        require(lowest > 0 or self.samples == 1, f"Rounds.temperature={lowest:g} draws one and the same answer: more")

    def at(self, number: int) -> float:
        """The temperature of round `number`, counted from 1."""
        return self.temperature[min(number, len(self.temperature)) - 1]

    def chosen(self, seed: int, number: int, count: int) -> list[int]:
        """The prompts of round `number`, of `count`."""
        if self.prompts is None or self.prompts >= count:
            return list(range(count))
        found: dict[int, None] = {}
        at = (number - 1) * self.prompts
        while len(found) < self.prompts:
            order = draw.permutation((seed, PURPOSE, 1, at // count), count)
            found[int(order[at % count])] = None
            at += 1
        return list(found)


def begun(out: str | Path) -> bool:
    """Whether a directory holds rounds of rejection sampling."""
    return (Path(out) / folder.ROUNDS).is_file()


def place_of(out: Path, number: int, many: int) -> Path:
    """The directory of the run of round `number`."""
    return out if number == many else out / "stages" / str(number)


def samples_of(out: Path, number: int) -> Path:
    """The directory of what was drawn in round `number`."""
    return out / "stages" / f"samples-{number}"


@dataclass(frozen=True)
class Work:
    """What rounds need beside what they were asked for: the prompts, and what scores their answers."""

    prompts: Sequence[Prompt]
    score: Score
    on_step: OnStep | None = None
    quiet: bool = False
    mesh: str | None = None


def digest(asked: Sequence[Prompt], rows: bool = False) -> str:
    """What tells these prompts from others; with their `rows`, which rewards may read."""
    parts = [[one.messages, dict(one.row)] if rows else one.messages for one in asked]
    held = json.dumps(parts, ensure_ascii=False, default=lambda value: type(value).__name__)
    return hashlib.blake2b(held.encode("utf-8", "replace"), digest_size=8).hexdigest()


def fingerprints(score: Score) -> list[str]:
    """What tells the rewards of a score from others; nothing of one that does not say so."""
    return list(getattr(score, "fingerprints", ()))


def carry_out(
    work: Work, out: str | Path, rounds: Rounds, *, start: str, base: str | None = None, data: str,
    rewards: Sequence[str], budget: str = "3 epochs", seed: int = 1, settings: Mapping[str, Any] | None = None,
    lora: int | None = None, quantize: str | None = None, overrides: Mapping[str, Any] | None = None,
    resume: bool = False,
) -> Run:  # fmt: skip
    """Rejection sampling in rounds. `start`: who answers in the first round; `base`: what each round begins from (the
    start, where none is named). `data`, `rewards`: how prompts and rewards were named, for a later command. The rest is
    as in `stemma.tune`. Raises UsageError for a directory that holds something else."""
    out = Path(out)
    asked = {
        "format": 1, "start": start, "base": base or start, "data": data, "prompts": digest(work.prompts, rows=True),
        "rewards": list(rewards), "fingerprints": fingerprints(work.score), "rounds": spec.to_dict(rounds),
        "budget": budget, "seed": seed,
        "settings": {key: value for key, value in spec.to_dict(settings or {}).items() if value is not None},
        "lora": lora, "quantize": quantize, "overrides": spec.to_dict(overrides or {}),
    }  # fmt: skip
    if lora is not None and rounds.rounds > 1 and not rounds.from_base:
        raise UsageError(
            "an adapter of one round is no model that the next could begin from: leave rounds.from_base on"
        )
    if begun(out):
        if not resume:
            raise UsageError(f"{out} holds a run already; resume it, or choose another directory")
        held = read(out)
        for key, value in json.loads(json.dumps(asked)).items():
            if key != "prompts" and held[key] != value:  # `go_on` compares the prompts
                raise UsageError(f"{out} was begun with {key}={held[key]}, not {value}; choose a new directory")
        return go_on(work, out)
    folder.check_free(out, resume)
    plans.started(base or start)  # a start that is none leaves nothing behind
    out.mkdir(parents=True, exist_ok=True)
    disk.write_json(out / folder.ROUNDS, asked)
    return go_on(work, out)


def read(out: Path) -> dict[str, Any]:
    """What rounds were asked for. Raises CheckpointError."""
    path = out / folder.ROUNDS
    try:
        found: dict[str, Any] = dict(disk.typed(path, disk.read_json(path), SHAPE))
        spec.from_dict(Rounds, found["rounds"])
    except (MalformedError, UsageError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); begin in another directory") from None
    return found


def go_on(work: Work, out: str | Path) -> Run:
    """Carry rounds to their end from wherever they are. Raises UsageError where the prompts are others than before."""
    out = Path(out)
    asked = read(out)
    if asked["fingerprints"] != fingerprints(work.score):
        names = ", ".join(asked["rewards"])
        raise UsageError(f"a reward of {out} ({names}) is not as it was when the rounds began; put it back")
    if asked["prompts"] not in (digest(work.prompts, rows=True), digest(work.prompts)):  # the latter: earlier versions
        raise UsageError(
            f"the prompts of {asked['data']}, or their rows, are not those that {out} was begun with; put them back"
        )
    rounds = spec.from_dict(Rounds, asked["rounds"])
    for number in range(1, rounds.rounds + 1):
        place = place_of(out, number, rounds.rounds)
        if folder.exists(place):
            run = resume_run(place, on_step=work.on_step, quiet=work.quiet, mesh=work.mesh)
        else:
            learnt = choose(work, out, asked, rounds, number)
            plan = planned(asked, out, rounds, number, learnt, work.quiet)
            run = begin(plan, place, asked["overrides"], True, work.on_step, None, work.quiet, work.mesh)
        if not run.finished:
            break
    return run


def planned(asked: Mapping[str, Any], out: Path, rounds: Rounds, number: int, data: Path, quiet: bool) -> Any:
    """The plan of what round `number` learns."""
    last = str(place_of(out, number - 1, rounds.rounds))
    start = asked["base"] if rounds.from_base or number == 1 else last
    learnt = f"{data},{rounds.beside}" if rounds.beside else str(data)
    return plans.resolve(
        "chat", start, learnt, asked["budget"], asked["seed"], settings=asked["settings"],
        lora=asked["lora"], quantize=asked["quantize"], overrides=asked["overrides"], quiet=quiet,
    )  # fmt: skip


# ---------------------------------------------------------------- one round


def choose(work: Work, out: Path, asked: Mapping[str, Any], rounds: Rounds, number: int) -> Path:
    """The rows that round `number` learns: its answers are drawn, and the best ones written."""
    home = samples_of(out, number)
    chosen = rounds.chosen(asked["seed"], number, len(work.prompts))
    rows = sample(work, home, asked, rounds, number, chosen, sampler_of(asked, out, rounds, number))
    best = bests(out, rounds, number)
    most = f"{rounds.tokens} tokens of an answer"
    if not (answered := sum(map(has_room, rows))):
        raise DataError(
            f"round {number}: none of {len(rows)} prompts leaves room for {most}; shorten them, or lower rounds.tokens"
        )
    passed = f"; {len(rows) - answered} prompts leave no room for {most}" if answered < len(rows) else ""
    if len(best) < (1 if rounds.beside else 2):  # one is what a run is judged by
        raise DataError(
            f"round {number}: {len(best)} prompts have an answer that came to its end, of {rounds.samples * answered} "
            f"answers; more tokens are needed{passed}"
        )
    with disk.write_jsonl(home / "best.jsonl") as add:
        for key in sorted(best):
            add(best[key])
    facts = facts_of(rows, best, rounds, number)
    disk.write_json(home / "facts.json", facts)
    if not work.quiet:
        top = "none ended" if facts["best"] is None else f"{facts['best']:.3f} of the best of {rounds.samples}"
        disk.tell(
            f"round {number} of {rounds.rounds}: {facts['prompts']} prompts, reward {facts['reward']:.3f} on the mean, "
            f"{top}; {facts['learnt']} answers are learnt{passed}"
        )
    return home / "best.jsonl"


def has_room(row: Mapping[str, Any]) -> bool:
    """Whether the prompt of a row of answers left room for them."""
    return any(answer["fits"] for answer in row["answers"])


def sampler_of(asked: Mapping[str, Any], out: Path, rounds: Rounds, number: int) -> Any:
    """What makes the model that answers in round `number`: the start, then the model of the round before."""

    def make() -> Sampler:
        where = asked["start"] if number == 1 else str(place_of(out, number - 1, rounds.rounds))
        return Sampler(stemma.load(where), where, asked["settings"].get("template"))

    return make


def sample(
    work: Work, place: Path, asked: Mapping[str, Any], rounds: Rounds, number: int, chosen: Sequence[int], make: Any
) -> list[dict[str, Any]]:
    """The answers of a round, a row a prompt; those that were kept before are not drawn again."""
    how = Sampling(rounds.tokens, rounds.at(number))
    plan = {"round": number, "prompts": asked["prompts"], "samples": rounds.samples, "temperature": how.temperature}
    ledger = Ledger(place, "rows.jsonl", plan)
    held = ledger.restored(STATE)
    done, rows = (held[0]["done"], held[1]) if held is not None else (0, [])
    with disk.lock(place):
        sampler = make() if done < len(chosen) else None
        while done < len(chosen):
            assert sampler is not None
            group = chosen[done : done + GROUP]
            # a seed for each prompt and round, whatever is answered beside it
            seeds = [int(draw.integers((asked["seed"], PURPOSE, number), 1, 2**31, start=i)[0]) for i in group]
            found = picks(sampler, [work.prompts[i] for i in group], work.score, rounds.samples, how, seeds)
            new = [
                {
                    "number": i, "prompt": work.prompts[i].messages, "answers": [asdict(a) for a in pick.answers],
                    "rewards": list(pick.rewards), "best": pick.best,
                }
                for i, pick in zip(group, found, strict=True)
            ]  # fmt: skip
            done += len(group)
            ledger.commit(new, {"done": done})
            rows += new
            if not work.quiet:
                disk.tell(f"round {number}: {done} of {len(chosen)} prompts answered")
    return rows


def bests(out: Path, rounds: Rounds, number: int) -> dict[int, dict[str, Any]]:
    """The best answer of each prompt by its number, as a row to learn: of this round and, where all are kept, of those
    before; of equal rewards the earlier one."""
    found: dict[int, dict[str, Any]] = {}
    for n in range(1 if rounds.keep == "all" else number, number + 1):
        for _, row in disk.read_jsonl(samples_of(out, n) / "rows.jsonl"):
            if row["best"] is None:
                continue
            reward, key = row["rewards"][row["best"]], row["number"]
            if key not in found or reward > found[key]["reward"]:
                answer = Continuation(**row["answers"][row["best"]])
                messages = [*row["prompt"], {"role": "assistant", "content": answer.text}]
                found[key] = {"messages": messages, "reward": reward, "round": n}
    return found


def facts_of(
    rows: Sequence[Mapping[str, Any]], best: Mapping[int, Mapping[str, Any]], rounds: Rounds, number: int
) -> dict[str, Any]:
    """What came out of a round's sampling: `reward` and `length` (characters) of all answers, `best` of the best of
    each prompt, `none`: how many prompts have none, `kl`: how far the best can be from the sampler's distribution, in
    nats."""
    answered = [row for row in rows if has_room(row)]
    answers = [answer for row in answered for answer in row["answers"]]
    top = [row["rewards"][row["best"]] for row in rows if row["best"] is not None]
    return {
        "round": number, "temperature": rounds.at(number), "prompts": len(rows), "answers": len(answers),
        "reward": mean(value for row in answered for value in row["rewards"]), "best": mean(top) if top else None,
        "kl": kl_bound(rounds.samples), "length": mean(len(answer["text"]) for answer in answers),
        "ended": mean(answer["whole"] for answer in answers), "none": len(rows) - len(top),
        "learnt": len(best), "earlier": sum(row["round"] < number for row in best.values()),
    }  # fmt: skip
