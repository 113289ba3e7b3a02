"""A real model client against a local provider: the same events, and every kind of trouble ends a run properly."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Iterator

import pytest

from tests.support import fake_openai
from tests.support.client import Client, names, texts
from tests.support.service import Running, serving

TROUBLES = ["http_429", "http_500", "hang", "hang_after_first", "cut", "cut_before_first", "eof", "eof_text"]
REJECTIONS = ["http_400", "http_401", "http_413"]
OTHERS = ["half_emojis", "flaky", "invalid", "falls_back", "asks"]
AGENTS = {
    "bank_support": "agent_relay.worker.agents.bank_support:served",
    **{name: f"tests.support.troubled_agents:{name}" for name in [*TROUBLES, *REJECTIONS, *OTHERS]},
}


@pytest.fixture(scope="module")
def served(
    new_database: Callable[[], str], new_redis: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Running]]:
    """Serve agents whose models live at the fake provider."""
    with (
        fake_openai.running(0.01) as provider,
        serving(new_database(), new_redis(), tmp_path_factory.mktemp("model")) as service,
    ):
        worker = service.worker(
            MODEL="openai-chat:bank",
            OPENAI_BASE_URL=provider,
            MODEL_TIMEOUT_SECONDS="1",
            AGENTS=",".join(f"{name}={path}" for name, path in AGENTS.items()),
        )
        yield service.api().url, worker


@pytest.fixture
async def client(served: tuple[str, Running]) -> AsyncGenerator[Client]:
    """A user of those agents."""
    async with Client(served[0]) as client:
        yield client


async def test_a_real_model_client_gives_the_same_events(client: Client) -> None:
    events = await client.stream("What is my balance?", agent_type="bank_support")

    run = await client.read(events[0]["run_id"])
    assert names(events) == [
        "message_created",
        "message_started",
        "tool_call",
        "tool_result",
        "text_delta",
        "message_complete",
        "done",
    ]
    assert len(texts(events)) > 5
    assert json.loads(texts(events)[-1]) == run["output"]
    assert run["usage"]["requests"] == 2


@pytest.mark.parametrize("agent_type", TROUBLES)
async def test_a_model_that_cannot_be_had_ends_the_run(client: Client, agent_type: str) -> None:
    events = await client.stream("What is my balance?", agent_type=agent_type)

    run = await client.read(events[0]["run_id"])
    assert names(events)[-2:] == ["error", "done"]
    assert events[-2]["error"]["code"] == "model_unavailable"
    assert events[-2]["error"]["retryable"] is True
    assert events[-1]["status"] == run["status"] == "failed"


@pytest.mark.parametrize("agent_type", REJECTIONS)
async def test_a_model_that_rejects_the_request_ends_the_run_for_good(
    client: Client, served: tuple[str, Running], agent_type: str
) -> None:
    refused = await client.ask("What is my balance?", agent_type=agent_type)

    run = await client.read(refused.json()["run_id"])
    assert (refused.status_code, refused.json()["code"]) == (502, "model_rejected")
    assert run["error"]["code"] == "model_rejected"
    assert run["error"]["retryable"] is False
    assert "fake server" not in run["error"]["message"]
    status = agent_type.removeprefix("http_")
    served[1].await_line(
        f"job.refused run_id={run['id']} agent={agent_type} .*The fake server was asked for a {status}"
    )


async def test_a_thread_goes_on_after_a_run_that_waited_for_somebody(client: Client) -> None:
    thread_id = await client.thread("asks")

    waited = await client.ask("Pay, please.", thread_id=thread_id)
    assert waited.json()["status"] == "waiting"
    await client.http.post(f"/runs/{waited.json()['id']}/cancel")
    later = await client.ask("And now?", thread_id=thread_id)

    assert later.json()["response"] == "Said. Be brief."


async def test_a_thread_whose_first_run_was_cancelled_has_its_system_prompt(client: Client) -> None:
    thread_id = await client.thread("asks")
    first = await client.run("Wait, please.", thread_id=thread_id)
    await client.http.post(f"/runs/{first['id']}/cancel", params={"wait": 30})

    answers = [(await client.ask("And now?", thread_id=thread_id)).json()["response"] for _ in range(2)]

    assert answers == ["Said. Be brief."] * 2


async def test_a_model_that_recovers_is_asked_again(client: Client) -> None:
    events = await client.stream("What is my balance?", agent_type="flaky")

    assert names(events)[-2:] == ["message_complete", "done"]


async def test_a_model_that_never_gets_it_right_is_told_apart(client: Client) -> None:
    events = await client.stream("What is my balance?", agent_type="invalid")

    assert events[-2]["error"]["code"] == "output_invalid"


async def test_where_one_model_cannot_be_had_the_next_answers(client: Client) -> None:
    events = await client.stream("What is my balance?", agent_type="falls_back")

    run = await client.read(events[0]["run_id"])
    assert names(events)[-3:] == ["text_delta", "message_complete", "done"]
    assert json.loads(texts(events)[-1]) == run["output"]
    assert run["attempt"] == 1


async def test_an_emoji_that_comes_in_two_halves_is_whole(client: Client) -> None:
    events = await client.stream("Smile.", agent_type="half_emojis")

    run = await client.read(events[0]["run_id"])
    assert (run["status"], run["attempt"]) == ("succeeded", 1)
    assert run["output"] == texts(events)[-1] == "So: 😀\ufffd!"
