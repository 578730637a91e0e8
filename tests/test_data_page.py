"""The commands of docs/data.md, as they stand there."""

from __future__ import annotations

import json
import random
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from stemma.cli import root
from stemma.cli.texts import GRAMMAR
from stemma.data.sources import OPTIONS

PAGE = (Path(__file__).parent.parent / "docs/data.md").read_text("utf-8")
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.S)
    for line in block.splitlines()
    if line.startswith("stemma ")
]


def test_the_commands_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasketch")
    pytest.importorskip("datatrove")
    (tmp_path / "crawl").mkdir()
    draw = random.Random(2)

    def line() -> str:
        return (
            "The " + " ".join("".join(draw.choices("abcdefgh", k=draw.randint(3, 7))) for _ in range(15)) + " and of."
        )

    rows = ["\n".join(line() for _ in range(5)) for _ in range(40)]
    for part in range(4):
        lines = [json.dumps({"text": row}) + "\n" for row in [*rows[part::4], rows[0], "short"]]
        (tmp_path / "crawl" / f"{part}.jsonl").write_text("".join(lines))
    assert len(COMMANDS) == 10
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STEMMA_CACHE", str(tmp_path / "cache"))
    for line in COMMANDS:
        done = CliRunner().invoke(root, shlex.split(line)[1:])
        assert done.exit_code == 0, f"{line}: {done.output} {done.exception!r}"
    kept = [json.loads(line) for line in (tmp_path / "clean" / "text" / "part-00000.jsonl").read_text().splitlines()]
    many = [
        json.loads(line) for path in (tmp_path / "cluster" / "text").iterdir() for line in path.read_text().splitlines()
    ]
    assert sorted(row["text"] for row in kept) == sorted(row["text"] for row in many) != []


def test_what_a_text_may_be_is_in_the_help_of_the_commands_that_take_one() -> None:
    assert all(
        f"  {option}=" in GRAMMAR or f"; {option}=" in GRAMMAR or f", {option}=" in GRAMMAR for option in OPTIONS
    )
    for command in ("pretrain", "data show", "data stats", "data clean"):
        said = CliRunner().invoke(root, [*command.split(), "--help"]).output
        assert "encoding=latin-1" in said and "a.txt@0.7,b.txt@0.3" in said, command


def test_what_is_passed_over_is_listed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    for k in range(5):
        (tmp_path / f"{k}.bin").write_bytes(b"\x00")
    brief, whole = (
        CliRunner().invoke(root, ["data", "stats", str(tmp_path), *more]) for more in ([], ["--passed-over"])
    )
    assert "note: 5 binary files were passed over: 0.bin, 1.bin, 2.bin, ..." in brief.output
    assert f"{tmp_path / '4.bin'}: binary file" not in brief.output
    assert all(f"{tmp_path / f'{k}.bin'}: binary file" in whole.output for k in range(5))
