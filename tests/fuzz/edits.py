"""What is done to a file, as plain data: a case is a line of JSON that can be kept, read and run again.

An edit is `[how, *arguments]`. Text in an edit is a string, or a list of strings and `[piece, times]` pairs: what is a
megabyte long in a file is a few characters in a case. `{"hex": "..."}` are bytes.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzz import payloads

Edit = list[Any]
RAW = "\x02raw\x02"  # stands for raw text while JSON is written
PACKED: dict[str, tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]] = {
    ".gz": (gzip.decompress, lambda raw: gzip.compress(raw, 1, mtime=0)),
    ".bz2": (bz2.decompress, bz2.compress),
    ".xz": (lzma.decompress, lzma.compress),
}


def text(spec: Any) -> str:
    """The text that a spec stands for."""
    if isinstance(spec, str):
        return spec
    return "".join(part if isinstance(part, str) else part[0] * part[1] for part in spec)


def raw(spec: Any) -> bytes:
    """The bytes that a spec stands for."""
    return bytes.fromhex(spec["hex"]) if isinstance(spec, dict) else text(spec).encode("utf-8", "surrogatepass")


def apply(folder: Path, name: str, edit: Edit, mark: Path, home: Path) -> None:
    """Do an edit to a file of a folder. `mark`: the folder that a payload makes; `home`: where other subjects are."""
    path, how = _found(folder, name), edit[0]
    match how:
        case "gone":
            _clear(path)
        case "folder":
            _clear(path)
            path.mkdir(parents=True)
        case "pipe":
            _clear(path)
            os.mkfifo(path)
        case "loop":
            _clear(path)
            path.symlink_to(path.name)
        case "copy":
            other = _found(folder, edit[1])
            if other.is_file() and other != path:
                _write(path, other.read_bytes())
        case "other":
            if (home / edit[1]).is_file():
                _write(path, (home / edit[1]).read_bytes())
        case "payload":
            _write(path, payloads.KINDS[edit[1]](mark))
        case _:
            content = path.read_bytes() if path.is_file() else b""
            try:
                _write(path, changed(content, edit))
            except Exception:  # an earlier edit left nothing that this one fits
                return


def _found(folder: Path, name: str) -> Path:
    """A file of a folder. `*` in its name stands for a part that differs from folder to folder."""
    return next(iter(sorted(folder.glob(name))), folder / name) if "*" in name else folder / name


def _clear(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _write(path: Path, content: bytes) -> None:
    _clear(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def changed(content: bytes, edit: Edit) -> bytes:
    """The content of a file after an edit. Raises ValueError and its like for one that does not fit."""
    how, *rest = edit
    match how:
        case "put":
            at, length, new = rest
            return content[:at] + raw(new) + content[at + length :]
        case "cut":
            return content[: rest[0]]
        case "repeat":
            at, length, times = rest
            return content[:at] + content[at : at + length] * times + content[at + length :]
        case "write":
            return raw(rest[0])
        case "json":
            return in_json(content.decode("utf-8"), *rest).encode("utf-8", "surrogatepass")
        case "line":
            number, *inner = rest
            lines = content.split(b"\n")
            lines[number] = changed(lines[number], inner)
            return b"\n".join(lines)
        case "head":  # the JSON header of safetensors
            size = int.from_bytes(content[:8], "little")
            head = changed(content[8 : 8 + size], rest)
            return len(head).to_bytes(8, "little") + head + content[8 + size :]
        case "zip":
            return _in_zip(content, rest[0], rest[1:])
        case "packed":
            unpack, pack = PACKED[rest[0]]
            return pack(changed(unpack(content), rest[1:]))
    raise ValueError(f"no edit is called {how!r}")


def _in_zip(content: bytes, entry: str, edit: Edit) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            held = old.read(name)
            new.writestr(name, changed(held, edit) if name.endswith(entry) else held)
    return out.getvalue()


# ---------------------------------------------------------------- JSON


def in_json(content: str, path: list[Any], how: str, *rest: Any) -> str:
    """A JSON text with the value at a path set (to raw text), deleted, doubled, renamed, wrapped or repeated. Raises
    ValueError and its like for a path that is not there."""
    root: Any = {"": json.loads(content)}
    holder, key = root, ""
    for step in path:
        holder, key = holder[key], step
    held = holder[key]
    if isinstance(holder, list) and how in ("rename", "double"):
        raise ValueError("an element has no name")
    shown, mark = "", json.dumps(RAW)
    match how:
        case "set":
            holder[key], shown = RAW, text(rest[0])
        case "delete":
            del holder[key]
        case "double":  # the key twice, the second time with another value
            holder[RAW], mark = RAW, f"{mark}: {mark}"
            shown = f"{json.dumps(str(key))}: {text(rest[0])}"
        case "rename":
            del holder[key]
            holder[RAW], shown = held, text(rest[0])
        case "wrap":
            holder[key] = [held] if rest[0] == "list" else {"x": held}
        case "repeat":
            holder[key] = held * rest[0]
        case "grow":  # so many more entries like the last one
            name, item = list(held.items())[-1]
            holder[key] = held | {f"{name}{i}": item for i in range(rest[0])}
    if not root:
        return ""
    lines = json.dumps(root, indent=2 if content.lstrip().startswith(("{\n", "[\n")) else None)
    whole = lines.partition('"": ')[2].rstrip().removesuffix("}").rstrip() if path or how != "rename" else ""
    return whole.replace(mark, shown)
