"""A run or a batch that starts later: accepted now, begun then, by whoever is there."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from agent_relay.shared.clock import now
from tests.support.client import Client, names
from tests.support.eventually import soon
from tests.support.service import Service

ECHO: dict[str, Any] = {"agent_type": "echo"}
HOUR: dict[str, Any] = {"start_after_s": 3600}


def time(text: str) -> datetime:
    """Read a time as the API writes it."""
    return datetime.fromisoformat(text)


def has_started_in_time(run: dict[str, Any]) -> bool:
    """Say whether a run succeeded, and did not begin before its start."""
    return run["status"] == "succeeded" and time(run["started_at"]) >= time(run["start_at"])


async def test_a_run_is_accepted_now_and_begins_then(client: Client) -> None:
    accepted = await client.run("hello", start_after_s=1, deadline_s=30, **ECHO)

    assert accepted["status"] == "queued"
    assert accepted["queue_position"] is None
    assert accepted["started_at"] is None
    assert time(accepted["start_at"]) - time(accepted["created_at"]) == timedelta(seconds=1)
    assert has_started_in_time(await client.ended(accepted["id"]))


async def test_a_time_with_any_zone_will_do_and_one_that_has_passed_is_now(client: Client) -> None:
    start = (now() + timedelta(seconds=1)).isoformat().replace("+00:00", "")
    ahead = await client.run("hello", start_at=f"{start}Z", **ECHO)
    past = await client.run("hello", start_at="2001-01-01T00:00:00+05:30", **ECHO)

    assert past["start_at"] is None
    assert (await client.ended(past["id"]))["status"] == "succeeded"
    assert time(ahead["start_at"]) == time(f"{start}Z")
    assert has_started_in_time(await client.ended(ahead["id"]))


async def test_until_then_it_is_listed_followed_and_cancelled_as_any_other(client: Client) -> None:
    run = await client.run("hello", **HOUR, **ECHO)
    listed = (await client.http.get("/runs", params={"status": "queued"})).json()["items"]

    async with client.following(run["id"]) as stream:
        first = await anext(stream)
        cancelled = await client.http.post(f"/runs/{run['id']}/cancel")
        rest = [event async for event in stream]

    assert [each["id"] for each in listed] == [run["id"]]
    assert cancelled.status_code == 200
    assert cancelled.json()["status"] == "cancelled"
    assert names([first, *rest]) == ["message_created", "cancelled", "done"]


async def test_a_call_that_waits_waits_for_a_start_within_its_time_only(client: Client) -> None:
    within = await client.ask("hello", start_after_s=1, **ECHO)
    beyond = await client.ask("hello", **HOUR, **ECHO)
    streamed = await client.stream("hello", start_after_s=1, **ECHO)

    assert within.status_code == 200
    assert within.json()["response"] == "You said: hello"
    assert beyond.status_code == 202
    assert beyond.json()["status"] == "queued"
    assert beyond.headers["Location"].endswith(beyond.json()["id"])
    assert names(streamed)[-2:] == ["message_complete", "done"]


async def test_its_thread_does_not_wait_for_it(client: Client) -> None:
    thread_id = await client.thread("recalls")
    later = await client.run("later", thread_id=thread_id, start_after_s=3)
    meanwhile = await client.ask("meanwhile", thread_id=thread_id)
    told_meanwhile = [message["content"] for message in await client.messages(thread_id)]

    assert meanwhile.status_code == 200
    assert has_started_in_time(await client.ended(later["id"]))
    told = [message["content"] for message in await client.messages(thread_id)]
    if "later" not in told_meanwhile:  # It is there already where the machine was busy for three seconds.
        assert told[::2] == ["meanwhile", "later"]
    assert len(told) == 4


async def test_it_goes_with_its_thread(client: Client) -> None:
    thread_id = await client.thread("echo")
    run = await client.run("later", thread_id=thread_id, **HOUR)
    shown = (await client.http.get(f"/threads/{thread_id}")).json()

    assert shown["unfinished_runs"] == 1
    assert shown["messages"] == []
    async with client.following(run["id"]) as stream:
        await anext(stream)
        assert (await client.http.delete(f"/threads/{thread_id}")).status_code == 204
        assert names([event async for event in stream]) == ["cancelled", "done"]


@pytest.mark.parametrize("lines", [False, True])
async def test_all_runs_of_a_batch_begin_then(client: Client, lines: bool) -> None:
    head: dict[str, Any] = {"max_running": 2, "start_after_s": 1, **ECHO}
    items = [{"custom_id": str(number), "query": "hello"} for number in range(5)]
    if lines:
        body = "\n".join(f'{{"custom_id": "{item["custom_id"]}", "query": "hello"}}' for item in items)
        response = await client.http.post(
            "/batches", params=head, content=body, headers={"Content-Type": "application/x-ndjson"}
        )
    else:
        response = await client.http.post("/batches", json={**head, "items": items})
    batch = response.json()

    async def completed() -> bool:
        return (await client.http.get(f"/batches/{batch['id']}")).json()["status"] == "completed"

    assert response.status_code == 202
    assert time(batch["start_at"]) - time(batch["created_at"]) == timedelta(seconds=1)
    assert batch["counts"]["queued"] == 5
    await soon(completed)
    runs = (await client.http.get("/runs", params={"batch_id": batch["id"]})).json()["items"]
    assert len(runs) == 5
    assert all(has_started_in_time(run) for run in runs)
    assert {run["start_at"] for run in runs} == {batch["start_at"]}


async def test_a_batch_that_lost_a_run_before_its_start_begins_no_other(client: Client) -> None:
    items = [{"custom_id": str(number), "query": "hello"} for number in range(3)]
    batch = (
        await client.http.post("/batches", json={"max_running": 1, "items": items, "start_after_s": 3600, **ECHO})
    ).json()
    runs = (await client.http.get("/runs", params={"batch_id": batch["id"]})).json()["items"]
    await client.http.post(f"/runs/{runs[-1]['id']}/cancel")
    await client.ended((await client.run("hello", start_after_s=3, **ECHO))["id"])  # A sweep or two have passed.
    after = (await client.http.get(f"/batches/{batch['id']}")).json()
    cancelled = await client.http.post(f"/batches/{batch['id']}/cancel")

    assert after["counts"] | {"running": 0} == {
        "total": 3, "queued": 2, "running": 0, "waiting": 0, "succeeded": 0, "failed": 0, "cancelled": 1,
    }  # fmt: skip
    assert cancelled.json()["counts"]["cancelled"] == 3


@pytest.mark.parametrize(
    ("start", "pointer"),
    [
        ({"start_after_s": -1}, "/start_after_s"),
        ({"start_after_s": 7_776_001}, "/start_after_s"),
        ({"start_at": "2026-01-01T00:00:00"}, "/start_at"),
        ({"start_at": "2999-01-01T00:00:00Z"}, "/start_at"),
        ({"start_at": "2026-01-01T00:00:00Z", "start_after_s": 1}, ""),
    ],
)
async def test_another_start_is_refused_and_says_where(client: Client, start: dict[str, Any], pointer: str) -> None:
    batch = {"items": [{"custom_id": "1", "query": "?"}], **ECHO}
    for path, body in (("/runs", ECHO | {"query": "?"}), ("/agent/query", ECHO | {"query": "?"}), ("/batches", batch)):
        refused = await client.http.post(path, json={**body, **start})
        assert refused.status_code == 422, (path, refused.text)
        assert [error["pointer"] for error in refused.json()["errors"]] == [pointer]


async def test_a_repeated_call_finds_the_run_that_starts_later(client: Client) -> None:
    headers = {"Idempotency-Key": client.user_id}
    asked = {"query": "hello", **HOUR, **ECHO}

    first, second = [await client.http.post("/runs", json=asked, headers=headers) for _ in range(2)]

    assert second.headers["Idempotency-Replayed"] == "true"
    assert first.json() == second.json()


async def test_one_starts_whoever_dies_over_it(service: Service) -> None:
    service.worker().terminate()  # It has registered its agents.
    api = service.api(FAILPOINTS="runs_started=kill")
    async with Client(api.url) as client:
        thread_id = await client.thread("echo")
        of_thread = await client.run("hello", thread_id=thread_id, start_after_s=1)
        alone = await client.run("hello", start_after_s=1, **ECHO)
    api.process.wait()
    async with Client(service.api().url, user_id=client.user_id) as survivor:
        service.worker()
        ends = [await survivor.ended(run["id"]) for run in (of_thread, alone)]
        messages = await survivor.messages(thread_id)

    assert [(run["status"], run["attempt"]) for run in ends] == [("succeeded", 1)] * 2
    assert all(has_started_in_time(run) for run in ends)
    assert [message["role"] for message in messages] == ["user", "assistant"]
