"""A server that hangs keeps nobody waiting, and one that takes its time is waited for."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncGenerator, Iterator

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine

from agent_relay.embedded import PostgresServer
from agent_relay.shared import database
from agent_relay.shared.clock import new_id
from agent_relay.shared.database import hang_detector
from agent_relay.shared.migrations.upgrade import upgrade
from agent_relay.shared.settings import Settings
from agent_relay.worker.execution.lease import Lease
from tests.support.eventually import soon

SLEEPING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
OPEN = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'agent-relay'"
FAR_TOO_LONG_SECONDS = 20
"""Who waits for so long waits for the server."""


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A PostgreSQL to be frozen."""
    with PostgresServer(durable=False) as server:
        server.ensure_database()
        upgrade(server.url().replace("postgresql://", "postgresql+psycopg://"))
        yield server


@pytest.fixture
def settings(server: PostgresServer) -> Settings:
    """Settings that name it."""
    return Settings(
        database_url=server.url(), redis_url="redis://none", lease_seconds=1, beat_seconds=0.2, database_pool_size=3
    )


@pytest.fixture
async def engine(settings: Settings, server: PostgresServer) -> AsyncGenerator[AsyncEngine]:
    """The pool that processes have."""
    engine = database.connect(settings)
    yield engine
    server.resume()
    await engine.dispose()


@pytest.fixture
def uncollected() -> Iterator[None]:
    """No collection of garbage, as in a process that has little to do."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def ask(engine: AsyncEngine, statement: str = "SELECT 1") -> object:
    """Run a statement."""
    async with asyncio.timeout(FAR_TOO_LONG_SECONDS), engine.connect() as connection:
        return await connection.scalar(text(statement))


async def answered(engine: AsyncEngine) -> bool:
    """Tell whether the server answers."""
    try:
        return bool(await ask(engine))
    except DBAPIError:
        return False


async def test_nobody_waits_for_a_server_that_hangs(engine: AsyncEngine, server: PostgresServer) -> None:
    await asyncio.gather(*(ask(engine) for _ in range(3)))
    under_way = asyncio.create_task(ask(engine, "SELECT pg_sleep(600)"))
    await soon(lambda: ask(engine, SLEEPING))

    await asyncio.to_thread(server.pause)
    refusals = await asyncio.gather(under_way, *(ask(engine) for _ in range(20)), return_exceptions=True)
    later = await asyncio.gather(*(ask(engine) for _ in range(20)), return_exceptions=True)
    server.resume()

    for refusal in (*refusals, *later):
        assert isinstance(refusal, DBAPIError)
        assert database.is_away(refusal)
        assert database.is_ours(refusal)
    await soon(lambda: answered(engine))
    assert await asyncio.gather(*(ask(engine) for _ in range(20))) == [1] * 20


@pytest.mark.usefixtures("uncollected")
async def test_a_connection_that_was_not_made_in_time_is_not_left_open(
    engine: AsyncEngine, server: PostgresServer
) -> None:
    open_before = await ask(engine, OPEN)
    await asyncio.to_thread(server.pause)
    refusals = await asyncio.gather(*(ask(engine) for _ in range(3)), return_exceptions=True)
    server.resume()
    await soon(lambda: answered(engine))

    async with asyncio.timeout(FAR_TOO_LONG_SECONDS):
        while await ask(engine, OPEN) != open_before:  # noqa: ASYNC110  (another process)
            await asyncio.sleep(0.1)
    assert [type(refusal) for refusal in refusals] == [OperationalError] * 3


async def test_pools_that_share_a_pulse_find_it_hanging_and_answering_together(
    settings: Settings, server: PostgresServer
) -> None:
    pulse = hang_detector.HangDetector()
    pool, probe = database.connect(settings, pulse=pulse), database.connect(settings, 1, pulse=pulse)
    try:
        assert [await ask(pool), await ask(probe)] == [1, 1]
        for _ in range(3):
            await asyncio.to_thread(server.pause)
            assert not await answered(pool)
            assert not await answered(probe)
            server.resume()
            await soon(lambda: answered(probe))
            assert await ask(pool) == 1
    finally:
        server.resume()
        await pool.dispose()
        await probe.dispose()


async def test_a_server_that_takes_its_time_is_waited_for(engine: AsyncEngine, server: PostgresServer) -> None:
    with psycopg.connect(server.url()) as holder:
        holder.execute("LOCK TABLE agents")
        slow = asyncio.create_task(ask(engine, "SELECT 1 FROM pg_sleep(3)"))
        locked = asyncio.create_task(ask(engine, "SELECT count(*) FROM agents"))
        assert await slow == 1
        assert not locked.done()
        holder.rollback()

    assert await locked == 0


async def test_a_server_that_was_given_up_too_soon_gets_longer(
    engine: AsyncEngine, server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hang_detector, "SIGN_SECONDS", 0.5)
    monkeypatch.setattr(hang_detector, "FALSE_ALARM_SECONDS", FAR_TOO_LONG_SECONDS)
    await ask(engine)
    for _ in range(3):
        await asyncio.to_thread(server.pause)
        with pytest.raises(DBAPIError):
            await ask(engine)
        server.resume()
        await soon(lambda: answered(engine))

    await asyncio.to_thread(server.pause)
    slow = asyncio.create_task(ask(engine))
    await asyncio.sleep(2)
    server.resume()

    assert await slow == 1


async def test_who_answers_others_lives(engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    async def unheard(**_: object) -> bool:
        await asyncio.sleep(FAR_TOO_LONG_SECONDS)
        return False

    monkeypatch.setattr(hang_detector, "_ask_for_life", unheard)
    slow = asyncio.create_task(ask(engine, "SELECT 1 FROM pg_sleep(4)"))
    while not slow.done():
        await ask(engine)
        await asyncio.sleep(0.05)

    assert await slow == 1


async def test_a_refusal_is_an_answer(engine: AsyncEngine, server: PostgresServer) -> None:
    await ask(engine)
    slow = asyncio.create_task(ask(engine, "SELECT 1 FROM pg_sleep(3)"))
    await soon(lambda: ask(engine, SLEEPING))
    with psycopg.connect(server.url("postgres"), autocommit=True) as operator:
        operator.execute("ALTER DATABASE agent_relay ALLOW_CONNECTIONS false")
        try:
            assert await slow == 1
        finally:
            operator.execute("ALTER DATABASE agent_relay ALLOW_CONNECTIONS true")


async def test_a_beat_that_hangs_gives_the_lease_up_and_takes_it_up_again(
    settings: Settings, server: PostgresServer
) -> None:
    lapsed, beats = asyncio.Event(), asyncio.Semaphore(0)
    lease = Lease(
        settings,
        "0",
        first_id=new_id(),
        agents=(),
        held=list,
        told=list,
        beat=lambda _: beats.release(),
        lost=lapsed.set,
    )
    await lease.acquire()
    worker_id = lease.worker_id
    assert worker_id is not None

    await asyncio.to_thread(server.pause)
    try:
        await asyncio.wait_for(lapsed.wait(), FAR_TOO_LONG_SECONDS)
        assert lease.worker_id is None
    finally:
        server.resume()
    while lease.worker_id is None:
        await asyncio.wait_for(beats.acquire(), FAR_TOO_LONG_SECONDS)

    assert lease.worker_id == worker_id
    await lease.release()
