"""Accept a batch: all of its items, or none, in one short transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic_core import to_json
from sqlalchemy import CursorResult, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from agent_relay.shared.attachments import attach
from agent_relay.shared.batches.spool import Spool, escaped
from agent_relay.shared.clock import new_id, new_ids, now
from agent_relay.shared.database import store
from agent_relay.shared.database.typed_rows import columns, read_pairs
from agent_relay.shared.errors import AgentNotServed, UnknownAgent
from agent_relay.shared.idempotency import Key, keep
from agent_relay.shared.queue import Lane, QueueEntry
from agent_relay.shared.rows import BatchRow
from agent_relay.shared.runs.queue_limits import Admission
from agent_relay.shared.served_agents import not_served_for_long, served

IDS_A_RUN = 3
"""The run's, its query's and its answer's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A batch without its items."""

    tenant: str
    user_id: UUID
    agent_type: str
    deadline_seconds: float
    """From its start on."""
    run_seconds: float
    start_at: datetime | None = None
    start_after_seconds: float | None = None
    """Instead of `start_at`. A time that has passed is now."""
    max_running: int | None = None
    metadata: dict[str, Any] = field(default_factory=dict[str, Any])
    options: dict[str, Any] | None = None
    """The chosen options of the agent for all of its runs; they fit its schema."""
    webhook_url: str | None = None
    """The URL that receives the webhook of the end."""
    wait_seconds: float | None = None
    """How long each run may wait for answers; None for the setting of its worker."""

    @property
    def starts_later(self) -> bool:
        """Whether its runs wait for a time of their own."""
        return bool(self.start_after_seconds) or (self.start_at is not None and self.start_at > now())


@dataclass(frozen=True, slots=True)
class StoredBatch(BatchRow):
    """A batch as it was stored."""

    pool: str
    text_output: bool
    transaction_id: str


@dataclass(frozen=True, slots=True)
class FoundAgent:
    """The agent of a batch that is to be stored; it is not stored where no worker has served the agent for a while."""

    agent_type: str
    pool: str
    text_output: bool
    served: bool
    not_served: bool


STORED_BATCH = columns(
    StoredBatch,
    "batch",
    running="0",
    served="agent.served",
    pool="agent.pool",
    text_output="agent.text_output",
    transaction_id="CAST(pg_current_xact_id() AS text)",
)
"""Of a statement that inserts a `batch` for an `agent`."""

FOUND_AGENT = f"""
    SELECT agent_type, pool, text_output, {served("agents.agent_type")} AS served,
        {not_served_for_long("agents.agent_type")} AS not_served
    FROM agents WHERE agent_type = :agent_type
"""  # noqa: S608  (constants)


@dataclass(frozen=True, slots=True)
class Accepted:
    """The batch, and the ids of its runs, each with two more behind it; enqueue them after the commit."""

    batch: StoredBatch
    ids: range

    @property
    def transaction_id(self) -> str:
        """Of the transaction that stored it."""
        return self.batch.transaction_id

    def rings(self) -> Iterator[QueueEntry]:
        """Call for workers, for as many runs as may run at once; for none where they start later."""
        if self.batch.start_at is not None:
            return
        for number in self.ids[::IDS_A_RUN][: self.batch.max_running]:
            yield QueueEntry(UUID(int=number), 1, self.batch.pool, Lane.BATCH, self.batch.tenant)


_INSERT = text(f"""
    WITH agent AS ({FOUND_AGENT}), batch AS (
        INSERT INTO batches (id, tenant, user_id, agent_type, metadata, options, max_running, run_seconds, webhook_url,
                             wait_seconds, total, start_at, deadline_at)
        SELECT :id, :tenant, :user_id, agent_type, CAST(:metadata AS json), CAST(:options AS jsonb),
               CAST(:max_running AS int), :run_seconds,
               :webhook_url, CAST(:wait_seconds AS float), :total, start_at,
               coalesce(start_at, now()) + make_interval(secs => greatest(:deadline_seconds, 0.000001))
        FROM agent CROSS JOIN (
            SELECT CASE WHEN :starts_later THEN coalesce(
                CAST(:start_at AS timestamptz), now() + make_interval(secs => CAST(:start_after_seconds AS float))
            ) END AS start_at
        ) AS start WHERE served OR NOT not_served
        RETURNING *
    )
    SELECT {columns(FoundAgent, "agent")}, {STORED_BATCH}
    FROM agent LEFT JOIN batch ON true
""")  # noqa: S608  (constants)

_COPY = """
    COPY runs (id, user_message_id, message_id, due_at{more}, tenant, user_id, agent_type, pool, text_output, lane,
               batch_id, deadline_at, custom_id, query, metadata{last})
    FROM STDIN
"""


