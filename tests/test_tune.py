"""Tuning: rows become examples, bad rows are counted, and runs carry them out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf

import stemma
from stemma.conversations.templates import NAMES
from stemma.data import Store, read
from stemma.declare.family import Text
from stemma.declare.tasks import Answers, ChatTask, Replies, RowTask, WriteTask
from stemma.declare.tuning import SFT
from stemma.errors import DataError, UsageError
from stemma.nn.model import IGNORED
from stemma.objectives import objective
from stemma.objectives.base import Objective
from stemma.objectives.setting import Setting
from stemma.rewrites import LoRA, SoftPrompt
from stemma.runs.metrics import read_metrics
from stemma.tasks.encoder import TaskEncoder, rows
from stemma.text import Specials, Tokenizer
from stemma.train import resume, verify_resume
from stemma.tuning import systems, tune
from stemma.tuning.plans import resolve
from stemma.tuning.systems import UNKNOWN

SAYINGS = [
    "who wrote it",
    "homer wrote it long ago",
    "name a red fruit",
    "an apple is red",
    "what is the sea",
    "wine dark",
]
PAIRS = [{"text": f"{SAYINGS[i % 3 * 2]} {i}", "target": f"{SAYINGS[i % 3 * 2 + 1]} {i}"} for i in range(40)]
ROW = 96
SMALL: dict[str, Any] = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train("bpe", SAYINGS * 3, 300, Specials(bos="<s>", eos="</s>", pad="<pad>", unk="<unk>"))


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("decoder")
    torch.manual_seed(0)
    config = hf.LlamaConfig(**SMALL, num_key_value_heads=2, vocab_size=tokenizer.vocab_size, max_position_embeddings=64)
    hf.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save(folder)
    return folder


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("both")
    torch.manual_seed(0)
    sizes = dict(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=tokenizer.pad_id)
    hf.T5ForConditionalGeneration(hf.T5Config(**sizes, vocab_size=tokenizer.vocab_size)).save_pretrained(folder)
    tokenizer.save(folder)
    return folder


def written(path: Path, found: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in found), "utf-8")
    return str(path)


def stored(tmp_path: Path, tokenizer: Tokenizer, task: RowTask, found: list[Any], structure: str = "decoder") -> Store:
    encoder = TaskEncoder(task, tokenizer, ROW, structure)
    return Store.build(rows(written(tmp_path / "rows.jsonl", found), encoder), encoder, tmp_path / "store")


def runner(spec: Any, tokenizer: Tokenizer, structure: str = "decoder") -> Objective:
    return objective(spec, Setting(tokenizer, Text("bpe", start_id=tokenizer.pad_id), ROW, 1, structure=structure))


TALKS = [
    {"messages": [{"role": "user", "content": p["text"]}, {"role": "assistant", "content": p["target"]}]} for p in PAIRS
]


def test_rows_of_every_format_are_one_json_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,n\n"x, y",1\nz,2\n', "utf-8")
    written(tmp_path / "b.jsonl", [{"text": "x", "lang": "en", "deep": [1, {"k": None}]}])
    (tmp_path / "c.txt").write_text("plain\ntext\n", "utf-8")
    found = {
        name: [json.loads(d.text) for d in read(f"{tmp_path / name}#field=*").documents()]
        for name in ("a.csv", "b.jsonl", "c.txt")
    }
    assert found["a.csv"] == [{"text": "x, y", "n": "1"}, {"text": "z", "n": "2"}]
    assert found["b.jsonl"] == [{"text": "x", "lang": "en", "deep": [1, {"k": None}]}]
    assert found["c.txt"] == [{"text": "plain\ntext\n"}]
    assert [d.language for d in read(f"{tmp_path / 'b.jsonl'}#field=*").documents()] == [""]


def test_rows_of_tables_are_json_too(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"text": ["a", "b"], "label": [1, None]}), tmp_path / "t.parquet")
    found = [json.loads(d.text) for d in read(f"{tmp_path / 't.parquet'}#field=*").documents()]
    assert found == [{"text": "a", "label": 1}, {"text": "b", "label": None}]


def test_targets_are_the_answers_and_their_ends(tmp_path: Path, tokenizer: Tokenizer) -> None:
    store = stored(tmp_path, tokenizer, ChatTask(template="chatml"), TALKS)
    goal = runner(Answers(task=ChatTask(template="chatml")), tokenizer)
    seen = []
    for example, _ in goal.examples(store, once=True):
        batch = goal.collate([example])
        seen.append(tokenizer.decode(batch["targets"].tolist(), skip_special=False))
    learnt = "".join(seen)
    for row in PAIRS:
        assert learnt.count(row["target"] + "<|im_end|>") == 1
    assert len(learnt) == sum(len(row["target"]) + len("<|im_end|>") for row in PAIRS)


def test_packed_examples_do_not_see_each_other(tmp_path: Path, tokenizer: Tokenizer, decoder: Path) -> None:
    """The loss of packed rows is that of each example alone."""
    task = WriteTask(text="text", target="target")
    store = stored(tmp_path, tokenizer, task, PAIRS)
    model, sums = stemma.load(decoder), []
    for packed in (True, False):
        goal = runner(Answers(task=task, packed=packed), tokenizer)
        examples = [e for e, _ in goal.examples(store, once=True)]
        loss = goal.loss(model, goal.collate(examples))
        sums.append((loss.sums["token"].item(), loss.counts["token"], len(examples)))
    assert sums[0][1] == sums[1][1] and sums[0][2] < sums[1][2] == len(PAIRS)
    assert sums[0][0] == pytest.approx(sums[1][0], rel=1e-5)


def test_a_reply_is_learnt_as_transformers_does(tmp_path: Path, tokenizer: Tokenizer, both: Path) -> None:
    task = WriteTask(text="text", target="target", prefix="answer: ")
    store = stored(tmp_path, tokenizer, task, PAIRS, "encoder-decoder")
    goal = runner(Replies(task=task), tokenizer, "encoder-decoder")
    batch = goal.example_batch(store, 6)
    model, theirs = stemma.load(both), hf.T5ForConditionalGeneration.from_pretrained(both).eval()
    ours = goal.loss(model, batch)
    read_ = [tokenizer.decode(row) for row in batch["input_ids"].tolist()]
    assert all(text.startswith("answer: ") for text in read_)
    labels = torch.full_like(batch["decoder_input_ids"], IGNORED)
    labels.view(-1)[batch["where"]] = batch["targets"]
    with torch.no_grad():
        want = theirs(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
    assert ours.total().item() == pytest.approx(want.item(), abs=1e-5)


@pytest.mark.parametrize("start", ["decoder", "both"])
def test_a_run_tunes_stops_resumes_and_is_verified(tmp_path: Path, request: pytest.FixtureRequest, start: str) -> None:
    folder: Path = request.getfixturevalue(start)
    data = written(tmp_path / "rows.jsonl", PAIRS)
    settings = {"text": "text", "target": "target"}
    more: dict[str, Any] = {"settings": settings, "budget": "8 steps", "quiet": True}
    more["overrides"] = {"recipe.lr": 3e-3, "recipe.batch": 512, "train.val_fraction": 0.2, "train.save_every": 3}
    run = tune("write", start=str(folder), data=data, out=tmp_path / "run", **more)
    assert run.finished and run.summary["val"]["loss"] < 5.7 and "bits_per_byte" not in run.summary["val"]
    losses = [record["loss"] for record in read_metrics(tmp_path / "run")]
    assert losses[-1] < losses[0]
    assert verify_resume(tmp_path / "run", 4)["steps"] == 4
    assert resume(tmp_path / "run", quiet=True).summary == run.summary
    assert stemma.load(tmp_path / "run").arch == stemma.load(folder).arch


def test_a_frozen_head_over_many_targets_has_a_loss(
    decoder: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks of the vocabulary's loss where no weight of the head learns."""
    from stemma.objectives import vocabulary

    model = stemma.load(decoder).requires_grad_(False)
    hidden = torch.randn(2, 8, 32, requires_grad=True)
    batch = {"targets": torch.arange(16)}
    whole = vocabulary.token_loss(model, hidden, batch)
    monkeypatch.setattr(vocabulary, "LOGITS", tokenizer.vocab_size * 3)
    chunked = vocabulary.token_loss(model, hidden, batch)
    assert chunked.item() == pytest.approx(whole.item(), rel=1e-6)
    grads = [torch.autograd.grad(loss, hidden)[0] for loss in (whole, chunked)]
    assert torch.allclose(*grads, atol=1e-6)


