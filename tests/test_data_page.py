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
    assert len(COMMANDS) == 7
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
