"""Reward models: the loss of ranked answers, scores that no batch changes, and runs that learn them."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from torch import Tensor

import stemma
from stemma import report
from stemma.conversations import Turn
from stemma.conversations.comparisons import candidates
from stemma.data import Store
from stemma.declare.alignment import PreferTask, Ranking
from stemma.declare.family import Text
from stemma.errors import UsageError
from stemma.formats.heads import heads_for, task_of, with_heads
from stemma.nn.model import Model
from stemma.objectives import objective, ranking
from stemma.objectives.base import Batch
from stemma.objectives.ranking import RunRanking, pair_losses
from stemma.objectives.setting import Setting
from stemma.runs.metrics import read_metrics
from stemma.tasks.encoder import TaskEncoder, rows
from stemma.text import Specials, Tokenizer
from stemma.train import verify_resume
from stemma.tuning.predicting import predict
from stemma.tuning.scoring import RewardModel, SafetyFirst, safety_first, whitened
from tiny import build, tiny

WORDS = ["river", "stone", "lamp", "green", "seven", "paper", "cloud", "door"]
CHAT = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
LARGE, SMALL = (3.0, 2.0, 1.0, 0.0), (1.0, 2 / 3, 1 / 3, 0.0)  # the margins of LLaMA 2


def words(seed: int, count: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=count))


def pair(i: int) -> dict[str, Any]:
    """Of two answers the one that thanks is preferred; lengths differ."""
    return {
        "prompt": f"say {words(i, 1 + i % 4)}",
        "chosen": f"thanks {words(i + 500, 1 + i % 5)}",
        "rejected": f"never {words(i + 900, 1 + i % 7)}",
    }


PAIRS = [pair(i) for i in range(64)]
FOUR = {"prompt": "say it", "responses": ["thanks", "well thanks", "never", "no"], "scores": [4, 3, 2, 1]}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    texts = [json.dumps(row) for row in PAIRS] + ["<user> <assistant> <system> well no it"]
    made = Tokenizer.train("bpe", texts, 320, Specials(bos="<s>", eos="</s>", pad="<pad>", unk="<unk>"))
    made.chat_template = CHAT
    return made


def goal(
    tokenizer: Tokenizer, structure: str = "decoder", context: int = 64, text: Text | None = None, **more: Any
) -> RunRanking:
    text = text or Text("bpe", pad_id=tokenizer.pad_id, eos_id=tokenizer.eos_id)
    made = objective(Ranking(**more), Setting(tokenizer, text, context, 1, structure=structure))
    assert isinstance(made, RunRanking)
    return made


def batch_of(made: RunRanking, found: list[dict[str, Any]]) -> Batch:
    return made.collate([example(made, row, i) for i, row in enumerate(found)])


def example(made: RunRanking, row: dict[str, Any], place: int = 0) -> dict[str, Any]:
    read = made.reader.read(row)
    marked = made.reader.marked(read)
    return made.made(np.asarray(marked.ids), marked.marks, read, place)


def rewarding(name: str, **changes: Any) -> Model:
    """A tiny network of a family with the head of one number."""
    from stemma.families import tree

    design, family = tiny(name, **{"dims.vocab": 330, "dims.context": 80} | changes), tree()[name]
    head = task_of(family, "classify", 1, "regression")
    return build(with_heads(design, heads_for(head, design, family)))


def given(scores: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let texts have these scores, in the order of a batch."""
    monkeypatch.setattr(ranking, "scores", lambda model, batch: torch.tensor(scores))


# ---------------------------------------------------------------- the loss


