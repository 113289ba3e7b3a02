"""A local server that streams chat completions as OpenAI does, and misbehaves as the model's name asks.

`bank` calls each function tool and then the output tool (`final_result`), token by token; without an output tool it
answers with text. `text` always answers with text, `invalid` with an output that never validates. `http-<status>`
fails; `flaky-<n>` answers 429 n times and then as `bank`. `hang` never answers, `hang-after-first` stops after some
tokens; `cut-before-first` closes the connection unanswered, `cut` in mid-stream; `eof` ends the stream properly but too
early. `@<seconds>` after any name sets the time between tokens: `bank@0.02`.

`GET /requests` tells what came in. `python -m tests.support.fake_openai --port 0` prints its port.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import socket
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, cast

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

TOKENS_BEFORE_TROUBLE = 6
USAGE = {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30}
"""Of each request."""
CACHED_TOKENS = 4
RETRY_AFTER_SECONDS = 1

_TOKEN = re.compile(r" ?\w{1,6}| ?[^\w\s]|\s")
_connections: dict[tuple[str, int], asyncio.Transport] = {}


class _Protocol(HttpToolsProtocol):
    """Lets a route find the connection that its request came through, to cut it."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        _connections[transport.get_extra_info("peername")] = transport
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        _connections.pop(self.transport.get_extra_info("peername"), None)
        super().connection_lost(exc)


class _Fake:
    """One server's behaviour and its counts."""

    def __init__(self, delay_seconds: float) -> None:
        self._delay_seconds = delay_seconds
        self._requests: Counter[str] = Counter()
        self._streams: Counter[str] = Counter()
        self.app = Starlette(
            routes=[Route("/v1/chat/completions", self.complete, methods=["POST"]), Route("/requests", self.count)]
        )

    async def complete(self, request: Request) -> Response:
        """Answer a request for a completion, or misbehave."""
        body = await request.json()
        name, _, pace = str(body["model"]).partition("@")
        self._requests[name] += 1
        kind, _, number = name.rpartition("-")
        if kind == "http":
            return _refuse(int(number))
        if kind == "flaky" and self._requests[name] <= int(number):
            return _refuse(429, {"Retry-After": str(RETRY_AFTER_SECONDS)})
        if name == "hang":
            await request.receive()  # The body is read, so the next thing to come is the client's leave.
        if name == "cut-before-first":
            _connection(request).abort()
        stream = self.stream(request, name, body, float(pace) if pace else self._delay_seconds)
        return StreamingResponse(stream, media_type="text/event-stream")

    async def stream(self, request: Request, name: str, body: dict[str, Any], delay: float) -> AsyncIterator[str]:
        """Stream a completion, whole unless the model's name asks for trouble."""
        whole = False
        try:
            for number, delta in enumerate(_deltas(name, body)):
                if number == TOKENS_BEFORE_TROUBLE and name in _TROUBLES:
                    await _TROUBLES[name](request)
                    return
                await asyncio.sleep(delay)
                yield _chunk(name, [{"index": 0, "delta": delta, "finish_reason": None}])
            reason = "tool_calls" if _next_call(name, body) else "stop"
            yield _chunk(name, [{"index": 0, "delta": {}, "finish_reason": reason}])
            yield _chunk(name, [], usage=USAGE | {"prompt_tokens_details": {"cached_tokens": CACHED_TOKENS}})
            yield "data: [DONE]\n\n"
            whole = True
        finally:
            self._streams["whole" if whole else "broken"] += 1

    async def count(self, _request: Request) -> Response:
        """Tell how many requests came in, for which models, and how their streams ended."""
        counts = {"total": self._requests.total(), "by_model": self._requests, "streams": self._streams}
        return JSONResponse(counts)


@contextmanager
def running(delay_seconds: float = 0) -> Generator[str]:
    """Run the server in a thread; yields the value of `OPENAI_BASE_URL`."""
    listener = _listen(0)
    server = _server(delay_seconds)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        server.should_exit = server.force_exit = True
        thread.join(timeout=5)
        listener.close()


def _server(delay_seconds: float) -> uvicorn.Server:
    app = _Fake(delay_seconds).app
    return uvicorn.Server(uvicorn.Config(app, http=_Protocol, log_level="critical", lifespan="off"))


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(1000)
    return listener


