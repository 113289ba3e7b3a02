"""A small parent of several worker processes: it restarts what dies, and takes back at once what died with it."""

from __future__ import annotations

import asyncio
import logging
import signal
from functools import partial
from uuid import UUID

import uvloop
from sqlalchemy.exc import SQLAlchemyError

from shared import database, failpoints, logs, redis
from shared.clock import new_id
from shared.event_log import EventLog
from shared.lanes import Lanes
from shared.runs.take_back import declare_dead
from shared.settings import Settings
from shared.sweeper import Sweeper
from worker.catalog import import_model
from worker.nursery import Nursery, NurseryLost
from worker.process import work

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 10.0
HEALTHY_SECONDS = 30.0
"""A child that lived for so long is restarted without a pause for its predecessors."""


def keep(settings: Settings, processes: int) -> None:
    """Keep so many workers running until told to stop."""
    logs.configure(settings)
    import_model(settings)
    with Nursery(partial(work, settings)) as nursery:
        failpoints.arm(settings.failpoints)
        uvloop.run(_keep(settings, processes, nursery))


async def _keep(settings: Settings, processes: int, nursery: Nursery) -> None:
    await Parent(settings, processes, nursery).run()


class Parent:
    """Keeps so many workers running."""

    def __init__(self, settings: Settings, processes: int, nursery: Nursery) -> None:
        self._processes = processes
        self._database = database.connect(settings)
        self._redis = redis.connect(settings)
        self._sweeper = Sweeper(settings, self._database, Lanes(self._redis), EventLog(self._redis))
        self._nursery = nursery
        self._lost = False
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Run the children until told to stop, and wait until they have stopped."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._stop)
        async with asyncio.TaskGroup() as together:
            for _ in range(self._processes):
                together.create_task(self._keep_one())
        await self._redis.aclose()
        await self._database.dispose()
        if self._lost:
            raise SystemExit(1)

    def _stop(self) -> None:
        self._stopping.set()
        self._nursery.stop()

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
            log.error("parent.worker_died worker=%s status=%d", worker_id, status)
            await self._take_back(worker_id)
            lived = asyncio.get_running_loop().time() - began
            pause = FIRST_PAUSE_SECONDS if lived > HEALTHY_SECONDS else min(pause * 2, LONGEST_PAUSE_SECONDS)
            await _first_of(self._stopping, pause)

    async def _take_back(self, worker_id: UUID) -> None:
        """End the dead child's lease, and have its runs wait again, without waiting for the lease to run out."""
        try:
            await declare_dead(self._database, worker_id)
            await self._sweeper.take_back()
        except (SQLAlchemyError, OSError) as away:
            log.warning("parent.database_away error=%r", away)  # The lease does it, later.


async def _first_of(stopping: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(stopping.wait(), seconds)
    except TimeoutError:
        return
