"""Objectives over several languages: XLM's streams and pairs of translations, translation, and the mixtures of T5's kin."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
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
from oracle import jitter
from stemma import families
from stemma.cli import main
from stemma.data import parallel
from stemma.declare.family import Text
from stemma.declare.objectives import CLM, MLM, TLM, Denoise, Deshuffle, Fragment, Spans, Translation
from stemma.declare.recipes import Sampling
from stemma.errors import DataError, UsageError
from stemma.nn.inputs import Inputs
from stemma.nn.model import IGNORED, Model
from stemma.objectives import Cursor, Objective, Setting, objective
from stemma.objectives.languages import Streams
from stemma.train import pretrain, verify_resume
from stemma.train.plans import default_data
from tiny import build, tiny

VOCAB, PLAIN = 83, 60  # ids 10..59 are text, 20 of them of each language
LANGUAGES = ("en", "de", "ru")
CONTEXT = 40


class Words:
    def __init__(self, **ids: int) -> None:
        self.vocab_size, self.sentinels = VOCAB, 20
        for role in ("bos", "eos", "pad", "unk", "mask", "cls", "sep"):
            setattr(self, f"{role}_id", ids.get(role))
        self.special_ids = {*ids.values(), *(self.sentinel(k) for k in range(20))}

    def sentinel(self, k: int) -> int:
        return VOCAB - 1 - k


class Verses:
    """A view in memory: groups of a sentence in each language; the languages have words of their own."""

    parts = ()

    def __init__(
        self, n: int = 40, sizes: tuple[int, ...] = (1, 1, 1), seed: int = 0, low: int = 2, high: int = 12
    ) -> None:
        rng = np.random.default_rng(seed)
        self.documents, ids, groups = [], [], []
        for group in range(n):
            words = rng.integers(0, 16, size=rng.integers(low, high))
            for language, share in enumerate(sizes):
                if group % max(sizes) < share:
                    self.documents.append(10 + 16 * language + words)
                    ids.append(language)
                    groups.append(group)
        self.languages = LANGUAGES[: len(sizes)]
        self.language_ids, self.groups = np.array(ids), np.array(groups)
        self.part_ids = np.zeros(len(ids), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, i: int) -> Any:
        return self.documents[i]

    def closed(self, i: int) -> bool:
        return True

    def sentences(self, i: int) -> Any:
        return np.array([0])

    @property
    def tokens_total(self) -> int:
        return sum(map(len, self.documents))


XLM = Words(bos=0, eos=1, pad=2, unk=3, mask=5, cls=1, sep=1)
T5 = Words(eos=1, pad=0)
TEXT = Text("gpt-bpe", languages=LANGUAGES, pad_id=2, start_id=2)


def make(
    spec: Any, mixed: bool = True, rows: int = 4, sampling: Sampling = Sampling(0.7, unit="batch"), **more: Any
) -> Objective:
    words = T5 if isinstance(spec, Spans) else XLM
    return objective(spec, Setting(words, more.pop("text", TEXT), CONTEXT, 1, mixed, sampling=sampling, rows=rows))


def take(goal: Objective, view: Any, n: int, cursor: Cursor = Cursor()) -> list[Any]:
    return list(itertools.islice(goal.examples(view, cursor), n))


def rebuilt(row: dict[str, Any]) -> Any:
    return np.where(row["labels"] != IGNORED, row["labels"], row["input_ids"])


GOALS: dict[str, tuple[Any, bool]] = {
    "mlm": (MLM(), True),
    "mlm-apart": (MLM(), False),
    "clm": (CLM(), True),
    "tlm": (TLM(), True),
    "translation": (Translation("en", "de"), False),
    "spans": (Spans(), True),
    "spans-apart": (Spans(), False),
}


# ---------------------------------------------------------------- rows


def test_golden_batches_at_a_fixed_seed() -> None:
    found = {}
    for name, (spec, mixed) in GOALS.items():
        digest = hashlib.sha256()
        for example, cursor in take(make(spec, mixed), Verses(), 9):
            for key in sorted(example):
                digest.update(np.ascontiguousarray(example[key]).tobytes())
            digest.update(repr(cursor).encode())
        found[name] = digest.hexdigest()[:12]
    assert found == GOLDEN


GOLDEN = {
    "clm": "185a5dc2bf1d",
    "mlm": "610551c25a73",
    "mlm-apart": "610551c25a73",
    "spans": "ad4402636264",
    "spans-apart": "51b32349c207",
    "tlm": "1f05e318602e",
    "translation": "f3cf454f34d9",
}


@pytest.mark.parametrize("name", GOALS)
def test_a_stream_goes_on_from_any_cursor(name: str) -> None:
    spec, mixed = GOALS[name]
    view, goal = Verses(20), make(spec, mixed)
    rows = take(goal, view, 60)
    for k in (0, 1, 7, 20, 45):
        for (a, at), (b, to) in zip(take(make(spec, mixed), view, 6, rows[k][1]), rows[k + 1 :], strict=False):
            assert at == to and all(np.array_equal(a[key], b[key]) for key in b)


@pytest.mark.parametrize("spec", [MLM(), CLM(), TLM()])
def test_a_batch_is_of_one_language(spec: Any) -> None:
    """XLM, section 3.5; and each token is told its language."""
    rows = [e for e, _ in take(make(spec), Verses(), 400)]
    seen: Counter[int] = Counter()
    for i in range(0, 400, 4):
        batch = rows[i : i + 4]
        paired = isinstance(spec, TLM) and i // 4 % 2 == 1
        kinds = {int(lang) for e in batch for lang in e["langs"][e["documents"] >= 0]}
        assert len(kinds) == (2 if paired else 1)
        seen.update(kinds)
        for e in batch:
            text = rebuilt(e) if "attention_mask" in e else e["input_ids"]
            plain = (text >= 10) & (text < PLAIN)
            assert np.array_equal((text[plain] - 10) // 16, e["langs"][plain])
    assert len(seen) == 3 and min(seen.values()) > 25


@pytest.mark.parametrize("stride", [CONTEXT, CONTEXT - 1])
def test_an_epoch_of_a_stream_is_its_whole_text(stride: int) -> None:
    """The windows of an epoch of a language hold each of its tokens once (the last of a window is the next one's first,
    where the stride is a token shorter), and come in another order in the next."""
    view = Verses(60, sizes=(2, 1))
    setting = Setting(XLM, TEXT, CONTEXT, 1, sampling=Sampling(0.7, unit="row"))
    streams = Streams(setting, view, lambda d: len(view[d]) + 2, CONTEXT, stride)
    seen: dict[tuple[int, int], list[tuple[int, Any]]] = {}
    for row in range(600):
        component, item, epoch = streams.batches[row]
        seen.setdefault((component, epoch), []).append((item, streams.chunk(row)))
    for component in (0, 1):
        whole = [
            (d, i) for d in np.flatnonzero(view.language_ids == component).tolist() for i in range(len(view[d]) + 2)
        ]
        orders = [[item for item, _ in seen[component, epoch]] for epoch in (0, 1)]
        assert sorted(orders[0]) == sorted(orders[1]) and orders[0] != orders[1]
        for epoch in (0, 1):
            text: list[tuple[int, int]] = []
            for _, span in sorted(seen[component, epoch], key=lambda pair: pair[0]):
                own = [(p.document, p.start + i) for p in span.parts for i in range(p.tokens)]
                assert len(own) == span.size <= CONTEXT and {p.epoch for p in span.parts} == {epoch}
                overlap = CONTEXT - stride if text else 0
                assert text[len(text) - overlap :] == own[:overlap]
                text += own[overlap:]
            assert text == whole


def test_languages_are_drawn_by_their_sizes_to_the_power_of_alpha() -> None:
    view = Verses(80, sizes=(8, 2, 1))
    n = np.bincount(view.language_ids)
    for alpha in (1.0, 0.7, 0.0):
        rows = take(make(MLM(), sampling=Sampling(alpha, unit="row")), view, 1280)
        seen = np.bincount([int(e["langs"][0]) for e, _ in rows])
        assert seen / seen.sum() == pytest.approx(n**alpha / (n**alpha).sum(), abs=0.003)


def test_masking_rates_of_pairs() -> None:
    rows = [e for e, _ in take(make(TLM()), Verses(200), 800)]
    pairs = [e for i, e in enumerate(rows) if i // 4 % 2]
    inputs, labels = (np.concatenate([e[k] for e in pairs]) for k in ("input_ids", "labels"))
    text, chosen = np.where(labels != IGNORED, labels, inputs), labels != IGNORED
    plain = (text >= 10) & (text < PLAIN)
    assert not (chosen & ~plain).any()
    assert chosen.sum() / plain.sum() == pytest.approx(0.15, abs=0.015)
    n = chosen.sum()
    assert (inputs[chosen] == 5).mean() == pytest.approx(0.8, abs=4 * (0.16 / n) ** 0.5)
    assert (inputs[chosen] == labels[chosen]).mean() == pytest.approx(0.1, abs=4 * (0.1 / n) ** 0.5)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(0, 10**6), st.integers(0, 500))
def test_pairs_are_translations_of_each_other(n: int, seed: int, row: int) -> None:
    """`</s> x </s> </s> y </s>`: the text can be had back, both halves count from 0, and are of one group."""
    view = Verses(n, seed=seed, high=30)
    slot = (row // 4 * 2 + 1) * 4 + row % 4
    (e, _), *_ = take(make(TLM()), view, 1, Cursor(slot))
    text = rebuilt(e)
    known = {tuple(view[i].tolist()): i for i in range(len(view))}
    half = (CONTEXT - 4) // 2
    cut: dict[tuple[int, ...], set[int]] = {}
    for i in range(len(view)):
        cut.setdefault(tuple(view[i][:half].tolist()), set()).add(i)
    assert known
    for number in range(int(e["documents"].max()) + 1):
        inside = e["documents"] == number
        tokens, at = text[inside], e["position_ids"][inside]
        (second,) = np.flatnonzero(at == 0)[1:]
        x, y = tokens[:second], tokens[second:]
        for side, places in ((x, at[:second]), (y, at[second:])):
            assert side[0] == side[-1] == 1 and places.tolist() == list(range(len(side)))
        a, b = cut[tuple(x[1:-1].tolist())], cut[tuple(y[1:-1].tolist())]
        assert any(
            view.groups[i] == view.groups[j] and view.language_ids[i] != view.language_ids[j] for i in a for j in b
        )
    assert (text[e["documents"] < 0] == 2).all() and (e["labels"][e["documents"] < 0] == IGNORED).all()


def test_both_orders_of_a_pair_occur() -> None:
    rows = [e for i, (e, _) in enumerate(take(make(TLM()), Verses(60), 400)) if i // 4 % 2]
    first = Counter(
        int(e["langs"][0]) < int(e["langs"][int(e["position_ids"][e["documents"] == 0].argmax()) + 1]) for e in rows
    )
    assert min(first.values()) > 40


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(0, 10**6), st.integers(4, 60))
def test_rows_of_translation(n: int, seed: int, high: int) -> None:
    """Every pair once an epoch, both sides ended, the target one place later in the decoder, none cut but at a row."""
    view = Verses(n, sizes=(1, 1), seed=seed, high=high)
    found: Counter[tuple[tuple[int, ...], tuple[int, ...]]] = Counter()
    for e, _ in make(Translation()).examples(view, once=True):
        for number in range(int(e["documents"].max()) + 1):
            read = e["input_ids"][e["documents"] == number]
            there = e["decoder_documents"] == number
            said, given = e["labels"][there], e["decoder_input_ids"][there]
            given, said = given[said != IGNORED], said[said != IGNORED]
            assert read[-1] == said[-1] == 1 and given.tolist() == [2, *said[:-1].tolist()]
            found[tuple(read[:-1].tolist()), tuple(said[:-1].tolist())] += 1
    room = CONTEXT - 1
    wanted = Counter((tuple(view[2 * i][:room].tolist()), tuple(view[2 * i + 1][:room].tolist())) for i in range(n))
    assert found == wanted


def test_what_translation_needs() -> None:
    view = Verses()
    with pytest.raises(UsageError, match="choose two of them"):
        take(make(Translation()), view, 1)
    with pytest.raises(UsageError, match=r"objective\.target=fr is no language of the text"):
        take(make(Translation("en", "fr")), view, 1)
    one = Verses(sizes=(1,))
    with pytest.raises(DataError, match="in en alone"):
        take(make(Translation()), one, 1)
    with pytest.raises(DataError, match="holds no translations"):
        take(make(TLM(), text=replace(TEXT, languages=("en",))), one, 1)
    with pytest.raises(UsageError, match="both 'en'"):
        Translation("en", "en")
    with pytest.raises(DataError, match="the language 'ru', and the model has en, de"):
        take(make(MLM(), text=replace(TEXT, languages=("en", "de"))), view, 1)


def test_an_evaluation_reads_every_document_once() -> None:
    view = Verses(30, sizes=(3, 1, 2))
    wanted = Counter(t for i in range(len(view)) for t in view[i].tolist())
    for spec in (MLM(), TLM()):
        texts = [rebuilt(e) for e, _ in make(spec).examples(view, once=True)]
        assert Counter(t for row in texts for t in row.tolist() if 10 <= t < PLAIN) == wanted
    texts = [np.concatenate([e["input_ids"], e["labels"]]) for e, _ in make(Spans()).examples(view, once=True)]
    assert Counter(t for row in texts for t in row.tolist() if 10 <= t < PLAIN) == wanted


def test_rows_of_spans_are_of_one_language() -> None:
    for e, _ in take(make(Spans(), True, sampling=Sampling(0.3, unit="row")), Verses(), 60):
        text = np.concatenate([e["input_ids"], e["labels"]])
        assert len({(t - 10) // 16 for t in text.tolist() if 10 <= t < 58}) == 1


@pytest.mark.parametrize("spec", [Denoise(), Fragment(masked=1.0, random=0.0), Deshuffle()])
def test_rows_of_rewritten_texts_are_of_one_language(spec: Any) -> None:
    goal = make(spec, True, sampling=Sampling(0.3, unit="row"), text=Text("unigram", pad_id=2))
    rows, seen = take(goal, Verses(), 60), Counter[int]()
    for e, _ in rows:
        text = [t for t in np.concatenate([e["input_ids"], e["labels"]]).tolist() if 10 <= t < 58]
        assert len({(t - 10) // 16 for t in text}) == 1
        seen[(text[0] - 10) // 16] += 1
    assert len(seen) == 3
    for (a, at), (b, to) in zip(take(goal, Verses(), 9, rows[7][1]), rows[8:], strict=False):
        assert at == to and all(np.array_equal(a[key], b[key]) for key in b)


CODES = {"en_XX": 70, "de_DE": 71, "ru": 72}


class Coded(Words):
    """A tokenizer with a code for each language."""

    def __init__(self) -> None:
        super().__init__(bos=0, eos=1, pad=2, unk=3, mask=5, cls=0, sep=1)
        self.special_ids |= set(CODES.values())

    def id(self, name: str) -> int | None:
        return CODES.get(name)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("once", [False, True])
def test_a_text_ends_with_the_code_of_its_language(mixed: bool, once: bool) -> None:
    """mBART, section 2.2: a text is of one language and closed by its code, from which the decoder begins."""
    text = Text("unigram", shift="last", extras=tuple(CODES), pad_id=2)
    setting = Setting(Coded(), text, CONTEXT, 1, mixed, sampling=Sampling(0.7, unit="row"), rows=4)
    goal, view = objective(Denoise(infill=0.35, mean=3.5), setting), Verses(40)
    view.languages = ("en", "de", "ru")
    rows = list(goal.examples(view, once=True)) if once else take(goal, view, 60)
    seen: Counter[int] = Counter()
    for row, _ in rows:
        for number in range(int(row["documents"].max()) + 1):
            inputs = row["input_ids"][row["documents"] == number].tolist()
            mine = (row["decoder_documents"] == number) & (row["labels"] != IGNORED)
            said, read = row["labels"][mine].tolist(), row["decoder_input_ids"][mine].tolist()
            languages = [(t - 10) // 16 for t in said if 10 <= t < 58]
            code = list(CODES.values())[languages[-1]]
            assert inputs[-2:] == said[-2:] == [1, code] and read == [code, *said[:-1]]
            assert (once and mixed) or len(set(languages)) == 1
            seen[code] += 1
    assert len(seen) == 3
    view.languages = ("en", "fi", "ru")
    with pytest.raises(DataError, match="'fi'"):
        next(goal.examples(view))
    assert goal.epochs(Verses(40), Cursor(50)) == (50 * CONTEXT / Verses(40).tokens_total if mixed else 50 / len(view))


# ---------------------------------------------------------------- models


def network(name: str, **changes: Any) -> Model:
    return build(tiny(name, **changes))


def batch(goal: Objective, view: Any, n: int, cursor: Cursor = Cursor()) -> Any:
    return goal.collate([e for e, _ in take(goal, view, n, cursor)])


MODELS = {"mlm": "xlm", "mlm-apart": "xlm", "clm": "xlm-clm", "tlm": "xlm", "translation": "transformer", "spans": "mt5", "spans-apart": "umt5"}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_losses_split_exactly(name: str) -> None:
    spec, mixed = GOALS[name]
    goal, model, view = make(spec, mixed), network(MODELS[name]), Verses()
    start = Cursor(4) if name == "tlm" else Cursor()
    examples = [e for e, _ in take(goal, view, 4, start)]
    model.train()
    whole = goal.loss(model, goal.collate(examples))
    assert whole.counts == goal.counts(goal.collate(examples))
    parts = [goal.loss(model, goal.collate(examples[i : i + 1])) for i in range(4)]
    torch.testing.assert_close(sum(p.total(whole.counts) for p in parts), whole.total(), atol=1e-5, rtol=1e-5)
    whole.total().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", ["tlm", "translation", "spans-apart", "mlm-apart"])
def test_pairs_are_deaf_to_their_neighbours(name: str) -> None:
    spec, mixed = GOALS[name]
    goal, model = make(spec, mixed), network(MODELS[name])
    found = batch(goal, Verses(60, high=8), 4, Cursor(4) if name == "tlm" else Cursor())
    assert int(found["documents"].max()) >= 1
    wrong = {k: v.clone() for k, v in found.items()}
    wrong["input_ids"][found["documents"] == 1] = 11
    if "decoder_input_ids" in wrong:
        wrong["decoder_input_ids"][found["decoder_documents"] == 1] = 11
    owner = found["decoder_documents" if "decoder_documents" in found else "documents"].flatten()
    owner = owner[found["where"]] if "where" in found else owner
    a, b = each(goal, model, found), each(goal, model, wrong)
    assert torch.equal(a[owner != 1], b[owner != 1]) and not torch.equal(a[owner == 1], b[owner == 1])


@pytest.mark.parametrize(
    "family", ["transformer", *(pytest.param(f, marks=pytest.mark.slow) for f in ("bart", "mass", "t5"))]
)
def test_no_target_sees_padding(family: str) -> None:
    """How much of it a row has says how much text is still to come."""
    goal, model = make(Translation("en", "de"), False), network(family)
    examples = [e for e, _ in take(goal, Verses(60, high=8), 3)]
    for some in (examples, [e for e in examples if e["documents"].max() == 0] or examples[:1]):
        empty = torch.from_numpy(np.stack([e["labels"] for e in some])) == IGNORED
        found = goal.collate(some)
        wrong = {**found, "decoder_input_ids": found["decoder_input_ids"].masked_fill(empty, 11)}
        assert empty.any() and torch.equal(each(goal, model, found), each(goal, model, wrong))


def each(goal: Objective, model: Model, found: Any) -> torch.Tensor:
    """The loss of every target, one by one through the objective's own path."""
    where = found.get("where", torch.arange(found["labels"].numel() if "labels" in found else len(found["targets"])))
    with torch.no_grad():
        return torch.stack([
            goal.loss(model, {**found, "targets": found["targets"][i : i + 1], "where": where[i : i + 1]}).total()
            for i in range(len(found["targets"]))
        ])  # fmt: skip


