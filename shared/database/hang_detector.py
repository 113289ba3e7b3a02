"""Distinguishes a PostgreSQL that hangs from a slow one; ends the calls that wait for one that hangs.

A frozen machine, or a network that drops everything, neither answers nor refuses: its callers wait. So whenever a call
waits for longer than usual, the server is queried on a new connection. If it answers, the call goes on waiting: for a
slow statement, or for a lock. If not, all connections with a waiting call are closed, which fails these calls, and
every new call fails at once, until the server answers again. Without a long wait there is no query.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import socket
import time
from contextlib import suppress
from contextvars import Context
from typing import Any, TypeVar

import psycopg
from psycopg.pq import TransactionStatus

from agent_relay.shared.unavailable import Pace

log = logging.getLogger(__name__)

Connected = TypeVar("Connected", bound="psycopg.AsyncConnection[Any]")

DOUBT_SECONDS = 0.3
"""A call that waits for this time starts a query."""
SIGN_SECONDS = 1.5
"""How long a sign of life may take. With the doubt, it is less than callers are promised to wait for a refusal."""
LONGEST_SIGN_SECONDS = 12.0
FALSE_ALARM_SECONDS = 2.0
"""A server that answers so soon after it was given up had not hung: it, or this machine, is slow. It gets twice as
long from then on, or cutting off what waits would make the slow slower."""
FORGIVEN_SECONDS = 60.0
"""So long without another, a false alarm is forgotten."""
LOOKS = 2
"""Polls in one timeout: a loop that was busy during one of them reads in the next what arrived meanwhile."""
GIVE_UP_SECONDS = 1.0
ASK_AGAIN_SECONDS = 0.5
"""Time until the next query, while a call still waits or the server hangs."""


class Connection(psycopg.AsyncConnection[Any]):
    """A connection whose callers do not wait for a server that hangs."""

    pulse: HangDetector
    host: str
    port: int
    renewal: int
    """How often the pool had been renewed when this one was made."""
    was_used: bool
    """Whether it was taken out of the pool before."""

    @property
    def is_outdated(self) -> bool:
        """Whether the pool was renewed since."""
        return self.renewal != self.pulse.renewals

    async def wait(self, gen: Any, *arguments: Any, **options: Any) -> Any:
        """Wait for the server, as psycopg does for every statement, commit and rollback."""
        self.pulse.expect(self)
        try:
            answer = await super().wait(gen, *arguments, **options)
            self.pulse.hear()
        finally:
            self.pulse.got(self)
        return answer

    async def rollback(self) -> None:
        """Roll back as psycopg does, and keep prepared what is prepared.

        psycopg drops it, for tables could be gone that the transaction created. Ours create none, and most that are
        rolled back have only read. After an error everything is dropped.
        """
        if self.pgconn.transaction_status == TransactionStatus.INTRANS:
            async with self.lock:
                await self.wait(self._exec_command(b"ROLLBACK"))
        else:
            await super().rollback()

    async def cancel_safe(self, *, timeout: float = GIVE_UP_SECONDS) -> None:  # noqa: ASYNC109  (psycopg's)
        """Ask the server to cancel a statement whose caller has given up, but not for long."""
        await super().cancel_safe(timeout=min(timeout, GIVE_UP_SECONDS))

    def cut(self) -> None:
        """Break the connection under the call that waits on it."""
        with suppress(psycopg.Error, OSError), socket.socket(fileno=os.dup(self.pgconn.socket)) as end:
            end.shutdown(socket.SHUT_RDWR)


class HangDetector:
    """All connections of one pool, or of some that lead to one server, and whether it answers."""

    def __init__(self) -> None:
        self._address: dict[str, Any] = {}
        self._waiting: dict[Connection, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._asking: asyncio.Task[None] | None = None
        self._hangs: asyncio.Future[None] | None = None
        """Done while the server hangs; of no loop before the first connection."""
        self._sign_seconds, self._alarmed_at = SIGN_SECONDS, -math.inf
        self._heard_at = -math.inf
        self.renewals = 0
        """How often all connections were given up for new ones."""
        self._renewing = Pace()

    def renew(self) -> None:
        """Replace each connection at its next use: a new one may lead to another server."""
        if self._renewing.is_due(time.monotonic()):
            self.renewals += 1
            log.warning("pulse.renewed renewals=%d", self.renewals)

    async def connect(self, **address: Any) -> Connection:
        """Connect as psycopg does, as long as the server does not hang."""
        self._address = address
        if self._hangs is None:
            self._hangs = asyncio.get_running_loop().create_future()
        renewal = self.renewals
        hangs, connecting = self._hangs, asyncio.create_task(_connect(Connection, **address))
        try:
            await asyncio.wait([hangs, connecting], return_when=asyncio.FIRST_COMPLETED)
            if hangs.done():
                raise psycopg.OperationalError("PostgreSQL does not answer.")
            connection = connecting.result()
        finally:
            connecting.cancel()
        connection.pulse, connection.host, connection.port = self, connection.info.host, connection.info.port
        connection.renewal, connection.was_used = renewal, False
        return connection

    def expect(self, connection: Connection) -> None:
        """Note that a call waits on a connection from now on; it fails at once if the server hangs."""
        loop = asyncio.get_running_loop()
        self._waiting[connection] = loop.time()
        if self._hangs is not None and self._hangs.done():
            connection.cut()
        elif self._timer is None and self._asking is None:
            self._timer = loop.call_later(DOUBT_SECONDS, self._doubt)

    def hear(self) -> None:
        """Note that the server has answered something: it lives."""
        self._heard_at = asyncio.get_running_loop().time()

    def got(self, connection: Connection) -> None:
        """Note that no call waits on a connection any more."""
        self._waiting.pop(connection, None)

    def _doubt(self) -> None:
        """Query the server, if a call waits for long."""
        self._timer = None
        if not self._waiting:
            return
        loop = asyncio.get_running_loop()
        connection, since = next(iter(self._waiting.items()))
        if (early := since + DOUBT_SECONDS - loop.time()) > 0:
            self._timer = loop.call_later(early, self._doubt)
        else:
            self._asking = asyncio.create_task(self._ask(connection), context=Context())  # It is of no run.

    async def _ask(self, connection: Connection) -> None:
        """Ask the server of a connection for a sign of life; without one, ask until there is one."""
        loop = asyncio.get_running_loop()
        try:
            if not await self._answers(host=connection.host, port=connection.port):
                await self._fail_until_it_answers()
        finally:
            self._asking = None
            self._timer = loop.call_later(ASK_AGAIN_SECONDS, self._doubt) if self._waiting else None

    async def _fail_until_it_answers(self) -> None:
        log.warning("pulse.database_hangs waiting=%d", len(self._waiting))
        assert self._hangs is not None  # noqa: S101  (there is a connection)
        self._hangs.set_result(None)
        for waiting in self._waiting:
            waiting.cut()
        loop = asyncio.get_running_loop()
        given_up_at = loop.time()
        while not await self._answers():  # noqa: ASYNC110  (another machine)
            await asyncio.sleep(ASK_AGAIN_SECONDS)
        log.warning("pulse.database_answers")
        self._hangs = loop.create_future()
        if loop.time() - given_up_at < FALSE_ALARM_SECONDS:
            self._sign_seconds, self._alarmed_at = min(2 * self._sign_seconds, LONGEST_SIGN_SECONDS), loop.time()

    async def _answers(self, **address: Any) -> bool:
        """Tell whether there is a sign of life in time."""
        asked_at = asyncio.get_running_loop().time()
        if asked_at - self._alarmed_at > FORGIVEN_SECONDS:
            self._sign_seconds = SIGN_SECONDS
        patience = {"connect_timeout": math.ceil(self._sign_seconds) + 1}
        asked = asyncio.create_task(_ask_for_life(**{**self._address, **address, **patience}))
        for _ in range(LOOKS):
            await asyncio.wait([asked], timeout=self._sign_seconds / LOOKS)
        asked.cancel()
        return (asked.done() and asked.result()) or self._heard_at > asked_at + DOUBT_SECONDS


async def _connect(kind: type[Connected], **address: Any) -> Connected:
    """Connect, and leave nothing behind where that fails.

    The traceback keeps the frame that has the socket: a server that comes back would hold a connection for it until
    the garbage is collected, which takes an idle process hours.
    """
    try:
        return await kind.connect(**address)
    except (psycopg.Error, asyncio.CancelledError) as error:
        raise error.with_traceback(None)  # noqa: B904  (it is the same error)


async def _ask_for_life(**address: Any) -> bool:
    try:
        connection = await _connect(psycopg.AsyncConnection[Any], **address, autocommit=True)
        async with connection:
            await connection.execute("SELECT")
    except psycopg.errors.ConnectionTimeout:
        return False
    except psycopg.Error:
        return True  # It refuses, which is an answer; waiting calls get the same one.
    return True
