"""Accept a batch: all of its items, or none, in one short transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from pydantic_core import to_json
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from shared.batches.manifest import Manifest
from shared.clock import new_id, new_ids
from shared.database import store
from shared.errors import AgentNotServed, UnknownAgent
from shared.idempotency import Key, keep
from shared.lanes import Lane, Ring
from shared.runs.admission import Admission
from shared.served import not_served_for_long, served

IDS_A_RUN = 3
"""The run's, its query's and its answer's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """What is asked of an agent, but for the items."""

    tenant: str
    user_id: UUID
    agent_type: str
    deadline_seconds: float
    run_seconds: float
    max_running: int | None = None
    metadata: dict[str, Any] = field(default_factory=dict[str, Any])
    webhook_url: str | None = None
    """Where to tell of the end."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """The batch's row, and the ids of its runs, each with two more behind it; ring after the commit."""

    batch: Any
    ids: range

    @property
    def transaction_id(self) -> str:
        """Of the transaction that stored it."""
        return self.batch.transaction_id

    def rings(self) -> Iterator[Ring]:
        """Call for workers, for as many runs as may run at once."""
        for number in self.ids[::IDS_A_RUN][: self.batch.max_running]:
            yield Ring(UUID(int=number), 1, self.batch.pool, Lane.BATCH, self.batch.tenant)


_INSERT = text(f"""
    WITH agent AS (
        SELECT agent_type, pool, text_output, {served("agents.agent_type")} AS served,
            {not_served_for_long("agents.agent_type")} AS not_served
        FROM agents WHERE agent_type = :agent_type
    ), batch AS (
        INSERT INTO batches (id, tenant, user_id, agent_type, metadata, max_running, run_seconds, webhook_url, total,
                             deadline_at)
        SELECT :id, :tenant, :user_id, agent_type, CAST(:metadata AS json), CAST(:max_running AS int), :run_seconds,
               :webhook_url, :total, now() + make_interval(secs => :deadline_seconds)
        FROM agent WHERE served OR NOT not_served
        RETURNING *
    )
    SELECT batch.*, 0 AS running, pool, text_output, served, not_served,
        CAST(pg_current_xact_id() AS text) AS transaction_id
    FROM agent LEFT JOIN batch ON true
""")  # noqa: S608  (constants)

_COPY = """
    COPY runs (id, user_message_id, message_id, due_at, tenant, user_id, agent_type, pool, text_output, lane, batch_id,
               deadline_at, custom_id, query, metadata)
    FROM STDIN
"""


async def accept(
    database: AsyncEngine, asked: Submission, items: Manifest, admission: Admission, key: Key | None = None
) -> Accepted:
    """Store the batch and a queued run an item, and the key that it was submitted under.

    Where the reply to the commit is lost, the database is asked what became of it.

    Raises:
        Repeated, KeyReused, KeyInUse: nothing is stored under this key now, see `keep`.
        UnknownAgent: no worker has registered the agent.
        AgentNotServed: no worker has served it for a while.
        QueueFull: it does not fit in.
    """
    batch_id, ids = new_id(), new_ids(IDS_A_RUN * len(items))

    async def write(connection: AsyncConnection) -> Accepted:
        await keep(connection, key, batch_id)
        return await admission.admit_batch(connection, asked.tenant, len(items), lambda: write_rows(connection))

    async def write_rows(connection: AsyncConnection) -> Accepted:
        result = await connection.execute(
            _INSERT,
            {
                "id": batch_id,
                "tenant": asked.tenant,
                "user_id": asked.user_id,
                "agent_type": asked.agent_type,
                "metadata": to_json(asked.metadata).decode(),
                "max_running": asked.max_running,
                "run_seconds": asked.run_seconds,
                "webhook_url": asked.webhook_url,
                "total": len(items),
                "deadline_seconds": asked.deadline_seconds,
                "unserved_seconds": admission.unserved_seconds,
            },
        )
        batch = result.one_or_none()
        if batch is None:
            raise UnknownAgent(asked.agent_type)
        if batch.id is None:
            raise AgentNotServed(admission.unserved_seconds)
        await _copy(connection, batch, ids, items)
        return Accepted(batch, ids)

    return await store(database, write)


async def _copy(connection: AsyncConnection, batch: Any, ids: range, items: Manifest) -> None:
    """Copy the items into the table of runs; those that may not run yet are not due before their deadline."""
    same = (
        f"{batch.tenant}\t{batch.user_id}\t{batch.agent_type}\t{batch.pool}\t{'t' if batch.text_output else 'f'}\t"
        f"{Lane.BATCH}\t{batch.id}\t{batch.deadline_at.isoformat()}\t"
    ).encode()
    now, later = batch.created_at.isoformat().encode(), batch.deadline_at.isoformat().encode()
    at_once = len(items) if batch.max_running is None else batch.max_running
    driver: Any = (await connection.get_raw_connection()).driver_connection
    number = 0
    async with driver.cursor() as cursor, cursor.copy(_COPY) as copy:
        async for lines in items.blocks():
            rows: list[bytes] = []
            for line in lines:
                first = ids[IDS_A_RUN * number]
                due = now if number < at_once else later
                rows.append(b"%032x\t%032x\t%032x\t%s\t%s%s" % (first, first + 1, first + 2, due, same, line))
                number += 1
            await copy.write(b"".join(rows))
            await asyncio.sleep(0)  # Neither the disk nor the socket need make it wait.
