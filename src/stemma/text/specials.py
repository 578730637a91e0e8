"""The special tokens of a tokenizer, by role."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

ROLES = ("bos", "eos", "pad", "unk", "mask", "cls", "sep")


def sentinel(k: int) -> str:
    """The name of T5's `k`-th span marker."""
    return f"<extra_id_{k}>"


@dataclass(frozen=True)
class Specials:
    """Names of the special tokens by role (None: the tokenizer has none), `more` that have none of these roles, and how
    many sentinels it has.

    Two roles may share a token (RoBERTa's `<s>` is bos and cls). `more` tokens have no role (those for blanks).
    `extra` sentinels `<extra_id_0>` ... take the last
    ids, counted down from the top as in T5: `<extra_id_k>` is the vocabulary's size - 1 - k.
    """

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
        """The tokens that are set, without repeats, in the order of the roles given, and those without a role after
        them; sentinels are left out."""
        roles = [name for role in order if (name := getattr(self, role)) is not None]
        return list(dict.fromkeys([*roles, *self.more]))

    def sentinels(self) -> list[str]:
        """The sentinels by rising id: the highest number first."""
        return [sentinel(k) for k in reversed(range(self.extra))]
