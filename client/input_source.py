"""Where rows come from: a file, a pipe or standard input, read once. What becomes of it afterwards changes no row."""

from __future__ import annotations

import codecs
import io
import os
import stat
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any, BinaryIO, Self

from agent_relay.client.errors import Wrong

CHUNK_BYTES = 1 << 20
STANDARD_INPUT = Path("-")

_MARKS = {
    codecs.BOM_UTF8: ("utf-8-sig", "UTF-8"),
    codecs.BOM_UTF32_LE: ("utf-32", "UTF-32"),  # Before UTF-16, whose mark is the beginning of this one.
    codecs.BOM_UTF32_BE: ("utf-32", "UTF-32"),
    codecs.BOM_UTF16_LE: ("utf-16", "UTF-16"),
    codecs.BOM_UTF16_BE: ("utf-16", "UTF-16"),
}
_WINDOWS = "cp1252"
_MARK = "\N{ZERO WIDTH NO-BREAK SPACE}"


class Source:
    """All bytes that were there at one moment, in a file without a name, and the encoding that they are in."""

    def __init__(self, path: Path) -> None:
        self.name = "standard input" if path == STANDARD_INPUT else str(path)
        self.path = path
        self.encoding = "utf-8"
        """As Python names it."""
        self.encoding_name = "UTF-8"
        """As people name it."""
        self.is_marked = False
        """Whether it begins with a byte order mark."""
        self._spool: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115  (closed by `close`)
        self._malformed_at: int | None = None
        self._state: os.stat_result | None = None
        """Of a file on a disk, as it was read."""

    @classmethod
    def read(cls, path: Path, encoding: str | None) -> Self:
        """Read all of it, and find out its encoding if that is not given.

        Raises:
            Wrong: it changed meanwhile, is not text, or the encoding cannot be told.
            OSError: it cannot be read.
        """
        if path == STANDARD_INPUT and sys.stdin is None:  # pyright: ignore[reportUnnecessaryComparison]  (if closed)
            raise Wrong("Standard input is closed.")
        source = cls(path)
        try:
            if path != STANDARD_INPUT:
                with path.open("rb") as file:
                    source._copy(file, encoding)
            else:
                source._copy(sys.stdin.buffer, encoding)
        except BaseException:
            source.close()
            raise
        return source

    def close(self) -> None:
        """Forget the bytes."""
        self._spool.close()

    @property
    def is_lasting(self) -> bool:
        """Whether it is a file beside which results can lie, and not a pipe, a device or a descriptor."""
        is_named = self.path != STANDARD_INPUT and not str(self.path.absolute()).startswith(("/dev/", "/proc/"))
        return self._state is not None and is_named

    def has_changed(self) -> bool:
        """Tell whether the file is not what it was when it was read."""
        if not self.is_lasting or self._state is None:
            return False
        try:
            return _identity(self.path.stat()) != _identity(self._state)
        except OSError:
            return True

    def bytes(self) -> BinaryIO:
        """Open the bytes, from the beginning, beside whoever else reads them."""
        return io.BufferedReader(_Reader(self._spool.fileno()), CHUNK_BYTES)  # pyright: ignore[reportReturnType]

    def lines(self) -> Generator[str]:
        """Read lines of text with their ends, which are those of any system.

        Raises:
            Wrong: it is not in this encoding.
        """
        with io.TextIOWrapper(self.bytes(), self.encoding, newline="") as text:
            try:
                for number, line in enumerate(text):
                    yield line.removeprefix(_MARK) if number == 0 else line
            except UnicodeError as malformed:
                place = "" if self._malformed_at is None else f" from byte {self._malformed_at:,} on"
                raise Wrong(
                    f"{self.name} is not text in {self.encoding_name}{place} ({malformed})."
                    f" Say with --encoding what it is, such as windows-1252."
                ) from None

    def first_character(self) -> str:
        """Read the first character that is no space; an empty string where there is none soon."""
        return self._beginning().decode(self.encoding, errors="replace").lstrip(f"{_MARK} \t\r\n")[:1]

    def _beginning(self) -> bytes:
        with self.bytes() as file:
            return file.read(CHUNK_BYTES)

    def _copy(self, file: BinaryIO, encoding: str | None) -> None:
        before, look = os.fstat(file.fileno()), _Look()
        while chunk := file.read(CHUNK_BYTES):
            look.at(chunk)
            self._spool.write(chunk)
        self._spool.flush()
        if stat.S_ISREG(before.st_mode):
            self._state = before
            if _identity(os.fstat(file.fileno())) != _identity(before):
                raise Wrong(f"{self.name} changed while it was read. Submit a copy of it, or wait until it is whole.")
        self._choose(encoding, look)

    def _choose(self, encoding: str | None, look: _Look) -> None:
        beginning = self._beginning()
        mark = next((mark for mark in _MARKS if beginning.startswith(mark)), b"")
        self.is_marked = bool(mark)
        if encoding is not None:
            self.encoding = self.encoding_name = _known(encoding)
        elif mark:
            self.encoding, self.encoding_name = _MARKS[mark]
        elif look.has_nul:
            raise Wrong(
                f"{self.name} holds NUL bytes: it is not text. Save a spreadsheet as CSV first; if it is UTF-16, say so"
                f" with --encoding utf-16-le."
            )
        elif look.malformed_at is not None and not look.is_partly_utf_8:
            self.encoding, self.encoding_name = _WINDOWS, "Windows-1252"
        elif look.malformed_at is not None:
            self._malformed_at = look.malformed_at


class _Look:
    """What is noticed while bytes go by."""

    def __init__(self) -> None:
        self.has_nul = False
        self.malformed_at: int | None = None
        """The first byte that is not UTF-8."""
        self.is_partly_utf_8 = False
        """Whether there are characters beyond ASCII before that."""
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._size = 0

    def at(self, chunk: bytes) -> None:
        self.has_nul = self.has_nul or b"\0" in chunk
        if self.malformed_at is None:
            pending = len(self._decoder.getstate()[0])
            try:
                good = self._decoder.decode(chunk)
            except UnicodeDecodeError as malformed:
                good = (malformed.object[: malformed.start]).decode()
                self.malformed_at = self._size - pending + malformed.start
            self.is_partly_utf_8 = self.is_partly_utf_8 or not good.isascii()
            self._size += len(chunk)


class _Reader(io.RawIOBase):
    """Bytes of a file, at a place of this reader's own."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._at = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = os.pread(self._descriptor, len(buffer), self._at)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _identity(state: os.stat_result) -> tuple[int, ...]:
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns


def _known(encoding: str) -> str:
    """Name an encoding of text as Python does.

    Raises:
        Wrong: there is none of that name.
    """
    try:
        "a".encode(encoding)
        name = codecs.lookup(encoding).name
    except (LookupError, ValueError):
        raise Wrong(f"--encoding: {encoding!r} is no encoding of text. Try utf-8, utf-16 or windows-1252.") from None
    return "utf-8-sig" if name == "utf-8" else name
