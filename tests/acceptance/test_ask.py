"""The main path: ask, watch the validated answer grow, keep the conversation."""

from __future__ import annotations

import json
import time
from itertools import pairwise

import pytest
from pydantic import TypeAdapter

from agent_relay.worker.agents.bank_support import SupportAnswer
from tests.support.client import Client, ids, names, texts
from tests.support.service import Service

ANSWER = TypeAdapter(SupportAnswer)


@pytest.mark.parametrize("sse", [False, True], ids=["ndjson", "sse"])
async def test_a_stream_tells_the_whole_story_in_order(client: Client, sse: bool) -> None:
    thread_id = await client.thread()

    events = await client.stream("What is my balance?", thread_id=thread_id, sse=sse)

    assert names(events) == [
        "message_created",
        "message_started",
        "tool_call",
        "tool_result",
        "text_delta",
        "message_complete",
        "done",
    ]
    assert ids(events) == sorted(set(ids(events)))
    started = events[1]
    assert (started["attempt"], started["reason"]) == (1, "first")
    assert events[2]["tool_name"] == events[3]["tool_name"] == "customer_balance"
    assert events[2]["tool_call_id"] == events[3]["tool_call_id"]


async def test_partials_grow_and_validate_and_the_last_is_what_is_stored(service: Service) -> None:
    api = service.api()
    service.worker(SCRIPTED_TOKENS_PER_SECOND="80")
    async with Client(api.url) as client:
        thread_id = await client.thread()
        arrivals: list[float] = []
        tokens: list[str] = []
        run_message = ""
        began = time.monotonic()
        async with client.asking("What is my balance?", thread_id=thread_id) as stream:
            async for event in stream:
                if event["event"] == "text_delta":
                    arrivals.append(time.monotonic() - began)
                    tokens.append(event["token"])
                    run_message = event["message_id"]
        took = time.monotonic() - began
        messages = await client.messages(thread_id)
        run = await client.ended(messages[1]["metadata"]["run_id"])

    assert len(tokens) >= 20
    assert arrivals[0] < took / 2
    assert len(set(arrivals)) == len(arrivals)
    partials = [ANSWER.validate_json(token) for token in tokens]
    advices = [partial.get("support_advice", "") for partial in partials]
    assert all(later.startswith(earlier) for earlier, later in pairwise(advices))
    assert [message["role"] for message in messages] == ["user", "assistant"]
    assert messages[1]["id"] == run_message == run["message_id"]
    assert tokens[-1] == messages[1]["content"]
    assert json.loads(tokens[-1]) == run["output"]
    assert messages[1]["metadata"]["usage"] | {"cost_usd": None} == run["usage"]
    assert run["usage"]["output_tokens"] > 0


async def test_the_same_thread_is_answered_from_its_history(client: Client) -> None:
    thread_id = await client.thread()
    first = await client.ask("What is my balance?", thread_id=thread_id)
    assert "1123.45" not in first.json()["response"]

    second = await client.ask("And with pending transactions?", thread_id=thread_id)

    assert "$1123.45" in json.loads(second.json()["response"])["support_advice"]
    assert [message["role"] for message in await client.messages(thread_id)] == ["user", "assistant"] * 2


async def test_a_question_without_its_history_is_not_guessed_at(client: Client) -> None:
    answer = await client.ask("And with pending transactions?", agent_type="bank_support")

    assert "1123.45" not in answer.json()["response"]


async def test_a_lost_card_is_blocked(client: Client) -> None:
    answer = json.loads((await client.ask("I lost my card!", agent_type="bank_support")).json()["response"])

    assert answer["block_card"] is True
    assert answer["risk_level"] > 5
    assert answer["follow_up_actions"]


async def test_a_blocking_call_names_what_it_made(client: Client) -> None:
    thread_id = await client.thread()

    response = await client.ask("Hello", thread_id=thread_id)

    body = response.json()
    assert body["thread_id"] == thread_id
    assert (await client.messages(thread_id))[1] | {"content": body["response"]} == (await client.messages(thread_id))[
        1
    ]
    assert response.headers["location"].endswith(body["run_id"])


async def test_a_blocking_call_that_takes_too_long_gives_the_run(client: Client) -> None:
    response = await client.http.post(
        "/agent/query", json={"query": "3 seconds", "agent_type": "slow"}, headers={"Prefer": "wait=0"}
    )

    assert response.status_code == 202
    assert response.headers["preference-applied"] == "wait=0"
    run = response.json()
    assert response.headers["location"] == f"/api/v1/runs/{run['id']}"
    assert run["status"] in {"queued", "running"}
    assert (await client.ended(run["id"]))["status"] == "succeeded"


async def test_a_text_agent_streams_its_text(client: Client) -> None:
    thread_id = await client.thread("echo")

    events = await client.stream("good morning", thread_id=thread_id)

    assert texts(events)[-1] == "You said: good morning"
    assert (await client.messages(thread_id))[1]["content"] == "You said: good morning"
    assert (await client.read((await client.messages(thread_id))[1]["metadata"]["run_id"]))["output"] == texts(events)[
        -1
    ]