async def accept(
    database: AsyncEngine, asked: Submission, items: Spool, admission: Admission, key: Key | None = None
) -> Accepted:
    """Store the batch and a queued run an item, and the key that it was submitted under.

    Where the reply to the commit is lost, the database is asked what became of it.

    Raises:
        Repeated, KeyReused, KeyInUse: nothing is stored under this key now, see `keep`.
        UnknownAgent: no worker has registered the agent.
        AgentNotServed: no worker has served it for a while.
        WrongAttachment: see `attach`.
        QueueFull: it does not fit in.
    """
    batch_id, ids = new_id(), new_ids(IDS_A_RUN * len(items))

    async def write(connection: AsyncConnection) -> Accepted:
        await keep(connection, key, batch_id)
        limits = admission.of_later if asked.starts_later else admission
        return await limits.admit_batch(connection, asked.tenant, len(items), lambda: write_rows(connection))

    async def write_rows(connection: AsyncConnection) -> Accepted:
        result = await connection.execute(
            _INSERT,
            {
                "id": batch_id,
                "tenant": asked.tenant,
                "user_id": asked.user_id,
                "agent_type": asked.agent_type,
                "metadata": to_json(asked.metadata).decode(),
                "options": None if asked.options is None else to_json(asked.options).decode(),
                "max_running": asked.max_running,
                "run_seconds": asked.run_seconds,
                "webhook_url": asked.webhook_url,
                "wait_seconds": asked.wait_seconds,
                "total": len(items),
                "starts_later": asked.starts_later,
                "start_at": asked.start_at,
                "start_after_seconds": asked.start_after_seconds,
                "deadline_seconds": asked.deadline_seconds,
                "unserved_seconds": admission.unserved_seconds,
            },
        )
        batch = stored_batch(result, asked.agent_type, admission)
        attachments = await attach(
            connection,
            items.attachments,
            tenant=asked.tenant,
            user_id=asked.user_id,
            agent_type=asked.agent_type,
        )
        await _copy(connection, batch, ids, items, attachments)
        return Accepted(batch, ids)

    return await store(database, write)


def stored_batch(result: CursorResult[Any], agent_type: str, admission: Admission) -> StoredBatch:
    """Read the batch that was inserted for an agent.

    Raises:
        UnknownAgent: no worker has registered the agent.
        AgentNotServed: no worker has served it for a while.
    """
    found = read_pairs(result, FoundAgent, StoredBatch)
    if not found:
        raise UnknownAgent(agent_type)
    [(_, batch)] = found
    if batch is None:
        raise AgentNotServed(admission.unserved_seconds)
    return batch


async def _copy(
    connection: AsyncConnection, batch: StoredBatch, ids: range, items: Spool, attachments: Mapping[int | None, str]
) -> None:
    """Copy the items into the table of runs; those that may not run yet are not due before their deadline."""
    same = (
        f"{batch.tenant}\t{batch.user_id}\t{batch.agent_type}\t{batch.pool}\t{'t' if batch.text_output else 'f'}\t"
        f"{Lane.BATCH}\t{batch.id}\t{batch.deadline_at.isoformat()}\t"
    ).encode()
    more, first_times, later_times = _times(batch)
    at_once = len(items) if batch.max_running is None else batch.max_running
    driver: Any = (await connection.get_raw_connection()).driver_connection
    number, last = 0, ", attachments" if attachments else ""
    async with driver.cursor() as cursor, cursor.copy(_COPY.format(more=more, last=last)) as copy:
        async for lines in items.blocks():
            rows: list[bytes] = []
            for line in lines:
                first = ids[IDS_A_RUN * number]
                times = first_times if number < at_once else later_times
                item = _with_attachments(line, attachments.get(number)) if attachments else line
                rows.append(b"%032x\t%032x\t%032x\t%s\t%s%s" % (first, first + 1, first + 2, times, same, item))
                number += 1
            await copy.write(b"".join(rows))
            await asyncio.sleep(0)  # Neither the disk nor the socket need make it wait.


def _with_attachments(line: bytes, attachments: str | None) -> bytes:
    """Add the attachments of an item to its line; null where it has none."""
    return b"%s\t%s\n" % (line[:-1], b"\\N" if attachments is None else escaped(attachments).encode())


def _times(batch: StoredBatch) -> tuple[str, bytes, bytes]:
    """Write what differs: further columns, and the times of runs that may run at once and of those that may not."""
    now, later = batch.created_at.isoformat(), batch.deadline_at.isoformat()
    if batch.start_at is None:
        return "", now.encode(), later.encode()
    start = batch.start_at.isoformat()
    return (
        ", start_at, rung_at, starts_later",
        f"{start}\t{start}\t{start}\tt".encode(),
        f"{later}\t{start}\t{now}\tf".encode(),
    )
