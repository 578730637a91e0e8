"""The networks that learn in a run, as one module, and fingerprints of weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from stemma.nn.model import Model
from stemma.rewrites.modules import Rewritten


class Learners(nn.Module):
    """The model and the nets beside it that learn with it. Parameters of the model keep their names, those of a net get
    the prefix `role:`."""

    def __init__(self, model: Model, nets: Mapping[str, Model]) -> None:
        super().__init__()
        self.model, self.nets = model, nn.ModuleDict(nets)

    def each(self) -> Iterator[tuple[str, nn.Module]]:
        """(prefix, network): `""` for the model, `generator:` for a generator."""
        yield "", self.model
        for role, net in self.nets.items():
            yield f"{role}:", net

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter once, by name."""
        seen: set[int] = set()
        for prefix, net in self.each():
            for name, p in net.named_parameters():
                if id(p) not in seen:
                    seen.add(id(p))
                    yield prefix + name, p

    def tensors(self, frozen: bool = False) -> dict[str, Tensor]:
        """Parameters and persistent buffers by name, detached: those that learn; with `frozen`, all."""
        found = {name: p.detach() for name, p in self.named()}
        for prefix, net in self.each():
            names = {name for name, _ in net.named_parameters(remove_duplicate=False)}
            found |= {prefix + k: v for k, v in net.state_dict().items() if k not in names}
        fixed = set() if frozen else self._fixed()
        return {name: tensor for name, tensor in found.items() if name not in fixed}

    def frozen(self) -> dict[str, Tensor]:
        """What does not learn. A checkpoint lacks it: it is as when the run began."""
        fixed = self._fixed()
        return {name: tensor for name, tensor in self.tensors(frozen=True).items() if name in fixed}

    def _fixed(self) -> set[str]:
        """The names of frozen parameters, and of buffers of replaced modules (the codes of a quantised matrix)."""
        found = {name for name, p in self.named() if not p.requires_grad}
        for prefix, net in self.each():
            for path, module in net.named_modules():
                if isinstance(module, Rewritten):
                    found |= {f"{prefix}{path}.{name}" for name, _ in module.named_buffers()}
        return found


def fingerprint(tensors: Mapping[str, Tensor], entries: int | None = None) -> str:
    """A hash of tensors by name; with `entries`, of about so many entries of each, evenly spread."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        part = tensor.detach()
        if entries is not None and part.numel() > entries:
            part = part.flatten()[:: part.numel() // entries]
        digest.update(part.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
