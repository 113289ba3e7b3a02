"""The link between one process and one server: a TCP proxy that can cut it, hold it up, lose a reply, or say no."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

PIECE_BYTES = 64 << 10


class Link:
    """Every connection that one process has to one server, which answers on a Unix socket or on a port of this host."""

    def __init__(self, server: Path | int) -> None:
        self._server = server
        self._listener: asyncio.Server | None = None
        self._transports: set[asyncio.WriteTransport] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self._doomed: list[bytes] = []
        self._says: bytes | None = None
        self._serving: set[asyncio.Task[None]] = set()
        self.lost_replies: list[bytes] = []
        """The requests of which the reply was lost, by the word that marked them."""

    @property
    def port(self) -> int:
        """Where the process finds the server."""
        assert self._listener is not None
        return self._listener.sockets[0].getsockname()[1]

    async def open(self) -> None:
        """Take connections."""

        def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            serving = asyncio.create_task(self._serve(reader, writer))
            self._serving.add(serving)
            serving.add_done_callback(self._serving.discard)

        self._listener = await asyncio.start_server(take, "127.0.0.1", 0)

    async def close(self) -> None:
        """Take no more, and cut those there are."""
        assert self._listener is not None
        self._listener.close()
        self._flows.set()
        self.cut()
        await asyncio.gather(*self._serving)

    def cut(self) -> int:
        """Cut every connection in both directions; returns how many."""
        cut = len(self._transports) // 2
        for transport in list(self._transports):
            transport.abort()
        return cut

    async def hold_up(self, seconds: float) -> None:
        """Let nothing through for so long, and keep all connections open."""
        self._flows.clear()
        await asyncio.sleep(seconds)
        self._flows.set()

    def lose_reply(self, word: bytes) -> None:
        """Have the next request with this word done, and the connection cut before the server can say so."""
        self._doomed.append(word)

    def say(self, error: bytes | None) -> None:
        """Answer each command to Redis with this error from now on, and have none of them done; None to stop it."""
        self._says = error and b"-" + error + b"\r\n"

    def forgive(self) -> None:
        """Lose no more replies."""
        self._doomed.clear()

    def lead_to(self, server: Path | int) -> None:
        """Lead new connections to another server; the old ones stay where they are."""
        self._server = server

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if isinstance(self._server, int):
                to_server = await asyncio.open_connection("127.0.0.1", self._server)
            else:
                to_server = await asyncio.open_unix_connection(str(self._server))
        except OSError:
            writer.transport.abort()
            return
        ends = (writer.transport, to_server[1].transport)
        self._transports.update(ends)
        doom: list[bytes] = []
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(reader, to_server[1], doom=doom, back=writer))
                both.create_task(self._pump(to_server[0], writer, doom=doom))
        finally:
            for end in ends:
                end.abort()
                self._transports.discard(end)

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        doom: list[bytes],
        back: asyncio.StreamWriter | None = None,
    ) -> None:
        """Carry what comes, of requests as long as the link does not answer them itself; these have a way back."""
        rest = b""
        with suppress(ConnectionError):
            while data := await reader.read(PIECE_BYTES):
                await self._flows.wait()
                if back is not None and self._says is not None:
                    commands, rest = _commands(rest + data)
                    back.write(self._says * commands)
                    continue
                data, rest = rest + data, b""
                if back is not None:
                    doom += [self._doomed.pop(place) for place in self._marked(data)]
                elif doom:
                    self.lost_replies += doom
                    break
                writer.write(data)
                await writer.drain()
        writer.transport.abort()

    def _marked(self, data: bytes) -> list[int]:
        return [place for place, word in enumerate(self._doomed) if word in data][:1]


def _commands(data: bytes) -> tuple[int, bytes]:
    """Count the whole commands to Redis, and return what is left of the data; see the protocol's specification."""
    count = 0
    while end := _end_of_command(data):
        count, data = count + 1, data[end:]
    return count, data


def _end_of_command(data: bytes) -> int:
    """Say where the first command ends; 0 where that has not come yet."""
    head, line, _ = data.partition(b"\r\n")
    if not line:
        return 0
    end = len(head) + 2
    for _ in range(int(head.removeprefix(b"*"))):
        head, line, _ = data[end:].partition(b"\r\n")
        if not line:
            return 0
        end += len(head) + 2 + int(head.removeprefix(b"$")) + 2
        if end > len(data):
            return 0
    return end
