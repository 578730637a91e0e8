"""What DeBERTa has beside the classes of transformers: its authors' files, the enhanced mask decoder, the detector, and the
corners of disentangled attention."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

import stemma
from oracle import CASES, inputs, jitter, saved
from reference import deberta as reference
from stemma import families, spec
from stemma.errors import CheckpointError, UsageError
from stemma.formats import attach
from stemma.nn.disentangled import Disentangled
from stemma.nn.model import Model
from stemma.nn.parts import Causal, Classify, ContextDetector, EMDHead, Heads, LayerNorm, MLMHead, PreNorm, Summary
from stemma.objectives import Setting, objective
from stemma.objectives.base import position_ids
from test_objectives import TOKENIZERS, some
from tiny import batch, build, run, tiny

VERSIONS = ("deberta", "deberta-v2", "deberta-v3-base-generator")


def authors(name: str, folder: Path, heads: Heads | None = None) -> Model:
    """A tiny model in a folder as the authors publish theirs: no class is named, the decoder's tensors are there."""
    design = tiny(families.family(name).name)
    lm = heads or Heads(lm=EMDHead())
    design = spec.edit(design, {"arch.heads": lm, "dims.layers": 2})
    model = attach(build(design), design, families.family(name))
    model.save(folder)
    config = json.loads((folder / "config.json").read_text())
    for key in ("architectures", "legacy"):
        del config[key]
    (folder / "config.json").write_text(json.dumps(config))
    return model


