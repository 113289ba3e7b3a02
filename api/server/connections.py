"""The connections of an API process: how many there may be, and how long a peer may leave something unfinished.

A connection that has sent no complete request head costs its peer nothing, so it is the first to go where room is
needed. A few connections above the limit are kept for health checks.
"""

from __future__ import annotations

import asyncio
import logging
import resource
from collections import Counter
from dataclasses import dataclass
from typing import Protocol

from agent_relay.api.server.turns import Turns

log = logging.getLogger(__name__)

RESERVED_FILES = 192
"""Open files that are no connections of clients: pools of PostgreSQL and Redis, uploads on disk, modules, logs."""
MOST_FILES = 65_536
"""The limit of open files is raised to this where the system allows it."""
RESERVED_FOR_HEALTH = 32
LEAST_BYTES = 1000
"""Of a body within `request_seconds`."""
LINGER_SECONDS = 2.0
"""Time for a peer to read an answer that came before its request was complete, once it sends nothing more."""
LONGEST_LINGER_SECONDS = 30.0
"""Time for a peer to send the rest of a request that has been answered."""
TICK_SECONDS = 1.0
LATE_AT_ONCE, LATE_SECONDS = 50, 0.02
"""Late connections that are answered in one turn of the loop, and seconds until the next of them."""
LOG_SECONDS = 10.0


class Connection(Protocol):
    """A connection, as this module uses it."""

    @property
    def body_bytes(self) -> int:
        """Bytes of the current body that have arrived."""
        ...

    @property
    def is_reading(self) -> bool:
        """Whether it is the peer that delays the body, and not the application that is slow to read it."""
        ...

    @property
    def is_answered(self) -> bool:
        """Whether the response is complete although the request is not."""
        ...

    def drop(self) -> None:
        """Close at once, without an answer."""
        ...

    def time_out(self) -> None:
        """Answer 408 where nothing has been answered yet, and close."""
        ...


@dataclass(slots=True)
class _Body:
    """The progress of an unfinished body."""

    since: float
    bytes_then: int
    answered_since: float | None = None


class Connections:
    """All connections of this process."""

    def __init__(self, most: int, request_seconds: float) -> None:
        """Allow `most` connections, and `request_seconds` for a head and for each `LEAST_BYTES` of a body."""
        self.most = most
        self.turns = Turns()
        self._request_seconds = request_seconds
        self._open: set[Connection] = set()
        self._headless: dict[Connection, float] = {}
        """Connections without a complete head of a request, by the time they began, oldest first."""
        self._idle: dict[Connection, None] = {}
        """Connections kept alive between two requests, longest idle first."""
        self._bodies: dict[Connection, _Body] = {}
        self._ticking = False
        self._refused: Counter[str] = Counter()
        self._logged_at = 0.0

    def __len__(self) -> int:
        return len(self._open)

    def opened(self, connection: Connection) -> bool:
        """Count a new connection; False where it is over the limit and may ask for nothing but health."""
        self._open.add(connection)
        self._headless[connection] = self._now()
        self._tick_from_now_on()
        if len(self._open) <= self.most:
            return True
        if (silent := next(iter(self._headless))) is not connection:
            self._drop(silent, "silent")
            return True
        if self._idle:
            self._drop(next(iter(self._idle)), "idle")
            return True
        if len(self._open) > self.most + RESERVED_FOR_HEALTH:
            self._drop(connection, "crowded")
        return False

    def closed(self, connection: Connection) -> None:
        """Forget a connection."""
        self._open.discard(connection)
        self._forget(connection)

    def in_head(self, connection: Connection) -> None:
        """Note that the head of a request has begun and is not complete."""
        if connection not in self._headless:
            self._forget(connection)
            self._headless[connection] = self._now()

    def in_body(self, connection: Connection) -> None:
        """Note that the body of a request has begun and is not complete."""
        if connection not in self._bodies:
            self._forget(connection)
            self._bodies[connection] = _Body(self._now(), connection.body_bytes)

    def complete(self, connection: Connection) -> None:
        """Note that the request is complete."""
        self._forget(connection)

    def idle(self, connection: Connection) -> None:
        """Note that the connection is kept alive for a request that has not begun."""
        self._forget(connection)
        self._idle[connection] = None

    def _forget(self, connection: Connection) -> None:
        self._headless.pop(connection, None)
        self._idle.pop(connection, None)
        self._bodies.pop(connection, None)

    def _drop(self, connection: Connection, reason: str) -> None:
        self._refused[reason] += 1
        self.closed(connection)
        connection.drop()

    def _time_out(self, connection: Connection, reason: str) -> None:
        self._refused[reason] += 1
        self._forget(connection)
        connection.time_out()

    def _tick_from_now_on(self, seconds: float = TICK_SECONDS) -> None:
        if not self._ticking:
            self._ticking = True
            asyncio.get_running_loop().call_later(seconds, self._tick)

    def _tick(self) -> None:
        now = self._now()
        late = [one for one, since in self._headless.items() if now - since > self._request_seconds]
        left = LATE_AT_ONCE
        try:
            for connection in late[:LATE_AT_ONCE]:
                self._time_out(connection, "slow_head")
            for connection, body in list(self._bodies.items()):
                if left and self._is_late(connection, body, now):
                    left -= 1
            self._log(now)
        finally:
            self._ticking = False
        if self._open or self._refused:
            self._tick_from_now_on(TICK_SECONDS if left and len(late) <= LATE_AT_ONCE else LATE_SECONDS)

    def _is_late(self, connection: Connection, body: _Body, now: float) -> bool:
        """Look at an unfinished body; one that takes too long is ended."""
        if connection.is_answered:
            body.answered_since = body.answered_since or now
            if connection.body_bytes != body.bytes_then:
                body.since, body.bytes_then = now, connection.body_bytes
            silent = now - max(body.since, body.answered_since)
            if silent > LINGER_SECONDS or now - body.answered_since > LONGEST_LINGER_SECONDS:
                self._drop(connection, "body_after_answer")
                return True
        elif not connection.is_reading or connection.body_bytes - body.bytes_then >= LEAST_BYTES:
            body.since, body.bytes_then = now, connection.body_bytes
        elif now - body.since > self._request_seconds:
            self._time_out(connection, "slow_body")
            return True
        return False

    def _log(self, now: float) -> None:
        """Log the refusals, one line for any number, so that no peer can flood the log."""
        if self._refused and now - self._logged_at >= LOG_SECONDS:
            reasons = " ".join(f"{reason}={count}" for reason, count in sorted(self._refused.items()))
            log.warning("connections.refused open=%d limit=%d %s", len(self._open), self.most, reasons)
            self._refused.clear()
            self._logged_at = now

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    def count(self, reason: str) -> None:
        """Count a request that was refused before the application saw it."""
        self._refused[reason] += 1
        self._tick_from_now_on()


def limit_of_connections(wanted: int) -> int:
    """Return how many connections the limit of open files allows, at most `wanted` if that is not 0.

    The limit of open files is raised first, as far as the system allows a process to do that itself.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < MOST_FILES:
        soft = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    room = max(soft - RESERVED_FILES - RESERVED_FOR_HEALTH, 1)
    if wanted > room:
        log.warning("connections.limit wanted=%d files=%d room=%d: raise the limit of open files", wanted, soft, room)
    return min(wanted or room, room)
