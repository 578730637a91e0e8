"""ONNX files: the same outputs in onnxruntime as here, for texts of other lengths and batches than were traced.

What exports is slow: a network takes ten seconds whatever its size. Skipped where the packages are not installed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import stemma
from stemma.cli.convert import convert
from stemma.errors import ResourceError, StemmaError, UsageError
from stemma.formats import onnx
from tiny import build, tiny

NAMES = ["bert", "roberta", "gpt2", "llama", "t5"]


@pytest.fixture
def packages() -> None:
    for package in onnx.PACKAGES:
        pytest.importorskip(package)


def model_of(name: str) -> Any:
    design = tiny(name)
    model = build(design)
    model.design, model.family, model.name = design, stemma.families.tree()[name], name
    return model


def ran(path: Path, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == list(inputs)
    assert session.get_inputs()[0].shape == ["batch", "tokens"]
    return [torch.from_numpy(x) for x in session.run(None, {k: v.numpy() for k, v in inputs.items()})]


# ---------------------------------------------------------------- refusals


def test_what_is_not_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small: dict[str, Any] = dict(d_model=48, layers=1, heads=4, d_ff=128, vocab=96)
    model = stemma.build("bert-base-uncased", **small)
    for made, options, words in (
        (model, {"dtype": "float16"}, "ONNX files are float32, not float16: load the model with dtype='float32'"),
        (
            stemma.build("bert-base-uncased", dtype="bfloat16", **small),
            {},
            "ONNX files are float32, not torch.bfloat16",
        ),
        (stemma.build("bert-base-uncased", task="choose", **small), {}, "a head that chooses among candidates"),
        (
            stemma.build(
                "llama-7b", rewrites=stemma.formats.quantized(stemma.build("llama-7b", **small), "int8"), **small
            ),
            {},
            "ONNX is for plain models: merge the adapters first",
        ),
    ):
        with pytest.raises(UsageError, match=words):
            made.save(tmp_path / "x.onnx", **options)
    with pytest.raises(UsageError, match="is a folder; an ONNX model is one file"):
        model.save(tmp_path, layout="onnx")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ResourceError, match=r"writing ONNX files needs onnx: pip install 'stemma-lm\[onnx\]'"):
        model.save(tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())
    (tmp_path / "x.onnx").write_bytes(b"x")
    with pytest.raises(UsageError, match="is an ONNX file, which is written and not read"):
        stemma.load(tmp_path / "x.onnx")


# ---------------------------------------------------------------- export


@pytest.mark.slow
@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize("name", NAMES)
def test_the_same_outputs(tmp_path: Path, name: str) -> None:
    model = model_of(name)
    model.save(tmp_path / "x.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["x.onnx"]
    graph = onnx.Graph(model)
    for rows, length in ((1, 3), (5, 29)):
        inputs = graph.sample(rows, length, seed=9)
        with torch.no_grad():
            (want,) = graph(**inputs)
        (got,) = ran(tmp_path / "x.onnx", inputs)
        if "decoder_input_ids" not in inputs:
            want, got = (t[inputs["attention_mask"].bool()] for t in (want, got))
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("packages")
def test_heads_and_weights_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx, "ONE_FILE", 1000)  # as if they were gigabytes
    small: dict[str, Any] = dict(d_model=48, layers=1, heads=4, d_ff=128, vocab=96, context=64)
    for task, outputs in (("classify", ["logits"]), ("tag", ["logits"]), ("answer", ["start_logits", "end_logits"])):
        labels = None if task == "answer" else 3
        model = stemma.build("bert-base-uncased", task=task, labels=labels, **small)
        model.save(tmp_path / "x.onnx")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["x.onnx", "x.onnx.data"]
        import onnxruntime

        session = onnxruntime.InferenceSession(str(tmp_path / "x.onnx"), providers=["CPUExecutionProvider"])
        assert [o.name for o in session.get_outputs()] == outputs
        graph = onnx.Graph(model)
        inputs = graph.sample(3, 11, seed=4)
        with torch.no_grad():
            wanted = graph(**inputs)
        for want, got in zip(wanted, ran(tmp_path / "x.onnx", inputs), strict=True):
            real = inputs["attention_mask"].bool() if want.shape[1:2] == (11,) else slice(None)
            torch.testing.assert_close(got[real], want[real], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("packages")
def test_files_that_would_be_wrong_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch cannot export, and what gives other outputs, leaves nothing; the old file stays."""
    (tmp_path / "x.onnx").write_bytes(b"old")
    for name, words in (
        ("mixtral", "torch cannot export mixtral to ONNX: "),
        ("xlnet", "cannot be written as ONNX: its file"),
    ):
        with pytest.raises(StemmaError, match=words) as error:
            model_of(name).save(tmp_path / "x.onnx")
        assert "\n" not in str(error.value)
    real = onnx._export

    def drifting(graph: onnx.Graph) -> Any:
        program = real(graph)
        graph.register_forward_hook(lambda module, inputs, out: tuple(t + 0.01 for t in out))
        return program

    monkeypatch.setattr(onnx, "_export", drifting)
    with pytest.raises(
        UsageError, match=r"its file gives other outputs \(by 1\.0e-02\) for texts of 1 tokens, 1 at once"
    ):
        model_of("bert").save(tmp_path / "x.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["x.onnx"] and (tmp_path / "x.onnx").read_bytes() == b"old"


@pytest.mark.slow
@pytest.mark.usefixtures("packages")
def test_convert(tmp_path: Path) -> None:
    small: dict[str, Any] = dict(d_model=48, layers=1, heads=4, d_ff=128, vocab=96)
    stemma.build("gpt2", dtype="bfloat16", **small).save(str(tmp_path / "hf"))
    result = CliRunner().invoke(convert, [str(tmp_path / "hf"), str(tmp_path / "x.onnx")], catch_exceptions=False)
    assert result.exit_code == 0 and "parameters, float32" in result.output
    model = stemma.load(tmp_path / "hf")
    inputs = onnx.Graph(model).sample(2, 9)
    (got,) = ran(tmp_path / "x.onnx", inputs)
    with torch.no_grad():
        want = model(**inputs).logits
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(got[real], want[real], rtol=1e-4, atol=1e-4)