def doubles(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    w = {k: v.double() for k, v in load_file(folder / "model.safetensors").items()}
    return w, json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("name", VERSIONS)
def test_the_enhanced_mask_decoder_equals_the_paper(name: str, tmp_path: Path) -> None:
    """On the authors' own names, at a length past the distances and buckets; with padding beside it too."""
    authors(name, tmp_path)
    model = stemma.load(tmp_path)
    assert model.arch.heads.lm == EMDHead() and not model.ledger.ignored
    ids = torch.randint(3, 83, (1, 21), generator=torch.Generator().manual_seed(1))
    w, config = doubles(tmp_path)
    want = reference.masked(w, config, ids[0].tolist())
    assert (run(model.double(), {"input_ids": ids}).logits[0] - want).abs().max() < 1e-9
    padded = torch.cat([ids, torch.zeros(1, 5, dtype=torch.int64)], 1)
    mask = (torch.arange(26) < 21)[None].long()
    got = run(model, {"input_ids": padded, "attention_mask": mask}).logits[0, :21]
    assert (got - want).abs().max() < 1e-9


@pytest.mark.parametrize("name", VERSIONS)
def test_a_class_of_the_reference_leaves_the_decoder_out(name: str, tmp_path: Path) -> None:
    """The authors' tensors under a class of transformers, with `legacy=false`, are read as that class computes."""
    authors(name, tmp_path)
    kind = "DebertaForMaskedLM" if name == "deberta" else "DebertaV2ForMaskedLM"
    config = json.loads((tmp_path / "config.json").read_text()) | {"architectures": [kind], "legacy": False}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model, theirs = stemma.load(tmp_path), getattr(hf, kind).from_pretrained(tmp_path).eval()
    assert model.arch.heads.lm == MLMHead()
    assert list(model.ledger.ignored) == ["deberta.embeddings.position_embeddings.weight"]
    ids = torch.randint(3, 83, (2, 21))
    with torch.no_grad():
        assert (model(ids).logits - theirs(ids).logits).abs().max() <= 1e-5
    model.save(tmp_path / "again")
    again = getattr(hf, kind).from_pretrained(tmp_path / "again").eval()
    with torch.no_grad():
        assert torch.equal(again(ids).logits, theirs(ids).logits)


@pytest.mark.parametrize("case", ["deberta-near", "deberta-v2-mlm"])
def test_heads_under_the_authors_names_equal_the_reference(case: str, tmp_path: Path) -> None:
    """What transformers saves with `legacy=false`; it comes back under the names of its default."""
    name, kind, fields = CASES[case]
    torch.manual_seed(0)
    theirs = getattr(hf, name)(kind(**fields, legacy=False)).eval()
    jitter(theirs, 1)
    theirs.save_pretrained(tmp_path / "a")
    ours = stemma.load(tmp_path / "a")
    ours.save(tmp_path / "b")
    again = getattr(hf, name).from_pretrained(tmp_path / "b").eval()
    given = inputs(case)
    with torch.no_grad():
        want = theirs(**given).logits
        assert (ours(**given).logits - want).abs().max() <= 1e-5
        assert torch.equal(again(**given).logits, want)


@pytest.mark.parametrize("name", VERSIONS)
def test_what_we_pretrain_opens_in_the_reference(name: str, tmp_path: Path) -> None:
    """A saved model with the decoder: again the same here, and in transformers all but that decoder."""
    design = tiny(families.family(name).name, **{"arch.heads": Heads(lm=EMDHead())})
    model = attach(build(design), design, families.family(name))
    model.save(tmp_path)
    ids = torch.randint(3, 83, (2, 21))
    again = stemma.load(tmp_path)
    assert torch.equal(run(again, {"input_ids": ids}).logits, run(model, {"input_ids": ids}).logits)
    kind = hf.DebertaForMaskedLM if name == "deberta" else hf.DebertaV2ForMaskedLM
    theirs, report = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    with torch.no_grad():
        want = model.logits(model.encode(ids))
        assert (theirs.eval()(ids).logits - want).abs().max() <= 1e-5


def test_a_discriminator_of_version_3_is_read_whole(tmp_path: Path) -> None:
    """The authors' file: body, detector, what is left of the generator's head, and the difference of the embeddings."""
    authors("deberta-v3", tmp_path, Heads(lm=EMDHead(), detect=ContextDetector()))
    tensors = load_file(tmp_path / "model.safetensors")
    words = "deberta.embeddings.word_embeddings"
    save_file(tensors | {f"{words}._weight": tensors[f"{words}.weight"] * 0.1}, tmp_path / "model.safetensors")
    model = stemma.load(tmp_path)
    assert model.family.name == "deberta-v3" and list(model.ledger.ignored) == [f"{words}._weight"]
    ids = torch.randint(3, 83, (1, 19))
    w, config = doubles(tmp_path)
    out = run(model.double(), {"input_ids": ids})
    assert (out.detector_logits[0] - reference.replaced(w, config, ids[0].tolist())).abs().max() < 1e-9
    assert (out.logits[0] - reference.masked(w, config, ids[0].tolist())).abs().max() < 1e-9
    tuned = stemma.load(tmp_path, task="classify", labels=3)
    assert tuned.arch.heads == Heads(pooler=Summary(act="gelu"), task=Classify(labels=3, dropout=0.1))
    assert len(tuned.ledger.ignored) == 13  # head 5, positions 1, detector 6, difference 1
    assert (tuned.double().encode(ids) - out.hidden).abs().max() < 1e-12


def test_a_detector_alone_has_its_authors_class(tmp_path: Path) -> None:
    design = tiny("deberta-v3")
    attach(build(design), design, families.family("deberta-v3")).save(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["ReplacedTokenDetectionModel"]
    _, report = hf.DebertaV2Model.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]


def test_a_new_task_head_pools_as_the_reference_does() -> None:
    model = stemma.build("deberta-base", task="classify", layers=1, d_model=12, heads=2, d_ff=12, vocab=50)
    assert model.arch.heads.pooler == Summary(act="gelu")


@pytest.mark.parametrize("name", ["deberta", "deberta-v2", "deberta-v3"])
@pytest.mark.parametrize("length", [1, 2, 6, 7, 8, 9, 23])
def test_distances_in_order_are_the_distances_of_positions(name: str, length: int) -> None:
    """Short texts take another way through the table than long ones and than given positions; all are one function, and
    only distances count."""
    design = tiny(name, **{"arch.heads": Heads(lm=MLMHead())})
    model = build(design).double()
    ids = batch(design, 2, length)["input_ids"]
    plain = run(model, {"input_ids": ids}).logits
    for start in (0, 11):
        given = torch.arange(start, start + length)[None]
        assert (run(model, {"input_ids": ids, "position_ids": given}).logits - plain).abs().max() < 1e-12


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("name", ["deberta", "deberta-v2", "deberta-v3"])
def test_what_stands_in_padding_counts_for_nothing(name: str, left: bool) -> None:
    design = tiny(name, **{"arch.heads": Heads(lm=MLMHead())})
    model = build(design).double()
    given = batch(design, 1, 14)
    text = given["input_ids"]
    rest = torch.randint(3, 83, (2, 9), generator=torch.Generator().manual_seed(4))
    mask = torch.cat([torch.ones(1, 14), torch.zeros(1, 9)], 1).long()
    alone = run(model, {"input_ids": text}).logits
    for filler in rest:
        parts = [filler[None], text] if left else [text, filler[None]]
        seen = mask.flip(1) if left else mask
        got = run(model, {"input_ids": torch.cat(parts, 1), "attention_mask": seen}).logits
        assert (got[seen.bool()] - alone[0]).abs().max() < 1e-12


def test_buckets_of_the_released_models() -> None:
    """Distances of 0 to 128 are exact, then logarithmic up to 511 (256 buckets a side)."""
    arch, dims = families.design("deberta-v3-base").arch, families.design("deberta-v3-base").dims
    scheme = Disentangled(arch.position, arch, dataclasses.replace(dims, d_model=12, heads=2))  # type: ignore[arg-type]
    far = torch.tensor([0, 1, 128, 129, 131, 200, 256, 400, 510, 511, 512])
    assert scheme.bucket(far).tolist() == [0, 1, 128, 129, 131, 169, 192, 233, 255, 255, 256]
    assert scheme.bucket(-far).tolist() == [-b for b in scheme.bucket(far).tolist()]
    assert scheme.row(torch.tensor([-9999, -512, 0, 511, 9999])).tolist() == [0, 0, 256, 511, 511]


def test_a_text_past_the_table_of_positions() -> None:
    """Distances have no end, the table of the mask decoder has one."""
    design = tiny("deberta", **{"dims.context": 20})
    model, ids = build(design), torch.randint(3, 83, (1, 21))
    assert model.encode(ids).shape == (1, 21, 36)
    with pytest.raises(UsageError, match=r"21 tokens does not fit.*20 rows"):
        model(ids)


def test_masked_tokens_are_learned_and_filled_through_the_decoder() -> None:
    design = tiny("deberta", **{"dims.vocab": 200})
    model = build(design)
    rows = objective(design.objective, Setting(TOKENIZERS["bert"], design.text, 32, 1))
    examples = [e for e, _ in itertools.islice(rows.examples(some()), 3)]
    given = rows.collate(examples)
    loss = rows.loss(model, given).sums["token"]
    keep = {k: v for k, v in given.items() if k in ("input_ids", "attention_mask", "documents", "position_ids")}
    logits = model(**keep).logits.flatten(0, 1)[given["where"]]
    assert (loss - torch.nn.functional.cross_entropy(logits, given["targets"], reduction="sum")).abs() < 1e-3
    ids = batch(design)["input_ids"]
    with torch.no_grad():
        decoded = model.logits(model.read(model.state(ids)))
        assert torch.equal(decoded, model(ids).logits)
        assert not torch.allclose(decoded, model.logits(model.encode(ids)))


def test_absolute_positions_at_the_input_begin_anew_in_each_document() -> None:
    changes = {"arch.heads": Heads(lm=MLMHead()), "arch.position.absolute": True, "dims.vocab": 200}
    design = tiny("deberta-v2", **changes)
    model = build(design).double()
    rows = objective(design.objective, Setting(TOKENIZERS["bert"], design.text, 40, 1))
    given = rows.collate([e for e, _ in itertools.islice(rows.examples(some()), 2)])
    assert position_ids(model, given) is not None
    ids = batch(design, 2, 9)["input_ids"]
    packed = {"input_ids": ids.reshape(1, 18), "documents": torch.arange(2).repeat_interleave(9)[None]}
    got = run(model, packed | {"position_ids": torch.arange(9).repeat(2)[None]}).logits[0].view(2, 9, -1)
    assert (got - run(model, {"input_ids": ids}).logits).abs().max() < 1e-12
    plain = build(tiny("deberta-v2", **changes | {"arch.position.absolute": False})).double()
    assert (got - run(plain, {"input_ids": ids}).logits).abs().max() > 1e-3
    with pytest.raises(UsageError, match="41 tokens does not fit"):
        model(torch.ones(1, 41, dtype=torch.int64))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"relative_attention": False}, "relative_attention=False .* leave no position in use"),
        ({"relative_attention": 1}, "relative_attention: 1 should be true or false"),
        ({"position_biased_input": "no"}, "position_biased_input: 'no' should be true or false"),
        ({"position_biased_input": True}, "position_embeddings"),
        ({"pos_att_type": "p2p|c2p"}, "pos_att_type: 'p2p' is not supported; known: c2p, p2c"),
        ({"pos_att_type": None}, "pos_att_type=None .* leave no position in use"),
        ({"norm_rel_ebd": "rms"}, "norm_rel_ebd: 'rms' is not supported"),
        ({"conv_act": "mish"}, "'mish' is not supported"),
        ({"conv_kernel_size": 4}, "odd"),
        ({"conv_groups": 3}, "conv_groups=3 is not supported"),
        ({"position_buckets": 1}, "at least 2"),
    ],
)
def test_configs_of_other_models_are_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    saved("deberta-v2-mlm", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config = {k: v for k, v in (config | change).items() if v is not None or k not in change}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=words) as caught:
        stemma.load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("changes", [{"structure": "decoder", "mask": Causal()}, {"residual": PreNorm()}])
