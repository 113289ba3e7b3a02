"""OpenAI's own client against this service: an agent is a model, and what its client expects happens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest
from openai import (
    APIError,
    APIStatusError,
    AsyncOpenAI,
    AuthenticationError,
    BadRequestError,
    ConflictError,
    InternalServerError,
    NotFoundError,
    RateLimitError,
)

from tests.support.client import Client
from tests.support.eventually import soon
from tests.support.service import KEYS, TEST_AGENTS, Running, Service, serving

AGENTS = {
    **TEST_AGENTS,
    "asks": "tests.support.waiting_agents:asks",
}
SERVED = {"AGENTS": ",".join(f"{name}={path}" for name, path in AGENTS.items())}


@pytest.fixture(scope="module")
def openai_service(new_database: Any, new_redis: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service for all tests of this module, whose API processes may be killed."""
    with serving(new_database(), new_redis(), tmp_path_factory.mktemp("openai"), SERVED) as service:
        service.worker()
        yield service


@pytest.fixture(scope="module")
def api(openai_service: Service) -> Running:
    """An API process that stays."""
    return openai_service.api()


def client_of(api: Running, user_id: str | None = None, key: str = KEYS["acme"], **options: Any) -> Any:
    """Make OpenAI's client, for a user of its own."""
    more: dict[str, Any] = {"max_retries": 0, **options}
    return AsyncOpenAI(
        base_url=f"{api.url}/v1",
        api_key=key,
        default_headers={"X-User-ID": user_id or str(uuid4())},
        http_client=httpx2.AsyncClient(verify=False, timeout=60),
        **more,
    )


@pytest.fixture
async def user_id() -> str:
    """A user whom nobody else is."""
    return str(uuid4())


@pytest.fixture
async def ai(api: Running, user_id: str) -> AsyncGenerator[Any]:
    """OpenAI's client."""
    async with client_of(api, user_id) as client:
        yield client


JSON = {"Content-Type": "application/json"}


async def calls(ai: Any, count: int) -> None:
    """Call so many times."""
    for _ in range(count):
        await ai.models.list()


async def read_to_its_end(stream: Any) -> None:
    """Read a stream."""
    async for _ in stream:
        pass


def run_of(made: str) -> str:
    """Return the id of a run from what it is called in this protocol."""
    return str(UUID(made.partition("-" if made.startswith("chatcmpl") else "_")[2]))


def user(text: Any) -> Any:
    """Write a message of a user."""
    return {"role": "user", "content": text}


async def test_agents_are_models(ai: Any) -> None:
    models = [model async for model in ai.models.list()]
    echo = await ai.models.retrieve("echo")

    assert {model.id for model in models} == AGENTS.keys()
    assert echo in models
    assert (echo.object, echo.owned_by) == ("model", "agent-relay")
    with pytest.raises(NotFoundError) as unknown:
        await ai.models.retrieve("gpt-7")
    assert unknown.value.code == "model_not_found"


async def test_a_completion_is_the_stored_output_and_costs_what_the_run_did(
    ai: Any, api: Running, user_id: str
) -> None:
    made = await ai.chat.completions.create(
        model="echo",
        messages=[user("hello there")],
        temperature=1,
        top_p=1.0,
        n=1,
        user="somebody else",
        store=False,
        metadata={"session": "7"},
    )
    async with Client(api.url, user_id=user_id) as client:
        run = await client.read(run_of(made.id))

    assert made.choices[0].message.content == run["output"] == "You said: hello there"
    assert made.choices[0].finish_reason == "stop"
    assert made.usage is not None
    used = made.usage.prompt_tokens, made.usage.completion_tokens
    assert used == (run["usage"]["input_tokens"], run["usage"]["output_tokens"])
    assert made.usage.total_tokens == sum(used) > 0
    assert run["metadata"] == {"session": "7"}
    assert (made.model, run["thread_id"]) == ("echo", None)


async def test_a_streamed_completion_says_the_same_as_a_whole_one(ai: Any) -> None:
    async def streamed(model: str, text: str) -> tuple[list[str], Any]:
        chunks = [
            chunk
            async for chunk in await ai.chat.completions.create(
                model=model, messages=[user(text)], stream=True, stream_options={"include_usage": True}
            )
        ]
        assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-1] == "stop"
        return [chunk.choices[0].delta.content or "" for chunk in chunks[:-1]], chunks[-1].usage

    ticks, usage = await streamed("slow", "for 0.5 seconds")
    form, _ = await streamed("form", "fill it in")
    unicode, _ = await streamed("unicode", "?")
    whole = await ai.chat.completions.create(model="form", messages=[user("fill it in")])
    said = await ai.chat.completions.create(model="unicode", messages=[user("?")])

    assert "".join(ticks) == "".join(f"tick {number} " for number in range(1, 11))
    assert len(ticks) > 3
    assert usage.completion_tokens > 0
    assert "".join(form) == whole.choices[0].message.content
    assert json.loads("".join(form))["pages"] == 12
    assert "".join(unicode) == said.choices[0].message.content


async def test_the_model_knows_the_conversation_that_the_caller_holds_and_nothing_of_it_is_a_thread(
    ai: Any, api: Running, user_id: str
) -> None:
    made = await ai.chat.completions.create(
        model="recalls",
        messages=[
            {"role": "system", "content": "Be brief."},
            user("first"),
            {"role": "assistant", "content": "First answer."},
            user([{"type": "text", "text": "second"}, {"type": "text", "text": "part"}]),
            {"role": "assistant", "content": None},
            user("third"),
        ],
    )
    async with Client(api.url, user_id=user_id) as client:
        threads = (await client.http.get("/threads")).json()["items"]
        run = await client.read(run_of(made.id))

    instructed, *said = (made.choices[0].message.content or "").split(";")
    assert said == ["first", "?second\npart", "third", ""]
    assert "application" in instructed
    assert instructed.endswith("\n\nBe brief.")
    assert threads == []
    assert run["query"] == "third"


