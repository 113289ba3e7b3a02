"""The rows of a source, JSON lines or CSV, as the NDJSON of a batch. What is in them is for the service to judge."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from agent_relay.client.errors import Wrong
from agent_relay.client.input_source import Source

CHUNK_BYTES = 64 << 10
COMMA = ","
DELIMITERS = {"comma": COMMA, "semicolon": ";", "tab": "\t", "pipe": "|", "\\t": "\t"}
"""What Excel and its kin write, by the names that a command line can say."""

_NAMES = {delimiter: f"{name}s" for name, delimiter in DELIMITERS.items() if name.isalpha()}
_POINTER = re.compile(r"/items/([0-9]{1,9})(.*)")
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?[\r\n]*', re.IGNORECASE)
"""The line that tells Excel the delimiter."""
_MARK = b"\xef\xbb\xbf"
_SPACE = b" \t\r\n"
_SAMPLE = 20
"""Records that a delimiter is guessed from."""

Item = tuple[int, bytes]
"""Where in the source it stands, and what is sent."""


@dataclass(frozen=True, slots=True)
class Measure:
    """What all items come to."""

    count: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a source, parsed each time anew."""

    source: Source
    noun: str
    """What a place is a number of."""
    read: Callable[[], Iterable[Item]]
    delimiter: str = COMMA
    """Of CSV."""

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
            raise Wrong(f"{self.source.name} holds no rows.")
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
        """Make what says where in the source it is that a pointer into the batch points to."""
        places = [place for place, _ in self.read()]

        def where(pointer: str) -> str:
            match = _POINTER.fullmatch(pointer)
            if match is None or int(match[1]) >= len(places):
                return pointer
            return f"{self.source.path.name}, {self.noun} {places[int(match[1])]}{match[2] and ', '}{match[2]}"

        return where


def json_lines(source: Source) -> Rows:
    """Read `{custom_id, query, metadata}`, a line each; the number of a line is the `custom_id` of one without.

    Raises:
        Wrong: it is one JSON array.
    """
    if source.first_character() == "[":
        raise Wrong(f"{source.name} is a JSON array. Write an object a line: jq -c '.[]' does it.")
    return Rows(source, "line", lambda: _json_lines(source))


def _json_lines(source: Source) -> Iterator[Item]:
    for number, line in enumerate(_lines(source), 1):
        item = line.strip(_SPACE)
        if item:
            yield number, _with_id(item, number) + b"\n"


def _lines(source: Source) -> Iterator[bytes]:
    """Read lines in UTF-8. What is nearly that is left to the service, which says what is wrong where."""
    if source.encoding not in {"utf-8", "utf-8-sig"}:
        for line in source.lines():
            yield line.encode()
        return
    with source.bytes() as file:
        for number, line in enumerate(file):
            whole = (line.removeprefix(_MARK) if number == 0 else line).rstrip(b"\r\n")
            yield from whole.split(b"\r") if b"\r" in whole else (whole,)


def _with_id(item: bytes, number: int) -> bytes:
    """Give an object without a `custom_id` one; all else stays as it was written."""
    try:
        value: Any = json.loads(item)
    except (ValueError, RecursionError):
        return item
    if not isinstance(value, dict) or "custom_id" in value:
        return item
    return b'{"custom_id":"%d"%s%s' % (number, b"," if value else b"", item[1:].lstrip(_SPACE))


def csv_rows(source: Source, column: str | None, id_column: str | None, delimiter: str | None) -> Rows:
    """Read queries from a column; ids from another, or else the number of the row below the header.

    All other columns are the metadata of the query. Without a delimiter, the likeliest is taken.

    Raises:
        Wrong: there is no such column.
    """
    wanted = [name for name in (column, id_column) if name is not None]
    if delimiter is None:
        delimiter = _likeliest_delimiter(source, wanted)
    names = next(_records(source, delimiter), list[str]())
    for name in wanted:
        if names.count(name) != 1:
            many = "more than one" if name in names else "no"
            raise Wrong(f"{source.name} has {many} column {name!r}. Its columns: {', '.join(names)}.")
    if column is None:
        raise Wrong(f"Say with --column which column holds the queries. Columns of {source.name}: {', '.join(names)}.")
    at, id_at = names.index(column), None if id_column is None else names.index(id_column)
    return Rows(source, "row", lambda: _csv_items(source, delimiter, names, at, id_at), delimiter)


