"""The sweeper makes good what was lost: rings, runs of dead workers, ends that were not told, deadlines.

Who is dead, the judge says beside it. Both run in every API and worker process, any number, with no leader: each
statement takes rows that nobody else holds. PostgreSQL is truth: a sweep needs no Redis for anything but to tell the
news again.
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
from typing import Any
from uuid import UUID

from redis.exceptions import RedisError
from sqlalchemy import TextClause, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.aside import Aside, among
from shared.bad_input import failed
from shared.batches import cancel_some, release, with_room
from shared.database import is_away, transact
from shared.event_log import EventLog
from shared.failpoints import Failpoint, reached
from shared.judge import Judge
from shared.lanes import Lane, Lanes, Ring
from shared.metrics import run_ended
from shared.runs import next_in_thread
from shared.runs.finish import END_COLUMNS, ring_of
from shared.runs.running import PASSED_OVER, Quota
from shared.runs.take_back import BATCH, expire, take_back
from shared.settings import Settings
from shared.tasks import stop
from shared.webhooks.outbox import none_waits

log = logging.getLogger(__name__)

SWEEP_SECONDS = 1.0
ERASE_SECONDS = 20.0
"""What nobody needs any more is erased about so often by each process."""
UNTOLD_SECONDS = 5.0
"""An end that its author has not marked as told by then is told by the sweeper; a beat and a bit."""

_LOOK = text(f"""
    SELECT
        EXISTS (SELECT FROM runs JOIN workers ON workers.id = worker_id
                WHERE status = 'running' AND workers.ended_at IS NOT NULL) AS held_by_the_dead,
        EXISTS (SELECT FROM runs WHERE status IN ('queued', 'running') AND deadline_at <= now()) AS overdue,
        EXISTS (SELECT FROM runs WHERE status = 'queued' AND rung_at < now() - interval '1 second') AS waiting,
        EXISTS (SELECT FROM runs WHERE finished_at < now() - make_interval(secs => :untold_seconds)
                AND NOT end_told) AS untold,
        EXISTS (SELECT FROM batches WHERE finished_at IS NULL AND status = 'cancelling') AS cancelling,
        EXISTS (SELECT FROM batches WHERE finished_at IS NULL AND max_running IS NOT NULL) AS capped,
        EXISTS (SELECT FROM runs WHERE {PASSED_OVER}) AS passed_over
""")  # noqa: S608  (a constant)

_DUE = text(f"""
    SELECT array_agg(id || ':' || ring) AS members, max(created_at) AS at, (array_agg(id))[count(*)] AS id FROM (
        SELECT id, ring, created_at FROM runs AS run
        WHERE pool = :pool AND lane = :lane AND status = 'queued'
          AND due_at <= now() AND rung_at < now() - interval '1 second'
          AND (CAST(:at AS timestamptz) IS NULL OR (created_at, id) > (:at, :id))
          AND NOT EXISTS (
              SELECT FROM runs AS earlier
              WHERE earlier.thread_id = run.thread_id AND earlier.seq < run.seq
                AND earlier.status IN ('queued', 'running')
          )
        ORDER BY created_at, id LIMIT {BATCH}
    ) AS due
""")  # noqa: S608  (a constant)

_RING_AGAIN = text("""
    UPDATE runs SET ring = runs.ring + 1, rung_at = now()
    FROM (SELECT unnest(CAST(:ids AS uuid[])) AS id, unnest(CAST(:rings AS int[])) AS ring) AS heard
    WHERE runs.id = heard.id AND runs.ring = heard.ring AND runs.status = 'queued'
    RETURNING runs.id, runs.ring, pool, lane, tenant
""")

_UNTOLD = text(f"""
    SELECT {END_COLUMNS} FROM runs
    WHERE finished_at < now() - make_interval(secs => :seconds) AND NOT end_told
    ORDER BY finished_at LIMIT {BATCH}
