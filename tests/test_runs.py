"""The arrows of a run's life, each a guarded statement: who comes too late, or out of turn, writes nothing."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from shared.clock import new_id
from shared.runs import Claim, Ending, Query, accept, cancel, claim, finish, give_back, let_go
from shared.runs.take_back import declare_dead, judge_workers, take_back
from shared.sweeper import Unbroken
from shared.tables import Begun, RunStatus

MAX_CRASHES = 3


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

    async def query(self) -> UUID:
        """Accept a query of the thread."""
        query = Query(
            tenant="acme",
            user_id=self.user_id,
            thread_id=self.thread_id,
            agent_type=None,
            query="?",
            deadline_seconds=60,
        )
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


@pytest.fixture
async def stage(database_url: str) -> AsyncGenerator[Stage]:
    """A stage of the test's own."""
    database = create_async_engine(database_url.replace("postgresql://", "postgresql+psycopg://"))
    stage = Stage(database)
    await stage.execute(
        "INSERT INTO agents (agent_type, pool, description, output_schema, text_output) "
        "VALUES ('echo', 'default', '', '{}', true)"
    )
    await stage.execute(
        "INSERT INTO threads (id, tenant, user_id, agent_type, metadata) VALUES (:id, 'acme', :user_id, 'echo', '{}')",
        id=stage.thread_id,
        user_id=stage.user_id,
    )
    yield stage
    await database.dispose()


def answer(words: str) -> Ending:
    """A success."""
    return Ending(status=RunStatus.SUCCEEDED, text=words, last_entry=1, usage={"requests": 1})


async def test_an_attempt_that_was_overtaken_finishes_nothing(stage: Stage) -> None:
    run_id, worker_id = await stage.query(), await stage.worker()
    first = await stage.claimed(run_id, worker_id)
    assert await let_go(stage.database, run_id, first.attempt)
    second = await stage.claimed(run_id, worker_id)

    assert await finish(stage.database, first, answer("of the first")) is None
    assert await give_back(stage.database, first, {}, Begun.WORKER_STOPPING) is None
    assert await finish(stage.database, second, answer("of the second")) is not None
    assert await finish(stage.database, second, answer("once more")) is None

    assert await stage.answers() == ["of the second"]


async def test_a_run_is_claimed_once(stage: Stage) -> None:
    run_id = await stage.query()
    await stage.claimed(run_id, await stage.worker())

    assert await claim(stage.database, run_id, await stage.worker(), isolated=False) is None


async def test_a_run_is_not_claimed_before_the_one_before_it_has_ended(stage: Stage) -> None:
    first, second, worker_id = await stage.query(), await stage.query(), await stage.worker()

    assert await claim(stage.database, second, worker_id, isolated=False) is None
    claimed = await stage.claimed(first, worker_id)
    assert await claim(stage.database, second, worker_id, isolated=False) is None
    await finish(stage.database, claimed, answer("first"))

    assert await claim(stage.database, second, worker_id, isolated=False) is not None


@pytest.mark.parametrize("death", ["ended", "lapsed"])
async def test_the_dead_claim_nothing(stage: Stage, death: str) -> None:
    run_id, worker_id = await stage.query(), await stage.worker(lease_seconds=-1 if death == "lapsed" else 60)
    if death == "ended":
        await declare_dead(stage.database, worker_id)

    assert await claim(stage.database, run_id, worker_id, isolated=False) is None


async def test_only_a_lease_that_has_run_out_is_judged(stage: Stage) -> None:
    await stage.worker()
    lapsed = await stage.worker(lease_seconds=-1)

    assert await judge_workers(stage.database) == [lapsed]
    assert await judge_workers(stage.database) == []


async def test_a_run_of_the_dead_is_a_suspect_and_has_a_budget(stage: Stage) -> None:
    run_id = await stage.query()
    for crashes in range(1, MAX_CRASHES):
        worker_id = await stage.worker()
        await stage.claimed(run_id, worker_id, isolated=crashes > 1)
        await declare_dead(stage.database, worker_id)
        _, waiting = await take_back(stage.database, MAX_CRASHES)
        assert [ring.run_id for ring in waiting] == [run_id]
        assert (await stage.row(run_id)).crashes == crashes
        assert await claim(stage.database, run_id, await stage.worker(), isolated=False) is None

    last = await stage.worker()
    await stage.claimed(run_id, last, isolated=True)
    await declare_dead(stage.database, last)
    ended, _ = await take_back(stage.database, MAX_CRASHES)

    assert [(row.id, row.error["code"]) for row in ended] == [(run_id, "worker_crashed")]


async def test_giving_back_is_no_crash(stage: Stage) -> None:
    run_id = await stage.query()
    for _ in range(MAX_CRASHES + 1):
        claimed = await stage.claimed(run_id, await stage.worker())
        assert await give_back(stage.database, claimed, {}, Begun.WORKER_STOPPING)

    row = await stage.row(run_id)
    assert (row.status, row.crashes, row.attempt) == ("queued", 0, MAX_CRASHES + 1)


async def test_a_stored_answer_wins_over_a_cancel_that_came_too_late(stage: Stage) -> None:
    run_id = await stage.query()
    await finish(stage.database, await stage.claimed(run_id, await stage.worker()), answer("yes"))

    assert await cancel(stage.database, run_id) is None
    assert (await stage.row(run_id)).status == "succeeded"


async def test_a_run_that_is_to_be_cancelled_is_not_given_back(stage: Stage) -> None:
    run_id = await stage.query()
    claimed = await stage.claimed(run_id, await stage.worker())
    await cancel(stage.database, run_id)

    assert await give_back(stage.database, claimed, {}, Begun.WORKER_STOPPING) is None
    assert await let_go(stage.database, run_id, claimed.attempt) is None


def test_a_lease_is_judged_only_over_a_lease_of_unbroken_database() -> None:
    unbroken, at = Unbroken(15), datetime(2026, 1, 1, tzinfo=UTC)
    judged: list[bool] = []
    for second in [*range(16), *range(40, 56)]:  # It was away in between.
        unbroken.answered(at + timedelta(seconds=second))
        judged.append(unbroken.for_a_lease)

    assert judged == ([False] * 15 + [True]) * 2
    unbroken.broke()
    assert not unbroken.for_a_lease
