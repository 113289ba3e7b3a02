"""A step that has finished is not done again, whatever ends the process; and a worker that stops leaves after one."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.support.client import Client, Event, names
from tests.support.eventually import eventually
from tests.support.service import Running, Service
from tests.support.step_agents import Planned

SERVED = {"AGENTS": "steps=tests.support.step_agents:steps"}
FOREVER = {"LEASE_SECONDS": "600", "BEAT_SECONDS": "1", **SERVED}
"""With such a lease, no death is learnt of by its running out."""
SHORT = {"LEASE_SECONDS": "3", "BEAT_SECONDS": "0.5", **SERVED}


def started(events: list[Event]) -> list[tuple[Any, ...]]:
    """Say how the attempts began."""
    return [
        (event["attempt"], event["reason"], event["steps_kept"])
        for event in events
        if event["event"] == "message_started"
    ]


def told(events: list[Event], kind: str) -> list[str]:
    """Name the calls of which an event was told."""
    return [event["tool_call_id"] for event in events if event["event"] == kind]


async def test_a_tool_that_kills_its_process_is_called_again_and_nothing_else_is(
    service: Service, tmp_path: Path
) -> None:
    planned = Planned(tmp_path, [["work"], ["work", "kill", "work"], ["work"]])
    planned.dying.touch()
    api = service.api(**FOREVER)
    service.worker("--processes", "1", **FOREVER)
    async with Client(api.url) as client:
        thread_id = await client.thread("steps")
        run = await client.run(planned.query, thread_id=thread_id)
        following = asyncio.create_task(client.events(run["id"]))
        await asyncio.to_thread(eventually, lambda: len(planned.ledger.begun("1-1")) == 2)
        planned.dying.unlink()
        events = await following
        ended = await client.ended(run["id"])
        late = await client.events(run["id"])

    ledger = planned.ledger
    assert (ended["status"], ended["output"]) == ("succeeded", "5 results. ")
    assert started(events)[0] == (1, "first", 0)
    assert started(events)[1] == (2, "worker_lost", 5)
    assert [len(ledger.begun(call)) for call in ("0-0", "1-0", "1-2", "2-0")] == [1, 1, 1, 1]
    assert [line.split()[3:] for line in ledger.begun("1-1")][:2] == [["1"], ["2", "again"]]
    assert ended["usage"]["requests"] == 4
    assert ledger.asked == ["model 0", "model 1", "model 2", "model 3"]
    assert set(told(events, "tool_result")) == set(planned.calls)
    assert told(events, "tool_call").count("0-0") == 1
    assert [(event["id"], event["event"]) for event in late if event["event"] != "text_delta"] == [
        (event["id"], event["event"]) for event in events if event["event"] != "text_delta"
    ]


async def test_what_an_agent_tells_its_model_beside_a_result_outlives_the_process(
    service: Service, tmp_path: Path
) -> None:
    planned = Planned(tmp_path, [["remind"], ["kill_once"], ["recall"]])
    api = service.api(**FOREVER)
    service.worker("--processes", "1", **FOREVER)
    async with Client(api.url) as client:
        run = await client.run(planned.query, agent_type="steps")
        ended = await client.ended(run["id"])

    assert (ended["status"], ended["attempt"]) == ("succeeded", 2)
    assert "reminded 1" in planned.ledger.lines


async def test_a_step_that_kills_each_time_is_found(service: Service, tmp_path: Path) -> None:
    planned = Planned(tmp_path, [["work"], ["kill"]])
    planned.dying.touch()
    api = service.api(**FOREVER)
    service.worker("--processes", "1", **FOREVER)
    async with Client(api.url) as client:
        run = await client.run(planned.query, agent_type="steps")
        ended = await client.ended(run["id"])

    assert ended["error"]["code"] == "worker_crashed"
    assert len(planned.ledger.begun("0-0")) == 1
    assert len(planned.ledger.begun("1-0")) == ended["attempt"] == 3


async def test_crashes_of_steps_that_have_finished_do_not_count(service: Service, tmp_path: Path) -> None:
    """Each of four steps kills its process once, which is more than one step may."""
    planned = Planned(tmp_path, [["kill_once"]] * 4)
    api = service.api(**FOREVER)
    service.worker("--processes", "1", **FOREVER)
    async with Client(api.url) as client:
        run = await client.run(planned.query, agent_type="steps")
        ended = await client.ended(run["id"])

    assert (ended["status"], ended["attempt"]) == ("succeeded", 5)
    assert [len(planned.ledger.begun(call)) for call in planned.calls] == [2] * 4


async def stopped_in_a_tool(service: Service, planned: Planned, client: Client, worker: Running) -> list[Event]:
    """Ask; once the second call has begun, stop the worker and start another one; return what was told."""
    run = await client.run(planned.query, agent_type="steps")
    following = asyncio.create_task(client.events(run["id"]))
    await asyncio.to_thread(eventually, lambda: bool(planned.ledger.begun("1-0")))
    successor = asyncio.create_task(asyncio.to_thread(service.worker, **SHORT))
    assert await asyncio.to_thread(worker.terminate) == 0
    await successor
    return await following


async def test_a_worker_that_stops_lets_the_step_in_hand_finish_and_leaves_after_it(
    service: Service, tmp_path: Path
) -> None:
    planned = Planned(tmp_path, [["work"], ["work", "work"], ["work"], ["work"]], seconds=1)
    api, worker = service.api(**SHORT), service.worker(**SHORT)
    async with Client(api.url) as client:
        events = await stopped_in_a_tool(service, planned, client, worker)

    ledger = planned.ledger
    assert started(events) == [(1, "first", 0), (2, "worker_stopping", 5)]
    assert sorted(ledger.ended) == sorted(planned.calls)
    assert [len(ledger.begun(call)) for call in planned.calls] == [1] * len(planned.calls)
    assert len(ledger.asked) == 5
    assert names(events)[-2:] == ["message_complete", "done"]


@pytest.mark.parametrize(("agent", "kept"), [("forgetful", False), ("renewed", False), ("steps", True)])
async def test_an_agent_without_checkpoints_or_of_another_version_begins_with_the_query(
    service: Service, tmp_path: Path, agent: str, *, kept: bool
) -> None:
    planned = Planned(tmp_path, [["work"], ["work"]], seconds=1)
    api, worker = service.api(**SHORT), service.worker(**SHORT)
    async with Client(api.url) as client:
        run = await client.run(planned.query, agent_type="steps")
        following = asyncio.create_task(client.events(run["id"]))
        await asyncio.to_thread(eventually, lambda: bool(planned.ledger.begun("1-0")))
        worker.kill()
        other = SHORT | {"AGENTS": f"steps=tests.support.step_agents:{agent}"}
        await asyncio.to_thread(service.worker, **other)
        events = await following
        ended = await client.ended(run["id"])

    assert started(events) == [(1, "first", 0), (2, "worker_lost", 3 if kept else 0)]
    assert len(planned.ledger.begun("0-0")) == (1 if kept else 2)
    assert (ended["status"], ended["output"]) == ("succeeded", "2 results. ")
    if kept:
        assert ended["usage"]["requests"] == 3