""")  # noqa: S608  (a constant)

_MARK_TOLD = text("UPDATE runs SET end_told = true WHERE id = ANY(CAST(:ids AS uuid[]))")

_CANCELLING = text("SELECT id FROM batches WHERE finished_at IS NULL AND status = 'cancelling'")


@dataclass(frozen=True, slots=True)
class _Old:
    """Rows of a table that nobody needs any more."""

    candidates: TextClause
    erase: TextClause

    @classmethod
    def of(cls, table: str, chosen: str) -> _Old:
        """Take the query that chooses some of them."""
        return cls(text(chosen), text(f"DELETE FROM {table} WHERE id IN ({chosen})"))  # noqa: S608  (constants)


_OLD = (
    _Old.of(
        "threads",
        f"""
            SELECT id FROM threads WHERE deleted_at < now() - interval '1 minute' AND {among("id")}
              AND NOT EXISTS (SELECT FROM runs WHERE thread_id = threads.id
                              AND (status IN ('queued', 'running') OR NOT {none_waits("runs")}))
            LIMIT 100 FOR UPDATE SKIP LOCKED
        """,  # noqa: S608  (constants)
    ),
    _Old.of(
        "runs",
        f"""
            SELECT id FROM runs
            WHERE thread_id IS NULL AND finished_at < now() - make_interval(secs => :retention_seconds)
              AND batch_id IS NULL AND {none_waits("runs")} AND {among("id")}
            ORDER BY finished_at LIMIT 500 FOR UPDATE SKIP LOCKED
        """,  # noqa: S608  (constants)
    ),
    _Old.of(
        "webhook_deliveries",
        f"""
            SELECT id FROM webhook_deliveries
            WHERE status <> 'pending' AND created_at < now() - make_interval(secs => :delivery_seconds)
              AND {among("id")}
            ORDER BY created_at LIMIT 5000 FOR UPDATE SKIP LOCKED
        """,  # noqa: S608  (a constant)
    ),
    _Old.of(
        "runs",
        f"""
            SELECT runs.id FROM batches JOIN runs ON batch_id = batches.id
            WHERE deleted_at < now() - interval '1 minute' AND {among("runs.id")}
            LIMIT 500 FOR UPDATE OF runs SKIP LOCKED
        """,  # noqa: S608  (a constant)
    ),
    _Old.of(
        "batches",
        f"""
            SELECT id FROM batches
            WHERE deleted_at < now() - interval '1 minute' AND {among("id")}
              AND NOT EXISTS (SELECT FROM runs WHERE batch_id = batches.id)
            LIMIT 500 FOR UPDATE SKIP LOCKED
        """,  # noqa: S608  (a constant)
    ),
)
"""Each is erased for itself, and a row that cannot be is left out."""

_HIDE_OLD_BATCHES = text(f"""
    UPDATE batches SET deleted_at = now()
    WHERE finished_at < now() - make_interval(secs => :retention_seconds) AND deleted_at IS NULL
      AND {none_waits("batches")}
""")  # noqa: S608  (a constant)

_ERASE_KEYS = text("""
    DELETE FROM idempotency_keys WHERE (tenant, user_id, route, key) IN (
        SELECT tenant, user_id, route, key FROM idempotency_keys WHERE expires_at < now()
        ORDER BY expires_at LIMIT 5000 FOR UPDATE SKIP LOCKED)
