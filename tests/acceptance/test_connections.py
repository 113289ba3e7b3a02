"""Peers that leave something unfinished, or send without end, against a real API process."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import struct
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import ExitStack, suppress

import httpx
import psutil
import pytest

from tests.support.client import Client
from tests.support.eventually import eventually
from tests.support.service import KEYS, Running, Service, serving

FILES = 400
"""The limit of open files of the process under test."""
POST = b"POST /api/v1/runs HTTP/1.1\r\nHost: relay\r\nX-API-Key: key-of-acme\r\n"
USER = b"X-User-ID: 00000000-0000-4000-8000-000000000001\r\nContent-Type: application/json\r\n"
UNFINISHED = {
    "nothing": b"",
    "half a request line": b"GET /heal",
    "half a head": b"GET /health/live HTTP/1.1\r\nHost: relay\r\nX-Long: ",
    "half a body": POST + USER + b'Content-Length: 5000\r\n\r\n{"query": ',
    "half a chunk": POST + USER + b'Transfer-Encoding: chunked\r\n\r\n20\r\n{"query": ',
    "half a chunk extension": POST + USER + b"Transfer-Encoding: chunked\r\n\r\n20;name=val",
    "half the trailers": POST + USER + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX-One: 1\r\n",
    "half a batch": b"POST /api/v1/batches HTTP/1.1\r\nHost: relay\r\nX-API-Key: key-of-acme\r\n"
    + USER
    + b'Content-Length: 500000\r\n\r\n{"agent_type": "echo", "items": [{"custom_id": "1", ',
    "a second request's half head": b"GET /health/live HTTP/1.1\r\nHost: relay\r\n\r\nGET /health/live HTTP/1.1\r\nHo",
    "a body after its answer": b"POST /nowhere HTTP/1.1\r\nHost: relay\r\nContent-Length: 100000\r\n\r\nxx",
}


def _open(api: Running, said: bytes = b"") -> socket.socket:
    port = int(api.url.rpartition(":")[2])
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    if said:
        connection.sendall(said)
    return connection


def _read_all(connection: socket.socket) -> bytes:
    received = b""
    while True:
        try:
            some = connection.recv(65_536)
        except ConnectionResetError:
            return received
        if not some:
            return received
        received += some


def _problem(answer: bytes) -> dict[str, object]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head, answer
    assert b"x-request-id" in head.lower(), answer
    return json.loads(body)


@pytest.fixture(scope="module")
def api(
    new_database: Callable[[], str], new_redis: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """An API process that is quick to give up."""
    with serving(new_database(), new_redis(), tmp_path_factory.mktemp("service")) as service:
        yield service.api(REQUEST_SECONDS="1")


@pytest.mark.parametrize("said", UNFINISHED.values(), ids=UNFINISHED)
def test_what_is_left_unfinished_ends(api: Running, said: bytes) -> None:
    with _open(api, said) as connection:
        _read_all(connection)
        assert httpx.get(f"{api.url}/health/live").is_success


@pytest.mark.parametrize("phase", ["half a head", "half a body", "half the trailers"])
def test_a_request_that_arrives_too_slowly_is_answered_with_408(api: Running, phase: str) -> None:
    with _open(api, UNFINISHED[phase]) as connection:
        answer = _read_all(connection)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert _problem(answer)["code"] == "request_timeout"


def test_a_head_that_drips_does_not_live_longer(api: Running) -> None:
    with _open(api, b"GET / HTTP/1.1\r\n") as connection:
        connection.settimeout(0.2)
        for _ in range(200):
            try:
                connection.sendall(b"X-A: b\r\n")
                if b"408" in connection.recv(100):
                    return
            except TimeoutError:
                continue
            except OSError:
                return
    raise AssertionError("The head was still read after 40 seconds.")


async def test_a_slow_body_that_moves_is_read(api: Running) -> None:
    async def body() -> AsyncGenerator[bytes]:
        yield b'{"agent_type": "echo", "query": "'
        for _ in range(8):
            yield b"x" * 2000
            await asyncio.sleep(0.5)
        yield b'"}'

    async with Client(api.url) as client:
        headers = {"Content-Type": "application/json"}
        response = await client.http.post("/runs", content=body(), headers=headers)
    assert response.status_code == httpx.codes.UNPROCESSABLE_ENTITY  # No worker has registered an agent.


def test_endless_trailers_are_refused_and_never_become_headers(api: Running) -> None:
    with _open(api, POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n") as connection:
        before = psutil.Process(api.process.pid).memory_info().rss
        line = b"X-User-ID: 00000000-0000-4000-8000-000000000001\r\n" * 1000
        with suppress(OSError):
            for _ in range(400):
                connection.sendall(line)
        answer = _read_all(connection)
    assert not answer or answer.startswith((b"HTTP/1.1 431", b"HTTP/1.1 400"))
    assert psutil.Process(api.process.pid).memory_info().rss - before < 16 << 20


def test_a_key_in_a_trailer_opens_nothing(api: Running) -> None:
    request = (
        b"POST /api/v1/threads HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n"
        + USER
        + b'Transfer-Encoding: chunked\r\n\r\n15\r\n{"agent_type":"echo"}\r\n0\r\nX-API-Key: key-of-acme\r\n\r\n'
    )
    with _open(api, request) as connection:
        assert _read_all(connection).startswith(b"HTTP/1.1 401")


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        (POST + USER + b"Transfer-Encoding: chunked\r\n\r\n5;", b"a=b;" * 4096),
        (POST + USER + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX-One: ", b"x" * 16_384),
        (b"GET /", b"x" * 16_384),
        (b"GET / HTTP/1.1\r\nX: ", b"x" * 16_384),
        (b"", b"\r\n" * 8192),
        (b"GET /health/live HTTP/1.1\r\nHost: relay\r\n\r\n", b"\r\n" * 8192),
    ],
    ids=["chunk extension", "trailer", "request line", "header", "empty lines", "lines between"],
)
def test_nothing_is_read_without_end(api: Running, begin: bytes, more: bytes) -> None:
    with _open(api, begin) as connection:
        before = psutil.Process(api.process.pid).memory_info().rss
        sent = 0
        with suppress(OSError):
            while sent < 64 << 20:
                connection.sendall(more)
                sent += len(more)
        assert sent < 64 << 20
    assert psutil.Process(api.process.pid).memory_info().rss - before < 16 << 20


def test_a_body_of_many_chunks_of_a_byte_is_refused(api: Running) -> None:
    chunked = POST + USER + b"Transfer-Encoding: chunked\r\n\r\n"
    with _open(api, chunked + b"1\r\nx\r\n" * 40_000) as connection:
        answer = _read_all(connection)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert _problem(answer)["detail"] == "The chunks of the body have more framing than content."
    with _open(api, chunked + b"1\r\n{\r\n" * 10_000 + b"0\r\n\r\n") as connection:
        answer = _read_all(connection)
    assert _problem(answer)["code"] == "malformed_json"


def test_pipelined_requests_are_answered_up_to_a_limit(api: Running) -> None:
    with _open(api, b"GET /health/live HTTP/1.1\r\nHost: relay\r\n\r\n" * 1000) as connection:
        answer = _read_all(connection)
    assert 1 <= answer.count(b"HTTP/1.1 200 OK") <= 20
    assert answer.count(b"HTTP/1.1") == answer.count(b"HTTP/1.1 200 OK")
    assert b"connection: close" in answer


REFUSED = {
    "malformed": b"GET / HTTP/1.1\r\nA b: c\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "a long head": b"GET / HTTP/1.1\r\nHost: relay\r\nX: " + b"x" * 70_000,
    "chunks of nothing": POST + USER + b"Transfer-Encoding: chunked\r\n\r\n5;" + b"a=b;" * 40_000,
    "empty lines": b"\r\n" * 40_000,
}


@pytest.mark.parametrize("said", REFUSED.values(), ids=REFUSED)
def test_the_clocks_go_on_after_a_request_that_was_refused(api: Running, said: bytes) -> None:
    before = api.log.read_text().count(" ERROR ")
    with _open(api) as refused:
        with suppress(OSError):
            refused.sendall(said)
        for half in (UNFINISHED["half a head"], UNFINISHED["half a body"], UNFINISHED["half a head"]):
            with _open(api, half) as connection:  # Each takes as long as the refused one would be waited for.
                assert _read_all(connection).startswith(b"HTTP/1.1 408 ")
    assert api.log.read_text().count(" ERROR ") == before, api.last_words()


@pytest.mark.parametrize("requests", [1, 2, 10])
@pytest.mark.parametrize("ending", ["close", "reset"])
def test_a_reader_that_goes_away_is_no_error(api: Running, requests: int, ending: str) -> None:
    """It asks for more than it reads, so that a response waits; each error would be two tracebacks in the log."""
    before = api.log.read_text().count(" ERROR ")
    for _ in range(10):
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", int(api.url.rpartition(":")[2])))
            connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: relay\r\n\r\n" * requests)
            assert connection.recv(1024).startswith(b"HTTP/1.1 200 OK")
            if ending == "reset":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    for _ in range(3):
        assert httpx.get(f"{api.url}/health/live").status_code == 200
    assert api.log.read_text().count(" ERROR ") == before, api.last_words()


@pytest.mark.parametrize("upgrade", [b"websocket", b"h2c", b"nonsense"])
def test_an_upgrade_is_answered_as_the_request_it_is(api: Running, upgrade: bytes) -> None:
    head = b"GET /health/live HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade\r\nUpgrade: " + upgrade + b"\r\n\r\n"
    with _open(api, head + b"\x00\xff" * 100) as connection:
        answer = _read_all(connection)
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert b"connection: close" in answer


@pytest.mark.parametrize("head", [b"NONSENSE\r\n\r\n", b"GET / HTTP/1.1\r\nA b: c\r\n\r\n", b"\x16\x03\x01\x02\x00"])
def test_what_is_not_http_is_a_problem_document(api: Running, head: bytes) -> None:
    with _open(api, head) as connection:
        answer = _read_all(connection)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert _problem(answer)["code"] == "malformed_request"


def test_a_head_over_the_limit_is_a_problem_document(api: Running) -> None:
    with _open(api, b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000) as connection:
        answer = _read_all(connection)
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert _problem(answer)["code"] == "head_too_large"


def test_refusals_do_not_flood_the_log(service: Service) -> None:
    api = service.api()
    for _ in range(300):
        with _open(api, b"NONSENSE\r\n\r\n"):
            pass
    eventually(lambda: "malformed_request=" in api.log.read_text())
    assert api.log.read_text().count("connections.refused") < 10


@pytest.fixture
def crowded(service: Service) -> Iterator[tuple[Running, list[socket.socket]]]:
    """An API process with few files, and more connections that say nothing than it has files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    running = service.begin("tests.support.few_files", str(FILES), PORT="0", REQUEST_SECONDS="600")
    running.url = running.await_line(r"Uvicorn running on (http://\S+)")[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    try:
        with ExitStack() as stack:
            yield running, [stack.enter_context(_open(running)) for _ in range(FILES * 3)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_silent_connections_keep_nobody_out(crowded: tuple[Running, list[socket.socket]]) -> None:
    api, _ = crowded
    headers = {"X-API-Key": KEYS["acme"], "X-User-ID": "00000000-0000-4000-8000-000000000001"}
    for _ in range(20):
        began = time.monotonic()
        assert httpx.get(f"{api.url}/health/live", timeout=10).is_success
        assert httpx.get(f"{api.url}/api/v1/agents", headers=headers, timeout=10).is_success
        assert time.monotonic() - began < 10
    eventually(lambda: "silent=" in api.log.read_text())
    assert "Too many open files" not in api.log.read_text()


def test_a_full_process_refuses_with_a_reason_and_answers_about_its_health(service: Service) -> None:
    api = service.api(MAX_CONNECTIONS="3", REQUEST_SECONDS="600")
    waiting = POST + USER + b"Content-Length: 5000\r\n\r\n"
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(_open(api, waiting + b"{"))
        with _open(api, b"GET /api/v1/agents HTTP/1.1\r\nHost: relay\r\n\r\n") as connection:
            answer = _read_all(connection)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1" in answer.lower()
        assert _problem(answer)["code"] == "too_many_connections"
        assert httpx.get(f"{api.url}/health/live").is_success
    eventually(lambda: httpx.get(f"{api.url}/api/v1/agents").status_code == 401)
