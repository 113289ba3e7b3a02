"""Files of users: stored once for each content of a tenant, read in pieces, erased when they have expired.

A file is a row that refers to its content; the content is pieces of bytes. Only a worker that gives a file to an agent
holds the whole file in memory, and no connection is held while a client sends or receives one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from agent_relay.shared.clock import new_id
from agent_relay.shared.database import transact
from agent_relay.shared.database.typed_rows import columns
from agent_relay.shared.errors import Limit, NotFound, QueueFull
from agent_relay.shared.settings import Settings

PIECE_BYTES = 256 << 10
LEAST_BYTES = 4 << 10
"""The size for which a file counts at least: many small ones cost as much as a large one."""

Pieces = Callable[[], AsyncIterator[bytes]]
"""Reads a file from its beginning, in pieces of `PIECE_BYTES`; may be called again."""


@dataclass(frozen=True, slots=True)
class FileRow:
    """A file as it is shown."""

    id: UUID
    filename: str | None
    media_type: str
    bytes: int
    sha256: str
    """In hexadecimal digits."""
    created_at: datetime
    content_id: UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class NewFile:
    """A file that is to be stored."""

    id: UUID
    tenant: str
    user_id: UUID
    filename: str | None
    media_type: str
    size: int
    sha256: bytes


@dataclass(frozen=True, slots=True)
class FileLimits:
    """How much users may store, and how long it is kept where nothing uses it."""

    per_user: int
    per_tenant: int
    kept_seconds: float

    @classmethod
    def of(cls, settings: Settings) -> FileLimits:
        """Read the settings."""
        return cls(
            settings.max_file_bytes_per_user, settings.max_file_bytes_per_tenant, settings.file_retention_days * 86_400
        )


FILE_ROW = columns(FileRow, "files", sha256="encode(file_contents.sha256, 'hex')")
"""Of a statement that selects from `FILES`."""
FILES = "files JOIN file_contents ON file_contents.id = content_id"

_USED = text(f"""
    SELECT coalesce(sum(greatest(bytes, {LEAST_BYTES})) FILTER (WHERE user_id = :user_id), 0) AS of_user,
        coalesce(sum(greatest(bytes, {LEAST_BYTES})), 0) AS of_tenant
    FROM files WHERE tenant = :tenant
""")  # noqa: S608  (a constant)

_CONTENT = text("""
    INSERT INTO file_contents (id, tenant, sha256, bytes) VALUES (:id, :tenant, :sha256, :bytes)
    ON CONFLICT (tenant, sha256) DO UPDATE SET bytes = excluded.bytes
    RETURNING id
""")
"""It locks the content that is there, so that it does not go meanwhile."""

_CHUNK = text("INSERT INTO file_chunks (content_id, place, data) VALUES (:content_id, :place, :data)")

_FILE = text("""
    INSERT INTO files (id, tenant, user_id, filename, media_type, bytes, content_id, expires_at)
    VALUES (:id, :tenant, :user_id, :filename, :media_type, :bytes, :content_id,
            now() + make_interval(secs => :kept_seconds))
    ON CONFLICT (id) DO NOTHING
""")

_PIECE = text("SELECT data FROM file_chunks WHERE content_id = :content_id AND place = :place")

_OWNED = text(f"""
    SELECT {FILE_ROW} FROM {FILES}
    WHERE files.id = ANY(CAST(:ids AS uuid[])) AND files.tenant = :tenant AND user_id = :user_id
""")  # noqa: S608  (constants)

_DELETE = text("DELETE FROM files WHERE id = :id AND tenant = :tenant AND user_id = :user_id RETURNING id")


async def check_room(connection: AsyncConnection, limits: FileLimits, tenant: str, user_id: UUID, size: int) -> None:
    """Check that this number of bytes of a user may be stored. Files that come at the same time are not counted.

    Raises:
        QueueFull: the limit of the user, or of the tenant, would be exceeded.
    """
    if not limits.per_user and not limits.per_tenant:
        return
    used = (await connection.execute(_USED, {"tenant": tenant, "user_id": user_id})).one()
    for most, so_far, limit in (
        (limits.per_user, used.of_user, Limit.FILES_OF_USER),
        (limits.per_tenant, used.of_tenant, Limit.FILES_OF_TENANT),
    ):
        if most and so_far + max(size, LEAST_BYTES) > most:
            raise QueueFull(limit, most)


async def store_file(connection: AsyncConnection, new: NewFile, pieces: Pieces, kept_seconds: float) -> None:
    """Store a file in a transaction of the caller's; its bytes only if the tenant has no file of the same content.

    One whose id is there already is left as it is.
    """
    content_id = new_id()
    values = {"id": content_id, "tenant": new.tenant, "sha256": new.sha256, "bytes": new.size}
    stored = await connection.scalar(_CONTENT, values)
    if stored == content_id:
        place = 0
        async for piece in pieces():
            await connection.execute(_CHUNK, {"content_id": content_id, "place": place, "data": piece})
            place += 1
    await connection.execute(
        _FILE,
        {
            "id": new.id,
            "tenant": new.tenant,
            "user_id": new.user_id,
            "filename": new.filename,
            "media_type": new.media_type,
            "bytes": new.size,
            "content_id": stored,
            "kept_seconds": kept_seconds,
        },
    )


def pieces_of(data: bytes) -> Pieces:
    """Cut bytes that are in memory."""

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(data), PIECE_BYTES):
            yield data[start : start + PIECE_BYTES]

    return pieces


async def files_of(database: AsyncEngine, tenant: str, user_id: UUID, ids: Sequence[UUID]) -> dict[UUID, FileRow]:
    """Read the files of a user among those of these ids."""
    if not ids:
        return {}
    values = {"ids": list(ids), "tenant": tenant, "user_id": user_id}
    return {row.id: row for row in await transact(database, _OWNED, values, FileRow)}


async def read_pieces(database: AsyncEngine, file: FileRow) -> AsyncIterator[bytes]:
    """Read a file in pieces, each in a transaction of its own.

    Raises:
        NotFound: the file was deleted before or meanwhile.
    """
    for place in range(-(-file.bytes // PIECE_BYTES)):
        rows = await transact(database, _PIECE, {"content_id": file.content_id, "place": place})
        if not rows:
            raise NotFound("file")
        yield bytes(rows[0].data)


async def read_file(database: AsyncEngine, file: FileRow) -> bytes:
    """Read a whole file into memory.

    Raises:
        NotFound: it was deleted.
    """
    return b"".join([piece async for piece in read_pieces(database, file)])


async def delete_file(database: AsyncEngine, tenant: str, user_id: UUID, file_id: UUID) -> None:
    """Delete a file of a user; runs that use it have it no longer.

    Raises:
        NotFound: the user has no such file.
    """
    if not await transact(database, _DELETE, {"id": file_id, "tenant": tenant, "user_id": user_id}):
        raise NotFound("file")
