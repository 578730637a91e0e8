"""The special tokens of a tokenizer, by role."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

ROLES = ("bos", "eos", "pad", "unk", "mask", "cls", "sep")


def sentinel(k: int) -> str:
    """The name of T5's `k`-th span marker."""
    return f"<extra_id_{k}>"


def spaced_sentinel(k: int) -> str:
    """Its name in mT5's vocabulary, which holds the space before it."""
    return f"▁<extra_id_{k}>"


@dataclass(frozen=True)
class Specials:
    """Special tokens by role (None: there is none). Two roles may share a token (RoBERTa's `<s>` is bos and cls).
    `more`: tokens without a role (GLM's masks). `extra`: the number of sentinels; as in T5, `<extra_id_k>` has the id
    vocab_size - 1 - k."""

    bos: str | None = None
    eos: str | None = None
    pad: str | None = None
    unk: str | None = None
    mask: str | None = None
    cls: str | None = None
    sep: str | None = None
    extra: int = 0
    more: tuple[str, ...] = ()

    def names(self, order: Iterable[str] = ROLES) -> list[str]:
        """The tokens without repeats: by role in the order given, then those without a role. No sentinels."""
        roles = [name for role in order if (name := getattr(self, role)) is not None]
        return list(dict.fromkeys([*roles, *self.more]))

    def sentinels(self) -> list[str]:
        """The sentinels by ascending id, so the highest number first."""
        return [sentinel(k) for k in reversed(range(self.extra))]
