"""After runs of several batches have ended: what fails for one batch is done for the others."""

from __future__ import annotations

import asyncio
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from redis.asyncio import Redis

from agent_relay.shared.queue import RunQueue
from agent_relay.worker.execution.batch_progress import BatchEndNotifier
from tests.support.eventually import DEADLINE_SECONDS


async def test_a_batch_that_cannot_be_released_keeps_no_other(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    bad, good, released = uuid4(), uuid4(), asyncio.Queue[UUID]()

    async def release(_: Any, batch_id: UUID) -> list[Any]:
        if batch_id == bad:
            raise ValueError("nobody foresaw it")
        released.put_nowait(batch_id)
        return []

    monkeypatch.setattr("agent_relay.worker.execution.batch_progress.release", release)
    batch_ends = BatchEndNotifier(cast("Any", None), redis, RunQueue(redis))
    running = asyncio.create_task(batch_ends.run())
    for _ in range(2):
        batch_ends.note(bad, capped=True)
        batch_ends.note(good, capped=True)
        assert await asyncio.wait_for(released.get(), DEADLINE_SECONDS) == good
    running.cancel()