def test_a_half_sees_the_other() -> None:
    """Of a pair of translations each half sees the other, so that a word can be found there."""
    goal, model, view = make(TLM()), network("xlm"), Verses(60, high=8)
    found = batch(goal, view, 4, Cursor(4))
    wrong = {k: v.clone() for k, v in found.items()}
    first = found["langs"][:, :1] == found["langs"]  # of the first pair's first language
    wrong["input_ids"][first & (found["input_ids"] >= 10) & (found["documents"] >= 0)] = 11
    other = (~first & (found["documents"] >= 0)).flatten()[found["where"]]
    a, b = each(goal, model, found), each(goal, model, wrong)
    assert other.any() and (a[other] != b[other]).all()


def test_the_loss_is_the_publishers(tmp_path: Path) -> None:
    """XLMWithLMHeadModel on the same ids, languages and positions: rows of one language, and a pair of translations."""
    sizes = dict(emb_dim=36, n_layers=3, n_heads=6, n_langs=3, vocab_size=VOCAB, max_position_embeddings=CONTEXT)
    plain = dict(dropout=0.0, attention_dropout=0.0, pad_index=2, pad_token_id=2, mask_index=5)
    theirs = hf.XLMWithLMHeadModel(hf.XLMConfig(**sizes, **plain)).eval()
    jitter(theirs, 4)
    theirs.save_pretrained(tmp_path)
    ours = stemma.load(str(tmp_path)).eval()
    for cursor in (Cursor(), Cursor(4)):
        goal = make(TLM(), mixed=True)
        view = Verses(60, low=13, high=17)  # a pair fills its row
        found = batch(goal, view, 4, cursor)
        labels = torch.full_like(found["input_ids"], IGNORED).flatten()
        labels[found["where"]] = found["targets"]
        documents = found.get("documents")
        mask = torch.ones_like(found["input_ids"]) if documents is None else (documents >= 0).long()
        with torch.no_grad():
            out = theirs(
                input_ids=found["input_ids"],
                attention_mask=mask,
                langs=found["langs"],
                position_ids=found.get("position_ids"),
                labels=labels.view_as(found["input_ids"]),
            )
            mine = goal.loss(ours, found).total()
        torch.testing.assert_close(mine, out.loss, atol=1e-5, rtol=1e-5)


