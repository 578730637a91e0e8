"""Compiled steps of decoding, on the CPU: the logits are PyTorch's whatever rows share a recording, and what does not
compile is said. Inductor compiles in slow tests alone: in others the step is traced (`traced`), or runs as it is. CUDA
graphs were tried nowhere."""

from __future__ import annotations

import copy
import gc
import logging
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import stemma
from stemma.decoding import compiled
from stemma.decoding.sampling import race
from stemma.decoding.session import Session
from stemma.decoding.sessions import begin, session_kind
from stemma.engine import Engine
from stemma.errors import CheckpointError, UsageError
from stemma.nn.model import Model
from stemma.rewrites import NF4, LoRA, Prefix, Rewrite, SoftPrompt, WeightOnly, apply
from stemma.text import Specials, Tokenizer
from test_executor import NEW, texts, tokens, writes
from tiny import NETWORKS, build, tiny

NAMES = ["gpt2", "llama", "t5", "glm"]


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(compiled.VARIABLE, "on")
    monkeypatch.setattr(torch, "compile", lambda step, **_: step)
    with torch.inference_mode():
        yield


COMPILE = torch.compile


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """One graph, whose operations PyTorch computes."""
    monkeypatch.setattr(torch, "compile", COMPILE)
    monkeypatch.setattr(compiled, "BACKEND", "eager")


def pair(model: Model, prompts: list[list[int]]) -> tuple[Session, Session]:
    """The same decoding by compiled steps and by PyTorch."""
    languages = [1] * len(prompts) if model.dims.languages else None
    kind = session_kind(model, prompts, NEW)
    ours, theirs = (kind(model, prompts, NEW, languages) for _ in range(2))
    theirs.executor = None
    assert isinstance(ours.executor, compiled.CompiledSteps)
    return ours, theirs


def equal(ours: Session, theirs: Session, new: torch.Tensor) -> None:
    torch.testing.assert_close(ours.step(new), theirs.step(new), rtol=0, atol=1e-5)
    if isinstance(ours.executor, compiled.CompiledSteps) and not ours.executor.failed:
        found = ours.likeliest(ours.logits)
        assert found is not None and found.tokens == ours.logits.argmax(-1).tolist()
        logprobs = ours.logits.log_softmax(-1).amax(-1)
        torch.testing.assert_close(torch.tensor(found.logprobs, dtype=torch.float32), logprobs, rtol=0, atol=1e-5)


def check(name: str) -> None:
    """Greedy tokens and logits of rows of several lengths."""
    model = build(tiny(name))
    ours, theirs = pair(model, texts([9, 4, 7]))
    for _ in range(NEW):
        new = ours.logits.argmax(-1)
        assert torch.equal(new, theirs.logits.argmax(-1))
        equal(ours, theirs, new)
    assert len(model.steps.compiled) == 1 and not model.steps.failed


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("traced")
def test_logits_are_pytorchs(name: str) -> None:
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [p for p in NETWORKS if writes(p.values[0]) and p.values[0] != "longllama"])
@pytest.mark.usefixtures("traced")
def test_every_family_is_one_graph(name: str) -> None:
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "t5"])
def test_logits_of_inductor_are_pytorchs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", COMPILE)
    check(name)


def test_rows_join_leave_and_change_over() -> None:
    """To PyTorch and back, and to other batches, at any step; another session has a recording of its own."""
    model = build(tiny("mistral"))
    ours, theirs = pair(model, texts([9, 4]))
    beside, alone = pair(model, texts([6, 3], seed=5))
    steps = ours.executor
    for step in range(NEW):
        ours.executor = None if step % 3 == 1 else steps
        equal(ours, theirs, tokens(ours.rows, step))
        equal(beside, alone, tokens(2, step + 50))
        if step == 2:
            for one in (ours, theirs):
                one.admit(texts([5, 30], seed=8), NEW)
        if step == 5:
            for one in (ours, theirs):
                one.keep([3, 0, 0])
    assert ours.cache.lease.of is not beside.cache.lease.of  # type: ignore[attr-defined]


def test_sources_of_other_lengths_join() -> None:
    model = build(tiny("t5"))
    ours, theirs = pair(model, texts([9, 9]))
    for step in range(4):
        equal(ours, theirs, tokens(ours.rows, step))
        if step == 1:
            for one in (ours, theirs):
                one.admit(texts([12, 3], seed=8), NEW)


