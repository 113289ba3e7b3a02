"""The writes of an API process for the operations page: its registration, and the figures of each minute.

Every process records; the first one stores a minute, and the others find it stored. After a time without a process, the
minutes of the last hour are computed from the rows; the length of the queue in them is not known.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
from collections.abc import Callable
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from agent_relay.api.operations.figures import FLOW, STATE
from agent_relay.shared import VERSION
from agent_relay.shared.away import DATABASE_ERRORS, skip_if_database_away, skip_if_failed
from agent_relay.shared.clock import new_id
from agent_relay.shared.database import transact

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 5.0
SETTLE_SECONDS = 5
"""Time between the end of a minute and its record: the runs that ended in it are committed by then."""
MOST_MINUTES_MADE_UP = 60

_HEARTBEAT = text("""
    WITH gone AS (DELETE FROM api_processes WHERE seen_at < now() - interval '1 minute' AND id <> :id)
    INSERT INTO api_processes (id, host, pid, version, streams) VALUES (:id, :host, :pid, :version, :streams)
    ON CONFLICT (id) DO UPDATE SET streams = excluded.streams, seen_at = now()
""")

_FORGET = text("DELETE FROM api_processes WHERE id = :id")

_MISSING = text("""
    SELECT minute, minute = latest AS is_latest FROM (
        SELECT date_trunc('minute', now() - make_interval(secs => :settle_seconds)) - interval '1 minute' AS latest
    ) AS latest, generate_series(
        greatest(latest - make_interval(mins => :most - 1),
                 (SELECT max(minute) + interval '1 minute' FROM service_minutes)),
        latest, interval '1 minute') AS minute
    ORDER BY minute
""")

_RECORD = text(f"""
    INSERT INTO service_minutes (minute, figures)
    SELECT CAST(:minute AS timestamptz),
        {FLOW.format(since=":minute", until="CAST(:minute AS timestamptz) + interval '1 minute'")}
        || CASE WHEN :is_latest THEN {STATE} ELSE '{{}}' END
    ON CONFLICT (minute) DO NOTHING
""")

_ERASE = text("DELETE FROM service_minutes WHERE minute < now() - interval '25 hours'")


class Recorder:
    """The recorder of a process."""

    def __init__(self, database: AsyncEngine, streams: Callable[[], int]) -> None:
        """`streams` returns the number of calls that the process keeps open."""
        self._database = database
        self._streams = streams
        self._id: UUID = new_id()
        self._process = {"host": socket.gethostname(), "pid": os.getpid(), "version": VERSION}

    async def run(self) -> None:
        """Record for ever, at a pace that keeps processes out of step."""
        try:
            while True:
                with skip_if_failed("operations", "record"), skip_if_database_away(log, "operations.not_recorded"):
                    await self.heartbeat()
                    await self.record()
                await asyncio.sleep(HEARTBEAT_SECONDS * random.uniform(0.75, 1.25))  # noqa: S311
        finally:
            await self._forget()

    async def heartbeat(self) -> None:
        """Write that this process lives, and forget those that have not written for a minute."""
        await transact(self._database, _HEARTBEAT, {"id": self._id, "streams": self._streams(), **self._process})

    async def record(self) -> int:
        """Store the figures of the minutes that no process has stored yet; returns their number."""
        values = {"settle_seconds": SETTLE_SECONDS, "most": MOST_MINUTES_MADE_UP}
        missing = await transact(self._database, _MISSING, values)
        for row in missing:
            await transact(self._database, _RECORD, {"minute": row.minute, "is_latest": row.is_latest})
        if missing:
            await transact(self._database, _ERASE)
        return len(missing)

    async def _forget(self) -> None:
        try:
            await transact(self._database, _FORGET, {"id": self._id})
        except DATABASE_ERRORS:
            log.info("operations.not_forgotten")  # Another process will, a minute from now.
