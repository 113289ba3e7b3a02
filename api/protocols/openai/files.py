"""Routes: files as OpenAI's clients upload them; they are the files of `/api/v1/files`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response

from agent_relay.api.dependencies import CallLimits, Database, Files, ServiceSettings, UploadLimits, Uploads
from agent_relay.api.files import FileSpool, arrive, download, owned_file, owned_files
from agent_relay.api.problems import invalid, pointer_step
from agent_relay.api.protocols.openai.ids import file_id, file_of
from agent_relay.api.requests.idempotency import REPLAYED, KeyHeader, key_of, once
from agent_relay.api.requests.identity import Caller
from agent_relay.api.requests.validation import StrictRoute
from agent_relay.shared.errors import NotFound
from agent_relay.shared.files import FileRow, delete_file
from agent_relay.shared.idempotency import Repeated

router = APIRouter(prefix="/files", route_class=StrictRoute)

PURPOSE = "user_data"
"""What each file shows: it is for queries, and nothing else."""
_PURPOSES = (PURPOSE, "assistants", "vision")
"""Taken, without a difference. The others would have this service read the file."""
MOST_LISTED = 10_000
"""Of what may be asked for."""
MOST_OF_PAGE = 1_000


@router.post("")
async def create(
    request: Request,
    files: Files,
    uploads: Uploads,
    upload_limits: UploadLimits,
    database: Database,
    settings: ServiceSettings,
    caller: Caller,
    header: KeyHeader,
    response: Response,
) -> dict[str, Any]:
    """Take a file in."""
    fields: dict[str, str] = {}
    with FileSpool(uploads.room, lambda: upload_limits.opened(caller)) as spool:
        arrived = await arrive(request, settings.max_file_bytes, spool, fields)
        _check_fields(fields)
        key = key_of(request, caller, header, arrived.digest)
        try:
            stored = await once(lambda: files.store(caller, arrived, spool, key))
        except Repeated as repeated:
            stored = repeated.created
            response.headers.update(REPLAYED)
    return _shown(await owned_file(database, caller, stored))


def _check_fields(fields: dict[str, str]) -> None:
    """See that a form says what the file is for, and nothing else.

    Raises:
        Refused: 422, it does not.
    """
    for name in fields:
        if name != "purpose":
            raise invalid(f"/{pointer_step(name)}", "extra_forbidden", "Unknown parameter")
    if "purpose" not in fields:
        raise invalid("/purpose", "missing", "Field required")
    if fields["purpose"] not in _PURPOSES:
        raise invalid("/purpose", "unsupported_value", f"Files are for queries: give {' or '.join(_PURPOSES)}")


@router.get("")
async def list_files(
    database: Database,
    caller: Caller,
    order: Literal["asc", "desc"] = "desc",
    after: Annotated[str | None, Query(max_length=100)] = None,
    limit: Annotated[int, Query(ge=1, le=MOST_LISTED)] = MOST_LISTED,
    purpose: Literal["user_data"] | None = None,
) -> dict[str, Any]:
    """List the user's files."""
    del purpose
    place = None, None
    if after is not None:
        try:
            last = await owned_file(database, caller, file_of(after))
        except NotFound:
            raise invalid("?after", "unknown_item", "No such file") from None
        place = last.created_at, last.id
    most = min(limit, MOST_OF_PAGE)
    found = await owned_files(database, caller, before=place, limit=most, oldest_first=order == "asc")
    shown = [_shown(row) for row in found.rows[:most]]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": len(found.rows) > most or found.ended_early,
    }


@router.get("/{file}")
async def read(file: str, database: Database, caller: Caller) -> dict[str, Any]:
    """Show a file."""
    return _shown(await owned_file(database, caller, file_of(file)))


@router.get("/{file}/content")
async def read_content(file: str, database: Database, calls: CallLimits, caller: Caller) -> Response:
    """Hand the bytes out, to be saved and not shown."""
    row = await owned_file(database, caller, file_of(file))
    with calls.open(caller).kept() as call:
        return await download(database, row, call)


@router.delete("/{file}")
async def delete(file: str, database: Database, caller: Caller) -> dict[str, Any]:
    """Delete a file: queries that it is attached to have it no longer."""
    await delete_file(database, caller.tenant, caller.user_id, file_of(file))
    return {"id": file, "object": "file", "deleted": True}


def _shown(row: FileRow) -> dict[str, Any]:
    return {
        "id": file_id(row.id),
        "object": "file",
        "bytes": row.bytes,
        "created_at": int(row.created_at.timestamp()),
        "filename": row.filename or "",
        "purpose": PURPOSE,
        "status": "processed",
    }
