"""Edits drawn for a file, by what the file is: its values, keys, lengths, numbers, lines and bytes."""

from __future__ import annotations

import contextlib
import json
import pickletools
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzz import payloads
from fuzz.edits import PACKED, Edit
from fuzz.fields import gguf, protobuf

ESCAPE = "\x1b]0;owned\x07\x1b[2J\x9b31m"
NUMBERS = [
    "-1", "0", "1", "2", "3", "7", "0.5", "-0.0", "1e-320", "1e308", "-1e308", "1e999", "NaN", "Infinity", "-Infinity",
    "127", "255", "256", "65536", "2147483647", "2147483648", "4294967296", "9223372036854775807", "18446744073709551616",
    "1000000000", "300000", "1" + "0" * 30, "1" + "0" * 310, [["9", 5000]], "1.0", "true",
]  # fmt: skip
TEXTS = [
    '""', '"x"', '" "', '"\\u0000"', '"\\ud800"', json.dumps(ESCAPE), '"../../etc/passwd"', '"/dev/zero"', '"."',
    '"None"', '"../run/model"', '"builtin:none"', '"a/b"', '"-1"', '"1e400"', '"cuda:99"', '"<s>"', '"[MASK]"',
    ['"', ["y", 100_000], '"'], ['"', ["é😀", 3_000], '"'], '"(a|aa)+$x|(?=(a+)+b)c"', '"(((("', '"{{ x"', '"{% for %}"',
    '"\\\\1"', '"torch.float32"', '"gelu"', '"linear"', '"*"',
]  # fmt: skip
SHAPES = [
    "null", "true", "false", "[]", "{}", "[1]", '["x"]', '{"x": 1}', "[[]]", "[null]", '{"": {}}', '{"kind": "x"}',
    '[["a", 1]]', '{"type": "Sequence"}', [["[", 500], ["]", 500]], [["[", 90], ["]", 90]], [['{"x":', 200], "1", ["}", 200]],
    ["[", ["0,", 100_000], "0]"], ['{"content": "', ["z", 5000], '"}'], '{"content": 3, "special": "x"}',
]  # fmt: skip
WORDS = [  # what is put into plain text
    "", " ", "\x00", ESCAPE, "\r", "\ufeff", "\u2028", "-1", "9" * 400, "1e999", [["[", 2000]], [["a", 200_000]], "\t\t\t", "##",
    "Ġ", "▁", "<unk>", "[UNK]", "{{", "{% raw %}", "&a [*a]", "<<: *x", "!!python/name:os.system", "!!binary x", "\x85",
    "\udcff", "a: b: c", "? x", "'", '"', "%YAML 9.9", [["- ", 300]], [["  ", 500]], "\n\n\n", [["\n", 5000]], "," , [[",", 3000]],
]  # fmt: skip
INTS = [0, 1, 2, 3, 7, 8, 31, 64, 127, 128, 255, 256, 1000, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1]  # fmt: skip
FLOATS = [0.0, -0.0, 1e-45, 1e38, -1e38, float("inf"), float("-inf"), float("nan")]
Draw = random.Random


def edit_for(name: str, content: bytes, others: list[str], draw: Draw) -> Edit:
    """An edit for a file. `others`: the files of its folder."""
    if draw.random() < 0.08:
        return _whole(others, draw)
    kinds = _kinds(name, content)
    for _ in range(4):
        with contextlib.suppress(Exception):  # the file is not what its name says
            return draw.choice(kinds)(content, draw)
    return _bytes(content, draw)


def _whole(others: list[str], draw: Draw) -> Edit:
    how = draw.choice(
        ["gone", "folder", "pipe", "loop", "copy", "copy", "payload", "payload", "payload", "write", "zeros"]
    )
    match how:
        case "copy":
            return ["copy", draw.choice(others)]
        case "payload":
            return ["payload", draw.choice(sorted(payloads.KINDS))]
        case "write":
            return ["write", draw.choice([*SHAPES, *NUMBERS, *TEXTS, *WORDS])]
        case "zeros":
            return ["write", [["\x00", draw.choice([1, 8, 100, 100_000])]]]
    return [how]


