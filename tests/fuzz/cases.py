"""A case: a subject, edits of its files, and a command. It is made from a seed, and is a line of JSON."""

from __future__ import annotations

import json
import os
import random
import shutil
import traceback
import warnings
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from fuzz import edits
from fuzz.propose import edit_for
from fuzz.subjects import SUBJECTS, texts

MODEL, MARK = "m", "mark"  # in the folder of a case: the subject, and what a payload makes
SUMS = "checkpoints/"  # files below this have checksums, which are set right after most edits


@dataclass(frozen=True)
class Case:
    """`edits`: (file, edit) of each. `command`: its words. `signed`: the checksums of a run's checkpoints are made those
    of its files, as whoever prepares one would."""

    subject: str
    edits: tuple[tuple[str, edits.Edit], ...]
    command: tuple[str, ...]
    signed: bool = False

    def line(self) -> str:
        return json.dumps(asdict(self))


def parse(line: str) -> Case:
    """The case of a line. Further keys are for people."""
    held: dict[str, Any] = json.loads(line)
    changes = tuple((name, edit) for name, edit in held["edits"])
    return Case(held["subject"], changes, tuple(held["command"]), bool(held.get("signed")))


class Subjects:
    """The folders of subjects, each made when it is first asked for."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.home.mkdir(parents=True, exist_ok=True)
        rows = "".join(json.dumps({"text": text}) + "\n" for text in texts())
        (home / "rows.jsonl").write_text(rows, "utf-8")

    def folder(self, name: str) -> Path:
        """The folder of a subject. It is made in a process of its own: what trains has threads, which forks after it
        would lack."""
        path = self.home / name
        if path.is_dir():
            return path
        if (pid := os.fork()) == 0:
            self._make(name)
        if os.waitpid(pid, 0)[1]:
            raise RuntimeError(f"the subject {name} cannot be made")
        return path

    def _make(self, name: str) -> NoReturn:
        code = 1
        try:
            warnings.simplefilter("ignore")
            scratch = self.home / f".{name}"
            shutil.rmtree(scratch, ignore_errors=True)
            SUBJECTS[name].make(scratch)
            scratch.rename(self.home / name)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def files(self, name: str) -> list[str]:
        folder = self.folder(name)
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def drawn(seed: int, subjects: Subjects, only: str = "") -> Case:
    """The case of a seed. `only`: of this subject."""
    draw = random.Random(seed)
    names = [name for name, about in SUBJECTS.items() for _ in range(about.weight)]
    name = only or draw.choice(names)
    folder, files = subjects.folder(name), subjects.files(name)
    command = draw.choice(SUBJECTS[name].commands)
    aim = draw.choice(files) if "{f}" in command else ""
    found: list[tuple[str, edits.Edit]] = []
    for _ in range(draw.choice([1, 1, 1, 1, 2, 3])):
        file = aim or draw.choice(files)
        if draw.random() < 0.04:
            edit = _swapped(file, subjects, draw)
        else:
            edit = edit_for(file, (folder / file).read_bytes(), files, draw)
        if not (
            aim and edit == ["pipe"]
        ):  # the text and the settings that a user names may be a pipe, and are waited for
            found.append((file, edit))
    words = tuple(word.format(m=MODEL, f=f"{MODEL}/{aim}") for word in command)
    signed = draw.random() < 0.8 and any(file.startswith(SUMS) for file, _ in found)
    return Case(name, tuple(found), words, signed)


def _swapped(file: str, subjects: Subjects, draw: random.Random) -> edits.Edit:
    """A file of another subject in place of this one, of the same ending if that has one."""
    name = draw.choice([name for name in SUBJECTS if SUBJECTS[name].weight > 1])
    files = subjects.files(name)
    return ["other", f"{name}/{draw.choice([f for f in files if Path(f).suffix == Path(file).suffix] or files)}"]


def lay(case: Case, subjects: Subjects, place: Path) -> None:
    """Write the files of a case into a new folder `place`."""
    place.mkdir()
    shutil.copytree(subjects.folder(case.subject), place / MODEL)
    for name, edit in case.edits:
        if edit[0] == "other":
            subjects.folder(edit[1].partition("/")[0])
        edits.apply(place / MODEL, name, edit, (place / MARK).absolute(), subjects.home)
    if case.signed:
        sign(place / MODEL)


def sign(run: Path) -> None:
    """Make the checksums in a run's checkpoints those of its files, where they can be read."""
    from stemma import disk
    from stemma.runs import checkpoint

    for path in run.glob("checkpoints/step-*/state.json"):
        try:
            state = disk.read_json(path)
            sums = {name: checkpoint._sum(path.parent / name) for name in state[checkpoint.SUMS]}
            state[checkpoint.SUMS] = sums
            state[checkpoint.OWN] = checkpoint._own(state)
            path.write_text(json.dumps(state))
        except Exception:  # then it is as the edit left it
            continue


def smaller(case: Case) -> list[Case]:
    """The case with one edit less, for each."""
    found = [case.edits[:i] + case.edits[i + 1 :] for i in range(len(case.edits))]
    return [Case(case.subject, rest, case.command, case.signed) for rest in found if len(case.edits) > 1]


def kinds(cases: list[Case]) -> Counter[str]:
    """How many cases each subject has."""
    return Counter(case.subject for case in cases)
