"""Cancel a run: at once if no worker holds it, else by a request to its worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from agent_relay.shared.database.tables import IS_UNFINISHED, RunStatus
from agent_relay.shared.database.typed_rows import read, read_one
from agent_relay.shared.rows import RunEnd
from agent_relay.shared.runs.finish import INTERRUPTED
from agent_relay.shared.runs.sql import CANCELLED_UNLESS_RUNNING, RUN_END


@dataclass(frozen=True, slots=True)
class Cancellation:
    """The result of a request to cancel."""

    run_id: UUID
    ended: RunEnd | None
    """The run's end, where the request itself ended it; None where a worker holds it and ends it."""


_CANCEL = text(f"""
    WITH touched AS (
        UPDATE runs
        SET cancel_requested_at = coalesce(cancel_requested_at, now()),
            {CANCELLED_UNLESS_RUNNING}
        WHERE id = :run_id AND {IS_UNFINISHED}
        RETURNING *
    ), interrupted AS ({INTERRUPTED})
    SELECT {RUN_END} FROM touched
""")  # noqa: S608  (constants)


_SUPERSEDE = text(f"""
    WITH touched AS (
        UPDATE runs
        SET cancel_requested_at = coalesce(cancel_requested_at, now()), rolled_back = :roll_back,
            {CANCELLED_UNLESS_RUNNING}
        WHERE thread_id = :thread_id AND coalesce(seq, -1) >= :first_seq AND {IS_UNFINISHED}
          AND id <> ALL(CAST(:known AS uuid[]))
        RETURNING *
    ), interrupted AS ({INTERRUPTED})
    SELECT {RUN_END} FROM touched
""")  # noqa: S608  (constants)

_TAKE_OUT = text("""
    UPDATE runs SET rolled_back = true WHERE thread_id = :thread_id AND seq >= :first_seq AND NOT rolled_back
""")

_ERASE_FROM = text("""
    DELETE FROM messages
    USING runs WHERE runs.id = run_id AND messages.thread_id = :thread_id AND runs.seq >= :first_seq
""")

_ERASE_MESSAGES = text("DELETE FROM messages WHERE run_id = ANY(CAST(:run_ids AS uuid[]))")


async def supersede(
    connection: AsyncConnection, thread_id: UUID, *, roll_back: bool, also_later: bool = False
) -> list[Cancellation]:
    """Cancel all unfinished runs of a thread, in the transaction that has locked its row; erase their messages, too.

    Those that start later have no place in the thread yet; they are left alone, unless `also_later`.
    """
    values = {"thread_id": thread_id, "roll_back": roll_back, "first_seq": -1 if also_later else 0}
    rows = await _supersede(connection, values)
    if roll_back:
        await connection.execute(_ERASE_MESSAGES, {"run_ids": [row.id for row in rows]})
    return [_cancellation(row) for row in rows]


async def take_out(connection: AsyncConnection, thread_id: UUID, first_seq: int) -> list[Cancellation]:
    """Take a run out of its thread, and all after it: cancel the unfinished ones, and erase the messages.

    It runs in the transaction that has locked the thread's row. No later run sees them.
    """
    values = {"thread_id": thread_id, "first_seq": first_seq}
    rows = await _supersede(connection, values | {"roll_back": True})
    await connection.execute(_TAKE_OUT, values)
    await connection.execute(_ERASE_FROM, values)
    return [_cancellation(row) for row in rows]


async def _supersede(connection: AsyncConnection, values: dict[str, Any]) -> list[RunEnd]:
    """Cancel until there is nothing left: with the end of a run, messages into it become runs of the thread."""
    rows: list[RunEnd] = []
    while True:
        known = [row.id for row in rows]
        found = read(await connection.execute(_SUPERSEDE, values | {"known": known}), RunEnd)
        if not found:
            return rows
        rows += found


async def cancel(database: AsyncEngine, run_id: UUID) -> Cancellation | None:
    """Ask that the run end; asking again, or too late (None), changes nothing."""
    async with database.begin() as connection:
        row = read_one(await connection.execute(_CANCEL, {"run_id": run_id}), RunEnd)
    return None if row is None else _cancellation(row)


def _cancellation(row: RunEnd) -> Cancellation:
    return Cancellation(row.id, None if row.status == RunStatus.RUNNING else row)
