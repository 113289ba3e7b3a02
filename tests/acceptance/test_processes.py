"""Many processes on one PostgreSQL and one Redis, and what happens when some of them die."""

from __future__ import annotations

import asyncio
import json

import pytest
import redis.asyncio

from agent_relay.api.app import REDIS_CONNECTIONS
from tests.support.client import Client, ids, names, texts
from tests.support.service import Service


async def test_a_run_posted_to_one_api_streams_whole_from_the_other(service: Service) -> None:
    one, other = service.api(), service.api()
    for _ in range(3):
        service.worker()
    async with Client(one.url) as here, Client(other.url, user_id=here.user_id) as there:
        run = await here.run("What is my balance?", agent_type="bank_support")
        events = await there.events(run["id"])

        assert names(events)[-2:] == ["message_complete", "done"]
        assert json.loads(texts(events)[-1]) == (await here.read(run["id"]))["output"]

        runs = await asyncio.gather(*(here.run(f"Hello {n}", agent_type="echo") for n in range(200)))
        ended = await asyncio.gather(*(there.ended(run["id"]) for run in runs))

    assert [run["status"] for run in ended] == ["succeeded"] * 200
    assert [run["output"] for run in ended] == [f"You said: Hello {n}" for n in range(200)]
    assert {run["attempt"] for run in ended} == {1}


async def test_a_run_outlives_its_worker(service: Service) -> None:
    api = service.api(LEASE_SECONDS="2", BEAT_SECONDS="0.5")
    first = service.worker(LEASE_SECONDS="2", BEAT_SECONDS="0.5")
    async with Client(api.url) as client:
        thread_id = await client.thread("slow")
        async with client.asking("2 seconds", thread_id=thread_id) as stream:
            events = [await anext(stream) for _ in range(5)]
            first.kill()
            service.worker(LEASE_SECONDS="2", BEAT_SECONDS="0.5")
            events += [event async for event in stream]
        messages = await client.messages(thread_id)

    started = [event for event in events if event["event"] == "message_started"]
    assert [(event["attempt"], event["reason"]) for event in started] == [(1, "first"), (2, "worker_lost")]
    assert names(events)[-2:] == ["message_complete", "done"]
    assert ids(events) == sorted(set(ids(events)))
    assert [message["role"] for message in messages] == ["user", "assistant"]
    assert messages[1]["content"] == texts(events)[-1]


async def test_a_frozen_worker_writes_nothing_after_its_run_was_taken_over(service: Service) -> None:
    patience = {"LEASE_SECONDS": "2", "BEAT_SECONDS": "0.5"}
    api = service.api(**patience)
    frozen = service.worker(**patience)
    async with Client(api.url) as client:
        thread_id = await client.thread("slow")
        async with client.asking("2 seconds", thread_id=thread_id) as stream:
            events = [await anext(stream) for _ in range(5)]
            frozen.freeze()
            service.worker(**patience)
            events += [event async for event in stream]
        frozen.thaw()
        frozen.await_line(r"lease\.(declared_dead|registered worker_id=.*\n(.*\n)*.*lease\.registered)")
        after = await client.events(events[0]["run_id"])
        messages = await client.messages(thread_id)

    assert names(after) == ["message_created", "message_started", "text_delta", "message_complete", "done"]
    assert after[1]["attempt"] == 2
    assert [message["role"] for message in messages] == ["user", "assistant"]


async def test_a_worker_told_to_stop_gives_its_runs_back_at_once(service: Service) -> None:
    api = service.api()
    first = service.worker(DRAIN_SECONDS="0")
    async with Client(api.url) as client:
        async with client.asking("1 second", agent_type="slow") as stream:
            events = [await anext(stream) for _ in range(4)]
            assert await asyncio.to_thread(first.terminate) == 0
            service.worker()
            events += [event async for event in stream]
        run = await client.read(events[0]["run_id"])

    started = [event for event in events if event["event"] == "message_started"]
    assert [(event["attempt"], event["reason"]) for event in started] == [(1, "first"), (2, "worker_stopping")]
    assert run["status"] == "succeeded"


