"""Limits of the runs of a user and of a tenant that run at once: one above is throttled, and waits without a slot.

A throttled run is not due before its deadline: no worker claims it, and no sweeper enqueues it. The process that ends
a run makes one run due again: the first accepted of those within the limits. Runs of batches neither count nor wait.
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
    """How many runs may run at once; 0 is no limit. It is exact: claims and ends of such runs wait for each other."""

    of_user: int = 0
    of_tenant: int = 0

    @classmethod
    def of(cls, settings: Settings) -> Quota:
        """Read the limits that are set; the same in all processes."""
        return cls(settings.max_running_per_user, settings.max_running_per_tenant)

    def __bool__(self) -> bool:
        return bool(self.of_user or self.of_tenant)

    async def pass_over(self, connection: AsyncConnection, run_id: UUID, *, isolated: bool) -> bool:
        """Throttle a run that is only kept by a limit of its user or tenant, in the transaction that would claim it.

        The end of another run of theirs waits for that transaction, and sees the throttled run.
        """
        if not self:
            return False
        await self._take_turns(connection, run_id)
        values = {"run_id": run_id, "isolated": isolated, "of_user": self.of_user, "of_tenant": self.of_tenant}
        return (await connection.execute(_PASS_OVER, values)).one_or_none() is not None

    async def release(self, database: AsyncEngine, run_id: UUID, tenant: str) -> list[QueueEntry]:
        """After a run of the tenant has ended: make one throttled run due; returns its queue entry.

        It goes in turn, not first: otherwise a tenant with throttled runs would keep the slots from all others.
        """
        if not self:
            return []
        async with database.begin() as connection:
            await self._take_turns(connection, run_id)
            return await self._release(connection, tenant, 1)

    async def release_forgotten(self, database: AsyncEngine) -> list[QueueEntry]:
        """Make throttled runs due that are within the limits, one for each tenant, if no process did so at an end.

        If there is no limit any more, make all of them due.
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
