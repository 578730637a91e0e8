"""FLAN 2021 and the Flan collection: the published tables, rates, forms, and what goes wrong where they are made anew."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from stemma import samples
from stemma.cli import root
from stemma.errors import DataError, UsageError
from stemma.mixtures import declared, forms, stand_in
from stemma.mixtures.forms import FEW, ZERO, ZERO_OPEN, Form
from stemma.mixtures.making import How, Rows, estimated
from stemma.mixtures.published import CLUSTERS, MIXTURES, left_out, mixture
from stemma.mixtures.rates import Mixture, Part, rates
from stemma.mixtures.shapes import SHAPES
from stemma.mixtures.tasks import Task, Template, held
from stemma.samples import flan


def made(name: str, count: int, cluster: str = "letters", options: bool = True, **more: Any) -> Task:
    """A task of `count` examples, each of which is told by its own word."""
    rows = [{"word": f"w{i}x", "answer": ("red", "blue")[i % 2]} for i in range(count)]
    templates = (Template(f"{name} a {{word}}?"), Template(f"{name} b {{word}}\n{{options}}Now:"))
    turned = Template(f"{name} turned {{answer}}", "{word}", turned=True)
    chosen = ("red", "blue") if options else ()
    return Task(
        name, cluster, more.pop("collection", "flan"), (*templates, turned), partial(list, rows), options=chosen, **more
    )


# ---------------------------------------------------------------- the published tables


def test_clusters_of_2021() -> None:
    """Figure 3 of the paper: 62 sets in 12 clusters."""
    assert {name: len(sets) for name, sets in CLUSTERS.items()} == {
        "natural language inference": 7,
        "commonsense": 4,
        "sentiment": 4,
        "paraphrase": 4,
        "closed-book qa": 3,
        "struct to text": 4,
        "reading comprehension": 5,
        "reading comprehension with commonsense": 2,
        "coreference": 3,
        "miscellaneous": 7,
        "summarization": 11,
        "translation": 8,
    }
    names = [name for sets in CLUSTERS.values() for name in sets]
    assert len(names) == len({*names}) == 62


def table(name: str) -> dict[str, tuple[float | None, int, int | None]]:
    return {part.collection: (part.share, part.cap, part.tasks) for part in mixture(name).parts}


def test_tables_of_the_mixtures() -> None:
    assert table("flan2021") == {"flan": (None, 30_000, 62)} and mixture("flan2021").maximum == 3000
    assert (mixture("flan2021").inputs, mixture("flan2021").targets) == (1024, 256)
    caps = {"flan": (30_000, 80), "t0": (20_000, 193), "niv2": (5_000, 1554), "cot": (100_000, 9)}
    assert sum(tasks for _, tasks in caps.values()) == 1836
    for name, shares in (("a", (0.52, 0.15, 0.30, 0.03)), ("b", (0.46, 0.279, 0.242, 0.018))):
        found = table(f"flan2022-{name}")
        assert found == {key: (s, *caps[key]) for key, s in zip(caps, shares, strict=True)}
    release = {"flan": (0.40, 30_000), "t0": (0.32, 20_000), "niv2": (0.20, 5_000), "cot": (0.05, 100_000)}
    release["dialog"] = (0.03, 200_000)
    assert {key: one[:2] for key, one in table("flan2022").items()} == release
    assert sum(share for share, _ in release.values()) == pytest.approx(1)
    assert (mixture("flan2022").inputs, mixture("flan2022").targets, mixture("flan2022").tokens) == (2048, 512, 1920)


def test_forms_of_the_release() -> None:
    """A quarter each; chains of thought, dialogues and Natural Instructions have none without options; inverted rows
    have three tenths of the rate of the others."""
    for part in mixture("flan2022").parts:
        plain = {form.name(True): share for form, share in part.shares(False).items()}
        if part.collection in ("flan", "t0"):
            assert plain == dict.fromkeys(("zero-shot, options", "few-shot, options", "zero-shot", "few-shot"), 0.25)
        else:
            assert plain == {"zero-shot, options": 0.5, "few-shot, options": 0.5}
        found = part.shares(True)
        assert sum(found.values()) == pytest.approx(1)
        inverted = sum(share for form, share in found.items() if form.inverted)
        wanted = 0.3 / 1.3 if part.collection in ("cot", "dialog") else 0.0
        assert inverted == pytest.approx(wanted)


def test_tulu_2_draws_few_shot_rows_alone() -> None:
    """resample_flan_v2.py, portions_v2."""
    found = {
        (part.collection, form.name(True)): round(part.share * share, 6)
        for part in mixture("flan2022-tulu2").parts
        if part.share is not None
        for form, share in part.shares(False).items()
    }
    assert found == {
        ("flan", "few-shot, options"): 0.2,
        ("flan", "few-shot"): 0.2,
        ("t0", "few-shot, options"): 0.16,
        ("t0", "few-shot"): 0.16,
        ("niv2", "few-shot, options"): 0.23,
        ("cot", "few-shot, options"): 0.05,
    }


def test_ten_templates_a_shape_of_which_three_are_turned_around_at_most() -> None:
    for name, shape in SHAPES.items():
        assert len(shape.templates) == 10 and sum(t.turned for t in shape.templates) <= 3, name
        assert len({*shape.templates}) == 10
        for one in shape.templates:
            assert one.turned or "{answer}" not in one.prompt, (name, one)
    too_many = tuple(Template(f"{i}", turned=True) for i in range(4))
    with pytest.raises(UsageError, match="4 templates that are turned around; at most 3"):
        Task("x", "y", "flan", too_many, list)


# ---------------------------------------------------------------- rates


def test_rates_of_2021() -> None:
    """Examples-proportional with a maximum of 3,000: 1,000, 3,000, 30,000 and 400,000 examples are drawn as 1:3:3:3."""
    sizes = {"a": 1_000, "b": 3_000, "c": 30_000, "d": 400_000}
    found = rates(mixture("flan2021"), {"flan": sizes})
    assert found == pytest.approx({"a": 0.1, "b": 0.3, "c": 0.3, "d": 0.3})


def test_caps_come_before_rates() -> None:
    """What a cap leaves is what a rate is of; a cap on rows that were mixed by their whole sizes would give the task of
    a million nearly all of the mixture."""
    sizes = {"flan": {"small": 10_000, "large": 1_000_000}, "cot": {"c": 500, "d": 1_500}, "niv2": {"n": 9_000}}
    found = rates(mixture("flan2022-b"), sizes)
    there = 0.46 + 0.242 + 0.018
    assert found == pytest.approx(
        {
            "small": 0.46 / there * 10 / 40,
            "large": 0.46 / there * 30 / 40,
            "n": 0.242 / there,
            "c": 0.018 / there * 0.25,
            "d": 0.018 / there * 0.75,
        }
    )
    with pytest.raises(UsageError, match="flan2021 has no tasks of the collection 'cot'; it has flan"):
        rates(mixture("flan2021"), {"cot": {"c": 3}})


def test_rows_are_drawn_at_the_rates() -> None:
    """Whatever the number of rows: each task and form within a row or two of its share."""
    both = Mixture(
        "both", "", (Part("flan", 0.75, 30, ((ZERO, 0.5), (FEW, 0.5))), Part("cot", 0.25, 9, ((ZERO, 1.0),), 0.3))
    )
    one = Template("i {answer}", "{word}", turned=True)
    tasks = [made("one", 10), made("two", 90), made("three", 5, collection="cot", inverted=(one,))]
    source = Rows(both, tasks)
    list(source.rows(2048))
    found = {key: n for (what, key), n in source.counts.items() if what == "task"}
    wanted = {"one": 0.75 * 10 / 40 * 2048, "two": 0.75 * 30 / 40 * 2048, "three": 0.25 * 2048}
    assert all(abs(found[name] - n) <= 3 for name, n in wanted.items()), found
    inverted = source.counts["form", "zero-shot, inverted"]
    assert abs(inverted - 0.25 * 0.3 / 1.3 * 2048) <= 2
    few = sum(n for (what, key), n in source.counts.items() if what == "form" and key.startswith("few"))
    assert abs(few - 0.75 * 0.5 * 2048) <= 4


def test_a_cap_leaves_any_of_the_examples() -> None:
    task = made("many", 400)
    some = [held(task, 100, seed) for seed in range(20)]
    assert all(one.rows == 400 and len(one.examples) == 100 for one in some)
    assert len({example.fields["word"] for one in some for example in one.examples}) > 390
    assert some[0] == held(task, 100, 0) and some[0].examples != some[1].examples
    assert held(task, 500, 0).examples == tuple(task.example(row) for row in task.rows())


# ---------------------------------------------------------------- forms


def test_options() -> None:
    task = made("t", 4)
    example = task.example({"word": "w", "answer": "red"})
    first, second, turned = task.templates
    assert forms.written(example, first, True) == ("t a w?\nOPTIONS:\n- red\n- blue", "red")
    assert forms.written(example, second, True) == ("t b w\nOPTIONS:\n- red\n- blue\nNow:", "red")
    assert forms.written(example, second, False) == ("t b w\nNow:", "red")
    assert forms.written(example, turned, True) == ("t turned red", "w")


def rows(task: Task, form: Form, many: int = 60, **how: Any) -> list[dict[str, Any]]:
    only = Mixture("only", "", (Part("flan", None, 1000, ((form, 1.0),)),))
    return list(Rows(only, [task], how=How(**how)).rows(many))


def test_no_options_leak_where_there_are_none() -> None:
    """Neither the list nor a word of it stands in a row without options, but for rows that give the answer."""
    for name, shape in SHAPES.items():
        fields = sorted({f for t in shape.templates for f in t.fields()} - {"answer"})
        row = {field: f"{field} no. {i}" for i, field in enumerate(fields)} | {"answer": "zq1"}
        task = Task(name, "c", "flan", shape.templates, partial(list, [row] * 3), options=("zq1", "zq2"))
        for one in rows(task, ZERO_OPEN):
            assert "OPTIONS" not in one["prompt"] and "zq2" not in one["prompt"], one
            assert one["form"] == "zero-shot" and ("zq1" in one["prompt"]) == ("zq1" not in one["completion"])
    shown = rows(made("t", 9), ZERO)
    assert {one["form"] for one in shown} == {"zero-shot, options", "zero-shot"}
    assert all(("OPTIONS:\n- red\n- blue" in one["prompt"]) == (one["form"] != "zero-shot") for one in shown)


def test_few_shot_prompts() -> None:
    """The delimiters of few_shot.py: nothing of the query's own answer, and no example that is the query."""
    for one in rows(made("t", 12), Form(True, False), shots=3):
        *shown, query = one["prompt"].split("\n\n\n")
        asked, answers = query.split("\n\n")
        assert answers == "A:" and asked.startswith("Q: t ") and 1 <= len(shown) <= 3
        pairs = [tuple(exemplar.split("\n\nA: ")) for exemplar in shown]
        assert all(len(pair) == 2 for pair in pairs) and len({asked, *(pair[0] for pair in pairs)}) == len(pairs) + 1
        kinds = {text.split(" ")[2] for text in (asked, *(pair[0] for pair in pairs))}
        assert len(kinds) == 1, "exemplars are written as the query is"


