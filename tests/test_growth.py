"""Large checkpoints: weights stay in their files until they are changed, and files are written tensor by tensor."""

from __future__ import annotations

import copy
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

import stemma
from stemma import disk, formats
from stemma.errors import CheckpointError, UsageError
from stemma.formats import tensors as stored
from stemma.rewrites import WeightOnly

LLAMA: dict[str, Any] = {"layers": 2, "d_model": 32, "heads": 2, "kv_heads": 2, "d_ff": 64, "vocab": 60, "context": 32}
GPT2: dict[str, Any] = {"layers": 2, "d_model": 32, "heads": 2, "d_ff": 64, "vocab": 60, "context": 32}
mapping = pytest.mark.skipif(os.name == "nt", reason="on Windows files are read, not mapped")


def state(model: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[n], b[n]) for n in a)


def content(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in sorted(folder.iterdir())}


def mapped(model: Any, file: str) -> list[str]:
    """The parameters of a model that lie in a mapping of a file."""
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(file)]
    ranges = [[int(x, 16) for x in line[0].split("-")] for line in lines]
    return [n for n, p in model.named_parameters() if any(a <= p.data_ptr() < b for a, b in ranges)]


def train(model: Any, steps: int = 2) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    ids = torch.arange(16).reshape(2, 8)
    for _ in range(steps):
        F.cross_entropy(model(ids).logits.flatten(0, 1), ids.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3).add_(1)


