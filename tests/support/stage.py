"""A database with an agent, a thread and workers, for tests that play all parts themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from agent_relay.shared.clock import new_id
from agent_relay.shared.queue import Lane
from agent_relay.shared.runs.accept import Query, accept
from agent_relay.shared.runs.claim import Claim, claim


class Stage:
    """A database with an agent, a thread and workers."""

    def __init__(self, database: AsyncEngine) -> None:
        self.database = database
        self.user_id = new_id()
        self.thread_id = new_id()

    async def execute(self, statement: str, **values: Any) -> Any:
        """Run a statement; returns its rows, if it has any."""
        async with self.database.begin() as connection:
            result = await connection.execute(text(statement), values)
            return result.all() if result.returns_rows else None

    async def worker(self, *, lease_seconds: float = 60) -> UUID:
        """Register a worker."""
        worker_id = new_id()
        await self.execute(
            "INSERT INTO workers (id, pool, host, pid, version, slots, lease_until) "
            "VALUES (:id, 'default', 'here', 1, '0', 1, now() + make_interval(secs => :lease))",
            id=worker_id,
            lease=lease_seconds,
        )
        return worker_id

    async def query(self, **asked: Any) -> UUID:
        """Accept a query, of the thread unless told otherwise."""
        usual: dict[str, Any] = {"thread_id": self.thread_id, "agent_type": None, "query": "?", "deadline_seconds": 60}
        query = Query(tenant="acme", user_id=self.user_id, **usual | asked)
        return (await accept(self.database, query)).run.id

    async def claimed(self, run_id: UUID, worker_id: UUID, *, isolated: bool = False) -> Claim:
        """Claim a run that is to be had."""
        claimed = await claim(self.database, run_id, worker_id, isolated=isolated)
        assert claimed is not None
        return claimed

    async def row(self, run_id: UUID) -> Any:
        """Read a run."""
        return (await self.execute("SELECT * FROM runs WHERE id = :id", id=run_id))[0]

    async def answers(self) -> list[str]:
        """Read the answers of the thread."""
        rows = await self.execute("SELECT content FROM messages WHERE role = 'assistant' ORDER BY position")
        return [row.content for row in rows]


def each(
    answer: Callable[[UUID, Lane], Awaitable[None]],
) -> Callable[[Sequence[UUID], Lane], dict[UUID, asyncio.Task[None]]]:
    """Answer runs that were popped together each in a task, for a queue consumer."""

    async def answer_one(run_id: UUID, lane: Lane) -> None:
        await answer(run_id, lane)

    return lambda run_ids, lane: {run_id: asyncio.create_task(answer_one(run_id, lane)) for run_id in run_ids}