def test_designs_that_cannot_be_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"is for an encoder|PostNorm\(\)"):
        spec.edit(families.family("deberta").arch, changes)


def test_a_first_version_cannot_say_what_the_second_has(tmp_path: Path) -> None:
    design = tiny("deberta", **{"arch.position.norm": True})
    with pytest.warns(UserWarning, match="own layout"):
        attach(build(design), design, families.family("deberta")).save(tmp_path)
    assert stemma.load(tmp_path).arch.position.norm is True


@pytest.mark.parametrize("case", ["deberta-mlm", "deberta-v2-mlm"])
def test_a_long_text_equals_the_reference(case: str, tmp_path: Path) -> None:
    """Past all windows and buckets, with padding on either side."""
    theirs = saved(case, tmp_path)
    ours = stemma.load(tmp_path)
    for left in (False, True):
        given = inputs(case, length=131, left=left)
        with torch.no_grad():
            got, want = ours(**given).logits, theirs(**given).logits
        assert (got - want).abs().max() <= 1e-5  # at padding too


def test_a_norm_before_the_table_takes_the_models_eps() -> None:
    design = tiny("deberta-v3", **{"arch.norm": LayerNorm(0.5)})
    assert build(design).encoder.position.norm.eps == 0.5  # type: ignore[union-attr]
