"""One attempt at a run: claim, equip, announce, answer, store, announce the end. Start reading the worker here."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from enum import Enum, auto
from typing import Any
from uuid import UUID

from pydantic_ai import CancellationToken
from pydantic_ai.exceptions import (
    FallbackExceptionGroup,
    ModelAPIError,
    RunCancelled,
    UnexpectedModelBehavior,
    UsageLimitExceeded,
)
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.database import is_away
from shared.event_log import EventLog
from shared.failures import FailureCode, failure
from shared.lanes import Lanes
from shared.runs import Claim, Ending, claim, earlier_exchanges, ended_row, finish, give_back, let_go, next_in_thread
from shared.settings import Settings
from shared.tables import Begun, RunStatus
from worker.answer import Answer, Answered
from worker.catalog import Offer, RunScope
from worker.history import history_of, transcript_of
from worker.lease import Held, Row
from worker.publisher import Publisher, Telling

log = logging.getLogger(__name__)

RETRY_SECONDS = 0.5
"""Between two tries to reach PostgreSQL with a result in hand."""
UNWIND_SECONDS = 5.0
"""How long an agent that was told to stop may take; after that the run ends without it."""
PASS_ON_SECONDS = 1.0
"""How long a run of an agent that is not served here waits before it is offered again."""


class Stop(Enum):
    """Why an attempt is stopped before its agent has answered; the first reason counts."""

    CANCELLED = auto()
    """The caller no longer wants the answer."""
    DEADLINE = auto()
    """The time of the run is over."""
    STOPPING = auto()
    """The worker stops: another one is to answer."""
    NOT_MINE = auto()
    """The run is somebody else's by now, or may be."""


class Stopped(Exception):
    """The attempt was stopped; what there is of the answer stays."""


class Attempt:
    """A claimed run in the hands of its agent."""

    def __init__(self, claimed: Claim, offer: Offer, settings: Settings, publisher: Publisher) -> None:
        self.claimed = claimed
        self.offer = offer
        self.stopped: Stop | None = None
        self.unwound: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done once an agent that was told to stop has had its time."""
        self._token = CancellationToken()
        self.telling: Telling = publisher.begin(
            claimed.run_id,
            claimed.attempt,
            ttl_seconds=int(claimed.seconds_left) + settings.log_retention_seconds,
            fenced=lambda: self.stop(Stop.NOT_MINE),
        )
        self.answer = Answer(
            offer,
            self.telling,
            self._token,
            partial_interval_seconds=settings.partial_interval_seconds,
            tool_event_bytes=settings.tool_event_bytes,
            model_timeout_seconds=settings.model_timeout_seconds,
        )

    def stop(self, reason: Stop) -> None:
        """Have the agent stop; asked again, the first reason stays."""
        if self.stopped is None:
            self.stopped = reason
            self._token.cancel()
            asyncio.get_running_loop().call_later(UNWIND_SECONDS, _done, self.unwound)

    @property
    def usage(self) -> dict[str, int]:
        """Requests and tokens, those of earlier attempts included."""
        before, used = self.claimed.usage, self.answer.usage
        return {
            "requests": before.get("requests", 0) + used.requests,
            "input_tokens": before.get("input_tokens", 0) + used.input_tokens,
            "output_tokens": before.get("output_tokens", 0) + used.output_tokens,
        }

    @property
    def held(self) -> Held:
        """What the next beat stores of it; read from the beat's thread."""
        return Held(self.claimed.run_id, self.claimed.attempt, self.telling.text, self.telling.last_entry, self.usage)

    def ending(self, status: RunStatus, text: str | None, **kept: Any) -> Ending:
        """Say how the run ended, with what is known in any case."""
        return Ending(
            status=status,
            text=text,
            last_entry=self.telling.last_entry,
            usage=self.usage,
            **kept,
        )

    def failed(self, code: FailureCode, message: str | None = None) -> Ending:
        """Say that the run failed."""
        return self.ending(RunStatus.FAILED, self.telling.text, error=failure(code, message))

    def cancelled(self, transcript: str | None = None) -> Ending:
        """Say that the run was cancelled; what was produced is kept."""
        return self.ending(RunStatus.CANCELLED, self.telling.text, transcript=transcript)


