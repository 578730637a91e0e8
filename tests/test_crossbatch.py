"""LongLLaMA's training: rows that see other rows of the batch as memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import stemma
from reference import crossbatch as reference
from reference.longllama import LongLlama
from stemma import families
from stemma.declare.objectives import CLM, CrossBatch
from stemma.errors import UsageError
from stemma.nn.inputs import Inputs
from stemma.nn.model import IGNORED, Model
from stemma.nn.parts import Memory
from stemma.objectives import Setting, incompatible_reason, objective
from stemma.objectives.crossbatch import CrossRows, seen_rows
from stemma.train import pretrain, verify_resume
from test_objectives import TOKENIZERS, same, some, take
from test_train import words
from tiny import build, tiny


def long_model(layers: tuple[int, ...] = (0, 2), **changes: Any) -> Model:
    d = tiny("longllama", **{"dims.context": 8, "arch.mask": Memory(layers, 4, "float32"), **changes})
    return build(d).double()


def rows_of(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 83, (rows, length), generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- attention

STEPPED = [[*range(i - 1, i - 1 - n, -1)] for i, n in enumerate(reference.steps(8, 4, 6))]
ODD = [[], [0], [], [0, 2], [3], [1, 3, 4], [], [0]]  # any earlier rows, in any number


@pytest.mark.parametrize("contexts", [STEPPED, ODD], ids=["steps", "odd"])
def test_logits_and_gradients_equal_plain_loops(contexts: list[list[int]]) -> None:
    """Of all parameters: the gradient goes through the keys and values of other rows too."""
    model, ids = long_model().train(), rows_of(8, 5)
    labels = rows_of(8, 5, seed=1)

    def loss(logits: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())

    p = {name: x.detach().clone().requires_grad_() for name, x in model.named_parameters()}
    want, _ = reference.forward(p, ids.tolist(), contexts, 3, 6, (0, 2))
    got = model.logits(model.decode(Inputs(ids, contexts=contexts)))
    assert (got - want).abs().max() < 1e-6  # angles are fp32 here
    loss(want).backward()
    loss(got).backward()
    for name, x in model.named_parameters():
        assert x.grad is not None and p[name].grad is not None
        assert (x.grad - p[name].grad).abs().max() < 1e-6, name
    alone = model.logits(model.decode(Inputs(ids, contexts=[[] for _ in ids])))
    assert (alone[0] - got[0]).abs().max() < 1e-12 and (alone[-1] - got[-1]).abs().max() > 1e-4


@pytest.mark.parametrize("shared", [None, 2])
def test_training_and_evaluation_take_the_same_attention(shared: int | None) -> None:
    """Matrix products of short rows, and torch's fused kernel; with heads that share keys too."""
    model, ids = long_model(**{"dims.kv_heads": shared}), rows_of(8, 7)
    found = [model.train(mode).decode(Inputs(ids, contexts=STEPPED)) for mode in (True, False)]
    assert (found[0] - found[1]).abs().max() < 1e-12


def test_a_later_row_changes_no_earlier_one() -> None:
    model, ids = long_model(), rows_of(8, 6)
    other = ids.clone()
    other[5, 2] = (other[5, 2] + 1) % 83
    before, after = (model.decode(Inputs(x, contexts=STEPPED)) for x in (ids, other))
    assert torch.equal(before[:5], after[:5]) and torch.equal(before[5, :2], after[5, :2])
    assert (before[6, 0] - after[6, 0]).abs().max() > 1e-6


def test_rows_without_others_are_read_at_once() -> None:
    """Longer than what is read at once in use, and with several documents in them."""
    model, ids = long_model(), rows_of(2, 8)
    free = [[], []]
    whole = model.decode(Inputs(ids, contexts=free))
    assert (whole[:, :4] - model.decode(Inputs(ids[:, :4]))).abs().max() < 1e-12
    assert (whole - model.decode(Inputs(ids))).abs().max() > 1e-4  # in windows
    documents = torch.tensor([[0] * 3 + [1] * 5] * 2)
    apart = model.decode(Inputs(ids, contexts=free, documents=documents))
    assert (apart[:, :3] - whole[:, :3]).abs().max() < 1e-12
    assert (apart[:, 3:] - model.decode(Inputs(ids[:, 3:], contexts=free))).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"contexts": [[], [0]]}, "each of the 3 rows"),
        ({"contexts": [[], [1], []]}, "row 1 cannot see row 1"),
        ({"contexts": [[], [0], [-1]]}, "row 2 cannot see row -1"),
        ({"documents": torch.zeros(3, 5, dtype=torch.int64)}, "no documents"),
        ({"attention_mask": torch.ones(3, 5, dtype=torch.int64)}, "no attention_mask"),
        ({"position_ids": torch.arange(5)[None]}, "no position_ids"),
    ],
)
def test_contexts_that_do_not_fit_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        long_model().decode(Inputs(rows_of(3, 5), **{"contexts": [[], [0], [1, 0]], **changes}))