def _kinds(name: str, content: bytes) -> list[Callable[[bytes, Draw], Edit]]:
    """The ways in which edits are drawn for a file, likelier ones more than once."""
    ending = Path(name).suffix
    if ending in PACKED:
        return [
            lambda c, d: ["packed", ending, *edit_for(name.removesuffix(ending), PACKED[ending][0](c), [name], d)],
            _bytes,
        ]
    if content[:2] == b"PK":
        return [_zipped, _zipped, _zipped, _bytes]
    if ending == ".safetensors":
        return [_head, _head, _head, _bytes]
    if content[:4] == b"GGUF":
        return [lambda c, d: _field(c, gguf(c), d)] * 4 + [_bytes, _lines]
    if ending == ".model":
        return [lambda c, d: _field(c, protobuf(c), d)] * 4 + [_bytes]
    if ending == ".metadata":
        return [_opcode, _opcode, _words, _bytes]
    if ending == ".jsonl":
        return [_json_line, _json_line, _json_line, _lines, _bytes]
    if content[:1] in (b"{", b"["):
        return [_json] * 8 + [_lines, _bytes]
    if b"\x00" in content[:4096]:
        return [_words, _words, _bytes]
    return [_lines, _lines, _lines, _bytes]


# ---------------------------------------------------------------- bytes


def number(size: int, draw: Draw, floats: bool = True) -> bytes:
    """A number of so many bytes that few files hold."""
    if floats and size in (4, 8) and draw.random() < 0.2:
        return struct.pack("<f" if size == 4 else "<d", draw.choice(FLOATS))
    return (draw.choice(INTS) % 256**size).to_bytes(size, draw.choice(["little", "little", "little", "big"]))


def _hex(value: bytes) -> dict[str, str]:
    return {"hex": value.hex()}


