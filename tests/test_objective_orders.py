"""Objectives of an order or a mask of their own: XLNet's permutations and UniLM's mixture."""

from __future__ import annotations

import collections
import hashlib
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st

import stemma
from oracle import saved
from stemma import families, spec
from stemma.declare.family import Text
from stemma.declare.objectives import CLM, PLM, MixedMLM
from stemma.errors import UsageError
from stemma.nn.model import IGNORED, Model
from stemma.objectives import Setting, incompatible_reason, objective
from stemma.objectives.mixed import MODES, MixedMasked
from stemma.objectives.plm import Permuted, hidden_from
from stemma.train import resolve, verify_resume
from test_objectives import Documents, Words, each, same, take
from test_train import text, train  # noqa: F401

SEP, CLS, EOS, MASK = 4, 3, 2, 6
ORDERS = {"objective.reuse": 12, "objective.memory": 16, "objective.window": 12, "objective.targets": 6}


class Pieces(Words):
    """A tokenizer with pieces; every second one begins a word."""

    def __init__(self, size: int = 200, **ids: int) -> None:
        super().__init__(**ids)
        self.vocab_size, self.special_ids = size, set(ids.values())

    def tokens(self, ids: Any) -> list[str]:
        return [f"<{i}>" if i in self.special_ids else f"▁{i}" if i % 2 else f"{i}x" for i in ids]


XLNET = Pieces(bos=1, eos=EOS, cls=CLS, sep=SEP, pad=5, mask=MASK)
BERT = Pieces(cls=1, sep=2, mask=3, pad=0, unk=4)
SMALLER = PLM(targets=11, window=32, reuse=32, memory=48)


def numbered(sizes: list[int], first: int = 10) -> Documents:
    """Documents in which no token occurs twice: a token tells where it stands."""
    edges = np.cumsum([first, *sizes])
    return Documents([np.arange(a, b) for a, b in itertools.pairwise(edges)])


def some(n: int = 12, low: int = 3, high: int = 200, seed: int = 0) -> Documents:
    rng = np.random.default_rng(seed)
    return Documents([rng.integers(10, 200, size=rng.integers(low, high)) for _ in range(n)])


def permuted(goal: PLM = SMALLER, context: int = 64, mixed: bool = False, tokenizer: Any = XLNET) -> Permuted:
    made = objective(goal, Setting(tokenizer, Text("unigram"), context, 1, mixed))
    assert isinstance(made, Permuted)
    return made


def mixture(goal: MixedMLM = MixedMLM(), context: int = 48) -> MixedMasked:
    made = objective(goal, Setting(BERT, Text("wordpiece"), context, 1))
    assert isinstance(made, MixedMasked)
    return made


def network(name: str, context: int = 64, vocab: int = 200) -> Model:
    design = families.design(name)
    dims = replace(design.dims, d_model=32, layers=2, heads=4, d_ff=64, vocab=vocab, context=context)
    model = Model(design.arch, dims).initialise(3).eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    return model


GOALS: dict[str, Any] = {
    "plm": permuted,
    "plm mixed": lambda: permuted(mixed=True),
    "plm one way": lambda: permuted(replace(SMALLER, both=False, pairs=False)),
    "plm no memory": lambda: permuted(replace(SMALLER, memory=0, reuse=0)),
    "unilm": mixture,
}
MODELS = {name: "unilm" if name == "unilm" else "xlnet" for name in GOALS}


# ---------------------------------------------------------------- what all rows share


def test_golden_batches_at_a_fixed_seed() -> None:
    found = {}
    for name, make in GOALS.items():
        digest = hashlib.sha256()
        for example, cursor in take(make(), some(), 12):
            for key in sorted(example):
                digest.update(np.ascontiguousarray(example[key]).tobytes())
            digest.update(repr(cursor).encode())
        found[name] = digest.hexdigest()[:12]
    assert found == GOLDEN


GOLDEN = {
    "plm": "692c8a6042ba",
    "plm mixed": "f3dbad1c0497",
    "plm no memory": "170a6861b6d4",
    "plm one way": "e74790f2a733",
    "unilm": "96ef13449fa9",
}


@pytest.mark.parametrize("name", GOALS)
def test_a_stream_goes_on_from_any_cursor(name: str) -> None:
    view, make = some(5), GOALS[name]
    rows = take(make(), view, 60)
    assert rows[-1][1].slot >= 5
    for k in (0, 1, 7, 20, 33):
        for a, b in zip(take(make(), view, 6, rows[k][1]), rows[k + 1 :], strict=False):
            assert same(a, b)


