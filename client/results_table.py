"""Results as CSV, for spreadsheets: a row for each row that was asked about, in its order."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from agent_relay.client.input_rows import Rows
from agent_relay.client.results_file import read_line

_FORMULA = re.compile(r"[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
"""What a cell begins with that a spreadsheet takes for a formula."""
_NUMBER = re.compile(r"[+-]?[0-9]+([.,][0-9]+)*")
_FIRST, _LAST = ("custom_id", "query"), ("status", "error", "run_id")


def write_table(path: Path, rows: Rows, results: Path) -> None:
    """Write the table, whole or not at all, out of the rows and the JSON lines of their results.

    Its columns are the item's `custom_id`, `query` and metadata, the run's `status`, the fields of all outputs (or
    `output`, where outputs are text), `error` and `run_id`. It is separated as the rows are, if they are CSV, and
    begins with a byte order mark if they do or are not UTF-8.
    """
    cells = _Cells(rows, results)
    encoding = "utf-8-sig" if rows.source.is_marked or rows.source.encoding not in {"utf-8", "utf-8-sig"} else "utf-8"
    new = path.with_name(f"{path.name}.new")
    with new.open("w", encoding=encoding, errors="backslashreplace", newline="") as file:
        writer = csv.writer(file, delimiter=rows.delimiter)
        writer.writerow(map(harmless, cells.names))
        writer.writerows(map(harmless, record) for record in cells.records())
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def harmless(text: str) -> str:
    """Put an apostrophe before what a spreadsheet would run as a formula; numbers stay as they are."""
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


class _Cells:
    """The columns that all results together have, and the cells of each row."""

    def __init__(self, rows: Rows, results: Path) -> None:
        self._rows = rows
        self._results = results
        self._places: dict[str, int] = {}
        """Where the result of a custom_id begins in the file."""
        metadata, fields = dict[str, None](), dict[str, None]()
        with results.open("rb") as file:
            place = 0
            for line in file:
                if (result := read_line(line)) is not None:
                    self._places[str(result["custom_id"])] = place
                    fields |= dict.fromkeys(_fields(result.get("output")))
                place += len(line)
        for item in _items(rows):
            metadata |= dict.fromkeys(_object(item.get("metadata")))
        self._metadata, self._fields = list(metadata), list(fields)
        taken = {*_FIRST, *_LAST}
        self.names = [
            *_FIRST,
            *_apart(self._metadata, "metadata", taken),
            _LAST[0],
            *_apart(self._fields, "output", taken),
            *_LAST[1:],
        ]

    def records(self) -> Iterator[list[str]]:
        """Read the cells of all rows."""
        with self._results.open("rb") as file:
            for item in _items(self._rows):
                place = self._places.get(str(item.get("custom_id")))
                if place is None:
                    continue
                file.seek(place)
                result = read_line(file.readline()) or {}
                metadata, fields = _object(item.get("metadata")), _fields(result.get("output"))
                error = _object(result.get("error"))
                yield [
                    _cell(item.get("custom_id")),
                    _cell(item.get("query")),
                    *(_cell(metadata.get(name)) for name in self._metadata),
                    _cell(result.get("status")),
                    *(_cell(fields.get(name)) for name in self._fields),
                    ": ".join(str(error[name]) for name in ("code", "message") if error.get(name)),
                    _cell(result.get("run_id")),
                ]


def _items(rows: Rows) -> Iterator[dict[str, Any]]:
    return (_object(json.loads(line)) for _, line in rows.read())


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}  # pyright: ignore[reportUnknownVariableType]


def _fields(output: Any) -> Mapping[str, Any]:
    """Split an output into cells: the fields of an object; anything else is one."""
    if output is None:
        return {}
    return _object(output) or {"output": output}


def _apart(names: Iterable[str], of: str, taken: set[str]) -> Iterator[str]:
    """Name columns after what they are of, where their own names are taken."""
    for name in names:
        shown = name
        while shown in taken:
            shown = f"{of}.{shown}"
        taken.add(shown)
        yield shown


def _cell(value: Any) -> str:
    """Write a value as a cell: text as it is, everything else as JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
