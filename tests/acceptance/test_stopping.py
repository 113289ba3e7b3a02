"""Stopping is no accident: what a worker that is told to stop cannot end in time, the next one begins at once."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psycopg
import pytest

from agent_relay.shared.clock import new_id
from agent_relay.shared.queue import RunQueue
from agent_relay.shared.runs.cancel import cancel
from agent_relay.shared.runs.recovery import take_back
from agent_relay.shared.settings import Settings
from agent_relay.worker.execution.attempt import Attempt, Stop
from agent_relay.worker.execution.in_flight import RunsInFlight
from agent_relay.worker.execution.lease import Lease
from tests.support.client import Client, Event, names
from tests.support.eventually import soon
from tests.support.service import Service
from tests.support.stage import Stage

RESTARTS = 10
THREADS, ALONE = 3, 3
SHORT = {"DRAIN_SECONDS": "0.2", "LEASE_SECONDS": "600", "BEAT_SECONDS": "1"}
"""With such a lease, nothing is made good by its running out."""


@pytest.mark.timeout(300)
async def test_ten_rolling_restarts_with_runs_longer_than_the_drain_time_fail_nothing(
    service: Service, tmp_path: Path
) -> None:
    """No run can end before all restarts are over: each is given back by each worker, but for those behind others."""
    may_end = tmp_path / "may_end"
    api, worker = service.api(**SHORT), service.worker(**SHORT)
    async with Client(api.url) as client:
        threads = [await client.thread("patient") for _ in range(THREADS)]
        first = [await client.run(str(may_end), thread_id=thread_id) for thread_id in threads]
        first += [await client.run(str(may_end), agent_type="patient") for _ in range(ALONE)]
        behind = [await client.run(str(may_end), thread_id=thread_id) for thread_id in threads]
        told: list[list[Event]] = [[] for _ in (*first, *behind)]
        following = [
            asyncio.create_task(follow(client, run["id"], events))
            for run, events in zip((*first, *behind), told, strict=True)
        ]
        for restarts in range(RESTARTS):
            await begun(told[: len(first)], 1 + restarts)
            successor = await asyncio.to_thread(service.worker, **SHORT)
            assert await asyncio.to_thread(worker.terminate) == 0
            worker = successor
        await begun(told[: len(first)], 1 + RESTARTS)
        may_end.touch()
        await asyncio.gather(*following)
        ended = [await client.ended(run["id"]) for run in (*first, *behind)]
    with psycopg.connect(service.database_url) as connection:
        crashes = connection.execute("SELECT sum(crashes) FROM runs").fetchone()

    assert [(run["status"], run["output"]) for run in ended] == [("succeeded", "Well, at last.")] * len(ended)
    assert [run["attempt"] for run in ended] == [1 + RESTARTS] * len(first) + [1] * len(behind)
    assert crashes == (0,)
    given_back = ["first", *["worker_stopping"] * RESTARTS]
    assert [reasons(events) for events in told] == [given_back] * len(first) + [["first"]] * len(behind)
    assert [names(events)[-2:] for events in told] == [["message_complete", "done"]] * len(told)


async def follow(client: Client, run_id: str, events: list[Event]) -> None:
    """Note what is told of a run, as it is told."""
    async with client.following(run_id) as stream:
        async for event in stream:
            events.append(event)  # noqa: PERF401  (as it is told)


async def begun(told: list[list[Event]], times: int) -> None:
    """Wait until each run has begun so often; that one ends instead is not waited for."""

    async def all_have() -> bool:
        assert "done" not in {event["event"] for events in told for event in events}
        return all(len(reasons(events)) == times for events in told)

    await soon(all_have)


def reasons(events: list[Event]) -> list[str]:
    """Say why each attempt began."""
    return [event["reason"] for event in events if event["event"] == "message_started"]


def test_a_run_that_is_being_claimed_as_its_worker_stops_is_given_back(stage: Stage) -> None:
    stopped: list[Stop] = []
    roster, run_id = RunsInFlight(stage.database, cast("RunQueue", None), 2), new_id()
    roster.take(run_id)
    roster.stop_all(Stop.STOPPING)
    roster.begin(
        cast(
            "Attempt",
            SimpleNamespace(claimed=SimpleNamespace(run_id=run_id, agent_type="echo"), stop=stopped.append),
        )
    )

    assert stopped == [Stop.STOPPING]


async def test_a_worker_that_has_said_goodbye_holds_nothing(stage: Stage, database_url: str) -> None:
    lease = Lease(
        Settings(database_url=database_url, redis_url="redis://nowhere"),
        "0",
        first_id=new_id(),
        agents=(),
        held=list,
        told=list,
        beat=lambda _: None,
        lost=lambda: None,
    )
    await lease.acquire()
    assert lease.worker_id is not None
    alone: dict[str, Any] = {"thread_id": None, "agent_type": "echo"}
    left, unwanted = await stage.query(**alone), await stage.query(**alone)
    for run_id in (left, unwanted):
        await stage.claimed(run_id, lease.worker_id)
    await cancel(stage.database, unwanted)

    await lease.release()

    row = await stage.row(left)
    assert (row.status, row.begun, row.crashes, row.ring, row.worker_id) == ("queued", "worker_stopping", 0, 2, None)
    ended, waiting = await take_back(stage.database, max_crashes=1)
    assert ([row.id for row in ended], waiting) == ([unwanted], [])
    assert (await stage.row(unwanted)).status == "cancelled"
