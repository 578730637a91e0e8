"""What commands print: control characters are shown, and standard streams may be closed, full or broken."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from stemma.disk import abandon
from stemma.errors import printable

if TYPE_CHECKING:
    from rich.console import Console


def open_streams() -> None:
    """Point closed standard streams at /dev/null, so that no other file gets their numbers; and let a character that
    the terminal cannot show become `?`."""
    while (handle := os.open(os.devnull, os.O_RDWR)) < 3:
        pass
    os.close(handle)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def flush() -> None:
    """Write what is left of the output. Raises OSError, once."""
    try:
        sys.stdout.flush()
    except OSError:
        abandon("stdout")
        raise


def echo(text: object = "", *, nl: bool = True, err: bool = False) -> None:
    """Print a text, with control characters shown. Raises BrokenPipeError where the reader is gone, and OSError where
    the output cannot be written; what stderr does not take is dropped."""
    try:
        click.echo(printable(text), nl=nl, err=err)
    except OSError as error:
        abandon("stderr" if err else "stdout")
        if err:
            return
        if isinstance(error, BrokenPipeError):
            raise BrokenPipeError from None  # without a number, of which click would make exit code 1
        raise


def console(stderr: bool = False) -> Console:
    """A console that prints text as it is, without markup, with control characters shown."""
    from rich.console import Console
    from rich.segment import Segment

    class Plain(Console):
        def on_broken_pipe(self) -> None:  # rich would exit with 1; `main` exits with 141
            raise BrokenPipeError

        def render(self, *args: Any, **kwargs: Any) -> Iterable[Segment]:
            for segment in super().render(*args, **kwargs):
                yield segment if segment.control else Segment(printable(segment.text), segment.style)

    return Plain(stderr=stderr, highlight=False, emoji=False, markup=False)
