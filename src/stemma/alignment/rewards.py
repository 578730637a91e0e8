"""Rewards of answers, by their sources: functions of Python files, verifiers, and reward models, several with weights.

A reward is a function of its arguments alone: the same prompt, answer and record give the same number at any time and
in any batch. A run that is resumed stands on that. Its plan keeps a fingerprint of each source.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import queue
import subprocess
import sys
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stemma import disk
from stemma.alignment.verify import verifier
from stemma.declare.alignment import Reward
from stemma.errors import CheckpointError, DataError, RewardError, UsageError, brief, did_you_mean

BUILTIN = "builtin:"
SAFETY_FIRST = "safety-first:"  # before the folders of a helpfulness and of a safety model, with a comma between
UNBOUNDED = "builtin:pattern"  # a regular expression may take for ever, so it has a process of its own
STARTING = 120.0  # seconds that a file may take to be imported
LARGEST = 1e15  # of a reward: the sum of the squares of a step is a number in fp32 too
PACKAGES = Path(__file__).parents[2]  # where this package is, for a process that imports it
SECONDS = 10.0  # seconds that a call may take


class RewardInput(NamedTuple):
    """An answer that is to be judged. `prompt`: the words that it follows; `record`: the row that they are from."""

    prompt: str
    answer: str
    record: Mapping[str, Any]


class Scored(NamedTuple):
    """The reward of each answer, and of each part by its name, before its weight."""

    totals: list[float]
    parts: dict[str, list[float]]


class Scorer(ABC):
    """Judges answers by one source."""

    name: str
    of_rows: bool = False  # whether it knows the answers of the data alone

    @abstractmethod
    def scores(self, asked: Sequence[RewardInput]) -> list[float]:
        """A finite number for each. Raises RewardError."""

    def close(self) -> None:
        """Give back what it holds."""
        return


class Rewards:
    """Several rewards with weights: the sum is what is learnt from."""

    def __init__(self, scorers: Sequence[Scorer], weights: Sequence[float]) -> None:
        self.scorers, self.weights = list(scorers), list(weights)
        names = [scorer.name for scorer in scorers]
        self.names = [name if names.count(name) == 1 else f"{name}_{i}" for i, name in enumerate(names, 1)]

    def scores(self, asked: Sequence[RewardInput]) -> Scored:
        """The rewards of answers. Raises RewardError."""
        parts = {name: scorer.scores(asked) for name, scorer in zip(self.names, self.scorers, strict=True)}
        pairs = list(zip(self.weights, parts.values(), strict=True))
        totals = [float(sum(w * part[i] for w, part in pairs)) for i in range(len(asked))]
        for i, total in enumerate(totals):
            if not abs(total) <= LARGEST:
                found = " + ".join(
                    f"{w:g} * {part[i]:g} ({name})" for name, (w, part) in zip(parts, pairs, strict=True)
                )
                raise RewardError(
                    f"the reward of the answer {brief(asked[i].answer)} is {found}; a finite number of at most "
                    f"{LARGEST:g} either way was expected"
                )
        return Scored(totals, parts)

    def of_any(self) -> Rewards:
        """Those that judge any answer."""
        kept = [i for i, scorer in enumerate(self.scorers) if not scorer.of_rows]
        return Rewards([self.scorers[i] for i in kept], [self.weights[i] for i in kept])

    def close(self) -> None:
        """End what computes them."""
        for scorer in self.scorers:
            scorer.close()


def of(rewards: Sequence[Reward], seconds: float, device: Any = "cpu") -> Rewards:
    """What computes declared rewards; `seconds`: that a call of a function may take. A note says that the file of a
    function is not as it was when the run began. Raises UsageError without a reward, CheckpointError for a reward model
    whose weights are not as they were."""
    if not rewards:
        raise UsageError("nothing judges the answers: give --reward FILE.py:NAME, a reward model, or builtin:NAME")
    scorers: list[Scorer] = []
    for reward in rewards:
        source = reward.source
        changed = bool(reward.fingerprint) and fingerprint(source) != reward.fingerprint
        if source.startswith(BUILTIN) and not source.startswith(UNBOUNDED):
            scorers.append(VerifierScorer(source))
        elif source.startswith(BUILTIN) or is_function(source):
            if changed:
                disk.tell(f"note: {source.rpartition(':')[0]} is not as it was when the run began")
            scorers.append(FunctionScorer(source, seconds))
        else:
            if changed:
                raise CheckpointError(f"the reward model {source} is not as it was when the run began")
            scorers.append(ModelScorer(source, device))
    return Rewards(scorers, [reward.weight for reward in rewards])


def declared(text: str) -> Reward:
    """A reward from `SOURCE` or `SOURCE@WEIGHT`. Raises UsageError for what is none."""
    source, mark, weight = text.rpartition("@")
    if not mark or not source:
        return Reward(checked(text), fingerprint=fingerprint(checked(text)))
    try:
        value = float(weight)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"the weight of the reward {text!r} is {weight!r}; a number was expected behind the @")
    return Reward(checked(source), value, fingerprint(checked(source)))


def named(source: str) -> str:
    """What the metrics call a source: the function, the verifier, or the folder."""
    if source.startswith(BUILTIN):
        return source.removeprefix(BUILTIN).partition(":")[0]
    if source.startswith(SAFETY_FIRST):
        return "safety_first"
    path = Path(source)
    if is_function(source):
        return source.rpartition(":")[2]
    return path.parent.name if path.name == "model" else path.name


def is_function(source: str) -> bool:
    """Whether a source is a function of a Python file."""
    return source.rpartition(":")[0].endswith(".py")


def checked(source: str) -> str:
    """A source with the absolute path of its file or folder. Raises UsageError for one that cannot be."""
    if source.startswith(BUILTIN):
        verifier(source.removeprefix(BUILTIN))
        return source
    if source.endswith(".py"):
        raise UsageError(f"the reward {source} names no function; write {source}:NAME")
    if is_function(source):
        file, _, name = source.rpartition(":")
        path = Path(file).expanduser()
        if not path.is_file():
            near = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
            raise UsageError(f"the reward {source} is of a file that is not there{did_you_mean(path.name, near)}")
        return f"{path.resolve()}:{name}"
    if source.startswith(SAFETY_FIRST):
        if len(folders(source)) != 2:
            raise UsageError(f"the reward {source} must name two reward models: {SAFETY_FIRST}HELPFULNESS,SAFETY")
        return SAFETY_FIRST + ",".join(map(checked, folders(source)))
    path = Path(source).expanduser()
    if path.is_dir():
        return str((path / "model" if (path / "model").is_dir() else path).resolve())
    raise UsageError(
        f"the reward {source!r} is no folder of a reward model; a function is FILE.py:NAME, a verifier builtin:NAME"
    )


def fingerprint(source: str) -> str:
    """A text that changes with what computes a source: the file of a function, the weights of a model."""
    if source.startswith(BUILTIN):
        return ""
    if is_function(source):
        return _hash(Path(source.rpartition(":")[0]))
    digest = hashlib.sha256()
    for folder in folders(source):
        for path in sorted(Path(folder).glob("*.safetensors")):
            digest.update(f"{path.name} {_hash(path)}\n".encode())
    return digest.hexdigest()


def folders(source: str) -> list[str]:
    """The folders of the reward models of a source."""
    return source.removeprefix(SAFETY_FIRST).split(",") if source.startswith(SAFETY_FIRST) else [source]


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------- verifiers and functions


class VerifierScorer(Scorer):
    """Judges by a verifier of `stemma.alignment.verify`."""

    def __init__(self, source: str) -> None:
        self.source, self.name = source, named(source)
        self.of_rows = self.name == "scores"
        self.reward = verifier(source.removeprefix(BUILTIN))

    def scores(self, asked: Sequence[RewardInput]) -> list[float]:
        try:
            return [self.reward(*one) for one in asked]
        except DataError as error:
            raise RewardError(f"the reward {self.source}: {error}") from None


class FunctionScorer(Scorer):
    """Judges by a function of (prompt, answer, record), in a process of its own that is started once. A call that does
    not return within `seconds` is an error, as are one that raises and one that returns no finite number."""

    def __init__(self, source: str, seconds: float = SECONDS) -> None:
        self.source, self.name, self.seconds = source, named(source), seconds
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._lists = False
        self._tried = False
        self._end: Callable[[], Any] = lambda: None

    def scores(self, asked: Sequence[RewardInput]) -> list[float]:
        if not asked:
            return []
        found = self._scores(asked)
        if not self._tried:
            self._tried = True
            for i in {0, len(asked) - 1} if self._lists else {0}:  # the first place of a list tells nothing of order
                self._try(asked[i], found[i])
        return found

    def _try(self, one: RewardInput, before: float) -> None:
        """Judge an answer again and alone: its score must be the same."""
        again = self._scores([one])[0]
        if again != before:
            how = "alone" if self._lists else "a second time"
            raise RewardError(
                f"the reward {self.source} gives {before} to an answer, and {again} {how}; it must be a function of "
                f"(prompt, answer, record) alone (answer: {brief(one.answer)})"
            )

    def _scores(self, asked: Sequence[RewardInput]) -> list[float]:
        process = self._started()
        assert process.stdin is not None
        try:
            batch = {
                "prompts": [a.prompt for a in asked],
                "answers": [a.answer for a in asked],
                "records": [dict(a.record) for a in asked],
            }
            process.stdin.write(json.dumps(batch) + "\n")
            process.stdin.flush()
        except OSError:
            raise self._failed(self._ended(), asked[0]) from None
        if self._lists:
            return [float(score) for score in self._answer(asked[0])["scores"]]
        return [float(self._answer(one)["score"]) for one in asked]

    def _answer(self, about: RewardInput) -> dict[str, Any]:
        """The next result. Raises RewardError, which names what was judged."""
        found = self._line(self.seconds)
        if found is None:
            raise self._failed(self._ended(), about)
        if "timeout" in found:
            self.close()
            raise self._failed(f"it has not returned within {self.seconds:g} seconds", about)
        if "error" in found:
            self.close()  # the results of the others in this batch are nobody's
            raise self._failed(found["error"], about)
        return found

    def _failed(self, why: str, about: RewardInput) -> RewardError:
        whole = " and those after it" if self._lists else ""
        return RewardError(
            f"the reward {self.source}: {why}; the answer was {brief(about.answer)}, the record "
            f"{brief(dict(about.record))}{whole}"
        )

    def _ended(self) -> str:
        """Why the process is gone."""
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        code = self._process.returncode
        self.close()
        return f"its process ended with the exit code {code}"

    def _line(self, seconds: float) -> dict[str, Any] | None:
        """The next line of the process; None if it ended, `timeout` if there is none in time."""
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            return {"timeout": seconds}
        return None if line is None else dict(json.loads(line))

    def _started(self) -> subprocess.Popen[str]:
        """The process, started where there is none. Raises UsageError where the source has no such function."""
        if self._process is not None:
            return self._process
        command = [sys.executable, "-m", "stemma.alignment.worker", self.source]
        where = os.pathsep.join([str(PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])])
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": where},
            process_group=0,  # an interrupt from the keyboard is for the run, which ends its step first
        )
        self._process, self._lines = process, queue.SimpleQueue()
        self._end = weakref.finalize(self, _stop, process)
        threading.Thread(target=_listen, args=(process, self._lines), daemon=True).start()
        first = self._line(STARTING)
        if first is None or "error" in first or "timeout" in first:
            why = self._ended() if first is None else first.get("error", f"it was not read within {STARTING:g} seconds")
            self.close()
            raise RewardError(f"the reward {self.source}: {why}")
        self._lists = bool(first["lists"])
        return process

    def close(self) -> None:
        self._end()
        self._process = None


def _listen(process: subprocess.Popen[str], lines: queue.SimpleQueue[str | None]) -> None:
    assert process.stdout is not None
    with contextlib.suppress(ValueError, OSError):
        for line in process.stdout:
            lines.put(line)
    lines.put(None)


def _stop(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            if pipe is not None:
                pipe.close()


# ---------------------------------------------------------------- models


class ModelScorer(Scorer):
    """Judges by a reward model, or by two as LLaMA-2-Chat combines them (`SAFETY_FIRST`). A model reads conversation
    and answer with its own tokenizer and template; the score of an answer does not depend on the others. A record whose
    field `unsafe` is true is of a prompt that asks for safety."""

    def __init__(self, source: str, device: Any = "cpu") -> None:
        from stemma.tuning.scoring import RewardModel

        self.source, self.name = source, named(source)
        self.models = [RewardModel.load(path) for path in folders(source)]
        for one in self.models:
            one.model.to(device)

    def scores(self, asked: Sequence[RewardInput]) -> list[float]:
        from stemma.tuning.scoring import SafetyFirst

        talks = [self._talk(one) for one in asked]
        if len(self.models) == 1:
            return self.models[0].scores(talks)
        helpfulness, safety = self.models
        tagged = [one.record.get("unsafe") is True for one in asked]
        return SafetyFirst(helpfulness, safety, white=False).scores(talks, tagged)

    def _talk(self, one: RewardInput) -> Any:
        """A conversation with its answer. Raises RewardError for one that a model cannot read."""
        from stemma.conversations import Conversation, Turn, comparisons

        try:
            found = Conversation((*comparisons.asked(one.record).turns, Turn("assistant", one.answer)))
            for model in self.models:
                model.read(found)
        except DataError as error:
            said = f"the reward {self.source} cannot judge the answer {brief(one.answer)}"
            raise RewardError(f"{said}: {error}") from None
        return found
