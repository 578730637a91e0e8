"""A model on the meta device, and the loader that fills it from a file of any layout."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from stemma.declare.family import Design, Family
from stemma.errors import CheckpointError, ResourceError, UsageError, did_you_mean
from stemma.formats.heads import part
from stemma.formats.names import Ledger, Row, missing
from stemma.formats.rotary import to_halves
from stemma.formats.stream import Stream
from stemma.nn.init import Undrawn
from stemma.nn.model import Model
from stemma.rewrites.engine import apply, complete, unmergeable
from stemma.rewrites.kinds import Rewrite
from stemma.rewrites.modules import Blocks, load_tensor, replaced
from stemma.rewrites.paths import PlainTensors

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def attach(model: Model, design: Design, family: Family | None, tokenizer: Any = None) -> Model:
    """Set a model's design, family and tokenizer."""
    model.family, model.name, model.text, model.tokenizer = family, design.name, design.text, tokenizer
    model.design = design
    return model


def device_of(name: str | torch.device) -> torch.device:
    """The torch device of a name. Raises UsageError for a name that torch does not know and ResourceError for a device
    that is not here."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"device {name!r} is not known; use cpu, cuda, cuda:1, mps or meta") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ResourceError(f"device {name!s}: this torch sees {torch.cuda.device_count()} CUDA devices")
    return device


def dtype_of(name: str | torch.dtype) -> torch.dtype:
    """The torch type of a name. Raises UsageError for others than float32, bfloat16 and float16."""
    if isinstance(name, torch.dtype):
        return name
    if name not in DTYPES:
        raise UsageError(f"dtype {name!r} is not known; use {', '.join(DTYPES)} or auto{did_you_mean(name, DTYPES)}")
    return DTYPES[name]


def meta_model(design: Design) -> Model:
    """The model of a design on the meta device: shapes, no data."""
    with Undrawn(), torch.device("meta"):
        return Model(design.arch, design.dims)


def design_of(model: Model) -> Design:
    """The design of a model as it is now."""
    design: Design = replace(model.design, arch=model.arch, dims=model.dims, text=model.text)
    return design


class TensorSource(Protocol):
    """The tensors of a file by name: `meta_tensor` gives shape and dtype on the meta device, `get` the data, `blocks`
    the data of a quantised matrix as it is in the file (None for any other). A source may have a method `mapped`: a
    tensor in memory that a model may keep and change, which never changes the file (None: it has to be copied)."""

    def __iter__(self) -> Iterator[str]: ...

    def meta_tensor(self, name: str) -> Tensor: ...

    def get(self, name: str) -> Tensor: ...

    def blocks(self, name: str) -> Blocks | None: ...


class WeightLoader:
    """Loads the tensors of a file into a model on the meta device, in three passes: `find` every row, `account` for the
    rest of the file, `read` the data.

    `where`: the file's name in errors; `files`: a table's name of a tensor -> its name in the file; `new`: heads that
    are initialised where the file lacks them; `equal`: pairs of the file's tensors that were found equal already;
    `stream`: `read` checks a row and leaves the data in the file, for `model.stream`."""

    def __init__(
        self,
        model: Model,
        source: TensorSource,
        where: str,
        ledger: Ledger,
        files: Mapping[str, str] | None = None,
        new: Collection[str] = (),
        equal: Collection[frozenset[str]] = (),
        stream: bool = False,
    ) -> None:
        self.model, self.source, self.where, self.new, self.equal = model, source, where, new, equal
        self.files = {name: name for name in source} if files is None else files
        self.whole = PlainTensors(model).shapes
        self.shapes = self.whole | PlainTensors(model, slices=True).shapes
        self._kept: set[int] = set()  # where tensors begin that the model keeps
        self._stream = Stream(self.shapes, self.whole) if stream else None
        model.stream = self._stream
        self.ledger = model.ledger = ledger

    def find(self, r: Row, afresh: bool = False) -> str | None:
        """The file's tensor for a row, its shape checked; None if the row is initialised instead (as with `afresh`)."""
        found = None if afresh else next((n for n in (r.theirs, *r.aliases) if n in self.files), None)
        if found is None:
            if part(r) in self.new:
                self.ledger.new += r.ours
                return None
            raise missing(r.theirs, self.source, self.where)
        name = self.files[found]
        try:
            r.read(self.source.meta_tensor(name), self.shapes)
        except CheckpointError as error:
            if part(r) == "task" in self.new:
                raise CheckpointError(
                    f"{error}; leave labels out to read the head that is there, or draw another with new=['task']"
                ) from None
            raise
        self.ledger.loaded |= dict.fromkeys(r.ours, name)
        self.ledger.tied |= dict.fromkeys(self.repeated(r, name), name)
        return name

    def repeated(self, r: Row, name: str) -> list[str]:
        """The other tensors of the file that must equal the tensor `name`, as the row's aliases name them."""
        return [self.files[alias] for alias in r.aliases if self.files.get(alias, name) != name]

    def account(self, unused: Mapping[str, str], left: Collection[str] = ()) -> None:
        """Every tensor of the file that no row reads must match a pattern of `unused` (pattern: reason) or be
        in `left`, the names of parts that a task does without. Raises CheckpointError for any other."""
        used = {*self.ledger.loaded.values(), *self.ledger.tied, *self.ledger.ignored}
        for known, name in self.files.items():
            if name in used:
                continue
            reason = "of a part that the task leaves behind" if known in left else None
            reason = reason or next((why for pattern, why in unused.items() if re.search(pattern, known)), None)
            if reason is None:
                raise CheckpointError(f"{self.where} holds a tensor {name!r} for which this model has no place")
            self.ledger.ignored[name] = reason

    def rewrite(self, rewrites: Sequence[Rewrite]) -> None:
        """Replace modules of the model before anything is read into them."""
        apply(self.model, rewrites)

    def finish(self, device: torch.device, dtype: torch.dtype | None) -> None:
        """Initialise what rewrites added, after everything is read."""
        if self.model.rewrites:
            self.ledger.new += complete(self.model, device, dtype or self.model.dtype)

    def read(
        self, r: Row, name: str, device: torch.device, dtype: torch.dtype | None, interleaved: bool = False
    ) -> None:
        """Load a row from the tensor `name` of the file as `dtype` (None: the file's own). `interleaved`: its rows are
        in Meta's order."""
        if device.type != "meta" and (blocks := self._blocks(r, name, interleaved)) is not None:
            for ours, part in zip(r.ours, blocks, strict=True):
                load_tensor(self.model, ours, part, device, dtype or torch.float32)
            return
        kept = self._mapped(r, name, device, dtype, interleaved)
        tensor = kept
        if tensor is None:
            tensor = self.source.meta_tensor(name) if device.type == "meta" else self.source.get(name)
        for ours, value in self._ordered(r, tensor, interleaved):
            load_tensor(self.model, ours, value, device, dtype or value.dtype, keep=kept is not None)
        if self._stream is not None:
            self._stream.add(r, lambda: self._ordered(r, self.source.get(name), interleaved), dtype)
        if device.type != "meta" or self._stream is not None:
            self._check_ties(r, name)

    def _ordered(self, r: Row, tensor: Tensor, interleaved: bool) -> list[tuple[str, Tensor]]:
        """The model's tensors from the file's."""
        return r.read(to_halves(tensor, self.model.dims.width) if interleaved else tensor, self.shapes)

    def _check_ties(self, r: Row, name: str) -> None:
        for other in self.repeated(r, name):
            if frozenset((name, other)) in self.equal:
                continue
            if not torch.equal(self.source.get(other), self.source.get(name)):
                raise CheckpointError(
                    f"{self.where}: {other!r} should repeat {name!r} (the config ties them) but differs from it"
                )

    def _mapped(
        self, r: Row, name: str, device: torch.device, dtype: torch.dtype | None, interleaved: bool
    ) -> Tensor | None:
        """The tensor of a row in memory that the model may keep: its type and layout are the model's, no replaced
        module takes it, and no other row has it. None for any other."""
        mapped = getattr(self.source, "mapped", None)
        about = self.source.meta_tensor(name)
        same = device.type == "cpu" and dtype in (None, about.dtype) and not interleaved and r.op is None
        if mapped is None or not same or (r.transposed and about.ndim == 2):
            return None
        if any(ours not in self.whole or replaced(self.model, ours) for ours in r.ours):
            return None
        tensor: Tensor | None = mapped(name)
        if tensor is None or tensor.untyped_storage().nbytes() != tensor.nbytes or tensor.data_ptr() in self._kept:
            return None
        self._kept.add(tensor.data_ptr())
        return tensor

    def _blocks(self, r: Row, name: str, interleaved: bool) -> list[Blocks] | None:
        """A quantised tensor as the file has it, split for replaced modules; None where the row needs numbers."""
        if r.op is not None or r.transposed or r.aliases or not all(replaced(self.model, ours) for ours in r.ours):
            return None
        if (held := self.source.blocks(name)) is None:
            return None
        data = to_halves(held.data, self.model.dims.width) if interleaved else held.data
        parts = data.split([self.shapes[ours][0] for ours in r.ours])
        return [held._replace(data=part) for part in parts]


def check_weights(model: Model) -> None:
    """Raises UsageError for a model that cannot be saved: it has no weights, or is rewritten and cannot be merged."""
    if model.device.type == "meta" and model.stream is None:
        raise UsageError("this model has shapes and no weights (it is on the device 'meta'): there is nothing to save")
    if (why := unmergeable(model)) is not None:
        raise UsageError(
            f"this model cannot be saved as plain weights: {why}; undo its rewrites (stemma.rewrites.undo)"
        )
