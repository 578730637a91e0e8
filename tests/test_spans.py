"""Tags, spans and choices: rows, batches and predictions, as transformers and the published scripts have them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

import stemma
from stemma.data import Store
from stemma.declare.family import Text
from stemma.declare.tasks import AnswerTask, ChooseTask, HeadTask, Labels, TagTask
from stemma.errors import DataError
from stemma.objectives import objective
from stemma.objectives.labels import RunLabels
from stemma.objectives.setting import Setting
from stemma.tasks import columns, metrics
from stemma.tasks.base import reader
from stemma.tasks.encoder import TaskEncoder, rows
from stemma.tasks.spans import WINDOW, AnswerReader
from stemma.tasks.tags import TagReader, spans_of
from stemma.text import Specials, Tokenizer
from stemma.tuning import tune

NAMES = ["anna", "berta", "carl", "dora"]
TOWNS = ["york", "lima", "oslo"]
TAGGED = [
    {"tokens": [*((NAMES * 2)[i % 4 : i % 4 + 1 + i % 2]), "went", "to", TOWNS[i % 3]],
     "tags": ["B-PER", *["I-PER"] * (i % 2), "O", "O", "B-LOC"]}
    for i in range(60)
]  # fmt: skip
FACTS = [f"{name} lives in {TOWNS[i % 3]} ." for i, name in enumerate(NAMES)]
CONTEXT = " ".join(FACTS)
ASKED: list[dict[str, Any]] = [
    {"question": f"where does {name} live", "context": CONTEXT,
     "answers": {"text": [TOWNS[i % 3]], "answer_start": [CONTEXT.index(name) + len(f"{name} lives in ")]}}
    for i, name in enumerate(NAMES)
] + [{"question": "where does ezra live", "context": CONTEXT, "answers": {"text": [], "answer_start": []}}]  # fmt: skip
CHOICES = [
    {"question": f"{name} went", "choices": ["to oslo", "from lima far away", "in"][: 2 + i % 2], "label": i % 2}
    for i, name in enumerate(NAMES * 4)
]
TEXTS = [" ".join(row["tokens"]) for row in TAGGED] + [CONTEXT] + [row["question"] for row in [*ASKED, *CHOICES]]
BERT: dict[str, Any] = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32)
ROW = 64


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return Tokenizer.train(
        "wordpiece", TEXTS, 90, Specials(pad="[PAD]", unk="[UNK]", cls="[CLS]", sep="[SEP]", mask="[MASK]")
    )


@pytest.fixture(scope="module")
def bytes_() -> Tokenizer:
    return Tokenizer.train("bpe", TEXTS, 290, Specials(bos="<s>", eos="<s>"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory, words: Tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    hf.BertModel(hf.BertConfig(**BERT, vocab_size=words.vocab_size, max_position_embeddings=ROW)).save_pretrained(
        folder
    )
    words.save(folder)
    return folder


def goal_of(task: HeadTask, tokenizer: Tokenizer, context: int = ROW, structure: str = "encoder") -> RunLabels:
    made = objective(Labels(task=task), Setting(tokenizer, Text("bpe"), context, 1, structure=structure))
    assert isinstance(made, RunLabels)
    return made


def written(path: Path, found: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in found), "utf-8")
    return str(path)


def store_of(tmp_path: Path, goal: RunLabels, found: list[Any]) -> Store:
    encoder = TaskEncoder(goal.spec.task, goal.tokenizer, goal.context, goal.setting.structure)
    return Store.build(rows(written(tmp_path / "rows.jsonl", found), encoder), encoder, tmp_path / "store")


TAG = TagTask("tokens", "tags", ("B-LOC", "B-PER", "I-PER", "O"))
ANSWER = AnswerTask("question", "context", "answers", 8)
CHOOSE = ChooseTask("question", ("choices",), "label")
CASES: list[tuple[HeadTask, type[Any], list[Any]]] = [
    (TAG, hf.BertForTokenClassification, TAGGED),
    (ANSWER, hf.BertForQuestionAnswering, ASKED),
    (CHOOSE, hf.BertForMultipleChoice, CHOICES[1::2]),
]


@pytest.mark.parametrize(("task", "kind", "found"), CASES, ids=lambda x: getattr(x, "word", ""))
def test_heads_equal_transformers(
    tmp_path: Path, words: Tokenizer, task: HeadTask, kind: Any, found: list[Any]
) -> None:
    more = {"num_labels": 4} if task is TAG else {}
    torch.manual_seed(1)
    theirs = kind(hf.BertConfig(**BERT, vocab_size=words.vocab_size, **more)).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(0.1 * torch.randn_like(p))
    theirs.save_pretrained(tmp_path / "model")
    words.save(tmp_path / "model")
    ours, goal = stemma.load(tmp_path / "model"), goal_of(task, words)
    batch = goal.example_batch(store_of(tmp_path, goal, found), 5)
    given = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    if task is ANSWER:
        given |= {"start_positions": batch["labels"][:, 0], "end_positions": batch["labels"][:, 1]}
    else:
        given["labels"] = batch["labels"]
    if task is CHOOSE:
        given |= {name: x.view(5, -1, x.shape[1]) for name, x in given.items() if x.ndim == 2}
    with torch.no_grad():
        want, out, loss = theirs(**given), goal.run(ours, batch), goal.loss(ours, batch)
    scores = goal.scores(ours, out)
    logits = torch.stack([want.start_logits, want.end_logits], -1) if task is ANSWER else want.logits
    assert torch.allclose(scores, logits, atol=1e-5)
    assert loss.total().item() == pytest.approx(want.loss.item(), abs=1e-5)


@pytest.mark.parametrize("name", ["words", "bytes_"])
def test_the_first_token_of_a_word_learns(request: pytest.FixtureRequest, name: str) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(name)
    read = reader(TAG, tokenizer, ROW, "encoder")
    assert isinstance(read, TagReader)
    for row in TAGGED[:8]:
        ids, marks = read.marked(read.asked(row))
        labels = read.labels(row, ids, marks)
        learnt = [i for i in range(len(ids)) if labels[i] != -100]
        assert [TAG.labels[labels[i]] for i in learnt] == row["tags"]
        for place, word in zip(learnt, row["tokens"], strict=True):
            assert (
                word.startswith(tokenizer.decode([ids[place]]).strip())
                and len(tokenizer.decode([ids[place]]).strip()) > 0
            )
    short = reader(TAG, tokenizer, 8, "encoder")
    ids, marks = short.marked(["anna"] * 30)
    assert len(ids) == 8 and len(read.places(ids, marks)) <= 8
    for row, why in [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "it has 2 words and 1 tags"),
        ({"tokens": ["a"], "tags": ["B-X"]}, "its tag 'B-X' is not among the tags"),
        ({"tokens": [1], "tags": ["O"]}, "and not a list of words"),
    ]:
        with pytest.raises(DataError, match=why):
            read.read(row)


def test_spans_are_those_of_seqeval() -> None:
    from seqeval.metrics import f1_score, precision_score
    from seqeval.metrics.sequence_labeling import get_entities

    words, tags = ["a", "b", "c", "d", "e", "f"], ["B-X", "I-X", "I-Y", "O", "I-X", "B-X"]
    found = spans_of(words, tags)
    assert [(s["label"], s["text"]) for s in found] == [("X", "a b"), ("Y", "c"), ("X", "e"), ("X", "f")]
    assert [(s["start"], s["end"]) for s in found] == [(0, 3), (4, 5), (8, 9), (10, 11)]
    assert [(kind, " ".join(words[a : b + 1])) for kind, a, b in get_entities(tags)] == [
        (s["label"], s["text"]) for s in found
    ]
    other = [["B-X", "O", "I-Y", "O", "I-X", "O"]]
    ours = metrics.tags.measured([tags], other)
    assert ours["f1"] == f1_score([tags], other) and ours["precision"] == precision_score([tags], other)


def test_answers_are_measured_as_by_the_published_script() -> None:
    """Words without case, punctuation and articles; 0.8 is 2 * 2 shared words of 3 and 2."""
    for truth, found, exact, f1 in [
        ("The cat.", "cat", 1.0, 1.0),
        ("a big dog", "the dog", 0.0, 2 / 3),
        ("in the old York", "Old York!", 0.0, 0.8),
        ("", "", 1.0, 1.0),
        ("york", "", 0.0, 0.0),
        ("", "york", 0.0, 0.0),
        ("x y", "z", 0.0, 0.0),
    ]:
        right = [truth] if truth else []
        assert metrics.spans.measured([right], [found]) == {"exact": exact, "f1": pytest.approx(f1)}
    assert metrics.spans.measured([["x", "big dog"], ["c b"]], ["Dog", "b c"]) == {
        "exact": 0.0,
        "f1": pytest.approx(5 / 6),
    }


def test_long_contexts_are_read_in_windows(tmp_path: Path, words: Tokenizer) -> None:
    """Every token is read, windows overlap, and one that does not hold the answer learns that there is none."""
    read = reader(ANSWER, words, 24, "encoder")
    assert isinstance(read, AnswerReader)
    row = ASKED[0]
    held = read.pieces(row)
    windows = [piece[WINDOW] for piece in held]
    assert len(held) > 1 and windows[0][0] == 0 and windows[-1][1] == len(read.spans(row))
    assert all(b[0] < a[1] and b[0] > a[0] for a, b in itertools.pairwise(windows))
    told = 0
    for piece in held:
        ids, marks = read.marked(read.asked(piece))
        a, b = read.labels(piece, ids, marks)
        assert len(ids) <= 24
        if (a, b) != (0, 0):
            told += 1
            assert words.decode(ids[a : b + 1]) == row["answers"]["text"][0]
    assert 0 < told < len(held)
    goal = goal_of(ANSWER, words, 24)
    store = store_of(tmp_path, goal, ASKED)
    assert len(store) > len(ASKED)
    train, rest = store.split(0.4, 1)
    sides = [{json.loads(view.text(i))["_row"] for i in range(len(view))} for view in (train, rest)]
    assert not sides[0] & sides[1]
    model = stemma.build("bert-tiny", task="answer", layers=1, d_model=24, heads=2, d_ff=32, vocab=words.vocab_size)
    found = goal.loss(model, goal.example_batch(store, len(store)))
    rows_, answers = goal.predictions(store, found.answers)
    assert len(rows_) == len(answers) == len(ASKED) and all("text" in one for one in answers)


def test_answers_that_do_not_stand_there_are_refused(words: Tokenizer) -> None:
    read = reader(ANSWER, words, ROW, "encoder")
    assert isinstance(read, AnswerReader)
    with pytest.raises(DataError, match="its answer 'york' does not stand at 3 of its context"):
        read.read({**ASKED[0], "answers": {"text": ["york"], "answer_start": [3]}})
    assert read.right({**ASKED[0], "answers": "york"})[0][0] == "york"
    assert read.right({**ASKED[0], "answers": [{"text": "anna", "answer_start": 0}]}) == [("anna", 0)]
    assert read.right({**ASKED[0], "answers": []}) == []


def test_choices_of_several_numbers_in_a_batch(tmp_path: Path, words: Tokenizer) -> None:
    """A row with fewer candidates has the loss that it has alone."""
    goal = goal_of(CHOOSE, words)
    model = stemma.build("bert-tiny", task="choose", layers=1, d_model=24, heads=2, d_ff=32, vocab=words.vocab_size)
    store = store_of(tmp_path, goal, CHOICES)
    examples = [e for e, _ in goal.examples(store, once=True)]
    assert {len(goal.texts(e)) for e in examples} == {2, 3}
    each = [goal.loss(model, goal.collate([e])).total().item() for e in examples]
    whole = goal.loss(model, goal.collate(examples))
    assert whole.total().item() == pytest.approx(sum(each) / len(each), rel=1e-5)
    assert [len(scores) for _, scores in whole.answers] == [len(goal.texts(e)) for e in examples]
    columns_ = {"ctx": "x", "ending0": "a", "ending1": "b", "label": 1}
    found = columns.named(ChooseTask(), [columns_])
    assert isinstance(found, ChooseTask) and found.choices == ("ending0", "ending1") and found.text == "ctx"
    read = reader(found, words, ROW, "encoder")
    assert read.target(columns_) == 1 and read.candidates(columns_) == ["a", "b"]  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="its label is 2, and neither a number below 2"):
        read.read({**columns_, "label": 2})


CHANGES = {"recipe.lr": 5e-3, "train.eval_every": 100, "train.val_fraction": 0.3}


def test_a_run_learns_tags_and_predicts_spans(tmp_path: Path, bert: Path) -> None:
    data = written(tmp_path / "a.jsonl", TAGGED)
    run = tune(
        "tag", start=str(bert), data=data, out=tmp_path / "run", budget="60 steps", quiet=True, overrides=CHANGES
    )
    assert run.summary["val"]["f1"] > 0.9 and run.summary["val"].keys() >= {"precision", "recall", "accuracy"}
    found = stemma.predict(tmp_path / "run", ["dora went to lima", {"tokens": ["anna", "berta", "went", "to", "oslo"]}])
    assert [(s["label"], s["text"]) for s in found[0]["spans"]] == [("PER", "dora"), ("LOC", "lima")]
    assert found[0]["spans"][1]["start"] == len("dora went to ")
    assert [(s["label"], s["text"]) for s in found[1]["spans"]] == [("PER", "anna berta"), ("LOC", "oslo")]


@pytest.mark.parametrize(
    ("what", "found", "metric"), [("answer", ASKED * 8, "exact"), ("choose", CHOICES * 4, "accuracy")]
)
def test_runs_of_spans_and_choices(tmp_path: Path, bert: Path, what: str, found: list[Any], metric: str) -> None:
    data = written(tmp_path / "a.jsonl", [{**row, "id": i} for i, row in enumerate(found)])
    run = tune(what, start=str(bert), data=data, out=tmp_path / "run", budget="2 steps", quiet=True, overrides=CHANGES)
    assert 0 <= run.summary["val"][metric] <= 1 and run.summary["answers"]["worst"]
    theirs: Any = hf.AutoModelForQuestionAnswering if what == "answer" else hf.AutoModelForMultipleChoice
    theirs.from_pretrained(tmp_path / "run/model")
    said = stemma.predict(
        tmp_path / "run", [{k: v for k, v in row.items() if k not in ("answers", "label")} for row in found[:5]]
    )
    assert len(said) == 5 and all("text" in one for one in said)