def test_examples_that_ask_the_same_are_none() -> None:
    """Two rows with one text are no examples for each other."""
    row = {"word": "same", "answer": "red"}
    task = Task("t", "c", "flan", (Template("about {word}"),), partial(list, [row] * 5))
    only = Mixture("only", "", (Part("flan", None, 1000, ((FEW, 1.0),)),))
    with pytest.raises(UsageError, match="leaves room for no example"):
        list(Rows(only, [task]).rows(3))


def test_prompts_are_pruned_to_the_limit() -> None:
    """As many examples as fit, in their order: with one more the limit is passed."""
    task, limit = made("t", 40), 30
    whole = rows(task, FEW, 100, shots=6, limit=10_000)
    cut = [one for one in rows(task, FEW, 100, shots=6, limit=limit) if one["form"].startswith("few")]
    assert cut and max(estimated(one["prompt"]) for one in cut) <= limit + 6  # each part is rounded up by itself

    def count(text: str) -> int:
        return len(text)

    for one in rows(task, FEW, 60, shots=6, limit=150, count=count):
        assert len(one["prompt"]) <= 150
    by_query = {one["prompt"].rsplit("\n\n\n", 1)[1]: one["prompt"] for one in whole}
    for one in rows(task, FEW, 60, shots=6, limit=150, count=count):
        query = one["prompt"].rsplit("\n\n\n", 1)[1]
        full = by_query.get(query)
        if full is None or not full.endswith(one["prompt"].split("\n\n\n", 1)[1]):
            continue
        kept, there = one["prompt"].count("\n\n\n"), full.count("\n\n\n")
        pieces = [piece + "\n\n\n" for piece in full.split("\n\n\n")[:-1]]
        assert kept == there or sum(map(len, pieces[: kept + 1])) + len(query) > 150
    source = Rows(Mixture("m", "", (Part("flan", None, 99, ((FEW, 0.5), (ZERO, 0.5))),)), [task], how=How(limit=8))
    assert len(list(source.rows(20))) == 20
    assert source.counts["left out", "few-shot rows without room for an example"] == 20


