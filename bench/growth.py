"""What grows with the size of files, rows and vocabularies, beside what a user would take instead.

    python bench/growth.py weights [--only "load one file"] [--scale 0.1] [--repeats 5]
    python bench/growth.py [PART ...] [--folder PLACE] [--json FILE]

A part is a module of `bench/growth/`; each names its sides (Stemma first), its work, and the bounds that Stemma holds.
Every try is a process of its own, the sides in turns. `s` is the time of the work after a warm-up on something tiny,
`process s` with imports and warm-up, `GB` the most private memory of the process (`smaps_rollup`, asked 200 times a
second). Each is the median of the tries; a ratio is the median of the ratios of neighbours, with the extremes. A ratio
beyond its bound has a cross. Linux only.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from growth import PARTS, Try, compare, heading, measure, part_of, row


def run(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Make the files of a part, take turns, print a row for each kind of work."""
    part = part_of(name)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        one = Try(name, "", "", Path(folder), options.scale)
        print(f"\n{name}: {part.make(one)}\n\n{heading(part.SIDES)}", flush=True)
        for work in part.WORKS:
            if not options.only or work.name in options.only:
                found[work.name] = compare(part, work, one, options.repeats)
                print(row(part.SIDES, work, found[work.name]), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; left out: all")
    parser.add_argument("--only", action="append", help="this kind of work alone (may be repeated)")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full size (1)")
    parser.add_argument("--repeats", type=int, default=3, help="tries of each side (3)")
    parser.add_argument("--folder", help="where the temporary folder is made")
    parser.add_argument("--json", help="write the numbers to this file")
    parser.add_argument("--try", dest="one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(Try.parse(options.one))))
        return
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part is called {', '.join(sorted(unknown))}; parts are {', '.join(PARTS)}")
    found = {name: run(name, options) for name in options.parts or PARTS}
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
