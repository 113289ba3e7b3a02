"""A transaction of one statement: it is one, it fails as a session fails, and it leaves the pool as it was."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, cast

import psycopg
import pytest
from sqlalchemy import TextClause, event, text
from sqlalchemy.exc import DataError, IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import ConnectionPoolEntry

from agent_relay.shared import database
from agent_relay.shared.database import transact
from agent_relay.shared.database.hang_detector import Connection, HangDetector
from agent_relay.shared.fair_turns import CALLER
from agent_relay.shared.settings import Settings
from agent_relay.shared.unavailable import Trouble
from tests.support.eventually import soon

_PID = text("SELECT pg_backend_pid() AS pid")
_NOTE = text("INSERT INTO notes (id) VALUES (:id) RETURNING id")
_NOTES = text("SELECT id FROM notes ORDER BY id")
_SLEEP = text("SELECT pg_sleep(60)")
_UPDATE = text("INSERT INTO notes (id) VALUES (7)")
_NULL = text("INSERT INTO notes (id) VALUES (NULL)")
_PREPARED = text("SELECT 1 FROM pg_prepared_statements WHERE statement = 'SELECT id FROM notes ORDER BY id'")
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


TEXTS: list[list[str | None]] = [
    ["plain", "", "NULL", "null", None],
    ['"', "\\", '\\"', '"\\', "\\\\", "a\\nb", "\n\t\x01"],
    ["{}", "{a,b}", ",", " padded ", "ä€😀", "'"],
    [None],
    [],
    ['{"a": "b\\"c"}' * 20_000],
]


@pytest.mark.parametrize("texts", TEXTS, ids=range(len(TEXTS)))
async def test_lists_of_texts_arrive_as_they_are(engine: AsyncEngine, texts: list[str | None]) -> None:
    (row,) = await transact(engine, text("SELECT CAST(:texts AS text[]) AS texts"), {"texts": texts})

    assert row.texts == texts


async def test_a_text_that_postgresql_cannot_hold_is_refused_in_a_list_too(engine: AsyncEngine) -> None:
    with pytest.raises(DataError):
        await transact(engine, text("SELECT CAST(:texts AS text[]) AS texts"), {"texts": ["a", "b\x00c"]})


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


async def closed_meanwhile(engine: AsyncEngine, database_url: str) -> None:
    """Fill the pool, and have the server close what is in it."""
    pids = {rows[0].pid for rows in await asyncio.gather(transact(engine, _PID), transact(engine, _PID))}
    with psycopg.connect(database_url, autocommit=True) as other:
        for pid in pids:
            other.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])


async def asked_both_ways(engine: AsyncEngine) -> list[object]:
    """Ask in a transaction of one statement, and in a session."""

    async def in_session() -> object:
        async with engine.connect() as session:
            return await session.scalar(text("SELECT 1"))

    return list(await asyncio.gather(transact(engine, _PID), in_session(), return_exceptions=True))


async def test_a_pool_that_is_renewed_while_it_connects_serves(
    engine: AsyncEngine, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = HangDetector.connect

    async def renewed(self: HangDetector, **address: Any) -> Connection:
        connection = await connect(self, **address)
        self.renewals += 1
        return connection

    monkeypatch.setattr(HangDetector, "connect", renewed)
    await closed_meanwhile(engine, database_url)

    [[_], one] = cast("list[Any]", await asked_both_ways(engine))

    assert one == 1


async def test_a_server_that_closes_new_connections_too_is_away(engine: AsyncEngine, database_url: str) -> None:
    def cut(_: Any, entry: ConnectionPoolEntry) -> None:
        cast("Connection", entry.driver_connection).cut()

    await closed_meanwhile(engine, database_url)
    event.listen(engine.sync_engine, "connect", cut)

    troubles = [database.trouble_of(cast("Exception", error)) for error in await asked_both_ways(engine)]

    assert troubles == [Trouble.UNREACHABLE] * 2


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


async def _prepared(engine: AsyncEngine) -> list[int]:
    async with engine.connect() as session:
        return list(await session.scalars(_PREPARED))


@pytest.mark.parametrize("statement", [_NOTES, _PID, _UPDATE], ids=["a read", "a constant", "a write"])
async def test_what_is_prepared_outlives_a_rollback(engine: AsyncEngine, statement: TextClause) -> None:
    await transact(engine, _NOTES)

    async with engine.connect() as session:
        await session.execute(statement)
        await session.rollback()

    assert len(await _prepared(engine)) == 1
    await transact(engine, _NOTES)
    assert await notes(engine) == []


async def test_what_is_prepared_is_dropped_after_an_error(engine: AsyncEngine) -> None:
    await transact(engine, _NOTES)

    async with engine.connect() as session:
        with pytest.raises(IntegrityError):
            await session.execute(_NULL)
        await session.rollback()

    assert await _prepared(engine) == []
    assert await notes(engine) == []


async def test_connections_go_round_among_tenants(engine: AsyncEngine) -> None:
    """Fifty calls of one tenant wait for two connections; a call of another is served next but one."""
    served: list[str] = []

    async def call(tenant: str) -> None:
        CALLER.set((tenant, "somebody"))
        async with engine.connect() as connection:
            served.append(tenant)
            await connection.execute(_NOTES)

    await asyncio.gather(call("loud"), call("loud"))  # Both connections are there.
    served.clear()
    loud = [asyncio.create_task(call("loud")) for _ in range(50)]
    other = asyncio.create_task(call("other"))
    await asyncio.gather(other, *loud)
    assert served.index("other") <= 5