# ---------------------------------------------------------------- clusters that are held out


def test_held_out_clusters_and_their_like() -> None:
    there = [*CLUSTERS]
    assert left_out(["natural language inference"], there) == ("natural language inference", "paraphrase")
    assert left_out(["paraphrase"], there) == ("paraphrase", "natural language inference")
    assert left_out(["sentiment"], there) == ("sentiment",)
    with pytest.raises(UsageError, match="did you mean 'sentiment'"):
        left_out(["sentimnt"], there)


def test_nothing_that_is_evaluated_was_learnt() -> None:
    tasks = [
        made("rte", 20, "natural language inference"),
        made("mrpc", 20, "paraphrase"),
        made("sst2", 20, "sentiment"),
        made("copa", 20, "commonsense", options=False),
    ]
    source = Rows(mixture("flan2021"), tasks, ["natural language inference"])
    learnt = list(source.rows(200))
    assert {row["task"] for row in learnt} == {"sst2", "copa"} and source.dropped[1] == "paraphrase"
    evaluated = source.evaluated()
    assert {row["task"] for row in evaluated} == {"rte"} and len(evaluated) == 20 and source.open == []
    both = Rows(mixture("flan2021"), tasks, ["natural language inference", "commonsense"])
    assert both.evaluated() == evaluated and both.open == ["copa"]
    alone = Rows(mixture("flan2021"), tasks, ["commonsense"])
    assert {row["task"] for row in alone.evaluated()} == {"copa"} and alone.open == []
    assert all(row["options"] == ["red", "blue"] and row["completion"] in row["options"] for row in evaluated)
    assert all("turned" not in row["prompt"] and row["prompt"].count("OPTIONS:") == 1 for row in evaluated)
    with pytest.raises(UsageError, match="no task of flan2021 is left beside what is held out"):
        Rows(mixture("flan2021"), tasks[:2], ["paraphrase"])


