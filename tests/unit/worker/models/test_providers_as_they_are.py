"""Providers as they are: what is answered in process is answered here, and what fails says why to the operator."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel
from pydantic_ai import Agent, ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.capabilities import RaiseContentFilterError
from pydantic_ai.exceptions import (
    ContentFilterError,
    FallbackExceptionGroup,
    ModelAPIError,
    ModelHTTPError,
)
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.providers.openai import OpenAIProvider

from agent_relay.shared.failure_codes import DEAD, RETRYABLE, FailureCode
from agent_relay.worker.models.errors import LOGGED_CHARACTERS, failure_of, for_operator, is_rejected
from agent_relay.worker.models.openai_client import windowed_client
from tests.support.in_process import Heard, ask
from tests.unit.worker.test_agents_as_they_are import says

Reply = Callable[[dict[str, Any]], Iterable[bytes]]
"""Makes of a request's body what the provider writes, piece by piece."""
EVENTS = "text/event-stream"


@asynccontextmanager
async def provider(reply: Reply) -> AsyncGenerator[str]:
    """Run a provider that answers each connection once, byte for byte; yields its base URL."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        body = json.loads(await reader.readexactly(int(length.partition(b":")[2])))
        for piece in reply(body):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, limit=1 << 20)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"


def response(*pieces: bytes, status: str = "200 OK", kind: str = EVENTS, headers: str = "") -> list[bytes]:
    """Write a response that ends with its connection."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nConnection: close\r\n{headers}\r\n"
    return [head.encode(), *pieces]


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    """Make an event of a chat completion."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices} | more


def sse(*said: Any, end: str = "\n\n") -> bytes:
    """Write events, and that they are all."""
    lines = [f"data: {json.dumps(event, ensure_ascii=False)}{end}" for event in said]
    return "".join([*lines, f"data: [DONE]{end}"]).encode()


def call(arguments: str, **more: Any) -> dict[str, Any]:
    """Make a piece of a tool call."""
    return {"tool_calls": [{"index": 0, "function": {"arguments": arguments}} | more]}


def refusal(status: str, body: Any, kind: str = "application/json") -> list[bytes]:
    """Write a refusal."""
    return response((body if isinstance(body, str) else json.dumps(body)).encode(), status=status, kind=kind)


ROLE = chunk({"role": "assistant", "content": ""})
HEY = [ROLE, chunk({"content": "Hé "}), chunk({"content": "là 👋"}), chunk({}, "stop")]
HELLO = sse(*HEY)
WORDS = "Hé là 👋"
ERROR = {"error": {"message": "The server is overloaded.", "type": "server_error", "code": None}}


async def asked(url: str, *, ours: bool, output_type: Any = str) -> Any:
    """Ask a provider as this service does, or as a process does that streams with pydantic-ai's own client."""
    if ours:
        async with windowed_client(0.01) as client:
            openai = AsyncOpenAI(base_url=url, api_key="none", http_client=client)
            agent = Agent(OpenAIChatModel("m", provider=OpenAIProvider(openai_client=openai)), output_type=output_type)
            heard = await ask(agent)
        text = heard.texts[-1]
        return text if output_type is str else output_type.model_validate_json(text)
    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as openai:
        agent = Agent(OpenAIChatModel("m", provider=OpenAIProvider(openai_client=openai)), output_type=output_type)
        async with agent.run_stream("hello") as result:
            return await result.get_output()


class Said(BaseModel):
    """An output."""

    a: str


