"""`tune chat`, `tune write`, `tune complete` as users meet them: columns, sizes, first lines, what is shown at the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from stemma.data import Store, builtin, read
from stemma.declare.family import Text
from stemma.declare.recipes import Adafactor, AdamW
from stemma.declare.tasks import Answers, WriteTask
from stemma.errors import UsageError
from stemma.objectives import objective
from stemma.objectives.setting import Setting
from stemma.runs import folder
from stemma.tasks import columns
from stemma.tasks.encoder import TaskEncoder, first, rows
from stemma.tasks.metrics import texts
from stemma.tasks.texts import WriteReader
from stemma.text import Specials, Tokenizer
from stemma.train import resume
from stemma.tuning import sizes, tune
from stemma.tuning.decoding import Decoding
from stemma.tuning.plans import resolve
from stemma.tuning.predicting import measured, predict, tuned
from stemma.tuning.writing import Written

ROW = 96
SAYINGS = ["who wrote it", "homer wrote it long ago", "name a red fruit", "an apple is red", "wine dark"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train("bpe", SAYINGS * 3, 300, Specials(bos="<s>", eos="</s>", pad="<pad>", unk="<unk>"))


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    place = tmp_path_factory.mktemp("decoder")
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=48,
        vocab_size=tokenizer.vocab_size,
        max_position_embeddings=256,
    )
    hf.LlamaForCausalLM(config).save_pretrained(place)
    tokenizer.save(place)
    return place


def written(path: Path, found: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in found), "utf-8")
    return str(path)


PAIRS = [{"id": i, "source": f"name a red fruit {i}", "summary": f"an apple {i % 7}"} for i in range(40)]


def test_columns_are_found_by_their_names() -> None:
    found = columns.named(WriteTask(), PAIRS)
    assert (found.text, found.target) == ("source", "summary")  # type: ignore[attr-defined]
    given = columns.named(WriteTask(target="id"), PAIRS)
    assert (given.text, given.target) == ("source", "id")  # type: ignore[attr-defined]
    two = columns.named(WriteTask(), [{"en": "a", "de": "b"}])
    assert (two.text, two.target) == ("en", "de")  # type: ignore[attr-defined]
    one = columns.named(WriteTask(text="de"), [{"en": "a", "de": "b"}])
    assert (one.text, one.target) == ("de", "en")  # type: ignore[attr-defined]
    for task, row, why in [
        (WriteTask(text="sorce"), PAIRS[0], "no row has a column 'sorce' for --text .*did you mean 'source'"),
        (WriteTask(), {"a": "x", "b": "y", "c": "z"}, r"give --text and --target a COLUMN \(there are: a, b, c\)"),
        (WriteTask(text="source", target="source"), PAIRS[0], "--text and --target name one column, 'source'"),
    ]:
        with pytest.raises(UsageError, match=why):
            columns.named(task, [row])


def test_rows_are_as_long_as_the_data_need() -> None:
    few = sizes.Measured(rows=70, mean=60.0, longest=120, whole=True)
    assert sizes.fitting(few, 1024, False) == {
        "train.context": 240, "recipe.batch": 240, "train.val_fraction": 0.1,
    }  # fmt: skip
    long = sizes.Measured(rows=70, mean=60.0, longest=900, whole=True)
    assert sizes.fitting(long, 1024, False)["train.context"] == 904
    many = sizes.Measured(rows=2000, mean=200.0, longest=700, whole=False)  # longer ones may follow
    assert sizes.fitting(many, 1024, False) == {"train.context": 1024, "recipe.batch": 3 * 1024}
    assert sizes.fitting(few, 1024, True)["recipe.batch"] == 4 * 120  # an example is a row
    assert sizes.fitting(sizes.Measured(0, 0.0, 0, True), 1024, False) == {}


def test_what_is_set_is_not_chosen(tmp_path: Path, decoder: Path) -> None:
    data = written(tmp_path / "rows.jsonl", PAIRS)
    plan = resolve("write", str(decoder), data)
    assert plan.context < ROW and plan.recipe.batch == plan.context and plan.train.val_fraction == 0.1
    plan = resolve("write", str(decoder), data, overrides={"train.context": 100, "recipe.batch": 300})
    assert (plan.context, plan.recipe.batch) == (100, 300)


def test_tokens_are_those_of_examples(tmp_path: Path, tokenizer: Tokenizer, decoder: Path) -> None:
    """An epoch counts about as many as it has, not the padding."""
    task = WriteTask(text="source", target="summary")
    encoder = TaskEncoder(task, tokenizer, ROW, "decoder")
    store = Store.build(rows(written(tmp_path / "rows.jsonl", PAIRS), encoder), encoder, tmp_path / "store")
    for packed in (True, False):
        setting = Setting(tokenizer, Text("bpe"), ROW, 1, structure="decoder")
        goal = objective(Answers(task=task, packed=packed), setting)
        made = [example for example, _ in goal.examples(store, once=True)]
        real = sum(len(example["input_ids"]) for example in made)
        assert real == store.tokens_total - len(store)
        assert abs(goal.size(store) * len(made) - real) <= len(made) < real / 10


def test_the_captain_can_be_read() -> None:
    found, whole = first("builtin:captain", 1000)
    assert whole and len(found) == len(list(builtin.rows("captain"))) == 72
    assert [json.loads(d.text) for d in read("builtin:captain#field=*").documents()] == found
    for row in found:
        for turn in row["messages"][1::2]:
            assert turn["content"].startswith("Aye, ") and turn["content"].endswith("Fair winds!")


def test_a_run_shows_its_rows_and_what_came_of_them(
    tmp_path: Path, decoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = {"messages": [{"role": "user", "content": "name a red fruit"}]}
    data = written(tmp_path / "rows.jsonl", [*first("builtin:captain", 30)[0], bad])
    more: dict[str, Any] = {"settings": {"template": "chatml"}, "overrides": {"recipe.lr": 3e-3}}
    run = tune("chat", start=str(decoder), data=data, out=tmp_path / "run", budget="2 epochs", **more)
    said = capsys.readouterr().err
    assert "3 examples as the model sees them" in said
    assert "«Aye, that be Paris, a fine town on the river Seine. Fair winds!<|im_end|>»" in said
    assert "1 row was passed over: the assistant says nothing in it (rows.jsonl:31)" in said
    assert "rows, " in said and "held-out rows with " in said and "before: held-out loss" in said
    assert run.summary["val"]["loss"] < run.summary["before"]["loss"]
    assert run.summary["before"] == folder.read(tmp_path / "run", lambda about: about["before"])
    (tmp_path / "run" / "summary.json").unlink()
    assert resume(tmp_path / "run", quiet=True).summary["before"] == run.summary["before"]


def test_a_budget_of_tokens_counts_those_of_examples(tmp_path: Path, decoder: Path) -> None:
    data = written(tmp_path / "rows.jsonl", PAIRS)
    run = tune("write", start=str(decoder), data=data, out=tmp_path / "run", budget="500 tokens", quiet=True)
    assert abs(run.summary["tokens"] - 500) < run.summary["tokens"] / run.summary["steps"]


# ---------------------------------------------------------------- write


def test_texts_are_measured_as_the_libraries_do() -> None:
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import BLEU, CHRF

    wanted = ["the sea is dark as wine tonight", "an apple is red", "homer wrote it long ago", "über"]
    found = ["the sea is as dark as wine", "an apple is red ", "virgil wrote this not so long ago", ""]
    got = texts.measured(wanted, found)
    assert got["exact_match"] == 0.25
    assert got["bleu"] == pytest.approx(BLEU().corpus_score(found, [wanted]).score)
    assert got["chrf"] == pytest.approx(CHRF().corpus_score(found, [wanted]).score)
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    for name in ("rouge1", "rouge2", "rougeL"):
        mean = sum(scorer.score(a, b)[name].fmeasure for a, b in zip(wanted, found, strict=True)) / 4
        assert got[name] == pytest.approx(mean)
    assert texts.measured(wanted, wanted)["bleu"] == pytest.approx(100)


@pytest.mark.parametrize("structure", ["decoder", "encoder-decoder"])
def test_what_is_asked_begins_what_is_learnt(tokenizer: Tokenizer, structure: str) -> None:
    task = WriteTask(text="source", target="summary", prefix="short: ")
    read_ = WriteReader(task, tokenizer, 200, structure)
    for row in PAIRS[:5]:
        ids, marks = read_.marked(read_.read(row))
        assert read_.asked("short: " + row["source"]) == ids[: marks[1]]


def test_a_model_writes_what_it_was_tuned_to(tmp_path: Path, decoder: Path) -> None:
    """Four texts by heart; one that is too long is cut and answered."""
    pairs = [{"text": f"{word} {word}", "target": word.upper()} for word in ("sea", "red", "ago", "who")]
    data = written(tmp_path / "rows.jsonl", [{**pair, "n": n} for n in range(8) for pair in pairs])
    changes = {"recipe.lr": 5e-3, "recipe.batch": 400, "recipe.schedule.shape": "constant"}
    run = tune(
        "write", start=str(decoder), data=data, out=tmp_path / "run", budget="80 steps", quiet=True, overrides=changes
    )
    task = run.plan.objective.task  # type: ignore[attr-defined]
    asked = Written(run.model, task, Decoding(tokens=16))
    assert [one["text"] for one in asked.answers(pairs)] == ["SEA", "RED", "AGO", "WHO"]
    assert len(asked.prompt({"text": "sea " * 300})) <= run.model.dims.context - 16
    found = predict(tmp_path / "run", ["sea sea", {"text": "ago ago"}])
    assert found == [{"text": "SEA"}, {"text": "AGO"}]
    metrics = measured(tuned(tmp_path / "run"), pairs, draws=5).metrics
    assert metrics["exact_match"] == 1 and metrics["chrf"] == pytest.approx(100)


def test_the_recipe_is_that_of_the_family(tmp_path: Path, decoder: Path, tokenizer: Tokenizer) -> None:
    place = tmp_path / "t5"
    sizes_ = dict(d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4, decoder_start_token_id=tokenizer.pad_id)
    hf.T5ForConditionalGeneration(hf.T5Config(**sizes_, vocab_size=tokenizer.vocab_size)).save_pretrained(place)
    tokenizer.save(place)
    data = written(tmp_path / "rows.jsonl", PAIRS)
    recipe = resolve("write", str(place), data).recipe
    assert (recipe.optimizer, recipe.lr, recipe.schedule.shape) == (Adafactor(), 1e-3, "constant")
    assert isinstance(resolve("write", str(place), data, lora=4).recipe.optimizer, AdamW)
    changes = {"recipe.optimizer": "AdamW()", "recipe.lr": 3e-4}
    recipe = resolve("write", str(place), data, overrides=changes).recipe
    assert (recipe.optimizer, recipe.lr) == (AdamW(), 3e-4)
    assert isinstance(resolve("write", str(decoder), data).recipe.optimizer, AdamW)


# ---------------------------------------------------------------- complete


def test_texts_are_completed(tmp_path: Path, decoder: Path) -> None:
    data = written(tmp_path / "rows.jsonl", [{"body": f"homer wrote it {i} long ago " * 3} for i in range(40)])
    plan = resolve("complete", str(decoder), data, settings={"text": "body"})
    assert plan.data.endswith("#field=body") and plan.recipe.batch == plan.context < 256
    more: dict[str, Any] = {"settings": {"text": "body"}, "overrides": {"recipe.lr": 3e-3}}
    run = tune("complete", start=str(decoder), data=data, out=tmp_path / "run", budget="2 epochs", quiet=True, **more)
    assert run.step >= 24 and run.summary["val"]["loss"] < run.summary["before"]["loss"]
    with pytest.raises(UsageError, match="complete learns texts as they are, so it has no setting 'target'"):
        resolve("complete", str(decoder), data, settings={"target": "body"})