def test_tasks_of_a_benchmark_are_left_out() -> None:
    tasks = [made("task1_mmmlu_law", 5, collection="niv2"), made("task2", 5, collection="niv2")]
    source = Rows(mixture("flan2022"), tasks)
    assert source.without == ["task1_mmmlu_law"] and [one.task.name for one in source.held] == ["task2"]


# ---------------------------------------------------------------- declarations and published files


def test_sets_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "rte.csv").write_text("s1,s2,label\nit rains,it is wet,0\nit snows,it is hot,1\n", "utf-8")
    (tmp_path / "my.jsonl").write_text('{"a": "x", "c": ["p", "q"], "is": "p"}\n{"a": "x"}\n', "utf-8")
    (tmp_path / "tasks.toml").write_text(
        """
        [rte]
        file = "rte.csv"
        shape = "entailment"
        columns = { premise = "s1", hypothesis = "s2", answer = "label" }
        answers = { 0 = "yes", 1 = "no" }
        options = ["yes", "no"]
        [mine]
        file = "my.jsonl"
        cluster = "letters"
        templates = [["What of {a}?"], ["{a}\\n{options}Say:", "{answer}!"]]
        turned = [["Make {answer}", "{a}"]]
        columns = { answer = "is" }
        options = "c"
        """,
        "utf-8",
    )
    rte, mine = declared.tasks([str(tmp_path / "tasks.toml")])
    assert (rte.cluster, rte.collection, len(rte.templates)) == ("natural language inference", "flan", 10)
    one, two = held(rte, 9, 1).examples
    assert (one.fields["answer"], two.fields["premise"], two.options) == ("yes", "it snows", ("yes", "no"))
    (example,) = (found := held(mine, 9, 1)).examples
    assert found.wrong == 1 and "row 2: it has no column 'is' for 'answer' (its columns: 'a')" in found.first_wrong
    assert forms.written(example, mine.templates[1], True) == ("x\nOPTIONS:\n- p\n- q\nSay:", "p!")
    assert forms.written(example, mine.templates[0], False) == ("What of x?", "p")


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"shape": "entailment"}, "names no file"),
        ({"file": "x", "shape": "entailmnt", "cluster": "c"}, "did you mean 'entailment'"),
        ({"file": "x", "cluster": "c"}, "needs a shape"),
        ({"file": "x", "clustr": "c"}, "no key 'clustr'"),
        ({"file": "x", "shape": "question"}, "names no cluster"),
        ({"file": "x", "shape": "question", "cluster": "c", "collection": "flam"}, "did you mean 'flan'"),
        ({"file": "x", "shape": "question", "cluster": 3}, "task t.cluster is 3, not text"),
        ({"file": "x", "cluster": "c", "templates": [["a", "b", "c"]]}, "a prompt and perhaps a completion"),
        ({"file": "x", "cluster": "c", "shape": "question", "options": [1]}, "texts or the name of a column"),
    ],
)
def test_declarations_that_are_none(tmp_path: Path, table: dict[str, Any], said: str) -> None:
    path = tmp_path / "tasks.json"
    path.write_text(json.dumps({"t": table}), "utf-8")
    with pytest.raises(UsageError, match=said):
        declared.tasks([str(path)])


