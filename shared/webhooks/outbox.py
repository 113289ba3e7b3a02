"""The deliveries: written where a run or a batch ends, due until a worker has made them.

Whatever statement ends one, a trigger writes its delivery (`write_webhook_delivery`, in the migrations), in the same
transaction. Another table whose rows end is told of alike: give it the columns `tenant`, `user_id`, `status`,
`webhook_url` and `finished_at`, a trigger with its noun for an argument, and a line in `message.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine


class DeliveryStatus(StrEnum):
    """Where a delivery is in its life."""

    PENDING = "pending"
    """It is due, or will be."""
    DELIVERED = "delivered"
    """The receiver said 2xx."""
    FAILED = "failed"
    """It was tried as often as the schedule says, or the receiver redirected."""
    DISABLED = "disabled"
    """The receiver said 410 Gone, to this delivery or to another one for the same URL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One attempt at a delivery, as the worker that claimed it sees it."""

    id: UUID
    """The `webhook-id`, the same for all attempts."""
    attempt: int
    """The fence: who settles must name it."""
    step: int
    """How far on the schedule it is."""
    tenant: str
    type: str
    """`<noun>.<status>`."""
    resource_id: UUID
    url: str
    occurred_at: datetime


def none_waits(table: str) -> str:
    """Say in SQL whether a row of a table may be erased: what a delivery tells is read from it until that was made."""
    return f"NOT EXISTS (SELECT FROM webhook_deliveries WHERE resource_id = {table}.id AND status = 'pending')"


_CLAIM = text("""
    WITH due AS (
        SELECT picked.id FROM (
            SELECT tenant FROM webhook_deliveries
            WHERE status = 'pending' AND due_at <= now() AND tenant <> ALL(CAST(:busy AS text[]))
            GROUP BY tenant ORDER BY random()
        ) AS waiting CROSS JOIN LATERAL (
            SELECT id FROM webhook_deliveries
            WHERE tenant = waiting.tenant AND status = 'pending' AND due_at <= now()
            ORDER BY due_at LIMIT :of_a_tenant FOR UPDATE SKIP LOCKED
        ) AS picked LIMIT :most
    )
    UPDATE webhook_deliveries AS delivery
    SET attempts = attempts + 1, last_attempt_at = now(), due_at = now() + make_interval(secs => :lease_seconds)
    FROM due WHERE delivery.id = due.id
    RETURNING delivery.id, attempts AS attempt, step, tenant, type, resource_id, url, occurred_at
""")

_SETTLE = text("""
    UPDATE webhook_deliveries
    SET status = :status, step = step + 1, due_at = now() + make_interval(secs => :pause_seconds),
        response_status = :response_status, error = :error
    WHERE id = :id AND attempts = :attempt AND status = 'pending'
""")

_DISABLE = text("""
    UPDATE webhook_deliveries SET status = 'disabled'
    WHERE id IN (
        SELECT id FROM webhook_deliveries WHERE tenant = :tenant AND url = :url AND status = 'pending'
        FOR UPDATE SKIP LOCKED
    )
""")

_REDELIVER = text("""
    UPDATE webhook_deliveries SET status = 'pending', step = 0, due_at = now()
    WHERE id = :id AND tenant = :tenant AND user_id = :user_id RETURNING *
""")


async def claim(
    database: AsyncEngine, *, most: int, of_a_tenant: int, busy: Sequence[str], lease_seconds: float
) -> list[Delivery]:
    """Take deliveries that are due, of each tenant a few, none of those that are `busy`.

    What is not settled within the lease is due again: its worker has died.
    """
    async with database.begin() as connection:
        rows = await connection.execute(
            _CLAIM, {"most": most, "of_a_tenant": of_a_tenant, "busy": list(busy), "lease_seconds": lease_seconds}
        )
        return [Delivery(**row) for row in rows.mappings()]


async def settle(
    database: AsyncEngine,
    delivery: Delivery,
    status: DeliveryStatus,
    *,
    response_status: int | None,
    error: str | None,
    pause_seconds: float = 0,
) -> None:
    """Store what came of an attempt; pending again, it is due after a pause. One that was overtaken stores nothing."""
    async with database.begin() as connection:
        await connection.execute(
            _SETTLE,
            {
                "id": delivery.id,
                "attempt": delivery.attempt,
                "status": status,
                "response_status": response_status,
                "error": error,
                "pause_seconds": pause_seconds,
            },
        )
        if status is DeliveryStatus.DISABLED:
            await connection.execute(_DISABLE, {"tenant": delivery.tenant, "url": delivery.url})


async def redeliver(connection: AsyncConnection, delivery_id: UUID, tenant: str, user_id: UUID) -> Any | None:
    """Make a delivery due now and begin its schedule anew, whatever became of it; None where there is none."""
    owned = {"id": delivery_id, "tenant": tenant, "user_id": user_id}
    return (await connection.execute(_REDELIVER, owned)).one_or_none()
