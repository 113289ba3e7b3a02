"""How many runs of a user and of a tenant run at once: one above that is passed over, and holds no slot while it waits.

Passed over means not due before its deadline: nobody claims it, and no sweeper rings for it. Whoever ends a run makes
the one due that was accepted first of those that have room now. Runs of batches neither count nor are passed over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from agent_relay.shared.database.typed_rows import read
from agent_relay.shared.queue import QueueEntry
from agent_relay.shared.runs.sql import NEW_ENTRY, QUEUE_ENTRY, first_in_thread
from agent_relay.shared.settings import Settings

MOST = 1000
"""Runs that one statement makes due where there is no limit any more."""

_RUNNING = "status = 'running' AND lane = 'interactive'"

PASSED_OVER = "status = 'queued' AND lane = 'interactive' AND due_at = deadline_at"

_TAKE_TURNS = text("""
    SELECT pg_advisory_xact_lock(hashtextextended(
        'running:' || tenant || CASE WHEN CAST(:of_tenant AS int) = 0 THEN ':' || user_id ELSE '' END, 0))
    FROM runs WHERE id = :run_id AND lane = 'interactive'
""")

_PASS_OVER = text(f"""
    UPDATE runs AS run SET due_at = deadline_at
    WHERE id = :run_id AND status = 'queued' AND lane = 'interactive' AND due_at <= now() AND deadline_at > now()
      AND (crashes = 0 OR CAST(:isolated AS boolean))
      AND {first_in_thread("run")}
      AND (
          (SELECT count(*) FROM (
              SELECT FROM runs WHERE {_RUNNING} AND tenant = run.tenant AND user_id = run.user_id LIMIT :of_user
          ) AS them) >= nullif(CAST(:of_user AS int), 0)
          OR (SELECT count(*) FROM (
              SELECT FROM runs WHERE {_RUNNING} AND tenant = run.tenant LIMIT :of_tenant
          ) AS them) >= nullif(CAST(:of_tenant AS int), 0)
      )
    RETURNING id
""")  # noqa: S608  (constants)

_RELEASE = text(f"""
    WITH busy AS MATERIALIZED (
        SELECT user_id, count(*) AS runs FROM runs WHERE {_RUNNING} AND tenant = :tenant GROUP BY user_id
    )
    UPDATE runs SET due_at = now(), {NEW_ENTRY}
    WHERE id IN (
        SELECT id FROM runs
        WHERE {PASSED_OVER} AND tenant = :tenant
          AND (CAST(:of_tenant AS int) = 0 OR (SELECT coalesce(sum(busy.runs), 0) FROM busy) < :of_tenant)
          AND (CAST(:of_user AS int) = 0 OR user_id NOT IN (SELECT user_id FROM busy WHERE busy.runs >= :of_user))
        ORDER BY created_at LIMIT :most FOR UPDATE SKIP LOCKED
    )
    RETURNING {QUEUE_ENTRY}
""")  # noqa: S608  (constants)

_TENANTS = text(f"SELECT DISTINCT tenant FROM runs WHERE {PASSED_OVER}")  # noqa: S608  (a constant)


@dataclass(frozen=True, slots=True)
class Quota:
    """How many may run at once; 0 is no limit. It is exact, because those who claim and end such runs take turns."""

    of_user: int = 0
    of_tenant: int = 0

    @classmethod
    def of(cls, settings: Settings) -> Quota:
        """Read the limits that are set; the same in all processes."""
        return cls(settings.max_running_per_user, settings.max_running_per_tenant)

    def __bool__(self) -> bool:
        return bool(self.of_user or self.of_tenant)

    async def pass_over(self, connection: AsyncConnection, run_id: UUID, *, isolated: bool) -> bool:
        """Pass over a run that could be claimed but for its user or tenant, in the transaction that would claim it.

        Who ends a run of theirs waits for that transaction, and sees what was passed over.
        """
        if not self:
            return False
        await self._take_turns(connection, run_id)
        values = {"run_id": run_id, "isolated": isolated, "of_user": self.of_user, "of_tenant": self.of_tenant}
        return (await connection.execute(_PASS_OVER, values)).one_or_none() is not None

    async def release(self, database: AsyncEngine, run_id: UUID, tenant: str) -> list[QueueEntry]:
        """After this run of the tenant has ended: make one due that was passed over; returns the ring for it.

        It goes in turn, not first: a tenant whose runs are passed over would else keep the slots from all others.
        """
        if not self:
            return []
        async with database.begin() as connection:
            await self._take_turns(connection, run_id)
            return await self._release(connection, tenant, 1)

    async def release_forgotten(self, database: AsyncEngine) -> list[QueueEntry]:
        """Make due what has room although nobody ended a run, or died before it came to this: one a tenant.

        All of them, where there is no limit any more.
        """
        rings: list[QueueEntry] = []
        async with database.begin() as connection:
            tenants: Sequence[str] = (await connection.scalars(_TENANTS)).all()
            for tenant in tenants:
                rings += await self._release(connection, tenant, 1 if self else MOST)
        return rings

    async def _take_turns(self, connection: AsyncConnection, run_id: UUID) -> None:
        await connection.execute(_TAKE_TURNS, {"run_id": run_id, "of_tenant": self.of_tenant})

    async def _release(self, connection: AsyncConnection, tenant: str, most: int) -> list[QueueEntry]:
        values = {"tenant": tenant, "of_user": self.of_user, "of_tenant": self.of_tenant, "most": most}
        rings = read(await connection.execute(_RELEASE, values), QueueEntry)
        return sorted(rings, key=lambda ring: ring.run_id)


NO_QUOTA = Quota()
