"""Cleaning on many processes or machines: steps as pipelines of datatrove, with the result of one process.

datatrove starts the tasks (on this machine, under Slurm, with Ray), keeps their logs, and when a command is given again
skips the complete ones.

The list of steps is cut at the steps on duplicates, which must see all documents. N tasks apply the rules before such a
step and write each document's key (a hash or a signature). One task goes through all keys in the order of the text and
writes down which documents repeat an earlier one. The N tasks of the next stage drop these and continue. The one task
needs the memory that the step needs in one process; it sees no text.
"""

from __future__ import annotations

import heapq
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from stemma import disk
from stemma.data import files, sources
from stemma.data.cleaned import REPORT, describe, finish, ready, row
from stemma.data.cleaning import Tally
from stemma.data.documents import Document, Notes
from stemma.data.duplicates import judge, key
from stemma.data.rules import rule
from stemma.data.shards import workers_for
from stemma.data.sources import read
from stemma.data.steps import CleaningStep, Exact, Near, label
from stemma.errors import DataError, ResourceError, UsageError, require

try:
    from datatrove.pipeline.base import PipelineStep
except ImportError as error:
    raise ResourceError("cleaning with an executor needs datatrove: pip install 'stemma-lm[cluster]'") from error

Executor = Literal["local", "slurm", "ray"]
Place = tuple[int, int]  # of a document in the order of the text: the file's number, and its own in the file
Numbered = Iterator[tuple[Place, Document]]


def portion(spec: str, rank: int, tasks: int) -> Numbered:
    """The documents of task `rank`: those of every `tasks`-th file if there are at least as many files as tasks, else
    every `tasks`-th document of the source, which each task then reads whole."""
    source = read(spec)
    paths = source.paths or ()
    plain = len(sources.pieces(spec)) == 1 and set(sources.options(spec)[1]) <= {"split", "field", "encoding"}
    if not plain or len(paths) < max(2, tasks):
        for number, document in enumerate(source.documents()):
            if number % tasks == rank:
                yield (0, number), document
        return
    given = sources.options(spec)[1]
    how = files.Reading(given.get("split"), given.get("field", "text"), given.get("encoding", ""))
    for i in range(rank, len(paths), tasks):
        try:
            rows = files.of_files([paths[i]], how, Notes(), alone=False)
            for j, document in enumerate(row for row in rows if row.text and not row.text.isspace()):
                yield (i, j), document
        except files.BinaryError:
            continue


def rows(path: Path) -> Iterator[Any]:
    """The values in a JSON lines file of a task."""
    return (value for _, value in disk.read_jsonl(path))


class ApplyRules(PipelineStep):
    """N tasks that apply `rules`. Input: the source, or the previous stage without its duplicates (those of the step
    `after` which this stage comes). Output: `folder/stage-K` with the keys for the step on duplicates that this stage
    comes `before`, or at the end `folder/text`."""

    name = "stemma: rules"
    type = "stemma"

    def __init__(
        self,
        spec: str,
        folder: str,
        number: int,
        rules: Sequence[CleaningStep],
        after: CleaningStep | None,
        before: CleaningStep | None,
    ) -> None:
        super().__init__()
        self.spec, self.folder, self.number = spec, folder, number
        self.rules, self.after, self.before = tuple(rules), after, before

    def documents(self, rank: int, tasks: int, tally: Tally) -> Numbered:
        """The input of a task."""
        if self.number == 0:
            yield from portion(self.spec, rank, tasks)
            return
        held = Path(self.folder, f"stage-{self.number - 1}")
        drop = {tuple(place): earlier for place, earlier in rows(held / "drop.jsonl")}
        for (i, j), fields in rows(held / f"rows-{rank:05d}.jsonl"):
            document = Document(*fields)
            tally.see(document)
            if (earlier := drop.get((i, j))) is not None:
                tally.remove(document, f"like {earlier}", (i, j))
            else:
                yield (i, j), document

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Any:
        here = Path(self.folder, f"stage-{self.number}")
        first = Tally(label(self.after)) if self.after is not None else Tally("")
        tallies = [Tally(label(step)) for step in self.rules]
        judged = [rule(step) for step in self.rules]
        of = key(self.before) if isinstance(self.before, Exact | Near) else None
        target = here / f"rows-{rank:05d}.jsonl" if of else Path(self.folder, "text", f"part-{rank:05d}.jsonl")
        with disk.write_jsonl(target) as out, disk.write_jsonl(here / f"keys-{rank:05d}.jsonl") as keys:
            for place, document in self.documents(rank, world_size, first):
                kept: Document | None = document
                for tally, check in zip(tallies, judged, strict=True):
                    assert kept is not None
                    kept = tally.pass_on(kept, check(kept.text), place)
                    if kept is None:
                        break
                self.stat_update("kept" if kept is not None else "removed")
                if kept is None:
                    continue
                out([place, list(kept)] if of else row(kept))
                if of:
                    keys([place, of(kept.text).hex(), kept.name])
        with disk.write_jsonl(here / f"tally-{rank:05d}.jsonl") as say:
            for tally in [first, *tallies] if self.after is not None else tallies:
                say(tally.plain())
        return data