def test_smoothed_targets() -> None:
    """Training: the mean over all entries has a share of 0.1; evaluation: the plain cross-entropy."""
    goal, model = make(Translation("en", "de"), False), network("transformer")
    found = batch(goal, Verses(), 2)
    plain = goal.loss(model, found).total()
    source = Inputs(found["input_ids"], position_ids=found["position_ids"], documents=found["documents"])
    target = Inputs(
        found["decoder_input_ids"],
        position_ids=found["decoder_position_ids"],
        documents=found["decoder_documents"],
        encoder_hidden=model.encode(source),
        encoder_documents=found["documents"],
    )
    hidden = model.decode(target)
    logs = model.logits(hidden).log_softmax(-1).flatten(0, 1)[found["where"]]
    picked = logs.gather(1, found["targets"][:, None]).mean()
    torch.testing.assert_close(plain, -picked, atol=1e-5, rtol=1e-5)
    smoothed = goal.loss(model.train(), found).total()
    torch.testing.assert_close(smoothed, -(0.9 * picked + 0.1 * logs.mean(-1).mean()), atol=1e-5, rtol=1e-5)


def test_no_label_leaks_into_a_pair() -> None:
    """Where the mask token stands, the input says nothing of the target: another target changes no input."""
    for e, _ in take(make(TLM()), Verses(), 40, Cursor(4)):
        chosen = e["labels"] != IGNORED
        assert not ((e["input_ids"] == 5) & ~chosen).any()


