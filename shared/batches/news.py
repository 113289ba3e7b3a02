"""News of a batch: that there is something new to read in its rows. Whoever misses them looks all the same, later."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from uuid import UUID

from redis.asyncio import Redis
from redis.exceptions import RedisError

log = logging.getLogger(__name__)


def channel(batch_id: UUID) -> str:
    """Name the channel on which a batch's news are announced."""
    return f"batch:{batch_id}"


async def announce(redis: Redis, batch_ids: Iterable[UUID]) -> None:
    """Say that some batches have new results, or have ended."""
    try:
        pipeline = redis.pipeline(transaction=False)
        for batch_id in batch_ids:
            pipeline.publish(channel(batch_id), b"")
        await pipeline.execute()
    except (RedisError, OSError) as away:
        log.warning("news.redis_away error=%r", away)
