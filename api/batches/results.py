"""The results of a batch to one reader, pulled by its socket: from a place on, in the order of ending."""

from __future__ import annotations

import asyncio
import logging

from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.types import Send

from agent_relay.api.batches.feed import BatchFeed, BatchFeeds, BatchProgress, line_of, page_of
from agent_relay.api.requests.rate_limits import OpenCall
from agent_relay.api.streaming.response import send_frames
from agent_relay.api.streaming.sse_and_ndjson import Framing
from agent_relay.api.streaming.wakeups import WakeReason, end_wait
from agent_relay.shared.away import DATABASE_ERRORS
from agent_relay.shared.database import is_away
from agent_relay.shared.rows import BatchRow

log = logging.getLogger(__name__)

COUNTS_SECONDS = 2.0
"""While counts change, they are sent at this interval."""


class Results:
    """One reader of a batch's results: of those there are, or, if he follows, of all until it ends, and its counts."""

    def __init__(
        self,
        database: AsyncEngine,
        feeds: BatchFeeds,
        call: OpenCall,
        batch: BatchRow,
        after: int,
        *,
        follow: bool,
        keepalive_seconds: float,
    ) -> None:
        self.media_type = Framing.NDJSON.value
        self._database = database
        self._feeds = feeds
        self._call = call
        call.revoked = self.end
        self._batch_id = batch.id
        self._standing = BatchProgress.of(batch)
        self._place = after
        self._follow = follow
        self._keepalive = keepalive_seconds
        self._lost = False
        self._waiting: asyncio.Future[WakeReason] | None = None

    def lose(self) -> None:
        """The reader is gone."""
        self._lost = True
        if self._waiting is not None:
            end_wait(self._waiting, WakeReason.NO_LONGER)

    def end(self) -> None:
        """End without the last counts, because the key was revoked."""
        self.lose()

    async def write(self, send: Send) -> None:
        """Write; an error of the service cuts a followed stream, without the last counts."""
        try:
            if self._follow:
                async with self._feeds.follow(self._batch_id, self._standing) as feed:
                    await self._tell(feed, send)
            else:
                while not self._gone and await self._page(send):
                    pass
        except DATABASE_ERRORS as away:
            if not is_away(away):
                raise
            log.warning("results.cut batch_id=%s error=%r", self._batch_id, away)
        finally:
            self._call.close()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    @property
    def _gone(self) -> bool:
        return self._lost or self._feeds.closing

    async def _tell(self, feed: BatchFeed, send: Send) -> None:
        """Write new results whenever the socket takes them, and the counts now and then and last."""
        told: BatchProgress | None = None
        told_at = 0.0
        while not self._gone:
            if (lines := feed.after(self._place)) is None:
                if await self._page(send):
                    continue
                return  # It was erased.
            now = asyncio.get_running_loop().time()
            self._place += len(lines)
            ended = feed.ended
            if ended or (feed.standing != told and now - told_at > COUNTS_SECONDS):
                told, told_at = feed.standing, now
                lines.append(feed.standing.line())
            if lines:
                await send_frames(send, lines)
            if ended or feed.erased:
                return
            if not lines and await self._wait(feed) is WakeReason.IN_VAIN:
                await send_frames(send, [Framing.NDJSON.keepalive])

    async def _wait(self, feed: BatchFeed) -> WakeReason:
        self._waiting = feed.wait()
        if self._gone:  # It disconnected in between.
            return WakeReason.NO_LONGER
        timer = asyncio.get_running_loop().call_later(self._keepalive, end_wait, self._waiting, WakeReason.IN_VAIN)
        try:
            return await self._waiting
        finally:
            timer.cancel()

    async def _page(self, send: Send) -> bool:
        """Write the next results from the database; False where there are none."""
        _, results = await page_of(self._database, self._batch_id, self._place)
        if results:
            await send_frames(send, [line_of(result) for result in results])
            self._place = results[-1].place
        return bool(results)
