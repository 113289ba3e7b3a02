"""The connection to PostgreSQL and what its troubles are called."""

from __future__ import annotations

import asyncio
import json
import random
import select
from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext
from functools import cache, partial
from typing import Any, Protocol, TypeVar, cast, overload

import psycopg
from psycopg import IsolationLevel
from psycopg.abc import Buffer
from psycopg.pq import TransactionStatus
from psycopg.rows import namedtuple_row
from psycopg.types.array import ListDumper
from psycopg.types.json import set_json_loads
from sqlalchemy import Engine, TextClause, event, text
from sqlalchemy.dialects.postgresql.psycopg import PGDialectAsync_psycopg
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, InterfaceError, InvalidatePoolError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.util import await_only, greenlet_spawn

from agent_relay.shared.bad_input import BadInput, refuse
from agent_relay.shared.clock import new_id
from agent_relay.shared.database.fair_pool import FairPool
from agent_relay.shared.database.hang_detector import Connection, HangDetector
from agent_relay.shared.database.typed_rows import Kind, row_factory
from agent_relay.shared.metrics import database_error
from agent_relay.shared.server_urls import Postgres
from agent_relay.shared.settings import Settings
from agent_relay.shared.unavailable import Trouble

SCHEMA = "0032"
"""The revision of the tables that this code works with."""

PLACE = "(coalesce(CAST(:at AS timestamptz), 'infinity'), CAST(:id AS uuid))"
"""In SQL, where a page begins of a list sorted by a time and an id, the last first; two nulls are the beginning.
A condition that compares with it can be looked up in an index, whatever plan was made of the statement."""
PLACE_ASCENDING = PLACE.replace("'infinity'", "'-infinity'")
"""The same of a list with the first one first."""

CONNECT_TIMEOUT_SECONDS = 2
UNDECIDED_LOOKS, UNDECIDED_SECONDS = 10, 0.1
"""How often, and how far apart, a transaction is looked at that has not ended."""

Result = TypeVar("Result")

_STATUS = text("SELECT pg_xact_status(CAST(:transaction_id AS xid8))")

_OURS = "_agent_relay_broke"

_BY_SQLSTATE = {
    "08": Trouble.UNREACHABLE,  # Also PgBouncer's own: `query_wait_timeout`, `server conn crashed?`.
    "0A": Trouble.STALE_CONNECTION,  # Only "cached plan must not change result type", see `trouble_of`.
    "25006": Trouble.READ_ONLY,
    "25P03": Trouble.TIMED_OUT,
    "25P04": Trouble.TIMED_OUT,
    "26000": Trouble.STALE_CONNECTION,
    "28": Trouble.NOT_PERMITTED,
    "3D000": Trouble.NO_DATABASE,
    "3F000": Trouble.NOT_MIGRATED,
    "40003": Trouble.UNREACHABLE,  # The state of the statement is not known.
    "40": Trouble.CONFLICT,
    "42501": Trouble.NOT_PERMITTED,
    "42703": Trouble.NOT_MIGRATED,
    "42P01": Trouble.NOT_MIGRATED,
    "42P05": Trouble.STALE_CONNECTION,
    "53100": Trouble.DISK_FULL,
    "53200": Trouble.OUT_OF_MEMORY,
    "53300": Trouble.TOO_MANY_CONNECTIONS,
    "53": Trouble.OUT_OF_RESOURCES,
    "55000": Trouble.LOCKED,
    "55006": Trouble.LOCKED,
    "55P03": Trouble.LOCKED,
    "57014": Trouble.TIMED_OUT,
    "57P03": Trouble.STARTING,
    "57": Trouble.STOPPING,
    "58": Trouble.IO_ERROR,
    "72": Trouble.CONFLICT,
    "F0": Trouble.INTERNAL_ERROR,
    "XX": Trouble.INTERNAL_ERROR,  # Some poolers use it for all their errors.
}
"""By the whole SQLSTATE, or its class. Any other code is an error of the statement or its values."""
_CACHED_PLAN = "RevalidateCachedQuery"
"""The function of the server that finds a prepared statement changed by a migration."""
_WORDS_OF_REFUSED_CONNECTIONS = {
    "too many": Trouble.TOO_MANY_CONNECTIONS,
    "connection slots are reserved": Trouble.TOO_MANY_CONNECTIONS,
    "password": Trouble.NOT_PERMITTED,
    "pg_hba.conf": Trouble.NOT_PERMITTED,
    "role ": Trouble.NOT_PERMITTED,
    "permission denied": Trouble.NOT_PERMITTED,
    "database system is shutting down": Trouble.STOPPING,
    "database system is": Trouble.STARTING,
    "database ": Trouble.NO_DATABASE,
    "read-only": Trouble.READ_ONLY,
    "hot standby": Trouble.READ_ONLY,
}
"""libpq gives no SQLSTATE for a refused connection; all of them are outages, and the words give the reason."""
_GIVEN_UP = ("08", "0A", "25P03", "25P04", "26000", "42P05", "57P")
"""After these a connection is of no more use."""
_RENEWS = {Trouble.READ_ONLY, Trouble.STALE_CONNECTION}
"""New connections may lead to another server, or have no stale state; all old ones have the same trouble."""
_OUTAGES = {
    Trouble.UNREACHABLE,
    Trouble.STARTING,
    Trouble.STOPPING,
    Trouble.READ_ONLY,
    Trouble.TOO_MANY_CONNECTIONS,
    Trouble.DISK_FULL,
    Trouble.OUT_OF_MEMORY,
    Trouble.OUT_OF_RESOURCES,
    Trouble.IO_ERROR,
}
"""Errors of the server as a whole: an agent whose statement raised one of these did not cause it."""
_ASKED_AGAIN = {Trouble.CONFLICT, Trouble.STALE_CONNECTION}
"""The server did nothing of the transaction, and a second try may go through."""
TRIES, FIRST_PAUSE_SECONDS = 6, 0.01
"""Of a transaction in conflict, and the longest pause after the first, which doubles."""

