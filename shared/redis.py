"""The connection to Redis: to the server that is set, or to whatever Sentinels say is the master now."""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from typing import Any, cast
from weakref import WeakSet

from redis.asyncio import BlockingConnectionPool, ConnectionPool, Redis
from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, ReadOnlyError, RedisError, ResponseError
from redis.exceptions import ConnectionError as Unreachable

from shared import servers
from shared.settings import Settings

log = logging.getLogger(__name__)

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
    return client(connection_pool=ConnectionPool(**_connections(settings.redis)), **options)


def connect_few(settings: Settings, connections: int) -> Redis:
    """Make a client that opens so many connections at most; a command waits for one, for as long as for a reply."""
    pool = BlockingConnectionPool(
        max_connections=connections, timeout=REPLY_TIMEOUT_SECONDS, **_connections(settings.redis)
    )
    return Redis(connection_pool=pool)


def is_wrong_type(error: object) -> bool:
    """Tell whether Redis refused a command because its key holds something else: a list where a stream should be."""
    return isinstance(error, ResponseError) and str(error).startswith("WRONGTYPE")


def _connections(server: servers.Redis) -> dict[str, Any]:
    """Say to a pool how its connections are made."""
    parameters = {**_LIMITS, **server.parameters}
    tls = "ssl_cert_reqs" in parameters
    if server.sentinels:
        kind = _SecuredToMaster if tls else _ToMaster
        return {**parameters, "connection_class": kind, "masters": _Masters(server)}
    if "path" in parameters:
        return {**parameters, "connection_class": UnixDomainSocketConnection}
    return {**parameters, "connection_class": SSLConnection if tls else Connection}


class _Masters:
    """The master of a service, as the Sentinels know it, and a pool's connections to it."""

    def __init__(self, server: servers.Redis) -> None:
        self._service = server.service
        self._login = {name: server.parameters[name] for name in ("username", "password") if name in server.parameters}
        self._sentinels = [
            {
                **_LIMITS,
                "socket_timeout": CONNECT_TIMEOUT_SECONDS,
                **server.sentinel_parameters,
                "host": host,
                "port": port,
            }
            for host, port in server.sentinels
        ]
        self._tls = "ssl_cert_reqs" in server.sentinel_parameters
        self._master: tuple[str, int] | None = None
        self.connections: WeakSet[_ToMaster] = WeakSet()

    async def find(self) -> tuple[str, int]:
        """Ask for the address of the master, one Sentinel after the other; drop the connections to the former one.

        Raises:
            redis.exceptions.ConnectionError: none of them knows it.
        """
        problem = ""
        for sentinel in list(self._sentinels):
            try:
                master = await self._ask(sentinel)
            except (RedisError, OSError) as error:
                problem = f"{sentinel['host']}:{sentinel['port']} answers {error!r}"
                continue
            if master is None:
                problem = f"{sentinel['host']}:{sentinel['port']} watches no service of that name"
                continue
            self._sentinels.remove(sentinel)
            self._sentinels.insert(0, sentinel)  # The next time, first the one that answers.
            if self._master not in {None, master}:
                log.warning("redis.master_moved service=%s host=%s port=%d", self._service, *master)
                for connection in [other for other in self.connections if (other.host, other.port) != master]:
                    await connection.disconnect(nowait=True)
            self._master = master
            return master
        raise Unreachable(f"No Sentinel knows the master of {self._service!r}: {problem}")

    async def _ask(self, sentinel: dict[str, Any]) -> tuple[str, int] | None:
        kind = SSLConnection if self._tls else Connection
        async with Redis(connection_pool=ConnectionPool(connection_class=kind, **sentinel)) as client:
            try:
                asked = cast("Awaitable[list[bytes] | None]", client.sentinel_get_master_addr_by_name(self._service))
                address = await asked
            except AuthenticationError:
                if not self._login or "password" in sentinel:
                    raise
                sentinel |= self._login  # It wants a password, and none of its own is set.
                return await self._ask(sentinel)
        return None if address is None else (address[0].decode(), int(address[1]))


class _ToMaster(Connection):
    """A connection to the master, wherever it is when the connection is made."""

    def __init__(self, *, masters: _Masters, **parameters: Any) -> None:
        super().__init__(**parameters)
        self._masters = masters
        masters.connections.add(self)

    async def _connect(self) -> None:
        self.host, self.port = await self._masters.find()
        await super()._connect()

    async def on_connect(self) -> None:
        """Log in, and leave again where a former master still takes itself for one that was replaced."""
        await super().on_connect()
        await self.send_command("ROLE", check_health=False)
        try:
            role: Any = await self.read_response()
        except ResponseError:
            return  # Not every user may ask. Then a refused write tells.
        if role[0] != b"master":
            raise Unreachable(f"{self.host}:{self.port} is no master yet, or no longer")

    async def read_response(self, *arguments: Any, **options: Any) -> Any:
        """Read a reply; a master that has become a replica is left."""
        try:
            return cast("Any", await super().read_response(*arguments, **options))
        except ReadOnlyError as demoted:
            await self.disconnect(nowait=True)
            raise Unreachable(f"{self.host}:{self.port} is no master any more") from demoted


class _SecuredToMaster(_ToMaster, SSLConnection):
    """The same with TLS."""
