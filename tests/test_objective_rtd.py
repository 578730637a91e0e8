"""Replaced token detection: two networks, three ways to share embeddings, and the loss against a plain step."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call

import stemma
from oracle import jitter
from stemma import families
from stemma.declare.objectives import RTD
from stemma.errors import UsageError
from stemma.nn.heads import ContextDetector
from stemma.nn.model import IGNORED, Model
from stemma.objectives import Cursor, Setting, incompatible_reason, objective
from stemma.objectives.rtd import BITS, Beside, ReplacedTokens, real, sample
from test_objective_masking import CLS, FIRST, MASK, PAD, SEP, VOCAB, Pieces, some, text_of

KINDS = {"electra": RTD("electra-small-generator", pairs="halves"), "deberta-v3": RTD("x", masked=1.0)}


def make(name: str = "electra", context: int = 32, seed: int = 1, mixed: bool = False, **changes: Any) -> Any:
    spec = replace(KINDS[name], **changes)
    return objective(spec, Setting(Pieces(), families.design(name).text, context, seed, mixed))


def network(name: str, seed: int = 3, layers: int = 2, embed: int | None = None, scale: float = 5.0) -> Model:
    """A small one whose weights are far from zero, so that the generator is sure of something."""
    design = families.design(name)
    dims = replace(design.dims, d_model=32, layers=layers, heads=4, d_ff=64, vocab=VOCAB, context=64, embed=embed)
    model = Model(design.arch, dims).initialise(seed).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(scale) if p.ndim > 1 else p.add_(0.05)
    return model


def nets(name: str = "electra", scale: float = 5.0) -> tuple[Model, dict[str, Model]]:
    other = "electra-small-generator" if name == "electra" else "deberta-v3-base-generator"
    embed = 24 if name == "electra" else None
    return network(name, 3, embed=embed, scale=scale), {"generator": network(other, 4, 1, embed, scale)}


def take(goal: Any, view: Any, n: int, cursor: Cursor = Cursor()) -> list[Any]:
    return list(itertools.islice(goal.examples(view, cursor), n))


def batch_of(goal: Any, rows: int = 4, view: Any = None) -> dict[str, torch.Tensor]:
    return goal.collate([e for e, _ in take(goal, some() if view is None else view, rows)])


# ---------------------------------------------------------------- rows


def test_golden_batches_at_a_fixed_seed() -> None:
    found = {}
    for name in KINDS:
        digest = hashlib.sha256()
        for example, cursor in take(make(name), some(), 6):
            for key in sorted(example):
                digest.update(np.ascontiguousarray(example[key]).tobytes())
            digest.update(repr(cursor).encode())
        found[name] = digest.hexdigest()[:12]
    assert found == GOLDEN


GOLDEN = {"deberta-v3": "fd676110fe1f", "electra": "7b18ecddf1b0"}


@pytest.mark.parametrize("name", KINDS)
def test_a_stream_goes_on_from_any_cursor(name: str) -> None:
    view = some(8)
    rows = take(make(name), view, 30)
    for k in (0, 7, 20):
        for a, b in zip(take(make(name), view, 6, rows[k][1]), rows[k + 1 :], strict=False):
            assert a[1] == b[1] and all(np.array_equal(a[0][key], b[0][key]) for key in b[0])


def test_masked_places_as_released() -> None:
    """15 % of the tokens, 85 % of them masked and the others as they are; none is random. DeBERTaV3 masks all."""
    for name, masked in (("electra", 0.85), ("deberta-v3", 1.0)):
        rows = [e for e, _ in take(make(name, context=128), some(200, 60, 400), 300)]
        inputs, labels = (np.concatenate([r[k] for r in rows]) for k in ("input_ids", "labels"))
        chosen, n = labels != IGNORED, (labels != IGNORED).sum()
        free = np.concatenate([text_of(r) for r in rows]) >= FIRST
        assert chosen.sum() / free.sum() == pytest.approx(0.15, abs=0.006)
        assert (inputs[chosen] == MASK).mean() == pytest.approx(masked, abs=4 * (0.13 / n) ** 0.5)
        assert (np.isin(inputs[chosen], [MASK]) | (inputs[chosen] == labels[chosen])).all()


# ---------------------------------------------------------------- samples


def test_samples_have_the_chances_of_the_softmax() -> None:
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 7, generator=rng) * 2
    draws = torch.randint(2**BITS, (60_000,), generator=rng)
    found = torch.bincount(sample(logits.expand(len(draws), -1), draws), minlength=7) / len(draws)
    torch.testing.assert_close(found, logits[0].softmax(-1), atol=0.008, rtol=0.0)
    # never one that is impossible, not even at the ends of the range
    walls = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0, -math.inf]]).expand(3, -1)
    assert sample(walls, torch.tensor([0, 2**BITS // 2, 2**BITS - 1])).tolist() == [1, 3, 3]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(sorted(KINDS)))
def test_the_text_can_be_rebuilt_and_labels_say_where_it_changed(seed: int, name: str) -> None:
    goal = make(name, seed=seed)
    rows = [e for e, _ in take(goal, some(seed=seed), 4)]
    batch = goal.collate(rows)
    _, others = nets(name)
    gen = others["generator"]
    hidden = gen.read(gen.state(goal.masking.inputs(gen, batch)))
    ids, replaced = goal.replace(gen, hidden, batch)
    true = torch.from_numpy(np.stack([text_of(r) for r in rows]))
    assert torch.equal(ids != true, replaced)  # a sample that equals the token is no replacement
    labels = torch.from_numpy(np.stack([r["labels"] for r in rows]))
    assert not replaced[labels == IGNORED].any() and not replaced[~real(batch)].any()
    kept = ids.flatten().scatter(0, batch["where"], batch["targets"]).view_as(ids)
    assert torch.equal(kept, true)


def test_samples_that_hit_are_originals() -> None:
    """A generator that knows the text (its bias says so) replaces nothing."""
    goal = make()
    view = some()
    view.documents = [np.full_like(d, 12) for d in view.documents]
    batch = batch_of(goal, view=view)
    model, others = nets()
    with torch.no_grad():
        others["generator"].lm.bias[12] = 1e4  # type: ignore[union-attr]
    loss = goal.loss(model, batch, others)
    assert len(batch["targets"]) > 5 and loss.metrics["replaced_share"] == 0
    assert loss.sums["token"] == 0
    with torch.no_grad():
        others["generator"].lm.bias[13] = 2e4  # type: ignore[union-attr]
    assert goal.loss(model, batch, others).metrics["replaced_share"] == len(batch["targets"])


# ---------------------------------------------------------------- against the reference


def reference(sharing: str) -> tuple[Any, Any, ReplacedTokens, Model, dict[str, Model]]:
    """The two networks of transformers, and ours with their weights."""
    torch.manual_seed(0)
    fields = dict(vocab_size=VOCAB, embedding_size=24, max_position_embeddings=64, hidden_dropout_prob=0.0,
                  attention_probs_dropout_prob=0.0)  # fmt: skip
    big = hf.ElectraConfig(hidden_size=36, num_hidden_layers=2, num_attention_heads=3, intermediate_size=50, **fields)
    small = hf.ElectraConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=30, **fields)
    detector, generator = hf.ElectraForPreTraining(big).eval(), hf.ElectraForMaskedLM(small).eval()
    jitter(detector, 1)
    jitter(generator, 2)
    with torch.no_grad():
        generator.generator_lm_head.bias[FIRST : FIRST + 3] += 6.0  # some of its samples are right
    goal = make(sharing=sharing)
    return detector, generator, goal, *ours(detector, generator)


def ours(detector: Any, generator: Any) -> tuple[Model, dict[str, Model]]:
    import tempfile

    found = []
    for net in (detector, generator):
        with tempfile.TemporaryDirectory() as folder:
            net.save_pretrained(folder)
            found.append(stemma.load(folder, tokenizer=False))
    return found[0], {"generator": found[1]}


@pytest.mark.parametrize("sharing", ["tied", "none", "disentangled"])
def test_a_step_is_that_of_a_plain_implementation(sharing: str) -> None:
    """ElectraForMaskedLM's loss plus 50 times ElectraForPreTraining's on the samples, and the gradients of both."""
    detector, generator, goal, model, others = reference(sharing)
    view = some()
    view.documents = [FIRST + d % 3 for d in view.documents]
    rows = [e for e, _ in take(goal, view, 5)]
    batch = goal.collate(rows)
    goal.tie(model, others)
    gen = others["generator"]
    extra = None
    if sharing == "tied":
        generator.electra.embeddings = detector.electra.embeddings
        generator.tie_weights()
    if sharing == "disentangled":  # its own tables begin as zero; moved here, so that they count
        with torch.no_grad():
            model.embed.tokens.weight.normal_(0, 0.1)
            model.encoder.position.table.weight.normal_(0, 0.1)  # type: ignore[union-attr,operator]
        extra = {
            "electra.embeddings.word_embeddings.weight": model.embed.tokens.weight.detach().clone().requires_grad_(),
            "electra.embeddings.position_embeddings.weight": model.encoder.position.table.weight.detach()  # type: ignore[union-attr,operator]
            .clone().requires_grad_(),
        }  # fmt: skip
    loss = goal.loss(model, batch, others)
    loss.total().backward()

    labels = torch.from_numpy(np.stack([r["labels"] for r in rows]))
    given = {k: batch[k] for k in ("attention_mask", "token_type_ids")}
    mlm = generator(input_ids=batch["input_ids"], labels=labels, **given)
    true = torch.from_numpy(np.stack([text_of(r) for r in rows]))
    ids = true.clone()
    for place, u in zip(batch["where"].tolist(), batch["draws"].tolist(), strict=True):
        chances = mlm.logits.flatten(0, 1)[place].detach().double().softmax(-1).cumsum(-1)
        ids.view(-1)[place] = int((chances <= u / 2**BITS * chances[-1]).sum())
    fake = (ids != true).long()
    assert 0 < fake.sum() < len(batch["targets"])
    inputs = dict(input_ids=ids, labels=fake, **given)
    if extra is None:
        rtd = detector(**inputs)
    else:
        tables = {k: generator.get_parameter(k).detach() + own for k, own in extra.items()}
        rtd = functional_call(detector, tables, (), inputs)
    torch.testing.assert_close(loss.sums["token"] / loss.counts["token"], mlm.loss, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss.sums["replaced"] / loss.counts["replaced"], rtd.loss, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss.total(), mlm.loss + 50 * rtd.loss, atol=1e-4, rtol=1e-5)
    (mlm.loss + 50 * rtd.loss).backward()

    word = "electra.embeddings.word_embeddings.weight"
    pairs = [
        (gen.embed.tokens.weight.grad, generator.get_parameter(word).grad),
        (gen.encoder.project.weight.grad, generator.electra.embeddings_project.weight.grad),  # type: ignore[union-attr]
        (model.encoder.project.weight.grad, detector.electra.embeddings_project.weight.grad),  # type: ignore[union-attr]
        (model.encoder.embed_norm.weight.grad, detector.electra.embeddings.LayerNorm.weight.grad),  # type: ignore[union-attr]
        (model.encoder.blocks[0].mlp.up.weight.grad, detector.electra.encoder.layer[0].intermediate.dense.weight.grad),  # type: ignore[union-attr]
    ]
    if extra is None:
        pairs.append((model.embed.tokens.weight.grad, detector.get_parameter(word).grad))
    else:
        pairs.append((model.embed.tokens.weight.grad, extra[word].grad))
        place = "electra.embeddings.position_embeddings.weight"
        pairs.append((model.encoder.position.table.weight.grad, extra[place].grad))  # type: ignore[union-attr,operator]
    for mine, theirs in pairs:
        assert theirs.abs().max() > 1e-3
        torch.testing.assert_close(mine, theirs, atol=2e-4, rtol=1e-3)


# ---------------------------------------------------------------- sharing


def test_tied_embeddings_are_one() -> None:
    goal, (model, others) = make(), nets()
    gen = others["generator"]
    own = gen.encoder.project.weight  # type: ignore[union-attr]
    goal.tie(model, others)
    assert gen.embed is model.embed
    assert gen.encoder.position.table is model.encoder.position.table  # type: ignore[union-attr]
    assert gen.encoder.embed_norm is model.encoder.embed_norm  # type: ignore[union-attr]
    assert gen.encoder.project.weight is own  # type: ignore[union-attr]
    goal.untie(model, others)
    assert gen.embed is model.embed


def test_separate_embeddings_are_two() -> None:
    goal, (model, others) = make(sharing="none"), nets()
    before = {k: v.clone() for net in (model, others["generator"]) for k, v in net.state_dict().items()}
    goal.tie(model, others)
    assert others["generator"].embed is not model.embed
    assert all(torch.equal(v, before[k]) for k, v in others["generator"].state_dict().items())


@pytest.mark.parametrize("name", KINDS)
def test_disentangled_embeddings_are_apart(name: str) -> None:
    """The detector's loss does not reach the generator; it begins with its embeddings, and keeps the sum of both."""
    goal, (model, others) = make(name, sharing="disentangled"), nets(name)
    gen = others["generator"]
    goal.tie(model, others)
    ids = torch.arange(VOCAB)
    assert torch.equal(model.embed.tokens(ids), gen.embed.tokens(ids))
    loss = goal.loss(model, batch_of(goal), others)
    loss.sums["replaced"].backward()
    assert all(p.grad is None or not p.grad.any() for p in gen.parameters())
    assert model.embed.tokens.weight.grad is not None and model.embed.tokens.weight.grad.any()
    with torch.no_grad():
        model.embed.tokens.weight.normal_()
    expected = gen.embed.tokens.weight + model.embed.tokens.weight
    batch = batch_of(goal)
    before = goal.loss(model, batch, others).sums
    names = set(model.state_dict())
    goal.untie(model, others)
    assert torch.equal(model.embed.tokens.weight, expected) and not isinstance(model.embed.tokens, Beside)
    assert set(model.state_dict()) == names and model.embed.tokens.weight.requires_grad
    after = goal.loss(model, batch, others).sums
    torch.testing.assert_close(before["replaced"], after["replaced"], atol=1e-4, rtol=1e-5)
    goal.untie(model, others)
    assert torch.equal(model.embed.tokens.weight, expected)