async def test_an_agent_of_ones_own_is_served_from_an_importable_path(client: Client) -> None:
    agents = {agent["agent_type"]: agent for agent in (await client.http.get("/agents")).json()}
    assert agents["form"]["output_schema"]["required"]

    run = await client.ended((await client.run("hello", agent_type="form"))["id"])

    assert run["status"] == "succeeded"
    assert set(run["output"]) == set(agents["form"]["output_schema"]["required"])


@pytest.mark.parametrize("agent_type", ["unicode", "nul", "unicode_form"])
async def test_every_character_survives_the_way(client: Client, agent_type: str) -> None:
    thread_id = await client.thread(agent_type)

    events = await client.stream("🙂 שלום e\u0301", thread_id=thread_id)

    assert events[-1]["status"] == "succeeded"
    assert texts(events)[-1] == (await client.messages(thread_id))[1]["content"]
    assert (await client.messages(thread_id))[0]["content"] == "🙂 שלום e\u0301"


@pytest.mark.parametrize(
    ("agent_type", "code"),
    [("never_valid", "output_invalid"), ("tool_fails", "agent_error"), ("limited", "usage_limit_exceeded")],
)
async def test_a_failed_run_says_why_everywhere(client: Client, agent_type: str, code: str) -> None:
    thread_id = await client.thread(agent_type)

    events = await client.stream("go", thread_id=thread_id)

    assert names(events)[-2:] == ["error", "done"]
    assert events[-2]["error"]["code"] == code
    assert events[-1]["status"] == "failed"
    run = await client.read(events[0]["run_id"])
    assert (run["status"], run["error"]) == ("failed", events[-2]["error"])
    problem = await client.ask("go", thread_id=thread_id)
    assert problem.status_code == 502
    assert problem.json()["code"] == code
    assert problem.json()["thread_id"] == thread_id
    assert [message["role"] for message in await client.messages(thread_id)] == ["user", "user"]


async def test_what_failed_is_not_part_of_the_history(client: Client) -> None:
    thread_id = await client.thread()
    late = await client.ask("What is my balance?", thread_id=thread_id, deadline_s=0.05)
    assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")

    answer = await client.ask("And with pending transactions?", thread_id=thread_id)

    assert "1123.45" not in answer.json()["response"]


async def test_a_late_viewer_sees_the_whole_answer(client: Client) -> None:
    run = await client.ended((await client.run("What is my balance?", agent_type="bank_support"))["id"])

    events = await client.events(run["id"])

    assert names(events) == [
        "message_created",
        "message_started",
        "tool_call",
        "tool_result",
        "text_delta",
        "message_complete",
        "done",
    ]
    assert len(texts(events)) == 1
    assert json.loads(texts(events)[0]) == run["output"]


async def test_a_stream_resumes_after_any_id(client: Client) -> None:
    whole = await client.stream("What is my balance?", agent_type="bank_support")
    run_id = whole[0]["run_id"]

    for seen in whole[::5]:
        rest = await client.events(run_id, after=seen["id"])
        expected = [event for event in whole if ids([event]) > ids([seen])]
        assert [event for event in rest if event["event"] != "text_delta"] == [
            event for event in expected if event["event"] != "text_delta"
        ]
        assert texts(rest) == texts(expected)[-1:]


async def test_at_the_very_end_there_is_nothing_more(client: Client) -> None:
    whole = await client.stream("hello", agent_type="echo")
    path = f"/runs/{whole[0]['run_id']}/stream"

    sse = await client.http.get(path, headers={"Accept": "text/event-stream", "Last-Event-ID": whole[-1]["id"]})
    ndjson = await client.http.get(path, params={"after": whole[-1]["id"]})

    assert sse.status_code == 204
    assert (ndjson.status_code, ndjson.content) == (200, b"")


async def test_runs_of_a_thread_are_answered_one_after_the_other(client: Client) -> None:
    thread_id = await client.thread("slow")
    runs = [await client.run("1 second", thread_id=thread_id) for _ in range(3)]

    ended = [await client.ended(run["id"]) for run in runs]

    assert [run["status"] for run in ended] == ["succeeded"] * 3
    for before, after in pairwise(ended):
        assert before["finished_at"] <= after["started_at"]


async def test_a_busy_thread_can_be_refused(client: Client) -> None:
    thread_id = await client.thread("slow")
    first = await client.run("2 seconds", thread_id=thread_id)

    refused = await client.http.post(
        "/runs", json={"thread_id": thread_id, "query": "x", "multitask_strategy": "reject"}
    )

    assert refused.status_code == 409
    assert refused.json()["run_id"] == first["id"]
    assert len((await client.http.get("/runs", params={"thread_id": thread_id})).json()["items"]) == 1


async def test_reading_a_run_waits_for_its_end(client: Client) -> None:
    run = await client.run("1 second", agent_type="slow")

    waited = await client.http.get(f"/runs/{run['id']}", params={"wait": 30})
    again = await client.http.get(f"/runs/{run['id']}", headers={"If-None-Match": waited.headers["etag"]})

    assert waited.json()["status"] == "succeeded"
    assert again.status_code == 304


async def test_lists_are_pages(client: Client) -> None:
    made = [(await client.run("hi", agent_type="echo"))["id"] for _ in range(5)]

    found: list[str] = []
    cursor: str | None = None
    while True:
        page = (await client.http.get("/runs", params={"limit": 2, **({"cursor": cursor} if cursor else {})})).json()
        found += [run["id"] for run in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break

    assert found == made[::-1]
