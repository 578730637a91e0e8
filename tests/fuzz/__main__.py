"""`python -m fuzz`: run cases for a while, or run one again."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from fuzz import pool
from fuzz.cases import Case, Subjects, drawn, lay, parse, smaller
from fuzz.subjects import SUBJECTS
from fuzz.tries import Tried


def signature(tried: Tried) -> str:
    """What failures of one kind have in common."""
    return f"{shape(tried.problems[0])} {tried.where}"


def shape(text: str) -> str:
    """The beginning of a message without its names and numbers."""
    return re.sub(r"'[^']*'|\"[^\"]*\"|[\d.,]+", "_", text.strip())[:70]


Found = tuple[tuple[int, int], Counter[int], dict[str, list[int]], dict[str, int]]


def found(cases: Iterator[tuple[int, Case]], subjects: Subjects, seconds: float, kept: Path) -> Found:
    """(numbers of the first and the last case, exit codes, numbers by the signature of the failures, a number for each
    kind of exit code 5: the machine's refusals, which a file should seldom cause)."""
    codes: Counter[int] = Counter()
    refusals: dict[str, int] = {}
    first = last = 0
    failures: dict[str, list[int]] = {}
    end = time.monotonic() + seconds
    try:
        for seed, case, tried in pool.run(cases, subjects):
            first, last = first or seed, seed
            codes[tried.code] += 1
            if tried.code == 5:
                refusals[shape(tried.err.rpartition("error: ")[2])] = seed
            if tried.problems:
                key = signature(tried)
                failures.setdefault(key, []).append(seed)
                if len(failures[key]) == 1:
                    tell(seed, case, tried, kept)
            if time.monotonic() > end:
                break
    except KeyboardInterrupt:
        print("\nstopped")
    return (first, last), codes, failures, refusals


def report(cases: Iterator[tuple[int, Case]], subjects: Subjects, seconds: float, kept: Path) -> int:
    """Run cases and print what was found. Returns the exit code."""
    begin = time.monotonic()
    seen, codes, failures, refusals = found(cases, subjects, seconds, kept)
    taken = time.monotonic() - begin
    shown = ", ".join(f"{code}: {number:,}" for code, number in sorted(codes.items()))
    print(
        f"\n{codes.total():,} cases in {taken:.0f} s ({codes.total() / taken:.0f} a second), {seen[0]} to {seen[1]}; exit codes {shown}"
    )
    for key, seeds in sorted(failures.items(), key=lambda pair: -len(pair[1])):
        print(f"{len(seeds):5} x {key}  (first {seeds[0]})")
    for told, number in refusals.items():
        print(f"exit code 5: {told} ({number})")
    print(f"{len(failures)} kinds of failure", flush=True)
    return int(bool(failures))


def tell(seed: int, case: Case, tried: Tried, kept: Path) -> None:
    """Print a failure and keep its case."""
    kept.mkdir(parents=True, exist_ok=True)
    path = kept / f"{seed}.json"
    path.write_text(case.line() + "\n")
    print(f"\nseed {seed}: {' '.join(case.command)} ({case.subject})", flush=True)
    for problem in tried.problems:
        print(f"  {problem!r}"[:700])
    if tried.where:
        print(f"  {tried.where}")
    print(f"  {tried.code=} {tried.seconds:.1f} s {tried.memory / 2**20:,.0f} MB; {case.edits!r}"[:500])
    print(f"  again: make fuzz REPLAY={path}", flush=True)


def replay(what: str, subjects: Subjects, only: str, keep: Path | None) -> bool:
    """Run one case again, a seed or a file, with as few edits as still fail. Returns whether it passes."""
    case = drawn(int(what), subjects, only) if what.isdecimal() else parse(Path(what).read_text())
    ((_, _, tried),) = pool.run([(0, case)], subjects)
    if tried.problems:
        for less in smaller(case):
            ((_, _, again),) = pool.run([(0, less)], subjects)
            if again.problems and signature(again) == signature(tried):
                case, tried = less, again
                break
    if keep is not None:
        lay(case, subjects, keep)
        print(f"the files are in {keep}; there: stemma --debug {' '.join(case.command)}")
    print(case.line())
    print(f"exit code {tried.code}, {tried.seconds:.1f} s, {tried.memory / 2**20:,.0f} MB\n{tried.out}\n{tried.err}")
    print("\n".join(tried.problems) or "nothing is wrong with that", f"\n{tried.where}")
    return not tried.problems


def seeds_from(first: int, subjects: Subjects, only: str, count: int | None) -> Iterator[tuple[int, Case]]:
    seed = first
    while count is None or seed < first + count:
        yield seed, drawn(seed, subjects, only)
        seed += 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300, help="how long to run cases (300)")
    parser.add_argument("--seed", type=int, help="of the first case; the next ones follow it (by the clock)")
    parser.add_argument("--count", type=int, help="how many cases at most")
    parser.add_argument("--only", default="", choices=["", *SUBJECTS], help="cases of this subject")
    parser.add_argument(
        "--cases", type=Path, metavar="FILE", help="run the cases of this file, a line each, and no others"
    )
    parser.add_argument(
        "--kept", type=Path, default=Path(".fuzz"), metavar="DIR", help="where failing cases go (.fuzz)"
    )
    parser.add_argument("--replay", metavar="SEED|FILE", help="run one case again")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="with --replay: leave its files here")
    told = parser.parse_args()
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    home = Path(tempfile.mkdtemp(prefix="stemma-fuzz-", dir=base))
    try:
        subjects = Subjects(home)
        pool.warm()
        first = told.seed if told.seed is not None else int(time.time())
        listed = [parse(line) for line in told.cases.read_text("utf-8").splitlines()] if told.cases else []
        for name in {case.subject for case in listed} or (
            [told.only] if told.only else [] if told.replay else SUBJECTS
        ):
            subjects.folder(name)
        if told.replay:
            return int(not replay(told.replay, subjects, told.only, told.keep))
        if listed:
            return report(enumerate(listed, 1), subjects, 10**6, told.kept)
        return report(seeds_from(first, subjects, told.only, told.count), subjects, told.seconds, told.kept)
    finally:
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
