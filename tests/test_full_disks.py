"""Disks that fill, and files that may not grow, while a model is written in each layout: one sentence, nothing half-written,
what was there before untouched."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

import stemma
from commands import starter
from fuzz.subjects import model
from stemma.errors import ResourceError
from test_accidents import (
    disk,  # noqa: F401
    refused,
)

# layout -> (family, its tokenizer, the name of what is written, options of `save`, of `convert`)
LAYOUTS = {
    "hf": ("gpt2", "bpe", "out", {}, []),
    "shards": ("bert", "wordpiece", "out", {"shard_bytes": 30_000}, ["--shard-size", "30KB"]),
    "meta": ("llama", "spm-bpe", "out", {"layout": "meta", "shards": 2}, ["--to", "meta", "--shards", "2"]),
    "gguf": ("llama", "spm-bpe", "out.gguf", {}, []),
    "llama2c": ("llama", "spm-bpe", "out.bin", {}, []),
    "llama2c-v1": ("llama", "spm-bpe", "out.bin", {"layout": "llama2c-v1"}, ["--to", "llama2c-v1"]),
    "fairseq": ("roberta", "bpe", "out.pt", {}, []),
}
SHARES = (0.0, 0.2, 0.5, 0.8, 0.95)  # of what is to be written


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    home = tmp_path_factory.mktemp("models")

    def made(family: str, kind: str) -> Path:
        if not (home / family).is_dir():
            model(family, kind).save(home / family)
        return home / family

    return made


@pytest.fixture
def small(disk: Callable[[str], Path]) -> Callable[[int], Path]:  # noqa: F811
    """Mounts a disk of so many bytes, anew each time."""
    return lambda size: disk(str(max(4096, size)))


def contents(place: Path) -> dict[str, bytes]:
    return {str(path.relative_to(place)): path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("layout", [p if p == "gguf" else pytest.param(p, marks=pytest.mark.slow) for p in LAYOUTS])
def test_a_disk_that_fills_while_a_model_is_saved(
    layout: str, models: Callable[[str, str], Path], small: Callable[[int], Path], tmp_path: Path
) -> None:
    family, kind, name, options, _ = LAYOUTS[layout]
    held = stemma.load(models(family, kind))
    held.save(tmp_path / "whole" / name, **options)
    whole = contents(tmp_path / "whole")
    size = sum(-(-len(content) // 4096) * 4096 for content in whole.values())
    failed = 0
    for share in SHARES:
        place = small(int(size * share))
        try:
            held.save(place / name, **options)
        except ResourceError as error:
            failed += 1
            assert "the disk is full" in str(error) and str(place) in str(error), error
            assert not contents(place) and not (place / name).exists(), share
    assert failed == len(SHARES)
    place = small(int(size * 1.6))  # the old files are there, and beside them no room for the new ones
    held.save(place / name, **options)
    before = contents(place)
    with pytest.raises(ResourceError, match="the disk is full"):
        held.save(place / name, **options)
    assert contents(place) == before == whole


@pytest.mark.parametrize("layout", [p if p == "meta" else pytest.param(p, marks=pytest.mark.slow) for p in LAYOUTS])
def test_files_that_may_not_grow_while_a_model_is_converted(
    layout: str, models: Callable[[str, str], Path], tmp_path: Path
) -> None:
    family, kind, name, options, words = LAYOUTS[layout]
    source = models(family, kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stemma.load(source).save(tmp_path / "whole" / name, **options)
    largest = max(len(content) for content in contents(tmp_path / "whole").values())
    for share in SHARES[1::2]:
        out = tmp_path / "out" / name
        ended = starter().run(
            "convert", source, out, *words, file=max(2000, int(largest * share))
        )  # the message too is a file
        refused(ended, 5, "cannot write", "nothing there was changed")
        assert not (tmp_path / "out").exists() or not contents(tmp_path / "out"), share