WIRES: dict[str, Sequence[bytes]] = {
    "a header of 20 KB": response(HELLO, headers=f"X-Debug: {'x' * 20_000}\r\n"),
    "headers of 40 KB in all": response(HELLO, headers="".join(f"X-{n}: {'x' * 4000}\r\n" for n in range(10))),
    "CRLF": response(sse(*HEY, end="\r\n\r\n")),
    "a byte at a time": response(*(HELLO[place : place + 1] for place in range(len(HELLO)))),
    "comments": response(b": ping\n\n", HELLO.replace(b"\n\ndata", b"\n\n: ping\n\ndata")),
    "other fields": response(HELLO.replace(b"data:", b"id: 7\nretry: 10\ndata:")),
    "a BOM": response(b"\xef\xbb\xbf", HELLO),
    "a charset": response(HELLO, kind=f"{EVENTS}; charset=utf-8"),
    "an odd charset": response(HELLO, kind=f"{EVENTS}; charset=latin-1"),
    "no content type": response(HELLO, kind="application/octet-stream"),
    "compressed": response(gzip.compress(HELLO), headers="Content-Encoding: gzip\r\n"),
    "no [DONE]": response(HELLO.replace(b"data: [DONE]\n\n", b"")),
    "choices that are empty": response(sse(chunk(), ROLE, chunk(), *HEY[1:], chunk())),
    "content that is null": response(sse(ROLE, chunk({"content": None}), *HEY[1:])),
    "no usage, and then an empty one": response(sse(*HEY, chunk(usage=None))),
    "a finish reason that nobody knows": response(sse(*HEY[:-1], chunk({}, "because"))),
    "ids that differ": response(sse(*(event | {"id": str(place)} for place, event in enumerate(HEY)))),
    "fields that nobody knows": response(sse(*(event | {"x": {"y": [1]}} for event in HEY))),
}


@pytest.mark.parametrize("wire", WIRES)
async def test_what_is_answered_in_process_is_answered_here(wire: str) -> None:
    async with provider(lambda _: WIRES[wire]) as url:
        assert await asked(url, ours=False) == WORDS
        assert await asked(url, ours=True) == WORDS


CALLS: dict[str, Sequence[bytes]] = {
    "as it should be": response(
        sse(
            chunk(call("", id="1", type="function", function={"name": "final_result", "arguments": ""})),
            chunk(call('{"a": ')),
            chunk(call('"é"}')),
            chunk({}, "tool_calls"),
        )
    ),
    "the id and the name again in each piece": response(
        sse(
            chunk(call("", id="1", function={"name": "final_result", "arguments": '{"a": '})),
            chunk(call("", id="1", function={"arguments": '"é"}'})),
            chunk({}, "tool_calls"),
        )
    ),
    "all in one piece, stopped": response(
        sse(chunk(call("", id="1", function={"name": "final_result", "arguments": '{"a": "é"}'})), chunk({}, "stop"))
    ),
}


@pytest.mark.parametrize("wire", CALLS)
async def test_calls_that_are_answered_in_process_are_answered_here(wire: str) -> None:
    async with provider(lambda _: CALLS[wire]) as url:
        assert await asked(url, ours=False, output_type=Said) == Said(a="é")
        assert await asked(url, ours=True, output_type=Said) == Said(a="é")


async def test_a_redirect_is_followed() -> None:
    async with provider(lambda _: response(HELLO)) as elsewhere:
        moved = response(status="307 Moved", headers=f"Location: {elsewhere}/chat/completions\r\nContent-Length: 0\r\n")
        async with provider(lambda _: moved) as url:
            assert await asked(url, ours=True) == WORDS


BROKEN: dict[str, Sequence[bytes]] = {
    "cut in the headers": [b"HTTP/1.1 200 OK\r\nContent-"],
    "no HTTP": [b"SSH-2.0-OpenSSH_9.6\r\n\r\n"],
    "a header of a megabyte": response(HELLO, headers=f"X: {'x' * (1 << 20)}\r\n"),
    "cut in the middle": response(HELLO[:200]),
    "cut in the middle of a chunk": response(b"40\r\n" + sse(ROLE)[:30], headers="Transfer-Encoding: chunked\r\n"),
    "compressed, and cut": response(gzip.compress(HELLO)[:40], headers="Content-Encoding: gzip\r\n"),
    "compressed, it says": response(HELLO, headers="Content-Encoding: gzip\r\n"),
    "a page": response(b"<html>Welcome to our proxy.</html>", kind="text/html"),
    "nothing": response(b""),
    "an error in the stream": response(b"data: " + json.dumps(ERROR).encode() + b"\n\n"),
    "an error after a part of the answer": response(sse(*HEY[:2])[:-14], sse(ERROR)),
    "JSON that is none": response(b"data: {nonsense}\n\n"),
}


@pytest.mark.parametrize("wire", BROKEN)
async def test_what_a_provider_breaks_is_told_as_its_doing(wire: str) -> None:
    async with provider(lambda _: BROKEN[wire]) as url:
        with pytest.raises(ModelAPIError) as failed:
            await asked(url, ours=True)

    assert failure_of(failed.value)[0] is FailureCode.MODEL_UNAVAILABLE
    assert "m" in for_operator(failed.value)