def test_a_free_recording_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """By fewer rows too, and what was there before is not seen."""
    model, made = build(tiny("t5")), []
    create = compiled.Recording

    def noted(*args: Any) -> compiled.Recording:
        made.append(create(*args))
        return made[-1]

    monkeypatch.setattr(compiled, "Recording", noted)
    for lengths in ([20, 9, 4, 7], [3, 5], [3]):
        ours, theirs = pair(model, texts(lengths))
        for step in range(3):
            equal(ours, theirs, tokens(len(lengths), step))
        del ours, theirs
        gc.collect()
    assert [r.shape.rows for r in made] == [4] and model.steps.free == made


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mistral", "llama"])
@pytest.mark.usefixtures("traced")
def test_pages_are_one_graph(name: str) -> None:
    test_pages(name)


@pytest.mark.parametrize("name", ["mistral", "llama"])
def test_pages(name: str) -> None:
    """An engine whose rows join and leave writes what PyTorch writes; a window has pages of its own."""
    model = build(tiny(name, **{"dims.vocab": 260, "dims.context": 200}))
    model.tokenizer = Tokenizer.train("bpe", ["abc"], 260, Specials(eos="</s>"))
    prompts = texts([70, 3, 40, 33, 9], seed=4)
    options: dict[str, Any] = {"ignore_eos": True}
    lengths = [4, 40, 12, 30, 8]
    with pytest.MonkeyPatch.context() as plain:
        plain.setenv(compiled.VARIABLE, "off")
        want = [
            stemma.generate(model, [p], max_new_tokens=n, **options)[0].ids
            for p, n in zip(prompts, lengths, strict=True)
        ]
    with Engine(model, rows=3, chunk=32) as engine:
        jobs = [engine.submit(p, max_new_tokens=n, **options) for p, n in zip(prompts, lengths, strict=True)]
        assert [job.result().ids for job in jobs] == want
    assert model.steps.compiled and not model.steps.failed and model.steps.of_pages


