"""What users ask and agents answer, and secrets, stand in no error and no line of the log."""

from __future__ import annotations

import io
import logging
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import psycopg
import pytest
from pydantic import TypeAdapter, ValidationError
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from agent_relay.shared import database, logs
from agent_relay.shared.database import transact
from agent_relay.shared.settings import Settings
from agent_relay.worker.execution.lease import _Connection  # pyright: ignore[reportPrivateUsage]
from tests.support.client import Client
from tests.support.service import Service

CANARY = "c4n4ry"
CANARIES = f"{CANARY} of a user,\nin two lines {CANARY}"


@pytest.fixture
async def engine(database_url: str) -> AsyncGenerator[AsyncEngine]:
    """A pool, and a table that refuses much."""
    engine = database.connect(Settings(database_url=database_url, redis_url="redis://none", database_pool_size=2))
    await transact(
        engine, text("CREATE TABLE notes (id text PRIMARY KEY, much text NOT NULL CHECK (much <> 'no'), number int)")
    )
    await transact(engine, text("INSERT INTO notes VALUES (:canary, 'x', 1)"), {"canary": CANARIES})
    yield engine
    await engine.dispose()


REFUSED = {
    "a key twice": "INSERT INTO notes VALUES (%(canary)s, 'x', 1)",
    "nothing where something must be": "INSERT INTO notes VALUES (%(canary)s || '2', NULL, 1)",
    "a check": "INSERT INTO notes VALUES (%(canary)s || '2', 'no', 1)",
    "no number": "INSERT INTO notes VALUES ('3', 'x', CAST(CAST(%(canary)s AS text) AS int))",
    "no identifier": "SELECT CAST(CAST(%(canary)s AS text) AS uuid)",
    "no JSON": "SELECT CAST(CAST(%(canary)s AS text) AS jsonb)",
    "no date": "SELECT CAST(CAST(%(canary)s AS text) AS timestamptz)",
    "an unknown function": "SELECT no_such_function(CAST(%(canary)s AS text))",
}


async def _in_a_session(engine: AsyncEngine, statement: str) -> Any:
    async with engine.begin() as connection:
        await connection.execute(text(statement.replace("%(canary)s", ":canary")), {"canary": CANARIES})


async def _at_once(engine: AsyncEngine, statement: str) -> Any:
    await transact(engine, text(statement.replace("%(canary)s", ":canary")), {"canary": CANARIES})


async def _by_the_driver(engine: AsyncEngine, statement: str) -> Any:
    async def write(connection: Any) -> Any:
        driver = (await connection.get_raw_connection()).driver_connection
        await driver.execute(statement, {"canary": CANARIES})

    await database.store(engine, write)


@pytest.mark.parametrize("statement", REFUSED)
@pytest.mark.parametrize("execute", [_in_a_session, _at_once, _by_the_driver])
async def test_an_error_of_the_database_quotes_no_value(
    engine: AsyncEngine, execute: Callable[[AsyncEngine, str], Awaitable[Any]], statement: str
) -> None:
    with pytest.raises(DBAPIError) as refused:
        await execute(engine, REFUSED[statement])

    error = refused.value
    said = "".join(traceback.format_exception(error)) + repr(error) + repr(error.orig) + repr(error.__context__)
    assert CANARY not in said
    assert isinstance(error.orig, psycopg.Error)
    assert error.orig.sqlstate
    assert type(error.orig).__name__ in str(error)


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("statement", REFUSED)
async def test_neither_does_one_of_the_lease(database_url: str, statement: str) -> None:
    with _Connection.connect(database_url, autocommit=True) as connection, pytest.raises(psycopg.Error) as refused:
        connection.ask(REFUSED[statement], {"canary": CANARIES})  # pyright: ignore[reportArgumentType]

    assert CANARY not in "".join(traceback.format_exception(refused.value)) + repr(refused.value)


@pytest.mark.parametrize(
    "row",
    [f"{CANARY}\tx\tno number {CANARY}\n", f"{CANARY}\n", f"{CANARY}\tno\t1\n", f"{CANARY}\t\\N\t1\n", f"{CANARY}\\0"],
)
async def test_neither_does_one_of_a_copy(engine: AsyncEngine, row: str) -> None:
    async def write(connection: Any) -> Any:
        driver = (await connection.get_raw_connection()).driver_connection
        async with driver.cursor() as cursor, cursor.copy("COPY notes FROM STDIN") as copy:
            await copy.write(row)

    with pytest.raises(DBAPIError) as refused:
        await database.store(engine, write)

    error = refused.value
    assert CANARY not in "".join(traceback.format_exception(error)) + repr(error.orig) + repr(error.__context__)


def _written(write: Callable[[logging.Logger], None]) -> str:
    """Write to a log as processes write theirs."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.formatter())
    logger = logging.Logger("test")  # noqa: LOG001  (of no other)
    logger.addHandler(handler)
    write(logger)
    return stream.getvalue()


def _invalid(value: object) -> ValidationError:
    with pytest.raises(ValidationError) as invalid:
        TypeAdapter(dict[str, int]).validate_python({"number": value})
    return invalid.value


@pytest.mark.parametrize("value", [CANARIES, f'it\'s "{CANARY}"', [CANARY], f"{CANARY}, input_type=str] {CANARY}"])
def test_a_line_quotes_nothing_that_pydantic_refused(value: object) -> None:
    def write(logger: logging.Logger) -> None:
        logger.error("agent.failed error=%r", _invalid(value))
        logger.error("agent.failed", exc_info=_invalid(value))

    written = _written(write)

    assert CANARY not in written
    assert written.count("input_type=") == 2


@pytest.mark.parametrize("secret", ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_a+b/c=="])
def test_a_line_never_holds_a_secret(secret: str) -> None:
    def write(logger: logging.Logger) -> None:
        logger.warning("webhooks.odd secret=%s", secret)
        logger.error("webhooks.failed", exc_info=ValueError(f"not a key: {secret!r}"))

    written = _written(write)

    assert secret.removeprefix("whsec_") not in written
    assert written.count("whsec_…") == 2


async def test_a_whole_run_leaves_nothing_of_itself_in_the_logs(service: Service) -> None:
    """Whatever becomes of it; the failing agents say nothing of what they were asked themselves."""
    api, worker = service.api(LOG_LEVEL="DEBUG"), service.worker(LOG_LEVEL="DEBUG")
    async with Client(api.url) as client:
        for agent in ("echo", "form", "never_valid", "breaks", "tool_fails"):
            run = await client.run(CANARY, agent_type=agent)
            await client.ended(run["id"])
        secret = (await client.http.get("/webhooks/secret")).json()
    logged = api.log.read_text() + worker.log.read_text()

    assert CANARY not in logged
    assert str(secret["secret"]).removeprefix("whsec_") not in logged