def _unavailable(error: ModelAPIError | FallbackExceptionGroup) -> str:
    """Say why there is no model, without the provider's own words: they are not for callers."""
    status = getattr(error, "status_code", None)
    return "The model cannot be had" + (
        f": its provider answered {status}." if status else f": {type(error).__name__}."
    )


def _done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Attempts:
    """All attempts of this process."""

    def __init__(
        self,
        settings: Settings,
        database: AsyncEngine,
        lanes: Lanes,
        event_log: EventLog,
        publisher: Publisher,
        offers: dict[str, Offer],
    ) -> None:
        self._settings = settings
        self._database = database
        self._lanes = lanes
        self._event_log = event_log
        self._publisher = publisher
        self._offers = offers
        self._held: dict[UUID, Attempt | None] = {}
        """The runs in hand; None while one is being claimed."""
        self._orphans: set[tuple[UUID, int]] = set()
        self._told: deque[UUID] = deque()
        self._tasks: set[asyncio.Task[None]] = set()

    async def answer(self, run_id: UUID, worker_id: UUID) -> None:
        """Answer one run, if it is to be had; this is the whole job."""
        if run_id in self._held:
            return
        self._held[run_id] = None
        try:
            claimed = await claim(self._database, run_id, worker_id)
            if claimed is None:
                return
            if (offer := self._offers.get(claimed.agent_type)) is None:
                await self._pass_on(claimed)
                return
            attempt = self._held[run_id] = Attempt(claimed, offer, self._settings, self._publisher)
            deadline = asyncio.get_running_loop().call_later(claimed.seconds_left, attempt.stop, Stop.DEADLINE)
            attempt.telling.tell({"event": "message_started", "reason": claimed.begun})
            ending = await self._outcome(attempt)
            deadline.cancel()
            await attempt.telling.flushed()
            await self._conclude(attempt, ending)
        finally:
            del self._held[run_id]

    async def _outcome(self, attempt: Attempt) -> Ending | None:
        """Have the agent answer, and say how that ended; None where the run is not to end here."""
        try:
            answered = await self._ask(attempt)
        except (RunCancelled, Stopped) as cut:
            return self._cut(attempt, cut)
        except UsageLimitExceeded as error:
            return attempt.failed(FailureCode.USAGE_LIMIT_EXCEEDED, str(error))
        except (ModelAPIError, FallbackExceptionGroup) as error:
            return attempt.failed(FailureCode.MODEL_UNAVAILABLE, _unavailable(error))
        except UnexpectedModelBehavior as error:
            return attempt.failed(FailureCode.OUTPUT_INVALID, f"The model gave no valid output: {error.message}")
        except Exception as error:
            log.exception("attempt.agent_error run=%s", attempt.claimed.run_id)
            return attempt.failed(FailureCode.AGENT_ERROR, f"The agent raised {type(error).__name__}.")
        transcript = transcript_of(answered.messages)
        return attempt.ending(RunStatus.SUCCEEDED, answered.text, transcript=transcript, model=answered.model)

    async def _ask(self, attempt: Attempt) -> Answered:
        """Equip the agent and have it answer; one that will not stop when it is told to is left behind."""
        asking = asyncio.create_task(self._equip_and_ask(attempt))
        await asyncio.wait([asking, attempt.unwound], return_when=asyncio.FIRST_COMPLETED)
        if not asking.done():
            log.warning("attempt.left_behind run=%s", attempt.claimed.run_id)
            asking.cancel()
            raise Stopped
        if asking.cancelled():
            raise Stopped
        return asking.result()

    async def _equip_and_ask(self, attempt: Attempt) -> Answered:
        claimed = attempt.claimed
        history = history_of(await earlier_exchanges(self._database, claimed))
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
                return attempt.cancelled(transcript_of(cut.new_messages()) if isinstance(cut, RunCancelled) else None)
            case Stop.DEADLINE:
                return attempt.failed(FailureCode.DEADLINE_EXCEEDED)
            case Stop.STOPPING | Stop.NOT_MINE:
                return None
            case None:
                return attempt.failed(FailureCode.AGENT_ERROR, "The agent cancelled its own run.")

    async def _conclude(self, attempt: Attempt, ending: Ending | None) -> None:
        """Store the end, or give the run back; what is not this attempt's any more is left alone."""
        if ending is None and attempt.stopped is Stop.STOPPING:
            ring = await give_back(self._database, attempt.claimed, attempt.usage, Begun.WORKER_STOPPING)
            if ring is not None:
                await self._lanes.ring([ring])
                return
            ending = attempt.cancelled()  # It would have been given back, had nobody asked to cancel it.
        if ending is not None:  # What came last has its number only now that everything was told.
            await self._store(attempt.claimed, replace(ending, last_entry=attempt.telling.last_entry))

    async def _store(self, claimed: Claim, ending: Ending) -> None:
        """Store the end, tell it, and call for the thread's next run."""
        row = await self._finish(claimed, ending)
        if row is None:
            log.warning("attempt.fenced run=%s attempt=%d", claimed.run_id, claimed.attempt)
            return
        try:
            await self._event_log.tell_ends([row], self._settings.log_retention_seconds)
            self._told.append(claimed.run_id)
        except (RedisError, OSError) as away:
            log.warning("attempt.end_untold run=%s error=%r", claimed.run_id, away)
        if claimed.thread_id and (ring := await next_in_thread(self._database, claimed.thread_id)):
            await self._lanes.ring([ring])

    async def _finish(self, claimed: Claim, ending: Ending) -> Any | None:
        """Offer the end until it is stored or refused; a database that is away is waited for, until the deadline.

        Whether a commit whose reply was lost came through is resolved by reading.
        """
        give_up = asyncio.get_running_loop().time() + claimed.seconds_left
        tried = False
        while True:
            try:
                row = await finish(self._database, claimed, ending)
            except SQLAlchemyError as error:
                if not is_away(error) or asyncio.get_running_loop().time() > give_up:
                    raise
                log.warning("attempt.database_away run=%s", claimed.run_id)
                tried = True
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return row or (await ended_row(self._database, claimed) if tried else None)

    async def _pass_on(self, claimed: Claim) -> None:
        """Leave the run to a worker that serves its agent."""
        log.warning("attempt.not_served run=%s agent=%s", claimed.run_id, claimed.agent_type)
        await give_back(self._database, claimed, claimed.usage, claimed.begun, delay_seconds=PASS_ON_SECONDS)

    def held(self) -> list[Held]:
        """Say what the next beat is to store; called from the beat's thread."""
        return [attempt.held for attempt in list(self._held.values()) if attempt is not None]

    def told(self) -> list[UUID]:
        """Take the runs whose ends were told since the last beat; called from the beat's thread."""
        return [self._told.popleft() for _ in range(len(self._told))]

    def beat(self, rows: Sequence[Row]) -> None:
        """Hear what a beat brought back: the runs that this worker holds in the database's eyes.

        One that is not in hand, and was not a beat ago, came from a claim whose reply was lost: it is given back.
        """
        unknown: set[tuple[UUID, int]] = set()
        for row in rows:
            if row.run_id not in self._held:
                unknown.add((row.run_id, row.attempt))
            elif row.cancel_requested:
                self.stop(row.run_id, Stop.CANCELLED)
        for run_id, attempt in unknown & self._orphans:
            task = asyncio.create_task(self._give_back_orphan(run_id, attempt))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._orphans = unknown

    async def _give_back_orphan(self, run_id: UUID, attempt: int) -> None:
        log.warning("attempt.orphan run=%s attempt=%d", run_id, attempt)
        if ring := await let_go(self._database, run_id, attempt):
            await self._lanes.ring([ring])

    def stop(self, run_id: UUID, reason: Stop) -> None:
        """Stop one attempt, if it is in hand."""
        if (attempt := self._held.get(run_id)) is not None:
            attempt.stop(reason)

    def stop_all(self, reason: Stop) -> None:
        """Stop every attempt."""
        for run_id in list(self._held):
            self.stop(run_id, reason)

    def __len__(self) -> int:
        return len(self._held)