def test_no_gradient_passes_through_the_samples() -> None:
    goal, (model, others) = make(sharing="none"), nets()
    goal.tie(model, others)
    loss = goal.loss(model, batch_of(goal), others)
    loss.sums["replaced"].backward()
    assert all(p.grad is None for p in others["generator"].parameters())


# ---------------------------------------------------------------- splitting, seeing


@pytest.mark.parametrize("name", KINDS)
def test_losses_split_exactly(name: str) -> None:
    """Samples too: their draws belong to the rows."""
    goal, (model, others) = make(name, sharing="none"), nets(name)
    examples = [e for e, _ in take(goal, some(), 8)]
    params = [p for net in (model, others["generator"]) for p in net.parameters()]

    def grads(parts: list[list[Any]], counts: Mapping[str, int]) -> list[torch.Tensor]:
        for p in params:
            p.grad = None
        for part in parts:
            goal.loss(model, goal.collate(part), others).total(counts).backward()
        return [torch.zeros(()) if p.grad is None else p.grad for p in params]

    whole = goal.loss(model, goal.collate(examples), others)
    assert whole.counts == goal.counts(goal.collate(examples))
    one = grads([examples], whole.counts)
    three = grads([examples[:3], examples[3:4], examples[4:]], whole.counts)
    scale = max(float(g.abs().max()) for g in one)
    assert all(float((a - b).abs().max()) < 1e-5 * scale for a, b in zip(one, three, strict=True))


