"""The HTTP client for OpenAI's APIs and similar ones: it reads a streamed answer in windows, and makes one of each.

It works below the SDK, because most of a token's cost is there, where an event becomes a tree of models. Nothing is
held back for longer than a window, and an event that is not plainly the next piece of the same text stays as it came.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import httpx2
from aiohttp import ClientError, ClientSession
from openai import DefaultAioHttpClient
from openai._vendor.httpx_aiohttp.transport import AiohttpTransport
from pydantic_core import from_json, to_json

from agent_relay.worker.models.merging import seconds_left

log = logging.getLogger(__name__)

LONGEST_ERROR = 500
"""Characters of a malformed answer."""
LONGEST_HEADER_BYTES = 100 << 10
"""Of a response; as much as httpx takes of all headers together."""
_EVENT = re.compile(rb".*?(?:\r\n\r\n|\n\n|\r\r)", re.DOTALL)
_DATA = re.compile(rb"((?:event: ?[\w.]+\r?\n)?data: ?)(\{.*\})([\r\n]+)")
_VARYING = frozenset({"choices", "delta", "obfuscation", "sequence_number", "created"})
"""The fields in which two events may differ that are alike except for their text."""
_RESPONSES = frozenset(
    {
        "response.output_text.delta",
        "response.function_call_arguments.delta",
        "response.reasoning_text.delta",
        "response.reasoning_summary_text.delta",
    }
)
_TEXTS = ("content", "reasoning_content", "reasoning")
"""The text fields of a delta of a chat completion; servers do not agree on the name of the reasoning."""


def windowed_client(window_seconds: float, **options: Any) -> httpx2.AsyncClient:
    """Make a client like the OpenAI SDK's own, with options of `httpx2.AsyncClient`; its event streams come in windows.

    Give it to the provider of a model of your own: `OpenAIProvider(http_client=windowed_client(0.03))`.
    """

    async def in_windows(response: httpx2.Response) -> None:
        kind = response.headers.get("content-type", "")
        if kind.startswith("text/event-stream"):
            if "content-encoding" not in response.headers:
                response.stream = _Windows(response.stream, window_seconds)
        elif response.is_success and "json" not in kind:
            log.warning("windowed_client.odd_answer url=%s content_type=%.100r", response.url.host, kind)

    return _Client(event_hooks={"response": [in_windows]}, **options)


class _Client(DefaultAioHttpClient):
    """The SDK's client with our transport."""

    def _init_transport(  # pyright: ignore[reportIncompatibleMethodOverride]  (the options are handed on by name)
        self, transport: httpx2.AsyncBaseTransport | None = None, **options: Any
    ) -> httpx2.AsyncBaseTransport:
        return transport or _Transport(**options)

    def _init_proxy_transport(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, proxy: httpx2.Proxy, **options: Any
    ) -> httpx2.AsyncBaseTransport:
        return _Transport(proxy=proxy, **options)


class _Transport(AiohttpTransport):
    """The SDK's transport over aiohttp, which takes what httpx takes and raises what httpx raises."""

    def get_client(self) -> ClientSession:
        """Open a session with room for the headers that gateways add."""
        if isinstance(self.client, ClientSession):
            return self.client
        made = super().get_client()
        connector = made.connector
        made.detach()
        return ClientSession(
            connector=connector, max_line_size=LONGEST_HEADER_BYTES, max_field_size=LONGEST_HEADER_BYTES
        )

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request; an answer that is no HTTP is the provider's fault, as one that does not come."""
        try:
            return await super().handle_async_request(request)
        except ClientError as error:
            raise httpx2.RemoteProtocolError(str(error)[:LONGEST_ERROR], request=request) from error


class _Windows(httpx2.AsyncByteStream):
    """An event stream that is read once a window, from its first piece of text on."""

    def __init__(self, inner: Any, window_seconds: float) -> None:
        self._inner = inner
        self._window_seconds = window_seconds

    async def __aiter__(self) -> AsyncGenerator[bytes]:
        rest, speaking = b"", False
        async for data in self._inner:
            rest += data
            events = _EVENT.findall(rest)
            rest = rest[sum(map(len, events)) :]
            if events:
                pieces = list(_merged(events))
                yield b"".join(map(bytes, pieces))
                speaking = speaking or any(isinstance(piece, _Piece) and piece.text for piece in pieces)
            if speaking:  # Events that come meanwhile are read together.
                await asyncio.sleep(seconds_left(self._window_seconds))
        yield rest

    async def aclose(self) -> None:
        await self._inner.aclose()


@dataclass(slots=True)
class _Piece:
    """An event that holds the next piece of a text, and nothing else."""

    same: Any
    """The attributes that the next one must have to belong to the same text."""
    head: bytes
    said: dict[str, Any]
    tail: bytes
    holder: dict[str, Any]
    """The object in it that holds the text."""
    field: str

    @property
    def text(self) -> str:
        """The piece of text."""
        return self.holder[self.field]

    def __bytes__(self) -> bytes:
        return self.head + to_json(self.said) + self.tail


def _merged(events: Iterable[bytes]) -> Iterator[bytes | _Piece]:
    """Make one of neighbouring pieces of the same text; leave everything else as it came."""
    before: _Piece | None = None
    for event in events:
        piece = _piece(event)
        if before is not None and piece is not None and before.same == piece.same:
            before.holder[before.field] += piece.text
            continue
        if before is not None:
            yield before
        before = piece
        if piece is None:
            yield event
    if before is not None:
        yield before


def _piece(event: bytes) -> _Piece | None:
    """Read an event of a chat completion or of a response; None if it is anything but a piece of text."""
    match = _DATA.fullmatch(event)
    if match is None:
        return None
    try:
        said: Any = from_json(match[2])
    except ValueError:
        return None
    same = {key: value for key, value in said.items() if key not in _VARYING}
    match said:
        case {"type": kind, "delta": str()} if kind in _RESPONSES:
            return _Piece(same, match[1], said, match[3], said, "delta")
        case {"choices": [{"index": choice, "delta": delta} as only]} if (
            _holds_only(only, "index", "delta") and (field := _field_of(delta)) is not None
        ):
            return _Piece((choice, field, same), match[1], said, match[3], delta, field)
        case {
            "choices": [
                {
                    "index": choice,
                    "delta": {
                        "tool_calls": [{"index": call, "function": {"arguments": str()} as function} as part]
                    } as delta,
                } as only
            ]
        } if (
            _holds_only(only, "index", "delta")
            and _holds_only(delta, "role", "tool_calls")
            and _holds_only(part, "index", "function", "type")
            and _holds_only(function, "arguments")
        ):
            return _Piece((choice, call, same), match[1], said, match[3], function, "arguments")
        case _:
            return None


def _field_of(delta: Any) -> str | None:
    """Name the one text that a delta holds; None where it holds anything else."""
    if not isinstance(delta, dict):
        return None
    said = cast("dict[str, Any]", delta)
    field = next((field for field in _TEXTS if said.get(field)), "content")
    return field if isinstance(said.get(field), str) and _holds_only(said, "role", field) else None


def _holds_only(said: dict[str, Any], *fields: str) -> bool:
    return all(field in fields or not value for field, value in said.items())