@pytest.mark.parametrize("name", GOALS)
def test_an_example_can_be_made_twice(name: str) -> None:
    for make, _ in list(zip(GOALS[name]().lazy_examples(some(5)), range(12), strict=False)):
        once, again = make[0](), make[0]()
        assert all(np.array_equal(once[k], again[k]) for k in once)


@pytest.mark.parametrize("name", GOALS)
def test_losses_are_finite_and_split_exactly(name: str) -> None:
    goal, model = GOALS[name](), network(MODELS[name])
    examples = [e for e, _ in take(goal, some(), 12)]

    def gradient(size: int) -> tuple[float, torch.Tensor]:
        model.zero_grad(set_to_none=True)
        batches = [goal.collate(examples[i : i + size]) for i in range(0, len(examples), size)]
        counts = collections.Counter[str]()
        for batch in batches:
            counts.update(goal.counts(batch))
        total = 0.0
        for batch in batches:
            loss = goal.loss(model, batch)
            assert loss.counts == goal.counts(batch)
            loss.total(counts).backward()
            total += float(loss.total(counts))
        return total, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    whole = gradient(12)
    assert np.isfinite(whole[0]) and whole[1].isfinite().all()
    for size in (1, 5):
        total, found = gradient(size)
        assert total == pytest.approx(whole[0], abs=1e-5)
        assert (found - whole[1]).abs().max() < 1e-5 * max(1.0, float(whole[1].abs().max()))
    last = [e for e, _ in goal.examples(some(), once=True)][-3:]
    assert goal.loss(model, goal.collate(last)).total().isfinite()


# ---------------------------------------------------------------- permutations: rows


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 300), min_size=2, max_size=6), st.booleans())
def test_a_text_can_be_rebuilt_from_its_rows(sizes: list[int], pairs: bool) -> None:
    """In either direction an epoch reads every token; what a row begins with goes on from its memory."""
    view = numbered(sizes)
    goal = permuted(replace(SMALLER, pairs=pairs), tokenizer=Pieces(5000, **{"cls": CLS, "sep": SEP, "pad": 5}))
    seen: dict[int, set[int]] = {0: set(), 1: set()}
    rows = [e for e, _ in goal.examples(view, once=True)]
    assert sum(int(e["backward"]) for e in rows) * 2 == len(rows)
    for e in rows:
        n = int(e["attention_mask"].sum())
        ids, labels, way = e["input_ids"][-n:], e["labels"][-n:], int(e["backward"])
        assert (e["input_ids"][:-n] == 5).all() and (e["labels"][:-n] == IGNORED).all()
        assert ids[-1] == CLS and ids[-2] == SEP and (ids == SEP).sum() == 1 + pairs and (ids == CLS).sum() == 1
        assert np.array_equal(labels[labels != IGNORED], ids[labels != IGNORED])
        cut = int(np.flatnonzero(ids == SEP)[0])
        assert e["token_type_ids"][-n:].tolist() == [0] * (cut + 1) + [1] * (n - cut - 2) + [2]
        memory = e["memory_ids"][e["memory_mask"] == 1]
        read = np.concatenate([memory, ids[:cut]])
        assert (np.diff(read) == (-1 if way else 1)).all()
        owner = next(d for d in view.documents if read[0] in d)
        assert np.isin(read, owner).all()
        assert len(memory) == 48 or memory.size == 0 or memory[0] == (owner[-1] if way else owner[0])
        second = ids[cut + 1 : n - 2] if pairs else ids[:0]
        assert not len(second) or len(second) == 1 or (np.diff(second) == (-1 if way else 1)).all()
        seen[way] |= set(ids[:cut].tolist()) | set(second.tolist())
    everything = {int(t) for d in view.documents for t in d}
    assert seen[0] == seen[1] == everything


