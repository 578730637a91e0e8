"""The commands of docs/pretraining.md, and objectives on networks that are not their own."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from stemma import families
from stemma.cli import root
from stemma.errors import UsageError
from stemma.objectives import incompatible_reason, with_special_tokens
from stemma.spec import edit
from stemma.train import resolve

PAGE = (Path(__file__).parent.parent / "docs/pretraining.md").read_text("utf-8")
FIRST, *OTHER = [
    [line.split("  #")[0] for line in block.splitlines() if line.startswith("stemma ")]
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.S)
]
SHORT = ["--budget", "1 steps", "--set", "dims.vocab=1200", "--set", "train.eval_tokens=200", "--quiet"]


@pytest.fixture(autouse=True)
def small_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with little text, in one language and in two, in the place of the built-in ones, which take longer."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "one.txt").write_text("The first line of a text.\nAnd a second one, which is longer.\n" * 400)
    for language, words in (("en", "the house of number"), ("de", "das Haus der Zahl")):
        lines = "".join(f"{words} {n % 17} {n % 5}\n" for n in range(300))
        (tmp_path / f"talks.{language}").write_text(lines)


def on_little(line: str) -> list[str]:
    """The words of a command, with a short budget and little text."""
    words = shlex.split(line)[1:]
    if words[0] != "pretrain":
        return words
    data = "talks.en|talks.de" if "builtin:parallel" in words else "texts/"
    return [*words, *SHORT, "--scale", "tiny", "--data", data]


def test_the_first_commands_of_the_page(tmp_path: Path) -> None:
    assert len(FIRST) == 4
    for line in FIRST:
        done = CliRunner().invoke(root, on_little(line))
        assert done.exit_code == 0, f"{line}: {done.output} {done.exception!r}"
    assert (tmp_path / "runs/t5/model").is_dir()


@pytest.mark.parametrize("line", [line for block in OTHER for line in block])
def test_objectives_of_the_page(line: str) -> None:
    done = CliRunner().invoke(root, [*on_little(line), "--out", "run"])
    assert done.exit_code == 0, f"{done.output} {done.exception!r}"


def test_the_lines_of_python() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert "20 steps" in code and "builtin:bible" in code
    exec(code.replace("20 steps", "2 steps").replace("builtin:bible", "texts/"), {})


def test_own_objectives_need_no_token_that_a_family_lacks() -> None:
    for family in families.tree().values():
        for name in family.sizes:
            design = family[name]
            assert with_special_tokens(design.objective, design.text) == design.text, name


@pytest.mark.parametrize(
    ("name", "goal", "field", "value"),
    [
        ("t5", "Fragment()", "mask", "<mask>"),
        ("t5", "Fragment()", "cls", None),  # eos stands in its stead
        ("bart", "Spans()", "sentinels", 100),
        ("bart", "Denoisers(kinds=[Denoiser(rate=None, mean=None)])", "sentinels", 0),
        ("t5", "Corruption(style=mask)", "mask", None),  # a sentinel stands in its stead
        ("bart", "Corruption(style=replace)", "sentinels", 100),
        ("llama", "Blanks()", "eos", "</s>"),
        ("gpt1", "Spans()", "eos", "</s>"),
    ],
)
def test_a_tokenizer_of_the_run_has_what_the_objective_needs(name: str, goal: str, field: str, value: object) -> None:
    assert getattr(resolve(name, overrides={"objective": goal}).text, field) == value


@pytest.mark.parametrize(
    ("goal", "data"),
    [("TLM()", "builtin:parallel"), ("MLM()", "builtin:docs"), ("MLM(rate=0.2)", "builtin:docs")],
)
def test_the_text_suits_the_objective_that_is_set(goal: str, data: str) -> None:
    assert resolve("bert", overrides={"objective": goal}).data == data
    assert resolve("bert", overrides={"objective": goal, "data": "builtin:bible"}).data == "builtin:bible"


def test_a_name_needs_no_quotes() -> None:
    for name in ("electra-base-generator", "runs/one.two", "a-b_c"):
        for text in (f"RTD(generator={name}, rate=0.3)", f"RTD(rate=0.3, generator='{name}')"):
            goal = edit(families.design("electra"), {"objective": text}).objective
            assert (goal.generator, goal.rate) == (name, 0.3)
    assert incompatible_reason(
        edit(families.design("bert"), {"objective": "RTD(generator=x-y)"}).objective, families.design("bert").arch
    )


def test_text_of_few_documents_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Two short files are two documents, of which one is held out; paragraphs divide better."""
    for n in range(2):
        (tmp_path / f"{n}.txt").write_text("\n\n".join(f"paragraph {n} {i} of a text" for i in range(110)))
    for data, told in (("0.txt,1.txt", True), ("0.txt#split=paragraph,1.txt#split=paragraph", False)):
        words = ["pretrain", "gpt2", *SHORT, "--data", data, "--out", "told" if told else "quiet"]
        words.remove("--quiet")
        done = CliRunner().invoke(root, words)
        assert done.exit_code == 0, done.output
        said = done.output + capfd.readouterr().err
        assert ("of which none is divided" in said) == told, said


def test_weights_of_another_structure_are_named() -> None:
    for name in ("llama", "bert"):
        words = ["pretrain", name, *SHORT, "--data", "texts/", "--out", f"first-{name}"]
        if name == "bert":
            words += ["--from", "first-llama"]
        done = CliRunner().invoke(root, words)
    assert isinstance(done.exception, UsageError)
    said = str(done.exception)
    assert "first-llama" in said and "decoder" in said and "bert is of structure encoder" in said
