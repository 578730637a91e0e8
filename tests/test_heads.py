"""Tuning heads: classes, numbers, tags, spans and choices, from rows to predictions."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf

import stemma
from stemma.cli import main
from stemma.data import Store
from stemma.declare.family import Text
from stemma.declare.tasks import ClassifyTask, HeadTask, Labels, RegressTask
from stemma.errors import DataError, UsageError
from stemma.objectives import objective
from stemma.objectives.labels import RunLabels
from stemma.objectives.setting import Setting
from stemma.runs.metrics import read_metrics
from stemma.tasks import columns, metrics
from stemma.tasks.base import reader
from stemma.tasks.encoder import TaskEncoder, rows
from stemma.text import Specials, Tokenizer
from stemma.train import verify_resume
from stemma.train.evaluation import evaluate
from stemma.tuning import tune
from stemma.tuning.plans import resolve

GOOD, BAD = ["good", "great", "lovely", "fine"], ["bad", "poor", "awful", "dull"]
FILMS = [
    {"sentence": f"the film {i} is {random.Random(i).choice(GOOD if i % 2 else BAD)}", "label": ["neg", "pos"][i % 2]}
    for i in range(120)
]
PAIRS = [
    {"premise": f"film {i} is {GOOD[i % 4]}", "hypothesis": f"it is {(GOOD if i % 3 else BAD)[i % 4]}", "label": i % 3}
    for i in range(60)
]
TEXTS = [row["sentence"] for row in FILMS] + [f"{row['premise']} {row['hypothesis']}" for row in PAIRS]
ROW = 32
BERT: dict[str, Any] = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32)
OFF = dict(attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return Tokenizer.train(
        "wordpiece", TEXTS, 200, Specials(pad="[PAD]", unk="[UNK]", cls="[CLS]", sep="[SEP]", mask="[MASK]")
    )


@pytest.fixture(scope="module")
def marked() -> Tokenizer:
    """As RoBERTa's and T5's: ends stand around a text."""
    names = Specials(bos="<s>", eos="</s>", pad="<pad>", unk="<unk>", mask="<mask>", cls="<s>", sep="</s>")
    return Tokenizer.train("bpe", TEXTS, 300, names)


@pytest.fixture(scope="module")
def bare() -> Tokenizer:
    return Tokenizer.train("bpe", TEXTS, 300, Specials(bos="<s>", eos="<s>"))


@pytest.fixture(scope="module")
def pieces() -> Tokenizer:
    return Tokenizer.train("unigram", TEXTS, 300, Specials(eos="</s>", pad="<pad>", unk="<unk>"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory, words: Tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    hf.BertForMaskedLM(hf.BertConfig(**BERT, vocab_size=words.vocab_size, max_position_embeddings=64)).save_pretrained(
        folder
    )
    words.save(folder)
    return folder


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory, bare: Tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("gpt")
    torch.manual_seed(0)
    config = hf.GPT2Config(n_embd=24, n_layer=2, n_head=4, n_positions=64, vocab_size=bare.vocab_size, **OFF)
    hf.GPT2LMHeadModel(config).save_pretrained(folder)
    bare.save(folder)
    return folder


def written(path: Path, found: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in found), "utf-8")
    return str(path)


def goal_of(task: HeadTask, tokenizer: Tokenizer, structure: str = "encoder", **more: Any) -> RunLabels:
    setting = Setting(tokenizer, Text("bpe"), ROW, 1, structure=structure)
    made = objective(Labels(task=task, **more), setting)
    assert isinstance(made, RunLabels)
    return made


def batch_of(tmp_path: Path, goal: RunLabels, found: list[Any], count: int = 6) -> dict[str, Any]:
    """The first batch of rows, by way of a store."""
    encoder = TaskEncoder(goal.spec.task, goal.tokenizer, ROW, goal.setting.structure)
    store = Store.build(rows(written(tmp_path / "rows.jsonl", found), encoder), encoder, tmp_path / "store")
    return goal.example_batch(store, count)


def jittered(model: torch.nn.Module) -> Any:
    """A model whose every parameter counts."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model.eval()


