"""The commands of the README's four readers, as printed but for the time and the compute that they ask for."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

import stemma
from test_cli import Call, block, call  # noqa: F401
from test_train import words

SMALL = [
    "--set",
    "dims.d_model=32",
    "--set",
    "dims.layers=1",
    "--set",
    "dims.heads=2",
    "--set",
    "dims.d_ff=48",
    "--set",
    "dims.vocab=400",
]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a reader's texts, and a GGUF file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-texts").mkdir()
    rows = "".join(json.dumps({"text": t}) + "\n" for t in words())
    (tmp_path / "my-texts" / "rows.jsonl").write_text(rows, "utf-8")
    return tmp_path


def told(name: str, call: Call) -> list[str]:  # noqa: F811
    """What each command of a block prints; budgets are a few steps of a small network."""
    found = []
    for line in block("README.md", name).splitlines():
        program, *args = shlex.split(line)
        assert program == "stemma"
        if "tune" in args:
            args += ["--budget", "2 steps", "--quiet"]
        if "pretrain" in args:
            args[args.index("--budget") + 1] = "2 steps"
            args += [*SMALL, "--quiet"]
        code, out, err = call(*args)
        assert code == 0, f"{line}: {err}"
        found.append(out)
    return found


def test_who_has_text(call: Call) -> None:  # noqa: F811
    plan, _, filled = told("domain", call)
    assert "tokens" in plan and filled.strip()


def test_who_compares(call: Call, here: Path) -> None:  # noqa: F811
    told("compare", call)
    assert re.search("llama", (here / "report.html").read_text("utf-8"))


def test_who_has_a_gguf_file(call: Call, here: Path) -> None:  # noqa: F811
    pytest.importorskip("gguf")
    told("compare", call)
    stemma.load(here / "runs/llama/model").save(str(here / "model.gguf"))
    written, _ = told("gguf", call)
    assert written.strip() and stemma.load(here / "smollm2").family.name == "llama"


def test_who_has_a_model(call: Call, here: Path) -> None:  # noqa: F811
    """The models are those of the readers before, and the template is named, which a GGUF file has in it."""
    pytest.importorskip("gguf")
    told("domain", call)
    told("compare", call)
    model = stemma.load(here / "runs/llama/model")
    model.tokenizer.chat_template = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    model.save(str(here / "model.gguf"))
    rows = [f'"{text}",{label}' for text, label in zip(words()[:40], ["good", "bad"] * 20, strict=True)]
    (here / "reviews.csv").write_text(
        "text,label\n" + "\n".join(row.replace("\n", " ") for row in rows) + "\n", "utf-8"
    )
    *_, said = told("tune", call)
    assert "good" in said or "bad" in said


def test_who_wants_to_understand(call: Call, here: Path) -> None:  # noqa: F811
    show, diff, *_ = told("understand", call)
    assert "RMSNorm" in show and "Rotary" in diff
    assert (here / "diff.html").is_file() and (here / "tree.html").is_file()


def test_the_chinese_twin_has_the_same_commands() -> None:
    """Every command of a shell block, in the same order."""
    pages = [(Path(__file__).parent.parent / name).read_text("utf-8") for name in ("README.md", "README.zh-CN.md")]
    english, chinese = (
        [
            line.split("#")[0].rstrip()
            for code in re.findall(r"```sh\n(.*?)```", page, re.S)
            for line in code.splitlines()
        ]
        for page in pages
    )
    assert english == chinese
    links = [set(re.findall(r"\]\(([^)\s]*?\.md)\)", page)) - {"README.md", "README.zh-CN.md"} for page in pages]
    assert links[0] == links[1]