def test_contexts_need_memory_layers() -> None:
    with pytest.raises(UsageError, match="mask with memory layers"):
        build(tiny("llama")).decode(Inputs(rows_of(3, 5), contexts=[[], [0], []]))


# ---------------------------------------------------------------- rows


def test_the_published_step_schedule() -> None:
    assert [len(seen) for seen in seen_rows(CrossBatch(6, rows=4, texts=2))] == [0, 1, 2, 3, 0, 3, 6, 6]
    assert seen_rows(CrossBatch(6, rows=4, texts=2))[6] == (5, 4, 3, 2, 1, 0)
    wrong = []
    for rows in (2, 3, 4, 8):
        for texts in (1, 2, 5):
            for extra in (0, 1, 2, 6, 15):
                got = [len(seen) for seen in seen_rows(CrossBatch(extra, rows=rows, texts=texts))]
                if got != reference.steps(rows * texts, rows, extra):
                    wrong.append((rows, texts, extra, got))
    assert not wrong
    # without a stretch of rows that is one text there are no steps
    assert [len(seen) for seen in seen_rows(CrossBatch(3, rows=1, texts=6))] == [0, 1, 2, 3, 3, 3]


def test_the_papers_mixture_of_own_rows_and_others() -> None:
    spec = families.design("longllama-code-7b").objective
    assert isinstance(spec, CrossBatch) and spec.mixture == ((0, 0), (1, 2), (2, 5), (3, 4))
    seen = seen_rows(spec)
    assert [len(s) for s in seen[:4]] == [0, 1, 2, 3]  # nothing stands before the first text
    assert seen[9:12] == ((8, 7, 6), (9, 8, 7, 6, 5, 4, 3), (10, 9, 8, 7, 6, 5, 4))
    smaller = families.design("longllama-3b").objective
    assert isinstance(smaller, CrossBatch) and seen_rows(smaller)[4:8] == ((), (4, 3), (5, 4, 3), (6, 5, 4))


def goal(spec: CrossBatch, context: int = 8, seed: int = 1) -> CrossRows:
    found = objective(spec, Setting(TOKENIZERS["llama"], families.design("longllama").text, context, seed))
    assert isinstance(found, CrossRows)
    return found


