"""Crashed is not failed: what a run that kills its process costs, and what a dead process costs."""

from __future__ import annotations

import asyncio
import os

import psutil
import psycopg
import pytest

from tests.support.client import Client, names
from tests.support.eventually import DEADLINE_SECONDS, eventually, soon
from tests.support.service import Running, Service
from tests.support.stage import Stage

FOREVER = {"LEASE_SECONDS": "600", "BEAT_SECONDS": "1"}
"""With such a lease, nobody learns of a death by its running out."""


def children_of(parent: Running) -> list[psutil.Process]:
    """The worker processes of a parent, forked from its nursery."""
    (nursery,) = psutil.Process(parent.process.pid).children()
    return nursery.children()


async def test_a_poison_run_takes_nobody_with_it(service: Service) -> None:
    api = service.api(**FOREVER)
    service.worker("--processes", "2", **FOREVER)
    async with Client(api.url) as client:
        others = [await client.run("2 seconds", agent_type="slow") for _ in range(8)]
        poison = [await client.run(query, agent_type="poison") for query in ("die", "vanish")]

        ends = [await client.ended(run["id"]) for run in poison]
        ended = [await client.ended(run["id"]) for run in others]
        events = await client.events(poison[0]["id"])

    assert [(end["error"]["code"], end["attempt"]) for end in ends] == [("worker_crashed", 3)] * 2
    assert [run["status"] for run in ended] == ["succeeded"] * 8
    assert max(run["attempt"] for run in ended) <= 2
    assert names(events)[-2:] == ["error", "done"]


async def test_a_worker_whose_loop_is_stuck_ends_itself(service: Service, stage: Stage) -> None:
    impatient = {"AGENTS": "stuck=tests.support.agents:stuck", "STUCK_LOOP_SECONDS": "1", "BEAT_SECONDS": "0.2"}
    worker = await asyncio.to_thread(service.worker, **FOREVER | impatient)
    await stage.query(thread_id=None, agent_type="stuck")

    assert await asyncio.to_thread(worker.process.wait, DEADLINE_SECONDS) == os.EX_SOFTWARE


async def test_where_no_worker_lives_an_api_process_sees_to_what_the_dead_have_left(
    service: Service, stage: Stage
) -> None:
    left, late = await stage.query(), await stage.query(thread_id=None, agent_type="echo", deadline_seconds=0.1)
    await stage.claimed(left, await stage.worker())
    await stage.execute("UPDATE workers SET ended_at = now()")
    service.begin("api", PORT="0")

    async def seen_to() -> bool:
        return [(await stage.row(run_id)).status for run_id in (left, late)] == ["queued", "failed"]

    assert await soon(seen_to)


def test_a_worker_that_can_make_no_more_processes_ends(service: Service) -> None:
    worker = service.worker()
    (nursery,) = psutil.Process(worker.process.pid).children()

    nursery.kill()

    assert worker.process.wait(DEADLINE_SECONDS) == 0


async def test_a_suspect_that_behaves_is_answered(service: Service) -> None:
    api = service.api(**FOREVER)
    parent = service.worker("--processes", "1", **FOREVER)
    async with Client(api.url) as client, client.asking("1 second", agent_type="slow") as stream:
        events = [await anext(stream) for _ in range(4)]
        children_of(parent)[0].kill()
        events += [event async for event in stream]

    started = [event for event in events if event["event"] == "message_started"]
    assert [(event["attempt"], event["reason"]) for event in started] == [(1, "first"), (2, "worker_lost")]
    assert names(events)[-2:] == ["message_complete", "done"]


@pytest.mark.parametrize("killed", [False, True])
async def test_a_parent_leaves_nothing_behind_told_to_stop_or_killed(service: Service, *, killed: bool) -> None:
    api = service.api()
    parent = service.worker("--processes", "2", DRAIN_SECONDS="0")
    eventually(lambda: len(children_of(parent)) == 2)
    children = children_of(parent)
    async with Client(api.url) as client:
        runs = [await client.run("30 seconds", agent_type="slow") for _ in range(4)]
        for run in runs:
            while (await client.read(run["id"]))["status"] != "running":  # noqa: ASYNC110  (another process)
                await asyncio.sleep(0.05)

        if killed:
            parent.kill()
        else:
            assert await asyncio.to_thread(parent.terminate) == 0
        await asyncio.to_thread(eventually, lambda: not any(child.is_running() for child in children))
        given_back = [await client.read(run["id"]) for run in runs]
    with psycopg.connect(service.database_url) as connection:
        crashes = connection.execute("SELECT sum(crashes) FROM runs").fetchone()

    assert [run["status"] for run in given_back] == ["queued"] * 4
    assert crashes == (0,)
