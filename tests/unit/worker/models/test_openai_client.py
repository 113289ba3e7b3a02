"""A provider's stream in windows: fewer events, and otherwise the same answer, whatever the provider says between."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from itertools import pairwise
from typing import Any

import httpx2
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from openai import AsyncOpenAI
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from agent_relay.worker.models.openai_client import windowed_client
from tests.support import fake_openai
from tests.unit.worker.models.test_merging import Form, outcome

WINDOW_SECONDS = 0.02
LONG_SECONDS = 3600.0


def data(said: Any, end: str = "\n\n") -> bytes:
    """Write an event as OpenAI does."""
    name = f"event: {said['type']}\n" if "type" in said else ""
    return f"{name}data: {json.dumps(said, ensure_ascii=False)}{end}".encode()


def chunk(delta: dict[str, Any], **choice: Any) -> dict[str, Any]:
    """Say an event of a chat completion; like OpenAI's, each is padded with something else."""
    only = {"index": 0, "delta": delta, "finish_reason": None, "logprobs": None} | choice
    return {
        "id": "c",
        "object": "chat.completion.chunk",
        "choices": [only],
        "usage": None,
        "obfuscation": "x" * (id(only) % 7),
    }


def content(text: str, **choice: Any) -> dict[str, Any]:
    """Say a piece of the answer."""
    return chunk({"content": text}, **choice)


def thinking(text: str, field: str = "reasoning_content") -> dict[str, Any]:
    """Say a piece of the reasoning, as servers do that answer with none of their answer meanwhile."""
    return chunk({"content": "", field: text})


def arguments(text: str, call: int = 0) -> dict[str, Any]:
    """Say a piece of a tool call's arguments."""
    return chunk({"tool_calls": [{"index": call, "function": {"arguments": text}}]})


def piece_of_response(text: str, item: str = "a", kind: str = "response.output_text.delta") -> dict[str, Any]:
    """Say a piece of a response."""
    return {"type": kind, "item_id": item, "output_index": 0, "delta": text}


class Wire(httpx2.AsyncByteStream):
    """What a provider sends, as the network cuts it."""

    def __init__(self, pieces: list[bytes], wait: Callable[[int], Any] | None = None) -> None:
        self._pieces = pieces
        self._wait = wait
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for number, piece in enumerate(self._pieces):
            if self._wait is not None:
                await self._wait(number)
            yield piece

    async def aclose(self) -> None:
        """Note that the reader let go."""
        self.closed = True


async def read(wire: Wire, window_seconds: float = 0, **headers: str) -> AsyncGenerator[bytes]:
    """Read a stream as a client does that is given the windowed one."""
    headers = {"content-type": "text/event-stream; charset=utf-8"} | headers

    def answer(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers=headers, stream=wire)

    transport = httpx2.MockTransport(answer)
    async with (
        windowed_client(window_seconds, transport=transport) as client,
        client.stream("POST", "http://provider/") as response,
    ):
        async for some in response.aiter_raw():
            yield some


def told(stream: bytes) -> list[Any]:
    """Sum up a stream: neighbouring pieces of a text are one, and padding is nothing."""
    sums: list[Any] = []
    for event in stream.decode().replace("\r\n", "\n").split("\n\n"):
        try:
            body = json.loads(event.partition("data: ")[2])
        except ValueError:
            sums += [event] if event else []
            continue
        body.pop("obfuscation", None)
        match body:
            case {"choices": [{"delta": {"reasoning_content": str(said)} as holder}]} if said:
                field = "reasoning_content"
            case {"choices": [{"delta": {"reasoning": str(said)} as holder}]} if said:
                field = "reasoning"
            case {"choices": [{"delta": {"content": str()} as holder}]}:
                field = "content"
            case {"choices": [{"delta": {"tool_calls": [{"function": {"arguments": str()} as holder}]}}]}:
                field = "arguments"
            case {"delta": str()}:
                holder, field = body, "delta"
            case _:
                sums.append([body, None])
                continue
        text, holder[field] = holder[field], ""
        if sums and isinstance(sums[-1], list) and sums[-1][0] == body:
            sums[-1][1] += text
        else:
            sums.append([body, text])
    return sums