def test_rows_are_the_stream_of_texts_in_their_order() -> None:
    """`bos text eos bos text eos`, cut into stretches of whole rows, one text behind another, no padding inside, and every
    token a target once, also where a document begins."""
    view, here = some(7, 5, 70), goal(CrossBatch(2, rows=3, texts=2))
    order = here.order(view)
    stream = [t for i in range(7) for t in (1, *view[order[i][0]].tolist(), 2)]
    packs = [e for e, _ in here.examples(view, once=True)]
    ids = np.concatenate([e["input_ids"] for e in packs])
    labels = np.concatenate([e["labels"] for e in packs])
    assert ids.shape[1] == 8 and len(ids) % 6 == 0 and len(packs) == -(-(len(stream) - 1) // 48)
    assert ids.flatten()[: len(stream)].tolist() == stream
    assert labels.flatten()[: len(stream) - 1].tolist() == stream[1:]
    assert (labels.flatten()[len(stream) - 1 :] == IGNORED).all()
    assert (
        ids[1].tolist() == stream[8:16] and ids[3].tolist() == stream[24:32]
    )  # a row goes on where the one before ended


def test_packs_are_gone_on_with_anywhere() -> None:
    view, here = some(12, 5, 60), goal(CrossBatch(2, rows=2, texts=3))
    packs = take(here, view, 9)
    for i in (1, 4, 7):
        assert all(same(a, b) for a, b in zip(packs[i:], take(here, view, 9 - i, packs[i - 1][1]), strict=True))
    again = [e for e, _ in here.examples(view, once=True)]  # one epoch, padded at its end
    assert all(e["input_ids"].shape == (6, 8) for e in again)


def small(mask: Memory = Memory((1,), 4, "float32"), layers: int = 2) -> Model:
    dims = {"d_model": 32, "layers": layers, "heads": 4, "d_ff": 48, "vocab": 200, "context": 8}
    model = stemma.build("longllama", **dims, seed=3)
    assert isinstance(model.arch.mask, Memory)
    changed = Model(stemma.spec.edit(model.arch, {"mask": mask}), model.dims).double()
    changed.load_state_dict(model.state_dict())
    return changed


@pytest.mark.parametrize("spec", [CrossBatch(6), CrossBatch(texts=3, mixture=((0, 0), (1, 2), (2, 5), (3, 4)))])
def test_the_loss_of_a_batch_equals_plain_loops(spec: CrossBatch) -> None:
    """Of two packs, which do not see each other; their micro-batches have the same gradient, and in evaluation a row
    sees no other."""
    here, model, view = goal(spec), small(), some(30, 5, 60)
    packs = [e for e, _ in take(here, view, 2)]
    batch = here.collate(packs)
    ids = batch["input_ids"]
    many = spec.rows * spec.texts
    contexts = [[first + i for i in seen] for first in (0, many) for seen in seen_rows(spec)]
    p = {name: x.detach() for name, x in model.named_parameters()}
    logits, _ = reference.forward(p, ids.tolist(), contexts, 2, 4, (1,))
    want = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["targets"], reduction="sum")
    got = here.loss(model.train(), batch).sums["token"]
    assert abs(got - want) < 1e-6 * abs(want) and len(batch["targets"]) == ids.numel()
    halves = sum(here.loss(model, here.collate([pack])).sums["token"] for pack in packs)
    assert abs(halves - got) < 1e-6 * abs(got)
    plain = objective(CLM(), here.setting)
    one = {**batch, "input_ids": ids}
    assert torch.equal(here.loss(model.eval(), batch).sums["token"], plain.loss(model, one).sums["token"])
    assert abs(here.loss(model, batch).sums["token"] - got) > 1e-3


def test_what_it_cannot_train_is_refused() -> None:
    arch = families.design("llama").arch
    assert "begin from longllama" in str(incompatible_reason(CrossBatch(), arch))
    alibi = stemma.spec.edit(arch, {"mask": Memory((1,)), "position": "ALiBi()"})
    assert "not Rotary" in str(incompatible_reason(CrossBatch(), alibi))
    with pytest.raises(UsageError, match=r"one for each of objective\.rows=4"):
        CrossBatch(mixture=((0, 0),))
    with pytest.raises(UsageError, match="row 0 of a text has 0 rows before it"):
        CrossBatch(rows=2, mixture=((1, 0), (1, 1)))


# ---------------------------------------------------------------- runs

SMALL: dict[str, Any] = {
    "dims.d_model": 32, "dims.layers": 2, "dims.heads": 2, "dims.d_ff": 48, "dims.vocab": 320, "dims.context": 16,
    "arch.mask": Memory((1,), 8, "float32"), "recipe.batch": 256, "train.eval_tokens": 400, "train.threads": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in words(160)), "utf-8")
    return str(path)


def test_a_model_trained_across_rows_is_read_by_the_reference(text: str, tmp_path: Path) -> None:
    """Pretrained small with its own objective, saved in its publisher's layout, resumed exactly, and past its window it
    reads as the reference does."""
    run = pretrain("longllama", data=text, out=tmp_path / "run", budget="12 steps", overrides=SMALL, quiet=True)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0] - 0.3 and "bits_per_byte" in run.summary["val"]
    verify_resume(tmp_path / "run", steps=2)
    model = stemma.load(tmp_path / "run" / "model").double()
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["model_type"] == "longllama" and config["mem_layers"] == [1]
    plain = {k: v.detach() for k, v in model.named_parameters()}
    judge = LongLlama(plain, 2, 2, 10_000.0, model.arch.norm.eps, 16, 8, (1,), torch.float32)
    ids = torch.randint(5, 300, (45,), generator=torch.Generator().manual_seed(4)).tolist()
    with torch.no_grad():
        assert (model(torch.tensor([ids])).logits[0] - judge.prompt(ids)).abs().max() < 1e-5


def test_rows_of_several_documents_train_a_model_with_memory(text: str, tmp_path: Path) -> None:
    """The next token, packed with documents apart: rows longer than what is read at once in use."""
    settings = SMALL | {"objective": CLM(), "recipe.mixed": False}
    run = pretrain("longllama", data=text, out=tmp_path / "run", budget="3 steps", overrides=settings, quiet=True)
    assert run.summary["val"]["bits_per_byte"] > 0
