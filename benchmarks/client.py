"""A client that costs little: requests over raw sockets, lines as they come, and the bytes that came."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

from tests.support.service import KEYS

USER_ID = str(uuid4())
LONGEST_LINE_BYTES = 1 << 24


class Response:
    """An answer whose headers have come."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.wire_bytes = 0
        self._reader = reader
        self._writer = writer

    async def lines(self) -> AsyncIterator[bytes]:
        """Yield the lines that are JSON objects, until the body ends; chunk sizes lie between."""
        while line := await self._reader.readline():
            self.wire_bytes += len(line)
            if line.startswith(b"{"):
                yield line
            elif line == b"0\r\n":
                return

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the events, parsed."""
        async for line in self.lines():
            yield json.loads(line)

    async def drain(self) -> None:
        """Read to the end and keep nothing."""
        async for _ in self.lines():
            pass

    def close(self) -> None:
        """Hang up."""
        self._writer.close()


async def request(port: int, method: str, path: str, body: Any = None) -> Response:
    """Send a request on a connection of its own, as NDJSON, and read the headers of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=LONGEST_LINE_BYTES)
    writer.write(message(method, path, body))
    response = Response(reader, writer)
    status = await reader.readline()
    assert status.split()[1].startswith(b"2"), status + await reader.read(4096)
    while (await reader.readline()).strip():
        pass
    return response


def message(method: str, path: str, body: Any = None) -> bytes:
    """Write a request."""
    data = b"" if body is None else json.dumps(body).encode()
    head = [
        f"{method} {path} HTTP/1.1",
        "Host: 127.0.0.1",
        "Accept: application/x-ndjson",
        "Connection: close",
        f"X-API-Key: {KEYS['acme']}",
        f"X-User-ID: {USER_ID}",
        *(["Content-Type: application/json", f"Content-Length: {len(data)}"] if data else []),
    ]
    return "\r\n".join([*head, "", ""]).encode() + data


async def post_run(port: int, query: str, agent_type: str) -> str:
    """Post a run; returns its id."""
    return await post(port, "/api/v1/runs", {"query": query, "agent_type": agent_type})


async def post(port: int, path: str, body: dict[str, Any]) -> str:
    """Create something; returns its id."""
    response = await request(port, "POST", path, body)
    created = [line async for line in response.lines()]
    response.close()
    return json.loads(created[0])["id"]