def _bytes(content: bytes, draw: Draw) -> Edit:
    size = max(1, len(content))
    at = draw.choice([draw.randrange(size), min(size - 1, draw.randrange(64)), max(0, size - 1 - draw.randrange(64))])
    match draw.randrange(6):
        case 0:
            return ["cut", draw.choice([at, 0, 1, size - 1, size // 2])]
        case 1:
            return ["repeat", at, draw.choice([1, 8, 100, size]), draw.choice([0, 2, 3, 50])]
        case 2:
            return ["put", at, 0, _hex(bytes(draw.randrange(256) for _ in range(draw.choice([1, 4, 100]))))]
        case 3:
            return ["put", size, 0, draw.choice([_hex(b"\x00" * 7), "x", _hex(bytes(range(256)))])]
    length = draw.choice([1, 1, 1, 2, 4, 8])
    return ["put", at, length, _hex(bytes(draw.randrange(256) for _ in range(length)))]


def _words(content: bytes, draw: Draw) -> Edit:
    """A number at an aligned place, near the beginning or the end more often than between."""
    size = draw.choice([4, 4, 8])
    count = max(1, len(content) // size)
    at = draw.choice(
        [draw.randrange(count), draw.randrange(min(count, 64)), count - 1 - draw.randrange(min(count, 200))]
    )
    return ["put", at * size + len(content) % size * (draw.random() < 0.3), size, _hex(number(size, draw))]


def _field(content: bytes, places: list[tuple[int, int]], draw: Draw) -> Edit:
    """Another number, or other bytes, in a field of the format."""
    at, size = draw.choice(places)
    if size in (1, 2, 4, 8) and draw.random() < 0.85:
        return ["put", at, size, _hex(number(size, draw))]
    return ["put", at, size, draw.choice([*WORDS, _hex(b"\xff" * 10), _hex(b"\x80" * 12), _hex(bytes(size))])]


def _opcode(content: bytes, draw: Draw) -> Edit:
    """A change of a pickle, operation by operation."""
    found = [(at or 0, code, value) for code, value, at in pickletools.genops(content)]
    at, code, _ = draw.choice(found)
    if code.arg is not None and draw.random() < 0.6:
        return ["put", at + 1, draw.choice([1, 2, 4]), _hex(number(draw.choice([1, 2, 4]), draw))]
    return ["put", at, 1, _hex(draw.choice(pickletools.opcodes).code.encode("latin-1"))]


# ---------------------------------------------------------------- text and JSON


def _lines(content: bytes, draw: Draw) -> Edit:
    lines = content.split(b"\n")
    index = draw.choice([draw.randrange(len(lines)), draw.randrange(min(len(lines), 5))])
    at, length = sum(len(line) + 1 for line in lines[:index]), len(lines[index])
    match draw.randrange(5):
        case 0:
            return ["repeat", at, length + 1, draw.choice([0, 2, 20])]
        case 1:
            other = draw.choice(lines)
            return ["put", at, length, _hex(other[:2000])]
        case 2:
            within = at + draw.randrange(length + 1)
            return ["put", within, 0, draw.choice(WORDS)]
    return ["put", at, length, draw.choice(WORDS)]


def _json_line(content: bytes, draw: Draw) -> Edit:
    lines = content.split(b"\n")
    index = draw.choice([draw.randrange(len(lines)), min(1, len(lines) - 1)])
    return ["line", index, *_json(lines[index], draw)]


def _json(content: bytes, draw: Draw) -> Edit:
    value = json.loads(content)
    path: list[Any] = []
    while isinstance(value, dict | list) and value and (not path or draw.random() < 0.75):
        key = draw.choice(sorted(value)) if isinstance(value, dict) else draw.randrange(len(value))
        path.append(key)
        value = value[key]
    how = draw.choice(["set"] * 10 + ["delete", "double", "rename", "wrap", "repeat", "grow"])
    match how:
        case "wrap":
            return ["json", path, how, draw.choice(["list", "object"])]
        case "delete":
            return ["json", path, how]
        case "repeat":
            if not isinstance(value, list | str):
                raise ValueError("no list")
            return ["json", path, how, draw.choice([0, 2, 1000])]
        case "grow":
            if not isinstance(value, dict) or not value:
                raise ValueError("no object")
            return ["json", path, how, draw.choice([1, 1000, 100_000])]
        case "rename":
            return ["json", path, how, draw.choice(TEXTS)]
    return ["json", path, how, _value(value, json.loads(content), draw)]


def _value(old: Any, whole: Any, draw: Draw) -> Any:
    """Raw text in place of a value: of its own kind, of another, or a value from elsewhere in the file."""
    if isinstance(old, int | float) and not isinstance(old, bool):
        near = [json.dumps(x) for x in (old + 1, old - 1, -old, old * 2, old / 3, str(old))]
        return draw.choice([*NUMBERS, *near, *near, *SHAPES, *TEXTS[:6]])
    if draw.random() < 0.15:
        found = _values(whole)
        return json.dumps(draw.choice(found))[:100_000]
    return draw.choice([*TEXTS, *SHAPES, *NUMBERS] if isinstance(old, str) else [*SHAPES, *SHAPES, *NUMBERS, *TEXTS])


def _values(value: Any) -> list[Any]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [value, *(found for item in list(inner)[:50] for found in _values(item))]


def _head(content: bytes, draw: Draw) -> Edit:
    """A change of the header of a safetensors file, or of its length."""
    size = int.from_bytes(content[:8], "little")
    if draw.random() < 0.15:
        return ["put", 0, 8, _hex(number(8, draw, floats=False))]
    head = content[8 : 8 + size]
    return ["head", *(draw.choice([_json, _json, _json, _lines, _bytes])(head, draw))]


def _zipped(content: bytes, draw: Draw) -> Edit:
    """A change inside of a file of torch."""
    import io

    with zipfile.ZipFile(io.BytesIO(content)) as file:
        names = file.namelist()
        name = next(n for n in names if n.endswith("data.pkl")) if draw.random() < 0.7 else draw.choice(names)
        held = file.read(name)
    entry = name.partition("/")[2] or name
    if name.endswith("data.pkl"):
        return ["zip", entry, *draw.choice([_opcode, _opcode, _bytes])(held, draw)]
    return ["zip", entry, *_bytes(held, draw)]
