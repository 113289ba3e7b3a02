"""uvicorn's HTTP protocol, with an end to the head of a request, and two rules for sockets whose readers are slow.

Little waits unsent in the kernel, so that what a slow reader gets next is new, not what was new a megabyte ago. And a
reader that takes nothing at all for a while is let go; it can resume.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import Callable
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

log = logging.getLogger(__name__)

UNSENT_BYTES = 32 << 10
_NOTSENT_LOWAT = getattr(socket, "TCP_NOTSENT_LOWAT", {"linux": 25, "darwin": 0x201}.get(sys.platform))
CHECKS_A_STALL = 4
CONNECTION_LOST = "agent_relay.connection_lost"
"""Where a request's scope may hold what is called when its connection is lost."""
LONGEST_HEAD_BYTES = 64 << 10
"""The parser has no limit of its own, and takes time in the square of a header's length."""

_HEAD_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class PatientProtocol(HttpToolsProtocol):
    """One connection."""

    stalled_seconds: ClassVar[float]
    _check: asyncio.TimerHandle | None = None
    _unsent = 0
    _checks_stalled = 0
    _in_head = False
    _head_bytes = 0

    def on_message_begin(self) -> None:
        """A request begins, with its head."""
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head has ended."""
        self._in_head = False
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        """Refuse a head that does not end."""
        super().data_received(data)
        if self._in_head and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > LONGEST_HEAD_BYTES:
                self.transport.write(_HEAD_TOO_LARGE)
                self.transport.close()

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Keep the kernel's share of what waits small."""
        super().connection_made(transport)
        connection: Any = transport.get_extra_info("socket")
        if _NOTSENT_LOWAT is not None and connection is not None and connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, _NOTSENT_LOWAT, UNSENT_BYTES)

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
        """There is nobody to watch any more, and nobody who follows."""
        self._forget()
        lost: Callable[[], None] | None = getattr(self.cycle, "scope", {}).get(CONNECTION_LOST)
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


def patient_protocol(stalled_seconds: float) -> type[PatientProtocol]:
    """Make the protocol that lets go of a reader that has taken nothing for so long."""
    return type("Protocol", (PatientProtocol,), {"stalled_seconds": stalled_seconds})
