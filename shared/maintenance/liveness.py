"""The liveness check declares workers dead whose lease has run out while the database answered all the time.

It runs in any number of processes, with no leader. It waits for nothing but the database, neither for Redis nor for a
sweep: a delay would look like an outage of the database.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from datetime import datetime, timedelta

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from agent_relay.shared.away import skip_if_database_away, skip_if_failed
from agent_relay.shared.runs.recovery import judge_workers
from agent_relay.shared.settings import Settings

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
LOOKS_A_LEASE = 6
"""With a short lease the looks are nearer to one another, else no database would ever count as unbroken."""

_LOOK = text("""
    WITH heartbeat AS (UPDATE workers SET lease_until = lease_until WHERE false)
    SELECT now() AS at, EXISTS (SELECT FROM workers WHERE ended_at IS NULL AND lease_until < now()) AS lapsed
""")
"""It changes nothing, and fails where a heartbeat would: a database that is read-only has kept the living from it."""


class UptimeWindow:
    """The time since which the database has answered without a break, by its own clock.

    A lease counts as lost only then: while a database is away, living workers cannot send heartbeats either.
    """

    def __init__(self, lease_seconds: float) -> None:
        self._lease = timedelta(seconds=lease_seconds)
        self._since: datetime | None = None
        self._seen: datetime | None = None

    def answered(self, at: datetime) -> None:
        """Note an answer; a late one resets the uptime window.

        Half a lease is not late. A worker that sends its heartbeats in time has two thirds of its lease left at any
        moment: it survives an outage that is shorter than that.
        """
        if self._since is None or self._seen is None or at - self._seen > self._lease / 2:
            self._since = at
        self._seen = at

    def broke(self) -> None:
        """Note a failure."""
        self._since = None

    @property
    def for_a_lease(self) -> bool:
        """Whether a worker without a heartbeat is dead, and not only cut off."""
        return self._since is not None and self._seen is not None and self._seen - self._since >= self._lease


class Judge:
    """One process's share of the judging."""

    def __init__(self, settings: Settings, database: AsyncEngine, judged: Callable[[], None]) -> None:
        self._pause_seconds = min(LOOK_SECONDS, settings.lease_seconds / LOOKS_A_LEASE)
        self._database = database
        self._judged = judged
        self._unbroken = UptimeWindow(settings.lease_seconds)

    async def run(self) -> None:
        """Check for ever, at a pace that keeps processes out of step; `judged` is called after each death."""
        while True:
            answered = skip_if_database_away(log, "judge.database_away")
            with skip_if_failed("judge", "look"), answered:
                await self._look()
            if answered.error is not None:
                self._unbroken.broke()
            await asyncio.sleep(self._pause_seconds * random.uniform(0.75, 1.25))  # noqa: S311

    async def _look(self) -> None:
        async with self._database.connect() as connection:
            seen = (await connection.execute(_LOOK)).one()
        self._unbroken.answered(seen.at)
        if seen.lapsed and self._unbroken.for_a_lease and (dead := await judge_workers(self._database)):
            for worker_id in dead:
                log.warning("judge.worker_lost worker_id=%s", worker_id)
            self._judged()
