"""Answer a suspect, a run under which a worker died, in a process of its own: a poison run takes nobody with it.

The processes are forked from a server that has imported what a worker and its models import, so that one costs a
moment, not seconds. Agents are imported by each process for itself: they may do what does not outlive a fork.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
from collections.abc import Callable, Iterable
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from uuid import UUID

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.clock import new_id
from shared.runs import set_aside
from shared.runs.take_back import declare_dead
from shared.settings import Settings
from shared.sweeper import Sweeper

log = logging.getLogger(__name__)

START_SECONDS = 10.0
"""How long a process that is made for a suspect may take until it claims it; then somebody else is called, too."""

PREPARE_SECONDS = 60.0
"""A worker that is new has better things to do, and may not live for long; a suspect does not wait for it."""

Work = Callable[[Settings, UUID, UUID | None], None]
"""Runs a worker process to its end: its id, and the only run it is for."""


class Isolation:
    """The child processes of this worker."""

    def __init__(
        self, settings: Settings, database: AsyncEngine, sweeper: Sweeper, work: Work, models: Iterable[str] = ()
    ) -> None:
        """`models` are modules, imported beforehand."""
        self._settings = settings
        self._database = database
        self._sweeper = sweeper
        self._work = work
        self._processes = multiprocessing.get_context("forkserver")
        self._processes.set_forkserver_preload(["worker.process", *models])
        self._room = asyncio.Semaphore(settings.suspects_at_once)
        self._children: set[BaseProcess] = set()
        self._stopping = False

    async def prepare(self) -> None:
        """Start the server of the processes before one is needed, once the worker has been at it for a while."""
        await asyncio.sleep(PREPARE_SECONDS)
        await asyncio.to_thread(forkserver.ensure_running)

    async def answer(self, run_id: UUID) -> None:
        """Have a child answer the run; if it dies, its run is taken back at once."""
        async with self._room:
            if self._stopping or not await set_aside(self._database, run_id, START_SECONDS):
                return  # It is still queued, and swept to somebody else; or somebody else is at it.
            worker_id = new_id()
            log.warning("isolation.suspect run=%s worker=%s", run_id, worker_id)
            child = self._processes.Process(target=self._work, args=(self._settings, worker_id, run_id))
            self._children.add(child)
            try:
                await asyncio.to_thread(self._run, child)
            finally:
                self._children.discard(child)
        if child.exitcode != 0 and not self._stopping:
            log.error("isolation.died run=%s status=%s", run_id, child.exitcode)
        try:  # Whatever its status says: who has said goodbye has nothing that could be taken.
            await declare_dead(self._database, worker_id)
            await self._sweeper.take_back()
        except (SQLAlchemyError, OSError) as away:
            log.warning("isolation.database_away error=%r", away)  # The lease does it, later.

    def stop(self) -> None:
        """Ask the children to give back what they have."""
        self._stopping = True
        for child in self._children:
            if child.pid is not None:
                child.terminate()

    def _run(self, child: BaseProcess) -> None:
        """Start a child and wait for its end; `stop` may have come before there was a process."""
        child.start()
        if self._stopping:
            child.terminate()
        child.join()
