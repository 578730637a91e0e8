"""`eval A B --judge MODEL`: what a model says of the answers of others."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import click

from stemma import disk
from stemma.cli import echo, json_text
from stemma.cli.models import Loading
from stemma.errors import UsageError

PAIR: Literal["pairwise"] = "pairwise"
SINGLE: Literal["single"] = "single"
OPTIONS = (
    click.option("--judge", metavar="MODEL|URL#NAME", help="Who judges: a model, or an address of OpenAI's protocol."),
    click.option("--mode", type=click.Choice([PAIR, SINGLE]), help="Verdicts on two, or scores from 1 to 10."),
    click.option("--questions", metavar="FILE", help="As MT-bench's question.jsonl.  [default: 24 of our own]"),
    click.option("--references", metavar="FILE", help="Right answers, in the form of MT-bench's answers."),
    click.option("--prompts", metavar="FILE", help="As FastChat's judge_prompts.jsonl.  [default: our own]"),
    click.option("--verdicts", metavar="FILE", help="Others' verdicts, to see how far the judge agrees."),
    click.option("--template", metavar="NAME", help="The chat template of models that have none."),
    click.option("--out", metavar="DIR", help="What is kept; resumed if begun.  [default: judged/A-B]"),
    click.option("--quiet", is_flag=True, help="Print no progress."),
)
NAMES = ("judge", "mode", "questions", "references", "prompts", "verdicts", "template", "out", "seed", "quiet")


def options(called: Callable[..., None]) -> Callable[..., None]:
    """A command with the options of a judge, which it gets as one `judged`."""
    for option in reversed(OPTIONS):
        called = option(called)
    return called


def judge(paths: tuple[str, ...], how: Loading, as_json: bool, given: dict[str, Any]) -> None:
    """Let a judge compare the models (or files of answers) `paths`, or score them, and print what it found."""
    from stemma.judging import contest, counts
    from stemma.judging.prompts import OWN as PROMPTS
    from stemma.judging.prompts import Prompts
    from stemma.judging.questions import OWN, questions, referred

    mode: contest.Mode = given["mode"] or (PAIR if len(paths) == 2 else SINGLE)
    if len(paths) > 2 or (mode == PAIR and len(paths) != 2):
        raise UsageError(
            f"a judge compares two models, or with --mode single scores one or two; {len(paths)} are given"
        )
    asked = referred(questions(given["questions"] or OWN), given["references"])
    prompts = Prompts(given["prompts"] or PROMPTS)
    players = [_player(path, asked, how, given["template"]) for path in paths]
    names = tuple(player.name for player in players)
    if len({*names}) < len(names):
        raise UsageError(f"both models are called {names[0]}, so no verdict could be told apart")
    if given["verdicts"] and mode == SINGLE:
        raise UsageError("--verdicts are on pairs; leave them out with --mode single")
    others = counts.others(given["verdicts"], names) if given["verdicts"] else None
    out = given["out"] or "judged/" + "-".join(_short(name) for name in names)
    facts = contest.facts(asked, prompts, players)
    plan = contest.Plan(names, given["judge"], mode, given["seed"], given["template"] or "", facts=facts)
    work = contest.Contest(plan, asked, prompts, players, writer_of(given["judge"], how, given["template"]), out)
    rows = work.run((lambda _: None) if given["quiet"] else _said)
    alike = counts.agreement(rows, others) if others else None
    found = counts.scores(rows) if mode == SINGLE else counts.pairs(rows, alike)
    disk.write_json(Path(out) / "results.json", asdict(found))
    if as_json:
        echo(json_text(asdict(found)))
        return
    for line in told(found, plan, len(asked)):
        echo(line)
    echo(f"kept in {out}")


def _said(line: str) -> None:
    disk.tell(line)


def _short(name: str) -> str:
    """A name as a part of a folder's."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", name.rstrip("/").rpartition("/")[2]).strip("-.")[:60] or "model"


def writer_of(where: str, how: Loading, template: str | None) -> Callable[[], Any]:
    """What makes the writer of a model or an address, once. Raises UsageError for a name that is neither."""
    from stemma.formats.where import model_path
    from stemma.instruct.writers import LocalWriter, address
    from stemma.train.midway import is_checkpoint

    far = address(where)
    if far is not None:
        return lambda: far
    if not is_checkpoint(Path(where)):
        model_path(where)  # a mistyped name is said before anything is asked

    def load() -> Any:
        from stemma.cli.models import load

        if not made:
            model = load(where, how)
            own = getattr(model.tokenizer, "chat_template", None)
            made.append(LocalWriter(model, where, template=None if own is not None else template))
        return made[0]

    made: list[Any] = []
    return load


def _player(path: str, asked: Any, how: Loading, template: str | None) -> Any:
    """A model that answers, or a file of answers."""
    from stemma.judging.contest import Player
    from stemma.judging.questions import answers

    if path.endswith(".jsonl"):
        name, given = answers(path, asked)
        return Player(name, given=given)
    return Player(path, writer_of(path, how, template))


# ---------------------------------------------------------------- in words


def told(found: Any, plan: Any, questions: int) -> Iterator[str]:
    """Results for people."""
    yield f"{' against '.join(plan.players)}, judged by {plan.judge}: {questions} questions"
    if plan.mode == SINGLE:
        for name, groups in found.scores.items():
            for group, (share, invalid) in groups.items():
                yield f"{group:12} {_share(share, 2)}  {name}" + (
                    f"  ({invalid} without a valid score)" if invalid else ""
                )
    else:
        yield f"{'':12} {'wins':>5} {'ties':>5} {'losses':>6} {'invalid':>7}  wins and half of the ties"
        for group, one in found.wins.items():
            yield f"{group:12} {one.wins:5} {one.ties:5} {one.losses:6} {one.invalid:7}  {_share(one.rate, 3)}"
        place = found.positions
        yield (
            f"both orders: the same verdict {_share(place.agreement, 3)}; {place.same} the same, {place.first} for "
            f"what stands first, {place.second} for what stands second, {place.other} to or from a tie"
        )
    if (other := found.agreement) is not None:
        yield (
            f"other verdicts: the same in {other.alike} of {other.verdicts}, and in {other.decided_alike} of "
            f"{other.decided} where nobody says tie ({other.unmatched} have no valid one beside them)"
        )
    if found.unfit:
        yield f"{found.unfit} judgments were not asked for: the judge reads fewer tokens than they have"
    yield "in brackets: 95 % of bootstrap samples of the questions"


def _share(share: tuple[float, float, float] | None, digits: int) -> str:
    if share is None:
        return "none"
    value, low, high = (f"{number:.{digits}f}" for number in share)
    return f"{value} ({low} to {high})"
