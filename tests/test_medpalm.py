"""Med-PaLM: instruction prompt tuning. Soft vectors before a prompt in words, the network frozen and at rest."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import stemma
from stemma import formats, samples, spec
from stemma.declare.recipes import AdamW
from stemma.declare.tasks import Answers, ChatTask, HardPrompt
from stemma.errors import DataError, UsageError
from stemma.formats import kept
from stemma.nn.parts import Dropout
from stemma.objectives.setting import Setting
from stemma.rewrites import SoftPrompt, apply
from stemma.samples import medicine
from stemma.tasks import hard
from stemma.tasks.base import reader
from stemma.tuning import systems, tune
from stemma.tuning.decoding import Decoding
from test_tune import decoder, tokenizer, written  # noqa: F401

# ---------------------------------------------------------------- the questions


def test_the_questions_come_from_the_table() -> None:
    """Held-out facts are in no question that is learnt; wrong options are no right ones; letters are drawn evenly."""
    rows, held = list(samples.rows("medicine")), list(medicine.held_out())
    assert (len(medicine.FACTS), len(rows), len(held)) == (155, 696, 234)
    assert len({(f.kind, f.x) for f in medicine.FACTS}) == 155 and {f.kind for f in medicine.FACTS} == {*medicine.TABLE}
    known = {(f.kind, medicine.TABLE[f.kind].asks.format(x=f.x)): f for f in medicine.FACTS}
    for row in (*rows, *held):
        assert medicine.is_right(row["answer"], row) and not medicine.is_right("Answer: other", row)
        if row["task"] != "choice":
            continue
        asked, *options = row["question"].split("\n")
        fact = known.get((row["kind"], asked))
        texts = [option[4:] for option in options]
        assert [option[:4] for option in options] == ["(A) ", "(B) ", "(C) ", "(D) "] and len({*texts}) == 4
        if fact is not None:
            assert texts[medicine.LETTERS.index(row["right"][1])] == fact.y
            assert medicine.said(fact) in row["answer"]
    counts = Counter(row["right"] for row in rows if row["task"] == "choice")
    assert all(40 < counts[f"({letter})"] < 80 for letter in medicine.LETTERS)
    assert Counter(row["right"] for row in rows if row["task"] == "judge") == {"yes": 116, "no": 116}
    assert not {r["question"] for r in rows if r["task"] == "short"} & {r["question"] for r in held}
    said = " ".join(medicine.statements())
    assert all(medicine.said(fact) in said for fact in medicine.FACTS)
    assert {*samples.prompts("medicine")} == {*medicine.MAKERS} and samples.prompts("explained") == {}


# ---------------------------------------------------------------- the plan


def test_the_recipe(decoder: Path) -> None:  # noqa: F811
    """Arxiv 2212.13138, appendix A.1: 100 vectors from U(-0.5, 0.5), AdamW at 0.003 with decay 1e-5, 200 steps of 32."""
    plan = systems.resolve("med-palm", str(decoder), full=True)
    assert plan.rewrites == (SoftPrompt(100, "uniform"),) and plan.data == "builtin:medicine"
    assert plan.recipe.optimizer == AdamW(weight_decay=1e-5) and plan.recipe.lr == 0.003
    assert plan.train.budget == "200 steps" and plan.recipe.batch == 32 * plan.context
    assert isinstance(plan.objective, Answers) and not plan.objective.packed
    task = plan.objective.task
    assert isinstance(task, ChatTask) and task.template == "plain"
    assert {one.task: one.text for one in task.prompts} == medicine.PROMPTS
    own = (HardPrompt("Say: "),)
    plan = systems.resolve("med-palm", str(decoder), settings={"prompts": own})
    assert plan.objective.task.prompts == own  # type: ignore[attr-defined]
    plan = systems.resolve("med-palm", str(decoder), "rows.jsonl")
    assert plan.objective.task.prompts == ()  # type: ignore[attr-defined]
    assert spec.from_dict(ChatTask, spec.to_dict(task)) == task


def test_a_prompt_is_a_value_and_a_file(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("Be brief.\nQ: {question}\nA:\n")
    exemplars = [{"question": "1 + 1?", "answer": "2", "reasoning": "One more than one."}]
    (tmp_path / "p.json").write_text(json.dumps({"instructions": "Add.", "exemplars": exemplars}))
    (tmp_path / "q.json").write_text(json.dumps({"instructions": "Add.", "exemplars": exemplars, "reasoning": False}))
    assert hard.read(f"sums={tmp_path / 'p.txt'}") == HardPrompt("Be brief.\nQ: {question}\nA:", "sums")
    long = "Add.\n\nQuestion: 1 + 1?\nExplanation: One more than one.\nAnswer: 2\n\nQuestion: {question}\nExplanation:"
    assert hard.read(str(tmp_path / "p.json")) == HardPrompt(long)
    assert (
        hard.read(str(tmp_path / "q.json")).text
        == "Add.\n\nQuestion: 1 + 1?\nAnswer: 2\n\nQuestion: {question}\nAnswer:"
    )
    assert hard.read(r"Say it:\n") == HardPrompt("Say it:\n") and hard.read("x = {question}") == HardPrompt(
        "x = {question}"
    )
    assert hard.asked(HardPrompt("Say: "), "why") == "Say: why"
    (tmp_path / "bad.json").write_text(json.dumps({"examples": []}))
    (tmp_path / "worse.json").write_text(json.dumps({"exemplars": [{"question": "x"}]}))
    for given, why in (
        ("bad.json", "'examples' is not what a prompt holds"),
        ("worse.json", "example 1 has no question or no answer"),
    ):
        with pytest.raises(UsageError, match=why):
            hard.read(str(tmp_path / given))
    with pytest.raises(UsageError, match="two prompts for one task: a, a"):
        ChatTask(prompts=(HardPrompt("x", "a"), HardPrompt("y", "a")))
    prompts = (HardPrompt("x", "a"), HardPrompt("y"))
    assert [hard.chosen(prompts, task).text for task in ("a", "b", None, "")] == ["x", "y", "y", "y"]
    with pytest.raises(DataError, match="its task is 'b', and there are prompts for 'a'"):
        hard.chosen(prompts[:1], "b")


def test_the_words_stand_before_the_question_and_are_not_learnt(tokenizer: Any) -> None:  # noqa: F811
    task = ChatTask(template="plain", prompts=(HardPrompt("sea {question} is ", "a"), HardPrompt("red ")))
    read = reader(task, tokenizer, 64, "decoder")
    assert read.shown({"question": "who", "answer": "homer", "task": "a"}) == "sea who is «homer</s>»"
    assert read.shown({"question": "who", "answer": "homer"}) == "red who«homer</s>»"
    with pytest.raises(DataError, match="more than the 65 of a row"):
        read.check({"question": "who " * 99, "answer": "homer"})


# ---------------------------------------------------------------- what learns


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:  # noqa: F811
    """A decoder with dropout, in bf16."""
    folder = tmp_path_factory.mktemp("base")
    sizes: dict[str, Any] = {"d_model": 32, "layers": 2, "heads": 4, "d_ff": 48, "context": 256}
    model = stemma.build("gpt2", vocab=tokenizer.vocab_size, **sizes)
    model.tokenizer = tokenizer
    model.save(str(folder), dtype="bfloat16")
    return folder


ROWS = [{"question": f"who wrote it {i}", "answer": "homer", "task": ("a", "b")[i % 2]} for i in range(24)]
PROMPTS = (HardPrompt("red {question} ", "a"), HardPrompt("sea {question} ", "b"))


def test_what_is_frozen_rests_and_the_prompt_keeps_small_steps(base: Path, tmp_path: Path) -> None:
    """GPT-2 has dropout: the plan has none, so that a batch has one loss. The vectors are fp32 beside weights of bf16:
    a step far below what bf16 can tell changes them."""
    data = written(tmp_path / "rows.jsonl", ROWS)
    assert formats.load(base, device="meta").arch.dropout != Dropout()
    changes = {
        "recipe.lr": 1e-6,
        "train.precision": "bf16",
        "recipe.schedule.shape": "constant",
        "recipe.schedule.warmup": 0,
    }
    more: dict[str, Any] = {"settings": {"template": "plain", "prompts": PROMPTS}, "quiet": True, "overrides": changes}
    run = tune("med-palm", start=str(base), data=data, out=tmp_path / "run", budget="3 steps", **more)
    assert run.plan.arch.dropout == Dropout()
    again = stemma.load(base, rewrites=run.plan.rewrites, dtype="bfloat16")
    fresh = torch.empty(100, 32).uniform_(-0.5, 0.5, generator=torch.Generator().manual_seed(1))
    own = next(p for n, p in run.model.named_parameters() if n.startswith("prompt."))
    assert own.dtype == torch.float32 and own.shape == (100, 32) and own.abs().max() < 0.5 + 1e-5
    learnt = next(p for n, p in again.named_parameters() if n.startswith("prompt."))
    assert learnt.dtype == torch.float32 and {
        p.dtype for n, p in again.named_parameters() if not n.startswith("prompt")
    } == {torch.bfloat16}
    before = learnt.detach().clone()
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    again.train()
    optimizer = torch.optim.AdamW([learnt], lr=1e-6, weight_decay=0.0)
    again(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    moved = (learnt.detach() - before).abs()
    assert 0 < moved.max() < 2e-6  # all of it would be lost in bf16
    lost = (before.bfloat16() + (learnt.detach() - before).bfloat16()) - before.bfloat16()
    assert (lost == 0).float().mean() > 0.9 and fresh.shape == own.shape
    weights = {n: t for n, t in stemma.load(tmp_path / "run").state_dict().items() if not n.startswith("prompt.")}
    for name, tensor in stemma.load(base).state_dict().items():
        assert torch.equal(tensor, weights[name]), name


def test_the_loss_is_that_of_vectors_words_and_answers(base: Path) -> None:
    """A batch as the objective makes it, against one row at a time with the vectors put in front by hand: labels, mask
    and positions go on behind them."""
    from stemma.objectives import objective

    model = stemma.load(base)
    plan = systems.resolve("med-palm", str(base), "rows.jsonl", settings={"template": "plain", "prompts": PROMPTS})
    assert isinstance(plan.objective, Answers)
    read = reader(plan.objective.task, model.tokenizer, 64, "decoder")
    examples = [read.marked(read.read(row)) for row in (ROWS[0], {**ROWS[1], "answer": "homer long ago"})]
    goal: Any = objective(plan.objective, Setting(model.tokenizer, model.text, 64, 0))
    parts = [goal.single(torch.tensor(one.ids).numpy(), torch.tensor(one.marks).numpy()) for one in examples]
    batch = goal.collate([{"input_ids": i, "labels": t, "documents": i * 0, "position_ids": i * 0} for i, t in parts])
    apply(model, (replace(plan.rewrites[0], length=7),), 3)
    given = model.eval()
    vectors = next(p for n, p in given.named_parameters() if n.startswith("prompt.")).detach()
    with torch.no_grad():
        found = goal.loss(given, batch)
        logits = given(input_ids=batch["input_ids"]).logits
        plain = stemma.load(base).eval()
        sums, count = 0.0, 0
        for row, (ids, labels) in enumerate(parts):
            embedded = torch.cat([vectors, plain.embed.tokens(torch.tensor(ids))])[None]
            alone = plain(inputs_embeds=embedded).logits[0, 7:]
            assert torch.allclose(logits[row, : len(ids)], alone, atol=1e-5)
            target = torch.tensor(labels)
            sums += torch.nn.functional.cross_entropy(alone, target, ignore_index=-100, reduction="sum").item()
            count += int((target != -100).sum())
    assert found.total().item() == pytest.approx(sums / count, abs=1e-5)
    assert {*found.counts.values()} == {count}


def test_what_it_writes_with_a_cache_is_what_it_writes_without(base: Path) -> None:
    model = stemma.load(base)
    apply(model, (SoftPrompt(9, "uniform"),), 2)
    ids = [5, 9, 7]
    found = stemma.generate(model, [ids], max_new_tokens=10, temperature=0.0, ignore_eos=True)[0].ids
    with torch.no_grad():
        for _ in range(10):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    assert found == ids[3:]


def test_a_run_keeps_its_prompts(base: Path, tmp_path: Path) -> None:
    """In task.json beside PEFT's directory, one for each task; `predict` reads them."""
    data = written(tmp_path / "rows.jsonl", ROWS)
    more: dict[str, Any] = {"settings": {"template": "plain", "prompts": PROMPTS}, "budget": "2 steps", "quiet": True}
    tune("med-palm", start=str(base), data=data, out=tmp_path / "run", **more)
    task = kept.load(tmp_path / "run" / "model")
    assert isinstance(task, ChatTask) and task.prompts == PROMPTS and task.template == "plain"
    assert json.loads((tmp_path / "run" / "model" / "adapter_config.json").read_text())["num_virtual_tokens"] == 100
    (found,) = stemma.predict(tmp_path / "run", [{"question": "who", "task": "b"}], how=Decoding(tokens=8))
    model = stemma.load(tmp_path / "run")
    (alone,) = stemma.generate(model, ["sea who "], max_new_tokens=8, temperature=0.0)
    assert found == {"text": (alone.text or "").strip()}
