"""Files opened by what compressed them, and named by what they are where they are not text."""

from __future__ import annotations

import bz2
import codecs
import contextlib
import gzip
import itertools
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from stemma.errors import DataError, require

ENDINGS = (".gz", ".bgz", ".bz2", ".xz", ".lzma", ".zst")
LONGEST = 100_000_000  # bytes of a line: a longer one takes many times its size in memory
SNIFF = 512  # bytes at the front of a file by which its kind is known

# (first bytes, what they are, the ending under which such a file is read)
_MAGIC = (
    (b"\x1f\x8b", "compressed by gzip", ".gz"),
    (b"BZh", "compressed by bzip2", ".bz2"),
    (b"\xfd7zXZ\x00", "compressed by xz", ".xz"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", ".zst"),
    (b"PAR1", "a Parquet file", ".parquet"),
    (b"ARROW1", "an Arrow file", ".arrow"),
    (b"PK\x03\x04", "a ZIP archive (.zip, .docx, .xlsx, .epub)", ""),
    (b"\x04\x22\x4d\x18", "compressed by lz4", ""),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", ""),
    (b"Rar!", "a RAR archive", ""),
    (b"%PDF-", "a PDF", ""),
    (b"SQLite format 3", "an SQLite database", ""),
)


class BinaryError(DataError):
    """A file that is not text."""


class EncodingError(BinaryError):
    """A file that is text of another encoding than UTF-8, as far as can be told."""


def ending(path: Path) -> str:
    """The ending that names the compression of a file, in lower case; "" for none."""
    low = path.suffix.lower()
    return low if low in ENDINGS else ""


def kind(path: Path) -> str:
    """The ending below that of the compression, in lower case and without its dot: `jsonl` of `A.JSONL.gz`."""
    return path.name.lower().removesuffix(ending(path)).rpartition(".")[2]


# byte order marks; that of UTF-16 begins that of UTF-32
_MARKS = (
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
    (b"\xef\xbb\xbf", "utf-8"),
)
DATA = "'stemma-lm[data]'"  # what pip installs to read them


def check_packages(paths: Iterable[Path]) -> None:
    """Raise ResourceError if a file is of a kind that pyarrow reads, and it is not installed."""
    for path in paths:
        if ending(path) == ".zst" or kind(path) in ("parquet", "arrow"):
            require("pyarrow", f"reading {path}", DATA)
            return


def _opener(path: Path) -> Callable[[], Any]:
    match ending(path):
        case ".gz" | ".bgz":
            return lambda: gzip.open(path, "rb")
        case ".bz2":
            return lambda: bz2.open(path, "rb")
        case ".xz" | ".lzma":
            return lambda: lzma.open(path, "rb")
        case ".zst":
            return lambda: _Zstd(path)
    return lambda: open(path, "rb")


class _Zstd:
    """A file compressed by zstd, as an iterator of lines."""

    def __init__(self, path: Path) -> None:
        require("pyarrow", f"reading {path}", DATA)
        import pyarrow

        self.stream = pyarrow.input_stream(str(path), compression="zstd")

    def __enter__(self) -> _Zstd:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()

    def read(self, size: int) -> bytes:
        return bytes(self.stream.read(size))

    def __iter__(self) -> Iterator[bytes]:
        rest = b""
        while block := self.read(1 << 20):
            rows = (rest + block).split(b"\n")
            rest = rows.pop()
            for row in rows:
                yield row + b"\n"
            if len(rest) > LONGEST:  # `lines` refuses it
                break
        if rest:
            yield rest


def _open(path: Path) -> BinaryIO:
    try:
        return cast(BinaryIO, _opener(path)())
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def lines(path: Path, encoding: str = "") -> Iterator[str]:
    """The lines of a text file, each with its `\\n`: in the encoding that its byte order mark says, else in `encoding`
    (default UTF-8). Raises DataError with the offset of a byte that is not text."""
    with _open(path) as file:
        try:
            mark = file.read(4)
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise _damaged(path, error) from error
    marked = next((name for begin, name in _MARKS if mark.startswith(begin)), "")
    if (known := marked or encoding) and codecs.lookup(known).name not in ("utf-8", "utf-8-sig"):
        return _decoded(path, known)
    return _utf8(path)


def _utf8(path: Path) -> Iterator[str]:
    at, head = 0, b""
    with _open(path) as file:
        rows = iter(file) if isinstance(file, _Zstd) else iter(lambda: file.readline(LONGEST + 1), b"")
        for number in itertools.count(1):
            try:
                raw = next(rows)
            except StopIteration:
                return
            except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
                raise _damaged(path, error) from error
            if len(raw) > LONGEST:
                raise DataError(f"{path}:{number} is a line of more than {LONGEST:,} bytes; divide it into several")
            if at == 0:
                head = raw[:SNIFF]
                if raw.startswith(b"\xef\xbb\xbf"):
                    at, raw = 3, raw[3:]
            if (null := raw.find(b"\x00")) >= 0:
                raise (
                    _binary(path, head)
                    or _wide(path, head)
                    or BinaryError(f"{path} is not text: it has a zero byte at offset {at + null}")
                )
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                byte = raw[error.start]
                where = f"byte 0x{byte:02x} at offset {at + error.start}"
                if (known := _binary(path, head)) is None and sum(
                    c < 32 and c not in b"\t\n\f\r\x1b" for c in raw[:SNIFF]
                ):
                    known = BinaryError(f"{path} is not text: {where}, and control characters")
                raise known or EncodingError(
                    f"{path} is not UTF-8 text: {where}; name its encoding, as in {path.name}#encoding=latin-1, or "
                    "convert it to UTF-8"
                ) from error
            at += len(raw)
            yield line[:-2] + "\n" if line.endswith("\r\n") else line


def _decoded(path: Path, encoding: str) -> Iterator[str]:
    """The lines of a file in another encoding than UTF-8."""
    decoder = codecs.getincrementaldecoder(encoding)()
    rest, at, over = "", 0, False
    with _open(path) as file:
        while not over:
            try:
                block = file.read(1 << 16)
            except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
                raise _damaged(path, error) from error
            over = not block
            try:
                text = rest + decoder.decode(block, over)
            except UnicodeDecodeError as error:
                raise EncodingError(
                    f"{path} is not {encoding} text: {error.reason} in the {len(block):,} bytes at offset {at:,}"
                ) from error
            at += len(block)
            *whole, rest = text.split("\n")
            for line in [*(line + "\n" for line in whole), *([rest] if over and rest else [])]:
                if "\x00" in line:
                    raise BinaryError(f"{path} is not {encoding} text: it has a zero character")
                yield line[:-2] + "\n" if line.endswith("\r\n") else line
            if len(rest) > LONGEST:
                raise DataError(f"{path} has a line of more than {LONGEST:,} characters; divide it into several")


def _wide(path: Path, head: bytes) -> BinaryError | None:
    """The error for UTF-16 without a byte order mark: every second byte of Latin text is zero."""
    for name, zeros, others in (("utf-16-le", head[1::2], head[::2]), ("utf-16-be", head[::2], head[1::2])):
        if len(head) >= 4 and zeros.count(0) > 0.7 * len(zeros) and not others.count(0):
            return EncodingError(
                f"{path} is not UTF-8 text but {name.upper()}, by its zero bytes; name its encoding, as in "
                f"{path.name}#encoding={name}"
            )
    return None


def _named(head: bytes) -> tuple[str, str]:
    """(what a file is by its first bytes, the ending under which it is read); "" for unknown."""
    for magic, name, end in _MAGIC:
        if head.startswith(magic):
            return name, end
    return ("a tar archive", "") if head[257:262] == b"ustar" else ("", "")


def _binary(path: Path, head: bytes) -> BinaryError | None:
    """The error for a file that is not text, if its first bytes tell what it is."""
    name, end = _named(head)
    if not name:
        return None
    hint = f"give it the ending {end}" if end else "extract its text first"
    return BinaryError(f"{path} is not text but {name}, by its first bytes; {hint}")


def _damaged(path: Path, error: Exception) -> DataError:
    """The error for a file that does not unpack: of another kind than its ending says, or cut off."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        name, end = _named(head := file.read(SNIFF))
        own = {".bgz": ".gz"}.get(ending(path), ending(path))
        if head and own != end and own != ".lzma":
            what = name or "not compressed"
            return DataError(f"cannot read {path}: its name ends in {path.suffix}, and by its first bytes it is {what}")
    return DataError(f"cannot read {path}: {error}")
