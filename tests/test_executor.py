"""The step executor: its logits are PyTorch's, a row's do not depend on its neighbours, and where it cannot run it says
so."""

from __future__ import annotations

import gc
import logging
import os
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from stemma import executor
from stemma.cli import compiling
from stemma.decoding.layout import lay_out
from stemma.decoding.session import Session
from stemma.decoding.sessions import begin, session_kind
from stemma.errors import CheckpointError, UsageError
from stemma.executor import many, native, onednn, structs
from stemma.nn.model import Model
from tiny import NETWORKS, build, tiny

NEW = 9  # steps, past every window of a tiny family


@pytest.fixture(autouse=True)
def needs_a_compiler() -> Iterator[None]:
    if native.library() is None:
        pytest.skip("no C compiler")
    with torch.inference_mode():
        yield


def texts(lengths: list[int], seed: int = 3) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(5, 80, (n,), generator=generator).tolist() for n in lengths]


def tokens(rows: int, seed: int) -> torch.Tensor:
    return torch.randint(5, 80, (rows,), generator=torch.Generator().manual_seed(seed))


def pair(model: Model, prompts: list[list[int]]) -> tuple[Session, Session]:
    """The same decoding by the executor and by PyTorch."""
    languages = [1] * len(prompts) if model.dims.languages else None
    kind = session_kind(model, prompts, NEW)
    ours, theirs = kind(model, prompts, NEW, languages), kind(model, prompts, NEW, languages)
    theirs.executor = None
    assert ours.executor is not None
    return ours, theirs


def writes(name: Any) -> bool:
    design = tiny(str(name))
    return design.arch.structure != "encoder" and design.arch.heads.lm is not None


@pytest.mark.parametrize("name", [p for p in NETWORKS if writes(p.values[0])])
def test_logits_are_pytorchs(name: str) -> None:
    """One row, and rows of several lengths; both go on with the same tokens."""
    model = build(tiny(name))
    if isinstance(why := executor.of(model), executor.Reason):
        assert why.words == "the tape has no instruction for the mask Recall()"
        return
    for lengths in ([3], [9, 4, 7, 3]):
        ours, theirs = pair(model, texts(lengths))
        for step in range(NEW):
            new = tokens(len(lengths), step)
            torch.testing.assert_close(ours.step(new), theirs.step(new), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_as_near_as_pytorchs(name: str, dtype: torch.dtype) -> None:
    """Nearer to the logits of the same weights in fp32 than twice PyTorch's own distance."""
    model = build(tiny(name)).to(dtype)
    ours, theirs = pair(model, texts([9, 4, 7]))
    wide = build(tiny(name))
    wide.load_state_dict(model.state_dict())
    exact = Session(wide, texts([9, 4, 7]), NEW)
    exact.executor = None
    near, far = 0.0, 0.0
    for step in range(NEW):
        new = tokens(3, step)
        a, b, c = ours.step(new), theirs.step(new), exact.step(new)
        near, far = max(near, float((a - c).abs().max())), max(far, float((b - c).abs().max()))
    assert near <= 2 * far and far < 0.1


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, torch.float32) for name in ("llama", "mistral", "mixtral", "t5")),
        *(pytest.param(name, torch.float32, marks=pytest.mark.slow) for name in ("gpt2", "palm", "chatglm")),
        ("llama", torch.bfloat16),
    ],
)
def test_a_row_is_the_same_bits_among_any_others(name: str, dtype: torch.dtype) -> None:
    """Alone and among 1 to 16 rows, by one thread and by two."""
    model, threads = build(tiny(name)).to(dtype), torch.get_num_threads()
    lengths = [9, 4, 7, 3, 8, 5, 6, 9, 3, 4, 5, 6, 7, 8, 9, 3]
    try:
        for among in ([0, 1], [0, 1, 2], [0, 1, 2, 3, 4], list(range(7)), list(range(16))):
            for last in (among[-1], among[0]):
                together, alone = (begin(model, texts(lengths), NEW) for _ in range(2))
                together.keep(among)
                alone.keep([last])
                assert alone.executor is not None
                for step in range(3):
                    new = tokens(16, step)
                    torch.set_num_threads(1 + len(among) % 2)
                    many = together.step(new[among])
                    torch.set_num_threads(1 + step % 2)
                    one = alone.step(new[[last]])
                    assert torch.equal(many[among.index(last)], one[0]), (among, last, step)
    finally:
        torch.set_num_threads(threads)


def test_rows_join_and_leave() -> None:
    """The cache goes over to PyTorch and back, and to other batches, at any step."""
    model = build(tiny("mistral"))
    ours, theirs = pair(model, texts([9, 4]))
    steps = ours.executor
    for step in range(NEW):
        new = tokens(ours.rows, step)
        ours.executor = None if step % 3 == 1 else steps
        torch.testing.assert_close(ours.step(new), theirs.step(new), rtol=0, atol=1e-5)
        if step == 2:
            for session in (ours, theirs):
                session.admit(texts([5, 30], seed=8), NEW)
        if step == 5:
            for session in (ours, theirs):
                session.keep([3, 0, 0])