_VANISHED: dict[str, Any] = {
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
"""Of TCP: a connection whose other end has gone silently counts as broken after about ten seconds."""
_CLOSED = getattr(select, "POLLRDHUP", select.POLLHUP)
"""Of a socket: its other end is closed. Linux has a name for it; elsewhere a hang-up means the same."""
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


class _TextArrayDumper(ListDumper):
    """Writes lists of texts as `text[]`: 4 MB of JSON take 0.02 s, and not a whole one, as with psycopg's dumper.

    That one calls a function of Python for each quotation mark, on the event loop.
    """

    def dump(self, obj: list[Any]) -> Buffer | None:
        if self.sub_dumper is None or not obj or not all(item is None or type(item) is str for item in obj):
            return super().dump(obj)
        return b"{" + b",".join(b"NULL" if item is None else _quoted(self.sub_dumper.dump(item)) for item in obj) + b"}"


def _quoted(encoded: Buffer | None) -> bytes:
    return b'"' + bytes(encoded or b"").replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


psycopg.adapters.register_dumper(list, _TextArrayDumper)


def connect(
    settings: Settings,
    connections: int | None = None,
    server: Postgres | None = None,
    pulse: HangDetector | None = None,
) -> AsyncEngine:
    """Make a pool of this number of connections, or of `DATABASE_POOL_SIZE`; none is opened before it is needed.

    It is one to the service's database, or to another server. Pools with one `pulse` share the hang detector's result.
    """
    pulse = pulse or HangDetector()
    engine = create_async_engine(
        "postgresql+psycopg://",
        poolclass=FairPool,
        pool_size=connections or settings.database_pool_size,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT_SECONDS,
        hide_parameters=True,
        connect_args={"async_creator_fn": partial(_open, pulse), **parameters_of(server or settings.postgres)},
    )
    event.listen(engine.sync_engine, "checkout", _replace_if_unfit)
    event.listen(engine.sync_engine, "handle_error", partial(_mark, pulse))
    return engine


def parameters_of(server: Postgres, name: str = "agent-relay") -> dict[str, Any]:
    """Set libpq's parameters of a connection; those in `DATABASE_URL` win, except the encoding.

    A pooler such as PgBouncer refuses all other parameters of a session: these are set once it is connected.
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
"""Settings that must not depend on the defaults of a role. A read-only database or server is left as it is.

`direct` is false behind a pooler such as PgBouncer, which has a number of its own. A pooler keeps the first three for
each of its clients; any other setting would stay with a connection that it passes on to other clients.
"""


async def _open(pulse: HangDetector, _conninfo: str, **parameters: Any) -> Connection:
    """Connect, and set everything that a role or a pooler might set otherwise."""
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


def _replace_if_unfit(_: Any, entry: ConnectionPoolEntry, __: Any) -> None:
    """Replace a connection whose other end was closed, or that is older than the last renewal.

    A query to test it would cost a round trip each time. A new one is used untested: its caller gets the error of the
    server, while the pool, once it has replaced two, only reports that a connection is closed.
    """
    driver = cast("Connection", entry.driver_connection)
    was_used, driver.was_used = driver.was_used, True
    if not was_used:
        return
    ends = select.poll()
    if not driver.closed:
        ends.register(driver.fileno(), _CLOSED)
    if driver.closed or driver.is_outdated or ends.poll(0):
        raise InvalidatePoolError


def leave_out_values(error: psycopg.Error) -> None:
    """Cut from an error's message everything that quotes a row, so that it may be logged.

    PostgreSQL quotes values in the lines after the first (DETAIL, CONTEXT, the statement), and in the first where it
    could not read one (class 22). An error of connecting has neither a first line nor a SQLSTATE, and stays.
    """
    if (first := error.diag.message_primary) and error.sqlstate:
        error.args = (f"a value was refused ({error.sqlstate})" if error.sqlstate.startswith("22") else first,)


def _mark(pulse: HangDetector, context: ExceptionContext) -> None:
    """Count the error, renew the pool where that may help, and note on the error whether it is of our server."""
    error = context.original_exception
    if isinstance(error, psycopg.Error):
        said = str(error)
        leave_out_values(error)
        if (wrapped := context.sqlalchemy_exception) is not None:
            wrapped.args = tuple(str(each).replace(said, str(error)) for each in wrapped.args)
    database_error(error)
    trouble = trouble_of(error)
    if trouble in _RENEWS:
        pulse.renew()
    if _is_of_no_more_use(error):
        context.is_disconnect = True
    if context.sqlalchemy_exception is not None:
        broke = context.is_disconnect or context.connection is None or trouble in _OUTAGES
        setattr(context.sqlalchemy_exception, _OURS, broke)


@overload
async def transact(
    database: AsyncEngine, statement: TextClause, values: Mapping[str, Any] | None = None
) -> list[Any]: ...


@overload
async def transact(
    database: AsyncEngine, statement: TextClause, values: Mapping[str, Any] | None, kind: type[Kind]
) -> list[Kind]: ...


async def transact(
    database: AsyncEngine, statement: TextClause, values: Mapping[str, Any] | None = None, kind: type[Any] | None = None
) -> list[Any]:
    """Make a transaction of one statement, prepared and in one round trip; returns its rows, of that class if given.

    Transactions that happen once or more for each run are made by this function: a session of SQLAlchemy's costs four
    times the CPU, and three or four round trips. It is repeated after a conflict. Raises the same as a session.
    """
    return await _insist(lambda: greenlet_spawn(_transact, database.sync_engine, statement, values or {}, kind))


async def _insist(transaction: Callable[[], Awaitable[Result]]) -> Result:
    """Make a transaction, again where the server undid it and may not the next time."""
    pause = FIRST_PAUSE_SECONDS
    for _ in range(TRIES - 1):
        try:
            return await transaction()
        except SQLAlchemyError as error:
            if trouble_of(error) not in _ASKED_AGAIN:
                raise
        await asyncio.sleep(random.uniform(0, pause))  # noqa: S311
        pause *= 2
    return await transaction()


def _transact(engine: Engine, statement: TextClause, values: Mapping[str, Any], kind: type[Any] | None) -> list[Any]:
    driver: Any = None
    try:
        connection: Any = engine.raw_connection()
        driver = connection.driver_connection
        fit = True
        try:
            return await_only(_execute_alone(driver, _compiled(statement), values, kind))
        except psycopg.Error as error:
            fit = not _is_of_no_more_use(error)
            raise
        finally:
            if fit and driver.pgconn.transaction_status == TransactionStatus.IDLE:
                await_only(driver.set_autocommit(False))
                connection.close()
            else:
                connection.invalidate()
    except psycopg.Error as error:
        raise _wrapped(engine, statement.text, error, driver) from error


def _wrapped(engine: Engine, statement: str, error: psycopg.Error, driver: Any) -> SQLAlchemyError:
    """Count an error of the driver's own, renew the pool if that may help, and make the exception of a session."""
    leave_out_values(error)
    database_error(error)
    trouble = trouble_of(error)
    if driver is not None and trouble in _RENEWS:
        driver.pulse.renew()
    broke = driver is None or driver.closed or _is_of_no_more_use(error)
    wrapped = DBAPIError.instance(
        statement,
        {},
        error,
        psycopg.Error,
        hide_parameters=True,
        connection_invalidated=broke,
        dialect=engine.dialect,
    )
    setattr(wrapped, _OURS, broke or trouble in _OUTAGES)
    return cast("SQLAlchemyError", wrapped)


async def _execute_alone(
    driver: psycopg.AsyncConnection[Any], statement: bytes, values: Mapping[str, Any], kind: type[Any] | None
) -> list[Any]:
    await driver.set_autocommit(True)
    begun = nullcontext() if driver.isolation_level is None else driver.transaction()
    rows = namedtuple_row if kind is None else row_factory(kind)
    async with begun, driver.cursor(row_factory=rows) as cursor:
        await cursor.execute(statement, values, prepare=True)
        return await cursor.fetchall() if cursor.pgresult and cursor.pgresult.nfields else []


@cache
def _compiled(statement: TextClause) -> bytes:
    """Write a statement as the driver wants it."""
    return str(statement.compile(dialect=PGDialectAsync_psycopg())).encode()


def is_ours(error: BaseException) -> bool:
    """Return whether an error, wherever it is caught, means that our server was away: unreachable, read-only, full."""
    return getattr(error, _OURS, False)


def is_about_rows(error: BaseException) -> bool:
    """Tell whether PostgreSQL refused a statement for what stands in its rows, as against how PostgreSQL is.

    Over other rows, the same statement may well succeed.
    """
    state: str | None = getattr(getattr(error, "orig", None), "sqlstate", None)
    return isinstance(error, DBAPIError) and state is not None and state[:2] in _ABOUT_ROWS


def is_away(error: BaseException) -> bool:
    """Return whether PostgreSQL executes nothing for now, instead of refusing a single statement."""
    return trouble_of(error) is not None


def trouble_of(error: BaseException) -> Trouble | None:
    """Return why PostgreSQL does not execute statements for now; None if the statement itself is wrong.

    By the SQLSTATE: a class of exceptions may have both kinds.
    """
    original = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(error, PoolTimeout):
        return Trouble.BUSY
    if isinstance(original, psycopg.Error) and (state := original.sqlstate):
        if state.startswith("0A") and original.diag.source_function != _CACHED_PLAN:
            return None
        return _BY_SQLSTATE.get(state) or _BY_SQLSTATE.get(state[:2])
    if isinstance(original, psycopg.OperationalError):
        said = str(original)
        return next((is_so for words, is_so in _WORDS_OF_REFUSED_CONNECTIONS.items() if words in said), None) or (
            Trouble.UNREACHABLE
        )
    broke = isinstance(error, DBAPIError) and error.connection_invalidated
    if broke or isinstance(original, psycopg.InterfaceError | InterfaceError | OSError):
        return Trouble.UNREACHABLE
    return None


def _is_of_no_more_use(error: BaseException) -> bool:
    """Return whether the connection of this error is to be closed."""
    state = error.sqlstate if isinstance(error, psycopg.Error) else None
    return state is not None and state.startswith(_GIVEN_UP) and trouble_of(error) is not None


class Stored(Protocol):
    """The result of a write, and the transaction that wrote it."""

    @property
    def transaction_id(self) -> str:
        """From `pg_current_xact_id()`."""
        ...


SomeStored = TypeVar("SomeStored", bound=Stored)


async def store(database: AsyncEngine, write: Callable[[AsyncConnection], Awaitable[SomeStored]]) -> SomeStored:
    """Write in a transaction; where the reply to the commit is lost, the database is asked what became of it.

    `write` is called again where the transaction came into conflict with another one. It may use the driver itself.
    """

    async def transaction() -> SomeStored:
        stored: SomeStored | None = None
        try:
            async with database.begin() as connection:
                try:
                    stored = await write(connection)
                except psycopg.Error as error:
                    driver = (await connection.get_raw_connection()).driver_connection
                    raise _wrapped(database.sync_engine, "", error, driver) from error
        except SQLAlchemyError as error:
            if stored is None or not is_away(error) or not await was_committed(database, stored.transaction_id):
                raise
        return stored

    return await _insist(transaction)


async def was_committed(database: AsyncEngine, transaction_id: str) -> bool:
    """Ask for the state of a transaction whose commit got no reply; False also if it is not known in time.

    Either the reply was lost, or the request: after a lost reply, the server may still be executing it.
    """
    for _ in range(UNDECIDED_LOOKS):
        async with database.connect() as connection:
            status = await connection.scalar(_STATUS, {"transaction_id": transaction_id})
        if status != "in progress":
            return status == "committed"
        await asyncio.sleep(UNDECIDED_SECONDS)
    return False


_WRITE = text("""
    WITH accept AS (INSERT INTO runs SELECT * FROM runs WHERE false),
         claim AS (UPDATE runs SET worker_id = worker_id WHERE false),
         answer AS (INSERT INTO messages SELECT * FROM messages WHERE false)
    INSERT INTO idempotency_keys (tenant, user_id, route, key, body_hash, created, expires_at)
    VALUES ('', :id, '', '', '', :id, now())
""")


async def check_writable(database: AsyncEngine) -> None:
    """Write a row and roll back; also check that the most important tables could be written.

    Raises:
        SQLAlchemyError, OSError: it cannot be written; `trouble_of` has the reason.
    """
    async with database.connect() as connection:
        await connection.execute(_WRITE, {"id": new_id()})
        await connection.rollback()


async def schema_of(database: AsyncEngine) -> str | None:
    """Read the revision of the tables; None where there are none."""
    async with database.connect() as connection:
        if await connection.scalar(text("SELECT to_regclass(format('%I.alembic_version', current_schema()))")) is None:
            return None
        return await connection.scalar(text("SELECT version_num FROM alembic_version"))
