"""The file of results: append-only; a last line that was cut off by a crash is removed."""

from __future__ import annotations

import fcntl
import json
import os
from collections import Counter
from io import FileIO
from pathlib import Path
from typing import Any, Self

from agent_relay.client.errors import Wrong

STATUSES = {"succeeded", "failed", "cancelled"}


class ResultsFile:
    """Results, a line each as the service wrote it; nobody else writes meanwhile."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tally: Counter[str] = Counter()
        """How many ended how."""
        self.cursor: str | None = None
        """Of the last one."""
        self._file: FileIO | None = None

    def __enter__(self) -> Self:
        """Open it, and keep others away.

        Raises:
            Wrong: somebody else writes it, or it is no file.
        """
        if self.path.exists() and not self.path.is_file():
            raise Wrong(f"{self.path} is not a file. Results need one: it is what an interrupted submit goes on from.")
        self._file = self.path.open("a+b", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise Wrong(f"Another submit writes {self.path}.") from None
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def begin(self) -> None:
        """Begin a new one.

        Raises:
            Wrong: there is something in it.
        """
        assert self._file is not None  # noqa: S101
        if os.fstat(self._file.fileno()).st_size:
            raise Wrong(f"{self.path} is there already, and not from a submit. Choose another --output, or remove it.")

    def go_on(self) -> None:
        """Read what is there. The first line that is not whole is cut off, with all that follows: it comes again."""
        assert self._file is not None  # noqa: S101
        self._file.seek(0)
        end = 0
        for line in self._file:
            result = read_line(line)
            if result is None:
                break
            self._count(result)
            end += len(line)
        self._file.truncate(end)

    @property
    def count(self) -> int:
        """How many there are."""
        return self.tally.total()

    def add(self, line: bytes, result: dict[str, Any]) -> None:
        """Append a result."""
        assert self._file is not None  # noqa: S101
        rest = memoryview(line + b"\n")
        while rest:  # A disk that is full takes a part of it, then refuses.
            rest = rest[self._file.write(rest) :]
        self._count(result)

    def finish(self) -> None:
        """Have it on the disk."""
        assert self._file is not None  # noqa: S101
        os.fsync(self._file.fileno())

    def remove(self) -> None:
        """Leave no empty file behind."""
        if not self.count:
            self.path.unlink(missing_ok=True)

    def _count(self, result: dict[str, Any]) -> None:
        self.tally[result["status"]] += 1
        self.cursor = str(result["cursor"])


def read_line(line: bytes) -> dict[str, Any] | None:
    """Read a line that is a whole result."""
    if not line.endswith(b"\n"):
        return None
    try:
        value: Any = json.loads(line)
    except ValueError:
        return None
    return value if is_result(value) else None


def is_result(value: Any) -> bool:
    """Tell a result from whatever else a line may be."""
    return isinstance(value, dict) and "cursor" in value and value.get("status") in STATUSES
