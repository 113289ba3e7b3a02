"""The one job there is: answer a run. Claim, equip, announce, answer, store, tell the end. Start reading here."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, TypeVar
from uuid import UUID

from pydantic_ai.exceptions import (
    ContentFilterError,
    FallbackExceptionGroup,
    ModelAPIError,
    RunCancelled,
    UnexpectedModelBehavior,
    UsageLimitExceeded,
)
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from shared import logs
from shared.database import is_away, is_ours
from shared.failpoints import Failpoint, reached
from shared.failures import FailureCode, failure
from shared.lanes import Lane, Lanes, Ring
from shared.metrics import ATTEMPTS, PICK_UP_SECONDS, run_ended
from shared.runs import (
    Claim,
    Ending,
    Quota,
    claim,
    claim_many,
    earlier_exchanges,
    ended_row,
    finish,
    finish_many,
    give_back,
    is_suspect,
    next_in_thread,
    next_in_threads,
)
from shared.settings import Settings
from shared.tables import RunStatus
from worker.answer import Answered, WaitsForAnswer
from worker.attempt import Attempt, Stop
from worker.batch_ends import BatchEnds
from worker.budget import OverBudget
from worker.catalog import Offer, RunScope
from worker.group_commit import GroupCommit
from worker.history import history_of, transcript_of
from worker.isolation import Isolation
from worker.model_errors import failure_of, for_operator
from worker.publisher import Publisher
from worker.roster import Roster
from worker.storable import storable

log = logging.getLogger(__name__)

Result = TypeVar("Result")

RETRY_SECONDS = 0.5
"""Between two tries to reach PostgreSQL with a result in hand."""
AWAY_ATTEMPTS = 5
"""From this one on, a database that breaks under an agent is taken for the agent's doing."""
LARGE_END = 256 << 10
"""Characters of an output and a transcript from which on an end is stored alone."""
PASS_ON_SECONDS = 1.0
"""How long a run of an agent that is not served here waits before it is offered again."""


class Stopped(Exception):
    """The attempt was stopped; what there is of the answer stays."""


