"""The algebra of change, and what the tree declares: golden specs and exact counts."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from counts import parameters
from hypothesis import given, settings
from hypothesis import strategies as st

from oracle import BODIES, COUNTS
from stemma import families, spec
from stemma.declare.family import About, Design
from stemma.declare.objectives import MLM, Objective
from stemma.errors import UsageError
from stemma.families import design, family, size_names, tree
from stemma.nn.model import count
from stemma.nn.parts import Arch, Causal, Dims, Heads, LayerBuckets, Learned, RMSNorm, Rotary, Summary, gated_width

FAMILIES = list(tree())

GOLDEN = Path(__file__).parent / "golden"


def body(name: str) -> Design:
    return spec.edit(design(name), {"arch.heads": Heads(pooler=Summary())})


def test_every_published_size_has_its_exact_count() -> None:
    """By networks of one and two layers, which say all of it; `test_whole_networks_count_the_same` builds them."""
    assert {n: parameters(design(n).arch, design(n).dims) for n in COUNTS} == COUNTS
    assert {n: parameters(body(n).arch, body(n).dims) for n in BODIES} == BODIES


@pytest.mark.slow
def test_whole_networks_count_the_same() -> None:
    start = time.process_time()  # other work on the machine does not count
    assert {n: count(design(n).arch, design(n).dims) for n in size_names()} == {
        n: parameters(design(n).arch, design(n).dims) for n in size_names()
    }
    assert {n: count(body(n).arch, body(n).dims) for n in BODIES} == BODIES
    assert time.process_time() - start < 60


@pytest.mark.parametrize("name", FAMILIES)
def test_resolved_specs_are_as_they_were(name: str) -> None:
    """Editing an ancestor shows every descendant that moved. To accept: STEMMA_GOLDEN=write."""
    owner = family(name)
    text = "\n\n".join(spec.show(owner[size]) for size in owner.sizes) + "\n"
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("STEMMA_GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_its_parent_and_its_changes(name: str) -> None:
    owner = family(name)
    if owner.parent is None:
        return
    rebuilt = spec.edit(owner.parent, owner.changes)
    assert (rebuilt.arch, rebuilt.objective, rebuilt.text, rebuilt.recipe) == (
        owner.arch,
        owner.objective,
        owner.text,
        owner.recipe,
    )
    changed = {c.path for c in owner.diff(owner.parent)}
    assert all(any(c == p or c.startswith(p + ".") for p in owner.changes) for c in changed)


def test_designs_survive_plain_data() -> None:
    changed = [name for name in size_names() if spec.from_dict(Design, spec.to_dict(design(name))) != design(name)]
    assert changed == []


def test_roberta_changes_nothing_of_the_block() -> None:
    """A tree of architectures alone would call BERT and RoBERTa the same: they differ in recipe and text."""
    paths = {c.path for c in family("roberta").diff("bert")}
    arch = {p for p in paths if p.startswith("arch.")}
    assert arch == {"arch.position.padding", "arch.norm.eps", "arch.heads.pooler", "arch.heads.pair"}
    assert {"objective.pairs", "recipe.batch", "recipe.lr", "text.tokenizer"} <= paths


def test_an_edit_that_changes_nothing_is_an_error() -> None:
    with pytest.raises(UsageError, match="changes nothing"):
        family("bert").evolve("copy", {"arch.norm.eps": 1e-12}, sizes={}, about=About(2024, "", ""))


def test_trained_keeps_the_architecture() -> None:
    with pytest.raises(UsageError, match="evolve"):
        family("llama").trained("wrong", {"arch.norm.eps": 1e-3}, sizes={}, about=About(2024, "", ""))
    child = family("llama").trained("right", {"recipe.lr": 2e-5}, sizes={}, about=About(2024, "", ""))
    assert child.edge == "trained" and child.arch == family("llama").arch


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'eps'"):
        spec.edit(design("gpt2"), {"arch.norm.epz": 1e-3})
    with pytest.raises(UsageError, match="did you mean 'roberta'"):
        family("robrta")
    with pytest.raises(UsageError, match="gpt2-xl"):
        design("gpt2-xxl")
    with pytest.raises(UsageError, match="known: LayerNorm, RMSNorm"):
        spec.edit(design("gpt2"), {"arch.norm": "RMSNrm"})


def test_paths_take_values_as_typed_on_a_command_line() -> None:
    d = spec.edit(
        design("gpt2"),
        {
            "arch.norm": "RMSNorm(eps=1e-3)",
            "arch.position": "Rotary(base=5e5, scaling=LinearScaling(factor=2))",
            "arch.init.positions": "none",
            "arch.mask": "Sliding(window=8)",
            "dims.kv_heads": "4",
            "arch.heads.lm.tied": "false",
            "text.eos_id": "(1, 2)",
            "recipe.lr": "1e-4",
            "dims.head_dim": "none",
        },
    )
    assert d.arch.norm == RMSNorm(1e-3)
    assert isinstance(d.arch.position, Rotary) and d.arch.position.base == 5e5
    assert (d.dims.kv_heads, d.dims.head_dim, d.arch.heads.lm.tied, d.text.eos_id) == (4, None, False, (1, 2))  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("recipe.lr", "-1"),
        ("dims.heads", "7"),
        ("dims.layers", "0"),
        ("dims.layers", "2.5"),
        ("arch.dropout.residual", "1.5"),
        ("arch.norm.eps", "0"),
        ("arch.mask", "Full"),
        ("arch.attention.bias", "perhaps"),
        ("arch.mlp.act", "gelo"),
        ("arch.mask", "Sliding(window=0)"),
    ],
)
def test_values_out_of_range_are_refused(path: str, value: str) -> None:
    with pytest.raises(UsageError) as caught:
        spec.edit(design("gpt2"), {path: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("arch.norm.eps", 0, "arch.norm.eps must be positive, not 0.0"),
        ("arch.dropout.residual", 1, "arch.dropout.residual must lie in [0, 1), not 1.0"),
        ("arch.position", "Rotary(share=0)", "arch.position.share must lie in (0, 1], not 0.0"),
        ("arch.mask", "Sliding(window=0)", "arch.mask.window must be at least 1 token, not 0"),
        ("dims.segments", -1, "dims.segments must not be negative, not -1"),
        ("dims.kv_heads", 0, "dims.kv_heads must be at least 1, not 0"),
        ("objective", "MLM(rate=1)", "objective.rate must lie between 0 and 1, not 1.0"),
        ("objective", "Distillation(teacher='x', task=MLM(copies=-1))", "objective.task.copies must not be negative"),
        ("objective", "Denoisers(kinds=('Denoiser(mean=0)',))", "Denoiser.mean must be at least 1 token, not 0.0"),
        ("recipe.optimizer.beta1", 1, "recipe.optimizer.beta1 must lie in [0, 1), not 1.0"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_path_and_the_range(path: str, value: object, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        spec.edit(design("gpt2"), {path: value})
    assert said in str(caught.value)


def test_a_value_made_in_python_is_checked_too() -> None:
    for make, said in (
        (lambda: RMSNorm(eps=-1.0), "RMSNorm.eps must be positive, not -1.0"),
        (lambda: MLM(rate=float("nan")), "objective.rate must lie between 0 and 1, not nan"),
        (lambda: Dims(8, 1, 1, 8, 8, 0), "dims.context must be at least 1, not 0"),
        (lambda: LayerBuckets(3), "buckets must be at least 4"),
    ):
        with pytest.raises(UsageError) as caught:
            make()
        assert said in str(caught.value)
    assert Learned().padding is None and RMSNorm(eps=1e-3).eps == 1e-3


def every(kind: type[spec.Spec]) -> Iterator[type[spec.Spec]]:
    for below in kind.__subclasses__():
        yield below
        yield from every(below)


def test_no_value_skips_the_check_of_its_ranges() -> None:
    bounded = [k for k in every(spec.Spec) if any("bound" in f.metadata for f in dataclasses.fields(k))]
    assert len(bounded) > 50
    assert [k for k in bounded if k.__post_init__ is not spec.Spec.__post_init__] == []


def test_a_kind_is_known_by_being_declared_and_its_name_is_its_own() -> None:
    @dataclasses.dataclass(frozen=True)
    class Backwards(Objective):
        step: int = spec.at_least(1, 1)

    try:
        made = spec.edit(design("gpt2"), {"objective": "Backwards(step=2)"})
        assert made.objective == Backwards(2)
        assert spec.from_dict(type(made), spec.to_dict(made)) == made
        with pytest.raises(UsageError, match=r"objective\.step must be at least 1, not 0"):
            Backwards(0)
        with pytest.raises(UsageError, match=r"a kind CLM is declared in stemma\.declare\.objectives"):
            type("CLM", (Objective,), {})
    finally:
        del Objective.KINDS["Backwards"]
    with pytest.raises(UsageError, match="no kind 'Backwards'; known: CLM, Chunks, CrossBatch, MLM"):
        spec.edit(design("gpt2"), {"objective": "Backwards()"})


def test_diff_of_edit_gives_the_edit() -> None:
    d = design("llama-7b")
    changes = {"arch.norm.eps": 1e-3, "arch.position": Learned(), "dims.layers": 3}
    assert {c.path: c.new for c in spec.diff(d, spec.edit(d, changes))} == changes


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(size_names())), st.sampled_from(sorted(size_names())))
def test_a_diff_leads_from_one_design_to_the_other(a: str, b: str) -> None:
    old, new = design(a), design(b)
    assert spec.edit(old, {c.path: c.new for c in spec.diff(old, new)}) == new


def test_llama_widths_follow_their_rule() -> None:
    for size in family("llama"):
        dims = family("llama")[size].dims
        assert dims.d_ff == gated_width(dims.d_model)


def test_dims_that_a_rule_gives_are_left_out() -> None:
    assert Dims(64, 2, 4, 128, 100, 32, kv_heads=4, head_dim=16) == Dims(64, 2, 4, 128, 100, 32)


def test_encoders_are_full_and_decoders_are_not() -> None:
    with pytest.raises(UsageError, match="encoder"):
        spec.edit(family("bert").arch, {"mask": Causal()})
    assert isinstance(family("gpt1").arch, Arch)


def test_the_tree_has_one_root_and_parents_first() -> None:
    seen: set[str] = set()
    for f in tree().values():
        assert f.parent is None or f.parent.name in seen
        seen.add(f.name)
    assert [f.name for f in tree().values() if f.parent is None] == ["transformer"]


def test_further_parents_are_in_the_tree() -> None:
    known = tree()
    assert not [(f.name, other) for f in known.values() for other in f.others if other not in known]


@pytest.mark.parametrize("name", [f.name for f in tree().values() if f.edge == "unpublished"])
def test_what_was_never_published_is_not_invented(name: str) -> None:
    owner = family(name)
    assert not owner.sizes and not owner.changes
    with pytest.raises(UsageError, match="never published"):
        design(name)


def test_names_are_found_however_they_are_written() -> None:
    assert family("GPT-2").name == "gpt2" and family("RoBERTa").name == "roberta"
    assert design("GPT-2 XL").name == "gpt2-xl"


@pytest.mark.parametrize(
    ("asked", "found"),
    [("meta-llama/Llama-3.1-8B", "llama3.1-8b"), ("google-bert/BERT-base-uncased", "bert-base-uncased")],
)
def test_a_hub_id_names_its_size(asked: str, found: str) -> None:
    assert families.known_as(asked) == found


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("XLM-RR", "did you mean 'xlm-r'"),
        ("google/bert-base", "did you mean 'bert-base'"),
        ("bert-xl", "and 23 more (`stemma show bert`)"),
        ("zzz", "`stemma tree` lists them"),
    ],
)
def test_names_that_are_none_get_a_hint(asked: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        families.known_as(asked)
    assert said in str(error.value)


def test_a_quick_try_of_a_family() -> None:
    import stemma

    bert = families.family("bert")
    assert len(repr(bert)) < 200 and "bert-base" in repr(bert)
    child = bert.evolve("try", {"arch.mlp.act": "relu"})
    assert (
        list(child.sizes) == ["try"] and child.first.dims == bert.first.dims and child.about.weights.startswith("none")
    )
    small = {"d_model": 16, "layers": 1, "heads": 2, "d_ff": 32, "vocab": 40, "context": 16}
    model = stemma.build(child, **small)
    assert model.family is child and model.arch.mlp.act == "relu"
    for source in (bert, "bert-base"):
        named = stemma.build(source, task="classify", labels=["no", "yes", "perhaps"], **small)
        assert named.labels == ("no", "yes", "perhaps") and named.arch.heads.task.labels == 3
    for wrong in ("ab", [], ["a", "a"], [1, 2]):
        with pytest.raises(UsageError, match="neither a number nor a list of different names"):
            stemma.build(bert, task="classify", labels=wrong, **small)


def test_labels_by_name_when_loading(tmp_path: Path) -> None:
    import stemma

    small = {"d_model": 16, "layers": 1, "heads": 2, "d_ff": 32, "vocab": 40, "context": 16}
    stemma.build("bert-base", **small).save(str(tmp_path / "body"))
    model = stemma.load(tmp_path / "body", task="classify", labels=["no", "yes", "perhaps"])
    assert model.labels == ("no", "yes", "perhaps") and model.arch.heads.task.labels == 3
    model.save(str(tmp_path / "tuned"))
    assert stemma.load(tmp_path / "tuned").labels == ("no", "yes", "perhaps")