@pytest.mark.parametrize("both", [False, True])
def test_mixed_rows_run_over_documents(both: bool) -> None:
    view = numbered([40, 3, 70, 25, 90, 11])
    tokenizer = Pieces(5000, cls=CLS, sep=SEP, pad=5, eos=EOS)
    goal = permuted(replace(SMALLER, both=both), mixed=True, tokenizer=tokenizer)
    order = goal.order(view)
    line = [t for slot in range(24) for t in (*view[order[slot][0]], EOS)]
    rows = [e for e, _ in take(goal, view, 20)]
    forward = [e for e in rows if not e["backward"]]
    for i, e in enumerate(forward):
        assert e["attention_mask"].all() and e["input_ids"][:32].tolist() == line[32 * i : 32 * i + 32]
        assert e["memory_ids"][e["memory_mask"] == 1].tolist() == line[max(0, 32 * i - 48) : 32 * i]
    assert len(forward) == (10 if both else 20)


def test_published_rows() -> None:
    """512 tokens, half of them reused, 85 targets: 43 before A and 42 in it and after; one in six."""
    goal = permuted(PLM(), 512)
    rows = [e for e, _ in take(goal, some(40, 2000, 4000), 200) if e["attention_mask"].all()]
    sizes: collections.Counter[int] = collections.Counter()
    starts = 0
    for e in rows:
        chosen = e["labels"] != IGNORED
        assert chosen[:256].sum() == 43 and chosen[256:].sum() == 42
        flags = chosen[::-1] if e["backward"] else chosen
        ids = e["input_ids"][::-1] if e["backward"] else e["input_ids"]
        edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(int), [0]])))
        for a, b in zip(edges[::2], edges[1::2], strict=True):
            sizes[int(b - a)] += 1
            starts += bool(ids[a] % 2)
    for n in (3, 4, 5):  # single tokens also fill up, so pairs are what spans are compared with
        assert sizes[n] / sizes[2] == pytest.approx(2 / n, abs=0.15)
    assert 1.0 < sizes[1] / (2 * sizes[2]) < 2.5 and starts / sum(sizes.values()) > 0.75
    assert sum(int(e["memory_mask"].sum()) == 384 for e in rows) > 40