class FindDuplicates(PipelineStep):
    """One task that finds the documents that repeat an earlier one, by their keys in the order of the text."""

    name = "stemma: duplicates"
    type = "stemma"

    def __init__(self, folder: str, number: int, step: Exact | Near) -> None:
        super().__init__()
        self.folder, self.number, self.step = folder, number, step

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Any:
        here = Path(self.folder, f"stage-{self.number}")
        repeats = judge(self.step)
        names: dict[int, str] = {}
        found = heapq.merge(*(rows(path) for path in sorted(here.glob("keys-*.jsonl"))), key=lambda item: item[0])
        with disk.write_jsonl(here / "drop.jsonl") as out:
            for number, (place, hashed, name) in enumerate(found):
                earlier = repeats(number, bytes.fromhex(hashed))
                if earlier is None:
                    names[number] = name
                else:
                    out([place, names[earlier]])
        return data


class WriteReport(PipelineStep):
    """One task that sums the tallies into `report.json` and removes the intermediate files."""

    name = "stemma: report"
    type = "stemma"

    def __init__(self, folder: str, out: str, stages: int, about: dict[str, Any]) -> None:
        super().__init__()
        self.folder, self.out, self.stages, self.about = folder, out, stages, about

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Any:
        total: list[Tally] = []
        for number in range(self.stages):
            own: list[Tally] = []
            for path in sorted(Path(self.folder, f"stage-{number}").glob("tally-*.jsonl")):
                more = [Tally.of(plain) for plain in rows(path)]
                own = more if not own else [a.plus(b) for a, b in zip(own, more, strict=True)]
            total += own
        finish(Path(self.out), Path(self.folder, "text"), total, self.about)
        for number in range(self.stages):
            shutil.rmtree(Path(self.folder, f"stage-{number}"), ignore_errors=True)
        return data


def pipelines(
    spec: str, out: Path, steps: Sequence[CleaningStep], about: dict[str, Any]
) -> list[tuple[list[Any], bool]]:
    """(blocks, whether a single task runs them) for each stage in turn."""
    folder = str(out / ".work")
    found: list[tuple[list[Any], bool]] = []
    pending: list[CleaningStep] = []
    after: CleaningStep | None = None
    number = 0
    for step in (*steps, None):
        if step is not None and not isinstance(step, Exact | Near):
            pending.append(step)
            continue
        found.append(([ApplyRules(spec, folder, number, pending, after, step)], False))
        if step is not None:
            found.append(([FindDuplicates(folder, number, step)], True))
            number, after, pending = number + 1, step, []
    return [*found, ([WriteReport(folder, str(out), number + 1, about)], True)]


def run(
    spec: str,
    out: Path,
    steps: Sequence[CleaningStep],
    executor: Executor,
    tasks: int,
    options: dict[str, Any],
    about: dict[str, Any],
) -> None:
    """Run the pipelines with an executor of datatrove and its own `options`. Under Slurm, submit the jobs and
    return."""
    from datatrove import executor as executors

    match executor:
        case "local":
            kind: Any = executors.LocalPipelineExecutor
            options = {**options, "workers": workers_for(tasks, options.get("workers"))}
        case "slurm":
            kind = executors.SlurmPipelineExecutor
            if missing := [name for name in ("time", "partition") if name not in options]:
                raise UsageError(f"Slurm asks for a {missing[0]}: give --option {missing[0]}=...")
        case "ray":
            require("ray", "the ray executor", "ray")
            kind = executors.RayPipelineExecutor
    last = None
    for number, (blocks, alone) in enumerate(pipelines(spec, out, steps, about)):
        mine = dict(options)
        if executor == "slurm":
            mine["job_name"] = f"stemma-clean-{number}"
        logs = str(out / ".work" / f"logs-{number}")
        last = kind(pipeline=blocks, tasks=1 if alone else tasks, logging_dir=logs, depends=last, **mine)
    assert last is not None
    last.run()


def distribute(
    spec: str, out: Path, steps: Sequence[CleaningStep], executor: Executor, tasks: int, options: dict[str, Any]
) -> dict[str, Any] | None:
    """Clean `spec` into `out/text` with an executor of datatrove. Returns the report, or None if jobs were submitted.
    Called again, it runs what is missing."""
    if tasks < 1:
        raise UsageError(f"--tasks is {tasks}; at least 1 was expected")
    read(spec)
    about = describe(spec, steps, tasks)
    ready(out, about, True)
    run(spec, out, steps, executor, tasks, options, about)
    path = out / REPORT
    if executor == "slurm":
        return None
    if not path.is_file():
        raise DataError(f"cleaning {spec} did not finish; the logs are in {out / '.work'}")
    report = disk.read_object(path)
    shutil.rmtree(out / ".work", ignore_errors=True)
    return report