# ---------------------------------------------------------------- learning and running


@pytest.mark.parametrize(("name", "data"), [
    ("xlm", "builtin:parallel"), ("xlm-clm", "builtin:parallel"), ("xlm-roberta", "builtin:parallel"), ("mt5", "builtin:parallel"),
    ("umt5", "builtin:parallel"), ("mbart", "builtin:parallel"), ("transformer", "builtin:parallel:en-de"), ("codellama", "builtin:code"),
    ("bert", "builtin:docs"), ("t5", "builtin:docs"),
])  # fmt: skip
def test_the_text_that_suits_a_family(name: str, data: str) -> None:
    assert default_data(families.design(name)) == data


def test_declared_samplings() -> None:
    """XLM, section 3.5: batches of one language, 0.7; XLM-R, section 3.1, and mT5, section 3.1: 0.3; umT5: uniform."""
    found = {
        name: families.family(name).recipe.sampling for name in ("xlm", "xlm-clm", "xlm-roberta", "mt5", "umt5", "t5")
    }
    assert found == {
        "xlm": Sampling(0.7, unit="batch"),
        "xlm-clm": Sampling(0.7, unit="batch"),
        "xlm-roberta": Sampling(0.3, unit="row"),
        "mt5": Sampling(0.3, unit="row"),
        "umt5": Sampling(0.0, 10.0, "row"),
        "t5": Sampling(),
    }