async def _hang(_request: Request) -> None:
    await asyncio.sleep(3600)


async def _cut(request: Request) -> None:
    _connection(request).close()


async def _end(_request: Request) -> None:
    """Leave, which ends the response as if it were whole."""


_TROUBLES: dict[str, Callable[[Request], Awaitable[None]]] = {"hang-after-first": _hang, "cut": _cut, "eof": _end}


def _connection(request: Request) -> asyncio.Transport:
    assert request.client is not None
    return _connections[(request.client.host, request.client.port)]


def _refuse(status: int, headers: dict[str, str] | None = None) -> Response:
    error = {"message": f"The fake server was asked for a {status}.", "type": "fake", "code": None}
    return JSONResponse({"error": error}, status_code=status, headers=headers)


def _chunk(model: str, choices: list[dict[str, Any]], **more: Any) -> str:
    chunk = {"id": "chatcmpl-fake", "object": "chat.completion.chunk", "created": 1, "model": model, "choices": choices}
    return f"data: {json.dumps(chunk | more)}\n\n"


def _deltas(model: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    call = _next_call(model, body)
    if call is None:
        yield {"role": "assistant", "content": ""}
        if model == "half-emojis":
            yield from ({"content": half} for half in ("So: ", "\ud83d", "\ude00", "\ud83d", "!"))
            return
        yield from ({"content": token} for token in _TOKEN.findall(_answer_text(body)))
        return
    name, arguments = call
    function = {"name": name, "arguments": ""}
    tool_call = {"index": 0, "id": f"call_{len(body['messages'])}_{name}", "type": "function", "function": function}
    yield {"role": "assistant", "content": None, "tool_calls": [tool_call]}
    for token in _TOKEN.findall(json.dumps(arguments, ensure_ascii=False)):
        yield {"tool_calls": [{"index": 0, "function": {"arguments": token}}]}


def _next_call(model: str, body: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """Choose the first function tool not called since the user spoke, then the output tool; None for text."""
    if model in {"text", "half-emojis"}:
        return None
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in body.get("tools", [])}
    called = {call["function"]["name"] for message in _turn(body) for call in message.get("tool_calls") or ()}
    for name, schema in schemas.items():
        if not name.startswith("final_result") and name not in called:
            return name, _sample(schema, "sample")
    for name, schema in schemas.items():
        if name.startswith("final_result"):
            return name, {} if model == "invalid" else _sample(schema, _answer_text(body))
    return None


def _turn(body: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the messages from the user's last one on."""
    messages: list[dict[str, Any]] = body["messages"]
    last = max(place for place, message in enumerate(messages) if message["role"] == "user")
    return messages[last:]


def _answer_text(body: dict[str, Any]) -> str:
    user, *rest = _turn(body)
    returned = [str(message["content"]) for message in rest if message["role"] == "tool"]
    return (
        f"You asked: {user['content']} The tools returned: {', '.join(returned) or 'nothing'}. The fake model has "
        "nothing to add, but it goes on for a while, because an answer that is over at once shows no streaming."
    )


def _sample(schema: dict[str, Any], text: str) -> Any:
    """Make a value that the JSON Schema allows, with `text` for its strings."""
    match schema.get("type"):
        case "object":
            properties = cast("dict[str, dict[str, Any]]", schema.get("properties", {}))
            return {name: _sample(of, text) for name, of in properties.items()}
        case "array":
            return [_sample(schema.get("items", {"type": "string"}), "sample")]
        case "boolean":
            return True
        case "integer" | "number":
            return schema.get("minimum", 1)
        case _:
            return text


def main() -> None:
    """Serve until told to stop, once the port is printed."""
    parser = argparse.ArgumentParser(description="A fake of OpenAI's chat completions")
    parser.add_argument("--port", type=int, default=8099, help="0 takes a free one")
    parser.add_argument("--delay-seconds", type=float, default=0.0125, help="time before each token")
    arguments = parser.parse_args()
    listener = _listen(arguments.port)
    print(listener.getsockname()[1], flush=True)  # noqa: T201
    _server(arguments.delay_seconds).run(sockets=[listener])


if __name__ == "__main__":
    main()