def test_weights_are_read_where_they_lie() -> None:
    """Training goes on in the same tensors; a weight that is another one makes the tape anew."""
    model = build(tiny("llama"))
    first = executor.of(model)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.1)
    assert executor.of(model) is first
    ours, theirs = pair(model, texts([5]))
    torch.testing.assert_close(ours.step(tokens(1, 0)), theirs.step(tokens(1, 0)), rtol=0, atol=1e-5)
    model.to(torch.bfloat16)
    assert executor.of(model) is not first
    assert executor.of(model) is executor.of(model)


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_prompts_by_the_wider_products(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The logits of a prompt are PyTorch's, and each matrix of at least 16 vectors is multiplied by oneDNN."""
    model, seen = build(tiny(name)), []
    monkeypatch.setattr(executor.of(model), "reads", False)
    suits = onednn.suits

    def noted(*args: Any) -> bool:
        seen.append(suits(*args))
        return seen[-1]

    monkeypatch.setattr(onednn, "suits", noted)
    monkeypatch.setattr(many, "better", lambda: False)
    plain = Session(model, texts([30, 25]), NEW).logits
    assert not seen
    monkeypatch.setattr(many, "better", lambda: True)
    torch.testing.assert_close(Session(model, texts([30, 25]), NEW).logits, plain, rtol=0, atol=1e-5)
    assert seen.count(True) >= 12
    with torch.inference_mode(False), torch.enable_grad():
        assert not suits(torch.zeros(20, 8), torch.zeros(4, 8))
    assert not suits(torch.zeros(15, 8), torch.zeros(4, 8))


def test_no_weight_is_turned_over() -> None:
    """Neither by a session of one row nor by an engine of few."""
    model = build(tiny("llama"))
    before = [(p.data_ptr(), p.stride()) for p in model.parameters()]
    begin(model, texts([5]), NEW)
    lay_out(model, 1)
    assert [(p.data_ptr(), p.stride()) for p in model.parameters()] == before


def test_an_executor_goes_with_its_model() -> None:
    model = build(tiny("llama"))
    seen = weakref.ref(model)
    assert isinstance(executor.of(model), executor.Executor)
    del model
    gc.collect()
    assert seen() is None


def reason(model: Model) -> str:
    found = executor.of(model)
    assert isinstance(found, executor.Reason)
    return found.words


def test_why_not(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The reason is one of words, told once."""
    assert "training" in reason(build(tiny("llama")).train())
    hooked = build(tiny("llama"))
    hooked.decoder.blocks[0].register_forward_hook(lambda *_: None)  # type: ignore[union-attr]
    with caplog.at_level(logging.INFO, logger="stemma"):
        assert reason(hooked) == reason(hooked) == "its modules have hooks"
    told = "PyTorch computes the steps of this model: its modules have hooks"
    assert [r.message for r in caplog.records].count(told) < 2
    assert "float64" in reason(build(tiny("llama")).double())
    monkeypatch.setenv("STEMMA_EXECUTOR", "off")
    assert reason(build(tiny("llama"))) == "STEMMA_EXECUTOR=off"


def test_gradients_are_pytorchs() -> None:
    with torch.inference_mode(False), torch.enable_grad():
        session = Session(build(tiny("llama")), texts([5]), NEW)
        assert session.step(tokens(1, 0)).requires_grad


def test_what_is_in_no_table_is_refused() -> None:
    ours, _ = pair(build(tiny("gpt2")), texts([5]))
    with pytest.raises(UsageError, match="in no table"):
        ours.step(torch.tensor([83]))


def test_logits_that_are_not_finite_are_named() -> None:
    model = build(tiny("llama"))
    ours, _ = pair(model, texts([5]))
    model.decoder.blocks[1].mlp.down.weight.fill_(float("inf"))  # type: ignore[union-attr]
    with pytest.raises(CheckpointError, match="not finite"):
        ours.step(tokens(1, 0))


def test_headers_are_read() -> None:
    assert structs.constants()["BF16"] == 1 and structs.constants()["POSITION"] == 3
    fields = dict(structs.structures()["attend_step"]._fields_)
    assert fields["q_norm"] is structs.structures()["norm"] and "slopes" in fields


def test_the_library_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled once, in a folder of the user's own; what others could have written is not loaded; without a compiler
    there is none."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native, "FLAGS", ("-std=gnu11", "-fPIC"))  # compiled the faster
    fresh = native.library.__wrapped__
    made = fresh()
    assert made is not None and made.path.parent == tmp_path / "stemma"
    assert made.path.parent.stat().st_mode & 0o077 == 0
    time = made.path.stat().st_mtime_ns
    again = fresh()
    assert again is not None and again.path.stat().st_mtime_ns == time
    os.chmod(made.path, 0o666)
    other = fresh()
    assert other is not None and other.path.stat().st_mode & 0o022 == 0
    monkeypatch.setenv("CC", "/no/such/compiler")
    assert fresh() is None


def test_build_says_what_it_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`stemma build` compiles once; without a compiler it says so."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native, "FLAGS", ("-std=gnu11", "-fPIC"))
    monkeypatch.setattr(native, "library", native.library.__wrapped__)
    for how in ("compiled by", "kept from an earlier time"):
        said = CliRunner().invoke(compiling.build)
        assert said.exit_code == 0 and how in said.output and "by the step executor" in said.output
    monkeypatch.setenv("CC", "/no/such/compiler")
    assert "by PyTorch: no C compiler" in CliRunner().invoke(compiling.build).output


def test_threads_that_ask_first_at_once_get_the_same_structures() -> None:
    before, interval = structs.structures(), sys.getswitchinterval()
    try:
        sys.setswitchinterval(1e-6)
        for _ in range(20):
            structs._structures.cache_clear()
            start, found = threading.Barrier(4), list[Any]()

            def ask(start: threading.Barrier = start, found: list[Any] = found) -> None:
                start.wait()
                found.append(structs.structures()["matrix"])

            threads = [threading.Thread(target=ask) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(set(found)) == 1
    finally:
        sys.setswitchinterval(interval)
        structs._structures.cache_clear()
        _put_back(before)


def _put_back(before: dict[str, Any]) -> None:
    """The classes that tapes made earlier in this process are of."""
    found = structs._structures()
    found.clear()
    found.update(before)
