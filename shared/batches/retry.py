"""Retry what failed of a batch, as a batch of its own; the database copies, however much it is."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from agent_relay.shared.batches.accept import (
    FOUND_AGENT,
    IDS_A_RUN,
    STORED_BATCH,
    Accepted,
    FoundAgent,
    stored_batch,
)
from agent_relay.shared.clock import new_id, new_ids
from agent_relay.shared.database import store
from agent_relay.shared.database.typed_rows import columns
from agent_relay.shared.errors import BatchUnfinished, NothingFailed
from agent_relay.shared.idempotency import Key, keep
from agent_relay.shared.queue import Lane
from agent_relay.shared.runs.queue_limits import Admission

_LAST_BITS = 48
"""`new_ids` leaves all bits before these the same."""

_READ = text("SELECT tenant, agent_type, failed, finished_at FROM batches WHERE id = :batch_id")

_INSERT = text(f"""
    WITH agent AS ({FOUND_AGENT}), batch AS (
        INSERT INTO batches (id, tenant, user_id, agent_type, metadata, options, retry_of, max_running, run_seconds,
                             webhook_url, wait_seconds, total, deadline_at)
        SELECT :id, tenant, user_id, agent_type, metadata, options, batches.id, max_running, :run_seconds, webhook_url,
               wait_seconds, failed, now() + (deadline_at - coalesce(start_at, created_at))
        FROM batches JOIN agent USING (agent_type) WHERE batches.id = :batch_id AND (served OR NOT not_served)
        RETURNING *
    )
    SELECT {columns(FoundAgent, "agent")}, {STORED_BATCH}
    FROM agent LEFT JOIN batch ON true
""")  # noqa: S608  (constants)

_INSERT_RUNS = text("""
    INSERT INTO runs (id, user_message_id, message_id, due_at, tenant, user_id, agent_type, pool, text_output, lane,
                      batch_id, deadline_at, custom_id, query, metadata, attachments, retry_of)
    SELECT CAST(:same || lpad(to_hex(:first + 3 * number), 12, '0') AS uuid),
           CAST(:same || lpad(to_hex(:first + 3 * number + 1), 12, '0') AS uuid),
           CAST(:same || lpad(to_hex(:first + 3 * number + 2), 12, '0') AS uuid),
           CASE WHEN number >= batch.max_running THEN batch.deadline_at ELSE now() END,
           batch.tenant, batch.user_id, batch.agent_type, agents.pool, agents.text_output, :lane,
           batch.id, batch.deadline_at, custom_id, query, failed.metadata, failed.attachments, failed.id
    FROM batches AS batch JOIN agents USING (agent_type), (
        SELECT id, custom_id, query, metadata, attachments, row_number() OVER (ORDER BY id) - 1 AS number
        FROM runs WHERE batch_id = :batch_id AND status = 'failed'
    ) AS failed
    WHERE batch.id = :id
""")


async def retry(
    database: AsyncEngine, batch_id: UUID, run_seconds: float, admission: Admission, key: Key | None = None
) -> Accepted:
    """Store a batch of the failed items of one that has ended; enqueue it after the commit.

    If the reply to the commit is lost, the database is asked for the state of the transaction.

    Raises:
        Repeated, KeyReused, KeyInUse: nothing is stored under this key now, see `keep`.
        BatchUnfinished: it has not ended.
        NothingFailed: it has no failed items.
        UnknownAgent: no worker has registered the agent.
        AgentNotServed: no worker has served it for a while.
        QueueFull: it does not fit in.
    """
    new = {"id": new_id(), "batch_id": batch_id}

    async def write(connection: AsyncConnection) -> Accepted:
        await keep(connection, key, new["id"])
        old = (await connection.execute(_READ, {"batch_id": batch_id})).one()
        if old.finished_at is None:
            raise BatchUnfinished
        if not old.failed:
            raise NothingFailed
        return await admission.admit_batch(
            connection, old.tenant, old.failed, lambda: write_rows(connection, old.agent_type, old.failed)
        )

    async def write_rows(connection: AsyncConnection, agent_type: str, count: int) -> Accepted:
        ids = new_ids(IDS_A_RUN * count)
        asked = {"run_seconds": run_seconds, "unserved_seconds": admission.unserved_seconds}
        result = await connection.execute(_INSERT, {**new, **asked, "agent_type": agent_type})
        batch = stored_batch(result, agent_type, admission)
        await connection.execute(
            _INSERT_RUNS,
            {
                **new,
                "lane": Lane.BATCH,
                "same": f"{ids[0]:032x}"[: -_LAST_BITS // 4],
                "first": ids[0] & ((1 << _LAST_BITS) - 1),
            },
        )
        return Accepted(batch, ids)

    return await store(database, write)
