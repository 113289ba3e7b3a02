"""Queue limits: how many runs may wait, of a user, of a tenant and in all, and how long the oldest may have waited.

Waiting runs are counted in the statement that stores a run, and never further than to the limit. A limit of 0 is none,
and is not counted. Runs of batches count against limits of their own, by the counts of the batches. Runs that
start later are counted apart, against the same limits; once one has started, it counts among those that wait.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from agent_relay.shared.errors import AgentNotServed, Limit, QueueFull
from agent_relay.shared.runs.spending import SpendLimit
from agent_relay.shared.runs.sql import first_in_thread
from agent_relay.shared.served_agents import not_served_for_long, served
from agent_relay.shared.settings import Settings

NEAR = 50
"""If a user or a tenant is within this number of its limit, its runs are stored one after the other."""
LOOK_SECONDS = 1.0
"""Seconds for which a process uses the free room of the queue that it has read."""
LARGE = 1000
"""For limits of a user or a tenant from this on, a process also uses the room that it has read, while half is left."""
REMEMBERED = 10_000
"""Users and tenants whose room is kept in memory."""
OLDEST = 1000
"""How many of the first accepted runs are searched for one that has waited for too long."""

_QUEUED = "status = 'queued' AND lane = 'interactive' AND NOT starts_later"
_LATER = "status = 'queued' AND lane = 'interactive' AND starts_later"


def _full(counted: str) -> str:
    return f"""
    SELECT queued, of_user, of_tenant,
        of_user >= nullif(CAST(:most_of_user AS int), 0) AS user_queue_full,
        of_tenant >= nullif(CAST(:most_of_tenant AS int), 0) AS tenant_queue_full,
        queued >= nullif(CAST(:most AS int), 0) AS queue_full,
        CAST(:oldest_seconds AS float) > 0 AND EXISTS (
            SELECT FROM (
                SELECT * FROM runs
                WHERE {counted} AND pool = (SELECT pool FROM agents WHERE agent_type = :agent_type)
                  AND created_at < now() - make_interval(secs => :oldest_seconds)
                ORDER BY created_at LIMIT {OLDEST}
            ) AS old
            WHERE rung_at < now() - make_interval(secs => :oldest_seconds) AND due_at <= now() AND crashes = 0
              AND {first_in_thread("old")}
        ) AS queue_slow,
        served, NOT served AND {not_served_for_long(":agent_type")} AS agent_not_served
    FROM (
        SELECT count(*) AS of_user FROM (
            SELECT FROM runs WHERE {counted} AND tenant = :tenant AND user_id = :user_id LIMIT :most_of_user) AS them
    ) AS of_user, (
        SELECT count(*) AS of_tenant FROM (
            SELECT FROM runs WHERE {counted} AND tenant = :tenant LIMIT :most_of_tenant) AS them
    ) AS of_tenant, (
        SELECT count(*) AS queued FROM (SELECT FROM runs WHERE {counted} LIMIT :most) AS them
    ) AS queued, (
        SELECT {served(":agent_type")} AS served
    ) AS of_agent
"""  # noqa: S608  (constants)


FULL = _full(_QUEUED)
"""The limits that are reached, each a column of its name; null if there is none. And whether the agent is served.

The age is that of a run that waits for nothing but a slot, since it was enqueued: it is due, the first of its thread,
and needs no process of its own. Only runs of the asked agent's pool count: others do not take its slots.
"""
FULL_OF_LATER = _full(_LATER)
"""The same of runs that start later."""


@dataclass(frozen=True, slots=True)
class Room:
    """The counts of a statement that is guarded by `FULL`: a limit is reached if its column is set."""

    queued: int
    of_user: int
    of_tenant: int
    user_queue_full: bool | None
    tenant_queue_full: bool | None
    queue_full: bool | None
    queue_slow: bool
    served: bool
    agent_not_served: bool


Stored = TypeVar("Stored")
"""The result of the write; None where a queue limit was reached."""

NO_LIMITS = {"most_of_user": 0, "most_of_tenant": 0, "most": 0, "oldest_seconds": 0.0, "unserved_seconds": 0.0}

_TAKE_TURNS = text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))")

_IN_BATCHES = text("""
    SELECT coalesce(sum(total - succeeded - failed - cancelled) FILTER (WHERE tenant = :tenant), 0) AS of_tenant,
        coalesce(sum(total - succeeded - failed - cancelled), 0) AS of_all
    FROM batches WHERE finished_at IS NULL
