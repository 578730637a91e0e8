"""The structures of the C headers as `ctypes` structures, read from the headers themselves."""

from __future__ import annotations

import ctypes
import functools
import re
import threading
from pathlib import Path
from typing import Any

HEADERS = ("product.h", "tape.h")
SIMPLE: dict[str, Any] = {"int64_t": ctypes.c_int64, "float": ctypes.c_float}
COMMENT = re.compile(r"/\*.*?\*/", re.S)
STRUCTURE = re.compile(r"typedef struct \{([^}]*)\} (\w+);")
_READING = threading.Lock()
ENUM = re.compile(r"enum \w+ \{([^}]*)\};")


@functools.cache
def headers() -> str:
    """The text of the headers, without comments."""
    folder = Path(__file__).parent
    return "\n".join(COMMENT.sub("", (folder / name).read_text("utf-8")) for name in HEADERS)


@functools.cache
def constants() -> dict[str, int]:
    """The numbers of the headers' enumerations."""
    found: dict[str, int] = {}
    for body in ENUM.findall(headers()):
        number = -1
        for entry in (e.strip() for e in body.split(",")):
            if entry:
                name, _, given = (part.strip() for part in entry.partition("="))
                number = int(given) if given else number + 1
                found[name] = number
    return found


def structures() -> dict[str, Any]:
    """Every structure of numbers and pointers, by name; those that hold functions are left out. Threads that ask first
    at the same time get the same ones: a structure fits into no other's field of its name."""
    with _READING:
        return _structures()


@functools.cache
def _structures() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for body, name in STRUCTURE.findall(headers()):
        if "(" not in body:
            found[name] = type(name, (ctypes.Structure,), {"_fields_": list(_fields(body, found))})
    return found


def _fields(body: str, known: dict[str, Any]) -> Any:
    for line in filter(None, (part.strip() for part in body.split(";"))):
        words = line.removeprefix("const ")
        kind, _, names = words.partition(" ")
        for name in (n.strip() for n in names.split(",")):
            if name.startswith("*"):
                yield name[1:], ctypes.c_void_p
            else:
                yield name, SIMPLE.get(kind) or known[kind]