def test_a_batch_has_the_same_samples_whenever_it_is_asked() -> None:
    goal, (model, others) = make(), nets()
    batch = batch_of(goal)
    torch.manual_seed(1)
    a = goal.loss(model, batch, others)
    torch.manual_seed(2)
    b = goal.loss(model, batch, others)
    assert torch.equal(a.sums["replaced"], b.sums["replaced"]) and a.metrics == b.metrics


def test_packed_documents_do_not_see_each_other() -> None:
    """Nor does the detector's first token of one speak for another: each document has its own."""
    goal, (model, others) = make("deberta-v3", context=64), nets("deberta-v3")
    gen = others["generator"]
    batch = batch_of(goal, 3, some(60, 6, 25))
    assert isinstance(model.detect, ContextDetector) and int(batch["documents"].max()) > 1

    def told(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        from stemma.objectives.rtd import first

        hidden = model.encode(goal.masking.inputs(model, batch))
        assert model.detect is not None
        return model.detect(hidden, first(batch))

    changed = batch["documents"] == 0
    wrong = batch | {"input_ids": torch.where(changed, FIRST + (batch["input_ids"] + 1) % 80, batch["input_ids"])}
    with torch.no_grad():
        a, b = told(batch), told(wrong)
        assert torch.equal(a[~changed], b[~changed]) and not torch.equal(a[changed], b[changed])
        # a document alone in a row is told the same
        inside = (batch["documents"][0] == 1).nonzero().flatten()
        alone = model.detect(model.encode(batch["input_ids"][0, inside][None]))
        torch.testing.assert_close(a[0, inside], alone[0], atol=1e-4, rtol=1e-4)
    assert gen.dims.layers == 1


def test_padding_is_not_told() -> None:
    goal = make(context=64)
    batch = batch_of(goal, 3, some(10, 20, 30))
    model, others = nets()
    assert goal.counts(batch)["replaced"] == int(batch["attention_mask"].sum()) < batch["input_ids"].numel()
    wrong = batch | {"input_ids": torch.where(batch["attention_mask"] == 0, 50, batch["input_ids"])}
    with torch.no_grad():
        a, b = goal.loss(model, batch, others), goal.loss(model, wrong, others)
    torch.testing.assert_close(a.sums["replaced"], b.sums["replaced"], atol=1e-4, rtol=1e-6)
    assert (CLS, SEP, PAD) == (1, 2, 0)


# ---------------------------------------------------------------- errors


def test_what_does_not_fit_is_said() -> None:
    goal, (model, _) = make(), nets()
    batch = batch_of(goal)
    with pytest.raises(UsageError, match="its generator is not there"):
        goal.loss(model, batch)
    with pytest.raises(UsageError, match="the generator must be an encoder that predicts tokens"):
        goal.loss(model, batch, {"generator": model})
    with pytest.raises(UsageError, match="theirs are 24 and 32 wide"):
        goal.tie(model, {"generator": network("electra-small-generator", embed=None)})
    assert "arch.heads.detect is None" in str(incompatible_reason(KINDS["electra"], families.design("bert").arch))
    assert "of structure encoder" in str(incompatible_reason(KINDS["electra"], families.design("gpt2").arch))
    assert incompatible_reason(KINDS["electra"], families.design("deberta-v3").arch) is None
    for field, value in (("temperature", 0.0), ("weight", -1.0), ("masked", 0.0), ("rate", 1.0)):
        with pytest.raises(UsageError, match=f"objective.{field}"):
            replace(KINDS["electra"], **{field: value})
    with pytest.raises(UsageError, match="sharing"):
        stemma.spec.edit(KINDS["electra"], {"sharing": "some"})