def test_half_of_the_pairs_follow() -> None:
    view = numbered([400] * 60)
    goal = permuted(replace(SMALLER, both=False), tokenizer=Pieces(30_000, cls=CLS, sep=SEP, pad=5))
    follows = []
    for e, _ in take(goal, view, 400):
        ids = e["input_ids"]
        cut = int(np.flatnonzero(ids == SEP)[0])
        if e["attention_mask"].all() and cut + 1 < len(ids) - 2:
            follows.append(bool((ids[cut + 1] - 10) // 400 == (ids[cut - 1] - 10) // 400))
    assert np.mean(follows) == pytest.approx(0.5, abs=0.08)


# ---------------------------------------------------------------- permutations: masks


def by_hand(order: np.ndarray, target: np.ndarray) -> np.ndarray:
    """What is hidden, said one pair at a time."""
    n = len(order)
    hidden = np.zeros((n, n), dtype=int)
    for i in range(n):
        for j in range(n):
            if order[j] < 0:
                continue  # an ordinary token that is no target: all see it
            if order[i] < 0:
                hidden[i, j] = 1  # such a token sees none that has a rank
            elif i == j:
                hidden[i, j] = int(target[i])  # sep and cls see themselves
            else:
                hidden[i, j] = int(order[i] < order[j])
    return hidden


def test_what_is_hidden() -> None:
    """Each pair of tokens, by the rules of the released code."""
    goal = permuted()
    for e, _ in take(goal, some(), 20):
        target = e["labels"] != IGNORED
        found = hidden_from(torch.from_numpy(e["order"])[None], torch.from_numpy(target)[None])[0].numpy()
        assert np.array_equal(found, by_hand(e["order"], target))
        assert found[target, target].all()


def test_the_reference_collator_hides_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' collator, given the same order, hides the same targets (of sep and cls it lets all see all)."""

    class Special:
        mask_token, mask_token_id, pad_token, pad_token_id = "<mask>", MASK, "<pad>", 5

        def get_special_tokens_mask(self, ids: list[int], already_has_special_tokens: bool = True) -> list[int]:
            return [int(i in (SEP, CLS)) for i in ids]

    collator = hf.DataCollatorForPermutationLanguageModeling(tokenizer=Special())  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(10, 200, (6, 64), generator=generator)
    ids[:, [40, 62]], ids[:, 63] = SEP, CLS
    kept: list[torch.Tensor] = []
    draw = torch.randperm

    def remember(n: int) -> torch.Tensor:
        kept.append(draw(n))
        return kept[-1]

    monkeypatch.setattr(torch, "randperm", remember)
    torch.manual_seed(0)
    batch = collator.torch_mask_tokens(ids.clone())
    _, perm, mapping, labels = batch
    target = labels != -100
    order = torch.stack([torch.cat([p, p + 32]) for p in kept])
    functional = (ids == SEP) | (ids == CLS)
    ours = hidden_from(order.masked_fill(~target & ~functional, -1), target)
    for row in range(6):
        assert torch.equal(ours[row][:, target[row]], perm[row][:, target[row]].long())
        assert not perm[row][:, ~target[row]].any()
    assert mapping.shape == (6, 64, 64) and float(target.float().mean()) == pytest.approx(1 / 6, abs=0.05)


def test_a_token_reaches_only_what_comes_after_it() -> None:
    """Another token in the place of a target: neither its own prediction nor any earlier one in the order changes."""
    goal, model = permuted(), network("xlnet")
    batch = goal.collate([e for e, _ in take(goal, some(), 6)])
    owner = (batch["where"] // batch["places"].shape[1]).numpy()
    place = batch["places"].flatten()[batch["where"]].numpy()
    ranks = batch["order"].numpy()[owner, place]
    with torch.no_grad():
        before = each(goal, model, batch)
        moved = 0
        for k in range(0, len(place), 5):
            wrong = {**batch, "input_ids": batch["input_ids"].clone()}
            wrong["input_ids"][owner[k], place[k]] = 10 + (int(batch["input_ids"][owner[k], place[k]]) + 1) % 150
            changed = (each(goal, model, wrong) != before).numpy()
            later = (owner == owner[k]) & (ranks > ranks[k])
            assert not changed[~later].any()
            moved += int(changed[later].sum())
    assert moved > 50


def test_what_no_row_holds_is_not_seen() -> None:
    """Padding of a row, and places of the memory that hold nothing."""
    goal, model = permuted(), network("xlnet")
    rows = [e for e, _ in goal.examples(some(12, 20, 90), once=True)]
    rows.sort(key=lambda e: int(e["memory_mask"].sum()))
    batch = goal.collate(rows[:3] + rows[-3:])
    assert "attention_mask" in batch and 0 < int(batch["memory_mask"].sum()) < batch["memory_mask"].numel()
    with torch.no_grad():
        before = each(goal, model, batch)
        for ids, mask in (("input_ids", "attention_mask"), ("memory_ids", "memory_mask")):
            wrong = {**batch, ids: torch.where(batch[mask] == 1, batch[ids], 77)}
            assert torch.equal(each(goal, model, wrong), before)
            wrong = {**batch, ids: torch.where(batch[mask] == 1, (batch[ids] - 10 + 1) % 150 + 10, batch[ids])}
            assert not torch.equal(each(goal, model, wrong), before)


def test_memory_takes_no_gradient() -> None:
    goal, model = permuted(replace(SMALLER, both=False)), network("xlnet")
    batch = goal.collate([e for e, _ in take(goal, numbered([180]), 4)][2:])
    memory = goal.memory(model, batch)
    assert memory is not None and len(memory) == 2 and all(not m.requires_grad for m in memory)
    assert memory[0].shape == (2, 48, 32)


@pytest.mark.parametrize("both", [False, True])
def test_the_loss_is_the_reference_models(both: bool, tmp_path: Path) -> None:
    """XLNetLMHeadModel with the same mask, mapping and memory; the second half of its batch runs backwards."""
    theirs = saved("xlnet", tmp_path)
    ours = stemma.load(tmp_path)
    vocab = ours.dims.vocab
    tokenizer = Pieces(vocab, cls=CLS, sep=SEP, pad=5)
    goal = permuted(replace(SMALLER, both=both, memory=20), tokenizer=tokenizer)
    view = Documents([np.random.default_rng(i).integers(10, vocab, size=150) for i in range(3)])
    rows = [e for e, _ in take(goal, view, 40) if e["memory_mask"].all() and e["attention_mask"].all()]
    rows = sorted(rows, key=lambda e: int(e["backward"]))
    half = [e for e in rows if not e["backward"]][:2] + [e for e in rows if e["backward"] == both][-2:]
    batch = goal.collate(half)
    theirs.transformer.bi_data = both
    mapping = torch.zeros(4, batch["places"].shape[1], 64)
    labels = torch.full(batch["places"].shape, IGNORED)
    labels.view(-1)[batch["where"]] = batch["targets"]
    asked = batch["places"] >= 0
    mapping.scatter_(2, batch["places"].clamp_min(0)[..., None], asked[..., None].float())
    target = mapping.sum(1) > 0
    with torch.no_grad():
        past = theirs(batch["memory_ids"], use_mems=False, output_hidden_states=True,
                      token_type_ids=torch.zeros_like(batch["memory_ids"])).hidden_states  # fmt: skip
        past = [h.transpose(0, 1) for h in past[:-1]]
        for a, b in zip(goal.memory(ours, batch) or [], past, strict=True):
            assert (a.transpose(0, 1) - b).abs().max() <= 1e-5
        reference = theirs(
            batch["input_ids"],
            token_type_ids=batch["token_type_ids"],
            perm_mask=hidden_from(batch["order"], target).float(),
            target_mapping=mapping,
            mems=past,
            labels=labels,
        ).loss
        mine = goal.loss(ours, batch)
    assert float(mine.total()) == pytest.approx(float(reference), abs=1e-5)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match=r"objective.reuse=32"):
        permuted(context=32)
    assert "second stream" in str(incompatible_reason(PLM(), families.design("bert").arch))
    assert "arch.streams.reuse=9" in str(
        incompatible_reason(PLM(), spec.edit(families.design("xlnet").arch, {"streams.reuse": 9}))
    )
    assert "arch.mask=Open" in str(incompatible_reason(MixedMLM(), families.design("bert").arch))
    bare = spec.edit(families.design("unilm").arch, {"heads.pair": False})
    assert "arch.heads.pair" in str(incompatible_reason(MixedMLM(), bare))
    assert incompatible_reason(MixedMLM(full=0, prefix=0.5, causal=0.5, reverse=0.0), bare) is None
    assert incompatible_reason(CLM(), families.design("xlnet").arch) is not None


# ---------------------------------------------------------------- UniLM


def test_shares_of_masks() -> None:
    rows = [int(e["mode"]) for e, _ in take(mixture(), some(300), 4000)]
    for number, share in enumerate((1 / 3, 1 / 3, 1 / 6, 1 / 6)):
        assert np.mean(np.asarray(rows) == number) == pytest.approx(share, abs=0.03)
    only = [int(e["mode"]) for e, _ in take(mixture(MixedMLM(0, 0, 0, 1)), some(), 50)]
    assert set(only) == {MODES.index("reverse")}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(2, 200), min_size=2, max_size=5))