def test_losses_of_published_numbers(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four answers with scores (1, 0, -1, 2) and ranks (1, 2, 3, 0), and margins 0 to 3 at a gap of 1, by hand."""
    row = {"prompt": "q", "responses": ["a", "b", "c", "d"], "ranks": [1, 2, 3, 0]}
    made, model = goal(tokenizer), torch.nn.Identity().eval()
    given([2.0, 1.0, 0.0, -1.0], monkeypatch)  # texts stand best first
    assert made.loss(model, batch_of(made, [row])).total().item() == pytest.approx(0.2070381, abs=1e-6)  # type: ignore[arg-type]
    for margin, loss in (
        (0, 0.313262),
        (1 / 3, 0.414370),
        (2 / 3, 0.540306),
        (1, 0.693147),
        (2, 1.313262),
        (3, 2.126928),
    ):
        assert pair_losses(torch.tensor(1.0), torch.tensor(0.0), margin).item() == pytest.approx(loss, abs=1e-6)


def test_losses_equal_trl(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """What RewardTrainer.compute_loss of trl 1.16.0 gave for these rewards and margins, without and with its centring."""
    better, worse, margins = (1.3, -0.2, 0.75, 2.0), (0.4, 0.1, 0.75, -1.5), (0.5, 0.0, 1.0, 3.0)
    given([r for both in zip(better, worse, strict=True) for r in both], monkeypatch)
    model: Any = torch.nn.Identity().train()
    for rows_, centring, want in (
        (PAIRS[:4], 0.0, 0.4796016812), (PAIRS[:4], 0.01, 0.4931016862),
        ([{**p, "margin": m} for p, m in zip(PAIRS[:4], margins, strict=True)], 0.0, 0.7886772752),
        ([{**p, "margin": m} for p, m in zip(PAIRS[:4], margins, strict=True)], 0.01, 0.8021772504),
    ):  # fmt: skip
        made = goal(tokenizer, centring=centring)
        loss = made.loss(model, batch_of(made, rows_))
        assert loss.total().item() == pytest.approx(want, abs=1e-6)
        assert loss.metrics["margin"] / 4 == pytest.approx(1.025) and loss.metrics["reward"] / 4 == pytest.approx(0.45)
        assert loss.metrics["accuracy"] / 4 == 0.625  # equal scores count half here


def test_prompts_weigh_alike_whatever_their_answers(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine answers are 36 pairs and two are one: the loss is the mean of the two prompts, not of 37 pairs."""
    nine = {"prompt": "q", "responses": [f"a{i}" for i in range(9)]}
    made, model = goal(tokenizer), torch.nn.Identity().eval()
    scores = [float(9 - i) for i in range(9)]
    given([*scores, 0.0, 2.0], monkeypatch)
    want = [
        np.mean([math.log1p(math.exp(b - a)) for i, a in enumerate(scores) for b in scores[i + 1 :]]),
        math.log1p(math.exp(2)),
    ]
    batch = batch_of(made, [nine, PAIRS[0]])
    assert made.counts(batch) == {"prompt": 2} and len(batch["better"]) == 37
    assert made.loss(model, batch).total().item() == pytest.approx(np.mean(want), abs=1e-6)  # type: ignore[arg-type]


def test_ties_are_dropped_or_count_half(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"prompt": "q", "responses": ["a", "b", "c"], "scores": [2, 2, 1]}
    given([0.5, -0.25, 1.0], monkeypatch)
    model: Any = torch.nn.Identity().eval()

    def minus_log(x: float) -> float:
        return math.log1p(math.exp(-x))

    apart = [minus_log(0.5 - 1.0), minus_log(-0.25 - 1.0)]
    tied = (minus_log(0.75) + minus_log(-0.75)) / 2
    for ties, want in (("drop", np.mean(apart)), ("half", np.mean([tied, *apart]))):
        made = goal(tokenizer, task=PreferTask(ties=ties))  # type: ignore[arg-type]
        assert made.loss(model, batch_of(made, [row])).total().item() == pytest.approx(want, abs=1e-6)
    with pytest.raises(Exception, match=r"its answers are tied.*a reward model learns them"):
        goal(tokenizer).reader.check({**PAIRS[0], "tie": True})


def test_margins_are_chosen_by_grade(tokenizer: Tokenizer) -> None:
    for margins, want in ((LARGE, [3, 2, 1, 0]), (SMALL, [1, 2 / 3, 1 / 3, 0]), ((), [0, 0, 0, 0])):
        made = goal(tokenizer, task=PreferTask(margins=margins))
        graded = [
            {**PAIRS[i], "grade": g}
            for i, g in enumerate(("significantly better", "better", "slightly better", "unsure"))
        ]
        assert batch_of(made, graded)["margins"].tolist() == pytest.approx(want)
        assert batch_of(made, [{**PAIRS[0], "margin": 0.25}])["margins"].tolist() == [0.25]
    with pytest.raises(Exception, match=r"no .grade., by which objective\.task\.margins are chosen"):
        goal(tokenizer, task=PreferTask(margins=LARGE)).reader.check(PAIRS[0])
    with pytest.raises(UsageError, match=r"margins=.* must be 4 numbers"):
        PreferTask(margins=(1.0,))


# ---------------------------------------------------------------- scores


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "roberta", "t5", "xlnet", "deberta"])
def test_a_score_is_of_a_text_and_of_no_batch(tokenizer: Tokenizer, name: str) -> None:
    """Packed beside others, alone and read by the model itself a text has one score, at its last token."""
    model = rewarding(name)
    if name == "t5":  # it reads the end token that its tokenizer puts behind a text
        tokenizer = Tokenizer.train("unigram", [json.dumps(row) for row in PAIRS], 320, Specials(eos="</s>", pad="<pad>", unk="<unk>"))  # fmt: skip
        model.text = Text("unigram", eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id, start_id=tokenizer.pad_id)
    made = goal(tokenizer, model.arch.structure, text=model.text)
    long = {"prompt": f"say {words(3, 24)}", "chosen": "thanks", "rejected": "no"}
    examples = [example(made, row) for row in [*PAIRS[:6], FOUR, long]]
    together = made.score(model, examples)
    apart = [made.score(model, [e])[0] for e in examples]
    assert [len(s) for s in together] == [2] * 6 + [4, 2]
    assert np.allclose(np.concatenate(together), np.concatenate(apart), atol=1e-5)
    assert np.std(np.concatenate(together)) > 1e-3
    batch = made.collate(examples)
    real = int((batch["documents"] >= 0).sum())
    if model.arch.structure == "decoder":  # a prompt is read once for all of its answers
        asked = [e["answers"][0] for e in examples]
        assert real == sum(asked) + sum(len(t) - n for e, n in zip(examples, asked, strict=True) for t in e["texts"])
    else:
        assert real == sum(len(text) for e in examples for text in e["texts"])
    if model.arch.structure != "encoder-decoder":
        assert len(batch["input_ids"]) < 14, "several short texts share a row"
    for e, own in zip(examples[:3], together, strict=False):
        for text, begin, score in zip(e["texts"], e["answers"], own, strict=True):
            ids = torch.tensor(text)[None]
            kinds = (torch.arange(len(text)) >= begin).long()[None] if model.dims.segments > 1 else None
            with torch.no_grad():
                out = model(ids, torch.ones_like(ids), kinds)
            found = out.task_logits if out.task_logits is not None else out.logits
            assert found is not None and found.item() == pytest.approx(score, abs=1e-5)