def reference(kind: str, tokenizer: Tokenizer) -> Any:
    """The class of transformers for three labels."""
    size, pad = tokenizer.vocab_size, tokenizer.pad_id
    match kind:
        case "bert":
            return hf.BertForSequenceClassification(hf.BertConfig(**BERT, vocab_size=size, num_labels=3))
        case "roberta":
            config = hf.RobertaConfig(**BERT, vocab_size=size, num_labels=3, pad_token_id=pad, type_vocab_size=1)
            return hf.RobertaForSequenceClassification(config)
        case "gpt":
            config = hf.GPT2Config(n_embd=24, n_layer=2, n_head=4, vocab_size=size, num_labels=3, pad_token_id=0, **OFF)
            return hf.GPT2ForSequenceClassification(config)
    sizes = dict(d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=3, eos_token_id=tokenizer.eos_id, num_labels=3)
    return hf.T5ForSequenceClassification(
        hf.T5Config(**sizes, decoder_start_token_id=pad, pad_token_id=pad, vocab_size=size)
    )


CLASSES = {"bert": "words", "roberta": "marked", "gpt": "bare", "t5": "pieces"}


@pytest.mark.parametrize("kind", CLASSES)
def test_classes_of_texts_and_pairs_equal_transformers(
    tmp_path: Path, request: pytest.FixtureRequest, kind: str
) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(CLASSES[kind])
    theirs = jittered(reference(kind, tokenizer))
    theirs.save_pretrained(tmp_path / "model")
    tokenizer.save(tmp_path / "model")
    ours = stemma.load(tmp_path / "model")
    task = ClassifyTask("premise", "hypothesis", "label", ("0", "1", "2"))
    goal = goal_of(task, tokenizer, ours.arch.structure)
    batch = batch_of(tmp_path, goal, PAIRS)
    given = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    if kind == "bert":
        given["token_type_ids"] = batch["token_type_ids"]
        assert batch["token_type_ids"].max() == 1
    if kind == "gpt":  # it finds the last token by the id of padding
        given["input_ids"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, 0)
        assert not (batch["input_ids"][batch["attention_mask"] == 1] == 0).any()
    with torch.no_grad():
        want, got = theirs(**given), goal.run(ours, batch)
        loss = goal.loss(ours, batch)
    assert torch.allclose(goal.scores(ours, got), want.logits, atol=1e-5)
    assert loss.total().item() == pytest.approx(want.loss.item(), abs=1e-5)


def test_a_run_learns_labels_and_keeps_them(tmp_path: Path, bert: Path) -> None:
    """A second run from the first keeps the numbers of its labels, whatever rows it has."""
    more: dict[str, Any] = {
        "quiet": True,
        "overrides": {"recipe.lr": 5e-3, "train.val_fraction": 0.25, "train.save_every": 5},
    }
    run = tune(
        "classify",
        start=str(bert),
        data=written(tmp_path / "a.jsonl", FILMS),
        out=tmp_path / "a",
        budget="60 steps",
        **more,
    )
    assert run.summary["val"]["accuracy"] > 0.9 and run.summary["val"].keys() >= {"f1_macro", "mcc", "loss"}
    assert sum(map(sum, run.summary["answers"]["confusion"])) == run.summary["val"]["targets"]
    losses = [record["loss"] for record in read_metrics(tmp_path / "a")]
    assert losses[-1] < losses[0] / 2 and verify_resume(tmp_path / "a", 4)["steps"] == 4
    config = json.loads((tmp_path / "a/model/config.json").read_text())
    assert config["id2label"] == {"0": "neg", "1": "pos"} and config["problem_type"] == "single_label_classification"
    theirs = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "a/model").eval()
    ids = torch.tensor([run.tokenizer.encode("the film is great")])
    assert torch.allclose(theirs(ids).logits, run.model(ids).logits, atol=1e-5)
    only = [{**row, "label": "pos"} for row in FILMS[:30]]
    plan = resolve("classify", str(tmp_path / "a"), written(tmp_path / "b.jsonl", only))
    assert plan.objective.task.labels == ("neg", "pos") and plan.arch == run.model.arch
    with pytest.raises(UsageError, match=r"the label 'odd' is not among those of .*: neg, pos; .*--new-head"):
        resolve("classify", str(tmp_path / "a"), written(tmp_path / "c.jsonl", [*FILMS, {**FILMS[0], "label": "odd"}]))
    more["overrides"] |= {"train.new": ["task"]}
    new = tune(
        "classify",
        start=str(tmp_path / "a"),
        data=str(tmp_path / "c.jsonl"),
        out=tmp_path / "c",
        budget="1 steps",
        **more,
    )
    assert new.model.labels == ("neg", "odd", "pos")