LAYERS = ("*.attention.*", "*.mlp.*")
STORED = (*LAYERS, "embed.tokens")
REWRITES = [WeightOnly(STORED, "q4_0"), NF4(LAYERS), LoRA(LAYERS, 4)]
MORE = [
    SoftPrompt(length=3),
    Prefix(length=3),
    *(WeightOnly(STORED, kind) for kind in ("q8_0", "q4_1", "int8", "bfloat16")),
]


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("rewrite", [*REWRITES, *(pytest.param(r, marks=pytest.mark.slow) for r in MORE)])
def test_rewritten_models(rewrite: Rewrite, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights in few bits are made within the graph; vectors in front of the text have places in the cache."""
    monkeypatch.setenv("STEMMA_EXECUTOR", "off")  # whose products round vectors to 8 bits
    model = build(tiny("llama", **{"dims.d_model": 96, "dims.d_ff": 64, "dims.layers": 1}))
    apply(model, (rewrite,))
    ours, theirs = pair(model, texts([5, 3]))
    for step in range(3):
        equal(ours, theirs, tokens(2, step))
    assert not model.steps.failed


@pytest.mark.slow
@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("kind", ["q4_k", "q5_k"])
def test_blocks_of_a_file(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEMMA_EXECUTOR", "off")
    wide = {"dims.d_model": 256, "dims.heads": 2, "dims.kv_heads": 1, "dims.d_ff": 256, "dims.layers": 1}
    stemma.build(tiny("llama", **wide)).save(str(tmp_path / "a.gguf"), dtype=kind)
    model = stemma.load(tmp_path / "a.gguf", quantize="keep")
    ours, theirs = pair(model, texts([5, 3]))
    for step in range(2):
        equal(ours, theirs, tokens(2, step))
    assert not model.steps.failed


class OnCPU(TorchDispatchMode):
    """Notes operations whose result is on the CPU, or a number of Python's."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if any(not isinstance(x, torch.Tensor) or x.device.type == "cpu" for x in tree_leaves(out)):
            self.seen.append(str(func))
        return out


@pytest.mark.parametrize(("name", "rewrite"), [*((name, None) for name in NAMES), *(("llama", r) for r in REWRITES)])
def test_nothing_is_computed_on_the_cpu(name: str, rewrite: Rewrite | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """On another device (here `meta`): a CUDA graph cannot record it."""
    model = build(tiny(name, **{"dims.d_model": 96, "dims.d_ff": 64} if name == "llama" else {}))
    apply(model, () if rewrite is None else (rewrite,))
    cache = begin_plain(model).cache
    seen = OnCPU()

    def made(self: compiled.CompiledSteps, shape: compiled.Shape, buffers: Any) -> Any:
        there = tree_map(lambda x: x.to("meta") if isinstance(x, torch.Tensor) else x, buffers)
        model.to("meta")
        recording = create(shape, there, model.dims.vocab, lambda *given: compiled._step(model, *given))
        with seen:
            recording.run()  # tables are there by now
        raise KeyboardInterrupt  # enough

    create = compiled.Recording
    steps = compiled.of(model)
    assert steps is not None
    monkeypatch.setattr(compiled.CompiledSteps, "_made", made)
    with pytest.raises(KeyboardInterrupt):
        steps.ready(cache)
    assert not seen.seen


class Kernels(TorchDispatchMode):
    """Records operations with their tensors, as a CUDA graph does, and runs them again without the Python around."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Any, Any, Any, list[Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out, kwargs = func(*args, **(kwargs or {})), kwargs or {}
        places = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        new = [x if x.untyped_storage().data_ptr() not in places else None for x in tree_leaves(out)]
        self.seen.append((func, args, kwargs, new))
        return out

    def replay(self) -> None:
        for func, args, kwargs, new in self.seen:
            for place, x in zip(new, tree_leaves(func(*args, **kwargs)), strict=True):
                if place is not None:
                    place.copy_(x)


def test_a_recording_needs_no_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same operations on the same tensors are right for rows that join and leave, sources and pages."""
    made: list[int] = []

    class Replayed(compiled.Recording):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            with Kernels() as kernels:
                self.run()
            self.run = kernels.replay
            made.append(len(kernels.seen))

    monkeypatch.setattr(compiled, "Recording", Replayed)
    test_rows_join_leave_and_change_over()
    test_sources_of_other_lengths_join()
    test_pages("mistral")
    check("glm")
    assert len(made) > 6 and min(made) > 50


def test_logits_that_are_not_finite_are_named() -> None:
    model = build(tiny("llama"))
    ours, _ = pair(model, texts([5]))
    model.decoder.blocks[1].mlp.down.weight.fill_(float("inf"))  # type: ignore[union-attr]
    with pytest.raises(CheckpointError, match="not finite"):
        ours.step(tokens(1, 0))


@pytest.mark.usefixtures("traced")
def test_what_does_not_compile_is_said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: Any) -> torch.Tensor:
        raise ValueError

    monkeypatch.setattr(compiled, "_step", breaks)
    ours, theirs = pair(build(tiny("llama")), texts([5, 3]))
    for step in range(2):
        equal(ours, theirs, tokens(2, step))
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == [
        "PyTorch computes the steps of this model: they do not compile: Observed exception"
    ]


def test_when_steps_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Left to itself on CUDA alone, behind the first steps."""
    model = build(tiny("llama"))
    first = compiled.of(model)
    assert first is not None and first is compiled.of(model)
    assert copy.deepcopy(model).steps is None
    assert compiled.of(model.to(torch.bfloat16)) is not first
    assert compiled.of(build(tiny("llama")).train()) is None
    for name in ("unilm", "xlnet", "longllama"):
        assert compiled.of(build(tiny(name))) is None, name
    for value, found in (("", None), ("off", None)):
        monkeypatch.setenv(compiled.VARIABLE, value)
        assert compiled.of(model) is found
    monkeypatch.setenv(compiled.VARIABLE, "yes")
    with pytest.raises(UsageError, match="STEMMA_COMPILE=yes is neither on nor off"):
        compiled.of(model)
    steps = compiled.CompiledSteps(model, (), 2)
    cache = begin_plain(model).cache
    assert [steps.ready(cache) for _ in range(3)] == [False, False, True]


def begin_plain(model: Model) -> Session:
    with pytest.MonkeyPatch.context() as plain:
        plain.setenv(compiled.VARIABLE, "off")
        return begin(model, texts([3]), NEW)


def test_compiled_steps_go_with_their_model() -> None:
    model = build(tiny("llama"))
    ours, _ = pair(model, texts([5]))
    ours.step(tokens(1, 0))
    seen = weakref.ref(model)
    del model, ours, _
    gc.collect()
    assert seen() is None


def test_a_race_is_what_multinomial_draws() -> None:
    share = torch.randn(6, 517).softmax(-1)
    for seed in range(20):
        ours, theirs = ([torch.Generator().manual_seed(seed + i) for i in range(6)] for _ in range(2))
        drawn = [torch.multinomial(p, 1, generator=g) for p, g in zip(share, theirs, strict=True)]
        assert torch.equal(race(share, ours), torch.cat(drawn))
        assert torch.equal(ours[0].get_state(), theirs[0].get_state())