# Refusals


def refused(message: str = "No.", **error: Any) -> dict[str, Any]:
    """Say an error as OpenAI's API does."""
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None} | error}


REJECTED: dict[str, tuple[str, Any, str]] = {
    "400": ("400 Bad Request", refused(), "its provider answered 400"),
    "401": ("401 Unauthorized", refused(code="invalid_api_key"), "credentials"),
    "403": ("403 Forbidden", refused(), "credentials"),
    "404": ("404 Not Found", refused(code="model_not_found"), "does not know the model"),
    "413": ("413 Content Too Large", "<h1>Too large</h1>", "its provider answered 413"),
    "422": ("422 Unprocessable Content", refused(), "its provider answered 422"),
    "too long": ("400 Bad Request", refused(code="context_length_exceeded"), "longer than the model's context"),
    "too long, in words": ("400 Bad Request", refused("maximum context length is 10"), "longer than the model's"),
}
UNAVAILABLE: dict[str, tuple[str, Any]] = {
    "429": ("429 Too Many Requests", refused()),
    "quota": ("429 Too Many Requests", refused(code="insufficient_quota")),
    "402": ("402 Payment Required", refused()),
    "500": ("500 Internal Server Error", "oops"),
    "503": ("503 Service Unavailable", refused()),
    "529": ("529 Overloaded", refused()),
}


async def error_of(status: str, body: Any) -> ModelAPIError:
    """Return what a refusal is raised as."""
    async with provider(lambda _: refusal(status, body)) as url:
        with pytest.raises(ModelAPIError) as failed:
            await asked(url, ours=True)
    return failed.value


@pytest.mark.parametrize("name", REJECTED)
async def test_a_request_that_will_be_refused_again_is_told_apart(name: str) -> None:
    status, body, said = REJECTED[name]
    code, message = failure_of(await error_of(status, body))

    assert code is FailureCode.MODEL_REJECTED
    assert said in message
    assert code not in RETRYABLE | DEAD


@pytest.mark.parametrize("name", UNAVAILABLE)
async def test_a_refusal_that_passes_is_told_apart(name: str) -> None:
    code, _ = failure_of(await error_of(*UNAVAILABLE[name]))

    assert code is FailureCode.MODEL_UNAVAILABLE


@pytest.mark.parametrize("capabilities", [[], [RaiseContentFilterError()]], ids=["plain", "capability"])
async def test_a_filter_of_contents_is_a_rejection_by_the_model(capabilities: list[Any]) -> None:
    heard = Heard()
    filtered = response(sse(ROLE, chunk({}, "content_filter")))
    async with provider(lambda _: filtered) as url, windowed_client(0.01) as client:
        openai = AsyncOpenAI(base_url=url, api_key="none", http_client=client)
        model = OpenAIChatModel("m", provider=OpenAIProvider(openai_client=openai))
        with pytest.raises(ContentFilterError) as raised:
            await ask(Agent(model, capabilities=capabilities), heard=heard)

    assert heard.answer is not None
    assert heard.answer.model_error is raised.value
    assert failure_of(raised.value)[0] is FailureCode.MODEL_REJECTED


def test_several_models_have_rejected_a_request_if_all_have() -> None:
    no, later = ModelHTTPError(400, "a"), ModelHTTPError(503, "b")

    assert is_rejected(FallbackExceptionGroup("all", [no, no]))
    assert not is_rejected(FallbackExceptionGroup("all", [no, later]))


async def test_the_operator_reads_why_and_callers_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_API_KEY", "a-key-of-no-known-form")
    said = "Incorrect key sk-proj-abcdef0123456789 (a-key-of-no-known-form): visit\nhttps://provider \ud83d"
    error = await error_of("401 Unauthorized", refused(said))

    log, (_, message) = for_operator(error), failure_of(error)

    assert "status=401" in log
    assert "Incorrect key" in log
    assert "https://provider" in log
    assert "sk-proj" not in log
    assert "a-key-of-no-known-form" not in log
    assert "\n" not in log
    assert log.encode()
    assert "Incorrect" not in message


