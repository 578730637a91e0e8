"""What a model can do with a call, and rows of ids as tensors."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from stemma.errors import UsageError, did_you_mean
from stemma.nn.model import Model
from stemma.nn.parts import Memory, Open


def check_model(model: object) -> None:
    """Raises UsageError for what is no model: most often the path of one."""
    if not isinstance(model, Model):
        hint = f"; stemma.load({str(model)!r}) makes one of a checkpoint" if isinstance(model, str | Path) else ""
        raise UsageError(f"a model is wanted, not {model!r:.80}{hint}")


def generates(model: Model) -> bool:
    """Whether a model can continue a text."""
    writes = model.decoder is not None or model.arch.streams is not None or isinstance(model.arch.mask, Open)
    return writes and model.lm is not None


def answers(model: Model) -> bool:
    """Whether a model writes a text of its own, which does not go on from the prompt."""
    return model.arch.structure == "encoder-decoder" or isinstance(model.arch.mask, Open)


def extends(model: Model) -> bool:
    """Whether a model reads several tokens of a text at once as it reads them one by one (`Session.extend`)."""
    if model.arch.streams is not None or isinstance(model.arch.mask, Open | Memory):
        return False
    return model.decoder is not None and not model.decoder.position.length_dependent


@dataclass
class _Users:
    """The threads that compute with a model now, and the modules that go back to training mode when none does."""

    threads: list[int] = field(default_factory=list)
    training: list[nn.Module] = field(default_factory=list)


_USERS: WeakKeyDictionary[Model, _Users] = WeakKeyDictionary()
_CHANGED = threading.Lock()


@contextlib.contextmanager
def evaluating(model: Model, modules: Sequence[nn.Module] | None = None) -> Iterator[None]:
    """The model in eval mode; when the last of all threads that are in such a block has left it, each module is in the
    mode that it was in. `modules`: those of the model, where the caller has them: to find them takes as long as a step
    of a small model."""
    with _CHANGED:
        users = _USERS.setdefault(model, _Users())
        users.threads.append(threading.get_ident())
        for module in model.modules() if modules is None else modules:
            if module.training:
                module.training = False
                users.training.append(module)
    try:
        yield
    finally:
        with _CHANGED:
            users.threads.remove(threading.get_ident())
            while users.training and not users.threads:
                users.training.pop().training = True


@contextlib.contextmanager
def sole_user(model: Model) -> Iterator[bool]:
    """Whether no other thread computes with the model (see `evaluating`); none begins before the block ends."""
    with _CHANGED:
        yield {*_USERS.setdefault(model, _Users()).threads} <= {threading.get_ident()}


def language_of(model: Model, language: str | int | None) -> int | None:
    """The number of a language by its name or number. Raises UsageError for one that the model does not have."""
    if language is None:
        return None
    known = model.text.languages if model.text is not None else ()
    if not model.dims.languages:
        raise UsageError(f"language={language!r} was given, and this model has no languages")
    number = known.index(language) if language in known else language
    if isinstance(number, str) and number.isdigit():
        number = int(number)
    if not isinstance(number, int) or not 0 <= number < model.dims.languages:
        names = ", ".join(known) or f"the numbers 0 to {model.dims.languages - 1}"
        raise UsageError(f"language={language!r} is none of this model's: {names}{did_you_mean(str(language), known)}")
    return number


def language_ids(ids: Tensor, languages: Tensor | int | None) -> Tensor | None:
    """The language of every token (B T): one for all, or one a row (B)."""
    if languages is None:
        return None
    return torch.full_like(ids, languages) if isinstance(languages, int) else languages[:, None].expand_as(ids)


def pad(texts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows side by side, padded on the right: ids and which of them are real (B T)."""
    longest = max(max(len(t) for t in texts), 1)
    ids = torch.zeros(len(texts), longest, dtype=torch.int64)
    real = torch.zeros(len(texts), longest, dtype=torch.bool)
    for i, text in enumerate(texts):
        ids[i, : len(text)] = torch.tensor(list(text), dtype=torch.int64)
        real[i, : len(text)] = True
    return ids.to(device), real.to(device)
