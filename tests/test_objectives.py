"""Objectives: what is masked, packed and predicted, in which order, and that it can be gone on with."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stemma import families, spec
from stemma.declare.family import Text
from stemma.declare.objectives import CLM, MLM, Spans
from stemma.errors import DataError, UsageError
from stemma.nn.model import IGNORED, Model
from stemma.objectives import Cursor, Objective, Setting, objective
from stemma.objectives.spans import Sizes, SpanCorruption, partition, raw_length

VOCAB, PLAIN = 200, 150  # ids 10..149 are text


class Words:
    """A tokenizer as far as objectives look at it."""

    kind = "wordpiece"

    def __init__(self, **ids: int) -> None:
        self.vocab_size, self.sentinels = VOCAB, 40
        for role in ("bos", "eos", "pad", "unk", "mask", "cls", "sep"):
            setattr(self, f"{role}_id", ids.get(role))
        self.special_ids = {*ids.values(), *(self.sentinel(k) for k in range(40))}

    def sentinel(self, k: int) -> int:
        return VOCAB - 1 - k

    def tokens(self, ids: Any) -> list[str]:
        return [f"w{i}" for i in ids]


class Documents:
    """A view in memory."""

    def __init__(self, documents: list[Any]) -> None:
        self.documents = [np.asarray(d, dtype=np.int64) for d in documents]

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, i: int) -> Any:
        return self.documents[i]

    def closed(self, i: int) -> bool:
        return True

    def sentences(self, i: int) -> Any:
        return np.arange(0, len(self.documents[i]), 7)


def some(n: int = 30, low: int = 3, high: int = 90, seed: int = 0) -> Documents:
    rng = np.random.default_rng(seed)
    return Documents([rng.integers(10, PLAIN, size=rng.integers(low, high)) for _ in range(n)])


TOKENIZERS = {
    "gpt1": Words(),
    "gpt2": Words(bos=1, eos=1),
    "gpt3": Words(bos=1, eos=1),
    "llama": Words(bos=1, eos=2),
    "mistral": Words(bos=1, eos=2),
    "bert": Words(cls=1, sep=2, mask=3, pad=0, unk=4),
    "roberta": Words(bos=1, cls=1, eos=2, sep=2, mask=3, pad=0),
    "t5": Words(eos=1, pad=0),
    "t5-v1.1": Words(eos=1, pad=0),
}
CASES = [(name, mixed) for name in TOKENIZERS for mixed in (False, True)]


def make(name: str, mixed: bool = False, context: int = 32, seed: int = 1) -> Objective:
    design = families.design(name)
    return objective(design.objective, Setting(TOKENIZERS[name], design.text, context, seed, mixed))


def network(name: str, context: int = 32) -> Model:
    design = families.design(name)
    kv = 2 if name == "mistral" else None
    dims = replace(
        design.dims, d_model=32, layers=2, heads=4, kv_heads=kv, head_dim=None, d_ff=64, vocab=VOCAB, context=context
    )
    arch = spec.edit(design.arch, {"position.padding": 0}) if name == "roberta" else design.arch
    return Model(arch, dims).initialise(3).eval()


def take(goal: Objective, view: Any, n: int, cursor: Cursor = Cursor()) -> list[Any]:
    return list(itertools.islice(goal.examples(view, cursor), n))


def same(a: Any, b: Any) -> bool:
    return a[1] == b[1] and a[0].keys() == b[0].keys() and all(np.array_equal(a[0][k], b[0][k]) for k in a[0])


# ---------------------------------------------------------------- golden


def test_golden_clm() -> None:
    view = Documents([[11, 12, 13], [21, 22, 23, 24, 25, 26], [31, 32]])
    rows = [e for e, _ in objective(CLM(), Setting(TOKENIZERS["llama"], Text("bpe"), 8, 7)).examples(view, once=True)]
    order = objective(CLM(), Setting(TOKENIZERS["llama"], Text("bpe"), 8, 7)).order(view)
    stream = [t for d in (order[i][0] for i in range(3)) for t in (1, *view[d], 2)]
    assert rows[0]["input_ids"].tolist() == stream[:8]
    assert rows[1]["input_ids"].tolist() == stream[8:16]
    for i, row in enumerate(rows):
        for j, goal in enumerate(row["labels"]):
            at = i * 8 + j
            if at + 1 >= len(stream) or stream[at] == 2:  # no document's start is predicted from another
                assert goal == IGNORED
            else:
                assert goal == stream[at + 1]


def test_golden_batches_at_a_fixed_seed() -> None:
    """What a seed means must not drift: a digest of the first rows of every objective."""
    import hashlib

    found = {}
    for name, mixed in (
        ("gpt2", False),
        ("llama", True),
        ("roberta", False),
        ("bert", True),
        ("t5", False),
        ("t5", True),
    ):
        digest = hashlib.sha256()
        for example, cursor in take(make(name, mixed), some(), 6):
            for key in sorted(example):
                digest.update(np.ascontiguousarray(example[key]).tobytes())
            digest.update(repr(cursor).encode())
        found[f"{name} {mixed}"] = digest.hexdigest()[:12]
    assert found == GOLDEN


GOLDEN = {
    "bert True": "0ae2f57cc78c",
    "gpt2 False": "abf040b3d2df",
    "llama True": "fa708a062d4b",
    "roberta False": "a638b34aa182",
    "t5 False": "5620e7265037",
    "t5 True": "816d9001f0db",
}


# ---------------------------------------------------------------- order and resuming


@pytest.mark.parametrize(("name", "mixed"), CASES)
def test_a_stream_goes_on_from_any_cursor(name: str, mixed: bool) -> None:
    view, goal = some(8), make(name, mixed)
    rows = take(goal, view, 40)
    assert rows[-1][1].slot >= 8
    for k in (0, 1, 7, 20, 33):
        for a, b in zip(take(make(name, mixed), view, 6, rows[k][1]), rows[k + 1 :], strict=False):
            assert same(a, b)


def test_the_order_is_new_each_epoch_and_the_seed_decides() -> None:
    view = some(50)

    def order(seed: int = 1) -> list[list[int]]:
        found = make("gpt2", seed=seed).order(view)
        assert [found[slot][1] for slot in range(150)] == [slot // 50 for slot in range(150)]
        return [[found[slot][0] for slot in range(e * 50, e * 50 + 50)] for e in range(3)]

    assert all(sorted(o) == list(range(50)) for o in order())
    assert order()[0] != order()[1] != order()[2]
    assert order(2)[0] != order()[0]
    assert order() == order()


@pytest.mark.parametrize(("name", "mixed"), [c for c in CASES if c[0] != "bert"])
def test_an_epoch_holds_every_token_exactly_once(name: str, mixed: bool) -> None:
    view = some(20)
    seen: list[int] = []
    for example, _ in make(name, mixed).examples(view, once=True):
        if "decoder_input_ids" in example:
            seen += example["input_ids"].tolist() + [t for t in example["labels"] if t != IGNORED]
        elif name == "roberta":
            seen += np.where(example["labels"] != IGNORED, example["labels"], example["input_ids"]).tolist()
        else:
            seen += [t for t in example["labels"] if t != IGNORED]
    text = sorted(t for i in range(20) for t in view[i])
    found = sorted(t for t in seen if 10 <= t < PLAIN)
    if name == "gpt1" and not mixed:  # without a bos the first token of a document is nobody's target
        text = sorted(t for i in range(20) for t in view[i][1:])
    elif name == "gpt1":
        first = view[make(name, mixed).order(view)[0][0]][0]
        text.remove(first)
    assert found == text


def test_an_empty_view_is_refused() -> None:
    with pytest.raises(DataError):
        next(make("gpt2").examples(Documents([])))
    with pytest.raises(DataError, match="every document is empty"):
        next(make("t5").examples(Documents([[], []])))


# ---------------------------------------------------------------- masking


def test_masking_rates() -> None:
    view, goal = some(400, 20, 200), make("roberta", context=128)
    rows = [e for e, _ in goal.examples(view, once=True)]
    inputs, labels = (np.concatenate([r[k] for r in rows]) for k in ("input_ids", "labels"))
    text = np.where(labels != IGNORED, labels, inputs)
    plain, chosen = text >= 10, labels != IGNORED
    n = chosen.sum()
    assert not (chosen & ~plain).any()  # no special token is a target
    assert chosen.sum() / plain.sum() == pytest.approx(0.15, abs=0.004)
    kinds = inputs[chosen]
    assert (kinds == 3).mean() == pytest.approx(0.8, abs=4 * (0.16 / n) ** 0.5)
    assert (kinds == labels[chosen]).mean() == pytest.approx(0.1 + 0.1 / 140, abs=4 * (0.09 / n) ** 0.5)
    special = np.array(sorted(TOKENIZERS["roberta"].special_ids - {3}))
    assert not np.isin(kinds, special).any()  # nor is one put in at random


@pytest.mark.parametrize("copies", [0, 2])
def test_masks_repeat_as_declared(copies: int) -> None:
    view = Documents([np.arange(10, 110)])
    goal = objective(MLM(copies=copies), Setting(TOKENIZERS["roberta"], Text("bpe"), 102, 1))
    rows = [e["labels"].tolist() for e, _ in take(goal, view, 4)]  # one window an epoch
    assert rows[0] != rows[1]
    assert (rows[0] == rows[2]) == (rows[1] == rows[3]) == (copies == 2)


def test_every_window_has_a_target() -> None:
    goal = objective(MLM(rate=0.01), Setting(TOKENIZERS["roberta"], Text("bpe"), 8, 1))
    rows = take(goal, some(20), 200)
    assert all((e["labels"] != IGNORED).any() for e, _ in rows)
    nothing = goal.collate([{**rows[0][0], "labels": np.full(8, IGNORED)}])
    assert goal.counts(nothing) == {"token": 0} and goal.loss(network("roberta"), nothing).sums["token"] == 0


# ---------------------------------------------------------------- sentence pairs


def test_pairs_are_what_bert_reads() -> None:
    view, goal = some(200, 30, 300), make("bert", context=64)
    rows = [e for e, _ in take(goal, view, 1500)]
    labels = np.array([int(e["pair_labels"]) for e in rows])
    assert 0.45 < labels.mean() < 0.65  # documents of one sentence left can only be followed by a random one
    where = {tuple(view[d][i : i + 5]): (d, i) for d in range(len(view)) for i in range(len(view[d]) - 4)}
    followed = 0
    for e in rows:
        ids = np.where(e["labels"] != IGNORED, e["labels"], e["input_ids"])
        n = int(e["attention_mask"].sum())
        assert len(ids) == 64 and ids[0] == 1 and ids[n - 1] == 2 and (ids[n:] == 0).all()
        cuts = np.flatnonzero(ids[:n] == 2)
        assert len(cuts) == 2 and cuts[0] > 1 and cuts[1] > cuts[0] + 1
        assert (e["token_type_ids"][: cuts[0] + 1] == 0).all() and (e["token_type_ids"][cuts[0] + 1 : n] == 1).all()
        chosen = e["labels"] != IGNORED
        assert chosen.sum() == min(10, max(1, round(0.15 * n))) and not chosen[[0, *cuts]].any()
        a, b = ids[1 : cuts[0]], ids[cuts[0] + 1 : n - 1]
        if len(a) >= 5 and len(b) >= 5:
            first, second = where.get(tuple(a[-5:])), where.get(tuple(b[:5]))
            if first and second:
                if e["pair_labels"] == 0:
                    followed += first[0] == second[0]
                    assert first[0] == second[0]
                else:
                    assert first[0] != second[0] or len(view) == 1
    assert followed > 100
    lengths = np.array([int(e["attention_mask"].sum()) for e in rows])
    assert (lengths == 64).mean() > 0.3


def test_a_pair_head_is_needed() -> None:
    goal = make("bert")
    batch = goal.collate([e for e, _ in take(goal, some(), 2)])
    model = network("bert")
    model.pair = None
    with pytest.raises(UsageError, match="pair"):
        goal.loss(model, batch)


# ---------------------------------------------------------------- spans


def test_published_lengths() -> None:
    assert raw_length(Spans(), 512) == 568 and Sizes(Spans(), 568).inputs == 512 and Sizes(Spans(), 568).targets == 114
    assert raw_length(Spans(), 1024) == 1137 and Sizes(Spans(), 1137).targets == 229


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 10**6))
def test_a_partition_has_no_empty_part(items: int, parts: int, seed: int) -> None:
    if parts > items:
        return
    cut = partition(items, parts, np.random.default_rng(seed))
    assert len(cut) == parts and cut.sum() == items and cut.min() >= 1


def rebuild(inputs: list[int], goal: list[int]) -> list[int]:
    """The text of one corrupted pair, both without padding."""
    assert inputs[-1] == 1 and goal[-1] == 1
    spans: dict[int, list[int]] = {}
    key = -1
    for t in goal[:-1]:
        if t >= VOCAB - 40:
            key = t
            spans[key] = []
        else:
            spans[key].append(t)
    assert list(spans) == [VOCAB - 1 - k for k in range(len(spans))]
    assert all(spans.values())
    return [t for token in inputs[:-1] for t in (spans[token] if token >= VOCAB - 40 else [token])]


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 100), st.integers(0, 10**6))
def test_a_text_can_be_rebuilt_from_inputs_and_targets(length: int, seed: int) -> None:
    goal = make("t5", context=96)
    assert isinstance(goal, SpanCorruption)
    tokens = np.random.default_rng(seed).integers(10, PLAIN, size=length)
    inputs, targets = goal.corrupt(tokens, (seed, 0, 0))
    sizes = Sizes(Spans(), length)
    assert (len(inputs), len(targets)) == (sizes.inputs, sizes.targets)
    assert rebuild(inputs.tolist(), targets.tolist()) == tokens.tolist()


@pytest.mark.parametrize("mixed", [False, True])
def test_rows_of_spans(mixed: bool) -> None:
    view, goal = some(100, 5, 200), make("t5", mixed, context=64)
    noise = kept = 0
    text: list[list[int]] = []
    for e, _ in goal.examples(view, once=True):
        for d in range(int(e["documents"].max()) + 1):
            inputs = e["input_ids"][e["documents"] == d].tolist()
            labels = e["labels"][(e["decoder_documents"] == d) & (e["labels"] != IGNORED)].tolist()
            decoder = e["decoder_input_ids"][(e["decoder_documents"] == d)].tolist()[: len(labels)]
            assert decoder == [0, *labels[:-1]]
            text.append(rebuild(inputs, labels))
            noise += sum(t < PLAIN for t in labels) - 1
            kept += sum(t < PLAIN for t in inputs) - 1
    assert sum(map(len, text)) == sum(map(len, view.documents))
    assert noise / (noise + kept) == pytest.approx(0.15, abs=0.02)
    if mixed:
        batch = goal.collate([e for e, _ in take(goal, view, 4)])
        assert set(batch) == {"input_ids", "decoder_input_ids", "targets"}
        assert batch["input_ids"].shape == (4, 64)


def test_missing_tokens_are_named() -> None:
    with pytest.raises(UsageError, match="mask"):
        objective(MLM(), Setting(TOKENIZERS["gpt2"], Text("bpe"), 32, 1))
    with pytest.raises(UsageError, match="sentinels"):
        objective(Spans(), Setting(TOKENIZERS["t5"], Text("unigram"), 2048, 1))
    with pytest.raises(UsageError, match="at least 8"):
        objective(CLM(), Setting(TOKENIZERS["gpt2"], Text("bpe"), 4, 1))


# ---------------------------------------------------------------- losses


@pytest.mark.parametrize(("name", "mixed"), CASES)
def test_losses_are_finite_and_split_exactly(name: str, mixed: bool) -> None:
    view, goal, model = some(), make(name, mixed), network(name)
    examples = [e for e, _ in take(goal, view, 8)]
    whole = goal.loss(model, goal.collate(examples))
    assert whole.counts == goal.counts(goal.collate(examples))
    parts = [goal.loss(model, goal.collate(examples[i : i + 3])) for i in (0, 3, 6)]
    total = sum(p.total(whole.counts) for p in parts)
    torch.testing.assert_close(total, whole.total(), atol=1e-5, rtol=1e-6)
    last = [e for e, _ in goal.examples(view, once=True)][-3:]
    goal.loss(model, goal.collate(last)).total().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", [n for n in TOKENIZERS if n != "bert"])
def test_a_document_is_deaf_to_its_neighbours(name: str) -> None:
    """Other tokens in one document of a row: the losses of the others keep every bit."""
    goal, model = make(name, context=64), network(name, 64)
    rows = [e for e, _ in take(goal, some(60, 6, 25), 4)]
    batch = goal.collate(rows)
    assert int(batch["documents"].max()) >= 2
    wrong = {k: v.clone() for k, v in batch.items()}
    second = wrong["documents"] == 1
    wrong["input_ids"][second] = 10 + (wrong["input_ids"][second] + 1) % 100
    if "decoder_documents" in wrong:
        second = wrong["decoder_documents"] == 1
        wrong["decoder_input_ids"][second] = 10 + (wrong["decoder_input_ids"][second] + 1) % 100
    with torch.no_grad():
        for parts in (batch, wrong):
            parts["each"] = each(goal, model, parts)
    owner = batch["decoder_documents" if "decoder_documents" in batch else "documents"].flatten()
    owner = owner[batch["where"]] if "where" in batch else owner
    apart = owner != 1
    assert apart.any() and torch.equal(batch["each"][apart], wrong["each"][apart])
    assert not torch.equal(batch["each"][~apart], wrong["each"][~apart])


def each(goal: Objective, model: Model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The loss of every target, by asking for one at a time through the objective's own path."""
    import stemma.objectives.vocabulary as vocabulary

    kept: list[torch.Tensor] = []

    def keep(model: Model, hidden: torch.Tensor, goal: torch.Tensor, z: float) -> torch.Tensor:
        kept.append(torch.nn.functional.cross_entropy(model.logits(hidden).float(), goal, reduction="none"))
        return kept[-1].sum()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary, "_summed", keep)
        goal.loss(model, batch)
    return torch.cat(kept)


