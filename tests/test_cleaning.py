"""Cleaning: each step against its published definition, the report, the same on many machines, statistics."""

from __future__ import annotations

import itertools
import json
import os
import random
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from stemma.cli import root
from stemma.data import Document, cleaned, cleaning, duplicates, read, rules, sources, survey
from stemma.data.cleaning import Tally, clean
from stemma.data.steps import C4, Exact, Gopher, Near, Repetition, Script, label, parse
from stemma.errors import DataError, ResourceError, StemmaError, UsageError

PROSE = (
    "The house that stood on the hill was old, and nobody in the village could say who had built it or when. In winter "
    "the wind came down from the mountains with such force that the shutters had to be tied to the walls with rope. "
    "Children were told to be quiet when they passed it, and most of them ran."
)


def said(kind: type[StemmaError], call: Any, *args: Any) -> str:
    with pytest.raises(kind) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def why(step: Any, text: str) -> str:
    """Why a rule leaves a text out; "" if it does not."""
    kept, reason = rules.rule(step)(text)
    assert (kept is None) == bool(reason)
    return reason


def keep(steps: str, *texts: str) -> list[str]:
    return [d.text for d in clean([Document(t, str(i)) for i, t in enumerate(texts)], parse(steps))]


def varied(words: int, seed: int = 0) -> str:
    """Prose without repetitions."""
    draw = random.Random(seed)
    made = ["".join(draw.choices("abcdefgh", k=draw.randint(3, 7))) for _ in range(words)]
    return " ".join(["the", "and", *made])


# ---------------------------------------------------------------- lists of steps


def test_lists_of_steps() -> None:
    assert parse("exact, near(threshold=0.7),Gopher(min_words=20)") == (Exact(), Near(0.7), Gopher(min_words=20))
    assert parse("dedup") == (Exact(), Near())
    assert [label(s) for s in parse("exact,near(threshold=0.7)")] == ["exact", "near(threshold=0.7)"]
    assert "did you mean 'gopher'" in said(UsageError, parse, "gofer")
    assert "has no field 'treshold'" in said(UsageError, parse, "near(treshold=0.7)")
    assert "near.threshold is 1.5" in said(UsageError, parse, "near(threshold=1.5)")
    assert "cannot be read" in said(UsageError, parse, "near(")
    assert "named figures only" in said(UsageError, parse, "near(0.7)")
    assert "no step is named" in said(UsageError, parse, "")


# ---------------------------------------------------------------- duplicates


def test_exact_duplicates() -> None:
    assert keep("exact", "One two.", "one,  TWO", "one two three", "One two.") == ["One two.", "one two three"]
    assert keep("exact(normal=False)", "One two.", "one,  TWO", "One two.") == ["One two.", "one,  TWO"]
    assert keep("exact", "ﬁne", "fine", "!!", "!!", "??") == ["ﬁne", "!!", "??"]


def test_near_duplicates_follow_the_jaccard_index() -> None:
    pytest.importorskip("datasketch")
    base = varied(400).split()
    changed = {n: " ".join([*base[: len(base) - n], *varied(n, 9).split()[:n]]) for n in (0, 5, 200)}
    text = " ".join(base)

    def jaccard(a: str, b: str) -> float:
        x, y = ({tuple(w[i : i + 5]) for i in range(len(w) - 4)} for w in (a.split(), b.split()))
        return len(x & y) / len(x | y)

    assert jaccard(text, changed[5]) > 0.9 and jaccard(text, changed[200]) < 0.5
    assert keep("near", text, changed[5], changed[200], varied(400, 5)) == [text, changed[200], varied(400, 5)]
    estimates = []
    for n in (5, 50, 100, 200):
        other = " ".join([*base[: len(base) - n], *varied(n, 9).split()[:n]])
        a, b = (memoryview(duplicates.key(Near(permutations=512))(t)).cast("I") for t in (text, other))
        estimates.append((sum(x == y for x, y in zip(a, b, strict=True)) / 512, jaccard(text, other)))
    assert all(abs(found - true) < 5 * (true * (1 - true) / 512) ** 0.5 for found, true in estimates)
    assert keep("near", "one two", "one two", "one three") == ["one two", "one three"]


