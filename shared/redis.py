"""The connection to Redis."""

from __future__ import annotations

from typing import Any

from redis.asyncio import BlockingConnectionPool, ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError

from shared.settings import Settings

CONNECT_TIMEOUT_SECONDS = 1
REPLY_TIMEOUT_SECONDS = 5
_LIMITS: dict[str, Any] = {
    "socket_connect_timeout": CONNECT_TIMEOUT_SECONDS,
    "socket_timeout": REPLY_TIMEOUT_SECONDS,
    "retry": Retry(NoBackoff(), 1),
}


def connect(settings: Settings, client: type[Redis] = Redis, **options: Any) -> Any:
    """Make a client of that class; nothing is opened before it is needed.

    A command is tried again once, at once, on a connection that turned out to be closed; callers decide about the rest.
    """
    return client(connection_pool=ConnectionPool.from_url(settings.redis_url, **_LIMITS), **options)


def connect_few(settings: Settings, connections: int) -> Redis:
    """Make a client that opens so many connections at most; a command waits for one, for as long as for a reply."""
    limits = {**_LIMITS, "max_connections": connections, "timeout": REPLY_TIMEOUT_SECONDS}
    return Redis(connection_pool=BlockingConnectionPool.from_url(settings.redis_url, **limits))


def is_wrong_type(error: object) -> bool:
    """Tell whether Redis refused a command because its key holds something else: a list where a stream should be."""
    return isinstance(error, ResponseError) and str(error).startswith("WRONGTYPE")