@pytest.mark.parametrize("name", ["gpt2", "llama", "roberta", "mistral"])
def test_packed_documents_have_the_loss_that_they_have_alone(name: str) -> None:
    goal, model = make(name, context=64), network(name, 64)
    batch = goal.collate([e for e, _ in take(goal, some(60, 6, 25), 1)])
    packed = each(goal, model, batch)
    documents = batch["documents"].flatten()
    owner = documents[batch["where"]] if "where" in batch else documents
    for d in range(1, int(documents.max())):  # whole ones
        inside = documents == d
        ids = batch["input_ids"].flatten()[inside][None]
        hidden = model.decode(ids) if model.decoder is not None else model.encode(ids)
        places = (batch["where"] if "where" in batch else torch.arange(64))[owner == d] - int(inside.nonzero()[0])
        alone = torch.nn.functional.cross_entropy(
            model.logits(hidden[0, places]), batch["targets"][owner == d], reduction="none"
        )
        torch.testing.assert_close(packed[owner == d], alone, atol=2e-5, rtol=1e-5)


def test_a_chunked_head_gives_the_same_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    import stemma.objectives.vocabulary as vocabulary

    goal, model = make("gpt2"), network("gpt2")
    batch = goal.collate([e for e, _ in take(goal, some(), 4)])
    whole = goal.loss(model, batch).total()
    whole.backward()
    grad = model.embed.tokens.weight.grad
    assert grad is not None
    model.zero_grad()
    monkeypatch.setattr(vocabulary, "LOGITS", 30 * VOCAB)
    parts = goal.loss(model, batch).total()
    parts.backward()
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(model.embed.tokens.weight.grad, grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "llama", "roberta", "bert", "t5"])
def test_the_loss_falls(name: str) -> None:
    torch.manual_seed(0)
    view = Documents([np.arange(10, 60), np.arange(40, 90)])
    goal, model = make(name), network(name)
    opt = torch.optim.AdamW(model.parameters(), lr=3e-3)
    stream = goal.examples(view)
    losses = []
    for _ in range(40):
        loss = goal.loss(model, goal.collate([next(stream)[0] for _ in range(8)])).total()
        loss.backward()
        opt.step()
        opt.zero_grad()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.9 * losses[0]
