"""The sweeper repairs: missing queue entries, runs of dead workers, unpublished ends, deadlines.

The liveness check runs beside it. Both run in every API and worker process, any number, with no leader: each statement
takes rows that no other process holds. PostgreSQL is truth: a sweep needs Redis only to publish again what is stored.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from uuid import UUID

from redis.exceptions import RedisError
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from agent_relay.shared.away import skip_if_database_away, skip_if_failed
from agent_relay.shared.bad_input import failed
from agent_relay.shared.batches.cancel import cancel_some
from agent_relay.shared.batches.concurrency import release, with_room
from agent_relay.shared.database import is_away, transact
from agent_relay.shared.database.set_aside import Aside
from agent_relay.shared.event_log import EventLog
from agent_relay.shared.failpoints import Failpoint, reached
from agent_relay.shared.maintenance.liveness import Judge
from agent_relay.shared.maintenance.retention import Retention
from agent_relay.shared.metrics import run_ended
from agent_relay.shared.queue import Lane, QueueEntry, RunQueue
from agent_relay.shared.rows import RunEnd
from agent_relay.shared.runs.concurrency_limits import PASSED_OVER, Quota
from agent_relay.shared.runs.finish import next_in_thread
from agent_relay.shared.runs.missing_entries import MOST as MOST_DUE
from agent_relay.shared.runs.missing_entries import due_runs, enqueue_again
from agent_relay.shared.runs.recovery import expire, expire_waiting, take_back
from agent_relay.shared.runs.start import TO_START, start_alone, start_in_threads
from agent_relay.shared.runs.unpublished_ends import mark_published, unpublished_ends
from agent_relay.shared.settings import Settings
from agent_relay.shared.tasks import stop

log = logging.getLogger(__name__)

SWEEP_SECONDS = 1.0
ERASE_SECONDS = 20.0
"""Each process erases expired data about this often."""
UNTOLD_SECONDS = 5.0
"""The sweeper publishes an end that its worker has not marked as published by then: one heartbeat and a margin."""

_LOOK = text(f"""
    SELECT
        EXISTS (SELECT FROM runs JOIN workers ON workers.id = worker_id
                WHERE status = 'running' AND workers.ended_at IS NOT NULL) AS held_by_the_dead,
        EXISTS (SELECT FROM runs WHERE status IN ('queued', 'running') AND deadline_at <= now())
            OR EXISTS (SELECT FROM runs WHERE status = 'waiting' AND wait_until <= now()) AS overdue,
        EXISTS (SELECT FROM runs WHERE status = 'queued' AND NOT starts_later
                AND rung_at < now() - interval '1 second') AS waiting,
        EXISTS (SELECT FROM runs WHERE {TO_START}) AS to_start,
        EXISTS (SELECT FROM runs WHERE finished_at < now() - make_interval(secs => :untold_seconds)
                AND NOT end_told) AS untold,
        EXISTS (SELECT FROM batches WHERE finished_at IS NULL AND status = 'cancelling') AS cancelling,
        EXISTS (SELECT FROM batches WHERE finished_at IS NULL AND max_running IS NOT NULL) AS capped,
        EXISTS (SELECT FROM runs WHERE {PASSED_OVER}) AS passed_over
