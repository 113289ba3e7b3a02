"""A small parent of several worker processes: it restarts dead ones, and recovers their runs at once.

The recovered runs are quarantined, and need processes of their own. The parent makes the first few of these itself:
the workers that could make them may still be starting.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from uuid import UUID

from agent_relay.shared import database, redis
from agent_relay.shared.away import skip_if_database_away
from agent_relay.shared.clock import new_id
from agent_relay.shared.event_log import EventLog
from agent_relay.shared.maintenance.sweeper import Sweeper
from agent_relay.shared.queue import QueueEntry, RunQueue
from agent_relay.shared.runs.recovery import declare_dead
from agent_relay.shared.settings import Settings
from agent_relay.worker.processes.quarantine import Quarantine
from agent_relay.worker.processes.spawner import Spawner, SpawnerLost

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 0.2
"""Before the restart: the processes of quarantined runs start first, because their callers have waited already."""
LONGEST_PAUSE_SECONDS = 10.0
HEALTHY_SECONDS = 30.0
"""A child that lived for this time is restarted as if it were the first to die."""


class WorkerSupervisor:
    """Keeps this number of workers running."""

    def __init__(self, settings: Settings, processes: int, nursery: Spawner) -> None:
        self._settings = settings
        self._processes = processes
        self._database = database.connect(settings)
        self._redis = redis.connect(settings)
        self._sweeper = Sweeper(
            settings, self._database, RunQueue(self._redis, settings.names), EventLog(self._redis, settings.names)
        )
        self._nursery = nursery
        self._isolation = Quarantine(settings, self._database, self._sweeper, nursery)
        self._together = asyncio.TaskGroup()
        self._suspects = 0
        self._lost = False
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Run the children until stopped, and wait until they have stopped."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self.stop)
        async with self._together:
            for _ in range(self._processes):
                self._together.create_task(self._keep_one())
        await self._redis.aclose(close_connection_pool=True)
        await self._database.dispose()
        if self._lost:
            raise SystemExit(1)

    def stop(self) -> None:
        """Stop the children, and do not start them again."""
        self._stopping.set()
        self._isolation.stop()

    async def _keep_one(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while not self._stopping.is_set():
            worker_id, began = new_id(), asyncio.get_running_loop().time()
            try:
                status = await self._nursery.run(worker_id)
            except SpawnerLost:  # Its workers stop; so does this process, to be started anew.
                self._lost = True
                self._stopping.set()
                return
            if self._stopping.is_set():
                return
            log.error("parent.worker_died worker_id=%s status=%d", worker_id, status)
            await self._take_back(worker_id)
            if asyncio.get_running_loop().time() - began > HEALTHY_SECONDS:
                pause = FIRST_PAUSE_SECONDS
            await _first_of(self._stopping, pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    async def _take_back(self, worker_id: UUID) -> None:
        """End the dead child's lease and take its runs back, without waiting for the lease to run out."""
        taken: list[QueueEntry] = []
        with skip_if_database_away(log, "parent.database_away"):  # Then the lease runs out, later.
            await declare_dead(self._database, worker_id)
            taken = await self._sweeper.take_back()
        ours = [ring.run_id for ring in taken if ring.pool == self._settings.pool]
        for run_id in ours[: self._settings.suspects_at_once - self._suspects]:
            self._suspects += 1
            self._together.create_task(self._answer(run_id))

    async def _answer(self, run_id: UUID) -> None:
        """Answer a quarantined run, unless one of the workers, for which it was enqueued, has claimed it."""
        try:
            with skip_if_database_away(log, "parent.database_away"):  # A worker sees to it.
                await self._isolation.answer(run_id)
        finally:
            self._suspects -= 1


async def _first_of(stopping: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stopping.wait()
    except TimeoutError:
        return
