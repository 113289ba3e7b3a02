"""uvicorn's HTTP protocol, with a limit on everything that a peer may leave unfinished or send without end.

HTTP/1.0 gets bodies that it can read. A response that ends before its request does is not lost: the rest of the request
is read before the connection is closed.

Heads, trailers, chunk extensions and pipelined requests have a limit; `connections.py` has the clocks. Little waits
unsent in the kernel, so that a slow reader is sent new events, not those of a megabyte ago. A reader that takes
nothing for `STALLED_READER_SECONDS` is disconnected; it can resume.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import httptools
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from agent_relay.api.problems import Refused, respond, written
from agent_relay.api.server.connections import LINGER_SECONDS, Connections

log = logging.getLogger(__name__)

UNSENT_BYTES = 32 << 10
_NOTSENT_LOWAT = getattr(socket, "TCP_NOTSENT_LOWAT", {"linux": 25, "darwin": 0x201}.get(sys.platform))
CHECKS_A_STALL = 4
_LOST = "agent_relay.connection_lost"
"""The name in a request's scope of the functions to call when its connection is lost, and then of that fact."""
BREAK_OFF = "agent_relay.break_off"
"""The type of a message, instead of more of a body: close the connection, so that the reader sees that more was due."""
LONGEST_HEAD_BYTES = 64 << 10
"""The parser has no limit of its own, and takes time in the square of a header's length."""
LONGEST_TRAILERS_BYTES = 64 << 10
OVERHEAD_BYTES, OVERHEAD_RATIO = 64 << 10, 2
"""Limit of a chunked body on the wire, framing included, in bytes: the first, and the second for each byte of the body.
Ten thousand chunks may be of one byte; each chunk costs as much time as kilobytes in one."""
PARSED_AT_ONCE = 32 << 10
"""Bytes after which the limits are looked at, of the 256,000 that may arrive at once."""
MOST_PIPELINED = 16
LINGER_BYTES = 256 << 10
"""Bytes of a refused request that are received and dropped, so that its sender comes to read the answer."""
HEALTH = "/health/"
_HOST = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?")

_MALFORMED = Refused(400, "The request is not HTTP/1.1 as RFC 9112 defines it.", code="malformed_request")
_WRONG_VERSION = Refused(400, "The version of HTTP must be 1.1 or 1.0.", code="malformed_request")
_WRONG_HOST = Refused(400, "The request must have one Host header, of a name or an address.", code="malformed_request")
_WRONG_CODING = Refused(
    400, "The only Transfer-Encoding that is taken is chunked, with HTTP/1.1.", code="malformed_request"
)
_HEAD_TOO_LARGE = Refused(431, f"The head of the request is longer than {LONGEST_HEAD_BYTES} bytes.")
_TRAILERS_TOO_LARGE = Refused(431, f"The trailers of the request are longer than {LONGEST_TRAILERS_BYTES} bytes.")
_TOO_MUCH_FRAMING = Refused(400, "The chunks of the body have more framing than content.", code="malformed_request")
_TOO_SLOW = Refused(408, "The request arrived too slowly. Send it again over a new connection.")
_TOO_MANY = Refused(
    503,
    "This process has no room for another connection. Try again after a second.",
    code="too_many_connections",
    headers={"Retry-After": "1", "Connection": "close"},
)


def tell_of_loss(scope: Scope, lost: Callable[[], None]) -> None:
    """Call `lost` when the connection of a request is lost; at once if it is already."""
    if scope.get(_LOST) is True:
        lost()
    else:
        scope[_LOST] = lost


async def _no_room(scope: Scope, receive: Receive, send: Send) -> None:
    await respond(Request(scope), _TOO_MANY)(scope, receive, send)


class _Refuse(Exception):
    """Ends the parsing of a request."""

    def __init__(self, refused: Refused) -> None:
        super().__init__(refused.detail)
        self.refused = refused