def test_answers_that_are_no_option(tmp_path: Path) -> None:
    task = made("t", 3)
    with pytest.raises(DataError, match="none of the options \\(red, blue\\)"):
        task.example({"word": "x", "answer": "green"})
    wrong = Task("t", "c", "flan", task.templates, partial(list, [{"word": "x"}]))
    with pytest.raises(DataError, match="task t has no row that can be read \\(row 1: it has no column 'answer'"):
        held(wrong, 3, 1)


def test_chains_of_thought_as_published(tmp_path: Path) -> None:
    """Question, answer and rationale between tabs, line ends as two characters."""
    (tmp_path / "gsm8k_train.tsv").write_text(
        "How many?\\nSay.\t7\t3 + 4 = 7.\nAnd 2?\t2\tIt is 2.\nAnd 9?\t9\tSee.\n", "utf-8"
    )
    (task,) = declared.tasks([str(tmp_path)])
    assert (task.name, task.cluster, task.collection) == ("gsm8k", "arithmetic", "cot")
    source = Rows(mixture("flan2022"), [task])
    found = list(source.rows(300))
    direct = [row for row in found if "inverted" not in row["form"]]
    told = {"3 + 4 = 7.\nTherefore, the answer is 7.", "3 + 4 = 7. So the answer is 7."}
    assert {row["completion"] for row in direct if "How many" in row["prompt"].rsplit("Q: ", 1)[-1]} == told
    assert all("How many?\\n" not in row["prompt"] for row in found)
    turned = [row for row in found if "inverted" in row["form"]]
    assert len(turned) == pytest.approx(300 * 0.3 / 1.3, abs=2)
    assert "How many?\nSay." in {row["completion"] for row in turned}
    (tmp_path / "bad.tsv").write_text("one\ttwo\n", "utf-8")
    with pytest.raises(DataError, match=r"bad\.tsv:1 has 2 columns"):
        Rows(mixture("flan2022"), declared.tasks([str(tmp_path / "bad.tsv")]))


# ---------------------------------------------------------------- the stand-in


def test_stand_in() -> None:
    assert len(flan.TASKS) >= 24 and len(flan.CLUSTERS) >= 8
    for name in ("flan", "flan2022", "hard_coded", "tulu"):
        first = list(samples.rows(name))
        assert first == list(samples.rows(name)) and 50 <= len(first) <= 5000
    tasks = stand_in.tasks()
    assert {len(task.templates) for task in tasks if task.collection == "flan"} == {10}
    learnt = {(row["task"], row["prompt"]) for row in flan.rows()}
    tested = list(flan.rows(tests=True, each=20))
    assert len(tested) == 20 * len(flan.TASKS) and not learnt & {(row["task"], row["prompt"]) for row in tested}
    assert all(row["completion"] in row["options"] for row in tested if "options" in row)


CHECKED = {
    "ascending": lambda row: row["answer"].split() == sorted(row["items"].split(), key=int),
    "reverse": lambda row: row["answer"].split()[::-1] == row["words"].split(),
    "odd_one_out": lambda row: sum(flan.KIND[w] == flan.KIND[row["answer"]] for w in row["words"].split()) == 1,
    "in_list": lambda row: (row["word"] in row["words"].split()) == (row["answer"] == "yes"),
    "month_order": lambda row: (flan.MONTHS.index(row["a"]) < flan.MONTHS.index(row["b"])) == (row["answer"] == "yes"),
    "add": lambda row: flan.NUMBERS.index(row["a"]) + flan.NUMBERS.index(row["b"]) == int(row["answer"]),
    "entails": lambda row: (
        (flan.KIND[row["premise"].split()[-1]] == row["hypothesis"].split()[-1]) == (row["answer"] == "yes")
    ),
    "where_is": lambda row: (
        f"{row['about']} has" in row["passage"]
        and row["passage"].split(f"{row['about']} has")[1].split(".")[0].endswith(f"in the {row['answer']}")
    ),
    "count": lambda row: len(row["words"].split()) == int(row["answer"]),
}


