"""Routes: files, to be attached to queries."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Header, Path, Request, Response

from agent_relay.api.dependencies import CallLimits, Database, Files, ServiceSettings, UploadLimits, Uploads, UrlOf
from agent_relay.api.files import MULTIPART, FileSpool, arrive, download, owned_file, owned_files
from agent_relay.api.problems import responses
from agent_relay.api.requests.idempotency import REPLAYED, KeyHeader, key_of, once
from agent_relay.api.requests.identity import Caller
from agent_relay.api.requests.pagination import Cursor, Limit, Page
from agent_relay.api.requests.validation import StrictRoute
from agent_relay.api.schemas import File, file_of
from agent_relay.shared.files import delete_file
from agent_relay.shared.idempotency import Repeated

router = APIRouter(prefix="/files", tags=["files"], route_class=StrictRoute)

FileId = Annotated[UUID, Path(description="The file's id.")]

_BYTES: dict[str, Any] = {"type": "string", "format": "binary"}
_BODY: dict[str, Any] = {
    "required": True,
    "description": "The file itself, of any type that files may have, or one part of a form.",
    "content": {
        "application/pdf": {"schema": _BYTES},
        "image/*": {"schema": _BYTES},
        "text/plain": {"schema": {"type": "string", "minLength": 1}},
        MULTIPART: {"schema": {"type": "object", "required": ["file"], "properties": {"file": _BYTES}}},
    },
}
_CONTENT: dict[str, Any] = {
    "description": "The bytes of the file, with its type.",
    "content": {"*/*": {"schema": _BYTES}},
}


@router.post(
    "",
    status_code=201,
    summary="Upload a file",
    response_description="The file; `Location` is its address.",
    responses=responses(404, 409, 413, 415),
    openapi_extra={"requestBody": _BODY},
)
async def create_file(
    request: Request,
    files: Files,
    uploads: Uploads,
    upload_limits: UploadLimits,
    database: Database,
    settings: ServiceSettings,
    url_of: UrlOf,
    caller: Caller,
    header: KeyHeader,
    response: Response,
    _disposition: Annotated[
        str | None, Header(alias="Content-Disposition", description='Its name: `attachment; filename="report.pdf"`.')
    ] = None,
) -> File:
    """The body is the file, with its type in `Content-Type`; or `multipart/form-data` with the file as its one part.

    A file that no query uses is deleted 30 days later, unless the service has another setting.
    """
    with FileSpool(uploads.room, lambda: upload_limits.opened(caller)) as spool:
        arrived = await arrive(request, settings.max_file_bytes, spool)
        key = key_of(request, caller, header, arrived.digest)
        try:
            file_id = await once(lambda: files.store(caller, arrived, spool, key))
        except Repeated as repeated:
            file_id = repeated.created
            response.headers.update(REPLAYED)
    response.headers["Location"] = url_of("files", file_id)
    return file_of(await owned_file(database, caller, file_id))


@router.get("", summary="List your files", response_description="A page of files.", responses=responses())
async def list_files(database: Database, caller: Caller, cursor: Cursor, limit: Limit = 20) -> Page[File]:
    """The user's files, newest first."""
    at, file_id = cursor.read(datetime.fromisoformat, UUID)
    found = await owned_files(database, caller, before=(at, file_id), limit=limit)
    return cursor.page(found, limit, file_of, lambda row: [row.created_at.isoformat(), row.id])


@router.get("/{file_id}", summary="Read about a file", response_description="The file.", responses=responses(404))
async def read_file(file_id: FileId, database: Database, caller: Caller) -> File:
    """Its type, name and size; its content has an address of its own."""
    return file_of(await owned_file(database, caller, file_id))


@router.get(
    "/{file_id}/content",
    summary="Download a file",
    response_class=Response,
    responses={**responses(404), 200: _CONTENT},
)
async def read_content(file_id: FileId, database: Database, calls: CallLimits, caller: Caller) -> Response:
    """The bytes as they were uploaded. `Content-Disposition` lets browsers save them, not show them."""
    file = await owned_file(database, caller, file_id)
    with calls.open(caller).kept() as call:
        return await download(database, file, call)


@router.delete(
    "/{file_id}",
    status_code=204,
    summary="Delete a file",
    response_description="It is gone.",
    responses=responses(404),
)
async def remove_file(file_id: FileId, database: Database, caller: Caller) -> None:
    """It is removed from the queries that it is attached to; an agent that reads them again gets a sentence instead."""
    await delete_file(database, caller.tenant, caller.user_id, file_id)
