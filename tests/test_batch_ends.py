"""After runs of several batches have ended: what fails for one batch is done for the others."""

from __future__ import annotations

import asyncio
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from redis.asyncio import Redis

from shared.lanes import Lanes
from tests.eventually import DEADLINE_SECONDS
from worker.batch_ends import BatchEnds


async def test_a_batch_that_cannot_be_released_keeps_no_other(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bad, good, released = uuid4(), uuid4(), asyncio.Queue[UUID]()

    async def release(_: Any, batch_id: UUID) -> list[Any]:
        if batch_id == bad:
            raise ValueError("nobody foresaw it")
        released.put_nowait(batch_id)
        return []

    monkeypatch.setattr("worker.batch_ends.release", release)
    async with Redis.from_url(redis_url) as redis:
        batch_ends = BatchEnds(cast("Any", None), redis, Lanes(redis))
        running = asyncio.create_task(batch_ends.run())
        for _ in range(2):
            batch_ends.note(bad, capped=True)
            batch_ends.note(good, capped=True)
            assert await asyncio.wait_for(released.get(), DEADLINE_SECONDS) == good
        running.cancel()
