"""A commit whose reply is lost was made or it was not: whoever asked finds out, and nothing is done twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, cast
from urllib.parse import urlsplit
from uuid import UUID

import psycopg
import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine

from agent_relay.embedded import PostgresServer
from agent_relay.shared import database
from agent_relay.shared.batches.accept import Submission
from agent_relay.shared.batches.accept import accept as accept_batch
from agent_relay.shared.batches.retry import retry
from agent_relay.shared.batches.spool import Spool
from agent_relay.shared.database.tables import RunStatus
from agent_relay.shared.queue import QueueEntry, RunQueue
from agent_relay.shared.runs.accept import Query, accept
from agent_relay.shared.runs.claim import claim
from agent_relay.shared.runs.finish import Ending
from agent_relay.shared.runs.queue_limits import Admission
from agent_relay.shared.schemas import error_of, usage_of
from agent_relay.shared.settings import Settings
from agent_relay.worker.execution.in_flight import RunsInFlight
from agent_relay.worker.execution.job import Job
from agent_relay.worker.execution.lease import Row
from tests.faults.link import Link
from tests.support.eventually import soon
from tests.support.stage import Stage

COMMIT = b"COMMIT"
"""What a session says last. A transaction of one statement is told by a value instead: it is prepared without any."""


@pytest.fixture
async def link(postgres: PostgresServer) -> AsyncGenerator[Link]:
    """The way to the server, on which a reply can be lost."""
    link = Link(postgres.folder / ".s.PGSQL.5432")
    await link.open()
    yield link
    await link.close()


@pytest.fixture
def settings(link: Link, database_url: str) -> Settings:
    """Settings of a process behind it."""
    name = urlsplit(database_url).path
    return Settings(database_url=f"postgresql://postgres@127.0.0.1:{link.port}{name}", redis_url="redis://none")


@pytest.fixture
async def engine(settings: Settings) -> AsyncGenerator[AsyncEngine]:
    """The pool of that process."""
    engine = database.connect(settings)
    yield engine
    await engine.dispose()


def query_of(stage: Stage) -> Query:
    """What is asked."""
    return Query(
        tenant="acme",
        user_id=stage.user_id,
        thread_id=stage.thread_id,
        agent_type=None,
        query="Once?",
        deadline_seconds=60,
    )


async def test_a_query_that_was_stored_is_accepted(stage: Stage, engine: AsyncEngine, link: Link) -> None:
    link.lose_reply(COMMIT)

    accepted = await accept(engine, query_of(stage))

    assert link.lost_replies == [COMMIT]
    assert [row.id for row in await stage.execute("SELECT id FROM runs")] == [accepted.run.id]


async def test_a_batch_that_was_stored_is_accepted(
    stage: Stage, engine: AsyncEngine, settings: Settings, link: Link
) -> None:
    asked = Submission(tenant="acme", user_id=stage.user_id, agent_type="echo", deadline_seconds=60, run_seconds=60)
    link.lose_reply(COMMIT)
    with Spool() as items:
        items.add("row-1", "Once?", {})
        accepted = await accept_batch(engine, asked, items, Admission(settings))
    await stage.execute("UPDATE runs SET status = 'failed', finished_at = now()")
    link.lose_reply(COMMIT)
    again = await retry(engine, accepted.batch.id, 60, Admission(settings))

    assert link.lost_replies == [COMMIT] * 2
    stored = await stage.execute("SELECT batch_id FROM runs ORDER BY id")
    assert [row.batch_id for row in stored] == [accepted.batch.id, again.batch.id]
    assert [ring.run_id for ring in again.rings()] == [UUID(int=again.ids[0])]


async def test_a_query_that_was_not_stored_is_refused(stage: Stage, engine: AsyncEngine, database_url: str) -> None:
    def end_the_connection(connection: Any) -> None:
        pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar()
        with psycopg.connect(database_url, autocommit=True) as other:
            other.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])

    event.listen(engine.sync_engine, "commit", end_the_connection)

    with pytest.raises(OperationalError) as refusal:
        await accept(engine, query_of(stage))

    assert database.is_away(refusal.value)
    event.remove(engine.sync_engine, "commit", end_the_connection)
    assert await stage.execute("SELECT id FROM runs") == []


async def test_a_commit_that_is_under_way_is_waited_for(stage: Stage, engine: AsyncEngine) -> None:
    async with stage.database.connect() as connection:
        started = await connection.exec_driver_sql("SELECT CAST(pg_current_xact_id() AS text)")
        transaction_id = started.scalar_one()
        asking = asyncio.create_task(database.was_committed(engine, transaction_id))
        await asyncio.wait([asking], timeout=0.2)
        assert not asking.done()
        await connection.commit()

    assert await asking


async def test_an_answer_that_was_stored_is_told_and_not_stored_again(
    stage: Stage, engine: AsyncEngine, settings: Settings, link: Link
) -> None:
    claimed = await stage.claimed(await stage.query(), await stage.worker())
    nothing: Any = None
    job = Job(settings, engine, engine, nothing, nothing, nothing, nothing, nothing, {}, nothing, nothing)
    ending = Ending(status=RunStatus.SUCCEEDED, text="Yes.", last_entry=1, usage={"requests": 1})
    link.lose_reply(claimed.run_id.bytes)

    row = await job._finish(claimed, ending)  # pyright: ignore[reportPrivateUsage]

    assert link.lost_replies == [claimed.run_id.bytes]
    assert row is not None
    assert (row.id, row.status, row.output) == (claimed.run_id, "succeeded", "Yes.")
    assert await stage.answers() == ["Yes."]


class Rung(RunQueue):
    """Lanes that note who was called for."""

    def __init__(self) -> None:
        super().__init__(cast("Any", None))
        self.rung: list[QueueEntry] = []

    async def ring(self, rings: Any, *, in_thread: Any = None) -> bool:  # noqa: ARG002
        """Note the calls."""
        self.rung += rings
        return True

    async def have_rung(self) -> bool:
        """Tell whether somebody was called for."""
        return bool(self.rung)


async def test_a_run_that_was_claimed_without_the_worker_knowing_is_let_go(
    stage: Stage, engine: AsyncEngine, link: Link
) -> None:
    run_id, worker_id, lanes = await stage.query(), await stage.worker(), Rung()
    roster = RunsInFlight(engine, lanes, 2)
    link.lose_reply(run_id.bytes)

    roster.take(run_id)
    with pytest.raises(OperationalError):
        await claim(engine, run_id, worker_id, isolated=False)
    roster.leave(run_id)
    assert (await stage.row(run_id)).worker_id == worker_id
    roster.beat([Row(run_id, 1, cancel_requested=False)])
    assert (await stage.row(run_id)).status == "running"  # It may have been claimed a moment ago.
    roster.beat([Row(run_id, 1, cancel_requested=False)])
    await soon(lanes.have_rung)

    row = await stage.row(run_id)
    assert (row.status, row.crashes, row.worker_id) == ("queued", 0, None)
    assert [ring.member for ring in lanes.rung] == [f"{run_id}:2"]


@pytest.mark.parametrize("max_crashes", [1, 2])
async def test_a_run_that_is_let_go_again_and_again_counts_as_crashed(
    stage: Stage, engine: AsyncEngine, max_crashes: int
) -> None:
    run_id, worker_id = await stage.query(), await stage.worker()
    roster = RunsInFlight(engine, Rung(), max_crashes)

    async def let_go() -> bool:
        return (await stage.row(run_id)).status != "running"

    for attempt in (1, 2):
        await stage.claimed(run_id, worker_id)
        for _ in range(2):
            roster.beat([Row(run_id, attempt, cancel_requested=False)])
        await soon(let_go)

    row = await stage.row(run_id)
    assert row.crashes == 1
    assert row.status == ("failed" if max_crashes == 1 else "queued")
    assert (row.error or {}).get("code") == ("worker_crashed" if max_crashes == 1 else None)


async def test_an_end_that_the_database_does_not_take_ends_its_run_bare_and_no_others(
    stage: Stage, engine: AsyncEngine, settings: Settings
) -> None:
    worker_id, nothing = await stage.worker(), cast("Any", None)
    runs = [await stage.query(thread_id=None, agent_type="echo") for _ in range(2)]
    await stage.execute("ALTER TABLE messages ADD CHECK (content <> 'Never.')")
    claims = [await stage.claimed(run_id, worker_id) for run_id in (*runs, await stage.query())]
    job = Job(settings, engine, engine, nothing, nothing, nothing, nothing, nothing, {}, nothing, nothing)

    texts = ["a\0b", "Yes.", "Never."]  # What no text may hold, an answer, and what a constraint refuses.
    ends = [Ending(status=RunStatus.SUCCEEDED, text=text, last_entry=3, usage={"requests": 2}) for text in texts]
    finish = job._finish  # pyright: ignore[reportPrivateUsage]
    rows = await asyncio.gather(*(finish(*each) for each in zip(claims, ends, strict=True)))

    assert [row and row.status for row in rows] == ["failed", "succeeded", "failed"]
    for row in (rows[0], rows[2]):
        assert row is not None
        assert error_of(row.error).code == "agent_error"
        assert (usage_of(row.usage)["requests"], row.last_entry, row.output, row.partial_output) == (2, 3, None, None)
