"""Keys of a config.json in nested objects, by a layout that is made up: BERT's, with the network in `text_config`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import stemma
from stemma.errors import CheckpointError
from stemma.formats.hf_bert import bert
from stemma.formats.keys import flat, nested, reasons
from stemma.formats.layouts import LAYOUTS
from tiny import batch, run, tiny

OUTSIDE = ("pad_token_id", "bos_token_id", "eos_token_id")
MADE_UP = replace(
    bert,
    model_type="nested",
    keys=tuple(
        k
        if k.name in OUTSIDE
        else replace(k, name=f"text_config.{k.name}", older=(*k.older, f"text_config.old.{k.name}"))
        for k in bert.keys
    ),
    fixed={**bert.fixed, "text_config.model_type": "nested_text", "vision_config": None},
    unused={**bert.unused, **reasons("of a picture's size, which changes nothing", "text_config.image_size")},
)


@pytest.fixture
def layout(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, known in list(LAYOUTS.items()):
        if "bert" in known.families:
            monkeypatch.delitem(LAYOUTS, name)
    monkeypatch.setitem(LAYOUTS, "nested", MADE_UP)
    yield


@pytest.fixture
def folder(layout: None, tmp_path: Path) -> Path:
    stemma.build(tiny("bert")).save(str(tmp_path / "model"))
    return tmp_path / "model"


def config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())  # type: ignore[no-any-return]


def change(folder: Path, work: Callable[[dict[str, Any]], Any]) -> Path:
    raw = config(folder)
    work(raw)
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


def test_nested_keys_are_written_and_read(folder: Path) -> None:
    raw = config(folder)
    assert raw["model_type"] == "nested" and raw["pad_token_id"] == 0 and "hidden_size" not in raw
    assert raw["text_config"]["hidden_size"] == 36 and raw["text_config"]["num_hidden_layers"] == 3
    model, design = stemma.load(folder), tiny("bert")
    assert (model.dims, model.arch.mlp) == (design.dims, design.arch.mlp) and "text_config" not in model.ledger.config
    expected = stemma.build(design)
    assert torch.equal(run(model, batch(design)).logits, run(expected, batch(design)).logits)


def test_what_a_nested_object_says_beside_is_kept(folder: Path, tmp_path: Path) -> None:
    """Keys with a reason and general ones are ignored as outside, and written back where they were."""
    more = {"image_size": 224, "torch_dtype": "float16", "model_type": "nested_text", "is_decoder": False}
    change(folder, lambda raw: raw["text_config"].update(more))
    model = stemma.load(folder)
    assert model.ledger.config["text_config.image_size"] == "of a picture's size, which changes nothing"
    assert model.ledger.config["text_config.torch_dtype"] == "the loader's own arguments decide"
    assert model.ledger.config["text_config.model_type"] == "only one value is supported, and it has it"
    model.save(str(tmp_path / "again"))
    again, before = config(tmp_path / "again"), config(folder)
    assert again["text_config"] == before["text_config"]
    assert list(again["text_config"]) == list(before["text_config"])


def test_older_spellings_of_nested_keys(folder: Path, tmp_path: Path) -> None:
    def respell(raw: dict[str, Any]) -> None:
        raw["text_config"]["old"] = {"hidden_size": raw["text_config"].pop("hidden_size")}

    model = stemma.load(change(folder, respell))
    assert model.dims.d_model == 36
    model.save(str(tmp_path / "again"))
    assert config(tmp_path / "again")["text_config"]["hidden_size"] == 36
    assert "old" not in config(tmp_path / "again")["text_config"]


@pytest.mark.parametrize(
    ("work", "sentence"),
    [
        (
            lambda raw: raw["text_config"].update(hiden_size=3),
            "config.json: no key 'text_config.hiden_size' is known for model_type 'nested'; did you mean "
            "'text_config.hidden_size'?",
        ),
        (
            lambda raw: raw.update(hidden_size=36),
            "config.json: no key 'hidden_size' is known for model_type 'nested'; did you mean "
            "'text_config.hidden_size'?",
        ),
        (
            lambda raw: raw["text_config"].pop("hidden_size"),
            None,  # a default of the reference: the tensors do not fit it
        ),
        (
            lambda raw: raw["text_config"].update(num_attention_heads=5),
            "text_config.num_attention_heads",
        ),
        (
            lambda raw: raw["text_config"].update(is_decoder=True),
            "config.json: text_config.is_decoder=True is not supported; only False is",
        ),
        (
            lambda raw: raw.update(text_config=7),
            "config.json: text_config=7 should be an object with keys of its own",
        ),
        (
            lambda raw: raw.update({"text_config.hidden_size": 36}),
            "config.json: 'text_config.hidden_size' should be a key of a nested object, not one with a dot in it",
        ),
        (
            lambda raw: raw.update(vision_config={"hidden_size": 3}),
            "config.json: vision_config={'hidden_size': 3} is not supported; only None is",
        ),
    ],
)
def test_what_is_wrong_in_a_nested_object(folder: Path, work: Any, sentence: str | None) -> None:
    with pytest.raises(CheckpointError) as caught:
        stemma.load(change(folder, work))
    assert (sentence or "but this config needs") in str(caught.value)


def test_flat_and_nested_are_inverse() -> None:
    config = {"a": 1, "b": {"c": 2, "d": {"e": 3, "f": {"g": 4}}}, "h": {"i": 5}}
    assert flat(config, {"b", "b.d"}) == {"a": 1, "b.c": 2, "b.d.e": 3, "b.d.f": {"g": 4}, "h": {"i": 5}}
    assert nested(flat(config, {"b", "b.d"}), {"b", "b.d"}) == config
    assert flat(config, ()) == config == nested(config, ())
    assert flat({"b": None, "a": 1}, {"b"}) == {"a": 1}