REFUSED: list[tuple[dict[str, Any], str | None]] = [
    ({"temperature": 0.2}, "temperature"),
    ({"max_tokens": 10}, "max_tokens"),
    ({"max_completion_tokens": 10}, "max_completion_tokens"),
    ({"stop": ["."]}, "stop"),
    ({"seed": 1}, "seed"),
    ({"n": 2}, "n"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]}, "tools"),
    ({"extra_body": {"chat_id": "7"}}, "chat_id"),
    ({"stream_options": {"include_usage": True}}, None),
    ({"messages": [user("?"), {"role": "assistant", "content": "!"}]}, "messages[1].role"),
    ({"messages": [user("")]}, "messages[0].content"),
    ({"messages": [{"role": "tool", "content": "!", "tool_call_id": "1"}]}, "messages[0].role"),
    (
        {"messages": [user([{"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}])]},
        "messages[0].content",
    ),
    ({"messages": []}, "messages"),
]


@pytest.mark.parametrize(("asked", "param"), REFUSED, ids=str)
async def test_what_an_agent_cannot_follow_is_refused_by_its_name(
    ai: Any, asked: dict[str, Any], param: str | None
) -> None:
    with pytest.raises(BadRequestError) as refused:
        await ai.chat.completions.create(**{"model": "echo", "messages": [user("?")], **asked})

    assert refused.value.param == param
    assert refused.value.type == "invalid_request_error"
    assert refused.value.code
    assert refused.value.request_id


async def test_each_error_is_the_one_that_the_client_knows(api: Running, openai_service: Service) -> None:
    user_id = str(uuid4())
    async with client_of(api, key="wrong") as stranger, client_of(api, user_id) as ai:
        with pytest.raises(AuthenticationError) as unknown_key:
            await stranger.models.list()
        with pytest.raises(NotFoundError) as unknown_model:
            await ai.chat.completions.create(model="gpt-7", messages=[user("?")])
        with pytest.raises(NotFoundError) as unknown_path:
            await ai.files.list()
        with pytest.raises(APIStatusError) as wrong_method:
            await ai.post("/models", body={}, cast_to=object)
        with pytest.raises(BadRequestError) as no_json:
            await ai.post("/chat/completions", content=b"{", cast_to=object, options={"headers": JSON})
        with pytest.raises(InternalServerError) as failed:
            await ai.chat.completions.create(model="breaks", messages=[user("?")])
        with pytest.raises(APIError) as failed_in_stream:
            await read_to_its_end(await ai.chat.completions.create(model="breaks", messages=[user("?")], stream=True))
    busy = openai_service.api(MAX_REQUESTS_PER_SECOND_PER_USER="0.1")
    async with client_of(busy, user_id) as ai:
        with pytest.raises(RateLimitError) as too_many:
            await calls(ai, 20)
    busy.terminate()

    assert unknown_key.value.code == "invalid_api_key"
    assert (unknown_model.value.code, unknown_model.value.param) == ("model_not_found", "model")
    assert "/v1/chat/completions" in unknown_path.value.message
    assert (wrong_method.value.status_code, wrong_method.value.code) == (405, "method_not_allowed")
    assert no_json.value.code == "malformed_json"
    assert failed.value.code == failed_in_stream.value.code == "agent_error"
    assert failed.value.response.headers["x-should-retry"] == "false"
    assert too_many.value.code == "rate_limit_exceeded"
    assert int(too_many.value.response.headers["retry-after"]) > 0


async def test_a_completion_whose_caller_hangs_up_is_cancelled(ai: Any, api: Running, user_id: str) -> None:
    stream = await ai.chat.completions.create(model="slow", messages=[user("for 60 seconds")], stream=True)
    first = await anext(aiter(stream))
    whole = asyncio.create_task(ai.chat.completions.create(model="slow", messages=[user("for 50 seconds")]))
    async with Client(api.url, user_id=user_id) as client:

        async def runs() -> dict[str, str]:
            return {run["query"]: run["status"] for run in (await client.http.get("/runs")).json()["items"]}

        async def are(status: str) -> bool:
            return (await runs()) == {"for 60 seconds": status, "for 50 seconds": status}

        await soon(lambda: are("running"))
        await stream.close()
        whole.cancel()
        await soon(lambda: are("cancelled"))
    assert first.id


async def test_a_run_that_waits_cannot_be_completed_and_is_cancelled(ai: Any, api: Running, user_id: str) -> None:
    plan = [user('[[["pay", {"amount": 5}]]]')]
    with pytest.raises(ConflictError) as waits:
        await ai.chat.completions.create(model="asks", messages=plan)
    with pytest.raises(APIError, match="waits"):
        await read_to_its_end(await ai.chat.completions.create(model="asks", messages=plan, stream=True))

    assert waits.value.code == "run_waits"
    async with Client(api.url, user_id=user_id) as client:
        runs = [await client.ended(run["id"]) for run in (await client.http.get("/runs")).json()["items"]]
    assert [run["status"] for run in runs] == ["cancelled", "cancelled"]


async def test_a_completion_that_is_asked_for_again_with_its_key_is_the_same(ai: Any) -> None:
    again = {"extra_headers": {"Idempotency-Key": "k"}}

    first = await ai.chat.completions.create(model="echo", messages=[user("once")], **again)
    second = await ai.chat.completions.create(model="echo", messages=[user("once")], **again)

    assert first.id == second.id
