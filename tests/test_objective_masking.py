"""Masked units, ALBERT's order and ELECTRA's halves: what is chosen, how often, and what of the text is left."""

from __future__ import annotations

import hashlib
import itertools
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import stemma
from oracle import reference, saved
from stemma import families
from stemma.declare.objectives import MLM, NGrams, Runs, Tokens, Words
from stemma.errors import UsageError
from stemma.nn.model import IGNORED, Model
from stemma.objectives import Cursor, Objective, Setting, incompatible_reason, objective
from stemma.objectives.units import Chooser, Vocabulary
from stemma.text import Specials, Tokenizer
from test_objectives import Documents

VOCAB, FIRST = 99, 10  # ids from 10 on are text; every third of them begins a word
CLS, SEP, MASK, PAD = 1, 2, 3, 0


class Pieces:
    """A tokenizer of WordPiece as far as objectives look at it."""

    kind, sentinels = "wordpiece", 0
    vocab_size = VOCAB
    cls_id, sep_id, mask_id, pad_id, unk_id, bos_id, eos_id = CLS, SEP, MASK, PAD, 4, None, None
    special_ids = frozenset(range(5))

    def tokens(self, ids: Any) -> list[str]:
        return [f"[{i}]" if i < FIRST else "w" if i % 3 == 0 else "##w" for i in ids]


def begins(tokens: Any) -> Any:
    return np.asarray(tokens) % 3 == 0


class Sentences(Documents):
    def closed(self, i: int) -> bool:
        return True

    def sentences(self, i: int) -> Any:
        return np.arange(0, len(self.documents[i]), 9)


def some(n: int = 30, low: int = 3, high: int = 90, seed: int = 0) -> Sentences:
    """Texts in which every place can be told from its token and its neighbours."""
    rng = np.random.default_rng(seed)
    return Sentences([rng.integers(FIRST, VOCAB, size=rng.integers(low, high)) for _ in range(n)])


GOALS = {
    "words": MLM(unit=Words()),
    "ngrams": MLM(unit=NGrams()),
    "windows": MLM(unit=NGrams(drawn="windows")),
    "runs": MLM(unit=Runs()),
    "next": MLM(unit=Words(), pairs="next", copies=2),
    "order": MLM(unit=NGrams(), pairs="order", most=20),
    "halves": MLM(masked=0.85, random=0.0, pairs="halves"),
}
UNITS = ("words", "ngrams", "windows", "runs")
PAIRS = ("next", "order", "halves")


def make(name: str, context: int = 32, seed: int = 1, mixed: bool = False) -> Objective:
    return objective(GOALS[name], Setting(Pieces(), families.design("bert").text, context, seed, mixed))


def take(goal: Objective, view: Any, n: int, cursor: Cursor = Cursor()) -> list[Any]:
    return list(itertools.islice(goal.examples(view, cursor), n))


def text_of(row: dict[str, Any]) -> Any:
    """The row as it was before it was masked."""
    return np.where(row["labels"] != IGNORED, row["labels"], row["input_ids"])


# ---------------------------------------------------------------- golden, resuming


def test_golden_batches_at_a_fixed_seed() -> None:
    found = {}
    for name in GOALS:
        digest = hashlib.sha256()
        for example, cursor in take(make(name), some(), 6):
            for key in sorted(example):
                digest.update(np.ascontiguousarray(example[key]).tobytes())
            digest.update(repr(cursor).encode())
        found[name] = digest.hexdigest()[:12]
    assert found == GOLDEN


GOLDEN = {
    "halves": "01f04bcf1638",
    "next": "6f46efce69ed",
    "ngrams": "82031140e89b",
    "order": "9c21c4447473",
    "runs": "93772d935495",
    "windows": "2cfc94106410",
    "words": "167545904e1f",
}


