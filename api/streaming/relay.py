"""The relay: passes announcements of workers to the readers of runs in this process, or of a thread (`threads.py`).

Subscribe, then read: a feed is subscribed first, then the log is read, then it goes live. After a jump, a reconnect and
a new subscription the log is read again. If Redis is away or silent, ends are read from the rows.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from uuid import UUID

from pydantic import JsonValue
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from agent_relay.api.streaming.run_feed import Event, RunFeed
from agent_relay.api.streaming.subscriptions import Subscriptions
from agent_relay.api.streaming.threads import Threads
from agent_relay.shared.away import REDIS_ERRORS, skip_if_database_away, skip_if_redis_away
from agent_relay.shared.bad_input import BadInput, refuse
from agent_relay.shared.database.tables import TERMINAL
from agent_relay.shared.database.typed_rows import columns, read
from agent_relay.shared.event_log import Entry, EventLog, Id, parse_announcement
from agent_relay.shared.rows import RunEnd, RunRow
from agent_relay.shared.runs.wait import wait_entries
from agent_relay.shared.schemas import requests_in, requests_of
from agent_relay.shared.tasks import run_together

log = logging.getLogger(__name__)

READS_AT_ONCE = 16
"""After a reconnect every feed reads its log; this many share a round trip, and one connection serves all."""
FIRST_READ_SECONDS = 1.0
"""How long a reader waits for the first read of the log; without Redis it goes on with the row."""
READ_AGAIN_SECONDS = 0.5
"""After a read that failed; until then announcements wait."""
ROWS_SECONDS = 1.0
QUIET_SECONDS = 2.0
"""After this time without an entry, the row of a feed's run is read."""
ROWS_AT_ONCE = 1000
MOST_PENDING = 1000


@dataclass(frozen=True, slots=True)
class _News(RunEnd):
    """The data of a row that the log lacks: the end of a run, or the requests that it waits for."""

    finished_at: datetime | None
    wait_attempt: int | None
    wait_entry: int | None
    requests: JsonValue


_NEWS = text(f"""
    SELECT {columns(_News, "runs", requests=requests_in("runs"))}
    FROM runs JOIN unnest(CAST(:ids AS uuid[]), CAST(:attempts AS int[]), CAST(:entries AS int[]))
        AS told (run_id, told_attempt, told_entry) ON id = run_id
    WHERE finished_at IS NOT NULL OR (status = 'waiting' AND (attempt, last_entry) > (told_attempt, told_entry))
""")  # noqa: S608  (a constant)
"""The data that only rows have: ends, and the requests of runs that wait."""


class _Followed:
    """A feed, and how far it is with reading its log."""

    __slots__ = ("again", "feed", "followers", "pending", "read_once", "reading")

    def __init__(self, run: RunRow) -> None:
        self.feed = RunFeed(run)
        self.followers = 0
        self.read_once: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.reading = False
        self.again = False
        self.pending: list[Entry] = []


class Following:
    """A run that is followed from `async with` to its end. It keeps no row, which is large."""

    __slots__ = ("_feed", "_relay", "_run")

    def __init__(self, relay: Relay, run: RunRow) -> None:
        self._relay = relay
        self._run: RunRow | None = run
        self._feed: RunFeed | None = None

    async def __aenter__(self) -> RunFeed:
        assert self._run is not None, "it is followed once"  # noqa: S101
        feed = self._feed = await self._relay.enter(self._run)
        self._run = None
        return feed

    async def __aexit__(self, *_: object) -> None:
        if self._feed is not None:
            self._relay.leave(self._feed)


