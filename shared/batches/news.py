"""News of a batch: that there is something new to read in its rows. Whoever misses them looks all the same, later."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from uuid import UUID

from redis.asyncio import Redis
from redis.exceptions import RedisError

from shared.names import Names

log = logging.getLogger(__name__)


async def announce(redis: Redis, names: Names, batch_ids: Iterable[UUID]) -> None:
    """Say that some batches have new results, or have ended."""
    try:
        pipeline = redis.pipeline(transaction=False)
        for batch_id in batch_ids:
            pipeline.publish(names.batch(batch_id), b"")
        await pipeline.execute()
    except (RedisError, OSError) as away:
        log.warning("news.redis_away error=%r", away)
