"""The connection to PostgreSQL and what its troubles are called."""

from __future__ import annotations

import asyncio
import json
import select
from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext
from functools import cache, partial
from typing import Any, Protocol, TypeVar

import psycopg
from psycopg import IsolationLevel
from psycopg.pq import TransactionStatus
from psycopg.rows import namedtuple_row
from psycopg.types.json import set_json_loads
from sqlalchemy import Engine, TextClause, event, text
from sqlalchemy.dialects.postgresql.psycopg import PGDialectAsync_psycopg
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, InterfaceError, InvalidatePoolError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.util import await_only, greenlet_spawn

from shared.bad_input import BadInput, refuse
from shared.metrics import database_error
from shared.pulse import Connection, Pulse
from shared.servers import Postgres
from shared.settings import Settings

SCHEMA = "0012"
"""The revision of the tables that this code works with."""

CONNECT_TIMEOUT_SECONDS = 2
UNDECIDED_LOOKS, UNDECIDED_SECONDS = 10, 0.1
"""How often, and how far apart, a transaction is looked at that has not ended."""

_STATUS = text("SELECT pg_xact_status(CAST(:transaction_id AS xid8))")

_OURS = "_agent_relay_broke"

_VANISHED: dict[str, Any] = {
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
"""Of TCP: a connection whose other end has gone without a word counts as broken after about ten seconds."""
_CLOSED = getattr(select, "POLLRDHUP", select.POLLHUP)
"""Of a socket: nothing more will come. Linux has a name for it; elsewhere a hang-up says the same."""
POOL_TIMEOUT_SECONDS = 10
"""How long a call may wait for its turn; a burst is not an outage."""


_ABOUT_ROWS = {"21", "22", "23", "27", "38", "39", "54", "P0"}
"""The classes of SQLSTATEs that speak of data, constraints and triggers."""


def _loads(data: str | bytes) -> Any:
    """Read a JSON value; one that PostgreSQL can hold and Python cannot read is null, and spoils no other row."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as unreadable:
        refuse(BadInput.ROW, "jsonb", unreadable)
        return None


set_json_loads(_loads)


def connect(settings: Settings, connections: int | None = None) -> AsyncEngine:
    """Make a pool of so many connections, or of all that are set; nothing is opened before it is needed."""
    engine = create_async_engine(
        "postgresql+psycopg://",
        pool_size=connections or settings.database_pool_size,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT_SECONDS,
        connect_args={"async_creator_fn": partial(_open, Pulse()), **parameters_of(settings.postgres)},
    )
    event.listen(engine.sync_engine, "checkout", _replace_if_closed)
    event.listen(engine.sync_engine, "handle_error", _mark)
    return engine


def parameters_of(server: Postgres, name: str = "agent-relay") -> dict[str, Any]:
    """Say to libpq how to connect; what `DATABASE_URL` says wins, but for the encoding.

    A pooler such as PgBouncer refuses other parameters of a session than these: the rest is set once it is there.
    """
    ours = {"connect_timeout": CONNECT_TIMEOUT_SECONDS, "fallback_application_name": name, **_VANISHED}
    return {**ours, **server.parameters, "client_encoding": "UTF8"}


_SETTLE = """
    SELECT direct, strict, read_only,
        set_config('TimeZone', 'UTC', false), set_config('DateStyle', 'ISO, MDY', false),
        set_config('standard_conforming_strings', 'on', false),
        CASE WHEN direct THEN set_config('default_transaction_isolation', 'read committed', false) END,
        CASE WHEN direct AND read_only THEN set_config('default_transaction_read_only', 'off', false) END
    FROM (
        SELECT pg_backend_pid() = %s AS direct,
            current_setting('default_transaction_isolation') <> 'read committed' AS strict,
            current_setting('default_transaction_read_only') = 'on' AND (
                SELECT source IN ('user', 'database user') FROM pg_settings
                WHERE name = 'default_transaction_read_only'
            ) AS read_only
        OFFSET 0
    ) AS found
"""
"""What the defaults of a role must not decide. That a database or a server is read-only is left as it is.

`direct` is false where a pooler such as PgBouncer is at the other end, which has a number of its own. It remembers the
first three for each of its clients; anything else would stay with a connection that it hands on to others.
"""


async def _open(pulse: Pulse, _conninfo: str, **parameters: Any) -> Connection:
    """Connect, and be independent of what the role and a pooler bring along."""
    connection = await pulse.connect(**parameters)
    try:
        await connection.set_autocommit(True)
        found = await (await connection.execute(_SETTLE, [connection.info.backend_pid], prepare=False)).fetchone()
        assert found is not None  # noqa: S101  (it has no WHERE)
        direct, strict, read_only, *_ = found
        await connection.set_autocommit(False)
        if not direct:
            connection.prepare_threshold = None
            if strict or read_only:
                await connection.set_isolation_level(IsolationLevel.READ_COMMITTED)
            if read_only:
                await connection.set_read_only(False)
    except BaseException:
        await connection.close()
        raise
    return connection


def settle(connection: psycopg.Connection[Any]) -> None:
    """Do the same with a connection that is not of a pool: it prepares nothing, and begins all its transactions."""
    autocommit, connection.autocommit = connection.autocommit, True
    found = connection.execute(_SETTLE, [connection.info.backend_pid], prepare=False).fetchone()
    assert found is not None  # noqa: S101  (it has no WHERE)
    connection.autocommit = autocommit
    connection.prepare_threshold = None
    connection.isolation_level = IsolationLevel.READ_COMMITTED
    connection.read_only = False if found[2] else None


def _replace_if_closed(_: Any, entry: ConnectionPoolEntry, __: Any) -> None:
    """Have a connection replaced whose other end was closed; to ask over it would cost a round trip each time."""
    driver: Any = entry.driver_connection
    ends = select.poll()
    if not driver.closed:
        ends.register(driver.fileno(), _CLOSED)
    if driver.closed or ends.poll(0):
        raise InvalidatePoolError


def _mark(context: ExceptionContext) -> None:
    """Count the error, and note on it that it was our connection that broke, or could not be made."""
    database_error(context.original_exception)
    if context.sqlalchemy_exception is not None and (context.is_disconnect or context.connection is None):
        setattr(context.sqlalchemy_exception, _OURS, True)


async def transact(database: AsyncEngine, statement: TextClause, values: Mapping[str, Any] | None = None) -> list[Any]:
    """Make a transaction of one statement, prepared and in one round trip; returns its rows.

    What happens once or more a run goes this way: a session of SQLAlchemy's costs four times the CPU, and three or
    four round trips. Raises what a session raises.
    """
    return await greenlet_spawn(_transact, database.sync_engine, statement, values or {})


def _transact(engine: Engine, statement: TextClause, values: Mapping[str, Any]) -> list[Any]:
    driver: Any = None
    try:
        connection: Any = engine.raw_connection()
        driver = connection.driver_connection
        try:
            return await_only(_execute_alone(driver, _compiled(statement), values))
        finally:
            if driver.pgconn.transaction_status == TransactionStatus.IDLE:
                await_only(driver.set_autocommit(False))
                connection.close()
            else:
                connection.invalidate()
    except psycopg.Error as error:
        database_error(error)
        broke = driver is None or driver.closed
        wrapped = DBAPIError.instance(
            statement.text, values, error, psycopg.Error, connection_invalidated=broke, dialect=engine.dialect
        )
        setattr(wrapped, _OURS, broke)
        raise wrapped from error


async def _execute_alone(
    driver: psycopg.AsyncConnection[Any], statement: bytes, values: Mapping[str, Any]
) -> list[Any]:
    await driver.set_autocommit(True)
    begun = nullcontext() if driver.isolation_level is None else driver.transaction()
    async with begun, driver.cursor(row_factory=namedtuple_row) as cursor:
        await cursor.execute(statement, values, prepare=True)
        return await cursor.fetchall() if cursor.pgresult and cursor.pgresult.nfields else []


@cache
def _compiled(statement: TextClause) -> bytes:
    """Write a statement as the driver wants it."""
    return str(statement.compile(dialect=PGDialectAsync_psycopg())).encode()


def is_ours(error: BaseException) -> bool:
    """Tell whether an error, wherever it is caught, says that a connection of this module's making broke."""
    return getattr(error, _OURS, False)


def is_about_rows(error: BaseException) -> bool:
    """Tell whether PostgreSQL refused a statement for what stands in its rows, as against how PostgreSQL is.

    Over other rows, the same statement may well succeed.
    """
    state: str | None = getattr(getattr(error, "orig", None), "sqlstate", None)
    return isinstance(error, DBAPIError) and state is not None and state[:2] in _ABOUT_ROWS


def is_away(error: BaseException) -> bool:
    """Tell whether PostgreSQL could not be reached, as against refusing a statement."""
    if isinstance(error, PoolTimeout | InterfaceError | ConnectionError | OSError):
        return True
    return isinstance(error, OperationalError) or (isinstance(error, DBAPIError) and error.connection_invalidated)


class Stored(Protocol):
    """What was written, and by which transaction."""

    @property
    def transaction_id(self) -> str:
        """As `pg_current_xact_id()` says it."""
        ...


SomeStored = TypeVar("SomeStored", bound=Stored)


async def store(database: AsyncEngine, write: Callable[[AsyncConnection], Awaitable[SomeStored]]) -> SomeStored:
    """Write in a transaction; where the reply to the commit is lost, the database is asked what became of it."""
    stored: SomeStored | None = None
    try:
        async with database.begin() as connection:
            stored = await write(connection)
    except SQLAlchemyError as error:
        if stored is None or not is_away(error) or not await was_committed(database, stored.transaction_id):
            raise
    return stored


async def was_committed(database: AsyncEngine, transaction_id: str) -> bool:
    """Ask what became of a transaction whose commit was not answered; False also where that is not known in time.

    The reply was lost, or the question: in the first case the server may still be at it.
    """
    for _ in range(UNDECIDED_LOOKS):
        async with database.connect() as connection:
            status = await connection.scalar(_STATUS, {"transaction_id": transaction_id})
        if status != "in progress":
            return status == "committed"
        await asyncio.sleep(UNDECIDED_SECONDS)
    return False


async def schema_of(database: AsyncEngine) -> str | None:
    """Read the revision of the tables; None where there are none."""
    async with database.connect() as connection:
        if await connection.scalar(text("SELECT to_regclass(format('%I.alembic_version', current_schema()))")) is None:
            return None
        return await connection.scalar(text("SELECT version_num FROM alembic_version"))
