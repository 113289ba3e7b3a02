"""The connection to Redis: to the server of the settings, or to the current master of Sentinels; why it refuses."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Iterable
from functools import partial
from typing import Any, cast
from weakref import WeakSet

from redis._parsers import _AsyncHiredisParser  # pyright: ignore[reportPrivateUsage]
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError, ResponseError
from redis.exceptions import ConnectionError as Unreachable

from agent_relay.shared import server_urls
from agent_relay.shared.clock import new_id
from agent_relay.shared.fair_turns import FairTurns
from agent_relay.shared.metrics import Server, server_error
from agent_relay.shared.redis_names import Names
from agent_relay.shared.settings import Settings
from agent_relay.shared.unavailable import Pace, Trouble

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_SECONDS = 1
REPLY_TIMEOUT_SECONDS = 5
_LIMITS: dict[str, Any] = {
    "socket_connect_timeout": CONNECT_TIMEOUT_SECONDS,
    "socket_timeout": REPLY_TIMEOUT_SECONDS,
    "retry": Retry(NoBackoff(), 1),
}
PROBE_SECONDS = 5

_BY_CODE = {
    "READONLY": Trouble.READ_ONLY,
    "UNBLOCKED": Trouble.READ_ONLY,  # A pop that was blocked while its server became a replica.
    "MASTERDOWN": Trouble.UNREACHABLE,
    "CLUSTERDOWN": Trouble.UNREACHABLE,
    "OOM": Trouble.OUT_OF_MEMORY,
    "MISCONF": Trouble.IO_ERROR,
    "NOREPLICAS": Trouble.NO_REPLICAS,
    "NOPERM": Trouble.NOT_PERMITTED,
    "NOAUTH": Trouble.NOT_PERMITTED,
    "WRONGPASS": Trouble.NOT_PERMITTED,
    "DENIED": Trouble.NOT_PERMITTED,
    "LOADING": Trouble.STARTING,
    "BUSY": Trouble.BUSY,
    "TRYAGAIN": Trouble.BUSY,
}
"""By the first word of an error."""
_FULL = "max number of clients"
_RENEWS = {"READONLY", "UNBLOCKED", "MASTERDOWN"}
"""New connections may lead to another server; all old ones get the same error."""
_ORDINARY = {"NOSCRIPT"}
"""Errors of ordinary work."""
_CODE = re.compile(r"(?:ERR user_script:\d+: )?-?([A-Z]{2,})(?= |$)")
"""The first word; Valkey puts the place in a script before it."""


def connect(settings: Settings, client: type[Redis] = Redis, **options: Any) -> Any:
    """Make a client of that class; nothing is opened before it is needed.

    A command is tried again once, at once, on a connection that turned out to be closed; callers decide about the rest.
    """
    return client(connection_pool=_heard(ConnectionPool(**_connections(settings.redis))), **options)


def connect_few(settings: Settings, connections: int) -> Redis:
    """Make a client with this number of connections at most; a command waits for one, for as long as for a reply."""
    return Redis(connection_pool=_heard(_FairPool(connections, **_connections(settings.redis))))


class _FairPool(ConnectionPool):
    """A pool that gives its connections in turn to the callers that wait for one."""

    def __init__(self, connections: int, **parameters: Any) -> None:
        super().__init__(max_connections=connections, **parameters)
        self._places = FairTurns[None]()
        for _ in range(connections):
            self._places.give(None)

    async def get_connection(self, *_: Any, **__: Any) -> Any:
        """Take a connection, in turn."""
        try:
            await self._places.take(REPLY_TIMEOUT_SECONDS)
        except TimeoutError:
            raise Unreachable("No connection to Redis was free.") from None
        connection = self.get_available_connection()
        try:
            await self.ensure_connection(connection)
        except BaseException:
            await self.release(connection)
            raise
        return connection

    async def release(self, connection: Any) -> None:
        """Give it back."""
        await super().release(connection)
        self._places.give(None)


def is_wrong_type(error: object) -> bool:
    """Tell whether Redis refused a command because its key holds something else: a list where a stream should be."""
    return isinstance(error, ResponseError) and "WRONGTYPE" in {getattr(error, "code", ""), str(error).split(" ")[0]}


def trouble_of(error: BaseException) -> Trouble | None:
    """Return why Redis does not execute commands for now; None if the command itself is wrong.

    By the first word of its error, which `redis` removes from some messages and not from others.
    """
    code: str | None = getattr(error, "code", None)
    if code is not None:
        return Trouble.TOO_MANY_CONNECTIONS if _FULL in str(error) else _BY_CODE.get(code)
    return Trouble.UNREACHABLE if isinstance(error, RedisError | OSError) else None


async def check_writable(redis: Redis, names: Names) -> None:
    """Write a key, which expires.

    Raises:
        RedisError, OSError: it cannot be written; `trouble_of` has the reason.
    """
    await redis.set(names.probe(new_id()), b"", ex=PROBE_SECONDS)


class _Parser(_AsyncHiredisParser):
    """Tells of each error in a reply, wherever in the reply it stands. Replies without errors cost nothing more."""

    def __init__(self, renewal: _Renewal, socket_read_size: int) -> None:
        super().__init__(socket_read_size=socket_read_size)
        self._renewal = renewal

    def parse_error(self, response: str) -> Exception:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Make an exception of an error, and note its first word in `code`."""
        error: Any = super().parse_error(response)
        code = found[1] if (found := _CODE.match(response)) else "ERR"
        error.code = code
        if code not in _ORDINARY:
            server_error(Server.REDIS, code)
        if code in _RENEWS:
            self._renewal.begin()
        return error


class _Renewal:
    """Gives all connections of a pool up, those that wait for something too, so that the address is looked up again."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        self._pace = Pace()
        self._under_way: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Renew soon, unless it was tried just now and did not help."""
        if self._pace.is_due(time.monotonic()):
            self._under_way = asyncio.get_running_loop().create_task(self._renew())

    async def _renew(self) -> None:
        log.warning("redis.renewed")
        idle, used = self._pool._available_connections, self._pool._in_use_connections  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        for connection in [*idle, *used]:
            await connection.disconnect(nowait=True)  # At once: no caller gets one that is being closed.


class _GivenUp(AbstractConnection):
    """A connection that may be given up between the library's look whether it is connected and its write."""

    async def _send_packed_command(self, command: Iterable[bytes]) -> None:
        if self._writer is None:
            raise Unreachable("The connection was given up.")
        await super()._send_packed_command(command)


def _heard(pool: ConnectionPool) -> ConnectionPool:
    """Count each error that this pool's connections read, and renew the pool if that may help."""
    kind = pool.connection_class
    pool.connection_class = type(kind.__name__, (_GivenUp, kind), {})
    pool.connection_kwargs["parser_class"] = partial(_Parser, _Renewal(pool))
    return pool


def _connections(server: server_urls.Redis) -> dict[str, Any]:
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

    def __init__(self, server: server_urls.Redis) -> None:
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
        async with Redis.from_pool(ConnectionPool(connection_class=kind, **sentinel)) as client:
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
            role = cast("list[Any]", await self.read_response())
        except ResponseError:
            return  # Not every user may ask. Then a refused write shows it.
        if role[0] != b"master":
            raise Unreachable(f"{self.host}:{self.port} is no master yet, or no longer")


class _SecuredToMaster(_ToMaster, SSLConnection):
    """The same with TLS."""
