"""A transaction of one statement: it is one, it fails as a session fails, and it leaves the pool as it was."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine

from shared import database
from shared.database import transact
from shared.settings import Settings
from tests.eventually import soon

_PID = text("SELECT pg_backend_pid() AS pid")
_NOTE = text("INSERT INTO notes (id) VALUES (:id) RETURNING id")
_NOTES = text("SELECT id FROM notes ORDER BY id")
_SLEEP = text("SELECT pg_sleep(60)")
_DIE = text("SELECT pg_terminate_backend(pg_backend_pid())")


@pytest.fixture
async def engine(database_url: str) -> AsyncGenerator[AsyncEngine]:
    """A pool, and a table to write to."""
    engine = database.connect(Settings(database_url=database_url, redis_url="redis://none", database_pool_size=2))
    await transact(engine, text("CREATE TABLE notes (id int PRIMARY KEY)"))
    yield engine
    await engine.dispose()


async def notes(engine: AsyncEngine) -> list[int]:
    """Read what was written."""
    return [row.id for row in await transact(engine, _NOTES)]


async def test_it_is_committed_once_it_has_returned(engine: AsyncEngine, database_url: str) -> None:
    assert [row.id for row in await transact(engine, _NOTE, {"id": 1})] == [1]

    with psycopg.connect(database_url) as other:
        assert other.execute("SELECT id FROM notes").fetchall() == [(1,)]


async def test_a_session_on_the_same_connection_is_a_transaction_again(engine: AsyncEngine) -> None:
    await asyncio.gather(*(transact(engine, _NOTE, {"id": number}) for number in range(4)))

    for _ in range(2):
        async with engine.connect() as session:
            await session.execute(_NOTE, {"id": 9})
            await session.rollback()

    assert 9 not in await notes(engine)


async def test_what_the_database_refuses_is_raised_as_in_a_session(engine: AsyncEngine) -> None:
    await transact(engine, _NOTE, {"id": 1})

    with pytest.raises(IntegrityError) as refusal:
        await transact(engine, _NOTE, {"id": 1})

    assert not database.is_away(refusal.value)
    assert not database.is_ours(refusal.value)
    assert await notes(engine) == [1]


async def test_a_connection_that_breaks_under_it_is_ours(engine: AsyncEngine) -> None:
    with pytest.raises(OperationalError) as breakage:
        await transact(engine, _DIE)

    assert database.is_away(breakage.value)
    assert database.is_ours(breakage.value)
    assert await notes(engine) == []


async def test_a_server_that_cannot_be_reached_is_away(database_url: str) -> None:
    nowhere = database.connect(Settings(database_url=f"{database_url}-not", redis_url="redis://none"))

    with pytest.raises(OperationalError) as breakage:
        await transact(nowhere, _PID)

    assert database.is_away(breakage.value)
    assert database.is_ours(breakage.value)


async def test_connections_that_were_closed_meanwhile_are_replaced_before_they_are_used(
    engine: AsyncEngine, database_url: str
) -> None:
    before = {rows[0].pid for rows in await asyncio.gather(transact(engine, _PID), transact(engine, _PID))}
    with psycopg.connect(database_url, autocommit=True) as other:
        for pid in before:
            other.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])

    [row] = await transact(engine, _PID)
    async with engine.connect() as session:
        assert await session.scalar(text("SELECT 1")) == 1

    assert row.pid not in before


async def test_one_that_nobody_waits_for_any_more_is_given_up(engine: AsyncEngine, database_url: str) -> None:
    async def sleepers() -> int:
        with psycopg.connect(database_url) as other:
            sleeping = (
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
            )
            row = other.execute(sleeping).fetchone()
        assert row
        return row[0]

    async def begun() -> bool:
        return await sleepers() == 2

    async def over() -> bool:
        return await sleepers() == 0

    sleeping = [asyncio.create_task(transact(engine, _SLEEP)) for _ in range(2)]
    await soon(begun)
    for task in sleeping:
        task.cancel()
    await asyncio.wait(sleeping)

    await soon(over)
    assert all(task.cancelled() for task in sleeping)
    assert await notes(engine) == []
