"""Blank infilling: what falls out, where it stands, who sees whom, and that decoding reads as was trained."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import stemma
from stemma import families, spec
from stemma.declare.objectives import Blanks
from stemma.decoding import blanks
from stemma.decoding.sessions import begin
from stemma.errors import DataError, UsageError
from stemma.nn.inputs import Inputs
from stemma.nn.model import IGNORED, Model
from stemma.objectives import Cursor, Setting, incompatible_reason, objective
from stemma.objectives.base import PAD_DOCUMENT
from stemma.objectives.blanks import BlankInfilling
from stemma.train import pretrain, verify_resume
from test_objectives import Documents, Words, each, same, some, take

VOCAB, PLAIN = 200, 150  # ids 10..149 are text
CLS, PAD, SOP, EOP = 1, 0, 2, 3
MASK, SENTENCE, END = 5, 6, 7
FAMILIES = ["glm-base", "glm-10b", "glm-large-chinese", "glm-130b", "chatglm-6b", "chatglm2-6b"]
MIXED = Blanks(spans=0.4, sentences=0.3, suffix=0.3, inside=0.5)


class Names(Words):
    """With tokens for blanks."""

    def __init__(self) -> None:
        super().__init__(cls=CLS, pad=PAD, bos=SOP, eos=EOP)
        self.named = {"[MASK]": MASK, "[sMASK]": SENTENCE, "[gMASK]": END}
        self.special_ids |= set(self.named.values())

    def id(self, name: str) -> int | None:
        return self.named.get(name)


def make(
    goal: Blanks = MIXED, name: str = "glm-10b", context: int = 64, mixed: bool = False, seed: int = 1
) -> BlankInfilling:
    found = objective(goal, Setting(Names(), families.design(name).text, context, seed, mixed))
    assert isinstance(found, BlankInfilling)
    return found


def network(name: str, context: int = 64) -> Model:
    design = families.design(name)
    kv = 2 if design.dims.kv_heads else None
    dims = replace(design.dims, d_model=64, layers=2, heads=4, kv_heads=kv, head_dim=None, d_ff=64, vocab=VOCAB)
    arch = spec.edit(design.arch, {f"dropout.{k}": 0.0 for k in ("embed", "residual", "attention") if _rate(design, k)})
    model = Model(arch, replace(dims, context=context)).initialise(3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.05)
    model.text = spec.edit(design.text, {"blank_ids": (MASK, SENTENCE, END), "bos_id": SOP, "eos_id": EOP})
    return model.eval()


def _rate(design: Any, kind: str) -> float:
    return float(getattr(design.arch.dropout, kind))


def documents(example: dict[str, Any]) -> list[dict[str, Any]]:
    """The texts of a row, each with its columns."""
    owner = example["documents"]
    return [{k: v[owner == d] for k, v in example.items()} for d in range(int(owner.max()) + 1)]


def rebuilt(text: dict[str, Any]) -> list[int]:
    """The text as it was before its runs fell out, read from inputs, labels and places alone."""
    ids, labels = text["input_ids"], text["labels"]
    context = int(text["blocks"].argmax() and np.flatnonzero(text["blocks"])[0])
    assert (text["blocks"][:context] == 0).all() and (text["blocks"][context:] > 0).all()
    runs: dict[int, list[int]] = {}
    starts = [*np.flatnonzero(ids == SOP), len(ids)]
    assert starts[0] == context
    for a, b in itertools.pairwise(starts):
        assert labels[b - 1] == EOP and labels[a : b - 1].tolist() == ids[a + 1 : b].tolist()
        assert text["blocks"][a:b].tolist() == list(range(1, b - a + 1))
        at = int(text["places"][a])
        assert (text["places"][a:b] == at).all() and ids[at] in (MASK, SENTENCE, END) and at not in runs
        runs[at] = labels[a : b - 1].tolist()
    assert (labels[:context] == IGNORED).all() and ids[0] == CLS
    holes = {i for i in range(context) if ids[i] in (MASK, SENTENCE, END)}
    assert holes == set(runs) and len({int(ids[i]) for i in holes}) == 1
    return [t for i in range(1, context) for t in (runs[i] if i in runs else [int(ids[i])])]


# ---------------------------------------------------------------- what falls out


def test_golden_batches_at_a_fixed_seed() -> None:
    found = {}
    for kind, goal, mixed in (
        ("spans", Blanks(), False),
        ("sentences", Blanks(spans=0.0, sentences=1.0), False),
        ("suffix", Blanks(spans=0.0, suffix=1.0), False),
        ("mixture", MIXED, True),
    ):
        digest = hashlib.sha256()
        for example, cursor in take(make(goal, mixed=mixed), some(), 6):
            for key in sorted(example):
                digest.update(np.ascontiguousarray(example[key]).tobytes())
            digest.update(repr(cursor).encode())
        found[kind] = digest.hexdigest()[:12]
    assert found == GOLDEN


GOLDEN = {"spans": "e47bf7202f3d", "sentences": "16d60bc23541", "suffix": "451f761dba0d", "mixture": "ed6a5493832d"}


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(1, 120), min_size=1, max_size=5),
    st.sampled_from(
        [
            Blanks(),
            Blanks(rate=0.9, mean=1.0),
            Blanks(rate=0.5, mean=20.0),
            Blanks(spans=0.0, sentences=1.0),
            Blanks(spans=0.0, suffix=1.0, inside=1.0),
            Blanks(spans=0.0, suffix=1.0, least=0.01),
            MIXED,
        ]
    ),
    st.integers(8, 90),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_a_text_can_be_rebuilt(lengths: list[int], goal: Blanks, context: int, mixed: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    view = Documents([rng.integers(10, PLAIN, size=n) for n in lengths])
    found = make(goal, context=context, mixed=mixed, seed=seed)
    text: list[int] = []
    for example, _ in found.examples(view, once=True):
        assert all(v.shape == (context,) for v in example.values())
        parts = documents(example)
        assert len(parts) == 1 or not mixed
        for part in parts:
            text += rebuilt(part)
    order = found.order(view)
    assert text == [int(t) for slot in range(len(view)) for t in view[order[slot][0]]]


def test_spans_are_those_of_the_paper() -> None:
    """15% of a text in runs of Poisson(3) tokens, none of them empty; the last run may go beyond the 15%."""
    view = Documents([np.arange(200) % 140 + 10 for _ in range(1500)])
    goal = make(Blanks(), context=1000)
    rates, lengths = [], []
    for slot in range(1500):
        text = goal.hole(view, [goal_part(slot, 200)])
        sizes = text.lost[:, 1] - text.lost[:, 0]
        assert text.blank == MASK and sizes.sum() >= 30 > sizes.sum() - sizes.max()
        assert (text.lost[1:, 0] > text.lost[:-1, 1]).all()  # a token at least between two
        rates.append(sizes.sum() / 200)
        lengths += sizes.tolist()
    assert 0.15 <= np.mean(rates) < 0.165
    expected = 3.0 ** np.arange(1, 9) / np.cumprod(np.arange(1, 9)) * np.exp(-3) / (1 - np.exp(-3))
    # runs that are drawn until a sum is reached: the last one is longer than others, one in about ten
    found = np.array([np.mean(np.array(lengths) == n) for n in range(1, 9)])
    assert np.abs(found - expected).max() < 0.02
    assert np.mean(lengths) == pytest.approx(3 / (1 - np.exp(-3)), rel=0.05)
    places = np.concatenate([goal.hole(view, [goal_part(s, 200)]).lost[:, 0] for s in range(300)])
    assert np.histogram(places, 4, (0, 200))[0] / len(places) == pytest.approx([0.25] * 4, abs=0.04)


def goal_part(document: int, tokens: int) -> Any:
    from stemma.objectives.base import Slice

    return Slice(document, 0, 0, tokens)


def test_whole_sentences_fall_out() -> None:
    view = some(300, 40, 300)  # a sentence every 7 tokens
    goal = make(Blanks(spans=0.0, sentences=1.0), context=1000)
    for d in range(300):
        text = goal.hole(view, [goal_part(d, len(view[d]))])
        n = len(view[d])
        assert text.blank == SENTENCE
        for a, b in text.lost:
            assert a % 7 == 0 and (b - a == 7 or b == n)
        gone = int((text.lost[:, 1] - text.lost[:, 0]).sum())
        assert int(0.15 * n) <= gone < 0.15 * n + 7
    one = Documents([np.arange(10, 16)])
    assert make(Blanks(spans=0.0, sentences=1.0)).hole(one, [goal_part(0, 6)]).blank == MASK


@pytest.mark.parametrize(("least", "inside"), [(0.5, 0.0), (0.25, 0.5)])
def test_long_pieces(least: float, inside: float) -> None:
    view = Documents([np.arange(100) % 140 + 10 for _ in range(2000)])
    goal = make(Blanks(spans=0.0, suffix=1.0, least=least, inside=inside), context=1000)
    shares, ends = [], 0
    for d in range(2000):
        text = goal.hole(view, [goal_part(d, 100)])
        ((a, b),) = text.lost.tolist()
        assert text.blank == END
        shares.append((b - a) / 100)
        ends += b == 100
    assert min(shares) == least and max(shares) == 0.98  # uniform from the share to all but two tokens
    assert np.mean(shares) == pytest.approx((least + 0.98) / 2, abs=0.01)
    assert ends / 2000 == pytest.approx(1 - inside, abs=0.05)


def test_the_three_kinds_are_shares_of_texts() -> None:
    view = some(3000, 40, 60)
    goal = make(Blanks(spans=0.5, sentences=0.3, suffix=0.2), context=200)
    kinds = [goal.hole(view, [goal_part(d, len(view[d]))]).blank for d in range(3000)]
    for token, share in ((MASK, 0.5), (SENTENCE, 0.3), (END, 0.2)):
        assert np.mean(np.array(kinds) == token) == pytest.approx(share, abs=0.03)
    assert families.design("glm-10b").objective == Blanks(spans=0.5, sentences=0.3, suffix=0.2, least=0.25, inside=0.5)
    assert families.design("glm-130b").objective == Blanks(spans=0.3, suffix=0.7)


def test_runs_follow_in_random_order() -> None:
    view = Documents([np.arange(10, 130) for _ in range(200)])
    for shuffled in (True, False):
        goal = make(Blanks(shuffled=shuffled), context=200)
        orders = [goal.hole(view, [goal_part(d, 120)]).order for d in range(200)]
        assert all(sorted(order) == list(range(len(order))) for order in orders)
        kept = sum(order.tolist() == sorted(order) for order in orders)
        assert kept < 10 if shuffled else kept == 200
    firsts = [o[0] for o in (make(Blanks()).hole(view, [goal_part(d, 120)]).order for d in range(200)) if len(o) == 5]
    assert np.bincount(firsts, minlength=5).min() > 0


# ---------------------------------------------------------------- rows


@pytest.mark.parametrize("mixed", [False, True])
def test_a_stream_goes_on_from_any_cursor(mixed: bool) -> None:
    view = some(8)
    rows = take(make(mixed=mixed), view, 40)
    assert rows[-1][1].slot >= 8
    for k in (0, 1, 7, 20, 33):
        for a, b in zip(take(make(mixed=mixed), view, 6, rows[k][1]), rows[k + 1 :], strict=False):
            assert same(a, b)
    assert not same(rows[0], take(make(mixed=mixed, seed=2), view, 1)[0])


def test_rows_are_well_filled() -> None:
    for mixed in (False, True):
        rows = [e for e, _ in take(make(Blanks(), context=128, mixed=mixed), some(200, 5, 200), 200)]
        assert np.mean([(e["documents"] != PAD_DOCUMENT).mean() for e in rows]) > 0.9


def test_every_row_has_a_target() -> None:
    for e, _ in take(make(context=8), some(20, 1, 20), 300):
        assert (e["labels"] != IGNORED).any()


def test_no_label_stands_among_the_inputs_that_its_prediction_sees() -> None:
    """With a text of distinct tokens, a token that fell out stands in the row only behind where it is predicted."""
    view = Documents([np.arange(10, 130)])
    for text in (text for e, _ in take(make(context=200), view, 60) for text in documents(e)):
        ids, labels = text["input_ids"], text["labels"]
        for i in np.flatnonzero((labels != IGNORED) & (labels != EOP)):
            assert labels[i] not in ids[: i + 1]


def test_what_is_missing_is_named() -> None:
    text = families.design("glm-10b").text
    tokenizer = Names()
    tokenizer.named.pop("[sMASK]")
    with pytest.raises(UsageError, match="sMASK"):
        objective(Blanks(), Setting(tokenizer, text, 32, 1))
    tokenizer.bos_id = None  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="bos"):
        objective(Blanks(), Setting(tokenizer, text, 32, 1))
    with pytest.raises(UsageError, match="add up to 1"):
        Blanks(spans=0.5)
    with pytest.raises(UsageError, match="inside"):
        Blanks(inside=2.0)
    for name, no in (("bert", "encoder"), ("t5", "encoder-decoder")):
        assert f"structure {no}" in (incompatible_reason(Blanks(), families.design(name).arch) or "")
    assert incompatible_reason(Blanks(), families.design("gpt2").arch) is None
    with pytest.raises(DataError):
        next(make().examples(Documents([])))


# ---------------------------------------------------------------- networks


@pytest.mark.parametrize("name", FAMILIES)
def test_losses_split_exactly_and_reach_every_parameter(name: str) -> None:
    goal, model = make(families.design(name).objective, name), network(name)  # type: ignore[arg-type]
    examples = [e for e, _ in take(goal, some(), 8)]
    whole = goal.loss(model, goal.collate(examples))
    assert whole.counts == goal.counts(goal.collate(examples))
    parts = [goal.loss(model, goal.collate(examples[i : i + 3])) for i in (0, 3, 6)]
    torch.testing.assert_close(sum(p.total(whole.counts) for p in parts), whole.total(), atol=1e-5, rtol=1e-6)
    whole.total().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_packed_text_has_the_loss_that_it_has_alone(name: str) -> None:
    """Which it could not have if it saw another, or had other positions."""
    goal, model = make(MIXED, name, context=96), network(name, 96)
    example = next(e for e, _ in take(goal, some(60, 6, 25), 20) if e["documents"].max() >= 2)
    packed = goal.collate([example])
    losses = each(goal, model, packed)
    owner = packed["documents"].flatten()[packed["where"]]
    for d, part in enumerate(documents(example)):
        first = int(np.flatnonzero(example["documents"] == d)[0])
        single = {k: v.copy() for k, v in part.items()}
        single["documents"][:] = 0
        single["prefix"] -= first
        # where single positions count on, they count in the text
        found = each(goal, model, goal.collate([single]))
        torch.testing.assert_close(losses[owner == d], found, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("name", ["gpt2", "gpt3", "llama", "glm-base"])
def test_no_target_sees_padding(name: str, mixed: bool) -> None:
    goal, model = make(MIXED, name, mixed=mixed), network(name)
    examples = [e for e, _ in goal.examples(some(), once=True)][-16:]
    padding = torch.from_numpy(np.stack([e["documents"] for e in examples])) == PAD_DOCUMENT
    found = goal.collate(examples)
    wrong = {**found, "input_ids": found["input_ids"].masked_fill(padding, 11)}
    assert padding.any() and torch.equal(each(goal, model, found), each(goal, model, wrong))


@pytest.mark.parametrize("name", ["glm-base", "glm-130b", "chatglm-6b"])
def test_who_sees_whom(name: str) -> None:
    """Another token in A changes all of its text; one in B only what follows it; neither any other text."""
    goal, model = make(Blanks(), name, context=96), network(name, 96)
    example = next(e for e, _ in take(goal, some(60, 12, 25), 20) if e["documents"].max() >= 1)
    batch = goal.collate([example])

    def hidden(ids: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            where = goal.positions(model, batch)
            inputs = Inputs(ids, position_ids=where, documents=batch["documents"], prefix=batch["prefix"])
            return model.decode(inputs)[0]

    before = hidden(batch["input_ids"])
    owner, block = example["documents"], example["blocks"]
    context, filled = np.flatnonzero((owner == 0) & (block == 0)), np.flatnonzero((owner == 0) & (block > 0))
    for at in (int(context[-1]), int(context[1]), int(filled[0]), int(filled[-1])):
        ids = batch["input_ids"].clone()
        ids[0, at] = 10 + (ids[0, at] + 1) % 100
        moved = (hidden(ids) != before).any(-1).numpy()
        expected = (owner == 0) if at in context else (owner == 0) & (np.arange(96) >= at)
        assert (moved == expected).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_decoding_reads_as_was_trained(name: str) -> None:
    """A prompt of A and the first runs, filled step by step through the cache, gives the logits of training."""
    design = families.design(name)
    for goal in (Blanks(), Blanks(spans=0.0, suffix=1.0), Blanks(spans=0.0, sentences=1.0)):
        found, model = make(replace(goal, shuffled=False), name), network(name)
        view = Documents([np.arange(10, 45)])
        example = next(e for e, _ in take(found, view, 1))
        batch = found.collate([example])
        with torch.no_grad():
            inputs = Inputs(
                batch["input_ids"],
                position_ids=found.positions(model, batch),
                documents=batch.get("documents"),
                prefix=batch["prefix"] if isinstance(design.arch.mask, stemma.nn.parts.Prefix) else None,
            )
            hidden = model.decode(inputs)
            trained = model.logits(hidden)[0]
        ids = [int(t) for t, d in zip(example["input_ids"], example["documents"], strict=True) if d == 0]
        starts = [i for i, t in enumerate(ids) if t == SOP]
        # an id prompt up to the last run's bos, then its tokens one by one
        with torch.inference_mode():
            session = begin(model, [ids[: starts[-1] + 1]], len(ids) - starts[-1])
            for at in range(starts[-1], len(ids)):
                torch.testing.assert_close(session.logits[0], trained[at], atol=2e-5, rtol=1e-5)
                if at + 1 < len(ids):
                    session.step(torch.tensor([ids[at + 1]]))


# ---------------------------------------------------------------- runs

SMALL = {
    "dims.d_model": 32,
    "dims.layers": 1,
    "dims.heads": 2,
    "dims.kv_heads": None,
    "dims.d_ff": 64,
    "dims.vocab": 400,
    "dims.context": 64,
    "recipe.batch": 256,
    "train.eval_tokens": 400,
    "train.threads": 1,
    "train.precision": "fp32",
}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.filterwarnings("ignore:the text gives")
def test_a_run_from_text_to_a_model_that_fills(name: str, tmp_path: Path, text: Path) -> None:
    run = pretrain(name, data=str(text), out=tmp_path / "run", budget="3 steps", overrides=SMALL, quiet=True)
    assert run.finished and verify_resume(run.directory, 4)["identical"]
    model = stemma.load(run.directory / "model")
    known = blanks.blank_tokens(model)
    assert known.start == run.tokenizer.bos_id and known.blanks and model.family.name in ("glm", "glm-130b", name[:-3])
    filled = stemma.fill(model, "The cat sees the [MASK] and the [MASK].", max_new_tokens=3)
    assert len(filled.spans) == 2 and filled.text.lower().startswith("the cat")
    prompt = blanks.context(model, "The cat", False)
    assert run.tokenizer.eos_id not in prompt and len(stemma.generate(model, "The cat", max_new_tokens=3)) == 1


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import json

    from test_train import words

    path = tmp_path_factory.mktemp("text") / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in words()), "utf-8")
    return path


def test_it_learns(text: Path, tmp_path: Path) -> None:
    """Below the unigram model of its targets, most of which are nouns and verbs drawn at random (about 2.3 bits)."""
    changes = {
        **SMALL,
        "dims.d_model": 64,
        "dims.layers": 2,
        "dims.vocab": 120,
        "recipe.lr": 5e-3,
        "arch.dropout": "Dropout()",
    }
    run = pretrain("glm-base", data=str(text), out=tmp_path / "run", budget="400 steps", overrides=changes, quiet=True)
    assert run.summary["val"]["bits_per_target"] < 0.85 * unigram(run)


def unigram(run: Any) -> float:
    """Bits a target of the best model that knows only how often targets occur."""
    from stemma.train import assemble, prepare

    plan, tokenizer, store = prepare.reopen(run.directory)
    goal = assemble.objective_of(plan, tokenizer)
    labels = np.concatenate([e["labels"] for e, _ in itertools.islice(goal.examples(store), 200)])
    counts = np.bincount(labels[labels != IGNORED])
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log2(share)).sum())


def test_cursor_is_all_there_is() -> None:
    assert take(make(), some(5), 1, Cursor(3, 2))[0][1] > Cursor(3, 2)
