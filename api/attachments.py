"""Read attachments of queries; everything that can be refused before anything is stored is refused here."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import UUID

from pydantic import ValidationError
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from agent_relay.api.files import UNNAMED, tidy
from agent_relay.api.problems import FieldError, Refused, invalid
from agent_relay.api.requests.identity import Owner
from agent_relay.api.schemas import Attachment
from agent_relay.shared import attachments
from agent_relay.shared.clock import new_id
from agent_relay.shared.errors import WebhookRefused, WrongAttachment
from agent_relay.shared.files import FileLimits, NewFile, Pieces, pieces_of
from agent_relay.shared.media_types import MEDIA_TYPES, Sniffer, WrongContent, plain, type_of_name
from agent_relay.shared.settings import Settings
from agent_relay.shared.webhooks import read_url

_NOT_TAKEN = FieldError(pointer="/media_type", code="type_not_taken", message="Files may not be of this type")


class _Wrong(Exception):
    def __init__(self, error: FieldError) -> None:
        super().__init__(error.message)
        self.error = error


def read_attachments(
    settings: Settings,
    caller: Owner,
    given: Sequence[Attachment] | None,
    keep: Callable[[bytes], Pieces] = pieces_of,
) -> tuple[attachments.Attachments | None, list[FieldError]]:
    """Read the attachments of a query; returns the problems beside. `keep` takes bytes that came with it.

    Whether files are the caller's, and whether the agent takes them, is checked as they are stored.
    """
    if not given:
        return None, []
    items: list[attachments.Attachment] = []
    errors: list[FieldError] = []
    for place, each in enumerate(given):
        try:
            items.append(_read(settings, caller, each, keep))
        except _Wrong as wrong:
            pointer = f"/attachments/{place}{wrong.error.pointer}"
            errors.append(wrong.error.model_copy(update={"pointer": pointer}))
    return attachments.Attachments(items, FileLimits.of(settings), settings.max_attachment_bytes), errors


def _read(
    settings: Settings, caller: Owner, given: Attachment, keep: Callable[[bytes], Pieces]
) -> attachments.Attachment:
    media_type = None if given.media_type is None else plain(given.media_type)
    if media_type is not None and media_type not in MEDIA_TYPES:
        raise _Wrong(_NOT_TAKEN)
    if given.url is not None:
        try:
            read_url(given.url, settings.webhook_trusted_hosts)
        except WebhookRefused as refused:
            raise _Wrong(FieldError(pointer="/url", code=refused.code, message=str(refused))) from None
        return attachments.Attachment(url=given.url, media_type=media_type)
    if given.data is None or media_type is None:
        return attachments.Attachment(file_id=given.file_id)
    try:
        data = base64.b64decode(given.data, validate=True)
    except (binascii.Error, ValueError):
        raise _Wrong(FieldError(pointer="/data", code="base64", message="Must be base64, with its padding")) from None
    if len(data) > settings.max_file_bytes:
        message = f"A file has at most {settings.max_file_bytes} bytes"
        raise _Wrong(FieldError(pointer="/data", code="too_long", message=message))
    try:
        sniffer = Sniffer(media_type)
        sniffer.feed(data)
        sniffer.end()
    except WrongContent as wrong:
        raise _Wrong(FieldError(pointer="/data", code="wrong_content", message=str(wrong))) from None
    new = NewFile(
        id=new_id(),
        tenant=caller.tenant,
        user_id=caller.user_id,
        filename=tidy(given.filename),
        media_type=media_type,
        size=len(data),
        sha256=hashlib.sha256(data).digest(),
    )
    return attachments.Attachment(new=new, pieces=keep(data))


_DATA_URL = re.compile(r"data:([^,;]*)(?:;[^,;]*)*?;base64,", re.IGNORECASE | re.ASCII)
_NOWHERE = UUID(int=0)
"""The id of no file."""


class NotAttachable(ValueError):
    """What another protocol calls a file can be no attachment; the message says why, and quotes nothing of it."""


def from_id(file_id: UUID | None) -> Attachment:
    """Attach a file by its id; None, which can be the id of none, is as unknown as any other."""
    return Attachment(file_id=file_id or _NOWHERE)


def from_url(url: str, media_type: str | None = None, filename: str | None = None) -> Attachment:
    """Attach what a URL leads to, or holds: one of `data:` is the file itself.

    Raises:
        NotAttachable: it is no URL that may be attached.
    """
    if url[:5].lower() != "data:":
        return _attachment(url=url, media_type=media_type)
    head = _DATA_URL.match(url[:_LONGEST_HEAD])
    if head is None:
        raise NotAttachable("A data: URL is data:<media type>;base64,<data>")
    return from_data(url[head.end() :], head[1] or media_type, filename)


def from_data(data: str, media_type: str | None, filename: str | None = None) -> Attachment:
    """Attach bytes in base64; where nothing says their type, the name does.

    Raises:
        NotAttachable: nothing says it, or they can be no attachment.
    """
    named = type_of_name(filename) if media_type is None or plain(media_type) in {"", UNNAMED} else media_type
    if named is None:
        raise NotAttachable("Nothing says what type this is: write it as data:<media type>;base64,<data>")
    return _attachment(data=data, media_type=named, filename=filename)


_LONGEST_HEAD = 300
"""Of a `data:` URL, without its data."""


def _attachment(**given: str | None) -> Attachment:
    try:
        return Attachment.model_validate({name: value for name, value in given.items() if value is not None})
    except ValidationError as wrong:
        raise NotAttachable(wrong.errors(include_url=False, include_input=False)[0]["msg"]) from None


_ATTACHMENTS = "/attachments"


@dataclass(frozen=True, slots=True)
class Placed:
    """An attachment as another protocol gives it."""

    attachment: Attachment
    pointer: str
    """Where it stands in the body: a JSON Pointer."""


@contextmanager
def in_their_places(placed: Sequence[Placed], whole: str) -> Generator[list[Attachment] | None]:
    """Give the attachments of a query; an error of one has its place, and an error of all has that of the `whole`.

    Raises:
        Refused: 422, they are too many, or one cannot be attached.
    """
    if len(placed) > attachments.MOST_ATTACHMENTS:
        raise invalid(whole, "too_long", f"A query has at most {attachments.MOST_ATTACHMENTS} files")

    def moved(pointer: str) -> str:
        place = pointer.removeprefix(_ATTACHMENTS).split("/")[1:2]
        return placed[int(place[0])].pointer if place else whole

    try:
        yield [each.attachment for each in placed] or None
    except WrongAttachment as wrong:
        raise invalid(moved(wrong.pointer), wrong.code, str(wrong)) from None
    except Refused as refused:
        for error in refused.errors:
            if error.pointer.startswith(_ATTACHMENTS):
                error.pointer = moved(error.pointer)
        raise


_KEPT = text("SELECT attachments FROM runs WHERE id = :id")


async def are_attached(database: AsyncEngine, run_id: UUID, placed: Sequence[Placed]) -> bool:
    """Tell whether a run has these attachments. Of bytes that came with the query, name, type and length tell."""
    async with database.connect() as connection:
        kept = attachments.attached_of(await connection.scalar(_KEPT, {"id": run_id}))
    return len(kept) == len(placed) and all(
        _is_kept_as(each.attachment, as_kept) for each, as_kept in zip(placed, kept, strict=True)
    )


def _is_kept_as(given: Attachment, kept: attachments.Attached) -> bool:
    if given.data is None:
        return kept.get("url") == given.url and (given.file_id is None or kept.get("file_id") == str(given.file_id))
    size = len(given.data) // 4 * 3 - given.data[-2:].count("=")
    media_type = None if given.media_type is None else plain(given.media_type)
    return (kept.get("filename"), kept.get("media_type"), kept.get("bytes")) == (tidy(given.filename), media_type, size)