@pytest.mark.parametrize("name", GOALS)
def test_a_stream_goes_on_from_any_cursor(name: str) -> None:
    view = some(8)
    rows = take(make(name), view, 40)
    assert rows[-1][1].slot >= 8
    for k in (0, 1, 7, 20, 33):
        for a, b in zip(take(make(name), view, 6, rows[k][1]), rows[k + 1 :], strict=False):
            assert a[1] == b[1] and all(np.array_equal(a[0][key], b[0][key]) for key in b[0])


@pytest.mark.parametrize("name", PAIRS)
def test_rows_are_planned_without_being_made(name: str) -> None:
    """The cursors alone cost no tokens: a process may skip the rows of others."""
    view, goal = some(8), make(name)
    plan = list(itertools.islice(goal.lazy_examples(view), 12))
    made = {k: plan[k][0]() for k in (9, 2)}
    for k, row in made.items():
        expected, cursor = take(goal, view, 12)[k]
        assert cursor == plan[k][1] and all(np.array_equal(row[key], expected[key]) for key in expected)


# ---------------------------------------------------------------- words


TEXT = [
    "The unbelievable cat's whiskers, finally; re-examined in 2019 (twice)!",
    "Unbelievably small cats examine whiskered things again and again.",
    "Nobody believed the examiner: he was small, thin and whiskered.",
] * 30


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Tokenizer]:
    special = Specials(unk="[UNK]", pad="[PAD]", cls="[CLS]", sep="[SEP]", mask="[MASK]")
    sizes = {"wordpiece": 90, "bpe": 320, "gpt-bpe": 130, "unigram": 330, "spm-bpe": 350}
    return {kind: Tokenizer.train(kind, TEXT, size, special) for kind, size in sizes.items()}


@pytest.mark.filterwarnings("ignore:the text gives")
def test_words_are_those_of_the_tokenizer(tokenizers: dict[str, Tokenizer]) -> None:
    """Against the word numbers that the tokenizers library keeps while it cuts words into pieces."""
    for kind in ("wordpiece", "gpt-bpe"):
        tokenizer = tokenizers[kind]
        for text in TEXT[1:2]:  # without a character that the vocabulary lacks
            encoding = tokenizer._plain.encode(text, add_special_tokens=False)
            tokens = np.array(encoding.ids)
            words = Vocabulary(tokenizer).words(tokens, np.arange(len(tokens)))
            numbers = [n for n, word in enumerate(words) for _ in word]
            assert numbers == encoding.word_ids and len(words) < len(tokens)


@pytest.mark.filterwarnings("ignore:the text gives")
@pytest.mark.parametrize("kind", ["bpe", "unigram", "spm-bpe"])
def test_words_begin_with_a_space(tokenizers: dict[str, Tokenizer], kind: str) -> None:
    tokenizer = tokenizers[kind]
    text = "the whiskered examiner was small"
    tokens = np.array(tokenizer.encode(text, add_special=False))
    words = Vocabulary(tokenizer).words(tokens, np.arange(len(tokens)))
    assert [tokenizer.decode(tokens[w]).strip() for w in words] == text.split() and len(words) < len(tokens)
    tokens = np.array(tokenizer.encode("small, thin", add_special=False))
    words = Vocabulary(tokenizer).words(tokens, np.arange(len(tokens)))
    assert [tokenizer.decode(tokens[w]).strip() for w in words] == ["small", ",", "thin"]


def test_a_word_begins_after_what_is_not_free() -> None:
    tokens = np.array([CLS, 10, 11, 12, 13, SEP, 14, 15])  # 12 and 15 begin words
    words = Vocabulary(Pieces()).words(tokens, np.array([1, 2, 3, 4, 6, 7]))
    assert [w.tolist() for w in words] == [[1, 2], [3, 4], [6], [7]]


def test_an_unknown_vocabulary_is_refused() -> None:
    class Other(Pieces):
        kind = "other"

    setting = Setting(Other(), families.design("bert").text, 32, 1)
    with pytest.raises(UsageError, match=r"set objective\.unit=Tokens"):
        objective(MLM(unit=Words()), setting)
    objective(MLM(), setting)


# ---------------------------------------------------------------- what is chosen