def test_what_a_provider_says_at_length_is_cut_in_the_log() -> None:
    log = for_operator(ModelHTTPError(400, "m", body={"error": "x" * 100_000}))

    assert len(log) < LOGGED_CHARACTERS + 100


def test_the_operator_reads_what_each_of_several_models_said() -> None:
    log = for_operator(FallbackExceptionGroup("all", [ModelHTTPError(400, "a", body="no"), ModelHTTPError(503, "b")]))

    assert "a" in log
    assert "no" in log
    assert "503" in log


# Models that do not stream


def whole(*parts: Any) -> FunctionModel:
    """Make a model that can only answer whole."""

    async def answer(_messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        return ModelResponse(parts=list(parts))

    return FunctionModel(answer)


@pytest.mark.parametrize(
    "model",
    [
        whole(TextPart("All at once.")),
        WrapperModel(whole(TextPart("All at once."))),
        FallbackModel(whole(TextPart("All at once.")), says("never")),
    ],
    ids=["bare", "wrapped", "among others"],
)
async def test_a_model_that_cannot_stream_answers_whole(model: Any) -> None:
    heard = await ask(Agent(model))

    assert set(heard.texts) == {"All at once."}


async def test_a_model_that_cannot_stream_may_call_tools() -> None:
    async def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        if len(messages) == 1:
            return ModelResponse(parts=[ToolCallPart("look", {})])
        return ModelResponse(parts=[ToolCallPart(info.output_tools[0].name, {"a": "seen"})])

    agent = Agent(FunctionModel(answer), output_type=Said)
    agent.tool_plain(name="look")(lambda: "there")

    heard = await ask(agent)

    assert heard.texts[-1] == '{"a":"seen"}'
    assert [event["event"] for event in heard.events] == ["tool_call", "tool_result"]


class NotImplementedModel(WrapperModel):
    """A model of somebody's own."""

    @asynccontextmanager
    async def request_stream(self, *_: Any, **__: Any) -> AsyncGenerator[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Refuse, as libraries do that leave it for later."""
        raise NotImplementedError
        yield


async def test_a_model_whose_streaming_is_left_for_later_answers_whole() -> None:
    assert (await ask(Agent(NotImplementedModel(whole(TextPart("All at once.")))))).texts[-1] == "All at once."


COMPLETION = {
    "id": "c",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": WORDS}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
}
NO_STREAMS = {
    "an organisation that is not verified": (
        "400 Bad Request",
        refused("Your organization must be verified to stream this model.", param="stream", code="unsupported_value"),
    ),
    "a server without streams": ("501 Not Implemented", {"detail": "Streaming is not supported"}),
    "a gateway that does not let streams through": ("403 Forbidden", "stream=true is not allowed by policy"),
}


@pytest.mark.parametrize("name", NO_STREAMS)
async def test_a_provider_that_refuses_to_stream_is_asked_for_the_whole_answer_and_remembered(name: str) -> None:
    streams: list[bool] = []

    def reply(body: dict[str, Any]) -> Iterable[bytes]:
        streams.append(body.get("stream", False))
        return refusal(*NO_STREAMS[name]) if streams[-1] else refusal("200 OK", COMPLETION)

    async with provider(reply) as url, windowed_client(0.01) as client:
        openai = AsyncOpenAI(base_url=url, api_key="none", http_client=client)
        agent = Agent(OpenAIChatModel("m", provider=OpenAIProvider(openai_client=openai)))
        heard: list[Heard] = [await ask(agent), await ask(agent)]

    assert [one.texts[-1] for one in heard] == [WORDS, WORDS]
    assert streams == [True, False, False]


async def test_a_refusal_that_only_speaks_of_streams_is_not_remembered() -> None:
    streams: list[bool] = []

    def reply(body: dict[str, Any]) -> Iterable[bytes]:
        streams.append(body.get("stream", False))
        return refusal("400 Bad Request", refused("Fish cannot swim upstream."))

    async with provider(reply) as url, windowed_client(0.01) as client:
        openai = AsyncOpenAI(base_url=url, api_key="none", http_client=client)
        agent = Agent(OpenAIChatModel("m", provider=OpenAIProvider(openai_client=openai)))
        for _ in range(2):
            with pytest.raises(ModelAPIError):
                await ask(agent)

    assert streams == [True, False, True, False]