async def test_a_worker_told_to_stop_lets_short_runs_end(service: Service) -> None:
    api = service.api()
    worker = service.worker(DRAIN_SECONDS="20")
    async with Client(api.url) as client, client.asking("1 second", agent_type="slow") as stream:
        await anext(stream)
        await anext(stream)
        stopped = asyncio.create_task(asyncio.to_thread(worker.terminate))
        rest = [event async for event in stream]
        assert await stopped == 0

    assert names(rest)[-2:] == ["message_complete", "done"]


async def test_an_api_told_to_stop_ends_its_streams_without_done(service: Service) -> None:
    api = service.api()
    service.worker()
    async with Client(api.url) as client, client.asking("2 seconds", agent_type="slow") as stream:
        events = [await anext(stream) for _ in range(4)]
        stopped = asyncio.create_task(asyncio.to_thread(api.terminate))
        events += [event async for event in stream]
        await stopped
    assert "done" not in names(events)
    other = service.api()
    async with Client(other.url, user_id=client.user_id) as again:
        rest = await again.events(events[0]["run_id"], after=events[-1]["id"])

    assert ids(rest)[0] > ids(events)[-1]
    assert names(rest)[-2:] == ["message_complete", "done"]


async def test_a_run_waits_for_the_first_worker(service: Service) -> None:
    api = service.api()
    service.worker().terminate()
    async with Client(api.url) as client:
        run = await client.run("hello", agent_type="echo")
        assert (await client.read(run["id"]))["queue_position"] == 0
        service.worker()

        assert (await client.ended(run["id"]))["status"] == "succeeded"


async def test_readers_who_come_all_at_once_share_a_few_connections(service: Service, redis_url: str) -> None:
    api, _ = service.api(), service.worker()
    async with Client(api.url) as client, redis.asyncio.Redis.from_url(redis_url) as server:
        run = await client.ended((await client.run("hello", agent_type="echo"))["id"])
        before = len(await server.client_list())
        await server.client_pause(500)
        told = await asyncio.gather(*(client.events(run["id"]) for _ in range(60)))
        after = len(await server.client_list())

    assert [names(events)[-2:] for events in told] == [["message_complete", "done"]] * 60
    assert after - before <= REDIS_CONNECTIONS


async def test_losing_all_of_redis_loses_no_run(service: Service, redis_url: str) -> None:
    api = service.api()
    service.worker().terminate()
    async with Client(api.url) as client:
        runs = [await client.run("hello", agent_type="echo") for _ in range(5)]
        async with redis.asyncio.Redis.from_url(redis_url) as server:
            await server.flushdb()
        service.worker()

        ended = [await client.ended(run["id"]) for run in runs]

    assert [run["status"] for run in ended] == ["succeeded"] * 5


async def test_a_log_lost_in_mid_answer_is_told_and_the_end_is_true(service: Service, redis_url: str) -> None:
    api = service.api()
    service.worker()
    async with Client(api.url) as client:
        async with client.asking("2 seconds", agent_type="slow") as stream:
            events = [await anext(stream) for _ in range(6)]
            async with redis.asyncio.Redis.from_url(redis_url) as server:
                await server.flushdb()
            events += [event async for event in stream]
        run = await client.read(events[0]["run_id"])
        late = await client.events(run["id"])

    assert names(events)[-2:] == ["message_complete", "done"]
    assert ids(events) == sorted(set(ids(events)))
    assert texts(events)[-1] == run["output"]
    assert "gap" in names(late)
    assert texts(late) == [run["output"]]