class Job:
    """Answers runs, any number at once."""

    def __init__(
        self,
        settings: Settings,
        database: AsyncEngine,
        lanes: Lanes,
        publisher: Publisher,
        roster: Roster,
        batch_ends: BatchEnds,
        isolation: Isolation | None,
        offers: dict[str, Offer],
    ) -> None:
        self._settings = settings
        self._database = database
        self._lanes = lanes
        self._publisher = publisher
        self._roster = roster
        self._batch_ends = batch_ends
        self._isolation = isolation
        """Where suspects are answered; None in the process that is made for one."""
        self._offers = offers
        self._quota = Quota.of(settings)
        isolated = isolation is None
        self._claims = GroupCommit[tuple[UUID, UUID], Claim | None](
            lambda asked: claim(database, *asked, isolated=isolated),
            lambda asked: claim_many(database, asked, isolated=isolated),
            lambda asked: asked[0],
        )
        self._ends = GroupCommit[tuple[Claim, Ending], Any](
            lambda asked: finish(database, *asked),
            lambda asked: finish_many(database, asked),
            lambda asked: asked[0].run_id,
        )
        self._next_in_threads = GroupCommit[UUID, Ring | None](
            lambda thread_id: next_in_thread(database, thread_id),
            lambda thread_ids: next_in_threads(database, thread_ids),
            lambda thread_id: thread_id,
        )

    async def answer(self, run_id: UUID, worker_id: UUID) -> None:
        """Answer one run, if it is to be had."""
        if run_id in self._roster:
            return
        logs.RUN_ID.set(run_id)  # Of the task that answers this run and no other.
        try:
            with self._roster.taking(run_id):
                await self._answer(run_id, worker_id)
        except SQLAlchemyError as error:
            if not is_away(error):
                raise
            log.warning("job.gave_up run_id=%s error=%r", run_id, error)  # A sweeper sees to it.

    async def _answer(self, run_id: UUID, worker_id: UUID) -> None:
        reached(Failpoint.RUN_POPPED)
        claimed = await self._claim(run_id, worker_id)
        if claimed is None:
            if self._isolation is not None and await is_suspect(self._database, run_id):
                await self._isolation.answer(run_id)
            return
        reached(Failpoint.RUN_CLAIMED)
        logs.BATCH_ID.set(claimed.batch_id)
        ATTEMPTS.labels(claimed.agent_type, claimed.begun).inc()
        PICK_UP_SECONDS.labels(Lane.BATCH if claimed.batch_id else Lane.INTERACTIVE).observe(claimed.waited_seconds)
        offer = self._offers.get(claimed.agent_type)
        if offer is None:
            await self._pass_on(claimed)
            return
        attempt = Attempt(claimed, offer, self._settings, self._publisher)
        self._roster.begin(attempt)
        attempt.telling.tell({"event": "message_started", "reason": claimed.begun})
        ending = await self._outcome(attempt)
        attempt.count()
        await attempt.telling.flushed()
        reached(Failpoint.RUN_FLUSHED)
        await self._conclude(attempt, ending)

    async def _claim(self, run_id: UUID, worker_id: UUID) -> Claim | None:
        """Claim the run; while the database is away, for as long as this worker's lease can last without it."""
        return await self._patiently(run_id, self._settings.lease_seconds, lambda: self._take(run_id, worker_id))

    async def _take(self, run_id: UUID, worker_id: UUID) -> Claim | None:
        if not self._quota:
            return await self._claims.ask((run_id, worker_id))
        return await claim(self._database, run_id, worker_id, isolated=self._isolation is None, quota=self._quota)

    async def _outcome(self, attempt: Attempt) -> Ending | None:
        """Have the agent answer, and say how that ended; None where the run is not to end here."""
        try:
            answered = await self._ask(attempt)
            transcript = transcript_of(answered.messages, self._settings.max_history_bytes)
        except asyncio.CancelledError:
            raise  # This job is cancelled; where an agent raises it, `_ask` raises `Stopped`.
        except BaseException as error:  # noqa: BLE001  (whatever an agent raises: a panic in Rust is no Exception)
            try:
                return self._broken_off(attempt, error)
            except BaseException:  # noqa: BLE001  (its own text or attributes raise)
                return self._raised(attempt, error)
        return attempt.ending(RunStatus.SUCCEEDED, answered.text, transcript=transcript, model=answered.model)

    def _broken_off(self, attempt: Attempt, error: BaseException) -> Ending | None:
        """Say what becomes of a run whose agent did not answer."""
        match error:
            case RunCancelled() | Stopped():
                return self._cut(attempt, error)
            case UsageLimitExceeded():
                return attempt.failed(FailureCode.USAGE_LIMIT_EXCEEDED, str(error))
            case OverBudget(code=code):
                return attempt.failed(code, str(error))
            case ModelAPIError() | FallbackExceptionGroup() | ContentFilterError() | WaitsForAnswer():
                return self._refused(attempt, error)
            case UnexpectedModelBehavior():
                return attempt.failed(FailureCode.OUTPUT_INVALID, f"The model gave no valid output: {error.message}")
            case _:
                return self._raised(attempt, error)

    def _refused(
        self, attempt: Attempt, error: ModelAPIError | FallbackExceptionGroup | ContentFilterError | WaitsForAnswer
    ) -> Ending:
        """Say that the run failed for what its provider said, or for want of somebody's answer; the log says more."""
        claimed = attempt.claimed
        log.warning("job.refused run_id=%s agent=%s error=%s", claimed.run_id, claimed.agent_type, for_operator(error))
        if isinstance(error, WaitsForAnswer):
            return attempt.failed(FailureCode.AGENT_ERROR, str(error))
        return attempt.failed(*failure_of(error))

    def _raised(self, attempt: Attempt, error: BaseException) -> Ending | None:
        """Say what becomes of a run whose agent raised: it failed, unless it was our own database that broke."""
        if is_ours(error) and attempt.claimed.attempt < AWAY_ATTEMPTS:
            log.warning("job.database_away run_id=%s", attempt.claimed.run_id)
            attempt.stopped = attempt.stopped or Stop.DATABASE_AWAY
            return self._cut(attempt, Stopped())
        claimed = attempt.claimed
        log.error("job.agent_error run_id=%s agent=%s", claimed.run_id, claimed.agent_type, exc_info=error)
        return attempt.failed(FailureCode.AGENT_ERROR, f"The agent raised {type(error).__name__}.")

    async def _ask(self, attempt: Attempt) -> Answered:
        """Equip the agent and have it answer; one that will not stop when it is told to is left behind."""
        asking = asyncio.create_task(self._equip_and_ask(attempt))
        deadline = asyncio.get_running_loop().call_later(attempt.claimed.seconds_left, attempt.stop, Stop.DEADLINE)
        await asyncio.wait([asking, attempt.unwound], return_when=asyncio.FIRST_COMPLETED)
        deadline.cancel()
        if not asking.done():
            log.warning("job.left_behind run_id=%s agent=%s", attempt.claimed.run_id, attempt.claimed.agent_type)
            asking.cancel()
            raise Stopped
        if asking.cancelled():
            raise Stopped
        return asking.result()

    async def _equip_and_ask(self, attempt: Attempt) -> Answered:
        claimed = attempt.claimed
        most_bytes = self._settings.max_history_bytes
        exchanges = await self._while_it_lasts(claimed, lambda: earlier_exchanges(self._database, claimed, most_bytes))
        history = history_of(exchanges)
        scope = RunScope(
            tenant=claimed.tenant,
            user_id=claimed.user_id,
            thread_metadata=claimed.thread_metadata,
            run_metadata=claimed.metadata,
            run_id=claimed.run_id,
            attempt=claimed.attempt,
            database=self._database,
        )
        return await attempt.answer.write(claimed.query, history, await attempt.offer.equip(scope))

    def _cut(self, attempt: Attempt, cut: RunCancelled | Stopped) -> Ending | None:
        """Say what becomes of a run whose attempt was stopped: what there is is kept, or it is left to the next."""
        match attempt.stopped:
            case Stop.CANCELLED:
                messages = attempt.answer.whole(cut.new_messages()) if isinstance(cut, RunCancelled) else None
                most_bytes = self._settings.max_history_bytes
                return attempt.cancelled(None if messages is None else transcript_of(messages, most_bytes))
            case Stop.DEADLINE:
                return attempt.failed(FailureCode.DEADLINE_EXCEEDED)
            case Stop.STOPPING | Stop.NOT_MINE | Stop.DATABASE_AWAY:
                return None
            case None:
                return attempt.failed(FailureCode.AGENT_ERROR, "The agent cancelled its own run.")

    async def _conclude(self, attempt: Attempt, ending: Ending | None) -> None:
        """Store the end, or give the run back; what is not this attempt's any more is left alone."""
        if ending is None and (begun := attempt.begun_next) is not None:
            ring = await self._while_it_lasts(
                attempt.claimed, lambda: give_back(self._database, attempt.claimed, attempt.usage, begun)
            )
            if ring is not None:
                reached(Failpoint.RUN_GIVEN_BACK)
                await self._lanes.ring([ring])
                return
            ending = attempt.cancelled()  # It would have been given back, had nobody asked to cancel it.
        if ending is not None:  # What came last has its number only now that everything was told.
            await self._store(attempt.claimed, replace(ending, last_entry=attempt.telling.last_entry))

    async def _store(self, claimed: Claim, ending: Ending) -> None:
        """Store the end, tell it, and call for the thread's next run."""
        row = await self._finish(claimed, ending)
        if row is None:
            log.warning("job.fenced run_id=%s attempt=%d", claimed.run_id, claimed.attempt)
            return
        run_ended(row)
        reached(Failpoint.RUN_STORED)
        try:
            await self._publisher.tell_end(row, self._settings.log_retention_seconds)
            reached(Failpoint.END_TOLD)
            self._roster.end_told(claimed.run_id)
        except (RedisError, OSError) as away:
            log.warning("job.end_untold run_id=%s error=%r", claimed.run_id, away)
        except Exception:
            log.exception(
                "job.end_untold run_id=%s", claimed.run_id
            )  # It has ended: what follows is done all the same.
        if claimed.batch_id:
            self._batch_ends.note(claimed.batch_id, capped=claimed.batch_is_capped)
        passed_over = await self._while_it_lasts(
            claimed, lambda: self._quota.release(self._database, claimed.run_id, claimed.tenant)
        )
        await self._lanes.ring(passed_over)
        if (thread_id := claimed.thread_id) is not None:
            ring = await self._while_it_lasts(claimed, lambda: self._next_in_threads.ask(thread_id))
            await self._lanes.ring([] if ring is None else [ring])

    async def _finish(self, claimed: Claim, ending: Ending) -> Any | None:
        """Offer the end until it is stored or refused; whether a commit whose reply was lost came through is read.

        What the database will not take is left out: then the run ends with nothing but the fact.
        """
        try:
            row = await self._while_it_lasts(claimed, lambda: self._end(claimed, ending))
        except Exception as error:
            if is_away(error):
                raise
            log.exception("job.end_not_taken run_id=%s status=%s", claimed.run_id, ending.status)
            bare = _bare(ending, error)
            row = await self._while_it_lasts(claimed, lambda: finish(self._database, claimed, bare))
        return row or await self._while_it_lasts(claimed, lambda: ended_row(self._database, claimed))

    async def _end(self, claimed: Claim, ending: Ending) -> Any | None:
        """Store the end together with others; a large one alone: to escape it in an array would block this process."""
        if len(ending.text or "") + len(ending.transcript or "") > LARGE_END:
            return await finish(self._database, claimed, ending)
        return await self._ends.ask((claimed, ending))

    async def _while_it_lasts(self, claimed: Claim, call: Callable[[], Awaitable[Result]]) -> Result:
        """Wait for a database that is away, as long as the run has time."""
        return await self._patiently(claimed.run_id, claimed.seconds_left, call)

    async def _patiently(self, run_id: UUID, seconds: float, call: Callable[[], Awaitable[Result]]) -> Result:
        loop = asyncio.get_running_loop()
        give_up = loop.time() + seconds
        while True:
            try:
                return await call()
            except SQLAlchemyError as error:
                if not is_away(error) or loop.time() > give_up:
                    raise
                log.warning("job.database_away run_id=%s", run_id)
                await asyncio.sleep(RETRY_SECONDS)

    async def _pass_on(self, claimed: Claim) -> None:
        """Leave the run to a worker that serves its agent."""
        log.warning("job.not_served run_id=%s agent=%s", claimed.run_id, claimed.agent_type)
        await give_back(self._database, claimed, claimed.usage, claimed.begun, delay_seconds=PASS_ON_SECONDS)


def _bare(ending: Ending, error: Exception) -> Ending:
    """Say that a run ended, with nothing of what its agent, its model or its tools said."""
    if ending.status is RunStatus.CANCELLED:
        return replace(ending, text=None, transcript=None, model=None)
    message = f"The end of the run could not be stored: {type(error).__name__}."
    return Ending(
        status=RunStatus.FAILED,
        text=None,
        last_entry=ending.last_entry,
        usage=ending.usage,
        error=storable(failure(FailureCode.AGENT_ERROR, message)),
    )
