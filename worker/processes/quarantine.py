"""Answer a run under which a worker died in a process of its own, so that its death affects no other run."""

from __future__ import annotations

import asyncio
import logging
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from agent_relay.shared.away import skip_if_database_away
from agent_relay.shared.clock import new_id
from agent_relay.shared.database import transact
from agent_relay.shared.maintenance.sweeper import Sweeper
from agent_relay.shared.metrics import run_ended
from agent_relay.shared.runs.claim import set_aside
from agent_relay.shared.runs.recovery import declare_dead
from agent_relay.shared.settings import Settings
from agent_relay.worker.processes.spawner import Spawner, SpawnerLost

log = logging.getLogger(__name__)

START_SECONDS = 10.0
"""Time for a quarantined run's process to claim it; then the run wakes other workers, too."""
WAITING = 2
"""Quarantined runs that hold a slot of this worker, for each one that is tried at a time."""

_ENDED_BY = text("""
    SELECT agent_type, status, error FROM runs
    WHERE id = :run_id AND worker_id = :worker_id AND finished_at IS NOT NULL
""")


class Quarantine:
    """The child processes of this worker."""

    def __init__(self, settings: Settings, database: AsyncEngine, sweeper: Sweeper, nursery: Spawner) -> None:
        self._database = database
        self._sweeper = sweeper
        self._nursery = nursery
        self._room = asyncio.Semaphore(settings.suspects_at_once)
        self._most_here = WAITING * settings.suspects_at_once
        self._here = 0
        self._stopping = False

    async def answer(self, run_id: UUID) -> None:
        """Answer the run in a child; if that dies, the run is recovered at once. With too many children, it is left."""
        if self._here >= self._most_here:
            return  # It is still queued, and a sweep enqueues it for a worker with room.
        self._here += 1
        try:
            async with self._room:
                await self._try(run_id)
        finally:
            self._here -= 1

    async def _try(self, run_id: UUID) -> None:
        if self._stopping or not await set_aside(self._database, run_id, START_SECONDS):
            return  # It is still queued and enqueued again by a sweep, or another worker answers it.
        worker_id = new_id()
        log.warning("isolation.suspect run_id=%s worker_id=%s", run_id, worker_id)
        try:
            status = await self._nursery.run(worker_id, run_id)
        except SpawnerLost:
            status = None
        if status != 0 and not self._stopping:
            log.error("isolation.died run_id=%s status=%s", run_id, status)
        with skip_if_database_away(log, "isolation.database_away"):  # Then the lease runs out, later.
            # Does nothing if the process already deregistered, whatever its exit status.
            for row in await transact(self._database, _ENDED_BY, {"run_id": run_id, "worker_id": worker_id}):
                run_ended(row)  # Its own counters went with it.
            await declare_dead(self._database, worker_id)
            await self._sweeper.take_back()

    def stop(self) -> None:
        """Ask the children to return their runs to the queue."""
        self._stopping = True
        self._nursery.stop()

    async def lost(self) -> None:
        """Wait for ever, or until no more children can be made."""
        await self._nursery.lost()
