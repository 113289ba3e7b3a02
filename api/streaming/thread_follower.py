"""A stream that goes from run to run of a thread, and ends with the thread."""

from __future__ import annotations

import asyncio
import logging
from uuid import UUID

from starlette.types import Send

from agent_relay.api.requests.rate_limits import OpenCall
from agent_relay.api.streaming.native_renderer import NativeRenderer
from agent_relay.api.streaming.relay import Relay
from agent_relay.api.streaming.response import RunTeller, send_frames
from agent_relay.api.streaming.sse_and_ndjson import Framing
from agent_relay.api.streaming.threads import RunOfThread, ThreadFeed, ThreadPlace
from agent_relay.api.streaming.wakeups import WakeReason, end_wait
from agent_relay.shared.away import skip_if_database_away
from agent_relay.shared.errors import NotFound
from agent_relay.shared.event_log import BEFORE_ALL, Id

log = logging.getLogger(__name__)


class ThreadFollower:
    """One reader of a thread's stream. It is told one run whole before the next."""

    __slots__ = (
        "_call",
        "_deltas",
        "_ended",
        "_first",
        "_framing",
        "_lost",
        "_relay",
        "_teller",
        "_thread_id",
        "_told",
        "_waiting",
    )

    def __init__(
        self,
        relay: Relay,
        call: OpenCall,
        thread_id: UUID,
        framing: Framing,
        *,
        deltas: bool,
        told: int,
        first: tuple[RunOfThread, Id] | None = None,
    ) -> None:
        """Follow a thread from after the run at the place `told` on; `first` is a run that was told up to an id."""
        self._relay = relay
        self._call = call
        call.revoked = self.end
        self._thread_id = thread_id
        self._framing = framing
        self._deltas = deltas
        self._told = told
        self._first = first
        self._lost = self._ended = False
        self._teller: RunTeller | None = None
        self._waiting: asyncio.Future[WakeReason] | None = None

    @property
    def media_type(self) -> str:
        """The `Content-Type` of the stream."""
        return self._framing.value

    def lose(self) -> None:
        """The reader is gone; told by the connection."""
        self._lost = True
        self._stop()

    def end(self) -> None:
        """End the stream, because its key was revoked."""
        self._ended = True
        self._stop()

    def _stop(self) -> None:
        if self._teller is not None:
            self._teller.end()
        if self._waiting is not None:
            end_wait(self._waiting, WakeReason.NO_LONGER)

    @property
    def _goes_on(self) -> bool:
        return not (self._relay.closing or self._lost or self._ended)

    async def write(self, send: Send) -> None:
        """Write what is new until the thread is deleted, the service stops or the reader is gone.

        Trouble of the service cuts the stream.
        """
        try:
            if self._framing.opening:
                await send_frames(send, [self._framing.opening])
            with self._relay.threads.follow(self._thread_id) as feed:
                while (teller := await self._next(feed, send)) is not None and await teller.tell(send):
                    self._teller = None
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._call.close()

    async def _next(self, feed: ThreadFeed, send: Send) -> RunTeller | None:
        """Wait for the next run, and begin with it; None where the stream ends."""
        if self._first is not None:
            first, self._first = self._first, None
            return self._begin(*first)
        while self._goes_on:
            self._waiting = waiting = feed.wait_after(self._told)  # Before the look: news may come meanwhile.
            run: RunOfThread | None = None
            with skip_if_database_away(log, "stream.cut thread_id=%s", self._thread_id) as looking:
                try:
                    run = await self._relay.threads.next_run(self._thread_id, self._told)
                except NotFound:
                    gone = ThreadPlace(self._told + 1, BEFORE_ALL)
                    await send_frames(send, [self._framing.frame(gone, "thread_deleted", {})])
                    return None
            if run is not None or looking.error is not None:
                end_wait(waiting, WakeReason.NO_LONGER)
                return None if run is None else self._begin(run, BEFORE_ALL)
            while self._goes_on and await waiting is WakeReason.IN_VAIN:
                await send_frames(send, [self._framing.keepalive])
                self._waiting = waiting = feed.wait_after(self._told)
        return None

    def _begin(self, run: RunOfThread, cursor: Id) -> RunTeller | None:
        """Begin to tell a run; nobody but this function holds its row, which is large."""
        if not self._goes_on:
            return None
        self._told = run.seq
        renderer = NativeRenderer(run, self._framing, deltas=self._deltas, in_thread=run.place)
        self._teller = RunTeller(self._relay, run, cursor, renderer)
        return self._teller