""")


@dataclass(slots=True)
class _Quota:
    """One limit while a run is stored: reduced by a margin for concurrent inserts until the advisory lock is held."""

    most: int
    lock: str
    locked: bool = False

    @property
    def limit(self) -> int:
        """The limit for now; 0 for none, below that where there is no room for others."""
        return self.most if self.locked or not self.most else self.most - NEAR or -1


class _Rooms:
    """The room that this process has seen below the large limits of users and tenants, and what it stored since."""

    def __init__(self) -> None:
        self._rooms: dict[str, tuple[int, float]] = {}

    def counted(self, name: str, most: int) -> int:
        """Return the limit up to which to count now; 0 if there is so much room that no count is needed."""
        room, seen_at = self._rooms.get(name, (0, 0.0))
        if most < LARGE or room <= most // 2 or time.monotonic() - seen_at > LOOK_SECONDS:
            return most
        self._rooms[name] = (room - 1, seen_at)
        return 0

    def saw(self, name: str, room: int) -> None:
        """Store the counts."""
        if len(self._rooms) >= REMEMBERED:
            self._rooms.clear()
        self._rooms[name] = (room, time.monotonic())


class Admission:
    """The limits that are set, and the last counts that this process has read.

    Those of a user and of a tenant are exact, as long as fewer than `NEAR` runs of theirs are stored at once. That of
    the whole queue can be exceeded by runs that are stored at the same moment, and by runs of other processes within
    `LOOK_SECONDS`. Those of batches are exact: if there are any, batches are committed one after the other.
    """

    def __init__(self, settings: Settings, spending: SpendLimit | None = None) -> None:
        self._settings = settings
        self._spending = spending
        """None if accepting does not depend on today's budget."""
        self._rooms = _Rooms()
        self._room = 0
        """In the queue, by what this process has seen of it and stored since."""
        self._looked_at = 0.0
        self.unserved_seconds = settings.agent_unserved_seconds

    @cached_property
    def of_later(self) -> Admission:
        """The same limits, for runs that start later: `FULL_OF_LATER` counts them."""
        return Admission(self._settings)

    async def admit(
        self,
        connection: AsyncConnection,
        tenant: str,
        user_id: UUID,
        store: Callable[[dict[str, Any]], Awaitable[tuple[Room, Stored]]],
    ) -> Stored:
        """Store a run by a statement that is guarded by `FULL`; returns the statement's columns beside the room.

        Raises:
            BudgetExhausted: the tenant may spend nothing more today.
            AgentNotServed: no worker has served the agent for a while.
            QueueFull: a limit is reached.
        """
        if self._spending is not None:
            await self._spending.check(connection, tenant)
        settings = self._settings
        look = self._room <= 0 or time.monotonic() - self._looked_at > LOOK_SECONDS
        limits = {
            "most": settings.max_queued if look else 0,
            "oldest_seconds": settings.max_queued_seconds,
            "unserved_seconds": self.unserved_seconds,
        }
        room, stored = await self._in_turn(connection, tenant, user_id, lambda quotas: store(limits | quotas))
        if room.agent_not_served:
            raise AgentNotServed(self.unserved_seconds)
        if look:
            self._room, self._looked_at = settings.max_queued - room.queued, time.monotonic()
        self._room -= 1
        for limit, most in (
            (Limit.USER, settings.queued_per_user),
            (Limit.TENANT, settings.queued_per_tenant),
            (Limit.QUEUE, settings.max_queued),
            (Limit.AGE, settings.max_queued_seconds),
        ):
            if getattr(room, limit):
                raise QueueFull(limit, most)
        return stored

    async def _in_turn(
        self,
        connection: AsyncConnection,
        tenant: str,
        user_id: UUID,
        store: Callable[[dict[str, int]], Awaitable[tuple[Room, Stored]]],
    ) -> tuple[Room, Stored]:
        """Store a run; where a limit of its user or its tenant is near, in turn with others, the user's first."""
        name = f"queued:{tenant}"
        user = _Quota(self._rooms.counted(f"{name}:{user_id}", self._settings.queued_per_user), f"{name}:{user_id}")
        of_tenant = _Quota(self._rooms.counted(name, self._settings.queued_per_tenant), name)
        found: tuple[Room, Stored] | None = None
        for turn in (None, user, of_tenant):
            if turn is not None:
                if not turn.most:
                    continue
                await connection.execute(_TAKE_TURNS, {"name": turn.lock})
                turn.locked = True
            if user.limit < 0 or of_tenant.limit < 0:
                continue
            found = await store({"most_of_user": user.limit, "most_of_tenant": of_tenant.limit})
            room, _ = found
            if (user.locked or not room.user_queue_full) and (of_tenant.locked or not room.tenant_queue_full):
                break
        assert found is not None, "both limits are locked in the last turn"  # noqa: S101
        room, _ = found
        for quota, queued in ((user, room.of_user), (of_tenant, room.of_tenant)):
            if quota.most:
                self._rooms.saw(quota.lock, quota.most - queued - 1)
        return found

    async def admit_batch(
        self, connection: AsyncConnection, tenant: str, items: int, store: Callable[[], Awaitable[Stored]]
    ) -> Stored:
        """Store a batch of this number of runs, in the caller's transaction; returns the result of `store`.

        The limits are checked before it is stored, to refuse early, and again afterwards, one batch after the other:
        batches wait for each other's commit only, and not while runs are copied.

        Raises:
            BudgetExhausted: the tenant may spend nothing more today.
            QueueFull: a limit would be exceeded; the transaction is to be rolled back.
        """
        if self._spending is not None:
            await self._spending.check(connection, tenant)
        if not self._settings.batch_unfinished_per_tenant and not self._settings.max_batch_unfinished:
            return await store()
        await self._see_room(connection, tenant, items)
        stored = await store()
        await connection.execute(_TAKE_TURNS, {"name": "batches"})
        await self._see_room(connection, tenant, 0)
        return stored

    async def _see_room(self, connection: AsyncConnection, tenant: str, items: int) -> None:
        of_tenant = self._settings.batch_unfinished_per_tenant
        most = self._settings.max_batch_unfinished
        unfinished = (await connection.execute(_IN_BATCHES, {"tenant": tenant})).one()
        if 0 < of_tenant < unfinished.of_tenant + items:
            raise QueueFull(Limit.BATCHES_OF_TENANT, of_tenant)
        if 0 < most < unfinished.of_all + items:
            raise QueueFull(Limit.BATCHES, most)