def test_evaluation_has_no_dropout(tmp_path: Path, bert: Path) -> None:
    task = ClassifyTask("sentence", label="label", labels=("neg", "pos"))
    model = stemma.load(bert, task="classify", labels=2).train()
    assert model.arch.dropout.residual > 0 and model.arch.heads.task.dropout > 0
    goal = goal_of(task, model.tokenizer)
    encoder = TaskEncoder(task, model.tokenizer, ROW, "encoder")
    store = Store.build(rows(written(tmp_path / "rows.jsonl", FILMS), encoder), encoder, tmp_path / "store")
    found = [evaluate(model, goal, store) for _ in range(2)]
    assert found[0] == found[1] and model.training and "bits_per_target" not in found[0]
    assert evaluate(model.eval(), goal, store) == found[0]
    assert evaluate(model, goal, store, rows=5)["accuracy"] == found[0]["accuracy"]


def test_several_labels_numbers_and_weights(tmp_path: Path, bert: Path, words: Tokenizer) -> None:
    many = [{"text": row["sentence"], "labels": [row["label"]] * (i % 3 > 0) + ["film"]} for i, row in enumerate(FILMS)]
    plan = resolve("classify", str(bert), written(tmp_path / "many.jsonl", many))
    assert plan.objective.task.several and plan.objective.task.labels == ("film", "neg", "pos")
    goal = goal_of(plan.objective.task, words)
    batch = batch_of(tmp_path, goal, many)
    model = stemma.load(bert, task="classify", labels=3, problem="multi")
    want = torch.nn.functional.binary_cross_entropy_with_logits(goal.run(model, batch).logits, batch["labels"])
    assert goal.loss(model, batch).total().item() == pytest.approx(want.item(), abs=1e-6)
    assert set(batch["labels"].sum(1).tolist()) <= {1.0, 2.0}
    task = RegressTask("sentence", label="score")
    goal = goal_of(task, words)
    batch = batch_of(tmp_path, goal, [{**row, "score": i / 10} for i, row in enumerate(FILMS)])
    model = stemma.load(bert, task="classify", labels=1, problem="regression")
    want = (goal.run(model, batch).logits - batch["labels"]).square().mean()
    assert goal.loss(model, batch).total().item() == pytest.approx(want.item(), rel=1e-6)
    goal = goal_of(ClassifyTask("sentence", label="label", labels=("neg", "pos")), words, weights=(3.0, 0.5))
    batch = batch_of(tmp_path, goal, FILMS)
    model = stemma.load(bert, task="classify", labels=2)
    each = torch.nn.functional.cross_entropy(goal.run(model, batch).logits, batch["labels"], reduction="none")
    want = (each * torch.tensor([3.0, 0.5])[batch["labels"]]).mean()
    assert goal.loss(model, batch).total().item() == pytest.approx(want.item(), rel=1e-5)


def test_gpt_reads_delimiters_and_learns_the_text_too(tmp_path: Path, gpt: Path) -> None:
    """Radford et al. 2018, sections 3.2 and 3.3: start, delimiter and extract tokens, and the language model's loss."""
    changes = {
        "objective.task.delimiters": "['<start>', '<between>', '<extract>']",
        "objective.lm": "0.5",
        "recipe.lr": 1e-3,
    }
    data = written(tmp_path / "pairs.jsonl", PAIRS)
    run = tune(
        "classify", start=str(gpt), data=data, out=tmp_path / "run", budget="3 steps", quiet=True, overrides=changes
    )
    assert run.plan.arch.heads.lm is not None and {"loss", "loss_token"} <= run.summary["val"].keys()
    goal = goal_of(run.plan.objective.task, run.tokenizer, "decoder", lm=0.5)
    batch = batch_of(tmp_path, goal, PAIRS)
    row = [
        i for i, real in zip(batch["input_ids"][0].tolist(), batch["attention_mask"][0].tolist(), strict=True) if real
    ]
    names = run.tokenizer.tokens([row[0], row[-1]])
    assert names == ["<start>", "<extract>"] and run.tokenizer.id("<between>") in row
    with torch.no_grad():
        out, loss = goal.run(run.model, batch), goal.loss(run.model, batch)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        said = out.logits.log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None]).squeeze(2)
        text = -(said * mask[:, 1:]).sum() / mask[:, 1:].sum()
        classes = torch.nn.functional.cross_entropy(out.task_logits, batch["labels"])
    assert loss.total().item() == pytest.approx((classes + 0.5 * text).item(), rel=1e-5)
    with pytest.raises(UsageError, match="three different tokens"):
        resolve("classify", str(gpt), data, overrides={"objective.task.delimiters": "['<a>', '<b>']"})


