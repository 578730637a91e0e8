"""Rewrites carried out: modules replaced by path, and made plain again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import nn

from stemma.errors import UsageError
from stemma.nn.model import Model
from stemma.rewrites.kinds import Rewrite
from stemma.rewrites.modules import Rewritten
from stemma.rewrites.paths import Search, matching_names, plain_modules


def apply(model: Model, rewrites: Sequence[Rewrite], seed: int = 0) -> list[list[str]]:
    """Replace modules as `rewrites` say, in their order, and keep them as `model.rewrites`. A model on the meta device
    gets its weights later (`load_tensor`, then `complete`); weights that are there are kept. Returns the paths that
    each rewrite matched.

    Raises UsageError, before anything is replaced, for a pattern that matches nothing (with the nearest path) or a
    matrix that cannot be replaced."""
    for rewrite in rewrites:
        rewrite.check_model(model)
    found = [matched(model, rewrite) for rewrite in rewrites]
    _check_nesting(model, rewrites, found)
    before: list[tuple[nn.Module, str, nn.Module]] = []
    try:
        for number, (rewrite, paths) in enumerate(zip(rewrites, found, strict=True), len(model.rewrites)):
            made = {
                path: _replace(model, path, rewrite, f"{number} {path}", seed, before)
                for path in paths
                if rewrite.accepts()
            }
            rewrite.connect(model, made)
    except Exception:
        for parent, name, old in reversed(before):
            parent._modules[name] = old
        raise
    model.rewrites = (*model.rewrites, *rewrites)
    freeze(model)
    return found


def _check_nesting(model: Model, rewrites: Sequence[Rewrite], found: list[list[str]]) -> None:
    """Raises UsageError where a module is to be replaced inside of another one that is."""
    replaced = {path: "an earlier rewrite" for path, m in plain_modules(model) if isinstance(m, Rewritten)}
    for rewrite, paths in zip(rewrites, found, strict=True):
        replaced |= {path: type(rewrite).__name__ for path in paths if rewrite.accepts()}
    for path, kind in replaced.items():
        above = path
        while above := above.rpartition(".")[0]:
            if above in replaced:
                raise UsageError(f"{kind} replaces {path}, which is inside of {above} that {replaced[above]} replaces")


def _replace(
    model: Model, path: str, rewrite: Rewrite, key: str, seed: int, before: list[tuple[nn.Module, str, nn.Module]]
) -> Rewritten:
    """Replace one module. What it was is noted in `before`: its parent, its name, and the module."""
    old = model.get_submodule(path)
    new = rewrite.replace(old)
    assert isinstance(new, Rewritten), f"{type(rewrite).__name__}.replace should give a Rewritten"
    new.key = key
    new.train(old.training)
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is old and parent is not new:
                before.append((parent, name, old))
                parent._modules[name] = new
    held = next((t for t in (*old.parameters(), *old.buffers()) if not t.is_meta), None)
    if held is None and (new.shapes or model.device.type == "meta"):
        return new
    if all(module is not old for module in new.modules()):
        plain = old.merge() if isinstance(old, Rewritten) else old
        for name, p in plain.named_parameters():
            new.load(name, p.detach(), p.device, p.dtype)
    new.reset(model, _generator(seed, key), model.device if held is None else held.device, model.dtype)
    return new


def complete(model: Model, device: torch.device, dtype: torch.dtype, seed: int = 0) -> list[str]:
    """Initialise the parameters that no checkpoint holds, after its weights are loaded. Returns their names."""
    new = [name for name, p in model.named_parameters() if p.is_meta]
    if device.type != "meta":
        reset(model, device, dtype, seed)
    return new


def reset(model: Model, device: torch.device, dtype: torch.dtype, seed: int) -> None:
    """Initialise the parameters that replaced modules add, as a function of `seed` alone."""
    for module in model.modules():
        if isinstance(module, Rewritten):
            module.reset(model, _generator(seed, module.key), device, dtype)
    freeze(model)


def _generator(seed: int, key: str) -> torch.Generator:
    """Random numbers that depend on the seed, the rewrite's place and the path alone."""
    digest = hashlib.blake2b(f"{seed} {key}".encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def freeze(model: Model) -> None:
    """Where a rewrite freezes the model, let only what rewrites name learn."""
    if not any(rewrite.freezes for rewrite in model.rewrites):
        return
    learns = {id(p) for module in model.modules() if isinstance(module, Rewritten) for p in module.trainable()}
    learns |= {id(p) for rewrite in model.rewrites for p in rewrite.trainable(model)}
    for p in model.parameters():
        p.requires_grad_(id(p) in learns)


def matched(model: Model, rewrite: Rewrite) -> list[str]:
    """The paths of the modules that a rewrite replaces, or the names of the parameters that it is about. Raises
    UsageError as `apply` does."""
    kind, accepted = type(rewrite).__name__, rewrite.accepts()
    if not accepted:
        return matching_names(model, kind, rewrite.where)
    return Search(kind, rewrite.where, accepted, rewrite.named()).paths(model)


def pairs(model: Model, other: Model) -> list[tuple[Rewritten, Rewritten]]:
    """The replaced modules of two models with the same rewrites, in pairs."""
    both = zip(plain_modules(model), plain_modules(other), strict=True)
    return [(a, b) for (_, a), (_, b) in both if isinstance(a, Rewritten) and isinstance(b, Rewritten)]


def graft(model: Model, held: Model) -> None:
    """Move the weights of `held`, and its replaced modules, into `model`, a plain one of the same shapes on the meta
    device. Nothing is copied."""
    for path, module in plain_modules(held):
        if isinstance(module, Rewritten):
            parent, _, name = path.rpartition(".")
            model.get_submodule(parent)._modules[name] = module
    model.load_state_dict(held.state_dict(), assign=True)
    model.rewrites = held.rewrites


# ---------------------------------------------------------------- back to plain modules


def unmergeable(model: Model) -> str | None:
    """Why a model cannot be written as plain weights; None if it can."""
    for path, module in plain_modules(model):
        if isinstance(module, Rewritten) and (why := module.unmergeable()) is not None:
            return f"{path} cannot be merged: {why}"
    return None


def merge(model: Model) -> Model:
    """Fold every replaced module into a plain one that computes the same, in place. Returns the model. Raises
    UsageError, before anything is changed, where one cannot be."""
    if (why := unmergeable(model)) is not None:
        raise UsageError(why)
    return _plain(model, merged=True)


def undo(model: Model) -> Model:
    """Take all rewrites back, in place: adapters are dropped; of weights that were stored in fewer bits, what is left
    of them is kept. Returns the model."""
    return _plain(model, merged=False)


def _plain(model: Model, merged: bool) -> Model:
    for module in [m for m in model.modules() if not isinstance(m, Rewritten)]:
        for name, child in list(module._modules.items()):
            if isinstance(child, Rewritten):
                new: nn.Module = child
                while isinstance(new, Rewritten):
                    new = new.merge() if merged else new.undo()
                module._modules[name] = new.train(child.training)
    model.rewrites = ()
    return model.requires_grad_(True)