def test_rows_hold_the_text(sizes: list[int]) -> None:
    view = numbered(sizes)
    goal = objective(MixedMLM(), Setting(Pieces(5000, cls=1, sep=2, mask=3, pad=0), Text("wordpiece"), 48, 1))
    for e, _ in take(goal, view, 30):
        n, mode = int(e["attention_mask"].sum()), MODES[int(e["mode"])]
        chosen = e["labels"] != IGNORED
        ids = np.where(chosen, e["labels"], e["input_ids"])
        cuts = np.flatnonzero(ids[:n] == 2)
        assert ids[0] == 1 and ids[n - 1] == 2 and (ids[n:] == 0).all() and not chosen[[0, *cuts]].any()
        assert len(cuts) == (2 if mode in ("full", "prefix") else 1)
        assert chosen.sum() == min(8, max(1, round(0.15 * n)), n - 1 - len(cuts))
        for a, b in zip([0, *cuts[:-1]], cuts, strict=True):
            assert b == a + 1 or (np.diff(ids[a + 1 : b]) == 1).all()
        if mode == "prefix":
            assert int(e["prefix"]) == cuts[0] + 1 and e["pair_labels"] == 0
            assert (np.diff(np.delete(ids[1 : n - 1], cuts[0] - 1)) >= 1).all()