def said_delimiter(said: str) -> str:
    """Read a delimiter as a command line says it.

    Raises:
        Wrong: it is none.
    """
    delimiter = DELIMITERS.get(said.lower(), said)
    if len(delimiter) != 1 or delimiter in '"\r\n\0':
        raise Wrong("--delimiter must be one character, or comma, semicolon, tab or pipe.")
    return delimiter


def name_of_delimiter(delimiter: str) -> str:
    """Name a delimiter in words."""
    return _NAMES.get(delimiter, repr(delimiter))


def _keys(names: Sequence[str]) -> dict[int, str]:
    """Name columns so that no two have the same name, and each has one."""
    keys: dict[int, str] = {}
    for index, name in enumerate(names):
        key, number = name or f"column {index + 1}", 2
        while key in keys.values():
            key, number = f"{name or 'column'} ({number})", number + 1
        keys[index] = key
    return keys


def _csv_items(
    source: Source, delimiter: str, names: Sequence[str], query_at: int, id_at: int | None
) -> Iterator[Item]:
    width = len(names)
    keys = {index: key for index, key in _keys(names).items() if index not in {query_at, id_at}}
    for number, row in enumerate(islice(_records(source, delimiter), 1, None), 1):
        if len(row) < width or any(row[width:]):
            raise Wrong(
                f"{source.name}, row {number}: {len(row)} values for {width} columns, separated by"
                f" {name_of_delimiter(delimiter)}."
            )
        item: dict[str, Any] = {"custom_id": str(number) if id_at is None else row[id_at], "query": row[query_at]}
        metadata = {key: row[index] for index, key in keys.items() if row[index] or names[index]}
        if metadata:
            item["metadata"] = metadata
        yield number, json.dumps(item, ensure_ascii=False).encode() + b"\n"


def _records(source: Source, delimiter: str) -> Iterator[list[str]]:
    """Read the header and all records that hold anything."""
    csv.field_size_limit(sys.maxsize)
    lines = source.lines()
    count = 0
    try:
        for record in csv.reader(_without_separator_line(lines), delimiter=delimiter, strict=True):
            if any(record):
                yield record
                count += 1
    except csv.Error as malformed:
        hint = " A quote is opened there and never closed." if "unexpected end" in str(malformed) else ""
        raise Wrong(
            f"{source.name} is not CSV separated by {name_of_delimiter(delimiter)}: row {count}, {malformed}.{hint}"
        ) from None
    finally:
        lines.close()


def _without_separator_line(lines: Iterable[str]) -> Iterator[str]:
    for number, line in enumerate(lines):
        if number or not _SEPARATOR_LINE.fullmatch(line):
            yield line


def _likeliest_delimiter(source: Source, wanted: Sequence[str]) -> str:
    """Guess: as a line says that is there for it; else what makes the wanted columns, and records of equal width."""
    lines: Generator[str] = source.lines()
    sample = list(islice(lines, 10 * _SAMPLE))
    lines.close()
    if sample and (said := _SEPARATOR_LINE.fullmatch(sample[0])):
        return said[1]

    def likelihood(delimiter: str) -> tuple[bool, bool, int, int]:
        try:
            header, *records = islice(filter(any, csv.reader(sample, delimiter=delimiter)), _SAMPLE)
        except (csv.Error, ValueError):
            return False, False, 0, 0
        alike = sum(len(record) == len(header) for record in records)
        return all(header.count(name) == 1 for name in wanted), len(header) > 1, alike, len(header)

    csv.field_size_limit(sys.maxsize)
    return max((COMMA, ";", "\t", "|"), key=likelihood)
