"""A stream is written after its request was handled, and whoever looks at its scope meanwhile finds it whole."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agent_relay.api.app import Application
from agent_relay.api.server.http_protocol import tell_of_loss
from agent_relay.api.streaming.response import Stream
from agent_relay.api.streaming.sse_and_ndjson import Framing

SERVERS = (
    "type",
    "method",
    "path",
    "raw_path",
    "query_string",
    "headers",
    "http_version",
    "scheme",
    "server",
    "client",
)


class Slow:
    """A reader who notes what is left of the scope when it is his turn."""

    media_type = Framing.SSE.value

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.seen: Scope | None = None
        self.lost = False

    def lose(self) -> None:
        """Note it."""
        self.lost = True

    async def write(self, send: Send) -> None:
        """Write a word."""
        self.seen = dict(self.scope)
        await send({"type": "http.response.body", "body": b"word", "more_body": False})


class Around:
    """Middleware that looks at the scope at the head of the response, and once more when everything has returned."""

    seen: list[Scope]

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Look."""
        await self._app(scope, receive, send)
        self.seen.append(dict(scope))


def scope_of_a_get() -> Scope:
    """Make what a server makes of a request."""
    return {
        "type": "http",
        "method": "GET",
        "path": "/stream",
        "raw_path": b"/stream",
        "query_string": b"deltas=true",
        "headers": [(b"host", b"relay"), (b"traceparent", b"00-1-1-01")],
        "http_version": "1.1",
        "scheme": "http",
        "server": ("127.0.0.1", 80),
        "client": ("127.0.0.1", 4711),
        "root_path": "",
    }


async def call(app: ASGIApp, scope: Scope) -> list[Message]:
    """Have a request answered; returns what is sent."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent


@pytest.mark.parametrize("wrapped", [False, True])
async def test_the_scope_of_a_stream_stays_whole_for_middleware(*, wrapped: bool) -> None:
    scope, reader = scope_of_a_get(), Slow({})
    reader.scope = scope
    app = Application()

    @app.get("/stream")
    async def stream() -> Response:  # pyright: ignore[reportUnusedFunction]
        return Stream(reader, {})

    Around.seen = []
    app.add_middleware(Around)
    sent = await call(Around(app) if wrapped else app, scope)

    assert b"".join(message.get("body", b"") for message in sent) == b"word"
    assert reader.seen is not None
    for seen in (*Around.seen, reader.seen):
        assert {name: seen[name] for name in SERVERS} == {name: scope_of_a_get()[name] for name in SERVERS}
        assert seen["route"].path == "/stream"
    assert len(Around.seen) == 1 + wrapped


async def test_what_only_the_handling_needs_is_dropped_before_the_stream_is_written() -> None:
    scope, reader = scope_of_a_get(), Slow({})
    reader.scope = scope
    app = Application()

    @app.get("/stream")
    async def stream(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        assert [name for name in request.scope if name.startswith("fastapi_")]
        return Stream(reader, {})

    await call(app, scope)

    assert reader.seen is not None
    assert [name for name in reader.seen if name.startswith(("fastapi_", "starlette."))] == []


async def test_a_response_that_is_no_stream_leaves_the_scope_as_it_is() -> None:
    scope, app = scope_of_a_get(), Application()

    @app.get("/stream")
    async def plain() -> str:  # pyright: ignore[reportUnusedFunction]
        return "word"

    sent = await call(app, scope)

    assert sent[-1]["body"] == b'"word"'
    assert scope["route"].path == "/stream"


@pytest.mark.parametrize("before", [False, True])
def test_a_reader_is_told_that_the_connection_is_lost_also_if_it_was_lost_before(*, before: bool) -> None:
    scope: dict[str, Any] = {}
    reader = Slow(scope)
    if before:
        scope["agent_relay.connection_lost"] = True
    tell_of_loss(scope, reader.lose)
    assert reader.lost is before

    if not before:
        assert scope["agent_relay.connection_lost"] == reader.lose