def test_a_pair_helps() -> None:
    """Words of two languages correspond one to one here: after some steps a masked word is found in the translation,
    which no text of one language tells (16 words at random: 2.77 nats)."""
    torch.manual_seed(0)
    goal, view = make(TLM(rate=0.3), rows=8, text=replace(TEXT, languages=LANGUAGES[:2])), Verses(400, (1, 1), high=6)
    model = network("xlm", **{"dims.layers": 2, "dims.languages": 2}).train()
    opt = torch.optim.AdamW(model.parameters(), lr=3e-3)
    stream = goal.examples(view)
    losses = []
    for step in range(400):
        opt.param_groups[0]["lr"] = 3e-3 * min(1.0, (step + 1) / 30)
        loss = goal.loss(model, goal.collate([next(stream)[0] for _ in range(8)])).total()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        opt.zero_grad()
        losses.append(loss.item())
    alone, pairs = np.mean(losses[-40::2]), np.mean(losses[-39::2])
    assert alone > 2.4 and pairs < 2.0, (alone, pairs)


RUNS = ["xlm", "xlm-mlm-xnli15-1024", "xlm-mlm-17-1280", "xlm-clm", "xlm-roberta", "mt5", "umt5", "transformer"]
SMALL = {
    "dims.d_model": 32, "dims.layers": 1, "dims.heads": 2, "dims.kv_heads": None, "dims.d_ff": 128, "dims.vocab": 500,
    "dims.context": 32, "recipe.batch": 128, "train.eval_tokens": 400, "train.threads": 1, "train.precision": "fp32",
}  # fmt: skip


