"""Modules and parameters of a rewritten model by their paths in the plain one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from stemma.errors import UsageError, nearest
from stemma.nn.heads import LMHead, MLMHead
from stemma.nn.mlp import Experts
from stemma.rewrites.modules import Blocks, Rewritten, Wrapped


def plain_modules(model: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Every module with its path in the plain model. Replaced modules are not entered."""
    yield path, model
    if not isinstance(model, Rewritten):
        for name, child in model.named_children():
            yield from plain_modules(child, f"{path}.{name}" if path else name)


def raw_matrices(module: nn.Module) -> tuple[str, ...]:
    """Weight matrices that a module multiplies with by itself: they are no modules that could be replaced."""
    match module:
        case Experts():
            return module.stacked
        case LMHead() | MLMHead() if module.weight is not None:
            return ("weight",)
    return ()


class Search:
    """Finds the modules of the types `accepted` whose path matches a pattern of `where`, for a rewrite of kind `kind`.
    Raises UsageError for a pattern that matches none, and for a matrix that is no module. `named`: further types, of
    modules whose path is a pattern."""

    def __init__(
        self,
        kind: str,
        where: Sequence[str],
        accepted: tuple[type[nn.Module], ...],
        named: tuple[type[nn.Module], ...] = (),
    ) -> None:
        self.kind, self.where, self.accepted, self.named = kind, where, accepted, named
        self.what = f"{kind} replaces {' and '.join(a.__name__ for a in accepted)}"

    def paths(self, model: nn.Module) -> list[str]:
        """The paths found, outermost first; a module with several paths has its first."""
        found: list[str] = []
        known: list[str] = []
        other: dict[str, str] = {}  # pattern -> a module of another type that it matches
        used: set[str] = set()
        seen: set[int] = set()
        for path, module in plain_modules(model):
            stands_for = plain_type(module)
            hits = matching(path, self.where)
            if issubclass(stands_for, Experts) and issubclass(stands_for, self.accepted):
                hits += self._of_stacked(path, stands_for.stacked)
            if not issubclass(stands_for, self.accepted + (self.named if path in self.where else ())):
                self._refuse_raw(path, module, known)
                other |= dict.fromkeys(hits, f"{path or 'the model'}, of type {stands_for.__name__}")
            elif id(module) not in seen:
                seen.add(id(module))
                known.append(path)
                used.update(hits)
                if hits and not any(path.startswith(f"{outer}.") for outer in found):
                    found.append(path)
        for pattern in self.where:
            if pattern not in used and pattern in other:
                raise UsageError(f"{self.what}, and {pattern!r} matches {other[pattern]}")
            if pattern not in used:
                raise UsageError(f"{self.kind}: {pattern!r} matches no module{nearest_path(pattern, known)}")
        return found

    def _of_stacked(self, path: str, names: tuple[str, ...]) -> list[str]:
        """The patterns that match all matrices of experts, which are replaced together."""
        each = [matching(f"{path}.{name}", self.where) for name in names]
        if any(each) and not all(each):
            part = next(name for name, hits in zip(names, each, strict=True) if hits)
            raise UsageError(
                f"{self.kind} replaces experts with all of their matrices, and the patterns match {path}.{part} and "
                f"not the others; match {path} or {path}.*"
            )
        return [pattern for hits in each for pattern in hits]

    def _refuse_raw(self, path: str, module: nn.Module, known: list[str]) -> None:
        for name in raw_matrices(module):
            if matching(path, self.where) or matching(f"{path}.{name}", self.where):
                beside = "*.attention.*" if any(".attention." in p for p in known) else next(iter(known), "*.blocks.*")
                raise UsageError(
                    f"{self.what}, and {path}.{name} is a matrix inside of a {type(module).__name__}; narrow the "
                    f"patterns of {self.kind} to other modules, such as {beside!r}"
                )


def matching(path: str, where: Sequence[str]) -> list[str]:
    """The patterns of `where` that match a path."""
    return [pattern for pattern in where if fnmatchcase(path, pattern)]


def plain_type(module: nn.Module) -> type[nn.Module]:
    """The type of a module, or of the one that it replaces."""
    return module.plain if isinstance(module, Rewritten) else type(module)


def linear_paths(model: nn.Module) -> list[str]:
    """The paths of all linear layers, replaced ones too."""
    return [path for path, module in plain_modules(model) if issubclass(plain_type(module), nn.Linear)]


def patterns(model: nn.Module, paths: Iterable[str]) -> tuple[str, ...]:
    """Patterns that match these modules and no other linear layer: `*.attention.q` where it means the same."""
    wanted = set(paths)
    every = linear_paths(model)
    found: list[str] = []
    left = dict.fromkeys(paths)
    while left:
        path = next(iter(left))
        names = path.split(".")
        for i in range(len(names) - 1, 0, -1):
            end = "." + ".".join(names[i:])
            hit = [p for p in every if p.endswith(end)]
            if set(hit) <= wanted:
                found.append(f"*{end}")
                break
        else:
            hit = [path]
            found.append(path)
        for p in hit:
            left.pop(p, None)
    return tuple(found)