@pytest.mark.parametrize("shard", [10**9, 20_000])
def test_training_never_reaches_the_files(shard: int, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    made = stemma.build("llama-7b", **LLAMA)
    made.save(folder, shard_bytes=shard)
    before = content(folder)
    model = stemma.load(folder)
    assert same(state(model), state(made))
    train(model)
    assert content(folder) == before
    assert not any(torch.equal(a, b) for a, b in zip(state(model).values(), state(made).values(), strict=True))
    assert same(state(stemma.load(folder)), state(made))  # which the first one's changes do not reach


@mapping
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc")
def test_what_is_mapped(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    stemma.build("llama-7b", **LLAMA).save(folder)
    model = stemma.load(folder)
    assert mapped(model, "m/model.safetensors") == [n for n, p in model.named_parameters() if p.nbytes >= stored.KEPT]
    for p in model.parameters():  # a copy or a pickle of one has nothing of the others
        assert p.untyped_storage().nbytes() == p.nbytes
    again = copy.deepcopy(model)
    assert not mapped(again, "m/model.safetensors") and same(state(again), state(model))
    assert not mapped(stemma.load(folder, dtype="bfloat16"), "m/model.safetensors")  # converted one by one
    adapted = stemma.load(folder, rewrites=[WeightOnly(where=("*.attention.q",))])
    held = mapped(adapted, "m/model.safetensors")
    assert held and not any(".attention.q." in name for name in held)  # replaced modules have memory of their own
    stemma.build("gpt2", **GPT2).save(tmp_path / "g")
    model = stemma.load(tmp_path / "g")
    held = mapped(model, "g/model.safetensors")
    # GPT-2's matrices are transposed in files
    assert "embed.tokens.weight" in held and not any(".attention." in n for n in held)


@pytest.mark.parametrize(("name", "dims"), [("llama-7b", LLAMA), ("gpt2", GPT2)])
def test_saved_over_the_folder_that_it_came_from(name: str, dims: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "m"
    stemma.build(name, **dims).save(folder)
    for shard in (10**9, 20_000, 10**9):  # one file, shards, one file again
        other, model = stemma.load(folder), stemma.load(folder)
        kept = state(other)
        train(model, 1)
        model.save(folder, shard_bytes=shard)
        assert same(state(stemma.load(folder)), state(model))
        assert same(state(other), kept)  # loaded before, and still what it was
        train(other, 1)
        assert same(state(stemma.load(folder)), state(model))


@mapping
@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_a_model_outlives_its_files(how: str, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    made = stemma.build("llama-7b", **LLAMA)
    made.save(folder)
    model = stemma.load(folder)
    if how == "deleted":
        shutil.rmtree(folder)
    else:
        disk.write(folder / "model.safetensors", b"something else")
    ids = torch.arange(8)[None]
    assert torch.equal(model(ids).logits, made(ids).logits)
    train(model)
    model.save(folder)
    assert same(state(stemma.load(folder)), state(model))


def test_tensors_that_share_memory_in_a_file_are_apart_in_the_model(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    made = stemma.build("llama-7b", **LLAMA)
    made.save(folder)
    held = load_file(folder / "model.safetensors")
    a, b = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.self_attn.q_proj.weight"
    (folder / "model.safetensors").unlink()
    torch.save(held | {b: held[a]}, folder / "pytorch_model.bin")
    before = content(folder)
    model = stemma.load(folder)
    one, two = (model.get_parameter(f"decoder.blocks.{i}.attention.q.weight") for i in (0, 1))
    assert torch.equal(one, two) and one.data_ptr() != two.data_ptr()
    with torch.no_grad():
        one.add_(1)
    assert torch.equal(two, held[a]) and content(folder) == before


def test_ties_are_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stemma.build("gpt2", **GPT2).save(tmp_path)
    held = load_file(tmp_path / "model.safetensors")
    words = next(n for n in held if n.endswith("wte.weight"))
    entries = {
        n: stored.Entry(t.shape, t.dtype, lambda t=t: t) for n, t in (held | {"lm_head.weight": held[words]}).items()
    }
    stored.write_shard(tmp_path / "new", entries)  # not into the file that is mapped
    (tmp_path / "new").rename(tmp_path / "model.safetensors")
    read: list[str] = []
    real = stored.Tensors.get
    monkeypatch.setattr(stored.Tensors, "get", lambda self, name: read.append(name) or real(self, name))
    model = stemma.load(tmp_path)
    assert model.arch.heads.lm.tied and read.count("lm_head.weight") == 1 and read.count(words) <= 1


# ---------------------------------------------------------------- writing


@pytest.mark.parametrize("kind", list(stored.TYPES.values()))
def test_the_library_reads_our_files(kind: torch.dtype, tmp_path: Path) -> None:
    made = {"b": torch.randn(3, 5), "a.é": torch.randn(7), "z": torch.randn(()), "empty": torch.empty(0, 4)}
    made = {name: t.to(kind) for name, t in made.items()} | {f"{i}": torch.randn(8, 16 * i).to(kind) for i in (1, 2)}
    made["wide"] = torch.randn(5, dtype=torch.float64)
    entries = {n: stored.Entry(t.shape, t.dtype, lambda t=t: t) for n, t in made.items()}
    stored.write_shard(tmp_path / "ours", entries)
    assert same(dict(sorted(load_file(tmp_path / "ours").items())), dict(sorted(made.items())))
    raw = (tmp_path / "ours").read_bytes()
    size = int.from_bytes(raw[:8], "little")
    head = json.loads(raw[8 : 8 + size])
    assert head.pop("__metadata__") == {"format": "pt"}
    starts = {n: 8 + size + about["data_offsets"][0] for n, about in head.items()}
    assert {n for n, t in made.items() if t.nbytes % 64 == 0} == {"1", "2", "empty"}
    assert all(starts[n] % 64 == 0 for n in ("1", "2", "empty"))
    assert all(starts[n] % t.itemsize == 0 for n, t in made.items())


def shifted(file: Path, shift: int) -> None:
    """Move the data of a safetensors file to `shift` bytes past a multiple of 64."""
    raw = file.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    head = raw[8 : 8 + size].rstrip()
    head += b" " * ((shift - 8 - len(head)) % 64)
    file.write_bytes(len(head).to_bytes(8, "little") + head + raw[8 + size :])


def test_where_tensors_begin_in_a_file_changes_no_logit(tmp_path: Path) -> None:
    """A product with one vector rounds by where the matrix begins: such weights are copied."""
    made = stemma.build("llama-7b", **LLAMA | {"d_model": 72, "d_ff": 136})
    made.save(tmp_path)
    ids = torch.tensor([[7]])
    for shift in range(0, 64, 8):
        shifted(tmp_path / "model.safetensors", shift)
        for dtype in ("float32", "auto"):
            model = stemma.load(tmp_path, dtype=dtype)
            assert all(p.data_ptr() % 64 == 0 for p in model.parameters())
            assert same(state(model), state(made)) and torch.equal(model(ids).logits, made(ids).logits)


def test_a_file_of_very_many_tensors_is_refused_soon(tmp_path: Path) -> None:
    for name in ("llama-7b", "gpt2"):
        stemma.build(name, **(LLAMA if name == "llama-7b" else GPT2)).save(tmp_path / name)
        head = {f"t{i}": {"dtype": "F32", "shape": [1], "data_offsets": [4 * i, 4 * i + 4]} for i in range(20_000)}
        text = json.dumps(head).encode()
        content = len(text).to_bytes(8, "little") + text + bytes(4 * len(head))
        (tmp_path / name / "model.safetensors").write_bytes(content)
        began = time.process_time()
        with pytest.raises(CheckpointError, match=r"is missing from|should hold"):
            stemma.load(tmp_path / name)
        assert time.process_time() - began < 3


def test_one_tensor_is_in_memory_at_a_time(tmp_path: Path) -> None:
    alive: list[int] = []

    class Counted:
        def __init__(self) -> None:
            alive.append(1)

        def __del__(self) -> None:
            alive.pop()

    def make() -> Tensor:
        assert not alive
        tensor: Any = torch.ones(4, 4, dtype=torch.float64)
        tensor.counted = Counted()
        return tensor

    stored.write(tmp_path, {str(i): stored.Entry((4, 4), torch.float32, make) for i in range(6)}, 128)
    assert len(list(tmp_path.glob("*.safetensors"))) == 3 and not alive


def test_only_what_replaces_files_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = stemma.build("llama-7b", **LLAMA)
    forced: list[str] = []
    monkeypatch.setattr(disk, "sync", lambda path: forced.append(path.name))
    model.save(tmp_path / "m")
    assert not forced
    model.save(tmp_path / "m")
    assert "model.safetensors" in forced and "config.json" in forced


# ---------------------------------------------------------------- weights that stay in the file


@pytest.mark.parametrize("case", ["llama", "gpt2", "mixtral", "gguf", "f16"])
def test_streamed_files_are_those_of_a_loaded_model(case: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    name, dims = {"gpt2": ("gpt2", GPT2), "mixtral": ("mixtral-8x7b", LLAMA)}.get(case, ("llama-7b", LLAMA))
    made = stemma.build(name, **dims, **({"experts": 4, "active": 2} if case == "mixtral" else {}))
    if case in ("gguf", "f16"):
        pytest.importorskip("gguf")
        source = tmp_path / "source.gguf"
        made.save(source, dtype="q8_0" if case == "gguf" else "float16")
    else:
        made.save(source)
    for kind in ("auto", "bfloat16"):
        streamed, loaded = formats.stream(source, kind), stemma.load(source, dtype=kind)
        assert streamed.device.type == "meta" and streamed.dtype == loaded.dtype
        for model, out in ((streamed, tmp_path / f"a-{kind}"), (loaded, tmp_path / f"b-{kind}")):
            model.save(out, shard_bytes=20_000)
            if case != "mixtral":
                model.save(out / "m.gguf")
        assert content(tmp_path / f"a-{kind}") == content(tmp_path / f"b-{kind}")


def test_a_stream_is_as_strict_as_a_load(tmp_path: Path) -> None:
    stemma.build("gpt2", **GPT2).save(tmp_path)
    held = load_file(tmp_path / "model.safetensors")
    name = next(n for n in held if n.endswith("ln_f.weight"))
    save_file({n: t for n, t in held.items() if n != name}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"ln_f\.weight"):
        formats.stream(tmp_path)
    save_file(held, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match="nothing to save"):
        stemma.load(tmp_path, device="meta").save(tmp_path / "out")
