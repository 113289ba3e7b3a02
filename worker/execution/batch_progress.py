"""After runs of batches have ended here: notify readers, and enqueue more runs of batches with a `max_running`.

If this is missed, a sweeper and the readers' own polls replace it.
"""

from __future__ import annotations

import asyncio
import logging
from uuid import UUID

from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from agent_relay.shared.away import skip_if_database_away
from agent_relay.shared.batches.concurrency import release
from agent_relay.shared.batches.notifications import announce
from agent_relay.shared.queue import RunQueue

log = logging.getLogger(__name__)

PAUSE_SECONDS = 0.1
"""Many runs of a batch may end at once: the ends within a pause make one notification."""


class BatchEndNotifier:
    """The batches of which runs have ended since they were last seen to."""

    def __init__(self, database: AsyncEngine, redis: Redis, lanes: RunQueue) -> None:
        self._database = database
        self._redis = redis
        self._lanes = lanes
        self._ended: dict[UUID, bool] = {}
        """Whether the batch has a `max_running`."""
        self._any = asyncio.Event()

    def note(self, batch_id: UUID, *, capped: bool) -> None:
        """Note that a run of the batch has ended."""
        self._ended[batch_id] = capped
        self._any.set()

    async def run(self) -> None:
        """Process the noted ends, for ever; the first at once."""
        while await self._any.wait():
            self._any.clear()
            ended, self._ended = self._ended, {}
            for batch_id, capped in ended.items():
                if capped:
                    await self._release(batch_id)
            await announce(self._redis, self._lanes.names, ended)
            await asyncio.sleep(PAUSE_SECONDS)

    async def _release(self, batch_id: UUID) -> None:
        """Call for more runs of one batch; where that fails, the other batches still get theirs."""
        try:
            with skip_if_database_away(log, "batch_ends.database_away batch_id=%s", batch_id):
                await self._lanes.ring(await release(self._database, batch_id))
        except Exception:
            log.exception("batch_ends.failed batch_id=%s", batch_id)
