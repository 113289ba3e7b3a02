"""The spend limit: what the runs of a tenant may cost on a day (UTC), as far as the prices of their models are known.

It is checked when a run or a batch is accepted and when an attempt begins. Running attempts are not stopped, and
neither are those that begin while a process still uses a sum that it has read.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from datetime import UTC
from decimal import Decimal
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from agent_relay.shared.clock import now
from agent_relay.shared.database.tables import IS_UNFINISHED
from agent_relay.shared.errors import BudgetExhausted
from agent_relay.shared.settings import Settings

DAY_SECONDS = 86_400
LOOK_SECONDS = 2.0
"""Seconds for which a process uses a sum, at least."""
MOST_OF_THE_TIME = 20
"""The inverse of the share of its time that it reads sums, at most."""
REMEMBERED = 10_000
"""Tenants whose sums are known."""

_COST = "CASE jsonb_typeof(usage -> 'cost_usd') WHEN 'number' THEN CAST(usage ->> 'cost_usd' AS numeric) END"

_SPENT = text(f"""
    SELECT coalesce(sum(cost), 0) FROM (
        SELECT {_COST} AS cost FROM runs
        WHERE tenant = :tenant AND finished_at >= date_trunc('day', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC'
        UNION ALL
        SELECT {_COST} FROM runs WHERE tenant = :tenant AND {IS_UNFINISHED} AND usage <> '{{}}'
        UNION ALL
        SELECT cost_usd FROM past_usage WHERE tenant = :tenant AND day = CAST(now() AT TIME ZONE 'UTC' AS date)
    ) AS spent
""")  # noqa: S608  (constants)
"""The cost of runs that ended today, of runs that have not ended, and of runs that ended today and were erased."""


class SpendLimit:
    """The limit that is set, and the sums that this process has seen."""

    def __init__(self, settings: Settings) -> None:
        self._most = settings.max_cost_usd_per_tenant_day
        self._seen: dict[str, tuple[bool, float]] = {}
        """Whether a tenant may spend nothing more, and the time until which that holds."""

    async def check(self, connection: AsyncConnection, tenant: str) -> None:
        """See that a tenant may still spend something today.

        Raises:
            BudgetExhausted: it may not.
        """
        if self._most and await self._is_reached(tenant, connection.execute):
            passed = now().astimezone(UTC)
            begun = passed.replace(hour=0, minute=0, second=0, microsecond=0)
            raise BudgetExhausted(self._most, DAY_SECONDS - int((passed - begun).total_seconds()))

    async def check_of(self, database: AsyncEngine, tenant: str) -> None:
        """See the same, on a connection of its own.

        Raises:
            BudgetExhausted: it may not.
        """
        if self._most:
            async with database.connect() as connection:
                await self.check(connection, tenant)

    async def _is_reached(self, tenant: str, execute: Callable[..., Awaitable[Any]]) -> bool:
        is_reached, until = self._seen.get(tenant, (False, 0.0))
        began = time.monotonic()
        if began < until:
            return is_reached
        spent: Decimal = (await execute(_SPENT, {"tenant": tenant})).scalar_one()
        is_reached, ended = float(spent) >= self._most, time.monotonic()
        if len(self._seen) >= REMEMBERED:
            self._seen.clear()
        self._seen[tenant] = is_reached, ended + max(LOOK_SECONDS, MOST_OF_THE_TIME * (ended - began))
        return is_reached
