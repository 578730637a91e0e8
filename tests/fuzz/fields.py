"""Where the fields of binary formats lie: (offset, length) of every number and text that a reader goes by."""

from __future__ import annotations

import struct

SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
Places = list[tuple[int, int]]


def gguf(raw: bytes) -> Places:
    """The fields before the data of a GGUF file, as far as they can be followed; of an array its first values."""
    found: Places = [(0, 4), (4, 4), (8, 8), (16, 8)]
    at = 24

    def take(size: int, form: str = "") -> int:
        nonlocal at
        found.append((at, size))
        at += size
        return int(struct.unpack_from(form, raw, at - size)[0]) if form else 0

    def text() -> None:
        take(take(8, "<Q"))

    def value(kind: int) -> None:
        nonlocal at
        if kind == 8:
            text()
        elif kind == 9:
            inner, length = take(4, "<I"), take(8, "<Q")
            for number in range(length):
                before = len(found)
                value(inner)
                if number > 20:
                    del found[before:]
        else:
            take(SIZES[kind])

    tensors, keys = struct.unpack_from("<QQ", raw, 8)
    try:
        for _ in range(keys):
            text()
            value(take(4, "<I"))
        for _ in range(tensors):
            text()
            for _ in range(take(4, "<I")):
                take(8)
            take(4)
            take(8)
    except (struct.error, KeyError, MemoryError, OverflowError):
        pass
    return found


def protobuf(raw: bytes, begin: int = 0, end: int | None = None, depth: int = 0) -> Places:
    """Keys, lengths and values of a protocol buffer, three messages deep; of many equal fields the first."""
    found: Places = []
    at, end = begin, len(raw) if end is None else end

    def varint() -> int:
        nonlocal at
        start = at
        while at < end and raw[at] & 128:
            at += 1
        at += 1
        found.append((start, at - start))
        return sum((byte & 127) << (7 * i) for i, byte in enumerate(raw[start:at]))

    while at < end and len(found) < 3000:
        key = varint()
        match key & 7:
            case 0:
                varint()
            case 2:
                size = varint()
                found.append((at, size))
                if depth < 2 and at + size <= end and size > 2:
                    found += protobuf(raw, at, at + size, depth + 1)
                at += size
            case 1 | 5:
                size = 8 if key & 7 == 1 else 4
                found.append((at, size))
                at += size
            case _:
                break
    return found
