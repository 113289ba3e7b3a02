"""Real servers for the whole session; a database and a Redis of its own for whoever asks."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from unittest import mock

import psycopg
import pytest
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import create_async_engine

from agent_relay.embedded import PostgresServer, RedisServer
from agent_relay.embedded.postgres import AGENTS, API, WORKER
from agent_relay.shared.migrations import grants
from tests.support.client import Client
from tests.support.service import GRANTED, Running, Service, serving
from tests.support.stage import Stage

_numbers = itertools.count(1)
ROLES = grants.Roles({grants.API: API, grants.WORKER: WORKER, grants.AGENTS: AGENTS})


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the tests that take minutes be asked for."""
    parser.addoption("--screenshots", metavar="FOLDER", help="keep the pictures of the pages in this folder")
    parser.addoption("--long", action="store_true", help="run the tests that take minutes, too")


def pytest_configure() -> None:
    """Whoever runs the tests in the background has SIGINT ignored, and all processes that the tests start with them."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave those tests out of every other run, which is whole without them."""
    if not config.getoption("--long"):
        items[:] = [item for item in items if "long" not in item.keywords]


@pytest.fixture(autouse=True)
def environment_as_it_was() -> Iterator[None]:
    """Undo what a test does to the environment: reading `.env` sets variables, which no other test may find."""
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A real PostgreSQL, with a migrated database to copy."""
    from agent_relay.shared.migrations.upgrade import upgrade  # noqa: PLC0415  (Alembic, which no unit test needs)

    with PostgresServer(durable=False) as server:
        server.ensure_database("template")
        server.ensure_roles()
        upgrade(server.url("template"), roles=ROLES)
        yield server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A real Redis."""
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="session")
def new_database(postgres: PostgresServer) -> Callable[[], str]:
    """Make migrated databases; each call returns the URL of a new one."""

    def make() -> str:
        name = f"test_{next(_numbers)}"
        with psycopg.connect(postgres.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE template")  # pyright: ignore[reportArgumentType, reportCallIssue]
        GRANTED.add(postgres.url(name))
        return postgres.url(name)

    return make


@pytest.fixture
def database_url(new_database: Callable[[], str]) -> str:
    """A migrated database of the test's own."""
    return new_database()


@pytest.fixture(scope="session")
def new_redis(redis_server: RedisServer) -> Callable[[], str]:
    """Number Redis databases; each call returns the URL of an empty one."""
    return lambda: redis_server.url(next(_numbers))


@pytest.fixture
def redis_url(new_redis: Callable[[], str]) -> str:
    """A Redis database of the test's own."""
    return new_redis()


@pytest.fixture
async def redis(redis_url: str) -> AsyncGenerator[Redis]:
    """A client of a Redis database of the test's own."""
    async with Redis.from_url(redis_url) as client:
        yield client


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


@pytest.fixture
def service(database_url: str, redis_url: str, tmp_path: Path) -> Iterator[Service]:
    """Processes of the test's own: it starts them as it likes."""
    with serving(database_url, redis_url, tmp_path) as service:
        yield service


@pytest.fixture(scope="session")
def shared_api(
    new_database: Callable[[], str], new_redis: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """An API process, with a worker beside it, for all tests that leave both alive."""
    with serving(new_database(), new_redis(), tmp_path_factory.mktemp("service")) as service:
        api = service.api()
        service.worker()
        yield api


@pytest.fixture
async def client(shared_api: Running) -> AsyncGenerator[Client]:
    """A user whom nobody else is, of the shared service."""
    async with Client(shared_api.url) as client:
        yield client
