"""Checks of the servers for readiness and metrics, over connections of their own and once a second at most."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from agent_relay.shared import database, redis
from agent_relay.shared.database.hang_detector import HangDetector
from agent_relay.shared.settings import Settings
from agent_relay.shared.unavailable import Trouble

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 2
KNOWN_SECONDS = 1.0
"""Seconds for which an answer counts: the servers are asked once a second at most."""


Known = TypeVar("Known")


class KnownForAWhile(Generic[Known]):
    """A result that is expensive to find: it is found once a second at most, for any number of callers."""

    def __init__(self, find_out: Callable[[], Awaitable[Known]]) -> None:
        self._find_out = find_out
        self._lock = asyncio.Lock()
        self._known: tuple[Known, float] | None = None

    async def get(self) -> Known:
        """Return the result, or find it."""
        loop = asyncio.get_running_loop()
        async with self._lock:
            if self._known is None or loop.time() >= self._known[1]:
                found = await self._find_out()
                self._known = found, loop.time() + KNOWN_SECONDS
            return self._known[0]


class Probe:
    """Whether one server can be written."""

    def __init__(
        self, write: Callable[[], Awaitable[Trouble | None]], trouble_of: Callable[[BaseException], Trouble | None]
    ) -> None:
        self._write = write
        self._trouble_of = trouble_of
        self._known = KnownForAWhile(self._try)

    async def trouble(self) -> Trouble | None:
        """Write something; returns why that does not work, or None where it does."""
        return await self._known.get()

    async def _try(self) -> Trouble | None:
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                return await self._write()
        except TimeoutError:
            return Trouble.UNREACHABLE
        except (SQLAlchemyError, RedisError, OSError) as refusal:
            trouble = self._trouble_of(refusal) or Trouble.INTERNAL_ERROR
            log.warning("health.not_writable reason=%s error=%r", trouble, refusal)
            return trouble


class Probes:
    """The probes of a process. They share the hang detector of its pool, and fail while PostgreSQL hangs."""

    def __init__(self, settings: Settings, pulse: HangDetector) -> None:
        self._engine = database.connect(settings, 1, pulse=pulse)
        self.counting = database.connect(settings, 1, pulse=pulse)
        """A connection for metrics, which may take a while: readiness does not wait behind them."""
        self._client = redis.connect_few(settings, 1)
        self._names = settings.names
        self.postgresql = Probe(self._write_postgresql, database.trouble_of)
        self.redis = Probe(self._write_redis, redis.trouble_of)

    async def _write_postgresql(self) -> Trouble | None:
        schema = await database.schema_of(self._engine)
        if schema is None or schema < database.SCHEMA:
            return Trouble.NOT_MIGRATED
        await database.check_writable(self._engine)
        return None

    async def _write_redis(self) -> None:
        await redis.check_writable(self._client, self._names)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose(close_connection_pool=True)
        await self._engine.dispose()
        await self.counting.dispose()