TEXTS = st.text(alphabet='a "\\é\u2028🚀\n', max_size=4)
THOUGHTS = st.text(alphabet="a é\n", min_size=1, max_size=4)
EVENTS = st.one_of(
    TEXTS.map(content),
    TEXTS.map(arguments),
    THOUGHTS.map(thinking),
    THOUGHTS.map(lambda text: thinking(text, field="reasoning")),
    TEXTS.map(lambda text: arguments(text, call=1)),
    TEXTS.map(piece_of_response),
    TEXTS.map(lambda text: piece_of_response(text, item="b")),
    TEXTS.map(lambda text: piece_of_response(text, kind="response.function_call_arguments.delta")),
    TEXTS.map(lambda text: piece_of_response(text, kind="response.refusal.delta")),
    TEXTS.map(lambda text: piece_of_response(text, kind="response.reasoning_text.delta")),
    st.sampled_from(
        [
            chunk({"role": "assistant", "content": None, "tool_calls": [{"index": 0, "id": "x", "function": {}}]}),
            chunk({"content": "both", "tool_calls": [{"index": 0, "function": {"arguments": "too"}}]}),
            chunk({"content": "", "reasoning": "hmm"}),
            content("likely", logprobs={"content": [{"token": "likely", "logprob": -1}]}),
            content("last", finish_reason="stop"),
            content("another", index=1),
            {"id": "c", "choices": [], "usage": {"total_tokens": 3}},
            {"type": "response.completed", "response": {}},
            {"error": {"message": "broken"}},
        ]
    ),
).map(data) | st.sampled_from([b": keep-alive\n\n", b"data: [DONE]\n\n", b"data: {broken}\n\n", b"\n\n"])


@example(events=[data(content("a")), data(content("last", finish_reason="stop"))], cuts=[], crlf=False)
@example(events=[data(arguments("a")), data(chunk({"content": "both", "tool_calls": []}))], cuts=[], crlf=False)
@given(events=st.lists(EVENTS, max_size=12), cuts=st.lists(st.integers(0, 2000), max_size=6), crlf=st.booleans())
async def test_whatever_is_said_and_however_it_is_cut_it_says_the_same(
    events: list[bytes], cuts: list[int], crlf: bool
) -> None:
    whole = b"".join(events).replace(b"\n", b"\r\n") if crlf else b"".join(events)
    places = [0, *sorted(cut % (len(whole) + 1) for cut in cuts), len(whole)]
    wire = Wire([whole[a:b] for a, b in pairwise(places) if a < b])

    stream = b"".join([some async for some in read(wire)])

    assert told(stream) == told(whole)
    assert wire.closed


@pytest.mark.parametrize("say", [content, thinking, arguments, piece_of_response])
async def test_the_pieces_of_a_text_become_one(say: Callable[[str], dict[str, Any]]) -> None:
    whole = b"".join(data(say(f"{n} ")) for n in range(50))

    stream = b"".join([some async for some in read(Wire([whole]))])

    assert stream.count(b"data: ") == 1
    assert told(stream) == told(whole)


async def test_the_first_piece_comes_at_once_and_the_rest_is_read_in_windows() -> None:
    pieces = [data(chunk({"role": "assistant", "content": ""})), *(data(content(word)) for word in "abcd")]
    stream = read(Wire(pieces), LONG_SECONDS)
    async with asyncio.timeout(10):
        opening, first = await anext(stream), await anext(stream)

    assert b'"role":' in opening
    assert told(first)[0][1] == "a"
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(stream), 0.1)


async def test_a_model_that_pauses_holds_nothing_back() -> None:
    pauses = asyncio.Event()

    async def wait(number: int) -> None:
        if number == 3:
            await pauses.wait()

    said = ""
    async with asyncio.timeout(10):
        async for some in read(Wire([data(content(word)) for word in "abcd"], wait), WINDOW_SECONDS):
            said += "".join(text for _, text in told(some))
            if said == "abc":
                pauses.set()

    assert said == "abcd"


@pytest.mark.parametrize("headers", [{"content-type": "application/json"}, {"content-encoding": "gzip"}])
async def test_what_is_no_plain_event_stream_is_left_alone(headers: dict[str, str]) -> None:
    pieces = [data(content(word)) for word in "abcd"]

    assert [some async for some in read(Wire(pieces), LONG_SECONDS, **headers)] == pieces


@pytest.mark.parametrize("output_type", [str, Form])
async def test_the_outcome_is_that_of_the_ordinary_client(output_type: type) -> None:
    with fake_openai.running() as url:
        async with (
            AsyncOpenAI(base_url=url, api_key="none") as ordinary,
            AsyncOpenAI(base_url=url, api_key="none", http_client=windowed_client(WINDOW_SECONDS)) as windowed,
        ):
            outcomes = [
                await outcome(OpenAIChatModel("bank", provider=OpenAIProvider(openai_client=client)), output_type)
                for client in (windowed, ordinary)
            ]

    assert outcomes[0] == outcomes[1]
