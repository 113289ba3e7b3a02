"""`python -m tests.attacks.attacker NAME PORT SEED AMOUNT SECONDS`: attack a server, and print what it answered.

Each attack is a coroutine; AMOUNT is how many requests, connections or clients it makes. It ends after SECONDS at the
latest, and prints a JSON object of counts: of statuses, of codes of problems, and of connections that ended.
The process has the lowest priority, as if it ran elsewhere: it takes no time from the server. Standard library only.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any
from uuid import UUID

KEY = b"key-of-acme"
HOST = "127.0.0.1"
PATIENCE_SECONDS = 20
MOST_KEPT = 5
"""Requests that were answered with 5xx and are printed."""
UNFINISHED_SECONDS = 0.5

PATHS = (
    "/api/v1/runs",
    "/api/v1/threads",
    "/api/v1/batches",
    "/api/v1/agents",
    "/api/v1/agent/query",
    "/api/v1/agent/stream",
    "/api/v1/webhooks/deliveries",
    "/api/v1/webhooks/secret",
    "/api/v1/operator/dead-letters",
    "/api/v1/operator/keys",
    "/api/v1/runs/{id}",
    "/api/v1/runs/{id}/stream",
    "/api/v1/runs/{id}/cancel",
    "/api/v1/runs/{id}/stream-ticket",
    "/api/v1/threads/{id}",
    "/api/v1/threads/{id}/messages",
    "/api/v1/batches/{id}",
    "/api/v1/batches/{id}/results",
    "/api/v1/batches/{id}/items",
    "/health/live",
    "/health/ready",
    "/metrics",
    "/docs",
    "/openapi.json",
    "/nowhere",
)
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "PROPFIND", "get", "G\u00cbT", "X" * 90)
NAMES = ("cursor", "limit", "wait", "status", "after", "follow", "deltas", "ticket", "order", "metadata", "nonsense")
ODD_TEXTS = (
    "",
    "0",
    "-1",
    "1_0",
    "+5",
    "1e999",
    "NaN",
    "null",
    "true",
    "9" * 400,
    "%00",
    "%ff%fe",
    "%ed%a0%80",
    "%0d%0aX-Injected:%201",
    "../../etc/passwd",
    "' OR 1=1 --",
    "{{7*7}}",
    "${jndi:ldap://127.0.0.1/a}",
    "a" * 5000,
    "eyJhbGciOiJub25lIn0",
    "AAAAAAAAAAAAAAAAWzFd",
    "[]",
    "&&==",
    "1-1",
    "99999999999999999999-1",
)
ODD_HEADERS = (
    b"X-API-Key: " + KEY,
    b"X-API-Key:",
    b"X-API-Key: \xff\xfe\x00",
    b"X-API-Key: " + b"k" * 9000,
    b"X-User-ID: not-a-uuid",
    b"X-User-ID: {00000000-0000-4000-8000-000000000001}",
    b"Content-Type: text/plain",
    b"Content-Type: application/json; charset=utf-16",
    b"Content-Encoding: gzip",
    b"Content-Encoding: br",
    b"Accept: \xe2\x98\x83/*;q=NaN",
    b"Accept: " + b"a/b," * 2000,
    b"Accept-Encoding: gzip;q=-1",
    b"Idempotency-Key: " + b"\xc3\x28" * 20,
    b"Idempotency-Key: " + b"i" * 4000,
    b"Last-Event-ID: 99999999999999999999999-1",
    b"Last-Event-ID: \x01",
    b"If-None-Match: " + b'"x",' * 500,
    b"Range: bytes=0-,-1",
    b"Expect: 100-continue",
    b"Expect: nonsense",
    b"Prefer: wait=1e99, respond-async, respond-async",
    b"Transfer-Encoding: chunked, identity",
    b"Content-Length: -1",
    b"Content-Length: 18446744073709551616",
    b"Origin: null",
    b"Cookie: " + b"a=b;" * 3000,
    b"X-Forwarded-For: " + b"1," * 500,
    b"traceparent: 00-zz-zz-zz",
    b"X-Request-ID: \xf0\x9f\x92\xa9",
    b"Connection: close, upgrade, keep-alive",
    b"Host: second",
    b" Folded: 1",
    b"No colon",
    b"Sp ace: 1",
    b"Nul: a\x00b",
)


class Told:
    """What the server answered."""

    def __init__(self) -> None:
        self.counts = Counter[str]()
        self.kept: list[str] = []

    def note(self, status: int, request: bytes, body: bytes) -> None:
        """Count an answer; keep what asked for a 5xx."""
        self.counts[str(status)] += 1
        if status >= 500:
            with suppress(ValueError):
                self.counts[f"{status} {json.loads(body)['code']}"] += 1
            if len(self.kept) < MOST_KEPT:
                self.kept.append(f"{status} {body[:300]!r} for {request[:600]!r}")


class Connection:
    """A connection that is opened anew whenever the server has closed it."""

    def __init__(self, port: int, told: Told) -> None:
        self._port = port
        self._told = told
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, request: bytes, *, is_head: bool = False) -> None:
        """Send a request and read the answer, or see the connection end."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                if self._streams is None:
                    self._streams = await asyncio.open_connection(HOST, self._port, limit=1 << 20)
                reader, writer = self._streams
                writer.write(request)
                await self._read(reader, request, is_head=is_head)
        except (OSError, ValueError, asyncio.IncompleteReadError):
            self._told.counts["ended"] += 1
            self.close()

    async def _read(self, reader: asyncio.StreamReader, request: bytes, *, is_head: bool) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        status = int(head.split(maxsplit=2)[1])
        if status == 100:
            return await self._read(reader, request, is_head=is_head)
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
        body = b""
        if is_head or status in {204, 304}:
            pass
        elif b"content-length" in fields:
            body = await reader.readexactly(int(fields[b"content-length"]))
        elif fields.get(b"transfer-encoding") == b"chunked":
            while size := int(await reader.readline(), 16):
                body = (await reader.readexactly(size + 2))[:-2]
            await reader.readline()
        else:
            body = await reader.read()
            self.close()
        self._told.note(status, request, body)
        if fields.get(b"connection") == b"close":
            self.close()
        return None

    def close(self) -> None:
        """Hang up."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def uuid_of(choice: random.Random) -> str:
    """Make a UUID that the seed decides."""
    return str(UUID(int=choice.getrandbits(128), version=4))


def value_of(choice: random.Random, depth: int = 0) -> str:
    """Make a JSON value, or something near to one."""
    kind = choice.randrange(13 if depth < 4 else 8)
    match kind:
        case 0:
            return choice.choice(("1e308", "-1e308", "1e309", "9" * choice.choice((20, 310, 5000)), "-0", "1E+2", "01"))
        case 1:
            return choice.choice(("NaN", "Infinity", "nul", "True", "'x'", "undefined", "0x10", ".5", "5."))
        case 2:
            return json.dumps("".join(chr(choice.randrange(0x20, 0xD7FF)) for _ in range(choice.randrange(60))))
        case 3:
            return '"' + choice.choice(("\\ud800", "\\u0000", "\\udc00\\ud800", "\\x", "\\u12", "\t", "\\")) + '"'
        case 4:
            return choice.choice(("null", "true", "false", "0", '""'))
        case 5:
            return json.dumps(choice.choice(ODD_TEXTS))
        case 6:
            return json.dumps(uuid_of(choice))
        case 7:
            return json.dumps("x" * choice.choice((1, 1000, 60_000)))
        case 8 | 9:
            return "[" + ",".join(value_of(choice, depth + 1) for _ in range(choice.randrange(6))) + "]"
        case 10:
            deep = choice.choice((30, 63, 64, 65, 2000, 100_000))
            return "[" * deep + "]" * choice.choice((deep, deep - 1, 0))
        case 11:
            return "[" + ",".join(["1e308"] * choice.choice((100, 1999, 2001, 50_000))) + "]"
        case _:
            names = (json.dumps(choice.choice((*NAMES, "", "a\u0000", "a" * 300))) for _ in range(choice.randrange(5)))
            return "{" + ",".join(f"{name}:{value_of(choice, depth + 1)}" for name in names) + "}"


def body_of(choice: random.Random) -> bytes:
    """Make a body: nonsense, nearly right, or right but for one value."""
    match choice.randrange(8):
        case 0:
            return choice.randbytes(choice.choice((0, 1, 100, 5000)))
        case 1:
            return value_of(choice).encode(errors="surrogatepass")
        case 2:
            return value_of(choice).encode(choice.choice(("utf-16", "utf-32", "utf-8-sig")), errors="replace")
        case 3:
            items = ",".join(
                f'{{"custom_id":{value_of(choice, 3)},"query":{value_of(choice, 3)}}}'
                for _ in range(choice.randrange(20))
            )
            return f'{{"agent_type":"echo","items":[{items}]}}'.encode(errors="surrogatepass")
        case 4:
            return b'{"agent_type":"echo","query":"a","query":"b"}'
        case _:
            given = {
                "agent_type": choice.choice(('"echo"', '"nobody"', value_of(choice, 3))),
                "query": choice.choice(('"hello"', value_of(choice, 2))),
                choice.choice(("metadata", "thread_id", "webhook_url", "deadline_seconds", "on_disconnect")): value_of(
                    choice
                ),
            }
            return ("{" + ",".join(f'"{name}":{value}' for name, value in given.items()) + "}").encode(
                errors="surrogatepass"
            )


def hostile(choice: random.Random) -> tuple[bytes, bool]:
    """Make a request that no honest client sends; says, too, whether it is a HEAD."""
    if choice.random() < 0.03:
        return choice.randbytes(choice.choice((10, 400, 9000))) + b"\r\n\r\n", False
    method = choice.choice(METHODS) if choice.random() < 0.2 else choice.choice(("GET", "POST", "POST"))
    path = choice.choice(PATHS)
    ids = (uuid_of(choice), uuid_of(choice).upper(), "0", "%2e%2e", "{" + uuid_of(choice) + "}", "a" * 3000, "%00")
    path = path.replace("{id}", choice.choice(ids[:1] * 4 + ids))
    if choice.random() < 0.4:
        given = (f"{choice.choice(NAMES)}={choice.choice(ODD_TEXTS)}" for _ in range(choice.randrange(1, 4)))
        path += "?" + "&".join(given)
    if choice.random() < 0.03:
        path = choice.choice(("*", "//" + path, "http://elsewhere" + path, path + "#x", path + "%", path + "\u2028"))
    version = choice.choice(("HTTP/1.1",) * 30 + ("HTTP/1.0", "HTTP/2.0", "HTTP/1.12", "HTP/1.1", ""))
    lines = [f"{method} {path} {version}".encode(), b"Host: relay"]
    if choice.random() < 0.85:
        lines += [b"X-API-Key: " + (KEY if choice.random() < 0.9 else choice.randbytes(30).hex().encode())]
        lines += [f"X-User-ID: {uuid_of(choice)}".encode()]
    if choice.random() < 0.5:
        lines += choice.sample(ODD_HEADERS, choice.randrange(1, 3))
    if choice.random() < 0.01:
        lines += [b"X-Many-%d: x" % number for number in range(choice.choice((200, 3000)))]
    body = b""
    if method == "POST" or choice.random() < 0.1:
        body = body_of(choice)
        lines.append(b"Content-Type: application/json")
        if choice.random() < 0.1:
            body = (
                b"%x\r\n" % len(body)
                + body
                + choice.choice((b"\r\n0\r\n\r\n", b"\r\n0\r\nX-API-Key: a\r\n\r\n", b"0\r\n\r\n"))
            )
            lines.append(b"Transfer-Encoding: chunked")
        else:
            lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join([*lines, b"", body]), method == "HEAD"


async def requests(port: int, seed: int, amount: int, told: Told) -> None:
    """Send hostile requests, over 40 connections at once."""
    choice = random.Random(seed)
    left = iter(range(amount))

    async def one(number: int) -> None:
        connection = Connection(port, told)
        for _ in left:
            request, is_head = hostile(choice)
            await connection.send(request, is_head=is_head)
        connection.close()
        told.counts["connections"] += number >= 0

    await asyncio.gather(*(one(number) for number in range(40)))


def _post(path: str, *more: bytes) -> bytes:
    user = b"X-User-ID: 00000000-0000-4000-8000-00000000000a"
    head = [f"POST {path} HTTP/1.1".encode(), b"Host: relay", b"X-API-Key: " + KEY, user]
    return b"\r\n".join([*head, b"Content-Type: application/json", *more, b"", b""])


HALVES = (
    b"",
    b"GET /heal",
    b"GET /health/live HTTP/1.1\r\nHost: relay\r\nX-Long: ",
    _post("/api/v1/runs", b"Transfer-Encoding: chunked") + b"20;name=val",
    _post("/api/v1/runs", b"Content-Length: 5000") + b'{"query": ',
    _post("/api/v1/batches", b"Content-Length: 500000") + b'{"agent_type": "echo", "items": [{"custom_id": "1", ',
    _post("/api/v1/runs", b"Transfer-Encoding: chunked") + b"2\r\n{}\r\n0\r\nX-One: 1\r\n",
    b"GET /health/live HTTP/1.1\r\nHost: relay\r\n\r\nGET /health/live HTTP/1.1\r\nHo",
)


async def slow(port: int, seed: int, amount: int, told: Told) -> None:
    """Keep connections open on which something is unfinished; some go on, a byte every other second."""
    choice = random.Random(seed)

    async def one(said: bytes) -> None:
        while True:
            try:
                reader, writer = await asyncio.open_connection(HOST, port)
                writer.write(said)
                told.counts["opened"] += 1
                while True:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(2):
                            if not await reader.read(65_536):
                                break
                    if said and choice.random() < 0.5:
                        writer.write(b"x")
            except OSError:
                told.counts["refused"] += 1
            else:
                told.counts["ended"] += 1
                writer.close()
            await asyncio.sleep(UNFINISHED_SECONDS)

    await asyncio.gather(*(one(HALVES[number % len(HALVES)]) for number in range(amount)))


async def _pour(port: int, begin: bytes, more: bytes, told: Told) -> None:
    """Send the same for ever, on one connection after the other."""
    while True:
        with suppress(OSError):
            reader, writer = await asyncio.open_connection(HOST, port)
            told.counts["opened"] += 1
            try:
                writer.write(begin)
                while not reader.at_eof():
                    writer.write(more)
                    told.counts["bytes"] += len(more)
                    await writer.drain()
            finally:
                writer.transport.abort()
        await asyncio.sleep(0.05)


async def trailers(port: int, _seed: int, amount: int, told: Told) -> None:
    """Send what has no end: trailers, chunk extensions, heads, empty lines."""
    chunked = _post("/api/v1/runs", b"Transfer-Encoding: chunked")
    endless = (
        (chunked + b"0\r\n", b"X-User-ID: 00000000-0000-4000-8000-000000000001\r\n" * 300),
        (chunked + b"0\r\nX-One: ", b"x" * 16_384),
        (chunked + b"5;", b"a=b;" * 4096),
        (b"GET / HTTP/1.1\r\nX: ", b"x" * 16_384),
        (b"", b"\r\n" * 8192),
        (chunked, b"1\r\nx\r\n" * 2000),
    )
    await asyncio.gather(*(_pour(port, *endless[number % len(endless)], told) for number in range(amount)))


def _bombs() -> list[tuple[str, bytes]]:
    numbers = ",".join(["1e308"] * 1990)
    row = f'{{"custom_id":"%d","query":"x","metadata":{{"numbers":[{",".join(["1e308"] * 1900)}]}}}}'
    mebi = (1 << 20) - 200
    return [
        ("/api/v1/runs", f'{{"agent_type":"echo","query":"x","metadata":{{"n":[{numbers}]}}}}'.encode()),
        ("/api/v1/threads", f'{{"agent_type":"echo","metadata":{{"n":[{numbers}]}}}}'.encode()),
        ("/api/v1/runs", b'{"agent_type":"echo","query":"x","metadata":{"n":[' + b"1e308," * (mebi // 6) + b"1]}}"),
        ("/api/v1/runs", b"[" * mebi),
        ("/api/v1/runs", b"{}," * (mebi // 3)),
        ("/api/v1/runs", b'""' * (mebi // 2)),
        ("/api/v1/runs", b'{"a":' * (mebi // 5)),
        ("/api/v1/runs", b'{"agent_type":"echo","query":' + b"9" * mebi + b"}"),
        ("/api/v1/runs", b'{"agent_type":"echo","query":"' + b"\\u0041" * (mebi // 6) + b'"}'),
        ("/api/v1/runs", b'{"agent_type":"echo","query":"' + b"\\ud83d\\ude00" * (mebi // 12) + b'"}'),
        ("/api/v1/runs", b'{"agent_type":"echo","query":"' + b'\\"' * (mebi // 2) + b'"}'),
        ("/api/v1/runs", b" " * mebi),
        ("/api/v1/runs", b'{"agent_type":"echo","query":"' + "€".encode() * (mebi // 3) + b'"}'),
        (
            "/api/v1/batches",
            f'{{"agent_type":"echo","items":[{",".join(row % number for number in range(25))}]}}'.encode(),
        ),
        ("/api/v1/batches", b'{"agent_type":"echo","items":[' + b"[]," * (mebi // 3) + b"[]]}"),
        ("/api/v1/batches", b'{"agent_type":"echo","items":[' + b'{"custom_id":"1"},' * (mebi // 18) + b"{}]}"),
    ]


async def bombs(port: int, seed: int, amount: int, told: Told) -> None:
    """Send bodies that cost more than they weigh, then list what came of them; so many clients at once."""
    choice = random.Random(seed)
    bodies = _bombs()
    user = b"X-User-ID: 00000000-0000-4000-8000-00000000000b"
    lists = [
        b"\r\n".join([b"GET " + path + b"?limit=100 HTTP/1.1", b"Host: relay", b"X-API-Key: " + KEY, user, b"", b""])
        for path in (b"/api/v1/runs", b"/api/v1/threads", b"/api/v1/batches")
    ]

    async def one() -> None:
        connection = Connection(port, told)
        while True:
            path, body = choice.choice(bodies)
            head = [f"POST {path} HTTP/1.1".encode(), b"Host: relay", b"X-API-Key: " + KEY, user]
            head += [b"Content-Type: application/json", b"Content-Length: %d" % len(body), b"", b""]
            await connection.send(b"\r\n".join(head) + body)
            await connection.send(choice.choice(lists))

    await asyncio.gather(*(one() for _ in range(amount)))


async def readers(port: int, seed: int, amount: int, told: Told) -> None:
    """Ask for long lists, and do not read them; the lists are made first."""
    choice = random.Random(seed)
    user = b"X-User-ID: 00000000-0000-4000-8000-00000000000c"
    filling = Connection(port, told)
    for _ in range(60):
        body = json.dumps({"agent_type": "echo", "query": "x" * choice.choice((1000, 900_000))}).encode()
        head = [b"POST /api/v1/runs HTTP/1.1", b"Host: relay", b"X-API-Key: " + KEY, user]
        head += [b"Content-Type: application/json", b"Content-Length: %d" % len(body), b"", b""]
        await filling.send(b"\r\n".join(head) + body)
    filling.close()
    ask = b"\r\n".join([b"GET /api/v1/runs?limit=100 HTTP/1.1", b"Host: relay", b"X-API-Key: " + KEY, user, b"", b""])

    async def one() -> None:
        while True:
            with suppress(OSError):
                reader, writer = await asyncio.open_connection(HOST, port, limit=1024)
                writer.write(ask * 10)
                told.counts["opened"] += 1
                with suppress(TimeoutError):
                    async with asyncio.timeout(30):
                        while await reader.read(64):
                            await asyncio.sleep(2)
                writer.transport.abort()
            await asyncio.sleep(0.2)

    await asyncio.gather(*(one() for _ in range(amount)))


async def uploads(port: int, _seed: int, amount: int, told: Told) -> None:
    """Upload batches of 60 MB, nearly to their ends, and leave them so."""
    item = b'{"custom_id":"%d","query":"' + b"x" * 100_000 + b'"},'

    async def one(number: int) -> None:
        user = f"X-User-ID: 00000000-0000-4000-8000-0000000001{number:02d}".encode()
        head = [b"POST /api/v1/batches HTTP/1.1", b"Host: relay", b"X-API-Key: " + KEY, user]
        head += [b"Content-Type: application/json", b"Content-Length: 60000000", b"", b""]
        while True:
            with suppress(OSError):
                reader, writer = await asyncio.open_connection(HOST, port)
                told.counts["opened"] += 1
                try:
                    writer.write(b"\r\n".join(head) + b'{"agent_type":"echo","items":[')
                    for index in range(580):
                        writer.write(item % index)
                        told.counts["bytes"] += len(item)
                        await writer.drain()
                        if reader.at_eof() or len(getattr(reader, "_buffer", b"")):
                            break
                    answer = await reader.read(65_536)
                    if answer:
                        told.note(int(answer.split(maxsplit=2)[1]), head[0], answer.partition(b"\r\n\r\n")[2])
                finally:
                    writer.transport.abort()
            await asyncio.sleep(0.2)

    await asyncio.gather(*(one(number) for number in range(amount)))


async def metrics(port: int, _seed: int, amount: int, told: Told) -> None:
    """Ask for the metrics, each client as often as it is answered."""
    await _ask(port, amount, told, b"GET /metrics HTTP/1.1\r\nHost: relay\r\n\r\n")


async def wrong_keys(port: int, _seed: int, amount: int, told: Told) -> None:
    """Try keys, each client as often as it is answered."""
    head = b"GET /api/v1/runs HTTP/1.1\r\nHost: relay\r\nX-User-ID: 00000000-0000-4000-8000-00000000000d\r\n"
    await _ask(port, amount, told, head + b"X-API-Key: wrong\r\n\r\n")


async def unknown_paths(port: int, _seed: int, amount: int, told: Told) -> None:
    """Ask for what is not there, each client as often as it is answered."""
    await _ask(port, amount, told, b"GET /wp-login.php?a=b HTTP/1.1\r\nHost: relay\r\n\r\n")


async def one_user(port: int, _seed: int, amount: int, told: Told) -> None:
    """Ask as one user, each client as often as it is answered."""
    body = b'{"agent_type":"echo","query":"hello"}'
    head = (
        b"POST /api/v1/runs HTTP/1.1\r\nHost: relay\r\nX-User-ID: 00000000-0000-4000-8000-00000000000e\r\nX-API-Key: "
    )
    head += KEY + b"\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    await _ask(port, amount, told, head + body)


async def _ask(port: int, clients: int, told: Told, request: bytes) -> None:
    async def one() -> None:
        connection = Connection(port, told)
        while True:
            await connection.send(request)

    await asyncio.gather(*(one() for _ in range(clients)))


async def floods(port: int, seed: int, amount: int, told: Told) -> None:
    """Pipeline requests, upgrade to websockets and to HTTP/2, and close at once; so many clients."""
    choice = random.Random(seed)
    get = b"GET /health/live HTTP/1.1\r\nHost: relay\r\n"
    said = (
        get.replace(b"health/live", b"docs") + b"\r\n",
        get + b"\r\n",
        get + b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: AAAA\r\n\r\n" + b"\x81\xff" * 8000,
        get + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAAA\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0" * 5000,
        _post("/api/v1/runs", b"Content-Length: 2") + b"{}",
        b"\x16\x03\x01\x02\x00" * 3000,
    )

    async def one() -> None:
        while True:
            with suppress(OSError):
                reader, writer = await asyncio.open_connection(HOST, port)
                told.counts["opened"] += 1
                writer.write(choice.choice(said) * choice.choice((1, 16, 500)))
                if choice.random() < 0.8:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(5):
                            while some := await reader.read(65_536):
                                told.counts["answers"] += some.count(b"HTTP/1.1 ")
                                told.counts["500"] += some.count(b"HTTP/1.1 500")
                writer.transport.abort()

    await asyncio.gather(*(one() for _ in range(amount)))


ATTACKS: dict[str, Callable[[int, int, int, Told], Awaitable[None]]] = {
    attack.__name__: attack
    for attack in (
        requests,
        slow,
        trailers,
        bombs,
        readers,
        uploads,
        metrics,
        wrong_keys,
        unknown_paths,
        floods,
        one_user,
    )
}


async def main(name: str, port: int, seed: int, amount: int, seconds: float) -> None:
    """Attack for so long, and print what came of it."""
    told = Told()
    began = time.monotonic()
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await ATTACKS[name](port, seed, amount, told)
    said: dict[str, Any] = {"seconds": time.monotonic() - began, "counts": told.counts, "kept": told.kept}
    print(json.dumps(said), flush=True)
    os._exit(0)  # What is still open is of no interest.


if __name__ == "__main__":
    os.nice(19)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    attack, server, seed, amount, seconds = sys.argv[1:]
    asyncio.run(main(attack, int(server), int(seed), int(amount), float(seconds)))
