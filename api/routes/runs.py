"""Routes: runs, each one query from its acceptance to its end."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import JSONResponse
from sqlalchemy.ext.asyncio import AsyncEngine

from agent_relay.api.cancellation import Canceller
from agent_relay.api.dependencies import (
    CallLimits,
    Cancel,
    Database,
    Queue,
    RunRelay,
    ServiceSettings,
    StreamTickets,
    Submit,
    TakeAnswers,
    UrlOf,
)
from agent_relay.api.openapi import STREAM
from agent_relay.api.problems import Refused, responses
from agent_relay.api.queries import owned_run, owned_runs
from agent_relay.api.requests.idempotency import IdempotencyKey
from agent_relay.api.requests.identity import Caller, Owner, shown_key
from agent_relay.api.requests.pagination import Cursor, Limit, Page
from agent_relay.api.requests.validation import StrictRoute, TicketedRoute
from agent_relay.api.schemas import GivenAnswers, NewMessage, NewQuery, RunId, SentMessage, Step, StreamTicket
from agent_relay.api.steps import page_of_steps
from agent_relay.api.streaming.follow import Deltas, LastSeen, Until, follow
from agent_relay.api.streaming.relay import Relay
from agent_relay.api.submission import ended
from agent_relay.shared.database.tables import TERMINAL, RunStatus
from agent_relay.shared.queue import RunQueue
from agent_relay.shared.rows import RunRow
from agent_relay.shared.schemas import Run, run_of

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
    response_description="The run, accepted; `Location` is its address.",
    responses=responses(404, 409, 413, 415),
)
async def create_run(
    new: NewQuery,
    submitter: Submit,
    queue: Queue,
    url_of: UrlOf,
    caller: Caller,
    key: IdempotencyKey,
    response: Response,
) -> Run:
    """Store a query; a worker takes it at once. Poll the run, or follow its stream."""
    asked = await submitter.ask(caller, new, key)
    response.headers.update({**asked.headers, "Location": url_of("runs", asked.run.id)})
    return await shown(queue, asked.run)


@router.get("", summary="List your runs", response_description="A page of runs.", responses=responses())
async def list_runs(
    database: Database,
    queue: Queue,
    caller: Caller,
    cursor: Cursor,
    thread_id: Annotated[UUID | None, Query(description="Only those of this thread.")] = None,
    batch_id: Annotated[UUID | None, Query(description="Only those of this batch.")] = None,
    schedule_id: Annotated[UUID | None, Query(description="Only those that this schedule has made.")] = None,
    status: Annotated[RunStatus | None, Query(description="Only those in this status.")] = None,
    limit: Limit = 20,
) -> Page[Run]:
    """The user's runs, newest first."""
    at, run_id = cursor.read(datetime.fromisoformat, UUID)
    found = await owned_runs(
        database,
        caller,
        thread_id=thread_id,
        batch_id=batch_id,
        schedule_id=schedule_id,
        status=status,
        before=(at, run_id),
        limit=limit,
    )
    positions = await _positions(queue, [row for row in found.rows if row.status == RunStatus.QUEUED])
    return cursor.page(
        found, limit, lambda row: run_of(row, positions.get(row.id)), lambda row: [row.created_at.isoformat(), row.id]
    )


