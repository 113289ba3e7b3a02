"""Take a file in while it arrives, and hand one out, piece by piece: neither is ever whole in memory.

A file waits in `TMPDIR` until it has arrived, and until then holds no connection to the database.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from email.message import Message
from tempfile import TemporaryFile
from typing import IO, Any, Self
from urllib.parse import quote, unquote
from uuid import UUID

from fastapi import Request
from fastapi.responses import StreamingResponse
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from sqlalchemy import TextClause, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.types import Receive, Scope, Send

from agent_relay.api.problems import Refused, invalid, pointer_step, unavailable
from agent_relay.api.queries import Place, read_page
from agent_relay.api.requests.identity import Owner
from agent_relay.api.requests.pagination import Rows, bounded
from agent_relay.api.requests.rate_limits import OpenCall
from agent_relay.api.requests.validation import chunks_of
from agent_relay.shared.batches.spool import SPOOLED_BYTES, DiskRoom
from agent_relay.shared.clock import new_id
from agent_relay.shared.database import PLACE, PLACE_ASCENDING, is_away, store
from agent_relay.shared.errors import NotFound
from agent_relay.shared.files import (
    FILE_ROW,
    FILES,
    PIECE_BYTES,
    FileLimits,
    FileRow,
    NewFile,
    check_room,
    files_of,
    read_pieces,
    store_file,
)
from agent_relay.shared.idempotency import Key, keep
from agent_relay.shared.media_types import MEDIA_TYPES, Sniffer, WrongContent, plain, type_of_name

log = logging.getLogger(__name__)

MULTIPART = "multipart/form-data"
AROUND_A_PART = 16 << 10
"""Bytes that a multipart body may have besides its file."""
LONGEST_FILENAME = 255
FILE_FIELD = "file"
"""Of a form with fields: the part that is the file."""
MOST_FIELDS, LONGEST_FIELD = 10, 1000
UNNAMED = "application/octet-stream"
"""What programs send as the type of a file that they know no type of: its name says more."""
STORED_AT_ONCE = 2
"""More files at once would take connections from everybody else."""
TAKEN = "Files may be images, audio, video, PDF, office documents, plain text, CSV, Markdown and JSON"

_NOT_IN_FILENAMES = re.compile(r"[\x00-\x1f\x7f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_EXTENDED_NAME = re.compile(r";\s*filename\*\s*=\s*utf-8'[a-z-]*'([^;\s]+)", re.IGNORECASE)
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{1,70}")


def _page(order: str, beyond: str) -> TextClause:
    return text(
        bounded(
            f"""
                SELECT {FILE_ROW} FROM {FILES}
                WHERE files.tenant = :tenant AND user_id = :user_id AND (files.created_at, files.id) {beyond}
                ORDER BY files.created_at {order}, files.id {order} LIMIT :limit
            """,  # noqa: S608  (constants)
            "coalesce(octet_length(filename), 0)",
            f"created_at {order}, id {order}",
        )
    )


_NEWEST_FIRST = _page("DESC", f"< {PLACE}")
_OLDEST_FIRST = _page("ASC", f"> {PLACE_ASCENDING}")


class FileSpool:
    """A file that arrives. A context: large content is in a file that no other process can open."""

    def __init__(self, room: DiskRoom, on_disk: Callable[[], AbstractContextManager[None]]) -> None:
        """Take `room` for bytes on the disk; once there are any, stay in the context that `on_disk` makes."""
        self._room = room
        self._on_disk = on_disk
        self._contexts = ExitStack()
        self._taken = 0
        self._start = bytearray()
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._contexts.close()
        if self._file is not None:
            self._file.close()
        self._room.left += self._taken

    async def write(self, piece: bytes) -> None:
        """Add bytes.

        Raises:
            Refused: 503, there is no room on the disk. What `on_disk` raises.
        """
        if self._file is None and len(self._start) + len(piece) <= SPOOLED_BYTES:
            self._start += piece
            return
        try:
            if self._file is None:
                self._contexts.enter_context(self._on_disk())
                self._file = await asyncio.to_thread(TemporaryFile)
                piece, self._start = bytes(self._start) + piece, bytearray()
            self._room.take(len(piece))
            self._taken += len(piece)
            await asyncio.to_thread(self._file.write, piece)
        except OSError as full:
            raise unavailable("There is no room for the file.") from full

    async def pieces(self) -> AsyncIterator[bytes]:
        """Read everything back, from the beginning."""
        if self._file is None:
            for start in range(0, len(self._start), PIECE_BYTES):
                yield bytes(self._start[start : start + PIECE_BYTES])
            return
        await asyncio.to_thread(self._file.seek, 0)
        while piece := await asyncio.to_thread(self._file.read, PIECE_BYTES):
            yield piece


@dataclass(frozen=True, slots=True)
class Arrived:
    """A file that has arrived."""

    filename: str | None
    media_type: str
    size: int
    sha256: bytes
    digest: bytes
    """SHA-256 of the body as it came, and of the headers with its type."""


class FileUploads:
    """Where the files of this process are stored, a few at once."""

    def __init__(self, database: AsyncEngine, limits: FileLimits) -> None:
        self._database = database
        self._limits = limits
        self._turn = asyncio.Semaphore(STORED_AT_ONCE)

    async def store(self, caller: Owner, arrived: Arrived, spool: FileSpool, key: Key | None) -> UUID:
        """Store a file, and the key that it was sent under.

        Raises:
            Repeated, KeyReused, KeyInUse: nothing is stored under this key now, see `keep`.
            QueueFull: the user or the tenant stores as much as they may.
        """
        new = NewFile(
            id=new_id(),
            tenant=caller.tenant,
            user_id=caller.user_id,
            filename=arrived.filename,
            media_type=arrived.media_type,
            size=arrived.size,
            sha256=arrived.sha256,
        )

        async def write(connection: Any) -> _Stored:
            await keep(connection, key, new.id)
            await check_room(connection, self._limits, caller.tenant, caller.user_id, new.size)
            await store_file(connection, new, spool.pieces, self._limits.kept_seconds)
            return _Stored(await connection.scalar(_TRANSACTION_ID))

        async with self._turn:
            await store(self._database, write)
        return new.id


_TRANSACTION_ID = text("SELECT CAST(pg_current_xact_id() AS text)")


@dataclass(frozen=True, slots=True)
class _Stored:
    transaction_id: str


async def arrive(request: Request, most: int, spool: FileSpool, fields: dict[str, str] | None = None) -> Arrived:
    """Take the file of a request in.

    With `fields`, the body is a form of which the part `file` is the file; the values of its other parts are added to
    them. A file of no type that is known is of the one that its name says.

    Raises:
        Refused: 413, it is longer than `most` bytes; 415, it may not be of this type; 422, it is not what its type
            says; 400, the multipart body is malformed; 503, there is no room on the disk.
    """
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refused(415, "The body must not be compressed.", headers={"Accept-Encoding": "identity"})
    said = request.headers.get("content-type", ""), request.headers.get("content-disposition", "")
    digest, content = hashlib.sha256("\n".join(said).encode()), hashlib.sha256()
    if fields is not None and plain(said[0]) != MULTIPART:
        raise Refused(415, f"The body must be {MULTIPART}.")
    part = _Part(said[0], fields) if plain(said[0]) == MULTIPART else None
    sniffer = None if part else Sniffer(_allowed(said[0]))
    size = 0
    async for chunk in chunks_of(request, most + AROUND_A_PART if part else most):
        digest.update(chunk)
        piece = chunk if part is None else part.feed(chunk)
        if part is not None and sniffer is None and part.headers is not None:
            said = part.headers.get("content-type", "text/plain"), part.headers.get("content-disposition", "")
            if fields is not None:
                said = _type_or_name(part.headers.get("content-type", ""), said[1]), said[1]
            sniffer = Sniffer(_allowed(said[0]))
        if not piece or sniffer is None:
            continue
        size += len(piece)
        if size > most:
            raise Refused(413, f"The file is longer than {most} bytes.")
        _sniff(sniffer, piece)
        content.update(piece)
        await spool.write(piece)
    if part is not None:
        part.end()
    assert sniffer is not None  # noqa: S101  (a part that has ended has begun)
    _sniff(sniffer, None)
    if fields is not None:  # A program that sends a form again draws another boundary.
        digest = hashlib.sha256(repr((sorted(fields.items()), said, content.digest())).encode())
    return Arrived(filename_of(said[1]), _allowed(said[0]), size, content.digest(), digest.digest())


def _type_or_name(media_type: str, disposition: str) -> str:
    if plain(media_type) not in {"", UNNAMED}:
        return media_type
    return type_of_name(filename_of(disposition)) or media_type


def _sniff(sniffer: Sniffer, piece: bytes | None) -> None:
    try:
        if piece is None:
            sniffer.end()
        else:
            sniffer.feed(piece)
    except WrongContent as wrong:
        raise invalid("", "wrong_content", str(wrong)) from None


def _allowed(said: str) -> str:
    media_type = plain(said)
    if media_type not in MEDIA_TYPES:
        raise Refused(415, f"{TAKEN}; say in Content-Type which it is.")
    return media_type


def filename_of(disposition: str) -> str | None:
    """Read the name of a file out of a `Content-Disposition`: without folders, and nothing that is not for the eye."""
    if extended := _EXTENDED_NAME.search(disposition):
        return tidy(unquote(extended[1], errors="ignore"))
    return tidy(_parameter(disposition, "filename"))


def _parameter(disposition: str, name: str) -> str | None:
    message = Message()
    message["Content-Disposition"] = _as_sent(disposition)
    value = message.get_param(name, header="Content-Disposition")
    return value if isinstance(value, str) else None


def tidy(name: str | None) -> str | None:
    """Take folders and invisible characters off the name of a file; None if nothing is left."""
    if not name:
        return None
    last = _NOT_IN_FILENAMES.sub("", re.split(r"[/\\]", name)[-1]).strip()
    return last.encode(errors="ignore").decode()[:LONGEST_FILENAME] or None


def _as_sent(header: str) -> str:
    """Read a header as UTF-8, where it is: browsers write it so."""
    try:
        return header.encode("latin-1").decode()
    except UnicodeError:
        return header


class _Part:
    """The part of a multipart body that is the file: the only one; or with `fields`, the one of that name."""

    def __init__(self, content_type: str, fields: dict[str, str] | None) -> None:
        message = Message()
        message["Content-Type"] = content_type
        boundary = message.get_boundary("")
        if not _BOUNDARY.fullmatch(boundary):
            raise _malformed()
        self.headers: dict[str, str] | None = None
        """Once all have come."""
        self._coming: dict[str, str] = {}
        self._field, self._value = bytearray(), bytearray()
        self._data: list[bytes] = []
        self._fields = fields
        self._name: str | None = None
        """Of the field that comes."""
        self._text = bytearray()
        self._parts = 0
        self._ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": lambda data, start, end: self._field.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_headers,
                "on_part_data": self._take,
                "on_part_end": self._end_part,
                "on_end": self._end,
            },
        )

    def feed(self, chunk: bytes) -> bytes:
        """Read on; returns the next bytes of the file."""
        try:
            self._parser.write(chunk)
        except FormParserError:
            raise _malformed() from None
        data, self._data = b"".join(self._data), []
        return data

    def end(self) -> None:
        """See that the body has come to its end.

        Raises:
            Refused: 400, it has not.
        """
        if self._fields is not None and self._ended and self.headers is None:
            raise invalid(f"/{FILE_FIELD}", "missing", "Field required")
        if not self._ended or self.headers is None:
            raise _malformed()

    def _begin(self) -> None:
        self._parts += 1
        if self._fields is None and self._parts > 1:
            raise invalid("", "one_part", "A multipart body must have one part, the file")
        self._coming = {}

    def _end_header(self) -> None:
        self._coming[self._field.decode("latin-1").lower()] = self._value.decode("latin-1").strip()
        self._field, self._value = bytearray(), bytearray()

    def _end_headers(self) -> None:
        name = None if self._fields is None else _parameter(self._coming.get("content-disposition", ""), "name") or ""
        self._name = None if name == FILE_FIELD else name
        if self._name is not None:
            return
        if self.headers is not None:
            raise invalid(f"/{FILE_FIELD}", "repeated", "Given more than once")
        self.headers = self._coming

    def _take(self, data: bytes, start: int, end: int) -> None:
        if self._name is None:
            self._data.append(data[start:end])
            return
        self._text += data[start:end]
        if len(self._text) > LONGEST_FIELD:
            raise invalid(f"/{pointer_step(self._name)}", "too_long", f"At most {LONGEST_FIELD} bytes")

    def _end_part(self) -> None:
        if self._fields is None or self._name is None:
            return
        pointer = f"/{pointer_step(self._name)}"
        if self._name in self._fields:
            raise invalid(pointer, "repeated", "Given more than once")
        try:
            value = self._text.decode()
        except UnicodeDecodeError:
            raise invalid(pointer, "string_unicode", "Must be text in UTF-8") from None
        if len(self._fields) >= MOST_FIELDS:
            raise invalid(pointer, "too_long", f"At most {MOST_FIELDS} fields")
        self._fields[self._name], self._text = value, bytearray()

    def _end(self) -> None:
        self._ended = True


def _malformed() -> Refused:
    return Refused(400, "The body is not multipart/form-data as RFC 7578 defines it.", code="malformed_multipart")


async def owned_file(database: AsyncEngine, caller: Owner, file_id: UUID) -> FileRow:
    """Read a file.

    Raises:
        NotFound: it is not there, or not this caller's.
    """
    found = await files_of(database, caller.tenant, caller.user_id, [file_id])
    if file_id not in found:
        raise NotFound("file")
    return found[file_id]


async def owned_files(
    database: AsyncEngine, caller: Owner, *, before: Place, limit: int, oldest_first: bool = False
) -> Rows[FileRow]:
    """Read the caller's files, newest first unless said otherwise, from a place on."""
    statement = _OLDEST_FIRST if oldest_first else _NEWEST_FIRST
    return await read_page(database, caller, statement, FileRow, before=before, limit=limit)