class Cycle(RequestResponseCycle):
    """A request and its response."""

    async def send(self, message: Any) -> None:
        """Send a part of the response, unless its connection is closed.

        uvicorn notes that for the last request of a pipeline only: a response to another would be an error of ours.
        """
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if message["type"] == BREAK_OFF:
            self.transport.close()  # Bytes that were sent before arrive.
        if self.transport.is_closing():
            self.disconnected = True
            self.message_event.set()
        await super().send(message)


class LastCycle(Cycle):
    """The last request of a connection, and its response."""

    _ends_with_connection = False

    async def send(self, message: Any) -> None:
        """Send a part of the response.

        HTTP/1.0 knows no chunks: a body without a length ends with the connection. If the request has not been read to
        its end, the connection stays open for reading: the kernel would reset it, and the client lose the response.
        """
        if message["type"] == "http.response.start":
            names = {name.lower() for name, _ in message.get("headers", ())}
            if self.scope["http_version"] == "1.0" and b"content-length" not in names:
                self._ends_with_connection, self.chunked_encoding = True, False
        elif message["type"] == "http.response.body":
            if self._ends_with_connection:
                self.expected_content_length = len(message.get("body", b""))
            if self.more_body and not message.get("more_body", False):
                self.keep_alive = True  # `on_response_complete` of the protocol closes it.
        await super().send(message)