""")  # noqa: S608  (a constant)

_CANCELLING = text("SELECT id FROM batches WHERE finished_at IS NULL AND status = 'cancelling'")


@dataclass(slots=True)
class _Look:
    """How far a sweeper has looked along a lane, which may be too long for one look."""

    absent: list[str] = field(default_factory=list[str])
    """The calls that stood in no lane at the last sweep."""
    after: tuple[datetime | None, UUID | None] = (None, None)


class Sweeper:
    """One process's share of the sweeping."""

    def __init__(self, settings: Settings, database: AsyncEngine, lanes: RunQueue, event_log: EventLog) -> None:
        self._settings = settings
        self._database = database
        self._lanes = lanes
        self._event_log = event_log
        self._quota = Quota.of(settings)
        self._retention = Retention(settings, database)
        self._hurry = asyncio.Event()
        """Set when a worker was declared dead: its runs need not wait for the next sweep."""
        self._looks: dict[str, _Look] = {}
        self._aside: defaultdict[str, Aside] = defaultdict(Aside)
        """The rows that each step leaves out for now."""

    async def run(self) -> None:
        """Judge and sweep for ever, at a pace that keeps processes out of step."""
        judging = asyncio.create_task(Judge(self._settings, self._database, self._hurry.set).run())
        try:
            while True:
                with skip_if_failed("sweeper", "look"), skip_if_database_away(log, "sweeper.database_away"):
                    await self.sweep()
                with suppress(TimeoutError):
                    async with asyncio.timeout(SWEEP_SECONDS * random.uniform(0.75, 1.25)):  # noqa: S311
                        await self._hurry.wait()
                self._hurry.clear()
        finally:
            await stop([judging])

    async def sweep(self) -> None:
        """Look whether there is anything to do, and do it."""
        seen = (await transact(self._database, _LOOK, {"untold_seconds": UNTOLD_SECONDS}))[0]
        steps: dict[str, tuple[bool, Callable[[], Awaitable[object]]]] = {
            "take_back": (seen.held_by_the_dead or seen.overdue, self.take_back),
            "cancel": (seen.cancelling, self._go_on_cancelling),
            "release": (seen.capped or seen.passed_over, self._release),
            "start": (seen.to_start, self._start),
            "ring_again": (seen.waiting, self._ring_absent),
            "tell_ends": (seen.untold, self._tell_untold),
            "erase": (random.random() * ERASE_SECONDS < SWEEP_SECONDS, self.erase),  # noqa: S311
        }
        for name, (is_wanted, step) in steps.items():
            if is_wanted:
                await _try(name, step)

    async def take_back(self) -> list[QueueEntry]:
        """Recover runs without a living worker, and publish the result. Returns the new queue entries."""
        ended, taken = await take_back(self._database, self._settings.max_crashes, self._aside["take_back"])
        ended = [
            *ended,
            *await expire(self._database, self._aside["expire"]),
            *await expire_waiting(self._database, self._aside["expire_waiting"]),
        ]
        for run in ended:
            run_ended(run)
        for run_id in (*(run.id for run in ended), *(ring.run_id for ring in taken)):
            log.warning("sweeper.took_back run_id=%s", run_id)
            reached(Failpoint.RUNS_TAKEN_BACK)
        await self._lanes.ring(taken)
        for thread_id in {run.thread_id for run in ended if run.thread_id is not None}:
            await _try("next_in_thread", partial(self._ring_next, thread_id))
        await _try("tell_ends", partial(self._tell, ended))
        return taken

    async def _ring_next(self, thread_id: UUID) -> None:
        if ring := await next_in_thread(self._database, thread_id):
            await self._lanes.ring([ring])

    async def _start(self) -> None:
        """Start the runs that are due."""
        for name, start in (("start_alone", start_alone), ("start_in_threads", start_in_threads)):
            while entries := await start(self._database, self._aside[name]):
                reached(Failpoint.RUNS_STARTED)
                await self._lanes.ring(entries)

    async def _ring_absent(self) -> None:
        await self._lanes.check_writable()  # A Redis that is read-only has no entries and takes none.
        async with self._database.connect() as connection:
            pools = (await connection.scalars(text("SELECT DISTINCT pool FROM agents"))).all()
        for pool in pools:
            for lane in Lane:
                await _try("ring_again", partial(self._ring_absent_in, pool, lane))

    async def _ring_absent_in(self, pool: str, lane: Lane) -> None:
        """Enqueue again runs without an entry, now and a sweep ago: an entry that was just popped is being claimed.

        A long queue is checked in parts, one a sweep; after its end comes its beginning again.
        """
        look = self._looks.setdefault(f"{pool}:{lane}", _Look())
        due = await due_runs(self._database, pool, lane, look.after)
        members = due.members or []
        look.after = (due.at, due.id) if len(members) == MOST_DUE else (None, None)
        absent = dict.fromkeys(await self._lanes.absent(pool, lane, [*look.absent, *members]))
        lost = [member for member in look.absent if member in absent]
        look.absent = [member for member in absent if member not in lost]
        if lost and (again := await enqueue_again(self._database, lost)):
            log.info("sweeper.ring_again runs=%d pool=%s lane=%s", len(again), pool, lane)
            await self._lanes.ring(again)

    async def _go_on_cancelling(self) -> None:
        """Go on cancelling batches whose canceller has died, and runs that began in that moment."""
        async with self._database.connect() as connection:
            batch_ids = (await connection.scalars(_CANCELLING)).all()
        for batch_id in batch_ids:
            await _try("cancel", partial(self._cancel_some, batch_id))

    async def _cancel_some(self, batch_id: UUID) -> None:
        if step := await cancel_some(self._database, batch_id):
            await self._lanes.silence(step.silenced)

    async def _release(self) -> None:
        """Make more runs due in batches that have room for them, and of users and tenants that have."""
        await _try("release", self._release_forgotten)
        for batch_id in await with_room(self._database):
            await _try("release", partial(self._release_some, batch_id))

    async def _release_forgotten(self) -> None:
        await self._lanes.ring(await self._quota.release_forgotten(self._database))

    async def _release_some(self, batch_id: UUID) -> None:
        await self._lanes.ring(await release(self._database, batch_id))

    async def _tell_untold(self) -> None:
        await self._tell(await unpublished_ends(self._database, UNTOLD_SECONDS))

    async def _tell(self, ended: Sequence[RunEnd]) -> None:
        if ended:
            await self._event_log.tell_ends(ended, self._settings.log_retention_seconds)
            await mark_published(self._database, [run.id for run in ended])

    async def erase(self) -> None:
        """Erase one batch of each kind of rows that are kept no longer."""
        for step in self._retention.steps():
            await _try("erase", step)


async def _try(name: str, step: Callable[[], Awaitable[object]]) -> None:
    """Execute one step; the next one is executed whatever this one raises, unless the database is away."""
    try:
        await step()
    except RedisError as away:
        log.warning("sweeper.redis_away step=%s error=%r", name, away)
    except Exception as error:
        if is_away(error):
            raise
        failed("sweeper", name, error)