""")

_ERASE_WORKERS = text("DELETE FROM workers WHERE ended_at < now() - interval '1 day'")


@dataclass(slots=True)
class _Look:
    """How far a sweeper has looked along a lane, which may be too long for one look."""

    absent: list[str] = field(default_factory=list[str])
    """The calls that stood in no lane at the last sweep."""
    at: datetime | None = None
    id: UUID | None = None


class Sweeper:
    """One process's share of the sweeping."""

    def __init__(self, settings: Settings, database: AsyncEngine, lanes: Lanes, event_log: EventLog) -> None:
        self._settings = settings
        self._database = database
        self._lanes = lanes
        self._event_log = event_log
        self._quota = Quota.of(settings)
        self._hurry = asyncio.Event()
        """Set when somebody was declared dead: its runs need not wait for the next sweep."""
        self._looks: dict[str, _Look] = {}
        self._aside: defaultdict[str, Aside] = defaultdict(Aside)
        """What each step leaves alone for now."""

    async def run(self) -> None:
        """Judge and sweep for ever, at a pace that keeps processes out of step."""
        judging = asyncio.create_task(Judge(self._settings, self._database, self._hurry.set).run())
        try:
            while True:
                try:
                    await self.sweep()
                except (SQLAlchemyError, OSError) as away:
                    log.warning("sweeper.database_away error=%r", away)
                except Exception as error:  # noqa: BLE001  (whatever it is, the next sweep is due)
                    failed("sweeper", "look", error)
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
            "ring_again": (seen.waiting, self._ring_absent),
            "tell_ends": (seen.untold, self._tell_untold),
            "erase": (random.random() * ERASE_SECONDS < SWEEP_SECONDS, self.erase),  # noqa: S311
        }
        for name, (is_wanted, step) in steps.items():
            if is_wanted:
                await _try(name, step)

    async def take_back(self) -> list[Ring]:
        """Have runs that nobody answers any more wait again, or end; and tell both. Returns what waits again."""
        ended, taken = await take_back(self._database, self._settings.max_crashes, self._aside["take_back"])
        ended += await expire(self._database, self._aside["expire"])
        for run in ended:
            run_ended(run)
        for run_id in (*(run.id for run in ended), *(ring.run_id for ring in taken)):
            log.warning("sweeper.took_back run_id=%s", run_id)
            reached(Failpoint.RUNS_TAKEN_BACK)
        await self._lanes.ring(taken)
        for thread_id in {run.thread_id for run in ended} - {None}:
            await _try("next_in_thread", partial(self._ring_next, thread_id))
        await _try("tell_ends", partial(self._tell, ended))
        return taken

    async def _ring_next(self, thread_id: UUID) -> None:
        if ring := await next_in_thread(self._database, thread_id):
            await self._lanes.ring([ring])

    async def _ring_absent(self) -> None:
        await self._lanes.check_writable()  # One that only reads would miss all rings, and take none.
        async with self._database.connect() as connection:
            pools = (await connection.scalars(text("SELECT DISTINCT pool FROM agents"))).all()
        for pool in pools:
            for lane in Lane:
                await _try("ring_again", partial(self._ring_absent_in, pool, lane))

    async def _ring_absent_in(self, pool: str, lane: Lane) -> None:
        """Ring again what stands in no lane now and did not a sweep ago: what was popped just now is being claimed.

        A long lane is looked at a part a sweep; after the end comes the beginning again.
        """
        look = self._looks.setdefault(f"{pool}:{lane}", _Look())
        async with self._database.connect() as connection:
            place = {"at": look.at, "id": look.id}
            due = (await connection.execute(_DUE, {"pool": pool, "lane": lane, **place})).one()
        members: list[str] = due.members or []
        look.at, look.id = (due.at, due.id) if len(members) == BATCH else (None, None)
        absent = dict.fromkeys(await self._lanes.absent(pool, lane, [*look.absent, *members]))
        lost = [member for member in look.absent if member in absent]
        look.absent = [member for member in absent if member not in lost]
        if lost and (again := await self._raise(lost)):
            log.info("sweeper.ring_again runs=%d pool=%s lane=%s", len(again), pool, lane)
            await self._lanes.ring(again)

    async def _raise(self, lost: Sequence[str]) -> list[Ring]:
        """Raise the ring of these runs; of several sweepers that saw the same, one does."""
        calls = [member.split(":") for member in lost]
        async with self._database.begin() as connection:
            rows = await connection.execute(
                _RING_AGAIN, {"ids": [call[0] for call in calls], "rings": [int(call[1]) for call in calls]}
            )
            return [ring_of(row) for row in rows]

    async def _go_on_cancelling(self) -> None:
        """Go on cancelling batches where whoever began has died over it; and the runs that began in that moment."""
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
        async with self._database.connect() as connection:
            untold = (await connection.execute(_UNTOLD, {"seconds": UNTOLD_SECONDS})).all()
        await self._tell(untold)

    async def _tell(self, ended: Sequence[Any]) -> None:
        if ended:
            await self._event_log.tell_ends(ended, self._settings.log_retention_seconds)
            await mark_told(self._database, [run.id for run in ended])

    async def erase(self) -> None:
        """Erase a batch each of what nobody needs any more."""
        lives = {
            "retention_seconds": self._settings.run_retention_days * 86_400,
            "delivery_seconds": self._settings.webhook_retention_days * 86_400,
        }
        for old in _OLD:
            run = self._aside[old.erase.text].run
            await _try("erase", partial(run, self._database, old.erase, old.candidates, lives))
        for statement in (_HIDE_OLD_BATCHES, _ERASE_KEYS, _ERASE_WORKERS):
            await _try("erase", partial(transact, self._database, statement, lives))


async def _try(name: str, step: Callable[[], Awaitable[object]]) -> None:
    """Make one step; the next is made whatever this one raises, but for a database that is away, which all need."""
    try:
        await step()
    except RedisError as away:
        log.warning("sweeper.redis_away step=%s error=%r", name, away)
    except Exception as error:
        if is_away(error):
            raise
        failed("sweeper", name, error)


async def mark_told(database: AsyncEngine, run_ids: Sequence[UUID]) -> None:
    """Note that the ends of these runs stand in the log, so that nobody need tell them again."""
    async with database.begin() as connection:
        await connection.execute(_MARK_TOLD, {"ids": list(run_ids)})