def test_adapters_and_a_new_head_learn_together(tmp_path: Path, bert: Path) -> None:
    data = written(tmp_path / "a.jsonl", FILMS)
    run = tune("classify", start=str(bert), data=data, out=tmp_path / "run", budget="2 steps", lora=2, quiet=True)
    learn = {name.split(".")[0] for name, p in run.model.named_parameters() if p.requires_grad}
    assert learn == {"encoder", "pooler", "task"}


BAD_ROWS: list[tuple[list[Any], type[Exception], str]] = [
    (
        [{"a": 1, "label": 0}, {"a": 2, "label": 1}],
        UsageError,
        r"which column holds the text\? Name it by --text: .*'a', 'label'",
    ),
    ([{"text": "a"}, {"text": "b"}], UsageError, r"which column holds the label\? Name it by --label"),
    ([{"text": "a", "label": 1}, {"text": "b", "label": 1}], DataError, "every row of .* has the label '1'"),
    (
        [{"text": "a", "label": None}],
        DataError,
        r"no row can be learnt from; of the first: its label \(column 'label'\) is empty",
    ),
    ([{"text": "a", "label": {"x": 1}}], DataError, "its label is .*, and a label is a name or a number"),
]


@pytest.mark.parametrize(("found", "kind", "why"), BAD_ROWS)
def test_rows_that_cannot_be_learnt_from_are_refused(
    tmp_path: Path, bert: Path, found: list[Any], kind: Any, why: str
) -> None:
    with pytest.raises(kind, match=why):
        resolve("classify", str(bert), written(tmp_path / "bad.jsonl", found))


