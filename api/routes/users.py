"""Routes: everything that belongs to a user, at once."""

from __future__ import annotations

import base64
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Path, Response
from pydantic_core import to_json
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.types import Send

from agent_relay.api.batches.queries import owned_batches
from agent_relay.api.dependencies import CallLimits, Database, RunRelay, UrlOf
from agent_relay.api.erasing import DeletionRow, begin, owned_deletion
from agent_relay.api.files import owned_files
from agent_relay.api.openapi import EXPORT
from agent_relay.api.problems import responses
from agent_relay.api.queries import Place, owned_deliveries, owned_runs
from agent_relay.api.requests.identity import Caller, Owner
from agent_relay.api.requests.pagination import Rows
from agent_relay.api.requests.rate_limits import OpenCall
from agent_relay.api.requests.validation import StrictRoute
from agent_relay.api.routes.threads import message_of, owned_threads, page_of_messages, thread_of
from agent_relay.api.routes.webhooks import delivery_of
from agent_relay.api.schedules.rows import owned_schedules, schedule_of
from agent_relay.api.schemas import DataDeletion, file_of
from agent_relay.api.server.http_protocol import BREAK_OFF
from agent_relay.api.steps import page_of_steps, steps_of_runs
from agent_relay.api.streaming.relay import Relay
from agent_relay.api.streaming.response import Stream, send_frames
from agent_relay.api.streaming.sse_and_ndjson import Framing, one_line
from agent_relay.shared.away import DATABASE_ERRORS
from agent_relay.shared.clock import now
from agent_relay.shared.database import is_away, transact
from agent_relay.shared.database.typed_rows import Kind
from agent_relay.shared.errors import NotFound
from agent_relay.shared.files import FileRow, read_pieces
from agent_relay.shared.rows import RunRow
from agent_relay.shared.schemas import batch_of, run_of

log = logging.getLogger(__name__)

router = APIRouter(prefix="/users", tags=["users"], route_class=StrictRoute)

ROWS_AT_ONCE = 100

_LOOK = text("SELECT 1")
"""Read before the response begins: a database that is away is answered with 503, not with a connection that breaks."""

Line = tuple[str, dict[str, Any]]
"""The type of a line, and its other fields."""


@router.get(
    "/me/export",
    summary="Export everything of a user",
    response_class=Response,
    responses={**responses(), 200: EXPORT},
)
async def export(database: Database, relay: RunRelay, calls: CallLimits, caller: Caller) -> Response:
    """All that the service keeps for you: threads, messages, runs, steps, batches, schedules, webhooks and files.

    It is read while it is sent, so what changes meanwhile may be there as it was or as it is.
    """
    with calls.open(caller).kept() as call:
        await transact(database, _LOOK)
        headers = {"Content-Disposition": 'attachment; filename="export.jsonl"'}
        return Stream(Export(database, relay, call, caller), headers)


@router.delete(
    "/me/data",
    status_code=202,
    summary="Delete everything of a user",
    response_description="The deletion, which has begun; `Location` says where it tells when it is done.",
    responses=responses(),
)
async def delete_data(database: Database, url_of: UrlOf, caller: Caller, response: Response) -> DataDeletion:
    """Erase all that the service keeps for you: threads, runs, batches, schedules, files, deliveries of webhooks.

    Threads, batches and schedules are gone at once, and your tokens are void; runs that are under way are cancelled.
    The rest follows, and `completed` says that nothing is left. What you make after this call stays. What your runs
    used stays in the sums of your tenant.
    """
    row = await begin(database, caller)
    response.headers["Location"] = url_of("users/me/deletions", row.id)
    return _deletion(row)


@router.get(
    "/me/deletions/{deletion_id}",
    summary="Read how far a deletion is",
    response_description="The deletion.",
    responses=responses(404),
)
async def read_deletion(
    deletion_id: Annotated[UUID, Path(description="The deletion's id.")], database: Database, caller: Caller
) -> DataDeletion:
    """Whether everything is gone; for 30 days after it was."""
    return _deletion(await owned_deletion(database, caller, deletion_id))


def _deletion(row: DeletionRow) -> DataDeletion:
    status = "in_progress" if row.finished_at is None else "completed"
    return DataDeletion(id=row.id, status=status, created_at=row.created_at, finished_at=row.finished_at)


