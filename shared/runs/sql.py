"""SQL that several statements about runs share: each select list and each condition has its name here."""

from __future__ import annotations

from agent_relay.shared.database.tables import IS_UNFINISHED
from agent_relay.shared.database.typed_rows import columns
from agent_relay.shared.queue import QueueEntry
from agent_relay.shared.rows import RunEnd

RUN_END = columns(RunEnd)
QUEUE_ENTRY = columns(QueueEntry, run_id="id")

NEW_ENTRY = "ring = ring + 1, rung_at = now()"
"""Gives a run the number of its next queue entry, which is pushed after the commit."""

CANCELLED_UNLESS_RUNNING = """
    status = CASE status WHEN 'running' THEN status ELSE 'cancelled' END,
    finished_at = CASE status WHEN 'running' THEN NULL ELSE now() END
"""


def first_in_thread(run: str) -> str:
    """Write the condition that no earlier run of the thread is unfinished; `run` is the alias of the run's row."""
    return f"""NOT EXISTS (
        SELECT FROM runs AS earlier
        WHERE earlier.thread_id = {run}.thread_id AND earlier.seq < {run}.seq AND earlier.{IS_UNFINISHED}
    )"""
