"""Rows of JSON and CSV files: (line, row) for each, in order."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from stemma.data import compression
from stemma.data.compression import BinaryError, lines
from stemma.errors import DataError

Rows = Iterator[tuple[int, Any]]
Bad = Callable[[DataError, str], None]  # called with what is wrong, and where

LONGEST = 1 << 30  # characters of a CSV field


def json_lines(path: Path, encoding: str = "", bad: Bad | None = None) -> Rows:
    """One JSON value a line. A line that holds none goes to `bad`, or raises DataError."""
    for number, line in enumerate(lines(path, encoding), 1):
        if line.isspace():
            continue
        try:
            value = _value(line, f"{path}:{number}")
        except DataError as error:
            if bad is None:
                raise
            bad(error, f"{path}:{number}")
        else:
            yield number, value


def _value(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where} is not JSON: {error.msg} at column {error.colno}; correct the line or delete it"
        ) from error
    except (ValueError, RecursionError):  # a number of thousands of digits, thousands of brackets
        raise DataError(
            f"{where} cannot be read as JSON: a number is too long, or brackets too deep; delete the line"
        ) from None


def json_file(path: Path, encoding: str = "") -> Rows:
    """The rows of a `.json` file: JSON lines, the elements of an array, or the objects of one object, whose names are
    their `id` (PubMedQA)."""
    for line in lines(path, encoding):
        if line.isspace():
            continue
        if line.lstrip().startswith("["):
            return _array(path, encoding)
        try:
            json.loads(line)
        except ValueError:
            if line.strip() == "{":
                for _ in _named(path, encoding):  # a file of something else is no file of rows from the first
                    pass
                return _named(path, encoding)
        break
    return json_lines(path, encoding)


_SPACE = re.compile(r"\s*")


class _Scan:
    """A place in a file that more lines are read from as they are needed."""

    def __init__(self, path: Path, encoding: str) -> None:
        self.path, self.walk = path, lines(path, encoding)
        self.text, self.at = "", 0

    def more(self) -> bool:
        """Read on, as much again as is held. False at the end of the file."""
        held, need = [self.text[self.at :]], len(self.text) - self.at
        for line in self.walk:
            held.append(line)
            need -= len(line)
            if need <= 0:
                break
        self.text, self.at = "".join(held), 0
        return len(held) > 1

    def peek(self) -> str:
        """The next character that is not white space, "" at the end of the file."""
        while True:
            found = _SPACE.match(self.text, self.at)
            self.at = found.end() if found else self.at
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def value(self, number: int) -> Any:
        """The JSON value here. Raises DataError if there is none."""
        while True:
            try:
                value, self.at = _DECODER.raw_decode(self.text, self.at)
                return value
            except RecursionError:
                raise DataError(f"{self.path}: element {number} has brackets too deep; delete it") from None
            except ValueError as error:
                if not self.more():
                    raise DataError(f"{self.path}: element {number} is not JSON: {error}") from None


_DECODER = json.JSONDecoder()


def _listed(path: Path, encoding: str, end: str, one: Callable[[_Scan, int], Any]) -> Rows:
    """(number, what `one` reads) of each element up to the bracket `end`. Raises DataError for what is damaged or cut
    off."""
    scan, number = _Scan(path, encoding), 0
    scan.peek()
    scan.at += 1  # the bracket
    while (mark := scan.peek()) != end:
        if number:
            if mark != ",":
                raise DataError(f"{path}: a comma or {end} is missing after element {number}")
            scan.at += 1
            scan.peek()
        number += 1
        yield number, one(scan, number)
    scan.at += 1
    if scan.peek():
        what = "array" if end == "]" else "object"
        raise DataError(f"{path} goes on after the end of its {what} of {number} elements")


def _array(path: Path, encoding: str) -> Rows:
    """(number, element) of a JSON array, decoded one by one. Raises DataError as `_listed` does."""
    return _listed(path, encoding, "]", _Scan.value)


def _named(path: Path, encoding: str) -> Rows:
    """(number, object) of a JSON object of objects, decoded one by one, with their names as `id`. Raises DataError as
    `_listed` does, and for one that holds something else."""

    def one(scan: _Scan, number: int) -> Any:
        name = scan.value(number)
        if scan.peek() != ":":
            raise DataError(f"{path}: element {number} is not JSON: a name and a colon were expected")
        scan.at += 1
        scan.peek()
        value = scan.value(number)
        if not isinstance(value, dict):
            raise DataError(f"{path} holds one JSON object over several lines; expected were one a line, or an array")
        return {"id": name, **value}

    return _listed(path, encoding, "}", one)


def table(delimiter: str) -> Callable[[Path, str], Rows]:
    """A reader of CSV: (number, {name: value}), with the names in the first row."""

    def read(path: Path, encoding: str = "") -> Rows:
        csv.field_size_limit(LONGEST)
        found = csv.reader(lines(path, encoding), delimiter=delimiter)
        try:
            names = next((row for row in found if row), [])
            for number, row in enumerate((row for row in found if row), 1):
                if len(row) > len(names):
                    raise DataError(
                        f"{path} row {number} has {len(row)} fields, and its first row names {len(names)}; put fields "
                        f"that hold a {delimiter!r} in quotes"
                    )
                yield number, dict(zip(names, row, strict=False))
        except csv.Error as error:
            raise DataError(f"{path} is not CSV: {error} in line {found.line_num}") from error

    return read


READERS: dict[str, Callable[[Path, str], Rows]] = {"json": json_file, "csv": table(","), "tsv": table("\t")}


def has(path: Path, column: str, encoding: str = "") -> bool:
    """Whether the first row of a file of `READERS` has text in `column` ("*": in any)."""
    try:
        _, row = next(READERS[compression.kind(path)](path, encoding), (0, None))
    except BinaryError:
        raise
    except DataError:
        return False
    return isinstance(row, dict) and (column == "*" or isinstance(row.get(column), str))
