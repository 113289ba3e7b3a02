"""Files of a run: given to its agent as bytes, and taken out of its messages before they are stored.

A message that is stored holds a reference in the place of the bytes. Whoever reads it again puts the bytes back, as far
as the limit of a run goes; a sentence stands for a file that is gone, or does not fit in. Files that the agent's tools
or its model made become files of the user's.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast
from uuid import UUID, uuid5

from pydantic_ai.messages import (
    AudioUrl,
    BinaryContent,
    DocumentUrl,
    ImageUrl,
    ModelMessage,
    ModelRequest,
    UserContent,
    VideoUrl,
)
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from agent_relay.shared.attachments import Attached, attached_of
from agent_relay.shared.database import store
from agent_relay.shared.errors import NotFound, QueueFull
from agent_relay.shared.files import (
    FileLimits,
    FileRow,
    NewFile,
    check_room,
    files_of,
    pieces_of,
    read_file,
    store_file,
)
from agent_relay.shared.media_types import MEDIA_TYPES, Sniffer, WrongContent, matches, plain
from agent_relay.shared.runs.claim import Claim
from agent_relay.shared.settings import Settings
from agent_relay.worker.execution.file_references import all_files_in, all_replaced, content_of, file_id_of
from agent_relay.worker.execution.steps import KeptSteps
from agent_relay.worker.fetching import Fetcher, NotFetched

log = logging.getLogger(__name__)

_MEDIA_TYPE = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,60}/[a-z0-9][a-z0-9!#$&^_.+-]{0,60}")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,100}")

_USE = text("""
    WITH ours AS (
        SELECT id FROM runs WHERE id = :run_id AND attempt = :attempt AND status = 'running'
    ), used AS (
        INSERT INTO file_uses (file_id, run_id) SELECT :file_id, id FROM ours ON CONFLICT DO NOTHING
    )
    SELECT id FROM ours
""")
_TRANSACTION_ID = text("SELECT CAST(pg_current_xact_id() AS text)")


@dataclass(frozen=True, slots=True)
class _Stored:
    transaction_id: str


class _NotOurs(Exception):
    """The run was erased, or is another attempt's: nothing would use the file."""


@dataclass(frozen=True, slots=True)
class Made:
    """A file that the run's agent made."""

    file_id: UUID
    media_type: str
    bytes: int


