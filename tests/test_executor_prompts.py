"""Prompts that the executor reads: logits and caches as PyTorch's, and the same bits in whatever pieces, among whatever
others and by however many threads a prompt is read."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from stemma import executor
from stemma.decoding.chunked import ChunkedSession
from stemma.decoding.session import Session
from stemma.decoding.sessions import session_kind
from stemma.errors import CheckpointError, UsageError
from stemma.executor import executor as executors
from stemma.executor import native
from stemma.nn.model import Model
from stemma.nn.pool import Pages
from tiny import NETWORKS, build, tiny

pytestmark = pytest.mark.filterwarnings("ignore:.*more than the")
READ = ["gpt2", "lamda", "llama", "mistral", "palm", "gemma2", "glm-4"]  # one of each position, mask and block
LENGTHS = [55, 9, 70, 1]  # past every window, and past a panel of vectors


@pytest.fixture(autouse=True)
def needs_wide_registers() -> Iterator[None]:
    if native.library() is None or "avx512bw" not in native.instructions():
        pytest.skip("prompts are read by PyTorch")
    with torch.inference_mode():
        yield


def texts(lengths: list[int] = LENGTHS) -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(5, 80, (n,), generator=generator).tolist() for n in lengths]


def steps_of(model: Model) -> executor.Executor:
    found = executor.of(model)
    assert isinstance(found, executor.Executor)
    return found


def by_pytorch(model: Model, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> Session:
    """The same session, all of it by PyTorch."""
    with monkeypatch.context() as patch:
        patch.setattr(steps_of(model), "reads", False)
        session = session_kind(model, prompts, 4)(model, prompts, 4, languages(model, prompts))
    session.executor = None
    return session


def languages(model: Model, prompts: list[list[int]]) -> list[int] | None:
    return [1] * len(prompts) if model.dims.languages else None


def check(name: str, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Logits of prompts and of steps behind them. Returns whether the executor reads prompts of this family."""
    model = build(tiny(name, **{"dims.context": 96}))
    if isinstance(found := executor.of(model), executor.Reason) or not found.reads:
        return False
    for prompts in (texts(), texts([8])):
        kind = session_kind(model, prompts, 4)
        ours, theirs = kind(model, prompts, 4, languages(model, prompts)), by_pytorch(model, prompts, monkeypatch)
        torch.testing.assert_close(ours.logits, theirs.logits, rtol=0, atol=1e-5)
        for step in range(4):
            new = [7 + step + i for i in range(len(prompts))]
            torch.testing.assert_close(ours.step(new), theirs.step(new), rtol=0, atol=1e-5)
        ours.executor = None  # PyTorch goes on with the cache
        torch.testing.assert_close(ours.step(new), theirs.step(new), rtol=0, atol=1e-5)
    return True


@pytest.mark.parametrize("name", READ)
def test_prompts_are_pytorchs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check(name, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", [p.values[0] for p in NETWORKS])
def test_all_prompts_are_pytorchs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    design = tiny(str(name))
    if design.arch.structure != "encoder" and design.arch.heads.lm is not None:
        check(str(name), monkeypatch)


def test_what_prompts_cannot_be() -> None:
    """Those that see what follows, experts and encoder-decoders are PyTorch's."""
    assert not any(steps_of(build(tiny(name))).reads for name in ("glm", "mixtral", "t5"))


@pytest.mark.parametrize(
    ("name", "dtype"), [("llama", torch.float32), ("mistral", torch.float32), ("gemma2", torch.bfloat16)]
)
def test_the_bits_do_not_depend_on_pieces_neighbours_or_threads(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(tiny(name, **{"dims.context": 96})).to(dtype)
    if not steps_of(model).reads:
        pytest.skip("no instructions for bf16")
    threads, prompts, read = torch.get_num_threads(), texts(), []
    real = executors.Executor.read
    monkeypatch.setattr(executors.Executor, "read", lambda *given: (read.append(1), real(*given))[1])
    try:
        torch.set_num_threads(1)
        alone = [Session(model, [prompt], 4).logits[0] for prompt in prompts]
        for together, count, chunk in ((512, 2, 999), (24, 1, 999), (512, 3, 20), (7, 2, 50)):
            monkeypatch.setattr(executors, "TOGETHER", together)
            torch.set_num_threads(count)
            pages = Pages(model.arch, model.dims.layers, 400, rows=8, chunk=chunk, slots=4)
            opened = ChunkedSession.opened(model, prompts, 4, pages=pages)
            while not opened.go_on(chunk):
                pass
            for session in (Session(model, prompts, 4), ChunkedSession(model, prompts, 4), opened):
                assert torch.equal(session.logits, torch.stack(alone)), (together, count, chunk, type(session))
    finally:
        torch.set_num_threads(threads)
    assert len(read) > 12


def test_halves_are_as_near_as_pytorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    model, wide = (build(tiny("llama", **{"dims.context": 96})) for _ in range(2))
    model.to(torch.bfloat16)
    if not steps_of(model).reads:
        pytest.skip("no instructions for bf16")
    wide.load_state_dict(model.state_dict())
    exact = by_pytorch(wide, texts(), monkeypatch).logits
    ours, theirs = Session(model, texts(), 4).logits, by_pytorch(model, texts(), monkeypatch).logits
    assert (ours - exact).abs().max() <= 2 * (theirs - exact).abs().max() < 0.2


def test_a_prompt_that_cannot_be_read_is_refused() -> None:
    model = build(tiny("llama"))
    session = Session(model, [[5, 6]], 4)
    with pytest.raises(UsageError, match="in no table"):
        steps_of(model).read([[5, 90]], session._range, session.cache, [0])
    model.decoder.blocks[1].mlp.down.weight.fill_(float("inf"))  # type: ignore[union-attr]
    with pytest.raises(CheckpointError, match="not finite"):
        Session(model, [[5, 6], [7]], 4)


def test_steps_go_on_after_a_longer_prompt_of_another_session() -> None:
    """What both write into lies elsewhere after it has grown."""
    model = build(tiny("llama", **{"dims.context": 300}))
    first = Session(model, [[5, 6, 7]], 8)
    want = [Session(model, [[5, 6, 7]], 8).step([9]), first.step([9])]
    assert torch.equal(*want)
    Session(model, texts([250, 200]), 4)
    other = Session(model, [[5, 6, 7, 9]], 8)
    torch.testing.assert_close(first.step([4]), other.step([4]), rtol=0, atol=1e-5)