def test_signatures_never_change() -> None:
    """Golden: another version of datasketch that hashed otherwise would change every cleaned text."""
    pytest.importorskip("datasketch")
    got = duplicates.key(Near(permutations=16))(PROSE)
    code = "from stemma.data import duplicates, steps; import sys; sys.stdout.write(duplicates.key(steps.Near(permutations=16))(sys.argv[1]).hex())"
    other = subprocess.run(
        [sys.executable, "-c", code, PROSE],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
    assert other.stdout == got.hex() and got.hex() == GOLDEN


GOLDEN = (
    "06391a0b159f90002af3a90421fb170267aef707e5d0d9009a0f4303a8f37100"
    "5325b30144712a060145bf0061f37104eb83ba020065ba0ad6922303882d3901"
)


def test_a_missing_datasketch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasketch", None)
    assert "the step `near` needs datasketch: pip install 'stemma-lm[data]'" in said(
        ResourceError, keep, "near", "a", "b"
    )


# ---------------------------------------------------------------- rules


def test_gopher_rules_one_by_one() -> None:
    """Rae et al. 2021, appendix A.1.1: each bound from both sides."""
    good = PROSE
    rule = Gopher()
    assert why(rule, good) == ""
    words = varied(200).split()
    assert why(rule, " ".join(words[:49])).startswith("49 words, fewer than 50") and not why(rule, " ".join(words[:50]))
    assert "more than 100" in why(Gopher(max_words=100), " ".join(words[:101]))
    assert "words of 2.0 characters" in why(rule, " ".join(["be"] * 60))
    assert "words of 11.0 characters" in why(rule, " ".join(["abcdefghijk"] * 60))
    hundred = words[:100]
    assert not why(rule, " ".join(hundred[:90] + ["#abc"] * 10)) and "hash signs" in why(
        rule, " ".join(hundred[:89] + ["#abc"] * 11)
    )
    assert "ellipses" in why(rule, " ".join(w + "…" for w in hundred)) and "ellipses" in why(
        rule, " ".join(w + "..." for w in hundred[:80])
    )
    lines = [" ".join(words[i : i + 10]) for i in range(0, 100, 10)]
    bullets = ["• " + line for line in lines]
    assert not why(rule, "\n".join(bullets[:9] + lines[9:])) and "begin with a bullet" in why(rule, "\n".join(bullets))
    open_ = [line + "..." for line in lines]
    assert not why(rule, "\n".join(open_[:3] + lines[3:])) and "40% of lines end with an ellipsis" in why(
        rule, "\n".join(open_[:4] + lines[4:])
    )
    assert not why(rule, " ".join(hundred[:80] + ["1234"] * 20)) and "79% of words have a letter" in why(
        rule, " ".join(hundred[:79] + ["1234"] * 21)
    )
    assert "1 of the usual English words" in why(rule, " ".join(["the", *words[2:100]])) and not why(
        rule, " ".join(["The", "with", *words[2:100]])
    )


def test_repetition_rules_one_by_one() -> None:
    """Rae et al. 2021, table A1."""
    rule = Repetition()
    assert why(rule, PROSE) == "" and why(rule, varied(300)) == ""
    lines = [varied(8, i) for i in range(10)]
    assert "40% of lines are repeated" in why(Repetition(line_characters=1.0), "\n".join(lines[:6] + lines[:4]))
    assert why(Repetition(line_characters=1.0, repeated=()), "\n".join(lines[:7] + lines[:3])) == ""
    assert "characters are in repeated lines" in why(rule, "\n".join([*lines[:8], lines[0], lines[1], lines[2]]))
    paragraphs = Repetition(lines=1.0, line_characters=1.0)
    assert "of paragraphs are repeated" in why(paragraphs, "\n\n".join(lines[:3] + lines[:2]))
    filler = varied(40).split()
    assert "in one 2-gram, more than 20%" in why(
        rule, " ".join(w for word in filler for w in ("same", "words", word))[: 40 * 16]
    )
    five = "one two three four five"
    spread = " ".join(f"{five} {varied(12, i)}" for i in range(6))
    assert "in repeated 5-grams, more than 15%" in why(Repetition(top=()), spread)
    assert why(Repetition(top=(), repeated=(0.5,)), spread) == ""
    ten = " ".join(varied(8, 3).split())
    assert "in repeated 10-grams" in why(
        Repetition(top=(), repeated=(1, 1, 1, 1, 1, 0.05)), f"{ten} {varied(50, 1)} {ten} {varied(50, 2)}"
    )


def test_shares_of_repeats_are_those_of_datatrove() -> None:
    oracle = pytest.importorskip("datatrove.pipeline.filters.gopher_repetition_filter")
    draw = random.Random(4)
    for _ in range(200):
        rows = [
            draw.choice(["a line", "b", "another line", f"line {draw.random()}"]) for _ in range(draw.randint(1, 12))
        ]
        again, characters = oracle.find_duplicates(rows)
        assert rules._repeats(rows) == (again / len(rows), characters)


def test_c4_rules_one_by_one() -> None:
    """Raffel et al. 2020, section 2.2."""
    rule = rules.rule(C4())
    three = ["This line is long enough.", "Is this one long enough?", 'He said "it surely is."']
    text, reason = rule(
        "\n".join([*three, "no mark at the end of this line", "Too short.", "It trails off just so..."])
    )
    assert (text, reason) == ("\n".join(three), "")
    assert rule("\n".join(three[:2])) == (None, "2 sentences left, fewer than 3")
    assert rule("\n".join([*three, "Please turn on Javascript to see this.", "We use cookies to make this better."]))[
        0
    ] == "\n".join(three)
    assert rule("\n".join([*three, "x = {1}"])) == (None, "a curly bracket")
    assert rules.rule(C4(brackets=False))("\n".join([*three, "x = {1}"]))[0] == "\n".join(three)
    assert rule("\n".join([*three, "Lorem Ipsum dolor sit amet."])) == (None, "lorem ipsum")
    assert rule("\n".join(["It was so in 1901.[3] [citation needed]", *three]))[0] == "\n".join(
        ["It was so in 1901.", *three]
    )


def test_scripts() -> None:
    assert why(Script(), "Straße, naïve 123") == "" and "0% of letters are LATIN" in why(Script(), "Привет 12")
    assert why(Script("Cyrillic"), "Привет") == "" and why(Script("CJK"), "日本") == ""
    assert "fewer than 90%" in why(Script(share=0.9), "abcd Привет") and "0% of letters" in why(Script(), "12 34")


# ---------------------------------------------------------------- a cleaning


def corpus(folder: Path, n: int = 60, parts: int = 5) -> Path:
    """A folder with duplicates within files and across, near ones, and documents that are no prose."""
    draw = random.Random(1)
    texts = [varied(80, i) for i in range(n)]
    rows = list(texts)
    rows += [draw.choice(texts).upper() for _ in range(n // 3)]
    rows += [draw.choice(texts) + " changed at the end" for _ in range(n // 3)]
    rows += [f"short {i}" for i in range(n // 4)] + ["1 2 3 4 5 " * 20, PROSE + "\nlorem ipsum"]
    draw.shuffle(rows)
    folder.mkdir()
    for i in range(parts):
        (folder / f"{i}.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in rows[i::parts]))
    (folder / "logo.bin").write_bytes(b"\0\1")
    return folder


STEPS = "gopher,exact,near,repetition"


def test_a_report_says_what_each_step_removed(tmp_path: Path) -> None:
    pytest.importorskip("datasketch")
    folder = corpus(tmp_path / "in")
    told = cleaned.write(str(folder), tmp_path / "out", parse(STEPS))
    tallies = [Tally(**plain) for plain in told["report"]]
    assert [t.step for t in tallies] == STEPS.split(",")
    total = sum(1 for _ in read(str(folder)).documents())
    for before, after in itertools.pairwise(tallies):
        assert (
            after.seen == before.seen - before.removed and after.seen_bytes == before.seen_bytes - before.removed_bytes
        )
    assert tallies[0].seen == total and told["documents"] == tallies[-1].seen - tallies[-1].removed
    assert tallies[0].removed == 16 and tallies[1].removed >= 18 and tallies[2].removed >= 15
    for tally in tallies[:3]:
        assert len(tally.examples) == 3 and all(
            e["name"] and e["why"] and len(e["text"]) <= 100 for e in tally.examples
        )
    assert all(e["why"].startswith(f"like {folder}") for e in tallies[1].examples)
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == told
    kept = list(read(str(tmp_path / "out" / "text")).documents())
    assert len(kept) == told["documents"] == len({d.text for d in kept})
    again = cleaned.write(str(folder), tmp_path / "again", parse(STEPS))
    assert again["sha256"] == told["sha256"] and again["report"] == told["report"]
    assert [d.text for d in kept] == [d.text for d in cleaning.cleaned(read(str(folder)), parse(STEPS)).documents()]


def test_a_cleaning_in_parts_and_in_a_full_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = corpus(tmp_path / "in")
    monkeypatch.setattr(cleaned, "PART", 5000)
    told = cleaned.write(str(folder), tmp_path / "out", parse("exact"))
    assert len(list((tmp_path / "out" / "text").iterdir())) > 3 and told["documents"] > 60
    assert "is not empty (it holds report.json)" in said(
        UsageError, cleaned.write, str(folder), tmp_path / "out", parse("exact")
    )
    assert "cleaning left nothing of" in said(
        DataError, cleaned.write, str(folder), tmp_path / "no", parse("script(name='ARABIC')")
    )
    assert not list((tmp_path / "no").iterdir())

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "the disk is full" in said(ResourceError, cleaned.write, str(folder), tmp_path / "full", parse("exact"))
    assert not list((tmp_path / "full").iterdir())


def test_steps_of_a_source_and_of_a_plan(tmp_path: Path) -> None:
    folder = corpus(tmp_path / "in")
    whole = len(list(read(str(folder)).documents()))
    source = read(f"{folder}#clean=exact:gopher")
    first = [d.text for d in source.documents()]
    assert len(first) < whole and [d.text for d in source.documents()] == first
    assert any(note.startswith("gopher removed ") for note in source.notes)
    assert any("binary file was passed over" in note for note in source.notes)
    assert source.paths == read(str(folder)).paths and source.facts != read(str(folder)).facts
    assert "there is no step 'gofer'" in said(UsageError, read, f"{folder}#clean=gofer")
    none = cleaning.cleaned(sources.of(["short"]), parse("gopher"))
    assert "cleaning left nothing of texts: gopher removed 1 of 1 documents" in said(DataError, list, none.documents())
    from stemma import spec
    from stemma.train import resolve
    from stemma.train.config import Plan

    plan = resolve("gpt2", data=str(folder), overrides={"clean": "exact,gopher(min_words=20)"})
    assert plan.clean == (Exact(), Gopher(min_words=20))
    assert spec.from_dict(Plan, json.loads(json.dumps(spec.to_dict(plan)))) == plan
    assert "did you mean 'exact'" in said(UsageError, lambda: resolve("gpt2", overrides={"clean": "exakt"}))


def test_a_run_cleans_its_text(tmp_path: Path) -> None:
    from stemma.data import Store
    from stemma.train import pretrain

    folder = corpus(tmp_path / "in")
    sets = {"clean": "exact", "dims.vocab": "300", "train.context": "32", "recipe.batch": "64"}
    pretrain("gpt2", data=str(folder), out=tmp_path / "run", budget="2 steps", overrides=sets, quiet=True)
    store = Store.open(tmp_path / "run" / "data")
    texts = {duplicates.normal(store.text(i)) for i in range(len(store))}
    assert len(texts) == len(store) < len(list(read(str(folder)).documents()))


# ---------------------------------------------------------------- on many machines


def as_set(folder: Path) -> list[tuple[str, str]]:
    return sorted(
        (row["text"], row["name"]) for path in (folder / "text").iterdir() for row in map(json.loads, open(path))
    )


@pytest.mark.parametrize(("tasks", "steps"), [(3, STEPS), (8, "exact,c4"), (2, "gopher")])
def test_datatrove_keeps_the_same_documents(tmp_path: Path, tasks: int, steps: str) -> None:
    pytest.importorskip("datatrove")
    pytest.importorskip("datasketch")
    from stemma.data import cluster

    folder = corpus(tmp_path / "in")
    if steps.endswith("c4"):
        (folder / "extra.jsonl").write_text(json.dumps({"text": PROSE.replace(". ", ".\n")}) + "\n")
    alone = cleaned.write(str(folder), tmp_path / "alone", parse(steps))
    told = cluster.distribute(str(folder), tmp_path / "many", parse(steps), "local", tasks, {"workers": 1})
    assert told is not None
    assert as_set(tmp_path / "many") == as_set(tmp_path / "alone")
    assert told["report"] == alone["report"] and told["documents"] == alone["documents"]
    assert sorted(p.name for p in (tmp_path / "many").iterdir()) == ["report.json", "text"]


def test_datatrove_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datatrove")
    from stemma.data import cluster

    folder, out = corpus(tmp_path / "in"), tmp_path / "out"
    real, done = cluster.ApplyRules.run, []

    def run(self: Any, data: Any = None, rank: int = 0, world_size: int = 1) -> Any:
        done.append((self.number, rank))
        if (self.number, rank) == (1, 1) and done.count((1, 1)) == 1:
            raise DataError("stopped in the middle")
        return real(self, data, rank, world_size)

    monkeypatch.setattr(cluster.ApplyRules, "run", run)
    arguments = (str(folder), out, parse("gopher,exact"), "local", 3, {"workers": 1})
    with pytest.raises(DataError, match="stopped in the middle"):
        cluster.distribute(*arguments)
    assert "another plan" in said(UsageError, cluster.distribute, str(folder), out, parse("exact"), "local", 3, {})
    cluster.distribute(*arguments)
    assert done.count((0, 0)) == 1 and done.count((1, 1)) == 2
    cleaned.write(str(folder), tmp_path / "alone", parse("gopher,exact"))
    assert as_set(out) == as_set(tmp_path / "alone")


@pytest.mark.slow
def test_slurm_jobs_run_as_slurm_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for sbatch runs each job's script at once, as every task of its array."""
    pytest.importorskip("datatrove")
    folder, bin_ = corpus(tmp_path / "in"), tmp_path / "bin"
    bin_.mkdir()
    sbatch = (
        f"#!{sys.executable}\n"
        "import os, re, subprocess, sys\n"
        "script = open(sys.argv[-1]).read()\n"
        f"log = open({str(tmp_path / 'jobs')!r}, 'a'); number = log.tell(); log.write('x' + ' '.join(sys.argv[1:]) + ' ' + ' '.join(re.findall('#SBATCH --(?:array|dependency)=.*', script)) + chr(10))\n"
        "array = re.search('--array=([0-9]+)-([0-9]+)', script)\n"
        "for i in range(int(array[1]), int(array[2]) + 1):\n"
        "    env = {**os.environ, 'SLURM_ARRAY_TASK_ID': str(i), 'SLURM_JOB_ID': '7', 'SLURM_NODEID': '0', 'SLURM_PROCID': '0', 'SLURM_NODELIST': 'node1'}\n"
        "    subprocess.run(['bash', sys.argv[-1]], env=env, check=True, stdout=sys.stderr)\n"
        "print('Submitted batch job', number + 1)\n"
    )
    for name, body in (
        ("sbatch", sbatch),
        ("srun", '#!/bin/bash\nwhile [[ "$1" == -* ]]; do [[ "$1" == -n ]] && shift; shift; done\nexec "$@"\n'),
        ("scontrol", "#!/bin/bash\n"),
    ):
        (bin_ / name).write_text(body)
        (bin_ / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{bin_}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    from stemma.data import cluster

    out = tmp_path / "out"
    options = {"time": "1:00:00", "partition": "cpu", "mail_user": None}
    assert "Slurm asks for a partition" in said(
        UsageError, cluster.distribute, str(folder), tmp_path / "no", parse("exact"), "slurm", 2, {"time": "1:00:00"}
    )
    assert cluster.distribute(str(folder), out, parse("exact,gopher"), "slurm", 2, options) is None
    jobs = [
        job for job in (tmp_path / "jobs").read_text().splitlines() if "--export" in job
    ]  # others add up statistics
    assert len(jobs) == 4 and ["--dependency=afterok:" in job for job in jobs] == [False, True, True, True]
    assert ["--array=0-1" in job for job in jobs] == [True, False, True, False]
    cleaned.write(str(folder), tmp_path / "alone", parse("exact,gopher"))
    assert as_set(out) == as_set(tmp_path / "alone")


def test_executors_that_are_not_there_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datatrove")
    from stemma.data import cluster

    folder = corpus(tmp_path / "in")
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "needs ray: pip install ray" in said(
        ResourceError, cluster.distribute, str(folder), tmp_path / "a", parse("exact"), "ray", 2, {}
    )
    monkeypatch.delitem(sys.modules, "stemma.data.cluster", raising=False)
    import stemma.data

    monkeypatch.delattr(stemma.data, "cluster", raising=False)
    monkeypatch.setitem(sys.modules, "datatrove.pipeline.base", None)
    with pytest.raises(ResourceError, match=r"needs datatrove: pip install 'stemma-lm\[cluster\]'"):
        from stemma.data import cluster as again  # noqa: F401


# ---------------------------------------------------------------- streams of the datasets library


def test_a_dataset_in_a_folder_is_streamed_by_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`hf://` with the library itself, offline: a repository's folder of Parquet files, found by its relative name."""
    pytest.importorskip("datasets")
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    home = tmp_path / "org" / "name"
    home.mkdir(parents=True)
    rows = [f"text {i}. With a second sentence." for i in range(2500)]
    for i, part in enumerate(("train-00000", "train-00001")):
        pq.write_table(
            pa.table({"text": rows[i::2], "n": list(range(len(rows[i::2])))}),
            home / f"{part}.parquet",
            row_group_size=100,
        )
    pq.write_table(pa.table({"text": ["held out"], "n": [0]}), home / "test-00000.parquet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    source = read("hf://org/name")
    got = list(source.documents())
    assert [d.text for d in got] == rows[0::2] + rows[1::2]
    assert [d.text for d in got] == rows[0::2] + rows[1::2] and got[0].name == "org/name:1"
    assert [d.text for d in source.documents()] == [d.text for d in got]  # walked again
    assert [d.text for d in read("hf://org/name:test").documents()] == ["held out"]
    first = next(iter(read("hf://org/name").documents()))
    assert first.text == rows[0]
    assert "has a int in field 'n'" in said(DataError, list, read("hf://org/name#field=n").documents())
    assert "has no field 'body', but 'text', 'n'" in said(DataError, list, read("hf://org/name#field=body").documents())
    assert "cannot stream hf://org/name:nope" in said(ResourceError, list, read("hf://org/name:nope").documents())
    assert "cannot stream hf://org/missing" in said(ResourceError, list, read("hf://org/missing").documents())
    from letters import Letters
    from stemma.data import Store

    store = Store.build("hf://org/name", Letters(), tmp_path / "store")
    assert len(store) == 2500 and store.text(1250) == rows[1]


# ---------------------------------------------------------------- statistics


def test_statistics_of_a_text(tmp_path: Path) -> None:
    from letters import Letters

    texts = ["ab " * n for n in (1, 2, 4, 100)] + ["AB", "née"]
    told = survey.survey(sources.of(texts), Letters())
    assert told["documents"] == 6 and told["bytes"] == sum(len(t.encode()) for t in texts)
    assert told["characters"] == sum(map(len, texts)) and told["tokens"] == 2 * 107 + 2 + 3
    assert (told["duplicates"], told["duplicate_bytes"], told["languages"]) == (1, 2, None)
    assert told["lengths"]["bins"] == [
        [2, 4, 3],
        [4, 8, 1],
        [8, 16, 1],
        [16, 32, 0],
        [32, 64, 0],
        [64, 128, 0],
        [128, 256, 1],
    ]
    assert (told["lengths"]["least"], told["lengths"]["median"], told["lengths"]["most"]) == (2, 3, 200)
    lines = survey.histogram(told["lengths"]["bins"], 60)
    assert max(map(len, lines)) == 60 and lines[3].split() == ["16-32", "0"]
    assert [line.count("█") for line in lines][:2] == [lines[0].count("█"), lines[0].count("█") // 3]
    plain = survey.histogram([[1024, 2048, 1], [2048, 4096, 1000]], 40, blocks=False)
    assert plain[0] == "1K-2K      1  ." and plain[1].isascii() and len(plain[1]) == 40


def test_the_commands(tmp_path: Path) -> None:
    pytest.importorskip("datasketch")
    folder = corpus(tmp_path / "in")
    run = CliRunner()
    shown = run.invoke(root, ["data", "stats", str(folder)], catch_exceptions=False).output
    double = survey.survey(str(folder))["duplicates"]
    assert f"duplicates   {double:>15}  " in shown and double >= 20 and max(map(len, shown.splitlines())) <= 80
    told = json.loads(run.invoke(root, ["data", "stats", str(folder), "--json"]).output.partition("note:")[0])
    assert told["documents"] == 117
    out = str(tmp_path / "out")
    shown = run.invoke(
        root, ["data", "clean", str(folder), "--out", out, "--steps", "dedup,gopher"], catch_exceptions=False
    ).output
    assert shown.splitlines()[0].startswith(f"exact removed {double} of 117 documents (")
    advice = [line for line in shown.splitlines() if "to keep them" in line]
    assert any(line.startswith("  min_words=50 removed ") for line in advice)
    assert len(shown.splitlines()) == 3 * 4 + len(advice) + 1
    assert shown.splitlines()[-1].endswith(f"documents: {out}/text")
    wrong = run.invoke(root, ["data", "clean", str(folder), "--out", str(tmp_path / "b"), "--tasks", "2"])
    assert isinstance(wrong.exception, UsageError)
    many = run.invoke(
        root, ["data", "clean", str(folder), "--out", str(tmp_path / "c"), "--executor", "slurm", "--option", "time"]
    )
    assert "is not KEY=VALUE" in str(many.exception)
    assert "MB in" in run.invoke(root, ["data", "cache"], catch_exceptions=False).output