@pytest.mark.parametrize("name", UNITS)
def test_rates_and_replacements(name: str) -> None:
    view, goal = some(300, 60, 260, 1), make(name, context=128)
    rows = [e for e, _ in goal.examples(view, once=True)]
    inputs, labels = (np.concatenate([r[k] for r in rows]) for k in ("input_ids", "labels"))
    plain, chosen = np.concatenate([text_of(r) for r in rows]) >= FIRST, labels != IGNORED
    assert not (chosen & ~plain).any()
    # windows choose the last word whole, up to two tokens more than the budget of 128
    assert chosen.sum() / plain.sum() == pytest.approx(0.15, abs=0.01 if name == "windows" else 0.004)
    kinds, n = inputs[chosen], chosen.sum()
    spread = 3 if name == "runs" else 1  # draws are shared there, so there are fewer of them
    assert (kinds == MASK).mean() == pytest.approx(0.8, abs=4 * spread * (0.16 / n) ** 0.5)
    assert (kinds == labels[chosen]).mean() == pytest.approx(0.1 + 0.1 / 89, abs=4 * spread * (0.09 / n) ** 0.5)


def test_the_rates_are_those_of_the_common_collator() -> None:
    """transformers' DataCollatorForLanguageModeling on the same tokens: shares of chosen, masked and kept ones."""
    hf = pytest.importorskip("transformers")
    rng = np.random.default_rng(0)
    texts = rng.integers(FIRST, VOCAB, size=(400, 128))

    class Fast(hf.PreTrainedTokenizerFast):  # type: ignore[name-defined,misc]
        pass

    from tokenizers import Tokenizer as Core
    from tokenizers.models import WordLevel

    core = Core(WordLevel({"[PAD]": 0, "[MASK]": 3} | {f"t{i}": i for i in range(VOCAB) if i not in (0, 3)}, "t4"))
    collator = hf.DataCollatorForLanguageModeling(Fast(tokenizer_object=core, pad_token="[PAD]", mask_token="[MASK]"))
    torch.manual_seed(0)
    theirs = collator([{"input_ids": t.tolist()} for t in texts])
    goal = objective(MLM(), Setting(Pieces(), families.design("roberta").text, 130, 1))
    rows = [e for e, _ in goal.examples(Documents(list(texts)), once=True)]
    ours = {k: np.concatenate([r[k][1:-1] for r in rows]) for k in ("input_ids", "labels")}

    def shares(inputs: Any, labels: Any) -> list[float]:
        chosen = labels != IGNORED
        kept = inputs[chosen] == labels[chosen]
        return [chosen.mean(), (inputs[chosen] == MASK).mean(), kept.mean()]

    found = shares(ours["input_ids"], ours["labels"])
    expected = shares(theirs["input_ids"].numpy(), theirs["labels"].numpy())
    assert found == pytest.approx(expected, abs=0.015)


@pytest.mark.parametrize("name", ["words", "ngrams", "windows", "order"])
def test_words_are_masked_whole(name: str) -> None:
    words = halves = 0
    goal = make(name, context=64)
    vocabulary = Vocabulary(Pieces())
    # one document a row, so that no row begins inside of a word that the row before holds
    view = some(60, 62, 63) if name in UNITS else some(60, 40, 200)
    for row, _ in take(goal, view, 60):
        text, chosen = text_of(row), row["labels"] != IGNORED
        for word in vocabulary.words(text, np.flatnonzero(text >= FIRST)):
            words += chosen[word].all()
            halves += chosen[word].any() and not chosen[word].all()
    assert words > 100 and halves == 0