BAD = [
    ({"text": "a"}, "it has no column 'target' for the target, but 'text'"),
    ({"text": "a", "target": " "}, "its target (column 'target') is empty"),
    ({"text": ["a"], "target": "b"}, "its column 'text' holds"),
    ({"text": "a", "target": "homer " * 60}, "its target has more tokens than the 32 of a row"),
]


@pytest.mark.parametrize(("row", "why"), BAD)
def test_bad_rows_are_counted_with_their_line(tmp_path: Path, tokenizer: Tokenizer, row: Any, why: str) -> None:
    encoder = TaskEncoder(WriteTask(text="text", target="target"), tokenizer, 32, "decoder")
    data = written(tmp_path / "rows.jsonl", [PAIRS[0], row, PAIRS[1], row])
    source = rows(data, encoder)
    assert len(list(source.documents())) == 2
    assert source.notes[0].startswith(f"2 rows were passed over: {why}")
    assert "rows.jsonl:2, rows.jsonl:4" in source.notes[0]
    with pytest.raises(DataError, match=r"rows.jsonl:2: it"):
        list(rows(data + "#strict=yes", encoder).documents())
    with pytest.raises(DataError, match=r"no row can be learnt from; the first is .*bad.jsonl:1: it"):
        list(rows(written(tmp_path / "bad.jsonl", [row]), encoder).documents())