class Export:
    """Everything of a user, written for one reader; of each list, one page at a time is in memory."""

    def __init__(self, database: AsyncEngine, relay: Relay, call: OpenCall, caller: Owner) -> None:
        self.media_type = Framing.NDJSON.value
        self._database = database
        self._relay = relay
        self._call = call
        call.revoked = self.lose
        self._caller = caller
        self._lost = False
        self._counts = Counter[str]()

    def lose(self) -> None:
        """The reader is gone, or the key was revoked."""
        self._lost = True

    async def write(self, send: Send) -> None:
        """Write it; trouble of the service breaks the connection, so that nobody takes a part for the whole."""
        whole = False
        try:
            async for kind, fields in self._lines():
                if self._lost or self._relay.closing:
                    break
                self._counts[kind] += 1
                await send_frames(send, [_line(kind, fields)])
            else:
                await send_frames(send, [_line("end", {"counts": dict(self._counts)})])
                whole = True
        except DATABASE_ERRORS as away:
            if not is_away(away):
                raise
            log.warning("export.cut error=%r", away)
        finally:
            self._call.close()
        await send({"type": "http.response.body", "body": b"", "more_body": False} if whole else {"type": BREAK_OFF})

    async def _lines(self) -> AsyncGenerator[Line]:
        database, caller = self._database, self._caller
        yield "user", {"id": caller.user_id, "exported_at": now()}
        async for thread in _all(
            lambda before: owned_threads(database, caller, before=before, limit=ROWS_AT_ONCE),
            lambda row: (row.created_at, row.id),
        ):
            yield "thread", {"data": thread_of(thread)}
            async for line in self._messages(thread.id):
                yield line
        async for line in self._runs_with_steps():
            yield line
        async for line in self._lists():
            yield line

    async def _runs_with_steps(self) -> AsyncGenerator[Line]:
        async for runs in _pages(self._runs, lambda row: (row.created_at, row.id)):
            steps, have_more = await steps_of_runs(self._database, [run.id for run in runs])
            for run in runs:
                yield "run", {"data": run_of(run)}
                for step in [] if run.id in have_more else steps[run.id]:
                    yield "step", {"run_id": run.id, "data": step}
                if run.id in have_more:
                    async for line in self._steps(run.id):
                        yield line

    async def _lists(self) -> AsyncGenerator[Line]:
        database, caller = self._database, self._caller
        async for batch in _all(
            lambda before: owned_batches(database, caller, before=before, limit=ROWS_AT_ONCE),
            lambda row: (row.created_at, row.id),
        ):
            yield "batch", {"data": batch_of(batch)}
        async for schedule in _all(
            lambda before: owned_schedules(database, caller, before=before, limit=ROWS_AT_ONCE),
            lambda row: (row.created_at, row.id),
        ):
            yield "schedule", {"data": schedule_of(schedule)}
        async for delivery in _all(
            lambda before: owned_deliveries(database, caller, status=None, before=before, limit=ROWS_AT_ONCE),
            lambda row: (row.created_at, row.id),
        ):
            yield "webhook_delivery", {"data": delivery_of(delivery)}
        async for file in _all(
            lambda before: owned_files(database, caller, before=before, limit=ROWS_AT_ONCE),
            lambda row: (row.created_at, row.id),
        ):
            yield "file", {"data": file_of(file)}
            async for line in self._content(file):
                yield line

    async def _runs(self, before: Place) -> Rows[RunRow]:
        return await owned_runs(
            self._database,
            self._caller,
            thread_id=None,
            batch_id=None,
            schedule_id=None,
            status=None,
            before=before,
            limit=ROWS_AT_ONCE,
        )

    async def _messages(self, thread_id: UUID) -> AsyncGenerator[Line]:
        after: tuple[int, int] | None = None
        while True:
            found = await page_of_messages(self._database, thread_id, after, ROWS_AT_ONCE)
            for row in found.rows:
                yield "message", {"thread_id": thread_id, "data": message_of(row)}
                after = row.position, row.place
            if len(found.rows) <= ROWS_AT_ONCE and not found.ended_early:
                return

    async def _steps(self, run_id: UUID) -> AsyncGenerator[Line]:
        place = (0, 0, 0)
        while True:
            found = await page_of_steps(self._database, run_id, place, ROWS_AT_ONCE)
            for row in found.rows:
                yield "step", {"run_id": run_id, "data": row.step}
                place = row.exchange, row.number + 1, row.step.index + 1
            if len(found.rows) <= ROWS_AT_ONCE and not found.ended_early:
                return

    async def _content(self, file: FileRow) -> AsyncGenerator[Line]:
        try:
            async for piece in read_pieces(self._database, file):
                yield "file_content", {"file_id": file.id, "base64": base64.b64encode(piece).decode()}
        except NotFound:
            yield "file_gone", {"file_id": file.id}


async def _all(page: Callable[[Place], Awaitable[Rows[Kind]]], place: Callable[[Kind], Place]) -> AsyncGenerator[Kind]:
    """Read a list to its end, page by page; `place` says where a row stands."""
    async for rows in _pages(page, place):
        for row in rows:
            yield row


async def _pages(
    page: Callable[[Place], Awaitable[Rows[Kind]]], place: Callable[[Kind], Place]
) -> AsyncGenerator[Sequence[Kind]]:
    before: Place = (None, None)
    while True:
        found = await page(before)
        yield found.rows
        if len(found.rows) <= ROWS_AT_ONCE and not found.ended_early:
            return
        before = place(found.rows[-1])


def _line(kind: str, fields: dict[str, Any]) -> bytes:
    return one_line(to_json({"type": kind, **fields})) + b"\n"
