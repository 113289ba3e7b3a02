"""HTTP as clients, proxies and polyfills speak it: old versions, early answers, prefixes, odd but legal headers."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import AsyncGenerator, Generator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx
import pytest
from fastapi.routing import APIRoute
from pydantic import ValidationError

from agent_relay.api.app import create_app
from agent_relay.api.console import operations
from agent_relay.api.console import routes as console
from agent_relay.api.protocols.openai import chat, conversations, files, models, responses
from agent_relay.api.protocols.openai.router import PREFIX
from agent_relay.api.server.root_path import FIRST_STEPS, FIRST_TWO_STEPS
from agent_relay.shared.settings import Settings
from tests.support.client import Client
from tests.support.problems import problem_of
from tests.support.service import KEYS, Running, Service

BOM = b"\xef\xbb\xbf"
MEGABYTES = 8 << 20
"""More than the sockets between two processes hold."""


@pytest.fixture
def connection(shared_api: Running) -> Generator[socket.socket]:
    """A connection to the API, and nothing that knows HTTP."""
    address = urlsplit(shared_api.url)
    with closing(socket.create_connection((address.hostname, address.port), timeout=30)) as connection:
        yield connection


def head(client: Client, line: str, **headers: str) -> bytes:
    """Write the head of a request."""
    given = {"Host": "relay", "X-API-Key": KEYS["acme"], "X-User-ID": client.user_id, **headers}
    lines = [line, *(f"{name.replace('_', '-')}: {value}" for name, value in given.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def rest_of(connection: socket.socket) -> bytes:
    """Read until the other side closes."""
    return b"".join(iter(lambda: connection.recv(65536), b""))


async def test_http_1_0_gets_a_stream_without_chunks(client: Client, connection: socket.socket) -> None:
    run = await client.run("hello there", agent_type="echo")
    connection.sendall(head(client, f"GET /api/v1/runs/{run['id']}/stream HTTP/1.0", Connection="keep-alive"))
    header, _, body = rest_of(connection).partition(b"\r\n\r\n")

    assert b"transfer-encoding" not in header.lower()
    assert b"connection: close" in header.lower()
    events = [json.loads(line) for line in body.splitlines() if line]
    assert events[-1] == {"id": events[-1]["id"], "event": "done", "status": "succeeded"}


@pytest.mark.parametrize("path", ["/health/live", "/api/v1/agents", "/api/v1/runs/none", "/docs"])
async def test_http_1_0_gets_everything_else_with_its_length(
    client: Client, connection: socket.socket, path: str
) -> None:
    connection.sendall(head(client, f"GET {path} HTTP/1.0"))
    header, _, body = rest_of(connection).partition(b"\r\n\r\n")

    assert f"content-length: {len(body)}".encode() in header.lower()


async def test_http_1_0_may_ask_for_the_head_of_a_stream(client: Client, connection: socket.socket) -> None:
    run = await client.run("hello there", agent_type="echo")
    connection.sendall(head(client, f"HEAD /api/v1/runs/{run['id']}/stream HTTP/1.0"))
    answer = rest_of(connection)

    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"\r\n\r\n")
    assert b"transfer-encoding" not in answer.lower()


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize(
    ("path", "key", "status"),
    [("runs", "acme", 413), ("runs", None, 401), ("nowhere", "acme", 404), ("agents", "acme", 405)],
)
async def test_an_answer_that_comes_early_is_not_lost(
    client: Client, connection: socket.socket, version: str, path: str, key: str | None, status: int
) -> None:
    headers = {"Connection": "close", "Content-Type": "application/json", "Content-Length": str(MEGABYTES)}
    if key is None:
        headers["X-API-Key"] = "wrong"
    connection.sendall(head(client, f"POST /api/v1/{path} HTTP/{version}", **headers))
    for _ in range(MEGABYTES >> 20):  # Whoever reads only once all is sent, still reads an answer.
        connection.sendall(b" " * (1 << 20))

    assert rest_of(connection).startswith(f"HTTP/1.1 {status} ".encode())


async def test_an_answer_that_comes_early_leaves_the_connection_usable(
    client: Client, connection: socket.socket
) -> None:
    headers = {"Content-Type": "application/json", "Content-Length": str(MEGABYTES)}
    connection.sendall(head(client, "POST /api/v1/runs HTTP/1.1", **headers) + b" " * MEGABYTES)
    connection.sendall(head(client, "GET /api/v1/agents HTTP/1.1", Connection="close"))
    answers = rest_of(connection)

    assert answers.startswith(b"HTTP/1.1 413 ")
    assert b"HTTP/1.1 200 OK" in answers


async def test_chunks_that_are_too_many_are_answered_while_they_come(client: Client, connection: socket.socket) -> None:
    headers = {"Connection": "close", "Content-Type": "application/json", "Transfer-Encoding": "chunked"}
    connection.sendall(head(client, "POST /api/v1/runs HTTP/1.1", **headers))
    for _ in range(MEGABYTES >> 20):
        connection.sendall(b"100000\r\n" + b" " * (1 << 20) + b"\r\n")

    assert rest_of(connection).startswith(b"HTTP/1.1 413 ")


async def test_a_head_that_is_too_long_is_answered_while_it_comes(connection: socket.socket) -> None:
    connection.sendall(b"GET /api/v1/runs HTTP/1.1\r\nX-Anything: ")
    for _ in range(4):
        connection.sendall(b"x" * 50_000)

    assert rest_of(connection).startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize("path", ["runs", "nowhere"])
async def test_who_waits_for_100_is_answered(client: Client, connection: socket.socket, path: str) -> None:
    body = b'{"agent_type": "echo", "query": "hello"}'
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Expect": "100-continue"}
    connection.sendall(head(client, f"POST /api/v1/{path} HTTP/1.1", Connection="close", **headers))
    first = connection.recv(65536)
    if path == "nowhere":
        assert first.startswith(b"HTTP/1.1 404 ")
        return
    assert first == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.sendall(body)
    assert rest_of(connection).startswith(b"HTTP/1.1 202 ")


async def test_a_body_in_chunks_is_a_body(client: Client) -> None:
    async def chunks() -> AsyncGenerator[bytes]:
        for byte in b'{"agent_type": "echo", "query": "in chunks"}':
            yield bytes([byte])

    asked = await client.http.post("/agent/query", content=chunks(), headers={"Content-Type": "application/json"})

    assert asked.json()["response"] == "You said: in chunks"


@pytest.mark.parametrize("media_type", ["application/json;charset=UTF-8", 'Application/JSON ; charset="utf-8"'])
async def test_a_byte_order_mark_is_skipped(client: Client, media_type: str) -> None:
    body = BOM + json.dumps({"agent_type": "echo", "query": "hello"}).encode()
    asked = await client.http.post("/agent/query", content=body, headers={"Content-Type": media_type})

    assert asked.json()["response"] == "You said: hello"


@pytest.mark.parametrize(
    ("media_type", "body", "parameters"),
    [
        ("application/x-ndjson", b'{"custom_id": "1", "query": "a"}\n', {"agent_type": "echo"}),
        ("application/x-ndjson; charset=utf-8", b'\r\n{"custom_id": "1", "query": "a"}', {"agent_type": "echo"}),
        ("application/json", b'{"agent_type": "echo", "items": [{"custom_id": "1", "query": "a"}]}', {}),
        ("application/json", b'{"items": [{"custom_id": "1", "query": "a"}], "agent_type": "echo"}', {}),
    ],
)
async def test_a_byte_order_mark_before_a_batch_is_skipped(
    client: Client, media_type: str, body: bytes, parameters: dict[str, str]
) -> None:
    headers = {"Content-Type": media_type}
    batch = await client.http.post("/batches", content=BOM + body, params=parameters, headers=headers)

    assert batch.status_code == 202, batch.text
    assert batch.json()["counts"]["total"] == 1


@pytest.mark.parametrize("name", ["lastEventId", "lastEventID", "last-event-id", "last_event_id", "evs_last_event_id"])
async def test_polyfills_say_in_the_address_where_they_were(client: Client, name: str) -> None:
    run = await client.run("hello there", agent_type="echo")
    run = await client.ended(run["id"])
    last = f"{run['attempt'] + 1}-0"
    path = f"/runs/{run['id']}/stream"
    resumed = await client.http.get(path, params={name: last, "after": "0-1"})
    in_both = await client.http.get(path, params={name: "0-1"}, headers={"Last-Event-ID": last})

    for answer in (resumed, in_both):
        assert [json.loads(line)["event"] for line in answer.text.splitlines()] == ["done"]
    problem_of(await client.http.get(path, params={name: "nonsense"}), 400, "malformed_cursor")


@pytest.mark.parametrize("path", ["/runs/", "//runs", "/threads//"])
async def test_a_slash_too_many_is_named(client: Client, path: str) -> None:
    url = str(client.http.base_url).rstrip("/") + path
    problem = problem_of(await client.http.get(url), 404, "not_found")

    assert problem["detail"].endswith(f"none twice: /api/v1/{path.strip('/')}.")


# Behind a prefix.


def test_the_first_steps_of_all_paths_are_known() -> None:
    settings = Settings(database_url="postgresql://u@h/d", redis_url="redis://h")
    app = create_app(settings, 0)

    routes = [*console.router.routes, *operations.router.routes]
    pages = [route.path for route in routes if isinstance(route, APIRoute)]
    paths = [*app.openapi()["paths"], "/openapi.json", "/docs", *pages]
    assert {path.split("/")[1] for path in paths} == FIRST_STEPS
    of_openai = [routes.router.prefix for routes in (chat, conversations, files, models, responses)]
    assert {"/".join(f"{PREFIX}{path}".split("/")[1:3]) for path in of_openai} == FIRST_TWO_STEPS


@pytest.mark.parametrize("path", ["relay", "https://example.com/relay", "/a//b", "/a?b", "/a/../b c"])
def test_a_root_path_that_is_none_stops_the_start(path: str) -> None:
    with pytest.raises(ValidationError, match="must be a path such as /relay"):
        Settings(database_url="postgresql://u@h/d", redis_url="redis://h", root_path=path)


@contextmanager
def proxy(port: int, *, strips: bool, prefix: str) -> Generator[str]:
    """Publish the API under a prefix, as nginx does with and without a path in its `proxy_pass`; yields the URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._pass_on()

        def do_POST(self) -> None:
            self._pass_on()

        def _pass_on(self) -> None:
            if not self.path.startswith(f"{prefix}/"):
                self.send_error(404)
                return
            path = self.path.removeprefix(prefix) if strips else self.path
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
            answer = httpx.request(
                self.command, f"http://127.0.0.1:{port}{path}", headers=headers, content=body, timeout=30
            )
            self.send_response(answer.status_code)
            for name, value in answer.headers.items():
                if name not in {"transfer-encoding", "content-length", "date", "server"}:
                    self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, format: str, *_: object) -> None:  # noqa: A002  (named so by the class)
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}{prefix}"
        server.shutdown()