@pytest.mark.parametrize("seconds_in", [0, 1], ids=["queued", "running"])
async def test_a_cancelled_run_ends_with_a_receipt(service: Service, seconds_in: int) -> None:
    api = service.api()
    worker = service.worker()
    if not seconds_in:
        worker.terminate()
    async with Client(api.url) as client:
        thread_id = await client.thread("slow")
        run = await client.run("30 seconds", thread_id=thread_id)
        following = asyncio.create_task(client.events(run["id"]))
        if seconds_in:
            while (await client.read(run["id"]))["partial_output"] is None:  # noqa: ASYNC110  (another process)
                await asyncio.sleep(0.05)

        receipt = await client.http.post(f"/runs/{run['id']}/cancel", params={"wait": 20})
        again = await client.http.post(f"/runs/{run['id']}/cancel")
        events = await following
        messages = await client.messages(thread_id)

    assert (receipt.status_code, receipt.json()["status"]) == (200, "cancelled")
    assert again.json() == receipt.json()
    assert names(events)[-2:] == ["cancelled", "done"]
    assert events[-2]["partial"] is bool(seconds_in)
    if seconds_in:
        assert messages[1]["metadata"]["status"] == "interrupted"
        assert messages[1]["content"] == texts(events)[-1] == receipt.json()["partial_output"]
    else:
        assert len(messages) == 1


async def test_a_caller_who_hangs_up_can_have_the_run_cancelled(service: Service) -> None:
    api = service.api()
    service.worker()
    async with Client(api.url) as client:
        async with client.asking("30 seconds", agent_type="slow", on_disconnect="cancel") as stream:
            run_id = (await anext(stream))["run_id"]
            await anext(stream)

        run = await client.ended(run_id)

    assert run["status"] == "cancelled"


async def test_a_deleted_thread_is_gone_and_its_streams_end(service: Service) -> None:
    api = service.api()
    service.worker()
    async with Client(api.url) as client:
        thread_id = await client.thread("slow")
        async with client.asking("30 seconds", thread_id=thread_id) as stream:
            events = [await anext(stream) for _ in range(4)]
            deleted = await client.http.delete(f"/threads/{thread_id}")
            events += [event async for event in stream]
        gone = [
            await client.http.get(f"/threads/{thread_id}"),
            await client.http.get(f"/threads/{thread_id}/messages"),
            await client.http.get(f"/runs/{events[0]['run_id']}"),
            await client.http.delete(f"/threads/{thread_id}"),
            await client.http.post("/runs", json={"thread_id": thread_id, "query": "x"}),
        ]

    assert deleted.status_code == 204
    assert names(events)[-2:] == ["cancelled", "done"]
    assert [response.status_code for response in gone] == [404] * 5


@pytest.mark.parametrize("strategy", ["interrupt", "rollback"])
async def test_a_new_query_can_take_the_place_of_those_before(service: Service, strategy: str) -> None:
    api = service.api()
    service.worker()
    async with Client(api.url) as client:
        thread_id = await client.thread("slow")
        async with client.asking("30 seconds", thread_id=thread_id) as stream:
            events = [await anext(stream) for _ in range(4)]
            waiting = await client.run("30 seconds", thread_id=thread_id)
            new = await client.run("0.2 seconds", thread_id=thread_id, multitask_strategy=strategy)
            events += [event async for event in stream]
        ended = [await client.ended(run_id) for run_id in (events[0]["run_id"], waiting["id"], new["id"])]
        messages = await client.messages(thread_id)

    assert [run["status"] for run in ended] == ["cancelled", "cancelled", "succeeded"]
    assert names(events)[-2:] == ["cancelled", "done"]
    assert ended[0]["partial_output"] == texts(events)[-1]
    told = [(message["role"], message["metadata"].get("status")) for message in messages]
    if strategy == "rollback":
        assert told == [("user", None), ("assistant", None)]
    else:
        assert told == [
            ("user", None),
            ("assistant", "interrupted"),
            ("user", None),
            ("user", None),
            ("assistant", None),
        ]
