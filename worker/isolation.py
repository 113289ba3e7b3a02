"""Answer a suspect, a run under which a worker died, in a process of its own: a poison run takes nobody with it."""

from __future__ import annotations

import asyncio
import logging
import sys
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from shared.clock import new_id
from shared.runs.take_back import declare_dead
from shared.settings import Settings
from shared.sweeper import Sweeper

log = logging.getLogger(__name__)


class Isolation:
    """The child processes of this worker."""

    def __init__(self, settings: Settings, database: AsyncEngine, sweeper: Sweeper) -> None:
        self._database = database
        self._sweeper = sweeper
        self._room = asyncio.Semaphore(settings.suspects_at_once)
        self._children: set[asyncio.subprocess.Process] = set()
        self._stopping = False

    async def answer(self, run_id: UUID) -> None:
        """Have a child answer the run; if it dies, its run is taken back at once."""
        async with self._room:
            if self._stopping:
                return  # It is still queued, and swept to somebody else.
            worker_id = new_id()
            log.warning("isolation.suspect run=%s worker=%s", run_id, worker_id)
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "worker", "--id", str(worker_id), "--run", str(run_id)
            )
            self._children.add(child)
            status = await child.wait()
            self._children.discard(child)
        if status != 0:
            log.error("isolation.died run=%s status=%d", run_id, status)
            await declare_dead(self._database, worker_id)
            await self._sweeper.take_back()

    def stop(self) -> None:
        """Ask the children to give back what they have."""
        self._stopping = True
        for child in self._children:
            child.terminate()

    def __len__(self) -> int:
        return len(self._children)
