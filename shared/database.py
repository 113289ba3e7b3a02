"""The connection to PostgreSQL and what its troubles are called."""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from shared.settings import Settings

SCHEMA = "0008"
"""The revision of the tables that this code works with."""

CONNECT_TIMEOUT_SECONDS = 2
POOL_TIMEOUT_SECONDS = 10
"""How long a call may wait for its turn; a burst is not an outage."""


def connect(settings: Settings) -> AsyncEngine:
    """Make the pool of connections; nothing is opened before it is needed."""
    return create_async_engine(
        settings.database_url,
        pool_size=settings.database_pool_size,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT_SECONDS,
        pool_pre_ping=True,
        connect_args={"connect_timeout": CONNECT_TIMEOUT_SECONDS, "application_name": "agent-relay"},
    )


def is_away(error: BaseException) -> bool:
    """Tell whether PostgreSQL could not be reached, as against refusing a statement."""
    if isinstance(error, PoolTimeout | InterfaceError | ConnectionError | OSError):
        return True
    return isinstance(error, OperationalError) or (isinstance(error, DBAPIError) and error.connection_invalidated)


async def schema_of(database: AsyncEngine) -> str | None:
    """Read the revision of the tables; None where there are none."""
    async with database.connect() as connection:
        if await connection.scalar(text("SELECT to_regclass('alembic_version')")) is None:
            return None
        return await connection.scalar(text("SELECT version_num FROM alembic_version"))
