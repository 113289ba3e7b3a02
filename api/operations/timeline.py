"""The timeline of one run, for operators: its events with their times, and no queries or answers."""

from __future__ import annotations

from datetime import datetime
from typing import Any, cast
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from agent_relay.shared.away import REDIS_ERRORS
from agent_relay.shared.database import transact
from agent_relay.shared.errors import NotFound
from agent_relay.shared.event_log import Entry, EventLog
from agent_relay.shared.schemas import Resource, usage_of

_RUN = text("""
    SELECT runs.id, runs.tenant, runs.agent_type, runs.pool, lane, runs.status, attempt, crashes, begun, ring, batch_id,
        thread_id, retry_of, requeued_as, runs.created_at, due_at, rung_at, runs.started_at, finished_at, deadline_at,
        cancel_requested_at, end_told, error, usage, last_entry,
        workers.host AS worker_host, workers.pid AS worker_pid, workers.version AS worker_version,
        workers.ended_at AS worker_ended_at
    FROM runs LEFT JOIN workers ON workers.id = worker_id WHERE runs.id = :id
""")

_DELIVERIES = text("""
    SELECT type, status, attempts, occurred_at, last_attempt_at, response_status, error FROM webhook_deliveries
    WHERE resource_id = :id ORDER BY occurred_at LIMIT 20
""")


class Moment(Resource):
    """One thing that happened to a run."""

    what: str
    """accepted, due, enqueued, claimed, attempt, reasoning, tool, text, waiting, cancel, ended, published, webhook."""
    at: datetime | None
    """When; null where only the order is known."""
    detail: str


class Story(Resource):
    """The events of a run, in order."""

    run_id: UUID
    tenant: str
    agent_type: str
    queue: str
    """Pool and priority."""
    status: str
    attempt: int
    crashes: int
    worker: str | None
    """Host and process of the last worker that claimed it."""
    batch_id: UUID | None
    thread_id: UUID | None
    retry_of: UUID | None
    requeued_as: UUID | None
    deadline_at: datetime
    error: dict[str, Any] | None
    usage: dict[str, float]
    log_kept: bool
    """Whether its event log is there, which holds the attempts and the tools."""
    moments: list[Moment]


async def story(database: AsyncEngine, event_log: EventLog, run_id: UUID) -> Story:
    """Tell the story of a run, from its row, its event log as long as that is kept, and its webhooks.

    Raises:
        NotFound: there is no such run.
    """
    rows = await transact(database, _RUN, {"id": run_id})
    if not rows:
        raise NotFound("run")
    run = rows[0]
    deliveries = await transact(database, _DELIVERIES, {"id": run_id})
    try:
        entries = await event_log.read(run_id)
    except REDIS_ERRORS:
        entries = []
    worker = None if run.worker_host is None else f"{run.worker_host}, process {run.worker_pid}, {run.worker_version}"
    return Story(
        run_id=run.id,
        tenant=run.tenant,
        agent_type=run.agent_type,
        queue=f"{run.pool} {run.lane}",
        status=run.status,
        attempt=run.attempt,
        crashes=run.crashes,
        worker=worker,
        batch_id=run.batch_id,
        thread_id=run.thread_id,
        retry_of=run.retry_of,
        requeued_as=run.requeued_as,
        deadline_at=run.deadline_at,
        error=_error_of(run),
        usage=usage_of(run.usage),
        log_kept=bool(entries),
        moments=[*_before(run, worker), *_attempts(entries), *_after(run, deliveries)],
    )


def _error_of(run: Any) -> dict[str, Any] | None:
    return cast("dict[str, Any]", run.error) if isinstance(run.error, dict) else None


def _before(run: Any, worker: str | None) -> list[Moment]:
    """Tell what lies before the first attempt."""
    moments = [Moment(what="accepted", at=run.created_at, detail=f"by {run.tenant}, for {run.agent_type}")]
    if run.due_at > run.created_at:
        moments.append(Moment(what="due", at=run.due_at, detail="not before this time"))
    again = "" if run.ring == 1 else f", {run.ring} times in all; this is the last"
    moments.append(Moment(what="enqueued", at=run.rung_at, detail=f"in {run.pool} {run.lane}{again}"))
    if run.started_at is not None:
        on = "" if run.attempt != 1 or worker is None else f", by {worker}"
        moments.append(Moment(what="claimed", at=run.started_at, detail=f"for the first time{on}"))
    return sorted(moments, key=lambda moment: moment.at or run.created_at)


def _attempts(entries: list[Entry]) -> list[Moment]:
    """Tell of attempts, tools and text, in the order of the log; it holds no times."""
    moments: list[Moment] = []
    text_entries = 0
    for entry in entries:
        if entry.event is None and not entry.is_end:
            text_entries += 1
            continue
        _end_text(moments, text_entries)
        text_entries = 0
        match entry.event:
            case "message_started":
                detail = f"attempt {entry.id.attempt}: {entry.body['reason'].replace('_', ' ')}"
                moments.append(Moment(what="attempt", at=None, detail=detail))
            case "tool_call":
                moments.append(Moment(what="tool", at=None, detail=f"{entry.body['tool_name']} is called"))
            case "tool_result":
                moments.append(Moment(what="tool", at=None, detail=f"{entry.body['tool_name']} has returned"))
            case "reasoning_delta":
                if not moments or moments[-1].what != "reasoning":
                    moments.append(Moment(what="reasoning", at=None, detail="the model thinks"))
            case str(other) if not entry.is_end:
                moments.append(Moment(what=other, at=None, detail=""))
            case _:
                pass
    _end_text(moments, text_entries)
    return moments


def _end_text(moments: list[Moment], entries: int) -> None:
    if entries:
        times = "once" if entries == 1 else f"{entries:,} times"
        moments.append(Moment(what="text", at=None, detail=f"the answer grew {times}"))


def _after(run: Any, deliveries: list[Any]) -> list[Moment]:
    """Tell what lies behind the last attempt."""
    moments: list[Moment] = []
    if run.cancel_requested_at is not None:
        moments.append(Moment(what="cancel", at=run.cancel_requested_at, detail="was asked for"))
    if run.finished_at is not None:
        code = f", {error['code']}" if (error := _error_of(run)) and "code" in error else ""
        moments.append(Moment(what="ended", at=run.finished_at, detail=f"{run.status}{code}"))
        published = "the end stands in the event log" if run.end_told else "not yet: the sweeper will"
        moments.append(Moment(what="published", at=None, detail=published))
    for delivery in deliveries:
        said = delivery.error or (f"HTTP {delivery.response_status}" if delivery.response_status else "not tried yet")
        detail = f"{delivery.type}, {delivery.status} after {delivery.attempts}: {said}"
        moments.append(Moment(what="webhook", at=delivery.last_attempt_at or delivery.occurred_at, detail=detail))
    return moments