class Relay:
    """All runs that are followed in this process."""

    def __init__(self, database: AsyncEngine, redis: Redis, event_log: EventLog, *, keepalive_seconds: float) -> None:
        self._keepalive_seconds = keepalive_seconds
        self._database = database
        self._event_log = event_log
        self._name = event_log.names.log
        self._hub = Subscriptions(redis, event_log.names, self._heard, self._subscribed)
        self.threads = Threads(database, event_log.names, self._hub.want, self._hub.drop)
        self._followed: dict[str, _Followed] = {}
        self._unread: dict[str, _Followed] = {}
        self._reads = asyncio.Event()
        self.closing = False
        self.live = 0
        """How many entries came by announcement."""
        self.read = 0
        """How many entries were read from logs: again, or because they were written before the first reader came."""

    async def run(self) -> None:
        """Relay for ever."""
        await run_together(
            self._hub.run(), self._read_logs(), self._watch_rows(), self.threads.watch(), self._keep_alive()
        )

    def close(self) -> None:
        """Stop every reader at the next event boundary."""
        self.closing = True
        for followed in self._followed.values():
            followed.feed.wake()
        self.threads.wake_all()

    def __len__(self) -> int:
        return len(self._followed)

    def follow(self, run: RunRow) -> Following:
        """Share the feed of a run among its readers; it has read its log by then, if there is one."""
        return Following(self, run)

    async def enter(self, run: RunRow) -> RunFeed:
        """Begin to follow; see `follow`."""
        if run.status in TERMINAL:
            return await self._feed_of_the_past(run)
        channel = self._name(run.id)
        followed = self._followed.get(channel)
        if followed is None:
            followed = self._followed[channel] = _Followed(run)
            self._hub.want(channel)
        followed.followers += 1
        try:
            await asyncio.wait([followed.read_once], timeout=FIRST_READ_SECONDS)
        except BaseException:
            self.leave(followed.feed)
            raise
        return followed.feed

    def leave(self, feed: RunFeed) -> None:
        """Follow no longer; see `follow`."""
        channel = self._name(feed.run_id)
        followed = self._followed.get(channel)
        if followed is not None and followed.feed is feed:
            followed.followers -= 1
            if not followed.followers:
                del self._followed[channel]
                self._hub.drop(channel)

    async def recall(self, feed: RunFeed, cursor: Id) -> list[Event]:
        """Read events again that a feed no longer keeps."""
        recalled = feed.recall(cursor, await self._event_log.read(feed.run_id, after=cursor))
        self.read += len(recalled)
        return recalled

    async def _feed_of_the_past(self, run: RunRow) -> RunFeed:
        feed = RunFeed(run)
        await self._end(feed, run)
        return feed

    def _heard(self, channel: str, message: bytes) -> None:
        followed = self._followed.get(channel)
        if followed is None:
            self.threads.heard(channel)
            return
        entries = parse_announcement(message)
        if followed.reading or not followed.read_once.done():
            followed.pending += entries
            if len(followed.pending) > MOST_PENDING:
                followed.pending.clear()
                followed.again = True
        elif not self._take_live(followed.feed, entries):
            self._read(channel)

    def _take_live(self, feed: RunFeed, entries: Sequence[Entry]) -> bool:
        before = feed.taken
        known = feed.take_live(entries)
        self.live += feed.taken - before
        return known

    def _take_log(self, feed: RunFeed, entries: Sequence[Entry]) -> bool:
        before = feed.taken
        known = feed.take_log(entries)
        self.read += feed.taken - before
        return known

    def _subscribed(self, channel: str) -> None:
        if channel in self._followed:
            self._read(channel)
        else:
            self.threads.heard(channel)

    def _read(self, channel: str) -> None:
        """Let a feed read its log, once more if it is reading already."""
        followed = self._followed[channel]
        if followed.reading:
            followed.again = True
        else:
            followed.reading = True
            self._unread[channel] = followed
            self._reads.set()

    async def _read_logs(self) -> None:
        """Read for ever the logs that are to be read, some at a time."""
        while await self._reads.wait():
            some = dict(islice(self._unread.items(), READS_AT_ONCE))
            for channel in some:
                del self._unread[channel]
            if not some:
                self._reads.clear()
                continue
            unknown: list[UUID] = []
            try:
                unknown = await self._read_some(list(some.values()))
            except REDIS_ERRORS as away:
                log.warning("relay.read_failed runs=%d error=%r", len(some), away)
                await self._read_again(some.values())
            except Exception:
                log.exception("relay.read_failed runs=%d", len(some))
                await self._read_again(some.values())
            for channel, followed in some.items():
                followed.reading = False
                if followed.again and self._followed.get(channel) is followed:
                    followed.again = False
                    self._read(channel)
            with skip_if_database_away(log, "relay.database_away"):
                await self._settle(unknown)

    async def _read_again(self, some: Iterable[_Followed]) -> None:
        for followed in some:
            followed.again = True
        await asyncio.sleep(READ_AGAIN_SECONDS)

    async def _read_some(self, some: Sequence[_Followed]) -> list[UUID]:
        """Read some logs; return the runs whose end in the log cannot be used, so that their rows are read."""
        logs = await self._event_log.read_many([(followed.feed.run_id, followed.feed.top) for followed in some])
        unknown: list[UUID] = []
        for followed, entries in zip(some, logs, strict=True):
            pending, followed.pending = followed.pending, []
            try:
                known = self._take_log(followed.feed, entries)
                followed.again |= known and not self._take_live(followed.feed, pending)
            except Exception as error:  # noqa: BLE001  (whatever stands in its log, the others are read)
                refuse(BadInput.ANNOUNCEMENT, self._name(followed.feed.run_id), error)
                followed.feed.cut()
                known = True
            if not followed.read_once.done():
                followed.read_once.set_result(None)
            if not known:
                unknown.append(followed.feed.run_id)
        return unknown

    async def _watch_rows(self) -> None:
        """Read the rows of quiet runs, all in one query, and take ends without an announcement from there."""
        while True:
            await asyncio.sleep(ROWS_SECONDS)
            now = asyncio.get_running_loop().time()
            quiet = [
                followed.feed.run_id
                for followed in self._followed.values()
                if not followed.feed.ended and now - followed.feed.touched > QUIET_SECONDS
            ]
            for first in range(0, len(quiet), ROWS_AT_ONCE):
                with skip_if_database_away(log, "relay.database_away"):
                    await self._settle(quiet[first : first + ROWS_AT_ONCE])

    async def _keep_alive(self) -> None:
        """Wake readers whose time to wait is over; one timer for all, because one each would be costly."""
        tick = min(1.0, self._keepalive_seconds / 4)
        while True:
            await asyncio.sleep(tick)
            before = asyncio.get_running_loop().time() - self._keepalive_seconds + tick
            for followed in list(self._followed.values()):
                followed.feed.tire(before)
            self.threads.tire(before)

    async def _settle(self, run_ids: Sequence[UUID]) -> None:
        """Read the logs of runs that have ended or wait a last time, and add what only their rows hold."""
        tops = {run_id: followed.feed.top for run_id in run_ids if (followed := self._followed.get(self._name(run_id)))}
        if not tops:
            return
        values = {
            "ids": list(tops),
            "attempts": [top.attempt for top in tops.values()],
            "entries": [top.n for top in tops.values()],
        }
        async with self._database.connect() as connection:
            rows = read(await connection.execute(_NEWS, values), _News)
        for row in rows:
            followed = self._followed.get(self._name(row.id))
            if followed is None or followed.feed.ended:
                continue
            if row.finished_at is None:
                await self._wait(followed.feed, row)
            else:
                await self._end(followed.feed, row)

    async def _wait(self, feed: RunFeed, row: _News) -> None:
        """Add the rest of a log, and the requests of the run from its rows."""
        with skip_if_redis_away(log, "relay.redis_away"):
            self._take_log(feed, await self._event_log.read(row.id, after=feed.top))
        requests = [request for request in requests_of(row.requests) if request.attempt == row.wait_attempt]
        self._take_log(feed, wait_entries(row, requests))

    async def _end(self, feed: RunFeed, row: RunEnd) -> None:
        """Add the rest of a log, and the end from the row.

        An end that cannot be shown cuts the streams of its own run, and no others.
        """
        with skip_if_redis_away(log, "relay.redis_away") as reading:
            self._take_log(feed, await self._event_log.read(row.id, after=feed.top))
        try:
            feed.settle(row, log_was_read=reading.error is None)
        except Exception as error:  # noqa: BLE001  (whatever stands in the row)
            refuse(BadInput.ROW, f"runs {feed.run_id}", error)
            feed.cut()