def test_ngrams_are_as_long_as_published() -> None:
    """p(n) = (1/n) / (1 + 1/2 + 1/3): 6/11, 3/11 and 2/11, where no budget and no neighbour is in the way."""
    tokens = np.repeat(12, 4000)  # words of one token
    for drawn in ("anywhere", "windows"):
        choose = Chooser(NGrams(drawn=drawn), 0.15, Pieces())
        lengths: Counter[int] = Counter()
        for seed in range(30):
            n = 60 if drawn == "anywhere" else 4000
            places = np.sort(choose(tokens, np.arange(4000), n, np.random.default_rng(seed)).places)
            runs = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)
            lengths.update(len(r) for r in runs)
        total = sum(lengths.values())
        assert [lengths[k] / total for k in (1, 2, 3)] == pytest.approx([6 / 11, 3 / 11, 2 / 11], abs=0.045)


def test_an_ngram_lies_in_each_window() -> None:
    """Windows of 6, 12 or 18 words at a rate of 15 %: no gap exceeds two windows, and one word in six is chosen."""
    tokens = np.repeat(12, 6000)
    places = np.sort(Chooser(NGrams(drawn="windows"), 0.15, Pieces())(
        tokens, np.arange(6000), 6000, np.random.default_rng(0)
    ).places)  # fmt: skip
    assert np.diff(places).max() <= 36 and len(places) / 6000 == pytest.approx(1 / 6, abs=0.005)
    ends = Chooser(NGrams(drawn="windows"), 0.15, Pieces())(tokens, np.arange(6000), 900, np.random.default_rng(0))
    assert len(ends.places) in (900, 901, 902) and ends.places.max() < 5700  # the budget is spent before the end


def test_runs_are_as_long_as_published() -> None:
    """SpanBERT: geometric lengths with p = 0.2 up to 10 words, 3.8 on average, and one replacement a run."""
    tokens = np.repeat(12, 5000)
    choose, lengths = Chooser(Runs(), 0.15, Pieces()), []
    for seed in range(40):
        places, draws = choose(tokens, np.arange(5000), 50, np.random.default_rng(seed))
        assert draws is not None and len(places) == 50
        lengths += [int((draws == d).sum()) for d in np.unique(draws)][:-1]  # the last one is cut off
    assert max(lengths) == 10 and np.mean(lengths) == pytest.approx(3.8, abs=0.25)
    chances = 0.8 ** np.arange(10)
    assert lengths.count(1) / len(lengths) == pytest.approx(1 / chances.sum(), abs=0.06)


def test_a_run_is_replaced_as_one() -> None:
    goal = make("runs", context=128)
    mixed = total = 0
    for row, _ in take(goal, some(120, 125, 126), 120):
        chosen = np.flatnonzero(row["labels"] != IGNORED)
        for run in np.split(chosen, np.flatnonzero(np.diff(chosen) > 1) + 1):
            kinds = {"mask" if i == MASK else "same" if i == t else "random"
                     for i, t in zip(row["input_ids"][run], row["labels"][run], strict=True)}  # fmt: skip
            total += 1
            mixed += len(kinds) > 1  # two runs may touch, or a random token be the same
    assert total > 100 and mixed / total < 0.2


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.integers(0, 60), st.sampled_from(UNITS), st.integers(0, 10**6))
def test_a_choice_is_a_set_of_free_places(length: int, n: int, name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(FIRST, VOCAB, size=length)
    free = np.flatnonzero(rng.random(length) < 0.9)
    places, draws = Chooser(GOALS[name].unit, 0.15, Pieces())(tokens, free, n, rng)
    assert len(set(places.tolist())) == len(places) and set(places.tolist()) <= set(free.tolist())
    longest = max((len(w) for w in Vocabulary(Pieces()).words(tokens, free)), default=0)
    assert len(places) <= (n + longest - 1 if name == "windows" and n else n)
    if name == "runs":
        assert draws is not None and len(draws) == len(places) == min(n, len(free))


# ---------------------------------------------------------------- the text is still there


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(UNITS), st.integers(0, 10**6), st.integers(8, 70), st.booleans())
def test_the_text_can_be_rebuilt_from_inputs_and_labels(name: str, seed: int, context: int, mixed: bool) -> None:
    view, goal = some(5, 1, 120, seed), make(name, context, seed, mixed)
    stream = np.concatenate([text_of(e)[e["documents"] >= 0] for e, _ in goal.examples(view, once=True)])
    order = goal.order(view)
    assert stream.tolist() == [t for k in range(5) for t in (CLS, *view[order[k][0]], SEP)]


