"""The runs in hand of this process, and the data that a heartbeat stores of them and fetches about them."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from time import monotonic
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from agent_relay.shared.away import skip_if_database_away
from agent_relay.shared.queue import RunQueue
from agent_relay.shared.runs.finish import let_go
from agent_relay.worker.execution.attempt import Attempt, Stop
from agent_relay.worker.execution.kept_partials import Held
from agent_relay.worker.execution.lease import Row

log = logging.getLogger(__name__)

REMEMBERED = 1000
"""Orphans that are remembered."""
JUST_ENDED_SECONDS = 2.0
"""Changes of a run to its process are found within this time after its end."""
MOST_NAMED = 100


class RunsInFlight:
    """Every run from just before it is claimed until just after its end."""

    def __init__(self, database: AsyncEngine, lanes: RunQueue, max_crashes: int) -> None:
        self._database = database
        self._lanes = lanes
        self._max_crashes = max_crashes
        self._attempts: dict[UUID, Attempt | None] = {}
        """None while a run is being claimed."""
        self._orphans: set[tuple[UUID, int]] = set()
        self._let_go: deque[UUID] = deque(maxlen=REMEMBERED)
        """Runs that were orphans here before."""
        self._told: deque[UUID] = deque()
        self._letting_go: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._leaving = False
        self._ended = deque[tuple[float, UUID, str]](maxlen=MOST_NAMED)
        """When runs were in hand last, and their agents."""

    def take(self, run_id: UUID) -> None:
        """Note that a run is about to be claimed."""
        self._attempts[run_id] = None

    def leave(self, run_id: UUID) -> None:
        """Note that a run is in hand no longer."""
        if (attempt := self._attempts.pop(run_id)) is not None:
            self._ended.append((monotonic(), run_id, attempt.claimed.agent_type))

    def begin(self, attempt: Attempt) -> None:
        """Note that a run in hand was claimed; if the worker stopped meanwhile, it comes too late."""
        self._attempts[attempt.claimed.run_id] = attempt
        if self._leaving:
            attempt.leave()
        if self._stopping:
            attempt.stop(Stop.STOPPING)

    def end_told(self, run_id: UUID) -> None:
        """Store that a run's end is in its log; the next heartbeat writes that to PostgreSQL."""
        self._told.append(run_id)

    def __contains__(self, run_id: object) -> bool:
        return run_id in self._attempts

    def held(self) -> list[Held]:
        """Return the data for the next heartbeat; called from the heartbeat's thread."""
        held: list[Held] = []
        for attempt in list(self._attempts.values()):
            if attempt is not None:
                try:
                    held.append(attempt.held)
                except Exception:
                    log.exception("roster.not_held run_id=%s", attempt.claimed.run_id)
        return held

    def in_flight(self) -> str:
        """Name the runs in hand or just ended, and their agents, for the log; may be called from any thread."""
        attempts = [attempt for attempt in list(self._attempts.values()) if attempt is not None]
        names = [f"{attempt.claimed.run_id}:{attempt.claimed.agent_type}" for attempt in attempts]
        since = monotonic() - JUST_ENDED_SECONDS
        names += [f"{run_id}:{agent_type}" for at, run_id, agent_type in list(self._ended) if at > since]
        return ",".join(names) or "none"

    def told(self) -> list[UUID]:
        """Take the runs whose ends were published since the last heartbeat; called from the heartbeat's thread."""
        return [self._told.popleft() for _ in range(len(self._told))]

    def beat(self, rows: Sequence[Row]) -> None:
        """Process the rows of a heartbeat: the runs that this worker holds in the database.

        If one is not in hand, and was not at the last heartbeat, the reply to its claim was lost: it is released.
        """
        unknown: set[tuple[UUID, int]] = set()
        for row in rows:
            if row.run_id not in self._attempts:
                unknown.add((row.run_id, row.attempt))
                continue
            if row.cancel_requested:
                self.stop(row.run_id, Stop.CANCELLED)
            if row.last_message:
                self.expect_messages(row.run_id, row.last_message)
        for run_id, attempt in unknown & self._orphans:
            task = asyncio.create_task(self._give_back_orphan(run_id, attempt))
            self._letting_go.add(task)
            task.add_done_callback(self._letting_go.discard)
        self._orphans = unknown

    async def _give_back_orphan(self, run_id: UUID, attempt: int) -> None:
        """Let the run wait again. The second time that happens here, no reply was lost: it counts as a crash."""
        again = run_id in self._let_go
        log.warning("roster.orphan run_id=%s attempt=%d counts_as_crash=%s", run_id, attempt, again)
        ring = None  # Of a step that is skipped: the next heartbeat brings the run again.
        with skip_if_database_away(log, "roster.database_away run_id=%s", run_id):
            ring = await let_go(self._database, run_id, attempt, max_crashes=self._max_crashes if again else None)
        if ring is not None:
            self._let_go.append(run_id)
            await self._lanes.ring([ring])

    def expect_messages(self, run_id: UUID, last: int) -> None:
        """Store the number of messages into a run, if it is in hand."""
        if (attempt := self._attempts.get(run_id)) is not None:
            attempt.inbox.expect(last)

    def stop(self, run_id: UUID, reason: Stop) -> None:
        """Stop one attempt, if it is in hand."""
        if (attempt := self._attempts.get(run_id)) is not None:
            attempt.stop(reason)

    def stop_all(self, reason: Stop) -> None:
        """Stop every attempt; of a worker that stops, also those that are still being claimed."""
        self._stopping |= reason is Stop.STOPPING
        for run_id in list(self._attempts):
            self.stop(run_id, reason)

    def leave_all(self) -> None:
        """Return each run to the queue once the step in hand has finished."""
        self._leaving = True
        for attempt in list(self._attempts.values()):
            if attempt is not None:
                attempt.leave()

    def __len__(self) -> int:
        return len(self._attempts)
