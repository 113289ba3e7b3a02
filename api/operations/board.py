"""The service as it is now, for all pages of this process: one statement a tick, and none while no page is open.

A tick depends on the one before: after a statement that took long, the next comes later.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from pydantic_core import to_json
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.types import Send

from agent_relay.api.operations.figures import FLOW, STATE, WINDOWS, Minute, last_minute, series
from agent_relay.api.problems import Refused
from agent_relay.api.streaming.response import send_frames
from agent_relay.api.streaming.sse_and_ndjson import Framing, one_line
from agent_relay.api.streaming.wakeups import WakeReason, end_wait
from agent_relay.shared.away import DATABASE_ERRORS
from agent_relay.shared.bad_input import failed
from agent_relay.shared.clock import now_ms
from agent_relay.shared.database import transact

log = logging.getLogger(__name__)

TICK_SECONDS = 2.0
LONGEST_TICK_SECONDS = 15.0
SHARE = 0.005
"""Share of the time that may be spent in the statement."""
LOOKS = 5
"""The quickest of this number of looks gives the cost of one; the others had to wait for a core."""
MOST_WATCHERS = 50
"""Of a process."""
MOST_WORKERS = 500
MOST_DELIVERIES = 20
LOOKED_AT = 1000
"""Webhook deliveries among which those that fail are looked for."""
DAY_SECONDS = 86_400

_NOW = text(f"""
    SELECT jsonb_build_object(
        'at', extract(epoch FROM now())::bigint,
        'flow', {FLOW.format(since="(now() - interval '1 minute')", until="now()")},
        'state', {STATE},
        'workers', coalesce((
            SELECT jsonb_agg(jsonb_build_array(id, host, pid, pool, version, slots, coalesce(used, 0), draining,
                extract(epoch FROM started_at)::bigint,
                round((:lease_seconds - extract(epoch FROM lease_until - now()))::numeric)::int))
            FROM (SELECT * FROM workers WHERE ended_at IS NULL ORDER BY host, pid, id LIMIT {MOST_WORKERS}) AS living
            LEFT JOIN (
                SELECT worker_id, count(*) AS used FROM runs WHERE status = 'running' GROUP BY worker_id
            ) AS held ON worker_id = id), '[]'),
        'processes', coalesce((
            SELECT jsonb_agg(jsonb_build_array(id, host, pid, version, streams,
                extract(epoch FROM started_at)::bigint, round(extract(epoch FROM now() - seen_at))::int)
                ORDER BY host, pid) FROM api_processes), '[]'),
        'deliveries', coalesce((
            SELECT jsonb_agg(jsonb_build_array(id, tenant, url, type, status, attempts, response_status,
                left(error, 200), round(extract(epoch FROM due_at - now()))::int)) FROM (
                SELECT * FROM (
                    (SELECT * FROM webhook_deliveries WHERE status = 'pending'
                     ORDER BY due_at DESC LIMIT {LOOKED_AT})
                    UNION ALL
                    (SELECT * FROM webhook_deliveries WHERE status <> 'pending'
                     ORDER BY created_at DESC LIMIT {LOOKED_AT})
                ) AS newest
                WHERE status IN ('failed', 'disabled')
                   OR (status = 'pending' AND attempts > 0
                       AND (error IS NOT NULL OR response_status NOT BETWEEN 200 AND 299))
                ORDER BY last_attempt_at DESC NULLS LAST LIMIT {MOST_DELIVERIES}
            ) AS failing), '[]'),
        'minutes', coalesce((
            SELECT jsonb_agg(jsonb_build_array(extract(epoch FROM minute)::bigint, figures) ORDER BY minute)
            FROM service_minutes
            WHERE minute > to_timestamp(:after) AND minute > now() - interval '1 day'), '[]')
    ) AS seen