def test_padding_has_no_score(tokenizer: Tokenizer) -> None:
    """Where the end token pads, too, the score is read before it, as transformers does: what stands behind changes
    nothing."""
    pad = tokenizer.eos_id
    made = goal(tokenizer, text=Text("bpe", pad_id=pad, eos_id=pad))
    ids = example(made, PAIRS[0])["texts"][0]
    assert ids[-1] != pad and goal(tokenizer).made(np.array([5, 6, pad]), [0, 1])["texts"][0][-1] == pad
    model = rewarding("llama")
    (one,), (other,) = (
        made.score(model, [made.made(np.array(own), [0, 1])]) for own in ([5, 6, 7], [5, 6, 7, pad, pad])
    )
    assert one == other


def test_nothing_is_dropped_where_answers_are_scored(tokenizer: Tokenizer) -> None:
    model = rewarding("llama", **{"arch.dropout.residual": 0.3})
    made = goal(tokenizer)
    examples = [example(made, row) for row in PAIRS[:3]]
    model.train()
    assert made.score(model, examples) == made.score(model, examples) and model.training


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_models_of_transformers_score_alike_here_and_ours_there(
    tmp_path: Path, tokenizer: Tokenizer, kind: str
) -> None:
    """A class of one number, as trl trains it, padded in one batch."""
    common: dict[str, Any] = dict(vocab_size=tokenizer.vocab_size, num_labels=1, pad_token_id=tokenizer.pad_id)
    torch.manual_seed(0)
    theirs: Any
    if kind == "llama":
        theirs = hf.LlamaForSequenceClassification(
            hf.LlamaConfig(hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, **common)
        )
    elif kind == "gpt2":
        theirs = hf.GPT2ForSequenceClassification(
            hf.GPT2Config(n_embd=24, n_layer=2, n_head=4, n_positions=64, **common)
        )
    else:
        theirs = hf.BertForSequenceClassification(
            hf.BertConfig(hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, **common)
        )
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(0.2 * torch.randn_like(p))
    theirs.eval().save_pretrained(tmp_path / "theirs")
    tokenizer.save(tmp_path / "theirs")
    ours = stemma.load(tmp_path / "theirs")
    assert ours.tokenizer is not None and ours.text is not None
    made = goal(ours.tokenizer, ours.arch.structure, text=ours.text)
    examples = [example(made, row) for row in PAIRS[:5]]
    texts = [torch.tensor(t) for e in examples for t in e["texts"]]
    ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=tokenizer.pad_id or 0)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(t) for t in texts], batch_first=True)
    more: dict[str, Tensor] = {}
    if kind == "bert":
        begins = [b for e in examples for b in e["answers"]]
        more["token_type_ids"] = ((torch.arange(ids.shape[1]) >= torch.tensor(begins)[:, None]) & (mask == 1)).long()
    ours.save(str(tmp_path / "ours"))
    again = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours").eval()
    assert type(again) is type(theirs) and again.config.num_labels == 1
    found = torch.tensor([s for one in made.score(ours, examples) for s in one])
    for model in (theirs, again):
        with torch.no_grad():
            want = model(ids, attention_mask=mask, **more).logits.squeeze(-1)
        assert torch.allclose(found, want, atol=1e-5)