@pytest.fixture(scope="session")
def talks(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Verses in two languages, line by line."""
    folder = tmp_path_factory.mktemp("talks")
    rows: dict[str, list[str]] = {"en": [], "de": []}
    for verse, language, text in parallel.rows(("en", "de")):
        if verse.startswith("Ruth") or verse.startswith("Jonah"):
            rows[language].append(text)
    for language, lines in rows.items():
        (folder / f"talks.{language}").write_text("\n".join(lines) + "\n", "utf-8")
    return f"{folder}/talks.en|{folder}/talks.de"


@pytest.mark.parametrize("name", RUNS)
def test_a_run(name: str, talks: str, tmp_path: Path) -> None:
    """Trained, stopped and gone on with, evaluated, saved and read again in its publisher's layout."""
    run = pretrain(name, data=talks, out=tmp_path / "run", budget="6 steps", overrides=SMALL, quiet=True)
    assert run.finished and run.step == 6 and np.isfinite(run.summary["val"]["loss"])
    assert verify_resume(run.directory, 4)["identical"]
    if run.plan.dims.languages:
        assert run.plan.text.languages == ("en", "de") and run.plan.dims.languages == 2
    again = stemma.load(str(run.directory / "model")).eval()
    with torch.no_grad():
        for ours, theirs in zip(run.model.state_dict().values(), again.state_dict().values(), strict=True):
            assert torch.equal(ours, theirs)
    if run.plan.dims.languages:
        assert again.text.languages == ("en", "de")


def test_rows_can_be_looked_at(talks: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name, marks in {"xlm": ["→"], "transformer": ["said"], "mt5": ["<extra_id_0>"]}.items():
        with pytest.raises(SystemExit) as left:
            main(["data", "show", talks, "--for", name, "--set", "dims.vocab=500"])
        out = capsys.readouterr().out
        assert not left.value.code and "row 3" in out and all(mark in out for mark in marks)