""")  # noqa: S608  (constants)


class Board:
    """The shared data of all pages of a process."""

    def __init__(self, database: AsyncEngine, lease_seconds: float) -> None:
        self._database = database
        self._lease_seconds = lease_seconds
        self._minutes: list[Minute] = []
        self._took = deque[float](maxlen=LOOKS)
        self._watchers = 0
        self._watched = asyncio.Event()
        self._unseen = asyncio.Event()
        """A page is open and there is no data to show yet."""
        self._waiting: set[asyncio.Future[WakeReason]] = set()
        self.tick = 0
        """Counts the frames."""
        self.now = b""
        """The last frame, with the current data or the reason why there are none."""
        self.history: tuple[int, bytes] = (0, b"")
        """The frame of the plots, and the tick that it came with."""
        self.closing = False

    async def run(self) -> None:
        """Look for as long as there is a watcher, for ever."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                await self._watched.wait()
                self._unseen.clear()
                knows_the_day, began = bool(self._minutes), loop.time()
                await self._look()
                if knows_the_day:  # Reading it takes long, and once.
                    self._took.append(loop.time() - began)
                self._wake()
                await asyncio.sleep(TICK_SECONDS)
                pause = min(min(self._took, default=0) / SHARE, LONGEST_TICK_SECONDS) - TICK_SECONDS
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(pause, 0)):
                        await self._unseen.wait()
        finally:
            self.closing = True
            self._wake()

    async def _look(self) -> None:
        after = self._minutes[-1][0] if self._minutes else 0
        values = {"lease_seconds": self._lease_seconds, "after": after}
        try:
            await self._take((await transact(self._database, _NOW, values))[0].seen)
        except DATABASE_ERRORS as error:
            log.warning("operations.not_seen error=%r", error)
            self.now = frame("trouble", {"detail": "PostgreSQL does not answer; what is shown is old."})
        except Exception as error:  # noqa: BLE001  (whatever it is, runs are answered without this)
            failed("operations", "look", error)
            self.now = frame("trouble", {"detail": "The figures cannot be read; the log of the service says why."})
        self.tick += 1

    async def _take(self, seen: dict[str, Any]) -> None:
        new: list[Minute] = [(at, figures) for at, figures in seen["minutes"]]
        oldest = seen["at"] - DAY_SECONDS
        self._minutes = [minute for minute in self._minutes + new if minute[0] > oldest]
        if new or not self.history[1]:
            self.history = self.tick + 1, await asyncio.to_thread(_plots, self._minutes, seen["at"])
        for delivery in seen["deliveries"]:
            delivery[2] = _place_of(delivery[2])
        fields = ("at", "workers", "processes", "deliveries")
        shown = {**{name: seen[name] for name in fields}, **seen["state"], **last_minute(seen["flow"])}
        self.now = frame("now", shown)

    def watch(self) -> None:
        """Count a watcher.

        Raises:
            Refused: 503, there are too many.
        """
        if self._watchers >= MOST_WATCHERS:
            detail = f"The limit of open operations pages of this process ({MOST_WATCHERS}) is reached; close one."
            raise Refused(503, detail, code="calls_full", headers={"Retry-After": "5"})
        self._watchers += 1
        self._watched.set()
        if not self.now:
            self._unseen.set()

    def leave(self) -> None:
        """Count one page less; the last one drops the data, so that the next page does not show old ones."""
        self._watchers -= 1
        if not self._watchers:
            self._watched.clear()
            self.now = b""

    def wait(self) -> asyncio.Future[WakeReason]:
        """Make a future that the next tick ends."""
        waiting: asyncio.Future[WakeReason] = asyncio.get_running_loop().create_future()
        self._waiting.add(waiting)
        return waiting

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, set()
        for each in waiting:
            end_wait(each, WakeReason.FOR_NEWS)


class Watcher:
    """One page that is open. Its socket pulls: a slow page skips updates."""

    media_type = Framing.SSE.value

    def __init__(self, board: Board, expires_at_ms: int | None) -> None:
        """`expires_at_ms` is when the session ends that the page was opened with."""
        self._board = board
        self._expires_at_ms = expires_at_ms
        self._waiting: asyncio.Future[WakeReason] | None = None
        self._lost = False
        board.watch()

    def lose(self) -> None:
        """The reader is gone."""
        self._lost = True
        if self._waiting is not None:
            end_wait(self._waiting, WakeReason.NO_LONGER)

    async def write(self, send: Send) -> None:
        """Write each tick, until the reader is gone, its session has ended or the process stops."""
        try:
            await send_frames(send, [Framing.SSE.opening])
            tick, plots = 0, 0
            while not self._over:
                frames: list[bytes] = []
                if self._board.now and self._board.tick > tick:
                    if self._board.history[0] > plots:
                        plots, plotted = self._board.history
                        frames.append(plotted)
                    tick = self._board.tick
                    frames.append(self._board.now)
                    await send_frames(send, frames)
                else:
                    await self._wait()
        finally:
            self._board.leave()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    @property
    def _over(self) -> bool:
        expired = self._expires_at_ms is not None and now_ms() >= self._expires_at_ms
        return self._lost or self._board.closing or expired

    async def _wait(self) -> None:
        self._waiting = self._board.wait()
        if not self._over:  # The page may have been closed meanwhile.
            await self._waiting


def _plots(minutes: Sequence[Minute], at: int) -> bytes:
    """Frame all windows; with a day of minutes this takes too long for the event loop."""
    return frame("history", {name: series(minutes, window, at - 60) for name, window in WINDOWS.items()})


def frame(name: str, fields: Mapping[str, Any]) -> bytes:
    """Write an event for SSE."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), one_line(to_json(fields)))


def _place_of(url: str) -> str:
    """Leave out of a URL the parts that may be secret: user, password and query."""
    parts = urlsplit(url)  # It was checked when it was given.
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
