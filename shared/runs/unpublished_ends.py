"""Ends of runs that are stored, but not marked as published in their event log."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from agent_relay.shared.database import transact
from agent_relay.shared.rows import RunEnd
from agent_relay.shared.runs.sql import RUN_END

MOST = 1000
"""Ends that one statement lists."""

_UNPUBLISHED = text(f"""
    SELECT {RUN_END} FROM runs
    WHERE finished_at < now() - make_interval(secs => :seconds) AND NOT end_told
    ORDER BY finished_at LIMIT {MOST}
""")  # noqa: S608  (a constant)

_MARK_PUBLISHED = text("UPDATE runs SET end_told = true WHERE id = ANY(CAST(:ids AS uuid[]))")


async def unpublished_ends(database: AsyncEngine, seconds: float) -> list[RunEnd]:
    """List the ends that were stored more than this long ago and are not marked; at most `MOST`, the oldest first."""
    return await transact(database, _UNPUBLISHED, {"seconds": seconds}, RunEnd)


async def mark_published(database: AsyncEngine, run_ids: Sequence[UUID]) -> None:
    """Mark the ends of these runs as published, so that no sweeper publishes them again."""
    await transact(database, _MARK_PUBLISHED, {"ids": list(run_ids)})