class PatientProtocol(HttpToolsProtocol):
    """One connection."""

    stalled_seconds: ClassVar[float]
    connections_of_process: ClassVar[Connections]
    _check: asyncio.TimerHandle | None = None
    _unsent = 0
    _checks_stalled = 0
    _has_room = True
    _deaf = False
    """Whether nothing more of the peer is read: its request was refused, or its connection is about to close."""
    _unread_bytes = 0
    _in_head = False
    _in_body = False
    _ended_one = False
    """Whether a request was complete in the data that was parsed last."""
    _head_bytes = 0
    _trailer_bytes = 0
    _wire_bytes = 0
    """Bytes received since the head was complete, framing included."""
    body_bytes = 0
    """Bytes of the current body that have arrived."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._held: list[bytes] = []
        """Bytes that arrived and wait for a turn."""
        self._pieces: list[bytes] = []
        """Of the body, since the parser was given data: uvicorn copies all that waits with each piece."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Keep the kernel's send buffer small, and return whether there is room."""
        super().connection_made(transport)
        connection: Any = transport.get_extra_info("socket")
        if _NOTSENT_LOWAT is not None and connection is not None and connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, _NOTSENT_LOWAT, UNSENT_BYTES)
        self._has_room = self.connections_of_process.opened(self)

    def data_received(self, data: bytes) -> None:
        """Process received bytes, in this turn of the loop or a later one; nothing more is read until then."""
        if not self._held and self.connections_of_process.turns.take():
            self._take_in(data)
            return
        if not self._held:
            self._unset_keepalive_if_required()
            self.connections_of_process.turns.later(self._take_in_held)
        self._held.append(data)
        self.transport.pause_reading()

    def _take_in_held(self) -> None:
        data = b"".join(self._held)
        self._held.clear()
        if not self.transport.is_closing():
            if not self.flow.read_paused:
                self.transport.resume_reading()
            self._take_in(data)

    def _take_in(self, data: bytes) -> None:
        """Parse received bytes, within the limits."""
        if self._deaf:
            self._unread_bytes += len(data)
            if self._unread_bytes > LINGER_BYTES:
                self.flow.pause_reading()
            return
        self._unset_keepalive_if_required()
        try:
            if len(data) <= PARSED_AT_ONCE:
                self._parse(data)
            else:
                for start in range(0, len(data), PARSED_AT_ONCE):
                    if not self._deaf:
                        self._parse(data[start : start + PARSED_AT_ONCE])
        except httptools.HttpParserUpgrade:
            self._stop_listening()  # No protocol but HTTP/1.1 is spoken here: the request is answered as it stands.
        except httptools.HttpParserError as error:
            cause = error.__context__
            self._refuse(cause.refused if isinstance(cause, _Refuse) else _MALFORMED)
        except _Refuse as refuse:
            self._refuse(refuse.refused)
        else:
            self._note_progress()

    def _parse(self, data: bytes) -> None:
        self._wire_bytes += len(data)
        self._ended_one = False
        self.parser.feed_data(data)  # pyright: ignore[reportOptionalMemberAccess]  (there until the connection ends)
        self._hand_on_pieces()
        self._check_limits(len(data))

    def _check_limits(self, received: int) -> None:
        if self._in_head or not (self._in_body or self._ended_one):  # Empty lines may stand before a head.
            self._head_bytes += received
            if self._head_bytes > LONGEST_HEAD_BYTES:
                raise _Refuse(_HEAD_TOO_LARGE)
        elif self._in_body and self._wire_bytes - OVERHEAD_RATIO * self.body_bytes > OVERHEAD_BYTES:
            raise _Refuse(_TOO_MUCH_FRAMING)

    def _check_head(self) -> None:
        """Refuse requests that the parser accepts, and proxies may read in another way."""
        version = self.parser.get_http_version()  # pyright: ignore[reportOptionalMemberAccess]
        hosts = [value for name, value in self.headers if name == b"host"]
        if version not in {"1.0", "1.1"}:
            raise _Refuse(_WRONG_VERSION)
        if len(hosts) > 1 or (not hosts and version == "1.1") or not all(map(_HOST.fullmatch, hosts)):
            raise _Refuse(_WRONG_HOST)
        codings = [value.strip().lower() for name, value in self.headers if name == b"transfer-encoding"]
        if codings and (codings != [b"chunked"] or version == "1.0"):
            raise _Refuse(_WRONG_CODING)
        if b"#" in self.url:
            raise _Refuse(_MALFORMED)
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > LONGEST_HEAD_BYTES:
            raise _Refuse(_HEAD_TOO_LARGE)  # It came at once.

    def _note_progress(self) -> None:
        if self._in_head:
            self.connections_of_process.in_head(self)
        elif self._in_body:
            self.connections_of_process.in_body(self)
        elif self.cycle is not None and not self.cycle.response_complete:  # pyright: ignore[reportUnnecessaryComparison]
            self.connections_of_process.complete(self)

    def on_message_begin(self) -> None:
        """A request begins, with its head."""
        self._in_head, self._head_bytes, self._trailer_bytes = True, 0, 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; one that comes after the body, a trailer, is counted and dropped."""
        if self._in_head:
            super().on_header(name, value)
            return
        self._trailer_bytes += len(name) + len(value)
        if self._trailer_bytes > LONGEST_TRAILERS_BYTES:
            raise _Refuse(_TRAILERS_TOO_LARGE)

    def on_headers_complete(self) -> None:
        """The head has ended."""
        self._check_head()
        self._in_head, self._in_body = False, True
        self._wire_bytes = self.body_bytes = 0
        if len(self.pipeline) >= MOST_PIPELINED:
            self._stop_listening()
        if not self._deaf:
            before = self.cycle
            super().on_headers_complete()
            if self.cycle is not before:
                self.cycle.__class__ = Cycle if self.cycle.keep_alive else LastCycle

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body: a chunk, which may be of one byte."""
        self.body_bytes += len(body)
        self._pieces.append(body)

    def _hand_on_pieces(self) -> None:
        if self._pieces:
            body = b"".join(self._pieces)
            self._pieces.clear()
            if not self._deaf:
                super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is complete."""
        self._in_body, self._ended_one, self._head_bytes = False, True, 0
        self._hand_on_pieces()
        if not self._deaf:
            super().on_message_complete()
        if isinstance(self.cycle, LastCycle) and self.cycle.response_complete:
            self.transport.close()

    def on_response_complete(self) -> None:
        """A response is complete: the connection is kept alive, or closed."""
        super().on_response_complete()
        is_last = isinstance(self.cycle, LastCycle) and self.cycle.response_complete  # Not one in the pipeline.
        if is_last and not self.transport.is_closing():
            self.transport.write_eof()  # The rest of the request is read and dropped; `connections.py` limits that.
        if not self.pipeline and not self._in_head and not self._in_body and not self._deaf:
            self.connections_of_process.idle(self)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGIApp) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Begin to answer; a connection that there is no room for is answered about the service's health only."""
        if not self._has_room and not cycle.scope["path"].removeprefix(cycle.scope["root_path"]).startswith(HEALTH):
            self.connections_of_process.count("crowded")
            app = _no_room
        super()._start_asgi_task(cycle, app)  # pyright: ignore[reportArgumentType]

    def _stop_listening(self) -> None:
        """Answer the requests that have arrived, and close."""
        self._deaf = True
        if self.cycle is not None:  # pyright: ignore[reportUnnecessaryComparison]
            self.cycle.keep_alive = False

    def _refuse(self, refused: Refused) -> None:
        """Answer a request that the application does not see, and close once the peer can have read the answer."""
        if self.transport.is_closing():
            return
        self._deaf = True
        self.connections_of_process.count(refused.code)
        if (cycle := self.cycle) is not None and not cycle.response_complete:  # pyright: ignore[reportUnnecessaryComparison]
            if self.pipeline or not self._in_body:
                self._stop_listening()  # The peer would take the refusal for the answer to an earlier request.
                return
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started:
                self.transport.close()
                return
        self.connections_of_process.complete(self)  # Nothing of it is waited for: it is refused once.
        self.transport.write(written(refused, self._path()))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.abort)

    def _path(self) -> str:
        return self.scope.get("path", "/") if self.scope else "/"

    @property
    def is_reading(self) -> bool:
        """Whether it is the peer that delays the body."""
        return not self.flow.read_paused and not self.cycle.waiting_for_100_continue

    @property
    def is_answered(self) -> bool:
        """Whether the response is complete although the request is not."""
        return self.cycle.response_complete

    def drop(self) -> None:
        """Close at once, without an answer."""
        self.transport.abort()

    def time_out(self) -> None:
        """Answer 408 where a request has begun and nothing has been answered, and close."""
        if self.scope is None:  # pyright: ignore[reportUnnecessaryComparison]  (nothing was sent)
            self.transport.close()
        else:
            self._refuse(_TOO_SLOW)

    def pause_writing(self) -> None:
        """The reader is behind: watch whether it takes anything."""
        super().pause_writing()
        self._checks_stalled = 0
        self._unsent = self.transport.get_write_buffer_size()
        self._watch()

    def resume_writing(self) -> None:
        """The reader has caught up."""
        super().resume_writing()
        self._forget()

    def connection_lost(self, exc: Exception | None) -> None:
        """There is no connection to watch any more, and no reader."""
        self._forget()
        self.connections_of_process.closed(self)
        if self.connections_of_process.turns.take():
            self._lose(exc)
        else:
            self.connections_of_process.turns.later(partial(self._lose, exc))

    def _lose(self, exc: Exception | None) -> None:
        scope: Scope = getattr(self.cycle, "scope", {})
        lost: Callable[[], None] | None = scope.get(_LOST)
        scope[_LOST] = True
        if lost is not None:
            lost()
        super().connection_lost(exc)

    def _watch(self) -> None:
        self._check = self.loop.call_later(self.stalled_seconds / CHECKS_A_STALL, self._look)

    def _forget(self) -> None:
        if self._check is not None:
            self._check.cancel()
            self._check = None

    def _look(self) -> None:
        unsent = self.transport.get_write_buffer_size()
        self._checks_stalled = self._checks_stalled + 1 if unsent == self._unsent else 0
        self._unsent = unsent
        if self._checks_stalled >= CHECKS_A_STALL:
            log.info("reader.stalled address=%s unsent_bytes=%d", self.client, unsent)
            self.transport.abort()
        else:
            self._watch()


def patient_protocol(stalled_seconds: float, connections: Connections) -> type[PatientProtocol]:
    """Make the protocol of a process's connections; a reader that takes nothing for this time is disconnected."""
    return type(
        "Protocol", (PatientProtocol,), {"stalled_seconds": stalled_seconds, "connections_of_process": connections}
    )