def nearest_path(pattern: str, paths: Sequence[str]) -> str:
    """`; the nearest path is 'x'`, whose end is most like the pattern; the first path if none is."""
    tail = pattern.lstrip("*.")
    ends = {".".join(path.split(".")[-1 - tail.count(".") :]): path for path in reversed(paths)}
    like = nearest(tail, ends) or list(paths[:1])
    return f"; the nearest path is {ends.get(like[0], like[0])!r}" if like else ""


def plain_names(model: nn.Module) -> dict[str, str]:
    """Parameter names: as they are -> in the plain model. What a rewrite added has no plain name."""
    names: dict[str, str] = {}
    for path, module in plain_modules(model):
        prefix = f"{path}." if path else ""
        if not isinstance(module, Rewritten):
            names |= {prefix + name: prefix + name for name, _ in module.named_parameters(recurse=False)}
            continue
        for name, _ in module.named_parameters():
            own = name
            while own.startswith("base."):
                own = own.removeprefix("base.")
            if own in module.shapes:
                names[prefix + name] = prefix + own
    return names


def matching_names(model: nn.Module, kind: str, where: Sequence[str]) -> list[str]:
    """The parameters, by their names in the plain model, that match a pattern of `where`. Raises UsageError for a
    pattern that matches none."""
    names = list(plain_names(model).values())
    for pattern in where:
        if not any(matching(name, (pattern,)) for name in names):
            raise UsageError(f"{kind}: {pattern!r} matches no parameter{nearest_path(pattern, names)}")
    return [name for name in names if matching(name, where)]


def matching_parameters(model: nn.Module, where: Sequence[str]) -> list[nn.Parameter]:
    """The parameters whose name in the plain model matches a pattern of `where`."""
    own = dict(model.named_parameters())
    return [own[name] for name, plain in plain_names(model).items() if name in own and matching(plain, where)]


class PlainTensors(Mapping[str, Tensor]):
    """The tensors of a model by the names of the plain model. Those of replaced modules are merged when they are asked
    for, one module at a time. `slices`: each slice of a stacked parameter (experts) has a name of its own.

    `shapes` is known without merging anything. Tensors of a model with a `stream` are read from its file."""

    def __init__(self, model: nn.Module, slices: bool = False) -> None:
        self.shapes: dict[str, torch.Size] = {}
        self._where: dict[str, tuple[nn.Module, str, int | None]] = {}
        self._last: tuple[nn.Module, nn.Module] | None = None  # a replaced module and what it was merged into
        self._stream: Callable[[str], Tensor] | None = getattr(model, "stream", None)
        seen: set[int] = set()
        for path, module in plain_modules(model):
            if id(module) in seen:
                continue
            seen.add(id(module))
            own = module.shapes if isinstance(module, Rewritten) else _own_shapes(module, seen)
            stacked = getattr(module.plain if isinstance(module, Rewritten) else module, "stacked", ())
            for name, shape in own.items():
                full = f"{path}.{name}" if path else name
                if not (slices and name in stacked):
                    self.shapes[full], self._where[full] = shape, (module, name, None)
                    continue
                for i in range(shape[0]):
                    self.shapes[f"{full}.{i}"], self._where[f"{full}.{i}"] = shape[1:], (module, name, i)

    def __getitem__(self, name: str) -> Tensor:
        module, own, i = self._where[name]
        if self._stream is not None:
            return self._stream(name)
        if isinstance(module, Rewritten):
            if self._last is None or self._last[0] is not module:
                self._last = module, module.merge()
            module = self._last[1]
        tensor = module.get_parameter(own).detach()
        return tensor if i is None else tensor[i]

    def dtype(self, name: str) -> torch.dtype | None:
        """The type of a tensor; None for one that is made by merging."""
        module, own, _ = self._where[name]
        while isinstance(module, Wrapped):
            module = module.base
        return None if isinstance(module, Rewritten) else module.get_parameter(own).dtype

    def blocks(self, name: str) -> Blocks | None:
        """A tensor that is kept in a file's quantised blocks, as it was there; None for any other."""
        module, own, i = self._where[name]
        return module.blocks(own) if isinstance(module, Rewritten) and i is None else None

    def __contains__(self, name: object) -> bool:
        return name in self.shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def _own_shapes(module: nn.Module, seen: set[int]) -> dict[str, torch.Size]:
    """Shapes of a module's own parameters that are not in `seen`, to which they are added."""
    own = {name: p for name, p in module.named_parameters(recurse=False) if id(p) not in seen}
    seen.update(map(id, own.values()))
    return {name: p.shape for name, p in own.items()}