def test_gradients_do_not_depend_on_how_rows_are_split(tokenizer: Tokenizer) -> None:
    model, made = rewarding("llama"), goal(tokenizer)
    found = [*PAIRS[:5], FOUR]
    grads = []
    for parts in ([found], [found[:1], found[1:4], found[4:]]):
        model.zero_grad()
        for part in parts:
            made.loss(model.train(), batch_of(made, part)).total({"prompt": len(found)}).backward()
        grads.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys() and all(
        torch.allclose(g, grads[1][n], atol=1e-6) for n, g in grads[0].items()
    )
    assert max(float(g.abs().max()) for g in grads[0].values()) > 1e-3


# ---------------------------------------------------------------- rows


def test_rows_that_no_row_holds_are_passed_over_with_their_lines(tmp_path: Path, tokenizer: Tokenizer) -> None:
    long = " ".join(["stone"] * 80)
    found = [*PAIRS[:4], {**PAIRS[4], "prompt": long}, {**PAIRS[5], "chosen": long}, {**PAIRS[6], "rejected": PAIRS[6]["chosen"]}, {**PAIRS[7], "rejected": ""}]  # fmt: skip
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in found), "utf-8")
    encoder = TaskEncoder(PreferTask(), tokenizer, 40, "decoder")
    store = Store.build(rows(str(path), encoder), encoder, tmp_path / "store")
    notes = "\n".join(store.meta["notes"])
    assert len(store) == 4
    for why, line in (
        ("its prompt has", 5), ("tokens with its answer, more than the 40 of a row", 6), ("chosen and its rejected answer are the same", 7), ("is empty", 8),
    ):  # fmt: skip
        assert any(why in note and f"rows.jsonl:{line}" in note for note in store.meta["notes"]), (why, notes)


def test_prompts_in_several_rows_are_remarked(tmp_path: Path, tokenizer: Tokenizer) -> None:
    made = goal(tokenizer)
    sides = []
    for name, found in (
        ("a", [PAIRS[0], {**PAIRS[1], "prompt": PAIRS[0]["prompt"]}, PAIRS[2]]),
        ("b", [PAIRS[2], PAIRS[3]]),
    ):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in found), "utf-8")
        encoder = TaskEncoder(PreferTask(), tokenizer, 64, "decoder")
        sides.append(Store.build(rows(str(path), encoder), encoder, tmp_path / name))
    several, both = made.remarks(*sides)
    assert several.startswith("2 of 3 rows share their prompt with another row")
    assert both == "the prompts of 1 of 2 held-out rows are among those learnt from"
    assert made.remarks(sides[1], sides[1])[0].startswith("the prompts of 2 of 2")


# ---------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """A tiny pretrained decoder with a chat template."""
    folder = tmp_path_factory.mktemp("start")
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128, bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id,
    )  # fmt: skip
    hf.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save(folder)
    return folder


def written(path: Path, found: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in found), "utf-8")
    return str(path)


