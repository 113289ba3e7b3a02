"""Start the runs that start later, once their time has come: from then on they wait for a worker as all others do.

A run of a thread gets its place there, and its message, when it starts: queries that were asked while it waited for its
time come first. The process that starts runs adds their queue entries after the commit.
"""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from agent_relay.shared.database.set_aside import Aside, among
from agent_relay.shared.queue import QueueEntry
from agent_relay.shared.runs.sql import NEW_ENTRY, QUEUE_ENTRY

MOST = 1000
"""Runs that one statement starts."""

TO_START = "status = 'queued' AND starts_later AND start_at <= now()"

_ALONE = f"""
    SELECT id FROM runs WHERE {TO_START} AND thread_id IS NULL AND {among("id")}
    ORDER BY start_at LIMIT {MOST} FOR UPDATE SKIP LOCKED
"""  # noqa: S608  (constants)

_START_ALONE = text(f"""
    UPDATE runs SET starts_later = false, {NEW_ENTRY} WHERE id IN ({_ALONE})
    RETURNING {QUEUE_ENTRY}
""")  # noqa: S608  (constants)

_FIRST_OF_THREADS = f"""
    SELECT DISTINCT ON (thread_id) id, thread_id FROM runs
    WHERE {TO_START} AND thread_id IS NOT NULL AND {among("id")}
    ORDER BY thread_id, start_at, id LIMIT {MOST}
"""  # noqa: S608  (constants)

_START_IN_THREADS = text(f"""
    WITH due AS MATERIALIZED ({_FIRST_OF_THREADS}), thread AS (
        UPDATE threads SET last_seq = last_seq + 1, updated_at = now()
        WHERE id IN (
            SELECT threads.id FROM threads JOIN due ON thread_id = threads.id
            WHERE deleted_at IS NULL FOR NO KEY UPDATE OF threads SKIP LOCKED
        )
        RETURNING threads.id, last_seq
    ), started AS (
        UPDATE runs SET seq = last_seq, starts_later = false, {NEW_ENTRY}
        FROM due JOIN thread ON due.thread_id = thread.id
        WHERE runs.id = due.id AND status = 'queued' AND starts_later
        RETURNING runs.*
    ), message AS (
        INSERT INTO messages (id, thread_id, run_id, position, role, content, attachments, metadata)
        SELECT user_message_id, thread_id, id, 2 * seq, 'user', query, attachments, jsonb_build_object('run_id', id)
        FROM started
    )
    SELECT {QUEUE_ENTRY} FROM started
""")  # noqa: S608  (constants)
"""A thread's row is locked before that of its run, as everywhere. One that is locked is served by the next sweep."""


async def start_alone(database: AsyncEngine, aside: Aside) -> list[QueueEntry]:
    """Start runs without a thread whose time has come, at most `MOST`; returns their queue entries."""
    return await aside.run(database, _START_ALONE, text(_ALONE), {}, QueueEntry)


async def start_in_threads(database: AsyncEngine, aside: Aside) -> list[QueueEntry]:
    """Do the same for runs of threads: of each thread one, the first, in at most `MOST` threads."""
    return await aside.run(database, _START_IN_THREADS, text(_FIRST_OF_THREADS), {}, QueueEntry)
