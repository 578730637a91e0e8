"""The frozen model that a policy is held to: a net beside it, the policy itself with its adapters off, or what either
said of all texts before the run (`Known`)."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stemma.errors import CheckpointError, UsageError
from stemma.nn.attention import Attention
from stemma.nn.mixed import autocast_on
from stemma.nn.model import Model
from stemma.objectives.base import Nets
from stemma.objectives.continuations import Answer
from stemma.rewrites import adapters

ROLE = "reference"
KEY = 16  # bytes of the hash of a text


def key_of(text: Answer) -> bytes:
    """What tells a prompt with its answer from others: a hash of their ids."""
    digest = hashlib.blake2b(digest_size=KEY)
    for ids in text:
        digest.update(len(ids).to_bytes(8, "little") + np.asarray(ids, dtype="<i8").tobytes())
    return digest.digest()


class Known:
    """What the reference says of texts: of each, by its `key_of`, where the log-probabilities of its targets lie among
    the `values`, and how many there are."""

    def __init__(self, places: Mapping[bytes, tuple[int, int]], values: NDArray[np.float32]) -> None:
        self.places, self.values = places, values

    def of(self, texts: Sequence[Answer]) -> Tensor:
        """The log-probabilities of the targets of some texts, N. Raises CheckpointError for a text that is not
        there."""
        found = []
        for text in texts:
            begin, size = self.places.get(key_of(text), (0, 0))
            if size != len(text.ids):
                raise CheckpointError(
                    "what the reference says of a text was not computed before the run: the texts are not those that "
                    "it began with"
                )
            found.append(self.values[begin : begin + size])
        return torch.from_numpy(np.concatenate(found).astype(np.float32))


class Unknown(Known):
    """Nothing is known, and 0 stands for everything: where only sizes and times matter."""

    def __init__(self) -> None:
        super().__init__({}, np.zeros(0, np.float32))

    def of(self, texts: Sequence[Answer]) -> Tensor:
        return torch.zeros(sum(len(text.ids) for text in texts))


def check(model: Model, nets: Nets) -> None:
    """Raise UsageError where there is no reference, or where it cannot judge what the model writes."""
    net = nets.get(ROLE)
    if net is None:
        if not adapters.names(model):
            raise UsageError(
                "the policy has no adapters that could be switched off, so it needs a reference: name its weights "
                "(objective.reference=FOLDER)"
            )
        own = {id(p) for part in adapters.parts(model) for p in part.trainable()}
        others = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in own]
        if others:
            raise UsageError(
                f"{others[0]} learns and is part of no adapter, so the policy with its adapters off would not stay as "
                "it began: name a reference (objective.reference=FOLDER)"
            )
        return
    if any(p.requires_grad for p in net.parameters()):
        raise UsageError("the reference must be frozen, and some of its weights learn")
    ours, theirs = model.arch.structure, net.arch.structure
    if ours != theirs:
        raise UsageError(
            f"the reference {net.name} is a network of structure {theirs}, and the policy of structure {ours}"
        )
    if net.arch.heads.lm is None:
        raise UsageError(f"the reference {net.name} has no language-model head, so it gives texts no probability")
    if net.dims.vocab < model.dims.vocab:
        raise UsageError(
            f"the reference {net.name} knows {net.dims.vocab:,} tokens and the policy {model.dims.vocab:,}: they must "
            "have one tokenizer; take the model that the policy began from"
        )


@contextlib.contextmanager
def frozen(model: Model, nets: Nets) -> Iterator[Model]:
    """The reference, for the time of a block: without dropout and gradients. Adapters and modes of modules are as
    before when the block ends, however it does. In bf16 its attention takes the kernel that the policy's takes."""
    net = nets.get(ROLE)
    found = model if net is None else net
    with still(found, model), adapters.without(found) if net is None else contextlib.nullcontext():
        yield found


@contextlib.contextmanager
def still(model: Model, beside: Model | None = None) -> Iterator[None]:
    """Without dropout and gradients, for the time of a block.

    Attention has a kernel for training and one for the rest. In fp32 they differ by 1e-6, in bf16 by so much that
    equal weights would seem to diverge. So under autocast attention without dropout keeps its mode, or takes that of
    the model `beside`."""
    modes = [(module, module.training) for module in model.modules()]
    trains = any(part.training for part in (beside or model).modules() if isinstance(part, Attention))
    try:
        model.eval()
        if trains and autocast_on(next(model.parameters())):
            for part in model.modules():
                if isinstance(part, Attention) and not part.dropout:
                    part.training = True
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