def test_a_run_learns_which_answers_are_preferred(tmp_path: Path, start: Path) -> None:
    """The finished model has the head that transformers reads, and preferred answers score 0 on average."""
    data = written(tmp_path / "pairs.jsonl", PAIRS)
    run = stemma.align(
        "reward", start=str(start), data=data, out=tmp_path / "run", budget="30 steps", quiet=True,
        overrides={"recipe.lr": 3e-3, "train.val_fraction": 0.25, "train.context": 64},
    )  # fmt: skip
    val = run.summary["val"]
    assert val["accuracy"] > 0.9 and val["margin"] > 0.5 and 0 <= val["ece"] < 0.5
    records = read_metrics(tmp_path / "run")
    assert records[-1]["loss"] < records[0]["loss"] / 2 and records[-1]["accuracy"] > 0.9
    assert {"accuracy", "margin", "reward"} <= records[0].keys()
    bins = run.summary["answers"]["calibration"]
    assert sum(b["pairs"] for b in bins) == val["targets"] and all(0.5 <= b["sure"] <= 1 for b in bins)
    config = json.loads((tmp_path / "run/model/config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    task = json.loads((tmp_path / "run/model/task.json").read_text())
    assert abs(task["shift"]) > 1e-4
    assert verify_resume(tmp_path / "run", 4)["steps"] == 4
    page = report.write([tmp_path / "run"], tmp_path / "report.html").read_text("utf-8")
    assert page.count("<circle") >= len(bins) and "Calibration" in page and "calibration error" in page
    judge = RewardModel.load(tmp_path / "run")
    scores = judge.scores([talk for row in PAIRS for talk in candidates(row)])
    assert np.mean(scores[0::2]) == pytest.approx(0, abs=0.3) and np.mean(scores[1::2]) < -0.5
    both = predict(tmp_path / "run", [PAIRS[0], {"prompt": "say it", "completion": "thanks"}, FOUR, {"prompt": "say"}])
    assert (
        both[0]["scores"] == pytest.approx(scores[:2], abs=1e-5) and both[0]["answers"][0]["text"] == PAIRS[0]["chosen"]
    )
    assert both[1].keys() == {"score"} and len(both[2]["answers"]) == 4 and "no 'completion'" in both[3]["error"]
    assert judge.answers([Turn("user", "say it")], ["thanks"])[0] == pytest.approx(both[1]["score"], abs=1e-5)
    (tmp_path / "run/model/task.json").unlink()  # as trl leaves it: scores without the shift
    bare = predict(tmp_path / "run", [PAIRS[0]])[0]["scores"]
    assert [a - b for a, b in zip(both[0]["scores"], bare, strict=True)] == pytest.approx([task["shift"]] * 2, abs=1e-5)


def test_a_policy_is_no_reward_model(start: Path) -> None:
    with pytest.raises(UsageError, match="is no reward model: it has no head of one number; `stemma align reward"):
        RewardModel.load(start)


# ---------------------------------------------------------------- two models


def test_safety_comes_first() -> None:
    """By hand: tagged prompts and answers that are unsafe to 85 % have the safety score, others the helpfulness score;
    then mean 0 and variance 1."""
    helpful, safe = torch.tensor([1.0, 2.0, 3.0, -40.0]), torch.tensor([5.0, -2.0, -1.0, 60.0])
    tagged = torch.tensor([True, False, False, False])
    found = safety_first(helpful, safe, tagged)
    assert found.tolist() == [5.0, -2.0, 3.0, -40.0]  # sigmoid(-2) = 0.119 < 0.15 < 0.269 = sigmoid(-1)
    white = whitened(found)
    assert white.mean().item() == pytest.approx(0, abs=1e-6) and white.var(unbiased=False).item() == pytest.approx(
        1, abs=1e-6
    )
    assert whitened(torch.ones(3)).tolist() == [0, 0, 0]


def test_two_reward_models_as_one(tokenizer: Tokenizer) -> None:
    judges = []
    for _ in range(2):
        model = rewarding("llama", **{"dims.d_model": 24 + 12 * len(judges)})
        model.tokenizer, model.text = tokenizer, Text("bpe", pad_id=tokenizer.pad_id)
        judges.append(RewardModel(model))
    talks = [talk for row in PAIRS[:3] for talk in candidates(row)]
    helpful, safe = (torch.tensor(judge.scores(talks)) for judge in judges)
    tags = [True, False] * 3
    plain = SafetyFirst(*judges, threshold=0.5, white=False).scores(talks, tags)
    assert plain == pytest.approx(safety_first(helpful, safe, torch.tensor(tags), 0.5).tolist(), abs=1e-6)
    assert SafetyFirst(*judges, threshold=0.5).scores(talks, tags) == pytest.approx(
        whitened(torch.tensor(plain)).tolist(), abs=1e-5
    )
    with pytest.raises(UsageError, match=r"threshold=1\.5 must be a probability"):
        SafetyFirst(*judges, threshold=1.5)
