"""The names that a base model's publisher gives its modules, which PEFT's directories go by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from stemma.formats.layouts import file_rows, layout_of
from stemma.formats.names import ByHead, Row
from stemma.formats.weights import design_of
from stemma.nn.heads import LMHead, MLMHead
from stemma.nn.mlp import Experts
from stemma.nn.model import Model
from stemma.rewrites.paths import PlainTensors, plain_modules, plain_type

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
BESIDE = ".base_layer."  # in the names of a weight or bias beside which an adapter stands
A, B, LENGTH = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"
TABLE_A, TABLE_B = "lora_embedding_A", "lora_embedding_B"  # of embeddings
EXPERTS = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"  # what `target_parameters` may name
ROWS = "token_adapter.trainable_tokens_delta"  # the rows of a table that learn alone


@dataclass(frozen=True)
class Packed:
    """A linear layer, table or head of the publisher: our modules whose matrices it holds, in the order in which it
    packs them, and the shapes of these. `looked_up`: it is an embedding."""

    ours: tuple[str, ...]
    rows: Row
    transposed: bool
    shapes: tuple[tuple[int, int], ...]
    looked_up: bool = False

    @property
    def share(self) -> tuple[str, ...]:
        """The last names of the modules, where there are several."""
        return tuple(path.rpartition(".")[2] for path in self.ours) if len(self.ours) > 1 else ()

    def split(self, tensor: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        """A tensor over all outputs (E ...) as one for each of our modules."""
        shapes = [torch.Size((size, *tensor.shape[1:])) for size in sizes]
        if isinstance(self.rows.op, ByHead):
            return list(self.rows.op.read(tensor, shapes))
        return list(tensor.split(list(sizes)))

    def join(self, parts: list[Tensor]) -> Tensor:
        """The inverse of `split`."""
        return self.rows.op.write(parts) if isinstance(self.rows.op, ByHead) else torch.cat(parts)


@dataclass(frozen=True)
class Table:
    """The publisher's names of a model: what has a matrix by module, and the rows of all tensors by name. `tied`: the
    module of a head that multiplies with the embeddings."""

    linear: dict[str, Packed]
    rows: dict[str, Row]
    tied: str | None = None
    experts: dict[str, str] = field(default_factory=dict)  # of transformers, whose experts are stacked -> our path

    def module_of(self, path: str) -> str | None:
        """The publisher's module that is ours alone."""
        return next((name for name, packed in self.linear.items() if packed.ours == (path,)), None)


def table(model: Model) -> Table:
    """The publisher's names for the modules of a model."""
    design = design_of(model)
    layout, data, _ = layout_of(design, model.family)
    shapes = PlainTensors(model, slices=True)
    rows = file_rows(design, layout, data, shapes)
    linear: dict[str, Packed] = {}
    tied = None
    kinds = {path: plain_type(module) for path, module in plain_modules(model)}
    for name, r in rows.items():
        paths = tuple(o.removesuffix(".weight") for o in r.ours)
        types = [
            kinds.get(p, nn.Module) if o.endswith(".weight") else nn.Module for o, p in zip(r.ours, paths, strict=True)
        ]
        if not (r.op is None or isinstance(r.op, ByHead)):
            continue
        sizes = tuple((shapes.shapes[o][0], shapes.shapes[o][-1]) for o in r.ours)
        module, first = name.removesuffix(".weight"), types[0]
        if all(issubclass(t, nn.Linear) for t in types):
            linear[module] = Packed(paths, r, r.transposed, sizes)
        elif len(types) == 1 and issubclass(first, nn.Embedding | LMHead | MLMHead):
            linear[module] = Packed(paths, r, r.transposed, sizes, issubclass(first, nn.Embedding))
        if paths == ("embed.tokens",) and "lm" in kinds and "lm.weight" not in shapes:
            head = next((a for a in r.aliases if a.endswith(".weight") and "embed" not in a), None)
            tied = None if head is None else head.removesuffix(".weight")
    if tied is not None:
        linear[tied] = Packed(("lm",), rows[f"{embeddings(linear)}.weight"], False, linear[embeddings(linear)].shapes)
    stacked = [path for path, kind in kinds.items() if issubclass(kind, Experts)]
    return Table(linear, rows, tied, {f"model.layers.{path.split('.')[2]}.mlp.experts": path for path in stacked})


def embeddings(linear: Mapping[str, Packed]) -> str:
    """The publisher's name of the embeddings of tokens."""
    return next(name for name, packed in linear.items() if packed.ours == ("embed.tokens",))
