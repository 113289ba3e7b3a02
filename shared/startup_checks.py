"""Checks of PostgreSQL and Redis as a process starts.

A fault that only an operator can correct ends the process with a sentence that names the setting. For others the
process waits, with one line now and then.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time

import psycopg
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from agent_relay.shared import database, redis
from agent_relay.shared.database import SCHEMA, schema_of
from agent_relay.shared.settings import Settings, WrongSettings
from agent_relay.shared.unavailable import Trouble

log = logging.getLogger(__name__)

NOT_MIGRATED = (
    f"The database {Trouble.NOT_MIGRATED.sentence} (in a checkout: `make migrate`) with the same DATABASE_URL."
    " No process needs a restart after it."
)
PATIENCE_SECONDS = 5.0
LOOK_SECONDS = 0.5
REPEAT_SECONDS = 30.0
"""The same reason to wait is logged about this often."""

_MEND = (
    (r"password|role .* does not exist|authentication failed", "Correct the user and the password in it."),
    (r"database .* does not exist", "Create that database, or name another one."),
    (r"pg_hba\.conf", "Let this host, user and database in, in the server's pg_hba.conf."),
    (r"permission denied", "Grant the user that right."),
    (r"SSL|certificate", "Correct `sslmode` and the certificates."),
)
"""PostgreSQL's messages before there is an error code, in the words of its usual language, and the remedies."""


class CannotStart(Exception):
    """A server refuses the settings, and will do so until one of them is changed."""


def check(settings: Settings, *, needs_redis: bool, runs_agents: bool = False) -> str | None:
    """Check both servers once; returns the reason why the process would have to wait for PostgreSQL, if any.

    It runs before the process has an event loop, and leaves no thread behind, so that the process can fork. A Redis
    that refuses is only logged if the process can work without it.

    Raises:
        WrongSettings: one of them refuses.
    """
    try:
        return asyncio.run(_check(settings, needs_redis=needs_redis, runs_agents=runs_agents))
    except CannotStart as refused:
        raise WrongSettings([str(refused)]) from None


async def _check(settings: Settings, *, needs_redis: bool, runs_agents: bool) -> str | None:
    engine, client = database.connect(settings, 2), redis.connect(settings)
    try:
        reason, _ = await _look(engine)
        if runs_agents:
            await _look_at_that_of_agents(settings)
        if refused := await _redis_refuses(client):
            if needs_redis:
                raise CannotStart(refused)
            log.error("start.redis_refused reason=%r", refused)
        return reason
    finally:
        await client.aclose(close_connection_pool=True)
        await engine.dispose()


async def until_ready(engine: AsyncEngine) -> None:
    """Wait until PostgreSQL is there with the tables of this code; log the reason, once and now and then."""
    told, told_at = "", 0.0
    while True:
        try:
            reason, schema = await _look(engine)
        except CannotStart as refused:  # It was accepted as the process started: an operator may correct it.
            reason, schema = str(refused), None
        if reason is None:
            break
        if reason != told or time.monotonic() - told_at > REPEAT_SECONDS:
            told, told_at = reason, time.monotonic()
            log.warning("start.waits reason=%r", reason)
        await asyncio.sleep(LOOK_SECONDS)
    if schema != SCHEMA:  # An upgrade begins with the tables, and older processes go on until they are replaced.
        log.warning("start.newer_tables tables=%s code=%s", schema, SCHEMA)


async def _look(engine: AsyncEngine) -> tuple[str | None, str | None]:
    """Look whether the tables are there; returns why not, and the revision that is."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            schema = await schema_of(engine)
    except (SQLAlchemyError, OSError) as error:
        driver = error.orig if isinstance(error, DBAPIError) else error
        if refused := refusal_of(driver):
            raise CannotStart(refused) from None
        return unreachable(driver), None
    return (NOT_MIGRATED if schema is None or schema < SCHEMA else None), schema


async def _look_at_that_of_agents(settings: Settings) -> None:
    """Check that PostgreSQL does not refuse `AGENT_DATABASE_URL`."""
    if settings.postgres_of_agents is None:
        return
    engine = database.connect(settings, 1, settings.postgres_of_agents)
    try:
        async with asyncio.timeout(PATIENCE_SECONDS), engine.connect():
            pass
    except (SQLAlchemyError, OSError) as error:
        if refused := refusal_of(error.orig if isinstance(error, DBAPIError) else error, "AGENT_DATABASE_URL"):
            raise CannotStart(refused) from None
    finally:
        await engine.dispose()


def unreachable(error: BaseException | None) -> str:
    """Say why PostgreSQL cannot be reached, which may pass."""
    return f"DATABASE_URL: PostgreSQL cannot be reached: {_first_line(error)}"


def refusal_of(error: BaseException | None, setting: str = "DATABASE_URL") -> str | None:
    """Return a sentence that PostgreSQL refuses a setting, with the remedy; None of an error that may pass."""
    said = _first_line(error)
    if isinstance(error, psycopg.OperationalError | psycopg.errors.InsufficientPrivilege):
        for pattern, mend in _MEND:
            if re.search(pattern, said):
                return f"{setting}: {said} {mend}"
    return f"{setting}: {said}" if isinstance(error, psycopg.ProgrammingError) else None


def _first_line(error: BaseException | None) -> str:
    line = str(error).split("\n", maxsplit=1)[0].removeprefix("connection failed: ").removeprefix("connection is bad: ")
    return f"{line.rstrip('.') or type(error).__name__}."


async def _redis_refuses(client: Redis) -> str | None:
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await client.ping()
    except (RedisError, OSError) as error:
        said = error.__cause__ or error  # As it connects, `redis` takes every refusal for a broken connection.
        if isinstance(said, AuthenticationError | ResponseError) and not isinstance(said, NoPermissionError):
            return f"REDIS_URL: Redis refuses it: {_first_line(said)} Correct user, password and database number."
    return None  # An error that may pass, or a user without the right for this command.
