"""The oldest servers and libraries that are served: looked at once, at the start, which older ones stop."""

from __future__ import annotations

import asyncio
import re
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psycopg
from redis.exceptions import RedisError

from agent_relay.shared import redis
from agent_relay.shared.database import parameters_of
from agent_relay.shared.settings import Settings

OLDEST_POSTGRES = 15
OLDEST_REDIS = (7, 0)
OLDEST_PYDANTIC_AI = (2, 68)
PATIENCE_SECONDS = 5


class TooOld(SystemExit):
    """A server or library is too old; the message names the version that is needed."""


async def refuse_old_servers(settings: Settings) -> None:
    """Check both servers. One that is away, or that does not let this user ask, is not checked.

    Raises:
        TooOld: one of them is.
    """
    problems = await asyncio.gather(_postgres(settings), _redis(settings))
    if any(problems):
        raise TooOld("\n".join(filter(None, problems)))


def refuse_old_pydantic_ai() -> None:
    """Look at the installed pydantic-ai.

    Raises:
        TooOld: it is, or there is none.
    """
    try:
        found = version("pydantic-ai-slim")
    except PackageNotFoundError:
        found = "none"
    if _numbers(found) < OLDEST_PYDANTIC_AI:
        raise TooOld(f"agent-relay needs pydantic-ai {_said(OLDEST_PYDANTIC_AI)} or newer; found {found}.")


async def _postgres(settings: Settings) -> str:
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            connection = await psycopg.AsyncConnection[Any].connect(**parameters_of(settings.postgres))
    except (psycopg.Error, OSError):
        return ""
    found = connection.info.server_version // 10_000
    await connection.close()
    return (
        "" if found >= OLDEST_POSTGRES else f"agent-relay needs PostgreSQL {OLDEST_POSTGRES} or newer; found {found}."
    )


async def _redis(settings: Settings) -> str:
    client = redis.connect(settings)
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            said: list[bytes] = await client.execute_command("HELLO")
        told = dict(zip(said[::2], said[1::2], strict=True))
    except (RedisError, OSError) as error:
        told = {b"version": b"older than 6"} if "unknown command" in str(error) else {}
    finally:
        await client.aclose(close_connection_pool=True)
    if told.get(b"mode") == b"cluster":
        return "REDIS_URL names a Redis Cluster, which agent-relay cannot use: name a single server, or Sentinels."
    found = told.get(b"version", b"").decode()
    if not found or _numbers(found) >= OLDEST_REDIS:
        return ""
    return f"agent-relay needs Redis {_said(OLDEST_REDIS)} or newer; found {found}."


def _numbers(version_text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version_text)[:2])


def _said(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))