def test_masking_in_runs() -> None:
    goal = mixture(MixedMLM(0, 0, 1, 0), 512)
    kinds: collections.Counter[str] = collections.Counter()
    runs: collections.Counter[int] = collections.Counter()
    n = 0
    for e, _ in take(goal, some(60, 600, 900), 200):
        chosen = e["labels"] != IGNORED
        n += int(chosen.sum())
        read, said = e["input_ids"][chosen], e["labels"][chosen]
        kinds.update(np.where(read == 3, "mask", np.where(read == said, "kept", "random")).tolist())
        edges = np.flatnonzero(np.diff(np.concatenate([[0], chosen.astype(int), [0]])))
        runs.update((edges[1::2] - edges[::2]).tolist())
    assert kinds["mask"] / n == pytest.approx(0.8, abs=0.02)
    assert kinds["kept"] / n == pytest.approx(0.1, abs=0.02)
    single = goal.mixture.single
    alone = objective(MixedMLM(0, 0, 1, 0, single=1.0), goal.setting)
    apart: collections.Counter[int] = collections.Counter()
    for e, _ in take(alone, some(60, 600, 900), 200):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], (e["labels"] != IGNORED).astype(int), [0]])))
        apart.update((edges[1::2] - edges[::2]).tolist())
    assert single == 0.8 and apart[3] / sum(apart.values()) < 0.04 < runs[3] / sum(runs.values())


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_shows_what_it_should(mode: str) -> None:
    """A changed token changes the predictions at exactly the places that see it (through any number of layers)."""
    shares = {m: float(m == mode) for m in MODES}
    goal, model = mixture(MixedMLM(**shares)), network("unilm")
    batch = goal.collate([e for e, _ in take(goal, some(20, 60, 200), 1)])
    n = int(batch["attention_mask"].sum())
    batch |= {"targets": batch["input_ids"].flatten()[:n], "where": torch.arange(n)}
    prefix = int(batch["prefix"][0])
    with torch.no_grad():
        before = each(goal, model, batch)
        for j in (1, 3, n // 2, n - 2, n - 1):
            wrong = {**batch, "input_ids": batch["input_ids"].clone()}
            wrong["input_ids"][0, j] = 10 + (int(batch["input_ids"][0, j]) + 1) % 150
            seen = (each(goal, model, wrong) != before).nonzero().flatten().tolist()
            match mode:
                case "full":
                    expected = list(range(n))
                case "causal":
                    expected = list(range(j, n))
                case "reverse":
                    expected = list(range(j + 1))
                case _:
                    expected = list(range(n)) if j < prefix else list(range(j, n))
            assert seen == expected
        if n < 48:
            padding = {**batch, "input_ids": batch["input_ids"].clone()}
            padding["input_ids"][0, n:] = 50
            assert torch.equal(each(goal, model, padding), before)


def test_pairs_are_told_in_rows_that_are_read_whole() -> None:
    goal, model = mixture(), network("unilm")
    batch = goal.collate([e for e, _ in take(goal, some(), 24)])
    assert goal.counts(batch)["pair"] == int((batch["mode"] == 0).sum()) > 0
    none = goal.collate([e for e, _ in take(goal, some(), 40) if e["mode"] != 0])
    loss = goal.loss(model, none)
    assert loss.counts["pair"] == 0 and float(loss.sums["pair"]) == 0 and loss.total().isfinite()


# ---------------------------------------------------------------- whole runs


@pytest.mark.parametrize(("name", "changes"), [("xlnet", ORDERS), pytest.param("unilm", {}, marks=pytest.mark.slow)])
def test_runs_end_to_end(name: str, changes: dict[str, Any], text: Path, tmp_path: Path) -> None:  # noqa: F811
    run = train(name, tmp_path / "run", text, 4, changes)
    assert verify_resume(tmp_path / "run", 4)["identical"]
    model = stemma.load(tmp_path / "run" / "model")
    assert model.family is not None and model.family.name == name
    for (k, a), b in zip(run.model.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(a, b), k
    assert run.summary["val"]["targets"] > 0


@pytest.mark.parametrize("name", ["xlnet", "unilm"])
def test_plans_at_every_scale(name: str) -> None:
    for scale in ("tiny", "mini", "small"):
        plan = resolve(name, scale=scale)
        assert plan.objective is not None and plan.context == plan.dims.context
    tiny: Any = resolve(name)
    if name == "xlnet":
        assert tiny.objective == PLM(targets=21, window=64, reuse=64, memory=96)


@pytest.mark.parametrize(("name", "changes"), [("xlnet", ORDERS), ("unilm", {})])
def test_the_loss_falls_below_the_unigram_model(
    name: str,
    changes: dict[str, Any],
    text: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    run = train(name, tmp_path / "run", text, 300, {"recipe.lr": 5e-3, "dims.d_model": 48, **changes})
    val, unigram = run.summary["val"], run.summary["baselines"]["unigram_bits_per_byte"]
    assert val["bits_per_target_byte"] < 0.8 * unigram