def test_answers_of_the_stand_in_are_right() -> None:
    for name, right in CHECKED.items():
        some = flan.examples(name, 40)
        assert len(some) == 40 and all(right(row) for row in some), name  # type: ignore[no-untyped-call]
    answers = Counter(row["answer"] for name in ("is_kind", "entails", "in_list") for row in flan.examples(name))
    assert 0.4 < answers["yes"] / answers.total() < 0.6


# ---------------------------------------------------------------- the command


def run(*words: str) -> Any:
    return CliRunner().invoke(root, ["data", "mixture", *words])


def lines(path: Path) -> Sequence[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_the_command(tmp_path: Path) -> None:
    out, apart = tmp_path / "rows.jsonl", tmp_path / "apart.jsonl"
    words = ["flan2022", "--count", "300", "--out", str(out), "--hold-out", "entailment", "--limit", "300"]
    done = run(*words, "--evaluate", str(apart), "--json")
    assert done.exit_code == 0, done.output
    counts = json.loads(done.stdout)["counts"]
    found = lines(out)
    assert len(found) == 300 and counts["cluster"] == Counter(row["cluster"] for row in found)
    assert counts["form"] == Counter(row["form"] for row in found) and "entailment" not in counts["cluster"]
    assert {*found[0]} == {"prompt", "completion", "task", "cluster", "collection", "form"}
    assert counts["evaluated"]["rows"] == len(lines(apart)) == 300
    assert {row["cluster"] for row in lines(apart)} == {"entailment"}
    raw = out.read_bytes()
    run(*words)
    assert out.read_bytes() == raw
    run(*words, "--seed", "2")
    assert out.read_bytes() != raw


def test_the_command_refuses_in_one_sentence(tmp_path: Path) -> None:
    out = str(tmp_path / "rows.jsonl")
    for words, said in (
        (["flan2o21"], "did you mean 'flan2021'"),
        (["flan2021", "--from", str(tmp_path / "no.toml")], "there is no file or folder"),
        (["flan2021", "--hold-out", "entailmnt"], "did you mean 'entailment'"),
        (["flan2021", "--evaluate", "x.jsonl"], "name one with --hold-out"),
        (["tulu", "--count", "3"], "--count is for FLAN's mixtures"),
        (["tulu", "--from", "oasst=x"], "did you mean 'oasst1'"),
    ):
        done = run(*words, "--out", out)
        assert done.exit_code != 0 and said in str(done.exception), (words, done.exception)
    assert not Path(out).exists()
    assert set(MIXTURES) == {"flan2021", "flan2022-a", "flan2022-b", "flan2022", "flan2022-tulu2"}


def test_the_page_has_the_published_numbers() -> None:
    """Each part of a mixture, its share and its cap, as docs/flan.md prints them."""
    page = (Path(__file__).parent.parent / "docs" / "flan.md").read_text("utf-8")
    rows = {line.split("`")[1]: line.split("|")[2] for line in page.splitlines() if line.startswith("| `flan20")}
    assert rows.keys() == MIXTURES.keys()
    for name, told in rows.items():
        for part in mixture(name).parts:
            share = "" if part.share is None else f" {part.share:.1%}".replace(".0%", "%").replace("%", " %")
            assert f"{part.collection}{share}" in told and f"{part.cap:,}" in told, (name, part.collection)


def test_the_declaration_of_the_page(tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent / "docs" / "flan.md").read_text("utf-8")
    (tmp_path / "tasks.toml").write_text(page.split("```toml\n")[1].split("```")[0], "utf-8")
    (tmp_path / "rte").mkdir()
    row = {"sentence1": "It rains.", "sentence2": "it is wet", "label": 0}
    (tmp_path / "rte" / "train.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps({**row, 'label': 1})}\n", "utf-8")
    (tmp_path / "mine.csv").write_text("a,b,answer\nx,y,yes\nz,c,no\n", "utf-8")
    source = Rows(mixture("flan2021"), declared.tasks([str(tmp_path / "tasks.toml")]))
    assert {row["task"] for row in source.rows(8)} == {"rte", "mine"}