def test_what_differs_in_numbers_alone_is_one_note(tmp_path: Path, tokenizer: Tokenizer) -> None:
    encoder = TaskEncoder(WriteTask(text="text", target="target"), tokenizer, 32, "encoder-decoder")
    long = [{"text": "a", "target": "homer " * n} for n in (60, 70)]
    source = rows(written(tmp_path / "rows.jsonl", [PAIRS[0], *long]), encoder)
    assert len(list(source.documents())) == 1 and len(source.notes) == 1
    assert source.notes[0].startswith("2 rows were passed over: such as its target has ")
    assert "(rows.jsonl:2, rows.jsonl:3)" in source.notes[0]


def test_lines_that_are_no_rows_are_counted_too(tmp_path: Path, tokenizer: Tokenizer) -> None:
    encoder = TaskEncoder(WriteTask(text="text", target="target"), tokenizer, ROW, "decoder")
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(PAIRS[0])}\n{{\n[1]\n", "utf-8")
    source = rows(str(tmp_path / "rows.jsonl"), encoder)
    assert len(list(source.documents())) == 1
    assert source.notes == [
        "2 lines that are no rows with text were passed over: rows.jsonl:2, rows.jsonl:3; #strict=yes makes them an error"
    ]
    with pytest.raises(DataError, match=r"rows.jsonl:2 is not JSON"):
        list(rows(f"{tmp_path / 'rows.jsonl'}#strict=yes", encoder).documents())


def test_a_long_text_loses_its_end_and_never_its_target(tmp_path: Path, tokenizer: Tokenizer, decoder: Path) -> None:
    task = WriteTask(text="text", target="target")
    store = stored(tmp_path, tokenizer, task, [{"text": "who wrote it " * 90, "target": "homer"}, *PAIRS[:2]])
    ids = np.asarray(store[0])
    assert len(ids) == ROW + 1 and tokenizer.decode(ids[-4:]).endswith("homer") and ids[-1] == tokenizer.eos_id


def test_what_does_not_fit_is_refused(decoder: Path, both: Path) -> None:
    for what, more, why in [
        ("chatt", {}, "no task is called 'chatt'.*did you mean 'chat'"),
        ("write", {"settings": {"template": "x"}}, "write has no setting 'template'"),
        ("chat", {"quantize": "nf4"}, "give a LoRA rank"),
        ("chat", {"overrides": {"train.context": 4096}}, "exceeds the 64 tokens"),
    ]:
        with pytest.raises(UsageError, match=why):
            resolve(what, str(decoder), "x.jsonl", **more)  # type: ignore[arg-type]


SYSTEMS = [
    "alpaca",
    "vicuna",
    "qlora",
    "koala",
    "vigogne",
    "tulu",
    "orca",
    "stable-beluga2",
    "gorilla",
    "u-palm",
    "med-palm",
]


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_tuned_family_is_a_recipe(
    tmp_path: Path, decoder: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its template, loss and numbers are those of its first stage on examples; what is unpublished is said."""
    plan = systems.resolve(name, str(decoder), "rows.jsonl", quiet=False)
    stage, said = systems.system(name).stage, capsys.readouterr().err
    assert plan.system == name and plan.recipe.lr is not None
    assert isinstance(stage, SFT) == isinstance(plan.objective, Answers)
    if isinstance(plan.objective, Answers) and isinstance(stage, SFT):
        task = plan.objective.task
        assert isinstance(task, ChatTask) and task.loss_on == (stage.loss_on or "answers")
        assert (NAMES[task.template] == stage.template) if stage.template else "unpublished" in said
        assert bool(stage.adapter) == any(isinstance(r, LoRA | SoftPrompt) for r in plan.rewrites)
        assert (f"{UNKNOWN}" in said) == (stage.lr is None and stemma.design(name).recipe.lr is None)
    full = systems.resolve(name, str(decoder), "rows.jsonl", full=True)
    assert full.recipe.lr in (stemma.design(name).recipe.lr, UNKNOWN, getattr(stage, "lr", None))


def test_a_system_tunes_a_model(tmp_path: Path, decoder: Path) -> None:
    data = written(tmp_path / "rows.jsonl", [{"instruction": p["text"], "output": p["target"]} for p in PAIRS])
    more: dict[str, Any] = {"settings": {"template": "plain"}, "budget": "4 steps", "quiet": True}
    run = tune("qlora", start=str(decoder), data=data, out=tmp_path / "run", **more)
    assert run.finished and (tmp_path / "run" / "model" / "adapter_config.json").exists()
    assert run.plan.system == "qlora"


def test_instruction_prompt_tuning(tmp_path: Path, decoder: Path) -> None:
    """Med-PaLM: one soft prompt before the words of every task is all that learns."""
    rows = [
        {"instruction": f"{('say', 'tell')[i % 2]}: {p['text']}", "output": p["target"]} for i, p in enumerate(PAIRS)
    ]
    data = written(tmp_path / "rows.jsonl", rows)
    more: dict[str, Any] = {"settings": {"template": "plain"}, "budget": "4 steps", "quiet": True}
    run = tune("med-palm", start=str(decoder), data=data, out=tmp_path / "run", **more)
    (prompt,) = run.plan.rewrites
    assert isinstance(prompt, SoftPrompt) and (prompt.length, prompt.init) == (100, "uniform")
    config = json.loads((tmp_path / "run" / "model" / "adapter_config.json").read_text())
    assert config["peft_type"] == "PROMPT_TUNING" and config["num_virtual_tokens"] == 100
    before = stemma.load(decoder).state_dict()
    after = {k: v for k, v in stemma.load(tmp_path / "run").state_dict().items() if not k.startswith("prompt.")}
    assert before.keys() == after.keys() and all(torch.equal(before[k], v) for k, v in after.items())
    assert stemma.generate(stemma.load(tmp_path / "run"), ["say: who wrote it"], max_new_tokens=4)[0].ids


def test_no_system_is_made_up(decoder: Path) -> None:
    for what, why in [
        ("alpacca", "did you mean 'alpaca'"),
        ("llama", "llama is not tuned from another's weights"),
    ]:
        with pytest.raises(UsageError, match=why):
            systems.resolve(what, str(decoder), "x.jsonl")


def test_tokens_that_a_template_brings_learn(tmp_path: Path, decoder: Path, tokenizer: Tokenizer) -> None:
    """ChatML on a base model: the tokenizer grows, the new rows begin as the mean of the others and learn."""
    data = written(tmp_path / "rows.jsonl", TALKS)
    more: dict[str, Any] = {"budget": "2 steps", "quiet": True, "settings": {"template": "chatml"}}
    run = tune("chat", start=str(decoder), data=data, out=tmp_path / "run", overrides={"recipe.lr": 1e-2}, **more)
    assert run.finished
    there = stemma.load(tmp_path / "run")
    ids = [there.tokenizer.id(name) for name in ("<|im_start|>", "<|im_end|>")]
    assert ids == [tokenizer.vocab_size, tokenizer.vocab_size + 1] and there.dims.vocab == tokenizer.vocab_size + 2
    old = stemma.load(decoder).embed.tokens.weight
    new, mean = there.embed.tokens.weight[ids], old.mean(0)
    assert 0 < (new - mean).abs().max() < 0.05 and not torch.equal(new[0], new[1])
    assert there.tokenizer.encode("<|im_end|>", allow_special=True, add_special=False) == ids[1:]


def test_the_function_is_no_module() -> None:
    """Whatever was imported before."""
    import stemma.tuning.plans

    assert stemma.tuning.plans and callable(stemma.tune) and callable(stemma.tune) and callable(stemma.predict)


def test_nothing_that_was_asked_for_is_dropped(decoder: Path, tmp_path: Path) -> None:
    """Rewrites of a tuned family's run, and what only such a run has."""
    own = LoRA(("*.attention.q",), rank=3)
    plan = systems.resolve("alpaca", str(decoder), "rows.jsonl", rewrites=(own,))
    assert plan.rewrites == (own,)
    for more in ({"stage": 1}, {"full": True}):
        with pytest.raises(UsageError, match="write is a task"):
            tune("write", start=str(decoder), data="rows.jsonl", out=tmp_path / "run", **more)  # type: ignore[arg-type]


def test_quiet_says_nothing(decoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    systems.resolve("orca", str(decoder), "rows.jsonl")
    assert capsys.readouterr().err == ""
