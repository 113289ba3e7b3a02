"""Retry what failed of a batch, as a batch of its own; the database copies, however much it is."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from shared.batches.accept import IDS_A_RUN, Accepted
from shared.clock import new_id, new_ids
from shared.database import store
from shared.errors import AgentNotServed, BatchUnfinished, NothingFailed, UnknownAgent
from shared.idempotency import Key, keep
from shared.lanes import Lane
from shared.runs.admission import Admission
from shared.served import not_served_for_long, served

_LAST_BITS = 48
"""`new_ids` leaves all bits before these the same."""

_READ = text("SELECT tenant, agent_type, failed, finished_at FROM batches WHERE id = :batch_id")

_INSERT = text(f"""
    WITH agent AS (
        SELECT agent_type, pool, text_output, {served("agents.agent_type")} AS served,
            {not_served_for_long("agents.agent_type")} AS not_served
        FROM agents WHERE agent_type = :agent_type
    ), batch AS (
        INSERT INTO batches (id, tenant, user_id, agent_type, metadata, retry_of, max_running, run_seconds, webhook_url,
                             total, deadline_at)
        SELECT :id, tenant, user_id, agent_type, metadata, batches.id, max_running, :run_seconds, webhook_url,
               failed, now() + (deadline_at - created_at)
        FROM batches JOIN agent USING (agent_type) WHERE batches.id = :batch_id AND (served OR NOT not_served)
        RETURNING *
    )
    SELECT batch.*, 0 AS running, pool, text_output, served, not_served,
        CAST(pg_current_xact_id() AS text) AS transaction_id
    FROM agent LEFT JOIN batch ON true
""")  # noqa: S608  (constants)

_INSERT_RUNS = text("""
    INSERT INTO runs (id, user_message_id, message_id, due_at, tenant, user_id, agent_type, pool, text_output, lane,
                      batch_id, deadline_at, custom_id, query, metadata, retry_of)
    SELECT CAST(:same || lpad(to_hex(:first + 3 * number), 12, '0') AS uuid),
           CAST(:same || lpad(to_hex(:first + 3 * number + 1), 12, '0') AS uuid),
           CAST(:same || lpad(to_hex(:first + 3 * number + 2), 12, '0') AS uuid),
           CASE WHEN number >= batch.max_running THEN batch.deadline_at ELSE now() END,
           batch.tenant, batch.user_id, batch.agent_type, agents.pool, agents.text_output, :lane,
           batch.id, batch.deadline_at, custom_id, query, failed.metadata, failed.id
    FROM batches AS batch JOIN agents USING (agent_type), (
        SELECT id, custom_id, query, metadata, row_number() OVER (ORDER BY id) - 1 AS number
        FROM runs WHERE batch_id = :batch_id AND status = 'failed'
    ) AS failed
    WHERE batch.id = :id
""")


async def retry(
    database: AsyncEngine, batch_id: UUID, run_seconds: float, admission: Admission, key: Key | None = None
) -> Accepted:
    """Store a batch of the failed items of one that has ended; ring after the commit.

    Where the reply to the commit is lost, the database is asked what became of it.

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
        batch = result.one_or_none()
        if batch is None:
            raise UnknownAgent(agent_type)
        if batch.id is None:
            raise AgentNotServed(admission.unserved_seconds)
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
