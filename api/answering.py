"""Answer the requests of a run that waits; once none is open, enqueue the run before all positions."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from agent_relay.api.json_schema import check_value
from agent_relay.api.problems import invalid
from agent_relay.api.requests.identity import Owner
from agent_relay.api.schemas import GivenAnswer
from agent_relay.shared import logs
from agent_relay.shared.away import skip_if_redis_away
from agent_relay.shared.clock import now
from agent_relay.shared.database.tables import RequestKind
from agent_relay.shared.errors import UnknownRequest
from agent_relay.shared.event_log import EventLog
from agent_relay.shared.failpoints import Failpoint, reached
from agent_relay.shared.queue import RunQueue
from agent_relay.shared.runs.wait import Answers, Given, answer, tell_answers
from agent_relay.shared.schemas import RunRequest
from agent_relay.shared.settings import Settings

log = logging.getLogger(__name__)


class Answerer:
    """Takes answers in."""

    def __init__(self, settings: Settings, database: AsyncEngine, queue: RunQueue, event_log: EventLog) -> None:
        self._database = database
        self._queue = queue
        self._event_log = event_log
        self._log_seconds = settings.log_retention_seconds

    async def answer(self, caller: Owner, run_id: UUID, given: Sequence[GivenAnswer]) -> bool:
        """Store answers to requests of the caller's run; False if all of them were stored before.

        Raises:
            Refused: 422, an answer does not fit its request, or there is no such request.
            Refusal: the run does not wait, or a request has another answer.
        """
        answers = [Given(one.request_id, one.content) for one in given]
        try:
            answered = await answer(self._database, run_id, answers, str(caller.user_id), _check)
        except UnknownRequest as unknown:
            raise invalid(f"/answers/{unknown.number}/request_id", "unknown_request", str(unknown)) from None
        if not answered.changed:
            return False
        logs.RUN_ID.set(run_id)
        log.info("answering.answered goes_on=%s", answered.ring is not None)
        reached(Failpoint.ANSWER_STORED)
        await self._tell(answered)
        if answered.ring is not None:
            await self._queue.ring([answered.ring])
        return True

    async def _tell(self, answered: Answers) -> None:
        until = answered.row.wait_until
        seconds = 0 if until is None else max((until - now()).total_seconds(), 0)
        with skip_if_redis_away(log, "answering.redis_away run_id=%s", answered.row.id):
            await tell_answers(self._event_log, answered, int(seconds) + self._log_seconds)


def _check(number: int, request: RunRequest, answered: Mapping[str, Any]) -> None:
    """See that an answer is of its request's kind, and that its value is valid.

    Raises:
        Refused: 422, it is not.
    """
    is_approval = request.kind == RequestKind.APPROVAL
    if is_approval != ("approve" in answered):
        takes = "`approve`" if is_approval else "`result` or `error`"
        raise invalid(f"/answers/{number}", "wrong_kind", f"This request is of kind {request.kind}: give {takes}")
    field = "args" if is_approval else "result"
    if field not in answered or request.value_schema is None:
        return
    check_value(answered[field], request.value_schema, f"/answers/{number}/{field}", "the tool's")