def test_odd_rows_and_lone_labels_are_told(tmp_path: Path, bert: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = [{"sentence": "the film is", "label": "seldom"}, {"sentence": "", "label": "pos"}, {"sentence": "x"}]
    data = written(tmp_path / "a.jsonl", FILMS + odd)
    tune("classify", start=str(bert), data=data, out=tmp_path / "run", budget="1 steps")
    said = capsys.readouterr().err
    assert "columns: text = sentence, label = label" in said and "labels: neg 60, pos 61, seldom 1" in said
    assert "example: [CLS] the film 0 is" in said and "[SEP] -> neg" in said
    assert "1 row was passed over: its text (column 'sentence') is empty (a.jsonl:122)" in said
    assert "a.jsonl:123" in said and "note: the label 'seldom' is in rows that are" in said


def test_columns_are_found_by_their_names() -> None:
    for row, want in [
        ({"idx": 1, "sentence1": "a", "sentence2": "b", "label": 0}, ("sentence1", "sentence2", "label")),
        ({"premise": "a", "hypothesis": "b", "label": 0}, ("premise", "hypothesis", "label")),
        ({"Review": "a", "Category": "x"}, ("Review", "", "Category")),
        ({"words": "some text", "label": 1}, ("words", "", "label")),
    ]:
        found = columns.named(ClassifyTask(), [row])
        assert isinstance(found, ClassifyTask) and (found.text, found.pair, found.label) == want
    found = columns.named(ClassifyTask(text="b", label="c"), [{"a": "x", "b": "y", "c": "z", "label": 1}])
    assert isinstance(found, ClassifyTask) and (found.text, found.pair, found.label) == ("b", "", "c")
    with pytest.raises(UsageError, match=r"no row has a column 'sentense' for the text.*did you mean 'sentence'"):
        columns.named(ClassifyTask(text="sentense"), [{"sentence": "a", "label": 1}])


def test_metrics_are_those_of_the_libraries() -> None:
    from scipy import stats
    from sklearn import metrics as sk

    random = np.random.default_rng(0)
    truth, found = random.integers(3, size=50).tolist(), random.integers(3, size=50).tolist()
    ours = metrics.labels.single(truth, found)
    assert ours["accuracy"] == sk.accuracy_score(truth, found) and ours["mcc"] == sk.matthews_corrcoef(truth, found)
    assert ours["f1_macro"] == sk.f1_score(truth, found, average="macro")
    assert ours["f1_weighted"] == sk.f1_score(truth, found, average="weighted")
    a, b = random.random(50), random.random(50)
    numbers = metrics.numbers.measured(a.tolist(), b.tolist())
    assert numbers["pearson"] == pytest.approx(stats.pearsonr(a, b)[0]) and numbers["spearman"] == pytest.approx(
        stats.spearmanr(a, b)[0]
    )
    assert metrics.numbers.measured([1.0, 2.0], [3.0, 3.0])["pearson"] == 0.0
    low, high = metrics.bootstrap.intervals(lambda some: {"x": float(np.mean(a[some]))}, 50)["x"]
    assert low < a.mean() < high and high - low == pytest.approx(4 * a.std() / 50**0.5, rel=0.2)


def test_long_texts_lose_their_ends(words: Tokenizer) -> None:
    task = ClassifyTask("premise", "hypothesis", "label", ("0", "1"))
    read = reader(task, words, 16, "encoder")
    for first, second in (("good " * 40, "bad"), ("bad", "good " * 40), ("good " * 40, "bad " * 40)):
        ids, marks = read.marked((first, second))
        text = words.decode(ids)
        assert len(ids) == 16 and "good" in text and "bad" in text and ids[marks[1] - 1] == words.sep_id == ids[-1]


def test_a_model_without_that_head_is_refused(bert: Path, tmp_path: Path) -> None:
    data = written(tmp_path / "a.jsonl", FILMS)
    with pytest.raises(UsageError, match=r"objective\.weights has 3 numbers, and the task 2 labels: neg, pos"):
        resolve("classify", str(bert), data, overrides={"objective.weights": "1,2,3"})
    with pytest.raises(UsageError, match="regress has no setting 'several'"):
        resolve("regress", str(bert), data, settings={"several": "yes"})


# ---------------------------------------------------------------- predictions


@pytest.fixture(scope="module")
def critic(tmp_path_factory: pytest.TempPathFactory, bert: Path) -> Path:
    """A run that tells good films from bad ones."""
    folder = tmp_path_factory.mktemp("critic")
    changes = {"recipe.lr": 5e-3, "train.eval_every": 60}
    data = written(folder / "a.jsonl", FILMS)
    tune("classify", start=str(bert), data=data, out=folder / "run", budget="60 steps", quiet=True, overrides=changes)
    return folder / "run"


def test_predictions_keep_their_order(critic: Path, tmp_path: Path) -> None:
    texts = ["the film 7 is great", "the film 3 is awful and poor and bad and dull", "it is good"]
    found = stemma.predict(critic, texts)
    assert [one["label"] for one in found] == ["pos", "neg", "pos"]
    assert all(
        sum(one["scores"].values()) == pytest.approx(1, abs=1e-5) and list(one["scores"]) == ["neg", "pos"]
        for one in found
    )
    assert stemma.predict(critic, texts[::-1]) == found[::-1]
    rows_ = [{"review": text} for text in texts]
    assert stemma.predict(critic, rows_) == stemma.predict(critic, rows_, text="review") == found
    assert stemma.predict(critic, ["good", {"sentence": " "}])[1] == {"error": "its text (column 'sentence') is empty"}
    (plain := tmp_path / "plain").mkdir()  # as other tools write it
    for file in (critic / "model").iterdir():
        if file.name != "task.json":
            (plain / file.name).write_bytes(file.read_bytes())
    assert stemma.predict(plain, texts) == found


def test_a_model_without_a_task_predicts_nothing(bert: Path, critic: Path) -> None:
    with pytest.raises(UsageError, match=r"was tuned for no task: .*stemma tune"):
        stemma.predict(bert, ["x"])
    with pytest.raises(UsageError, match="classify has no column 'txt'"):
        stemma.predict(critic, ["x"], txt="a")


def test_an_adapter_with_its_head_predicts(tmp_path: Path, bert: Path) -> None:
    data = written(tmp_path / "a.jsonl", FILMS)
    changes = {"recipe.lr": 2e-2, "train.eval_every": 60}
    run = tune(
        "classify",
        start=str(bert),
        data=data,
        out=tmp_path / "run",
        budget="60 steps",
        lora=4,
        quiet=True,
        overrides=changes,
    )
    assert run.summary["val"]["accuracy"] > 0.8 and (tmp_path / "run/model/adapter_config.json").is_file()
    found = stemma.predict(tmp_path / "run", ["the film 1 is good", "the film 2 is bad"])
    run.model.eval()
    goal = goal_of(run.plan.objective.task, run.tokenizer)
    ids = [run.tokenizer.encode(text) for text in ("the film 1 is good", "the film 2 is bad")]
    want = torch.cat([run.model(torch.tensor([one])).logits for one in ids]).softmax(-1)
    assert [list(one["scores"].values()) for one in found] == [pytest.approx(row.tolist(), abs=1e-4) for row in want]
    assert goal.spec.task.labels == ("neg", "pos")


def test_predict_and_eval_on_the_command_line(critic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*args: str) -> tuple[str, str]:
        with pytest.raises(SystemExit) as stopped:
            main([*args])
        assert stopped.value.code == 0
        found = capsys.readouterr()
        return found.out, found.err

    out, _ = said("predict", str(critic), "the film is great", '{"sentence": "it is bad"}', "--json")
    assert [json.loads(line)["label"] for line in out.splitlines()] == ["pos", "neg"]
    data = written(
        tmp_path / "rows.jsonl",
        [{"sentence": "the film is dull"}, {"sentence": ""}, {"sentence": "the film 7 is great"}],
    )
    out, err = said("predict", str(critic), "--data", data)
    assert [line.split()[0] for line in out.splitlines()] == ["neg", "(not", "pos"] and "1 of 3 rows" in err
    judged = written(tmp_path / "judged.jsonl", [*FILMS[:40], {"sentence": "x", "label": "odd"}])
    out, err = said("eval", str(critic), "--data", judged, "--json")
    found = json.loads(out)
    want = [row["label"] for row in FILMS[:40]]
    got = [one["label"] for one in stemma.predict(critic, [row["sentence"] for row in FILMS[:40]])]
    assert (
        found["rows"] == 40 and found["metrics"]["accuracy"] == sum(a == b for a, b in zip(want, got, strict=True)) / 40
    )
    low, high = found["intervals"]["f1_macro"]
    assert (
        low <= found["metrics"]["f1_macro"] <= high
        and "its label 'odd' is not among the labels neg, pos (judged.jsonl:41)" in err
    )
    out, _ = said("eval", str(critic), "--data", judged)
    assert "accuracy" in out and "40 rows" in out


def test_a_report_has_the_metrics_the_confusion_and_the_worst(critic: Path, tmp_path: Path) -> None:
    from stemma import report

    page = report.write([critic], tmp_path / "r.html").read_text("utf-8")
    summary = json.loads((critic / "summary.json").read_text())
    assert f"{summary['val']['accuracy']:.3f} <small>accuracy on held-out rows</small>" in page
    assert "Confusion" in page and "Worst predictions" in page and "whose metrics are above" in page
    assert page.count('<th scope="row">neg</th>') == page.count('<th scope="row">pos</th>') == 1
    assert all(one["text"] in page for one in summary["answers"]["worst"])
    (odd := tmp_path / "odd").mkdir()
    (odd / "run.json").write_bytes((critic / "run.json").read_bytes())
    for answers in ({"labels": 3, "confusion": [[1]], "worst": [1]}, {"labels": ["a"], "confusion": [["x"]]}, [], 3):
        (odd / "summary.json").write_text(json.dumps({"val": {"accuracy": 0.5}, "answers": answers}))
        assert "0.500" in report.write([odd], tmp_path / "odd.html").read_text("utf-8")
