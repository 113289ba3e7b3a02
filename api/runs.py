"""Routes: runs, each one query from its acceptance to its end."""

from __future__ import annotations

import asyncio
import hashlib
from datetime import datetime, timedelta
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import JSONResponse

from api.asking import ask, ended
from api.dependencies import Parts, Service
from api.docs import STREAM
from api.following import Deltas, LastSeen, follow
from api.idempotency import IdempotencyKey
from api.identity import Caller, Owner, shown_key
from api.pages import Cursor, Limit, Page
from api.problems import Refused, responses
from api.resources import NewQuery, RunId, StreamTicket
from api.run_cancel import cancel_run
from api.run_rows import owned_run, owned_runs
from api.strict import StrictRoute, TicketedRoute
from shared.resources import Run, run_of
from shared.runs.finish import ring_of
from shared.tables import TERMINAL, RunStatus

router = APIRouter(prefix="/runs", tags=["runs"], route_class=StrictRoute)

streams = APIRouter(prefix="/runs", tags=["runs"], route_class=TicketedRoute)

LONGEST_WAIT_SECONDS = 60

Wait = Annotated[
    float, Query(ge=0, le=LONGEST_WAIT_SECONDS, description="Seconds to wait for the run's end before answering.")
]


@router.post(
    "",
    status_code=202,
    summary="Ask, and do not wait",
    response_description="The run, accepted; `Location` says where it is.",
    responses=responses(404, 409, 413, 415),
)
async def create_run(new: NewQuery, service: Service, caller: Caller, key: IdempotencyKey, response: Response) -> Run:
    """Store a query; a worker takes it at once. Poll the run, or follow its stream."""
    asked = await ask(service, caller, new, key)
    response.headers.update({**asked.headers, "Location": service.url_of("runs", asked.run.id)})
    return await shown(service, asked.run)


@router.get("", summary="List your runs", response_description="A page of runs.", responses=responses())
async def list_runs(
    service: Service,
    caller: Caller,
    cursor: Cursor,
    thread_id: Annotated[UUID | None, Query(description="Only those of this thread.")] = None,
    batch_id: Annotated[UUID | None, Query(description="Only those of this batch.")] = None,
    status: Annotated[RunStatus | None, Query(description="Only those in this status.")] = None,
    limit: Limit = 20,
) -> Page[Run]:
    """The user's runs, newest first."""
    at, run_id = cursor.read(datetime.fromisoformat, UUID)
    rows = await owned_runs(
        service.database,
        caller,
        thread_id=thread_id,
        batch_id=batch_id,
        status=status,
        before=(at, run_id),
        limit=limit + 1,
    )
    positions = await _positions(service, [row for row in rows if row.status == RunStatus.QUEUED])
    return cursor.page(
        rows, limit, lambda row: run_of(row, positions.get(row.id)), lambda row: [row.created_at.isoformat(), row.id]
    )


@router.get(
    "/{run_id}",
    summary="Read a run",
    response_description="The run; `ETag` changes whenever it does.",
    response_model=Run,
    responses={**responses(404), 304: {"description": "It is still as `If-None-Match` says."}},
)
async def read_run(
    run_id: RunId,
    service: Service,
    caller: Caller,
    wait: Wait = 0,
    if_none_match: Annotated[
        str | None, Header(alias="If-None-Match", description="The `ETag` of the answer before.")
    ] = None,
) -> Response:
    """The run as it is now; with `wait`, once it has ended or so many seconds have passed."""
    row = await owned_run(service.database, caller, run_id)
    if wait and row.status not in TERMINAL:
        with service.limits.calls.opened(caller):
            await ended(service, row, wait)
        row = await owned_run(service.database, caller, run_id)
    body = (await shown(service, row)).model_dump_json().encode()
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {"ETag": etag, "Cache-Control": "no-cache"}
    known = {tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")}
    if etag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    return Response(body, media_type="application/json", headers=headers)


@streams.get(
    "/{run_id}/stream",
    summary="Follow a run",
    response_class=Response,
    responses={
        **responses(404, 406),
        200: STREAM,
        204: {"description": "SSE: there is nothing after this id, and never will be."},
    },
)
async def stream_run(
    run_id: RunId,
    service: Service,
    caller: Caller,
    cursor: LastSeen,
    _ticket: Annotated[
        str | None,
        Query(alias="ticket", description="Instead of the headers, see `stream-ticket`."),
    ] = None,
    deltas: Deltas = False,  # noqa: FBT002  (a query parameter)
    accept: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> Response:
    """The events of a run of any age: from the start, or after the id that you saw last."""
    row = await owned_run(service.database, caller, run_id)
    with service.limits.calls.open(caller).kept() as call:
        return follow(service, call, row, accept=accept, cursor=cursor, deltas=deltas)


@router.post(
    "/{run_id}/stream-ticket",
    status_code=201,
    summary="Get a ticket for a stream",
    response_description="The ticket.",
    responses=responses(404),
)
async def create_ticket(run_id: RunId, service: Service, caller: Caller) -> StreamTicket:
    """For clients that cannot send headers, as a browser's `EventSource`: it opens this stream, nothing else."""
    row = await owned_run(service.database, caller, run_id)
    expires_at = row.deadline_at + timedelta(seconds=service.settings.log_retention_seconds)
    ticket = service.tickets.sign(run_id, shown_key(caller), expires_at)
    return StreamTicket(url=f"{service.url_of('runs', run_id)}/stream?ticket={ticket}", expires_at=expires_at)


@router.post(
    "/{run_id}/cancel",
    summary="Cancel a run",
    response_description="The run, which has ended.",
    response_model=Run,
    responses={**responses(404), 202: {"model": Run, "description": "It still runs; its worker has been told."}},
)
async def cancel(run_id: RunId, service: Service, caller: Caller, wait: Wait = 5) -> Response:
    """200 and the run once it has ended, also if it already had; 202 if it has not within `wait` seconds.

    An answer that was stored before the request came through wins: look at `status`. Where no more of your calls may
    wait, this one does not wait.
    """
    row = await owned_run(service.database, caller, run_id)
    if row.status not in TERMINAL:
        try:
            with service.limits.calls.opened(caller):
                row = await _cancel_and_wait(service, caller, row, wait)
        except Refused:
            await cancel_run(service, run_id)
            row = await owned_run(service.database, caller, run_id)
    status = 200 if row.status in TERMINAL else 202
    return JSONResponse(
        (await shown(service, row)).model_dump(mode="json"), status, {"Location": service.url_of("runs", run_id)}
    )


async def _cancel_and_wait(service: Parts, caller: Owner, row: Any, seconds: float) -> Any:
    following = asyncio.create_task(ended(service, row, seconds))
    await cancel_run(service, row.id)
    row = await owned_run(service.database, caller, row.id)
    if row.status in TERMINAL:
        following.cancel()
        return row
    await following
    return await owned_run(service.database, caller, row.id)


async def shown(service: Parts, row: Any) -> Run:
    """Show a run, with its place in the queue."""
    queued = [row] if row.status == RunStatus.QUEUED else []
    return run_of(row, (await _positions(service, queued)).get(row.id))


async def _positions(service: Parts, rows: list[Any]) -> dict[UUID, int]:
    return await service.lanes.positions([ring_of(row) for row in rows])
