"""Read what callers attach to queries: what can be refused before anything is stored is refused here."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Sequence

from agent_relay.api.files import tidy
from agent_relay.api.problems import FieldError
from agent_relay.api.requests.identity import Owner
from agent_relay.api.schemas import Attachment
from agent_relay.shared import attachments
from agent_relay.shared.clock import new_id
from agent_relay.shared.errors import WebhookRefused
from agent_relay.shared.files import FileLimits, NewFile, Pieces, pieces_of
from agent_relay.shared.media_types import MEDIA_TYPES, Sniffer, WrongContent, plain
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
    """Read the attachments of a query; returns what is wrong with them beside. `keep` takes bytes that came with it.

    Whether files are the caller's, and whether the agent takes them, is seen as they are stored.
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