def segments(row: dict[str, Any]) -> tuple[list[int], list[int]]:
    """A and B of a row, which is checked to be well made."""
    text, n = text_of(row), int(row["attention_mask"].sum())
    assert text[0] == CLS and text[n - 1] == SEP and (row["input_ids"][n:] == PAD).all()
    cuts = np.flatnonzero(text[:n] == SEP)
    types = row["token_type_ids"]
    assert (types[: cuts[0] + 1] == 0).all() and (types[cuts[0] + 1 : n] == 1).all() and (types[n:] == 0).all()
    assert (row["labels"][[0, *cuts]] == IGNORED).all() and (row["labels"][n:] == IGNORED).all()
    return text[1 : cuts[0]].tolist(), text[cuts[0] + 1 : n - 1].tolist() if len(cuts) > 1 else []


def inside(part: list[int], whole: Any) -> int:
    """Where a part begins in a text; -1 if nowhere."""
    whole = whole.tolist()
    return next((i for i in range(len(whole) - len(part) + 1) if whole[i : i + len(part)] == part), -1)


def last(part: list[int], whole: Any) -> int:
    """Where `part` stands for the last time in `whole`; -1 if it does not."""
    found = inside(part[::-1], whole[::-1])
    return -1 if found < 0 else len(whole) - found - len(part)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(PAIRS), st.integers(0, 10**6), st.integers(16, 70))
def test_segments_are_pieces_of_the_text(name: str, seed: int, context: int) -> None:
    view, goal = some(6, 30, 160, seed), make(name, context, seed)
    here = Cursor()
    order = goal.order(view)
    for row, follow in take(goal, view, 20):
        a, b = segments(row)
        own = view[order[here.slot][0]]
        label = int(row.get("pair_labels", 0))
        at = inside(a, own)
        assert at >= 0 or (name == "order" and label == 1)
        if name == "halves":
            assert inside(a + b, own) >= at
        elif label == 0:
            assert at < last(b, own)
        elif name == "order" and inside(a, own) >= 0 and inside(b, own) >= 0:
            assert inside(b, own) < inside(a, own) or min(len(a), len(b)) <= 4  # found by chance
        here = follow


def test_the_order_of_segments_is_swapped_half_of_the_time() -> None:
    """Polarity as released: 0 in order, 1 swapped. A chunk of one sentence has a random text beside it, label 1."""
    view, goal = some(60, 60, 400), make("order", context=64)
    swapped, random, n = 0, 0, 600
    here, order = Cursor(), goal.order(view)
    for row, follow in take(goal, view, n):
        a, b = segments(row)
        own = view[order[here.slot][0]]
        first, second = inside(a, own), inside(b, own)
        if row["pair_labels"] == 0:
            assert 0 <= first < second
        elif first >= 0 and second >= 0 and len(a) > 1 and len(b) > 1:
            assert second < first
            swapped += 1
        else:
            random += 1
        here = follow
    assert swapped / (n - random) == pytest.approx(0.5, abs=0.07) and random < 0.1 * n


def test_halves_are_as_released() -> None:
    """One segment in a tenth of the rows; else the first ends near the middle; one row in twenty is short."""
    view, goal = some(40, 2000, 3000), make("halves", context=128)
    cuts = [segments(row) for row, _ in take(goal, view, 1500)]
    single = np.mean([not b for _, b in cuts])
    assert single == pytest.approx(0.1, abs=0.04)  # short rows may have one sentence only
    full = [(len(a), len(b)) for a, b in cuts if b and len(a) + len(b) == 125]
    assert len(full) / len(cuts) > 0.75
    assert np.mean([a for a, _ in full]) == pytest.approx(62, abs=4) and all(50 < a < 75 for a, _ in full)


