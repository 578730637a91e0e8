"""What every family gets for being declared: no dead knob, one graph, packed documents apart, a saved file that says
all of it. (Parity, counts and decoding are in their own files.)"""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from typing import Any

import pytest
import torch

import stemma
from stemma import spec
from stemma.declare.family import Design
from stemma.errors import UsageError
from stemma.families import tree
from stemma.formats import attach
from stemma.nn.model import Model
from stemma.nn.norms import norm
from stemma.nn.parts import (
    BlankLearned,
    Causal,
    Cycle,
    LayerNorm,
    Learned,
    Memory,
    Open,
    RelativeSinusoidal,
    RMSNorm,
    Rotary,
    Sliding,
)
from stemma.spec import Spec
from tiny import FAMILIES, KINDS, NETWORKS, batch, build, jittered, run, tiny

# windows that a short text does not fit into, and positions that none of the families has
SHORT: dict[type, Any] = {
    Sliding: lambda: Sliding(5),
    Cycle: lambda: Cycle((Causal(), Sliding(5))),
    Memory: lambda: Memory((1,), last=5),
    Rotary: lambda: Rotary(300.0),
}

TWO = {"dims.layers": 2}  # what costs by the layer: two of them tell what three do


def alternatives(hint: Any, value: Any) -> list[Any]:
    """Other values that a field of this type could have."""
    options = typing.get_args(hint) if typing.get_origin(hint) not in (None, typing.Literal, tuple) else (hint,)
    out: list[Any] = []
    for option in options:
        if typing.get_origin(option) is typing.Literal:
            out += [a for a in typing.get_args(option) if a != value]
        elif option is bool:
            out.append(not value)
        elif option is int and not isinstance(value, bool):
            out += [2 * value, value + 1, value // 2, 2, 1] if value is not None else [1, 2, 12, 16]
        elif option is float:
            out += [0.5] if value is None else [value * 1.5 + 0.01, 0.3]
        elif option is type(None):
            out.append(None)
        elif isinstance(option, type) and issubclass(option, Spec) and not isinstance(value, option):
            required = [f for f in dataclasses.fields(option) if f.default is dataclasses.MISSING]
            out += [] if required else [SHORT.get(option, option)()]
    return [o for o in out if o != value]


def knobs(value: Any, prefix: str) -> list[tuple[str, Any, Any]]:
    """(path, type, value) of every field, of nested specs too."""
    found = []
    hints = typing.get_type_hints(type(value))
    for f in dataclasses.fields(value):
        item = getattr(value, f.name)
        found.append((prefix + f.name, hints[f.name], item))
        if isinstance(item, Spec):
            found += knobs(item, f"{prefix}{f.name}.")
    return found


def shapes(design: Design) -> list[tuple[str, torch.Size]]:
    """Names and shapes of a design's parameters, which cost nothing to have."""
    with torch.device("meta"):
        return [(name, p.shape) for name, p in Model(design.arch, design.dims).named_parameters()]


def trace(design: Design) -> list[torch.Tensor]:
    """All that a design shows: initial parameters, outputs in eval mode, and in training with its dropout."""
    model = Model(design.arch, design.dims).initialise(0)
    fresh = [p.detach().clone() for p in model.parameters()]
    model = jittered(model, design)
    out = run(model, batch(design))
    torch.manual_seed(0)
    noisy = run(model.train(), batch(design))
    shown = [*fresh]
    for o in (out, noisy):
        shown += [v for v in vars(o).values() if isinstance(v, torch.Tensor)]
    shown += [*(out.mems or ()), *chosen(design, model.eval())]
    return [t.detach() for t in shown if t is not None]


def chosen(design: Design, model: Model) -> list[torch.Tensor]:
    """Outputs under every choice that an open mask leaves, with the segments that go with it."""
    if not isinstance(design.arch.mask, Open):
        return []
    ids = batch(design)["input_ids"]
    prefix = torch.tensor([3, 9, 5])
    return [
        run(model, {"input_ids": ids, "attention": a} | ({"prefix": prefix} if a == "prefix" else {})).hidden
        for a in ("full", "causal", "reverse", "prefix")
    ]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(x.shape == y.shape and torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", NETWORKS)
def test_no_dead_knob(name: str) -> None:
    """Every field of the resolved arch and dims changes the parameters or what comes out."""
    design = tiny(name, **TWO)
    if isinstance(design.arch.mask, Memory):  # it shows in texts that are longer than what is read at once
        design = spec.edit(design, {"arch.mask.last": 6, "dims.context": 8})
    before, outline = trace(design), shapes(design)
    for part in ("arch", "dims"):
        for path, hint, value in knobs(getattr(design, part), part + "."):
            tried = 0
            for other in alternatives(hint, value):
                try:
                    changed = spec.edit(design, {path: other})
                    differs = shapes(changed) != outline or not same(before, trace(changed))
                except UsageError:
                    continue  # not a valid design
                tried += 1
                if differs:
                    break
            else:
                # the length that a model is trained on shows in the network only where it has a table of positions
                table = isinstance(design.arch.position, Learned | BlankLearned)
                alone = path == "dims.decoder_layers" and design.arch.structure != "encoder-decoder"
                alone = alone or (path == "arch.dropout.pair" and not design.arch.heads.pair)
                assert (path == "dims.context" and not table) or alone or not tried, f"{path} changes nothing"


def without_mask(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k: v for k, v in inputs.items() if k != "attention_mask"}


@pytest.mark.parametrize("name", NETWORKS)
def test_one_graph(name: str) -> None:
    """The forward pass of masked rows compiles into one graph, which a second batch uses too."""
    torch._dynamo.reset()
    design = tiny(name, **TWO)
    model = build(design)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    first, second = batch(design), batch(design, seed=1)
    run(compiled, first)
    real = second["attention_mask"].bool()
    with torch._dynamo.config.patch(error_on_recompile=True):
        got = run(compiled, second).hidden
    assert torch.allclose(got[real], run(model, second).hidden[real], atol=1e-5)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("masked", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_second_batch_needs_no_second_graph(name: str, masked: bool) -> None:
    """The parts that training compiles are one graph each, bound to no tensor of the first batch."""
    torch._dynamo.reset()
    design = tiny(name, **TWO)
    model, plain = build(design), build(design)
    for stack in (model.encoder, model.decoder):
        if stack is not None:
            stack.compile(fullgraph=True, backend="eager")
    first, second = batch(design, seed=1), batch(design, seed=2)
    run(model, first if masked else without_mask(first))
    given = second if masked else without_mask(second)
    with torch._dynamo.config.patch(error_on_recompile=True):
        got = run(model, given).hidden
    real = second["attention_mask"].bool() if masked else slice(None)
    assert torch.allclose(got[real], run(plain, given).hidden[real], atol=1e-5)


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n == "gpt2" else pytest.mark.slow) for n in FAMILIES])
@pytest.mark.parametrize("masked", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_gradient_is_one_graph_too(name: str, masked: bool) -> None:
    torch._dynamo.reset()
    design = tiny(name, **TWO)
    model = build(design)
    inputs = batch(design) if masked else without_mask(batch(design))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    real = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
    assert torch.allclose(compiled(**inputs).hidden[real], model(**inputs).hidden[real], atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_packed_documents_do_not_see_each_other(name: str) -> None:
    """Two texts in one row give what each gives alone, and one does not move the other."""
    design = tiny(name)
    model = build(design).double()
    one, two = batch(design, 1, 9, seed=1), batch(design, 1, 14, seed=2)
    for x in (one, two):  # of a row, not of a text in it
        for name in ("attention_mask", "prefix", "position_ids"):
            x.pop(name, None)
    alone = [run(model, x).hidden for x in (one, two)]
    documents = torch.tensor([[0] * 9 + [1] * 14])
    start = design.arch.position.padding + 1 if isinstance(design.arch.position, Learned) and design.arch.position.padding is not None else 0  # fmt: skip
    positions = torch.cat([torch.arange(9), torch.arange(14)])[None]
    stack = model.decoder if model.encoder is None else model.encoder
    places = positions + start if stack.position.columns == 1 else stack.position.number(documents)
    if stack.position.columns > 1:
        places[..., 0] = positions
    packed = {k: torch.cat([one[k], two[k]], 1) for k in one}
    packed |= {"documents": documents, "position_ids": places}
    if design.arch.structure == "encoder-decoder":
        packed |= {"decoder_documents": documents, "decoder_position_ids": positions + start}
    together = run(model, packed).hidden
    assert (together - torch.cat(alone, 1)).abs().max() < 1e-10


@pytest.mark.parametrize("name", FAMILIES)
def test_save_and_load_give_the_same_model(name: str, tmp_path: Path) -> None:
    design = tiny(name)
    model = attach(build(design), design, tree()[name])
    model.save(tmp_path)
    again = stemma.load(tmp_path)
    assert again.arch == dataclasses.replace(design.arch, init=again.arch.init)
    assert again.dims == design.dims
    state = dict(again.named_parameters())
    assert all(torch.equal(p, state[n]) for n, p in model.named_parameters())
    again.save(tmp_path / "again")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_reach_every_parameter(name: str) -> None:
    design = tiny(name)
    model = build(design)
    inputs = batch(design)
    labels = inputs.get("decoder_input_ids", inputs["input_ids"])
    extra = {"next_sentence_label": torch.tensor([0, 1, 0])} if design.arch.heads.pair else {}
    model(**inputs, labels=labels, **extra).loss.backward()
    unused = {"pooler.dense.weight", "pooler.dense.bias"} if not design.arch.heads.pair else set()
    if design.arch.streams is not None:  # what queries begin as; they have a test of their own
        unused |= {"encoder.query"}
    for key, p in model.named_parameters():
        assert key in unused or (p.grad is not None and p.grad.abs().sum() > 0), key


@pytest.mark.parametrize("name", NETWORKS)
def test_a_seed_gives_the_same_weights(name: str) -> None:
    design = tiny(name)
    a, b, c = (Model(design.arch, design.dims).initialise(seed) for seed in (1, 1, 2))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert any(not torch.equal(p, q) for p, q in zip(a.parameters(), c.parameters(), strict=True))


def test_maps_into_the_residual_stream_begin_smaller() -> None:
    """GPT-2 (Radford et al. 2019, section 2.3): by 1 / sqrt(N), for N = two branches a layer."""
    design = tiny("gpt2", **{"dims.layers": 8, "dims.d_model": 60, "dims.d_ff": 256})
    model = Model(design.arch, design.dims).initialise(1)
    found = {name: p.std().item() for name, p in model.named_parameters() if p.ndim == 2}
    for name, std in found.items():
        into = name.endswith(("attention.o.weight", "mlp.down.weight"))
        if "blocks" in name:
            assert std == pytest.approx(0.02 / (4 if into else 1), rel=0.06), name


@pytest.mark.parametrize("declared", [LayerNorm(1e-2), RMSNorm(1e-2), RMSNorm(1e-2, offset=True)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norms_in_half_precision_are_the_formula(declared: Spec, dtype: torch.dtype) -> None:
    """Inputs as small as eps tell whether eps is added, and inside the root."""
    layer = norm(declared, 8).to(dtype)
    x = (0.1 * torch.randn(4, 8, generator=torch.Generator().manual_seed(0))).to(dtype)
    wide = x.double()
    if isinstance(declared, LayerNorm):
        wide = wide - wide.mean(-1, keepdim=True)
    expected = wide / (wide.square().mean(-1, keepdim=True) + 1e-2).sqrt()
    assert layer(x).dtype == dtype
    assert (layer(x).double() - expected).abs().max() < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("name", NETWORKS)
def test_training_and_inference_are_one_function(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without dropout a model in training mode gives what it gives in eval mode, though by other kernels."""
    monkeypatch.setattr("stemma.nn.cpu.BLOCK", 16)
    design = tiny(name)
    model = build(design).double()
    inputs = batch(design, length=37)
    for given in (inputs, {k: v for k, v in inputs.items() if k != "attention_mask"}):
        assert (run(model.train(), given).hidden - run(model.eval(), given).hidden).abs().max() < 1e-10


@pytest.mark.parametrize("name", NETWORKS)
def test_inputs_of_another_structure_are_refused(name: str) -> None:
    """What a structure does not have is an error, not silence."""
    design = tiny(name)
    model = build(design)
    inputs = batch(design)
    if not design.dims.segments and not isinstance(design.arch.position, RelativeSinusoidal):
        with pytest.raises(UsageError, match="segments"):
            model(**inputs, token_type_ids=torch.zeros_like(inputs["input_ids"]))
    if design.arch.structure != "encoder-decoder":
        with pytest.raises(UsageError, match="decoder_input_ids"):
            model(**inputs, decoder_input_ids=inputs["input_ids"])
