"""The networks that learn in a run, as one module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from stemma.nn.model import Model


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

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and persistent buffers by name, detached."""
        found = {name: p.detach() for name, p in self.named()}
        for prefix, net in self.each():
            names = {name for name, _ in net.named_parameters(remove_duplicate=False)}
            found |= {prefix + k: v for k, v in net.state_dict().items() if k not in names}
        return found
