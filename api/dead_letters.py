"""Routes for operators: the runs that failed although asking again may help, of all tenants."""

from __future__ import annotations

import logging
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query

from api.asking import check_deadline
from api.dependencies import Parts, Service
from api.identity import Operator
from api.pages import Cursor, Limit, Page
from api.problems import responses
from api.resources import DeadLetter, Requeue, Requeued, RequeuedRuns
from api.strict import OperatorRoute
from shared.errors import NotFound, UnknownAgent
from shared.failures import FailureCode
from shared.resources import RunError
from shared.runs import dead_letters, requeue

log = logging.getLogger(__name__)

router = APIRouter(prefix="/operator/dead-letters", tags=["operator"], route_class=OperatorRoute)


@router.get("", summary="List dead letters", response_description="A page of dead letters.", responses=responses())
async def list_dead_letters(
    service: Service,
    _operator: Operator,
    cursor: Cursor,
    code: Annotated[FailureCode | None, Query(description="Only those that failed for this reason.")] = None,
    limit: Limit = 20,
) -> Page[DeadLetter]:
    """Runs that failed for a reason that may have gone, and that nobody has had asked again; the last first."""
    at, run_id = cursor.read(datetime.fromisoformat, UUID)
    rows = await dead_letters(service.database, code=code, before=(at, run_id), limit=limit + 1)
    return cursor.page(rows, limit, _dead_letter, lambda row: [row.finished_at.isoformat(), row.id])


@router.post(
    "/requeue",
    status_code=202,
    summary="Have dead letters asked again",
    response_description="What became of each.",
    responses=responses(413, 415),
)
async def requeue_dead_letters(new: Requeue, service: Service, operator: Operator) -> RequeuedRuns:
    """Each becomes a new run of its user, in its thread behind all others.

    Neither asking twice nor two operators at once make a second one: after an error, ask the same again.
    """
    if new.deadline_s is not None:
        check_deadline(service.settings, new.deadline_s)
    return RequeuedRuns(items=[await _requeue(service, operator, run_id, new.deadline_s) for run_id in new.run_ids])


async def _requeue(service: Parts, operator: str, run_id: UUID, deadline_seconds: float | None) -> Requeued:
    try:
        requeued = await requeue(service.database, run_id, deadline_seconds)
    except NotFound:
        return Requeued(run_id=run_id, outcome="not_found", requeued_as=None)
    except UnknownAgent:
        return Requeued(run_id=run_id, outcome="unknown_agent", requeued_as=None)
    if requeued.ring is None:
        return Requeued(run_id=run_id, outcome="already_requeued", requeued_as=requeued.run_id)
    log.info("dead_letters.requeued run_id=%s as=%s operator=%s", run_id, requeued.run_id, operator)
    await service.lanes.ring([requeued.ring])
    return Requeued(run_id=run_id, outcome="requeued", requeued_as=requeued.run_id)


def _dead_letter(row: Any) -> DeadLetter:
    return DeadLetter(
        run_id=row.id,
        tenant=row.tenant,
        user_id=row.user_id,
        thread_id=row.thread_id,
        agent_type=row.agent_type,
        error=RunError(**row.error),
        attempt=row.attempt,
        crashes=row.crashes,
        created_at=row.created_at,
        finished_at=row.finished_at,
    )
