"""Whether the servers can be written: readiness and metrics ask, over connections that wait behind no request."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable

from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from shared import database, redis
from shared.settings import Settings
from shared.trouble import Trouble

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 2
KNOWN_SECONDS = 1.0
"""So long an answer counts: however often somebody asks, the servers are asked once a second at most."""


class Probe:
    """Whether one server can be written."""

    def __init__(
        self, write: Callable[[], Awaitable[Trouble | None]], trouble_of: Callable[[BaseException], Trouble | None]
    ) -> None:
        self._write = write
        self._trouble_of = trouble_of
        self._lock = asyncio.Lock()
        self._known_until = -math.inf
        self._trouble: Trouble | None = None

    async def trouble(self) -> Trouble | None:
        """Write something; returns why that does not work, or None where it does."""
        loop = asyncio.get_running_loop()
        async with self._lock:
            if loop.time() >= self._known_until:
                self._trouble = await self._try()
                self._known_until = loop.time() + KNOWN_SECONDS
            return self._trouble

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
    """Those of a process."""

    def __init__(self, settings: Settings) -> None:
        self._engine = database.connect(settings, 1)
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
