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
    APIConnectionError,
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
    (
        {"messages": [user([{"type": "text", "text": "?", "cache_control": {"type": "ephemeral"}}])]},
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
            await ai.vector_stores.list()
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


@pytest.mark.parametrize("call", ["chat", "response", "response read again"])
async def test_a_stream_whose_api_process_stops_looks_complete_to_no_client(
    openai_service: Service, user_id: str, call: str
) -> None:
    stopping = openai_service.api()
    async with client_of(stopping, user_id) as ai:
        if call == "chat":
            stream = await ai.chat.completions.create(model="slow", messages=[user("for 60 seconds")], stream=True)
        elif call == "response":
            stream = await ai.responses.create(model="slow", input="for 60 seconds", stream=True)
        else:
            begun = await ai.responses.create(model="slow", input="for 60 seconds", background=True)
            stream = await ai.responses.retrieve(begun.id, stream=True)
        events = aiter(stream)
        await anext(events)
        stopped = asyncio.create_task(asyncio.to_thread(stopping.terminate))
        with pytest.raises((APIConnectionError, httpx2.RemoteProtocolError)):
            async for _ in events:
                pass
        assert await stopped == 0


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


UNFINISHED = {"queued", "in_progress"}


async def read_run(api: Running, user_id: str, made: str) -> dict[str, Any]:
    """Read a run as this service shows it."""
    async with Client(api.url, user_id=user_id) as client:
        return await client.read(run_of(made))


def text_of(events: list[Any]) -> str:
    """Put the text of the last item together from its events."""
    texts: dict[int, str] = {}
    for event in events:
        if event.type == "response.output_text.delta":
            texts[event.output_index] = texts.get(event.output_index, "") + event.delta
    return texts[max(texts)]


async def test_a_response_is_the_run_as_it_is_stored(ai: Any, api: Running, user_id: str) -> None:
    made = await ai.responses.create(model="echo", input="hello there", metadata={"session": "7"}, user="x")
    again = await ai.responses.retrieve(made.id)
    run = await read_run(api, user_id, made.id)
    items = await ai.responses.input_items.list(made.id)

    assert made.output_text == run["output"] == "You said: hello there"
    assert (made.status, made.model, made.metadata) == ("completed", "echo", {"session": "7"})
    assert (made.usage.input_tokens, made.usage.output_tokens) == (
        run["usage"]["input_tokens"],
        run["usage"]["output_tokens"],
    )
    assert made.output == again.output
    assert made.conversation.id == f"conv_{UUID(run['thread_id']).hex}"
    assert [(item.role, item.content[0].text) for item in items.data] == [("user", "hello there")]


@pytest.mark.parametrize("model", ["slow", "second_thoughts", "unicode", "bank_support"])
async def test_a_streamed_response_is_what_is_stored(ai: Any, api: Running, user_id: str, model: str) -> None:
    async with ai.responses.stream(model=model, input="What is my balance? 0.3") as stream:
        events = [event async for event in stream]
        final = await stream.get_final_response()
    run = await read_run(api, user_id, final.id)
    stored = await ai.responses.retrieve(final.id)

    assert final.status == "completed"
    assert final.output_text == text_of(events) == stored.output_text
    assert final.output_text == run["output"] or json.loads(final.output_text) == run["output"]
    numbers = [event.sequence_number for event in events]
    assert numbers == sorted(set(numbers))
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    assert final.usage == stored.usage


async def test_a_response_in_the_background_is_read_on_from_any_event_after_its_api_was_killed(
    openai_service: Service, api: Running, user_id: str
) -> None:
    killed = openai_service.api()
    seen: list[Any] = []
    async with client_of(killed, user_id) as ai:
        stream = await ai.responses.create(model="slow", input="for 2 seconds", background=True, stream=True)
        async for event in stream:
            seen.append(event)
            if len([event for event in seen if event.type == "response.output_text.delta"]) == 3:
                break
        killed.kill()
        await stream.close()
    async with client_of(api, user_id) as ai:
        response_id = seen[0].response.id
        still = await ai.responses.retrieve(response_id)
        later = [
            event
            async for event in await ai.responses.retrieve(
                response_id, stream=True, starting_after=seen[-1].sequence_number
            )
        ]
        whole = [event async for event in await ai.responses.retrieve(response_id, stream=True)]
        end = [
            event.type
            async for event in await ai.responses.retrieve(
                response_id, stream=True, starting_after=later[-2].sequence_number
            )
        ]
        with pytest.raises(BadRequestError):
            await ai.responses.retrieve(response_id, stream=True, starting_after=later[-1].sequence_number * 10)

    assert still.status == "in_progress"
    numbers = [event.sequence_number for event in [*seen, *later]]
    assert numbers == sorted(set(numbers))
    expected = "".join(f"tick {number} " for number in range(1, 41))
    assert text_of([*seen, *later]) == text_of(whole) == later[-1].response.output_text == expected
    assert [event.type for event in later].count("response.output_item.added") == 0
    assert end == ["response.completed"]


async def test_a_conversation_of_three_turns_is_a_thread(ai: Any, api: Running, user_id: str) -> None:
    conversation = await ai.conversations.create(metadata={"about": "cards"})
    said = [
        await ai.responses.create(model="recalls", input=text, conversation=conversation.id)
        for text in ("one", "two", "three")
    ]
    changed = await ai.conversations.update(conversation.id, metadata={"about": "loans"})
    items = [item async for item in await ai.conversations.items.list(conversation.id, order="asc", limit=4)]
    with pytest.raises(BadRequestError) as other_model:
        await ai.responses.create(model="echo", input="?", conversation=conversation.id)
    async with Client(api.url, user_id=user_id) as client:
        thread = (await client.http.get(f"/threads/{run_of(conversation.id)}")).json()
    deleted = await ai.conversations.delete(conversation.id)

    assert said[-1].output_text == "one;two;three;"
    assert said[-1].previous_response_id == said[1].id
    assert [(item.role, item.content[0].text) for item in items] == [
        ("user", "one"),
        ("assistant", "one;"),
        ("user", "two"),
        ("assistant", "one;two;"),
        ("user", "three"),
        ("assistant", "one;two;three;"),
    ]
    assert [message["content"] for message in thread["messages"]] == [item.content[0].text for item in items]
    assert (thread["agent_type"], changed.metadata, deleted.deleted) == ("recalls", {"about": "loans"}, True)
    assert other_model.value.param == "model"
    for call in (ai.conversations.retrieve, ai.conversations.items.list):
        with pytest.raises(NotFoundError):
            await call(conversation.id)
    with pytest.raises(NotFoundError):
        await ai.responses.retrieve(said[0].id)


async def test_a_response_goes_on_from_another_one_and_forks_where_that_is_not_the_last(ai: Any) -> None:
    async def ask(text: Any, **more: Any) -> Any:
        return await ai.responses.create(model="recalls", input=text, **more)

    first = await ask("one")
    second = await ask("two", previous_response_id=first.id, instructions="Be brief.")
    third = await ask("three", previous_response_id=second.id)
    aside = await ask("other", previous_response_id=first.id)
    held = await ask(
        [
            {"role": "user", "content": "before"},
            {"role": "assistant", "content": [{"type": "output_text", "text": "!", "annotations": []}]},
            {"role": "user", "content": "now"},
        ]
    )
    after = await ask("then", previous_response_id=held.id)
    aside_from_held = await ask("else", previous_response_id=held.id)
    alone = await ask("alone", store=False)

    assert second.output_text.endswith("Be brief.;two;")
    assert second.instructions == "Be brief."
    assert third.output_text == "one;two;three;"
    assert third.conversation == first.conversation
    assert aside.output_text == "one;other;"
    assert aside.conversation != first.conversation
    assert (held.output_text, after.output_text) == ("before;?now;", "before;?now;then;")
    assert aside_from_held.output_text == "before;?now;else;"
    assert alone.conversation is None
    with pytest.raises(BadRequestError) as not_stored:
        await ask("?", previous_response_id=alone.id)
    assert not_stored.value.code == "not_stored"


async def test_a_response_is_cancelled_and_deleted(ai: Any) -> None:
    running = await ai.responses.create(model="slow", input="for 60 seconds", background=True)
    with pytest.raises(ConflictError):
        await ai.responses.delete(running.id)
    cancelled = await ai.responses.cancel(running.id)
    events = [event async for event in await ai.responses.retrieve(running.id, stream=True)]
    await ai.responses.delete(running.id)

    assert running.status in UNFINISHED
    assert cancelled.status == "cancelled"
    assert (events[-1].type, events[-1].response.status) == ("response.incomplete", "cancelled")
    with pytest.raises(NotFoundError):
        await ai.responses.retrieve(running.id)


async def test_a_run_that_waits_for_its_client_is_answered_by_it(ai: Any) -> None:
    plan = '[[["elsewhere", {"box": 1}], ["elsewhere", {"box": 2}]]]'
    waits = await ai.responses.create(model="asks", input=plan)
    calls = waits.output

    assert waits.status == "completed"
    assert [(call.type, call.name, call.arguments) for call in calls] == [
        ("function_call", "elsewhere", '{"box":1}'),
        ("function_call", "elsewhere", '{"box":2}'),
    ]
    with pytest.raises(BadRequestError) as no_output:
        await ai.responses.create(model="asks", input="[]", previous_response_id=waits.id)
    outputs: list[Any] = [
        {"type": "function_call_output", "call_id": call.call_id, "output": f'{{"weight":{weight}}}'}
        for weight, call in enumerate(calls)
    ]
    with pytest.raises(BadRequestError) as does_not_fit:
        await ai.responses.create(
            model="asks", input=[{**outputs[0], "output": "heavy"}], previous_response_id=waits.id
        )
    half = await ai.responses.create(model="asks", input=outputs[:1], previous_response_id=waits.id)
    async with ai.responses.stream(model="asks", input=outputs[1:], previous_response_id=waits.id) as stream:
        final = await stream.get_final_response()

    assert no_output.value.code == "no_tool_output"
    assert does_not_fit.value.param == "input[0].output"
    assert [call.call_id for call in half.output] == [calls[1].call_id]
    assert json.loads(final.output_text) == ['elsewhere: {"weight":0}', 'elsewhere: {"weight":1}']


async def test_a_run_that_waits_for_a_person_is_incomplete_until_it_is_answered(
    ai: Any, api: Running, user_id: str
) -> None:
    waits = await ai.responses.create(model="asks", input='[[["pay", {"amount": 5}]]]')
    async with Client(api.url, user_id=user_id) as client:
        run = await client.read(run_of(waits.id))
        answers = {"answers": [{"request_id": run["requests"][0]["request_id"], "approve": True}]}
        await client.http.post(f"/runs/{run['id']}/answers", json=answers)
        await client.ended(run["id"])
    paid = await ai.responses.retrieve(waits.id)

    assert (waits.status, waits.incomplete_details.reason, waits.output) == ("incomplete", "waiting", [])
    assert json.loads(paid.output_text) == ["pay: paid 5"]


NOT_FOLLOWED: list[tuple[dict[str, Any], str]] = [
    ({"temperature": 0.2}, "temperature"),
    ({"max_output_tokens": 10}, "max_output_tokens"),
    ({"tools": [{"type": "web_search"}]}, "tools"),
    ({"reasoning": {"effort": "high"}}, "reasoning"),
    ({"include": ["reasoning.encrypted_content"]}, "include"),
    ({"input": []}, "input"),
    ({"input": [{"role": "assistant", "content": "!"}]}, "input[0].role"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        "input[0].content",
    ),
    ({"input": [{"type": "function_call_output", "call_id": "c", "output": "o"}]}, "previous_response_id"),
    ({"input": [{"type": "reasoning", "id": "r", "summary": []}]}, "input[0].type"),
]


@pytest.mark.parametrize(("asked", "param"), NOT_FOLLOWED, ids=str)
async def test_what_a_response_cannot_have_is_refused_by_its_name(ai: Any, asked: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequestError) as refused:
        await ai.responses.create(**{"model": "echo", "input": "?", **asked})

    assert refused.value.param == param


async def test_what_belongs_to_others_is_not_there(ai: Any, api: Running) -> None:
    async with client_of(api) as other:
        response = await other.responses.create(model="echo", input="mine", background=True)
        conversation = await other.conversations.create()
    unknown = "0" * 32
    for made, of in ((response.id, conversation.id), (f"resp_{unknown}", f"conv_{unknown}"), ("x", "y")):
        answers: set[str] = set()
        for call in (
            ai.responses.retrieve(made),
            ai.responses.retrieve(made, stream=True),
            ai.responses.cancel(made),
            ai.responses.delete(made),
            ai.responses.input_items.list(made),
            ai.responses.create(model="echo", input="?", previous_response_id=made),
        ):
            with pytest.raises(NotFoundError) as not_there:
                await call
            answers.add(not_there.value.message)
        for call in (
            ai.conversations.retrieve(of),
            ai.conversations.update(of, metadata={}),
            ai.conversations.delete(of),
            ai.conversations.items.list(of),
            ai.responses.create(model="echo", input="?", conversation=of),
        ):
            with pytest.raises(NotFoundError) as not_there:
                await call
            answers.add(not_there.value.message)
        assert len(answers) == 2


async def test_a_bearer_key_without_a_user_acts_as_its_own(api: Running) -> None:
    async with client_of(api) as ai, client_of(api, "") as own:
        del own._custom_headers["X-User-ID"]
        made = await own.responses.create(model="echo", input="hello", user="whoever")
        assert (await own.responses.retrieve(made.id)).output_text == "You said: hello"
        with pytest.raises(NotFoundError):
            await ai.responses.retrieve(made.id)


ODD: list[Any] = [
    None,
    True,
    0,
    -1.5,
    "",
    "\u2028",
    "x" * 5000,
    [],
    [None],
    [[]],
    {},
    {"id": 0},
    [{"type": "text"}],
    [{"role": "user"}],
    [{"role": "user", "content": {}}],
    [{"role": "user", "content": [{"type": "text", "text": 1}]}],
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": 0}}, {"type": "file", "file": [0]}]}],
    [{"role": "user", "content": [{"type": "text", "text": "?"}, {"type": "input_file", "file_id": "file-\u0130"}]}],
    [{"type": "function_call_output", "call_id": None, "output": "x"}],
]
"""Values that a field may hold by mistake, or by ill will."""


async def test_no_value_of_any_field_breaks_the_service(ai: Any, api: Running, user_id: str) -> None:
    response = await ai.responses.create(model="form", input="?", background=True)
    conversation = await ai.conversations.create()
    wholes: dict[str, dict[str, Any]] = {
        "/chat/completions": {"model": "form", "messages": [user("?")], "metadata": None, "stream_options": None},
        "/responses": {
            "model": "form",
            "input": "?",
            "instructions": None,
            "conversation": None,
            "previous_response_id": None,
            "store": False,
            "include": None,
            "text": None,
        },
        "/conversations": {"metadata": None, "items": None},
        f"/conversations/{conversation.id}": {"metadata": None},
    }
    bodies: list[tuple[str, Any]] = [(path, odd) for path in wholes for odd in ODD]
    bodies += [(path, {**whole, name: odd}) for path, whole in wholes.items() for name in whole for odd in ODD]
    paths = [
        f"/responses/{response.id}?stream=true&starting_after={number}"
        for number in ("-1", "x", "1", "999", "1e3", 2**53, 2**53 - 1, 10**400)
    ]
    paths += [
        f"/conversations/{conversation.id}/items?{query}" for query in ("after=%00", "after=x", "limit=0", "order=x")
    ]
    paths += [
        "/files/%00",
        "/files/file-",
        "/files?after=%00",
        "/files?limit=0",
        "/files?purpose=batch",
        "/files?order=x",
    ]
    paths += [f"/responses/{response.id}/input_items?after=%00", f"/responses/{response.id}?stream=1", "/models/%00"]
    paths += [f"/responses/{response.id}%0A", f"/responses/{response.id.upper()}", "/responses/resp_", "/models/a%2Fb"]
    headers = {"Authorization": f"Bearer {KEYS['acme']}", "X-User-ID": user_id}
    async with httpx2.AsyncClient(headers=headers, verify=False, timeout=60) as http:
        answers = [(body, await http.post(f"{api.url}/v1{path}", json=body)) for path, body in bodies]
        answers += [(path, await http.get(f"{api.url}/v1{path}")) for path in paths]

    assert [each for each in answers if each[1].status_code not in {200, 400, 404, 415}] == []
    for asked, answer in answers:
        if answer.status_code != 200:
            assert answer.json()["error"].keys() == {"message", "type", "param", "code"}, asked
    assert {answer.status_code for asked, answer in answers if isinstance(asked, str)} == {400, 404}
