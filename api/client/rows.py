"""The rows of a file, JSON lines or CSV, as the NDJSON of a batch. What is in them is for the service to judge."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from api.client.errors import Wrong

CHUNK_BYTES = 64 << 10

_POINTER = re.compile(r"/items/(\d+)(.*)")
_BOM = b"\xef\xbb\xbf"
_SPACE = b" \t\r\n"

Item = tuple[int, bytes]
"""Where in the file it stands, and what is sent."""


@dataclass(frozen=True, slots=True)
class Measure:
    """What all items come to."""

    count: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a file, read from the disk each time anew."""

    path: Path
    noun: str
    """What a place is a number of."""
    read: Callable[[], Iterable[Item]]

    def measure(self) -> Measure:
        """Read all of them once.

        Raises:
            Wrong: there are none, or it cannot be told what they are.
        """
        digest, count = hashlib.sha256(), 0
        for _, line in self.read():
            digest.update(line)
            count += 1
        if not count:
            raise Wrong(f"{self.path} holds no rows.")
        return Measure(count, digest.hexdigest())

    def chunks(self, sent: Callable[[int], None]) -> Iterator[bytes]:
        """Read them for sending, many at a time, and say of how many that is."""
        some, count = bytearray(), 0
        for _, line in self.read():
            some += line
            count += 1
            if len(some) >= CHUNK_BYTES:
                yield bytes(some)
                sent(count)
                some.clear()
        yield bytes(some)
        sent(count)

    def locator(self) -> Callable[[str], str]:
        """Make what says where in the file it is that a pointer into the batch points to."""
        places = [place for place, _ in self.read()]

        def where(pointer: str) -> str:
            match = _POINTER.fullmatch(pointer)
            if match is None or int(match[1]) >= len(places):
                return pointer
            return f"{self.path.name}, {self.noun} {places[int(match[1])]}{match[2] and ', '}{match[2]}"

        return where


def json_lines(path: Path) -> Rows:
    """Read `{custom_id, query, metadata}`, a line each; the number of a line is the `custom_id` of one without."""
    return Rows(path, "line", lambda: _json_lines(path))


def _json_lines(path: Path) -> Iterator[Item]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            item = (line.removeprefix(_BOM) if number == 1 else line).strip(_SPACE)
            if item:
                yield number, _with_id(item, number) + b"\n"


def _with_id(item: bytes, number: int) -> bytes:
    """Give an object without a `custom_id` one; all else stays as it was written."""
    try:
        value: Any = json.loads(item)
    except (ValueError, RecursionError):
        return item
    if not isinstance(value, dict) or "custom_id" in value:
        return item
    return b'{"custom_id":"%d"%s%s' % (number, b"," if value else b"", item[1:].lstrip(_SPACE))


def csv_rows(path: Path, column: str | None, id_column: str | None) -> Rows:
    """Read queries from a column; ids from another, or else the number of the row below the header.

    Raises:
        Wrong: there is no such column.
    """
    names = next(_records(path), list[str]())
    for name in (column, id_column):
        if name is not None and names.count(name) != 1:
            many = "more than one" if name in names else "no"
            raise Wrong(f"{path} has {many} column {name!r}. Its columns: {', '.join(names)}.")
    if column is None:
        raise Wrong(f"Say with --column which column holds the queries. Columns of {path}: {', '.join(names)}.")
    at, id_at = names.index(column), None if id_column is None else names.index(id_column)
    return Rows(path, "row", lambda: _csv_items(path, len(names), at, id_at))


def _csv_items(path: Path, width: int, at: int, id_at: int | None) -> Iterator[Item]:
    for number, row in enumerate(islice(_records(path), 1, None), 1):
        if len(row) != width:
            raise Wrong(f"{path}, row {number}: {len(row)} values for {width} columns.")
        item = {"custom_id": str(number) if id_at is None else row[id_at], "query": row[at]}
        yield number, json.dumps(item, ensure_ascii=False).encode() + b"\n"


def _records(path: Path) -> Iterator[list[str]]:
    csv.field_size_limit(sys.maxsize)
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            yield from filter(None, csv.reader(file, strict=True))
        except (csv.Error, UnicodeDecodeError) as malformed:
            raise Wrong(f"{path} is not CSV in UTF-8: {malformed}.") from None
