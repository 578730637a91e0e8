"""Objectives with a teacher, and texts that belong together."""

from __future__ import annotations

import collections
import hashlib
import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import stemma
from stemma import families, spec
from stemma.declare.family import Text
from stemma.declare.objectives import CLM, MLM, AttentionDistillation, Contrastive, Distillation
from stemma.errors import CheckpointError, DataError, UsageError
from stemma.nn.model import IGNORED, Model
from stemma.objectives import Objective, Setting, incompatible_reason, objective, teacher_mismatch
from stemma.objectives.distil import begin
from stemma.train import Run, assemble, read_metrics, resolve, resume, verify_resume
from test_objectives import Documents, Words, same, some, take
from test_train import loop_of, text, train  # noqa: F401
from tiny import build, tiny

BERT = Words(cls=1, sep=2, mask=3, pad=0, unk=4)
GPT = Words(bos=1, eos=2)
VOCAB = 200


def network(name: str, seed: int = 3, **dims: Any) -> Model:
    design = families.design(name)
    small = {"d_model": 32, "layers": 2, "heads": 4, "d_ff": 64, "vocab": VOCAB, "context": 32} | dims
    model = Model(design.arch, replace(design.dims, **small)).initialise(seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    return model


def made(goal: Any, mixed: bool = False, context: int = 32) -> Objective:
    causal = isinstance(goal, Distillation) and isinstance(goal.task, CLM)
    return objective(goal, Setting(GPT if causal else BERT, Text("wordpiece"), context, 1, mixed))


SOFT = Distillation("bert-base-uncased")
NANO = Distillation("gpt2", task=CLM(), cosine=0.0)
GOALS: dict[str, tuple[Any, str]] = {
    "distilbert": (SOFT, "distilbert"),
    "decoder": (NANO, "gpt2"),
    "minilm": (AttentionDistillation("bert-base-uncased"), "minilm"),
    "all-minilm": (Contrastive(group=6), "all-minilm"),
}
TEACHERS = {"distilbert": "bert", "decoder": "gpt2", "minilm": "bert"}


def nets_for(name: str) -> dict[str, Model]:
    wide = {"d_model": 48} if name == "minilm" else {}
    return {"teacher": network(TEACHERS[name], 9, layers=4, **wide)} if name in TEACHERS else {}


# ---------------------------------------------------------------- what all share


def test_golden_batches_at_a_fixed_seed() -> None:
    found = {}
    for name, (goal, _) in GOALS.items():
        digest = hashlib.sha256()
        for example, cursor in take(made(goal), some(), 6):
            for key in sorted(example):
                digest.update(np.ascontiguousarray(example[key]).tobytes())
            digest.update(repr(cursor).encode())
        found[name] = digest.hexdigest()[:12]
    assert found == GOLDEN


GOLDEN = {
    "all-minilm": "d5dfd209d45f",
    "decoder": "43e9138a4fa1",
    "distilbert": "a638b34aa182",
    "minilm": "d6d102c9dc15",
}


@pytest.mark.parametrize("name", GOALS)
@pytest.mark.parametrize("mixed", [False, True])
def test_a_stream_goes_on_from_any_cursor(name: str, mixed: bool) -> None:
    view, goal = some(8), GOALS[name][0]
    rows = take(made(goal, mixed), view, 40)
    assert rows[-1][1].slot >= 8
    for k in (0, 1, 7, 20, 33):
        for a, b in zip(take(made(goal, mixed), view, 6, rows[k][1]), rows[k + 1 :], strict=False):
            assert same(a, b)


@pytest.mark.parametrize("name", GOALS)
@pytest.mark.parametrize("mixed", [False, True])
def test_any_split_gives_the_same_gradient(name: str, mixed: bool) -> None:
    goal, model, nets = made(GOALS[name][0], mixed), network(GOALS[name][1]), nets_for(name)
    for net in nets.values():
        net.requires_grad_(False)
    examples = [e for e, _ in take(goal, some(30, 3, 60), 8)]

    def gradient(size: int) -> tuple[float, torch.Tensor]:
        model.zero_grad(set_to_none=True)
        batches = [goal.collate(examples[i : i + size]) for i in range(0, len(examples), size)]
        counts = collections.Counter[str]()
        for batch in batches:
            counts.update(goal.counts(batch))
        total = 0.0
        for batch in batches:
            loss = goal.loss(model, batch, nets)
            assert loss.counts == goal.counts(batch) and loss.sums.keys() == loss.counts.keys()
            loss.total(counts).backward()
            total += float(loss.total(counts))
        return total, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    whole = gradient(8)
    assert np.isfinite(whole[0]) and whole[1].isfinite().all() and whole[1].abs().max() > 0
    for size in (1, 3):
        total, found = gradient(size)
        assert total == pytest.approx(whole[0], rel=1e-5)
        assert (found - whole[1]).abs().max() < 1e-4 * float(whole[1].abs().max())
    last = [e for e, _ in goal.examples(some(), once=True)][-2:]
    assert goal.loss(model, goal.collate(last), nets).total().isfinite()


@pytest.mark.parametrize("name", ["distilbert", "decoder", "minilm"])
def test_a_document_is_deaf_to_its_neighbours(name: str) -> None:
    goal, model, nets = made(GOALS[name][0], context=64), network(GOALS[name][1], context=64), nets_for(name)
    nets = {"teacher": network(TEACHERS[name], 9, context=64)}
    batch = goal.collate([e for e, _ in take(goal, some(60, 6, 25), 3)])
    inside = batch["documents"] == 1
    wrong = {**batch, "input_ids": batch["input_ids"].clone()}
    wrong["input_ids"][inside] = 10 + (wrong["input_ids"][inside] + 1) % 100
    apart = batch["documents"].flatten() == 0
    places = apart.nonzero().squeeze(1)

    def only(b: dict[str, torch.Tensor]) -> dict[str, float]:
        where = torch.arange(b["documents"].numel()) if "where" not in b else b["where"]
        kept = apart[where]
        b = {**b, "targets": b["targets"][kept], "where": where[kept]}
        if "everywhere" in b:
            b["everywhere"] = places
        with torch.no_grad():
            return {k: float(v) for k, v in goal.loss(model, b, nets).sums.items()}

    assert only(batch) == only(wrong)


# ---------------------------------------------------------------- the formulas


@pytest.mark.parametrize("mixed", [False, True])
def test_distilberts_loss(mixed: bool) -> None:
    """5 * divergence at temperature 2 + 2 * masked tokens + 1 * cosine, by torch's own losses on whole tensors."""
    goal, student, teacher = made(SOFT, mixed), network("distilbert"), network("bert", 9, layers=4)
    examples = [e for e, _ in goal.examples(some(9), once=True)][-5:]
    batch = goal.collate(examples)
    rows = [(e["input_ids"], e["labels"], e["documents"]) for e in examples]
    mine, theirs, mine_last, theirs_last, labels = [], [], [], [], []
    with torch.no_grad():
        for ids, said, owner in rows:
            for d in [None] if mixed else range(int(owner.max()) + 1):
                at = owner >= 0 if d is None else owner == d
                one = torch.from_numpy(ids[at])[None]
                a, b = student(one), teacher(one)
                mine.append(a.logits[0]), theirs.append(b.logits[0])
                mine_last.append(a.hidden[0]), theirs_last.append(b.hidden[0])
                labels.append(torch.from_numpy(said[at]))
        s, t = torch.cat(mine), torch.cat(theirs)
        soft = nn.KLDivLoss(reduction="batchmean")(F.log_softmax(s / 2, -1), F.softmax(t / 2, -1)) * 4
        hard = nn.CrossEntropyLoss(ignore_index=IGNORED)(s, torch.cat(labels))
        h, k = torch.cat(mine_last), torch.cat(theirs_last)
        cosine = nn.CosineEmbeddingLoss()(h, k, torch.ones(len(h)))
        loss = goal.loss(student, batch, {"teacher": teacher})
    assert float(loss.total()) == pytest.approx(float(5 * soft + 2 * hard + cosine), rel=1e-5)
    assert float(loss.sums["soft"]) / loss.counts["soft"] == pytest.approx(float(soft), rel=1e-5)
    assert float(loss.sums["cosine"]) / loss.counts["cosine"] == pytest.approx(float(cosine), abs=1e-5)
    assert (SOFT.soft, SOFT.hard, SOFT.cosine, SOFT.temperature) == (5.0, 2.0, 1.0, 2.0)


@pytest.mark.parametrize(("name", "task"), [("xlm", MLM()), ("xlm-clm", CLM())])
def test_student_and_teacher_are_told_the_language(name: str, task: Any) -> None:
    model, teacher = build(tiny(name)), build(tiny(name))
    words = Words(bos=0, eos=1, pad=2, mask=5, cls=1, sep=1)
    goal = objective(Distillation("x", task), Setting(words, Text("gpt-bpe"), 16, 1))
    rows = [e for e, _ in take(goal, Documents([np.arange(10, 60)]), 3)]

    def apart(language: int) -> float:
        told = [e | {"langs": np.full(16, language, dtype=np.int64)} for e in rows]
        with torch.no_grad():
            return float(goal.loss(model, goal.collate(told), {"teacher": teacher}).sums["soft"])

    for net, least in ((teacher, 1e-2), (model, -1.0)):
        with torch.no_grad():
            net.embed.languages.weight[1] += torch.linspace(-1, 1, net.embed.languages.weight.shape[1])
        assert abs(apart(0)) < 1e-4 and (apart(1) > least if least > 0 else abs(apart(1)) < 1e-4)
    fewer = replace(model.dims, languages=2)
    assert "same table" in (teacher_mismatch(goal.spec, (model.arch, model.dims), (teacher.arch, fewer)) or "")


def test_a_decoders_distillation() -> None:
    goal, student, teacher = made(NANO, True), network("gpt2"), network("gpt2", 9, layers=4, d_model=64)
    batch = goal.collate([e for e, _ in take(goal, some(), 4)])
    with torch.no_grad():
        s, t = student(batch["input_ids"]).logits.flatten(0, 1), teacher(batch["input_ids"]).logits.flatten(0, 1)
        soft = nn.KLDivLoss(reduction="batchmean")(F.log_softmax(s / 2, -1), F.softmax(t / 2, -1)) * 4
        hard = F.cross_entropy(s, batch["targets"])
        loss = goal.loss(student, batch, {"teacher": teacher})
    assert float(loss.total()) == pytest.approx(float(5 * soft + 2 * hard), rel=1e-5) and "cosine" not in loss.sums


def test_many_targets_go_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    import stemma.objectives.distil as module

    goal, student, teacher = made(SOFT), network("distilbert"), network("bert", 9)
    batch = goal.collate([e for e, _ in take(goal, some(), 4)])
    whole = goal.loss(student, batch, {"teacher": teacher})
    monkeypatch.setattr(module, "LOGITS", VOCAB * 20)
    parts = goal.loss(student, batch, {"teacher": teacher})
    torch.testing.assert_close(whole.total(), parts.total())


def test_minilms_loss() -> None:
    """The divergence of the last layer's attention and of softmax(V V' / sqrt(width)), by hooks on the layers."""
    goal, student = made(GOALS["minilm"][0], True), network("minilm")
    teacher = network("bert", 9, layers=4, d_model=48)
    examples = [e for e, _ in goal.examples(some(9), once=True)][-4:]
    batch = goal.collate(examples)
    assert "attention_mask" in batch
    real = batch["attention_mask"].bool()

    def last(model: Model) -> tuple[torch.Tensor, torch.Tensor]:
        kept: list[torch.Tensor] = []
        attention = model.encoder.blocks[-1].attention  # type: ignore[union-attr]
        hook = attention.register_forward_pre_hook(lambda _, given: kept.append(given[0]))
        model(batch["input_ids"], batch["attention_mask"])
        hook.remove()
        width = model.dims.d_model // 4
        q, k, v = (
            linear(kept[0]).unflatten(-1, (4, width)).transpose(1, 2)
            for linear in (attention.q, attention.k, attention.v)
        )
        unseen = ~real[:, None, None, :]
        scores = [(a @ b.mT / math.sqrt(width)).masked_fill(unseen, -1e9).softmax(-1) for a, b in ((q, k), (v, v))]
        return scores[0], scores[1]

    with torch.no_grad():
        loss = goal.loss(student, batch, {"teacher": teacher})
        for name, ours, theirs in zip(("attention", "values"), last(student), last(teacher), strict=True):
            each = F.kl_div(ours.clamp_min(1e-30).log(), theirs, reduction="none").sum(-1).mean(1)[real]
            assert float(loss.sums[name]) == pytest.approx(float(each.sum()), rel=1e-4)
            assert loss.counts[name] == len(each)
        self = goal.loss(teacher, batch, {"teacher": teacher})
    assert float(self.total()) < 1e-6 < float(loss.total())


def test_the_contrastive_loss() -> None:
    """Cosines times 20, cross-entropy both ways, the mean of all tokens, one text at a time."""
    goal, model = made(Contrastive(group=5)), network("all-minilm")
    examples = [e for e, _ in take(goal, some(30), 3)]
    batch = goal.collate(examples)
    with torch.no_grad():
        found = goal.loss(model, batch)
        total = 0.0
        for e in examples:
            vectors = [
                model(torch.from_numpy(ids[mask == 1])[None]).hidden[0].mean(0)
                for ids, mask in zip(e["input_ids"], e["attention_mask"], strict=True)
            ]
            scores = torch.tensor(
                [[20 * float(F.cosine_similarity(a, b, dim=0)) for b in vectors[5:]] for a in vectors[:5]]
            )
            labels = torch.arange(5)
            total += float(F.cross_entropy(scores, labels) + F.cross_entropy(scores.T, labels)) / 2 / 3
    assert found.counts == {"pair": 15} and float(found.total()) == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("name", GOALS)
def test_it_is_learned(name: str) -> None:
    """What is minimised falls on texts that were not trained on; of distillation, the divergence from the teacher."""
    goal, nets = (
        made(replace(GOALS[name][0], start="fresh") if name in ("distilbert", "decoder") else GOALS[name][0]),
        nets_for(name),
    )
    model = network(GOALS[name][1]).train(False)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    rng = np.random.default_rng(3)

    def themed(n: int) -> Documents:  # a document's tokens are of few kinds, which its pieces share
        return Documents([rng.choice(np.arange(10, 150).reshape(14, 10)[rng.integers(14)], size=28) for _ in range(n)])

    held = goal.collate([e for e, _ in take(goal, themed(30), 8)])
    key = {"distilbert": "soft", "decoder": "soft", "minilm": "attention", "all-minilm": "pair"}[name]

    def quality() -> float:
        with torch.no_grad():
            loss = goal.loss(model, held, nets)
        return float(loss.sums[key]) / loss.counts[key]

    before = quality()
    examples = [e for e, _ in take(goal, themed(200), 160)]
    for i in range(0, 160, 4):
        optimizer.zero_grad()
        goal.loss(model, goal.collate(examples[i : i + 4]), nets).total().backward()
        optimizer.step()
    assert quality() < 0.6 * before


# ---------------------------------------------------------------- rows


def test_pairs_are_neighbours() -> None:
    """Sentences of 7 tokens; every document's pair once an epoch, halves where there is one sentence."""
    sizes = [30, 5, 70, 1, 22, 2, 40]
    edges = np.cumsum([10, *sizes])
    view = Documents([np.arange(a, b) for a, b in itertools.pairwise(edges)])
    tokenizer = Words(cls=1, sep=2, pad=0)
    goal = objective(Contrastive(group=4), Setting(tokenizer, Text("wordpiece"), 32, 1))
    seen, places = [], set()
    for epoch in range(8):
        rows = [e for e, _ in take(goal, view, 2 * 8)][2 * epoch : 2 * epoch + 2]
        for e in rows:
            n = len(e["input_ids"]) // 2
            for a, b, ma, mb in zip(
                e["input_ids"][:n], e["input_ids"][n:], e["attention_mask"][:n], e["attention_mask"][n:], strict=True
            ):
                a, b = a[ma == 1], b[mb == 1]
                assert a[0] == b[0] == 1 and a[-1] == b[-1] == 2
                pair = [*a[1:-1], *b[1:-1]]
                assert (np.diff(pair) == 1).all() and len(a) > 2 and len(b) > 2
                owner = next(i for i, d in enumerate(view.documents) if pair[0] in d)
                assert pair[-1] in view[owner] and len(a) - 2 in (7, len(view[owner]) // 2)
                seen.append(owner)
                places.add(int(pair[0]))
    assert 3 not in seen and min(collections.Counter(seen).values()) >= 8 and len(places) > 14
    with pytest.raises(DataError, match="no pair"):
        next(goal.examples(Documents([[10], [11]])))


def test_rows_of_relations_are_the_text() -> None:
    view, goal = some(20), made(GOALS["minilm"][0])
    read = [t for e, _ in goal.examples(view, once=True) for t in e["input_ids"].tolist() if t >= 10]
    assert sorted(read) == sorted(t for d in view.documents for t in d.tolist())


# ---------------------------------------------------------------- teachers


def test_a_student_begins_as_every_second_layer() -> None:
    teacher = network("bert", 9, layers=12)
    student = network("distilbert", layers=6)
    begin(student, teacher)
    ours, theirs = dict(student.named_parameters()), dict(teacher.named_parameters())
    for k, of in enumerate((0, 2, 4, 7, 9, 11)):
        for name in ("attention.q.weight", "mlp.up.bias", "attention_norm.weight"):
            assert torch.equal(ours[f"encoder.blocks.{k}.{name}"], theirs[f"encoder.blocks.{of}.{name}"])
    for name in ("embed.tokens.weight", "encoder.embed_norm.weight"):
        assert torch.equal(ours[name], theirs[name])
    assert all(torch.equal(p, theirs[n]) for n, p in ours.items() if n.startswith("lm."))


def test_what_does_not_fit_is_refused() -> None:
    def fit(goal: Any, student: Model, teacher: Model) -> str:
        return str(teacher_mismatch(goal, (student.arch, student.dims), (teacher.arch, teacher.dims)))

    bert, wide, gpt = network("bert"), network("bert", d_model=48), network("gpt2")
    assert fit(SOFT, network("distilbert"), bert) == "None"
    assert "objective.cosine=0" in fit(SOFT, network("distilbert"), wide)
    assert "objective.start=fresh" in fit(replace(SOFT, cosine=0.0), network("distilbert"), wide)
    assert fit(replace(SOFT, cosine=0.0, start="fresh"), network("distilbert"), wide) == "None"
    assert "dims.layers" in fit(SOFT, network("distilbert", layers=3), bert)
    assert "structure decoder" in fit(SOFT, network("distilbert"), gpt)
    assert "set dims.heads=4" in fit(AttentionDistillation("x"), network("minilm", heads=2), bert)
    assert "encoder" in str(incompatible_reason(SOFT, gpt.arch)) and incompatible_reason(NANO, gpt.arch) is None
    assert "decoder" in str(incompatible_reason(NANO, bert.arch))
    with pytest.raises(UsageError, match="pairs"):
        Distillation("x", task=MLM(pairs=True))
    with pytest.raises(UsageError, match="must not all be 0"):
        Distillation("x", soft=0, hard=0, cosine=0)
    with pytest.raises(UsageError, match="at least 2 pairs"):
        Contrastive(group=1)


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory, text: Path) -> dict[str, Run]:  # noqa: F811
    home = tmp_path_factory.mktemp("teachers")
    changes = {"dims.layers": 2}
    return {name: train(name, home / name, text, 3, changes) for name in ("bert", "roberta", "gpt2")}


CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "distilbert": ("distilbert", "bert", {}),
    "distilroberta": ("distilroberta", "roberta", {}),
    "minilm": ("minilm", "bert", {}),
    "decoder": (
        "llama",
        "gpt2",
        {"objective": {"kind": "Distillation", "task": "CLM", "cosine": 0.0, "start": "fresh", "teacher": "gpt2"}},
    ),
    "all-minilm": ("all-minilm", "", {"objective.group": 4}),
}


