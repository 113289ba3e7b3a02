"""A process made for one suspect: however it ends, its run does not wait for a lease."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import psycopg
import pytest

from agent_relay.shared.maintenance.sweeper import Sweeper
from agent_relay.shared.runs.claim import set_aside
from agent_relay.shared.runs.recovery import take_back
from agent_relay.shared.settings import Settings
from agent_relay.worker.processes.quarantine import Quarantine
from agent_relay.worker.processes.spawner import Spawner
from tests.support.eventually import DEADLINE_SECONDS, soon
from tests.support.stage import Stage


def hold(settings: Settings, worker_id: UUID, run_id: UUID | None, *_: object) -> None:
    """Hold the run as a worker with a long lease does."""
    url = settings.database_url.replace("+psycopg", "")
    with psycopg.connect(url) as connection:
        connection.execute(
            "INSERT INTO workers (id, pool, host, pid, version, slots, lease_until) "
            "VALUES (%s, 'default', 'here', 1, '0', 1, now() + interval '1 hour')",
            [worker_id],
        )
        claimed = "UPDATE runs SET status = 'running', attempt = attempt + 1, worker_id = %s WHERE id = %s"
        connection.execute(claimed, [worker_id, run_id])


def vanish(settings: Settings, worker_id: UUID, run_id: UUID | None, *_: object) -> None:
    """End with the run in hand, as if all were well."""
    hold(settings, worker_id, run_id)
    os._exit(0)


def idle(settings: Settings, worker_id: UUID, run_id: UUID | None, *_: object) -> None:
    """Wait for the signal to stop."""
    hold(settings, worker_id, run_id)
    time.sleep(60)


@contextmanager
def isolation_of(
    stage: Stage,
    database_url: str,
    work: Callable[[Settings, UUID, UUID | None, Connection], None],
    suspects_at_once: int = 4,
) -> Generator[Quarantine]:
    """Make the place where suspects are answered in this way."""

    async def sweep() -> Any:
        return await take_back(stage.database, 3)

    sweeper = cast("Sweeper", SimpleNamespace(take_back=sweep))
    settings = Settings(database_url=database_url, redis_url="redis://none", suspects_at_once=suspects_at_once)
    with Spawner(partial(work, settings)) as nursery:
        yield Quarantine(settings, stage.database, sweeper, nursery)


async def test_a_suspect_whose_process_ends_without_a_word_waits_for_no_lease(stage: Stage, database_url: str) -> None:
    run_id = await stage.query()

    with isolation_of(stage, database_url, vanish) as isolation:
        await isolation.answer(run_id)

    row = await stage.row(run_id)
    assert (row.status, row.crashes, row.attempt) == ("queued", 1, 1)


@pytest.mark.parametrize("started", [False, True])
async def test_a_process_is_told_to_stop_even_if_it_is_only_being_started(
    stage: Stage, database_url: str, *, started: bool
) -> None:
    with isolation_of(stage, database_url, idle) as isolation:
        answering = asyncio.create_task(isolation.answer(await stage.query()))
        await asyncio.sleep(0)
        if started:
            await soon(lambda: stage.execute("SELECT 1 FROM workers"))

        isolation.stop()

        await asyncio.wait_for(answering, 30)


async def test_a_suspect_that_somebody_else_is_at_gets_no_second_process(stage: Stage, database_url: str) -> None:
    run_id = await stage.query()
    assert await set_aside(stage.database, run_id, 60)

    with isolation_of(stage, database_url, vanish) as isolation:
        await isolation.answer(run_id)

    assert (await stage.row(run_id)).attempt == 0


async def test_only_so_many_suspects_are_tried_at_once(stage: Stage, database_url: str) -> None:
    """The others stay called for: another worker has room."""
    alone: dict[str, Any] = {"thread_id": None, "agent_type": "echo"}
    run_ids = [await stage.query(**alone) for _ in range(3)]

    async def begun() -> int:
        return len(await stage.execute("SELECT 1 FROM workers"))

    with isolation_of(stage, database_url, idle, suspects_at_once=1) as isolation:
        answering = [asyncio.create_task(isolation.answer(run_id)) for run_id in run_ids]
        await soon(begun)
        called_for = await stage.execute("SELECT 1 FROM runs WHERE status = 'queued' AND rung_at <= now()")
        isolation.stop()
        await asyncio.gather(*answering)

    assert len(called_for) == 2
    assert await begun() == 1


async def test_more_suspects_than_there_is_room_for_hold_no_slots(stage: Stage, database_url: str) -> None:
    with isolation_of(stage, database_url, idle, suspects_at_once=1) as isolation:
        here = [
            asyncio.create_task(isolation.answer(await stage.query(thread_id=None, agent_type="echo")))
            for _ in range(2)
        ]
        await soon(lambda: stage.execute("SELECT 1 FROM workers"))
        left = await stage.query(thread_id=None, agent_type="echo")
        await asyncio.wait_for(isolation.answer(left), DEADLINE_SECONDS)

        row = await stage.row(left)
        assert (row.status, row.rung_at == row.created_at) == ("queued", True)  # Nobody was told that it is seen to.
        assert not any(task.done() for task in here)
        isolation.stop()
        await asyncio.gather(*here)
