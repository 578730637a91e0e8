"""ONNX out: a model as one graph that onnxruntime runs, exported by torch.

The graph takes whole texts, B T ids and their mask, and gives logits (of a model without a head its hidden states): no
cache goes in or out. Before a file is kept it is run beside the model, on other shapes than it was traced with.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stemma.errors import UsageError, brief, require
from stemma.formats import tensors
from stemma.formats.weights import check_weights
from stemma.nn.model import Model
from stemma.nn.parts import Choose

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
CLOSE = 1e-4  # how far outputs may be off, by the largest of them where that is above 1
ONE_FILE = 1_500_000_000  # bytes of weights above which they are in a file of their own: a graph's limit is 2 GB
TRACED, TRIED = ((2, 7),), ((1, 1), (2, 7), (3, 17))  # B T


def save(model: Model, path: str | Path, *, dtype: str | None = None) -> Path:
    """Write a model in float32 as an ONNX file, and beside it `x.onnx.data` if its weights are above 1.5 GB; all or
    nothing. Raises UsageError for another dtype, for a model that torch cannot export, and for a file that gives other
    outputs than the model; ResourceError without the packages."""
    path = Path(path)
    check_weights(model)
    _refuse(model, path, dtype)
    for package in PACKAGES:
        require(package, "writing ONNX files", "'stemma-lm[onnx]'")
    graph = Graph(model).eval()
    program = _export(graph)
    large = sum(p.nbytes for p in model.parameters()) > ONE_FILE
    names = (path.name, f"{path.name}.data")
    with tensors.whole(path.parent, lambda name: name in names) as folder:
        program.save(str(folder / path.name), external_data=large)
        if (off := _differs(graph, folder / path.name)) is not None:
            raise UsageError(f"{model.name or 'this model'} cannot be written as ONNX: its file {off}")
    return path


def _refuse(model: Model, path: Path, dtype: str | None) -> None:
    if path.is_dir():
        raise UsageError(f"{path} is a folder; an ONNX model is one file, such as model.onnx")
    if dtype not in (None, "float32") or any(p.dtype != torch.float32 for p in model.parameters()):
        raise UsageError(f"ONNX files are float32, not {dtype or model.dtype}: load the model with dtype='float32'")
    if model.rewrites:
        raise UsageError("ONNX is for plain models: merge the adapters first (stemma merge), and load without quantize")
    if isinstance(model.arch.heads.task, Choose):
        raise UsageError("a head that chooses among candidates has no ONNX form here; export one that classifies")


class Graph(nn.Module):
    """A model with the inputs and outputs of its file."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
        out = self(**self.sample(*TRACED[0]))
        self.outputs = ("start_logits", "end_logits") if len(out) == 2 else (self._kind,)

    def sample(self, rows: int, length: int, seed: int = 0) -> dict[str, Tensor]:
        """Inputs of random ids, the last rows padded at the end."""
        generator = torch.Generator().manual_seed(seed)
        length = min(length, self.model.dims.context)

        def ids(length: int, top: int = self.model.dims.vocab) -> Tensor:
            return torch.randint(0, top, (rows, length), generator=generator)

        mask = torch.ones(rows, length, dtype=torch.int64)
        for row in range(1, rows):
            mask[row, length - row * length // (2 * rows) :] = 0
        inputs = {"input_ids": ids(length), "attention_mask": mask}
        if self.model.encoder is not None and self.model.decoder is not None:
            inputs["decoder_input_ids"] = ids(max(1, length * 2 // 3))
        elif self.model.dims.segments > 1:
            inputs["token_type_ids"] = ids(length, self.model.dims.segments)
        return inputs

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        out = self.model(input_ids, attention_mask, token_type_ids, decoder_input_ids)
        if out.start_logits is not None and out.end_logits is not None:
            return out.start_logits, out.end_logits
        return (out.hidden,) if out.logits is None else (out.logits,)

    @property
    def _kind(self) -> str:
        heads = self.model.arch.heads
        return "logits" if any((heads.lm, heads.task, heads.detect)) else "last_hidden_state"


def _export(graph: Graph) -> Any:
    """torch's ONNX program. Raises UsageError with its reason."""
    inputs = graph.sample(*TRACED[0])
    axes = {name: {0: "batch", 1: "written" if name.startswith("decoder") else "tokens"} for name in inputs}
    log = logging.getLogger("torch.onnx")
    level = log.level
    try:
        with torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            log.setLevel(logging.ERROR)
            return torch.onnx.export(
                graph,
                kwargs=inputs,
                dynamic_shapes=axes,
                dynamo=True,
                verbose=False,
                input_names=list(inputs),
                output_names=list(graph.outputs),
            )
    except Exception as error:  # of torch, onnxscript or onnx
        raise UsageError(f"torch cannot export {graph.model.name or 'this model'} to ONNX: {_reason(error)}") from None
    finally:
        log.setLevel(level)


def _reason(error: BaseException) -> str:
    """The first of the errors that led to this one."""
    while error.__cause__ is not None:
        error = error.__cause__
    return brief(str(error))


def _differs(graph: Graph, path: Path) -> str | None:
    """In what way the file gives other outputs than the model, in words; None if it gives the same."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    for rows, length in TRIED:
        inputs = graph.sample(rows, length, seed=length)
        with torch.no_grad():
            wanted = graph(**inputs)
        try:
            found = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        except Exception as error:  # the library raises its own kinds
            return f"fails for texts of {length} tokens, {rows} at once ({_reason(error)})"
        for want, array in zip(wanted, found, strict=True):
            got = torch.from_numpy(array)
            if got.shape == inputs["attention_mask"].shape + want.shape[2:]:  # at padding there is nothing to compare
                want, got = (t[inputs["attention_mask"].bool()] for t in (want, got))
            off = float((got - want).abs().max())
            if not off <= CLOSE * max(1.0, float(want.abs().max())):
                return f"gives other outputs (by {off:.1e}) for texts of {length} tokens, {rows} at once"
    return None
