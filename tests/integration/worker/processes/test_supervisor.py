"""A parent whose only worker dies: what it held is answered in a moment, and another worker comes."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from uuid import UUID

from agent_relay.shared.settings import Settings
from agent_relay.worker.processes.spawner import Spawner
from agent_relay.worker.processes.supervisor import WorkerSupervisor
from tests.integration.worker.processes.test_quarantine import hold
from tests.support.eventually import eventually, soon
from tests.support.stage import Stage


def die_once(settings: Settings, folder: Path, run_id: UUID, worker_id: UUID, only: UUID | None, *_: object) -> None:
    """Die with the run in hand; who comes after that answers nothing, as if it were only starting."""
    if only is not None:
        hold(settings, worker_id, only)
        return
    first = not any(folder.iterdir())
    (folder / str(worker_id)).touch()
    if first:
        hold(settings, worker_id, run_id)
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(90)


@asynccontextmanager
async def bereaved(stage: Stage, folder: Path, database_url: str, redis_url: str) -> AsyncGenerator[UUID]:
    """Have a parent lose its only worker; yields the run that it held."""
    run_id = await stage.query()
    settings = Settings(database_url=database_url, redis_url=redis_url, drain_seconds=0)
    with Spawner(partial(die_once, settings, folder, run_id)) as nursery:
        parent = WorkerSupervisor(settings, 1, nursery)
        async with asyncio.TaskGroup() as together:  # If the supervisor fails, so does the test.
            together.create_task(parent.run())
            yield run_id
            parent.stop()


async def test_a_suspect_does_not_wait_for_a_worker_that_is_only_starting(
    stage: Stage, tmp_path: Path, database_url: str, redis_url: str
) -> None:
    async with bereaved(stage, tmp_path, database_url, redis_url) as run_id:

        async def begun_again() -> bool:
            return (await stage.row(run_id)).attempt == 2

        assert await soon(begun_again)


async def test_what_died_is_started_again_but_a_suspect_of_another_pool_is_left_to_its_own(
    stage: Stage, tmp_path: Path, database_url: str, redis_url: str
) -> None:
    await stage.execute("UPDATE agents SET pool = 'other'")
    async with bereaved(stage, tmp_path, database_url, redis_url) as run_id:
        await asyncio.to_thread(eventually, lambda: len(list(tmp_path.iterdir())) == 2)
        called_for = (await stage.execute("SELECT rung_at <= now() AS now FROM runs"))[0].now
        row = await stage.row(run_id)

    assert (row.status, row.attempt, row.crashes) == ("queued", 1, 1)
    assert called_for