class Download(StreamingResponse):
    """A file on its way to a client, as one to be saved and never to be shown."""

    def __init__(self, file: FileRow, first: bytes, rest: AsyncIterator[bytes], call: OpenCall) -> None:
        """Begin with a piece that was read already; the `call` is closed at the end."""
        super().__init__(_whole(first, rest), media_type=file.media_type)
        self._call = call
        self.headers.update(
            {
                "Content-Length": str(file.bytes),
                "Content-Disposition": attachment(file.filename),
                "Content-Security-Policy": "sandbox; default-src 'none'",
                "Cache-Control": "private, no-cache",
                "ETag": f'"{file.sha256}"',
                "X-Content-Type-Options": "nosniff",
            }
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write the pieces, each when the socket has taken the one before."""
        try:
            await super().__call__(scope, receive, send)
        except (NotFound, SQLAlchemyError) as gone:
            if isinstance(gone, SQLAlchemyError) and not is_away(gone):
                raise
            log.warning("files.cut error=%r", gone)  # The client sees that it has not come to its end.
        finally:
            self._call.close()


async def _whole(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in rest:
        yield piece


async def download(database: AsyncEngine, file: FileRow, call: OpenCall) -> Download:
    """Answer with the content of a file; its first piece is read before the head is sent.

    Raises:
        NotFound: it was deleted.
    """
    pieces = read_pieces(database, file)
    return Download(file, await anext(pieces), pieces, call)


def attachment(filename: str | None) -> str:
    """Write a `Content-Disposition`: for programs that know no other, the name in ASCII (RFC 6266)."""
    if filename is None:
        return "attachment"
    ascii_name = re.sub(r'[^ -~]|["\\%]', "_", filename)
    return f"attachment; filename=\"{ascii_name}\"; filename*=UTF-8''{quote(filename, safe='')}"
