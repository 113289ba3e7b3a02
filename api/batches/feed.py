"""New results of the batches that are followed in this process: read once, and shared by all readers of a batch.

Workers announce ends over Redis, at most some times a second; without Redis, each batch is polled all the same.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from contextvars import Context
from dataclasses import dataclass
from itertools import islice
from uuid import UUID

from pydantic_core import from_json, to_json
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from agent_relay.api.batches.queries import ResultRow, batch_with_results
from agent_relay.api.streaming.sse_and_ndjson import one_line
from agent_relay.api.streaming.subscriptions import Subscriptions
from agent_relay.api.streaming.wakeups import WakeReason, end_wait
from agent_relay.shared.away import skip_if_database_away
from agent_relay.shared.bad_input import BadInput, refuse
from agent_relay.shared.redis_names import Names
from agent_relay.shared.rows import BatchRow
from agent_relay.shared.schemas import Counts, counts_of, whole_usage

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0
"""A batch without an announcement is polled at this interval."""
PAUSE_SECONDS = 0.2
"""Announcements within this pause lead to one read."""
PAGE_RESULTS = 200
PAGE_BYTES = 256 << 10
KEPT_BYTES = 1 << 20
"""Lines that a feed keeps; a follower that is further behind reads for itself."""


@dataclass(frozen=True, slots=True)
class BatchProgress:
    """How far a batch is, at one moment."""

    status: str
    counts: Counts

    @classmethod
    def of(cls, batch: BatchRow) -> BatchProgress:
        """Read it from the batch's row."""
        return cls(batch.status, counts_of(batch))

    @property
    def ended(self) -> int:
        """How many runs have ended."""
        return self.counts.succeeded + self.counts.failed + self.counts.cancelled

    def line(self) -> bytes:
        """Write it as a line among the results."""
        return to_json({"counts": self.counts, "status": self.status}) + b"\n"


class BatchFeed:
    """One followed batch, as far as this process has read it."""

    def __init__(self, standing: BatchProgress) -> None:
        self.standing = standing
        self.top = standing.ended
        """The place of the last result that was read."""
        self.erased = False
        self.news = asyncio.Event()
        self.followers = 0
        self.reading: asyncio.Task[None] | None = None
        self._lines: deque[bytes] = deque()
        """The last results, the newest at the end."""
        self._bytes = 0
        self._waiting: set[asyncio.Future[WakeReason]] = set()

    @property
    def ended(self) -> bool:
        """Whether the batch has ended, and all of it was read."""
        return self.standing.ended == self.standing.counts.total == self.top

    def after(self, place: int) -> list[bytes] | None:
        """Say which results follow a place; None where they are no longer kept, or never were."""
        behind = max(self.top - place, 0)
        if behind > len(self._lines):
            return None
        newest_first = list(islice(reversed(self._lines), behind))
        return newest_first[::-1]

    def take(self, standing: BatchProgress, results: Sequence[ResultRow]) -> None:
        """Add what was read: all results after the top."""
        if standing == self.standing and not results:
            return
        self.standing = standing
        self.top += len(results)
        self._lines += [line_of(result) for result in results]
        self._bytes += sum(len(line) for line in islice(reversed(self._lines), len(results)))
        while self._bytes > KEPT_BYTES:
            self._bytes -= len(self._lines.popleft())
        self.wake()

    def wait(self) -> asyncio.Future[WakeReason]:
        """Return a future that resolves at the next update; the waiting reader may resolve it earlier."""
        waiting: asyncio.Future[WakeReason] = asyncio.get_running_loop().create_future()
        self._waiting.add(waiting)
        waiting.add_done_callback(self._waiting.discard)
        return waiting

    def wake(self) -> None:
        """Wake every reader."""
        for waiting in self._waiting:
            end_wait(waiting, WakeReason.FOR_NEWS)


class BatchFeeds:
    """All batches that are followed in this process."""

    def __init__(self, database: AsyncEngine, redis: Redis, names: Names) -> None:
        self._database = database
        self._hub = Subscriptions(redis, names, lambda name, _: self._look(name), self._look)
        self._names = names
        self._feeds: dict[str, BatchFeed] = {}
        self.closing = False

    async def run(self) -> None:
        """Listen for ever."""
        await self._hub.run()

    def close(self) -> None:
        """Stop every reader at the next line."""
        self.closing = True
        for feed in self._feeds.values():
            feed.wake()

    @asynccontextmanager
    async def follow(self, batch_id: UUID, standing: BatchProgress) -> AsyncGenerator[BatchFeed]:
        """Share the feed of a batch among its readers."""
        name = self._names.batch(batch_id)
        feed = self._feeds.get(name)
        if feed is None:
            feed = self._feeds[name] = BatchFeed(standing)
            # In no context: it reads for all followers, not for the request that came first.
            feed.reading = asyncio.create_task(self._keep_reading(feed, batch_id), context=Context())
            self._hub.want(name)
        feed.followers += 1
        try:
            yield feed
        finally:
            feed.followers -= 1
            if not feed.followers:
                del self._feeds[name]
                self._hub.drop(name)
                if feed.reading is not None:
                    feed.reading.cancel()

    def _look(self, name: str) -> None:
        """Read a batch again: there is an announcement, or there may have been one during a disconnection."""
        if (feed := self._feeds.get(name)) is not None:
            feed.news.set()

    async def _keep_reading(self, feed: BatchFeed, batch_id: UUID) -> None:
        """Read new results after each announcement, and now and then, until the batch ends or has no reader."""
        while feed.followers and not (feed.ended or feed.erased):
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await feed.news.wait()
            feed.news.clear()
            try:
                with skip_if_database_away(log, "feeds.database_away batch_id=%s", batch_id):
                    await self._read(feed, batch_id)
            except Exception:
                log.exception("feeds.failed batch_id=%s", batch_id)
            await asyncio.sleep(PAUSE_SECONDS)

    async def _read(self, feed: BatchFeed, batch_id: UUID) -> None:
        while True:
            batch, results = await page_of(self._database, batch_id, feed.top)
            if batch is None:
                feed.erased = True
                feed.wake()
                return
            feed.take(BatchProgress.of(batch), results)
            if feed.top >= feed.standing.ended:
                return


async def page_of(database: AsyncEngine, batch_id: UUID, after: int) -> tuple[BatchRow | None, list[ResultRow]]:
    """Read a batch and the results that follow a place, as many as are written at once."""
    return await batch_with_results(database, batch_id, after=after, limit=PAGE_RESULTS, most_bytes=PAGE_BYTES)


def _json(output: str) -> bytes:
    """Take an output that is stored as JSON; one that is none goes out as text, so that it spoils no other line."""
    try:
        from_json(output)
    except ValueError as unreadable:
        refuse(BadInput.ROW, "runs.output", unreadable)
        return to_json(output)
    return output.encode().replace(b"\n", b" ")


def line_of(result: ResultRow) -> bytes:
    """Write a result. Its output is stored as JSON, and goes out as it came in."""
    output = b"null"
    if result.output is not None:
        output = to_json(result.output) if result.text_output else _json(result.output)
    line = b'{"cursor":%d,"custom_id":%s,"run_id":"%s","status":"%s","output":%s,"error":%s,"usage":%s}\n' % (
        result.place,
        to_json(result.custom_id),
        str(result.run_id).encode(),
        result.status.encode(),
        output,
        to_json(result.error),
        to_json(whole_usage(result.usage)),
    )
    return one_line(line)
