"""News of a batch: that there is something new to read in its rows. Whoever misses them looks all the same, later."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from uuid import UUID

from redis.asyncio import Redis

from agent_relay.shared.away import skip_if_redis_away
from agent_relay.shared.redis_names import Names

log = logging.getLogger(__name__)


async def announce(redis: Redis, names: Names, batch_ids: Iterable[UUID]) -> None:
    """Say that some batches have new results, or have ended."""
    with skip_if_redis_away(log, "news.redis_away"):
        pipeline = redis.pipeline(transaction=False)
        for batch_id in batch_ids:
            pipeline.publish(names.batch(batch_id), b"")
        await pipeline.execute()
