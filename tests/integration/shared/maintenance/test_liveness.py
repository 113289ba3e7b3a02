"""The dead are judged whatever else has to be waited for."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from agent_relay.shared.event_log import EventLog
from agent_relay.shared.maintenance.sweeper import Sweeper
from agent_relay.shared.queue import RunQueue
from agent_relay.shared.settings import Settings
from tests.support.eventually import DEADLINE_SECONDS
from tests.support.stage import Stage


async def test_the_dead_are_judged_although_redis_does_not_answer(stage: Stage, database_url: str) -> None:
    """A run that was rung long ago has every sweep look into its lane, which never answers."""
    settings = Settings(database_url=database_url, redis_url="redis://none", lease_seconds=0.6, beat_seconds=0.1)
    run_id = await stage.query()
    await stage.execute("UPDATE runs SET rung_at = now() - interval '1 hour' WHERE id = :id", id=run_id)
    worker_id = await stage.worker(lease_seconds=0.1)
    asked = asyncio.Event()

    async def never(*_: Any) -> None:
        asked.set()
        await asyncio.Event().wait()

    sweeper = Sweeper(
        settings, stage.database, cast("RunQueue", SimpleNamespace(check_writable=never)), cast("EventLog", None)
    )
    sweeping = asyncio.create_task(sweeper.run())
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            await asked.wait()
            while not await stage.execute("SELECT FROM workers WHERE id = :id AND ended_at IS NOT NULL", id=worker_id):  # noqa: ASYNC110  (another task)
                await asyncio.sleep(0.05)
    finally:
        sweeping.cancel()
