"""A stream to one follower, pulled by its socket: a slow reader gets fewer, later texts and keeps nobody waiting."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable, Mapping
from typing import Any, Protocol

from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from agent_relay.api.requests.rate_limits import OpenCall
from agent_relay.api.server.http_protocol import tell_of_loss
from agent_relay.api.streaming.relay import Relay
from agent_relay.api.streaming.run_feed import Event, RunFeed, Text, WakeReason, end_wait
from agent_relay.api.streaming.sse_and_ndjson import Framing
from agent_relay.shared.away import REDIS_ERRORS
from agent_relay.shared.event_log import REASONING, Id
from agent_relay.shared.rows import RunRow
from agent_relay.shared.text_delta import Growth, growth

log = logging.getLogger(__name__)

PIECE_BYTES = 64 << 10

_READER = "agent_relay.reader"
_OF_THE_HANDLING = (_READER, "fastapi_", "starlette.")
"""What only the handling of a request needs has names in its scope that begin so."""


class Reader(Protocol):
    """Somebody who reads what has no length."""

    framing: Framing

    def lose(self) -> None:
        """He is gone; told by the connection, so that no task need listen for it."""
        ...

    async def write(self, send: Send) -> None:
        """Write him the whole body, whenever the socket takes it."""
        ...


class Stream(Response):
    """The head of an answer to a reader, who is written the rest."""

    def __init__(self, reader: Reader, headers: Mapping[str, str]) -> None:
        super().__init__(media_type=reader.framing.value)
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
    """Write what is left of a stream, if the response is one, once everything that handled the request has returned.

    What these need of the scope, such as exit stacks, is dropped: it would cost as much memory as the rest of an idle
    stream. What the server has put there stays, and the route that was found: whoever called this application may look.
    """
    reader: Reader | None = scope.get(_READER)
    if reader is None:
        return
    for name in [name for name in scope if name.startswith(_OF_THE_HANDLING)]:
        del scope[name]
    tell_of_loss(scope, reader.lose)
    await reader.write(send)


class Follower:
    """One reader of a run's stream."""

    __slots__ = (
        "_base",
        "_call",
        "_cursor",
        "_deltas",
        "_ended",
        "_following",
        "_hung_up",
        "_lost",
        "_message_id",
        "_relay",
        "_thought",
        "_until_waiting",
        "_waiting",
        "framing",
    )

    def __init__(
        self,
        relay: Relay,
        call: OpenCall,
        run: RunRow,
        cursor: Id,
        framing: Framing,
        *,
        deltas: bool,
        until_waiting: bool = False,
        hung_up: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._until_waiting = until_waiting
        self.framing = framing
        self._relay = relay
        self._call = call
        call.revoked = self.end
        self._following = relay.follow(run)
        self._message_id = str(run.message_id)
        self._cursor = cursor
        self._deltas = deltas
        self._hung_up = hung_up
        self._lost = self._ended = False
        self._waiting: asyncio.Future[WakeReason] | None = None
        self._base: tuple[Id, str, int] | None = None
        """The text that the reader has, where it is sent growth."""
        self._thought: tuple[Id, str, int] | None = None
        """The part of the reasoning that the reader has been sent last."""

    def lose(self) -> None:
        """The reader is gone; told by the connection, so that no task need listen for it."""
        self._lost = True
        if self._waiting is not None:
            end_wait(self._waiting, WakeReason.NO_LONGER)

    def end(self) -> None:
        """End the stream without `done`, because its key was revoked."""
        self._ended = True
        if self._waiting is not None:
            end_wait(self._waiting, WakeReason.NO_LONGER)

    async def write(self, send: Send) -> None:
        """Write what is new whenever the socket takes it, until the run ends, the service stops or the reader is gone.

        Trouble of the service cuts the stream, without `done`.
        """
        try:
            await self._write(send)
        finally:
            self._call.close()
        if self._lost and self._hung_up is not None:
            await self._hung_up()

    async def _write(self, send: Send) -> None:
        async with self._following as feed:
            frames = [self.framing.opening] if self.framing.opening else []
            while not self._relay.closing and not self._lost and not self._ended:
                try:
                    forgotten = await self._relay.recall(feed, self._cursor) if feed.has_forgotten(self._cursor) else []
                except REDIS_ERRORS as away:
                    log.warning("stream.cut run_id=%s error=%r", feed.run_id, away)
                    break
                before = self._cursor
                frames += [self._frame(item) for item in feed.after(self._cursor, forgotten) if self._tells(item, feed)]
                if frames:
                    await send_frames(send, frames)
                    frames = []
                    continue
                if self._cursor != before:
                    continue
                if feed.ended or (self._until_waiting and feed.waits):
                    break
                self._waiting = feed.wait()
                if await self._waiting is WakeReason.IN_VAIN:
                    frames = [self.framing.keepalive]
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _tells(self, item: Event | Text, feed: RunFeed) -> bool:
        """Tell a pause only where the stream ends there: as the last word of a run that waits."""
        if isinstance(item, Event) and item.name == "pause":
            self._cursor = item.id
            return self._until_waiting and feed.waits and item.id == feed.top
        return True

    def _frame(self, item: Event | Text) -> bytes:
        """Write an item, or take what another follower wrote; and note that this one has it."""
        self._cursor = item.id
        if isinstance(item, Event):
            if item.name == "gap":
                self._base = self._thought = None
            name = "done" if item.name == "pause" else item.name
            return self._shared(item, self.framing, lambda: (name, item.fields))
        sent = (item.id, item.whole, item.part) if self._deltas else None
        if item.part:
            base, self._thought = self._thought, sent
        else:
            base, self._base = self._base, sent
        if base is None or base[0].attempt != item.id.attempt or base[2] != item.part:
            return self._shared(item, self.framing, lambda: self._text(item, {"token": item.whole}))
        if base[0] == item.before and item.growth is not None:
            growth_of_all = item.growth
            return self._shared(item, (self.framing, "growth"), lambda: self._text(item, _grown(growth_of_all)))
        grown = growth(base[1], item.whole)
        return self.framing.frame(item.id, *self._text(item, {"token": item.whole} if grown is None else _grown(grown)))

    def _text(self, item: Text, said: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        if item.part:
            return REASONING, {"message_id": self._message_id, "part": item.part, **said}
        return "text_delta", {"message_id": self._message_id, **said}

    def _shared(self, item: Event | Text, kind: Hashable, say: Callable[[], tuple[str, Mapping[str, Any]]]) -> bytes:
        frame = item.frames.get(kind)
        if frame is None:
            frame = item.frames[kind] = self.framing.frame(item.id, *say())
        return frame


def _grown(grown: Growth) -> dict[str, Any]:
    return {"drop": grown.drop, "append": grown.append}


async def send_frames(send: Send, frames: list[bytes]) -> None:
    """Write frames: small ones together, large ones in pieces, of which one waits for a socket that takes nothing."""
    if sum(map(len, frames)) <= PIECE_BYTES:
        frames = [b"".join(frames)]
    for frame in frames:  # A large one is never copied: followers share it.
        for start in range(0, len(frame), PIECE_BYTES):
            await send({"type": "http.response.body", "body": frame[start : start + PIECE_BYTES], "more_body": True})
