"""A message into a run reaches its agent, or becomes the thread's next run: once, whatever dies in between."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest

from tests.support.client import Client, Event
from tests.support.eventually import eventually
from tests.support.problems import errors_of
from tests.support.service import Running, Service
from tests.support.step_agents import Planned
from tests.support.waiting_agents import LEDGER

SERVED = {"AGENTS": "steps=tests.support.step_agents:steps", "LEASE_SECONDS": "3", "BEAT_SECONDS": "0.5"}


async def send(client: Client, run_id: str, query: str, key: str | None = None) -> httpx.Response:
    """Send a message into a run."""
    headers = {} if key is None else {"Idempotency-Key": key}
    return await client.http.post(f"/runs/{run_id}/messages", json={"query": query}, headers=headers)


async def sent(client: Client, run_id: str, query: str, key: str | None = None) -> dict[str, Any]:
    """Send a message into a run, which takes it."""
    response = await send(client, run_id, query, key)
    assert response.status_code == 202, response.text
    return response.json()


def enqueued(events: list[Event]) -> list[str]:
    """Name the messages that a stream tells of."""
    return [event["message"]["id"] for event in events if event["event"] == "message_enqueued"]


async def begun(planned: Planned, call: str = "0-0", times: int = 1) -> None:
    """Wait until a call has begun."""
    await asyncio.to_thread(eventually, lambda: len(planned.ledger.begun(call)) >= times)


async def runs_of(client: Client, thread_id: str) -> list[dict[str, Any]]:
    """Read the runs of a thread, the oldest first."""
    return (await client.http.get("/runs", params={"thread_id": thread_id})).json()["items"][::-1]


async def said(client: Client, thread_id: str) -> list[tuple[str, str]]:
    """Read the thread as people see it, without the plans."""
    return [
        (message["role"], "plan" if message["content"].startswith("{") else message["content"])
        for message in await client.messages(thread_id)
    ]


async def told_to_the_model(client: Client, run_id: str) -> list[str]:
    """Read what was sent into a run, from where the model knew of it."""
    steps = (await client.http.get(f"/runs/{run_id}/steps")).json()["items"]
    return [step["text"] for step in steps if step["kind"] == "message"]


async def test_a_message_reaches_the_run_that_is_under_way(service: Service, tmp_path: Path) -> None:
    planned = Planned(tmp_path, [["work"], ["work"]], seconds=1)
    api = service.api(**SERVED)
    service.worker(**SERVED)
    async with Client(api.url) as client, Client(api.url) as stranger:
        thread_id = await client.thread("steps")
        run = await client.run(planned.query, thread_id=thread_id)
        following = asyncio.create_task(client.events(run["id"]))
        await begun(planned)
        message = await sent(client, run["id"], "hurry", "once")
        again = await sent(client, run["id"], "hurry", "once")
        second = await sent(client, run["id"], "please")
        other = await send(client, run["id"], "slowly", "once")
        refused = [
            (await send(stranger, run["id"], "mine")).status_code,
            (await send(client, str(uuid4()), "nowhere")).status_code,
            (await send(client, run["id"], "")).status_code,
        ]
        events = await following
        ended = await client.ended(run["id"])
        late = await client.events(run["id"])
        at_last = await send(client, run["id"], "hurry", "once")
        thread = await said(client, thread_id)
        runs = await runs_of(client, thread_id)
        told = await told_to_the_model(client, run["id"])
        pages = await client.http.get(f"/threads/{thread_id}/messages", params={"limit": 2})
        cursor = {"cursor": pages.json()["next_cursor"]}
        rest = await client.http.get(f"/threads/{thread_id}/messages", params=cursor)

    assert message == again == {"id": message["id"], "status": "pending", "run_id": run["id"]}
    assert (other.status_code, refused) == (422, [404, 404, 422])
    assert (ended["status"], ended["output"], ended["attempt"]) == ("succeeded", "2 results. ", 1)
    assert enqueued(events) == enqueued(late) == [message["id"], second["id"]]
    assert at_last.json() == {**message, "status": "enqueued"}
    assert at_last.headers["Idempotency-Replayed"] == "true"
    assert thread == [("user", "plan"), ("user", "hurry"), ("user", "please"), ("assistant", "2 results. ")]
    assert [each["content"] for each in rest.json()["items"]] == ["please", "2 results. "]
    assert [each["id"] for each in runs] == [run["id"]]
    assert told == ["hurry", "please"]


async def test_a_message_that_comes_too_late_is_the_threads_next_run(service: Service, tmp_path: Path) -> None:
    """And so is one into a run that is cancelled, or has ended: in the order in which they were sent."""
    planned = Planned(tmp_path, [], last=0.7)
    api = service.api(**SERVED)
    service.worker(**SERVED)
    async with Client(api.url) as client:
        thread_id = await client.thread("steps")
        async with client.asking(planned.query, thread_id=thread_id) as stream:
            events = [await anext(stream) for _ in range(3)]
            run_id = events[0]["run_id"]
            late = await sent(client, run_id, planned.query, "late")
            queued = await client.run(planned.query, thread_id=thread_id)
            events += [event async for event in stream]
        became = await sent(client, run_id, planned.query, "late")
        assert (became["id"], became["status"]) == (late["id"], "queued")
        assert (await client.ended(became["run_id"]))["status"] == "succeeded"
        await is_running(client, queued["id"])
        into_cancelled = await sent(client, queued["id"], planned.query, "cancelled")
        assert (await client.http.post(f"/runs/{queued['id']}/cancel")).status_code == 200
        third = await sent(client, queued["id"], planned.query, "cancelled")
        assert (await client.ended(third["run_id"]))["status"] == "succeeded"
        after_the_end = await sent(client, run_id, planned.query, "ended")
        again = await sent(client, run_id, planned.query, "ended")
        assert (await client.ended(after_the_end["run_id"]))["status"] == "succeeded"
        runs = await runs_of(client, thread_id)
        messages = await client.messages(thread_id)

    assert enqueued(events) == []
    assert (late["status"], into_cancelled["status"]) == ("pending", "pending")
    assert after_the_end == again == {**after_the_end, "status": "queued"}
    assert {run["id"] for run in runs} == {
        run_id, became["run_id"], queued["id"], third["run_id"], after_the_end["run_id"]
    }  # fmt: skip
    by_run = [(message["metadata"]["run_id"], message["role"]) for message in messages]
    assert by_run == [
        (run_id, "user"), (run_id, "assistant"), (became["run_id"], "user"), (became["run_id"], "assistant"),
        (queued["id"], "user"), *([(queued["id"], "assistant")] if len(by_run) == 10 else []),
        (third["run_id"], "user"), (third["run_id"], "assistant"),
        (after_the_end["run_id"], "user"), (after_the_end["run_id"], "assistant"),
    ]  # fmt: skip
    assert messages[2]["id"] == late["id"]


async def is_running(client: Client, run_id: str) -> None:
    """Wait until a run is running."""
    async with client.following(run_id) as stream:
        async for event in stream:
            if event["event"] == "message_started":
                return


async def test_without_a_thread_the_answer_says_what_became_of_it(service: Service, tmp_path: Path) -> None:
    planned = Planned(tmp_path, [], last=1.5)
    api = service.api(**SERVED)
    service.worker(**SERVED)
    async with Client(api.url) as client, Client(api.url) as stranger:
        async with client.asking(planned.query, agent_type="steps") as stream:
            events = [await anext(stream) for _ in range(3)]
            run_id = events[0]["run_id"]
            late = await sent(client, run_id, "hurry", "late")
            foreign = await send(stranger, run_id, "mine")
            events += [event async for event in stream]
        again = await sent(client, run_id, "hurry", "late")
        refused = await send(client, run_id, "hurry")

    assert (late["status"], again) == ("pending", {**late, "status": "run_ended"})
    assert foreign.status_code == 404
    assert (refused.status_code, refused.json()["code"]) == (409, "run_ended")
    assert enqueued(events) == []


async def test_a_query_that_steers_goes_into_the_run_that_is_running(service: Service, tmp_path: Path) -> None:
    planned = Planned(tmp_path, [["work"]], seconds=1)
    api = service.api(**SERVED)
    service.worker(**SERVED)
    steer = {"multitask_strategy": "steer"}
    async with Client(api.url) as client:
        thread_id = await client.thread("steps")
        run = await client.run(planned.query, thread_id=thread_id, **steer)
        await begun(planned)
        key = {"Idempotency-Key": "steered"}
        body = {"query": "hurry", "thread_id": thread_id, **steer}
        steered, again = [await client.http.post("/runs", json=body, headers=key) for _ in range(2)]
        answer = await client.ask("please", thread_id=thread_id, **steer)
        wrong = [
            await client.http.post("/runs", json={"query": "x", "agent_type": "steps", **steer}),
            await client.http.post("/runs", json={**body, "replace_from": str(uuid4())}),
        ]
        runs = await runs_of(client, thread_id)
        thread = await said(client, thread_id)
        events = await client.events(run["id"])

    assert [response.status_code for response in (steered, again, answer, *wrong)] == [202, 202, 200, 422, 422]
    assert {response.json()["id"] for response in (steered, again)} == {run["id"]}
    assert (answer.json()["run_id"], answer.json()["response"]) == (run["id"], "1 results. ")
    assert [each["id"] for each in runs] == [run["id"]]
    assert thread == [("user", "plan"), ("user", "hurry"), ("user", "please"), ("assistant", "1 results. ")]
    assert len(enqueued(events)) == 2


@pytest.mark.parametrize("strategy", ["interrupt", "rollback"])
async def test_a_query_that_takes_the_place_of_all_takes_that_of_messages_too(
    service: Service, tmp_path: Path, strategy: str
) -> None:
    planned = Planned(tmp_path, [["work"]], seconds=60)
    api = service.api(**SERVED)
    service.worker(**SERVED)
    async with Client(api.url) as client:
        thread_id = await client.thread("steps")
        running = await client.run(planned.query, thread_id=thread_id)
        waiting = await client.run(planned.query, thread_id=thread_id)
        await begun(planned)
        await sent(client, waiting["id"], planned.query)
        last = await client.run(Planned(tmp_path, []).query, thread_id=thread_id, multitask_strategy=strategy)
        await client.ended(last["id"])
        runs = await runs_of(client, thread_id)
        messages = await client.messages(thread_id)

    statuses = {run["id"]: run["status"] for run in runs}
    assert statuses.pop(last["id"]) == "succeeded"
    assert set(statuses.values()) == {"cancelled"}
    assert {running["id"], waiting["id"]} <= statuses.keys()
    users = [message for message in messages if message["role"] == "user"]
    assert len(users) == (4 if strategy == "interrupt" else 1)


def fallen(trapped: Running) -> bool:
    """Tell whether the process has come by its failpoint."""
    return "failpoint.reached" in trapped.log.read_text()


async def test_a_message_whose_api_dies_before_it_says_so_is_sent_once(service: Service, tmp_path: Path) -> None:
    planned = Planned(tmp_path, [["work"], ["work"]], seconds=2)
    trapped, api = service.api(**SERVED, FAILPOINTS="message_stored=kill"), service.api(**SERVED)
    service.worker(**SERVED)
    async with Client(trapped.url) as there, Client(api.url, user_id=there.user_id) as here:
        thread_id = await here.thread("steps")
        run = await here.run(planned.query, thread_id=thread_id)
        following = asyncio.create_task(here.events(run["id"]))
        await begun(planned)
        with pytest.raises(httpx.HTTPError):
            await send(there, run["id"], "hurry", "once")
        message = await sent(here, run["id"], "hurry", "once")
        events = await following
        thread = await said(here, thread_id)

    assert enqueued(events) == [message["id"]]  # The heartbeat has brought it: nobody had told the worker.
    assert thread == [("user", "plan"), ("user", "hurry"), ("assistant", "2 results. ")]


@pytest.mark.parametrize(
    ("window", "is_given_again"),
    [("message_given", True), ("step_finished@2", True), ("step_stored@2", False), ("run_flushed", False)],
)
async def test_a_message_is_in_the_answer_once_wherever_its_worker_dies(
    service: Service, tmp_path: Path, window: str, *, is_given_again: bool
) -> None:
    planned = Planned(tmp_path, [["work"], ["work"]], seconds=1)
    api = service.api(**SERVED)
    name, _, passes = window.partition("@")
    trapped = service.worker(**SERVED, FAILPOINTS=f"{name}=kill" + (f"@{passes}" if passes else ""))
    async with Client(api.url) as client:
        thread_id = await client.thread("steps")
        run = await client.run(planned.query, thread_id=thread_id)
        following = asyncio.create_task(client.events(run["id"]))
        await begun(planned)
        message = await sent(client, run["id"], "hurry")
        await asyncio.to_thread(eventually, lambda: fallen(trapped))
        await asyncio.to_thread(service.worker, **SERVED)
        events = await following
        ended = await client.ended(run["id"])
        thread = await said(client, thread_id)
        told = await told_to_the_model(client, run["id"])
        late = await client.events(run["id"])

    assert (ended["status"], ended["output"], ended["attempt"]) == ("succeeded", "2 results. ", 2)
    assert thread == [("user", "plan"), ("user", "hurry"), ("assistant", "2 results. ")]
    assert told == ["hurry"]
    assert set(enqueued(events)) == set(enqueued(late)) == {message["id"]}
    attempts = {event["id"].split("-")[0] for event in events if event["event"] == "message_enqueued"}
    assert ("2" in attempts) == is_given_again
    assert [len(planned.ledger.begun("0-0"))] == [1]


@pytest.mark.parametrize("window", ["run_flushed", "run_stored", "end_told"])
async def test_a_message_that_came_too_late_is_one_run_wherever_its_worker_dies(
    service: Service, tmp_path: Path, window: str
) -> None:
    planned = Planned(tmp_path, [], last=1.5)
    api = service.api(**SERVED)
    trapped = service.worker(**SERVED, FAILPOINTS=f"{window}=kill")
    async with Client(api.url) as client:
        thread_id = await client.thread("steps")
        async with client.asking(planned.query, thread_id=thread_id) as stream:
            events = [await anext(stream) for _ in range(3)]
            run_id = events[0]["run_id"]
            message = await sent(client, run_id, planned.query, "late")
            await asyncio.to_thread(eventually, lambda: fallen(trapped))
            await asyncio.to_thread(service.worker, **SERVED)
            events += [event async for event in stream]
        became = await sent(client, run_id, planned.query, "late")
        runs = [await client.ended(run["id"]) for run in await runs_of(client, thread_id)]
        messages = await client.messages(thread_id)

    assert {run["status"] for run in runs} == {"succeeded"}
    if window == "run_flushed":  # The attempt that follows takes the message in.
        assert (became["status"], [run["id"] for run in runs]) == ("enqueued", [run_id])
        assert enqueued(events) == [message["id"]]
    else:
        assert (became["status"], [run["id"] for run in runs]) == ("queued", [run_id, became["run_id"]])
        assert enqueued(events) == []
    assert len(messages) == (3 if window == "run_flushed" else 4)
    assert len({each["id"] for each in messages}) == len(messages)


async def test_forks_and_later_runs_know_what_was_sent_into_a_run(service: Service, tmp_path: Path) -> None:
    """Also without the model's own messages, which are left out where they are too large."""
    served = {"AGENTS": "asks=tests.support.waiting_agents:asks", LEDGER: str(tmp_path / "ledger")}
    api = service.api(**served)
    service.worker(**served)
    plan, history = '[["nap", {"seconds": 1.5}]], [["look", {}]]', '["history"]'

    async def known(thread_id: str) -> list[str]:
        ended = await client.ended((await client.run(history, thread_id=thread_id))["id"])
        assert ended["status"] == "succeeded", ended
        return json.loads(ended["output"])

    async def fork(thread_id: str, **body: Any) -> httpx.Response:
        return await client.http.post(f"/threads/{thread_id}/fork", json=body)

    async with Client(api.url) as client:
        thread_id = await client.thread("asks")
        run = await client.run(f"[{plan}]", thread_id=thread_id)
        await asyncio.to_thread(eventually, (tmp_path / "ledger").exists)
        message = await sent(client, run["id"], "hurry")
        assert json.loads((await client.ended(run["id"]))["output"]) == ["nap: rested", "look: seen", "told: hurry"]
        original = await client.messages(thread_id)
        forked = (await fork(thread_id, through_message_id=original[2]["id"])).json()["id"]
        of_fork = (await fork(forked)).json()["id"]
        wrong = await fork(thread_id, through_message_id=message["id"])
        copies = [await client.messages(each) for each in (forked, of_fork)]
        told = [await told_to_the_model(client, copy[2]["metadata"]["run_id"]) for copy in copies]
        late = await sent(client, run["id"], history)
        assert json.loads((await client.ended(late["run_id"]))["output"]) == [f"[{plan}]", "hurry"]
        with psycopg.connect(service.database_url) as database:
            database.execute("DELETE FROM transcripts")
        knew = [await known(each) for each in (thread_id, forked, of_fork)]
        body = {"query": "[]", "thread_id": of_fork}
        refused = await client.http.post("/runs", json=body | {"replace_from": copies[1][1]["id"]})
        replacing = await client.http.post("/runs", json=body | {"replace_from": copies[1][0]["id"]})
        await client.ended(replacing.json()["id"])
        rest = await client.messages(of_fork)

    assert [each["content"] for each in original] == [f"[{plan}]", "hurry", original[2]["content"]]
    for copy in copies:
        assert [each["content"] for each in copy] == [each["content"] for each in original]
    assert len({each["id"] for each in (*original, *copies[0], *copies[1])}) == 9
    assert told == [["hurry"], ["hurry"]]
    assert errors_of(wrong) == {("/through_message_id", "unknown_message")}
    assert knew == [[f"[{plan}]", "hurry", history], [f"[{plan}]", "hurry"], [f"[{plan}]", "hurry"]]
    assert errors_of(refused) == {("/replace_from", "unknown_message")}
    assert copies[1][0]["id"] in refused.text
    assert [each["content"] for each in rest] == ["[]", "[]"]
