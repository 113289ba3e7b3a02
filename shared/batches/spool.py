"""The items of a batch on their way into the database: on disk, a line an item, as `COPY` reads them."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from os import SEEK_END
from tempfile import TemporaryFile
from typing import IO, Any, Self

from pydantic_core import to_json

from agent_relay.shared.attachments import Attachments
from agent_relay.shared.files import PIECE_BYTES, Pieces

SPOOLED_BYTES = 256 << 10
"""The size up to which items stay in memory; a small batch is never on the disk."""
BLOCK_BYTES = 64 << 10
PIECE = 64 << 10
"""So many characters are written as `COPY` wants them without a pause."""


class DiskRoom:
    """The room in `TMPDIR` that the batches of a process may take together."""

    def __init__(self, most: int) -> None:
        """Allow this number of bytes."""
        self.left = most

    def take(self, size: int) -> None:
        """Take room for this number of bytes.

        Raises:
            OSError: there is none left.
        """
        if size > self.left:
            raise OSError(errno.ENOSPC, "The room for batches that arrive is taken")
        self.left -= size


class Spool:
    """The items that were checked so far. A context: it holds a file, which no other process can open."""

    def __init__(
        self, room: DiskRoom | None = None, on_disk: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> None:
        """Take `room` for bytes on the disk; once there are any, stay in the context that `on_disk` makes."""
        self._room = room
        self._on_disk = on_disk
        self._contexts = ExitStack()
        self._taken = 0
        self._lines: list[bytes] = []
        self._bytes = 0
        self._file: IO[bytes] | None = None
        self._count = 0
        self.attachments: dict[int | None, Attachments] = {}
        """Of items that have some, by their numbers from 0."""
        self._data: IO[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._contexts.close()
        if self._file is not None:
            self._file.close()
        if self._data is not None:
            self._data.close()
        if self._room is not None:
            self._room.left += self._taken

    def __len__(self) -> int:
        return self._count

    def add(self, custom_id: str, query: str, metadata: dict[str, Any]) -> None:
        """Take in an item; `spool` now and then."""
        for _ in self.add_in_steps(custom_id, query, metadata):
            pass

    def add_in_steps(
        self, custom_id: str, query: str, metadata: dict[str, Any], attachments: Attachments | None = None
    ) -> Iterator[None]:
        """Take in an item, a long one in steps; `spool` now and then."""
        if attachments is not None:
            self.attachments[self._count] = attachments
        details = to_json(metadata).decode() if metadata else "{}"
        if len(query) + len(details) <= PIECE:
            line = f"{escaped(custom_id)}\t{escaped(query)}\t{escaped(details)}\n".encode()
        else:
            pieces: list[bytes] = []
            for text, end in ((custom_id, b"\t"), (query, b"\t"), (details, b"\n")):
                for start in range(0, len(text), PIECE):
                    yield
                    pieces.append(escaped(text[start : start + PIECE]).encode())
                pieces.append(end)
            line = b"".join(pieces)
        self._lines.append(line)
        self._bytes += len(line)
        self._count += 1

    def set_down(self, data: bytes) -> Pieces:
        """Write a file that came within an item to the disk; returns a function that reads it back.

        Raises:
            OSError: there is no room. What `on_disk` raises.
        """
        if self._data is None:
            if self._file is None:
                self._contexts.enter_context(self._on_disk())
            self._data = TemporaryFile()  # noqa: SIM115  (it is closed at the end of this context)
        file, start = self._data, self._data.seek(0, SEEK_END)
        self._take(len(data))
        file.write(data)

        async def pieces() -> AsyncIterator[bytes]:
            for place in range(start, start + len(data), PIECE_BYTES):
                file.seek(place)
                yield file.read(min(PIECE_BYTES, start + len(data) - place))

        return pieces

    def _take(self, size: int) -> None:
        if self._room is not None:
            self._room.take(size)
            self._taken += size

    async def spool(self) -> None:
        """Write gathered items to the disk, if they are large.

        Raises:
            OSError: there is no room. What `on_disk` raises.
        """
        if self._bytes < SPOOLED_BYTES:
            return
        if self._file is None:
            if self._data is None:
                self._contexts.enter_context(self._on_disk())
            self._file = await asyncio.to_thread(TemporaryFile)
        data = b"".join(self._lines)
        self._take(len(data))
        self._lines, self._bytes = [], 0
        await asyncio.to_thread(self._file.write, data)

    async def blocks(self) -> AsyncIterator[list[bytes]]:
        """Read everything back, some lines at a time."""
        if self._file is not None:
            await asyncio.to_thread(self._file.seek, 0)
            while lines := await asyncio.to_thread(self._file.readlines, BLOCK_BYTES):
                yield lines
        if self._lines:
            yield self._lines


def escaped(text: str) -> str:
    """Write a value as the text format of `COPY` wants it; a tab or a line feed would end it."""
    if "\\" in text:
        text = text.replace("\\", "\\\\")
    for character, name in (("\n", "\\n"), ("\t", "\\t"), ("\r", "\\r")):
        if character in text:
            text = text.replace(character, name)
    return text
