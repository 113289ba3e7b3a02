"""The deliveries: written when a run or a batch ends, due until a worker has made them.

When a statement ends one, a trigger writes its delivery (`write_webhook_delivery`, in the migrations), in the same
transaction. For deliveries of another table whose rows end, give it the columns `tenant`, `user_id`, `status`,
`webhook_url` and `finished_at`, a trigger with its noun for an argument, and a line in `message.py`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from agent_relay.shared.database.typed_rows import columns, read, read_one


class DeliveryStatus(StrEnum):
    """Where a delivery is in its life."""

    PENDING = "pending"
    """It is due, or will be."""
    DELIVERED = "delivered"
    """The receiver said 2xx."""
    FAILED = "failed"
    """All attempts of the schedule have failed, or the receiver redirected."""
    DISABLED = "disabled"
    """The receiver said 410 Gone, to this delivery or to another one for the same URL."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """One attempt at a delivery, as the worker that claimed it sees it."""

    id: UUID
    """The `webhook-id`, the same for all attempts."""
    attempt: int
    """The fence: the statement that settles the delivery names it."""
    step: int
    """How far on the schedule it is."""
    tenant: str
    type: str
    """`<noun>.<status>`."""
    resource_id: UUID
    url: str
    occurred_at: datetime


@dataclass(frozen=True, slots=True)
class DeliveryRow:
    """A delivery as it is shown."""

    id: UUID
    type: str
    resource_id: UUID
    url: str
    status: str
    attempts: int
    response_status: int | None
    error: str | None
    created_at: datetime
    last_attempt_at: datetime | None
    due_at: datetime


def none_waits(table: str) -> str:
    """Return the SQL for whether a row may be erased: a delivery that is not made yet is read from it."""
    return f"NOT EXISTS (SELECT FROM webhook_deliveries WHERE resource_id = {table}.id AND status = 'pending')"


FRONT = 1000
"""How many of the due deliveries of a tenant are read, the oldest first."""

_RECEIVER = "lower(substring(url FROM '^[A-Za-z]+://[^/?]+'))"
"""The receiver of a delivery, as `receiver_of` returns it."""

_FRONT = f"""
    SELECT id, due_at, {_RECEIVER} AS receiver FROM webhook_deliveries
    WHERE tenant = waiting.tenant AND status = 'pending' AND due_at <= now()
    ORDER BY due_at LIMIT {FRONT}
"""  # noqa: S608  (constants)

_CLAIM = text(f"""
    WITH due AS (
        SELECT picked.id FROM (
            SELECT tenant FROM webhook_deliveries
            WHERE status = 'pending' AND due_at <= now() AND tenant <> ALL(CAST(:busy AS text[]))
            GROUP BY tenant ORDER BY random()
        ) AS waiting CROSS JOIN LATERAL (
            SELECT delivery.id FROM (
                SELECT id, row_number() OVER (PARTITION BY receiver ORDER BY due_at) AS place FROM ({_FRONT}) AS front
                WHERE receiver <> ALL(
                    SELECT receiver FROM unnest(CAST(:busy_tenants AS text[]), CAST(:busy_receivers AS text[]))
                        AS held (tenant, receiver)
                    WHERE held.tenant = waiting.tenant
                )
            ) AS open JOIN webhook_deliveries AS delivery USING (id)
            WHERE place <= :of_a_receiver AND status = 'pending' AND due_at <= now()
            ORDER BY due_at LIMIT :of_a_tenant FOR UPDATE OF delivery SKIP LOCKED
        ) AS picked LIMIT :most
    )
    UPDATE webhook_deliveries AS delivery
    SET attempts = attempts + 1, last_attempt_at = now(), due_at = now() + make_interval(secs => :lease_seconds)
    FROM due WHERE delivery.id = due.id
    RETURNING {columns(Delivery, "delivery", attempt="attempts")}
""")  # noqa: S608  (constants)

_STEP_ASIDE = text(f"""
    UPDATE webhook_deliveries SET due_at = now() + make_interval(secs => 5 + 10 * random())
    WHERE id IN (
        SELECT delivery.id
        FROM unnest(CAST(:busy_tenants AS text[]), CAST(:busy_receivers AS text[])) AS waiting (tenant, busy)
        CROSS JOIN LATERAL (SELECT *, count(*) OVER () AS looked_at FROM ({_FRONT}) AS front) AS front
        JOIN webhook_deliveries AS delivery USING (id)
        WHERE looked_at = {FRONT} AND receiver = busy AND delivery.status = 'pending' AND delivery.due_at <= now()
        FOR UPDATE OF delivery SKIP LOCKED
    )
""")  # noqa: S608  (constants)
"""If the oldest deliveries of a tenant fill the limit, those for a busy receiver go behind the others."""

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

_REDELIVER = text(f"""
    UPDATE webhook_deliveries SET status = 'pending', step = 0, due_at = now()
    WHERE id = :id AND tenant = :tenant AND user_id = :user_id RETURNING {columns(DeliveryRow)}
""")  # noqa: S608  (constants)


def receiver_of(url: str) -> str:
    """Return the receiver of a delivery: the scheme, host and port of its URL."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('/')[0].partition('?')[0]}".lower()


async def claim(
    database: AsyncEngine,
    *,
    most: int,
    of_a_tenant: int,
    of_a_receiver: int,
    busy: Collection[str],
    busy_receivers: Collection[tuple[str, str]],
    lease_seconds: float,
) -> list[Delivery]:
    """Take deliveries that are due, of each tenant a few, and of these for each receiver a few.

    Not of tenants that are `busy`, nor for receivers that are, each given with its tenant. A delivery that is not
    settled within the lease is due again: its worker has died.
    """
    held = {
        "busy_tenants": [tenant for tenant, _ in busy_receivers],
        "busy_receivers": [receiver for _, receiver in busy_receivers],
    }
    values = {"most": most, "of_a_tenant": of_a_tenant, "of_a_receiver": of_a_receiver, "lease_seconds": lease_seconds}
    async with database.begin() as connection:
        if busy_receivers:
            await connection.execute(_STEP_ASIDE, held)
        rows = await connection.execute(_CLAIM, {"busy": list(busy), **held, **values})
        return read(rows, Delivery)


async def settle(
    database: AsyncEngine,
    delivery: Delivery,
    status: DeliveryStatus,
    *,
    response_status: int | None,
    error: str | None,
    pause_seconds: float = 0,
) -> None:
    """Store the result of an attempt; pending again, it is due after a pause. One that was overtaken stores nothing."""
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


async def redeliver(connection: AsyncConnection, delivery_id: UUID, tenant: str, user_id: UUID) -> DeliveryRow | None:
    """Make a delivery due now and begin its schedule again, whatever its status; None if there is none."""
    owned = {"id": delivery_id, "tenant": tenant, "user_id": user_id}
    return read_one(await connection.execute(_REDELIVER, owned), DeliveryRow)
