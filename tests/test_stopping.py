"""Stopping is no accident: what a worker that is told to stop cannot end in time, the next one begins at once."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import psycopg
import pytest

from shared.clock import new_id
from shared.lanes import Lanes
from shared.runs import cancel
from shared.runs.take_back import take_back
from shared.settings import Settings
from tests.client import Client, names
from tests.service import Service
from tests.stage import Stage
from worker.attempt import Attempt, Stop
from worker.lease import Lease
from worker.roster import Roster

RESTARTS = 10
RUNS = 12
SHORT = {"DRAIN_SECONDS": "0.2", "LEASE_SECONDS": "600", "BEAT_SECONDS": "1"}
"""With such a lease, nothing is made good by its running out."""


@pytest.mark.timeout(300)
async def test_ten_rolling_restarts_with_runs_longer_than_the_drain_time_fail_nothing(service: Service) -> None:
    api = service.api(**SHORT)
    workers = [service.worker(**SHORT), service.worker(**SHORT)]
    async with Client(api.url) as client:
        threads = [await client.thread("slow") for _ in range(RUNS // 3)]
        runs = [
            *[await client.run("4 seconds", thread_id=thread_id) for thread_id in threads for _ in range(2)],
            *[await client.run("4 seconds", agent_type="slow") for _ in range(RUNS - 2 * len(threads))],
        ]
        following = [asyncio.create_task(client.events(run["id"])) for run in runs]
        for _ in range(RESTARTS):
            workers.append(await asyncio.to_thread(service.worker, **SHORT))
            assert await asyncio.to_thread(workers.pop(0).terminate) == 0
        told = await asyncio.gather(*following)
        ended = [await client.ended(run["id"]) for run in runs]
    with psycopg.connect(service.database_url) as connection:
        crashes = connection.execute("SELECT sum(crashes) FROM runs").fetchone()

    assert [run["status"] for run in ended] == ["succeeded"] * RUNS
    assert crashes == (0,)
    assert [names(events)[-2:] for events in told] == [["message_complete", "done"]] * RUNS
    assert {reason for events in told for reason in reasons(events)} <= {"first", "worker_stopping"}


def reasons(events: list[dict[str, Any]]) -> list[str]:
    """Say why each attempt began."""
    return [event["reason"] for event in events if event["event"] == "message_started"]


def test_a_run_that_is_being_claimed_as_its_worker_stops_is_given_back(stage: Stage) -> None:
    stopped: list[Stop] = []
    roster, run_id = Roster(stage.database, cast("Lanes", None)), new_id()
    with roster.taking(run_id):
        roster.stop_all(Stop.STOPPING)
        roster.begin(cast("Attempt", SimpleNamespace(claimed=SimpleNamespace(run_id=run_id), stop=stopped.append)))

    assert stopped == [Stop.STOPPING]


async def test_a_worker_that_has_said_goodbye_holds_nothing(stage: Stage, database_url: str) -> None:
    lease = Lease(
        Settings(database_url=database_url, redis_url="redis://nowhere"),
        "0",
        first_id=new_id(),
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