class RunFiles:
    """The files of one attempt at a run."""

    def __init__(
        self,
        settings: Settings,
        database: AsyncEngine,
        fetcher: Fetcher,
        claimed: Claim,
        *,
        takes: Sequence[str],
        urls: Literal["fetch", "pass"],
        patiently: Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]],
    ) -> None:
        """`takes` are the media types that the agent takes; `patiently` waits for a database that is away."""
        self._limits = FileLimits.of(settings)
        self._most_of_one = settings.max_file_bytes
        self._database = database
        self._fetcher = fetcher
        self._claimed = claimed
        self._takes = takes
        self._urls = urls
        self._patiently = patiently
        self._room = settings.max_attachment_bytes
        self._given: dict[UUID, bytes] = {}
        """The bytes of files that the agent has been given."""
        self._made: dict[tuple[bytes, str], Made] = {}
        """Files that the agent made, by their hash and type."""

    async def prompt(self, query: str, attachments: object, number: str) -> str | list[UserContent]:
        """Make the agent's form of a query; `number` distinguishes it from the other queries of the run."""
        attached = attached_of(attachments)
        if not attached:
            return query
        known = await self._files([each["file_id"] for each in attached if "file_id" in each])
        said: list[UserContent] = [query]
        for place, each in enumerate(attached):
            if "url" in each:
                said.append(await self._of_url(each, f"{number}.{place}"))
            else:
                said.append(await self._content(known.get(UUID(each["file_id"])), each))
        return said

    async def restored_kept(self, kept: KeptSteps) -> KeptSteps:
        """Put bytes back into what earlier attempts have finished."""
        if not kept.messages:
            return kept
        *messages, last = await self.restored([*kept.messages, ModelRequest(parts=list(kept.finished))])
        return replace(kept, messages=messages, finished=last.parts if kept.finished else ())

    async def restored(self, messages: Sequence[ModelMessage]) -> list[ModelMessage]:
        """Put bytes back into messages that were stored: into the newest first, as far as there is room."""
        files = [file for file in await all_files_in(_parts(messages)) if not file.data]
        references = {file_id: file for file in files if (file_id := file_id_of(file)) is not None}
        if not references:
            return list(messages)
        known = await self._files(list(references))
        contents: dict[UUID, UserContent] = {}
        for file_id, file in reversed(references.items()):
            contents[file_id] = await self._content(known.get(file_id), {"media_type": file.media_type}, file)

        def put_back(file: BinaryContent) -> UserContent:
            file_id = None if file.data else file_id_of(file)
            return file if file_id is None else contents[file_id]

        return await all_replaced(messages, put_back)

    async def referenced(self, messages: Sequence[ModelMessage]) -> Sequence[ModelMessage]:
        """Take the bytes out of messages that are to be stored; new content becomes a file."""
        files = [file for file in await all_files_in(_parts(messages)) if file.data]
        if not files:
            return messages
        names = {id(file): await self._name(file) for file in files}

        def taken_out(file: BinaryContent) -> UserContent:
            name = names.get(id(file))
            return file if name is None else content_of(name, b"", file.media_type, file)

        return await all_replaced(messages, taken_out)

    async def made(self, file: BinaryContent) -> Made:
        """Store content that the agent made as a file of the user's, once for each content."""
        digest = hashlib.sha256(file.data).digest()
        media_type = plain(file.media_type)
        if not _MEDIA_TYPE.fullmatch(media_type):
            media_type = "application/octet-stream"
        known = self._made.get((digest, media_type))
        if known is None:
            file_id = uuid5(self._claimed.run_id, f"{digest.hex()} {media_type}")
            await self._store(file_id, None, media_type, file.data, digest)
            known = self._made[digest, media_type] = Made(file_id, media_type, len(file.data))
        return known

    async def shown(self, file: BinaryContent) -> dict[str, Any]:
        """Store content that the agent made; returns what callers are shown of it."""
        made = await self.made(file)
        return {"file_id": str(made.file_id), "media_type": made.media_type, "bytes": made.bytes}

    async def _name(self, file: BinaryContent) -> UUID:
        file_id = file_id_of(file)
        if file_id is not None and self._given.get(file_id) == file.data:
            return file_id
        return (await self.made(file)).file_id

    async def _files(self, ids: Sequence[str | UUID]) -> dict[UUID, FileRow]:
        asked = list(dict.fromkeys(UUID(str(each)) for each in ids))
        claimed = self._claimed
        read = await self._patiently(lambda: files_of(self._database, claimed.tenant, claimed.user_id, asked))
        return cast("dict[UUID, FileRow]", read)

    async def _content(
        self, file: FileRow | None, known: Attached, reference: BinaryContent | None = None
    ) -> UserContent:
        """Read a file; a sentence stands for one that is gone, or does not fit in."""
        name = known.get("filename") or known["media_type"]
        if file is None:
            return f"[A file ({name}) was attached here, and has been deleted since.]"
        data = self._given.get(file.id)
        if data is None and file.bytes > self._room:
            return f"[A file ({name}, {file.bytes} bytes) was attached here, and is too large to be shown again.]"
        if data is None:
            try:
                data = cast("bytes", await self._patiently(lambda: read_file(self._database, file)))
            except NotFound:
                return f"[A file ({name}) was attached here, and has been deleted since.]"
            self._give(file.id, data)
        return content_of(file.id, data, file.media_type, reference)

    def _give(self, file_id: UUID, data: bytes) -> None:
        self._room -= len(data)
        self._given[file_id] = data

    async def _of_url(self, attached: Attached, number: str) -> UserContent:
        """Fetch an attachment by its address, once for all attempts; a sentence replaces one that cannot be fetched."""
        url, media_type = str(attached["url"]), attached.get("media_type")
        if self._urls == "pass":
            return _address(url, media_type)
        file_id = uuid5(self._claimed.run_id, f"attachment {number}")
        file = (await self._files([file_id])).get(file_id)
        if file is not None:
            return await self._content(file, {"media_type": file.media_type})
        try:
            data, said = await self._fetcher.fetch(url, self._claimed.tenant)
            media_type = media_type or plain(said)
            self._check(data, media_type)
        except NotFetched as why:
            log.warning("files.not_fetched run_id=%s: %s", self._claimed.run_id, why)
            return f"[The attachment {url} could not be fetched: {why}.]"
        await self._store(file_id, _name_in(url), media_type, data, hashlib.sha256(data).digest())
        self._give(file_id, data)
        return content_of(file_id, data, media_type)

    def _check(self, data: bytes, media_type: str) -> None:
        """Check that a fetched attachment may be given to the agent.

        Raises:
            NotFetched: it may not.
        """
        if media_type not in MEDIA_TYPES:
            raise NotFetched("files may not be of its type")
        if not matches(media_type, self._takes):
            raise NotFetched(f"this agent takes no {media_type}")
        if len(data) > self._room:
            raise NotFetched("the files of the query are too large together")
        try:
            sniffer = Sniffer(media_type)
            sniffer.feed(data)
            sniffer.end()
        except WrongContent as wrong:
            raise NotFetched(str(wrong)) from None

    async def _store(self, file_id: UUID, filename: str | None, media_type: str, data: bytes, digest: bytes) -> None:
        """Store a file that the run uses; where there is no room for it, its reference leads nowhere."""
        claimed = self._claimed
        new = NewFile(
            id=file_id,
            tenant=claimed.tenant,
            user_id=claimed.user_id,
            filename=filename,
            media_type=media_type,
            size=len(data),
            sha256=digest,
        )

        async def write(connection: AsyncConnection) -> _Stored:
            await check_room(connection, self._limits, new.tenant, new.user_id, new.size)
            await store_file(connection, new, pieces_of(data), self._limits.kept_seconds)
            use = {"file_id": file_id, "run_id": claimed.run_id, "attempt": claimed.attempt}
            if (await connection.execute(_USE, use)).one_or_none() is None:
                raise _NotOurs
            return _Stored((await connection.execute(_TRANSACTION_ID)).scalar_one())

        if not data or new.size > self._most_of_one:
            log.warning("files.not_stored run_id=%s bytes=%d", claimed.run_id, new.size)
            return
        try:
            await self._patiently(lambda: store(self._database, write))
        except _NotOurs:
            log.warning("files.not_stored run_id=%s bytes=%d: the run is not this attempt's", claimed.run_id, new.size)
        except QueueFull as full:
            log.warning("files.not_stored run_id=%s bytes=%d: %s", claimed.run_id, new.size, full)


def _parts(messages: Sequence[ModelMessage]) -> list[Any]:
    return [part for message in messages for part in message.parts]


def _address(url: str, media_type: str | None) -> UserContent:
    match (media_type or "").partition("/")[0]:
        case "image":
            return ImageUrl(url=url, media_type=media_type)
        case "audio":
            return AudioUrl(url=url, media_type=media_type)
        case "video":
            return VideoUrl(url=url, media_type=media_type)
        case _:
            return DocumentUrl(url=url, media_type=media_type)


def _name_in(url: str) -> str | None:
    """Read the name of a file out of its address."""
    name = url.partition("?")[0].rpartition("/")[2]
    return name if _NAME.fullmatch(name) else None