def test_targets_of_a_row_are_limited() -> None:
    view = some(20, 900, 1500)
    for most, bound in ((20, 20), (None, 77)):
        goal = objective(
            MLM(unit=NGrams(), pairs="order", most=most), Setting(Pieces(), families.design("albert").text, 512, 1)
        )
        sizes = [int((e["labels"] != IGNORED).sum()) for e, _ in take(goal, view, 40)]
        assert max(sizes) == bound
    assert families.design("albert").objective == MLM(unit=NGrams(), pairs="order", copies=40, most=20)


def test_no_label_leaks_into_the_inputs() -> None:
    """Another token in a masked place: inputs are the same, and only its label is another."""
    seen: Counter[str] = Counter()
    for name, seed in itertools.product(("words", "ngrams", "runs", "order", "halves"), range(6)):
        view = some(6, 40, 90, seed)
        row, _ = take(make(name), view, 1)[0]
        document = view[make(name).order(view)[0][0]]
        for place in np.flatnonzero((row["input_ids"] == MASK) & (row["labels"] != IGNORED)):
            token = row["labels"][place]
            if (document == token).sum() != 1:
                continue
            other = token + 3 if token + 3 < VOCAB else token - 3  # it begins a word if the other does
            changed = Sentences([np.where(d == token, other, d) if d is document else d for d in view.documents])
            again, _ = take(make(name), changed, 1)[0]
            assert np.array_equal(again["input_ids"], row["input_ids"])
            assert np.flatnonzero(again["labels"] != row["labels"]).tolist() == [place]
            seen[name] += 1
    assert len(seen) == 5


def test_a_masking_is_made_as_often_as_declared() -> None:
    view = Sentences([np.arange(FIRST, FIRST + 80)])
    goal = make("next", context=128)
    rows: dict[int, list[Any]] = {}
    here = Cursor()
    for row, follow in take(goal, view, 40):
        rows.setdefault(here.slot, []).append(row["labels"].tolist())
        here = follow
    assert rows[0] == rows[2] and rows[1] == rows[3] and rows[0] != rows[1]


# ---------------------------------------------------------------- losses


def network(name: str, **heads: Any) -> Model:
    design = families.design(name)
    dims = replace(design.dims, d_model=32, layers=2, heads=4, kv_heads=None, d_ff=64, vocab=VOCAB, context=64)
    return Model(design.arch, dims).initialise(3).eval()


@pytest.mark.parametrize("name", GOALS)
def test_losses_split_exactly(name: str) -> None:
    goal, model = make(name), network("bert")
    examples = [e for e, _ in take(goal, some(), 8)]
    whole = goal.loss(model, goal.collate(examples))
    assert whole.counts == goal.counts(goal.collate(examples))
    whole.total().backward()
    grad = model.embed.tokens.weight.grad
    assert grad is not None
    model.zero_grad()
    for i in (0, 3, 6):
        goal.loss(model, goal.collate(examples[i : i + 3])).total(whole.counts).backward()
    torch.testing.assert_close(model.embed.tokens.weight.grad, grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", UNITS)
def test_a_document_is_deaf_to_its_neighbours(name: str) -> None:
    goal = make(name, context=64)
    for family in ("bert", "deberta"):
        model = network(family)
        batch = goal.collate([e for e, _ in take(goal, some(60, 6, 25), 3)])
        second = batch["documents"] == 1
        wrong = batch | {"input_ids": torch.where(second, FIRST + (batch["input_ids"] + 1) % 80, batch["input_ids"])}
        with torch.no_grad():
            a, b = (model.read(model.state(goal.inputs(model, x))) for x in (batch, wrong))  # type: ignore[attr-defined]
        assert second.any() and torch.equal(a[~second], b[~second]) and not torch.equal(a[second], b[second])


@pytest.mark.parametrize(("name", "case", "label"), [
    ("order", "albert-pretraining", "sentence_order_label"),
    ("next", "bert-pretraining", "next_sentence_label"),
])  # fmt: skip
def test_the_loss_is_the_reference(name: str, case: str, label: str, tmp_path: Path) -> None:
    """AlbertForPreTraining and BertForPreTraining on the same weights and batch: the loss and its gradient."""
    theirs = saved(case, tmp_path)
    ours = stemma.load(tmp_path, tokenizer=False)
    goal = make(name)
    rows = [e for e, _ in take(goal, some(), 5)]
    batch = goal.collate(rows)
    loss = goal.loss(ours, batch).total()
    labels = torch.from_numpy(np.stack([r["labels"] for r in rows]))
    given = {k: batch[k] for k in ("input_ids", "attention_mask", "token_type_ids")}
    expected = theirs(**given, labels=labels, **{label: batch["pair_labels"]}).loss
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-6)
    loss.backward()
    expected.backward()
    grad = theirs.get_input_embeddings().weight.grad
    torch.testing.assert_close(ours.embed.tokens.weight.grad, grad, atol=1e-5, rtol=1e-4)
    assert reference(case) is not theirs


