"""The webhook message: the event as JSON, and the headers that prove its sender."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncEngine
from standardwebhooks import Webhook

from agent_relay.shared import VERSION
from agent_relay.shared.clock import now
from agent_relay.shared.database.typed_rows import Kind, columns, read_one
from agent_relay.shared.rows import BatchRow, RunRow
from agent_relay.shared.schemas import BatchEvent, RunEvent, batch_of, requests_in, run_of
from agent_relay.shared.webhooks.outbox import Delivery
from agent_relay.shared.webhooks.secret import signing_secrets

_NOT_SERVED = "CAST(NULL AS boolean)"
_RUN = text(f"""
    SELECT {columns(RunRow, "runs", served=_NOT_SERVED, requests=requests_in("runs"))} FROM runs WHERE id = :id
""")  # noqa: S608  (constants)
_RUNNING = "(SELECT count(*) FROM runs WHERE batch_id = batches.id AND runs.status = 'running')"
_BATCH = text(f"""
    SELECT {columns(BatchRow, "batches", running=_RUNNING, served=_NOT_SERVED)} FROM batches WHERE id = :id
""")  # noqa: S608  (constants)


@dataclass(frozen=True, slots=True)
class _Resource(Generic[Kind]):
    """How to read the row of an event, and how to write the event."""

    statement: TextClause
    kind: type[Kind]
    event: Callable[[Delivery, Kind], RunEvent | BatchEvent]


def _run_event(delivery: Delivery, row: RunRow) -> RunEvent:
    return RunEvent(type=delivery.type, timestamp=delivery.occurred_at, data=run_of(row))


def _batch_event(delivery: Delivery, row: BatchRow) -> BatchEvent:
    return BatchEvent(type=delivery.type, timestamp=delivery.occurred_at, data=batch_of(row))


_RESOURCES: dict[str, _Resource[Any]] = {
    "run": _Resource(_RUN, RunRow, _run_event),
    "batch": _Resource(_BATCH, BatchRow, _batch_event),
}
"""By the noun that the type of an event begins with. A row that has ended never changes; one that waited when the event
was written is shown as it is now."""


@dataclass(frozen=True, slots=True)
class Message:
    """A webhook message."""

    body: bytes
    headers: dict[str, str]


async def message_of(database: AsyncEngine, delivery: Delivery, overlap_seconds: float) -> Message | None:
    """Write the message of a delivery, signed as of now; None if its row is gone."""
    resource = _RESOURCES[delivery.type.partition(".")[0]]
    async with database.begin() as connection:
        row = read_one(await connection.execute(resource.statement, {"id": delivery.resource_id}), resource.kind)
        if row is None:
            return None
        secrets = await signing_secrets(connection, delivery.tenant, overlap_seconds)
    return sign(str(delivery.id), resource.event(delivery, row).model_dump_json(), secrets, now())


def sign(message_id: str, body: str, secrets: list[str], at: datetime) -> Message:
    """Sign a body with each of the secrets, as Standard Webhooks specifies."""
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
