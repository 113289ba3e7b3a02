"""What is posted: the event as JSON, and the headers that prove who sent it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from standardwebhooks import Webhook

from shared import VERSION
from shared.clock import now
from shared.resources import BatchEvent, RunEvent, batch_of, run_of
from shared.webhooks.outbox import Delivery
from shared.webhooks.secret import signing_secrets

_RESOURCES: dict[str, tuple[Any, Any, Any]] = {
    "run": (text("SELECT * FROM runs WHERE id = :id"), run_of, RunEvent),
    "batch": (text("SELECT *, 0 AS running FROM batches WHERE id = :id"), batch_of, BatchEvent),
}
"""How to read and show what an event tells of, by the noun its type begins with. It has ended, so it never changes."""


@dataclass(frozen=True, slots=True)
class Message:
    """What is posted."""

    body: bytes
    headers: dict[str, str]


async def message_of(database: AsyncEngine, delivery: Delivery, overlap_seconds: float) -> Message | None:
    """Write the message of a delivery, signed as of now; None where what it tells of is gone."""
    read, show, event_of = _RESOURCES[delivery.type.partition(".")[0]]
    async with database.begin() as connection:
        row = (await connection.execute(read, {"id": delivery.resource_id})).one_or_none()
        if row is None:
            return None
        secrets = await signing_secrets(connection, delivery.tenant, overlap_seconds)
    event = event_of(type=delivery.type, timestamp=delivery.occurred_at, data=show(row))
    return sign(str(delivery.id), event.model_dump_json(), secrets, now())


def sign(message_id: str, body: str, secrets: list[str], at: datetime) -> Message:
    """Sign a body with each of the secrets, as Standard Webhooks says it."""
    return Message(
        body.encode(),
        {
            "content-type": "application/json",
            "user-agent": f"agent-relay/{VERSION}",
            "webhook-id": message_id,
            "webhook-timestamp": str(int(at.timestamp())),
            "webhook-signature": " ".join(Webhook(secret).sign(message_id, at, body) for secret in secrets),
        },
    )