def test_what_does_not_fit_is_said() -> None:
    arch = {name: families.design(name).arch for name in ("bert", "roberta", "electra", "gpt2", "albert")}
    assert (
        incompatible_reason(GOALS["order"], arch["albert"]) is None
        and incompatible_reason(GOALS["halves"], arch["roberta"]) is None
    )
    for goal, name, words in (
        (GOALS["order"], "roberta", "needs arch.heads.pooler and arch.heads.pair"),
        (GOALS["words"], "electra", "arch.heads.lm is None"),
        (GOALS["halves"], "electra", "arch.heads.lm is None"),
        (GOALS["runs"], "gpt2", "of structure encoder"),
    ):
        assert words in str(incompatible_reason(goal, arch[name]))
    for fields, words in (
        ({"most": 5}, "objective.most is for rows of objective.pairs"),
        ({"most": 0, "pairs": "next"}, "objective.most must be at least 1"),
        ({"unit": {"kind": "NGrams", "longest": 0}}, "unit.longest must be at least 1"),
        ({"unit": {"kind": "Runs", "p": 1.5}}, "unit.p must lie between 0 and 1"),
        ({"unit": "Syllables"}, "known: Tokens, Words, NGrams, Runs"),
        ({"pairs": "maybe"}, "pairs"),
    ):
        with pytest.raises(UsageError, match=words):
            stemma.spec.edit(MLM(), fields)
    assert MLM().unit == Tokens()


@pytest.mark.parametrize("vocabulary", [275, 300])  # characters in pieces of bytes, and whole
@pytest.mark.parametrize(
    "text",
    ["今日は天気がいいので、公園まで歩いて行きました", "我们昨天去了公园然后回家吃饭", "ฉันไปสวนเมื่อวานนี้แล้วกลับบ้าน"],
)
def test_scripts_without_spaces_have_words_in_byte_level_vocabularies(vocabulary: int, text: str) -> None:
    with warnings.catch_warnings(action="ignore"):
        tokenizer = Tokenizer.train("bpe", [text, text[::-1], text[5:]], vocabulary, Specials(mask="<mask>"))
    tokens = np.asarray(tokenizer.encode(text))
    words = Vocabulary(tokenizer).words(tokens, np.arange(len(tokens)))
    assert max(map(len, words)) <= 6 and len(words) > 3
    assert all("\ufffd" not in tokenizer.decode(tokens[word].tolist()) for word in words)


def test_scripts_with_spaces_have_whole_words_in_byte_level_vocabularies() -> None:
    text = "Жук ползёт 나는 공원에 नमस्ते दुनिया café 🙂"
    with warnings.catch_warnings(action="ignore"):
        tokenizer = Tokenizer.train("bpe", ["x y"], 260, Specials(mask="<mask>"))
    tokens = np.asarray(tokenizer.encode(text))
    words = Vocabulary(tokenizer).words(tokens, np.arange(len(tokens)))
    assert [tokenizer.decode(tokens[word].tolist()).strip() for word in words] == text.split()
