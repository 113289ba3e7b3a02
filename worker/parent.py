"""A small parent of several worker processes: it restarts what dies, and takes back at once what died with it.

What it takes back is suspect, and needs processes of its own. The parent makes the first few of these itself: a worker
that could may only be starting.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from functools import partial
from uuid import UUID

import uvloop
from sqlalchemy.exc import SQLAlchemyError

from shared import database, failpoints, logs, metrics, redis
from shared.clock import new_id
from shared.event_log import EventLog
from shared.lanes import Lanes
from shared.runs.take_back import declare_dead
from shared.settings import Settings
from shared.sweeper import Sweeper
from worker.catalog import import_model
from worker.isolation import Isolation
from worker.nursery import Nursery, NurseryLost
from worker.process import work

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 0.2
"""Before the restart: the processes of the suspects start first, for whose answers somebody waits already."""
LONGEST_PAUSE_SECONDS = 10.0
HIGHEST_PORT = 65_535
HEALTHY_SECONDS = 30.0
"""A child that lived for so long is restarted as if it were the first to die."""


def keep(settings: Settings, processes: int) -> None:
    """Keep so many workers running until told to stop.

    This process shows its metrics on `METRICS_PORT`, and each worker on one of the ports after it.
    """
    logs.configure(settings)
    import_model(settings)
    first = settings.metrics_port
    of_workers = range(first + 1, min(first + 1 + processes, HIGHEST_PORT + 1)) if first else ()
    with Nursery(partial(work, settings, metrics_ports=of_workers)) as nursery:
        failpoints.arm(settings.failpoints)
        metrics.serve(settings.metrics_host, (first,) if first else ())
        uvloop.run(_keep(settings, processes, nursery))


async def _keep(settings: Settings, processes: int, nursery: Nursery) -> None:
    await Parent(settings, processes, nursery).run()


class Parent:
    """Keeps so many workers running."""

    def __init__(self, settings: Settings, processes: int, nursery: Nursery) -> None:
        self._settings = settings
        self._processes = processes
        self._database = database.connect(settings)
        self._redis = redis.connect(settings)
        self._sweeper = Sweeper(
            settings, self._database, Lanes(self._redis, settings.names), EventLog(self._redis, settings.names)
        )
        self._nursery = nursery
        self._isolation = Isolation(settings, self._database, self._sweeper, nursery)
        self._together = asyncio.TaskGroup()
        self._suspects = 0
        self._lost = False
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Run the children until told to stop, and wait until they have stopped."""
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
        """Have the children stop, and do not start them again."""
        self._stopping.set()
        self._isolation.stop()

    async def _keep_one(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while not self._stopping.is_set():
            worker_id, began = new_id(), asyncio.get_running_loop().time()
            try:
                status = await self._nursery.run(worker_id)
            except NurseryLost:  # Its workers stop; so does this process, to be started anew.
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
        try:
            await declare_dead(self._database, worker_id)
            taken = await self._sweeper.take_back()
        except (SQLAlchemyError, OSError) as away:
            log.warning("parent.database_away error=%r", away)  # The lease does it, later.
            return
        ours = [ring.run_id for ring in taken if ring.pool == self._settings.pool]
        for run_id in ours[: self._settings.suspects_at_once - self._suspects]:
            self._suspects += 1
            self._together.create_task(self._answer(run_id))

    async def _answer(self, run_id: UUID) -> None:
        """Have a suspect answered, unless one of the workers, whom it was rung for, has been sooner."""
        try:
            await self._isolation.answer(run_id)
        except (SQLAlchemyError, OSError) as away:
            log.warning("parent.database_away error=%r", away)  # A worker sees to it.
        finally:
            self._suspects -= 1


async def _first_of(stopping: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stopping.wait()
    except TimeoutError:
        return
