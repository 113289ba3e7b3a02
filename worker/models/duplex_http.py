"""Connections that read a response while the request is still being written.

A receiver may refuse a large body before it has read it, and close. The answer is then among what has arrived; a client
that reads only once it has written everything finds a connection that was reset.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import ssl
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

import anyio
import anyio.abc
import httpcore2
import httpx2

READ_BYTES = 64 << 10
_INTERIM = re.compile(rb"HTTP/1\.1 1")
"""The beginning of an answer after which another one comes."""


class TwoWayTransport(httpx2.AsyncHTTPTransport):
    """httpx2's transport for HTTP/1.1 without kept connections, over two-way connections."""

    def __init__(self) -> None:
        super().__init__()
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=httpx2.create_ssl_context(),
            max_connections=None,
            max_keepalive_connections=0,
            network_backend=_Backend(),
        )


class _Backend(httpcore2.AsyncNetworkBackend):
    def __init__(self) -> None:
        self._backend: Any = httpcore2.AnyIOBackend()  # The library says `Any` of it, too.

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  (the library's interface)
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        stream = await self._backend.connect_tcp(host, port, timeout, local_address, socket_options)
        stream._stream = _Socket(stream._stream)  # noqa: SLF001  (beneath TLS, which is begun on it later)
        return _TwoWay(stream)


class _Socket(anyio.abc.ByteStream):
    """A socket that is read to its end also when a write has failed.

    The loop closes a socket on which a write fails, with all that it has not read yet. A second descriptor keeps that.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._kept = socket.socket(fileno=os.dup(stream.extra(anyio.abc.SocketAttribute.raw_socket).fileno()))  # noqa: S610

    async def receive(self, max_bytes: int = READ_BYTES) -> bytes:
        try:
            return await self._stream.receive(max_bytes)
        except anyio.BrokenResourceError:
            with suppress(OSError):
                if left := self._kept.recv(max_bytes, socket.MSG_DONTWAIT):
                    return left
            raise

    async def send(self, item: bytes) -> None:
        await self._stream.send(item)

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        self._kept.close()
        await self._stream.aclose()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return self._stream.extra_attributes


class _TwoWay(httpcore2.AsyncNetworkStream):
    """A connection that reads while it writes."""

    def __init__(self, stream: httpcore2.AsyncNetworkStream) -> None:
        self._stream = stream
        self._reading: asyncio.Task[bytes] | None = None
        self._interim = b""

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Write it all, or as much as there is time for until an answer comes.

        Raises:
            WriteError: there is an answer, or the connection has ended; the library reads then.
        """
        if self._reading is None:
            self._reading = self._read()
        writing = asyncio.create_task(self._stream.write(buffer, timeout))
        try:
            while not writing.done():
                await asyncio.wait({writing, self._reading}, return_when=asyncio.FIRST_COMPLETED)
                if self._reading.done() and not writing.done():
                    self._take_interim(self._reading)
            await writing
        finally:
            writing.cancel()

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        """Read received bytes, or the next ones."""
        if self._interim:
            heard, self._interim = self._interim, b""
            return heard
        if self._reading is None:
            return await self._stream.read(max_bytes, timeout)
        reading, self._reading = self._reading, None
        async with asyncio.timeout(timeout):
            return await reading

    async def aclose(self) -> None:
        """Close it."""
        if self._reading is not None:
            self._reading.cancel()
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore2.AsyncNetworkStream:
        """Begin TLS on it."""
        return _TwoWay(await self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        """Return information about the connection."""
        return self._stream.get_extra_info(info)

    def _read(self) -> asyncio.Task[bytes]:
        reading = asyncio.create_task(self._stream.read(READ_BYTES))
        reading.add_done_callback(lambda done: done.cancelled() or done.exception())  # It may never be asked for it.
        return reading

    def _take_interim(self, reading: asyncio.Task[bytes]) -> None:
        """Go on after `100 Continue` and the like; stop at every other answer."""
        if reading.cancelled() or reading.exception() is not None or not _INTERIM.match(reading.result()):
            raise httpcore2.WriteError("There was an answer, or an end, before all was written.")
        self._interim += reading.result()
        self._reading = self._read()
