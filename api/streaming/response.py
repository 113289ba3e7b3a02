"""A stream to one reader, pulled by its socket: a slow reader gets fewer, later texts and delays no other."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from agent_relay.api.requests.rate_limits import OpenCall
from agent_relay.api.server.http_protocol import BREAK_OFF, tell_of_loss
from agent_relay.api.streaming.relay import Relay
from agent_relay.api.streaming.run_feed import Event, RunFeed, Text
from agent_relay.api.streaming.wakeups import WakeReason, end_wait
from agent_relay.shared.away import REDIS_ERRORS
from agent_relay.shared.event_log import Id
from agent_relay.shared.rows import RunRow

log = logging.getLogger(__name__)

PIECE_BYTES = 64 << 10
_LAST_WORDS = {"done", "pause"}
"""The event that a whole stream ends with."""

_READER = "agent_relay.reader"
_OF_THE_HANDLING = (_READER, "fastapi_", "starlette.")
"""Names in the scope of a request that only its handling needs begin so."""


class Reader(Protocol):
    """A reader of a response without a length."""

    @property
    def media_type(self) -> str:
        """The `Content-Type` of the stream."""
        ...

    def lose(self) -> None:
        """The reader is gone; called by the connection, so that no task need wait for it."""
        ...

    async def write(self, send: Send) -> None:
        """Write him the whole body, whenever the socket takes it."""
        ...


class Stream(Response):
    """The head of a response; the reader gets the rest later."""

    def __init__(self, reader: Reader, headers: Mapping[str, str]) -> None:
        super().__init__(media_type=reader.media_type)
        self._reader = reader
        del self.headers["content-length"]
        self.headers.update({"Cache-Control": "no-store", "X-Accel-Buffering": "no", **headers})

    async def __call__(self, scope: Scope, _: Receive, send: Send) -> None:
        """Send the head, and leave the rest to the reader, for when all that made this response is gone.

        What stands between the server and this costs as much memory as the rest of an idle stream.
        """
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        scope[_READER] = self._reader


async def write_rest(scope: Scope, send: Send) -> None:
    """Write the rest of a stream, if the response is one, once all code that handled the request has returned.

    The objects of that code in the scope, such as exit stacks, are dropped: they would cost as much memory as the rest
    of an idle stream. The server's own stay, and the route that was found, for callers of this application.
    """
    reader: Reader | None = scope.get(_READER)
    if reader is None:
        return
    for name in [name for name in scope if name.startswith(_OF_THE_HANDLING)]:
        del scope[name]
    tell_of_loss(scope, reader.lose)
    await reader.write(send)


class Renderer(Protocol):
    """Writes the events of a run for one reader, in one protocol. It may keep what that reader has been sent.

    Of the text, and of each part of the reasoning, only the newest state is rendered. After the event
    `message_started`, the text before it is void. The event `pause` is rendered only where the stream ends with it,
    because the run waits for answers.
    """

    @property
    def media_type(self) -> str:
        """The `Content-Type` of the stream."""
        ...

    @property
    def opening(self) -> bytes:
        """The beginning of a stream, if any."""
        ...

    @property
    def keepalive(self) -> bytes:
        """The keep-alive."""
        ...

    def render(self, item: Event | Text) -> bytes:
        """Write an event, or the text as it is now; nothing where the protocol has no word for it.

        Raises:
            CannotRender: the stream has to be cut there.
        """
        ...


class CannotRender(Exception):
    """The next event does not fit the events that the reader has; a new stream from the start can show it."""


class RunTeller:
    """Tells one reader a run, from a cursor on."""

    __slots__ = (
        "_began_at",
        "_complete",
        "_cursor",
        "_ended",
        "_following",
        "_lost",
        "_relay",
        "_renderer",
        "_until_waiting",
        "_waiting",
    )

    def __init__(
        self, relay: Relay, run: RunRow, cursor: Id, renderer: Renderer, *, until_waiting: bool = False
    ) -> None:
        self._until_waiting = until_waiting
        self._renderer = renderer
        self._relay = relay
        self._following = relay.follow(run)
        self._cursor = self._began_at = cursor
        self._lost = self._ended = False
        self._complete = False
        """Whether the reader has received the end of the run, or the beginning of its wait."""
        self._waiting: asyncio.Future[WakeReason] | None = None

    def lose(self) -> None:
        """The reader is gone; called by the connection, so that no task need wait for it."""
        self._lost = True
        if self._waiting is not None:
            end_wait(self._waiting, WakeReason.NO_LONGER)

    def end(self) -> None:
        """Tell no more, because the key of the call was revoked."""
        self._ended = True
        if self._waiting is not None:
            end_wait(self._waiting, WakeReason.NO_LONGER)

    async def tell(self, send: Send) -> bool:
        """Write new events whenever the socket takes them, until the run ends, the service stops or the reader is gone.

        An error of the service ends it early. Returns whether the reader has received the end of the run, or its wait.
        """
        async with self._following as feed:
            frames = [self._renderer.opening] if self._renderer.opening else []
            while not self._relay.closing and not self._lost and not self._ended:
                try:
                    forgotten = await self._relay.recall(feed, self._cursor) if feed.has_forgotten(self._cursor) else []
                except REDIS_ERRORS as away:
                    log.warning("stream.cut run_id=%s error=%r", feed.run_id, away)
                    break
                before = self._cursor
                items = feed.after(self._cursor, forgotten)
                frames += [self._render(item) for item in items if self._tells(item, feed)]
                if frames:
                    await send_frames(send, frames)
                    frames = []
                    if self._complete:
                        break
                    continue
                if self._cursor != before:
                    continue
                if feed.ended or (self._until_waiting and feed.waits and feed.top != self._began_at):
                    break
                self._waiting = feed.wait()
                if await self._waiting is WakeReason.IN_VAIN:
                    frames = [self._renderer.keepalive]
        return self._complete

    def _tells(self, item: Event | Text, feed: RunFeed) -> bool:
        """Tell a pause only where the stream ends there: as the last word of a run that waits."""
        if isinstance(item, Event) and item.name == "pause":
            self._cursor = item.id
            return self._until_waiting and feed.waits and item.id == feed.top
        return True

    def _render(self, item: Event | Text) -> bytes:
        if self._ended:
            return b""
        self._cursor = item.id
        self._complete = isinstance(item, Event) and item.name in _LAST_WORDS
        try:
            return self._renderer.render(item)
        except CannotRender:
            log.info("stream.cannot_render cursor=%s", item.id)
            self._ended = True
            return b""


class Follower(RunTeller):
    """One reader of a run's stream."""

    __slots__ = ("_breaks_off", "_call", "_hung_up")

    def __init__(
        self,
        relay: Relay,
        call: OpenCall,
        run: RunRow,
        cursor: Id,
        renderer: Renderer,
        *,
        until_waiting: bool = False,
        breaks_off: bool = False,
        hung_up: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Follow a run for one reader.

        With `breaks_off`, a stream that is cut breaks its connection: its readers take every other end for the run's.
        """
        super().__init__(relay, run, cursor, renderer, until_waiting=until_waiting)
        self._breaks_off = breaks_off
        self._call = call
        call.revoked = self.end
        self._hung_up = hung_up

    @property
    def media_type(self) -> str:
        """The `Content-Type` of the stream."""
        return self._renderer.media_type

    async def write(self, send: Send) -> None:
        """Write the stream; trouble of the service cuts it, without `done`."""
        try:
            complete = await self.tell(send)
            if complete or not self._breaks_off:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            else:
                await send({"type": BREAK_OFF})
        finally:
            self._call.close()
        if self._lost and self._hung_up is not None:
            await self._hung_up()


async def send_frames(send: Send, frames: list[bytes]) -> None:
    """Write frames: small ones together, large ones in pieces, of which one waits for a socket that takes nothing."""
    if sum(map(len, frames)) <= PIECE_BYTES:
        frames = [b"".join(frames)]
    for frame in frames:  # A large one is never copied: followers share it.
        for start in range(0, len(frame), PIECE_BYTES):
            await send({"type": "http.response.body", "body": frame[start : start + PIECE_BYTES], "more_body": True})