@router.get(
    "/{run_id}",
    summary="Read a run",
    response_description="The run; `ETag` changes whenever it does.",
    response_model=Run,
    responses={**responses(404), 304: {"description": "It has not changed since the version in `If-None-Match`."}},
)
async def read_run(
    run_id: RunId,
    database: Database,
    queue: Queue,
    relay: RunRelay,
    calls: CallLimits,
    caller: Caller,
    wait: Wait = 0,
    if_none_match: Annotated[
        str | None, Header(alias="If-None-Match", description="The `ETag` of the answer before.")
    ] = None,
) -> Response:
    """The run as it is now; with `wait`, once it has ended or that many seconds have passed."""
    row = await owned_run(database, caller, run_id)
    if wait and row.status not in TERMINAL:
        with calls.opened(caller):
            await ended(relay, row, wait)
        row = await owned_run(database, caller, run_id)
    body = (await shown(queue, row)).model_dump_json().encode()
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {"ETag": etag, "Cache-Control": "no-cache"}
    known = {tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")}
    if etag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    return Response(body, media_type="application/json", headers=headers)


@router.get(
    "/{run_id}/steps",
    summary="Read the steps of a run",
    response_description="A page of steps.",
    response_model_exclude_unset=True,
    responses=responses(404),
)
async def list_steps(
    run_id: RunId, database: Database, caller: Caller, cursor: Cursor, limit: Limit = 20
) -> Page[Step]:
    """The model's text, reasoning and calls, and the results of its tools, in order; of a run of any age.

    While the run is under way, the steps that are stored so far: ask again for more.
    """
    exchange, number, index = (place or 0 for place in cursor.read(int, int, int))
    await owned_run(database, caller, run_id)
    found = await page_of_steps(database, run_id, (exchange, number, index), limit)
    return cursor.page(
        found, limit, lambda row: row.step, lambda row: [row.exchange, row.number + 1, row.step.index + 1]
    )


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
    database: Database,
    relay: RunRelay,
    calls: CallLimits,
    caller: Caller,
    cursor: LastSeen,
    _ticket: Annotated[
        str | None,
        Query(alias="ticket", description="Instead of the headers, see `stream-ticket`."),
    ] = None,
    deltas: Deltas = False,  # noqa: FBT002  (a query parameter)
    until: Until = None,
    accept: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> Response:
    """The events of a run of any age: from the start, or after the id that you saw last."""
    row = await owned_run(database, caller, run_id)
    with calls.open(caller).kept() as call:
        return follow(relay, call, row, accept=accept, cursor=cursor, deltas=deltas, until=until)


@router.post(
    "/{run_id}/stream-ticket",
    status_code=201,
    summary="Get a ticket for a stream",
    response_description="The ticket.",
    responses=responses(404),
)
async def create_ticket(
    run_id: RunId,
    database: Database,
    tickets: StreamTickets,
    settings: ServiceSettings,
    url_of: UrlOf,
    caller: Caller,
) -> StreamTicket:
    """For clients that cannot send headers, as a browser's `EventSource`: it opens this stream, nothing else."""
    row = await owned_run(database, caller, run_id)
    expires_at = row.deadline_at + timedelta(seconds=settings.log_retention_seconds)
    ticket, expires_at = tickets.sign(run_id, shown_key(caller), expires_at, caller.token)
    return StreamTicket(url=f"{url_of('runs', run_id)}/stream?ticket={ticket}", expires_at=expires_at)


@router.post(
    "/{run_id}/answers",
    summary="Answer the requests of a run that waits",
    response_description="The run; nothing was answered that was not before.",
    response_model=Run,
    responses={
        **responses(404, 409, 413, 415),
        202: {"model": Run, "description": "The run, which goes on once nothing of its `requests` is open."},
    },
)
async def answer(
    run_id: RunId,
    new: GivenAnswers,
    database: Database,
    queue: Queue,
    answerer: TakeAnswers,
    url_of: UrlOf,
    caller: Caller,
) -> Response:
    """Several calls may answer the `requests` of a run, each once: the same again changes nothing, another is 409."""
    await owned_run(database, caller, run_id)
    changed = await answerer.answer(caller, run_id, new.answers)
    row = await owned_run(database, caller, run_id)
    return JSONResponse(
        (await shown(queue, row)).model_dump(mode="json"),
        202 if changed else 200,
        {"Location": url_of("runs", run_id)},
    )


@router.post(
    "/{run_id}/messages",
    status_code=202,
    summary="Send a message into a run",
    response_description="The message, with its status; `Location` is the address of its run.",
    responses=responses(404, 409, 413, 415),
)
async def send_message(
    run_id: RunId,
    new: NewMessage,
    submitter: Submit,
    url_of: UrlOf,
    caller: Caller,
    key: IdempotencyKey,
    response: Response,
) -> SentMessage:
    """The agent gets it before its next request to the model; then the stream has `message_enqueued`.

    If a run in a thread ends first, the message is the thread's next run. Without a thread, 409 `run_ended` means that
    the run has ended; a message that came just before its end is lost with it, and its `status` shows that when the
    call is repeated with the same `Idempotency-Key`.
    """
    sent, headers = await submitter.send(caller, run_id, new, key)
    response.headers.update({**headers, "Location": url_of("runs", sent.run_id)})
    return sent


@router.post(
    "/{run_id}/cancel",
    summary="Cancel a run",
    response_description="The run, which has ended.",
    response_model=Run,
    responses={**responses(404), 202: {"model": Run, "description": "It still runs; its worker was notified."}},
)
async def cancel(
    run_id: RunId,
    database: Database,
    queue: Queue,
    relay: RunRelay,
    canceller: Cancel,
    calls: CallLimits,
    url_of: UrlOf,
    caller: Caller,
    wait: Wait = 5,
) -> Response:
    """200 and the run once it has ended, also if it already had; 202 if it has not within `wait` seconds.

    An answer that was stored before the request came through wins: look at `status`. Where no more of your calls may
    wait, this one does not wait.
    """
    row = await owned_run(database, caller, run_id)
    if row.status not in TERMINAL:
        try:
            with calls.opened(caller):
                row = await _cancel_and_wait(database, relay, canceller, caller, row, wait)
        except Refused:
            await canceller.cancel(run_id)
            row = await owned_run(database, caller, run_id)
    status = 200 if row.status in TERMINAL else 202
    return JSONResponse((await shown(queue, row)).model_dump(mode="json"), status, {"Location": url_of("runs", run_id)})


async def _cancel_and_wait(
    database: AsyncEngine, relay: Relay, canceller: Canceller, caller: Owner, row: RunRow, seconds: float
) -> RunRow:
    following = asyncio.create_task(ended(relay, row, seconds))
    await canceller.cancel(row.id)
    row = await owned_run(database, caller, row.id)
    if row.status in TERMINAL:
        following.cancel()
        return row
    await following
    return await owned_run(database, caller, row.id)


async def shown(queue: RunQueue, row: RunRow) -> Run:
    """Show a run, with its place in the queue."""
    queued = [row] if row.status == RunStatus.QUEUED else []
    return run_of(row, (await _positions(queue, queued)).get(row.id))


async def _positions(queue: RunQueue, rows: Sequence[RunRow]) -> dict[UUID, int]:
    return await queue.positions([row.queue_entry for row in rows])