@pytest.mark.parametrize("case", CASES)
def test_runs_end_to_end(case: str, taught: dict[str, Run], text: Path, tmp_path: Path) -> None:  # noqa: F811
    name, teacher, changes = CASES[case]
    changes = dict(changes)
    if teacher:
        changes["objective.teacher"] = str(taught[teacher].directory / "model")
    run = train(name, tmp_path / "run", text, 4, changes)
    assert verify_resume(tmp_path / "run", 4)["identical"]
    model = stemma.load(tmp_path / "run" / "model")
    for (k, a), b in zip(run.model.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(a, b), k
    assert not (tmp_path / "run" / "teacher").exists()
    if teacher:
        assert model.tokenizer.fingerprint == taught[teacher].tokenizer.fingerprint
        loop = assemble.loop_of(run.plan, run.tokenizer, some())
        assert not loop.nets["teacher"].training and not any(p.requires_grad for p in loop.nets["teacher"].parameters())
        assert not any("teacher" in k for k in loop.learners.tensors())
        saved = json.loads((tmp_path / "run" / "run.json").read_text())["plan"]["nets"][0]
        assert len(saved["fingerprint"]) == 32 and saved["weights"]


def test_a_teacher_that_changed_is_noticed(taught: dict[str, Run], text: Path, tmp_path: Path) -> None:  # noqa: F811
    import shutil

    place = tmp_path / "teacher"
    shutil.copytree(taught["bert"].directory / "model", place)
    run = train("distilbert", tmp_path / "run", text, 4, {"objective.teacher": str(place), "train.save_every": 2})
    shutil.rmtree(run.directory / "checkpoints" / "step-000004")
    (run.directory / "summary.json").unlink()
    model = stemma.load(place)
    with torch.no_grad():
        model.embed.tokens.weight[5] += 1
    model.save(str(place))
    with pytest.raises(CheckpointError, match="its weights changed"):
        resume(run.directory, quiet=True)
    shutil.rmtree(place)
    with pytest.raises(CheckpointError, match="is gone"):
        resume(run.directory, quiet=True)
    shutil.copytree(taught["bert"].directory / "model", place)
    before = [r["loss"] for r in read_metrics(run.directory)]
    assert resume(run.directory, quiet=True).finished
    assert [r["loss"] for r in read_metrics(run.directory)] == before


def test_missing_or_wrong_teachers(taught: dict[str, Run], text: Path, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(UsageError, match="whose weights are needed"):
        train("distilbert", tmp_path / "a", text, 2)
    with pytest.raises(UsageError, match="no folder here, no hub id and no size"):
        resolve("distilbert", overrides={"objective.teacher": "nobody"})
    with pytest.raises(UsageError, match="cannot learn from"):
        train("distilbert", tmp_path / "b", text, 2, {"objective.teacher": str(taught["gpt2"].directory / "model")})
    with pytest.raises(UsageError, match="another one was given"):
        train(
            "distilbert",
            tmp_path / "c",
            text,
            2,
            {"objective.teacher": str(taught["bert"].directory / "model")},
            tokenizer=taught["roberta"].tokenizer,
        )
    assert not any((tmp_path / k).exists() for k in "abc")


def test_students_are_scaled_with_their_teachers() -> None:
    found = {n: resolve(n).dims for n in ("bert", "distilbert", "minilm", "distilroberta")}
    bert = found["bert"]
    assert (found["distilbert"].d_model, found["distilbert"].layers) == (bert.d_model, bert.layers // 2)
    assert (found["minilm"].d_model, found["minilm"].layers) == (bert.d_model // 2, bert.layers)
    assert found["minilm"].heads == bert.heads and found["distilroberta"].layers == bert.layers // 2
    assert resolve("minilm", scale="small").dims.heads == resolve("bert", scale="small").dims.heads
    group: Any = resolve("all-minilm").objective
    assert group.group == 16 and spec.get(families.design("all-minilm"), "objective.group") == 1024
