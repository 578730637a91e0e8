"""Sentences for what the tokenizers library ends in on texts and files that it cannot take."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from stemma.errors import CheckpointError, DataError


@contextlib.contextmanager
def readable_text(*texts: str) -> Iterator[None]:
    """Name the character that is no text, where the library only says that there is one."""
    try:
        with no_panic():
            yield
    except TypeError as error:
        for text in texts:
            if isinstance(text, str) and (bad := next((c for c in text if "\ud800" <= c <= "\udfff"), None)):
                raise DataError(f"the text has a character that is not text (U+{ord(bad):04X})") from error
        raise


@contextlib.contextmanager
def no_panic() -> Iterator[None]:
    """Raise CheckpointError where the library panics, as for a pattern that backtracks without end."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        why = " ".join(str(error).split())
        raise CheckpointError(f"the tokenizer cannot read this text: {why}; its files are damaged or unusual") from None