@pytest.mark.parametrize("prefix", ["/relay", "/api", "/teams/one/api/v1"])
async def test_behind_a_prefix_every_reference_leads_back(service: Service, prefix: str) -> None:
    api = service.api(ROOT_PATH=f"{prefix}/")
    service.worker()
    port = httpx.URL(api.url).port or 80
    for strips in (True, False):
        with proxy(port, strips=strips, prefix=prefix) as url:
            async with Client(url) as client:
                await _follow_references(client, url)
    async with httpx.AsyncClient() as operator:
        assert (await operator.get(f"{api.url}/health/live")).status_code == 200
        routes = set(
            re.findall(r'http_requests_total\{.*route="([^"]*)"', (await operator.get(f"{api.url}/metrics")).text)
        )
    assert {"/api/v1/runs", "/api/v1/runs/{run_id}", "/api/v1/agent/query", "/health/live"} <= routes
    assert not [route for route in routes if route.startswith(f"{prefix}/api/v1")]


async def _follow_references(client: Client, url: str) -> None:
    assert (await client.http.get(f"{url}/v1/models")).json()["object"] == "list"
    thread = await client.http.post("/threads", json={"agent_type": "echo"})
    run = await client.http.post("/runs", json={"agent_type": "echo", "query": "hello"})
    batch = await client.http.post(
        "/batches", json={"agent_type": "echo", "items": [{"custom_id": "1", "query": "hello"}]}
    )
    for created in (thread, run, batch):
        assert created.is_success, created.text
        assert (await _at(client, created, created.headers["Location"]))["id"] == created.json()["id"]
    await client.ended(run.json()["id"])
    asked = await client.ask("hello", agent_type="echo")
    assert (await _at(client, asked, asked.headers["Location"]))["status"] == "succeeded"
    cancelled = await client.http.post(f"/runs/{run.json()['id']}/cancel")
    assert (await _at(client, cancelled, cancelled.headers["Location"]))["status"] == "succeeded"
    streamed = await client.http.post("/agent/stream", json={"agent_type": "echo", "query": "hello"})
    assert (await _at(client, streamed, streamed.headers["Content-Location"]))["status"] == "succeeded"
    link = streamed.headers["Link"].partition(">")[0].removeprefix("<")
    assert (await client.http.get(urljoin(str(streamed.url), link))).text == streamed.text
    ticket = (await client.http.post(f"/runs/{run.json()['id']}/stream-ticket")).json()["url"]
    async with httpx.AsyncClient() as browser:
        assert '"done"' in (await browser.get(urljoin(url, ticket))).text
        page = await browser.get(f"{url}/docs")
        assert (await browser.get(urljoin(str(page.url), "docs/swagger-ui.css"))).status_code == 200
        document = (await browser.get(urljoin(str(page.url), "openapi.json"))).json()
        assert [urljoin(url, server["url"]) for server in document["servers"]] == [url]
        missing = await browser.get(f"{url}/api/v1/nowhere")
        assert missing.json()["instance"] == urlsplit(f"{url}/api/v1/nowhere").path


async def _at(client: Client, answer: httpx.Response, reference: str) -> dict[str, Any]:
    """Read what a reference of an answer leads to."""
    return (await client.http.get(urljoin(str(answer.url), reference))).json()
