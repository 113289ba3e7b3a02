"""Every response names its request and says what browsers and caches may do with it, whatever part of us writes it."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from urllib.parse import urlsplit

import pytest

from agent_relay.api.console.files import ASSETS
from tests.support.client import Client
from tests.support.eventually import eventually
from tests.support.service import KEYS, Running, serving

ORIGIN = "https://app.example.com"
USER = "00000000-0000-4000-8000-000000000007"
CALLER = f"X-API-Key: {KEYS['acme']}\r\nX-User-ID: {USER}\r\n"
JSON = "Content-Type: application/json\r\n"
ASSET = next(path.name for path in ASSETS.iterdir())
ASKED = '{"agent_type": "echo", "query": "hello"}'
MOST_CONNECTIONS = 6


def request(line: str, headers: str = "", body: str = "") -> bytes:
    """Write a request that closes its connection."""
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    return f"{line} HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n{headers}{length}\r\n{body}".encode()


PREFLIGHT = f"Origin: {ORIGIN}\r\nAccess-Control-Request-Method: POST\r\n"
REQUESTS = {
    "GET": (200, request("GET /relay/api/v1/agents", CALLER)),
    "GET of the pages": (200, request("GET /relay/")),
    "a page's file": (200, request(f"GET /relay/console/assets/{ASSET}")),
    "a page's file, compressed": (200, request(f"GET /relay/console/assets/{ASSET}", "Accept-Encoding: gzip\r\n")),
    "no such file of a page": (404, request("GET /relay/console/assets/none.js")),
    "the documentation": (200, request("GET /relay/docs")),
    "its script": (200, request("GET /relay/docs/swagger-ui-bundle.js")),
    "a part of its script": (206, request("GET /relay/docs/swagger-ui-bundle.js", "Range: bytes=0-99\r\n")),
    "a part that is not there": (416, request("GET /relay/docs/swagger-ui-bundle.js", "Range: bytes=99999999-\r\n")),
    "the document": (200, request("GET /relay/openapi.json")),
    "metrics": (200, request("GET /metrics")),
    "HEAD": (200, request("HEAD /relay/api/v1/agents", CALLER)),
    "HEAD of nothing": (404, request("HEAD /nowhere")),
    "a redirect": (308, request("GET /relay")),
    "a preflight": (200, request("OPTIONS /relay/api/v1/runs", PREFLIGHT)),
    "a preflight of another origin": (400, request("OPTIONS /api/v1/runs", PREFLIGHT.replace("app", "other"))),
    "a call of another origin": (200, request("GET /api/v1/agents", f"{CALLER}Origin: {ORIGIN}\r\n")),
    "the parser's own 400": (400, b"GET / HTTP/1.1\r\nBad Name: 1\r\n\r\n"),
    "no HTTP at all": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
    "two hosts": (400, request("GET /health/live", "Host: other\r\n")),
    "JSON that is none": (400, request("POST /api/v1/runs", CALLER + JSON, "{")),
    "no key": (401, request("GET /api/v1/runs")),
    "a call that only pages may make": (401, request("POST /console/codes")),
    "404 in the API": (404, request("GET /api/v1/nowhere", CALLER)),
    "404 outside": (404, request("GET /favicon.ico")),
    "404 in an odd place": (404, request("GET /../../etc/passwd")),
    "405": (405, request("PUT /health/live")),
    "406": (406, request("POST /api/v1/agent/stream", f"{CALLER}{JSON}Accept: image/png\r\n", ASKED)),
    "408": (408, request("POST /api/v1/runs", CALLER + JSON, "{}")[:-1]),
    "413": (413, request("POST /api/v1/runs", f"{CALLER}{JSON}", " " * (1100 << 10))),
    "415": (415, request("POST /api/v1/runs", f"{CALLER}Content-Type: text/plain\r\n", "{}")),
    "422": (422, request("POST /api/v1/runs", CALLER + JSON, "{}")),
    "431": (431, request("GET /", f"X-Long: {'x' * (70 << 10)}\r\n")),
    "an upgrade": (
        404,
        request("GET /ws", "Upgrade: websocket\r\nSec-WebSocket-Key: eA==\r\n").replace(b"close", b"Upgrade"),
    ),
    "HTTP/1.0": (200, b"GET /health/live HTTP/1.0\r\n\r\n"),
}


@pytest.fixture(scope="module")
def api(
    new_database: Callable[[], str], new_redis: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """An API process behind a prefix, that pages of another origin may call, and that has little patience."""
    with serving(new_database(), new_redis(), tmp_path_factory.mktemp("service")) as service:
        api = service.api(CORS_ORIGINS=ORIGIN, ROOT_PATH="/relay", REQUEST_SECONDS="1", DRAIN_SECONDS="0.1")
        service.worker()
        yield api


def connected(api: Running, said: bytes = b"") -> socket.socket:
    """Connect, and send these bytes."""
    address = urlsplit(api.url)
    connection = socket.create_connection((address.hostname, address.port), timeout=60)
    connection.sendall(said)
    return connection


def answer(connection: socket.socket) -> bytes:
    """Read until the other side closes."""
    with closing(connection):
        try:
            return b"".join(iter(lambda: connection.recv(65_536), b""))
        except ConnectionResetError:
            return b""


def read_into(answers: list[bytes], connection: socket.socket) -> None:
    """Read an answer."""
    answers.append(answer(connection))


def check(answered: bytes, status: int) -> dict[str, str]:
    """See that a response has that status and all headers, each once; returns them."""
    head, _, _ = answered.partition(b"\r\n\r\n")
    line, *lines = head.decode("latin-1").split("\r\n")
    names = [each.partition(":")[0].lower() for each in lines]
    headers = {name: each.partition(":")[2].strip() for name, each in zip(names, lines, strict=True)}

    assert line.split()[1] == str(status), answered[:500]
    for name in ("x-request-id", "x-content-type-options", "referrer-policy", "content-security-policy"):
        assert names.count(name) == 1, (name, lines)
    assert names.count("cache-control") == 1
    assert re.fullmatch(r"[!-~]{1,128}", headers["x-request-id"])
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    return headers


@pytest.mark.parametrize(("status", "said"), REQUESTS.values(), ids=REQUESTS)
def test_a_response_has_them_whoever_writes_it(api: Running, status: int, said: bytes) -> None:
    headers = check(answer(connected(api, said)), status)

    is_public = headers.get("content-type", "").startswith(("text/css", "text/javascript", "image/svg"))
    if status >= 400 and not is_public:
        assert headers["cache-control"] == "no-store"


async def test_streams_have_them(api: Running) -> None:
    async with Client(api.url) as client:
        run = await client.ended((await client.run("hello", agent_type="echo"))["id"])
        etag = (await client.http.get(f"/runs/{run['id']}")).headers["etag"]
    caller = f"X-API-Key: {KEYS['acme']}\r\nX-User-ID: {client.user_id}\r\n"
    stream = f"GET /api/v1/runs/{run['id']}/stream"

    check(answer(connected(api, request(stream, f"{caller}Accept: text/event-stream\r\n"))), 200)
    check(answer(connected(api, request(stream, f"{caller}Accept: application/x-ndjson\r\n"))), 200)
    check(answer(connected(api, request(stream, caller).replace(b"1.1", b"1.0"))), 200)
    check(answer(connected(api, request(stream.replace("GET", "HEAD"), caller))), 200)
    check(answer(connected(api, request("POST /api/v1/agent/stream", caller + JSON, ASKED))), 200)
    check(answer(connected(api, request(f"{stream}?after=9-9", caller))), 400)
    check(answer(connected(api, request(f"GET /api/v1/runs/{run['id']}", f"{caller}If-None-Match: {etag}\r\n"))), 304)


def test_two_in_a_pipeline_have_them_each(api: Running) -> None:
    live = b"GET /health/live HTTP/1.1\r\nHost: relay\r\n\r\n"
    both = answer(connected(api, live + request("GET /nowhere")))
    first, second = re.split(rb"(?=HTTP/1\.1 404)", both)

    assert check(first, 200)["x-request-id"] != check(second, 404)["x-request-id"]


def test_a_full_process_and_one_that_stops_say_so_with_them(
    new_database: Callable[[], str], new_redis: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    with serving(new_database(), new_redis(), tmp_path_factory.mktemp("service")) as service, ExitStack() as held:
        limits = {
            "MAX_CONNECTIONS": str(MOST_CONNECTIONS),
            "MAX_OPEN_CALLS_PER_USER": "0",
            "MAX_OPEN_CALLS_PER_TENANT": "0",
        }
        api = service.api(**limits, REQUEST_SECONDS="600", DRAIN_SECONDS="1")
        service.worker()
        asked = request("POST /api/v1/agent/query", CALLER + JSON, '{"agent_type": "slow", "query": "300"}')
        waiting = [held.enter_context(closing(connected(api, asked))) for _ in range(MOST_CONNECTIONS)]
        refused = eventually(lambda: one if b" 503 " in (one := answer(connected(api, request("GET /docs")))) else b"")
        check(refused, 503)

        answers: list[bytes] = []
        readers = [threading.Thread(target=read_into, args=(answers, each)) for each in waiting]
        for reader in readers:
            reader.start()
        api.terminate()
        for reader in readers:
            reader.join()

    assert len(answers) == MOST_CONNECTIONS
    for each in answers:
        check(each, 202)  # The run goes on, and can be read.
