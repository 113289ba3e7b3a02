"""The connection to PostgreSQL and what its troubles are called."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from sqlalchemy import event, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from shared.pulse import Pulse
from shared.settings import Settings

SCHEMA = "0009"
"""The revision of the tables that this code works with."""

CONNECT_TIMEOUT_SECONDS = 2
UNDECIDED_LOOKS, UNDECIDED_SECONDS = 10, 0.1
"""How often, and how far apart, a transaction is looked at that has not ended."""

_STATUS = text("SELECT pg_xact_status(CAST(:transaction_id AS xid8))")

_OURS = "_agent_relay_broke"

VANISHED: dict[str, Any] = {
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
"""Of TCP: a connection whose other end has gone without a word counts as broken after about ten seconds."""
POOL_TIMEOUT_SECONDS = 10
"""How long a call may wait for its turn; a burst is not an outage."""


def connect(settings: Settings) -> AsyncEngine:
    """Make the pool of connections; nothing is opened before it is needed."""
    engine = create_async_engine(
        settings.database_url,
        pool_size=settings.database_pool_size,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT_SECONDS,
        pool_pre_ping=True,
        connect_args={
            "async_creator_fn": Pulse().connect,
            "connect_timeout": CONNECT_TIMEOUT_SECONDS,
            "application_name": "agent-relay",
            **VANISHED,
        },
    )
    event.listen(engine.sync_engine, "handle_error", _mark)
    return engine


def _mark(context: ExceptionContext) -> None:
    """Note on the error that it was our connection that broke, or could not be made."""
    if context.sqlalchemy_exception is not None and (context.is_disconnect or context.connection is None):
        setattr(context.sqlalchemy_exception, _OURS, True)


def is_ours(error: BaseException) -> bool:
    """Tell whether an error, wherever it is caught, says that a connection of this module's making broke."""
    return getattr(error, _OURS, False)


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
        if await connection.scalar(text("SELECT to_regclass('alembic_version')")) is None:
            return None
        return await connection.scalar(text("SELECT version_num FROM alembic_version"))
