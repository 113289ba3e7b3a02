"""Routes for operators: the runs that failed although asking again may help, of all tenants."""

from __future__ import annotations

import logging
from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query
from sqlalchemy.ext.asyncio import AsyncEngine

from agent_relay.api.dependencies import Database, Queue, ServiceSettings
from agent_relay.api.problems import operator_responses
from agent_relay.api.requests.identity import Operator
from agent_relay.api.requests.pagination import Cursor, Limit, Page, Rows
from agent_relay.api.requests.validation import OperatorRoute
from agent_relay.api.schemas import DeadLetter, Requeue, Requeued, RequeuedRuns
from agent_relay.api.submission import check_deadline
from agent_relay.shared.errors import NotFound, UnknownAgent
from agent_relay.shared.failure_codes import FailureCode
from agent_relay.shared.queue import RunQueue
from agent_relay.shared.runs.dead_letters import DeadLetterRow, dead_letters, requeue
from agent_relay.shared.schemas import error_of

log = logging.getLogger(__name__)

router = APIRouter(prefix="/operator/dead-letters", tags=["operator"], route_class=OperatorRoute)


@router.get(
    "", summary="List dead letters", response_description="A page of dead letters.", responses=operator_responses()
)
async def list_dead_letters(
    database: Database,
    _operator: Operator,
    cursor: Cursor,
    code: Annotated[FailureCode | None, Query(description="Only those that failed for this reason.")] = None,
    limit: Limit = 20,
) -> Page[DeadLetter]:
    """Runs that failed for a reason that may be gone, and that were not requeued; the last first."""
    at, run_id = cursor.read(datetime.fromisoformat, UUID)
    rows = await dead_letters(database, code=code, before=(at, run_id), limit=limit + 1)
    return cursor.page(Rows(rows), limit, _dead_letter, lambda row: [row.finished_at.isoformat(), row.id])


@router.post(
    "/requeue",
    status_code=202,
    summary="Have dead letters asked again",
    response_description="What became of each.",
    responses=operator_responses(413, 415),
)
async def requeue_dead_letters(
    new: Requeue, database: Database, queue: Queue, settings: ServiceSettings, operator: Operator
) -> RequeuedRuns:
    """Each becomes a new run of its user, in its thread behind all others.

    Neither asking twice nor two operators at once make a second one: after an error, ask the same again.
    """
    if new.deadline_s is not None:
        check_deadline(settings, new.deadline_s)
    return RequeuedRuns(
        items=[await _requeue(database, queue, operator, run_id, new.deadline_s) for run_id in new.run_ids]
    )


async def _requeue(
    database: AsyncEngine, queue: RunQueue, operator: str, run_id: UUID, deadline_seconds: float | None
) -> Requeued:
    try:
        requeued = await requeue(database, run_id, deadline_seconds)
    except NotFound:
        return Requeued(run_id=run_id, outcome="not_found", requeued_as=None)
    except UnknownAgent:
        return Requeued(run_id=run_id, outcome="unknown_agent", requeued_as=None)
    if requeued.ring is None:
        return Requeued(run_id=run_id, outcome="already_requeued", requeued_as=requeued.run_id)
    log.info("dead_letters.requeued run_id=%s as=%s operator=%s", run_id, requeued.run_id, operator)
    await queue.ring([requeued.ring])
    return Requeued(run_id=run_id, outcome="requeued", requeued_as=requeued.run_id)


def _dead_letter(row: DeadLetterRow) -> DeadLetter:
    return DeadLetter(
        run_id=row.id,
        tenant=row.tenant,
        user_id=row.user_id,
        thread_id=row.thread_id,
        agent_type=row.agent_type,
        error=error_of(row.error),
        attempt=row.attempt,
        crashes=row.crashes,
        created_at=row.created_at,
        finished_at=row.finished_at,
    )
